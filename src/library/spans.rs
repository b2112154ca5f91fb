//! Where the segments are, in memory, for telling which one a clip or cue belongs to.

use rusqlite::{Connection, params};

use super::rows::{self, RecipeRow};
use crate::error::Result;
use crate::time::{Span, Timestamp};

/// The spans of all segments that the current recipe made, as of the last refresh.
#[derive(Debug, Default)]
pub(super) struct SegmentSpans {
    recipe: i64,
    generation: i64,
    last_key: i64,
    /// In order of source and start.
    spans: Vec<(i64, Span)>,
}

impl SegmentSpans {
    /// Reads what came since the last time. Returns whether that changed anything.
    pub fn refresh(&mut self, sql: &Connection, recipe: Option<&RecipeRow>) -> Result<bool> {
        let generation =
            rows::one(sql, "SELECT value FROM meta WHERE name = 'segments_generation'", [])?;
        let recipe = recipe.map_or(0, |row| row.key);
        let is_another = (self.recipe, self.generation) != (recipe, generation);
        let known_to = if is_another { 0 } else { self.last_key };
        let mut find = sql.prepare_cached(
            "SELECT key, source, start_us, end_us FROM segments \
             WHERE key > ?1 AND recipe = ?2 ORDER BY key",
        )?;
        // All or none: what could not be read is asked for again.
        let fresh: Vec<(i64, (i64, Span))> = find
            .query_and_then(params![known_to, recipe], |row| {
                Ok((row.get(0)?, (row.get(1)?, rows::span(row, 2)?)))
            })?
            .collect::<Result<_>>()?;
        if is_another {
            *self = SegmentSpans { recipe, generation, ..SegmentSpans::default() };
        }
        let Some((last_key, _)) = fresh.last() else { return Ok(is_another) };
        self.last_key = *last_key;
        self.spans.extend(fresh.into_iter().map(|(_, span)| span));
        self.spans.sort_unstable_by_key(|(source, span)| (*source, span.start));
        Ok(true)
    }

    /// The segment of `source` that holds this instant.
    pub fn holding(&self, source: i64, at: Timestamp) -> Option<Span> {
        let after = self.spans.partition_point(|(of, span)| (*of, span.start) <= (source, at));
        let (of, span) = *self.spans[..after].last()?;
        (of == source && span.contains(at)).then_some(span)
    }
}
