//! Ingest: files through the graph into the record, a chunk at a time.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::files::Files;
use super::jobs::{ChunkJob, Claims, Jobs};
use super::loaded::{Halves, Lent, Loaded};
use super::opened::Opened;
use super::report::{Progress, RunReport, SourceState};
use super::shared::{NoMore, Shared, lock};
use super::sounds::Sounds;
use crate::error::{Error, Result};
use crate::graph::{Cancel, Event, Message, QueueLimits, Run, Sink, StageStats, StreamId};
use crate::library::{ChunkRecord, Reader, Writer};
use crate::media::{Gap, IndexedClip};
use crate::picture::ClipGrid;
use crate::source::{Host, Limits, Location, Sidecars, Spent};
use crate::time::{Micros, Span, Timestamp, process_processor_time};

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

/// Indexes `locations` into a library. What could not be read is in the report; an error is
/// something that no source can be indexed with.
pub fn index(
    locations: Vec<Location>,
    mut library: Writer,
    reader: Reader,
    mut loaded: Loaded,
    options: Options,
    progress: &(dyn Fn(&Progress<'_>) + Sync),
) -> Result<RunReport> {
    let started = Instant::now();
    let used_before = process_processor_time();
    loaded.add_recipes(&mut library)?;
    let library = Mutex::new(library);
    let (recipe, segment_recipe) =
        (loaded.clip_recipe.id.clone(), loaded.segment_recipe.id.clone());
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
        recipe: recipe.clone(),
        segment_recipe: segment_recipe.clone(),
        clip: loaded.pipeline.clip,
        rendition: loaded.rendition(),
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
    let mut recorder = Recorder { shared: &shared, streams: HashMap::new() };
    let understood = StageStats::new("segment");
    let described = StageStats::new("caption");
    let has_captions = !loaded.describers.is_empty();
    let listened = StageStats::new("listen");
    let store = |what: &dyn Fn(&mut Writer) -> Result<()>| what(&mut shared.library());
    let Halves { encode, quantize, mut understand } = loaded.halves(Lent {
        batch: options.batch,
        library: &library,
        store: &store,
        read: &|what| what(),
        reader,
        understood: &understood,
        described: &described,
        cancel: &options.cancel,
        stored: &|_, _, _| {},
        failed: &|_, error| Err(error),
    });

    let mut stored = Micros::ZERO;
    let (mut unheard, mut left_behind) = (Vec::new(), 0);
    let (stages, made) = std::thread::scope(|scope| {
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
            (unheard, left_behind) = shared.let_words_take_over(options.take_over)?;
            Ok(stages)
        });
        drop(over);
        let made =
            understanding.join().unwrap_or_else(|_| Err(Error::internal("understanding panicked")));
        (stages, made)
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
        left_behind,
        left_out: Vec::new(),
        made: made?,
        media_secs: stored.as_secs_f64(),
        elapsed_secs: started.elapsed().as_secs_f64(),
        stages,
        cpu_secs: processor_time.as_secs_f64(),
        decoding: *lock(&shared.decoding),
        sources: std::mem::take(&mut *lock(&shared.reports)),
    };
    let mut library = lock(&library);
    let mut waiting = library.take_over(&recipe, &segment_recipe)?;
    if options.take_over
        && !waiting.is_empty()
        && !report.interrupted
        && library.take_over_at_once(&recipe, &segment_recipe, false)?
    {
        report.left_behind += std::mem::take(&mut waiting).len();
    }
    unheard.retain(|source| !waiting.contains(source));
    waiting.extend(unheard);
    report.waiting = waiting.len();
    report.waiting_gone = waiting.iter().filter(|source| source.is_gone).count();
    let is_new = report.count(SourceState::Unchanged) < report.sources.len()
        || report.made.segments > 0
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
    use crate::picture::ClipRules;
    use crate::source::{Fit, Rendition};

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
