//! When the frames of a recording are shown: the times of fragments of MP4 (ISO/IEC 14496-12, 8.8). A file
//! that grows, or was cut off, has those that are whole.

use std::fs::File;
use std::io::{BufReader, Read, Result};

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

/// Reads the fragments of a file up to the first one that is not whole. What is no MP4 has none.
pub(super) fn fragments(file: File) -> Result<Vec<Fragment>> {
    let length = file.metadata()?.len();
    let mut file = BufReader::new(file);
    let (mut found, mut timescale, mut next) = (Vec::new(), None, None);
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
                b"moov" => timescale = ticks_per_second(&bytes),
                _ => next = timescale.and_then(|timescale| fragment(&bytes, timescale)),
            }
            continue;
        }
        if &kind == b"mdat" {
            found.extend(next.take());
        }
        file.seek_relative(body as i64)?;
    }
    Ok(found)
}

/// The body of the first box of a kind.
fn child<'a>(mut bytes: &'a [u8], wanted: &[u8; 4]) -> Option<&'a [u8]> {
    while let Some((header, _)) = bytes.split_first_chunk::<8>() {
        let [a, b, c, d, kind @ ..] = *header;
        let size = u32::from_be_bytes([a, b, c, d]) as usize;
        let body = bytes.get(8..size)?;
        if kind == *wanted {
            return Some(body);
        }
        bytes = bytes.get(size..)?;
    }
    None
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

fn ticks_per_second(moov: &[u8]) -> Option<u64> {
    let mut mdhd = child(child(child(moov, b"trak")?, b"mdia")?, b"mdhd")?;
    let version = number(&mut mdhd)? >> 24;
    // When it was made and changed.
    skip(&mut mdhd, if version == 1 { 4 } else { 2 })?;
    number(&mut mdhd).map(u64::from).filter(|ticks| *ticks > 0)
}

fn fragment(moof: &[u8], timescale: u64) -> Option<Fragment> {
    let traf = child(moof, b"traf")?;
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
