//! Photos in the joint space without training: what the CNN's classes say.

use std::collections::HashMap;
use std::path::PathBuf;

use ndarray::{Array2, ArrayView1};

use super::photos::{self, Photo, View};
use super::setup::{Progress, Setup};
use crate::error::{Error, Result};
use crate::picture::Encoder;
use crate::text::JointSpace;

/// Photos that were embedded.
#[derive(Debug)]
pub(super) struct Embedded<'a> {
    pub(super) photos: Vec<&'a Photo>,
    /// `[photos, space]`, rows of length 1.
    pub(super) rows: Array2<f32>,
    /// Those that could not be decoded, with the reason.
    pub(super) failed: Vec<(String, String)>,
}

/// Embeds the photos of the split.
///
/// # Errors
/// `NotFound` where the split has no photos or a model is not set up; `InvalidInput` for an encoder
/// without classes, or where no photo could be decoded.
pub(super) fn embed<'a>(
    setup: &'a Setup<'_>,
    progress: &mut dyn FnMut(Progress) -> Result<()>,
) -> Result<Embedded<'a>> {
    let photos = setup.collection.of_split(setup.split)?;
    let space = JointSpace::open(setup.models, setup.encoder, setup.tower, setup.threads)?;
    let mut encoder = Encoder::load(setup.models, setup.encoder, setup.device, setup.threads)?;
    let paths: Vec<PathBuf> = photos.iter().map(|photo| setup.collection.path(photo)).collect();
    let mut embeddings: Vec<Option<Vec<f32>>> = vec![None; photos.len()];
    let mut failed = Vec::new();
    let mut done = 0;
    photos::encode(&mut encoder, &paths, View::WHOLE, setup.threads, &mut |photo, encoded| {
        match encoded.and_then(|encoded| space.picture(&encoded.classes)) {
            Ok(embedding) => embeddings[photo] = Some(embedding),
            Err(error) => failed.push((photos[photo].image.clone(), error.reason())),
        }
        done += 1;
        progress(Progress { what: "photos", done, of: photos.len() })
    })?;
    failed.sort();
    let kept: Vec<(&Photo, Vec<f32>)> = photos
        .into_iter()
        .zip(embeddings)
        .filter_map(|(photo, embedding)| Some((photo, embedding?)))
        .collect();
    if kept.is_empty() {
        let (image, why) = failed.first().cloned().unwrap_or_default();
        return Err(Error::invalid_input(format!(
            "no photo of the split {:?} could be used: {image}: {why}",
            setup.split
        )));
    }
    let mut rows = Array2::zeros((kept.len(), space.dim()));
    for (mut row, (_, embedding)) in rows.rows_mut().into_iter().zip(&kept) {
        row.assign(&ArrayView1::from(embedding));
    }
    Ok(Embedded { photos: kept.into_iter().map(|(photo, _)| photo).collect(), rows, failed })
}

impl Embedded<'_> {
    /// The rows of these photos, in their order.
    ///
    /// # Errors
    /// `InvalidInput` where one was not embedded.
    pub(super) fn rows_of(&self, photos: &[Photo]) -> Result<Array2<f32>> {
        let places: HashMap<&str, usize> =
            self.photos.iter().map(|photo| &photo.image[..]).zip(0..).collect();
        let of = |photo: &Photo| {
            places.get(&photo.image[..]).copied().ok_or_else(|| {
                Error::invalid_input(format!("{} has no class probabilities", photo.image))
            })
        };
        let chosen = photos.iter().map(of).collect::<Result<Vec<_>>>()?;
        Ok(self.rows.select(ndarray::Axis(0), &chosen))
    }
}
