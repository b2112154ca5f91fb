//! Rows against their digests, and clips against their features.

use std::cmp::Ordering;
use std::collections::HashMap;

use rusqlite::{Connection, Transaction, params};

use super::{Fault, Findings};
use crate::error::Result;
use crate::library::digest::{Table, features_digest, is_whole};
use crate::library::rows;

/// Rows between two reports of how far the check is.
const TELL_ROWS: u64 = 4_096;

/// Whether each row of a table is what was written.
pub(super) fn digests(
    sql: &Transaction<'_>,
    table: &'static Table,
    findings: &mut Findings<'_>,
) -> Result<()> {
    let of: u64 = rows::one(sql, &format!("SELECT count(*) FROM {}", table.name), [])?;
    let mut all =
        sql.prepare(&format!("SELECT {}, digest FROM {}", table.columns.join(", "), table.name))?;
    let mut found = all.query([])?;
    let (mut done, mut changed, mut first) = (0, 0, String::new());
    while let Some(row) = found.next()? {
        if !is_whole(table, row, 0)? {
            changed += 1;
            if changed == 1 {
                first = format!("row {} of {of} is not what was written", done + 1);
            }
        }
        done += 1;
        if done % TELL_ROWS == 0 {
            findings.at(table.name, done, of)?;
        }
    }
    findings.add(Fault::Changed, table.name, changed, first);
    Ok(())
}

/// Where a clip or its features belong: source, recipe, start.
pub(super) type Place = (i64, i64, i64);

/// Whether each clip has its features, and each row of features its clip.
pub(super) fn pairs(
    sql: &Transaction<'_>,
    features: &Transaction<'_>,
    findings: &mut Findings<'_>,
) -> Result<()> {
    let of: u64 = rows::one(sql, "SELECT count(*) FROM clips", [])?;
    let mut clips = sql.prepare(
        "SELECT source, recipe, start_us, features_digest FROM clips \
         ORDER BY source, recipe, start_us",
    )?;
    let mut clips = clips.query([])?;
    let mut vectors = features.prepare(
        "SELECT source, recipe, start_us, features FROM features ORDER BY source, recipe, start_us",
    )?;
    let mut vectors = vectors.query([])?;
    let (mut lost, mut alone, mut left, mut odd) = (0, 0, 0, 0);
    let mut counts: HashMap<i64, Option<usize>> = HashMap::new();
    let mut done = 0;
    let place =
        |row: &rusqlite::Row<'_>| -> Result<Place> { Ok((row.get(0)?, row.get(1)?, row.get(2)?)) };
    let (mut clip, mut vector) = (clips.next()?, vectors.next()?);
    loop {
        let order = match (clip, vector) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(clip), Some(vector)) => place(clip)?.cmp(&place(vector)?),
        };
        if let Some(clip) = clip.filter(|_| order.is_le()) {
            let bytes = match vector.filter(|_| order.is_eq()) {
                Some(vector) => Some(vector.get_ref(3)?.as_blob().map_err(rusqlite::Error::from)?),
                None => None,
            };
            let digest = clip.get_ref(3)?.as_blob().map_err(rusqlite::Error::from)?;
            if bytes.is_none_or(|bytes| features_digest(bytes) != digest) {
                // A chunk of which only a part was saved is read again, unless its source is live.
                match chunk_at(sql, place(clip)?)? {
                    Some(true) if is_live(sql, place(clip)?.0)? => {}
                    Some(true) => left += 1,
                    _ => lost += 1,
                }
            }
            if let Some(bytes) = bytes {
                let count = rows::features_count(bytes);
                let same = *counts.entry(place(clip)?.1).or_insert(count);
                odd += u64::from(count.is_none() || same != count);
            }
            done += 1;
            if done % TELL_ROWS == 0 {
                findings.at("features", done, of)?;
            }
        } else if let Some(vector) = vector {
            match is_left(sql, place(vector)?)? {
                true => left += 1,
                false => alone += 1,
            }
        }
        if order.is_le() {
            clip = clips.next()?;
        }
        if order.is_ge() {
            vector = vectors.next()?;
        }
    }
    findings.add(Fault::FeaturesLost, "features", lost, "clips without their features");
    findings.add(Fault::FeaturesAlone, "features", alone, "features that belong to no clip");
    findings.add(
        Fault::Values,
        "features",
        odd,
        "other numbers of features than others of the recipe have",
    );
    findings.add(Fault::Unfinished, "features", left, "of chunks that are not read to the end");
    Ok(())
}

/// Whether what belongs to no clip is what something unfinished has left there.
pub(super) fn is_left(sql: &Connection, place: Place) -> Result<bool> {
    // Rows of a retired recipe are on their way out, those of the features' file last.
    let retired = "SELECT EXISTS (SELECT 1 FROM recipes WHERE key = ?1 AND state = 'retired')";
    if sql.prepare_cached(retired)?.query_row([place.1], |row| row.get(0))? {
        return Ok(true);
    }
    Ok(chunk_at(sql, place)? != Some(false) && !belongs_nowhere(sql, place)?)
}

/// Whether the chunk that holds this place is partial; none where no chunk does.
fn chunk_at(sql: &Connection, place: Place) -> Result<Option<bool>> {
    let mut find = sql.prepare_cached(
        "SELECT min(partial) FROM chunks \
         WHERE source = ?1 AND recipe = ?2 AND start_us <= ?3 AND end_us > ?3",
    )?;
    Ok(find.query_row(params![place.0, place.1, place.2], |row| row.get(0))?)
}

fn is_live(sql: &Connection, source: i64) -> Result<bool> {
    let find = "SELECT EXISTS (SELECT 1 FROM sources WHERE key = ?1 AND origin = 'live')";
    let mut find = sql.prepare_cached(find)?;
    Ok(find.query_row([source], |row| row.get(0))?)
}

/// Whether the record knows no such source, not even as one that is being forgotten, or no such
/// recipe.
fn belongs_nowhere(sql: &Connection, place: Place) -> Result<bool> {
    let known = "SELECT (EXISTS (SELECT 1 FROM sources WHERE key = ?1) \
         OR EXISTS (SELECT 1 FROM forgotten WHERE source = ?1)) \
         AND EXISTS (SELECT 1 FROM recipes WHERE key = ?2 AND state <> 'swept')";
    Ok(!rows::one::<bool>(sql, known, params![place.0, place.1])?)
}
