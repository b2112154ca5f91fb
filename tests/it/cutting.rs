//! What moments are cut out into: every ending that is taken holds what it can, out of films and of live streams.

use std::path::Path;

use tempfile::TempDir;

#[cfg(feature = "live")]
use crate::cinelex::{command, finish};
use crate::cinelex::{index, search};
use crate::media::{ffmpeg, probe};

const FILMS: [&str; 15] = [
    "mp4", "mkv", "mov", "webm", "avi", "ts", "m4v", "m2ts", "mts", "flv", "wmv", "asf", "ogv",
    "nut", "vob",
];
const SOUNDS: [&str; 10] = ["mp3", "m4a", "aac", "wav", "flac", "ogg", "opus", "oga", "wma", "mka"];

/// The kinds of a film's tracks, in order.
fn kinds(film: &Path) -> Vec<String> {
    let text = probe(film, "-show_entries stream=codec_type");
    let kinds = text.split([',', '\n']).filter(|kind| !kind.is_empty());
    let mut kinds: Vec<String> = kinds.map(str::to_owned).collect();
    kinds.sort();
    kinds.dedup();
    kinds
}

/// Cuts the best moment out into a file of each of these endings, which must hold these kinds of tracks.
fn cuts(library: &Path, folder: &Path, endings: &[&str], wanted: &[&str]) {
    for ending in endings {
        let file = folder.join(format!("moment.{ending}"));
        let query = ["a test picture", "--top", "1", "--export", file.to_str().unwrap()];
        search(library, &query).exits(0);
        assert_eq!(kinds(&file), wanted, "{ending}");
        std::fs::remove_file(&file).unwrap();
    }
}

/// What is said where a moment has nothing of what such a file holds.
fn cuts_nothing(library: &Path, folder: &Path, ending: &str, why: &str) {
    let file = folder.join(format!("moment.{ending}"));
    let query = ["a test picture", "--top", "1", "--export", file.to_str().unwrap()];
    let refused = search(library, &query).exits(1);
    assert!(refused.err.contains(why), "{refused:?}");
    assert_eq!(std::fs::read_dir(folder).unwrap().count(), 0);
}

#[test]
fn a_moment_of_a_film_is_cut_out_into_any_format_that_is_taken() {
    let folder = TempDir::new().unwrap();
    let moments = folder.path().join("moments");
    std::fs::create_dir(&moments).unwrap();
    // Neither its size nor its pace is one that all formats know.
    let picture = "-f lavfi -i testsrc2=s=161x91:r=12:d=4";
    let coding = "-c:v mjpeg -pix_fmt yuvj444p";
    ffmpeg(
        folder.path(),
        &format!("{picture} -f lavfi -i sine=d=4:r=48000 {coding} -c:a flac film.mkv"),
    );
    ffmpeg(folder.path(), &format!("{picture} {coding} mute.mkv"));
    let [library, mute] = ["film", "mute"].map(|name| {
        let library = folder.path().join(name);
        index(&library, &[&folder.path().join(format!("{name}.mkv"))]).exits(0);
        library
    });
    cuts(&library, &moments, &FILMS, &["audio", "video"]);
    cuts(&library, &moments, &SOUNDS, &["audio"]);
    cuts(&library, &moments, &["gif", "GIF"], &["video"]);
    cuts(&mute, &moments, &["mp4", "gif"], &["video"]);
    cuts_nothing(&mute, &moments, "wav", "mute.mkv: has no sound then, and ");
    for name in ["moment", "moment.xyz", "moment.mxf"] {
        let file = moments.join(name);
        let refused = search(&library, &["a", "--export", file.to_str().unwrap()]).exits(2);
        assert!(refused.err.contains("for its sound alone .mp3, "), "{refused:?}");
    }
}

/// Plays a film as if it were live, and records it.
#[cfg(feature = "live")]
fn record(library: &Path, film: &Path, options: &[&str]) {
    let mut index = command(["index", "--as-live", "--record", "--library"]);
    finish(index.arg(library).args(options).arg(film)).exits(0);
}

#[cfg(feature = "live")]
#[test]
fn a_moment_of_a_live_stream_is_cut_out_into_any_format_that_is_taken() {
    let folder = TempDir::new().unwrap();
    let moments = folder.path().join("moments");
    std::fs::create_dir(&moments).unwrap();
    let film = folder.path().join("film.mp4");
    ffmpeg(
        folder.path(),
        "-f lavfi -i testsrc2=s=160x90:r=12:d=4 -f lavfi -i sine=d=4:r=48000 -c:v libx264 -g 6 -bf 0 \
         -pix_fmt yuv420p -c:a aac film.mp4",
    );
    let mute = folder.path().join("mute");
    record(&mute, &film, &[]);
    cuts(&mute, &moments, &FILMS, &["video"]);
    cuts(&mute, &moments, &["gif"], &["video"]);
    cuts_nothing(&mute, &moments, "wav", "has no sound then, and ");
    if cfg!(feature = "speech") {
        let library = folder.path().join("library");
        record(&library, &film, &["--listen", "always"]);
        cuts(&library, &moments, &FILMS, &["audio", "video"]);
        cuts(&library, &moments, &SOUNDS, &["audio"]);
        cuts(&library, &moments, &["gif"], &["video"]);
    }
}
