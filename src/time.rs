//! Media time: instants and lengths in microseconds, spans between them, and how people write them.
//!
//! An instant ([`Timestamp`]) and a length ([`Micros`]) are different types, so that adding two
//! instants does not compile. All arithmetic saturates: timestamps come from untrusted files.

use std::fmt;
use std::ops::{Add, AddAssign, Sub, SubAssign};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Microseconds since 1970, by a clock that may be set.
pub fn wall_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// Processor time that the calling thread has used so far.
pub fn thread_processor_time() -> Duration {
    processor_time(ClockId::ThreadCPUTime)
}

/// Processor time that all threads of this process have used so far.
pub fn process_processor_time() -> Duration {
    processor_time(ClockId::ProcessCPUTime)
}

fn processor_time(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    let secs = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::new(secs, u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// An instant of a source: microseconds from its first presentable sample of any track.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Timestamp(pub i64);

/// A length of time in microseconds; may be negative.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Micros(pub i64);

impl Timestamp {
    pub const ZERO: Timestamp = Timestamp(0);
    pub const MAX: Timestamp = Timestamp(i64::MAX);

    pub const fn from_millis(millis: i64) -> Self {
        Timestamp(millis.saturating_mul(1_000))
    }

    pub fn as_secs_f64(self) -> f64 {
        self.0 as f64 / 1e6
    }
}

impl Micros {
    pub const ZERO: Micros = Micros(0);

    pub const fn from_millis(millis: i64) -> Self {
        Micros(millis.saturating_mul(1_000))
    }

    /// Rounds to the nearest microsecond; not-a-number becomes zero.
    pub fn from_secs_f64(secs: f64) -> Self {
        Micros((secs * 1e6).round() as i64)
    }

    pub fn as_secs_f64(self) -> f64 {
        self.0 as f64 / 1e6
    }
}

impl Add<Micros> for Timestamp {
    type Output = Timestamp;
    fn add(self, length: Micros) -> Timestamp {
        Timestamp(self.0.saturating_add(length.0))
    }
}

impl Sub<Micros> for Timestamp {
    type Output = Timestamp;
    fn sub(self, length: Micros) -> Timestamp {
        Timestamp(self.0.saturating_sub(length.0))
    }
}

impl Sub for Timestamp {
    type Output = Micros;
    fn sub(self, earlier: Timestamp) -> Micros {
        Micros(self.0.saturating_sub(earlier.0))
    }
}

impl AddAssign for Micros {
    fn add_assign(&mut self, more: Micros) {
        self.0 = self.0.saturating_add(more.0);
    }
}

impl SubAssign for Micros {
    fn sub_assign(&mut self, less: Micros) {
        self.0 = self.0.saturating_sub(less.0);
    }
}

/// `h:mm:ss.mmm`, without the hours where there are none: `0:01.500`, `1:02:03.000`.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let millis = self.0.unsigned_abs() / 1_000;
        let (hours, minutes) = (millis / 3_600_000, millis / 60_000 % 60);
        let (secs, millis) = (millis / 1_000 % 60, millis % 1_000);
        let text = if hours > 0 {
            format!("{sign}{hours}:{minutes:02}:{secs:02}.{millis:03}")
        } else {
            format!("{sign}{minutes}:{secs:02}.{millis:03}")
        };
        f.pad(&text)
    }
}

impl fmt::Display for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Timestamp(self.0).fmt(f)
    }
}

/// Reads what people write for a media time: `90`, `90.5`, `1:30`, `1:02:03.250`.
impl std::str::FromStr for Timestamp {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            Error::invalid_input(format!(
                "{text:?} is not a time: write seconds (90.5), minutes (1:30) or hours (1:02:03)"
            ))
        };
        let parts: Vec<&str> = text.trim().split(':').collect();
        if parts.len() > 3 {
            return Err(wrong());
        }
        let plain = |part: &str| {
            !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
        };
        let mut secs = 0.0;
        for (place, part) in parts.iter().enumerate() {
            let value: f64 = plain(part).then(|| part.parse().ok()).flatten().ok_or_else(wrong)?;
            let whole = place + 1 < parts.len();
            if (place > 0 && value >= 60.0) || (whole && value.fract() != 0.0) {
                return Err(wrong());
            }
            secs = secs * 60.0 + value;
        }
        Ok(Timestamp(Micros::from_secs_f64(secs).0))
    }
}

/// A half-open span of media time, `start <= t < end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Span {
    pub start: Timestamp,
    pub end: Timestamp,
}

impl Span {
    /// All of time.
    pub const ALL: Span = Span { start: Timestamp(i64::MIN), end: Timestamp::MAX };

    pub const fn new(start: Timestamp, end: Timestamp) -> Self {
        Span { start, end }
    }

    pub fn length(self) -> Micros {
        self.end - self.start
    }

    pub fn midpoint(self) -> Timestamp {
        self.start + Micros(self.length().0 / 2)
    }

    pub fn contains(self, at: Timestamp) -> bool {
        self.start <= at && at < self.end
    }

    pub fn overlaps(self, other: Span) -> bool {
        self.start < other.end && other.start < self.end
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}-{}", self.start, self.end))
    }
}

/// Reads `10:00-12:00`; either side may be left out (`10:00-`, `-2:00`).
impl std::str::FromStr for Span {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (start, end) = text.split_once('-').ok_or_else(|| {
            Error::invalid_input(format!(
                "{text:?} is not a span: write start-end, as in 10:00-12:00"
            ))
        })?;
        let or = |part: &str, default| {
            if part.trim().is_empty() { Ok(default) } else { part.parse() }
        };
        let span = Span::new(or(start, Timestamp::ZERO)?, or(end, Timestamp::MAX)?);
        if span.end <= span.start {
            return Err(Error::invalid_input(format!("{text:?} ends before it starts")));
        }
        Ok(span)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        let millis = |text: &str| text.parse::<Timestamp>().map(|t| t.0 / 1_000).ok();
        assert_eq!(millis("90.5"), Some(90_500));
        assert_eq!(millis("1:30"), Some(90_000));
        assert_eq!(millis("1:02:03.250"), Some(3_723_250));
        for wrong in ["", "x", "1:60", "1:2:3:4", "-5", "1.5:30", "1e3", "inf", "."] {
            assert_eq!(millis(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_span_may_be_open_at_either_side() {
        let span = |text: &str| text.parse::<Span>().ok();
        assert_eq!(span("-0:02"), Some(Span::new(Timestamp(0), Timestamp(2_000_000))));
        assert_eq!(span("0:02-"), Some(Span::new(Timestamp(2_000_000), Timestamp::MAX)));
        assert_eq!(span("2-1"), None);
        assert_eq!(span("5"), None);
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back(millis in 0i64..1_000_000_000_000) {
            let time = Timestamp::from_millis(millis);
            prop_assert_eq!(time.to_string().parse::<Timestamp>().unwrap(), time);
        }

        #[test]
        fn arithmetic_never_panics(a in any::<i64>(), b in any::<i64>()) {
            let _ = Timestamp(a) + Micros(b);
            let _ = Timestamp(a) - Timestamp(b);
            let _ = Span::new(Timestamp(a), Timestamp(b)).midpoint();
            let _ = Timestamp(a).to_string();
        }
    }
}
