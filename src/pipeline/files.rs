//! The graph's source for files and finite URLs: looks into them, plans their chunks, and reads
//! those through a decoder host of its own.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use super::identity::{Identity, Verified, identify};
use super::jobs::{ChunkJob, Chunks, Job, Jobs};
use super::opened::Opened;
use super::shared::{CHUNK_CLIPS, Shared};
use super::sounds::{ToHear, other_tracks};
use super::texts::{SIDECAR, Texts};
use super::witness::Witness;
use crate::error::{Error, Kind, Result};
use crate::graph::{Event, Outlet, Source, Streams};
use crate::library::{self, NewSource, Origin, Place, SourceId, State, WallClock, WallOrigin};
use crate::media::{Frame, TrackKind};
use crate::source::{
    Host, Input, Location, MediaInfo, PictureEvent, PictureRequest, Summary, Targets,
};
use crate::time::{Micros, Timestamp};

/// One reader, with its own decoder host. Several share the jobs.
#[derive(Debug)]
pub(super) struct Files<'a> {
    pub host: Host,
    pub shared: &'a Shared<'a>,
}

impl Source for Files<'_> {
    type Out = Frame;
    const NAME: &'static str = "decode";

    fn read(&mut self, out: &mut Outlet<'_, Frame>) -> Result<Streams> {
        let streams = self.read_next(out);
        self.shared.count_decoding(self.host.take_spent());
        streams
    }
}

impl Files<'_> {
    fn read_next(&mut self, out: &mut Outlet<'_, Frame>) -> Result<Streams> {
        match self.shared.jobs.take() {
            None => return Ok(Streams::Over),
            Some(Job::Open(location)) => {
                let opening = Opening(&self.shared.jobs);
                let opened = self.open(&location)?;
                opening.over(opened.clone());
                if let Some((source, chunks)) = opened
                    && chunks.is_empty()
                {
                    self.shared.picture_ended(&source)?;
                }
            }
            Some(Job::Read(job)) => {
                out.begin(job.stream);
                self.read_chunks(&job, out);
            }
        }
        Ok(Streams::MayFollow)
    }
}

/// A source that is being looked into. Whatever comes of that, the other readers must not wait for
/// it any longer.
struct Opening<'a>(&'a Jobs<Location, Opened>);

impl Opening<'_> {
    fn over(self, chunks: Option<(Arc<Opened>, Chunks)>) {
        self.0.opened(chunks);
        std::mem::forget(self);
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        self.0.opened(None);
    }
}

impl Files<'_> {
    /// Looks into a source and registers it. `None` where nothing is left to do for it: it failed, or
    /// the library has all of it; both are reported. An error is the library's.
    fn open(&mut self, location: &Location) -> Result<Option<(Arc<Opened>, Chunks)>> {
        let shared = self.shared;
        let looked = Input::open(location).and_then(|input| {
            let place = place(location, &input)?;
            Ok((input, place))
        });
        let (input, place) = match looked {
            Ok(looked) => looked,
            Err(error)
                if error.kind() == Kind::NotFound
                    && !shared.verify
                    && self.has_all_of(location)? =>
            {
                return Ok(None);
            }
            Err(error) => {
                shared.fail_unopened(location, &error);
                return Ok(None);
            }
        };
        let seen = shared.library().source_at(&place.place)?;
        if let Some((id, seen)) = &seen
            && !shared.verify
            && *seen == place
            && place.size_bytes.is_some()
            && self.is_complete(*id)?
            && !self.is_unheard(*id)?
        {
            self.unchanged(*id, location, false, Vec::new())?;
            return Ok(None);
        }
        let was = seen.as_ref().map(|(id, _)| *id);
        let shorter = seen.filter(|(_, seen)| is_longer(&place, seen)).map(|(id, _)| id);
        let probed = Witness::of(&input).and_then(|witness| {
            let info = self.host.probe(&input)?;
            Ok((witness, identify(&input, shared)?, info))
        });
        let (witness, Identity { fingerprint, verified }, info) = match probed {
            Ok(probed) => probed,
            Err(error) => {
                shared.fail_unopened(location, &error);
                return Ok(None);
            }
        };
        let new = NewSource {
            fingerprint,
            name: input.name().rsplit('/').next().unwrap_or_default().to_owned(),
            origin: if input.file().is_some() { Origin::File } else { Origin::Url },
            duration: info.duration,
            media: serde_json::to_value(&info)
                .map_err(|cause| Error::internal("cannot write JSON").caused_by(cause))?,
            wall: wall_clock(&info),
            location: place,
        };
        let added = match shorter {
            Some(shorter) => shared.library().add_grown(&new, shorter)?,
            None => shared.library().add_source(&new)?,
        };
        let id = added.id;
        // A copy of it may be in another reader's hands; that one is known to be read from here on.
        let _claim = shared.claims.claim(id);
        let mut noticed = Vec::new();
        if let Some(was) = was.filter(|was| *was != id && verified == Verified::Differs) {
            noticed.push(format!(
                "bytes inside it are not those that were indexed as {was}: it is another source now"
            ));
        }
        if shared.verify && input.file().is_none() {
            noticed.push("an address is known by itself: its bytes were not verified".to_owned());
        }
        if let Some(twin) = shared.being_read(id) {
            let notice = format!("the same bytes as {}, which is being indexed", twin.input.name());
            noticed.push(notice);
            // There may be subtitles beside this copy.
            self.unchanged(id, location, verified == Verified::Same, noticed)?;
            return Ok(None);
        }
        // Asked in this order: a source is complete before it is read no longer.
        let is_seen = self.is_complete(id)?;
        if is_seen && !self.is_unheard(id)? {
            self.unchanged(id, location, verified == Verified::Same, noticed)?;
            return Ok(None);
        }
        let texts =
            self.all_cues(id, &input, &info).and_then(|texts| witness.check(&input).map(|_| texts));
        let Texts { cues, mut notices } = match texts {
            Ok(texts) => texts,
            Err(error) if matches!(error.kind(), Kind::Cancelled | Kind::Unavailable) => {
                shared.fail_unopened(location, &error);
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        notices.splice(0..0, noticed);
        let done: BTreeSet<u32> = {
            let mut library = shared.library();
            library.set_tags(id, &shared.tags)?;
            library.replace_cues(id, "", &cues)?;
            library.done_chunks(id, &shared.recipe)?.into_iter().collect()
        };
        let length = plausible_length(&info, &input);
        let chunks = match info.picture {
            Some(_) if is_seen => Vec::new(),
            Some(_) => self.plan(&info, length, &done),
            None => {
                notices.push("no picture track".to_owned());
                Vec::new()
            }
        };
        let has_sound = info.of_kind(TrackKind::Sound).next().is_some();
        if shared.sounds.is_some() && has_sound && info.sound.is_none() {
            notices
                .push("its sound cannot be listened to: no track of it can be decoded".to_owned());
        }
        let heard_to = match &shared.sounds {
            Some(sounds) if self.is_unheard(id)? => {
                Some(shared.library().heard_to(id, &sounds.recipe)?)
            }
            _ => None,
        };
        if let (Some(_), Some(track)) = (heard_to, info.sound) {
            notices.extend(other_tracks(&info, track));
        }
        let opened = Opened::new(id, input, witness, &info, length);
        let opened = opened.with_work(chunks.len(), heard_to.is_some(), cues.len(), notices);
        let opened = Arc::new(opened);
        shared.opened(&opened, done.len(), heard_to.map(|to| to.at));
        if let (Some(sounds), Some(to), Some(track)) = (&shared.sounds, heard_to, info.sound) {
            let to_hear = ToHear { source: Arc::clone(&opened), track, to };
            // Nobody listens any more only where that has failed, and its error ends the run.
            let _ = sounds.queue.send(Some(to_hear));
        }
        Ok(Some((opened, chunks)))
    }

    /// Whether a source is still to be listened to.
    fn is_unheard(&self, id: SourceId) -> Result<bool> {
        match &self.shared.sounds {
            Some(sounds) => sounds.are_missing(&self.shared.library(), id),
            None => Ok(false),
        }
    }

    fn is_complete(&self, id: SourceId) -> Result<bool> {
        Ok(self.shared.library().progress(id, &self.shared.recipe)? == State::Complete)
    }

    /// A file that isn't there, and that the library needs no more, is reported as unchanged: its
    /// disk may be on a shelf.
    fn has_all_of(&self, location: &Location) -> Result<bool> {
        let Location::File(path) = location else { return Ok(false) };
        let known = match std::path::absolute(path) {
            Ok(path) => self.shared.library().source_at(&Place::Path(path))?,
            Err(_) => None,
        };
        let Some((id, _)) = known else { return Ok(false) };
        let has_all = self.is_complete(id)?;
        if has_all {
            let notice = "not there now, and nothing of it was needed".to_owned();
            self.shared.unchanged(id, location, None, false, vec![notice]);
        }
        Ok(has_all)
    }

    /// The picture and the text inside are as they were; files beside it may have changed.
    fn unchanged(
        &mut self,
        id: SourceId,
        location: &Location,
        verified: bool,
        mut notices: Vec<String>,
    ) -> Result<()> {
        let cues = match self.sidecar_cues(id) {
            Ok(texts) => {
                notices.extend(texts.notices);
                texts.cues
            }
            Err(error) if error.kind() == Kind::Cancelled => {
                self.shared.fail_unopened(location, &error);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let changed = {
            let mut library = self.shared.library();
            library.set_tags(id, &self.shared.tags)?;
            library.replace_cues(id, SIDECAR, &cues)?
        };
        self.shared.unchanged(id, location, changed.then_some(cues.len()), verified, notices);
        Ok(())
    }

    /// The chunks of a source that are not `done`, each a stream of its own. Where there is no
    /// random access, or no length, one stream reads from the first that is missing to the end.
    fn plan(&self, info: &MediaInfo, length: Option<Micros>, done: &BTreeSet<u32>) -> Chunks {
        let chunk = self.shared.chunk_length();
        let missing = |number: &u32| !done.contains(number);
        match length {
            Some(length) if info.has_random_access && !info.is_still => {
                let last = u32::try_from((length.0 - 1) / chunk.0).unwrap_or(u32::MAX);
                let closed = (0..last).filter(missing).map(|number| (number, Some(number + 1)));
                // The length may be understated, so the last stream has no end; and as it may have
                // been cut off behind the stated length, it goes on from its first missing chunk.
                let open = (last..u32::MAX).find(missing).map(|first| (first, None));
                closed.chain(open).collect()
            }
            _ => (0..u32::MAX).find(missing).map(|first| (first, None)).into_iter().collect(),
        }
    }

    /// Reads the frames of a chunk into `out`. Returns early when no more is wanted.
    fn read_chunks(&mut self, job: &ChunkJob<Opened>, out: &mut Outlet<'_, Frame>) {
        let request = PictureRequest {
            track: None,
            rendition: self.shared.rendition,
            targets: self.targets(job),
            // The last one has the other readers' processors, which have nothing left to do.
            threads: if self.shared.jobs.is_empty() {
                self.shared.workers.min(MOST_THREADS)
            } else {
                1
            },
        };
        let end = match self.frames(job, &request, out) {
            Ok(Some(end)) => Ok(end),
            // The host is left in the middle of its answer, and restarts.
            Ok(None) => return,
            Err(error) => Err(error),
        };
        let end = end.map(|summary| job.source.count(&summary, job.end.is_none()));
        // An outlet that wants no more needs no end.
        let _ = out.send(Event::End(end));
    }

    fn frames(
        &mut self,
        job: &ChunkJob<Opened>,
        request: &PictureRequest,
        out: &mut Outlet<'_, Frame>,
    ) -> Result<Option<Summary>> {
        let source = &job.source;
        let chunk_length = self.shared.chunk_length().0;
        // Chunks before this one are what the source's bytes give.
        let mut sure = i64::from(job.first);
        for event in self.host.picture(&source.input, request)? {
            let event = event?;
            let at = match &event {
                PictureEvent::Frame(frame) => Some(frame.target),
                PictureEvent::Watermark(at) => Some(*at),
                PictureEvent::End(_) => Some(Timestamp::MAX),
                PictureEvent::Gap(_)
                | PictureEvent::Recorded(_)
                | PictureEvent::UnrecordedSound(_)
                | PictureEvent::Received(_)
                | PictureEvent::Notice(_) => None,
            };
            // What goes beyond a chunk lets that be committed.
            if let Some(chunk) = at.map(|at| at.0.div_euclid(chunk_length))
                && chunk > sure
            {
                if source.witness.check(&source.input)? {
                    source.notice("the file has grown: another run reads all of it".to_owned());
                }
                sure = chunk;
            }
            let event = match event {
                PictureEvent::Frame(frame) => Event::Item(frame),
                // A length that is not believed is no reason for a gap of a year.
                PictureEvent::Gap(gap)
                    if source.length.is_none() && gap.span.length() > LONGEST_UNPROVEN =>
                {
                    source.notice(format!(
                        "the header states a length that the file does not have; nothing was seen \
                         after {}",
                        gap.span.start
                    ));
                    continue;
                }
                PictureEvent::Gap(gap) => Event::Gap(gap),
                PictureEvent::Watermark(at) => Event::Watermark(at),
                // Said of live streams only.
                PictureEvent::Recorded(_)
                | PictureEvent::UnrecordedSound(_)
                | PictureEvent::Received(_) => continue,
                PictureEvent::Notice(notice) => {
                    source.notice(notice);
                    continue;
                }
                PictureEvent::End(summary) => return Ok(Some(summary)),
            };
            if out.send(event).is_err() {
                return Ok(None);
            }
        }
        Err(Error::internal("the decoder host's answer has no end"))
    }

    /// The instants to sample in a chunk: each in the middle of its share of a clip.
    fn targets(&self, job: &ChunkJob<Opened>) -> Targets {
        let clip = &self.shared.clip;
        let frames = i64::from(clip.frames);
        let a_chunk = u64::from(CHUNK_CLIPS) * u64::from(clip.frames);
        Targets {
            offset: Micros(clip.length.0 / (2 * frames)),
            // A clip's length and frame count are positive: the pipeline was checked.
            step_num: clip.length.0.unsigned_abs(),
            step_den: u32::from(clip.frames),
            first: u64::from(job.first) * a_chunk,
            count: job.end.map(|end| u64::from(end - job.first) * a_chunk),
        }
    }
}

/// Where the source is, and what tells cheaply that it has not changed.
fn place(location: &Location, input: &Input) -> Result<library::Location> {
    let mut place = library::Location {
        place: match location {
            Location::File(path) => Place::Path(
                std::path::absolute(path).map_err(|cause| Error::io(path, "find", cause))?,
            ),
            Location::Url(url) => Place::url(url),
        },
        size_bytes: None,
        modified_us: None,
        device: None,
        inode: None,
    };
    if let Some(file) = input.file() {
        let metadata = file.metadata().map_err(|cause| {
            Error::unavailable("cannot be read").in_source(input.name()).caused_by(cause)
        })?;
        let nanos = metadata.mtime_nsec() / 1_000;
        place.size_bytes = Some(metadata.len());
        place.modified_us = Some(metadata.mtime().saturating_mul(1_000_000).saturating_add(nanos));
        place.device = Some(metadata.dev());
        place.inode = Some(metadata.ino());
    }
    Ok(place)
}

/// Whether this is the same file as before, and something was written at its end.
fn is_longer(now: &library::Location, before: &library::Location) -> bool {
    let same = now.device == before.device && now.inode == before.inode && now.inode.is_some();
    same && now.size_bytes > before.size_bytes
}

/// The wall clock at the source's zero, where the container states it.
fn wall_clock(info: &MediaInfo) -> Option<WallClock> {
    let stated: jiff::Timestamp = info.creation_time.as_deref()?.parse().ok()?;
    // Cameras without a clock write the epoch of their container.
    let plausible = jiff::Timestamp::from_second(0).is_ok_and(|epoch| stated > epoch);
    plausible.then(|| WallClock { start_us: stated.as_microsecond(), origin: WallOrigin::File })
}

/// Threads of the last decoder: more take memory that a host may not use, and hold back more frames
/// than its plan follows.
const MOST_THREADS: u16 = 8;
/// A length that is believed whatever the size: four hours.
const LONGEST_UNPROVEN: Micros = Micros::from_millis(4 * 3_600_000);
/// No length beyond is believed: a thousand hours.
const LONGEST: Micros = Micros::from_millis(1_000 * 3_600_000);

/// The source's length, unless its header states one that its size belies: then it is read to its
/// end, and nobody plans a million chunks of nothing.
fn plausible_length(info: &MediaInfo, input: &Input) -> Option<Micros> {
    const LEAST_BYTES_A_SEC: f64 = 16.0;
    let length = info.duration.filter(|length| *length > Micros::ZERO)?;
    let size = input.file().and_then(|file| file.metadata().ok()).map(|metadata| metadata.len());
    let is_short = length <= LONGEST_UNPROVEN;
    let is_borne_out = size.is_some_and(|size| {
        length <= LONGEST && size as f64 >= length.as_secs_f64() * LEAST_BYTES_A_SEC
    });
    (is_short || is_borne_out).then_some(length)
}
