//! How live sources are, or were when they were watched last: noted by the run that watches them, for
//! whoever looks into the library meanwhile and later.

use std::ops::Range;

use rusqlite::{Connection, OptionalExtension, params};
use serde::Serialize;
use serde_json::{Map, Value};

use super::commit_point;
use super::digest::WATCHES;
use super::ids::SourceId;
use super::reader::Reader;
use super::rows;
use super::writer::{Writer, to_json};
use crate::error::{Error, Result};

/// A live source as a run watches it, or has watched it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Watch {
    pub started_us: i64,
    /// When the run said last how the source is, on the wall clock, as all times here: microseconds
    /// since 1970.
    pub told_us: i64,
    /// `None` while the run goes on, as far as it was told; of one that was cut off, when it told last.
    pub ended_us: Option<i64>,
    /// The source's name and id, its state, and what became of its frames, as the run tells them.
    #[serde(flatten)]
    pub status: Map<String, Value>,
}

/// How a watched source is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    Connecting,
    Live,
    /// Lost, and tried again.
    Lost,
    Ended,
    /// The run that watched it was cut off.
    CutOff,
    /// The run has said nothing for a while: the machine sleeps, or the disk is full.
    Silent,
}

/// A run that has said nothing for so long is silent: it speaks every few seconds.
const SILENT_US: i64 = 60_000_000;
const NOT_WATCHED: &str = "not watched";
pub(super) const NOT_STORED: &str = "nothing was stored since";

impl Watch {
    /// How the source is, to whoever looks now.
    pub fn how(&self, now_us: i64) -> How {
        let state = self.status.get("state").and_then(Value::as_str);
        match (self.ended_us, state) {
            (Some(_), Some("ended")) => How::Ended,
            (Some(_), _) => How::CutOff,
            (None, _) if now_us.saturating_sub(self.told_us) > SILENT_US => How::Silent,
            (None, Some("connecting")) if !self.is_lost() => How::Connecting,
            (None, Some("live")) => How::Live,
            (None, Some("ended")) => How::Ended,
            (None, _) => How::Lost,
        }
    }

    /// However often it was tried since.
    fn is_lost(&self) -> bool {
        self.status.get("lost_since_us").is_some_and(Value::is_number)
    }

    /// Why the source was lost when the run told last, if it was.
    pub(super) fn outage(&self) -> Option<&str> {
        let text = |key: &str| self.status.get(key).and_then(Value::as_str);
        text("reason").filter(|_| self.is_lost() && text("state") != Some("ended"))
    }

    /// Whether the run listened to the source.
    pub(super) fn listens(&self) -> bool {
        self.status.get("sound").is_some_and(Value::is_object)
    }

    /// Since when nothing was seen of a source of which nothing is stored. What a run had stored before it was lost was given
    /// up for another recipe, and was seen.
    pub(super) fn unstored_since(&self) -> i64 {
        let number = |key: &str| self.status.get(key).and_then(Value::as_i64);
        let lost_us = number("lost_since_us").filter(|_| number("clips") > Some(0));
        lost_us.unwrap_or(self.started_us)
    }

    /// Why nothing of the source is stored from an instant on, for whoever looks now: before the run, while
    /// it told how the source is, and after that.
    pub(super) fn why_nothing_comes(&self, from_us: i64, now_us: i64) -> Vec<(Range<i64>, &str)> {
        let (told_until, after) = match self.how(now_us) {
            How::Ended | How::CutOff => (self.told_us, NOT_WATCHED),
            How::Silent => (self.told_us, NOT_STORED),
            How::Connecting | How::Live | How::Lost => (now_us, NOT_STORED),
        };
        // It may have been well for long, with nothing stored. That it was lost is known after some silence.
        let lost_us = self.status.get("lost_since_us").and_then(Value::as_i64);
        let well_until = lost_us.filter(|us| us - from_us.max(self.started_us) > SILENT_US);
        let parts = [
            (self.started_us, NOT_WATCHED),
            (well_until.unwrap_or(self.started_us), NOT_STORED),
            (told_until, self.outage().unwrap_or(after)),
            (now_us, after),
        ];
        let mut spans: Vec<(Range<i64>, &str)> = Vec::new();
        let mut start = from_us;
        for (end, why) in parts {
            let end = end.min(now_us);
            if end <= start {
                continue;
            }
            match spans.last_mut() {
                Some((span, before)) if *before == why => span.end = end,
                _ => spans.push((start..end, why)),
            }
            start = end;
        }
        spans
    }
}

impl Writer {
    /// Notes how live sources are, in the run that began at `started_us`, in place of what that run has
    /// said of them before.
    pub fn note_watches(
        &mut self,
        started_us: i64,
        told_us: i64,
        is_over: bool,
        statuses: &[(SourceId, Value)],
    ) -> Result<()> {
        self.record.write(|sql| {
            let mut note = sql.prepare_cached(&WATCHES.replace())?;
            for (source, status) in statuses {
                if !status.is_object() {
                    return Err(Error::internal("a status without names"));
                }
                let source = rows::source_key(sql, *source)?;
                let ended_us = is_over.then_some(told_us);
                note.execute(params![source, started_us, told_us, ended_us, to_json(status)?])?;
            }
            Ok(())
        })?;
        commit_point::reached("watch-noted");
        Ok(())
    }

    /// Ends what runs that were cut off have left without an end: nobody else writes now.
    pub(super) fn end_watches(&mut self) -> Result<()> {
        let is_left = "SELECT EXISTS (SELECT 1 FROM watches WHERE ended_us IS NULL)";
        if !self.record.read(|sql| rows::one(sql, is_left, []))? {
            return Ok(());
        }
        self.record.write(|sql| {
            sql.execute("UPDATE watches SET ended_us = told_us WHERE ended_us IS NULL", [])?;
            WATCHES.seal(sql, "ended_us = told_us", [])
        })
    }
}

impl Reader {
    /// How a live source is, or was when it was watched last; `None` where that is not known.
    pub fn watch(&self, source: SourceId) -> Result<Option<Watch>> {
        self.record.read(|sql| last_watch(sql, rows::source_key(sql, source)?))
    }
}

/// How each live source is, or was when it was watched last, in the order in which they were added.
pub(super) fn watches(sql: &Connection) -> Result<Vec<Watch>> {
    let find = "SELECT key FROM sources WHERE origin = 'live' ORDER BY key";
    let sources: Vec<i64> = rows::all(sql, find, [], |row| row.get(0))?;
    let watches = sources.into_iter().map(|source| last_watch(sql, source));
    watches.filter_map(Result::transpose).collect()
}

pub(super) fn last_watch(sql: &Connection, source: i64) -> Result<Option<Watch>> {
    let find = "SELECT started_us, told_us, ended_us, status FROM watches WHERE source = ?1 \
         ORDER BY started_us DESC LIMIT 1";
    let found = sql.prepare_cached(find)?.query_row([source], |row| {
        Ok(Watch {
            started_us: row.get(0)?,
            told_us: row.get(1)?,
            ended_us: row.get(2)?,
            status: rows::json(row, 3)?,
        })
    });
    Ok(found.optional()?)
}
