//! Captions and their figures.

use std::path::PathBuf;

use cinelex::evaluate::agreement::{Judged, score};
use cinelex::evaluate::photos::Collection;
use cinelex::text::caption_words;
use serde_json::Value;

/// The folder of evaluation data, or a word that it is not there.
fn evaluation_data() -> Option<PathBuf> {
    let data = std::env::var_os("CINELEX_DATA").map(PathBuf::from);
    if data.is_none() {
        eprintln!("skipped: CINELEX_DATA does not name the folder of evaluation data");
    }
    data
}

#[test]
fn published_figures_of_captions_are_reproduced_to_four_digits() {
    let Some(data) = evaluation_data() else { return };
    let files = [
        "ref_nlgeval_unittest.json",
        "ref_coco_val2014_fakecap126.json",
        "ref_coco_val2017_fakecap4989.json",
        "ref_flickr8k_test_human_loo.json",
    ];
    for file in files {
        let text = std::fs::read(data.join("caption_eval").join(file)).unwrap();
        let published: Value = serde_json::from_slice(&text).unwrap();
        let words = |texts: &Value| -> Vec<Vec<String>> {
            let texts = texts.as_array().unwrap().iter().map(|text| text.as_str().unwrap());
            texts.map(|text| text.split_whitespace().map(str::to_owned).collect()).collect()
        };
        let judged: Vec<Judged> = published["gts"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(picture, references)| Judged {
                caption: words(&published["res"][picture]).remove(0),
                references: words(references),
            })
            .collect();
        let found = score(&judged).unwrap().all;
        let figures = [
            ("Bleu_1", found.bleu[0]),
            ("Bleu_2", found.bleu[1]),
            ("Bleu_3", found.bleu[2]),
            ("Bleu_4", found.bleu[3]),
            ("ROUGE_L", found.rouge_l),
            ("CIDEr", found.cider),
        ];
        for (name, found) in figures {
            let expected = published["expected"][name].as_f64().unwrap();
            assert!((found - expected).abs() < 5e-5, "{file}: {name} {found}, not {expected}");
        }
    }
}

#[test]
fn words_of_captions_are_those_of_the_published_references() {
    let Some(data) = evaluation_data() else { return };
    let text = std::fs::read(data.join("caption_eval/ref_flickr8k_test_human_loo.json")).unwrap();
    let published: Value = serde_json::from_slice(&text).unwrap();
    let collection = Collection::read(&data.join("flickr8k")).unwrap();
    let photos = collection.of_split("test").unwrap();
    assert_eq!(photos.len(), 1_000);
    let mut different = Vec::new();
    for photo in photos {
        let texts = |of: &str| published[of][&photo.image].as_array().unwrap().clone();
        let mut expected: Vec<String> = texts("gts")
            .into_iter()
            .chain(texts("res"))
            .map(|text| text.as_str().unwrap().to_owned())
            .collect();
        let mut found: Vec<String> =
            photo.captions.iter().map(|caption| caption_words(caption).join(" ")).collect();
        expected.sort();
        found.sort();
        different.extend(expected.into_iter().zip(found).filter(|(a, b)| a != b));
    }
    assert!(different.is_empty(), "{different:?}");
}
