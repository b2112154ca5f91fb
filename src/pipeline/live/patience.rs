//! What is done again while the disk is full or another process holds the library: for as long as that lasts.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Shared, monotonic_us};
use crate::error::{Error, Kind, Result};
use crate::library::Writer;
use crate::pipeline::shared::lock;
use crate::time::{Micros, Span};

/// How long to wait before what has failed is tried again.
const AGAIN: Duration = Duration::from_millis(500);
/// How long it is tried again when the run is to end.
const STOPPING: Micros = Micros::from_millis(10_000);
/// What takes longer to be stored was waiting for something.
const LONG_US: i64 = 1_000_000;
const SLOW: &str = "nothing could be stored: the library was in use, or the disk was slow";
/// Times in which nothing could be stored that are remembered: gaps are told seconds after they were.
const MOST_HELD_UP: usize = 8;
/// What cannot be read for so long while others store is not waited for: where it lies, the disk may be worn.
const UNREADABLE: Micros = Micros::from_millis(60_000);

/// Whether what failed may go well later: the disk is full, or another process holds the library.
pub(super) fn passes(error: &Error) -> bool {
    matches!(error.kind(), Kind::Exhausted | Kind::Unavailable)
}

/// When nothing could be stored, on the monotonic clock, and why.
#[derive(Debug)]
pub(super) struct HeldUp {
    from_us: i64,
    until_us: i64,
    reason: String,
}

/// Those who cannot store anything.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    count: usize,
    /// Since when the first of them waits.
    from_us: i64,
}

impl Shared<'_> {
    /// Stores something. While the disk is full or the library is in use, this waits, and the library is
    /// free for others meanwhile.
    ///
    /// # Errors
    /// What waiting does not help against; where the run is to end, also what lasts longer than [`STOPPING`].
    pub fn store<T>(&self, what: impl Fn(&mut Writer) -> Result<T>) -> Result<T> {
        let from_us = monotonic_us();
        let mut reason: Option<String> = None;
        let attempt = || what(&mut lock(&self.library));
        let lost = |secs| format!("what was to be stored in the last {secs:.0} s is lost");
        let done = self.patiently(attempt, lost, |error| {
            let reason = reason.get_or_insert_with(|| {
                self.begin_waiting(from_us, error);
                format!("nothing could be stored: {}", error.message())
            });
            let reason = reason.clone();
            self.note_held_up(HeldUp { from_us, until_us: monotonic_us(), reason });
            true
        });
        let until_us = monotonic_us();
        if done.is_ok() {
            self.stored_us.fetch_max(until_us, Ordering::Relaxed);
        }
        if reason.is_some() {
            self.end_waiting(until_us, done.is_ok());
        }
        if reason.is_some() || until_us - from_us > LONG_US {
            let reason = reason.unwrap_or_else(|| SLOW.to_owned());
            self.note_held_up(HeldUp { from_us, until_us, reason });
        }
        done
    }

    /// One more cannot store anything. It is told of the first.
    fn begin_waiting(&self, from_us: i64, error: &Error) {
        let mut waiting = lock(&self.waiting);
        waiting.count += 1;
        if waiting.count == 1 {
            waiting.from_us = from_us;
            tracing::warn!("{error}: nothing is stored until that is over");
            self.update_all(|status| status.not_stored = Some(error.message().to_owned()));
        }
    }

    fn end_waiting(&self, until_us: i64, is_stored: bool) {
        let mut waiting = lock(&self.waiting);
        waiting.count -= 1;
        if waiting.count == 0 {
            if is_stored {
                let secs = Micros(until_us - waiting.from_us).as_secs_f64();
                tracing::warn!("what comes is stored again, after {secs:.0} s");
            }
            self.update_all(|status| status.not_stored = None);
        }
    }

    /// Reads something from the library, for segments. While another process holds that, this waits.
    ///
    /// # Errors
    /// As [`Shared::store`]; and what cannot be read for [`UNREADABLE`] while others store.
    pub fn read(&self, what: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let from_us = monotonic_us();
        let mut is_told = false;
        let lost = |_| "no segments are made of what is left".to_owned();
        self.patiently(what, lost, |error| {
            // What is too large to be read stays so.
            let waits = error.kind() == Kind::Unavailable
                && !is_vain(from_us, self.stored_us.load(Ordering::Relaxed));
            if waits && !std::mem::replace(&mut is_told, true) {
                tracing::warn!("{error}: no segments are made until that is over");
            }
            waits
        })
    }

    /// Attempts something until it goes well. `waits` is told of each failure that may pass, and says whether it is
    /// waited for that. Where the run is to end and it has not passed, the error says what is `lost` after so many
    /// seconds.
    fn patiently<T>(
        &self,
        mut attempt: impl FnMut() -> Result<T>,
        lost: impl Fn(f64) -> String,
        mut waits: impl FnMut(&Error) -> bool,
    ) -> Result<T> {
        let from_us = monotonic_us();
        loop {
            let done = attempt();
            let Some(error) = done.as_ref().err().filter(|error| passes(error) && waits(error))
            else {
                return done;
            };
            let now_us = monotonic_us();
            if self.cancel.is_cancelled()
                && now_us - *self.stopped_us.get_or_init(|| now_us) > STOPPING.0
            {
                let message = format!(
                    "{error}, and stayed so for {:.0} s after the run was stopped: {}",
                    STOPPING.as_secs_f64(),
                    lost(Micros(now_us - from_us).as_secs_f64())
                );
                return Err(Error::new(error.kind(), message));
            }
            std::thread::sleep(AGAIN);
        }
    }

    /// What goes on, or begins again at once, is one.
    fn note_held_up(&self, now: HeldUp) {
        let mut held_up = lock(&self.held_up);
        match held_up.back_mut() {
            Some(last) if last.reason == now.reason && now.from_us < last.until_us + LONG_US => {
                last.until_us = last.until_us.max(now.until_us);
            }
            _ => held_up.push_back(now),
        }
        if held_up.len() > MOST_HELD_UP {
            held_up.pop_front();
        }
    }

    /// Why nothing could be stored in most of this span of media time, if that was so. `zero_us`: where it has its zero.
    pub fn held_up(&self, span: Span, zero_us: i64) -> Option<String> {
        let [from_us, until_us] = [span.start, span.end].map(|at| zero_us.saturating_add(at.0));
        let shared = |of: &HeldUp| of.until_us.min(until_us) - of.from_us.max(from_us);
        let held_up = lock(&self.held_up);
        let of = held_up.iter().max_by_key(|of| shared(of))?;
        (2 * shared(of) > until_us - from_us).then(|| of.reason.clone())
    }
}

/// Whether it is in vain to wait for what could not be read since `from_us`: the library is not what stands in the way.
fn is_vain(from_us: i64, stored_us: i64) -> bool {
    stored_us - from_us > UNREADABLE.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_waited_for_unless_others_store_long_after() {
        let from_us = 100 * UNREADABLE.0;
        assert!(!is_vain(from_us, 0));
        assert!(!is_vain(from_us, from_us + UNREADABLE.0));
        assert!(is_vain(from_us, from_us + UNREADABLE.0 + 1));
    }
}
