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
    instant(&zoned(at_us, TimeZone::system()), "%H:%M:%S%.3f")
}

/// `2026-11-20 10:02:10`, in the zone of whoever looks.
pub fn wall_clock(at_us: i64) -> String {
    instant(&zoned(at_us, TimeZone::system()), DATED)
}

/// `2026-11-20 10:02:10-10:05:41`, in the zone of whoever looks; both dates where they differ.
pub fn wall_span(start_us: i64, end_us: i64) -> String {
    let zone = TimeZone::system();
    span(&zoned(start_us, zone.clone()), &zoned(end_us, zone))
}

const DATED: &str = "%F %H:%M:%S";

fn zoned(at_us: i64, zone: TimeZone) -> ZonedDateTime {
    Timestamp::from_microsecond(at_us).unwrap_or(Timestamp::UNIX_EPOCH).to_zoned_datetime(zone)
}

/// With the offset where clocks show this time twice, since they are set back.
fn instant(at: &ZonedDateTime, format: &str) -> String {
    shown(at, format, is_twice(at))
}

/// As [`instant`], also where clocks are set between the two: their difference is not the span's length then.
fn span(start: &ZonedDateTime, end: &ZonedDateTime) -> String {
    let has_offset = start.offset() != end.offset() || is_twice(start) || is_twice(end);
    let format = if start.date() == end.date() { "%H:%M:%S" } else { DATED };
    format!("{}-{}", shown(start, DATED, has_offset), shown(end, format, has_offset))
}

fn shown(at: &ZonedDateTime, format: &str, has_offset: bool) -> String {
    let offset = if has_offset { "%:z" } else { "" };
    at.strftime(&format!("{format}{offset}")).to_string()
}

fn is_twice(at: &ZonedDateTime) -> bool {
    at.time_zone().to_ambiguous_timestamp(at.datetime()).is_ambiguous()
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

    /// Where clocks are set, in the zone of Berlin: on 2026-10-25 at 3:00 to 2:00, and on 2026-03-29 at 2:00 to 3:00.
    fn berlin(text: &str) -> ZonedDateTime {
        let zone = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        text.parse::<Timestamp>().unwrap().to_zoned_datetime(zone)
    }

    #[test]
    fn an_hour_that_is_there_twice_has_its_offset() {
        let shown = |utc| instant(&berlin(utc), DATED);
        assert_eq!(shown("2026-10-24T23:30:00Z"), "2026-10-25 01:30:00");
        assert_eq!(shown("2026-10-25T00:30:00Z"), "2026-10-25 02:30:00+02:00");
        assert_eq!(shown("2026-10-25T01:30:00Z"), "2026-10-25 02:30:00+01:00");
        assert_eq!(shown("2026-10-25T02:00:00Z"), "2026-10-25 03:00:00");
        let time = instant(&berlin("2026-10-25T01:30:00.5Z"), "%H:%M:%S%.3f");
        assert_eq!(time, "02:30:00.500+01:00");
    }

    #[test]
    fn a_span_over_which_clocks_are_set_has_both_offsets() {
        let shown = |start, end| span(&berlin(start), &berlin(end));
        for (start, end, said) in [
            // Twenty seconds, which would read as going back.
            (
                "2026-10-25T00:59:50Z",
                "2026-10-25T01:00:10Z",
                "2026-10-25 02:59:50+02:00-02:00:10+01:00",
            ),
            // An hour and twenty seconds, which would read as twenty.
            (
                "2026-10-25T00:30:00Z",
                "2026-10-25T01:30:20Z",
                "2026-10-25 02:30:00+02:00-02:30:20+01:00",
            ),
            (
                "2026-10-25T01:30:00Z",
                "2026-10-25T01:30:20Z",
                "2026-10-25 02:30:00+01:00-02:30:20+01:00",
            ),
            // Twenty seconds, which would read as an hour.
            (
                "2026-03-29T00:59:50Z",
                "2026-03-29T01:00:10Z",
                "2026-03-29 01:59:50+01:00-03:00:10+02:00",
            ),
            ("2026-03-29T10:00:00Z", "2026-03-29T10:00:20Z", "2026-03-29 12:00:00-12:00:20"),
            (
                "2026-11-20T22:59:50Z",
                "2026-11-20T23:00:10Z",
                "2026-11-20 23:59:50-2026-11-21 00:00:10",
            ),
        ] {
            assert_eq!(shown(start, end), said);
        }
    }

    #[test]
    fn a_time_that_is_there_twice_is_read_as_the_first_and_one_that_is_not_there_as_after_it() {
        let read = |text: &str, now| at(text, &berlin(now)).map(|at| at.to_string());
        let (autumn, spring) = ("2026-10-25T12:00:00Z", "2026-03-29T12:00:00Z");
        assert_eq!(read("02:30", autumn), Ok("2026-10-25T00:30:00Z".to_owned()));
        assert_eq!(read("2026-10-25T02:30+01:00", autumn), Ok("2026-10-25T01:30:00Z".to_owned()));
        assert_eq!(read("yesterday", autumn), Ok("2026-10-23T22:00:00Z".to_owned()));
        assert_eq!(read("02:30", spring), Ok("2026-03-29T01:30:00Z".to_owned()));
    }
}
