//! One training: its state, and a step of it.

use std::sync::Arc;

use burn::tensor::Device;
use ndarray::Axis;
use rand::Rng;

use super::batch::{Batch, Row};
use super::checkpoint::Progress;
use super::config::{Config, Length};
use super::corpus::Order;
use super::draw::StepKind;
use super::examples::{Examples, Leaves};
use super::losses::{Beside, Losses, Weighing, losses};
use super::material::Material;
use super::network::{Dropout, Model};
use super::optimizer::Optimizer;
use super::reward::{Critic, Rewarded};
use crate::error::{Error, Result};
use crate::evaluate::pictures::Visuals;
use crate::model::Models;
use crate::onnx::transformer::{Network, Tensors, Weights};
use crate::transformer::{Consensus, Trained, spread};

/// Photos that the first scale of what is seen is taken from.
const SAMPLED: usize = 512;

/// Captions that are kept beside the network to choose by, at most: 14 MB.
const MOST_KEPT: usize = 1 << 16;

/// The cosine from which on words and picture rather fit than not, to begin with.
const ALIGNED: f32 = 0.3;

/// A step that was taken.
#[derive(Debug, Clone, Copy)]
pub(super) struct Taken {
    pub(super) losses: Losses,
    pub(super) rate: f64,
    /// The gradient's length, before it was cut.
    pub(super) gradient: f64,
    /// Captions of the step.
    pub(super) captions: usize,
    /// Tokens of all its rows, padding included.
    pub(super) tokens: usize,
}

pub(super) struct Trainer<'a> {
    models: &'a Models,
    config: &'a Config,
    material: &'a Material,
    network: Network,
    examples: Examples<'a>,
    /// Kept beside the network.
    consensus: Arc<Consensus>,
    /// Where what is written is rewarded.
    critic: Option<Critic>,
    /// Of each [`StepKind`].
    orders: [Order; 4],
    seed: [u8; 32],
    /// What is read of a hidden visual token.
    zeros: Vec<f32>,
    device: Device,
    pub(super) optimizer: Optimizer,
    pub(super) progress: Progress,
}

impl<'a> Trainer<'a> {
    /// # Errors
    /// `InvalidInput` where the material and the configuration do not fit.
    pub(super) fn new(
        models: &'a Models,
        config: &'a Config,
        material: &'a Material,
    ) -> Result<Self> {
        let (examples, network) = Examples::new(config, material)?;
        let seed = *blake3::hash(&config.seed.to_le_bytes()).as_bytes();
        let lengths =
            |group: &[Vec<u32>]| -> usize { group.iter().map(|caption| caption.len() + 1).sum() };
        let of_photos: Vec<usize> = examples
            .examples
            .iter()
            .map(|example| {
                let clips = (1 + network.cells) * (example.clips.len() - 1);
                lengths(&examples.captions[example.captions.clone()]) + clips
            })
            .collect();
        let of_texts = examples.texts.iter().map(|group| lengths(group)).collect();
        let other = *blake3::hash(&seed).as_bytes();
        let size = config.steps.photos;
        let orders = [
            Order::new(seed, of_photos.clone(), size),
            Order::new(seed, of_texts, size),
            Order::new(other, of_photos.clone(), size),
            Order::new(*blake3::hash(&other).as_bytes(), of_photos, config.steps.pictures),
        ];
        let weights = match &material.from {
            Some(from) => from.tensors.clone(),
            None => begun(&network, &examples.visuals, &seed),
        };
        let kept: Vec<usize> = spread(examples.captions.len(), MOST_KEPT).collect();
        let captions: Vec<&[u32]> =
            kept.iter().map(|caption| &examples.captions[*caption][..]).collect();
        let embeddings = material.embeddings.select(Axis(0), &kept);
        let consensus = Consensus::new(&captions, embeddings.view())?;
        let training = blake3::hash(format!("{config:?} {}", material.hash()).as_bytes());
        Ok(Trainer {
            models,
            consensus: Arc::new(consensus),
            critic: (config.reward.share > 0.0).then(|| Critic::new(&examples)),
            config,
            material,
            examples,
            orders,
            seed,
            zeros: vec![0.0; network.features.max(network.centroids)],
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
            Length::Minutes(minutes) => self.progress.cpu_secs / (60.0 * minutes),
        }
    }

    /// How many photos and segments, and captions, are trained on, and groups of captions alone.
    pub(super) fn counts(&self) -> (usize, usize, usize) {
        let Examples { examples, captions, texts, .. } = &self.examples;
        (examples.len(), captions.len(), texts.len())
    }

    /// The most clips that a step reads together.
    pub(super) fn most_clips(&self) -> usize {
        self.examples.most_clips(self.network.clips)
    }

    /// The network with the average of the weights: what is scored and shipped.
    pub(super) fn trained(&self) -> Trained {
        let consensus = Some(self.consensus.clone());
        Trained { consensus, ..self.network_of(&self.optimizer.average) }
    }

    fn network_of(&self, tensors: &Tensors) -> Trained {
        Trained {
            network: self.network,
            pieces: self.examples.pieces.clone(),
            fitting: self.material.fitting.clone(),
            tensors: tensors.clone(),
            consensus: None,
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
        let clips = self.network.clips;
        let embeds = kind == StepKind::Pictures
            || (kind == StepKind::Captions && self.network.embedder == 0);
        let negatives = embeds.then_some(self.config.losses.negatives);
        let drawn = self.examples.draw(kind, &chosen, clips, negatives, &mut random);
        let mut rows: Vec<Row<'_>> = drawn.rows.iter().map(|row| row.row(&self.zeros)).collect();
        let (rate, is_rewarded) = self.config.rate_at(step, self.share());
        let critic = self.critic.as_ref().filter(|_| is_rewarded && kind == StepKind::Captions);
        let rewarded: Vec<Rewarded> = match critic {
            None => Vec::new(),
            Some(critic) => {
                let network = self.network_of(&self.optimizer.weights);
                critic.reward(self.models, &network, self.config.reward.beams, &rows)?
            }
        };
        for (row, rewarded) in rows.iter_mut().zip(&rewarded) {
            row.captions = rewarded.captions.iter().map(Vec::as_slice).collect();
            row.weights.clone_from(&rewarded.advantages);
        }
        let captions = rows.iter().map(|row| row.captions.len().max(1)).sum();
        let embedding = |caption: &usize| self.material.embeddings.row(*caption).to_vec();
        let embeddings: Vec<f32> = drawn.embedded.iter().flat_map(embedding).collect();
        let beside = Beside {
            embeddings: &embeddings,
            leaves: self.examples.leaves().map_or(&[], |leaves: &Leaves| &leaves.centroids),
        };
        let batch = Batch::new(&self.network, &rows)?;
        let tokens = match kind {
            // Of which the embedder sees the whole picture alone.
            StepKind::Pictures => rows.len(),
            _ => rows.len() * batch.tokens(),
        };
        let model = Model::new(self.network, &self.optimizer.weights, &self.device);
        let of_step = blake3::keyed_hash(&self.seed, &step.to_le_bytes());
        let mut dropout = Some(Dropout::new(&self.config.steps, *of_step.as_bytes()));
        let weighing = Weighing {
            // What is rewarded is not what is right.
            label_smoothing: if critic.is_some() { 0.0 } else { self.config.steps.label_smoothing },
            contrast: self.config.losses.contrast,
            visual_words: self.config.losses.visual_words,
        };
        let (mut losses, gradients) = losses(&model, &batch, &mut dropout, beside, weighing)?;
        if critic.is_some() {
            // Its own captions are no measure of how well it knows people's.
            losses.words = None;
            let sum: f64 = rewarded.iter().map(|of_row| of_row.reward).sum();
            losses.reward = Some(sum / rewarded.len().max(1) as f64);
        }
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
        Ok(Taken { losses, rate, gradient, captions, tokens })
    }

    fn kind(&self, step: u64) -> StepKind {
        let mix = self.config.losses.mix;
        let text = if self.examples.texts.is_empty() { 0.0 } else { mix.text };
        let pictures = if self.network.embedder == 0 { 0.0 } else { mix.pictures };
        let kinds = [
            (StepKind::Text, text),
            (StepKind::Masked, mix.masked),
            (StepKind::Pictures, pictures),
        ];
        let sum = mix.captions + kinds.iter().map(|(_, weight)| weight).sum::<f64>();
        let mut drawn = super::random(&self.seed, "kind", step).random_range(0.0..1.0) * sum;
        for (kind, weight) in kinds {
            if drawn < weight {
                return kind;
            }
            drawn -= weight;
        }
        StepKind::Captions
    }
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
            [_] if name == "alignment.bias" => vec![-ALIGNED],
            [_] if name.ends_with("norm.weight") || name == "alignment.weight" => vec![1.0; count],
            [_] => vec![0.0; count],
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
    let inputs = network.visual_inputs().into_iter();
    let inputs = inputs.map(|(name, length)| (format!("visual.{name}"), name, length, false));
    let embedder = network.embedder_input();
    let embedder = embedder.map(|(name, length)| ("space".to_owned(), name, length, true));
    for (layer, name, length, of_whole) in inputs.chain(embedder) {
        let (weight, bias) = scale_of(visuals, name == "features", of_whole, length);
        for (part, values) in [("weight", weight), ("bias", bias)] {
            let shape = vec![length];
            tensors.insert(format!("{layer}.norm.{part}"), Weights { shape, values });
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
/// to have mean 0 and spread 1 over a sample of the photos, and of their parts unless `of_whole`.
fn scale_of(
    visuals: &[Visuals<'_>],
    is_features: bool,
    of_whole: bool,
    length: usize,
) -> (Vec<f32>, Vec<f32>) {
    let (mut sum, mut squares, mut count) = (vec![0.0_f64; length], vec![0.0_f64; length], 0.0);
    for visuals in visuals {
        let photos = visuals.pictures().len();
        for photo in (0..photos).step_by(photos.div_ceil(SAMPLED).max(1)) {
            let seen = visuals.seen(photo);
            for token in seen.tokens(0).iter().filter(|token| !of_whole || token.cell == 0) {
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
