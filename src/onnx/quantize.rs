//! Static 8-bit quantization: each activation and weight is rounded to 256 steps between limits
//! that are known beforehand. In the graph, a pair of `QuantizeLinear` and `DequantizeLinear`
//! stands at each, which ONNX Runtime turns into integer arithmetic.
//!
//! Jacob and others, "Quantization and Training of Neural Networks for Efficient
//! Integer-Arithmetic-Only Inference" (2018).

use std::collections::BTreeMap;

use super::build::{Attribute, GraphBuilder};
use crate::error::{Error, Result};

/// The least and greatest value that each activation takes, by the tensor's name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Ranges {
    ranges: BTreeMap<String, (f32, f32)>,
}

const HEADER: &str = "tensor\tlow\thigh";

impl Ranges {
    /// Widens a tensor's range to hold `values`; those that are not finite are left out.
    pub fn observe(&mut self, tensor: &str, values: impl IntoIterator<Item = f32>) {
        let range = self.ranges.entry(tensor.to_owned()).or_insert((0.0, 0.0));
        for value in values.into_iter().filter(|value| value.is_finite()) {
            *range = (range.0.min(value), range.1.max(value));
        }
    }

    /// Lines of tensor, low and high, separated by tabs, below a header.
    pub fn to_text(&self) -> String {
        let lines =
            self.ranges.iter().map(|(name, (low, high))| format!("{name}\t{low}\t{high}\n"));
        std::iter::once(format!("{HEADER}\n")).chain(lines).collect()
    }

    /// Reads what [`Ranges::to_text`] wrote; lines that begin with `#` are left out.
    pub(super) fn from_text(file: &str, bytes: &[u8]) -> Result<Ranges> {
        let wrong = |line: usize, why: &str| Error::corrupt(format!("{file}:{}: {why}", line + 1));
        let text = std::str::from_utf8(bytes).map_err(|_| wrong(0, "the file is not UTF-8"))?;
        let mut ranges = BTreeMap::new();
        let mut lines = text.lines().enumerate().filter(|(_, line)| !line.starts_with('#'));
        if lines.next().is_none_or(|(_, line)| line != HEADER) {
            return Err(wrong(0, &format!("expected the header {HEADER:?}")));
        }
        for (number, line) in lines {
            let range = match line.split('\t').collect::<Vec<_>>()[..] {
                [name, low, high] => low.parse().ok().zip(high.parse().ok()).map(|r| (name, r)),
                _ => None,
            };
            let valid = |(_, (low, high)): &(&str, (f32, f32))| {
                low.is_finite() && high.is_finite() && *low <= 0.0 && 0.0 <= *high
            };
            let (name, range) = range.filter(valid).ok_or_else(|| {
                wrong(number, "expected a tensor, its low (0 or less) and high (0 or more)")
            })?;
            ranges.insert(name.to_owned(), range);
        }
        Ok(Ranges { ranges })
    }

    /// The range of a tensor.
    pub(super) fn of(&self, tensor: &str) -> Result<(f32, f32)> {
        self.ranges.get(tensor).copied().ok_or_else(|| {
            Error::corrupt(format!("the activation ranges lack the tensor {tensor}"))
        })
    }
}

/// A tensor that was rounded to 8 bits and back.
#[derive(Debug, Clone)]
pub(super) struct Rounded {
    pub(super) name: String,
    /// The width of a step.
    pub(super) scale: f32,
}

/// Rounds an activation to unsigned 8 bits over its range.
pub(super) fn activation(graph: &mut GraphBuilder, name: &str, range: (f32, f32)) -> Rounded {
    let (low, high) = range;
    let scale = ((high - low) / 255.0).max(f32::MIN_POSITIVE);
    let zero = (-low / scale).round().clamp(0.0, 255.0) as u8;
    let scale_name = graph.f32(&format!("{name}.scale"), &[], &[scale]);
    let zero_name = graph.u8(&format!("{name}.zero"), &[], &[zero]);
    let steps = format!("{name}.steps");
    let steps = graph.node("QuantizeLinear", &steps, &[name, &scale_name, &zero_name], &[]);
    let rounded = format!("{name}.rounded");
    let inputs = [&steps[..], &scale_name, &zero_name];
    Rounded { name: graph.node("DequantizeLinear", &rounded, &inputs, &[]), scale }
}

/// Rounds a convolution's weights to signed 8 bits, with a scale for each output channel, and its
/// biases to 32 bits at the scale of their sums. Returns the names of both.
pub(super) fn weights(
    graph: &mut GraphBuilder,
    layer: &str,
    shape: &[usize],
    weights: &[f32],
    biases: &[f32],
    input_scale: f32,
) -> (String, String) {
    let each = weights.len() / biases.len().max(1);
    let (mut scales, mut steps, mut bias_steps) = (Vec::new(), Vec::new(), Vec::new());
    for (weights, bias) in weights.chunks_exact(each.max(1)).zip(biases) {
        let largest = weights.iter().fold(0.0_f32, |largest, weight| largest.max(weight.abs()));
        // A channel of tiny weights and a large bias: the bias must fit into 32 bits.
        let for_bias = bias.abs() / input_scale / (1 << 30) as f32;
        let scale = (largest / 127.0).max(for_bias).max(1e-12);
        steps.extend(weights.iter().map(|weight| (weight / scale).round() as i8));
        bias_steps.push((f64::from(*bias) / f64::from(scale * input_scale)).round() as i32);
        scales.push(scale);
    }
    let channels = [biases.len()];
    let by_channel = [("axis", Attribute::Int(0))];
    let weight = format!("{layer}.weight");
    let weight_steps = graph.i8(&format!("{weight}.steps"), shape, &steps);
    let weight_scale = graph.f32(&format!("{weight}.scale"), &channels, &scales);
    let weight_zero = graph.i8(&format!("{weight}.zero"), &channels, &vec![0; biases.len()]);
    let inputs = [&weight_steps[..], &weight_scale, &weight_zero];
    graph.node("DequantizeLinear", &weight, &inputs, &by_channel);

    let bias = format!("{layer}.bias");
    let sums: Vec<f32> = scales.iter().map(|scale| scale * input_scale).collect();
    let bias_steps = graph.i32(&format!("{bias}.steps"), &channels, &bias_steps);
    let bias_scale = graph.f32(&format!("{bias}.scale"), &channels, &sums);
    let bias_zero = graph.i32(&format!("{bias}.zero"), &channels, &vec![0; biases.len()]);
    let inputs = [&bias_steps[..], &bias_scale, &bias_zero];
    graph.node("DequantizeLinear", &bias, &inputs, &by_channel);
    (weight, bias)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_wrong_line_of_ranges_is_reported() {
        for (text, complaint) in [
            ("", "x.tsv:1: expected the header"),
            ("# a\ntensor\tlow\thigh\na\t0\tinf\n", "x.tsv:3: expected a tensor"),
            ("tensor\tlow\thigh\na\t1\t2\n", "x.tsv:2: expected a tensor"),
            ("tensor\tlow\thigh\na\t0\n", "x.tsv:2: expected a tensor"),
        ] {
            let error = Ranges::from_text("x.tsv", text.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with(complaint), "{error}");
        }
    }

    proptest! {
        #[test]
        fn ranges_read_back_as_they_were_written(
            values in prop::collection::vec(("[a-z.0-9]{1,9}", -1e6f32..1e6), 0..20),
        ) {
            let mut ranges = Ranges::default();
            for (name, value) in &values {
                ranges.observe(name, [*value]);
            }
            let text = ranges.to_text();
            prop_assert_eq!(Ranges::from_text("x.tsv", text.as_bytes()).unwrap(), ranges);
        }
    }
}
