//! Decoding one picture track in order of display.

use ffmpeg_next as ffmpeg;

use ffmpeg::codec::discard::Discard;
use ffmpeg::{Packet, frame};

use super::demux::{Next, Source, cannot_decode, length_of};
use super::ffi;
use super::gop::{Fate, Lookahead, Upcoming};
use super::sampler::{LONGEST_HOLD, Shown};
use crate::error::{Error, Result};
use crate::source::protocol::{Rational, Summary, Targets, Track};
use crate::time::{Micros, Timestamp};

/// How far before the wanted start another attempt begins, doubled each time.
const FIRST_STEP_BACK: Micros = Micros(2_000_000);
const MAX_STEPS_BACK: u32 = 5;
/// Frames that a decoder may hold back to bring them into order.
const MAX_DELAY_FRAMES: i64 = 16;

/// Decodes one track in order of display.
pub struct Reader {
    pub source: Source,
    pub track: Track,
    decoder: ffmpeg::decoder::Video,
    lookahead: Lookahead,
    /// A frame that was read to find the beginning.
    first_frame: Option<(frame::Video, Shown)>,
    is_drained: bool,
    broke: Option<ffmpeg::Error>,
    /// Whether frames are left out that no target needs.
    pub skips: bool,
    /// How many packets in a row were left out last.
    dropped: i64,
    /// Where the packets of the track end (pts on the continuous clock).
    packets_end: i64,
    /// Until when empty packets repeat the last frame.
    repeated_until: Option<i64>,
    /// Whether the container knows when packets are decoded, but not when frames are displayed, as
    /// AVI does.
    lacks_pts: bool,
    /// How much later than its time of display the track's first frame came out.
    delay: Option<i64>,
    /// What follows the last frame, for frames without a time of their own (raw pts).
    expected: i64,
    /// Of the last frame, as the container has it.
    pub raw_pts: i64,
    pub summary: Summary,
}

impl Reader {
    /// A reader whose first frame is on display at or before `start`, or is the source's first.
    /// `targets`: the grid of the instants that a frame is wanted for; `None`: all frames are.
    pub fn begin(
        mut source: Source,
        track: Track,
        threads: u16,
        targets: Option<Targets>,
        start: Timestamp,
    ) -> Result<Reader> {
        source.keep(&[track.index]);
        let decoder = open_decoder(&source, &track, threads)?;
        let mut reader = Reader {
            expected: track.start_raw_pts.unwrap_or(0),
            lookahead: Lookahead::new(&source, &track, targets),
            source,
            track,
            decoder,
            first_frame: None,
            is_drained: false,
            broke: None,
            skips: targets.is_some(),
            dropped: 0,
            packets_end: i64::MIN,
            repeated_until: None,
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
        reader.decoder = open_decoder(&reader.source, &reader.track, threads)?;
        reader.restart(None);
        Ok(reader)
    }

    fn restart(&mut self, first: Option<Packet>) {
        self.lookahead.restart(first, &self.source, &self.track);
        self.dropped = 0;
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
            let Some(packet) = self.next_keyframe() else { return false };
            let Some(pts) = packet.pts().or(packet.dts()) else { return false };
            // Containers seek by decode time, which is before the time of display.
            let before = packet.dts().unwrap_or(pts).min(pts).saturating_sub(1);
            self.restart(Some(packet));
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
    pub fn next(&mut self, frame: &mut frame::Video) -> Result<Option<Shown>> {
        if let Some((first, shown)) = self.first_frame.take() {
            *frame = first;
            return Ok(Some(shown));
        }
        loop {
            match self.decoder.receive_frame(frame) {
                Ok(()) if self.lookahead.was_followed(frame.timestamp()) => {}
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
        let (packet, fate) = match self.lookahead.next(&mut self.source, &self.track) {
            Upcoming::Packet(packet, fate) => (packet, fate),
            Upcoming::End => {
                self.drain();
                return Ok(());
            }
            Upcoming::Broken(cause) => {
                if cause == (ffmpeg::Error::Other { errno: ffmpeg::error::ENOMEM }) {
                    return Err(out_of_memory());
                }
                self.broke = Some(cause);
                self.drain();
                return Ok(());
            }
        };
        if self.summary.packets == 0 {
            self.lacks_pts = packet.pts().is_none() && packet.dts().is_some();
        }
        self.summary.packets += 1;
        if let Some(pts) = packet.pts().or(packet.dts()) {
            let duration = packet.duration().max(self.usual_duration());
            self.packets_end = self.packets_end.max(pts.saturating_add(duration));
        }
        if packet.size() == 0 {
            // Theora and some AVI say so that the last frame stays on display.
            self.repeated_until = packet
                .pts()
                .or(packet.dts())
                .map(|pts| pts.saturating_add(packet.duration().max(self.usual_duration())));
            return Ok(());
        }
        self.dropped = if fate == Fate::Drop { self.dropped + 1 } else { 0 };
        self.decoder.skip_frame(match fate {
            Fate::Decode(skipping) => skipping,
            Fate::Follow => Discard::Bidirectional,
            Fate::Drop => return Ok(()),
        });
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

    /// What was read so far.
    pub fn summary(&self) -> Summary {
        let unplanned_groups = self.lookahead.unplanned;
        let skipped = self.summary.packets.saturating_sub(self.summary.decoded);
        Summary { skipped, unplanned_groups, ..self.summary }
    }

    /// See [`Lookahead::next_key`].
    pub fn next_key(&mut self) -> Option<Timestamp> {
        self.lookahead.next_key()
    }

    /// Until when the frame before the last one was repeated, if it was.
    pub fn take_repeated(&mut self) -> Option<Timestamp> {
        self.repeated_until.take().map(|until| self.source.time_of(&self.track, until))
    }

    /// Until when `last`, the last frame, is on display. Where frames are left out, the packets
    /// know when those would have ended.
    pub fn end_after(&self, last: Shown) -> Timestamp {
        let end = last.pts + last.duration;
        if !self.skips {
            return end;
        }
        let packets_end = self.source.time_of(&self.track, self.packets_end);
        // No packet's own time is believed beyond what the packets left out last for.
        let left_out = length_of(&self.track, self.usual_duration()).0.saturating_mul(self.dropped);
        let longest = Micros(LONGEST_HOLD.0.saturating_add(left_out));
        end.max(packets_end.min(last.pts + longest))
    }

    /// Whether the source ended because reading it broke off.
    pub fn is_broken_off(&self) -> bool {
        self.broke.is_some()
    }

    pub fn why_ended(&self, last: Option<Shown>) -> String {
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

fn open_decoder(source: &Source, track: &Track, threads: u16) -> Result<ffmpeg::decoder::Video> {
    source.decoder(track, threads)?.video().map_err(|cause| cannot_decode(track, cause))
}
