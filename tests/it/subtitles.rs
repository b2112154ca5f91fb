//! From subtitle files, as FFmpeg reads them, to sentences.

use std::path::{Path, PathBuf};

use cinelex::media::Cue;
use cinelex::source::{CueEvent, CueRequest, Host, Input, Limits, Location};
use cinelex::time::Timestamp;
use cinelex::transcript::{Sentence, SentenceRules, chosen_track, sentences};

use crate::media::ffmpeg;

fn cues(path: &Path, language: &str) -> Vec<Cue> {
    let executable = Some(PathBuf::from(env!("CARGO_BIN_EXE_cinelex")));
    let mut host = Host::start(&Limits { executable, ..Limits::default() }).unwrap();
    let input = Input::open(&Location::File(path.to_owned())).unwrap();
    let track = format!("sidecar:{}", path.file_name().unwrap().to_str().unwrap());
    let request = CueRequest::Sidecar { language: Some(language.into()), track };
    host.cues(&input, &request)
        .unwrap()
        .filter_map(|event| match event.unwrap() {
            CueEvent::Cue(cue) => Some(cue),
            _ => None,
        })
        .collect()
}

fn said(cues: &[Cue]) -> Vec<Sentence> {
    let track = chosen_track(cues, &["en"]).unwrap();
    sentences(cues.iter().filter(|cue| cue.track == track), &SentenceRules::default())
}

fn texts(sentences: &[Sentence]) -> Vec<&str> {
    sentences.iter().map(|sentence| sentence.text.as_str()).collect()
}

fn sample(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("samples").join(name)
}

#[test]
fn the_samples_subtitles_become_what_is_said() {
    let found = said(&cues(&sample("bikes.en.srt"), "en"));
    assert_eq!(
        texts(&found),
        [
            "Every morning the taxis fill the street.",
            "The cyclist has to wait behind the van.",
            "So most people leave their bicycle at the wall.",
        ]
    );
    assert_eq!(found[2].span.start, Timestamp::from_millis(6_400));
    assert_eq!(found[2].span.end, Timestamp::from_millis(9_700));
    assert_eq!(found[2].language.as_deref(), Some("en"));
}

#[test]
fn every_subtitle_format_gives_the_same_sentences() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(sample("bigbuckbunny.en.srt"), folder.path().join("a.srt")).unwrap();
    let written = said(&cues(&folder.path().join("a.srt"), "en"));
    assert_eq!(
        texts(&written),
        ["What a fine morning!", "Time to stretch, and then breakfast in the meadow."]
    );
    for format in ["vtt", "ass"] {
        ffmpeg(folder.path(), &format!("-i a.srt a.{format}"));
        let read = said(&cues(&folder.path().join(format!("a.{format}")), "en"));
        assert_eq!(texts(&read), texts(&written), "{format}");
        for (read, written) in read.iter().zip(&written) {
            // ASS counts in hundredths of a second.
            assert!((read.span.start - written.span.start).0.abs() <= 10_000, "{format}");
            assert!((read.span.end - written.span.end).0.abs() <= 10_000, "{format}");
        }
    }
}

#[test]
fn markup_and_rolled_up_lines_are_not_said() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.vtt");
    std::fs::write(
        &path,
        "WEBVTT\n\n\
         00:00.000 --> 00:02.000 align:start position:0%\n\
         we<00:00:00.500><c> went</c>\n\n\
         00:02.000 --> 00:04.000\nwe went\n<i>to the</i> lake\n\n\
         00:04.000 --> 00:06.000\nto the lake\nand swam.\n\n\
         00:06.500 --> 00:07.000\n[applause]\n\n\
         00:08.000 --> 00:09.000\nTom &amp; Ada left.\n",
    )
    .unwrap();
    let found = said(&cues(&path, "en"));
    assert_eq!(texts(&found), ["we went to the lake and swam.", "Tom & Ada left."]);
}
