//! One pipeline takes over from another: beside it, in one step, and never before it is complete.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use crate::cinelex::{Ran, command, finish, index, index_with, info, run, search, show};
use crate::indexing::film;
use crate::media::ffmpeg;

const WORDS: &str = "1\n00:00:00,200 --> 00:00:01,400\nThe harbour lies in the fog.\n\n\
                     2\n00:00:01,600 --> 00:00:02,800\nA ferry sounds its horn.\n";

/// The default pipeline with one thing changed.
fn pipeline(folder: &Path, name: &str, from: &str, to: &str) -> String {
    let text = include_str!("../../pipelines/default.toml");
    assert!(text.contains(from));
    let path = folder.join(name);
    fs::write(&path, text.replace(from, to)).unwrap();
    path.display().to_string()
}

/// Another recipe for clips, and so for segments.
fn one_frame(folder: &Path) -> String {
    pipeline(folder, "one-frame.toml", "frames_per_clip = 2", "frames_per_clip = 1")
}

/// Two films with words, of three and four seconds.
fn two_films(folder: &Path) -> (PathBuf, PathBuf) {
    let one = film(folder, "one.mp4");
    ffmpeg(
        folder,
        "-f lavfi -i mandelbrot=s=320x180:r=25 -t 4 -c:v libx264 -g 25 -pix_fmt yuv420p two.mp4",
    );
    for name in ["one.srt", "two.srt"] {
        fs::write(folder.join(name), WORDS).unwrap();
    }
    (one, folder.join("two.mp4"))
}

/// The clip recipe whose rows are searched, by how many frames it samples.
fn frames_of_current(library: &Path) -> Value {
    let info = info(library);
    let recipes = info["recipes"].as_array().unwrap().clone();
    let current = |recipe: &&Value| recipe["kind"] == "clip" && recipe["current"] == true;
    recipes.iter().find(current).unwrap()["description"]["frames_per_clip"].clone()
}

fn decoded(ran: &Ran) -> u64 {
    let run = ran.line("run");
    let stages = run["stages"].as_array().unwrap().clone();
    let decode = stages.iter().find(|stage| stage["stage"] == "decode").unwrap();
    decode["items"].as_u64().unwrap()
}

/// How many hits each channel has, for a query that every film answers.
fn hits(library: &Path) -> (usize, usize) {
    let of =
        |channel| search(library, &["ferry", "--channel", channel]).exits(0).lines("hit").len();
    (of("picture"), of("speech"))
}

#[test]
fn other_sentence_rules_decode_nothing_and_need_no_file() {
    let folder = TempDir::new().unwrap();
    let (one, two) = two_films(folder.path());
    let library = folder.path().join("library");
    index(&library, &[&one, &two]).exits(0);
    let clips = |name| show(&library, name).lines("clip");
    let before = (clips("one.mp4"), clips("two.mp4"));
    let shorter = pipeline(folder.path(), "shorter.toml", "max_clips = 16", "max_clips = 1");

    // One file is gone, the other is named; without any name, all that the library has is meant.
    fs::remove_file(&one).unwrap();
    fs::remove_file(folder.path().join("one.srt")).unwrap();
    let mut again = command(["index", "--json", "--pipeline", &shorter, "--library"]);
    let ran = finish(again.arg(&library)).exits(0);
    assert_eq!(decoded(&ran), 0);
    let report = ran.line("run");
    assert_eq!((&report["waiting"], &report["left_behind"]), (&0.into(), &0.into()));
    assert!(report["segments"].as_u64().unwrap() >= 4, "{report}");
    for name in ["one.mp4", "two.mp4"] {
        assert_eq!(ran.source(name)["state"], "unchanged");
    }
    assert!(ran.source("one.mp4")["notices"][0].as_str().unwrap().contains("not there"));
    // The clips are the same rows, and the words of the missing film are still there.
    assert_eq!((clips("one.mp4"), clips("two.mp4")), before);
    let info = info(&library);
    assert_eq!(recipes_of_pictures(&info), 2, "{info}");
    assert_eq!(info["cues"], 4);
    assert_eq!(hits(&library).1, 4);
}

/// Those of clips and segments: what listens is another matter.
fn recipes_of_pictures(info: &Value) -> usize {
    let recipes = info["recipes"].as_array().unwrap().iter();
    recipes.filter(|recipe| recipe["kind"] != "speech").count()
}

#[test]
fn search_never_goes_dark_however_often_the_takeover_is_killed() {
    let folder = TempDir::new().unwrap();
    let (one, two) = two_films(folder.path());
    let library = folder.path().join("library");
    index(&library, &[&one, &two]).exits(0);
    let before = hits(&library);
    assert!(before.0 > 0 && before.1 > 0, "{before:?}");
    let other = one_frame(folder.path());
    for point in [
        "recipe-added:2",
        "features-synced",
        "chunk-committed",
        "source-finished",
        "segments-committed:2",
        "recipe-activated",
        "recipe-sweeping:2",
        "recipe-swept",
    ] {
        let mut killed = command(["index", "--pipeline", &other, "--library"]);
        killed.arg(&library).args([&one, &two]).env("CINELEX_DIE_AT", point);
        assert_eq!(finish(&mut killed).code, -1, "{point} was not reached");
        // Each film answers, whichever pipeline has read it.
        assert_eq!(hits(&library), before, "after {point}");
    }
    let ran = index_with(&library, &[&one, &two], &["--pipeline", &other]).exits(0);
    assert_eq!(ran.line("run")["waiting"], 0);
    assert_eq!((hits(&library), frames_of_current(&library)), (before, 1.into()));
    assert_eq!(recipes_of_pictures(&info(&library)), 2);
    // Equal to a library that knew no other pipeline.
    let fresh = folder.path().join("fresh");
    index_with(&fresh, &[&one, &two], &["--pipeline", &other]).exits(0);
    for name in ["clips", "segments", "cues", "gaps", "complete"] {
        assert_eq!(info(&library)[name], info(&fresh)[name], "{name}");
    }
}

#[test]
fn a_source_that_cannot_be_read_again_waits_until_the_user_decides() {
    let folder = TempDir::new().unwrap();
    let (one, two) = two_films(folder.path());
    let other = one_frame(folder.path());
    let library = |name: &str| {
        let library = folder.path().join(name);
        index(&library, &[&one, &two]).exits(0);
        library
    };
    let (forgets, gives_up) = (library("forgets"), library("gives-up"));
    fs::remove_file(&one).unwrap();
    for library in [&forgets, &gives_up] {
        let mut again = command(["index", "--json", "--pipeline", &other, "--library"]);
        let ran = finish(again.arg(library)).exits(1);
        assert_eq!(ran.line("run")["waiting"], 1);
        // The film that is gone is found as it was.
        assert_eq!(frames_of_current(library), 2);
        assert!(!show(library, "one.mp4").lines("clip").is_empty());
        let told = run(["index", "--pipeline", &other, "--library", library.to_str().unwrap()]);
        assert!(told.out.contains("has read 1 source that this one has not"), "{told:?}");
    }
    run(["library", "forget", forgets.to_str().unwrap(), "one.mp4"]).exits(0);
    assert_eq!((frames_of_current(&forgets), &info(&forgets)["sources"]), (1.into(), &1.into()));

    let ran = index_with(&gives_up, &[&two], &["--pipeline", &other, "--take-over"]).exits(0);
    assert_eq!(
        (&ran.line("run")["waiting"], &ran.line("run")["left_behind"]),
        (&0.into(), &1.into())
    );
    assert_eq!(frames_of_current(&gives_up), 1);
    assert!(show(&gives_up, "one.mp4").lines("clip").is_empty());
    // Its words are no pipeline's.
    assert_eq!(show(&gives_up, "one.mp4").lines("cue").len(), 2);
}
