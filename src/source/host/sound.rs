//! Serving a span of one sound track as 16 kHz mono.

use ffmpeg_next as ffmpeg;

use ffmpeg::format::sample::{Sample, Type};
use ffmpeg::software::resampling;
use ffmpeg::{ChannelLayout, frame};

use super::demux::{Next, Source, cannot_decode};
use super::{Outbox, explain};
use crate::error::{Error, Result};
use crate::media::{Gap, TrackKind};
use crate::source::protocol::{Message, SoundRequest, Summary, Track};
use crate::time::{Micros, Span, Timestamp};

const RATE_HZ: i64 = 16_000;
/// Samples of one message: a quarter of a second.
const BLOCK: usize = 4_000;
/// Timestamps that differ by less from the count of samples are rounding or drift.
const TOLERANCE: Micros = Micros(60_000);
/// A live stream's clock is moved a little now and then, by less than this.
#[cfg(feature = "live")]
const LIVE_TOLERANCE: Micros = Micros(200_000);
/// Decoders with overlapping blocks need some before the wanted start.
const PREROLL: Micros = Micros(500_000);
const MAX_CHANNELS: u16 = 64;
const MAX_RATE_HZ: u32 = 768_000;

pub(super) fn serve(
    mut source: Source,
    request: &SoundRequest,
    outbox: &mut Outbox,
) -> Result<Summary> {
    let track = source.choose(TrackKind::Sound, request.track)?;
    source.keep(&[track.index]);
    let mut decoder = open_decoder(&source, &track)?;
    if request.start.0 > 0 && source.info().has_random_access {
        let wanted = source.pts_at(&track, request.start - PREROLL);
        if source.seek(&track, wanted).is_err() {
            source.reopen()?;
            decoder = open_decoder(&source, &track)?;
        }
    }
    let end = request.end.unwrap_or(Timestamp::MAX);
    let mut line = Line::new(request.start, end, outbox);
    let mut summary = Summary::default();
    let mut decoded = frame::Audio::empty();
    let mut is_drained = false;
    while line.clock() < end {
        match decoder.receive_frame(&mut decoded) {
            Ok(()) => {
                summary.decoded += 1;
                let at = decoded.timestamp().map(|pts| source.time_of(&track, pts));
                line.push(&mut decoded, at)?;
                continue;
            }
            Err(ffmpeg::Error::Eof) => break,
            Err(ffmpeg::Error::Other { errno: ffmpeg::error::EAGAIN }) if is_drained => break,
            Err(ffmpeg::Error::Other { errno: ffmpeg::error::EAGAIN }) => {}
            Err(ffmpeg::Error::Other { errno: ffmpeg::error::ENOMEM }) => {
                return Err(Error::exhausted("the decoder ran out of the memory it may use"));
            }
            Err(_) => {
                summary.corrupt_packets += 1;
                if is_drained {
                    break;
                }
            }
        }
        match source.next() {
            Next::Packet(packet) if packet.stream() == track.index as usize => {
                summary.packets += 1;
                if decoder.send_packet(&packet).is_err() {
                    summary.corrupt_packets += 1;
                }
            }
            Next::Packet(_) => {}
            end => {
                if let Next::Broken(cause) = end {
                    line.outbox.send(&Message::Notice(format!("reading sound broke off: {cause}")));
                }
                // Fails only where draining has begun already.
                let _ = decoder.send_eof();
                is_drained = true;
            }
        }
    }
    line.finish()?;
    if summary.decoded == 0 && request.start.0 <= 0 {
        return Err(Error::corrupt(format!(
            "no sample of the sound track can be decoded ({} packets)",
            summary.packets
        )));
    }
    summary.end = Some(line.clock());
    for notice in source.take_jumps() {
        outbox.send(&Message::Notice(notice));
    }
    Ok(summary)
}

fn open_decoder(source: &Source, track: &Track) -> Result<ffmpeg::decoder::Audio> {
    source.decoder(track, 1)?.audio().map_err(|cause| cannot_decode(track, cause))
}

/// The line of samples that goes out: without holes but for the gaps it reports.
pub(super) struct Line<'a> {
    pub outbox: &'a mut Outbox,
    tolerance: Micros,
    /// Sound that came of a time that had been before.
    pub repeated: Micros,
    start: Timestamp,
    end: Timestamp,
    resampler: Option<Resampler>,
    /// The instant of the first sample since the last gap, and how many came out since.
    base: Option<Timestamp>,
    count: i64,
    /// How much went into the resampler since the last gap.
    taken: Micros,
    pending: Vec<f32>,
    pending_at: Timestamp,
    watermark: Timestamp,
}

impl<'a> Line<'a> {
    fn new(start: Timestamp, end: Timestamp, outbox: &'a mut Outbox) -> Self {
        Line {
            outbox,
            tolerance: TOLERANCE,
            repeated: Micros::ZERO,
            start,
            end,
            resampler: None,
            base: None,
            count: 0,
            taken: Micros::ZERO,
            pending: Vec::new(),
            pending_at: start,
            watermark: start,
        }
    }

    /// A line without an end, from an instant up to which there is sound already.
    #[cfg(feature = "live")]
    pub fn live(start: Timestamp, outbox: &'a mut Outbox) -> Self {
        Line { tolerance: LIVE_TOLERANCE, ..Line::new(start, Timestamp::MAX, outbox) }
    }

    /// The instant of the next sample that comes out.
    fn clock(&self) -> Timestamp {
        self.base.map_or(Timestamp(i64::MIN), |base| {
            base + Micros(self.count.saturating_mul(1_000_000) / RATE_HZ)
        })
    }

    pub fn push(&mut self, frame: &mut frame::Audio, at: Option<Timestamp>) -> Result<()> {
        let (channels, rate) = (frame.channels(), frame.rate());
        if frame.samples() == 0
            || !(1..=MAX_CHANNELS).contains(&channels)
            || !(1..=MAX_RATE_HZ).contains(&rate)
        {
            return Ok(());
        }
        if frame.channel_layout().is_empty() {
            frame.set_channel_layout(ChannelLayout::default(i32::from(channels)));
        }
        let expected = self.base.map(|base| base + self.taken);
        let length = Micros(frame.samples() as i64 * 1_000_000 / i64::from(rate));
        match (expected, at) {
            (None, at) => {
                let at = at.unwrap_or(Timestamp::ZERO);
                let from = self.start.max(Timestamp::ZERO);
                if at > from + self.tolerance {
                    self.gap(Span::new(from, at.min(self.end)), "no sound before");
                }
                self.restart(at);
            }
            (Some(expected), Some(at)) if at > expected + self.tolerance => {
                self.flush()?;
                let from = self.clock();
                self.send_pending();
                if at > from {
                    self.gap(Span::new(from.max(self.start), at.min(self.end)), "no sound");
                }
                self.restart(at);
            }
            // Sound that was there already.
            (Some(expected), Some(at)) if at + length <= expected - self.tolerance => {
                self.repeated = Micros(self.repeated.0.saturating_add(length.0));
                return Ok(());
            }
            _ => {}
        }
        if !self.resampler.as_ref().is_some_and(|resampler| resampler.takes(frame)) {
            self.flush()?;
            self.resampler = Some(Resampler::new(frame)?);
        }
        self.taken = Micros(self.taken.0.saturating_add(length.0));
        let samples = match &mut self.resampler {
            Some(resampler) => resampler.run(Some(frame))?,
            None => Vec::new(),
        };
        self.send(&samples);
        Ok(())
    }

    fn restart(&mut self, at: Timestamp) {
        self.base = Some(at);
        self.count = 0;
        self.taken = Micros::ZERO;
    }

    fn flush(&mut self) -> Result<()> {
        if let Some(mut resampler) = self.resampler.take() {
            let samples = resampler.run(None)?;
            self.send(&samples);
        }
        Ok(())
    }

    pub fn finish(&mut self) -> Result<()> {
        self.flush()?;
        self.send_pending();
        Ok(())
    }

    /// Takes samples at the clock; those outside the request are dropped.
    fn send(&mut self, samples: &[f32]) {
        let mut passed = 0;
        for sample in samples {
            let at = self.clock();
            self.count += 1;
            if at < self.start || at >= self.end {
                passed += 1;
                continue;
            }
            if self.pending.is_empty() {
                self.pending_at = at;
            }
            // Broken float tracks hold what is no number.
            self.pending.push(if sample.is_finite() { *sample } else { 0.0 });
            if self.pending.len() == BLOCK {
                self.send_pending();
            }
        }
        self.repeated = Micros(self.repeated.0.saturating_add(passed * 1_000_000 / RATE_HZ));
    }

    fn send_pending(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let body: Vec<u8> =
            self.pending.drain(..).flat_map(|sample| sample.to_le_bytes()).collect();
        self.outbox.send_with(&Message::Sound { pts: self.pending_at }, &body);
        let at = self.clock();
        if at > self.watermark {
            self.outbox.send(&Message::Watermark(at.min(self.end)));
            self.watermark = at;
        }
    }

    fn gap(&mut self, span: Span, reason: &str) {
        if span.start < span.end {
            self.outbox.send(&Message::Gap(Gap {
                span,
                track: TrackKind::Sound,
                reason: reason.to_owned(),
            }));
        }
    }
}

/// To 16 kHz mono floats.
struct Resampler {
    context: resampling::Context,
    channels: u16,
    rate: i64,
}

impl Resampler {
    fn new(frame: &frame::Audio) -> Result<Resampler> {
        let context = resampling::Context::get(
            frame.format(),
            frame.channel_layout(),
            frame.rate(),
            Sample::F32(Type::Packed),
            ChannelLayout::MONO,
            RATE_HZ as u32,
        )
        .map_err(|cause| explain("the sound cannot be converted", cause))?;
        Ok(Resampler { context, channels: frame.channels(), rate: i64::from(frame.rate()) })
    }

    fn takes(&self, frame: &frame::Audio) -> bool {
        let input = self.context.input();
        input.format == frame.format()
            && input.rate == frame.rate()
            && input.channel_layout == frame.channel_layout()
            && self.channels == frame.channels()
    }

    /// What comes out for `frame`; for `None`, all that is left.
    fn run(&mut self, frame: Option<&frame::Audio>) -> Result<Vec<f32>> {
        let broken = |cause| explain("the sound cannot be converted", cause);
        let mut samples = Vec::new();
        // The filter holds back a few milliseconds; a second is far more.
        let room =
            frame.map_or(RATE_HZ, |frame| frame.samples() as i64 * RATE_HZ / self.rate + RATE_HZ);
        let room = usize::try_from(room).unwrap_or(0);
        loop {
            // With a buffer of its own size the resampler neither piles up nor cuts.
            let mut out = frame::Audio::new(Sample::F32(Type::Packed), room, ChannelLayout::MONO);
            match frame {
                Some(frame) => self.context.run(frame, &mut out).map_err(broken)?,
                None => self.context.flush(&mut out).map_err(broken)?,
            };
            samples.extend_from_slice(&out.plane::<f32>(0)[..out.samples()]);
            if frame.is_some() || out.samples() == 0 {
                return Ok(samples);
            }
        }
    }
}
