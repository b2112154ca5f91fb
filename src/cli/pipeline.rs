//! `cinelex pipeline`: what can be computed, and whether a pipeline file is right.

use serde::Serialize;

use super::{CommandResult, Failure, Outcome, print_json, print_line};
use crate::model::Models;
use crate::pipeline::Pipeline;

#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// List the pipelines that are built in
    #[command(after_help = "Example:\n  cinelex pipeline list")]
    List {
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Check a pipeline file and show every mistake with its line
    #[command(after_help = "Example:\n  cinelex pipeline check my-pipeline.toml")]
    Check {
        /// A file, or a built-in pipeline's name
        file: String,
        /// One JSON object a line, for each mistake
        #[arg(long)]
        json: bool,
    },
}

pub fn run(args: Args) -> CommandResult {
    let models = Models::open().map_err(Failure::cannot_open)?;
    match args.command {
        Command::List { json } => {
            for listed in Pipeline::list(&models)? {
                if json {
                    print_json("pipeline", &listed)?;
                } else {
                    print_line(&format!("{:<12}{}", listed.name, listed.about))?;
                }
            }
            Ok(Outcome::Done)
        }
        Command::Check { file, json } => check(&file, json, &models),
    }
}

fn check(file: &str, json: bool, models: &Models) -> CommandResult {
    #[derive(Serialize)]
    struct Checked<'a> {
        file: &'a str,
        mistakes: usize,
    }
    let mistakes = match Pipeline::check(file, models).map_err(Failure::cannot_open)? {
        Ok(_) => Vec::new(),
        Err(mistakes) => mistakes,
    };
    for mistake in &mistakes {
        if json { print_json("mistake", mistake)? } else { print_line(&mistake.to_string())? }
    }
    if json {
        print_json("checked", &Checked { file, mistakes: mistakes.len() })?;
    } else if mistakes.is_empty() {
        print_line(&format!("{file}: no mistakes"))?;
    }
    if mistakes.is_empty() { Ok(Outcome::Done) } else { Err(Failure::told(2)) }
}
