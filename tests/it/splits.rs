//! Nothing that is tested on is learnt from: neither by networks nor by codebooks, neither as a picture
//! nor as its caption, its video, or a copy of its file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use cinelex::codebook::Codebook;
use cinelex::evaluate::photos::{Collection, Photo, video};
use cinelex::model::Models;

/// The collections that are learnt from, and the split of each that is tested on.
const COLLECTIONS: [(&str, &str); 3] =
    [("flickr8k", "test"), ("youcook2_frames", "val"), ("coco_mini_small", "val")];

/// The folder of evaluation data, or a word that it is not there.
fn evaluation_data() -> Option<PathBuf> {
    let data = std::env::var_os("CINELEX_DATA").map(PathBuf::from);
    if data.is_none() {
        println!("skipped: CINELEX_DATA does not name the folder of evaluation data");
    }
    data
}

fn collections() -> Option<Vec<(Collection, &'static str, &'static str)>> {
    let data = evaluation_data()?;
    let read = |(name, tested)| (Collection::read(&data.join(name)).unwrap(), name, tested);
    Some(COLLECTIONS.into_iter().map(read).collect())
}

/// What a photo must not share with one that is tested on: its name and its video.
fn names<'a>(photos: impl IntoIterator<Item = &'a Photo>) -> BTreeSet<&'a str> {
    photos.into_iter().flat_map(|photo| [&photo.image[..], video(photo)]).collect()
}

/// What networks are trained on: `train` without what is held out of it.
fn trained_on(collection: &Collection) -> Vec<&Photo> {
    let held_out = collection.held_out();
    let train = collection.of_split("train").unwrap().into_iter();
    train.filter(|photo| !held_out.contains(video(photo))).collect()
}

#[test]
fn what_is_trained_on_settings_are_chosen_by_and_is_tested_on_are_apart() {
    for (collection, name, tested) in collections().unwrap_or_default() {
        let train = trained_on(&collection);
        let dev = collection.of_split("dev").unwrap();
        let tested = collection.of_split(tested).unwrap();
        match name {
            "flickr8k" => {
                assert_eq!((train.len(), dev.len(), tested.len()), (6_000, 1_000, 1_000));
            }
            "youcook2_frames" => {
                assert_eq!((train.len(), dev.len(), tested.len()), (1_170, 180, 450));
                assert_eq!(dev.iter().copied().map(video).collect::<BTreeSet<_>>().len(), 60);
            }
            _ => assert!(!train.is_empty() && !tested.is_empty()),
        }
        let (train, dev, tested) = (names(train), names(dev), names(tested));
        assert!(train.is_disjoint(&tested), "{name}");
        assert!(train.is_disjoint(&dev), "{name}");
        assert!(dev.is_disjoint(&tested), "{name}");
    }
}

#[test]
fn no_file_that_is_tested_on_is_learnt_from_under_another_name() {
    let Some(collections) = collections() else { return };
    let hash = |collection: &Collection, photo: &Photo| {
        let bytes = std::fs::read(collection.path(photo)).unwrap();
        blake3::hash(&bytes).to_hex().to_string()
    };
    let mut learnt_from: BTreeMap<String, &str> = BTreeMap::new();
    for (collection, ..) in &collections {
        // With what is held out: codebooks are fitted on that, too.
        for photo in collection.of_split("train").unwrap() {
            learnt_from.insert(hash(collection, photo), &photo.image);
        }
    }
    for (collection, _, tested) in &collections {
        for photo in collection.of_split(tested).unwrap() {
            let same = learnt_from.get(&hash(collection, photo));
            assert!(same.is_none(), "{} is {}", photo.image, same.unwrap());
        }
    }
}

#[test]
fn texts_are_about_no_photo_that_is_tested_on() {
    let Some(data) = evaluation_data() else { return };
    // Flickr's own numbers of the photos that the texts are about, and of those that are tested on.
    let flickr8k = Collection::read(&data.join("flickr8k")).unwrap();
    let tested = flickr8k.of_split("test").unwrap();
    let numbers: BTreeSet<&str> =
        tested.iter().filter_map(|photo| Some(photo.image.split_once('_')?.0)).collect();
    assert_eq!(numbers.len(), 1_000);
    let path = data.join("text/train_without_flickr8k_images.en.tsv");
    let texts = std::fs::read_to_string(&path).unwrap();
    let about: BTreeSet<&str> =
        texts.lines().filter_map(|line| Some(line.split_once('\t')?.0)).collect();
    assert!(about.len() > 20_000 && numbers.is_disjoint(&about));
    #[cfg(feature = "train")]
    {
        let read = cinelex::train::corpus::read_texts(&path).unwrap();
        assert_eq!(read.iter().map(Vec::len).sum::<usize>(), 110_035);
    }
}

#[test]
fn the_built_in_codebooks_are_fitted_on_train_splits() {
    let Some(collections) = collections() else { return };
    let photos: usize = collections
        .iter()
        .map(|(collection, ..)| collection.of_split("train").unwrap().len())
        .sum();
    let models = Models::open().unwrap();
    for id in ["codebook-default", "codebook-videobert"] {
        let manifest = models.manifest(id).unwrap();
        let file = manifest.files_here().next().unwrap().name.clone();
        let codebook = Codebook::from_bytes(&models.bytes(&manifest, &file).unwrap()).unwrap();
        // Ten rows a photo: the whole of it and nine cells. More or fewer were other photos.
        assert_eq!(codebook.origin().samples, 10 * photos as u64);
    }
    for manifest in [
        include_str!("../../models/codebook-default.toml"),
        include_str!("../../models/codebook-videobert.toml"),
    ] {
        let command = manifest.lines().find(|line| line.starts_with("command")).unwrap();
        assert!(command.contains("--split train"), "{command}");
        assert!(COLLECTIONS.iter().all(|(name, _)| command.contains(name)), "{command}");
    }
}
