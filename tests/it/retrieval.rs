//! Words and pictures in one space. Needs `cinelex setup`.

use std::fs;

use cinelex::error::Kind;
use cinelex::model::Models;
use cinelex::text::{JointSpace, TextTower};

use crate::cinelex::run;
use crate::media::ffmpeg;
use crate::models::data_folder;

fn tower() -> TextTower {
    let models = Models::open().unwrap();
    TextTower::load(&models, &models.manifest("minilm").unwrap(), 2).unwrap()
}

fn joint_space() -> JointSpace {
    let models = Models::open().unwrap();
    let encoder = models.manifest("efficientnet-lite0").unwrap();
    JointSpace::open(&models, &encoder, &models.manifest("minilm").unwrap(), 2).unwrap()
}

#[test]
fn a_sentence_lies_nearer_to_its_paraphrase_than_to_another() {
    let texts = ["a dog runs over the snow", "a puppy races through snow", "a bowl of hot soup"];
    let rows = tower().embed(&texts).unwrap();
    for row in rows.rows() {
        assert!((row.dot(&row) - 1.0).abs() < 1e-5);
    }
    let paraphrase = rows.row(0).dot(&rows.row(1));
    assert!(paraphrase > rows.row(0).dot(&rows.row(2)) + 0.3, "{paraphrase}");
}

#[test]
fn a_texts_embedding_does_not_depend_on_those_beside_it() {
    let mut tower = tower();
    let long = "the quick brown fox jumps over the lazy dog and ".repeat(100);
    let texts = ["", "a cat", long.as_str(), "two men in front of a red car", "ein Hund"];
    let together = tower.embed(&texts).unwrap();
    for (text, row) in texts.iter().zip(together.rows()) {
        let alone = tower.embed(&[text]).unwrap();
        let cosine = alone.row(0).dot(&row);
        assert!(cosine > 0.999_99, "{text:?}: {cosine}");
    }
    assert_eq!(tower.embed(&[]).unwrap().nrows(), 0);
}

#[test]
fn words_find_the_picture_of_their_class() {
    let space = joint_space();
    let mut tower = tower();
    assert_eq!(space.space(), tower.space());
    let picture = |class: usize| {
        // Sure, but not quite: the rest is spread over all classes.
        let mut classes = vec![0.1 / 1000.0; 1000];
        classes[class] += 0.9;
        space.picture(&classes).unwrap()
    };
    // ImageNet's goldfish, tabby, espresso and tripod.
    let pictures = [1, 281, 967, 872].map(picture);
    let queries = ["orange fish in a bowl", "a cat on a sofa", "a cup of coffee", "camera stand"];
    let rows = tower.embed(&queries).unwrap();
    for (right, query) in rows.rows().into_iter().enumerate() {
        let scores = pictures
            .each_ref()
            .map(|picture| picture.iter().zip(query).map(|(a, b)| a * b).sum::<f32>());
        let best = (0..4).max_by(|a, b| scores[*a].total_cmp(&scores[*b]));
        assert_eq!(best, Some(right), "{}: {scores:?}", queries[right]);
    }
}

#[test]
fn class_probabilities_of_another_encoder_are_refused() {
    let error = joint_space().picture(&[0.5; 999]).unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidInput);
}

#[test]
fn a_photo_that_cannot_be_decoded_is_left_out_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("images");
    fs::create_dir(&images).unwrap();
    ffmpeg(&images, "-f lavfi -i testsrc2=s=64x64 -frames:v 1 -update 1 a.png");
    ffmpeg(&images, "-f lavfi -i mandelbrot=s=64x64 -frames:v 1 -update 1 b.png");
    fs::write(images.join("c.png"), b"no picture").unwrap();
    let captions = "image\tsplit\tcaption\na.png\ttest\ta test card\nb.png\ttest\ta fractal\n\
                    b.png\ttest\tan apple man\nc.png\ttest\tnothing\n";
    fs::write(folder.path().join("captions.tsv"), captions).unwrap();
    let data = folder.path().to_str().unwrap();
    let ran = run(["evaluate", "retrieval", "--data", data, "--split", "test", "--json"]).exits(1);
    let report = ran.line("retrieval");
    assert_eq!((&report["photos"], &report["captions"]), (&2.into(), &3.into()));
    assert_eq!(report["failed"][0][0], "c.png");
    assert_eq!(report["conse"]["recall_at_5"], 100.0);
    assert!(report["study"].is_null());

    let none = run(["evaluate", "retrieval", "--data", data, "--split", "dev"]).exits(2);
    assert!(none.err.contains("its splits are test"), "{}", none.err);
}

#[test]
#[ignore = "slow: a minute or two; run with `tests/run --slow`"]
fn the_joint_space_beats_the_published_study_on_flickr8k() {
    let Some(data) = data_folder() else { return };
    let data = data.join("flickr8k");
    let data = data.to_str().unwrap();
    let ran = run(["evaluate", "retrieval", "--data", data, "--split", "test", "--json"]).exits(0);
    let report = ran.line("retrieval");
    for metric in ["recall_at_1", "recall_at_5", "recall_at_10"] {
        let (found, study) = (&report["conse"][metric], &report["study"]["conse"][metric]);
        assert!(found.as_f64().unwrap() >= study.as_f64().unwrap(), "{metric}: {report}");
    }
    let median = |of: &serde_json::Value| of["median_rank"].as_f64().unwrap();
    assert!(median(&report["conse"]) <= median(&report["study"]["conse"]), "{report}");
}
