//! Ingest: files through the graph into the record, a chunk at a time.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::files::Files;
use super::jobs::{ChunkJob, Claims, Jobs};
use super::loaded::Loaded;
use super::opened::Opened;
use super::report::{Part, Progress, RunReport, SourceReport, SourceState};
use super::sounds::Sounds;
use super::stages::{Encode, Quantize};
use super::understand::Understand;
use crate::error::{Error, Kind, Result};
use crate::graph::{Cancel, Event, Message, QueueLimits, Run, Sink, StageStats, StreamId};
use crate::library::{ChunkRecord, Reader, RecipeId, SourceId, State, Waiting, Writer};
use crate::media::{Gap, IndexedClip};
use crate::picture::{ClipGrid, ClipRules};
use crate::source::{Host, Limits, Location, Rendition, Sidecars, Spent};
use crate::time::{Micros, Span, Timestamp, process_processor_time};

/// Clips in a chunk: the unit of parallel decoding, of committing, and of resuming.
pub(super) const CHUNK_CLIPS: u32 = 80;

/// What may wait between two stages: half a minute of default clips, or a quarter gigabyte of
/// pixels, whichever is less.
const QUEUE: QueueLimits = QueueLimits { items: 64, bytes: 64 << 20 };

/// How a run goes about its work; nothing here changes results.
#[derive(Debug)]
pub struct Options {
    /// Decoder hosts side by side.
    pub workers: NonZeroUsize,
    /// Frames that the CNN takes at a time, at most.
    pub batch: u16,
    /// Set on every source of this run.
    pub tags: Vec<(String, String)>,
    /// Reads every byte of the sources that the library knows.
    pub verify: bool,
    /// Lets this pipeline take over from another one whatever that one alone has read.
    pub take_over: bool,
    /// What listens to sound; `None` where nobody does.
    #[cfg(feature = "speech")]
    pub hearing: Option<super::ears::Hearing>,
    /// Windows of speech that are read side by side.
    #[cfg(feature = "speech")]
    pub listeners: NonZeroUsize,
    pub cancel: Cancel,
}

/// What readers and the recorder share in one run.
pub(super) struct Shared<'a> {
    pub jobs: Jobs<Location, Opened>,
    pub recipe: RecipeId,
    pub segment_recipe: RecipeId,
    pub clip: ClipRules,
    pub rendition: Rendition,
    pub tags: Vec<(String, String)>,
    pub verify: bool,
    pub cancel: Cancel,
    pub sidecars: Sidecars,
    /// Readers side by side.
    pub workers: u16,
    library: &'a Mutex<Writer>,
    progress: &'a (dyn Fn(&Progress<'_>) + Sync),
    /// What is listened to beside the graph.
    pub sounds: Option<Sounds>,
    /// To the other half: a source whose rows are in the record; `None` when there are no more.
    understand: crossbeam_channel::Sender<Option<SourceId>>,
    reports: Mutex<Vec<SourceReport>>,
    /// What the decoder hosts have taken.
    decoding: Mutex<Spent>,
    /// Sources that were looked into and are not finished.
    open: Mutex<Vec<Arc<Opened>>>,
    /// Sources that readers are looking into.
    pub claims: Claims<SourceId>,
}

impl std::fmt::Debug for Shared<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("recipe", &self.recipe).finish_non_exhaustive()
    }
}

impl Shared<'_> {
    /// The one writer. Held for a transaction at a time.
    pub fn library(&self) -> MutexGuard<'_, Writer> {
        lock(self.library)
    }

    /// Counts what a decoder host has taken.
    pub fn count_decoding(&self, spent: Spent) {
        *lock(&self.decoding) += spent;
    }

    pub fn chunk_length(&self) -> Micros {
        Micros(self.clip.length.0.saturating_mul(i64::from(CHUNK_CLIPS)))
    }

    fn chunk_start(&self, number: u32) -> Timestamp {
        Timestamp(self.chunk_length().0.saturating_mul(i64::from(number)))
    }

    fn report(&self, report: SourceReport) {
        (self.progress)(&Progress::Finished(&report));
        lock(&self.reports).push(report);
    }

    /// Reports a source that could not even be looked into.
    pub fn fail_unopened(&self, location: &Location, error: &Error) {
        self.report(if error.kind() == Kind::Cancelled {
            SourceReport::new(location.to_string(), SourceState::Interrupted)
        } else {
            SourceReport::failed(location.to_string(), error)
        });
    }

    pub fn hashed(&self, source: &str, bytes: u64, of_bytes: u64) {
        (self.progress)(&Progress::Hashed { source, bytes, of_bytes });
    }

    /// A source is worked on: of its picture so many chunks are done already, and its sound was
    /// listened to up to an instant, if it is to be listened to.
    pub fn opened(&self, source: &Arc<Opened>, chunks_done: usize, heard_to: Option<Timestamp>) {
        lock(&self.open).push(Arc::clone(source));
        let stored = Micros(self.chunk_length().0.saturating_mul(chunks_done as i64));
        let sees = source.tally().streams > 0;
        (self.progress)(&Progress::Opened {
            source: source.input.name(),
            length: source.length,
            picture: sees.then_some(stored),
            sound: heard_to.map(|to| to - Timestamp::ZERO),
        });
    }

    /// The source under this id that is being read in this run, if one is.
    pub fn being_read(&self, id: SourceId) -> Option<Arc<Opened>> {
        lock(&self.open).iter().find(|open| open.id == id).cloned()
    }

    /// Reports a source that the library had already; `new_cues` counts the words that were read
    /// again since the files beside it have changed.
    pub fn unchanged(
        &self,
        id: SourceId,
        location: &Location,
        new_cues: Option<usize>,
        verified: bool,
        notices: Vec<String>,
    ) {
        let state = match new_cues {
            Some(_) => SourceState::Indexed,
            None => SourceState::Unchanged,
        };
        self.report(SourceReport {
            id: Some(id.to_string()),
            cues: new_cues.unwrap_or(0) as u64,
            verified,
            notices,
            ..SourceReport::new(location.to_string(), state)
        });
        if new_cues.is_some() {
            self.hand_on(id);
        }
    }

    /// Media that has come to the end of the graph.
    fn advanced(&self, source: &Opened, by: Micros) {
        if by > Micros::ZERO {
            let (source, part) = (source.input.name(), Part::Picture);
            (self.progress)(&Progress::Advanced { source, part, by });
        }
    }

    /// Sound that has been listened to.
    #[cfg(feature = "speech")]
    pub fn heard(&self, source: &Opened, by: Micros) {
        let (source, part) = (source.input.name(), Part::Sound);
        (self.progress)(&Progress::Advanced { source, part, by });
    }

    /// Settles the end of a stream; with the last one, the picture has ended.
    fn stream_ended(&self, job: &ChunkJob<Opened>, end: Result<()>) -> Result<()> {
        let source = &job.source;
        self.jobs.ended(job.stream);
        let left = {
            let mut tally = source.tally();
            tally.streams -= 1;
            if let Err(error) = end {
                if error.kind() == Kind::Cancelled {
                    tally.interrupted = true;
                } else {
                    tally.error.get_or_insert_with(|| (&error).into());
                }
                tally.streams -= self.jobs.give_up(source);
            }
            tally.streams
        };
        if left == 0 { self.picture_ended(source) } else { Ok(()) }
    }

    /// Writes down how the picture of a source ended.
    pub fn picture_ended(&self, source: &Arc<Opened>) -> Result<()> {
        let (stored, error, length) = {
            let tally = source.tally();
            let stored = match (&tally.error, tally.interrupted) {
                (Some(_), _) => Some(State::Failed),
                (None, true) => None,
                (None, false) => Some(State::Complete),
            };
            let error = tally.error.as_ref().map(|error| error.reason.clone());
            (stored, error, source.known_length(&tally).filter(|_| tally.end.is_some()))
        };
        if let Some(stored) = stored {
            let mut library = self.library();
            // What was only listened to was seen before.
            if library.progress(source.id, &self.recipe)? != State::Complete {
                if let Some(length) = length {
                    library.set_duration(source.id, length)?;
                }
                library.finish_source(source.id, &self.recipe, stored, error.as_deref())?;
            }
            if stored == State::Complete {
                library.settle_growth(source.id)?;
            }
        }
        self.part_ended(source)
    }

    /// Picture or sound of a source has ended; with the other one, the source is finished.
    pub fn part_ended(&self, source: &Arc<Opened>) -> Result<()> {
        let left = {
            let mut tally = source.tally();
            tally.parts -= 1;
            tally.parts
        };
        if left == 0 { self.finish(source) } else { Ok(()) }
    }

    /// Finishes the sources that the run has left, since it was stopped.
    fn finish_all(&self) -> Result<()> {
        let open = lock(&self.open).clone();
        for source in open {
            let sees = {
                let mut tally = source.tally();
                tally.interrupted = true;
                tally.parts = 1;
                tally.streams > 0
            };
            if sees { self.picture_ended(&source)? } else { self.part_ended(&source)? }
        }
        Ok(())
    }

    /// Reports how a source ended, and hands it on to be understood.
    fn finish(&self, source: &Arc<Opened>) -> Result<()> {
        let tally = source.tally();
        let error = tally.error.as_ref().or(tally.sound_error.as_ref());
        let state = match (error, tally.interrupted) {
            (Some(_), _) => SourceState::Failed,
            (None, true) => SourceState::Interrupted,
            (None, false) => SourceState::Indexed,
        };
        let mut notices = tally.notices.clone();
        let counted = [
            (tally.corrupt_packets, "corrupt packets skipped"),
            (tally.damaged_frames, "damaged frames"),
            (tally.misplaced_frames, "frames out of order left out"),
        ];
        let counted = counted.iter().filter(|(count, _)| *count > 0);
        notices.extend(counted.map(|(count, what)| format!("{count} {what}")));
        if tally.sound_gaps > 0 {
            let secs = tally.sound_gap_length.as_secs_f64();
            notices.push(format!("{} gaps in the sound ({secs:.1} s)", tally.sound_gaps));
        }
        let report = SourceReport {
            source: source.input.name().to_owned(),
            id: Some(source.id.to_string()),
            state,
            length_secs: source.known_length(&tally).map(Micros::as_secs_f64),
            clips: tally.clips,
            cues: tally.cues,
            language: tally.language.clone(),
            gaps: tally.gaps,
            gap_secs: tally.gap_length.as_secs_f64(),
            verified: false,
            notices,
            error: error.cloned(),
        };
        drop(tally);
        // Not before the record says how it ended: a copy of it would be read too.
        lock(&self.open).retain(|open| !Arc::ptr_eq(open, source));
        self.report(report);
        self.hand_on(source.id);
        Ok(())
    }

    /// Lets what was heard in this run be what is searched, where another recipe was until now, and hands
    /// on what changes by that. Returns the sources that this waits for.
    fn let_words_take_over(&self, at_once: bool) -> Result<Vec<Waiting>> {
        let Some(sounds) = &self.sounds else { return Ok(Vec::new()) };
        let at_once = at_once && !self.cancel.is_cancelled();
        let (waiting, changed) = self.library().take_over_speech(&sounds.recipe, at_once)?;
        if changed {
            let old = self.library().left_to_understand(&self.recipe, &self.segment_recipe)?;
            old.into_iter().for_each(|source| self.hand_on(source));
        }
        Ok(waiting)
    }

    fn hand_on(&self, source: SourceId) {
        // The other half is gone only when it failed, and its error ends the run.
        let _ = self.understand.send(Some(source));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic in a transaction rolls it back, so what the lock guards is whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Indexes `locations` into a library. What could not be read is in the report; an error is
/// something that no source can be indexed with.
pub fn index(
    locations: Vec<Location>,
    library: Writer,
    reader: Reader,
    loaded: Loaded,
    options: Options,
    progress: &(dyn Fn(&Progress<'_>) + Sync),
) -> Result<RunReport> {
    let started = Instant::now();
    let used_before = process_processor_time();
    let Loaded {
        pipeline,
        encoder,
        codebook,
        space,
        tower,
        describer,
        clip_recipe,
        segment_recipe,
    } = loaded;
    let library = Mutex::new(library);
    {
        let mut library = lock(&library);
        library.add_recipe(&clip_recipe)?;
        library.add_recipe(&segment_recipe)?;
    }
    let (width_px, height_px) = encoder.input_px();
    let (sender, receiver) = crossbeam_channel::bounded(64);
    #[cfg(feature = "speech")]
    let (sounds, heard) = match &options.hearing {
        Some(hearing) => {
            lock(&library).add_recipe(&hearing.recipe)?;
            let (queue, heard) = crossbeam_channel::bounded(super::sounds::MOST_WAITING);
            let (recipe, always) = (hearing.recipe.id.clone(), hearing.always);
            (Some(Sounds { recipe, always, queue }), Some((hearing, heard)))
        }
        None => (None, None),
    };
    #[cfg(not(feature = "speech"))]
    let sounds: Option<Sounds> = None;
    let shared = Shared {
        jobs: Jobs::new(locations),
        recipe: clip_recipe.id.clone(),
        segment_recipe: segment_recipe.id.clone(),
        clip: pipeline.clip,
        rendition: Rendition { width_px, height_px, fit: pipeline.fit },
        tags: options.tags,
        sidecars: Sidecars::default(),
        verify: options.verify,
        cancel: options.cancel.clone(),
        workers: u16::try_from(options.workers.get()).unwrap_or(u16::MAX),
        library: &library,
        progress,
        sounds,
        understand: sender,
        reports: Mutex::new(Vec::new()),
        decoding: Mutex::new(Spent::default()),
        open: Mutex::new(Vec::new()),
        claims: Claims::default(),
    };
    let mut readers = Vec::with_capacity(options.workers.get());
    for _ in 0..options.workers.get() {
        let host = Host::start_until(&Limits::default(), options.cancel.flag())?;
        readers.push(Files { host, shared: &shared });
    }
    let encode = Encode {
        encoder,
        cells: pipeline.cells,
        frames_per_clip: pipeline.clip.frames,
        batch: options.batch,
    };
    let quantize = Quantize { codebook: codebook.as_ref(), space: space.as_ref() };
    let mut recorder = Recorder { shared: &shared, streams: HashMap::new() };
    let understood = StageStats::new("segment");
    let described = StageStats::new("caption");
    let has_captions = describer.is_some();
    let listened = StageStats::new("listen");
    let mut understand = Understand {
        library: &library,
        reader,
        tower,
        sentence: pipeline.sentence,
        segment: pipeline.segment,
        clip_recipe: &clip_recipe.id,
        recipe: &segment_recipe.id,
        describer,
        codebook: codebook.as_ref(),
        stats: &understood,
        describing: &described,
        cancel: &options.cancel,
    };

    let mut stored = Micros::ZERO;
    let mut unheard = Vec::new();
    let (stages, segments) = std::thread::scope(|scope| {
        let understand = &mut understand;
        // The receiver goes with the thread, so that nobody waits for one that has failed.
        let understanding = scope.spawn(move || understand.all(&receiver));
        // Told even if a stage panics, since the scope waits for the threads.
        let over = NoMore(&shared.understand);
        let all_opened = shared.sounds.as_ref().map(|sounds| NoMore(&sounds.queue));
        #[cfg(feature = "speech")]
        let hearing = heard.map(|(hearing, queue)| {
            let (shared, stats) = (&shared, &listened);
            let how = super::listening::How {
                threads: options.listeners.get(),
                cancel: &options.cancel,
                stats,
            };
            scope.spawn(move || {
                let heard = super::hearing::hear(shared, hearing, &queue, &how);
                // Nothing that comes of the rest would be whole.
                heard.inspect_err(|_| how.cancel.cancel())
            })
        });
        let grid = |stream| {
            let first = shared.jobs.of(stream).map_or(0, |job| job.first);
            ClipGrid::new(shared.clip, shared.chunk_start(first))
        };
        let stages = Run::execute(QUEUE, &options.cancel, |run| {
            let frames = run.sources(readers)?;
            let clips = run.fold(frames, grid)?;
            let encoded = run.map(clips, encode)?;
            let indexed = run.map(encoded, quantize)?;
            run.sink(indexed, &mut recorder, |length| stored = Micros(stored.0 + length.0))
        });
        if stages.is_err() {
            options.cancel.cancel();
        }
        drop(all_opened);
        #[cfg(feature = "speech")]
        let stages = match hearing.map(std::thread::ScopedJoinHandle::join) {
            Some(Ok(heard)) => heard.and(stages),
            Some(Err(_)) => stages.and(Err(Error::internal("listening panicked"))),
            None => stages,
        };
        let stages = stages.and_then(|stages| {
            shared.finish_all()?;
            unheard = shared.let_words_take_over(options.take_over)?;
            Ok(stages)
        });
        drop(over);
        let segments =
            understanding.join().unwrap_or_else(|_| Err(Error::internal("understanding panicked")));
        (stages, segments)
    });
    let mut stages = stages?;
    stages.push(understood.report());
    stages.extend(has_captions.then(|| described.report()));
    stages.extend(shared.sounds.is_some().then(|| listened.report()));
    let processor_time = process_processor_time().saturating_sub(used_before);
    let mut report = RunReport {
        interrupted: options.cancel.is_cancelled(),
        not_begun: shared.jobs.unopened(),
        waiting: 0,
        waiting_gone: 0,
        left_behind: 0,
        left_out: Vec::new(),
        segments: segments?,
        media_secs: stored.as_secs_f64(),
        elapsed_secs: started.elapsed().as_secs_f64(),
        stages,
        cpu_secs: processor_time.as_secs_f64(),
        decoding: *lock(&shared.decoding),
        sources: std::mem::take(&mut *lock(&shared.reports)),
    };
    let mut library = lock(&library);
    let mut waiting = library.take_over(&clip_recipe.id, &segment_recipe.id)?;
    if options.take_over
        && !waiting.is_empty()
        && !report.interrupted
        && library.take_over_at_once(&clip_recipe.id, &segment_recipe.id)?
    {
        report.left_behind = std::mem::take(&mut waiting).len();
    }
    unheard.retain(|source| !waiting.contains(source));
    waiting.extend(unheard);
    report.waiting = waiting.len();
    report.waiting_gone = waiting.iter().filter(|source| source.is_gone).count();
    let is_new = report.count(SourceState::Unchanged) < report.sources.len()
        || report.segments > 0
        || report.left_behind > 0;
    // The run that made the rows may have been cut off before it came to this.
    if (is_new || !library.index_is_complete()?)
        && let Err(error) = library.refresh_index()
    {
        tracing::warn!("{error}: search takes longer until the index is made anew");
    }
    if !is_new {
        return Ok(report);
    }
    // Thousands of unchanged sources would make every day's report as long as the first.
    let mut kept = report.clone();
    kept.sources.retain(|source| source.state != SourceState::Unchanged);
    let json = serde_json::to_value(&kept)
        .map_err(|cause| Error::internal("cannot write JSON").caused_by(cause))?;
    library.record_run(&json)?;
    Ok(report)
}

/// Tells another thread that no more comes: it does what there is, and then ends.
struct NoMore<'a, T>(&'a crossbeam_channel::Sender<Option<T>>);

impl<T> Drop for NoMore<'_, T> {
    fn drop(&mut self) {
        // It is gone already where it failed.
        let _ = self.0.send(None);
    }
}

/// The graph's sink: clips into the record, a chunk in a transaction.
struct Recorder<'a> {
    shared: &'a Shared<'a>,
    streams: HashMap<StreamId, Pending>,
}

/// The chunk of a stream that is being filled.
struct Pending {
    job: Arc<ChunkJob<Opened>>,
    number: u32,
    clips: Vec<IndexedClip>,
    gaps: Vec<Gap>,
    /// Up to where the stream has come.
    seen: Timestamp,
}

impl Sink for Recorder<'_> {
    type In = IndexedClip;
    /// The length of media that is durable since the last one.
    type Ack = Micros;
    const NAME: &'static str = "record";

    fn accept(&mut self, message: Message<IndexedClip>) -> Result<Option<Micros>> {
        let Message { stream, event } = message;
        let shared = self.shared;
        let Some(pending) = self.pending(stream) else {
            return Err(Error::internal("a stream that nobody began"));
        };
        match event {
            Event::Item(clip) => {
                let durable = pending.advance(clip.head.span.start, shared)?;
                pending.clips.push(clip);
                Ok(durable)
            }
            Event::Watermark(at) => pending.advance(at, shared),
            Event::Gap(gap) => {
                pending.gaps.push(gap);
                Ok(None)
            }
            Event::End(end) => {
                let durable = end.is_ok().then(|| pending.commit(shared)).transpose()?;
                let job = Arc::clone(&pending.job);
                self.streams.remove(&stream);
                shared.stream_ended(&job, end)?;
                Ok(durable)
            }
        }
    }
}

impl Recorder<'_> {
    fn pending(&mut self, stream: StreamId) -> Option<&mut Pending> {
        if !self.streams.contains_key(&stream) {
            let job = self.shared.jobs.of(stream)?;
            let (number, seen) = (job.first, self.shared.chunk_start(job.first));
            let pending = Pending { job, number, clips: Vec::new(), gaps: Vec::new(), seen };
            self.streams.insert(stream, pending);
        }
        self.streams.get_mut(&stream)
    }
}

impl Pending {
    /// The stream has come to `at`: commits the chunk when that lies behind it.
    fn advance(&mut self, at: Timestamp, shared: &Shared<'_>) -> Result<Option<Micros>> {
        let number = u32::try_from(at.0.div_euclid(shared.chunk_length().0)).unwrap_or(u32::MAX);
        shared.advanced(&self.job.source, at - self.seen);
        self.seen = self.seen.max(at);
        if number <= self.number {
            return Ok(None);
        }
        let durable = self.commit(shared)?;
        self.number = number;
        Ok(Some(durable))
    }

    /// Commits the chunk as it is, and returns how much of the source it covers.
    fn commit(&mut self, shared: &Shared<'_>) -> Result<Micros> {
        // Behind its last chunk a stream has nothing, and what comes there is another's.
        let is_beyond = match self.job.end {
            Some(end) => self.number >= end,
            None => self.number > self.job.first && self.clips.is_empty() && self.gaps.is_empty(),
        };
        if is_beyond {
            return Ok(Micros::ZERO);
        }
        let start = shared.chunk_start(self.number);
        let span = Span::new(start, shared.chunk_start(self.number.saturating_add(1)));
        let record = ChunkRecord {
            index: self.number,
            span,
            clips: std::mem::take(&mut self.clips),
            gaps: std::mem::take(&mut self.gaps),
        };
        let source = &self.job.source;
        shared.library().commit_chunk(source.id, &shared.recipe, &record)?;
        let mut tally = source.tally();
        tally.clips += record.clips.len() as u64;
        tally.gaps += record.gaps.len() as u64;
        for gap in &record.gaps {
            tally.gap_length = Micros(tally.gap_length.0.saturating_add(gap.span.length().0));
        }
        let end = record.clips.last().map_or(start, |clip| clip.head.span.end);
        let end = end.max(self.seen.min(span.end));
        // The last clip's place on the grid reaches beyond the source's end.
        let length = source.length.unwrap_or(end - Timestamp::ZERO);
        Ok((end.min(Timestamp::ZERO + length) - start).max(Micros::ZERO))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::{Path, PathBuf};
    use std::process::Command;

    use serde_json::json;

    use crate::graph::conformance::{Outcome, check_source};
    use crate::library::{Recipe, RecipeKind};
    use crate::media::Frame;
    use crate::source::Fit;

    /// The executable, which `cargo test` builds beside the tests; its decoder host is what runs.
    fn executable() -> PathBuf {
        let test = std::env::current_exe().unwrap();
        let built = test.parent().and_then(Path::parent).unwrap().join("cinelex");
        assert!(built.exists(), "{} is built by cargo build --release", built.display());
        built
    }

    /// Reads a film of five seconds as chunks of 80 clips of 50 ms, and returns each stream's
    /// outcome.
    fn read(film: &Path, folder: &Path) -> Vec<Outcome<Frame>> {
        let library = Mutex::new(Writer::open(&folder.join("library")).unwrap());
        let recipe = Recipe {
            id: blake3::hash(b"a test").to_hex().as_str().parse().unwrap(),
            kind: RecipeKind::Clip,
            description: json!({}),
            space: None,
            tree: None,
        };
        lock(&library).add_recipe(&recipe).unwrap();
        let (understand, _stored) = crossbeam_channel::bounded(8);
        let shared = Shared {
            jobs: Jobs::new([Location::File(film.to_owned())]),
            segment_recipe: recipe.id.clone(),
            recipe: recipe.id,
            clip: ClipRules { length: Micros::from_millis(50), frames: 1, shot_change: 0.35 },
            rendition: Rendition { width_px: 32, height_px: 32, fit: Fit::Squash },
            tags: Vec::new(),
            sidecars: Sidecars::default(),
            verify: false,
            cancel: Cancel::default(),
            workers: 1,
            library: &library,
            progress: &|_| {},
            sounds: None,
            understand,
            reports: Mutex::new(Vec::new()),
            decoding: Mutex::new(Spent::default()),
            open: Mutex::new(Vec::new()),
            claims: Claims::default(),
        };
        let limits = Limits { executable: Some(executable()), ..Limits::default() };
        check_source(Files { host: Host::start(&limits).unwrap(), shared: &shared }, 2)
    }

    #[test]
    fn reading_files_keeps_the_graphs_rules() {
        let folder = tempfile::TempDir::new().unwrap();
        let film = folder.path().join("film.mp4");
        let made = Command::new("ffmpeg")
            .args(["-v", "error", "-nostdin", "-f", "lavfi", "-i", "testsrc2=s=64x64:r=20:d=5"])
            .args(["-g", "20", "-pix_fmt", "yuv420p"])
            .arg(&film)
            .status()
            .unwrap();
        assert!(made.success());
        let outcomes = read(&film, folder.path());
        assert!(outcomes.iter().all(|outcome| outcome.end.is_ok()), "{outcomes:?}");
        // 80 clips in the first chunk, and the last second in the other.
        assert_eq!(outcomes.iter().map(|o| o.items.len()).collect::<Vec<_>>(), [80, 20]);
    }
}
