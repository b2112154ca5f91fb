//! The folder itself: who may enter it, and what lies in it.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::{Fault, Findings};
use crate::error::{Error, Result};
use crate::library::lock::LOCK_FILE;
use crate::library::rebuild::{DAMAGED, NEW, REBUILT};
use crate::library::recordings;
use crate::library::schema::{FEATURES, RECORD};

/// The folder of derived indexes.
const INDEX_FOLDER: &str = "index";

pub(super) fn look(folder: &Path, findings: &mut Findings<'_>) -> Result<()> {
    let failed = |cause| Error::io(folder, "read the folder", cause);
    let mode = std::fs::metadata(folder).map_err(failed)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        findings.add(
            Fault::Open,
            ".",
            1,
            format!("has mode {mode:04o}, so that others may enter: chmod 700 it"),
        );
    }
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .map_err(failed)?
        .map(|entry| Ok(entry.map_err(failed)?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    names.sort();
    for name in names {
        let of_sqlite = [RECORD, FEATURES].iter().any(|role| {
            let rest = name.strip_prefix(role.file_name);
            rest.is_some_and(|rest| matches!(rest, "" | "-wal" | "-shm"))
        });
        let marked = |mark: &str| {
            [RECORD, FEATURES].iter().any(|role| {
                name.strip_prefix(role.file_name).is_some_and(|rest| rest.starts_with(mark))
            })
        };
        if of_sqlite || [LOCK_FILE, INDEX_FOLDER, recordings::FOLDER].contains(&&*name) {
            continue;
        } else if marked(REBUILT) || marked(NEW) {
            findings.add(Fault::Unfinished, &name, 1, "a rebuild was interrupted");
        } else if !marked(DAMAGED) {
            findings.add(Fault::StrayFile, &name, 1, "is no part of a library: move it elsewhere");
        }
    }
    Ok(())
}
