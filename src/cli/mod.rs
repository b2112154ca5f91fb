//! Arguments, progress, exit codes. Each command is a module with its `Args` (what was typed) and
//! `run`; what the words mean is decided there, the work is done in the rooms below.

mod calibrate;
mod caption;
mod codebook;
mod counter;
mod evaluate;
mod export;
mod index;
mod interrupt;
mod library;
#[cfg(feature = "live")]
mod live;
mod models;
mod output;
mod pipeline;
mod progress;
mod search;
mod setup;
#[cfg(feature = "train")]
mod train;
#[cfg(feature = "speech")]
mod transcribe;
mod when;

use std::io::Write;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;

use crate::error::{Error, Kind};
use crate::media::Caption;

/// How a command that could do its work ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Exit code 0.
    Done,
    /// Exit code 1: some or all inputs failed; each was reported.
    SomeFailed,
    /// Exit code 130: interrupted; what was finished is kept.
    Interrupted,
}

/// Why a command could not do its work, with its exit code.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    /// `None` where everything has been told.
    error: Option<Error>,
}

impl Failure {
    /// Exit code 2: wrong usage or configuration.
    pub fn usage(error: Error) -> Self {
        Failure { code: 2, error: Some(error) }
    }

    /// What is wrong with where something is to be written: exit code 2 where it should not be there, 1 where it cannot.
    pub fn output(error: Error) -> Self {
        match error.kind() {
            Kind::InvalidInput => Failure::usage(error),
            _ => error.into(),
        }
    }

    /// What was wrong has been printed already.
    pub fn told(code: u8) -> Self {
        Failure { code, error: None }
    }

    /// Exit code 3: the library, a model or the pipeline could not be opened.
    pub fn cannot_open(error: Error) -> Self {
        Failure { code: 3, error: Some(error) }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let code = if error.kind() == Kind::Cancelled { 130 } else { 1 };
        Failure { code, error: Some(error) }
    }
}

pub type CommandResult = Result<Outcome, Failure>;

/// One line of `--json` output: `{"schema":1,"kind":KIND,…value}`.
pub fn print_json(kind: &'static str, value: &impl Serialize) -> Result<(), Error> {
    #[derive(Serialize)]
    struct Line<'a, T: Serialize> {
        schema: u32,
        kind: &'static str,
        #[serde(flatten)]
        value: &'a T,
    }
    let line = serde_json::to_string(&Line { schema: 1, kind, value })
        .map_err(|cause| Error::internal("cannot write JSON").caused_by(cause))?;
    print_line(&line)
}

/// Whoever read standard output has had enough (`| head`): no failure, and nothing to say.
static READER_GONE: AtomicBool = AtomicBool::new(false);

/// A line on standard output.
pub fn print_line(line: &str) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").map_err(|cause| {
        if cause.kind() == std::io::ErrorKind::BrokenPipe {
            READER_GONE.store(true, Ordering::Release);
        }
        Error::io("standard output", "write to", cause)
    })
}

/// A line on standard error, for people. Where nobody reads it, the work goes on.
pub fn note(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// `a dog runs through the snow (0.42; fits the words 0.90)`: with the confidence.
fn caption_line(caption: &Caption, alignment: Option<f32>) -> String {
    let fits = alignment.map_or_else(String::new, |fits| format!("; fits the words {fits:.2}"));
    format!("{} ({:.2}{fits})", one_line(&caption.text), caption.confidence)
}

/// Text that a file's name or a subtitle brought, on one line and unable to move the cursor.
fn one_line(text: &str) -> String {
    text.chars().map(|char| if char.is_control() { ' ' } else { char }).collect()
}

/// `1 clip`, `2 clips`.
fn counted(count: impl TryInto<u64>, thing: &str) -> String {
    let count = count.try_into().unwrap_or(u64::MAX);
    format!("{count} {thing}{}", if count == 1 { "" } else { "s" })
}

/// `--tag KEY=VALUE`.
fn tag(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE".to_owned()),
    }
}

/// A length of time in seconds, more than nothing.
#[cfg(feature = "live")]
fn positive_secs(text: &str) -> Result<std::time::Duration, String> {
    let secs: f64 = text.parse().map_err(|_| "write a number of seconds".to_owned())?;
    match std::time::Duration::try_from_secs_f64(secs) {
        Ok(length) if length.as_millis() > 0 => Ok(length),
        _ => Err("write a number of seconds above 0".to_owned()),
    }
}

/// Turns video files into a library that can be searched, read and compared.
#[derive(clap::Parser, Debug)]
#[command(
    name = "cinelex",
    version,
    after_help = "Example:
  cinelex setup
  cinelex index ~/Videos --library ~/videos.library
  cinelex search ~/videos.library \"a dog on a beach\"

Exit codes: 0; 1 some or all inputs failed, or results could not be written; 2 wrong usage or
configuration; 3 library, models or pipeline could not be opened; 130 interrupted (what was finished
is kept)."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Fetch and verify ONNX Runtime and the models, and say what is there
    #[command(after_help = "Example:\n  cinelex setup")]
    Setup(setup::Args),
    /// The models that are known
    #[command(after_help = "Example:\n  cinelex models list")]
    Models(models::Args),
    /// Read sources into a library
    #[command(after_help = "Examples:
  cinelex index talk.mp4 --library talks.library
  cinelex index tapes/ 'more/*.mkv' --library archive.library --tag shelf=12
  find /archive -name '*.mxf' -print0 | cinelex index - --library archive.library
  cinelex index rtsp://camera/door rtsp://camera/yard --library cameras.library")]
    Index(index::Args),
    /// Find moments by words, by a picture, or by another moment
    #[command(after_help = "Examples:
  cinelex search archive.library \"a man on a bicycle\"
  cinelex search archive.library \"ring road\" --channel speech --within 10:00-20:00
  cinelex search archive.library --image photo.jpg --top 3 --export moment.mp4")]
    Search(Box<search::Args>),
    /// Say in a sentence what is to be seen, segment by segment, without a library
    #[command(after_help = "Examples:
  cinelex caption talk.mp4 -o talk.vtt
  cinelex caption photos/*.jpg")]
    Caption(caption::Args),
    /// Write down what is said, with times, without a library
    #[cfg(feature = "speech")]
    #[command(after_help = "Examples:
  cinelex transcribe talk.mp4 -o talk.vtt
  cinelex transcribe interviews/ --format json --language de")]
    Transcribe(transcribe::Args),
    /// Look into a library, mark, merge and export it, remove a source from it, check and mend it
    #[command(after_help = "Example:\n  cinelex library info archive.library")]
    Library(library::Args),
    /// The pipelines: what is computed
    #[command(after_help = "Example:\n  cinelex pipeline list")]
    Pipeline(pipeline::Args),
    /// Codebooks: the trees of visual words
    #[command(after_help = "Example:\n  cinelex codebook stats codebook-default")]
    Codebook(codebook::Args),
    /// Measure on data with known answers
    #[command(after_help = "Example:\n  cinelex evaluate retrieval --data flickr8k")]
    Evaluate(evaluate::Args),
    /// Train the transformer that writes captions
    #[cfg(feature = "train")]
    #[command(after_help = "Examples:
  cinelex train flickr8k --out trained
  cinelex train flickr8k youcook2_frames --text captions.tsv --minutes 180 --threads 1 --out trained
  cinelex train films.library --out trained
  cinelex train flickr8k --out trained --resume")]
    Train(train::Args),
    /// Serve decoding to the parent process
    #[command(name = "decoder-host", hide = true)]
    DecoderHost,
}

/// What `main` runs.
pub fn main() -> ExitCode {
    // A decoder host starts for every few files, so it starts before anything else is set up.
    if std::env::args_os().nth(1).is_some_and(|command| command == "decoder-host") {
        return crate::source::host::main();
    }
    let cli = <Cli as clap::Parser>::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_env("CINELEX_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| progress::AboveBars).init();
    let result = match cli.command {
        Command::Setup(args) => setup::run(args),
        Command::Models(args) => models::run(args),
        Command::Index(args) => index::run(args),
        Command::Search(args) => search::run(*args),
        Command::Caption(args) => caption::run(args),
        #[cfg(feature = "speech")]
        Command::Transcribe(args) => transcribe::run(args),
        Command::Library(args) => library::run(args),
        Command::Pipeline(args) => pipeline::run(args),
        Command::Codebook(args) => codebook::run(args),
        Command::Evaluate(args) => evaluate::run(args),
        #[cfg(feature = "train")]
        Command::Train(args) => train::run(args),
        Command::DecoderHost => return crate::source::host::main(),
    };
    match result {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::SomeFailed) => ExitCode::from(1),
        Ok(Outcome::Interrupted) => ExitCode::from(130),
        Err(_) if READER_GONE.load(Ordering::Acquire) => ExitCode::SUCCESS,
        Err(Failure { code, error }) => {
            if let Some(error) = error {
                note(&format!("cinelex: {error}"));
            }
            ExitCode::from(code)
        }
    }
}
