//! Cutting sound into the windows that are read: from the probabilities of speech alone, so that where
//! a window begins doesn't depend on what was understood before.

use std::ops::Range;

use super::voice::CHUNK;
use crate::time::{Micros, Span, Timestamp};

/// A stretch of sound in which somebody speaks: at most what Whisper reads at a time.
#[derive(Debug, Clone, PartialEq)]
pub struct Window {
    /// When its first sample is.
    pub start: Timestamp,
    /// 16 kHz mono.
    pub samples: Vec<f32>,
    /// Where in it somebody speaks, in order, without the silence around.
    pub speech: Vec<Span>,
    /// Where it was cut from the window before without a pause. Both have the second before and after:
    /// what is said there is found in both, and belongs to one.
    pub seam: Option<Timestamp>,
    /// Where the ear began anew before it, in silence: what was before has no consequence from there on.
    /// None behind a seam.
    pub fresh: Option<Timestamp>,
}

impl Window {
    pub fn span(&self) -> Span {
        Span::new(self.start, self.start + length(self.samples.len()))
    }
}

/// How long so many samples last.
pub(super) fn length(samples: usize) -> Micros {
    Micros(i64::try_from(samples).unwrap_or(i64::MAX).saturating_mul(1_000_000) / 16_000)
}

/// Where windows are cut. All lengths are in chunks of 32 ms.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Speech begins where a chunk is at least so likely to be some, and ends where all of a pause are
    /// less likely than `ends`.
    pub begins: f32,
    pub ends: f32,
    pub pause: usize,
    /// What is shorter is no speech.
    pub least: usize,
    /// Sound that is kept before and after speech.
    pub pad: usize,
    /// A window ends at a pause this long,
    pub long_pause: usize,
    /// and, once it is so long, at one this short.
    pub enough: usize,
    pub short_pause: usize,
    /// No window is longer.
    pub most: usize,
    /// What two windows share where speech goes on without a pause: this before the cut and this after.
    pub shared: usize,
}

impl Default for Rules {
    fn default() -> Self {
        Rules {
            begins: 0.5,
            ends: 0.35,
            pause: 4,
            least: 7,
            pad: 13,
            long_pause: 48,
            enough: 375,
            short_pause: 14,
            most: 900,
            shared: 31,
        }
    }
}

/// Cuts a line of chunks without holes into windows.
#[derive(Debug)]
pub(super) struct Cutter {
    rules: Rules,
    /// When the first chunk that is kept begins.
    start: Timestamp,
    samples: Vec<f32>,
    probabilities: Vec<f32>,
    /// Speech that has ended, by chunks that are kept.
    regions: Vec<Range<usize>>,
    /// Where speech that goes on has begun, and its last likely chunk.
    open: Option<Range<usize>>,
    seam: Option<Timestamp>,
    /// Where this line of chunks began, until the first window has it.
    fresh: Option<Timestamp>,
}

impl Cutter {
    pub(super) fn new(rules: Rules, start: Timestamp) -> Cutter {
        Cutter {
            rules,
            start,
            samples: Vec::new(),
            probabilities: Vec::new(),
            regions: Vec::new(),
            open: None,
            seam: None,
            fresh: Some(start),
        }
    }

    /// When what is kept begins.
    pub(super) fn start(&self) -> Timestamp {
        self.start
    }

    /// When the next chunk begins.
    pub(super) fn end(&self) -> Timestamp {
        self.start + length(self.samples.len())
    }

    /// Whether nobody speaks, and nothing is kept but what may come before speech.
    pub(super) fn is_idle(&self) -> bool {
        self.open.is_none() && self.regions.is_empty() && self.seam.is_none()
    }

    /// Whether there was a window already.
    pub(super) fn has_given(&self) -> bool {
        self.fresh.is_none()
    }

    /// What is kept, and when it begins.
    pub(super) fn into_rest(self) -> (Timestamp, Vec<f32>) {
        (self.start, self.samples)
    }

    /// Takes the next chunk; gives a window where one ends.
    pub(super) fn push(&mut self, chunk: &[f32; CHUNK], probability: f32) -> Option<Window> {
        let at = self.probabilities.len();
        self.samples.extend_from_slice(chunk);
        self.probabilities.push(probability);
        match &mut self.open {
            None if probability >= self.rules.begins => self.open = Some(at..at + 1),
            Some(open) if probability >= self.rules.ends => open.end = at + 1,
            Some(open) if at + 1 - open.end >= self.rules.pause => self.close_region(),
            _ => {}
        }
        if self.open.is_none() && self.regions.is_empty() {
            self.seam = None;
            self.forget_before((at + 1).saturating_sub(self.rules.pad));
            return None;
        }
        let count = at + 1;
        if self.open.is_none() {
            let end = self.regions.last().map_or(0, |last| last.end);
            let enough = count >= self.rules.enough;
            let pause = if enough { self.rules.short_pause } else { self.rules.long_pause };
            let silence = count - end;
            if silence >= pause {
                // Half of a short pause is left for the next window.
                return self.cut_at_pause(end + self.rules.pad.min(silence.div_ceil(2)));
            }
        }
        (count >= self.rules.most).then(|| self.cut_in_speech())
    }

    /// The last window, where somebody was speaking.
    pub(super) fn finish(&mut self) -> Option<Window> {
        self.close_region();
        let end = self.regions.last()?.end + self.rules.pad;
        self.cut_at_pause(end.min(self.probabilities.len()))
    }

    fn close_region(&mut self) {
        // Speech that was cut off from what went before may be short.
        let goes_on = |open: &Range<usize>| self.seam.is_some() && open.start == 0;
        if let Some(open) = self.open.take()
            && (open.len() >= self.rules.least || goes_on(&open))
        {
            self.regions.push(open);
        }
    }

    fn cut_at_pause(&mut self, end: usize) -> Option<Window> {
        let window = self.window(end);
        self.forget_before(end);
        self.regions.clear();
        self.seam = None;
        // What was kept for the start of the next may be most of the pause.
        let pads = self.probabilities.len().saturating_sub(self.rules.pad);
        self.forget_before(pads);
        Some(window)
    }

    /// Cuts where speech is least likely, in the later half.
    fn cut_in_speech(&mut self) -> Window {
        let count = self.probabilities.len();
        let Rules { shared, .. } = self.rules;
        let places = count / 2..count.saturating_sub(shared).max(count / 2 + 1);
        let likely = |at: usize| {
            let around = &self.probabilities[at.saturating_sub(2)..(at + 3).min(count)];
            around.iter().sum::<f32>() / around.len() as f32
        };
        let cut = places.min_by(|&a, &b| likely(a).total_cmp(&likely(b))).unwrap_or(count / 2);
        let window = self.window((cut + shared).min(count));
        let seam = self.start + length(cut * CHUNK);
        self.forget_before(cut.saturating_sub(shared));
        self.seam = Some(seam);
        window
    }

    /// What is kept, up to this chunk.
    fn window(&mut self, end: usize) -> Window {
        let at = |chunk: usize| self.start + length(chunk * CHUNK);
        let speech = self.regions.iter().chain(&self.open);
        let speech = speech.filter(|region| region.start < end);
        Window {
            start: self.start,
            samples: self.samples[..end * CHUNK].to_vec(),
            speech: speech
                .map(|region| Span::new(at(region.start), at(region.end.min(end))))
                .collect(),
            seam: self.seam,
            fresh: self.fresh.take(),
        }
    }

    fn forget_before(&mut self, chunk: usize) {
        let chunk = chunk.min(self.probabilities.len());
        self.samples.drain(..chunk * CHUNK);
        self.probabilities.drain(..chunk);
        self.start = self.start + length(chunk * CHUNK);
        let moved = |region: Range<usize>| {
            region.start.saturating_sub(chunk)..region.end.saturating_sub(chunk)
        };
        self.regions = std::mem::take(&mut self.regions)
            .into_iter()
            .map(moved)
            .filter(|region| !region.is_empty())
            .collect();
        self.open = self.open.take().map(moved);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CHUNK_MICROS: i64 = 32_000;

    /// All windows of these probabilities, each chunk's samples being its number.
    fn cut(probabilities: &[f32]) -> Vec<Window> {
        let mut cutter = Cutter::new(Rules::default(), Timestamp(0));
        let mut windows = Vec::new();
        for (number, &probability) in probabilities.iter().enumerate() {
            windows.extend(cutter.push(&[number as f32; CHUNK], probability));
        }
        windows.extend(cutter.finish());
        windows
    }

    fn runs(runs: &[(usize, f32)]) -> Vec<f32> {
        runs.iter().flat_map(|&(count, value)| std::iter::repeat_n(value, count)).collect()
    }

    #[test]
    fn silence_and_clicks_give_no_window() {
        assert_eq!(cut(&runs(&[(1_000, 0.1), (3, 0.9), (1_000, 0.1)])), []);
        assert_eq!(cut(&[]), []);
    }

    #[test]
    fn a_window_has_the_speech_and_some_sound_around() {
        let windows = cut(&runs(&[(100, 0.0), (50, 0.9), (20, 0.1), (30, 0.9), (200, 0.0)]));
        assert_eq!(windows.len(), 1, "{windows:?}");
        let window = &windows[0];
        assert_eq!(window.start, Timestamp(87 * CHUNK_MICROS));
        assert_eq!(window.samples[0], 87.0);
        assert_eq!(window.samples.len(), (13 + 50 + 20 + 30 + 13) * CHUNK);
        let spans: Vec<_> = window.speech.iter().map(|span| (span.start.0, span.end.0)).collect();
        let at = |chunk: i64| chunk * CHUNK_MICROS;
        assert_eq!(spans, [(at(100), at(150)), (at(170), at(200))]);
    }

    #[test]
    fn a_long_window_ends_at_the_next_pause_and_a_short_one_goes_on() {
        let speech = [(300, 0.9), (20, 0.0), (300, 0.9), (20, 0.0), (300, 0.9), (60, 0.0)];
        let windows = cut(&runs(&speech));
        assert_eq!(windows.len(), 2);
        assert!(windows.iter().all(|window| window.seam.is_none()));
        assert_eq!(windows[0].samples.len(), (300 + 20 + 300 + 7) * CHUNK);
    }

    #[test]
    fn speech_without_a_pause_is_cut_where_it_is_least_likely_and_shared() {
        let windows = cut(&runs(&[(700, 0.9), (5, 0.6), (800, 0.9)]));
        assert_eq!(windows.len(), 2);
        let seam = windows[1].seam.unwrap();
        assert_eq!(seam, Timestamp(702 * CHUNK_MICROS));
        assert_eq!(windows[0].span().end - windows[1].start, Micros(62 * CHUNK_MICROS));
        assert!(windows[0].seam.is_none());
    }

    proptest! {
        #[test]
        fn all_speech_is_in_some_window_and_none_is_too_long(
            parts in prop::collection::vec((1usize..400, 0.0f32..1.0), 1..24),
        ) {
            let probabilities = runs(&parts);
            let rules = Rules::default();
            let windows = cut(&probabilities);
            let chunk = |at: Timestamp| (at.0 / CHUNK_MICROS) as usize;
            for (number, window) in windows.iter().enumerate() {
                prop_assert!(window.samples.len() <= rules.most * CHUNK);
                prop_assert_eq!(window.samples[0] as usize, chunk(window.start));
                prop_assert!(!window.speech.is_empty());
                let inside = |span: &Span| {
                    window.start <= span.start && span.start < span.end && span.end <= window.span().end
                };
                prop_assert!(window.speech.iter().all(inside));
                if number > 0 {
                    let before = windows[number - 1].span();
                    prop_assert!(before.start < window.start);
                    match window.seam {
                        Some(seam) => prop_assert!(window.start <= seam && seam <= before.end),
                        None => prop_assert!(before.end <= window.start),
                    }
                }
            }
            let mut run = 0;
            for (number, &probability) in probabilities.iter().enumerate() {
                run = if probability >= rules.begins { run + 1 } else { 0 };
                if run >= rules.least {
                    let heard = |window: &Window| {
                        let first = chunk(window.start);
                        (first..first + window.samples.len() / CHUNK).contains(&number)
                    };
                    prop_assert!(windows.iter().any(heard), "chunk {} of {:?}", number, parts);
                }
            }
        }
    }
}
