//! One training: its state, and a step of it.

use burn::tensor::Device;
use rand::Rng;
use rand::seq::index;

use super::batch::{Batch, Row};
use super::checkpoint::Progress;
use super::config::{Config, Length};
use super::corpus::{self, Example, Order, Skipped};
use super::losses::{Losses, Weighing, losses};
use super::material::Material;
use super::network::{Dropout, Model};
use super::optimizer::Optimizer;
use crate::error::{Error, Result};
use crate::evaluate::pictures::{Seen, Visuals};
use crate::onnx::transformer::{Network, Tensors, Weights};
use crate::text::WordPieces;
use crate::text::pieces::MASK;
use crate::transformer::{Segment, Trained};

/// Of the words of a caption, the share that is hidden to be guessed (Devlin and others, 2018).
const HIDDEN: f64 = 0.15;
/// Photos that the first scale of what is seen is taken from.
const SAMPLED: usize = 512;

/// What a step does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StepKind {
    Captions = 0,
    Text = 1,
    Masked = 2,
}

/// A step that was taken.
#[derive(Debug, Clone, Copy)]
pub(super) struct Taken {
    pub(super) losses: Losses,
    pub(super) rate: f64,
    /// The gradient's length, before it was cut.
    pub(super) gradient: f64,
    /// Captions of the step.
    pub(super) captions: usize,
}

pub(super) struct Trainer<'a> {
    config: &'a Config,
    material: &'a Material,
    visuals: Vec<Visuals<'a>>,
    network: Network,
    pieces: WordPieces,
    photos: Vec<Example>,
    /// Which photo each caption is of, over all captions.
    photo_of_caption: Vec<usize>,
    texts: Vec<Vec<Vec<u32>>>,
    orders: [Order; 3],
    seed: [u8; 32],
    device: Device,
    pub(super) optimizer: Optimizer,
    pub(super) progress: Progress,
}

impl<'a> Trainer<'a> {
    /// # Errors
    /// `InvalidInput` where the material and the configuration do not fit.
    pub(super) fn new(config: &'a Config, material: &'a Material) -> Result<Self> {
        let most = config.network.words - 2;
        // They were counted when the material was loaded.
        let mut skipped = Skipped::default();
        let mut captions: Vec<(usize, usize, Vec<&str>)> = Vec::new();
        for (collection, pictures) in material.train.iter().enumerate() {
            for (place, photo) in pictures.photos.iter().enumerate() {
                let usable = corpus::usable(&photo.captions, &mut skipped);
                captions.push((collection, place, usable));
            }
        }
        let texts: Vec<Vec<&str>> = material
            .texts
            .iter()
            .map(|group| corpus::usable(group, &mut skipped))
            .filter(|group| !group.is_empty())
            .collect();
        let words = captions.iter().flat_map(|(.., of)| of).chain(texts.iter().flatten());
        let pieces = WordPieces::learn(words.copied(), config.network.vocabulary)?;

        let (mut photos, mut photo_of_caption) = (Vec::new(), Vec::new());
        for (collection, place, captions) in captions {
            if captions.is_empty() {
                continue;
            }
            let example = Example {
                picture: (collection, place),
                first_caption: photo_of_caption.len(),
                captions: corpus::encoded(&pieces, &captions, most)?,
            };
            photo_of_caption.extend(captions.iter().map(|_| photos.len()));
            photos.push(example);
        }
        if photo_of_caption.len() != material.embeddings.nrows() {
            return Err(Error::internal("captions and their embeddings differ in number"));
        }
        let texts: Vec<Vec<Vec<u32>>> = texts
            .iter()
            .map(|group| corpus::encoded(&pieces, group, most))
            .collect::<Result<_>>()?;

        let codebook = material.codebook.as_ref();
        let features = material.train.first().map_or(0, |pictures| pictures.dim());
        let network = config.network(
            pieces.count(),
            features,
            codebook.map_or(0, |codebook| codebook.dims()),
            material.embeddings.ncols(),
        );
        network.check()?;
        let visuals = material
            .train
            .iter()
            .map(|pictures| Visuals::new(pictures, network.features > 0, codebook, network.cells))
            .collect::<Result<Vec<_>>>()?;
        let seed = *blake3::hash(&config.seed.to_le_bytes()).as_bytes();
        let lengths = |group: &[Vec<u32>]| group.iter().map(|caption| caption.len() + 1).sum();
        let of_photos: Vec<usize> = photos.iter().map(|photo| lengths(&photo.captions)).collect();
        let of_texts = texts.iter().map(|group| lengths(group)).collect();
        let other = *blake3::hash(&seed).as_bytes();
        let size = config.steps.photos;
        let orders = [
            Order::new(seed, of_photos.clone(), size),
            Order::new(seed, of_texts, size),
            Order::new(other, of_photos, size),
        ];
        let weights = begun(&network, &visuals, &seed);
        let training = blake3::hash(format!("{config:?} {}", material.hash()).as_bytes());
        Ok(Trainer {
            config,
            material,
            visuals,
            pieces,
            photos,
            photo_of_caption,
            texts,
            orders,
            seed,
            device: Device::flex().autodiff(),
            optimizer: Optimizer::new(weights),
            progress: Progress::new(training.to_hex().to_string(), network),
            network,
        })
    }

    /// How much of the training is done, 0 to 1.
    pub(super) fn share(&self) -> f64 {
        match self.config.steps.length {
            Length::Steps(steps) => self.progress.step as f64 / steps as f64,
            Length::Minutes(minutes) => self.progress.elapsed_secs / (60.0 * minutes),
        }
    }

    /// How many photos and captions are trained on, and groups of captions alone.
    pub(super) fn counts(&self) -> (usize, usize, usize) {
        (self.photos.len(), self.photo_of_caption.len(), self.texts.len())
    }

    /// The network with the average of the weights: what is scored and shipped.
    pub(super) fn trained(&self) -> Trained {
        Trained {
            network: self.network,
            pieces: self.pieces.clone(),
            fitting: self.material.fitting.clone(),
            tensors: self.optimizer.average.clone(),
        }
    }

    /// Takes a step. The time that it took is for the caller to add.
    ///
    /// # Errors
    /// `InvalidInput` where the loss or its gradient is no number; the weights are those before.
    pub(super) fn step(&mut self) -> Result<Taken> {
        let step = self.progress.step;
        let kind = self.kind(step);
        let number = self.progress.taken[kind as usize];
        let chosen = self.orders[kind as usize].batch(number).to_vec();
        let mut random = super::random(&self.seed, "batch", step);
        let seen: Vec<Seen> = match kind {
            StepKind::Text => Vec::new(),
            _ => chosen.iter().map(|photo| self.seen(*photo)).collect(),
        };
        let mut embeddings = Vec::new();
        let mut hidden = Vec::new();
        let rows: Vec<Row<'_>> = match kind {
            StepKind::Text => chosen.iter().map(|group| written(&self.texts[*group])).collect(),
            StepKind::Captions => {
                embeddings = self.embeddings(&chosen, &mut random);
                let rows = chosen.iter().zip(&seen).enumerate();
                rows.map(|(place, (photo, seen))| Row {
                    read: Segment { words: &[], visual: seen.tokens(0) },
                    embedding: Some(place),
                    ..written(&self.photos[*photo].captions)
                })
                .collect()
            }
            StepKind::Masked => {
                for photo in &chosen {
                    let captions = &self.photos[*photo].captions;
                    hidden
                        .push(hide(&captions[random.random_range(0..captions.len())], &mut random));
                }
                let own = hidden.iter().zip(&seen).map(|(hidden, seen)| Row {
                    read: Segment { words: &hidden.words, visual: seen.tokens(0) },
                    hidden: hidden.targets.clone(),
                    fits: Some(true),
                    ..Row::default()
                });
                let others = chosen.iter().zip(&seen).map(|(photo, seen)| {
                    let words = self.others_caption(*photo, &mut random);
                    let read = Segment { words, visual: seen.tokens(0) };
                    Row { read, fits: Some(false), ..Row::default() }
                });
                // With one photo there are no others' captions.
                let others = others.take(if self.photos.len() > 1 { chosen.len() } else { 0 });
                own.chain(others).collect()
            }
        };
        let captions = rows.iter().map(|row| row.captions.len().max(1)).sum();
        let batch = Batch::new(&self.network, &rows)?;
        let model = Model::new(self.network, &self.optimizer.weights, &self.device);
        let of_step = blake3::keyed_hash(&self.seed, &step.to_le_bytes());
        let mut dropout = Some(Dropout::new(self.config.steps.dropout, *of_step.as_bytes()));
        let states = model.run(&batch, &mut dropout);
        let weighing = Weighing {
            label_smoothing: self.config.steps.label_smoothing,
            contrast: self.config.losses.contrast,
        };
        let (losses, gradients) = losses(&model, &batch, &states, &embeddings, weighing)?;
        let rate = self.config.steps.rate_at(step, self.share());
        let no_number = |what: &str| {
            Error::invalid_input(format!(
                "the {what} of step {step} is no number: resume from the last checkpoint with a lower \
                 `rate`"
            ))
        };
        if !losses.total.is_finite() {
            return Err(no_number("loss"));
        }
        let gradient = self.optimizer.step(&gradients, rate, &self.config.steps);
        if !gradient.is_finite() {
            return Err(no_number("gradient"));
        }
        self.progress.step += 1;
        self.progress.taken[kind as usize] += 1;
        Ok(Taken { losses, rate, gradient, captions })
    }

    fn kind(&self, step: u64) -> StepKind {
        let mix = self.config.losses.mix;
        let text = if self.texts.is_empty() { 0.0 } else { mix.text };
        let drawn = super::random(&self.seed, "kind", step).random_range(0.0..1.0)
            * (mix.captions + text + mix.masked);
        match drawn {
            drawn if drawn < mix.captions => StepKind::Captions,
            drawn if drawn < mix.captions + text => StepKind::Text,
            _ => StepKind::Masked,
        }
    }

    fn seen(&self, photo: usize) -> Seen {
        let (collection, place) = self.photos[photo].picture;
        self.visuals[collection].seen(place)
    }

    /// The embedding of one caption of each photo, then those of captions of others.
    fn embeddings(&self, photos: &[usize], random: &mut impl Rng) -> Vec<f32> {
        let own = photos.iter().map(|photo| {
            let photo = &self.photos[*photo];
            photo.first_caption + random.random_range(0..photo.captions.len())
        });
        let own: Vec<usize> = own.collect();
        let all = self.photo_of_caption.len();
        let drawn = index::sample(random, all, self.config.losses.negatives.min(all));
        let others =
            drawn.into_iter().filter(|caption| !photos.contains(&self.photo_of_caption[*caption]));
        own.into_iter()
            .chain(others)
            .flat_map(|caption| self.material.embeddings.row(caption).to_vec())
            .collect()
    }

    /// A caption of another photo, in a training of several photos.
    fn others_caption(&self, photo: usize, random: &mut impl Rng) -> &[u32] {
        let other = (photo + random.random_range(1..self.photos.len())) % self.photos.len();
        let captions = &self.photos[other].captions;
        &captions[random.random_range(0..captions.len())]
    }
}

fn written(captions: &[Vec<u32>]) -> Row<'_> {
    Row { captions: captions.iter().map(Vec::as_slice).collect(), ..Row::default() }
}

/// A caption with some of its pieces hidden.
struct Hidden {
    words: Vec<u32>,
    targets: Vec<(usize, u32)>,
}

/// Hides one piece at least.
fn hide(caption: &[u32], random: &mut impl Rng) -> Hidden {
    let mut words = caption.to_vec();
    let certain = random.random_range(0..caption.len());
    let mut targets = Vec::new();
    for (place, word) in words.iter_mut().enumerate() {
        if place == certain || random.random_bool(HIDDEN) {
            targets.push((place, *word));
            *word = MASK;
        }
    }
    Hidden { words, targets }
}

/// The weights to begin with. What is seen is scaled so that each of its numbers varies alike over
/// the training photos.
fn begun(network: &Network, visuals: &[Visuals<'_>], seed: &[u8; 32]) -> Tensors {
    let mut random = super::random(seed, "weights", 0);
    let mut tensors = Tensors::new();
    for (name, shape) in network.tensors() {
        let count: usize = shape.iter().product();
        let values = match &shape[..] {
            // Norms begin as they are found, biases at nothing.
            [_] => vec![if name.ends_with("norm.weight") { 1.0 } else { 0.0 }; count],
            [inputs, _] => {
                // What is added to the tokens' vectors starts small, the more so the more layers add.
                let is_table = name.starts_with("words.")
                    || name.starts_with("kinds.")
                    || name.ends_with("position");
                let adds = name.ends_with("output.weight") || name.ends_with("down.weight");
                let spread = match (is_table, adds) {
                    (true, _) => 0.02,
                    (_, true) => (1.0 / (*inputs as f32 * 2.0 * network.layers as f32)).sqrt(),
                    _ if name.starts_with("visual.") => 0.02 / (*inputs as f32).sqrt(),
                    _ => (1.0 / *inputs as f32).sqrt(),
                };
                (0..count).map(|_| spread * normal(&mut random)).collect()
            }
            _ => vec![0.0; count],
        };
        tensors.insert(name, Weights { shape, values });
    }
    for (name, length) in network.visual_inputs() {
        let (weight, bias) = scale_of(visuals, name == "features", length);
        for (part, values) in [("weight", weight), ("bias", bias)] {
            let shape = vec![length];
            tensors.insert(format!("visual.{name}.norm.{part}"), Weights { shape, values });
        }
    }
    tensors
}

/// A number of the normal distribution (Box and Muller, 1958).
fn normal(random: &mut impl Rng) -> f32 {
    let (a, b): (f32, f32) = (random.random_range(f32::MIN_POSITIVE..1.0), random.random());
    (-2.0 * a.ln()).sqrt() * (std::f32::consts::TAU * b).cos()
}

/// What a normalized visual input is multiplied with, and what is then added, for each of its numbers
/// to have mean 0 and spread 1 over a sample of the photos.
fn scale_of(visuals: &[Visuals<'_>], is_features: bool, length: usize) -> (Vec<f32>, Vec<f32>) {
    let (mut sum, mut squares, mut count) = (vec![0.0_f64; length], vec![0.0_f64; length], 0.0);
    for visuals in visuals {
        let photos = visuals.pictures().len();
        for photo in (0..photos).step_by(photos.div_ceil(SAMPLED).max(1)) {
            for token in visuals.seen(photo).tokens(0) {
                let values = if is_features { token.features } else { token.centroid };
                let mean = values.iter().map(|x| f64::from(*x)).sum::<f64>() / length as f64;
                let variance = values.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>();
                let spread = (variance / length as f64 + 1e-5).sqrt();
                for (place, value) in values.iter().enumerate() {
                    let value = (f64::from(*value) - mean) / spread;
                    sum[place] += value;
                    squares[place] += value * value;
                }
                count += 1.0;
            }
        }
    }
    let scales = sum.iter().zip(&squares).map(|(sum, squares)| {
        let mean = sum / f64::max(count, 1.0);
        let variance = squares / f64::max(count, 1.0) - mean * mean;
        // A number that hardly varies says nothing, and is not blown up.
        let weight = 1.0 / variance.max(0.01).sqrt();
        (weight as f32, (-mean * weight) as f32)
    });
    scales.unzip()
}
