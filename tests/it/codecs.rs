//! Live streams whose codec changes on the way.

use std::fs;
use std::path::Path;
use std::time::Instant;

use tempfile::TempDir;

use crate::cinelex::{command, finish};
use crate::live::{Watching, check, check_accounts, check_grid, told};
use crate::media::ffmpeg;
use crate::stopping::brisk_pipeline;
use crate::web::{Server, send};

const CHANGED: &str = "the codec or the tracks of the stream changed";
/// Parts of a broadcast of each codec, and how long each is.
const PARTS: usize = 3;
const PART_SECS: usize = 2;
const IN_LIST: usize = 3;

/// A film in parts, by a codec.
fn parts(folder: &Path, name: &str, codec: &str) {
    let secs = PARTS * PART_SECS;
    ffmpeg(
        folder,
        &format!(
            "-f lavfi -i testsrc2=s=160x96:r=25:d={secs} -c:v {codec} -preset ultrafast -g 25 -bf 0 \
             -pix_fmt yuv420p -f hls -hls_time {PART_SECS} -hls_list_size 0 \
             -hls_segment_filename {name}%d.ts {name}.m3u8"
        ),
    );
}

#[test]
fn a_broadcast_by_http_that_changes_its_codec_is_taken_as_it_comes() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("broadcasts.library");
    parts(folder.path(), "a", "libx264");
    parts(folder.path(), "b", "libx265 -x265-params log-level=error");
    let (path, began) = (folder.path().to_owned(), Instant::now());
    let server = Server::start(move |request, connection| {
        let name = request.path.trim_start_matches('/');
        if name == "live.m3u8" {
            let first = began.elapsed().as_secs() as usize / PART_SECS;
            let mut list = format!(
                "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:{PART_SECS}\n\
                 #EXT-X-MEDIA-SEQUENCE:{first}\n#EXT-X-DISCONTINUITY-SEQUENCE:{}\n",
                first.div_ceil(PARTS)
            );
            for n in first..first + IN_LIST {
                let codec = if (n / PARTS).is_multiple_of(2) { "a" } else { "b" };
                let change = if n % PARTS == 0 { "#EXT-X-DISCONTINUITY\n" } else { "" };
                list += &format!("{change}#EXTINF:{PART_SECS}.0,\n{codec}{}.ts\n", n % PARTS);
            }
            let head = "200 OK\r\nContent-Type: application/vnd.apple.mpegurl";
            send(connection, head, list.as_bytes());
        } else {
            let bytes = fs::read(path.join(name)).unwrap();
            let length = bytes.len();
            let head = format!("200 OK\r\nContent-Type: video/mp2t\r\nContent-Length: {length}");
            send(connection, &head, &bytes);
        }
    });
    let address = server.url("live.m3u8");
    let pipeline = brisk_pipeline(folder.path(), "0.25");
    let options = ["--pipeline", pipeline.to_str().unwrap(), "--as-live", &address];
    let mut watching = Watching::start(&library, &options);
    watching.until_stored(60);
    let end = watching.stop();
    let spans = check_grid(&library, &address);
    assert!(end["streams"][0]["sessions"].as_u64() > Some(1), "{end}");
    assert!(told(&spans, CHANGED) > 0, "{spans:?}");
    assert_eq!(told(&spans, "the sender ended it"), 0, "{spans:?}");
    check(&library).exits(0);
}

#[test]
fn a_file_that_changes_its_codec_is_played_up_to_there_and_that_is_said() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("films.library");
    parts(folder.path(), "a", "libx264");
    parts(folder.path(), "b", "libx265 -x265-params log-level=error");
    let join = |name: &str, parts: &[&str]| {
        let part = |part: &&str| fs::read(folder.path().join(part).with_extension("ts")).unwrap();
        let film = folder.path().join(name);
        fs::write(&film, parts.iter().map(part).collect::<Vec<_>>().concat()).unwrap();
    };
    join("one.ts", &["a0", "a1", "a2"]);
    join("both.ts", &["a0", "a1", "a2", "b0", "b1", "b2"]);
    let play = |name: &str, code: i32| {
        let film = folder.path().join(name);
        let mut command = command(["index", "--json", "--as-live", "--library"]);
        let ran = finish(command.arg(&library).arg(&film)).exits(code);
        let stream = ran.line("live_run")["streams"][0].clone();
        check_accounts(&stream);
        assert_eq!(stream["state"], "ended", "{stream}");
        (stream, ran.err)
    };
    let (stream, said) = play("one.ts", 0);
    assert!(stream["reason"].is_null() && !said.contains("change"), "{stream}: {said}");
    assert_eq!(stream["received"], 150, "{stream}");
    // Its index lies behind its frames, so that what is taken last is not the end.
    ffmpeg(folder.path(), "-i one.ts -c copy one.mp4");
    let (stream, said) = play("one.mp4", 0);
    assert!(stream["reason"].is_null() && !said.contains("change"), "{stream}: {said}");
    let (stream, said) = play("both.ts", 0);
    assert_eq!((&stream["received"], &stream["sessions"]), (&150.into(), &1.into()), "{stream}");
    let reason = stream["reason"].as_str().unwrap();
    assert!(reason.contains("what follows is not played") && said.contains(reason), "{said}");
    // Not tried for ever.
    fs::write(folder.path().join("none.mp4"), vec![b'x'; 100_000]).unwrap();
    let (stream, said) = play("none.mp4", 1);
    assert_eq!((&stream["received"], &stream["sessions"]), (&0.into(), &0.into()), "{stream}");
    let reason = stream["reason"].as_str().unwrap();
    assert!(reason.contains("can't be read") && said.contains(reason), "{said}");
}
