//! `cinelex library check`: finds every inconsistency.

use std::path::PathBuf;

use serde::Serialize;

use super::super::counter::Counter;
use super::super::{CommandResult, Failure, Outcome, interrupt, one_line, print_json, print_line};
use crate::error::{Error, Result};
use crate::graph::Cancel;
use crate::library::{self, Fault, Finding, Step};

#[derive(clap::Args, Debug)]
pub struct Args {
    /// The library's folder
    #[arg(value_name = "DIR")]
    library: PathBuf,
    /// Print a JSON object for each finding, and one at the end
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Checked {
    /// Findings but those that are only unfinished.
    faults: usize,
    unfinished: usize,
}

pub fn run(args: Args) -> CommandResult {
    let cancel = interrupt::cancel_on_signal()?;
    let counter = (!args.json).then(Counter::new);
    let found = library::check(&args.library, &mut |step| tell(step, counter.as_ref(), &cancel));
    if let Some(counter) = &counter {
        counter.finish();
    }
    let findings = found.map_err(|error| match error.kind() {
        crate::error::Kind::Cancelled => Failure::from(error),
        _ => Failure::cannot_open(error),
    })?;
    let unfinished = findings.iter().filter(|found| found.fault == Fault::Unfinished).count();
    let faults = findings.len() - unfinished;
    if args.json {
        for finding in &findings {
            print_json("finding", finding)?;
        }
        print_json("checked_library", &Checked { faults, unfinished })?;
    } else {
        print_findings(&findings)?;
        print_line(match faults {
            0 => "Nothing is wrong.",
            _ => "Something is wrong: `cinelex library rebuild` mends what it says.",
        })?;
    }
    Ok(if faults == 0 { Outcome::Done } else { Outcome::SomeFailed })
}

/// Shows how far a check or rebuild is; an error where the user has had enough.
pub(super) fn tell(step: Step, counter: Option<&Counter>, cancel: &Cancel) -> Result<()> {
    if cancel.is_cancelled() {
        return Err(Error::cancelled());
    }
    if let Some(counter) = counter {
        let count = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        counter.show(step.name, count(step.done), count(step.of));
    }
    Ok(())
}

pub(super) fn print_findings(findings: &[Finding]) -> Result<()> {
    if findings.is_empty() {
        return Ok(());
    }
    print_line(&format!(
        "{:<22}{:<18}{:>9}  {:<24}  what",
        "fault", "where", "how many", "mended by"
    ))?;
    for Finding { fault, place, count, detail, remedy } in findings {
        print_line(&format!(
            "{:<22}{:<18}{count:>9}  {:<24}  {}",
            fault.as_str(),
            one_line(place),
            remedy.as_str(),
            one_line(detail)
        ))?;
    }
    print_line("")
}
