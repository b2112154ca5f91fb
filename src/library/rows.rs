//! Values as the tables hold them, checked as they are read: any column of a damaged file may hold
//! anything.

use std::str::FromStr;

use half::f16;
use rusqlite::types::{FromSql, Type};
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::ids::{RecipeId, SourceId};
use super::types::{
    Location, Origin, Place, Recipe, RecipeKind, SegmentReading, Source, Space, State, Tree,
    WallClock,
};
use crate::error::{Error, Result};
use crate::media::{Caption, CellFeatures, ClipHead, Cue, Gap, TimedWord, VisualWord};
use crate::time::{Micros, Span, Timestamp};

/// More dimensions than any encoder or tower has.
pub(super) const MOST_DIMENSIONS: usize = 65_536;

/// More than any map has cells.
const MOST_WORDS: usize = 4_096;

/// A column as text that a type reads back.
pub(super) fn text<T: FromStr<Err = Error>>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    let text = row.get_ref(column)?.as_str()?;
    text.parse().map_err(|cause: Error| unreadable(column, Type::Text, cause))
}

pub(super) fn json<T: serde::de::DeserializeOwned>(
    row: &Row<'_>,
    column: usize,
) -> rusqlite::Result<T> {
    let text = row.get_ref(column)?.as_str()?;
    serde_json::from_str(text).map_err(|cause| unreadable(column, Type::Text, cause))
}

/// Two columns, start and end.
pub(super) fn span(row: &Row<'_>, column: usize) -> rusqlite::Result<Span> {
    let span = Span::new(Timestamp(row.get(column)?), Timestamp(row.get(column + 1)?));
    if span.end < span.start {
        return Err(unreadable(column, Type::Integer, "a span ends before it starts"));
    }
    Ok(span)
}

pub(super) fn unreadable(
    column: usize,
    found: Type,
    cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, found, cause.into())
}

/// Halves as little-endian bytes.
pub(super) fn halves_to_bytes(values: &[f16]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Appends the halves of a blob to `values`; false where the blob is not `dimension` finite halves.
pub(super) fn append_halves(bytes: &[u8], dimension: usize, values: &mut Vec<f16>) -> bool {
    let whole = bytes.len() == dimension * 2;
    let from = values.len();
    if whole {
        values.extend(bytes.chunks_exact(2).map(|pair| f16::from_le_bytes([pair[0], pair[1]])));
    }
    // All ones in the exponent is an infinity or not a number.
    whole && values[from..].iter().all(|value| value.to_bits() & 0x7c00 != 0x7c00)
}

/// A column of halves; empty where it is null.
pub(super) fn halves(row: &Row<'_>, column: usize) -> rusqlite::Result<Vec<f16>> {
    let Some(bytes) = row.get_ref(column)?.as_blob_or_null()? else { return Ok(Vec::new()) };
    let mut values = Vec::new();
    let known = bytes.len() / 2 <= MOST_DIMENSIONS;
    if known && append_halves(bytes, bytes.len() / 2, &mut values) {
        Ok(values)
    } else {
        Err(unreadable(column, Type::Blob, "not a vector of finite halves"))
    }
}

/// What features that are followed by those of cells begin with: as a half, it is no number.
const WITH_CELLS: [u8; 2] = [0xff, 0x7f];

/// A clip's features as they are stored: as halves; where there are cells, [`WITH_CELLS`], the number
/// of features in two bytes, the features, the cells.
pub(super) fn features_to_bytes(features: &[f16], cells: &CellFeatures) -> Vec<u8> {
    let halves = halves_to_bytes(features);
    if cells.is_empty() {
        return halves;
    }
    // No more than that are written.
    let count = u16::try_from(features.len()).unwrap_or(u16::MAX).to_le_bytes();
    [&WITH_CELLS[..], &count, &halves, cells.as_bytes()].concat()
}

/// How many features there are in what [`features_to_bytes`] gave, and the two parts of it.
fn split_features(bytes: &[u8]) -> Option<(usize, &[u8], &[u8])> {
    let Some(rest) = bytes.strip_prefix(&WITH_CELLS) else {
        return Some((bytes.len() / 2, bytes, &[]));
    };
    let (count, rest) = rest.split_first_chunk()?;
    let count = usize::from(u16::from_le_bytes(*count));
    let (halves, cells) = rest.split_at_checked(2 * count)?;
    Some((count, halves, cells))
}

/// How many features a clip has, by what is stored.
pub(super) fn features_count(bytes: &[u8]) -> Option<usize> {
    split_features(bytes).map(|(count, ..)| count)
}

/// A column of features, and of those of the cells.
pub(super) fn features(row: &Row<'_>, column: usize) -> rusqlite::Result<(Vec<f16>, CellFeatures)> {
    let bytes = row.get_ref(column)?.as_blob()?;
    let read = || {
        let (count, halves, cells) = split_features(bytes)?;
        let mut values = Vec::new();
        let is_whole = count <= MOST_DIMENSIONS && append_halves(halves, count, &mut values);
        is_whole.then_some((values, CellFeatures::from_bytes(cells, count)?))
    };
    read().ok_or_else(|| unreadable(column, Type::Blob, "not the features of a clip"))
}

pub(super) fn visual_words_to_bytes(words: &[VisualWord]) -> Vec<u8> {
    words.iter().flat_map(|word| word.0.to_le_bytes()).collect()
}

pub(super) fn visual_words(row: &Row<'_>, column: usize) -> rusqlite::Result<Vec<VisualWord>> {
    let bytes = row.get_ref(column)?.as_blob()?;
    if !bytes.len().is_multiple_of(4) || bytes.len() / 4 > MOST_WORDS {
        return Err(unreadable(column, Type::Blob, "not a row of visual words"));
    }
    let word = |quad: &[u8]| VisualWord(u32::from_le_bytes([quad[0], quad[1], quad[2], quad[3]]));
    Ok(bytes.chunks_exact(4).map(word).collect())
}

/// The columns of [`clip_head`].
pub(super) const CLIP_HEAD: &str = "start_us, end_us, raw_pts, frames, shot_start_us";

pub(super) fn clip_head(row: &Row<'_>, column: usize) -> rusqlite::Result<ClipHead> {
    Ok(ClipHead {
        span: span(row, column)?,
        raw_pts: row.get(column + 2)?,
        frames: row.get(column + 3)?,
        shot_start: row.get::<_, Option<i64>>(column + 4)?.map(Timestamp),
    })
}

/// What is true of a cue that is searched and shown: it is a subtitle, or was heard by the recipe that
/// listens now.
pub(super) const IS_CURRENT_CUE: &str =
    "(recipe IS NULL OR recipe IN (SELECT key FROM recipes WHERE state = 'current'))";

/// The columns of [`cue`].
pub(super) const CUE: &str =
    "start_us, end_us, text, kind, language, track, confidence, words, speaker";

pub(super) fn cue(row: &Row<'_>) -> rusqlite::Result<Cue> {
    let words: Vec<TimedWord> = match row.get_ref(7)?.as_str_or_null()? {
        Some(_) => json(row, 7)?,
        None => Vec::new(),
    };
    Ok(Cue {
        span: span(row, 0)?,
        text: row.get(2)?,
        kind: text(row, 3)?,
        language: row.get(4)?,
        track: row.get(5)?,
        confidence: row.get(6)?,
        words,
        speaker: row.get(8)?,
    })
}

/// The columns of [`reading`].
pub(super) const READING: &str = "caption, confidence, alignment, embedding";

pub(super) fn reading(row: &Row<'_>, column: usize) -> rusqlite::Result<SegmentReading> {
    let text: Option<String> = row.get(column)?;
    let confidence: Option<f32> = row.get(column + 1)?;
    Ok(SegmentReading {
        caption: text.zip(confidence).map(|(text, confidence)| Caption { text, confidence }),
        alignment: row.get(column + 2)?,
        embedding: halves(row, column + 3)?,
    })
}

/// The columns of [`gap`].
pub(super) const GAP: &str = "start_us, end_us, track, reason";

pub(super) fn gap(row: &Row<'_>) -> rusqlite::Result<Gap> {
    Ok(Gap { span: span(row, 0)?, track: text(row, 2)?, reason: row.get(3)? })
}

/// A recipe with its key in the tables.
#[derive(Debug, Clone)]
pub(super) struct RecipeRow {
    pub key: i64,
    pub state: String,
    pub recipe: Recipe,
}

const RECIPE: &str = "SELECT recipes.key, hash, kind, state, description, branching, depth, \
     spaces.id, tower, dimension, languages \
     FROM recipes LEFT JOIN spaces ON spaces.key = recipes.space";

fn recipe(row: &Row<'_>) -> rusqlite::Result<RecipeRow> {
    let space = match row.get::<_, Option<String>>(7)? {
        None => None,
        Some(id) => {
            let dimension = usize::from(row.get::<_, u16>(9)?);
            if dimension == 0 {
                return Err(unreadable(9, Type::Integer, "a space of no dimensions"));
            }
            Some(Space { id, tower: row.get(8)?, dimension, languages: json(row, 10)? })
        }
    };
    let tree = match (row.get(5)?, row.get(6)?) {
        (Some(branching), Some(depth)) => {
            Some(sensible_tree(branching, depth).ok_or_else(|| {
                unreadable(5, Type::Integer, "no codebook has a tree of this shape")
            })?)
        }
        _ => None,
    };
    Ok(RecipeRow {
        key: row.get(0)?,
        state: row.get(3)?,
        recipe: Recipe {
            id: text::<RecipeId>(row, 1)?,
            kind: text::<RecipeKind>(row, 2)?,
            description: json(row, 4)?,
            space,
            tree,
        },
    })
}

/// A tree whose leaves fit a visual word.
pub(super) fn sensible_tree(branching: u32, depth: u32) -> Option<Tree> {
    (branching >= 1 && depth >= 1 && branching.checked_pow(depth).is_some())
        .then_some(Tree { branching, depth })
}

pub(super) fn recipes(sql: &Connection) -> Result<Vec<RecipeRow>> {
    let mut all = sql.prepare_cached(&format!("{RECIPE} ORDER BY recipes.key"))?;
    let rows = all.query_map([], recipe)?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

pub(super) fn current_recipe(sql: &Connection, kind: RecipeKind) -> Result<Option<RecipeRow>> {
    let find = format!("{RECIPE} WHERE kind = ?1 AND state = 'current'");
    let mut find = sql.prepare_cached(&find)?;
    Ok(find.query_row([kind.as_str()], recipe).optional()?)
}

pub(super) fn recipe_row(sql: &Connection, id: &RecipeId) -> Result<RecipeRow> {
    let mut find = sql.prepare_cached(&format!("{RECIPE} WHERE hash = ?1"))?;
    let found = find.query_row([id.to_string()], recipe).optional()?;
    found.ok_or_else(|| Error::not_found(format!("the library has no recipe {id}")))
}

/// Whether the recipe under this key is one.
pub(super) fn is_readable_recipe(sql: &Connection, key: i64) -> Result<bool> {
    let find = format!("{RECIPE} WHERE recipes.key = ?1");
    Ok(sql.query_row(&find, [key], recipe).is_ok())
}

pub(super) fn source_key(sql: &Connection, id: SourceId) -> Result<i64> {
    let mut find = sql.prepare_cached("SELECT key FROM sources WHERE id = ?1")?;
    let found = find.query_row([id.to_string()], |row| row.get(0)).optional()?;
    found.ok_or_else(|| Error::not_found(format!("the library has no source {id}")))
}

/// The columns of [`source`].
pub(super) const SOURCE: &str = "key, id, fingerprint, name, origin, duration_us, media, \
     wall_start_us, wall_origin, state, error, added_us";

/// A source without its locations and tags, and its key.
pub(super) fn source(row: &Row<'_>) -> rusqlite::Result<(i64, Source)> {
    let wall = match row.get::<_, Option<i64>>(7)? {
        Some(start_us) => Some(WallClock { start_us, origin: text(row, 8)? }),
        None => None,
    };
    let source = Source {
        id: text(row, 1)?,
        fingerprint: row.get(2)?,
        name: row.get(3)?,
        origin: text::<Origin>(row, 4)?,
        duration: row.get::<_, Option<i64>>(5)?.map(Micros),
        media: json(row, 6)?,
        wall,
        state: text::<State>(row, 9)?,
        error: row.get(10)?,
        locations: Vec::new(),
        tags: Vec::new(),
        added_us: row.get(11)?,
    };
    Ok((row.get(0)?, source))
}

/// The columns of [`location`].
pub(super) const LOCATION: &str = "kind, place, size_bytes, modified_us, device, inode";

pub(super) fn location(row: &Row<'_>) -> rusqlite::Result<Location> {
    let kind: String = row.get(0)?;
    let place =
        Place::from_bytes(&kind, row.get(1)?).map_err(|cause| unreadable(1, Type::Blob, cause))?;
    // Whole 64-bit numbers; SQLite's integers are signed, so the bits are kept.
    let bits =
        |column| Ok::<_, rusqlite::Error>(row.get::<_, Option<i64>>(column)?.map(|n| n as u64));
    Ok(Location {
        place,
        size_bytes: bits(2)?,
        modified_us: row.get(3)?,
        device: bits(4)?,
        inode: bits(5)?,
    })
}

/// Fills in a source's locations (the last seen first) and tags.
pub(super) fn fill_source(sql: &Connection, key: i64, source: &mut Source) -> Result<()> {
    let find = format!("SELECT {LOCATION} FROM locations WHERE source = ?1 ORDER BY seen_us DESC");
    source.locations = all(sql, &find, params![key], location)?;
    let find = "SELECT name, value FROM tags WHERE source = ?1 ORDER BY name";
    source.tags = all(sql, find, params![key], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(())
}

/// All rows of a statement.
pub(super) fn all<T>(
    sql: &Connection,
    statement: &str,
    values: impl rusqlite::Params,
    read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Vec<T>> {
    let mut statement = sql.prepare_cached(statement)?;
    let rows = statement.query_map(values, read)?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// The one value of a statement's one row.
pub(super) fn one<T: FromSql>(
    sql: &Connection,
    statement: &str,
    values: impl rusqlite::Params,
) -> Result<T> {
    Ok(sql.prepare_cached(statement)?.query_row(values, |row| row.get(0))?)
}
