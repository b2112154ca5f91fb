//! Files that change, move or go while the library has them, also in the midst of being read.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use cinelex::library::Reader;
use serde_json::Value;
use tempfile::TempDir;

use crate::cinelex::{Ran, command, finish, index, index_with, info, search, show};
use crate::indexing::film;
use crate::media::ffmpeg;
use crate::same::{assert_begins, assert_same, clips};
use crate::stopping::{begin, begin_with_a_chunk, go_on, long_film, quick_pipeline};

/// Another film of the same kind as [`long_film`].
fn other_long_film(folder: &Path) -> PathBuf {
    ffmpeg(
        folder,
        "-f lavfi -i testsrc=s=160x90:r=2:d=300 -c:v libx264 -g 20 -pix_fmt yuv420p other.mkv",
    );
    folder.join("other.mkv")
}

/// The lines that `library info` and `library show` have of each source, by name.
fn source(library: &Path, name: &str) -> Value {
    show(library, name).exits(0).line("source")
}

#[test]
fn a_file_that_another_takes_the_name_of_during_a_run_is_read_to_its_end() {
    let folder = TempDir::new().unwrap();
    let folder = folder.path();
    let quick = quick_pipeline(folder);
    let options = ["--pipeline", quick.to_str().unwrap(), "--workers", "1"];
    let (film, other) = (long_film(folder), other_long_film(folder));
    let (whole, library) = (folder.join("whole"), folder.join("library"));
    index_with(&whole, &[&film], &options).exits(0);
    let child = begin_with_a_chunk(&library, &[&film], &options);
    fs::rename(&other, &film).unwrap();
    go_on(&child);
    Ran::new(&child.wait_with_output().unwrap()).exits(0);
    assert_same(&whole, &library);

    // From now on the name is another source's.
    index_with(&library, &[&film], &options).exits(0);
    let sources = info(&library)["sources"].clone();
    assert_eq!(sources, 2);
    let alone = folder.join("alone");
    index_with(&alone, &[&film], &options).exits(0);
    let id = source(&alone, "long.mkv")["fingerprint"].clone();
    let listed = finish(command(["library", "info"]).arg(&library)).exits(0).out;
    assert!(listed.contains("gone"), "{listed}");
    let found = search(&library, &["a test picture", "--top", "400"]).exits(0).lines("hit");
    assert!(found.iter().any(|hit| hit["location"].is_null()), "the old one is still found");
    assert!(found.iter().any(|hit| !hit["location"].is_null()), "the new one is found: {id}");
}

#[test]
fn a_file_that_is_overwritten_during_a_run_fails_and_leaves_nothing_false() {
    let folder = TempDir::new().unwrap();
    let folder = folder.path();
    let quick = quick_pipeline(folder);
    let options = ["--pipeline", quick.to_str().unwrap(), "--workers", "1"];
    let (film, other) = (long_film(folder), other_long_film(folder));
    let (whole, library) = (folder.join("whole"), folder.join("library"));
    index_with(&whole, &[&film], &options).exits(0);
    let child = begin_with_a_chunk(&library, &[&film], &options);
    fs::copy(&other, &film).unwrap();
    go_on(&child);
    let ran = Ran::new(&child.wait_with_output().unwrap()).exits(1);
    let reason = ran.source("long.mkv")["error"]["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("changed while it was read"), "{reason}");
    let (all, kept) = (clips(&whole, "long.mkv"), clips(&library, "long.mkv"));
    assert!(kept.len() >= 80 && kept.len() % 80 == 0, "{} clips", kept.len());
    assert_begins(&all, &kept, 0);

    // What is there now is read by the next run.
    index_with(&library, &[&film], &options).exits(0);
    assert_eq!((&info(&library)["sources"], &info(&library)["complete"]), (&2.into(), &1.into()));
}

#[test]
fn a_file_that_grows_during_a_run_is_one_source_after_the_next() {
    let folder = TempDir::new().unwrap();
    let folder = folder.path();
    let quick = quick_pipeline(folder);
    let options = ["--pipeline", quick.to_str().unwrap()];
    ffmpeg(
        folder,
        "-f lavfi -i testsrc2=s=160x90:r=10:d=60 -c:v libx264 -g 20 -pix_fmt yuv420p whole.ts",
    );
    let bytes = fs::read(folder.join("whole.ts")).unwrap();
    let (first, rest) = bytes.split_at(bytes.len() / 3);
    let growing = folder.join("growing.ts");
    fs::write(&growing, first).unwrap();
    let library = folder.join("library");
    let child = begin(&library, &[&growing], &options);
    let mut file = fs::OpenOptions::new().append(true).open(&growing).unwrap();
    for piece in rest.chunks(rest.len() / 30 + 1) {
        file.write_all(piece).unwrap();
        std::thread::sleep(Duration::from_millis(30));
    }
    Ran::new(&child.wait_with_output().unwrap()).exits(0);
    index_with(&library, &[&growing], &options).exits(0);
    let whole = folder.join("whole");
    index_with(&whole, &[&growing], &options).exits(0);
    assert_same(&whole, &library);
}

#[test]
fn a_file_that_is_deleted_during_a_run_is_read_to_its_end() {
    let folder = TempDir::new().unwrap();
    let folder = folder.path();
    let quick = quick_pipeline(folder);
    let options = ["--pipeline", quick.to_str().unwrap()];
    let film = long_film(folder);
    let (whole, library) = (folder.join("whole"), folder.join("library"));
    index_with(&whole, &[&film], &options).exits(0);
    let child = begin_with_a_chunk(&library, &[&film], &options);
    fs::remove_file(&film).unwrap();
    go_on(&child);
    Ran::new(&child.wait_with_output().unwrap()).exits(0);
    assert_same(&whole, &library);
}

#[test]
fn a_file_that_moved_is_linked_or_copied_is_the_same_source() {
    let folder = TempDir::new().unwrap();
    let folder = folder.path();
    let library = folder.join("library");
    let first = film(folder, "first.mp4");
    index(&library, &[&first]).exits(0);
    let before = clips(&library, "first.mp4");
    let moved = folder.join("moved.mp4");
    fs::rename(&first, &moved).unwrap();
    let (linked, copied) = (folder.join("linked.mp4"), folder.join("copied.mp4"));
    fs::hard_link(&moved, &linked).unwrap();
    fs::copy(&moved, &copied).unwrap();
    for path in [&moved, &linked, &copied] {
        let ran = index(&library, &[path]).exits(0);
        let name = path.file_name().unwrap().to_str().unwrap();
        assert_eq!(ran.source(name)["state"], "unchanged", "{name}");
    }
    assert_eq!(info(&library)["sources"], 1);
    assert_eq!(clips(&library, "first.mp4"), before);
}

#[test]
fn copies_in_one_run_are_one_source_that_is_read_once() {
    let folder = TempDir::new().unwrap();
    let folder = folder.path();
    let first = film(folder, "a.mp4");
    let mut copies = vec![first.clone()];
    for name in ["b.mp4", "c.mp4", "d.mp4"] {
        fs::copy(&first, folder.join(name)).unwrap();
        copies.push(folder.join(name));
    }
    fs::write(folder.join("c.srt"), "1\n00:00:00,000 --> 00:00:02,000\nA walrus.\n").unwrap();
    let paths: Vec<&Path> = copies.iter().map(PathBuf::as_path).collect();
    // All four are looked into at the same moment.
    for round in 0..4 {
        let library = folder.join(format!("library{round}"));
        let ran = index_with(&library, &paths, &["--workers", "4"]).exits(0);
        let reports = ran.lines("source_report");
        assert_eq!(reports.len(), 4);
        let clips: u64 = reports.iter().map(|report| report["clips"].as_u64().unwrap()).sum();
        let info = info(&library);
        assert_eq!((info["sources"].as_u64(), info["clips"].as_u64()), (Some(1), Some(clips)));
        assert_eq!(info["cues"], 1, "words beside a copy are words of all");
        let sources = Reader::open(&library).unwrap().sources().unwrap();
        assert_eq!(sources[0].locations.len(), 4, "{sources:?}");
    }
}

/// The bytes of a library's two databases.
fn databases(library: &Path) -> [Vec<u8>; 2] {
    ["library.sqlite", "features.sqlite"].map(|name| fs::read(library.join(name)).unwrap())
}

#[test]
fn a_second_run_over_unchanged_sources_changes_no_byte() {
    let folder = TempDir::new().unwrap();
    let film = film(folder.path(), "film.mp4");
    fs::write(folder.path().join("film.srt"), "1\n00:00:00,200 --> 00:00:02,000\nHello.\n")
        .unwrap();
    let library = folder.path().join("library");
    index_with(&library, &[&film], &["--tag", "shelf=12"]).exits(0);
    let before = databases(&library);
    for options in [&["--tag", "shelf=12"][..], &[]] {
        let ran = index_with(&library, &[&film], options).exits(0);
        assert_eq!(ran.source("film.mp4")["state"], "unchanged");
        assert!(databases(&library) == before, "the databases have changed");
    }
}

#[test]
fn what_is_no_plain_file_fails_and_holds_nothing_up() {
    let folder = TempDir::new().unwrap();
    let folder = folder.path();
    let good = film(folder, "good.mp4");
    let pipe = folder.join("pipe.mp4");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    // A pipe in the place of subtitles would be waited for without end.
    assert!(Command::new("mkfifo").arg(folder.join("good.srt")).status().unwrap().success());
    symlink("loop2.mp4", folder.join("loop1.mp4")).unwrap();
    symlink("loop1.mp4", folder.join("loop2.mp4")).unwrap();
    symlink("nowhere.mp4", folder.join("dangling.mp4")).unwrap();
    symlink("/dev/zero", folder.join("zero.mp4")).unwrap();
    let bad = ["pipe.mp4", "loop1.mp4", "dangling.mp4", "zero.mp4"];
    let mut paths: Vec<PathBuf> = bad.iter().map(|name| folder.join(name)).collect();
    paths.push(Path::new("/dev/zero").to_owned());
    paths.push(good);
    let paths: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
    let ran = index(&folder.join("library"), &paths).exits(1);
    assert_eq!(ran.lines("source_report").len(), paths.len());
    for name in bad.iter().chain(&["/dev/zero"]) {
        assert_eq!(ran.source(name)["state"], "failed", "{name}");
        assert!(!ran.source(name)["error"]["reason"].as_str().unwrap().is_empty());
    }
    assert_eq!(ran.source("good.mp4")["clips"], 2);
}

#[test]
fn subtitles_that_cannot_be_read_any_more_stay_until_they_are_gone() {
    let folder = TempDir::new().unwrap();
    let film = film(folder.path(), "film.mp4");
    let words = folder.path().join("film.srt");
    fs::write(&words, "1\n00:00:00,200 --> 00:00:02,000\nHello.\n").unwrap();
    let library = folder.path().join("library");
    index(&library, &[&film]).exits(0);
    fs::write(&words, b"\x00\x01\x02 no subtitles").unwrap();
    let ran = index(&library, &[&film]).exits(0);
    assert!(ran.source("film.mp4")["notices"][0].as_str().unwrap().contains("cannot be read"));
    assert_eq!(info(&library)["cues"], 1);
    fs::remove_file(&words).unwrap();
    index(&library, &[&film]).exits(0);
    assert_eq!(info(&library)["cues"], 0);
}

/// A command as one that the permissions of files hold for, even if the tests run as root; `None`
/// where there is no `setpriv`.
fn without_rights(arguments: &[&str]) -> Option<Command> {
    let drop = "-dac_override,-dac_read_search,-fowner";
    let flags = ["--bounding-set", drop, "--inh-caps", drop];
    let works = Command::new("setpriv").args(flags).arg("true").status();
    if !works.is_ok_and(|status| status.success()) {
        eprintln!("skipped: no setpriv that drops rights");
        return None;
    }
    let mut command = Command::new("setpriv");
    command.args(flags).arg(env!("CARGO_BIN_EXE_cinelex")).args(arguments);
    Some(command)
}

#[test]
fn what_may_not_be_read_or_written_is_said() {
    let folder = TempDir::new().unwrap();
    let folder = folder.path();
    let (good, secret) = (film(folder, "good.mp4"), folder.join("secret.mp4"));
    fs::copy(&good, &secret).unwrap();
    fs::write(folder.join("tail"), "x").unwrap();
    let forbid = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    forbid(&secret, 0o000);
    let library = folder.join("library");
    let (library_text, good_text) = (library.to_str().unwrap(), good.to_str().unwrap());
    let index = ["index", "--json", "--library", library_text, good_text, secret.to_str().unwrap()];
    let Some(mut command) = without_rights(&index) else { return };
    let ran = finish(&mut command).exits(1);
    assert!(ran.source("secret.mp4")["error"]["reason"].as_str().unwrap().contains("permission"));
    assert_eq!(ran.source("good.mp4")["clips"], 2);

    // A library that may not be written to can still be searched.
    for file in fs::read_dir(&library).unwrap() {
        forbid(&file.unwrap().path(), 0o400);
    }
    forbid(&library, 0o500);
    let ran = finish(&mut without_rights(&index).unwrap()).exits(3);
    assert!(
        ran.err.contains(library_text) && ran.err.to_lowercase().contains("permission"),
        "{ran:?}"
    );
    let found = ["search", "--json", library_text, "a test picture"];
    let found = finish(&mut without_rights(&found).unwrap()).exits(0);
    assert!(!found.lines("hit").is_empty());
    forbid(&library, 0o700);
}

#[test]
fn a_length_that_a_header_understates_is_corrected() {
    let folder = TempDir::new().unwrap();
    ffmpeg(
        folder.path(),
        "-f lavfi -i testsrc2=s=160x90:r=10:d=9 -c:v libx264 -g 10 -pix_fmt yuv420p film.mkv",
    );
    let film = folder.path().join("film.mkv");
    let bytes = fs::read(&film).unwrap();
    // Matroska's Duration: element 0x4489, 8 bytes, a float of milliseconds.
    let at = (0..bytes.len()).find(|&at| bytes[at..].starts_with(&[0x44, 0x89, 0x88])).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&film).unwrap();
    file.write_all_at(&3_000f64.to_be_bytes(), at as u64 + 3).unwrap();
    let library = folder.path().join("library");
    let ran = index(&library, &[&film]).exits(0);
    assert_eq!(ran.source("film.mkv")["length_secs"], 9.0);
    assert_eq!(source(&library, "film.mkv")["duration_us"], 9_000_000);
}
