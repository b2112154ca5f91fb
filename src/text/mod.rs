//! Words as vectors: the sentence encoder, and the joint space in which pictures and words meet.

mod joint;
pub mod pieces;
mod words;

pub use joint::JointSpace;
pub use pieces::WordPieces;
pub use words::caption_words;

use std::fmt;

use ndarray::{Array2, ArrayD, ArrayView3, Axis, Ix2, Ix3};
use tokenizers::{Tokenizer, TruncationParams};

use crate::error::{Error, Result};
use crate::model::{Device, Manifest, Models, Pooling, Session, Tensor, TextSpec};

/// Texts that go through the network together, at most…
const TEXTS_AT_A_TIME: usize = 32;
/// …and tokens, padding included: long texts go in smaller batches, which bounds the memory.
const TOKENS_AT_A_TIME: usize = 4_096;
/// What lies beyond is cut before the tokenizer sees it: far more than the longest text that any
/// tower reads to its end.
const MAX_TEXT_BYTES: usize = 64 << 10;

/// A sentence encoder: texts to unit vectors. Which one is the manifest's matter.
pub struct TextTower {
    tokenizer: Tokenizer,
    session: Session,
    spec: TextSpec,
    model: String,
    space: String,
}

impl fmt::Debug for TextTower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TextTower").field("model", &self.model).finish_non_exhaustive()
    }
}

impl TextTower {
    /// Loads tokenizer and network; `threads` work on one batch.
    ///
    /// # Errors
    /// `NotFound` where the model is not set up; `Corrupt` where its files are not what the manifest
    /// says; `InvalidInput` for a manifest of another task.
    pub fn load(models: &Models, manifest: &Manifest, threads: usize) -> Result<Self> {
        let spec = manifest.text()?.clone();
        let model = manifest.id.clone();
        let unusable = |cause| {
            Error::corrupt(format!("model {model}: {} is no usable tokenizer", spec.tokenizer))
                .caused_by(cause)
        };
        let tokenizer = models.bytes(manifest, &spec.tokenizer)?;
        let mut tokenizer = Tokenizer::from_bytes(tokenizer).map_err(unusable)?;
        let truncation = TruncationParams { max_length: spec.max_tokens, ..Default::default() };
        tokenizer.with_truncation(Some(truncation)).map_err(unusable)?;
        tokenizer.with_padding(None);
        // On the CPU: the texts of an hour take seconds, and the accelerator is for pictures.
        let session = models.session(manifest, Device::Cpu, threads)?;
        let space = space_id(manifest);
        Ok(TextTower { tokenizer, session, spec, model, space })
    }

    /// Length of an embedding.
    pub fn dim(&self) -> usize {
        self.spec.dim
    }

    /// The id of the space that the embeddings lie in: vectors of equal ids may be compared.
    pub fn space(&self) -> &str {
        &self.space
    }

    /// The languages (BCP-47) that the tower reads.
    pub fn languages(&self) -> &[String] {
        &self.spec.languages
    }

    /// The texts' embeddings, `[texts, dim]`, each row of length 1. Longer texts than the tower
    /// reads are cut.
    pub fn embed(&mut self, texts: &[&str]) -> Result<Array2<f32>> {
        let failed = |cause| {
            Error::internal(format!("model {}: the tokenizer failed", self.model)).caused_by(cause)
        };
        let tokens = |text: &&str| -> Result<Vec<i64>> {
            let encoding = self.tokenizer.encode_fast(beginning(text), true).map_err(failed)?;
            Ok(encoding.get_ids().iter().map(|id| i64::from(*id)).collect())
        };
        let tokens: Vec<Vec<i64>> = texts.iter().map(tokens).collect::<Result<_>>()?;
        let mut embeddings = Array2::zeros((texts.len(), self.spec.dim));
        // Texts of like length together: little padding.
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|text| tokens[*text].len());
        let mut rest = &order[..];
        while !rest.is_empty() {
            let fits = |count: &usize| tokens[rest[count - 1]].len() * count <= TOKENS_AT_A_TIME;
            let most = rest.len().min(TEXTS_AT_A_TIME);
            let count = (1..=most).rev().find(fits).unwrap_or(1);
            let (batch, later) = rest.split_at(count);
            rest = later;
            let rows =
                self.run(&batch.iter().map(|text| &tokens[*text][..]).collect::<Vec<_>>())?;
            for (text, row) in batch.iter().zip(rows.rows()) {
                embeddings.row_mut(*text).assign(&row);
            }
        }
        Ok(embeddings)
    }

    fn run(&mut self, batch: &[&[i64]]) -> Result<Array2<f32>> {
        let longest = batch.iter().map(|tokens| tokens.len()).max().unwrap_or(0);
        let shape = (batch.len(), longest);
        let mut ids = Array2::zeros(shape);
        let mut mask = Array2::zeros(shape);
        for (text, tokens) in batch.iter().enumerate() {
            for (place, id) in tokens.iter().enumerate() {
                ids[[text, place]] = *id;
                mask[[text, place]] = 1;
            }
        }
        let mut inputs = vec![
            (self.spec.ids.as_str(), Tensor::i64(ids)),
            (self.spec.mask.as_str(), Tensor::i64(&mask)),
        ];
        if let Some(types) = &self.spec.types {
            inputs.push((types, Tensor::i64(Array2::zeros(shape))));
        }
        let output = self.session.run(&inputs)?.remove(&self.spec.output);
        let output = output.ok_or_else(|| {
            Error::invalid_input(format!(
                "model {}: the graph has no output {:?}",
                self.model, self.spec.output
            ))
        })?;
        let mut rows = self.pooled(output, &mask)?;
        for mut row in rows.rows_mut() {
            let length = row.dot(&row).sqrt();
            if !length.is_finite() || length == 0.0 {
                return Err(Error::corrupt(format!(
                    "model {} gave an embedding that has no direction",
                    self.model
                )));
            }
            row /= length;
        }
        Ok(rows)
    }

    /// One vector for each text, from what the graph gives.
    fn pooled(&self, output: ArrayD<f32>, mask: &Array2<i64>) -> Result<Array2<f32>> {
        let (texts, tokens) = mask.dim();
        let shape = output.shape().to_vec();
        let wrong = |_| {
            Error::invalid_input(format!(
                "model {}: the output {} has shape {shape:?}, which is not what the manifest says",
                self.model, self.spec.output
            ))
        };
        let by_token = |output: ArrayD<f32>| {
            let output = output.into_dimensionality::<Ix3>()?;
            match output.dim() == (texts, tokens, self.spec.dim) {
                true => Ok(output),
                false => Err(ndarray::ShapeError::from_kind(ndarray::ErrorKind::IncompatibleShape)),
            }
        };
        let rows = match self.spec.pooling {
            Pooling::InGraph => output.into_dimensionality::<Ix2>().map_err(wrong)?,
            Pooling::First => by_token(output).map_err(wrong)?.index_axis_move(Axis(1), 0),
            Pooling::Mean => masked_mean(by_token(output).map_err(wrong)?.view(), mask),
        };
        if rows.dim() != (texts, self.spec.dim) {
            return Err(wrong(ndarray::ShapeError::from_kind(
                ndarray::ErrorKind::IncompatibleShape,
            )));
        }
        Ok(rows)
    }
}

/// The id of the space that a tower's embeddings lie in.
pub fn space_id(tower: &Manifest) -> String {
    format!("{} {}", tower.id, tower.version)
}

/// Whether a tower of these languages (none: unstated, so it may) reads text tagged `tag`: `en` reads
/// `en-GB`.
pub fn reads(languages: &[String], tag: &str) -> bool {
    let primary = |tag: &str| tag.split(['-', '_']).next().unwrap_or_default().to_ascii_lowercase();
    languages.is_empty() || languages.iter().any(|known| primary(known) == primary(tag))
}

fn masked_mean(output: ArrayView3<f32>, mask: &Array2<i64>) -> Array2<f32> {
    let (texts, _, dim) = output.dim();
    let mut mean = Array2::zeros((texts, dim));
    for ((mut mean, output), mask) in
        mean.rows_mut().into_iter().zip(output.outer_iter()).zip(mask.rows())
    {
        for (token, _) in output.rows().into_iter().zip(mask).filter(|(_, mask)| **mask == 1) {
            mean += &token;
        }
    }
    // Not divided by the number of tokens: the rows are scaled to length 1 afterwards.
    mean
}

/// At most [`MAX_TEXT_BYTES`] of a text.
fn beginning(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_TEXT_BYTES)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn padding_takes_no_part_in_the_mean() {
        let output = array![[[1.0, 2.0], [3.0, 4.0], [100.0, 100.0]]];
        assert_eq!(masked_mean(output.view(), &array![[1, 1, 0]]), array![[4.0, 6.0]]);
    }

    #[test]
    fn a_tower_reads_the_regional_forms_of_its_languages() {
        let english = ["en".to_owned()];
        assert!(reads(&english, "en-GB") && reads(&english, "EN"));
        assert!(!reads(&english, "de"));
        assert!(reads(&[], "de"));
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let text = format!("a{}", "é".repeat(MAX_TEXT_BYTES));
        let cut = beginning(&text);
        assert!(cut.len() < MAX_TEXT_BYTES && cut.len() > MAX_TEXT_BYTES - 2);
        assert_eq!(beginning("short"), "short");
    }
}
