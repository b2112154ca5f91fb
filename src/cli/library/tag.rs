//! `cinelex library tag`: marks a source.

use std::path::PathBuf;

use serde::Serialize;

use super::super::{
    self as cli, CommandResult, Failure, Outcome, one_line, print_json, print_line,
};
use super::open;
use crate::library::{SourceId, Writer};

#[derive(clap::Args, Debug)]
pub struct Args {
    /// The library's folder
    #[arg(value_name = "DIR")]
    library: PathBuf,
    /// The source's name, path, address, id or the beginning of its id
    source: String,
    /// Tags to set; KEY= removes one. Without any, the source's tags are shown
    #[arg(value_name = "KEY=VALUE", value_parser = cli::tag)]
    tags: Vec<(String, String)>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Tagged<'a> {
    source: SourceId,
    name: &'a str,
    tags: &'a [(String, String)],
}

pub fn run(args: Args) -> CommandResult {
    // Looked up by a reader first, so that a mistyped folder makes no new library.
    let reader = open(&args.library)?;
    let id = reader.source(&args.source)?.id;
    if !args.tags.is_empty() {
        let mut writer = Writer::open(&args.library).map_err(Failure::cannot_open)?;
        writer.set_tags(id, &args.tags)?;
    }
    let source = reader.source(&id.to_string())?;
    if args.json {
        print_json("tagged", &Tagged { source: id, name: &source.name, tags: &source.tags })?;
    } else if source.tags.is_empty() {
        print_line(&format!("{} has no tags", one_line(&source.name)))?;
    } else {
        for (name, value) in &source.tags {
            print_line(&format!("{}={}", one_line(name), one_line(value)))?;
        }
    }
    Ok(Outcome::Done)
}
