//! What the library knows and keeps of live streams, against a real server on this machine.

use std::path::Path;
use std::time::{Duration, Instant};

use cinelex::library::{ChunkRecord, Reader, RecipeKind, Writer};
use cinelex::time::{Micros, Span, Timestamp};
use serde_json::Value;
use tempfile::TempDir;

use crate::camera::{Camera, Setup};
use crate::cinelex::{command, finish, index_with, info, run, search, show};
use crate::live::{PATIENCE, REFUSED, Watching, check, check_grid, now_us, small};
use crate::media::numbered;
use crate::recording::recordings;
use crate::stopping::{brisk_pipeline, quick_pipeline};

const CLIP_US: i64 = 1_500_000;
const CHUNK_US: i64 = 80 * CLIP_US;
/// So many that their pages are worth giving back.
const OLD_CHUNKS: i64 = 30;

/// Looks into the library, as another process does, until its one stream is as `wanted`.
fn until_noted(library: &Path, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let began = Instant::now();
    loop {
        let stream = info(library)["streams"][0].clone();
        if wanted(&stream) {
            return stream;
        }
        assert!(began.elapsed() < PATIENCE, "{what} is not noted: {stream}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn how_a_camera_is_can_be_seen_from_another_process() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let camera = Camera::start(&small(folder.path()), &Setup::default());
    let address = camera.address();
    let mut watching = Watching::start(&library, &[&address]);
    watching.until_stored(1);
    let live = until_noted(&library, "live", |stream| {
        stream["state"] == "live" && stream["clips"].as_u64() >= Some(1)
    });
    assert_eq!(live["source"], address.as_str());
    assert!(live["ended_us"].is_null() && live["told_us"].is_number(), "{live}");
    let words =
        |library: &Path| run(["library", "show", library.to_str().unwrap(), &address]).exits(0).out;
    // On a busy machine, a stream may be lost for a moment.
    let until_shown = |wanted: [&str; 2]| {
        let began = Instant::now();
        loop {
            let shown = words(&library);
            if wanted.iter().all(|wanted| shown.contains(wanted)) {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "{wanted:?} is not shown: {shown}");
            std::thread::sleep(Duration::from_millis(200));
        }
    };
    until_shown(["live since 2", "frames received"]);
    until_shown(["live since 2", "1 connection"]);
    drop(camera);
    let lost = until_noted(&library, "lost", |stream| {
        stream["reason"].as_str().is_some_and(|reason| reason.contains("connection refused"))
    });
    assert!(lost["lost_since_us"].as_i64() >= live["since_us"].as_i64(), "{lost}");
    until_shown(["lost since 2", "connection refused"]);
    let listed = run(["library", "info", library.to_str().unwrap()]).exits(0).out;
    assert!(listed.contains("  lost since 2") && listed.contains("connection refused"), "{listed}");
    // What is not seen just now has its reason, before it is a gap. What is not older than ten seconds might still come.
    let unseen = || search(&library, &["anything", "--last", "1h"]).exits(0).lines("unseen").pop();
    let began = Instant::now();
    while !unseen().is_some_and(|last| last["reason"].as_str().unwrap().contains(REFUSED)) {
        assert!(began.elapsed() < PATIENCE, "{:?}", unseen());
        std::thread::sleep(Duration::from_millis(500));
    }
    let end = watching.stop();
    let ended = until_noted(&library, "the end", |stream| stream["ended_us"].is_number());
    assert_eq!(ended["state"], "ended");
    for key in ["received", "encoded", "clips", "gaps", "sessions"] {
        assert_eq!(ended[key], end["streams"][0][key], "{key}");
    }
    assert_eq!(show(&library, &address).exits(0).line("stream"), {
        let mut line = ended.clone();
        line["schema"] = 1.into();
        line["kind"] = "stream".into();
        line
    });
    assert!(words(&library).contains("not watched since 2"));
    check(&library).exits(0);

    // A run that is cut off says nothing of its end, and the next one knows.
    let camera = Camera::start(
        &small(folder.path()),
        &Setup { port: Some(camera_port(&address)), ..Setup::default() },
    );
    let mut watching = Watching::start(&library, &[&address]);
    watching.until_state("live");
    until_noted(&library, "live again", |stream| stream["state"] == "live");
    watching.child.kill().unwrap();
    watching.child.wait().unwrap();
    let film = numbered(folder.path(), "film.mp4", "5", 2.0, "-c:v libx264");
    index_with(&library, &[&film], &["--listen", "never"]).exits(0);
    let cut = until_noted(&library, "the cut", |stream| stream["ended_us"].is_number());
    assert_eq!((&cut["state"], &cut["ended_us"]), (&"live".into(), &cut["told_us"]), "{cut}");
    assert!(words(&library).contains("when the run was cut off"));
    drop(camera);
}

fn camera_port(address: &str) -> u16 {
    let (_, rest) = address.rsplit_once(':').unwrap();
    rest.split('/').next().unwrap().parse().unwrap()
}

/// Gives a camera some chunks of its first clip, as if it had been watched 40 days ago. Returns how many
/// clips these are.
pub fn make_old(library: &Path, address: &str) -> u64 {
    let mut writer = Writer::open(library).unwrap();
    let reader = Reader::open(library).unwrap();
    let id = reader.source(address).unwrap().id;
    let recipe = reader.current(RecipeKind::Clip).unwrap().unwrap().id;
    let mut clips = Vec::new();
    reader
        .each_clip(id, |clip| {
            clips.push(clip);
            Ok(())
        })
        .unwrap();
    let first = (now_us() - 40 * 86_400_000_000).div_euclid(CHUNK_US);
    for number in first..first + OLD_CHUNKS {
        let span = |start: i64, length: i64| {
            Span::new(Timestamp(start), Timestamp(start) + Micros(length))
        };
        let clips = (0..80).map(|place| {
            let mut clip = clips[0].clone();
            clip.head.span = span(number * CHUNK_US + place * CLIP_US, CLIP_US);
            clip.head.shot_start = None;
            clip
        });
        let chunk = ChunkRecord {
            index: u32::try_from(number).unwrap(),
            span: span(number * CHUNK_US, CHUNK_US),
            clips: clips.collect(),
            gaps: Vec::new(),
        };
        writer.append(id, &recipe, &chunk).unwrap();
    }
    OLD_CHUNKS as u64 * 80
}

#[test]
fn what_is_too_old_goes_while_a_camera_is_watched_whatever_kills_the_run() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let camera = Camera::start(&small(folder.path()), &Setup::default());
    let address = camera.address();
    let mut watching = Watching::start(&library, &[&address]);
    watching.until_stored(2);
    watching.stop();
    let new = info(&library)["clips"].as_u64().unwrap();
    let old = make_old(&library, &address);
    check(&library).exits(0);
    let months_ago = ["a test picture", "--from", "2026-01-01", "--to", "now", "--top", "3000"];
    assert!(search(&library, &months_ago).exits(0).lines("hit").len() as u64 > new);

    let mut last = old + new;
    for point in ["watch-noted", "keep-features-deleted", "keep-rows-deleted", "keep-given-back"] {
        let mut command = command(["index", "--library"]);
        command.arg(&library).args(["--keep", "30d", &address]).env("CINELEX_DIE_AT", point);
        let killed = finish(&mut command);
        assert_eq!(killed.code, -1, "{point} was not reached: {killed:?}");
        check(&library).exits(0);
        let clips = info(&library)["clips"].as_u64().unwrap();
        assert!(point == "watch-noted" || clips < last, "{point}: {clips}");
        last = clips;
    }
    let mut watching = Watching::start(&library, &["--keep", "30d", &address]);
    watching.until_stored(2);
    let end = watching.stop();
    let stream = &end["streams"][0];
    let clips = info(&library)["clips"].as_u64().unwrap();
    let deleted = stream["deleted_clips"].as_u64().unwrap();
    assert!(deleted >= 80 && deleted.is_multiple_of(80), "{stream}");
    assert!(clips > new && clips < new + 80, "{clips}");
    check(&library).exits(0);
    let found = search(&library, &months_ago).exits(0);
    let hits = found.lines("hit");
    assert!(hits.iter().all(|hit| hit["wall_clock_us"].as_i64() > Some(now_us() - 86_400_000_000)));
    let unseen = found.lines("unseen");
    assert_eq!(unseen[0]["reason"], "kept for 30 days", "{unseen:?}");
}

#[test]
fn what_there_is_no_room_for_goes_with_its_recordings_while_a_camera_is_watched() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let camera = Camera::start(&small(folder.path()), &Setup::default());
    let address = camera.address();
    // A chunk takes 8 s.
    let pipeline = brisk_pipeline(folder.path(), "0.1");
    let options = ["--record", "--pipeline", pipeline.to_str().unwrap(), &address];
    let mut watching = Watching::start(&library, &options);
    watching.until_stored(30);
    let stored = watching.stop()["streams"][0]["clips"].as_u64().unwrap();
    let first = recordings(&library).remove(0);
    let room = format!("{}kB", first.metadata().unwrap().len() / 2_000);

    let mut watching = Watching::start(&library, &[&["--keep", &room], &options[..]].concat());
    watching.until_within(2 * PATIENCE, "the first recording to go", |_| !first.exists());
    watching.until_stored(1);
    let end = watching.stop();
    let stream = &end["streams"][0];
    let deleted = stream["deleted_clips"].as_u64().unwrap();
    assert!(deleted >= stored, "{stored} before, {stream}");
    let clips = stored + stream["clips"].as_u64().unwrap() - deleted;
    assert_eq!(info(&library)["clips"].as_u64().unwrap(), clips);
    // What is left are the last chunks, and the recording that was being written, or was just begun.
    assert!(recordings(&library).len() <= 2);
    let (first_us, ..) = check_grid(&library, &address)[0];
    let found = search(&library, &["a test picture", "--last", "1h", "--top", "1000"]).exits(0);
    let hits = found.lines("hit");
    assert!(!hits.is_empty() && hits.iter().all(|hit| hit["start_us"].as_i64() >= Some(first_us)));
    let unseen = found.lines("unseen");
    assert_eq!(unseen[0]["reason"], "kept while there was room", "{unseen:?}");
    check(&library).exits(0);
}

#[test]
fn another_pipeline_does_not_watch_unseen() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let camera = Camera::start(&small(folder.path()), &Setup::default());
    let address = camera.address();
    let mut watching = Watching::start(&library, &[&address]);
    watching.until_stored(1);
    watching.stop();
    let before = info(&library)["recipes"].clone();
    let quick = quick_pipeline(folder.path());
    let quick = quick.to_str().unwrap();
    let refused = index_with(&library, &[Path::new(&address)], &["--pipeline", quick]).exits(2);
    assert!(refused.err.contains("another pipeline has read"), "{}", refused.err);
    assert!(refused.err.contains("--take-over"), "{}", refused.err);
    assert_eq!(info(&library)["recipes"], before);
    let mut watching = Watching::start(&library, &["--pipeline", quick, "--take-over", &address]);
    let first = watching.until("a clip", |line| line["kind"] == "stored");
    watching.until_stored(1);
    watching.stop();
    // What the other one made is gone, and what this one makes is found.
    let hits = search(&library, &["a test picture", "--top", "50"]).exits(0).lines("hit");
    let is_new = |hit: &Value| hit["start_us"].as_i64() >= first["start_us"].as_i64();
    assert!(!hits.is_empty() && hits.iter().all(is_new), "{first}: {hits:?}");
    check(&library).exits(0);
}
