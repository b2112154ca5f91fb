//! The time by which things are too old. A clock that is set wrong must not have everything deleted.

use super::{monotonic_us, wall_us};

/// The wall clock's time where it goes on from what was known before. One that is ahead of that is believed
/// little by little: for [`STANDS_US`] not at all, and from then on by [`PACE`] microseconds each
/// microsecond.
#[derive(Debug)]
pub(super) struct KnownTime {
    known_us: i64,
    /// When it was that, on the clock that never steps.
    monotonic_us: i64,
    /// Since when the wall clock is ahead, on the same.
    ahead_since_us: Option<i64>,
}

/// What a clock may be ahead by: it is put right by steps, and runs begin again.
const SLACK_US: i64 = 60_000_000;
const STANDS_US: i64 = 3_600_000_000;
/// A day an hour.
const PACE: i64 = 24;

impl KnownTime {
    /// `known_us`: the time that a run has known last, if any has.
    pub fn new(known_us: Option<i64>) -> Self {
        KnownTime::from(known_us, wall_us(), monotonic_us())
    }

    fn from(known_us: Option<i64>, wall_us: i64, monotonic_us: i64) -> Self {
        let known_us = known_us.map_or(wall_us, |known_us| known_us.min(wall_us));
        KnownTime { known_us, monotonic_us, ahead_since_us: None }
    }

    /// What time it is, as far as that is known; in microseconds since 1970.
    pub fn now_us(&mut self) -> i64 {
        self.at(wall_us(), monotonic_us())
    }

    /// How far the wall clock is ahead of it.
    pub fn behind_us(&self) -> i64 {
        wall_us().saturating_sub(self.known_us)
    }

    fn at(&mut self, wall_us: i64, monotonic_us: i64) -> i64 {
        let passed = monotonic_us.saturating_sub(self.monotonic_us);
        let expected = self.known_us.saturating_add(passed);
        self.monotonic_us = monotonic_us;
        if wall_us.saturating_sub(expected) <= SLACK_US {
            // Set back, too: by an earlier time, less is too old.
            (self.known_us, self.ahead_since_us) = (wall_us, None);
            return wall_us;
        }
        let since = *self.ahead_since_us.get_or_insert(monotonic_us);
        let stands = monotonic_us.saturating_sub(since) >= STANDS_US;
        let gained = if stands { passed.saturating_mul(PACE - 1) } else { 0 };
        self.known_us = expected.saturating_add(gained).min(wall_us);
        self.known_us
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

    /// Looks every ten seconds for so long, and returns what is known then. The wall clock is `ahead`.
    fn later(time: &mut KnownTime, from: i64, length: i64, ahead: i64) -> i64 {
        for passed in (0..=length).step_by(10 * SEC as usize) {
            time.at(NOW + from + passed + ahead, from + passed);
        }
        time.known_us - NOW
    }

    #[test]
    fn a_clock_that_goes_on_is_believed_and_so_is_one_that_is_set_back() {
        let mut time = KnownTime::from(Some(NOW - 30 * SEC), NOW, 0);
        assert_eq!(later(&mut time, 0, 0, 0), 0);
        assert_eq!(later(&mut time, 0, DAY, 50 * SEC), DAY + 50 * SEC);
        assert_eq!(later(&mut time, DAY, HOUR, -30 * DAY), HOUR - 29 * DAY);
        // Where nothing was known, nothing can be lost.
        assert_eq!(KnownTime::from(None, NOW, 0).at(NOW, 0), NOW);
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
        // It is the same with a run that begins by such a clock, and with the run after that.
        let mut time = KnownTime::from(Some(NOW), NOW + years, 0);
        assert_eq!(later(&mut time, 0, HOUR / 2, years), HOUR / 2);
        let mut time = KnownTime::from(Some(NOW + HOUR / 2), NOW + HOUR / 2 + years, 0);
        assert_eq!(later(&mut time, HOUR / 2, HOUR / 2, years), HOUR);
        // One that began in 1970 finds its way.
        let mut time = KnownTime::from(Some(NOW), 0, 0);
        assert_eq!(time.at(0, 0), 0);
        assert_eq!(time.at(30 * DAY, HOUR), HOUR);
        assert_eq!(time.at(30 * DAY, 2 * HOUR), 25 * HOUR);
        assert_eq!(time.at(30 * DAY, 90 * HOUR), 30 * DAY);
    }
}
