//! Hits: lists of segments fused into one, and what is told of each.

use std::cmp::Reverse;
use std::collections::HashMap;

use rusqlite::{Connection, OptionalExtension, params};
use serde::Serialize;

use super::ids::{ClipId, SourceId};
use super::rows;
use super::types::{Location, Origin, SegmentReading};
use super::words::named;
use crate::error::Result;
use crate::media::{Caption, Channel, TimedWord};
use crate::time::{Span, Timestamp};

/// The constant of reciprocal rank fusion, as its authors found it.
const FUSION: f64 = 60.0;

/// One search result.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Hit {
    /// From 1.
    pub rank: usize,
    pub source: SourceId,
    pub name: String,
    pub origin: Origin,
    /// Where the source was seen last; none where it is gone.
    pub location: Option<Location>,
    #[serde(flatten)]
    pub span: HitSpan,
    /// What found it at the best rank, with its score.
    #[serde(flatten)]
    pub found: Found,
    /// Everything that found it.
    pub channels: Vec<Found>,
    /// Sum of reciprocal ranks; it only orders.
    pub fused: f64,
    /// The clip at the hit, for searching on with its picture.
    pub clip: Option<ClipId>,
    /// What is said or read in the segment; the cue's text where there is no segment.
    pub words: String,
    /// The query's words as they are said there, with the time of each; empty where that is not known.
    pub said: Vec<TimedWord>,
    /// What the transformer wrote about the segment, and how well words and picture fit, 0 to 1.
    pub caption: Option<Caption>,
    pub alignment: Option<f32>,
    /// When the hit begins on the wall clock, in microseconds since 1970, where known.
    pub wall_clock_us: Option<i64>,
}

/// A hit's span and its segment's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct HitSpan {
    pub start_us: Timestamp,
    pub end_us: Timestamp,
    pub segment: Option<Span>,
}

/// How one list found a hit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Found {
    pub channel: Channel,
    pub by: By,
    /// By meaning: cosine, -1 to 1. By words: the share of the query's terms, 0 to 1.
    pub score: f32,
}

/// What a list compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum By {
    Meaning,
    Words,
}

impl By {
    pub fn as_str(self) -> &'static str {
        match self {
            By::Meaning => "meaning",
            By::Words => "words",
        }
    }
}

/// What is ranked: a segment, or what belongs to none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Unit {
    pub source: i64,
    pub span: UnitSpan,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum UnitSpan {
    Segment {
        start: i64,
        end: i64,
    },
    /// A clip or cue by where it starts.
    Alone {
        start: i64,
    },
}

/// A unit in a list, and what of it was found.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ranked {
    pub unit: Unit,
    pub span: Span,
    pub score: f32,
}

/// What a channel found in one way, best first.
pub(super) type List = (Channel, By, Vec<Ranked>);

/// A unit with all that found it.
pub(super) struct Fused {
    unit: Unit,
    span: Span,
    /// Best rank first.
    found: Vec<(usize, Found)>,
    fused: f64,
}

/// The best `top` units, best first.
pub(super) fn fuse(lists: &[List], top: usize) -> Vec<Fused> {
    let mut units: HashMap<Unit, Fused> = HashMap::new();
    for (channel, by, list) in lists {
        for (place, ranked) in list.iter().enumerate() {
            let rank = place + 1;
            let unit = units.entry(ranked.unit).or_insert(Fused {
                unit: ranked.unit,
                span: ranked.span,
                found: Vec::new(),
                fused: 0.0,
            });
            unit.fused += 1.0 / (FUSION + rank as f64);
            // At the same rank, words tell the moment better: a cue's time, not a segment's.
            let is_first = |(other, found): &(usize, Found)| {
                (rank, Reverse(*by)) < (*other, Reverse(found.by))
            };
            if unit.found.iter().all(is_first) {
                unit.span = ranked.span;
            }
            unit.found.push((rank, Found { channel: *channel, by: *by, score: ranked.score }));
        }
    }
    let mut units: Vec<Fused> = units.into_values().collect();
    for unit in &mut units {
        unit.found.sort_by_key(|(rank, found)| (*rank, Reverse(found.by)));
    }
    units.sort_by(|a, b| b.fused.total_cmp(&a.fused).then(a.unit.cmp(&b.unit)));
    units.truncate(top);
    units
}

pub(super) fn hit(
    sql: &Connection,
    rank: usize,
    fused: Fused,
    clip_recipe: Option<i64>,
    query: &str,
) -> Result<Hit> {
    let key = fused.unit.source;
    let find = format!("SELECT {} FROM sources WHERE key = ?1", rows::SOURCE);
    let (_, source) = sql.prepare_cached(&find)?.query_row([key], rows::source)?;
    let find = format!(
        "SELECT {} FROM locations WHERE source = ?1 ORDER BY seen_us DESC LIMIT 1",
        rows::LOCATION
    );
    let location = sql.prepare_cached(&find)?.query_row([key], rows::location).optional()?;
    let mut reading = SegmentReading::default();
    let (segment, words) = match fused.unit.span {
        UnitSpan::Segment { start, end } => {
            let text = "SELECT text FROM segments WHERE source = ?1 AND start_us = ?2 AND recipe = \
                 (SELECT key FROM recipes WHERE kind = 'segment' AND state = 'current')";
            let text = rows::one(sql, text, params![key, start])?;
            reading = reading_at(sql, key, start)?;
            (Some(Span::new(Timestamp(start), Timestamp(end))), text)
        }
        UnitSpan::Alone { .. } => (None, words_in(sql, key, fused.span)?),
    };
    let clip = match clip_recipe {
        Some(recipe) => clip_at(sql, key, recipe, fused.span.midpoint())?,
        None => None,
    };
    let found: Vec<Found> = fused.found.iter().map(|(_, found)| *found).collect();
    let is_said = |found: &Found| (found.channel, found.by) == (Channel::Speech, By::Words);
    let said = match found.iter().any(is_said) {
        true => said_in(sql, key, segment.unwrap_or(fused.span), query)?,
        false => Vec::new(),
    };
    Ok(Hit {
        rank,
        source: source.id,
        name: source.name,
        origin: source.origin,
        location,
        span: HitSpan { start_us: fused.span.start, end_us: fused.span.end, segment },
        found: found[0],
        channels: found,
        fused: fused.fused,
        clip: clip.map(|start| ClipId { source: source.id, start }),
        words,
        said,
        caption: reading.caption,
        alignment: reading.alignment,
        wall_clock_us: source.wall.map(|wall| wall.start_us.saturating_add(fused.span.start.0)),
    })
}

/// What the transformer made of the segment that starts there.
fn reading_at(sql: &Connection, source: i64, start: i64) -> Result<SegmentReading> {
    let find = format!(
        "SELECT {} FROM readings WHERE source = ?1 AND start_us = ?2 AND recipe = \
         (SELECT key FROM recipes WHERE kind = 'segment' AND state = 'current')",
        rows::READING
    );
    let mut find = sql.prepare_cached(&find)?;
    let found = find.query_row([source, start], |row| rows::reading(row, 0)).optional()?;
    Ok(found.unwrap_or_default())
}

/// Where the clip that holds this instant starts.
pub(super) fn clip_at(
    sql: &Connection,
    source: i64,
    recipe: i64,
    at: Timestamp,
) -> Result<Option<Timestamp>> {
    let mut find = sql.prepare_cached(
        "SELECT start_us, end_us FROM clips WHERE source = ?1 AND recipe = ?2 AND start_us <= ?3 \
         ORDER BY start_us DESC LIMIT 1",
    )?;
    let found = find.query_row(params![source, recipe, at.0], |row| rows::span(row, 0));
    let span = found.optional()?.filter(|span| span.contains(at));
    Ok(span.map(|span| span.start))
}

/// The text of the cues that overlap a span, a line each.
fn words_in(sql: &Connection, source: i64, span: Span) -> Result<String> {
    let find = format!(
        "SELECT text FROM cues WHERE source = ?1 AND start_us < ?3 AND end_us > ?2 AND {} \
         ORDER BY start_us LIMIT 16",
        rows::IS_CURRENT_CUE
    );
    let at = params![source, span.start.0, span.end.0];
    let texts: Vec<String> = rows::all(sql, &find, at, |row| row.get(0))?;
    Ok(texts.join("\n"))
}

/// The query's words as they are said within a span.
fn said_in(sql: &Connection, source: i64, span: Span, query: &str) -> Result<Vec<TimedWord>> {
    let find = format!(
        "SELECT words FROM cues WHERE source = ?1 AND start_us < ?3 AND end_us > ?2 \
         AND words IS NOT NULL AND {} ORDER BY start_us LIMIT 64",
        rows::IS_CURRENT_CUE
    );
    let at = params![source, span.start.0, span.end.0];
    let cues: Vec<Vec<TimedWord>> = rows::all(sql, &find, at, |row| rows::json(row, 0))?;
    let is_there = |word: &&TimedWord| span.contains(word.span.midpoint());
    let named = cues.iter().flat_map(|said| named(query, said)).filter(is_there);
    Ok(named.cloned().collect())
}
