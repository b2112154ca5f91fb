//! Whether a file is, while it is read, still what it was when its fingerprint was taken.

use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, PoisonError};

use crate::error::{Error, Result};
use crate::source::{Fingerprint, Input};

/// Remembers what a source was. What is committed under its fingerprint has to be of these bytes.
#[derive(Debug)]
pub(super) struct Witness {
    fingerprint: Fingerprint,
    /// `None` for an address.
    seen: Option<Mutex<Stamp>>,
    /// How long the file was when its fingerprint was taken.
    size_bytes: u64,
}

/// What the file system tells for little: size, and when content and inode were last changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    size_bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(input: &Input) -> Result<Option<Stamp>> {
        let Some(file) = input.file() else { return Ok(None) };
        let metadata = file.metadata().map_err(|cause| {
            Error::unavailable("cannot be read").in_source(input.name()).caused_by(cause)
        })?;
        Ok(Some(Stamp {
            size_bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }))
    }
}

impl Witness {
    /// Takes the fingerprint of the file's parts.
    ///
    /// # Errors
    /// `Unavailable` where the file cannot be read.
    pub fn of(input: &Input) -> Result<Witness> {
        // Before the fingerprint: a change in between is looked into, not missed.
        let seen = Stamp::of(input)?;
        let size_bytes = seen.map_or(0, |seen| seen.size_bytes);
        let fingerprint = Fingerprint::of_first(input, size_bytes)?;
        Ok(Witness { fingerprint, seen: seen.map(Mutex::new), size_bytes })
    }

    /// Says whether something was written at the file's end since.
    ///
    /// # Errors
    /// `Unavailable` where what was there has been changed, so that nothing that was read since the
    /// last check may be taken for the source's.
    pub fn check(&self, input: &Input) -> Result<bool> {
        let (Some(seen), Some(now)) = (&self.seen, Stamp::of(input)?) else { return Ok(false) };
        // The stamp is one value, whole whenever the lock is free.
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        if *seen != now {
            let is_whole = now.size_bytes >= self.size_bytes
                && Fingerprint::of_first(input, self.size_bytes)? == self.fingerprint;
            if !is_whole {
                return Err(Error::unavailable(
                    "the file was changed while it was read: index it again",
                )
                .in_source(input.name()));
            }
            *seen = now;
        }
        Ok(now.size_bytes > self.size_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek, SeekFrom, Write};

    use crate::error::Kind;

    #[test]
    fn a_file_may_grow_and_be_touched_and_not_be_changed() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[7; 5_000]).unwrap();
        let input = Input::from_file("film", file.reopen().unwrap(), file.path());
        let witness = Witness::of(&input).unwrap();
        assert!(!witness.check(&input).unwrap());
        file.as_file().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        assert!(!witness.check(&input).unwrap());
        file.write_all(&[8; 100]).unwrap();
        assert!(witness.check(&input).unwrap(), "it has grown");
        assert!(witness.check(&input).unwrap(), "and that is said each time");
        file.seek(SeekFrom::Start(17)).unwrap();
        file.write_all(&[9]).unwrap();
        assert_eq!(witness.check(&input).unwrap_err().kind(), Kind::Unavailable);
        assert_eq!(witness.check(&input).unwrap_err().kind(), Kind::Unavailable);
    }

    #[test]
    fn a_file_that_is_cut_has_changed() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[7; 5_000]).unwrap();
        let input = Input::from_file("film", file.reopen().unwrap(), file.path());
        let witness = Witness::of(&input).unwrap();
        file.as_file().set_len(4_000).unwrap();
        assert!(witness.check(&input).is_err());
    }
}
