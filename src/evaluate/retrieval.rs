//! Captions as queries, photos as what they should find: how good the joint space is, as the CNN's
//! classes give it (ConSE) and as a trained network does.

use ndarray::{Array2, ArrayView1};
use serde::Serialize;

use super::metrics::{Retrieval, rank};
use super::setup::{Examinee, Progress, Setup};
use super::{conse, reading};
use crate::error::{Error, Result};

/// What a study with the same encoder and tower gave on Flickr8k's 1,000 test photos, all 5,000
/// captions as queries: the baseline to reproduce.
const STUDY: Study =
    Study { conse: study(5.0, 14.3, 21.2, 70.0), network: study(20.3, 47.4, 61.3, 6.0) };
/// The size of the study's test, by which a run is told to be comparable.
const STUDY_PHOTOS: usize = 1_000;
const STUDY_CAPTIONS: usize = 5_000;
/// Of reciprocal rank fusion, as in search.
const FUSION: f32 = 60.0;

const fn study(at_1: f64, at_5: f64, at_10: f64, median_rank: f64) -> Retrieval {
    Retrieval {
        recall_at_1: at_1,
        recall_at_5: at_5,
        recall_at_10: at_10,
        median_rank,
        mean_reciprocal_rank: None,
    }
}

/// A study's figures.
#[derive(Debug, Clone, Serialize)]
pub struct Study {
    pub conse: Retrieval,
    pub network: Retrieval,
}

/// The result.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub encoder: String,
    pub tower: String,
    pub split: String,
    pub photos: usize,
    pub captions: usize,
    /// Photos embedded by the CNN's classes.
    pub conse: Retrieval,
    /// … by the trained network.
    pub network: Option<Retrieval>,
    /// The ranks of both, fused.
    pub fused: Option<Retrieval>,
    pub chance: Retrieval,
    /// Where this run is the study's: the same number of photos and captions of a test split.
    pub study: Option<Study>,
    /// Photos that could not be decoded, with the reason; they take no part.
    pub failed: Vec<(String, String)>,
}

/// Embeds each photo of the split and each of its captions, and ranks the photos for every caption. An
/// error of `progress` ends the run.
///
/// # Errors
/// `NotFound` where the split has no photos or a model is not set up; `InvalidInput` for an encoder
/// without classes, a network of another space, or where no photo could be decoded.
pub fn retrieval(
    setup: &Setup<'_>,
    examinee: Option<&Examinee<'_>>,
    progress: &mut dyn FnMut(Progress) -> Result<()>,
) -> Result<Report> {
    let embedded = conse::embed(setup, progress)?;
    let captions: Vec<(usize, &str)> = embedded
        .photos
        .iter()
        .enumerate()
        .flat_map(|(place, photo)| photo.captions.iter().map(move |caption| (place, &caption[..])))
        .collect();
    let texts: Vec<&str> = captions.iter().map(|(_, caption)| *caption).collect();
    let mut tower = setup.tower()?;
    let queries = reading::sentences(&mut tower, &texts, progress)?;
    let own: Vec<usize> = captions.iter().map(|(place, _)| *place).collect();

    let by_classes = queries.dot(&embedded.rows.t());
    let (mut network, mut fused) = (None, None);
    if let Some(examinee) = examinee {
        examinee.trained.fitting.check_space(tower.space())?;
        let material = setup.judged(progress)?;
        let visuals = examinee.visuals(&material.pictures)?;
        let mut captioner = setup.captioner(examinee, &material)?;
        let rows = reading::embeddings(&mut captioner, &visuals, &material.examples, progress)?;
        if material.pictures.len() != embedded.photos.len() {
            return Err(Error::invalid_input(
                "photos could be decoded at one time, not at another",
            ));
        }
        let by_network = queries.dot(&rows.t());
        network = found(&by_network, &own);
        fused = found(&fuse(&by_network, &by_classes), &own);
    }
    let no_caption = || Error::invalid_input("the photos have no captions to look for them by");
    let is_the_studys = setup.split == "test"
        && embedded.photos.len() == STUDY_PHOTOS
        && captions.len() == STUDY_CAPTIONS;
    Ok(Report {
        encoder: setup.encoder.variant.name(&setup.encoder.id),
        tower: setup.tower.id.clone(),
        split: setup.split.to_owned(),
        photos: embedded.photos.len(),
        captions: captions.len(),
        conse: found(&by_classes, &own).ok_or_else(no_caption)?,
        network,
        fused,
        chance: Retrieval::chance(embedded.photos.len()),
        study: is_the_studys.then_some(STUDY),
        failed: embedded.failed.clone(),
    })
}

/// From `[queries, photos]` scores, and the photo that each query should find.
fn found(scores: &Array2<f32>, own: &[usize]) -> Option<Retrieval> {
    let ranks = scores.rows().into_iter().zip(own).map(|(row, own)| rank(row, *own));
    Retrieval::of(&ranks.collect::<Vec<_>>())
}

/// Reciprocal rank fusion (Cormack and others, 2009) of two lists a query: `[queries, photos]` scores.
/// Where the fused ranks are equal, the first list's scores decide.
fn fuse(a: &Array2<f32>, b: &Array2<f32>) -> Array2<f32> {
    const TIE: f32 = 1e-6;
    let mut fused = a * TIE;
    for list in [a, b] {
        for (mut fused, scores) in fused.rows_mut().into_iter().zip(list.rows()) {
            for (rank, photo) in order(scores).into_iter().enumerate() {
                fused[photo] += 1.0 / (FUSION + 1.0 + rank as f32);
            }
        }
    }
    fused
}

/// Places by their scores, the highest first.
fn order(scores: ArrayView1<f32>) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn what_both_lists_rank_high_comes_first() {
        let a = array![[0.9, 0.8, 0.1, 0.0]];
        let b = array![[0.0, 0.8, 0.9, 0.1]];
        let fused = fuse(&a, &b);
        assert_eq!(order(fused.row(0)), [2, 1, 0, 3]);
        // Photos 0 and 2 swap their ranks; the first list decides.
        let b = array![[0.1, 0.8, 0.9, 0.0]];
        assert_eq!(order(fuse(&a, &b).row(0)), [0, 2, 1, 3]);
        assert_eq!(found(&a, &[1]).map(|found| found.median_rank), Some(2.0));
    }
}
