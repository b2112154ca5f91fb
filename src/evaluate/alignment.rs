//! How well a network tells the words of a picture from those of another.

use ndarray::{Array2, Axis, s};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::metrics::separation;
use super::setup::{Examinee, Material, Progress, Setup};
use super::{conse, reading};
use crate::error::{Error, Result};

/// Captions whose nearest others are looked for at a time.
const AT_A_TIME: usize = 256;
/// What the random captions follow from.
const SEED: u64 = 0;

/// How often, in per cent, a caption of the picture itself scores higher than one of another picture:
/// the area under the ROC curve.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Separation {
    /// Than one random caption of another picture for each pair (seed 0).
    pub random: f64,
    /// Than that caption of another picture whose embedding is nearest to the pair's caption.
    pub nearest: f64,
}

/// The result.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub split: String,
    /// What is looked at: photos, or sequences of frames.
    pub examples: usize,
    /// Pairs of a picture and one of its captions.
    pub pairs: usize,
    /// By the network's embedding of the picture and the caption's.
    pub alignment: Separation,
    /// By that of the embedding that the CNN's classes give; only of single photos.
    pub conse: Option<Separation>,
    /// Photos that could not be decoded, with the reason; they take no part.
    pub failed: Vec<(String, String)>,
}

/// A picture's place, and a caption's.
type Pair = (usize, usize);

/// Scores every pair of a picture and its caption, and as many pairs that do not belong together.
///
/// # Errors
/// `InvalidInput` where there are not two pictures with captions, or the network does not fit; that of
/// `progress`, which ends it.
pub fn alignment(
    setup: &Setup<'_>,
    examinee: &Examinee<'_>,
    progress: &mut dyn FnMut(Progress) -> Result<()>,
) -> Result<Report> {
    let material = setup.judged(progress)?;
    let mut captioner = setup.captioner(examinee, &material)?;
    let visuals = examinee.visuals(&material.pictures)?;
    let examples = &material.examples;
    let (owners, texts) = captions(&material);
    if owners.first() == owners.last() {
        return Err(Error::invalid_input("there are no two pictures with captions to tell apart"));
    }
    let sentences = reading::sentences(&mut setup.tower()?, &texts, progress)?;
    let own: Vec<Pair> = owners.iter().copied().zip(0..).collect();
    let random = randomly(&owners);
    let nearest = nearest(&owners, &sentences, progress)?;

    let by_cosine = |pictures: &Array2<f32>| {
        let scores = |pairs: &[Pair]| -> Vec<f32> {
            let cosine =
                |(picture, caption): &Pair| pictures.row(*picture).dot(&sentences.row(*caption));
            pairs.iter().map(cosine).collect()
        };
        let of_own = scores(&own);
        Separation {
            random: separation(&of_own, &scores(&random)),
            nearest: separation(&of_own, &scores(&nearest)),
        }
    };
    let embeddings = reading::embeddings(&mut captioner, &visuals, examples, progress)?;
    let conse = match setup.sequence {
        true => None,
        false => {
            let embedded = conse::embed(setup, progress)?;
            Some(by_cosine(&embedded.rows_of(&material.pictures.photos)?))
        }
    };
    Ok(Report {
        split: setup.split.to_owned(),
        examples: examples.len(),
        pairs: own.len(),
        alignment: by_cosine(&embeddings),
        conse,
        failed: material.pictures.failed.clone(),
    })
}

/// All captions, each with the place of its example.
fn captions(material: &Material) -> (Vec<usize>, Vec<&str>) {
    let of =
        |(place, example)| material.captions(example).map(move |caption| (place, caption.as_str()));
    material.examples.iter().map(Vec::as_slice).enumerate().flat_map(of).unzip()
}

/// For each caption's picture, a random caption of another.
fn randomly(owners: &[usize]) -> Vec<Pair> {
    let mut random = ChaCha8Rng::seed_from_u64(SEED);
    owners
        .iter()
        .map(|owner| {
            loop {
                let caption = random.random_range(0..owners.len());
                if owners[caption] != *owner {
                    break (*owner, caption);
                }
            }
        })
        .collect()
}

/// For each caption's picture, that caption of another which is nearest to the caption.
fn nearest(
    owners: &[usize],
    sentences: &Array2<f32>,
    progress: &mut dyn FnMut(Progress) -> Result<()>,
) -> Result<Vec<Pair>> {
    let mut pairs = Vec::with_capacity(owners.len());
    for from in (0..owners.len()).step_by(AT_A_TIME) {
        let to = owners.len().min(from + AT_A_TIME);
        let similar = sentences.slice(s![from..to, ..]).dot(&sentences.t());
        for (row, owner) in similar.axis_iter(Axis(0)).zip(&owners[from..to]) {
            let others = (0..owners.len()).filter(|caption| owners[*caption] != *owner);
            let best = others.max_by(|a, b| row[*a].total_cmp(&row[*b]).then(b.cmp(a)));
            pairs.extend(best.map(|caption| (*owner, caption)));
        }
        progress(Progress { what: "neighbours", done: to, of: owners.len() })?;
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn captions_of_the_picture_itself_are_never_its_negatives() {
        let owners = [0, 0, 1, 2, 2];
        let sentences = array![[1., 0.], [0.9, 0.1], [0., 1.], [0.8, 0.2], [0.1, 0.9]];
        let found = nearest(&owners, &sentences, &mut |_| Ok(())).unwrap();
        assert_eq!(found, [(0, 3), (0, 3), (1, 4), (2, 0), (2, 2)]);
        let random = randomly(&owners);
        assert_eq!(random, randomly(&owners));
        assert!(
            random.iter().zip(owners).all(|((picture, caption), owner)| {
                *picture == owner && owners[*caption] != owner
            })
        );
    }
}
