//! Instants and lengths of time as people write them, in the zone of whoever asks.

use jiff::civil::{Date, DateTime, Time};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ZonedDateTime};

/// An instant: `2026-11-20`, `"2026-11-20 10:00"`, `"yesterday 10:00"`, `10:00`, `now`, or with a
/// zone of its own `2026-11-20T10:00:00Z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WallTime(pub Timestamp);

impl std::str::FromStr for WallTime {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        at(text, &ZonedDateTime::now()).map(WallTime)
    }
}

fn at(text: &str, now: &ZonedDateTime) -> Result<Timestamp, String> {
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(at);
    }
    let wrong = || {
        "write a date (2026-11-20, today, yesterday), a time of today (10:00), both (\"yesterday \
         10:00\"), or both with a zone (2026-11-20T10:00:00Z)"
            .to_owned()
    };
    let civil = match text.trim().split_once(' ') {
        None if text.trim() == "now" => return Ok(now.timestamp()),
        None => match (date(text.trim(), now), time(text.trim())) {
            (Some(date), _) => date.to_datetime(Time::midnight()),
            (None, Some(time)) => now.date().to_datetime(time),
            (None, None) => text.trim().parse::<DateTime>().map_err(|_| wrong())?,
        },
        Some((day, hour)) => {
            let day = date(day, now).ok_or_else(wrong)?;
            day.to_datetime(time(hour.trim()).ok_or_else(wrong)?)
        }
    };
    now.time_zone().to_timestamp(civil).map_err(|error| error.to_string())
}

fn date(text: &str, now: &ZonedDateTime) -> Option<Date> {
    match text {
        "today" => Some(now.date()),
        "yesterday" => now.date().yesterday().ok(),
        text if text.contains('-') && !text.contains(':') => text.parse().ok(),
        _ => None,
    }
}

fn time(text: &str) -> Option<Time> {
    let is_time = text.contains(':') && !text.contains('-');
    is_time.then(|| text.parse().ok()).flatten()
}

/// A length of time up to now: `90s`, `15m`, `2h`, `7d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lately(pub SignedDuration);

impl std::str::FromStr for Lately {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "write a number with its unit: 90s, 15m, 2h or 7d".to_owned();
        let text = text.trim();
        let (number, unit) =
            text.split_at(text.len() - text.chars().next_back().map_or(0, char::len_utf8));
        let secs = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3_600,
            "d" => 86_400,
            _ => return Err(wrong()),
        };
        let number: u32 = number.trim().parse().map_err(|_| wrong())?;
        match number {
            0 => Err(wrong()),
            number => Ok(Lately(SignedDuration::from_secs(i64::from(number) * secs))),
        }
    }
}

/// `10:02:10.500`, in the zone of whoever looks.
pub fn wall_time(at_us: i64) -> String {
    let at = Timestamp::from_microsecond(at_us).unwrap_or(Timestamp::UNIX_EPOCH);
    at.to_zoned_datetime(TimeZone::system()).strftime("%H:%M:%S%.3f").to_string()
}

/// `2026-11-20 10:02:10`, in the zone of whoever looks.
pub fn wall_clock(at_us: i64) -> String {
    let at = Timestamp::from_microsecond(at_us).unwrap_or(Timestamp::UNIX_EPOCH);
    at.to_zoned_datetime(TimeZone::system()).strftime("%F %H:%M:%S").to_string()
}

/// `2026-11-20 10:02:10-10:05:41`, in the zone of whoever looks; both dates where they differ.
pub fn wall_span(start_us: i64, end_us: i64) -> String {
    let [start, end] = [start_us, end_us].map(|at| {
        let at = Timestamp::from_microsecond(at).unwrap_or(Timestamp::UNIX_EPOCH);
        at.to_zoned_datetime(TimeZone::system())
    });
    let format = if start.date() == end.date() { "%H:%M:%S" } else { "%F %H:%M:%S" };
    format!("{}-{}", start.strftime("%F %H:%M:%S"), end.strftime(format))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_are_read_as_people_write_them_in_their_zone() {
        let zone = TimeZone::fixed(jiff::tz::offset(2));
        let now = "2026-11-28T12:30:00Z".parse::<Timestamp>().unwrap().to_zoned_datetime(zone);
        let read = |text: &str| at(text, &now).map(|at| at.to_string()).ok();
        for (text, utc) in [
            ("yesterday 10:00", "2026-11-27T08:00:00Z"),
            ("yesterday", "2026-11-26T22:00:00Z"),
            ("today", "2026-11-27T22:00:00Z"),
            ("10:00", "2026-11-28T08:00:00Z"),
            ("10:00:30", "2026-11-28T08:00:30Z"),
            ("now", "2026-11-28T12:30:00Z"),
            ("2026-11-20", "2026-11-19T22:00:00Z"),
            ("2026-11-20 10:00", "2026-11-20T08:00:00Z"),
            ("2026-11-20T10:00", "2026-11-20T08:00:00Z"),
            ("2026-11-20T10:00:00Z", "2026-11-20T10:00:00Z"),
        ] {
            assert_eq!(read(text).as_deref(), Some(utc), "{text}");
        }
        for wrong in ["", "tomorrow", "10", "yesterday noon", "2026-13-01"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn lengths_have_a_unit() {
        let secs = |text: &str| text.parse::<Lately>().ok().map(|length| length.0.as_secs());
        assert_eq!((secs("15m"), secs("7d"), secs("90 s")), (Some(900), Some(604_800), Some(90)));
        for wrong in ["", "15", "m", "-1h", "0s", "1µ"] {
            assert_eq!(secs(wrong), None, "{wrong}");
        }
    }
}
