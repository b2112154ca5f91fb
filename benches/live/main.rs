//! How long after its last frame a live clip is found by a search in another process, and how many
//! streams are held with nothing dropped; and how long after its end a segment is stored with its caption, at most
//! (segments are made every two minutes, and at the end). Starts its own RTSP server on loopback, so that anyone can
//! repeat it: `cargo bench --profile release --bench live -- --streams 1,2,4,8 --secs 60`.
//!
//! Needs `cinelex setup` and the `ffmpeg` program. The server takes processor time, too.

#[allow(clippy::unwrap_used, reason = "the tests' own")]
#[path = "../../tests/it/camera.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod camera;
#[path = "../../tests/it/media.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod media;

use std::collections::{HashMap, HashSet};
use std::fmt::Write;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cinelex::library::{ClipId, Query, Reader};
use cinelex::media::Channel;
use clap::Parser;
use serde_json::Value;
use tempfile::TempDir;

/// Clips of the first seconds are not counted: models are loaded, servers begin.
const WARM_UP: Duration = Duration::from_secs(5);

#[derive(Parser, Debug)]
struct Args {
    /// How many streams at once, one measurement each
    #[arg(long, value_delimiter = ',', default_value = "1")]
    streams: Vec<usize>,
    /// How long each measurement takes
    #[arg(long, default_value_t = 60)]
    secs: u64,
    /// The picture
    #[arg(long, default_value = "1280x720")]
    size: String,
    /// How it is coded
    #[arg(long, default_value = "-preset veryfast -g 50 -b:v 3M", allow_hyphen_values = true)]
    coding: String,
    /// What cargo itself adds
    #[arg(long, hide = true)]
    #[allow(dead_code, reason = "it says nothing")]
    bench: bool,
}

fn main() {
    let args = Args::parse();
    let folder = TempDir::new().expect("a temporary folder");
    let units = camera::coded(folder.path(), &args.size, 10.0, &args.coding);
    println!(
        "{:>7} {:>7} {:>8} {:>8} {:>8} {:>8} {:>8} {:>9} {:>8} {:>8} {:>6}",
        "streams",
        "clips",
        "median",
        "p95",
        "most",
        "stored",
        "segments",
        "received",
        "dropped",
        "worst",
        "CPU"
    );
    for &streams in &args.streams {
        measure(folder.path(), &units, streams, Duration::from_secs(args.secs));
    }
}

/// Microseconds since 1970.
fn now_us() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as i64)
}

fn measure(folder: &Path, units: &camera::Units, streams: usize, length: Duration) {
    let camera = camera::Camera::start(units, &camera::Setup::default());
    let library = folder.join(format!("{streams}.library"));
    let list = folder.join("streams.toml");
    let mut text = String::new();
    for number in 0..streams {
        let address = camera.address();
        writeln!(text, "[[stream]]\nname = 'camera {number}'\naddress = '{address}'")
            .expect("a string takes all");
    }
    std::fs::write(&list, text).expect("the list is written");
    let mut child = Command::new(env!("CARGO_BIN_EXE_cinelex"))
        .args(["index", "--json", "--streams"])
        .arg(&list)
        .arg("--library")
        .arg(&library)
        .stdout(Stdio::piped())
        .spawn()
        .expect("cinelex is built");
    let mut out = child.stdout.take().expect("its output is taken");
    let lines = std::thread::spawn(move || {
        let mut text = String::new();
        out.read_to_string(&mut text).map(|_| text)
    });
    let (mut reader, began) = (wait_for_library(&library), Instant::now());
    let dimension = reader
        .current(cinelex::library::RecipeKind::Clip)
        .ok()
        .flatten()
        .and_then(|recipe| recipe.space)
        .map_or(0, |space| space.dimension);
    // Any direction will do: what is measured is when a clip is among the hits.
    let mut vector = vec![0.0; dimension];
    vector[0] = 1.0;
    let mut seen: HashSet<ClipId> = HashSet::new();
    let mut delays: Vec<f64> = Vec::new();
    let busy_before = busy();
    while began.elapsed() < length {
        let query = Query {
            vectors: vec![(Channel::Picture, vector.clone())],
            from_us: Some(now_us() - 10_000_000),
            top: streams * 20,
            ..Query::default()
        };
        let hits = reader.search(&query).expect("the library is searched");
        let now = now_us();
        for hit in hits {
            let (Some(clip), Some(start_us)) = (hit.clip, hit.wall_clock_us) else { continue };
            if seen.insert(clip) && began.elapsed() > WARM_UP {
                let end_us = start_us + (hit.span.end_us - hit.span.start_us).0;
                delays.push((now - end_us) as f64 / 1e6);
            }
        }
        std::thread::sleep(Duration::from_millis(40));
    }
    let busy = busy() - busy_before;
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
    let id = child.id().to_string();
    Command::new("kill").args(["-INT", &id]).status().expect("kill is there");
    child.wait().expect("cinelex ends");
    let lines = lines.join().expect("the lines are read").expect("the lines are text");
    drop(camera);
    report(streams, delays, &lines, busy / (length.as_secs_f64() * cores));
}

fn wait_for_library(library: &Path) -> Reader {
    let began = Instant::now();
    loop {
        match Reader::open(library) {
            Ok(reader) if reader.info().is_ok_and(|info| info.clips > 0) => return reader,
            Err(error) if began.elapsed() > Duration::from_secs(60) => panic!("{error}"),
            _ => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// Seconds that all processors have worked, for whomever.
fn busy() -> f64 {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let first = text.lines().next().unwrap_or_default();
    let ticks: Vec<f64> = first.split_whitespace().skip(1).filter_map(|n| n.parse().ok()).collect();
    // User, nice, system; then idle and waiting, which are not; interrupts, and time of other guests.
    ticks.iter().take(3).chain(ticks.iter().skip(5).take(2)).sum::<f64>() / 100.0
}

fn report(streams: usize, mut delays: Vec<f64>, lines: &str, busy: f64) {
    delays.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let place = ((delays.len() as f64 * share) as usize).min(delays.len().saturating_sub(1));
        delays.get(place).copied().unwrap_or(f64::NAN)
    };
    let mut stored: HashMap<String, Vec<f64>> = HashMap::new();
    let mut latest_segment = f64::NAN;
    let later_of = |latest: f64, stream: &Value| {
        stream["segment_delay_secs"].as_f64().map_or(latest, |delay| latest.max(delay))
    };
    let mut end = Value::Null;
    for line in lines.lines() {
        let Ok(line) = serde_json::from_str::<Value>(line) else { continue };
        if line["kind"] == "stored" {
            let source = line["source"].as_str().unwrap_or_default().to_owned();
            stored.entry(source).or_default().extend(line["delay_secs"].as_f64());
        } else if line["kind"] == "stream" {
            latest_segment = later_of(latest_segment, &line);
        } else if line["kind"] == "live_run" {
            end = line;
        }
    }
    let mut all: Vec<f64> = stored.into_values().flatten().collect();
    all.sort_by(f64::total_cmp);
    let stored_p95 = all.get((all.len() as f64 * 0.95) as usize).copied().unwrap_or(f64::NAN);
    let streams_of = |end: &Value| end["streams"].as_array().cloned().unwrap_or_default();
    let sum = |key: &str| {
        streams_of(&end).iter().map(|stream| stream[key].as_u64().unwrap_or(0)).sum::<u64>()
    };
    let latest_segment = streams_of(&end).iter().fold(latest_segment, later_of);
    let dropped = sum("behind") + sum("host_ended") + sum("undecodable");
    let share = |stream: &Value| {
        let number = |key: &str| stream[key].as_f64().unwrap_or(0.0);
        (number("behind") + number("host_ended")) / number("received").max(1.0)
    };
    let worst = streams_of(&end).iter().map(share).fold(0.0, f64::max);
    println!(
        "{streams:>7} {:>7} {:>6.2} s {:>6.2} s {:>6.2} s {stored_p95:>6.2} s {latest_segment:>6.2} s \
         {:>9} {dropped:>8} {:>7.1}% {:>5.0}%",
        delays.len(),
        at(0.5),
        at(0.95),
        at(1.0),
        sum("received"),
        100.0 * worst,
        100.0 * busy
    );
}
