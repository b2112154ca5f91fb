//! What tells one file from another, wherever it lies.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::str::FromStr;

use super::Input;
use crate::error::{Error, Result};

const END_BYTES: u64 = 1 << 20;
const BLOCK_BYTES: u64 = 64 << 10;
const BLOCKS: u64 = 64;

/// BLAKE3 of a file's size and of parts of it (first and last MiB, 64 blocks of 64 KiB at equal
/// distances), or of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Reads at most 6 MiB.
    ///
    /// # Errors
    /// `Unavailable` where reading fails.
    pub fn of_parts(file: &File) -> Result<Fingerprint> {
        Self::of_first_parts(file, size(file)?)
    }

    /// As if the file ended after `size` bytes.
    fn of_first_parts(file: &File, size: u64) -> Result<Fingerprint> {
        let mut hasher = blake3::Hasher::new_derive_key("cinelex 2026 fingerprint of parts");
        let mut buffer = vec![0; END_BYTES.min(size) as usize];
        hasher.update(&size.to_le_bytes());
        hash_span(file, &mut hasher, &mut buffer, 0, END_BYTES.min(size))?;
        if size > END_BYTES {
            let tail = END_BYTES.min(size - END_BYTES);
            let middle = size - END_BYTES - tail;
            let block = BLOCK_BYTES.min(middle);
            for index in 0..if block > 0 { BLOCKS } else { 0 } {
                // 128 bits: the product of a size and 63 may not fit into 64.
                let offset =
                    u128::from(middle - block) * u128::from(index) / u128::from(BLOCKS - 1);
                let start = END_BYTES + u64::try_from(offset).unwrap_or(middle - block);
                hash_span(file, &mut hasher, &mut buffer, start, block)?;
            }
            hash_span(file, &mut hasher, &mut buffer, size - tail, tail)?;
        }
        Ok(Fingerprint(*hasher.finalize().as_bytes()))
    }

    /// BLAKE3 of all bytes of a file. `each` hears after every 16 MiB how many were read, and stops
    /// the work with an error.
    ///
    /// # Errors
    /// `Unavailable` where reading fails; those of `each`.
    pub fn of_all(file: &File, each: &mut dyn FnMut(u64) -> Result<()>) -> Result<Fingerprint> {
        const STEP_BYTES: u64 = 16 << 20;
        let mut hasher = blake3::Hasher::new_derive_key("cinelex 2026 fingerprint of all bytes");
        let mut buffer = vec![0; END_BYTES as usize];
        let mut told = 0;
        loop {
            let done = hasher.count();
            let read = hash_span(file, &mut hasher, &mut buffer, done, STEP_BYTES)?;
            if read < STEP_BYTES {
                return Ok(Fingerprint(*hasher.finalize().as_bytes()));
            }
            told += read;
            each(told)?;
        }
    }

    /// Of an open file, or of an address, whose content only reading it all would tell.
    ///
    /// # Errors
    /// `Unavailable` where reading fails.
    pub fn of(input: &Input) -> Result<Fingerprint> {
        let size_bytes = input.file().map_or(Ok(0), size);
        Self::of_first(input, size_bytes.map_err(|error| error.in_source(input.name()))?)
    }

    /// As [`Fingerprint::of`], of a file as if it ended after `size_bytes`: what it was before it
    /// grew.
    ///
    /// # Errors
    /// `Unavailable` where reading fails.
    pub fn of_first(input: &Input, size_bytes: u64) -> Result<Fingerprint> {
        match input.file() {
            Some(file) => Self::of_first_parts(file, size_bytes)
                .map_err(|error| error.in_source(input.name())),
            None => {
                let mut hasher = blake3::Hasher::new_derive_key("cinelex 2026 address");
                hasher.update(input.bare_url().as_bytes());
                Ok(Fingerprint(*hasher.finalize().as_bytes()))
            }
        }
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

fn size(file: &File) -> Result<u64> {
    Ok(file
        .metadata()
        .map_err(|cause| Error::unavailable("cannot read the file's size").caused_by(cause))?
        .len())
}

/// Hashes a span of the file, a buffer at a time, and says how much of it was there: a file that
/// shrinks while it is read counts as shorter, not as an error.
fn hash_span(
    file: &File,
    hasher: &mut blake3::Hasher,
    buffer: &mut [u8],
    start: u64,
    length: u64,
) -> Result<u64> {
    let mut done = 0;
    while done < length {
        let wanted = (length - done).min(buffer.len() as u64) as usize;
        let read = match file.read_at(&mut buffer[..wanted], start + done) {
            Ok(read) => read,
            Err(cause) if cause.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(cause) => {
                return Err(Error::unavailable("cannot read the file")
                    .caused_by(cause)
                    .at_byte(start + done));
            }
        };
        if read == 0 {
            break;
        }
        hasher.update(&buffer[..read]);
        done += read as u64;
    }
    Ok(done)
}

/// Hexadecimal, 64 digits.
impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(blake3::Hash::from_bytes(self.0).to_hex().as_str())
    }
}

impl FromStr for Fingerprint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        blake3::Hash::from_hex(text)
            .map(|hash| Fingerprint(*hash.as_bytes()))
            .map_err(|_| Error::corrupt(format!("{text:?} is no fingerprint")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek, SeekFrom, Write};

    fn file_of(size: u64) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.write_all(&[7; 16][..size.min(16) as usize]).unwrap();
        file
    }

    #[test]
    fn a_change_of_size_start_or_end_changes_the_fingerprint() {
        let size = 9 << 20;
        let mut file = file_of(size);
        let before = Fingerprint::of_parts(&file).unwrap();
        assert_ne!(before, Fingerprint::of_parts(&file_of(size + 1)).unwrap());
        for place in [0, size - 1] {
            file.seek(SeekFrom::Start(place)).unwrap();
            file.write_all(&[9]).unwrap();
            assert_ne!(before, Fingerprint::of_parts(&file).unwrap());
        }
    }

    #[test]
    fn files_of_every_size_around_the_limits_have_one() {
        let mut seen = std::collections::HashSet::new();
        for size in [0, 1, END_BYTES, END_BYTES + 1, 2 * END_BYTES, 2 * END_BYTES + 1, 1 << 33] {
            assert!(seen.insert(Fingerprint::of_parts(&file_of(size)).unwrap()), "{size}");
        }
    }

    #[test]
    fn every_byte_counts_in_the_fingerprint_of_all() {
        let size = 40 << 20;
        let mut file = file_of(size);
        let mut told = Vec::new();
        let mut tell = |done| {
            told.push(done >> 20);
            Ok(())
        };
        let before = Fingerprint::of_all(&file, &mut tell).unwrap();
        assert_eq!(told, [16_u64, 32]);
        let parts = Fingerprint::of_parts(&file).unwrap();
        // Between the first MiB and the first block behind it.
        let between = (1 << 20) + BLOCK_BYTES + 1;
        file.seek(SeekFrom::Start(between)).unwrap();
        file.write_all(&[1]).unwrap();
        assert_eq!(Fingerprint::of_parts(&file).unwrap(), parts);
        assert_ne!(Fingerprint::of_all(&file, &mut |_| Ok(())).unwrap(), before);
        let stopped = Fingerprint::of_all(&file, &mut |_| Err(Error::cancelled()));
        assert_eq!(stopped.unwrap_err().kind(), crate::error::Kind::Cancelled);
    }

    #[test]
    fn what_is_shown_reads_back() {
        let fingerprint = Fingerprint::of_parts(&file_of(3)).unwrap();
        assert_eq!(fingerprint.to_string().parse::<Fingerprint>().unwrap(), fingerprint);
        assert!("xyz".parse::<Fingerprint>().is_err());
    }
}
