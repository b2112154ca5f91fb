//! More live streams than a processor can decode.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::camera::{Camera, Setup, Units, coded};
use crate::live::{Watching, check, check_grid, check_sum};

/// Watches so many cameras with one processor; what is said of each stream at the end, and all delays of clips.
fn watched_by_one_processor(
    folder: &Path,
    units: &Units,
    streams: usize,
) -> (Vec<Value>, Vec<f64>) {
    // The first that this process may use.
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let processor = allowed.unwrap().trim().split(['-', ',']).next().unwrap();
    let library = folder.join(format!("{streams}.library"));
    let cameras: Vec<_> = (0..streams).map(|_| Camera::start(units, &Setup::default())).collect();
    let mut command = Command::new("taskset");
    command.args(["-c", processor, env!("CARGO_BIN_EXE_cinelex"), "index", "--json", "--library"]);
    command.arg(&library).args(cameras.iter().map(Camera::address));
    let mut watching = Watching::run(&mut command);
    let is_watched =
        |watching: &Watching| cameras.iter().all(|camera| watching.stored(&camera.address()) >= 10);
    while !is_watched(&watching) {
        watching.until_stored(1);
    }
    let delay = |line: &Value| line["delay_secs"].as_f64().filter(|_| line["kind"] == "stored");
    let delays = watching.seen.iter().filter_map(delay).collect();
    // What has arrived by then may be more than can be decoded in the time that a host has to stop.
    watching.interrupt();
    let end = watching.until("the end", |line| line["kind"] == "live_run");
    let ends = end["streams"].as_array().unwrap().clone();
    for stream in &ends {
        check_sum(stream);
        check_grid(&library, stream["source"].as_str().unwrap());
    }
    check(&library).exits(0);
    (ends, delays)
}

#[test]
#[ignore = "slow: takes a processor for itself"]
fn beyond_what_a_processor_can_do_all_streams_lose_alike_and_none_stands_still() {
    let folder = TempDir::new().unwrap();
    // A core of 2026 decodes some sixty such frames a second.
    let options = "-g 25 -preset veryfast -tune zerolatency";
    let units = coded(folder.path(), "3840x2160", 1.0, options);
    let mut shares = Vec::new();
    for streams in [3, 6] {
        let (ends, mut delays) = watched_by_one_processor(folder.path(), &units, streams);
        let number = |stream: &Value, key: &str| stream[key].as_f64().unwrap();
        let share = |stream: &Value| number(stream, "behind") / number(stream, "received");
        let lost: Vec<f64> = ends.iter().map(share).collect();
        let clips: Vec<f64> = ends.iter().map(|stream| number(stream, "clips")).collect();
        delays.sort_by(f64::total_cmp);
        let (most, late) = (delays.last().unwrap(), delays[delays.len() * 95 / 100]);
        eprintln!(
            "{streams} streams lose {lost:.2?}, {clips:?} clips, {late:.1} s late, {most:.1} s at most"
        );
        for stream in &ends {
            assert_eq!(stream["sessions"], 1, "{stream}");
        }
        let (least, most_clips) = (
            clips.iter().copied().fold(f64::MAX, f64::min),
            clips.iter().copied().fold(0.0, f64::max),
        );
        assert!(least >= most_clips / 2.0, "{clips:?}");
        assert!(*most < 15.0, "{delays:?}");
        shares.push(lost.iter().sum::<f64>() / lost.len() as f64);
    }
    assert!(shares[0] < shares[1] && shares[1] > 0.2, "{shares:?}");
}
