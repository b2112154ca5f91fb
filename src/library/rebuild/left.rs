//! What is left of a chunk in the features' file.

use std::collections::BTreeSet;

use rusqlite::{Connection, OptionalExtension, params};

use crate::error::Result;
use crate::library::digest::{THUMBNAILS, features_digest};
use crate::library::rows;
use crate::library::schema::Database;

/// Whether all clips of a chunk have the features that they had.
pub(super) fn has_features(
    sql: &Connection,
    features: &Database,
    source: i64,
    recipe: i64,
    start_us: i64,
    end_us: i64,
) -> Result<bool> {
    let find = "SELECT start_us, features_digest FROM clips WHERE source = ?1 AND recipe = ?2 \
         AND start_us >= ?3 AND start_us < ?4";
    let clips: Vec<(i64, Vec<u8>)> =
        rows::all(sql, find, params![source, recipe, start_us, end_us], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })?;
    features.read(|sql| {
        let mut find = sql.prepare_cached(
            "SELECT features FROM features WHERE source = ?1 AND recipe = ?2 AND start_us = ?3",
        )?;
        for (start_us, digest) in clips {
            let has = find
                .query_row(params![source, recipe, start_us], |row| {
                    Ok(features_digest(row.get_ref(0)?.as_blob()?) == digest[..])
                })
                .optional()?;
            if has != Some(true) {
                return Ok(false);
            }
        }
        Ok(true)
    })
}

/// How many clips of a chunk have the thumbnail that they had.
pub(super) fn thumbnails_left(sql: &Connection, features: &Database, of: [i64; 4]) -> Result<i64> {
    let these = "WHERE source = ?1 AND recipe = ?2 AND start_us >= ?3 AND start_us < ?4";
    let starts = |sql: &Connection, of_what: &str| -> Result<BTreeSet<i64>> {
        let find = format!("SELECT start_us FROM {of_what}");
        Ok(rows::all(sql, &find, of, |row| row.get(0))?.into_iter().collect())
    };
    let clips = starts(sql, &format!("clips {these}"))?;
    let whole = format!("thumbnails {these} AND digest = {}", THUMBNAILS.digest());
    let thumbnails = features.read(|sql| starts(sql, &whole))?;
    Ok(clips.intersection(&thumbnails).count() as i64)
}
