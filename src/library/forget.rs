//! Removing a source so that nothing of it is left in any file of the library.

use rusqlite::{Connection, params};
use serde::Serialize;

use super::commit_point;
use super::ids::SourceId;
use super::reader::all_sources;
use super::rebuild::remove_damaged;
use super::recipes::count_up;
use super::recordings::Recordings;
use super::rows;
use super::schema::OF_CLIPS;
use super::types::{RecipeKind, Source};
use super::writer::Writer;
use crate::error::{Error, Result};

/// What [`Writer::forget`] removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Forgotten {
    pub source: SourceId,
    pub name: String,
    pub clips: u64,
    pub segments: u64,
    pub cues: u64,
    pub gaps: u64,
    /// Reports of runs that named the source.
    pub runs: u64,
    /// Damaged files that a rebuild had kept: nobody can say what is in them.
    pub damaged_files: u64,
}

impl Writer {
    /// Removes a source with all that was made of it, of every recipe, and the reports of runs
    /// that name it. Deleted rows are overwritten (`secure_delete`), the indexes of words are made
    /// anew, since their inner nodes keep beginnings of words, and the logs are cut to nothing. The
    /// rows of the record go in one step; what an interruption leaves of the rest, the next writer
    /// removes.
    ///
    /// The index of embeddings is made anew too.
    ///
    /// Errors: `NotFound` for no such source. `Unavailable` where a reader in another process
    /// keeps the logs from being emptied: the source is gone then, and the next writer of the
    /// library empties them.
    pub fn forget(&mut self, id: SourceId) -> Result<Forgotten> {
        let forgotten = self.forget_rows(id)?;
        if let Err(error) = self.refresh_index() {
            tracing::warn!("{error}: search takes longer until the index is made anew");
        }
        Ok(forgotten)
    }

    /// As [`Writer::forget`], but leaves the library without an index of embeddings.
    pub(super) fn forget_rows(&mut self, id: SourceId) -> Result<Forgotten> {
        let (key, source) = self.record.read(|sql| {
            let key = rows::source_key(sql, id)?;
            let source = all_sources(sql)?.into_iter().find(|source| source.id == id);
            Ok((key, source.ok_or_else(|| Error::corrupt("a source without a row"))?))
        })?;
        Recordings::of(&self.folder, id).delete()?;
        // First, since what search has without it is slower and no less.
        self.delete_index()?;
        let mut forgotten = self.record.write(|sql| {
            let forgotten = Forgotten {
                source: id,
                name: source.name.clone(),
                clips: delete(sql, "clips", key)?,
                segments: delete(sql, "segments", key)?,
                cues: delete(sql, "cues", key)?,
                gaps: delete(sql, "gaps", key)?,
                runs: delete_runs(sql, &source)?,
                damaged_files: 0,
            };
            let captions = delete(sql, "readings", key)?;
            for table in ["chunks", "progress", "watches", "kept", "tags", "locations"] {
                delete(sql, table, key)?;
            }
            sql.execute("DELETE FROM contents WHERE fingerprint = ?1", [&source.fingerprint])?;
            sql.execute("DELETE FROM sources WHERE key = ?1", [key])?;
            if forgotten.cues > 0 {
                sql.execute("INSERT INTO spoken (spoken) VALUES ('rebuild')", [])?;
            }
            if captions > 0 {
                sql.execute("INSERT INTO written (written) VALUES ('rebuild')", [])?;
            }
            sql.execute("INSERT INTO forgotten VALUES (?1)", [key])?;
            count_up(sql, RecipeKind::Clip)?;
            count_up(sql, RecipeKind::Segment)?;
            Ok(forgotten)
        })?;
        commit_point::reached("forget-rows-deleted");
        // It may have been the last one that another recipe waited for.
        self.settle_recipes()?;
        forgotten.damaged_files = self.finish_forgetting()?;
        Ok(forgotten)
    }

    /// Removes what is left of sources whose rows in the record are gone. Returns how many damaged
    /// files went.
    pub(super) fn finish_forgetting(&mut self) -> Result<u64> {
        let find = "SELECT source FROM forgotten";
        let keys: Vec<i64> = self.record.read(|sql| rows::all(sql, find, [], |row| row.get(0)))?;
        if keys.is_empty() {
            return Ok(0);
        }
        let damaged_files = remove_damaged(&self.folder)?;
        self.features.write(|sql| {
            for table in OF_CLIPS {
                let mut delete = sql.prepare(&format!("DELETE FROM {table} WHERE source = ?1"))?;
                for key in &keys {
                    delete.execute([key])?;
                }
            }
            Ok(())
        })?;
        commit_point::reached("forget-features-deleted");
        self.empty_logs()?;
        self.record.write(|sql| Ok(sql.execute("DELETE FROM forgotten", [])?))?;
        commit_point::reached("forget-finished");
        Ok(damaged_files)
    }

    /// Gives free pages back to the file system and cuts the logs to nothing.
    fn empty_logs(&mut self) -> Result<()> {
        let mut emptied = true;
        for database in [&mut self.features, &mut self.record] {
            database.give_back(None)?;
            emptied &= database.empty_log()?;
            commit_point::reached("forget-log-emptied");
        }
        if emptied {
            return Ok(());
        }
        Err(Error::unavailable(format!(
            "the source is out of {}, but a process that reads the library keeps its log from being \
             emptied: end that process, then run any `index` or `forget` on the library",
            self.folder.display()
        )))
    }
}

fn delete(sql: &Connection, table: &str, source: i64) -> Result<u64> {
    Ok(sql.execute(&format!("DELETE FROM {table} WHERE source = ?1"), [source])? as u64)
}

/// Deletes the reports that have the source's id, name or places anywhere in a text.
fn delete_runs(sql: &Connection, source: &Source) -> Result<u64> {
    let mut traces = vec![source.id.to_string(), source.name.clone()];
    traces.extend(source.locations.iter().map(|location| location.place.to_string()));
    traces.retain(|trace| !trace.is_empty());
    let runs: Vec<(i64, serde_json::Value)> =
        rows::all(sql, "SELECT key, report FROM runs", [], |row| {
            Ok((row.get(0)?, rows::json(row, 1)?))
        })?;
    let mut deleted = 0;
    for (key, report) in runs {
        if names_any(&report, &traces) {
            deleted += sql.execute("DELETE FROM runs WHERE key = ?1", params![key])?;
        }
    }
    Ok(deleted as u64)
}

fn names_any(report: &serde_json::Value, traces: &[String]) -> bool {
    use serde_json::Value;
    let named = |text: &str| traces.iter().any(|trace| text.contains(trace));
    match report {
        Value::String(text) => named(text),
        Value::Array(values) => values.iter().any(|value| names_any(value, traces)),
        Value::Object(fields) => {
            fields.iter().any(|(name, value)| named(name) || names_any(value, traces))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}
