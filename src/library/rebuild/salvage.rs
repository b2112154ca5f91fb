//! Every readable row of damaged files into new ones.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use rusqlite::types::{Value, ValueRef};
use rusqlite::{Connection, OptionalExtension, params, params_from_iter};

use super::swap::NEW;
use super::{Rebuilt, Watch, at};
use crate::error::{Error, Result};
use crate::library::digest::{
    CUES, LOCATIONS, RECIPES, SOURCES, SPACES, TABLES, TAGS, THUMBNAILS, Table, features_digest,
    row_digest,
};
use crate::library::pages::{FoundRow, Pages};
use crate::library::schema::{Database, FEATURES, RECORD, sign};
use crate::media::Thumbnail;
use crate::time::wall_us;

/// Tables whose rows are kept as they read where they are not what was written: what they say
/// cannot be had from the sources again. All other rows are read again.
const IRREPLACEABLE: &[Table] = &[SPACES, RECIPES, SOURCES, LOCATIONS, TAGS, CUES];

/// What is found of a damaged record, beside its rows.
#[derive(Debug, Default)]
struct Finds {
    meta: HashMap<String, Value>,
    /// Rows that are not what was written, with their table.
    doubtful: Vec<(&'static Table, FoundRow)>,
    /// The keys that the indexes of ids, hashes and fingerprints know.
    keys: HashMap<String, BTreeSet<i64>>,
}

/// Writes a new record of every row that is what was written, and of those that are not and cannot
/// be had again.
pub(super) fn record(folder: &Path, rebuilt: &mut Rebuilt, watch: Watch<'_>) -> Result<Database> {
    let pages = Pages::open(&folder.join(RECORD.file_name), RECORD.page_bytes)?;
    let new = folder.join(format!("{}{NEW}", RECORD.file_name));
    super::swap::remove_new(folder)?;
    let mut record = Database::open_or_create_at(new, RECORD, "")?;
    // Rows come in the order of their pages.
    record.run(|sql| Ok(sql.pragma_update(None, "foreign_keys", false)?))?;
    let mut finds = Finds::default();
    record.write(|sql| {
        for page in 1..=pages.count() {
            if page % 256 == 1 {
                at(watch, "saving", page, pages.count())?;
            }
            for row in pages.rows(page) {
                rebuilt.saved += u64::from(keep(sql, row, &mut finds)?);
            }
        }
        for (table, row) in std::mem::take(&mut finds.doubtful) {
            let kept = insert(sql, table, &row).unwrap_or(false);
            rebuilt.doubtful += u64::from(kept);
            rebuilt.saved += u64::from(kept);
        }
        Ok(())
    })?;
    let sources: u64 = record
        .read(|sql| Ok(sql.query_row("SELECT count(*) FROM sources", [], |row| row.get(0))?))?;
    if sources == 0 && rebuilt.saved == 0 {
        return Err(Error::corrupt(format!(
            "no row can be read in {}: restore it from a copy. Nothing was changed",
            folder.join(RECORD.file_name).display()
        )));
    }
    refuse_newer(&finds)?;
    let library_id = library_id(folder, &finds);
    record.write(|sql| {
        sql.execute("UPDATE meta SET value = ?1 WHERE name = 'library_id'", [library_id])?;
        for name in ["clips_generation", "segments_generation"] {
            // Readers and indexes must see that rows have gone.
            let generation = match finds.meta.get(name) {
                Some(Value::Integer(generation)) if *generation >= 0 => generation.wrapping_add(1),
                _ => wall_us(),
            };
            sql.execute(
                "UPDATE meta SET value = ?2 WHERE name = ?1",
                params![name, generation.max(0)],
            )?;
        }
        sign(sql, crate::library::schema::SCHEMA_VERSION)?;
        rebuilt.dropped += super::settle::repair_keys(sql, &finds.keys)?;
        Ok(())
    })?;
    Ok(record)
}

/// Puts a row where it belongs. False where it belongs nowhere, or is there already.
fn keep(sql: &Connection, row: FoundRow, finds: &mut Finds) -> Result<bool> {
    for table in TABLES.iter().filter(|table| fits(table, &row)) {
        if is_whole(table, &row) {
            return insert(sql, table, &row);
        }
    }
    if !row.is_listed {
        return Ok(false);
    }
    if let (None, [Value::Text(name), Value::Integer(key)]) = (&row.key, &row.values[..]) {
        finds.keys.entry(name.clone()).or_default().insert(*key);
    }
    if let (None, [Value::Text(name), value]) = (&row.key, &row.values[..]) {
        finds.meta.entry(name.clone()).or_insert_with(|| value.clone());
        return Ok(false);
    }
    let table = TABLES
        .iter()
        .find(|table| IRREPLACEABLE.contains(table) && fits(table, &row) && looks(table, &row));
    if let Some(table) = table {
        finds.doubtful.push((table, row));
    }
    Ok(false)
}

fn fits(table: &Table, row: &FoundRow) -> bool {
    let columns = table.columns.len() + 1 + usize::from(table.has_key);
    row.values.len() == columns
        && row.key.is_some() == table.has_key
        && (!table.has_key || row.values[0] == Value::Null)
}

/// The columns between `key` and `digest`, as SQLite gives them.
fn columns(table: &Table, row: &FoundRow) -> Vec<Value> {
    let first = usize::from(table.has_key);
    let values = row.values[first..first + table.columns.len()].iter();
    let stored = values.zip(table.columns).map(|(value, column)| match (value, *column) {
        // Whole numbers in a column of reals are stored as integers.
        (Value::Integer(value), "confidence" | "alignment") => Value::Real(*value as f64),
        (value, _) => value.clone(),
    });
    stored.collect()
}

fn is_whole(table: &Table, row: &FoundRow) -> bool {
    let Some(Value::Blob(digest)) = row.values.last() else { return false };
    let columns = columns(table, row);
    row_digest(table.name, columns.iter().map(ValueRef::from))[..] == digest[..]
}

/// Whether a doubtful row is of this table by what else it holds; the tables' types sort out most.
fn looks(table: &Table, row: &FoundRow) -> bool {
    let columns = columns(table, row);
    let is_text = |column: usize| matches!(columns.get(column), Some(Value::Text(_)));
    match table.name {
        "cues" => [4, 5, 6, 8].into_iter().all(is_text),
        "locations" => is_text(0) && matches!(columns.get(1), Some(Value::Blob(_))),
        "tags" => is_text(1) && is_text(2),
        _ => is_text(0),
    }
}

/// False where a row with this key is there already. An error where the values are not of the
/// columns' types.
fn insert(sql: &Connection, table: &Table, row: &FoundRow) -> Result<bool> {
    let key = row.key.filter(|_| table.has_key).map(Value::Integer);
    let values: Vec<Value> = key.into_iter().chain(columns(table, row)).collect();
    let mut insert = sql.prepare_cached(&table.insert_with_key())?;
    Ok(insert.execute(params_from_iter(values))? > 0)
}

/// A version in the header that no Cinelex has written is damage; one that a newer has written is
/// not for this one to mend.
fn refuse_newer(finds: &Finds) -> Result<()> {
    match finds.meta.get("written_by") {
        Some(Value::Text(by)) if is_newer(by) => Err(Error::unsupported(format!(
            "Cinelex {by} wrote the library, and this is {}: use that one",
            env!("CARGO_PKG_VERSION")
        ))),
        _ => Ok(()),
    }
}

fn is_newer(version: &str) -> bool {
    let numbers = |version: &str| {
        let parts = version.split('.').map(|part| part.parse::<u64>().ok());
        parts.collect::<Option<Vec<u64>>>()
    };
    numbers(version) > numbers(env!("CARGO_PKG_VERSION"))
}

/// The id that both files have; where the record's cannot be read, that of the features.
fn library_id(folder: &Path, finds: &Finds) -> String {
    let is_id = |id: &String| uuid::Uuid::try_parse(id).is_ok();
    let of_record = match finds.meta.get("library_id") {
        Some(Value::Text(id)) => Some(id.clone()).filter(is_id),
        _ => None,
    };
    let of_features = || Database::open_to_read(folder, FEATURES).ok()?.library_id().ok();
    of_record
        .or_else(|| of_features().filter(is_id))
        .unwrap_or_else(|| uuid::Uuid::new_v4().to_string())
}

/// The features and thumbnails that the new record's clips have: the file as it is, or a new one of every
/// row that is what was written.
pub(super) fn features(
    folder: &Path,
    record: &mut Database,
    anew: bool,
    watch: Watch<'_>,
) -> Result<Database> {
    let library_id = record.library_id()?;
    if !anew {
        return Database::open_to_read(folder, FEATURES);
    }
    let new = folder.join(format!("{}{NEW}", FEATURES.file_name));
    let mut features = Database::open_or_create_at(new, FEATURES, &library_id)?;
    let damaged = folder.join(FEATURES.file_name);
    if !damaged.exists() {
        return Ok(features);
    }
    let pages = Pages::open(&damaged, FEATURES.page_bytes)?;
    features.write(|sql| {
        let mut insert = sql.prepare("INSERT OR IGNORE INTO features VALUES (?1, ?2, ?3, ?4)")?;
        record.read(|record| {
            let mut find = record.prepare(
                "SELECT features_digest FROM clips \
                 WHERE source = ?1 AND recipe = ?2 AND start_us = ?3",
            )?;
            for page in 1..=pages.count() {
                if page % 64 == 1 {
                    at(watch, "features", page, pages.count())?;
                }
                for row in pages.rows(page) {
                    if let Some(thumbnail) = thumbnail(&row)
                        && find.exists(thumbnail)?
                    {
                        self::insert(sql, &THUMBNAILS, &row)?;
                    }
                    let [
                        Value::Integer(source),
                        Value::Integer(recipe),
                        Value::Integer(start_us),
                        Value::Blob(bytes),
                    ] = &row.values[..]
                    else {
                        continue;
                    };
                    let digest: Option<Vec<u8>> =
                        find.query_row((source, recipe, start_us), |row| row.get(0)).optional()?;
                    if digest.is_some_and(|digest| digest == features_digest(bytes)) {
                        insert.execute(params![source, recipe, start_us, bytes])?;
                    }
                }
            }
            Ok(())
        })
    })?;
    features.empty_log()?;
    Ok(features)
}

/// Which clip's thumbnail a row is; `None` where it is none, or not what was written.
fn thumbnail(row: &FoundRow) -> Option<(i64, i64, i64)> {
    if !fits(&THUMBNAILS, row) || !is_whole(&THUMBNAILS, row) {
        return None;
    }
    match &columns(&THUMBNAILS, row)[..] {
        [
            Value::Integer(source),
            Value::Integer(recipe),
            Value::Integer(start_us),
            Value::Blob(jpeg),
        ] if Thumbnail::from_bytes(jpeg.clone()).is_some() => Some((*source, *recipe, *start_us)),
        _ => None,
    }
}
