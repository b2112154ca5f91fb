//! Files that are cut, flipped, spliced or made to hurt: the run goes on, within its memory, says
//! what became of each, and keeps what is whole.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use half::f16;
use tempfile::TempDir;

use crate::cinelex::{Ran, command, index, index_with, info, run};
use crate::indexing::film;
use crate::media::ffmpeg;
use crate::same::{assert_begins, clips};
use crate::stopping::{assert_gone, hosts_of};

/// What one decoder host may take (`source::Limits`), and what the run itself may: models, queues.
const HOST_BYTES: u64 = 1536 << 20;
const RUN_BYTES: u64 = 900 << 20;
/// The run and all its hosts: the run's own, one host at its limit, and 512 MB for the others. That a
/// second host swells while a first one has not been ended yet is what no file of these does.
const ALL_BYTES: u64 = RUN_BYTES + HOST_BYTES + (512 << 20);

/// A fixed sequence (xorshift64), so that a failure can be repeated.
struct Sequence(u64);

impl Sequence {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % end.max(1) as u64).unwrap()
    }
}

/// Whole files of many kinds.
fn whole(folder: &Path) -> Vec<PathBuf> {
    let words = "1\n00:00:00,200 --> 00:00:01,400\nThe harbour lies in the fog.\n\n\
                 2\n00:00:01,600 --> 00:00:02,800\nA ferry sounds its horn.\n";
    fs::write(folder.join("words.srt"), words).unwrap();
    for name in ["words.vtt", "words.ass"] {
        ffmpeg(folder, &format!("-i words.srt {name}"));
    }
    let picture = "-f lavfi -i testsrc2=s=160x90:r=10:d=4";
    let both = "-f lavfi -i testsrc2=s=160x90:r=10:d=4 -f lavfi -i sine=d=4";
    for (name, input, options) in [
        ("a.mp4", both, "-c:v libx264 -g 10 -c:a aac"),
        ("b.mp4", both, "-c:v libx264 -g 10 -c:a aac -movflags +faststart"),
        ("c.mkv", picture, "-c:v libx265 -g 10 -x265-params log-level=none"),
        (
            "d.mkv",
            "-f lavfi -i testsrc2=s=160x90:r=10:d=4 -i words.srt",
            "-c:v libx264 -g 10 -c:s ass",
        ),
        ("e.webm", both, "-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -g 10 -c:a libopus"),
        ("f.ts", both, "-c:v mpeg2video -g 10 -c:a mp2"),
        ("g.avi", both, "-c:v mpeg4 -g 10 -c:a mp2"),
        ("h.flv", both, "-c:v flv -g 10 -ar 44100"),
        ("i.gif", picture, ""),
        ("j.jpg", picture, "-frames:v 1"),
        ("k.png", picture, "-frames:v 1"),
    ] {
        ffmpeg(folder, &format!("{input} {options} -pix_fmt {} {name}", pixel_format(name)));
    }
    ffmpeg(folder, "-f lavfi -i sine=d=4 l.wav");
    ffmpeg(folder, "-f lavfi -i sine=d=4 -c:a libopus m.ogg");
    let mut files: Vec<PathBuf> =
        fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    files
}

fn pixel_format(name: &str) -> &str {
    match name.rsplit('.').next() {
        Some("gif") => "rgb8",
        Some("jpg") => "yuvj420p",
        Some("png") => "rgb24",
        _ => "yuv420p",
    }
}

/// What was done to a file.
#[derive(Debug, Clone, Copy)]
enum Damage {
    Cut,
    Flip,
    Splice,
}

fn damage(bytes: &[u8], other: &[u8], how: Damage, sequence: &mut Sequence) -> Vec<u8> {
    match how {
        Damage::Cut => bytes[..sequence.below(bytes.len())].to_vec(),
        Damage::Flip => {
            let mut bytes = bytes.to_vec();
            for _ in 0..=sequence.below(64) {
                // Every other one near the start, where the headers are.
                let end = if sequence.below(2) == 0 { bytes.len().min(2_000) } else { bytes.len() };
                bytes[sequence.below(end)] ^= 1 << sequence.below(8);
            }
            bytes
        }
        Damage::Splice => {
            let (head, tail) = (sequence.below(bytes.len()), sequence.below(other.len()));
            [&bytes[..head], &other[tail..]].concat()
        }
    }
}

/// Resident bytes of a process.
fn resident(id: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse().ok());
    kilobytes.unwrap_or(0_u64) << 10
}

/// The most memory that was seen.
#[derive(Debug, Default)]
pub struct Memory {
    run: u64,
    one_host: u64,
    pub all: u64,
}

/// Indexes and looks at the memory meanwhile. Panics when it takes longer than `patience`.
pub fn watch(
    library: &Path,
    sources: &[&Path],
    options: &[&str],
    patience: Duration,
) -> (Ran, Memory) {
    let mut command = command(["index", "--json", "--library"]);
    command.arg(library).args(options).args(sources);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let id = child.id();
    let outputs = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let readers = [
        std::thread::spawn(move || std::io::read_to_string(outputs.0).unwrap()),
        std::thread::spawn(move || std::io::read_to_string(outputs.1).unwrap()),
    ];
    let began = Instant::now();
    let mut memory = Memory::default();
    let mut hosts = Vec::new();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        assert!(began.elapsed() < patience, "not over after {patience:?}");
        hosts = hosts_of(id);
        let of_hosts: Vec<u64> = hosts.iter().map(|host| resident(*host)).collect();
        let of_run = resident(id);
        memory.run = memory.run.max(of_run);
        memory.one_host = memory.one_host.max(of_hosts.iter().copied().max().unwrap_or(0));
        memory.all = memory.all.max(of_run + of_hosts.iter().sum::<u64>());
        std::thread::sleep(Duration::from_millis(50));
    };
    assert_gone(&hosts);
    let [out, err] = readers.map(|reader| reader.join().unwrap());
    assert!(memory.run < RUN_BYTES && memory.one_host < HOST_BYTES, "{memory:?}");
    assert!(memory.all < ALL_BYTES, "{memory:?}");
    (Ran { code: status.code().unwrap_or(-1), out, err }, memory)
}

/// Indexes `count` damaged files, beside a whole one.
fn survive(count: usize) {
    let folder = TempDir::new().unwrap();
    let (originals, tapes) = (folder.path().join("originals"), folder.path().join("tapes"));
    fs::create_dir(&originals).unwrap();
    fs::create_dir(&tapes).unwrap();
    let originals: Vec<(PathBuf, Vec<u8>)> =
        whole(&originals).into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect();
    let films: Vec<&(PathBuf, Vec<u8>)> =
        originals.iter().filter(|(path, _)| !is_words(path)).collect();
    let good = film(folder.path(), "good.mp4");
    let mut sequence = Sequence(0x2545_F491_4F6C_DD1D);
    let mut sources = vec![good.clone()];
    for number in 0..count {
        let (path, bytes) = &originals[number % originals.len()];
        let how = [Damage::Cut, Damage::Flip, Damage::Splice][number / originals.len() % 3];
        let extension = path.extension().unwrap().to_str().unwrap();
        let other = &originals[sequence.below(originals.len())].1;
        let damaged = damage(bytes, other, how, &mut sequence);
        let target = tapes.join(format!("{number:03}.{extension}"));
        fs::write(&target, damaged).unwrap();
        if is_words(path) {
            // Damaged words lie beside a film; several kinds of them beside the same.
            let (film, bytes) = films[number % films.len()];
            let name = format!("{number:03}.{}", film.extension().unwrap().to_str().unwrap());
            fs::write(tapes.join(&name), bytes).unwrap();
            sources.push(tapes.join(name));
        } else {
            sources.push(target);
        }
    }
    let library = folder.path().join("library");
    let paths: Vec<&Path> = sources.iter().map(PathBuf::as_path).collect();
    let (ran, memory) = watch(&library, &paths, &["--images"], Duration::from_secs(1_200));
    assert!(ran.code == 0 || ran.code == 1, "{ran:?}");
    let mut states: BTreeMap<String, u32> = BTreeMap::new();
    for path in &sources {
        let report = ran.source(path.file_name().unwrap().to_str().unwrap());
        let state = report["state"].as_str().unwrap();
        assert!(["indexed", "unchanged", "failed"].contains(&state), "{report}");
        if state == "failed" {
            assert!(!report["error"]["reason"].as_str().unwrap().is_empty(), "{report}");
            assert_ne!(report["error"]["kind"], "internal", "{report}");
        }
        *states.entry(state.to_owned()).or_default() += 1;
    }
    assert_eq!(ran.lines("source_report").len(), sources.len());
    assert_eq!(ran.source("good.mp4")["clips"], 2);
    eprintln!("{count} damaged files: {states:?}, {memory:?}");
    // And the library is one.
    assert!(info(&library)["clips"].as_u64() > Some(2));
    run(["library", "check", library.to_str().unwrap()]).exits(0);
}

fn is_words(path: &Path) -> bool {
    path.extension().is_some_and(|extension| ["srt", "vtt", "ass"].iter().any(|e| extension == *e))
}

#[test]
fn damaged_files_are_survived() {
    survive(32);
}

#[test]
#[ignore = "slow: 300 damaged files"]
fn three_hundred_damaged_files_are_survived() {
    survive(300);
}

#[test]
fn what_lies_before_a_cut_is_indexed_as_if_there_were_none() {
    let folder = TempDir::new().unwrap();
    let folder = folder.path();
    let picture = "-f lavfi -i testsrc2=s=160x90:r=10:d=24 -pix_fmt yuv420p";
    for (name, options) in [
        ("a.ts", "-c:v mpeg2video -g 10"),
        ("b.ts", "-c:v libx264 -g 20"),
        ("c.mkv", "-c:v libx264 -g 20"),
        ("d.mkv", "-c:v libx265 -g 20 -x265-params log-level=none"),
        ("e.webm", "-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -g 20"),
        ("f.mp4", "-c:v libx264 -g 20 -movflags +faststart"),
    ] {
        ffmpeg(folder, &format!("{picture} {options} {name}"));
        let bytes = fs::read(folder.join(name)).unwrap();
        fs::write(folder.join(format!("cut_{name}")), &bytes[..bytes.len() * 2 / 3]).unwrap();
    }
    let library = folder.join("library");
    index(&library, &[folder]).exits(0);
    for name in ["a.ts", "b.ts", "c.mkv", "d.mkv", "e.webm", "f.mp4"] {
        let all = clips(&library, name);
        let part = clips(&library, &format!("cut_{name}"));
        assert_eq!(all.len(), 16, "{name}");
        assert!((6..=13).contains(&part.len()), "{name}: {} clips before the cut", part.len());
        // The last frames before a cut may be shown longer, or with errors.
        assert_begins(&all, &part, 2);
    }
}

/// Where each keyframe of a film's picture lies: its byte and its time.
fn keyframes(path: &Path) -> Vec<(usize, f64)> {
    let show = "-v error -select_streams v -show_entries packet=pts_time,pos,flags -of csv=p=0";
    let told = Command::new("ffprobe").args(show.split(' ')).arg(path).output().unwrap();
    let told = String::from_utf8(told.stdout).unwrap();
    let packets = told.lines().filter(|line| line.contains('K')).map(|line| {
        let mut fields = line.split(',');
        let time = fields.next().unwrap().parse().unwrap();
        (fields.next().unwrap().parse().unwrap(), time)
    });
    packets.collect()
}

#[test]
fn what_lies_around_flipped_bits_is_indexed_as_if_there_were_none() {
    let folder = TempDir::new().unwrap();
    let folder = folder.path();
    let picture = "-f lavfi -i testsrc2=s=160x90:r=10:d=24 -pix_fmt yuv420p";
    let films = [
        ("a.ts", "-c:v mpeg2video -g 20"),
        ("b.ts", "-c:v libx264 -g 20"),
        ("c.mkv", "-c:v libx264 -g 20"),
        ("d.mkv", "-c:v libx265 -x265-params log-level=none:keyint=20:open-gop=0"),
        ("e.webm", "-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -g 20"),
        ("f.mp4", "-c:v libx264 -g 20 -movflags +faststart"),
    ];
    let mut groups = BTreeMap::new();
    for (name, options) in films {
        ffmpeg(folder, &format!("{picture} {options} {name}"));
        let found = keyframes(&folder.join(name));
        let first = found[0].1;
        let (group, next) = (found[found.len() / 2], found[found.len() / 2 + 1]);
        // Flips in the sizes of blocks cost the rest of a cluster, in which WebM has several groups.
        let whole_again = if name == "e.webm" { found[found.len() - 1] } else { next };
        groups.insert(name, (group.1 - first, whole_again.1 - first));
        let mut bytes = fs::read(folder.join(name)).unwrap();
        // All over the group, its keyframe's headers left out.
        let length = next.0 - group.0;
        let mut sequence = Sequence(0x2545_F491_4F6C_DD1D);
        for _ in 0..16 {
            bytes[group.0 + length / 8 + sequence.below(length * 3 / 4)] ^= 1 << sequence.below(8);
        }
        fs::write(folder.join(format!("flipped_{name}")), bytes).unwrap();
    }
    let library = folder.join("library");
    index(&library, &[folder]).exits(0);
    for (name, (from, to)) in groups {
        let (all, part) = (clips(&library, name), clips(&library, &format!("flipped_{name}")));
        assert_eq!(all.len(), 16, "{name}");
        let [from, to] = [from, to].map(|secs| (secs * 1e6) as i64);
        let before = all.iter().filter(|(at, _)| at + 1_500_000 <= from).count();
        assert!(before == 8 && part.len() >= before, "{name}: {} clips", part.len());
        assert_begins(&all[..before], &part[..before], 0);
        assert!(all != part, "{name}: nothing was flipped");
        let behind = |clips: &[(i64, Vec<f16>)]| {
            clips.iter().filter(|(at, _)| *at >= to).cloned().collect::<Vec<_>>()
        };
        assert!(!behind(&all).is_empty() && behind(&all).len() == behind(&part).len(), "{name}");
        assert_begins(&behind(&all), &behind(&part), 0);
    }
}

#[test]
fn what_is_made_to_hurt_hurts_nobody_else() {
    let folder = TempDir::new().unwrap();
    let folder = folder.path();
    let good = film(folder, "good.mp4");
    // As large as FFmpeg's encoders make them, and all of one colour: a few hundred kilobytes that
    // stand for a gigabyte.
    ffmpeg(folder, "-f lavfi -i color=c=gray:s=16000x16000 -frames:v 1 -c:v png huge.png");
    ffmpeg(
        folder,
        "-f lavfi -i color=c=gray:s=8192x8192:r=1:d=2 -c:v libx264 -preset ultrafast -pix_fmt yuv420p huge.mp4",
    );
    // A frame, and the next one two hundred hours later.
    ffmpeg(
        folder,
        "-f lavfi -i testsrc2=s=64x64:r=1:d=2 -vf setpts=N*720000/TB -fps_mode passthrough \
         -c:v libx264 -pix_fmt yuv420p far.mkv",
    );
    // As many tracks as FFmpeg reads.
    let many = "-map 0 ".repeat(300);
    ffmpeg(folder, "-f lavfi -i color=s=16x16:r=1:d=2 -c:v ffv1 one.mkv");
    ffmpeg(folder, &format!("-i one.mkv {many} -c copy many.mkv"));
    // A title of a megabyte.
    fs::write(
        folder.join("title"),
        format!(";FFMETADATA1\ntitle={}\n[STREAM]\ntitle={0}\n", "x".repeat(200_000)),
    )
    .unwrap();
    ffmpeg(
        folder,
        "-i one.mkv -f ffmetadata -i title -map 0 -map_metadata 1 -map_metadata:s:v 1:s:0 -c copy title.mkv",
    );
    // Ten thousand pictures a second.
    ffmpeg(folder, "-f lavfi -i color=s=16x16:r=10000:d=1 -c:v mjpeg -pix_fmt yuvj420p fast.mkv");
    // Subtitles without end, and one of sixteen megabytes.
    let mut words = String::new();
    for at in 0..150_000 {
        words += &format!("{}\n00:00:00,000 --> 00:00:01,{:03}\nword {at}\n\n", at + 1, at % 1000);
    }
    fs::write(folder.join("good.srt"), &words[..(15 << 20).min(words.len())]).unwrap();
    let sources = ["huge.png", "huge.mp4", "far.mkv", "many.mkv", "title.mkv", "fast.mkv"];
    let mut paths: Vec<PathBuf> = sources.iter().map(|name| folder.join(name)).collect();
    paths.push(good);
    let paths: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
    let library = folder.join("library");
    let (ran, memory) = watch(&library, &paths, &["--images"], Duration::from_secs(600));
    assert!(ran.code == 0 || ran.code == 1, "{ran:?}");
    for name in sources {
        let report = ran.source(name);
        eprintln!("{name}: {} {} {}", report["state"], report["clips"], report["error"]["reason"]);
        assert_ne!(report["error"]["kind"], "internal", "{report}");
    }
    eprintln!("{memory:?}");
    assert_eq!(ran.source("good.mp4")["clips"], 2);
    assert_eq!(ran.source("many.mkv")["state"], "indexed");
    assert_eq!(ran.source("title.mkv")["state"], "indexed");
    let bytes = info(&library)["bytes"].as_u64().unwrap();
    assert!(bytes < 200 << 20, "{bytes} bytes in the library");
    index_with(&library, &[&folder.join("good.mp4")], &[]).exits(0);
}
