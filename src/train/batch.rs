//! What a step is computed on: segments packed as for reading, with captions after them, and what is
//! to be guessed.

use crate::error::Result;
use crate::onnx::transformer::{Network, UNSEEN};
use crate::text::pieces::{PAD, SEP};
use crate::transformer::{Packed, Segment, pack};

/// A segment with captions to write about it. All see what is read, and none sees another: five
/// captions of a photo cost one reading.
#[derive(Debug, Clone, Default)]
pub(super) struct Row<'a> {
    pub(super) read: Segment<'a>,
    /// Word pieces.
    pub(super) captions: Vec<&'a [u32]>,
    /// The weight of each caption's loss; all weigh 1 where this is empty.
    pub(super) weights: Vec<f32>,
    /// Words that are hidden (they read [MASK]): the place among the words, and the piece.
    pub(super) hidden: Vec<(usize, u32)>,
    /// Visual tokens that are hidden (their values read 0): the place among them, and the class of
    /// their visual word.
    pub(super) hidden_visual: Vec<(usize, usize)>,
    /// The embeddings that the picture's is drawn to, one of all those of the step: its place there.
    pub(super) embedding: Option<usize>,
}

/// A step's input. Tokens are in rows of `tokens`: those of [`Packed`], then `written` ones.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) packed: Packed,
    /// Written tokens of a row, padding included; may be 0.
    pub(super) written: usize,
    /// `[rows, written]`: each caption begins with [SEP] at place 0.
    pub(super) written_ids: Vec<i64>,
    pub(super) written_places: Vec<i64>,
    /// `[rows, tokens, tokens]`: what is added to the attention of the first to the second.
    pub(super) bias: Vec<f32>,
    /// Tokens, counted over all rows, and the piece to guess at each.
    pub(super) targets: Vec<(usize, u32)>,
    /// The weight of each of these guesses.
    pub(super) weights: Vec<f32>,
    /// Tokens, counted over all rows, and the class to guess at each.
    pub(super) visual_targets: Vec<(usize, usize)>,
    /// Rows and the place of their embedding.
    pub(super) embeddings: Vec<(usize, usize)>,
}

impl Batch {
    /// # Errors
    /// As [`pack`].
    pub(super) fn new(network: &Network, rows: &[Row<'_>]) -> Result<Batch> {
        let segments: Vec<Segment<'_>> = rows.iter().map(|row| row.read.clone()).collect();
        let packed = pack(network, &segments)?;
        // A caption of n pieces is n + 1 tokens, [SEP] first, each of which guesses the next.
        let kept = |caption: &[u32]| caption.len().min(network.words - 1);
        let length = |row: &Row<'_>| row.captions.iter().map(|caption| kept(caption) + 1).sum();
        let written: usize = rows.iter().map(length).max().unwrap_or(0);
        let (read, tokens) = (packed.tokens(), packed.tokens() + written);
        let mut batch = Batch {
            written,
            written_ids: vec![i64::from(PAD); rows.len() * written],
            written_places: vec![0; rows.len() * written],
            bias: vec![UNSEEN; rows.len() * tokens * tokens],
            targets: Vec::new(),
            weights: Vec::new(),
            visual_targets: Vec::new(),
            embeddings: Vec::new(),
            packed,
        };
        for (at, row) in rows.iter().enumerate() {
            let seen = &batch.packed.is_token[at * read..(at + 1) * read];
            let bias = &mut batch.bias[at * tokens * tokens..(at + 1) * tokens * tokens];
            for from in bias.chunks_exact_mut(tokens) {
                for (bias, is_token) in from.iter_mut().zip(seen) {
                    *bias = if *is_token { 0.0 } else { UNSEEN };
                }
            }
            let mut start = 0;
            for (number, caption) in row.captions.iter().enumerate() {
                let weight = row.weights.get(number).copied().unwrap_or(1.0);
                let caption = &caption[..kept(caption)];
                let ids = std::iter::once(&SEP).chain(caption);
                let nexts = caption.iter().chain(std::iter::once(&SEP));
                for (place, (id, next)) in ids.zip(nexts).enumerate() {
                    let token = start + place;
                    batch.written_ids[at * written + token] = i64::from(*id);
                    batch.written_places[at * written + token] = place as i64;
                    batch.targets.push((at * tokens + read + token, *next));
                    batch.weights.push(weight);
                    let from = (read + token) * tokens + read;
                    bias[from + start..=from + token].fill(0.0);
                }
                start += caption.len() + 1;
            }
            for (place, piece) in &row.hidden {
                // After [CLS]; those beyond the network's places were cut off.
                if place + 2 < network.words {
                    batch.targets.push((at * tokens + place + 1, *piece));
                    batch.weights.push(1.0);
                }
            }
            let first = at * tokens + batch.packed.words;
            let hidden = row.hidden_visual.iter().map(|(place, class)| (first + place, *class));
            batch.visual_targets.extend(hidden);
            batch.embeddings.extend(row.embedding.map(|embedding| (at, embedding)));
        }
        Ok(batch)
    }

    /// Tokens of a row.
    pub(super) fn tokens(&self) -> usize {
        self.packed.tokens() + self.written
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captions_see_what_is_read_and_their_own_beginning() {
        let network = Network {
            vocabulary: 20,
            dim: 8,
            layers: 1,
            heads: 1,
            inner: 8,
            words: 8,
            clips: 1,
            cells: 0,
            features: 0,
            centroids: 1,
            space: 4,
            embedder: 0,
            guessed: 0,
        };
        let rows = [
            Row { captions: vec![&[7, 8], &[9]], ..Row::default() },
            Row {
                captions: vec![&[7]],
                hidden: vec![(0, 9)],
                hidden_visual: vec![(0, 5)],
                ..Row::default()
            },
        ];
        let batch = Batch::new(&network, &rows).unwrap();
        // [CLS] [>] and an empty visual token; [SEP] 7 8 [SEP] 9.
        assert_eq!((batch.packed.tokens(), batch.written, batch.tokens()), (3, 5, 8));
        let sep = i64::from(SEP);
        assert_eq!(batch.written_ids, [sep, 7, 8, sep, 9, sep, 7, 0, 0, 0]);
        assert_eq!(batch.written_places[..5], [0, 1, 2, 0, 1]);
        let expected = [(3, 7), (4, 8), (5, SEP), (6, 9), (7, SEP), (11, 7), (12, SEP), (9, 9)];
        assert_eq!(batch.targets, expected);
        let sees: Vec<String> = batch.bias[..64]
            .chunks(8)
            .map(|row| row.iter().map(|x| if *x == 0.0 { 'x' } else { '.' }).collect())
            .collect();
        assert_eq!(
            sees,
            [
                "xx......", "xx......", "xx......", "xx.x....", "xx.xx...", "xx.xxx..", "xx....x.",
                "xx....xx"
            ]
        );
        assert_eq!(batch.visual_targets, [(10, 5)]);
    }
}
