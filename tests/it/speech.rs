//! What people say: espeak-ng speaks, and `cinelex transcribe` writes it down. Needs `cinelex setup`.

use std::path::{Path, PathBuf};
use std::process::Command;

use cinelex::model::Models;
use serde_json::Value;

use crate::cinelex::{Ran, command, index, run};
use crate::media::ffmpeg;
use crate::models::data_folder;

const SENTENCE: &str =
    "The old house stands near the river. Nobody has lived there for many years.";

/// A recording of `text`, spoken clearly.
pub fn spoken(folder: &Path, name: &str, voice: &str, text: &str) -> PathBuf {
    let out = Command::new("espeak-ng")
        .args(["-v", voice, "-s", "140", "-w", name, text])
        .current_dir(folder)
        .output()
        .expect("the espeak-ng executable is installed");
    assert!(out.status.success(), "{out:?}");
    folder.join(name)
}

fn transcribed(path: &Path, options: &[&str]) -> Ran {
    let mut arguments = vec!["transcribe", path.to_str().unwrap(), "--language", "en"];
    arguments.extend(options);
    run(arguments)
}

fn cues(ran: &Ran) -> Vec<Value> {
    ran.lines("cue")
}

/// All words, in small letters, without punctuation.
fn words(ran: &Ran) -> String {
    let mut text = String::new();
    for cue in cues(ran) {
        text.push_str(cue["text"].as_str().unwrap());
        text.push(' ');
    }
    let kept: String = text.chars().filter(|c| c.is_alphanumeric() || *c == ' ').collect();
    kept.to_lowercase().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whether most of the sentence's words that a synthetic voice makes clear were understood.
fn is_understood(ran: &Ran) -> bool {
    let heard = words(ran);
    let clear = ["house", "near", "river", "many", "years"];
    clear.iter().filter(|word| heard.split(' ').any(|heard| heard == **word)).count() >= 4
}

#[test]
fn speech_becomes_sentences_with_words_and_times() {
    let folder = tempfile::tempdir().unwrap();
    spoken(folder.path(), "voice.wav", "en", SENTENCE);
    // Two seconds of silence before and after.
    ffmpeg(folder.path(), "-i voice.wav -af adelay=2000:all=1,apad=pad_dur=2 late.wav");
    let ran = transcribed(&folder.path().join("late.wav"), &["--json"]).exits(0);
    assert!(is_understood(&ran), "{ran:?}");
    let cues = cues(&ran);
    let mut before = 0;
    for cue in &cues {
        assert_eq!((&cue["cue_kind"], &cue["language"]), (&"speech".into(), &"en".into()));
        assert_eq!(cue["track"], "speech:0");
        for word in cue["words"].as_array().unwrap() {
            let at = |edge: &str| word["span"][edge].as_i64().unwrap();
            assert!(before <= at("start") && at("start") <= at("end"), "{word}");
            before = at("start");
            let confidence = word["confidence"].as_f64().unwrap();
            assert!((0.0..=1.0).contains(&confidence));
        }
    }
    let first = cues[0]["start_us"].as_i64().unwrap();
    assert!((1_800_000..2_600_000).contains(&first), "{first}");
}

#[test]
fn noise_and_silence_give_no_words() {
    let folder = tempfile::tempdir().unwrap();
    ffmpeg(folder.path(), "-f lavfi -i anoisesrc=d=20:c=pink:a=0.3:seed=1 noise.wav");
    ffmpeg(folder.path(), "-f lavfi -i anullsrc=d=20 silence.wav");
    ffmpeg(folder.path(), "-f lavfi -i sine=f=440:d=20 tone.wav");
    for name in ["noise.wav", "silence.wav", "tone.wav"] {
        let path = folder.path().join(name);
        let ran = run(["transcribe", path.to_str().unwrap(), "--format", "vtt"]).exits(0);
        assert_eq!(ran.out.trim(), "WEBVTT", "{name}: {ran:?}");
    }
    // Nothing said is something to write, also where that is a file without a line, in a folder that is new.
    let silence = folder.path().join("silence.wav");
    let srt = folder.path().join("subtitles/silence.SRT");
    run(["transcribe", silence.to_str().unwrap(), "-o", srt.to_str().unwrap()]).exits(0);
    assert_eq!(std::fs::read_to_string(&srt).unwrap(), "");
}

/// Half a minute of each kind of music, by name.
fn music(folder: &Path) -> Vec<PathBuf> {
    // A step of a scale, so many a second; a tone that fades; one that swells; and a stroke of a drum.
    let note =
        |hz: f64, rate: f64, scale: &str| format!("{hz}*pow(2\\,mod(floor(t*{rate})*{scale})/12)");
    let tones = |hz: &str, share: &[f64]| -> String {
        let tone = |(at, share): (usize, &f64)| format!("+{share}*sin(2*PI*t*{}*{hz})", at + 1);
        share.iter().enumerate().map(tone).collect()
    };
    let fades = |rate: f64, fast: f64| format!("exp(-{fast}*mod(t\\,1/{rate}))");
    let drum =
        "+0.3*(random(1)-0.5)*exp(-25*mod(t\\,0.5))+0.4*sin(2*PI*60*mod(t\\,1))*exp(-9*mod(t\\,1))";
    let root = note(174.6, 0.5, "5\\,12");
    let chord: String =
        [1.0, 1.26, 1.498].map(|up| tones(&format!("{up}*{root}"), &[1.0, 0.5, 0.3])).concat();
    let picked = tones(&note(220.0, 6.0, "7\\,24"), &[1.0, 0.5, 0.25]);
    let brass = tones(&note(130.0, 3.0, "4\\,10"), &[1.0, 1.0, 0.9, 0.8, 0.7, 0.5, 0.4, 0.3]);
    let sung = tones("165", &[1.0; 14]);
    let kinds = [
        ("chords", format!("0.06*{}*(0{chord})", fades(0.5, 0.7)), "anull"),
        ("arpeggio", format!("0.2*{}*(0{picked}){drum}", fades(6.0, 8.0)), "anull"),
        ("brass", format!("0.1*pow(sin(PI*mod(t*3\\,1))\\,0.7)*(0{brass})"), "anull"),
        ("drums", format!("0{drum}"), "aecho=0.8:0.7:60|110:0.4|0.3"),
        // A vowel without words, that goes up and down.
        (
            "choir",
            format!("0.1*(0{sung})"),
            "vibrato=f=5:d=0.5,asplit[a][b];[a]bandpass=f=700:w=120[c];[b]bandpass=f=1150:w=150[d];[c][d]amix,volume=3",
        ),
    ];
    let made = kinds.map(|(name, sound, filter)| {
        let wav = format!("{name}.wav");
        let source = format!("aevalsrc={sound}:d=30:s=16000");
        ffmpeg(folder, &format!("-f lavfi -i {source} -filter_complex [0]{filter} {wav}"));
        folder.join(wav)
    });
    made.to_vec()
}

#[test]
fn music_gives_no_words() {
    let folder = tempfile::tempdir().unwrap();
    let music = music(folder.path());
    let paths = music.iter().map(|path| path.to_str().unwrap());
    let ran = run(["transcribe", "--json"].into_iter().chain(paths)).exits(0);
    assert_eq!(cues(&ran), [""; 0], "{ran:?}");
    // All together, and in a film.
    let inputs: String = (0..music.len()).map(|at| format!("[{at}]")).collect();
    let files: String = music.iter().map(|path| format!("-i {} ", path.display())).collect();
    let count = music.len();
    ffmpeg(
        folder.path(),
        &format!(
            "{files}-f lavfi -i testsrc2=s=160x90:r=5 -filter_complex {inputs}amix={count}:normalize=0[m] \
             -map {count}:v -map [m] -t 30 -c:v mpeg4 -c:a aac band.mkv"
        ),
    );
    let library = folder.path().join("library");
    let ran = index(&library, &[&folder.path().join("band.mkv")]).exits(0);
    let report = ran.source("band.mkv");
    assert_eq!((&report["clips"], &report["cues"]), (&20.into(), &0.into()), "{ran:?}");
}

/// The network that tells where somebody speaks gets used to what it hears for long.
#[test]
fn who_speaks_after_long_noise_or_music_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    spoken(folder.path(), "voice.wav", "en", SENTENCE);
    ffmpeg(
        folder.path(),
        "-i voice.wav -f lavfi -i anoisesrc=d=40:c=pink:a=0.2:seed=1:r=16000 -filter_complex \
         [0]aresample=16000,adelay=25000:all=1,apad=pad_dur=5[said];[1]volume=5.5[noise];[noise][said]amix=2:normalize=0,alimiter \
         -ar 16000 windy.wav",
    );
    let ran = transcribed(&folder.path().join("windy.wav"), &["--json"]).exits(0);
    // What it takes for words is another matter in so much noise.
    let edges =
        |edge: &str| cues(&ran).iter().map(|cue| cue[edge].as_i64().unwrap()).collect::<Vec<_>>();
    let (first, last) = (edges("start_us").into_iter().min(), edges("end_us").into_iter().max());
    assert!(first.is_some_and(|at| (24_500_000..25_800_000).contains(&at)), "{ran:?}");
    assert!(last.is_some_and(|at| (29_000_000..31_000_000).contains(&at)), "{ran:?}");

    // The second half of this trailer is spoken over an orchestra.
    let Some(data) = data_folder() else { return };
    let heard =
        words(&transcribed(&data.join("speech/sintel_trailer/audio/trailer.mp3"), &["--json"]));
    for phrase in ["land of the gatekeepers", "a dangerous quest", "as long as i can remember"] {
        assert!(heard.contains(phrase), "{phrase}: {heard}");
    }
}

#[test]
fn subtitles_are_fit_to_be_shown() {
    let folder = tempfile::tempdir().unwrap();
    let text = "Printing, in the only sense with which we are at present concerned, differs from most, if \
                not from all, the arts and crafts represented in the exhibition. It is a very old craft.";
    let path = spoken(folder.path(), "long.wav", "en", text);
    let vtt = folder.path().join("long.vtt");
    transcribed(&path, &["-o", vtt.to_str().unwrap()]).exits(0);
    let written = std::fs::read_to_string(&vtt).unwrap();
    assert!(written.starts_with("WEBVTT\n"), "{written}");
    for cue in written.split("\n\n").skip(1) {
        let lines: Vec<&str> = cue.trim().lines().skip(1).collect();
        assert!((1..=2).contains(&lines.len()), "{written}");
        assert!(lines.iter().all(|line| line.chars().count() <= 42), "{written}");
    }
    // Written once; never over what is there.
    transcribed(&path, &["-o", vtt.to_str().unwrap()]).exits(2);
}

#[test]
fn sound_of_every_kind_is_understood_at_its_time() {
    let folder = tempfile::tempdir().unwrap();
    spoken(folder.path(), "voice.wav", "en", SENTENCE);
    let made = |arguments: &str| ffmpeg(folder.path(), &format!("-i voice.wav {arguments}"));
    made("-ar 8000 eight.wav");
    made("-af volume=24dB clipped.wav");
    made("-af pan=5.1|FL=0*c0|FR=0*c0|FC=c0|LFE=0*c0|BL=0*c0|BR=0*c0 -c:a aac surround.m4a");
    made("-c:a libmp3lame -f mp3 lying.wav");
    // The picture is shorter than the sound, and begins before it.
    made("-f lavfi -i testsrc2=d=2:r=10 -map 1:v -map 0:a -c:v mpeg4 -c:a aac short.mkv");
    for name in ["eight.wav", "clipped.wav", "surround.m4a", "lying.wav", "short.mkv"] {
        let ran = transcribed(&folder.path().join(name), &["--json"]).exits(0);
        assert!(is_understood(&ran), "{name}: {ran:?}");
        let first = cues(&ran)[0]["start_us"].as_i64().unwrap();
        assert!((0..700_000).contains(&first), "{name}: {first}");
    }
}

#[test]
fn sound_with_a_hole_has_right_times_after_it() {
    let folder = tempfile::tempdir().unwrap();
    spoken(folder.path(), "voice.wav", "en", "The old house stands near the river.");
    ffmpeg(folder.path(), "-i voice.wav -c:a pcm_s16le -f mpegts -muxdelay 0 -c:a mp2 a.ts");
    ffmpeg(folder.path(), "-i voice.wav -f mpegts -muxdelay 0 -output_ts_offset 10 -c:a mp2 b.ts");
    let mut both = std::fs::read(folder.path().join("a.ts")).unwrap();
    both.extend(std::fs::read(folder.path().join("b.ts")).unwrap());
    let path = folder.path().join("hole.ts");
    std::fs::write(&path, both).unwrap();
    let ran = transcribed(&path, &["--json"]).exits(0);
    let starts: Vec<i64> = cues(&ran).iter().map(|cue| cue["start_us"].as_i64().unwrap()).collect();
    assert!(starts.iter().any(|at| *at < 1_000_000), "{ran:?}");
    assert!(starts.iter().any(|at| (9_500_000..11_000_000).contains(at)), "{ran:?}");
}

#[test]
fn a_language_is_told_by_its_sound() {
    let folder = tempfile::tempdir().unwrap();
    let text =
        "Guten Morgen. Heute ist das Wetter sehr schön, und wir gehen zusammen in den Garten.";
    let path = spoken(folder.path(), "de.wav", "de", text);
    let ran = run(["transcribe", path.to_str().unwrap(), "--json"]).exits(0);
    assert!(cues(&ran).iter().all(|cue| cue["language"] == "de"), "{ran:?}");
    assert!(words(&ran).contains("morgen"), "{ran:?}");
}

#[test]
fn where_the_language_changes_the_words_do_too() {
    let folder = tempfile::tempdir().unwrap();
    spoken(folder.path(), "en.wav", "en", SENTENCE);
    let text =
        "Guten Morgen. Heute ist das Wetter sehr schön, und wir gehen zusammen in den Garten.";
    spoken(folder.path(), "de.wav", "de", text);
    ffmpeg(
        folder.path(),
        "-i en.wav -i en.wav -i de.wav -filter_complex [0]apad=pad_dur=1[a];[1]apad=pad_dur=3[b];[a][b][2]concat=n=3:v=0:a=1 both.wav",
    );
    let both = folder.path().join("both.wav");
    let ran = run(["transcribe", both.to_str().unwrap(), "--json"]).exits(0);
    let languages: Vec<Value> = cues(&ran).iter().map(|cue| cue["language"].clone()).collect();
    assert_eq!(
        (languages.first(), languages.last()),
        (Some(&"en".into()), Some(&"de".into())),
        "{ran:?}"
    );
    assert!(words(&ran).contains("river") && words(&ran).contains("morgen"), "{ran:?}");
}

#[test]
fn what_cannot_be_listened_to_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    ffmpeg(folder.path(), "-f lavfi -i testsrc2=d=1:r=5 -c:v mpeg4 mute.mkv");
    let mute = folder.path().join("mute.mkv");
    let ran = run(["transcribe", mute.to_str().unwrap(), "--json"]).exits(1);
    let report = ran.source("mute.mkv");
    assert!(report["error"]["reason"].as_str().unwrap().contains("no sound track"), "{ran:?}");
    std::fs::write(folder.path().join("text.wav"), "not a sound at all").unwrap();
    let text = folder.path().join("text.wav");
    run(["transcribe", text.to_str().unwrap()]).exits(1);
    run(["transcribe", text.to_str().unwrap(), "--language", "klingon"]).exits(2);
    let ran = run(["transcribe", text.to_str().unwrap(), "--language", "xx"]).exits(2);
    assert!(ran.err.starts_with("cinelex: \"xx\" is no language"), "{ran:?}");
}

#[test]
fn a_users_own_ggml_file_is_checked_before_it_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = spoken(folder.path(), "voice.wav", "en", "Good morning.");
    std::fs::write(folder.path().join("mine.bin"), b"lmgg\x01\x02\x03").unwrap();
    let mine = own_model(folder.path(), "en");
    let ran = transcribed(&path, &["--model", &mine]).exits(3);
    assert!(ran.err.contains("mine.bin") && ran.err.contains("ends too early"), "{ran:?}");

    // In 32 bits; and without the piece that is a space, where the first of one byte would be.
    let sound = std::fs::read(built_in()).unwrap();
    let kind = 11 * 4;
    let filters = 14 * 4 + 80 * 201 * 4;
    let is_blank = |piece: &[u8]| piece == [1, 0, 0, 0, b' '];
    let blank = filters + sound[filters..].windows(5).position(is_blank).unwrap() + 4;
    for (at, bytes, why) in
        [(kind, &[0; 4][..], "write it with 16"), (blank, b"!", "vocabulary has no space")]
    {
        let mut broken = sound.clone();
        broken[at..at + bytes.len()].copy_from_slice(bytes);
        std::fs::write(folder.path().join("mine.bin"), broken).unwrap();
        let mine = own_model(folder.path(), "en");
        let ran = transcribed(&path, &["--model", &mine]).exits(3);
        assert!(ran.err.contains(why), "{ran:?}");
    }
}

#[test]
fn a_manifest_names_only_languages_that_its_network_knows() {
    let folder = tempfile::tempdir().unwrap();
    let path = spoken(folder.path(), "voice.wav", "en", "Good morning.");
    std::fs::copy(built_in(), folder.path().join("mine.bin")).unwrap();
    let mine = own_model(folder.path(), "de");
    let sound = path.to_str().unwrap();
    let ran = run(["transcribe", sound, "--model", &mine, "--language", "de"]).exits(2);
    assert!(ran.err.contains("`languages` has de, but"), "{ran:?}");
}

#[test]
fn a_users_own_ggml_file_is_read_with() {
    let folder = tempfile::tempdir().unwrap();
    let path = spoken(folder.path(), "voice.wav", "en", SENTENCE);
    std::fs::copy(built_in(), folder.path().join("mine.bin")).unwrap();
    let mine = own_model(folder.path(), "en");
    let ran = transcribed(&path, &["--model", &mine]).exits(0);
    assert!(ran.out.contains("near the river"), "{ran:?}");
}

/// The network that reads English, as whisper.cpp has it.
fn built_in() -> PathBuf {
    let models = Models::open().unwrap();
    models.graph(&models.manifest("whisper-tiny.en").unwrap()).unwrap()
}

/// A manifest of `mine.bin`, in the same folder.
fn own_model(folder: &Path, language: &str) -> String {
    let sum = command_output("sha256sum", &folder.join("mine.bin"));
    let bytes = std::fs::metadata(folder.join("mine.bin")).unwrap().len();
    let manifest = format!(
        "schema = 1\nid = \"mine\"\nversion = \"1\"\ntask = \"speech\"\nabout = \"mine\"\n\
         licence = \"MIT\"\ncommercial = true\n\n[[files]]\nname = \"mine.bin\"\npath = \"mine.bin\"\n\
         sha256 = \"{sum}\"\nbytes = {bytes}\n\n[speech]\nlanguages = [\"{language}\"]\n"
    );
    let path = folder.join("mine.toml");
    std::fs::write(&path, manifest).unwrap();
    path.to_str().unwrap().to_owned()
}

fn command_output(program: &str, path: &Path) -> String {
    let out = Command::new(program).arg(path).output().unwrap();
    String::from_utf8(out.stdout).unwrap().split_whitespace().next().unwrap().to_owned()
}

#[test]
fn a_run_that_is_stopped_writes_what_was_heard() {
    let folder = tempfile::tempdir().unwrap();
    spoken(folder.path(), "voice.wav", "en", SENTENCE);
    ffmpeg(folder.path(), "-stream_loop 80 -i voice.wav -c copy hour.wav");
    let hour = folder.path().join("hour.wav");
    let out = folder.path().join("hour.txt");
    let arguments =
        ["transcribe", hour.to_str().unwrap(), "--language", "en", "-o", out.to_str().unwrap()];
    // When something was heard depends on what else the machine does.
    let hears_within = |secs: u64| {
        let _ = std::fs::remove_file(&out);
        let mut child = command(arguments).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_secs(secs));
        let id = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(id, rustix::process::Signal::INT).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(130));
        std::fs::read_to_string(&out).is_ok_and(|written| written.contains("house"))
    };
    assert!([6, 12, 24, 48].into_iter().any(hears_within));
}
