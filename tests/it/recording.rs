//! Live streams that are kept as they come, and moments cut out of them.

use std::path::{Path, PathBuf};
use std::process::Command;

use cinelex::library::Reader;
use serde_json::Value;
use tempfile::TempDir;

use crate::camera::{Camera, Setup};
use crate::cinelex::{command, finish, run, search, show};
use crate::live::{Watching, check, check_accounts, small};
use crate::media::{number, numbered};

/// The recordings of the one source that there is, by name.
pub fn recordings(library: &Path) -> Vec<PathBuf> {
    let sources = std::fs::read_dir(library.join("recordings")).unwrap();
    let files = sources.flat_map(|source| std::fs::read_dir(source.unwrap().path()).unwrap());
    let mut files: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    files.sort();
    files
}

/// The hashes of a film's frames, when all are decoded, and what the decoder says of them.
fn decoded(film: &Path) -> (Vec<String>, String) {
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args(["-v", "warning", "-nostdin", "-i"]).arg(film);
    let out = ffmpeg.args(["-fps_mode", "passthrough", "-f", "framemd5", "-"]).output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    let frames = text.lines().filter(|line| line.starts_with("0,"));
    let hashes = frames.map(|line| line.rsplit(',').next().unwrap().to_owned());
    (hashes.collect(), String::from_utf8_lossy(&out.stderr).into_owned())
}

fn secs(film: &Path) -> f64 {
    let mut probe = Command::new("ffprobe");
    probe.args(["-v", "error", "-show_entries", "format=duration", "-of", "csv=p=0"]);
    let out = probe.arg(film).output().unwrap();
    String::from_utf8(out.stdout).unwrap().trim().parse().unwrap()
}

#[test]
fn a_recorded_stream_has_every_frame_and_moments_are_cut_out_of_it() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let camera = Camera::start(&small(folder.path()), &Setup::default());
    let address = camera.address();
    let mut watching = Watching::start(&library, &["--record", &address]);
    watching.until_stored(4);
    // While it is written. The newest moment is there a keyframe later.
    let moment = folder.path().join("moment.mp4");
    let query = ["a test picture", "--export", moment.to_str().unwrap(), "--top", "1"];
    let is_whole = (0..20).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(500));
        let _ = std::fs::remove_file(&moment);
        let found = search(&library, &query);
        found.code == 0 && {
            let span = &found.line("export")["span"];
            let length = span["end"].as_f64().unwrap() - span["start"].as_f64().unwrap();
            (secs(&moment) - length / 1e6).abs() < 0.1
        }
    });
    assert!(is_whole);
    let end = watching.stop();
    let stream = &end["streams"][0];
    assert_eq!(stream["unrecorded"], 0, "{stream}");
    let files = recordings(&library);
    let bytes: u64 = files.iter().map(|file| file.metadata().unwrap().len()).sum();
    assert_eq!(stream["recorded_bytes"], bytes, "{stream}");
    let (mut frames, mut said) = (0, String::new());
    for file in &files {
        let (of_file, of_decoder) = decoded(file);
        frames += of_file.len();
        said.push_str(&of_decoder);
    }
    let number = |key: &str| stream[key].as_u64().unwrap();
    assert_eq!(frames as u64, number("received") - number("before_keyframe"), "{said}");
    assert_eq!(said, "");
    check(&library).exits(0);
    // Forgotten is forgotten.
    run(["library", "forget", library.to_str().unwrap(), &address]).exits(0);
    assert!(recordings(&library).is_empty());
    check(&library).exits(0);
}

#[test]
fn a_recording_can_be_read_after_its_run_was_killed() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let camera = Camera::start(&small(folder.path()), &Setup::default());
    let address = camera.address();
    let mut watching = Watching::start(&library, &["--record", &address]);
    watching.until_stored(4);
    watching.child.kill().unwrap();
    watching.child.wait().unwrap();
    let files = recordings(&library);
    assert_eq!(files.len(), 1);
    let (frames, said) = decoded(&files[0]);
    // 4 clips are 6 s; a second or two may not have been written yet.
    let frames = frames.len();
    assert!(frames >= 50 && said.is_empty(), "{frames} frames: {said}");
    let mut watching = Watching::start(&library, &["--record", &address]);
    watching.until_stored(2);
    watching.stop();
    assert_eq!(recordings(&library).len(), 2);
    let source = show(&library, &address).exits(0).line("source");
    let name = files[0].parent().unwrap().file_name().unwrap().to_str().unwrap();
    assert_eq!(source["id"], Value::from(name));
    check(&library).exits(0);
}

#[test]
fn a_run_that_dies_when_a_recording_is_whole_leaves_it_and_the_library_whole() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("films.library");
    let film = numbered(folder.path(), "film.mp4", "25", 4.0, "-c:v libx264 -g 25 -bf 3");
    let mut killed = command(["index", "--json", "--as-live", "--record", "--library"]);
    killed.arg(&library).arg(&film).env("CINELEX_DIE_AT", "recording-synced");
    assert_eq!(finish(&mut killed).code, -1);
    check(&library).exits(0);
    let files = recordings(&library);
    assert_eq!(files.len(), 1);
    // Bit for bit, in the order in which they are shown.
    let (frames, said) = decoded(&files[0]);
    assert_eq!((frames.len(), said.as_str()), (100, ""));
    assert_eq!(frames, decoded(&film).0);
}

#[test]
fn what_was_not_recorded_cannot_be_cut_out_and_that_is_said() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let camera = Camera::start(&small(folder.path()), &Setup::default());
    let address = camera.address();
    let mut watching = Watching::start(&library, &[&address]);
    watching.until_stored(2);
    watching.stop();
    let moment = folder.path().join("moment.mp4");
    let ran = search(&library, &["a test picture", "--export", moment.to_str().unwrap()]);
    assert!(ran.code != 0 && ran.err.contains("index --record"), "{ran:?}");
    assert!(!moment.exists());
}

#[test]
fn the_moment_that_is_cut_out_is_the_one_that_was_found() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("films.library");
    let film = numbered(folder.path(), "film.mp4", "25", 6.0, "-c:v libx264 -g 50 -bf 2");
    let mut watched = command(["index", "--json", "--as-live", "--record", "--library"]);
    let ran = finish(watched.arg(&library).arg(&film)).exits(0);
    check_accounts(&ran.line("live_run")["streams"][0]);
    let reader = Reader::open(&library).unwrap();
    let source = reader.sources().unwrap()[0].id;
    let begins = reader.recordings(source).list().unwrap()[0].start.0;
    for clip in show(&library, film.to_str().unwrap()).exits(0).lines("clip") {
        let moment = folder.path().join(format!("{}.mp4", clip["start_us"]));
        let like = clip["id"].as_str().unwrap();
        let query = ["--like", like, "--top", "1", "--export", moment.to_str().unwrap()];
        let found = search(&library, &query).exits(0);
        let start = found.line("export")["span"]["start"].as_i64().unwrap();
        let mut ffmpeg = Command::new("ffmpeg");
        ffmpeg.args(["-v", "error", "-nostdin", "-i"]).arg(&moment);
        ffmpeg.args(["-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]);
        let shown = number(&ffmpeg.output().unwrap().stdout, 160, 96);
        let wanted = (start - begins).max(0) as f64 / 40_000.0;
        // When a frame is played depends on what else the machine does; a clip is 37 frames.
        assert!((f64::from(shown) - wanted).abs() <= 10.0, "{shown} at {wanted}");
    }
}

#[test]
fn what_cameras_send_is_recorded_bit_for_bit() {
    let folder = TempDir::new().unwrap();
    for (name, coding) in [
        ("h265.mp4", "-c:v libx265 -x265-params log-level=error:bframes=2 -g 25"),
        ("mpeg2.ts", "-c:v mpeg2video -g 25 -bf 2"),
        ("mpeg4.mp4", "-c:v mpeg4 -g 25"),
        ("jpeg.mkv", "-c:v mjpeg -pix_fmt yuvj420p"),
    ] {
        let library = folder.path().join(format!("{name}.library"));
        let film = numbered(folder.path(), name, "25", 2.0, coding);
        let mut watched = command(["index", "--json", "--as-live", "--record", "--library"]);
        let ran = finish(watched.arg(&library).arg(&film)).exits(0);
        let stream = &ran.line("live_run")["streams"][0];
        check_accounts(stream);
        assert_eq!(stream["unrecorded"], 0, "{name}: {stream} {}", ran.err);
        assert_eq!(decoded(&recordings(&library)[0]).0, decoded(&film).0, "{name}");
    }
}

#[test]
fn what_goes_into_no_recording_is_said_and_counted() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("films.library");
    let coding = "-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -g 25";
    let film = numbered(folder.path(), "film.webm", "25", 2.0, coding);
    let mut watched = command(["index", "--json", "--as-live", "--record", "--library"]);
    let ran = finish(watched.arg(&library).arg(&film)).exits(0);
    let stream = &ran.line("live_run")["streams"][0];
    check_accounts(stream);
    assert_eq!((&stream["unrecorded"], &stream["recorded_bytes"]), (&50.into(), &0.into()));
    assert!(ran.err.contains("is not recorded"), "{}", ran.err);
    check(&library).exits(0);
}
