//! What is left to read: sources that no one has looked into yet, and chunks of those that someone
//! has. Readers take from here side by side, so that the chunks of one long file and many short
//! files keep all of them at work alike.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::graph::StreamId;

/// A chunk, or an open end, of a source: one stream of the graph.
#[derive(Debug)]
pub(super) struct ChunkJob<S> {
    pub stream: StreamId,
    pub source: Arc<S>,
    /// The first chunk to read.
    pub first: u32,
    /// The chunk to stop before; `None` reads to the end.
    pub end: Option<u32>,
}

/// The chunks to read of a source, as (first, end).
pub(super) type Chunks = Vec<(u32, Option<u32>)>;

/// What a reader is to do next.
#[derive(Debug)]
pub(super) enum Job<P, S> {
    /// Look into a source and say with [`Jobs::opened`] what is to be read of it.
    Open(P),
    Read(Arc<ChunkJob<S>>),
}

/// `P` is a source not looked into, `S` one that has been.
#[derive(Debug)]
pub(super) struct Jobs<P, S> {
    state: Mutex<State<P, S>>,
    changed: Condvar,
}

#[derive(Debug)]
struct State<P, S> {
    unopened: VecDeque<P>,
    chunks: VecDeque<Arc<ChunkJob<S>>>,
    /// Streams that were taken and have not ended.
    streams: HashMap<StreamId, Arc<ChunkJob<S>>>,
    /// Sources that a reader is looking into; more chunks may come of them.
    opening: usize,
    next_stream: u64,
}

impl<P, S> Jobs<P, S> {
    pub fn new(unopened: impl IntoIterator<Item = P>) -> Self {
        Jobs {
            state: Mutex::new(State {
                unopened: unopened.into_iter().collect(),
                chunks: VecDeque::new(),
                streams: HashMap::new(),
                opening: 0,
                next_stream: 0,
            }),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<P, S>> {
        // Every change below is complete before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next thing to do, or `None` when all is done. Chunks go before sources not looked into,
    /// so that sources are finished one after the other. Waits while another reader is looking into
    /// a source of which chunks may come.
    pub fn take(&self) -> Option<Job<P, S>> {
        let mut state = self.lock();
        loop {
            if let Some(chunk) = state.chunks.pop_front() {
                state.streams.insert(chunk.stream, Arc::clone(&chunk));
                return Some(Job::Read(chunk));
            }
            if let Some(source) = state.unopened.pop_front() {
                state.opening += 1;
                return Some(Job::Open(source));
            }
            if state.opening == 0 {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Answers a [`Job::Open`]: the chunks to read as (first, end); none if there is nothing to read,
    /// or if the source failed.
    pub fn opened(&self, chunks: Option<(Arc<S>, Chunks)>) {
        let mut state = self.lock();
        if let Some((source, spans)) = chunks {
            for (first, end) in spans {
                let stream = StreamId(state.next_stream);
                state.next_stream += 1;
                let source = Arc::clone(&source);
                state.chunks.push_back(Arc::new(ChunkJob { stream, source, first, end }));
            }
        }
        state.opening -= 1;
        drop(state);
        self.changed.notify_all();
    }

    /// Whether nothing is left to take, as far as is known.
    pub fn is_empty(&self) -> bool {
        let state = self.lock();
        state.chunks.is_empty() && state.unopened.is_empty() && state.opening == 0
    }

    /// How many sources nobody has looked into.
    pub fn unopened(&self) -> usize {
        self.lock().unopened.len()
    }

    /// The chunk that a stream under way is.
    pub fn of(&self, stream: StreamId) -> Option<Arc<ChunkJob<S>>> {
        self.lock().streams.get(&stream).cloned()
    }

    /// The stream has ended and everything about it is settled.
    pub fn ended(&self, stream: StreamId) {
        self.lock().streams.remove(&stream);
    }

    /// Takes back the chunks of `source` that no reader has begun, and says how many there were.
    pub fn give_up(&self, source: &Arc<S>) -> usize {
        let mut state = self.lock();
        let before = state.chunks.len();
        state.chunks.retain(|chunk| !Arc::ptr_eq(&chunk.source, source));
        before - state.chunks.len()
    }
}

/// What one reader at a time may look into: two copies of one file are one source, and only the
/// first that is looked into is read.
#[derive(Debug)]
pub(super) struct Claims<K> {
    claimed: Mutex<HashSet<K>>,
    given_back: Condvar,
}

/// Held by a reader; given back when dropped.
#[derive(Debug)]
pub(super) struct Claim<'a, K: Copy + Eq + Hash> {
    claims: &'a Claims<K>,
    key: K,
}

impl<K> Default for Claims<K> {
    fn default() -> Self {
        Claims { claimed: Mutex::default(), given_back: Condvar::new() }
    }
}

impl<K: Copy + Eq + Hash> Claims<K> {
    /// Waits until nobody else has a claim to `key`.
    pub fn claim(&self, key: K) -> Claim<'_, K> {
        let mut claimed = self.lock();
        while !claimed.insert(key) {
            claimed = self.given_back.wait(claimed).unwrap_or_else(PoisonError::into_inner);
        }
        Claim { claims: self, key }
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<K>> {
        // Every change is one call.
        self.claimed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Copy + Eq + Hash> Drop for Claim<'_, K> {
    fn drop(&mut self) {
        self.claims.lock().remove(&self.key);
        self.claims.given_back.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn streams(jobs: &Jobs<&str, &str>) -> Vec<(u32, Option<u32>)> {
        std::iter::from_fn(|| match jobs.take()? {
            Job::Read(chunk) => Some((chunk.first, chunk.end)),
            Job::Open(source) => panic!("{source} was not to be opened yet"),
        })
        .collect()
    }

    #[test]
    fn the_chunks_of_an_opened_source_go_before_the_next_source() {
        let jobs = Jobs::new(["a", "b"]);
        assert!(matches!(jobs.take(), Some(Job::Open("a"))));
        jobs.opened(Some((Arc::new("a"), vec![(0, Some(1)), (1, None)])));
        for first in [0, 1] {
            assert!(matches!(jobs.take(), Some(Job::Read(chunk)) if chunk.first == first));
        }
        assert!(matches!(jobs.take(), Some(Job::Open("b"))));
        jobs.opened(None);
        assert!(jobs.take().is_none());
    }

    #[test]
    fn a_reader_waits_for_the_chunks_of_a_source_that_another_looks_into() {
        let jobs = Arc::new(Jobs::new(["a"]));
        assert!(matches!(jobs.take(), Some(Job::Open("a"))));
        let waiting = {
            let jobs = Arc::clone(&jobs);
            std::thread::spawn(move || streams(&jobs))
        };
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(!waiting.is_finished());
        jobs.opened(Some((Arc::new("a"), vec![(0, None)])));
        assert_eq!(waiting.join().unwrap(), [(0, None)]);
    }

    #[test]
    fn a_failed_source_gives_up_its_other_chunks_only() {
        let jobs = Jobs::new(["a", "b"]);
        let (a, b) = (Arc::new("a"), Arc::new("b"));
        for source in [&a, &b] {
            // Both are opened before either is read.
            jobs.lock().unopened.pop_front();
            jobs.lock().opening += 1;
            jobs.opened(Some((Arc::clone(source), vec![(0, Some(1)), (1, None)])));
        }
        let Some(Job::Read(chunk)) = jobs.take() else { panic!("a chunk") };
        assert!(jobs.of(chunk.stream).is_some());
        assert_eq!(jobs.give_up(&a), 1);
        jobs.ended(chunk.stream);
        assert!(jobs.of(chunk.stream).is_none());
        assert_eq!(streams(&jobs), [(0, Some(1)), (1, None)]);
    }

    #[test]
    fn what_one_has_claimed_another_waits_for() {
        let claims = Arc::new(Claims::default());
        let held = claims.claim("a");
        drop(claims.claim("b"));
        let waiting = {
            let claims = Arc::clone(&claims);
            std::thread::spawn(move || drop(claims.claim("a")))
        };
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(!waiting.is_finished());
        drop(held);
        waiting.join().unwrap();
        drop(claims.claim("a"));
    }
}
