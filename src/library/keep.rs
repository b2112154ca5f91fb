//! Keeping no more of live sources than was asked for: the oldest goes, a chunk at a time.

use std::sync::atomic::Ordering;

use rusqlite::{Connection, OptionalExtension, Transaction, params};
use serde::Serialize;

use super::chunks::add_gap;
use super::commit_point;
use super::digest::KEPT;
use super::ids::SourceId;
use super::index;
use super::insert;
use super::recipes::count_up;
use super::rows;
use super::schema::{Database, OF_CLIPS};
use super::types::RecipeKind;
use super::writer::Writer;
use crate::error::Result;
use crate::media::Gap;
use crate::time::{Micros, Span, Timestamp};

/// How much of live sources is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// What was recorded in so long up to now.
    Lately(Micros),
    /// What fits, the rest of the library, its index of embeddings and recordings included.
    Bytes(u64),
}

/// What was deleted of a live source at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Dropped {
    pub source: SourceId,
    pub span: Span,
    /// Of all recipes.
    pub clips: u64,
}

/// Free pages that are left in a file, since what comes next needs them.
const SPARE_PAGES: u64 = 256;
/// Pages that are given back at a time.
const PAGES_AT_ONCE: u64 = 256;

/// The chunk of a live source that is to go.
struct Oldest {
    source: i64,
    id: SourceId,
    number: u32,
    span: Span,
}

impl Oldest {
    /// The number and span of the chunk that holds an instant after this one: all of its recipe are as long.
    fn later(&self, at: Timestamp) -> (u32, Span) {
        let length = self.span.length().0.max(1);
        let further = (at - self.span.start).0 / length;
        let start = self.span.start + Micros(further * length);
        let number = self.number.saturating_add(u32::try_from(further).unwrap_or(u32::MAX));
        (number, Span::new(start, start + Micros(length)))
    }
}

impl Writer {
    /// Deletes the oldest chunk of all live sources, with everything that was made of it, where it is not
    /// to be kept; `None` where all is. The chunk that a source has written to last goes only by its age.
    /// Its recordings go first, since on a full disk there is no room for deleting rows. One
    /// short transaction a file; an interruption between them leaves features without clips, which
    /// the next writer deletes.
    ///
    /// The deleted rows are overwritten and their pages used again. The index of embeddings has them until
    /// it is [refreshed](Writer::refresh_index), but no search gives them.
    pub fn drop_oldest(&mut self, keep: Keep, now_us: i64) -> Result<Option<Dropped>> {
        let why = match keep {
            Keep::Lately(length) => format!("kept for {}", in_words(length)),
            Keep::Bytes(_) => "kept while there was room".to_owned(),
        };
        let found = match keep {
            Keep::Lately(length) => {
                let before = Timestamp(now_us.saturating_sub(length.0));
                let oldest = self.record.read(|sql| oldest(sql, false))?;
                oldest.filter(|oldest| oldest.span.end <= before)
            }
            Keep::Bytes(most) if self.used_bytes()? <= most => None,
            Keep::Bytes(_) => self.record.read(|sql| oldest(sql, true))?,
        };
        let Some(oldest) = found else {
            self.listed.clear();
            return Ok(None);
        };
        let Oldest { source, id, span, .. } = oldest;
        let recordings = self.recordings(id)?;
        let mut files = match self.listed.remove(&id) {
            Some(files) => files,
            None => recordings.list()?.into(),
        };
        recordings.delete_before(span.end, &mut files)?;
        self.listed.insert(id, files);
        let clips = self.record.write(|sql| {
            let clips = delete_up_to(sql, &oldest)?;
            let first_us = "SELECT first_us FROM kept WHERE source = ?1";
            let first_us: Option<i64> =
                sql.query_row(first_us, [source], |row| row.get(0)).optional()?;
            let first_us = first_us.unwrap_or(span.start.0).min(span.start.0);
            sql.execute(&KEPT.replace(), params![source, first_us, span.end.0, why])?;
            Ok(clips)
        })?;
        commit_point::reached("keep-rows-deleted");
        self.delete_features_before(source, span.end)?;
        Ok(Some(Dropped { source: id, span, clips }))
    }

    /// What time it was when a run has [noted](Writer::note_known) that last, or else up to which instant
    /// something of live sources is stored: microseconds since 1970. `None` where there is nothing.
    pub fn known_us(&self) -> Result<Option<i64>> {
        self.record.read(|sql| known_us(sql))
    }

    /// Notes what time it is, for the runs after this one.
    pub fn note_known(&mut self, now_us: i64) -> Result<()> {
        self.record.write(|sql| {
            sql.execute("INSERT OR REPLACE INTO meta VALUES ('known_us', ?1)", [now_us])?;
            Ok(())
        })
    }

    /// Bytes of the pages that hold something, of the index of embeddings and of recordings.
    fn used_bytes(&mut self) -> Result<u64> {
        let mut bytes = index::bytes(&self.folder)?;
        bytes += self.recorded_bytes()?.load(Ordering::Relaxed);
        for database in [&self.record, &self.features] {
            bytes += database.read(|sql| {
                let pages: u64 = rows::one(sql, "PRAGMA page_count", [])?;
                let free: u64 = rows::one(sql, "PRAGMA freelist_count", [])?;
                let page_bytes: u64 = rows::one(sql, "PRAGMA page_size", [])?;
                Ok(pages.saturating_sub(free) * page_bytes)
            })?;
        }
        Ok(bytes)
    }

    /// Gives some free pages back to the file system, but for those that are soon used again. False where
    /// there is no more to be given back. The files shrink when their logs have been written back.
    pub fn give_back_some(&mut self) -> Result<bool> {
        let mut is_more = false;
        for database in [&mut self.features, &mut self.record] {
            is_more |= give_back_some(database)?;
        }
        Ok(is_more)
    }

    /// Deletes what an interruption has left of live sources without their clips: features that are no longer
    /// kept, since those of a chunk go after its clips; and those after the last clip, since a clip's come
    /// before it and nobody makes it again.
    pub(super) fn finish_keeping(&mut self) -> Result<()> {
        let find = "SELECT key, from_us FROM sources LEFT JOIN kept ON kept.source = sources.key \
             WHERE origin = 'live'";
        let live: Vec<(i64, Option<i64>)> = self
            .record
            .read(|sql| rows::all(sql, find, [], |row| Ok((row.get(0)?, row.get(1)?))))?;
        for (source, from_us) in live {
            if let Some(from_us) = from_us {
                self.delete_features_before(source, Timestamp(from_us))?;
            }
            for (recipe, last_us) in self.of_clips(source, "max(start_us)")? {
                let of = [source, recipe, last_us.unwrap_or(i64::MIN)];
                self.delete_features("start_us > ?3", of)?;
            }
        }
        Ok(())
    }

    fn delete_features_before(&mut self, source: i64, from: Timestamp) -> Result<()> {
        // Chunks of several recipes need not end together.
        for (recipe, first_us) in self.of_clips(source, "min(start_us)")? {
            let of = [source, recipe, first_us.unwrap_or(i64::MAX).min(from.0)];
            if self.delete_features("start_us < ?3", of)? {
                commit_point::reached("keep-features-deleted");
            }
        }
        Ok(())
    }

    /// What SQL says of a source's clips by each recipe; `None` where it has none by that.
    fn of_clips(&self, source: i64, what: &str) -> Result<Vec<(i64, Option<i64>)>> {
        let find = format!(
            "SELECT key, (SELECT {what} FROM clips WHERE source = ?1 AND recipe = recipes.key) \
             FROM recipes WHERE kind = 'clip'"
        );
        self.record
            .read(|sql| rows::all(sql, &find, [source], |row| Ok((row.get(0)?, row.get(1)?))))
    }

    /// Deletes features and thumbnails of a source (`?1`) by a recipe (`?2`), where `which` is so. False where
    /// there are none.
    fn delete_features(&mut self, which: &str, of: [i64; 3]) -> Result<bool> {
        let these =
            |table: &str| format!("FROM {table} WHERE source = ?1 AND recipe = ?2 AND {which}");
        // There is no thumbnail without features.
        let any = format!("SELECT EXISTS (SELECT 1 {})", these("features"));
        if !self.features.read(|sql| rows::one(sql, &any, of))? {
            return Ok(false);
        }
        self.features.write(|sql| {
            for table in OF_CLIPS {
                sql.execute(&format!("DELETE {}", these(table)), of)?;
            }
            Ok(())
        })?;
        Ok(true)
    }
}

/// Since when live sources are kept, where something was deleted of them. What begins before is deleted, whatever
/// is left of it in memory and in the index.
#[derive(Debug, Default)]
pub(super) struct KeptFrom {
    /// In order of source.
    starts: Vec<(i64, Timestamp)>,
}

impl KeptFrom {
    pub fn read(sql: &Connection) -> Result<Self> {
        let mut find = sql.prepare_cached("SELECT source, from_us FROM kept ORDER BY source")?;
        let found = find.query_map([], |row| Ok((row.get(0)?, Timestamp(row.get(1)?))))?;
        Ok(KeptFrom { starts: found.collect::<rusqlite::Result<_>>()? })
    }

    pub fn is_everything(&self) -> bool {
        self.starts.is_empty()
    }

    /// Whether what begins at `start` is kept.
    pub fn keeps(&self, source: i64, start: Timestamp) -> bool {
        match self.starts.binary_search_by_key(&source, |(source, _)| *source) {
            Ok(place) => start >= self.starts[place].1,
            Err(_) => true,
        }
    }
}

/// Something that begins before what is kept is put back: it is kept from there on.
pub(super) fn keep_from(sql: &Connection, source: i64, start: Timestamp) -> Result<()> {
    let mut set =
        sql.prepare_cached("UPDATE kept SET from_us = ?2 WHERE source = ?1 AND from_us > ?2")?;
    if set.execute([source, start.0])? > 0 {
        KEPT.seal(sql, "source = ?1", [source])?;
        // Rows that went since are still in memory and in the index, where they would be seen again.
        count_up(sql, RecipeKind::Clip)?;
        count_up(sql, RecipeKind::Segment)?;
    }
    Ok(())
}

pub(super) fn known_us(sql: &Connection) -> Result<Option<i64>> {
    let noted = "SELECT value FROM meta WHERE name = 'known_us'";
    let noted = sql.query_row(noted, [], |row| row.get(0)).optional()?;
    let stored = "SELECT max(chunks.end_us) FROM chunks \
         JOIN sources ON sources.key = chunks.source WHERE origin = 'live'";
    noted.map_or_else(|| rows::one(sql, stored, []), |noted| Ok(Some(noted)))
}

/// The oldest chunk of live sources by any recipe. `not_last`: of each source and recipe, not the last.
fn oldest(sql: &Transaction<'_>, not_last: bool) -> Result<Option<Oldest>> {
    let pairs = "SELECT s.key, s.id, r.key FROM sources s JOIN recipes r \
         ON r.kind = 'clip' AND r.state IN ('current', 'building') WHERE s.origin = 'live' \
         ORDER BY s.key, r.key";
    let pairs: Vec<(i64, SourceId, i64)> =
        rows::all(sql, pairs, [], |row| Ok((row.get(0)?, rows::text(row, 1)?, row.get(2)?)))?;
    let mut find = sql.prepare_cached(
        "SELECT number, start_us, end_us, number < (SELECT max(number) FROM chunks \
         WHERE source = ?1 AND recipe = ?2) \
         FROM chunks WHERE source = ?1 AND recipe = ?2 ORDER BY number LIMIT 1",
    )?;
    let mut oldest: Option<Oldest> = None;
    for (source, id, recipe) in pairs {
        let first = find
            .query_row([source, recipe], |row| Ok((row.get(0)?, rows::span(row, 1)?, row.get(3)?)));
        let Some((number, span, is_followed)) = first.optional()? else { continue };
        let is_older = oldest.as_ref().is_none_or(|oldest| span.end < oldest.span.end);
        if is_older && (is_followed || !not_last) {
            oldest = Some(Oldest { source, id, number, span });
        }
    }
    Ok(oldest)
}

/// Deletes the chunks of a source that end where the oldest one does, or before, with all that was made of
/// them. Of a gap that goes on beyond that, the rest stays, in the chunk in which it ends. Returns how many
/// clips went.
fn delete_up_to(sql: &Transaction<'_>, oldest: &Oldest) -> Result<u64> {
    let (source, to) = (oldest.source, oldest.span.end);
    let recipes: Vec<(i64, RecipeKind)> =
        rows::all(sql, "SELECT key, kind FROM recipes", [], |row| {
            Ok((row.get(0)?, rows::text(row, 1)?))
        })?;
    let mut first = sql.prepare_cached(
        "SELECT number, end_us FROM chunks WHERE source = ?1 AND recipe = ?2 ORDER BY number LIMIT 1",
    )?;
    let going_on = format!(
        "SELECT {} FROM gaps WHERE source = ?1 AND recipe = ?2 AND chunk = ?3 AND end_us > ?4",
        rows::GAP
    );
    let (mut clips, mut has_cues) = (0, false);
    for (recipe, kind) in recipes {
        let delete = |table: &str, before: &str, value: i64| -> Result<u64> {
            let delete =
                format!("DELETE FROM {table} WHERE source = ?1 AND recipe = ?2 AND {before} < ?3");
            Ok(sql.execute(&delete, [source, recipe, value])? as u64)
        };
        if kind == RecipeKind::Segment {
            delete("segments", "start_us", to.0)?;
            delete("readings", "start_us", to.0)?;
            continue;
        }
        let mut rest: Vec<Gap> = Vec::new();
        while let Some((number, end_us)) = first
            .query_row([source, recipe], |row| Ok((row.get::<_, i64>(0)?, row.get(1)?)))
            .optional()?
            .filter(|(_, end_us)| *end_us <= to.0)
        {
            clips += delete("clips", "start_us", end_us)?;
            has_cues |= delete("cues", "start_us", end_us)? > 0;
            let of = params![source, recipe, number, to.0];
            rest.extend(rows::all(sql, &going_on, of, rows::gap)?);
            delete("gaps", "chunk", number + 1)?;
            delete("chunks", "number", number + 1)?;
        }
        for gap in rest {
            let span = Span::new(gap.span.start.max(to), gap.span.end);
            let (number, mut chunk) = oldest.later(span.end - Micros(1));
            if kind == RecipeKind::Speech {
                // Such a chunk is as long as what was heard.
                chunk.end = span.end;
            }
            add_gap(sql, source, recipe, (number, chunk), Gap { span, ..gap })?;
        }
    }
    if has_cues {
        insert::count_cues(sql, source)?;
    }
    let watches = "DELETE FROM watches WHERE source = ?1 AND ended_us < ?2";
    sql.execute(watches, [source, to.0])?;
    Ok(clips)
}

fn give_back_some(database: &mut Database) -> Result<bool> {
    let free: u64 = database.read(|sql| rows::one(sql, "PRAGMA freelist_count", []))?;
    let spare = free.saturating_sub(SPARE_PAGES);
    if spare == 0 {
        return Ok(false);
    }
    database.give_back(Some(spare.min(PAGES_AT_ONCE)))?;
    commit_point::reached("keep-given-back");
    Ok(spare > PAGES_AT_ONCE)
}

/// `30 days`, `36 hours`, `90 minutes`.
fn in_words(length: Micros) -> String {
    let secs = length.0 / 1_000_000;
    let units = [("day", 86_400), ("hour", 3_600), ("minute", 60)];
    let whole = units.into_iter().find(|(_, unit)| secs > 0 && secs % unit == 0);
    let (unit, count) = whole.map_or(("second", secs), |(unit, length)| (unit, secs / length));
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_told_in_their_largest_whole_unit() {
        let words = |secs: i64| in_words(Micros(secs * 1_000_000));
        assert_eq!(words(30 * 86_400), "30 days");
        assert_eq!(words(86_400), "1 day");
        assert_eq!(words(36 * 3_600), "36 hours");
        assert_eq!(words(90), "90 seconds");
    }
}
