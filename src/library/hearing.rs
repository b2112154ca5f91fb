//! What was heard: into the record from pause to pause, and how far a source has been listened to.

use rusqlite::{Connection, params};

use super::chunks::{counts, insert_gaps};
use super::commit_point;
use super::digest::CHUNKS;
use super::ids::{RecipeId, SourceId};
use super::insert;
use super::keep::KeptFrom;
use super::recipes::{Waiting, activate, has_completed, waiting};
use super::rows::{self, RecipeRow};
use super::types::{HeardChunk, RecipeKind};
use super::writer::{Writer, segments_are_old};
use crate::error::{Error, Result};
use crate::time::{Micros, Timestamp};

/// How far a source has been listened to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeardTo {
    /// The number that the next chunk has.
    pub next: u32,
    /// Where it begins.
    pub at: Timestamp,
}

impl Writer {
    /// What probing told of a source when it was added.
    pub fn media(&self, source: SourceId) -> Result<serde_json::Value> {
        self.record.read(|sql| {
            let find = "SELECT media FROM sources WHERE id = ?1";
            Ok(sql
                .prepare_cached(find)?
                .query_row([source.to_string()], |row| rows::json(row, 0))?)
        })
    }

    /// How long a source is; `None` where that was only guessed.
    pub fn sure_duration(&self, source: SourceId) -> Result<Option<Micros>> {
        self.record.read(|sql| {
            let find = "SELECT CASE WHEN media ->> 'is_duration_guessed' = 0 THEN duration_us END \
                 FROM sources WHERE id = ?1";
            let duration: Option<i64> = rows::one(sql, find, [source.to_string()])?;
            Ok(duration.map(Micros))
        })
    }

    /// The tracks that the subtitles of a source are of.
    pub fn subtitle_tracks(&self, source: SourceId) -> Result<Vec<String>> {
        self.record.read(|sql| {
            let find = "SELECT DISTINCT track FROM cues WHERE source = ?1 AND recipe IS NULL";
            rows::all(sql, find, [rows::source_key(sql, source)?], |row| row.get(0))
        })
    }

    /// Whether the recipe that listens now has listened to a source.
    pub fn is_heard(&self, source: SourceId) -> Result<bool> {
        self.record.read(|sql| {
            let find = "SELECT EXISTS (SELECT 1 FROM progress JOIN recipes ON recipes.key = recipe \
                 WHERE source = ?1 AND progress.state = 'complete' AND recipes.state = 'current' \
                 AND kind = 'speech')";
            rows::one(sql, find, [rows::source_key(sql, source)?])
        })
    }

    /// How far a source has been listened to by a recipe. What was heard behind a chunk that is missing
    /// or was only saved in part goes: it will be heard again.
    pub fn heard_to(&mut self, source: SourceId, recipe: &RecipeId) -> Result<HeardTo> {
        let (source, recipe) = self.keys(source, recipe, RecipeKind::Speech)?;
        let of = params![source, recipe.key];
        let (to, is_more) = self.record.read(|sql| {
            let find = "SELECT number, start_us, end_us, partial FROM chunks \
                 WHERE source = ?1 AND recipe = ?2 ORDER BY number";
            let chunks: Vec<(u32, i64, i64, bool)> = rows::all(sql, find, of, |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
            })?;
            let mut to = HeardTo { next: 0, at: Timestamp::ZERO };
            for &(number, start_us, end_us, is_partial) in &chunks {
                let follows = number == to.next && start_us == to.at.0 && end_us >= start_us;
                if is_partial || !follows {
                    break;
                }
                to = HeardTo { next: number + 1, at: Timestamp(end_us) };
            }
            let behind = "SELECT EXISTS (SELECT 1 FROM cues \
                 WHERE source = ?1 AND recipe = ?2 AND start_us >= ?3)";
            let is_more = chunks.len() > to.next as usize
                || rows::one(sql, behind, params![source, recipe.key, to.at.0])?;
            Ok((to, is_more))
        })?;
        if is_more {
            self.record.write(|sql| {
                for table in ["chunks WHERE number >= ?3", "gaps WHERE chunk >= ?3"] {
                    let delete = format!("DELETE FROM {table} AND source = ?1 AND recipe = ?2");
                    sql.execute(&delete, params![source, recipe.key, to.next])?;
                }
                forget_cues(sql, source, &recipe, to.at)
            })?;
            commit_point::reached("cues-committed");
        }
        Ok(to)
    }

    /// Commits what was heard from one pause to another. When this returns, it is durable: a listener
    /// that begins where the chunk ends hears the rest.
    pub fn commit_heard(
        &mut self,
        source: SourceId,
        recipe: &RecipeId,
        chunk: &HeardChunk,
    ) -> Result<()> {
        let (source, recipe) = self.keys(source, recipe, RecipeKind::Speech)?;
        if let Some(cue) = chunk.cues.iter().find(|cue| cue.span.start < chunk.span.start) {
            return Err(Error::internal("a cue before its chunk").at(cue.span.start));
        }
        self.record.write(|sql| {
            insert_gaps(sql, source, recipe.key, chunk.index, &chunk.gaps)?;
            let (start_us, end_us) = (chunk.span.start.0, chunk.span.end.0);
            let gaps = chunk.gaps.len();
            sql.execute(
                &CHUNKS.insert(),
                params![source, recipe.key, chunk.index, start_us, end_us, 0, gaps, 0, false],
            )?;
            if chunk.cues.is_empty() {
                return Ok(());
            }
            if recipe.state == "current" {
                segments_are_old(sql, "source = ?1", [source])?;
            }
            insert::cues(sql, source, Some(recipe.key), &chunk.cues)
        })?;
        commit_point::reached("heard-committed");
        Ok(())
    }

    /// Up to where a live source was listened to by a recipe; `None` where it never was. Its chunks lie on
    /// the grid of the picture's, and what was before the first may have been deleted, so that
    /// [`Writer::heard_to`] knows nothing of it.
    pub fn heard_until(&self, source: SourceId, recipe: &RecipeId) -> Result<Option<Timestamp>> {
        let (source, recipe) = self.keys(source, recipe, RecipeKind::Speech)?;
        self.record.read(|sql| heard_until(sql, source, recipe.key))
    }

    /// Adds what was heard of a live source to what a chunk has; the chunk's span ends where that does.
    /// False, and nothing is done, where the chunk is of a time that is no longer kept.
    pub fn append_heard(
        &mut self,
        source: SourceId,
        recipe: &RecipeId,
        chunk: &HeardChunk,
    ) -> Result<bool> {
        let (source, recipe) = self.keys(source, recipe, RecipeKind::Speech)?;
        if let Some(cue) = chunk.cues.iter().find(|cue| !chunk.span.contains(cue.span.start)) {
            return Err(Error::internal("a cue out of its chunk").at(cue.span.start));
        }
        let is_kept = self.record.write(|sql| {
            if !KeptFrom::read(sql)?.keeps(source, chunk.span.start) {
                return Ok(false);
            }
            let there = counts(sql, source, recipe.key, chunk.index)?;
            insert_gaps(sql, source, recipe.key, chunk.index, &chunk.gaps)?;
            let (start_us, end_us) = (chunk.span.start.0, chunk.span.end.0);
            let end_us = there.end_us.map_or(end_us, |before| before.max(end_us));
            let gaps = there.gaps + chunk.gaps.len();
            let row = params![source, recipe.key, chunk.index, start_us, end_us, 0, gaps, 0, false];
            sql.prepare_cached(&CHUNKS.replace())?.execute(row)?;
            if !chunk.cues.is_empty() {
                insert::few_cues(sql, source, recipe.key, &chunk.cues)?;
            }
            Ok(true)
        })?;
        commit_point::reached("heard-committed");
        Ok(is_kept)
    }

    /// Lets a recipe be what is searched before it has heard anything: live sources are never complete, so
    /// that it would never take over. What the one before has heard of sources is lost.
    pub fn take_over_speech_first(&mut self, speech: &RecipeId) -> Result<()> {
        let changed = self.record.write(|sql| {
            let row = rows::recipe_row(sql, speech)?;
            Ok(row.state != "current" && activate_speech(sql, row)?)
        })?;
        if changed {
            commit_point::reached("recipe-activated");
        }
        self.sweep_retired()
    }

    /// Lets what another recipe has heard take the place of what was heard before, in one step, unless
    /// sources wait for that. They are returned, with whether it was done: `at_once` does it all the same,
    /// and what only the other one has heard of them is lost. The segments of sources in which something
    /// was heard must be made anew then.
    pub fn take_over_speech(
        &mut self,
        speech: &RecipeId,
        at_once: bool,
    ) -> Result<(Vec<Waiting>, bool)> {
        let (left, changed) = self.record.write(|sql| {
            let row = rows::recipe_row(sql, speech)?;
            let left = waiting(sql, row.recipe.kind, row.key)?;
            let may = left.is_empty() || at_once && has_completed(sql, row.key)?;
            if !may || row.state == "current" {
                return Ok((left, false));
            }
            Ok((left, activate_speech(sql, row)?))
        })?;
        if changed {
            commit_point::reached("recipe-activated");
        }
        self.sweep_retired()?;
        Ok((left, changed))
    }
}

/// Up to where a live source was listened to.
pub(super) fn heard_until(sql: &Connection, source: i64, recipe: i64) -> Result<Option<Timestamp>> {
    let find = "SELECT max(end_us) FROM chunks WHERE source = ?1 AND recipe = ?2";
    let until: Option<i64> = rows::one(sql, find, params![source, recipe])?;
    Ok(until.map(Timestamp))
}

/// Makes a recipe the one whose words are searched; says whether that changed anything.
fn activate_speech(sql: &Connection, row: RecipeRow) -> Result<bool> {
    let heard = "source IN (SELECT source FROM cues WHERE recipe IN (SELECT key FROM recipes \
         WHERE kind = 'speech' AND (key = ?1 OR state = 'current')))";
    segments_are_old(sql, heard, [row.key])?;
    activate(sql, &[row])
}

/// Deletes what was heard by a recipe from an instant on.
fn forget_cues(sql: &Connection, source: i64, recipe: &RecipeRow, from: Timestamp) -> Result<()> {
    let delete = "DELETE FROM cues WHERE source = ?1 AND recipe = ?2 AND start_us >= ?3";
    if sql.execute(delete, params![source, recipe.key, from.0])? > 0 {
        insert::count_cues(sql, source)?;
        if recipe.state == "current" {
            segments_are_old(sql, "source = ?1", [source])?;
        }
    }
    Ok(())
}
