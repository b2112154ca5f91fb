//! The index of embeddings: files in `index/` that are derived from the record and may be deleted at
//! any time.
//!
//! Each table's files follow each other: the first covers the keys from 0, and each next one begins
//! where the one before ends. Readers use what fits the record's state that they see, and compare
//! the rest exactly; only the writer makes files, and removes those that don't fit.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rusqlite::Connection;

use super::part::{self, Columns, KeyRange, Origin, Part};
use super::reader::{Reader, folder_bytes};
use super::rows::{self, RecipeRow};
use super::types::RecipeKind;
use super::vectors::{RowsAfter, read_rows};
use super::writer::Writer;
use crate::error::{Error, Kind, Result};

const FOLDER: &str = "index";

/// Fewer rows than this are not worth a file: comparing them all takes a millisecond.
const LEAST_ROWS: usize = 8_192;

/// When the index last changed, `None` where there is none.
pub(super) type Stamp = Option<SystemTime>;

/// A library's index on disk.
#[derive(Debug)]
pub(super) struct Index {
    folder: PathBuf,
    /// The state that has shown itself damaged.
    damaged: Stamp,
}

/// A table that has embeddings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Embedded {
    Clips,
    Segments,
    Readings,
}

impl Embedded {
    const ALL: [Embedded; 3] = [Embedded::Clips, Embedded::Segments, Embedded::Readings];

    pub fn table(self) -> &'static str {
        match self {
            Embedded::Clips => "clips",
            Embedded::Segments => "segments",
            Embedded::Readings => "readings",
        }
    }

    /// What makes its rows.
    fn recipe(self) -> RecipeKind {
        match self {
            Embedded::Clips => RecipeKind::Clip,
            Embedded::Segments | Embedded::Readings => RecipeKind::Segment,
        }
    }

    /// What of `meta` counts up when rows of it go. Readings go with their segments.
    fn generation(self) -> &'static str {
        match self {
            Embedded::Clips => "clips_generation",
            Embedded::Segments | Embedded::Readings => "segments_generation",
        }
    }
}

/// What parts for the rows of `recipe` are made of, `None` where it makes no embeddings.
pub(super) fn origin(sql: &Connection, of: Embedded, recipe: &RecipeRow) -> Result<Option<Origin>> {
    let Some(space) = &recipe.recipe.space else { return Ok(None) };
    let library: String = rows::one(sql, "SELECT value FROM meta WHERE name = 'library_id'", [])?;
    let mut identity = blake3::Hasher::new();
    for field in [&library, of.table(), &recipe.recipe.id.to_string()] {
        identity.update(&(field.len() as u64).to_le_bytes()).update(field.as_bytes());
    }
    Ok(Some(Origin {
        identity: identity.finalize(),
        generation: rows::one(sql, "SELECT value FROM meta WHERE name = ?1", [of.generation()])?,
        dimension: space.dimension,
    }))
}

/// The bytes of a library's index.
pub(super) fn bytes(library: &Path) -> Result<u64> {
    let folder = library.join(FOLDER);
    if folder.is_dir() { folder_bytes(&folder) } else { Ok(0) }
}

impl Index {
    pub fn of(library: &Path) -> Self {
        Index { folder: library.join(FOLDER), damaged: None }
    }

    /// Changes whenever a file of the index comes or goes.
    pub fn stamp(&self) -> Stamp {
        let changed = std::fs::metadata(&self.folder).and_then(|folder| folder.modified()).ok();
        changed.filter(|_| changed != self.damaged)
    }

    /// Uses the index no more until it changes. False where it was not used.
    pub fn distrust(&mut self) -> bool {
        let stamp = self.stamp();
        self.damaged = stamp.or(self.damaged);
        stamp.is_some()
    }

    /// The parts that fit what `sql` sees, in order of key. What is damaged is left out with a
    /// warning.
    pub fn parts(&self, sql: &Connection, of: Embedded, origin: &Origin) -> Result<Vec<Part>> {
        if self.stamp().is_none() {
            return Ok(Vec::new());
        }
        let (parts, damage) = self.open_parts(sql, of, origin)?;
        if let Some(error) = damage {
            tracing::warn!(
                "{error}: it is searched without; `cinelex library rebuild`, or the next `index`, \
                 makes it anew"
            );
        }
        Ok(parts)
    }

    /// The parts as far as they follow each other, and the damage that ended them.
    fn open_parts(
        &self,
        sql: &Connection,
        of: Embedded,
        origin: &Origin,
    ) -> Result<(Vec<Part>, Option<Error>)> {
        // A part may be newer than what `sql` sees.
        let last = format!("SELECT coalesce(max(key), 0) FROM {}", of.table());
        let last: i64 = rows::one(sql, &last, [])?;
        let mut parts: Vec<Part> = Vec::new();
        let mut damage = None;
        loop {
            let after = parts.last().map_or(0, |part| part.range.through);
            match Part::open(&self.path(of, after), origin) {
                Ok(part) if part.range.after != after || part.range.through <= after => {
                    damage = Some(
                        Error::corrupt("is not what its name says")
                            .in_source(self.path(of, after).display()),
                    );
                }
                Ok(part) if part.range.through <= last => {
                    parts.push(part);
                    continue;
                }
                Ok(_) => {}
                Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Unsupported) => {}
                Err(error) => damage = Some(error),
            }
            return Ok((parts, damage));
        }
    }

    fn path(&self, of: Embedded, after: i64) -> PathBuf {
        self.folder.join(format!("{}-{after:012}.part", of.table()))
    }

    /// Deletes every file but the parts that are named.
    fn keep_only(&self, kept: &[PathBuf]) -> Result<()> {
        let failed = |cause| Error::io(&self.folder, "delete files of", cause);
        let entries = match std::fs::read_dir(&self.folder) {
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(failed)?,
        };
        for entry in entries {
            let path = entry.map_err(failed)?.path();
            if !kept.contains(&path) {
                std::fs::remove_file(&path).map_err(|cause| Error::io(&path, "delete", cause))?;
            }
        }
        Ok(())
    }
}

impl Writer {
    /// Brings the index of embeddings in line with the record: files that are damaged or of another
    /// state are made anew, and new rows are added once there are enough of them. Search gives
    /// the same without; it only takes longer.
    pub fn refresh_index(&mut self) -> Result<()> {
        let index = Index::of(&self.folder);
        let mut kept = Vec::new();
        for of in Embedded::ALL {
            kept.extend(self.refresh_parts(&index, of)?);
        }
        index.keep_only(&kept)
    }

    /// Whether search uses the index for all that is worth it, as far as its headers tell.
    pub fn index_is_complete(&self) -> Result<bool> {
        let index = Index::of(&self.folder);
        self.record.read(|sql| {
            for of in Embedded::ALL {
                let Some(recipe) = rows::current_recipe(sql, of.recipe())? else { continue };
                let Some(origin) = origin(sql, of, &recipe)? else { continue };
                let (parts, damage) = index.open_parts(sql, of, &origin)?;
                let after = parts.last().map_or(0, |part| part.range.through);
                let find = format!(
                    "SELECT count(*) FROM (SELECT 1 FROM {} WHERE recipe = ?1 AND key > ?2 \
                     AND embedding IS NOT NULL LIMIT {LEAST_ROWS})",
                    of.table()
                );
                let newer: u64 = rows::one(sql, &find, [recipe.key, after])?;
                if damage.is_some() || newer >= LEAST_ROWS as u64 {
                    return Ok(false);
                }
            }
            Ok(true)
        })
    }

    /// Makes the index of embeddings anew.
    pub fn rebuild_index(&mut self) -> Result<()> {
        self.delete_index()?;
        self.refresh_index()
    }

    pub(super) fn delete_index(&self) -> Result<()> {
        Index::of(&self.folder).keep_only(&[])
    }

    /// The paths of the parts that are there now.
    fn refresh_parts(&self, index: &Index, of: Embedded) -> Result<Vec<PathBuf>> {
        self.record.read(|sql| {
            let Some(recipe) = rows::current_recipe(sql, of.recipe())? else {
                return Ok(Vec::new());
            };
            let Some(origin) = origin(sql, of, &recipe)? else { return Ok(Vec::new()) };
            let full = part::full(origin.dimension);
            let (mut parts, damage) = index.open_parts(sql, of, &origin)?;
            if let Some(error) = damage {
                tracing::warn!("{error}: it is made anew");
            }
            if let Some(damaged) = parts.iter().position(|part| {
                part.verify()
                    .inspect_err(|error| tracing::warn!("{error}: it is made anew"))
                    .is_err()
            }) {
                parts.truncate(damaged);
            }
            let mut rows_after = RowsAfter {
                recipe: recipe.key,
                dimension: origin.dimension,
                after: parts.last().map_or(0, |part| part.range.through),
            };
            let mut columns = Columns::default();
            read_rows(sql, of, &rows_after, LEAST_ROWS, &mut columns)?;
            if columns.rows.len() == LEAST_ROWS
                && let Some(short) = parts.pop_if(|part| part.rows.len() < full)
            {
                rows_after.after = short.range.after;
            }
            let mut kept: Vec<PathBuf> =
                parts.iter().map(|part| index.path(of, part.range.after)).collect();
            while columns.rows.len() == LEAST_ROWS {
                columns = Columns::default();
                let through = read_rows(sql, of, &rows_after, full, &mut columns)?;
                let path = index.path(of, rows_after.after);
                let range = KeyRange { after: rows_after.after, through };
                std::fs::create_dir_all(&index.folder)
                    .map_err(|cause| Error::io(&index.folder, "make the folder", cause))?;
                part::write(&path, &origin, range, &columns)?;
                kept.push(path);
                rows_after.after = through;
                columns = Columns::default();
                read_rows(sql, of, &rows_after, LEAST_ROWS, &mut columns)?;
            }
            Ok(kept)
        })
    }
}

impl Reader {
    /// What is wrong with the index of embeddings. That it lacks new rows is not.
    pub fn check_index(&self) -> Result<Vec<Error>> {
        let index = Index::of(self.folder());
        self.record.read(|sql| {
            let mut findings = Vec::new();
            for of in Embedded::ALL {
                let Some(recipe) = rows::current_recipe(sql, of.recipe())? else { continue };
                let Some(origin) = origin(sql, of, &recipe)? else { continue };
                let (parts, damage) = index.open_parts(sql, of, &origin)?;
                findings.extend(damage);
                for part in parts {
                    if let Err(error) = part.verify() {
                        findings.push(error);
                        continue;
                    }
                    let rows_after = RowsAfter {
                        recipe: recipe.key,
                        dimension: origin.dimension,
                        after: part.range.after,
                    };
                    let mut columns = Columns::default();
                    let through = read_rows(sql, of, &rows_after, part.rows.len(), &mut columns)?;
                    if through != part.range.through || !part.holds(&columns) {
                        let path = index.path(of, part.range.after);
                        findings.push(
                            Error::corrupt("holds other rows than the record")
                                .in_source(path.display()),
                        );
                    }
                }
            }
            Ok(findings)
        })
    }
}
