//! From a stream's own timestamps to media time.
//!
//! A frame was captured at some instant, and arrives after a delay that differs from frame to frame.
//! The least delay of late is taken for no delay at all: media time is the stream's timestamp plus
//! the least of (arrival - timestamp) over the last one to two minutes, so that frames keep their
//! distances, and a camera whose clock runs a little slow or fast is followed.
//!
//! A sender that reports its own clock (RTCP sender reports, RFC 3550, 6.4.1) says when a frame was
//! captured, and is believed where that is near what arrivals say: a clock that nobody has set is
//! hours or years off. Reports come some seconds after the first frames, and senders' clocks are set,
//! so media time goes from one to the other slowly: it never goes back or leaves a hole for that.

/// How long the least delay is remembered, at least; that of sound, of which there are 50 packets a second,
/// and whose timestamps stand still in some cameras while nothing comes.
const WINDOW_US: i64 = 60_000_000;
const SOUND_WINDOW_US: i64 = 10_000_000;
/// A frame that arrives so long before its time, or after it, has a timestamp that jumped.
const MOST_EARLY_US: i64 = 1_000_000;
const MOST_LATE_US: i64 = 10_000_000;
/// Timestamps go back by no more than this where frames are sent in order of decoding.
const MOST_REORDER_US: i64 = 1_500_000;
/// So many frames in a row with one timestamp have none.
const MOST_EQUAL: u32 = 3;
/// A sender's clock that is further from the arrivals was not set.
const MOST_ASKEW_US: i64 = 10_000_000;
/// Media time runs slow or fast by this part where it goes from one clock to the other.
const SLEWING: i64 = 10;

/// Follows one stream. All times are microseconds; arrivals are on the monotonic clock.
#[derive(Debug)]
pub struct MediaClock {
    /// Where 1970 is on the monotonic clock.
    zero_us: i64,
    window_us: i64,
    /// The least of (arrival - timestamp) in this window, and in this and the one before.
    window: Option<Window>,
    last_pts: i64,
    last_arrived: i64,
    equal: u32,
    /// How far the sender's clock is ahead of what arrivals say, where the last frame had it.
    sender_ahead: Option<i64>,
    /// From timestamps to capture by the clock that is believed, and whether that is the sender's.
    wanted: i64,
    is_senders: bool,
    /// What is still added to that, on the way to it.
    rest: i64,
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
    pub fn new(zero_us: i64) -> Self {
        MediaClock {
            zero_us,
            window_us: WINDOW_US,
            window: None,
            last_pts: 0,
            last_arrived: 0,
            equal: 0,
            sender_ahead: None,
            wanted: 0,
            is_senders: false,
            rest: 0,
            jumps: 0,
        }
    }

    /// Follows sound, by its arrivals.
    pub fn for_sound() -> Self {
        MediaClock { window_us: SOUND_WINDOW_US, ..MediaClock::new(0) }
    }

    /// Takes note of a frame that arrived. `sent`: its capture by the sender's clock, since 1970.
    pub fn observe(&mut self, pts: Option<i64>, arrived: i64, sent: Option<i64>) {
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
        let has_jumped = went_back || !(-MOST_EARLY_US..=MOST_LATE_US).contains(&late);
        if has_jumped {
            *window = Window::new(arrived, offset);
            self.jumps += 1;
        } else if arrived - window.began > self.window_us {
            *window = Window { began: arrived, least: offset, least_before: window.least };
        } else {
            window.least = window.least.min(offset);
        }
        let by_arrival = window.offset();
        let by_sender = sent.map(|sent| sent.saturating_add(self.zero_us).saturating_sub(pts));
        self.follow(by_arrival, by_sender, has_jumped);
        let passed = arrived.saturating_sub(self.last_arrived).max(0);
        self.last_arrived = arrived;
        let step = passed / SLEWING;
        self.rest -= self.rest.clamp(-step, step);
    }

    /// Chooses the clock to believe. Where that changes what media time is, the rest takes it up.
    fn follow(&mut self, by_arrival: i64, by_sender: Option<i64>, has_jumped: bool) {
        let before = self.wanted.saturating_add(self.rest);
        self.sender_ahead = by_sender.map(|offset| offset.saturating_sub(by_arrival));
        let was_senders = self.is_senders;
        self.is_senders = self
            .sender_ahead
            .is_some_and(|ahead| (-MOST_ASKEW_US..=MOST_ASKEW_US).contains(&ahead));
        self.wanted = by_sender.filter(|_| self.is_senders).unwrap_or(by_arrival);
        if has_jumped {
            // Timestamps say nothing of how these frames lie to those before.
            self.rest = 0;
        } else if was_senders || self.is_senders {
            self.rest = before.saturating_sub(self.wanted);
        }
    }

    /// No frame has got its time yet, so that there is nothing to go on from.
    pub fn settle(&mut self) {
        self.rest = 0;
    }

    /// When a frame was captured, as far as can be told, on the monotonic clock.
    pub fn captured(&self, pts: Option<i64>, arrived: i64) -> i64 {
        match pts {
            Some(pts) if self.window.is_some() && self.equal < MOST_EQUAL => {
                pts.saturating_add(self.wanted).saturating_add(self.rest)
            }
            _ => arrived,
        }
    }

    /// How far the clock that is believed is ahead of what arrivals say, for what comes beside the frames.
    pub fn ahead(&self) -> i64 {
        self.window.map_or(0, |window| {
            self.wanted.saturating_add(self.rest).saturating_sub(window.offset())
        })
    }

    /// How far the sender's clock is ahead of what arrivals say, and whether it is believed.
    pub fn sender(&self) -> Option<(i64, bool)> {
        self.sender_ahead.map(|ahead| (ahead, self.is_senders))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What becomes of frames with these timestamps and arrivals, in milliseconds.
    fn captured(frames: &[(i64, i64)]) -> (Vec<i64>, u64) {
        let mut clock = MediaClock::new(0);
        let times = frames.iter().map(|&(pts, arrived)| {
            clock.observe(Some(pts * 1_000), arrived * 1_000, None);
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
    fn timestamps_that_stood_still_while_nothing_came_are_followed_soon_for_sound() {
        let mut clock = MediaClock::for_sound();
        let mut late = Vec::new();
        for n in 0..2_000 {
            // Four seconds after the first ten, of which the timestamps know nothing.
            let arrived = n * 20_000 + if n < 500 { 0 } else { 4_000_000 };
            clock.observe(Some(n * 20_000), arrived, None);
            late.push(arrived - clock.captured(Some(n * 20_000), arrived));
        }
        assert_eq!((late[499], late[500]), (0, 4_000_000));
        assert!(late[500 + 1_000..].iter().all(|late| *late == 0));
        assert_eq!((clock.jumps, clock.ahead()), (0, 0));
    }

    #[test]
    fn what_comes_beside_the_frames_is_told_how_far_the_senders_clock_is_ahead() {
        let (clock, _) = by_sender(1_000, |n| (n >= 100).then_some(-300_000));
        assert_eq!(clock.ahead(), -300_000);
        assert_eq!(by_sender(1_000, |_| None).0.ahead(), 0);
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
            let mut clock = MediaClock::new(0);
            for n in 0..36_000 {
                let arrived = n * 100_000;
                let pts = arrived + arrived / 1_000_000 * drift;
                clock.observe(Some(pts), arrived, None);
                let late = arrived - clock.captured(Some(pts), arrived);
                assert!((0..=12_100).contains(&late), "{late} after {n}");
            }
            assert_eq!(clock.jumps, 0);
        }
    }

    /// Frames of 25 Hz; `ahead(n)`: how far the sender's clock is ahead at frame n, in microseconds.
    fn by_sender(frames: i64, ahead: impl Fn(i64) -> Option<i64>) -> (MediaClock, Vec<i64>) {
        let zero_us = -1_700_000_000_000_000;
        let mut clock = MediaClock::new(zero_us);
        let times = (0..frames).map(|n| {
            let (pts, arrived) = (n * 40_000, 5_000_000 + n * 40_000);
            clock.observe(Some(pts), arrived, ahead(n).map(|ahead| arrived - zero_us + ahead));
            clock.captured(Some(pts), arrived) - arrived
        });
        let times = times.collect();
        (clock, times)
    }

    #[test]
    fn media_time_goes_to_the_senders_clock_when_it_is_reported() {
        // Captured 300 ms before the arrival, as is known from the 100th frame on.
        let (clock, late) = by_sender(1_000, |n| (n >= 100).then_some(-300_000));
        assert_eq!(clock.sender(), Some((-300_000, true)));
        assert!(late[..100].iter().all(|late| *late == 0));
        // A tenth of 3 s.
        assert_eq!((late[100], late[174], late[999]), (-4_000, -300_000, -300_000));
    }

    #[test]
    fn a_senders_clock_that_nobody_has_set_is_told_and_not_believed() {
        let (clock, late) = by_sender(100, |_| Some(3_600_000_000));
        assert_eq!(clock.sender(), Some((3_600_000_000, false)));
        assert!(late.iter().all(|late| *late == 0));
    }

    #[test]
    fn timestamps_that_jump_leave_media_time_on_the_senders_clock() {
        let mut clock = MediaClock::new(0);
        for n in 0..200 {
            let arrived = n * 40_000;
            let pts = arrived + if n < 100 { 0 } else { 3_600_000_000 };
            clock.observe(Some(pts), arrived, Some(arrived - 300_000));
            clock.settle();
            assert_eq!(clock.captured(Some(pts), arrived), arrived - 300_000, "{n}");
        }
        assert_eq!(clock.jumps, 1);
    }

    proptest! {
        /// Whatever a sender says of its clock, media time goes on, at nearly its own pace.
        #[test]
        fn media_time_never_goes_back_or_leaps_for_a_senders_clock(
            steps in prop::collection::vec((prop::option::of(-20_000_000i64..20_000_000), 1i64..200), 1..20),
        ) {
            let ahead: Vec<Option<i64>> = steps
                .iter()
                .flat_map(|(ahead, frames)| std::iter::repeat_n(*ahead, *frames as usize))
                .collect();
            let (_, late) = by_sender(ahead.len() as i64, |n| ahead[n as usize]);
            for pair in late.windows(2) {
                prop_assert!((pair[1] - pair[0]).abs() <= 4_000, "{pair:?}");
            }
        }
    }
}
