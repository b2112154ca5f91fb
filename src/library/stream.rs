//! All rows of a source one after the other, with their vectors, however many there are.

use rusqlite::{OptionalExtension, Row};

use super::ids::SourceId;
use super::reader::Reader;
use super::rows;
use super::types::{RecipeKind, SegmentRecord};
use crate::error::{Error, Result};
use crate::media::{CellFeatures, IndexedClip};
use crate::time::Timestamp;

/// The columns of [`indexed_clip`].
pub(super) const CLIP: &str = "start_us, end_us, raw_pts, frames, shot_start_us, words, embedding";

/// A clip without its features and thumbnail, which are in the other file.
pub(super) fn indexed_clip(row: &Row<'_>) -> rusqlite::Result<IndexedClip> {
    Ok(IndexedClip {
        head: rows::clip_head(row, 0)?,
        words: rows::visual_words(row, 5)?,
        features: Vec::new(),
        cells: CellFeatures::default(),
        embedding: rows::halves(row, 6)?,
        thumbnail: None,
    })
}

/// The columns of [`segment`].
pub(super) const SEGMENT: &str = "start_us, end_us, text, language, embedding";

pub(super) fn segment(row: &Row<'_>) -> rusqlite::Result<SegmentRecord> {
    Ok(SegmentRecord {
        span: rows::span(row, 0)?,
        text: row.get(2)?,
        language: row.get(3)?,
        embedding: rows::halves(row, 4)?,
        reading: None,
    })
}

/// The start of [`whole_segment`]'s statement.
pub(super) const WHOLE_SEGMENT: &str = "SELECT s.start_us, s.end_us, s.text, s.language, \
     s.embedding, r.caption, r.confidence, r.alignment, r.embedding, r.key FROM segments s \
     LEFT JOIN readings r ON r.source = s.source AND r.recipe = s.recipe \
     AND r.start_us = s.start_us";

/// A segment with what the transformer made of it.
pub(super) fn whole_segment(row: &Row<'_>) -> rusqlite::Result<SegmentRecord> {
    let has_reading = row.get::<_, Option<i64>>(9)?.is_some();
    let reading = has_reading.then(|| rows::reading(row, 5)).transpose()?;
    Ok(SegmentRecord { reading, ..segment(row)? })
}

/// Whether the chunk of a clip is one of which only a part was saved.
const IS_PARTIAL: &str = "SELECT EXISTS (SELECT 1 FROM chunks WHERE source = ?1 AND recipe = ?2 \
     AND start_us <= ?3 AND end_us > ?3 AND partial)";

impl Reader {
    /// Calls `each` with every clip that the current recipe has made of a source, in order of
    /// start, until it gives an error; without their thumbnails. A clip whose features were lost, in a
    /// chunk that is to be read again, has none.
    ///
    /// Errors: `NotFound` for no such source; `Corrupt` for any other clip without features.
    pub fn each_clip(
        &self,
        id: SourceId,
        mut each: impl FnMut(IndexedClip) -> Result<()>,
    ) -> Result<()> {
        // Both files in one view each: a source's rows may go while they are read.
        self.record.read(|sql| {
            let source = rows::source_key(sql, id)?;
            let Some(recipe) = rows::current_recipe(sql, RecipeKind::Clip)? else { return Ok(()) };
            self.features.read(|features| {
                let mut find_features = features.prepare_cached(
                    "SELECT features FROM features \
                     WHERE source = ?1 AND recipe = ?2 AND start_us = ?3",
                )?;
                let mut find = sql.prepare_cached(&format!(
                    "SELECT {CLIP} FROM clips WHERE source = ?1 AND recipe = ?2 ORDER BY start_us"
                ))?;
                let mut found = find.query([source, recipe.key])?;
                while let Some(row) = found.next()? {
                    let mut clip = indexed_clip(row)?;
                    let Timestamp(start) = clip.head.span.start;
                    let at = [source, recipe.key, start];
                    let found = find_features.query_row(at, |row| rows::features(row, 0));
                    (clip.features, clip.cells) = match found.optional()? {
                        Some(features) => features,
                        // A rebuild has lost them; the chunk is to be read again.
                        None if rows::one(sql, IS_PARTIAL, at)? => Default::default(),
                        None => {
                            let error = Error::corrupt(format!("a clip of {id} has no features"));
                            return Err(error.at(clip.head.span.start));
                        }
                    };
                    each(clip)?;
                }
                Ok(())
            })
        })
    }

    /// Calls `each` with every segment that the current recipe has made of a source, in order of
    /// start, until it gives an error.
    ///
    /// Errors: `NotFound` for no such source.
    pub fn each_segment(
        &self,
        id: SourceId,
        mut each: impl FnMut(SegmentRecord) -> Result<()>,
    ) -> Result<()> {
        self.record.read(|sql| {
            let source = rows::source_key(sql, id)?;
            let recipe = rows::current_recipe(sql, RecipeKind::Segment)?;
            let Some(recipe) = recipe else { return Ok(()) };
            let mut find = sql.prepare_cached(&format!(
                "{WHOLE_SEGMENT} WHERE s.source = ?1 AND s.recipe = ?2 ORDER BY s.start_us"
            ))?;
            let mut found = find.query([source, recipe.key])?;
            while let Some(row) = found.next()? {
                each(whole_segment(row)?)?;
            }
            Ok(())
        })
    }
}
