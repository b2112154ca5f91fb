//! `cinelex library info`: what a library holds.

use std::path::PathBuf;

use serde_json::Value;

use super::super::{CommandResult, Outcome, counted, one_line, print_json, print_line};
use super::{bytes, open, watch};
use crate::error::Result;
use crate::library::{Info, Origin, Source, State, Watch};
use crate::time::Micros;

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
    let reader = open(&args.library)?;
    let info = reader.info()?;
    if args.json {
        print_json("info", &info)?;
    } else {
        print_info(&info, &reader.sources()?)?;
    }
    Ok(Outcome::Done)
}

/// A source that has no end.
fn is_live(source: &Source) -> bool {
    source.origin == Origin::Live && source.state == State::New
}

/// How a live source is, where that is known.
fn watch_of<'a>(info: &'a Info, source: &Source) -> Option<&'a Watch> {
    let id = source.id.to_string();
    let is_of = |watch: &&Watch| watch.status.get("id").and_then(Value::as_str) == Some(&id);
    info.streams.iter().find(is_of)
}

fn print_info(info: &Info, sources: &[Source]) -> Result<()> {
    let live = sources.iter().filter(|source| is_live(source)).count() as u64;
    let new = info.sources.saturating_sub(info.complete + info.failed + live);
    let mut state = match (new, info.failed) {
        (0, 0) => String::new(),
        (new, failed) => {
            format!("  ({} complete, {failed} failed, {new} not read to the end)", info.complete)
        }
    };
    if live > 0 {
        state.push_str(&format!("  ({live} live)"));
    }
    print_line(&format!("sources   {}{state}", info.sources))?;
    print_line(&format!("length    {}", Micros::from_secs_f64(info.hours * 3_600.0)))?;
    for (name, count) in [
        ("clips", info.clips),
        ("segments", info.segments),
        ("cues", info.cues),
        ("gaps", info.gaps),
    ] {
        print_line(&format!("{name:<9} {count}"))?;
    }
    print_line(&format!("size      {}", bytes(info.bytes)))?;
    for recipe in &info.recipes {
        let id = recipe.recipe.id.to_string();
        print_line(&format!(
            "recipe    {:.12} for {}s, {}: {}, {} complete",
            id,
            recipe.recipe.kind.as_str(),
            if recipe.current { "current" } else { "being built" },
            counted(recipe.rows, recipe.recipe.kind.as_str()),
            counted(recipe.complete, "source")
        ))?;
    }
    if sources.is_empty() {
        return Ok(());
    }
    print_line("")?;
    print_line(&format!("{:<8}  {:>12}  {:<8}  name", "id", "length", "state"))?;
    for source in sources {
        let watch = watch_of(info, source).filter(|_| is_live(source));
        let state = match (source.state, watch) {
            _ if source.is_gone() => "gone",
            (_, Some(watch)) => watch::word(watch::how(watch)),
            _ if is_live(source) => "live",
            (state, None) => state.as_str(),
        };
        let id = source.id.to_string();
        let length = source.duration.map_or_else(|| "-".into(), |length| length.to_string());
        let mut name = one_line(&source.name);
        for (tag, value) in &source.tags {
            name.push_str(&one_line(&format!("  {tag}={value}")));
        }
        print_line(&format!("{id:.8}  {length:>12}  {state:<8}  {name}"))?;
        if let Some(watch) = watch {
            print_line(&format!("{:34}{}", "", watch::state(watch)))?;
        }
    }
    Ok(())
}
