//! Sound, timed text and addresses.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;

use cinelex::error::{Kind, Result};
use cinelex::media::{Cue, Gap, TrackKind};
use cinelex::source::{
    CueEvent, CueRequest, Host, Input, Location, Sidecars, SoundEvent, SoundRequest,
};
use cinelex::time::Timestamp;

use crate::decoding::{every, host, open, picture, request};
use crate::media::{ffmpeg, numbered};

struct Sound {
    start: Timestamp,
    samples: Vec<f32>,
    gaps: Vec<Gap>,
}

fn sound(host: &mut Host, input: &Input, start: i64, end: Option<i64>) -> Result<Sound> {
    let end = end.map(Timestamp::from_millis);
    let request = SoundRequest { track: None, start: Timestamp::from_millis(start), end };
    let mut sound = Sound { start: Timestamp(-1), samples: Vec::new(), gaps: Vec::new() };
    let mut watermark = Timestamp(i64::MIN);
    for event in host.sound(input, &request)? {
        match event? {
            SoundEvent::Samples { pts, samples } => {
                assert!(pts >= watermark);
                if sound.samples.is_empty() {
                    sound.start = pts;
                }
                sound.samples.extend(samples);
            }
            SoundEvent::Gap(gap) => sound.gaps.push(gap),
            SoundEvent::Watermark(at) => watermark = at,
            SoundEvent::Received(_) | SoundEvent::Notice(_) | SoundEvent::End(_) => {}
        }
    }
    Ok(sound)
}

/// Frequency by zero crossings.
fn hertz(samples: &[f32]) -> f64 {
    let crossings = samples.windows(2).filter(|pair| pair[0] < 0.0 && pair[1] >= 0.0).count();
    crossings as f64 * 16_000.0 / samples.len() as f64
}

#[test]
fn sound_of_every_rate_and_channel_count_is_the_same_tone() {
    let folder = tempfile::tempdir().unwrap();
    let mut host = host();
    for (name, options) in [
        ("a.wav", "-ar 48000 -ac 2"),
        ("b.wav", "-ar 8000 -ac 1 -c:a pcm_u8"),
        ("c.wav", "-ar 44100 -ac 6 -c:a pcm_f32le"),
        ("a.mp3", "-ar 44100 -ac 2"),
        ("a.m4a", "-ar 22050 -ac 1 -c:a aac"),
        ("a.opus", "-ar 48000 -ac 2 -c:a libopus"),
        ("a.flac", "-ar 96000 -ac 2"),
        ("a.mkv", "-ar 32000 -ac 1 -c:a ac3"),
        ("a.ts", "-ar 48000 -ac 2 -c:a mp2"),
    ] {
        ffmpeg(folder.path(), &format!("-f lavfi -i sine=f=440:d=3 {options} {name}"));
        let input = open(&folder.path().join(name));
        let whole = sound(&mut host, &input, 0, None).unwrap();
        let length = whole.samples.len() as f64 / 16_000.0;
        assert!((length - 3.0).abs() < 0.08, "{name}: {length} s");
        assert!(whole.start.0.abs() < 60_000 && whole.gaps.is_empty(), "{name}: {}", whole.start);
        let tone = hertz(&whole.samples[4_000..44_000]);
        assert!((tone - 440.0).abs() < 2.0, "{name}: {tone} Hz");
        let part = sound(&mut host, &input, 1_000, Some(2_000)).unwrap();
        assert!(part.samples.len().abs_diff(16_000) <= 1, "{name}: {}", part.samples.len());
        assert!(part.start.0.abs_diff(1_000_000) < 100, "{name}: {}", part.start);
    }
}

#[test]
fn a_pause_in_the_sound_and_a_late_start_are_gaps() {
    let folder = tempfile::tempdir().unwrap();
    numbered(folder.path(), "v.mkv", "25", 6.0, "-c:v libx264");
    ffmpeg(
        folder.path(),
        "-i v.mkv -f lavfi -i sine=f=440:d=6 -map 0:v -map 1:a -c:v copy -c:a pcm_s16le \
         -af aselect='between(t\\,1\\,2)+gt(t\\,4)' a.mkv",
    );
    let input = open(&folder.path().join("a.mkv"));
    let found = sound(&mut host(), &input, 0, None).unwrap();
    let gaps: Vec<(i64, i64)> = found
        .gaps
        .iter()
        .map(|gap| ((gap.span.start.0 + 50_000) / 100_000, (gap.span.end.0 + 50_000) / 100_000))
        .collect();
    assert_eq!(gaps, [(0, 10), (20, 40)]);
    assert!(found.samples.len().abs_diff(48_000) < 2_000, "{}", found.samples.len());
}

#[test]
fn a_film_without_sound_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let film = numbered(folder.path(), "a.mp4", "25", 1.0, "-c:v libx264");
    let error = sound(&mut host(), &open(&film), 0, None).err().unwrap();
    assert_eq!(error.kind(), Kind::NotFound);
}

fn cues(input: &Input, request: &CueRequest) -> Result<(Vec<Cue>, Vec<String>)> {
    let (mut cues, mut notices) = (Vec::new(), Vec::new());
    for event in host().cues(input, request)? {
        match event? {
            CueEvent::Cue(cue) => cues.push(cue),
            CueEvent::Notice(notice) => notices.push(notice),
            CueEvent::End(_) => {}
        }
    }
    Ok((cues, notices))
}

const SRT: &str = "1\n00:00:01,000 --> 00:00:02,500\n<i>Grüße</i>, friend\nsecond line\n\n\
                   2\n00:00:03,000 --> 00:00:04,000\n{\\an8}Top & tail\n\n";

fn described(cues: &[Cue]) -> Vec<(i64, i64, &str)> {
    cues.iter().map(|c| (c.span.start.0 / 1000, c.span.end.0 / 1000, c.text.as_str())).collect()
}

#[test]
fn embedded_text_tracks_are_read_with_their_languages() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("s.srt"), SRT).unwrap();
    numbered(folder.path(), "v.mkv", "25", 5.0, "-c:v libx264");
    for (name, codec) in [("a.mkv", "srt"), ("b.mkv", "ass"), ("a.mp4", "mov_text")] {
        ffmpeg(
            folder.path(),
            &format!(
                "-i v.mkv -i s.srt -i s.srt -map 0:v -map 1 -map 2 -c:v copy -c:s {codec} \
                 -metadata:s:s:0 language=eng -metadata:s:s:1 language=ger {name}"
            ),
        );
        let input = open(&folder.path().join(name));
        let info = host().probe(&input).unwrap();
        let languages: Vec<Option<&str>> =
            info.of_kind(TrackKind::Text).map(|track| track.language.as_deref()).collect();
        assert_eq!(languages, [Some("en"), Some("de")], "{name}");
        let (all, _) = cues(&input, &CueRequest::Embedded { track: None }).unwrap();
        assert_eq!(all.len(), 4, "{name}");
        let (german, _) = cues(&input, &CueRequest::Embedded { track: Some(2) }).unwrap();
        let expected = [(1000, 2500, "Grüße, friend\nsecond line"), (3000, 4000, "Top & tail")];
        assert_eq!(described(&german), expected, "{name}");
        assert_eq!(german[0].language.as_deref(), Some("de"));
        assert_eq!(german[0].track, "embedded:2");
    }
}

#[test]
fn subtitle_files_beside_a_film_are_read_in_any_encoding() {
    let folder = tempfile::tempdir().unwrap();
    let film = numbered(folder.path(), "film.mp4", "25", 1.0, "-c:v libx264");
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
    write("film.srt", SRT.as_bytes());
    write("film.de.srt", &SRT.chars().map(|c| c as u32 as u8).collect::<Vec<u8>>());
    let utf16 = SRT.encode_utf16().flat_map(u16::to_le_bytes);
    write("film.fr.srt", &[0xFF, 0xFE].into_iter().chain(utf16).collect::<Vec<u8>>());
    write(
        "film.pt-BR.vtt",
        "WEBVTT\n\n00:01.000 --> 00:02.500\n<v Ann>Grüße, friend\nsecond line\n\n\
         00:03.000 --> 00:04.000\nTop &amp; tail\n"
            .as_bytes(),
    );
    write(
        "film.it.ass",
        "[Script Info]\nScriptType: v4.00+\n\n[Events]\n\
         Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text\n\
         Dialogue: 0,0:00:01.00,0:00:02.50,Default,,0,0,0,,{\\b1}Grüße{\\b0}, friend\\Nsecond line\n\
         Dialogue: 0,0:00:03.00,0:00:04.00,Default,,0,0,0,,Top & tail\n"
            .as_bytes(),
    );
    let found = Sidecars::default().of(&film);
    assert_eq!(found.len(), 5);
    for sidecar in found {
        let name = sidecar.path.file_name().unwrap().to_str().unwrap().to_owned();
        let request = CueRequest::Sidecar {
            language: sidecar.language.clone(),
            track: format!("sidecar:{name}"),
        };
        let (cues, _) = cues(&open(&sidecar.path), &request).unwrap();
        let expected = [(1000, 2500, "Grüße, friend\nsecond line"), (3000, 4000, "Top & tail")];
        assert_eq!(described(&cues), expected, "{name}");
        assert_eq!(cues[0].language, sidecar.language);
        assert_eq!(cues[0].track, format!("sidecar:{name}"));
    }
}

#[test]
fn what_is_no_subtitle_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let film = numbered(folder.path(), "a.mp4", "25", 1.0, "-c:v libx264");
    std::fs::copy(&film, folder.path().join("film.srt")).unwrap();
    std::fs::write(folder.path().join("empty.srt"), "").unwrap();
    for name in ["film.srt", "empty.srt"] {
        let request = CueRequest::Sidecar { language: None, track: "x".into() };
        let error = cues(&open(&folder.path().join(name)), &request).err().unwrap();
        assert_eq!(error.kind(), Kind::Corrupt, "{error}");
    }
    let (none, _) = cues(&open(&film), &CueRequest::Embedded { track: None }).unwrap();
    assert!(none.is_empty());
}

#[test]
fn subtitles_that_are_pictures_are_noted_and_harmless() {
    let folder = tempfile::tempdir().unwrap();
    // ffmpeg makes no pictures of text; DVB's encoder takes those of another bitmap track only, so
    // the track is written as a Matroska VobSub one without packets.
    numbered(folder.path(), "v.mkv", "25", 2.0, "-c:v libx264");
    std::fs::write(folder.path().join("s.srt"), SRT).unwrap();
    ffmpeg(folder.path(), "-i v.mkv -i s.srt -map 0 -map 1 -c:v copy -c:s srt a.mkv");
    let path = folder.path().join("a.mkv");
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(11).position(|window| window == b"S_TEXT/UTF8").unwrap();
    bytes[at..at + 11].copy_from_slice(b"S_HDMV/PGS\0");
    std::fs::write(&path, bytes).unwrap();
    let (found, notices) = cues(&open(&path), &CueRequest::Embedded { track: None }).unwrap();
    assert!(found.is_empty());
    assert!(notices.iter().any(|notice| notice.contains("pictures")), "{notices:?}");
}

/// Serves `folder` by HTTP/1.0, without ranges.
fn serve(folder: &Path) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let folder = folder.to_owned();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            let length = stream.read(&mut request).unwrap_or(0);
            let text = String::from_utf8_lossy(&request[..length]).into_owned();
            let path = text.split(' ').nth(1).unwrap_or("/").trim_start_matches('/').to_owned();
            let reply = match std::fs::read(folder.join(path)) {
                Ok(body) => {
                    let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
                    [head.into_bytes(), body].concat()
                }
                Err(_) => b"HTTP/1.0 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec(),
            };
            let _ = stream.write_all(&reply);
        }
    });
    port
}

#[test]
fn an_address_is_read_and_its_credentials_are_never_shown() {
    let folder = tempfile::tempdir().unwrap();
    numbered(folder.path(), "a.mkv", "25", 2.0, "-c:v libx264");
    let port = serve(folder.path());
    let url = |name: &str| format!("http://me:secret@127.0.0.1:{port}/{name}");
    let mut host = host();
    let input = Input::open(&Location::Url(url("a.mkv"))).unwrap();
    assert_eq!(picture(&mut host, &input, &request(every(500))).unwrap().frames.len(), 4);
    let input = Input::open(&Location::Url(url("none.mkv"))).unwrap();
    let error = host.probe(&input).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound, "{error}");
    assert!(!error.to_string().contains("secret"), "{error}");
    // A playlist from the network may not reach files.
    let secret = folder.path().join("a.mkv");
    let list =
        format!("#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nfile://{}\n", secret.display());
    std::fs::write(folder.path().join("l.m3u8"), list + "#EXT-X-ENDLIST\n").unwrap();
    let input = Input::open(&Location::Url(url("l.m3u8"))).unwrap();
    assert!(host.probe(&input).is_err());
}
