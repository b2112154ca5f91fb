//! Counts, spans and states against the rows that they speak of.

use rusqlite::{Transaction, params};

use super::{Fault, Findings};
use crate::error::Result;
use crate::library::rows;
use crate::library::types::RecipeKind;
use crate::time::{Span, Timestamp};

/// What must not be: a fault, the table where it shows, what is wrong, and a statement that counts
/// the rows for which it is so. Of a retired recipe, rows are deleted table by table, so they may
/// disagree.
const MUST_NOT_BE: &[(Fault, &str, &str, &str)] = &[
    (
        Fault::Counts,
        "chunks",
        "chunks with other numbers of clips or gaps than they say",
        "SELECT count(*) FROM chunks c WHERE (clips <> (SELECT count(*) FROM clips WHERE \
         source = c.source AND recipe = c.recipe AND start_us >= c.start_us \
         AND start_us < c.end_us) OR gaps <> (SELECT count(*) FROM gaps WHERE \
         source = c.source AND recipe = c.recipe AND chunk = c.number)) \
         AND recipe NOT IN (SELECT key FROM recipes WHERE state = 'retired')",
    ),
    (
        Fault::Counts,
        "clips",
        "clips in no chunk",
        "SELECT count(*) FROM clips k WHERE NOT EXISTS (SELECT 1 FROM chunks WHERE \
         source = k.source AND recipe = k.recipe AND start_us <= k.start_us \
         AND end_us > k.start_us)",
    ),
    (
        Fault::Counts,
        "gaps",
        "gaps in no chunk",
        "SELECT count(*) FROM gaps g WHERE NOT EXISTS (SELECT 1 FROM chunks WHERE \
         source = g.source AND recipe = g.recipe AND number = g.chunk)",
    ),
    (
        Fault::Counts,
        "cues",
        "cues that were heard in no chunk",
        "SELECT count(*) FROM cues c WHERE recipe IS NOT NULL AND NOT EXISTS (SELECT 1 FROM chunks \
         WHERE source = c.source AND recipe = c.recipe AND start_us <= c.start_us \
         AND end_us > c.start_us) AND recipe NOT IN (SELECT key FROM recipes WHERE state = 'retired')",
    ),
    (
        Fault::Counts,
        "sources",
        "sources with another number of cues than they say",
        "SELECT count(*) FROM sources s WHERE cues <> \
         (SELECT count(*) FROM cues WHERE source = s.key)",
    ),
    (
        Fault::Counts,
        "progress",
        "sources with another number of chunks, of segments and readings, or of chunks and cues, than \
         their progress says",
        "SELECT count(*) FROM progress p JOIN recipes ON recipes.key = recipe \
         WHERE p.state = 'complete' AND recipes.state <> 'retired' AND rows <> CASE kind \
         WHEN 'clip' THEN (SELECT count(*) FROM chunks WHERE source = p.source \
         AND recipe = p.recipe) \
         WHEN 'speech' THEN (SELECT count(*) FROM chunks WHERE source = p.source \
         AND recipe = p.recipe) \
         + (SELECT count(*) FROM cues WHERE source = p.source AND recipe = p.recipe) \
         ELSE (SELECT count(*) FROM segments WHERE source = p.source AND recipe = p.recipe) \
         + (SELECT count(*) FROM readings WHERE source = p.source AND recipe = p.recipe) END",
    ),
    (
        Fault::Counts,
        "readings",
        "readings of no segment",
        "SELECT count(*) FROM readings r WHERE NOT EXISTS (SELECT 1 FROM segments WHERE \
         source = r.source AND recipe = r.recipe AND start_us = r.start_us) \
         AND recipe NOT IN (SELECT key FROM recipes WHERE state = 'retired')",
    ),
    (
        Fault::Spans,
        "chunks",
        "chunks that overlap",
        "SELECT count(*) FROM (SELECT start_us, lag(end_us) OVER (PARTITION BY source, recipe \
         ORDER BY number) AS before FROM chunks) WHERE start_us < before",
    ),
    (
        Fault::Spans,
        "clips",
        "clips that overlap",
        "SELECT count(*) FROM (SELECT start_us, lag(end_us) OVER (PARTITION BY source, recipe \
         ORDER BY start_us) AS before FROM clips) WHERE start_us < before",
    ),
    (
        Fault::Spans,
        "segments",
        "segments that overlap",
        "SELECT count(*) FROM (SELECT start_us, lag(end_us) OVER (PARTITION BY source, recipe \
         ORDER BY start_us) AS before FROM segments) WHERE start_us < before",
    ),
    (
        Fault::State,
        "progress",
        "sources that are complete with chunks missing",
        "SELECT count(*) FROM progress p WHERE state = 'complete' AND \
         recipe NOT IN (SELECT key FROM recipes WHERE state = 'retired') AND \
         (SELECT max(number) + 1 <> count(*) OR max(partial) > 0 FROM chunks \
         WHERE source = p.source AND recipe = p.recipe)",
    ),
    (
        Fault::State,
        "sources",
        "sources that are complete by no recipe",
        "SELECT count(*) FROM sources s WHERE state = 'complete' AND NOT EXISTS \
         (SELECT 1 FROM progress WHERE source = s.key AND state = 'complete')",
    ),
    (
        Fault::State,
        "recipes",
        "kinds of recipes of which none is current",
        "SELECT count(*) FROM (SELECT kind FROM recipes GROUP BY kind \
         HAVING sum(state = 'current') <> 1)",
    ),
    (
        Fault::State,
        "recipes",
        "rows of recipes that are swept",
        "SELECT count(*) FROM recipes r WHERE state = 'swept' AND ( \
         EXISTS (SELECT 1 FROM clips WHERE recipe = r.key) \
         OR EXISTS (SELECT 1 FROM segments WHERE recipe = r.key) \
         OR EXISTS (SELECT 1 FROM readings WHERE recipe = r.key) \
         OR EXISTS (SELECT 1 FROM cues WHERE recipe = r.key) \
         OR EXISTS (SELECT 1 FROM chunks WHERE recipe = r.key))",
    ),
    (
        Fault::Values,
        "clips",
        "recipes whose clips have different numbers of visual words",
        "SELECT count(*) FROM (SELECT recipe FROM clips GROUP BY recipe \
         HAVING min(length(words)) <> max(length(words)))",
    ),
    (
        Fault::Values,
        "meta",
        "generations that are no counts",
        "SELECT 2 - count(*) FROM meta WHERE name IN ('clips_generation', 'segments_generation') \
         AND typeof(value) = 'integer' AND value >= 0",
    ),
    (
        Fault::Unfinished,
        "chunks",
        "chunks of which only a part was saved",
        "SELECT count(*) FROM chunks WHERE partial \
         AND source NOT IN (SELECT key FROM sources WHERE origin = 'live')",
    ),
    (
        Fault::Unfinished,
        "recipes",
        "recipes whose rows are being deleted",
        "SELECT count(*) FROM recipes WHERE state = 'retired'",
    ),
    (
        Fault::Unfinished,
        "forgotten",
        "sources that are being forgotten",
        "SELECT count(*) FROM forgotten",
    ),
    (
        Fault::Unfinished,
        "sources",
        "sources that are not read to the end",
        // A live source has no end.
        "SELECT count(*) FROM sources WHERE state = 'new' AND origin <> 'live'",
    ),
];

/// Tables of rows with an embedding in the space of their recipe.
const EMBEDDED: &[&str] = &["clips", "segments", "readings"];

pub(super) fn all(sql: &Transaction<'_>, findings: &mut Findings<'_>) -> Result<()> {
    let of = (MUST_NOT_BE.len() + EMBEDDED.len()) as u64 + 1;
    for (done, (fault, table, what, statement)) in MUST_NOT_BE.iter().enumerate() {
        findings.at("counts", done as u64, of)?;
        findings.part(table, |findings| {
            findings.add(*fault, table, rows::one(sql, statement, [])?, *what);
            Ok(())
        })?;
    }
    for (done, table) in (MUST_NOT_BE.len() as u64..).zip(EMBEDDED) {
        findings.at("counts", done, of)?;
        findings.part(table, |findings| {
            let statement = format!(
                "SELECT count(*) FROM {table} JOIN recipes ON recipes.key = recipe \
                 LEFT JOIN spaces ON spaces.key = space \
                 WHERE embedding IS NOT NULL AND length(embedding) IS NOT dimension * 2"
            );
            let what = "embeddings of another length than their space has";
            findings.add(Fault::Values, table, rows::one(sql, &statement, [])?, what);
            Ok(())
        })?;
    }
    findings.part("segments", |findings| {
        let alone = clips_in_no_segment(sql)?;
        findings.add(Fault::Spans, "segments", alone, "clips whose middle no segment holds");
        Ok(())
    })
}

/// Clips that belong to no segment, of the sources that are complete both by a recipe of segments
/// and by that of the clips they are made of.
fn clips_in_no_segment(sql: &Transaction<'_>) -> Result<u64> {
    let recipes = rows::recipes(sql)?;
    let mut alone = 0;
    let retired: Vec<i64> =
        rows::all(sql, "SELECT key FROM recipes WHERE state = 'retired'", [], |row| row.get(0))?;
    let kept = |row: &&rows::RecipeRow| {
        row.recipe.kind == RecipeKind::Segment && !retired.contains(&row.key)
    };
    for segments in recipes.iter().filter(kept) {
        // A recipe of segments names that of the clips that they are made of.
        let of = segments.recipe.description.get("clips").and_then(|hash| hash.as_str());
        let Some(clips) = recipes.iter().find(|row| Some(row.recipe.id.to_string().as_str()) == of)
        else {
            continue;
        };
        let both = "SELECT source FROM progress p WHERE recipe = ?1 AND state = 'complete' \
             AND EXISTS (SELECT 1 FROM progress WHERE source = p.source AND recipe = ?2 \
             AND state = 'complete')";
        let sources: Vec<i64> =
            rows::all(sql, both, params![segments.key, clips.key], |row| row.get(0))?;
        for source in sources {
            let held = spans(sql, "segments", source, segments.key)?;
            let is_alone = |clip: &&Span| {
                let at = clip.midpoint();
                let before = held.partition_point(|segment| segment.start <= at);
                !held[..before].last().is_some_and(|segment| segment.contains(at))
            };
            alone += spans(sql, "clips", source, clips.key)?.iter().filter(is_alone).count() as u64;
        }
    }
    Ok(alone)
}

fn spans(sql: &Transaction<'_>, table: &str, source: i64, recipe: i64) -> Result<Vec<Span>> {
    let find = format!(
        "SELECT start_us, end_us FROM {table} WHERE source = ?1 AND recipe = ?2 ORDER BY start_us"
    );
    rows::all(sql, &find, params![source, recipe], |row| {
        Ok(Span::new(Timestamp(row.get(0)?), Timestamp(row.get(1)?)))
    })
}
