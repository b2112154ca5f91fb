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
}

/// A clip as the record keeps it.
#[derive(Debug, Clone, PartialEq)]
pub struct IndexedClip {
    pub head: ClipHead,
    /// The whole picture's word (cell 0), then one for each cell.
    pub words: Vec<VisualWord>,
    pub features: Vec<f16>,
    /// Unit vector in the pipeline's space; empty where the encoder cannot be mapped into one.
    pub embedding: Vec<f16>,
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
    /// Which track it came from: `embedded:3`, `sidecar:talk.en.srt`.
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

    proptest! {
        #[test]
        fn a_word_is_the_number_its_path_spells(word in 0u32..20_736) {
            let path = VisualWord(word).path(12, 4);
            prop_assert_eq!(path.len(), 4);
            prop_assert_eq!(path.iter().fold(0, |number, branch| number * 12 + branch), word);
        }
    }
}
