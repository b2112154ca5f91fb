//! `cinelex library compact`: gives free space back.

use std::path::PathBuf;

use super::super::{CommandResult, Failure, Outcome, print_json, print_line};
use super::{bytes, open};
use crate::library::Writer;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// The library's folder
    #[arg(value_name = "DIR")]
    library: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> CommandResult {
    // Looked at by a reader first, so that a mistyped folder makes no new library.
    drop(open(&args.library)?);
    let mut writer = Writer::open(&args.library).map_err(Failure::cannot_open)?;
    let compacted = writer.compact()?;
    if args.json {
        print_json("compacted", &compacted)?;
    } else {
        print_line(&format!(
            "{} before, {} after",
            bytes(compacted.before_bytes),
            bytes(compacted.after_bytes)
        ))?;
    }
    Ok(Outcome::Done)
}
