//! What is stored of live sources, and what they have not seen.

use std::ops::Range;

use rusqlite::{Connection, params};
use serde::Serialize;

use super::digest::SOURCES;
use super::hearing::heard_until;
use super::ids::{RecipeId, SourceId};
use super::reader::Reader;
use super::rows;
use super::search::{Filter, Query};
use super::types::{RecipeKind, WallOrigin};
use super::watches::{NOT_STORED, Watch, last_watch};
use super::writer::Writer;
use crate::error::Result;
use crate::media::{Gap, TrackKind};
use crate::time::{Micros, Span, Timestamp};

impl Writer {
    /// Up to where clips of a source are stored; `None` where there are none.
    pub fn seen_until(&self, source: SourceId, recipe: &RecipeId) -> Result<Option<Timestamp>> {
        self.record.read(|sql| {
            let (source, recipe) = (rows::source_key(sql, source)?, rows::recipe_row(sql, recipe)?);
            seen_until(sql, source, recipe.key)
        })
    }

    /// Up to where clips and gaps of a source are stored; `None` where there are none.
    pub fn stored_until(&self, source: SourceId, recipe: &RecipeId) -> Result<Option<Timestamp>> {
        self.record.read(|sql| {
            let (source, recipe) = (rows::source_key(sql, source)?, rows::recipe_row(sql, recipe)?);
            stored_until(sql, source, recipe.key)
        })
    }

    /// What the run that watched a source last did not come to store, where it was cut off while the source was
    /// lost: why nothing was seen from what is stored on, in order; for a recipe of speech, why nothing was heard, if
    /// that run listened.
    pub fn untold(&self, source: SourceId, recipe: &RecipeId) -> Result<Vec<Gap>> {
        self.record.read(|sql| {
            let (source, recipe) = (rows::source_key(sql, source)?, rows::recipe_row(sql, recipe)?);
            let track = match recipe.recipe.kind {
                RecipeKind::Speech => TrackKind::Sound,
                _ => TrackKind::Picture,
            };
            let is_untold = |watch: &Watch| {
                let is_cut_off = watch.ended_us.is_some() && watch.outage().is_some();
                is_cut_off && (track == TrackKind::Picture || watch.listens())
            };
            let Some(watch) = last_watch(sql, source)?.filter(is_untold) else {
                return Ok(Vec::new());
            };
            let zero_us = "SELECT coalesce(wall_start_us, 0) FROM sources WHERE key = ?1";
            let zero_us: i64 = rows::one(sql, zero_us, [source])?;
            let stored = match track {
                TrackKind::Sound => heard_until(sql, source, recipe.key)?,
                _ => stored_until(sql, source, recipe.key)?,
            };
            let since = Timestamp(watch.unstored_since().saturating_sub(zero_us));
            let stored = stored.or(Some(since));
            let missing = missing(sql, source, stored, zero_us, watch.told_us)?.into_iter();
            Ok(missing.map(|(span, reason)| Gap { span, track, reason }).collect())
        })
    }

    /// Notes whose clock a live source's times are of from now on.
    pub fn set_wall_origin(&mut self, source: SourceId, origin: WallOrigin) -> Result<()> {
        self.record.write(|sql| {
            let key = rows::source_key(sql, source)?;
            let changed = sql.execute(
                "UPDATE sources SET wall_origin = ?2 WHERE key = ?1 AND wall_origin IS NOT ?2",
                params![key, origin.as_str()],
            )?;
            if changed > 0 { SOURCES.seal(sql, "key = ?1", [key]) } else { Ok(()) }
        })
    }
}

/// Up to where there are clips.
fn seen_until(sql: &Connection, source: i64, recipe: i64) -> Result<Option<Timestamp>> {
    let find = "SELECT max(end_us) FROM (SELECT end_us FROM clips \
         WHERE source = ?1 AND recipe = ?2 ORDER BY start_us DESC LIMIT 1)";
    let until: Option<i64> = rows::one(sql, find, params![source, recipe])?;
    Ok(until.map(Timestamp))
}

/// Up to where there are clips and gaps.
fn stored_until(sql: &Connection, source: i64, recipe: i64) -> Result<Option<Timestamp>> {
    // No gap of a chunk ends before one of an earlier chunk.
    let find = "SELECT max(end_us) FROM gaps WHERE source = ?1 AND recipe = ?2 AND chunk = \
         (SELECT max(chunk) FROM gaps WHERE source = ?1 AND recipe = ?2)";
    let unseen_until: Option<i64> = rows::one(sql, find, params![source, recipe])?;
    Ok(seen_until(sql, source, recipe)?.max(unseen_until.map(Timestamp)))
}

/// What is not stored of a live source up to now, and why: since something was, or else since a run began to
/// watch it. `stored`: up to where something is; `zero_us`: where its media time has its zero.
fn missing(
    sql: &Connection,
    source: i64,
    stored: Option<Timestamp>,
    zero_us: i64,
    now_us: i64,
) -> Result<Vec<(Span, String)>> {
    let watch = last_watch(sql, source)?;
    let media = |wall_us: i64| Timestamp(wall_us.saturating_sub(zero_us));
    let deleted_until = "SELECT max(from_us) FROM kept WHERE source = ?1";
    let deleted_until: Option<i64> = rows::one(sql, deleted_until, [source])?;
    let stored = stored.max(deleted_until.map(Timestamp));
    let started = watch.as_ref().map(|watch| media(watch.started_us));
    let Some(since) = stored.or(started) else { return Ok(Vec::new()) };
    let from_us = zero_us.saturating_add(since.0);
    let reasons = match &watch {
        Some(watch) => watch.why_nothing_comes(from_us, now_us),
        None => vec![(from_us..now_us, NOT_STORED)],
    };
    let span = |wall: Range<i64>| Span::new(media(wall.start), media(wall.end));
    Ok(reasons.into_iter().map(|(wall, why)| (span(wall), why.to_owned())).collect())
}

/// The gaps that a recipe has found in a source, in order.
fn gaps_of(sql: &Connection, source: i64, recipe: i64) -> Result<Vec<(Span, String)>> {
    let find = format!(
        "SELECT {} FROM gaps WHERE source = ?1 AND recipe = ?2 ORDER BY start_us",
        rows::GAP
    );
    rows::all(sql, &find, params![source, recipe], |row| {
        let gap = rows::gap(row)?;
        Ok((gap.span, gap.reason))
    })
}

/// A time of which a live source shows nothing, or in which it was not heard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unseen {
    pub source: SourceId,
    pub name: String,
    /// Microseconds since 1970.
    pub from_us: i64,
    pub to_us: i64,
    /// What is not there: picture, or the sound of a source that is listened to.
    pub track: TrackKind,
    /// In words.
    pub reason: String,
}

/// What is younger may still be on its way into the library.
const STILL_COMING: Micros = Micros::from_millis(10_000);

impl Reader {
    /// What the live sources that a query looks at have not seen of its time, in order, and then what they
    /// have not heard while there was a picture. `now_us`: the wall clock.
    pub fn unseen(&self, query: &Query, now_us: i64) -> Result<Vec<Unseen>> {
        let asked = query.from_us.unwrap_or(i64::MIN)..query.to_us.unwrap_or(i64::MAX).min(now_us);
        self.record.read(|sql| {
            let filter = Filter::of(sql, query)?;
            let Some(recipe) = rows::current_recipe(sql, RecipeKind::Clip)? else {
                return Ok(Vec::new());
            };
            let speech = rows::current_recipe(sql, RecipeKind::Speech)?;
            let find = "SELECT key, id, name, wall_start_us FROM sources \
                 WHERE origin = 'live' AND wall_start_us IS NOT NULL ORDER BY key";
            let live: Vec<(i64, SourceId, String, i64)> = rows::all(sql, find, [], |row| {
                Ok((row.get(0)?, rows::text(row, 1)?, row.get(2)?, row.get(3)?))
            })?;
            let mut unseen = Vec::new();
            for (key, source, name, zero) in live {
                // What was deleted lies before all gaps that are left.
                let find = "SELECT first_us, from_us, why FROM kept WHERE source = ?1";
                let deleted: Vec<(Span, String)> =
                    rows::all(sql, find, [key], |row| Ok((rows::span(row, 0)?, row.get(2)?)))?;
                let mut gaps = gaps_of(sql, key, recipe.key)?;
                let mut unheard = match &speech {
                    Some(speech) => gaps_of(sql, key, speech.key)?,
                    None => Vec::new(),
                };
                // A camera that is not reached is neither seen nor heard, which is said once.
                let is_said = |sound: &(Span, String)| {
                    gaps.iter().any(|seen| seen.1 == sound.1 && seen.0.overlaps(sound.0))
                };
                unheard.retain(|gap| !is_said(gap));
                let now = Timestamp(now_us.saturating_sub(zero));
                let stored = stored_until(sql, key, recipe.key)?;
                let since = missing(sql, key, stored, zero, now_us)?.into_iter();
                gaps.extend(since.filter(|(span, _)| now - span.start > STILL_COMING));
                let deleted = deleted.into_iter().filter(|(span, _)| filter.asks(key, *span));
                let seen =
                    deleted.chain(gaps.into_iter().filter(|(span, _)| filter.keeps(key, *span)));
                let unheard = unheard.into_iter().filter(|(span, _)| filter.keeps(key, *span));
                let all = seen.map(|gap| (TrackKind::Picture, gap));
                let all = all.chain(unheard.map(|gap| (TrackKind::Sound, gap)));
                for (track, (span, reason)) in all {
                    let at = |media: Timestamp| {
                        zero.saturating_add(media.0).clamp(asked.start, asked.end.max(asked.start))
                    };
                    let (from_us, to_us) = (at(span.start), at(span.end));
                    let name = name.clone();
                    unseen.push(Unseen { source, name, from_us, to_us, track, reason });
                }
            }
            Ok(unseen)
        })
    }
}
