//! Writing ONNX graphs from checkpoints, so that models come as their authors published them and
//! no Python is needed to run them.

use crate::error::{Error, Kind, Result};
use crate::model::{Conversion, Manifest, Models, Progress, Variant};

mod bert;
mod build;
mod checkpoint;
mod efficientnet;
mod pickle;
mod proto;
mod quantize;
pub mod transformer;

use checkpoint::Checkpoint;
use efficientnet::Form;
pub use quantize::Ranges;

/// Fetches a model's files and, where its manifest has a conversion, writes its ONNX graph into
/// the cache. What is there already stays.
///
/// # Errors
/// `Unavailable` or `NotFound` where a file cannot be fetched, saying what to do by hand;
/// `Corrupt` where a file is not what the manifest says; `InvalidInput` where the manifest does
/// not fit its files.
pub fn prepare(
    models: &Models,
    manifest: &Manifest,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<()> {
    models.fetch(manifest, progress)?;
    let Some(conversion) = &manifest.conversion else { return Ok(()) };
    match models.graph(manifest) {
        Ok(_) => return Ok(()),
        // A graph that was changed is written again.
        Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Corrupt) => (),
        Err(error) => return Err(error),
    }
    let graph = convert(models, manifest, conversion)
        .map_err(|error| Error::new(error.kind(), format!("model {}: {error}", manifest.id)))?;
    models.keep_graph(manifest, &graph)
}

/// A graph like the model's that has every activation as an output too, for observing the ranges
/// that its int8 variant is made with. Its outputs are named as in [`Ranges`], beside those of
/// the manifest.
///
/// # Errors
/// `Unsupported` for a model that is not converted from an EfficientNet-Lite checkpoint.
pub fn observed(models: &Models, manifest: &Manifest) -> Result<Vec<u8>> {
    match &manifest.conversion {
        Some(Conversion::EfficientNetLite { checkpoint, width, depth, .. }) => {
            let bytes = models.bytes(manifest, checkpoint)?;
            let mut checkpoint = Checkpoint::from_legacy_pth(&bytes)?;
            let spec = manifest.encoder()?;
            efficientnet::convert(&mut checkpoint, spec, *width, *depth, Form::Observed)
        }
        _ => Err(Error::unsupported(format!("model {} cannot be quantized", manifest.id))),
    }
}

fn convert(models: &Models, manifest: &Manifest, conversion: &Conversion) -> Result<Vec<u8>> {
    match conversion {
        Conversion::EfficientNetLite { checkpoint, width, depth, ranges } => {
            let bytes = models.bytes(manifest, checkpoint)?;
            let mut checkpoint = Checkpoint::from_legacy_pth(&bytes)?;
            let ranges = match (manifest.variant, ranges) {
                (Variant::Int8, Some(file)) => {
                    Some(Ranges::from_text(file, &models.bytes(manifest, file)?)?)
                }
                _ => None,
            };
            let form = ranges.as_ref().map_or(Form::Float, Form::Rounded);
            efficientnet::convert(&mut checkpoint, manifest.encoder()?, *width, *depth, form)
        }
        Conversion::SentenceBert { checkpoint, heads } => {
            let bytes = models.bytes(manifest, checkpoint)?;
            let mut checkpoint = Checkpoint::from_safetensors(&bytes)?;
            bert::convert(&mut checkpoint, manifest.text()?, *heads)
        }
    }
}
