//! Writing to a library: one process at a time, each call one durable step.

use std::collections::{HashMap, VecDeque};
use std::fs::{File, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use half::f16;
use rusqlite::{Connection, OptionalExtension, params};

use super::commit_point;
use super::digest::{PROGRESS, READINGS, RUNS, SEGMENTS, SOURCES, TAGS};
use super::ids::{RecipeId, SourceId};
use super::insert;
use super::lock::{LOCK_FILE, lock};
use super::migrate;
use super::rebuild;
use super::recipes::count_up;
use super::recordings::Recording;
use super::rows;
use super::schema::{Database, FEATURES, RECORD};
use super::types::{Location, NewSource, Place, RecipeKind, SegmentRecord, Source, State};
use crate::error::{Error, Kind, Result};
use crate::media::Cue;
use crate::time::{Micros, Span, wall_us};

/// The one writer of a library. Whoever holds it holds the folder's lock, which the system takes
/// back when the process ends, however it ends.
#[derive(Debug)]
pub struct Writer {
    pub(super) folder: PathBuf,
    pub(super) record: Database,
    pub(super) features: Database,
    pub(super) lock: Arc<File>,
    /// Bytes of all recordings, once they were counted.
    pub(super) recorded: Option<Arc<AtomicU64>>,
    /// The recordings of sources of which chunks are deleted one after the other.
    pub(super) listed: HashMap<SourceId, VecDeque<Recording>>,
}

/// What [`Writer::add_source`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Added {
    pub id: SourceId,
    /// The library had these bytes already, here or at another place.
    pub known: bool,
}

impl Writer {
    /// Opens the library in `folder`, or makes one where there is none or an empty folder.
    ///
    /// Errors: `Unavailable` where another process writes to it; `InvalidInput` for a folder that
    /// holds something else; `Unsupported` for another application's or version's file; `Corrupt`
    /// where a file is damaged or one of the two is missing.
    pub fn open(folder: &Path) -> Result<Self> {
        if let Ok(file) = std::fs::metadata(folder)
            && !file.is_dir()
        {
            return Err(Error::invalid_input(format!("{} is not a folder", folder.display())));
        }
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(|cause| Error::io(folder, "make the folder", cause))?;
        let is_new = !is_library(folder)? && !rebuild::is_unfinished(folder)?;
        if is_new {
            refuse_other_content(folder)?;
            // An empty folder that was there already may be open to others.
            std::fs::set_permissions(folder, Permissions::from_mode(0o700))
                .map_err(|cause| Error::io(folder, "set the permissions of", cause))?;
        }
        let lock = lock(folder)?;
        rebuild::finish_swaps(folder)?;
        Self::open_locked(folder, lock)
    }

    /// As [`Writer::open`], for whoever holds the folder's lock.
    pub(super) fn open_locked(folder: &Path, lock: File) -> Result<Self> {
        let has_record = Database::has_content(folder, RECORD);
        let has_features = Database::has_content(folder, FEATURES);
        if has_record && !has_features {
            return Err(Error::corrupt(format!(
                "{} is missing or empty: restore it, or let `cinelex library rebuild` go on without it",
                folder.join(FEATURES.file_name).display()
            )));
        }
        let mut features =
            Database::open_or_create(folder, FEATURES, &uuid::Uuid::new_v4().to_string())?;
        if !has_features {
            commit_point::reached("features-made");
        }
        let orphans = "SELECT count(*) FROM features";
        if !has_record && features.run(|sql| rows::one::<u64>(sql, orphans, []))? > 0 {
            return Err(Error::corrupt(format!(
                "{} is missing or empty, but there are features: restore it, or index into a new folder",
                folder.join(RECORD.file_name).display()
            )));
        }
        let mut record = Database::open_or_create(folder, RECORD, &features.library_id()?)?;
        check_pair(&record, &features)?;
        migrate::to_newest(&mut record, &mut features)?;
        if !has_record {
            commit_point::reached("library-made");
        }
        let lock = Arc::new(lock);
        let mut writer = Writer {
            folder: folder.to_owned(),
            record,
            features,
            lock,
            recorded: None,
            listed: HashMap::new(),
        };
        match writer.finish_forgetting() {
            // A reader keeps the log from being emptied; the next writer tries again.
            Err(error) if error.kind() == Kind::Unavailable => {}
            finished => drop(finished?),
        }
        writer.sweep_retired()?;
        writer.finish_keeping()?;
        writer.settle_growths()?;
        writer.end_watches()?;
        Ok(writer)
    }

    /// Removes a library without sources, folder and all. Other files in the folder keep it there;
    /// so does another process that writes to the library.
    pub fn remove_if_empty(folder: &Path) -> Result<()> {
        let has_sources = "SELECT EXISTS (SELECT 1 FROM sources)";
        let writer = match Writer::open(folder) {
            Ok(writer) => writer,
            Err(error) if error.kind() == Kind::Unavailable => return Ok(()),
            Err(error) => return Err(error),
        };
        if writer.record.read(|sql| rows::one(sql, has_sources, []))? {
            return Ok(());
        }
        let failed = |path: &Path, cause| Error::io(path, "remove", cause);
        for role in [RECORD, FEATURES] {
            for ending in ["", "-wal", "-shm"] {
                let path = folder.join(format!("{}{ending}", role.file_name));
                match std::fs::remove_file(&path) {
                    Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => {
                        return Err(failed(&path, cause));
                    }
                    _ => {}
                }
            }
        }
        let lock = folder.join(LOCK_FILE);
        std::fs::remove_file(&lock).map_err(|cause| failed(&lock, cause))?;
        match std::fs::remove_dir(folder) {
            Err(cause) if cause.kind() != std::io::ErrorKind::DirectoryNotEmpty => {
                Err(failed(folder, cause))
            }
            _ => Ok(()),
        }
    }

    /// Adds a source, or finds the one that has this fingerprint already, and notes where it was
    /// seen. A place that held another source before belongs to this one from now on.
    pub fn add_source(&mut self, new: &NewSource) -> Result<Added> {
        let added = self.record.write(|sql| Ok(add(sql, new)?.1))?;
        commit_point::reached("source-added");
        Ok(added)
    }

    /// As [`Writer::add_source`], for a source that is what became of the file that `shorter` was.
    /// It gets that one's tags, and where it is new or not read to its end,
    /// [`Writer::settle_growth`] lets it take that one's place. One step, since afterwards nothing
    /// tells that the place held the shorter one.
    pub fn add_grown(&mut self, new: &NewSource, shorter: SourceId) -> Result<Added> {
        let added = self.record.write(|sql| {
            let (key, added) = add(sql, new)?;
            let noted = sql.execute(
                "UPDATE sources SET grown_from = ?2 \
                 WHERE key = ?1 AND id <> ?2 AND state <> 'complete'",
                params![key, shorter.to_string()],
            )?;
            if noted > 0 {
                SOURCES.seal(sql, "key = ?1", [key])?;
                sql.execute(
                    "INSERT OR IGNORE INTO tags SELECT ?1, tags.name, tags.value, \
                     row_digest('tags', ?1, tags.name, tags.value) FROM tags \
                     JOIN sources ON sources.key = tags.source WHERE sources.id = ?2",
                    params![key, shorter.to_string()],
                )?;
            }
            Ok(added)
        })?;
        commit_point::reached("growth-noted");
        Ok(added)
    }

    /// Notes how long a source turned out to be.
    pub fn set_duration(&mut self, source: SourceId, duration: Micros) -> Result<()> {
        self.record.write(|sql| {
            let key = rows::source_key(sql, source)?;
            let changed = sql.execute(
                "UPDATE sources SET duration_us = ?2 WHERE key = ?1 AND duration_us IS NOT ?2",
                params![key, duration.0],
            )?;
            if changed > 0 { SOURCES.seal(sql, "key = ?1", [key]) } else { Ok(()) }
        })
    }

    /// Forgets what this source was when it was shorter, unless that is still to be found at some
    /// other place. One that an interruption left is settled by the next writer.
    pub fn settle_growth(&mut self, source: SourceId) -> Result<()> {
        let grown: Option<String> = self.record.read(|sql| {
            let mut find = sql.prepare_cached("SELECT grown_from FROM sources WHERE id = ?1")?;
            Ok(find.query_row([source.to_string()], |row| row.get(0)).optional()?.flatten())
        })?;
        let Some(grown) = grown else { return Ok(()) };
        let shorter: Option<SourceId> = self.record.read(|sql| {
            let find = "SELECT id FROM sources WHERE id = ?1 AND NOT EXISTS \
                 (SELECT 1 FROM locations WHERE locations.source = sources.key)";
            let mut find = sql.prepare_cached(find)?;
            Ok(find.query_row([grown], |row| rows::text(row, 0)).optional()?)
        })?;
        match shorter.map(|shorter| self.forget_rows(shorter)) {
            // The rows are gone; a reader holds up only the emptying of the log, which is done later.
            Some(Err(error)) if error.kind() == Kind::Unavailable => {}
            Some(Err(error)) => return Err(error),
            Some(Ok(_)) | None => {}
        }
        commit_point::reached("growth-forgotten");
        self.record.write(|sql| {
            let key = rows::source_key(sql, source)?;
            sql.execute("UPDATE sources SET grown_from = NULL WHERE key = ?1", [key])?;
            SOURCES.seal(sql, "key = ?1", [key])
        })?;
        commit_point::reached("growth-settled");
        Ok(())
    }

    /// Settles the growth of complete sources that an interruption left.
    fn settle_growths(&mut self) -> Result<()> {
        let find = "SELECT id FROM sources WHERE grown_from IS NOT NULL AND state = 'complete'";
        let grown: Vec<SourceId> =
            self.record.read(|sql| rows::all(sql, find, [], |row| rows::text(row, 0)))?;
        grown.into_iter().try_for_each(|source| self.settle_growth(source))
    }

    /// Where a source was seen, in order of place.
    pub fn places(&self, source: SourceId) -> Result<Vec<Place>> {
        self.record.read(|sql| {
            let find = format!(
                "SELECT {} FROM locations WHERE source = ?1 ORDER BY kind, place",
                rows::LOCATION
            );
            let key = rows::source_key(sql, source)?;
            rows::all(sql, &find, [key], |row| Ok(rows::location(row)?.place))
        })
    }

    /// The source that was last seen at `place`, with what the place looked like then.
    pub fn source_at(&self, place: &Place) -> Result<Option<(SourceId, Location)>> {
        self.record.read(|sql| {
            let find = format!(
                "SELECT {}, sources.id FROM locations JOIN sources ON sources.key = source \
                 WHERE kind = ?1 AND place = ?2",
                rows::LOCATION
            );
            let mut find = sql.prepare_cached(&find)?;
            let found = find.query_row(params![place.kind(), place.bytes()], |row| {
                Ok((rows::text(row, 6)?, rows::location(row)?))
            });
            Ok(found.optional()?)
        })
    }

    /// Sets the given tags of a source, or removes those whose value is empty; its other tags stay.
    pub fn set_tags(&mut self, source: SourceId, tags: &[(String, String)]) -> Result<()> {
        self.record.write(|sql| {
            let key = rows::source_key(sql, source)?;
            let find = "SELECT value FROM tags WHERE source = ?1 AND name = ?2";
            let mut find = sql.prepare_cached(find)?;
            let mut set = sql.prepare_cached(&TAGS.replace())?;
            let mut remove =
                sql.prepare_cached("DELETE FROM tags WHERE source = ?1 AND name = ?2")?;
            for (name, value) in tags {
                let before: Option<String> =
                    find.query_row(params![key, name], |row| row.get(0)).optional()?;
                if value.is_empty() {
                    remove.execute(params![key, name])?;
                } else if before.as_ref() != Some(value) {
                    set.execute(params![key, name, value])?;
                }
            }
            Ok(())
        })?;
        commit_point::reached("tags-set");
        Ok(())
    }

    /// The source's cues of all tracks.
    pub fn cues(&self, source: SourceId) -> Result<Vec<Cue>> {
        self.record.read(|sql| {
            let find = format!("SELECT {} FROM cues WHERE source = ?1 ORDER BY key", rows::CUE);
            rows::all(sql, &find, [rows::source_key(sql, source)?], rows::cue)
        })
    }

    /// The numbers of the chunks that are committed, in order.
    pub fn done_chunks(&self, source: SourceId, recipe: &RecipeId) -> Result<Vec<u32>> {
        self.record.read(|sql| {
            let (source, recipe) = (rows::source_key(sql, source)?, rows::recipe_row(sql, recipe)?);
            let find =
                "SELECT number FROM chunks WHERE source = ?1 AND recipe = ?2 AND NOT partial \
                 ORDER BY number";
            rows::all(sql, find, params![source, recipe.key], |row| row.get(0))
        })
    }

    /// Replaces the source's subtitles of all tracks whose name starts with `tracks` (`sidecar:`,
    /// `embedded:3`; empty for all); what was heard stays. Says whether that changed anything; then its segments are no
    /// longer complete.
    pub fn replace_cues(&mut self, source: SourceId, tracks: &str, cues: &[Cue]) -> Result<bool> {
        let known: Vec<Cue> = self.record.read(|sql| {
            let key = rows::source_key(sql, source)?;
            let find = format!(
                "SELECT {} FROM cues WHERE source = ?1 AND recipe IS NULL \
                 AND substr(track, 1, length(?2)) = ?2 ORDER BY key",
                rows::CUE
            );
            rows::all(sql, &find, params![key, tracks], rows::cue)
        })?;
        if known == cues {
            return Ok(false);
        }
        if let Some(cue) = cues.iter().find(|cue| !cue.track.starts_with(tracks)) {
            return Err(Error::internal(format!("track {} is not of {tracks}", cue.track)));
        }
        self.record.write(|sql| {
            let key = rows::source_key(sql, source)?;
            sql.execute(
                "DELETE FROM cues WHERE source = ?1 AND recipe IS NULL \
                 AND substr(track, 1, length(?2)) = ?2",
                params![key, tracks],
            )?;
            segments_are_old(sql, "source = ?1", [key])?;
            insert::cues(sql, key, None, cues)
        })?;
        commit_point::reached("cues-committed");
        Ok(true)
    }

    /// Replaces all segments of the source that were made by this recipe, and their readings.
    pub fn commit_segments(
        &mut self,
        source: SourceId,
        recipe: &RecipeId,
        segments: &[SegmentRecord],
    ) -> Result<()> {
        self.commit_segments_in(source, recipe, Span::ALL, segments)
    }

    /// As [`Writer::commit_segments`], for those that start in `span` only.
    pub fn commit_segments_in(
        &mut self,
        source: SourceId,
        recipe: &RecipeId,
        span: Span,
        segments: &[SegmentRecord],
    ) -> Result<()> {
        let (source, recipe) = self.keys(source, recipe, RecipeKind::Segment)?;
        let dimension = recipe.recipe.space.as_ref().map(|space| space.dimension);
        for segment in segments {
            check_embedding(&segment.embedding, dimension)?;
            if let Some(reading) = &segment.reading {
                check_embedding(&reading.embedding, dimension)?;
            }
        }
        self.record.write(|sql| {
            let of = params![source, recipe.key, span.start.0, span.end.0];
            let these = "source = ?1 AND recipe = ?2 AND start_us >= ?3 AND start_us < ?4";
            let replaced = sql.execute(&format!("DELETE FROM segments WHERE {these}"), of)?;
            sql.execute(&format!("DELETE FROM readings WHERE {these}"), of)?;
            if replaced > 0 {
                count_up(sql, RecipeKind::Segment)?;
            }
            let mut insert = sql.prepare_cached(&SEGMENTS.insert())?;
            for segment in segments {
                insert.execute(params![
                    source,
                    recipe.key,
                    segment.span.start.0,
                    segment.span.end.0,
                    segment.text,
                    segment.language,
                    embedding_to_bytes(&segment.embedding)
                ])?;
            }
            insert_readings(sql, source, recipe.key, segments)?;
            // Of a source that is never complete there is no progress, and much to count.
            let of = params![source, recipe.key];
            let has = "SELECT EXISTS (SELECT 1 FROM progress WHERE source = ?1 AND recipe = ?2)";
            if !rows::one(sql, has, of)? {
                return Ok(());
            }
            let count = "UPDATE progress SET rows = ?3 WHERE source = ?1 AND recipe = ?2";
            let rows = rows_made(sql, source, &recipe)?;
            sql.execute(count, params![source, recipe.key, rows])?;
            PROGRESS.seal(sql, "source = ?1 AND recipe = ?2", of)
        })?;
        commit_point::reached("segments-committed");
        Ok(())
    }

    /// Notes how the work on a source by a recipe ended; `error` says why it failed.
    pub fn finish_source(
        &mut self,
        source: SourceId,
        recipe: &RecipeId,
        state: State,
        error: Option<&str>,
    ) -> Result<()> {
        self.record.write(|sql| {
            let key = rows::source_key(sql, source)?;
            let recipe = rows::recipe_row(sql, recipe)?;
            sql.execute(
                &PROGRESS.replace(),
                params![key, recipe.key, state.as_str(), error, rows_made(sql, key, &recipe)?],
            )?;
            // A source is read by the recipe of its clips; segments come of what is stored.
            if recipe.recipe.kind == RecipeKind::Clip {
                sql.execute(
                    "UPDATE sources SET state = ?2, error = ?3 WHERE key = ?1",
                    params![key, state.as_str(), error],
                )?;
                SOURCES.seal(sql, "key = ?1", [key])?;
            }
            Ok(())
        })?;
        commit_point::reached("source-finished");
        Ok(())
    }

    /// How far the work on a source by a recipe is.
    pub fn progress(&self, source: SourceId, recipe: &RecipeId) -> Result<State> {
        self.record.read(|sql| {
            let (source, recipe) = (rows::source_key(sql, source)?, rows::recipe_row(sql, recipe)?);
            let find = "SELECT state FROM progress WHERE source = ?1 AND recipe = ?2";
            let mut find = sql.prepare_cached(find)?;
            let found =
                find.query_row(params![source, recipe.key], |row| rows::text(row, 0)).optional()?;
            Ok(found.unwrap_or(State::New))
        })
    }

    /// Keeps a run's report.
    pub fn record_run(&mut self, report: &serde_json::Value) -> Result<()> {
        let report = to_json(report)?;
        self.record.write(|sql| {
            sql.execute(&RUNS.insert(), params![wall_us(), report])?;
            Ok(())
        })?;
        commit_point::reached("run-recorded");
        Ok(())
    }

    pub(super) fn keys(
        &self,
        source: SourceId,
        recipe: &RecipeId,
        kind: RecipeKind,
    ) -> Result<(i64, rows::RecipeRow)> {
        self.record.read(|sql| {
            let row = rows::recipe_row(sql, recipe)?;
            if row.recipe.kind != kind {
                return Err(Error::internal(format!(
                    "recipe {recipe} is not of {}",
                    kind.as_str()
                )));
            }
            Ok((rows::source_key(sql, source)?, row))
        })
    }
}

/// The source's key, and what [`Writer::add_source`] says.
fn add(sql: &Connection, new: &NewSource) -> Result<(i64, Added)> {
    let mut find = sql.prepare_cached("SELECT key, id FROM sources WHERE fingerprint = ?1")?;
    let known = find
        .query_row([&new.fingerprint], |row| Ok((row.get(0)?, rows::text(row, 1)?)))
        .optional()?;
    let (key, id): (i64, SourceId) = match known {
        Some(found) => found,
        None => {
            let source = Source {
                id: SourceId::random(),
                fingerprint: new.fingerprint.clone(),
                name: new.name.clone(),
                origin: new.origin,
                duration: new.duration,
                media: new.media.clone(),
                wall: new.wall,
                state: State::New,
                error: None,
                locations: Vec::new(),
                tags: Vec::new(),
                added_us: wall_us(),
            };
            (insert::source(sql, &source)?, source.id)
        }
    };
    insert::location(sql, key, &new.location, wall_us())?;
    Ok((key, Added { id, known: known.is_some() }))
}

/// Whether one of the two files is there.
fn is_library(folder: &Path) -> Result<bool> {
    for role in [RECORD, FEATURES] {
        let path = folder.join(role.file_name);
        if path.try_exists().map_err(|cause| Error::io(&path, "read", cause))? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn refuse_other_content(folder: &Path) -> Result<()> {
    let entries =
        std::fs::read_dir(folder).map_err(|cause| Error::io(folder, "read the folder", cause))?;
    for entry in entries {
        let entry = entry.map_err(|cause| Error::io(folder, "read the folder", cause))?;
        if entry.file_name() != LOCK_FILE {
            return Err(Error::invalid_input(format!(
                "{} holds other files and no library: name a new or empty folder",
                folder.display()
            )));
        }
    }
    Ok(())
}

pub(super) fn check_pair(record: &Database, features: &Database) -> Result<()> {
    if record.library_id()? == features.library_id()? {
        return Ok(());
    }
    Err(Error::corrupt(format!(
        "{} and {} belong to different libraries",
        record.path.display(),
        features.path.display()
    )))
}

fn insert_readings(
    sql: &Connection,
    source: i64,
    recipe: i64,
    segments: &[SegmentRecord],
) -> Result<()> {
    let mut insert = sql.prepare_cached(&READINGS.insert())?;
    for segment in segments {
        let Some(reading) = &segment.reading else { continue };
        insert.execute(params![
            source,
            recipe,
            segment.span.start.0,
            segment.span.end.0,
            reading.caption.as_ref().map(|caption| &caption.text),
            // SQLite keeps no negative zero.
            reading.caption.as_ref().map(|caption| caption.confidence + 0.0),
            reading.alignment.map(|alignment| alignment + 0.0),
            embedding_to_bytes(&reading.embedding)
        ])?;
    }
    Ok(())
}

/// Notes of sources that their segments must be made anew, since their words have changed: should the
/// process end before they are, the next one knows.
pub(super) fn segments_are_old(
    sql: &Connection,
    sources: &str,
    values: impl rusqlite::Params + Copy,
) -> Result<()> {
    let segments =
        format!("{sources} AND recipe IN (SELECT key FROM recipes WHERE kind = 'segment')");
    sql.execute(&format!("UPDATE progress SET state = 'new' WHERE {segments}"), values)?;
    PROGRESS.seal(sql, &segments, values)
}

/// How many chunks of a source a clip recipe has made, or segments and readings a segment recipe, or
/// chunks and cues one of speech.
fn rows_made(sql: &Connection, source: i64, recipe: &rows::RecipeRow) -> Result<u64> {
    let tables = match recipe.recipe.kind {
        RecipeKind::Clip => &["chunks"][..],
        RecipeKind::Segment => &["segments", "readings"],
        RecipeKind::Speech => &["chunks", "cues"],
    };
    let mut made = 0;
    for table in tables {
        let count = format!("SELECT count(*) FROM {table} WHERE source = ?1 AND recipe = ?2");
        made += rows::one::<u64>(sql, &count, params![source, recipe.key])?;
    }
    Ok(made)
}

pub(super) fn embedding_to_bytes(embedding: &[f16]) -> Option<Vec<u8>> {
    (!embedding.is_empty()).then(|| rows::halves_to_bytes(embedding))
}

pub(super) fn check_embedding(embedding: &[f16], dimension: Option<usize>) -> Result<()> {
    let fits = embedding.is_empty() || dimension == Some(embedding.len());
    if fits && embedding.iter().all(|value| value.is_finite()) {
        return Ok(());
    }
    Err(Error::internal(format!(
        "an embedding of {} dimensions or not finite, where the recipe's space has {}",
        embedding.len(),
        dimension.unwrap_or(0)
    )))
}

pub(super) fn to_json(value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(value)
        .map_err(|cause| Error::internal("cannot write JSON").caused_by(cause))
}
