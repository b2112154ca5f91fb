//! Mending a library: what is derived is made anew, and where the record itself is damaged, every
//! row that can be read goes into a new one beside it.
//!
//! The damaged files are only read, and kept under another name when the new ones take their place.

mod holes;
mod left;
mod salvage;
mod settle;
mod swap;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde::Serialize;

use super::check::{Fault, Finding, Step, Watch, check_locked};
use super::commit_point;
use super::digest::THUMBNAILS;
use super::ids::SourceId;
use super::lock::lock;
use super::rows;
use super::schema::{FEATURES, OF_CLIPS, RECORD};
use super::writer::Writer;
use crate::error::{Error, Result};

pub(super) use swap::{DAMAGED, NEW, REBUILT, finish_swaps, is_unfinished, remove_damaged};

/// What [`rebuild`] did.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Rebuilt {
    /// What was wrong before.
    pub findings: Vec<Finding>,
    /// Rows that were saved from a damaged record; 0 where it was not damaged.
    pub saved: u64,
    /// Rows among them that are not what was written, and are kept as they read.
    pub doubtful: u64,
    /// Rows that named what is lost, and went with it.
    pub dropped: u64,
    /// Sources of which something was lost.
    pub sources: Vec<ToRead>,
    /// The damaged files, as they are named now. They may go when nothing in them is missed.
    pub kept: Vec<String>,
}

/// A source of which something was lost, which the next `index` reads again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ToRead {
    pub source: SourceId,
    pub name: String,
    /// What was lost of a live source can't be read again: it is a gap.
    pub is_live: bool,
    /// Chunks of which something was lost, of all recipes.
    pub chunks: u64,
    /// Clips that are gone.
    pub clips: u64,
    /// Cues that are gone.
    pub cues: u64,
}

/// Mends every derived part of the library in `folder`, and saves what can be saved of a damaged
/// record. Nothing that can be read is lost; an interruption at any point leaves a library that
/// this can be done to again.
///
/// Errors: `NotFound` where there is no library; `Unavailable` where another process writes to it;
/// `Unsupported` for another version's; `Exhausted` where the disk has no room for the new files;
/// `Corrupt` where nothing at all can be read: nothing is changed then.
pub fn rebuild(folder: &Path, watch: Watch<'_>) -> Result<Rebuilt> {
    let there = |name: &str| folder.join(name).exists();
    if !there(RECORD.file_name) && !there(FEATURES.file_name) && !is_unfinished(folder)? {
        return Err(Error::not_found(format!("{} is not a library", folder.display())));
    }
    let lock = lock(folder)?;
    finish_swaps(folder)?;
    if !there(RECORD.file_name) {
        return Err(Error::corrupt(format!(
            "{} is missing: restore it from a copy; features alone name no sources",
            folder.join(RECORD.file_name).display()
        )));
    }
    std::fs::set_permissions(folder, Permissions::from_mode(0o700))
        .map_err(|cause| Error::io(folder, "set the permissions of", cause))?;
    let mut rebuilt = Rebuilt { findings: check_locked(folder, watch)?, ..Rebuilt::default() };
    if rebuilt.findings.iter().any(|finding| finding.fault.is_damage()) {
        save(folder, &mut rebuilt, watch)?;
    }
    // All of it is derived, and made anew by the writer.
    let index = folder.join("index");
    if index.exists() {
        std::fs::remove_dir_all(&index).map_err(|cause| Error::io(&index, "delete", cause))?;
    }
    let mut writer = Writer::open_locked(folder, lock)?;
    writer.mend_derived()?;
    writer.rebuild_index()?;
    commit_point::reached("rebuild-mended");
    let left = check_locked(folder, watch)?;
    if let Some(finding) = left.iter().find(|finding| finding.fault.is_damage()) {
        return Err(Error::internal(format!(
            "the library is still damaged ({}: {}); the damaged files are kept beside it",
            finding.place, finding.detail
        )));
    }
    Ok(rebuilt)
}

/// Writes what can be read into new files, and puts them in the places of the damaged ones.
fn save(folder: &Path, rebuilt: &mut Rebuilt, watch: Watch<'_>) -> Result<()> {
    let of_features = |finding: &Finding| {
        finding.place == FEATURES.file_name
            || finding.place == THUMBNAILS.name
            || finding.fault == Fault::FeaturesLost
    };
    let features_too = rebuilt.findings.iter().any(of_features);
    let made = (|| {
        let mut record = salvage::record(folder, rebuilt, watch)?;
        commit_point::reached("rebuild-record-saved");
        let features = salvage::features(folder, &mut record, features_too, watch)?;
        rebuilt.sources = settle::settle(&mut record, &features)?;
        record.empty_log()?;
        drop((record, features));
        commit_point::reached("rebuild-settled");
        swap::take_places(folder, features_too)
    })();
    if made.is_err() {
        // A full disk must not stay full.
        swap::remove_new(folder)?;
    }
    rebuilt.kept = made?;
    Ok(())
}

impl Writer {
    /// Makes the indexes of words anew, and deletes features and thumbnails that belong to no clip.
    fn mend_derived(&mut self) -> Result<()> {
        self.record.write(|sql| {
            sql.execute("INSERT INTO spoken (spoken) VALUES ('rebuild')", [])?;
            sql.execute("INSERT INTO written (written) VALUES ('rebuild')", [])?;
            Ok(())
        })?;
        for table in OF_CLIPS {
            let all: Vec<(i64, i64, i64, i64)> = self.features.read(|sql| {
                let find = format!("SELECT rowid, source, recipe, start_us FROM {table}");
                rows::all(sql, &find, [], |row| {
                    Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
                })
            })?;
            let alone = self.record.read(|sql| {
                let mut find = sql.prepare(
                    "SELECT 1 FROM clips WHERE source = ?1 AND recipe = ?2 AND start_us = ?3",
                )?;
                let mut alone = Vec::new();
                for (row, source, recipe, start_us) in all {
                    if !find.exists((source, recipe, start_us))? {
                        alone.push(row);
                    }
                }
                Ok(alone)
            })?;
            self.features.write(|sql| {
                let mut delete = sql.prepare(&format!("DELETE FROM {table} WHERE rowid = ?1"))?;
                for row in alone {
                    delete.execute([row])?;
                }
                Ok(())
            })?;
        }
        self.features.empty_log()?;
        self.record.empty_log()?;
        Ok(())
    }
}

/// Tells how far a step is.
fn at(watch: Watch<'_>, name: &'static str, done: u32, of: u32) -> Result<()> {
    watch(Step { name, done: u64::from(done), of: u64::from(of) })
}
