//! `cinelex transcribe`: what is said in films and recordings, without a library.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use serde::Serialize;

use super::index::distinct;
use super::output::{self, Format, Places, Texts};
use super::progress::IndexProgress;
use super::{CommandResult, Failure, Outcome, counted, interrupt, one_line};
use crate::error::{Error, Kind, Result};
use crate::media::{Cue, TimedWord};
use crate::model::Models;
use crate::pipeline::{Ears, Listening, Part, Progress, SourceReport, Transcript, listen};
use crate::source::{listing, spoken_code};
use crate::time::{Micros, Span, Timestamp};
use crate::transcript::subtitles;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Films and recordings: files, folders, patterns, or http(s) addresses; `-` reads such names from
    /// standard input, one a line or separated by NUL
    #[arg(required = true, value_name = "SOURCE")]
    sources: Vec<std::ffi::OsString>,
    /// How it is written; by the ending of FILE unless told otherwise, or else txt
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Write to this new file, in place of standard output; of several sources as vtt or srt, into this folder, a
    /// file each
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// What is spoken: auto, or a code as en, de, fr
    #[arg(long, default_value = "auto", value_name = "CODE", value_parser = language)]
    language: Language,
    /// What reads the words, in place of the built-in models: a model's id or a manifest; the first that
    /// reads a language is taken for it
    #[arg(long, value_name = "ID|FILE")]
    model: Vec<String>,
    /// Windows of speech that are read side by side; as many as there are processors unless told
    /// otherwise
    #[arg(long, value_name = "N")]
    workers: Option<NonZeroUsize>,
    /// The same as --format json
    #[arg(long, conflicts_with = "format")]
    json: bool,
}

/// `None`: whichever is spoken.
#[derive(Debug, Clone)]
struct Language(Option<String>);

fn language(text: &str) -> Result<Language, String> {
    // en-GB is read as en is.
    let code = text.split(['-', '_']).next().unwrap_or_default().to_ascii_lowercase();
    let code = spoken_code(&code);
    match code {
        "auto" => Ok(Language(None)),
        code if (2..=3).contains(&code.len()) && code.bytes().all(|b| b.is_ascii_lowercase()) => {
            Ok(Language(Some(code.to_owned())))
        }
        _ => Err("write auto, or a language's code as en, de, fr".to_owned()),
    }
}

pub fn run(args: Args) -> CommandResult {
    let models = Models::open().map_err(Failure::cannot_open)?;
    let format = Format::of(args.json, args.format, args.output.as_deref());
    let (locations, missing) = distinct(listing::expand(&args.sources, false));
    let places = Places::new(args.output.as_deref(), format, &locations, "transcripts")
        .map_err(Failure::output)?;
    let Language(language) = &args.language;
    let ears =
        Ears::open(&models, &args.model, language.as_deref()).map_err(|error| {
            match error.kind() {
                Kind::InvalidInput => Failure::usage(error),
                _ => Failure::cannot_open(error),
            }
        })?;
    let cores = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let threads = args.workers.unwrap_or(cores).get();
    let cancel = interrupt::cancel_on_signal()?;

    let bars = IndexProgress::new(locations.len() + missing.len());
    missing.iter().for_each(|report| bars.show(&Progress::Finished(report)));
    let mut written = InOrder { texts: Texts::new(places), waiting: BTreeMap::new(), next: 0 };
    let mut failed: Vec<SourceReport> = missing;
    listen(&locations, ears, threads, &cancel, &mut |event| {
        match event {
            Listening::Opened { source, length } => {
                let source = &locations[source].to_string();
                let sound = Some(Micros::ZERO);
                bars.show(&Progress::Opened { source, length, picture: None, sound });
            }
            Listening::Advanced { source, by } => {
                let source = &locations[source].to_string();
                bars.show(&Progress::Advanced { source, part: Part::Sound, by });
            }
            Listening::Finished { source, transcript } => {
                let name = locations[source].to_string();
                bars.finished(&name, &finished_line(&name, &transcript));
                if let Some(error) = transcript.error.as_ref().filter(|error| is_failure(error)) {
                    failed.push(SourceReport::failed(name.clone(), error));
                }
                // What was heard before a source failed is no less true.
                let text = match transcript.error.is_some() && transcript.cues.is_empty() {
                    true => None,
                    false => Some(text(format, &name, &transcript.cues)?),
                };
                written.add(source, text)?;
            }
        }
        Ok(())
    })?;
    bars.finish();
    written.finish()?;
    if format == Format::Json {
        for report in &failed {
            super::print_json("source_report", report)?;
        }
    }
    Ok(if cancel.is_cancelled() {
        Outcome::Interrupted
    } else if failed.is_empty() {
        Outcome::Done
    } else {
        Outcome::SomeFailed
    })
}

fn is_failure(error: &Error) -> bool {
    error.kind() != Kind::Cancelled
}

/// Sources end in another order than they have; their texts are written in theirs.
struct InOrder {
    texts: Texts,
    waiting: BTreeMap<usize, Option<String>>,
    next: usize,
}

impl InOrder {
    fn add(&mut self, source: usize, text: Option<String>) -> Result<()> {
        self.waiting.insert(source, text);
        while let Some(text) = self.waiting.remove(&self.next) {
            if let Some(text) = text {
                self.texts.add(self.next, &text)?;
            }
            self.next += 1;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<()> {
        for (source, text) in std::mem::take(&mut self.waiting) {
            if let Some(text) = text {
                self.texts.add(source, &text)?;
            }
        }
        self.texts.finish()
    }
}

/// `talk.mp4: 12 cues, de (0.98)`.
fn finished_line(name: &str, transcript: &Transcript) -> String {
    let mut line = format!("{}: {}", one_line(name), counted(transcript.cues.len(), "cue"));
    if let Some((language, sure)) = &transcript.language {
        line.push_str(&format!(", {language}"));
        if *sure < 1.0 {
            line.push_str(&format!(" ({sure:.2})"));
        }
    }
    for notice in &transcript.notices {
        line.push_str(&format!("; {notice}"));
    }
    match &transcript.error {
        Some(error) if is_failure(error) => line.push_str(&format!("; FAILED: {}", error.reason())),
        Some(_) => line.push_str("; interrupted"),
        None => {}
    }
    line
}

#[derive(Serialize)]
struct CueLine<'a> {
    schema: u32,
    kind: &'static str,
    source: &'a str,
    start_us: Timestamp,
    end_us: Timestamp,
    text: &'a str,
    cue_kind: &'static str,
    language: Option<&'a str>,
    track: &'a str,
    confidence: Option<f32>,
    words: &'a [TimedWord],
}

/// The transcript of a source.
fn text(format: Format, name: &str, cues: &[Cue]) -> Result<String> {
    let laid_out = || -> Vec<(Span, String)> {
        let subtitles = subtitles(cues).into_iter();
        subtitles.map(|subtitle| (subtitle.span, subtitle.lines.join("\n"))).collect()
    };
    Ok(match format {
        Format::Vtt => output::vtt(laid_out().iter().map(|(span, text)| (*span, &text[..]))),
        Format::Srt => output::srt(laid_out().iter().map(|(span, text)| (*span, &text[..]))),
        Format::Txt => {
            let line = |cue: &Cue| format!("  {}  {}\n", cue.span, one_line(&cue.text));
            format!("{}\n{}", one_line(name), cues.iter().map(line).collect::<String>())
        }
        Format::Json => cues.iter().map(|cue| json_line(name, cue)).collect::<Result<_>>()?,
    })
}

fn json_line(name: &str, cue: &Cue) -> Result<String> {
    let line = CueLine {
        schema: 1,
        kind: "cue",
        source: name,
        start_us: cue.span.start,
        end_us: cue.span.end,
        text: &cue.text,
        cue_kind: cue.kind.as_str(),
        language: cue.language.as_deref(),
        track: &cue.track,
        confidence: cue.confidence,
        words: &cue.words,
    };
    let line = serde_json::to_string(&line)
        .map_err(|cause| Error::internal("cannot write JSON").caused_by(cause))?;
    Ok(line + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn languages_are_codes_and_regions_make_no_difference() {
        assert_eq!(language("auto").unwrap().0, None);
        assert_eq!(language("en-GB").unwrap().0.as_deref(), Some("en"));
        assert_eq!(language("jv").unwrap().0.as_deref(), Some("jw"));
        assert_eq!(language("nb-NO").unwrap().0.as_deref(), Some("no"));
        assert!(language("german").is_err());
        assert!(language("").is_err());
    }
}
