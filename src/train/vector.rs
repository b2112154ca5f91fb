//! Sums and powers in a shape that the compiler turns into vector instructions, inside of
//! [`pulp::Arch::dispatch`].

/// Numbers that are summed side by side: one after the other, each addition would wait for the one before.
const LANES: usize = 16;

/// The sum of `of` each number.
#[inline(always)]
pub(super) fn sum(numbers: &[f32], of: impl Fn(f32) -> f32) -> f32 {
    let (whole, rest) = numbers.as_chunks::<LANES>();
    let mut parts = [0.0; LANES];
    for chunk in whole {
        for (part, x) in parts.iter_mut().zip(chunk) {
            *part += of(*x);
        }
    }
    parts.iter().sum::<f32>() + rest.iter().map(|x| of(*x)).sum::<f32>()
}

/// The sum of `of` each pair of numbers of arrays of one length.
#[inline(always)]
pub(super) fn sum_of_pairs(a: &[f32], b: &[f32], of: impl Fn(f32, f32) -> f32) -> f32 {
    let ((a, rest_of_a), (b, rest_of_b)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut parts = [0.0; LANES];
    for (a, b) in a.iter().zip(b) {
        for ((part, x), y) in parts.iter_mut().zip(a).zip(b) {
            *part += of(*x, *y);
        }
    }
    let rest = rest_of_a.iter().zip(rest_of_b).map(|(x, y)| of(*x, *y));
    parts.iter().sum::<f32>() + rest.sum::<f32>()
}

/// The largest number.
#[inline(always)]
pub(super) fn most(numbers: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (whole, rest) = numbers.as_chunks::<LANES>();
    let mut parts = [f32::NEG_INFINITY; LANES];
    for chunk in whole {
        for (part, x) in parts.iter_mut().zip(chunk) {
            *part = larger(*part, *x);
        }
    }
    parts.iter().chain(rest).fold(f32::NEG_INFINITY, |a, b| larger(a, *b))
}

/// Below, a power is 0: it is less than the least of a softmax that matters, and a little further down
/// numbers are denormal, which Intel's processors multiply a hundred times slower: with what is unseen at
/// 1e-38 in place of 0, a step took nine times as long there.
const LEAST: f32 = -80.0;

/// e to the `x`, for x <= 0, to 1e-6 of its value; the library's is no vector instruction. Cody and Waite's
/// reduction, then a polynomial on ±ln 2 / 2.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    let (x, is_some) = (x.max(LEAST), x >= LEAST);
    let whole = (x * std::f32::consts::LOG2_E + 12_582_912.0) - 12_582_912.0;
    let rest = x - whole * 0.693_359_4 + whole * 2.121_944_4e-4;
    let mut power = 1.987_569_1e-4;
    for factor in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        power = power * rest + factor;
    }
    let value = power * rest * rest + rest + 1.0;
    let scale = f32::from_bits(((whole as i32 + 127) as u32) << 23);
    if is_some { value * scale } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn exp_is_the_librarys(x in LEAST..0.0) {
            let exact = f64::from(x).exp();
            prop_assert!((f64::from(exp(x)) / exact - 1.0).abs() < 1e-6);
        }

        #[test]
        fn sums_are_those_of_a_plain_loop(
            pairs in proptest::collection::vec((-1.0f32..1.0, -1.0f32..1.0), 0..100)
        ) {
            let (a, b): (Vec<f32>, Vec<f32>) = pairs.iter().copied().unzip();
            let squares: f32 = a.iter().map(|x| x * x).sum();
            prop_assert!((sum(&a, |x| x * x) - squares).abs() < 1e-4);
            let products: f32 = pairs.iter().map(|(x, y)| x * y).sum();
            prop_assert!((sum_of_pairs(&a, &b, |x, y| x * y) - products).abs() < 1e-4);
            let largest = a.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            prop_assert_eq!(most(&a), largest);
        }
    }

    #[test]
    fn exp_at_its_ends() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!((exp(LEAST - 0.1), exp(f32::NEG_INFINITY)), (0.0, 0.0));
    }
}
