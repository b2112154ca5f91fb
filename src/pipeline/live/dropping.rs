//! What is no longer to be kept of live sources goes, a chunk at a time.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::known_time::KnownTime;
use crate::error::Result;
use crate::library::{Dropped, Keep, Writer};
use crate::pipeline::shared::lock;

/// How often it is looked whether there is more than is to be kept.
const LOOK: Duration = Duration::from_secs(10);
/// How long it is deleted at a time: what else is to be done waits.
const AT_A_TIME: Duration = Duration::from_secs(3);
/// What a clock is ahead by is told from here on: a machine may have been off for hours.
const TOLD_US: i64 = 86_400_000_000;

#[derive(Debug)]
pub(super) struct Dropping {
    keep: Option<Keep>,
    time: KnownTime,
    is_told: bool,
    looked_at: Option<Instant>,
    /// What nobody was told of yet.
    dropped: Vec<Dropped>,
}

impl Dropping {
    pub fn new(keep: Option<Keep>, library: &Writer) -> Result<Self> {
        let time = KnownTime::new(library.known_us()?);
        Ok(Dropping { keep, time, is_told: false, looked_at: None, dropped: Vec::new() })
    }

    /// What time it is, for the runs after this one, as far as that is known.
    pub fn known_us(&mut self) -> Option<i64> {
        self.time.known_us()
    }

    /// Deletes what is no longer to be kept, until `is_over`, and the rest at the next call where there is
    /// much of it. The writer is free between any two steps, for what comes.
    pub fn drop_old(&mut self, library: &Mutex<Writer>, is_over: impl Fn() -> bool) -> Result<()> {
        let is_due = self.looked_at.is_none_or(|at| at.elapsed() >= LOOK);
        let Some(keep) = self.keep.filter(|_| is_due) else { return Ok(()) };
        let now_us = self.time.now_us();
        self.tell_ahead(keep);
        let began = Instant::now();
        while !is_over() && began.elapsed() < AT_A_TIME {
            let Some(dropped) = lock(library).drop_oldest(keep, now_us)? else {
                self.looked_at = Some(Instant::now());
                break;
            };
            self.dropped.push(dropped);
            while !is_over() && lock(library).give_back_some()? {}
        }
        Ok(())
    }

    /// Deletes the oldest chunk where it is not to be kept: room for what is written before streams are watched.
    pub fn make_room(&mut self, library: &mut Writer) -> Result<()> {
        let Some(keep) = self.keep else { return Ok(()) };
        let now_us = self.time.now_us();
        self.dropped.extend(library.drop_oldest(keep, now_us)?);
        Ok(())
    }

    /// What was deleted since this was asked last.
    pub fn take_dropped(&mut self) -> Vec<Dropped> {
        std::mem::take(&mut self.dropped)
    }

    fn tell_ahead(&mut self, keep: Keep) {
        let ahead_us = self.time.behind_us();
        let is_ahead = matches!(keep, Keep::Lately(_)) && ahead_us > TOLD_US;
        if is_ahead && !self.is_told {
            tracing::warn!(
                "the clock is {} days ahead of the time that was known in this library last: for an hour, nothing \
                 is deleted as too old for that, and then a day's worth an hour; set the clock if it is wrong",
                ahead_us / TOLD_US
            );
        }
        self.is_told = is_ahead;
    }
}
