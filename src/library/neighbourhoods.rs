//! Rows divided into neighbourhoods: with each of some centres go the rows that lie nearest to it.
//!
//! Lloyd 1982, "Least squares quantization in PCM" (k-means). A search looks first where centres are
//! near the query, and a row's code is of what it differs from its centre.

use half::f16;
use rayon::prelude::*;

use super::dot::dot;

/// Rows of a neighbourhood, on average.
const ROWS: usize = 128;
/// Centres are found by so many rows each…
const LOOKED_AT: usize = 16;
/// …in so many rounds.
const ROUNDS: usize = 3;
/// Rows that one task compares with all centres.
const BLOCK: usize = 512;

/// A division of rows.
#[derive(Debug)]
pub(super) struct Neighbourhoods {
    /// Row-major.
    pub centres: Vec<f32>,
    /// The centre of each row.
    pub of: Vec<usize>,
}

/// Divides rows of `dimension` values each, at least one. The same rows give the same division.
pub(super) fn divide(values: &[f16], dimension: usize) -> Neighbourhoods {
    let rows: Vec<&[f16]> = values.chunks_exact(dimension).collect();
    let count = rows.len().div_ceil(ROWS);
    let some: Vec<&[f16]> = spread(&rows, count * LOOKED_AT).collect();
    let mut centres: Vec<f32> =
        spread(&rows, count).flatten().map(|value| value.to_f32()).collect();
    for _ in 0..ROUNDS {
        let of = nearest(&some, &centres, dimension);
        move_to_means(&mut centres, &some, &of, dimension);
    }
    let of = nearest(&rows, &centres, dimension);
    move_to_means(&mut centres, &rows, &of, dimension);
    Neighbourhoods { centres, of }
}

/// At most `most` of the rows, evenly spread.
fn spread<'a>(rows: &[&'a [f16]], most: usize) -> impl Iterator<Item = &'a [f16]> {
    let count = most.min(rows.len());
    (0..count).map(move |number| rows[number * rows.len() / count])
}

/// The nearest centre of each row, of equal ones the first.
fn nearest(rows: &[&[f16]], centres: &[f32], dimension: usize) -> Vec<usize> {
    // Of |row - centre|², what depends on the centre, less the sign and halved.
    let squares: Vec<f32> = centres
        .chunks_exact(dimension)
        .map(|centre| centre.iter().map(|value| value * value).sum::<f32>() / 2.0)
        .collect();
    rows.par_chunks(BLOCK)
        .flat_map_iter(|rows| {
            let mut best = vec![(f32::NEG_INFINITY, 0); rows.len()];
            // A centre meets all rows of a block while it is in the fastest memory.
            for (number, (centre, square)) in
                centres.chunks_exact(dimension).zip(&squares).enumerate()
            {
                for (best, row) in best.iter_mut().zip(rows) {
                    let nearness = dot(centre, row) - square;
                    if nearness > best.0 {
                        *best = (nearness, number);
                    }
                }
            }
            best.into_iter().map(|(_, number)| number)
        })
        .collect()
}

/// Moves each centre to the mean of its rows. One without rows stays.
fn move_to_means(centres: &mut [f32], rows: &[&[f16]], of: &[usize], dimension: usize) {
    let mut sums = vec![0f32; centres.len()];
    let mut counts = vec![0u32; centres.len() / dimension];
    for (row, &number) in rows.iter().zip(of) {
        counts[number] += 1;
        let sum = &mut sums[number * dimension..(number + 1) * dimension];
        sum.iter_mut().zip(*row).for_each(|(sum, value)| *sum += value.to_f32());
    }
    let means = sums.chunks_exact(dimension).zip(counts);
    for (centre, (sum, count)) in centres.chunks_exact_mut(dimension).zip(means) {
        if count > 0 {
            centre.iter_mut().zip(sum).for_each(|(centre, sum)| *centre = sum / count as f32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WIDE: usize = 5;

    proptest! {
        #[test]
        fn rows_are_nearer_to_their_centres_than_to_one_of_all(
            values in prop::collection::vec(-1f32..1.0, WIDE..WIDE * 1_500),
        ) {
            let values: Vec<f16> = values
                .chunks_exact(WIDE)
                .flatten()
                .map(|value| f16::from_f32(*value))
                .collect();
            let rows = values.len() / WIDE;
            let Neighbourhoods { centres, of } = divide(&values, WIDE);
            prop_assert_eq!(of.len(), rows);
            prop_assert_eq!(centres.len(), rows.div_ceil(ROWS) * WIDE);
            // Together no farther than from one centre of all.
            let distances = |centre: &dyn Fn(usize) -> Vec<f32>| -> f64 {
                values.chunks_exact(WIDE).enumerate().map(|(row, values)| {
                    let square = |(a, b): (&f16, f32)| f64::from(a.to_f32() - b).powi(2);
                    values.iter().zip(centre(row)).map(square).sum::<f64>()
                }).sum()
            };
            let mean: Vec<f32> = (0..WIDE)
                .map(|at| values.iter().skip(at).step_by(WIDE).map(|v| v.to_f32()).sum::<f32>()
                    / rows as f32)
                .collect();
            let own = |row: usize| centres[of[row] * WIDE..(of[row] + 1) * WIDE].to_vec();
            prop_assert!(distances(&own) <= distances(&|_| mean.clone()) * 1.0001 + 1e-6);
        }
    }

    #[test]
    fn rows_go_with_their_nearest_centre() {
        // Seven kinds of rows, in no order, and fewer of one kind than of the next.
        let kind = |row: usize| [0, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5, 6, 6][row * row % 17];
        let value = |row: usize, at: usize| {
            f16::from_f32(f32::from(at == kind(row)) + (row * (at + 3) % 29) as f32 * 0.005)
        };
        const WIDE: usize = 7;
        let rows = 40 * ROWS;
        let values: Vec<f16> =
            (0..rows).flat_map(|row| (0..WIDE).map(move |at| value(row, at))).collect();
        let Neighbourhoods { centres, of } = divide(&values, WIDE);
        let square = |row: usize, centre: &[f32]| -> f32 {
            let row = &values[row * WIDE..(row + 1) * WIDE];
            row.iter().zip(centre).map(|(a, b)| (a.to_f32() - b).powi(2)).sum()
        };
        let centre = |number: usize| &centres[number * WIDE..(number + 1) * WIDE];
        let own: f32 = (0..rows).map(|row| square(row, centre(of[row]))).sum();
        let nearest: f32 = (0..rows)
            .map(|row| centres.chunks(WIDE).map(|centre| square(row, centre)).fold(9.0, f32::min))
            .sum();
        // Centres have moved to the means since.
        assert!(own <= nearest * 1.1, "{own} {nearest}");
        assert!(own < 0.02 * rows as f32, "{own}");
    }

    #[test]
    fn nothing_is_divided_into_nothing() {
        let Neighbourhoods { centres, of } = divide(&[], 3);
        assert!(centres.is_empty() && of.is_empty());
    }
}
