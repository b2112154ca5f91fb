//! Rows as they are written, one function a table, for all who write them.

use rusqlite::{Connection, params};

use super::types::{Location, Source};
use super::writer::to_json;
use crate::error::Result;
use crate::media::Cue;

/// A source's own row, and its key; its locations and tags have rows of their own.
pub(super) fn source(sql: &Connection, source: &Source) -> Result<i64> {
    sql.execute(
        "INSERT INTO sources (id, fingerprint, name, origin, duration_us, media, \
         wall_start_us, wall_origin, state, error, added_us) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
        params![
            source.id.to_string(),
            source.fingerprint,
            source.name,
            source.origin.as_str(),
            source.duration.map(|length| length.0),
            to_json(&source.media)?,
            source.wall.map(|wall| wall.start_us),
            source.wall.map(|wall| wall.origin.as_str()),
            source.state.as_str(),
            source.error,
            source.added_us
        ],
    )?;
    Ok(sql.last_insert_rowid())
}

/// Where a source was seen; the place belongs to it from now on.
pub(super) fn location(
    sql: &Connection,
    source: i64,
    location: &Location,
    seen_us: i64,
) -> Result<()> {
    let Location { place, size_bytes, modified_us, device, inode } = location;
    sql.execute(
        "INSERT OR REPLACE INTO locations (kind, place, source, size_bytes, modified_us, \
         device, inode, seen_us) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        params![
            place.kind(),
            place.bytes(),
            source,
            size_bytes.map(|n| n as i64),
            modified_us,
            device.map(|n| n as i64),
            inode.map(|n| n as i64),
            seen_us
        ],
    )?;
    Ok(())
}

pub(super) fn cues<'a>(
    sql: &Connection,
    source: i64,
    cues: impl IntoIterator<Item = &'a Cue>,
) -> Result<()> {
    let mut insert = sql.prepare_cached(
        "INSERT INTO cues (source, start_us, end_us, text, kind, language, track, \
         confidence, words, speaker) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
    )?;
    for cue in cues {
        let words = (!cue.words.is_empty()).then(|| to_json(&cue.words)).transpose()?;
        insert.execute(params![
            source,
            cue.span.start.0,
            cue.span.end.0,
            cue.text,
            cue.kind.as_str(),
            cue.language,
            cue.track,
            cue.confidence.filter(|confidence| confidence.is_finite()),
            words,
            cue.speaker
        ])?;
    }
    Ok(())
}
