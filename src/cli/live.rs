//! `cinelex index` of live streams: until Ctrl-C.

use std::collections::{BTreeMap, BTreeSet};
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
use super::library::watch::LOSSES;
use super::progress::bars;
use super::when::{Lately, wall_clock};
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

/// How long a stream may be silent unless told otherwise.
const SILENCE: Duration = Duration::from_secs(10);
/// What pauses grow to unless told otherwise.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

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
    /// search --export cuts moments; of streams that are listened to (--listen), with their sound
    #[arg(long)]
    record: bool,
    /// A stream that brings no frame for so long is lost, and connected again; 10 unless told otherwise
    #[arg(long, value_name = "SECS", value_parser = super::positive_secs)]
    silence: Option<Duration>,
    /// Pauses before a lost stream is tried again grow to this; 30 unless told otherwise
    #[arg(long, value_name = "SECS", value_parser = super::positive_secs)]
    longest_pause: Option<Duration>,
    /// Keep of all live sources in the library only what was recorded in so long up to now (30d, 12h),
    /// or what the library has room for in so many bytes (200GB): the oldest is deleted, two minutes at a
    /// time
    #[arg(long, value_name = "LENGTH|SIZE", value_parser = keep)]
    pub keep: Option<Keep>,
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
            return match self.first_given() {
                Some(option) => Err(Failure::usage(Error::invalid_input(format!(
                    "{option} is for live streams, and none is named: leave it out, name streams, or play \
                     files as if they were live (--as-live)"
                )))),
                None => Ok(None),
            };
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
        let streams = streams.map_err(Failure::usage)?;
        if streams.is_empty() {
            return Err(Failure::usage(Error::invalid_input("the list of sources is empty")));
        }
        if self.udp && !streams.iter().any(|stream| stream.location.is_rtsp()) {
            return Err(Failure::usage(Error::invalid_input(
                "--udp is for RTSP, and none of these streams comes so: leave it out",
            )));
        }
        for name in shown_alike(&streams) {
            note(&format!(
                "{name} is what several of these streams are called, since what follows `?` in an address \
                 may be secret: give them names of their own (--streams FILE)"
            ));
        }
        Ok(Some(streams))
    }

    /// An option that has no effect where nothing is live.
    fn first_given(&self) -> Option<&'static str> {
        let options = [
            (self.udp, "--udp"),
            (self.record, "--record"),
            (self.silence.is_some(), "--silence"),
            (self.longest_pause.is_some(), "--longest-pause"),
            (self.keep.is_some(), "--keep"),
        ];
        options.into_iter().find(|(is_given, _)| *is_given).map(|(_, option)| option)
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
        LiveOptions {
            batch,
            hardware,
            tags,
            silence: self.silence.unwrap_or(SILENCE),
            longest_pause: self.longest_pause.unwrap_or(LONGEST_PAUSE),
            keep: self.keep,
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

/// The names that addresses share which differ only in what is not shown of them, as do the channels of a recorder.
fn shown_alike(streams: &[LiveSource]) -> BTreeSet<String> {
    let mut seen = BTreeMap::new();
    let mut alike = BTreeSet::new();
    for LiveSource { location, .. } in streams {
        let name = location.to_string();
        if *seen.entry(name.clone()).or_insert(location) != location {
            alike.insert(name);
        }
    }
    alike
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
/// How often a log is told again that a stream is lost.
const REMIND: Duration = Duration::from_secs(3_600);

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
    let is_file: Vec<bool> =
        sources.iter().map(|source| matches!(source.location, Location::File(_))).collect();
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
    // A camera of which nothing came is waited for until Ctrl-C; a file was tried.
    let mut files = report.streams.iter().zip(is_file).filter(|(_, is_file)| *is_file);
    let is_failed =
        files.any(|(stream, _)| stream.frames.received.received == 0 && stream.reason.is_some());
    Ok(if is_failed { Outcome::SomeFailed } else { Outcome::Done })
}

/// A line a stream on a terminal, lines of what is news elsewhere, or JSON.
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
    not_stored: Option<String>,
    told: Instant,
    log: Log,
}

/// What a log was told of a stream.
#[derive(Default)]
struct Log {
    state: Option<StreamState>,
    /// Why it is lost, and when that was told.
    losses: Vec<(String, Instant)>,
}

impl Log {
    /// Whether this is to be told. Attempts are no news: of a stream that stays lost there are thousands a day.
    fn is_news(&mut self, status: &StreamStatus, now: Instant) -> bool {
        let is_other = self.state.replace(status.state) != Some(status.state);
        match (status.state, &status.reason) {
            (StreamState::Connecting | StreamState::Waiting, Some(reason)) => {
                self.losses.retain(|(_, told)| now.duration_since(*told) < REMIND);
                let is_news = self.losses.iter().all(|(known, _)| known != reason);
                if is_news {
                    self.losses.push((reason.clone(), now));
                }
                is_news
            }
            _ => {
                self.losses.clear();
                is_other
            }
        }
    }
}

impl Display {
    fn new(json: bool) -> Self {
        Display {
            json,
            plain: !json && !std::io::stderr().is_terminal(),
            bars: match json {
                true => MultiProgress::with_draw_target(ProgressDrawTarget::hidden()),
                false => bars(),
            },
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
            let (state, told) = (status.state, Instant::now());
            Shown { bar, state, reason: None, not_stored: None, told, log: Log::default() }
        });
        let now_us = Timestamp::now().as_microsecond();
        if self.json {
            let is_away = matches!(status.state, StreamState::Connecting | StreamState::Waiting);
            let is_other = is_new
                || shown.state != status.state
                || shown.not_stored != status.not_stored
                || (is_away && shown.reason != status.reason);
            if is_other || shown.told.elapsed() >= TELL {
                shown.told = Instant::now();
                let _ = print_json("stream", status);
            }
            shown.state = status.state;
            shown.not_stored.clone_from(&status.not_stored);
            shown.reason = status.reason.clone().filter(|_| is_away);
        } else if self.plain {
            if shown.log.is_news(status, Instant::now()) {
                note(&format!("{}: {}", one_line(&status.source), state_line(status, now_us)));
            }
        } else {
            shown.bar.set_message(whole_line(status, now_us));
        }
    }

    fn finish(&self) {
        for shown in self.shown.lock().unwrap_or_else(PoisonError::into_inner).values() {
            shown.bar.finish_and_clear();
        }
    }
}

/// `live since 10:02:10`, `lost since 10:02:10: camera unreachable: connection refused; again in 4 s`; with why nothing
/// can be stored.
fn state_line(status: &StreamStatus, now_us: i64) -> String {
    let since = clock(status.since_us, now_us);
    let lost = || {
        let reason = one_line(status.reason.as_deref()?);
        let lost_us = status.lost_since_us.unwrap_or(status.since_us);
        Some(format!("lost since {}: {reason}", clock(lost_us, now_us)))
    };
    let state = match status.state {
        StreamState::Connecting => match lost() {
            Some(lost) => format!("{lost}; connecting since {since}"),
            None => format!("connecting since {since}"),
        },
        StreamState::Live => format!("live since {since}"),
        StreamState::Waiting => {
            let lost = lost().unwrap_or_else(|| format!("lost since {since}"));
            let again = status.retry_secs.map(|secs| format!("; again in {secs:.1} s"));
            lost + &again.unwrap_or_default()
        }
        StreamState::Ended => format!("ended at {since}"),
    };
    match &status.not_stored {
        Some(reason) => format!("{state}; not stored: {}", one_line(reason)),
        None => state,
    }
}

/// All about a stream, with why it was lost last where it is there again.
fn whole_line(status: &StreamStatus, now_us: i64) -> String {
    let mut line = format!("{}; {}", state_line(status, now_us), numbers_line(status));
    if let (StreamState::Live, Some(reason)) = (status.state, &status.reason) {
        line.push_str(&format!("; lost before that: {}", one_line(reason)));
    }
    line
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
    // Numbers are all that there is, so there is always such a value.
    let numbers = serde_json::to_value(status.frames).unwrap_or_default();
    for (key, what) in LOSSES {
        let count = numbers[key].as_u64().unwrap_or(0);
        // Some always are, and it is told each second.
        if count > 0 && *key != "under_way" {
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
    if status.unsegmented > 0 {
        line.push_str(&format!(", no segments of {}", counted(status.unsegmented, "chunk")));
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
    for (count, what) in [
        (sound.undecodable, "packets undecodable"),
        (sound.undecoded, "packets dropped: behind"),
        (sound.unrecorded, "packets not recorded"),
    ] {
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

/// The time of day, in the zone of whoever looks; with the date where that is another than that of `now_us`.
fn clock(wall_us: i64, now_us: i64) -> String {
    let [at, now] = [wall_us, now_us].map(|us| {
        let at = Timestamp::from_microsecond(us).unwrap_or(Timestamp::UNIX_EPOCH);
        TimeZone::system().to_datetime(at)
    });
    if at.date() == now.date() { at.strftime("%H:%M:%S").to_string() } else { wall_clock(wall_us) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::{ClipSpan, HeardCue, Made, StoredClip};
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
        let id = "7d0cfbb2-5a5f-4a3d-9d7a-6f6a3a1f5b11".parse().unwrap();
        StreamStatus { state, sessions: 1, ..StreamStatus::new("door".to_owned(), id, SINCE_US) }
    }

    #[test]
    fn each_state_has_a_line() {
        let at = clock(SINCE_US, SINCE_US);
        let say = |status: &StreamStatus| state_line(status, SINCE_US);
        let line = |state| say(&status(state));
        assert_eq!(line(StreamState::Connecting), format!("connecting since {at}"));
        assert_eq!(line(StreamState::Live), format!("live since {at}"));
        assert_eq!(line(StreamState::Ended), format!("ended at {at}"));
        let mut lost = status(StreamState::Waiting);
        lost.reason = Some("camera unreachable: connection\nrefused".to_owned());
        let why = "camera unreachable: connection refused";
        assert_eq!(say(&lost), format!("lost since {at}: {why}"));
        // However often it is tried, it is lost since then.
        let lost_us = SINCE_US - 3 * 86_400_000_000;
        let since = wall_clock(lost_us);
        (lost.lost_since_us, lost.retry_secs) = (Some(lost_us), Some(3.96));
        assert_eq!(say(&lost), format!("lost since {since}: {why}; again in 4.0 s"));
        lost.state = StreamState::Connecting;
        assert_eq!(say(&lost), format!("lost since {since}: {why}; connecting since {at}"));
        (lost.state, lost.lost_since_us) = (StreamState::Live, None);
        assert_eq!(say(&lost), format!("live since {at}"));
        let numbers = numbers_line(&lost);
        let whole = format!("live since {at}; {numbers}; lost before that: {why}");
        assert_eq!(whole_line(&lost, SINCE_US), whole);
        lost.not_stored = Some("the disk is full".to_owned());
        assert_eq!(say(&lost), format!("live since {at}; not stored: the disk is full"));
    }

    #[test]
    fn times_of_another_day_have_a_date() {
        let [today, later] = [SINCE_US, SINCE_US + 86_400_000_000];
        assert_eq!(clock(SINCE_US, later), wall_clock(SINCE_US));
        assert_eq!(clock(SINCE_US, today).len(), "10:02:10".len());
    }

    #[test]
    fn a_log_is_told_what_is_news_and_each_hour_that_a_stream_is_still_lost() {
        let (mut log, began) = (Log::default(), Instant::now());
        let mut told = |state, reason: Option<&str>, secs: u64| {
            let reason = reason.map(str::to_owned);
            let status = StreamStatus { reason, ..status(state) };
            log.is_news(&status, began + Duration::from_secs(secs))
        };
        let refused = Some("camera unreachable: connection refused");
        let silent = Some("stream lost: no frame came for 10 s");
        assert!(told(StreamState::Connecting, None, 0) && !told(StreamState::Connecting, None, 1));
        assert!(told(StreamState::Waiting, refused, 2));
        // Two reasons that take turns are told once each.
        for attempt in 1..60 {
            let reason = if attempt % 2 == 0 { refused } else { silent };
            assert!(!told(StreamState::Connecting, refused, 30 * attempt));
            assert_eq!(told(StreamState::Waiting, reason, 30 * attempt), attempt == 1);
        }
        assert!(!told(StreamState::Waiting, refused, 3_601));
        assert!(told(StreamState::Waiting, refused, 3_602));
        assert!(!told(StreamState::Waiting, refused, 3_603));
        assert!(
            told(StreamState::Live, refused, 3_700) && !told(StreamState::Live, refused, 3_710)
        );
        assert!(told(StreamState::Waiting, refused, 3_720));
        assert!(
            told(StreamState::Ended, refused, 3_730) && !told(StreamState::Ended, refused, 3_731)
        );
    }

    #[test]
    fn addresses_that_are_shown_alike_are_found() {
        let streams = |addresses: &[&str]| -> Vec<LiveSource> {
            let locations = addresses.iter().map(|address| Location::from_text(address.as_ref()));
            let source = |location| LiveSource {
                name: None,
                location,
                transport: Transport::Tcp,
                ca: None,
                record: false,
                listen: false,
            };
            locations.map(source).collect()
        };
        let channels = ["rtsp://nvr/x?channel=1", "rtsp://nvr/y", "rtsp://nvr/x?channel=2"];
        assert!(shown_alike(&streams(&channels)).iter().eq(["rtsp://nvr/x"]));
        // One that is named twice is an error by itself.
        assert!(shown_alike(&streams(&[channels[0], channels[1], channels[0]])).is_empty());
    }

    #[test]
    fn every_loss_is_in_the_line_of_numbers_and_what_is_nothing_is_not() {
        let mut seen = status(StreamState::Live);
        (seen.clips, seen.delay_secs) = (1, Some(0.34));
        seen.frames.received = Received { received: 90, encoded: 2, ..Received::default() };
        assert_eq!(numbers_line(&seen), "1 clip, 90 frames received, 2 encoded, delay 0.3 s");
        seen.frames.received = Received {
            skipped: 56,
            behind: 3,
            before_keyframe: 4,
            undecodable: 5,
            in_hardware: 6,
            unrecorded: 7,
            lost_packets: 8,
            jumps: 10,
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
            unrecorded: 6,
            cues: 2,
            delay_secs: Some(2.0),
            ..Sound::default()
        });
        assert_eq!(
            numbers_line(&seen),
            "1 clip, 90 frames received, 2 encoded, 56 skipped, 3 dropped: behind, \
             4 dropped: no keyframe yet, 9 dropped: the decoder ended, 5 undecodable, 6 decoded in hardware, 7 not recorded, \
             8 packets lost, 10 jumps of its timestamps, 12 MB recorded, delay 0.3 s; 1 segment and 0 captions, delay 1.5 s; \
             sound: 2 cues, 60 s received, 20 s with speech, 1.0 s dropped: behind, \
             2.0 s dropped: of a time before, 3.0 s could not be read, 4 packets undecodable, \
             5 packets dropped: behind, 6 packets not recorded, delay 2.0 s, the camera's clock is -61 s off and not used"
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
             undecodable undecoded unrecorded cues gaps gap_secs delay_secs",
        );
        check(
            json,
            "source id state since_us reason lost_since_us retry_secs not_stored sessions received encoded skipped \
             before_keyframe behind host_ended undecodable under_way in_hardware unrecorded \
             recorded_bytes sender_ahead_us is_sender_time lost_packets jumps clips gaps gap_secs \
             deleted_clips delay_secs segments captions unsegmented segment_delay_secs sound",
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
