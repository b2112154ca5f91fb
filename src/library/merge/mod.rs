//! Joining libraries that were made on different machines: what another library has is taken over
//! a chunk at a time, each in a transaction, so that a merge that was cut off goes on where it was
//! and one that is repeated changes nothing.

mod read;

use std::collections::{BTreeMap, HashSet};

use rusqlite::{Connection, OptionalExtension, params};
use serde::Serialize;

use super::commit_point;
use super::digest::{SOURCES, TAGS};
use super::hearing::HeardTo;
use super::ids::{RecipeId, SourceId};
use super::insert;
use super::reader::{Reader, cues_of};
use super::rows::{self, RecipeRow};
use super::types::{Location, Origin, RecipeKind, SegmentRecord, State};
use super::writer::Writer;
use crate::error::{Error, Kind, Result};
use crate::media::Cue;
use crate::time::Span;
use read::{Theirs, There};

/// What one other library brought.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Merged {
    /// The other library's sources that were gone through.
    pub sources: u64,
    /// Those that this library did not have.
    pub added: u64,
    /// Clips, segments and cues that were taken over.
    pub clips: u64,
    pub segments: u64,
    pub cues: u64,
    pub tags: u64,
    pub locations: u64,
    /// Chunks and lists of cues or segments that are damaged there, and were left out.
    pub damaged: Vec<Damage>,
    pub conflicts: Vec<Conflict>,
    /// Sources whose words are more now: the next `index` makes their segments anew.
    pub to_understand: u64,
}

/// Something of the other library that can't be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// In this library; `None` where the source's own row can't be read.
    pub source: Option<SourceId>,
    pub name: String,
    /// `chunk 3`, `cues`, `segments`, `places and tags`, `source`.
    pub what: String,
    pub reason: String,
}

/// Something that the two libraries say differently of one source or place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Conflict {
    /// The source in this library.
    pub source: SourceId,
    /// `tag KEY`, `place`, `cues of TRACK`.
    pub what: String,
    pub kept: String,
    pub dropped: String,
}

impl Writer {
    /// Takes over everything that `from` has and this library has not, into `merged`, and leaves
    /// `from` as it is. The same source (by fingerprint) at both has all places, tags and words of
    /// both; of work that both have done by the same recipe, this library's is kept. `each` hears
    /// before each chunk which source of how many it is of, and stops the merge with an error.
    ///
    /// Errors: `InvalidInput` where the two have different ideas of one space; those of `each`, and
    /// of either library's files. What is damaged in `from` is noted, left out, and no error.
    pub fn merge(
        &mut self,
        from: &Reader,
        merged: &mut Merged,
        each: &mut dyn FnMut(u64, u64) -> Result<()>,
    ) -> Result<()> {
        let from = There::new(from)?;
        let recipes = self.merge_recipes(&from)?;
        let keys = from.sources()?;
        let of = keys.len() as u64;
        for (place, key) in keys.into_iter().enumerate() {
            each(place as u64, of)?;
            // One that was forgotten meanwhile is not there any more.
            let theirs = match from.source(key) {
                Ok(Some(theirs)) => theirs,
                Ok(None) => continue,
                Err(error) if error.kind() == Kind::Corrupt => {
                    let (name, what) = (format!("source number {key}"), "source".to_owned());
                    let reason = error.to_string();
                    merged.damaged.push(Damage { source: None, name, what, reason });
                    continue;
                }
                Err(error) => return Err(error),
            };
            self.merge_source(&from, &theirs, &recipes, merged, &mut || each(place as u64, of))?;
            merged.sources += 1;
        }
        each(of, of)
    }

    /// Makes the other library's recipes known, those that it has retired left out. Of a library
    /// without sources, the other's current recipes become the current ones.
    fn merge_recipes(&mut self, from: &There<'_>) -> Result<Vec<RecipeRow>> {
        let mut recipes = from.recipes()?;
        recipes.retain(|row| row.state == "current" || row.state == "building");
        // The first of its kind that a library gets to know is current there.
        recipes.sort_by_key(|row| row.state != "current");
        for row in &recipes {
            // What is in use here is described here, and may be damaged there.
            if !self.uses_recipe(&row.recipe.id)? {
                self.add_recipe(&row.recipe)?;
            }
            self.date_recipe(&row.recipe.id, from.recipe_added(row.key)?)?;
        }
        let is_empty = self.record.read(|sql| {
            let find = "SELECT NOT EXISTS (SELECT 1 FROM sources)";
            rows::one::<bool>(sql, find, [])
        })?;
        let current_there = |kind| {
            let mut found = recipes.iter().filter(|row| row.recipe.kind == kind);
            found.find(|row| row.state == "current").map(|row| row.recipe.id.clone())
        };
        if let (true, Some(clips), Some(segments)) =
            (is_empty, current_there(RecipeKind::Clip), current_there(RecipeKind::Segment))
        {
            self.take_over(&clips, &segments)?;
        }
        if let (true, Some(speech)) = (is_empty, current_there(RecipeKind::Speech)) {
            self.take_over_speech(&speech, false)?;
        }
        // A source's state is that of its work by the current recipe, so that one goes last.
        let current = self.record.read(|sql| rows::current_recipe(sql, RecipeKind::Clip))?;
        let current = current.map(|row| row.recipe.id);
        recipes.sort_by_key(|row| Some(&row.recipe.id) == current.as_ref());
        Ok(recipes)
    }

    fn merge_source(
        &mut self,
        from: &There<'_>,
        theirs: &Theirs,
        recipes: &[RecipeRow],
        merged: &mut Merged,
        each: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let id = self.merge_row(theirs, merged)?;
        let mut damaged = |what: String, error: Error| match error.kind() {
            Kind::Corrupt => {
                let (name, reason) = (theirs.source.name.clone(), error.to_string());
                merged.damaged.push(Damage { source: Some(id), name, what, reason });
                Ok(())
            }
            _ => Err(error),
        };
        if theirs.lost > 0 {
            let lost = Error::corrupt(format!("{} of them are not what was written", theirs.lost));
            damaged("places and tags".to_owned(), lost)?;
        }
        // Chunks before cues: what is not finished here gets their cues with their segments.
        let mut is_whole = true;
        let mut clips = 0;
        for row in recipes.iter().filter(|row| row.recipe.kind == RecipeKind::Clip) {
            let recipe = &row.recipe.id;
            if self.progress(id, recipe)? == State::Complete {
                continue;
            }
            let done: HashSet<u32> = self.done_chunks(id, recipe)?.into_iter().collect();
            let mut left_out = false;
            for number in from.chunk_numbers(theirs.key, row.key)? {
                if done.contains(&number) {
                    continue;
                }
                each()?;
                match from.chunk(theirs.key, row.key, number) {
                    Ok(chunk) => {
                        self.commit_chunk(id, recipe, &chunk)?;
                        clips += chunk.clips.len() as u64;
                    }
                    Err(error) => {
                        damaged(format!("chunk {number}"), error)?;
                        left_out = true;
                    }
                }
            }
            is_whole &= !left_out;
            let (state, error) = from.progress(theirs.key, row.key)?;
            let better = match state {
                State::Complete => !left_out,
                State::Failed => {
                    self.progress(id, recipe)? == State::New && !self.is_complete(id)?
                }
                State::New => false,
            };
            if better {
                self.finish_source(id, recipe, state, error.as_deref())?;
            }
        }
        let understood = self.understood(id)?;
        for row in recipes.iter().filter(|row| row.recipe.kind == RecipeKind::Speech) {
            let recipe = &row.recipe.id;
            if self.progress(id, recipe)? == State::Complete {
                continue;
            }
            if theirs.source.origin == Origin::Live {
                // Chunks that only one has, as of the picture.
                let done: HashSet<u32> = self.done_chunks(id, recipe)?.into_iter().collect();
                for number in from.chunk_numbers(theirs.key, row.key)? {
                    if done.contains(&number) {
                        continue;
                    }
                    each()?;
                    match from.heard(theirs.key, row.key, number) {
                        Ok(Some(chunk)) => {
                            if self.append_heard(id, recipe, &chunk)? {
                                merged.cues += chunk.cues.len() as u64;
                            }
                        }
                        Ok(None) => {}
                        Err(error) => damaged(format!("what was heard, chunk {number}"), error)?,
                    }
                }
                continue;
            }
            let mut to = self.heard_to(id, recipe)?;
            loop {
                each()?;
                // Where it was cut says the sound alone, so theirs go on where ours end.
                match from.heard(theirs.key, row.key, to.next) {
                    Ok(Some(chunk)) if chunk.span.start == to.at => {
                        self.commit_heard(id, recipe, &chunk)?;
                        merged.cues += chunk.cues.len() as u64;
                        to = HeardTo { next: to.next + 1, at: chunk.span.end };
                    }
                    Ok(_) => break,
                    Err(error) => {
                        damaged(format!("what was heard, chunk {}", to.next), error)?;
                        break;
                    }
                }
            }
            let (state, error) = from.progress(theirs.key, row.key)?;
            let is_all = from.chunk_count(theirs.key, row.key)? == u64::from(to.next);
            is_whole &= is_all;
            if state != State::New && is_all {
                self.finish_source(id, recipe, state, error.as_deref())?;
            }
        }
        let their_cues = match from.cues(theirs.key) {
            Ok(cues) => cues,
            Err(error) => {
                damaged("cues".to_owned(), error)?;
                is_whole = false;
                Vec::new()
            }
        };
        let mut segments = Vec::new();
        for row in recipes.iter().filter(|row| row.recipe.kind == RecipeKind::Segment) {
            match from.segments(theirs.key, row.key) {
                Ok(read) => {
                    let (state, _) = from.progress(theirs.key, row.key)?;
                    segments.push((row.recipe.id.clone(), read, state));
                }
                Err(error) => damaged("segments".to_owned(), error)?,
            }
        }
        merged.clips += clips;
        self.merge_cues(id, &their_cues, merged)?;
        let ours: Vec<Cue> =
            self.record.read(|sql| cues_of(sql, rows::source_key(sql, id)?, Span::ALL))?;
        let words = Words {
            stale: understood.saturating_sub(self.understood(id)?),
            are_theirs: by_track(&ours) == by_track(&from.current_cues(theirs.key)?),
        };
        self.merge_segments(id, &segments, words, is_whole, merged)
    }

    /// The source's row here, its places and tags.
    fn merge_row(&mut self, theirs: &Theirs, merged: &mut Merged) -> Result<SourceId> {
        let alike = self.alike(&theirs.parts)?;
        let known = match &theirs.content {
            Some(content) => {
                let same = alike.iter().find(|known| known.digest.as_ref() == Some(content));
                same.or_else(|| alike.iter().find(|known| known.digest.is_none()))
            }
            None => alike.iter().find(|known| known.fingerprint == theirs.source.fingerprint),
        };
        let fingerprint = match (known, &theirs.content) {
            (Some(known), _) => &known.fingerprint,
            // Another source has these parts, and other bytes.
            (None, Some(content)) if !alike.is_empty() => content,
            (None, _) => &theirs.source.fingerprint,
        };
        if let Some(content) = &theirs.content {
            self.note_content(fingerprint, &theirs.parts, content)?;
        }
        let (mut tags, mut locations, mut conflicts) = (0, 0, Vec::new());
        let (id, added) = self.record.write(|sql| {
            let (key, id, added) = match known {
                Some(known) => (rows::source_key(sql, known.id)?, known.id, false),
                None => {
                    let mut source = theirs.source.clone();
                    source.fingerprint.clone_from(fingerprint);
                    // The same id for other bytes: a copy of this library went its own way.
                    let taken = "SELECT EXISTS (SELECT 1 FROM sources WHERE id = ?1)";
                    if rows::one(sql, taken, [source.id.to_string()])? {
                        source.id = SourceId::random();
                    }
                    // How far it is shows when its rows are here.
                    (source.state, source.error) = (State::New, None);
                    (insert::source(sql, &source)?, source.id, true)
                }
            };
            let earlier = "UPDATE sources SET added_us = ?2 WHERE key = ?1 AND added_us > ?2";
            if sql.execute(earlier, params![key, theirs.source.added_us])? > 0 {
                SOURCES.seal(sql, "key = ?1", [key])?;
            }
            for (location, seen_us) in &theirs.seen {
                locations += merge_location(sql, (key, id), location, *seen_us, &mut conflicts)?;
            }
            for (name, value) in &theirs.source.tags {
                tags += merge_tag(sql, (key, id), name, value, &mut conflicts)?;
            }
            Ok((id, added))
        })?;
        commit_point::reached("source-added");
        merged.added += u64::from(added);
        merged.tags += tags;
        merged.locations += locations;
        merged.conflicts.append(&mut conflicts);
        Ok(id)
    }

    /// Adds the subtitles of tracks that are not here.
    fn merge_cues(&mut self, id: SourceId, theirs: &[Cue], merged: &mut Merged) -> Result<()> {
        let ours: Vec<Cue> = self.record.read(|sql| {
            let find = format!(
                "SELECT {} FROM cues WHERE source = ?1 AND recipe IS NULL \
                 ORDER BY start_us, end_us, key",
                rows::CUE
            );
            rows::all(sql, &find, [rows::source_key(sql, id)?], rows::cue)
        })?;
        let (our_tracks, their_tracks) = (by_track(&ours), by_track(theirs));
        let mut new: Vec<&Cue> = Vec::new();
        for (track, cues) in &their_tracks {
            match our_tracks.get(track) {
                None => new.extend(cues),
                Some(kept) if kept == cues => {}
                Some(kept) => merged.conflicts.push(Conflict {
                    source: id,
                    what: format!("cues of {track}"),
                    kept: format!("{} here", kept.len()),
                    dropped: format!("{} there", cues.len()),
                }),
            }
        }
        if !new.is_empty() {
            self.record.write(|sql| {
                let key = rows::source_key(sql, id)?;
                insert::cues(sql, key, None, new.clone())?;
                // In the same step, so that no interruption leaves segments without these words.
                let stale = "DELETE FROM progress WHERE source = ?1 AND recipe IN \
                     (SELECT key FROM recipes WHERE kind = 'segment')";
                Ok(sql.execute(stale, [key])?)
            })?;
        }
        commit_point::reached("cues-committed");
        merged.cues += new.len() as u64;
        Ok(())
    }

    /// By how many recipes the source's segments are complete.
    fn understood(&self, id: SourceId) -> Result<usize> {
        self.record.read(|sql| {
            let count = "SELECT count(*) FROM progress JOIN recipes ON recipes.key = recipe \
                 WHERE source = ?1 AND progress.state = 'complete' AND kind = 'segment'";
            rows::one(sql, count, [rows::source_key(sql, id)?])
        })
    }

    /// Takes their segments where there are none here, or where theirs are made of all words.
    fn merge_segments(
        &mut self,
        id: SourceId,
        theirs: &[(RecipeId, Vec<SegmentRecord>, State)],
        words: Words,
        is_whole: bool,
        merged: &mut Merged,
    ) -> Result<()> {
        let mut renewed = 0;
        for (recipe, segments, state) in theirs {
            if self.progress(id, recipe)? == State::Complete {
                continue;
            }
            let complete = *state == State::Complete && words.are_theirs && is_whole;
            if complete || self.segments_of(id, recipe)? == 0 && !segments.is_empty() {
                self.commit_segments(id, recipe, segments)?;
                merged.segments += segments.len() as u64;
            }
            if complete {
                self.finish_source(id, recipe, State::Complete, None)?;
                renewed += 1;
            }
        }
        merged.to_understand += u64::from(words.stale > renewed);
        Ok(())
    }

    fn is_complete(&self, id: SourceId) -> Result<bool> {
        self.record.read(|sql| {
            let find = "SELECT state = 'complete' FROM sources WHERE id = ?1";
            rows::one(sql, find, [id.to_string()])
        })
    }

    fn segments_of(&self, id: SourceId, recipe: &RecipeId) -> Result<u64> {
        self.record.read(|sql| {
            let of = params![rows::source_key(sql, id)?, rows::recipe_row(sql, recipe)?.key];
            rows::one(sql, "SELECT count(*) FROM segments WHERE source = ?1 AND recipe = ?2", of)
        })
    }

    /// How many sources only other recipes have read, so that search knows their words and not their
    /// pictures.
    pub fn unseen_by_search(&self) -> Result<u64> {
        self.record.read(|sql| {
            let Some(current) = rows::current_recipe(sql, RecipeKind::Clip)? else { return Ok(0) };
            let count = "SELECT count(*) FROM sources WHERE \
                 EXISTS (SELECT 1 FROM chunks JOIN recipes ON recipes.key = recipe \
                 WHERE source = sources.key AND kind = 'clip' AND recipe <> ?1) AND \
                 NOT EXISTS (SELECT 1 FROM chunks WHERE source = sources.key AND recipe = ?1)";
            rows::one(sql, count, [current.key])
        })
    }
}

/// What became of a source's cues.
#[derive(Debug, Clone, Copy)]
struct Words {
    /// Recipes by which the source's segments were complete until words came.
    stale: usize,
    /// They are those that the other library has.
    are_theirs: bool,
}

fn by_track(cues: &[Cue]) -> BTreeMap<&str, Vec<&Cue>> {
    let mut tracks: BTreeMap<&str, Vec<&Cue>> = BTreeMap::new();
    for cue in cues {
        tracks.entry(&cue.track).or_default().push(cue);
    }
    tracks
}

/// A place belongs to the source that was seen there last. Returns how many were noted, 0 or 1.
fn merge_location(
    sql: &Connection,
    (key, id): (i64, SourceId),
    location: &Location,
    seen_us: i64,
    conflicts: &mut Vec<Conflict>,
) -> Result<u64> {
    let find = "SELECT source, sources.id, seen_us FROM locations \
         JOIN sources ON sources.key = source WHERE kind = ?1 AND place = ?2";
    let ours = sql
        .prepare_cached(find)?
        .query_row(params![location.place.kind(), location.place.bytes()], |row| {
            Ok((row.get::<_, i64>(0)?, rows::text::<SourceId>(row, 1)?, row.get::<_, i64>(2)?))
        })
        .optional()?;
    let is_newer = ours.is_none_or(|(_, _, ours)| seen_us > ours);
    if let Some((other, other_id, _)) = ours
        && other != key
    {
        let (kept, dropped) = if is_newer { (id, other_id) } else { (other_id, id) };
        conflicts.push(Conflict {
            source: kept,
            what: format!("place {}", location.place),
            kept: kept.to_string(),
            dropped: dropped.to_string(),
        });
    }
    if is_newer {
        insert::location(sql, key, location, seen_us)?;
    }
    Ok(u64::from(is_newer))
}

/// A tag that is here keeps its value. Returns how many were added, 0 or 1.
fn merge_tag(
    sql: &Connection,
    (key, id): (i64, SourceId),
    name: &str,
    value: &str,
    conflicts: &mut Vec<Conflict>,
) -> Result<u64> {
    let find = "SELECT value FROM tags WHERE source = ?1 AND name = ?2";
    let ours: Option<String> =
        sql.prepare_cached(find)?.query_row(params![key, name], |row| row.get(0)).optional()?;
    match ours {
        None => {
            sql.execute(&TAGS.insert(), params![key, name, value])?;
            Ok(1)
        }
        Some(ours) => {
            if ours != value {
                conflicts.push(Conflict {
                    source: id,
                    what: format!("tag {name}"),
                    kept: ours,
                    dropped: value.to_owned(),
                });
            }
            Ok(0)
        }
    }
}
