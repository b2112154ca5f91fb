//! Rows as they are written, one function a table, for all who write them.

use rusqlite::types::Null;
use rusqlite::{Connection, params};

use super::digest::{CUES, LOCATIONS, SOURCES};
use super::folded::folded;
use super::types::{Location, Source};
use super::writer::to_json;
use crate::error::Result;
use crate::media::Cue;

/// A source's own row, and its key; its locations and tags have rows of their own.
pub(super) fn source(sql: &Connection, source: &Source) -> Result<i64> {
    sql.execute(
        &SOURCES.insert(),
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
            source.added_us,
            Null,
            0
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
        &LOCATIONS.replace(),
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

/// Adds cues to those that a source has, and to what it says of their number. `recipe` is what they
/// were heard by; none for subtitles.
pub(super) fn cues<'a>(
    sql: &Connection,
    source: i64,
    recipe: Option<i64>,
    cues: impl IntoIterator<Item = &'a Cue>,
) -> Result<()> {
    cue_rows(sql, source, recipe, cues)?;
    count_cues(sql, source)
}

/// As [`cues`], for a source that may have so many that they are not counted each time.
pub(super) fn few_cues(sql: &Connection, source: i64, recipe: i64, few: &[Cue]) -> Result<()> {
    cue_rows(sql, source, Some(recipe), few)?;
    let count = "UPDATE sources SET cues = cues + ?2 WHERE key = ?1";
    sql.execute(count, params![source, few.len()])?;
    SOURCES.seal(sql, "key = ?1", [source])
}

fn cue_rows<'a>(
    sql: &Connection,
    source: i64,
    recipe: Option<i64>,
    cues: impl IntoIterator<Item = &'a Cue>,
) -> Result<()> {
    let mut insert = sql.prepare_cached(&CUES.insert())?;
    for cue in cues {
        let words = (!cue.words.is_empty()).then(|| to_json(&cue.words)).transpose()?;
        insert.execute(params![
            source,
            recipe,
            cue.span.start.0,
            cue.span.end.0,
            cue.text,
            folded(&cue.text),
            cue.kind.as_str(),
            cue.language,
            cue.track,
            // SQLite keeps no negative zero.
            cue.confidence.filter(|confidence| confidence.is_finite()).map(|c| c + 0.0),
            words,
            cue.speaker
        ])?;
    }
    Ok(())
}

/// Makes a source say how many cues it has.
pub(super) fn count_cues(sql: &Connection, source: i64) -> Result<()> {
    let count = "UPDATE sources SET cues = (SELECT count(*) FROM cues WHERE source = ?1) \
         WHERE key = ?1";
    sql.execute(count, [source])?;
    SOURCES.seal(sql, "key = ?1", [source])
}
