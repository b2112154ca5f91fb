//! What each stage did, for the report at the end of a run.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::time::thread_processor_time;

/// Counters of one stage, updated by its threads.
#[derive(Debug)]
pub struct StageStats {
    name: &'static str,
    items: AtomicU64,
    batches: AtomicU64,
    busy_nanos: AtomicU64,
    starved_nanos: AtomicU64,
    blocked_nanos: AtomicU64,
    cpu_nanos: AtomicU64,
}

/// What one stage did in a run. The first three times add up to the stage's threads' lives.
#[derive(Debug, Clone, Serialize)]
pub struct StageReport {
    pub stage: &'static str,
    /// Items that left the stage (that arrived, for the sink).
    pub items: u64,
    /// Calls that did the work: items a batch = items / batches.
    pub batches: u64,
    pub busy_secs: f64,
    /// Waiting for input.
    pub starved_secs: f64,
    /// Waiting for the next stage to take the output.
    pub blocked_secs: f64,
    /// Processor time of the stage's own threads.
    pub cpu_secs: f64,
}

impl StageReport {
    /// The share of its threads' time that the stage was at work, 0 to 1.
    pub fn busy_share(&self) -> f64 {
        let life = self.busy_secs + self.starved_secs + self.blocked_secs;
        if life > 0.0 { self.busy_secs / life } else { 0.0 }
    }
}

impl StageStats {
    pub fn new(name: &'static str) -> Self {
        StageStats {
            name,
            items: AtomicU64::new(0),
            batches: AtomicU64::new(0),
            busy_nanos: AtomicU64::new(0),
            starved_nanos: AtomicU64::new(0),
            blocked_nanos: AtomicU64::new(0),
            cpu_nanos: AtomicU64::new(0),
        }
    }

    pub fn count_items(&self, items: usize) {
        self.items.fetch_add(items as u64, Ordering::Relaxed);
    }

    /// Runs and times the stage's own work.
    pub fn busy<R>(&self, work: impl FnOnce() -> R) -> R {
        self.batches.fetch_add(1, Ordering::Relaxed);
        timed(&self.busy_nanos, work)
    }

    /// Runs and times work that waits now and then: `work` returns how long, beside its result.
    pub(super) fn busy_but<R>(&self, work: impl FnOnce() -> (R, Duration)) -> R {
        let start = Instant::now();
        let (result, waited) = work();
        self.batches.fetch_add(1, Ordering::Relaxed);
        add(&self.busy_nanos, start.elapsed().saturating_sub(waited));
        add(&self.blocked_nanos, waited);
        result
    }

    pub fn starved<R>(&self, wait: impl FnOnce() -> R) -> R {
        timed(&self.starved_nanos, wait)
    }

    pub(super) fn blocked<R>(&self, wait: impl FnOnce() -> R) -> R {
        timed(&self.blocked_nanos, wait)
    }

    /// Adds the processor time that this thread uses from now until the guard is dropped.
    pub fn on_thread(&self) -> OnThread<'_> {
        OnThread { stats: self, before: thread_processor_time() }
    }

    pub fn report(&self) -> StageReport {
        let secs =
            |nanos: &AtomicU64| Duration::from_nanos(nanos.load(Ordering::Relaxed)).as_secs_f64();
        StageReport {
            stage: self.name,
            items: self.items.load(Ordering::Relaxed),
            batches: self.batches.load(Ordering::Relaxed),
            busy_secs: secs(&self.busy_nanos),
            starved_secs: secs(&self.starved_nanos),
            blocked_secs: secs(&self.blocked_nanos),
            cpu_secs: secs(&self.cpu_nanos),
        }
    }
}

/// See [`StageStats::on_thread`].
#[derive(Debug)]
pub struct OnThread<'a> {
    stats: &'a StageStats,
    before: Duration,
}

impl Drop for OnThread<'_> {
    fn drop(&mut self) {
        let spent = thread_processor_time().saturating_sub(self.before);
        add(&self.stats.cpu_nanos, spent);
    }
}

fn timed<R>(nanos: &AtomicU64, work: impl FnOnce() -> R) -> R {
    let start = Instant::now();
    let result = work();
    add(nanos, start.elapsed());
    result
}

fn add(nanos: &AtomicU64, spent: Duration) {
    nanos.fetch_add(u64::try_from(spent.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
}
