//! Frames to clips, on a grid from the source's zero that never moves.

use super::thumbnail::thumbnail;
use crate::error::{Error, Result};
use crate::graph::{Event, Fold, Item};
use crate::media::{Clip, ClipHead, Frame, Gap, TrackKind, add_reason};
use crate::time::{Micros, Span, Timestamp};

/// What a clip is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClipRules {
    pub length: Micros,
    /// Frames sampled from each clip, evenly: each in the middle of its share.
    pub frames: u16,
    /// The strength of [`Change`](crate::media::Change) from which a new shot is taken to begin.
    pub shot_change: f32,
}

impl ClipRules {
    /// The place on the grid that `at` falls into.
    pub fn place(&self, at: Timestamp) -> i64 {
        at.0.div_euclid(self.length.0)
    }

    /// Where `place` begins.
    pub fn start(&self, place: i64) -> Timestamp {
        Timestamp(place.saturating_mul(self.length.0))
    }

    pub fn span(&self, place: i64) -> Span {
        Span::new(self.start(place), self.start(place.saturating_add(1)))
    }
}

/// Collects the frames of each grid place of one stream into a clip, with a thumbnail. A place with no frame is a
/// gap; neighbouring ones make one gap.
#[derive(Debug)]
pub struct ClipGrid {
    rules: ClipRules,
    /// The first place that has not been closed.
    place: i64,
    frames: Vec<Frame>,
    /// Why targets at or after `place` have no frame.
    missing: Vec<Gap>,
    /// Empty places before `place` that are not told yet.
    empty: Option<Gap>,
}

impl ClipGrid {
    /// A grid for a stream that begins at `start`, which is rounded down to a grid place.
    pub fn new(rules: ClipRules, start: Timestamp) -> Self {
        ClipGrid {
            rules,
            place: rules.place(start),
            frames: Vec::new(),
            missing: Vec::new(),
            empty: None,
        }
    }

    /// Closes every place before `place`.
    fn close_before(&mut self, place: i64, emit: &mut dyn FnMut(Event<Clip>)) -> Result<()> {
        if place <= self.place {
            return Ok(());
        }
        if !self.frames.is_empty() {
            emit_gap(&mut self.empty, emit);
            let clip = self.clip()?;
            emit(Event::Item(clip));
            self.place += 1;
        }
        if self.place < place {
            let span = Span::new(self.rules.start(self.place), self.rules.start(place));
            self.note_empty(span);
            self.place = place;
        }
        let start = self.rules.start(self.place);
        self.missing.retain(|gap| gap.span.end > start);
        emit(Event::Watermark(start));
        Ok(())
    }

    fn clip(&mut self) -> Result<Clip> {
        let span = self.rules.span(self.place);
        let frames = std::mem::take(&mut self.frames);
        let sharpest = frames
            .iter()
            .map(|frame| frame.change)
            .filter(|change| change.strength >= self.rules.shot_change)
            .max_by(|a, b| a.strength.total_cmp(&b.strength));
        let head = ClipHead {
            span,
            raw_pts: frames.first().map_or(0, |frame| frame.raw_pts),
            frames: u16::try_from(frames.len()).unwrap_or(u16::MAX),
            // A cut after the previous clip's last frame is seen only by this clip's first.
            shot_start: sharpest.map(|change| change.at.max(span.start)),
        };
        // The frame in the middle; of two, the later, which is of the shot that begins between them.
        let middle =
            frames.get(frames.len() / 2).ok_or_else(|| Error::internal("an empty clip"))?;
        let thumbnail = thumbnail(middle)?;
        Ok(Clip { head, frames, thumbnail })
    }

    fn note_empty(&mut self, span: Span) {
        let told = self.empty.take();
        let start = told.as_ref().map_or(span.start, |gap| gap.span.start);
        let missing = self.missing.iter().filter(|gap| gap.span.overlaps(span));
        let mut reasons = Vec::new();
        for gap in told.iter().chain(missing) {
            add_reason(&mut reasons, &gap.reason);
        }
        if reasons.is_empty() {
            reasons.push("no picture".to_owned());
        }
        let reason = reasons.join("; ");
        let span = Span::new(start, span.end);
        self.empty = Some(Gap { span, track: TrackKind::Picture, reason });
    }
}

fn emit_gap(empty: &mut Option<Gap>, emit: &mut dyn FnMut(Event<Clip>)) {
    if let Some(gap) = empty.take() {
        emit(Event::Gap(gap));
    }
}

impl Fold for ClipGrid {
    type In = Frame;
    type Out = Clip;
    const NAME: &'static str = "clip";

    fn on(&mut self, event: Event<Frame>, emit: &mut dyn FnMut(Event<Clip>)) -> Result<()> {
        match event {
            Event::Item(frame) => {
                let place = self.rules.place(frame.target);
                if place < self.place {
                    return Err(
                        Error::internal("a frame came behind its watermark").at(frame.target)
                    );
                }
                self.close_before(place, emit)?;
                self.frames.push(frame);
            }
            Event::Watermark(at) => self.close_before(self.rules.place(at), emit)?,
            Event::Gap(gap) => self.missing.push(gap),
            Event::End(_) => {
                // The gap that the stream ends with may reach beyond its last frame.
                let missing = self.missing.iter().map(|gap| gap.span.end).max();
                let last_frame = if self.frames.is_empty() { self.place } else { self.place + 1 };
                let end = missing.map_or(self.place, |end| {
                    // Half a place of nothing at the very end is the end, and no gap.
                    self.rules.place(end)
                });
                self.close_before(end.max(last_frame), emit)?;
                emit_gap(&mut self.empty, emit);
            }
        }
        Ok(())
    }
}

impl Item for Frame {
    fn start(&self) -> Timestamp {
        self.target
    }

    fn bytes(&self) -> usize {
        self.rgb.len()
    }
}

impl Item for Clip {
    fn start(&self) -> Timestamp {
        self.head.span.start
    }

    fn bytes(&self) -> usize {
        self.frames.iter().map(Item::bytes).sum::<usize>() + self.thumbnail.as_bytes().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::conformance::{Outcome, check_fold};
    use crate::media::Change;
    use proptest::prelude::*;
    use std::sync::Arc;

    const RULES: ClipRules =
        ClipRules { length: Micros::from_millis(1_500), frames: 2, shot_change: 0.5 };

    fn frame(target_millis: i64, change: f32) -> Event<Frame> {
        let target = Timestamp::from_millis(target_millis);
        Event::Item(Frame {
            target,
            pts: target,
            raw_pts: target_millis,
            width_px: 1,
            height_px: 1,
            aspect_ratio: 1.0,
            rgb: Arc::from([0u8; 3]),
            change: Change { strength: change, at: target - Micros::from_millis(400) },
        })
    }

    fn gap(start_millis: i64, end_millis: i64, reason: &str) -> Event<Frame> {
        let (start, end) =
            (Timestamp::from_millis(start_millis), Timestamp::from_millis(end_millis));
        let reason = reason.to_owned();
        Event::Gap(Gap { span: Span::new(start, end), track: TrackKind::Picture, reason })
    }

    /// What the grid makes of `events`, which an end follows.
    fn clips(start: i64, events: impl Fn() -> Vec<Event<Frame>>) -> Outcome<Clip> {
        let script = || {
            let mut script = events();
            script.push(Event::End(Ok(())));
            vec![script]
        };
        let same = |a: &Clip, b: &Clip| a.head == b.head && a.frames.len() == b.frames.len();
        let make = || ClipGrid::new(RULES, Timestamp::from_millis(start));
        check_fold(make, script, same).remove(0)
    }

    fn gaps(start: i64, events: Vec<Event<Frame>>) -> Vec<(i64, i64, String)> {
        let mut gaps = Vec::new();
        let mut grid = ClipGrid::new(RULES, Timestamp::from_millis(start));
        for event in events.into_iter().chain([Event::End(Ok(()))]) {
            let mut emit = |event| {
                if let Event::Gap(gap) = event {
                    gaps.push((gap.span.start.0 / 1_000, gap.span.end.0 / 1_000, gap.reason));
                }
            };
            grid.on(event, &mut emit).unwrap();
        }
        gaps
    }

    #[test]
    fn frames_fall_into_the_clip_of_their_target() {
        let events = || vec![frame(375, 0.0), frame(1_125, 0.0), frame(1_875, 0.0)];
        let heads: Vec<_> = clips(0, events).items.iter().map(|clip| clip.head).collect();
        assert_eq!(heads.len(), 2);
        assert_eq!(heads[0].span, Span::new(Timestamp(0), Timestamp(1_500_000)));
        assert_eq!((heads[0].frames, heads[1].frames), (2, 1));
        assert_eq!(heads[1].raw_pts, 1_875);
    }

    #[test]
    fn places_without_a_frame_are_one_gap_with_its_reasons() {
        let events = || {
            vec![
                frame(375, 0.0),
                gap(1_200, 4_600, "undecodable"),
                gap(4_600, 5_000, "no frame for 4 s"),
                frame(6_375, 0.0),
            ]
        };
        assert_eq!(clips(0, events).gaps, 1);
        assert_eq!(gaps(0, events()), [(1_500, 6_000, "undecodable; no frame for 4 s".to_owned())]);
    }

    #[test]
    fn a_gap_that_is_told_bit_by_bit_is_one() {
        let watermark = |millis| Event::Watermark(Timestamp::from_millis(millis));
        let mut events = vec![frame(375, 0.0)];
        for n in 0..40 {
            let (start, end) = (1_125 + n * 750, 1_875 + n * 750);
            let reason = if n == 20 { "the disk is full; behind" } else { "behind" };
            events.extend([gap(start, end, reason), watermark(end)]);
        }
        events.push(frame(31_125, 0.0));
        let told = [(1_500, 30_000, "the disk is full; behind".to_owned())];
        assert_eq!(gaps(0, events), told);
    }

    #[test]
    fn a_stream_that_breaks_off_ends_with_a_gap() {
        let events = vec![frame(375, 0.0), gap(1_000, 120_000, "the file is cut off")];
        assert_eq!(gaps(0, events), [(1_500, 120_000, "the file is cut off".to_owned())]);
        assert_eq!(gaps(0, vec![frame(375, 0.0), gap(600, 1_500, "end")]), []);
    }

    #[test]
    fn a_chunk_that_starts_late_has_no_gap_before_it() {
        let events = || vec![frame(120_375, 0.0)];
        let outcome = clips(120_000, events);
        assert_eq!((outcome.items.len(), outcome.gaps), (1, 0));
    }

    #[test]
    fn the_sharpest_change_above_the_threshold_starts_a_shot() {
        let events = || vec![frame(375, 0.4), frame(1_125, 0.7), frame(1_875, 0.9)];
        let shots: Vec<_> = clips(0, events).items.iter().map(|c| c.head.shot_start).collect();
        // The second clip's change lies before it, so the shot starts where the clip does.
        assert_eq!(shots, [Some(Timestamp(725_000)), Some(Timestamp(1_500_000))]);
    }

    #[test]
    fn a_watermark_hours_ahead_costs_nothing() {
        let mut events = vec![frame(375, 0.0), Event::Watermark(Timestamp::MAX)];
        events.truncate(2);
        assert_eq!(gaps(0, events).len(), 1);
    }

    proptest! {
        #[test]
        fn every_frame_is_in_one_clip_and_clips_and_gaps_fill_the_grid(
            steps in prop::collection::vec(1i64..6, 1..40),
        ) {
            let targets: Vec<i64> = steps
                .iter()
                .scan(375 - 750, |at, step| {
                    *at += step * 750;
                    Some(*at)
                })
                .collect();
            let events = || targets.iter().map(|&at| frame(at, 0.0)).collect();
            let outcome = clips(0, events);
            let frames: usize = outcome.items.iter().map(|clip| clip.frames.len()).sum();
            prop_assert_eq!(frames, targets.len());
            let empty: i64 = gaps(0, events()).iter().map(|(start, end, _)| end - start).sum();
            let last = targets.last().unwrap() / 1_500;
            prop_assert_eq!(outcome.items.len() as i64 + empty / 1_500, last + 1);
        }
    }
}
