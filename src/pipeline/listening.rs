//! Listening to sources without a library: sound in, cues out.
//!
//! One thread reads the sources one after the other and cuts their sound into windows; as many threads
//! as there is room for read the windows; what they heard is joined in order here.

use std::collections::{BTreeMap, VecDeque};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::error::{Error, Kind, Result};
use crate::graph::Cancel;
use crate::media::{Cue, TrackKind};
use crate::model;
use crate::source::{Host, Input, Limits, Location, SoundEvent, SoundRequest};
use crate::speech::{Ear, Heard, Joiner, Listener, Models, Voice, Whisper, Window};
use crate::time::{Micros, Timestamp};

/// Everything that listening needs, loaded.
#[derive(Debug)]
pub struct Ears {
    voice: Voice,
    models: Models,
    language: Option<String>,
}

/// The model that tells where somebody speaks.
const VOICE: &str = "silero-vad";
/// The models that read, the best for a language first.
const READERS: [&str; 2] = ["whisper-tiny.en", "whisper-base"];
const ENGLISH: &str = "en";

impl Ears {
    /// Loads what is needed for this language (Whisper's code; `None`: whichever is spoken), or the
    /// models that are named in place of the built-in ones.
    ///
    /// # Errors
    /// `NotFound` where a model is not set up; `InvalidInput` where none reads the language.
    pub fn load(models: &model::Models, named: &[String], language: Option<&str>) -> Result<Ears> {
        let built_in = match language {
            Some(ENGLISH) => &READERS[..1],
            Some(_) => &READERS[1..],
            None => &READERS[..],
        };
        let built_in: Vec<String> = built_in.iter().map(|&id| id.to_owned()).collect();
        let ids = if named.is_empty() { &built_in } else { named };
        let mut readers = Vec::new();
        for id in ids {
            readers.push(Whisper::load(models, &models.manifest(id)?)?);
        }
        let readers = Models::new(readers);
        let language = language.or_else(|| readers.only_language());
        if let Some(language) = language
            && !readers.read(language)
        {
            return Err(Error::invalid_input(format!(
                "{language:?} is no language that {} reads: give its code (de, fr, …), or another \
                 --model",
                ids.join(" or ")
            )));
        }
        Ok(Ears {
            voice: Voice::load(models, &models.manifest(VOICE)?)?,
            models: readers,
            language: language.map(str::to_owned),
        })
    }
}

/// What was said in a source, as far as it was listened to.
#[derive(Debug)]
pub struct Transcript {
    pub cues: Vec<Cue>,
    /// Whisper's code, with how sure that is; `None` where nobody speaks.
    pub language: Option<(String, f32)>,
    /// How much sound there was.
    pub length: Micros,
    /// What was noticed and is no failure.
    pub notices: Vec<String>,
    /// Why it ends early, if it does.
    pub error: Option<Error>,
}

/// What happens while it goes on, by the number of the source.
#[derive(Debug)]
pub enum Listening {
    Opened { source: usize, length: Option<Micros> },
    Advanced { source: usize, by: Micros },
    Finished { source: usize, transcript: Transcript },
}

enum Happened {
    Told(Listening),
    Heard {
        source: usize,
        number: usize,
        heard: Result<Heard>,
    },
    /// All windows of a source have been given out.
    Read {
        source: usize,
        windows: usize,
        read: Read,
        error: Option<Error>,
    },
}

struct Job {
    source: usize,
    number: usize,
    window: Window,
    language: String,
    /// The user has said so.
    is_certain: bool,
}

/// Listens to all sources, in order; `tell` hears of each step on the calling thread, and of each source
/// that it is finished. After `cancel`, what is under way ends where it is.
///
/// # Errors
/// What `tell` returns; nothing more is begun then.
pub fn listen(
    locations: &[Location],
    ears: Ears,
    threads: usize,
    cancel: &Cancel,
    tell: &mut dyn FnMut(Listening) -> Result<()>,
) -> Result<()> {
    let Ears { voice, models, language } = ears;
    // A window waits for each thread, so that none waits for the decoder.
    let (jobs, work) = bounded::<Job>(threads);
    let (out, happened) = bounded::<Happened>(2 * threads);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let (work, out, models) = (work.clone(), out.clone(), models.clone());
            scope.spawn(move || read_windows(&work, &out, Listener::new(models)));
        }
        drop(work);
        let models = &models;
        scope.spawn(move || {
            let mut reader =
                SourceReader { ear: Ear::new(voice), models, language, jobs, out, cancel };
            reader.read_all(locations);
        });
        let mut result = Ok(());
        let mut open: BTreeMap<usize, Open> = BTreeMap::new();
        for event in &happened {
            if let Some(told) = take(event, &mut open)
                && result.is_ok()
            {
                result = tell(told);
                if result.is_err() {
                    cancel.cancel();
                }
            }
        }
        result
    })
}

fn read_windows(work: &Receiver<Job>, out: &Sender<Happened>, mut listener: Listener) {
    for Job { source, number, window, language, is_certain } in work {
        let heard = listener.hear(&window, &language, is_certain);
        if out.send(Happened::Heard { source, number, heard }).is_err() {
            return;
        }
    }
}

/// A source whose windows are under way.
struct Open {
    joiner: Joiner,
    cues: Vec<Cue>,
    /// Heard out of order.
    waiting: BTreeMap<usize, Heard>,
    next: usize,
    heard: usize,
    error: Option<Error>,
    end: Option<(usize, Read)>,
}

/// Joins what was heard; gives what is to be told.
fn take(event: Happened, open: &mut BTreeMap<usize, Open>) -> Option<Listening> {
    let new = || Open {
        joiner: Joiner::new(""),
        cues: Vec::new(),
        waiting: BTreeMap::new(),
        next: 0,
        heard: 0,
        error: None,
        end: None,
    };
    let source = match event {
        Happened::Told(told) => return Some(told),
        Happened::Heard { source, number, heard } => {
            let state = open.entry(source).or_insert_with(new);
            state.heard += 1;
            match heard {
                Ok(heard) => _ = state.waiting.insert(number, heard),
                Err(error) => _ = state.error.get_or_insert(error),
            }
            while let Some(heard) = state.waiting.remove(&state.next) {
                state.next += 1;
                state.joiner.push(heard, &mut state.cues);
            }
            source
        }
        Happened::Read { source, windows, read, error } => {
            let state = open.entry(source).or_insert_with(new);
            if let Some(error) = error {
                state.error.get_or_insert(error);
            }
            state.end = Some((windows, read));
            source
        }
    };
    let is_over = |state: &Open| state.end.as_ref().is_some_and(|(all, _)| *all == state.heard);
    if !open.get(&source).is_some_and(is_over) {
        return None;
    }
    let mut state = open.remove(&source)?;
    // Behind a window that could not be read.
    for heard in std::mem::take(&mut state.waiting).into_values() {
        state.joiner.push(heard, &mut state.cues);
    }
    state.joiner.finish(&mut state.cues);
    let (_, read) = state.end?;
    for cue in &mut state.cues {
        cue.track.clone_from(&read.track);
    }
    let transcript = Transcript {
        cues: state.cues,
        language: read.language,
        length: read.length,
        notices: read.notices,
        error: state.error,
    };
    Some(Listening::Finished { source, transcript })
}

/// What is known of a source when all of it has been read.
#[derive(Debug, Default)]
struct Read {
    /// `speech:1`: the sound track's number.
    track: String,
    language: Option<(String, f32)>,
    length: Micros,
    notices: Vec<String>,
}

struct SourceReader<'a> {
    ear: Ear,
    models: &'a Models,
    /// The one that all sources are in.
    language: Option<String>,
    jobs: Sender<Job>,
    out: Sender<Happened>,
    cancel: &'a Cancel,
}

impl SourceReader<'_> {
    fn read_all(&mut self, locations: &[Location]) {
        let mut host = None;
        for (source, location) in locations.iter().enumerate() {
            if self.cancel.is_cancelled() {
                return;
            }
            let mut windows = Windows::default();
            let mut read = Read::default();
            let result = self.read(source, location, &mut host, &mut windows, &mut read);
            let rest = self.end(source, &mut windows, &mut read);
            let error = result.and(rest).err().map(|error| error.in_source(location));
            let event = Happened::Read { source, windows: windows.given, read, error };
            if self.out.send(event).is_err() {
                return;
            }
        }
    }

    fn read(
        &mut self,
        source: usize,
        location: &Location,
        host: &mut Option<Host>,
        windows: &mut Windows,
        read: &mut Read,
    ) -> Result<()> {
        let input = Input::open(location)?;
        let host = match host {
            Some(host) => host,
            none => none.insert(Host::start_until(&Limits::default(), self.cancel.flag())?),
        };
        let info = host.probe(&input)?;
        let Some(track) = info.sound else {
            let what = if info.of_kind(TrackKind::Sound).next().is_some() { "usable " } else { "" };
            return Err(Error::unsupported(format!("it has no {what}sound track")));
        };
        read.track = format!("speech:{track}");
        self.tell(Listening::Opened { source, length: info.duration })?;
        let request = SoundRequest { track: Some(track), start: Timestamp::ZERO, end: None };
        let mut told = Timestamp::ZERO;
        for event in host.sound(&input, &request)? {
            if self.cancel.is_cancelled() {
                return Err(Error::cancelled());
            }
            match event? {
                SoundEvent::Samples { pts, samples } => {
                    self.ear.hear(pts, &samples, &mut windows.fresh)?;
                    let length = Micros(samples.len() as i64 * 1_000 / 16);
                    read.length = Micros(read.length.0.saturating_add(length.0));
                }
                SoundEvent::Gap(gap) => {
                    self.ear.pause(&mut windows.fresh)?;
                    let length = gap.span.length().as_secs_f64();
                    let notice =
                        format!("{} from {} on, for {length:.1} s", gap.reason, gap.span.start);
                    windows.notice(notice, &mut read.notices);
                }
                SoundEvent::Watermark(at) => {
                    if at - told >= Micros::from_millis(1_000) {
                        self.tell(Listening::Advanced { source, by: at - told })?;
                        told = at;
                    }
                }
                SoundEvent::Notice(notice) => windows.notice(notice, &mut read.notices),
                SoundEvent::End(summary) => {
                    if summary.corrupt_packets > 0 {
                        let notice =
                            format!("{} corrupt packets of sound", summary.corrupt_packets);
                        windows.notice(notice, &mut read.notices);
                    }
                }
            }
            self.give(source, windows, read, false)?;
        }
        Ok(())
    }

    /// Gives out the rest of a source, however it ended.
    fn end(&mut self, source: usize, windows: &mut Windows, read: &mut Read) -> Result<()> {
        self.ear.pause(&mut windows.fresh)?;
        self.give(source, windows, read, true)
    }

    /// Gives out windows as soon as their language is known.
    fn give(
        &mut self,
        source: usize,
        windows: &mut Windows,
        read: &mut Read,
        is_end: bool,
    ) -> Result<()> {
        windows.held.extend(windows.fresh.drain(..));
        let language = match (&read.language, &self.language) {
            (Some((language, _)), _) => language.clone(),
            (None, Some(language)) => {
                read.language = (!windows.held.is_empty()).then(|| (language.clone(), 1.0));
                language.clone()
            }
            (None, None) => {
                let held = windows.held.make_contiguous();
                if held.is_empty() || !(is_end || is_telling(held)) {
                    return Ok(());
                }
                let found = self.models.language(held)?;
                read.language = Some(found.clone());
                found.0
            }
        };
        for window in windows.held.drain(..) {
            let is_certain = self.language.is_some();
            let (number, language) = (windows.given, language.clone());
            let job = Job { source, number, window, language, is_certain };
            self.jobs.send(job).map_err(|_| gone())?;
            windows.given += 1;
        }
        Ok(())
    }

    fn tell(&self, what: Listening) -> Result<()> {
        self.out.send(Happened::Told(what)).map_err(|_| gone())
    }
}

fn gone() -> Error {
    Error::new(Kind::Cancelled, "nobody waits for what is heard")
}

/// The windows of a source.
#[derive(Default)]
struct Windows {
    fresh: Vec<Window>,
    /// Until their language is known.
    held: VecDeque<Window>,
    given: usize,
    notices: usize,
}

impl Windows {
    /// Damage may be everywhere: only the first notices are kept.
    fn notice(&mut self, notice: String, notices: &mut Vec<String>) {
        const MOST: usize = 20;
        self.notices += 1;
        match self.notices.cmp(&MOST) {
            std::cmp::Ordering::Less => notices.push(notice),
            std::cmp::Ordering::Equal => notices.push("and more of that kind".to_owned()),
            std::cmp::Ordering::Greater => {}
        }
    }
}

/// Whether the first windows have speech enough to tell its language.
fn is_telling(windows: &[Window]) -> bool {
    const ENOUGH: Micros = Micros::from_millis(12_000);
    const MOST_WINDOWS: usize = 3;
    let speech: i64 =
        windows.iter().flat_map(|window| &window.speech).map(|part| part.length().0).sum();
    windows.len() >= MOST_WINDOWS || speech >= ENOUGH.0
}
