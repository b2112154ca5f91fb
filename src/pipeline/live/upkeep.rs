//! What is done beside the graph while streams are watched: how they are is noted in the library, the
//! oldest goes out of it, and its index of embeddings is extended.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use serde_json::Value;

use super::Shared;
use super::dropping::Dropping;
use super::status::{StreamState, StreamStatus};
use crate::error::{Error, Result};
use crate::library::{Indexer, SourceId};
use crate::pipeline::shared::lock;
use crate::time::wall_us;

/// How often it is looked whether there is anything to do.
const TICK: Duration = Duration::from_secs(1);
/// How often numbers are noted while no state changes.
const NOTE: Duration = Duration::from_secs(5);
/// How often it is noted what time it is, for the next run.
const NOTE_TIME: Duration = Duration::from_secs(30);
/// New clips for which the index is looked at again. What is not in it is compared one by one.
const CLIPS: u64 = 4_096;

#[derive(Debug)]
pub(super) struct Upkeep<'a> {
    shared: &'a Shared<'a>,
    dropping: Dropping,
    indexer: Indexer,
    started_us: i64,
    /// The state of each stream as it was noted last, and when.
    noted: Vec<(StreamState, Option<String>)>,
    noted_at: Option<Instant>,
    time_noted_at: Option<Instant>,
    /// How many clips this run had stored when the index was looked at; `None`: not yet.
    indexed: Option<u64>,
    /// What failed the last time.
    failing: Vec<&'static str>,
}

impl<'a> Upkeep<'a> {
    pub fn new(shared: &'a Shared<'a>, dropping: Dropping) -> Result<Self> {
        Ok(Upkeep {
            shared,
            dropping,
            indexer: lock(&shared.library).indexer()?,
            started_us: wall_us(),
            noted: Vec::new(),
            noted_at: None,
            time_noted_at: None,
            indexed: None,
            failing: Vec::new(),
        })
    }

    /// Works until `over` says that the run is.
    pub fn run(&mut self, over: &Receiver<()>) {
        let is_over = || over.recv_timeout(TICK) != Err(RecvTimeoutError::Timeout);
        loop {
            let is_over = is_over();
            self.attempt("how streams are is not noted", |upkeep| upkeep.note(is_over));
            if !is_over {
                self.attempt("nothing is deleted of what is too old", |upkeep| {
                    upkeep.drop_old(over)
                });
            }
            self.attempt("search takes longer", |upkeep| upkeep.index(is_over));
            if is_over {
                return;
            }
        }
    }

    /// Does a piece of work. What fails is done again at the next tick, since it may be that the disk is
    /// full for a while; the first time, that is told with its consequence.
    fn attempt(&mut self, consequence: &'static str, work: impl FnOnce(&mut Self) -> Result<()>) {
        match work(self) {
            Ok(()) => self.failing.retain(|failing| *failing != consequence),
            Err(_) if self.failing.contains(&consequence) => {}
            Err(error) => {
                tracing::warn!("{error}: {consequence} until that is over");
                self.failing.push(consequence);
            }
        }
    }

    /// Notes how the streams are: at once where a state is another, else now and then.
    fn note(&mut self, is_over: bool) -> Result<()> {
        let cameras = self.shared.cameras.iter();
        let statuses: Vec<StreamStatus> =
            cameras.map(|camera| lock(&camera.status).clone()).collect();
        let states: Vec<_> =
            statuses.iter().map(|status| (status.state, status.reason.clone())).collect();
        if !is_over && !is_due(self.noted_at, NOTE) && states == self.noted {
            return Ok(());
        }
        let to_json = |status: &StreamStatus| -> Result<(SourceId, Value)> {
            let json = serde_json::to_value(status)
                .map_err(|cause| Error::internal("cannot write JSON").caused_by(cause))?;
            Ok((status.id, json))
        };
        let statuses = statuses.iter().map(to_json).collect::<Result<Vec<_>>>()?;
        lock(&self.shared.library).note_watches(self.started_us, wall_us(), is_over, &statuses)?;
        (self.noted, self.noted_at) = (states, Some(Instant::now()));
        if is_over || is_due(self.time_noted_at, NOTE_TIME) {
            if let Some(known_us) = self.dropping.known_us() {
                lock(&self.shared.library).note_known(known_us)?;
            }
            self.time_noted_at = Some(Instant::now());
        }
        Ok(())
    }

    /// Deletes what is no longer to be kept.
    fn drop_old(&mut self, over: &Receiver<()>) -> Result<()> {
        let is_over = || over.try_recv() != Err(crossbeam_channel::TryRecvError::Empty);
        let outcome = self.dropping.drop_old(&self.shared.library, is_over);
        for dropped in self.dropping.take_dropped() {
            // It may be of a source that is not watched now.
            let cameras = self.shared.cameras.iter();
            for camera in cameras.filter(|camera| camera.id == dropped.source) {
                lock(&camera.status).deleted_clips += dropped.clips;
            }
        }
        outcome
    }

    /// Extends the index where there are many new clips, and at the end.
    fn index(&mut self, is_over: bool) -> Result<()> {
        let cameras = self.shared.cameras.iter();
        let stored = cameras.map(|camera| lock(&camera.status).clips).sum();
        if is_over || self.indexed.is_none_or(|indexed| stored - indexed >= CLIPS) {
            self.indexer.refresh()?;
            self.indexed = Some(stored);
        }
        Ok(())
    }
}

fn is_due(last: Option<Instant>, every: Duration) -> bool {
    last.is_none_or(|last| last.elapsed() >= every)
}
