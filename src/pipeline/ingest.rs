//! Ingest: files through the graph into the record, a chunk at a time.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::files::Files;
use super::jobs::{ChunkJob, Claims, Jobs};
use super::loaded::Loaded;
use super::report::{Problem, Progress, RunReport, SourceReport, SourceState};
use super::stages::{Encode, Quantize};
use super::understand::Understand;
use super::witness::Witness;
use crate::error::{Error, Kind, Result};
use crate::graph::{Cancel, Event, Message, QueueLimits, Run, Sink, StageStats, StreamId};
use crate::library::{ChunkRecord, Reader, RecipeId, SourceId, State, Writer};
use crate::media::{Gap, IndexedClip};
use crate::picture::{ClipGrid, ClipRules};
use crate::source::{
    Host, Input, Limits, Location, MediaInfo, Rendition, Sidecars, Spent, Summary,
};
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
    pub cancel: Cancel,
}

/// A source that has been looked into.
#[derive(Debug)]
pub(super) struct Opened {
    pub id: SourceId,
    pub input: Input,
    pub witness: Witness,
    /// As the container states it, where that is believed.
    pub length: Option<Micros>,
    is_still: bool,
    tally: Mutex<Tally>,
}

/// What has come of a source so far.
#[derive(Debug, Default)]
struct Tally {
    /// Streams of it that have not ended.
    streams: usize,
    clips: u64,
    cues: u64,
    gaps: u64,
    gap_length: Micros,
    notices: Vec<String>,
    corrupt_packets: u64,
    damaged_frames: u64,
    misplaced_frames: u64,
    /// Where the picture ends, of a stream that was read to the end.
    end: Option<Timestamp>,
    error: Option<Problem>,
    interrupted: bool,
}

impl Opened {
    pub fn new(
        id: SourceId,
        input: Input,
        witness: Witness,
        info: &MediaInfo,
        length: Option<Micros>,
    ) -> Self {
        Opened { id, input, witness, length, is_still: info.is_still, tally: Mutex::default() }
    }

    /// With so many streams to come and cues stored.
    pub fn with_work(self, streams: usize, cues: usize, notices: Vec<String>) -> Self {
        let tally = Tally { streams, cues: cues as u64, notices, ..Tally::default() };
        Opened { tally: Mutex::new(tally), ..self }
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        // Counters: each is right whenever the lock is free.
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something odd that cost nothing. Chunks of one source often notice the same.
    pub fn notice(&self, notice: String) {
        const MOST: usize = 20;
        let mut tally = self.tally();
        if tally.notices.len() < MOST && !tally.notices.contains(&notice) {
            tally.notices.push(notice);
        }
    }

    /// Counts what a finished request went through, and learns from one that went on `to_end` where
    /// that is.
    pub fn count(&self, summary: &Summary, to_end: bool) {
        let mut tally = self.tally();
        tally.corrupt_packets = tally.corrupt_packets.saturating_add(summary.corrupt_packets);
        tally.damaged_frames = tally.damaged_frames.saturating_add(summary.damaged_frames);
        tally.misplaced_frames = tally.misplaced_frames.saturating_add(summary.misplaced_frames);
        if to_end && !self.is_still {
            tally.end = summary.end;
        }
    }

    /// How long it is, as far as is known: what the container states, unless the picture goes on
    /// behind that.
    fn known_length(&self, tally: &Tally) -> Option<Micros> {
        let read = tally.end.map(|end| end - Timestamp::ZERO).filter(|read| *read > Micros::ZERO);
        self.length.max(read)
    }
}

/// What readers and the recorder share in one run.
pub(super) struct Shared<'a> {
    pub jobs: Jobs<Location, Opened>,
    pub recipe: RecipeId,
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

    pub fn opened(&self, source: &Arc<Opened>, chunks_done: usize) {
        lock(&self.open).push(Arc::clone(source));
        let stored = Micros(self.chunk_length().0.saturating_mul(chunks_done as i64));
        (self.progress)(&Progress::Opened {
            source: source.input.name(),
            length: source.length,
            stored,
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
            (self.progress)(&Progress::Advanced { source: source.input.name(), by });
        }
    }

    /// Settles the end of a stream; with the last one, the source is finished.
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
        if left == 0 { self.finish(source) } else { Ok(()) }
    }

    /// Finishes the sources that the run has left, since it was stopped.
    fn finish_all(&self) -> Result<()> {
        let open = lock(&self.open).clone();
        for source in open {
            source.tally().interrupted = true;
            self.finish(&source)?;
        }
        Ok(())
    }

    /// Writes down how a source ended, and hands it on to be understood.
    pub fn finish(&self, source: &Arc<Opened>) -> Result<()> {
        let tally = source.tally();
        let state = match (&tally.error, tally.interrupted) {
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
        let length = source.known_length(&tally);
        let was_read_to_end = tally.end.is_some();
        let report = SourceReport {
            source: source.input.name().to_owned(),
            id: Some(source.id.to_string()),
            state,
            length_secs: length.map(Micros::as_secs_f64),
            clips: tally.clips,
            cues: tally.cues,
            gaps: tally.gaps,
            gap_secs: tally.gap_length.as_secs_f64(),
            verified: false,
            notices,
            error: tally.error.clone(),
        };
        drop(tally);
        let error = report.error.as_ref().map(|error| error.reason.as_str());
        let stored = match state {
            SourceState::Failed => Some(State::Failed),
            SourceState::Interrupted => None,
            SourceState::Indexed | SourceState::Unchanged => Some(State::Complete),
        };
        if let Some(stored) = stored {
            let mut library = self.library();
            if let Some(length) = length.filter(|_| was_read_to_end) {
                library.set_duration(source.id, length)?;
            }
            library.finish_source(source.id, &self.recipe, stored, error)?;
            if stored == State::Complete {
                library.settle_growth(source.id)?;
            }
        }
        // Not before the record says how it ended: a copy of it would be read too.
        lock(&self.open).retain(|open| !Arc::ptr_eq(open, source));
        self.report(report);
        self.hand_on(source.id);
        Ok(())
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
    let shared = Shared {
        jobs: Jobs::new(locations),
        recipe: clip_recipe.id.clone(),
        clip: pipeline.clip,
        rendition: Rendition { width_px, height_px, fit: pipeline.fit },
        tags: options.tags,
        sidecars: Sidecars::default(),
        verify: options.verify,
        cancel: options.cancel.clone(),
        workers: u16::try_from(options.workers.get()).unwrap_or(u16::MAX),
        library: &library,
        progress,
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
    let (stages, segments) = std::thread::scope(|scope| {
        let understand = &mut understand;
        // The receiver goes with the thread, so that nobody waits for one that has failed.
        let understanding = scope.spawn(move || understand.all(&receiver));
        // Told even if a stage panics, since the scope waits for the thread.
        let over = NoMore(&shared.understand);
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
        let stages = stages.and_then(|stages| shared.finish_all().map(|()| stages));
        drop(over);
        let segments =
            understanding.join().unwrap_or_else(|_| Err(Error::internal("understanding panicked")));
        (stages, segments)
    });
    let mut stages = stages?;
    stages.push(understood.report());
    stages.extend(has_captions.then(|| described.report()));
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

/// Tells the other half that no more comes: it reads on what is in the record, and then ends.
struct NoMore<'a>(&'a crossbeam_channel::Sender<Option<SourceId>>);

impl Drop for NoMore<'_> {
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
