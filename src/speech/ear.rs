//! From sound as it comes to windows of speech. What is held is one window, however long the sound is.
//!
//! After each pause the ear begins anew: it forgets, and listens again to the last moments before. So
//! whatever was before a pause has no consequence behind it, and an ear that begins there hears the same.

use super::voice::{CHUNK, Voice};
use super::window::{Cutter, Rules, Window, length};
use crate::error::Result;
use crate::time::{Micros, Timestamp};

/// Times that differ by less from the count of samples are rounding.
const TOLERANCE: Micros = Micros(60_000);
/// In so much silence the ear begins anew, too,
const QUIET: Micros = Micros::from_millis(120_000);
/// and in so much of a live stream's, of which the words are wanted soon. With what is left of the window
/// before, it is the pause that ends a sentence.
const LIVE_QUIET: Micros = Micros::from_millis(1_000);

/// Chunks, three seconds, after which the network forgets where nobody speaks: it gets used to music and to noise, and
/// then doesn't notice who speaks in them.
const STALE: usize = 94;

/// What an ear gives, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Stretch {
    Speech(Window),
    /// Nobody has spoken for long, and the ear begins anew at this instant.
    Silence(Timestamp),
}

/// Follows one line of sound.
#[derive(Debug)]
pub struct Ear {
    voice: Voice,
    rules: Rules,
    quiet: Micros,
    cutter: Cutter,
    /// Where the ear began anew.
    fresh: Timestamp,
    /// What is before is not listened to.
    from: Timestamp,
    /// Samples that are no whole chunk yet.
    pending: Vec<f32>,
    /// When the next sample is expected; `None` after a gap.
    next: Option<Timestamp>,
}

impl Ear {
    pub fn new(voice: Voice) -> Ear {
        Ear::with(voice, QUIET)
    }

    /// One that says soon that nobody speaks any more.
    pub fn live(voice: Voice) -> Ear {
        Ear::with(voice, LIVE_QUIET)
    }

    fn with(voice: Voice, quiet: Micros) -> Ear {
        let rules = Rules::default();
        let cutter = Cutter::new(rules, Timestamp::ZERO);
        let (fresh, from) = (Timestamp::ZERO, Timestamp(i64::MIN));
        Ear { voice, rules, quiet, cutter, fresh, from, pending: Vec::new(), next: None }
    }

    /// Where the sound ends that was taken.
    pub fn end(&self) -> Timestamp {
        self.next.unwrap_or(self.cutter.end())
    }

    /// Since when sound is kept that may be in the next window.
    pub fn kept_from(&self) -> Timestamp {
        self.cutter.start()
    }

    /// Passes over what is before an instant at which an ear began anew.
    pub fn skip_to(&mut self, from: Timestamp) {
        if self.cutter.end() < from {
            self.from = from;
            self.begin(self.cutter.end());
        }
    }

    /// Makes the ear ready for another source.
    pub fn reset(&mut self) {
        self.pending.clear();
        self.next = None;
        self.from = Timestamp(i64::MIN);
        self.begin(Timestamp::ZERO);
    }

    /// Takes samples of which the first is at `at`; adds what has ended.
    pub fn hear(
        &mut self,
        at: Timestamp,
        samples: &[f32],
        stretches: &mut Vec<Stretch>,
    ) -> Result<()> {
        let follows = |next: Timestamp| (at - next).0.abs() <= TOLERANCE.0;
        if !self.next.is_some_and(follows) {
            self.pause(stretches)?;
            self.begin(at);
        }
        let next = self.next.unwrap_or(at);
        self.next = Some(next + length(samples.len()));
        self.pending.extend_from_slice(samples);
        let pending = std::mem::take(&mut self.pending);
        let (chunks, rest) = pending.as_chunks::<CHUNK>();
        for chunk in chunks {
            self.hear_chunk(chunk, stretches)?;
        }
        self.pending = rest.to_vec();
        Ok(())
    }

    /// A gap, or the end: speech doesn't go on after it.
    pub fn pause(&mut self, stretches: &mut Vec<Stretch>) -> Result<()> {
        if !self.pending.is_empty() {
            let mut chunk = [0.0; CHUNK];
            chunk[..self.pending.len()].copy_from_slice(&self.pending);
            self.pending.clear();
            self.hear_chunk(&chunk, stretches)?;
        }
        stretches.extend(self.cutter.finish().map(Stretch::Speech));
        if let Some(next) = self.next.take() {
            self.begin(next);
        }
        Ok(())
    }

    fn begin(&mut self, at: Timestamp) {
        self.voice.forget();
        self.cutter = Cutter::new(self.rules, at);
        self.fresh = at;
    }

    fn hear_chunk(&mut self, chunk: &[f32; CHUNK], stretches: &mut Vec<Stretch>) -> Result<()> {
        if self.cutter.end() < self.from {
            self.begin(self.cutter.end() + length(CHUNK));
            return Ok(());
        }
        let window = self.cutter.push(chunk, self.voice.probability(chunk)?);
        stretches.extend(window.map(Stretch::Speech));
        if !self.cutter.is_idle() {
            return Ok(());
        }
        let (has_given, is_quiet) =
            (self.cutter.has_given(), self.cutter.end() - self.fresh >= self.quiet);
        if has_given || is_quiet {
            let cutter = Cutter::new(self.rules, Timestamp::ZERO);
            let (at, kept) = std::mem::replace(&mut self.cutter, cutter).into_rest();
            self.begin(at);
            if !has_given {
                stretches.push(Stretch::Silence(at));
            }
            for chunk in kept.as_chunks::<CHUNK>().0 {
                // Far less than what a window takes to end.
                let window = self.cutter.push(chunk, self.voice.probability(chunk)?);
                stretches.extend(window.map(Stretch::Speech));
            }
        } else if self.voice.remembered() >= STALE {
            self.voice.forget();
        }
        Ok(())
    }
}
