//! `cinelex library`, by the executable.

#![allow(clippy::unwrap_used, reason = "a test that cannot prepare its input has failed")]

use std::path::Path;
use std::process::{Command, Output};

use cinelex::library::{
    ChunkRecord, Location, NewSource, Origin, Place, Recipe, RecipeId, RecipeKind, SegmentReading,
    SegmentRecord, SourceId, Space, State, Tree, Writer,
};
use cinelex::media::{
    Caption, CellFeatures, ClipHead, Cue, CueKind, Gap, IndexedClip, TrackKind, VisualWord,
};
use cinelex::time::{Micros, Span, Timestamp};
use half::f16;
use serde_json::Value;
use tempfile::TempDir;

fn span(start_us: i64, end_us: i64) -> Span {
    Span::new(Timestamp(start_us), Timestamp(end_us))
}

fn recipe(kind: RecipeKind, id: &RecipeId) -> Recipe {
    let space =
        Space { id: "test".into(), tower: "test".into(), dimension: 4, languages: Vec::new() };
    Recipe {
        id: id.clone(),
        kind,
        description: Value::Null,
        space: Some(space),
        tree: Some(Tree { branching: 12, depth: 3 }),
    }
}

/// A library of two films: the first with two clips in a segment, one alone, a cue and a gap.
fn library() -> (TempDir, SourceId) {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(&folder.path().join("lib")).unwrap();
    let clips: RecipeId = "c0ffee00".parse().unwrap();
    let segments: RecipeId = "5e6e5e6e".parse().unwrap();
    writer.add_recipe(&recipe(RecipeKind::Clip, &clips)).unwrap();
    writer.add_recipe(&recipe(RecipeKind::Segment, &segments)).unwrap();
    let mut add = |name: &str| {
        let place = Place::Path(format!("/films/{name}").into());
        let location =
            Location { place, size_bytes: None, modified_us: None, device: None, inode: None };
        let source = NewSource {
            fingerprint: name.into(),
            name: name.into(),
            origin: Origin::File,
            duration: Some(Micros(4_500_000)),
            media: Value::Null,
            wall: None,
            location,
        };
        writer.add_source(&source).unwrap().id
    };
    let (first, _) = (add("harbour.mp4"), add("night\u{1b}[2J.mp4"));
    let clip = |place: i64| IndexedClip {
        head: ClipHead {
            span: span(place * 1_500_000, (place + 1) * 1_500_000),
            raw_pts: place,
            frames: 2,
            shot_start: (place == 1).then_some(Timestamp(1_700_000)),
        },
        words: vec![VisualWord(12 * 12 + 12 * 2 + 3), VisualWord(0)],
        features: vec![f16::ONE; 8],
        cells: CellFeatures::default(),
        embedding: vec![f16::ONE; 4],
        thumbnail: None,
    };
    let chunk = ChunkRecord {
        index: 0,
        span: span(0, 120_000_000),
        clips: (0..3).map(clip).collect(),
        gaps: vec![Gap {
            span: span(4_500_000, 6_000_000),
            track: TrackKind::Picture,
            reason: "no frame for 1.5 s".into(),
        }],
    };
    writer.commit_chunk(first, &clips, &chunk).unwrap();
    let text = "boats leave the harbour";
    let cue = Cue {
        span: span(0, 2_900_000),
        text: text.into(),
        kind: CueKind::Subtitle,
        language: Some("en".into()),
        track: "sidecar:harbour.srt".into(),
        confidence: None,
        words: Vec::new(),
        speaker: None,
    };
    writer.replace_cues(first, "sidecar:", &[cue]).unwrap();
    let segment = SegmentRecord {
        span: span(0, 3_000_000),
        text: text.into(),
        language: Some("en".into()),
        embedding: Vec::new(),
        reading: Some(SegmentReading {
            caption: Some(Caption { text: "a boat in the water".into(), confidence: 0.5 }),
            alignment: Some(0.25),
            embedding: vec![f16::ONE; 4],
        }),
    };
    writer.commit_segments(first, &segments, &[segment]).unwrap();
    writer.finish_source(first, &clips, State::Complete, None).unwrap();
    (folder, first)
}

fn cinelex(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cinelex")).args(args).current_dir(folder).output().unwrap()
}

/// What it printed, where it ended well.
fn printed(folder: &Path, args: &[&str]) -> String {
    let output = cinelex(folder, args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn lines(folder: &Path, args: &[&str]) -> Vec<Value> {
    printed(folder, args).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn info_counts_what_is_there() {
    let (folder, _) = library();
    let lines = lines(folder.path(), &["library", "info", "lib", "--json"]);
    let [info] = &lines[..] else { panic!("{lines:?}") };
    let expected = [
        ("schema", 1),
        ("sources", 2),
        ("complete", 1),
        ("clips", 3),
        ("segments", 1),
        ("cues", 1),
        ("gaps", 1),
    ];
    for (name, count) in expected {
        assert_eq!(info[name], count, "{name}");
    }
    assert_eq!(info["kind"], "info");
    assert!(info["bytes"].as_u64().unwrap() > 10_000);
    let table = printed(folder.path(), &["library", "info", "lib"]);
    assert!(table.contains("clips     3\n") && table.contains("harbour.mp4"), "{table}");
    assert!(!table.contains('\u{1b}'), "a name moves the cursor");
}

#[test]
fn show_prints_segments_with_their_clips_and_words() {
    let (folder, id) = library();
    let table = printed(folder.path(), &["library", "show", "lib", "harbour.mp4"]);
    for part in [
        "0:00.000-0:03.000  boats leave the harbour\n  a boat in the water (0.50; fits the words \
         0.25)\n     0:00.000  1.2.3 | 0.0.0\n",
        "0:01.500  1.2.3 | 0.0.0  shot at 0:01.700",
        "clips in no segment\n     0:03.000  1.2.3",
        "gap  0:04.500-0:06.000  picture: no frame for 1.5 s",
    ] {
        assert!(table.contains(part), "{part:?} is not in:\n{table}");
    }
    let lines = lines(folder.path(), &["library", "show", "lib", "harbour.mp4", "--json"]);
    let kinds: Vec<&str> = lines.iter().filter_map(|line| line["kind"].as_str()).collect();
    assert_eq!(kinds, ["source", "segment", "clip", "clip", "clip", "cue", "gap"]);
    assert_eq!(lines[0]["id"], id.to_string());
    assert_eq!(lines[1]["words"], "boats leave the harbour");
    assert_eq!(lines[1]["caption"], "a boat in the water");
    assert_eq!((&lines[1]["confidence"], &lines[1]["alignment"]), (&0.5.into(), &0.25.into()));
    assert_eq!(lines[3]["id"], format!("{id}@1500000"));
    assert_eq!(lines[3]["shot_start_us"], 1_700_000);
    assert_eq!(lines[3]["visual_words"], serde_json::json!([[1, 2, 3], [0, 0, 0]]));
}

#[test]
fn forget_says_what_was_removed_and_removes_it() {
    let (folder, id) = library();
    let lines = lines(folder.path(), &["library", "forget", "lib", "/films/harbour.mp4", "--json"]);
    assert_eq!(lines[0]["kind"], "forgotten");
    assert_eq!(lines[0]["source"], id.to_string());
    assert_eq!((&lines[0]["clips"], &lines[0]["cues"]), (&3.into(), &1.into()));
    let again = cinelex(folder.path(), &["library", "forget", "lib", "harbor.mp4"]);
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&again.stderr).contains("no source \"harbor.mp4\""));
    assert!(printed(folder.path(), &["library", "info", "lib"]).contains("sources   1"));
}

#[test]
fn what_is_no_library_is_not_opened_and_not_made_one() {
    let folder = tempfile::tempdir().unwrap();
    for command in [&["info", "lib"][..], &["show", "lib", "a"], &["forget", "lib", "a"]] {
        let output = cinelex(folder.path(), &[&["library"], command].concat());
        assert_eq!(output.status.code(), Some(3), "{command:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("lib is not a library"));
    }
    assert!(!folder.path().join("lib").exists());
}

#[test]
fn forgetting_waits_for_no_writer_and_reading_needs_none() {
    let (folder, _) = library();
    let _writer = Writer::open(&folder.path().join("lib")).unwrap();
    let output = cinelex(folder.path(), &["library", "forget", "lib", "harbour.mp4"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&output.stderr).contains("is writing to lib"));
    assert!(printed(folder.path(), &["library", "info", "lib"]).contains("sources   2"));
}
