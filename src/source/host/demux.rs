//! Opening a source and reading its packets in the media's own time.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use ffmpeg_next as ffmpeg;

use ffmpeg::format::context::{Input, StreamIo};
use ffmpeg::format::stream::Disposition;
use ffmpeg::{Dictionary, Packet};

use super::orientation::Orientation;
use super::{explain, ffi};
use crate::error::{Error, Kind, Result};
use crate::media::TrackKind;
use crate::source::protocol::{Address, MediaInfo, Rational, Track};
use crate::time::{Micros, Timestamp};

const MICROS: Rational = Rational { num: 1, den: 1_000_000 };
/// One read of a file; larger than FFmpeg's 32 KiB, since each is a system call.
const READ_BYTES: usize = 128 << 10;
/// What FFmpeg may open by itself: nothing for a file, whatever a playlist in it says.
const NO_PROTOCOLS: &str = "none";
const WEB_PROTOCOLS: &str = "http,https,tls,tcp,crypto,httpproxy";
const WEB_TIMEOUT_MICROS: &str = "20000000";
/// Errors in a row after which a file is given up.
const MAX_READ_ERRORS: u32 = 256;
/// A jump of the timestamps by more than this is another clock, where the format allows jumps.
/// FFmpeg's own programs use the same 10 s forwards.
const JUMP_FORWARD: Micros = Micros(10_000_000);
const JUMP_BACK: Micros = Micros(-500_000);
const MAX_JUMPS_TOLD: usize = 10;
/// A thousand tracks with titles fit into one message of the protocol.
const MAX_METADATA_CHARS: usize = 200;

/// An open source.
pub(super) struct Source {
    input: Input,
    info: MediaInfo,
    /// For opening it again.
    address: Address,
    file: Option<File>,
    clock: Option<Clock>,
    is_keeping: Vec<bool>,
}

/// What reading on gave.
pub(super) enum Next {
    Packet(Packet),
    End,
    /// Reading broke off.
    Broken(ffmpeg::Error),
}

impl Source {
    pub fn open(address: Address, file: Option<File>) -> Result<Source> {
        let input = open(&address, file.as_ref())?;
        Self::new(input, address, file)
    }

    /// A subtitle file in memory. Its times are the film's, so the first one is no origin.
    pub fn from_text(stream: StreamIo, extension: Option<&str>) -> Result<Source> {
        let mut options = Dictionary::new();
        options.set("protocol_whitelist", NO_PROTOCOLS);
        let name = extension.map(|extension| format!("source.{extension}"));
        let input = ffmpeg::format::input_from_stream(stream, name.as_deref(), Some(options))
            .map_err(|cause| explain("not a subtitle file that FFmpeg can read", cause))?;
        let address = Address::Descriptor { extension: extension.map(str::to_owned) };
        let mut source = Self::new(input, address, None)?;
        source.info.origin = Micros::ZERO;
        Ok(source)
    }

    fn new(input: Input, address: Address, file: Option<File>) -> Result<Source> {
        if input.nb_streams() == 0 {
            return Err(Error::corrupt("no track that FFmpeg can read"));
        }
        let info = describe(&input);
        let name = info.container.as_str();
        if info.duration.is_none() && (name == "hls" || name == "dash") {
            return Err(Error::unsupported(
                "a stream without an end: `cinelex index --as-live` takes those",
            ));
        }
        let clock = ffi::may_jump(&input).then(|| Clock::new(info.tracks.len()));
        let is_keeping = vec![true; info.tracks.len()];
        Ok(Source { input, info, address, file, clock, is_keeping })
    }

    /// The same source, opened beside this one.
    pub fn another(&self) -> Result<Source> {
        let file = self.file.as_ref().map(File::try_clone).transpose().map_err(|cause| {
            Error::internal("cannot share the file's descriptor").caused_by(cause)
        })?;
        Self::open(self.address.clone(), file)
    }

    /// Opens the source once more, to read from its start.
    pub fn reopen(&mut self) -> Result<()> {
        self.input = open(&self.address, self.file.as_ref())?;
        if let Some(clock) = &mut self.clock {
            *clock = Clock::new(self.info.tracks.len());
        }
        self.apply_keeping();
        Ok(())
    }

    pub fn info(&self) -> &MediaInfo {
        &self.info
    }

    pub fn input(&self) -> &Input {
        &self.input
    }

    /// The track to read: the one that was asked for, or the source's own choice.
    pub fn choose(&self, kind: TrackKind, wanted: Option<u32>) -> Result<Track> {
        let chosen = match kind {
            TrackKind::Picture => self.info.picture,
            TrackKind::Sound => self.info.sound,
            TrackKind::Text => None,
        };
        let Some(index) = wanted.or(chosen) else {
            return Err(Error::not_found(format!("no {kind} track")));
        };
        match self.info.track(index) {
            Some(track) if track.kind == Some(kind) => Ok(track.clone()),
            _ => Err(Error::not_found(format!("track {index} is no {kind} track"))),
        }
    }

    /// Opens the decoder of a track.
    pub fn decoder(&self, track: &Track, threads: u16) -> Result<ffmpeg::decoder::Opened> {
        let stream = self
            .input
            .stream(track.index as usize)
            .ok_or_else(|| Error::corrupt("the track is gone"))?;
        let parameters = stream.parameters();
        let codec = ffmpeg::decoder::find(parameters.id()).ok_or_else(|| {
            Error::unsupported(format!("this FFmpeg has no decoder for {}", track.codec))
        })?;
        let cannot = |cause| cannot_decode(track, cause);
        let mut decoder =
            ffmpeg::codec::Context::from_parameters(parameters).map_err(cannot)?.decoder();
        decoder.set_packet_time_base(stream.time_base());
        let mut options = Dictionary::new();
        options.set("threads", &threads.max(1).to_string());
        decoder.open_as_with(codec, options).map_err(cannot)
    }

    /// How the track's pictures are to be turned, unless a frame says otherwise.
    pub fn orientation(&self, track: &Track) -> Orientation {
        orientation(&self.input, track.index as usize)
    }

    /// Reads packets of these tracks only.
    pub fn keep(&mut self, tracks: &[u32]) {
        for (index, track) in self.info.tracks.iter().enumerate() {
            // The tracks share a clock that may jump: the jump shows on any of them.
            let shares_clock = self.clock.is_some()
                && matches!(track.kind, Some(TrackKind::Picture | TrackKind::Sound));
            self.is_keeping[index] = shares_clock || tracks.contains(&track.index);
        }
        self.apply_keeping();
    }

    fn apply_keeping(&mut self) {
        let keeping = &self.is_keeping;
        // Tracks that turn up later are not known, so not wanted.
        ffi::keep_tracks(&mut self.input, |index| keeping.get(index).copied().unwrap_or(false));
    }

    pub fn seek(&mut self, track: &Track, raw_pts: i64) -> Result<(), ffmpeg::Error> {
        ffi::seek(&mut self.input, track.index as usize, raw_pts)
    }

    /// The next packet of any kept track, its times on the continuous clock.
    pub fn next(&mut self) -> Next {
        let mut packet = Packet::empty();
        for _ in 0..MAX_READ_ERRORS {
            match packet.read(&mut self.input) {
                Ok(()) => {
                    if let Some(clock) = &mut self.clock
                        && let Some(track) = self.info.tracks.get(packet.stream())
                    {
                        clock.adjust(&mut packet, track);
                    }
                    return Next::Packet(packet);
                }
                Err(ffmpeg::Error::Eof) => {
                    // What a server promises, it owes; a file may grow while it is read.
                    let is_cut =
                        || matches!(self.address, Address::Url(_)) && ffi::ended_early(&self.input);
                    let broken = ffi::read_error(&self.input).or_else(|| {
                        is_cut()
                            .then_some(ffmpeg::Error::Other { errno: ffmpeg::error::ECONNRESET })
                    });
                    return broken.map_or(Next::End, Next::Broken);
                }
                // The demuxer finds its way again.
                Err(ffmpeg::Error::InvalidData) => {}
                Err(ffmpeg::Error::Other { errno: ffmpeg::error::EAGAIN }) => {}
                Err(error) => return Next::Broken(error),
            }
        }
        Next::Broken(ffmpeg::Error::InvalidData)
    }

    /// Media time of a track's pts.
    pub fn time_of(&self, track: &Track, pts: i64) -> Timestamp {
        let micros = ffi::rescale_down(pts, track.time_base, MICROS);
        Timestamp(micros.saturating_sub(self.info.origin.0))
    }

    /// A track's pts at or before a media time.
    pub fn pts_at(&self, track: &Track, at: Timestamp) -> i64 {
        let micros = at.0.saturating_add(self.info.origin.0);
        ffi::rescale_down(micros, MICROS, track.time_base)
    }

    /// The container's own pts of what is at `pts` on the continuous clock.
    pub fn raw_pts(&self, track: &Track, pts: i64) -> i64 {
        self.clock.as_ref().map_or(pts, |clock| clock.raw_pts(track, pts))
    }

    /// Where the timestamps jumped since this was last asked, for the report.
    pub fn take_jumps(&mut self) -> Vec<String> {
        self.clock.as_mut().map(|clock| std::mem::take(&mut clock.jumps)).unwrap_or_default()
    }
}

pub(super) fn cannot_decode(track: &Track, cause: ffmpeg::Error) -> Error {
    explain(&format!("the {} decoder cannot be opened", track.codec), cause)
}

pub(super) fn length_of(track: &Track, duration: i64) -> Micros {
    Micros(ffi::rescale_down(duration, track.time_base, MICROS))
}

fn open(address: &Address, file: Option<&File>) -> Result<Input> {
    let not_media = |cause| match cause {
        ffmpeg::Error::InvalidData | ffmpeg::Error::Eof => {
            explain("not media that FFmpeg can read, or damaged at its start", cause)
        }
        _ => explain("cannot be opened as media", cause),
    };
    let mut options = Dictionary::new();
    match address {
        Address::Descriptor { extension } => {
            let file = file.ok_or_else(|| Error::internal("a request without its descriptor"))?;
            let file = file.try_clone().map_err(|cause| {
                Error::internal("cannot share the file's descriptor").caused_by(cause)
            })?;
            let metadata = file.metadata().ok();
            let is_regular = metadata.as_ref().is_some_and(|metadata| metadata.is_file());
            if is_regular && metadata.is_some_and(|metadata| metadata.len() == 0) {
                return Err(Error::corrupt("the file is empty"));
            }
            options.set("protocol_whitelist", NO_PROTOCOLS);
            let name = extension.as_ref().map(|extension| format!("source.{extension}"));
            let stream = if is_regular {
                StreamIo::from_read_seek_with_capacity(Positioned { file, at: 0 }, READ_BYTES)
            } else {
                StreamIo::from_read_with_capacity(file, READ_BYTES)
            };
            let stream = stream.map_err(not_media)?;
            ffmpeg::format::input_from_stream(stream, name.as_deref(), Some(options))
                .map_err(not_media)
        }
        Address::Url(url) => {
            if url.contains('\0') {
                return Err(Error::invalid_input("an address with a zero byte"));
            }
            options.set("protocol_whitelist", WEB_PROTOCOLS);
            options.set("rw_timeout", WEB_TIMEOUT_MICROS);
            options.set("tls_verify", "1");
            ffmpeg::format::input_with_dictionary(url.as_str(), options).map_err(|cause| {
                let error = explain("cannot be fetched", cause);
                // The cause's text is FFmpeg's; it holds no address.
                if error.kind() == Kind::Corrupt { not_media(cause) } else { error }
            })
        }
    }
}

/// A file read at a position of its own: the descriptor's offset is shared with the parent's.
struct Positioned {
    file: File,
    at: u64,
}

impl Read for Positioned {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

impl Seek for Positioned {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let outside = || io::Error::new(io::ErrorKind::InvalidInput, "a seek outside the file");
        let (base, by) = match to {
            SeekFrom::Start(at) => {
                self.at = at;
                return Ok(at);
            }
            SeekFrom::Current(by) => (self.at, by),
            // Asked anew each time, since the file may be growing.
            SeekFrom::End(by) => (self.file.metadata()?.len(), by),
        };
        self.at = base.checked_add_signed(by).ok_or_else(outside)?;
        Ok(self.at)
    }
}

/// Joins the clocks of a stream whose timestamps jump (joined recordings, a restarted encoder)
/// into one that goes on. All tracks move to a new clock by the same amount, each when its own
/// packets do, so picture and sound stay together.
struct Clock {
    /// Of the newest clock, in microseconds.
    offset: i64,
    tracks: Vec<TrackClock>,
    jumps: Vec<String>,
}

#[derive(Clone, Default)]
struct TrackClock {
    offset: i64,
    /// Decode time of the last packet on the continuous clock, in microseconds.
    last: Option<i64>,
    /// Since when (continuous pts, in the track's time base) which offset is in use.
    history: VecDeque<(i64, i64)>,
}

impl Clock {
    fn new(tracks: usize) -> Self {
        Clock { offset: 0, tracks: vec![TrackClock::default(); tracks], jumps: Vec::new() }
    }

    fn adjust(&mut self, packet: &mut Packet, track: &Track) {
        let Some(state) = self.tracks.get_mut(packet.stream()) else { return };
        if !matches!(track.kind, Some(TrackKind::Picture | TrackKind::Sound)) {
            // Text packets are seconds apart, so they follow the others.
            state.offset = self.offset;
        } else if let Some(raw) = packet.dts().or(packet.pts()) {
            let raw = ffi::rescale_down(raw, track.time_base, MICROS);
            if let Some(last) = state.last {
                let jumps = |offset: i64| {
                    let step = raw.saturating_add(offset).saturating_sub(last);
                    !(JUMP_BACK.0..=JUMP_FORWARD.0).contains(&step)
                };
                if jumps(state.offset) {
                    if jumps(self.offset) {
                        let duration = length_of(track, packet.duration()).0.clamp(0, 1_000_000);
                        self.offset = last.saturating_add(duration).saturating_sub(raw);
                        // One in every packet would be a report that nobody reads.
                        let is_told = self.jumps.len() < MAX_JUMPS_TOLD;
                        self.jumps.extend(is_told.then(|| {
                            format!(
                                "timestamps jump by {} s, which is taken as a new clock",
                                (raw.saturating_add(state.offset).saturating_sub(last)) / 1_000_000
                            )
                        }));
                    }
                    state.offset = self.offset;
                }
            }
            state.last = Some(raw.saturating_add(state.offset));
        }
        let offset = ffi::rescale_down(state.offset, MICROS, track.time_base);
        packet.set_pts(packet.pts().map(|pts| pts.saturating_add(offset)));
        packet.set_dts(packet.dts().map(|dts| dts.saturating_add(offset)));
        if state.history.back().map_or(offset != 0, |(_, last)| *last != offset)
            && let Some(pts) = packet.pts().or(packet.dts())
        {
            state.history.push_back((pts, offset));
            if state.history.len() > 64 {
                state.history.pop_front();
            }
        }
    }

    fn raw_pts(&self, track: &Track, pts: i64) -> i64 {
        let history = self.tracks.get(track.index as usize).map(|state| &state.history);
        let offset = history
            .and_then(|history| history.iter().rev().find(|(since, _)| *since <= pts))
            .map_or(0, |(_, offset)| *offset);
        pts.saturating_sub(offset)
    }
}

fn describe(input: &Input) -> MediaInfo {
    let tracks: Vec<Track> =
        (0..input.nb_streams() as usize).filter_map(|index| describe_track(input, index)).collect();
    let container = input.format().name().to_owned();
    let is_read = |track: &&Track| {
        matches!(track.kind, Some(TrackKind::Picture | TrackKind::Sound)) && !track.is_attached
    };
    let origin = tracks
        .iter()
        .filter(is_read)
        .filter_map(|track| Some(ffi::rescale_down(track.start_raw_pts?, track.time_base, MICROS)))
        .min()
        .or_else(|| ffi::start_time(input))
        .unwrap_or(0);
    let stated = Some(input.duration()).filter(|duration| *duration > 0).map(Micros);
    // A guess from size and bit rate would make gaps at the end that are none.
    let is_duration_guessed = ffi::is_duration_guessed(input);
    let stated = stated.filter(|_| !is_duration_guessed);
    let duration = stated.or_else(|| tracks.iter().filter_map(|track| track.duration).max());
    // FFmpeg has demuxers for streams of still images; one file holds one.
    let is_still = container.ends_with("_pipe") || container == "ico";
    let creation_time =
        metadata(input, None, &[c"com.apple.quicktime.creationdate", c"creation_time"])
            .filter(|time| time.len() >= 10 && time.as_bytes()[0].is_ascii_digit());
    MediaInfo {
        duration: duration.filter(|_| !is_still),
        is_duration_guessed,
        origin: Micros(origin),
        is_still,
        has_random_access: has_random_access(&container),
        creation_time,
        picture: best(input, &tracks, TrackKind::Picture),
        sound: best(input, &tracks, TrackKind::Sound),
        container,
        tracks,
    }
}

/// Formats with an index by which decoding from the middle was found to give the same pictures.
fn has_random_access(container: &str) -> bool {
    ["mov", "matroska"].iter().any(|name| container.split(',').any(|alias| alias == *name))
}

fn metadata(input: &Input, track: Option<usize>, keys: &[&std::ffi::CStr]) -> Option<String> {
    let found = keys.iter().find_map(|key| ffi::metadata(input, track, key))?;
    Some(found.chars().take(MAX_METADATA_CHARS).collect())
}

fn describe_track(input: &Input, index: usize) -> Option<Track> {
    let stream = input.stream(index)?;
    let parameters = ffi::parameters(input, index)?;
    let disposition = stream.disposition();
    let id = stream.parameters().id();
    let kind = match stream.parameters().medium() {
        ffmpeg::media::Type::Video => Some(TrackKind::Picture),
        ffmpeg::media::Type::Audio => Some(TrackKind::Sound),
        ffmpeg::media::Type::Subtitle => Some(TrackKind::Text),
        _ => None,
    };
    let time_base = rational(stream.time_base()).positive();
    let time_base = time_base.unwrap_or(Rational { num: 1, den: 90_000 });
    let known = |time: i64| (time != ffmpeg::ffi::AV_NOPTS_VALUE).then_some(time);
    let is_bitmap = {
        use ffmpeg::codec::Id;
        matches!(id, Id::DVD_SUBTITLE | Id::DVB_SUBTITLE | Id::HDMV_PGS_SUBTITLE | Id::XSUB)
    };
    Some(Track {
        index: u32::try_from(index).ok()?,
        kind,
        codec: id.name().to_owned(),
        time_base,
        start_raw_pts: known(stream.start_time()),
        duration: known(stream.duration())
            .filter(|duration| *duration > 0)
            .map(|duration| Micros(ffi::rescale_down(duration, time_base, MICROS))),
        language: metadata(input, Some(index), &[c"language"])
            .and_then(|code| crate::source::sidecar::bcp47(&code)),
        title: metadata(input, Some(index), &[c"title"]),
        is_default: disposition.contains(Disposition::DEFAULT),
        is_attached: disposition.contains(Disposition::ATTACHED_PIC),
        is_forced: disposition.contains(Disposition::FORCED),
        width_px: u32::try_from(parameters.width).unwrap_or(0),
        height_px: u32::try_from(parameters.height).unwrap_or(0),
        frame_rate: rational(stream.avg_frame_rate())
            .positive()
            .or_else(|| rational(stream.rate()).positive()),
        sample_aspect_ratio: parameters.sample_aspect_ratio.positive(),
        rotation_degrees: orientation(input, index).rotation_degrees(),
        field_order: parameters.field_order,
        pixel_format: parameters.pixel_format,
        channels: u32::try_from(parameters.channels).unwrap_or(0),
        sample_rate_hz: u32::try_from(parameters.sample_rate).unwrap_or(0),
        is_bitmap,
    })
}

/// How the container wants the track's pictures turned.
fn orientation(input: &Input, index: usize) -> Orientation {
    let Some(stream) = input.stream(index) else { return Orientation::default() };
    stream
        .side_data()
        .find(|data| data.kind() == ffmpeg::codec::packet::side_data::Type::DisplayMatrix)
        .and_then(|data| Orientation::from_matrix(data.data()))
        .unwrap_or_default()
}

fn rational(ratio: ffmpeg::Rational) -> Rational {
    Rational { num: ratio.numerator(), den: ratio.denominator() }
}

/// The track to use where none is named: one that can be decoded, the default one, the largest.
fn best(input: &Input, tracks: &[Track], kind: TrackKind) -> Option<u32> {
    tracks
        .iter()
        .filter(|track| track.kind == Some(kind) && !track.is_attached)
        .max_by_key(|track| {
            let can_decode = input
                .stream(track.index as usize)
                .is_some_and(|stream| ffmpeg::decoder::find(stream.parameters().id()).is_some());
            let size =
                u64::from(track.width_px) * u64::from(track.height_px) + u64::from(track.channels);
            (can_decode, track.is_default, size, std::cmp::Reverse(track.index))
        })
        .map(|track| track.index)
}
