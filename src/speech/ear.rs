//! From sound as it comes to windows of speech. What is held is one window, however long the sound is.

use super::voice::{CHUNK, Voice};
use super::window::{Cutter, Rules, Window, length};
use crate::error::Result;
use crate::time::{Micros, Timestamp};

/// Times that differ by less from the count of samples are rounding.
const TOLERANCE: Micros = Micros(60_000);

/// Follows one line of sound.
#[derive(Debug)]
pub struct Ear {
    voice: Voice,
    rules: Rules,
    cutter: Cutter,
    /// Samples that are no whole chunk yet.
    pending: Vec<f32>,
    /// When the next sample is expected; `None` after a gap.
    next: Option<Timestamp>,
}

impl Ear {
    pub fn new(voice: Voice) -> Ear {
        let rules = Rules::default();
        let cutter = Cutter::new(rules, Timestamp::ZERO);
        Ear { voice, rules, cutter, pending: Vec::new(), next: None }
    }

    /// Takes samples of which the first is at `at`; adds the windows that ended.
    pub fn hear(
        &mut self,
        at: Timestamp,
        samples: &[f32],
        windows: &mut Vec<Window>,
    ) -> Result<()> {
        let follows = |next: Timestamp| (at - next).0.abs() <= TOLERANCE.0;
        if !self.next.is_some_and(follows) {
            self.pause(windows)?;
            self.cutter = Cutter::new(self.rules, at);
        }
        let next = self.next.unwrap_or(at);
        self.next = Some(next + length(samples.len()));
        self.pending.extend_from_slice(samples);
        let (chunks, rest) = self.pending.as_chunks::<CHUNK>();
        for chunk in chunks {
            windows.extend(self.cutter.push(chunk, self.voice.probability(chunk)?));
        }
        self.pending = rest.to_vec();
        Ok(())
    }

    /// A gap, or the end: speech doesn't go on after it.
    pub fn pause(&mut self, windows: &mut Vec<Window>) -> Result<()> {
        if !self.pending.is_empty() {
            let mut chunk = [0.0; CHUNK];
            chunk[..self.pending.len()].copy_from_slice(&self.pending);
            windows.extend(self.cutter.push(&chunk, self.voice.probability(&chunk)?));
            self.pending.clear();
        }
        windows.extend(self.cutter.finish());
        self.voice.forget();
        if let Some(next) = self.next.take() {
            self.cutter = Cutter::new(self.rules, next);
        }
        Ok(())
    }

    /// All speech before this instant is in windows that were given out.
    pub fn done(&self) -> Timestamp {
        self.cutter.done()
    }
}
