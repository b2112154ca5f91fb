//! What a live stream has brought and the decoder has not taken yet. A decoder that is behind loses
//! whole frames here, before any work was spent on them, and each is counted.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::clock::MediaClock;
use super::recording::Tape;
use crate::source::protocol::{BEHIND, Received};

/// Nothing waits longer than this for the decoder.
const MOST_WAIT_US: i64 = 1_000_000;
const MOST_BYTES: usize = 32 << 20;
/// So long without a keyframe is worth telling; most streams are entered between two.
const LONG_WITHOUT_KEY_US: i64 = 2_000_000;
/// Servers send what they have kept of the last seconds at once. So long after the first frame it is
/// known which of them are late.
pub const OPENING_US: i64 = 300_000;

/// A coded frame.
#[derive(Clone)]
pub struct Unit<P> {
    pub packet: P,
    pub bytes: usize,
    /// On the stream's own clock, in microseconds.
    pub pts: Option<i64>,
    /// When it was captured by the sender's own clock, since 1970.
    pub sent: Option<i64>,
    /// On the monotonic clock, as below.
    pub arrived: i64,
    /// When it was captured; set on the way through the queue.
    pub captured: i64,
    pub is_key: bool,
    /// Why nothing is seen before it, where something was left out; set on the way as well.
    pub after: Option<Loss>,
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
    origin: i64,
    /// The greatest timestamp that came, and when that frame was captured.
    newest: Option<(i64, i64)>,
    /// When the first frame arrived, and the same until the opening is over.
    began: Option<i64>,
    opening: Option<i64>,
    /// What comes is of no use before the next keyframe, and why.
    waits_for_key: Option<Loss>,
    /// When what was lost last was captured, where the decoder was behind and nothing was taken since.
    lost_until: Option<i64>,
    /// All that arrived, where the stream is recorded.
    tape: Option<Tape<P>>,
    counts: Received,
    is_closed: bool,
}

/// Why frames are not seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    BeforeKeyframe,
    Behind,
    /// Their timestamps jumped.
    Jumped,
}

impl Loss {
    pub fn reason(self) -> &'static str {
        match self {
            Loss::BeforeKeyframe => "no keyframe came",
            Loss::Behind => BEHIND,
            Loss::Jumped => "the stream's timestamps jumped",
        }
    }
}

impl<P: Clone> Arrivals<P> {
    /// `zero_us`: where 1970 is on the monotonic clock.
    pub fn new(zero_us: i64, record: bool) -> Self {
        let state = State {
            units: VecDeque::new(),
            bytes: 0,
            clock: MediaClock::new(zero_us),
            origin: 0,
            newest: None,
            began: None,
            opening: None,
            waits_for_key: Some(Loss::BeforeKeyframe),
            lost_until: None,
            tape: record.then(Tape::default),
            counts: Received::default(),
            is_closed: false,
        };
        Arrivals { state: Mutex::new(state), came: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State<P>> {
        // Every change below is complete before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what has arrived, or counts it as lost.
    pub fn push(&self, mut unit: Unit<P>) {
        let mut state = self.lock();
        if state.is_closed {
            return;
        }
        state.counts.received += 1;
        let jumps = state.clock.jumps;
        state.clock.observe(unit.pts, unit.arrived, unit.sent);
        let began = state.began.unwrap_or(unit.arrived);
        if state.began.is_none() {
            (state.began, state.opening) = (Some(began), Some(began));
        }
        state.settle(unit.arrived);
        let waited = state.units.front().map_or(0, |first| unit.arrived - first.arrived);
        let is_full = waited > MOST_WAIT_US || state.bytes + unit.bytes > MOST_BYTES;
        if is_full && !state.units.is_empty() {
            state.waits_for_key.get_or_insert(Loss::Behind);
        } else if unit.is_key {
            unit.after = state.waits_for_key.take().filter(|loss| {
                *loss != Loss::BeforeKeyframe || unit.arrived - began > LONG_WITHOUT_KEY_US
            });
        }
        if state.clock.jumps > jumps {
            unit.after = unit.after.or(Some(Loss::Jumped));
        }
        unit.captured = state.clock.captured(unit.pts, unit.arrived);
        state.newest = state.newest.filter(|_| state.clock.jumps == jumps);
        state.go_on(&mut unit);
        if let Some(tape) = &mut state.tape {
            tape.push(&unit);
        }
        match state.waits_for_key {
            Some(Loss::BeforeKeyframe) => state.counts.before_keyframe += 1,
            Some(_) => {
                state.counts.behind += 1;
                state.lost_until = Some(unit.captured);
            }
            None => {
                state.lost_until = None;
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

    /// Up to when all was popped or is lost, while what comes is lost since the decoder was behind.
    pub fn lost_until(&self) -> Option<i64> {
        let state = self.lock();
        let is_passed = state.units.is_empty() && state.opening.is_none();
        state.lost_until.filter(|_| is_passed)
    }

    /// How far the clock that is believed is ahead of what arrivals say.
    pub fn ahead(&self) -> i64 {
        let state = self.lock();
        if state.opening.is_some() { 0 } else { state.clock.ahead() }
    }

    /// Whether it is known when frames are captured, and with that, what comes beside them.
    pub fn has_times(&self) -> bool {
        let state = self.lock();
        state.began.is_some() && state.opening.is_none()
    }

    /// What timestamps of frames are at where playing begins.
    pub fn begins_at(&self, origin: i64) {
        self.lock().origin = origin;
    }

    /// When something beside the frames was captured that is played at `played`, from the beginning of all, and by
    /// its own arrivals was at `captured`: as its sender has put it beside them, unless that is further from its arrivals
    /// than `most_apart`.
    pub fn beside(&self, played: Option<i64>, captured: i64, most_apart: i64) -> i64 {
        let state = self.lock();
        let pts = played.map(|at| at.saturating_add(state.origin));
        let by_arrival = captured.saturating_add(state.clock.ahead());
        let by_frames = state.clock.captured(pts, by_arrival);
        let apart = by_frames.saturating_sub(by_arrival);
        if (-most_apart..=most_apart).contains(&apart) { by_frames } else { by_arrival }
    }

    /// What arrived to be recorded, once it has its times, and how much of that was left out.
    pub fn take_tape(&self) -> (VecDeque<Unit<P>>, u64) {
        let mut state = self.lock();
        let has_times = state.opening.is_none();
        match &mut state.tape {
            Some(tape) if has_times => tape.take(),
            _ => (VecDeque::new(), 0),
        }
    }

    /// What was received and what was lost of it here, and how often timestamps jumped.
    pub fn counts(&self) -> Received {
        let state = self.lock();
        let sender = state.clock.sender();
        Received {
            jumps: state.clock.jumps,
            sender_ahead_us: sender.map(|(ahead, _)| ahead),
            is_sender_time: sender.is_some_and(|(_, is_believed)| is_believed),
            ..state.counts
        }
    }

    /// Nothing more is taken, so that there is nothing to wait for; what is there can still be popped.
    pub fn close(&self) {
        let mut state = self.lock();
        state.is_closed = true;
        state.end_opening();
        drop(state);
        self.came.notify_one();
    }
}

impl<P> State<P> {
    /// When the opening is over, what arrived in it gets its time.
    fn settle(&mut self, now: i64) {
        if self.opening.is_some_and(|began| now - began > OPENING_US) {
            self.end_opening();
        }
    }

    /// No frame was captured before those that are shown before it. Of those that come in a burst after a pause, GStreamer
    /// leaves the timestamps of many out, and so each has the time of its arrival; or they have the one of the frame before,
    /// while media time goes from one clock to the other.
    fn go_on(&mut self, unit: &mut Unit<P>) {
        let Some((newest, captured)) = self.newest else {
            self.newest = unit.pts.map(|pts| (pts, unit.captured));
            return;
        };
        let pts = unit.pts.unwrap_or(newest);
        if pts >= newest {
            unit.captured = unit.captured.max(captured);
            self.newest = Some((pts, unit.captured));
        }
    }

    fn end_opening(&mut self) {
        if self.opening.take().is_some() {
            self.clock.settle();
            let taped = self.tape.iter_mut().flat_map(|tape| &mut tape.units);
            for unit in self.units.iter_mut().chain(taped) {
                unit.captured = self.clock.captured(unit.pts, unit.arrived);
            }
            self.newest = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(millis: i64, is_key: bool) -> Unit<()> {
        let at = millis * 1_000;
        Unit {
            packet: (),
            bytes: 1_000,
            pts: Some(at),
            sent: None,
            arrived: at,
            captured: 0,
            is_key,
            after: None,
        }
    }

    fn pop(arrivals: &Arrivals<()>, now_millis: i64) -> Option<i64> {
        let unit = arrivals.pop(Duration::ZERO, || now_millis * 1_000)?;
        Some(unit.captured / 1_000)
    }

    #[test]
    fn frames_of_one_timestamp_or_none_do_not_go_back_where_the_senders_clock_is_believed() {
        let arrivals = Arrivals::new(0, false);
        for n in 0..20 {
            let mut unit = unit(n * 40, true);
            // Captured 300 ms before, as is known from then on.
            unit.sent = (n >= 10).then_some(unit.arrived - 300_000);
            unit.pts = match n {
                13 | 14 => Some(12 * 40_000),
                15 | 16 => None,
                _ => unit.pts,
            };
            arrivals.push(unit);
        }
        let times: Vec<i64> = std::iter::from_fn(|| pop(&arrivals, 1_000)).collect();
        assert!(times.len() == 20 && times.is_sorted(), "{times:?}");
        assert!(times[19] < 19 * 40 - 30, "{times:?}");
    }

    #[test]
    fn what_is_there_at_the_end_can_be_popped_and_nothing_comes_after() {
        let arrivals = Arrivals::new(0, false);
        arrivals.push(unit(0, true));
        arrivals.push(unit(40, false));
        arrivals.close();
        arrivals.push(unit(80, false));
        assert_eq!(arrivals.counts().received, 2);
        assert_eq!(
            [pop(&arrivals, 41), pop(&arrivals, 41), pop(&arrivals, 41)].map(|at| at.is_some()),
            [true, true, false]
        );
    }

    #[test]
    fn frames_before_the_first_keyframe_are_counted_and_left_out() {
        let arrivals = Arrivals::new(0, false);
        for n in 0..10 {
            arrivals.push(unit(n * 40, n == 4));
        }
        let received = arrivals.counts();
        assert_eq!((received.received, received.before_keyframe), (10, 4));
        assert_eq!(pop(&arrivals, 1_000), Some(160));
    }

    #[test]
    fn a_decoder_that_is_behind_loses_whole_groups_of_frames() {
        let arrivals = Arrivals::new(0, false);
        // A keyframe each second, and nobody takes anything for 3.5 s.
        for n in 0..88 {
            arrivals.push(unit(n * 40, n % 25 == 0));
        }
        let received = arrivals.counts();
        assert_eq!(received.behind, 62);
        assert_eq!(arrivals.lost_until(), None);
        let taken: Vec<i64> = std::iter::from_fn(|| pop(&arrivals, 3_500)).collect();
        assert_eq!((taken.len(), taken.last()), (26, Some(&1_000)));
        assert_eq!(arrivals.lost_until(), Some(87 * 40_000));
        // What comes next is of no use before the next keyframe.
        for n in 88..102 {
            arrivals.push(unit(n * 40, n % 25 == 0));
            let lost_until = (n < 100).then_some(n * 40_000);
            assert_eq!(arrivals.lost_until(), lost_until);
        }
        assert_eq!(pop(&arrivals, 4_100), Some(4_000));
        assert_eq!(arrivals.counts().behind, 62 + 12);
    }

    #[test]
    fn sound_is_beside_the_frames_with_which_it_is_played_where_that_may_be() {
        let arrivals = Arrivals::new(0, false);
        arrivals.begins_at(80_000);
        // Each arrives 10 ms after its time.
        for n in 0..25 {
            arrivals.push(Unit { pts: Some(n * 40_000 + 80_000), ..unit(n * 40 + 10, n == 0) });
        }
        arrivals.close();
        assert_eq!(pop(&arrivals, 1_000), Some(10));
        assert_eq!(arrivals.beside(Some(200_000), 290_000, 500_000), 210_000);
        assert_eq!(arrivals.beside(Some(200_000), 910_000, 500_000), 910_000);
        assert_eq!(arrivals.beside(Some(200_000), 910_000, 5_000_000), 210_000);
        // Its timestamps are of another clock, or there are none.
        assert_eq!(arrivals.beside(Some(9_000_000), 290_000, 5_000_000), 290_000);
        assert_eq!(arrivals.beside(None, 290_000, 5_000_000), 290_000);
    }

    #[test]
    fn a_burst_at_the_beginning_lies_in_the_past() {
        let arrivals = Arrivals::new(0, false);
        for n in 0..50 {
            arrivals.push(Unit { arrived: 10_000_000, ..unit(n * 40, n == 0) });
        }
        assert_eq!(pop(&arrivals, 10_100), None);
        let first = pop(&arrivals, 10_400).unwrap();
        assert_eq!(first, 10_000 - 49 * 40);
    }
}
