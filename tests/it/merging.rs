//! `library merge` by the executable: two machines' libraries become one that is searched.

use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use crate::cinelex::{Ran, command, finish, index_with, info, run, search, show};
use crate::indexing::film;
use crate::media::ffmpeg;

const WORDS: &str = "1\n00:00:00,200 --> 00:00:01,400\nThe harbour lies in the fog.\n\n\
                     2\n00:00:01,600 --> 00:00:02,800\nA ferry sounds its horn.\n";

fn merge(into: &Path, from: &[&Path]) -> Ran {
    let mut command = command(["library", "merge", "--json"]);
    finish(command.arg(into).args(from))
}

/// What `show` prints of a source, without what is private to a library.
fn shown(library: &Path, name: &str) -> Vec<Value> {
    let ran = show(library, name).exits(0);
    let kinds = ["segment", "clip", "cue", "gap"];
    let mut lines: Vec<Value> = kinds.iter().flat_map(|kind| ran.lines(kind)).collect();
    for line in &mut lines {
        if line["kind"] == "clip" {
            line.as_object_mut().unwrap().remove("id");
        }
    }
    lines
}

#[test]
fn a_merged_library_answers_as_one_that_indexed_everything() {
    let folder = TempDir::new().unwrap();
    let one = film(folder.path(), "one.mp4");
    ffmpeg(
        folder.path(),
        "-f lavfi -i mandelbrot=s=320x180:r=25 -t 4 -c:v libx264 -g 25 -pix_fmt yuv420p two.mp4",
    );
    let two = folder.path().join("two.mp4");
    std::fs::write(folder.path().join("two.srt"), WORDS).unwrap();
    let [a, b, both] = ["a", "b", "both"].map(|name| folder.path().join(name));
    index_with(&a, &[&one], &["--tag", "machine=a"]).exits(0);
    index_with(&b, &[&one, &two], &["--tag", "machine=b", "--tag", "shelf=12"]).exits(0);
    index_with(&both, &[&one, &two], &[]).exits(0);

    let into = folder.path().join("into");
    // Killed at every step of the way, and then finished.
    for point in [
        "source-added",
        "features-synced",
        "chunk-committed",
        "source-finished",
        "cues-committed",
        "segments-committed",
    ] {
        let mut killed = command(["library", "merge"]);
        killed.arg(&into).args([&a, &b]).env("CINELEX_DIE_AT", point);
        assert_eq!(finish(&mut killed).code, -1, "{point} was not reached");
    }
    let ran = merge(&into, &[&a, &b]).exits(0);
    let merged = ran.lines("merged");
    assert_eq!(merged.len(), 2);
    assert_eq!((&merged[1]["unseen"], &merged[1]["damaged"]), (&0.into(), &serde_json::json!([])));
    assert_eq!(merged[1]["conflicts"][0]["what"], "tag machine");
    for name in ["one.mp4", "two.mp4"] {
        assert_eq!(shown(&into, name), shown(&both, name), "{name}");
        // Ids are global.
        let id = |library: &Path| show(library, name).line("source")["id"].clone();
        let from = if name == "one.mp4" { &a } else { &b };
        assert_eq!(id(&into), id(from));
    }
    let hits = |library: &Path| -> Vec<(Value, Value)> {
        let hits = search(library, &["ferry"]).exits(0).lines("hit");
        hits.iter().map(|hit| (hit["name"].clone(), hit["start_us"].clone())).collect()
    };
    assert_eq!(hits(&into), hits(&both));
    let tags = show(&into, "one.mp4").line("source")["tags"].clone();
    assert_eq!(tags, serde_json::json!([["machine", "a"], ["shelf", "12"]]));
    // Nothing is left to read.
    let mut again = command(["index", "--json", "--library"]);
    let ran = finish(again.arg(&into)).exits(0);
    assert!(
        ran.lines("source_report").iter().all(|source| source["state"] == "unchanged"),
        "{ran:?}"
    );
    assert_eq!(ran.line("run")["segments"], 0);
    for name in ["clips", "segments", "cues", "complete"] {
        assert_eq!(info(&into)[name], info(&both)[name], "{name}");
    }
}

#[test]
fn what_cannot_be_merged_is_refused() {
    let folder = TempDir::new().unwrap();
    let [into, from] = ["into", "from"].map(|name| folder.path().join(name));
    let missing = merge(&into, &[&from]).exits(3);
    assert!(missing.err.contains("from is not a library"), "{missing:?}");
    assert!(!into.exists(), "a mistyped name makes no library");
    let film = film(folder.path(), "film.mp4");
    index_with(&from, &[&film], &[]).exits(0);
    let itself = merge(&from, &[&folder.path().join("./from")]).exits(2);
    assert!(itself.err.contains("into itself"), "{itself:?}");
}

#[test]
fn tags_are_set_shown_and_removed() {
    let folder = TempDir::new().unwrap();
    let film = film(folder.path(), "film.mp4");
    let library = folder.path().join("library");
    index_with(&library, &[&film], &["--tag", "shelf=12"]).exits(0);
    let path = library.to_str().unwrap();
    let tag = |more: &[&str]| {
        let ran = run([&["library", "tag", "--json", path, "film.mp4"], more].concat()).exits(0);
        ran.line("tagged")["tags"].clone()
    };
    assert_eq!(
        tag(&["speaker=Ann", "shelf=13"]),
        serde_json::json!([["shelf", "13"], ["speaker", "Ann"]])
    );
    assert_eq!(tag(&["shelf="]), serde_json::json!([["speaker", "Ann"]]));
    assert_eq!(tag(&[]), serde_json::json!([["speaker", "Ann"]]));
    let hits = |tag: &str| search(&library, &["a test picture", "--tag", tag]).lines("hit").len();
    assert!(hits("speaker=Ann") > 0 && hits("shelf=13") == 0);
    assert_eq!(
        info(&library)["tags"],
        serde_json::json!([{"name": "speaker", "value": "Ann", "sources": 1}])
    );
    let table = run(["library", "info", path]).exits(0).out;
    assert!(table.contains("speaker=Ann"), "{table}");
    run(["library", "tag", path, "film.mp4", "speaker"]).exits(2);
}
