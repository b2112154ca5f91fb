//! What a step is computed on, drawn from the examples.

use rand::Rng;

use super::batch::Row;
use super::examples::{Examples, Joined};
use crate::evaluate::pictures::Seen;
use crate::text::pieces::MASK;
use crate::transformer::{Segment, VisualToken};

/// Of the words of a caption and of the visual tokens beside it, the share that is hidden to be guessed
/// (Devlin and others, 2018).
const HIDDEN: f64 = 0.15;
/// How often photos are read as clips in which nothing moves, so that a photo's captions are written of
/// film, too…
const HELD: f64 = 0.125;
/// … of so many clips.
pub(super) const HELD_CLIPS: std::ops::RangeInclusive<usize> = 2..=4;

/// What a step does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StepKind {
    Captions = 0,
    Text = 1,
    Masked = 2,
    Pictures = 3,
}

/// A row of a batch, drawn.
#[derive(Debug, Default)]
pub(super) struct Drawn<'a> {
    words: Vec<u32>,
    clips: Vec<Seen>,
    captions: Vec<&'a [u32]>,
    hidden: Vec<(usize, u32)>,
    hidden_visual: Vec<(usize, usize)>,
    embedding: Option<usize>,
}

/// A step, drawn.
#[derive(Debug, Default)]
pub(super) struct Step<'a> {
    pub(super) rows: Vec<Drawn<'a>>,
    /// Captions whose embeddings are told from one another.
    pub(super) embedded: Vec<usize>,
}

impl Drawn<'_> {
    /// `zeros`: as long as the longest features or centroid.
    pub(super) fn row<'a>(&'a self, zeros: &'a [f32]) -> Row<'a> {
        let mut visual: Vec<VisualToken<'a>> = Vec::new();
        for (clip, seen) in self.clips.iter().enumerate() {
            visual.extend(seen.tokens(clip));
        }
        for (place, _) in &self.hidden_visual {
            let token = &mut visual[*place];
            token.features = &zeros[..token.features.len()];
            token.centroid = &zeros[..token.centroid.len()];
        }
        Row {
            read: Segment { words: &self.words, visual },
            captions: self.captions.clone(),
            weights: Vec::new(),
            hidden: self.hidden.clone(),
            hidden_visual: self.hidden_visual.clone(),
            embedding: self.embedding,
        }
    }
}

impl Examples<'_> {
    /// A step on some examples (or, for `Text`, texts). `clips`: places of the network for them;
    /// `negatives`: captions that each picture is told from, where pictures are embedded.
    pub(super) fn draw(
        &self,
        kind: StepKind,
        chosen: &[usize],
        clips: usize,
        negatives: Option<usize>,
        random: &mut impl Rng,
    ) -> Step<'_> {
        // All of a step or none, since rows are padded to the longest.
        let held = match random.random_bool(HELD) {
            true => random.random_range(HELD_CLIPS).min(clips),
            false => 1,
        };
        let mut step = Step::default();
        match kind {
            StepKind::Text => {
                let hides = random.random_bool(0.5);
                step.rows = chosen.iter().map(|text| self.text(*text, hides, random)).collect();
            }
            StepKind::Captions | StepKind::Pictures => {
                // An embedder takes the mean, and sees nothing else in clips that are alike.
                let held = if kind == StepKind::Captions { held } else { 1 };
                for (place, example) in chosen.iter().enumerate() {
                    let joined = self.joined(*example, clips, random);
                    let mut row = self.shown(&joined, held);
                    if kind == StepKind::Captions {
                        let captions = joined.captions.iter();
                        row.captions =
                            captions.map(|caption| &self.captions[*caption][..]).collect();
                    }
                    if negatives.is_some() {
                        let drawn = random.random_range(0..joined.captions.len());
                        step.embedded.push(joined.captions[drawn]);
                        row.embedding = Some(place);
                    }
                    step.rows.push(row);
                }
                let others = self.negatives(&step.embedded, negatives.unwrap_or(0), random);
                step.embedded.extend(others);
            }
            StepKind::Masked => {
                for example in chosen {
                    let joined = self.joined(*example, clips, random);
                    step.rows.extend(self.beside(&joined, held, random));
                }
            }
        }
        step
    }

    fn text(&self, text: usize, hides: bool, random: &mut impl Rng) -> Drawn<'_> {
        let captions = &self.texts[text];
        match hides {
            false => {
                Drawn { captions: captions.iter().map(Vec::as_slice).collect(), ..Drawn::default() }
            }
            true => {
                let words = &captions[random.random_range(0..captions.len())];
                let (words, hidden) = hide(words, random);
                Drawn { words, hidden, ..Drawn::default() }
            }
        }
    }

    /// Clips as they are seen.
    fn shown(&self, joined: &Joined, held: usize) -> Drawn<'_> {
        let held = if joined.clips.len() == 1 { held } else { 1 };
        let clips = joined.clips.iter().flat_map(|clip| std::iter::repeat_n(clip, held));
        Drawn { clips: clips.map(|clip| self.seen(*clip)).collect(), ..Drawn::default() }
    }

    /// Words and clips: once words that fit, once words that do not. Of both a caption is written
    /// other than that which was said. In both, words and visual tokens are hidden alike; words that do
    /// not fit are not to be guessed.
    fn beside(&self, joined: &Joined, held: usize, random: &mut impl Rng) -> Vec<Drawn<'_>> {
        let captions = &joined.captions;
        let said = random.random_range(0..captions.len());
        let (words, hidden) = hide(&self.said(captions[said], random), random);
        let written = |but: Option<usize>, random: &mut _| -> Vec<&[u32]> {
            let others = captions.iter().enumerate().filter(|(place, _)| Some(*place) != but);
            let others: Vec<usize> = others.map(|(_, caption)| *caption).collect();
            drawn_of(&others, random)
                .map(|caption| &self.captions[caption][..])
                .into_iter()
                .collect()
        };
        let mut fitting = Drawn {
            words,
            hidden,
            captions: written(Some(said), random),
            ..self.shown(joined, held)
        };
        fitting.hidden_visual = self.hidden_visual(joined, &fitting.clips, random);
        let mut rows = vec![fitting];
        if let Some(other) = self.others_caption(captions[said], random) {
            let (words, _) = hide(&self.said(other, random), random);
            let captions = written(None, random);
            let mut other = Drawn { words, captions, ..self.shown(joined, held) };
            other.hidden_visual = self.hidden_visual(joined, &other.clips, random);
            rows.push(other);
        }
        rows
    }

    fn hidden_visual(
        &self,
        joined: &Joined,
        clips: &[Seen],
        random: &mut impl Rng,
    ) -> Vec<(usize, usize)> {
        let mut hidden = Vec::new();
        if self.leaves().is_none() {
            return hidden;
        }
        let held = clips.len() / joined.clips.len();
        let mut place = 0;
        for (at, seen) in clips.iter().enumerate() {
            for part in 0..seen.tokens(0).len() {
                let class = self.class(joined.clips[at / held], part);
                if let Some(class) = class.filter(|_| random.random_bool(HIDDEN)) {
                    hidden.push((place, class));
                }
                place += 1;
            }
        }
        hidden
    }
}

fn drawn_of(of: &[usize], random: &mut impl Rng) -> Option<usize> {
    (!of.is_empty()).then(|| of[random.random_range(0..of.len())])
}

/// A caption with one of its pieces hidden at least, and what is hidden where.
fn hide(caption: &[u32], random: &mut impl Rng) -> (Vec<u32>, Vec<(usize, u32)>) {
    let mut words = caption.to_vec();
    let certain = random.random_range(0..caption.len());
    let mut hidden = Vec::new();
    for (place, word) in words.iter_mut().enumerate() {
        if place == certain || random.random_bool(HIDDEN) {
            hidden.push((place, *word));
            *word = MASK;
        }
    }
    (words, hidden)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::SeedableRng;

    proptest! {
        #[test]
        fn what_is_hidden_is_put_back(caption in prop::collection::vec(6u32..50, 1..30), seed: u64) {
            let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
            let (mut words, hidden) = hide(&caption, &mut random);
            prop_assert!(!hidden.is_empty());
            prop_assert_eq!(words.iter().filter(|word| **word == MASK).count(), hidden.len());
            for (place, word) in hidden {
                words[place] = word;
            }
            prop_assert_eq!(words, caption);
        }
    }
}
