//! The decoder host on real files, whole, odd and broken.

use std::path::{Path, PathBuf};

use cinelex::error::{Kind, Result};
use cinelex::media::{Frame, Gap};
use cinelex::source::{
    Fit, Host, Input, Limits, Location, MediaInfo, PictureEvent, PictureRequest, Rendition,
    Summary, Targets,
};
use cinelex::time::{Micros, Timestamp};

use crate::media::{ffmpeg, number, numbered, numbered_sized};

pub const SMALL: Rendition = Rendition { width_px: 64, height_px: 48, fit: Fit::Squash };

pub fn limits() -> Limits {
    let executable = Some(PathBuf::from(env!("CARGO_BIN_EXE_cinelex")));
    Limits { executable, ..Limits::default() }
}

pub fn host() -> Host {
    Host::start(&limits()).unwrap()
}

pub fn open(path: &Path) -> Input {
    Input::open(&Location::File(path.to_owned())).unwrap()
}

pub fn every(millis: i64) -> Targets {
    Targets::every(Micros::from_millis(millis), Micros::ZERO)
}

pub fn request(targets: Targets) -> PictureRequest {
    PictureRequest { track: None, rendition: SMALL, targets, threads: 1 }
}

#[derive(Default)]
pub struct Picture {
    pub frames: Vec<Frame>,
    pub gaps: Vec<Gap>,
    pub notices: Vec<String>,
    pub summary: Summary,
}

impl Picture {
    /// Target in milliseconds and the number that the frame shows.
    pub fn numbers(&self) -> Vec<(i64, u32)> {
        self.frames
            .iter()
            .map(|frame| {
                let (width, height) = (frame.width_px as usize, frame.height_px as usize);
                (frame.target.0 / 1000, number(&frame.rgb, width, height))
            })
            .collect()
    }
}

pub fn picture(host: &mut Host, input: &Input, request: &PictureRequest) -> Result<Picture> {
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
            PictureEvent::Recorded(_)
            | PictureEvent::UnrecordedSound(_)
            | PictureEvent::Received(_) => panic!("a file is not live"),
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
pub fn read(path: &Path, millis: i64) -> (MediaInfo, Picture) {
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

/// Colours at the centres of a 3 x 3 grid over the picture, row by row, rounded to 0 or 1.
fn grid(frame: &Frame) -> String {
    let (width, height) = (frame.width_px as usize, frame.height_px as usize);
    let mut text = String::new();
    for y in [1, 3, 5].map(|y| y * height / 6) {
        for x in [1, 3, 5].map(|x| x * width / 6) {
            let at = (y * width + x) * 3;
            let [red, green, blue] = [0, 1, 2].map(|c| frame.rgb[at + c] > 127);
            text.push(match (red, green, blue) {
                (false, false, false) => '.',
                (true, true, true) => 'W',
                (true, false, false) => 'R',
                (false, true, false) => 'G',
                (false, false, true) => 'B',
                _ => '?',
            });
        }
    }
    text
}

/// A film with a red top left, a green top right and a blue bottom left corner, else white.
fn corners(folder: &Path, name: &str, size: &str, options: &str) -> PathBuf {
    ffmpeg(
        folder,
        &format!(
            "-f lavfi -i color=c=white:s={size}:r=25:d=1,\
             drawbox=x=0:y=0:w=iw/3:h=ih/3:c=red:t=fill,\
             drawbox=x=iw*2/3:y=0:w=iw/3:h=ih/3:c=lime:t=fill,\
             drawbox=x=0:y=ih*2/3:w=iw/3:h=ih/3:c=blue:t=fill {options} {name}"
        ),
    );
    folder.join(name)
}

fn first_frame(path: &Path, rendition: Rendition) -> Frame {
    let (mut host, input) = (host(), open(path));
    let request = PictureRequest { rendition, ..request(every(500)) };
    picture(&mut host, &input, &request).unwrap().frames.swap_remove(0)
}

const RGB: &str = "-c:v libx264 -pix_fmt yuv420p -crf 5";

#[test]
fn a_picture_is_turned_as_its_container_says() {
    let folder = tempfile::tempdir().unwrap();
    corners(folder.path(), "flat.mp4", "192x96", RGB);
    for (clockwise, expected) in
        [(0, "RWGWWWBWW"), (270, "GWWWWWRWB"), (180, "WWBWWWGWR"), (90, "BWRWWWWWG")]
    {
        let name = format!("{clockwise}.mp4");
        ffmpeg(
            folder.path(),
            // FFmpeg 5 writes this as a turn to the left.
            &format!("-i flat.mp4 -c copy -metadata:s:v rotate={} {name}", 360 - clockwise),
        );
        let path = folder.path().join(&name);
        let (info, _) = read(&path, 500);
        assert_eq!(info.tracks[0].rotation_degrees, clockwise, "{name}");
        let squash = Rendition { width_px: 60, height_px: 90, fit: Fit::Squash };
        assert_eq!(grid(&first_frame(&path, squash)), expected, "{name}");
    }
}

#[test]
fn a_still_image_is_turned_by_its_exif_orientation() {
    let folder = tempfile::tempdir().unwrap();
    let image = corners(folder.path(), "a.jpg", "192x96", "-frames:v 1 -q:v 2 -pix_fmt yuvj444p");
    // An Exif segment that holds nothing but Orientation = 6 (turn clockwise).
    let exif: &[u8] =
        b"\xff\xe1\x00\x22Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
    let jpeg = std::fs::read(&image).unwrap();
    std::fs::write(&image, [&jpeg[..2], exif, &jpeg[2..]].concat()).unwrap();
    let squash = Rendition { width_px: 60, height_px: 90, fit: Fit::Squash };
    assert_eq!(grid(&first_frame(&image, squash)), "BWRWWWWWG");
    let (info, _) = read(&image, 500);
    assert!(info.is_still);
}

#[test]
fn the_fit_respects_the_sample_aspect_ratio() {
    let folder = tempfile::tempdir().unwrap();
    // 96 x 96 samples of 2:1 are a picture of 2:1.
    let film = corners(folder.path(), "a.mkv", "96x96", &format!("-vf setsar=2/1 {RGB}"));
    let rendition = |width_px, height_px, fit| Rendition { width_px, height_px, fit };
    assert_eq!(grid(&first_frame(&film, rendition(60, 60, Fit::Squash))), "RWGWWWBWW");
    // Of the 2:1 picture the middle square is left: half of each corner's box is outside.
    let cropped = first_frame(&film, rendition(60, 60, Fit::Crop));
    let pixel = |frame: &Frame, x: usize, y: usize| {
        let at = (y * frame.width_px as usize + x) * 3;
        (frame.rgb[at] > 127, frame.rgb[at + 1] > 127, frame.rgb[at + 2] > 127)
    };
    let (red, white, black) = ((true, false, false), (true, true, true), (false, false, false));
    assert_eq!(pixel(&cropped, 4, 4), red);
    assert_eq!(pixel(&cropped, 13, 4), white);
    // 60 wide it is 30 high, with 15 black lines above and below.
    let padded = first_frame(&film, rendition(60, 60, Fit::Pad));
    assert_eq!([10, 20, 30, 50].map(|y| pixel(&padded, 30, y)), [black, white, white, black]);
    assert_eq!(pixel(&padded, 4, 17), red);
}

#[test]
fn colours_are_right_for_every_matrix_range_and_pixel_format() {
    let folder = tempfile::tempdir().unwrap();
    for (name, options) in [
        (
            "709.mp4",
            "-vf scale=out_color_matrix=bt709 -colorspace bt709 -c:v libx264 -pix_fmt yuv420p",
        ),
        (
            "601.mp4",
            "-vf scale=out_color_matrix=bt601 -colorspace smpte170m -c:v libx264 -pix_fmt yuv420p",
        ),
        (
            "full.mp4",
            "-vf scale=out_color_matrix=bt709:out_range=full -colorspace bt709 -color_range pc -c:v libx264 -pix_fmt yuv420p",
        ),
        (
            "ten.mp4",
            "-vf scale=out_color_matrix=bt709 -colorspace bt709 -c:v libx264 -pix_fmt yuv420p10le",
        ),
        (
            "422.mkv",
            "-vf scale=out_color_matrix=bt709 -colorspace bt709 -c:v libx264 -pix_fmt yuv422p",
        ),
        ("rgb.mkv", "-c:v ffv1 -pix_fmt bgra"),
        ("bmp.bmp", "-frames:v 1"),
        ("deep.png", "-frames:v 1 -pix_fmt rgba64be"),
        ("a.gif", "-vf split[a][b];[a]palettegen[p];[b][p]paletteuse"),
        ("pal.png", "-vf split[a][b];[a]palettegen[p];[b][p]paletteuse -frames:v 1"),
        ("up.avi", "-c:v rawvideo -pix_fmt bgr24"),
        ("a.jpg", "-frames:v 1 -q:v 1"),
    ] {
        ffmpeg(
            folder.path(),
            &format!("-f lavfi -i color=c=0xC86432:s=64x48:r=5:d=1,format=rgb24 {options} {name}"),
        );
        let frame = first_frame(&folder.path().join(name), SMALL);
        let centre = &frame.rgb[(24 * 64 + 32) * 3..][..3];
        let far = centre.iter().zip([0xC8, 0x64, 0x32]).any(|(is, should)| is.abs_diff(should) > 6);
        assert!(!far, "{name}: {centre:?}");
    }
}

#[test]
fn an_interlaced_picture_shows_one_field() {
    let folder = tempfile::tempdir().unwrap();
    // Odd lines white, even lines black: two fields half a frame apart.
    ffmpeg(
        folder.path(),
        "-f lavfi -i color=c=black:s=192x192:r=25:d=1,format=yuv420p,\
         geq=lum='if(mod(Y\\,2)\\,235\\,16)':cb=128:cr=128 \
         -c:v libx264 -crf 5 -x264-params tff=1 -flags +ildct+ilme a.mp4",
    );
    let frame = first_frame(&folder.path().join("a.mp4"), SMALL);
    let (least, most) = (frame.rgb.iter().min().unwrap(), frame.rgb.iter().max().unwrap());
    assert!(most - least < 40, "the fields were mixed: {least} to {most}");
}

#[test]
fn odd_sizes_are_read() {
    let folder = tempfile::tempdir().unwrap();
    for size in ["161x97", "3x3", "17x301", "2x2000"] {
        let options = "-c:v libx264 -pix_fmt yuv444p a.mkv";
        ffmpeg(folder.path(), &format!("-f lavfi -i testsrc=s={size}:r=25:d=1 {options}"));
        let film = folder.path().join("a.mkv");
        for fit in [Fit::Squash, Fit::Crop, Fit::Pad] {
            let frame = first_frame(&film, Rendition { fit, ..SMALL });
            assert_eq!(frame.rgb.len(), 64 * 48 * 3, "{size}");
        }
    }
}

#[test]
fn a_size_that_changes_midway_is_followed() {
    let folder = tempfile::tempdir().unwrap();
    let options = "-c:v libx264 -pix_fmt yuv420p -f mpegts";
    numbered_sized(folder.path(), "a", "25", 2.0, "160x96", options);
    numbered_sized(folder.path(), "b", "25", 2.0, "320x240", options);
    let join = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
    let film = folder.path().join("ab.ts");
    std::fs::write(&film, [join("a"), join("b")].concat()).unwrap();
    let (_, picture) = read(&film, 40);
    let numbers: Vec<u32> = picture.numbers().iter().map(|(_, number)| *number).collect();
    assert_eq!(numbers, (0..50).chain(0..50).collect::<Vec<u32>>());
    assert!(picture.notices.iter().any(|notice| notice.contains("jump")), "{:?}", picture.notices);
}

#[test]
fn a_variable_rate_keeps_its_times() {
    let folder = tempfile::tempdir().unwrap();
    let film = numbered(
        folder.path(),
        "a.mkv",
        "25",
        4.0,
        "-vf select='lt(n\\,25)+not(mod(n\\,10))' -fps_mode vfr -c:v libx264",
    );
    let (_, picture) = read(&film, 100);
    let expected: Vec<(i64, u32)> = (0..40)
        .map(|k| k * 100)
        .map(|at| (at, (at / 40) as u32))
        .map(|(at, n)| (at, if n < 25 { n } else { (n / 10 * 10).max(24).max(n / 10 * 10) }))
        .take_while(|(at, _)| *at < 3640)
        .collect();
    assert_eq!(picture.numbers(), expected);
}

#[test]
fn a_film_that_starts_late_or_before_zero_starts_at_zero() {
    let folder = tempfile::tempdir().unwrap();
    numbered(folder.path(), "a.mkv", "25", 2.0, "-c:v libx264 -g 12");
    for (offset, name) in [("-0.5", "b.ts"), ("7.25", "b.ts"), ("7.25", "b.mp4"), ("7.25", "b.mkv")]
    {
        ffmpeg(folder.path(), &format!("-itsoffset {offset} -i a.mkv -c copy -copyts {name}"));
        let (_, picture) = read(&folder.path().join(name), 120);
        let expected: Vec<(i64, u32)> = (0..17).map(|k| (k * 120, k as u32 * 3)).collect();
        assert_eq!(picture.numbers(), expected, "{offset} {name}");
    }
}

#[test]
fn an_edit_list_is_applied() {
    let folder = tempfile::tempdir().unwrap();
    numbered(folder.path(), "a.mp4", "25", 4.0, "-c:v libx264 -g 100");
    // Cut inside a GOP: the mp4 keeps the frames before and skips them by its edit list.
    ffmpeg(folder.path(), "-ss 1.2 -i a.mp4 -c copy b.mp4");
    let (_, picture) = read(&folder.path().join("b.mp4"), 120);
    let expected: Vec<(i64, u32)> = (0..24).map(|k| (k * 120, 30 + k as u32 * 3)).collect();
    assert_eq!(picture.numbers(), expected);
}

#[test]
fn of_two_picture_tracks_the_default_one_is_read_and_the_other_on_request() {
    let folder = tempfile::tempdir().unwrap();
    corners(folder.path(), "big.mkv", "192x96", RGB);
    numbered(folder.path(), "small.mkv", "25", 1.0, "-c:v libx264");
    ffmpeg(
        folder.path(),
        "-i big.mkv -i small.mkv -map 0:v -map 1:v -c copy -disposition:v:0 0 \
         -disposition:v:1 default both.mkv",
    );
    let path = folder.path().join("both.mkv");
    let (info, picture) = read(&path, 120);
    assert_eq!(info.picture, Some(1));
    assert_eq!(picture.numbers()[4], (480, 12));
    let (mut host, input) = (host(), open(&path));
    let other = PictureRequest { track: Some(0), ..request(every(200)) };
    assert_eq!(grid(&self::picture(&mut host, &input, &other).unwrap().frames[0]), "RWGWWWBWW");
    let none = PictureRequest { track: Some(7), ..request(every(200)) };
    let error = self::picture(&mut host, &input, &none).err().unwrap();
    assert_eq!(error.kind(), Kind::NotFound);
}

#[test]
fn a_cover_is_no_picture_and_sound_alone_has_none() {
    let folder = tempfile::tempdir().unwrap();
    corners(folder.path(), "c.jpg", "96x96", "-frames:v 1");
    ffmpeg(
        folder.path(),
        "-f lavfi -i sine=d=1 -i c.jpg -map 0 -map 1 -c:v copy -disposition:v attached_pic a.mp3",
    );
    let (mut host, input) = (host(), open(&folder.path().join("a.mp3")));
    let info = host.probe(&input).unwrap();
    assert_eq!(info.picture, None);
    assert!(info.tracks.iter().any(|track| track.is_attached));
    let error = picture(&mut host, &input, &request(every(500))).err().unwrap();
    assert_eq!(error.kind(), Kind::NotFound);
}

#[test]
fn one_frame_stands_for_the_first_target() {
    let folder = tempfile::tempdir().unwrap();
    let options = "-frames:v 1 -c:v libx264";
    let film = numbered(folder.path(), "one.mp4", "25", 1.0, options);
    corners(folder.path(), "one.png", "96x96", "-frames:v 1");
    corners(folder.path(), "one.webp", "96x96", "-frames:v 1");
    for path in [film, folder.path().join("one.png"), folder.path().join("one.webp")] {
        let targets = Targets::every(Micros::from_millis(750), Micros::from_millis(375));
        let picture = picture(&mut host(), &open(&path), &request(targets)).unwrap();
        let targets: Vec<i64> = picture.frames.iter().map(|frame| frame.target.0).collect();
        assert_eq!(targets, [375_000], "{}", path.display());
        assert!(picture.gaps.is_empty());
    }
}

#[test]
fn a_pause_in_the_picture_is_a_gap() {
    let folder = tempfile::tempdir().unwrap();
    let film = numbered(
        folder.path(),
        "a.mkv",
        "25",
        9.0,
        "-vf select='lt(t\\,2)+gt(t\\,6.01)' -fps_mode vfr -c:v libx264 -g 25",
    );
    let picture = assert_parts_equal_whole(&film, every(500), 5);
    let gaps: Vec<(i64, i64)> =
        picture.gaps.iter().map(|gap| (gap.span.start.0 / 1000, gap.span.end.0 / 1000)).collect();
    assert_eq!(gaps, [(3000, 6500)]);
    assert_eq!(picture.frames.len(), 18 - 7);
}

#[test]
fn a_cut_changes_more_than_a_pan_or_a_fade() {
    let folder = tempfile::tempdir().unwrap();
    // Two seconds of a pan, a cut, two seconds of another pan, a fade to black.
    ffmpeg(
        folder.path(),
        "-f lavfi -i mandelbrot=s=640x480:r=25:maxiter=200 -f lavfi -i testsrc2=s=640x480:r=25 \
         -filter_complex [0]trim=end_frame=1,loop=50:1,crop=320:240:x='n*4':y=60,setpts=N/25/TB[a];\
         [1]trim=end_frame=1,loop=50:1,crop=320:240:x='n*4':y=100,fade=out:25:25,setpts=N/25/TB[b];\
         [a][b]concat -c:v libx264 -pix_fmt yuv420p -r 25 a.mp4",
    );
    for millis in [40, 400] {
        let (_, picture) = read(&folder.path().join("a.mp4"), millis);
        let cut = picture
            .frames
            .iter()
            .map(|f| f.change)
            .max_by(|a, b| a.strength.total_cmp(&b.strength));
        let cut = cut.unwrap();
        assert_eq!(cut.at.0 / 1000, 50 * 40 + 40, "{cut:?}");
        assert!(cut.strength > 0.8, "{cut:?}");
        let others = picture.frames.iter().filter(|f| f.change.at != cut.at);
        let strongest = others.map(|f| f.change.strength).fold(0.0, f32::max);
        assert!(strongest < 0.35, "{strongest}");
    }
}

#[test]
fn frames_left_out_are_looked_for_where_the_others_are_too_far_apart() {
    let folder = tempfile::tempdir().unwrap();
    // 25 frames a second, then some seconds of B frames half a second apart between P frames two
    // seconds apart.
    let film = numbered(
        folder.path(),
        "a.mkv",
        "25",
        16.0,
        "-vf select='lt(t\\,8)+not(mod(n\\,13))' -fps_mode vfr -c:v libx264 \
         -x264-params bframes=4:b-adapt=0:b-pyramid=none:keyint=1000:scenecut=0",
    );
    let picture = assert_parts_equal_whole(&film, every(400), 3);
    assert!(picture.gaps.is_empty(), "{:?}", picture.gaps);
    assert_eq!(picture.frames.len(), 40);
    assert!(picture.summary.decoded < 200, "nothing was left out: {:?}", picture.summary);
}

/// Every film in the folder that `CINELEX_SAMPLES` names, in whatever container.
#[test]
fn all_sample_films_are_read_to_their_end() {
    let Some(folder) = std::env::var_os("CINELEX_SAMPLES") else {
        eprintln!("skipped: CINELEX_SAMPLES names no folder");
        return;
    };
    let mut host = host();
    for location in cinelex::source::listing::expand(&[folder], true) {
        let input = Input::open(&location.unwrap()).unwrap();
        let info = host.probe(&input).unwrap();
        let picture = picture(&mut host, &input, &request(every(1000))).unwrap();
        println!(
            "{}: {} {:?} {} frames, {:?} {:?}",
            input.name().rsplit('/').next().unwrap(),
            info.container,
            info.duration,
            picture.frames.len(),
            picture.gaps,
            picture.summary
        );
        assert!(!picture.frames.is_empty(), "{}", input.name());
        let end = picture.summary.end.unwrap().0;
        let missed: i64 = picture.gaps.iter().map(|gap| gap.span.length().0).sum();
        let served = picture.frames.len() as i64 * 1_000_000;
        assert!((end - missed - served).abs() <= 2_000_000, "{}", input.name());
    }
}
