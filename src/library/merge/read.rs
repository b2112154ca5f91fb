//! What another library has, each row held against its digest where it has one.

use std::collections::BTreeMap;
use std::fs::File;

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Params, Row};

use crate::error::{Error, Result};
use crate::library::digest::{
    CHUNKS, CHUNKS_BEFORE_6, CLIPS, CONTENTS, CUES, CUES_BEFORE_4, GAPS, LOCATIONS, READINGS,
    SEGMENTS, SOURCES, TAGS, THUMBNAILS, Table, features_digest, is_whole,
};
use crate::library::lock::lock_to_look;
use crate::library::reader::{Reader, cues_of};
use crate::library::rows::{self, RecipeRow};
use crate::library::stream::{CLIP, SEGMENT, indexed_clip, segment};
use crate::library::types::{ChunkRecord, HeardChunk, Location, SegmentRecord, Source, State};
use crate::media::{CellFeatures, Cue, Thumbnail};
use crate::time::{Span, Timestamp};

/// The first schema whose rows have digests, and that knows of all bytes of a file.
const DIGESTS_SINCE: i32 = 2;

/// The first schema that knows what was heard.
const HEARD_SINCE: i32 = 4;

/// The first schema whose clips have thumbnails.
const THUMBNAILS_SINCE: i32 = 6;

/// The library that is read.
#[derive(Debug)]
pub(super) struct There<'a> {
    reader: &'a Reader,
    has_digests: bool,
    has_heard: bool,
    has_thumbnails: bool,
    /// Nobody writes there meanwhile: what it says is done must be what was read.
    _lock: Option<File>,
}

/// A source there, and what stands beside its row.
#[derive(Debug)]
pub(super) struct Theirs {
    pub key: i64,
    /// Without its locations.
    pub source: Source,
    /// When each location was seen.
    pub seen: Vec<(Location, i64)>,
    /// The fingerprint of its parts, and the hash of all its bytes where that is known.
    pub parts: String,
    pub content: Option<String>,
    /// Locations and tags that are not what was written.
    pub lost: usize,
}

impl<'a> There<'a> {
    pub fn new(reader: &'a Reader) -> Result<Self> {
        let lock = lock_to_look(reader.folder())?;
        let version = reader.record.version()?;
        let (has_digests, has_heard) = (version >= DIGESTS_SINCE, version >= HEARD_SINCE);
        let has_thumbnails = version >= THUMBNAILS_SINCE;
        Ok(There { reader, has_digests, has_heard, has_thumbnails, _lock: lock })
    }

    pub fn recipes(&self) -> Result<Vec<RecipeRow>> {
        self.reader.record.read(|sql| rows::recipes(sql))
    }

    /// When a recipe was made known there, microseconds since 1970.
    pub fn recipe_added(&self, key: i64) -> Result<i64> {
        let find = "SELECT added_us FROM recipes WHERE key = ?1";
        self.reader.record.read(|sql| rows::one(sql, find, [key]))
    }

    /// The keys of all sources.
    pub fn sources(&self) -> Result<Vec<i64>> {
        let find = "SELECT key FROM sources ORDER BY key";
        self.reader.record.read(|sql| rows::all(sql, find, [], |row| row.get(0)))
    }

    pub fn source(&self, key: i64) -> Result<Option<Theirs>> {
        self.reader.record.read(|sql| {
            let of = "WHERE key = ?1";
            let found = self.whole(sql, &SOURCES, rows::SOURCE, of, [key], rows::source)?;
            let Some((_, mut source)) = found.into_iter().next() else { return Ok(None) };
            let columns = format!("{}, seen_us", rows::LOCATION);
            let of = "WHERE source = ?1 ORDER BY kind, place";
            let (seen, lost_places) = self.rows(sql, &LOCATIONS, &columns, of, [key], |row| {
                Ok((rows::location(row)?, row.get(6)?))
            })?;
            let of = "WHERE source = ?1 ORDER BY name";
            let (tags, lost_tags) = self
                .rows(sql, &TAGS, "name, value", of, [key], |row| Ok((row.get(0)?, row.get(1)?)))?;
            source.tags = tags;
            let contents = if self.has_digests {
                let of = "WHERE fingerprint = ?1";
                let at = [&source.fingerprint];
                let read = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?));
                self.rows(sql, &CONTENTS, "parts, whole", of, at, read)?.0
            } else {
                Vec::new()
            };
            let (parts, content) = match contents.into_iter().next() {
                Some((parts, content)) => (parts, Some(content)),
                None => (source.fingerprint.clone(), None),
            };
            Ok(Some(Theirs { key, source, seen, parts, content, lost: lost_places + lost_tags }))
        })
    }

    pub fn progress(&self, source: i64, recipe: i64) -> Result<(State, Option<String>)> {
        self.reader.record.read(|sql| {
            let find = "SELECT state, error FROM progress WHERE source = ?1 AND recipe = ?2";
            let found = sql
                .prepare_cached(find)?
                .query_row([source, recipe], |row| Ok((rows::text(row, 0)?, row.get(1)?)))
                .optional()?;
            Ok(found.unwrap_or((State::New, None)))
        })
    }

    /// How many chunks there are.
    pub fn chunk_count(&self, source: i64, recipe: i64) -> Result<u64> {
        let count = "SELECT count(*) FROM chunks WHERE source = ?1 AND recipe = ?2";
        self.reader.record.read(|sql| rows::one(sql, count, [source, recipe]))
    }

    /// The chunks that are there in full; of a live source, all, since no more of one can be had.
    pub fn chunk_numbers(&self, source: i64, recipe: i64) -> Result<Vec<u32>> {
        self.reader.record.read(|sql| {
            let partial = if self.has_digests {
                "AND (NOT partial OR EXISTS (SELECT 1 FROM sources WHERE key = ?1 AND origin = 'live'))"
            } else {
                ""
            };
            let find = format!(
                "SELECT number FROM chunks WHERE source = ?1 AND recipe = ?2 {partial} \
                 ORDER BY number"
            );
            rows::all(sql, &find, [source, recipe], |row| row.get(0))
        })
    }

    /// The table of chunks, as this library has it.
    fn chunks(&self) -> &'static Table {
        if self.has_thumbnails { &CHUNKS } else { &CHUNKS_BEFORE_6 }
    }

    /// A chunk as it was committed.
    ///
    /// Errors: `Corrupt` where it is not what was committed.
    pub fn chunk(&self, source: i64, recipe: i64, number: u32) -> Result<ChunkRecord> {
        let at = (source, recipe, number);
        let (mut chunk, digests, [clips, gaps, thumbnails]) = self.reader.record.read(|sql| {
            let of = "WHERE source = ?1 AND recipe = ?2 AND number = ?3";
            let thumbnails = if self.has_thumbnails { "thumbnails" } else { "0" };
            let columns = format!("start_us, end_us, clips, gaps, {thumbnails}");
            let found = self.whole(sql, self.chunks(), &columns, of, at, |row| {
                let counts: [usize; 3] = [row.get(2)?, row.get(3)?, row.get(4)?];
                Ok((rows::span(row, 0)?, counts))
            })?;
            let Some((span, counts)) = found.into_iter().next() else {
                return Err(Error::corrupt("it has gone"));
            };
            let of = "WHERE source = ?1 AND recipe = ?2 AND start_us >= ?3 AND start_us < ?4 \
                 ORDER BY start_us";
            let within = (source, recipe, span.start.0, span.end.0);
            let columns = match self.has_digests {
                true => format!("{CLIP}, features_digest"),
                false => CLIP.to_owned(),
            };
            let found = self.whole(sql, &CLIPS, &columns, of, within, |row| {
                let digest = if self.has_digests { row.get(7)? } else { Vec::new() };
                Ok((indexed_clip(row)?, digest))
            })?;
            let (clips, digests): (_, Vec<Vec<u8>>) = found.into_iter().unzip();
            let of = "WHERE source = ?1 AND recipe = ?2 AND chunk = ?3 ORDER BY place";
            let gaps = self.whole(sql, &GAPS, rows::GAP, of, at, rows::gap)?;
            Ok((ChunkRecord { index: number, span, clips, gaps }, digests, counts))
        })?;
        let features = self.features(source, recipe, chunk.span)?;
        if (chunk.clips.len(), chunk.gaps.len(), features.len()) != (clips, gaps, clips) {
            return Err(Error::corrupt(format!(
                "{clips} clips and {gaps} gaps were committed; {} clips, {} gaps and the features of \
                 {} clips are there",
                chunk.clips.len(),
                chunk.gaps.len(),
                features.len()
            )));
        }
        for ((clip, digest), features) in chunk.clips.iter_mut().zip(digests).zip(features) {
            let start = clip.head.span.start;
            let is_whole = !self.has_digests || digest == features.digest;
            if start.0 != features.start_us || !is_whole {
                return Err(Error::corrupt("features that are not what was written").at(start));
            }
            (clip.features, clip.cells) = features.values;
        }
        let mut found = self.thumbnails(source, recipe, chunk.span)?;
        for clip in &mut chunk.clips {
            clip.thumbnail = found.remove(&clip.head.span.start);
        }
        let left = chunk.clips.iter().filter(|clip| clip.thumbnail.is_some()).count();
        if left != thumbnails {
            return Err(Error::corrupt(format!(
                "{thumbnails} thumbnails were committed, {left} are there"
            )));
        }
        Ok(chunk)
    }

    fn features(&self, source: i64, recipe: i64, span: Span) -> Result<Vec<Features>> {
        self.reader.features.read(|sql| {
            let find = "SELECT start_us, features FROM features WHERE source = ?1 AND recipe = ?2 \
                 AND start_us >= ?3 AND start_us < ?4 ORDER BY start_us";
            rows::all(sql, find, (source, recipe, span.start.0, span.end.0), |row| {
                Ok(Features {
                    start_us: row.get(0)?,
                    digest: features_digest(row.get_ref(1)?.as_blob()?).to_vec(),
                    values: rows::features(row, 1)?,
                })
            })
        })
    }

    /// The thumbnails of a span that are what was written, by where their clips start.
    fn thumbnails(
        &self,
        source: i64,
        recipe: i64,
        span: Span,
    ) -> Result<BTreeMap<Timestamp, Thumbnail>> {
        self.reader.features.read(|sql| {
            let find = format!(
                "SELECT start_us, jpeg FROM thumbnails WHERE source = ?1 AND recipe = ?2 \
                 AND start_us >= ?3 AND start_us < ?4 AND digest = {}",
                THUMBNAILS.digest()
            );
            let found = rows::all(sql, &find, (source, recipe, span.start.0, span.end.0), |row| {
                Ok((Timestamp(row.get(0)?), Thumbnail::from_bytes(row.get(1)?)))
            })?;
            Ok(found.into_iter().filter_map(|(start, found)| Some((start, found?))).collect())
        })
    }

    /// The subtitles of a source.
    pub fn cues(&self, source: i64) -> Result<Vec<Cue>> {
        let of = "WHERE source = ?1 AND recipe IS NULL ORDER BY start_us, end_us, key";
        let table = if self.has_heard { &CUES } else { &CUES_BEFORE_4 };
        self.reader.record.read(|sql| self.whole(sql, table, rows::CUE, of, [source], rows::cue))
    }

    /// What is searched of a source's words.
    pub fn current_cues(&self, source: i64) -> Result<Vec<Cue>> {
        self.reader.record.read(|sql| cues_of(sql, source, Span::ALL))
    }

    /// What was heard in a chunk as it was committed; `None` where there is no such chunk.
    ///
    /// Errors: `Corrupt` where it is not what was committed.
    pub fn heard(&self, source: i64, recipe: i64, number: u32) -> Result<Option<HeardChunk>> {
        let at = (source, recipe, number);
        self.reader.record.read(|sql| {
            let of = "WHERE source = ?1 AND recipe = ?2 AND number = ?3 AND NOT partial";
            let columns = "start_us, end_us, gaps";
            let found = self.whole(sql, self.chunks(), columns, of, at, |row| {
                Ok((rows::span(row, 0)?, row.get::<_, usize>(2)?))
            })?;
            let Some((span, gaps_there)) = found.into_iter().next() else { return Ok(None) };
            let of = "WHERE source = ?1 AND recipe = ?2 AND start_us >= ?3 AND start_us < ?4 \
                 ORDER BY start_us, end_us, key";
            let within = (source, recipe, span.start.0, span.end.0);
            let cues = self.whole(sql, &CUES, rows::CUE, of, within, rows::cue)?;
            let of = "WHERE source = ?1 AND recipe = ?2 AND chunk = ?3 ORDER BY place";
            let gaps = self.whole(sql, &GAPS, rows::GAP, of, at, rows::gap)?;
            if gaps.len() != gaps_there {
                return Err(Error::corrupt(format!(
                    "{gaps_there} gaps were committed, {} are there",
                    gaps.len()
                )));
            }
            Ok(Some(HeardChunk { index: number, span, cues, gaps }))
        })
    }

    pub fn segments(&self, source: i64, recipe: i64) -> Result<Vec<SegmentRecord>> {
        let of = "WHERE source = ?1 AND recipe = ?2 ORDER BY start_us";
        let at = [source, recipe];
        self.reader.record.read(|sql| {
            let mut segments = self.whole(sql, &SEGMENTS, SEGMENT, of, at, segment)?;
            let columns = format!("start_us, {}", rows::READING);
            let readings = self.whole(sql, &READINGS, &columns, of, at, |row| {
                Ok((Timestamp(row.get(0)?), rows::reading(row, 1)?))
            })?;
            let mut readings: BTreeMap<_, _> = readings.into_iter().collect();
            for segment in &mut segments {
                segment.reading = readings.remove(&segment.span.start);
            }
            Ok(segments)
        })
    }

    /// The rows of a table that are what was written, and how many are not. `read` gets `columns`.
    fn rows<T>(
        &self,
        sql: &Connection,
        table: &Table,
        columns: &str,
        of: &str,
        values: impl Params,
        mut read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<(Vec<T>, usize)> {
        let all = match self.has_digests {
            true => format!("{columns}, {}, digest", table.columns.join(", ")),
            false => columns.to_owned(),
        };
        let first = columns.split(',').count();
        let find = format!("SELECT {all} FROM {} {of}", table.name);
        let found = rows::all(sql, &find, values, |row| {
            Ok(if !self.has_digests || is_whole(table, row, first)? {
                read(row).ok()
            } else {
                None
            })
        })?;
        let lost = found.iter().filter(|row| row.is_none()).count();
        Ok((found.into_iter().flatten().collect(), lost))
    }

    /// The rows of a table.
    ///
    /// Errors: `Corrupt` where one is not what was written.
    fn whole<T>(
        &self,
        sql: &Connection,
        table: &Table,
        columns: &str,
        of: &str,
        values: impl Params,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>> {
        let (rows, lost) = self.rows(sql, table, columns, of, values, read)?;
        if lost > 0 {
            let what = format!("{lost} rows of {} are not what was written", table.name);
            return Err(rows::unreadable(0, Type::Blob, what).into());
        }
        Ok(rows)
    }
}

/// A clip's features.
struct Features {
    start_us: i64,
    digest: Vec<u8>,
    values: (Vec<half::f16>, CellFeatures),
}
