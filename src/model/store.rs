//! The cache folder: where model files lie, how they get there whole, and how they are known to be
//! what their manifest says.
//!
//! Beside each file lies a record of its hash, size and time of change. A file whose size and time
//! match its record is not hashed again when it is loaded.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use crate::error::{Error, Kind, Result};

#[derive(Debug, Clone)]
pub(super) struct Store {
    folder: PathBuf,
}

/// What a file was when it was last hashed.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// Of the file itself, which for a user's own manifest lies elsewhere than the record.
    path: PathBuf,
    sha256: String,
    bytes: u64,
    modified_nanos: u128,
}

impl Store {
    pub(super) fn at(folder: PathBuf) -> Store {
        Store { folder }
    }

    /// `$CINELEX_CACHE`, else `$XDG_CACHE_HOME/cinelex`, else `~/.cache/cinelex`.
    pub(super) fn open() -> Result<Store> {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let folder = set("CINELEX_CACHE")
            .map(PathBuf::from)
            .or_else(|| set("XDG_CACHE_HOME").map(|home| Path::new(&home).join("cinelex")))
            .or_else(|| set("HOME").map(|home| Path::new(&home).join(".cache/cinelex")))
            .ok_or_else(|| {
                Error::not_found("there is no cache folder: set CINELEX_CACHE to one")
            })?;
        let folder = std::path::absolute(&folder)
            .map_err(|cause| Error::io(&folder, "find the cache folder", cause))?;
        Ok(Store { folder })
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The folder of one model's files.
    pub(super) fn model_folder(&self, name: &str) -> PathBuf {
        self.folder.join("models").join(name)
    }

    /// Waits until no other process is fetching or converting this model, and keeps others
    /// waiting until the file is dropped.
    pub(super) fn lock(&self, model_folder: &Path) -> Result<File> {
        create_folder(model_folder)?;
        let path = model_folder.join(".lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|cause| Error::io(&path, "open", cause))?;
        file.lock().map_err(|cause| Error::io(&path, "lock", cause))?;
        Ok(file)
    }

    /// A folder for downloads, removed when dropped.
    pub(super) fn scratch(&self) -> Result<tempfile::TempDir> {
        create_folder(&self.folder)?;
        tempfile::Builder::new()
            .prefix("download-")
            .tempdir_in(&self.folder)
            .map_err(|cause| Error::io(&self.folder, "write to the cache folder", cause))
    }

    /// Copies `content`, which must have this hash and size, to `path`: all of it or nothing.
    /// `on_bytes` hears of each part.
    pub(super) fn install(
        &self,
        mut content: impl Read,
        path: &Path,
        expected: Expected<'_>,
        on_bytes: &mut dyn FnMut(u64),
    ) -> Result<()> {
        let folder = path.parent().unwrap_or(&self.folder);
        create_folder(folder)?;
        let writing = |cause| Error::io(path, "write", cause);
        let mut file = NamedTempFile::new_in(folder).map_err(writing)?;
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 1 << 16];
        let mut bytes = 0;
        loop {
            let count = match content.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => continue,
                Err(cause) => {
                    return Err(Error::unavailable(format!("cannot fetch {}", path.display()))
                        .caused_by(cause));
                }
            };
            bytes += count as u64;
            if bytes > expected.bytes {
                break;
            }
            hash.update(&buffer[..count]);
            file.write_all(&buffer[..count]).map_err(writing)?;
            on_bytes(count as u64);
        }
        if bytes != expected.bytes {
            let found = if bytes > expected.bytes { "more" } else { "less" };
            return Err(Error::corrupt(format!(
                "what was fetched for {} has {found} than the {} bytes that its manifest states; \
                 it was not kept",
                path.display(),
                expected.bytes
            )));
        }
        let found = hex(&hash.finalize());
        if found != expected.sha256 {
            return Err(hash_differs(path, expected.sha256, &found));
        }
        persist(file, path)?;
        write_record(path, &record_path(path), &found)
    }

    /// Writes a file that this program made: all of it or nothing.
    pub(super) fn write(&self, path: &Path, content: &[u8]) -> Result<()> {
        let sha256 = hex(&Sha256::digest(content));
        let expected = Expected { sha256: &sha256, bytes: content.len() as u64 };
        self.install(content, path, expected, &mut |_| ())
    }

    /// Makes sure that `path` has the expected hash. `record` is where what was found is noted.
    /// With `again`, hashes it even if size and time have not changed.
    ///
    /// # Errors
    /// `NotFound` where there is no such file; `Corrupt` where the hash differs.
    pub(super) fn verify(
        &self,
        path: &Path,
        record: &Path,
        expected: &str,
        again: bool,
    ) -> Result<()> {
        let (bytes, modified_nanos) = size_and_time(path)?;
        let now = Record { path: path.into(), sha256: expected.to_owned(), bytes, modified_nanos };
        if !again && read_record(record).is_some_and(|known| known == now) {
            return Ok(());
        }
        let found = hash_file(path)?;
        if found != expected {
            return Err(hash_differs(path, expected, &found));
        }
        if let Some(folder) = record.parent() {
            create_folder(folder)?;
        }
        write_record(path, record, &found)
    }

    /// As [`Store::verify`], for a file that was made here: its own record has its hash.
    pub(super) fn verify_made(&self, path: &Path, again: bool) -> Result<()> {
        let record = record_path(path);
        let known = read_record(&record)
            .ok_or_else(|| Error::not_found(format!("{} is not there", path.display())))?;
        self.verify(path, &record, &known.sha256, again)
    }
}

/// Hash and size of a file, as stated.
#[derive(Debug, Clone, Copy)]
pub(super) struct Expected<'a> {
    pub(super) sha256: &'a str,
    pub(super) bytes: u64,
}

/// Where the record of a file of the cache lies.
pub(super) fn record_path(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".record.json");
    path.with_file_name(name)
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn hash_differs(path: &Path, expected: &str, found: &str) -> Error {
    Error::corrupt(format!(
        "{} is not the file that its manifest names: expected SHA-256 {expected}, found {found}; \
         delete it and run `cinelex setup`, or correct the manifest",
        path.display()
    ))
}

fn create_folder(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(|cause| Error::io(folder, "create", cause))
}

/// Makes a finished temporary file durable under its name.
fn persist(file: NamedTempFile, path: &Path) -> Result<()> {
    let writing = |cause| Error::io(path, "write", cause);
    file.as_file().sync_all().map_err(writing)?;
    file.persist(path).map_err(|error| writing(error.error))?;
    let folder = path.parent().unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(writing)
}

fn size_and_time(path: &Path) -> Result<(u64, u128)> {
    let reading = |cause| Error::io(path, "read", cause);
    let metadata = fs::metadata(path).map_err(reading)?;
    let modified = metadata.modified().map_err(reading)?;
    let nanos = modified.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    Ok((metadata.len(), nanos))
}

/// `None` also for a damaged record: the file is hashed again then.
fn read_record(path: &Path) -> Option<Record> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn write_record(path: &Path, record: &Path, sha256: &str) -> Result<()> {
    let (bytes, modified_nanos) = size_and_time(path)?;
    let content = Record { path: path.into(), sha256: sha256.to_owned(), bytes, modified_nanos };
    let json = serde_json::to_vec(&content)
        .map_err(|cause| Error::internal("cannot write a record").caused_by(cause))?;
    let folder = record.parent().unwrap_or(Path::new("."));
    let writing = |cause| Error::io(record, "write", cause);
    let mut file = NamedTempFile::new_in(folder).map_err(writing)?;
    file.write_all(&json).map_err(writing)?;
    file.persist(record).map_err(|error| writing(error.error))?;
    Ok(())
}

fn hash_file(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(|cause| Error::io(path, "open", cause))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hex(&hash.finalize())),
            Ok(count) => hash.update(&buffer[..count]),
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => (),
            Err(cause) => return Err(Error::io(path, "read", cause)),
        }
    }
}

/// What a file of a model is found to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state", content = "reason")]
pub enum FileState {
    Present,
    Missing,
    /// Its hash differs, or it cannot be read; the reason.
    Damaged(String),
}

impl From<Result<()>> for FileState {
    fn from(verified: Result<()>) -> FileState {
        match verified {
            Ok(()) => FileState::Present,
            Err(error) if error.kind() == Kind::NotFound => FileState::Missing,
            Err(error) => FileState::Damaged(error.to_string()),
        }
    }
}
