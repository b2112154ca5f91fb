//! How well a codebook fits given features, and how evenly its words are used.

use ndarray::{ArrayView2, Axis};
use serde::Serialize;

use super::Codebook;
use crate::error::{Error, Result};
use crate::media::VisualWord;

/// How a codebook does on given features.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Stats {
    pub rows: usize,
    /// Mean squared distance of the projected features to their own mean: what a codebook of a
    /// single word would leave as error.
    pub variance: f64,
    /// From the root's children to the leaves.
    pub levels: Vec<LevelStats>,
}

/// One level of the tree read as a codebook of its own.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LevelStats {
    pub level: u32,
    /// How many words there are at this level, dead ones included.
    pub words: usize,
    #[serde(flatten)]
    pub word_use: WordUse,
    /// Mean squared distance of projected features to their word's centroid.
    pub error: f64,
    /// `error / variance`; 0 where there is no variance.
    pub relative_error: f64,
}

/// How evenly words are used.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct WordUse {
    /// How many different words occur.
    pub used: usize,
    /// Two to the power of the words' entropy in bits: the number of equally likely words that would
    /// be as hard to predict.
    pub perplexity: f64,
}

/// Word use of a list of words (or of nodes of another level).
pub fn word_use(words: impl IntoIterator<Item = VisualWord>) -> WordUse {
    let mut words: Vec<VisualWord> = words.into_iter().collect();
    words.sort_unstable();
    let total = words.len() as f64;
    let counts = words.chunk_by(|a, b| a == b).map(<[_]>::len);
    let (mut used, mut entropy_bits) = (0, 0.0);
    for count in counts {
        let share = count as f64 / total;
        used += 1;
        entropy_bits -= share * share.log2();
    }
    WordUse { used, perplexity: if used == 0 { 0.0 } else { entropy_bits.exp2() } }
}

impl Codebook {
    /// Quantizes `features` (`[rows, input_dims]`) and measures each level. Errors as for
    /// [`Codebook::quantize`]; InvalidInput without a row.
    pub fn stats(&self, features: ArrayView2<f32>) -> Result<Stats> {
        let projected = self.project(features)?;
        let Some(mean) = projected.mean_axis(Axis(0)) else {
            return Err(Error::invalid_input("there are no features to measure the codebook on"));
        };
        let rows = projected.nrows();
        let squared = |a: ndarray::ArrayView1<f32>, b: ndarray::ArrayView1<f32>| {
            a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>()
        };
        let variance =
            projected.rows().into_iter().map(|row| squared(row, mean.view())).sum::<f64>()
                / rows as f64;
        let mut nodes = vec![0; rows];
        let mut levels = Vec::new();
        for (above, level) in self.levels.iter().enumerate() {
            level.step(self.shape().branching as usize, projected.view(), &mut nodes);
            let error = projected
                .rows()
                .into_iter()
                .zip(&nodes)
                .map(|(row, node)| squared(row, level.centroids.row(*node as usize)))
                .sum::<f64>()
                / rows as f64;
            levels.push(LevelStats {
                level: above as u32 + 1,
                words: level.counts.len(),
                word_use: word_use(nodes.iter().copied().map(VisualWord)),
                error,
                relative_error: if variance > 0.0 { error / variance } else { 0.0 },
            });
        }
        Ok(Stats { rows, variance, levels })
    }
}
