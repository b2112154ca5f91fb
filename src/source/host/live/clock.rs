//! From a stream's own timestamps to media time.
//!
//! A frame was captured at some instant, and arrives after a delay that differs from frame to frame.
//! The least delay of late is taken for no delay at all: media time is the stream's timestamp plus
//! the least of (arrival - timestamp) over the last one to two minutes, so that frames keep their
//! distances, and a camera whose clock runs a little slow or fast is followed.

/// How long the least delay is remembered, at least.
const WINDOW_US: i64 = 60_000_000;
/// A frame that arrives so long before its time, or after it, has a timestamp that jumped.
const MOST_EARLY_US: i64 = 1_000_000;
const MOST_LATE_US: i64 = 10_000_000;
/// Timestamps go back by no more than this where frames are sent in order of decoding.
const MOST_REORDER_US: i64 = 1_500_000;
/// So many frames in a row with one timestamp have none.
const MOST_EQUAL: u32 = 3;

/// Follows one stream. All times are microseconds; arrivals are on the monotonic clock.
#[derive(Debug, Default)]
pub struct MediaClock {
    /// The least of (arrival - timestamp) in this window, and in this and the one before.
    window: Option<Window>,
    last_pts: i64,
    equal: u32,
    pub jumps: u64,
}

#[derive(Debug, Clone, Copy)]
struct Window {
    began: i64,
    least: i64,
    least_before: i64,
}

impl Window {
    fn new(at: i64, offset: i64) -> Self {
        Window { began: at, least: offset, least_before: offset }
    }

    fn offset(&self) -> i64 {
        self.least.min(self.least_before)
    }
}

impl MediaClock {
    /// Takes note of a frame that arrived.
    pub fn observe(&mut self, pts: Option<i64>, arrived: i64) {
        let Some(pts) = pts else { return };
        let offset = arrived.saturating_sub(pts);
        let window = self.window.get_or_insert(Window::new(arrived, offset));
        let late = offset.saturating_sub(window.offset());
        self.equal = if pts == self.last_pts { self.equal.saturating_add(1) } else { 0 };
        if self.equal >= MOST_EQUAL {
            return;
        }
        let went_back = pts < self.last_pts.saturating_sub(MOST_REORDER_US);
        self.last_pts = pts;
        if went_back || !(-MOST_EARLY_US..=MOST_LATE_US).contains(&late) {
            *window = Window::new(arrived, offset);
            self.jumps += 1;
        } else if arrived - window.began > WINDOW_US {
            *window = Window { began: arrived, least: offset, least_before: window.least };
        } else {
            window.least = window.least.min(offset);
        }
    }

    /// When a frame was captured, as far as can be told, on the monotonic clock.
    pub fn captured(&self, pts: Option<i64>, arrived: i64) -> i64 {
        match (pts, self.window) {
            (Some(pts), Some(window)) if self.equal < MOST_EQUAL => {
                pts.saturating_add(window.offset())
            }
            _ => arrived,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of frames with these timestamps and arrivals, in milliseconds.
    fn captured(frames: &[(i64, i64)]) -> (Vec<i64>, u64) {
        let mut clock = MediaClock::default();
        let times = frames.iter().map(|&(pts, arrived)| {
            clock.observe(Some(pts * 1_000), arrived * 1_000);
            clock.captured(Some(pts * 1_000), arrived * 1_000) / 1_000
        });
        (times.collect(), clock.jumps)
    }

    #[test]
    fn frames_keep_their_distances_whatever_their_delay() {
        let frames = [(0, 500), (40, 540), (80, 640), (120, 645), (160, 660)];
        assert_eq!(captured(&frames), (vec![500, 540, 580, 620, 660], 0));
    }

    #[test]
    fn a_stall_that_ends_in_a_burst_moves_nothing() {
        let frames = [(0, 100), (40, 3_000), (80, 3_001), (120, 3_002), (2_960, 3_060)];
        assert_eq!(captured(&frames), (vec![100, 140, 180, 220, 3_060], 0));
    }

    #[test]
    fn jumps_both_ways_begin_anew_at_the_arrival() {
        let hour = 3_600_000;
        let frames = [(0, 0), (40, 40), (hour, 80), (hour + 40, 120), (80, 160), (120, 200)];
        assert_eq!(captured(&frames), (vec![0, 40, 80, 120, 160, 200], 2));
    }

    #[test]
    fn timestamps_that_stand_still_are_none() {
        let frames: Vec<(i64, i64)> = (0..8).map(|n| (0, n * 40)).collect();
        let (times, jumps) = captured(&frames);
        assert_eq!((times[4], times[7], jumps), (160, 280, 0));
    }

    #[test]
    fn a_clock_that_runs_slow_or_fast_is_followed() {
        for drift in [-100, 100] {
            let mut clock = MediaClock::default();
            for n in 0..36_000 {
                let arrived = n * 100_000;
                let pts = arrived + arrived / 1_000_000 * drift;
                clock.observe(Some(pts), arrived);
                let late = arrived - clock.captured(Some(pts), arrived);
                assert!((0..=12_100).contains(&late), "{late} after {n}");
            }
            assert_eq!(clock.jumps, 0);
        }
    }
}
