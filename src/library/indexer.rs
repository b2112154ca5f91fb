//! Bringing the index of embeddings in line with the record.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::Connection;

use super::index::{Embedded, Index, is_enough, origin};
use super::keep::KeptFrom;
use super::part::{self, Columns, KeyRange, Origin, Part};
use super::rows;
use super::schema::{Database, RECORD};
use super::vectors::{RowsAfter, read_rows};
use super::writer::Writer;
use crate::error::{Error, Result};

/// Makes the index's files. It reads the record by itself, so that who writes to it need not wait; as
/// long as it lives, no other process writes to the library.
#[derive(Debug)]
pub struct Indexer {
    index: Index,
    record: Database,
    /// The parts that it has made, or read to the last byte.
    known: HashMap<PathBuf, (Origin, Stretch)>,
    _lock: Arc<File>,
}

/// What a part covers.
#[derive(Debug, Clone, Copy)]
struct Stretch {
    range: KeyRange,
    rows: usize,
}

impl Writer {
    /// What extends the index while this one writes.
    pub fn indexer(&self) -> Result<Indexer> {
        Ok(Indexer {
            index: Index::of(&self.folder),
            record: Database::open_to_read(&self.folder, RECORD)?,
            known: HashMap::new(),
            _lock: Arc::clone(&self.lock),
        })
    }

    /// As [`Indexer::refresh`].
    pub fn refresh_index(&mut self) -> Result<()> {
        self.indexer()?.refresh()
    }

    /// Makes the index of embeddings anew.
    pub fn rebuild_index(&mut self) -> Result<()> {
        self.delete_index()?;
        self.refresh_index()
    }
}

impl Indexer {
    /// Brings the index of embeddings in line with the record: files that are damaged or of another
    /// state are made anew, so are those of which half is no longer kept, and new rows are added once
    /// there are enough of them. Search gives the same without; it only takes longer.
    pub fn refresh(&mut self) -> Result<()> {
        let mut kept = Vec::new();
        for of in Embedded::ALL {
            kept.extend(self.refresh_parts(of)?);
        }
        self.index.keep_only(&kept)?;
        self.known.retain(|path, _| kept.contains(path));
        Ok(())
    }

    /// The paths of the parts that are there now.
    fn refresh_parts(&mut self, of: Embedded) -> Result<Vec<PathBuf>> {
        let Indexer { index, record, known, .. } = self;
        record.read(|sql| {
            let Some(recipe) = rows::current_recipe(sql, of.recipe())? else {
                return Ok(Vec::new());
            };
            let Some(origin) = origin(sql, of, &recipe)? else { return Ok(Vec::new()) };
            let recipe = recipe.key;
            let mut work = Work { sql, index, known, of, origin, recipe };
            let parts = work.there()?;
            let parts = work.thinned(parts)?;
            let parts = work.extended(parts)?;
            Ok(parts.iter().map(|part| index.path(of, part.range.after)).collect())
        })
    }
}

/// The work on one table's parts, in one state of the record.
struct Work<'a> {
    sql: &'a Connection,
    index: &'a Index,
    known: &'a mut HashMap<PathBuf, (Origin, Stretch)>,
    of: Embedded,
    origin: Origin,
    recipe: i64,
}

impl Work<'_> {
    /// The parts that are good, as far as they follow each other.
    fn there(&mut self) -> Result<Vec<Stretch>> {
        let (origin, known) = (&self.origin, &mut *self.known);
        let open = |path: &Path| {
            if let Some((of, stretch)) = known.get(path)
                && of == origin
                && path.exists()
            {
                return Ok((stretch.range, *stretch));
            }
            let part = Part::open(path, origin)?;
            part.verify()?;
            let stretch = Stretch { range: part.range, rows: part.rows.len() };
            known.insert(path.to_owned(), (*origin, stretch));
            Ok((part.range, stretch))
        };
        let (parts, damage) = self.index.follow(self.sql, self.of, open)?;
        if let Some(error) = damage {
            tracing::warn!("{error}: it is made anew");
        }
        Ok(parts)
    }

    /// Makes those anew of which half or less is kept, together with those that follow where there is room.
    /// The oldest rows come first, so behind a part of which all is kept, all is.
    fn thinned(&mut self, parts: Vec<Stretch>) -> Result<Vec<Stretch>> {
        let kept = KeptFrom::read(self.sql)?;
        let full = part::full(self.origin.dimension);
        let mut thinned = Vec::with_capacity(parts.len());
        let mut parts = parts.into_iter().peekable();
        let mut is_all_kept = kept.is_everything();
        while let Some(part) = parts.next() {
            let rows = if is_all_kept { part.rows } else { self.count(part, &kept)? };
            is_all_kept |= rows == part.rows;
            if rows * 2 > part.rows {
                thinned.push(part);
                continue;
            }
            let (mut range, mut rows) = (part.range, rows);
            // Where nothing is kept of it, the next one always fits: the parts go on following each other.
            while let Some(next) = parts.peek() {
                let more = self.count(*next, &kept)?;
                if rows + more > full {
                    break;
                }
                is_all_kept |= more == next.rows;
                range.through = next.range.through;
                rows += more;
                parts.next();
            }
            thinned.extend(self.make(range, full)?);
        }
        Ok(thinned)
    }

    /// How many rows of a part are kept.
    fn count(&self, part: Stretch, kept: &KeptFrom) -> Result<usize> {
        let part = Part::open(&self.index.path(self.of, part.range.after), &self.origin)?;
        Ok(part.rows.iter().filter(|row| kept.keeps(row.source, row.span.start)).count())
    }

    /// Adds what is newer, where that is enough; a part that is not full takes what it has room for.
    fn extended(&mut self, mut parts: Vec<Stretch>) -> Result<Vec<Stretch>> {
        let full = part::full(self.origin.dimension);
        let mut after = parts.last().map_or(0, |part| part.range.through);
        if !is_enough(self.sql, self.of, self.recipe, after)? {
            return Ok(parts);
        }
        if let Some(short) = parts.pop_if(|part| part.rows < full) {
            after = short.range.after;
        }
        while is_enough(self.sql, self.of, self.recipe, after)? {
            let Some(made) = self.make(KeyRange { after, through: i64::MAX }, full)? else { break };
            after = made.range.through;
            parts.push(made);
        }
        Ok(parts)
    }

    /// Makes a part of at most `most` rows; `None` where there are none. One that is to reach to no certain
    /// key reaches to its last row.
    fn make(&mut self, range: KeyRange, most: usize) -> Result<Option<Stretch>> {
        let which = RowsAfter {
            recipe: self.recipe,
            dimension: self.origin.dimension,
            after: range.after,
            through: range.through,
        };
        let mut columns = Columns::default();
        let last = read_rows(self.sql, self.of, &which, most, &mut columns)?;
        if columns.rows.is_empty() {
            return Ok(None);
        }
        let through = if range.through == i64::MAX { last } else { range.through };
        let range = KeyRange { after: range.after, through };
        let path = self.index.path(self.of, range.after);
        let folder = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder)
            .map_err(|cause| Error::io(folder, "make the folder", cause))?;
        part::write(&path, &self.origin, range, &columns)?;
        let stretch = Stretch { range, rows: columns.rows.len() };
        self.known.insert(path, (self.origin, stretch));
        Ok(Some(stretch))
    }
}
