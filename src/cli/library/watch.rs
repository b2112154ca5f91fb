//! How live sources are, as the runs that watch them have noted it.

use jiff::Timestamp;
use serde_json::Value;

use super::super::when::wall_clock;
use super::super::{counted, one_line};
use crate::library::{How, Watch};

/// What became of frames: the numbers' names, and what they are called.
const NUMBERS: &[(&str, &str)] = &[
    ("clips", "clips"),
    ("received", "frames received"),
    ("encoded", "encoded"),
    ("skipped", "skipped"),
    ("behind", "dropped: behind"),
    ("before_keyframe", "dropped: no keyframe yet"),
    ("host_ended", "dropped: the decoder ended"),
    ("undecodable", "undecodable"),
    ("in_hardware", "decoded in hardware"),
    ("lost_packets", "packets lost"),
];

/// What became of sound: lengths, and then counts.
const LENGTHS: &[(&str, &str)] = &[
    ("received_us", "of sound received"),
    ("heard_us", "with speech"),
    ("behind_us", "dropped: behind"),
    ("repeated_us", "dropped: of a time before"),
    ("unreadable_us", "could not be read"),
];
const COUNTS: &[(&str, &str)] = &[
    ("undecodable", "packets undecodable"),
    ("undecoded", "packets dropped: behind"),
    ("cues", "cues"),
];

pub fn how(watch: &Watch) -> How {
    watch.how(Timestamp::now().as_microsecond())
}

/// A word for a list.
pub fn word(how: How) -> &'static str {
    match how {
        How::Connecting => "connects",
        How::Live => "live",
        How::Lost => "lost",
        How::Ended => "ended",
        How::CutOff => "cut off",
        How::Silent => "silent",
    }
}

/// `lost since 2026-11-28 10:02:10: camera unreachable: connection refused`.
pub fn state(watch: &Watch) -> String {
    let number = |key: &str| watch.status.get(key).and_then(Value::as_i64);
    let told = wall_clock(watch.told_us);
    let since = wall_clock(number("since_us").unwrap_or(watch.told_us));
    match how(watch) {
        How::Connecting => format!("connecting since {since}"),
        How::Live => format!("live since {since}"),
        How::Lost => {
            let since = number("lost_since_us").map_or(since, wall_clock);
            let reason = watch.status.get("reason").and_then(Value::as_str).unwrap_or("no reason");
            format!("lost since {since}, tried again and again: {}", one_line(reason))
        }
        How::Ended => format!("not watched since {told}"),
        How::CutOff => format!("not watched since {told}, when the run was cut off"),
        How::Silent => format!("nothing is known since {told}: the run that watches it is silent"),
    }
}

/// What came in that run, and what was lost of it.
pub fn numbers(watch: &Watch) -> String {
    let number = |key: &str| watch.status.get(key).and_then(Value::as_u64).unwrap_or(0);
    let mut parts: Vec<String> = NUMBERS
        .iter()
        .filter(|(key, _)| number(key) > 0)
        .map(|(key, name)| format!("{} {name}", number(key)))
        .collect();
    if let Some(delay) = watch.status.get("delay_secs").and_then(Value::as_f64) {
        parts.push(format!("delay {delay:.1} s"));
    }
    if let Some(delay) = watch.status.get("segment_delay_secs").and_then(Value::as_f64) {
        let segments = counted(number("segments"), "segment");
        let captions = counted(number("captions"), "caption");
        parts.push(format!("{segments} and {captions}, delay {delay:.1} s"));
    }
    if let Some(sound) = watch.status.get("sound").filter(|sound| sound.is_object()) {
        parts.extend(sound_numbers(sound));
    }
    if parts.is_empty() {
        parts.push("nothing came yet".to_owned());
    }
    format!("{} since {}", parts.join(", "), wall_clock(watch.started_us))
}

/// What came of a stream's sound, and was lost of it, with the delay of speech.
fn sound_numbers(sound: &Value) -> Vec<String> {
    let number = |key: &str| sound.get(key).and_then(Value::as_i64).unwrap_or(0);
    let lengths = LENGTHS.iter().filter(|(key, _)| number(key) > 0).map(|(key, name)| {
        let secs = number(key) as f64 / 1e6;
        format!("{secs:.1} s {name}")
    });
    let counts = COUNTS.iter().filter(|(key, _)| number(key) > 0);
    let mut parts: Vec<String> = lengths.collect();
    if parts.is_empty() {
        parts.push("no sound".to_owned());
    }
    parts.extend(counts.map(|(key, name)| format!("{} {name}", number(key))));
    if let Some(delay) = sound.get("delay_secs").and_then(Value::as_f64) {
        parts.push(format!("delay of speech {delay:.1} s"));
    }
    parts
}
