//! Checkpoints: all that a training needs to go on, as one safetensors file.
//!
//! `checkpoint-STEP.safetensors` holds each tensor of the network ([`Network::tensors`] has their
//! names) four times: as `weights.NAME`; as `average.NAME`, the average that is scored and shipped; and
//! as `mean.NAME` and `square.NAME`, AdamW's running means of gradients and of their squares. All that
//! is random follows from the seed and the step, so there is no other state. One metadata entry,
//! `cinelex.training`, is JSON.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::optimizer::Optimizer;
use crate::error::{Error, Kind, Result};
use crate::onnx::transformer::{Network, Tensors};
use crate::transformer::{Numbers, read_tensors, write_tensors};

const FORMAT: u32 = 1;
const METADATA: &str = "cinelex.training";
/// So many are kept: should the last be unreadable, there is one before it.
const KEPT: usize = 2;

/// How far a training is, beside the tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Progress {
    pub(super) format: u32,
    pub(super) step: u64,
    /// Of processor time in steps, over all threads and runs.
    pub(super) cpu_secs: f64,
    /// Batches that were taken of each [`StepKind`].
    ///
    /// [`StepKind`]: super::draw::StepKind
    pub(super) taken: [u64; 4],
    /// The hash of all that must be the same when the training goes on: configuration and data.
    pub(super) training: String,
    pub(super) network: Network,
}

impl Progress {
    pub(super) fn new(training: String, network: Network) -> Self {
        Progress { format: FORMAT, step: 0, cpu_secs: 0.0, taken: [0; 4], training, network }
    }
}

/// Writes a checkpoint into `folder`, whole or not at all, and removes those before the last two.
pub(super) fn write(folder: &Path, progress: &Progress, optimizer: &Optimizer) -> Result<()> {
    let mut tensors = Tensors::new();
    for (part, of_part) in [
        ("weights", &optimizer.weights),
        ("average", &optimizer.average),
        ("mean", &optimizer.mean),
        ("square", &optimizer.square),
    ] {
        let named = of_part.iter().map(|(name, tensor)| (format!("{part}.{name}"), tensor.clone()));
        tensors.extend(named);
    }
    let head = serde_json::to_string(progress)
        .map_err(|cause| Error::internal("cannot write JSON").caused_by(cause))?;
    let path = folder.join(format!("checkpoint-{:08}.safetensors", progress.step));
    write_tensors(&path, METADATA, &head, &tensors, Numbers::F32)?;
    let all = all(folder)?;
    for old in &all[..all.len().saturating_sub(KEPT)] {
        // The next time removes it.
        if let Err(cause) = std::fs::remove_file(old) {
            tracing::warn!(%cause, path = %old.display(), "an old checkpoint cannot be removed");
        }
    }
    Ok(())
}

/// The last checkpoint of `folder` that can be read. One that cannot is told of and passed over.
///
/// # Errors
/// `NotFound` where there is none; `InvalidInput` where it is of another training.
pub(super) fn last(folder: &Path, training: &str) -> Result<(Progress, Optimizer)> {
    let mut unreadable = None;
    for path in all(folder)?.iter().rev() {
        match read(path) {
            Ok((progress, _)) if progress.training != training => {
                return Err(Error::invalid_input(format!(
                    "{} is of a training with another configuration or other data: resume with the \
                     same, or train into another folder",
                    path.display()
                )));
            }
            Ok(found) => return Ok(found),
            Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::InvalidInput) => {
                tracing::warn!(%error, "a checkpoint cannot be read: the one before it is taken");
                unreadable.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    Err(unreadable.unwrap_or_else(|| {
        Error::not_found(format!("{} holds no checkpoint to resume from", folder.display()))
    }))
}

/// The checkpoints of a folder, the first step first.
pub(super) fn all(folder: &Path) -> Result<Vec<PathBuf>> {
    let listing = |cause| Error::io(folder, "list", cause);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(listing)? {
        let path = entry.map_err(listing)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let step = name
            .strip_prefix("checkpoint-")
            .and_then(|rest| rest.strip_suffix(".safetensors")?.parse::<u64>().ok());
        found.extend(step.map(|step| (step, path.clone())));
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

fn read(path: &Path) -> Result<(Progress, Optimizer)> {
    let (head, tensors) = read_tensors(path, METADATA)?;
    let read = || {
        let progress: Progress = serde_json::from_str(&head).map_err(|cause| {
            Error::corrupt(format!("the entry {METADATA} is damaged")).caused_by(cause)
        })?;
        if progress.format != FORMAT {
            return Err(Error::corrupt(format!("it has format {}", progress.format)));
        }
        progress.network.check()?;
        let part = |part: &str| -> Result<Tensors> {
            let of_part: Tensors = tensors
                .iter()
                .filter_map(|(name, tensor)| {
                    let name = name.strip_prefix(part)?.strip_prefix('.')?;
                    Some((name.to_owned(), tensor.clone()))
                })
                .collect();
            progress.network.check_tensors(&of_part)?;
            Ok(of_part)
        };
        let optimizer = Optimizer {
            step: progress.step,
            weights: part("weights")?,
            average: part("average")?,
            mean: part("mean")?,
            square: part("square")?,
        };
        Ok((progress, optimizer))
    };
    read().map_err(|error| error.in_source(path.display()))
}
