//! Training: what it is given, what it leaves. Needs `cinelex setup`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

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
    let share = report["embedding"]["nearest"].as_f64().unwrap();
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
fn a_checkpoint_that_cannot_be_written_leaves_the_one_before() {
    let folder = tempfile::tempdir().unwrap();
    let data = collection(folder.path());
    let config = configuration(folder.path(), "count = 3");
    let out = folder.path().join("trained");
    let mut train = command(["train", "--threads", "1"]);
    train.arg(&data).arg("--config").arg(&config).arg("--out").arg(&out);
    crate::cinelex::finish(&mut train).exits(0);
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
    let failed = crate::cinelex::finish(&mut limited).exits(1);
    assert!(failed.err.contains("checkpoint-00000003"), "{failed:?}");
    assert_eq!(files(), before);
    crate::cinelex::finish(&mut train).exits(0);
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
