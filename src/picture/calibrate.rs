//! Observing the ranges of an encoder's activations, for its int8 variant.

use super::encoder::Preprocess;
use crate::error::{Error, Result};
use crate::model::{EncoderSpec, Manifest, Models, Session, Tensor};
use crate::onnx::{self, Ranges};

/// Runs an encoder on pictures and notes the least and greatest value of each activation.
#[derive(Debug)]
pub struct Calibrator {
    session: Session,
    spec: EncoderSpec,
    preprocess: Preprocess,
    ranges: Ranges,
}

impl Calibrator {
    /// # Errors
    /// `NotFound` where the model is not set up; `Unsupported` for one that cannot be quantized.
    pub fn load(models: &Models, manifest: &Manifest, threads: usize) -> Result<Calibrator> {
        let spec = manifest.encoder()?.clone();
        let session = models.session_of(&onnx::observed(models, manifest)?, threads)?;
        let preprocess = Preprocess::new(&spec);
        Ok(Calibrator { session, spec, preprocess, ranges: Ranges::default() })
    }

    /// Width and height that pictures must have.
    pub fn input_px(&self) -> (u32, u32) {
        (self.spec.width_px, self.spec.height_px)
    }

    /// Observes one picture of packed RGB.
    pub fn observe(&mut self, rgb: &[u8]) -> Result<()> {
        if rgb.len() != self.preprocess.input_bytes() {
            return Err(Error::invalid_input(format!("a picture has {} bytes", rgb.len())));
        }
        let input = Tensor::f32(self.preprocess.run(&[rgb]));
        for (name, values) in self.session.run(&[(&self.spec.input, input)])? {
            if !self.is_result(&name) {
                self.ranges.observe(&name, values);
            }
        }
        Ok(())
    }

    /// What was observed.
    pub fn ranges(&self) -> &Ranges {
        &self.ranges
    }

    /// Whether this is an output of the manifest, which is not rounded.
    fn is_result(&self, name: &str) -> bool {
        let classes = self.spec.classes.as_ref().map(|classes| &classes.output.name);
        let cells = self.spec.cells.as_ref();
        name == self.spec.features.name
            || cells.is_some_and(|cells| cells == name)
            || classes.is_some_and(|classes| classes == name)
    }
}
