//! Whisper, as whisper.cpp runs it. Nothing else names it.

use std::fmt;
use std::path::PathBuf;

use once_cell::sync::OnceCell;
use whisper_rs::{
    DtwAhead, DtwMode, DtwParameters, FullParams, SamplingStrategy, WhisperContext,
    WhisperContextParameters, WhisperState,
};

use super::rules::{Rules, log_sum};
use super::search::{Beams, Likely, Token, search};
use super::spectrum::Spectrum;
use super::steer::{self, Decoder};
use super::words::Piece;
use crate::error::{Error, Result};
use crate::model::{Manifest, Models};
use crate::onnx::ggml::{self, ENGLISH_VOCABULARY, Sizes};
use crate::time::{Micros, Timestamp};

/// Samples of one position of the encoder.
const POSITION: usize = 320;
/// Positions behind the sound: with few, Whisper doesn't see that it ends, and writes it again.
const SPARE: usize = 256;
/// What is computed on is a multiple of it.
const STEP: usize = 64;
/// Nearly all that there are, for the longest window is of 28.8 s. whisper.cpp's fast products take a multiple of
/// 16: with 1,500 a window takes an eighth longer.
const MOST: usize = 1_488;
/// Pieces that are written for one window at most. Whisper stops at 219 by itself, and by its alignment
/// then ends the process where the window seems to be shorter than 0.15 s.
const MOST_PIECES: u8 = 200;
/// A beginning that is this much less likely than the best, one in 55, is given up.
const BEHIND: f32 = 4.0;
/// Memory that whisper.cpp may take for aligning: all pieces by all heads over 30 s take 41 MB, some
/// four times. Only what is used is taken.
const ALIGNING_BYTES: usize = 256 << 20;
const MOST_HEADS: usize = 32;
/// The decoder's attention leaves a piece this much after it was said: the median over GRID's sentences.
const LAG: Micros = Micros::from_millis(80);
/// Shorter sound is not read at all.
const LEAST_SAMPLES: usize = 4_000;

/// A model to read with. Its network is loaded when there is something to read: most sound has no speech.
pub struct Whisper {
    pub(super) id: String,
    path: PathBuf,
    /// By Whisper's codes; none: all that its network knows.
    languages: Vec<String>,
    sizes: Sizes,
    network: OnceCell<Network>,
    /// After the network, which keeps only where these lie, and looks there again for each reader.
    heads: Box<[DtwAhead]>,
}

/// The network of a model, in memory. Readers share it.
pub(super) struct Network {
    context: WhisperContext,
    rules: Rules,
    spectrum: Spectrum,
}

impl fmt::Debug for Whisper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Whisper").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Whisper {
    /// Makes sure that there is such a model and that it can be read.
    ///
    /// # Errors
    /// As [`Models::graph`]; `Corrupt` where the file is no Whisper that can be read; `InvalidInput` where the
    /// manifest has heads or languages that it does not.
    pub fn open(models: &Models, manifest: &Manifest) -> Result<Whisper> {
        let spec = manifest.speech()?;
        let path = models.graph(manifest)?;
        let sizes = ggml::check(&path)?;
        let wrong = |why| Error::invalid_input(format!("model {}: {why}", manifest.id));
        check_languages(&spec.languages, &sizes).map_err(wrong)?;
        let heads = heads(&spec.heads, &sizes).map_err(wrong)?.into_boxed_slice();
        // Otherwise whisper.cpp writes to the terminal whatever it does.
        whisper_rs::install_logging_hooks();
        Ok(Whisper {
            id: manifest.id.clone(),
            path,
            languages: spec.languages.clone(),
            sizes,
            network: OnceCell::new(),
            heads,
        })
    }

    /// Its network, which the first to ask loads.
    ///
    /// # Errors
    /// `Unavailable` where that is not possible any more: another run may do better.
    pub(super) fn network(&self) -> Result<&Network> {
        let cannot = || {
            let path = self.path.display();
            Error::unavailable(format!("model {} cannot be loaded from {path}", self.id))
        };
        self.network.get_or_try_init(|| {
            // It may be another file by now, and whisper.cpp believes every size.
            let sizes = ggml::check(&self.path).map_err(|cause| cannot().caused_by(cause))?;
            if sizes != self.sizes {
                return Err(cannot());
            }
            let mut parameters = WhisperContextParameters::new();
            parameters.dtw_parameters(DtwParameters {
                mode: DtwMode::Custom { aheads: &self.heads },
                dtw_mem_size: ALIGNING_BYTES,
            });
            let context = WhisperContext::new_with_params(&self.path, parameters)
                .map_err(|cause| cannot().caused_by(cause))?;
            let piece = |token| context.token_to_bytes(token).ok();
            let rules = Rules::new(context.token_eot(), context.token_beg(), piece);
            Ok(Network { rules, spectrum: Spectrum::new(sizes.mels), context })
        })
    }

    #[cfg(test)]
    pub(super) fn is_loaded(&self) -> bool {
        self.network.get().is_some()
    }

    /// Whether it reads a language, given by the code that Whisper has for it.
    pub fn reads(&self, language: &str) -> bool {
        match self.languages.is_empty() {
            true => knows(&self.sizes, language),
            false => self.languages.iter().any(|known| known == language),
        }
    }

    pub(super) fn is_multilingual(&self) -> bool {
        self.sizes.is_multilingual()
    }

    /// What a window is read with.
    pub(super) fn reader(&self) -> Result<Reader<'_>> {
        let network = self.network()?;
        let state = network.context.create_state().map_err(|cause| {
            Error::exhausted(format!("model {} takes more memory than there is", self.id))
                .caused_by(cause)
        })?;
        Ok(Reader { whisper: self, network, state })
    }

    /// Whether it can write times: whisper.cpp keeps the first distilled models from it.
    fn writes_times(&self) -> bool {
        self.sizes.decoder_layers != 2 || self.sizes.vocabulary > ENGLISH_VOCABULARY + 1
    }
}

/// Whether a network of these sizes knows a language by this code.
fn knows(sizes: &Sizes, language: &str) -> bool {
    // The library knows their names, too.
    let is_code =
        (2..=3).contains(&language.len()) && language.bytes().all(|byte| byte.is_ascii_lowercase());
    let id = is_code.then(|| whisper_rs::get_lang_id(language)).flatten();
    id.is_some_and(|id| usize::try_from(id).is_ok_and(|id| id < sizes.languages()))
}

/// In a language that it does not know, a network would write words all the same.
fn check_languages(given: &[String], sizes: &Sizes) -> Result<(), String> {
    let unknown: Vec<&str> =
        given.iter().map(String::as_str).filter(|language| !knows(sizes, language)).collect();
    match (unknown.is_empty(), sizes.is_multilingual()) {
        (true, _) => Ok(()),
        (false, true) => Err(format!(
            "`languages` has {}, which this network does not know: write Whisper's codes (en, de, pt), or \
             leave `languages` out",
            unknown.join(", ")
        )),
        (false, false) => Err(format!(
            "`languages` has {}, but this network knows English only (en)",
            unknown.join(", ")
        )),
    }
}

/// The heads that are aligned by; where none are given, those of the upper half of the layers.
fn heads(given: &[(u16, u16)], sizes: &Sizes) -> Result<Vec<DtwAhead>, String> {
    let (layers, heads) = (sizes.decoder_layers, sizes.heads);
    let head = |layer: usize, head: usize| DtwAhead {
        n_text_layer: i32::try_from(layer).unwrap_or(0),
        n_head: i32::try_from(head).unwrap_or(0),
    };
    if given.is_empty() {
        let upper = (layers / 2..layers).rev();
        let all = upper.flat_map(|layer| (0..heads).map(move |at| head(layer, at)));
        return Ok(all.take(MOST_HEADS).collect());
    }
    if given.len() > MOST_HEADS {
        return Err(format!("`heads` has more than {MOST_HEADS}"));
    }
    let within = |&(layer, at): &(u16, u16)| {
        let (layer, at) = (usize::from(layer), usize::from(at));
        (layer < layers && at < heads).then(|| head(layer, at)).ok_or_else(|| {
            format!("`heads` has {layer}.{at}, but there are {layers} layers with {heads} heads")
        })
    };
    given.iter().map(within).collect()
}

/// How a stretch of sound is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct How {
    /// Beginnings that are followed at a time.
    pub(super) beams: u8,
    /// Whether Whisper also writes when sentences begin and end. It reads a little differently then.
    pub(super) times: bool,
    /// Whether the network gets all of its 30 s, with zeros behind the sound's spectrum, and not only some silence.
    pub(super) whole: bool,
}

/// What came of it, unjudged.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) pieces: Vec<Piece>,
    /// When the first sentence begins, as Whisper has it.
    pub(super) start: Option<Timestamp>,
    /// That nobody speaks.
    pub(super) silence: f32,
    /// When a sentence begins that was not written: Whisper ends so where it does not hear a sentence's end.
    pub(super) open: Option<Timestamp>,
}

/// Memory of its own for a model.
pub(super) struct Reader<'a> {
    whisper: &'a Whisper,
    network: &'a Network,
    state: WhisperState,
}

impl fmt::Debug for Reader<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("whisper", self.whisper).finish_non_exhaustive()
    }
}

impl Reader<'_> {
    pub(super) fn is_multilingual(&self) -> bool {
        self.whisper.is_multilingual()
    }

    /// Reads at most 30 s of sound, of which the first sample is at `at`, with one thread. The same sound
    /// is always read the same.
    pub(super) fn read(
        &mut self,
        samples: &[f32],
        at: Timestamp,
        language: &str,
        how: How,
    ) -> Result<Reading> {
        let mut reading = Reading { pieces: Vec::new(), start: None, silence: 1.0, open: None };
        if samples.len() < LEAST_SAMPLES {
            return Ok(reading);
        }
        let whisper = self.whisper;
        let rules = &self.network.rules;
        let times = how.times && whisper.writes_times();
        let mut parameters = FullParams::new(SamplingStrategy::Greedy { best_of: 1 });
        parameters.set_n_threads(1);
        parameters.set_language(Some(language));
        parameters.set_no_context(true);
        parameters.set_single_segment(true);
        parameters.set_no_timestamps(!times);
        parameters.set_max_tokens(MOST_PIECES.into());
        // Another temperature would be drawn by chance; what is doubted is read another way instead.
        parameters.set_temperature_inc(0.0);
        parameters.set_print_progress(false);
        parameters.set_print_special(false);
        parameters.set_print_realtime(false);
        parameters.set_print_timestamps(false);
        let positions = if how.whole { MOST } else { positions(samples.len()) };
        parameters.set_audio_ctx(i32::try_from(positions).unwrap_or(0));

        let prompt = self.prompt(language, times);
        let mut found: Vec<Likely> = Vec::new();
        let heard = how.whole.then(|| self.network.spectrum.of(samples));
        steer::read(&mut self.state, parameters, samples, heard.as_ref(), rules.end, |decoder| {
            let mut beginning = Beginning { decoder, prompt: &prompt, held: Vec::new() };
            reading.silence = match whisper.is_multilingual() {
                // It says so of speech that sounds strange to it, too.
                true => 0.0,
                false => beginning.silence(self.network.context.token_nosp())?,
            };
            let beams = Beams {
                count: how.beams.into(),
                end: rules.end,
                most: MOST_PIECES.into(),
                behind: BEHIND,
            };
            found = search(beams, |path| {
                let logits = beginning.after(path)?;
                Ok(rules.likeliest(path, logits, times, 2 * beams.count))
            })?;
            beginning.after(&[])?;
            Ok(found.iter().map(|(token, _)| *token).collect())
        })?;

        let since_start = |token: Token| at + hundredths(i64::from(token - rules.first_time) * 2);
        let is_time = |token: Token| token >= rules.first_time;
        if let [(first, _), ..] = found[..]
            && is_time(first)
        {
            reading.start = Some(since_start(first));
        }
        if let [.., (closes, _), (opens, _)] = found[..]
            && is_time(closes)
            && is_time(opens)
        {
            reading.open = Some(since_start(opens));
        }
        let failed = |cause| Error::internal("whisper.cpp failed").caused_by(cause);
        // What it has written is what was found, or the beginning of it: it ends where the sound does.
        let mut found = found.into_iter();
        for segment in self.state.as_iter() {
            for token in (0..segment.n_tokens()).filter_map(|at| segment.get_token(at)) {
                let data = token.token_data();
                let Some((id, log_probability)) = found.next().filter(|(id, _)| *id == data.id)
                else {
                    break;
                };
                if id < rules.end {
                    reading.pieces.push(Piece {
                        bytes: token.to_bytes().map_err(failed)?.to_vec(),
                        log_probability,
                        end: (at + hundredths(data.t_dtw) - LAG).max(at),
                    });
                }
            }
        }
        Ok(reading)
    }

    /// What Whisper reads before it writes.
    fn prompt(&self, language: &str, times: bool) -> Vec<Token> {
        let context = &self.network.context;
        let mut prompt = vec![context.token_sot()];
        if self.whisper.is_multilingual() {
            let id = whisper_rs::get_lang_id(language).unwrap_or(0);
            prompt.extend([context.token_lang(id), context.token_transcribe()]);
        }
        prompt.extend((!times).then(|| context.token_not()));
        prompt
    }

    /// How likely each language is, by Whisper's codes. For a reader that has read nothing else: the
    /// positions of the window before would be those that are looked at.
    pub(super) fn languages(mut self, samples: &[f32]) -> Result<Vec<(&'static str, f32)>> {
        let failed = |cause| Error::internal("whisper.cpp failed").caused_by(cause);
        self.state.pcm_to_mel(samples, 1).map_err(failed)?;
        let (_, likely) = self.state.lang_detect(0, 1).map_err(failed)?;
        // The library knows languages that older models have no token for.
        let known = (0_i32..).zip(likely).take(self.whisper.sizes.languages());
        Ok(known.filter_map(|(id, likely)| Some((whisper_rs::get_lang_str(id)?, likely))).collect())
    }
}

/// What a decoder holds.
struct Beginning<'a> {
    decoder: &'a mut Decoder,
    prompt: &'a [Token],
    /// The prompt and what follows it, or less.
    held: Vec<Token>,
}

impl Beginning<'_> {
    /// How likely nobody speaks, which Whisper says by a token right after the first of the prompt.
    fn silence(&mut self, token: Token) -> Result<f32> {
        self.held.clear();
        self.held.extend(self.prompt.first());
        let logits = self.decoder.after(&self.held, 0)?;
        let silent = usize::try_from(token).ok().and_then(|at| logits.get(at)).copied();
        Ok((silent.unwrap_or(f32::NEG_INFINITY) - log_sum(logits)).exp())
    }

    /// The logits after the prompt and `path`. What is held already is not read again, but for the last token.
    fn after(&mut self, path: &[Token]) -> Result<&mut [f32]> {
        let wanted = || self.prompt.iter().chain(path);
        let same = self.held.iter().zip(wanted()).take_while(|(a, b)| a == b).count();
        let rest: Vec<Token> = wanted().skip(same).copied().collect();
        self.held.truncate(same);
        self.held.extend(rest);
        let past = same.min(self.held.len().saturating_sub(1));
        self.decoder.after(&self.held[past..], past)
    }
}

/// Positions of the encoder that are computed for so many samples: what is left out of the 30 s is
/// silence that would only take time.
fn positions(samples: usize) -> usize {
    (samples.div_ceil(POSITION) + SPARE).next_multiple_of(STEP).min(MOST)
}

fn hundredths(count: i64) -> Micros {
    Micros(count.saturating_mul(10_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_sound_takes_few_positions_and_long_sound_all() {
        assert_eq!(positions(16_000), 320);
        assert_eq!(positions(16_000 * 10), 768);
        assert_eq!(positions(16_000 * 29), 1_488);
    }

    #[test]
    fn languages_are_those_that_the_network_knows() {
        let sizes = |vocabulary| Sizes {
            vocabulary,
            width: 512,
            heads: 8,
            encoder_layers: 6,
            decoder_layers: 6,
            mels: 80,
        };
        let why = |vocabulary, given: &[&str]| {
            let given: Vec<String> = given.iter().map(|&language| language.to_owned()).collect();
            check_languages(&given, &sizes(vocabulary)).err().unwrap_or_default()
        };
        assert_eq!(why(ENGLISH_VOCABULARY, &["en"]), "");
        assert_eq!(why(51_865, &["en", "de", "jw"]), "");
        assert!(why(ENGLISH_VOCABULARY, &["en", "de"]).contains("has de, but"));
        assert!(why(51_865, &["xx", "de", "pt-BR", "german"]).contains("has xx, pt-BR, german,"));
        // Cantonese came with the third large one.
        assert!(why(51_865, &["yue"]).contains("has yue,"));
        assert_eq!(why(51_866, &["yue"]), "");
        assert!(!knows(&sizes(ENGLISH_VOCABULARY), "de"));
    }

    #[test]
    fn heads_are_those_given_or_the_upper_half() {
        let sizes = Sizes {
            vocabulary: 51_865,
            width: 512,
            heads: 8,
            encoder_layers: 6,
            decoder_layers: 6,
            mels: 80,
        };
        assert_eq!(heads(&[(5, 7)], &sizes).unwrap().len(), 1);
        assert_eq!(heads(&[], &sizes).unwrap().len(), 24);
        assert!(heads(&[(6, 0)], &sizes).unwrap_err().contains("6.0"));
    }
}
