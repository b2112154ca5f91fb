//! Embeddings in memory, scanned exactly and in parallel.

use half::f16;
use rayon::prelude::*;
use rusqlite::{Connection, params};

use super::dot::dot;
use super::rows::{self, RecipeRow};
use super::types::RecipeKind;
use crate::error::{Error, Result};
use crate::time::Span;

/// Vectors scored by one task.
const BLOCK: usize = 2_048;

/// What a vector belongs to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    pub source: i64,
    pub span: Span,
}

/// All embeddings of one table that the current recipe made, as of the last [`refresh`].
///
/// [`refresh`]: VectorSet::refresh
#[derive(Debug)]
pub(super) struct VectorSet {
    kind: RecipeKind,
    state: State,
    pub rows: Vec<Row>,
    /// `rows.len() * dimension`, row-major.
    values: Vec<f16>,
}

/// What of the table was read. While recipe and generation are the same, rows were only added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct State {
    recipe: i64,
    generation: i64,
    dimension: usize,
    last_key: i64,
}

impl VectorSet {
    pub fn new(kind: RecipeKind) -> Self {
        VectorSet { kind, state: State::default(), rows: Vec::new(), values: Vec::new() }
    }

    /// Reads what came to the table since the last time; all of it where rows have gone.
    pub fn refresh(&mut self, sql: &Connection, recipe: Option<&RecipeRow>) -> Result<()> {
        let (table, counter) = match self.kind {
            RecipeKind::Clip => ("clips", "clips_generation"),
            RecipeKind::Segment => ("segments", "segments_generation"),
        };
        let now = State {
            recipe: recipe.map_or(0, |row| row.key),
            generation: rows::one(sql, "SELECT value FROM meta WHERE name = ?1", [counter])?,
            dimension: recipe
                .and_then(|row| row.recipe.space.as_ref())
                .map_or(0, |space| space.dimension),
            last_key: self.state.last_key,
        };
        if now != self.state {
            self.rows.clear();
            self.values.clear();
            self.state = State { last_key: 0, ..now };
        }
        if self.state.dimension == 0 {
            return Ok(());
        }
        let mut find = sql.prepare_cached(&format!(
            "SELECT key, source, start_us, end_us, embedding FROM {table} \
             WHERE key > ?1 AND recipe = ?2 AND embedding IS NOT NULL ORDER BY key"
        ))?;
        let mut found = find.query(params![self.state.last_key, self.state.recipe])?;
        while let Some(row) = found.next()? {
            let (key, source, span) = (row.get(0)?, row.get(1)?, rows::span(row, 2)?);
            let bytes = row.get_ref(4)?.as_blob().map_err(rusqlite::Error::from)?;
            if !rows::append_halves(bytes, self.state.dimension, &mut self.values) {
                self.forget();
                return Err(Error::corrupt(format!(
                    "row {key} of {table} has an embedding of another length or not finite"
                )));
            }
            self.rows.push(Row { source, span });
            self.state.last_key = key;
        }
        Ok(())
    }

    /// The key of the recipe whose rows these are.
    pub fn recipe(&self) -> Option<i64> {
        (self.state.recipe != 0).then_some(self.state.recipe)
    }

    fn forget(&mut self) {
        *self = VectorSet::new(self.kind);
    }

    /// The dot product of `query` with every row that `keeps` accepts; minus infinity for others.
    ///
    /// Errors: `InvalidInput` where the query is not of the rows' space.
    pub fn scores(&self, query: &[f32], keeps: impl Fn(&Row) -> bool + Sync) -> Result<Vec<f32>> {
        let dimension = self.state.dimension;
        if self.rows.is_empty() {
            return Ok(Vec::new());
        }
        if query.len() != dimension || !query.iter().all(|value| value.is_finite()) {
            return Err(Error::invalid_input(format!(
                "the query has {} dimensions, and the library's embeddings {dimension}: \
                 search with the models that it was indexed with",
                query.len()
            )));
        }
        let mut scores = vec![f32::NEG_INFINITY; self.rows.len()];
        scores
            .par_chunks_mut(BLOCK)
            .zip(self.rows.par_chunks(BLOCK))
            .zip(self.values.par_chunks(BLOCK * dimension))
            .for_each(|((scores, rows), values)| {
                for ((score, row), halves) in
                    scores.iter_mut().zip(rows).zip(values.chunks_exact(dimension))
                {
                    if keeps(row) {
                        *score = dot(query, halves);
                    }
                }
            });
        Ok(scores)
    }
}

/// The places of the best scores, best first, at most `most`; equal ones in order of place.
/// Places with minus infinity are left out.
pub(super) fn best(scores: &[f32], most: usize) -> Vec<usize> {
    let mut places: Vec<usize> =
        (0..scores.len()).filter(|&place| scores[place] > f32::NEG_INFINITY).collect();
    let order = |a: &usize, b: &usize| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b));
    if most < places.len() {
        places.select_nth_unstable_by(most, order);
        places.truncate(most);
    }
    places.sort_unstable_by(order);
    places
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_best_are_those_of_a_full_sort(
            scores in prop::collection::vec((0u8..9).prop_map(f32::from), 0..50),
            most in 0usize..60,
        ) {
            let mut all: Vec<usize> = (0..scores.len()).collect();
            all.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
            all.truncate(most);
            prop_assert_eq!(best(&scores, most), all);
        }
    }
}
