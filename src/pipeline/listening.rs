//! Sound in, cues out, in order and from pause to pause.
//!
//! One thread reads the sources one after the other and cuts their sound into windows; as many threads
//! as there is room for read the windows; what they heard is joined in order here.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::ears::Ears;
use crate::error::{Error, Kind, Result};
use crate::graph::{Cancel, StageStats};
use crate::media::{Cue, Gap};
use crate::source::{Host, Input, Limits, SoundEvent, SoundRequest, Spent};
use crate::speech::{Ear, Heard, Joiner, Listener, Models, Stretch, Window};
use crate::time::{Micros, Timestamp};

/// Sound that is to be listened to.
#[derive(Debug)]
pub(super) struct Sound {
    pub input: Arc<Input>,
    pub track: u32,
    /// What is before has been heard: zero, or an instant that [`Told::Settled`] gave.
    pub from: Timestamp,
}

/// What comes of a source's sound.
#[derive(Debug)]
pub(super) enum Told {
    /// So much more of it has been read.
    Advanced(Micros),
    /// Everything before `at` since the last time. Whoever begins there hears the rest as it is heard now.
    Settled { at: Timestamp, cues: Vec<Cue>, gaps: Vec<Gap> },
    /// The last thing that is told.
    Ended(Ending),
}

/// How listening to a source ended.
#[derive(Debug)]
pub(super) struct Ending {
    /// Where the sound ends, or what was heard of it.
    pub at: Timestamp,
    /// Since the last [`Told::Settled`].
    pub cues: Vec<Cue>,
    pub gaps: Vec<Gap>,
    /// Whisper's code, with how sure that is; `None` where nobody speaks.
    pub language: Option<(String, f32)>,
    /// How much sound there was.
    pub length: Micros,
    /// What was noticed and is no failure.
    pub notices: Vec<String>,
    /// Why it ends early, if it does.
    pub error: Option<Error>,
    /// What the decoder host took.
    pub spent: Spent,
}

enum Happened {
    /// The first thing, where the sound could be opened.
    Begun(Joiner),
    Advanced(Micros),
    Gap(Gap),
    /// Numbered, since windows are understood in another order than they have.
    Understood(usize, Result<Understood>),
    /// All of a source has been given out.
    Read {
        given: usize,
        ending: Ending,
    },
}

enum Understood {
    Heard(Heard),
    Silence(Timestamp),
}

struct Job {
    source: usize,
    number: usize,
    window: Window,
    language: String,
    /// The user has said so.
    is_certain: bool,
}

/// How the work is done; nothing here changes results.
pub(super) struct How<'a> {
    pub threads: usize,
    pub cancel: &'a Cancel,
    pub stats: &'a StageStats,
}

/// Listens to what `next` gives, until that is nothing, one source after the other by the numbers that come
/// with them; `tell` hears of each step on the calling thread. After the cancellation, what is under way
/// ends where it is. `next` may use the decoder host that will read the sound.
///
/// # Errors
/// What `tell` returns; nothing more is begun then.
pub(super) fn listen(
    next: impl FnMut(&mut Option<Host>) -> Option<(usize, Result<Sound>)> + Send,
    ears: Ears,
    how: &How<'_>,
    tell: &mut dyn FnMut(usize, Told) -> Result<()>,
) -> Result<()> {
    let Ears { voice, models, language } = ears;
    // A window waits for each thread, so that none waits for the decoder.
    let (jobs, work) = bounded::<Job>(how.threads);
    let (out, happened) = bounded::<(usize, Happened)>(2 * how.threads);
    std::thread::scope(|scope| {
        for _ in 0..how.threads {
            let (work, out, models) = (work.clone(), out.clone(), models.clone());
            scope.spawn(move || read_windows(&work, &out, Listener::new(models), how.stats));
        }
        drop(work);
        let models = &models;
        scope.spawn(move || {
            let ear = Ear::new(voice);
            let mut reader = Reader { ear, models, language, jobs, out, cancel: how.cancel };
            reader.read_all(next);
        });
        let mut result = Ok(());
        let mut open: BTreeMap<usize, Open> = BTreeMap::new();
        for (source, event) in &happened {
            let mut told = Vec::new();
            open.entry(source).or_insert_with(Open::new).take(event, &mut told);
            if matches!(told.last(), Some(Told::Ended(_))) {
                open.remove(&source);
            }
            for told in told {
                if result.is_ok() {
                    result = tell(source, told);
                    if result.is_err() {
                        how.cancel.cancel();
                    }
                }
            }
        }
        result
    })
}

fn read_windows(
    work: &Receiver<Job>,
    out: &Sender<(usize, Happened)>,
    listener: Listener,
    stats: &StageStats,
) {
    let _counted = stats.on_thread();
    while let Ok(Job { source, number, window, language, is_certain }) =
        stats.starved(|| work.recv())
    {
        let heard = stats.busy(|| listener.hear(&window, &language, is_certain));
        stats.count_items(1);
        let event = Happened::Understood(number, heard.map(Understood::Heard));
        if out.send((source, event)).is_err() {
            return;
        }
    }
}

/// A source whose windows are under way.
struct Open {
    joiner: Joiner,
    cues: Vec<Cue>,
    gaps: Vec<Gap>,
    /// Heard out of order.
    waiting: BTreeMap<usize, Understood>,
    next: usize,
    understood: usize,
    error: Option<Error>,
    end: Option<(usize, Ending)>,
}

impl Open {
    fn new() -> Open {
        Open {
            joiner: Joiner::new("", Timestamp::ZERO),
            cues: Vec::new(),
            gaps: Vec::new(),
            waiting: BTreeMap::new(),
            next: 0,
            understood: 0,
            error: None,
            end: None,
        }
    }

    /// Joins what was understood; adds what is to be told.
    fn take(&mut self, event: Happened, told: &mut Vec<Told>) {
        match event {
            Happened::Begun(joiner) => return self.joiner = joiner,
            Happened::Advanced(by) => return told.push(Told::Advanced(by)),
            Happened::Gap(gap) => return self.gaps.push(gap),
            Happened::Understood(number, understood) => {
                self.understood += 1;
                match understood {
                    Ok(understood) => _ = self.waiting.insert(number, understood),
                    Err(error) => _ = self.error.get_or_insert(error),
                }
                while let Some(understood) = self.waiting.remove(&self.next) {
                    self.next += 1;
                    self.join(understood, told);
                }
            }
            Happened::Read { given, ending } => self.end = Some((given, ending)),
        }
        if self.end.as_ref().is_some_and(|(given, _)| *given == self.understood)
            && let Some((_, mut ending)) = self.end.take()
        {
            // Behind a window that could not be read.
            for understood in std::mem::take(&mut self.waiting).into_values() {
                self.join(understood, told);
            }
            self.joiner.finish(&mut self.cues);
            ending.cues = std::mem::take(&mut self.cues);
            ending.gaps = std::mem::take(&mut self.gaps);
            ending.error = ending.error.or_else(|| self.error.take());
            told.push(Told::Ended(ending));
        }
    }

    fn join(&mut self, understood: Understood, told: &mut Vec<Told>) {
        match understood {
            Understood::Heard(heard) => {
                if let Some(at) = self.joiner.part(&heard, &mut self.cues) {
                    self.settle(at, told);
                }
                self.joiner.push(heard, &mut self.cues);
            }
            Understood::Silence(until) => {
                self.joiner.silence(until, &mut self.cues);
                self.settle(until, told);
            }
        }
    }

    fn settle(&mut self, at: Timestamp, told: &mut Vec<Told>) {
        let mut cues = std::mem::take(&mut self.cues);
        for cue in &mut cues {
            // A last word without any length.
            cue.span.start = cue.span.start.min(at - Micros(1));
        }
        let (gaps, later) =
            std::mem::take(&mut self.gaps).into_iter().partition(|gap: &Gap| gap.span.start < at);
        self.gaps = later;
        told.push(Told::Settled { at, cues, gaps });
    }
}

/// Cuts the sound of sources into windows, one source after the other.
struct Reader<'a> {
    ear: Ear,
    models: &'a Models,
    /// The one that all sources are in.
    language: Option<String>,
    jobs: Sender<Job>,
    out: Sender<(usize, Happened)>,
    cancel: &'a Cancel,
}

/// The source that is being read.
struct Reading {
    source: usize,
    from: Timestamp,
    /// Up to where it was read.
    reached: Timestamp,
    fresh: Vec<Stretch>,
    /// Until the language is known.
    held: VecDeque<Stretch>,
    given: usize,
    noticed: usize,
    ending: Ending,
}

impl Reader<'_> {
    fn read_all(
        &mut self,
        mut next: impl FnMut(&mut Option<Host>) -> Option<(usize, Result<Sound>)>,
    ) {
        let mut host = None;
        while !self.cancel.is_cancelled() {
            let Some((source, sound)) = next(&mut host) else { return };
            let mut reading = Reading::new(source, &sound);
            let result = sound.and_then(|sound| {
                let read = self.read(&sound, &mut host, &mut reading);
                let rest = self.finish(&mut reading);
                read.and(rest).map_err(|error| error.in_source(sound.input.name()))
            });
            reading.ending.error = result.err();
            reading.ending.spent = host.as_mut().map(Host::take_spent).unwrap_or_default();
            let Reading { source, given, ending, .. } = reading;
            if self.out.send((source, Happened::Read { given, ending })).is_err() {
                return;
            }
        }
    }

    fn read(
        &mut self,
        sound: &Sound,
        host: &mut Option<Host>,
        reading: &mut Reading,
    ) -> Result<()> {
        let host = started(host, self.cancel)?;
        let joiner = Joiner::new(format!("speech:{}", sound.track), sound.from);
        self.out.send((reading.source, Happened::Begun(joiner))).map_err(|_| gone())?;
        self.ear.reset();
        if self.language.is_some() {
            self.ear.skip_to(sound.from);
        }
        let is_odd = |error: &Error| {
            matches!(error.kind(), Kind::Corrupt | Kind::Exhausted | Kind::Internal)
        };
        match self.decode(sound, host, reading) {
            // What was wrong with a host that died or hung may not have been the source.
            Err(error) if is_odd(&error) => self.decode(sound, host, reading),
            result => result,
        }
    }

    /// Reads the sound, and passes over what was read before.
    fn decode(&mut self, sound: &Sound, host: &mut Host, reading: &mut Reading) -> Result<()> {
        // From the start, whatever is known already: to enter a file in its middle gives samples that
        // differ a little, and a run that was cut off has to give the same words.
        let request = SoundRequest { track: Some(sound.track), start: Timestamp::ZERO, end: None };
        let mut told = sound.from.max(reading.reached);
        for event in host.sound(&sound.input, &request)? {
            if self.cancel.is_cancelled() {
                return Err(Error::cancelled());
            }
            let fresh = &mut reading.fresh;
            match event? {
                SoundEvent::Samples { pts, samples } => {
                    let length = Micros(samples.len() as i64 * 1_000 / 16);
                    if pts + length <= reading.reached {
                        continue;
                    }
                    reading.reached = pts + length;
                    self.ear.hear(pts, &samples, fresh)?;
                    let all = &mut reading.ending.length;
                    *all = Micros(all.0.saturating_add(length.0));
                    reading.ending.at = reading.ending.at.max(pts + length);
                }
                SoundEvent::Gap(gap) if gap.span.end <= reading.reached => {}
                SoundEvent::Gap(gap) => {
                    reading.reached = gap.span.end;
                    self.ear.pause(fresh)?;
                    reading.ending.at = reading.ending.at.max(gap.span.end);
                    if gap.span.start >= sound.from {
                        self.out.send((reading.source, Happened::Gap(gap))).map_err(|_| gone())?;
                    }
                }
                SoundEvent::Watermark(at) => {
                    if at - told >= Micros::from_millis(1_000) {
                        let event = Happened::Advanced(at - told);
                        self.out.send((reading.source, event)).map_err(|_| gone())?;
                        told = at;
                    }
                }
                SoundEvent::Notice(notice) => reading.notice(notice),
                SoundEvent::End(summary) => {
                    if summary.corrupt_packets > 0 {
                        let count = summary.corrupt_packets;
                        reading.notice(format!("{count} corrupt packets of sound"));
                    }
                }
            }
            self.give(reading, false)?;
        }
        Ok(())
    }

    /// Gives out the rest of a source, however it ended.
    fn finish(&mut self, reading: &mut Reading) -> Result<()> {
        self.ear.pause(&mut reading.fresh)?;
        self.give(reading, true)
    }

    /// Gives out windows as soon as their language is known.
    fn give(&mut self, reading: &mut Reading, is_end: bool) -> Result<()> {
        reading.held.extend(reading.fresh.drain(..));
        let Some(language) = self.language_of(reading, is_end)? else {
            // Silence before the first word needs no language.
            while let Some(Stretch::Silence(until)) = reading.held.front() {
                let until = *until;
                reading.held.pop_front();
                self.give_silence(reading, until)?;
            }
            return Ok(());
        };
        while let Some(stretch) = reading.held.pop_front() {
            match stretch {
                Stretch::Silence(until) => self.give_silence(reading, until)?,
                // Heard before, and listened to again for the language.
                Stretch::Speech(window) if window.start < reading.from => {}
                Stretch::Speech(window) => {
                    let (source, number) = (reading.source, reading.given);
                    let (language, is_certain) = (language.clone(), self.language.is_some());
                    let job = Job { source, number, window, language, is_certain };
                    self.jobs.send(job).map_err(|_| gone())?;
                    reading.given += 1;
                }
            }
        }
        Ok(())
    }

    fn give_silence(&self, reading: &mut Reading, until: Timestamp) -> Result<()> {
        if until > reading.from {
            let silence = Happened::Understood(reading.given, Ok(Understood::Silence(until)));
            self.out.send((reading.source, silence)).map_err(|_| gone())?;
            reading.given += 1;
        }
        Ok(())
    }

    /// The language of a source, once the windows that are held tell it.
    fn language_of(&mut self, reading: &mut Reading, is_end: bool) -> Result<Option<String>> {
        if let Some((language, _)) = &reading.ending.language {
            return Ok(Some(language.clone()));
        }
        let windows: Vec<&Window> = reading.held.iter().filter_map(window_of).collect();
        if windows.is_empty() {
            return Ok(None);
        }
        let found = match &self.language {
            Some(language) => (language.clone(), 1.0),
            None if is_end || is_telling(&windows, reading.held.back()) => {
                self.models.language(&windows)?
            }
            None => return Ok(None),
        };
        reading.ending.language = Some(found.clone());
        self.ear.skip_to(reading.from);
        Ok(Some(found.0))
    }
}

impl Reading {
    fn new(source: usize, sound: &Result<Sound>) -> Reading {
        let from = sound.as_ref().map_or(Timestamp::ZERO, |sound| sound.from);
        Reading {
            source,
            from,
            reached: Timestamp(i64::MIN),
            fresh: Vec::new(),
            held: VecDeque::new(),
            given: 0,
            noticed: 0,
            ending: Ending {
                at: from,
                cues: Vec::new(),
                gaps: Vec::new(),
                language: None,
                length: Micros::ZERO,
                notices: Vec::new(),
                error: None,
                spent: Spent::default(),
            },
        }
    }

    /// Damage may be everywhere: only the first notices are kept.
    fn notice(&mut self, notice: String) {
        const MOST: usize = 20;
        self.noticed += 1;
        match self.noticed.cmp(&MOST) {
            std::cmp::Ordering::Less => self.ending.notices.push(notice),
            std::cmp::Ordering::Equal => {
                self.ending.notices.push("and more of that kind".to_owned());
            }
            std::cmp::Ordering::Greater => {}
        }
    }
}

/// The decoder host, which is started where there is something to decode.
pub(super) fn started<'a>(host: &'a mut Option<Host>, cancel: &Cancel) -> Result<&'a mut Host> {
    match host {
        Some(host) => Ok(host),
        none => Ok(none.insert(Host::start_until(&Limits::default(), cancel.flag())?)),
    }
}

fn gone() -> Error {
    Error::new(Kind::Cancelled, "nobody waits for what is heard")
}

fn window_of(stretch: &Stretch) -> Option<&Window> {
    match stretch {
        Stretch::Speech(window) => Some(window),
        Stretch::Silence(_) => None,
    }
}

/// Whether the first windows have speech enough to tell its language, or no more comes for long.
fn is_telling(windows: &[&Window], last: Option<&Stretch>) -> bool {
    const ENOUGH: Micros = Micros::from_millis(12_000);
    const MOST_WINDOWS: usize = 3;
    let speech: i64 =
        windows.iter().flat_map(|window| &window.speech).map(|part| part.length().0).sum();
    let is_quiet = matches!(last, Some(Stretch::Silence(_)));
    is_quiet || windows.len() >= MOST_WINDOWS || speech >= ENOUGH.0
}
