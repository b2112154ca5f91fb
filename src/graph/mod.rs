//! The dataflow graph: stages on threads, joined by queues that are bounded in items and bytes.
//!
//! It knows no concrete stage. There are four kinds of stage, and the weakest that does the job is
//! the one to take: a [`Map`] has no state and batches across streams, a [`Fold`] has state for one
//! stream, a [`Source`] begins streams and a [`Sink`] makes their results durable. Everything about
//! a stream travels in band, as [`Event`]s, and obeys these rules, which [`conformance`] checks on
//! every stage:
//!
//! * watermarks never go back, and no item starts before a watermark that came before it;
//! * nothing follows the end, and every stream that began ends, with success or with its error;
//! * results depend neither on how items were batched nor on where watermarks fell between them;
//! * one bad item fails its own stream and no other.
//!
//! Back-pressure is the queues': a full one makes its sender wait, so a batch source slows down to
//! the pace of the slowest stage and nothing is lost. Stages neither spawn threads nor sleep.

pub mod conformance;
mod queue;
mod run;
mod stats;

pub use queue::QueueLimits;
pub use run::{Inlet, Outlet, Run};
pub use stats::{StageReport, StageStats};

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::Result;
use crate::media::Gap;
use crate::time::Timestamp;

/// Names one stream of one run: a chunk of a file, or a live connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u64);

/// What happens in a stream.
#[derive(Debug)]
pub enum Event<T> {
    Item(T),
    /// The promise that no item that starts earlier will come.
    Watermark(Timestamp),
    /// Nothing was seen here, and why.
    Gap(Gap),
    /// Nothing more will come: all was read, or the stream failed.
    End(Result<()>),
}

/// An event and the stream that it belongs to.
#[derive(Debug)]
pub struct Message<T> {
    pub stream: StreamId,
    pub event: Event<T>,
}

/// What can travel as an item.
pub trait Item: Send {
    /// Where the item begins, for watermarks.
    fn start(&self) -> Timestamp;
    /// Memory held, for the bound on queues.
    fn bytes(&self) -> usize;
}

/// Begins streams and reads them, one after the other; several sources run side by side.
pub trait Source: Send {
    type Out: Item;

    const NAME: &'static str;

    /// Reads one stream into `out` and says whether there may be another. What fails the stream is
    /// its `Event::End(Err(_))`; an `Err` here means that the source itself cannot go on.
    fn read(&mut self, out: &mut Outlet<'_, Self::Out>) -> Result<Streams>;
}

/// Whether a source has more streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Streams {
    MayFollow,
    Over,
}

/// No more of this stream is wanted: a later stage failed it, or the run stops. The source drops
/// the stream without an end and returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unwanted;

/// Items to items, one for one, without state. Gets batches that mix streams.
pub trait Map: Send {
    type In: Item;
    type Out: Item;

    const NAME: &'static str;

    /// The most items that are worth passing at once.
    fn max_batch(&self) -> usize;

    /// As many results as items, in their order. An `Err` fails the stream of that item alone.
    fn map(&mut self, batch: Vec<Self::In>) -> Vec<Result<Self::Out>>;
}

/// State for one stream. Several typed inputs are one enum, whose variants carry the track.
pub trait Fold: Send {
    type In: Item;
    type Out: Item;

    const NAME: &'static str;

    /// Takes an event and emits any number. `Event::End(Ok(()))` must be answered with what is left;
    /// the graph itself forwards the end, and ends the stream with the error on `Err`.
    fn on(&mut self, event: Event<Self::In>, emit: &mut dyn FnMut(Event<Self::Out>)) -> Result<()>;
}

/// The end of the graph: makes results durable and says so.
pub trait Sink {
    type In: Item;
    /// What is durable now: only this counts as progress that a later run need not make again.
    type Ack;

    const NAME: &'static str;

    /// An `Err` stops the whole run: what cannot be stored must not be read.
    fn accept(&mut self, message: Message<Self::In>) -> Result<Option<Self::Ack>>;
}

/// The user's wish to stop, shared by all threads of a run.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }

    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// The flag itself, for what waits outside the graph.
    pub fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0)
    }
}
