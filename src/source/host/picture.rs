//! Serving a span of one picture track.

use ffmpeg_next as ffmpeg;

use ffmpeg::frame;

use super::Outbox;
use super::delivery::Delivery;
use super::demux::Source;
use super::reader::Reader;
use super::sampler::{Decision, Sampler};
use super::signature::{Signature, Signer};
use crate::error::{Error, Kind, Result};
use crate::media::TrackKind;
use crate::source::protocol::{Message, PictureRequest, Rational, Summary, Targets, Track};
use crate::time::{Micros, Span, Timestamp};

/// A sign of life at least every so many packets.
const PACKETS_PER_WATERMARK: u64 = 100;
const MICROS_PER_WATERMARK: i64 = 1_000_000;
pub(super) fn serve(
    source: Source,
    request: &PictureRequest,
    outbox: &mut Outbox,
) -> Result<Summary> {
    let track = source.choose(TrackKind::Picture, request.track)?;
    let skips = may_skip(&track, &request.targets);
    Run::begin(source, track, request, request.targets, skips, outbox)?.finish()
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
        skips: bool,
        outbox: &'a mut Outbox,
    ) -> Result<Run<'a>> {
        let sampler = Sampler::new(targets);
        let grid = skips.then_some(targets);
        let reader = Reader::begin(source, track, request.threads, grid, sampler.start())?;
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
            let next = self.reader.next(&mut current)?;
            if let Some(until) = self.reader.take_repeated() {
                self.sampler.extend(until);
            }
            let Some(shown) = next else { break };
            while let Some(key) = self.reader.next_key() {
                self.sampler.expect_key(key);
            }
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
            self.sampler.reach_key(&mut |decision| self.decisions.push(decision));
            self.carry_out(&reason)?;
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
        let mut summary = self.reader.summary();
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
        if end.is_none() && self.reader.is_broken_off() {
            // Nothing is known to be missing, so no gap will tell.
            self.delivery.outbox.send(&Message::Notice(reason.clone()));
        }
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
        let mut run = Run::begin(source, track, &self.request, targets, false, outbox)?;
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

/// Whether frames may be left out. Where targets lie four or more frames apart, a frame that is up to
/// a few frames older serves as well, and so does a keyframe that comes soon after. Slow films, and
/// those of unknown rate, are decoded in full: there the next frame that is kept may be a second
/// away.
fn may_skip(track: &Track, targets: &Targets) -> bool {
    let Some(rate) = track.frame_rate.map(Rational::as_f64) else { return false };
    let step_secs = targets.step_num as f64 / f64::from(targets.step_den) / 1e6;
    (10.0..=300.0).contains(&rate) && step_secs * rate >= 4.0
}
