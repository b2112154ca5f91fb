//! What people say: from sound to timed words.
//!
//! The way: an [`Ear`] follows the sound as it comes and cuts it into [`Window`]s of speech, a
//! [`Listener`] (one a thread) reads each window by itself, and a [`Joiner`] makes cues of the words, in
//! order. Only the reading takes time, so windows of one source are read side by side; and since none
//! depends on what was understood before, the same sound gives the same words.

mod cues;
mod ear;
mod hear;
mod judge;
mod rules;
mod search;
mod spectrum;
mod steer;
mod voice;
mod whisper;
mod window;
mod words;

pub use cues::Joiner;
pub use ear::{Ear, Stretch};
pub use hear::{Heard, Listener, Models};
pub use voice::Voice;
pub use whisper::Whisper;
pub use window::Window;
pub use words::{Word, is_without_spaces};
