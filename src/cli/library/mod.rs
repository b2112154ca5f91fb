//! `cinelex library`: what a library holds, what is known of a source, and forgetting one; keeping a
//! library whole; joining libraries, and writing them out for other programs. Each subcommand is a
//! module.

mod check;
mod compact;
mod export;
mod forget;
mod info;
mod merge;
mod rebuild;
mod show;
mod tag;
pub mod watch;

use std::path::Path;

use super::{CommandResult, Failure};
use crate::library::Reader;

/// Look into a library, mark, merge and export it, remove a source from it, check and mend it
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Count what a library holds
    #[command(after_help = "Example:\n  cinelex library info films.library")]
    Info(info::Args),
    /// Show a source's segments and clips with their words
    #[command(after_help = "Example:\n  cinelex library show films.library talk.mp4")]
    Show(show::Args),
    /// Remove a source and every trace of it; its file is not touched
    #[command(after_help = "Example:\n  cinelex library forget films.library talk.mp4")]
    Forget(forget::Args),
    /// Set, remove and show a source's tags
    #[command(after_help = "Examples:
  cinelex library tag films.library talk.mp4 shelf=12 speaker=Ann
  cinelex library tag films.library talk.mp4 shelf=")]
    Tag(tag::Args),
    /// Take over what other libraries have; they stay as they are
    #[command(after_help = "Example:
  cinelex library merge archive.library laptop.library studio.library")]
    Merge(merge::Args),
    /// Write a library's rows, vectors and visual words for other programs
    #[command(after_help = "Examples:
  cinelex library export films.library --format parquet -o films.tables
  cinelex library export films.library --format jsonl --what segments -o segments.jsonl")]
    Export(export::Args),
    /// Find every inconsistency; nothing is written
    #[command(after_help = "Example:\n  cinelex library check films.library

Exit codes: 0 nothing is wrong; 1 something is; 3 the library could not be opened.")]
    Check(check::Args),
    /// Make every derived part anew, and save what can be saved of a damaged library
    #[command(after_help = "Example:\n  cinelex library rebuild films.library

The damaged files are kept beside the new ones until you delete them. What is lost is read again
by the next `cinelex index` of the same sources.")]
    Rebuild(rebuild::Args),
    /// Give free space back to the file system
    #[command(after_help = "Example:\n  cinelex library compact films.library")]
    Compact(compact::Args),
}

pub fn run(args: Args) -> CommandResult {
    match args.command {
        Command::Info(args) => info::run(args),
        Command::Show(args) => show::run(args),
        Command::Forget(args) => forget::run(args),
        Command::Tag(args) => tag::run(args),
        Command::Merge(args) => merge::run(args),
        Command::Export(args) => export::run(args),
        Command::Check(args) => check::run(args),
        Command::Rebuild(args) => rebuild::run(args),
        Command::Compact(args) => compact::run(args),
    }
}

fn open(library: &Path) -> Result<Reader, Failure> {
    Reader::open(library).map_err(Failure::cannot_open)
}

/// A count of bytes for people.
fn bytes(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["bytes", "kB", "MB", "GB"] {
        if value < 1_000.0 {
            let digits = usize::from(unit != "bytes");
            return format!("{value:.digits$} {unit}");
        }
        value /= 1_000.0;
    }
    format!("{value:.1} TB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_shown_in_decimal_units() {
        assert_eq!(bytes(999), "999 bytes");
        assert_eq!(bytes(1_500), "1.5 kB");
        assert_eq!(bytes(3_000_000_000_000), "3.0 TB");
    }
}
