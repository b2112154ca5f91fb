//! The codebooks that come with the program, and fitting one as a user does. Needs `cinelex setup`.

use std::fs;
use std::path::{Path, PathBuf};

use cinelex::codebook::Codebook;
use cinelex::model::{Commercial, Models, Task};

use crate::cinelex::run;
use crate::media::ffmpeg;

/// A codebook of the program by its id, and the id of the encoder that its manifest names.
fn built_in(id: &str) -> (Codebook, String) {
    let models = Models::open().unwrap();
    let manifest = models.manifest(id).unwrap();
    let Task::Codebook { encoder } = &manifest.task else { panic!("{id} is no codebook") };
    assert_eq!(manifest.commercial, Commercial::No, "Flickr8k and YouCook2 do not allow it");
    let file = manifest.files_here().next().unwrap().name.clone();
    let codebook = Codebook::from_bytes(&models.bytes(&manifest, &file).unwrap()).unwrap();
    (codebook, encoder.clone())
}

#[test]
fn the_built_in_codebooks_fit_their_encoder_and_their_limits() {
    for (id, depth) in [("codebook-default", 3), ("codebook-videobert", 4)] {
        let (codebook, encoder) = built_in(id);
        assert_eq!((codebook.branching(), codebook.depth()), (12, depth));
        assert!(codebook.dims() <= 160);
        assert!(codebook.to_bytes().unwrap().len() <= 8_000_000);
        assert_eq!(codebook.origin().encoder, encoder);
        let encoder = Models::open().unwrap().manifest(&encoder).unwrap();
        assert_eq!(codebook.input_dims(), encoder.encoder().unwrap().features.dim);
    }
}

/// A collection of twelve drawn photos, the last four of them for testing.
fn drawn_collection(folder: &Path) -> PathBuf {
    let collection = folder.join("photos");
    fs::create_dir_all(collection.join("images")).unwrap();
    let mut captions = "image\tsplit\tcaption\n".to_owned();
    for photo in 0..12 {
        let options = format!("-ss {photo} -frames:v 1 -update 1 photos/images/{photo}.png");
        ffmpeg(folder, &format!("-f lavfi -i testsrc2=s=160x120:d=20 {options}"));
        let split = if photo < 8 { "train" } else { "test" };
        captions += &format!("{photo}.png\t{split}\ta test picture\n");
    }
    fs::write(collection.join("captions.tsv"), captions).unwrap();
    collection
}

#[test]
fn fitting_takes_the_train_split_and_gives_the_same_file_again() {
    let folder = tempfile::tempdir().unwrap();
    let collection = drawn_collection(folder.path());
    let collection = collection.to_str().unwrap();
    let fit = |out: &str, workers: &str| {
        let out = folder.path().join(out);
        let out = out.to_str().unwrap();
        let shape = ["--branching", "3", "--depth", "2", "--dims", "8", "--workers", workers];
        let arguments = ["codebook", "fit", collection, "--out", out, "--json"];
        let ran = run(arguments.iter().chain(&shape)).exits(0);
        let used = ran.line("input")["used"].as_array().unwrap().clone();
        let expected: Vec<String> = (0..8).map(|photo| format!("{photo}.png")).collect();
        assert_eq!(used, expected);
        assert_eq!(ran.line("codebook")["samples"], 80);
        assert_eq!(ran.lines("level").len(), 2);
        fs::read(out).unwrap()
    };
    assert!(fit("one.safetensors", "1") == fit("two.safetensors", "3"));

    let one = folder.path().join("one.safetensors");
    let one = one.to_str().unwrap();
    let measured = run(["codebook", "stats", one, "--on", collection, "--split", "test", "--json"]);
    let levels = measured.exits(0).lines("level");
    assert_eq!(levels.len(), 2);
    assert!(levels[1]["perplexity"].as_f64().unwrap() >= 1.0);
}

#[test]
fn what_cannot_be_fitted_is_wrong_usage() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path().to_str().unwrap();
    let neither = run(["codebook", "fit", here, "--out", "x"]).exits(2);
    assert!(neither.err.contains("neither a folder with captions.tsv nor a library"));
    let deep = run(["codebook", "fit", here, "--out", "x", "--depth", "20"]).exits(2);
    assert!(deep.err.contains("depth 20"), "{}", deep.err);
    fs::write(folder.path().join("captions.tsv"), "image\tsplit\tcaption\na\tdev\tb\n").unwrap();
    let no_train = run(["codebook", "fit", here, "--out", "x"]).exits(2);
    assert!(no_train.err.contains("its splits are dev"), "{}", no_train.err);
}

#[test]
fn a_damaged_codebook_cannot_be_opened() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.safetensors");
    fs::write(&file, b"not a codebook").unwrap();
    let ran = run(["codebook", "stats", file.to_str().unwrap()]).exits(3);
    assert!(ran.err.contains("not a usable codebook"), "{}", ran.err);
}
