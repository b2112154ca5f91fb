//! Damaged, hostile and endless sources: each costs itself only.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use cinelex::error::Kind;
use cinelex::source::{Host, Input, Limits, Location, PictureEvent};
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

use crate::decoding::{every, host, limits, open, picture, read, request};
use crate::media::{ffmpeg, numbered};

fn kill(id: u32) {
    let status = std::process::Command::new("kill").args(["-9", &id.to_string()]).status();
    assert!(status.unwrap().success());
}

#[test]
fn a_truncated_file_gives_its_undamaged_part() {
    let folder = tempfile::tempdir().unwrap();
    for (name, options) in [
        ("a.ts", "-c:v libx264 -g 25"),
        ("a.mkv", "-c:v libx264 -g 25"),
        ("a.mp4", "-c:v libx264 -g 25 -movflags +faststart"),
    ] {
        let film = numbered(folder.path(), name, "25", 8.0, options);
        let whole = std::fs::read(&film).unwrap();
        std::fs::write(&film, &whole[..whole.len() / 2]).unwrap();
        let (_, picture) = read(&film, 120);
        let numbers = picture.numbers();
        assert!((10..50).contains(&numbers.len()), "{name}: {}", numbers.len());
        assert!(numbers.iter().all(|(at, number)| *at == i64::from(*number) * 40), "{name}");
        if name != "a.ts" {
            assert_eq!(picture.gaps.len(), 1, "{name}: {:?}", picture.gaps);
        }
    }
}

#[test]
fn flipped_bits_and_lying_sizes_never_stop_the_host() {
    let folder = tempfile::tempdir().unwrap();
    let (mut host, mut bad) = (host(), 0);
    let id = host.process_id();
    for (name, options) in [
        ("a.mp4", "-c:v libx264 -g 25"),
        ("a.mkv", "-c:v libx264 -g 25"),
        ("a.avi", "-c:v mpeg4 -g 25"),
        ("a.ts", "-c:v libx264 -g 25"),
        ("a.gif", ""),
    ] {
        let film = numbered(folder.path(), name, "25", 1.0, options);
        let whole = std::fs::read(&film).unwrap();
        let mut state = 0x2545_F491_4F6C_DD1D_u64;
        let mut random = |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % below as u64) as usize
        };
        for round in 0..24 {
            let mut bytes = whole.clone();
            for _ in 0..=round {
                let at = random(bytes.len());
                bytes[at] ^= 1 << random(8);
                // Sizes that lie: a whole word of ones, often in the header.
                let at = random(if round % 2 == 0 { 600 } else { bytes.len() } - 4);
                if round % 3 == 0 {
                    bytes[at..at + 4].copy_from_slice(&[0x7F, 0xFF, 0xFF, 0xFF]);
                }
            }
            std::fs::write(&film, &bytes).unwrap();
            let input = open(&film);
            let probed = host.probe(&input).map(|_| ());
            let read = probed.and_then(|()| picture(&mut host, &input, &request(every(100))));
            bad += u32::from(read.is_err_and(|error| {
                assert!(error.to_string().contains(name), "{error}");
                true
            }));
        }
    }
    assert!(bad > 0, "no damage was noticed");
    assert!(host.process_id() == id || bad > 0);
}

#[test]
fn what_is_no_media_is_refused_with_its_cause() {
    let folder = tempfile::tempdir().unwrap();
    let mut host = host();
    let mut refused = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        host.probe(&open(&path)).unwrap_err()
    };
    let empty = refused("empty.mp4", b"");
    assert!(empty.kind() == Kind::Corrupt && empty.to_string().contains("empty"), "{empty}");
    for (name, bytes) in [
        ("zeros.mp4", vec![0; 100_000]),
        ("text.mp4", b"This is no film.\n".repeat(100)),
        (
            "noise.mkv",
            (0..100_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect(),
        ),
    ] {
        let error = refused(name, &bytes);
        assert!(matches!(error.kind(), Kind::Corrupt | Kind::Unsupported), "{name}: {error}");
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn what_cannot_be_opened_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let open = |path: &Path| Input::open(&Location::File(path.to_owned())).unwrap_err();
    assert_eq!(open(&folder.path().join("none.mp4")).kind(), Kind::NotFound);
    assert_eq!(open(folder.path()).kind(), Kind::InvalidInput);
    let pipe = folder.path().join("pipe.mp4");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    assert_eq!(open(&pipe).kind(), Kind::InvalidInput);
    let live = Input::open(&Location::Url("rtsp://me:secret@camera/1".into())).unwrap_err();
    assert_eq!(live.kind(), Kind::Unsupported);
    assert!(!live.to_string().contains("secret"));
}

#[test]
fn names_of_any_bytes_are_read() {
    use std::os::unix::ffi::OsStrExt;
    let folder = tempfile::tempdir().unwrap();
    let film = numbered(folder.path(), "a.mp4", "25", 1.0, "-c:v libx264");
    let odd = folder.path().join(std::ffi::OsStr::from_bytes(b"a \xff\n%d [x] -i.mp4"));
    std::fs::rename(film, &odd).unwrap();
    assert_eq!(read(&odd, 200).1.frames.len(), 5);
}

#[test]
fn a_playlist_cannot_open_other_files() {
    let folder = tempfile::tempdir().unwrap();
    let secret = numbered(folder.path(), "secret.ts", "25", 2.0, "-c:v libx264");
    let secret = secret.display();
    let mut host = host();
    for (name, text) in [
        ("a.m3u8", format!("#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{secret}\n#EXT-X-ENDLIST\n")),
        ("b.m3u8", format!("#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nfile://{secret}\n#EXT-X-ENDLIST\n")),
        ("c.ffconcat", format!("ffconcat version 1.0\nfile '{secret}'\n")),
        ("d.sdp", "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n".to_owned()),
        ("e.mpd", format!("<?xml version=\"1.0\"?><MPD xmlns=\"urn:mpeg:dash:schema:mpd:2011\" type=\"static\" mediaPresentationDuration=\"PT2S\" profiles=\"urn:mpeg:dash:profile:isoff-live:2011\"><Period><AdaptationSet mimeType=\"video/mp2t\"><Representation id=\"1\" bandwidth=\"1\"><BaseURL>file://{secret}</BaseURL></Representation></AdaptationSet></Period></MPD>")),
    ] {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        let input = open(&path);
        let read = host.probe(&input).and_then(|_| picture(&mut host, &input, &request(every(200))));
        let error = read.err().unwrap_or_else(|| panic!("{name} was read"));
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn a_host_that_dies_costs_its_source_only() {
    let folder = tempfile::tempdir().unwrap();
    let film = numbered(folder.path(), "a.mkv", "25", 30.0, "-c:v libx264");
    let (mut host, input) = (host(), open(&film));
    let id = host.process_id().unwrap();
    let mut stream = host.picture(&input, &request(every(40))).unwrap();
    assert!(matches!(stream.next(), Some(Ok(_))));
    kill(id);
    let error = stream.find_map(Result::err).expect("the death shows");
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(error.to_string().contains("killed"), "{error}");
    assert!(stream.next().is_none());
    drop(stream);
    assert_eq!(host.probe(&input).unwrap().tracks.len(), 1);
    assert_ne!(host.process_id(), Some(id));
    // One that died between two requests is not noticed at all.
    let id = host.process_id().unwrap();
    kill(id);
    // Until it is dead; its parent may still ask how it ended.
    let id = WaitId::Pid(Pid::from_raw(id as i32).unwrap());
    waitid(id, WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).unwrap();
    host.probe(&input).unwrap();
}

#[test]
fn a_request_left_in_the_middle_leaves_the_host_usable() {
    let folder = tempfile::tempdir().unwrap();
    let film = numbered(folder.path(), "a.mkv", "25", 30.0, "-c:v libx264");
    let (mut host, input) = (host(), open(&film));
    for _ in 0..3 {
        let mut stream = host.picture(&input, &request(every(40))).unwrap();
        assert!(stream.any(|event| matches!(event, Ok(PictureEvent::Frame(_)))));
    }
    assert_eq!(picture(&mut host, &input, &request(every(1000))).unwrap().frames.len(), 30);
}

#[test]
fn a_source_that_never_gives_anything_is_given_up() {
    let (reader, writer) = std::io::pipe().unwrap();
    let input = Input::from_file("endless", File::from(OwnedFd::from(reader)), "endless.ts");
    let limits = Limits { silence: Duration::from_secs(1), ..limits() };
    let mut host = Host::start(&limits).unwrap();
    let id = host.process_id().unwrap();
    let began = Instant::now();
    let error = host.probe(&input).unwrap_err();
    assert_eq!(error.kind(), Kind::Exhausted);
    assert!(error.to_string().contains("no progress for 1 s"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(20));
    assert!(!Path::new(&format!("/proc/{id}")).exists(), "the host is still there");
    drop(writer);
}

#[test]
fn a_request_can_be_stopped() {
    let (reader, _writer) = std::io::pipe().unwrap();
    let input = Input::from_file("endless", File::from(OwnedFd::from(reader)), "endless.ts");
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let mut host = Host::start_until(&limits(), std::sync::Arc::clone(&stop)).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(300));
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        assert_eq!(host.probe(&input).unwrap_err().kind(), Kind::Cancelled);
    });
}

#[test]
fn a_picture_too_large_for_the_memory_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    ffmpeg(folder.path(), "-f lavfi -i color=c=gray:s=12000x12000 -frames:v 1 -c:v png bomb.png");
    let small = Limits { memory_bytes: 160 << 20, ..limits() };
    let mut host = Host::start(&small).unwrap();
    let input = open(&folder.path().join("bomb.png"));
    let error = picture(&mut host, &input, &request(every(500))).err().expect("too large");
    assert_eq!(error.kind(), Kind::Exhausted, "{error}");
    let film = numbered(folder.path(), "a.mp4", "25", 1.0, "-c:v libx264");
    assert!(host.probe(&open(&film)).is_ok());
}

#[test]
fn a_host_ends_with_its_parent() {
    let host = host();
    let id = host.process_id().unwrap();
    drop(host);
    assert!(!Path::new(&format!("/proc/{id}")).exists());
}

#[test]
fn a_file_that_grows_is_read_as_far_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let film = numbered(folder.path(), "a.ts", "25", 8.0, "-c:v libx264 -g 25");
    let whole = std::fs::read(&film).unwrap();
    let growing = folder.path().join("growing.ts");
    std::fs::write(&growing, &whole[..whole.len() / 2]).unwrap();
    let (mut host, input) = (host(), open(&growing));
    let half = picture(&mut host, &input, &request(every(200))).unwrap();
    std::fs::write(&growing, &whole).unwrap();
    let all = picture(&mut host, &input, &request(every(200))).unwrap();
    assert!(half.frames.len() < 30 && all.frames.len() == 40);
    assert!(half.numbers().iter().zip(all.numbers()).all(|(half, all)| *half == all));
}
