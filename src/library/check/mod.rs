//! Checking a library: every inconsistency that can be found, without writing anything.
//!
//! What an interruption may leave, and the next writer or `index` puts right by itself, is told as
//! unfinished and is no damage.

mod counts;
mod folder;
mod rows;
mod thumbnails;
mod words;

use std::path::Path;

use rusqlite::Transaction;
use serde::Serialize;

use super::digest::{TABLES, THUMBNAILS};
use super::lock::lock_to_look;
use super::reader::Reader;
use super::schema::{Database, FEATURES, RECORD, Role, SCHEMA_VERSION};
use crate::error::{Error, Kind, Result};

/// What is inconsistent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// A file of the library is not there.
    MissingFile,
    /// A file, or a part of it, cannot be read.
    Unreadable,
    /// SQLite finds its own structures broken.
    Pages,
    /// Rows refer to rows that are not there.
    References,
    /// Rows are not what was written.
    Changed,
    /// A column holds what no writer writes.
    Values,
    /// Clips without features, or with other features than theirs.
    FeaturesLost,
    /// Features or thumbnails that belong to no clip.
    FeaturesAlone,
    /// Clips without the thumbnail that they had.
    ThumbnailsLost,
    /// Counts that do not fit the rows that they count.
    Counts,
    /// Clips, segments or chunks that overlap, or leave out what they should hold.
    Spans,
    /// A source or recipe is not as far as it says.
    State,
    /// The index of words does not fit the cues.
    Words,
    /// The index of embeddings is damaged or does not fit them.
    Index,
    /// A file that is no part of a library.
    StrayFile,
    /// Others than the owner may enter the folder.
    Open,
    /// Something that was begun and not ended.
    Unfinished,
}

impl Fault {
    pub fn as_str(self) -> &'static str {
        match self {
            Fault::MissingFile => "missing file",
            Fault::Unreadable => "unreadable",
            Fault::Pages => "broken pages",
            Fault::References => "references to nothing",
            Fault::Changed => "changed rows",
            Fault::Values => "impossible values",
            Fault::FeaturesLost => "lost features",
            Fault::FeaturesAlone => "features of no clip",
            Fault::ThumbnailsLost => "lost thumbnails",
            Fault::Counts => "wrong counts",
            Fault::Spans => "wrong spans",
            Fault::State => "wrong state",
            Fault::Words => "word index",
            Fault::Index => "search index",
            Fault::StrayFile => "stray file",
            Fault::Open => "open to others",
            Fault::Unfinished => "unfinished",
        }
    }

    /// Whether the record itself is damaged, so that it must be written anew.
    pub(super) fn is_damage(self) -> bool {
        !matches!(
            self,
            Fault::FeaturesAlone
                | Fault::Words
                | Fault::Index
                | Fault::StrayFile
                | Fault::Open
                | Fault::Unfinished
        )
    }
}

/// What puts a fault right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Remedy {
    /// `cinelex library rebuild`.
    Rebuild,
    /// The next `cinelex index`, by itself.
    Index,
    /// The user.
    Hand,
}

impl Remedy {
    pub fn as_str(self) -> &'static str {
        match self {
            Remedy::Rebuild => "cinelex library rebuild",
            Remedy::Index => "the next index",
            Remedy::Hand => "you",
        }
    }
}

/// One inconsistency, or several of a kind at one place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub fault: Fault,
    /// A file or a table of one.
    pub place: String,
    pub count: u64,
    /// What it is, by the first.
    pub detail: String,
    pub remedy: Remedy,
}

/// How far a check is.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    pub name: &'static str,
    /// Rows looked at, of as many.
    pub done: u64,
    pub of: u64,
}

/// Told how far a check is; an error from it ends the check.
pub type Watch<'a> = &'a mut dyn FnMut(Step) -> Result<()>;

/// Finds every inconsistency of the library in `folder`. Nothing is written, and no writer is let
/// in meanwhile.
///
/// Errors: `NotFound` where there is no library; `Unavailable` where another process writes to it
/// or the system lets it not be read; `Unsupported` for another version's.
pub fn check(folder: &Path, watch: Watch<'_>) -> Result<Vec<Finding>> {
    let there = |role: Role| folder.join(role.file_name).exists();
    if !there(RECORD) && !there(FEATURES) {
        return Err(Error::not_found(format!(
            "{} is not a library: {} is missing",
            folder.display(),
            RECORD.file_name
        )));
    }
    let _lock = lock_to_look(folder)?;
    check_locked(folder, watch)
}

/// As [`check`], for whoever holds the folder's lock.
pub(super) fn check_locked(folder: &Path, watch: Watch<'_>) -> Result<Vec<Finding>> {
    let mut findings = Findings { list: Vec::new(), watch };
    folder::look(folder, &mut findings)?;
    let features = findings.open(folder, FEATURES)?;
    if !Database::has_content(folder, RECORD)
        && let Some(features) = &features
        && features.read(|sql| super::rows::one::<u64>(sql, "SELECT count(*) FROM features", []))?
            == 0
    {
        findings.add(Fault::Unfinished, RECORD.file_name, 1, "making the library was cut off");
        return Ok(findings.list);
    }
    let record = findings.open(folder, RECORD)?;
    if let Some(record) = &record {
        if record.version()? != SCHEMA_VERSION {
            return Err(Error::unsupported(format!(
                "is of schema version {}, which only `cinelex index` brings to version \
                 {SCHEMA_VERSION}; index anything into it, then check it",
                record.version()?
            ))
            .in_source(record.path.display()));
        }
        findings.part(RECORD.file_name, |findings| {
            record.read(|sql| {
                findings.step("pages", |findings| pages(sql, RECORD, findings))?;
                for table in TABLES {
                    findings.step(table.name, |findings| rows::digests(sql, table, findings))?;
                }
                findings.step("counts", |findings| counts::all(sql, findings))?;
                findings.step("words", |findings| words::compare(sql, findings))
            })
        })?;
    }
    if let Some(features) = &features {
        findings.part(FEATURES.file_name, |findings| {
            features.read(|sql| findings.step("pages", |findings| pages(sql, FEATURES, findings)))
        })?;
    }
    if let (Some(record), Some(features)) = (&record, &features) {
        findings.part(FEATURES.file_name, |findings| {
            if record.library_id()? != features.library_id()? {
                findings.add(
                    Fault::References,
                    FEATURES.file_name,
                    1,
                    "belongs to another library than the record",
                );
            }
            record.read(|sql| features.read(|features| rows::pairs(sql, features, findings)))
        })?;
        findings.step(THUMBNAILS.name, |findings| {
            record.read(|sql| features.read(|files| thumbnails::all(sql, files, findings)))
        })?;
        findings.part("index", |findings| {
            for error in Reader::open(folder)?.check_index()? {
                findings.add(Fault::Index, "index", 1, error.to_string());
            }
            Ok(())
        })?;
    }
    Ok(findings.list)
}

/// What was found so far.
struct Findings<'a> {
    list: Vec<Finding>,
    watch: Watch<'a>,
}

impl Findings<'_> {
    fn add(&mut self, fault: Fault, place: &str, count: u64, detail: impl Into<String>) {
        let remedy = match fault {
            Fault::StrayFile | Fault::Open => Remedy::Hand,
            Fault::Unfinished => Remedy::Index,
            _ => Remedy::Rebuild,
        };
        if count > 0 {
            let detail = detail.into();
            self.list.push(Finding { fault, place: place.to_owned(), count, detail, remedy });
        }
    }

    fn at(&mut self, name: &'static str, done: u64, of: u64) -> Result<()> {
        (self.watch)(Step { name, done, of })
    }

    /// Opens a file; one that is not there or no database is a finding.
    fn open(&mut self, folder: &Path, role: Role) -> Result<Option<Database>> {
        if !Database::has_content(folder, role) {
            self.add(Fault::MissingFile, role.file_name, 1, "is not there, or empty");
            return Ok(None);
        }
        match Database::open_to_read(folder, role) {
            Ok(database) => Ok(Some(database)),
            // A mark that is gone tells of damage, a version that is not known of a newer library.
            Err(error)
                if error.kind() == Kind::Corrupt
                    || (error.kind() == Kind::Unsupported
                        && !Database::is_marked(folder, role)) =>
            {
                self.add(Fault::Unreadable, role.file_name, 1, error.reason());
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Does a part of the check; where it cannot be done, since rows cannot be read, that is a
    /// finding, and the rest goes on.
    fn part(&mut self, place: &str, work: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        match work(self) {
            Err(error) if error.kind() == Kind::Cancelled => Err(error),
            Err(error) => {
                self.add(Fault::Unreadable, place, 1, error.reason());
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn step(
        &mut self,
        name: &'static str,
        work: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<()> {
        self.at(name, 0, 0)?;
        self.part(name, work)
    }
}

/// SQLite's own checks of a file.
fn pages(sql: &Transaction<'_>, role: Role, findings: &mut Findings<'_>) -> Result<()> {
    let mut check = sql.prepare("PRAGMA integrity_check(1000)")?;
    let mut found = check.query([])?;
    let (mut count, mut first) = (0, None);
    while let Some(row) = found.next()? {
        let line = row.get_ref(0)?.as_bytes().map_err(rusqlite::Error::from)?;
        let line = String::from_utf8_lossy(line).into_owned();
        if line != "ok" {
            count += 1;
            first.get_or_insert(line.trim_start_matches("*** in database main ***").trim().into());
        }
    }
    findings.add(Fault::Pages, role.file_name, count, first.unwrap_or_else(String::new));
    let mut check = sql.prepare("PRAGMA foreign_key_check")?;
    let mut found = check.query([])?;
    let (mut count, mut first) = (0, String::new());
    while let Some(row) = found.next()? {
        let (table, to): (String, String) = (row.get(0)?, row.get(2)?);
        count += 1;
        first = format!("a row of {table} refers to {to}");
    }
    findings.add(Fault::References, role.file_name, count, first);
    Ok(())
}
