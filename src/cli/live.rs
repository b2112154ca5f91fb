//! `cinelex index` of live streams: until Ctrl-C.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::IsTerminal;
#[cfg(feature = "speech")]
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::Timestamp;
use jiff::tz::TimeZone;

#[cfg(feature = "speech")]
use super::index::cores;
use super::when::Lately;
use super::{CommandResult, Failure, Outcome, counted, note, one_line, print_json, print_line};
use crate::error::{Error, Kind, Result};
use crate::graph::Cancel;
use crate::library::{Keep, Reader, SourceId, Writer};
#[cfg(feature = "speech")]
use crate::pipeline::Hearing;
use crate::pipeline::{
    LiveEvent, LiveOptions, LiveReport, LiveSource, Loaded, Sound, StreamState, StreamStatus,
    read_streams, watch,
};
use crate::source::{Location, Transport, listing};
use crate::time::Micros;

/// What `index` is told about live streams.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Live streams")]
pub(super) struct LiveArgs {
    /// A file that lists streams, with their names and where their credentials are
    #[arg(long, value_name = "FILE", conflicts_with = "sources")]
    streams: Option<PathBuf>,
    /// Play files as if they were live: at their own pace, losing what there is no time for. http(s)
    /// addresses are taken for streams without an end
    #[arg(long, conflicts_with = "streams")]
    as_live: bool,
    /// RTSP packets come one by one, and may be lost, in place of in the connection. In FILE, `transport = "udp"`
    /// says so of a single stream
    #[arg(long, conflicts_with = "streams")]
    udp: bool,
    /// Keeps the compressed streams themselves in the library, too, in files of a minute, from which
    /// search --export cuts moments. They hold the picture, and no sound
    #[arg(long)]
    record: bool,
    /// A stream that brings no frame for so long is lost, and connected again
    #[arg(long, value_name = "SECS", default_value = "10", value_parser = super::positive_secs)]
    silence: Duration,
    /// Pauses before a lost stream is tried again grow to this
    #[arg(long, value_name = "SECS", default_value = "30", value_parser = super::positive_secs)]
    longest_pause: Duration,
    /// Keep of all live sources in the library only what was recorded in so long up to now (30d, 12h),
    /// or what the library has room for in so many bytes (200GB): the oldest is deleted, two minutes at a
    /// time
    #[arg(long, value_name = "LENGTH|SIZE", value_parser = keep)]
    keep: Option<Keep>,
}

impl LiveArgs {
    /// The streams that are to be watched; `None` where the sources are files.
    pub fn streams(
        &self,
        sources: &[OsString],
        images: bool,
    ) -> Result<Option<Vec<LiveSource>>, Failure> {
        if let Some(file) = &self.streams {
            let mut streams =
                read_streams(file).and_then(encrypted_as_asked).map_err(Failure::usage)?;
            for stream in &mut streams {
                stream.record |= self.record;
            }
            return Ok(Some(streams));
        }
        let is_live = |source: &OsString| Location::from_text(source).is_live();
        if !self.as_live && !sources.iter().any(is_live) {
            return Ok(None);
        }
        if !self.as_live && !sources.iter().all(is_live) {
            return Err(Failure::usage(Error::invalid_input(
                "files have an end and live streams have none: index them in two runs, the files \
                 first, or play the files as if they were live (--as-live)",
            )));
        }
        let transport = if self.udp { Transport::Udp } else { Transport::Tcp };
        let found = listing::expand(sources, images).into_iter();
        let streams = found.map(|location| {
            location.map(|location| {
                let record = self.record;
                LiveSource { name: None, location, transport, ca: None, record, listen: false }
            })
        });
        let streams = streams.collect::<Result<Vec<_>>>().and_then(encrypted_as_asked);
        streams.map(Some).map_err(Failure::usage)
    }

    pub fn options(
        &self,
        batch: u16,
        hardware: bool,
        tags: Vec<(String, String)>,
        take_over: bool,
        #[cfg(feature = "speech")] hearing: Option<Hearing>,
        cancel: Cancel,
    ) -> LiveOptions {
        let (silence, longest_pause, keep) = (self.silence, self.longest_pause, self.keep);
        LiveOptions {
            batch,
            hardware,
            tags,
            silence,
            longest_pause,
            keep,
            take_over,
            #[cfg(feature = "speech")]
            hearing,
            // Frames go first: half of the processors are left to them.
            #[cfg(feature = "speech")]
            listeners: NonZeroUsize::new(cores().get() / 2).unwrap_or(NonZeroUsize::MIN),
            cancel,
        }
    }
}

/// Over UDP, the pictures of a stream with TLS would come as plain as any.
fn encrypted_as_asked(streams: Vec<LiveSource>) -> Result<Vec<LiveSource>> {
    let is_plain = |stream: &&LiveSource| {
        let is_tls = |url: &str| url.to_ascii_lowercase().starts_with("rtsps://");
        stream.transport == Transport::Udp
            && matches!(&stream.location, Location::Url(url) if is_tls(url))
    };
    match streams.iter().find(is_plain) {
        Some(stream) => {
            Err(Error::invalid_input("rtsps comes in its connection alone, not by UDP")
                .in_source(stream.location.to_string()))
        }
        None => Ok(streams),
    }
}

/// `30d` or `200GB`.
fn keep(text: &str) -> std::result::Result<Keep, String> {
    if let Ok(Lately(length)) = text.parse() {
        return Ok(Keep::Lately(Micros(length.as_secs().saturating_mul(1_000_000))));
    }
    let text = text.trim();
    let unit = ["kB", "MB", "GB", "TB"].iter().position(|unit| text.ends_with(unit));
    let size = unit.and_then(|unit| {
        let number: u64 = text[..text.len() - 2].trim().parse().ok()?;
        number.checked_mul(1_000u64.pow(unit as u32 + 1)).filter(|bytes| *bytes > 0)
    });
    size.map(Keep::Bytes).ok_or_else(|| {
        "write a length of time (90m, 12h, 30d) or a size (500MB, 200GB, 2TB)".to_owned()
    })
}

/// How often a stream's numbers are told as JSON while its state stays.
const TELL: Duration = Duration::from_secs(10);

/// Watches streams, and says how they are.
pub(super) fn run(
    sources: Vec<LiveSource>,
    library: Writer,
    reader: Reader,
    loaded: Loaded,
    options: LiveOptions,
    json: bool,
) -> CommandResult {
    let display = Display::new(json);
    let watched = watch(sources, library, reader, loaded, options, &|event| display.show(event));
    display.finish();
    let report = watched.map_err(|error| match error.kind() {
        Kind::InvalidInput | Kind::NotFound | Kind::Unsupported => Failure::usage(error),
        _ => Failure::from(error),
    })?;
    if json {
        print_json("live_run", &report)?;
    } else {
        print_report(&report)?;
    }
    Ok(Outcome::Done)
}

/// A line a stream on a terminal, a line a change of state elsewhere, or JSON.
struct Display {
    json: bool,
    plain: bool,
    bars: MultiProgress,
    shown: Mutex<BTreeMap<SourceId, Shown>>,
}

struct Shown {
    bar: ProgressBar,
    state: StreamState,
    reason: Option<String>,
    told: Instant,
}

impl Display {
    fn new(json: bool) -> Self {
        Display {
            json,
            plain: !json && !std::io::stderr().is_terminal(),
            bars: MultiProgress::with_draw_target(if json {
                ProgressDrawTarget::hidden()
            } else {
                ProgressDrawTarget::stderr()
            }),
            shown: Mutex::default(),
        }
    }

    fn show(&self, event: &LiveEvent<'_>) {
        match event {
            LiveEvent::Stored(clip) if self.json => {
                // Whoever read this may have had enough; the work goes on, and the end tells.
                let _ = print_json("stored", clip);
            }
            LiveEvent::Heard(cue) if self.json => {
                let _ = print_json("heard", cue);
            }
            LiveEvent::Stored(_) | LiveEvent::Heard(_) => {}
            LiveEvent::Stream(status) => self.show_stream(status),
        }
    }

    fn show_stream(&self, status: &StreamStatus) {
        let mut all = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = !all.contains_key(&status.id);
        let shown = all.entry(status.id).or_insert_with(|| {
            // The template is a constant, and right; a plain bar would do as well.
            let style = ProgressStyle::with_template("{prefix:30} {msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = self.bars.add(ProgressBar::new_spinner().with_style(style));
            bar.set_prefix(one_line(&status.source));
            Shown { bar, state: status.state, reason: None, told: Instant::now() }
        });
        let is_away = matches!(status.state, StreamState::Connecting | StreamState::Waiting);
        let is_other =
            is_new || shown.state != status.state || (is_away && shown.reason != status.reason);
        shown.state = status.state;
        if self.json {
            if is_other || shown.told.elapsed() >= TELL {
                shown.told = Instant::now();
                let _ = print_json("stream", status);
            }
        } else if self.plain {
            // A stream that stays lost is not told again at each attempt.
            let is_attempt = status.state == StreamState::Connecting
                && shown.reason.is_some()
                && shown.reason == status.reason;
            if is_other && !is_attempt {
                note(&format!("{}: {}", one_line(&status.source), state_line(status)));
            }
        } else {
            shown.bar.set_message(format!("{}; {}", state_line(status), numbers_line(status)));
        }
        shown.reason = status.reason.clone().filter(|_| is_away);
    }

    fn finish(&self) {
        for shown in self.shown.lock().unwrap_or_else(PoisonError::into_inner).values() {
            shown.bar.finish_and_clear();
        }
    }
}

/// `live since 10:02:10`, `lost at 10:02:10: camera unreachable: connection refused; again in 4 s`.
fn state_line(status: &StreamStatus) -> String {
    let since = clock(status.since_us);
    let reason = status.reason.as_deref().map(one_line).unwrap_or_default();
    match status.state {
        StreamState::Connecting if reason.is_empty() => format!("connecting since {since}"),
        StreamState::Connecting => format!("connecting since {since}; {reason}"),
        StreamState::Live => format!("live since {since}"),
        StreamState::Waiting => match status.retry_secs {
            Some(secs) => format!("{since} {reason}; again in {secs:.1} s"),
            None => format!("{since} {reason}"),
        },
        StreamState::Ended => format!("ended at {since}"),
    }
}

/// What came, and what was lost of it.
fn numbers_line(status: &StreamStatus) -> String {
    let received = &status.frames.received;
    let mut line = format!(
        "{}, {} received, {} encoded",
        counted(status.clips, "clip"),
        counted(received.received, "frame"),
        received.encoded
    );
    for (count, what) in [
        (received.behind, "dropped: behind"),
        (received.before_keyframe, "dropped: no keyframe yet"),
        (status.frames.host_ended, "dropped: the decoder ended"),
        (received.undecodable, "undecodable"),
        (received.in_hardware, "decoded in hardware"),
        (received.unrecorded, "not recorded"),
        (received.lost_packets, "packets lost"),
    ] {
        if count > 0 {
            line.push_str(&format!(", {count} {what}"));
        }
    }
    if status.recorded_bytes > 0 {
        line.push_str(&format!(", {} MB recorded", status.recorded_bytes / 1_000_000));
    }
    if let Some(delay) = status.delay_secs {
        line.push_str(&format!(", delay {delay:.1} s"));
    }
    if let Some(delay) = status.segment_delay_secs {
        let segments = counted(status.made.segments, "segment");
        let captions = counted(status.made.captions, "caption");
        line.push_str(&format!("; {segments} and {captions}, delay {delay:.1} s"));
    }
    if let Some(sound) = &status.sound {
        line.push_str(&format!("; sound: {}", sound_line(sound)));
    }
    if let Some(ahead_us) = received.sender_ahead_us.filter(|_| !received.is_sender_time) {
        let secs = ahead_us as f64 / 1e6;
        line.push_str(&format!(", the camera's clock is {secs:+.0} s off and not used"));
    }
    line
}

/// What came of the sound, and what was lost of it.
fn sound_line(sound: &Sound) -> String {
    let mut line = format!(
        "{}, {:.0} s received, {:.0} s with speech",
        counted(sound.cues, "cue"),
        sound.received.as_secs_f64(),
        sound.heard.as_secs_f64()
    );
    for (length, what) in [
        (sound.behind, "dropped: behind"),
        (sound.repeated, "dropped: of a time before"),
        (sound.unreadable, "could not be read"),
    ] {
        if length > Micros::ZERO {
            line.push_str(&format!(", {:.1} s {what}", length.as_secs_f64()));
        }
    }
    for (count, what) in
        [(sound.undecodable, "packets undecodable"), (sound.undecoded, "packets dropped: behind")]
    {
        if count > 0 {
            line.push_str(&format!(", {count} {what}"));
        }
    }
    if let Some(delay) = sound.delay_secs {
        line.push_str(&format!(", delay {delay:.1} s"));
    }
    line
}

fn print_report(report: &LiveReport) -> Result<(), Error> {
    for status in &report.streams {
        let mut line = format!("{}: {}", one_line(&status.source), numbers_line(status));
        line.push_str(&format!(", {}", counted(status.sessions, "connection")));
        if status.deleted_clips > 0 {
            line.push_str(&format!(
                ", {} deleted by --keep",
                counted(status.deleted_clips, "clip")
            ));
        }
        if status.gaps > 0 {
            let gaps = counted(status.gaps, "gap");
            line.push_str(&format!(", {gaps} ({:.1} s)", status.gap_secs));
        }
        print_line(&line)?;
    }
    Ok(())
}

/// The time of day, in the zone of whoever looks.
fn clock(wall_us: i64) -> String {
    let at = Timestamp::from_microsecond(wall_us).unwrap_or(Timestamp::UNIX_EPOCH);
    TimeZone::system().to_datetime(at).strftime("%H:%M:%S").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::{ClipSpan, Frames, HeardCue, Made, StoredClip};
    use crate::source::Received;

    #[test]
    fn what_is_kept_is_a_length_or_a_size() {
        assert_eq!(keep("30d"), Ok(Keep::Lately(Micros(30 * 86_400_000_000))));
        assert_eq!(keep("200GB"), Ok(Keep::Bytes(200_000_000_000)));
        assert_eq!(keep("5 kB"), Ok(Keep::Bytes(5_000)));
        for wrong in ["", "30", "d", "GB", "0GB", "0d", "-1GB", "1.5GB", "99999999999TB", "30µB"] {
            assert!(keep(wrong).is_err(), "{wrong}");
        }
    }

    const SINCE_US: i64 = 1_764_324_130_250_000;

    fn status(state: StreamState) -> StreamStatus {
        StreamStatus {
            source: "door".to_owned(),
            id: "7d0cfbb2-5a5f-4a3d-9d7a-6f6a3a1f5b11".parse().unwrap(),
            state,
            since_us: SINCE_US,
            reason: None,
            lost_since_us: None,
            retry_secs: None,
            sessions: 1,
            frames: Frames::default(),
            clips: 0,
            gaps: 0,
            gap_secs: 0.0,
            deleted_clips: 0,
            recorded_bytes: 0,
            delay_secs: None,
            made: Made::default(),
            segment_delay_secs: None,
            sound: None,
        }
    }

    #[test]
    fn each_state_has_a_line() {
        let at = clock(SINCE_US);
        let line = |state| state_line(&status(state));
        assert_eq!(line(StreamState::Connecting), format!("connecting since {at}"));
        assert_eq!(line(StreamState::Live), format!("live since {at}"));
        assert_eq!(line(StreamState::Ended), format!("ended at {at}"));
        let mut lost = status(StreamState::Waiting);
        lost.reason = Some("camera unreachable: connection\nrefused".to_owned());
        let said = format!("{at} camera unreachable: connection refused");
        assert_eq!(state_line(&lost), said);
        lost.retry_secs = Some(3.96);
        assert_eq!(state_line(&lost), format!("{said}; again in 4.0 s"));
        // Why it was lost last is no matter once it is there again.
        lost.state = StreamState::Live;
        assert_eq!(state_line(&lost), format!("live since {at}"));
    }

    #[test]
    fn every_loss_is_in_the_line_of_numbers_and_what_is_nothing_is_not() {
        let mut seen = status(StreamState::Live);
        (seen.clips, seen.delay_secs) = (1, Some(0.34));
        seen.frames.received = Received { received: 90, encoded: 2, ..Received::default() };
        assert_eq!(numbers_line(&seen), "1 clip, 90 frames received, 2 encoded, delay 0.3 s");
        seen.frames.received = Received {
            behind: 3,
            before_keyframe: 4,
            undecodable: 5,
            in_hardware: 6,
            unrecorded: 7,
            lost_packets: 8,
            sender_ahead_us: Some(-61_000_000),
            ..seen.frames.received
        };
        seen.frames.host_ended = 9;
        seen.recorded_bytes = 12_000_000;
        (seen.made.segments, seen.segment_delay_secs) = (1, Some(1.5));
        seen.sound = Some(Sound {
            received: Micros(60_000_000),
            heard: Micros(20_000_000),
            behind: Micros(1_000_000),
            repeated: Micros(2_000_000),
            unreadable: Micros(3_000_000),
            undecodable: 4,
            undecoded: 5,
            cues: 2,
            delay_secs: Some(2.0),
            ..Sound::default()
        });
        assert_eq!(
            numbers_line(&seen),
            "1 clip, 90 frames received, 2 encoded, 3 dropped: behind, 4 dropped: no keyframe yet, \
             9 dropped: the decoder ended, 5 undecodable, 6 decoded in hardware, 7 not recorded, \
             8 packets lost, 12 MB recorded, delay 0.3 s; 1 segment and 0 captions, delay 1.5 s; \
             sound: 2 cues, 60 s received, 20 s with speech, 1.0 s dropped: behind, \
             2.0 s dropped: of a time before, 3.0 s could not be read, 4 packets undecodable, \
             5 packets dropped: behind, delay 2.0 s, the camera's clock is -61 s off and not used"
        );
        seen.frames.received.is_sender_time = true;
        assert!(!numbers_line(&seen).contains("clock"));
    }

    #[test]
    fn the_keys_of_json_lines_are_those_that_are_documented() {
        let documented = include_str!("../../docs/json.md");
        let check = |value: serde_json::Value, wanted: &str| {
            let keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
            let mut wanted: Vec<&str> = wanted.split_whitespace().collect();
            wanted.sort_unstable();
            assert_eq!(keys, wanted);
            for key in wanted {
                assert!(documented.contains(&format!("`{key}`")), "{key}");
            }
        };
        let mut stream = status(StreamState::Live);
        stream.sound = Some(Sound::default());
        let json = serde_json::to_value(&stream).unwrap();
        check(
            json["sound"].clone(),
            "received_us heard_us without_speech_us behind_us repeated_us unreadable_us under_way_us \
             undecodable undecoded cues gaps gap_secs delay_secs",
        );
        check(
            json,
            "source id state since_us reason lost_since_us retry_secs sessions received encoded skipped \
             before_keyframe behind host_ended undecodable under_way in_hardware unrecorded \
             recorded_bytes sender_ahead_us is_sender_time lost_packets jumps clips gaps gap_secs \
             deleted_clips delay_secs segments captions segment_delay_secs sound",
        );
        let states = [
            (StreamState::Connecting, "connecting"),
            (StreamState::Live, "live"),
            (StreamState::Waiting, "waiting"),
            (StreamState::Ended, "ended"),
        ];
        for (state, name) in states {
            assert_eq!(serde_json::to_value(state).unwrap(), name);
        }
        let span = ClipSpan { start_us: 0, end_us: 1 };
        let clip =
            StoredClip { source: stream.source.clone(), id: stream.id, span, delay_secs: None };
        check(serde_json::to_value(clip).unwrap(), "source id start_us end_us delay_secs");
        let cue = HeardCue {
            source: stream.source.clone(),
            id: stream.id,
            span,
            text: String::new(),
            language: None,
            delay_secs: 0.0,
        };
        let wanted = "source id start_us end_us text language delay_secs";
        check(serde_json::to_value(cue).unwrap(), wanted);
        let made = Made::default();
        let report =
            LiveReport { streams: vec![stream], made, elapsed_secs: 0.0, stages: Vec::new() };
        let wanted = "streams segments captions elapsed_secs stages";
        check(serde_json::to_value(report).unwrap(), wanted);
    }
}
