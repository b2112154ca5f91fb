//! What of a stream's sound waits to be listened to. Whoever is behind loses whole stretches here, before any
//! work was spent on them, and each is counted.

use std::collections::VecDeque;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam_channel::Receiver;

use super::Shared;
use super::sound::Connected;
use crate::media::{Gap, TrackKind};
use crate::pipeline::reading::length;
use crate::source::{ReceivedSound, SoundEvent};
use crate::time::{Micros, Span, Timestamp};

/// Sound that waits, at most: 4 MB. A window of speech is up to 29 s long, and reading one takes some
/// seconds.
const MOST: Micros = Micros(60_000_000);
/// Once something is lost, all is lost until no more than this waits: one long stretch is heard, and one is
/// not, where else each sentence would have holes.
const AGAIN: Micros = Micros(15_000_000);
/// Gaps and stretches that wait.
const MOST_ITEMS: usize = 4_096;
const BEHIND: &str = "listening was behind";

/// What comes of a stream's sound, connection by connection.
#[derive(Debug)]
pub(super) enum Came {
    /// A connection, by its number; nothing before `from` comes of it.
    Begun {
        number: usize,
        from: Timestamp,
        /// Why nothing was heard before it, if nothing was.
        before: String,
        /// Whether it has brought anything of its picture.
        is_up: Arc<AtomicBool>,
    },
    Samples {
        pts: Timestamp,
        samples: Vec<f32>,
    },
    Gap(Gap),
    /// The connection is over.
    Over,
}

/// Between the thread that takes a stream's sound and the one that listens to it.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    state: Mutex<State>,
    came: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Came>,
    held: Micros,
    /// What is being lost.
    lost: Option<Span>,
    /// Whether all is lost until little enough is held.
    is_behind: bool,
    is_over: bool,
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change below is complete before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn begin(&self, number: usize, from: Timestamp, before: String, is_up: Arc<AtomicBool>) {
        self.push(Came::Begun { number, from, before, is_up });
    }

    /// Takes samples of which the first is at `pts`. Returns how much of them is lost: all or nothing.
    pub fn samples(&self, pts: Timestamp, samples: Vec<f32>) -> Micros {
        let length = length(&samples);
        let mut state = self.lock();
        let most = if state.is_behind { AGAIN } else { MOST };
        if state.held.0 + length.0 > most.0 || state.waiting.len() >= MOST_ITEMS {
            state.lose(Span::new(pts, pts + length));
            return length;
        }
        state.held = Micros(state.held.0 + length.0);
        state.is_behind = false;
        drop(state);
        self.push(Came::Samples { pts, samples });
        Micros::ZERO
    }

    pub fn gap(&self, gap: Gap) {
        let mut state = self.lock();
        if state.waiting.len() >= MOST_ITEMS {
            state.lose(gap.span);
            return;
        }
        drop(state);
        self.push(Came::Gap(gap));
    }

    pub fn end(&self) {
        self.push(Came::Over);
    }

    /// No more connections come.
    pub fn close(&self) {
        self.lock().is_over = true;
        self.came.notify_one();
    }

    fn push(&self, what: Came) {
        let mut state = self.lock();
        if let Some(span) = state.lost.take() {
            let gap = Gap { span, track: TrackKind::Sound, reason: BEHIND.to_owned() };
            state.waiting.push_back(Came::Gap(gap));
        }
        state.waiting.push_back(what);
        drop(state);
        self.came.notify_one();
    }

    /// What came next; `None` where nothing did within `patience`.
    pub fn pop(&self, patience: Duration) -> Option<Came> {
        let mut state = self.lock();
        if state.waiting.is_empty() && !state.is_over {
            (state, _) =
                self.came.wait_timeout(state, patience).unwrap_or_else(PoisonError::into_inner);
        }
        let came = state.waiting.pop_front()?;
        if let Came::Samples { samples, .. } = &came {
            state.held = Micros(state.held.0 - length(samples).0);
        }
        Some(came)
    }

    pub fn is_over(&self) -> bool {
        let state = self.lock();
        state.is_over && state.waiting.is_empty()
    }
}

impl State {
    fn lose(&mut self, span: Span) {
        self.is_behind = true;
        let start = self.lost.map_or(span.start, |lost| lost.start);
        self.lost = Some(Span::new(start, span.end));
    }
}

/// Takes the sound of a stream as it comes, connection by connection, so that no host waits for those who
/// listen.
pub(super) fn receive(
    shared: &Shared<'_>,
    camera: usize,
    connections: &Receiver<Option<Connected>>,
    inbox: &Inbox,
) {
    let name = shared.cameras[camera].input.name();
    let Some(listened) = &shared.cameras[camera].listened else { return };
    while let Ok(Some(connected)) = connections.recv() {
        let Connected { number, sound, from, before, is_up } = connected;
        inbox.begin(number, from, before.clone(), is_up);
        let mut told = ReceivedSound::default();
        let mut is_first = true;
        for event in sound {
            match event {
                Ok(SoundEvent::Samples { pts, samples }) => {
                    is_first = false;
                    let length = length(&samples);
                    listened.reach(pts + length);
                    let behind = inbox.samples(pts, samples);
                    shared.count_sound(camera, |sound| {
                        sound.received += length;
                        sound.behind += behind;
                    });
                }
                Ok(SoundEvent::Gap(mut gap)) => {
                    let is_first = std::mem::take(&mut is_first);
                    // While it brought no sound, that was told as it went on.
                    let Some(span) = listened.pass(gap.span) else { continue };
                    // What was not heard before this connection has other reasons.
                    if is_first && span == gap.span && !before.is_empty() {
                        gap.reason.clone_from(&before);
                    }
                    inbox.gap(Gap { span, ..gap });
                }
                Ok(SoundEvent::Received(received)) => {
                    shared.count_sound(camera, |sound| {
                        let repeated = Micros(received.repeated.0.saturating_sub(told.repeated.0));
                        sound.received += repeated;
                        sound.repeated += repeated;
                        sound.undecodable += received.undecodable.saturating_sub(told.undecodable);
                        sound.undecoded += received.behind.saturating_sub(told.behind);
                    });
                    told = received;
                }
                Ok(SoundEvent::Notice(notice)) => tracing::warn!("{name}: {notice}"),
                Ok(SoundEvent::Watermark(_) | SoundEvent::End(_)) => {}
                Err(error) => tracing::warn!("{}", error.in_source(name)),
            }
        }
        inbox.end();
    }
    inbox.close();
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BLOCK: usize = 4_000;

    fn at(block: i64) -> Timestamp {
        Timestamp(block * 250_000)
    }

    #[test]
    fn a_listener_that_is_behind_loses_one_long_stretch_and_it_is_said() {
        let inbox = Inbox::default();
        inbox.begin(0, at(0), String::new(), Arc::default());
        // Ten minutes come; a block is heard for every four that come.
        let (mut lost, mut heard, mut gaps) = (Micros::ZERO, Micros::ZERO, Vec::new());
        let mut take = |inbox: &Inbox| match inbox.pop(Duration::ZERO) {
            Some(Came::Samples { samples, .. }) => heard = Micros(heard.0 + length(&samples).0),
            Some(Came::Gap(gap)) => gaps.push(gap),
            Some(_) => {}
            None => assert!(inbox.is_over()),
        };
        for block in 0..2_400 {
            lost = Micros(lost.0 + inbox.samples(at(block), vec![0.0; BLOCK]).0);
            assert!(inbox.lock().held <= MOST);
            if block % 4 == 0 {
                take(&inbox);
            }
        }
        inbox.end();
        inbox.close();
        while !inbox.is_over() {
            take(&inbox);
        }
        assert_eq!(heard.0 + lost.0, 600_000_000);
        assert!(lost.0 > 360_000_000, "{lost:?}");
        // Of stretches of 45 s each, not of single blocks.
        assert!((2..=5).contains(&gaps.len()), "{gaps:?}");
        assert!(gaps.iter().all(|gap| gap.reason == BEHIND));
        assert_eq!(gaps.iter().map(|gap| gap.span.length().0).sum::<i64>(), lost.0);
    }

    proptest! {
        /// However sound comes and is taken, it is either taken or in a gap, in order.
        #[test]
        fn nothing_is_lost_without_a_gap(steps in prop::collection::vec((1i64..200, 0usize..200), 1..20)) {
            let inbox = Inbox::default();
            let (mut block, mut told) = (0, at(0));
            let follow = |came: Came, told: &mut Timestamp| {
                let span = match &came {
                    Came::Samples { pts, samples } => Span::new(*pts, *pts + length(samples)),
                    Came::Gap(gap) => gap.span,
                    _ => return,
                };
                assert_eq!(span.start, *told);
                *told = span.end;
            };
            for (come, taken) in steps {
                for _ in 0..come {
                    inbox.samples(at(block), vec![0.0; BLOCK]);
                    block += 1;
                }
                for _ in 0..taken {
                    if let Some(came) = inbox.pop(Duration::ZERO) {
                        follow(came, &mut told);
                    }
                }
            }
            inbox.end();
            while let Some(came) = inbox.pop(Duration::ZERO) {
                follow(came, &mut told);
            }
            prop_assert_eq!(told, at(block));
        }
    }
}
