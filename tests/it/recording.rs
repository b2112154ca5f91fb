//! Live streams that are kept as they come, and moments cut out of them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use cinelex::library::{Reader, Recording};
use cinelex::time::{Micros, Span, Timestamp};
use serde_json::Value;
use tempfile::TempDir;

use crate::camera::{Camera, Setup, Units, units};
use crate::cinelex::{command, finish, run, search, show};
use crate::live::{PATIENCE, Watching, check, check_accounts, small};
use crate::media::{ffmpeg, number, numbered, probe};
use crate::rough::on_a_small_disk;
use crate::stopping::hosts_of;

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
    probe(film, "-show_entries format=duration").trim().parse().unwrap()
}

#[test]
fn a_recorded_stream_has_every_frame_and_moments_are_cut_out_of_it() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let camera = Camera::start(&small(folder.path()), &Setup::default());
    let address = camera.address();
    let mut watching = Watching::start(&library, &["--record", "--silence", "60", &address]);
    watching.until_stored(4);
    // While it is written. The newest moment is there a keyframe later, and the first one may begin before the stream.
    let moment = folder.path().join("moment.mp4");
    let is_whole = |clip: &Value| {
        let _ = std::fs::remove_file(&moment);
        let like = clip["id"].as_str().unwrap();
        let query = ["--like", like, "--export", moment.to_str().unwrap(), "--top", "1"];
        let found = search(&library, &query);
        found.code == 0 && {
            let span = &found.line("export")["span"];
            let length = span["end"].as_f64().unwrap() - span["start"].as_f64().unwrap();
            (secs(&moment) - length / 1e6).abs() < 0.1
        }
    };
    let began = Instant::now();
    while !show(&library, &address).exits(0).lines("clip").iter().any(is_whole) {
        assert!(began.elapsed() < PATIENCE, "no moment is whole");
        std::thread::sleep(Duration::from_millis(500));
    }
    let end = watching.stop_when_all_came(&[&camera]);
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
    // As if it had been killed while it wrote a fragment.
    let written = std::fs::read(&files[0]).unwrap();
    let cut = written.len() - 1_000;
    std::fs::write(&files[0], &written[..cut]).unwrap();
    let mut watching = Watching::start(&library, &["--record", &address]);
    watching.until_stored(2);
    watching.stop();
    assert_eq!(recordings(&library).len(), 2);
    assert_eq!(std::fs::read(&files[0]).unwrap(), written[..cut]);
    let reader = Reader::open(&library).unwrap();
    let recordings = reader.recordings(reader.sources().unwrap()[0].id);
    let begins: Vec<Timestamp> = recordings.list().unwrap().iter().map(|one| one.start).collect();
    let held = recordings.hold(Span::new(begins[0], begins[1])).unwrap();
    let [missing] = held.missing[..] else { panic!("{held:?}") };
    assert!(held.files.len() == 1 && missing.end == begins[1], "{held:?}");
    let clips = show(&library, &address).exits(0).lines("clip");
    let is_of = |clip: &&Value, from: Timestamp, to: Timestamp| {
        let at = |key: &str| Timestamp(clip[key].as_i64().unwrap());
        from <= at("start_us") && at("end_us") <= to
    };
    let whole = clips.iter().filter(|clip| is_of(clip, begins[0], missing.start));
    assert!(whole.clone().count() >= 1, "{missing:?}: {clips:?}");
    let lengths = whole.enumerate().map(|(number, clip)| {
        let moment = folder.path().join(format!("{number}.mp4"));
        let query = ["--export", moment.to_str().unwrap(), "--top", "1", "--like"];
        search(&library, &[&query[..], &[clip["id"].as_str().unwrap()]].concat()).exits(0);
        secs(&moment)
    });
    // Where the machine stands still, frames of a second or two have nearly one time.
    let lengths: Vec<f64> = lengths.collect();
    assert!(lengths.iter().all(|secs| *secs > 0.0), "{lengths:?}");
    assert!(lengths.iter().any(|secs| *secs > 1.3), "{lengths:?}");
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
    let times = recorded_at(&reader.recordings(source).list().unwrap());
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
        // A file's name is exact to a millisecond.
        let wanted = times.partition_point(|at| *at < start);
        assert!((shown as usize).abs_diff(wanted) <= 1, "{shown} at {wanted}");
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

/// Frames that show their numbers, in parts of so many seconds, each coded as the one before is not: a file that
/// holds one ends with it.
fn numbered_in_parts(folder: &Path, secs: &[f64]) -> Units {
    let film = numbered(folder, "whole.mkv", "25", secs.iter().sum(), "-c:v ffv1");
    let (mut all, mut start) = (Vec::new(), 0.0);
    for (place, secs) in secs.iter().enumerate() {
        let refs = 1 + place % 2;
        ffmpeg(
            folder,
            &format!(
                "-ss {start} -t {secs} -i {} -c:v libx264 -preset veryfast -bf 0 -g 25 -refs {refs} \
                 -x264-params aud=1:repeat-headers=1 part.h264",
                film.display()
            ),
        );
        all.extend(units(&std::fs::read(folder.join("part.h264")).unwrap(), 9));
        start += secs;
    }
    Arc::new(all)
}

/// The numbers that the frames of a film of [`numbered`] show, and what the decoder says of them.
fn numbers(film: &Path) -> (Vec<u32>, String) {
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args(["-v", "warning", "-nostdin", "-i"]).arg(film);
    ffmpeg.args(["-fps_mode", "passthrough", "-enc_time_base", "1:90000"]);
    ffmpeg.args(["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]);
    let out = ffmpeg.output().unwrap();
    let frames = out.stdout.chunks_exact(160 * 96 * 3).map(|frame| number(frame, 160, 96));
    (frames.collect(), String::from_utf8_lossy(&out.stderr).into_owned())
}

/// When a film's frames are shown, one after the other.
fn shown_secs(film: &Path) -> Vec<f64> {
    let text = probe(film, "-show_entries packet=pts_time");
    text.lines().map(|line| line.trim_end_matches(',').parse().unwrap()).collect()
}

/// When each frame that was recorded was captured.
fn recorded_at(files: &[Recording]) -> Vec<i64> {
    let mut times = Vec::new();
    for file in files {
        let shown = shown_secs(&file.path);
        times.extend(shown.iter().map(|at| file.start.0 + ((at - shown[0]) * 1e6) as i64));
    }
    times.sort_unstable();
    times
}

/// Watches a camera that sends these frames once, and cuts out each clip: its frames are there, one after the
/// other. Returns how many were cut out of two files or more.
fn cut_each_clip(folder: &Path, units: &Units) -> usize {
    let library = folder.join("cameras.library");
    let camera = Camera::start(units, &Setup::default());
    camera.conduct.last.store(units.len() as u64, Ordering::SeqCst);
    let address = camera.address();
    let mut watching = Watching::start(&library, &["--record", "--silence", "60", &address]);
    watching.until_state("live");
    while camera.sent() < units.len() as u64 {
        std::thread::sleep(Duration::from_millis(50));
    }
    let end = watching.stop_when_all_came(&[&camera]);
    assert_eq!(end["streams"][0]["unrecorded"], 0, "{end}");
    let reader = Reader::open(&library).unwrap();
    let recordings = reader.recordings(reader.sources().unwrap()[0].id);
    let starts: Vec<i64> = recordings.list().unwrap().iter().map(|one| one.start.0).collect();
    let times = recorded_at(&recordings.list().unwrap());
    let mut joined = 0;
    for clip in show(&library, &address).exits(0).lines("clip") {
        let moment = folder.join(format!("{}.mp4", clip["start_us"]));
        let like = clip["id"].as_str().unwrap();
        let query = ["--like", like, "--top", "1", "--export", moment.to_str().unwrap()];
        let cut = search(&library, &query).exits(0).line("export");
        let at = |key: &str| cut["span"][key].as_i64().unwrap();
        let span = at("start")..at("end");
        let (shown, said) = numbers(&moment);
        assert_eq!(said, "");
        assert!(shown.windows(2).all(|pair| pair[1] == pair[0] + 1), "{cut}: {shown:?}");
        // A file's name is exact to a millisecond.
        let wanted = times.partition_point(|at| *at < span.start)
            ..times.partition_point(|at| *at < span.end);
        let [first, last] = [shown[0], shown[shown.len() - 1]].map(|number| number as usize);
        let is_all = first.abs_diff(wanted.start) <= 1 && (last + 1).abs_diff(wanted.end) <= 1;
        assert!(is_all, "{cut}: {shown:?}, not {wanted:?}");
        joined += usize::from(starts[1..].iter().any(|start| span.contains(start)));
    }
    joined
}

#[test]
fn a_moment_goes_on_from_one_recording_to_the_next() {
    let folder = TempDir::new().unwrap();
    let units = numbered_in_parts(folder.path(), &[3.0; 4]);
    let joined = cut_each_clip(folder.path(), &units);
    assert!(joined >= 2, "{joined} cut at a join");
}

#[test]
#[ignore = "slow: recordings of whole minutes"]
fn a_moment_goes_on_from_one_minute_to_the_next() {
    let folder = TempDir::new().unwrap();
    let units = numbered_in_parts(folder.path(), &[130.0]);
    let joined = cut_each_clip(folder.path(), &units);
    assert!(joined >= 2, "{joined} cut at a join");
}

#[test]
fn a_host_that_is_killed_costs_the_recording_no_more_than_its_last_seconds() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let camera = Camera::start(&small(folder.path()), &Setup::default());
    let mut watching = Watching::start(&library, &["--record", &camera.address()]);
    watching.until_stored(3);
    let killed = hosts_of(watching.child.id())[0].to_string();
    assert!(Command::new("kill").args(["-9", &killed]).status().unwrap().success());
    let before = recordings(&library);
    assert_eq!(before.len(), 1);
    watching.until_state("waiting");
    let written = std::fs::read(&before[0]).unwrap();
    watching.until_state("live");
    watching.until_stored(2);
    let end = watching.stop();
    let files = recordings(&library);
    assert_eq!(files.len(), 2);
    assert!(files.contains(&before[0]) && std::fs::read(&before[0]).unwrap() == written);
    let mut frames = Vec::new();
    for file in &files {
        let (of_file, said) = decoded(file);
        assert_eq!(said, "");
        frames.push(of_file.len());
    }
    // 3 clips are 4.5 s, of which one fragment at most was in the host.
    let number = |key: &str| end["streams"][0][key].as_u64().unwrap();
    assert!(frames[0] >= 50, "{frames:?}: {end}");
    let in_files = frames.iter().sum::<usize>() as u64;
    let wanted = number("received") - number("before_keyframe") - number("unrecorded");
    assert!((wanted.saturating_sub(2 * 25)..=wanted + 25).contains(&in_files), "{frames:?}: {end}");
    check(&library).exits(0);
}

#[test]
fn a_full_disk_costs_a_recording_what_came_meanwhile_and_no_more() {
    let folder = TempDir::new().unwrap();
    let camera = Camera::start(&small(folder.path()), &Setup::default());
    let address = camera.address();
    let script = r#"
        until_said() {
            for _ in $(seq 900); do grep -q "$1" "$2" && return; sleep 0.1; done
            echo "no $1"; cat "$disk.out" "$disk.err"; exit 8
        }
        until_stored() {
            for _ in $(seq 900); do
                [ "$(grep -c '"kind":"stored"' "$disk.out")" -ge "$1" ] && return
                sleep 0.1
            done
            echo "no clip $1"; cat "$disk.out" "$disk.err"; exit 8
        }
        until_stored 30
        dd if=/dev/zero of="$disk/filler" bs=4k 2>/dev/null
        until_said "nothing is recorded until that is over" "$disk.err"
        sleep 3
        before=$(grep -c '"kind":"stored"' "$disk.out")
        rm "$disk/filler"
        began=$SECONDS
        until_said "recorded again" "$disk.err"
        # A minute's file would begin later.
        [ $((SECONDS - began)) -le 25 ] || { echo "late"; cat "$disk.err"; exit 8; }
        until_stored $((before + 40))
        kill -INT $watcher
        wait $watcher || { echo "ended with $?"; cat "$disk.err"; exit 8; }
        cp -r "$disk/lib" "$disk.library"
        cat "$disk.out"
        cat "$disk.err" >&2
    "#;
    let Some(ran) = on_a_small_disk(folder.path(), &camera, &["--record"], script) else { return };
    let ran = ran.exits(0);
    let stream = &ran.line("live_run")["streams"][0];
    check_accounts(stream);
    let count = |key: &str| stream[key].as_u64().unwrap();
    assert_eq!((count("sessions"), count("before_keyframe")), (1, 0), "{stream}");
    let is_told = |line: &str| {
        line.contains("the disk is full") && line.contains("nothing is recorded until that is over")
    };
    assert!(ran.err.lines().any(is_told), "{}", ran.err);
    let library = folder.path().join("disk.library");
    check(&library).exits(0);
    let mut frames = 0;
    for file in recordings(&library) {
        let (of_file, said) = decoded(&file);
        assert_eq!(said, "", "{file:?}");
        frames += of_file.len() as u64;
    }
    assert!(count("unrecorded") > 0, "{stream}");
    assert_eq!(frames, count("received") - count("unrecorded"), "{stream}");
    // One hole, as long as the frames that are not recorded.
    let reader = Reader::open(&library).unwrap();
    let recordings = reader.recordings(reader.sources().unwrap()[0].id);
    let files = recordings.list().unwrap();
    let (first, last) = (files.first().unwrap().start, files.last().unwrap().start);
    assert_eq!(files.len(), 2, "{files:?}");
    let whole = Span::new(first, last + Micros::from_millis(500));
    let held = recordings.hold(whole).unwrap();
    let [missing] = held.missing[..] else { panic!("{held:?}") };
    assert_eq!((held.files.len(), missing.end), (2, last), "{held:?}");
    let secs = missing.length().as_secs_f64();
    // Where the machine stands still meanwhile, frames have the times at which they were read.
    let longer = secs - count("unrecorded") as f64 / 25.0;
    assert!(longer.abs() < 3.0, "{secs} s: {stream}");
    assert!(ran.err.contains("recorded again; "), "{}", ran.err);
    // Every clip is found, and cut out where it was recorded.
    let (mut cut, mut not_cut) = (0, 0);
    for (number, clip) in show(&library, &address).exits(0).lines("clip").iter().enumerate() {
        let at = |key: &str| Timestamp(clip[key].as_i64().unwrap());
        let span = Span::new(at("start_us"), at("end_us"));
        let moment = folder.path().join(format!("{number}.mp4"));
        let is_near = |edge: Timestamp| (edge - span.start).0.abs() < 1_000_000;
        if !(is_near(missing.start) || is_near(missing.end)) && number % 8 != 0 {
            continue;
        }
        let like = clip["id"].as_str().unwrap();
        let query = ["--like", like, "--top", "1", "--export", moment.to_str().unwrap()];
        let found = search(&library, &query);
        let hit = found.line("hit");
        let at = |key: &str| Timestamp(hit[key].as_i64().unwrap());
        let found_span = Span::new(at("start_us"), at("end_us"));
        let held = recordings.hold(found_span).unwrap();
        if held.files.is_empty() {
            assert!(found.code == 1 && found.err.contains("index --record"), "{found:?}");
            not_cut += 1;
        } else {
            let told = found.line("export")["missing"].clone();
            assert_eq!(told, serde_json::to_value(&held.missing).unwrap(), "{found:?}");
            cut += 1;
        }
    }
    assert!(cut > 5, "{cut} clips cut out, {not_cut} not");
}
