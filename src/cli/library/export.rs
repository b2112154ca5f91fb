//! `cinelex library export`: a library's rows for other programs.

use std::path::PathBuf;

use super::super::counter::Counter;
use super::super::{CommandResult, Failure, Outcome, counted, interrupt, print_json, print_line};
use super::{bytes, open};
use crate::error::Error;
use crate::export::{Format, What, export};

#[derive(clap::Args, Debug)]
pub struct Args {
    /// The library's folder
    #[arg(value_name = "DIR")]
    library: PathBuf,
    /// How to write
    #[arg(long, value_enum)]
    format: Format,
    /// Only these rows; may be repeated
    #[arg(long, value_enum)]
    what: Vec<What>,
    /// Only of this source: its id or the beginning of it, its name, or its path; may be repeated
    #[arg(long)]
    source: Vec<String>,
    /// With one `--what`, the new file; else a folder, in which each kind of rows gets a file
    #[arg(short, long, value_name = "FILE|DIR")]
    output: PathBuf,
    /// One JSON object a line: an `exported` for each file
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> CommandResult {
    let reader = open(&args.library)?;
    let sources = if args.source.is_empty() {
        reader.sources()?
    } else {
        let mut named = Vec::new();
        for name in &args.source {
            let source = reader.source(name).map_err(Failure::usage)?;
            if !named.contains(&source) {
                named.push(source);
            }
        }
        named
    };
    let mut kinds = if args.what.is_empty() { What::ALL.to_vec() } else { args.what.clone() };
    kinds.sort();
    kinds.dedup();
    let files: Vec<(What, PathBuf)> = if let [what] = kinds[..] {
        vec![(what, args.output.clone())]
    } else {
        let folder = &args.output;
        if folder.is_file() {
            let wrong = format!(
                "{} is a file, and several kinds of rows need a folder: name one, or a kind (--what)",
                folder.display()
            );
            return Err(Failure::usage(Error::invalid_input(wrong)));
        }
        std::fs::create_dir_all(folder)
            .map_err(|cause| Error::io(folder, "make the folder", cause))?;
        let file = |what: What| folder.join(format!("{}.{}", what.as_str(), args.format.as_str()));
        kinds.iter().map(|&what| (what, file(what))).collect()
    };
    // Before the first is written.
    if let Some((_, file)) = files.iter().find(|(_, file)| file.exists()) {
        let wrong = format!("{} exists already: name a new one", file.display());
        return Err(Failure::usage(Error::invalid_input(wrong)));
    }
    let cancel = interrupt::cancel_on_signal()?;
    let info = reader.info()?;
    for (what, file) in &files {
        let counter = Counter::new();
        let whole = args.source.is_empty();
        let of = match what {
            What::Sources => info.sources,
            What::Clips => info.clips,
            What::Segments => info.segments,
            What::Cues => info.cues,
        };
        let exported = export(&reader, &sources, (*what, args.format), file, &mut |done, rows| {
            // How many rows a few sources have is not counted.
            match whole {
                true => counter.show(what.as_str(), rows as usize, of as usize),
                false => counter.show("sources", done, sources.len()),
            }
            if cancel.is_cancelled() { Err(Error::cancelled()) } else { Ok(()) }
        });
        counter.finish();
        let exported = exported?;
        if args.json {
            print_json("exported", &exported)?;
        } else {
            print_line(&format!(
                "{}: {}, {}",
                file.display(),
                counted(exported.rows, what.as_str().trim_end_matches('s')),
                bytes(exported.bytes)
            ))?;
        }
    }
    Ok(Outcome::Done)
}
