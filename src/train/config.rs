//! What is trained, and how: a TOML file.

use crate::error::{Error, Result};
use crate::evaluate::photos::View;
use crate::onnx::transformer::Network;
use crate::picture::CELLS;
use crate::toml_check::{self, Table};
use crate::transformer::Trained;

/// What a visual token is made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inputs {
    /// The visual word's centroid.
    pub tokens: bool,
    /// The CNN's features.
    pub features: bool,
    /// Tokens for the parts of a picture, beside that of the whole.
    pub cells: bool,
}

const INPUTS: [(&str, Inputs); 6] = [
    ("tokens", Inputs { tokens: true, features: false, cells: false }),
    ("features", Inputs { tokens: false, features: true, cells: false }),
    ("both", Inputs { tokens: true, features: true, cells: false }),
    ("tokens+cells", Inputs { tokens: true, features: false, cells: true }),
    ("features+cells", Inputs { tokens: false, features: true, cells: true }),
    ("both+cells", Inputs { tokens: true, features: true, cells: true }),
];

impl Inputs {
    /// Of this name: `tokens`, `features`, `both`, each also with `+cells`.
    pub fn named(name: &str) -> Option<Inputs> {
        INPUTS.iter().find(|(known, _)| *known == name).map(|(_, inputs)| *inputs)
    }
}

/// How long to train.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Length {
    Steps(u64),
    /// Of processor time in steps, over all threads and runs: what else runs on the machine, loading and
    /// scoring make no difference, so trainings of one length can be compared.
    Minutes(f64),
}

/// What one step does; a step is of one kind, drawn by these weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mix {
    /// Video alone: captions are written of pictures, and, where `[CLS]` embeds them, pictures find their captions.
    pub captions: f64,
    /// Text alone: captions are written, or their hidden words guessed.
    pub text: f64,
    /// Both: beside a picture, hidden words and visual words are guessed, and a caption is written, also
    /// where the words are of another picture.
    pub masked: f64,
    /// Pictures alone, where they are embedded by a network of their own: they find their captions.
    pub pictures: f64,
}

/// What stands for a codebook that is fitted on what is trained on.
const FIT: &str = "fit";

/// A training's configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// All that is random follows from it.
    pub seed: u64,
    pub inputs: Inputs,
    /// Ids or paths of manifests.
    pub encoder: String,
    /// Or the codebook's own file, or "fit": see [`Config::fits_codebook`].
    pub codebook: String,
    pub text: String,
    pub network: Sizes,
    pub steps: Steps,
    pub losses: Losses,
    pub reward: Reward,
    pub checkpoints: Checkpoints,
}

/// Sizes of the network; the others follow from what it sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Word pieces, at most.
    pub vocabulary: usize,
    pub dim: usize,
    pub layers: usize,
    pub heads: usize,
    pub inner: usize,
    /// Places for words, and for clips.
    pub words: usize,
    pub clips: usize,
    /// See [`Network::embedder`].
    pub embedder: usize,
}

/// Optimization: AdamW (Loshchilov and Hutter, 2019), with an average of the weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Steps {
    pub length: Length,
    /// Photos of a step, each with all its captions.
    pub photos: usize,
    /// Photos of a step that has pictures alone, each with one of its captions.
    pub pictures: usize,
    /// How a photo is seen: so many of [`View::ALL`], one of them at a time.
    ///
    /// [`View::ALL`]: crate::evaluate::photos::View::ALL
    pub views: usize,
    pub rate: f64,
    /// Steps in which the rate rises from 0; all the while, it falls as a cosine does.
    pub warm_up: u64,
    pub betas: [f64; 2],
    pub weight_decay: f64,
    /// The gradient's length is cut to this.
    pub clip: f64,
    pub label_smoothing: f64,
    pub dropout: f64,
    /// Of what the embedder sees and of its inner vector.
    pub embedder_dropout: f64,
    /// What a step leaves of the average of the weights.
    pub average: f64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Losses {
    pub mix: Mix,
    /// The weight of the contrastive loss beside that of the words.
    pub contrast: f64,
    /// The weight of guessing hidden visual words.
    pub visual_words: f64,
    /// Captions of other photos that each photo is told from.
    pub negatives: usize,
}

/// The end of the training, in which pictures' captions are no longer learnt word by word: what the network
/// writes by itself is rewarded by how well it agrees with them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reward {
    /// Of the training; 0 for none.
    pub share: f64,
    /// The rate at its begin; it falls as a cosine does.
    pub rate: f64,
    /// Captions that are written of each picture.
    pub beams: usize,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Checkpoints {
    /// From one to the next.
    pub minutes: f64,
    /// Photos of the dev split that each is scored on.
    pub scored: usize,
    pub beams: usize,
}

impl Config {
    /// Reads a configuration; `file` names it in messages.
    ///
    /// # Errors
    /// `InvalidInput` with every mistake and its place.
    pub fn read(file: &str, text: &str) -> Result<Config> {
        toml_check::read(file, text, build).map_err(|mistakes| toml_check::as_error(&mistakes))
    }

    /// Whether visual words are seen, or guessed.
    pub fn needs_codebook(&self) -> bool {
        self.inputs.tokens || self.losses.visual_words > 0.0
    }

    /// Whether the codebook is fitted on what is trained on.
    pub fn fits_codebook(&self) -> bool {
        self.needs_codebook() && self.codebook == FIT
    }

    /// The network that is trained, for so many word pieces, and features, centroids (0 without a
    /// codebook) and embeddings of these lengths.
    pub fn network(
        &self,
        vocabulary: usize,
        features: usize,
        centroids: usize,
        space: usize,
    ) -> Network {
        let used = |is_used: bool, length: usize| if is_used { length } else { 0 };
        let Sizes { dim, layers, heads, inner, words, clips, embedder, .. } = self.network;
        let Inputs { tokens, features: continuous, cells } = self.inputs;
        Network {
            vocabulary,
            dim,
            layers,
            heads,
            inner,
            words,
            clips,
            cells: used(cells, CELLS),
            features: used(continuous, features),
            centroids: used(tokens, centroids),
            space,
            embedder,
            guessed: used(self.losses.visual_words > 0.0, centroids),
        }
    }

    /// As [`Config::network`], for a training that begins with this network.
    ///
    /// # Errors
    /// `InvalidInput` where it is of other sizes.
    pub(super) fn continued(
        &self,
        from: &Trained,
        features: usize,
        centroids: usize,
        space: usize,
    ) -> Result<Network> {
        let mut network = self.network(from.pieces.count(), features, centroids, space);
        // One that was trained before has no embedder, and is gone on with as it is.
        network.embedder = from.network.embedder;
        if from.network != network {
            return Err(Error::invalid_input(format!(
                "the network to begin with is of another kind than the configuration's: {:?}, not {network:?}",
                from.network
            )));
        }
        Ok(network)
    }

    /// The rate of a step when `share` of the training is done, and whether captions are rewarded.
    pub fn rate_at(&self, step: u64, share: f64) -> (f64, bool) {
        let learning = 1.0 - self.reward.share;
        if share < learning || self.reward.share <= 0.0 {
            let warm = ((step + 1) as f64 / self.steps.warm_up.max(1) as f64).min(1.0);
            (self.steps.rate * warm * fallen(share / learning), false)
        } else {
            (self.reward.rate * fallen((share - learning) / self.reward.share), true)
        }
    }
}

/// From 1 to 0, as a cosine falls.
fn fallen(share: f64) -> f64 {
    0.5 * (1.0 + (std::f64::consts::PI * share.clamp(0.0, 1.0)).cos())
}

fn build(root: &Table<'_>) -> Config {
    root.required_int("schema", 1..=1);
    let network = root.required_table("network", sizes);
    let losses = root.required_table("losses", losses);
    if network.embedder > 0 && (losses.mix.pictures <= 0.0 || losses.contrast <= 0.0) {
        let why =
            "with an embedder, `pictures` and `contrast` must be more than 0, or it learns nothing";
        root.mistake("losses", why);
    }
    let name = |key| root.required_str(key).to_owned();
    Config {
        seed: root.required_int("seed", 0..=i64::MAX) as u64,
        inputs: root.required_choice("inputs", &INPUTS),
        encoder: name("encoder"),
        codebook: name("codebook"),
        text: name("text"),
        network,
        steps: root.required_table("steps", steps),
        losses,
        reward: root.required_table("reward", |reward| Reward {
            share: reward.required_float("share", 0.0..=0.9),
            rate: reward.required_float("rate", 1e-9..=1.0),
            beams: size(reward, "beams", 2, 64),
        }),
        checkpoints: root.required_table("checkpoints", |checkpoints| Checkpoints {
            minutes: checkpoints.required_float("minutes", 0.01..=1_000.0),
            scored: checkpoints.required_int("scored", 0..=1_000_000) as usize,
            beams: size(checkpoints, "beams", 1, 64),
        }),
    }
}

fn size(table: &Table<'_>, key: &'static str, least: i64, most: i64) -> usize {
    table.required_int(key, least..=most) as usize
}

fn sizes(table: &Table<'_>) -> Sizes {
    let sizes = Sizes {
        vocabulary: size(table, "vocabulary", 256, 65_536),
        dim: size(table, "dim", 1, 4_096),
        layers: size(table, "layers", 1, 64),
        heads: size(table, "heads", 1, 64),
        inner: size(table, "inner", 1, 1 << 14),
        words: size(table, "words", 8, 1_024),
        clips: size(table, "clips", 1, 256),
        embedder: size(table, "embedder", 0, 1 << 14),
    };
    if !sizes.dim.is_multiple_of(sizes.heads) {
        table.mistake("dim", format!("`dim` must be a multiple of heads = {}", sizes.heads));
    }
    sizes
}

fn steps(table: &Table<'_>) -> Steps {
    let minutes = table.optional_float("minutes", 0.01..=100_000.0);
    let count = table.optional_int("count", 1..=1_000_000_000);
    let length = match (minutes, count) {
        (Some(minutes), None) => Length::Minutes(minutes),
        (None, Some(count)) => Length::Steps(count as u64),
        _ => {
            table.mistake("minutes", "either `minutes` or `count` says how long to train");
            Length::Steps(1)
        }
    };
    let float = |key, range| table.required_float(key, range);
    Steps {
        length,
        photos: size(table, "photos", 1, 4_096),
        pictures: size(table, "pictures", 1, 4_096),
        views: size(table, "views", 1, View::ALL.len() as i64),
        rate: float("rate", 1e-9..=1.0),
        warm_up: size(table, "warm_up", 0, 1_000_000) as u64,
        betas: [float("beta_1", 0.0..=0.999_999), float("beta_2", 0.0..=0.999_999)],
        weight_decay: float("weight_decay", 0.0..=10.0),
        clip: float("clip", 1e-6..=1e6),
        label_smoothing: float("label_smoothing", 0.0..=0.9),
        dropout: float("dropout", 0.0..=0.9),
        embedder_dropout: float("embedder_dropout", 0.0..=0.9),
        average: float("average", 0.0..=0.999_999),
    }
}

fn losses(table: &Table<'_>) -> Losses {
    let weight = |key| table.required_float(key, 0.0..=1e3);
    let mix = Mix {
        captions: weight("captions"),
        text: weight("text"),
        masked: weight("masked"),
        pictures: weight("pictures"),
    };
    if mix.captions <= 0.0 {
        table.mistake("captions", "`captions` must be more than 0");
    }
    Losses {
        mix,
        contrast: weight("contrast"),
        visual_words: weight("visual_words"),
        negatives: size(table, "negatives", 1, 1 << 20),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A small, short training.
    pub(in crate::train) fn small() -> Config {
        let text = include_str!("../../training/default.toml")
            .replace("minutes = 30", "count = 20")
            .replace("dim = 256", "dim = 16")
            .replace("inner = 1024", "inner = 32")
            .replace("embedder = 1024", "embedder = 24")
            .replace("vocabulary = 4000", "vocabulary = 256")
            .replace("photos = 16", "photos = 2")
            .replace("pictures = 256", "pictures = 4")
            .replace("warm_up = 200", "warm_up = 2");
        Config::read("small.toml", &text).unwrap()
    }

    #[test]
    fn the_rate_rises_and_falls() {
        let mut config = small();
        (config.steps.rate, config.steps.warm_up) = (1e-3, 200);
        let rate = |config: &Config, step, share| config.rate_at(step, share).0;
        assert!(rate(&config, 0, 0.0) < 1e-5);
        assert!((rate(&config, 199, 0.0) - 1e-3).abs() < 1e-12);
        assert!((rate(&config, 900, 0.5) - 5e-4).abs() < 1e-12);
        assert!(rate(&config, 900, 1.0).abs() < 1e-12);
        config.reward = Reward { share: 0.4, rate: 1e-4, beams: 5 };
        assert!((rate(&config, 900, 0.3) - 5e-4).abs() < 1e-12);
        assert_eq!(config.rate_at(900, 0.6), (1e-4, true));
        assert!((rate(&config, 900, 0.8) - 5e-5).abs() < 1e-12);
    }

    #[test]
    fn mistakes_are_all_told() {
        let wrong = Config::read("x.toml", "schema = 1\nseed = -1\ninputs = \"both\"\nsteps = 3\n");
        let message = wrong.unwrap_err().to_string();
        for part in ["`seed` must be", "the key `network` is missing", "`steps` must be a table"] {
            assert!(message.contains(part), "{message}");
        }
        let both = include_str!("../../training/default.toml").replace("minutes = 30", "heads = 3");
        let message = Config::read("x.toml", &both).unwrap_err().to_string();
        assert!(message.contains("unknown key `heads`"), "{message}");
        assert!(message.contains("how long to train"), "{message}");
    }
}
