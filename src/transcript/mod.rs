//! From timed text to what is read together: cues become sentences, and sentences and shot changes
//! divide the clips into segments. Pure functions; nothing here reads a file or runs a model.
//!
//! The way: [`chosen_track`] picks the cues of one track, [`sentences`] cleans and joins them, and
//! [`segments`] says which clips and words belong together.

mod cue_text;
mod segment;
mod sentence;
mod subtitle;
mod track;

pub use cue_text::{clean_text, is_spoken};
pub use segment::{SegmentPlan, SegmentRules, segments};
pub use sentence::{Sentence, SentenceRules, ends_sentence, sentences};
pub use subtitle::{Subtitle, subtitles};
pub use track::{chosen_track, is_forced};
