//! What is wrong with a source, a file or an option is said, with its cause, and costs nothing else.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use crate::cinelex::{command, finish, index, index_with, info, run, search};
use crate::indexing::film;
use crate::media::ffmpeg;

/// Indexes `bad` beside a good film; the good one must be whole. Returns how the bad one fared.
fn beside_a_good_one(folder: &Path, bad: &Path) -> Value {
    let good = film(folder, "good.mp4");
    let library = folder.join("library");
    let ran = index(&library, &[bad, &good]);
    let name = bad.file_name().unwrap().to_string_lossy().into_owned();
    let fared = ran.source(&name);
    assert_eq!(ran.code, i32::from(fared["state"] == "failed"), "{ran:?}");
    assert_eq!(ran.source("good.mp4")["clips"], 2, "{ran:?}");
    assert_eq!(ran.lines("source_report").len(), 2, "{ran:?}");
    fared
}

fn fails(folder: &TempDir, bad: &Path) -> String {
    let fared = beside_a_good_one(folder.path(), bad);
    assert_eq!(fared["state"], "failed", "{fared}");
    fared["error"]["reason"].as_str().unwrap().to_owned()
}

#[test]
fn a_missing_file() {
    let folder = TempDir::new().unwrap();
    let reason = fails(&folder, &folder.path().join("none.mp4"));
    assert!(reason.contains("no such file"), "{reason}");
}

#[test]
fn a_folder_with_nothing_to_index() {
    let folder = TempDir::new().unwrap();
    let empty = folder.path().join("empty");
    fs::create_dir(&empty).unwrap();
    fails(&folder, &empty);
}

#[test]
fn a_pipe_is_no_file() {
    let folder = TempDir::new().unwrap();
    let pipe = folder.path().join("pipe.mp4");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    fails(&folder, &pipe);
}

#[test]
fn a_text_and_an_empty_file_are_no_videos() {
    for content in ["", "This is a letter to a friend, and no video.\n"] {
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("letter.mp4");
        fs::write(&file, content).unwrap();
        fails(&folder, &file);
    }
}

#[test]
fn a_truncated_file_gives_its_undamaged_part() {
    let folder = TempDir::new().unwrap();
    ffmpeg(
        folder.path(),
        "-f lavfi -i testsrc2=s=320x180:r=25:d=30 -c:v libx264 -g 25 -pix_fmt yuv420p whole.mkv",
    );
    let whole = fs::read(folder.path().join("whole.mkv")).unwrap();
    let half = folder.path().join("half.mkv");
    fs::write(&half, &whole[..whole.len() / 2]).unwrap();
    let fared = beside_a_good_one(folder.path(), &half);
    let clips = fared["clips"].as_u64().unwrap();
    assert!((6..=14).contains(&clips), "{fared}");
    assert!(fared["gaps"].as_u64() > Some(0) || !fared["notices"].as_array().unwrap().is_empty());
}

#[test]
fn a_file_without_its_index_fails_with_the_cause() {
    let folder = TempDir::new().unwrap();
    let whole = fs::read(film(folder.path(), "whole.mp4")).unwrap();
    let cut = folder.path().join("cut.mp4");
    fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
    fails(&folder, &cut);
}

#[test]
fn flipped_bits_cost_at_most_their_source() {
    let folder = TempDir::new().unwrap();
    let whole = fs::read(film(folder.path(), "whole.mp4")).unwrap();
    let library = folder.path().join("library");
    let mut files: Vec<PathBuf> = Vec::new();
    // A fixed sequence of places, so that a failure can be repeated.
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    for number in 0..8 {
        let mut bytes = whole.clone();
        for _ in 0..20 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let place = usize::try_from(state % bytes.len() as u64).unwrap();
            bytes[place] ^= 1 << (state >> 61);
        }
        let file = folder.path().join(format!("flipped{number}.mp4"));
        fs::write(&file, bytes).unwrap();
        files.push(file);
    }
    let good = film(folder.path(), "good.mp4");
    files.push(good);
    let paths: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    let ran = index(&library, &paths);
    assert!(ran.code == 0 || ran.code == 1, "{ran:?}");
    assert_eq!(ran.lines("source_report").len(), 9);
    assert_eq!(ran.source("good.mp4")["clips"], 2);
}

#[test]
fn a_header_that_lies_about_sizes_takes_no_memory() {
    let folder = TempDir::new().unwrap();
    let mut bytes = fs::read(film(folder.path(), "whole.mp4")).unwrap();
    // Every sample-size box claims four thousand million samples.
    let boxes: Vec<usize> =
        (0..bytes.len() - 4).filter(|&at| &bytes[at..at + 4] == b"stsz").collect();
    assert!(!boxes.is_empty());
    for at in boxes {
        bytes[at + 12..at + 16].copy_from_slice(&u32::MAX.to_be_bytes());
    }
    let liar = folder.path().join("liar.mp4");
    fs::write(&liar, bytes).unwrap();
    beside_a_good_one(folder.path(), &liar);
}

#[test]
fn names_of_any_bytes_are_read() {
    for name in [&b"two words.mp4"[..], b"two\nlines.mp4", b"not \xff text.mp4", b"-dash.mp4"] {
        let folder = TempDir::new().unwrap();
        let film = film(folder.path(), "film.mp4");
        let odd = folder.path().join(OsStr::from_bytes(name));
        fs::rename(&film, &odd).unwrap();
        let library = folder.path().join("library");
        let ran = index(&library, &[folder.path()]).exits(0);
        assert_eq!(ran.lines("source_report").len(), 1, "{ran:?}");
        assert_eq!(info(&library)["clips"], 2);
    }
}

#[test]
fn a_playlist_cannot_open_other_files() {
    let folder = TempDir::new().unwrap();
    let secret = film(folder.path(), "secret.ts");
    let list = folder.path().join("list.m3u8");
    let text = format!(
        "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{}\n#EXT-X-ENDLIST\n",
        secret.display()
    );
    fs::write(&list, text).unwrap();
    fails(&folder, &list);
}

#[test]
fn a_wrong_pipeline_is_refused_with_every_mistake_and_its_line() {
    let folder = TempDir::new().unwrap();
    let film = film(folder.path(), "film.mp4");
    let file = folder.path().join("mine.toml");
    let text = include_str!("../../pipelines/default.toml")
        .replace("clip_secs = 1.5", "clip_secs = -1")
        .replace("frames_per_clip", "frames_a_clip")
        .replace("\"efficientnet-lite0@int8\"", "\"resnet\"");
    fs::write(&file, text).unwrap();
    let library = folder.path().join("library");
    let refused = index_with(&library, &[&film], &["--pipeline", file.to_str().unwrap()]).exits(2);
    let place = |line: &str| format!("{}:{line}", file.display());
    for (line, what) in [("7:", "clip_secs"), ("8:", "frames_a_clip"), ("15:", "resnet")] {
        let named = |text: &str| text.contains(&place(line)) && text.contains(what);
        assert!(refused.err.lines().any(named), "{line} {what} in {}", refused.err);
    }
    assert!(!library.exists(), "nothing was made");

    let checked = run(["pipeline", "check", "--json", file.to_str().unwrap()]).exits(2);
    assert!(checked.lines("mistake").len() >= 4, "{checked:?}");
    run(["pipeline", "check", "default"]).exits(0);
    index_with(&library, &[&film], &["--pipeline", "none"]).exits(3);
}

#[test]
fn cuda_that_is_not_there_is_an_error() {
    if Path::new("/dev/nvidia0").exists() {
        eprintln!("skipped: this machine has a GPU");
        return;
    }
    let folder = TempDir::new().unwrap();
    let film = film(folder.path(), "film.mp4");
    let refused = index_with(&folder.path().join("library"), &[&film], &["--device", "cuda"]);
    let refused = refused.exits(3);
    assert!(refused.err.to_lowercase().contains("cuda"), "{refused:?}");
}

#[test]
fn a_library_of_another_schema_or_none_at_all_is_refused() {
    let folder = TempDir::new().unwrap();
    let film = film(folder.path(), "film.mp4");
    let library = folder.path().join("library");
    index(&library, &[&film]).exits(0);
    // `user_version` is the big-endian number at byte 60 of the file (SQLite's file format, 1.3).
    let record = library.join("library.sqlite");
    let mut bytes = fs::read(&record).unwrap();
    bytes[60..64].copy_from_slice(&9_999_u32.to_be_bytes());
    fs::write(&record, bytes).unwrap();
    for ran in [index(&library, &[&film]), search(&library, &["film"])] {
        let ran = ran.exits(3);
        assert!(ran.err.contains("library.sqlite") && ran.err.contains("9999"), "{ran:?}");
    }
    search(&folder.path().join("none"), &["film"]).exits(3);
}

#[test]
fn a_model_that_is_not_what_its_manifest_says_is_refused() {
    let folder = TempDir::new().unwrap();
    let film = film(folder.path(), "film.mp4");
    fs::write(folder.path().join("graph.onnx"), "no graph").unwrap();
    fs::write(
        folder.path().join("mine.toml"),
        "schema = 1\nid = \"mine\"\nversion = \"1\"\nabout = \"a test\"\ntask = \"encoder\"\n\
         licence = \"MIT\"\ncommercial = true\n[[files]]\nname = \"graph.onnx\"\npath = \"graph.onnx\"\n\
         sha256 = \"0000000000000000000000000000000000000000000000000000000000000000\"\nbytes = 8\n\
         [encoder]\nwidth_px = 224\nheight_px = 224\nmean = [0, 0, 0]\nscale = [1, 1, 1]\n\
         layout = \"chw\"\ninput = \"x\"\nfeatures = { name = \"f\", dim = 1280 }\n",
    )
    .unwrap();
    let text = include_str!("../../pipelines/default.toml")
        .replace("\"efficientnet-lite0@int8\"", "\"mine.toml\"")
        .replace("\"3x3\"", "\"none\"");
    let pipeline = folder.path().join("pipeline.toml");
    fs::write(&pipeline, text).unwrap();
    let options = ["--pipeline", pipeline.to_str().unwrap()];
    let refused = index_with(&folder.path().join("library"), &[&film], &options);
    assert!(refused.code == 2 || refused.code == 3, "{refused:?}");
    assert!(refused.err.contains("graph.onnx") || refused.err.contains("mine"), "{refused:?}");
}

#[test]
fn what_cannot_be_written_is_no_wrong_usage() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("library");
    let film = film(folder.path(), "film.mp4");
    index(&library, &[&film]).exits(0);
    let there = folder.path().join("there.txt");
    fs::write(&there, "mine").unwrap();
    let below = there.join("below.txt");
    let mut commands = vec![vec![OsStr::new("caption"), film.as_os_str()]];
    if cfg!(feature = "speech") {
        commands.push(vec![OsStr::new("transcribe"), film.as_os_str()]);
    }
    let mut export = ["library", "export", "--format", "jsonl"].map(OsStr::new).to_vec();
    export.push(library.as_os_str());
    commands.push(export.clone());
    commands.push([&export[..], &[OsStr::new("--what"), OsStr::new("clips")]].concat());
    for mut words in commands {
        words.push(OsStr::new("-o"));
        let refused = finish(command(&words).arg(&below)).exits(1);
        assert!(refused.err.contains("there.txt"), "{refused:?}");
        finish(command(&words).arg(&there)).exits(2);
        assert_eq!(fs::read_to_string(&there).unwrap(), "mine");
    }
}

#[test]
fn wrong_usage_is_exit_code_2_and_every_command_has_an_example() {
    run(["index"]).exits(2);
    run(["search", "nowhere", "words", "--within", "5-3"]).exits(2);
    run(["search", "nowhere", "words", "--top", "0"]).exits(2);
    for words in [
        &["setup"][..],
        &["models", "list"],
        &["models", "check"],
        &["index"],
        &["search"],
        &["library", "info"],
        &["library", "show"],
        &["library", "forget"],
        &["pipeline", "list"],
        &["pipeline", "check"],
        &["codebook", "fit"],
        &["codebook", "show"],
        &["codebook", "stats"],
        &["evaluate", "retrieval"],
    ] {
        let help = finish(command(words).arg("--help")).exits(0).out;
        assert!(help.contains("Example"), "{words:?}: {help}");
    }
}
