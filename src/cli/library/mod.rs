//! `cinelex library`: what a library holds, what is known of a source, forgetting one, and keeping
//! a library whole. Each subcommand is a module.

mod check;
mod compact;
mod forget;
mod info;
mod rebuild;
mod show;

use std::path::Path;

use super::{CommandResult, Failure};
use crate::library::Reader;

/// Look into a library, remove a source from it, check and mend it
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
