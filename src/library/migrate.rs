//! Bringing an older library to the newest schema, each file in one transaction, the features first: an
//! interruption leaves the old record, and the next writer begins again.

use rusqlite::types::ToSqlOutput;
use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::commit_point;
use super::digest::{
    CHUNKS, CLIPS, CONTENTS, CUES, KEPT, READINGS, TABLES, Table, WATCHES, features_digest,
};
use super::schema::{
    Database, FEATURES_VERSION, RECORD, SCHEMA_VERSION, SINCE_3, SINCE_4, SINCE_5, SINCE_6,
    THUMBNAILS, sign,
};
use crate::error::Result;

/// Brings the record to [`SCHEMA_VERSION`] and the features to theirs. From schema 1, it needs as much free
/// space on the disk as the record takes.
pub(super) fn to_newest(record: &mut Database, features: &mut Database) -> Result<()> {
    if features.version()? < FEATURES_VERSION {
        features.write(|sql| {
            sql.execute_batch(THUMBNAILS)?;
            sign(sql, FEATURES_VERSION)
        })?;
        commit_point::reached("migrate-thumbnails");
    }
    let version = record.version()?;
    if version == SCHEMA_VERSION {
        return Ok(());
    }
    // Tables are made anew under their names; rows that refer to each other are copied as they are.
    record.run(|sql| Ok(sql.pragma_update(None, "foreign_keys", false)?))?;
    let migrated = record.write(|sql| {
        if version < 2 {
            from_1(sql, features)?;
        } else {
            if version < 3 {
                sql.execute_batch(SINCE_3)?;
            }
            if version < 4 {
                from_3(sql)?;
            }
            if version < 5 {
                sql.execute_batch(SINCE_5)?;
            }
            from_5(sql)?;
        }
        sign(sql, SCHEMA_VERSION)?;
        commit_point::reached("migrate-copied");
        Ok(())
    });
    record.run(|sql| Ok(sql.pragma_update(None, "foreign_keys", true)?))?;
    migrated?;
    commit_point::reached("migrate-committed");
    record.empty_log()?;
    Ok(())
}

/// What heard a cue of an older schema, and its text as it is looked for.
const FOLDED: &[(&str, &str)] = &[("recipe", "NULL"), ("folded", "folded(text)")];

/// Of a source of schema 1.
const CUES_OF_OLD: &str = "(SELECT count(*) FROM old_cues WHERE source = old_sources.key)";

/// Of progress of schema 1.
const ROWS_OF_OLD: &str = "(SELECT count(*) FROM old_chunks WHERE source = old_progress.source \
     AND recipe = old_progress.recipe) + (SELECT count(*) FROM old_segments \
     WHERE source = old_progress.source AND recipe = old_progress.recipe)";

/// Since schema 2, rows carry digests; sources count their cues, progress its rows, and a chunk may
/// be partial.
fn from_1(sql: &Transaction<'_>, features: &Database) -> Result<()> {
    sql.execute_batch(
        "DROP TRIGGER cue_added; DROP TRIGGER cue_removed; DROP TABLE spoken;
         DROP INDEX one_current_recipe; DROP INDEX locations_of_source; DROP INDEX cues_of_source;",
    )?;
    // Tables that schema 1 did not have.
    let new = [CONTENTS, READINGS, WATCHES, KEPT];
    let old = || TABLES.iter().filter(|table| !new.contains(table));
    for table in old() {
        sql.execute_batch(&format!("ALTER TABLE {0} RENAME TO old_{0}", table.name))?;
    }
    sql.execute_batch(RECORD.tables)?;
    for table in old() {
        match table.name {
            "clips" => copy_clips(sql, features)?,
            "sources" => copy(sql, table, &[("cues", CUES_OF_OLD)])?,
            "progress" => copy(sql, table, &[("rows", ROWS_OF_OLD)])?,
            "chunks" => copy(sql, table, &[("partial", "0"), ("thumbnails", "0")])?,
            "cues" => copy(sql, table, FOLDED)?,
            _ => copy(sql, table, &[])?,
        }
    }
    // The keys that were given out are not given out again.
    sql.execute_batch(
        "DELETE FROM sqlite_sequence WHERE name NOT LIKE 'old!_%' ESCAPE '!';
         UPDATE sqlite_sequence SET name = substr(name, 5);",
    )?;
    for table in old() {
        sql.execute_batch(&format!("DROP TABLE old_{}", table.name))?;
    }
    Ok(())
}

/// Since schema 4, cues say what heard them, and have their text as it is looked for beside it.
fn from_3(sql: &Transaction<'_>) -> Result<()> {
    sql.execute_batch(
        "DROP TRIGGER cue_added; DROP TRIGGER cue_removed; DROP TABLE spoken;
         DROP INDEX cues_of_source; ALTER TABLE cues RENAME TO old_cues;",
    )?;
    sql.execute_batch(SINCE_4)?;
    copy(sql, &CUES, FOLDED)?;
    // The keys that were given out are not given out again.
    sql.execute_batch(
        "DELETE FROM sqlite_sequence WHERE name = 'cues';
         UPDATE sqlite_sequence SET name = 'cues' WHERE name = 'old_cues';
         DROP TABLE old_cues;",
    )?;
    Ok(())
}

/// Since schema 6, chunks say how many thumbnails their clips have.
fn from_5(sql: &Transaction<'_>) -> Result<()> {
    sql.execute_batch("ALTER TABLE chunks RENAME TO old_chunks")?;
    sql.execute_batch(SINCE_6)?;
    copy(sql, &CHUNKS, &[("thumbnails", "0")])?;
    sql.execute_batch("DROP TABLE old_chunks")?;
    Ok(())
}

/// Copies the rows of `old_NAME`. `new` gives what is put into columns that were not there.
fn copy(sql: &Connection, table: &Table, new: &[(&str, &str)]) -> Result<()> {
    let column = |column: &&str| match new.iter().find(|(name, _)| name == column) {
        Some((name, expression)) => format!("{expression} AS {name}"),
        None => (*column).to_owned(),
    };
    let key = if table.has_key { "key, " } else { "" };
    let (name, columns) = (table.name, table.columns.join(", "));
    let old: Vec<String> = table.columns.iter().map(column).collect();
    sql.execute_batch(&format!(
        "INSERT INTO {name} ({key}{columns}, digest) SELECT {key}{columns}, {} \
         FROM (SELECT {key}{} FROM old_{name})",
        table.digest(),
        old.join(", ")
    ))?;
    Ok(())
}

/// Copies the clips with the digests of their features; one without features gets an empty digest,
/// which none is.
fn copy_clips(sql: &Connection, features: &Database) -> Result<()> {
    let insert = CLIPS.insert_with_key();
    let mut insert = sql.prepare(&insert)?;
    let old = "SELECT key, source, recipe, start_us, end_us, raw_pts, frames, shot_start_us, words, \
         embedding FROM old_clips ORDER BY key";
    let mut old = sql.prepare(old)?;
    let mut rows = old.query([])?;
    features.read(|features| {
        let mut find = features.prepare(
            "SELECT features FROM features WHERE source = ?1 AND recipe = ?2 AND start_us = ?3",
        )?;
        while let Some(row) = rows.next()? {
            let at: (i64, i64, i64) = (row.get(1)?, row.get(2)?, row.get(3)?);
            let digest = find
                .query_row(at, |row| Ok(features_digest(row.get_ref(0)?.as_blob()?).to_vec()))
                .optional()?
                .unwrap_or_default();
            let value =
                |column| Ok::<_, rusqlite::Error>(ToSqlOutput::Borrowed(row.get_ref(column)?));
            insert.execute(params![
                value(0)?,
                at.0,
                at.1,
                at.2,
                value(4)?,
                value(5)?,
                value(6)?,
                value(7)?,
                value(8)?,
                value(9)?,
                digest
            ])?;
        }
        Ok(())
    })
}
