//! Thumbnails as they are looked at.

use rusqlite::{OptionalExtension, params};

use super::digest::{THUMBNAILS, is_whole};
use super::ids::ClipId;
use super::reader::Reader;
use super::rows;
use super::types::RecipeKind;
use crate::error::{Error, Result};
use crate::media::Thumbnail;

impl Reader {
    /// The thumbnail of a clip of the current recipe; `None` where it has none, as clips from before schema 6.
    ///
    /// Errors: `NotFound` for no such source; `Corrupt` where it is not what was written.
    pub fn thumbnail(&self, id: ClipId) -> Result<Option<Thumbnail>> {
        let (source, recipe) = self.record.read(|sql| {
            let recipe = rows::current_recipe(sql, RecipeKind::Clip)?.map(|row| row.key);
            Ok((rows::source_key(sql, id.source)?, recipe))
        })?;
        self.features.read(|sql| {
            let columns = THUMBNAILS.columns.join(", ");
            let find = format!(
                "SELECT {columns}, digest FROM thumbnails \
                 WHERE source = ?1 AND recipe = ?2 AND start_us = ?3"
            );
            let found = sql
                .prepare_cached(&find)?
                .query_row(params![source, recipe, id.start.0], |row| {
                    Ok((is_whole(&THUMBNAILS, row, 0)?, row.get(3)?))
                })
                .optional()?;
            let Some((is_whole, jpeg)) = found else { return Ok(None) };
            let thumbnail = Thumbnail::from_bytes(jpeg).filter(|_| is_whole);
            let damaged =
                || Error::corrupt(format!("the thumbnail of {id} is not what was written"));
            thumbnail.map(Some).ok_or_else(damaged)
        })
    }
}
