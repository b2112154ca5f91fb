//! How live sources are, as the runs that watch them have noted it.

use jiff::Timestamp;
use serde_json::Value;

use super::super::when::wall_clock;
use super::super::{counted, one_line};
use super::bytes;
use crate::library::{How, Watch};

/// What became of frames that were not encoded, and of packets: the numbers' names, and what they are called.
pub const LOSSES: &[(&str, &str)] = &[
    ("skipped", "skipped"),
    ("behind", "dropped: behind"),
    ("before_keyframe", "dropped: no keyframe yet"),
    ("host_ended", "dropped: the decoder ended"),
    ("undecodable", "undecodable"),
    ("under_way", "under way"),
    ("in_hardware", "decoded in hardware"),
    ("unrecorded", "not recorded"),
    ("lost_packets", "packets lost"),
    ("jumps", "jumps of its timestamps"),
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
    ("unrecorded", "packets not recorded"),
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

/// `lost since 2026-11-28 10:02:10: camera unreachable: connection refused`; of one that is live, why it was lost
/// before that.
pub fn state(watch: &Watch) -> String {
    let number = |key: &str| watch.status.get(key).and_then(Value::as_i64);
    let told = wall_clock(watch.told_us);
    let since = wall_clock(number("since_us").unwrap_or(watch.told_us));
    let reason = watch.status.get("reason").and_then(Value::as_str).map(one_line);
    match how(watch) {
        How::Connecting => format!("connecting since {since}"),
        How::Live => match reason {
            Some(reason) => format!("live since {since}; before that: {reason}"),
            None => format!("live since {since}"),
        },
        How::Lost => {
            let since = number("lost_since_us").map_or(since, wall_clock);
            format!("lost since {since}: {}", reason.as_deref().unwrap_or("no reason"))
        }
        How::Ended => format!("not watched since {told}"),
        How::CutOff => format!("not watched since {told}, when the run was cut off"),
        How::Silent => format!("nothing is known since {told}: the run that watches it is silent"),
    }
}

/// What came in that run, and what was lost of it.
pub fn numbers(watch: &Watch) -> String {
    let number = |key: &str| watch.status.get(key).and_then(Value::as_u64).unwrap_or(0);
    let secs = |key: &str| watch.status.get(key).and_then(Value::as_f64);
    let mut parts = Vec::new();
    if number("clips") > 0 {
        parts.push(counted(number("clips"), "clip"));
    }
    let frames = [("received", "frames received"), ("encoded", "encoded")];
    let counts = frames.iter().chain(LOSSES).filter(|(key, _)| number(key) > 0);
    parts.extend(counts.map(|(key, name)| format!("{} {name}", number(key))));
    if number("recorded_bytes") > 0 {
        parts.push(format!("{} recorded", bytes(number("recorded_bytes"))));
    }
    if number("deleted_clips") > 0 {
        parts.push(format!("{} deleted by --keep", counted(number("deleted_clips"), "clip")));
    }
    if number("gaps") > 0 {
        let length = secs("gap_secs").unwrap_or(0.0);
        parts.push(format!("{} ({length:.1} s)", counted(number("gaps"), "gap")));
    }
    if number("sessions") > 0 {
        parts.push(counted(number("sessions"), "connection"));
    }
    if let Some(delay) = secs("delay_secs") {
        parts.push(format!("delay {delay:.1} s"));
    }
    let is_sender_time = watch.status.get("is_sender_time").and_then(Value::as_bool);
    let ahead_us = watch.status.get("sender_ahead_us").and_then(Value::as_i64);
    if let Some(ahead_us) = ahead_us.filter(|_| is_sender_time == Some(false)) {
        let ahead = ahead_us as f64 / 1e6;
        parts.push(format!("the camera's clock is {ahead:+.0} s off and not used"));
    }
    if let Some(delay) = secs("segment_delay_secs") {
        let segments = counted(number("segments"), "segment");
        let captions = counted(number("captions"), "caption");
        parts.push(format!("{segments} and {captions}, delay {delay:.1} s"));
    }
    if number("unsegmented") > 0 {
        let chunks = counted(number("unsegmented"), "chunk");
        parts.push(format!("no segments of {chunks}"));
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
    if number("gaps") > 0 {
        let length = sound.get("gap_secs").and_then(Value::as_f64).unwrap_or(0.0);
        parts.push(format!("{} of sound ({length:.1} s)", counted(number("gaps"), "gap")));
    }
    if let Some(delay) = sound.get("delay_secs").and_then(Value::as_f64) {
        parts.push(format!("delay of speech {delay:.1} s"));
    }
    parts
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn watch(status: Value) -> Watch {
        let now_us = Timestamp::now().as_microsecond();
        let Value::Object(status) = status else { panic!("{status}") };
        Watch { started_us: SINCE_US, told_us: now_us, ended_us: None, status }
    }

    const SINCE_US: i64 = 1_764_324_130_250_000;

    #[test]
    fn each_state_is_said_with_since_when_and_why() {
        let at = wall_clock(SINCE_US);
        let said = |status| state(&watch(status));
        let connecting = json!({ "state": "connecting", "since_us": SINCE_US });
        assert_eq!(said(connecting), format!("connecting since {at}"));
        let live = json!({ "state": "live", "since_us": SINCE_US });
        assert_eq!(said(live), format!("live since {at}"));
        let again =
            json!({ "state": "live", "since_us": SINCE_US, "reason": "stream lost:\nno frame" });
        assert_eq!(said(again), format!("live since {at}; before that: stream lost: no frame"));
        // One that is waited for in its connection, and one that is tried again.
        for (state, reason) in [("connecting", "no keyframe came for 10 s"), ("waiting", "refused")]
        {
            let lost = json!({
                "state": state, "since_us": SINCE_US + 90_000_000, "lost_since_us": SINCE_US, "reason": reason,
            });
            assert_eq!(said(lost), format!("lost since {at}: {reason}"));
        }
        let mut over = watch(json!({ "state": "ended", "since_us": SINCE_US }));
        (over.told_us, over.ended_us) = (SINCE_US, Some(SINCE_US));
        assert_eq!(state(&over), format!("not watched since {at}"));
        over.status.insert("state".to_owned(), "live".into());
        assert_eq!(state(&over), format!("not watched since {at}, when the run was cut off"));
        over.ended_us = None;
        let silent = format!("nothing is known since {at}: the run that watches it is silent");
        assert_eq!(state(&over), silent);
    }

    #[test]
    fn every_loss_is_said_and_what_is_nothing_is_not() {
        let at = wall_clock(SINCE_US);
        let said = |status| numbers(&watch(status));
        assert_eq!(said(json!({ "received": 0 })), format!("nothing came yet since {at}"));
        let mut status = json!({
            "clips": 1, "received": 90, "encoded": 2, "skipped": 40, "behind": 3, "before_keyframe": 4,
            "host_ended": 9, "undecodable": 5, "under_way": 27, "in_hardware": 6, "unrecorded": 7,
            "lost_packets": 8, "jumps": 2, "recorded_bytes": 12_000_000, "deleted_clips": 80, "gaps": 2,
            "gap_secs": 12.34, "sessions": 3, "delay_secs": 0.34, "sender_ahead_us": -61_000_000,
            "is_sender_time": false,
        });
        let wanted = "1 clip, 90 frames received, 2 encoded, 40 skipped, 3 dropped: behind, 4 dropped: no \
             keyframe yet, 9 dropped: the decoder ended, 5 undecodable, 27 under way, 6 decoded in \
             hardware, 7 not recorded, 8 packets lost, 2 jumps of its timestamps, 12.0 MB recorded, 80 \
             clips deleted by --keep, 2 gaps (12.3 s), 3 connections, delay 0.3 s";
        let clock = ", the camera's clock is -61 s off and not used";
        assert_eq!(said(status.clone()), format!("{wanted}{clock} since {at}"));
        status["is_sender_time"] = true.into();
        assert_eq!(said(status), format!("{wanted} since {at}"));
        let sound = json!({ "received_us": 60_000_000, "heard_us": 20_000_000, "gaps": 1, "gap_secs": 4.0 });
        let of_sound = "60.0 s of sound received, 20.0 s with speech, 1 gap of sound (4.0 s)";
        assert_eq!(said(json!({ "sound": sound })), format!("{of_sound} since {at}"));
    }
}
