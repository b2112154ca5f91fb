//! The transformer that this project trains, as two ONNX graphs: one reads `[CLS] words [>] visual
//! tokens`, one writes a caption word by word with the keys and values of what was read.
//!
//! Its design follows VideoBERT (Sun and others, 2019) in what it reads, and UniLM (Dong and others,
//! 2019) in having one network for both: what is written sees all that was read and what was written
//! before it. Each layer normalizes its input (Xiong and others, 2020), and squares what is positive (So
//! and others, "Primer", 2021).

mod graphs;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use graphs::{Precision, guessing_graph, reading_graph, writing_graph};

use crate::error::{Error, Result};

/// Of the layer normalizations.
pub const EPSILON: f32 = 1e-5;

/// What is added to the attention paid to what must not be seen.
pub const UNSEEN: f32 = -1e4;

/// The sizes of a network: with these and its tensors, it is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// Word pieces.
    pub vocabulary: usize,
    /// Length of a token's vector.
    pub dim: usize,
    pub layers: usize,
    pub heads: usize,
    /// Length of the inner vector of a layer's feed-forward part.
    pub inner: usize,
    /// Places for words: the longest text, its marks included.
    pub words: usize,
    /// Places for clips: the longest segment.
    pub clips: usize,
    /// Tokens of a clip for parts of the picture, beside that of the whole; 0 for none.
    pub cells: usize,
    /// Length of the features that a visual token is made from; 0 where it is not.
    pub features: usize,
    /// Length of the visual word's centroid that a visual token is made from; 0 where it is not.
    pub centroids: usize,
    /// Length of an embedding in the joint space.
    pub space: usize,
    /// Length of the inner vector of the small network that makes an embedding of the features of the whole
    /// pictures; 0: it is projected from `[CLS]`, as the paper has it, which learns few pictures by heart.
    #[serde(default)]
    pub embedder: usize,
    /// Length of the centroids that hidden visual words are guessed by; 0 where they were not. It is
    /// for training, and no graph has it.
    pub guessed: usize,
}

/// What a token is: a row of `kinds.weight`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    Read = 0,
    Visual = 1,
    Written = 2,
}

/// A tensor: its shape and its values, row by row.
#[derive(Debug, Clone, PartialEq)]
pub struct Weights {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

/// A network's tensors by name.
pub type Tensors = BTreeMap<String, Weights>;

impl Network {
    /// Checks the sizes against each other and against generous limits, so that none of them, read
    /// from a file, asks for more memory than a network of this kind needs.
    ///
    /// # Errors
    /// `InvalidInput`, naming the size.
    pub fn check(&self) -> Result<()> {
        let limits = [
            ("vocabulary", self.vocabulary, 8, 1 << 17),
            ("dim", self.dim, 1, 4_096),
            ("layers", self.layers, 1, 64),
            ("heads", self.heads, 1, 64),
            ("inner", self.inner, 1, 1 << 14),
            ("words", self.words, 8, 1_024),
            ("clips", self.clips, 1, 256),
            ("cells", self.cells, 0, 64),
            ("features", self.features, 0, 1 << 14),
            ("centroids", self.centroids, 0, 1 << 14),
            ("space", self.space, 1, 1 << 14),
            ("embedder", self.embedder, 0, 1 << 14),
            ("guessed", self.guessed, 0, 1 << 14),
        ];
        for (name, size, least, most) in limits {
            if !(least..=most).contains(&size) {
                return Err(Error::invalid_input(format!(
                    "a network with {name} = {size} is not possible: {least} to {most} are"
                )));
            }
        }
        if !self.dim.is_multiple_of(self.heads) {
            return Err(Error::invalid_input(format!(
                "dim = {} is no multiple of heads = {}",
                self.dim, self.heads
            )));
        }
        if self.features == 0 && self.centroids == 0 {
            return Err(Error::invalid_input("a network needs features or centroids to see"));
        }
        Ok(())
    }

    /// Names and lengths of what a visual token is made from.
    pub fn visual_inputs(&self) -> Vec<(&'static str, usize)> {
        [("features", self.features), ("centroids", self.centroids)]
            .into_iter()
            .filter(|(_, length)| *length > 0)
            .collect()
    }

    /// What an embedding is made from where `[CLS]` is not: the name and the length of it.
    pub fn embedder_input(&self) -> Option<(&'static str, usize)> {
        self.visual_inputs().first().copied().filter(|_| self.embedder > 0)
    }

    /// Length of a head's queries, keys and values.
    pub fn head(&self) -> usize {
        self.dim / self.heads
    }

    /// The names and shapes of all tensors: what a checkpoint holds. Matrices are `[inputs,
    /// outputs]`, tables `[entries, dim]`.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let dim = self.dim;
        let mut tensors = vec![
            ("words.weight".to_owned(), vec![self.vocabulary, dim]),
            ("words.position".to_owned(), vec![self.words, dim]),
            ("kinds.weight".to_owned(), vec![3, dim]),
            ("visual.clip.position".to_owned(), vec![self.clips, dim]),
            ("visual.cell.position".to_owned(), vec![1 + self.cells, dim]),
            ("written.bias".to_owned(), vec![self.vocabulary]),
            ("alignment.weight".to_owned(), vec![1]),
            ("alignment.bias".to_owned(), vec![1]),
        ];
        if self.guessed > 0 {
            tensors.push(("visual.guess.weight".to_owned(), vec![dim, self.guessed]));
        }
        let mut norms = vec![("embedding.norm".to_owned(), dim), ("norm".to_owned(), dim)];
        match self.embedder_input() {
            None => tensors.push(("space.weight".to_owned(), vec![dim, self.space])),
            Some((_, length)) => {
                norms.push(("space.norm".to_owned(), length));
                tensors.push(("space.up.weight".to_owned(), vec![length, self.embedder]));
                tensors.push(("space.up.bias".to_owned(), vec![self.embedder]));
                tensors.push(("space.down.weight".to_owned(), vec![self.embedder, self.space]));
            }
        }
        for (name, length) in self.visual_inputs() {
            norms.push((format!("visual.{name}.norm"), length));
            tensors.push((format!("visual.{name}.weight"), vec![length, dim]));
        }
        for layer in 0..self.layers {
            norms.push((format!("layers.{layer}.attention.norm"), dim));
            norms.push((format!("layers.{layer}.inner.norm"), dim));
            for (part, inputs, outputs) in [
                ("attention.query", dim, dim),
                ("attention.key", dim, dim),
                ("attention.value", dim, dim),
                ("attention.output", dim, dim),
                ("inner.up", dim, self.inner),
                ("inner.down", self.inner, dim),
            ] {
                let name = format!("layers.{layer}.{part}");
                tensors.push((format!("{name}.weight"), vec![inputs, outputs]));
                tensors.push((format!("{name}.bias"), vec![outputs]));
            }
        }
        for (name, length) in norms {
            tensors.push((format!("{name}.weight"), vec![length]));
            tensors.push((format!("{name}.bias"), vec![length]));
        }
        tensors.sort();
        tensors
    }

    /// Whether `tensors` are this network's.
    ///
    /// # Errors
    /// `Corrupt`, naming the first tensor that is missing, superfluous, of another shape or not
    /// finite.
    pub fn check_tensors(&self, tensors: &Tensors) -> Result<()> {
        let wanted = self.tensors();
        for (name, shape) in &wanted {
            let found = tensors
                .get(name)
                .ok_or_else(|| Error::corrupt(format!("the tensor {name} is missing")))?;
            if found.shape != *shape || found.values.len() != shape.iter().product::<usize>() {
                return Err(Error::corrupt(format!(
                    "the tensor {name} has the shape {:?}, not {shape:?}",
                    found.shape
                )));
            }
            if found.values.iter().any(|value| !value.is_finite()) {
                return Err(Error::corrupt(format!("the tensor {name} is not finite")));
            }
        }
        if tensors.len() > wanted.len() {
            let more = tensors.keys().find(|name| !wanted.iter().any(|(known, _)| known == *name));
            return Err(Error::corrupt(format!(
                "the tensor {} belongs to another network",
                more.map_or("", String::as_str)
            )));
        }
        Ok(())
    }
}

/// The scores of pictures and captions are their cosines times this, when they are told apart. A fixed
/// number: with a learnt one, the first hundred steps of a short training go into it.
pub const SHARPNESS: f32 = 20.0;

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn network() -> Network {
        Network {
            vocabulary: 11,
            dim: 8,
            layers: 2,
            heads: 2,
            inner: 16,
            words: 12,
            clips: 3,
            cells: 9,
            features: 6,
            centroids: 4,
            space: 5,
            embedder: 7,
            guessed: 2,
        }
    }

    fn zeros(network: &Network) -> Tensors {
        let zeros = |(name, shape): (String, Vec<usize>)| {
            let values = vec![0.0; shape.iter().product()];
            (name, Weights { shape, values })
        };
        network.tensors().into_iter().map(zeros).collect()
    }

    #[test]
    fn tensors_of_another_network_are_refused_by_name() {
        let network = network();
        let tensors = zeros(&network);
        network.check_tensors(&tensors).unwrap();
        let refused = |change: &dyn Fn(&mut Tensors)| {
            let mut tensors = tensors.clone();
            change(&mut tensors);
            network.check_tensors(&tensors).unwrap_err().to_string()
        };
        let missing = refused(&|tensors| drop(tensors.remove("norm.bias")));
        assert!(missing.contains("norm.bias is missing"), "{missing}");
        let shape = refused(&|tensors| {
            tensors.insert("norm.bias".into(), Weights { shape: vec![3], values: vec![0.0; 3] });
        });
        assert!(shape.contains("norm.bias has the shape [3], not [8]"), "{shape}");
        let more = refused(&|tensors| {
            tensors.insert("x".into(), Weights { shape: vec![0], values: vec![] });
        });
        assert!(more.contains("tensor x belongs to another"), "{more}");
        let not_finite = refused(&|tensors| {
            tensors.get_mut("norm.bias").unwrap().values[1] = f32::NAN;
        });
        assert!(not_finite.contains("norm.bias is not finite"), "{not_finite}");
    }

    #[test]
    fn impossible_sizes_are_refused() {
        let refused = |network: Network| network.check().unwrap_err().to_string();
        assert!(refused(Network { heads: 3, ..network() }).contains("no multiple"));
        assert!(refused(Network { layers: 0, ..network() }).contains("layers = 0"));
        assert!(refused(Network { vocabulary: usize::MAX, ..network() }).contains("vocabulary"));
        let blind = Network { features: 0, centroids: 0, ..network() };
        assert!(refused(blind).contains("features or centroids"));
    }
}
