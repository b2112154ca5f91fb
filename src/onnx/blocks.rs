//! Weights in 8 bits: each stretch of an output's weights has a scale of its own, as the blocks of GGML's
//! `Q8_0` have. The runtime rounds what it is multiplied with in the same stretches and adds integers, where it has code for
//! that on the processor; elsewhere it multiplies floats.
//!
//! One scale for each output, with one for all of the input, is faster by a little and loses more.

use super::build::{Attribute, GraphBuilder};

/// Weights that share a scale. With 32, a sentence's embedding (all-MiniLM-L6-v2) has a cosine of .9997 with
/// the exact one and takes 73 % of its time, with 64 .9995 and 64 %, with 128 .9991 and 62 %.
const BLOCK: usize = 64;
/// Stands for 0.
const ZERO: u8 = 128;
/// Of the runtime's choices, the one that computes in 8 bits.
const IN_EIGHT_BITS: i64 = 4;

/// `input * weightsᵀ`: `weights` are `[outputs, inputs]`. Adds the rounded weights and the node `name`.
pub(super) fn product(
    graph: &mut GraphBuilder,
    name: &str,
    input: &str,
    weights: &[f32],
    inputs: usize,
) -> String {
    let outputs = weights.len() / inputs.max(1);
    let blocks = inputs.div_ceil(BLOCK);
    let (steps, scales) = rounded(weights, inputs);
    let steps = graph.u8(&format!("{name}.steps"), &[outputs, blocks, BLOCK], &steps);
    let scales = graph.f32(&format!("{name}.scales"), &[outputs, blocks], &scales);
    let attributes = [
        ("K", Attribute::Int(inputs as i64)),
        ("N", Attribute::Int(outputs as i64)),
        ("bits", Attribute::Int(8)),
        ("block_size", Attribute::Int(BLOCK as i64)),
        ("accuracy_level", Attribute::Int(IN_EIGHT_BITS)),
    ];
    graph.node("com.microsoft.MatMulNBits", name, &[input, &steps, &scales], &attributes)
}

/// Each row's weights in steps, filled up to whole blocks, and the width of each block's steps.
fn rounded(weights: &[f32], inputs: usize) -> (Vec<u8>, Vec<f32>) {
    let (mut steps, mut scales) = (Vec::new(), Vec::new());
    for block in weights.chunks_exact(inputs.max(1)).flat_map(|row| row.chunks(BLOCK)) {
        let largest = block.iter().fold(0.0_f32, |largest, weight| largest.max(weight.abs()));
        let scale = (largest / 127.0).max(f32::MIN_POSITIVE);
        let step = |weight: &f32| ((weight / scale).round() + f32::from(ZERO)) as u8;
        steps.extend(block.iter().map(step));
        steps.resize(steps.len().next_multiple_of(BLOCK), ZERO);
        scales.push(scale);
    }
    (steps, scales)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn weights_are_off_by_half_a_step_at_most(
            inputs in 1usize..200,
            outputs in 1usize..5,
            some in prop::collection::vec(-3f32..3.0, 1..50),
        ) {
            // Blocks of very different size, and one of zeros.
            let weight = |at: usize| match at / BLOCK % 3 {
                0 => some[at % some.len()],
                1 => some[at % some.len()] * 1e-6,
                _ => 0.0,
            };
            let weights: Vec<f32> = (0..inputs * outputs).map(weight).collect();
            let (steps, scales) = rounded(&weights, inputs);
            let blocks = inputs.div_ceil(BLOCK);
            prop_assert_eq!(scales.len(), outputs * blocks);
            prop_assert_eq!(steps.len(), scales.len() * BLOCK);
            for (row, weights) in weights.chunks(inputs).enumerate() {
                for at in 0..blocks * BLOCK {
                    let (block, wanted) = (row * blocks + at / BLOCK, weights.get(at));
                    let step = f32::from(steps[block * BLOCK + at % BLOCK]) - f32::from(ZERO);
                    let error = step * scales[block] - wanted.unwrap_or(&0.0);
                    prop_assert!(error.abs() <= scales[block] * 0.5001, "{at}: {error}");
                }
            }
        }
    }
}
