//! Clips of several live streams go through one encoder together.

use std::path::PathBuf;

use tempfile::TempDir;

use crate::cinelex::index_with;
use crate::live::check_accounts;
use crate::media::numbered;

#[test]
fn clips_that_end_together_are_encoded_together() {
    let folder = TempDir::new().unwrap();
    // A clip ends with the next frame, here within a hundredth of a second: sooner than one is encoded.
    let made = |name: &str| numbered(folder.path(), name, "100", 8.0, "-c:v libx264 -bf 0 -g 100");
    let films: Vec<PathBuf> = ["a.mp4", "b.mp4", "c.mp4", "d.mp4"].map(made).to_vec();
    let films: Vec<_> = films.iter().map(PathBuf::as_path).collect();
    let library = folder.path().join("films.library");
    let run = index_with(&library, &films, &["--as-live"]).exits(0).line("live_run");
    for stream in run["streams"].as_array().unwrap() {
        check_accounts(stream);
        assert!(stream["clips"].as_u64().unwrap() >= 2, "{stream}");
    }
    let stages = run["stages"].as_array().unwrap();
    let encode = stages.iter().find(|stage| stage["stage"] == "encode").unwrap();
    let (items, batches) = (encode["items"].as_u64().unwrap(), encode["batches"].as_u64().unwrap());
    assert!(batches < items, "{batches} batches of {items} clips");
}
