//! The index of embeddings: files in `index/` that are derived from the record and may be deleted at
//! any time.
//!
//! Each table's files follow each other: the first covers the keys from 0, and each next one begins
//! where the one before ends. Readers use what fits the record's state that they see, and compare
//! the rest exactly; only the writer makes files, and removes those that don't fit.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rusqlite::Connection;

use super::keep::KeptFrom;
use super::part::{Columns, KeyRange, Origin, Part};
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
    pub const ALL: [Embedded; 3] = [Embedded::Clips, Embedded::Segments, Embedded::Readings];

    pub fn table(self) -> &'static str {
        match self {
            Embedded::Clips => "clips",
            Embedded::Segments => "segments",
            Embedded::Readings => "readings",
        }
    }

    /// What makes its rows.
    pub fn recipe(self) -> RecipeKind {
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

/// Whether there are so many rows above a key that they are worth a part.
pub(super) fn is_enough(sql: &Connection, of: Embedded, recipe: i64, after: i64) -> Result<bool> {
    let find = format!(
        "SELECT count(*) FROM (SELECT 1 FROM {} WHERE recipe = ?1 AND key > ?2 \
         AND embedding IS NOT NULL LIMIT {LEAST_ROWS})",
        of.table()
    );
    Ok(rows::one::<usize>(sql, &find, [recipe, after])? == LEAST_ROWS)
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
        self.follow(sql, of, |path| {
            let part = Part::open(path, origin)?;
            Ok((part.range, part))
        })
    }

    /// What `open` makes of the parts as far as they follow each other, and the damage that ended them.
    pub fn follow<T>(
        &self,
        sql: &Connection,
        of: Embedded,
        mut open: impl FnMut(&Path) -> Result<(KeyRange, T)>,
    ) -> Result<(Vec<T>, Option<Error>)> {
        // A part may be newer than what `sql` sees.
        let last = format!("SELECT coalesce(max(key), 0) FROM {}", of.table());
        let last: i64 = rows::one(sql, &last, [])?;
        let (mut parts, mut after) = (Vec::new(), 0);
        let mut damage = None;
        loop {
            match open(&self.path(of, after)) {
                Ok((range, _)) if range.after != after || range.through <= after => {
                    damage = Some(
                        Error::corrupt("is not what its name says")
                            .in_source(self.path(of, after).display()),
                    );
                }
                Ok((range, part)) if range.through <= last => {
                    parts.push(part);
                    after = range.through;
                    continue;
                }
                Ok(_) => {}
                Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Unsupported) => {}
                Err(error) => damage = Some(error),
            }
            return Ok((parts, damage));
        }
    }

    pub fn path(&self, of: Embedded, after: i64) -> PathBuf {
        self.folder.join(format!("{}-{after:012}.part", of.table()))
    }

    /// Deletes every file but the parts that are named.
    pub fn keep_only(&self, kept: &[PathBuf]) -> Result<()> {
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
    /// Whether search uses the index for all that is worth it, as far as its headers tell.
    pub fn index_is_complete(&self) -> Result<bool> {
        let index = Index::of(&self.folder);
        self.record.read(|sql| {
            for of in Embedded::ALL {
                let Some(recipe) = rows::current_recipe(sql, of.recipe())? else { continue };
                let Some(origin) = origin(sql, of, &recipe)? else { continue };
                let (parts, damage) = index.open_parts(sql, of, &origin)?;
                let after = parts.last().map_or(0, |part| part.range.through);
                if damage.is_some() || is_enough(sql, of, recipe.key, after)? {
                    return Ok(false);
                }
            }
            Ok(true)
        })
    }

    pub(super) fn delete_index(&self) -> Result<()> {
        Index::of(&self.folder).keep_only(&[])
    }
}

impl Reader {
    /// What is wrong with the index of embeddings. That it lacks new rows is not.
    pub fn check_index(&self) -> Result<Vec<Error>> {
        let index = Index::of(self.folder());
        self.record.read(|sql| {
            let mut findings = Vec::new();
            let kept = KeptFrom::read(sql)?;
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
                        through: part.range.through,
                    };
                    let mut columns = Columns::default();
                    read_rows(sql, of, &rows_after, part.rows.len() + 1, &mut columns)?;
                    if !part.holds(&columns, |row| kept.keeps(row.source, row.span.start)) {
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
