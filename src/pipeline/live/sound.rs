//! The sound of streams on its way to those who listen, beside the graph: neither waits for the other.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use crossbeam_channel::Sender;

use super::lock;
use crate::source::LiveSound;
#[cfg(feature = "speech")]
use crate::time::Span;
use crate::time::Timestamp;

/// What a stream is listened to with.
#[derive(Debug)]
pub(super) struct Listened {
    /// Connections, one after the other; `None`: there are no more.
    pub connections: Sender<Option<Connected>>,
    /// Up to where sound has come, or was heard by an earlier run; `None`: not yet.
    pub until: Mutex<Option<Timestamp>>,
}

impl Listened {
    /// Since when the sound of a connection is wanted whose picture begins at `start`: where sound has come
    /// to before.
    pub fn from(&self, start: Timestamp) -> Timestamp {
        *lock(&self.until).get_or_insert(start)
    }

    /// Nothing was heard in this span. Returns what of it was not told before.
    #[cfg(feature = "speech")]
    pub fn pass(&self, span: Span) -> Option<Span> {
        let mut until = lock(&self.until);
        let start = until.map_or(span.start, |until| until.max(span.start));
        if start >= span.end {
            return None;
        }
        *until = Some(span.end);
        Some(Span::new(start, span.end))
    }

    /// Sound has come up to `at`.
    #[cfg(feature = "speech")]
    pub fn reach(&self, at: Timestamp) {
        let mut until = lock(&self.until);
        *until = Some(until.map_or(at, |until| until.max(at)));
    }
}

/// The sound of one connection.
#[derive(Debug)]
#[cfg_attr(not(feature = "speech"), expect(dead_code, reason = "nobody listens"))]
pub(super) struct Connected {
    pub number: usize,
    pub sound: LiveSound,
    /// Nothing before this comes of it.
    pub from: Timestamp,
    /// Why nothing was heard before it, if nothing was.
    pub before: String,
    /// Whether it has brought anything of its picture.
    pub is_up: Arc<AtomicBool>,
}

/// A connection whose sound is on its way.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(feature = "speech"), expect(dead_code, reason = "nobody listens"))]
pub(super) struct Sounding {
    pub camera: usize,
    /// Media time zero on the monotonic clock.
    pub zero_us: i64,
    /// Everything before this that will be heard is stored.
    pub reached: Timestamp,
}
