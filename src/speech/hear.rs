//! Reading a window: what was said in it, and when, or nothing.

use std::sync::Arc;

use super::judge::{Written, is_loop};
use super::whisper::{How, Reader, Whisper};
use super::window::{Window, length};
use super::words::{Word, drop_squeezed, fit, words};
use crate::error::{Error, Result};
use crate::time::{Micros, Span, Timestamp};
use crate::transcript;

/// A window with its words.
#[derive(Debug, Clone, PartialEq)]
pub struct Heard {
    pub span: Span,
    pub seam: Option<Timestamp>,
    /// In order; none reaches into the next.
    pub words: Vec<Word>,
    /// Whisper's code.
    pub language: String,
    /// As the window's.
    pub fresh: Option<Timestamp>,
}

/// Beginnings that are followed at a time, as in Whisper's own program.
const BEAMS: u8 = 5;
/// Whisper may end before the speech does: the rest is read by itself, so many times at most.
const MOST_PASSES: usize = 6;
/// Speech without words that makes a rest worth reading.
const LEAST_REST: Micros = Micros::from_millis(900);
/// Speech that makes a sentence worth reading that Whisper has begun and not written.
const LEAST_BEGUN: Micros = Micros::from_millis(200);
/// Below this log-probability words may be those of another language: read as English, German and French
/// have -0.8 to -1.3, English itself -0.1 to -0.3.
const STRANGE: f32 = -0.65;
/// Of less speech the language is not asked for again.
const LEAST_STRANGE: Micros = Micros::from_millis(2_500);
/// A sneeze or a bark may pass for speech of less than a second; what is read in it has a log-probability
/// of -0.9 to -1.5.
const BRIEF: Micros = Micros::from_millis(1_000);
const BRIEF_GUESS: f32 = -0.75;
/// What is read in sound of so little depends on what the network gets for the rest of its 30 s: a model of English gets
/// what faster-whisper gives it, for 0.6 s more of a processor. The others gain nothing, nor does brief speech.
const LITTLE: Micros = Micros::from_millis(3_000);
/// The probability of another language that is believed.
const SURE: f32 = 0.7;
/// Words begin this much before their sound at times.
const SLACK: Micros = Micros::from_millis(300);

/// The models that listen: the first that reads a language is taken for it.
#[derive(Debug, Clone)]
pub struct Models(Vec<Arc<Whisper>>);

impl Models {
    pub fn new(models: Vec<Whisper>) -> Models {
        Models(models.into_iter().map(Arc::new).collect())
    }

    /// Loads all networks, which otherwise are loaded when one is read with.
    ///
    /// # Errors
    /// `Unavailable` where a file is not what it was, or there is no room for it.
    #[cfg(feature = "live")]
    pub fn load(&self) -> Result<()> {
        self.0.iter().try_for_each(|model| model.network().map(|_| ()))
    }

    /// Those whose network is in memory.
    #[cfg(test)]
    pub(crate) fn loaded(&self) -> Vec<&str> {
        let loaded = self.0.iter().filter(|model| model.is_loaded());
        loaded.map(|model| model.id.as_str()).collect()
    }

    /// # Errors
    /// `Unsupported` where none reads it.
    fn for_language(&self, language: &str) -> Result<usize> {
        self.0.iter().position(|model| model.reads(language)).ok_or_else(|| {
            Error::unsupported(format!(
                "no speech model that is used reads the language {language}"
            ))
        })
    }

    /// Whether some model reads a language.
    pub fn read(&self, language: &str) -> bool {
        self.for_language(language).is_ok()
    }

    /// The one language that can be meant; `None` where sound has to tell.
    pub fn only_language(&self) -> Option<&'static str> {
        (!self.0.iter().any(|model| model.is_multilingual())).then_some("en")
    }

    /// Which language is spoken in these windows, as Whisper's code, with its probability; only those
    /// that a model reads count. Each window counts by the speech in it.
    ///
    /// # Errors
    /// `Unsupported` where no model knows more than one.
    pub fn language(&self, windows: &[&Window]) -> Result<(String, f32)> {
        let teller = self.0.iter().find(|model| model.is_multilingual());
        let teller = teller.ok_or_else(|| Error::unsupported("no speech model tells languages"))?;
        let mut sums: Vec<(&'static str, f64)> = Vec::new();
        let mut total = 0.0;
        for window in windows {
            let weight = speech_after(window, window.start).as_secs_f64();
            total += weight;
            for (language, likely) in teller.reader()?.languages(&window.samples)? {
                let likely = f64::from(likely) * weight;
                match sums.iter_mut().find(|(known, _)| *known == language) {
                    Some((_, sum)) => *sum += likely,
                    None => sums.push((language, likely)),
                }
            }
        }
        let known = sums.into_iter().filter(|(language, _)| self.read(language));
        let (language, sum) = known
            .max_by(|(_, a), (_, b)| a.total_cmp(b))
            .ok_or_else(|| Error::unsupported("no speech model reads any language"))?;
        Ok((language.to_owned(), (sum / total.max(1e-9)) as f32))
    }

    /// The id of the model that reads a language.
    pub fn id(&self, language: &str) -> Result<&str> {
        Ok(&self.0[self.for_language(language)?].id)
    }
}

/// What one thread listens with.
#[derive(Debug)]
pub struct Listener {
    models: Models,
}

impl Listener {
    pub fn new(models: Models) -> Listener {
        Listener { models }
    }

    /// What is said in a window. The same window gives the same words, whatever was heard before. Where
    /// the `language` is not certain and the words make little sense in it, the window's own sound may
    /// tell another.
    pub fn hear(&self, window: &Window, language: &str, is_certain: bool) -> Result<Heard> {
        let (heard, likely) = self.hear_in(window, language)?;
        let is_strange = likely < STRANGE && speech_after(window, window.start) >= LEAST_STRANGE;
        if is_certain || !is_strange {
            return Ok(heard);
        }
        let (other, sure) = self.models.language(&[window])?;
        if other == language || sure < SURE {
            return Ok(heard);
        }
        let (again, more_likely) = self.hear_in(window, &other)?;
        Ok(if more_likely > likely { again } else { heard })
    }

    /// With the log-probability of the first words.
    fn hear_in(&self, window: &Window, language: &str) -> Result<(Heard, f32)> {
        let at = self.models.for_language(language)?;
        // Not the one of the window before: nothing of that one may have a consequence here.
        let mut reader = self.models.0[at].reader()?;
        let mut all: Vec<Word> = Vec::new();
        let mut likely = None;
        let mut from = window.start;
        for _ in 0..MOST_PASSES {
            let passed = (from - window.start).0.max(0) * 16 / 1_000;
            let samples = window.samples.get(usize::try_from(passed).unwrap_or(0)..).unwrap_or(&[]);
            let written = read_judged(&mut reader, samples, from, window, language)?;
            likely.get_or_insert(written.log_probability);
            let Some(last) = written.words.last() else { break };
            let heard_to = last.span.end;
            // Its sound was read, and says nothing.
            append(&mut all, written.words.into_iter().filter(|word| !is_loop(word)));
            let begun = written.open.filter(|open| speech_after(window, *open) >= LEAST_BEGUN);
            match begun.or_else(|| rest(window, heard_to)) {
                Some(next) if next > from + SLACK => from = next,
                _ => break,
            }
        }
        let (span, seam, fresh) = (window.span(), window.seam, window.fresh);
        let heard = Heard { span, seam, words: all, language: language.to_owned(), fresh };
        Ok((heard, likely.unwrap_or(0.0)))
    }
}

/// Where what is said after an instant is read from, if there is enough of it: where its speech begins.
fn rest(window: &Window, heard_to: Timestamp) -> Option<Timestamp> {
    let speech = window.speech.iter().find(|part| part.end > heard_to + SLACK)?;
    let next = (speech.start - Micros::from_millis(100)).max(heard_to);
    (speech_after(window, next) >= LEAST_REST).then_some(next)
}

/// Adds words that come later; times never go back.
fn append(all: &mut Vec<Word>, more: impl Iterator<Item = Word>) {
    for mut word in more {
        let before = all.last().map_or(word.span.start, |last| last.span.end);
        let start = word.span.start.max(before);
        word.span = Span::new(start, word.span.end.max(start));
        all.push(word);
    }
}

/// How long somebody speaks in a window after an instant.
fn speech_after(window: &Window, at: Timestamp) -> Micros {
    let parts = window.speech.iter().map(|part| (part.end - part.start.max(at)).0.max(0));
    Micros(parts.sum())
}

/// Reads; where that is doubted, reads in another way; and leaves out what is surely nothing.
fn read_judged(
    reader: &mut Reader<'_>,
    samples: &[f32],
    at: Timestamp,
    window: &Window,
    language: &str,
) -> Result<Written> {
    let is_brief = speech_after(window, at) < BRIEF;
    let whole = length(samples.len()) <= LITTLE && !is_brief && !reader.is_multilingual();
    let mut read = |how| -> Result<Written> {
        let reading = reader.read(samples, at, language, how)?;
        let log_probability = match reading.pieces.len() {
            0 => 0.0,
            count => {
                let sum: f32 = reading.pieces.iter().map(|piece| piece.log_probability).sum();
                sum / count as f32
            }
        };
        let speech: Vec<Span> =
            window.speech.iter().copied().filter(|part| part.end > at).collect();
        let first = speech.first().map_or(at, |part| part.start.max(at));
        let start = reading.start.unwrap_or(first).max(first);
        let sound_end = at + length(samples.len());
        let end = reading.open.map_or(sound_end, |open| open.min(sound_end));
        let mut found = words(&reading.pieces, start, language);
        let squeezed = drop_squeezed(&mut found);
        fit(&mut found, &speech);
        for word in &mut found {
            word.span = Span::new(word.span.start.min(end), word.span.end.min(end));
        }
        Ok(Written {
            words: found,
            log_probability,
            silence: reading.silence,
            open: reading.open,
            squeezed,
        })
    };
    let mut written = read(How { beams: BEAMS, times: true, whole })?;
    if written.is_doubted() {
        written = written.better(read(How { beams: 1, times: false, whole })?);
    }
    let mut written = written.without_loop();
    let texts: Vec<&str> = written.words.iter().map(|word| word.text.as_str()).collect();
    let is_guess = written.log_probability < BRIEF_GUESS && is_brief;
    // "(speaking in a foreign language)" is said by nobody.
    if written.is_refused() || is_guess || !transcript::is_spoken(&texts.join(" ")) {
        written.words.clear();
    }
    Ok(written)
}
