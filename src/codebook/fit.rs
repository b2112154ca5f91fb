//! Fitting: a projection by principal components, then k-means at every node, from the root down.
//!
//! The same samples, configuration and machine give the same file, bit for bit, whatever the number
//! of threads: every node draws from its own stream of the seed, and of the `kmeans` crate only
//! Lloyd's iteration is used, which splits work by sample and sums in order.

use kmeans::{AbortStrategy, EuclideanDistance, KMeans, KMeansConfig};
use ndarray::{Array1, Array2, ArrayView2, Axis, s};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::file::{round_to_half, to_bytes};
use super::{Codebook, Level, MAX_DIMS, MAX_INPUT_DIMS, Origin, ROWS_AT_A_TIME, Shape};
use super::{check_finite, unit_rows};
use crate::error::{Error, Result};

/// Lloyd's iteration ends where it improves the error by less than this share of the variance…
const LEAST_IMPROVEMENT: f32 = 1e-5;
/// …or here.
const MAX_ITERATIONS: usize = 100;
/// Orthogonal iterations. What is not separated by then are directions of nearly equal variance,
/// and it does not matter which of those are kept.
const PROJECTION_ITERATIONS: usize = 40;

/// What to fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FitConfig {
    pub shape: Shape,
    /// Dimensions to project to, 1 to [`MAX_DIMS`]; fewer where the features have fewer.
    pub dims: usize,
    pub seed: u64,
    /// The id of the encoder whose features these are; kept in the file.
    pub encoder: String,
}

/// How far a fit is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum FitStep {
    /// The projection is found and keeps this share (0 to 1) of the variance.
    Projected { kept: f64 },
    /// So many of the tree's inner nodes are split.
    Split { nodes: usize, of: usize },
}

/// Fits a codebook to `samples`, `[rows, input_dims]`.
///
/// A node that fewer distinct samples reach than it has branches keeps one branch for each; the
/// others are dead. InvalidInput where there is no sample, a value is not finite (row and index are
/// named) or the configuration is out of its limits.
pub fn fit(
    samples: ArrayView2<f32>,
    config: &FitConfig,
    progress: &mut dyn FnMut(FitStep),
) -> Result<Codebook> {
    let (rows, input_dims) = samples.dim();
    if rows == 0 {
        return Err(Error::invalid_input("there are no features to fit a codebook on"));
    }
    if !(1..=MAX_INPUT_DIMS).contains(&input_dims) || u32::try_from(rows).is_err() {
        return Err(Error::invalid_input(format!(
            "cannot fit a codebook on {rows} rows of {input_dims} features: at most {} rows of \
             {MAX_INPUT_DIMS}",
            u32::MAX
        )));
    }
    if !(1..=MAX_DIMS).contains(&config.dims) {
        return Err(Error::invalid_input(format!(
            "a codebook has 1 to {MAX_DIMS} dimensions, not {}",
            config.dims
        )));
    }
    let shape = Shape::new(config.shape.branching, config.shape.depth)?;
    check_finite(samples)?;

    let (mut basis, mean, kept) = principal_directions(samples, config.dims, config.seed);
    round_to_half(&mut basis);
    let offset = mean.dot(&basis);
    progress(FitStep::Projected { kept });
    let mut projected = Array2::zeros((rows, basis.ncols()));
    for (samples, mut projected) in samples
        .axis_chunks_iter(Axis(0), ROWS_AT_A_TIME)
        .zip(projected.axis_chunks_iter_mut(Axis(0), ROWS_AT_A_TIME))
    {
        projected.assign(&(unit_rows(samples).dot(&basis) - &offset));
    }

    let levels = split(projected.view(), shape, config.seed, progress);
    let origin =
        Origin { encoder: config.encoder.clone(), seed: config.seed, samples: rows as u64 };
    let id = blake3::hash(&to_bytes(shape, &origin, &basis, &offset, &levels)?);
    Ok(Codebook { shape, origin, basis, offset, levels, id })
}

/// Orthonormal directions (`[input_dims, dims]`) that span those of greatest variance of the unit
/// rows, the rows' mean, and the share of the variance that the directions keep. Orthogonal
/// iteration (Golub and Van Loan, Matrix Computations, section 8.2.4) on the covariance.
fn principal_directions(
    samples: ArrayView2<f32>,
    dims: usize,
    seed: u64,
) -> (Array2<f32>, Array1<f32>, f64) {
    let (rows, input_dims) = samples.dim();
    if input_dims <= dims {
        return (Array2::eye(input_dims), Array1::zeros(input_dims), 1.0);
    }
    let mut sum = Array1::<f64>::zeros(input_dims);
    let mut moments = Array2::<f64>::zeros((input_dims, input_dims));
    for chunk in samples.axis_chunks_iter(Axis(0), ROWS_AT_A_TIME) {
        let unit = unit_rows(chunk);
        sum += &unit.mapv(f64::from).sum_axis(Axis(0));
        moments += &unit.t().dot(&unit).mapv(f64::from);
    }
    let mean = sum / rows as f64;
    let covariance = moments / rows as f64
        - mean.view().insert_axis(Axis(1)).dot(&mean.view().insert_axis(Axis(0)));

    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    // One direction a row: Gram and Schmidt walk along rows.
    let mut directions = Array2::from_shape_fn((dims, input_dims), |_| rng.random::<f64>() - 0.5);
    orthonormalize(&mut directions);
    for _ in 0..PROJECTION_ITERATIONS {
        directions = directions.dot(&covariance);
        orthonormalize(&mut directions);
    }
    let variance = covariance.diag().sum();
    let kept = (&directions.dot(&covariance) * &directions).sum();
    let kept = if variance > 0.0 { (kept / variance).clamp(0.0, 1.0) } else { 1.0 };
    let basis = directions.t().mapv(|x| x as f32).as_standard_layout().into_owned();
    (basis, mean.mapv(|x| x as f32), kept)
}

/// Modified Gram-Schmidt, each row twice ("twice is enough"). A row that depends on those above it
/// becomes zero: a direction without variance.
fn orthonormalize(directions: &mut Array2<f64>) {
    for index in 0..directions.nrows() {
        let (above, mut rest) = directions.view_mut().split_at(Axis(0), index);
        let mut row = rest.row_mut(0);
        let before = row.dot(&row).sqrt();
        for _ in 0..2 {
            for other in above.rows() {
                let along = row.dot(&other);
                row.scaled_add(-along, &other);
            }
        }
        let length = row.dot(&row).sqrt();
        let scale = if length > 1e-8 * before { length.recip() } else { 0.0 };
        row.mapv_inplace(|x| x * scale);
    }
}

/// Splits every living node into its branches, level by level. A level's samples are assigned with
/// the rounded centroids, so that each sample goes where it will go after loading.
fn split(
    projected: ArrayView2<f32>,
    shape: Shape,
    seed: u64,
    progress: &mut dyn FnMut(FitStep),
) -> Vec<Level> {
    let branching = shape.branching as usize;
    let (rows, dims) = projected.dim();
    let of = (0..shape.depth).map(|level| shape.nodes_at(level)).sum();
    let mut nodes = vec![0u32; rows];
    let mut levels = Vec::new();
    let mut before = 0;
    for level in 1..=shape.depth {
        let mut centroids = Array2::zeros((shape.nodes_at(level), dims));
        let mut living = vec![0; shape.nodes_at(level)];
        let mut order: Vec<usize> = (0..rows).collect();
        order.sort_by_key(|row| nodes[*row]);
        for rows in order.chunk_by(|a, b| nodes[*a] == nodes[*b]) {
            let node = nodes[rows[0]] as usize;
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream((before + node) as u64 + 1);
            let children = means(projected.select(Axis(0), rows), branching, &mut rng);
            let first = node * branching;
            centroids.slice_mut(s![first..first + children.nrows(), ..]).assign(&children);
            living[first..first + children.nrows()].fill(1);
            progress(FitStep::Split { nodes: before + node + 1, of });
        }
        round_to_half(&mut centroids);
        let fitted = Level::new(centroids, living);
        fitted.step(branching, projected, &mut nodes);

        // Rounding can leave a branch without a sample: it is dead like one that never had any.
        let mut counts = vec![0; shape.nodes_at(level)];
        for node in &nodes {
            counts[*node as usize] += 1;
        }
        let mut centroids = fitted.centroids;
        for (mut centroid, count) in centroids.rows_mut().into_iter().zip(&counts) {
            if *count == 0 {
                centroid.fill(0.0);
            }
        }
        levels.push(Level::new(centroids, counts));
        before += shape.nodes_at(level - 1);
    }
    levels
}

/// At most `k` means of the rows, as many as there are distinct rows if these are fewer.
fn means(rows: Array2<f32>, k: usize, rng: &mut ChaCha8Rng) -> Array2<f32> {
    let seeds = spread_seeds(rows.view(), k, rng);
    if seeds.len() < 2 {
        return rows.select(Axis(0), &seeds);
    }
    let dims = rows.ncols();
    let start: Vec<f32> = rows.select(Axis(0), &seeds).into_iter().collect();
    let variance: f64 = rows.columns().into_iter().map(|column| f64::from(column.var(0.0))).sum();
    let threshold = LEAST_IMPROVEMENT * variance as f32 * rows.nrows() as f32;
    let config =
        KMeansConfig::build().abort_strategy(AbortStrategy::NoImprovement { threshold }).build();
    let count = rows.nrows();
    let samples: Vec<f32> = rows.into_iter().collect();
    let clusters: KMeans<f32, 8, _> = KMeans::new(&samples, count, dims, EuclideanDistance);
    let state = clusters.kmeans_lloyd(
        seeds.len(),
        MAX_ITERATIONS,
        KMeans::init_precomputed(start),
        &config,
    );
    Array2::from_shape_vec((seeds.len(), dims), state.centroids.to_vec())
        .expect("the crate returns as many centroids as it was given")
}

/// The rows to start from, by k-means++ (Arthur and Vassilvitskii 2007): each is drawn with a
/// probability proportional to its squared distance to those before it. Written here because the
/// crate's own panics where there are fewer distinct rows than `k`; this one then returns fewer.
fn spread_seeds(rows: ArrayView2<f32>, k: usize, rng: &mut ChaCha8Rng) -> Vec<usize> {
    let mut seeds = vec![rng.random_range(0..rows.nrows())];
    let mut nearest = vec![f64::INFINITY; rows.nrows()];
    while seeds.len() < k {
        let newest = rows.row(seeds[seeds.len() - 1]);
        for (nearest, row) in nearest.iter_mut().zip(rows.rows()) {
            let squared: f32 = row.iter().zip(newest).map(|(a, b)| (a - b) * (a - b)).sum();
            *nearest = nearest.min(f64::from(squared));
        }
        let total: f64 = nearest.iter().sum();
        let mut left = rng.random::<f64>() * total;
        let drawn =
            nearest.iter().enumerate().filter(|(_, weight)| **weight > 0.0).find(|(_, weight)| {
                left -= **weight;
                left < 0.0
            });
        // The sum's rounding may leave a little: then the last row that is apart from all seeds.
        let drawn = drawn.map(|(row, _)| row).or_else(|| nearest.iter().rposition(|w| *w > 0.0));
        match drawn {
            Some(row) => seeds.push(row),
            None => break,
        }
    }
    seeds
}
