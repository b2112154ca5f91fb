//! How well captions agree with what people wrote: BLEU, ROUGE-L and CIDEr, each as the COCO
//! caption evaluation code computes it, so that figures can be held against published ones.
//!
//! Papineni and others, "BLEU" (2002); Lin, "ROUGE" (2004); Vedantam and others, "CIDEr" (2015).

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Serialize;

/// The longest n-grams that count.
const LONGEST: usize = 4;

/// A caption and what people wrote of the same picture; words as [`crate::text::caption_words`]
/// gives them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    pub caption: Vec<String>,
    /// At least one.
    pub references: Vec<Vec<String>>,
}

/// The field's figures, each from 0 to 1 but CIDEr, which goes to 10.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Agreement {
    /// BLEU-1 to BLEU-4.
    pub bleu: [f64; LONGEST],
    pub rouge_l: f64,
    /// What the COCO evaluation code calls CIDEr and the paper CIDEr-D: counts are clipped, and
    /// captions of another length than the reference lose. An n-gram weighs the more the fewer
    /// pictures of this set have it in their references, so figures of different sets cannot be
    /// compared.
    pub cider: f64,
}

/// Figures over all captions, and each caption's own.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    pub all: Agreement,
    pub each: Vec<Agreement>,
}

/// Scores captions against their references; `None` where there are none, or one lacks references.
pub fn score(judged: &[Judged]) -> Option<Scored> {
    if judged.is_empty() || judged.iter().any(|item| item.references.is_empty()) {
        return None;
    }
    let mut words = HashMap::new();
    let items: Vec<Item> = judged.iter().map(|item| Item::new(item, &mut words)).collect();
    let telling = Telling::of(items.iter().map(|item| &item.references[..]));
    let mut total = Overlap::default();
    let mut each = Vec::with_capacity(items.len());
    for item in &items {
        let cider = telling.cider(&item.caption, &item.references);
        let overlap = Overlap::of(item);
        total.add(&overlap);
        each.push(Agreement { bleu: overlap.bleu(), rouge_l: rouge_l(item), cider });
    }
    let mean =
        |figure: fn(&Agreement) -> f64| each.iter().map(figure).sum::<f64>() / each.len() as f64;
    let (rouge_l, cider) = (mean(|one| one.rouge_l), mean(|one| one.cider));
    Some(Scored { all: Agreement { bleu: total.bleu(), rouge_l, cider }, each })
}

/// An n-gram of at most [`LONGEST`] words; places beyond its length hold [`NO_WORD`].
type Ngram = [u32; LONGEST];
const NO_WORD: u32 = u32::MAX;

/// How often each n-gram occurs, by length less one. Ordered, so that sums come out the same in
/// every run.
type Counts = [BTreeMap<Ngram, u32>; LONGEST];

/// A caption or reference.
struct Sentence {
    words: Vec<u32>,
    counts: Counts,
}

impl Sentence {
    fn new(words: Vec<u32>) -> Sentence {
        Sentence { counts: counts(&words), words }
    }
}

struct Item {
    caption: Sentence,
    references: Vec<Sentence>,
}

impl Item {
    fn new<'a>(judged: &'a Judged, known: &mut HashMap<&'a str, u32>) -> Item {
        let mut sentence = |text: &'a [String]| {
            let words: Vec<u32> = text
                .iter()
                .map(|word| {
                    let next = known.len() as u32;
                    *known.entry(word).or_insert(next)
                })
                .collect();
            Sentence::new(words)
        };
        Item {
            caption: sentence(&judged.caption),
            references: judged.references.iter().map(|text| sentence(text)).collect(),
        }
    }
}

fn counts(words: &[u32]) -> Counts {
    std::array::from_fn(|longer| {
        let mut counts = BTreeMap::new();
        for window in words.windows(longer + 1) {
            let mut ngram = [NO_WORD; LONGEST];
            ngram[..=longer].copy_from_slice(window);
            *counts.entry(ngram).or_insert(0) += 1;
        }
        counts
    })
}

/// What BLEU counts; sums over captions give the figure of all of them.
#[derive(Debug, Default)]
struct Overlap {
    words: usize,
    /// Of each caption's reference that is nearest in length.
    reference_words: usize,
    /// N-grams of the caption, by length less one.
    ngrams: [usize; LONGEST],
    /// … those that a reference has too, each as often as there at most.
    matched: [usize; LONGEST],
}

impl Overlap {
    fn of(item: &Item) -> Overlap {
        let words = item.caption.words.len();
        let reference_words = item
            .references
            .iter()
            .map(|reference| reference.words.len())
            .min_by_key(|length| (length.abs_diff(words), *length))
            .unwrap_or(0);
        let matched = std::array::from_fn(|longer| {
            item.caption.counts[longer]
                .iter()
                .map(|(ngram, count)| {
                    let in_reference = |reference: &Sentence| {
                        reference.counts[longer].get(ngram).copied().unwrap_or(0)
                    };
                    let most = item.references.iter().map(in_reference).max().unwrap_or(0);
                    most.min(*count) as usize
                })
                .sum()
        });
        let ngrams = std::array::from_fn(|longer| words.saturating_sub(longer));
        Overlap { words, reference_words, ngrams, matched }
    }

    fn add(&mut self, other: &Overlap) {
        self.words += other.words;
        self.reference_words += other.reference_words;
        for longer in 0..LONGEST {
            self.ngrams[longer] += other.ngrams[longer];
            self.matched[longer] += other.matched[longer];
        }
    }

    fn bleu(&self) -> [f64; LONGEST] {
        // The evaluation code's own guards against division by nothing.
        const TINY: f64 = 1e-15;
        const SMALL: f64 = 1e-9;
        let ratio = (self.words as f64 + TINY) / (self.reference_words as f64 + SMALL);
        let brevity = if ratio < 1.0 { (1.0 - 1.0 / ratio).exp() } else { 1.0 };
        let mut product = 1.0;
        std::array::from_fn(|longer| {
            product *= (self.matched[longer] as f64 + TINY) / (self.ngrams[longer] as f64 + SMALL);
            product.powf(1.0 / (longer + 1) as f64) * brevity
        })
    }
}

/// The F-measure of the longest common subsequence, recall weighing 1.2 times as much; precision and
/// recall are those of the best reference for each.
fn rouge_l(item: &Item) -> f64 {
    const BETA: f64 = 1.2;
    let caption = &item.caption.words;
    let best = |length: fn(&Sentence, &Sentence) -> usize| {
        item.references
            .iter()
            .map(|reference| {
                let common = common_words(caption, &reference.words) as f64;
                common / length(&item.caption, reference).max(1) as f64
            })
            .fold(0.0, f64::max)
    };
    let precision = best(|caption, _| caption.words.len());
    let recall = best(|_, reference| reference.words.len());
    if precision == 0.0 || recall == 0.0 {
        return 0.0;
    }
    (1.0 + BETA * BETA) * precision * recall / (recall + BETA * BETA * precision)
}

/// Length of the longest common subsequence.
fn common_words(a: &[u32], b: &[u32]) -> usize {
    let mut row = vec![0; b.len() + 1];
    for from in a {
        let mut diagonal = 0;
        for (j, to) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = if from == to { diagonal + 1 } else { above.max(row[j]) };
            diagonal = above;
        }
    }
    row[b.len()]
}

/// A sentence's n-grams weighted by how telling they are, with each length's Euclidean norm.
struct Weighted {
    weights: [BTreeMap<Ngram, f64>; LONGEST],
    norms: [f64; LONGEST],
    /// The number of bigrams: what the evaluation code takes for the length.
    length: f64,
}

/// How telling n-grams are, by the pictures that have them in their references.
#[derive(Debug)]
struct Telling {
    pictures_with: HashMap<Ngram, u32>,
    pictures: f64,
}

impl Telling {
    fn of<'a>(pictures: impl Iterator<Item = &'a [Sentence]>) -> Telling {
        let mut pictures_with: HashMap<Ngram, u32> = HashMap::new();
        let mut count = 0;
        for references in pictures {
            let counts = references.iter().flat_map(|reference| &reference.counts);
            let ngrams: BTreeSet<&Ngram> = counts.flat_map(BTreeMap::keys).collect();
            for ngram in ngrams {
                *pictures_with.entry(*ngram).or_default() += 1;
            }
            count += 1;
        }
        Telling { pictures_with, pictures: f64::from(count) }
    }

    fn weighted(&self, sentence: &Sentence) -> Weighted {
        let weights = sentence.counts.each_ref().map(|counts| {
            counts
                .iter()
                .map(|(ngram, count)| {
                    let with = self.pictures_with.get(ngram).copied().unwrap_or(0).max(1);
                    (*ngram, f64::from(*count) * (self.pictures.ln() - f64::from(with).ln()))
                })
                .collect::<BTreeMap<_, _>>()
        });
        let norms = weights
            .each_ref()
            .map(|weights| weights.values().map(|weight| weight * weight).sum::<f64>().sqrt());
        Weighted { weights, norms, length: sentence.words.len().saturating_sub(1) as f64 }
    }

    fn cider(&self, caption: &Sentence, references: &[Sentence]) -> f64 {
        const SIGMA: f64 = 6.0;
        let caption = self.weighted(caption);
        let sum: f64 = references
            .iter()
            .map(|reference| {
                let reference = self.weighted(reference);
                let difference = caption.length - reference.length;
                let penalty = (-difference * difference / (2.0 * SIGMA * SIGMA)).exp();
                penalty * (0..LONGEST).map(|n| cosine(&caption, &reference, n)).sum::<f64>()
            })
            .sum();
        // An empty sum is -0.0, which would be shown as such.
        10.0 * sum / (LONGEST * references.len()) as f64 + 0.0
    }
}

/// Scores single captions by CIDEr, n-grams weighing as they do among pictures that are known.
#[derive(Debug)]
pub struct Cider {
    known: HashMap<String, u32>,
    telling: Telling,
}

impl Cider {
    /// `pictures`: what people wrote of each.
    pub fn of(pictures: &[Vec<Vec<String>>]) -> Cider {
        let mut known = HashMap::new();
        for word in pictures.iter().flatten().flatten() {
            let next = known.len() as u32;
            known.entry(word.clone()).or_insert(next);
        }
        let sentences: Vec<Vec<Sentence>> = pictures
            .iter()
            .map(|references| references.iter().map(|words| sentence(&known, words)).collect())
            .collect();
        Cider { telling: Telling::of(sentences.iter().map(Vec::as_slice)), known }
    }

    /// Each caption's CIDEr, 0 to 10, against what people wrote of their picture.
    pub fn scores(&self, captions: &[Vec<String>], references: &[Vec<String>]) -> Vec<f64> {
        let sentences = |texts: &[Vec<String>]| -> Vec<Sentence> {
            texts.iter().map(|words| sentence(&self.known, words)).collect()
        };
        let references = sentences(references);
        let captions = sentences(captions);
        captions.iter().map(|caption| self.telling.cider(caption, &references)).collect()
    }
}

/// A word that no picture has is as good as any other.
fn sentence(known: &HashMap<String, u32>, words: &[String]) -> Sentence {
    const UNKNOWN: u32 = NO_WORD - 1;
    let words = words.iter().map(|word| known.get(word).copied().unwrap_or(UNKNOWN));
    Sentence::new(words.collect())
}

/// The cosine of the n-grams of one length, each of the caption's counting as much as the
/// reference's at most.
fn cosine(caption: &Weighted, reference: &Weighted, longer: usize) -> f64 {
    let product: f64 = caption.weights[longer]
        .iter()
        .filter_map(|(ngram, weight)| {
            let in_reference = reference.weights[longer].get(ngram)?;
            Some(weight.min(*in_reference) * in_reference)
        })
        .sum();
    let norms = caption.norms[longer] * reference.norms[longer];
    if norms > 0.0 { product / norms } else { product }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn judged(caption: &str, references: &[&str]) -> Judged {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect();
        Judged {
            caption: words(caption),
            references: references.iter().map(|text| words(text)).collect(),
        }
    }

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() < 5e-7
    }

    /// The published figures of nlg-eval's own test, to the digits that it prints.
    #[test]
    fn a_published_example_gives_the_published_figures() {
        let scored = score(&[
            judged(
                "this is the model generated sentence1 which seems good enough",
                &[
                    "this is one reference sentence for sentence1",
                    "this is one more reference sentence for sentence1",
                ],
            ),
            judged(
                "this is sentence2 which has been generated by your model",
                &[
                    "this is a reference sentence for sentence2 which was generated by your model",
                    "this is the second reference sentence for sentence2",
                ],
            ),
        ])
        .unwrap();
        let expected = [0.55, 0.428174, 0.284043, 0.201143];
        assert!(scored.all.bleu.iter().zip(expected).all(|(a, b)| near(*a, b)), "{scored:?}");
        assert!(near(scored.all.rouge_l, 0.522104) && near(scored.all.cider, 1.242192));
        assert!(near(scored.each[0].cider, 0.517147) && near(scored.each[1].cider, 1.967237));
        assert!(near(scored.each[1].bleu[3], 0.354948) && near(scored.each[0].rouge_l, 0.364542));
    }

    #[test]
    fn an_empty_caption_scores_nothing_and_nothing_to_score_is_told() {
        let other = judged("a cat", &["a cat on a mat"]);
        let scored = score(&[judged("", &["a dog"]), other]).unwrap();
        assert!(scored.each[0].bleu[0] < 1e-5 && scored.each[0].cider == 0.0);
        assert_eq!(scored.each[0].rouge_l, 0.0);
        assert!(score(&[]).is_none());
        assert!(score(&[judged("a", &[])]).is_none());
    }

    proptest! {
        #[test]
        fn what_a_person_wrote_agrees_with_itself_best(
            texts in prop::collection::vec("[abc]( [a-e]){4,9}", 3..6),
            other in "[abc]( [a-e]){0,9}",
        ) {
            let one = |first: &str| {
                let mut items = vec![judged(first, &[&texts[0]])];
                items.extend(texts[1..].iter().map(|text| judged(text, &[text])));
                score(&items).unwrap().each[0]
            };
            let (same, other) = (one(&texts[0]), one(&other));
            prop_assert!(same.bleu.iter().zip(other.bleu).all(|(a, b)| a + 1e-9 >= b));
            prop_assert!(same.rouge_l + 1e-9 >= other.rouge_l);
            prop_assert!(near(same.rouge_l, 1.0) && near(same.bleu[3], 1.0));
            prop_assert!(same.cider + 1e-9 >= other.cider);
        }

        #[test]
        fn scores_do_not_depend_on_the_order(
            texts in prop::collection::vec(("[ab]( [a-d]){0,6}", "[ab]( [a-d]){0,6}"), 2..8),
        ) {
            let items: Vec<_> = texts.iter().map(|(a, b)| judged(a, &[b])).collect();
            let mut reversed = items.clone();
            reversed.reverse();
            let (a, b) = (score(&items).unwrap().all, score(&reversed).unwrap().all);
            prop_assert!(near(a.cider, b.cider) && near(a.rouge_l, b.rouge_l));
            prop_assert!(a.bleu.iter().zip(b.bleu).all(|(a, b)| near(*a, b)));
        }
    }
}
