//! `index --verify`: every byte counts.

use std::fs::{self, File, FileTimes};
use std::os::unix::fs::FileExt;
use std::path::Path;

use tempfile::TempDir;

use crate::cinelex::{command, finish, index, index_with, info, show};
use crate::media::ffmpeg;

/// Flips a bit of a file and gives it back its time: the first MiB and the sampled blocks behind are
/// as they were.
fn change_unseen(path: &Path) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let metadata = file.metadata().unwrap();
    // Past the first MiB; 64 blocks of 64 KiB are sampled of what lies between the ends.
    let middle = metadata.len() - (2 << 20);
    assert!(middle > 16 << 20, "the sampled blocks leave gaps");
    let at = (1 << 20) + (64 << 10) + 5_000;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    file.set_times(FileTimes::new().set_modified(metadata.modified().unwrap())).unwrap();
}

#[test]
fn a_change_that_leaves_size_time_and_samples_makes_another_source() {
    let folder = TempDir::new().unwrap();
    // Raw pictures: 20 MB in a second, and a bit of one is no damage.
    ffmpeg(
        folder.path(),
        "-f lavfi -i testsrc2=s=640x480:r=25:d=1.8 -c:v rawvideo -pix_fmt yuv420p film.avi",
    );
    let film = folder.path().join("film.avi");
    let library = folder.path().join("library");
    index(&library, &[&film]).exits(0);
    let first = show(&library, "film.avi").line("source")["id"].clone();

    let same = index_with(&library, &[&film], &["--verify"]).exits(0).source("film.avi");
    assert_eq!((&same["state"], &same["verified"]), (&"unchanged".into(), &true.into()));
    assert_eq!(same["notices"], serde_json::json!([]));

    let copy = folder.path().join("copy.avi");
    fs::copy(&film, &copy).unwrap();
    change_unseen(&film);
    let blind = index(&library, &[&film]).exits(0).source("film.avi");
    assert_eq!((&blind["state"], &blind["verified"]), (&"unchanged".into(), &false.into()));
    let found = index_with(&library, &[&film], &["--verify"]).exits(0).source("film.avi");
    assert_eq!(found["state"], "indexed");
    assert_ne!(found["id"], first);
    let notice = found["notices"][0].as_str().unwrap();
    assert!(
        notice.contains("another source") && notice.contains(first.as_str().unwrap()),
        "{notice}"
    );
    assert_eq!(info(&library)["sources"], 2);

    // Now that two sources have these parts, all bytes tell them apart without being asked for.
    let of_copy = index(&library, &[&copy]).exits(0).source("copy.avi");
    assert_eq!((&of_copy["state"], &of_copy["id"]), (&"unchanged".into(), &first));
    let moved = folder.path().join("moved.avi");
    fs::rename(&film, &moved).unwrap();
    assert_eq!(index(&library, &[&moved]).exits(0).source("moved.avi")["id"], found["id"]);

    // Without names, all that the library has: one at its second place, since the first is empty now.
    let mut all = command(["index", "--json", "--verify", "--library"]);
    let ran = finish(all.arg(&library)).exits(0);
    for name in ["copy.avi", "moved.avi"] {
        assert_eq!(ran.source(name)["verified"], true, "{name}");
    }
    assert_eq!(info(&library)["sources"], 2);
}
