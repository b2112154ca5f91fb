//! The compressed stream itself, as the files that it is kept in: fragments of MP4, each of the
//! frames from one keyframe to another, or of the sound of that time, which comes behind. The host writes no
//! file: its parent does.

use std::collections::VecDeque;

use ffmpeg_next as ffmpeg;

use ffmpeg::codec::Id;
use ffmpeg::packet::Flags;

use super::super::Outbox;
use super::super::nal::Framing;
use super::arrivals::Unit;
use super::muxer::{Format, Muxer, TICKS};
use super::reception::Coded;
use super::sound::SoundPacket;
use super::soundtrack::{Sound, SoundFormat, is_held};
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
/// Sound that waits for the picture of its time.
const MOST_SOUND_BYTES: usize = 4 << 20;
/// So many packets in a row of which none can be recorded are no damage.
const MANY_UNUSABLE: u32 = 50;
/// So many in a row of another format are another sound, and no damage.
const MANY_OTHERS: u32 = 5;
/// A file of which the sound is another than what comes ends after so long: it may be another all the time.
const OTHER_SOUND_US: i64 = 10_000_000;
/// Sound follows the times of its packets by this part at each, so that it stays even; times that are further off
/// are a hole, or of what was there already.
const FOLLOWING: i64 = 8;
const MOST_UNEVEN_US: i64 = 200_000;

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

/// Makes files of frames, and of the sound beside them.
pub struct Recording {
    zero_us: i64,
    group: Vec<Unit<Coded>>,
    group_bytes: usize,
    /// What has come and is in no fragment yet.
    sounds: Vec<Sound>,
    sound_bytes: usize,
    /// What comes, and how many packets in a row were something else.
    sound_format: Option<SoundFormat>,
    others: u32,
    /// What the muxer has refused.
    unheld: Option<SoundFormat>,
    /// Packets in a row that could not be recorded.
    unusable: u32,
    file: Option<File>,
    /// Frames and packets of sound that are in no file.
    lost: (u64, u64),
    has_refused: bool,
    has_refused_sound: bool,
}

struct File {
    muxer: Muxer,
    format: Format,
    began_us: i64,
    last_us: i64,
    last_dts: i64,
    /// By how much frames are shown later than they were captured, so that each is decoded before.
    early: i64,
    sound: Option<Soundtrack>,
}

/// The sound of a file.
struct Soundtrack {
    format: SoundFormat,
    /// Where the last packet begins and ends, in samples.
    last: Option<(i64, i64)>,
}

impl Soundtrack {
    /// Where a packet begins that was captured at `at`; `None` where there was other sound of that time. The first
    /// of a fragment goes on where the one before has ended: the muxer has told that already.
    fn place(&self, at: i64, is_first: bool) -> Option<i64> {
        let Some((start, end)) = self.last else { return Some(at) };
        let most = i64::from(self.format.rate_hz) * MOST_UNEVEN_US / 1_000_000;
        match at - end {
            off if off < -most => None,
            off if off > most => Some(at),
            _ if is_first => Some(end),
            off => Some((end + off / FOLLOWING).max(start + 1)),
        }
    }
}

impl Recording {
    /// `zero_us`: media time zero on the monotonic clock.
    pub fn new(zero_us: i64) -> Self {
        Recording {
            zero_us,
            group: Vec::new(),
            group_bytes: 0,
            sounds: Vec::new(),
            sound_bytes: 0,
            sound_format: None,
            others: 0,
            unheld: None,
            unusable: 0,
            file: None,
            lost: (0, 0),
            has_refused: false,
            has_refused_sound: false,
        }
    }

    /// Takes sound in the order in which it came.
    pub fn hear(&mut self, packets: VecDeque<SoundPacket>, outbox: &mut Outbox) {
        for coded in packets {
            let sound = Sound::of(&coded);
            let sound = sound.filter(|sound| self.unheld.as_ref() != Some(&sound.format));
            self.unusable = if sound.is_none() { self.unusable + 1 } else { 0 };
            if self.unusable == MANY_UNUSABLE || !is_held(coded.codec) {
                self.refuse_sound(coded.codec, outbox);
            }
            match sound {
                Some(sound) if self.sound_bytes + sound.bytes <= MOST_SOUND_BYTES => {
                    self.sound_bytes += sound.bytes;
                    let is_other = self.sound_format.as_ref() != Some(&sound.format);
                    self.others = if is_other { self.others + 1 } else { 0 };
                    if self.sound_format.is_none() || self.others == MANY_OTHERS {
                        (self.sound_format, self.others) = (Some(sound.format.clone()), 0);
                    }
                    self.sounds.push(sound);
                }
                _ => self.lost.1 += 1,
            }
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

    /// Frames and packets of sound that got into no file since this was last asked.
    pub fn take_lost(&mut self) -> (u64, u64) {
        std::mem::take(&mut self.lost)
    }

    fn add(&mut self, unit: Unit<Coded>) {
        self.group_bytes += unit.bytes;
        self.group.push(unit);
    }

    /// Nothing more comes.
    pub fn finish(&mut self, outbox: &mut Outbox) {
        self.end_group(outbox);
        self.write_sound(i64::MAX, outbox);
    }

    /// The frames since the last fragment are one.
    fn end_group(&mut self, outbox: &mut Outbox) {
        let group = std::mem::take(&mut self.group);
        self.group_bytes = 0;
        let count = group.len() as u64;
        if count > 0 && self.write(group, outbox).is_none() {
            self.lost.0 += count;
            // The next file begins at a keyframe.
            self.file = None;
        }
    }

    fn write(&mut self, mut group: Vec<Unit<Coded>>, outbox: &mut Outbox) -> Option<()> {
        let mut order: Vec<i64> = group.iter().map(|unit| unit.captured).collect();
        order.sort_unstable();
        let (first, last) = (*order.first()?, *order.last()?);
        let format = group.first().filter(|unit| unit.is_key).map(format);
        // What came late is of the file in hand, and a file may begin with any fragment of frames.
        self.write_sound(first, outbox);
        let heard = self.sound_format.clone();
        let goes_on = self.file.as_ref().is_some_and(|file| {
            let hole = first.saturating_sub(file.last_us);
            (-FRAGMENT_US..HOLE_US).contains(&hole)
                && format.as_ref().is_none_or(|format| {
                    let most = match (&heard, &file.sound) {
                        // It has come since the file began.
                        (Some(_), None) => 0,
                        (Some(heard), Some(sound)) if *heard != sound.format => OTHER_SOUND_US,
                        _ => FILE_US,
                    };
                    *format == file.format && first.saturating_sub(file.began_us) < most
                })
        });
        let is_key = format.is_some();
        let mut bytes = Vec::new();
        if !goes_on {
            // Dropping it ends it: all of it has been sent.
            self.file = None;
            let format = format?;
            let Some((muxer, headers, sound)) = self.begin(&format, heard, outbox) else {
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
                sound,
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
        let told = Message::Recorded { start, header_bytes, is_key, frames, packets: 0 };
        outbox.send_with(&told, &bytes);
        // What has come of the sound of these frames: it belongs to the newest moment that can be cut out.
        self.write_sound(last, outbox);
        Some(())
    }

    /// Begins a file, with the sound that comes, if there is any that MP4 holds.
    fn begin(
        &mut self,
        format: &Format,
        sound: Option<SoundFormat>,
        outbox: &mut Outbox,
    ) -> Option<(Muxer, Vec<u8>, Option<Soundtrack>)> {
        if !CODECS.contains(&format.codec) {
            return None;
        }
        let with_sound = sound.as_ref().and_then(|sound| Muxer::new(format, Some(sound)));
        if let (Some((muxer, headers)), Some(format)) = (with_sound, &sound) {
            let sound = Soundtrack { format: format.clone(), last: None };
            return Some((muxer, headers, Some(sound)));
        }
        let (muxer, headers) = Muxer::new(format, None)?;
        if let Some(sound) = sound {
            self.refuse_sound(sound.codec, outbox);
            (self.sound_format, self.unheld) = (None, Some(sound));
        }
        Some((muxer, headers, None))
    }

    /// What was heard before `until` goes into the file in hand, as a fragment of its own.
    fn write_sound(&mut self, until: i64, outbox: &mut Outbox) {
        let (due, later): (Vec<_>, _) =
            std::mem::take(&mut self.sounds).into_iter().partition(|sound| sound.captured < until);
        self.sound_bytes = later.iter().map(|sound: &Sound| sound.bytes).sum();
        self.sounds = later;
        let Some(file) = &mut self.file else {
            self.lost.1 += due.len() as u64;
            return;
        };
        let (mut start, mut packets) = (None, 0);
        for mut sound in due {
            if file.write_sound(&mut sound, start.is_none()) {
                start = start.or(Some(sound.captured));
                packets += 1;
            } else {
                self.lost.1 += 1;
            }
        }
        let Some(start) = start else { return };
        match file.muxer.fragment() {
            Some(bytes) => {
                let start = Timestamp(start.saturating_sub(self.zero_us));
                let (header_bytes, is_key, frames) = (0, false, 0);
                let told = Message::Recorded { start, header_bytes, is_key, frames, packets };
                outbox.send_with(&told, &bytes);
            }
            None => {
                self.lost.1 += u64::from(packets);
                // The next file begins at a keyframe.
                self.file = None;
            }
        }
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

    /// Says once that the sound is not recorded, and why.
    fn refuse_sound(&mut self, codec: Id, outbox: &mut Outbox) {
        if !std::mem::replace(&mut self.has_refused_sound, true) {
            let kind = if is_held(codec) { " of this kind" } else { "" };
            outbox.send(&Message::Notice(format!(
                "its sound is heard, and not recorded, since recordings take no {}{kind}: set the \
                 camera's sound to AAC of one or two channels",
                codec.name()
            )));
        }
    }
}

impl File {
    /// Adds sound at its time beside the frames. Returns whether there is a place for it.
    fn write_sound(&mut self, sound: &mut Sound, is_first: bool) -> bool {
        let Some(track) = &mut self.sound else { return false };
        if track.format != sound.format || sound.captured < self.began_us {
            return false;
        }
        let rate = i64::from(track.format.rate_hz);
        let since = sound.captured.saturating_sub(self.began_us);
        let at = since.saturating_mul(rate) / 1_000_000 + self.early * rate / TICKS;
        let Some(start) = track.place(at, is_first) else { return false };
        if !self.muxer.write_sound(&mut sound.packet, start, sound.samples) {
            return false;
        }
        track.last = Some((start, start + sound.samples));
        true
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

    /// A packet of AAC of 1,024 samples, 48 kHz: 21 1/3 ms.
    fn aac(captured_us: i64) -> SoundPacket {
        let data = [0xff, 0xf1, 0x4c, 0x80, 1, 0x7f, 0xfc, 0x21, 0x10, 4, 0x60];
        let (codec, packet) = (Id::AAC, Packet::copy(&data));
        SoundPacket {
            codec,
            rate_hz: 48_000,
            channels: 2,
            packet,
            pts: None,
            origin: 0,
            arrived: 0,
            captured: captured_us,
        }
    }

    /// So many packets of sound from an instant on, one after the other.
    fn sound(from_us: i64, count: i64) -> Vec<SoundPacket> {
        (0..count).map(|n| aac(from_us + n * 64_000 / 3)).collect()
    }

    /// Where each file begins, in milliseconds, and its bytes.
    type Files = Vec<(i64, Vec<u8>)>;

    /// What is sent of a stream.
    #[derive(Default)]
    struct Sent {
        files: Files,
        notices: Vec<String>,
        /// Packets of sound that were sent before the stream was over.
        soon: u32,
        lost: (u64, u64),
    }

    /// As [`recorded_with`], of frames alone.
    fn recorded(units: Vec<Unit<Coded>>) -> (Files, u64) {
        let sent = recorded_with(units, &[], 0);
        (sent.files, sent.lost.0)
    }

    /// What is sent of these frames, and of this sound, which comes so much later than the frames of its time.
    fn recorded_with(units: Vec<Unit<Coded>>, sound: &[SoundPacket], late_us: i64) -> Sent {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let reader = std::thread::spawn(move || {
            let (mut stream, mut sent, mut is_over) = (theirs, Sent::default(), false);
            while let Ok((message, body)) = protocol::receive::<Message>(&mut stream) {
                match message {
                    Message::Recorded { start, header_bytes, packets, .. } => {
                        if header_bytes > 0 {
                            sent.files.push((start.0 / 1_000, Vec::new()));
                        }
                        sent.files.last_mut().unwrap().1.extend(body);
                        sent.soon += if is_over { 0 } else { packets };
                    }
                    Message::Notice(notice) => sent.notices.push(notice),
                    Message::Watermark(_) => is_over = true,
                    other => panic!("{other:?}"),
                }
            }
            sent
        });
        let mut outbox = Outbox { stream: ours, told: Duration::ZERO };
        let mut recording = Recording::new(0);
        let mut sound = sound.iter().peekable();
        for unit in units {
            let has_come = |packet: &&SoundPacket| packet.captured + late_us <= unit.captured;
            while let Some(packet) = sound.next_if(has_come) {
                recording.hear([packet.clone()].into(), &mut outbox);
            }
            recording.take([unit].into(), &mut outbox);
        }
        outbox.send(&Message::Watermark(Timestamp(0)));
        recording.hear(sound.cloned().collect(), &mut outbox);
        recording.finish(&mut outbox);
        drop(outbox);
        Sent { lost: recording.take_lost(), ..reader.join().unwrap() }
    }

    fn times(file: &[u8]) -> Vec<f64> {
        times_of(file, "v")
    }

    /// When the packets of a stream begin.
    fn times_of(file: &[u8], stream: &str) -> Vec<f64> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.mp4");
        std::fs::write(&path, file).unwrap();
        let mut probe = std::process::Command::new("ffprobe");
        probe.args(["-v", "error", "-select_streams", stream]);
        probe.args(["-show_entries", "packet=pts_time", "-of", "csv=p=0"]);
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

    /// Frames 40 ms apart, with a keyframe each second.
    fn film(secs: i64) -> Vec<Unit<Coded>> {
        (0..secs * 25).map(|n| unit(n * 40, n % 25 == 0)).collect()
    }

    fn check_even(times: &[f64]) {
        for pair in times.windows(2) {
            assert!((pair[1] - pair[0] - 0.064 / 3.0).abs() < 0.001, "{pair:?}");
        }
    }

    #[test]
    fn sound_lies_beside_the_frames_of_its_time_in_each_file_however_late_it_comes() {
        for late_us in [0, 700_000] {
            // It began before the first frame.
            let packets = sound(-2_133_333, 4_000);
            let Sent { files, lost, .. } = recorded_with(film(80), &packets, late_us);
            assert_eq!((files.len(), lost.0), (2, 0));
            let counts: Vec<usize> = files.iter().map(|(_, bytes)| times(bytes).len()).collect();
            assert_eq!(counts, [1_500, 500]);
            let heard: Vec<Vec<f64>> =
                files.iter().map(|(_, bytes)| times_of(bytes, "a")).collect();
            for (file, (_, bytes)) in heard.iter().zip(&files) {
                check_even(file);
                assert!((0.0..0.022).contains(&(file[0] - times(bytes)[0])), "{file:?}");
            }
            // None is missing where a file ends, and what was before the first frame is counted.
            let shown: Vec<f64> = files.iter().map(|(_, bytes)| times(bytes)[0]).collect();
            let last = heard[0][heard[0].len() - 1] - shown[0];
            let next = 60.0 + heard[1][0] - shown[1];
            check_even(&[last, next]);
            let held = heard.iter().map(Vec::len).sum::<usize>();
            assert_eq!(held as u64 + lost.1, packets.len() as u64);
            assert!(lost.1 - 100 <= u64::from(late_us > 0) * 40, "{lost:?}");
        }
    }

    #[test]
    fn whatever_sound_does_the_frames_are_recorded_as_without_it() {
        let alone = recorded(film(130)).0;
        let starts = |files: &[(i64, Vec<u8>)]| -> Vec<(i64, Vec<f64>)> {
            files.iter().map(|(start, bytes)| (*start, times(bytes))).collect()
        };
        let check = |packets: Vec<SoundPacket>, lost_packets: u64| {
            let Sent { files, lost, notices, .. } = recorded_with(film(130), &packets, 100_000);
            assert_eq!(starts(&files), starts(&alone));
            assert_eq!(lost, (0, lost_packets));
            // Said once, where there is nothing else.
            let is_all_lost = lost_packets == packets.len() as u64;
            assert_eq!(notices.len(), usize::from(is_all_lost), "{notices:?}");
            files.iter().map(|(_, bytes)| times_of(bytes, "a")).collect::<Vec<_>>()
        };
        // It stops, and begins again two minutes later.
        let heard = check([sound(0, 1_000), sound(125_000_000, 200)].concat(), 0);
        assert_eq!(heard.iter().map(Vec::len).collect::<Vec<_>>(), [1_000, 0, 200]);
        assert!((heard[2][0] - 5.0).abs() < 0.1, "{heard:?}");
        // Its clock is set back by a second: what had been before is left out.
        let heard = check([sound(0, 1_000), sound(20_333_333, 200)].concat(), 29);
        assert_eq!(heard[0].len(), 1_171);
        // Its times are of its arrivals, three at once.
        let packets = sound(0, 900).into_iter().enumerate();
        let uneven = packets.map(|(n, packet)| {
            let captured = packet.captured - (n % 3) as i64 * 64_000 / 3;
            SoundPacket { captured, ..packet }
        });
        let heard = check(uneven.collect(), 0);
        for pair in heard[0].windows(2) {
            assert!((0.010..0.032).contains(&(pair[1] - pair[0])), "{pair:?}");
        }
        // G.722, and garbage.
        let packets = sound(0, 900).into_iter();
        let other = packets.map(|packet| SoundPacket { codec: Id::ADPCM_G722, ..packet });
        assert!(check(other.collect(), 900).iter().all(Vec::is_empty));
        let packets = sound(0, 900).into_iter();
        let garbage =
            packets.map(|packet| SoundPacket { packet: Packet::copy(&[7; 99]), ..packet });
        assert!(check(garbage.collect(), 900).iter().all(Vec::is_empty));
    }

    #[test]
    fn sound_that_begins_later_is_in_a_file_from_the_keyframe_before_on() {
        let packets = sound(2_500_000, 500);
        let Sent { files, lost, .. } = recorded_with(film(14), &packets, 100_000);
        let starts: Vec<i64> = files.iter().map(|(start, _)| *start).collect();
        assert_eq!((starts, lost), (vec![0, 2_000], (0, 0)));
    }

    #[test]
    fn a_damaged_header_costs_its_packet_and_no_more() {
        // Whichever of them it is: one is the last that comes before a fragment is written.
        for damaged in 560..612 {
            let mut packets = sound(0, 1_000);
            let mut data = packets[damaged].packet.data().unwrap().to_vec();
            data[3] ^= 0xc0;
            packets[damaged].packet = Packet::copy(&data);
            let Sent { files, lost, .. } = recorded_with(film(22), &packets, 0);
            assert_eq!((files.len(), lost), (1, (0, 1)), "{damaged}");
        }
    }

    #[test]
    fn what_is_heard_beside_a_picture_that_is_not_recorded_is_counted() {
        let other = |unit: Unit<Coded>| {
            let packet = Coded { codec: Id::VP9, ..unit.packet };
            Unit { packet, ..unit }
        };
        let sent = recorded_with(film(4).into_iter().map(other).collect(), &sound(0, 180), 0);
        assert_eq!((sent.files.len(), sent.lost), (0, (100, 180)));
        // The picture is to blame, and the sound is not.
        assert_eq!(sent.notices.len(), 1, "{:?}", sent.notices);
    }

    #[test]
    fn the_newest_frames_have_what_has_come_of_their_sound() {
        // Two groups of frames are whole, the last of which was captured at 1.96 s; a third has begun.
        let packets = sound(0, 200);
        let sent = recorded_with(film(3), &packets, 0);
        let wanted = packets.iter().filter(|packet| packet.captured < 1_960_000).count();
        assert_eq!((sent.soon as usize, sent.lost), (wanted, (0, 0)));
    }

    #[test]
    fn sound_is_bounded_also_where_each_packet_has_next_to_nothing() {
        let tiny =
            |n: i64| SoundPacket { codec: Id::OPUS, packet: Packet::copy(&[8]), ..aac(n * 100) };
        // One keyframe, and so much sound in its time.
        let units = vec![unit(0, true), unit(1_000, false), unit(2_000, true)];
        let sent = recorded_with(units, &(0..20_000).map(tiny).collect::<Vec<_>>(), -2_000_000);
        assert!(sent.lost.1 > 10_000, "{:?}", sent.lost);
    }

    #[test]
    fn sound_that_is_another_begins_a_file_and_no_more_than_six_a_minute() {
        let other = |packet: SoundPacket| {
            let data = [&[0xff, 0xf1, 0x50], &packet.packet.data().unwrap()[3..]].concat();
            SoundPacket { packet: Packet::copy(&data), ..packet }
        };
        let later = sound(30_000_000, 1_000).into_iter().map(other);
        let packets: Vec<_> = sound(0, 1_406).into_iter().chain(later).collect();
        let Sent { files, lost, .. } = recorded_with(film(50), &packets, 0);
        let starts: Vec<i64> = files.iter().map(|(start, _)| *start).collect();
        assert_eq!((starts, lost.0), (vec![0, 30_000], 0));
        assert!(lost.1 < 50, "{lost:?}");
        let packets = sound(0, 2_000).into_iter().enumerate();
        let flickers =
            packets.map(|(n, packet)| if n / 47 % 2 == 0 { packet } else { other(packet) });
        let Sent { files, lost, .. } = recorded_with(film(60), &flickers.collect::<Vec<_>>(), 0);
        assert!(files.len() <= 6 && lost.0 == 0, "{} files, {lost:?}", files.len());
    }
}
