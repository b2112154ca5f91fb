//! Arguments, progress, exit codes. Each command is a module with its `Args` (what was typed) and
//! `run`; what the words mean is decided there, the work is done in the rooms below.

pub mod models;
pub mod setup;

use std::io::Write;
use std::process::ExitCode;

use serde::Serialize;

use crate::error::{Error, Kind};

/// How a command that could do its work ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Exit code 0.
    Done,
    /// Exit code 1: some or all inputs failed; each was reported.
    SomeFailed,
    /// Exit code 130: interrupted; what was finished is kept.
    Interrupted,
}

/// Why a command could not do its work, with its exit code.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    error: Error,
}

impl Failure {
    /// Exit code 2: wrong usage or configuration.
    pub fn usage(error: Error) -> Self {
        Failure { code: 2, error }
    }

    /// Exit code 3: the library, a model or the pipeline could not be opened.
    pub fn cannot_open(error: Error) -> Self {
        Failure { code: 3, error }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let code = if error.kind() == Kind::Cancelled { 130 } else { 1 };
        Failure { code, error }
    }
}

pub type CommandResult = Result<Outcome, Failure>;

/// One line of `--json` output: `{"schema":1,"kind":KIND,…value}`.
pub fn print_json(kind: &'static str, value: &impl Serialize) -> Result<(), Error> {
    #[derive(Serialize)]
    struct Line<'a, T: Serialize> {
        schema: u32,
        kind: &'static str,
        #[serde(flatten)]
        value: &'a T,
    }
    let line = serde_json::to_string(&Line { schema: 1, kind, value })
        .map_err(|cause| Error::internal("cannot write JSON").caused_by(cause))?;
    print_line(&line)
}

/// A line on standard output. A closed pipe (`| head`) ends the program quietly.
pub fn print_line(line: &str) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{line}") {
        Ok(()) => Ok(()),
        Err(cause) if cause.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(cause) => Err(Error::io("standard output", "write to", cause)),
    }
}

pub fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|command| command == "decoder-host") {
        return crate::source::host::main();
    }
    ExitCode::SUCCESS
}
