//! What must never be lost: a library that is killed, damaged, full or read-only, by the executable.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use cinelex::library::{
    COMMIT_POINTS, ChunkRecord, Location, NewSource, Origin, Place, Reader, Recipe, RecipeId,
    RecipeKind, SegmentReading, SegmentRecord, Space, State, Tree, Writer,
};
use cinelex::media::{
    Caption, CellFeatures, ClipHead, Cue, CueKind, Gap, IndexedClip, Thumbnail, TimedWord,
    TrackKind, VisualWord,
};
use cinelex::time::{Micros, Span, Timestamp};
use half::f16;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::cinelex::{Ran, command, finish, index, info};
use crate::indexing::film;
use crate::same::assert_same;
use crate::tidy::files_under;

/// What the forgotten film is known by, and nothing else in the library.
const SECRETS: &[&str] = &[
    "secretfilm",
    "zanzibarite",
    "quokkapolis",
    "hushhushtag",
    "mumblecore",
    "whispergap",
    "vermilionette",
];

fn recipe(kind: RecipeKind, id: &str, description: Value) -> Recipe {
    let space =
        Space { id: "test".into(), tower: "test".into(), dimension: 8, languages: Vec::new() };
    Recipe {
        id: id.parse().unwrap(),
        kind,
        description,
        space: Some(space),
        tree: Some(Tree { branching: 12, depth: 3 }),
    }
}

fn span(start_us: i64, end_us: i64) -> Span {
    Span::new(Timestamp(start_us), Timestamp(end_us))
}

/// Numbers that no other film has at this place.
fn vector(of: &str, place: i64, length: usize) -> Vec<f16> {
    (0..length)
        .map(|lane| {
            let hash = blake3::hash(format!("{of} {place} {lane}").as_bytes());
            f16::from_f32(f32::from(hash.as_bytes()[0]) / 64.0 + 0.1)
        })
        .collect()
}

fn bytes(values: &[f16]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// A picture that no other clip has.
fn thumbnail(of: &str, place: i64) -> Thumbnail {
    let jpeg = [&[0xff, 0xd8, 0xff][..], &bytes(&vector(of, place + 3_000, 64)), &[0xff, 0xd9]];
    Thumbnail::from_bytes(jpeg.concat()).unwrap()
}

/// The features of a clip's cells, which no other clip has.
fn cells(of: &str, place: i64) -> CellFeatures {
    let values = vector(of, place + 4_000, 9 * 64);
    CellFeatures::new(&values.iter().map(|value| value.to_f32()).collect::<Vec<_>>(), 64)
}

/// When the word of a cue is said, and how sure that is, as no other film has it.
fn timed_word(of: &str, place: i64, text: &str) -> TimedWord {
    let hash = blake3::hash(format!("{of} {place}").as_bytes());
    let odd_us = i64::from(hash.as_bytes()[0]) * 1_000 + i64::from(hash.as_bytes()[1]);
    let start = place * 1_500_000 + odd_us;
    let confidence =
        0.5 + f32::from(hash.as_bytes()[2]) / 1_024.0 + f32::from(hash.as_bytes()[3]) / 3e6;
    TimedWord {
        span: span(start, start + 123_457),
        text: text.into(),
        confidence: Some(confidence),
    }
}

/// A library of two complete films, `kept.mp4` and `secretfilm.mp4`, closed.
pub fn library() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let lib = folder.path().join("lib");
    write_library(&lib, &["kept.mp4", "secretfilm.mp4"]);
    (folder, lib)
}

/// Makes a library of complete films.
pub fn write_library(lib: &Path, names: &[&str]) {
    let mut writer = Writer::open(lib).unwrap();
    let clips: RecipeId = "c0ffee00".parse().unwrap();
    let segments: RecipeId = "5e6e5e6e".parse().unwrap();
    writer.add_recipe(&recipe(RecipeKind::Clip, "c0ffee00", Value::Null)).unwrap();
    let of_clips = json!({ "clips": "c0ffee00" });
    writer.add_recipe(&recipe(RecipeKind::Segment, "5e6e5e6e", of_clips)).unwrap();
    for &name in names {
        let is_secret = name.starts_with("secret");
        let [said, tag, speaker, reason, caption] = match is_secret {
            true => [
                "zanzibarite quokkapolis",
                "hushhushtag",
                "mumblecore",
                "whispergap",
                "vermilionette",
            ],
            false => ["a boat leaves the harbour", "plain", "a child", "no frame", "a boat"],
        };
        let id = writer
            .add_source(&NewSource {
                fingerprint: name.into(),
                name: name.into(),
                origin: Origin::File,
                duration: Some(Micros(60_000_000)),
                media: json!({ "title": name }),
                wall: None,
                location: Location {
                    place: Place::Path(format!("/films/{name}").into()),
                    size_bytes: None,
                    modified_us: None,
                    device: None,
                    inode: None,
                },
            })
            .unwrap()
            .id;
        writer.set_tags(id, &[("mark".into(), tag.into())]).unwrap();
        let cues: Vec<Cue> = (0..40)
            .map(|at| Cue {
                span: span(at * 1_500_000, at * 1_500_000 + 1_000_000),
                text: format!("{said} {at}"),
                kind: CueKind::Subtitle,
                language: Some("en".into()),
                track: "sidecar:a.srt".into(),
                confidence: None,
                words: vec![timed_word(name, at, said)],
                speaker: Some(speaker.into()),
            })
            .collect();
        writer.replace_cues(id, "", &cues).unwrap();
        let clip = |at: i64| IndexedClip {
            head: ClipHead {
                span: span(at * 1_500_000, (at + 1) * 1_500_000),
                raw_pts: at,
                frames: 2,
                shot_start: None,
            },
            words: vec![VisualWord(7)],
            features: vector(name, at, 64),
            cells: cells(name, at),
            embedding: vector(name, at + 1_000, 8),
            thumbnail: Some(thumbnail(name, at)),
        };
        let chunk = ChunkRecord {
            index: 0,
            span: span(0, 120_000_000),
            clips: (0..40).map(clip).collect(),
            gaps: vec![Gap {
                span: span(60_000_000, 120_000_000),
                track: TrackKind::Picture,
                reason: reason.into(),
            }],
        };
        writer.commit_chunk(id, &clips, &chunk).unwrap();
        writer.finish_source(id, &clips, State::Complete, None).unwrap();
        let all: Vec<SegmentRecord> = cues
            .iter()
            .enumerate()
            .map(|(at, cue)| SegmentRecord {
                span: span(at as i64 * 1_500_000, (at as i64 + 1) * 1_500_000),
                text: cue.text.clone(),
                language: None,
                embedding: vector(name, at as i64 + 2_000, 8),
                reading: Some(SegmentReading {
                    caption: Some(Caption { text: format!("{caption} {at}"), confidence: 0.5 }),
                    alignment: Some(0.25),
                    embedding: vector(name, at as i64 + 5_000, 8),
                }),
            })
            .collect();
        writer.commit_segments(id, &segments, &all).unwrap();
        writer.finish_source(id, &segments, State::Complete, None).unwrap();
    }
    let places: Vec<String> = names.iter().map(|name| format!("/films/{name}")).collect();
    writer.record_run(&json!({ "sources": places })).unwrap();
}

pub fn copy(lib: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    fs::set_permissions(to, fs::Permissions::from_mode(0o700)).unwrap();
    for entry in fs::read_dir(lib).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

pub fn on_library(words: &[&str], lib: &Path, more: &[&str], die_at: Option<&str>) -> Ran {
    let mut command = command([&["library"], words].concat());
    command.arg(lib).args(more);
    if let Some(point) = die_at {
        command.env("CINELEX_DIE_AT", point);
    }
    finish(&mut command)
}

pub fn is_clean(lib: &Path, after: &str) {
    let ran = on_library(&["check"], lib, &[], None);
    assert_eq!(ran.code, 0, "{after}: {}{}", ran.out, ran.err);
}

/// What a library has of the forgotten film and of no other, by name, as it lies in its files.
fn secrets() -> Vec<(String, Vec<u8>)> {
    let film = "secretfilm.mp4";
    let mut secrets: Vec<(String, Vec<u8>)> =
        SECRETS.iter().map(|word| (word.to_string(), word.as_bytes().to_vec())).collect();
    for at in [0, 7, 39] {
        let said = timed_word(film, at, "");
        // Behind the ends and the bits of the first cell.
        let levels = cells(film, at).as_bytes()[12..40].to_vec();
        secrets.extend([
            (format!("features {at}"), bytes(&vector(film, at, 64)[..16])),
            (format!("features of cells {at}"), levels),
            (format!("thumbnail {at}"), thumbnail(film, at).as_bytes()[3..40].to_vec()),
            (format!("clip {at}"), bytes(&vector(film, at + 1_000, 8))),
            (format!("segment {at}"), bytes(&vector(film, at + 2_000, 8))),
            (format!("reading {at}"), bytes(&vector(film, at + 5_000, 8))),
            (format!("time of a word {at}"), serde_json::to_vec(&said.span).unwrap()),
            (format!("confidence of a word {at}"), serde_json::to_vec(&said.confidence).unwrap()),
        ]);
    }
    secrets
}

/// Which of these are in any file of the library.
pub fn traces(lib: &Path) -> Vec<String> {
    let files = all_bytes(lib, |_| true);
    let is_there = |part: &[u8]| files.windows(part.len()).any(|window| window == part);
    secrets().into_iter().filter(|(_, part)| is_there(part)).map(|(name, _)| name).collect()
}

/// The bytes of all files in a folder and below whose names are wanted.
fn all_bytes(folder: &Path, is_wanted: impl Fn(&str) -> bool) -> Vec<u8> {
    let mut files = files_under(folder);
    files.retain(|path| is_wanted(path.file_name().unwrap().to_str().unwrap()));
    files.into_iter().flat_map(|path| fs::read(path).unwrap()).collect()
}

fn points(of: &str) -> impl Iterator<Item = &'static str> {
    let prefix = format!("{of}-");
    COMMIT_POINTS.iter().copied().filter(move |point| point.starts_with(&prefix))
}

#[test]
fn a_forget_that_is_killed_anywhere_is_finished_by_the_next_writer() {
    let (folder, lib) = library();
    // What a rebuild has left is not kept for ever.
    for name in ["library.sqlite", "features.sqlite"] {
        fs::copy(lib.join(name), lib.join(format!("{name}.damaged-2026-11-30T12-00-00Z-000000")))
            .unwrap();
    }
    let all: Vec<String> = secrets().into_iter().map(|(name, _)| name).collect();
    assert_eq!(traces(&lib), all);
    for point in points("forget") {
        let killed = folder.path().join(point);
        copy(&lib, &killed);
        let ran = on_library(&["forget"], &killed, &["secretfilm.mp4"], Some(point));
        assert_eq!(ran.code, -1, "{point}: {ran:?}");
        is_clean(&killed, point);
        assert_eq!(info(&killed)["sources"], 1, "{point}");
        on_library(&["compact"], &killed, &[], None).exits(0);
        assert_eq!(traces(&killed), [""; 0], "{point}");
        is_clean(&killed, point);
        assert_eq!((&info(&killed)["clips"], &info(&killed)["cues"]), (&json!(40), &json!(40)));
    }
}

#[test]
fn forgetting_beside_a_reader_is_finished_when_it_has_gone() {
    let (_folder, lib) = library();
    let reader = Reader::open(&lib).unwrap();
    let mut asked = false;
    reader
        .each_features(&"c0ffee00".parse().unwrap(), |_, _| {
            // The reader sees one state of the file until this ends.
            if !std::mem::replace(&mut asked, true) {
                let ran = on_library(&["forget"], &lib, &["secretfilm.mp4"], None).exits(1);
                assert!(ran.err.contains("keeps its log from being emptied"), "{}", ran.err);
            }
            Ok(())
        })
        .unwrap();
    drop(reader);
    is_clean(&lib, "a reader held the log");
    on_library(&["compact"], &lib, &[], None).exits(0);
    assert_eq!(traces(&lib), [""; 0]);
    is_clean(&lib, "the log was emptied");
}

#[test]
fn a_migration_that_is_killed_is_begun_again() {
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/compat/v1");
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    copy(&kept, &whole);
    on_library(&["compact"], &whole, &[], None).exits(0);
    for point in points("migrate") {
        let lib = folder.path().join(point);
        copy(&kept, &lib);
        let before = info(&lib);
        let ran = on_library(&["compact"], &lib, &[], Some(point));
        assert_eq!(ran.code, -1, "{point}: {ran:?}");
        on_library(&["compact"], &lib, &[], None).exits(0);
        is_clean(&lib, point);
        for count in ["sources", "complete", "failed", "clips", "segments", "cues", "gaps"] {
            assert_eq!(info(&lib)[count], before[count], "{point}: {count}");
        }
        assert_same(&whole, &lib);
    }
    // And nothing is another than before. What is opened gets a log beside it.
    let before = folder.path().join("before");
    copy(&kept, &before);
    assert_same(&before, &whole);
}

/// Fills a page of each of a library's files with zeros.
pub fn damage(lib: &Path) {
    for (name, page_bytes, page) in [("library.sqlite", 4_096, 9), ("features.sqlite", 16_384, 2)] {
        let mut damaged = fs::read(lib.join(name)).unwrap();
        damaged[page * page_bytes..(page + 1) * page_bytes].fill(0);
        fs::write(lib.join(name), damaged).unwrap();
    }
}

#[test]
fn a_rebuild_that_is_killed_anywhere_is_done_by_the_next() {
    let (folder, lib) = library();
    damage(&lib);
    let unbroken = folder.path().join("unbroken");
    copy(&lib, &unbroken);
    let first = on_library(&["check"], &unbroken, &["--json"], None).exits(1);
    assert!(!first.lines("finding").is_empty());
    on_library(&["rebuild"], &unbroken, &[], None).exits(0);
    let expected = info(&unbroken);
    for point in points("rebuild") {
        let killed = folder.path().join(point);
        copy(&lib, &killed);
        let ran = on_library(&["rebuild"], &killed, &[], Some(point));
        assert_eq!(ran.code, -1, "{point}: {ran:?}");
        on_library(&["rebuild"], &killed, &[], None).exits(0);
        is_clean(&killed, point);
        for count in ["sources", "complete", "clips", "segments", "cues"] {
            assert_eq!(info(&killed)[count], expected[count], "{point}: {count}");
        }
        assert_same(&unbroken, &killed);
        let kept = fs::read_dir(&killed).unwrap().filter(|entry| {
            entry.as_ref().unwrap().file_name().to_string_lossy().contains("sqlite.damaged-")
        });
        // One file may have taken its place before the kill, and be made once more with the other.
        assert!((2..=3).contains(&kept.count()), "{point}");
    }
    // The damaged files are of both films, so they go when one is forgotten.
    let damaged = all_bytes(&unbroken, |name| name.contains("sqlite.damaged-"));
    assert!(damaged.windows(10).any(|part| part == b"secretfilm"));
    let forgot = on_library(&["forget"], &unbroken, &["secretfilm.mp4"], None).exits(0);
    assert!(forgot.out.contains("deleted 2 damaged files"), "{}", forgot.out);
    assert_eq!(traces(&unbroken), [""; 0]);
}

#[test]
fn a_compaction_that_is_killed_leaves_what_was_there() {
    let (folder, lib) = library();
    let before = info(&lib);
    for point in points("compact") {
        let killed = folder.path().join(point);
        copy(&lib, &killed);
        assert_eq!(on_library(&["compact"], &killed, &[], Some(point)).code, -1, "{point}");
        is_clean(&killed, point);
        assert_eq!(info(&killed)["clips"], before["clips"]);
        assert_same(&lib, &killed);
    }
    // What is forgotten beside a reader is given back later.
    on_library(&["forget"], &lib, &["secretfilm.mp4"], None).exits(0);
    let compacted = on_library(&["compact"], &lib, &["--json"], None).exits(0).line("compacted");
    assert!(compacted["after_bytes"].as_u64() <= compacted["before_bytes"].as_u64());
}

#[test]
fn a_damaged_library_says_how_it_is_mended() {
    let (_folder, lib) = library();
    let mut damaged = fs::read(lib.join("library.sqlite")).unwrap();
    damaged[4_096..].fill(0x5a);
    fs::write(lib.join("library.sqlite"), damaged).unwrap();
    let ran = on_library(&["info"], &lib, &[], None);
    assert!(ran.code != 0 && ran.err.contains("cinelex library rebuild"), "{ran:?}");
    let ran = on_library(&["rebuild"], &lib, &[], None).exits(3);
    assert!(ran.err.contains("Nothing was changed"), "{}", ran.err);
    assert_eq!(fs::read(lib.join("library.sqlite")).unwrap()[5_000], 0x5a);
}

#[test]
fn what_is_no_library_is_not_checked_and_not_mended() {
    let folder = tempfile::tempdir().unwrap();
    let none = folder.path().join("none");
    for command in ["check", "rebuild", "compact"] {
        assert_eq!(on_library(&[command], &none, &[], None).code, 3, "{command}");
    }
    assert!(!none.exists());
}

/// Runs a script in a mount namespace of its own, or says that the system lets nobody make one.
pub fn with_own_mounts(script: &str, arguments: &[&Path]) -> Option<Ran> {
    let able = Command::new("unshare").args(["-m", "true"]).output();
    if !able.is_ok_and(|ran| ran.status.success()) {
        return None;
    }
    let mut run = Command::new("unshare");
    run.args(["-m", "bash", "-c", script, "test"]).arg(env!("CARGO_BIN_EXE_cinelex"));
    Some(Ran::new(&run.args(arguments).output().unwrap()))
}

#[test]
fn a_read_only_library_is_read_and_not_written() {
    let (_folder, lib) = library();
    let script = r#"
        set -e
        mount --bind "$2" "$2"
        mount -o remount,ro,bind "$2"
        "$1" library info "$2" >/dev/null
        "$1" library show "$2" kept.mp4 >/dev/null
        "$1" library check "$2" >/dev/null
        for change in "forget $2 kept.mp4" "compact $2" "rebuild $2"; do
            if "$1" library $change; then exit 9; fi
        done
    "#;
    let Some(ran) = with_own_mounts(script, &[&lib]) else {
        eprintln!("skipped: mounting is not permitted here");
        return;
    };
    let ran = ran.exits(0);
    assert_eq!(ran.err.matches("Read-only").count(), 3, "{}", ran.err);
    is_clean(&lib, "it was read-only");
}

#[test]
fn an_index_that_was_killed_leaves_a_library_that_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let film = film(folder.path(), "film.mp4");
    for point in ["features-synced", "chunk-committed", "source-finished"] {
        let lib = folder.path().join(point);
        let mut killed = command(["index", "--json", "--library"]);
        killed.arg(&lib).arg(&film).env("CINELEX_DIE_AT", point);
        assert_eq!(finish(&mut killed).code, -1);
        is_clean(&lib, point);
        on_library(&["rebuild"], &lib, &[], None).exits(0);
        is_clean(&lib, point);
        index(&lib, &[&film]).exits(0);
        is_clean(&lib, point);
        assert_eq!(info(&lib)["clips"], 2, "{point}");
    }
}
