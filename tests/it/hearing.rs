//! What is said in live streams: espeak-ng speaks, a real server on this machine sends it. Needs
//! `cinelex setup`.

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::camera::{Camera, Pcm, Setup, SoundCodec, pcm};
use crate::cinelex::{command, finish, index_with, run, search, show};
use crate::listening::{SENTENCES, cues, has_words, heard, talk};
use crate::live::{REFUSED, Watching, check, check_accounts, now_us, small};
use crate::media::ffmpeg;

/// Reading a sentence takes a while where other tests run beside.
const PATIENCE: Duration = Duration::from_secs(180);

/// Sentences with two seconds between them, as a camera sends them.
fn spoken(folder: &Path, sentences: &[&str]) -> Pcm {
    talk(folder, "talk.wav", sentences);
    pcm(folder, "-i talk.wav")
}

/// Whether something with this word in it was heard.
fn is_heard(line: &Value, word: &str) -> bool {
    line["kind"] == "heard" && line["text"].as_str().unwrap().to_lowercase().contains(word)
}

fn until_heard(watching: &mut Watching, word: &str) -> Value {
    watching.until_within(PATIENCE, word, |line| is_heard(line, word))
}

/// As [`until_heard`], of what was said after an instant.
fn until_said_after(watching: &mut Watching, at_us: i64, word: &str) {
    watching.until_within(PATIENCE, word, |line| {
        is_heard(line, word) && line["start_us"].as_i64().unwrap() > at_us
    });
}

/// As [`until_heard`], of what begins so long after the sound that a camera sends again and again. Where the machine
/// stood still for a second, that is heard at its time in the next round.
fn until_heard_at(
    watching: &mut Watching,
    word: &str,
    (camera, sound): (&Camera, &Pcm),
    places_us: Range<i64>,
) -> Value {
    let period = sound.len() as i64 / 2 * 125;
    watching.until_within(PATIENCE, &format!("{word} at its time"), |line| {
        let began = camera.conduct.sound_began_us.load(Ordering::SeqCst);
        is_heard(line, word) && {
            let start = line["start_us"].as_i64().unwrap();
            let at = start - began - places_us.start;
            start > began && at.rem_euclid(period) < places_us.end - places_us.start
        }
    })
}

/// All sound that was received is in one of the other lengths.
fn check_sound(stream: &Value) -> i64 {
    let sound = &stream["sound"];
    let length = |key: &str| sound[key].as_i64().unwrap_or_else(|| panic!("{key} in {stream}"));
    let parts = ["heard_us", "without_speech_us", "behind_us", "repeated_us", "unreadable_us"];
    let settled: i64 = parts.map(length).iter().sum();
    // A sample is no whole number of microseconds.
    assert!((length("received_us") - settled).abs() < 1_000, "{stream}");
    assert!(parts.map(length).iter().all(|part| *part >= -1_000), "{stream}");
    length("received_us")
}

/// What is told of a source's sound that was not heard.
fn unheard(library: &Path, source: &str) -> Vec<(i64, i64, String)> {
    let gaps = show(library, source).exits(0).lines("gap").into_iter();
    let of_sound = gaps.filter(|gap| gap["track"] == "sound");
    let span = |gap: Value| {
        let at = |key: &str| gap[key].as_i64().unwrap();
        (at("start_us"), at("end_us"), gap["reason"].as_str().unwrap().to_owned())
    };
    of_sound.map(span).collect()
}

/// Cues in order, none of which is there twice.
fn check_cues(library: &Path, source: &str) -> Vec<Value> {
    let cues = cues(library, source);
    for pair in cues.windows(2) {
        let (end, start) = (pair[0]["end_us"].as_i64(), pair[1]["start_us"].as_i64());
        assert!(end <= start, "{pair:?}");
    }
    cues
}

#[test]
fn what_is_said_before_a_camera_is_found_while_it_runs() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let sound = spoken(folder.path(), &SENTENCES);
    let units = small(folder.path());
    let camera = Camera::start(&units, &Setup { sound: Some(&sound), ..Setup::default() });
    // One that has no sound, and one that nobody listens to, beside it.
    let silent = Camera::start(&units, &Setup::default());
    let private = Camera::start(&units, &Setup { sound: Some(&sound), ..Setup::default() });
    let list = folder.path().join("cameras.toml");
    let text: String =
        [("talk", &camera, true), ("mute", &silent, true), ("private", &private, false)]
            .iter()
            .map(|(name, camera, listen)| {
                let address = camera.address();
                format!("[[stream]]\nname = '{name}'\naddress = '{address}'\nlisten = {listen}\n")
            })
            .collect();
    std::fs::write(&list, text).unwrap();
    let mut watching = Watching::start(&library, &["--streams", list.to_str().unwrap()]);
    // On the wall clock: the third sentence of those that come again and again.
    talk(folder.path(), "before.wav", &SENTENCES[..2]);
    let before = pcm(folder.path(), "-i before.wav").len() as i64 / 2 * 125;
    let its_time = before - 1_000_000..before + 1_000_000;
    let told = until_heard_at(&mut watching, "garden", (&camera, &sound), its_time);
    // How long that takes is for a bench to say: other tests run beside.
    assert!(told["delay_secs"].as_f64().unwrap() > 0.0 && told["source"] == "talk", "{told}");
    for when in [&[][..], &["--last", "5m"], &["--from", "yesterday 10:00"]] {
        let query = [&["children in a garden", "--channel", "speech"], when].concat();
        let hits = search(&library, &query).exits(0).lines("hit");
        assert_eq!(hits[0]["name"], "talk", "{when:?}");
        assert!(!hits[0]["said"].as_array().unwrap().is_empty(), "{hits:?}");
    }
    check_texts(&library);
    let words = ["house", "river", "many", "years", "children", "garden"];
    for word in words {
        watching.seen_or_until(word, |line| line["source"] == "talk" && is_heard(line, word));
    }
    until_heard(&mut watching, "market");
    let end = watching.stop();
    for stream in end["streams"].as_array().unwrap() {
        let name = stream["source"].as_str().unwrap();
        assert!(stream["clips"].as_u64() > Some(5), "{stream}");
        check_grid_of_picture(&library, name);
        match name {
            "talk" => {
                assert!(check_sound(stream) > 15_000_000, "{stream}");
                assert!(stream["sound"]["heard_us"].as_i64() > Some(4_000_000), "{stream}");
                assert!(stream["sound"]["cues"].as_u64() >= Some(3), "{stream}");
                assert!(stream["sound"]["delay_secs"].is_number(), "{stream}");
            }
            "mute" => assert_eq!(check_sound(stream), 0, "{stream}"),
            _ => assert!(stream["sound"].is_null(), "{stream}"),
        }
    }
    let text = heard(&library, "talk");
    assert!(has_words(&text, &words), "{text}");
    let cues = check_cues(&library, "talk");
    assert!(cues.iter().all(|cue| cue["track"] == "speech:live" && cue["language"] == "en"));
    assert!(cues.iter().all(|cue| !cue["words"].as_array().unwrap().is_empty()));
    for name in ["mute", "private"] {
        assert_eq!(heard(&library, name), "");
    }
    // Segments have the words.
    let segments = show(&library, "talk").lines("segment");
    let has_garden =
        |segment: &&Value| segment["words"].as_str().unwrap().to_lowercase().contains("garden");
    assert!(segments.iter().any(|segment| has_garden(&segment)), "{segments:?}");
    let shown = run(["library", "show", library.to_str().unwrap(), "talk"]).exits(0).out;
    assert!(shown.contains("of sound received"), "{shown}");
    check(&library).exits(0);
}

/// People read when something was said by the clock on the wall.
fn check_texts(library: &Path) {
    let at = |us: &Value| jiff::Timestamp::from_microsecond(us.as_i64().unwrap()).unwrap();
    let query = ["children in a garden", "--channel", "speech", "--source", "talk"];
    let hits = search(library, &query).exits(0).lines("hit");
    let shown = |words: &[&str], rest: &[&str]| {
        let mut command = command(words);
        finish(command.arg(library).args(rest).env("TZ", "UTC0")).exits(0).out
    };
    let found = shown(&["search"], &query);
    let said = &hits[0]["said"][0];
    let when = at(&said["span"]["start"]).strftime("%H:%M:%S%.3f");
    let wanted = format!("said: {when} {}", said["text"].as_str().unwrap());
    assert!(found.contains(&wanted), "{wanted}: {found}");
    let cues = cues(library, "talk");
    let listed = shown(&["library", "show"], &["talk"]);
    let segments = show(library, "talk").exits(0).lines("segment").into_iter();
    let until = segments.map(|segment| segment["end_us"].as_i64().unwrap()).max();
    // Segments are made every two minutes, and have words and times of their own.
    for cue in cues.iter().filter(|cue| cue["start_us"].as_i64() >= until) {
        let (start, end) = (at(&cue["start_us"]), at(&cue["end_us"]));
        let span = format!("{}-{}", start.strftime("%F %H:%M:%S"), end.strftime("%H:%M:%S"));
        let wanted = format!("{span}  {}", cue["text"].as_str().unwrap());
        assert!(listed.contains(&wanted), "{wanted}: {listed}");
    }
    assert!(listed.to_lowercase().contains("garden"), "{listed}");
}

/// The clips and gaps of picture fill the grid, of a source that has gaps of sound, too.
fn check_grid_of_picture(library: &Path, source: &str) {
    let shown = show(library, source).exits(0);
    let clips = shown.lines("clip").into_iter();
    let gaps = shown.lines("gap").into_iter().filter(|gap| gap["track"] == "picture");
    let at = |line: &Value, key: &str| line[key].as_i64().unwrap();
    let mut spans: Vec<(i64, i64)> =
        clips.chain(gaps).map(|line| (at(&line, "start_us"), at(&line, "end_us"))).collect();
    spans.sort();
    for pair in spans.windows(2) {
        assert_eq!(pair[0].1, pair[1].0, "{spans:?}");
    }
}

#[test]
fn sound_that_vanishes_comes_again_or_is_coded_otherwise_is_heard_at_its_time() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let sound = spoken(folder.path(), &SENTENCES[..2]);
    let units = small(folder.path());
    let setup = Setup { sound: Some(&sound), ..Setup::default() };
    let camera = Camera::start(&units, &setup);
    let (address, port) = (camera.address(), camera.port);
    let mut watching = Watching::start(&library, &["--listen", "always", &address]);
    until_heard(&mut watching, "river");
    let mute_us = now_us();
    camera.conduct.is_mute.store(true, Ordering::SeqCst);
    std::thread::sleep(Duration::from_secs(4));
    camera.conduct.is_mute.store(false, Ordering::SeqCst);
    let again_us = now_us();
    until_said_after(&mut watching, again_us, "years");
    let clips = watching.stored(&address);
    drop(camera);
    watching.until_state("waiting");
    let setup = Setup { port: Some(port), sound_codec: SoundCodec::Opus, ..setup };
    let camera = Camera::start(&units, &setup);
    watching.until_state("live");
    until_heard_at(&mut watching, "river", (&camera, &sound), -500_000..1_500_000);
    let end = watching.stop();
    let stream = &end["streams"][0];
    check_sound(stream);
    assert_eq!(stream["sessions"], 2, "{stream}");
    assert!(clips > 5, "the picture went on: {stream}");
    let unheard = unheard(&library, &address);
    let is_mute = |(start, end, reason): &(i64, i64, String)| {
        let longer_us = end - start - (again_us - mute_us);
        reason == "no sound" && (-1_000_000..2_000_000).contains(&longer_us)
    };
    assert!(unheard.iter().any(is_mute), "{unheard:?}");
    assert!(unheard.iter().any(|(.., why)| why.contains("stream lost")), "{unheard:?}");
    assert_eq!(stream["sound"]["gaps"], unheard.len(), "{unheard:?}");
    // Said once where neither was there, and by itself where only the sound was missing.
    let lines = search(&library, &["river", "--last", "1h"]).exits(0).lines("unseen");
    let of_sound: Vec<_> = lines.iter().filter(|line| line["track"] == "sound").collect();
    assert!(of_sound.iter().any(|line| line["reason"] == "no sound"), "{lines:?}");
    assert!(of_sound.iter().all(|line| line["reason"] != "stream lost"), "{lines:?}");
    check_cues(&library, &address);
    check_grid_of_picture(&library, &address);
    check(&library).exits(0);
}

#[test]
fn what_a_camera_without_sound_did_not_bring_is_told_and_no_outage_is_told_twice() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let sound = spoken(folder.path(), &SENTENCES[..1]);
    let units = small(folder.path());
    let camera = Camera::start(&units, &Setup::default());
    let (address, port) = (camera.address(), camera.port);
    let mut watching = Watching::start(&library, &["--listen", "always", &address]);
    watching.until_stored(3);
    drop(camera);
    // Some attempts are in vain.
    watching.until_reason(REFUSED);
    std::thread::sleep(Duration::from_secs(5));
    let setup = Setup { port: Some(port), sound: Some(&sound), ..Setup::default() };
    let camera = Camera::start(&units, &setup);
    until_heard(&mut watching, "river");
    camera.conduct.is_mute.store(true, Ordering::SeqCst);
    std::thread::sleep(Duration::from_secs(4));
    let end = watching.stop();
    check_sound(&end["streams"][0]);
    let unheard = unheard(&library, &address);
    for pair in unheard.windows(2) {
        assert!(pair[0].1 <= pair[1].0, "{unheard:?}");
    }
    let is_lost = |gap: &&(i64, i64, String)| gap.2.contains("stream lost");
    assert_eq!(unheard.iter().filter(is_lost).count(), 1, "{unheard:?}");
    // While it had none, and at the end. Between them, the machine may stand still.
    let is_mute =
        |(start, end, why): &(i64, i64, String)| why == "no sound" && end - start > 2_000_000;
    let before = unheard.split(|gap| is_lost(&gap)).next().unwrap();
    let mute: Vec<_> = before.iter().filter(|gap| gap.2 == "no sound").collect();
    assert!(matches!(mute[..], [one] if is_mute(one)), "{unheard:?}");
    assert!(is_mute(unheard.last().unwrap()), "{unheard:?}");
    assert_eq!(end["streams"][0]["sound"]["gaps"], unheard.len(), "{unheard:?}");
    check_cues(&library, &address);
    check(&library).exits(0);
}

#[test]
fn a_killed_run_keeps_what_was_heard_and_the_next_one_hears_nothing_twice() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let sound = spoken(folder.path(), &SENTENCES[..2]);
    let setup = Setup { sound: Some(&sound), ..Setup::default() };
    let camera = Camera::start(&small(folder.path()), &setup);
    let address = camera.address();
    let mut watching = Watching::start(&library, &["--listen", "always", &address]);
    until_heard(&mut watching, "river");
    watching.child.kill().unwrap();
    watching.child.wait().unwrap();
    check(&library).exits(0);
    let before = check_cues(&library, &address);
    assert!(!before.is_empty());
    std::thread::sleep(Duration::from_secs(2));
    let mut watching = Watching::start(&library, &["--listen", "always", &address]);
    until_heard(&mut watching, "river");
    let end = watching.stop();
    check_sound(&end["streams"][0]);
    let after = check_cues(&library, &address);
    assert!(after.len() > before.len());
    assert_eq!(after[..before.len()], before);
    let unheard = unheard(&library, &address);
    assert!(unheard.iter().any(|(.., why)| why == "not watched"), "{unheard:?}");
    check_grid_of_picture(&library, &address);
    check(&library).exits(0);
    // Another model would leave what this one has heard behind.
    let other = ["--listen", "always", "--speech-model", "whisper-base"];
    let refused = index_with(&library, &[Path::new(&address)], &other).exits(2);
    assert!(refused.err.contains("another speech model has listened"), "{}", refused.err);
}

#[test]
fn a_run_that_is_killed_in_an_outage_leaves_its_reason_for_sound_as_for_the_picture() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let sound = spoken(folder.path(), &SENTENCES[..1]);
    let units = small(folder.path());
    let setup = Setup { sound: Some(&sound), ..Setup::default() };
    let camera = Camera::start(&units, &setup);
    let (address, port) = (camera.address(), camera.port);
    let options = ["--listen", "always", &address];
    let mut watching = Watching::start(&library, &options);
    until_heard(&mut watching, "river");
    drop(camera);
    let is_refused =
        |line: &Value| line["reason"].as_str().is_some_and(|said| said.contains(REFUSED));
    watching.until_reason(REFUSED);
    watching.until_noted_as_lost(6);
    watching.child.kill().unwrap();
    watching.child.wait().unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let camera = Camera::start(&units, &Setup { port: Some(port), ..setup });
    let mut watching = Watching::start(&library, &options);
    until_heard(&mut watching, "river");
    check_sound(&watching.stop()["streams"][0]);
    drop(camera);

    let gaps = show(&library, &address).exits(0).lines("gap");
    let of = |track: &str, why: &str| {
        let is_one = |gap: &&Value| {
            gap["track"] == track && gap["reason"].as_str().is_some_and(|said| said.contains(why))
        };
        let found: Vec<&Value> = gaps.iter().filter(is_one).collect();
        assert_eq!(found.len(), 1, "{track}, {why}: {gaps:?}");
        ["start_us", "end_us"].map(|key| found[0][key].as_i64().unwrap())
    };
    let [_, lost_until] = of("picture", REFUSED);
    let [lost, heard_again] = [of("sound", REFUSED), of("sound", "not watched")];
    assert!(lost[1] == lost_until && heard_again[0] == lost_until, "{gaps:?}");
    assert!(lost[1] - lost[0] > 5_000_000, "{gaps:?}");
    // What was neither seen nor heard is said once.
    let unseen = search(&library, &["river", "--last", "1h"]).exits(0).lines("unseen");
    let said: Vec<&Value> = unseen.iter().filter(|line| is_refused(line)).collect();
    assert!(said.len() == 1 && said[0]["track"] == "picture", "{unseen:?}");
    check_cues(&library, &address);
    check(&library).exits(0);
}

#[test]
fn sound_that_changes_in_the_middle_of_a_stream_is_heard_to_its_end() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let library = at.join("films.library");
    let part = |name: &str, sentences: &[&str], how: &str| {
        let wav = format!("{name}.wav");
        talk(at, &wav, sentences);
        ffmpeg(
            at,
            &format!(
                "-f lavfi -i testsrc2=s=160x90:r=10 -i {wav} -shortest -c:v libx264 -g 10 -bf 0 \
                 -pix_fmt yuv420p {how} {name}"
            ),
        );
    };
    part("a.ts", &SENTENCES[..1], "-c:a mp2 -ar 48000 -ac 2 -f mpegts");
    part("b.ts", &SENTENCES[2..3], "-c:a mp2 -ar 32000 -ac 1 -f mpegts -output_ts_offset 6");
    let mut both = std::fs::read(at.join("a.ts")).unwrap();
    both.extend(std::fs::read(at.join("b.ts")).unwrap());
    std::fs::write(at.join("both.ts"), both).unwrap();
    part("talk.mp4", &SENTENCES[..1], "-c:a aac");
    for (name, words) in [
        ("both.ts", &["house", "river", "children", "garden"][..]),
        ("talk.mp4", &["old", "house"]),
    ] {
        let mut command =
            command(["index", "--json", "--as-live", "--listen", "always", "--library"]);
        let ran = finish(command.arg(&library).arg(at.join(name))).exits(0);
        let stream = &ran.line("live_run")["streams"][0];
        check_accounts(stream);
        check_sound(stream);
        let source = stream["source"].as_str().unwrap();
        let text = heard(&library, source);
        assert!(has_words(&text, words), "{name}: {text}: {stream}");
        assert!(stream["clips"].as_u64() > Some(1), "{stream}");
    }
    check(&library).exits(0);
}
