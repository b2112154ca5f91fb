//! A trained network at work: reading segments and writing captions.

use std::collections::HashMap;
use std::sync::Arc;

use ndarray::{Array2, ArrayD, ArrayView1, ArrayView2, Axis, IxDyn, concatenate, s};

pub use super::beams::Search as Writing;

use super::beams::{self, Row};
use super::consensus::Consensus;
use super::packing::{Packed, Segment, pack};
use super::weights::Trained;
use crate::error::{Error, Result};
use crate::media::Caption;
use crate::model::{Models, Session, Tensor};
use crate::onnx::transformer::{
    Network, Precision, SHARPNESS, UNSEEN, reading_graph, writing_graph,
};
use crate::text::WordPieces;

/// What reading gives.
#[derive(Debug, Clone)]
pub struct Reading {
    /// `[segments, space]`, rows of length 1.
    pub embeddings: Array2<f32>,
    /// `[layers, segments, heads, tokens, head]`.
    keys: ArrayD<f32>,
    values: ArrayD<f32>,
    /// `[segments, tokens]`.
    bias: Array2<f32>,
}

/// A network ready to run.
#[derive(Debug)]
pub struct Captioner {
    network: Network,
    pieces: WordPieces,
    read: Session,
    write: Session,
    consensus: Option<Arc<Consensus>>,
    /// What the cosine of picture and words is multiplied with, and what is added.
    alignment: [f32; 2],
}

impl Captioner {
    /// Makes a trained network ready, with `threads` for one run.
    ///
    /// # Errors
    /// As [`reading_graph`]; `NotFound` where ONNX Runtime is not set up.
    pub fn new(
        models: &Models,
        trained: &Trained,
        precision: Precision,
        threads: usize,
    ) -> Result<Captioner> {
        let Trained { network, pieces, tensors, consensus, .. } = trained;
        let read = reading_graph(network, tensors, precision)?;
        let write = writing_graph(network, tensors, precision)?;
        Ok(Captioner {
            network: *network,
            pieces: pieces.clone(),
            read: models.session_of(&read, threads)?,
            write: models.session_of(&write, threads)?,
            consensus: consensus.clone(),
            alignment: ["weight", "bias"]
                .map(|part| tensors[&format!("alignment.{part}")].values[0]),
        })
    }

    /// How well words fit a picture, 0 to 1, by the embedding that was read of it and the sentence
    /// encoder's of the words: how likely they belong together where every second pair does.
    pub fn alignment(&self, picture: ArrayView1<'_, f32>, words: ArrayView1<'_, f32>) -> f32 {
        1.0 / (1.0 + (-self.alignment_odds(picture, words)).exp())
    }

    /// The logarithm of the odds of that.
    pub(crate) fn alignment_odds(
        &self,
        picture: ArrayView1<'_, f32>,
        words: ArrayView1<'_, f32>,
    ) -> f32 {
        let [weight, bias] = self.alignment;
        SHARPNESS * (weight * picture.dot(&words) + bias)
    }

    /// What texts are read and written in.
    pub fn pieces(&self) -> &WordPieces {
        &self.pieces
    }

    /// Reads segments, all at a time.
    ///
    /// # Errors
    /// `InvalidInput` where a segment does not fit the network; `Corrupt` where its weights are such that
    /// nothing comes of them.
    pub fn read(&mut self, segments: &[Segment<'_>]) -> Result<Reading> {
        let packed = pack(&self.network, segments)?;
        let bias = array(&[packed.rows, packed.tokens()], packed.bias());
        let mut outputs = self.read.run(&inputs(&self.network, &packed))?;
        let mut take = |name: &str| taken(&mut outputs, name);
        let embeddings: Array2<f32> =
            take("embedding")?.into_dimensionality().map_err(misshapen)?;
        if embeddings.iter().any(|value| !value.is_finite()) {
            return Err(Error::corrupt(
                "the network's weights are of no use: an embedding of what it read is no number",
            ));
        }
        Ok(Reading {
            embeddings,
            keys: take("keys")?,
            values: take("values")?,
            bias: bias.into_dimensionality().map_err(misshapen)?,
        })
    }

    /// Writes captions of what was read, for each segment the best first: at least one each. The best is that
    /// which agrees best with what people wrote of like pictures, where the network has that beside it, or
    /// else the likeliest.
    pub fn write(&mut self, read: &Reading, how: Writing) -> Result<Vec<Vec<Caption>>> {
        let segments = read.bias.nrows();
        let most = how.most.min(self.network.words - 1);
        let (mut keys, mut values) = (read.keys.clone(), read.values.clone());
        let mut bias = read.bias.clone();
        let mut place = 0;
        let write = &mut self.write;
        let mut found = beams::search(segments, Writing { most, ..how }, |rows| {
            let parents: Vec<usize> = rows.iter().map(|row| row.parent).collect();
            if !parents.iter().copied().eq(0..keys.len_of(Axis(1))) {
                keys = keys.select(Axis(1), &parents);
                values = values.select(Axis(1), &parents);
                bias = bias.select(Axis(0), &parents);
            }
            // A word sees itself, too.
            bias = concatenate![Axis(1), bias, Array2::zeros((rows.len(), 1))];
            let step = Step { keys: &keys, values: &values, bias: &bias, place };
            let mut outputs = write.run(&step.inputs(rows))?;
            keys = grown(&keys, &taken(&mut outputs, "new_keys")?)?;
            values = grown(&values, &taken(&mut outputs, "new_values")?)?;
            place += 1;
            let next = taken(&mut outputs, "log_probabilities")?;
            next.index_axis_move(Axis(1), 0).into_dimensionality().map_err(misshapen)
        })?;
        if let Some(consensus) = &self.consensus {
            for (found, said) in found.iter_mut().zip(consensus.said(read.embeddings.view())) {
                // Where nobody wrote anything alike, the likelier stays first.
                let agreement =
                    |caption: &beams::Found| consensus.agreement(&caption.pieces, &said);
                let mut order: Vec<(f32, beams::Found)> =
                    found.drain(..).map(|caption| (agreement(&caption), caption)).collect();
                order.sort_by(|(a, _), (b, _)| b.total_cmp(a));
                found.extend(order.into_iter().map(|(_, caption)| caption));
            }
        }
        let caption = |found: beams::Found| Caption {
            confidence: (found.log_probability / (found.pieces.len() + 1) as f32).exp(),
            text: self.pieces.decode(&found.pieces),
        };
        Ok(found.into_iter().map(|all| all.into_iter().map(caption).collect()).collect())
    }

    /// For each picture's embedding (`[pictures, space]`), what people wrote of like pictures and agree upon:
    /// a caption without any writing. `None` where the network has no captions beside it.
    pub fn agreed(&self, pictures: ArrayView2<'_, f32>) -> Option<Vec<String>> {
        let captions = self.consensus.as_ref()?.captions(pictures);
        Some(captions.iter().map(|pieces| self.pieces.decode(pieces)).collect())
    }

    /// The log-probabilities of each piece of a text and of its end, after what was read of the
    /// segment `of`: `[pieces + 1, vocabulary]`.
    pub fn log_probabilities(
        &mut self,
        read: &Reading,
        of: usize,
        pieces: &[u32],
    ) -> Result<Array2<f32>> {
        let words = pieces.len() + 1;
        let tokens = read.bias.ncols();
        let mut bias = ArrayD::zeros(IxDyn(&[1, 1, words, tokens + words]));
        for word in 0..words {
            bias.slice_mut(s![0, 0, word, ..tokens]).assign(&read.bias.row(of));
            bias.slice_mut(s![0, 0, word, tokens + word + 1..]).fill(UNSEEN);
        }
        let ids = std::iter::once(&crate::text::pieces::SEP).chain(pieces);
        let ids = ids.map(|id| i64::from(*id)).collect();
        let inputs = [
            ("words", Tensor::I64(array(&[1, words], ids))),
            ("places", Tensor::I64(array(&[words], (0..words as i64).collect()))),
            ("keys", Tensor::F32(read.keys.select(Axis(1), &[of]))),
            ("values", Tensor::F32(read.values.select(Axis(1), &[of]))),
            ("bias", Tensor::F32(bias)),
        ];
        let next = taken(&mut self.write.run(&inputs)?, "log_probabilities")?;
        next.index_axis_move(Axis(0), 0).into_dimensionality().map_err(misshapen)
    }
}

/// The inputs of the graphs that read and guess.
pub(super) fn inputs(network: &Network, packed: &Packed) -> Vec<(&'static str, Tensor)> {
    let Packed { rows, words, visual, .. } = *packed;
    let mut inputs = vec![
        ("words", Tensor::I64(array(&[rows, words], packed.word_ids.clone()))),
        ("clips", Tensor::I64(array(&[rows, visual], packed.clips.clone()))),
        ("cells", Tensor::I64(array(&[rows, visual], packed.cells.clone()))),
        ("bias", Tensor::F32(array(&[rows, 1, 1, packed.tokens()], packed.bias()))),
    ];
    for (name, length) in network.visual_inputs() {
        let values = packed.values(name).to_vec();
        inputs.push((name, Tensor::F32(array(&[rows, visual, length], values))));
    }
    inputs
}

/// One word more of each row.
struct Step<'a> {
    keys: &'a ArrayD<f32>,
    values: &'a ArrayD<f32>,
    bias: &'a Array2<f32>,
    place: i64,
}

impl Step<'_> {
    fn inputs(&self, rows: &[Row]) -> [(&'static str, Tensor); 5] {
        let words = rows.iter().map(|row| i64::from(row.last)).collect();
        let bias = self.bias.iter().copied().collect();
        let seen = self.bias.ncols();
        [
            ("words", Tensor::I64(array(&[rows.len(), 1], words))),
            ("places", Tensor::I64(array(&[1], vec![self.place]))),
            ("keys", Tensor::F32(self.keys.clone())),
            ("values", Tensor::F32(self.values.clone())),
            ("bias", Tensor::F32(array(&[rows.len(), 1, 1, seen], bias))),
        ]
    }
}

fn grown(kept: &ArrayD<f32>, new: &ArrayD<f32>) -> Result<ArrayD<f32>> {
    concatenate(Axis(3), &[kept.view(), new.view()]).map_err(misshapen)
}

pub(super) fn taken(outputs: &mut HashMap<String, ArrayD<f32>>, name: &str) -> Result<ArrayD<f32>> {
    outputs.remove(name).ok_or_else(|| Error::internal(format!("the graph has no output {name}")))
}

pub(super) fn misshapen(cause: ndarray::ShapeError) -> Error {
    Error::internal("the network's graphs do not fit each other").caused_by(cause)
}

fn array<T>(shape: &[usize], values: Vec<T>) -> ArrayD<T> {
    ArrayD::from_shape_vec(IxDyn(shape), values).expect("a tensor is made with its shape")
}
