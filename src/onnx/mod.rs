//! Writing ONNX graphs, and the files that whisper.cpp reads, from checkpoints, so that models come as
//! their authors published them and no Python is needed to run them.

use crate::error::{Error, Kind, Result};
use crate::model::{Conversion, Manifest, Models, Progress, Variant};

mod bert;
mod blocks;
mod build;
mod checkpoint;
mod ctranslate2;
mod efficientnet;
pub mod ggml;
mod pickle;
mod proto;
mod quantize;
pub mod transformer;
pub mod whisper;

use checkpoint::Checkpoint;
use efficientnet::Form;
pub use quantize::Ranges;

/// Fetches a model's files and, where its manifest has a conversion, writes its graph into
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
    match manifest.weights_name()? {
        None => models.keep_graph(manifest, &graph, None),
        Some(name) => {
            let (graph, weights) = build::weights_apart(&graph, &name)?;
            models.keep_graph(manifest, &graph, Some(&weights))
        }
    }
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
        Conversion::Whisper { parts, vocabulary } => {
            let mut model = Vec::new();
            for part in parts {
                model.extend_from_slice(&models.bytes(manifest, part)?);
            }
            whisper::convert(&model, &models.bytes(manifest, vocabulary)?)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Device, Tensor};
    use ndarray::{Array2, array};

    /// Needs `cinelex setup`.
    #[test]
    fn weights_in_a_file_of_their_own_change_no_bit() {
        let models = Models::open().unwrap();
        let manifest = models.manifest("minilm").unwrap();
        let inside = convert(&models, &manifest, manifest.conversion.as_ref().unwrap()).unwrap();
        let ids = array![[101_i64, 1037, 3899, 102], [101, 4937, 102, 0]];
        let mask: Array2<i64> = ids.mapv(|id| i64::from(id != 0));
        let embeddings = [
            models.session_of(&inside, 1).unwrap(),
            models.session(&manifest, Device::Cpu, 1).unwrap(),
        ]
        .map(|mut session| {
            let inputs = [("input_ids", Tensor::i64(&ids)), ("attention_mask", Tensor::i64(&mask))];
            session.run(&inputs).unwrap().remove("embedding").unwrap()
        });
        assert_eq!(embeddings[0].shape(), [2, 384]);
        assert!(embeddings[0] == embeddings[1]);
        let graph = std::fs::metadata(models.graph(&manifest).unwrap()).unwrap();
        assert!(graph.len() < 1 << 20, "{} bytes", graph.len());
    }
}
