//! Parts of streams on their way to segments. Each that is handed on gets some, or is told and counted as one without.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crossbeam_channel::{Receiver, TrySendError};

use super::patience::passes;
use super::{Shared, monotonic_us};
use crate::error::{Error, Result};
use crate::pipeline::report::Made;
use crate::pipeline::shared::lock;
use crate::pipeline::understand::Part;
use crate::time::{Micros, Timestamp};

/// What makes no segments any more.
pub(super) const PANICKED: &str = "understanding panicked";

impl Shared<'_> {
    /// The segments of a part are stored, the last of which ends there. Those of an earlier run are not counted.
    pub fn count_segments(&self, part: Part, until: Option<Timestamp>, made: Made) {
        self.settle(part);
        let (source, _) = part;
        let place = self.cameras.iter().position(|camera| camera.id == source);
        let (Some(place), Some(until)) = (place, until) else { return };
        let of = lock(&self.cameras[place].begun).iter().rfind(|of| of.start < until).copied();
        let Some(session) = of else { return };
        let ended = session.zero_us.saturating_add(until.0);
        let delay = Micros(monotonic_us().saturating_sub(ended));
        self.update(place, |status| {
            status.made.add(made);
            status.segment_delay_secs = Some(delay.as_secs_f64());
        });
    }

    /// No segments are made of a part, which costs those behind it nothing; its clips are found.
    ///
    /// # Errors
    /// What holds for those behind it, too: the run is to end, and nothing can be stored.
    pub fn leave_out(&self, part: Part, error: Error) -> Result<()> {
        if self.stopped_us.get().is_some() && passes(&error) {
            return Err(error);
        }
        if !self.settle(part) {
            return Ok(());
        }
        let (source, span) = part;
        let place = self.cameras.iter().position(|camera| camera.id == source);
        let name =
            place.map_or_else(|| source.to_string(), |at| self.cameras[at].input.name().to_owned());
        let [from, to] = [span.start, span.end].map(|at| {
            jiff::Timestamp::from_microsecond(at.0)
                .map_or_else(|_| at.to_string(), |at| at.to_string())
        });
        tracing::warn!("{name}: {error}: no segments are made of {from} to {to}");
        if let Some(place) = place {
            self.update(place, |status| status.unsegmented += 1);
        }
        Ok(())
    }

    /// Hands a part to the thread that makes segments, where that has room for it, and returns whether it is off
    /// one's hands.
    pub fn hand_on(&self, part: Part) -> bool {
        lock(&self.in_hand).push(part);
        match self.understand.try_send(Some(part)) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => !self.settle(part),
            Err(TrySendError::Disconnected(_)) => {
                self.leave_out_all();
                true
            }
        }
    }

    /// Something becomes of a part in hand. Returns whether it was: what has become of it is told once.
    fn settle(&self, part: Part) -> bool {
        let mut in_hand = lock(&self.in_hand);
        let place = in_hand.iter().position(|one| *one == part);
        place.map(|place| in_hand.swap_remove(place)).is_some()
    }

    /// Nobody makes segments any more.
    fn leave_out_all(&self) {
        let left = lock(&self.in_hand).clone();
        for part in left {
            // Where the run cannot go on either, its error says so.
            let _ = self.leave_out(part, Error::internal(PANICKED));
        }
    }

    /// As [`Shared::hand_on`], and waits for room.
    pub fn hand_on_at_last(&self, part: Part) {
        lock(&self.in_hand).push(part);
        if self.understand.send(Some(part)).is_err() {
            self.leave_out_all();
        }
    }

    /// Makes segments of what is handed on, until no more is.
    pub fn understood(
        &self,
        parts: Receiver<Option<Part>>,
        understand: impl FnOnce(&Receiver<Option<Part>>) -> Result<Made>,
    ) -> Result<Made> {
        let made = catch_unwind(AssertUnwindSafe(|| understand(&parts)));
        // From here on, nothing can be handed on.
        drop(parts);
        made.unwrap_or_else(|_| {
            self.leave_out_all();
            Err(Error::internal(PANICKED))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::super::recorder::ChunkSpans;
    use super::super::{Asked, LiveSource, camera};
    use super::*;
    use crate::error::Kind;
    use crate::graph::Cancel;
    use crate::library::{Recipe, RecipeKind, Writer};
    use crate::picture::ClipRules;
    use crate::source::{Fit, Location, Rendition, Transport};

    #[test]
    fn parts_are_told_and_counted_where_what_makes_segments_has_panicked() {
        let folder = tempfile::TempDir::new().unwrap();
        let mut library = Writer::open(folder.path()).unwrap();
        let location = Location::Url("rtsp://127.0.0.1:1/live".to_owned());
        let (name, ca, transport) = (None, None, Transport::Tcp);
        let source = LiveSource { name, location, transport, ca, record: false, listen: false };
        let clip = ClipRules { length: Micros::from_millis(1_500), frames: 2, shot_change: 0.4 };
        let recipe = Recipe {
            id: blake3::hash(b"a test").to_hex().as_str().parse().unwrap(),
            kind: RecipeKind::Clip,
            description: serde_json::json!({}),
            space: None,
            tree: None,
        };
        library.add_recipe(&recipe).unwrap();
        let recipe = recipe.id;
        let asked = Asked::new(source).unwrap();
        let camera = camera(&asked, &mut library, &recipe, &clip, &[]).unwrap();
        let (understand, parts) = crossbeam_channel::bounded(2);
        let rendition = Rendition { width_px: 32, height_px: 32, fit: Fit::Squash };
        let shared = Shared {
            cameras: vec![camera],
            library: Mutex::new(library),
            recipe,
            clip,
            rendition,
            silence: std::time::Duration::ZERO,
            longest_pause: std::time::Duration::ZERO,
            hardware: false,
            cancel: Cancel::default(),
            stopped_us: Default::default(),
            sessions: Mutex::default(),
            next_stream: Default::default(),
            sounding: Mutex::default(),
            next_sounding: Default::default(),
            held_up: Mutex::default(),
            waiting: Mutex::default(),
            stored_us: Default::default(),
            in_hand: Mutex::default(),
            understand,
            events: &|_| {},
        };
        let id = shared.cameras[0].id;
        let part = |number: i64| {
            let chunks = ChunkSpans::of(&clip);
            (id, chunks.holding(Timestamp(number * chunks.length)).1)
        };
        let unsegmented = || lock(&shared.cameras[0].status).unsegmented;
        assert!(shared.hand_on(part(0)) && shared.hand_on(part(1)));
        // There is no room for it.
        assert!(!shared.hand_on(part(2)));
        let made = shared.understood(parts, |parts| {
            let stored = parts.recv().unwrap().unwrap();
            shared.count_segments(stored, None, Made::default());
            assert!(shared.hand_on(part(2)));
            assert_eq!(parts.recv().unwrap(), Some(part(1)));
            assert_eq!(unsegmented(), 0);
            panic!("as a test wants it");
        });
        assert_eq!(made.unwrap_err().kind(), Kind::Internal);
        // The one that it had, and the one that waited.
        assert_eq!(unsegmented(), 2);
        assert!(shared.hand_on(part(3)));
        assert_eq!(unsegmented(), 3);
        shared.hand_on_at_last(part(4));
        assert_eq!(unsegmented(), 4);
    }
}
