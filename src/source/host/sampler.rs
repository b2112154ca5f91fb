//! Which frame is on display at which target, independent of how frames are decoded.

use std::collections::VecDeque;

use super::gop::tolerance;
use crate::media::{Change, Gap, TrackKind};
use crate::source::protocol::Targets;
use crate::time::{Micros, Span, Timestamp};

/// A frame stays on display until the next one, but no longer than this or its stated length,
/// whichever is longer.
pub const LONGEST_HOLD: Micros = Micros(1_000_000);
/// No stated length is believed beyond this.
const LONGEST_STATED: Micros = Micros(3_600_000_000);

/// When a decoded frame is on display.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shown {
    pub pts: Timestamp,
    /// As the container or the frame rate states it.
    pub duration: Micros,
}

/// What to do with the frame that was held when a new one came.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Decision {
    /// The held frame is on display at this target.
    Serve { target: Timestamp, change: Change },
    /// Nothing is on display at the targets in this span.
    Missing(Span),
}

/// Walks along the targets as frames come in order of time.
#[derive(Debug)]
pub struct Sampler {
    targets: Targets,
    next: u64,
    held: Option<Shown>,
    /// The strongest change since the target before `next`.
    change: Option<Change>,
    served: u64,
    frames: u64,
    /// Keyframes to come, each to be taken for the targets shortly before it.
    keys: VecDeque<Timestamp>,
    /// How long before it.
    tolerance: Micros,
    /// Whether a keyframe after the target before the request has come.
    is_past_start: bool,
}

impl Sampler {
    pub fn new(targets: Targets) -> Self {
        Sampler {
            targets,
            next: targets.first,
            held: None,
            change: None,
            served: 0,
            frames: 0,
            keys: VecDeque::new(),
            tolerance: tolerance(&targets),
            is_past_start: false,
        }
    }

    /// A frame will come at `key` that is easier to have than those before it: it serves the
    /// targets less than half a step before it.
    pub fn expect_key(&mut self, key: Timestamp) {
        if self.keys.back().is_none_or(|last| key > *last) {
            self.keys.push_back(key);
        }
    }

    /// Where the frame that is held was expected, it serves the targets that waited for it.
    pub fn reach_key(&mut self, decide: &mut impl FnMut(Decision)) {
        let Some(held) = self.held.filter(|held| self.keys.front() == Some(&held.pts)) else {
            return;
        };
        self.keys.pop_front();
        if !self.is_past_start && held.pts > self.start() {
            self.is_past_start = true;
            if held.pts - self.start() < self.tolerance {
                // The target before the request is served here, and has the changes up to here.
                self.change = None;
            }
        }
        let end = self.targets.first_at_or_after(held.pts).min(self.targets.end());
        while self.next < end {
            let target = self.next_target();
            let change = self.take_change(held.pts);
            decide(Decision::Serve { target, change });
            self.next += 1;
            self.served += 1;
        }
    }

    /// Where decoding has to begin: the target before the first, so that the first one's change is
    /// the same whether or not the targets before it were asked for too.
    pub fn start(&self) -> Timestamp {
        match self.targets.first {
            0 => Timestamp(i64::MIN),
            first => self.targets.at(first - 1),
        }
    }

    /// Whether every target has been decided.
    pub fn is_done(&self) -> bool {
        self.next >= self.targets.end()
    }

    /// The first target that is not decided yet.
    pub fn next_target(&self) -> Timestamp {
        self.targets.at(self.next)
    }

    pub fn held(&self) -> Option<Shown> {
        self.held
    }

    /// Whether a frame at `pts` goes on from the one before.
    pub fn is_in_order(&self, pts: Timestamp) -> bool {
        self.held.is_none_or(|held| pts > held.pts)
    }

    /// The held frame is on display until then.
    pub fn extend(&mut self, until: Timestamp) {
        if let Some(held) = &mut self.held {
            held.duration = held.duration.max(until - held.pts);
        }
    }

    /// Decides all targets before `frame`, which is then the one on display. `strength` is its
    /// change from the frame before. The decisions speak of the frame that was held before.
    pub fn push(&mut self, frame: Shown, strength: Option<f32>, decide: &mut impl FnMut(Decision)) {
        while self.keys.front().is_some_and(|key| *key < frame.pts) {
            // It could not be decoded.
            self.keys.pop_front();
        }
        self.pass(frame.pts, decide);
        self.held = Some(frame);
        self.frames += 1;
        // Changes before the target that precedes the request are that target's.
        if frame.pts > self.start()
            && let Some(strength) = strength
            && self.change.is_none_or(|change| strength > change.strength)
        {
            self.change = Some(Change { strength, at: frame.pts });
        }
    }

    /// Decides all targets before `until`: up to there, no other frame is on display than the one that is held.
    pub fn pass(&mut self, until: Timestamp, decide: &mut impl FnMut(Decision)) {
        let hold = self.held.map(|held| {
            let stated = held.duration.min(LONGEST_STATED);
            held.pts + stated.max(LONGEST_HOLD)
        });
        self.decide_until(until, hold, decide);
    }

    /// Decides the targets that the last frame is on display at, which is until `last`; what
    /// follows is not missing but behind the end. `end` is where the container says the picture
    /// ends, where that is later.
    pub fn finish(
        &mut self,
        last: Timestamp,
        end: Option<Timestamp>,
        decide: &mut impl FnMut(Decision),
    ) {
        self.keys.clear();
        let Some(held) = self.held else {
            self.miss_until(end, decide);
            return;
        };
        // A source that is over before its first target still has something to show there.
        if self.targets.first == 0 && self.served == 0 && !self.is_done() {
            let target = self.next_target();
            let change = self.take_change(held.pts);
            decide(Decision::Serve { target, change });
            self.next += 1;
            self.served += 1;
            if self.frames == 1 {
                return;
            }
        }
        self.decide_until(last, Some(last), decide);
        self.miss_until(end, decide);
    }

    fn miss_until(&mut self, end: Option<Timestamp>, decide: &mut impl FnMut(Decision)) {
        if let Some(end) = end {
            self.decide_until(end, None, decide);
        }
    }

    /// Decides the targets before `until`; the held frame serves those before `hold`.
    fn decide_until(
        &mut self,
        until: Timestamp,
        hold: Option<Timestamp>,
        decide: &mut impl FnMut(Decision),
    ) {
        let near_key = self.keys.front().map(|key| *key - self.tolerance + Micros(1));
        let until = near_key.map_or(until, |near| near.min(until));
        let end = self.targets.first_at_or_after(until).min(self.targets.end());
        while self.next < end {
            let target = self.next_target();
            if let Some(held) = self.held
                && held.pts <= target
                && hold.is_some_and(|hold| target < hold)
            {
                let change = self.take_change(held.pts);
                decide(Decision::Serve { target, change });
                self.next += 1;
                self.served += 1;
            } else {
                // Targets lie in order, so once one is beyond the held frame, all are.
                decide(Decision::Missing(Span::new(target, self.targets.at(end))));
                self.next = end;
                self.change = None;
            }
        }
    }

    fn take_change(&mut self, pts: Timestamp) -> Change {
        self.change.take().unwrap_or(Change { strength: 0.0, at: pts })
    }
}

/// Joins spans without a picture that lie end to end, so that a gap is reported once.
#[derive(Debug, Default)]
pub struct Gaps {
    open: Option<Gap>,
}

impl Gaps {
    /// Adds a span; returns a gap that it does not continue.
    pub fn add(&mut self, span: Span, reason: &str) -> Option<Gap> {
        if let Some(open) = &mut self.open
            && open.span.end == span.start
        {
            open.span.end = span.end;
            return None;
        }
        self.open.replace(Gap { span, track: TrackKind::Picture, reason: reason.to_owned() })
    }

    /// Where the gap begins that may still grow.
    pub fn start(&self) -> Option<Timestamp> {
        self.open.as_ref().map(|gap| gap.span.start)
    }

    /// The gap before a frame or the end.
    pub fn take(&mut self) -> Option<Gap> {
        self.open.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown(millis: i64, duration: i64) -> Shown {
        Shown { pts: Timestamp::from_millis(millis), duration: Micros::from_millis(duration) }
    }

    fn every_half_second(count: Option<u64>) -> Targets {
        Targets { count, ..Targets::every(Micros::from_millis(500), Micros::ZERO) }
    }

    /// Target and frame in milliseconds; a missing span as its ends.
    fn run(targets: Targets, frames: &[Shown], end: Option<Timestamp>) -> Vec<(i64, Option<i64>)> {
        let mut sampler = Sampler::new(targets);
        let mut decisions = Vec::new();
        let mut note = |held: Option<Shown>, decision| match decision {
            Decision::Serve { target, .. } => decisions
                .push((target.0 / 1000, Some(held.expect("served by a frame").pts.0 / 1000))),
            Decision::Missing(span) => decisions.push((span.start.0 / 1000, None)),
        };
        for frame in frames {
            let held = sampler.held();
            sampler.push(*frame, None, &mut |decision| note(held, decision));
        }
        let held = sampler.held();
        let last = held.map_or(Timestamp::ZERO, |held| held.pts + held.duration);
        sampler.finish(last, end, &mut |decision| note(held, decision));
        decisions
    }

    #[test]
    fn a_frame_serves_the_targets_until_the_next() {
        let frames = [shown(0, 400), shown(400, 400), shown(800, 400)];
        assert_eq!(
            run(every_half_second(None), &frames, None),
            [(0, Some(0)), (500, Some(400)), (1000, Some(800))]
        );
    }

    #[test]
    fn a_pause_is_missing_after_one_second() {
        let frames = [shown(0, 40), shown(3000, 40)];
        assert_eq!(
            run(every_half_second(None), &frames, None),
            [(0, Some(0)), (500, Some(0)), (1000, None), (3000, Some(3000))]
        );
    }

    #[test]
    fn a_stated_length_holds_longer() {
        let frames = [shown(0, 2000), shown(2000, 40)];
        assert_eq!(
            run(every_half_second(None), &frames, None),
            [0, 500, 1000, 1500]
                .map(|at| (at, Some(0)))
                .into_iter()
                .chain([(2000, Some(2000))])
                .collect::<Vec<_>>()
        );
    }

    #[test]
    fn a_repeated_frame_stays_on_display() {
        let mut sampler = Sampler::new(every_half_second(Some(6)));
        sampler.push(shown(0, 40), None, &mut |_| {});
        sampler.extend(Timestamp::from_millis(2_100));
        let mut decisions = Vec::new();
        sampler.push(shown(2_600, 40), None, &mut |decision| decisions.push(decision));
        let served = decisions.iter().filter(|d| matches!(d, Decision::Serve { .. })).count();
        assert_eq!((served, decisions.len()), (5, 6));
    }

    #[test]
    fn one_frame_stands_for_the_first_target_alone() {
        let targets = Targets { offset: Micros::from_millis(375), ..every_half_second(None) };
        assert_eq!(run(targets, &[shown(0, 40)], None), [(375, Some(0))]);
        assert_eq!(run(targets, &[shown(7000, 40)], None), [(375, None), (7375, Some(7000))]);
    }

    #[test]
    fn a_picture_that_ends_early_is_missing_to_the_stated_end() {
        let end = Some(Timestamp::from_millis(2000));
        assert_eq!(
            run(every_half_second(None), &[shown(0, 40), shown(40, 40)], end),
            [(0, Some(0)), (500, None)]
        );
    }

    proptest! {
        #[test]
        fn parts_decide_what_the_whole_decides(
            steps in prop::collection::vec(1i64..1500, 1..60), cut in 1u64..40,
        ) {
            let mut at = 0;
            let frames: Vec<Shown> =
                steps.iter().map(|step| { at += step; shown(at, 40) }).collect();
            let grid = every_half_second(Some(60));
            let whole = run(grid, &frames, None);
            let mut parts = run(grid.part(0, Some(cut)), &frames, None);
            parts.extend(run(grid.part(cut, Some(60 - cut)), &frames, None));
            let frames_of = |decisions: &[(i64, Option<i64>)]| {
                decisions.iter().filter(|(_, frame)| frame.is_some()).copied().collect::<Vec<_>>()
            };
            // With one part before the first frame, that part's rule for single frames applies; and it
            // applies to the whole where the picture comes and goes between two targets.
            prop_assume!(frames[0].pts.0 / 500_000 < cut as i64);
            let end = frames.last().map_or(0, |last| (last.pts + last.duration).0);
            prop_assume!((frames[0].pts.0 - 1).div_euclid(500_000) < (end - 1) / 500_000);
            prop_assert_eq!(frames_of(&whole), frames_of(&parts));
        }
    }
}
