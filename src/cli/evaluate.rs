//! `cinelex evaluate`: the field's metrics on data with known answers.

#[cfg(feature = "speech")]
mod speech;
mod tables;

use std::num::NonZeroUsize;
use std::path::PathBuf;

use serde::Serialize;

use super::counter::Counter;
use super::{CommandResult, Failure, Outcome, interrupt, print_json, print_line};
use crate::codebook::Codebook;
use crate::error::{Error, Kind, Result};
use crate::evaluate::photos::Collection;
use crate::evaluate::setup::{Examinee, Progress, Setup};
use crate::evaluate::{alignment, captions, films, page, retrieval, zero_shot};
use crate::model::{Device, Models};
use crate::onnx::transformer::Precision;
use crate::transformer::{Trained, Writing};

#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand, Debug)]
enum What {
    /// How well captions find their photos through the joint space
    #[command(after_help = "Examples:
  cinelex evaluate retrieval --data flickr8k
  cinelex evaluate retrieval --data flickr8k --network trained/transformer.safetensors")]
    Retrieval(Common),
    /// How well captions that a trained network writes agree with people's
    #[command(after_help = "Example:
  cinelex evaluate captions --data flickr8k --network trained/transformer.safetensors")]
    Captions(CaptionsArgs),
    /// How well a trained network tells a picture's captions from others
    #[command(after_help = "Example:
  cinelex evaluate alignment --data flickr8k --network trained/transformer.safetensors")]
    Alignment(Watched),
    /// How often a trained network guesses verb and object of a recipe's step, as in the VideoBERT paper
    #[command(after_help = "Example:
  cinelex evaluate zero-shot --data youcook2_frames --network trained/transformer.safetensors")]
    ZeroShot(Watched),
    /// How well speech is understood: word errors, where words begin, words for noise
    #[cfg(feature = "speech")]
    #[command(after_help = "Example:
  cinelex evaluate speech --data speech")]
    Speech(speech::Args),
}

/// What every evaluation takes.
#[derive(clap::Args, Debug)]
struct Common {
    /// A folder with captions.tsv and images/
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Which of its photos; where there is no split "dev", some videos are held out of "train" for it
    #[arg(long, default_value = "dev")]
    split: String,
    /// The network: transformer.safetensors, as `cinelex train` leaves it
    #[arg(long, value_name = "FILE")]
    network: Option<PathBuf>,
    /// The encoder that the network was trained with: a model's id (see `cinelex models list`) or a
    /// manifest; `ID@int8` is that with 8 bits, as pictures are indexed unless a pipeline says otherwise
    #[arg(long, default_value = "efficientnet-lite0@int8", value_name = "ID|FILE")]
    encoder: String,
    /// The codebook that it was trained with, where it sees visual words
    #[arg(long, default_value = "codebook-default", value_name = "ID|FILE")]
    codebook: String,
    /// The sentence encoder
    #[arg(long, default_value = "minilm", value_name = "ID|FILE")]
    text: String,
    /// How the network's matrices are kept
    #[arg(long, value_enum, default_value_t = Kept::Fp32)]
    precision: Kept,
    /// Decoders side by side, and threads of the networks; as many as there are processors unless
    /// told otherwise
    #[arg(long, value_name = "N")]
    workers: Option<NonZeroUsize>,
    /// Where the encoder runs: auto takes CUDA where it is there
    #[arg(long, value_enum, default_value_t)]
    device: Device,
    /// One JSON object, whose kind is the command's name
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args, Debug)]
struct Watched {
    #[command(flatten)]
    common: Common,
    /// Show the frames of a video (those of one video_id) together, in the order of the file
    #[arg(long)]
    sequence: bool,
}

#[derive(clap::Args, Debug)]
struct CaptionsArgs {
    #[command(flatten)]
    watched: Watched,
    /// Beginnings of a caption that are followed at a time
    #[arg(long, default_value = "8", value_name = "N")]
    beams: NonZeroUsize,
    /// What a caption's log-probability is divided by: its length to this power
    #[arg(long, default_value = "1", value_name = "X")]
    length_power: f32,
    /// Captions that are shown
    #[arg(long, default_value = "10", value_name = "N")]
    shown: usize,
    /// Write a page with the figures, the coverage and samples with their pictures
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// A library with captions: some of its segments are shown in the page, too
    #[arg(long, value_name = "LIBRARY", requires = "report")]
    films: Option<PathBuf>,
}

/// Precisions, as they are typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Kept {
    Fp32,
    Fp16,
    Int8,
}

/// Segments of films that a page shows at most.
const MOMENTS: usize = 40;
/// Pieces of a caption at most.
const LONGEST: usize = 24;

pub fn run(args: Args) -> CommandResult {
    match args.what {
        What::Retrieval(common) => {
            let task =
                Task { kind: "retrieval", common: &common, sequence: false, needs_network: false };
            let report = task.run(|bench, progress| {
                retrieval::retrieval(&bench.setup, bench.examinee.as_ref(), progress)
            })?;
            finish(&task, &report, &report.failed, tables::retrieval)
        }
        What::Captions(args) => run_captions(&args),
        What::Alignment(Watched { common, sequence }) => {
            let task = Task { kind: "alignment", common: &common, sequence, needs_network: true };
            let report = task.run(|bench, progress| {
                alignment::alignment(&bench.setup, bench.examinee()?, progress)
            })?;
            finish(&task, &report, &report.failed, tables::alignment)
        }
        What::ZeroShot(Watched { common, sequence }) => {
            let task = Task { kind: "zero_shot", common: &common, sequence, needs_network: true };
            let report = task.run(|bench, progress| {
                zero_shot::zero_shot(&bench.setup, bench.examinee()?, progress)
            })?;
            finish(&task, &report, &report.failed, tables::zero_shot)
        }
        #[cfg(feature = "speech")]
        What::Speech(args) => speech::run(&args),
    }
}

fn run_captions(args: &CaptionsArgs) -> CommandResult {
    let CaptionsArgs { watched: Watched { common, sequence }, beams, length_power, .. } = args;
    let how = Writing { beams: beams.get(), most: LONGEST, length_power: *length_power };
    let task = Task { kind: "captions", common, sequence: *sequence, needs_network: true };
    let moments = args.films.as_deref().map(|library| films::moments(library, MOMENTS));
    let moments = moments.transpose().map_err(Failure::cannot_open)?.unwrap_or_default();
    let report = task.run(|bench, progress| {
        let setup = &bench.setup;
        let report = captions::captions(setup, bench.examinee()?, how, progress)?;
        if let Some(path) = &args.report {
            page::write(path, &report, setup.collection, &moments)?;
        }
        Ok(report)
    })?;
    finish(&task, &report, &report.failed, |report| tables::captions(report, args.shown))
}

/// An evaluation that was asked for.
struct Task<'a> {
    /// What its JSON is called.
    kind: &'static str,
    common: &'a Common,
    sequence: bool,
    needs_network: bool,
}

/// What an evaluation named, loaded.
struct Bench<'a> {
    setup: Setup<'a>,
    examinee: Option<Examinee<'a>>,
}

impl<'a> Bench<'a> {
    fn examinee(&self) -> Result<&Examinee<'a>> {
        self.examinee.as_ref().ok_or_else(no_network)
    }
}

fn no_network() -> Error {
    Error::invalid_input("name the trained network that is to be judged: --network FILE")
}

impl Task<'_> {
    /// Loads what was named and does the work, with progress and Ctrl-C.
    fn run<R>(
        &self,
        work: impl FnOnce(&Bench<'_>, &mut dyn FnMut(Progress) -> Result<()>) -> Result<R>,
    ) -> Result<R, Failure> {
        let common = self.common;
        if self.needs_network && common.network.is_none() {
            return Err(Failure::usage(no_network()));
        }
        let models = Models::open().map_err(Failure::cannot_open)?;
        let trained = common.network.as_deref().map(Trained::load);
        let trained = trained.transpose().map_err(Failure::cannot_open)?;
        let encoder = models.manifest(&common.encoder).map_err(Failure::usage)?;
        let tower = models.manifest(&common.text).map_err(Failure::usage)?;
        let collection = Collection::read(&common.data).map_err(Failure::usage)?;
        collection.of_split(&common.split).map_err(Failure::usage)?;
        let sees_words = |trained: &Trained| trained.fitting.codebook.is_some();
        let codebook = match trained.as_ref().is_some_and(sees_words) {
            true => Some(
                Codebook::named_or_file(&models, &common.codebook).map_err(Failure::cannot_open)?,
            ),
            false => None,
        };
        if let Some(trained) = &trained {
            let codebook = codebook.as_ref().map(Codebook::id);
            trained.fitting.check(&encoder.identity(), codebook).map_err(Failure::usage)?;
        }
        let cores = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        let precision = match common.precision {
            Kept::Fp32 => Precision::Fp32,
            Kept::Fp16 => Precision::Fp16,
            Kept::Int8 => Precision::Int8,
        };
        let bench = Bench {
            examinee: trained.as_ref().map(|trained| Examinee {
                trained,
                codebook: codebook.as_ref(),
                precision,
            }),
            setup: Setup {
                models: &models,
                encoder: &encoder,
                tower: &tower,
                device: common.device,
                threads: common.workers.unwrap_or(cores).get(),
                collection: &collection,
                split: &common.split,
                sequence: self.sequence,
            },
        };
        let cancel = interrupt::cancel_on_signal()?;
        let counter = Counter::new();
        let report = work(&bench, &mut |progress| {
            counter.show(progress.what, progress.done, progress.of);
            if cancel.is_cancelled() { Err(Error::cancelled()) } else { Ok(()) }
        });
        counter.finish();
        report.map_err(|error| match error.kind() {
            Kind::NotFound => Failure::cannot_open(error),
            _ => error.into(),
        })
    }
}

/// Prints what came of it, and what was left out.
fn finish<R: Serialize>(
    task: &Task<'_>,
    report: &R,
    failed: &[(String, String)],
    table: impl FnOnce(&R) -> Result<()>,
) -> CommandResult {
    if task.common.json {
        print_json(task.kind, report)?;
    } else {
        table(report)?;
        for (image, reason) in failed {
            print_line(&format!("left out: {image}: {reason}"))?;
        }
    }
    Ok(if failed.is_empty() { Outcome::Done } else { Outcome::SomeFailed })
}
