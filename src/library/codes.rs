//! Vectors as one bit a dimension, to find those that are worth a second look, and as four bits, to
//! find among them the few that are worth comparing exactly.
//!
//! RaBitQ (Gao and Long 2024, "RaBitQ: quantizing high-dimensional vectors with a theoretical error
//! bound for approximate nearest neighbor search"): a vector less the centre of its neighbours is
//! rotated by a fixed orthogonal matrix, and the signs are kept with one factor, from which its
//! product with a query is estimated without bias. The query is rotated too and kept with four bits
//! a dimension, so that a product is a few counts of bits. The fine code has one of 16 levels in place
//! of a sign, and a factor of its own, as in the authors' extension to more bits (Gao and others 2024,
//! "Practical and asymptotically optimal quantization of high-dimensional vectors").

use half::f16;

use super::dot::dot;

/// Bits of a query's dimension, for products with signs.
const QUERY_BITS: usize = 4;
/// The levels of a fine code are `level - MIDDLE` steps, `level` being 0 to 15.
const MIDDLE: f32 = 7.5;
/// Of a normal distribution's deviation: with 16 levels, steps of this width err least (Max 1960,
/// "Quantizing for minimum distortion"). Rotated, what vectors hold is distributed so.
const FINE_STEP: f32 = 0.335;
/// Rounds of flipped signs and Hadamard transforms: after two every dimension depends on every other.
const ROUNDS: usize = 3;
/// Part of the format of codes: another text, another rotation.
const ROTATION: &[u8] = b"cinelex rotation 1";

/// A fixed orthogonal matrix of any size, applied in `dimension * log2(dimension)` steps.
#[derive(Debug)]
pub(super) struct Rotation {
    /// `ROUNDS * dimension` of 1 and -1.
    signs: Vec<f32>,
    dimension: usize,
}

impl Rotation {
    pub fn new(dimension: usize) -> Self {
        let mut bits = vec![0; (ROUNDS * dimension).div_ceil(8)];
        blake3::Hasher::new().update(ROTATION).finalize_xof().fill(&mut bits);
        let sign = |place: usize| if bits[place / 8] >> (place % 8) & 1 == 1 { -1.0 } else { 1.0 };
        Rotation { signs: (0..ROUNDS * dimension).map(sign).collect(), dimension }
    }

    pub fn dimension(&self) -> usize {
        self.dimension
    }

    /// Rotates a vector in place.
    pub fn apply(&self, vector: &mut [f32]) {
        debug_assert_eq!(vector.len(), self.dimension);
        if self.dimension == 0 {
            return;
        }
        // Transforms have a power of two as length; two that overlap reach all dimensions.
        let block = 1 << self.dimension.ilog2();
        for signs in self.signs.chunks_exact(self.dimension) {
            for (value, sign) in vector.iter_mut().zip(signs) {
                *value *= sign;
            }
            hadamard(&mut vector[..block]);
            if block < self.dimension {
                hadamard(&mut vector[self.dimension - block..]);
            }
        }
    }
}

/// The Hadamard transform that keeps lengths; `values` has a power of two as length.
fn hadamard(values: &mut [f32]) {
    let mut half = 1;
    while half < values.len() {
        for pair in values.chunks_exact_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            for (low, high) in low.iter_mut().zip(high) {
                (*low, *high) = (*low + *high, *low - *high);
            }
        }
        half *= 2;
    }
    let scale = 1.0 / (values.len() as f32).sqrt();
    values.iter_mut().for_each(|value| *value *= scale);
}

/// Words of 64 bits in a code.
pub(super) fn code_words(dimension: usize) -> usize {
    dimension.div_ceil(64)
}

/// Appends the code of `offset`, a rotated vector less the rotated centre, to `codes`; gives its
/// factor.
pub(super) fn encode(offset: &[f32], codes: &mut Vec<u64>) -> f32 {
    for values in offset.chunks(64) {
        let bit = |(place, value): (usize, &f32)| u64::from(*value > 0.0) << place;
        codes.push(values.iter().enumerate().map(bit).sum());
    }
    let square: f32 = offset.iter().map(|value| value * value).sum();
    let sum: f32 = offset.iter().map(|value| value.abs()).sum();
    if sum > 0.0 { square / sum } else { 0.0 }
}

/// Bytes of a fine code.
pub(super) fn fine_bytes(dimension: usize) -> usize {
    dimension.div_ceil(2)
}

/// As [`encode`], for the fine code: byte `i` has dimension `i` in its lower half, and in its upper one
/// dimension `fine_bytes + i`.
pub(super) fn encode_fine(offset: &[f32], codes: &mut Vec<u8>) -> f32 {
    let square: f32 = offset.iter().map(|value| value * value).sum();
    let step = FINE_STEP * (square / offset.len().max(1) as f32).sqrt();
    let level =
        |value: &f32| (value / step.max(f32::MIN_POSITIVE) + MIDDLE).round().clamp(0.0, 15.0);
    let (low, high) = offset.split_at(fine_bytes(offset.len()));
    let uppers = high.iter().map(level).chain(std::iter::once(0.0));
    codes.extend(low.iter().zip(uppers).map(|(low, high)| level(low) as u8 | (high as u8) << 4));
    let sum: f32 = offset.iter().map(|value| value * (level(value) - MIDDLE)).sum();
    if sum > 0.0 { square / sum } else { 0.0 }
}

/// A query made ready for estimates.
#[derive(Debug)]
pub(super) struct CodedQuery {
    /// Rotated.
    rotated: Vec<f32>,
    length: f32,
    /// `code_words` times [`QUERY_BITS`] words: the bits of each stretch of 64 dimensions, the lowest
    /// bits first.
    planes: Vec<[u64; QUERY_BITS]>,
    /// A dimension's value is `least + step * bits`.
    least: f32,
    step: f32,
    sum: f32,
    /// For fine codes: a dimension's value is `fine_step` times this. 0 where there is no dimension.
    fine: Vec<i8>,
    fine_step: f32,
    fine_sum: f32,
}

impl CodedQuery {
    pub fn new(rotation: &Rotation, query: &[f32]) -> Self {
        let mut rotated = query.to_vec();
        rotation.apply(&mut rotated);
        let length = rotated.iter().map(|value| value * value).sum::<f32>().sqrt();
        let least = rotated.iter().copied().fold(f32::INFINITY, f32::min);
        let most = rotated.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let levels = (1 << QUERY_BITS) - 1;
        let step = ((most - least) / levels as f32).max(f32::MIN_POSITIVE);
        let mut planes = vec![[0u64; QUERY_BITS]; code_words(query.len())];
        let mut sum = 0.0;
        for (place, value) in rotated.iter().enumerate() {
            let level = (((value - least) / step).round() as u64).min(levels);
            sum += least + step * level as f32;
            for (bit, plane) in planes[place / 64].iter_mut().enumerate() {
                *plane |= (level >> bit & 1) << (place % 64);
            }
        }
        let fine_step = (most.max(-least) / f32::from(i8::MAX)).max(f32::MIN_POSITIVE);
        let mut fine: Vec<i8> =
            rotated.iter().map(|value| (value / fine_step).round() as i8).collect();
        let fine_sum = fine_step * fine.iter().map(|value| f32::from(*value)).sum::<f32>();
        fine.resize(2 * fine_bytes(query.len()), 0);
        CodedQuery { rotated, length, planes, least, step, sum, fine, fine_step, fine_sum }
    }

    pub fn length(&self) -> f32 {
        self.length
    }

    /// The query's product with a rotated centre.
    pub fn centre_product(&self, centre: &[f16]) -> f32 {
        dot(&self.rotated, centre)
    }

    /// Estimates the query's products with vectors: `codes` one after the other, with the `factors`
    /// that [`encode`] gave; `base` is the product with their centre.
    pub fn estimate(&self, base: f32, codes: &[u64], factors: &[f32], estimates: &mut Vec<f32>) {
        estimates.clear();
        estimates.resize(factors.len(), base);
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("popcnt") && is_x86_feature_detected!("avx2") {
            #[allow(
                unsafe_code,
                reason = "bits are counted by an instruction that was asked for"
            )]
            // SAFETY: the processor has both features, which is all that the call requires.
            return unsafe { self.add_counting(codes, factors, estimates) };
        }
        self.add_plain(codes, factors, estimates);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "popcnt,avx2")]
    fn add_counting(&self, codes: &[u64], factors: &[f32], estimates: &mut [f32]) {
        self.add_plain(codes, factors, estimates);
    }

    /// Loops, not closures: a closure would be compiled without the features of its caller.
    #[inline(always)]
    fn add_plain(&self, codes: &[u64], factors: &[f32], estimates: &mut [f32]) {
        // Codes of 384 dimensions, the default space's, get a loop of known length.
        if let Ok(planes) = <&[[u64; QUERY_BITS]; 6]>::try_from(self.planes.as_slice()) {
            for ((code, factor), estimate) in
                codes.as_chunks::<6>().0.iter().zip(factors).zip(estimates)
            {
                *estimate += factor * self.product(planes, code);
            }
        } else {
            let codes = codes.chunks_exact(self.planes.len().max(1));
            for ((code, factor), estimate) in codes.zip(factors).zip(estimates) {
                *estimate += factor * self.product(&self.planes, code);
            }
        }
    }

    /// Estimates the query's product with one vector by its fine code and the factor that
    /// [`encode_fine`] gave.
    pub fn estimate_fine(&self, base: f32, code: &[u8], factor: f32) -> f32 {
        let (low, high) = self.fine.split_at(code.len());
        let sum = sum_of_levels(code, low, high);
        base + factor * (self.fine_step * sum as f32 - MIDDLE * self.fine_sum)
    }

    /// The product with the vector of 1 where a bit is set and -1 elsewhere.
    #[inline(always)]
    fn product(&self, planes: &[[u64; QUERY_BITS]], code: &[u64]) -> f32 {
        let (mut ones, mut levels) = (0, 0);
        for (planes, code) in planes.iter().zip(code) {
            ones += code.count_ones();
            levels += (code & planes[0]).count_ones()
                + ((code & planes[1]).count_ones() << 1)
                + ((code & planes[2]).count_ones() << 2)
                + ((code & planes[3]).count_ones() << 3);
        }
        2.0 * (self.least * ones as f32 + self.step * levels as f32) - self.sum
    }
}

/// The sum of a code's levels, each times the query's number there: `low` for the lower halves of
/// bytes, `high` for the upper ones.
fn sum_of_levels(code: &[u8], low: &[i8], high: &[i8]) -> i32 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        #[allow(unsafe_code, reason = "wide registers are used that were asked for")]
        // SAFETY: the processor has the feature, which is all that the call requires.
        return unsafe { sum_of_levels_wide(code, low, high) };
    }
    sum_of_levels_plain(code, low, high)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn sum_of_levels_wide(code: &[u8], low: &[i8], high: &[i8]) -> i32 {
    sum_of_levels_plain(code, low, high)
}

#[inline(always)]
fn sum_of_levels_plain(code: &[u8], low: &[i8], high: &[i8]) -> i32 {
    let mut sum = 0;
    for ((byte, low), high) in code.iter().zip(low).zip(high) {
        sum += i32::from(i16::from(byte & 15) * i16::from(*low));
        sum += i32::from(i16::from(byte >> 4) * i16::from(*high));
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn vectors(dimension: usize) -> impl Strategy<Value = (Vec<f32>, Vec<f32>)> {
        let values = || prop::collection::vec(-1f32..1.0, dimension);
        (values(), values())
    }

    fn product(a: &[f32], b: &[f32]) -> f32 {
        a.iter().zip(b).map(|(a, b)| a * b).sum()
    }

    proptest! {
        #[test]
        fn a_rotation_keeps_products((a, b) in (1usize..200).prop_flat_map(vectors)) {
            let before = product(&a, &b);
            let (mut a, mut b) = (a, b);
            let rotation = Rotation::new(a.len());
            rotation.apply(&mut a);
            rotation.apply(&mut b);
            prop_assert!((product(&a, &b) - before).abs() < 1e-3 * a.len() as f32);
        }

        #[test]
        fn an_estimate_is_near_the_product((query, vector) in prop_oneof![
            vectors(384), vectors(100), vectors(1_024),
        ]) {
            let rotation = Rotation::new(query.len());
            let coded = CodedQuery::new(&rotation, &query);
            let mut rotated = vector.clone();
            rotation.apply(&mut rotated);
            let mut codes = Vec::new();
            let factors = [encode(&rotated, &mut codes)];
            prop_assert_eq!(codes.len(), code_words(query.len()));
            let mut estimates = Vec::new();
            coded.estimate(0.25, &codes, &factors, &mut estimates);
            // Theorem 3.2 of the paper: the error is that of a random direction in so many
            // dimensions; six times its deviation is out of reach.
            let lengths = (product(&query, &query) * product(&vector, &vector)).sqrt();
            let bound = 6.0 * 0.8 * lengths / (query.len() as f32).sqrt();
            let error = estimates[0] - 0.25 - product(&query, &vector);
            prop_assert!(error.abs() < bound, "{error} {bound}");

            // With 16 levels, a hundredth of the vector's square is lost.
            let mut codes = Vec::new();
            let factor = encode_fine(&rotated, &mut codes);
            prop_assert_eq!(codes.len(), fine_bytes(query.len()));
            let error = coded.estimate_fine(0.25, &codes, factor) - 0.25 - product(&query, &vector);
            prop_assert!(error.abs() < bound / 6.0, "{error} {bound}");
        }

        #[test]
        fn levels_are_summed_alike_with_wide_registers(
            code in prop::collection::vec(any::<u8>(), 0..100),
            numbers in prop::collection::vec(any::<i8>(), 200),
        ) {
            let (low, high) = numbers.split_at(code.len());
            prop_assert_eq!(sum_of_levels(&code, low, high), sum_of_levels_plain(&code, low, high));
        }
    }

    #[test]
    fn a_vector_at_the_centre_has_the_centre_s_product() {
        let rotation = Rotation::new(70);
        let query = CodedQuery::new(&rotation, &[0.5; 70]);
        let mut codes = Vec::new();
        let factors = [encode(&[0.0; 70], &mut codes)];
        let mut estimates = Vec::new();
        query.estimate(0.5, &codes, &factors, &mut estimates);
        assert_eq!(estimates, [0.5]);
        let mut codes = Vec::new();
        let factor = encode_fine(&[0.0; 70], &mut codes);
        assert_eq!(query.estimate_fine(0.5, &codes, factor), 0.5);
    }
}
