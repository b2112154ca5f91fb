//! Where somebody speaks: Silero's network, a chunk of sound at a time.

use ndarray::{ArrayD, IxDyn};

use crate::error::{Error, Result};
use crate::model::{Device, Manifest, Models, Session, Tensor, VoiceSpec};

/// Samples of a chunk: 32 ms.
pub(super) const CHUNK: usize = 512;
/// Samples of the chunk before that the network sees again.
const CONTEXT: usize = 64;
const STATE: [usize; 3] = [2, 1, 128];
const RATE_HZ: i64 = 16_000;
/// Below one step of 16 bits nothing is heard: such chunks need no network.
const SILENCE: f32 = 1.0 / 32_768.0;

/// The network, and what it remembers of the sound so far.
#[derive(Debug)]
pub struct Voice {
    session: Session,
    spec: VoiceSpec,
    state: ArrayD<f32>,
    context: [f32; CONTEXT],
    /// Chunks that it remembers.
    remembered: usize,
    /// All sound passes for speech.
    is_everywhere: bool,
}

impl Voice {
    /// # Errors
    /// As [`Models::session`].
    pub fn load(models: &Models, manifest: &Manifest) -> Result<Voice> {
        let spec = manifest.voice()?.clone();
        let session = models.session(manifest, Device::Cpu, 1)?;
        let state = ArrayD::zeros(IxDyn(&STATE));
        Ok(Voice {
            session,
            spec,
            state,
            context: [0.0; CONTEXT],
            remembered: 0,
            is_everywhere: false,
        })
    }

    /// Takes all sound for speech from now on, to tell what it costs that the network does not.
    pub fn hear_everywhere(&mut self) {
        self.is_everywhere = true;
    }

    /// How likely somebody speaks in the next chunk.
    pub(super) fn probability(&mut self, chunk: &[f32; CHUNK]) -> Result<f32> {
        if self.is_everywhere {
            return Ok(1.0);
        }
        if chunk.iter().all(|sample| sample.abs() < SILENCE) {
            self.forget();
            return Ok(0.0);
        }
        self.remembered += 1;
        let mut input = Vec::with_capacity(CONTEXT + CHUNK);
        input.extend_from_slice(&self.context);
        input.extend_from_slice(chunk);
        self.context.copy_from_slice(&chunk[CHUNK - CONTEXT..]);
        let wrong = || Error::internal("the voice network has other shapes than its manifest says");
        let input = ArrayD::from_shape_vec(IxDyn(&[1, CONTEXT + CHUNK]), input)
            .map_err(|cause| wrong().caused_by(cause))?;
        let rate = ArrayD::from_elem(IxDyn(&[]), RATE_HZ);
        let state = std::mem::take(&mut self.state);
        let mut outputs = self.session.run(&[
            (&self.spec.input, Tensor::f32(input)),
            (&self.spec.state, Tensor::f32(state)),
            (&self.spec.rate, Tensor::i64(rate)),
        ])?;
        let state = outputs.remove(&self.spec.next_state);
        self.state = state.filter(|state| state.shape() == STATE).ok_or_else(wrong)?;
        let output = outputs.remove(&self.spec.output);
        output.and_then(|output| output.first().copied()).ok_or_else(wrong)
    }

    /// Begins anew: what follows has nothing to do with what was before.
    pub(super) fn forget(&mut self) {
        self.state = ArrayD::zeros(IxDyn(&STATE));
        self.context = [0.0; CONTEXT];
        self.remembered = 0;
    }

    /// Of how many chunks in a row it remembers something.
    pub(super) fn remembered(&self) -> usize {
        self.remembered
    }
}
