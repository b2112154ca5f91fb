//! What the parent and its decoder host say to each other over their socket.
//!
//! A packet is a header of 12 bytes (magic, version, length of the message, length of the body,
//! little-endian), the message (postcard) and a raw body (pixels, samples). Neither side believes
//! the other's lengths: both are limited before anything is allocated.

use std::io::{self, Read, Write};
use std::time::Duration;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::error::{Error, Kind, Result};
use crate::media::{Change, Cue, Gap, TrackKind};
use crate::time::{Micros, Timestamp};

const MAGIC: u16 = 0xC13E;
/// Raised with every change of a message.
const VERSION: u16 = 11;
const HEADER_BYTES: usize = 12;
/// Longest message without its body. A cue or a track's title is never near it.
const MAX_MESSAGE_BYTES: u32 = 1 << 20;
/// Longest body: a 4096 x 4096 picture.
const MAX_BODY_BYTES: u32 = 4096 * 4096 * 3;
/// Largest side of a rendition.
pub const MAX_RENDITION_PX: u32 = 4096;
/// A picture that is wider or higher than so many times its other side is told to be as much.
pub(super) const MAX_ASPECT_RATIO: f32 = 64.0;

/// A ratio of two integers, as containers state rates and time bases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rational {
    pub num: i32,
    pub den: i32,
}

impl Rational {
    /// `None` where either part is zero or negative, which containers use for "unknown".
    pub fn positive(self) -> Option<Rational> {
        (self.num > 0 && self.den > 0).then_some(self)
    }

    pub fn as_f64(self) -> f64 {
        f64::from(self.num) / f64::from(self.den)
    }
}

/// How a picture is brought into its rendition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fit {
    /// Stretched to the size, whatever its shape.
    Squash,
    /// Scaled to cover the size, and the middle cut out.
    Crop,
    /// Scaled to fit into the size, with black beside it.
    Pad,
}

/// The form in which pictures are asked for: packed RGB, 8 bits a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rendition {
    pub width_px: u32,
    pub height_px: u32,
    pub fit: Fit,
}

/// The instants at which pictures are wanted: `offset + index * step`, rounded down to the
/// microsecond, for `count` indexes from `first` on.
///
/// The step is a ratio, so that a grid of 30000/1001 Hz does not drift.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Targets {
    /// The instant of index 0.
    pub offset: Micros,
    /// Microseconds from one target to the next, times `step_den`.
    pub step_num: u64,
    pub step_den: u32,
    pub first: u64,
    /// `None`: to the end of the source.
    pub count: Option<u64>,
}

impl Targets {
    /// Every `step` from `offset` on, to the end of the source.
    pub fn every(step: Micros, offset: Micros) -> Self {
        let step_num = u64::try_from(step.0).unwrap_or(0);
        Targets { offset, step_num, step_den: 1, first: 0, count: None }
    }

    /// The part of this grid that begins at index `first` and has `count` targets.
    pub fn part(self, first: u64, count: Option<u64>) -> Self {
        Targets { first, count, ..self }
    }

    /// The instant of target `index`.
    pub fn at(&self, index: u64) -> Timestamp {
        let steps = u128::from(index) * u128::from(self.step_num) / u128::from(self.step_den);
        Timestamp(i64::try_from(steps).unwrap_or(i64::MAX).saturating_add(self.offset.0))
    }

    /// The first index whose instant is at or after `at`.
    pub(super) fn first_at_or_after(&self, at: Timestamp) -> u64 {
        let wanted = i128::from(at.0) - i128::from(self.offset.0);
        let Ok(wanted) = u128::try_from(wanted) else { return 0 };
        // floor(i * num / den) >= wanted  <=>  i * num >= wanted * den
        let index = (wanted * u128::from(self.step_den)).div_ceil(u128::from(self.step_num));
        u64::try_from(index).unwrap_or(u64::MAX)
    }

    /// One past the last index.
    pub(super) fn end(&self) -> u64 {
        self.count.map_or(u64::MAX, |count| self.first.saturating_add(count))
    }
}

/// A span of one picture track. Where targets lie four or more frames apart, each gets a picture that
/// costs little to decode: the latest that others are predicted from, or the next keyframe where
/// that is less than half a step (and half a second) away. Where they lie closer, each gets the
/// picture on display.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PictureRequest {
    /// Index of the track; `None`: the one that [`MediaInfo::picture`] names.
    pub track: Option<u32>,
    pub rendition: Rendition,
    pub targets: Targets,
    /// Threads that the decoder may use; several hosts side by side do better than several threads.
    pub threads: u16,
}

impl PictureRequest {
    pub(super) fn check(&self) -> Result<()> {
        check(&self.rendition, &self.targets)
    }
}

impl LiveRequest {
    pub(super) fn check(&self) -> Result<()> {
        check(&self.rendition, &self.targets)
    }
}

fn check(rendition: &Rendition, targets: &Targets) -> Result<()> {
    let side = 1..=MAX_RENDITION_PX;
    let Rendition { width_px, height_px, .. } = *rendition;
    if !side.contains(&width_px) || !side.contains(&height_px) {
        return Err(Error::invalid_input(format!(
            "a rendition of {width_px}x{height_px} px: each side must be 1 to {MAX_RENDITION_PX}"
        )));
    }
    let Targets { offset, step_num, step_den, .. } = *targets;
    if step_den == 0 || step_num < u64::from(step_den) || offset.0 < 0 {
        return Err(Error::invalid_input(
            "picture targets need a step of at least 1 µs and an offset that is not negative",
        ));
    }
    Ok(())
}

/// A span of one sound track, as 16 kHz mono.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SoundRequest {
    /// Index of the track; `None`: the one that [`MediaInfo::sound`] names.
    pub track: Option<u32>,
    pub start: Timestamp,
    /// `None`: to the end of the source.
    pub end: Option<Timestamp>,
}

/// The picture of a live stream, for as long as it comes. Each target gets the picture on display.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveRequest {
    pub rendition: Rendition,
    /// On a clock that goes on between connections, so `first` is where this one begins.
    pub targets: Targets,
    /// Where media time is zero, in microseconds of the system's monotonic clock.
    pub zero_us: i64,
    /// How RTSP brings its packets.
    pub transport: Transport,
    /// Certificates (PEM) that a server's may be, or be signed by, beside those that the system trusts.
    pub ca: Option<String>,
    /// A stream of which no frame comes, or none can be decoded, for so long is lost.
    pub silence: Duration,
    /// Whether a decoder in hardware may be used.
    pub hardware: bool,
    /// Whether the compressed stream itself is wanted, too.
    pub record: bool,
    /// Since when its sound is wanted, too; `None`: not at all. It goes over a socket of its own, which comes
    /// beside the request, so that neither waits for the other.
    pub sound_from: Option<Timestamp>,
}

/// How RTSP brings its packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// In the connection itself: nothing is lost while it stands.
    #[default]
    Tcp,
    Udp,
}

/// Why a live stream shows nothing, where there is no more to say: none of its frames came.
pub const NO_FRAME: &str = "no frame came";
/// … or frames came and were left out, since those before them had not been taken yet.
pub const BEHIND: &str = "decoding was behind";

/// What became of the frames of a live stream since it was connected. Each frame that was received
/// is in one of the numbers that follow, or under way in the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Received {
    /// Coded frames, as they come out of their packets.
    pub received: u64,
    /// Handed on to be encoded.
    pub encoded: u64,
    /// Not chosen for a clip.
    pub skipped: u64,
    /// Left out since the keyframe that they are predicted from was not received.
    pub before_keyframe: u64,
    /// Left out since decoding, or what follows, did not keep up.
    pub behind: u64,
    /// Of which no picture came.
    pub undecodable: u64,
    /// Of all those, pictures that hardware has decoded.
    pub in_hardware: u64,
    /// Of all those, what is in no recording although one is wanted.
    pub unrecorded: u64,
    /// Packets on the way to frames that did not come.
    pub lost_packets: u64,
    /// Times that the stream's own timestamps jumped.
    pub jumps: u64,
    /// How far the sender's clock, where it reports that, is ahead of what arrivals say.
    pub sender_ahead_us: Option<i64>,
    /// Whether frames have the times of the sender's clock, and not of their arrivals.
    pub is_sender_time: bool,
}

impl Received {
    /// Frames that are still in the host.
    pub fn under_way(&self) -> u64 {
        let settled =
            [self.encoded, self.skipped, self.before_keyframe, self.behind, self.undecodable];
        settled.iter().fold(self.received, |left, count| left.saturating_sub(*count))
    }
}

/// What became of the sound of a live stream since it was connected, before it was handed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ReceivedSound {
    /// Packets of which no sound came.
    pub undecodable: u64,
    /// Packets left out since the host, or what follows, did not keep up.
    pub behind: u64,
    /// Sound of a time that had been before.
    pub repeated: Micros,
}

/// Timed text of a source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CueRequest {
    /// All embedded text tracks, or one of them.
    Embedded { track: Option<u32> },
    /// The source is a subtitle file; its cues get this language and track name.
    Sidecar { language: Option<String>, track: String },
}

/// What a source holds, as its container states it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MediaInfo {
    /// FFmpeg's name of the container format, as `mov,mp4,m4a,3gp,3g2,mj2`.
    pub container: String,
    /// From the first presentable sample to the end; stated by the container, else estimated from
    /// size and bit rate. `None` where neither is possible, as with a live stream.
    pub duration: Option<Micros>,
    /// Whether that was estimated, which may be far too short: where silence follows music, say.
    pub is_duration_guessed: bool,
    /// The first presentable sample of any track, in microseconds of the container's own clock:
    /// what [`Timestamp`] zero stands for.
    pub origin: Micros,
    /// One picture that is no film.
    pub is_still: bool,
    /// Whether decoding may begin at a keyframe in the middle and give the same pictures as
    /// decoding from the start. Otherwise a request that starts late still gets the right
    /// pictures, but reads everything before them.
    pub has_random_access: bool,
    /// The wall clock at the start (RFC 3339), where the container states it.
    pub creation_time: Option<String>,
    pub tracks: Vec<Track>,
    /// Index of the picture track to use: the default one, else the largest; never a cover.
    pub picture: Option<u32>,
    /// Index of the sound track to use.
    pub sound: Option<u32>,
}

/// A language's code as Whisper writes it: older, or one for a language with its forms.
pub fn spoken_code(code: &str) -> &str {
    match code {
        "jv" => "jw",
        "iw" => "he",
        "nb" => "no",
        "fil" => "tl",
        code => code,
    }
}

impl MediaInfo {
    pub fn track(&self, index: u32) -> Option<&Track> {
        self.tracks.iter().find(|track| track.index == index)
    }

    /// The sound track to use for what is said in a language ([`spoken_code`]), where one is wanted: the best that states
    /// it, else that which `sound` names.
    pub fn sound_in(&self, language: Option<&str>) -> Option<u32> {
        let is_in = |track: &&Track| {
            let stated = track.language.as_deref().and_then(|tag| tag.split('-').next());
            language.is_some() && stated.map(spoken_code) == language
        };
        let best = self.of_kind(TrackKind::Sound).filter(is_in).max_by_key(|track| {
            let is_usual = self.sound == Some(track.index);
            (is_usual, track.is_default, track.channels, std::cmp::Reverse(track.index))
        });
        best.map(|track| track.index).or(self.sound)
    }

    /// The tracks of one kind; attached pictures (covers) are none of them.
    pub fn of_kind(&self, kind: TrackKind) -> impl Iterator<Item = &Track> {
        self.tracks.iter().filter(move |track| track.kind == Some(kind) && !track.is_attached)
    }
}

/// One track of a source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Track {
    /// FFmpeg's stream index.
    pub index: u32,
    /// `None`: data that Cinelex has no use for.
    pub kind: Option<TrackKind>,
    /// FFmpeg's name of the codec.
    pub codec: String,
    pub time_base: Rational,
    /// First pts in units of the time base, where known.
    pub start_raw_pts: Option<i64>,
    pub duration: Option<Micros>,
    /// BCP-47, where stated.
    pub language: Option<String>,
    pub title: Option<String>,
    pub is_default: bool,
    /// A cover or thumbnail, not a film.
    pub is_attached: bool,
    /// Text tracks only: signs, and what is said in another language.
    pub is_forced: bool,
    /// As coded, before rotation and sample aspect ratio; 0 for other kinds than picture.
    pub width_px: u32,
    pub height_px: u32,
    /// Average frames a second.
    pub frame_rate: Option<Rational>,
    /// Width to height of one sample; `None` where unstated.
    pub sample_aspect_ratio: Option<Rational>,
    /// Clockwise turn that the display has to apply, in degrees: 0, 90, 180 or 270.
    pub rotation_degrees: u16,
    pub field_order: FieldOrder,
    /// FFmpeg's name of the pixel format.
    pub pixel_format: Option<String>,
    pub channels: u32,
    pub sample_rate_hz: u32,
    /// Text tracks only: subtitles that are pictures, which this build cannot read.
    pub is_bitmap: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FieldOrder {
    Unknown,
    Progressive,
    TopFirst,
    BottomFirst,
}

/// What a finished request went through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Summary {
    /// Packets of the track that were read.
    pub packets: u64,
    /// Frames that came out of the decoder.
    pub decoded: u64,
    /// Packets that were left out, or passed over, without decoding.
    pub skipped: u64,
    /// Groups of pictures that were not understood before decoding, and so decoded but for what
    /// nothing refers to.
    pub unplanned_groups: u64,
    /// Processor time that the host has used since the request before.
    pub processor_time: Micros,
    /// Packets that the decoder refused or the container marked as broken.
    pub corrupt_packets: u64,
    /// Frames that were decoded with errors concealed.
    pub damaged_frames: u64,
    /// Frames left out since their time went back.
    pub misplaced_frames: u64,
    /// Where the track ends, as far as it was read.
    pub end: Option<Timestamp>,
}

/// What the parent asks for. A source's descriptor, where it has one, travels beside the header, and behind
/// it the socket for a live stream's sound, where that is wanted.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Request {
    /// The first request of every host.
    Limit {
        memory_bytes: u64,
    },
    Probe(Address),
    Picture(Address, PictureRequest),
    Live(Address, LiveRequest),
    /// Ends a live stream that is under way.
    Stop,
    Sound(Address, SoundRequest),
    Cues(Address, CueRequest),
}

/// Where the host reads from.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Address {
    /// The descriptor that came with the request; the file name's extension helps to tell formats
    /// without a signature.
    Descriptor {
        extension: Option<String>,
    },
    Url(String),
}

/// What the host answers. Every request ends with `End` or `Failed`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Message {
    Info(Box<MediaInfo>),
    /// The body holds the pixels.
    Frame {
        target: Timestamp,
        pts: Timestamp,
        raw_pts: i64,
        width_px: u32,
        height_px: u32,
        aspect_ratio: f32,
        change: Change,
    },
    /// The frame before is on display at this target too.
    Repeat {
        target: Timestamp,
        change: Change,
    },
    /// The body holds 32-bit floats, little-endian.
    Sound {
        pts: Timestamp,
    },
    Cue(Box<Cue>),
    Gap(Gap),
    Watermark(Timestamp),
    /// The body is what a recording goes on with: a fragment of MP4.
    Recorded {
        /// When its first frame or its sound was captured.
        start: Timestamp,
        /// Of the body's bytes, those in front with which a file begins; 0: the last one goes on.
        header_bytes: u32,
        /// Whether its first frame is a keyframe.
        is_key: bool,
        /// None in a fragment of sound.
        frames: u32,
        /// Of sound; none in a fragment of frames.
        packets: u32,
    },
    /// So many packets of sound more are in no recording although the stream is recorded.
    UnrecordedSound(u64),
    /// What a live stream has brought so far: about once a second while frames come.
    Received(Received),
    /// What became of a live stream's sound so far: about once a second while it comes.
    ReceivedSound(ReceivedSound),
    /// Something odd that cost nothing, for the report.
    Notice(String),
    End(Summary),
    Failed {
        kind: Kind,
        message: String,
        at: Option<Timestamp>,
    },
}

/// A header and what follows it, ready to be sent.
pub(super) fn pack(message: &impl Serialize, body: &[u8]) -> io::Result<Vec<u8>> {
    let mut packet = vec![0; HEADER_BYTES];
    packet = postcard::to_extend(message, packet).map_err(io::Error::other)?;
    let length = u32::try_from(packet.len() - HEADER_BYTES).unwrap_or(u32::MAX);
    let body_length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    if length > MAX_MESSAGE_BYTES || body_length > MAX_BODY_BYTES {
        return Err(io::Error::other("a message is too long for the decoder's protocol"));
    }
    packet[0..2].copy_from_slice(&MAGIC.to_le_bytes());
    packet[2..4].copy_from_slice(&VERSION.to_le_bytes());
    packet[4..8].copy_from_slice(&length.to_le_bytes());
    packet[8..12].copy_from_slice(&body_length.to_le_bytes());
    Ok(packet)
}

pub(super) fn send(
    stream: &mut impl Write,
    message: &impl Serialize,
    body: &[u8],
) -> io::Result<()> {
    stream.write_all(&pack(message, body)?)?;
    stream.write_all(body)
}

/// The next message and its body. `UnexpectedEof` where the other side is gone, `InvalidData`
/// where it does not keep to the protocol.
pub(super) fn receive<T: DeserializeOwned>(stream: &mut impl Read) -> io::Result<(T, Vec<u8>)> {
    let mut header = [0; HEADER_BYTES];
    stream.read_exact(&mut header)?;
    receive_after(&header, stream)
}

fn receive_after<T: DeserializeOwned>(
    header: &[u8; HEADER_BYTES],
    stream: &mut impl Read,
) -> io::Result<(T, Vec<u8>)> {
    let broken = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let half = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let word = |at: usize| {
        u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    if half(0) != MAGIC {
        return Err(broken("no packet header"));
    }
    if half(2) != VERSION {
        return Err(broken("another protocol version"));
    }
    let (length, body_length) = (word(4), word(8));
    if length > MAX_MESSAGE_BYTES || body_length > MAX_BODY_BYTES {
        return Err(broken("a message longer than allowed"));
    }
    let mut message = vec![0; length as usize];
    stream.read_exact(&mut message)?;
    let mut body = vec![0; body_length as usize];
    stream.read_exact(&mut body)?;
    let (message, rest) =
        postcard::take_from_bytes(&message).map_err(|_| broken("an unknown message"))?;
    if !rest.is_empty() {
        return Err(broken("a message with a tail"));
    }
    Ok((message, body))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_packet_comes_back_as_it_was_sent() {
        let mut pipe = Vec::new();
        send(&mut pipe, &Message::Notice("odd".into()), &[1, 2, 3]).unwrap();
        let (message, body) = receive::<Message>(&mut pipe.as_slice()).unwrap();
        assert!(matches!(message, Message::Notice(text) if text == "odd"));
        assert_eq!(body, [1, 2, 3]);
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_it_is_allocated() {
        let mut pipe = Vec::new();
        send(&mut pipe, &Message::Notice(String::new()), &[]).unwrap();
        for at in [4, 8] {
            let mut pipe = pipe.clone();
            pipe[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
            let error = receive::<Message>(&mut pipe.as_slice()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut packet = pack(&(), &[]).unwrap();
            packet[4..8].copy_from_slice(&(bytes.len() as u32).to_le_bytes());
            packet.extend(&bytes);
            let _ = receive::<Message>(&mut packet.as_slice());
            let _ = receive::<Message>(&mut bytes.as_slice());
        }

        #[test]
        fn the_first_target_at_or_after_an_instant_is_the_first(
            offset in 0i64..2_000_000, num in 1u64..10_000_000, den in 1u32..2_000, at in -10i64..20_000_000,
        ) {
            prop_assume!(num >= u64::from(den));
            let targets = Targets {
                offset: Micros(offset), step_num: num, step_den: den, first: 0, count: None,
            };
            let index = targets.first_at_or_after(Timestamp(at));
            prop_assert!(targets.at(index).0 >= at);
            prop_assert!(index == 0 || targets.at(index - 1).0 < at);
        }
    }
}
