//! What a user sees while an index run listens, and of where its time went. Needs `cinelex setup`.

use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::cinelex::{Ran, command, finish, run};
use crate::listening::{SENTENCES, film};

/// Runs `cinelex` on a terminal of its own, which `script` has; all that is drawn is in `out`.
fn on_a_terminal(arguments: &[&str]) -> Ran {
    let quoted = arguments.iter().map(|argument| format!(" '{argument}'")).collect::<String>();
    let line = format!("'{}'{quoted}", env!("CARGO_BIN_EXE_cinelex"));
    let mut command = Command::new("script");
    command.args(["-q", "-e", "-f", "-c", &line, "/dev/null"]).stdin(Stdio::null());
    finish(command.env("TERM", "xterm").env("COLUMNS", "160"))
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Whether `text` has a number between these two.
fn has_number(text: &str, before: &str, after: &str) -> bool {
    text.split(before).skip(1).any(|rest| {
        let digits = rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
        digits.len() < rest.len() && digits.starts_with(after)
    })
}

#[test]
fn index_shows_how_far_picture_and_sound_are_and_at_the_end_where_the_time_went() {
    let folder = TempDir::new().unwrap();
    let film = film(folder.path(), "talk.mp4", &SENTENCES);
    let library = folder.path().join("library");
    let arguments = ["index", text(&film), "--library", text(&library), "-v"];
    let ran = on_a_terminal(&arguments).exits(0);
    for shown in ["0 of 1 sources", "x real time", " left", "talk.mp4: ", "(en spoken)"] {
        assert!(ran.out.contains(shown), "{shown}: {ran:?}");
    }
    assert!(has_number(&ran.out, "x real time, sound ", " %"), "{ran:?}");
    check_table(&ran.out);

    // Elsewhere nothing is drawn: a line a source, and the table apart from it.
    let again = folder.path().join("again");
    let ran = run(["index", text(&film), "--library", text(&again), "-v"]).exits(0);
    assert!(ran.err.contains("[1/1] ") && ran.err.contains("(en spoken)"), "{ran:?}");
    assert!(!ran.err.contains('\u{1b}') && !ran.err.contains("real time"), "{ran:?}");
    check_table(&ran.out);
    let mut without = command(["index", "--verify", "--library"]);
    let ran = finish(without.arg(&again).arg(&film)).exits(0);
    assert!(!ran.out.contains("busy"), "{ran:?}");
}

/// The table has each stage once, with all its numbers, and the line below says what bounds the run.
fn check_table(out: &str) {
    let lines: Vec<&str> = out.lines().map(str::trim_end).collect();
    let head = lines.iter().position(|line| line.starts_with("stage ")).expect(out);
    let stages = ["decode", "clip", "encode", "quantize", "record", "segment", "caption", "listen"];
    for (line, stage) in lines[head + 1..].iter().zip(stages) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        assert_eq!((fields[0], fields.len()), (stage, 9), "{out}");
        assert!(fields[1].parse::<u64>().unwrap() > 0, "{line}");
        let is_number = |field: &&str| field.trim_end_matches('%').parse::<f64>().is_ok();
        assert!(fields[1..].iter().all(is_number), "{line}");
    }
    assert!(has_number(out, " frames: ", " decoded"), "{out}");
    assert!(has_number(out, " processors: ", " % of them; the others wait for `"), "{out}");
}

#[test]
fn transcribe_shows_how_far_it_is() {
    let folder = TempDir::new().unwrap();
    let film = film(folder.path(), "talk.mp4", &SENTENCES);
    let vtt = folder.path().join("talk.vtt");
    let ran = on_a_terminal(&["transcribe", text(&film), "-o", text(&vtt)]).exits(0);
    for shown in ["0 of 1 sources", "x real time", " left", "talk.mp4: ", ", en ("] {
        assert!(ran.out.contains(shown), "{shown}: {ran:?}");
    }
    assert!(std::fs::read_to_string(&vtt).unwrap().starts_with("WEBVTT"));
}
