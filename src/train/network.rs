//! The network in burn: the same computation as the ONNX graphs, with gradients.

use burn::tensor::activation::{log_sigmoid, log_softmax};
use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::batch::Batch;
use super::config::Steps;
use super::ops::{Scales, layer_norm, residual, softmax, squared_relu};
use super::optimizer::Gradients;
use crate::error::{Error, Result};
use crate::onnx::transformer::{Network, SHARPNESS, Tensors, TokenKind};

/// A network's weights as tensors that gradients are wanted of.
pub(super) struct Model {
    network: Network,
    device: Device,
    weights: std::collections::BTreeMap<String, (Vec<usize>, Tensor<1>)>,
}

/// Zeroes of random places; the rest grows so that sums stay the same on average.
pub(super) struct Dropout {
    of_tokens: f64,
    of_embedder: f64,
    random: ChaCha8Rng,
}

impl Dropout {
    pub(super) fn new(steps: &Steps, seed: [u8; 32]) -> Self {
        Dropout {
            of_tokens: steps.dropout,
            of_embedder: steps.embedder_dropout,
            random: ChaCha8Rng::from_seed(seed),
        }
    }

    /// What so many numbers are multiplied with, of which a share is dropped.
    fn scales(&mut self, share: f64, count: usize) -> Scales {
        if share <= 0.0 {
            return Scales::new();
        }
        // A byte decides: shares are exact to 1/256, and what is kept grows by what they are.
        let least = (share * 256.0).round().min(255.0) as u8;
        let kept = 256.0 / (256.0 - f32::from(least));
        let mut bytes = vec![0_u8; count];
        self.random.fill(&mut bytes[..]);
        bytes.into_iter().map(|byte| if byte >= least { kept } else { 0.0 }).collect()
    }
}

impl Model {
    /// `device` must have autodiff.
    pub(super) fn new(network: Network, tensors: &Tensors, device: &Device) -> Self {
        let weights = tensors
            .iter()
            .map(|(name, weights)| {
                let length = weights.values.len();
                let data = TensorData::new(weights.values.clone(), [length]);
                let tensor = Tensor::<1>::from_data(data, device).require_grad();
                (name.clone(), (weights.shape.clone(), tensor))
            })
            .collect();
        Model { network, device: device.clone(), weights }
    }

    /// The gradients of a loss, which is consumed.
    pub(super) fn gradients(&self, loss: Tensor<1>) -> Result<Gradients> {
        let mut of = loss.backward();
        let mut gradients = Gradients::new();
        for (name, (_, tensor)) in &self.weights {
            if let Some(gradient) = tensor.grad_remove(&mut of) {
                gradients.insert(name.clone(), values(gradient)?);
            }
        }
        Ok(gradients)
    }

    /// The states of a batch's tokens, normalized: `[rows * tokens, dim]`. Without `dropout`, as when the
    /// network is used.
    pub(super) fn run(&self, batch: &Batch, dropout: &mut Option<Dropout>) -> Tensor<2> {
        let Network { dim, layers, heads, .. } = self.network;
        let (rows, read, tokens) = (batch.packed.rows, batch.packed.tokens(), batch.tokens());
        let mut sequence = vec![
            self.words(&batch.packed.word_ids, &self.places(batch), TokenKind::Read, rows),
            self.visual(batch),
        ];
        if batch.written > 0 {
            let (ids, places) = (&batch.written_ids, &batch.written_places);
            sequence.push(self.words(ids, places, TokenKind::Written, rows));
        }
        let sequence = Tensor::cat(sequence, 1).reshape([rows * tokens, dim]);
        debug_assert_eq!(tokens, read + batch.written);
        let mut scales = || match dropout {
            Some(dropout) => dropout.scales(dropout.of_tokens, rows * tokens * dim),
            None => Scales::new(),
        };
        let state = self.normalized("embedding.norm", sequence);
        let mut state = self.dropped(state, scales());
        let bias = TensorData::new(batch.bias.clone(), [rows, 1, tokens, tokens]);
        let bias = Tensor::<4>::from_data(bias, &self.device);
        for layer in 0..layers {
            let name = |part: &str| format!("layers.{layer}.{part}");
            let input = self.normalized(&name("attention.norm"), state.clone());
            let split = |part: &str| {
                self.linear(&name(&format!("attention.{part}")), input.clone())
                    .reshape([rows, tokens, heads, dim / heads])
                    .swap_dims(1, 2)
            };
            // Queries are scaled rather than scores, of which there are more.
            let scale = 1.0 / ((dim / heads) as f32).sqrt();
            let scores = (split("query") * scale).matmul(split("key").swap_dims(2, 3));
            let weights = softmax(scores, bias.clone());
            let seen = weights.matmul(split("value")).swap_dims(1, 2);
            let seen = seen.reshape([rows * tokens, dim]);
            let added = |state, part: &str, input: Tensor<2>, scales| {
                let product = input.matmul(self.matrix(&name(&format!("{part}.weight"))));
                residual(state, product, self.vector(&name(&format!("{part}.bias"))), scales)
            };
            state = added(state, "attention.output", seen, scales());
            let input = self.normalized(&name("inner.norm"), state.clone());
            let product = input.matmul(self.matrix(&name("inner.up.weight")));
            let inner = squared_relu(product, self.vector(&name("inner.up.bias")));
            state = added(state, "inner.down", inner, scales());
        }
        self.normalized("norm", state)
    }

    /// Whether embeddings are made of states.
    pub(super) fn embeds_states(&self) -> bool {
        self.network.embedder_input().is_none()
    }

    /// Embeddings of pictures, of length 1: `[rows, space]`; of [CLS]'s states, where they are made of those.
    pub(super) fn embeddings(
        &self,
        batch: &Batch,
        states: Option<&Tensor<2>>,
        dropout: &mut Option<Dropout>,
    ) -> Option<Tensor<2>> {
        let embedded = match self.network.embedder_input() {
            None => {
                let tokens = batch.tokens();
                let first = (0..batch.packed.rows).map(|row| (row * tokens) as i64).collect();
                states?.clone().select(0, self.indices(first)).matmul(self.matrix("space.weight"))
            }
            Some((name, length)) => self.embedder(batch, name, length, dropout),
        };
        // A root has no gradient at 0, where dropout may leave nothing.
        let length = (embedded.clone().square().sum_dim(1) + 1e-12).sqrt();
        Some(embedded / length)
    }

    /// Embeddings, of any length, of the mean of what is seen of the whole pictures: `[rows, space]`.
    fn embedder(
        &self,
        batch: &Batch,
        name: &str,
        length: usize,
        dropout: &mut Option<Dropout>,
    ) -> Tensor<2> {
        let packed = &batch.packed;
        let (rows, visual) = (packed.rows, packed.visual);
        let values = packed.values(name);
        // Whole pictures alone, and of each its share of the row's mean.
        let (mut whole, mut places) = (Vec::new(), Vec::new());
        for row in 0..rows {
            let there = &packed.is_token[row * packed.tokens() + packed.words..];
            let cells = &packed.cells[row * visual..];
            for place in (0..visual).filter(|place| there[*place] && cells[*place] == 0) {
                let at = (row * visual + place) * length;
                whole.extend_from_slice(&values[at..at + length]);
                places.push(row);
            }
        }
        let count = places.len();
        let mut shares = vec![0.0_f32; rows * count];
        for (at, row) in places.iter().enumerate() {
            let of_row = places.iter().filter(|other| *other == row).count();
            shares[row * count + at] = 1.0 / of_row as f32;
        }
        let whole = Tensor::<2>::from_data(TensorData::new(whole, [count, length]), &self.device);
        let shares = Tensor::<2>::from_data(TensorData::new(shares, [rows, count]), &self.device);
        let mean = shares.matmul(self.normalized("space.norm", whole));
        let mut scales = |length: usize| match dropout {
            Some(dropout) => dropout.scales(dropout.of_embedder, rows * length),
            None => Scales::new(),
        };
        let mean = self.dropped(mean, scales(length));
        let up = mean.matmul(self.matrix("space.up.weight"));
        let up = squared_relu(up, self.vector("space.up.bias"));
        let up = self.dropped(up, scales(self.network.embedder));
        up.matmul(self.matrix("space.down.weight"))
    }

    fn dropped(&self, state: Tensor<2>, scales: Scales) -> Tensor<2> {
        if scales.is_empty() {
            return state;
        }
        let scales = TensorData::new(scales, state.dims());
        state * Tensor::from_data(scales, &self.device)
    }

    /// The states of some tokens.
    pub(super) fn states_of(&self, states: &Tensor<2>, tokens: Vec<usize>) -> Tensor<2> {
        let tokens = tokens.into_iter().map(|token| token as i64).collect();
        states.clone().select(0, self.indices(tokens))
    }

    /// Log-probabilities of each word piece at some tokens: `[tokens, vocabulary]`.
    #[cfg(test)]
    pub(super) fn log_probabilities(&self, states: &Tensor<2>, tokens: Vec<usize>) -> Tensor<2> {
        log_softmax(self.logits(self.states_of(states, tokens)), 1)
    }

    /// The table of words and the bias of guessing them, out of autodiff's sight.
    pub(super) fn words_table(&self) -> (Tensor<2>, Tensor<1>) {
        (self.matrix("words.weight").inner(), self.vector("written.bias").inner())
    }

    #[cfg(test)]
    fn logits(&self, states: Tensor<2>) -> Tensor<2> {
        let products = states.matmul(self.matrix("words.weight").transpose());
        products + self.vector("written.bias").unsqueeze()
    }

    /// The contrastive loss (van den Oord and others, 2018): the embedding of each of these rows'
    /// pictures, of `embedded`, tells its own caption's, the `of`th of `embeddings` (rows of length 1, one
    /// after the other), from all others, and its caption's tells it from the other pictures. And the loss of
    /// telling its own from one other, which makes a probability of their cosine.
    pub(super) fn contrast(
        &self,
        embedded: Tensor<2>,
        of: &[(usize, usize)],
        embeddings: &[f32],
    ) -> (Tensor<1>, Tensor<1>) {
        let space = self.network.space;
        let rows = of.iter().map(|(row, _)| *row as i64).collect();
        let embedded = embedded.select(0, self.indices(rows));
        let count = embeddings.len() / space;
        let others = TensorData::new(embeddings.to_vec(), [count, space]);
        let others = Tensor::<2>::from_data(others, &self.device);
        let cosines = embedded.matmul(others.transpose());
        // Of each row its own and one other: those come after all the rows' own, where there are some.
        let far = if count > of.len() { of.len() } else { 1 };
        let own = of.iter().map(|(_, own)| *own as i64);
        let other = of.iter().map(|(_, own)| ((own + far) % count.max(1)) as i64);
        let pairs = own.clone().zip(other).flat_map(|(own, other)| [own, other]).collect();
        let pairs = cosines.clone().gather(1, self.indices(pairs).reshape([of.len(), 2]));
        let logits = (pairs * self.vector("alignment.weight").unsqueeze()
            + self.vector("alignment.bias").unsqueeze())
            * SHARPNESS;
        // -log sigmoid(x) for its own, -log sigmoid(-x) for the other.
        let signs = Tensor::<2>::from_data([[1.0_f32, -1.0]], &self.device);
        let alignment = log_sigmoid(logits * signs).mean().neg();
        let own: Vec<i64> = own.collect();
        let pictures = cosines.clone().select(1, self.indices(own.clone())).transpose();
        let told = self.told(cosines * SHARPNESS, own)
            + self.told(pictures * SHARPNESS, (0..of.len() as i64).collect());
        (told * 0.5, alignment)
    }

    /// The loss of guessing hidden visual words: `of` has tokens and the class of each, `leaves` the
    /// classes' centroids, one after the other.
    pub(super) fn visual_words(
        &self,
        states: &Tensor<2>,
        of: &[(usize, usize)],
        leaves: &[f32],
    ) -> Tensor<1> {
        let tokens = of.iter().map(|(token, _)| *token).collect();
        let guessed = self.states_of(states, tokens).matmul(self.matrix("visual.guess.weight"));
        let dims = self.network.guessed;
        let leaves = TensorData::new(leaves.to_vec(), [leaves.len() / dims, dims]);
        let leaves = Tensor::<2>::from_data(leaves, &self.device);
        let scores = guessed.matmul(leaves.transpose());
        self.told(scores, of.iter().map(|(_, class)| *class as i64).collect())
    }

    /// The mean nats of telling each row's own column from the others.
    fn told(&self, scores: Tensor<2>, own: Vec<i64>) -> Tensor<1> {
        let rows = own.len();
        let own = self.indices(own).reshape([rows, 1]);
        log_softmax(scores, 1).gather(1, own).mean().neg()
    }

    fn places(&self, batch: &Batch) -> Vec<i64> {
        (0..batch.packed.rows).flat_map(|_| 0..batch.packed.words as i64).collect()
    }

    /// Words with their places: `[rows, words, dim]`.
    fn words(&self, ids: &[i64], places: &[i64], kind: TokenKind, rows: usize) -> Tensor<3> {
        let words = self.rows_of("words.weight", ids) + self.rows_of("words.position", places);
        self.of_kind(words, kind, rows)
    }

    fn visual(&self, batch: &Batch) -> Tensor<3> {
        let packed = &batch.packed;
        let mut sum = self.rows_of("visual.clip.position", &packed.clips)
            + self.rows_of("visual.cell.position", &packed.cells);
        for (name, length) in self.network.visual_inputs() {
            let shape = [packed.rows * packed.visual, length];
            let input = TensorData::new(packed.values(name).to_vec(), shape);
            let input = Tensor::<2>::from_data(input, &self.device);
            let input = self.normalized(&format!("visual.{name}.norm"), input);
            sum = sum + input.matmul(self.matrix(&format!("visual.{name}.weight")));
        }
        self.of_kind(sum, TokenKind::Visual, packed.rows)
    }

    fn of_kind(&self, tokens: Tensor<2>, kind: TokenKind, rows: usize) -> Tensor<3> {
        let dim = self.network.dim;
        let count = tokens.dims()[0] / rows;
        let kind = self.matrix("kinds.weight").narrow(0, kind as usize, 1);
        (tokens + kind).reshape([rows, count, dim])
    }

    fn rows_of(&self, table: &str, rows: &[i64]) -> Tensor<2> {
        self.matrix(table).select(0, self.indices(rows.to_vec()))
    }

    fn indices(&self, values: Vec<i64>) -> Tensor<1, Int> {
        let length = values.len();
        Tensor::from_data(TensorData::new(values, [length]), &self.device)
    }

    fn linear(&self, name: &str, input: Tensor<2>) -> Tensor<2> {
        let product = input.matmul(self.matrix(&format!("{name}.weight")));
        product + self.vector(&format!("{name}.bias")).unsqueeze()
    }

    fn normalized(&self, name: &str, input: Tensor<2>) -> Tensor<2> {
        let weight = self.vector(&format!("{name}.weight"));
        let bias = self.vector(&format!("{name}.bias"));
        layer_norm(input, weight, bias)
    }

    fn vector(&self, name: &str) -> Tensor<1> {
        self.weights[name].1.clone()
    }

    fn matrix(&self, name: &str) -> Tensor<2> {
        let (shape, tensor) = &self.weights[name];
        tensor.clone().reshape([shape[0], shape[1]])
    }
}

/// A tensor's values, row by row.
pub(super) fn values<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>> {
    tensor
        .try_into_vec_as::<f32>()
        .map_err(|cause| Error::internal(format!("a tensor cannot be read: {cause}")))
}
