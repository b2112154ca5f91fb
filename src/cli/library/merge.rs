//! `cinelex library merge`: joins libraries.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::super::counter::Counter;
use super::super::{
    CommandResult, Failure, Outcome, counted, interrupt, note, one_line, print_json, print_line,
};
use super::open;
use crate::error::{Error, Kind, Result};
use crate::library::{Merged, Writer};

#[derive(clap::Args, Debug)]
pub struct Args {
    /// The library that takes over what it has not; made if it is not there
    #[arg(value_name = "INTO")]
    into: PathBuf,
    /// The libraries that it is taken from
    #[arg(value_name = "FROM", required = true)]
    from: Vec<PathBuf>,
    /// One JSON object a line: a `merged` for each library
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Line<'a> {
    from: String,
    library_id: &'a str,
    #[serde(flatten)]
    merged: &'a Merged,
    /// Sources of the joined library whose pictures search does not know.
    unseen: u64,
    interrupted: bool,
}

pub fn run(args: Args) -> CommandResult {
    let mut readers = Vec::new();
    for from in &args.from {
        if same_folder(from, &args.into) {
            return Err(Failure::usage(Error::invalid_input(format!(
                "{} cannot be merged into itself",
                from.display()
            ))));
        }
        readers.push((from, open(from)?));
    }
    let mut writer = Writer::open(&args.into).map_err(Failure::cannot_open)?;
    let cancel = interrupt::cancel_on_signal()?;
    let counter = Counter::new();
    let mut outcome = Outcome::Done;
    for (from, reader) in &readers {
        let mut merged = Merged::default();
        let result = writer.merge(reader, &mut merged, &mut |done, of| {
            counter.show("sources", done as usize, of as usize);
            if cancel.is_cancelled() { Err(Error::cancelled()) } else { Ok(()) }
        });
        counter.finish();
        let interrupted = match result {
            Err(error) if error.kind() == Kind::Cancelled => true,
            result => {
                result?;
                false
            }
        };
        let unseen = writer.unseen_by_search()?;
        if args.json {
            let (from, library_id) = (from.display().to_string(), &*reader.library_id()?);
            print_json("merged", &Line { from, library_id, merged: &merged, unseen, interrupted })?;
        } else {
            print_merged(from, &merged)?;
        }
        if !merged.damaged.is_empty() {
            outcome = Outcome::SomeFailed;
        }
        if interrupted {
            note("Interrupted: what was taken over is kept. The same command goes on from there.");
            return Ok(Outcome::Interrupted);
        }
    }
    let unseen = writer.unseen_by_search()?;
    if unseen > 0 && !args.json {
        print_line(&format!(
            "{} only another pipeline has read: search finds the words there and not the pictures, until \
             `cinelex index --library {}` has read them with this library's pipeline",
            counted(unseen, "source"),
            args.into.display()
        ))?;
    }
    Ok(outcome)
}

fn same_folder(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

fn print_merged(from: &Path, merged: &Merged) -> Result<()> {
    print_line(&format!(
        "{}: {}, {} of them new here; took over {}, {}, {}, {}, {}",
        one_line(&from.display().to_string()),
        counted(merged.sources, "source"),
        merged.added,
        counted(merged.clips, "clip"),
        counted(merged.segments, "segment"),
        counted(merged.cues, "cue"),
        counted(merged.tags, "tag"),
        counted(merged.locations, "place"),
    ))?;
    for conflict in &merged.conflicts {
        print_line(&one_line(&format!(
            "  {:.8}: {}: kept {}, not {}",
            conflict.source.to_string(),
            conflict.what,
            conflict.kept,
            conflict.dropped
        )))?;
    }
    for damage in &merged.damaged {
        print_line(&one_line(&format!(
            "  {}: {} left out: {}",
            damage.name, damage.what, damage.reason
        )))?;
    }
    if merged.to_understand > 0 {
        print_line(&format!(
            "  {} with new words: the next `cinelex index` makes the segments anew",
            counted(merged.to_understand, "source")
        ))?;
    }
    Ok(())
}
