//! The graph's source for live streams: connects, reads until the stream is lost, waits, and connects
//! again, for ever. Each connection is a stream of the graph.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::pauses::{self, Pauses};
use super::recording::Recording;
use super::sound::Connected;
use super::status::{Frames, StreamState};
use super::{Camera, Session, Shared, is_behind_the_clock, lock, monotonic_us, zero_us};
use crate::error::{Error, Kind, Result};
use crate::graph::{Event, Outlet, Source, Streams};
use crate::media::{Frame, Gap, TrackKind, add_reason};
use crate::source::{BEHIND, Host, LiveRequest, NO_FRAME, PictureEvent, Received, Targets};
use crate::time::{Micros, Span, Timestamp, wall_us};

/// How often the wish to stop is looked at in a pause.
const TICK: Duration = Duration::from_millis(50);
/// A camera that has sent no keyframe for so long may send one to whoever connects anew.
const MOST_WITHOUT_KEYFRAME: Duration = Duration::from_secs(300);
/// Different reasons of one outage that are kept.
const MOST_REASONS: usize = 3;

/// Watches one stream, with a decoder host of its own.
#[derive(Debug)]
pub(super) struct Watcher<'a> {
    shared: &'a Shared<'a>,
    camera: usize,
    host: Host,
    recording: Option<Recording>,
    pauses: Pauses,
    /// The first place on the clip grid that no connection has filled.
    next_place: i64,
    /// Why nothing was seen since then.
    reasons: Vec<String>,
    /// What earlier connections have brought.
    frames: Frames,
    /// Whether hardware may decode.
    hardware: bool,
    is_over: bool,
}

/// One connection, as it goes on.
struct Connection {
    session: Session,
    received: Received,
    /// Frames that could not be written into a recording.
    unwritten: u64,
    /// When it was first told that frames came.
    came: Option<Instant>,
    /// When the first frame was seen, and the last.
    seen: Option<(Instant, Instant)>,
    /// Whether one has come, for those who listen.
    is_up: Arc<AtomicBool>,
}

impl Connection {
    /// Whether nothing was seen although frames came that could be decoded.
    fn is_blind(&self) -> bool {
        let left_out = self.received.before_keyframe + self.received.behind;
        self.seen.is_none() && self.received.received > left_out
    }

    /// For how long it has brought frames.
    fn lasted(&self) -> Duration {
        self.seen.map_or(Duration::ZERO, |(first, last)| last - first)
    }

    /// What to say of a camera that has sent frames for as long as it may be silent, and no keyframe. It is waited for
    /// on, since it may send one each minute.
    ///
    /// # Errors
    /// `Unavailable` where it may help to connect anew.
    fn without_keyframe(&self, silence: Duration) -> Result<Option<String>> {
        let is_all = self.received.before_keyframe == self.received.received;
        let since = self.came.filter(|_| is_all && self.seen.is_none());
        let Some(waited) = since.map(|came| came.elapsed()).filter(|waited| *waited > silence)
        else {
            return Ok(None);
        };
        let reason = format!(
            "no keyframe came for {} s: if that goes on, set the camera's keyframe interval to a few seconds",
            silence.as_secs_f32()
        );
        if waited > MOST_WITHOUT_KEYFRAME.max(silence) {
            return Err(Error::unavailable(reason));
        }
        Ok(Some(reason))
    }
}

/// How a connection ended.
enum Ending {
    /// The stream is over.
    Over,
    Stopped,
    /// A later stage wants no more of it.
    Unwanted,
    /// The clock is ahead of this connection's times.
    ClockSet,
}

impl<'a> Watcher<'a> {
    pub fn new(shared: &'a Shared<'a>, camera: usize, host: Host) -> Self {
        let Camera { stored_until, ref recordings, ref input, .. } = shared.cameras[camera];
        let recording =
            recordings.as_ref().map(|files| Recording::new(input.name(), files.clone()));
        let before = if stored_until.is_some() { "not watched" } else { "not connected yet" };
        // A clip's end is where the next one begins.
        let now = Timestamp(wall_us());
        let next_place = match stored_until {
            Some(until) => shared.clip.place(until + Micros(-1)) + 1,
            None => shared.clip.place(now),
        };
        Watcher {
            shared,
            camera,
            host,
            recording,
            pauses: Pauses::new(shared.longest_pause),
            next_place,
            reasons: vec![before.to_owned()],
            frames: Frames::default(),
            hardware: shared.hardware,
            is_over: false,
        }
    }

    /// A connection that begins now, on the grid behind what there is.
    fn begin(&self) -> Connection {
        let start = self.shared.clip.start(self.next_place);
        let zero_us = zero_us(wall_us(), monotonic_us(), start);
        let session = Session { camera: self.camera, start, zero_us };
        Connection {
            session,
            received: Received::default(),
            unwritten: 0,
            came: None,
            seen: None,
            is_up: Arc::default(),
        }
    }

    /// The instants to sample from `start` on: each in the middle of its share of a clip.
    fn targets(&self) -> Targets {
        let clip = &self.shared.clip;
        let frames = i64::from(clip.frames);
        let first = self.next_place.saturating_mul(frames);
        Targets {
            offset: Micros(clip.length.0 / (2 * frames)),
            step_num: clip.length.0.unsigned_abs(),
            step_den: u32::from(clip.frames),
            first: u64::try_from(first).unwrap_or(0),
            count: None,
        }
    }

    /// Connects, and reads until the connection ends.
    fn connect(&mut self, out: &mut Outlet<'_, Frame>, to: &mut Connection) -> Result<Ending> {
        let shared = self.shared;
        let camera = &shared.cameras[self.camera];
        let request = LiveRequest {
            rendition: shared.rendition,
            targets: self.targets(),
            zero_us: to.session.zero_us,
            transport: camera.transport,
            ca: camera.ca.clone(),
            silence: shared.silence,
            hardware: self.hardware,
            record: self.recording.is_some(),
            sound_from: camera.listened.as_ref().map(|listened| listened.from(to.session.start)),
        };
        let earlier = self.frames;
        let (pictures, sound) = self.host.live(&camera.input, &request)?;
        if let (Some(listened), Some(sound), Some(from)) =
            (&camera.listened, sound, request.sound_from)
        {
            let number = shared.begin_sound(to.session, from);
            let before = self.reasons.join("; ");
            // Nobody takes it only where listening has failed, which ends the run.
            let is_up = to.is_up.clone();
            let connected = Connected { number, sound, from, before, is_up };
            let _ = listened.connections.send(Some(connected));
        }
        for event in pictures {
            let event = match event? {
                PictureEvent::End(_) => return Ok(Ending::Over),
                PictureEvent::Received(mut received) => {
                    received.unrecorded += to.unwritten;
                    to.received = received;
                    shared.update(self.camera, |status| status.frames = earlier.and(&received));
                    if received.received > 0 {
                        to.came.get_or_insert_with(Instant::now);
                    }
                    if let Some(reason) = to.without_keyframe(shared.silence)? {
                        note(&mut self.reasons, &reason);
                        shared.update(self.camera, |status| {
                            status.reason = Some(reason);
                            status.lost_since_us = status.lost_since_us.or(Some(status.since_us));
                        });
                    }
                    let zero_us = to.session.zero_us;
                    // A file is played once.
                    if camera.input.file().is_none()
                        && is_behind_the_clock(wall_us(), monotonic_us(), zero_us)
                    {
                        return Ok(Ending::ClockSet);
                    }
                    continue;
                }
                PictureEvent::Recorded(part) => {
                    let (frames, packets) = (u64::from(part.frames), u64::from(part.packets));
                    if let Some(recording) = &mut self.recording {
                        match recording.take(part) {
                            Some(bytes) => lock(&camera.status).recorded_bytes += bytes,
                            None => {
                                to.unwritten += frames;
                                shared
                                    .count_sound(self.camera, |sound| sound.unrecorded += packets);
                            }
                        }
                    }
                    continue;
                }
                PictureEvent::UnrecordedSound(packets) => {
                    shared.count_sound(self.camera, |sound| sound.unrecorded += packets);
                    continue;
                }
                PictureEvent::Notice(notice) => {
                    tracing::warn!("{}: {notice}", camera.input.name());
                    continue;
                }
                PictureEvent::Frame(frame) => {
                    self.reasons.clear();
                    self.next_place = self.next_place.max(shared.clip.place(frame.target) + 1);
                    Event::Item(frame)
                }
                // What was not seen before this connection's first frame has other reasons.
                PictureEvent::Gap(mut gap) => {
                    // The graph takes no frames while nothing can be stored.
                    if gap.reason == BEHIND
                        && let Some(why) = shared.held_up(gap.span, to.session.zero_us)
                    {
                        gap.reason = format!("{why}; {BEHIND}");
                    }
                    let reason = match outage(&mut self.reasons) {
                        Some(reason) if gap.reason == NO_FRAME || reason.contains(&gap.reason) => {
                            reason
                        }
                        Some(reason) => format!("{reason}; {}", gap.reason),
                        None => gap.reason,
                    };
                    Event::Gap(Gap { reason, ..gap })
                }
                PictureEvent::Watermark(at) => {
                    self.next_place = self.next_place.max(shared.clip.place(at));
                    Event::Watermark(at)
                }
            };
            let now = Instant::now();
            if let Some((_, last)) = &mut to.seen {
                *last = now;
            } else {
                to.seen = Some((now, now));
                to.is_up.store(true, Ordering::Relaxed);
                out.begin(shared.begin(to.session));
                shared.set_state(self.camera, StreamState::Live, |status| status.sessions += 1);
            }
            if out.send(event).is_err() {
                return Ok(Ending::Unwanted);
            }
        }
        Err(Error::internal("the decoder host's answer has no end"))
    }

    /// Notes why nothing is seen from now on, and waits before the next attempt.
    fn wait(&mut self, reason: String) {
        note(&mut self.reasons, &reason);
        let pause = self.pauses.take(rand::random::<f64>());
        self.shared.set_state(self.camera, StreamState::Waiting, |status| {
            status.reason = Some(reason);
            status.retry_secs = Some(pause.as_secs_f64());
        });
        let until = Instant::now() + pause;
        // The graph's stages do not sleep, but for a source that waits for its camera.
        while Instant::now() < until && !self.shared.cancel.is_cancelled() {
            std::thread::sleep(TICK);
        }
    }

    /// The run is over while nothing is seen: tells that as a stream of its own.
    fn finish(&mut self, out: &mut Outlet<'_, Frame>) {
        let Connection { session, .. } = self.begin();
        let now = Timestamp(monotonic_us().saturating_sub(session.zero_us));
        if now <= session.start {
            return;
        }
        let Some(reason) = outage(&mut self.reasons) else { return };
        let span = Span::new(session.start, now);
        out.begin(self.shared.begin(session));
        for event in
            [Event::Gap(Gap { span, track: TrackKind::Picture, reason }), Event::End(Ok(()))]
        {
            // An outlet that wants no more is told no more.
            if out.send(event).is_err() {
                return;
            }
        }
    }
}

/// Notes one more reason why nothing is seen, unless that is known.
fn note(reasons: &mut Vec<String>, reason: &str) {
    add_reason(reasons, reason);
    reasons.truncate(MOST_REASONS);
}

/// Why nothing was seen up to now, where nothing was.
fn outage(reasons: &mut Vec<String>) -> Option<String> {
    let reasons = std::mem::take(reasons);
    (!reasons.is_empty()).then(|| reasons.join("; "))
}

impl Source for Watcher<'_> {
    type Out = Frame;
    const NAME: &'static str = "watch";

    fn read(&mut self, out: &mut Outlet<'_, Frame>) -> Result<Streams> {
        let shared = self.shared;
        if self.is_over || shared.cancel.is_cancelled() {
            self.finish(out);
            shared.set_state(self.camera, StreamState::Ended, |_| {});
            return Ok(Streams::Over);
        }
        shared.set_state(self.camera, StreamState::Connecting, |_| {});
        let mut connection = self.begin();
        let ending = match self.connect(out, &mut connection) {
            Err(error) if error.kind() == Kind::Cancelled => Ok(Ending::Stopped),
            ending => ending,
        };
        if let Some(recording) = &mut self.recording {
            recording.end();
        }
        if let Err(error) = &ending {
            // A host that is silent is ended, too: since its camera is, or, where that comes soon, its driver may be.
            let is_early = !pauses::is_healthy(connection.lasted());
            let may_hang = is_early && connection.received.in_hardware > 0;
            let has_died =
                !self.host.is_running() && (error.kind() != Kind::Unavailable || may_hang);
            if self.hardware && (has_died || connection.is_blind()) {
                self.hardware = false;
                let name = shared.cameras[self.camera].input.name();
                tracing::warn!(
                    "{name}: decoded without hardware from now on, which may have failed"
                );
            }
        }
        // Whatever was wrong with it, the next connection has a host of its own.
        self.host.end();
        self.frames = self.frames.and(&connection.received).closed();
        let frames = self.frames;
        shared.update(self.camera, |status| status.frames = frames);
        if connection.seen.is_some() && !matches!(ending, Ok(Ending::Unwanted)) {
            // What a lost connection has brought is as good as what a whole one has.
            let _ = out.send(Event::End(Ok(())));
        }
        self.pauses.connected(connection.lasted());
        let is_file = shared.cameras[self.camera].input.file().is_some();
        match ending {
            Ok(_) if shared.cancel.is_cancelled() => {}
            Ok(Ending::Stopped) => {}
            Ok(Ending::Over) if is_file => self.is_over = true,
            Ok(Ending::Over) => self.wait("stream lost: the sender ended it".to_owned()),
            Ok(Ending::Unwanted) => self.wait("stream lost: a later stage failed".to_owned()),
            Ok(Ending::ClockSet) => self.wait(
                "stream lost: the machine's clock was set forward, or it was asleep".to_owned(),
            ),
            // A file is what it is, however often it is tried.
            Err(error) if is_file && matches!(error.kind(), Kind::Unsupported | Kind::Corrupt) => {
                self.is_over = true;
                tracing::warn!("{error}");
                if connection.seen.is_none() {
                    self.reasons = vec![error.reason()];
                }
                shared.update(self.camera, |status| status.reason = Some(error.reason()));
            }
            // A camera that sends something is reached, though none of it may be seen.
            Err(error) if connection.received.received > 0 => {
                self.wait(format!("stream lost: {}", error.reason()));
            }
            Err(error) => self.wait(format!("camera unreachable: {}", error.reason())),
        }
        Ok(Streams::MayFollow)
    }
}
