//! The lock that makes a writer the only one.

use std::fs::{File, TryLockError};
use std::io::{Read, Write};
use std::path::Path;

use crate::error::{Error, Result};

pub(super) const LOCK_FILE: &str = "library.lock";

const WAIT: &str = "wait until it is done, or, where it watches live streams, stop it and name all streams in one \
     run";

/// Takes the folder's lock. The file stays; only the lock on it counts, so none can be stale.
pub(super) fn lock(folder: &Path) -> Result<File> {
    let path = folder.join(LOCK_FILE);
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(|cause| Error::io(&path, "open", cause))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut owner = String::new();
            let named = Read::by_ref(&mut file).take(32).read_to_string(&mut owner).is_ok();
            let owner = owner.trim();
            let by = if named && !owner.is_empty() {
                format!(" (process {owner})")
            } else {
                String::new()
            };
            return Err(Error::unavailable(format!(
                "another process{by} is writing to {}: {WAIT}",
                folder.display()
            )));
        }
        Err(TryLockError::Error(cause)) => return Err(Error::io(&path, "lock", cause)),
    }
    let note = || {
        file.set_len(0)?;
        writeln!(&file, "{}", std::process::id())
    };
    note().map_err(|cause| Error::io(&path, "write to", cause))?;
    Ok(file)
}

/// Keeps writers out while somebody looks who must see both files as of one moment. Several may.
/// None where there is no lock file, so that nobody has ever written here, and none can be made.
pub(super) fn lock_to_look(folder: &Path) -> Result<Option<File>> {
    let path = folder.join(LOCK_FILE);
    let file = match File::open(&path) {
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(|cause| Error::io(&path, "open", cause))?,
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Err(Error::unavailable(format!(
            "another process is writing to {}: {WAIT}",
            folder.display()
        ))),
        Err(TryLockError::Error(cause)) => Err(Error::io(&path, "lock", cause)),
    }
}
