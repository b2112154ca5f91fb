//! Choosing among captions by consensus: of those that were written, the one that agrees best with what people
//! wrote of like pictures (Devlin and others, "Exploring nearest neighbor approaches for image
//! captioning", 2015). Like is what lies near the picture in the space of its embedding: captions, not
//! pictures, are looked for, so that what is kept is words alone.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use ndarray::{Array2, ArrayView2, Axis, s};

use crate::error::{Error, Result};
use crate::text::pieces::SEP;

/// Nearest captions that those which were written are held against.
const NEAREST: usize = 100;
/// … and of which one is taken, where nothing was written.
const NEAREST_ALONE: usize = 150;
/// The longest n-grams that are compared.
const LONGEST: usize = 4;
/// Counters of n-grams, by hash: few of a million share one, and those only seem more common.
const COUNTERS: usize = 1 << 20;
/// Captions whose embeddings are unpacked at a time.
const AT_A_TIME: usize = 512;
/// Pictures whose captions are looked for at a time, where there are many.
const PICTURES_AT_A_TIME: usize = 64;
/// Of the spread of a unit vector's numbers: with 16 levels, steps of this width err least (Max,
/// "Quantizing for minimum distortion", 1960).
const STEP: f32 = 0.335;
const LEVELS: f32 = 16.0;
/// What makes odds of agreement and likeness: by logistic regression on their logarithms, with the default
/// captioner, over Flickr8k's dev split and as much weight on COCO's photos, which it does not know the like
/// of (`ARCHITECTURE.md`, "Judging").
const ODDS: f32 = 2_800.0;
const LIKENESS_POWER: i32 = 6;

/// What people wrote of the pictures that a network was trained on, with embeddings in 4 bits a number:
/// 200 bytes a caption.
#[derive(Debug)]
pub struct Consensus {
    /// Numbers of an embedding.
    space: usize,
    /// Word pieces of the captions, each ending with `[SEP]`.
    pieces: Vec<u16>,
    /// Where each caption's `[SEP]` is.
    ends: Vec<usize>,
    /// `[captions, space / 2]`: two levels a byte, the first in the lower half.
    levels: Vec<u8>,
    /// How often n-grams occur, by hash; counted when they are first asked for.
    counts: OnceLock<Vec<u32>>,
}

/// What people wrote of like pictures.
#[derive(Debug)]
pub(super) struct Said {
    captions: Vec<Weighed>,
    /// How like the pictures are, by the mean cosine of those captions' embeddings with the picture's.
    likeness: f32,
}

impl Said {
    /// How likely a caption is a good one, by its [`Consensus::agreement`] with what was said: one whose CIDEr against
    /// what people wrote of this very picture is .4, half of what another person's caption has.
    pub(super) fn confidence(&self, agreement: f32) -> f32 {
        let odds = ODDS * agreement * self.likeness.max(0.0).powi(LIKENESS_POWER);
        odds / (1.0 + odds)
    }
}

/// The captions whose embeddings are nearest to a picture's.
struct Nearest {
    captions: Vec<usize>,
    /// The mean of their cosines with it.
    cosine: f32,
}

impl Consensus {
    /// Of captions as word pieces, and their embeddings, of length 1: `[captions, space]`.
    ///
    /// # Errors
    /// `InvalidInput` where there are more than 65,536 different pieces, `Corrupt` where a caption has `[SEP]`.
    pub fn new(captions: &[&[u32]], embeddings: ArrayView2<'_, f32>) -> Result<Consensus> {
        let mut pieces = Vec::new();
        for piece in captions.iter().flat_map(|caption| caption.iter().chain([&SEP])) {
            pieces.push(u16::try_from(*piece).map_err(|_| {
                Error::invalid_input("a network of more than 65,536 word pieces keeps no captions")
            })?);
        }
        let space = embeddings.ncols();
        let step = step(space);
        let level = |value: f32| (value / step + 0.5 * LEVELS).floor().clamp(0.0, LEVELS - 1.0);
        let mut levels = Vec::with_capacity(captions.len() * space.div_ceil(2));
        for row in embeddings.rows() {
            let row = row.to_vec();
            let pairs = row.chunks(2).map(|pair| {
                level(pair[0]) as u8 | (pair.get(1).map_or(0.0, |high| level(*high)) as u8) << 4
            });
            levels.extend(pairs);
        }
        Self::of_parts(space, pieces, levels)
    }

    /// Of the pieces of [`Consensus::piece_bytes`] and what [`Consensus::levels`] gave.
    ///
    /// # Errors
    /// `Corrupt` where they do not fit each other.
    pub(super) fn of_parts(space: usize, pieces: Vec<u16>, levels: Vec<u8>) -> Result<Consensus> {
        let is_end = |piece: &u16| u32::from(*piece) == SEP;
        let ends: Vec<usize> = (0..pieces.len()).filter(|at| is_end(&pieces[*at])).collect();
        let is_whole = pieces.last().is_none_or(is_end);
        if !is_whole || Some(levels.len()) != ends.len().checked_mul(space.div_ceil(2)) {
            return Err(Error::corrupt("the captions beside the network are not whole"));
        }
        Ok(Consensus { space, pieces, ends, levels, counts: OnceLock::new() })
    }

    /// How many captions there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Word pieces of all captions, each ending with `[SEP]`, as u16 in little-endian order.
    pub(super) fn piece_bytes(&self) -> Vec<u8> {
        self.pieces.iter().flat_map(|piece| piece.to_le_bytes()).collect()
    }

    /// `[captions, space / 2]`: embeddings, two numbers a byte.
    pub(super) fn levels(&self) -> &[u8] {
        &self.levels
    }

    /// What people wrote of pictures like each of these, by their embeddings (`[pictures, space]`).
    pub(super) fn said(&self, pictures: ArrayView2<'_, f32>) -> Vec<Said> {
        self.nearest(pictures, NEAREST).iter().map(|nearest| self.said_by(nearest)).collect()
    }

    /// How well a caption agrees with what was said, by its mean CIDEr: 0 to 1.
    pub(super) fn agreement(&self, caption: &[u32], said: &Said) -> f32 {
        agreement(&self.weighed(caption), said)
    }

    /// For each picture, that of the nearest captions which agrees best with the others: what a caption is
    /// without any writing.
    pub(super) fn captions(&self, pictures: ArrayView2<'_, f32>) -> Vec<Vec<u32>> {
        let of_picture = |nearest: Nearest| {
            let said = self.said_by(&nearest);
            let agreed = said.captions.iter().map(|caption| agreement(caption, &said));
            let agreed = agreed.zip(nearest.captions);
            // Of equals, the nearest.
            let best = agreed.rev().max_by(|(a, _), (b, _)| a.total_cmp(b));
            best.map_or_else(Vec::new, |(_, caption)| self.caption(caption))
        };
        let batches = pictures.axis_chunks_iter(Axis(0), PICTURES_AT_A_TIME);
        let nearest = batches.flat_map(|pictures| self.nearest(pictures, NEAREST_ALONE));
        nearest.map(of_picture).collect()
    }

    fn caption(&self, number: usize) -> Vec<u32> {
        let start = number.checked_sub(1).map_or(0, |before| self.ends[before] + 1);
        self.pieces[start..self.ends[number]].iter().map(|piece| u32::from(*piece)).collect()
    }

    fn counts(&self) -> &[u32] {
        self.counts.get_or_init(|| {
            let mut counts = vec![0; COUNTERS];
            for caption in (0..self.len()).map(|number| self.caption(number)) {
                for ngram in (1..=LONGEST).flat_map(|length| caption.windows(length)) {
                    counts[hash(ngram) as usize % COUNTERS] += 1;
                }
            }
            counts
        })
    }

    /// For each picture, so many captions by the cosine with its embedding.
    fn nearest(&self, pictures: ArrayView2<'_, f32>, most: usize) -> Vec<Nearest> {
        let mut cosines = Array2::zeros((self.len(), pictures.nrows()));
        let step = step(self.space);
        let value = |level: usize| (level as f32 + 0.5 - 0.5 * LEVELS) * step;
        let pairs: Vec<[f32; 2]> =
            (0..256).map(|byte| [value(byte % 16), value(byte / 16)]).collect();
        let bytes = self.space.div_ceil(2);
        let mut unpacked = Array2::zeros((AT_A_TIME, 2 * bytes));
        let pictures = pictures.t();
        for (block, levels) in self.levels.chunks((AT_A_TIME * bytes).max(1)).enumerate() {
            let rows = levels.len() / bytes;
            let values = unpacked.as_slice_mut().into_iter().flat_map(|all| all.as_chunks_mut().0);
            for (to, byte) in values.zip(levels) {
                *to = pairs[usize::from(*byte)];
            }
            let first = block * AT_A_TIME;
            let products = unpacked.slice(s![..rows, ..self.space]).dot(&pictures);
            cosines.slice_mut(s![first..first + rows, ..]).assign(&products);
        }
        let of_picture = |cosines: ndarray::ArrayView1<'_, f32>| {
            let mut order: Vec<usize> = (0..cosines.len()).collect();
            let nearer = |a: &usize, b: &usize| cosines[*b].total_cmp(&cosines[*a]).then(a.cmp(b));
            if order.len() > most {
                order.select_nth_unstable_by(most, nearer);
                order.truncate(most);
            }
            order.sort_unstable_by(nearer);
            let sum: f32 = order.iter().map(|caption| cosines[*caption]).sum();
            Nearest { cosine: sum / order.len().max(1) as f32, captions: order }
        };
        cosines.columns().into_iter().map(of_picture).collect()
    }

    fn said_by(&self, nearest: &Nearest) -> Said {
        let weighed = |caption: &usize| self.weighed(&self.caption(*caption));
        Said { captions: nearest.captions.iter().map(weighed).collect(), likeness: nearest.cosine }
    }

    fn weighed(&self, caption: &[u32]) -> Weighed {
        let counts = self.counts();
        let telling = |ngram: u64| {
            let count = counts[ngram as usize % COUNTERS].max(1);
            (self.len().max(1) as f32 / count as f32).ln().max(0.0)
        };
        let ngrams = std::array::from_fn(|longer| {
            let mut weights = BTreeMap::new();
            for ngram in caption.windows(longer + 1).map(hash) {
                *weights.entry(ngram).or_default() += telling(ngram);
            }
            weights.into_iter().collect::<Vec<(u64, f32)>>()
        });
        let norm =
            |weights: &Vec<(u64, f32)>| weights.iter().map(|(_, x)| x * x).sum::<f32>().sqrt();
        Weighed { norms: ngrams.each_ref().map(norm), ngrams, length: caption.len() as f32 }
    }
}

fn agreement(caption: &Weighed, said: &Said) -> f32 {
    let sum: f32 = said.captions.iter().map(|other| caption.cider(other)).sum();
    sum / said.captions.len().max(1) as f32
}

/// A caption's n-grams by length less one, in order of their hashes: each with its count times how telling it is.
#[derive(Debug)]
struct Weighed {
    ngrams: [Vec<(u64, f32)>; LONGEST],
    norms: [f32; LONGEST],
    /// In pieces.
    length: f32,
}

impl Weighed {
    /// CIDEr-D (Vedantam and others, 2015) of this caption against one other, 0 to 1; what is repeated counts as
    /// often as there.
    fn cider(&self, other: &Weighed) -> f32 {
        const SIGMA: f32 = 6.0;
        let difference = self.length - other.length;
        let penalty = (-difference * difference / (2.0 * SIGMA * SIGMA)).exp();
        let cosine = |longer: usize| {
            let norms = self.norms[longer] * other.norms[longer];
            let product = product(&self.ngrams[longer], &other.ngrams[longer]);
            if norms > 0.0 { product / norms } else { 0.0 }
        };
        penalty * (0..LONGEST).map(cosine).sum::<f32>() / LONGEST as f32
    }
}

fn product(own: &[(u64, f32)], other: &[(u64, f32)]) -> f32 {
    let (mut at, mut sum) = (0, 0.0);
    for (ngram, weight) in own {
        while other.get(at).is_some_and(|(before, _)| before < ngram) {
            at += 1;
        }
        if let Some((_, found)) = other.get(at).filter(|(same, _)| same == ngram) {
            sum += weight.min(*found) * found;
        }
    }
    sum
}

/// The width of a level, for embeddings of so many numbers.
fn step(space: usize) -> f32 {
    STEP / (space.max(1) as f32).sqrt()
}

fn hash(ngram: &[u32]) -> u64 {
    // Multiplied by an odd number and rotated, as rustc hashes its own.
    let mixed = ngram.iter().fold(0_u64, |hash, piece| {
        (hash.rotate_left(5) ^ u64::from(*piece + 1)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    });
    mixed ^ (mixed >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use ndarray::array;
    use proptest::prelude::*;

    const DOG_RUNS: [u32; 3] = [10, 11, 12];
    const MEN_SIT: [u32; 3] = [20, 21, 22];

    fn known() -> Consensus {
        let captions: [&[u32]; 5] =
            [&DOG_RUNS, &[10, 11, 12, 13], &[14, 11, 12], &MEN_SIT, &[20, 21, 23]];
        let embeddings = array![[1.0, 0.0], [0.8, 0.6], [0.96, 0.28], [-0.8, 0.6], [-1.0, 0.0]];
        Consensus::new(&captions, embeddings.view()).unwrap()
    }

    #[test]
    fn what_people_wrote_of_like_pictures_is_agreed_with() {
        let known = known();
        assert_eq!(known.len(), 5);
        let pictures = array![[0.96, 0.28], [-0.96, 0.28]];
        assert_eq!(known.nearest(pictures.view(), 3)[0].captions.len(), 3);
        assert!(known.nearest(pictures.view(), 2)[1].captions.iter().all(|caption| *caption >= 3));
        // Of the others nothing is heard once there are enough that are nearer.
        let captions: Vec<&[u32]> = [[&DOG_RUNS[..]; NEAREST], [&MEN_SIT[..]; NEAREST]].concat();
        let embeddings = Array2::from_shape_fn((2 * NEAREST, 2), |(caption, place)| match place {
            0 if caption < NEAREST => 1.0,
            0 => -1.0,
            _ => 0.0,
        });
        let known = Consensus::new(&captions, embeddings.view()).unwrap();
        let said = &known.said(pictures.view());
        let agreement = |caption: &[u32], of: usize| known.agreement(caption, &said[of]);
        assert!(agreement(&DOG_RUNS, 0) > 0.5 && agreement(&MEN_SIT, 1) > 0.5);
        assert_eq!([agreement(&MEN_SIT, 0), agreement(&DOG_RUNS, 1)], [0.0, 0.0]);
        assert_eq!([agreement(&[30, 31], 0), agreement(&[], 0)], [0.0, 0.0]);
        assert!(known.captions(pictures.view()).iter().all(|caption| !caption.is_empty()));
    }

    #[test]
    fn a_caption_is_the_surer_the_better_it_agrees_and_the_more_alike_pictures_are() {
        let said = |likeness| Said { captions: Vec::new(), likeness };
        let confidence = |likeness, agreement| said(likeness).confidence(agreement);
        assert!(confidence(0.45, 0.1) > confidence(0.45, 0.05));
        assert!(confidence(0.45, 0.1) > confidence(0.35, 0.1));
        assert!((0.6..0.8).contains(&confidence(0.45, 0.1)), "{}", confidence(0.45, 0.1));
        // What nobody wrote, and pictures that are like none.
        assert_eq!([confidence(0.45, 0.0), confidence(-0.1, 0.1)], [0.0, 0.0]);
        assert!(confidence(1.0, 1.0) < 1.0);
    }

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        let known = known();
        let parts = |space, pieces: &[u16], levels: &[u8]| {
            Consensus::of_parts(space, pieces.to_vec(), levels.to_vec())
        };
        let (pieces, levels) = (&known.pieces[..], known.levels());
        assert_eq!(parts(2, pieces, levels).unwrap().len(), 5);
        let cut = pieces.len() - 1;
        for wrong in [
            parts(2, &pieces[..cut], levels),
            parts(2, pieces, &levels[1..]),
            parts(3, pieces, levels),
        ] {
            assert_eq!(wrong.unwrap_err().kind(), Kind::Corrupt);
        }
        let none = parts(2, &[], &[]).unwrap();
        assert!(none.is_empty());
        assert_eq!(none.captions(array![[1.0, 0.0]].view()), [Vec::<u32>::new()]);
    }

    proptest! {
        #[test]
        fn levels_are_near_what_they_stand_for(values in prop::collection::vec(-1.0_f32..1.0, 64)) {
            let length = values.iter().map(|x| x * x).sum::<f32>().sqrt().max(0.1);
            let row = Array2::from_shape_fn((1, 64), |(_, at)| values[at] / length);
            let known = Consensus::new(&[&[7]], row.view()).unwrap();
            let bytes = known.levels();
            for (at, value) in row.iter().enumerate() {
                let level = if at % 2 == 0 { bytes[at / 2] % 16 } else { bytes[at / 2] / 16 };
                let back = (f32::from(level) + 0.5 - 0.5 * LEVELS) * step(64);
                // Beyond the last level, a number is cut to it.
                let cut = value.clamp(-7.5 * step(64), 7.5 * step(64));
                prop_assert!((back - cut).abs() <= 0.5 * step(64) + 1e-6, "{value} {back}");
            }
        }

        #[test]
        fn a_caption_agrees_with_itself_wholly(pieces in prop::collection::btree_set(6_u32..100, 1..12)) {
            let caption: Vec<u32> = pieces.into_iter().collect();
            let other = [200, 201, 202];
            let embeddings = array![[1.0, 0.0], [-1.0, 0.0]];
            let known = Consensus::new(&[&caption, &other], embeddings.view()).unwrap();
            let said = known.said_by(&Nearest { captions: vec![0], cosine: 1.0 });
            let longest = caption.len().min(LONGEST) as f32 / LONGEST as f32;
            prop_assert!((known.agreement(&caption, &said) - longest).abs() < 1e-4);
            prop_assert_eq!(known.agreement(&[300, 301], &said), 0.0);
        }
    }
}
