//! `cinelex models`: which models are known and what is there of them.

use std::path::Path;

use serde::Serialize;

use super::calibrate;
use super::{CommandResult, Failure, Outcome, print_json, print_line};
use crate::error::Result;
use crate::model::{Commercial, FileState, FoundFile, Manifest, Models, Variant};

#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// List the built-in models: licence, size, and whether they are there
    #[command(after_help = "Example:\n  cinelex models list")]
    List(Which),
    /// Hash every file of the models that are there and compare with the manifests
    #[command(after_help = "Example:\n  cinelex models check minilm")]
    Check(Which),
    /// Print the ranges of an encoder's activations, which its int8 variant is made with
    #[command(after_help = "Example:\n  cinelex models calibrate efficientnet-lite0 photos/*.jpg")]
    Calibrate(calibrate::Args),
}

#[derive(clap::Args, Debug)]
struct Which {
    /// Ids or manifests (paths ending in .toml); all built-in models where none is given
    models: Vec<String>,

    /// One JSON object a line: kind "model" for each model
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> CommandResult {
    let (which, check) = match args.command {
        Command::List(which) => (which, false),
        Command::Check(which) => (which, true),
        Command::Calibrate(args) => return calibrate::run(args),
    };
    let models = Models::open().map_err(Failure::cannot_open)?;
    let mut manifests = Vec::new();
    for name in &which.models {
        manifests.push(models.manifest(name).map_err(Failure::usage)?);
    }
    if which.models.is_empty() {
        manifests = models.built_in().iter().flat_map(Manifest::variants).collect();
    }
    let mut lines = Vec::new();
    for manifest in &manifests {
        lines.push(ModelLine::of(&models, manifest, check)?);
    }
    if which.json {
        for line in &lines {
            print_json("model", line)?;
        }
    } else {
        ModelLine::print_table(&lines)?;
    }
    // A model that was never fetched is no fault, unless it was asked for by name.
    let is_wrong = |line: &ModelLine| match line.state {
        State::Ready => false,
        State::Missing => !which.models.is_empty(),
        State::Incomplete | State::Damaged => true,
    };
    let failed = check && lines.iter().any(is_wrong);
    Ok(if failed { Outcome::SomeFailed } else { Outcome::Done })
}

/// One model, as it is shown.
#[derive(Debug, Serialize)]
pub(super) struct ModelLine {
    id: String,
    variant: Variant,
    version: String,
    task: &'static str,
    about: String,
    licence: String,
    commercial: Commercial,
    state: State,
    /// Of all files, converted ones too.
    bytes: u64,
    files: Vec<FoundFile>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Ready,
    Missing,
    /// Some files are there, others not.
    Incomplete,
    Damaged,
}

impl ModelLine {
    pub(super) fn of(models: &Models, manifest: &Manifest, check: bool) -> Result<ModelLine> {
        let files = models.files(manifest, check)?;
        let missing = files.iter().filter(|file| file.state == FileState::Missing).count();
        let state = if files.iter().any(|file| matches!(file.state, FileState::Damaged(_))) {
            State::Damaged
        } else if missing == 0 && !files.is_empty() {
            State::Ready
        } else if missing == files.len() {
            State::Missing
        } else {
            State::Incomplete
        };
        Ok(ModelLine {
            id: manifest.id.clone(),
            variant: manifest.variant,
            version: manifest.version.clone(),
            task: manifest.task.as_str(),
            about: manifest.about.clone(),
            licence: manifest.licence.clone(),
            commercial: manifest.commercial,
            state,
            bytes: files.iter().map(|file| file.bytes).sum(),
            files,
        })
    }

    /// As it is written to name this model.
    fn name(&self) -> String {
        self.variant.name(&self.id)
    }

    pub(super) fn print_table(lines: &[ModelLine]) -> Result<()> {
        let longest = lines.iter().map(|line| line.name().len()).max().unwrap_or(0);
        let licence =
            lines.iter().map(|line| line.licence.chars().count()).max().unwrap_or(0).max(7);
        let head = format!(
            "{:longest$}  {:8} {:9} {:>10}  {:licence$}  {:10} {:10} where",
            "model", "version", "task", "size", "licence", "commercial", "state"
        );
        print_line(&head)?;
        for line in lines {
            let state = match line.state {
                State::Ready => "ready",
                State::Missing => "missing",
                State::Incomplete => "incomplete",
                State::Damaged => "DAMAGED",
            };
            let commercial = match line.commercial {
                Commercial::Yes => "yes",
                Commercial::No => "no",
                Commercial::Unknown => "unknown",
            };
            let size = indicatif::BinaryBytes(line.bytes).to_string();
            let first = line.files.first().and_then(|file| file.path.as_deref());
            let place = first.and_then(Path::parent);
            let place = place.map_or("(built in)".to_owned(), |place| place.display().to_string());
            print_line(&format!(
                "{:longest$}  {:8} {:9} {size:>10}  {:licence$}  {commercial:10} {state:10} {place}",
                line.name(),
                line.version,
                line.task,
                line.licence
            ))?;
            for file in &line.files {
                if let FileState::Damaged(reason) = &file.state {
                    print_line(&format!("{:longest$}  {reason}", ""))?;
                }
            }
        }
        Ok(())
    }
}
