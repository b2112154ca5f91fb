//! AdamW (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019) over named arrays,
//! with an average of the weights (Polyak and Juditsky, 1992).
//!
//! The arrays are plain, so that a checkpoint holds them under their names, and a step is one pass
//! over them.

use std::collections::BTreeMap;

use pulp::Arch;

use super::config::Steps;
use super::vector;
use crate::onnx::transformer::Tensors;

/// Of the denominator.
const EPSILON: f64 = 1e-8;

/// Gradients by the tensor's name; a tensor that the loss does not depend on has none.
pub(super) type Gradients = BTreeMap<String, Vec<f32>>;

/// The weights with all that a step changes.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Optimizer {
    /// Steps that were taken.
    pub(super) step: u64,
    pub(super) weights: Tensors,
    /// The running mean of the gradients, and of their squares.
    pub(super) mean: Tensors,
    pub(super) square: Tensors,
    /// The average of the weights: what is scored and shipped.
    pub(super) average: Tensors,
}

impl Optimizer {
    pub(super) fn new(weights: Tensors) -> Self {
        let mut zeros = weights.clone();
        for tensor in zeros.values_mut() {
            tensor.values.fill(0.0);
        }
        Optimizer { step: 0, mean: zeros.clone(), square: zeros, average: weights.clone(), weights }
    }

    /// One step at `rate`. Returns the gradient's length before it was cut; where that is not finite,
    /// nothing has changed.
    pub(super) fn step(&mut self, gradients: &Gradients, rate: f64, how: &Steps) -> f64 {
        // Of each thousand numbers in f32, and of those sums in f64.
        let square = |part: &[f32]| f64::from(vector::sum(part, |x| x * x));
        let squares = Arch::new().dispatch(|| {
            gradients.values().flat_map(|of| of.chunks(1024)).map(square).sum::<f64>()
        });
        let length = squares.sqrt();
        if !length.is_finite() {
            return length;
        }
        self.step += 1;
        let cut = (how.clip / length.max(f64::MIN_POSITIVE)).min(1.0) as f32;
        let [beta_1, beta_2] = how.betas;
        let corrected = |beta: f64| 1.0 - beta.powf(self.step as f64);
        // m / c1 / (sqrt(v / c2) + e), with the constants of the step taken out of the loop.
        let root = corrected(beta_2).sqrt();
        let size = (rate * root / corrected(beta_1)) as f32;
        let epsilon = (EPSILON * root) as f32;
        let [beta_1, beta_2] = how.betas.map(|beta| beta as f32);
        // Early on, an average over fewer steps.
        let kept = how.average.min(self.step as f64 / (self.step as f64 + 9.0)) as f32;
        for (name, weights) in &mut self.weights {
            let Some(gradient) = gradients.get(name) else { continue };
            // Norms, biases and positions are not pulled to zero.
            let decays = weights.shape.len() == 2 && !name.ends_with("position");
            let decay = if decays { (rate * how.weight_decay) as f32 } else { 0.0 };
            let state = (&mut self.mean, &mut self.square, &mut self.average);
            let (Some(mean), Some(square), Some(average)) =
                (state.0.get_mut(name), state.1.get_mut(name), state.2.get_mut(name))
            else {
                continue;
            };
            let count = gradient.len();
            let weights = &mut weights.values[..count];
            let mean = &mut mean.values[..count];
            let square = &mut square.values[..count];
            let average = &mut average.values[..count];
            Arch::new().dispatch(|| {
                for i in 0..count {
                    let gradient = gradient[i] * cut;
                    mean[i] += (1.0 - beta_1) * (gradient - mean[i]);
                    square[i] += (1.0 - beta_2) * (gradient * gradient - square[i]);
                    let moved = size * mean[i] / (square[i].sqrt() + epsilon);
                    weights[i] -= decay * weights[i] + moved;
                    average[i] += (1.0 - kept) * (weights[i] - average[i]);
                }
            });
        }
        length
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::transformer::Weights;
    use crate::train::config;

    fn steps() -> Steps {
        Steps { weight_decay: 0.0, clip: 1e9, ..config::tests::small().steps }
    }

    fn one(values: Vec<f32>) -> Tensors {
        Tensors::from([("x".to_owned(), Weights { shape: vec![values.len()], values })])
    }

    #[test]
    fn the_first_step_is_the_rate_in_the_gradients_direction() {
        let mut optimizer = Optimizer::new(one(vec![1.0, 1.0, 1.0]));
        let gradients = Gradients::from([("x".to_owned(), vec![5.0, -0.01, 0.0])]);
        let length = optimizer.step(&gradients, 0.1, &steps());
        assert!((length - 25.0001_f64.sqrt()).abs() < 1e-6);
        let values = &optimizer.weights["x"].values;
        for (found, wanted) in values.iter().zip([0.9, 1.1, 1.0]) {
            assert!((found - wanted).abs() < 1e-4, "{values:?}");
        }
    }

    #[test]
    fn it_finds_the_bottom_of_a_valley() {
        let mut optimizer = Optimizer::new(one(vec![3.0, -2.0]));
        for _ in 0..500 {
            let gradient = optimizer.weights["x"].values.iter().map(|x| 2.0 * (x - 1.0)).collect();
            optimizer.step(&Gradients::from([("x".to_owned(), gradient)]), 0.05, &steps());
        }
        assert!(optimizer.weights["x"].values.iter().all(|x| (x - 1.0).abs() < 0.01));
        assert!(optimizer.average["x"].values.iter().all(|x| (x - 1.0).abs() < 0.5));
    }

    #[test]
    fn a_gradient_that_is_not_finite_changes_nothing() {
        let mut optimizer = Optimizer::new(one(vec![3.0]));
        let before = optimizer.clone();
        let gradients = Gradients::from([("x".to_owned(), vec![f32::NAN])]);
        assert!(!optimizer.step(&gradients, 0.1, &steps()).is_finite());
        assert_eq!(optimizer, before);
    }
}
