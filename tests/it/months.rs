//! What happens to live streams that are watched for months: rows are damaged, clocks set wrong, disks full, and
//! somebody begins a second run.

use std::io::Read;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::camera::{Camera, Setup, coded};
use crate::cinelex::{command, finish, index_with, info};
use crate::kept::make_old;
use crate::live::{Watching, check, small};
use crate::returning::{faketime, set_clock};
use crate::rough::on_a_small_disk;
use crate::stopping::brisk_pipeline;

/// Makes a number of the newest clip one that nobody writes.
fn damage_newest(library: &Path) {
    let script = "import sqlite3, sys\n\
                  held = sqlite3.connect(sys.argv[1], timeout=60)\n\
                  held.execute('UPDATE clips SET frames = -1 WHERE key = (SELECT max(key) FROM clips)')\n\
                  held.commit()";
    let mut python = Command::new("python3");
    let ran = python.args(["-c", script]).arg(library.join("library.sqlite")).status().unwrap();
    assert!(ran.success());
}

#[test]
fn a_damaged_row_costs_the_segments_of_its_chunk_and_none_after_it() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let camera = Camera::start(&small(folder.path()), &Setup::default());
    // A chunk takes 8 s.
    let pipeline = brisk_pipeline(folder.path(), "0.1");
    let address = camera.address();
    let options = ["--pipeline", pipeline.to_str().unwrap(), &address];
    let mut watching = Watching::start(&library, &options);
    watching.until_stored(2);
    damage_newest(&library);
    let is_told = |line: &Value| line["kind"] == "stream" && line["unsegmented"] == 1;
    let told = watching.until("what has no segments", is_told);
    watching.until("segments of what came then", |line| {
        line["kind"] == "stream" && line["segments"].as_u64() > told["segments"].as_u64()
    });
    let mut err = watching.child.stderr.take().unwrap();
    let end = watching.stop();
    assert_eq!(end["streams"][0]["unsegmented"], 1, "{end}");
    let mut said = String::new();
    err.read_to_string(&mut said).unwrap();
    let of_chunk = said.lines().filter(|line| line.contains("no segments are made of"));
    let of_chunk: Vec<&str> = of_chunk.collect();
    assert!(matches!(of_chunk[..], [one] if one.contains(&address)), "{said}");
    assert!(of_chunk[0].contains("the library is damaged"), "{said}");
}

#[test]
fn a_clock_that_is_set_wrong_has_nothing_deleted() {
    let Some(faketime) = faketime() else {
        eprintln!("skipped: the package faketime is not installed");
        return;
    };
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let clock = folder.path().join("clock");
    let camera = Camera::start(&small(folder.path()), &Setup::default());
    let address = camera.address();
    let watch = |keep: &str| {
        let mut command = command(["index", "--json", "--longest-pause", "1", "--library"]);
        command.arg(&library).args(["--keep", keep, &address]).env("LD_PRELOAD", &faketime);
        command.env("FAKETIME_TIMESTAMP_FILE", &clock).env("FAKETIME_NO_CACHE", "1");
        Watching::run(command.env("DONT_FAKE_MONOTONIC", "1"))
    };
    // It is looked every ten seconds.
    let let_it_look = || std::thread::sleep(Duration::from_secs(13));
    set_clock(&clock, "+0");
    let mut watching = watch("60d");
    watching.until_stored(2);
    watching.stop();
    let before = make_old(&library, &address) + 2;

    // By a hundred days, so that all that is there would be too old.
    let mut watching = watch("60d");
    watching.until_stored(1);
    set_clock(&clock, "+8640000");
    watching.until_state("waiting");
    watching.until_stored(1);
    watching.until_told("the clock is 100 days ahead of the time that was known");
    let_it_look();
    let end = watching.stop();
    assert_eq!(end["streams"][0]["deleted_clips"], 0, "{end}");
    // Neither has a run that begins by such a clock.
    let mut watching = watch("60d");
    watching.until_stored(1);
    let_it_look();
    assert_eq!(watching.stop()["streams"][0]["deleted_clips"], 0);
    assert!(info(&library)["clips"].as_u64().unwrap() > before);
    check(&library).exits(0);

    set_clock(&clock, "+0");
    let mut watching = watch("30d");
    watching.until("what is too old to go", |line| {
        line["kind"] == "stream" && line["deleted_clips"].as_u64() > Some(0)
    });
    watching.stop();
    check(&library).exits(0);
}

#[test]
fn a_run_that_is_to_keep_less_makes_room_on_a_full_disk() {
    let folder = TempDir::new().unwrap();
    // A chunk's recording is larger than what waits in logs, as one of two minutes is.
    let coding = "-g 25 -preset ultrafast -tune zerolatency -qp 3";
    let camera = Camera::start(&coded(folder.path(), "640x360", 2.0, coding), &Setup::default());
    let script = r#"
        fail() { echo "$1"; cat "$disk.out" "$disk.err"; exit 8; }
        until_said() {
            for _ in $(seq 900); do
                [ "$(grep -c "$2" "$3")" -ge "$1" ] && return
                kill -0 $watcher 2>/dev/null || fail "it ended without $2"
                sleep 0.1
            done
            fail "no $2"
        }
        watch() {
            "$cinelex" index "$address" --library "$disk/lib" --pipeline "$pipeline" --json --record \
                "$@" >"$disk.out" 2>"$disk.err" &
            watcher=$!
        }
        # More than a chunk, in a file that is over.
        until_said 130 '"kind":"stored"' "$disk.out"
        kill -INT $watcher
        wait $watcher || fail "ended with $?"
        watch
        until_said 130 '"kind":"stored"' "$disk.out"
        dd if=/dev/zero of="$disk/filler" bs=4k 2>/dev/null
        until_said 1 "nothing is recorded until that is over" "$disk.err"
        until_said 1 "nothing is stored until that is over" "$disk.err"
        kill -9 $watcher
        wait $watcher
        dd if=/dev/zero of="$disk/more" bs=4k 2>/dev/null
        watch --keep 100kB
        until_said 30 '"kind":"stored"' "$disk.out"
        kill -INT $watcher
        wait $watcher || fail "ended with $?"
        "$cinelex" library check "$disk/lib" >&2 || exit 8
        grep live_run "$disk.out"
    "#;
    let Some(ran) = on_a_small_disk(folder.path(), &camera, &["--record"], script) else { return };
    let ran = ran.exits(0);
    let stream = &ran.line("live_run")["streams"][0];
    assert!(stream["deleted_clips"].as_u64() > Some(0), "{stream}");
}

#[test]
fn a_second_run_of_a_library_is_refused_with_what_to_do_and_costs_the_first_nothing() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let camera = Camera::start(&small(folder.path()), &Setup::default());
    let address = camera.address();
    let mut watching = Watching::start(&library, &["--silence", "60", &address]);
    watching.until_stored(1);
    let ran = index_with(&library, &[Path::new(&address)], &[]).exits(3);
    let process = format!("(process {})", watching.child.id());
    assert!(ran.err.contains(&process), "{}", ran.err);
    assert!(ran.err.contains("stop it and name all streams in one run"), "{}", ran.err);
    watching.until_stored(2);
    watching.stop_when_all_came(&[&camera]);
    check(&library).exits(0);
}

#[test]
fn a_stream_that_is_named_twice_leaves_no_source() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let mut index = command(["index", "--library"]);
    index.arg(&library).args(["rtsp://127.0.0.1:9/live", "rtsp://me:hunter2@127.0.0.1:9/live"]);
    let ran = finish(&mut index).exits(2);
    assert!(ran.err.contains("named twice: give each a name of its own"), "{}", ran.err);
    assert!(!ran.err.contains("hunter2"), "{}", ran.err);
    assert_eq!(info(&library)["sources"], 0);
}
