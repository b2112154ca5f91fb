//! `cinelex evaluate`: the field's metrics on data with known answers.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use super::counter::Counter;
use super::{CommandResult, Failure, Outcome, interrupt, print_json, print_line};
use crate::codebook::Codebook;
use crate::error::{Error, Kind, Result};
use crate::evaluate::agreement::Agreement;
use crate::evaluate::captions;
use crate::evaluate::metrics::Retrieval;
use crate::evaluate::photos::Collection;
use crate::evaluate::retrieval::{self, Report, Setup};
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
    #[command(after_help = "Example:\n  cinelex evaluate retrieval --data flickr8k --split test")]
    Retrieval(RetrievalArgs),
    /// How well captions that a trained network writes agree with people's
    #[command(after_help = "Example:
  cinelex evaluate captions --data flickr8k --split dev --network trained/transformer.safetensors")]
    Captions(CaptionsArgs),
}

#[derive(clap::Args, Debug)]
struct CaptionsArgs {
    /// A folder with captions.tsv and images/
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Which of its photos
    #[arg(long, default_value = "dev")]
    split: String,
    /// The network: transformer.safetensors, as `cinelex train` leaves it
    #[arg(long, value_name = "FILE")]
    network: PathBuf,
    /// The encoder that it was trained with: a model's id or a manifest
    #[arg(long, default_value = "efficientnet-lite0", value_name = "ID|FILE")]
    encoder: String,
    /// The codebook that it was trained with, where it sees visual words
    #[arg(long, default_value = "codebook-default", value_name = "ID|FILE")]
    codebook: String,
    /// Beginnings of a caption that are followed at a time
    #[arg(long, default_value = "3", value_name = "N")]
    beams: NonZeroUsize,
    /// How the network's matrices are kept
    #[arg(long, value_enum, default_value_t = Kept::Fp32)]
    precision: Kept,
    /// Captions that are shown
    #[arg(long, default_value = "10", value_name = "N")]
    shown: usize,
    /// Leave out the baseline, the consensus of the nearest training photos' captions
    #[arg(long)]
    no_baseline: bool,
    /// Decoders side by side, and threads of the networks; as many as there are processors unless
    /// told otherwise
    #[arg(long, value_name = "N")]
    workers: Option<NonZeroUsize>,
    /// Where the encoder runs: auto takes CUDA where it is there
    #[arg(long, value_enum, default_value_t)]
    device: Device,
    /// One JSON object: kind "captions"
    #[arg(long)]
    json: bool,
}

/// Precisions, as they are typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Kept {
    Fp32,
    Fp16,
    Int8,
}

#[derive(clap::Args, Debug)]
struct RetrievalArgs {
    /// A folder with captions.tsv and images/
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Which of its photos
    #[arg(long, default_value = "test")]
    split: String,
    /// The encoder: a model's id (see `cinelex models list`) or a manifest
    #[arg(long, default_value = "efficientnet-lite0", value_name = "ID|FILE")]
    encoder: String,
    /// The sentence encoder
    #[arg(long, default_value = "minilm", value_name = "ID|FILE")]
    text: String,
    /// Decoders side by side, and threads of the networks; as many as there are processors unless
    /// told otherwise
    #[arg(long, value_name = "N")]
    workers: Option<NonZeroUsize>,
    /// Where the encoder runs: auto takes CUDA where it is there
    #[arg(long, value_enum, default_value_t)]
    device: Device,
    /// One JSON object: kind "retrieval"
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> CommandResult {
    match args.what {
        What::Retrieval(args) => run_retrieval(&args),
        What::Captions(args) => run_captions(&args),
    }
}

/// Pieces of a caption at most.
const LONGEST: usize = 24;

fn run_captions(args: &CaptionsArgs) -> CommandResult {
    let models = Models::open().map_err(Failure::cannot_open)?;
    let trained = Trained::load(&args.network).map_err(Failure::cannot_open)?;
    let encoder = models.manifest(&args.encoder).map_err(Failure::usage)?;
    let collection = Collection::read(&args.data).map_err(Failure::usage)?;
    collection.of_split(&args.split).map_err(Failure::usage)?;
    let codebook = match trained.fitting.codebook {
        Some(_) => {
            Some(Codebook::named_or_file(&models, &args.codebook).map_err(Failure::cannot_open)?)
        }
        None => None,
    };
    let fitting = trained.fitting.check(&encoder.identity(), codebook.as_ref().map(Codebook::id));
    fitting.map_err(Failure::usage)?;
    let cores = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let setup = captions::Setup {
        models: &models,
        trained: &trained,
        encoder: &encoder,
        codebook: codebook.as_ref(),
        device: args.device,
        precision: match args.precision {
            Kept::Fp32 => Precision::Fp32,
            Kept::Fp16 => Precision::Fp16,
            Kept::Int8 => Precision::Int8,
        },
        threads: args.workers.unwrap_or(cores).get(),
        how: Writing { beams: args.beams.get(), most: LONGEST, length_power: 1.0 },
        baseline: !args.no_baseline,
    };
    let cancel = interrupt::cancel_on_signal()?;
    let counter = Counter::new();
    let report = captions::captions(&collection, &args.split, &setup, &mut |progress| {
        counter.show(progress.what, progress.done, progress.of);
        if cancel.is_cancelled() { Err(Error::cancelled()) } else { Ok(()) }
    });
    counter.finish();
    let report = report.map_err(|error| match error.kind() {
        Kind::NotFound => Failure::cannot_open(error),
        _ => error.into(),
    })?;
    if args.json {
        print_json("captions", &report)?;
    } else {
        print_captions(&report, args.shown)?;
    }
    Ok(if report.failed.is_empty() { Outcome::Done } else { Outcome::SomeFailed })
}

fn print_captions(report: &captions::Report, shown: usize) -> Result<()> {
    print_line(&format!("{} photos of the split {}\n", report.photos, report.split))?;
    print_line("                     CIDEr  BLEU-4  BLEU-1  ROUGE-L")?;
    let line = |name: &str, found: &Agreement| {
        print_line(&format!(
            "{name:<18} {:>7.2} {:>7.2} {:>7.2} {:>8.2}",
            100.0 * found.cider,
            100.0 * found.bleu[3],
            100.0 * found.bleu[0],
            100.0 * found.rouge_l
        ))
    };
    line("written", &report.found)?;
    if let Some(baseline) = &report.baseline {
        line("consensus", baseline)?;
    }
    for described in report.captions.iter().take(shown) {
        let captions::Described { image, caption, confidence } = described;
        print_line(&format!("{image}: {caption} ({confidence:.2})"))?;
    }
    for (image, reason) in &report.failed {
        print_line(&format!("left out: {image}: {reason}"))?;
    }
    Ok(())
}

fn run_retrieval(args: &RetrievalArgs) -> CommandResult {
    let models = Models::open().map_err(Failure::cannot_open)?;
    let encoder = models.manifest(&args.encoder).map_err(Failure::usage)?;
    let tower = models.manifest(&args.text).map_err(Failure::usage)?;
    let collection = Collection::read(&args.data).map_err(Failure::usage)?;
    collection.of_split(&args.split).map_err(Failure::usage)?;
    let cores = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let setup = Setup {
        models: &models,
        encoder: &encoder,
        tower: &tower,
        device: args.device,
        threads: args.workers.unwrap_or(cores).get(),
    };
    let cancel = interrupt::cancel_on_signal()?;
    let counter = Counter::new();
    let report = retrieval::retrieval(&collection, &args.split, &setup, &mut |progress| {
        counter.show(progress.what, progress.done, progress.of);
        if cancel.is_cancelled() { Err(Error::cancelled()) } else { Ok(()) }
    });
    counter.finish();
    let report = report.map_err(|error| match error.kind() {
        Kind::NotFound => Failure::cannot_open(error),
        _ => error.into(),
    })?;
    if args.json {
        print_json("retrieval", &report)?;
    } else {
        print_report(&report)?;
    }
    Ok(if report.failed.is_empty() { Outcome::Done } else { Outcome::SomeFailed })
}

fn print_report(report: &Report) -> Result<()> {
    print_line(&format!(
        "{} captions, {} photos of the split {}; {} and {}\n",
        report.captions, report.photos, report.split, report.encoder, report.tower
    ))?;
    print_line("                      R@1     R@5    R@10  median rank     MRR")?;
    let line = |name: &str, found: &Retrieval| {
        let reciprocal = found.mean_reciprocal_rank.map_or("-".into(), |mrr| format!("{mrr:.4}"));
        print_line(&format!(
            "{name:<18} {:>6.2}  {:>6.2}  {:>6.2}  {:>11.1}  {reciprocal:>6}",
            found.recall_at_1, found.recall_at_5, found.recall_at_10, found.median_rank
        ))
    };
    line("ConSE, here", &report.found)?;
    if let Some(study) = &report.study {
        line("ConSE, the study", study)?;
    }
    line("chance", &report.chance)?;
    for (image, reason) in &report.failed {
        print_line(&format!("left out: {image}: {reason}"))?;
    }
    Ok(())
}
