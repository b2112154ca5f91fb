//! Writing captions of photos, and how well they agree with people's.

use std::collections::BTreeMap;

use ndarray::{Array2, ArrayView1};
use serde::Serialize;

use super::agreement::{Agreement, Judged, score};
use super::photos::Collection;
use super::pictures::{Eye, Pictures, Seen, Visuals};
use super::retrieval::Progress;
use crate::codebook::Codebook;
use crate::error::{Error, Result};
use crate::media::Caption;
use crate::model::{Device, Manifest, Models};
use crate::onnx::transformer::Precision;
use crate::text::caption_words;
use crate::transformer::{Captioner, Segment, Trained, Writing};

/// Photos that are read at a time.
const AT_A_TIME: usize = 8;
/// Nearest training photos whose captions make up the consensus.
const NEAREST: usize = 60;

/// Captions of some photos, the best of each first.
///
/// # Errors
/// Where the network does not fit the photos; that of `progress`, which ends the writing.
pub fn describe(
    captioner: &mut Captioner,
    visuals: &Visuals<'_>,
    photos: &[usize],
    how: Writing,
    progress: &mut dyn FnMut(Progress) -> Result<()>,
) -> Result<Vec<Vec<Caption>>> {
    let mut captions = Vec::with_capacity(photos.len());
    for batch in photos.chunks(AT_A_TIME) {
        let seen: Vec<Seen> = batch.iter().map(|photo| visuals.seen(*photo)).collect();
        let segments: Vec<Segment<'_>> =
            seen.iter().map(|seen| Segment { words: &[], visual: seen.tokens(0) }).collect();
        let read = captioner.read(&segments)?;
        captions.extend(captioner.write(&read, how)?);
        progress(Progress { what: "captions", done: captions.len(), of: photos.len() })?;
    }
    Ok(captions)
}

/// How captions agree with those that people wrote of the same photos.
///
/// # Errors
/// `InvalidInput` where there is nothing to score.
pub fn judge<'a>(
    captions: impl IntoIterator<Item = &'a str>,
    pictures: &Pictures,
    photos: &[usize],
) -> Result<Agreement> {
    let judged: Vec<Judged> = captions
        .into_iter()
        .zip(photos)
        .map(|(caption, photo)| Judged {
            caption: caption_words(caption),
            references: references(&pictures.photos[*photo].captions),
        })
        .collect();
    score(&judged).map(|scored| scored.all).ok_or_else(|| {
        Error::invalid_input("there are no captions by people to hold these against")
    })
}

fn references(captions: &[String]) -> Vec<Vec<String>> {
    captions.iter().map(|caption| caption_words(caption)).collect()
}

/// The baseline: each photo gets that caption of its nearest training photos (by the cosine of their
/// features) which agrees best with the others of them, as Devlin and others have it ("Exploring
/// nearest neighbor approaches for image captioning", 2015).
pub fn consensus(
    train: &Pictures,
    pictures: &Pictures,
    photos: &[usize],
    progress: &mut dyn FnMut(Progress) -> Result<()>,
) -> Result<Vec<String>> {
    if train.is_empty() || train.dim() != pictures.dim() {
        return Err(Error::invalid_input("there are no training photos with the same features"));
    }
    let known = unit_rows(train, &(0..train.len()).collect::<Vec<_>>());
    let asked = unit_rows(pictures, photos);
    let similar = asked.dot(&known.t());
    let idf = Idf::of(train);
    let mut captions = Vec::with_capacity(photos.len());
    for row in similar.rows() {
        captions.push(agreed(train, row, &idf));
        progress(Progress { what: "baseline", done: captions.len(), of: photos.len() })?;
    }
    Ok(captions)
}

fn unit_rows(pictures: &Pictures, photos: &[usize]) -> Array2<f32> {
    let mut rows = Array2::zeros((photos.len(), pictures.dim()));
    for (mut row, photo) in rows.rows_mut().into_iter().zip(photos) {
        row.assign(&ArrayView1::from(&pictures.features(*photo, 0)));
        let length = row.dot(&row).sqrt().max(f32::MIN_POSITIVE);
        row /= length;
    }
    rows
}

/// How telling n-grams are.
struct Idf {
    photos: f32,
    with: BTreeMap<Vec<String>, u32>,
}

impl Idf {
    fn of(train: &Pictures) -> Self {
        let mut with = BTreeMap::new();
        for photo in &train.photos {
            let words = references(&photo.captions);
            let ngrams: std::collections::BTreeSet<&[String]> =
                words.iter().flat_map(|words| ngrams(words)).collect();
            for ngram in ngrams {
                *with.entry(ngram.to_vec()).or_insert(0) += 1;
            }
        }
        Idf { photos: train.len() as f32, with }
    }

    /// The n-grams of a caption, each with its count times how telling it is, scaled to length 1.
    fn vector<'a>(&self, words: &'a [String]) -> BTreeMap<&'a [String], f32> {
        let mut vector: BTreeMap<&[String], f32> = BTreeMap::new();
        for ngram in ngrams(words) {
            let with = self.with.get(ngram).copied().unwrap_or(1).max(1) as f32;
            *vector.entry(ngram).or_default() += (self.photos / with).ln();
        }
        let length = vector.values().map(|x| x * x).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
        for value in vector.values_mut() {
            *value /= length;
        }
        vector
    }
}

/// The n-grams of one to four words.
fn ngrams(words: &[String]) -> impl Iterator<Item = &[String]> {
    (1..=4).flat_map(|length| words.windows(length))
}

fn agreed(train: &Pictures, similar: ArrayView1<f32>, idf: &Idf) -> String {
    let mut order: Vec<usize> = (0..train.len()).collect();
    order.sort_by(|a, b| similar[*b].total_cmp(&similar[*a]));
    order.truncate(NEAREST);
    let captions: Vec<&String> =
        order.iter().flat_map(|photo| &train.photos[*photo].captions).collect();
    let words: Vec<Vec<String>> = captions.iter().map(|caption| caption_words(caption)).collect();
    // What all say together: a caption's likeness to it is its mean likeness to each.
    let mut all: BTreeMap<&[String], f32> = BTreeMap::new();
    let vectors: Vec<_> = words.iter().map(|words| idf.vector(words)).collect();
    for (ngram, value) in vectors.iter().flatten() {
        *all.entry(ngram).or_default() += value;
    }
    let likeness = |vector: &BTreeMap<&[String], f32>| -> f32 {
        vector.iter().map(|(ngram, value)| value * all[ngram]).sum()
    };
    let best = (0..captions.len())
        .max_by(|a, b| likeness(&vectors[*a]).total_cmp(&likeness(&vectors[*b])).then(b.cmp(a)));
    best.map_or_else(String::new, |best| words[best].join(" "))
}

/// What to evaluate, and with what.
#[derive(Debug)]
pub struct Setup<'a> {
    pub models: &'a Models,
    pub trained: &'a Trained,
    /// The encoder and the codebook that the network was trained with.
    pub encoder: &'a Manifest,
    pub codebook: Option<&'a Codebook>,
    pub device: Device,
    pub precision: Precision,
    pub threads: usize,
    pub how: Writing,
    /// Whether to make the baseline, too, from the collection's split "train".
    pub baseline: bool,
}

/// The result of an evaluation of captions.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub split: String,
    pub photos: usize,
    pub found: Agreement,
    /// The consensus of the nearest training photos' captions.
    pub baseline: Option<Agreement>,
    /// Photos that could not be decoded, with the reason; they take no part.
    pub failed: Vec<(String, String)>,
    /// Each photo's caption.
    pub captions: Vec<Described>,
}

/// A photo's caption.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Described {
    pub image: String,
    pub caption: String,
    /// 0 to 1.
    pub confidence: f32,
}

/// Writes a caption of each photo of `split` and holds it against those that people wrote.
///
/// # Errors
/// `InvalidInput` where the network was trained with another encoder or codebook; `NotFound` where
/// the split has no photos or a model is not set up; that of `progress`, which ends it.
pub fn captions(
    collection: &Collection,
    split: &str,
    setup: &Setup<'_>,
    progress: &mut dyn FnMut(Progress) -> Result<()>,
) -> Result<Report> {
    let Setup { models, trained, encoder, codebook, device, threads, .. } = *setup;
    trained.fitting.check(&encoder.identity(), codebook.map(Codebook::id))?;
    let eye = Eye { models, encoder, device, threads };
    let pictures = Pictures::of_split(collection, split, eye, progress)?;
    let visuals =
        Visuals::new(&pictures, trained.network.features > 0, codebook, trained.network.cells)?;
    let photos: Vec<usize> = (0..pictures.len()).collect();
    let mut captioner = Captioner::new(models, trained, setup.precision, threads)?;
    let written = describe(&mut captioner, &visuals, &photos, setup.how, progress)?;
    let described: Vec<Described> = written
        .into_iter()
        .zip(&pictures.photos)
        .map(|(captions, photo)| {
            let best = captions.into_iter().next();
            let best = best.unwrap_or(Caption { text: String::new(), confidence: 0.0 });
            let (caption, confidence) = (best.text, best.confidence);
            Described { image: photo.image.clone(), caption, confidence }
        })
        .collect();
    let texts = described.iter().map(|described| &described.caption[..]);
    let found = judge(texts, &pictures, &photos)?;
    let baseline = match setup.baseline {
        false => None,
        true => {
            let train = Pictures::of_split(collection, "train", eye, progress)?;
            let texts = consensus(&train, &pictures, &photos, progress)?;
            Some(judge(texts.iter().map(String::as_str), &pictures, &photos)?)
        }
    };
    Ok(Report {
        split: split.to_owned(),
        photos: photos.len(),
        found,
        baseline,
        failed: pictures.failed,
        captions: described,
    })
}
