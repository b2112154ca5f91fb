//! Serving a live stream: GStreamer receives it, FFmpeg decodes it as it does files, and what is not
//! wanted, comes too late or cannot be decoded is counted.

mod arrivals;
mod clock;
mod fetcher;
mod muxer;
mod parts;
mod plugins;
mod reasons;
mod reception;
mod recording;
mod sound;
mod soundtrack;
mod trust;
mod url;

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ffmpeg_next as ffmpeg;

use ffmpeg::codec::Id;
use ffmpeg::frame;
use rustix::time::{ClockId, clock_gettime};

use self::arrivals::{Loss, Unit};
use self::reception::{Coded, Reception};
use self::recording::Recording;
use super::delivery::Delivery;
use super::ffi::{self, Hardware};
use super::nal::Framing;
use super::orientation::Orientation;
use super::sampler::{Decision, Sampler, Shown};
use super::signature::{Signature, Signer};
use super::{Outbox, explain};
use crate::error::{Error, Result};
use crate::source::protocol::{Address, BEHIND, LiveRequest, Message, NO_FRAME, Received, Summary};
use crate::time::{Micros, Timestamp};

/// How often it is looked whether the stream is over.
const TICK: Duration = Duration::from_millis(100);
/// How often what was received is told.
const TELL: Duration = Duration::from_secs(1);
/// Frames that a decoder may hold back to bring them into order; what is missing beyond is lost.
const MOST_HELD: u64 = 32;
/// Sound and picture are no further apart than by their own timestamps, where these have one clock, and until RTCP has told
/// how two belong together; else the timestamps are wrong.
const MOST_APART_US: i64 = 5_000_000;
const MOST_APART_RTP_US: i64 = 500_000;
const BLIND: &str = "nothing of what comes can be decoded: see whether another player shows it, or have it sent \
     in another codec or profile";
/// Of frames that nothing refers to, some are decoded, so that a target's is never older than this
/// share of the way to the next target.
const SHARE_OF_STEP: i64 = 4;

/// Microseconds on the clock that never steps.
fn monotonic_us() -> i64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.saturating_mul(1_000_000).saturating_add(now.tv_nsec / 1_000)
}

pub(super) fn serve(
    address: &Address,
    file: Option<File>,
    sound: Option<UnixStream>,
    request: &LiveRequest,
    outbox: &mut Outbox,
) -> Result<Summary> {
    // Before anything comes that would have to wait for it.
    let hardware = request.hardware.then(Hardware::open).flatten();
    let mut reception = Reception::open(address, file.map(Into::into), request)?;
    let (sounds, arrivals) = (reception.sounds.clone(), Arc::clone(&reception.arrivals));
    std::thread::scope(|scope| {
        if let (Some(sounds), Some(to)) = (&sounds, sound) {
            scope.spawn(|| sound::serve(sounds, &arrivals, request, to));
        }
        serve_picture(&mut reception, request, hardware, outbox)
    })
}

fn serve_picture(
    reception: &mut Reception,
    request: &LiveRequest,
    hardware: Option<Hardware>,
    outbox: &mut Outbox,
) -> Result<Summary> {
    let mut recording = request.record.then(|| Recording::new(request.zero_us));
    let mut run = Run::new(request, hardware, outbox);
    let (mut told, mut is_asked) = (Instant::now(), false);
    let ended = loop {
        // What has arrived by then is decoded.
        if !is_asked && run.delivery.outbox.is_asked() {
            is_asked = true;
            reception.arrivals.close();
        }
        let has_ended = reception.has_ended();
        match reception.arrivals.pop(TICK, monotonic_us) {
            Some(unit) => {
                // Should decoding hang, it is known that something came.
                if run.decoder.is_none() {
                    run.tell(reception);
                }
                if let Err(error) = run.take(unit) {
                    break Err(error);
                }
                // Should its driver hang, it is known whose it was.
                if run.told.in_hardware == 0 && run.counts.in_hardware > 0 {
                    run.tell(reception);
                }
            }
            None if is_asked => break Ok(()),
            None if has_ended => break reception.end(),
            None => {
                if let Some(until) = reception.arrivals.lost_until() {
                    run.pass(until);
                }
            }
        }
        if let Some(recording) = &mut recording {
            run.record(recording, reception);
        }
        // A stream that is silent is told by the silence.
        if told.elapsed() >= TELL && reception.arrivals.counts().received > run.told.received {
            told = Instant::now();
            run.tell(reception);
        }
    };
    if let Some(sounds) = &reception.sounds {
        // All of it has its time now, however soon this is over.
        sounds.close();
    }
    if let Some(recording) = &mut recording {
        run.record(recording, reception);
        recording.finish(run.delivery.outbox);
        run.count_lost(recording);
    }
    run.finish();
    run.tell(reception);
    let end = run.sampler.held().map(|held| held.pts + held.duration);
    ended.map(|()| Summary {
        packets: run.told.received,
        decoded: run.decoded,
        skipped: run.told.received.saturating_sub(run.decoded),
        end,
        ..Summary::default()
    })
}

/// One connection's way from coded frames to targets.
struct Run<'a> {
    request: LiveRequest,
    sampler: Sampler,
    delivery: Delivery<'a>,
    signer: Signer,
    last_signature: Option<Signature>,
    /// What may decode in place of this processor.
    hardware: Option<Hardware>,
    decoder: Option<Decoder>,
    /// Why nothing may be seen before the frame that was captured then.
    loss: Option<(i64, Loss)>,
    /// Frames that could not be decoded, when the last one was shown.
    undecodable: u64,
    /// What the decoder and the sampler made of the frames.
    counts: Received,
    told: Received,
    /// Packets of sound that are in no recording, since this was last told.
    unrecorded_sound: u64,
    decoded: u64,
    watermark: Timestamp,
    decisions: Vec<Decision>,
}

struct Decoder {
    codec: Id,
    video: ffmpeg::decoder::Video,
    /// Frames that went in and have not come out.
    held: u64,
    /// Frames of which no picture came, since the last of which one did.
    failed: u64,
    /// When the first of these was captured.
    failed_since: i64,
    /// Capture time and own timestamp of what went in last.
    times: VecDeque<(i64, i64)>,
    last_in: i64,
}

impl<'a> Run<'a> {
    fn new(request: &LiveRequest, hardware: Option<Hardware>, outbox: &'a mut Outbox) -> Self {
        Run {
            request: request.clone(),
            sampler: Sampler::new(request.targets),
            delivery: Delivery::new(request.rendition, Orientation::default(), outbox),
            signer: Signer::default(),
            last_signature: None,
            hardware,
            decoder: None,
            loss: None,
            undecodable: 0,
            counts: Received::default(),
            told: Received::default(),
            unrecorded_sound: 0,
            decoded: 0,
            watermark: Timestamp(i64::MIN),
            decisions: Vec::new(),
        }
    }

    /// Decodes one coded frame, or leaves it out.
    fn take(&mut self, unit: Unit<Coded>) -> Result<()> {
        if let Some(loss) = unit.after {
            self.loss = Some((unit.captured, loss));
        }
        let Coded { codec, mut packet, .. } = unit.packet;
        if self.decoder.as_ref().is_none_or(|decoder| decoder.codec != codec) {
            self.drain();
            self.decoder = Some(Decoder::open(codec, self.hardware.as_ref())?);
        }
        let Some(decoder) = &mut self.decoder else { return Ok(()) };
        let step = self.request.targets.step_num / u64::from(self.request.targets.step_den);
        let oldest = i64::try_from(step).unwrap_or(i64::MAX) / SHARE_OF_STEP;
        let is_spare = unit.captured.saturating_sub(decoder.last_in) < oldest;
        if is_spare && !unit.is_key && is_unreferenced(codec, packet.data().unwrap_or_default()) {
            self.counts.skipped += 1;
            return Ok(());
        }
        decoder.last_in = unit.captured;
        decoder.times.push_back((unit.captured, unit.pts.unwrap_or(unit.captured)));
        if decoder.times.len() > MOST_HELD as usize {
            decoder.times.pop_front();
        }
        packet.set_pts(Some(unit.captured));
        match decoder.video.send_packet(&packet) {
            Ok(()) => decoder.held += 1,
            Err(ffmpeg::Error::Other { errno: ffmpeg::error::ENOMEM }) => {
                return Err(Error::exhausted("the decoder ran out of the memory it may use"));
            }
            Err(_) => decoder.fail(&mut self.counts),
        }
        self.receive();
        // A device that has failed, or that this stream is too much for.
        if self.hardware.is_some()
            && self.decoder.as_ref().is_some_and(|decoder| decoder.failed > MOST_HELD)
        {
            self.drain();
            self.hardware = None;
        }
        let silence = i64::try_from(self.request.silence.as_micros()).unwrap_or(i64::MAX);
        match &self.decoder {
            Some(decoder) if decoder.blind_us() > silence => Err(Error::unavailable(BLIND)),
            _ => Ok(()),
        }
    }

    /// Keeps what arrived, whatever the decoder does with it.
    fn record(&mut self, recording: &mut Recording, reception: &Reception) {
        let arrivals = &reception.arrivals;
        if let Some(sounds) = reception.sounds.as_ref().filter(|_| arrivals.has_times()) {
            // The frames wait for it: with what is heard, a file begins.
            let Some((mut packets, lost)) = sounds.take_tape() else { return };
            // Of the first piece out of a transport stream it is known only that it comes before the next.
            let untimed = packets.iter().position(|packet| packet.pts.is_some()).unwrap_or(0);
            packets.drain(..untimed);
            self.unrecorded_sound += lost + untimed as u64;
            let most_apart = if reception.is_contained { MOST_APART_US } else { MOST_APART_RTP_US };
            for packet in &mut packets {
                let played = packet.pts.map(|pts| pts.saturating_sub(packet.origin));
                packet.captured = arrivals.beside(played, packet.captured, most_apart);
            }
            recording.hear(packets, self.delivery.outbox);
        }
        let (units, lost) = arrivals.take_tape();
        recording.take(units, self.delivery.outbox);
        self.counts.unrecorded += lost;
        self.count_lost(recording);
    }

    /// Counts what got into no recording.
    fn count_lost(&mut self, recording: &mut Recording) {
        let (frames, packets) = recording.take_lost();
        self.counts.unrecorded += frames;
        self.unrecorded_sound += packets;
    }

    /// Takes what comes out of the decoder.
    fn receive(&mut self) {
        let mut current = frame::Video::empty();
        while let Some(decoder) = &mut self.decoder
            && decoder.video.receive_frame(&mut current).is_ok()
        {
            decoder.held = decoder.held.saturating_sub(1);
            match ffi::fetch(&mut current) {
                Ok(is_hardware) => self.counts.in_hardware += u64::from(is_hardware),
                Err(_) => {
                    decoder.fail(&mut self.counts);
                    continue;
                }
            }
            decoder.failed = 0;
            let captured = current.timestamp().unwrap_or(decoder.last_in);
            let raw_pts = decoder.times.iter().find(|(time, _)| *time == captured);
            let raw_pts = raw_pts.map_or(captured, |(_, raw_pts)| *raw_pts);
            self.show(&mut current, captured, raw_pts);
        }
        if let Some(decoder) = &mut self.decoder
            && decoder.held > MOST_HELD
        {
            decoder.held -= 1;
            decoder.fail(&mut self.counts);
        }
    }

    /// A frame is on display from now on: serves the targets before it.
    fn show(&mut self, frame: &mut frame::Video, captured: i64, raw_pts: i64) {
        self.decoded += 1;
        let mut pts = Timestamp(captured.saturating_sub(self.request.zero_us));
        if let Some(held) = self.sampler.held() {
            // A clock that was set back a little stands still.
            pts = pts.max(held.pts + Micros(1));
        }
        let signature = self.signer.sign(frame);
        let strength = match (&signature, &self.last_signature) {
            (Some(now), Some(before)) => Some(now.distance(before)),
            _ => None,
        };
        self.last_signature = signature;
        let has_held = self.sampler.held().is_some();
        let shown = Shown { pts, duration: Micros::ZERO };
        self.sampler.push(shown, strength, &mut |decision| self.decisions.push(decision));
        self.carry_out(self.why_missing(captured));
        self.loss = self.loss.filter(|(from, _)| captured < *from);
        self.undecodable = self.counts.undecodable;
        if has_held {
            self.settle_held();
        }
        self.delivery.hold(frame, pts, raw_pts);
        self.promise();
    }

    /// Why nothing was seen right before a frame, if nothing was.
    fn why_missing(&self, captured: i64) -> &'static str {
        match self.loss {
            Some((from, loss)) if from <= captured => loss.reason(),
            _ if self.counts.undecodable > self.undecodable => "what came could not be decoded",
            _ => NO_FRAME,
        }
    }

    fn carry_out(&mut self, why_missing: &str) {
        for decision in std::mem::take(&mut self.decisions) {
            match decision {
                Decision::Serve { target, change } => self.delivery.serve(target, change),
                Decision::Missing(span) => self.delivery.miss(span, why_missing),
            }
        }
    }

    /// The frame on display goes: it served a target, or none.
    fn settle_held(&mut self) {
        if self.delivery.is_sent {
            self.counts.encoded += 1;
        } else {
            self.counts.skipped += 1;
        }
    }

    /// A target that is served lets its clip be closed.
    fn promise(&mut self) {
        let next = self.delivery.gaps.start().unwrap_or(self.sampler.next_target());
        if next > self.watermark {
            self.watermark = next;
            self.delivery.outbox.send(&Message::Watermark(next));
        }
    }

    /// What was captured up to then is lost: what is in the decoder is shown, and what is promised goes on.
    fn pass(&mut self, until: i64) {
        if self.decoder.as_ref().is_some_and(|decoder| decoder.held > 0) {
            self.empty();
        }
        // Nobody waits for what is before the first frame.
        if self.sampler.held().is_none() {
            return;
        }
        let until = Timestamp(until.saturating_sub(self.request.zero_us));
        self.sampler.pass(until, &mut |decision| self.decisions.push(decision));
        self.carry_out(BEHIND);
        self.delivery.end_gap();
        self.promise();
    }

    /// Takes all that is in the decoder, which then waits for a keyframe.
    fn empty(&mut self) {
        let Some(decoder) = &mut self.decoder else { return };
        // Fails only where draining has begun already.
        let _ = decoder.video.send_eof();
        self.receive();
        if let Some(decoder) = &mut self.decoder {
            self.counts.undecodable += std::mem::take(&mut decoder.held);
            decoder.video.flush();
        }
    }

    /// Takes all that is in the decoder, and ends it.
    fn drain(&mut self) {
        self.empty();
        self.decoder = None;
    }

    /// The connection is over: the last frame serves what it is on display at.
    fn finish(&mut self) {
        self.drain();
        if let Some(held) = self.sampler.held() {
            let last = held.pts + Micros(1);
            self.sampler.finish(last, None, &mut |decision| self.decisions.push(decision));
            self.carry_out(NO_FRAME);
            self.settle_held();
        }
        self.delivery.end_gap();
    }

    /// Tells what was received.
    fn tell(&mut self, reception: &Reception) {
        let arrived = reception.arrivals.counts();
        let counts = Received {
            encoded: self.counts.encoded,
            skipped: self.counts.skipped,
            undecodable: self.counts.undecodable,
            in_hardware: self.counts.in_hardware,
            unrecorded: self.counts.unrecorded,
            lost_packets: reception.lost_packets(),
            ..arrived
        };
        self.told = counts;
        let packets = std::mem::take(&mut self.unrecorded_sound);
        if packets > 0 {
            self.delivery.outbox.send(&Message::UnrecordedSound(packets));
        }
        self.delivery.outbox.send(&Message::Received(counts));
    }
}

impl Decoder {
    fn open(codec: Id, hardware: Option<&Hardware>) -> Result<Decoder> {
        let found = ffmpeg::decoder::find(codec).ok_or_else(|| {
            Error::unsupported(format!("this FFmpeg has no decoder for {}", codec.name()))
        })?;
        let cannot = |cause| explain("the decoder cannot be opened", cause);
        let mut context = ffmpeg::codec::Context::new_with_codec(found);
        if let Some(hardware) = hardware {
            hardware.lend(&mut context, found);
        }
        // One thread: more would hold frames back.
        let mut options = ffmpeg::Dictionary::new();
        options.set("threads", "1");
        let video = context
            .decoder()
            .open_as_with(found, options)
            .and_then(ffmpeg::decoder::Opened::video)
            .map_err(cannot)?;
        let times = VecDeque::new();
        Ok(Decoder { codec, video, held: 0, failed: 0, failed_since: 0, times, last_in: i64::MIN })
    }

    /// No picture came of a frame.
    fn fail(&mut self, counts: &mut Received) {
        // A camera's clock may be set back.
        if self.failed == 0 || self.last_in < self.failed_since {
            self.failed_since = self.last_in;
        }
        self.failed += 1;
        counts.undecodable += 1;
    }

    /// For how long frames have come of which there was no picture. A few say nothing.
    fn blind_us(&self) -> i64 {
        if self.failed > MOST_HELD { self.last_in.saturating_sub(self.failed_since) } else { 0 }
    }
}

/// Whether no other frame is predicted from this one: H.264's `nal_ref_idc` 0, H.265's sub-layer
/// non-reference pictures. Other codecs do not say so in front.
fn is_unreferenced(codec: Id, packet: &[u8]) -> bool {
    let is_picture = |unit: &&[u8]| match codec {
        Id::H264 => matches!(unit[0] & 31, 1..=5),
        Id::HEVC => unit[0] >> 1 & 63 < 32,
        _ => false,
    };
    let first = Framing::StartCodes.units(packet).find(is_picture);
    first.is_some_and(|unit| match codec {
        Id::H264 => unit[0] >> 5 & 3 == 0,
        _ => matches!(unit[0] >> 1 & 63, 0 | 2 | 4 | 6 | 8 | 10 | 12 | 14),
    })
}

#[cfg(test)]
mod tests {
    use super::reception::tests::request;
    use super::*;
    use crate::source::host::ffi::{Scaler, Target};
    use crate::source::protocol::{self, Targets};

    /// The pictures of a film, small, in the order in which they come out, and how many of them hardware
    /// has decoded.
    fn decoded(film: &std::path::Path, hardware: Option<&Hardware>) -> (Vec<Vec<u8>>, usize) {
        let mut input = ffmpeg::format::input(film).unwrap();
        let mut decoder = Decoder::open(Id::H264, hardware).unwrap();
        let mut scaler: Option<Scaler> = None;
        let (mut pictures, mut in_hardware) = (Vec::new(), 0);
        let mut receive = |video: &mut ffmpeg::decoder::Video| {
            let mut frame = frame::Video::empty();
            while video.receive_frame(&mut frame).is_ok() {
                in_hardware += usize::from(ffi::fetch(&mut frame).unwrap());
                let shape = ffi::shape(&frame);
                let scaler =
                    scaler.get_or_insert_with(|| Scaler::new(shape, Target::Rgb, 32, 18).unwrap());
                pictures.push(scaler.run(&frame).unwrap());
            }
        };
        for (_, packet) in input.packets() {
            decoder.video.send_packet(&packet).unwrap();
            receive(&mut decoder.video);
        }
        decoder.video.send_eof().unwrap();
        receive(&mut decoder.video);
        (pictures, in_hardware)
    }

    #[test]
    fn hardware_decodes_the_same_pictures_or_leaves_them_to_the_processor() {
        let folder = tempfile::TempDir::new().unwrap();
        for format in ["yuv420p", "yuv444p"] {
            let film = folder.path().join(format).with_extension("h264");
            let made = std::process::Command::new("ffmpeg")
                .args(["-v", "error", "-nostdin", "-f", "lavfi"])
                .args(["-i", "testsrc2=s=640x360:r=25:d=2", "-pix_fmt", format])
                .arg(&film)
                .status()
                .unwrap();
            assert!(made.success());
            let (by_processor, none) = decoded(&film, None);
            let (by_hardware, count) = decoded(&film, Hardware::open().as_ref());
            assert_eq!((by_processor.len(), none), (50, 0), "{format}");
            if count == 0 {
                eprintln!("no hardware decodes {format} here: the processor did");
                assert_eq!(by_hardware, by_processor, "{format}");
            }
            assert_eq!(by_hardware.len(), 50, "{format}");
            for (one, other) in by_hardware.iter().zip(&by_processor) {
                // Planes that lie otherwise in memory are scaled with other rounding.
                let most = one.iter().zip(other).map(|(a, b)| a.abs_diff(*b)).max();
                assert!(most <= Some(3), "{format}: {most:?}");
            }
        }
    }

    #[test]
    fn a_decoder_is_blind_since_the_first_of_many_frames_without_a_picture() {
        let (mut decoder, mut counts) =
            (Decoder::open(Id::H264, None).unwrap(), Received::default());
        let mut fail = |frames: std::ops::Range<i64>| {
            for second in frames {
                decoder.last_in = second * 1_000_000;
                decoder.fail(&mut counts);
            }
            decoder.blind_us()
        };
        // A few say nothing, however far apart they are.
        assert_eq!(fail(100..132), 0);
        assert_eq!(fail(132..133), 32_000_000);
        assert_eq!(fail(133..200), 99_000_000);
    }

    /// Frames of a film, as they would come, and when each was captured.
    fn coming(film: &std::path::Path) -> Vec<Unit<Coded>> {
        let mut input = ffmpeg::format::input(film).unwrap();
        let mut first = None;
        let unit = |(stream, packet): (ffmpeg::Stream<'_>, ffmpeg::Packet)| {
            assert_eq!(stream.parameters().id(), Id::H264);
            let pts = packet.pts().unwrap() * 100 / 9;
            let captured = pts - *first.get_or_insert(pts);
            let (bytes, is_key) = (packet.size(), packet.is_key());
            let packet = Coded { codec: Id::H264, width_px: 0, height_px: 0, packet };
            let (pts, sent, arrived, after) = (Some(pts), None, captured, None);
            Unit { packet, bytes, pts, sent, arrived, captured, is_key, after }
        };
        input.packets().map(unit).collect()
    }

    #[test]
    fn while_frames_are_dropped_those_before_are_shown_and_the_watermark_goes_on() {
        let folder = tempfile::TempDir::new().unwrap();
        let film = folder.path().join("film.ts");
        let made = std::process::Command::new("ffmpeg")
            .args(["-v", "error", "-nostdin", "-f", "lavfi", "-i", "testsrc2=s=320x180:r=25:d=2"])
            .args(["-c:v", "libx264", "-preset", "medium", "-bf", "3", "-g", "1000"])
            .arg(&film)
            .status()
            .unwrap();
        assert!(made.success());
        let request = request(Targets::every(Micros::from_millis(500), Micros::from_millis(250)));
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut ours = std::io::BufReader::new(ours);
        // Targets that have a frame, gaps and the last watermark, in milliseconds.
        let mut told = || {
            let (mut served, mut gaps, mut watermark) = (Vec::new(), Vec::new(), None);
            while let Ok((message, _)) = protocol::receive::<Message>(&mut ours) {
                match message {
                    Message::Frame { target, .. } | Message::Repeat { target, .. } => {
                        served.push(target.0 / 1_000);
                    }
                    Message::Gap(gap) => {
                        assert_eq!(gap.reason, BEHIND);
                        gaps.push((gap.span.start.0 / 1_000, gap.span.end.0 / 1_000));
                    }
                    Message::Watermark(at) => watermark = Some(at.0 / 1_000),
                    other => panic!("{other:?}"),
                }
            }
            (served, gaps, watermark)
        };
        let mut outbox = Outbox::new(theirs);
        let mut run = Run::new(&request, None, &mut outbox);
        let units = coming(&film);
        let last = units.iter().map(|unit| unit.captured).max().unwrap();
        assert_eq!((units.len(), last), (50, 1_960_000));
        for unit in &units {
            run.take(unit.clone()).unwrap();
        }
        // Some frames are in the decoder, and nobody knows how long the last one is on display.
        assert!(run.decoder.as_ref().unwrap().held > 0);
        let (mut served, gaps, watermark) = told();
        assert_eq!((gaps.len(), watermark), (0, Some(served[served.len() - 1] + 500)));
        run.pass(last + 40_000);
        served.extend(told().0);
        assert_eq!(served, [250, 750, 1_250, 1_750]);
        let held = run.sampler.held().map(|held| held.pts);
        assert_eq!((run.counts.undecodable, held), (0, Some(Timestamp(last))));

        run.pass(4_000_000);
        assert_eq!(told(), (vec![2_250, 2_750], vec![(3_250, 4_250)], Some(4_250)));
        run.pass(4_240_000);
        assert_eq!(told(), (vec![], vec![], None));
        run.pass(60_000_000);
        assert_eq!(told(), (vec![], vec![(4_250, 60_250)], Some(60_250)));
        // The next keyframe is decoded as the first one was.
        for unit in &units {
            let after = unit.is_key.then_some(Loss::Behind);
            let captured = unit.captured + 61_000_000;
            run.take(Unit { captured, after, ..unit.clone() }).unwrap();
        }
        run.finish();
        let served = vec![61_250, 61_750, 62_250, 62_750];
        assert_eq!(told(), (served, vec![(60_250, 61_250)], Some(63_250)));
        assert_eq!((run.counts.undecodable, run.counts.encoded + run.counts.skipped), (0, 100));
    }

    #[test]
    fn frames_that_nothing_refers_to_are_told_by_their_first_unit() {
        let h264 = |first: u8| is_unreferenced(Id::H264, &[0, 0, 0, 1, 9, 16, 0, 0, 1, first, 7]);
        assert!(h264(0x01));
        assert!(!h264(0x41) && !h264(0x65));
        let h265 = |kind: u8| is_unreferenced(Id::HEVC, &[0, 0, 1, kind << 1, 1, 7]);
        assert!(h265(0) && h265(8));
        assert!(!h265(1) && !h265(19) && !h265(32));
        assert!(!is_unreferenced(Id::VP8, &[0, 0, 1, 1]));
    }
}
