//! New files in the places of damaged ones, so that an interruption at any point can be finished.
//!
//! A new file is `NAME.new` while it is written and `NAME.rebuilt-DATE` when it is whole and durable;
//! from then on it takes the place of `NAME`, which is kept as `NAME.damaged-DATE`.

use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::library::commit_point;
use crate::library::schema::{FEATURES, RECORD};

/// What follows a file's name while its successor is written.
pub(in crate::library) const NEW: &str = ".new";
/// What follows when the successor is whole.
pub(in crate::library) const REBUILT: &str = ".rebuilt-";
/// What follows when the successor has taken its place.
pub(in crate::library) const DAMAGED: &str = ".damaged-";

const FEATURES_NAME: &str = FEATURES.file_name;

/// Whether a rebuild was interrupted when its new files were whole.
pub(in crate::library) fn is_unfinished(folder: &Path) -> Result<bool> {
    Ok(!rebuilt_files(folder)?.is_empty())
}

/// Makes the new files durable and lets them take their places. Returns the names under which the
/// damaged ones are kept.
pub(super) fn take_places(folder: &Path, features_too: bool) -> Result<Vec<String>> {
    let now = jiff::Timestamp::now();
    let date = format!("{}-{:06}", now.strftime("%Y-%m-%dT%H-%M-%SZ"), now.subsec_microsecond());
    let roles = if features_too { &[FEATURES, RECORD][..] } else { &[RECORD] };
    for role in roles {
        let new = folder.join(format!("{}{NEW}", role.file_name));
        let synced = File::open(&new).and_then(|file| file.sync_all());
        synced.map_err(|cause| Error::io(&new, "write", cause))?;
    }
    // Both are whole before the first is renamed, so `finish_swaps` may take either as a sign for both.
    for role in roles {
        let new = folder.join(format!("{}{NEW}", role.file_name));
        rename(&new, &folder.join(format!("{}{REBUILT}{date}", role.file_name)))?;
        sync(folder)?;
        commit_point::reached("rebuild-ready");
    }
    finish_swaps(folder)
}

/// Finishes what an interrupted rebuild began; nothing where none was. Returns the names under which
/// damaged files are kept.
pub(in crate::library) fn finish_swaps(folder: &Path) -> Result<Vec<String>> {
    let mut kept = Vec::new();
    if let [(FEATURES_NAME, date)] = &rebuilt_files(folder)?[..] {
        // The features are never written anew without the record.
        let new = folder.join(format!("{}{NEW}", RECORD.file_name));
        if new.exists() {
            rename(&new, &folder.join(format!("{}{REBUILT}{date}", RECORD.file_name)))?;
            sync(folder)?;
        }
    }
    for (file_name, date) in rebuilt_files(folder)? {
        let path = folder.join(file_name);
        let damaged = folder.join(format!("{file_name}{DAMAGED}{date}"));
        // First of all the log: it belongs to the damaged file, and must not be read into the new.
        for part in ["-wal", "-shm"] {
            let log = with_suffix(&path, part);
            match std::fs::metadata(&log) {
                Ok(data) if data.len() > 0 && part == "-wal" => {
                    rename(&log, &with_suffix(&damaged, part))?;
                }
                Ok(_) => remove(&log)?,
                Err(_) => {}
            }
        }
        sync(folder)?;
        commit_point::reached("rebuild-log-kept");
        // Under both names for a moment, so that there is a file under its name at any time.
        match std::fs::hard_link(&path, &damaged) {
            Err(cause)
                if matches!(cause.kind(), ErrorKind::AlreadyExists | ErrorKind::NotFound) => {}
            Ok(()) => {}
            // A file system without links.
            Err(_) => rename(&path, &damaged)?,
        }
        sync(folder)?;
        commit_point::reached("rebuild-kept");
        rename(&folder.join(format!("{file_name}{REBUILT}{date}")), &path)?;
        sync(folder)?;
        commit_point::reached("rebuild-swapped");
        if damaged.exists() {
            kept.push(damaged.file_name().unwrap_or_default().to_string_lossy().into_owned());
        }
    }
    remove_new(folder)?;
    Ok(kept)
}

/// Deletes what an interrupted or failed rebuild has written and not finished.
pub(super) fn remove_new(folder: &Path) -> Result<()> {
    for role in [RECORD, FEATURES] {
        for part in ["", "-wal", "-shm", "-journal"] {
            let path = folder.join(format!("{}{NEW}{part}", role.file_name));
            if path.exists() {
                remove(&path)?;
            }
        }
    }
    Ok(())
}

/// Deletes the damaged files that were kept, and says how many.
pub(in crate::library) fn remove_damaged(folder: &Path) -> Result<u64> {
    let damaged = marked(folder, DAMAGED)?;
    for (file_name, date) in &damaged {
        remove(&folder.join(format!("{file_name}{DAMAGED}{date}")))?;
    }
    Ok(damaged.len() as u64)
}

/// The names and dates of the new files that are whole and not in their places.
fn rebuilt_files(folder: &Path) -> Result<Vec<(&'static str, String)>> {
    marked(folder, REBUILT)
}

/// The library's files with this mark behind their name, and what follows it.
fn marked(folder: &Path, mark: &str) -> Result<Vec<(&'static str, String)>> {
    let failed = |cause| Error::io(folder, "read the folder", cause);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        for role in [FEATURES, RECORD] {
            let rest = name.to_str().and_then(|name| name.strip_prefix(role.file_name));
            if let Some(date) = rest.and_then(|rest| rest.strip_prefix(mark)) {
                found.push((role.file_name, date.to_owned()));
            }
        }
    }
    found.sort();
    Ok(found)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    std::fs::rename(from, to).map_err(|cause| Error::io(from, "rename", cause))
}

fn remove(path: &Path) -> Result<()> {
    std::fs::remove_file(path).map_err(|cause| Error::io(path, "delete", cause))
}

/// Makes the names in a folder durable.
fn sync(folder: &Path) -> Result<()> {
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(|cause| Error::io(folder, "write to", cause))
}
