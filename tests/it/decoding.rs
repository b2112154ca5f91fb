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
