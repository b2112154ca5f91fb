//! Live streams while they wait for a keyframe.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cinelex::source::{
    Fit, Host, Input, LiveRequest, Location, PictureEvent, Rendition, Targets, Transport,
};
use cinelex::time::{Micros, Timestamp};
use rustix::time::{ClockId, clock_gettime};
use serde_json::Value;
use tempfile::TempDir;

use crate::camera::{Camera, Setup, Units, coded};
use crate::cinelex::{run, search};
use crate::decoding::limits;
use crate::live::{PATIENCE, Watching, check, check_grid, told};
use crate::stopping::brisk_pipeline;

const NO_KEYFRAME: &str =
    "no keyframe came for 2 s: if that goes on, set the camera's keyframe interval";

/// A film of so many seconds with one keyframe, at its start.
fn one_keyframe(folder: &Path, secs: u32) -> Units {
    let coding = format!("-g {} -preset ultrafast -tune zerolatency", secs * 25);
    coded(folder, "160x96", secs.into(), &coding)
}

/// The same film without that keyframe.
fn without_keyframe(units: &Units) -> Units {
    let first = &units[0];
    let picture =
        first.windows(4).position(|bytes| matches!(bytes, [0, 0, 1, unit] if unit & 31 == 5));
    let headers = &first[..picture.unwrap()];
    let mut rest = units[1..].to_vec();
    rest[0] = [headers, &rest[0]].concat();
    Arc::new(rest)
}

fn monotonic_us() -> i64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec * 1_000_000 + now.tv_nsec / 1_000
}

#[test]
fn while_a_host_that_was_behind_waits_for_a_keyframe_its_watermark_goes_on() {
    let folder = TempDir::new().unwrap();
    let units = one_keyframe(folder.path(), 60);
    let camera = Camera::start(&units, &Setup::default());
    let input = Input::open_live(&Location::from_text(camera.address().as_ref())).unwrap();
    let request = LiveRequest {
        // Two pictures fill the socket.
        rendition: Rendition { width_px: 224, height_px: 224, fit: Fit::Squash },
        targets: Targets::every(Micros::from_millis(100), Micros::ZERO),
        zero_us: monotonic_us(),
        transport: Transport::default(),
        ca: None,
        silence: PATIENCE,
        hardware: false,
        record: false,
        sound_from: None,
    };
    let mut host = Host::start(&limits()).unwrap();
    let (mut events, _) = host.live(&input, &request).unwrap();
    let is_frame = |event| matches!(event, PictureEvent::Frame(_));
    for _ in 0..5 {
        assert!(events.by_ref().any(|event| is_frame(event.unwrap())));
    }
    // Nobody takes anything for a while.
    let sent = camera.sent();
    while camera.sent() < sent + 5 * 25 {
        std::thread::sleep(Duration::from_millis(50));
    }
    let resumed = Timestamp(monotonic_us() - request.zero_us);
    let mut behind = 0;
    // All that is late is so since nobody took it.
    let follows = events.any(|event| match event.unwrap() {
        PictureEvent::Gap(gap) => {
            assert_eq!(gap.reason, "decoding was behind");
            behind += gap.span.length().0;
            false
        }
        PictureEvent::Watermark(at) => {
            let now = Timestamp(monotonic_us() - request.zero_us);
            assert!(camera.sent() < units.len() as u64, "{at:?} at {now:?}");
            at > resumed + Micros(3_000_000) && now - at < Micros(5_000_000)
        }
        _ => false,
    });
    // Nothing could be seen yet.
    assert!(follows);
    assert!(behind > 5_000_000, "{behind}");
}

#[test]
fn a_camera_that_sends_no_keyframe_is_told_with_what_to_do() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let units = without_keyframe(&one_keyframe(folder.path(), 4));
    let camera = Camera::start(&units, &Setup::default());
    let (address, port) = (camera.address(), camera.port);
    let pipeline = brisk_pipeline(folder.path(), "0.25");
    let options = ["--pipeline", pipeline.to_str().unwrap(), "--silence", "2", &address];
    let mut watching = Watching::start(&library, &options);
    let is_told =
        |line: &Value| line["reason"].as_str().is_some_and(|said| said.contains(NO_KEYFRAME));
    let line = watching.until(NO_KEYFRAME, is_told);
    // It is still waited for, and the time is said not to be seen.
    assert_eq!((&line["state"], &line["sessions"]), (&"connecting".into(), &0.into()), "{line}");
    let began = Instant::now();
    while !search(&library, &["anything", "--last", "1h"]).lines("unseen").iter().any(is_told) {
        assert!(began.elapsed() < PATIENCE, "{:?}", watching.seen);
        std::thread::sleep(Duration::from_secs(1));
    }
    let listed = run(["library", "info", library.to_str().unwrap()]).exits(0).out;
    assert!(listed.contains("  lost since 2") && listed.contains(NO_KEYFRAME), "{listed}");
    drop(camera);
    let units = one_keyframe(folder.path(), 1);
    let _camera = Camera::start(&units, &Setup { port: Some(port), ..Setup::default() });
    watching.until_state("live");
    watching.until_stored(2);
    let end = watching.stop();
    let stream = &end["streams"][0];
    assert!(stream["before_keyframe"].as_u64() > Some(200), "{stream}");
    let spans = check_grid(&library, &address);
    assert_eq!(told(&spans[..1], NO_KEYFRAME), 1, "{spans:?}");
    assert!(spans[0].1 - spans[0].0 > 8_000_000, "{spans:?}");
    check(&library).exits(0);
}

#[test]
fn a_run_that_ends_before_a_keyframe_came_stores_why_nothing_was_seen() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let units = without_keyframe(&one_keyframe(folder.path(), 4));
    let camera = Camera::start(&units, &Setup::default());
    let address = camera.address();
    let mut watching = Watching::start(&library, &["--silence", "2", &address]);
    let is_told =
        |line: &Value| line["reason"].as_str().is_some_and(|said| said.contains(NO_KEYFRAME));
    watching.until(NO_KEYFRAME, is_told);
    watching.stop();
    let spans = check_grid(&library, &address);
    assert_eq!((spans.len(), told(&spans, NO_KEYFRAME)), (1, 1), "{spans:?}");
    check(&library).exits(0);
}

#[test]
#[ignore = "slow: five minutes"]
fn a_camera_that_has_sent_no_keyframe_for_minutes_is_connected_anew() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let units = without_keyframe(&one_keyframe(folder.path(), 4));
    let camera = Camera::start(&units, &Setup::default());
    let mut watching = Watching::start(&library, &["--silence", "2", &camera.address()]);
    let is_lost = |line: &Value| line["kind"] == "stream" && line["state"] == "waiting";
    let lost = watching.until_within(Duration::from_secs(400), "the end of patience", is_lost);
    let reason = format!("stream lost: {NO_KEYFRAME}");
    assert!(lost["reason"].as_str().unwrap().starts_with(&reason), "{lost}");
    let sent = lost["before_keyframe"].as_u64().unwrap();
    assert!(sent > 280 * 25, "{lost}");
    watching.stop();
    let spans = check_grid(&library, &camera.address());
    assert_eq!(told(&spans, "no keyframe came for 2 s"), 1, "{spans:?}");
    check(&library).exits(0);
}
