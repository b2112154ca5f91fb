//! Clips against their thumbnails.

use std::collections::BTreeMap;

use rusqlite::Transaction;

use super::rows::{Place, is_left};
use super::{Fault, Findings};
use crate::error::Result;
use crate::library::digest::{THUMBNAILS, is_whole};
use crate::library::rows;
use crate::media::Thumbnail;

/// Thumbnails between two reports of how far the check is.
const TELL_ROWS: u64 = 1_024;

/// A chunk's end, how many thumbnails its clips should have, and how many they have.
struct Chunk {
    end_us: i64,
    said: u64,
    found: u64,
}

/// Whether each thumbnail is what was written, a JPEG, and of a clip, and each chunk's clips have as many as
/// they had.
pub(super) fn all(
    sql: &Transaction<'_>,
    files: &Transaction<'_>,
    findings: &mut Findings<'_>,
) -> Result<()> {
    let mut chunks = chunks(sql)?;
    let of: u64 = rows::one(files, "SELECT count(*) FROM thumbnails", [])?;
    let mut clip =
        sql.prepare("SELECT 1 FROM clips WHERE source = ?1 AND recipe = ?2 AND start_us = ?3")?;
    let find = format!("SELECT {}, digest FROM thumbnails", THUMBNAILS.columns.join(", "));
    let mut find = files.prepare(&find)?;
    let mut thumbnails = find.query([])?;
    let (mut done, mut changed, mut odd, mut alone, mut left) = (0, 0, 0, 0, 0);
    while let Some(row) = thumbnails.next()? {
        let place: Place = (row.get(0)?, row.get(1)?, row.get(2)?);
        if !is_whole(&THUMBNAILS, row, 0)? {
            changed += 1;
        } else if Thumbnail::from_bytes(row.get(3)?).is_none() {
            odd += 1;
        } else if clip.exists(place)? {
            let chunk = chunks.range_mut(..=place).next_back();
            let held = chunk
                .filter(|(of, chunk)| (of.0, of.1) == (place.0, place.1) && place.2 < chunk.end_us);
            held.into_iter().for_each(|(_, chunk)| chunk.found += 1);
        } else if is_left(sql, place)? {
            left += 1;
        } else {
            alone += 1;
        }
        done += 1;
        if done % TELL_ROWS == 0 {
            findings.at(THUMBNAILS.name, done, of)?;
        }
    }
    let differ = |more: fn(&Chunk) -> u64| chunks.values().map(more).sum::<u64>();
    let lost = differ(|chunk| chunk.said.saturating_sub(chunk.found));
    let unsaid = differ(|chunk| chunk.found.saturating_sub(chunk.said));
    let mut add = |fault, count, what| findings.add(fault, THUMBNAILS.name, count, what);
    add(Fault::Changed, changed, "thumbnails that are not what was written");
    add(Fault::Values, odd, "thumbnails that are no JPEG");
    add(Fault::ThumbnailsLost, lost, "clips without the thumbnail that they had");
    add(Fault::Counts, unsaid, "thumbnails that their chunks do not count");
    add(Fault::FeaturesAlone, alone, "thumbnails that belong to no clip");
    add(Fault::Unfinished, left, "of chunks that are not read to the end");
    Ok(())
}

/// The chunks of clips by source, recipe and start. Of a retired recipe, clips go before their chunks.
fn chunks(sql: &Transaction<'_>) -> Result<BTreeMap<Place, Chunk>> {
    let find = "SELECT source, recipe, start_us, end_us, thumbnails FROM chunks \
         JOIN recipes ON recipes.key = recipe WHERE kind = 'clip' AND recipes.state <> 'retired'";
    let chunks = rows::all(sql, find, [], |row| {
        let chunk = Chunk { end_us: row.get(3)?, said: row.get(4)?, found: 0 };
        Ok(((row.get(0)?, row.get(1)?, row.get(2)?), chunk))
    })?;
    Ok(chunks.into_iter().collect())
}
