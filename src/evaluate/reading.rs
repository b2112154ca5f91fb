//! A trained network reading photos, alone and beside words.

use ndarray::{Array2, Axis, concatenate};

use super::pictures::{Seen, Visuals};
use super::setup::{Example, Progress};
use crate::error::{Error, Result};
use crate::text::TextTower;
use crate::transformer::{Captioner, Reading, Segment, VisualToken};

/// Examples that are read at a time.
pub const AT_A_TIME: usize = 8;
/// Captions that are embedded between two reports of progress.
const CAPTIONS_AT_A_TIME: usize = 128;

/// An example as a network sees it.
#[derive(Debug)]
pub struct Look(Vec<Seen>);

impl Look {
    pub fn of(visuals: &Visuals<'_>, example: &[usize]) -> Look {
        Look(example.iter().map(|photo| visuals.seen(*photo)).collect())
    }

    /// Its tokens: each photo is a clip.
    pub fn tokens(&self) -> Vec<VisualToken<'_>> {
        self.0.iter().enumerate().flat_map(|(clip, seen)| seen.tokens(clip)).collect()
    }
}

/// Reads examples without words.
///
/// # Errors
/// As [`Captioner::read`].
pub fn read(
    captioner: &mut Captioner,
    visuals: &Visuals<'_>,
    examples: &[Example],
) -> Result<Reading> {
    let looks: Vec<Look> = examples.iter().map(|example| Look::of(visuals, example)).collect();
    let segments: Vec<Segment<'_>> =
        looks.iter().map(|look| Segment { words: &[], visual: look.tokens() }).collect();
    captioner.read(&segments)
}

/// The examples' embeddings: `[examples, space]`, rows of length 1.
///
/// # Errors
/// As [`Captioner::read`]; that of `progress`.
pub fn embeddings(
    captioner: &mut Captioner,
    visuals: &Visuals<'_>,
    examples: &[Example],
    progress: &mut dyn FnMut(Progress) -> Result<()>,
) -> Result<Array2<f32>> {
    let mut rows = Vec::new();
    let mut done = 0;
    for batch in examples.chunks(AT_A_TIME) {
        rows.push(read(captioner, visuals, batch)?.embeddings);
        done += batch.len();
        progress(Progress { what: "embeddings", done, of: examples.len() })?;
    }
    let views: Vec<_> = rows.iter().map(|rows| rows.view()).collect();
    concatenate(Axis(0), &views)
        .map_err(|cause| Error::internal("embeddings differ in length").caused_by(cause))
}

/// The captions' embeddings: `[captions, space]`, rows of length 1.
///
/// # Errors
/// As [`TextTower::embed`]; that of `progress`.
pub fn sentences(
    tower: &mut TextTower,
    captions: &[&str],
    progress: &mut dyn FnMut(Progress) -> Result<()>,
) -> Result<Array2<f32>> {
    let mut rows = Array2::zeros((captions.len(), tower.dim()));
    let mut done = 0;
    for batch in captions.chunks(CAPTIONS_AT_A_TIME) {
        let embedded = tower.embed(batch)?;
        rows.slice_mut(ndarray::s![done..done + batch.len(), ..]).assign(&embedded);
        done += batch.len();
        progress(Progress { what: "sentences", done, of: captions.len() })?;
    }
    Ok(rows)
}
