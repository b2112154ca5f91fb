//! What an evaluation works with.

use super::photos::{Collection, Photo, View, video};
use super::pictures::{Eye, Pictures, Visuals};
use crate::codebook::Codebook;
use crate::error::{Error, Result};
use crate::model::{Device, Manifest, Models};
use crate::onnx::transformer::Precision;
use crate::text::TextTower;
use crate::transformer::{Captioner, Guesser, Trained};

/// How far a run is: `done` of `of` things of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    pub what: &'static str,
    pub done: usize,
    pub of: usize,
}

/// The data, and the models that are there without training.
#[derive(Debug)]
pub struct Setup<'a> {
    pub models: &'a Models,
    pub encoder: &'a Manifest,
    /// The sentence encoder.
    pub tower: &'a Manifest,
    pub device: Device,
    /// Threads of the networks, and decoder hosts side by side.
    pub threads: usize,
    pub collection: &'a Collection,
    /// Which of its photos; `dev` is held out of `train` where the collection has none.
    pub split: &'a str,
    /// Whether the frames of a video are seen together, in the order of the file.
    pub sequence: bool,
}

/// The trained network that is judged.
#[derive(Debug)]
pub struct Examinee<'a> {
    pub trained: &'a Trained,
    /// The codebook that it was trained with, where it sees visual words.
    pub codebook: Option<&'a Codebook>,
    pub precision: Precision,
}

/// Photos that are seen together: their places in [`Pictures`].
pub type Example = Vec<usize>;

/// What is looked at.
#[derive(Debug)]
pub struct Material {
    pub pictures: Pictures,
    pub examples: Vec<Example>,
}

impl Material {
    /// The captions that people wrote of an example.
    pub fn captions(&self, example: &[usize]) -> impl Iterator<Item = &String> {
        example.iter().flat_map(|photo| &self.pictures.photos[*photo].captions)
    }

    /// An example's images, as the file of captions has them.
    pub fn images(&self, example: &[usize]) -> impl Iterator<Item = &str> {
        example.iter().map(|photo| &self.pictures.photos[*photo].image[..])
    }
}

impl Setup<'_> {
    /// The photos that are judged by.
    ///
    /// # Errors
    /// As [`Pictures::of_split`].
    pub fn judged(&self, progress: &mut dyn FnMut(Progress) -> Result<()>) -> Result<Material> {
        let pictures = Pictures::of_split(self.collection, self.split, self.eye(), progress)?;
        let examples = examples(&pictures.photos, self.sequence);
        Ok(Material { pictures, examples })
    }

    fn eye(&self) -> Eye<'_> {
        let Setup { models, encoder, device, threads, .. } = *self;
        Eye { models, encoder, device, view: View::WHOLE, threads }
    }

    /// # Errors
    /// As [`TextTower::load`].
    pub fn tower(&self) -> Result<TextTower> {
        TextTower::load(self.models, self.tower, self.threads)
    }

    /// The network, ready to read and write.
    ///
    /// # Errors
    /// `InvalidInput` where it was trained with another encoder or codebook, or cannot see as many
    /// photos together as `material` has; as [`Captioner::new`].
    pub fn captioner(&self, examinee: &Examinee<'_>, material: &Material) -> Result<Captioner> {
        self.check(examinee, material)?;
        Captioner::new(self.models, examinee.trained, examinee.precision, self.threads)
    }

    /// The network, ready to guess hidden words.
    ///
    /// # Errors
    /// As [`Setup::captioner`].
    pub fn guesser(&self, examinee: &Examinee<'_>, material: &Material) -> Result<Guesser> {
        self.check(examinee, material)?;
        Guesser::new(self.models, examinee.trained, examinee.precision, self.threads)
    }

    fn check(&self, examinee: &Examinee<'_>, material: &Material) -> Result<()> {
        let Examinee { trained, codebook, .. } = *examinee;
        trained.fitting.check(&self.encoder.identity(), codebook.map(Codebook::id))?;
        let most = trained.network.clips;
        match material.examples.iter().find(|example| example.len() > most) {
            None => Ok(()),
            Some(example) => Err(Error::invalid_input(format!(
                "the network sees {most} pictures together, not the {} of {}",
                example.len(),
                example.first().map_or("", |photo| video(&material.pictures.photos[*photo]))
            ))),
        }
    }
}

impl Examinee<'_> {
    /// Photos as the network sees them.
    ///
    /// # Errors
    /// As [`Visuals::new`].
    pub fn visuals<'p>(&'p self, pictures: &'p Pictures) -> Result<Visuals<'p>> {
        let network = &self.trained.network;
        Visuals::new(pictures, network.features > 0, self.codebook, network.cells)
    }
}

fn examples(photos: &[Photo], sequence: bool) -> Vec<Example> {
    if !sequence {
        return (0..photos.len()).map(|photo| vec![photo]).collect();
    }
    let mut examples: Vec<Example> = Vec::new();
    let mut known = std::collections::HashMap::new();
    for (place, photo) in photos.iter().enumerate() {
        let example = *known.entry(video(photo)).or_insert(examples.len());
        match examples.get_mut(example) {
            Some(example) => example.push(place),
            None => examples.push(vec![place]),
        }
    }
    examples
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_a_video_are_seen_together_and_photos_alone() {
        let photo = |(image, video): (&str, Option<&str>)| Photo {
            image: image.to_owned(),
            split: "dev".to_owned(),
            video: video.map(str::to_owned),
            captions: vec![],
        };
        let photos = [("1", Some("a")), ("2", Some("b")), ("3", Some("a")), ("4", None)].map(photo);
        assert_eq!(examples(&photos[..3], true), [vec![0, 2], vec![1]]);
        assert_eq!(examples(&photos[1..], true), [[0], [1], [2]]);
        assert_eq!(examples(&photos, false), [[0], [1], [2], [3]]);
    }
}
