//! The dot product that exact search spends its time in.

#![allow(unsafe_code, reason = "wide registers are used after asking the processor for them")]

use half::f16;

/// The dot product of a query with one row of halves, both of the same length.
pub(super) fn dot(query: &[f32], halves: &[f16]) -> f32 {
    debug_assert_eq!(query.len(), halves.len());
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
    {
        // SAFETY: the processor has all three features, which is all that the call requires.
        return unsafe { wide::dot(query, halves) };
    }
    plain(query, halves)
}

/// Eight sums side by side, for processors of any kind.
fn plain(query: &[f32], halves: &[f16]) -> f32 {
    let mut sums = [0.0f32; 8];
    for (queries, halves) in query.chunks(8).zip(halves.chunks(8)) {
        for ((sum, query), half) in sums.iter_mut().zip(queries).zip(halves) {
            *sum += query * half.to_f32();
        }
    }
    sums.iter().sum()
}

#[cfg(target_arch = "x86_64")]
mod wide {
    use std::arch::x86_64::{
        __m128i, __m256, _mm256_add_ps, _mm256_cvtph_ps, _mm256_fmadd_ps, _mm256_setzero_ps,
    };

    use half::f16;

    /// Four registers of eight sums: enough that no addition waits for the one before.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn dot(query: &[f32], halves: &[f16]) -> f32 {
        let mut sums = [_mm256_setzero_ps(); 4];
        let (query_blocks, half_blocks) = (query.chunks_exact(32), halves.chunks_exact(32));
        let tail = super::plain(query_blocks.remainder(), half_blocks.remainder());
        for (queries, halves) in query_blocks.zip(half_blocks) {
            for (lane, sum) in sums.iter_mut().enumerate() {
                let eight = lane * 8..lane * 8 + 8;
                let query: __m256 =
                    bytemuck::pod_read_unaligned(bytemuck::cast_slice(&queries[eight.clone()]));
                let half: __m128i =
                    bytemuck::pod_read_unaligned(bytemuck::cast_slice(&halves[eight]));
                *sum = _mm256_fmadd_ps(query, _mm256_cvtph_ps(half), *sum);
            }
        }
        let sum = _mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3]));
        bytemuck::cast::<__m256, [f32; 8]>(sum).iter().sum::<f32>() + tail
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_dot_product_is_the_sum_of_products(
            pairs in prop::collection::vec((-1f32..1.0, -1f32..1.0), 0..200),
        ) {
            let (query, row): (Vec<f32>, Vec<f16>) =
                pairs.iter().map(|&(a, b)| (a, f16::from_f32(b))).unzip();
            let products = query.iter().zip(&row).map(|(a, b)| f64::from(*a) * b.to_f64());
            let sum: f64 = products.sum();
            prop_assert!((f64::from(dot(&query, &row)) - sum).abs() < 1e-4);
            prop_assert!((f64::from(plain(&query, &row)) - sum).abs() < 1e-4);
        }
    }
}
