//! A library's rows for other programs: JSON lines and Parquet, with vectors and visual words. One
//! description of each kind of row serves both.

mod lines;
mod parquet;
mod rows;

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use tempfile::NamedTempFile;

use crate::error::{Error, Result};
use crate::library::{Reader, Source};
use rows::{Cell, Column};

/// What a file's rows are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum What {
    Sources,
    Clips,
    Segments,
    Cues,
}

impl What {
    pub const ALL: [What; 4] = [What::Sources, What::Clips, What::Segments, What::Cues];

    pub fn as_str(self) -> &'static str {
        match self {
            What::Sources => "sources",
            What::Clips => "clips",
            What::Segments => "segments",
            What::Cues => "cues",
        }
    }

    /// The `kind` of a JSON line, and of a Parquet file in its metadata.
    fn kind(self) -> &'static str {
        match self {
            What::Sources => "source",
            What::Clips => "clip",
            What::Segments => "segment",
            What::Cues => "cue",
        }
    }
}

/// How a file's rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// A JSON object a line
    Jsonl,
    /// Apache Parquet, Snappy
    Parquet,
}

impl Format {
    /// The ending of a file's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Format::Jsonl => "jsonl",
            Format::Parquet => "parquet",
        }
    }
}

/// A file that was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Exported {
    pub what: What,
    pub file: PathBuf,
    pub rows: u64,
    pub bytes: u64,
}

/// Takes rows, in order; nothing is whole before [`Sheet::finish`].
trait Sheet {
    fn add(&mut self, row: Vec<Cell>) -> Result<()>;
    fn finish(self: Box<Self>) -> Result<()>;
}

/// Writes the rows of `sources` into a new file, row by row: memory does not grow with them. The
/// file has its name only when it is complete. `each` hears after every source how many are done
/// and how many rows were written, and stops the work with an error.
///
/// # Errors
/// `InvalidInput` where the file exists; those of the library, the disk, and `each`.
pub fn export(
    reader: &Reader,
    sources: &[Source],
    (what, format): (What, Format),
    file: &Path,
    each: &mut dyn FnMut(usize, u64) -> Result<()>,
) -> Result<Exported> {
    if file.exists() {
        return Err(Error::invalid_input(format!(
            "{} exists already: name a new one",
            file.display()
        )));
    }
    let folder = match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    // Beside it, so that it can be renamed; removed where this fails.
    let partial = tempfile::Builder::new()
        .prefix(".partial-")
        .tempfile_in(folder)
        .map_err(|cause| Error::io(file, "write", cause))?;
    let columns = rows::columns(what);
    let about = rows::about(reader, what)?;
    let out = partial.as_file();
    let mut sheet: Box<dyn Sheet + '_> = match format {
        Format::Jsonl => Box::new(lines::Lines::new(out, file, what.kind(), columns)),
        Format::Parquet => Box::new(parquet::Table::new(out, file, columns, about)?),
    };
    let mut rows = 0;
    for (place, source) in sources.iter().enumerate() {
        each(place, rows)?;
        rows::each(reader, source, what, &mut |row| {
            sheet.add(row)?;
            rows += 1;
            if rows.is_multiple_of(256) { each(place, rows) } else { Ok(()) }
        })?;
    }
    sheet.finish()?;
    each(sources.len(), rows)?;
    let bytes = keep(partial, file)?;
    Ok(Exported { what, file: file.to_owned(), rows, bytes })
}

/// Gives a complete file its name.
fn keep(partial: NamedTempFile, file: &Path) -> Result<u64> {
    let failed = |cause| Error::io(file, "write", cause);
    partial.as_file().flush().and_then(|()| partial.as_file().sync_all()).map_err(failed)?;
    let bytes = partial.as_file().metadata().map_err(failed)?.len();
    partial.persist_noclobber(file).map_err(|refused| failed(refused.error))?;
    Ok(bytes)
}
