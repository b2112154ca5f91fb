//! The parent's side: requests to a decoder host and its answers, none of which is believed.

use std::io::{self, BufReader};
use std::ops::AddAssign;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde::Serialize;

use super::child::{Limits, Patience, Process, with_log};
use super::input::Input;
use super::protocol::{
    self, CueRequest, LiveRequest, MAX_ASPECT_RATIO, MediaInfo, Message, PictureRequest, Received,
    ReceivedSound, Rendition, Request, SoundRequest, Summary, Targets,
};
use crate::error::{Error, Result};
use crate::media::{Change, Cue, Frame, Gap, TrackKind};
use crate::time::{Micros, Span, Timestamp};

/// A decoder host: a child process that is started when the first request needs it, and again
/// after it crashed, hung, ate too much memory, was left in the middle of an answer, or has read
/// its share of sources.
#[derive(Debug)]
pub struct Host {
    limits: Limits,
    stop: Arc<AtomicBool>,
    process: Option<Process>,
    /// Sources that the running process has been given.
    sources: u32,
    last_source: String,
    spent: Spent,
}

/// What finished requests have taken, whatever they asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Spent {
    /// Processor time of the decoder hosts.
    pub processor_time: Micros,
    /// Frames that came out of decoders of pictures.
    pub frames_decoded: u64,
    /// Packets of pictures that were left out without decoding.
    pub frames_skipped: u64,
    /// See [`Summary::unplanned_groups`].
    pub unplanned_groups: u64,
}

impl AddAssign for Spent {
    fn add_assign(&mut self, more: Spent) {
        self.processor_time = Micros(self.processor_time.0.saturating_add(more.processor_time.0));
        self.frames_decoded += more.frames_decoded;
        self.frames_skipped += more.frames_skipped;
        self.unplanned_groups += more.unplanned_groups;
    }
}

impl Host {
    /// Starts the child, so that a missing executable shows at once.
    ///
    /// # Errors
    /// `Internal` where the child cannot be started.
    pub fn start(limits: &Limits) -> Result<Host> {
        Self::start_until(limits, Arc::default())
    }

    /// As [`Host::start`]; once `stop` is true, a request that waits for the host ends with
    /// `Cancelled` within a fraction of a second.
    pub fn start_until(limits: &Limits, stop: Arc<AtomicBool>) -> Result<Host> {
        let process = Process::start(limits, &stop)?;
        Ok(Host {
            limits: limits.clone(),
            stop,
            process: Some(process),
            sources: 0,
            last_source: String::new(),
            spent: Spent::default(),
        })
    }

    /// What the requests since this was last asked have taken.
    pub fn take_spent(&mut self) -> Spent {
        std::mem::take(&mut self.spent)
    }

    /// Ends the child; the next request starts another.
    pub fn end(&mut self) {
        self.process = None;
    }

    /// Whether there is a process, as far as is known.
    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// The child's process id, for tests and for measuring memory.
    pub fn process_id(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// What the source holds.
    ///
    /// # Errors
    /// `Corrupt` or `Unsupported` where FFmpeg can make nothing of it, `Exhausted` where it took
    /// too much time or memory; named after the source.
    pub fn probe(&mut self, input: &Input) -> Result<MediaInfo> {
        self.ask(input, Request::Probe(input.address()))?;
        let mut info = None;
        loop {
            match self.answer(input)? {
                (Message::Info(answer), _) if info.is_none() => info = Some(*answer),
                (Message::End(_), _) => break,
                _ => return Err(self.distrust(input)),
            }
        }
        info.ok_or_else(|| self.distrust(input))
    }

    /// Frames of one picture track. Dropping the stream before its end restarts the host.
    pub fn picture<'a>(
        &'a mut self,
        input: &'a Input,
        request: &PictureRequest,
    ) -> Result<PictureStream<'a>> {
        request.check().map_err(|error| error.in_source(input.name()))?;
        self.ask(input, Request::Picture(input.address(), *request))?;
        Ok(PictureStream::new(Answers::new(self, input), request.rendition, request.targets))
    }

    /// Frames of a live stream, as they come, and its sound, where that was asked for. Where no frame has
    /// come for [`LiveRequest::silence`], or none that can be decoded, the stream ends with `Unavailable`.
    /// Whoever asks for sound must read it as it comes: the host can't end before.
    pub fn live<'a>(
        &'a mut self,
        input: &'a Input,
        request: &LiveRequest,
    ) -> Result<(PictureStream<'a>, Option<LiveSound>)> {
        request.check().map_err(|error| error.in_source(input.name()))?;
        let cannot = |cause| Error::internal("cannot make a socket for sound").caused_by(cause);
        let sockets = request.sound_from.map(|_| UnixStream::pair()).transpose().map_err(cannot)?;
        let (ours, theirs) = sockets.unzip();
        self.ask_with(input, Request::Live(input.address(), request.clone()), theirs)?;
        if let Some(process) = &mut self.process {
            process.be_patient(Patience { silence: request.silence, is_live: true });
        }
        let answers = Answers::new(self, input);
        Ok((
            PictureStream::new(answers, request.rendition, request.targets),
            ours.map(LiveSound::new),
        ))
    }

    /// 16 kHz mono sound of one track. Dropping the stream before its end restarts the host.
    pub fn sound<'a>(
        &'a mut self,
        input: &'a Input,
        request: &SoundRequest,
    ) -> Result<SoundStream<'a>> {
        self.ask(input, Request::Sound(input.address(), *request))?;
        Ok(SoundStream { answers: Answers::new(self, input), order: Order::default() })
    }

    /// Timed text, in order of start within each track.
    pub fn cues<'a>(&'a mut self, input: &'a Input, request: &CueRequest) -> Result<CueStream<'a>> {
        self.ask(input, Request::Cues(input.address(), request.clone()))?;
        Ok(CueStream { answers: Answers::new(self, input) })
    }

    /// Sends a request to a process that has none under way.
    fn ask(&mut self, input: &Input, request: Request) -> Result<()> {
        self.ask_with(input, request, None)
    }

    /// As [`Host::ask`], with another descriptor than the source's.
    fn ask_with(
        &mut self,
        input: &Input,
        request: Request,
        other: Option<UnixStream>,
    ) -> Result<()> {
        if input.name() != self.last_source {
            self.sources += 1;
            self.last_source = input.name().to_owned();
        }
        if self.sources > self.limits.sources {
            self.process = None;
        }
        // A host that died between two requests is no fault of the new source: one more try.
        for attempt in 0..2 {
            let process = match &mut self.process {
                Some(process) => process,
                None => {
                    self.sources = 1;
                    self.process.insert(Process::start(&self.limits, &self.stop)?)
                }
            };
            process.clear_log();
            // A group of pictures is read whole before one comes out, as slowly as the net is.
            let patience = if input.file().is_some() { 1 } else { 10 };
            let silence = self.limits.silence * patience;
            process.be_patient(Patience { silence, is_live: false });
            let file = input.file().map(AsFd::as_fd);
            let descriptors: Vec<_> =
                file.into_iter().chain(other.as_ref().map(AsFd::as_fd)).collect();
            match process.send(&request, &descriptors) {
                Ok(()) => return Ok(()),
                Err(error) => {
                    self.process = None;
                    if attempt == 1 {
                        return Err(error.in_source(input.name()));
                    }
                }
            }
        }
        unreachable!("the second attempt returns")
    }

    /// The next message of the request under way. After an error there is none under way.
    fn answer(&mut self, input: &Input) -> Result<(Message, Vec<u8>)> {
        let name = input.name();
        let Some(process) = &mut self.process else {
            return Err(Error::internal("no request is under way").in_source(name));
        };
        match protocol::receive(process.stream()) {
            Ok((Message::Failed { kind, message, at }, _)) => {
                let log = process.log_lines();
                let error = Error::new(kind, with_log(message, &log)).in_source(name);
                Err(match at {
                    Some(at) => error.at(at),
                    None => error,
                })
            }
            Ok(answer) => {
                if let (Message::End(summary), _) = &answer {
                    let processor_time = summary.processor_time;
                    self.spent += Spent { processor_time, ..Spent::default() };
                }
                Ok(answer)
            }
            Err(cause) => {
                let error = process.explain(cause).in_source(name);
                self.process = None;
                Err(error)
            }
        }
    }

    /// Ends a host that broke its protocol.
    fn distrust(&mut self, input: &Input) -> Error {
        self.process = None;
        Error::corrupt("the decoder host answered what was not asked").in_source(input.name())
    }
}

/// The answers to one request, up to its end.
#[derive(Debug)]
struct Answers<'a> {
    host: &'a mut Host,
    input: &'a Input,
    is_over: bool,
}

impl<'a> Answers<'a> {
    fn new(host: &'a mut Host, input: &'a Input) -> Self {
        Answers { host, input, is_over: false }
    }

    fn next(&mut self) -> Option<Result<(Message, Vec<u8>)>> {
        if self.is_over {
            return None;
        }
        let answer = self.host.answer(self.input);
        self.is_over = !matches!(&answer, Ok((message, _)) if !matches!(message, Message::End(_)));
        Some(answer)
    }

    fn distrust<T>(&mut self) -> Option<Result<T>> {
        self.is_over = true;
        Some(Err(self.host.distrust(self.input)))
    }
}

impl Drop for Answers<'_> {
    fn drop(&mut self) {
        // The rest of the answer would lie in the socket before the next one.
        if !self.is_over {
            self.host.process = None;
        }
    }
}

/// What comes of a picture request, in order of time.
#[derive(Debug, Clone)]
pub enum PictureEvent {
    Frame(Frame),
    /// No picture at the targets in this span (from the first such target to the next target that
    /// has one).
    Gap(Gap),
    /// No frame or gap before this instant will come.
    Watermark(Timestamp),
    /// Part of a file that holds a live stream as it was received.
    Recorded(Recorded),
    /// So many packets of sound more are in no recording although the stream is recorded.
    UnrecordedSound(u64),
    /// What a live stream has brought so far.
    Received(Received),
    /// Something odd that cost nothing, for the report.
    Notice(String),
    /// The last event.
    End(Summary),
}

/// What a recording goes on with: a fragment of MP4.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// When its first frame or its sound was captured.
    pub start: Timestamp,
    /// Where a file is to begin: with what. Others of these fragments and of those that follow may begin with it, too.
    pub headers: Option<Vec<u8>>,
    /// Whether its first frame is a keyframe.
    pub is_key: bool,
    /// None in a fragment of sound.
    pub frames: u32,
    /// Of sound; none in a fragment of frames.
    pub packets: u32,
    pub bytes: Vec<u8>,
}

/// See [`Host::picture`]. After an error or [`PictureEvent::End`] nothing follows.
#[derive(Debug)]
pub struct PictureStream<'a> {
    answers: Answers<'a>,
    rendition: Rendition,
    targets: Targets,
    /// The first target that may still come.
    next: u64,
    watermark: Timestamp,
    last: Option<Frame>,
}

impl<'a> PictureStream<'a> {
    fn new(answers: Answers<'a>, rendition: Rendition, targets: Targets) -> Self {
        let watermark = Timestamp(i64::MIN);
        PictureStream { answers, rendition, targets, next: targets.first, watermark, last: None }
    }

    /// Whether `target` is one of those asked for and not yet passed.
    fn accept(&mut self, target: Timestamp) -> bool {
        let targets = &self.targets;
        let index = targets.first_at_or_after(target);
        let expected = self.next..targets.end();
        if targets.at(index) != target || !expected.contains(&index) {
            return false;
        }
        self.next = index + 1;
        true
    }

    /// Whether a change is one that can have been seen at `target`: the frame that serves it may be
    /// a little later.
    fn is_plausible(&self, change: &Change, target: Timestamp) -> bool {
        let targets = &self.targets;
        let next = targets.at(targets.first_at_or_after(target).saturating_add(1));
        (0.0..=1.0).contains(&change.strength) && change.at < next
    }

    /// Whether a gap begins at such a target and reaches no further than the request.
    fn accept_gap(&mut self, gap: &Gap) -> bool {
        let Span { start, end } = gap.span;
        let targets = &self.targets;
        if gap.track != TrackKind::Picture || end > targets.at(targets.end()) || !self.accept(start)
        {
            return false;
        }
        self.next = self.next.max(self.targets.first_at_or_after(end));
        end > start
    }

    /// Whether a promise takes none back and is none about what was not asked for. What it says
    /// will not come counts as passed.
    fn accept_watermark(&mut self, at: Timestamp) -> bool {
        let targets = &self.targets;
        if at < self.watermark || at > targets.at(targets.end()) {
            return false;
        }
        self.watermark = at;
        self.next = self.next.max(targets.first_at_or_after(at));
        true
    }
}

impl Iterator for PictureStream<'_> {
    type Item = Result<PictureEvent>;

    fn next(&mut self) -> Option<Self::Item> {
        let (message, mut body) = match self.answers.next()? {
            Ok(answer) => answer,
            Err(error) => return Some(Err(error)),
        };
        let Rendition { width_px: wanted_width, height_px: wanted_height, .. } = self.rendition;
        let event = match message {
            Message::Frame { target, pts, raw_pts, width_px, height_px, aspect_ratio, change } => {
                let bytes = wanted_width as usize * wanted_height as usize * 3;
                let is_shape = (1.0 / MAX_ASPECT_RATIO..=MAX_ASPECT_RATIO).contains(&aspect_ratio);
                if (width_px, height_px, body.len()) != (wanted_width, wanted_height, bytes)
                    || !is_shape
                    || !self.is_plausible(&change, target)
                    || !self.accept(target)
                {
                    return self.answers.distrust();
                }
                let rgb = Arc::from(body);
                let frame =
                    Frame { target, pts, raw_pts, width_px, height_px, aspect_ratio, rgb, change };
                self.last = Some(frame.clone());
                PictureEvent::Frame(frame)
            }
            Message::Repeat { target, change } => match self.last.clone() {
                Some(last) if self.is_plausible(&change, target) && self.accept(target) => {
                    PictureEvent::Frame(Frame { target, change, ..last })
                }
                _ => return self.answers.distrust(),
            },
            Message::Gap(gap) => {
                if !self.accept_gap(&gap) {
                    return self.answers.distrust();
                }
                PictureEvent::Gap(gap)
            }
            Message::Watermark(at) => {
                if !self.accept_watermark(at) {
                    return self.answers.distrust();
                }
                PictureEvent::Watermark(at)
            }
            Message::Recorded { start, header_bytes, is_key, frames, packets } => {
                let header_bytes = header_bytes as usize;
                if start < Timestamp::ZERO || body.len() <= header_bytes {
                    return self.answers.distrust();
                }
                let bytes = body.split_off(header_bytes);
                let headers = (!body.is_empty()).then_some(body);
                let part = Recorded { start, headers, is_key, frames, packets, bytes };
                PictureEvent::Recorded(part)
            }
            Message::UnrecordedSound(packets) => PictureEvent::UnrecordedSound(packets),
            Message::Received(received) => PictureEvent::Received(received),
            Message::Notice(text) => PictureEvent::Notice(text),
            Message::End(summary) => {
                self.answers.host.spent += Spent {
                    frames_decoded: summary.decoded,
                    frames_skipped: summary.skipped,
                    unplanned_groups: summary.unplanned_groups,
                    ..Spent::default()
                };
                PictureEvent::End(summary)
            }
            _ => return self.answers.distrust(),
        };
        Some(Ok(event))
    }
}

/// What comes of a sound request, in order of time.
#[derive(Debug, Clone)]
pub enum SoundEvent {
    /// 16 kHz mono samples, -1 to 1, the first of them at `pts`.
    Samples {
        pts: Timestamp,
        samples: Vec<f32>,
    },
    Gap(Gap),
    Watermark(Timestamp),
    /// What became of a live stream's sound so far.
    Received(ReceivedSound),
    Notice(String),
    /// The last event.
    End(Summary),
}

/// See [`Host::sound`].
#[derive(Debug)]
pub struct SoundStream<'a> {
    answers: Answers<'a>,
    order: Order,
}

/// What sound has to follow.
#[derive(Debug)]
struct Order {
    /// Where the last samples or the last gap began.
    last: Timestamp,
    watermark: Timestamp,
}

impl Default for Order {
    fn default() -> Self {
        let before = Timestamp(i64::MIN);
        Order { last: before, watermark: before }
    }
}

impl Order {
    /// Whether what begins at `start` follows what came before, and breaks no promise.
    fn accept(&mut self, start: Timestamp) -> bool {
        let follows = start >= self.last.max(self.watermark);
        self.last = start;
        follows
    }

    /// What a message says; `None` where it is none that may come.
    fn event(&mut self, message: Message, body: &[u8]) -> Option<SoundEvent> {
        Some(match message {
            Message::Sound { pts } => {
                let (words, rest) = body.as_chunks::<4>();
                let samples: Vec<f32> =
                    words.iter().map(|word| f32::from_le_bytes(*word)).collect();
                let are_samples =
                    rest.is_empty() && samples.iter().all(|sample| sample.is_finite());
                if !are_samples || !self.accept(pts) {
                    return None;
                }
                SoundEvent::Samples { pts, samples }
            }
            Message::Gap(gap) => {
                let is_gap = gap.track == TrackKind::Sound && gap.span.end > gap.span.start;
                if !is_gap || !self.accept(gap.span.start) {
                    return None;
                }
                SoundEvent::Gap(gap)
            }
            Message::Watermark(at) => {
                if at < self.watermark {
                    return None;
                }
                self.watermark = at;
                SoundEvent::Watermark(at)
            }
            Message::ReceivedSound(received) => SoundEvent::Received(received),
            Message::Notice(text) => SoundEvent::Notice(text),
            Message::End(summary) => SoundEvent::End(summary),
            _ => return None,
        })
    }
}

impl Iterator for SoundStream<'_> {
    type Item = Result<SoundEvent>;

    fn next(&mut self) -> Option<Self::Item> {
        let (message, body) = match self.answers.next()? {
            Ok(answer) => answer,
            Err(error) => return Some(Err(error)),
        };
        match self.order.event(message, &body) {
            Some(event) => Some(Ok(event)),
            None => self.answers.distrust(),
        }
    }
}

/// The sound of a live stream, in order of time; see [`Host::live`]. It ends with the connection, or with an
/// error where the host does not keep to its protocol.
#[derive(Debug)]
pub struct LiveSound {
    stream: BufReader<UnixStream>,
    order: Order,
    is_over: bool,
}

impl LiveSound {
    fn new(stream: UnixStream) -> Self {
        LiveSound { stream: BufReader::new(stream), order: Order::default(), is_over: false }
    }
}

impl Iterator for LiveSound {
    type Item = Result<SoundEvent>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let (message, body) = match protocol::receive(&mut self.stream) {
            Ok(received) => received,
            Err(cause) => {
                self.is_over = true;
                // A host that is gone has closed it; why, is told with the picture.
                let is_foreign = cause.kind() == io::ErrorKind::InvalidData;
                return is_foreign.then(|| Err(foreign().caused_by(cause)));
            }
        };
        let event = self.order.event(message, &body);
        self.is_over = matches!(event, None | Some(SoundEvent::End(_)));
        Some(event.ok_or_else(foreign))
    }
}

fn foreign() -> Error {
    Error::corrupt("the decoder host sent other things than sound where that goes")
}

/// What comes of a cue request.
#[derive(Debug, Clone)]
pub enum CueEvent {
    Cue(Cue),
    Notice(String),
    /// The last event.
    End(Summary),
}

/// See [`Host::cues`].
#[derive(Debug)]
pub struct CueStream<'a> {
    answers: Answers<'a>,
}

impl Iterator for CueStream<'_> {
    type Item = Result<CueEvent>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (message, _) = match self.answers.next()? {
                Ok(answer) => answer,
                Err(error) => return Some(Err(error)),
            };
            let event = match message {
                Message::Cue(cue) => {
                    if cue.span.end <= cue.span.start {
                        return self.answers.distrust();
                    }
                    CueEvent::Cue(*cue)
                }
                Message::Notice(text) => CueEvent::Notice(text),
                Message::End(summary) => CueEvent::End(summary),
                // Only a sign of life.
                Message::Watermark(_) => continue,
                _ => return self.answers.distrust(),
            };
            return Some(Ok(event));
        }
    }
}
