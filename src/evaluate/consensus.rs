//! Captions by consensus: what people wrote of the nearest pictures, as Devlin and others have it
//! ("Exploring nearest neighbor approaches for image captioning", 2015).

use std::collections::{BTreeMap, BTreeSet};

use ndarray::{Array2, ArrayView1};

use super::setup::{Material, Progress};
use crate::error::{Error, Result};
use crate::text::caption_words;

/// Nearest known pictures whose captions make up the consensus.
const NEAREST: usize = 60;

/// The baseline: each example gets that caption of its nearest known ones (by the cosine of their
/// features) which agrees best with the others of them.
///
/// # Errors
/// `InvalidInput` where nothing is known; that of `progress`.
pub fn consensus(
    known: &Material,
    asked: &Material,
    progress: &mut dyn FnMut(Progress) -> Result<()>,
) -> Result<Vec<String>> {
    if known.examples.is_empty() || known.pictures.dim() != asked.pictures.dim() {
        return Err(Error::invalid_input("there are no training photos with the same features"));
    }
    let similar = unit_rows(asked).dot(&unit_rows(known).t());
    let idf = Idf::of(known);
    let mut captions = Vec::with_capacity(asked.examples.len());
    for row in similar.rows() {
        captions.push(agreed(known, row, &idf));
        progress(Progress { what: "baseline", done: captions.len(), of: asked.examples.len() })?;
    }
    Ok(captions)
}

/// `[examples, dim]`: the direction of the mean of each example's features.
fn unit_rows(material: &Material) -> Array2<f32> {
    let pictures = &material.pictures;
    let mut rows = Array2::zeros((material.examples.len(), pictures.dim()));
    for (mut row, example) in rows.rows_mut().into_iter().zip(&material.examples) {
        for photo in example {
            row += &ArrayView1::from(&pictures.features(*photo, 0));
        }
        let length = row.dot(&row).sqrt().max(f32::MIN_POSITIVE);
        row /= length;
    }
    rows
}

/// How telling n-grams are.
struct Idf {
    examples: f32,
    with: BTreeMap<Vec<String>, u32>,
}

impl Idf {
    fn of(known: &Material) -> Self {
        let mut with = BTreeMap::new();
        for example in &known.examples {
            let words: Vec<Vec<String>> =
                known.captions(example).map(|caption| caption_words(caption)).collect();
            let ngrams: BTreeSet<&[String]> =
                words.iter().flat_map(|words| ngrams(words)).collect();
            for ngram in ngrams {
                *with.entry(ngram.to_vec()).or_insert(0) += 1;
            }
        }
        Idf { examples: known.examples.len() as f32, with }
    }

    /// The n-grams of a caption, each with its count times how telling it is, scaled to length 1.
    fn vector<'a>(&self, words: &'a [String]) -> BTreeMap<&'a [String], f32> {
        let mut vector: BTreeMap<&[String], f32> = BTreeMap::new();
        for ngram in ngrams(words) {
            let with = self.with.get(ngram).copied().unwrap_or(1).max(1) as f32;
            *vector.entry(ngram).or_default() += (self.examples / with).ln();
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

fn agreed(known: &Material, similar: ArrayView1<f32>, idf: &Idf) -> String {
    let mut order: Vec<usize> = (0..known.examples.len()).collect();
    order.sort_by(|a, b| similar[*b].total_cmp(&similar[*a]));
    order.truncate(NEAREST);
    let words: Vec<Vec<String>> = order
        .iter()
        .flat_map(|example| known.captions(&known.examples[*example]))
        .map(|caption| caption_words(caption))
        .collect();
    // What all say together: a caption's likeness to it is its mean likeness to each.
    let mut all: BTreeMap<&[String], f32> = BTreeMap::new();
    let vectors: Vec<_> = words.iter().map(|words| idf.vector(words)).collect();
    for (ngram, value) in vectors.iter().flatten() {
        *all.entry(ngram).or_default() += value;
    }
    let likeness = |vector: &BTreeMap<&[String], f32>| -> f32 {
        vector.iter().map(|(ngram, value)| value * all[ngram]).sum()
    };
    let best = (0..words.len())
        .max_by(|a, b| likeness(&vectors[*a]).total_cmp(&likeness(&vectors[*b])).then(b.cmp(a)));
    best.map_or_else(String::new, |best| words[best].join(" "))
}
