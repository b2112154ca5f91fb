//! A trained network guessing hidden words.

use ndarray::Array3;

use super::captioner::{inputs, misshapen, taken};
use super::packing::{Segment, pack};
use super::weights::Trained;
use crate::error::Result;
use crate::model::{Models, Session};
use crate::onnx::transformer::{Network, Precision, guessing_graph};

/// A network ready to guess.
#[derive(Debug)]
pub struct Guesser {
    network: Network,
    session: Session,
}

impl Guesser {
    /// Makes a trained network ready, with `threads` for one run.
    ///
    /// # Errors
    /// As [`guessing_graph`]; `NotFound` where ONNX Runtime is not set up.
    pub fn new(
        models: &Models,
        trained: &Trained,
        precision: Precision,
        threads: usize,
    ) -> Result<Guesser> {
        let graph = guessing_graph(&trained.network, &trained.tensors, precision)?;
        Ok(Guesser { network: trained.network, session: models.session_of(&graph, threads)? })
    }

    /// What the words of segments are, hidden ones (`[MASK]`) too: log-probabilities `[segments, words,
    /// vocabulary]`. The first word is `[CLS]`.
    ///
    /// # Errors
    /// `InvalidInput` where a segment does not fit the network.
    pub fn guess(&mut self, segments: &[Segment<'_>]) -> Result<Array3<f32>> {
        let packed = pack(&self.network, segments)?;
        let mut outputs = self.session.run(&inputs(&self.network, &packed)?)?;
        taken(&mut outputs, "guesses")?.into_dimensionality().map_err(misshapen)
    }
}
