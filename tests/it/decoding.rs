//! The decoder host on real files, whole, odd and broken.

use std::path::{Path, PathBuf};

use cinelex::error::Result;
use cinelex::media::{Frame, Gap};
use cinelex::source::{
    Fit, Host, Input, Limits, Location, MediaInfo, PictureEvent, PictureRequest, Rendition,
    Summary, Targets,
};
use cinelex::time::{Micros, Timestamp};

use crate::media::{number, numbered};

const SMALL: Rendition = Rendition { width_px: 64, height_px: 48, fit: Fit::Squash };

fn limits() -> Limits {
    let executable = Some(PathBuf::from(env!("CARGO_BIN_EXE_cinelex")));
    Limits { executable, ..Limits::default() }
}

fn host() -> Host {
    Host::start(&limits()).unwrap()
}

fn open(path: &Path) -> Input {
    Input::open(&Location::File(path.to_owned())).unwrap()
}

fn every(millis: i64) -> Targets {
    Targets::every(Micros::from_millis(millis), Micros::ZERO)
}

fn request(targets: Targets) -> PictureRequest {
    PictureRequest { track: None, rendition: SMALL, targets, threads: 1 }
}

#[derive(Default)]
struct Picture {
    frames: Vec<Frame>,
    gaps: Vec<Gap>,
    notices: Vec<String>,
    summary: Summary,
}

impl Picture {
    /// Target in milliseconds and the number that the frame shows.
    fn numbers(&self) -> Vec<(i64, u32)> {
        self.frames
            .iter()
            .map(|frame| {
                let (width, height) = (frame.width_px as usize, frame.height_px as usize);
                (frame.target.0 / 1000, number(&frame.rgb, width, height))
            })
            .collect()
    }
}

fn picture(host: &mut Host, input: &Input, request: &PictureRequest) -> Result<Picture> {
    let mut picture = Picture::default();
    let mut watermark = Timestamp(i64::MIN);
    let mut is_over = false;
    for event in host.picture(input, request)? {
        assert!(!is_over, "something follows the end");
        match event? {
            PictureEvent::Frame(frame) => {
                assert!(frame.target >= watermark && frame.pts <= frame.target.max(frame.pts));
                picture.frames.push(frame);
            }
            PictureEvent::Gap(gap) => {
                assert!(gap.span.end > watermark);
                picture.gaps.push(gap);
            }
            PictureEvent::Watermark(at) => {
                assert!(at >= watermark, "a watermark went back");
                watermark = at;
            }
            PictureEvent::Notice(notice) => picture.notices.push(notice),
            PictureEvent::End(summary) => {
                picture.summary = summary;
                is_over = true;
            }
        }
    }
    assert!(is_over);
    Ok(picture)
}

/// Probes a file and reads its picture every `millis`.
fn read(path: &Path, millis: i64) -> (MediaInfo, Picture) {
    let (mut host, input) = (host(), open(path));
    let info = host.probe(&input).unwrap();
    let picture = picture(&mut host, &input, &request(every(millis))).unwrap();
    (info, picture)
}

#[test]
fn the_frame_on_display_at_each_target_is_given() {
    let folder = tempfile::tempdir().unwrap();
    let film = numbered(folder.path(), "a.mp4", "25", 4.0, "-c:v libx264 -g 25");
    let (info, picture) = read(&film, 70);
    let expected: Vec<(i64, u32)> = (0..)
        .map(|k| k * 70)
        .take_while(|at| *at < 4000)
        .map(|at| (at, (at / 40) as u32))
        .collect();
    assert_eq!(picture.numbers(), expected);
    assert!(picture.gaps.is_empty());
    assert_eq!(info.duration, Some(Micros(4_000_000)));
    assert_eq!(picture.summary.decoded, 100);
    assert_eq!(picture.summary.end, Some(Timestamp(4_000_000)));
}

/// Reads the same targets in one request and in parts of `part`; both must give the same.
fn assert_parts_equal_whole(path: &Path, targets: Targets, part: u64) -> Picture {
    let (mut host, input) = (host(), open(path));
    let whole = picture(&mut host, &input, &request(targets)).unwrap();
    let mut parts: Vec<Frame> = Vec::new();
    let last = whole.frames.last().expect("a frame").target;
    for first in (0..).map(|n| n * part).take_while(|first| targets.at(*first) <= last) {
        let request = request(targets.part(first, Some(part)));
        parts.extend(picture(&mut host, &input, &request).unwrap().frames);
    }
    let name = path.display();
    let described = |frames: &[Frame]| {
        frames
            .iter()
            .map(|f| (f.target.0, f.pts.0, f.raw_pts, f.change.at.0, f.change.strength.to_bits()))
            .collect::<Vec<_>>()
    };
    assert_eq!(described(&whole.frames), described(&parts), "{name}");
    for (one, other) in whole.frames.iter().zip(&parts) {
        assert!(one.rgb == other.rgb, "{name}: other pixels at {}", one.target);
    }
    whole
}

#[test]
fn every_container_gives_the_right_frames_and_the_same_in_parts() {
    let folder = tempfile::tempdir().unwrap();
    for (name, options) in [
        ("a.mp4", "-c:v libx264 -g 12"),
        ("a.mov", "-c:v libx264 -g 12"),
        ("a.mkv", "-c:v libx264 -g 12"),
        ("a.ts", "-c:v libx264 -g 12"),
        ("a.flv", "-c:v libx264 -g 12"),
        ("a.h264", "-c:v libx264 -g 12"),
        ("a.webm", "-c:v libvpx-vp9 -g 12 -cpu-used 8 -deadline realtime -b:v 1M"),
        ("b.webm", "-c:v libvpx -g 12 -cpu-used 8 -deadline realtime -b:v 1M"),
        ("a.avi", "-c:v mpeg4 -q:v 3 -g 12 -bf 2"),
        ("b.avi", "-c:v mjpeg -q:v 3"),
        ("a.mpg", "-c:v mpeg2video -q:v 3 -g 12 -bf 2"),
        ("b.ts", "-c:v mpeg2video -q:v 3 -g 12 -bf 2"),
        ("a.ogv", "-c:v libtheora -q:v 9 -g 12"),
        ("a.gif", ""),
        ("a.wmv", "-c:v wmv2 -q:v 3 -g 12"),
        ("a.y4m", ""),
    ] {
        let film = numbered(folder.path(), name, "25", 3.0, options);
        eprintln!("{name}");
        let picture = assert_parts_equal_whole(&film, every(70), 9);
        let expected: Vec<(i64, u32)> = (0..)
            .map(|k| k * 70)
            .take_while(|at| *at < 3000)
            .map(|at| (at, (at / 40) as u32))
            .collect();
        assert_eq!(picture.numbers(), expected, "{name}");
        assert!(picture.gaps.is_empty(), "{name}: {:?}", picture.gaps);
    }
}

#[test]
fn every_gop_structure_gives_the_same_in_parts() {
    let folder = tempfile::tempdir().unwrap();
    for (name, options) in [
        ("open.mp4", "-c:v libx264 -x264-params open-gop=1:keyint=12:bframes=3:b-adapt=0"),
        ("deep.mkv", "-c:v libx264 -x264-params keyint=40:bframes=8:b-adapt=0:b-pyramid=normal"),
        ("refresh.mp4", "-c:v libx264 -x264-params intra-refresh=1:keyint=20"),
        ("zero.mp4", "-c:v libx264 -tune zerolatency -g 30"),
        ("long.mp4", "-c:v libx264 -g 1000"),
        ("intra.mov", "-c:v libx264 -g 1"),
        ("hevc.mp4", "-c:v libx265 -x265-params log-level=none:keyint=12:open-gop=1:bframes=4"),
        ("ten.mkv", "-c:v libx265 -pix_fmt yuv420p10le -x265-params log-level=none:keyint=20"),
        ("closed.ts", "-c:v libx265 -x265-params log-level=none:keyint=12:open-gop=0"),
        ("mpeg2.mkv", "-c:v mpeg2video -q:v 3 -g 12 -bf 2"),
        ("mpeg4.mp4", "-c:v mpeg4 -q:v 3 -g 12 -bf 2"),
        ("av1.mkv", "-c:v libaom-av1 -cpu-used 8 -usage realtime -g 20"),
    ] {
        let film = numbered(folder.path(), name, "25", 3.0, options);
        for (millis, part) in [(40, 7), (400, 2)] {
            let picture = assert_parts_equal_whole(&film, every(millis), part);
            assert_eq!(picture.frames.len() as i64, (3000 + millis - 1) / millis, "{name}");
            assert!(picture.gaps.is_empty(), "{name}: {:?}", picture.gaps);
        }
    }
}
