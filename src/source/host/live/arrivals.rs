//! What a live stream has brought and the decoder has not taken yet. A decoder that is behind loses
//! whole frames here, before any work was spent on them, and each is counted.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::clock::MediaClock;
use crate::source::protocol::Received;

/// Nothing waits longer than this for the decoder.
const MOST_WAIT_US: i64 = 1_000_000;
const MOST_BYTES: usize = 32 << 20;
/// Servers send what they have kept of the last seconds at once. So long after the first frame it is
/// known which of them are late.
const OPENING_US: i64 = 300_000;

/// A coded frame.
pub struct Unit<P> {
    pub packet: P,
    pub bytes: usize,
    /// On the stream's own clock, in microseconds.
    pub pts: Option<i64>,
    /// On the monotonic clock, as below.
    pub arrived: i64,
    /// When it was captured; set on the way through the queue.
    pub captured: i64,
    pub is_key: bool,
}

/// Between the thread that receives and the one that decodes.
pub struct Arrivals<P> {
    state: Mutex<State<P>>,
    came: Condvar,
}

struct State<P> {
    units: VecDeque<Unit<P>>,
    bytes: usize,
    clock: MediaClock,
    /// When the first frame arrived, until the opening is over.
    opening: Option<i64>,
    has_begun: bool,
    /// What comes is of no use before the next keyframe, and why.
    waits_for_key: Option<Loss>,
    counts: Received,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    BeforeKeyframe,
    Behind,
}

impl<P> Default for Arrivals<P> {
    fn default() -> Self {
        let state = State {
            units: VecDeque::new(),
            bytes: 0,
            clock: MediaClock::default(),
            opening: None,
            has_begun: false,
            waits_for_key: Some(Loss::BeforeKeyframe),
            counts: Received::default(),
        };
        Arrivals { state: Mutex::new(state), came: Condvar::new() }
    }
}

impl<P> Arrivals<P> {
    fn lock(&self) -> MutexGuard<'_, State<P>> {
        // Every change below is complete before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what has arrived, or counts it as lost.
    pub fn push(&self, mut unit: Unit<P>) {
        let mut state = self.lock();
        state.counts.received += 1;
        state.clock.observe(unit.pts, unit.arrived);
        if !state.has_begun {
            (state.has_begun, state.opening) = (true, Some(unit.arrived));
        }
        state.settle(unit.arrived);
        let waited = state.units.front().map_or(0, |first| unit.arrived - first.arrived);
        let is_full = waited > MOST_WAIT_US || state.bytes + unit.bytes > MOST_BYTES;
        if is_full && !state.units.is_empty() {
            state.waits_for_key.get_or_insert(Loss::Behind);
        } else if unit.is_key {
            state.waits_for_key = None;
        }
        match state.waits_for_key {
            Some(Loss::BeforeKeyframe) => state.counts.before_keyframe += 1,
            Some(Loss::Behind) => state.counts.behind += 1,
            None => {
                unit.captured = state.clock.captured(unit.pts, unit.arrived);
                state.bytes += unit.bytes;
                state.units.push_back(unit);
            }
        }
        drop(state);
        self.came.notify_one();
    }

    /// The next frame; `None` where none came within `patience`. `now` tells the monotonic clock.
    pub fn pop(&self, patience: Duration, now: impl Fn() -> i64) -> Option<Unit<P>> {
        let mut state = self.lock();
        state.settle(now());
        if state.opening.is_some() || state.units.is_empty() {
            (state, _) =
                self.came.wait_timeout(state, patience).unwrap_or_else(PoisonError::into_inner);
            state.settle(now());
        }
        if state.opening.is_some() {
            return None;
        }
        let unit = state.units.pop_front()?;
        state.bytes -= unit.bytes;
        Some(unit)
    }

    /// What was received and what was lost of it here, and how often timestamps jumped.
    pub fn counts(&self) -> Received {
        let state = self.lock();
        Received { jumps: state.clock.jumps, ..state.counts }
    }

    /// Nothing more comes, so that there is nothing to wait for.
    pub fn close(&self) {
        self.lock().opening = None;
        self.came.notify_one();
    }
}

impl<P> State<P> {
    /// When the opening is over, what arrived in it gets its time.
    fn settle(&mut self, now: i64) {
        if self.opening.is_some_and(|began| now - began > OPENING_US) {
            self.opening = None;
            for unit in &mut self.units {
                unit.captured = self.clock.captured(unit.pts, unit.arrived);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(millis: i64, is_key: bool) -> Unit<()> {
        let at = millis * 1_000;
        Unit { packet: (), bytes: 1_000, pts: Some(at), arrived: at, captured: 0, is_key }
    }

    fn pop(arrivals: &Arrivals<()>, now_millis: i64) -> Option<i64> {
        let unit = arrivals.pop(Duration::ZERO, || now_millis * 1_000)?;
        Some(unit.captured / 1_000)
    }

    #[test]
    fn frames_before_the_first_keyframe_are_counted_and_left_out() {
        let arrivals = Arrivals::default();
        for n in 0..10 {
            arrivals.push(unit(n * 40, n == 4));
        }
        let received = arrivals.counts();
        assert_eq!((received.received, received.before_keyframe), (10, 4));
        assert_eq!(pop(&arrivals, 1_000), Some(160));
    }

    #[test]
    fn a_decoder_that_is_behind_loses_whole_groups_of_frames() {
        let arrivals = Arrivals::default();
        // A keyframe each second, and nobody takes anything for 3.5 s.
        for n in 0..88 {
            arrivals.push(unit(n * 40, n % 25 == 0));
        }
        let received = arrivals.counts();
        assert_eq!(received.behind, 62);
        let taken: Vec<i64> = std::iter::from_fn(|| pop(&arrivals, 3_500)).collect();
        assert_eq!((taken.len(), taken.last()), (26, Some(&1_000)));
        // What comes next is of no use before the next keyframe.
        for n in 88..102 {
            arrivals.push(unit(n * 40, n % 25 == 0));
        }
        assert_eq!(pop(&arrivals, 4_100), Some(4_000));
        assert_eq!(arrivals.counts().behind, 62 + 12);
    }

    #[test]
    fn a_burst_at_the_beginning_lies_in_the_past() {
        let arrivals = Arrivals::default();
        for n in 0..50 {
            arrivals.push(Unit { arrived: 10_000_000, ..unit(n * 40, n == 0) });
        }
        assert_eq!(pop(&arrivals, 10_100), None);
        let first = pop(&arrivals, 10_400).unwrap();
        assert_eq!(first, 10_000 - 49 * 40);
    }
}
