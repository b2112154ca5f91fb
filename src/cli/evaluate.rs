//! `cinelex evaluate`: the field's metrics on data with known answers.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use super::counter::Counter;
use super::{CommandResult, Failure, Outcome, interrupt, print_json, print_line};
use crate::error::{Error, Kind, Result};
use crate::evaluate::metrics::Retrieval;
use crate::evaluate::photos::Collection;
use crate::evaluate::retrieval::{self, Report, Setup};
use crate::model::{Device, Models};

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
    }
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
