//! The embeddings of one table, and which of them are nearest to a query.
//!
//! Rows that a [`Part`] of the index covers are found by their codes first: of the candidates that
//! are estimated best by one bit a dimension, those that are best by four are compared exactly. The
//! newest rows, and all of a library without an index,
//! are in memory and each is compared.

use rayon::prelude::*;
use rusqlite::{Connection, params};

use super::codes::{CodedQuery, Rotation};
use super::dot::dot;
use super::index::{self, Embedded, Index};
use super::part::{Columns, Part, Scratch};
use super::rows::{self, RecipeRow};
use crate::error::{Error, Result};
use crate::time::Span;

/// Vectors scored by one task.
const BLOCK: usize = 2_048;

/// Candidates: so many for each row that is asked for, and at least one of so many that there are. With
/// more rows, more come between the best and where they are estimated to be; `benches/search` measures
/// what of the best ten is found.
const CANDIDATES: usize = 10;
const ONE_OF: usize = 80;

/// What a vector belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Row {
    pub source: i64,
    pub span: Span,
}

/// All embeddings of one table that the current recipe made, as of the last [`refresh`].
///
/// [`refresh`]: VectorSet::refresh
#[derive(Debug)]
pub(super) struct VectorSet {
    of: Embedded,
    state: State,
    rotation: Rotation,
    parts: Vec<Part>,
    /// What no part covers.
    newest: Columns,
}

/// What of the table was read. While recipe, generation and index are the same, rows were only
/// added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct State {
    recipe: i64,
    generation: i64,
    dimension: usize,
    index: index::Stamp,
    last_key: i64,
}

impl VectorSet {
    pub fn new(of: Embedded) -> Self {
        VectorSet {
            of,
            state: State::default(),
            rotation: Rotation::new(0),
            parts: Vec::new(),
            newest: Columns::default(),
        }
    }

    /// Reads what came to the table since the last time; all of it where rows have gone or the
    /// index is another. Returns whether that changed anything.
    pub fn refresh(
        &mut self,
        sql: &Connection,
        recipe: Option<&RecipeRow>,
        index: &Index,
    ) -> Result<bool> {
        let origin = recipe.map(|row| index::origin(sql, self.of, row)).transpose()?.flatten();
        let now = State {
            recipe: recipe.map_or(0, |row| row.key),
            generation: origin.map_or(0, |origin| origin.generation),
            dimension: origin.map_or(0, |origin| origin.dimension),
            index: index.stamp(),
            last_key: self.state.last_key,
        };
        let is_another = now != self.state;
        if is_another {
            let state = State { last_key: 0, ..now };
            let rotation = Rotation::new(now.dimension);
            *self = VectorSet { state, rotation, ..VectorSet::new(self.of) };
            if let Some(origin) = &origin {
                self.parts = index.parts(sql, self.of, origin)?;
                self.state.last_key = self.parts.last().map_or(0, |part| part.range.through);
            }
        }
        if self.state.dimension == 0 {
            return Ok(is_another);
        }
        let before = self.newest.rows.len();
        let read = read_rows(sql, self.of, &self.state_rows(), usize::MAX, &mut self.newest);
        match read {
            Ok(last_key) => self.state.last_key = last_key,
            Err(error) => {
                *self = VectorSet::new(self.of);
                return Err(error);
            }
        }
        Ok(is_another || self.newest.rows.len() > before)
    }

    fn state_rows(&self) -> RowsAfter {
        let State { recipe, dimension, last_key, .. } = self.state;
        RowsAfter { recipe, dimension, after: last_key, through: i64::MAX }
    }

    /// What the rows are embeddings of.
    pub fn of(&self) -> Embedded {
        self.of
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty() && self.newest.rows.is_empty()
    }

    /// All rows, in order of key.
    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        self.parts.iter().flat_map(|part| &part.rows).chain(&self.newest.rows)
    }

    /// The key of the recipe whose rows these are.
    pub fn recipe(&self) -> Option<i64> {
        (self.state.recipe != 0).then_some(self.state.recipe)
    }

    /// Rows that `keeps` accepts with their dot product with `query`, best first: the best `most`
    /// (of the index, by estimate), and perhaps more; fewer only where there are no more.
    ///
    /// Errors: `InvalidInput` where the query is not of the rows' space; `Corrupt` or `Unavailable`
    /// where a file of the index is damaged.
    pub fn best(
        &self,
        query: &[f32],
        most: usize,
        keeps: impl Fn(&Row) -> bool + Sync,
    ) -> Result<Vec<(Row, f32)>> {
        let dimension = self.state.dimension;
        if self.is_empty() {
            return Ok(Vec::new());
        }
        if query.len() != dimension || !query.iter().all(|value| value.is_finite()) {
            return Err(Error::invalid_input(format!(
                "the query has {} dimensions, and the library's embeddings {dimension}: \
                 search with the models that it was indexed with",
                query.len()
            )));
        }
        let rows = self.parts.iter().map(|part| part.rows.len()).sum::<usize>();
        let candidates = most.saturating_mul(CANDIDATES).max(rows / ONE_OF);
        let mut found = self.best_of_parts(query, candidates, most, &keeps)?;
        found.extend(self.best_of_newest(query, most, &keeps));
        // A stable sort: equal ones stay in order of key.
        found.par_sort_by(|a, b| b.1.total_cmp(&a.1));
        Ok(found)
    }

    /// In order of key.
    fn best_of_parts(
        &self,
        query: &[f32],
        candidates: usize,
        most: usize,
        keeps: &(impl Fn(&Row) -> bool + Sync),
    ) -> Result<Vec<(Row, f32)>> {
        if self.parts.is_empty() {
            return Ok(Vec::new());
        }
        let coded = CodedQuery::new(&self.rotation, query);
        let blocks: Vec<(usize, usize)> = self
            .parts
            .iter()
            .enumerate()
            .flat_map(|(part, of)| (0..of.rows.len()).step_by(BLOCK).map(move |at| (part, at)))
            .collect();
        let each = blocks.len().div_ceil(rayon::current_num_threads().max(1));
        let nearest = blocks
            .par_chunks(each)
            .map(|blocks| {
                let mut nearest = Nearest::new(candidates);
                let mut estimates = Vec::with_capacity(BLOCK);
                for &(number, first) in blocks {
                    let part = &self.parts[number];
                    let places = first..part.rows.len().min(first + BLOCK);
                    part.estimate(&coded, places.clone(), &mut estimates);
                    for (place, &score) in places.zip(&estimates) {
                        if score > nearest.floor && keeps(&part.rows[place]) {
                            nearest.add(score, (number, place));
                        }
                    }
                }
                nearest
            })
            .reduce(|| Nearest::new(candidates), Nearest::and);
        let places = self.best_by_fine_codes(&coded, &nearest.places(), most);
        let products: Result<Vec<Vec<(Row, f32)>>> = places
            .par_chunks(128)
            .map(|places| {
                let mut scratch = Scratch::default();
                let product = |&(number, place): &Place| {
                    let part = &self.parts[number];
                    Ok((part.rows[place], part.product(query, place, &mut scratch)?))
                };
                places.iter().map(product).collect()
            })
            .collect();
        Ok(products?.concat())
    }

    /// Of these places, the best by estimate.
    fn best_by_fine_codes(&self, query: &CodedQuery, places: &[Place], most: usize) -> Vec<Place> {
        let estimate = |places: &[Place]| {
            let mut nearest = Nearest::new(most);
            for places in places.chunk_by(|(part, _), (other, _)| part == other) {
                let part = &self.parts[places[0].0];
                let estimates = part.estimate_fine(query, places.iter().map(|(_, place)| *place));
                for (place, score) in places.iter().zip(estimates) {
                    if score > nearest.floor {
                        nearest.add(score, *place);
                    }
                }
            }
            nearest
        };
        let each = places.len().div_ceil(rayon::current_num_threads().max(1)).max(BLOCK);
        let nearest = places.par_chunks(each).map(estimate);
        nearest.reduce(|| Nearest::new(most), Nearest::and).places()
    }

    /// In order of key.
    fn best_of_newest(
        &self,
        query: &[f32],
        most: usize,
        keeps: &(impl Fn(&Row) -> bool + Sync),
    ) -> Vec<(Row, f32)> {
        let Columns { rows, values } = &self.newest;
        let mut scores = vec![f32::NEG_INFINITY; rows.len()];
        scores
            .par_chunks_mut(BLOCK)
            .zip(rows.par_chunks(BLOCK))
            .zip(values.par_chunks(BLOCK * self.state.dimension.max(1)))
            .for_each(|((scores, rows), values)| {
                for ((score, row), halves) in
                    scores.iter_mut().zip(rows).zip(values.chunks_exact(query.len()))
                {
                    if keeps(row) {
                        *score = dot(query, halves);
                    }
                }
            });
        let mut nearest = Nearest::new(most);
        for (place, &score) in scores.iter().enumerate() {
            if score > nearest.floor {
                nearest.add(score, (0, place));
            }
        }
        nearest.places().into_iter().map(|(_, place)| (rows[place], scores[place])).collect()
    }
}

/// Rows of a recipe with an embedding, above a key and up to another.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowsAfter {
    pub recipe: i64,
    pub dimension: usize,
    pub after: i64,
    pub through: i64,
}

/// Appends at most `most` rows to `columns`, in order of key; gives the last one's key, `after`
/// where there is none.
pub(super) fn read_rows(
    sql: &Connection,
    of: Embedded,
    which: &RowsAfter,
    most: usize,
    columns: &mut Columns,
) -> Result<i64> {
    let table = of.table();
    let mut last_key = which.after;
    let mut find = sql.prepare_cached(&format!(
        "SELECT key, source, start_us, end_us, embedding FROM {table} \
         WHERE key > ?1 AND key <= ?4 AND recipe = ?2 AND embedding IS NOT NULL \
         ORDER BY key LIMIT ?3"
    ))?;
    let most = i64::try_from(most).unwrap_or(i64::MAX);
    let mut found = find.query(params![which.after, which.recipe, most, which.through])?;
    while let Some(row) = found.next()? {
        let (key, source, span) = (row.get(0)?, row.get(1)?, rows::span(row, 2)?);
        let bytes = row.get_ref(4)?.as_blob().map_err(rusqlite::Error::from)?;
        if !rows::append_halves(bytes, which.dimension, &mut columns.values) {
            return Err(Error::corrupt(format!(
                "row {key} of {table} has an embedding of another length or not finite"
            )));
        }
        columns.rows.push(Row { source, span });
        last_key = key;
    }
    Ok(last_key)
}

/// Where a row is: the part and the place in it.
type Place = (usize, usize);

/// Collects the places with the highest scores; of equal ones the first.
#[derive(Debug)]
struct Nearest {
    most: usize,
    found: Vec<(f32, Place)>,
    /// A score that is not higher cannot be among them.
    floor: f32,
}

impl Nearest {
    fn new(most: usize) -> Self {
        Nearest { most: most.max(1), found: Vec::new(), floor: f32::NEG_INFINITY }
    }

    fn add(&mut self, score: f32, place: Place) {
        self.found.push((score, place));
        if self.found.len() >= self.most.saturating_mul(2) {
            self.shrink();
        }
    }

    fn shrink(&mut self) {
        if self.found.len() <= self.most {
            return;
        }
        let order = |a: &(f32, Place), b: &(f32, Place)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
        let (_, last, _) = self.found.select_nth_unstable_by(self.most - 1, order);
        self.floor = last.0;
        self.found.truncate(self.most);
    }

    fn and(mut self, other: Nearest) -> Nearest {
        self.found.extend(other.found);
        self.shrink();
        self
    }

    /// In order of place.
    fn places(mut self) -> Vec<Place> {
        self.shrink();
        let mut places: Vec<Place> = self.found.into_iter().map(|(_, place)| place).collect();
        places.sort_unstable();
        places
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_nearest_are_those_of_a_full_sort(
            scores in prop::collection::vec((0u8..9).prop_map(f32::from), 0..50),
            most in 1usize..60,
            parts in 1usize..4,
        ) {
            let mut all: Vec<usize> = (0..scores.len()).collect();
            all.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
            all.truncate(most);
            all.sort_unstable();
            let each = scores.len() / parts + 1;
            let nearest = scores.chunks(each).enumerate().map(|(part, scores)| {
                let mut nearest = Nearest::new(most);
                for (place, &score) in scores.iter().enumerate() {
                    if score > nearest.floor {
                        nearest.add(score, (part, place));
                    }
                }
                nearest
            });
            let nearest = nearest.reduce(Nearest::and).map_or(Vec::new(), Nearest::places);
            let found: Vec<usize> =
                nearest.into_iter().map(|(part, place)| part * each + place).collect();
            prop_assert_eq!(found, all);
        }
    }
}
