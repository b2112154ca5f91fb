//! A source that is being read, and what has come of it so far.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::report::Problem;
use super::witness::Witness;
use crate::library::SourceId;
use crate::source::{Input, MediaInfo, Summary};
use crate::time::{Micros, Timestamp};

/// A source that has been looked into.
#[derive(Debug)]
pub(super) struct Opened {
    pub id: SourceId,
    pub input: Arc<Input>,
    pub witness: Witness,
    /// As the container states it, where that is believed.
    pub length: Option<Micros>,
    is_still: bool,
    tally: Mutex<Tally>,
}

/// What has come of a source so far.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Streams of its picture that have not ended.
    pub streams: usize,
    /// Of picture and sound, how many have not ended.
    pub parts: usize,
    pub clips: u64,
    pub cues: u64,
    pub gaps: u64,
    pub gap_length: Micros,
    /// Without sound.
    pub sound_gaps: u64,
    pub sound_gap_length: Micros,
    /// What is spoken, where that was told.
    pub language: Option<String>,
    pub notices: Vec<String>,
    pub corrupt_packets: u64,
    pub damaged_frames: u64,
    pub misplaced_frames: u64,
    /// Where the picture ends, of a stream that was read to the end.
    pub end: Option<Timestamp>,
    /// Of the picture.
    pub error: Option<Problem>,
    pub sound_error: Option<Problem>,
    pub interrupted: bool,
}

impl Opened {
    pub fn new(
        id: SourceId,
        input: Input,
        witness: Witness,
        info: &MediaInfo,
        length: Option<Micros>,
    ) -> Self {
        let input = Arc::new(input);
        Opened { id, input, witness, length, is_still: info.is_still, tally: Mutex::default() }
    }

    /// With so many streams of picture to come, cues stored, and sound to be listened to or not.
    pub fn with_work(
        self,
        streams: usize,
        is_listened_to: bool,
        cues: usize,
        notices: Vec<String>,
    ) -> Self {
        let parts = 1 + usize::from(is_listened_to);
        let tally = Tally { streams, parts, cues: cues as u64, notices, ..Tally::default() };
        Opened { tally: Mutex::new(tally), ..self }
    }

    pub fn tally(&self) -> MutexGuard<'_, Tally> {
        // Counters: each is right whenever the lock is free.
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something odd that cost nothing. Chunks of one source often notice the same.
    pub fn notice(&self, notice: String) {
        const MOST: usize = 20;
        let mut tally = self.tally();
        if tally.notices.len() < MOST && !tally.notices.contains(&notice) {
            tally.notices.push(notice);
        }
    }

    /// Counts what a finished request went through, and learns from one that went on `to_end` where
    /// that is.
    pub fn count(&self, summary: &Summary, to_end: bool) {
        let mut tally = self.tally();
        tally.corrupt_packets = tally.corrupt_packets.saturating_add(summary.corrupt_packets);
        tally.damaged_frames = tally.damaged_frames.saturating_add(summary.damaged_frames);
        tally.misplaced_frames = tally.misplaced_frames.saturating_add(summary.misplaced_frames);
        if to_end && !self.is_still {
            tally.end = summary.end;
        }
    }

    /// How long it is, as far as is known: what the container states, unless the picture goes on
    /// behind that.
    pub fn known_length(&self, tally: &Tally) -> Option<Micros> {
        let read = tally.end.map(|end| end - Timestamp::ZERO).filter(|read| *read > Micros::ZERO);
        self.length.max(read)
    }
}
