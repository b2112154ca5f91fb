//! Every command explains itself, and the guide knows it.

use std::path::Path;
use std::process::Command;

fn help(command: &[String]) -> String {
    let output =
        Command::new(env!("CARGO_BIN_EXE_cinelex")).args(command).arg("--help").output().unwrap();
    assert!(output.status.success(), "cinelex {} --help", command.join(" "));
    String::from_utf8(output.stdout).unwrap()
}

/// The names under `Commands:`, without clap's own.
fn subcommands(help: &str) -> Vec<String> {
    help.lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect()
}

/// Each command that does something, by its words.
fn commands() -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let mut open = vec![Vec::new()];
    while let Some(command) = open.pop() {
        let inner = subcommands(&help(&command));
        if inner.is_empty() {
            found.push(command.clone());
        }
        open.extend(inner.into_iter().map(|name| [command.as_slice(), &[name]].concat()));
    }
    found.sort();
    found
}

#[test]
fn every_command_has_an_example_and_json() {
    let all = commands();
    assert!(all.len() >= 8, "{all:?}");
    for command in all {
        let help = help(&command);
        let name = command.join(" ");
        assert!(help.contains("Example"), "cinelex {name} --help has no example");
        assert!(help.contains(&format!("  cinelex {}", command[0])), "{name}: the example");
        assert!(help.contains("--json"), "cinelex {name} has no --json");
    }
}

#[test]
fn the_guide_describes_every_command() {
    let guide = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md"));
    let guide = guide.unwrap();
    let headings: Vec<&str> = guide.lines().filter(|line| line.starts_with("### ")).collect();
    for command in commands() {
        let is_described = headings.iter().any(|heading| {
            heading.contains(&format!("cinelex {}", command[0]))
                || heading.contains(&format!("`{} ", command[0]))
        }) && command.iter().all(|word| guide.contains(word.as_str()));
        assert!(is_described, "README.md says nothing of cinelex {}", command.join(" "));
    }
}

#[test]
fn a_wrong_argument_is_wrong_usage() {
    let run = |arguments: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_cinelex")).args(arguments).output().unwrap()
    };
    for wrong in [&["unheard-of"][..], &["index"], &["search"], &["index", "x", "--worker", "2"]] {
        let output = run(wrong);
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
        assert!(!output.stderr.is_empty(), "{wrong:?}");
    }
}
