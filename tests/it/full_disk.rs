//! Commands on disks that are full, by the executable: they say so, cost nothing that was there, and go on
//! once there is room.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::indexing::film;
use crate::keeping::{copy, damage, is_clean, library, traces, with_own_mounts, write_library};
#[cfg(feature = "speech")]
use crate::listening;
use crate::same::{assert_keeps, assert_same};

/// A library as a command left it on a disk of some size.
struct Tried {
    /// When the command had ended.
    left: PathBuf,
    /// When it was run again with room.
    done: PathBuf,
    err: String,
    code: i32,
}

/// What is to be tried.
struct Trial<'a> {
    folder: &'a Path,
    /// How the library is before.
    before: &'a Path,
    /// Shell commands: what is run on the full disk, and again with room. `$lib` is the library.
    command: &'a str,
    again: &'a str,
}

const SCRIPT: &str = r#"
    cinelex=$1 disk=$2 before=$3 tries=$4 command=$5 again=$6 step=$7
    lib=$disk/lib
    room=0
    while :; do
        room=$((room + step))
        mount -t tmpfs -o size=64m,mode=700 tmpfs "$disk" || exit 7
        mkdir -m 700 "$lib" && cp "$before"/*.sqlite "$lib" || exit 7
        used=$(du -sk "$disk" | cut -f1)
        mount -o remount,size=$((used + room))k "$disk" || exit 7
        eval "$command" >/dev/null 2>"$tries/$room.err"
        code=$?
        cp -r "$lib" "$tries/$room.left"
        mount -o remount,size=64m "$disk" || exit 7
        eval "$again" >/dev/null || { echo "again with $room KiB of room" >&2; exit 8; }
        cp -r "$lib" "$tries/$room.done"
        umount "$disk" || exit 7
        echo "$room $code"
        [ $code = 0 ] && exit 0
    done
"#;

/// Runs a command on disks that are full at each step of so many bytes, until one has room: the last of
/// what is returned. `None` where nothing can be mounted.
fn full_at_any_write(trial: &Trial, step_kib: usize) -> Option<Vec<Tried>> {
    let [disk, tries] = ["disk", "tries"].map(|name| trial.folder.join(name));
    fs::create_dir(&disk).unwrap();
    fs::create_dir(&tries).unwrap();
    let [command, again] = [trial.command, trial.again].map(Path::new);
    let step = PathBuf::from(step_kib.to_string());
    let arguments = [&disk, trial.before, &tries, command, again, &step];
    let Some(ran) = with_own_mounts(SCRIPT, &arguments) else {
        eprintln!("skipped: mounting is not permitted here");
        return None;
    };
    let ran = ran.exits(0);
    let tried: Vec<Tried> = ran
        .out
        .lines()
        .map(|line| {
            let (room, code) = line.split_once(' ').unwrap();
            let [left, done, err] =
                ["left", "done", "err"].map(|kind| tries.join(format!("{room}.{kind}")));
            let err = fs::read_to_string(err).unwrap();
            Tried { left, done, err, code: code.parse().unwrap() }
        })
        .collect();
    let (whole, full) = tried.split_last().unwrap();
    eprintln!("the disk was full {} times", full.len());
    assert!(full.len() >= 3, "the disk was full {} times", full.len());
    for one in full {
        assert!([1, 3].contains(&one.code), "{}: {}", one.code, one.err);
        assert!(one.err.contains("disk is full"), "{}", one.err);
        assert!(!one.err.contains("panicked"), "{}", one.err);
        is_clean(&one.done, &one.err);
        assert_same(&whole.done, &one.done);
    }
    Some(tried)
}

/// Adds a film to a library of an older version, so that its migration fails too.
fn index_on_full_disks(film: impl Fn(&Path) -> PathBuf, step_kib: usize) {
    let folder = TempDir::new().unwrap();
    let before = folder.path().join("before");
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/compat/v1"), &before);
    let film = film(folder.path());
    let command = format!(r#""$cinelex" index "{}" --library "$lib""#, film.display());
    let trial =
        Trial { folder: folder.path(), before: &before, command: &command, again: &command };
    for tried in full_at_any_write(&trial, step_kib).unwrap_or_default() {
        assert_keeps(&before, &tried.left);
        assert_keeps(&before, &tried.done);
    }
}

#[test]
fn a_full_disk_costs_nothing_that_was_there() {
    index_on_full_disks(|folder| film(folder, "film.mp4"), 96);
}

#[test]
#[ignore = "slow: a disk that is full at each 4 KiB"]
fn a_full_disk_costs_nothing_at_any_page() {
    index_on_full_disks(|folder| film(folder, "film.mp4"), 4);
}

#[cfg(feature = "speech")]
fn talk(folder: &Path) -> PathBuf {
    listening::film(folder, "talk.mp4", &listening::SENTENCES[..1])
}

#[cfg(feature = "speech")]
#[test]
fn a_full_disk_costs_no_word_that_is_heard() {
    index_on_full_disks(talk, 160);
}

#[cfg(feature = "speech")]
#[test]
#[ignore = "slow: a disk that is full at each 8 KiB, and a film that is listened to"]
fn a_full_disk_costs_no_word_at_any_page() {
    index_on_full_disks(talk, 8);
}

/// Forgets, rebuilds, merges and compacts.
fn change_on_full_disks(steps_kib: [usize; 4]) {
    let [forget, rebuild, merge, compact] = steps_kib;
    let (folder, lib) = library();
    let at = |name: &str| {
        let at = folder.path().join(name);
        fs::create_dir(&at).unwrap();
        at
    };

    // What is begun is finished by whoever writes next.
    let trial = Trial {
        folder: &at("forget"),
        before: &lib,
        command: r#""$cinelex" library forget "$lib" secretfilm.mp4"#,
        again: r#""$cinelex" library forget "$lib" secretfilm.mp4 || "$cinelex" library compact "$lib""#,
    };
    let Some(tried) = full_at_any_write(&trial, forget) else { return };
    let kept = &tried[tried.len() - 1].done;
    for tried in &tried {
        is_clean(&tried.left, &tried.err);
        assert_keeps(kept, &tried.left);
        assert_eq!(traces(&tried.done), [""; 0]);
    }

    let other = folder.path().join("other");
    write_library(&other, &["other.mp4"]);
    let command = format!(r#""$cinelex" library merge "$lib" "{}""#, other.display());
    let trial = Trial { folder: &at("merge"), before: &lib, command: &command, again: &command };
    for tried in full_at_any_write(&trial, merge).unwrap() {
        is_clean(&tried.left, &tried.err);
        assert_keeps(&lib, &tried.left);
        assert_keeps(&other, &tried.done);
    }

    let command = r#""$cinelex" library compact "$lib""#;
    let trial = Trial { folder: &at("compact"), before: &lib, command, again: command };
    for tried in full_at_any_write(&trial, compact).unwrap() {
        is_clean(&tried.left, &tried.err);
        assert_same(&lib, &tried.left);
    }

    // A damaged library is none that can be read: what is left of it is seen by what a rebuild with room
    // makes of it.
    let damaged = folder.path().join("damaged");
    copy(&lib, &damaged);
    damage(&damaged);
    let command = r#""$cinelex" library rebuild "$lib""#;
    let trial = Trial { folder: &at("rebuild"), before: &damaged, command, again: command };
    full_at_any_write(&trial, rebuild).unwrap();
}

#[test]
fn changes_of_a_library_on_a_full_disk_cost_nothing() {
    change_on_full_disks([96, 160, 96, 24]);
}

#[test]
#[ignore = "slow: disks that are full at each 4 KiB"]
fn changes_of_a_library_on_a_full_disk_cost_nothing_at_any_page() {
    change_on_full_disks([4; 4]);
}
