//! What was lost of a live source becomes gaps, since it can't be read again.

use rusqlite::{Transaction, params};

use crate::error::Result;
use crate::library::digest::GAPS;
use crate::library::rows;
use crate::media::TrackKind;

/// Why nothing is there where something was.
const DAMAGED: &str = "lost: the library was damaged here";

/// A chunk by its keys.
pub(super) struct Chunk {
    pub source: i64,
    pub recipe: i64,
    pub number: i64,
    pub span: [i64; 2],
}

/// Makes a gap of each place in a live source's chunk where there is neither a clip nor a gap. Where no chunk
/// is next to it, nobody knows where it began or ended. Returns how many gaps there are more.
pub(super) fn fill_holes(sql: &Transaction<'_>, chunk: &Chunk) -> Result<i64> {
    let Chunk { source, recipe, number, span: [start_us, end_us] } = *chunk;
    let of = params![source, recipe, number, start_us, end_us];
    let find = "SELECT start_us, end_us FROM clips WHERE source = ?1 AND recipe = ?2 \
         AND start_us >= ?4 AND start_us < ?5 UNION ALL SELECT start_us, end_us FROM gaps \
         WHERE source = ?1 AND recipe = ?2 AND chunk = ?3 UNION ALL \
         SELECT end_us, end_us FROM chunks WHERE source = ?1 AND recipe = ?2 AND end_us = ?4 UNION ALL \
         SELECT start_us, start_us FROM chunks WHERE source = ?1 AND recipe = ?2 AND start_us = ?5 \
         ORDER BY 1, 2";
    let there: Vec<(i64, i64)> = rows::all(sql, find, of, |row| Ok((row.get(0)?, row.get(1)?)))?;
    let place = "SELECT coalesce(max(place) + 1, 0) FROM gaps \
         WHERE source = ?1 AND recipe = ?2 AND chunk = ?3";
    let first: i64 = rows::one(sql, place, params![source, recipe, number])?;
    let mut insert = sql.prepare_cached(&GAPS.insert())?;
    let mut place = first;
    let mut until = there.first().map_or(start_us, |(_, end)| *end);
    for (start, end) in there {
        if start > until {
            let track = TrackKind::Picture.as_str();
            insert.execute(params![source, recipe, number, place, until, start, track, DAMAGED])?;
            place += 1;
        }
        until = until.max(end);
    }
    Ok(place - first)
}
