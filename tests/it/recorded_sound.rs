//! The sound of live streams that are recorded and listened to. Needs `cinelex setup`.

use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cinelex::library::Reader;
use tempfile::TempDir;

use crate::camera::{Camera, Setup, SoundCodec, Units, pcm, units};
use crate::cinelex::{command, finish, search, show};
use crate::live::{Watching, check, check_accounts, now_us, small};
use crate::media::{ffmpeg, probe};
use crate::recording::recordings;

/// A second of black, and then a fifth of a second of white with a tone, each two seconds. A frame is of the time at
/// which it begins: the first white one is at the second.
const FLASH: &str = "geq=lum='if(between(mod(T\\,2)\\,0.98\\,1.18)\\,235\\,16)':cb=128:cr=128";
const BEEP: &str = "aevalsrc='if(between(mod(t\\,2)\\,1\\,1.2)\\,0.5*sin(5000*t)\\,0)'";

fn flashing(folder: &Path, secs: u32, coding: &str, name: &str) -> PathBuf {
    ffmpeg(
        folder,
        &format!(
            "-f lavfi -i color=c=black:s=160x96:r=25:d={secs},format=yuv420p,{FLASH} \
             -f lavfi -i {BEEP}:s=48000:d={secs} {coding} {name}"
        ),
    );
    folder.join(name)
}

/// The kinds of its streams.
fn streams(film: &Path) -> Vec<String> {
    let text = probe(film, "-show_entries stream=codec_name");
    text.lines().map(|line| line.trim_end_matches(',').to_owned()).collect()
}

fn read_by_ffmpeg(film: &Path, options: &[&str]) -> Vec<u8> {
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args(["-v", "error", "-nostdin", "-i"]).arg(film).args(options).arg("-");
    let out = ffmpeg.output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    out.stdout
}

/// When something begins that was not there before.
fn begins(is_there: &[bool], at: impl Fn(usize) -> f64) -> Vec<f64> {
    let begins = (1..is_there.len()).filter(|n| is_there[*n] && !is_there[n - 1]);
    begins.map(at).collect()
}

/// When a film becomes white.
fn flashes(film: &Path) -> Vec<f64> {
    let text = probe(film, "-select_streams v -show_entries frame=pts_time");
    let times: Vec<f64> =
        text.lines().filter_map(|line| line.trim_end_matches(',').parse().ok()).collect();
    let options = ["-map", "0:v", "-fps_mode", "passthrough", "-enc_time_base", "1:60000"];
    let picture = ["-vf", "scale=2:2,format=gray", "-f", "rawvideo"];
    let frames = read_by_ffmpeg(film, &[&options[..], &picture[..]].concat());
    let is_white: Vec<bool> = frames.chunks_exact(4).map(|frame| frame[0] > 127).collect();
    assert_eq!(is_white.len(), times.len());
    begins(&is_white, |n| times[n] - times[0])
}

/// When a tone begins, as long after the first frame as [`flashes`] tells it.
fn beeps(film: &Path) -> Vec<f64> {
    const BLOCK: usize = 40;
    let filter = ["-map", "0:a", "-af", "aresample=async=1:first_pts=0"];
    let sound =
        read_by_ffmpeg(film, &[&filter[..], &["-ar", "8000", "-ac", "1", "-f", "s16le"]].concat());
    let samples: Vec<i16> =
        sound.chunks_exact(2).map(|two| i16::from_le_bytes([two[0], two[1]])).collect();
    let is_loud: Vec<bool> =
        samples.chunks_exact(BLOCK).map(|block| block.iter().any(|s| s.abs() > 3_000)).collect();
    begins(&is_loud, |n| (n * BLOCK) as f64 / 8_000.0)
}

/// Each flash has its tone, so many seconds after it, or no more than `most_secs` off that, and there is no other. Returns
/// how many there are.
fn check_in_step(film: &Path, later_secs: f64, most_secs: f64) -> usize {
    /// What is nearer than this to an end may have lost its other half there.
    const NEAR_SECS: f64 = 0.2;
    let end = read_by_ffmpeg(film, &["-map", "0:a", "-ar", "8000", "-ac", "1", "-f", "s16le"]).len()
        as f64
        / 16_000.0;
    let is_whole = |at: &f64| (NEAR_SECS..end - NEAR_SECS).contains(at);
    let mut flashes = flashes(film);
    flashes.retain(is_whole);
    let beeps = beeps(film);
    // A step of the clock within a tone parts that.
    let mut whole: Vec<f64> = beeps.iter().copied().filter(is_whole).collect();
    whole.dedup_by(|later, before| *later - *before < 0.5);
    assert!(whole.len().abs_diff(flashes.len()) <= 1, "{film:?}: {flashes:?} {beeps:?}");
    for flash in &flashes {
        let nearest =
            beeps.iter().map(|beep| beep - flash).min_by(|a, b| a.abs().total_cmp(&b.abs()));
        let Some(after) = nearest else { panic!("{film:?}: {flashes:?} {beeps:?}") };
        eprintln!("{after:.3} {film:?}");
        assert!((after - later_secs).abs() < most_secs, "{film:?}: {flashes:?} {beeps:?}");
    }
    flashes.len()
}

#[test]
fn what_is_recorded_and_listened_to_has_its_sound_in_step_with_the_picture() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let kinds = [
        ("aac.mp4", "aac", "-c:a aac"),
        ("aac.ts", "aac", "-c:a aac -ac 2"),
        ("aac.mkv", "aac", "-c:a aac"),
        ("mp3.ts", "mp3", "-c:a libmp3lame"),
        // MP4 has one name for all layers of MPEG audio.
        ("mp2.ts", "mp3", "-c:a mp2"),
        ("opus.mkv", "opus", "-c:a libopus"),
        ("alaw.mkv", "pcm_alaw", "-c:a pcm_alaw -ar 8000 -ac 1"),
        ("plain.mkv", "pcm_s16le", "-c:a pcm_s16le"),
    ];
    let films = kinds.map(|(name, _, coding)| {
        flashing(folder.path(), 7, &format!("-c:v libx264 -g 25 -bf 2 {coding}"), name)
    });
    let mut watched = command(["index", "--json", "--as-live", "--record", "--listen", "always"]);
    let ran = finish(watched.arg("--library").arg(&library).args(&films)).exits(0);
    let run = ran.line("live_run");
    let files = recordings(&library);
    for ((name, codec, _), film) in kinds.iter().zip(&films) {
        let all = run["streams"].as_array().unwrap();
        let stream = all.iter().find(|stream| stream["source"] == film.to_str().unwrap()).unwrap();
        check_accounts(stream);
        assert_eq!(stream["unrecorded"], 0, "{name}: {stream} {}", ran.err);
        let unrecorded = stream["sound"]["unrecorded"].as_u64().unwrap() as usize;
        let id = stream["id"].as_str().unwrap();
        let of_it = |file: &&PathBuf| file.to_str().unwrap().contains(id);
        let [file] = files.iter().filter(of_it).collect::<Vec<_>>()[..] else {
            panic!("{files:?}")
        };
        assert_eq!(streams(file), ["h264", *codec], "{name}");
        let (held, sent) = (packets(file, "a"), packets(film, "a"));
        // Encoders' silence in front is not played.
        let is_all = (sent - 4..=sent).contains(&(held + unrecorded));
        assert!(is_all && held > 250, "{name}: {held} and {unrecorded} of {sent}");
        assert!(check_in_step(file, 0.0, 0.05) >= 3, "{name}");
    }
    check(&library).exits(0);
}

#[test]
fn every_kind_of_sound_that_cameras_send_is_heard_and_recorded() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let (units, sound) = (small(folder.path()), pcm(folder.path(), "-f lavfi -i sine=d=4"));
    let kinds = [
        (SoundCodec::Alaw, "pcm_alaw"),
        (SoundCodec::Mulaw, "pcm_mulaw"),
        (SoundCodec::L16, "pcm_s16be"),
        (SoundCodec::Mp3, "mp3"),
        (SoundCodec::Opus, "opus"),
        (SoundCodec::Aac, "aac"),
        (SoundCodec::Latm, "aac"),
    ];
    let cameras = kinds.map(|(sound_codec, _)| {
        Camera::start(&units, &Setup { sound: Some(&sound), sound_codec, ..Setup::default() })
    });
    let addresses = cameras.each_ref().map(Camera::address);
    let mut arguments = vec!["--record", "--listen", "always"];
    arguments.extend(addresses.iter().map(String::as_str));
    let mut watching = Watching::start(&library, &arguments);
    while addresses.iter().any(|address| watching.stored(address) < 4) {
        watching.until_stored(1);
    }
    let end = watching.stop();
    let files = recordings(&library);
    for ((kind, codec), address) in kinds.iter().zip(&addresses) {
        let all = end["streams"].as_array().unwrap();
        let stream = all.iter().find(|stream| stream["source"] == address.as_str()).unwrap();
        let sound = &stream["sound"];
        assert!(sound["received_us"].as_i64() > Some(4_000_000), "{kind:?}: {stream}");
        // GStreamer's sender has something else in the first packet of this kind.
        let odd = u64::from(*kind == SoundCodec::Latm);
        assert!(sound["undecodable"].as_u64() <= Some(odd), "{kind:?}: {stream}");
        let id = stream["id"].as_str().unwrap();
        let of_it = |file: &&PathBuf| file.to_str().unwrap().contains(id);
        let file = files.iter().find(of_it).unwrap();
        assert_eq!(streams(file), ["h264", *codec], "{kind:?}");
        let as_samples = ["-map", "0:a", "-ar", "8000", "-ac", "1", "-f", "s16le"];
        let secs = read_by_ffmpeg(file, &as_samples).len() as f64 / 16_000.0;
        assert!(secs > 4.0, "{kind:?}: {secs} s");
    }
}

/// It is over before it is known which of the first packets are late.
#[test]
fn what_comes_all_at_once_is_recorded_with_its_sound() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let film = flashing(folder.path(), 7, "-c:v libx264 -g 25 -c:a aac", "burst.ts");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("tcp://{}", listener.local_addr().unwrap());
    let bytes = std::fs::read(&film).unwrap();
    // Nobody who connects again gets anything.
    let sender =
        std::thread::spawn(move || listener.accept().unwrap().0.write_all(&bytes).unwrap());
    let mut watching = Watching::start(&library, &["--record", "--listen", "always", &address]);
    watching.until_state("waiting");
    sender.join().unwrap();
    let end = watching.stop();
    let stream = &end["streams"][0];
    let files = recordings(&library);
    assert_eq!(streams(&files[0]), ["h264", "aac"], "{stream}");
    let held: usize = files.iter().map(|file| packets(file, "a")).sum();
    let unrecorded = stream["sound"]["unrecorded"].as_u64().unwrap() as usize;
    // GStreamer gives neither the first nor the last.
    let sent = packets(&film, "a");
    assert!((sent - 3..=sent).contains(&(held + unrecorded)), "{held} of {sent}: {stream}");
}

/// Frames that flash, in parts of three seconds, each coded as the one before is not: a file that holds one ends
/// with it.
fn flashing_in_parts(folder: &Path) -> Units {
    let mut all = Vec::new();
    for part in 0..4 {
        let refs = 1 + part % 2;
        let coding = format!(
            "-ss {} -t 3 -an -c:v libx264 -preset veryfast -bf 0 -g 25 -refs {refs} \
             -x264-params aud=1:repeat-headers=1",
            part * 3
        );
        let part = flashing(folder, 12, &coding, "part.h264");
        all.extend(units(&std::fs::read(part).unwrap(), 9));
    }
    Arc::new(all)
}

/// The camera of the tests itself has tones before their flashes: a frame has the timestamp of its end, 40 ms later than
/// sound has, of which Opus takes 6 back.
const OF_CAMERA_SECS: f64 = -0.034;

/// That all moments of the only source, which are cut out, have tones in step with their flashes (as in
/// [`check_in_step`]), also where they go on in another file.
fn check_moments(folder: &Path, library: &Path, later_secs: f64, most_secs: f64) {
    let reader = Reader::open(library).unwrap();
    let source = &reader.sources().unwrap()[0];
    let files = reader.recordings(source.id).list().unwrap();
    assert!(files.len() >= 4, "{files:?}");
    let clips = show(library, &source.id.to_string()).exits(0).lines("clip");
    let (mut cut, mut seen, mut joined) = (Vec::new(), 0, 0);
    for clip in clips {
        let like = ["--like", clip["id"].as_str().unwrap(), "--top", "1"];
        let start = search(library, &like).exits(0).line("hit")["start_us"].clone();
        if cut.contains(&start) {
            continue;
        }
        let moment = folder.join(format!("{start}.mp4"));
        cut.push(start);
        let export = ["--export", moment.to_str().unwrap()];
        let span = search(library, &[&like[..], &export].concat()).exits(0).line("export");
        assert_eq!(streams(&moment), ["h264", "aac"], "{span}");
        let flashes = check_in_step(&moment, later_secs, most_secs);
        seen += flashes;
        let at = |key: &str| span["span"][key].as_i64().unwrap();
        let span = at("start")..at("end");
        let joins = files[1..].iter().filter(|file| span.contains(&file.start.0));
        joined += flashes.min(joins.count());
    }
    assert!(seen >= 4 && joined >= 1, "{seen} flashes, {joined} beside a join");
    check(library).exits(0);
}

#[test]
fn a_moment_that_is_cut_out_has_its_sound_also_where_it_goes_on_in_the_next_file() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("films.library");
    let units = flashing_in_parts(folder.path());
    assert_eq!(units.len(), 300);
    std::fs::write(folder.path().join("parts.h264"), units.concat()).unwrap();
    ffmpeg(
        folder.path(),
        &format!(
            "-framerate 25 -i parts.h264 -f lavfi -i {BEEP}:s=48000:d=12 -c:v copy -c:a aac parts.ts"
        ),
    );
    let mut watched = command(["index", "--json", "--as-live", "--record", "--listen", "always"]);
    watched.arg("--library").arg(&library).arg(folder.path().join("parts.ts"));
    let ran = finish(&mut watched).exits(0);
    let stream = &ran.line("live_run")["streams"][0];
    assert_eq!(stream["unrecorded"], 0, "{stream}");
    for file in recordings(&library) {
        assert_eq!(streams(&file), ["h264", "aac"], "{file:?}");
    }
    check_moments(folder.path(), &library, 0.0, 0.05);
}

/// In step to 0.1 s. Until the camera reports its clock, after some seconds, sound lies as it arrives (30 to 70 ms later
/// here, since a frame is sent at its end and sound when its encoder has it), then it goes over, and ffmpeg follows that in
/// steps of 20 ms.
#[test]
#[ignore = "slow: needs a machine with nothing else to do"]
fn moments_of_a_camera_have_their_sound() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let sound = pcm(folder.path(), &format!("-f lavfi -i {BEEP}:s=48000:d=12"));
    let units = flashing_in_parts(folder.path());
    let sound_codec = SoundCodec::Opus;
    let setup = Setup { sound: Some(&sound), sound_codec, ..Setup::default() };
    let camera = Camera::start(&units, &setup);
    let address = camera.address();
    let mut watching = Watching::start(&library, &["--record", "--listen", "always", &address]);
    watching.until_stored(8);
    let end = watching.stop();
    assert_eq!(end["streams"][0]["unrecorded"], 0, "{end}");
    check_moments(folder.path(), &library, OF_CAMERA_SECS, 0.1);
}

#[test]
fn sound_of_another_kind_is_not_recorded_and_that_is_said() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let film = flashing(folder.path(), 7, "-c:v libx264 -g 25 -c:a ac3", "ac3.ts");
    let mut watched = command(["index", "--json", "--as-live", "--record", "--listen", "always"]);
    let ran = finish(watched.arg("--library").arg(&library).arg(&film)).exits(0);
    let stream = &ran.line("live_run")["streams"][0];
    assert_eq!(stream["unrecorded"], 0, "{stream}");
    assert!(stream["sound"]["unrecorded"].as_u64() > Some(100), "{stream}");
    assert_eq!(streams(&recordings(&library)[0]), ["h264"]);
    assert_eq!(ran.err.matches("its sound is heard, and not recorded").count(), 1, "{}", ran.err);
    assert!(ran.err.contains("set the camera's sound to AAC"), "{}", ran.err);
    let moment = folder.path().join("moment.mp4");
    search(&library, &["a test picture", "--top", "1", "--export", moment.to_str().unwrap()])
        .exits(0);
    assert_eq!(streams(&moment), ["h264"]);
}

/// How long a track is.
fn secs(film: &Path, stream: &str) -> f64 {
    let options = format!("-select_streams {stream} -show_entries stream=duration");
    probe(film, &options).trim().parse().unwrap()
}

/// How many packets of a kind are in a file.
fn packets(film: &Path, stream: &str) -> usize {
    let text = probe(film, &format!("-select_streams {stream} -show_entries packet=size"));
    // What else a packet has is in lines of its own.
    text.lines().filter(|line| line.starts_with(|first: char| first.is_ascii_digit())).count()
}

#[test]
fn a_moment_is_cut_out_of_files_of_which_some_have_no_sound_though_they_might() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let sound = pcm(folder.path(), "-f lavfi -i sine=d=12");
    let units = flashing_in_parts(folder.path());
    let setup = Setup { sound: Some(&sound), sound_codec: SoundCodec::Opus, ..Setup::default() };
    let camera = Camera::start(&units, &setup);
    let address = camera.address();
    // A segment ends every two minutes, and both parts are to be in one.
    let left_secs = 120 - now_us() / 1_000_000 % 120;
    if left_secs < 60 {
        std::thread::sleep(Duration::from_secs(left_secs as u64));
    }
    let mut watching = Watching::start(&library, &["--record", "--listen", "always", &address]);
    watching.until_stored(3);
    camera.conduct.is_mute.store(true, Ordering::SeqCst);
    watching.until_stored(8);
    watching.stop();
    let files = recordings(&library);
    // Sound is expected to go on, so its track is there.
    assert!(files.iter().all(|file| streams(file) == ["h264", "opus"]), "{files:?}");
    let counts: Vec<usize> = files.iter().map(|file| packets(file, "a")).collect();
    assert!(counts[0] > 0 && counts.contains(&0), "{counts:?}");
    let cut = |name: &str| {
        let moment = folder.path().join(name);
        let query = ["a test picture", "--top", "1", "--export", moment.to_str().unwrap()];
        search(&library, &query).exits(0);
        streams(&moment)
    };
    // What is not there any more is not played in silence.
    std::fs::remove_file(&files[files.len() - 1]).unwrap();
    assert_eq!(cut("joined.mp4"), ["h264", "aac"]);
    let (picture, sound) = (
        secs(&folder.path().join("joined.mp4"), "v"),
        secs(&folder.path().join("joined.mp4"), "a"),
    );
    assert!((picture - sound).abs() < 0.35, "{picture} s and {sound} s");
    assert_eq!(cut("joined.webm"), ["vp9", "opus"]);
    for (file, _) in files.iter().zip(counts).filter(|(_, count)| *count > 0) {
        std::fs::remove_file(file).unwrap();
    }
    assert_eq!(cut("silent.mp4"), ["h264"]);
    assert_eq!(cut("silent.webm"), ["vp9"]);
}

#[test]
fn a_sound_that_stops_costs_the_recording_no_frame() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let sound = pcm(folder.path(), "-f lavfi -i sine=d=4");
    let setup = Setup { sound: Some(&sound), ..Setup::default() };
    let camera = Camera::start(&small(folder.path()), &setup);
    let address = camera.address();
    let mut watching =
        Watching::start(&library, &["--record", "--listen", "always", "--silence", "60", &address]);
    watching.until_stored(3);
    camera.conduct.is_mute.store(true, Ordering::SeqCst);
    std::thread::sleep(Duration::from_secs(5));
    let end = watching.stop_when_all_came(&[&camera]);
    let stream = &end["streams"][0];
    assert_eq!(stream["unrecorded"], 0, "{stream}");
    let files = recordings(&library);
    assert_eq!(files.len(), 1);
    let frames = read_by_ffmpeg(
        &files[0],
        &[
            "-map",
            "0:v",
            "-fps_mode",
            "passthrough",
            "-vf",
            "scale=1:1,format=gray",
            "-f",
            "rawvideo",
        ],
    );
    assert_eq!(frames.len() as u64, stream["received"].as_u64().unwrap(), "{stream}");
    // What was said before, and nothing of the time after.
    let secs = read_by_ffmpeg(&files[0], &["-map", "0:a", "-ar", "8000", "-ac", "1", "-f", "s16le"])
        .len() as f64
        / 16_000.0;
    let whole = frames.len() as f64 / 25.0;
    assert!((3.0..whole - 4.5).contains(&secs), "{secs} s of {whole} s");
}
