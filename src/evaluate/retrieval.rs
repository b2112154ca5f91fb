//! Captions as queries, photos as what they should find: how good the joint space is.

use std::path::PathBuf;

use ndarray::{Array2, ArrayView1};
use serde::Serialize;

use super::metrics::{Retrieval, rank};
use super::photos::{self, Collection, Photo};
use crate::error::{Error, Result};
use crate::model::{Device, Manifest, Models};
use crate::picture::Encoder;
use crate::text::{JointSpace, TextTower};

/// Captions that are embedded between two reports of progress.
const CAPTIONS_AT_A_TIME: usize = 128;

/// What a study of ConSE with the same encoder and tower gave on Flickr8k's 1,000 test photos, all
/// 5,000 captions as queries: the baseline to reproduce.
pub const STUDY: Retrieval = Retrieval {
    recall_at_1: 5.0,
    recall_at_5: 14.3,
    recall_at_10: 21.2,
    median_rank: 70.0,
    mean_reciprocal_rank: None,
};
/// The size of the study's test, by which a run is told to be comparable.
const STUDY_PHOTOS: usize = 1_000;
const STUDY_CAPTIONS: usize = 5_000;

/// What to run with.
#[derive(Debug)]
pub struct Setup<'a> {
    pub models: &'a Models,
    pub encoder: &'a Manifest,
    pub tower: &'a Manifest,
    pub device: Device,
    /// Threads of the networks, and decoder hosts side by side.
    pub threads: usize,
}

/// How far a run is: `done` of `of` photos or captions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    pub what: &'static str,
    pub done: usize,
    pub of: usize,
}

/// The result.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub encoder: String,
    pub tower: String,
    pub split: String,
    pub photos: usize,
    pub captions: usize,
    pub found: Retrieval,
    pub chance: Retrieval,
    /// Where this run is the study's: the same number of photos and captions of a test split.
    pub study: Option<Retrieval>,
    /// Photos that could not be decoded, with the reason; they take no part.
    pub failed: Vec<(String, String)>,
}

/// Embeds each photo of `split` through the joint space and each of its captions through the text
/// tower, and ranks the photos for every caption. An error of `progress` ends the run.
///
/// # Errors
/// `NotFound` where the split has no photos or a model is not set up; `InvalidInput` for an encoder
/// without classes, or where no photo could be decoded.
pub fn retrieval(
    collection: &Collection,
    split: &str,
    setup: &Setup<'_>,
    progress: &mut dyn FnMut(Progress) -> Result<()>,
) -> Result<Report> {
    let photos = collection.of_split(split)?;
    let Setup { models, threads, .. } = *setup;
    let space = JointSpace::open(models, setup.encoder, setup.tower, threads)?;
    let mut tower = TextTower::load(models, setup.tower, threads)?;
    let mut encoder = Encoder::load(models, setup.encoder, setup.device, threads)?;

    let paths: Vec<PathBuf> = photos.iter().map(|photo| collection.path(photo)).collect();
    let mut embeddings: Vec<Option<Vec<f32>>> = vec![None; photos.len()];
    let mut failed = Vec::new();
    let mut done = 0;
    photos::encode(&mut encoder, &paths, threads, &mut |photo, encoded| {
        match encoded.and_then(|encoded| space.picture(&encoded.classes)) {
            Ok(embedding) => embeddings[photo] = Some(embedding),
            Err(error) => failed.push((photos[photo].image.clone(), error.reason())),
        }
        done += 1;
        progress(Progress { what: "photos", done, of: photos.len() })
    })?;
    failed.sort();

    let kept: Vec<(&Photo, Vec<f32>)> = photos
        .iter()
        .zip(embeddings)
        .filter_map(|(photo, embedding)| Some((*photo, embedding?)))
        .collect();
    let captions: Vec<(usize, &str)> = kept
        .iter()
        .enumerate()
        .flat_map(|(place, (photo, _))| {
            photo.captions.iter().map(move |caption| (place, caption.as_str()))
        })
        .collect();
    let mut pictures = Array2::zeros((kept.len(), space.dim()));
    for (mut row, (_, embedding)) in pictures.rows_mut().into_iter().zip(&kept) {
        row.assign(&ArrayView1::from(embedding));
    }
    let mut ranks = Vec::with_capacity(captions.len());
    for batch in captions.chunks(CAPTIONS_AT_A_TIME) {
        let texts: Vec<&str> = batch.iter().map(|(_, caption)| *caption).collect();
        let scores = tower.embed(&texts)?.dot(&pictures.t());
        ranks.extend(batch.iter().zip(scores.rows()).map(|((right, _), row)| rank(row, *right)));
        progress(Progress { what: "captions", done: ranks.len(), of: captions.len() })?;
    }
    let found = Retrieval::of(&ranks).ok_or_else(|| {
        Error::invalid_input(format!(
            "no photo of the split {split:?} could be used{}",
            failed.first().map_or(String::new(), |(image, why)| format!(": {image}: {why}"))
        ))
    })?;
    let is_the_studys =
        split == "test" && kept.len() == STUDY_PHOTOS && captions.len() == STUDY_CAPTIONS;
    Ok(Report {
        encoder: setup.encoder.id.clone(),
        tower: setup.tower.id.clone(),
        split: split.to_owned(),
        photos: kept.len(),
        captions: captions.len(),
        found,
        chance: Retrieval::chance(kept.len()),
        study: is_the_studys.then_some(STUDY),
        failed,
    })
}
