//! Captions by consensus: what people wrote of the nearest pictures, as Devlin and others have it
//! ("Exploring nearest neighbor approaches for image captioning", 2015).

use std::collections::{BTreeMap, BTreeSet};

use ndarray::{Array1, Array2, ArrayView1, Axis};

use super::setup::{Material, Progress};
use crate::error::{Error, Result};
use crate::text::caption_words;

/// Nearest known pictures whose captions make up the consensus.
const NEAREST: usize = 60;

/// The known pictures that are nearest to each of those that are asked about.
#[derive(Debug)]
pub struct Consensus<'a> {
    known: &'a Material,
    idf: Idf,
    /// For each asked example, the places of known ones, the nearest first.
    nearest: Vec<Vec<usize>>,
}

impl<'a> Consensus<'a> {
    /// Nearest by the cosine of their features, less the mean of those that are known.
    ///
    /// # Errors
    /// `InvalidInput` where nothing is known; that of `progress`.
    pub fn new(
        known: &'a Material,
        asked: &Material,
        progress: &mut dyn FnMut(Progress) -> Result<()>,
    ) -> Result<Self> {
        if known.examples.is_empty() || known.pictures.dim() != asked.pictures.dim() {
            return Err(Error::invalid_input(
                "there are no training photos with the same features",
            ));
        }
        let known_rows = rows(known);
        // What all pictures have in common tells nothing, and is most of what they are.
        let centre = known_rows.mean_axis(Axis(0)).unwrap_or_default();
        let similar = directions(rows(asked), &centre).dot(&directions(known_rows, &centre).t());
        let mut nearest = Vec::with_capacity(asked.examples.len());
        for row in similar.rows() {
            let mut order: Vec<usize> = (0..row.len()).collect();
            order.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
            order.truncate(NEAREST);
            nearest.push(order);
            progress(Progress { what: "neighbours", done: nearest.len(), of: similar.nrows() })?;
        }
        Ok(Consensus { known, idf: Idf::of(known), nearest })
    }

    /// The baseline: each example gets that caption of its nearest known ones which agrees best with
    /// the others of them.
    pub fn captions(&self) -> Vec<String> {
        let agreed = |example: usize| {
            let said = self.said(example);
            self.likest(&said, &said).map_or_else(String::new, |best| said[best].join(" "))
        };
        (0..self.nearest.len()).map(agreed).collect()
    }

    /// Which of an example's candidates agrees best with what was said of its nearest known ones;
    /// `None` where there is none.
    pub fn choose(&self, example: usize, candidates: &[&str]) -> Option<usize> {
        let candidates: Vec<Vec<String>> =
            candidates.iter().map(|caption| caption_words(caption)).collect();
        self.likest(&candidates, &self.said(example))
    }

    /// The words of all captions of an example's nearest known ones.
    fn said(&self, example: usize) -> Vec<Vec<String>> {
        let nearest = self.nearest[example].iter().map(|place| &self.known.examples[*place]);
        let captions = nearest.flat_map(|example| self.known.captions(example));
        captions.map(|caption| caption_words(caption)).collect()
    }

    /// The first of the candidates that are likest to what was said, on average.
    fn likest(&self, candidates: &[Vec<String>], said: &[Vec<String>]) -> Option<usize> {
        // What all say together: a caption's likeness to it is its mean likeness to each.
        let mut all: BTreeMap<&[String], f32> = BTreeMap::new();
        for words in said {
            for (ngram, value) in self.idf.vector(words) {
                *all.entry(ngram).or_default() += value;
            }
        }
        let likeness = |words: &Vec<String>| -> f32 {
            let vector = self.idf.vector(words);
            vector.iter().map(|(ngram, value)| value * all.get(ngram).unwrap_or(&0.0)).sum()
        };
        let scores: Vec<f32> = candidates.iter().map(likeness).collect();
        (0..scores.len()).max_by(|a, b| scores[*a].total_cmp(&scores[*b]).then(b.cmp(a)))
    }
}

/// `[examples, dim]`: the mean of each example's features.
fn rows(material: &Material) -> Array2<f32> {
    let pictures = &material.pictures;
    let mut rows = Array2::zeros((material.examples.len(), pictures.dim()));
    for (mut row, example) in rows.rows_mut().into_iter().zip(&material.examples) {
        for photo in example {
            row += &ArrayView1::from(&pictures.features(*photo, 0));
        }
        row /= example.len().max(1) as f32;
    }
    rows
}

/// The rows as seen from the centre, with length 1.
fn directions(mut rows: Array2<f32>, centre: &Array1<f32>) -> Array2<f32> {
    for mut row in rows.rows_mut() {
        row -= centre;
        let length = row.dot(&row).sqrt().max(f32::MIN_POSITIVE);
        row /= length;
    }
    rows
}

/// How telling n-grams are.
#[derive(Debug)]
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::photos::Photo;
    use crate::evaluate::pictures::Pictures;
    use crate::picture::CELLS;

    /// Photos with two features each, of the whole and of the cells.
    fn material(photos: &[(&str, [f32; 2])]) -> Material {
        let photo = |(caption, _): &(&str, [f32; 2])| Photo {
            image: (*caption).to_owned(),
            split: "train".to_owned(),
            video: None,
            captions: vec![(*caption).to_owned()],
        };
        let each = |(_, features): &(&str, [f32; 2])| features.repeat(1 + CELLS);
        let features: Vec<f32> = photos.iter().flat_map(each).collect();
        let pictures = Pictures::made(photos.iter().map(photo).collect(), 2, &features);
        let examples = (0..photos.len()).map(|photo| vec![photo]).collect();
        Material { pictures, examples }
    }

    #[test]
    fn what_the_nearest_agree_on_is_taken_and_chosen_by() {
        let known = material(&[
            ("a dog runs fast", [1.0, 0.0]),
            ("a dog runs", [1.0, 0.1]),
            ("a brown dog runs", [0.9, 0.1]),
            ("two men sit", [0.0, 1.0]),
        ]);
        let asked = material(&[("?", [1.0, 0.05])]);
        let consensus = Consensus::new(&known, &asked, &mut |_| Ok(())).unwrap();
        assert_eq!(consensus.nearest[0].last(), Some(&3));
        assert_eq!(consensus.captions(), ["a dog runs"]);
        assert_eq!(consensus.choose(0, &["sheep graze", "a dog runs", "a cat"]), Some(1));
        assert_eq!(consensus.choose(0, &[]), None);
    }
}
