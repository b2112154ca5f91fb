//! Which source of the library a file is.

use super::shared::Shared;
use crate::error::{Error, Result};
use crate::source::{Fingerprint, Input};

/// Files from this size on tell how far their hashing is.
const LARGE_BYTES: u64 = 64 << 20;

/// What tells a file from others.
#[derive(Debug)]
pub(super) struct Identity {
    /// Names the source: of parts of the file, or of all of it where a source with other bytes has
    /// the same parts.
    pub fingerprint: String,
    pub verified: Verified,
}

/// What reading every byte has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verified {
    /// They were not read, or there is nothing that they could be compared with.
    No,
    /// They are what they were.
    Same,
    /// The library has a source with the same parts and other bytes.
    Differs,
}

/// Finds out which source a file is. All of it is hashed where it is new, so that a later
/// `--verify` has something to compare with; where that is asked for; and where several sources have
/// its parts. An address is known by itself.
///
/// # Errors
/// `Unavailable` where the file can't be read; `Cancelled`; those of the library.
pub(super) fn identify(input: &Input, shared: &Shared<'_>) -> Result<Identity> {
    let parts = Fingerprint::of(input)?.to_string();
    let Some(file) = input.file() else {
        return Ok(Identity { fingerprint: parts, verified: Verified::No });
    };
    let alike = shared.library().alike(&parts)?;
    if let [known] = &alike[..]
        && !shared.verify
    {
        return Ok(Identity { fingerprint: known.fingerprint.clone(), verified: Verified::No });
    }
    let size = file.metadata().map_or(0, |metadata| metadata.len());
    let digest = Fingerprint::of_all(file, &mut |done| {
        if size >= LARGE_BYTES {
            shared.hashed(input.name(), done, size);
        }
        if shared.cancel.is_cancelled() { Err(Error::cancelled()) } else { Ok(()) }
    })
    .map_err(|error| error.in_source(input.name()))?
    .to_string();
    let same = alike.iter().find(|known| known.digest.as_ref() == Some(&digest));
    let (fingerprint, verified) = match same {
        Some(known) => (known.fingerprint.clone(), Verified::Same),
        None => match alike.iter().find(|known| known.digest.is_none()) {
            // A library of an older version: now there is something to compare with.
            Some(known) => (known.fingerprint.clone(), Verified::No),
            None if alike.is_empty() => (parts.clone(), Verified::No),
            None => (digest.clone(), Verified::Differs),
        },
    };
    let mut library = shared.library();
    if library.note_content(&fingerprint, &parts, &digest)? {
        return Ok(Identity { fingerprint, verified });
    }
    // Another reader has just added one with these parts and other bytes.
    library.note_content(&digest, &parts, &digest)?;
    Ok(Identity { fingerprint: digest, verified: Verified::Differs })
}
