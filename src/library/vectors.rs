//! The embeddings of one table, and which of them are nearest to a query.
//!
//! Rows that a [`Part`] of the index covers are found by their codes first: in the neighbourhoods whose
//! best row is likely to be nearest to the query, of the candidates that are estimated best by one bit a dimension,
//! those that are best by four are compared exactly. The newest rows, and all of a library without an
//! index, are in memory and each is compared.

use std::ops::Range;

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

/// The neighbourhoods that are looked into hold one row of so many, and at least so many rows.
const LOOKED_INTO: usize = 6;
const LOOKED_INTO_LEAST: usize = 65_536;

/// Candidates: so many for each row that is asked for, and at least one of so many that there are. With
/// more rows, more come between the best and where they are estimated to be; `benches/search` measures
/// what of the best ten is found.
const CANDIDATES: usize = 10;
const ONE_OF: usize = 250;

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

    /// How many rows parts cover.
    fn indexed(&self) -> usize {
        self.parts.iter().map(|part| part.rows.len()).sum()
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
        let candidates = most.saturating_mul(CANDIDATES).max(self.indexed() / ONE_OF);
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
        let (all, near) = self.neighbourhoods(&coded);
        let mut best = self.best_by_codes(&coded, &all, 0..near, candidates, keeps);
        // Where a filter leaves few, they are looked for everywhere.
        if best.found.len() < candidates {
            best = best.and(self.best_by_codes(&coded, &all, near..all.len(), candidates, keeps));
        }
        let best = self.best_by_fine_codes(&coded, &all, &best.places(), most);
        let mut places: Vec<(usize, usize)> = best
            .into_iter()
            .map(|(rank, slot)| (all[rank].part, self.parts[all[rank].part].place(slot)))
            .collect();
        places.sort_unstable();
        let products: Result<Vec<Vec<(Row, f32)>>> = places
            .par_chunks(128)
            .map(|places| {
                let mut scratch = Scratch::default();
                let product = |&(number, place): &(usize, usize)| {
                    let part = &self.parts[number];
                    Ok((part.rows[place], part.product(query, place, &mut scratch)?))
                };
                places.iter().map(product).collect()
            })
            .collect();
        Ok(products?.concat())
    }

    /// All neighbourhoods, first those in which the best rows are likely to be, and how many are looked into.
    fn neighbourhoods(&self, query: &CodedQuery) -> (Vec<Neighbourhood>, usize) {
        let mut all: Vec<Neighbourhood> = Vec::new();
        for (part, of) in self.parts.iter().enumerate() {
            let neighbourhoods = of.neighbourhoods(query).enumerate();
            all.extend(neighbourhoods.map(|(number, (product, reach))| Neighbourhood {
                part,
                number,
                product,
                best: product + reach,
            }));
        }
        all.sort_by(|a, b| b.best.total_cmp(&a.best));
        let wanted = (self.indexed() / LOOKED_INTO).max(LOOKED_INTO_LEAST);
        let (mut near, mut passed) = (0, 0);
        while near < all.len() && passed < wanted {
            passed += self.parts[all[near].part].slots(all[near].number).len();
            near += 1;
        }
        (all, near)
    }

    /// The best rows of some neighbourhoods by their signs.
    fn best_by_codes(
        &self,
        query: &CodedQuery,
        all: &[Neighbourhood],
        among: Range<usize>,
        most: usize,
        keeps: &(impl Fn(&Row) -> bool + Sync),
    ) -> Nearest {
        // Each task begins with near ones: then most of its rows are below its floor.
        let tasks = rayon::current_num_threads().max(1);
        let best = (0..tasks).into_par_iter().map(|task| {
            let mut best = Nearest::new(most);
            let mut estimates = Vec::new();
            for rank in among.clone().skip(task).step_by(tasks) {
                let Neighbourhood { part, number, product, .. } = all[rank];
                let part = &self.parts[part];
                let slots = part.slots(number);
                part.estimate(query, product, slots.clone(), &mut estimates);
                for (slot, &score) in slots.zip(&estimates) {
                    if score > best.floor && keeps(&part.rows[part.place(slot)]) {
                        best.add(score, (rank, slot));
                    }
                }
            }
            best
        });
        best.reduce(|| Nearest::new(most), Nearest::and)
    }

    /// Of these places, the best by their fine codes.
    fn best_by_fine_codes(
        &self,
        query: &CodedQuery,
        all: &[Neighbourhood],
        places: &[Place],
        most: usize,
    ) -> Vec<Place> {
        let best = |places: &[Place]| {
            let mut best = Nearest::new(most);
            for &(rank, slot) in places {
                let Neighbourhood { part, product, .. } = all[rank];
                let score = self.parts[part].estimate_fine(query, product, slot);
                if score > best.floor {
                    best.add(score, (rank, slot));
                }
            }
            best
        };
        let each = places.len().div_ceil(rayon::current_num_threads().max(1)).max(BLOCK);
        let best = places.par_chunks(each).map(best);
        best.reduce(|| Nearest::new(most), Nearest::and).places()
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

/// A neighbourhood of a part, to a query.
#[derive(Debug, Clone, Copy)]
struct Neighbourhood {
    part: usize,
    number: usize,
    /// The query's product with its centre.
    product: f32,
    /// That with its best row, as it is likely to be.
    best: f32,
}

/// Where a row is: the rank of its neighbourhood to the query, and the slot; for the newest rows 0, and the place.
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
    use crate::library::part::{self, KeyRange, Origin};
    use crate::time::Timestamp;
    use half::f16;
    use proptest::prelude::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    const WIDE: usize = 32;
    const PARTS: usize = 3;
    const ROWS: usize = 30_000;

    /// A unit vector near one of 300 directions.
    fn vector(random: &mut ChaCha8Rng) -> Vec<f16> {
        let mut direction = ChaCha8Rng::seed_from_u64(random.random_range(0..300));
        let values: Vec<f32> = (0..WIDE)
            .map(|_| direction.random_range(-1.0..1.0f32) + random.random_range(-0.7..0.7f32))
            .collect();
        let length = values.iter().map(|value| value * value).sum::<f32>().sqrt();
        values.into_iter().map(|value| f16::from_f32(value / length)).collect()
    }

    /// More rows than are looked into, one a second; and all their values.
    fn many_rows(folder: &std::path::Path) -> (VectorSet, Vec<f16>) {
        let mut random = ChaCha8Rng::seed_from_u64(11);
        let mut set = VectorSet::new(Embedded::Clips);
        set.rotation = Rotation::new(WIDE);
        set.state = State { recipe: 1, dimension: WIDE, ..State::default() };
        let identity = blake3::hash(b"test");
        let origin = Origin { identity, generation: 0, dimension: WIDE };
        let mut all = Vec::new();
        for number in 0..PARTS {
            let seconds = number * ROWS..(number + 1) * ROWS;
            let at = |second: usize| Timestamp(second as i64 * 1_000_000);
            let row = |second| Row { source: 1, span: Span::new(at(second), at(second + 1)) };
            let values: Vec<f16> = (0..ROWS).flat_map(|_| vector(&mut random)).collect();
            all.extend(&values);
            let columns = Columns { rows: seconds.map(row).collect(), values };
            let (path, range) =
                (folder.join(number.to_string()), KeyRange { after: 0, through: 1 });
            part::write(&path, &origin, range, &columns).unwrap();
            set.parts.push(Part::open(&path, &origin).unwrap());
        }
        (set, all)
    }

    #[test]
    fn the_best_are_found_without_looking_into_every_neighbourhood() {
        let folder = tempfile::tempdir().unwrap();
        let (set, all) = many_rows(folder.path());
        let mut random = ChaCha8Rng::seed_from_u64(12);
        let (mut found, mut wanted) = (0, 0);
        for _ in 0..20 {
            let query: Vec<f32> = vector(&mut random).iter().map(|value| value.to_f32()).collect();
            let coded = CodedQuery::new(&set.rotation, &query);
            let (neighbourhoods, near) = set.neighbourhoods(&coded);
            assert!(near < neighbourhoods.len());
            let exact = |keeps: &dyn Fn(i64) -> bool, most: usize| -> Vec<i64> {
                let mut scores: Vec<(f32, i64)> = (0..)
                    .zip(all.chunks_exact(WIDE))
                    .filter(|(second, _)| keeps(*second))
                    .map(|(second, values)| (dot(&query, values), second))
                    .collect();
                scores.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
                scores.into_iter().take(most).map(|(_, second)| second).collect()
            };
            let second = |row: &Row| row.span.start.0 / 1_000_000;
            let hits = |most, keeps: &(dyn Fn(&Row) -> bool + Sync)| -> Vec<i64> {
                let hits = set.best(&query, most, keeps).unwrap();
                hits.iter().take(most).map(|(row, _)| second(row)).collect()
            };
            let best = exact(&|_| true, 10);
            let hits_of_all = hits(100, &|_| true);
            wanted += best.len();
            found += best.iter().filter(|second| hits_of_all[..10].contains(second)).count();
            // A filter that leaves no more than are read makes it exact, wherever they lie.
            let is_rare = |second: i64| second % 1_000 == 7;
            assert_eq!(hits(100, &|row| is_rare(second(row))), exact(&is_rare, 100));
        }
        assert!(found * 100 >= wanted * 98, "{found} of {wanted}");
    }

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
