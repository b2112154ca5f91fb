//! What is left out of decoding changes nothing of what is left.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use cinelex::source::{PictureRequest, Rendition, Summary};

use crate::decoding::{SMALL, every, host, open, picture, request};
use crate::media::ffmpeg;

/// Enough detail, motion and cuts that every frame refers to others and a wrong reference shows.
const SCENES: &str = "-f lavfi -i mandelbrot=s=320x192:r=25:maxiter=300 \
     -f lavfi -i testsrc2=s=320x192:r=25 -filter_complex \
     [0]trim=end_frame=90,noise=alls=12:allf=t[a];[1]trim=end_frame=110,noise=alls=12:allf=t[b];\
     [a][b]concat=n=2,format=yuv420p";

/// Reads `film` sparsely and in full: each frame that the sparse request gives must be the one of
/// the same time that a full decode gives. Returns what the sparse request went through.
fn assert_exact(film: &Path, millis: i64) -> Summary {
    let (mut host, input) = (host(), open(film));
    // Large enough that a wrong block shows.
    let rendition = Rendition { width_px: 320, height_px: 192, ..SMALL };
    let request = |millis| PictureRequest { rendition, ..request(every(millis)) };
    let full = picture(&mut host, &input, &request(40)).unwrap();
    assert_eq!(full.summary.damaged_frames, 0, "{}", film.display());
    let full: HashMap<i64, _> = full.frames.iter().map(|frame| (frame.pts.0, frame)).collect();
    let sparse = picture(&mut host, &input, &request(millis)).unwrap();
    let name = film.display();
    assert!(sparse.gaps.is_empty(), "{name}: {:?}", sparse.gaps);
    for frame in &sparse.frames {
        let same = full.get(&frame.pts.0).unwrap_or_else(|| panic!("{name}: no {}", frame.pts));
        assert!(same.rgb == frame.rgb, "{name}: other pixels at {}", frame.pts);
        // A keyframe soon after, or a frame that is a few frames old.
        let late = frame.target.0 - frame.pts.0;
        assert!(-millis * 500 < late && late <= 9 * 40_000, "{name}: {late} at {}", frame.target);
    }
    let last = sparse.frames.last().unwrap().target.0;
    assert_eq!(sparse.frames.len() as i64, last / (millis * 1000) + 1, "{name}");
    sparse.summary
}

/// A folder with the scenes, without loss, for encoding them in many ways.
fn scenes() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    ffmpeg(folder.path(), &format!("{SCENES} -c:v ffv1 scenes.mkv"));
    folder
}

fn encode(folder: &Path, name: &str, options: &str) -> PathBuf {
    ffmpeg(folder, &format!("-i scenes.mkv {options} {name}"));
    folder.join(name)
}

#[test]
fn frames_left_out_of_h264_change_no_other() {
    let folder = scenes();
    for (name, options, most) in [
        // (the most frames that may be decoded of 200)
        ("ultrafast.mp4", "-preset ultrafast", 200),
        ("superfast.mp4", "-preset superfast", 110),
        ("veryfast.mp4", "-preset veryfast", 110),
        ("fast.mkv", "-preset fast", 160),
        ("medium.mp4", "-preset medium", 160),
        ("slow.ts", "-preset slow", 160),
        ("none.mp4", "-x264-params b-pyramid=none:bframes=4:ref=4", 130),
        ("strict.mkv", "-x264-params b-pyramid=strict:bframes=5:b-adapt=0:ref=3", 140),
        ("deep.mp4", "-x264-params bframes=8:b-adapt=0:ref=1:weightp=0", 120),
        ("five.flv", "-x264-params ref=5:bframes=0:mixed-refs=1", 200),
        ("open.mp4", "-x264-params open-gop=1:keyint=25:bframes=3:b-adapt=0:ref=1", 200),
        ("mbaff.mp4", "-flags +ildct+ilme -x264-params tff=1:ref=1", 130),
        ("slices.ts", "-x264-params slices=4:ref=1:bframes=3", 130),
        ("refresh.mp4", "-x264-params intra-refresh=1:keyint=20", 200),
        ("zero.mp4", "-tune zerolatency", 200),
        ("weighted.mp4", "-x264-params weightp=2:weightb=1:ref=1:bframes=3", 130),
        ("short.mp4", "-g 12", 110),
        ("long.mp4", "-x264-params keyint=1000:scenecut=0:ref=1:b-adapt=0", 130),
        ("baseline.mp4", "-profile:v baseline -x264-params ref=3", 200),
        ("high422.mkv", "-pix_fmt yuv422p10le -preset veryfast", 120),
        ("raw.h264", "-preset veryfast", 200),
    ] {
        let film = encode(folder.path(), name, &format!("-c:v libx264 {options}"));
        for millis in [200, 760] {
            let summary = assert_exact(&film, millis);
            eprintln!("{name} {millis}: {summary:?}");
            assert!(summary.decoded <= most, "{name}: {summary:?}");
        }
    }
}

#[test]
fn frames_left_out_of_other_codecs_change_no_other() {
    let folder = scenes();
    for (name, options, most) in [
        ("open.mp4", "-c:v libx265 -x265-params log-level=none:keyint=25", 160),
        ("closed.ts", "-c:v libx265 -x265-params log-level=none:keyint=25:open-gop=0", 160),
        (
            "ten.mkv",
            "-c:v libx265 -pix_fmt yuv420p10le -x265-params log-level=none:bframes=8:b-adapt=0",
            160,
        ),
        ("layers.mp4", "-c:v libx265 -x265-params log-level=none:temporal-layers=1:keyint=50", 180),
        ("a.webm", "-c:v libvpx-vp9 -g 25 -cpu-used 8 -deadline realtime -b:v 1M", 190),
        ("b.webm", "-c:v libvpx -g 25 -cpu-used 8 -deadline realtime -b:v 1M", 190),
        ("c.mp4", "-c:v mpeg4 -q:v 3 -g 12 -bf 2", 120),
        ("d.ts", "-c:v mpeg2video -q:v 3 -g 12 -bf 2", 120),
    ] {
        let film = encode(folder.path(), name, options);
        for millis in [200, 760] {
            let summary = assert_exact(&film, millis);
            eprintln!("{name} {millis}: {summary:?}");
            assert!(summary.decoded <= most, "{name}: {summary:?}");
        }
    }
}
