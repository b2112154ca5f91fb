//! The compressed stream itself, as the files that it is kept in: fragments of MP4, each of the
//! frames from one keyframe to another. The host writes no file: its parent does.

use std::collections::VecDeque;

use ffmpeg_next as ffmpeg;

use ffmpeg::codec::Id;
use ffmpeg::packet::Flags;

use super::super::Outbox;
use super::super::nal::Framing;
use super::arrivals::Unit;
use super::muxer::{Format, Muxer, TICKS};
use super::reception::Coded;
use crate::source::protocol::Message;
use crate::time::Timestamp;

/// A fragment ends at the first keyframe after so long, and in any case after the second.
const FRAGMENT_US: i64 = 1_000_000;
const LONGEST_FRAGMENT_US: i64 = 10_000_000;
const MOST_FRAGMENT_BYTES: usize = 16 << 20;
/// A file ends at the first keyframe of the next minute.
const FILE_US: i64 = 60_000_000;
/// A hole of this size ends a file, too: players take timestamps for what they are.
const HOLE_US: i64 = 2_000_000;
/// What may wait for the host to find time; what is more is left out, up to the next keyframe.
const MOST_WAITING_BYTES: usize = 32 << 20;
/// What is recorded. VP9 and AV1 need more in a file's header than their frames say.
const CODECS: [Id; 5] = [Id::H264, Id::HEVC, Id::MPEG2VIDEO, Id::MPEG4, Id::MJPEG];
/// Headers that are no longer than this.
const MOST_HEADER_BYTES: usize = 64 << 10;

/// Frames as they arrived, on their way into files.
pub struct Tape<P> {
    pub units: VecDeque<Unit<P>>,
    bytes: usize,
    has_begun: bool,
    waits_for_key: bool,
    /// Frames that there was no room for.
    lost: u64,
}

impl<P> Default for Tape<P> {
    fn default() -> Self {
        Tape { units: VecDeque::new(), bytes: 0, has_begun: false, waits_for_key: true, lost: 0 }
    }
}

impl<P: Clone> Tape<P> {
    pub fn push(&mut self, unit: &Unit<P>) {
        if self.bytes + unit.bytes > MOST_WAITING_BYTES {
            self.waits_for_key = true;
        } else if unit.is_key {
            (self.has_begun, self.waits_for_key) = (true, false);
        }
        if self.waits_for_key {
            // What comes before the first keyframe is of no use to anybody.
            self.lost += u64::from(self.has_begun);
        } else {
            self.bytes += unit.bytes;
            self.units.push_back(unit.clone());
        }
    }

    /// All that has come since, and how many frames there was no room for.
    pub fn take(&mut self) -> (VecDeque<Unit<P>>, u64) {
        self.bytes = 0;
        (std::mem::take(&mut self.units), std::mem::take(&mut self.lost))
    }
}

/// Makes files of frames.
pub struct Recording {
    zero_us: i64,
    group: Vec<Unit<Coded>>,
    group_bytes: usize,
    file: Option<File>,
    /// Frames that are in no file.
    lost: u64,
    has_refused: bool,
}

struct File {
    muxer: Muxer,
    format: Format,
    began_us: i64,
    last_us: i64,
    last_dts: i64,
    /// By how much frames are shown later than they were captured, so that each is decoded before.
    early: i64,
}

impl Recording {
    /// `zero_us`: media time zero on the monotonic clock.
    pub fn new(zero_us: i64) -> Self {
        Recording {
            zero_us,
            group: Vec::new(),
            group_bytes: 0,
            file: None,
            lost: 0,
            has_refused: false,
        }
    }

    /// Takes frames in the order in which they came.
    pub fn take(&mut self, units: VecDeque<Unit<Coded>>, outbox: &mut Outbox) {
        for unit in units {
            let Some(first) = self.group.first() else {
                self.add(unit);
                continue;
            };
            let length = unit.captured.saturating_sub(first.captured);
            let is_over = unit.is_key && !(0..FRAGMENT_US).contains(&length)
                || !(-FRAGMENT_US..LONGEST_FRAGMENT_US).contains(&length)
                || self.group_bytes + unit.bytes > MOST_FRAGMENT_BYTES
                || unit.is_key && (!first.is_key || unit.packet.codec != first.packet.codec);
            if is_over {
                self.end_group(outbox);
            }
            self.add(unit);
        }
    }

    /// Frames that got into no file since this was last asked.
    pub fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }

    fn add(&mut self, unit: Unit<Coded>) {
        self.group_bytes += unit.bytes;
        self.group.push(unit);
    }

    /// The frames since the last fragment are one.
    pub fn end_group(&mut self, outbox: &mut Outbox) {
        let group = std::mem::take(&mut self.group);
        self.group_bytes = 0;
        let count = group.len() as u64;
        if count > 0 && self.write(group, outbox).is_none() {
            self.lost += count;
            // The next file begins at a keyframe.
            self.file = None;
        }
    }

    fn write(&mut self, mut group: Vec<Unit<Coded>>, outbox: &mut Outbox) -> Option<()> {
        let mut order: Vec<i64> = group.iter().map(|unit| unit.captured).collect();
        order.sort_unstable();
        let (first, last) = (*order.first()?, *order.last()?);
        let format = group.first().filter(|unit| unit.is_key).map(format);
        let goes_on = self.file.as_ref().is_some_and(|file| {
            let hole = first.saturating_sub(file.last_us);
            (-FRAGMENT_US..HOLE_US).contains(&hole)
                && format.as_ref().is_none_or(|format| {
                    *format == file.format && first.saturating_sub(file.began_us) < FILE_US
                })
        });
        let is_key = format.is_some();
        let mut bytes = Vec::new();
        if !goes_on {
            // Dropping it ends it: all of it has been sent.
            self.file = None;
            let format = format?;
            let made = CODECS.contains(&format.codec).then(|| Muxer::new(&format)).flatten();
            let Some((muxer, headers)) = made else {
                self.refuse(&format, outbox);
                return None;
            };
            bytes = headers;
            let began_us = first;
            self.file = Some(File {
                muxer,
                format,
                began_us,
                last_us: first,
                last_dts: i64::MIN,
                early: 0,
            });
        }
        let file = self.file.as_mut()?;
        let ticks = |at: i64| at.saturating_sub(file.began_us).saturating_mul(TICKS) / 1_000_000;
        // Frames come in order of decoding. When each is to be decoded nobody says: as many of them as
        // are shown, at the same pace, and so much earlier that none is shown before.
        let early = group.iter().zip(&order).map(|(unit, at)| at - unit.captured).max()?;
        file.early = file.early.max(ticks(file.began_us + early));
        let early = file.early;
        let usual = ticks(file.began_us + (last - first) / group.len().max(2) as i64);
        let mut dts = file.last_dts;
        for (number, unit) in group.iter_mut().enumerate() {
            dts = dts.saturating_add(1).max(ticks(order[number]));
            let pts = ticks(unit.captured).saturating_add(early).max(dts);
            if unit.is_key {
                unit.packet.packet.set_flags(Flags::KEY);
            }
            let next = order.get(number + 1).map_or(usual, |next| ticks(*next) - dts);
            if !file.muxer.write(&mut unit.packet.packet, pts, dts, next.max(1)) {
                return None;
            }
        }
        (file.last_us, file.last_dts) = (last, dts);
        let header_bytes = u32::try_from(bytes.len()).ok()?;
        bytes.extend(file.muxer.fragment()?);
        let start = Timestamp(first.saturating_sub(self.zero_us));
        let frames = u32::try_from(group.len()).unwrap_or(u32::MAX);
        outbox.send_with(&Message::Recorded { start, header_bytes, is_key, frames }, &bytes);
        Some(())
    }

    /// Says once that nothing is recorded, and why.
    fn refuse(&mut self, format: &Format, outbox: &mut Outbox) {
        if !std::mem::replace(&mut self.has_refused, true) {
            let codec = format.codec.name();
            outbox.send(&Message::Notice(format!(
                "{codec} is not recorded: set the camera to H.264 or H.265"
            )));
        }
    }
}

/// What a keyframe says of itself and those that follow.
fn format(unit: &Unit<Coded>) -> Format {
    let Coded { codec, width_px, height_px, packet } = &unit.packet;
    let is_header = |unit: &&[u8]| match codec {
        Id::H264 => matches!(unit[0] & 31, 7 | 8),
        Id::HEVC => matches!(unit[0] >> 1 & 63, 32..=34),
        _ => false,
    };
    let data = packet.data().unwrap_or_default();
    // Some keyframes have them twice.
    let mut units: Vec<&[u8]> = Vec::new();
    let mut headers = Vec::new();
    for unit in Framing::StartCodes.units(data).filter(is_header) {
        if !units.contains(&unit) {
            units.push(unit);
            headers.extend([0, 0, 0, 1]);
            headers.extend(unit);
        }
    }
    headers.truncate(MOST_HEADER_BYTES);
    Format { codec: *codec, width_px: *width_px, height_px: *height_px, headers }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::protocol;
    use ffmpeg::Packet;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    fn unit(captured_millis: i64, is_key: bool) -> Unit<Coded> {
        let packet = Packet::copy(&[0, 0, 1, 0, 1, 2, 3, 4]);
        let codec = Id::MPEG2VIDEO;
        Unit {
            packet: Coded { codec, width_px: 160, height_px: 96, packet },
            bytes: 8,
            pts: None,
            sent: None,
            arrived: 0,
            captured: captured_millis * 1_000,
            is_key,
            after: None,
        }
    }

    /// What is sent of these frames: where each file begins, in milliseconds, and its bytes.
    fn recorded(units: Vec<Unit<Coded>>) -> (Vec<(i64, Vec<u8>)>, u64) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let reader = std::thread::spawn(move || {
            let (mut stream, mut files) = (theirs, Vec::<(i64, Vec<u8>)>::new());
            while let Ok((message, body)) = protocol::receive::<Message>(&mut stream) {
                let Message::Recorded { start, header_bytes, .. } = message else { panic!() };
                if header_bytes > 0 {
                    files.push((start.0 / 1_000, Vec::new()));
                }
                files.last_mut().unwrap().1.extend(body);
            }
            files
        });
        let mut outbox = Outbox { stream: ours, told: Duration::ZERO };
        let mut recording = Recording::new(0);
        recording.take(units.into(), &mut outbox);
        recording.end_group(&mut outbox);
        drop(outbox);
        (reader.join().unwrap(), recording.take_lost())
    }

    fn times(file: &[u8]) -> Vec<f64> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.mp4");
        std::fs::write(&path, file).unwrap();
        let mut probe = std::process::Command::new("ffprobe");
        probe.args(["-v", "error", "-show_entries", "packet=pts_time", "-of", "csv=p=0"]);
        let out = probe.arg(&path).output().unwrap();
        let text = String::from_utf8(out.stdout).unwrap();
        let times = text.lines().filter_map(|line| line.trim_end_matches(',').parse().ok());
        times.collect()
    }

    #[test]
    fn a_file_is_a_minute_from_keyframe_to_keyframe() {
        let (files, lost) = recorded((0..150 * 25).map(|n| unit(n * 40, n % 50 == 0)).collect());
        assert_eq!(lost, 0);
        let starts: Vec<i64> = files.iter().map(|(start, _)| *start).collect();
        assert_eq!(starts, [0, 60_000, 120_000]);
        let counts: Vec<usize> = files.iter().map(|(_, bytes)| times(bytes).len()).collect();
        assert_eq!(counts, [1_500, 1_500, 750]);
    }

    #[test]
    fn frames_that_come_in_order_of_decoding_keep_their_times() {
        // I P B B, the B frames shown before the P frame that comes before them.
        let order = [0, 3, 1, 2];
        let units = (0..400).map(|n| unit((n / 4 * 4 + order[n as usize % 4]) * 40, n % 100 == 0));
        let (files, lost) = recorded(units.collect());
        assert_eq!((files.len(), lost), (1, 0));
        let mut shown = times(&files[0].1);
        let first = shown[0];
        shown.sort_by(f64::total_cmp);
        assert_eq!(shown.len(), 400);
        for (number, at) in shown.iter().enumerate() {
            assert!((at - first - number as f64 * 0.04).abs() < 0.001, "{number} at {at}");
        }
    }

    #[test]
    fn a_hole_or_a_clock_that_goes_back_begins_another_file_at_the_next_keyframe() {
        let later = (0..50).map(|n| unit(30_000 + n * 40, n == 10));
        let units = (0..50).map(|n| unit(n * 40, n % 25 == 0)).chain(later);
        let (files, lost) = recorded(units.collect());
        let starts: Vec<i64> = files.iter().map(|(start, _)| *start).collect();
        assert_eq!((starts, lost), (vec![0, 30_400], 10));
    }
}
