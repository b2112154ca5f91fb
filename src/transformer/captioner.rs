//! A trained network at work: reading segments and writing captions.

use std::collections::HashMap;
use std::sync::Arc;

use ndarray::{Array1, Array2, ArrayD, ArrayView1, ArrayView2, ArrayViewD, Axis, IxDyn};

pub use super::beams::Search as Writing;

use super::beams;
use super::consensus::{Consensus, Said};
use super::packing::{Packed, Segment, pack};
use super::under_way::{UnderWay, nothing_written};
use super::weights::Trained;
use crate::error::{Error, Result};
use crate::media::Caption;
use crate::model::{Models, Session, Tensor};
use crate::onnx::transformer::{
    Network, Precision, SHARPNESS, UNSEEN, reading_graph, writing_graph,
};
use crate::text::WordPieces;
use crate::text::pieces::SEP;

/// What reading gives.
#[derive(Debug, Clone)]
pub struct Reading {
    /// `[segments, space]`, rows of length 1.
    pub embeddings: Array2<f32>,
    /// `[layers, segments, heads, tokens, head]`.
    pub(super) keys: ArrayD<f32>,
    pub(super) values: ArrayD<f32>,
    /// `[segments, tokens]`.
    pub(super) bias: Array2<f32>,
}

/// A caption that was written.
#[derive(Debug, Clone, PartialEq)]
pub struct Written {
    pub caption: Caption,
    /// By what beam search orders captions: the log-probability, divided by a power of the length.
    pub score: f32,
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
        let mut outputs = self.read.run(&inputs(&self.network, &packed)?)?;
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
    /// else the likeliest; so does its confidence come of that, or else is the mean probability of its pieces.
    pub fn write(&mut self, read: &Reading, how: Writing) -> Result<Vec<Vec<Written>>> {
        let most = how.most.min(self.network.words - 1);
        let (write, mut under_way) = (&mut self.write, UnderWay::new(&self.network, read));
        let segments = read.bias.nrows();
        let found = beams::search(segments, Writing { most, ..how }, |rows| {
            under_way.follow(rows)?;
            under_way.step(write)
        })?;
        let written = |found: beams::Found, confidence: f32| Written {
            caption: Caption { confidence, text: self.pieces.decode(&found.pieces) },
            score: found.score,
        };
        let Some(consensus) = &self.consensus else {
            let probable = |found: beams::Found| {
                let confidence = (found.log_probability / (found.pieces.len() + 1) as f32).exp();
                written(found, confidence)
            };
            return Ok(found
                .into_iter()
                .map(|all| all.into_iter().map(probable).collect())
                .collect());
        };
        let chosen = |(found, said): (Vec<beams::Found>, Said)| {
            let agreement = |caption: &beams::Found| consensus.agreement(&caption.pieces, &said);
            let mut order: Vec<(f32, beams::Found)> =
                found.into_iter().map(|caption| (agreement(&caption), caption)).collect();
            // Where nobody wrote anything alike, the likelier stays first.
            order.sort_by(|(a, _), (b, _)| b.total_cmp(a));
            let order = order.into_iter();
            order.map(|(agreement, found)| written(found, said.confidence(agreement))).collect()
        };
        let said = consensus.said(read.embeddings.view());
        Ok(found.into_iter().zip(said).map(chosen).collect())
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
        let ids = std::iter::once(&SEP).chain(pieces);
        let ids: Vec<i64> = ids.map(|id| i64::from(*id)).collect();
        let order = |(word, other): (usize, usize)| if other > word { UNSEEN } else { 0.0 };
        let nothing = nothing_written(&self.network, 1);
        let inputs = [
            ("words", Tensor::i64(array(&[1, 1, words], ids))),
            ("places", Tensor::i64(Array1::from_iter(0..words as i64))),
            ("keys", Tensor::f32(read.keys.select(Axis(1), &[of]))),
            ("values", Tensor::f32(read.values.select(Axis(1), &[of]))),
            (
                "bias",
                Tensor::f32(array(&[1, 1, 1, 1, read.bias.ncols()], read.bias.row(of).to_vec())),
            ),
            ("written_keys", Tensor::f32(&nothing)),
            ("written_values", Tensor::f32(&nothing)),
            ("order", Tensor::f32(Array2::from_shape_fn((words, words), order))),
        ];
        let next = taken(&mut self.write.run(&inputs)?, "log_probabilities")?;
        let next = next.index_axis_move(Axis(0), 0).index_axis_move(Axis(0), 0);
        next.into_dimensionality().map_err(misshapen)
    }
}

/// The inputs of the graphs that read and guess.
pub(super) fn inputs<'a>(
    network: &Network,
    packed: &'a Packed,
) -> Result<Vec<(&'static str, Tensor<'a>)>> {
    let Packed { rows, words, visual, .. } = *packed;
    let mut inputs = vec![
        ("words", Tensor::i64(view(&[rows, words], &packed.word_ids)?)),
        ("clips", Tensor::i64(view(&[rows, visual], &packed.clips)?)),
        ("cells", Tensor::i64(view(&[rows, visual], &packed.cells)?)),
        ("bias", Tensor::f32(array(&[rows, 1, 1, packed.tokens()], packed.bias()))),
    ];
    for (name, length) in network.visual_inputs() {
        inputs.push((name, Tensor::f32(view(&[rows, visual, length], packed.values(name))?)));
    }
    Ok(inputs)
}

pub(super) fn taken(outputs: &mut HashMap<String, ArrayD<f32>>, name: &str) -> Result<ArrayD<f32>> {
    outputs.remove(name).ok_or_else(|| Error::internal(format!("the graph has no output {name}")))
}

pub(super) fn misshapen(cause: ndarray::ShapeError) -> Error {
    Error::internal("the network's graphs do not fit each other").caused_by(cause)
}

fn view<'a, T>(shape: &[usize], values: &'a [T]) -> Result<ArrayViewD<'a, T>> {
    ArrayViewD::from_shape(IxDyn(shape), values).map_err(misshapen)
}

fn array<T>(shape: &[usize], values: Vec<T>) -> ArrayD<T> {
    ArrayD::from_shape_vec(IxDyn(shape), values).expect("a tensor is made with its shape")
}
