//! From files to answers, as a user goes: index, look, search, forget.

use std::fs;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::cinelex::{Ran, command, finish, index, index_with, info, run, search, show};
use crate::media::ffmpeg;
use crate::stopping::{begin_with_a_chunk, clips_of, go_on, hosts_of};

/// Three seconds of a moving test picture and a tone.
pub fn film(folder: &Path, name: &str) -> PathBuf {
    film_of(folder, name, 3.0)
}

fn film_of(folder: &Path, name: &str, secs: f64) -> PathBuf {
    ffmpeg(
        folder,
        &format!(
            "-f lavfi -i testsrc2=s=320x180:r=25:d={secs} -f lavfi -i sine=d={secs} \
             -c:v libx264 -g 25 -pix_fmt yuv420p -c:a aac {name}"
        ),
    );
    folder.join(name)
}

const SUBTITLES: &str = "1\n00:00:00,200 --> 00:00:01,400\nThe harbour lies in the fog.\n\n\
                         2\n00:00:01,600 --> 00:00:02,800\nA ferry sounds its horn.\n";

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_film_becomes_clips_segments_and_answers() {
    let folder = TempDir::new().unwrap();
    let film = film(folder.path(), "harbour.mp4");
    fs::write(folder.path().join("harbour.en.srt"), SUBTITLES).unwrap();
    let library = folder.path().join("films.library");

    let ran = index(&library, &[&film]).exits(0);
    let source = ran.source("harbour.mp4");
    assert_eq!(source["state"], "indexed");
    assert_eq!((&source["clips"], &source["cues"]), (&json!(2), &json!(2)));
    assert_eq!(ran.line("run")["segments"], 2);

    let info = info(&library);
    for (name, count) in [("sources", 1), ("clips", 2), ("segments", 2), ("cues", 2), ("gaps", 0)] {
        assert_eq!(info[name], count, "{name}");
    }
    assert!(info["bytes"].as_u64().unwrap() > 0);

    let shown = show(&library, "harbour.mp4").exits(0);
    let clips = shown.lines("clip");
    assert_eq!(clips.len(), 2);
    // The whole picture's word and one for each of nine cells.
    assert_eq!(clips[0]["visual_words"].as_array().unwrap().len(), 10);
    let texts: Vec<_> = shown.lines("segment").iter().map(|line| line["words"].clone()).collect();
    assert_eq!(texts, ["The harbour lies in the fog.", "A ferry sounds its horn."]);

    let hits = search(&library, &["ferry", "--channel", "speech"]).exits(0).lines("hit");
    assert_eq!(hits[0]["words"], "A ferry sounds its horn.");
    assert_eq!(hits[0]["start_us"], 1_600_000);
    // By meaning alone: no word of the query was said.
    let hits = search(&library, &["a ship makes noise", "--channel", "speech"]).lines("hit");
    assert_eq!(
        (&hits[0]["words"], &hits[0]["by"]),
        (&json!("A ferry sounds its horn."), &json!("meaning"))
    );
}

#[test]
fn an_unchanged_source_changes_nothing_and_new_subtitles_are_read() {
    let folder = TempDir::new().unwrap();
    let film = film(folder.path(), "film.mp4");
    let library = folder.path().join("library");
    index(&library, &[&film]).exits(0);
    let before = show(&library, "film.mp4").out;

    let again = index(&library, &[&film]).exits(0);
    assert_eq!(again.source("film.mp4")["state"], "unchanged");
    assert_eq!(show(&library, "film.mp4").out, before);

    fs::write(folder.path().join("film.srt"), SUBTITLES).unwrap();
    let again = index(&library, &[&film]).exits(0);
    assert_eq!(again.source("film.mp4")["cues"], 2);
    assert_eq!(again.source("film.mp4")["clips"], 0);
    assert_eq!(show(&library, "film.mp4").lines("cue").len(), 2);
    assert_eq!(search(&library, &["ferry"]).lines("hit")[0]["words"], "A ferry sounds its horn.");
}

#[test]
fn a_file_that_is_still_being_written_is_one_source_that_grows() {
    let folder = TempDir::new().unwrap();
    ffmpeg(
        folder.path(),
        "-f lavfi -i testsrc2=s=320x180:r=25:d=12 -c:v libx264 -g 25 -pix_fmt yuv420p whole.ts",
    );
    let whole = fs::read(folder.path().join("whole.ts")).unwrap();
    let growing = folder.path().join("growing.ts");
    let library = folder.path().join("library");
    fs::write(&growing, &whole[..whole.len() / 2]).unwrap();
    let first = index_with(&library, &[&growing], &["--tag", "shelf=12"])
        .exits(0)
        .source("growing.ts")["clips"]
        .clone();
    assert!((3..=5).contains(&first.as_u64().unwrap()), "{first}");
    fs::OpenOptions::new()
        .append(true)
        .open(&growing)
        .unwrap()
        .write_all(&whole[whole.len() / 2..])
        .unwrap();
    index(&library, &[&growing]).exits(0);
    let info = info(&library);
    assert_eq!((&info["sources"], &info["clips"]), (&json!(1), &json!(8)));
    // What was said about it still holds.
    let found = search(&library, &["a test picture", "--tag", "shelf=12"]).exits(0);
    assert!(!found.lines("hit").is_empty());
}

#[test]
fn a_link_elsewhere_takes_no_subtitles_away() {
    let folder = TempDir::new().unwrap();
    let film = film(folder.path(), "film.mp4");
    fs::write(folder.path().join("film.srt"), SUBTITLES).unwrap();
    let library = folder.path().join("library");
    index(&library, &[&film]).exits(0);
    let elsewhere = folder.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let link = elsewhere.join("link.mp4");
    std::os::unix::fs::symlink(&film, &link).unwrap();
    assert_eq!(index(&library, &[&link]).exits(0).source("link.mp4")["state"], "unchanged");
    assert_eq!((&info(&library)["cues"], &info(&library)["sources"]), (&json!(2), &json!(1)));
}

#[test]
fn a_reader_that_goes_away_stops_no_indexing() {
    let folder = TempDir::new().unwrap();
    let films: Vec<PathBuf> = (0..4)
        .map(|number| film_of(folder.path(), &format!("{number}.mp4"), 2.0 + f64::from(number)))
        .collect();
    for options in [&["--json"][..], &[]] {
        let library = folder.path().join(format!("library{}", options.len()));
        let mut child = command(["index", "--workers", "1", "--library"])
            .arg(&library)
            .args(options)
            .args(&films)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop((child.stdout.take(), child.stderr.take()));
        assert!(child.wait().unwrap().success());
        assert_eq!(info(&library)["complete"], 4);
    }
}

#[test]
fn embedded_subtitles_are_cues_with_their_language() {
    let folder = TempDir::new().unwrap();
    film(folder.path(), "plain.mp4");
    fs::write(folder.path().join("words.srt"), SUBTITLES).unwrap();
    ffmpeg(
        folder.path(),
        "-i plain.mp4 -i words.srt -map 0 -map 1 -c copy -c:s ass -metadata:s:s:0 language=eng film.mkv",
    );
    let library = folder.path().join("library");
    index(&library, &[&folder.path().join("film.mkv")]).exits(0);
    let cues = show(&library, "film.mkv").lines("cue");
    assert_eq!(cues.len(), 2);
    assert_eq!(cues[1]["text"], "A ferry sounds its horn.");
    assert_eq!(cues[1]["language"], "en");
}

#[test]
fn search_can_be_narrowed() {
    let folder = TempDir::new().unwrap();
    let (one, two) = (film(folder.path(), "one.mp4"), film_of(folder.path(), "two.mp4", 3.2));
    for name in ["one.srt", "two.srt"] {
        fs::write(folder.path().join(name), SUBTITLES).unwrap();
    }
    let library = folder.path().join("library");
    index_with(&library, &[&one], &["--tag", "shelf=12", "--tag", "owner=ann"]).exits(0);
    index(&library, &[&two]).exits(0);

    let names = |options: &[&str]| -> Vec<Value> {
        let mut options = options.to_vec();
        options.insert(0, "ferry");
        let hits = search(&library, &options).exits(0).lines("hit");
        hits.iter().map(|hit| hit["name"].clone()).collect()
    };
    let speech = ["--channel", "speech", "--min-score", "0.9"];
    let with = |more: &[&'static str]| [&speech[..], more].concat();
    assert_eq!(names(&with(&[])).len(), 2);
    assert_eq!(names(&with(&["--top", "1"])).len(), 1);
    assert_eq!(names(&with(&["--source", "two.mp4"])), ["two.mp4"]);
    assert_eq!(names(&with(&["--tag", "shelf=12"])), ["one.mp4"]);
    assert_eq!(names(&with(&["--tag", "shelf=13"])), Vec::<Value>::new());
    assert_eq!(names(&with(&["--within", "0-1.5"])), Vec::<Value>::new());
    assert_eq!(names(&with(&["--within", "1.6-"])).len(), 2);
    let refused = search(&library, &["ferry", "--source", "three.mp4"]).exits(2);
    assert!(refused.err.contains("three.mp4"), "{refused:?}");
}

#[test]
fn a_search_without_hits_says_what_emptied_it() {
    let folder = TempDir::new().unwrap();
    let film = film(folder.path(), "film.mp4");
    let library = folder.path().join("library");
    index_with(&library, &[&film], &["--tag", "shelf=12"]).exits(0);
    let said = |options: &[&str]| {
        let ran = search(&library, &[&["a test picture"], options].concat()).exits(0);
        assert_eq!(ran.out, "");
        ran.err
    };
    let shelf = said(&["--tag", "shelf=13", "--within", "0-10"]);
    assert!(shelf.contains("there are hits without --tag shelf=13.\n"), "{shelf}");
    let both = said(&["--tag", "shelf=13", "--within", "20:00-"]);
    assert!(both.contains("leaving out any one of the filters"), "{both}");
    // Words that occur nowhere are found by their meaning.
    let nowhere = search(&library, &["qwxzv plugh", "--tag", "shelf=13"]).exits(0).err;
    assert!(nowhere.contains("there are hits without --tag shelf=13.\n"), "{nowhere}");
    // A model that is missing is no fault of the library.
    let mut unset = command(["search"]);
    unset.arg(&library).arg("a dog").env("CINELEX_CACHE", folder.path().join("cache"));
    let unset = finish(&mut unset).exits(3);
    assert!(unset.err.contains("cinelex setup") && !unset.err.contains(".sqlite"), "{unset:?}");
    let refused = search(&library, &["a", "--export", path(&folder.path().join("a.xyz"))]).exits(2);
    assert!(refused.err.contains(".mp4, .mkv"), "{refused:?}");
}

#[test]
fn a_first_run_of_which_nothing_came_leaves_no_folder_that_was_not_there() {
    let folder = TempDir::new().unwrap();
    let broken = folder.path().join("broken.mp4");
    fs::write(&broken, "no film").unwrap();
    let library = folder.path().join("library");
    index(&library, &[&broken]).exits(1);
    assert!(!library.exists());
    fs::create_dir(&library).unwrap();
    index(&library, &[&broken]).exits(1);
    assert_eq!(info(&library)["sources"], 0);
}

#[test]
fn wall_clock_search_uses_the_time_that_the_file_states() {
    let folder = TempDir::new().unwrap();
    film(folder.path(), "plain.mp4");
    fs::write(folder.path().join("film.srt"), SUBTITLES).unwrap();
    ffmpeg(
        folder.path(),
        "-i plain.mp4 -c copy -metadata creation_time=2026-03-01T10:00:00Z film.mp4",
    );
    let library = folder.path().join("library");
    index(&library, &[&folder.path().join("film.mp4")]).exits(0);
    let hits = |from: &str, to: &str| {
        let options =
            ["ferry", "--channel", "speech", "--min-score", "0.9", "--from", from, "--to", to];
        search(&library, &options).exits(0).lines("hit").len()
    };
    assert_eq!(hits("2026-03-01T10:00:00Z", "2026-03-01T10:01:00Z"), 1);
    assert_eq!(hits("2026-03-01T10:00:00Z", "2026-03-01T10:00:01Z"), 0);
    assert_eq!(hits("2026-03-01T10:00:05Z", "2026-03-02T00:00:00Z"), 0);
}

#[test]
fn a_picture_and_a_clip_find_what_looks_like_them_and_the_moment_can_be_cut_out() {
    let folder = TempDir::new().unwrap();
    // Three seconds each of a mandelbrot set, a test picture and plain noise.
    ffmpeg(
        folder.path(),
        "-f lavfi -i mandelbrot=s=320x180:r=25 -f lavfi -i testsrc2=s=320x180:r=25 \
         -f lavfi -i nullsrc=s=320x180:r=25,geq=random(1)*255:128:128 -filter_complex \
         [0]trim=duration=3,setsar=1[a];[1]trim=duration=3,setsar=1[b];[2]trim=duration=3,setsar=1[c];[a][b][c]concat=n=3 \
         -pix_fmt yuv420p film.mp4",
    );
    ffmpeg(folder.path(), "-ss 4 -i film.mp4 -frames:v 1 picture.png");
    let library = folder.path().join("library");
    index(&library, &[&folder.path().join("film.mp4")]).exits(0);
    let picture = folder.path().join("picture.png");
    let cut = folder.path().join("cut.mp4");

    let found =
        search(&library, &["--image", path(&picture), "--top", "1", "--export", path(&cut)]);
    let hit = found.exits(0).lines("hit").remove(0);
    let start = hit["start_us"].as_i64().unwrap();
    assert!((3_000_000..6_000_000).contains(&start), "{hit}");
    let probed = std::process::Command::new("ffprobe")
        .args(["-v", "error", "-show_entries", "format=duration", "-of", "csv=p=0"])
        .arg(&cut)
        .output()
        .unwrap();
    let secs: f64 = String::from_utf8(probed.stdout).unwrap().trim().parse().unwrap();
    let wanted = (hit["end_us"].as_i64().unwrap() - start) as f64 / 1e6;
    assert!((secs - wanted).abs() < 0.1, "{secs} s for {wanted} s");
    // A file that is there is not overwritten.
    search(&library, &["--image", path(&picture), "--export", path(&cut)]).exits(2);

    let clip = hit["clip"].as_str().unwrap();
    let like = search(&library, &["--like", clip, "--top", "1"]).exits(0).lines("hit").remove(0);
    assert!(like["score"].as_f64().unwrap() > 0.99, "a clip is most like itself: {like}");
}

#[test]
fn a_forgotten_source_is_gone_and_the_others_stay() {
    let folder = TempDir::new().unwrap();
    let (one, two) = (film(folder.path(), "one.mp4"), film_of(folder.path(), "two.mp4", 3.2));
    fs::write(folder.path().join("one.srt"), SUBTITLES).unwrap();
    let library = folder.path().join("library");
    index(&library, &[&one, &two]).exits(0);
    run(["library", "forget", path(&library), "one.mp4"]).exits(0);
    assert_eq!(info(&library)["sources"], 1);
    assert_eq!(info(&library)["cues"], 0);
    for file in fs::read_dir(&library).unwrap() {
        let bytes = fs::read(file.unwrap().path()).unwrap();
        assert!(!bytes.windows(14).any(|window| window == b"sounds its hor"));
    }
    show(&library, "two.mp4").exits(0);
    // One that was forgotten can be indexed again.
    assert_eq!(index(&library, &[&one]).exits(0).source("one.mp4")["state"], "indexed");
}

#[test]
fn sources_come_from_folders_patterns_links_and_standard_input() {
    let folder = TempDir::new().unwrap();
    let tapes = folder.path().join("tapes");
    fs::create_dir_all(tapes.join("old")).unwrap();
    let one = film(&tapes, "one.mp4");
    fs::copy(&one, tapes.join("old/two.mkv.mp4")).unwrap();
    fs::write(tapes.join("notes.txt"), "not a film").unwrap();
    std::os::unix::fs::symlink(&one, folder.path().join("link.mp4")).unwrap();
    // A folder that holds itself.
    std::os::unix::fs::symlink(&tapes, tapes.join("again")).unwrap();

    let whole = index(&folder.path().join("a"), &[&tapes]).exits(0);
    assert_eq!(whole.lines("source_report").len(), 2);
    // The same bytes are one source at two places.
    assert_eq!(info(&folder.path().join("a"))["sources"], 1);

    let pattern = folder.path().join("tapes/*.mp4");
    assert_eq!(
        index(&folder.path().join("b"), &[&pattern]).exits(0).lines("source_report").len(),
        1
    );
    let link = folder.path().join("link.mp4");
    assert_eq!(index(&folder.path().join("c"), &[&link]).exits(0).lines("source_report").len(), 1);

    let mut listed = command(["index", "--json", "-", "--library"]);
    listed.arg(folder.path().join("d")).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = listed.spawn().unwrap();
    child.stdin.take().unwrap().write_all(format!("{}\n", one.display()).as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert!(String::from_utf8(output.stdout).unwrap().contains("\"indexed\""));
}

#[test]
fn still_images_count_in_folders_only_when_asked_for() {
    let folder = TempDir::new().unwrap();
    ffmpeg(folder.path(), "-f lavfi -i testsrc2=s=320x180 -frames:v 1 photo.jpg");
    let library = folder.path().join("library");
    index(&library, &[folder.path()]).exits(1);
    let ran = index_with(&library, &[folder.path()], &["--images"]).exits(0);
    assert_eq!(ran.source("photo.jpg")["clips"], 1);
}

#[test]
fn sound_alone_has_no_clips_and_its_words_are_found() {
    let folder = TempDir::new().unwrap();
    ffmpeg(folder.path(), "-f lavfi -i sine=d=3 talk.m4a");
    fs::write(folder.path().join("talk.srt"), SUBTITLES).unwrap();
    let library = folder.path().join("library");
    let ran = index(&library, &[&folder.path().join("talk.m4a")]).exits(0);
    let source = ran.source("talk.m4a");
    assert_eq!((&source["clips"], &source["cues"]), (&json!(0), &json!(2)));
    assert_eq!(search(&library, &["ferry"]).lines("hit")[0]["words"], "A ferry sounds its horn.");
}

/// Serves one file over HTTP, with ranges, until the test ends.
fn serve(file: &Path) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let file = file.to_owned();
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let (mut connection, file) = (connection.unwrap(), file.clone());
            std::thread::spawn(move || {
                let mut start = 0;
                for line in BufReader::new(connection.try_clone().unwrap()).lines() {
                    let line = line.unwrap_or_default().to_ascii_lowercase();
                    if let Some(range) = line.strip_prefix("range: bytes=") {
                        start =
                            range.trim_end_matches('-').split('-').next().unwrap().parse().unwrap();
                    }
                    if line.is_empty() {
                        break;
                    }
                }
                let mut content = Vec::new();
                let mut file = fs::File::open(file).unwrap();
                let size = file.metadata().unwrap().len();
                file.seek(SeekFrom::Start(start)).unwrap();
                file.read_to_end(&mut content).unwrap();
                let head = format!(
                    "HTTP/1.1 206 Partial Content\r\nContent-Type: video/mp4\r\nAccept-Ranges: bytes\r\n\
                     Content-Range: bytes {start}-{}/{size}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                    size - 1,
                    content.len()
                );
                // The reader may have had enough; that is its right.
                let _ = connection
                    .write_all(head.as_bytes())
                    .and_then(|()| connection.write_all(&content));
            });
        }
    });
    format!("{address}")
}

#[test]
fn an_address_is_indexed_and_its_password_is_kept_nowhere() {
    let folder = TempDir::new().unwrap();
    let address = serve(&film(folder.path(), "film.mp4"));
    let library = folder.path().join("library");
    let url = format!("http://ann:sesame@{address}/film.mp4");
    let ran = index(&library, &[Path::new(&url)]).exits(0);
    assert_eq!(ran.source("film.mp4")["clips"], 2);
    assert!(!ran.out.contains("sesame") && !ran.err.contains("sesame"), "{ran:?}");
    for file in fs::read_dir(&library).unwrap() {
        let bytes = fs::read(file.unwrap().path()).unwrap();
        assert!(!bytes.windows(6).any(|window| window == b"sesame"));
    }
}

/// Six minutes: three chunks.
fn long_film(folder: &Path, name: &str) -> PathBuf {
    ffmpeg(
        folder,
        &format!(
            "-f lavfi -i testsrc2=s=640x360:r=25:d=360 -c:v libx264 -preset ultrafast -g 50 \
             -pix_fmt yuv420p {name}"
        ),
    );
    folder.join(name)
}

#[test]
fn an_interrupted_run_keeps_what_is_finished_and_the_next_one_goes_on() {
    let folder = TempDir::new().unwrap();
    let film = long_film(folder.path(), "long.mp4");
    interrupt_and_go_on(folder.path(), &film);
}

#[test]
fn a_film_whose_header_understates_its_length_is_read_on_to_its_end() {
    let folder = TempDir::new().unwrap();
    let film = long_film(folder.path(), "long.mkv");
    let mut bytes = fs::read(&film).unwrap();
    // Matroska's Duration: element 0x4489, 8 bytes, a float of milliseconds.
    let at = (0..bytes.len()).find(|&at| bytes[at..].starts_with(&[0x44, 0x89, 0x88])).unwrap();
    bytes[at + 3..at + 11].copy_from_slice(&60_000f64.to_be_bytes());
    fs::write(&film, bytes).unwrap();
    interrupt_and_go_on(folder.path(), &film);
}

/// Interrupts the indexing of a [`long_film`] after its first chunk, goes on, and compares with an
/// unbroken run.
fn interrupt_and_go_on(folder: &Path, film: &Path) {
    let library = folder.join("library");
    let name = film.file_name().unwrap().to_str().unwrap();
    let child = begin_with_a_chunk(&library, &[film], &["--workers", "1"]);
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    go_on(&child);
    Ran::new(&child.wait_with_output().unwrap()).exits(130);
    let kept = info(&library)["clips"].as_u64().unwrap();
    assert!((80..240).contains(&kept), "{kept} clips are kept");

    let ran = index(&library, &[film]).exits(0);
    assert_eq!(ran.source(name)["clips"].as_u64().unwrap() + kept, 240);
    // The same as an unbroken run gives.
    let whole = folder.join("whole");
    index(&whole, &[film]).exits(0);
    let clips = |library: &Path| {
        let clips = show(library, name).lines("clip").into_iter();
        clips
            .map(|clip| (clip["start_us"].clone(), clip["visual_words"].clone()))
            .collect::<Vec<_>>()
    };
    assert_eq!(clips(&library), clips(&whole));
}

#[test]
fn a_host_that_is_killed_costs_its_source_only() {
    let folder = TempDir::new().unwrap();
    ffmpeg(
        folder.path(),
        "-f lavfi -i testsrc2=s=1280x720:r=25:d=240 -c:v libx264 -preset ultrafast -g 50 -pix_fmt yuv420p a_long.mp4",
    );
    let good = film(folder.path(), "b_good.mp4");
    let library = folder.path().join("library");
    let long = folder.path().join("a_long.mp4");
    let child = begin_with_a_chunk(&library, &[&long, &good], &["--workers", "1"]);
    // It is in the midst of the second chunk.
    for host in hosts_of(child.id()) {
        let host = rustix::process::Pid::from_raw(host as i32).unwrap();
        rustix::process::kill_process(host, rustix::process::Signal::KILL).unwrap();
    }
    go_on(&child);
    let ran = Ran::new(&child.wait_with_output().unwrap()).exits(1);
    let long = ran.source("a_long.mp4");
    assert_eq!((&long["state"], &long["clips"]), (&json!("failed"), &json!(80)), "{long}");
    assert!(long["error"]["reason"].as_str().unwrap().contains("crashed"), "{long}");
    assert_eq!(ran.source("b_good.mp4")["clips"], 2);
    // Another run reads what is missing, and no more.
    let again = index(&library, &[&folder.path().join("a_long.mp4")]).exits(0);
    assert_eq!(again.source("a_long.mp4")["clips"], 80);
    assert_eq!(clips_of(&library), 162);
}

/// Needs `cinelex setup efficientnet-lite1`.
#[test]
fn another_encoder_is_a_line_in_the_pipeline() {
    let folder = TempDir::new().unwrap();
    let film = film(folder.path(), "film.mp4");
    let text = include_str!("../../pipelines/default.toml")
        .replace("\"efficientnet-lite0@int8\"", "\"efficientnet-lite1\"");
    let pipeline = folder.path().join("lite1.toml");
    fs::write(&pipeline, text).unwrap();
    let library = folder.path().join("library");
    let ran = index_with(&library, &[&film], &["--pipeline", path(&pipeline)]).exits(0);
    assert_eq!(ran.source("film.mp4")["clips"], 2);
    // The default codebook knows another encoder's features, and that is said.
    assert!(ran.err.contains("codebook fit"), "{ran:?}");
    let hits = search(&library, &["a test picture", "--channel", "picture"]).exits(0).lines("hit");
    assert_eq!(hits.len(), 1);

    // The default pipeline builds beside it, and takes over when it is complete.
    index(&library, &[&film]).exits(0);
    let recipes = info(&library)["recipes"].as_array().unwrap().clone();
    let clips: Vec<_> = recipes.iter().filter(|recipe| recipe["kind"] == "clip").collect();
    assert_eq!(clips.len(), 1, "{clips:?}");
    assert!(clips[0]["description"]["encoder"].as_str().unwrap().starts_with("efficientnet-lite0"));

    // And back: a recipe that was cleared away is built anew, and seen.
    index_with(&library, &[&film], &["--pipeline", path(&pipeline)]).exits(0);
    assert_eq!(show(&library, "film.mp4").lines("clip").len(), 2);
    // Where a film is left to the other pipeline, that is said.
    let other = film_of(folder.path(), "other.mp4", 2.0);
    let ran = index(&library, &[&other]).exits(0);
    assert_eq!(ran.line("run")["waiting"], 1);
}
