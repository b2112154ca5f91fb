//! Training: what it is given, what it leaves. Needs `cinelex setup`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use cinelex::evaluate::photos::Collection;
use cinelex::train::corpus::{Lists, read_texts, video};

use crate::cinelex::{command, run};
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

fn configuration(folder: &Path, length: &str) -> PathBuf {
    let default = include_str!("../../training/default.toml");
    let small = default
        .replace("minutes = 30", length)
        .replace("dim = 256", "dim = 16")
        .replace("inner = 1024", "inner = 32")
        .replace("vocabulary = 5000", "vocabulary = 256")
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
    let evaluate = |more: &[&str]| {
        let (data, network) = (data.to_str().unwrap(), network.to_str().unwrap());
        let fixed = ["evaluate", "captions", "--data", data, "--network", network];
        run(fixed.iter().chain(more))
    };
    let report = evaluate(&["--json"]).exits(0).line("captions");
    assert_eq!(report["photos"], 2);
    assert_eq!(report["captions"].as_array().unwrap().len(), 2);
    assert!(report["baseline"]["rouge_l"].as_f64().unwrap() > 0.3, "{report}");
    let other = evaluate(&["--encoder", "efficientnet-lite1"]).exits(2);
    assert!(other.err.contains("was trained with the encoder"), "{other:?}");
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

    let again = crate::cinelex::finish(&mut train()).exits(1);
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
fn nothing_that_is_tested_on_is_trained_on() {
    let Some(data) = std::env::var_os("CINELEX_DATA").map(PathBuf::from) else {
        eprintln!("skipped: CINELEX_DATA does not name the folder of evaluation data");
        return;
    };
    for (name, tested) in
        [("flickr8k", "test"), ("youcook2_frames", "val"), ("coco_mini_small", "val")]
    {
        let collection = Collection::read(&data.join(name)).unwrap();
        let lists = Lists::of(&collection);
        let in_test = |image: &str| -> bool {
            collection
                .photos()
                .iter()
                .any(|photo| photo.split == tested && video(&photo.image) == video(image))
        };
        // A photo of COCO is its own video; those lie in folders by split.
        let train: BTreeSet<&str> = lists.train.iter().map(|image| video(image)).collect();
        let dev: BTreeSet<&str> = lists.dev.iter().map(|image| video(image)).collect();
        assert!(!train.is_empty() && train.is_disjoint(&dev), "{name}");
        assert!(!lists.train.iter().chain(&lists.dev).any(|image| in_test(image)), "{name}");
        match name {
            "flickr8k" => assert_eq!((lists.train.len(), lists.dev.len()), (6_000, 1_000)),
            "youcook2_frames" => assert_eq!(dev.len(), 60),
            _ => {}
        }
    }
    // Flickr's own numbers of the photos that the texts are about, and of those that are tested on.
    let flickr8k = Collection::read(&data.join("flickr8k")).unwrap();
    let tested: BTreeSet<&str> = flickr8k
        .of_split("test")
        .unwrap()
        .iter()
        .filter_map(|photo| Some(photo.image.split_once('_')?.0))
        .collect();
    assert_eq!(tested.len(), 1_000);
    let path = data.join("text/train_without_flickr8k_images.en.tsv");
    let texts = fs::read_to_string(&path).unwrap();
    let about: BTreeSet<&str> =
        texts.lines().filter_map(|line| Some(line.split_once('\t')?.0)).collect();
    assert!(tested.is_disjoint(&about));
    assert_eq!(read_texts(&path).unwrap().iter().map(Vec::len).sum::<usize>(), 110_035);
    // The codebook that is shipped was fitted to train splits.
    for codebook in [
        include_str!("../../models/codebook-default.toml"),
        include_str!("../../models/codebook-videobert.toml"),
    ] {
        let command = codebook.lines().find(|line| line.starts_with("command")).unwrap();
        assert!(command.contains("--split train"), "{command}");
    }
}
