//! Serving a span of one picture track.

use ffmpeg_next as ffmpeg;

use ffmpeg::codec::discard::Discard;
use ffmpeg::{Dictionary, Packet, frame};

use super::demux::{Next, Source, length_of};
use super::ffi::{self, Scaler, Shape, Target};
use super::orientation::Orientation;
use super::sampler::{Decision, Gaps, Sampler, Shown};
use super::signature::{Signature, Signer};
use super::{Outbox, explain};
use crate::error::{Error, Kind, Result};
use crate::media::{Change, TrackKind};
use crate::source::protocol::{
    Fit, Message, PictureRequest, Rational, Rendition, Summary, Targets, Track,
};
use crate::time::{Micros, Span, Timestamp};

/// A sign of life at least every so many packets.
const PACKETS_PER_WATERMARK: u64 = 100;
const MICROS_PER_WATERMARK: i64 = 1_000_000;
/// A scaled picture is never larger than this many times its rendition, however flat it is.
const MAX_COVER: f64 = 8.0;
/// How far before the wanted start another attempt begins, doubled each time.
const FIRST_STEP_BACK: Micros = Micros(2_000_000);
const MAX_STEPS_BACK: u32 = 5;
/// Frames that a decoder may hold back to bring them into order.
const MAX_DELAY_FRAMES: i64 = 16;

pub(super) fn serve(
    source: Source,
    request: &PictureRequest,
    outbox: &mut Outbox,
) -> Result<Summary> {
    let track = source.choose(TrackKind::Picture, request.track)?;
    let skipping = skipping(&track, &request.targets);
    Run::begin(source, track, request, request.targets, skipping, outbox)?.finish()
}

/// Serving some targets with one reader.
struct Run<'a> {
    request: PictureRequest,
    sampler: Sampler,
    reader: Reader,
    delivery: Delivery<'a>,
    signer: Signer,
    last_signature: Option<Signature>,
    /// When the last watermark was sent, and after how many packets.
    last_watermark: (Timestamp, u64),
    /// Corrupt packets up to the last frame.
    corrupt_before: u64,
    decisions: Vec<Decision>,
}

impl<'a> Run<'a> {
    fn begin(
        source: Source,
        track: Track,
        request: &PictureRequest,
        targets: Targets,
        skipping: Discard,
        outbox: &'a mut Outbox,
    ) -> Result<Run<'a>> {
        let sampler = Sampler::new(targets);
        let reader = Reader::begin(source, track, request.threads, skipping, sampler.start())?;
        let upright = reader.source.orientation(&reader.track);
        Ok(Run {
            request: *request,
            sampler,
            reader,
            delivery: Delivery::new(request.rendition, upright, outbox),
            signer: Signer::default(),
            last_signature: None,
            last_watermark: (Timestamp(i64::MIN), 0),
            corrupt_before: 0,
            decisions: Vec::new(),
        })
    }

    fn finish(mut self) -> Result<Summary> {
        let is_still = self.reader.source.info().is_still;
        let mut current = frame::Video::empty();
        while !self.sampler.is_done() {
            let Some(shown) = self.reader.next(&mut current)? else { break };
            if !self.sampler.is_in_order(shown.pts) {
                self.reader.summary.misplaced_frames += 1;
                continue;
            }
            let signature = self.signer.sign(&current);
            let strength = match (&signature, &self.last_signature) {
                (Some(now), Some(before)) => Some(now.distance(before)),
                _ => None,
            };
            self.last_signature = signature;
            self.sampler.push(shown, strength, &mut |decision| self.decisions.push(decision));
            let corrupt = self.reader.summary.corrupt_packets;
            let reason = why_missing(corrupt - self.corrupt_before);
            self.corrupt_before = corrupt;
            self.carry_out(&reason)?;
            self.delivery.hold(&mut current, shown.pts, self.reader.raw_pts);
            self.promise(shown.pts);
            if is_still {
                break;
            }
        }
        if !self.sampler.is_done() {
            self.end()?;
        }
        self.delivery.end_gap();
        for notice in self.reader.source.take_jumps() {
            self.delivery.outbox.send(&Message::Notice(notice));
        }
        let mut summary = self.reader.summary;
        summary.end = self.sampler.held().map(|held| self.reader.end_after(held));
        Ok(summary)
    }

    /// The source is over before the targets are.
    fn end(&mut self) -> Result<()> {
        let held = self.sampler.held();
        if held.is_none() && self.sampler.start().0 < 0 {
            return Err(nothing_decoded(&self.reader.summary));
        }
        let last = held.map_or(self.sampler.next_target(), |held| self.reader.end_after(held));
        let stated = self.reader.source.info().duration.map(|length| Timestamp::ZERO + length);
        // Containers round their duration, so a part of a second at the end is not missed.
        let end = stated.filter(|end| *end - last > Micros(1_000_000));
        let reason = self.reader.why_ended(held);
        self.sampler.finish(last, end, &mut |decision| self.decisions.push(decision));
        self.carry_out(&reason)
    }

    /// Does what the sampler decided about the frame that is held.
    fn carry_out(&mut self, reason: &str) -> Result<()> {
        for decision in std::mem::take(&mut self.decisions) {
            match decision {
                Decision::Serve { target, change } => self.delivery.serve(target, change),
                Decision::Missing(span) if self.reader.skips => self.look_again(span, reason)?,
                Decision::Missing(span) => self.delivery.miss(span, reason),
            }
        }
        Ok(())
    }

    /// A frame that was left out may be on display where the others are too far apart: these
    /// targets are served once more, from all frames.
    fn look_again(&mut self, span: Span, reason: &str) -> Result<()> {
        let targets = self.request.targets;
        let first = targets.first_at_or_after(span.start);
        let count = targets.first_at_or_after(span.end).saturating_sub(first);
        let targets = targets.part(first, Some(count));
        let source = self.reader.source.another()?;
        let track = self.reader.track.clone();
        self.delivery.end_gap();
        let outbox = &mut *self.delivery.outbox;
        let mut run = Run::begin(source, track, &self.request, targets, Discard::Default, outbox)?;
        run.last_watermark.0 = span.start;
        match run.finish() {
            Ok(_) => {}
            // Not even one frame.
            Err(error) if error.kind() == Kind::Corrupt => self.delivery.miss(span, reason),
            Err(error) => return Err(error),
        }
        self.delivery.is_sent = false;
        Ok(())
    }

    /// Sends a watermark, if it is time for one.
    fn promise(&mut self, pts: Timestamp) {
        let packets = self.reader.summary.packets;
        let (at, packets_then) = self.last_watermark;
        if pts.0.saturating_sub(at.0) >= MICROS_PER_WATERMARK
            || packets - packets_then >= PACKETS_PER_WATERMARK
        {
            // A gap that may still grow has not come yet.
            let next = self.delivery.gaps.start().unwrap_or(self.sampler.next_target());
            self.delivery.outbox.send(&Message::Watermark(next));
            self.last_watermark = (pts, packets);
        }
    }
}

fn why_missing(corrupt_packets: u64) -> String {
    match corrupt_packets {
        0 => "no picture".to_owned(),
        1 => "undecodable: 1 packet".to_owned(),
        many => format!("undecodable: {many} packets"),
    }
}

fn nothing_decoded(summary: &Summary) -> Error {
    match (summary.packets, summary.corrupt_packets) {
        (0, _) => Error::corrupt("the picture track is empty"),
        (_, 0) => Error::corrupt("no frame of the picture track can be shown"),
        (packets, _) => Error::corrupt(format!(
            "no frame of the picture track can be decoded ({packets} packets)"
        )),
    }
}

/// Which frames need not be decoded. Frames that no other frame refers to can be left out without
/// changing the rest by a bit; leaving out all B frames cannot, since x264 and x265 let others
/// refer to some of them.
///
/// Where targets lie four or more frames apart, a frame that is up to a few frames older serves as
/// well. Slow films, and those of unknown rate, are decoded in full: there the next frame that is
/// kept may be a second away.
fn skipping(track: &Track, targets: &Targets) -> Discard {
    let Some(rate) = track.frame_rate.map(Rational::as_f64) else { return Discard::Default };
    let step_secs = targets.step_num as f64 / f64::from(targets.step_den) / 1e6;
    if (10.0..=300.0).contains(&rate) && step_secs * rate >= 4.0 {
        Discard::NonReference
    } else {
        Discard::Default
    }
}

/// Decodes one track in order of display.
struct Reader {
    source: Source,
    track: Track,
    decoder: ffmpeg::decoder::Video,
    /// Packets and a frame that were read to find the beginning.
    first_packet: Option<Packet>,
    first_frame: Option<(frame::Video, Shown)>,
    is_drained: bool,
    broke: Option<ffmpeg::Error>,
    /// Whether frames that nothing refers to are left out.
    skips: bool,
    /// Where the packets of the track end (pts on the continuous clock).
    packets_end: i64,
    /// Whether the container knows when packets are decoded, but not when frames are displayed, as
    /// AVI does.
    lacks_pts: bool,
    /// How much later than its time of display the track's first frame came out.
    delay: Option<i64>,
    /// What follows the last frame, for frames without a time of their own (raw pts).
    expected: i64,
    /// Of the last frame, as the container has it.
    raw_pts: i64,
    summary: Summary,
}

impl Reader {
    /// A reader whose first frame is on display at or before `start`, or is the source's first.
    fn begin(
        mut source: Source,
        track: Track,
        threads: u16,
        skipping: Discard,
        start: Timestamp,
    ) -> Result<Reader> {
        source.keep(&[track.index]);
        let decoder = open_decoder(&source, &track, threads, skipping)?;
        let mut reader = Reader {
            expected: track.start_raw_pts.unwrap_or(0),
            source,
            track,
            decoder,
            first_packet: None,
            first_frame: None,
            is_drained: false,
            broke: None,
            skips: skipping != Discard::Default,
            packets_end: i64::MIN,
            lacks_pts: false,
            delay: None,
            raw_pts: 0,
            summary: Summary::default(),
        };
        if start.0 <= 0 || !reader.source.info().has_random_access {
            return Ok(reader);
        }
        let mut back = Micros::ZERO;
        for _ in 0..MAX_STEPS_BACK {
            let wanted = start - back;
            if wanted.0 <= 0 || !reader.seek_before(wanted, start) {
                break;
            }
            // Frames may follow a keyframe that are not decodable from there; only what comes out
            // shows where the picture begins.
            let mut frame = frame::Video::empty();
            if let Some(shown) = reader.next(&mut frame)?
                && shown.pts <= start
            {
                reader.first_frame = Some((frame, shown));
                return Ok(reader);
            }
            back = Micros((back.0 * 2).max(FIRST_STEP_BACK.0));
        }
        reader.source.reopen()?;
        reader.decoder = open_decoder(&reader.source, &reader.track, threads, skipping)?;
        reader.restart();
        Ok(reader)
    }

    fn restart(&mut self) {
        self.first_packet = None;
        self.is_drained = false;
        self.broke = None;
        self.delay = None;
        self.expected = self.track.start_raw_pts.unwrap_or(0);
        self.summary = Summary::default();
    }

    /// Moves to a keyframe that is shown at or before `start`, searching from `wanted` backwards.
    fn seek_before(&mut self, wanted: Timestamp, start: Timestamp) -> bool {
        let start = self.source.pts_at(&self.track, start);
        let mut wanted = self.source.pts_at(&self.track, wanted);
        for _ in 0..MAX_STEPS_BACK {
            if self.source.seek(&self.track, wanted).is_err() {
                return false;
            }
            self.decoder.flush();
            self.restart();
            let Some(packet) = self.next_keyframe() else { return false };
            let Some(pts) = packet.pts().or(packet.dts()) else { return false };
            // Containers seek by decode time, which is before the time of display.
            let before = packet.dts().unwrap_or(pts).min(pts).saturating_sub(1);
            self.first_packet = Some(packet);
            if pts <= start {
                return true;
            }
            wanted = before.min(wanted.saturating_sub(1));
        }
        false
    }

    fn next_keyframe(&mut self) -> Option<Packet> {
        loop {
            match self.source.next() {
                Next::Packet(packet)
                    if packet.stream() == self.track.index as usize && packet.is_key() =>
                {
                    return Some(packet);
                }
                Next::Packet(_) => {}
                Next::End | Next::Broken(_) => return None,
            }
        }
    }

    /// The next frame in order of display; `None` at the end.
    fn next(&mut self, frame: &mut frame::Video) -> Result<Option<Shown>> {
        if let Some((first, shown)) = self.first_frame.take() {
            *frame = first;
            return Ok(Some(shown));
        }
        loop {
            match self.decoder.receive_frame(frame) {
                Ok(()) => {
                    self.summary.decoded += 1;
                    if frame.is_corrupt() || frame.has_decode_errors() {
                        self.summary.damaged_frames += 1;
                    }
                    return Ok(Some(self.when_shown(frame)));
                }
                Err(ffmpeg::Error::Eof) => return Ok(None),
                Err(ffmpeg::Error::Other { errno: ffmpeg::error::EAGAIN }) => {
                    if self.is_drained {
                        return Ok(None);
                    }
                    self.feed()?;
                }
                Err(ffmpeg::Error::Other { errno: ffmpeg::error::ENOMEM }) => {
                    return Err(out_of_memory());
                }
                Err(_) => {
                    self.summary.corrupt_packets += 1;
                    if self.is_drained && self.summary.corrupt_packets > self.summary.packets {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// Gives the decoder one more packet, or the end.
    fn feed(&mut self) -> Result<()> {
        let packet = match self.first_packet.take() {
            Some(packet) => packet,
            None => match self.source.next() {
                Next::Packet(packet) if packet.stream() == self.track.index as usize => packet,
                Next::Packet(_) => return Ok(()),
                Next::End => return Ok(self.drain()),
                Next::Broken(cause) => {
                    if cause == (ffmpeg::Error::Other { errno: ffmpeg::error::ENOMEM }) {
                        return Err(out_of_memory());
                    }
                    self.broke = Some(cause);
                    return Ok(self.drain());
                }
            },
        };
        if self.summary.packets == 0 {
            self.lacks_pts = packet.pts().is_none() && packet.dts().is_some();
        }
        self.summary.packets += 1;
        if let Some(pts) = packet.pts().or(packet.dts()) {
            let duration = packet.duration().max(self.usual_duration());
            self.packets_end = self.packets_end.max(pts.saturating_add(duration));
        }
        let is_corrupt = packet.is_corrupt();
        match self.decoder.send_packet(&packet) {
            Ok(()) if is_corrupt => self.summary.corrupt_packets += 1,
            Ok(()) => {}
            Err(ffmpeg::Error::Other { errno: ffmpeg::error::ENOMEM }) => {
                return Err(out_of_memory());
            }
            Err(_) => self.summary.corrupt_packets += 1,
        }
        Ok(())
    }

    fn drain(&mut self) {
        // Fails only where draining has begun already.
        let _ = self.decoder.send_eof();
        self.is_drained = true;
    }

    fn when_shown(&mut self, frame: &frame::Video) -> Shown {
        let pts = if self.lacks_pts {
            // The decode time of the packet that pushed this frame out, less how long the first
            // one took.
            let out = frame.packet().dts;
            if out == ffmpeg::ffi::AV_NOPTS_VALUE {
                self.expected
            } else {
                let start = self.track.start_raw_pts.unwrap_or(0);
                let longest = self.usual_duration().saturating_mul(MAX_DELAY_FRAMES);
                let delay = out.checked_sub(start).filter(|delay| (0..=longest).contains(delay));
                out.saturating_sub(*self.delay.get_or_insert(delay.unwrap_or(0)))
            }
        } else {
            frame.timestamp().unwrap_or(self.expected)
        };
        let stated = frame.packet().duration;
        let duration = if stated > 0 { stated } else { self.usual_duration() };
        self.expected = pts.saturating_add(duration);
        self.raw_pts = self.source.raw_pts(&self.track, pts);
        Shown {
            pts: self.source.time_of(&self.track, pts),
            duration: length_of(&self.track, duration),
        }
    }

    /// One frame's length by the track's rate, in its time base; 40 ms where it states none.
    fn usual_duration(&self) -> i64 {
        let rate = self.track.frame_rate.unwrap_or(Rational { num: 25, den: 1 });
        ffi::rescale_down(1, Rational { num: rate.den, den: rate.num }, self.track.time_base).max(1)
    }

    /// Until when `last`, the last frame, is on display. Where frames are left out, the packets
    /// know when those would have ended.
    fn end_after(&self, last: Shown) -> Timestamp {
        let end = last.pts + last.duration;
        if !self.skips {
            return end;
        }
        let packets_end = self.source.time_of(&self.track, self.packets_end);
        end.max(packets_end.min(last.pts + super::sampler::LONGEST_HOLD))
    }

    fn why_ended(&self, last: Option<Shown>) -> String {
        let at = last.map_or(Timestamp::ZERO, |last| last.pts);
        match (&self.broke, self.summary.corrupt_packets) {
            (Some(cause), _) => format!("reading broke off after {at}: {cause}"),
            (None, 0) => format!("the picture ends at {at}"),
            (None, corrupt) => format!("undecodable: {corrupt} packets, the last frame at {at}"),
        }
    }
}

fn out_of_memory() -> Error {
    Error::exhausted("the decoder ran out of the memory it may use")
}

fn open_decoder(
    source: &Source,
    track: &Track,
    threads: u16,
    skipping: Discard,
) -> Result<ffmpeg::decoder::Video> {
    let stream = source
        .input()
        .stream(track.index as usize)
        .ok_or_else(|| Error::corrupt("the track is gone"))?;
    let parameters = stream.parameters();
    let codec = ffmpeg::decoder::find(parameters.id()).ok_or_else(|| {
        Error::unsupported(format!("this FFmpeg has no decoder for {}", track.codec))
    })?;
    let cannot = |cause| explain(&format!("the {} decoder cannot be opened", track.codec), cause);
    let mut decoder =
        ffmpeg::codec::Context::from_parameters(parameters).map_err(cannot)?.decoder();
    decoder.set_packet_time_base(stream.time_base());
    decoder.skip_frame(skipping);
    let mut options = Dictionary::new();
    options.set("threads", &threads.max(1).to_string());
    let opened = decoder.open_as_with(codec, options).map_err(cannot)?;
    opened.video().map_err(cannot)
}

/// Brings the held frame into its rendition, when a target wants it, and sends it.
struct Delivery<'a> {
    outbox: &'a mut Outbox,
    rendition: Rendition,
    /// How the container wants pictures turned.
    orientation: Orientation,
    held: frame::Video,
    held_pts: Timestamp,
    held_raw_pts: i64,
    is_sent: bool,
    scaler: Option<Scaler>,
    gaps: Gaps,
}

impl<'a> Delivery<'a> {
    fn new(rendition: Rendition, orientation: Orientation, outbox: &'a mut Outbox) -> Self {
        Delivery {
            outbox,
            rendition,
            orientation,
            held: frame::Video::empty(),
            held_pts: Timestamp::ZERO,
            held_raw_pts: 0,
            is_sent: false,
            scaler: None,
            gaps: Gaps::default(),
        }
    }

    /// Swaps the new frame in; the old one's buffer is used for the next.
    fn hold(&mut self, frame: &mut frame::Video, pts: Timestamp, raw_pts: i64) {
        std::mem::swap(&mut self.held, frame);
        self.held_pts = pts;
        self.held_raw_pts = raw_pts;
        self.is_sent = false;
    }

    /// Sends the held frame for `target`.
    fn serve(&mut self, target: Timestamp, change: Change) {
        if self.is_sent {
            self.end_gap();
            self.outbox.send(&Message::Repeat { target, change });
            return;
        }
        let Some(rgb) = self.render() else {
            let span = Span::new(target, target + Micros(1));
            self.miss(span, "FFmpeg cannot convert this pixel format");
            return;
        };
        self.end_gap();
        let Rendition { width_px, height_px, .. } = self.rendition;
        let message = Message::Frame {
            target,
            pts: self.held_pts,
            raw_pts: self.held_raw_pts,
            width_px,
            height_px,
            change,
        };
        self.outbox.send_with(&message, &rgb);
        self.is_sent = true;
    }

    fn miss(&mut self, span: Span, reason: &str) {
        if let Some(gap) = self.gaps.add(span, reason) {
            self.outbox.send(&Message::Gap(gap));
        }
    }

    fn end_gap(&mut self) {
        if let Some(gap) = self.gaps.take() {
            self.outbox.send(&Message::Gap(gap));
        }
    }

    /// The held frame in the rendition; `None` where FFmpeg cannot convert it.
    fn render(&mut self) -> Option<Vec<u8>> {
        let shape = ffi::shape(&self.held);
        let orientation = orientation(&self.held).unwrap_or(self.orientation);
        let layout = Layout::of(&shape, orientation, self.rendition);
        let (width, height) = layout.coded;
        if !self.scaler.as_ref().is_some_and(|scaler| scaler.fits(&shape, width, height)) {
            self.scaler = Scaler::new(shape, Target::Rgb, width, height);
        }
        let scaled = self.scaler.as_mut()?.run(&self.held)?;
        let wanted = (self.rendition.width_px as usize, self.rendition.height_px as usize);
        let size = (width as usize, height as usize);
        if orientation == Orientation::default() && size == wanted {
            return Some(scaled);
        }
        let mut canvas = vec![0; wanted.0 * wanted.1 * 3];
        orientation.place(&scaled, size, &mut canvas, wanted, layout.corner);
        Some(canvas)
    }
}

/// A frame's own orientation: of a coded stream that turns midway, or Exif's of a still image.
fn orientation(frame: &frame::Video) -> Option<Orientation> {
    use ffmpeg::frame::side_data::Type;
    if let Some(matrix) = frame.side_data(Type::DisplayMatrix) {
        return Orientation::from_matrix(matrix.data());
    }
    let tag = ffi::frame_metadata(frame, c"Orientation")?;
    Orientation::from_exif(tag.trim().parse().ok()?)
}

/// Where a scaled picture lies in its rendition.
#[derive(Debug, PartialEq, Eq)]
struct Layout {
    /// Size to scale the coded picture to, before it is turned.
    coded: (i32, i32),
    /// Left and top of the turned picture in the rendition; negative where it is cut.
    corner: (i64, i64),
}

impl Layout {
    fn of(shape: &Shape, orientation: Orientation, rendition: Rendition) -> Layout {
        let (width, height) = (f64::from(rendition.width_px), f64::from(rendition.height_px));
        let sample = shape.sample_aspect_ratio.positive().map_or(1.0, Rational::as_f64);
        let coded_ratio = f64::from(shape.width.max(1)) * sample / f64::from(shape.height.max(1));
        let ratio = if orientation.swaps_axes() { 1.0 / coded_ratio } else { coded_ratio };
        // Width over height of the picture, in units of the rendition's.
        let excess = ratio / (width / height);
        let (across, down) = match rendition.fit {
            Fit::Squash => (1.0, 1.0),
            Fit::Crop => (excess.max(1.0).min(MAX_COVER), (1.0 / excess).max(1.0).min(MAX_COVER)),
            Fit::Pad => (excess.min(1.0), (1.0 / excess).min(1.0)),
        };
        let side = |length: f64| (length.round() as i32).max(1);
        let shown = (side(width * across), side(height * down));
        let corner = |length: u32, shown: i32| (i64::from(length) - i64::from(shown)).div_euclid(2);
        Layout {
            coded: if orientation.swaps_axes() { (shown.1, shown.0) } else { shown },
            corner: (corner(rendition.width_px, shown.0), corner(rendition.height_px, shown.1)),
        }
    }
}
