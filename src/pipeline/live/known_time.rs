//! The time by which things are too old. A clock that is set wrong must not have everything deleted.

use super::monotonic_us;
use crate::time::wall_us;

/// The wall clock's time where it goes on from what was known before. One that is ahead of that is believed
/// little by little: for [`STANDS_US`] not at all, and from then on by [`PACE`] microseconds each
/// microsecond. What is known never goes back: a clock that was behind is right again at once.
#[derive(Debug)]
pub(super) struct KnownTime {
    /// `None` while the clock has shown nothing but times that cannot be.
    known_us: Option<i64>,
    /// When it was that, on the clock that never steps.
    monotonic_us: i64,
    /// Since when the wall clock is ahead, on the same.
    ahead_since_us: Option<i64>,
}

/// The beginning of 2026: a clock that shows less has no battery.
const EARLIEST_US: i64 = 1_767_225_600_000_000;
/// What a clock may be ahead by: it is put right by steps, and runs begin again.
const SLACK_US: i64 = 60_000_000;
/// What it may be ahead by when a run begins: machines are off at night and over a weekend.
const OFF_US: i64 = 3 * 86_400_000_000;
const STANDS_US: i64 = 3_600_000_000;
/// A day an hour.
const PACE: i64 = 24;

impl KnownTime {
    /// `known_us`: the time that a run has known last, if any has.
    pub fn new(known_us: Option<i64>) -> Self {
        KnownTime::from(known_us, wall_us(), monotonic_us())
    }

    fn from(known_us: Option<i64>, wall_us: i64, monotonic_us: i64) -> Self {
        let known_us = known_us
            .filter(|known_us| *known_us >= EARLIEST_US)
            .map(|known_us| wall_us.clamp(known_us, known_us.saturating_add(OFF_US)));
        KnownTime { known_us, monotonic_us, ahead_since_us: None }
    }

    /// By which time something is too old, in microseconds since 1970: no later than the wall clock's, by which less
    /// is.
    pub fn now_us(&mut self) -> i64 {
        self.at(wall_us(), monotonic_us())
    }

    /// What is to be known by the next run.
    pub fn known_us(&mut self) -> Option<i64> {
        self.now_us();
        self.known_us
    }

    /// How far the wall clock is ahead of what is known.
    pub fn behind_us(&self) -> i64 {
        self.known_us.map_or(0, |known_us| wall_us().saturating_sub(known_us))
    }

    fn at(&mut self, wall_us: i64, monotonic_us: i64) -> i64 {
        let passed = monotonic_us.saturating_sub(self.monotonic_us);
        self.monotonic_us = monotonic_us;
        let Some(known_us) = self.known_us else {
            self.known_us = Some(wall_us).filter(|wall_us| *wall_us >= EARLIEST_US);
            return wall_us;
        };
        let expected = known_us.saturating_add(passed);
        let known_us = if wall_us.saturating_sub(expected) <= SLACK_US {
            self.ahead_since_us = None;
            expected.max(wall_us)
        } else {
            let since = *self.ahead_since_us.get_or_insert(monotonic_us);
            let stands = monotonic_us.saturating_sub(since) >= STANDS_US;
            let gained = if stands { passed.saturating_mul(PACE - 1) } else { 0 };
            expected.saturating_add(gained).min(wall_us)
        };
        self.known_us = Some(known_us);
        known_us.min(wall_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEC: i64 = 1_000_000;
    const HOUR: i64 = 3_600 * SEC;
    const DAY: i64 = 24 * HOUR;
    /// In 2026.
    const NOW: i64 = 20_600 * DAY;

    /// Looks every ten seconds for so long, and returns by how much later than [`NOW`] it is then. The wall clock
    /// is `ahead`.
    fn later(time: &mut KnownTime, from: i64, length: i64, ahead: i64) -> i64 {
        let looks = (0..=length).step_by(10 * SEC as usize);
        let now = looks.map(|passed| time.at(NOW + from + passed + ahead, from + passed)).last();
        now.unwrap() - NOW
    }

    #[test]
    fn a_clock_that_goes_on_is_believed_and_so_is_one_that_is_set_back() {
        let mut time = KnownTime::from(Some(NOW - 30 * SEC), NOW, 0);
        assert_eq!(later(&mut time, 0, 0, 0), 0);
        assert_eq!(later(&mut time, 0, DAY, 50 * SEC), DAY + 50 * SEC);
        assert_eq!(later(&mut time, DAY, HOUR, -30 * DAY), HOUR - 29 * DAY);
        // It is right again at once, and so is one without a battery, whatever was known.
        assert_eq!(later(&mut time, DAY + HOUR, HOUR, 0), DAY + 2 * HOUR);
        for known_us in [None, Some(NOW)] {
            let mut time = KnownTime::from(known_us, 0, 0);
            assert_eq!(time.at(HOUR, HOUR), HOUR);
            assert_eq!(later(&mut time, 2 * HOUR, HOUR, 0), 3 * HOUR);
        }
    }

    #[test]
    fn a_clock_that_is_ahead_is_not_believed_for_an_hour_and_then_by_a_day_an_hour() {
        let years = 70 * 365 * DAY;
        let mut time = KnownTime::from(Some(NOW), NOW, 0);
        assert_eq!(later(&mut time, 0, HOUR - 10 * SEC, years), HOUR - 10 * SEC);
        // What stands for less has no consequence.
        assert_eq!(later(&mut time, HOUR, HOUR, 0), 2 * HOUR);
        let known = later(&mut time, 2 * HOUR, 3 * HOUR, years);
        assert!((known - 3 * HOUR - 2 * DAY).abs() <= 300 * SEC, "{known}");
    }

    #[test]
    fn a_run_that_begins_believes_some_days_at_once() {
        // An hour a day.
        let mut known = NOW;
        for day in 1..100 {
            let began = day * DAY;
            let mut time = KnownTime::from(Some(known), NOW + began, began);
            assert_eq!(later(&mut time, began, HOUR, 0), began + HOUR);
            known = time.known_us.unwrap();
        }
        let years = 70 * 365 * DAY;
        let mut time = KnownTime::from(Some(NOW), NOW + years, 0);
        assert_eq!(later(&mut time, 0, HOUR / 2, years), OFF_US + HOUR / 2);
    }
}
