//! Cutting the sound of sources into windows, as it is read.

use std::collections::VecDeque;

use crossbeam_channel::Sender;

use super::listening::{Ending, Happened, Job, Sound, Understood};
use crate::error::{Error, Kind, Result};
use crate::graph::Cancel;
use crate::media::Gap;
use crate::source::{Host, Limits, SoundEvent, SoundRequest, Spent};
use crate::speech::{Ear, Joiner, Models, Stretch, Window};
use crate::time::{Micros, Timestamp};

/// Cuts the sound of sources into windows, one source after the other.
pub(super) struct Reader<'a> {
    pub ear: Ear,
    pub models: &'a Models,
    /// The one that all sources are in.
    pub language: Option<String>,
    pub jobs: Sender<Job>,
    pub out: Sender<(usize, Happened)>,
    pub cancel: &'a Cancel,
}

/// The source that is being read.
pub(super) struct Reading {
    source: usize,
    is_live: bool,
    from: Timestamp,
    /// Up to where it was read.
    reached: Timestamp,
    fresh: Vec<Stretch>,
    /// Until the language is known: with how much of the sound is in each and in none before.
    held: VecDeque<(Stretch, Micros)>,
    /// All sound that is in windows, and where the last one ends.
    in_windows: Micros,
    windows_to: Timestamp,
    given: usize,
    noticed: usize,
    ending: Ending,
}

impl Reader<'_> {
    pub fn read_all(
        &mut self,
        mut next: impl FnMut(&mut Option<Host>) -> Option<(usize, Result<Sound>)>,
    ) {
        let mut host = None;
        while !self.cancel.is_cancelled() {
            let Some((source, sound)) = next(&mut host) else { return };
            let from = sound.as_ref().map_or(Timestamp::ZERO, |sound| sound.from);
            let mut reading = Reading::new(source, from, false);
            let result = sound.and_then(|sound| {
                let read = self.read(&sound, &mut host, &mut reading);
                let rest = self.finish(&mut reading);
                read.and(rest).map_err(|error| error.in_source(sound.input.name()))
            });
            reading.ending.error = result.err();
            reading.ending.spent = host.as_mut().map(Host::take_spent).unwrap_or_default();
            if self.end(reading).is_err() {
                return;
            }
        }
    }

    /// Begins with the sound of a live stream's connection, of which nothing before `from` comes.
    pub fn begin_live(&mut self, source: usize, from: Timestamp) -> Result<Reading> {
        let joiner = Joiner::new("speech:live", from);
        self.tell(source, Happened::Begun { joiner, is_live: true })?;
        self.ear.reset();
        Ok(Reading::new(source, from, true))
    }

    /// Takes samples of which the first is at `at`.
    pub fn hear(&mut self, reading: &mut Reading, at: Timestamp, samples: &[f32]) -> Result<()> {
        self.ear.hear(at, samples, &mut reading.fresh)?;
        let length = length(samples);
        reading.ending.length = Micros(reading.ending.length.0.saturating_add(length.0));
        reading.ending.at = reading.ending.at.max(at + length);
        self.give(reading, false)
    }

    /// There is no sound for a while.
    pub fn pass(&mut self, reading: &mut Reading, gap: Gap) -> Result<()> {
        self.ear.pause(&mut reading.fresh)?;
        reading.ending.at = reading.ending.at.max(gap.span.end);
        self.give(reading, false)?;
        self.tell(reading.source, Happened::Gap(gap))
    }

    /// No sound has come up to this instant, and it may be that none will: what was said is not kept back for
    /// it any longer.
    pub fn wait(&mut self, reading: &mut Reading, until: Timestamp) -> Result<()> {
        self.ear.pause(&mut reading.fresh)?;
        if until > reading.ending.at {
            reading.fresh.push(Stretch::Silence(until));
        }
        self.give(reading, false)
    }

    /// How much of what was taken is in no window, and will be in none.
    pub fn without_speech(&self, reading: &Reading) -> Micros {
        let open = self.ear.end() - self.ear.kept_from().max(reading.windows_to);
        let settled = reading.ending.length.0.saturating_sub(open.0.max(0));
        Micros(settled.saturating_sub(reading.in_windows.0))
    }

    /// The last that is told of a source.
    pub fn end(&self, reading: Reading) -> Result<()> {
        let Reading { source, given, ending, .. } = reading;
        self.tell(source, Happened::Read { given, ending })
    }

    fn tell(&self, source: usize, happened: Happened) -> Result<()> {
        self.out.send((source, happened)).map_err(|_| gone())
    }

    fn read(
        &mut self,
        sound: &Sound,
        host: &mut Option<Host>,
        reading: &mut Reading,
    ) -> Result<()> {
        let host = started(host, self.cancel)?;
        let joiner = Joiner::new(format!("speech:{}", sound.track), sound.from);
        self.tell(reading.source, Happened::Begun { joiner, is_live: false })?;
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
            match event? {
                SoundEvent::Samples { pts, samples } => {
                    let end = pts + length(&samples);
                    if end <= reading.reached {
                        continue;
                    }
                    reading.reached = end;
                    self.hear(reading, pts, &samples)?;
                }
                SoundEvent::Gap(gap) if gap.span.end <= reading.reached => {}
                SoundEvent::Gap(gap) => {
                    reading.reached = gap.span.end;
                    if gap.span.start >= sound.from {
                        self.pass(reading, gap)?;
                    } else {
                        self.ear.pause(&mut reading.fresh)?;
                        self.give(reading, false)?;
                    }
                }
                SoundEvent::Watermark(at) => {
                    if at - told >= Micros::from_millis(1_000) {
                        self.tell(reading.source, Happened::Advanced(at - told))?;
                        told = at;
                    }
                }
                SoundEvent::Received(_) => {}
                SoundEvent::Notice(notice) => reading.notice(notice),
                SoundEvent::End(summary) => {
                    if summary.corrupt_packets > 0 {
                        let count = summary.corrupt_packets;
                        reading.notice(format!("{count} corrupt packets of sound"));
                    }
                }
            }
        }
        Ok(())
    }

    /// Gives out the rest of a source, however it ended.
    pub fn finish(&mut self, reading: &mut Reading) -> Result<()> {
        self.ear.pause(&mut reading.fresh)?;
        self.give(reading, true)
    }

    /// Gives out windows as soon as their language is known.
    fn give(&mut self, reading: &mut Reading, is_end: bool) -> Result<()> {
        for stretch in reading.fresh.drain(..) {
            let mut fresh = Micros::ZERO;
            if let Stretch::Speech(window) = &stretch {
                // The last chunk of a window may have been filled up with silence.
                let end = window.span().end.min(self.ear.end());
                fresh = (end - window.start.max(reading.windows_to)).max(Micros::ZERO);
                reading.windows_to = reading.windows_to.max(end);
                reading.in_windows = Micros(reading.in_windows.0.saturating_add(fresh.0));
            }
            reading.held.push_back((stretch, fresh));
        }
        let Some(language) = self.language_of(reading, is_end)? else {
            // Silence before the first word needs no language.
            while let Some((Stretch::Silence(until), _)) = reading.held.front() {
                let until = *until;
                reading.held.pop_front();
                self.give_silence(reading, until)?;
            }
            return Ok(());
        };
        while let Some((stretch, fresh)) = reading.held.pop_front() {
            match stretch {
                Stretch::Silence(until) => self.give_silence(reading, until)?,
                // Heard before, and listened to again for the language.
                Stretch::Speech(window) if window.start < reading.from => {}
                Stretch::Speech(window) => {
                    let (source, number) = (reading.source, reading.given);
                    let (language, is_certain) = (language.clone(), self.language.is_some());
                    let is_live = reading.is_live;
                    let job = Job { source, number, window, fresh, language, is_certain, is_live };
                    self.jobs.send(job).map_err(|_| gone())?;
                    reading.given += 1;
                }
            }
        }
        Ok(())
    }

    fn give_silence(&self, reading: &mut Reading, until: Timestamp) -> Result<()> {
        if until > reading.from {
            let (number, what) = (reading.given, Ok(Understood::Silence(until)));
            let silence = Happened::Understood { number, fresh: Micros::ZERO, what };
            self.tell(reading.source, silence)?;
            reading.given += 1;
        }
        Ok(())
    }

    /// The language of a source, once the windows that are held tell it.
    fn language_of(&mut self, reading: &mut Reading, is_end: bool) -> Result<Option<String>> {
        if let Some((language, _)) = &reading.ending.language {
            return Ok(Some(language.clone()));
        }
        let held = reading.held.iter().map(|(stretch, _)| stretch);
        let windows: Vec<&Window> = held.filter_map(window_of).collect();
        let last = reading.held.back().map(|(stretch, _)| stretch);
        if windows.is_empty() {
            return Ok(None);
        }
        let found = match &self.language {
            Some(language) => (language.clone(), 1.0),
            None if is_end || is_telling(&windows, last) => self.models.language(&windows)?,
            None => return Ok(None),
        };
        reading.ending.language = Some(found.clone());
        self.ear.skip_to(reading.from);
        Ok(Some(found.0))
    }
}

impl Reading {
    fn new(source: usize, from: Timestamp, is_live: bool) -> Reading {
        Reading {
            source,
            is_live,
            from,
            reached: Timestamp(i64::MIN),
            fresh: Vec::new(),
            held: VecDeque::new(),
            in_windows: Micros::ZERO,
            windows_to: Timestamp(i64::MIN),
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

    /// Why it ends early, if it does.
    pub fn fail(&mut self, error: Option<Error>) {
        self.ending.error = error;
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

/// How long these samples last.
pub(super) fn length(samples: &[f32]) -> Micros {
    Micros(samples.len() as i64 * 1_000 / 16)
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
