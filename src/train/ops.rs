//! Operations of the network that go over their numbers once, with gradients worked out by hand:
//! of the same in burn's own operations, autodiff keeps and goes over five to ten arrays each.

use std::fmt::Debug;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::tensor::{Tensor, TensorData};
use pulp::Arch;

use super::vector::{exp, most, sum, sum_of_pairs};
use crate::onnx::transformer::EPSILON;

/// How much each number of an array is multiplied with; empty: not at all.
pub(super) type Scales = Vec<f32>;

/// The softmax of `scores` (`[rows, heads, tokens, tokens]`) to which a row's `bias` (`[rows, 1, tokens,
/// tokens]`) is added.
pub(super) fn softmax(scores: Tensor<4>, bias: Tensor<4>) -> Tensor<4> {
    let [_, heads, tokens, _] = scores.dims();
    let (scores, bias) = (scores.into_dispatch(), bias.into_dispatch());
    Tensor::from_dispatch(<Dispatch as Fused>::softmax(scores, bias, heads, tokens))
}

/// Each row of `input` with mean 0 and spread 1, times `weight`, and `bias` added (Ba, Kiros and Hinton,
/// 2016).
pub(super) fn layer_norm(input: Tensor<2>, weight: Tensor<1>, bias: Tensor<1>) -> Tensor<2> {
    let [input, weight, bias] =
        [input.into_dispatch(), weight.into_dispatch(), bias.into_dispatch()];
    Tensor::from_dispatch(<Dispatch as Fused>::layer_norm(input, weight, bias))
}

/// `max(input + bias, 0)²` (So and others, 2021).
pub(super) fn squared_relu(input: Tensor<2>, bias: Tensor<1>) -> Tensor<2> {
    let (input, bias) = (input.into_dispatch(), bias.into_dispatch());
    Tensor::from_dispatch(<Dispatch as Fused>::squared_relu(input, bias))
}

/// `state + scales * (input + bias)`.
pub(super) fn residual(
    state: Tensor<2>,
    input: Tensor<2>,
    bias: Tensor<1>,
    scales: Scales,
) -> Tensor<2> {
    let [state, input, bias] = [state.into_dispatch(), input.into_dispatch(), bias.into_dispatch()];
    Tensor::from_dispatch(<Dispatch as Fused>::residual(state, input, bias, scales))
}

/// What the functions above are to burn's backends.
#[backend_extension(Flex, Autodiff)]
trait Fused: Backend {
    fn softmax(
        scores: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        heads: usize,
        tokens: usize,
    ) -> FloatTensor<Self>;

    fn layer_norm(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    fn squared_relu(input: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self>;

    fn residual(
        state: FloatTensor<Self>,
        input: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        scales: Scales,
    ) -> FloatTensor<Self>;
}

impl Fused for Flex {
    fn softmax(scores: FlexTensor, bias: FlexTensor, heads: usize, tokens: usize) -> FlexTensor {
        computed(&Softmax { heads, tokens }, &[scores, bias].map(dense))
    }

    fn layer_norm(input: FlexTensor, weight: FlexTensor, bias: FlexTensor) -> FlexTensor {
        computed(&LayerNorm, &[input, weight, bias].map(dense))
    }

    fn squared_relu(input: FlexTensor, bias: FlexTensor) -> FlexTensor {
        computed(&SquaredRelu, &[input, bias].map(dense))
    }

    fn residual(
        state: FlexTensor,
        input: FlexTensor,
        bias: FlexTensor,
        scales: Scales,
    ) -> FlexTensor {
        computed(&Residual { scales }, &[state, input, bias].map(dense))
    }
}

impl<C: CheckpointStrategy> Fused for Autodiff<Flex, C> {
    fn softmax(
        scores: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        heads: usize,
        tokens: usize,
    ) -> FloatTensor<Self> {
        tracked::<_, C, 2>(Softmax { heads, tokens }, [scores, bias])
    }

    fn layer_norm(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        tracked::<_, C, 3>(LayerNorm, [input, weight, bias])
    }

    fn squared_relu(input: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
        tracked::<_, C, 2>(SquaredRelu, [input, bias])
    }

    fn residual(
        state: FloatTensor<Self>,
        input: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        scales: Scales,
    ) -> FloatTensor<Self> {
        tracked::<_, C, 3>(Residual { scales }, [state, input, bias])
    }
}

/// An operation on arrays: its result has the first one's shape.
trait Kernel<const N: usize>: Clone + Debug + Send + 'static {
    fn forward(&self, inputs: [&[f32]; N], output: &mut [f32]);

    /// Adds to zeroes what each input's gradient is, where the result's is `gradient`.
    fn backward(
        &self,
        inputs: [&[f32]; N],
        output: &[f32],
        gradient: &[f32],
        of_inputs: [&mut [f32]; N],
    );
}

/// Row by row, without gaps.
fn dense(tensor: FlexTensor) -> FlexTensor {
    tensor.to_contiguous()
}

/// The numbers of a dense tensor.
fn numbers(tensor: &FlexTensor) -> &[f32] {
    let start = tensor.layout().start_offset();
    &tensor.storage()[start..start + tensor.layout().num_elements()]
}

fn tensor_of(values: Vec<f32>, like: &FlexTensor) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, like.shape()))
}

fn computed<K: Kernel<N>, const N: usize>(kernel: &K, inputs: &[FlexTensor; N]) -> FlexTensor {
    let mut output = vec![0.0; numbers(&inputs[0]).len()];
    kernel.forward(inputs.each_ref().map(numbers), &mut output);
    tensor_of(output, &inputs[0])
}

/// What the gradient of an operation is computed from.
#[derive(Debug, Clone)]
struct Saved<K, const N: usize> {
    kernel: K,
    inputs: [FlexTensor; N],
    output: FlexTensor,
}

#[derive(Debug)]
struct Step<K>(std::marker::PhantomData<K>);

impl<K: Kernel<N>, const N: usize> Backward<Flex, N> for Step<K> {
    type State = Saved<K, N>;

    fn backward(
        self,
        ops: Ops<Saved<K, N>, N>,
        gradients: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let gradient = dense(gradients.consume::<Flex>(&ops.node));
        let Saved { kernel, inputs, output } = &ops.state;
        let mut found = inputs.each_ref().map(|input| vec![0.0; numbers(input).len()]);
        kernel.backward(
            inputs.each_ref().map(numbers),
            numbers(output),
            numbers(&gradient),
            found.each_mut().map(|found| &mut found[..]),
        );
        for ((parent, found), input) in ops.parents.into_iter().zip(found).zip(inputs) {
            if let Some(parent) = parent {
                gradients.register::<Flex>(parent.id, tensor_of(found, input));
            }
        }
    }
}

fn tracked<K: Kernel<N>, C: CheckpointStrategy, const N: usize>(
    kernel: K,
    inputs: [FloatTensor<Autodiff<Flex, C>>; N],
) -> FloatTensor<Autodiff<Flex, C>> {
    let nodes = inputs.each_ref().map(|input| input.node());
    let inputs = inputs.map(|input| dense(input.into_primitive()));
    let output = computed(&kernel, &inputs);
    match Step::<K>(std::marker::PhantomData).prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(step) => {
            let saved = Saved { kernel, inputs, output: output.clone() };
            step.finish(saved, output)
        }
        OpsKind::UnTracked(step) => step.finish(output),
    }
}

#[derive(Debug, Clone)]
struct Softmax {
    heads: usize,
    tokens: usize,
}

impl Kernel<2> for Softmax {
    fn forward(&self, [scores, bias]: [&[f32]; 2], output: &mut [f32]) {
        let square = self.tokens * self.tokens;
        Arch::new().dispatch(|| {
            for (matrix, (scores, output)) in
                scores.chunks_exact(square).zip(output.chunks_exact_mut(square)).enumerate()
            {
                let bias = &bias[matrix / self.heads * square..][..square];
                let rows = scores.chunks_exact(self.tokens).zip(bias.chunks_exact(self.tokens));
                for ((scores, bias), output) in rows.zip(output.chunks_exact_mut(self.tokens)) {
                    softmax_row(scores, bias, output);
                }
            }
        });
    }

    fn backward(
        &self,
        _: [&[f32]; 2],
        output: &[f32],
        gradient: &[f32],
        [of_scores, _]: [&mut [f32]; 2],
    ) {
        Arch::new().dispatch(|| {
            let rows = output.chunks_exact(self.tokens).zip(gradient.chunks_exact(self.tokens));
            for ((output, gradient), of_scores) in rows.zip(of_scores.chunks_exact_mut(self.tokens))
            {
                let mean = sum_of_pairs(output, gradient, |x, y| x * y);
                for i in 0..of_scores.len() {
                    of_scores[i] = output[i] * (gradient[i] - mean);
                }
            }
        });
    }
}

#[inline(always)]
fn softmax_row(scores: &[f32], bias: &[f32], output: &mut [f32]) {
    for ((output, score), bias) in output.iter_mut().zip(scores).zip(bias) {
        *output = score + bias;
    }
    let most = most(output);
    for output in output.iter_mut() {
        *output = exp(*output - most);
    }
    let scale = 1.0 / sum(output, |x| x);
    for output in output.iter_mut() {
        *output *= scale;
    }
}

#[derive(Debug, Clone)]
struct LayerNorm;

/// The mean of a row, and what its distances from it are multiplied with.
#[inline(always)]
fn moments(row: &[f32]) -> (f32, f32) {
    let count = row.len() as f32;
    let mean = sum(row, |x| x) / count;
    let variance = sum(row, |x| (x - mean) * (x - mean)) / count;
    (mean, 1.0 / (variance + EPSILON).sqrt())
}

impl Kernel<3> for LayerNorm {
    fn forward(&self, [input, weight, bias]: [&[f32]; 3], output: &mut [f32]) {
        let dim = weight.len();
        let bias = &bias[..dim];
        Arch::new().dispatch(|| {
            for (row, output) in input.chunks_exact(dim).zip(output.chunks_exact_mut(dim)) {
                let (mean, scale) = moments(row);
                for i in 0..dim {
                    output[i] = (row[i] - mean) * scale * weight[i] + bias[i];
                }
            }
        });
    }

    fn backward(
        &self,
        [input, weight, _]: [&[f32]; 3],
        _: &[f32],
        gradient: &[f32],
        [of_input, of_weight, of_bias]: [&mut [f32]; 3],
    ) {
        let dim = weight.len();
        let (of_weight, of_bias) = (&mut of_weight[..dim], &mut of_bias[..dim]);
        let count = dim as f32;
        Arch::new().dispatch(|| {
            let rows = input.chunks_exact(dim).zip(gradient.chunks_exact(dim));
            for ((row, gradient), of_input) in rows.zip(of_input.chunks_exact_mut(dim)) {
                let (mean, scale) = moments(row);
                for i in 0..dim {
                    of_weight[i] += gradient[i] * (row[i] - mean) * scale;
                    of_bias[i] += gradient[i];
                    of_input[i] = gradient[i] * weight[i];
                }
                let even = sum(of_input, |x| x) / count;
                let along = sum_of_pairs(of_input, row, |x, y| x * (y - mean)) / count;
                let along = along * scale * scale;
                for i in 0..dim {
                    of_input[i] = scale * (of_input[i] - even - along * (row[i] - mean));
                }
            }
        });
    }
}

#[derive(Debug, Clone)]
struct SquaredRelu;

impl Kernel<2> for SquaredRelu {
    fn forward(&self, [input, bias]: [&[f32]; 2], output: &mut [f32]) {
        let dim = bias.len();
        Arch::new().dispatch(|| {
            for (row, output) in input.chunks_exact(dim).zip(output.chunks_exact_mut(dim)) {
                for i in 0..dim {
                    let x = row[i] + bias[i];
                    let x = if x > 0.0 { x } else { 0.0 * x };
                    output[i] = x * x;
                }
            }
        });
    }

    fn backward(
        &self,
        [_, bias]: [&[f32]; 2],
        output: &[f32],
        gradient: &[f32],
        [of_input, of_bias]: [&mut [f32]; 2],
    ) {
        let dim = bias.len();
        let of_bias = &mut of_bias[..dim];
        Arch::new().dispatch(|| {
            let rows = output.chunks_exact(dim).zip(gradient.chunks_exact(dim));
            for ((output, gradient), of_input) in rows.zip(of_input.chunks_exact_mut(dim)) {
                for i in 0..dim {
                    of_input[i] = 2.0 * output[i].sqrt() * gradient[i];
                    of_bias[i] += of_input[i];
                }
            }
        });
    }
}

#[derive(Debug, Clone)]
struct Residual {
    scales: Scales,
}

impl Kernel<3> for Residual {
    fn forward(&self, [state, input, bias]: [&[f32]; 3], output: &mut [f32]) {
        let dim = bias.len();
        Arch::new().dispatch(|| {
            let rows = state.chunks_exact(dim).zip(input.chunks_exact(dim));
            for (at, ((state, input), output)) in rows.zip(output.chunks_exact_mut(dim)).enumerate()
            {
                match self.scales.get(at * dim..(at + 1) * dim) {
                    Some(scales) => {
                        for i in 0..dim {
                            output[i] = state[i] + scales[i] * (input[i] + bias[i]);
                        }
                    }
                    None => {
                        for i in 0..dim {
                            output[i] = state[i] + input[i] + bias[i];
                        }
                    }
                }
            }
        });
    }

    fn backward(
        &self,
        [_, _, bias]: [&[f32]; 3],
        _: &[f32],
        gradient: &[f32],
        [of_state, of_input, of_bias]: [&mut [f32]; 3],
    ) {
        let dim = bias.len();
        let of_bias = &mut of_bias[..dim];
        of_state.copy_from_slice(gradient);
        of_input.copy_from_slice(gradient);
        Arch::new().dispatch(|| {
            for (of_input, scales) in
                of_input.chunks_exact_mut(dim).zip(self.scales.chunks_exact(dim))
            {
                for i in 0..dim {
                    of_input[i] *= scales[i];
                }
            }
            for of_input in of_input.chunks_exact(dim) {
                for i in 0..dim {
                    of_bias[i] += of_input[i];
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::activation;
    use burn::tensor::module;
    use burn::tensor::{Device, Distribution, Gradients};

    use super::*;

    fn random<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
        Tensor::random(shape, Distribution::Normal(0.0, 2.0), device).require_grad()
    }

    type Gradient<'a> = &'a dyn Fn(&Gradients) -> Vec<f32>;

    /// Holds a result and the gradients of a sum over it, weighed at random, against those of the same in
    /// burn's own operations.
    fn same<const D: usize>(found: Tensor<D>, wanted: Tensor<D>, gradients: &[Gradient<'_>]) {
        let weights = Tensor::random(found.dims(), Distribution::Default, &found.device());
        let of = |result: Tensor<D>| {
            let values = result.clone().into_data().try_into_vec::<f32>().unwrap();
            let backward = (result * weights.clone()).sum().backward();
            let gradients = gradients.iter().map(|gradient| gradient(&backward));
            std::iter::once(values).chain(gradients).collect::<Vec<_>>()
        };
        for (found, wanted) in of(found).iter().zip(of(wanted)) {
            assert_eq!(found.len(), wanted.len());
            for (found, wanted) in found.iter().zip(wanted) {
                assert!((found - wanted).abs() < 1e-4 * (1.0 + wanted.abs()), "{found} {wanted}");
            }
        }
    }

    fn gradient<const D: usize>(of: &Tensor<D>) -> impl Fn(&Gradients) -> Vec<f32> {
        |gradients| of.grad(gradients).unwrap().into_data().try_into_vec().unwrap()
    }

    #[test]
    fn operations_and_their_gradients_are_burns() {
        let device = Device::flex().autodiff();
        // Neither is a multiple of what is summed side by side.
        let (rows, dim) = (7, 37);
        let (x, y) = (random([rows, dim], &device), random([rows, dim], &device));
        let (weight, bias) = (random([dim], &device), random([dim], &device));

        let wanted =
            module::layer_norm(x.clone(), weight.clone(), Some(bias.clone()), f64::from(EPSILON));
        let found = layer_norm(x.clone(), weight.clone(), bias.clone());
        same(found, wanted, &[&gradient(&x), &gradient(&weight), &gradient(&bias)]);

        let positive = activation::relu(x.clone() + bias.clone().unsqueeze());
        let found = squared_relu(x.clone(), bias.clone());
        same(found, positive.clone() * positive, &[&gradient(&x), &gradient(&bias)]);

        let scales: Scales = (0..rows * dim).map(|i| (i % 3) as f32).collect();
        for scales in [scales, Scales::new()] {
            // A graph serves one gradient.
            let mut sum = y.clone() + bias.clone().unsqueeze();
            if !scales.is_empty() {
                let scaling = TensorData::new(scales.clone(), [rows, dim]);
                sum = sum * Tensor::from_data(scaling, &device);
            }
            let found = residual(x.clone(), y.clone(), bias.clone(), scales);
            let of = [&gradient(&x) as Gradient<'_>, &gradient(&y), &gradient(&bias)];
            same(found, x.clone() + sum, &of);
        }

        let (heads, tokens) = (3, 21);
        let scores = random([2, heads, tokens, tokens], &device);
        let bias = Tensor::random([2, 1, tokens, tokens], Distribution::Default, &device);
        let wanted = activation::softmax(scores.clone() + bias.clone(), 3);
        same(softmax(scores.clone(), bias), wanted, &[&gradient(&scores)]);
    }

    /// As in a network: the scores' arrays are views, not dense.
    #[test]
    fn views_are_read_in_their_order() {
        let device = Device::flex();
        let x = Tensor::<2>::random([5, 3], Distribution::Default, &device);
        let ones = |value: f32| Tensor::<1>::full([5], value, &device);
        let found = layer_norm(x.clone().transpose(), ones(1.0), ones(0.0));
        let dense = Tensor::from_data(x.transpose().into_data(), &device);
        let wanted = layer_norm(dense, ones(1.0), ones(0.0));
        found.into_data().assert_eq(&wanted.into_data(), true);
    }
}
