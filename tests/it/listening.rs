//! `cinelex index` listens: espeak-ng speaks in small films. Needs `cinelex setup`.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use cinelex::library::Reader;
use serde_json::Value;
use tempfile::TempDir;

use crate::cinelex::{Ran, command, finish, index, index_with, info, run, search, show};
use crate::damage::watch;
use crate::media::ffmpeg;
use crate::same::assert_same;
use crate::speech::spoken;

pub const SENTENCES: [&str; 4] = [
    "The old house stands near the river.",
    "Nobody has lived there for many years.",
    "The children play in the garden.",
    "Tomorrow we will go to the market.",
];

const PICTURE: &str = "-f lavfi -i testsrc2=s=160x90:r=10";
const H264: &str = "-c:v libx264 -g 20 -pix_fmt yuv420p";

/// A sound of these sentences with two seconds between them.
pub fn talk(folder: &Path, name: &str, sentences: &[&str]) {
    let mut inputs = String::new();
    let mut filter = String::new();
    for (at, sentence) in sentences.iter().enumerate() {
        spoken(folder, &format!("{name}.{at}.wav"), "en", sentence);
        inputs.push_str(&format!("-i {name}.{at}.wav "));
        filter.push_str(&format!("[{at}]apad=pad_dur=2[p{at}];"));
    }
    let all: String = (0..sentences.len()).map(|at| format!("[p{at}]")).collect();
    let count = sentences.len();
    ffmpeg(
        folder,
        &format!("{inputs}-filter_complex {filter}{all}concat=n={count}:v=0:a=1 {name}"),
    );
}

/// A film in which the sentences are spoken.
pub fn film(folder: &Path, name: &str, sentences: &[&str]) -> PathBuf {
    let wav = format!("{name}.wav");
    talk(folder, &wav, sentences);
    ffmpeg(folder, &format!("{PICTURE} -i {wav} -shortest {H264} -c:a aac {name}"));
    folder.join(name)
}

pub fn cues(library: &Path, name: &str) -> Vec<Value> {
    show(library, name).exits(0).lines("cue")
}

/// All that was heard in a source, in small letters.
pub fn heard(library: &Path, name: &str) -> String {
    let heard = cues(library, name).into_iter().filter(|cue| cue["cue_kind"] == "speech");
    let texts: Vec<String> = heard.map(|cue| cue["text"].as_str().unwrap().to_owned()).collect();
    texts.join(" ").to_lowercase()
}

pub fn has_words(text: &str, words: &[&str]) -> bool {
    words.iter().filter(|word| text.contains(**word)).count() * 4 >= words.len() * 3
}

fn assert_sound(library: &Path) {
    finish(command(["library", "check"]).arg(library)).exits(0);
}

#[test]
fn a_film_without_subtitles_is_listened_to_and_its_words_are_found_at_their_times() {
    let folder = TempDir::new().unwrap();
    let film = film(folder.path(), "talk.mp4", &SENTENCES);
    let library = folder.path().join("library");
    let ran = index(&library, &[&film]).exits(0);
    let report = ran.source("talk.mp4");
    assert_eq!((&report["state"], &report["language"]), (&"indexed".into(), &"en".into()));
    assert!(report["clips"].as_u64() > Some(5) && report["cues"].as_u64() >= Some(3), "{ran:?}");
    let text = heard(&library, "talk.mp4");
    assert!(has_words(&text, &["house", "river", "many", "years", "children", "garden"]), "{text}");
    let cues = cues(&library, "talk.mp4");
    assert!(cues.iter().all(|cue| cue["track"] == "speech:1" && cue["language"] == "en"));
    for word in cues.iter().flat_map(|cue| cue["words"].as_array().unwrap()) {
        assert!(word["confidence"].as_f64().is_some_and(|sure| (0.0..=1.0).contains(&sure)));
    }
    // Segments have the words, and search gives the time at which each is said.
    let segments = show(&library, "talk.mp4").lines("segment");
    let with_words = |word: &str| {
        segments.iter().filter(|segment| segment["words"].as_str().unwrap().contains(word)).count()
    };
    assert_eq!(with_words("garden"), 1, "{segments:?}");
    let hit = &search(&library, &["children in a garden"]).exits(0).lines("hit")[0];
    let garden = hit["said"]
        .as_array()
        .unwrap()
        .iter()
        .find(|word| word["text"].as_str().unwrap().to_lowercase().starts_with("garden"));
    let at = garden.expect("the garden is named")["span"]["start"].as_i64().unwrap();
    let (start, end) = (hit["start_us"].as_i64().unwrap(), hit["end_us"].as_i64().unwrap());
    assert!((start..end).contains(&at) && at > start + 500_000, "{hit}");
    assert_sound(&library);

    let before = fs::read(library.join("library.sqlite")).unwrap();
    let again = index(&library, &[&film]).exits(0);
    assert_eq!(again.source("talk.mp4")["state"], "unchanged");
    assert!(
        before == fs::read(library.join("library.sqlite")).unwrap(),
        "nothing was to be written"
    );
}

#[test]
fn films_with_subtitles_and_those_that_nobody_wants_to_hear_are_not_listened_to() {
    let folder = TempDir::new().unwrap();
    let film = film(folder.path(), "talk.mp4", &SENTENCES[..2]);
    let subtitles = "1\n00:00:00,200 --> 00:00:02,400\nThe harbour lies in the fog.\n";
    let srt = folder.path().join("talk.en.srt");
    let library = folder.path().join("library");
    let kinds = |library: &Path| {
        let cues = cues(library, "talk.mp4").into_iter();
        let mut kinds: Vec<Value> = cues.map(|cue| cue["cue_kind"].clone()).collect();
        kinds.dedup();
        kinds.sort_by_key(Value::to_string);
        kinds.dedup();
        kinds
    };
    index_with(&library, &[&film], &["--listen", "never"]).exits(0);
    assert_eq!(kinds(&library), [""; 0]);
    fs::write(&srt, subtitles).unwrap();
    index(&library, &[&film]).exits(0);
    assert_eq!(kinds(&library), ["subtitle"]);
    // Not decoded again for it: only listened to.
    let ran = index_with(&library, &[&film], &["--listen", "always"]).exits(0);
    let report = ran.source("talk.mp4");
    assert_eq!((&report["state"], &report["clips"]), (&"indexed".into(), &0.into()), "{ran:?}");
    assert_eq!(kinds(&library), ["speech", "subtitle"]);
    // The subtitles are what a person wrote; both are found.
    let segments = show(&library, "talk.mp4").lines("segment");
    assert!(segments.iter().any(|segment| segment["words"].as_str().unwrap().contains("harbour")));
    assert!(segments.iter().all(|segment| !segment["words"].as_str().unwrap().contains("river")));
    for word in ["harbour", "river"] {
        assert!(!search(&library, &[word, "--channel", "speech"]).exits(0).lines("hit").is_empty());
    }
    // Subtitles that are gone leave what was heard.
    fs::remove_file(&srt).unwrap();
    index(&library, &[&film]).exits(0);
    assert_eq!(kinds(&library), ["speech"]);
    let segments = show(&library, "talk.mp4").lines("segment");
    assert!(segments.iter().any(|segment| segment["words"].as_str().unwrap().contains("river")));
    assert_sound(&library);
}

#[test]
fn a_run_killed_while_it_listens_is_completed_from_the_last_pause() {
    let folder = TempDir::new().unwrap();
    let long: Vec<&str> = SENTENCES.iter().cycle().take(9).copied().collect();
    let films = [
        film(folder.path(), "talk.mp4", &long),
        film(folder.path(), "other.mkv", &SENTENCES[1..3]),
    ];
    let films: Vec<&Path> = films.iter().map(PathBuf::as_path).collect();
    let whole = folder.path().join("whole");
    index(&whole, &films).exits(0);
    for point in ["heard-committed:1", "heard-committed:4", "chunk-committed:1"] {
        let library = folder.path().join(point);
        let mut command = command(["index", "--json", "--library"]);
        command.arg(&library).args(&films).env("CINELEX_DIE_AT", point);
        assert_eq!(finish(&mut command).code, -1, "{point}");
        assert_sound(&library);
        let kept = Reader::open(&library).unwrap();
        let kept: usize =
            kept.sources().unwrap().iter().map(|s| kept.cues(s.id).unwrap().len()).sum();
        let ran = index(&library, &films).exits(0);
        let new: u64 = ["talk.mp4", "other.mkv"]
            .iter()
            .map(|name| ran.source(name)["cues"].as_u64().unwrap())
            .sum();
        let all: usize = films
            .iter()
            .map(|film| cues(&library, film.file_name().unwrap().to_str().unwrap()).len())
            .sum();
        assert_eq!(kept + new as usize, all, "{point}");
        assert_same(&whole, &library);
        assert_sound(&library);
    }
}

#[test]
fn another_speech_model_is_built_beside_and_takes_over() {
    let folder = TempDir::new().unwrap();
    let one = film(folder.path(), "one.mp4", &SENTENCES[..2]);
    let two = film(folder.path(), "two.mp4", &SENTENCES[2..]);
    let library = folder.path().join("library");
    index(&library, &[&one, &two]).exits(0);
    let speech = |library: &Path| -> Vec<(bool, u64)> {
        let recipes = info(library)["recipes"].as_array().unwrap().clone();
        let speech = recipes.iter().filter(|recipe| recipe["kind"] == "speech");
        speech
            .map(|of| (of["current"].as_bool().unwrap(), of["complete"].as_u64().unwrap()))
            .collect()
    };
    assert_eq!(speech(&library), [(true, 2)]);
    let other = ["--speech-model", "whisper-base"];
    let ran = index_with(&library, &[&one], &other).exits(0);
    assert_eq!(ran.line("run")["waiting"], 1, "{ran:?}");
    assert_eq!(speech(&library), [(true, 2), (false, 1)]);
    assert_sound(&library);
    let before = cues(&library, "one.mp4");
    index_with(&library, &[&one, &two], &other).exits(0);
    assert_eq!(speech(&library), [(true, 2)]);
    assert_ne!(cues(&library, "one.mp4"), before, "other words, or at least other confidences");
    let text = heard(&library, "two.mp4");
    assert!(has_words(&text, &["children", "garden", "tomorrow", "market"]), "{text}");
    let segments = show(&library, "two.mp4").lines("segment");
    assert!(segments.iter().any(|segment| segment["words"].as_str().unwrap().contains("garden")));
    assert_sound(&library);
    let fresh = folder.path().join("fresh");
    index_with(&fresh, &[&one, &two], &other).exits(0);
    for name in ["one.mp4", "two.mp4"] {
        assert_eq!(cues(&library, name), cues(&fresh, name));
    }
}

#[test]
fn without_speech_models_the_rest_is_done_and_it_is_said_how_to_get_them() {
    let folder = TempDir::new().unwrap();
    let film = film(folder.path(), "talk.mp4", &SENTENCES[..1]);
    let cache = folder.path().join("cache");
    let all = cinelex::model::Models::open().unwrap().cache_folder().to_owned();
    for entry in fs::read_dir(&all).unwrap().flatten() {
        let to = cache.join(entry.file_name());
        if entry.file_name() != "models" {
            fs::create_dir_all(&cache).unwrap();
            std::os::unix::fs::symlink(entry.path(), to).unwrap();
            continue;
        }
        fs::create_dir_all(&to).unwrap();
        for model in fs::read_dir(entry.path()).unwrap().flatten() {
            if !model.file_name().to_str().unwrap().starts_with("whisper") {
                std::os::unix::fs::symlink(model.path(), to.join(model.file_name())).unwrap();
            }
        }
    }
    let library = folder.path().join("library");
    let with = |options: &[&str]| -> Ran {
        let mut command = command(["index", "--json", "--library"]);
        command.arg(&library).args(options).arg(&film).env("CINELEX_CACHE", &cache);
        finish(&mut command)
    };
    let ran = with(&[]).exits(0);
    assert!(
        ran.err.contains("Nobody is listened to") && ran.err.contains("cinelex setup"),
        "{ran:?}"
    );
    assert!(ran.source("talk.mp4")["clips"].as_u64() > Some(0));
    assert!(with(&["--listen", "never"]).exits(0).err.is_empty());
    with(&["--listen", "always"]).exits(3);
    // With them, what is there already is listened to.
    let ran = index(&library, &[&film]).exits(0);
    assert_eq!(ran.source("talk.mp4")["clips"], 0);
    assert!(has_words(&heard(&library, "talk.mp4"), &["house", "river"]));
}

#[test]
fn sound_alone_is_indexed_by_its_words() {
    let folder = TempDir::new().unwrap();
    talk(folder.path(), "talk.wav", &SENTENCES[..2]);
    ffmpeg(folder.path(), "-i talk.wav -c:a libmp3lame -f mp3 lying.wav");
    let (talk, lying) = (folder.path().join("talk.wav"), folder.path().join("lying.wav"));
    let library = folder.path().join("library");
    index(&library, &[&talk, &lying]).exits(0);
    for name in ["talk.wav", "lying.wav"] {
        let text = heard(&library, name);
        assert!(has_words(&text, &["house", "river", "many", "years"]), "{name}: {text}");
    }
    let hits = search(&library, &["an old house at a river"]).exits(0).lines("hit");
    assert!(hits.len() >= 2, "{hits:?}");
    assert_sound(&library);
}

/// Where each of two words is heard, in seconds.
fn times(library: &Path, name: &str, words: [&str; 2]) -> [f64; 2] {
    let said: Vec<(String, f64)> = cues(library, name)
        .iter()
        .flat_map(|cue| cue["words"].as_array().unwrap().clone())
        .map(|word| {
            let start = word["span"]["start"].as_i64().unwrap() as f64 / 1e6;
            (word["text"].as_str().unwrap().to_lowercase(), start)
        })
        .collect();
    words.map(|wanted| {
        let found = said.iter().find(|(word, _)| word.starts_with(wanted));
        found.unwrap_or_else(|| panic!("{name}: no {wanted} in {said:?}")).1
    })
}

/// How far the picture is ahead where the first sound lies in the file, in seconds.
fn lateness(path: &Path) -> f64 {
    let out = Command::new("ffprobe")
        .args(["-v", "error", "-show_entries", "packet=codec_type,pts_time", "-of", "csv=p=0"])
        .arg(path)
        .output()
        .expect("the ffprobe executable is installed");
    let packets = String::from_utf8(out.stdout).unwrap();
    let mut picture = 0.0;
    for packet in packets.lines().filter(|line| !line.is_empty()) {
        let mut fields = packet.split(',');
        let kind = fields.next().unwrap();
        let at: f64 = fields.next().unwrap().parse().unwrap();
        match kind {
            "audio" => return picture - at,
            _ => picture = at,
        }
    }
    panic!("no sound in {}", path.display())
}

#[test]
fn sound_that_lies_oddly_in_its_file_has_right_times() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    // Two sentences with 80 s of silence between.
    for (name, sentence) in [("a.wav", SENTENCES[0]), ("b.wav", SENTENCES[2])] {
        spoken(at, name, "en", sentence);
    }
    ffmpeg(
        at,
        "-i a.wav -i b.wav -filter_complex [0]apad=whole_dur=80[a];[a][1]concat=n=2:v=0:a=1 far.wav",
    );
    let video = "-f lavfi -i testsrc2=s=160x90:r=2 -i far.wav";
    // Without B frames: their delay would move the first picture behind the first sound.
    let codecs = "-c:v libx264 -bf 0 -g 20 -pix_fmt yuv420p -c:a aac";
    let separate = "-movflags empty_moov+separate_moof";
    // In fragments of 62 s, first the picture, then the sound; and all of the sound at the end.
    ffmpeg(at, &format!("{video} -t 90 {codecs} {separate} -frag_duration 62000000 late.mp4"));
    ffmpeg(at, &format!("{video} -t 90 {codecs} {separate} -frag_duration 900000000 end.mp4"));
    // The same order of packets in containers of other kinds: what cannot be sought is copied as it lies.
    for name in ["late.mkv", "late.ts"] {
        ffmpeg(at, &format!("-seekable 0 -i late.mp4 -c copy -max_interleave_delta 1 {name}"));
        let late = lateness(&at.join(name));
        assert!((60.0..63.0).contains(&late), "{name}: its sound lies {late} s late");
    }
    // The sound begins five seconds after the picture, is much longer, or much shorter.
    let picture = "-f lavfi -i testsrc2=s=160x90:r=2";
    ffmpeg(at, &format!("{picture} -itsoffset 5 -i far.wav -t 95 {codecs} starts.mkv"));
    ffmpeg(at, &format!("{picture}:d=10 -i far.wav {codecs} longer.mkv"));
    ffmpeg(at, &format!("{video} -t 200 {codecs} shorter.mkv"));
    let names =
        ["late.mp4", "late.mkv", "late.ts", "end.mp4", "starts.mkv", "longer.mkv", "shorter.mkv"];
    let paths = names.map(|name| at.join(name));
    let library = at.join("library");
    let paths: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
    index(&library, &paths).exits(0);
    index(&at.join("plain"), &[&at.join("far.wav")]).exits(0);
    let words = ["house", "garden"];
    let truth = times(&at.join("plain"), "far.wav", words);
    assert!(truth[0] < 4.0 && (80.0..86.0).contains(&truth[1]), "{truth:?}");
    for name in names {
        let offset = if name == "starts.mkv" { 5.0 } else { 0.0 };
        let found = times(&library, name, words);
        for (found, truth) in found.iter().zip(truth) {
            assert!((found - truth - offset).abs() < 0.3, "{name}: {found} for {truth}");
        }
    }
    assert_sound(&library);
}

#[test]
fn sound_that_changes_its_format_or_has_holes_has_right_times() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    for (name, sentence) in [("a.wav", SENTENCES[0]), ("b.wav", SENTENCES[2])] {
        spoken(at, name, "en", sentence);
    }
    let ts = "-f mpegts -muxdelay 0";
    ffmpeg(at, &format!("-i a.wav -af apad=whole_dur=6 -ar 16000 -ac 1 -c:a mp2 {ts} a.ts"));
    ffmpeg(at, &format!("-i b.wav -ar 48000 -ac 2 -c:a mp2 {ts} -output_ts_offset 6 b.ts"));
    ffmpeg(at, &format!("-i b.wav -ar 16000 -ac 1 -c:a mp2 {ts} -output_ts_offset 12 c.ts"));
    let read = |name: &str| fs::read(at.join(name)).unwrap();
    fs::write(at.join("changes.ts"), [read("a.ts"), read("b.ts")].concat()).unwrap();
    fs::write(at.join("hole.ts"), [read("a.ts"), read("c.ts")].concat()).unwrap();
    let library = at.join("library");
    let ran = index(&library, &[&at.join("changes.ts"), &at.join("hole.ts")]).exits(0);
    let [river, garden] = times(&library, "changes.ts", ["river", "garden"]);
    assert!(river < 4.0 && (6.5..10.0).contains(&garden), "{river} {garden}");
    let [river, garden] = times(&library, "hole.ts", ["river", "garden"]);
    assert!(river < 4.0 && (12.5..16.0).contains(&garden), "{river} {garden}");
    // The hole is in the record, and told.
    let gaps = show(&library, "hole.ts").lines("gap");
    assert!(gaps.iter().any(|gap| gap["track"] == "sound"), "{gaps:?}");
    let notices = ran.source("hole.ts")["notices"].to_string();
    assert!(notices.contains("1 gaps in the sound"), "{notices}");
    assert_sound(&library);
}

#[test]
fn sound_that_cannot_be_used_costs_no_picture() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    ffmpeg(at, &format!("{PICTURE} -f lavfi -i sine -t 4 {H264} -c:a aac odd.mkv"));
    let odd = at.join("odd.mkv");
    let bytes = fs::read(&odd).unwrap();
    let broken = bytes.windows(4).position(|name| name == b"_AAC").unwrap();
    let mut changed = bytes.clone();
    changed[broken..broken + 4].copy_from_slice(b"_XYZ");
    fs::write(&odd, changed).unwrap();
    // Noise, a tone, and silence have no words.
    ffmpeg(at, &format!("{PICTURE} -f lavfi -i anoisesrc=a=0.3 -t 8 {H264} -c:a aac noise.mp4"));
    ffmpeg(at, &format!("{PICTURE} -f lavfi -i anullsrc -t 8 {H264} -c:a aac silent.mp4"));
    let library = at.join("library");
    let paths = ["odd.mkv", "noise.mp4", "silent.mp4"].map(|name| at.join(name));
    let paths: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
    let ran = index(&library, &paths).exits(0);
    for name in ["odd.mkv", "noise.mp4", "silent.mp4"] {
        let report = ran.source(name);
        assert!(report["clips"].as_u64() >= Some(2), "{report}");
        assert_eq!(report["cues"], 0, "{report}");
    }
    let notices = ran.source("odd.mkv")["notices"].to_string();
    assert!(notices.contains("sound"), "{notices}");
    let again = index(&library, &paths).exits(0);
    assert!(paths.iter().all(|path| {
        again.source(path.file_name().unwrap().to_str().unwrap())["state"] == "unchanged"
    }));
}

#[test]
fn broken_subtitle_files_have_right_times_or_are_reported_and_the_film_is_heard() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    ffmpeg(at, &format!("{PICTURE} -f lavfi -i sine -t 12 {H264} -c:a aac odd.mp4"));
    ffmpeg(at, &format!("{PICTURE} -t 3 {H264} huge.mp4"));
    // Unsorted, overlapping, before zero, backwards, and text that is no subtitle; Latin-1.
    let odd = "3\n00:00:08,000 --> 00:00:09,000\nthe last gr\u{fc}n boat\n\n\
         1\n00:00:01,000 --> 00:00:05,000\na first boat\n\n\
         2\n00:00:03,000 --> 00:00:04,000\na second boat\n\nno number at all\n\n\
         4\n-00:00:05,000 --> -00:00:02,000\nbefore the start\n\n\
         5\n00:00:07,000 --> 00:00:06,000\nbackwards\n";
    let latin: Vec<u8> = odd.chars().map(|letter| letter as u32 as u8).collect();
    fs::write(at.join("odd.srt"), latin).unwrap();
    let huge = fs::File::create(at.join("huge.srt")).unwrap();
    huge.set_len(100 << 20).unwrap();
    let library = at.join("library");
    let ran = index(&library, &[&at.join("odd.mp4"), &at.join("huge.mp4")]).exits(0);
    let found = cues(&library, "odd.mp4");
    let starts: Vec<i64> =
        found.iter().map(|cue| cue["start_us"].as_i64().unwrap() / 1_000).collect();
    assert!(starts.is_sorted() && starts[0] >= 0, "{found:?}");
    for (text, start) in
        [("a first boat", 1_000), ("a second boat", 3_000), ("the last grün boat", 8_000)]
    {
        let cue = found.iter().find(|cue| cue["text"].as_str().unwrap().contains(text));
        let cue = cue.unwrap_or_else(|| panic!("{text} in {found:?}"));
        assert_eq!(cue["start_us"], start * 1_000, "{cue}");
        assert!(cue["end_us"].as_i64() > cue["start_us"].as_i64(), "{cue}");
    }
    let notices = ran.source("odd.mp4")["notices"].to_string();
    assert!(notices.contains("odd.srt: not Unicode, so it is read as Windows-1252"), "{notices}");
    let notices = ran.source("huge.mp4")["notices"].to_string();
    assert!(
        notices.contains("huge.srt cannot be read: a subtitle file of more than 16 MiB"),
        "{ran:?}"
    );
    assert_sound(&library);
}

#[test]
fn a_subtitle_file_of_a_hundred_megabytes_is_reported_and_the_film_is_heard() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let film = film(at, "talk.mp4", &SENTENCES[..2]);
    let mut words = std::io::BufWriter::new(fs::File::create(at.join("talk.en.srt")).unwrap());
    let (mut bytes, mut number) = (0, 0);
    while bytes < 100 << 20 {
        let (minutes, secs) = (number / 60 % 60, number % 60);
        number += 1;
        let cue = format!(
            "{number}\n00:{minutes:02}:{secs:02},000 --> 00:{minutes:02}:{secs:02},900\nThe harbour lies in the fog, \
             and a ferry sounds its horn for the time {number}.\n\n"
        );
        words.write_all(cue.as_bytes()).unwrap();
        bytes += cue.len();
    }
    drop(words);
    for listen in ["missing", "always"] {
        let library = at.join(listen);
        let patience = Duration::from_secs(300);
        let (ran, memory) = watch(&library, &[&film], &["--listen", listen], patience);
        let report = ran.exits(0).source("talk.mp4");
        assert_eq!(report["state"], "indexed", "{report}");
        assert!(report["clips"].as_u64() > Some(2), "{report}");
        let notices = report["notices"].to_string();
        assert!(
            notices.contains("talk.en.srt cannot be read: a subtitle file of more than 16 MiB"),
            "{report}"
        );
        assert!(memory.all < 900 << 20, "{memory:?}");
        assert!(has_words(&heard(&library, "talk.mp4"), &["house", "river", "many", "years"]));
        let [river, years] = times(&library, "talk.mp4", ["river", "years"]);
        assert!(river < 4.0 && (4.0..9.0).contains(&years), "{river} {years}");
        assert_sound(&library);
    }
}

/// Writes one subtitle.
fn subtitle(path: &Path, from: &str, to: &str, text: &str) {
    fs::write(path, format!("1\n{from},000 --> {to},500\n{text}\n")).unwrap();
}

#[test]
fn subtitles_behind_the_end_are_left_out_and_the_film_is_heard() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let far = film(at, "far.mp4", &SENTENCES[..1]);
    let near = film(at, "near.mp4", &SENTENCES[1..2]);
    subtitle(&at.join("far.srt"), "100:00:00", "100:00:02", "The harbour lies in the fog.");
    // One of these is seen, so it is what is said.
    let two = "1\n00:00:01,000 --> 00:00:02,000\nA ferry sounds.\n\n\
         2\n00:10:00,000 --> 00:10:02,000\nThe harbour lies in the fog.\n";
    fs::write(at.join("near.srt"), two).unwrap();
    let library = at.join("library");
    let ran = index(&library, &[&far, &near]).exits(0);
    for name in ["far", "near"] {
        let notices = ran.source(&format!("{name}.mp4"))["notices"].to_string();
        let told = format!("1 cue of {name}.srt begins behind the end");
        assert!(notices.contains(&told), "{notices}");
        let text: String = cues(&library, &format!("{name}.mp4"))
            .iter()
            .map(|cue| cue["text"].as_str().unwrap().to_lowercase())
            .collect();
        assert!(!text.contains("fog"), "{text}");
        assert_eq!(text.contains("river"), name == "far", "{text}");
        assert!(!text.contains("years"), "{text}");
        assert_eq!(text.contains("ferry"), name == "near", "{text}");
    }
    // FFmpeg takes this for two seconds, by the bit rate of the noise at its start.
    ffmpeg(
        at,
        "-f lavfi -i anoisesrc=d=2:a=0.5 -filter_complex apad=pad_dur=18 -c:a aac -q:a 2 guess.aac",
    );
    subtitle(&at.join("guess.srt"), "00:00:17", "00:00:18", "The harbour lies in the fog.");
    index(&library, &[&at.join("guess.aac")]).exits(0);
    assert_eq!(cues(&library, "guess.aac").len(), 1);
    let before = fs::read(library.join("library.sqlite")).unwrap();
    let again = index(&library, &[&far, &near]).exits(0);
    assert_eq!(again.source("far.mp4")["state"], "unchanged");
    assert!(before == fs::read(library.join("library.sqlite")).unwrap(), "written: {again:?}");
    assert_sound(&library);
}

#[test]
fn forced_subtitles_are_kept_and_the_film_is_heard_all_the_same() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let beside = film(at, "beside.mp4", &SENTENCES[..2]);
    let forced = at.join("beside.en.forced.srt");
    subtitle(&forced, "00:00:00", "00:00:02", "The harbour lies in the fog.");
    ffmpeg(
        at,
        "-i beside.mp4 -i beside.en.forced.srt -map 0 -map 1 -c copy -c:s srt -metadata:s:s:0 language=eng \
         -disposition:s:0 forced inside.mkv",
    );
    let library = at.join("library");
    index(&library, &[&beside, &at.join("inside.mkv")]).exits(0);
    for name in ["beside.mp4", "inside.mkv"] {
        assert!(has_words(&heard(&library, name), &["house", "river", "many", "years"]), "{name}");
        let written = cues(&library, name).into_iter().filter(|cue| cue["cue_kind"] == "subtitle");
        let written: Vec<Value> = written.map(|cue| cue["text"].clone()).collect();
        assert_eq!(written, ["The harbour lies in the fog."], "{name}");
        // What is said is what was heard.
        let segments = show(&library, name).lines("segment");
        let words: Vec<&str> =
            segments.iter().map(|segment| segment["words"].as_str().unwrap()).collect();
        assert!(words.iter().any(|words| words.contains("river")), "{name}: {words:?}");
    }
    assert_sound(&library);
}

#[test]
fn of_several_sound_tracks_the_one_in_the_language_is_heard_and_the_others_are_told() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    spoken(at, "en.wav", "en", SENTENCES[0]);
    spoken(at, "de.wav", "de", "Die Kinder spielen heute zusammen in dem großen Garten.");
    ffmpeg(
        at,
        &format!(
            "{PICTURE} -i en.wav -i de.wav -map 0:v -map 1:a -map 2:a -t 5 {H264} -c:a aac \
             -metadata:s:a:0 language=eng -metadata:s:a:1 language=ger -disposition:a:0 default \
             -disposition:a:1 0 two.mkv"
        ),
    );
    let two = at.join("two.mkv");
    for (language, track, word, told) in [
        (
            "auto",
            "speech:1",
            "river",
            "only sound track 1 (en) is listened to; there is also 2 (de)",
        ),
        ("en", "speech:1", "river", "only sound track 1 (en) is listened to; there is also 2 (de)"),
        (
            "de",
            "speech:2",
            "kinder",
            "only sound track 2 (de) is listened to; there is also 1 (en)",
        ),
        // None is in it.
        ("fr", "speech:1", "", "only sound track 1 (en) is listened to; there is also 2 (de)"),
    ] {
        let two = two.to_str().unwrap();
        let ran = run(["transcribe", two, "--json", "--language", language]).exits(0);
        let cues = ran.lines("cue");
        assert!(cues.iter().all(|cue| cue["track"] == track), "{language}: {ran:?}");
        let text: String = cues.iter().map(|cue| cue["text"].to_string().to_lowercase()).collect();
        assert!(text.contains(word), "{language}: {text}");
        assert!(ran.err.contains(told), "{language}: {ran:?}");
    }
    let library = at.join("library");
    let ran = index(&library, &[&two]).exits(0);
    let notices = ran.source("two.mkv")["notices"].to_string();
    assert!(notices.contains("there is also 2 (de)"), "{notices}");
    assert!(heard(&library, "two.mkv").contains("river"));
}

#[test]
#[ignore = "slow: ten hours of sound"]
fn ten_hours_of_silence_and_a_sentence_are_listened_to_in_bounded_memory() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    spoken(at, "a.wav", "en", SENTENCES[0]);
    ffmpeg(
        at,
        "-f lavfi -i anullsrc=r=16000:cl=mono:d=35990 -i a.wav -filter_complex [0][1]concat=n=2:v=0:a=1 -c:a flac long.mka",
    );
    let library = at.join("library");
    let (ran, memory) = watch(&library, &[&at.join("long.mka")], &[], Duration::from_secs(1_800));
    ran.exits(0);
    // With both models for what is said.
    assert!(memory.all < 900 << 20, "{memory:?}");
    eprintln!("{memory:?}");
    let [river, old] = times(&library, "long.mka", ["river", "old"]);
    assert!(old < river && (35_990.0..35_996.0).contains(&river), "{old} {river}");
    assert_sound(&library);
}
