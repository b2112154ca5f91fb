//! `cinelex library rebuild`: mends a library.

use std::path::PathBuf;

use super::super::counter::Counter;
use super::super::{CommandResult, Failure, Outcome, interrupt, one_line, print_json, print_line};
use super::check::{print_findings, tell};
use crate::error::{Kind, Result};
use crate::library::{self, Rebuilt};

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
    let cancel = interrupt::cancel_on_signal()?;
    let counter = (!args.json).then(Counter::new);
    let rebuilt =
        library::rebuild(&args.library, &mut |step| tell(step, counter.as_ref(), &cancel));
    if let Some(counter) = &counter {
        counter.finish();
    }
    let rebuilt = rebuilt.map_err(|error| match error.kind() {
        Kind::Cancelled | Kind::Exhausted => Failure::from(error),
        _ => Failure::cannot_open(error),
    })?;
    if args.json {
        print_json("rebuilt", &rebuilt)?;
    } else {
        print_rebuilt(&rebuilt)?;
    }
    Ok(Outcome::Done)
}

fn print_rebuilt(rebuilt: &Rebuilt) -> Result<()> {
    print_findings(&rebuilt.findings)?;
    if rebuilt.kept.is_empty() {
        return print_line("The record is whole. Everything that is derived was made anew.");
    }
    print_line(&format!(
        "A new record has every row that could be read: {} ({} of them kept as they read, though \
         they are not what was written). {} rows named what is lost, and went with it.",
        rebuilt.saved, rebuilt.doubtful, rebuilt.dropped
    ))?;
    for source in &rebuilt.sources {
        print_line(&format!(
            "  {:.8}  {}: {} chunks {}, {} clips and {} cues lost",
            source.source.to_string(),
            one_line(&source.name),
            source.chunks,
            if source.is_live { "damaged" } else { "to be read again" },
            source.clips,
            source.cues
        ))?;
    }
    if rebuilt.sources.iter().any(|source| !source.is_live) {
        print_line("Index these sources again to read what is lost.")?;
    }
    if rebuilt.sources.iter().any(|source| source.is_live) {
        print_line("What is lost of live streams cannot be had again, and is shown as a gap.")?;
    }
    print_line(&format!(
        "The damaged files are kept; delete them when you miss nothing: {}",
        rebuilt.kept.join(", ")
    ))
}
