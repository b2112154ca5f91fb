//! The compressed streams of live sources, as they were received: files of about a minute beside the
//! record, each named after the instant of its first frame. What lies in a source's folder is all that
//! there is to know of them.

use std::collections::VecDeque;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::UNIX_EPOCH;

use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use super::commit_point;
use super::fragments::contents;
use super::ids::SourceId;
use super::reader::Reader;
use super::writer::Writer;
use crate::error::{Error, Result};
use crate::time::{Micros, Span, Timestamp};

/// The folder of all recordings in a library's.
pub(super) const FOLDER: &str = "recordings";
/// `2026-11-28T10-02-10.250Z.mp4`, in UTC: by name is by time.
const NAME: &str = "%Y-%m-%dT%H-%M-%S.%3fZ.mp4";
const READ_NAME: &str = "%Y-%m-%dT%H-%M-%S%.fZ.mp4";

/// The recordings of one live source.
#[derive(Debug, Clone)]
pub struct Recordings {
    folder: PathBuf,
    /// Of all recordings of the library, where somebody counts them.
    bytes: Arc<AtomicU64>,
}

impl Writer {
    /// Where recordings of a live source go.
    pub fn recordings(&mut self, source: SourceId) -> Result<Recordings> {
        let bytes = self.recorded_bytes()?;
        Ok(Recordings { bytes, ..Recordings::of(&self.folder, source) })
    }

    /// Bytes of all recordings. They are counted once, and kept up to date by whoever writes and deletes:
    /// a month of forty cameras is more than a million files.
    pub(super) fn recorded_bytes(&mut self) -> Result<Arc<AtomicU64>> {
        if let Some(bytes) = &self.recorded {
            return Ok(Arc::clone(bytes));
        }
        let mut bytes = 0;
        for folder in entries(&self.folder.join(FOLDER))? {
            for file in entries(&folder)? {
                bytes += std::fs::metadata(&file).map_or(0, |file| file.len());
            }
        }
        Ok(Arc::clone(self.recorded.insert(Arc::new(AtomicU64::new(bytes)))))
    }
}

impl Reader {
    /// What was recorded of a live source.
    pub fn recordings(&self, source: SourceId) -> Recordings {
        Recordings::of(self.folder(), source)
    }
}

/// One file of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recording {
    pub path: PathBuf,
    /// When its first frame was captured: media time, microseconds since 1970.
    pub start: Timestamp,
}

/// What there is of a span of media time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The files that have frames of it, the oldest first.
    pub files: Vec<Recording>,
    /// Where none has any.
    pub missing: Vec<Span>,
}

/// Frames that are further apart than this, and than [`FEW_FRAMES`] usual ones, have a hole between them.
const LEAST_HOLE: Micros = Micros::from_millis(300);
const FEW_FRAMES: i64 = 3;

impl Recording {
    /// The spans that its frames fill, and how far apart these usually are.
    fn held(&self) -> Result<(Vec<Span>, Micros)> {
        let failed = |cause| Error::io(&self.path, "read", cause);
        let found = match File::open(&self.path).and_then(contents) {
            // It was deleted since it was listed.
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            found => found.map_err(failed)?.fragments,
        };
        let (Some(first), Some(last)) = (found.first(), found.last()) else {
            return Ok((Vec::new(), Micros::ZERO));
        };
        let frames: i64 = found.iter().map(|fragment| i64::from(fragment.frames)).sum();
        let pace = Micros((last.end.0 - first.start.0) / frames.max(1));
        let at = |time: Micros| self.start + Micros(time.0 - first.start.0);
        let spans = found.iter().map(|fragment| Span::new(at(fragment.start), at(fragment.end)));
        Ok((spans.collect(), pace))
    }
}

impl Recordings {
    /// What there is of a span.
    pub fn hold(&self, span: Span) -> Result<Held> {
        let mut files = self.list()?;
        files.truncate(files.partition_point(|one| one.start < span.end));
        files.drain(..files.partition_point(|one| one.start <= span.start).saturating_sub(1));
        let mut held = Held { files: Vec::new(), missing: Vec::new() };
        let (mut up_to, mut least) = (span.start, LEAST_HOLE);
        for file in files {
            let (spans, pace) = file.held()?;
            least = least.max(Micros(pace.0 * FEW_FRAMES));
            let mut is_of_it = false;
            for part in spans.into_iter().filter(|part| part.overlaps(span)) {
                is_of_it = true;
                if part.start - up_to > least {
                    held.missing.push(Span::new(up_to, part.start));
                }
                up_to = up_to.max(part.end);
            }
            if is_of_it {
                held.files.push(file);
            }
        }
        if held.files.is_empty() || span.end - up_to > least {
            held.missing.push(Span::new(up_to, span.end));
        }
        Ok(held)
    }

    pub(super) fn of(library: &Path, source: SourceId) -> Self {
        let folder = library.join(FOLDER).join(source.to_string());
        Recordings { folder, bytes: Arc::default() }
    }

    /// All files, the oldest first; none where nothing was recorded. The last one may be growing.
    pub fn list(&self) -> Result<Vec<Recording>> {
        let mut found = Vec::new();
        for path in entries(&self.folder)? {
            if let Some(start) = path.file_name().and_then(|name| name.to_str()).and_then(start) {
                found.push(Recording { path, start });
            }
        }
        found.sort_by_key(|recording| recording.start);
        Ok(found)
    }

    /// A new file, whose first frame was captured at `start`.
    pub fn begin(&self, start: Timestamp) -> Result<RecordingFile> {
        let name = name(start).ok_or_else(|| Error::corrupt("a time that no clock shows"))?;
        let path = self.folder.join(name);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.folder);
        made.map_err(|cause| Error::io(&self.folder, "make", cause))?;
        let file = OpenOptions::new().append(true).create_new(true).mode(0o600).open(&path);
        let file = file.map_err(|cause| Error::io(&path, "make", cause))?;
        Ok(RecordingFile { file, path, length: 0, bytes: Arc::clone(&self.bytes) })
    }

    /// Deletes the files of which all was captured before `to`, out of a [list](Recordings::list) too, which is
    /// good for the next time: what was begun since is behind them.
    pub(super) fn delete_before(
        &self,
        to: Timestamp,
        files: &mut VecDeque<Recording>,
    ) -> Result<()> {
        while let Some(Recording { path, .. }) = files.front() {
            let failed = |cause| Error::io(path, "delete", cause);
            let file = match std::fs::metadata(path) {
                Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => {
                    files.pop_front();
                    continue;
                }
                file => file.map_err(failed)?,
            };
            // A file ends where the next begins, and the last one where it was written to last.
            let end = match files.get(1) {
                Some(next) => next.start,
                None => {
                    let written = file.modified().map_err(failed)?.duration_since(UNIX_EPOCH);
                    let micros = written.map_or(0, |since| since.as_micros());
                    Timestamp(i64::try_from(micros).unwrap_or(i64::MAX))
                }
            };
            if end > to {
                break;
            }
            std::fs::remove_file(path).map_err(failed)?;
            self.bytes.fetch_sub(file.len(), Ordering::Relaxed);
            files.pop_front();
        }
        Ok(())
    }

    /// Deletes all of them.
    pub(super) fn delete(&self) -> Result<()> {
        match std::fs::remove_dir_all(&self.folder) {
            Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io(&self.folder, "delete", cause))
            }
            _ => Ok(()),
        }
    }
}

/// A recording that grows. It may be read meanwhile, and whatever ends this process leaves what was
/// added; after a loss of power it is what the system has written by then, until it was finished.
#[derive(Debug)]
pub struct RecordingFile {
    file: File,
    path: PathBuf,
    length: u64,
    bytes: Arc<AtomicU64>,
}

impl RecordingFile {
    /// Adds all of `bytes`, or nothing. Returns how many these are.
    pub fn append(&mut self, bytes: &[u8]) -> Result<u64> {
        if let Err(cause) = self.file.write_all(bytes) {
            // Half a fragment would hide those behind it.
            let _ = self.file.set_len(self.length);
            return Err(Error::io(&self.path, "write", cause));
        }
        let added = bytes.len() as u64;
        self.length += added;
        self.bytes.fetch_add(added, Ordering::Relaxed);
        Ok(added)
    }

    /// Nothing more comes. When this returns, the file is durable; one without anything is none.
    pub fn finish(self) -> Result<()> {
        if self.length == 0 {
            let deleted = std::fs::remove_file(&self.path);
            return deleted.map_err(|cause| Error::io(&self.path, "delete", cause));
        }
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let synced = self.file.sync_all().and_then(|()| File::open(folder)?.sync_all());
        synced.map_err(|cause| Error::io(&self.path, "write", cause))?;
        commit_point::reached("recording-synced");
        Ok(())
    }
}

/// What lies in a folder; nothing where there is none.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = |cause| Error::io(folder, "read the folder", cause);
    match std::fs::read_dir(folder) {
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        entries => entries
            .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
            .map_err(failed),
    }
}

fn name(start: Timestamp) -> Option<String> {
    let at = jiff::Timestamp::from_microsecond(start.0).ok()?;
    Some(TimeZone::UTC.to_datetime(at).strftime(NAME).to_string())
}

fn start(name: &str) -> Option<Timestamp> {
    let at = DateTime::strptime(READ_NAME, name).ok()?;
    let at = TimeZone::UTC.to_timestamp(at).ok()?;
    Some(Timestamp(at.as_microsecond()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_the_instant_in_order_of_time() {
        let at = Timestamp(1_764_324_130_250_000);
        assert_eq!(name(at).as_deref(), Some("2025-11-28T10-02-10.250Z.mp4"));
        assert_eq!(start("2025-11-28T10-02-10.250Z.mp4"), Some(at));
        for other in ["notes.txt", "2025-11-28T10-02-10.mp4", "2025-13-28T10-02-10.250Z.mp4"] {
            assert_eq!(start(other), None, "{other}");
        }
        assert_eq!(name(Timestamp(i64::MAX)), None);
    }

    #[test]
    fn recordings_are_listed_by_time_and_deleted_as_one() {
        let folder = tempfile::tempdir().unwrap();
        let recordings = Recordings::of(folder.path(), SourceId::random());
        assert!(recordings.list().unwrap().is_empty());
        for at in [5_000_000, 1_000_000, 3_000_000] {
            let mut file = recordings.begin(Timestamp(at)).unwrap();
            file.append(b"film").unwrap();
            file.finish().unwrap();
        }
        recordings.begin(Timestamp(9_000_000)).unwrap().finish().unwrap();
        assert!(recordings.begin(Timestamp(3_000_000)).is_err());
        let starts =
            || -> Vec<i64> { recordings.list().unwrap().iter().map(|one| one.start.0).collect() };
        assert_eq!(starts(), [1_000_000, 3_000_000, 5_000_000]);
        assert_eq!(recordings.bytes.load(Ordering::Relaxed), 12);
        // The first one ends with the third second, the last one when it was written.
        let mut files = VecDeque::from(recordings.list().unwrap());
        let mut delete_before = |at| recordings.delete_before(Timestamp(at), &mut files).unwrap();
        delete_before(2_999_999);
        assert_eq!(starts(), [1_000_000, 3_000_000, 5_000_000]);
        // Somebody else has deleted one.
        std::fs::remove_file(&recordings.list().unwrap()[1].path).unwrap();
        delete_before(9_000_000);
        assert_eq!(starts(), [5_000_000]);
        assert_eq!(recordings.bytes.load(Ordering::Relaxed), 8);
        recordings.delete().unwrap();
        recordings.delete().unwrap();
        assert!(recordings.list().unwrap().is_empty());
    }

    /// Fragments of a second each, of frames 40 ms apart.
    fn film(secs: u32) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("film.mp4");
        let mut ffmpeg = std::process::Command::new("ffmpeg");
        ffmpeg.args(["-v", "error", "-f", "lavfi", "-i"]);
        ffmpeg.arg(format!("testsrc=s=64x64:r=25:d={secs}"));
        ffmpeg.args(["-c:v", "libx264", "-preset", "ultrafast", "-g", "25", "-movflags"]);
        ffmpeg.arg("frag_keyframe+empty_moov+default_base_moof").arg(&path);
        assert!(ffmpeg.status().unwrap().success());
        std::fs::read(path).unwrap()
    }

    #[test]
    fn what_is_held_of_a_span_and_what_is_missing_is_told_by_the_fragments() {
        let folder = tempfile::tempdir().unwrap();
        let recordings = Recordings::of(folder.path(), SourceId::random());
        let (at, film) = (|secs: i64| Timestamp(secs * 1_000_000), film(4));
        let write = |secs: i64, bytes: &[u8]| {
            let mut file = recordings.begin(at(secs)).unwrap();
            file.append(bytes).unwrap();
            file.finish().unwrap();
        };
        // Half of a fragment is none, and neither is what is no film.
        write(100, &film);
        write(104, &film[..film.len() - 200]);
        write(110, &film);
        write(120, b"no film");
        write(130, &[film.as_slice(), b"\xff\xff\xff\xffmdat"].concat());
        let held = |start: i64, end: i64| {
            let Held { files, missing } = recordings.hold(Span::new(at(start), at(end))).unwrap();
            let secs = |at: Timestamp| (at.0 as f64 / 1e6).round() as i64;
            let files: Vec<i64> = files.iter().map(|file| secs(file.start)).collect();
            let missing: Vec<(i64, i64)> =
                missing.iter().map(|span| (secs(span.start), secs(span.end))).collect();
            (files, missing)
        };
        assert_eq!(held(101, 103), (vec![100], vec![]));
        assert_eq!(held(102, 106), (vec![100, 104], vec![]));
        assert_eq!(held(98, 106), (vec![100, 104], vec![(98, 100)]));
        assert_eq!(held(106, 112), (vec![104, 110], vec![(107, 110)]));
        assert_eq!(held(113, 132), (vec![110, 130], vec![(114, 130)]));
        assert_eq!(held(133, 140), (vec![130], vec![(134, 140)]));
        for (start, end) in [(90, 99), (108, 109), (121, 122), (140, 150)] {
            assert_eq!(held(start, end), (vec![], vec![(start, end)]));
        }
    }
}
