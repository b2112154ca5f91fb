//! Queues between stages, bounded in items and in bytes.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::{Event, Item, Message};

/// How much may wait in one queue.
#[derive(Debug, Clone, Copy)]
pub struct QueueLimits {
    pub items: usize,
    pub bytes: usize,
}

/// The other end is gone, so nothing can be sent any more.
#[derive(Debug)]
pub(super) struct Closed;

/// Bytes under way in one queue. A message larger than the whole budget passes when it is alone.
#[derive(Debug)]
struct Budget {
    limit: usize,
    state: Mutex<BudgetState>,
    freed: Condvar,
}

#[derive(Debug)]
struct BudgetState {
    used: usize,
    closed: bool,
}

impl Budget {
    fn lock(&self) -> MutexGuard<'_, BudgetState> {
        // Two numbers cannot be left half-changed, so a panic elsewhere does no harm here.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, bytes: usize) -> Result<(), Closed> {
        let full = |state: &mut BudgetState| {
            !state.closed && state.used > 0 && state.used.saturating_add(bytes) > self.limit
        };
        let mut state =
            self.freed.wait_while(self.lock(), full).unwrap_or_else(PoisonError::into_inner);
        if state.closed {
            return Err(Closed);
        }
        state.used = state.used.saturating_add(bytes);
        Ok(())
    }

    fn give_back(&self, bytes: usize) {
        let mut state = self.lock();
        state.used = state.used.saturating_sub(bytes);
        drop(state);
        self.freed.notify_all();
    }

    fn close(&self) {
        self.lock().closed = true;
        self.freed.notify_all();
    }
}

#[derive(Debug)]
pub(super) struct Sender<T> {
    channel: crossbeam_channel::Sender<Message<T>>,
    budget: Arc<Budget>,
}

// Not derived: that would ask for `T: Clone`.
impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Sender { channel: self.channel.clone(), budget: Arc::clone(&self.budget) }
    }
}

#[derive(Debug)]
pub(super) struct Receiver<T> {
    channel: crossbeam_channel::Receiver<Message<T>>,
    budget: Arc<Budget>,
}

pub(super) fn queue<T: Item>(limits: QueueLimits) -> (Sender<T>, Receiver<T>) {
    let (sender, receiver) = crossbeam_channel::bounded(limits.items.max(1));
    let budget = Arc::new(Budget {
        limit: limits.bytes,
        state: Mutex::new(BudgetState { used: 0, closed: false }),
        freed: Condvar::new(),
    });
    let sender = Sender { channel: sender, budget: Arc::clone(&budget) };
    (sender, Receiver { channel: receiver, budget })
}

fn bytes<T: Item>(message: &Message<T>) -> usize {
    match &message.event {
        Event::Item(item) => item.bytes(),
        Event::Watermark(_) | Event::Gap(_) | Event::End(_) => 0,
    }
}

impl<T: Item> Sender<T> {
    /// Waits while the queue is full.
    pub(super) fn send(&self, message: Message<T>) -> Result<(), Closed> {
        self.budget.take(bytes(&message))?;
        self.channel.send(message).map_err(|_| Closed)
    }
}

impl<T: Item> Receiver<T> {
    /// Waits for a message; `None` when all senders are gone and the queue is empty.
    pub(super) fn receive(&self) -> Option<Message<T>> {
        self.taken(self.channel.recv().ok())
    }

    /// A message that is there already.
    pub(super) fn try_receive(&self) -> Option<Message<T>> {
        self.taken(self.channel.try_recv().ok())
    }

    fn taken(&self, message: Option<Message<T>>) -> Option<Message<T>> {
        let message = message?;
        self.budget.give_back(bytes(&message));
        Some(message)
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.budget.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::StreamId;
    use crate::time::Timestamp;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::{Duration, Instant};

    struct Block(usize);

    impl Item for Block {
        fn start(&self) -> Timestamp {
            Timestamp::ZERO
        }
        fn bytes(&self) -> usize {
            self.0
        }
    }

    fn block(bytes: usize) -> Message<Block> {
        Message { stream: StreamId(0), event: Event::Item(Block(bytes)) }
    }

    /// Sends ten blocks of 100 bytes, of which `most` get through before anyone receives.
    fn sent_before_receiving(limits: QueueLimits, most: usize) {
        let (sender, receiver) = queue(limits);
        let sent = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&sent);
        let thread = std::thread::spawn(move || {
            for _ in 0..10 {
                sender.send(block(100)).unwrap();
                counted.fetch_add(1, Ordering::SeqCst);
            }
        });
        let began = Instant::now();
        while sent.load(Ordering::SeqCst) < most {
            assert!(began.elapsed() < Duration::from_secs(60), "{:?} of {most}", sent);
            std::thread::sleep(Duration::from_millis(1));
        }
        // One more would be through by then.
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(sent.load(Ordering::SeqCst), most);
        assert_eq!(std::iter::from_fn(|| receiver.receive()).count(), 10);
        thread.join().unwrap();
    }

    #[test]
    fn a_full_queue_makes_its_sender_wait_for_items_and_for_bytes() {
        sent_before_receiving(QueueLimits { items: 3, bytes: 1_000_000 }, 3);
        sent_before_receiving(QueueLimits { items: 100, bytes: 450 }, 4);
    }

    #[test]
    fn a_message_larger_than_the_budget_passes_alone() {
        sent_before_receiving(QueueLimits { items: 100, bytes: 10 }, 1);
    }

    #[test]
    fn a_waiting_sender_is_freed_when_the_receiver_goes() {
        let (sender, receiver) = queue(QueueLimits { items: 100, bytes: 10 });
        sender.send(block(100)).unwrap();
        let waiting = std::thread::spawn(move || sender.send(block(100)));
        std::thread::sleep(Duration::from_millis(50));
        drop(receiver);
        assert!(waiting.join().unwrap().is_err());
    }
}
