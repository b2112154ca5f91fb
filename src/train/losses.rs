//! The losses of a step.

use burn::tensor::{Tensor, TensorData};
use pulp::Arch;

use super::batch::Batch;
use super::network::{Dropout, Model, values};
use super::optimizer::Gradients;
use super::vector::{exp, most, sum};
use crate::error::Result;

/// What a step's losses are, for the log; those that the step did not have are `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize)]
pub(super) struct Losses {
    /// What is minimized.
    pub(super) total: f64,
    /// Mean nats of a word piece, without smoothing.
    pub(super) words: Option<f64>,
    pub(super) contrast: Option<f64>,
    /// Mean nats of a hidden visual word.
    pub(super) visual_words: Option<f64>,
    /// Nats of telling whether a caption is of a picture, by their cosine.
    pub(super) alignment: Option<f64>,
    /// The mean CIDEr of what was written to be rewarded.
    pub(super) reward: Option<f64>,
}

/// How losses are weighed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Weighing {
    pub(super) label_smoothing: f64,
    pub(super) contrast: f64,
    pub(super) visual_words: f64,
}

/// What lies beside a batch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Beside<'a> {
    /// Rows of length 1, one after the other, that `batch.embeddings` counts.
    pub(super) embeddings: &'a [f32],
    /// The centroids of the visual words, one after the other, that `batch.visual_targets` counts.
    pub(super) leaves: &'a [f32],
}

/// The losses of a batch and the gradients of their sum. Of the network, what they need is run.
pub(super) fn losses(
    model: &Model,
    batch: &Batch,
    dropout: &mut Option<Dropout>,
    beside: Beside<'_>,
    weighing: Weighing,
) -> Result<(Losses, Gradients)> {
    let mut losses = Losses::default();
    let mut terms: Vec<Tensor<1>> = Vec::new();
    let mut words = None;
    let guesses = !batch.targets.is_empty() || !batch.visual_targets.is_empty();
    let states = (guesses || model.embeds_states()).then(|| model.run(batch, dropout));
    if let Some(states) = states.as_ref().filter(|_| !batch.targets.is_empty()) {
        let tokens = batch.targets.iter().map(|(token, _)| *token).collect();
        let guessed = words_loss(model, model.states_of(states, tokens), batch, weighing)?;
        losses.total += guessed.smoothed;
        losses.words = Some(guessed.nats);
        terms.push(guessed.term);
        words = Some((guessed.table, guessed.bias));
    }
    let is_told = !batch.embeddings.is_empty() && weighing.contrast > 0.0;
    let embedded = match is_told {
        true => model.embeddings(batch, states.as_ref(), dropout),
        false => None,
    };
    if let Some(embedded) = embedded {
        let (contrast, alignment) = model.contrast(embedded, &batch.embeddings, beside.embeddings);
        for (term, loss) in [(contrast, &mut losses.contrast), (alignment, &mut losses.alignment)] {
            let nats = f64::from(values(term.clone())?[0]);
            losses.total += weighing.contrast * nats;
            *loss = Some(nats);
            terms.push(term * weighing.contrast as f32);
        }
    }
    let seen = states.as_ref().filter(|_| !batch.visual_targets.is_empty());
    if let Some(states) = seen.filter(|_| weighing.visual_words > 0.0) {
        let term = model.visual_words(states, &batch.visual_targets, beside.leaves);
        let loss = f64::from(values(term.clone())?[0]);
        losses.total += weighing.visual_words * loss;
        losses.visual_words = Some(loss);
        terms.push(term * weighing.visual_words as f32);
    }
    let sum = terms.into_iter().reduce(|a, b| a + b);
    let mut gradients = match sum {
        Some(sum) => model.gradients(sum)?,
        None => Gradients::new(),
    };
    if let Some((table, bias)) = words {
        // The table is read, too, which autodiff has seen to.
        match gradients.get_mut("words.weight") {
            Some(read) => read.iter_mut().zip(table).for_each(|(sum, x)| *sum += x),
            None => drop(gradients.insert("words.weight".to_owned(), table)),
        }
        gradients.insert("written.bias".to_owned(), bias);
    }
    Ok((losses, gradients))
}

struct WordsLoss {
    smoothed: f64,
    nats: f64,
    /// Not the loss, but with the loss's gradient in the states.
    term: Tensor<1>,
    /// Gradients of the table of words and of the bias.
    table: Vec<f32>,
    bias: Vec<f32>,
}

/// The cross entropy of guessing word pieces, with its gradient worked out by hand: `[tokens,
/// vocabulary]` is by far the largest array of a step, and goes through one loop here instead of the
/// ten that autodiff makes of it.
fn words_loss(
    model: &Model,
    states: Tensor<2>,
    batch: &Batch,
    weighing: Weighing,
) -> Result<WordsLoss> {
    let inner = states.clone().inner();
    let (table, bias) = model.words_table();
    let vocabulary = table.dims()[0];
    let logits = inner.clone().matmul(table.clone().transpose());
    let mut logits = values(logits)?;
    let bias = values(bias)?;
    let mut bias_gradient = vec![0.0; vocabulary];
    let (mut smoothed, mut nats) = (0.0, 0.0);
    let count = batch.targets.len();
    let even = weighing.label_smoothing as f32 / vocabulary as f32;
    let own = 1.0 - weighing.label_smoothing as f32;
    Arch::new().dispatch(|| {
        let targets = batch.targets.iter().zip(&batch.weights);
        for (row, ((_, target), weight)) in logits.chunks_exact_mut(vocabulary).zip(targets) {
            for (logit, bias) in row.iter_mut().zip(&bias) {
                *logit += bias;
            }
            let sum_of_logits = sum(row, |x| x);
            let own_logit = row[*target as usize];
            let most = most(row);
            for logit in row.iter_mut() {
                *logit = exp(*logit - most);
            }
            let sum = sum(row, |x| x);
            let log_sum = most + sum.ln();
            nats += f64::from(log_sum - own_logit);
            smoothed += f64::from(weight * (log_sum - own * own_logit - even * sum_of_logits));
            let each = weight / count as f32;
            let scale = each / sum;
            for (x, bias) in row.iter_mut().zip(&mut bias_gradient) {
                *x = *x * scale - even * each;
                *bias += *x;
            }
            row[*target as usize] -= own * each;
            bias_gradient[*target as usize] -= own * each;
        }
    });
    let gradient = TensorData::new(logits, [count, vocabulary]);
    let gradient = Tensor::<2>::from_data(gradient, &inner.device());
    let of_table = values(gradient.clone().transpose().matmul(inner))?;
    let of_states = gradient.matmul(table).autodiff();
    Ok(WordsLoss {
        smoothed: smoothed / count as f64,
        nats: nats / count as f64,
        term: (states * of_states).sum(),
        table: of_table,
        bias: bias_gradient,
    })
}
