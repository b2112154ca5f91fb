//! Reading a library, beside a writer or on a medium that can't be written to.

use std::path::{Path, PathBuf};

use half::f16;
use rusqlite::{Connection, OptionalExtension, params};
use serde::Serialize;

use super::ids::{ClipId, RecipeId, SourceId};
use super::index;
use super::rebuild::is_unfinished;
use super::rows::{self, RecipeRow};
use super::schema::{Database, FEATURES, RECORD};
use super::search::Memory;
use super::stream::{WHOLE_SEGMENT, whole_segment};
use super::types::{Origin, Place, Recipe, RecipeKind, Source, State, Tree};
use super::watches::{Watch, watches};
use super::writer::check_pair;
use crate::error::{Error, Result};
use crate::media::{Caption, CellFeatures, ClipHead, Cue, Gap, VisualWord};
use crate::time::{Micros, Span, Timestamp};

/// Looks into a library; never writes.
#[derive(Debug)]
pub struct Reader {
    folder: PathBuf,
    pub(super) record: Database,
    pub(super) features: Database,
    pub(super) memory: Memory,
}

/// What a library holds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Info {
    pub library_id: String,
    pub sources: u64,
    pub complete: u64,
    pub failed: u64,
    /// Of all sources whose length is known.
    pub hours: f64,
    /// Made by the current recipe, as are segments and gaps.
    pub clips: u64,
    pub segments: u64,
    pub cues: u64,
    pub gaps: u64,
    /// All files of the library.
    pub bytes: u64,
    pub recipes: Vec<RecipeInfo>,
    pub tags: Vec<TagInfo>,
    /// How each live source is, or was when it was watched last.
    pub streams: Vec<Watch>,
}

/// A tag, and how many sources have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TagInfo {
    pub name: String,
    pub value: String,
    pub sources: u64,
}

/// What a library holds of one recipe.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RecipeInfo {
    #[serde(flatten)]
    pub recipe: Recipe,
    /// Whether search uses its rows.
    pub current: bool,
    /// Clips or segments.
    pub rows: u64,
    /// Sources that it has read to the end.
    pub complete: u64,
}

/// A clip as it is kept, without its vectors.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipRow {
    pub id: ClipId,
    pub head: ClipHead,
    pub words: Vec<VisualWord>,
}

/// What is kept of a clip for a transformer to see.
#[derive(Debug, Clone, PartialEq)]
pub struct SeenClip {
    /// The whole picture's word, then the cells'; none where the recipe makes none.
    pub words: Vec<VisualWord>,
    /// None where a rebuild has lost them.
    pub features: Vec<f16>,
    pub cells: CellFeatures,
}

/// A segment as it is kept, without its vectors.
#[derive(Debug, Clone, PartialEq)]
pub struct SegmentRow {
    pub span: Span,
    pub text: String,
    pub language: Option<String>,
    /// What the transformer wrote about it.
    pub caption: Option<Caption>,
    /// How well words and picture fit, 0 to 1.
    pub alignment: Option<f32>,
}

/// Everything that is known of one source.
#[derive(Debug, Clone, PartialEq)]
pub struct Shown {
    pub source: Source,
    /// The shape of the visual words' tree.
    pub tree: Option<Tree>,
    pub segments: Vec<SegmentRow>,
    pub clips: Vec<ClipRow>,
    pub cues: Vec<Cue>,
    pub gaps: Vec<Gap>,
}

impl Reader {
    /// Opens the library in `folder`.
    ///
    /// Errors: `NotFound` where there is none; else as [`super::Writer::open`].
    pub fn open(folder: &Path) -> Result<Self> {
        if folder.is_dir() && is_unfinished(folder)? {
            return Err(Error::unavailable(format!(
                "a rebuild of {} was interrupted: `cinelex library rebuild` finishes it",
                folder.display()
            )));
        }
        for role in [RECORD, FEATURES] {
            let path = folder.join(role.file_name);
            let there = path.try_exists().map_err(|cause| Error::io(&path, "read", cause))?;
            if !there {
                return Err(Error::not_found(format!(
                    "{} is not a library: {} is missing; `cinelex index` makes one",
                    folder.display(),
                    role.file_name
                )));
            }
        }
        let record = Database::open_to_read(folder, RECORD)?;
        let features = Database::open_to_read(folder, FEATURES)?;
        check_pair(&record, &features)?;
        Ok(Reader { folder: folder.to_owned(), record, features, memory: Memory::of(folder) })
    }

    /// Whether a folder looks like a library.
    pub fn is_at(folder: &Path) -> bool {
        folder.join(RECORD.file_name).is_file()
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Counts of everything.
    pub fn info(&self) -> Result<Info> {
        let bytes = folder_bytes(&self.folder)? + index::bytes(&self.folder)?;
        let library_id = self.record.library_id()?;
        self.record.read(|sql| {
            let count = |statement: &str| rows::one::<u64>(sql, statement, []);
            let of_current = |table: &str, kind: RecipeKind| {
                count(&format!(
                    "SELECT count(*) FROM {table} WHERE recipe = \
                     (SELECT key FROM recipes WHERE kind = '{}' AND state = 'current')",
                    kind.as_str()
                ))
            };
            let length: f64 = rows::one(sql, "SELECT total(duration_us) FROM sources", [])?;
            let mut recipes = Vec::new();
            for row in rows::recipes(sql)? {
                if row.state == "current" || row.state == "building" {
                    recipes.push(recipe_info(sql, row)?);
                }
            }
            Ok(Info {
                library_id,
                sources: count("SELECT count(*) FROM sources")?,
                complete: count("SELECT count(*) FROM sources WHERE state = 'complete'")?,
                failed: count("SELECT count(*) FROM sources WHERE state = 'failed'")?,
                hours: length / 3.6e9,
                clips: of_current("clips", RecipeKind::Clip)?,
                segments: of_current("segments", RecipeKind::Segment)?,
                cues: count(&format!("SELECT count(*) FROM cues WHERE {}", rows::IS_CURRENT_CUE))?,
                gaps: of_current("gaps", RecipeKind::Clip)?
                    + of_current("gaps", RecipeKind::Speech)?,
                bytes,
                recipes,
                streams: watches(sql)?,
                tags: rows::all(
                    sql,
                    "SELECT name, value, count(*) FROM tags GROUP BY name, value ORDER BY 1, 2",
                    [],
                    |row| {
                        let (name, value) = (row.get(0)?, row.get(1)?);
                        Ok(TagInfo { name, value, sources: row.get(2)? })
                    },
                )?,
            })
        })
    }

    /// The library's own id, which a copy of its folder keeps.
    pub fn library_id(&self) -> Result<String> {
        self.record.library_id()
    }

    /// The recipe whose rows are searched.
    pub fn current(&self, kind: RecipeKind) -> Result<Option<Recipe>> {
        self.record.read(|sql| Ok(rows::current_recipe(sql, kind)?.map(|row| row.recipe)))
    }

    /// All sources, in the order in which they were added.
    pub fn sources(&self) -> Result<Vec<Source>> {
        self.record.read(all_sources)
    }

    /// The source that `reference` names: an id or its unique beginning, a place, or a name.
    ///
    /// Errors: `NotFound` with the closest names; `InvalidInput` where it means several.
    pub fn source(&self, reference: &str) -> Result<Source> {
        self.record.read(|sql| find_source(sql, reference))
    }

    /// The source that was last seen at `place`.
    pub fn source_at(&self, place: &Place) -> Result<Option<Source>> {
        let sources = self.sources()?;
        let here = |source: &Source| source.locations.iter().any(|at| at.place == *place);
        Ok(sources.into_iter().find(here))
    }

    /// Everything that is known of a source by the current recipes.
    pub fn show(&self, id: SourceId) -> Result<Shown> {
        self.record.read(|sql| {
            let key = rows::source_key(sql, id)?;
            let find = format!("SELECT {} FROM sources WHERE key = ?1", rows::SOURCE);
            let (_, mut source) = sql.query_row(&find, [key], rows::source)?;
            rows::fill_source(sql, key, &mut source)?;
            let clip_recipe = rows::current_recipe(sql, RecipeKind::Clip)?;
            let by_clip_recipe = params![key, clip_recipe.as_ref().map(|row| row.key)];
            let by_segment_recipe =
                params![key, rows::current_recipe(sql, RecipeKind::Segment)?.map(|row| row.key)];
            Ok(Shown {
                tree: clip_recipe.as_ref().and_then(|row| row.recipe.tree),
                segments: rows::all(
                    sql,
                    &format!(
                        "{WHOLE_SEGMENT} WHERE s.source = ?1 AND s.recipe = ?2 ORDER BY s.start_us"
                    ),
                    by_segment_recipe,
                    |row| {
                        let segment = whole_segment(row)?;
                        let reading = segment.reading.unwrap_or_default();
                        Ok(SegmentRow {
                            span: segment.span,
                            text: segment.text,
                            language: segment.language,
                            caption: reading.caption,
                            alignment: reading.alignment,
                        })
                    },
                )?,
                clips: rows::all(
                    sql,
                    &format!(
                        "SELECT {}, words FROM clips WHERE source = ?1 AND recipe = ?2 \
                         ORDER BY start_us",
                        rows::CLIP_HEAD
                    ),
                    by_clip_recipe,
                    |row| {
                        let head = rows::clip_head(row, 0)?;
                        let id = ClipId { source: id, start: head.span.start };
                        Ok(ClipRow { id, head, words: rows::visual_words(row, 5)? })
                    },
                )?,
                cues: cues_of(sql, key, Span::ALL)?,
                gaps: rows::all(
                    sql,
                    &format!(
                        "SELECT {} FROM gaps WHERE source = ?1 AND recipe IN \
                         (SELECT key FROM recipes WHERE state = 'current') \
                         ORDER BY start_us, end_us",
                        rows::GAP
                    ),
                    [key],
                    rows::gap,
                )?,
                source,
            })
        })
    }

    /// The source's cues, in order of start.
    pub fn cues(&self, id: SourceId) -> Result<Vec<Cue>> {
        self.cues_in(id, Span::ALL)
    }

    /// As [`Reader::cues`], those that start in `span`.
    pub fn cues_in(&self, id: SourceId, span: Span) -> Result<Vec<Cue>> {
        self.record.read(|sql| cues_of(sql, rows::source_key(sql, id)?, span))
    }

    /// The clips that `recipe` has made of a source and that start in `span`, in order of start.
    pub fn clip_heads(&self, id: SourceId, recipe: &RecipeId, span: Span) -> Result<Vec<ClipHead>> {
        self.record.read(|sql| {
            let find = format!(
                "SELECT {} FROM clips WHERE source = ?1 AND recipe = ?2 \
                 AND start_us >= ?3 AND start_us < ?4 ORDER BY start_us",
                rows::CLIP_HEAD
            );
            let source = rows::source_key(sql, id)?;
            let recipe = rows::recipe_row(sql, recipe)?.key;
            let of = params![source, recipe, span.start.0, span.end.0];
            rows::all(sql, &find, of, |row| rows::clip_head(row, 0))
        })
    }

    /// What there is to see of the clips that `recipe` has made of a source, by where they start.
    ///
    /// Errors: `NotFound` for no such source or recipe.
    pub fn seen_clips(
        &self,
        id: SourceId,
        recipe: &RecipeId,
        starts: &[Timestamp],
    ) -> Result<Vec<SeenClip>> {
        self.record.read(|sql| {
            let (source, recipe) = (rows::source_key(sql, id)?, rows::recipe_row(sql, recipe)?.key);
            let mut find = sql.prepare_cached(
                "SELECT words FROM clips WHERE source = ?1 AND recipe = ?2 AND start_us = ?3",
            )?;
            self.features.read(|features| {
                let mut find_features = features.prepare_cached(
                    "SELECT features FROM features \
                     WHERE source = ?1 AND recipe = ?2 AND start_us = ?3",
                )?;
                let mut seen = Vec::with_capacity(starts.len());
                for start in starts {
                    let at = [source, recipe, start.0];
                    let words = find.query_row(at, |row| rows::visual_words(row, 0)).optional()?;
                    let Some(words) = words else { continue };
                    let found = find_features.query_row(at, |row| rows::features(row, 0));
                    let (features, cells) = found.optional()?.unwrap_or_default();
                    seen.push(SeenClip { words, features, cells });
                }
                Ok(seen)
            })
        })
    }

    /// Whether this recipe was ever used here.
    pub fn knows(&self, recipe: &RecipeId) -> Result<bool> {
        let find = "SELECT EXISTS (SELECT 1 FROM recipes WHERE hash = ?1)";
        self.record.read(|sql| rows::one(sql, find, [recipe.to_string()]))
    }

    /// A clip of the current recipe.
    pub fn clip(&self, id: ClipId) -> Result<ClipRow> {
        self.record.read(|sql| {
            let find = format!(
                "SELECT {}, words FROM clips WHERE source = ?1 AND start_us = ?2 AND recipe = \
                 (SELECT key FROM recipes WHERE kind = 'clip' AND state = 'current')",
                rows::CLIP_HEAD
            );
            let at = params![rows::source_key(sql, id.source)?, id.start.0];
            let read = |row: &rusqlite::Row<'_>| {
                let (head, words) = (rows::clip_head(row, 0)?, rows::visual_words(row, 5)?);
                Ok(ClipRow { id, head, words })
            };
            let clip = sql.prepare_cached(&find)?.query_row(at, read).optional()?;
            clip.ok_or_else(|| Error::not_found(format!("the library has no clip {id}")))
        })
    }

    /// A clip's embedding in its recipe's space.
    ///
    /// Errors: `NotFound` where there is no such clip or its encoder maps into no space.
    pub fn embedding(&self, id: ClipId) -> Result<Vec<f32>> {
        let halves = self.record.read(|sql| {
            let find = "SELECT embedding FROM clips WHERE source = ?1 AND start_us = ?2 AND \
                 recipe = (SELECT key FROM recipes WHERE kind = 'clip' AND state = 'current')";
            let at = params![rows::source_key(sql, id.source)?, id.start.0];
            let halves =
                sql.prepare_cached(find)?.query_row(at, |row| rows::halves(row, 0)).optional()?;
            halves.ok_or_else(|| Error::not_found(format!("the library has no clip {id}")))
        })?;
        if halves.is_empty() {
            return Err(Error::not_found(format!("clip {id} has no embedding")));
        }
        Ok(halves.into_iter().map(f16::to_f32).collect())
    }

    /// Where a clip's picture lies in the space that pictures are searched in: what the transformer
    /// made of its segment, or else the clip's own embedding.
    ///
    /// Errors: as [`Reader::embedding`].
    pub fn picture_embedding(&self, id: ClipId) -> Result<Vec<f32>> {
        let at = self.clip(id)?.head.span.midpoint();
        let halves = self.record.read(|sql| {
            let find = "SELECT embedding FROM readings WHERE source = ?1 AND start_us <= ?2 \
                 AND end_us > ?2 AND recipe = \
                 (SELECT key FROM recipes WHERE kind = 'segment' AND state = 'current')";
            let at = params![rows::source_key(sql, id.source)?, at.0];
            let found = sql.prepare_cached(find)?.query_row(at, |row| rows::halves(row, 0));
            Ok(found.optional()?.unwrap_or_default())
        })?;
        if halves.is_empty() {
            return self.embedding(id);
        }
        Ok(halves.into_iter().map(f16::to_f32).collect())
    }

    /// A clip's features as the CNN gave them.
    pub fn features(&self, id: ClipId) -> Result<Vec<f16>> {
        let at = self.record.read(|sql| {
            let recipe = rows::current_recipe(sql, RecipeKind::Clip)?.map(|row| row.key);
            Ok((rows::source_key(sql, id.source)?, recipe))
        })?;
        self.features.read(|sql| {
            let find =
                "SELECT features FROM features WHERE source = ?1 AND recipe = ?2 AND start_us = ?3";
            let mut find = sql.prepare_cached(find)?;
            let features = find
                .query_row(params![at.0, at.1, id.start.0], |row| rows::features(row, 0))
                .optional()?;
            features
                .map(|(features, _)| features)
                .ok_or_else(|| Error::not_found(format!("clip {id} has no features")))
        })
    }

    /// Calls `each` with the features of every clip of a recipe, in order of source and time, until
    /// it gives an error. For fitting a codebook.
    pub fn each_features(
        &self,
        recipe: &RecipeId,
        mut each: impl FnMut(ClipId, Vec<f16>) -> Result<()>,
    ) -> Result<()> {
        let (recipe, sources) = self.record.read(|sql| {
            let find = "SELECT key, id FROM sources ORDER BY key";
            let sources: Vec<(i64, SourceId)> =
                rows::all(sql, find, [], |row| Ok((row.get(0)?, rows::text(row, 1)?)))?;
            Ok((rows::recipe_row(sql, recipe)?.key, sources))
        })?;
        // A transaction a source: one over all would keep the log from being emptied meanwhile.
        for (key, source) in sources {
            self.features.read(|sql| {
                let mut find = sql.prepare_cached(
                    "SELECT start_us, features FROM features \
                     WHERE source = ?1 AND recipe = ?2 ORDER BY start_us",
                )?;
                let mut found = find.query(params![key, recipe])?;
                while let Some(row) = found.next()? {
                    let start = Timestamp(row.get(0)?);
                    each(ClipId { source, start }, rows::features(row, 1)?.0)?;
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// The last `most` runs' reports, the newest first.
    pub fn runs(&self, most: u32) -> Result<Vec<serde_json::Value>> {
        self.record.read(|sql| {
            let find = "SELECT report FROM runs ORDER BY key DESC LIMIT ?1";
            rows::all(sql, find, [most], |row| rows::json(row, 0))
        })
    }
}

pub(super) fn cues_of(sql: &Connection, source: i64, span: Span) -> Result<Vec<Cue>> {
    let find = format!(
        "SELECT {} FROM cues WHERE source = ?1 AND start_us >= ?2 AND start_us < ?3 AND {} \
         ORDER BY start_us, end_us, key",
        rows::CUE,
        rows::IS_CURRENT_CUE
    );
    rows::all(sql, &find, [source, span.start.0, span.end.0], rows::cue)
}

pub(super) fn all_sources(sql: &rusqlite::Transaction<'_>) -> Result<Vec<Source>> {
    let find = format!("SELECT {} FROM sources ORDER BY key", rows::SOURCE);
    let mut sources = rows::all(sql, &find, [], rows::source)?;
    for (key, source) in &mut sources {
        rows::fill_source(sql, *key, source)?;
    }
    Ok(sources.into_iter().map(|(_, source)| source).collect())
}

pub(super) fn find_source(sql: &rusqlite::Transaction<'_>, reference: &str) -> Result<Source> {
    let sources = all_sources(sql)?;
    let absolute = std::path::absolute(reference).ok();
    let at = |source: &Source| {
        source.locations.iter().any(|location| match &location.place {
            Place::Url(url) => url == reference,
            Place::Path(path) => path == Path::new(reference) || Some(path) == absolute.as_ref(),
        })
    };
    // From the surest meaning to the loosest.
    let meanings: [&dyn Fn(&Source) -> bool; 4] = [
        &|source| source.id.to_string() == reference,
        &at,
        &|source| source.name == reference,
        &|source| reference.len() >= 4 && source.id.to_string().starts_with(reference),
    ];
    for meaning in meanings {
        let mut found = sources.iter().filter(|source| meaning(source));
        match (found.next(), found.next()) {
            (Some(source), None) => return Ok(source.clone()),
            (Some(one), Some(other)) => {
                return Err(Error::invalid_input(format!(
                    "{reference:?} means several sources, {} and {} among them: give the id",
                    one.id, other.id
                )));
            }
            _ => {}
        }
    }
    Err(Error::not_found(format!(
        "the library has no source {reference:?}{}",
        closest_names(&sources, reference)
    )))
}

/// `; did you mean "a.mp4" or "b.mp4"?`, or nothing where no name is close.
fn closest_names(sources: &[Source], reference: &str) -> String {
    let wanted = reference.rsplit('/').next().unwrap_or(reference).to_lowercase();
    let mut near: Vec<(usize, &str)> = sources
        .iter()
        .map(|source| (distance(&wanted, &source.name.to_lowercase()), source.name.as_str()))
        .filter(|&(distance, name)| {
            distance <= 2 + wanted.chars().count() / 4 || name.to_lowercase().contains(&wanted)
        })
        .collect();
    near.sort_unstable();
    near.dedup();
    let names: Vec<String> = near.iter().take(3).map(|(_, name)| format!("{name:?}")).collect();
    if names.is_empty() { String::new() } else { format!("; did you mean {}?", names.join(" or ")) }
}

/// Levenshtein's distance in characters, of the first 200 of each.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) =
        (a.chars().take(200).collect(), b.chars().take(200).collect());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, to) in b.iter().enumerate() {
            let replace = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

fn recipe_info(sql: &Connection, row: RecipeRow) -> Result<RecipeInfo> {
    let table = match row.recipe.kind {
        RecipeKind::Clip => "clips",
        RecipeKind::Segment => "segments",
        RecipeKind::Speech => "cues",
    };
    let count = format!("SELECT count(*) FROM {table} WHERE recipe = ?1");
    let complete = "SELECT count(*) FROM progress WHERE recipe = ?1 AND state = ?2";
    Ok(RecipeInfo {
        rows: rows::one(sql, &count, [row.key])?,
        complete: rows::one(sql, complete, params![row.key, State::Complete.as_str()])?,
        current: row.state == "current",
        recipe: row.recipe,
    })
}

/// The bytes of all plain files in the folder.
pub(super) fn folder_bytes(folder: &Path) -> Result<u64> {
    let failed = |cause| Error::io(folder, "read the folder", cause);
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        // A file may go between being listed and being looked at (a log does).
        if let Ok(data) = entry.map_err(failed)?.metadata()
            && data.is_file()
        {
            bytes += data.len();
        }
    }
    Ok(bytes)
}

impl Shown {
    /// The clips that belong to a segment: those whose midpoint it holds.
    pub fn clips_of(&self, segment: &SegmentRow) -> &[ClipRow] {
        let span = segment.span;
        let before = self.clips.partition_point(|clip| clip.head.span.midpoint() < span.start);
        let through = self.clips.partition_point(|clip| clip.head.span.midpoint() < span.end);
        &self.clips[before..through.max(before)]
    }

    /// The clips that belong to no segment.
    pub fn clips_alone(&self) -> impl Iterator<Item = &ClipRow> {
        let held = |clip: &ClipRow| {
            let at = clip.head.span.midpoint();
            let before = self.segments.partition_point(|segment| segment.span.start <= at);
            self.segments[..before].last().is_some_and(|segment| segment.span.contains(at))
        };
        self.clips.iter().filter(move |clip| !held(clip))
    }

    /// What is said where there are no segments whose words it is among: in all of a film that has none, and of a
    /// live source at any time of which none were made.
    pub fn cues_alone(&self) -> impl Iterator<Item = &Cue> {
        let is_alone = |cue: &Cue| {
            let before = self.segments.partition_point(|one| one.span.end <= cue.span.start);
            let next = self.segments.get(before);
            next.is_none_or(|segment| segment.span.start >= cue.span.end)
        };
        let is_live = self.source.origin == Origin::Live;
        self.cues.iter().filter(move |cue| self.segments.is_empty() || (is_live && is_alone(cue)))
    }

    /// The length that is known, else the end of the last clip; of a live source, from the first clip to
    /// the last.
    pub fn length(&self) -> Micros {
        let last = self.clips.last().map_or(Timestamp::ZERO, |clip| clip.head.span.end);
        let first = match self.source.origin {
            Origin::Live => self.clips.first().map_or(last, |clip| clip.head.span.start),
            Origin::File | Origin::Url => Timestamp::ZERO,
        };
        self.source.duration.unwrap_or(last - first)
    }
}
