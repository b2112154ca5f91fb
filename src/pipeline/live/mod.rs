//! Live streams through the graph into the record, clip by clip, until the user stops it.
//!
//! A live source has one clock for all its connections, the wall clock: media time is microseconds
//! since 1970 in UTC, so that a place on the clip grid is the same instant in all sources and libraries,
//! and what was not seen between two connections is a gap like any other.

mod dropping;
#[cfg(feature = "speech")]
mod hearing;
#[cfg(feature = "speech")]
mod inbox;
mod known_time;
mod parts;
mod patience;
mod pauses;
mod recorder;
mod recording;
mod sound;
mod status;
mod streams;
mod upkeep;
mod watcher;

pub use status::{
    ClipSpan, Frames, HeardCue, LiveEvent, LiveReport, Sound, StoredClip, StreamState, StreamStatus,
};
pub use streams::read_streams;

use std::collections::{HashMap, HashSet, VecDeque};
#[cfg(feature = "speech")]
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;

use self::dropping::Dropping;
#[cfg(feature = "speech")]
use self::inbox::Inbox;
use self::patience::{HeldUp, Waiting};
use self::recorder::Recorder;
use self::sound::{Listened, Sounding};
use self::upkeep::Upkeep;
use self::watcher::Watcher;
#[cfg(feature = "speech")]
use super::ears::Hearing;
#[cfg(feature = "speech")]
use super::listening::How;
use super::loaded::{Halves, Lent, Loaded};
use super::shared::{NoMore, lock};
use super::understand::Part;
use crate::error::{Error, Result};
use crate::graph::{Cancel, QueueLimits, Run, StageStats, StreamId};
use crate::library::{
    self, Keep, NewSource, Origin, Place, Reader, RecipeId, Recordings, SourceId, WallClock,
    WallOrigin, Writer,
};
use crate::picture::{ClipGrid, ClipRules};
use crate::source::{Host, Input, Limits, Location, Rendition, Transport};
use crate::time::{Micros, Timestamp, wall_us};

/// What may wait between two stages: a few clips, since what waits is late.
const QUEUE: QueueLimits = QueueLimits { items: 16, bytes: 64 << 20 };

/// A stream to be watched.
#[derive(Debug)]
pub struct LiveSource {
    /// What identifies it; `None`: its address without credentials.
    pub name: Option<String>,
    pub location: Location,
    pub transport: Transport,
    /// Certificates (PEM) that the server's may be, or be signed by.
    pub ca: Option<String>,
    /// Keeps the compressed stream itself, too.
    pub record: bool,
    /// Listens to what is said in it.
    pub listen: bool,
}

/// How streams are watched; nothing here changes results.
#[derive(Debug)]
pub struct LiveOptions {
    /// Frames that the CNN takes at a time, at most.
    pub batch: u16,
    /// Set on every source of this run.
    pub tags: Vec<(String, String)>,
    /// A stream without a frame for so long is lost.
    pub silence: Duration,
    /// Pauses before a lost stream is tried again grow to this.
    pub longest_pause: Duration,
    /// How much of live sources is kept; `None`: all.
    pub keep: Option<Keep>,
    /// Lets hardware decode, where there is some.
    pub hardware: bool,
    /// Lets this pipeline take over from another one whatever that one alone has read.
    pub take_over: bool,
    /// What listens to the streams that are to be listened to.
    #[cfg(feature = "speech")]
    pub hearing: Option<Hearing>,
    /// Windows of speech that are read side by side.
    #[cfg(feature = "speech")]
    pub listeners: NonZeroUsize,
    pub cancel: Cancel,
}

/// A stream that is being watched.
#[derive(Debug)]
struct Camera {
    id: SourceId,
    input: Input,
    transport: Transport,
    ca: Option<String>,
    /// Where the compressed stream goes, if it is kept.
    recordings: Option<Recordings>,
    /// Where its sound goes, if it is listened to.
    listened: Option<Listened>,
    /// Up to where earlier runs have stored clips.
    seen_until: Option<Timestamp>,
    /// Up to where they have stored anything.
    stored_until: Option<Timestamp>,
    /// The connections of this run that brought something, or told of nothing; the newest of them.
    begun: Mutex<VecDeque<Session>>,
    status: Mutex<StreamStatus>,
}

/// A connection that is or was under way.
#[derive(Debug, Clone, Copy)]
struct Session {
    camera: usize,
    /// Where its grid begins.
    start: Timestamp,
    /// Media time zero on the monotonic clock.
    zero_us: i64,
}

/// Connections that are remembered, for what is made of them later.
const MOST_BEGUN: usize = 16;

/// How often it is told how streams are, whatever happens to them.
const TELL: Duration = Duration::from_secs(1);

/// Parts that may wait to be understood; those beyond wait in the recorder.
const MOST_PARTS: usize = 64;

/// What watchers and the recorder share in one run.
struct Shared<'a> {
    cameras: Vec<Camera>,
    library: Mutex<Writer>,
    recipe: RecipeId,
    clip: ClipRules,
    rendition: Rendition,
    silence: Duration,
    longest_pause: Duration,
    hardware: bool,
    cancel: Cancel,
    /// When something could first not be stored after the run was to end.
    stopped_us: OnceLock<i64>,
    sessions: Mutex<HashMap<StreamId, Session>>,
    next_stream: AtomicU64,
    /// Connections of which not everything was heard yet, by number.
    sounding: Mutex<HashMap<usize, Sounding>>,
    next_sounding: AtomicUsize,
    /// When nothing could be stored of late.
    held_up: Mutex<VecDeque<HeldUp>>,
    /// Who cannot store anything now.
    waiting: Mutex<Waiting>,
    /// When something was stored last, on the monotonic clock.
    stored_us: AtomicI64,
    /// Parts that were handed to the thread that makes segments, and have none yet.
    in_hand: Mutex<Vec<Part>>,
    /// To that thread: parts of sources that are over. `None`: there are no more.
    understand: crossbeam_channel::Sender<Option<Part>>,
    events: &'a (dyn Fn(&LiveEvent<'_>) + Sync),
}

impl std::fmt::Debug for Shared<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("cameras", &self.cameras).finish_non_exhaustive()
    }
}

impl Shared<'_> {
    fn begin(&self, session: Session) -> StreamId {
        let stream = StreamId(self.next_stream.fetch_add(1, Ordering::Relaxed));
        let mut begun = lock(&self.cameras[session.camera].begun);
        if begun.len() == MOST_BEGUN {
            begun.pop_front();
        }
        begun.push_back(session);
        lock(&self.sessions).insert(stream, session);
        stream
    }

    fn session(&self, stream: StreamId) -> Option<Session> {
        lock(&self.sessions).get(&stream).copied()
    }

    /// The sound of a connection is on its way, nothing of which is before `from`. Returns its number.
    fn begin_sound(&self, session: Session, from: Timestamp) -> usize {
        let number = self.next_sounding.fetch_add(1, Ordering::Relaxed);
        let Session { camera, zero_us, .. } = session;
        lock(&self.sounding).insert(number, Sounding { camera, zero_us, reached: from });
        number
    }

    /// Whether everything that will be heard of a source up to an instant is stored.
    fn is_heard(&self, source: SourceId, until: Timestamp) -> bool {
        let sounding = lock(&self.sounding);
        let mut of = sounding.values().filter(|of| self.cameras[of.camera].id == source);
        of.all(|of| of.reached >= until)
    }

    /// Changes what is known of a stream's sound.
    #[cfg(feature = "speech")]
    fn count_sound(&self, camera: usize, change: impl FnOnce(&mut Sound)) {
        if let Some(sound) = &mut lock(&self.cameras[camera].status).sound {
            change(sound);
            sound.settle();
        }
    }

    /// Changes what is known of a stream, and tells it.
    fn update(&self, camera: usize, change: impl FnOnce(&mut StreamStatus)) {
        let mut status = lock(&self.cameras[camera].status);
        change(&mut status);
        (self.events)(&LiveEvent::Stream(&status));
    }

    /// Tells how all streams are, now and then, until `over` says that the run is: nothing may happen to one for long.
    fn tell(&self, over: &Receiver<()>) {
        while over.recv_timeout(TELL) == Err(RecvTimeoutError::Timeout) {
            self.update_all(|_| {});
        }
    }

    fn update_all(&self, change: impl Fn(&mut StreamStatus)) {
        (0..self.cameras.len()).for_each(|camera| self.update(camera, &change));
    }

    fn set_state(&self, camera: usize, state: StreamState, change: impl FnOnce(&mut StreamStatus)) {
        self.update(camera, |status| {
            (status.state, status.since_us) = (state, wall_us());
            status.retry_secs = None;
            status.lost_since_us = match state {
                StreamState::Live => None,
                StreamState::Waiting => status.lost_since_us.or(Some(status.since_us)),
                StreamState::Connecting | StreamState::Ended => status.lost_since_us,
            };
            change(status);
        });
    }
}

/// Microseconds on the clock that never steps, which the decoder hosts have too.
fn monotonic_us() -> i64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.saturating_mul(1_000_000).saturating_add(now.tv_nsec / 1_000)
}

/// Where media time zero is on the monotonic clock, by what the two clocks say now. Media time never
/// goes back behind `reached`: where the wall clock was set back, it goes on from there.
fn zero_us(wall_us: i64, monotonic_us: i64, reached: Timestamp) -> i64 {
    monotonic_us.saturating_sub(wall_us.max(reached.0))
}

/// How far the wall clock may come to be ahead of media time: both go at the same pace, so it was set forward
/// then, or the machine was asleep.
const MOST_AHEAD: Micros = Micros::from_millis(2_000);

/// Whether a connection that has this zero tells another time than the wall clock does now. One that is ahead of a
/// clock that was set back goes on as it is.
fn is_behind_the_clock(wall_us: i64, monotonic_us: i64, zero_us: i64) -> bool {
    wall_us.saturating_sub(monotonic_us.saturating_sub(zero_us)) > MOST_AHEAD.0
}

/// Watches `sources` until the user stops it. What goes wrong with a stream is told of that stream; an
/// error is something that none can be watched with.
pub fn watch(
    sources: Vec<LiveSource>,
    mut library: Writer,
    reader: Reader,
    mut loaded: Loaded,
    options: LiveOptions,
    events: &(dyn Fn(&LiveEvent<'_>) + Sync),
) -> Result<LiveReport> {
    let started = Instant::now();
    let sources: Vec<Asked> = sources.into_iter().map(Asked::new).collect::<Result<_>>()?;
    refuse_alike(&sources)?;
    let mut dropping = Dropping::new(options.keep, &library)?;
    be_current(&mut library, &loaded, options.take_over)?;
    #[cfg(feature = "speech")]
    let (speech, ears) = match &options.hearing {
        Some(hearing) => {
            let count = sources.iter().filter(|asked| asked.source.listen).count();
            // What another model has heard is not given up for one that cannot be loaded.
            let ears = hearing.load_live(count)?;
            hearing::be_current(&mut library, hearing, options.take_over)?;
            (Some(hearing.recipe.id.clone()), Some(ears))
        }
        None => (None, None),
    };
    #[cfg(not(feature = "speech"))]
    let speech: Option<RecipeId> = None;
    // Where the disk is full, there is no room for what follows before the oldest went. What fails here is tried
    // again while the streams are watched, and told then.
    let _ = dropping.make_room(&mut library);
    let recipe = loaded.clip_recipe.id.clone();
    let mut cameras: Vec<Camera> = Vec::with_capacity(sources.len());
    let mut connections = Vec::new();
    for asked in &sources {
        let mut camera =
            camera(asked, &mut library, &recipe, &loaded.pipeline.clip, &options.tags)?;
        if let Some(speech) = speech.as_ref().filter(|_| asked.source.listen) {
            #[cfg(feature = "speech")]
            hearing::store_untold(&mut library, camera.id, speech, &loaded.pipeline.clip)?;
            let until = Mutex::new(library.heard_until(camera.id, speech)?);
            // No connection begins before the sound of the one before has ended.
            let (sender, receiver) = crossbeam_channel::bounded(2);
            camera.listened = Some(Listened { connections: sender, until });
            lock(&camera.status).sound = Some(Sound::default());
            connections.push((cameras.len(), receiver));
        }
        cameras.push(camera);
    }
    let (understand, parts) = crossbeam_channel::bounded(MOST_PARTS);
    let shared = Shared {
        cameras,
        library: Mutex::new(library),
        recipe,
        clip: loaded.pipeline.clip,
        rendition: loaded.rendition(),
        silence: options.silence,
        longest_pause: options.longest_pause,
        hardware: options.hardware,
        cancel: options.cancel.clone(),
        stopped_us: OnceLock::new(),
        sessions: Mutex::default(),
        next_stream: AtomicU64::new(0),
        sounding: Mutex::default(),
        next_sounding: AtomicUsize::new(0),
        held_up: Mutex::default(),
        waiting: Mutex::default(),
        stored_us: AtomicI64::new(0),
        in_hand: Mutex::default(),
        understand,
        events,
    };
    let mut watchers = Vec::with_capacity(shared.cameras.len());
    for camera in 0..shared.cameras.len() {
        let host = Host::start_until(&Limits::default(), options.cancel.flag())?;
        watchers.push(Watcher::new(&shared, camera, host));
    }
    let mut recorder = Recorder::new(&shared);
    let grid = |stream| {
        let start = shared.session(stream).map_or(Timestamp::ZERO, |session| session.start);
        ClipGrid::new(shared.clip, start)
    };
    let (understood, described) = (StageStats::new("segment"), StageStats::new("caption"));
    let has_captions = !loaded.describers.is_empty();
    // What is in hand is finished, whatever the user wishes.
    let never = Cancel::default();
    let store = |what: &dyn Fn(&mut Writer) -> Result<()>| shared.store(what);
    let read = |what: &mut dyn FnMut() -> Result<()>| shared.read(what);
    let stored = |part, until, made| shared.count_segments(part, until, made);
    let failed = |part, error| shared.leave_out(part, error);
    let Halves { encode, quantize, mut understand } = loaded.halves(Lent {
        batch: options.batch,
        library: &shared.library,
        store: &store,
        read: &read,
        reader,
        understood: &understood,
        described: &described,
        cancel: &never,
        stored: &stored,
        failed: &failed,
    });
    #[cfg(feature = "speech")]
    let heard = StageStats::new("listen");
    #[cfg(feature = "speech")]
    let inboxes: Vec<(usize, Inbox)> =
        connections.iter().map(|(camera, _)| (*camera, Inbox::default())).collect();
    let mut upkeep = Upkeep::new(&shared, dropping)?;
    let (stages, made) = std::thread::scope(|scope| {
        // Gone when this is left, however it is.
        let (_goes_on, over) = crossbeam_channel::bounded::<()>(0);
        let (all, also_over) = (&shared, over.clone());
        scope.spawn(move || upkeep.run(&over));
        // Upkeep waits where the library is held.
        scope.spawn(move || all.tell(&also_over));
        let understanding =
            scope.spawn(move || all.understood(parts, |parts| understand.parts(parts)));
        // Told even if a stage panics, since the scope waits for the thread.
        let over = NoMore(&shared.understand);
        let listened = shared.cameras.iter().filter_map(|camera| camera.listened.as_ref());
        let unheard: Vec<_> = listened.map(|listened| NoMore(&listened.connections)).collect();
        #[cfg(feature = "speech")]
        let hearing = ears.zip(speech.as_ref()).map(|(ears, recipe)| {
            for ((camera, connections), (_, inbox)) in connections.iter().zip(&inboxes) {
                scope.spawn(|| inbox::receive(&shared, *camera, connections, inbox));
            }
            let (threads, cancel) = (options.listeners.get(), &options.cancel);
            let how = How { threads, cancel, stats: &heard };
            let (shared, inboxes) = (&shared, &inboxes);
            scope.spawn(move || hearing::hear(shared, recipe, ears, inboxes, &how))
        });
        let stages = Run::execute(QUEUE, &never, |run| {
            let frames = run.sources(watchers)?;
            let clips = run.fold(frames, grid)?;
            let encoded = run.map(clips, encode)?;
            let indexed = run.map(encoded, quantize)?;
            run.sink(indexed, &mut recorder, |()| {})
        });
        drop(unheard);
        #[cfg(feature = "speech")]
        let stages = match hearing.map(std::thread::ScopedJoinHandle::join) {
            Some(Ok(heard)) => heard.and(stages),
            Some(Err(_)) => stages.and(Err(Error::internal("listening panicked"))),
            None => stages,
        };
        recorder.finish();
        drop(over);
        let made = understanding.join().unwrap_or_else(|_| Err(Error::internal(parts::PANICKED)));
        (stages, made)
    });
    let mut stages = stages?;
    stages.push(understood.report());
    stages.extend(has_captions.then(|| described.report()));
    #[cfg(feature = "speech")]
    stages.extend(speech.map(|_| heard.report()));
    let mut library = lock(&shared.library);
    let report = LiveReport {
        streams: shared.cameras.iter().map(|camera| lock(&camera.status).clone()).collect(),
        made: made?,
        elapsed_secs: started.elapsed().as_secs_f64(),
        stages,
    };
    let json = serde_json::to_value(&report)
        .map_err(|cause| Error::internal("cannot write JSON").caused_by(cause))?;
    library.record_run(&json)?;
    Ok(report)
}

/// Lets the pipeline be the one whose clips are searched before it makes any. Another one would build beside
/// it and take over when it is complete, which a live source never is.
fn be_current(library: &mut Writer, loaded: &Loaded, take_over: bool) -> Result<()> {
    let (clips, segments) = (&loaded.clip_recipe.id, &loaded.segment_recipe.id);
    let waiting = library.would_wait(clips, segments)?;
    if let Some(first) = waiting.first()
        && !take_over
    {
        let others = and_others(waiting.len() - 1);
        return Err(Error::invalid_input(format!(
            "another pipeline has read {}{others} in this library, and search would find nothing of what \
             this one makes of live streams: name that pipeline, or another library; or let `cinelex \
             index --library` read all with this pipeline first; or let --take-over give up what the \
             other one has made",
            first.name
        )));
    }
    loaded.add_recipes(library)?;
    library.take_over_at_once(clips, segments, true)?;
    Ok(())
}

fn and_others(count: usize) -> String {
    if count == 0 { String::new() } else { format!(" and {count} more") }
}

/// A stream with what the library is to know it by.
struct Asked {
    source: LiveSource,
    input: Input,
    new: NewSource,
}

impl Asked {
    fn new(source: LiveSource) -> Result<Self> {
        let input = Input::open_live(&source.location)?;
        let place = match &source.location {
            Location::Url(url) => Place::url(url),
            Location::File(path) => {
                let path =
                    std::path::absolute(path).map_err(|cause| Error::io(path, "find", cause))?;
                // The file itself may be a source of this library, too.
                Place::Url(format!("live:{}", path.display()))
            }
        };
        let identity = source.name.clone().unwrap_or_else(|| place.to_string());
        let new = NewSource {
            fingerprint: format!("live:{}", blake3::hash(identity.as_bytes()).to_hex()),
            name: source.name.clone().unwrap_or_else(|| input.name().to_owned()),
            origin: Origin::Live,
            duration: None,
            media: json!({}),
            wall: Some(WallClock { start_us: 0, origin: WallOrigin::Arrival }),
            location: library::Location {
                place,
                size_bytes: None,
                modified_us: None,
                device: None,
                inode: None,
            },
        };
        Ok(Asked { source, input, new })
    }
}

fn refuse_alike(sources: &[Asked]) -> Result<()> {
    let mut known = HashSet::new();
    match sources.iter().find(|asked| !known.insert(&asked.new.fingerprint)) {
        None => Ok(()),
        Some(twice) => {
            let what = "this stream is named twice: give each a name of its own";
            Err(Error::invalid_input(what).in_source(twice.input.name()))
        }
    }
}

/// Finds the source in the library, or adds it.
fn camera(
    asked: &Asked,
    library: &mut Writer,
    recipe: &RecipeId,
    clip: &ClipRules,
    tags: &[(String, String)],
) -> Result<Camera> {
    let Asked { source, input, new } = asked;
    let id = library.add_source(new)?.id;
    library.set_tags(id, tags)?;
    recorder::store_untold(library, id, recipe, clip)?;
    let status = StreamStatus::new(new.name.clone(), id, wall_us());
    Ok(Camera {
        id,
        input: input.clone(),
        transport: source.transport,
        ca: source.ca.clone(),
        recordings: source.record.then(|| library.recordings(id)).transpose()?,
        listened: None,
        seen_until: library.seen_until(id, recipe)?,
        stored_until: library.stored_until(id, recipe)?,
        begun: Mutex::default(),
        status: Mutex::new(status),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn media_time_follows_the_wall_clock_and_never_goes_back() {
        let now = |wall: i64| 77 - zero_us(wall, 77, Timestamp(500));
        assert_eq!(now(700), 700);
        // Set forward by an hour, and back behind what was reached.
        assert_eq!(now(700 + 3_600_000_000), 700 + 3_600_000_000);
        assert_eq!(now(-900_000), 500);
    }

    proptest! {
        /// However the wall clock is set from one connection to the next, and however long each lasts,
        /// media time goes on, and is the wall clock's where that is ahead.
        #[test]
        fn media_time_goes_on_whatever_the_wall_clock_is_set_to(
            connections in prop::collection::vec((-1_000_000_000_000i64..1_000_000_000_000, 1i64..100_000_000), 1..20),
        ) {
            let (mut monotonic, mut reached) = (5_000_000, Timestamp::ZERO);
            for (wall, length) in connections {
                let zero = zero_us(wall, monotonic, reached);
                let begins = monotonic - zero;
                prop_assert!(begins == wall.max(reached.0));
                monotonic += length;
                reached = Timestamp(monotonic - zero);
                prop_assert!(reached.0 == begins + length);
            }
        }

        /// The next connection begins at the wall clock's time where the clock was set forward, and a clock that goes
        /// on, or is set back, breaks none.
        #[test]
        fn a_connection_ends_where_the_clock_is_set_forward(
            wall in -1_000_000_000_000i64..1_000_000_000_000,
            reached in -1_000_000_000_000i64..1_000_000_000_000,
            length in 1i64..1_000_000_000_000,
            step in -1_000_000_000_000i64..1_000_000_000_000,
        ) {
            let zero = zero_us(wall, 5_000_000, Timestamp(reached));
            let (now, later) = (wall + length + step, 5_000_000 + length);
            let media = later - zero;
            let is_behind = is_behind_the_clock(now, later, zero);
            prop_assert_eq!(is_behind, now - media > MOST_AHEAD.0);
            prop_assert!(!is_behind || step > MOST_AHEAD.0);
            let next = zero_us(now, later, Timestamp(media));
            prop_assert!(!is_behind_the_clock(now, later, next));
            prop_assert!(!is_behind || later - next == now);
        }
    }
}
