//! `--require-licence commercial`: what may not be used is left out or refused.

use std::fs;

use tempfile::TempDir;

use crate::cinelex::{index_with, info, run, search, show};
use crate::indexing::film;

const DEMAND: [&str; 2] = ["--require-licence", "commercial"];

#[test]
fn a_library_for_commercial_use_has_no_visual_words_and_is_searched() {
    let folder = TempDir::new().unwrap();
    let film = film(folder.path(), "film.mp4");
    let library = folder.path().join("library");
    let ran = index_with(&library, &[&film], &DEMAND).exits(0);
    let left_out = ran.line("run")["left_out"][0].as_str().unwrap().to_owned();
    for part in ["visual words", "codebook-default", "Non-commercial", "codebook fit"] {
        assert!(left_out.contains(part) && ran.err.contains(part), "{part}: {ran:?}");
    }
    let clips = show(&library, "film.mp4").lines("clip");
    assert!(!clips.is_empty());
    assert!(clips.iter().all(|clip| clip["visual_words"] == serde_json::json!([])), "{clips:?}");
    assert!(!search(&library, &["a test picture"]).exits(0).lines("hit").is_empty());
    assert_eq!(info(&library)["recipes"][0]["description"]["codebook"], serde_json::Value::Null);
    let words = run(["codebook", "show", library.to_str().unwrap()]).exits(2);
    assert!(words.err.contains("without a codebook"), "{words:?}");

    // A pipeline that says so itself gives the same clips: nothing is left to do.
    let text = include_str!("../../pipelines/default.toml");
    let says = text.replace("schema = 1", "schema = 1\nrequire_licence = \"commercial\"");
    let none = text.replace("codebook = \"codebook-default\"", "codebook = \"none\"");
    for (name, text) in [("says.toml", says), ("none.toml", none)] {
        let pipeline = folder.path().join(name);
        fs::write(&pipeline, text).unwrap();
        let options = ["--pipeline", pipeline.to_str().unwrap()];
        let again = index_with(&library, &[&film], &options).exits(0);
        assert_eq!(again.source("film.mp4")["state"], "unchanged", "{name}");
    }
    // Without the demand, the words come back: that is another recipe.
    let own = index_with(&library, &[&film], &[]).exits(0);
    assert_eq!(own.source("film.mp4")["state"], "indexed");
    assert!(show(&library, "film.mp4").lines("clip")[0]["visual_words"][0].is_array());
}

#[test]
fn models_that_may_not_be_used_are_refused_before_anything_is_read() {
    let folder = TempDir::new().unwrap();
    let film = film(folder.path(), "film.mp4");
    let encoder = include_str!("../../models/efficientnet-lite0.toml")
        .replace("commercial = true", "commercial = false");
    fs::write(folder.path().join("lite.toml"), encoder).unwrap();
    let text = include_str!("../../pipelines/default.toml")
        .replace("encoder = \"efficientnet-lite0@int8\"", "encoder = \"lite.toml\"");
    let pipeline = folder.path().join("pipeline.toml");
    fs::write(&pipeline, text).unwrap();
    let library = folder.path().join("library");
    let options = [&DEMAND[..], &["--pipeline", pipeline.to_str().unwrap()]].concat();
    let ran = index_with(&library, &[&film], &options).exits(2);
    assert!(ran.err.contains("encoder efficientnet-lite0 may not be used commercially"), "{ran:?}");
    assert!(!library.exists());
}
