//! Runs that are stopped (killed, interrupted, at any moment) and run again: the library is what an
//! unbroken run gives, and nobody stays behind.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cinelex::library::COMMIT_POINTS;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, kill_process_group, waitpid};
use tempfile::TempDir;

use crate::cinelex::{Ran, command, finish, index, index_with, info};
#[cfg(feature = "speech")]
use crate::listening;
use crate::media::ffmpeg;
use crate::same::{assert_same, clips};

const SUBTITLES: &str = "1\n00:00:00,200 --> 00:00:02,400\nThe harbour lies in the fog.\n\n\
                         2\n00:00:02,600 --> 00:00:05,800\nA ferry sounds its horn.\n";

/// Small films of several kinds, with subtitles inside and beside them.
pub fn films(folder: &Path) -> Vec<PathBuf> {
    fs::write(folder.join("a.en.srt"), SUBTITLES).unwrap();
    fs::write(folder.join("words.srt"), SUBTITLES.replace("ferry", "tug")).unwrap();
    let picture = "-f lavfi -i testsrc2=s=160x90:r=10";
    for (name, input, options) in [
        ("a.mp4", "-f lavfi -i sine", "-t 6 -c:v libx264 -g 20 -c:a aac"),
        ("b.ts", "", "-t 6 -c:v mpeg2video"),
        ("c.avi", "", "-t 7 -c:v mpeg4 -vf negate"),
        ("d.mkv", "-i words.srt", "-t 9 -c:v libx264 -g 20 -c:s ass -vf hflip"),
        ("e.mp4", "", "-t 3 -c:v libx264 -vf vflip"),
    ] {
        ffmpeg(folder, &format!("{picture} {input} {options} -pix_fmt yuv420p {name}"));
    }
    ["a.mp4", "b.ts", "c.avi", "d.mkv", "e.mp4"].map(|name| folder.join(name)).to_vec()
}

/// As [`films`], and one of two chunks, and one in which somebody speaks.
fn films_of_every_kind(folder: &Path) -> Vec<PathBuf> {
    let mut films = films(folder);
    let picture = "-f lavfi -i testsrc2=s=160x90:r=2:d=130";
    ffmpeg(folder, &format!("{picture} -c:v libx264 -g 20 -pix_fmt yuv420p chunks.mkv"));
    films.push(folder.join("chunks.mkv"));
    #[cfg(feature = "speech")]
    films.push(listening::film(folder, "talk.mp4", &listening::SENTENCES[..2]));
    films
}

/// Eight minutes, four chunks: longer than what waits in the queues when the first is in the record.
pub fn long_film(folder: &Path) -> PathBuf {
    ffmpeg(
        folder,
        "-f lavfi -i testsrc2=s=160x90:r=2:d=480 -c:v libx264 -g 20 -pix_fmt yuv420p long.mkv",
    );
    folder.join("long.mkv")
}

/// The default pipeline with a quarter of the work.
pub fn quick_pipeline(folder: &Path) -> PathBuf {
    let text = include_str!("../../pipelines/default.toml")
        .replace("frames_per_clip = 2", "frames_per_clip = 1")
        .replace("cells = \"3x3\"", "cells = \"none\"");
    let pipeline = folder.join("quick.toml");
    fs::write(&pipeline, text).unwrap();
    pipeline
}

/// As [`quick_pipeline`], with clips of so many seconds.
#[cfg(feature = "live")]
pub fn brisk_pipeline(folder: &Path, clip_secs: &str) -> PathBuf {
    let pipeline = quick_pipeline(folder);
    let text = fs::read_to_string(&pipeline).unwrap();
    fs::write(&pipeline, text.replace("clip_secs = 1.5", &format!("clip_secs = {clip_secs}")))
        .unwrap();
    pipeline
}

/// Indexes as the leader of a process group, as a shell has it done.
fn indexing(library: &Path, sources: &[&Path], options: &[&str]) -> Command {
    let mut command = command(["index", "--json", "--library"]);
    command.arg(library).args(options).args(sources).process_group(0);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

pub fn begin(library: &Path, sources: &[&Path], options: &[&str]) -> Child {
    indexing(library, sources, options).spawn().unwrap()
}

/// As [`begin`], until the first chunk is in the record. There it stands still, so that it is not over before
/// something is done to it, until [`go_on`].
pub fn begin_with_a_chunk(library: &Path, sources: &[&Path], options: &[&str]) -> Child {
    let mut command = indexing(library, sources, options);
    let child = command.env("CINELEX_STOP_AT", "chunk-committed").spawn().unwrap();
    let (_, status) = waitpid(Some(pid(&child)), WaitOptions::UNTRACED).unwrap().unwrap();
    assert!(status.stopped(), "{status:?}");
    assert!(clips_of(library) > 0);
    child
}

pub fn go_on(child: &Child) {
    kill_process(pid(child), Signal::CONT).unwrap();
}

fn pid(child: &Child) -> Pid {
    Pid::from_child(child)
}

/// The decoder hosts of a process, whichever of its threads started them.
pub fn hosts_of(parent: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten();
    let listed = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let ids: Vec<u32> = listed
        .flat_map(|line| line.split_whitespace().map(|id| id.parse().unwrap()).collect::<Vec<_>>())
        .collect();
    ids.into_iter().filter(|id| is_host(*id)).collect()
}

fn is_host(id: u32) -> bool {
    fs::read(format!("/proc/{id}/cmdline"))
        .is_ok_and(|line| line.windows(12).any(|window| window == b"decoder-host"))
}

/// Panics if one of `hosts` is still there after a moment.
pub fn assert_gone(hosts: &[u32]) {
    let patience = Instant::now() + Duration::from_secs(10);
    while hosts.iter().any(|host| is_host(*host)) {
        assert!(Instant::now() < patience, "a decoder host of {hosts:?} stayed behind");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// How many clips a library holds; none where there is no library yet.
pub fn clips_of(library: &Path) -> u64 {
    let ran = finish(command(["library", "info", "--json"]).arg(library));
    assert!(ran.code == 0 || ran.err.contains("is not a library"), "{ran:?}");
    ran.lines("info").first().and_then(|info| info["clips"].as_u64()).unwrap_or(0)
}

/// `library check` finds nothing wrong; what was cut off is not.
fn assert_sound(library: &Path) {
    if !library.join("library.sqlite").exists() {
        // Cut off before there was one.
        return;
    }
    let ran = finish(command(["library", "check", "--json"]).arg(library));
    assert!(ran.code == 0 || ran.err.contains("is not a library"), "{ran:?}");
}

/// Kills runs at moments spread over the duration of an unbroken one, each in a library of its own
/// that a second run completes. Returns how many of the killed runs had clips in their library.
fn kill_runs(kills: u32, sources: &[&Path], folder: &Path) -> u32 {
    let whole = folder.join("whole");
    index(&whole, sources).exits(0);
    let began = Instant::now();
    index(&folder.join("timed"), sources).exits(0);
    let mut duration = began.elapsed();
    let (mut killed, mut with_clips) = (0, 0);
    while killed < kills {
        let library = folder.join(format!("killed{killed}"));
        let mut child = begin(&library, sources, &[]);
        std::thread::sleep(duration.mul_f64((f64::from(killed) + 0.5) / f64::from(kills)));
        if child.try_wait().unwrap().is_some() {
            // This one was faster than the one that was timed.
            duration = duration.mul_f64(0.9);
            fs::remove_dir_all(&library).unwrap();
            continue;
        }
        // Stopped first, so that it starts no host between the listing and the end.
        kill_process(pid(&child), Signal::STOP).unwrap();
        let hosts = hosts_of(child.id());
        if killed.is_multiple_of(2) {
            kill_process(pid(&child), Signal::KILL).unwrap();
        } else {
            kill_process_group(pid(&child), Signal::KILL).unwrap();
        }
        child.wait().unwrap();
        assert_gone(&hosts);
        with_clips += u32::from(clips_of(&library) > 0);
        assert_sound(&library);
        index(&library, sources).exits(0);
        assert_same(&whole, &library);
        assert_sound(&library);
        fs::remove_dir_all(&library).unwrap();
        killed += 1;
    }
    with_clips
}

pub fn paths(films: &[PathBuf]) -> Vec<&Path> {
    films.iter().map(PathBuf::as_path).collect()
}

#[test]
fn a_killed_run_is_completed_by_the_next_one() {
    let folder = TempDir::new().unwrap();
    let films = films_of_every_kind(folder.path());
    kill_runs(6, &paths(&films), folder.path());
}

#[test]
#[ignore = "slow: 50 runs are killed and completed"]
fn fifty_killed_runs_are_completed_by_the_next_ones() {
    let folder = TempDir::new().unwrap();
    let mut films = films_of_every_kind(folder.path());
    films.push(long_film(folder.path()));
    let with_clips = kill_runs(50, &paths(&films), folder.path());
    eprintln!("50 runs were killed, {with_clips} of them after the first commit");
    assert!(with_clips >= 30, "only {with_clips} of 50 runs were killed after the first commit");
}

#[test]
fn workers_batches_and_order_change_nothing() {
    let folder = TempDir::new().unwrap();
    let films = films_of_every_kind(folder.path());
    let forwards = paths(&films);
    let backwards: Vec<&Path> = forwards.iter().rev().copied().collect();
    let whole = folder.path().join("whole");
    index_with(&whole, &forwards, &["--workers", "1"]).exits(0);
    assert_eq!(clips(&whole, "chunks.mkv").len(), 87, "more than a chunk");
    #[cfg(feature = "speech")]
    assert!(!listening::heard(&whole, "talk.mp4").is_empty());
    for (workers, sources) in [("2", &backwards), ("3", &forwards)] {
        let library = folder.path().join(workers);
        index_with(&library, sources, &["--workers", workers]).exits(0);
        assert_same(&whole, &library);
    }
    for batch in ["1", "5", "64"] {
        let library = folder.path().join(format!("by {batch}"));
        index_with(&library, &forwards, &["--batch", batch]).exits(0);
        assert_same(&whole, &library);
    }
    // One after the other, by as many runs.
    let library = folder.path().join("singly");
    for film in &backwards {
        index(&library, &[film]).exits(0);
    }
    assert_same(&whole, &library);
}

/// Sends `signals` to a run, or as a terminal does to its whole group, once the first chunk is in the
/// record. The next run completes the library.
fn interrupt(
    library: &Path,
    film: &Path,
    options: &[&str],
    signals: &[Signal],
    group: bool,
) -> Ran {
    let child = begin_with_a_chunk(library, &[film], options);
    let hosts = hosts_of(child.id());
    for signal in signals {
        let send = if group { kill_process_group } else { kill_process };
        // The run may be over after the first.
        let _ = send(pid(&child), *signal);
        let _ = kill_process(pid(&child), Signal::CONT);
        std::thread::sleep(Duration::from_millis(20));
    }
    let ran = Ran::new(&child.wait_with_output().unwrap()).exits(130);
    assert_gone(&hosts);
    let kept = info(library)["clips"].as_u64().unwrap();
    assert!(kept < 320 && kept.is_multiple_of(80), "{kept} clips are kept");
    let next = index_with(library, &[film], options).exits(0);
    assert_eq!(next.source("long.mkv")["clips"], 320 - kept, "what is finished is not read again");
    ran
}

fn interrupt_all(cases: &[(&str, &[Signal], bool)]) {
    let folder = TempDir::new().unwrap();
    let (film, quick) = (long_film(folder.path()), quick_pipeline(folder.path()));
    let options = ["--workers", "1", "--pipeline", quick.to_str().unwrap()];
    let whole = folder.path().join("whole");
    index_with(&whole, &[&film], &options).exits(0);
    for (name, signals, group) in cases {
        let library = folder.path().join(name);
        let ran = interrupt(&library, &film, &options, signals, *group);
        assert_same(&whole, &library);
        if signals.len() == 1 {
            assert_eq!(ran.source("long.mkv")["state"], "interrupted", "{name}: {ran:?}");
            assert_eq!(ran.line("run")["interrupted"], true);
        }
    }
}

#[test]
fn an_interrupt_at_the_terminal_keeps_what_is_finished_and_fails_no_source() {
    // Twice: at once, without a report.
    interrupt_all(&[("once", &[Signal::INT], true), ("twice", &[Signal::INT; 2], true)]);
}

#[test]
#[ignore = "slow: four runs of eight minutes of film"]
fn every_request_to_end_keeps_what_is_finished() {
    interrupt_all(&[
        ("term", &[Signal::TERM], false),
        ("terms", &[Signal::TERM], true),
        ("hup", &[Signal::HUP], true),
        ("mixed", &[Signal::TERM, Signal::INT], false),
    ]);
}

/// Sends `signal` to decoder hosts while a run goes on. What they were reading fails, and the next run
/// makes the library whole.
fn strike_hosts(signal: Signal, strikes: u32) {
    let folder = TempDir::new().unwrap();
    let films = films(folder.path());
    let sources = paths(&films);
    let (whole, library) = (folder.path().join("whole"), folder.path().join("library"));
    index(&whole, &sources).exits(0);
    let mut child = begin(&library, &sources, &["--workers", "2"]);
    let mut struck = 0;
    while struck < strikes && child.try_wait().unwrap().is_none() {
        // Now one that reads cues, now one that decodes.
        std::thread::sleep(Duration::from_millis(30 + u64::from(struck) * 37 % 150));
        let hosts = hosts_of(child.id());
        if let Some(host) = hosts.get(struck as usize % hosts.len().max(1)) {
            let _ = kill_process(Pid::from_raw(*host as i32).unwrap(), signal);
            struck += 1;
        }
    }
    let ran = Ran::new(&child.wait_with_output().unwrap());
    assert!(ran.code == 0 || ran.code == 1, "{ran:?}");
    assert_eq!(ran.lines("source_report").len(), sources.len(), "{ran:?}");
    for report in ran.lines("source_report") {
        assert_ne!(report["error"]["kind"], "internal", "{report}");
    }
    index(&library, &sources).exits(0);
    assert_same(&whole, &library);
}

#[test]
fn decoder_hosts_that_are_killed_cost_nothing_after_the_next_run() {
    strike_hosts(Signal::KILL, 12);
}

#[test]
#[ignore = "slow: hosts are given up after half a minute"]
fn decoder_hosts_that_hang_cost_nothing_after_the_next_run() {
    strike_hosts(Signal::STOP, 3);
}

/// Runs an indexing that kills itself at a commit point, completes it by another, and compares.
/// `prepare` makes the library as it is before; `go` is the run.
fn die_at(
    points: &[&'static str],
    reached: &mut BTreeSet<&'static str>,
    folder: &Path,
    prepare: impl Fn(&Path),
    go: impl Fn(&Path) -> Command,
) {
    let whole = folder.join(format!("whole at {}", points[0]));
    prepare(&whole);
    finish(&mut go(&whole)).exits(0);
    for point in points {
        let library = folder.join(point);
        prepare(&library);
        let killed = finish(go(&library).env("CINELEX_DIE_AT", point));
        assert_eq!(killed.code, -1, "{point} was not reached: {killed:?}");
        clips_of(&library);
        assert_sound(&library);
        finish(&mut go(&library)).exits(0);
        assert_same(&whole, &library);
        assert_sound(&library);
        assert!(reached.insert(point));
    }
}

#[test]
fn a_run_that_dies_at_a_commit_point_is_completed_by_the_next_one() {
    let folder = TempDir::new().unwrap();
    let folder = folder.path();
    fs::write(folder.join("film.srt"), SUBTITLES).unwrap();
    let picture = "-f lavfi -i testsrc2=s=160x90:r=10 -c:v libx264 -g 10 -pix_fmt yuv420p";
    ffmpeg(folder, &format!("{picture} -t 3 film.mp4"));
    ffmpeg(folder, &format!("{picture} -t 6 whole.ts"));
    let bytes = fs::read(folder.join("whole.ts")).unwrap();
    let index_of = |name: &'static str, options: &'static [&str]| {
        move |library: &Path| {
            let mut command = command(["index", "--json", "--library"]);
            command.arg(library).arg(folder.join(name)).args(options);
            command
        }
    };
    let mut reached = BTreeSet::new();

    // A film with subtitles, into no library.
    let first = [
        "features-made",
        "library-made",
        "recipe-added",
        "source-added",
        "tags-set",
        "cues-committed",
        "features-synced",
        "chunk-committed",
        "source-finished",
        "segments-committed",
        "run-recorded",
    ];
    die_at(&first, &mut reached, folder, |_| {}, index_of("film.mp4", &[]));

    // A file that has grown.
    let growing = folder.join("growing.ts");
    let growth = [
        "growth-noted",
        "growth-forgotten",
        "growth-settled",
        "forget-features-deleted",
        "forget-rows-deleted",
        "forget-log-emptied",
        "forget-finished",
    ];
    let shorter = |library: &Path| {
        // The same inode.
        let mut options = fs::OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).open(&growing).unwrap();
        file.set_len(0).unwrap();
        file.write_all_at(&bytes[..bytes.len() / 2], 0).unwrap();
        finish(&mut index_of("growing.ts", &[])(library)).exits(0);
        file.write_all_at(&bytes, 0).unwrap();
    };
    die_at(&growth, &mut reached, folder, shorter, index_of("growing.ts", &[]));

    // Another recipe.
    let text = include_str!("../../pipelines/default.toml")
        .replace("frames_per_clip = 2", "frames_per_clip = 1");
    let pipeline = folder.join("mine.toml");
    fs::write(&pipeline, text).unwrap();
    let recipe = ["recipe-activated", "recipe-sweeping", "recipe-swept"];
    let other = |library: &Path| {
        let mut command = index_of("film.mp4", &[])(library);
        command.arg("--pipeline").arg(&pipeline);
        command
    };
    let before = |library: &Path| {
        finish(&mut index_of("film.mp4", &[])(library)).exits(0);
    };
    die_at(&recipe, &mut reached, folder, before, other);

    // These are no run's; `listening` has films with sound that die where something was heard, `recording` one that
    // is recorded, and `kept` has a camera.
    let others = ["migrate-", "rebuild-", "compact-", "heard-", "recording-", "watch-", "keep-"];
    let missed: Vec<_> = COMMIT_POINTS
        .iter()
        .filter(|point| !others.iter().any(|other| point.starts_with(other)))
        .filter(|point| !reached.contains(*point))
        .collect();
    assert!(missed.is_empty(), "no run dies at {missed:?}");
}
