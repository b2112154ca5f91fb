//! Plain data that travels through the graph and into the record. No behaviour beyond what keeps a
//! value well-formed.

use std::fmt;
use std::sync::Arc;

use half::f16;
use serde::{Deserialize, Serialize};

use crate::time::{Span, Timestamp};

/// One decoded picture in the rendition that was asked for: packed RGB, 8 bits a channel, rows
/// without padding.
#[derive(Debug, Clone)]
pub struct Frame {
    /// The instant of the sampling grid that this picture was on display at.
    pub target: Timestamp,
    /// When the picture came on display: at or before `target`, or less than half a step of the
    /// targets after it, where that is a keyframe.
    pub pts: Timestamp,
    /// `pts` as the container has it, in the track's time base.
    pub raw_pts: i64,
    pub width_px: u32,
    pub height_px: u32,
    /// Width to height of what the pixels show, as it is meant to be seen.
    pub aspect_ratio: f32,
    /// `width * height * 3` bytes. Shared, since a picture that stays on display serves several targets.
    pub rgb: Arc<[u8]>,
    /// The sharpest change of picture since the previous target, for finding shot changes.
    pub change: Change,
}

/// How much the picture changed between two consecutive decoded frames.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// 0 (the same picture) to 1 (nothing in common).
    pub strength: f32,
    /// When the later of the two frames came on display.
    pub at: Timestamp,
}

/// A fixed span of picture, encoded as one.
#[derive(Debug, Clone)]
pub struct Clip {
    pub head: ClipHead,
    /// In order of target; at least one.
    pub frames: Vec<Frame>,
    pub thumbnail: Thumbnail,
}

/// What is known of a clip without its pixels.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ClipHead {
    pub span: Span,
    /// The container's pts of the first sampled frame.
    pub raw_pts: i64,
    /// How many of the pipeline's frames per clip were there.
    pub frames: u16,
    /// When a new shot begins in this clip, if one does.
    pub shot_start: Option<Timestamp>,
}

/// A clip after the CNN.
#[derive(Debug, Clone)]
pub struct EncodedClip {
    pub head: ClipHead,
    /// Pooled over the picture, mean over the frames.
    pub features: Vec<f32>,
    /// Row-major cells of the CNN's map, each as long as `features`, mean over the frames; empty
    /// where the pipeline asks for none.
    pub cells: Vec<f32>,
    /// Class probabilities, mean over the frames; empty where the encoder has no classes.
    pub classes: Vec<f32>,
    pub thumbnail: Thumbnail,
}

/// A clip as the record keeps it.
#[derive(Debug, Clone, PartialEq)]
pub struct IndexedClip {
    pub head: ClipHead,
    /// The whole picture's word (cell 0), then one for each cell.
    pub words: Vec<VisualWord>,
    pub features: Vec<f16>,
    /// The features of the cells; none where the pipeline asks for none.
    pub cells: CellFeatures,
    /// Unit vector in the pipeline's space; empty where the encoder cannot be mapped into one.
    pub embedding: Vec<f16>,
    /// None of clips that were made before there were any.
    pub thumbnail: Option<Thumbnail>,
}

/// A small picture of a clip: a JPEG file (ITU-T T.81).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thumbnail(Vec<u8>);

impl Thumbnail {
    /// None is longer.
    pub const MOST_BYTES: usize = 64 << 10;

    /// From a file's bytes; `None` where they do not begin and end as a JPEG does, or are too many.
    pub fn from_bytes(bytes: Vec<u8>) -> Option<Self> {
        // Start of image and the first byte of any marker; end of image.
        let is_jpeg = bytes.starts_with(&[0xff, 0xd8, 0xff]) && bytes.ends_with(&[0xff, 0xd9]);
        (is_jpeg && bytes.len() <= Self::MOST_BYTES).then_some(Thumbnail(bytes))
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The features of a picture's cells in the form in which they are kept: 4 bits each, and those that
/// are 0, as most are behind a ReLU, one bit.
///
/// For each cell: least and greatest of its values but 0, as halves; a bit for each value, 1 where
/// it is not 0; then 4 bits for each of those, from least to greatest. All little-endian, the lowest
/// bit first, and what is left of a byte is 0.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CellFeatures(Vec<u8>);

/// The greatest number that 4 bits hold.
const MOST_LEVEL: f32 = 15.0;

impl CellFeatures {
    /// Rounds the features of cells, one after the other, of `dim` values each. What is not finite
    /// counts as 0.
    pub fn new(values: &[f32], dim: usize) -> Self {
        let mut bytes = Vec::new();
        for cell in values.chunks_exact(dim.max(1)) {
            let kept = || cell.iter().copied().filter(|x| *x != 0.0 && x.is_finite());
            let limit = |x: f32| f16::from_f32(x.clamp(-f16::MAX.to_f32(), f16::MAX.to_f32()));
            let least = limit(kept().fold(f32::INFINITY, f32::min).min(f32::MAX));
            let most = limit(kept().fold(f32::NEG_INFINITY, f32::max).max(f32::MIN));
            bytes.extend(least.to_le_bytes());
            bytes.extend(most.to_le_bytes());
            let step = (most.to_f32() - least.to_f32()) / MOST_LEVEL;
            let is_kept = |x: &f32| *x != 0.0 && x.is_finite();
            bytes.extend(cell.chunks(8).map(|eight| {
                let bits = eight.iter().enumerate();
                bits.fold(0, |byte, (bit, x)| byte | u8::from(is_kept(x)) << bit)
            }));
            let levels: Vec<u8> = kept()
                .map(|x| if step > 0.0 { (x - least.to_f32()) / step } else { 0.0 })
                .map(|level| level.round().clamp(0.0, MOST_LEVEL) as u8)
                .collect();
            bytes.extend(levels.chunks(2).map(|two| two[0] | two.get(1).unwrap_or(&0) << 4));
        }
        CellFeatures(bytes)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// As they are kept.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// From bytes as they are kept; `None` where they are not cells of `dim` values.
    pub fn from_bytes(bytes: &[u8], dim: usize) -> Option<Self> {
        let cells = CellFeatures(bytes.to_vec());
        cells.values(dim).map(|_| cells)
    }

    /// The values of all cells, one after the other; `None` where these are not cells of `dim` values.
    pub fn values(&self, dim: usize) -> Option<Vec<f32>> {
        let mut values = Vec::new();
        let mut rest = &self.0[..];
        while !rest.is_empty() {
            let (ends, after) = rest.split_first_chunk::<4>()?;
            let [least, most] = [[ends[0], ends[1]], [ends[2], ends[3]]]
                .map(|bytes| f16::from_le_bytes(bytes).to_f32());
            let (bits, after) = after.split_at_checked(dim.div_ceil(8))?;
            let is_kept = |at: usize| bits[at / 8] >> (at % 8) & 1 == 1;
            let kept = (0..dim).filter(|at| is_kept(*at)).count();
            let (levels, after) = after.split_at_checked(kept.div_ceil(2))?;
            if !(least.is_finite() && most.is_finite()) {
                return None;
            }
            let mut place = 0;
            values.extend((0..dim).map(|at| {
                if !is_kept(at) {
                    return 0.0;
                }
                let level = levels[place / 2] >> (4 * (place % 2)) & 15;
                place += 1;
                least + (most - least) * f32::from(level) / MOST_LEVEL
            }));
            rest = after;
        }
        Some(values)
    }
}

/// A sentence that the transformer wrote.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Caption {
    pub text: String,
    /// How likely it is to be a good one, 0 to 1; of a network without captions beside it, the geometric mean of its
    /// pieces' probabilities.
    pub confidence: f32,
}

/// A leaf of the codebook's tree: the path from the root, read as a number in base `branching`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VisualWord(pub u32);

impl VisualWord {
    /// The path from the root, one branch a level.
    pub fn path(self, branching: u32, depth: u32) -> Vec<u32> {
        (0..depth).rev().map(|level| self.0 / branching.pow(level) % branching).collect()
    }
}

/// Timed text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cue {
    pub span: Span,
    /// Plain text, one or more lines, no markup.
    pub text: String,
    pub kind: CueKind,
    /// BCP-47, where known.
    pub language: Option<String>,
    /// Which track it came from: `embedded:3`, `embedded:3.forced`, `sidecar:talk.en.srt`.
    pub track: String,
    /// 0 to 1, where the origin states one.
    pub confidence: Option<f32>,
    /// Each word's own time, where known.
    pub words: Vec<TimedWord>,
    pub speaker: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TimedWord {
    pub span: Span,
    pub text: String,
    pub confidence: Option<f32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CueKind {
    Subtitle,
    Speech,
    Screen,
}

/// A span of a source with no picture or sound, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    pub span: Span,
    pub track: TrackKind,
    /// In words, for people: `no frame for 4.5 s`, `undecodable: 12 packets`.
    pub reason: String,
}

/// Adds a reason to those of a gap, unless one says it. One that says what others do, and more, takes their place.
pub fn add_reason(reasons: &mut Vec<String>, reason: &str) {
    if reasons.iter().any(|known| known.contains(reason)) {
        return;
    }
    reasons.retain(|known| !reason.contains(known.as_str()));
    reasons.push(reason.to_owned());
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrackKind {
    Picture,
    Sound,
    Text,
}

/// What an embedding or a word came from.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    clap::ValueEnum,
)]
#[serde(rename_all = "snake_case")]
pub enum Channel {
    /// The picture itself, through the joint space.
    Picture,
    /// What people said: subtitles and speech.
    Speech,
    /// Text seen in the picture.
    Screen,
    /// A sentence that the transformer wrote.
    Caption,
}

macro_rules! shown_as_serialized {
    ($($type:ty: $($variant:ident = $name:literal),+;)+) => {$(
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl $type {
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }
        }

        impl std::str::FromStr for $type {
            type Err = crate::error::Error;
            fn from_str(text: &str) -> crate::error::Result<Self> {
                match text {
                    $($name => Ok(Self::$variant),)+
                    _ => Err(crate::error::Error::corrupt(format!(
                        "{text:?} is no {}", stringify!($type)
                    ))),
                }
            }
        }
    )+};
}

shown_as_serialized! {
    CueKind: Subtitle = "subtitle", Speech = "speech", Screen = "screen";
    TrackKind: Picture = "picture", Sound = "sound", Text = "text";
    Channel: Picture = "picture", Speech = "speech", Screen = "screen", Caption = "caption";
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn cells_take_a_bit_for_what_is_zero_and_four_for_the_rest() {
        let values = [0.0, 0.5, 0.0, 6.0, 3.25, 0.0, 0.0, 0.0, 1.0];
        let cells = CellFeatures::new(&values, 9);
        assert_eq!(cells.as_bytes().len(), 4 + 2 + 2);
        let read = cells.values(9).unwrap();
        assert_eq!((read[0], read[1], read[3]), (0.0, 0.5, 6.0));
        assert!((read[4] - 3.25).abs() < 5.6 / 30.0, "{read:?}");
        assert_eq!(CellFeatures::new(&[0.0; 16], 8).values(8).unwrap(), [0.0; 16]);
        assert!(CellFeatures::from_bytes(&cells.as_bytes()[..7], 9).is_none());
    }

    proptest! {
        #[test]
        fn cells_come_back_within_half_a_step(
            values in prop::collection::vec(prop_oneof![Just(0.0f32), -60.0f32..60.0], 20),
        ) {
            let cells = CellFeatures::new(&values, 10);
            let read = cells.values(10).unwrap();
            for (value, read) in values.iter().zip(read) {
                // Half a step, and what halves lose of the ends.
                prop_assert!((value - read).abs() <= 120.0 / 30.0 + 0.1);
                prop_assert_eq!(*value == 0.0 && read != 0.0, false);
            }
            prop_assert_eq!(CellFeatures::from_bytes(cells.as_bytes(), 10), Some(cells));
        }

        #[test]
        fn no_bytes_are_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..60), dim in 0usize..40) {
            let _ = CellFeatures::from_bytes(&bytes, dim);
        }

        #[test]
        fn a_word_is_the_number_its_path_spells(word in 0u32..20_736) {
            let path = VisualWord(word).path(12, 4);
            prop_assert_eq!(path.len(), 4);
            prop_assert_eq!(path.iter().fold(0, |number, branch| number * 12 + branch), word);
        }
    }
}
