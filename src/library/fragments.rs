//! When the frames of a recording are shown: the times of fragments of MP4 (ISO/IEC 14496-12, 8.8). A file
//! that grows, or was cut off, has those that are whole. Its first track is the picture, and one beside it sound.

use std::fs::File;
use std::io::{BufReader, Read, Result};

use super::recordings::Recording;
use crate::time::Micros;

/// Consecutive frames of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fragment {
    /// From the file's time zero, which need not be its first frame's, to the first of them, and to the end of the last.
    pub start: Micros,
    pub end: Micros,
    pub frames: u32,
}

/// Boxes that describe frames are shorter; longer ones are not of our making.
const MOST_BYTES: u64 = 1 << 20;

/// What a file holds.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub fragments: Vec<Fragment>,
    /// A track of sound may be there without anything in it.
    pub has_sound: bool,
}

impl Recording {
    /// Whether there is any sound in it. What cannot be read has none.
    pub fn has_sound(&self) -> bool {
        File::open(&self.path).and_then(contents).is_ok_and(|contents| contents.has_sound)
    }
}

/// Reads the fragments of a file up to the first one that is not whole. What is no MP4 has none.
pub(super) fn contents(file: File) -> Result<Contents> {
    let length = file.metadata()?.len();
    let mut file = BufReader::new(file);
    let (mut found, mut picture, mut next) = (Contents::default(), None, None);
    let mut at = 0;
    while at + 8 <= length {
        let mut header = [0; 8];
        file.read_exact(&mut header)?;
        let [a, b, c, d, kind @ ..] = header;
        let size = u64::from(u32::from_be_bytes([a, b, c, d]));
        // Boxes without a size, or with one of more than 32 bits, are not of our making either.
        if size < 8 || at + size > length {
            break;
        }
        at += size;
        let body = size - 8;
        if matches!(&kind, b"moov" | b"moof") && body <= MOST_BYTES {
            let mut bytes = vec![0; body as usize];
            file.read_exact(&mut bytes)?;
            match &kind {
                b"moov" => picture = track(&bytes),
                _ => next = picture.map(|picture| described(&bytes, picture)),
            }
            continue;
        }
        if &kind == b"mdat"
            && let Some((frames, has_sound)) = next.take()
        {
            found.fragments.extend(frames);
            found.has_sound |= has_sound;
        }
        file.seek_relative(body as i64)?;
    }
    Ok(found)
}

/// The bodies of the boxes of a kind.
fn children<'a>(mut bytes: &'a [u8], wanted: &'a [u8; 4]) -> impl Iterator<Item = &'a [u8]> {
    std::iter::from_fn(move || {
        while let Some((header, _)) = bytes.split_first_chunk::<8>() {
            let [a, b, c, d, kind @ ..] = *header;
            let size = u32::from_be_bytes([a, b, c, d]) as usize;
            let body = bytes.get(8..size)?;
            bytes = bytes.get(size..)?;
            if kind == *wanted {
                return Some(body);
            }
        }
        None
    })
}

/// The body of the first box of a kind.
fn child<'a>(bytes: &'a [u8], wanted: &'a [u8; 4]) -> Option<&'a [u8]> {
    children(bytes, wanted).next()
}

/// Takes a number off the front.
fn number(bytes: &mut &[u8]) -> Option<u32> {
    let (number, rest) = bytes.split_first_chunk::<4>()?;
    *bytes = rest;
    Some(u32::from_be_bytes(*number))
}

/// Leaves out so many numbers.
fn skip(bytes: &mut &[u8], numbers: usize) -> Option<()> {
    *bytes = bytes.get(4 * numbers..)?;
    Some(())
}

/// How many of these flags are set.
fn count(flags: u32, of: &[u32]) -> usize {
    of.iter().filter(|flag| flags & **flag != 0).count()
}

/// Takes a number of 64 bits off the front in version 1 of a box, of 32 in version 0.
fn long_number(bytes: &mut &[u8], version: u32) -> Option<u64> {
    let high = if version == 1 { number(bytes)? } else { 0 };
    Some(u64::from(high) << 32 | u64::from(number(bytes)?))
}

/// The track of pictures.
#[derive(Debug, Clone, Copy)]
struct Track {
    id: u32,
    ticks_per_second: u64,
}

fn track(moov: &[u8]) -> Option<Track> {
    let trak = child(moov, b"trak")?;
    let (mut tkhd, mut mdhd) = (child(trak, b"tkhd")?, child(child(trak, b"mdia")?, b"mdhd")?);
    // When it was made and changed.
    let dates = |version: u32| if version == 1 { 4 } else { 2 };
    let version = number(&mut tkhd)? >> 24;
    skip(&mut tkhd, dates(version))?;
    let id = number(&mut tkhd)?;
    let version = number(&mut mdhd)? >> 24;
    skip(&mut mdhd, dates(version))?;
    let ticks_per_second = number(&mut mdhd).map(u64::from).filter(|ticks| *ticks > 0)?;
    Some(Track { id, ticks_per_second })
}

/// The frames of a fragment, and whether there is sound in it: there may be either, or both.
fn described(moof: &[u8], picture: Track) -> (Option<Fragment>, bool) {
    let is_picture = |traf: &&[u8]| {
        let id = child(traf, b"tfhd").and_then(|tfhd| tfhd.get(4..8));
        id == Some(&picture.id.to_be_bytes()[..])
    };
    let (pictures, others): (Vec<_>, Vec<_>) = children(moof, b"traf").partition(is_picture);
    let frames = pictures.first().and_then(|traf| frames(traf, picture.ticks_per_second));
    (frames, !others.is_empty())
}

fn frames(traf: &[u8], timescale: u64) -> Option<Fragment> {
    let (mut tfhd, mut tfdt, mut trun) =
        (child(traf, b"tfhd")?, child(traf, b"tfdt")?, child(traf, b"trun")?);
    let flags = number(&mut tfhd)?;
    // The track; where its bytes begin, in 64 bits; and how it is described.
    skip(&mut tfhd, 1 + 2 * count(flags, &[0x1]) + count(flags, &[0x2]))?;
    let usual = if flags & 0x8 != 0 { number(&mut tfhd)? } else { 0 };
    let version = number(&mut tfdt)? >> 24;
    let start = long_number(&mut tfdt, version)?;
    let flags = number(&mut trun)?;
    let frames = number(&mut trun)?;
    skip(&mut trun, count(flags, &[0x1, 0x4]))?;
    let mut length = u64::from(usual) * u64::from(frames);
    if flags & 0x100 != 0 {
        length = 0;
        for _ in 0..frames {
            length += u64::from(number(&mut trun)?);
            // Its size, its flags, and how much later it is shown.
            skip(&mut trun, count(flags, &[0x200, 0x400, 0x800]))?;
        }
    }
    let micros = |ticks: u64| {
        let micros = u128::from(ticks) * 1_000_000 / u128::from(timescale);
        Micros(i64::try_from(micros).unwrap_or(i64::MAX))
    };
    Some(Fragment { start: micros(start), end: micros(start.saturating_add(length)), frames })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Timestamp;

    #[test]
    fn sound_beside_the_frames_changes_nothing_of_their_times() {
        let folder = tempfile::tempdir().unwrap();
        let film = |name: &str, sound: &str| {
            let path = folder.path().join(name);
            let mut ffmpeg = std::process::Command::new("ffmpeg");
            ffmpeg.args(["-v", "error", "-f", "lavfi", "-i", "testsrc=s=64x64:r=25:d=4"]);
            ffmpeg.args(["-f", "lavfi", "-i", "sine=d=4", "-map", "0:v"]);
            ffmpeg.args(sound.split_whitespace());
            ffmpeg.args(["-c:v", "libx264", "-preset", "ultrafast", "-g", "25", "-movflags"]);
            ffmpeg.arg("frag_keyframe+empty_moov+default_base_moof").arg(&path);
            assert!(ffmpeg.status().unwrap().success());
            Recording { path, start: Timestamp(0) }
        };
        let (silent, spoken) = (film("silent.mp4", ""), film("spoken.mp4", "-map 1:a"));
        assert!(!silent.has_sound() && spoken.has_sound());
        let of = |film: &Recording| contents(File::open(&film.path).unwrap()).unwrap().fragments;
        assert_eq!(of(&silent).len(), 4);
        assert_eq!(of(&spoken).len(), 4);
        for (one, other) in of(&spoken).iter().zip(of(&silent)) {
            // Encoders of sound begin a little before.
            let is_same = |a: Micros, b: Micros| (a.0 - b.0).abs() < 50_000;
            assert!(is_same(one.start, other.start) && is_same(one.end, other.end), "{one:?}");
            assert_eq!(one.frames, other.frames);
        }
        let nothing = Recording { path: folder.path().join("nothing"), start: Timestamp(0) };
        assert!(!nothing.has_sound());
    }

    #[test]
    fn a_fragment_of_sound_alone_has_no_frames() {
        let picture = Track { id: 1, ticks_per_second: 1_000 };
        let traf = |track: u32| {
            let full = |kind: &[u8; 4], numbers: &[u32]| {
                let body: Vec<u8> = numbers.iter().flat_map(|n| n.to_be_bytes()).collect();
                [&(8 + body.len() as u32).to_be_bytes()[..], kind, &body].concat()
            };
            let boxes = [
                full(b"tfhd", &[0x8, track, 40]),
                full(b"tfdt", &[0, 3_000]),
                full(b"trun", &[0, 25]),
            ];
            let body = boxes.concat();
            [&(8 + body.len() as u32).to_be_bytes()[..], b"traf", &body].concat()
        };
        assert_eq!(described(&traf(2), picture), (None, true));
        let (start, end) = (Micros::from_millis(3_000), Micros::from_millis(4_000));
        let frames = Some(Fragment { start, end, frames: 25 });
        assert_eq!(described(&traf(1), picture), (frames, false));
        assert_eq!(described(&[traf(2), traf(1)].concat(), picture), (frames, true));
    }
}
