//! Live streams that a graphics device decodes: a stand-in for one, which FFmpeg takes for CUDA's.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use cinelex::library::Reader;
use serde_json::Value;
use tempfile::TempDir;

use crate::camera::{Camera, Codec, Setup, Units, coded, coded_as};
use crate::cinelex::command;
use crate::live::{Watching, check, check_clock, check_grid, check_sum, small};

/// More than a picture each 40 ms comes to in a test.
const FOR_EVER: u64 = 1 << 40;
/// What a device does that fails.
const FAILS: &str = "return FAILED";

/// A folder with a device's libraries, which decodes so many pictures of `units` and then comes to an `end`.
fn device(folder: &Path, units: &Units, lasts: u64, end: &str) -> PathBuf {
    let folder = folder.join("device");
    std::fs::create_dir(&folder).unwrap();
    // Up to the first slice: units begin with a delimiter and the headers.
    let first = &units[0];
    let is_slice = |at: &usize| first[*at..at + 3] == [0, 0, 1] && first[at + 3] & 31 == 5;
    let headers: Vec<String> =
        first[..(0..).find(is_slice).unwrap()].iter().map(u8::to_string).collect();
    let mut made = Command::new("cc");
    made.args(["-shared", "-fPIC", "-O1", "-o"]).arg(folder.join("libcuda.so.1"));
    made.arg(format!("-DHEADERS={{{}}}", headers.join(",")));
    made.args([format!("-DLASTS={lasts}"), format!("-DEND={end}")]);
    made.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/device.c"));
    let made = made.args(["-lavcodec", "-lavutil"]).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    std::os::unix::fs::symlink("libcuda.so.1", folder.join("libnvcuvid.so.1")).unwrap();
    folder
}

/// Watches these on a machine with that device.
fn watch(library: &Path, device: &Path, options: &[&str]) -> Watching {
    let inherited = std::env::var("LD_LIBRARY_PATH").unwrap_or_default();
    let mut command = command(["index", "--json", "--longest-pause", "1", "--library"]);
    command.arg(library).args(options);
    Watching::run(command.env("LD_LIBRARY_PATH", format!("{}:{inherited}", device.display())))
}

/// The size and the values of a library's first thumbnail.
fn thumbnail(library: &Path) -> Vec<u8> {
    let reader = Reader::open(library).unwrap();
    let source = reader.sources().unwrap().remove(0);
    let clip = reader.show(source.id).unwrap().clips.remove(0);
    let file = library.with_extension("jpg");
    std::fs::write(&file, reader.thumbnail(clip.id).unwrap().unwrap().as_bytes()).unwrap();
    let mut decode = Command::new("ffmpeg");
    decode.args(["-v", "error", "-nostdin", "-i"]).arg(file);
    decode.args("-c:v ppm -f image2pipe -".split(' ')).output().unwrap().stdout
}

fn number(stream: &Value, key: &str) -> u64 {
    stream[key].as_u64().unwrap_or_else(|| panic!("{key} in {stream}"))
}

#[test]
fn a_device_decodes_the_pictures_that_a_processor_does() {
    let folder = TempDir::new().unwrap();
    // One picture, which is cut at all sides: at its left as much as FFmpeg's own decoder can cut, too.
    let cut = "-g 25 -preset veryfast -tune zerolatency \
               -bsf:v h264_metadata=crop_left=64:crop_top=10:crop_right=2:crop_bottom=6";
    let units = Arc::new(coded(folder.path(), "320x180", 1.0, cut)[..1].to_vec());
    let device = device(folder.path(), &units, FOR_EVER, FAILS);
    let camera = Camera::start(&units, &Setup::default());
    let mut seen = Vec::new();
    for (place, options) in [&[][..], &["--device", "cpu"]].into_iter().enumerate() {
        let library = folder.path().join(format!("{place}.library"));
        let address = camera.address();
        let mut watching = watch(&library, &device, &[options, &[&address]].concat());
        watching.until_stored(2);
        let end = watching.stop();
        let stream = &end["streams"][0];
        let decoded = number(stream, "encoded") + number(stream, "skipped");
        let in_hardware = if options.is_empty() { decoded } else { 0 };
        assert_eq!(number(stream, "in_hardware"), in_hardware, "{stream}");
        assert_eq!((&stream["sessions"], &stream["undecodable"]), (&1.into(), &0.into()));
        seen.push(thumbnail(&library));
    }
    assert!(!seen[0].is_empty() && seen[0].len() == seen[1].len());
    // Planes that lie otherwise in memory are scaled with other rounding.
    let apart = seen[0].iter().zip(&seen[1]).map(|(a, b)| u64::from(a.abs_diff(*b)));
    let mean = apart.sum::<u64>() as f64 / seen[0].len() as f64;
    assert!(mean < 1.0, "{mean}");
}

#[test]
fn what_a_device_cannot_decode_the_processor_does() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let device = device(folder.path(), &small(folder.path()), FOR_EVER, FAILS);
    let options = "-preset veryfast -tune zerolatency -g 25";
    let h265 = coded_as(Codec::H265, folder.path(), "320x180", 2.0, options);
    // Colours that are as large as the picture.
    let h264 = coded(folder.path(), "320x192", 2.0, &format!("{options} -pix_fmt yuv444p"));
    let cameras = [
        Camera::start(&h265, &Setup { codec: Codec::H265, ..Setup::default() }),
        Camera::start(&h264, &Setup::default()),
    ];
    let addresses = cameras.each_ref().map(Camera::address);
    let mut watching = watch(&library, &device, &[&addresses[0], &addresses[1]]);
    while addresses.iter().any(|address| watching.stored(address) < 2) {
        watching.until_stored(1);
    }
    let end = watching.stop();
    for stream in end["streams"].as_array().unwrap() {
        for (key, value) in [("sessions", 1), ("in_hardware", 0), ("undecodable", 0)] {
            assert_eq!(stream[key], value, "{key}: {stream}");
        }
    }
}

#[test]
fn a_stream_goes_on_without_a_device_that_fails() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let units = small(folder.path());
    let device = device(folder.path(), &units, 60, FAILS);
    let camera = Camera::start(&units, &Setup::default());
    let address = camera.address();
    let mut watching = watch(&library, &device, &[&address]);
    watching.until("the device's failure", |line| line["undecodable"].as_u64() > Some(0));
    watching.until_stored(3);
    check_clock(watching.seen.last().unwrap());
    let end = watching.stop();
    let stream = &end["streams"][0];
    assert_eq!((&stream["sessions"], &stream["in_hardware"]), (&1.into(), &60.into()), "{stream}");
    // Until it is given up, and then to the next keyframe.
    assert!((33..=33 + 25).contains(&number(stream, "undecodable")), "{stream}");
    check_grid(&library, &address);
    check(&library).exits(0);
}

#[test]
fn a_stream_goes_on_without_a_device_whose_driver_ends_its_host() {
    for lasts in [60, 0] {
        goes_on_without(lasts, "abort()", "30", "the decoder crashed (aborted)");
    }
}

#[test]
fn a_stream_goes_on_without_a_device_whose_driver_hangs() {
    for lasts in [60, 3, 0] {
        goes_on_without(lasts, "for (;;) pause()", "4", "no frame came for 4 s");
    }
}

/// Watches with a device that comes to an `end` after so many pictures: the stream is lost once, for that reason.
fn goes_on_without(lasts: u64, end: &str, silence: &str, reason: &str) {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let units = small(folder.path());
    let device = device(folder.path(), &units, lasts, end);
    let camera = Camera::start(&units, &Setup::default());
    let address = camera.address();
    let mut watching = watch(&library, &device, &["--silence", silence, &address]);
    let lost = watching.until_state("waiting");
    assert!(lost["reason"].as_str().unwrap().contains(reason), "{lost}");
    watching.until_state("live");
    // More than the device would decode again.
    watching.until_stored(4);
    check_clock(watching.seen.last().unwrap());
    watching.interrupt();
    let end = watching.until("the end", |line| line["kind"] == "live_run");
    let stream = &end["streams"][0];
    check_sum(stream);
    assert_eq!(number(stream, "in_hardware") > 0, lasts > 0, "{stream}");
    assert_eq!(number(stream, "sessions"), 1 + u64::from(lasts > 0), "{stream}");
    check_grid(&library, &address);
    check(&library).exits(0);
}
