//! Training: what it is given, what it leaves. Needs `cinelex setup`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use cinelex::model::Models;
use cinelex::train::{Config, Material, Sources};
use serde_json::{Value, json};

use crate::cinelex::{Ran, command, finish, index_with, run, show};
use crate::media::ffmpeg;

/// A collection of six photos, one of which is none and one of which has no caption with words.
fn collection(folder: &Path) -> PathBuf {
    let data = folder.join("photos");
    let images = data.join("images");
    fs::create_dir_all(&images).unwrap();
    let mut captions = "image\tsplit\tcaption\n".to_owned();
    for (number, split) in ["train", "train", "train", "dev", "dev"].iter().enumerate() {
        let color = ["red", "green", "blue", "red", "blue"][number];
        ffmpeg(
            &images,
            &format!("-f lavfi -i color={color}:s=64x64 -frames:v 1 -update 1 {number}.png"),
        );
        for caption in ["A {} card .", "the {} wall", "It is {}, all of it."] {
            captions += &format!("{number}.png\t{split}\t{}\n", caption.replace("{}", color));
        }
    }
    fs::copy(images.join("0.png"), images.join("mute.png")).unwrap();
    fs::write(images.join("none.png"), b"no picture").unwrap();
    captions += "mute.png\ttrain\t .\nnone.png\ttrain\tnothing to see\ngone.png\ttrain\tnor here\n";
    fs::write(data.join("captions.tsv"), captions).unwrap();
    data
}

const COLORS: [&str; 5] = ["red", "green", "blue", "white", "yellow"];

/// A film of two segments for each of so many colors: what is said in both names it.
fn films(folder: &Path, count: usize) -> Vec<PathBuf> {
    let film = |color: &&str| {
        let film = folder.join(format!("{color}.mp4"));
        let made = format!("-f lavfi -i color={color}:s=64x64:r=4:d=6 -c:v libx264 -g 8");
        ffmpeg(folder, &format!("{made} -pix_fmt yuv420p {color}.mp4"));
        let srt = format!(
            "1\n00:00:00,100 --> 00:00:02,900\nThe {color} card lies here.\n\n\
             2\n00:00:03,100 --> 00:00:05,900\nIt is {color}, all of it.\n\n"
        );
        fs::write(film.with_extension("srt"), srt).unwrap();
        film
    };
    COLORS[..count].iter().map(film).collect()
}

fn indexed(library: &Path, films: &[PathBuf], options: &[&str]) -> Ran {
    let films: Vec<&Path> = films.iter().map(PathBuf::as_path).collect();
    index_with(library, &films, options).exits(0)
}

/// `cinelex train DATA… --config CONFIG --out OUT`, ready to go.
fn train(data: &[&Path], config: &Path, out: &Path, options: &[&str]) -> Ran {
    let mut command = command(["train", "--json", "--threads", "1"]);
    command.args(data).arg("--config").arg(config).arg("--out").arg(out).args(options);
    finish(&mut command)
}

/// The captions of the films' segments.
fn captions(library: &Path, films: &[PathBuf]) -> Vec<String> {
    let name = |film: &PathBuf| film.file_name().unwrap().to_str().unwrap().to_owned();
    let of = |film| show(library, &name(film)).exits(0).lines("segment");
    let segments: Vec<Value> = films.iter().flat_map(of).collect();
    segments.iter().filter_map(|line| Some(line["caption"].as_str()?.to_owned())).collect()
}

/// Changes what a configuration says.
fn changed(config: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(config).unwrap();
    assert!(text.contains(from), "{text}");
    fs::write(config, text.replace(from, to)).unwrap();
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn configuration(folder: &Path, length: &str) -> PathBuf {
    let default = include_str!("../../training/default.toml");
    let small = default
        .replace("minutes = 30", length)
        .replace("dim = 256", "dim = 16")
        .replace("inner = 1024", "inner = 32")
        .replace("embedder = 1024", "embedder = 24")
        .replace("vocabulary = 4000", "vocabulary = 256")
        .replace("inputs = \"features+cells\"", "inputs = \"both+cells\"");
    let path = folder.join("small.toml");
    fs::write(&path, small).unwrap();
    path
}

#[test]
fn a_training_leaves_out_what_it_cannot_use_and_its_network_writes_captions() {
    let folder = tempfile::tempdir().unwrap();
    let data = collection(folder.path());
    let config = configuration(folder.path(), "count = 12");
    let out = folder.path().join("trained");
    let text = folder.path().join("text.tsv");
    fs::write(&text, "id\tcaption\n1\ta yellow wall\n1\ta card\n2\t...\n").unwrap();
    let arguments = [
        "train".as_ref(),
        data.as_os_str(),
        "--text".as_ref(),
        text.as_os_str(),
        "--config".as_ref(),
        config.as_os_str(),
        "--out".as_ref(),
        out.as_os_str(),
        "--threads".as_ref(),
        "1".as_ref(),
        "--json".as_ref(),
    ];
    let trained = run(arguments).exits(0);
    let line = trained.line("trained");
    assert_eq!(line["steps"], 12);
    assert_eq!(line["skipped"]["photos"], 2);
    // The photo that is mute, and the text of dots.
    assert_eq!(line["skipped"]["without_captions"], 2);
    assert!(line["scores"]["cider"].is_number(), "{line}");
    assert!(trained.err.contains("left out: 2 photos that could not be decoded"), "{trained:?}");
    assert!(fs::read_to_string(out.join("report.html")).unwrap().contains("CIDEr"));

    let network = out.join("transformer.safetensors");
    let judge = |what: &str, more: &[&str]| {
        let (data, network) = (data.to_str().unwrap(), network.to_str().unwrap());
        let fixed = ["evaluate", what, "--data", data, "--network", network];
        run(fixed.iter().chain(more))
    };
    let evaluate = |more: &[&str]| judge("captions", more);
    let report = evaluate(&["--json"]).exits(0).line("captions");
    assert_eq!(report["examples"], 2);
    assert_eq!(report["captions"].as_array().unwrap().len(), 2);
    assert!(report["baseline"]["rouge_l"].as_f64().unwrap() > 0.3, "{report}");
    assert!(report["people"]["people"]["rouge_l"].as_f64().unwrap() > 0.2, "{report}");
    assert_eq!(report["coverage"].as_array().unwrap().len(), 10);
    let other = evaluate(&["--encoder", "efficientnet-lite1"]).exits(2);
    assert!(other.err.contains("was trained with the encoder"), "{other:?}");

    let report = judge("retrieval", &["--json"]).exits(0).line("retrieval");
    for found in ["network", "conse", "fused"] {
        assert_eq!(report[found]["recall_at_5"], 100.0, "{report}");
    }
    let report = judge("alignment", &["--json"]).exits(0).line("alignment");
    assert_eq!((&report["examples"], &report["pairs"]), (&2.into(), &6.into()));
    let share = report["alignment"]["nearest"].as_f64().unwrap();
    assert!((0.0..=100.0).contains(&share), "{report}");
    // Photos of no video stay alone.
    let report = judge("captions", &["--sequence", "--json"]).exits(0).line("captions");
    assert_eq!((&report["examples"], &report["people"]), (&2.into(), &Value::Null));
    // These captions are no steps of recipes.
    let refused = judge("zero-shot", &[]).exits(1);
    assert!(refused.err.contains("tell no verbs and objects"), "{refused:?}");
}

#[test]
fn a_network_is_needed_to_judge_one() {
    for what in ["captions", "alignment", "zero-shot"] {
        let ran = run(["evaluate", what, "--data", "anywhere"]).exits(2);
        assert!(ran.err.contains("--network"), "{ran:?}");
    }
}

#[test]
fn a_training_that_was_killed_goes_on_from_its_last_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let data = collection(folder.path());
    let config = configuration(folder.path(), "minutes = 5");
    let text = fs::read_to_string(&config).unwrap();
    // A checkpoint every half second.
    let text = text.replace("[checkpoints]\nminutes = 5", "[checkpoints]\nminutes = 0.01");
    fs::write(&config, text).unwrap();
    let out = folder.path().join("trained");
    let train = || {
        let mut command = command(["train", "--threads", "1"]);
        command.arg(&data).arg("--config").arg(&config).arg("--out").arg(&out);
        command
    };
    let checkpoints = || -> BTreeSet<PathBuf> {
        let entries = fs::read_dir(&out).into_iter().flatten().map(|entry| entry.unwrap().path());
        let is_one = |path: &PathBuf| path.to_string_lossy().contains("checkpoint-");
        entries.filter(is_one).collect()
    };
    let mut running = train().spawn().unwrap();
    let start = std::time::Instant::now();
    while checkpoints().len() < 2 {
        assert!(start.elapsed().as_secs() < 120, "no checkpoint in two minutes");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    running.kill().unwrap();
    running.wait().unwrap();
    let kept = checkpoints();
    assert!(!kept.is_empty());

    let again = finish(&mut train()).exits(1);
    assert!(again.err.contains("--resume"), "{again:?}");
    let mut going_on = train().arg("--resume").spawn().unwrap();
    let start = std::time::Instant::now();
    while checkpoints().is_subset(&kept) {
        assert!(start.elapsed().as_secs() < 120, "no further checkpoint in two minutes");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    going_on.kill().unwrap();
    going_on.wait().unwrap();
    // The steps of the second run come after those of the first.
    assert!(checkpoints().last() > kept.last());
}

#[test]
fn a_checkpoint_that_cannot_be_written_leaves_the_one_before() {
    let folder = tempfile::tempdir().unwrap();
    let data = collection(folder.path());
    let config = configuration(folder.path(), "count = 3");
    let out = folder.path().join("trained");
    let mut train = command(["train", "--threads", "1"]);
    train.arg(&data).arg("--config").arg(&config).arg("--out").arg(&out);
    finish(&mut train).exits(0);
    let files = || -> BTreeSet<PathBuf> {
        fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().path()).collect()
    };
    let before = files();
    train.arg("--resume");
    // As on a disk that is full, a write fails: files of more than 100 KB are not possible.
    let mut limited = std::process::Command::new("sh");
    limited.args(["-c", "trap '' XFSZ; ulimit -f 200; exec \"$@\"", "sh"]);
    limited.arg(train.get_program()).args(train.get_args());
    limited.envs(train.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let failed = finish(&mut limited).exits(1);
    assert!(failed.err.contains("checkpoint-00000003"), "{failed:?}");
    assert_eq!(files(), before);
    finish(&mut train).exits(0);
}

#[test]
fn what_cannot_be_trained_on_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let out = out.to_str().unwrap();
    let missing = folder.path().join("missing");
    let ran = run(["train", missing.to_str().unwrap(), "--out", out]);
    assert_ne!(ran.code, 0);
    assert!(ran.err.contains("missing"), "{ran:?}");

    let data = collection(folder.path());
    let data = data.to_str().unwrap();
    let ran = run(["train", data, "--out", out, "--inputs", "smell"]).exits(2);
    assert!(ran.err.contains("features+cells"), "{ran:?}");
    let text = folder.path().join("text.tsv");
    fs::write(&text, "id\twords\n").unwrap();
    let ran = run(["train", data, "--out", out, "--text", text.to_str().unwrap()]).exits(2);
    assert!(ran.err.contains("the header names no column caption"), "{ran:?}");
    let config = configuration(folder.path(), "count = 0");
    let ran = run(["train", data, "--out", out, "--config", config.to_str().unwrap()]).exits(2);
    assert!(ran.err.contains("`count` must be"), "{ran:?}");
}

#[test]
fn a_library_is_learnt_from_and_described_by_what_came_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let (library, out) = (folder.path().join("films"), folder.path().join("my films"));
    let films = films(folder.path(), 5);
    indexed(&library, &films, &["--captioner", "none"]);
    let config = configuration(folder.path(), "count = 1000");
    let trained = train(&[&library], &config, &out, &[]).exits(0);
    let line = trained.line("trained");
    let learnt = &line["libraries"][0];
    assert_eq!((&learnt["sources"], &learnt["segments"]), (&json!(5), &json!(10)));
    let held_out = learnt["held_out"].as_array().unwrap();
    assert_eq!(held_out.len(), 1, "{line}");
    assert!(trained.err.contains(&format!("to score on: {}", held_out[0].as_str().unwrap())));
    assert!(line["scores"]["rouge_l"].is_number(), "{line}");
    assert!(line["skipped"].as_object().unwrap().values().all(|count| count == 0), "{line}");
    assert!(trained.err.contains("8 photos and segments with 8 captions"), "{trained:?}");

    // Nothing is decoded for what was learnt to be used, and what is written is what was said.
    let captioner = out.join("captioner.toml");
    let manifest = fs::read_to_string(&captioner).unwrap();
    assert!(manifest.contains("id = \"captioner-my-films\"") && manifest.contains("clips = 4"));
    let ran = indexed(&library, &films, &["--captioner", text(&captioner)]);
    assert!(ran.err.contains("does not say whether it is for commercial use"), "{ran:?}");
    let stages = ran.line("run")["stages"].as_array().unwrap().clone();
    let items =
        |stage: &str| stages.iter().find(|of| of["stage"] == stage).unwrap()["items"].clone();
    assert_eq!((items("decode"), items("caption")), (json!(0), json!(10)));
    let written = captions(&library, &films);
    let is_said = |caption: &String| caption.contains("card lies") || caption.contains("all of it");
    assert!(written.len() == 10 && written.iter().all(is_said), "{written:?}");
    run(["caption", text(&films[0]), "--captioner", text(&captioner)]).exits(0);

    // A training that has ended is left as it is.
    let again = train(&[&library], &config, &out, &["--resume"]).exits(0).line("trained");
    assert_eq!(again["steps"], 1000);
    // A film that two libraries have is learnt from once, and not at all where it is held out.
    let copy = folder.path().join("copy");
    indexed(&copy, &films, &["--captioner", "none"]);
    let sources = Sources { data: vec![library, copy], ..Sources::default() };
    let read = fs::read_to_string(&config).unwrap();
    let config = Config::read("small.toml", &read).unwrap();
    let models = Models::open().unwrap();
    let material = Material::load(&models, &config, sources, 1, &mut |_| Ok(())).unwrap();
    assert_eq!((material.skipped.copies, material.libraries[1].sources), (5, 0));
    let films = |pictures: &[cinelex::evaluate::pictures::Pictures]| -> BTreeSet<String> {
        let photos = pictures.iter().flat_map(|pictures| &pictures.photos);
        photos.map(|photo| photo.image.split('@').next().unwrap().to_owned()).collect()
    };
    let (learnt, held_out) = (films(&material.train), films(&material.dev));
    assert_eq!((learnt.len(), held_out.len()), (4, 1));
    assert!(learnt.is_disjoint(&held_out));
}

#[test]
#[cfg(feature = "fit")]
fn a_codebook_of_the_same_pictures_comes_with_a_pipeline() {
    let folder = tempfile::tempdir().unwrap();
    let (library, out) = (folder.path().join("films"), folder.path().join("trained"));
    let films = films(folder.path(), 4);
    let pipeline = folder.path().join("short.toml");
    let default = include_str!("../../pipelines/default.toml");
    fs::write(&pipeline, default.replace("clip_secs = 1.5", "clip_secs = 1.0")).unwrap();
    indexed(&library, &films, &["--captioner", "none", "--pipeline", text(&pipeline)]);
    let photos = collection(folder.path());
    let config = configuration(folder.path(), "count = 200");
    // Within few steps and at a small rate it learns that captions end, and writes nothing.
    changed(&config, "warm_up = 200", "warm_up = 2");
    changed(&config, "codebook = \"codebook-default\"", "codebook = \"fit\"");
    let data: [&Path; 2] = [&photos, &library];
    let line = train(&data, &config, &out, &[]).exits(0).line("trained");
    assert!(line["scores"]["cider"].is_number(), "{line}");
    let codebook = fs::read(out.join("codebook.safetensors")).unwrap();
    // It goes on with the same one.
    train(&data, &config, &out, &["--resume"]).exits(0);
    assert!(fs::read(out.join("codebook.safetensors")).unwrap() == codebook);

    let with = out.join("pipeline.toml");
    run(["pipeline", "check", text(&with)]).exits(0);
    let said = fs::read_to_string(&with).unwrap();
    assert!(said.contains("clip_secs = 1.0") && said.contains("captioner.toml"), "{said}");
    let ran = indexed(&library, &films, &["--pipeline", text(&with)]);
    assert_eq!(ran.line("run")["segments"], 8);
    assert!(!captions(&library, &films).is_empty());
    let manifest = out.join("codebook.toml");
    run(["codebook", "stats", text(&library), "--codebook", text(&manifest)]).exits(0);

    // What the library's words are of, no other network that sees words may be trained for.
    changed(&config, "codebook = \"fit\"", "codebook = \"codebook-default\"");
    let other = folder.path().join("other");
    let ran = train(&[&library], &config, &other, &[]).exits(2);
    assert!(
        ran.err.contains("not with codebook-default (") && ran.err.contains("with the codebook")
    );
    assert!(ran.err.contains("films: "), "{ran:?}");
    // One that only guesses them may be.
    train(&[&library], &config, &other, &["--inputs", "features+cells"]).exits(0);
}

#[test]
fn one_film_with_one_sentence_is_enough() {
    let folder = tempfile::tempdir().unwrap();
    let (library, out) = (folder.path().join("films"), folder.path().join("trained"));
    let films = films(folder.path(), 1);
    let srt = "1\n00:00:00,100 --> 00:00:01,400\nA red wall.\n\n";
    fs::write(films[0].with_extension("srt"), srt).unwrap();
    indexed(&library, &films, &["--captioner", "none"]);
    let config = configuration(folder.path(), "count = 6");
    let trained = train(&[&library], &config, &out, &[]).exits(0);
    let line = trained.line("trained");
    assert_eq!((&line["scores"], &line["libraries"][0]["segments"]), (&Value::Null, &json!(1)));
    assert!(trained.err.contains("1 segment with words, of 1 source; none of them is held out"));
    let captioner = out.join("captioner.toml");
    let said = fs::read_to_string(&captioner).unwrap();
    assert!(said.contains("none: nothing was held out"), "{said}");
    indexed(&library, &films, &["--captioner", text(&captioner)]);
}

#[test]
fn a_library_that_cannot_be_learnt_from_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let (library, out) = (folder.path().join("films"), folder.path().join("out"));
    let films = films(folder.path(), 2);
    let config = configuration(folder.path(), "count = 2");
    let refused = |options: &[&str]| train(&[&library], &config, &out, options).exits(2).err;
    fs::create_dir(&library).unwrap();
    let ran = train(&[&library], &config, &out, &[]).exits(3);
    assert!(ran.err.contains("neither a library nor a folder with captions.tsv"), "{ran:?}");

    // Words that nobody here reads, and none at all.
    let [spoken, mute] = [0, 1].map(|film: usize| films[film].with_extension("srt"));
    fs::rename(&spoken, folder.path().join("red.de.srt")).unwrap();
    fs::remove_file(mute).unwrap();
    indexed(&library, &films, &["--captioner", "none"]);
    let told = refused(&[]);
    assert!(told.contains("films: nothing is said in it that could be learnt"), "{told}");
    assert!(told.contains("2 segments are in others") && told.contains(".srt"), "{told}");

    fs::rename(folder.path().join("red.de.srt"), spoken).unwrap();
    let pipeline = folder.path().join("no-cells.toml");
    let default = include_str!("../../pipelines/default.toml");
    fs::write(&pipeline, default.replace("cells = \"3x3\"", "cells = \"none\"")).unwrap();
    indexed(&library, &films, &["--captioner", "none", "--pipeline", text(&pipeline)]);
    let told = refused(&[]);
    assert!(told.contains("`cells = \"3x3\"`"), "{told}");
    train(&[&library], &config, &out, &["--inputs", "features"]).exits(0);

    changed(&config, "encoder = \"efficientnet-lite0\"", "encoder = \"efficientnet-lite1\"");
    let told = refused(&["--inputs", "features"]);
    assert!(told.contains("with the encoder efficientnet-lite0-"), "{told}");
    assert!(told.contains("not efficientnet-lite1-"), "{told}");
}
