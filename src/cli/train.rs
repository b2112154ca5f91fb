//! `cinelex train`: the transformer, on films in which somebody speaks and on photos with captions.

use std::num::{NonZeroU64, NonZeroUsize};
use std::path::PathBuf;

use serde::Serialize;

use super::counter::Counter;
use super::{
    CommandResult, Failure, Outcome, counted, interrupt, note, one_line, print_json, print_line,
};
use crate::error::{Error, Kind};
use crate::model::Models;
use crate::train::config::{Inputs, Length};
use crate::train::corpus::Skipped;
use crate::train::{self, CODEBOOK, Config, Event, Finished, Learnt, Material, Sources};

/// The configuration that is part of the executable.
const DEFAULT: &str = include_str!("../../training/default.toml");

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Libraries, of which what is said is learnt beside what is seen; or folders with captions.tsv and
    /// images/, of which the photos of the split "train" are trained on
    #[arg(required = true, value_name = "DATA")]
    data: Vec<PathBuf>,
    /// Captions without pictures: tab-separated, with a column "caption"
    #[arg(long, value_name = "FILE")]
    text: Vec<PathBuf>,
    /// Begin with the weights and word pieces of this captioner: an id like captioner-default, a manifest, or a
    /// training's transformer.safetensors
    #[arg(long, value_name = "CAPTIONER")]
    from: Option<String>,
    /// What to train, and how; training/default.toml unless told otherwise
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where checkpoints, log, report and the result go
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Go on from the last checkpoint there
    #[arg(long)]
    resume: bool,
    /// In place of the configuration's: tokens, features, both, each also with +cells
    #[arg(long, value_name = "NAME", value_parser = inputs)]
    inputs: Option<Inputs>,
    /// In place of the configuration's length: minutes of processor time in steps, over all threads
    #[arg(long, value_name = "N")]
    minutes: Option<f64>,
    /// … so many steps, which are the same on every machine
    #[arg(long, value_name = "N", conflicts_with = "minutes")]
    steps: Option<NonZeroU64>,
    /// Threads; as many as there are processors unless told otherwise. With 1, two trainings run well
    /// side by side
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// One JSON object at the end: kind "trained"
    #[arg(long)]
    json: bool,
}

fn inputs(name: &str) -> Result<Inputs, String> {
    Inputs::named(name).ok_or_else(|| {
        "write tokens, features or both, or one of these with +cells, as features+cells".to_owned()
    })
}

pub fn run(args: Args) -> CommandResult {
    let config = configuration(&args).map_err(Failure::usage)?;
    let models = Models::open().map_err(Failure::cannot_open)?;
    let cores = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let threads = args.threads.unwrap_or(cores).get();
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()
        .map_err(|cause| Failure::from(Error::internal("cannot start threads").caused_by(cause)))?;
    let cancel = interrupt::cancel_on_signal()?;
    let go_on = || if cancel.is_cancelled() { Err(Error::cancelled()) } else { Ok(()) };

    let counter = Counter::new();
    let kept = args.out.join(CODEBOOK);
    let sources = Sources {
        data: args.data.clone(),
        texts: args.text.clone(),
        from: args.from.clone(),
        fitted: (args.resume && kept.exists()).then_some(kept),
        command: command(),
    };
    let material = Material::load(&models, &config, sources, threads, &mut |progress| {
        counter.show(progress.what, progress.done, progress.of);
        go_on()
    });
    counter.finish();
    let material = material.map_err(|error| match error.kind() {
        Kind::NotFound => Failure::cannot_open(error),
        Kind::InvalidInput => Failure::usage(error),
        _ => error.into(),
    })?;
    tell_skipped(&material.skipped);
    material.libraries.iter().for_each(tell_learnt);

    let counter = Counter::new();
    let finished =
        train::train(&models, &config, &material, &args.out, args.resume, &mut |event| {
            show(&counter, &event);
            go_on()
        });
    counter.finish();
    let finished = finished?;
    if args.json {
        let Material { skipped, libraries, .. } = &material;
        print_json("trained", &Trained { skipped, libraries, finished: &finished })?;
    } else {
        print(&finished)?;
    }
    Ok(if finished.interrupted { Outcome::Interrupted } else { Outcome::Done })
}

#[derive(Serialize)]
struct Trained<'a> {
    skipped: &'a Skipped,
    libraries: &'a [Learnt],
    #[serde(flatten)]
    finished: &'a Finished,
}

/// The command as it was typed.
fn command() -> String {
    let quoted = |text: String| {
        if text.is_empty() || text.contains(|c: char| c.is_whitespace() || "'\"\\$`*?".contains(c))
        {
            format!("'{}'", text.replace('\'', "'\\''"))
        } else {
            text
        }
    };
    let typed = std::env::args_os().skip(1).map(|text| quoted(text.to_string_lossy().into_owned()));
    std::iter::once("cinelex".to_owned()).chain(typed).collect::<Vec<_>>().join(" ")
}

fn configuration(args: &Args) -> Result<Config, Error> {
    let mut config = match &args.config {
        None => Config::read("training/default.toml", DEFAULT)?,
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .map_err(|cause| Error::io(path, "read the configuration", cause))?;
            Config::read(&path.display().to_string(), &text)?
        }
    };
    if let Some(inputs) = args.inputs {
        config.inputs = inputs;
    }
    if let Some(steps) = args.steps {
        config.steps.length = Length::Steps(steps.get());
    }
    if let Some(minutes) = args.minutes {
        if !(minutes > 0.0 && minutes.is_finite()) {
            return Err(Error::invalid_input(format!("--minutes {minutes} is no length of time")));
        }
        config.steps.length = Length::Minutes(minutes);
    }
    Ok(config)
}

fn tell_skipped(skipped: &Skipped) {
    for (count, what) in [
        (skipped.photos, "photos that could not be decoded"),
        (skipped.without_captions, "photos without a caption"),
        (skipped.captions, "captions without words"),
        (skipped.sources, "sources in which nothing is said that can be learnt"),
        (skipped.copies, "sources that a library before has, too"),
        (skipped.foreign, "segments in languages that the sentence encoder does not read"),
        (skipped.unseen, "segments with words and without a picture"),
        (skipped.clips, "clips whose features are lost"),
    ] {
        if count > 0 {
            note(&format!("left out: {count} {what}"));
        }
    }
}

fn tell_learnt(learnt: &Learnt) {
    let library = learnt.library.display();
    let (segments, sources) =
        (counted(learnt.segments, "segment"), counted(learnt.sources, "source"));
    let held_out = match &learnt.held_out[..] {
        [] => "none of them is held out to score on: one of four is, where there are so many"
            .to_owned(),
        names => format!("held out to score on: {}", names.join(", ")),
    };
    note(&one_line(&format!("{library}: {segments} with words, of {sources}; {held_out}")));
}

fn show(counter: &Counter, event: &Event<'_>) {
    match event {
        Event::Begun { photos, captions, texts, numbers } => note(&format!(
            "{photos} photos and segments with {captions} captions, {texts} texts; {:.2} M weights",
            *numbers as f64 / 1e6
        )),
        Event::Step { step, loss, captions_per_sec, share, secs_left } => {
            counter.show("training", (share * 1e4) as usize, 10_000);
            // Where no bar is drawn, a line now and then.
            if step.is_multiple_of(100) {
                note(&format!(
                    "step {step}: loss {loss:.3}, {captions_per_sec:.0} captions/s, {:.0} % done, \
                     {:.1} min left",
                    100.0 * share,
                    secs_left / 60.0
                ));
            }
        }
        Event::Checkpoint { step, scores } => {
            let scores = scores.map_or_else(String::new, |scores| {
                let (cider, bleu) = (100.0 * scores.cider, 100.0 * scores.bleu[3]);
                format!(": CIDEr {cider:.1}, BLEU-4 {bleu:.1}")
            });
            note(&format!("checkpoint at step {step}{scores}"));
        }
    }
}

fn print(finished: &Finished) -> Result<(), Error> {
    let minutes = finished.cpu_secs / 60.0;
    print_line(&format!("{} steps in {minutes:.1} min of processor time", finished.steps))?;
    if let Some(scores) = &finished.scores {
        print_line(&format!(
            "dev: CIDEr {:.1}, BLEU-4 {:.1}, ROUGE-L {:.1}",
            100.0 * scores.cider,
            100.0 * scores.bleu[3],
            100.0 * scores.rouge_l
        ))?;
    }
    for file in &finished.files {
        print_line(&file.display().to_string())?;
    }
    Ok(())
}
