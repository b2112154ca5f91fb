//! The sound of a live stream beside its picture: a queue, a thread and a socket of its own, so that neither
//! waits for the other. Its times follow its own arrivals, and the sender's clock where the picture has that.

use std::collections::VecDeque;
use std::os::unix::net::UnixStream;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ffmpeg_next as ffmpeg;

use ffmpeg::codec::Id;
use ffmpeg::{Packet, frame};

use super::arrivals::{Arrivals, OPENING_US};
use super::clock::MediaClock;
use super::reception::Coded;
use super::{TICK, monotonic_us};
use crate::error::{Error, Result};
use crate::source::host::sound::Line;
use crate::source::host::{Outbox, explain};
use crate::source::protocol::{LiveRequest, Message, ReceivedSound, Summary};
use crate::time::Timestamp;

/// What waits to be decoded takes no more; some minutes of any codec.
const MOST_BYTES: usize = 8 << 20;
/// What waits to be recorded takes no more.
const MOST_TAPE_BYTES: usize = 4 << 20;
/// How often what was received is told.
const TELL: Duration = Duration::from_secs(1);

/// A coded stretch of sound, and what decodes it.
#[derive(Clone)]
pub struct SoundPacket {
    pub codec: Id,
    /// 0 where the stream does not say.
    pub rate_hz: i32,
    pub channels: i32,
    pub packet: Packet,
    /// On the stream's own clock, in microseconds.
    pub pts: Option<i64>,
    /// What that is at where playing begins.
    pub origin: i64,
    /// On the monotonic clock.
    pub arrived: i64,
    /// When it was captured, by its arrivals; set on the way through the queue.
    pub captured: i64,
}

/// Between the thread that receives and the one that decodes.
pub struct Sounds {
    state: Mutex<State>,
    came: Condvar,
}

struct State {
    packets: VecDeque<SoundPacket>,
    bytes: usize,
    clock: MediaClock,
    /// When the first packet arrived, until it is known which of the first are late.
    opening: Option<i64>,
    has_begun: bool,
    behind: u64,
    /// All that came, where it is recorded.
    tape: Option<Tape>,
    /// Why there is no sound, where that is known.
    failure: Option<String>,
    is_over: bool,
}

#[derive(Default)]
struct Tape {
    packets: VecDeque<SoundPacket>,
    bytes: usize,
    /// Packets that there was no room for.
    lost: u64,
}

impl SoundPacket {
    /// What it takes of memory, about: the least packets are of a byte or two.
    pub fn bytes(&self) -> usize {
        self.packet.size() + 512
    }
}

impl Sounds {
    pub fn new(record: bool) -> Self {
        let state = State {
            packets: VecDeque::new(),
            bytes: 0,
            clock: MediaClock::for_sound(),
            opening: None,
            has_begun: false,
            behind: 0,
            tape: record.then(Tape::default),
            failure: None,
            is_over: false,
        };
        Sounds { state: Mutex::new(state), came: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change below is complete before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn push(&self, mut packet: SoundPacket) {
        let mut state = self.lock();
        if state.is_over {
            return;
        }
        if !std::mem::replace(&mut state.has_begun, true) {
            state.opening = Some(packet.arrived);
        }
        state.clock.observe(packet.pts, packet.arrived, None);
        state.settle(packet.arrived);
        packet.captured = state.clock.captured(packet.pts, packet.arrived);
        let bytes = packet.bytes();
        state.record(&packet, bytes);
        if state.bytes + bytes > MOST_BYTES {
            state.behind += 1;
            return;
        }
        state.bytes += bytes;
        state.packets.push_back(packet);
        drop(state);
        self.came.notify_one();
    }

    /// What came to be recorded, and how many packets of that were left out; `None` until it has its times.
    pub fn take_tape(&self) -> Option<(VecDeque<SoundPacket>, u64)> {
        let mut state = self.lock();
        if state.opening.is_some() {
            return None;
        }
        let tape = state.tape.as_mut().map(std::mem::take).unwrap_or_default();
        Some((tape.packets, tape.lost))
    }

    /// No sound can be had of this connection, which costs no picture.
    pub fn fail(&self, reason: &str) {
        self.lock().failure.get_or_insert(reason.to_owned());
    }

    pub fn has_failed(&self) -> bool {
        self.lock().failure.is_some()
    }

    /// Nothing more comes.
    pub fn close(&self) {
        let mut state = self.lock();
        state.is_over = true;
        state.settle(i64::MAX);
        drop(state);
        self.came.notify_one();
    }

    /// The next packet; `None` where none came within `patience`.
    fn pop(&self, patience: Duration) -> Option<SoundPacket> {
        let mut state = self.lock();
        state.settle(monotonic_us());
        if (state.opening.is_some() || state.packets.is_empty()) && !state.is_over {
            (state, _) =
                self.came.wait_timeout(state, patience).unwrap_or_else(PoisonError::into_inner);
            state.settle(monotonic_us());
        }
        if state.opening.is_some() {
            return None;
        }
        let packet = state.packets.pop_front()?;
        state.bytes -= packet.bytes();
        Some(packet)
    }

    fn is_over(&self) -> bool {
        let state = self.lock();
        state.is_over && state.packets.is_empty()
    }
}

impl State {
    /// When the opening is over, what arrived in it gets its time.
    fn settle(&mut self, now: i64) {
        if self.opening.is_some_and(|began| now - began > OPENING_US) {
            self.opening = None;
            self.clock.settle();
            let recorded = self.tape.iter_mut().flat_map(|tape| &mut tape.packets);
            for packet in self.packets.iter_mut().chain(recorded) {
                packet.captured = self.clock.captured(packet.pts, packet.arrived);
            }
        }
    }

    fn record(&mut self, packet: &SoundPacket, bytes: usize) {
        match &mut self.tape {
            Some(tape) if tape.bytes + bytes <= MOST_TAPE_BYTES => {
                tape.bytes += bytes;
                tape.packets.push_back(packet.clone());
            }
            Some(tape) => tape.lost += 1,
            None => {}
        }
    }
}

/// Decodes what comes until there is no more, and sends it over a socket of its own.
pub fn serve(sounds: &Sounds, arrivals: &Arrivals<Coded>, request: &LiveRequest, to: UnixStream) {
    let mut outbox = Outbox::new(to);
    let from = request.sound_from.unwrap_or(Timestamp::ZERO);
    let mut run = Run { line: Line::live(from, &mut outbox), decoder: None, undecodable: 0 };
    let (mut told, mut told_at) = (ReceivedSound::default(), Instant::now());
    let mut failure = None;
    while failure.is_none() && !sounds.is_over() {
        if let Some(packet) = sounds.pop(TICK) {
            let captured = packet.captured.saturating_add(arrivals.ahead());
            let at = Timestamp(captured.saturating_sub(request.zero_us));
            failure = run.take(packet, at).err().map(|error| error.reason());
        }
        failure = failure.or_else(|| sounds.lock().failure.take());
        if told_at.elapsed() >= TELL {
            told_at = Instant::now();
            run.tell(sounds, &mut told);
        }
    }
    if let Some(reason) = failure {
        sounds.fail(&reason);
        run.line.outbox.send(&Message::Notice(format!("its sound is not heard: {reason}")));
    }
    // What the resampler held back is of no account where it fails.
    let _ = run.line.finish();
    run.tell(sounds, &mut told);
    run.line.outbox.send(&Message::End(Summary::default()));
}

/// One connection's way from packets to samples.
struct Run<'a> {
    line: Line<'a>,
    decoder: Option<Decoder>,
    undecodable: u64,
}

struct Decoder {
    codec: Id,
    rate_hz: i32,
    channels: i32,
    sound: ffmpeg::decoder::Audio,
}

impl Run<'_> {
    /// Decodes one packet.
    fn take(&mut self, packet: SoundPacket, at: Timestamp) -> Result<()> {
        let SoundPacket { codec, rate_hz, channels, packet: mut coded, .. } = packet;
        let is_same = |decoder: &Decoder| {
            (decoder.codec, decoder.rate_hz, decoder.channels) == (codec, rate_hz, channels)
        };
        if !self.decoder.as_ref().is_some_and(is_same) {
            self.decoder = Some(Decoder::open(codec, rate_hz, channels)?);
        }
        let Some(decoder) = &mut self.decoder else { return Ok(()) };
        coded.set_pts(Some(at.0));
        match decoder.sound.send_packet(&coded) {
            Ok(()) => {}
            Err(ffmpeg::Error::Other { errno: ffmpeg::error::ENOMEM }) => {
                return Err(Error::exhausted("the decoder ran out of the memory it may use"));
            }
            Err(_) => self.undecodable += 1,
        }
        let mut decoded = frame::Audio::empty();
        loop {
            match decoder.sound.receive_frame(&mut decoded) {
                Ok(()) => {
                    let at = decoded.timestamp().map(Timestamp);
                    self.line.push(&mut decoded, at)?;
                }
                Err(ffmpeg::Error::Other { errno: ffmpeg::error::EAGAIN } | ffmpeg::Error::Eof) => {
                    return Ok(());
                }
                Err(_) => {
                    self.undecodable += 1;
                    return Ok(());
                }
            }
        }
    }

    /// Tells what was received, if that is something else than before.
    fn tell(&mut self, sounds: &Sounds, told: &mut ReceivedSound) {
        let (undecodable, repeated) = (self.undecodable, self.line.repeated);
        let received = ReceivedSound { undecodable, behind: sounds.lock().behind, repeated };
        if received != *told {
            *told = received;
            self.line.outbox.send(&Message::ReceivedSound(received));
        }
    }
}

impl Decoder {
    fn open(codec: Id, rate_hz: i32, channels: i32) -> Result<Decoder> {
        let found = ffmpeg::decoder::find(codec).ok_or_else(|| {
            Error::unsupported(format!("this FFmpeg has no decoder for {}", codec.name()))
        })?;
        let cannot = |cause| explain("the decoder cannot be opened", cause);
        // Where the packets themselves do not say.
        let mut options = ffmpeg::Dictionary::new();
        if rate_hz > 0 && channels > 0 {
            options.set("ar", &rate_hz.to_string());
            options.set("ch_layout", &format!("{channels}c"));
        }
        let sound = ffmpeg::codec::Context::new_with_codec(found)
            .decoder()
            .open_as_with(found, options)
            .and_then(ffmpeg::decoder::Opened::audio)
            .map_err(cannot)?;
        Ok(Decoder { codec, rate_hz, channels, sound })
    }
}
