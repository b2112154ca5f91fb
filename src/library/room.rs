//! Room on a full disk for whoever is to keep less of live sources than is there.

use std::path::Path;

use rusqlite::Connection;

use super::ids::SourceId;
use super::keep::{Keep, known_us};
use super::lock::lock;
use super::recordings::Recordings;
use super::rows;
use super::schema::{Database, RECORD};
use super::writer::Writer;
use crate::error::{Error, Kind, Result};
use crate::time::{Timestamp, wall_us};

/// Bytes that opening a library may need. With more of them, the rest goes in the usual way.
const ROOM: u64 = 16 << 20;

impl Writer {
    /// As [`Writer::open`]; where the disk is too full for that, the oldest recordings that are not to be kept go
    /// first. Their clips go when there is room for writing that down.
    pub fn open_keeping(folder: &Path, keep: Option<Keep>) -> Result<Self> {
        match (Writer::open(folder), keep) {
            (Err(error), Some(keep)) if error.kind() == Kind::Exhausted => {
                match make_room(folder, keep) {
                    Ok(0) | Err(_) => Err(error),
                    Ok(_) => Writer::open(folder),
                }
            }
            (opened, _) => opened,
        }
    }
}

/// Deletes the oldest recordings of which all is too old, or which alone are more than is to be kept. Returns how many
/// bytes these were.
fn make_room(folder: &Path, keep: Keep) -> Result<u64> {
    let _lock = lock(folder)?;
    let record = Database::open_to_read(folder, RECORD)?;
    let (known_us, live) = record.read(|sql| Ok((known_us(sql)?, live(sql)?)))?;
    let now_us = known_us.map_or(wall_us(), |known_us| known_us.min(wall_us()));
    let (mut files, mut all) = (Vec::new(), 0);
    for source in live {
        let of_source = Recordings::of(folder, source).list()?;
        // The last one of a source goes with its last chunk, and has no end here.
        for pair in of_source.windows(2) {
            files.push((pair[1].start, pair[0].path.clone()));
        }
        for file in &of_source {
            all += std::fs::metadata(&file.path).map_or(0, |file| file.len());
        }
    }
    files.sort();
    let (mut gone, mut count) = (0, 0);
    let mut outcome = Ok(());
    for (end, path) in files {
        let is_kept = match keep {
            Keep::Lately(length) => end > Timestamp(now_us.saturating_sub(length.0)),
            Keep::Bytes(most) => all - gone <= most,
        };
        if is_kept || gone >= ROOM {
            break;
        }
        let deleted = std::fs::metadata(&path)
            .and_then(|file| std::fs::remove_file(&path).map(|()| file.len()))
            .map_err(|cause| Error::io(&path, "delete", cause));
        match deleted {
            Ok(bytes) => (gone, count) = (gone + bytes, count + 1),
            Err(error) => {
                outcome = Err(error);
                break;
            }
        }
    }
    if count > 0 {
        tracing::warn!(
            "the disk is full: the oldest recordings that are not to be kept were deleted, {count} files of {} MB",
            gone / 1_000_000
        );
    }
    outcome.map(|()| gone)
}

fn live(sql: &Connection) -> Result<Vec<SourceId>> {
    let find = "SELECT id FROM sources WHERE origin = 'live'";
    rows::all(sql, find, [], |row| rows::text(row, 0))
}
