//! Live streams whose library another process holds for a while.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::camera::{Camera, Setup, coded};
use crate::cinelex::show;
use crate::live::{Watching, check};
use crate::rough::Holder;

/// Whether one of the streams has segments of a chunk, and those of the other are still to be made.
const AMID_SEGMENTS: &str = "SELECT max(made) - min(made) > 10 FROM \
     (SELECT count(*) made FROM segments GROUP BY source)";

/// Another process that lets nobody read a library. What everybody who reads holds one of is locked: SQLite's marks of
/// readers, in the shared memory beside the file ("WAL-Index File Format", 2.1).
fn bar_amid_segments(library: &Path) -> Holder {
    let how = "held.close()\n\
               marks = open(sys.argv[1] + '-shm', 'r+b')\n\
               for mark in range(5): fcntl.lockf(marks, fcntl.LOCK_EX, 1, 123 + mark)";
    Holder::start_by(how, library, AMID_SEGMENTS)
}

/// Two cameras with many segments a chunk, 8 s, so that captions take their time: the chunk of one waits for that of the
/// other.
fn watch(folder: &Path, library: &Path) -> (Watching, [Camera; 2]) {
    let units = coded(folder, "160x96", 2.0, "-g 25 -preset ultrafast -tune zerolatency");
    let cameras = [(); 2].map(|()| Camera::start(&units, &Setup::default()));
    let text = include_str!("../../pipelines/default.toml")
        .replace("frames_per_clip = 2", "frames_per_clip = 1")
        .replace("clip_secs = 1.5", "clip_secs = 0.1")
        .replace("max_clips = 16", "max_clips = 4");
    let pipeline = folder.join("captions.toml");
    std::fs::write(&pipeline, text).unwrap();
    let addresses = cameras.each_ref().map(Camera::address);
    let options = ["--pipeline", pipeline.to_str().unwrap(), &addresses[0], &addresses[1]];
    (Watching::start(library, &options), cameras)
}

/// Every clip is in a segment.
fn check_segments(library: &Path, cameras: &[Camera], end: &Value) {
    for (camera, stream) in cameras.iter().zip(end["streams"].as_array().unwrap()) {
        assert_eq!(stream["unsegmented"], 0, "{stream}");
        let shown = show(library, &camera.address()).exits(0);
        let segments = shown.lines("segment").into_iter();
        let clips: u64 = segments.map(|segment| segment["clips"].as_u64().unwrap()).sum();
        assert_eq!(Some(clips), stream["clips"].as_u64(), "{stream}");
    }
    check(library).exits(0);
}

/// Waits until a run says that it cannot read, and returns what it says then.
fn until_unread(watching: &mut Watching) -> impl Iterator<Item = String> + use<> {
    let errors = BufReader::new(watching.child.stderr.take().unwrap());
    let mut said = errors.lines().map_while(Result::ok);
    let line = said.find(|line| line.contains("no segments are made")).unwrap();
    assert!(line.ends_with("no segments are made until that is over"), "{line}");
    said
}

#[test]
fn segments_wait_for_a_library_that_cannot_be_read() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let (mut watching, cameras) = watch(folder.path(), &library);
    watching.until_stored(1);
    let bar = bar_amid_segments(&library);
    // SQLite tries for ten seconds before that fails.
    let said = until_unread(&mut watching);
    drop(bar);
    watching.until_stored(100);
    check_segments(&library, &cameras, &watching.stop());
    drop(said);
}

#[test]
fn segments_wait_for_a_library_that_is_held_and_all_who_wait_say_so_once() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let (mut watching, cameras) = watch(folder.path(), &library);
    watching.until_stored(1);
    let holder = Holder::start_when(&library, AMID_SEGMENTS);
    let is_told = |line: &Value| line["kind"] == "stream" && line["not_stored"].is_string();
    let told = watching.until("that nothing is stored", is_told);
    assert_eq!(told["not_stored"], "another process is using the library", "{told}");
    assert_eq!(told["state"], "live", "{told}");
    // Each who wants to write waits ten seconds before that fails, and all wait for each other.
    std::thread::sleep(Duration::from_secs(25));
    drop(holder);
    watching.until("that it is over", |line| line["kind"] == "stream" && !is_told(line));
    watching.until_stored(100);
    let mut err = watching.child.stderr.take().unwrap();
    check_segments(&library, &cameras, &watching.stop());
    let mut said = String::new();
    err.read_to_string(&mut said).unwrap();
    for once in ["nothing is stored until that is over", "what comes is stored again, after "] {
        assert_eq!(said.matches(once).count(), 1, "{said}");
    }
}

#[test]
#[ignore = "slow: SQLite tries for ten seconds each time"]
fn a_library_that_can_never_be_read_again_ends_a_run_that_was_stopped() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let (mut watching, _cameras) = watch(folder.path(), &library);
    watching.until_stored(1);
    let _bar = bar_amid_segments(&library);
    let mut said = until_unread(&mut watching);
    watching.interrupt();
    let ends = said.find(|line| line.contains("for 10 s after the run was stopped: "));
    assert!(ends.is_some(), "it did not say what is lost");
    assert_eq!(watching.child.wait().unwrap().code(), Some(1));
}
