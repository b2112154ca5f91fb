//! Runs the executable as a user does, and reads what it prints.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// What a command printed and how it ended.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    pub fn new(output: &Output) -> Ran {
        Ran {
            // Ended by a signal: no code is that.
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// The JSON lines of one kind; every line must be an object of schema 1.
    pub fn lines(&self, kind: &str) -> Vec<Value> {
        let lines = self.out.lines().map(|line| {
            let value: Value = serde_json::from_str(line)
                .unwrap_or_else(|error| panic!("{error} in the line {line}"));
            assert_eq!(value["schema"], 1, "{line}");
            value
        });
        lines.filter(|line| line["kind"] == kind).collect()
    }

    /// The one JSON line of this kind.
    pub fn line(&self, kind: &str) -> Value {
        let lines = self.lines(kind);
        assert_eq!(lines.len(), 1, "{kind} lines in {self:?}");
        lines[0].clone()
    }

    /// How the source of this file name fared.
    pub fn source(&self, name: &str) -> Value {
        let ends =
            |line: &&Value| line["source"].as_str().is_some_and(|source| source.ends_with(name));
        let lines = self.lines("source_report");
        let found: Vec<_> = lines.iter().filter(ends).collect();
        assert_eq!(found.len(), 1, "sources named {name} in {self:?}");
        found[0].clone()
    }

    pub fn exits(self, code: i32) -> Ran {
        assert_eq!(self.code, code, "{self:?}");
        self
    }
}

/// A command that has not started.
pub fn command<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cinelex"));
    command.args(arguments).stdin(Stdio::null());
    command
}

pub fn run<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Ran {
    Ran::new(&command(arguments).output().unwrap())
}

pub fn finish(command: &mut Command) -> Ran {
    Ran::new(&command.output().unwrap())
}

/// `cinelex index SOURCES… --library LIBRARY --json`.
pub fn index(library: &Path, sources: &[&Path]) -> Ran {
    index_with(library, sources, &[])
}

pub fn index_with(library: &Path, sources: &[&Path], options: &[&str]) -> Ran {
    let mut command = command(["index", "--json", "--library"]);
    command.arg(library).args(options).args(sources);
    Ran::new(&command.output().unwrap())
}

pub fn search(library: &Path, options: &[&str]) -> Ran {
    let mut command = command(["search", "--json"]);
    command.arg(library).args(options);
    Ran::new(&command.output().unwrap())
}

pub fn info(library: &Path) -> Value {
    let mut command = command(["library", "info", "--json"]);
    Ran::new(&command.arg(library).output().unwrap()).exits(0).line("info")
}

/// `library show`, one JSON line for the source and for each segment, clip, cue and gap.
pub fn show(library: &Path, source: &str) -> Ran {
    let mut command = command(["library", "show", "--json"]);
    Ran::new(&command.arg(library).arg(source).output().unwrap())
}
