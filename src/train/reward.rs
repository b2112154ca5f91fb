//! Rewarding what the network writes by itself, as it is scored: self-critical training (Rennie and
//! others, 2017). The captions that beam search finds of a picture are made the likelier, the better they
//! agree with what people wrote of it than the others do (Cornia and others, "Meshed-memory
//! transformer", 2020, take the beams for samples and their mean for the measure; Luo, 2020, the mean of
//! the others).

use super::batch::Row;
use super::examples::Examples;
use super::run::LONGEST;
use crate::error::Result;
use crate::evaluate::agreement::Cider;
use crate::model::Models;
use crate::onnx::transformer::Precision;
use crate::text::{WordPieces, caption_words};
use crate::transformer::{Captioner, Segment, Trained, Writing};

/// Captions that were written of a picture.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rewarded {
    /// Word pieces of each.
    pub(super) captions: Vec<Vec<u32>>,
    /// How much more each agrees with people than the others do, in CIDEr: the weight of its loss.
    pub(super) advantages: Vec<f32>,
    /// The mean of their CIDEr.
    pub(super) reward: f64,
}

/// What knows how well captions agree with those of people.
pub(super) struct Critic {
    cider: Cider,
}

impl Critic {
    /// N-grams weigh as among the captions that are trained on.
    pub(super) fn new(examples: &Examples<'_>) -> Critic {
        let of_example = |range: &std::ops::Range<usize>| {
            words(&examples.pieces, examples.captions[range.clone()].iter().map(Vec::as_slice))
        };
        let pictures: Vec<_> =
            examples.examples.iter().map(|example| of_example(&example.captions)).collect();
        Critic { cider: Cider::of(&pictures) }
    }

    /// Writes captions of each row and holds them against its own, which people wrote.
    ///
    /// # Errors
    /// As [`Captioner::write`].
    pub(super) fn reward(
        &self,
        models: &Models,
        network: &Trained,
        beams: usize,
        rows: &[Row<'_>],
    ) -> Result<Vec<Rewarded>> {
        let mut captioner = Captioner::new(models, network, Precision::Fp32, 1)?;
        let segments: Vec<Segment<'_>> = rows.iter().map(|row| row.read.clone()).collect();
        let read = captioner.read(&segments)?;
        let how = Writing { beams, most: LONGEST, length_power: 1.0 };
        let written = captioner.write(&read, how)?;
        let rewarded = rows.iter().zip(written).map(|(row, written)| {
            let encode = |text: &str| network.pieces.encode(text, LONGEST);
            let captions: Vec<Vec<u32>> = written
                .iter()
                .map(|written| encode(&written.caption.text))
                .collect::<Result<_>>()?;
            let people = words(&network.pieces, row.captions.iter().copied());
            let ours = words(&network.pieces, captions.iter().map(Vec::as_slice));
            let scores = self.cider.scores(&ours, &people);
            let sum: f64 = scores.iter().sum();
            let others = scores.len().saturating_sub(1).max(1) as f64;
            let advantages =
                scores.iter().map(|score| (score - (sum - score) / others) as f32).collect();
            Ok(Rewarded { captions, advantages, reward: sum / scores.len().max(1) as f64 })
        });
        rewarded.collect()
    }
}

/// The words of captions, each with its end as one more word: or else a caption that breaks off after
/// "of a" would lose nothing.
fn words<'a>(pieces: &WordPieces, captions: impl Iterator<Item = &'a [u32]>) -> Vec<Vec<String>> {
    let words = |caption: &[u32]| {
        let mut words = caption_words(&pieces.decode(caption));
        words.push(".".to_owned());
        words
    };
    captions.map(words).collect()
}
