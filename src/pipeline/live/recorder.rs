//! The graph's sink for live streams: a clip into the record as soon as it is there.

use std::collections::{HashMap, VecDeque};

use super::patience::passes;
use super::status::{LiveEvent, StoredClip};
use super::{Camera, Part, Session, Shared, monotonic_us};
use crate::error::{Error, Result};
use crate::graph::{Event, Message, Sink, StreamId};
use crate::library::{ChunkRecord, RecipeId, SourceId, WallOrigin, Writer};
use crate::media::{Gap, IndexedClip};
use crate::picture::ClipRules;
use crate::pipeline::shared::{CHUNK_CLIPS, lock};
use crate::time::{Micros, Span, Timestamp};

#[derive(Debug)]
pub(super) struct Recorder<'a> {
    shared: &'a Shared<'a>,
    /// Gaps that are stored with the clip behind them.
    gaps: HashMap<StreamId, Vec<Gap>>,
    /// The chunk of each source that clips went into last.
    chunks: HashMap<SourceId, Span>,
    /// Whose clock the record says that times are of.
    origins: HashMap<SourceId, WallOrigin>,
    /// Chunks that are over, of which there are no segments yet.
    over: VecDeque<Part>,
}

impl<'a> Recorder<'a> {
    pub fn new(shared: &'a Shared<'a>) -> Self {
        let mut recorder = Recorder {
            shared,
            gaps: HashMap::new(),
            chunks: HashMap::new(),
            origins: HashMap::new(),
            over: VecDeque::new(),
        };
        // An interruption may have come before the segments.
        for camera in &shared.cameras {
            if let Some(until) = camera.seen_until {
                let mut records = Vec::new();
                let span = shared.chunks().record(&mut records, until - Micros(1)).span;
                if camera.listened.is_some() {
                    // The chunk before may have been waiting for its words.
                    let (_, before) = shared.chunks().holding(span.start - Micros(1));
                    recorder.over.push_back((camera.id, before));
                }
                recorder.chunks.insert(camera.id, span);
            }
        }
        recorder
    }

    /// Hands on the chunks that are over, those of which all is heard, as far as there is room: nothing here
    /// waits for segments.
    fn hand_on(&mut self) {
        let shared = self.shared;
        self.over.retain(|&(source, span)| {
            !shared.is_heard(source, span.end) || !shared.hand_on((source, span))
        });
    }

    /// No more comes: the chunks in hand are over, too.
    pub fn finish(&mut self) {
        self.over.extend(self.chunks.drain());
        self.over.drain(..).for_each(|part| self.shared.hand_on_at_last(part));
    }

    /// Stores what came of a stream. While the disk is full or the library is in use, everything
    /// waits: the hosts leave out what they have no room for, and count it.
    fn store(&mut self, session: Session, clips: Vec<IndexedClip>, gaps: Vec<Gap>) -> Result<()> {
        let shared = self.shared;
        let camera = &shared.cameras[session.camera];
        let chunk = shared.chunks();
        let mut records: Vec<ChunkRecord> = Vec::new();
        for gap in gaps {
            chunk.record(&mut records, gap.span.start).gaps.push(gap);
        }
        for clip in clips {
            chunk.record(&mut records, clip.head.span.start).clips.push(clip);
        }
        for record in &records {
            shared.store(|library| library.append(camera.id, &shared.recipe, record))?;
            if !record.clips.is_empty()
                && let Some(before) = self.chunks.insert(camera.id, record.span)
                && before != record.span
            {
                self.over.push_back((camera.id, before));
            }
        }
        self.note_origin(camera)?;
        self.hand_on();
        self.tell(session, &records);
        Ok(())
    }

    /// Where the sender's clock is believed from now on, or no longer, the record says so.
    fn note_origin(&mut self, camera: &Camera) -> Result<()> {
        let origin = match lock(&camera.status).frames.received.is_sender_time {
            true => WallOrigin::SenderReport,
            false => WallOrigin::Arrival,
        };
        if self.origins.insert(camera.id, origin) != Some(origin) {
            match lock(&self.shared.library).set_wall_origin(camera.id, origin) {
                // It is tried again with the next clip.
                Err(error) if passes(&error) => drop(self.origins.remove(&camera.id)),
                noted => noted?,
            }
        }
        Ok(())
    }

    fn tell(&self, session: Session, records: &[ChunkRecord]) {
        let shared = self.shared;
        let camera = &shared.cameras[session.camera];
        let now = monotonic_us();
        let mut status = lock(&camera.status);
        for record in records {
            status.gaps += record.gaps.len() as u64;
            let secs = record.gaps.iter().map(|gap| gap.span.length().as_secs_f64());
            status.gap_secs += secs.sum::<f64>();
            for clip in &record.clips {
                let span = clip.head.span;
                // Where a connection began or ended in a clip, its last frame may be any.
                let is_whole = clip.head.frames >= shared.clip.frames;
                let delay_secs = is_whole.then(|| {
                    let last_frame = session.zero_us.saturating_add(self.last_frame(span).0);
                    Micros(now.saturating_sub(last_frame)).as_secs_f64()
                });
                status.clips += 1;
                status.delay_secs = delay_secs.or(status.delay_secs);
                (shared.events)(&LiveEvent::Stored(&StoredClip {
                    source: status.source.clone(),
                    id: camera.id,
                    span: span.into(),
                    delay_secs,
                }));
            }
        }
    }

    /// The instant of a clip's last frame: in the middle of its share.
    fn last_frame(&self, span: Span) -> Timestamp {
        let rules = &self.shared.clip;
        span.end - Micros(rules.length.0 / (2 * i64::from(rules.frames.max(1))))
    }
}

impl Shared<'_> {
    /// The spans that sources' records are kept in.
    pub fn chunks(&self) -> ChunkSpans {
        ChunkSpans::of(&self.clip)
    }
}

/// Stores why nothing was seen of a source before the last run was cut off, where that one has not come to it.
pub(super) fn store_untold(
    library: &mut Writer,
    source: SourceId,
    recipe: &RecipeId,
    clip: &ClipRules,
) -> Result<()> {
    let mut records = Vec::new();
    for gap in untold(library, source, recipe, clip)? {
        ChunkSpans::of(clip).record(&mut records, gap.span.start).gaps.push(gap);
    }
    records.iter().try_for_each(|record| library.append(source, recipe, record))
}

/// What the last run has not come to tell; see [`Writer::untold`].
pub(super) fn untold(
    library: &Writer,
    source: SourceId,
    recipe: &RecipeId,
    clip: &ClipRules,
) -> Result<Vec<Gap>> {
    let mut gaps = library.untold(source, recipe)?;
    let mut from = gaps.first().map(|gap| gap.span.start);
    gaps.retain_mut(|gap| {
        let Some(start) = from else { return false };
        // The next connection begins on the clip grid.
        let end = clip.start(clip.place(gap.span.end));
        let is_some = start < end;
        if is_some {
            gap.span = Span::new(start, end);
            from = Some(end);
        }
        is_some
    });
    Ok(gaps)
}

/// The spans that a source's record is kept in.
#[derive(Debug, Clone, Copy)]
pub(super) struct ChunkSpans {
    pub length: i64,
}

impl ChunkSpans {
    pub fn of(clip: &ClipRules) -> Self {
        ChunkSpans { length: clip.length.0.saturating_mul(CHUNK_CLIPS.into()) }
    }

    /// The number and span of the chunk that holds `at`.
    pub fn holding(self, at: Timestamp) -> (u32, Span) {
        let number = at.0.div_euclid(self.length).max(0);
        let start = Timestamp(number.saturating_mul(self.length));
        let span = Span::new(start, start + Micros(self.length));
        (u32::try_from(number).unwrap_or(u32::MAX), span)
    }

    /// The record of the chunk that holds `at`.
    fn record(self, records: &mut Vec<ChunkRecord>, at: Timestamp) -> &mut ChunkRecord {
        let (index, span) = self.holding(at);
        if records.last().is_none_or(|record| record.index != index) {
            records.push(ChunkRecord { index, span, clips: Vec::new(), gaps: Vec::new() });
        }
        let last = records.len() - 1;
        &mut records[last]
    }
}

impl Sink for Recorder<'_> {
    type In = IndexedClip;
    type Ack = ();
    const NAME: &'static str = "record";

    fn accept(&mut self, message: Message<IndexedClip>) -> Result<Option<()>> {
        let Message { stream, event } = message;
        let session = self
            .shared
            .session(stream)
            .ok_or_else(|| Error::internal("a stream that nobody began"))?;
        match event {
            Event::Item(clip) => {
                let gaps = self.gaps.remove(&stream).unwrap_or_default();
                self.store(session, vec![clip], gaps)?;
            }
            Event::Gap(gap) => self.gaps.entry(stream).or_default().push(gap),
            Event::Watermark(_) => {}
            Event::End(end) => {
                let gaps = self.gaps.remove(&stream).unwrap_or_default();
                if !gaps.is_empty() {
                    self.store(session, Vec::new(), gaps)?;
                }
                lock(&self.shared.sessions).remove(&stream);
                if let Err(error) = end {
                    tracing::warn!(
                        "{}",
                        error.in_source(self.shared.cameras[session.camera].input.name())
                    );
                }
            }
        }
        Ok(Some(()))
    }
}
