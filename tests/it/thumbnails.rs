//! A thumbnail for every clip: what it shows, its shape, and where it is found.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cinelex::library::{ClipId, Reader};
use tempfile::TempDir;

use crate::cinelex::{command, finish, index, index_with, run, search};
use crate::media::ffmpeg;

/// A film that is red up to three seconds, then blue; `filter` is done to it behind a comma.
fn film(folder: &Path, name: &str, size: &str, filter: &str) -> PathBuf {
    ffmpeg(
        folder,
        &format!(
            "-f lavfi -i color=c=red:s={size}:r=25:d=3 -f lavfi -i color=c=blue:s={size}:r=25:d=3 \
             -filter_complex concat{filter} -c:v libx264 -pix_fmt yuv420p -g 25 {name}"
        ),
    );
    folder.join(name)
}

/// What ffprobe and ffmpeg say of a picture: its size, and its mean colour.
fn picture(file: &str) -> ((u64, u64), [u8; 3]) {
    let probe = "-v error -show_entries stream=codec_name,width,height -of csv=p=0";
    let told = Command::new("ffprobe").args(probe.split(' ')).arg(file).output().unwrap();
    let told = String::from_utf8(told.stdout).unwrap();
    let mut told = told.trim().split(',');
    assert_eq!(told.next(), Some("mjpeg"), "{file}");
    let mut side = || told.next().unwrap().parse().unwrap();
    let size = (side(), side());
    let one = "-vf scale=1:1:flags=area -f rawvideo -pix_fmt rgb24 -";
    let mut decode = Command::new("ffmpeg");
    decode.args(["-v", "error", "-nostdin", "-i", file]).args(one.split(' '));
    let rgb = decode.output().unwrap();
    assert!(rgb.stderr.is_empty(), "{}", String::from_utf8_lossy(&rgb.stderr));
    (size, rgb.stdout.try_into().unwrap())
}

/// The thumbnails of all clips of a library, in files, with the clips.
fn thumbnails(library: &Path, into: &Path) -> Vec<(ClipId, String)> {
    let reader = Reader::open(library).unwrap();
    let source = reader.sources().unwrap().remove(0);
    let clips = reader.show(source.id).unwrap().clips;
    assert!(!clips.is_empty());
    let written = clips.iter().map(|clip| {
        let thumbnail = reader.thumbnail(clip.id).unwrap().unwrap();
        let file = into.join(format!("{}.jpg", clip.id.start.0));
        fs::write(&file, thumbnail.as_bytes()).unwrap();
        (clip.id, file.to_str().unwrap().to_owned())
    });
    written.collect()
}

#[test]
fn each_clip_has_a_thumbnail_in_the_shape_of_its_film() {
    let folder = TempDir::new().unwrap();
    let shapes = [
        ("wide", "320x180", "", (160, 90)),
        ("high", "180x320", "", (90, 160)),
        ("of wide samples", "180x180", ",setsar=2/1", (160, 80)),
        ("turned", "320x180", "", (90, 160)),
    ];
    for (name, size, filter, wanted) in shapes {
        let mut film = film(folder.path(), "film.mp4", size, filter);
        if name == "turned" {
            ffmpeg(folder.path(), "-i film.mp4 -c copy -metadata:s:v rotate=90 turned.mp4");
            film = folder.path().join("turned.mp4");
        }
        let library = folder.path().join(format!("{name}.library"));
        index(&library, &[&film]).exits(0);
        let thumbnails = thumbnails(&library, folder.path());
        assert_eq!(thumbnails.len(), 4);
        for (clip, file) in thumbnails {
            let (size, [red, green, blue]) = picture(&file);
            assert_eq!(size, wanted, "{name}");
            let is_red = clip.start.0 < 3_000_000;
            let (most, least) = if is_red { (red, blue) } else { (blue, red) };
            assert!(most > 200 && least < 50 && green < 50, "{name} {clip}: {red} {green} {blue}");
        }
        run(["library", "check", library.to_str().unwrap()]).exits(0);
    }
}

#[test]
fn a_live_source_has_thumbnails_and_a_search_writes_those_of_its_hits() {
    let folder = TempDir::new().unwrap();
    let film = film(folder.path(), "film.mp4", "320x180", "");
    let library = folder.path().join("films.library");
    index_with(&library, &[&film], &["--as-live"]).exits(0);
    for (_, file) in thumbnails(&library, folder.path()) {
        assert_eq!(picture(&file).0, (160, 90));
    }
    let into = folder.path().join("of hits");
    let asked = ["colours", "--channel", "picture", "--thumbnails", into.to_str().unwrap()];
    let hits = search(&library, &asked).exits(0).lines("hit");
    assert!(!hits.is_empty());
    let reader = Reader::open(&library).unwrap();
    for hit in &hits {
        let (clip, file) = (hit["clip"].as_str().unwrap(), hit["thumbnail"].as_str().unwrap());
        assert_eq!(Path::new(file), into.join(format!("{clip}.jpg")));
        let thumbnail = reader.thumbnail(clip.parse().unwrap()).unwrap().unwrap();
        assert_eq!(fs::read(file).unwrap(), thumbnail.as_bytes());
    }
    assert_eq!(fs::read_dir(&into).unwrap().count(), hits.len());
    // For people, too; and whoever doesn't ask is told of none.
    let mut command = command(["search"]);
    let told = finish(command.arg(&library).args(asked)).exits(0);
    assert_eq!(told.out.matches("thumbnail ").count(), hits.len(), "{}", told.out);
    let hit = &search(&library, &["colours"]).exits(0).lines("hit")[0];
    assert_eq!(hit.get("thumbnail"), None);
    run(["library", "check", library.to_str().unwrap()]).exits(0);
}
