//! `cinelex library forget`: removes a source and every trace of it.

use std::path::PathBuf;

use super::super::{CommandResult, Failure, Outcome, counted, one_line, print_json, print_line};
use super::open;
use crate::library::Writer;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// The library's folder
    #[arg(value_name = "DIR")]
    library: PathBuf,
    /// The source's name, path, address, id or the beginning of its id
    source: String,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> CommandResult {
    // Looked up by a reader first, so that a mistyped folder makes no new library.
    let id = open(&args.library)?.source(&args.source)?.id;
    let mut writer = Writer::open(&args.library).map_err(Failure::cannot_open)?;
    let forgotten = writer.forget(id)?;
    if args.json {
        print_json("forgotten", &forgotten)?;
    } else {
        print_line(&format!(
            "forgot {}: {}, {}, {}, {}, {} of runs",
            one_line(&forgotten.name),
            counted(forgotten.clips, "clip"),
            counted(forgotten.segments, "segment"),
            counted(forgotten.cues, "cue"),
            counted(forgotten.gaps, "gap"),
            counted(forgotten.runs, "report")
        ))?;
        if forgotten.damaged_files > 0 {
            print_line(&format!(
                "deleted {} that `cinelex library rebuild` had kept: nobody can say what was in them",
                counted(forgotten.damaged_files, "damaged file")
            ))?;
        }
    }
    Ok(Outcome::Done)
}
