//! Fitting and using the tree of visual words: hierarchical k-means over CNN features, as VideoBERT
//! has it (Sun et al. 2019, section 3.2: a 12-way tree of depth 4).
//!
//! A row of features is scaled to unit length, projected on the directions in which the fitted
//! features vary most ([`Codebook::project`]), and walks down the tree, at each node to the child
//! whose centroid is nearest in Euclidean distance. Where two are equally near, the lower branch
//! wins. A node that fewer distinct samples reached than it has branches has **dead** branches; they
//! are never chosen, and a living node always has a living child, so every walk ends at a leaf.

mod file;
#[cfg(feature = "fit")]
mod fit;
mod stats;

#[cfg(feature = "fit")]
pub use fit::{FitConfig, FitStep, fit};
pub use stats::{LevelStats, Stats, WordUse, word_use};

use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis, s};

use crate::error::{Error, Result};
use crate::media::VisualWord;

/// The limits of a tree's shape, in files as in requests: generous, and small enough that no number
/// read from a file asks for more memory than the file has bytes.
const MAX_BRANCHING: u32 = 256;
const MAX_DEPTH: u32 = 8;
const MAX_LEAVES: u32 = 1 << 20;
const MAX_INPUT_DIMS: usize = 1 << 14;
/// "Projected to at most 160 dimensions": what keeps the default tree of 22,620 nodes below 8 MB.
pub const MAX_DIMS: usize = 160;

/// Rows that are projected at a time, so that a large batch needs little memory beside itself.
const ROWS_AT_A_TIME: usize = 4_096;

/// The shape of a tree: `branching ^ depth` leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Shape {
    pub branching: u32,
    pub depth: u32,
}

impl Shape {
    /// InvalidInput where the numbers are outside 2 to 256 branches, 1 to 8 levels or 2^20 leaves.
    pub fn new(branching: u32, depth: u32) -> Result<Self> {
        let shape = Shape { branching, depth };
        let leaves = branching.checked_pow(depth).filter(|leaves| *leaves <= MAX_LEAVES);
        if !(2..=MAX_BRANCHING).contains(&branching)
            || !(1..=MAX_DEPTH).contains(&depth)
            || leaves.is_none()
        {
            return Err(Error::invalid_input(format!(
                "a codebook of {branching} branches and depth {depth} is not possible: take 2 to \
                 {MAX_BRANCHING} branches and depth 1 to {MAX_DEPTH}, with at most {MAX_LEAVES} \
                 leaves"
            )));
        }
        Ok(shape)
    }

    pub fn leaves(self) -> usize {
        self.nodes_at(self.depth)
    }

    /// Nodes at a level; the root is level 0.
    fn nodes_at(self, level: u32) -> usize {
        (self.branching as usize).pow(level)
    }

    /// Nodes of all levels below the root.
    fn nodes(self) -> usize {
        (1..=self.depth).map(|level| self.nodes_at(level)).sum()
    }
}

/// What a codebook's file says of its making.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Origin {
    /// The id of the encoder whose features it was fitted on.
    pub encoder: String,
    pub seed: u64,
    /// How many rows of features it was fitted on.
    pub samples: u64,
}

/// One level of the tree, the root's children first.
#[derive(Debug, Clone, PartialEq)]
struct Level {
    /// `[branching ^ level, dims]`: the children of node `n` of the level above are the rows
    /// `n * branching ..`.
    centroids: Array2<f32>,
    /// Half of each centroid's squared length, which makes nearest a matter of dot products:
    /// |x - c|² / 2 = |x|² / 2 - x·c + |c|² / 2. Infinite for a dead branch.
    half_squares: Array1<f32>,
    /// How many of the fitted samples reached the node; 0: dead.
    counts: Vec<u32>,
}

/// A fitted tree. Immutable and shared between threads.
#[derive(Debug, Clone, PartialEq)]
pub struct Codebook {
    shape: Shape,
    origin: Origin,
    /// `[input_dims, dims]`, orthonormal columns.
    basis: Array2<f32>,
    /// The fitted features' mean, projected.
    offset: Array1<f32>,
    levels: Vec<Level>,
    id: blake3::Hash,
}

impl Codebook {
    pub fn shape(&self) -> Shape {
        self.shape
    }

    pub fn branching(&self) -> u32 {
        self.shape.branching
    }

    pub fn depth(&self) -> u32 {
        self.shape.depth
    }

    /// Dimensions that distances are measured in, after the projection.
    pub fn dims(&self) -> usize {
        self.basis.ncols()
    }

    /// How long a row of features must be.
    pub fn input_dims(&self) -> usize {
        self.basis.nrows()
    }

    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The hash of everything that changes which word a row gets: BLAKE3 of the file.
    pub fn id(&self) -> blake3::Hash {
        self.id
    }

    /// The words of `features`, `[rows, input_dims]`. A row's word does not depend on the rows beside
    /// it. InvalidInput where the width differs or a value is not finite (the row is named).
    pub fn quantize(&self, features: ArrayView2<f32>) -> Result<Vec<VisualWord>> {
        let projected = self.project(features)?;
        let mut nodes = vec![0; projected.nrows()];
        for level in &self.levels {
            level.step(self.shape.branching as usize, projected.view(), &mut nodes);
        }
        Ok(nodes.into_iter().map(VisualWord).collect())
    }

    /// Features as the tree sees them: scaled to unit length, projected, `[rows, dims]`. An all-zero
    /// row stays zero before the projection. Errors as for [`Codebook::quantize`].
    pub fn project(&self, features: ArrayView2<f32>) -> Result<Array2<f32>> {
        if features.ncols() != self.input_dims() {
            return Err(Error::invalid_input(format!(
                "features of {} dimensions do not fit a codebook for {} (fitted on the encoder {})",
                features.ncols(),
                self.input_dims(),
                self.origin.encoder
            )));
        }
        check_finite(features)?;
        let mut projected = Array2::zeros((features.nrows(), self.dims()));
        for (features, mut projected) in features
            .axis_chunks_iter(Axis(0), ROWS_AT_A_TIME)
            .zip(projected.axis_chunks_iter_mut(Axis(0), ROWS_AT_A_TIME))
        {
            projected.assign(&(unit_rows(features).dot(&self.basis) - &self.offset));
        }
        Ok(projected)
    }

    /// A leaf's centroid among projected features, `[dims]`; `None` where the leaf is dead or there
    /// is no such leaf.
    pub fn centroid(&self, word: VisualWord) -> Option<ArrayView1<'_, f32>> {
        let leaves = self.levels.last()?;
        let node = word.0 as usize;
        let living = leaves.counts.get(node).is_some_and(|count| *count > 0);
        living.then(|| leaves.centroids.row(node))
    }

    /// The centroids of the nodes on the way to a leaf, `[dims]` each, the root's child first: what
    /// projected features are compared with, level by level. Zero for a dead branch, and none where
    /// there is no such leaf.
    pub fn way(&self, word: VisualWord) -> impl Iterator<Item = ArrayView1<'_, f32>> {
        let (leaf, leaves) = (word.0 as usize, self.shape.leaves());
        let levels = self.levels.iter().take_while(move |_| leaf < leaves);
        levels.map(move |level| {
            let nodes = level.centroids.nrows();
            level.centroids.row(leaf / (leaves / nodes))
        })
    }

    /// Leaves that at least one fitted sample reached.
    pub fn living_words(&self) -> usize {
        self.levels.last().map_or(0, |leaves| leaves.counts.iter().filter(|n| **n > 0).count())
    }
}

impl Level {
    /// `counts` marks the dead: their centroids are zero and never near.
    fn new(centroids: Array2<f32>, counts: Vec<u32>) -> Self {
        let half_squares = centroids
            .rows()
            .into_iter()
            .zip(&counts)
            .map(|(centroid, count)| match count {
                0 => f32::INFINITY,
                _ => (centroid.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / 2.0) as f32,
            })
            .collect();
        Level { centroids, half_squares, counts }
    }

    /// One step down: replaces each row's node of the level above by its child.
    fn step(&self, branching: usize, projected: ArrayView2<f32>, nodes: &mut [u32]) {
        // Rows at the same node are compared with its children in one matrix product.
        let parents = nodes.to_vec();
        let mut order: Vec<usize> = (0..parents.len()).collect();
        order.sort_by_key(|row| parents[*row]);
        for rows in order.chunk_by(|a, b| parents[*a] == parents[*b]) {
            let node = parents[rows[0]] as usize;
            let children = node * branching..(node + 1) * branching;
            let centroids = self.centroids.slice(s![children.clone(), ..]);
            let half_squares = self.half_squares.slice(s![children.clone()]);
            let dots = projected.select(Axis(0), rows).dot(&centroids.t());
            for (row, dots) in rows.iter().zip(dots.rows()) {
                let mut best = (f32::INFINITY, 0);
                for (branch, (dot, half_square)) in dots.iter().zip(half_squares).enumerate() {
                    let distance = half_square - dot;
                    if distance < best.0 {
                        best = (distance, branch);
                    }
                }
                nodes[*row] = (children.start + best.1) as u32;
            }
        }
    }
}

fn check_finite(features: ArrayView2<f32>) -> Result<()> {
    let bad =
        features.rows().into_iter().enumerate().find_map(|(row, values)| {
            values.iter().position(|x| !x.is_finite()).map(|at| (row, at))
        });
    match bad {
        None => Ok(()),
        Some((row, at)) => Err(Error::invalid_input(format!(
            "features must be finite numbers: row {row} holds {} at index {at}",
            features[[row, at]]
        ))),
    }
}

/// Rows scaled to unit length; all-zero rows stay.
fn unit_rows(features: ArrayView2<f32>) -> Array2<f32> {
    let mut unit = features.to_owned();
    for mut row in unit.rows_mut() {
        let length = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        if length > 0.0 {
            row.mapv_inplace(|x| (f64::from(x) / length) as f32);
        }
    }
    unit
}

#[cfg(test)]
#[cfg(feature = "fit")]
mod tests;
