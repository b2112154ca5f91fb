//! Chunks: what was read of a source, at once or clip by clip as it comes.

use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::commit_point;
use super::digest::{CHUNKS, CLIPS, GAPS, THUMBNAILS, features_digest};
use super::ids::{RecipeId, SourceId};
use super::keep::keep_from;
use super::recipes::count_up;
use super::rows;
use super::schema::OF_CLIPS;
use super::types::{ChunkRecord, RecipeKind};
use super::writer::{Writer, check_embedding, embedding_to_bytes};
use crate::error::{Error, Result};
use crate::media::{Gap, IndexedClip};
use crate::time::Span;

/// Where a chunk goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Onto {
    /// In place of what the same chunk gave before.
    Nothing,
    /// Behind what there is of it.
    Before,
}

/// Whose chunk it is: the keys of its source and recipe.
#[derive(Debug, Clone, Copy)]
struct Of {
    source: i64,
    recipe: i64,
}

impl Writer {
    /// Commits what one chunk gave, in place of what the same chunk gave before. When this
    /// returns, it is durable. An interruption at any point leaves the chunk as it was.
    pub fn commit_chunk(
        &mut self,
        source: SourceId,
        recipe: &RecipeId,
        chunk: &ChunkRecord,
    ) -> Result<()> {
        self.write_chunk(source, recipe, chunk, Onto::Nothing)
    }

    /// As [`Writer::commit_chunk`], but adds clips and gaps to those that the chunk has: for live
    /// sources, whose clips are found as soon as they are there.
    pub fn append(
        &mut self,
        source: SourceId,
        recipe: &RecipeId,
        chunk: &ChunkRecord,
    ) -> Result<()> {
        self.write_chunk(source, recipe, chunk, Onto::Before)
    }

    fn write_chunk(
        &mut self,
        source: SourceId,
        recipe: &RecipeId,
        chunk: &ChunkRecord,
        onto: Onto,
    ) -> Result<()> {
        let (source, recipe) = self.keys(source, recipe, RecipeKind::Clip)?;
        check_chunk(chunk, recipe.recipe.space.as_ref().map(|space| space.dimension))?;
        let of = Of { source, recipe: recipe.key };
        // Features first: a clip in the record always has its features, and its thumbnail. Those that an
        // interruption leaves without a clip are replaced when the chunk, or the clip, is done again.
        self.features.write(|sql| {
            for table in OF_CLIPS.iter().filter(|_| onto == Onto::Nothing) {
                delete_starting_in(sql, table, of, chunk)?;
            }
            insert_thumbnails(sql, of, chunk)?;
            let insert = "INSERT OR REPLACE INTO features VALUES (?1, ?2, ?3, ?4)";
            let mut insert = sql.prepare_cached(insert)?;
            for clip in &chunk.clips {
                let features = rows::features_to_bytes(&clip.features, &clip.cells);
                insert.execute(params![of.source, of.recipe, clip.head.span.start.0, features])?;
            }
            Ok(())
        })?;
        commit_point::reached("features-synced");
        self.record.write(|sql| {
            let there = match onto {
                Onto::Nothing => {
                    empty_chunk(sql, of, chunk)?;
                    Counts::default()
                }
                Onto::Before => counts(sql, of.source, of.recipe, chunk.index)?,
            };
            keep_from(sql, of.source, chunk.span.start)?;
            insert_clips(sql, of, chunk)?;
            insert_gaps(sql, of.source, of.recipe, chunk.index, &chunk.gaps)?;
            let (start_us, end_us) = (chunk.span.start.0, chunk.span.end.0);
            sql.prepare_cached(&CHUNKS.replace())?.execute(params![
                of.source,
                of.recipe,
                chunk.index,
                start_us,
                end_us,
                there.clips + chunk.clips.len(),
                there.gaps + chunk.gaps.len(),
                there.thumbnails + chunk.clips.iter().filter(has_thumbnail).count(),
                there.is_partial
            ])?;
            Ok(())
        })?;
        commit_point::reached("chunk-committed");
        Ok(())
    }
}

/// What a chunk has.
#[derive(Debug, Default)]
pub(super) struct Counts {
    clips: usize,
    pub gaps: usize,
    thumbnails: usize,
    is_partial: bool,
    pub end_us: Option<i64>,
}

pub(super) fn counts(sql: &Connection, source: i64, recipe: i64, number: u32) -> Result<Counts> {
    let mut find = sql.prepare_cached(
        "SELECT clips, gaps, thumbnails, partial, end_us FROM chunks \
         WHERE source = ?1 AND recipe = ?2 AND number = ?3",
    )?;
    let found = find.query_row(params![source, recipe, number], |row| {
        let (clips, gaps, thumbnails) = (row.get(0)?, row.get(1)?, row.get(2)?);
        Ok(Counts { clips, gaps, thumbnails, is_partial: row.get(3)?, end_us: row.get(4)? })
    });
    Ok(found.optional()?.unwrap_or_default())
}

/// Deletes a chunk's clips and gaps.
fn empty_chunk(sql: &Transaction<'_>, of: Of, chunk: &ChunkRecord) -> Result<()> {
    if delete_starting_in(sql, "clips", of, chunk)? > 0 {
        count_up(sql, RecipeKind::Clip)?;
    }
    let delete = "DELETE FROM gaps WHERE source = ?1 AND recipe = ?2 AND chunk = ?3";
    sql.execute(delete, params![of.source, of.recipe, chunk.index])?;
    Ok(())
}

/// Deletes the rows that start in a chunk; says how many.
fn delete_starting_in(sql: &Connection, table: &str, of: Of, chunk: &ChunkRecord) -> Result<usize> {
    let delete = format!(
        "DELETE FROM {table} WHERE source = ?1 AND recipe = ?2 AND start_us >= ?3 AND start_us < ?4"
    );
    let span = params![of.source, of.recipe, chunk.span.start.0, chunk.span.end.0];
    Ok(sql.execute(&delete, span)?)
}

fn has_thumbnail(clip: &&IndexedClip) -> bool {
    clip.thumbnail.is_some()
}

fn insert_thumbnails(sql: &Connection, of: Of, chunk: &ChunkRecord) -> Result<()> {
    let mut insert = sql.prepare_cached(&THUMBNAILS.replace())?;
    for clip in &chunk.clips {
        if let Some(thumbnail) = &clip.thumbnail {
            let start_us = clip.head.span.start.0;
            insert.execute(params![of.source, of.recipe, start_us, thumbnail.as_bytes()])?;
        }
    }
    Ok(())
}

fn insert_clips(sql: &Connection, of: Of, chunk: &ChunkRecord) -> Result<()> {
    let mut insert = sql.prepare_cached(&CLIPS.insert())?;
    for clip in &chunk.clips {
        insert.execute(params![
            of.source,
            of.recipe,
            clip.head.span.start.0,
            clip.head.span.end.0,
            clip.head.raw_pts,
            clip.head.frames,
            clip.head.shot_start.map(|at| at.0),
            rows::visual_words_to_bytes(&clip.words),
            embedding_to_bytes(&clip.embedding),
            features_digest(&rows::features_to_bytes(&clip.features, &clip.cells))
        ])?;
    }
    Ok(())
}

/// Adds a gap to a chunk, which is made, with this span, where there is none.
pub(super) fn add_gap(
    sql: &Connection,
    source: i64,
    recipe: i64,
    (number, span): (u32, Span),
    gap: Gap,
) -> Result<()> {
    let there = counts(sql, source, recipe, number)?;
    insert_gaps(sql, source, recipe, number, &[gap])?;
    if there.end_us.is_some() {
        const IT: &str = "source = ?1 AND recipe = ?2 AND number = ?3";
        let of = params![source, recipe, number];
        sql.execute(&format!("UPDATE chunks SET gaps = gaps + 1 WHERE {IT}"), of)?;
        return CHUNKS.seal(sql, IT, of);
    }
    let (start_us, end_us) = (span.start.0, span.end.0);
    let (clips, gaps, thumbnails, is_partial) = (0, 1, 0, false);
    sql.prepare_cached(&CHUNKS.replace())?.execute(params![
        source, recipe, number, start_us, end_us, clips, gaps, thumbnails, is_partial
    ])?;
    Ok(())
}

/// Inserts gaps of a chunk, behind those that it has.
pub(super) fn insert_gaps(
    sql: &Connection,
    source: i64,
    recipe: i64,
    chunk: u32,
    gaps: &[Gap],
) -> Result<()> {
    if gaps.is_empty() {
        return Ok(());
    }
    // Damage may have taken some of them, so their number is not the next place.
    let place = "SELECT coalesce(max(place) + 1, 0) FROM gaps \
         WHERE source = ?1 AND recipe = ?2 AND chunk = ?3";
    let first: i64 = rows::one(sql, place, params![source, recipe, chunk])?;
    let mut insert = sql.prepare_cached(&GAPS.insert())?;
    for (place, gap) in (first..).zip(gaps) {
        insert.execute(params![
            source,
            recipe,
            chunk,
            place,
            gap.span.start.0,
            gap.span.end.0,
            gap.track.as_str(),
            gap.reason
        ])?;
    }
    Ok(())
}

/// What the stages hand over keeps these; one that doesn't is a bug there, and must not get in.
fn check_chunk(chunk: &ChunkRecord, dimension: Option<usize>) -> Result<()> {
    let length = chunk.clips.first().map_or(0, |clip| clip.features.len());
    let mut before = None;
    for clip in &chunk.clips {
        let start = clip.head.span.start;
        if !chunk.span.contains(start) || before >= Some(start) {
            return Err(Error::internal("clips out of their chunk or order").at(start));
        }
        before = Some(start);
        let finite = clip.features.iter().all(|value| value.is_finite());
        if clip.features.len() != length || length >= rows::MOST_DIMENSIONS || !finite {
            return Err(Error::internal("features of changing length or not finite").at(start));
        }
        if clip.cells.values(length).is_none() {
            return Err(Error::internal("cells of another length than the features").at(start));
        }
        check_embedding(&clip.embedding, dimension).map_err(|error| error.at(start))?;
    }
    Ok(())
}
