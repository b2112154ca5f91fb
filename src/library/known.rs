//! What of the texts was read for searches, in memory until another connection changes the record.

use std::collections::HashMap;
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension};

use super::rows;
use super::words::WordIndex;
use crate::error::Result;
use crate::media::{Channel, CueKind};
use crate::time::Span;

/// Of a term that more texts hold, only so many are kept.
const MOST_OF_A_TERM: usize = 1 << 16;
/// Keys of all terms that are kept: 32 MB.
const MOST_KEYS: usize = 1 << 22;
/// Rows that are kept: about 20 MB.
const MOST_ROWS: usize = 1 << 18;

/// Which texts hold a term.
#[derive(Debug)]
pub(super) struct Posting {
    /// The first of them, in order.
    pub keys: Vec<i64>,
    /// Whether these are all.
    pub is_whole: bool,
}

/// A cue or a caption, without its text.
#[derive(Debug, Clone, Copy)]
pub(super) struct TextRow {
    pub source: i64,
    pub span: Span,
    pub channel: Channel,
    /// Characters of its text.
    pub length: i64,
}

/// The terms that were asked for with the texts that hold them, and the rows that were looked at. The small
/// words of a language are in every query, and in so many texts that to read the index for them, and the
/// same rows again, takes most of a search.
#[derive(Debug, Default)]
pub(super) struct KnownTexts {
    postings: HashMap<(&'static str, String), Arc<Posting>>,
    /// Of all terms.
    keys: usize,
    /// None where no current recipe has made it.
    rows: HashMap<(&'static str, i64), Option<TextRow>>,
}

impl KnownTexts {
    pub fn posting(
        &mut self,
        sql: &Connection,
        index: WordIndex,
        term: &str,
    ) -> Result<Arc<Posting>> {
        let name = (index.name, term.to_owned());
        if let Some(known) = self.postings.get(&name) {
            return Ok(Arc::clone(known));
        }
        let mut keys = index.holding(sql, term, MOST_OF_A_TERM + 1)?;
        let is_whole = keys.len() <= MOST_OF_A_TERM;
        keys.truncate(MOST_OF_A_TERM);
        if self.keys + keys.len() > MOST_KEYS {
            self.postings.clear();
            self.keys = 0;
        }
        self.keys += keys.len();
        let posting = Arc::new(Posting { keys, is_whole });
        self.postings.insert(name, Arc::clone(&posting));
        Ok(posting)
    }

    /// The row of a text; none where `recipe` of segments, or what listens now, has not made it.
    pub fn row(
        &mut self,
        sql: &Connection,
        index: WordIndex,
        key: i64,
        recipe: i64,
    ) -> Result<Option<TextRow>> {
        if let Some(known) = self.rows.get(&(index.name, key)) {
            return Ok(*known);
        }
        let row = match index == WordIndex::CUES {
            true => cue_row(sql, key)?,
            false => caption_row(sql, key, recipe)?,
        };
        if self.rows.len() >= MOST_ROWS {
            self.rows.clear();
        }
        self.rows.insert((index.name, key), row);
        Ok(row)
    }
}

fn cue_row(sql: &Connection, key: i64) -> Result<Option<TextRow>> {
    let find = format!(
        "SELECT source, start_us, end_us, kind, length(text) FROM cues WHERE key = ?1 AND {}",
        rows::IS_CURRENT_CUE
    );
    let found = sql.prepare_cached(&find)?.query_row([key], |row| {
        let channel = match rows::text(row, 3)? {
            CueKind::Subtitle | CueKind::Speech => Channel::Speech,
            CueKind::Screen => Channel::Screen,
        };
        let (source, span) = (row.get(0)?, rows::span(row, 1)?);
        Ok(TextRow { source, span, channel, length: row.get(4)? })
    });
    Ok(found.optional()?)
}

fn caption_row(sql: &Connection, key: i64, recipe: i64) -> Result<Option<TextRow>> {
    let mut find = sql.prepare_cached(
        "SELECT source, start_us, end_us, coalesce(length(caption), 0) FROM readings \
         WHERE key = ?1 AND recipe = ?2",
    )?;
    let found = find.query_row([key, recipe], |row| {
        let (source, span) = (row.get(0)?, rows::span(row, 1)?);
        Ok(TextRow { source, span, channel: Channel::Caption, length: row.get(3)? })
    });
    Ok(found.optional()?)
}
