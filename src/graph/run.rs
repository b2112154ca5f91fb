//! Runs stages: a thread each, joined by queues.

use std::any::Any;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use super::queue::{Closed, Receiver, Sender, queue};
use super::{
    Cancel, Event, Fold, Item, Map, Message, QueueLimits, Sink, Source, StageReport, StageStats,
    StreamId, Streams, Unwanted,
};
use crate::error::{Error, Result};

/// One execution of a graph. Stages are added from the source to the sink; each starts at once.
pub struct Run<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    limits: QueueLimits,
    shared: Arc<Shared>,
    stages: Vec<Arc<StageStats>>,
    threads: Vec<(&'static str, ScopedJoinHandle<'scope, Result<()>>)>,
}

impl std::fmt::Debug for Run<'_, '_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Run").field("stages", &self.stages).finish_non_exhaustive()
    }
}

/// What leaves a stage and waits to enter the next.
#[derive(Debug)]
pub struct Inlet<T>(Receiver<T>);

#[derive(Debug)]
struct Shared {
    cancel: Cancel,
    /// Set when the run cannot go on; sources then stop.
    stopped: Cancel,
    failed: Failed,
}

/// Streams that a stage behind their source has failed, so that the source stops reading them.
#[derive(Debug, Default)]
struct Failed {
    count: AtomicUsize,
    streams: Mutex<HashSet<StreamId>>,
}

impl Failed {
    fn streams(&self) -> MutexGuard<'_, HashSet<StreamId>> {
        // A set of numbers is whole between any two operations, so a panic elsewhere does no harm.
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn insert(&self, stream: StreamId) {
        if self.streams().insert(stream) {
            self.count.fetch_add(1, Ordering::Release);
        }
    }

    /// Whether `stream` has failed, told once.
    fn take(&self, stream: StreamId) -> bool {
        let taken = self.count.load(Ordering::Acquire) > 0 && self.streams().remove(&stream);
        if taken {
            self.count.fetch_sub(1, Ordering::Release);
        }
        taken
    }
}

impl Shared {
    fn is_stopping(&self) -> bool {
        self.cancel.is_cancelled() || self.stopped.is_cancelled()
    }
}

impl<'scope, 'env> Run<'scope, 'env> {
    /// Runs the graph that `build` lays out, until all its streams have ended. Returns what each
    /// stage did, or why the run could not go on: a sink's or source's error, or a stage's panic.
    pub fn execute(
        limits: QueueLimits,
        cancel: &Cancel,
        build: impl FnOnce(&mut Run<'_, 'env>) -> Result<()>,
    ) -> Result<Vec<StageReport>> {
        let shared = Arc::new(Shared {
            cancel: cancel.clone(),
            stopped: Cancel::default(),
            failed: Failed::default(),
        });
        std::thread::scope(|scope| {
            let mut run = Run { scope, limits, shared, stages: Vec::new(), threads: Vec::new() };
            let mut result = build(&mut run);
            run.shared.stopped.cancel();
            for (name, thread) in run.threads {
                let ended = thread.join().unwrap_or_else(|panic| {
                    Err(Error::internal(format!("{name} panicked: {}", panic_message(&*panic))))
                });
                result = result.and(ended);
            }
            result.map(|()| run.stages.iter().map(|stage| stage.report()).collect())
        })
    }

    /// Starts one thread for each of `sources`; their streams share the graph from here on.
    pub fn sources<S>(&mut self, sources: Vec<S>) -> Result<Inlet<S::Out>>
    where
        S: Source + 'scope,
        S::Out: 'scope,
    {
        let (sender, receiver) = queue(self.limits);
        let stats = self.stage(S::NAME);
        for source in sources {
            let (sender, stats) = (sender.clone(), Arc::clone(&stats));
            let shared = Arc::clone(&self.shared);
            self.spawn(S::NAME, move || {
                let _used = stats.on_thread();
                run_source(source, &sender, &stats, &shared)
            })?;
        }
        Ok(Inlet(receiver))
    }

    /// Adds a fold; `make` gives the state for each stream that begins.
    pub fn fold<F, M>(&mut self, inlet: Inlet<F::In>, make: M) -> Result<Inlet<F::Out>>
    where
        F: Fold + 'scope,
        F::In: 'scope,
        F::Out: 'scope,
        M: FnMut(StreamId) -> F + Send + 'scope,
    {
        let (sender, receiver) = queue(self.limits);
        let stats = self.stage(F::NAME);
        let shared = Arc::clone(&self.shared);
        self.spawn(F::NAME, move || {
            let _used = stats.on_thread();
            ended(run_fold(make, &inlet.0, &sender, &stats, &shared));
            Ok(())
        })?;
        Ok(Inlet(receiver))
    }

    pub fn map<M>(&mut self, inlet: Inlet<M::In>, map: M) -> Result<Inlet<M::Out>>
    where
        M: Map + 'scope,
        M::In: 'scope,
        M::Out: 'scope,
    {
        let (sender, receiver) = queue(self.limits);
        let stats = self.stage(M::NAME);
        let shared = Arc::clone(&self.shared);
        self.spawn(M::NAME, move || {
            let _used = stats.on_thread();
            ended(run_map(map, &inlet.0, &sender, &stats, &shared));
            Ok(())
        })?;
        Ok(Inlet(receiver))
    }

    /// Runs the sink on this thread until every stream has ended. `on_ack` hears what is durable.
    pub fn sink<S: Sink>(
        &mut self,
        inlet: Inlet<S::In>,
        sink: &mut S,
        mut on_ack: impl FnMut(S::Ack),
    ) -> Result<()> {
        let stats = self.stage(S::NAME);
        let _used = stats.on_thread();
        while let Some(message) = stats.starved(|| inlet.0.receive()) {
            let is_item = matches!(message.event, Event::Item(_));
            match stats.busy(|| sink.accept(message)) {
                Ok(ack) => {
                    stats.count_items(usize::from(is_item));
                    if let Some(ack) = ack {
                        on_ack(ack);
                    }
                }
                Err(error) => {
                    // Dropping the inlet ends the stages above, one after the other.
                    self.shared.stopped.cancel();
                    return Err(error.in_stage(S::NAME));
                }
            }
        }
        Ok(())
    }

    fn stage(&mut self, name: &'static str) -> Arc<StageStats> {
        let stats = Arc::new(StageStats::new(name));
        self.stages.push(Arc::clone(&stats));
        stats
    }

    fn spawn(
        &mut self,
        name: &'static str,
        body: impl FnOnce() -> Result<()> + Send + 'scope,
    ) -> Result<()> {
        let thread = Builder::new()
            .name(name.to_owned())
            .spawn_scoped(self.scope, body)
            .map_err(|cause| Error::exhausted("cannot start a thread").caused_by(cause))?;
        self.threads.push((name, thread));
        Ok(())
    }
}

/// A stage whose next one is gone has nothing left to do; why it is gone is told elsewhere.
fn ended(result: Result<(), Closed>) {
    if let Err(Closed) = result {
        tracing::debug!("the next stage is gone");
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
}

fn run_source<S: Source>(
    mut source: S,
    sender: &Sender<S::Out>,
    stats: &StageStats,
    shared: &Shared,
) -> Result<()> {
    loop {
        let mut outlet = Outlet { sender, stats, shared, stream: None, waited: Duration::ZERO };
        let result = stats.busy_but(|| {
            let result = source.read(&mut outlet);
            (result, outlet.waited)
        });
        if result.is_err() {
            shared.stopped.cancel();
        }
        outlet.close();
        match result.map_err(|error| error.in_stage(S::NAME))? {
            Streams::MayFollow if !shared.is_stopping() => {}
            _ => return Ok(()),
        }
    }
}

/// Where a source puts what it reads.
#[derive(Debug)]
pub struct Outlet<'a, T> {
    sender: &'a Sender<T>,
    stats: &'a StageStats,
    shared: &'a Shared,
    /// The stream that has begun and not ended.
    stream: Option<StreamId>,
    waited: Duration,
}

impl<T: Item> Outlet<'_, T> {
    /// Begins `stream`, to which everything that is sent from now on belongs.
    pub fn begin(&mut self, stream: StreamId) {
        debug_assert!(self.stream.is_none(), "one read, one stream");
        self.stream = Some(stream);
    }

    /// Waits while the queue is full. A source that gets `Unwanted` returns.
    pub fn send(&mut self, event: Event<T>) -> Result<(), Unwanted> {
        let stream = self.stream.ok_or(Unwanted)?;
        if self.shared.failed.take(stream) {
            self.stream = None;
            return Err(Unwanted);
        }
        if self.shared.is_stopping() {
            return Err(Unwanted);
        }
        if matches!(event, Event::End(_)) {
            self.stream = None;
        }
        self.stats.count_items(usize::from(matches!(event, Event::Item(_))));
        let start = Instant::now();
        let sent = self.sender.send(Message { stream, event });
        self.waited += start.elapsed();
        sent.map_err(|Closed| Unwanted)
    }

    /// Ends the stream if the source has not: the run stops.
    fn close(self) {
        if let Some(stream) = self.stream {
            let why = if self.shared.is_stopping() {
                Error::cancelled()
            } else {
                Error::internal("a source left its stream without an end")
            };
            // Nobody hears it if the next stage is gone, and then nobody needs to.
            let _ = self.sender.send(Message { stream, event: Event::End(Err(why)) });
        }
    }
}

/// Streams that this stage has failed: what still comes of them is dropped, up to their end.
#[derive(Default)]
struct Dropped(HashSet<StreamId>);

impl Dropped {
    fn drops<T>(&mut self, message: &Message<T>) -> bool {
        let drops = self.0.contains(&message.stream);
        if drops && matches!(message.event, Event::End(_)) {
            self.0.remove(&message.stream);
        }
        drops
    }

    fn fail(&mut self, stream: StreamId, shared: &Shared) {
        self.0.insert(stream);
        shared.failed.insert(stream);
    }
}

fn run_fold<F: Fold>(
    mut make: impl FnMut(StreamId) -> F,
    receiver: &Receiver<F::In>,
    sender: &Sender<F::Out>,
    stats: &StageStats,
    shared: &Shared,
) -> Result<(), Closed> {
    let mut states: HashMap<StreamId, F> = HashMap::new();
    let mut dropped = Dropped::default();
    let mut emitted = Vec::new();
    while let Some(message) = stats.starved(|| receiver.receive()) {
        if dropped.drops(&message) {
            continue;
        }
        let stream = message.stream;
        let end = match message.event {
            // Nothing half-done of a failed stream may look like a result.
            Event::End(Err(error)) => Some(Err(error)),
            event => {
                let ends = matches!(event, Event::End(_));
                let state = states.entry(stream).or_insert_with(|| make(stream));
                let result = stats.busy(|| state.on(event, &mut |event| emitted.push(event)));
                match result {
                    Ok(()) => ends.then_some(Ok(())),
                    Err(error) => {
                        if !ends {
                            dropped.fail(stream, shared);
                        }
                        Some(Err(error.in_stage(F::NAME)))
                    }
                }
            }
        };
        if end.is_some() {
            states.remove(&stream);
        }
        for event in emitted.drain(..).chain(end.map(Event::End)) {
            stats.count_items(usize::from(matches!(event, Event::Item(_))));
            stats.blocked(|| sender.send(Message { stream, event }))?;
        }
    }
    Ok(())
}

fn run_map<M: Map>(
    mut map: M,
    receiver: &Receiver<M::In>,
    sender: &Sender<M::Out>,
    stats: &StageStats,
    shared: &Shared,
) -> Result<(), Closed> {
    let mut dropped = Dropped::default();
    while let Some(first) = stats.starved(|| receiver.receive()) {
        // As much as is there already, and no waiting for more: a lone item is not held up.
        let mut order = Vec::new();
        let mut batch = Vec::new();
        let mut next = Some(first);
        while let Some(message) = next.take() {
            if !dropped.drops(&message) {
                let (stream, event) = (message.stream, message.event);
                order.push((
                    stream,
                    match event {
                        Event::Item(item) => {
                            batch.push(item);
                            None
                        }
                        Event::Watermark(at) => Some(Event::Watermark(at)),
                        Event::Gap(gap) => Some(Event::Gap(gap)),
                        Event::End(end) => Some(Event::End(end)),
                    },
                ));
            }
            if batch.len() < map.max_batch() {
                next = receiver.try_receive();
            }
        }
        let items = batch.len();
        let mut results =
            if items == 0 { Vec::new() } else { stats.busy(|| map.map(batch)) }.into_iter();
        for (stream, event) in order {
            let (event, failed_here) = match event {
                Some(event) => (event, false),
                None => match results.next() {
                    Some(Ok(item)) => (Event::Item(item), false),
                    Some(Err(error)) => (Event::End(Err(error.in_stage(M::NAME))), true),
                    None => {
                        let error = Error::internal("fewer results than items").in_stage(M::NAME);
                        (Event::End(Err(error)), true)
                    }
                },
            };
            let message = Message { stream, event };
            if dropped.drops(&message) {
                continue;
            }
            if failed_here {
                dropped.fail(stream, shared);
            }
            stats.count_items(usize::from(matches!(message.event, Event::Item(_))));
            stats.blocked(|| sender.send(message))?;
        }
    }
    Ok(())
}
