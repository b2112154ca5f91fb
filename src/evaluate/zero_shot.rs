//! What is done to what, guessed without training for it: VideoBERT's test (Sun and others, 2019) on
//! YouCook2. A picture is read beside "now let me show you how to \[MASK\] the \[MASK\]"; the first hidden word
//! is the verb, the second the object.
//!
//! Which verbs and objects there are follows from the captions of the split `train`, without a tagger,
//! since steps of recipes are orders: they begin with their verb, and their objects end a phrase.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use ndarray::{ArrayView1, s};
use serde::Serialize;

use super::reading::{AT_A_TIME, Look};
use super::setup::{Examinee, Material, Progress, Setup};
use crate::error::{Error, Result};
use crate::text::pieces::MASK;
use crate::text::{WordPieces, caption_words};
use crate::transformer::{Guesser, Segment};

/// How many verbs and objects there are, as in the paper.
const VERBS: usize = 45;
const OBJECTS: usize = 100;
/// A word that stands at the end of a phrase behind an article less often is no object.
const LEAST: usize = 2;
/// Words that a phrase ends before.
const ENDS: &[&str] = &[
    "and", "or", "with", "in", "on", "into", "onto", "to", "of", "from", "for", "over", "until",
    "at", "by", "then", "as", "while", "through", "under", "around", "inside", "together",
];
const ARTICLES: &[&str] = &["the", "a", "an", "some"];
/// After these, and at the beginning, comes a verb.
const THEN: &[&str] = &["and", "then"];

const BEFORE: &str = "now let me show you how to";
const BETWEEN: &str = "the";

/// How often, in per cent, a word of the caption was guessed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Accuracy {
    /// By the first guess.
    pub top_1: f64,
    /// By one of five.
    pub top_5: f64,
}

/// Accuracies of verbs and objects.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Guessed {
    pub verbs: Accuracy,
    pub objects: Accuracy,
}

/// The published figures of VideoBERT, zero-shot, on YouCook2's validation videos.
pub const PUBLISHED: Guessed = Guessed {
    verbs: Accuracy { top_1: 3.2, top_5: 43.3 },
    objects: Accuracy { top_1: 13.1, top_5: 33.7 },
};

/// The result.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub split: String,
    /// Whether the frames of a video were seen together.
    pub sequence: bool,
    /// Frames, or videos.
    pub examples: usize,
    /// Those that have one of the verbs in their captions, and one of the objects: only they count.
    pub with_verbs: usize,
    pub with_objects: usize,
    /// Among all word pieces, as in the paper.
    pub open: Guessed,
    /// Among the verbs and objects alone.
    pub listed: Guessed,
    /// Among these, without the picture.
    pub without_picture: Guessed,
    /// The most frequent of train's captions, always the same.
    pub prior: Guessed,
    pub published: Guessed,
    /// Most frequent first.
    pub verbs: Vec<String>,
    pub objects: Vec<String>,
    /// Photos that could not be decoded, with the reason; they take no part.
    pub failed: Vec<(String, String)>,
}

/// Which of the two hidden words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hidden {
    Verb,
    Object,
}

/// Guesses verb and object of each example.
///
/// # Errors
/// `InvalidInput` where no verbs or objects can be told from train's captions, or the network does not
/// fit; that of `progress`, which ends it.
pub fn zero_shot(
    setup: &Setup<'_>,
    examinee: &Examinee<'_>,
    progress: &mut dyn FnMut(Progress) -> Result<()>,
) -> Result<Report> {
    let material = setup.judged(progress)?;
    let held_out = setup.collection.held_out();
    let train = setup.collection.of_split("train")?;
    let train = train
        .iter()
        .filter(|photo| !held_out.contains(super::photos::video(photo)))
        .flat_map(|photo| &photo.captions);
    let lists = Lists::of(train.map(|caption| caption_words(caption)));
    if lists.verbs.is_empty() || lists.objects.is_empty() {
        return Err(Error::invalid_input(
            "the captions of the split train tell no verbs and objects: steps of recipes are needed",
        ));
    }
    let labels: Vec<[BTreeSet<&str>; 2]> = material
        .examples
        .iter()
        .map(|example| {
            let words: Vec<Vec<String>> =
                material.captions(example).map(|caption| caption_words(caption)).collect();
            lists.labels(&words)
        })
        .collect();
    let mut guessing = Guessing {
        guesser: setup.guesser(examinee, &material)?,
        examinee,
        material: &material,
        done: 0,
    };
    let [mut open, mut listed, mut without, mut prior] = [Guessed::default(); 4];
    for (hidden, words, of) in
        [(Hidden::Verb, &lists.verbs, 0), (Hidden::Object, &lists.objects, 1)]
    {
        let labels: Vec<&BTreeSet<&str>> = labels.iter().map(|labels| &labels[of]).collect();
        let candidates = Candidates::new(&examinee.trained.pieces, words)?;
        let seen = guessing.guess(hidden, &candidates, true, progress)?;
        let blind = guessing.guess(hidden, &candidates, false, progress)?;
        let most_frequent: Vec<&str> = words.iter().take(5).map(String::as_str).collect();
        for (figures, guesses) in [
            (&mut open, seen.iter().map(|guess| &guess.open[..]).collect::<Vec<_>>()),
            (&mut listed, seen.iter().map(|guess| &guess.listed[..]).collect()),
            (&mut without, blind.iter().map(|guess| &guess.listed[..]).collect()),
        ] {
            let guesses = guesses.iter().map(|guess| guess.iter().map(String::as_str).collect());
            *figures.of(hidden) = accuracy(guesses, &labels);
        }
        *prior.of(hidden) = accuracy(labels.iter().map(|_| most_frequent.clone()), &labels);
    }
    let with = |of: usize| labels.iter().filter(|labels| !labels[of].is_empty()).count();
    Ok(Report {
        split: setup.split.to_owned(),
        sequence: setup.sequence,
        examples: material.examples.len(),
        with_verbs: with(0),
        with_objects: with(1),
        open,
        listed,
        without_picture: without,
        prior,
        published: PUBLISHED,
        failed: material.pictures.failed.clone(),
        verbs: lists.verbs.clone(),
        objects: lists.objects.clone(),
    })
}

impl Guessed {
    fn of(&mut self, hidden: Hidden) -> &mut Accuracy {
        match hidden {
            Hidden::Verb => &mut self.verbs,
            Hidden::Object => &mut self.objects,
        }
    }
}

/// Of the examples that have labels, how many have one among their guesses, which are the best first.
fn accuracy<'a>(
    guesses: impl Iterator<Item = Vec<&'a str>>,
    labels: &[&BTreeSet<&str>],
) -> Accuracy {
    let (mut first, mut five, mut all) = (0, 0, 0);
    for (guesses, labels) in guesses.zip(labels).filter(|(_, labels)| !labels.is_empty()) {
        all += 1;
        first += usize::from(guesses.first().is_some_and(|guess| labels.contains(guess)));
        five += usize::from(guesses.iter().take(5).any(|guess| labels.contains(guess)));
    }
    let share = |right: usize| 100.0 * right as f64 / all.max(1) as f64;
    Accuracy { top_1: share(first), top_5: share(five) }
}

/// The verbs and objects that there are, most frequent first.
#[derive(Debug)]
struct Lists {
    verbs: Vec<String>,
    objects: Vec<String>,
}

impl Lists {
    fn of(captions: impl Iterator<Item = Vec<String>>) -> Lists {
        let mut verbs: BTreeMap<String, usize> = BTreeMap::new();
        // How often a word ends a phrase, and how often right behind an article.
        let mut objects: BTreeMap<String, (usize, usize)> = BTreeMap::new();
        for words in captions {
            if let Some(first) = words.first() {
                *verbs.entry(first.clone()).or_default() += 1;
            }
            for (place, word) in words.iter().enumerate().skip(1) {
                let ends = words.get(place + 1).is_none_or(|next| is_in(ENDS, next));
                let is_word = !is_in(ENDS, word) && !is_in(ARTICLES, word);
                if ends && is_word {
                    let (count, behind) = objects.entry(word.clone()).or_default();
                    *count += 1;
                    *behind += usize::from(is_in(ARTICLES, &words[place - 1]));
                }
            }
        }
        let objects = objects
            .into_iter()
            .filter(|(_, (_, behind))| *behind >= LEAST)
            .map(|(word, (count, _))| (word, count));
        Lists { verbs: most_frequent(verbs, VERBS), objects: most_frequent(objects, OBJECTS) }
    }

    /// The verbs and the objects that captions name.
    fn labels(&self, captions: &[Vec<String>]) -> [BTreeSet<&str>; 2] {
        let mut labels = [BTreeSet::new(), BTreeSet::new()];
        for words in captions {
            for (place, word) in words.iter().enumerate() {
                let is_a_verbs_place = place == 0 || is_in(THEN, &words[place - 1]);
                let verb = self.verbs.iter().find(|verb| *verb == word && is_a_verbs_place);
                labels[0].extend(verb.map(String::as_str));
                let object = self.objects.iter().find(|object| *object == word && place > 0);
                labels[1].extend(object.map(String::as_str));
            }
        }
        labels
    }
}

fn is_in(words: &[&str], word: &str) -> bool {
    words.contains(&word)
}

fn most_frequent(counts: impl IntoIterator<Item = (String, usize)>, most: usize) -> Vec<String> {
    let mut counts: Vec<(String, usize)> = counts.into_iter().collect();
    counts.sort_by_key(|(word, count)| (Reverse(*count), word.clone()));
    counts.into_iter().take(most).map(|(word, _)| word).collect()
}

/// Words to choose among, by the number of their pieces.
struct Candidates(BTreeMap<usize, Vec<(String, Vec<u32>)>>);

impl Candidates {
    fn new(pieces: &WordPieces, words: &[String]) -> Result<Self> {
        let mut candidates: BTreeMap<usize, Vec<_>> = BTreeMap::new();
        for word in words {
            let of = pieces.encode(word, usize::MAX)?;
            candidates.entry(of.len()).or_default().push((word.clone(), of));
        }
        Ok(Candidates(candidates))
    }
}

/// The five best guesses, the best first.
#[derive(Debug, Default)]
struct Guess {
    /// Among all word pieces.
    open: Vec<String>,
    /// Among the candidates.
    listed: Vec<String>,
}

struct Guessing<'a> {
    guesser: Guesser,
    examinee: &'a Examinee<'a>,
    material: &'a Material,
    done: usize,
}

impl Guessing<'_> {
    /// Guesses one of the two words for each example. A candidate of several pieces has as many hidden
    /// places, and scores the mean of their log-probabilities.
    fn guess(
        &mut self,
        hidden: Hidden,
        candidates: &Candidates,
        with_picture: bool,
        progress: &mut dyn FnMut(Progress) -> Result<()>,
    ) -> Result<Vec<Guess>> {
        let pieces = &self.examinee.trained.pieces;
        let visuals = self.examinee.visuals(&self.material.pictures)?;
        let examples = &self.material.examples;
        let mut guesses = Vec::with_capacity(examples.len());
        for batch in examples.chunks(AT_A_TIME) {
            let looks: Vec<Look> =
                batch.iter().map(|example| Look::of(&visuals, example)).collect();
            let mut scores: Vec<Vec<(f32, &str)>> = vec![Vec::new(); batch.len()];
            let mut open = vec![Vec::new(); batch.len()];
            // One hidden place at least, for the open guess.
            let lengths: BTreeSet<usize> = candidates.0.keys().copied().chain([1]).collect();
            for length in lengths {
                let (words, place) = template(pieces, hidden, length)?;
                let segments: Vec<Segment<'_>> = looks
                    .iter()
                    .map(|look| Segment {
                        words: &words,
                        visual: if with_picture { look.tokens() } else { Vec::new() },
                    })
                    .collect();
                let found = self.guesser.guess(&segments)?;
                let of_length = candidates.0.get(&length).map_or(&[][..], Vec::as_slice);
                for (example, scores) in scores.iter_mut().enumerate() {
                    // The first word is [CLS].
                    let rows = found.slice(s![example, place + 1..place + 1 + length, ..]);
                    if length == 1 {
                        open[example] = likeliest(pieces, rows.row(0));
                    }
                    scores.extend(of_length.iter().map(|(word, of)| {
                        let sum: f32 =
                            of.iter().zip(rows.rows()).map(|(id, row)| row[*id as usize]).sum();
                        (sum / length as f32, word.as_str())
                    }));
                }
            }
            for (mut scores, open) in scores.into_iter().zip(open) {
                scores.sort_by(|a, b| b.0.total_cmp(&a.0));
                let listed = scores.iter().take(5).map(|(_, word)| (*word).to_owned()).collect();
                guesses.push(Guess { open, listed });
            }
            self.done += batch.len();
            // Verbs and objects, with the picture and without.
            progress(Progress { what: "guesses", done: self.done, of: 4 * examples.len() })?;
        }
        Ok(guesses)
    }
}

/// The words to be read, one of the two hidden words having `length` places, and the first of these.
fn template(pieces: &WordPieces, hidden: Hidden, length: usize) -> Result<(Vec<u32>, usize)> {
    let (verb, object) = if hidden == Hidden::Verb { (length, 1) } else { (1, length) };
    let mut words = pieces.encode(BEFORE, usize::MAX)?;
    let mut place = words.len();
    words.extend(std::iter::repeat_n(MASK, verb));
    words.extend(pieces.encode(BETWEEN, usize::MAX)?);
    if hidden == Hidden::Object {
        place = words.len();
    }
    words.extend(std::iter::repeat_n(MASK, object));
    Ok((words, place))
}

/// The five pieces with the greatest log-probabilities, as words.
fn likeliest(pieces: &WordPieces, row: ArrayView1<f32>) -> Vec<String> {
    let mut order: Vec<u32> = (0..row.len() as u32).collect();
    order.sort_by(|a, b| row[*b as usize].total_cmp(&row[*a as usize]));
    // Marks are no words.
    let words = order.iter().map(|id| pieces.decode(&[*id])).filter(|word| !word.is_empty());
    words.take(5).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        caption_words(text)
    }

    #[test]
    fn verbs_and_objects_are_told_by_their_places() {
        let captions = [
            "cut the onion into thin slices",
            "cut a tomato and add the onion",
            "add the oil to the hot pan and stir",
            "mix the oil well",
            "place a tomato in a pan",
            "fry the potato in a pan until golden brown",
            "pour oil into the pan",
        ];
        let lists = Lists::of(captions.iter().map(|caption| words(caption)));
        assert_eq!(lists.verbs[0], "cut");
        assert_eq!(lists.objects, ["pan", "onion", "tomato"]);
        let [verbs, objects] = lists.labels(&[words("add the pan and cut an onion in a mix")]);
        assert_eq!(verbs, BTreeSet::from(["add", "cut"]));
        assert_eq!(objects, BTreeSet::from(["onion", "pan"]));
    }

    #[test]
    fn only_examples_with_labels_count() {
        let labels = [BTreeSet::from(["cut"]), BTreeSet::new(), BTreeSet::from(["add", "mix"])];
        let guesses = [vec!["add", "cut"], vec!["add"], vec!["mix"]];
        let labels: Vec<&BTreeSet<&str>> = labels.iter().collect();
        let found = accuracy(guesses.into_iter(), &labels);
        assert_eq!((found.top_1, found.top_5), (50.0, 100.0));
    }

    #[test]
    fn a_word_of_several_pieces_has_as_many_hidden_places() {
        let texts = vec!["now let me show you how to cut the onion"; 5];
        let pieces = WordPieces::learn(texts, 100).unwrap();
        let before = pieces.encode(BEFORE, 99).unwrap().len();
        let (one, place) = template(&pieces, Hidden::Verb, 2).unwrap();
        assert_eq!((place, &one[place..place + 2]), (before, &[MASK, MASK][..]));
        let (other, place) = template(&pieces, Hidden::Object, 3).unwrap();
        assert_eq!(&other[place..], [MASK, MASK, MASK]);
        assert_eq!(other[before], MASK);
    }
}
