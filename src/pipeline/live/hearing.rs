//! Listening to live streams, and what was heard into the record.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::inbox::{Came, Inbox};
use super::recorder::{ChunkSpans, untold};
use super::sound::{Listened, Sounding};
use super::status::{HeardCue, LiveEvent};
use super::{Shared, lock, monotonic_us};
use crate::error::{Error, Kind, Result};
use crate::library::{HeardChunk, RecipeId, SourceId, Writer};
use crate::media::{Cue, Gap, TrackKind};
use crate::picture::ClipRules;
use crate::pipeline::ears::{Hearing, LiveEars};
use crate::pipeline::listening::{How, Reads, Told, listen_to};
use crate::pipeline::reading::{Reader, Reading, length};
use crate::time::{Micros, Span, Timestamp};

/// How long nothing comes before it is said that nobody speaks.
const IDLE: Micros = Micros(2_000_000);
/// … and before it is stored that no sound came.
const MUTE: Micros = Micros(120_000_000);
const NO_SOUND: &str = "no sound";
const TICK: Duration = Duration::from_millis(500);
/// How long the rest is listened to when the run is to end.
const STOPPING: Duration = Duration::from_secs(10);
/// How often it is noted how far a source was heard in which nobody speaks.
const NOTE: Micros = Micros(15_000_000);

/// Lets the recipe be the one whose words are searched before it hears any, as [`super::be_current`] does
/// for clips.
pub(super) fn be_current(library: &mut Writer, hearing: &Hearing, take_over: bool) -> Result<()> {
    let waiting = library.words_would_wait(&hearing.recipe.id)?;
    if let Some(first) = waiting.first()
        && !take_over
    {
        let others = super::and_others(waiting.len() - 1);
        return Err(Error::invalid_input(format!(
            "another speech model has listened to {}{others} in this library, and search would find \
             nothing of what this one hears in live streams: name that model; or let `cinelex index \
             --library` listen to all with this one first; or let --take-over give up what the other one \
             has heard",
            first.name
        )));
    }
    library.add_recipe(&hearing.recipe)?;
    library.take_over_speech_first(&hearing.recipe.id)
}

/// Stores why nothing was heard of a source before the last run was cut off, where that one has not come to it.
pub(super) fn store_untold(
    library: &mut Writer,
    source: SourceId,
    recipe: &RecipeId,
    clip: &ClipRules,
) -> Result<()> {
    let gaps = untold(library, source, recipe, clip)?;
    let Some(at) = gaps.last().map(|gap| gap.span.end) else { return Ok(()) };
    for chunk in in_chunks(ChunkSpans::of(clip), None, at, Vec::new(), gaps) {
        library.append_heard(source, recipe, &chunk)?;
    }
    Ok(())
}

/// Listens to what comes into the inboxes of these streams until they are closed.
///
/// # Errors
/// The library's, where waiting does not help; the run is cancelled then.
pub(super) fn hear(
    shared: &Shared<'_>,
    recipe: &RecipeId,
    ears: LiveEars,
    inboxes: &[(usize, Inbox)],
    how: &How<'_>,
) -> Result<()> {
    let LiveEars { ears, models, language } = ears;
    let reads = inboxes.iter().map(|(camera, inbox)| {
        let read =
            move |reader: Reader<'_>| Listener { shared, camera: *camera, reader }.read(inbox);
        Box::new(read) as Reads<'_>
    });
    let reads = ears.into_iter().zip(reads).collect();
    let mut keeper = Keeper { shared, recipe, noted: HashMap::new() };
    listen_to(reads, &models, language.as_deref(), how, &mut |number, told| {
        keeper.take(number, told)
    })
}

/// Gives the sound of one stream to its reader.
struct Listener<'a> {
    shared: &'a Shared<'a>,
    camera: usize,
    reader: Reader<'a>,
}

impl Listener<'_> {
    fn read(mut self, inbox: &Inbox) {
        let mut reading: Option<Reading> = None;
        let mut connection = Connection::default();
        let mut idle_since = Instant::now();
        let mut stopping = None;
        let mut passed = Micros::ZERO;
        loop {
            let came = inbox.pop(TICK);
            if came.is_none() && inbox.is_over() {
                return;
            }
            if self.shared.cancel.is_cancelled() {
                stopping.get_or_insert_with(Instant::now);
            }
            let is_late = stopping.is_some_and(|since: Instant| since.elapsed() > STOPPING);
            if came.is_some() {
                idle_since = Instant::now();
            }
            connection.look(self.now(connection.number));
            let done = match (came, &mut reading) {
                (Some(Came::Begun { number, from, before, is_up }), _) => {
                    passed = Micros::ZERO;
                    connection = Connection { number, before, is_up, ..Connection::default() };
                    self.reader.begin_live(number, from).map(|begun| reading = Some(begun))
                }
                (Some(Came::Samples { pts, samples }), Some(reading)) if is_late => {
                    let length = length(&samples);
                    self.shared.count_sound(self.camera, |sound| sound.behind += length);
                    let reason = "the run was stopped".to_owned();
                    let span = Span::new(pts, pts + length);
                    self.reader.pass(reading, Gap { span, track: TrackKind::Sound, reason })
                }
                (Some(Came::Samples { pts, samples }), Some(reading)) => {
                    connection.has_sound = true;
                    // What comes late, after it was not waited for any longer, is to be stored still.
                    if let Some(sounding) = lock(&self.shared.sounding).get_mut(&connection.number)
                    {
                        sounding.reached = sounding.reached.min(pts);
                    }
                    self.reader.hear(reading, pts, &samples)
                }
                (Some(Came::Gap(gap)), Some(reading)) => self.reader.pass(reading, gap),
                (Some(Came::Over), Some(open)) => {
                    // Of sound that was lost with its connection, the next one tells.
                    let is_told = !connection.has_sound || self.shared.cancel.is_cancelled();
                    let least = if is_told { IDLE } else { MUTE };
                    let end = self.now(connection.number);
                    let passed_over = self.pass_unheard(open, &connection, end, least);
                    let finished = passed_over.map(drop).and(self.reader.finish(open));
                    self.count(open, &mut passed);
                    reading.take().map_or(Ok(()), |mut ended| {
                        ended.fail(finished.err());
                        self.reader.end(ended)
                    })
                }
                (None, Some(reading)) if is_long(idle_since) && connection.up_since.is_some() => {
                    let until = self.now(connection.number) - IDLE;
                    match self.pass_unheard(reading, &connection, until, MUTE) {
                        Ok(false) => self.reader.wait(reading, until),
                        told => told.map(drop),
                    }
                }
                _ => Ok(()),
            };
            match (done, &mut reading) {
                (Ok(()), Some(reading)) => self.count(reading, &mut passed),
                (Ok(()), None) => {}
                // Nobody is there any more.
                (Err(error), _) if error.kind() == Kind::Cancelled => return,
                (Err(error), _) => {
                    let name = self.shared.cameras[self.camera].input.name();
                    tracing::warn!("{}", error.in_source(name));
                }
            }
        }
    }

    /// Tells what a connection brought no sound of; see [`Connection::unheard`]. Returns whether there was
    /// any.
    fn pass_unheard(
        &mut self,
        reading: &mut Reading,
        connection: &Connection,
        end: Timestamp,
        least: Micros,
    ) -> Result<bool> {
        let Some(listened) = &self.shared.cameras[self.camera].listened else { return Ok(false) };
        let gaps = connection.unheard(listened, end, least);
        let is_some = !gaps.is_empty();
        gaps.into_iter().try_for_each(|gap| self.reader.pass(reading, gap)).map(|()| is_some)
    }

    /// What the clock of media says now.
    fn now(&self, number: usize) -> Timestamp {
        let sounding = lock(&self.shared.sounding);
        let zero_us = sounding.get(&number).map_or(0, |sounding| sounding.zero_us);
        Timestamp(monotonic_us().saturating_sub(zero_us))
    }

    fn count(&self, reading: &Reading, passed: &mut Micros) {
        let now = self.reader.without_speech(reading);
        let more = Micros(now.0 - std::mem::replace(passed, now).0);
        if more != Micros::ZERO {
            self.shared.count_sound(self.camera, |sound| sound.without_speech += more);
        }
    }
}

/// A connection that is listened to.
#[derive(Debug, Default)]
struct Connection {
    number: usize,
    /// Why nothing was heard before it, if nothing was.
    before: String,
    is_up: Arc<AtomicBool>,
    /// Since when that was seen.
    up_since: Option<Timestamp>,
    has_sound: bool,
}

impl Connection {
    fn look(&mut self, now: Timestamp) {
        if self.up_since.is_none() && self.is_up.load(Ordering::Relaxed) {
            self.up_since = Some(now);
        }
    }

    /// What was not heard up to `end`, where it has been up for at least so long without any sound: that, and
    /// what was before it. Each instant is told once.
    fn unheard(&self, listened: &Listened, end: Timestamp, least: Micros) -> Vec<Gap> {
        let Some(up_since) = self.up_since else { return Vec::new() };
        let until = listened.from(end);
        let mute = until.max(up_since);
        if end - mute < least {
            return Vec::new();
        }
        let before = if self.before.is_empty() { NO_SOUND } else { &self.before };
        let parts = [(Span::new(until, mute), before), (Span::new(mute, end), NO_SOUND)];
        let gap = |(span, reason): (Span, &str)| {
            let span = listened.pass(span)?;
            Some(Gap { span, track: TrackKind::Sound, reason: reason.to_owned() })
        };
        parts.into_iter().filter_map(gap).collect()
    }
}

fn is_long(idle_since: Instant) -> bool {
    idle_since.elapsed().as_secs_f64() >= IDLE.as_secs_f64()
}

/// Keeps what was heard.
struct Keeper<'a> {
    shared: &'a Shared<'a>,
    recipe: &'a RecipeId,
    /// Up to where it is noted that a stream was heard.
    noted: HashMap<usize, Timestamp>,
}

impl Keeper<'_> {
    fn take(&mut self, number: usize, told: Told) -> Result<()> {
        let shared = self.shared;
        let found = lock(&shared.sounding).get(&number).copied();
        let sounding = found.ok_or_else(|| Error::internal("sound that nobody began"))?;
        match told {
            Told::Advanced(_) => {}
            Told::Heard(by) => shared.count_sound(sounding.camera, |sound| sound.heard += by),
            Told::Lost(by) => shared.count_sound(sounding.camera, |sound| sound.unreadable += by),
            Told::Settled { at, cues, gaps } => {
                self.store(sounding, at, cues, gaps, false)?;
                if let Some(sounding) = lock(&shared.sounding).get_mut(&number) {
                    sounding.reached = sounding.reached.max(at);
                }
            }
            Told::Ended(ending) => {
                let starts = ending.cues.iter().map(|cue| cue.span.start);
                let starts = starts.chain(ending.gaps.iter().map(|gap| gap.span.start));
                let at = starts.map(|start| start + Micros(1)).fold(ending.at, Timestamp::max);
                self.store(sounding, at, ending.cues, ending.gaps, true)?;
                lock(&shared.sounding).remove(&number);
                if let Some(error) = ending.error {
                    let name = shared.cameras[sounding.camera].input.name();
                    tracing::warn!("{}", error.in_source(name));
                }
            }
        }
        Ok(())
    }

    /// Stores what was heard of a connection up to `at`; `is_last`: no more comes of it.
    fn store(
        &mut self,
        sounding: Sounding,
        at: Timestamp,
        cues: Vec<Cue>,
        gaps: Vec<Gap>,
        is_last: bool,
    ) -> Result<()> {
        let Sounding { camera, zero_us, .. } = sounding;
        let shared = self.shared;
        let noted = self.noted.get(&camera).copied();
        let is_noted = !is_last && noted.is_some_and(|noted| at - noted < NOTE);
        if cues.is_empty() && gaps.is_empty() && is_noted {
            return Ok(());
        }
        let id = shared.cameras[camera].id;
        for chunk in in_chunks(shared.chunks(), noted, at, cues, gaps) {
            let is_kept = shared.store(|library| library.append_heard(id, self.recipe, &chunk))?;
            if is_kept {
                tell(shared, camera, zero_us, &chunk);
            }
        }
        self.noted.insert(camera, at);
        Ok(())
    }
}

/// Says what was heard, and how long after it was said it is there.
fn tell(shared: &Shared<'_>, camera: usize, zero_us: i64, chunk: &HeardChunk) {
    let now = monotonic_us();
    let mut status = lock(&shared.cameras[camera].status);
    let source = status.source.clone();
    let Some(sound) = &mut status.sound else { return };
    sound.gaps += chunk.gaps.len() as u64;
    let secs = chunk.gaps.iter().map(|gap| gap.span.length().as_secs_f64());
    sound.gap_secs += secs.sum::<f64>();
    for cue in &chunk.cues {
        let said = zero_us.saturating_add(cue.span.end.0);
        let delay_secs = Micros(now.saturating_sub(said)).as_secs_f64();
        sound.cues += 1;
        sound.delay_secs = Some(delay_secs);
        (shared.events)(&LiveEvent::Heard(&HeardCue {
            source: source.clone(),
            id: shared.cameras[camera].id,
            span: cue.span.into(),
            text: cue.text.clone(),
            language: cue.language.clone(),
            delay_secs,
        }));
    }
}

/// What was heard up to `at`, by the chunks of its source. The last one ends there. `noted`: up to where it was
/// noted before; the chunk that holds it is over, unless it is the last.
fn in_chunks(
    spans: ChunkSpans,
    noted: Option<Timestamp>,
    at: Timestamp,
    cues: Vec<Cue>,
    gaps: Vec<Gap>,
) -> Vec<HeardChunk> {
    let mut chunks: BTreeMap<u32, HeardChunk> = BTreeMap::new();
    let mut of = |start: Timestamp| {
        let (index, span) = spans.holding(start);
        let span = Span::new(span.start, span.end.min(at));
        let (cues, gaps) = (Vec::new(), Vec::new());
        chunks.entry(index).or_insert(HeardChunk { index, span, cues, gaps });
        index
    };
    let cues: Vec<(u32, Cue)> = cues.into_iter().map(|cue| (of(cue.span.start), cue)).collect();
    let gaps: Vec<(u32, Gap)> = gaps.into_iter().map(|gap| (of(gap.span.start), gap)).collect();
    of(at + Micros(-1));
    if let Some(noted) = noted.filter(|noted| *noted < at) {
        of(noted);
    }
    for (index, cue) in cues {
        if let Some(chunk) = chunks.get_mut(&index) {
            chunk.cues.push(cue);
        }
    }
    for (index, gap) in gaps {
        if let Some(chunk) = chunks.get_mut(&index) {
            chunk.gaps.push(gap);
        }
    }
    chunks.into_values().collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn what_a_connection_does_not_bring_is_told_once_with_its_reason() {
        let at = |secs: i64| Timestamp(secs * 1_000_000);
        let (sender, _connections) = crossbeam_channel::bounded(1);
        let listened = Listened { connections: sender, until: Mutex::new(Some(at(100))) };
        let mut connection =
            Connection { before: "stream lost".to_owned(), ..Connection::default() };
        let told = |connection: &Connection, end: i64| -> Vec<(i64, i64, String)> {
            let secs = |at: Timestamp| at.0 / 1_000_000;
            let gaps = connection.unheard(&listened, at(end), MUTE).into_iter();
            gaps.map(|gap| (secs(gap.span.start), secs(gap.span.end), gap.reason)).collect()
        };
        // An outage is nothing that this connection could bring…
        connection.look(at(699));
        assert!(told(&connection, 699).is_empty());
        connection.is_up.store(true, Ordering::Relaxed);
        connection.look(at(700));
        connection.look(at(800));
        // … and neither are its first two minutes too long.
        assert!(told(&connection, 819).is_empty());
        let (lost, mute) = ("stream lost".to_owned(), "no sound".to_owned());
        assert_eq!(told(&connection, 820), [(100, 700, lost), (700, 820, mute.clone())]);
        assert!(told(&connection, 900).is_empty());
        assert_eq!(told(&connection, 940), [(820, 940, mute)]);
        // What the host tells of the same time when sound comes is what is left of it.
        let left = listened.pass(Span::new(at(100), at(950)));
        assert_eq!(left, Some(Span::new(at(940), at(950))));
        assert_eq!(listened.pass(Span::new(at(100), at(950))), None);
        listened.reach(at(960));
        assert!(told(&connection, 1_000).is_empty());
    }

    #[test]
    fn what_was_heard_lies_in_the_chunks_in_which_it_begins() {
        let spans = ChunkSpans { length: 120_000_000 };
        let gap = |start: i64, end: i64| Gap {
            span: Span::new(Timestamp(start * 1_000_000), Timestamp(end * 1_000_000)),
            track: TrackKind::Sound,
            reason: "no sound".to_owned(),
        };
        let at = Timestamp(500_000_000);
        let noted = Some(Timestamp(130_000_000));
        let chunks = in_chunks(spans, noted, at, Vec::new(), vec![gap(100, 300), gap(310, 311)]);
        let found: Vec<_> = chunks
            .iter()
            .map(|chunk| (chunk.index, chunk.span.start.0, chunk.span.end.0, chunk.gaps.len()))
            .collect();
        let expected = [
            (0, 0, 120_000_000, 1),
            (1, 120_000_000, 240_000_000, 0),
            (2, 240_000_000, 360_000_000, 1),
            (4, 480_000_000, 500_000_000, 0),
        ];
        assert_eq!(found, expected);
    }
}
