//! What is trained on, ready to be drawn from: pictures in the order of their videos, captions as
//! word pieces, the visual words to guess.

use std::collections::HashMap;
use std::ops::Range;

use rand::Rng;
use rand::seq::index;

use super::config::Config;
use super::corpus::{self, Skipped};
use super::draw::HELD_CLIPS;
use super::material::{Material, captions_of};
use crate::codebook::Codebook;
use crate::error::{Error, Result};
use crate::evaluate::photos::video;
use crate::evaluate::pictures::{Seen, Visuals};
use crate::media::VisualWord;
use crate::onnx::transformer::Network;
use crate::text::WordPieces;

/// Neighbours in a video that are read together, at most.
const JOINED: usize = 3;
/// How often they are.
const JOINING: f64 = 0.5;
/// Of clips in sequence every one, every second … or every fifth is kept (Sun and others, 2019).
const RATES: std::ops::RangeInclusive<usize> = 1..=5;

/// The number of a collection, or of another view of it, and the place of a photo or clip there.
type Clip = (usize, usize);

/// A picture, or clips in sequence, with captions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Example {
    pub(super) clips: Vec<Clip>,
    /// Its captions among all.
    pub(super) captions: Range<usize>,
    /// The examples of its video, in order of time: itself alone for a photo.
    pub(super) video: Range<usize>,
}

/// Everything that steps are drawn from.
pub(super) struct Examples<'a> {
    pub(super) pieces: WordPieces,
    pub(super) examples: Vec<Example>,
    /// Word pieces of all captions.
    pub(super) captions: Vec<Vec<u32>>,
    /// Which example each caption is of.
    pub(super) example_of_caption: Vec<usize>,
    /// Captions without pictures, those of one picture together.
    pub(super) texts: Vec<Vec<Vec<u32>>>,
    /// Of each collection, then of other views of it.
    pub(super) visuals: Vec<Visuals<'a>>,
    /// Of each collection, which of `visuals` show it.
    views: Vec<Vec<usize>>,
    /// The visual words of the same, where they are to be guessed.
    words: Option<(Vec<Visuals<'a>>, Leaves)>,
}

/// Neighbours that are read as one segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Joined {
    pub(super) clips: Vec<Clip>,
    /// The captions of what is left of them.
    pub(super) captions: Vec<usize>,
}

impl<'a> Examples<'a> {
    /// # Errors
    /// `InvalidInput` where the material and the configuration do not fit.
    pub(super) fn new(config: &Config, material: &'a Material) -> Result<(Self, Network)> {
        let most = config.network.words - 2;
        // They were counted when the material was loaded.
        let mut skipped = Skipped::default();
        let mut found: Vec<(Vec<Clip>, Vec<&str>)> = Vec::new();
        for (collection, pictures) in material.train.iter().enumerate() {
            for (segment, captions) in pictures.segments().zip(captions_of(pictures)) {
                let clips = segment.map(|place| (collection, place)).collect();
                found.push((clips, corpus::usable(captions, &mut skipped)));
            }
        }
        let texts: Vec<Vec<&str>> = material
            .texts
            .iter()
            .map(|group| corpus::usable(group, &mut skipped))
            .filter(|group| !group.is_empty())
            .collect();
        let words = found.iter().flat_map(|(_, of)| of).chain(texts.iter().flatten());
        let pieces = match &material.from {
            Some(from) => from.pieces.clone(),
            None => WordPieces::learn(words.copied(), config.network.vocabulary)?,
        };

        let (mut examples, mut captions, mut example_of_caption) =
            (Vec::<Example>::new(), Vec::new(), Vec::new());
        for (clips, usable) in found.into_iter().filter(|(_, usable)| !usable.is_empty()) {
            let own = captions.len()..captions.len() + usable.len();
            captions.extend(corpus::encoded(&pieces, &usable, most)?);
            example_of_caption.extend(usable.iter().map(|_| examples.len()));
            let video = examples.len()..examples.len() + 1;
            examples.push(Example { clips, captions: own, video });
        }
        join_videos(&mut examples, |(collection, place): Clip| {
            (collection, video(&material.train[collection].photos[place]))
        });
        if captions.len() != material.embeddings.nrows() {
            return Err(Error::internal("captions and their embeddings differ in number"));
        }
        let texts: Vec<Vec<Vec<u32>>> = texts
            .iter()
            .map(|group| corpus::encoded(&pieces, group, most))
            .collect::<Result<_>>()?;

        let codebook = material.codebook.as_ref();
        let features = material.train.first().map_or(0, |pictures| pictures.dim());
        let centroids = codebook.map_or(0, Codebook::dims);
        let space = material.embeddings.ncols();
        let network = match &material.from {
            Some(from) => config.continued(from, features, centroids, space)?,
            None => config.network(pieces.count(), features, centroids, space),
        };
        network.check()?;
        let see = |with_features: bool, codebook: Option<&'a Codebook>| {
            let see = |of| Visuals::new(of, with_features, codebook, network.cells);
            let views = material.views.iter().map(|(_, view)| view);
            material.train.iter().chain(views).map(see).collect::<Result<Vec<_>>>()
        };
        let mut views: Vec<Vec<usize>> = (0..material.train.len()).map(|own| vec![own]).collect();
        for (number, (collection, _)) in material.views.iter().enumerate() {
            views[*collection].push(material.train.len() + number);
        }
        let seen = codebook.filter(|_| network.centroids > 0);
        let words = match codebook.filter(|_| network.guessed > 0) {
            Some(codebook) => Some((see(false, Some(codebook))?, Leaves::of(codebook))),
            None => None,
        };
        let visuals = see(network.features > 0, seen)?;
        let examples = Examples {
            pieces,
            examples,
            captions,
            example_of_caption,
            texts,
            visuals,
            views,
            words,
        };
        Ok((examples, network))
    }

    pub(super) fn seen(&self, (collection, place): Clip) -> Seen {
        self.visuals[collection].seen(place)
    }

    /// The visual words as classes to guess, where they are guessed.
    pub(super) fn leaves(&self) -> Option<&Leaves> {
        self.words.as_ref().map(|(_, leaves)| leaves)
    }

    /// The class of the visual word of a picture or of one of its parts.
    pub(super) fn class(&self, (collection, place): Clip, part: usize) -> Option<usize> {
        let (words, leaves) = self.words.as_ref()?;
        leaves.class_of.get(&words[collection].word(place, part)?).copied()
    }

    /// An example, now and then with its neighbours, and of a sequence only each so manieth clip.
    pub(super) fn joined(&self, example: usize, most: usize, random: &mut impl Rng) -> Joined {
        let video = &self.examples[example].video;
        let mut read = example..example + 1;
        if video.len() > 1 && random.random_bool(JOINING) {
            let before = random.random_range(0..JOINED);
            let start = example.saturating_sub(before).max(video.start);
            read = start..(example + JOINED - before).min(video.end);
        }
        let all = read.flat_map(|of| self.examples[of].clips.iter().map(move |clip| (of, *clip)));
        let mut clips: Vec<(usize, Clip)> = all.collect();
        if clips.len() > 1 {
            let rate = random.random_range(RATES);
            let first = random.random_range(0..rate.min(clips.len()));
            clips = clips.into_iter().skip(first).step_by(rate).collect();
        }
        clips.truncate(most);
        let mut kept: Vec<usize> = clips.iter().map(|(of, _)| *of).collect();
        kept.dedup();
        // Neighbours are of one collection, and are seen alike.
        let views = &self.views[self.examples[example].clips[0].0];
        let view = views[random.random_range(0..views.len())];
        Joined {
            clips: clips.into_iter().map(|(_, (_, place))| (view, place)).collect(),
            captions: kept.iter().flat_map(|of| self.examples[*of].captions.clone()).collect(),
        }
    }

    /// The most clips that a step reads together, where there are `places` for them.
    pub(super) fn most_clips(&self, places: usize) -> usize {
        let read = |example: usize| {
            let end = self.examples[example].video.end.min(example + JOINED);
            self.examples[example..end].iter().map(|of| of.clips.len()).sum()
        };
        (0..self.examples.len()).map(read).fold(*HELD_CLIPS.end(), usize::max).min(places)
    }

    /// What is said with a caption: now and then the next sentence of the video, too.
    pub(super) fn said(&self, caption: usize, random: &mut impl Rng) -> Vec<u32> {
        let example = self.example_of_caption[caption];
        let mut words = self.captions[caption].clone();
        let next = example + 1;
        if self.examples[example].video.contains(&next) && random.random_bool(JOINING) {
            words.extend(&self.captions[self.examples[next].captions.start]);
        }
        words
    }

    /// A caption of another example, in a training of several.
    pub(super) fn others_caption(&self, caption: usize, random: &mut impl Rng) -> Option<usize> {
        let count = self.examples.len();
        let own = self.example_of_caption[caption];
        (count > 1).then(|| {
            let other = (own + random.random_range(1..count)) % count;
            random.random_range(self.examples[other].captions.clone())
        })
    }

    /// Some captions, drawn, of other examples than these captions are of.
    pub(super) fn negatives(
        &self,
        captions: &[usize],
        most: usize,
        random: &mut impl Rng,
    ) -> Vec<usize> {
        let own: Vec<usize> =
            captions.iter().map(|caption| self.example_of_caption[*caption]).collect();
        let all = self.captions.len();
        let drawn = index::sample(random, all, most.min(all)).into_iter();
        drawn.filter(|caption| !own.contains(&self.example_of_caption[*caption])).collect()
    }
}

/// Finds the runs of examples of one video, which lie one after the other.
fn join_videos<V: PartialEq>(examples: &mut [Example], video: impl Fn(Clip) -> V) {
    let mut start = 0;
    while start < examples.len() {
        let of = video(examples[start].clips[0]);
        let same = examples[start..].iter().take_while(|example| video(example.clips[0]) == of);
        let end = start + same.count();
        examples[start..end].iter_mut().for_each(|example| example.video = start..end);
        start = end;
    }
}

/// The living leaves of a codebook, as classes to guess. A guess is a point among the centroids, and
/// the nearer a leaf, the likelier: so that the head has as many weights as a centroid has numbers,
/// however many leaves there are.
#[derive(Debug)]
pub(super) struct Leaves {
    /// `[leaves, dims]`, scaled so that each dimension has mean 0 and all have spread 1 on average.
    pub(super) centroids: Vec<f32>,
    class_of: HashMap<VisualWord, usize>,
}

impl Leaves {
    fn of(codebook: &Codebook) -> Leaves {
        let dims = codebook.dims();
        let (mut centroids, mut class_of) = (Vec::new(), HashMap::new());
        for word in (0..codebook.shape().leaves() as u32).map(VisualWord) {
            if let Some(centroid) = codebook.centroid(word) {
                class_of.insert(word, class_of.len());
                centroids.extend(centroid);
            }
        }
        let count = class_of.len().max(1) as f32;
        for dim in 0..dims {
            let mean = centroids.iter().skip(dim).step_by(dims).sum::<f32>() / count;
            centroids.iter_mut().skip(dim).step_by(dims).for_each(|x| *x -= mean);
        }
        let squares = centroids.iter().map(|x| x * x).sum::<f32>();
        let spread = (squares / (count * dims as f32)).sqrt().max(f32::MIN_POSITIVE);
        centroids.iter_mut().for_each(|x| *x /= spread);
        Leaves { centroids, class_of }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_of_a_video_are_found() {
        let example = |place: usize| Example {
            clips: vec![(0, place)],
            captions: place..place + 1,
            video: place..place + 1,
        };
        let mut examples: Vec<Example> = (0..5).map(example).collect();
        join_videos(&mut examples, |(_, place)| ["a", "b", "b", "b", "c"][place]);
        let videos: Vec<Range<usize>> = examples.into_iter().map(|example| example.video).collect();
        assert_eq!(videos, [0..1, 1..4, 1..4, 1..4, 4..5]);
    }
}
