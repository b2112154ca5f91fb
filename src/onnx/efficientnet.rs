//! EfficientNet-Lite as an ONNX graph.
//!
//! Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks" (2019);
//! the Lite form has no squeeze-and-excitation, uses ReLU6, and scales neither stem nor head.
//! Batch normalization is folded into the convolutions; padding is TensorFlow's SAME.

use super::build::{Attribute, GraphBuilder, batch_of};
use super::checkpoint::Checkpoint;
use super::quantize::{self, Ranges};
use crate::error::{Error, Result};
use crate::model::EncoderSpec;

/// Of the batch normalizations of the checkpoints.
const EPSILON: f64 = 1e-3;

/// One stage of the unscaled network: blocks, kernel, stride of the first block, expansion and
/// output channels.
const STAGES: [(usize, usize, usize, usize, usize); 7] = [
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
];
const STEM_CHANNELS: usize = 32;
/// The stem and so many blocks are not rounded: 8 bits would make them no faster, since they have few channels,
/// and a third of what rounding adds to the features' error would be theirs.
const NOT_ROUNDED: usize = 1;
const HEAD_CHANNELS: usize = 1280;

/// A square map of features: `[N, channels, side, side]`.
#[derive(Debug, Clone)]
struct Map {
    name: String,
    channels: usize,
    height: usize,
    width: usize,
    /// The width of a step, where the map was rounded.
    scale: f32,
}

/// What kind of graph is to be written.
#[derive(Debug, Clone, Copy)]
pub(super) enum Form<'a> {
    Float,
    /// Every activation is an output too, so that its range can be observed.
    Observed,
    /// With activations rounded to 8 bits over these ranges, and weights to 8 bits, but for the first blocks.
    Rounded(&'a Ranges),
}

/// A convolution with its batch normalization.
struct Layer<'a> {
    /// Name of its output in the graph.
    output: String,
    /// Names in the checkpoint.
    conv: String,
    norm: String,
    channels: usize,
    kernel: usize,
    stride: usize,
    /// Each channel is convolved on its own.
    depthwise: bool,
    relu6: bool,
    input: &'a Map,
}

struct Network<'a> {
    graph: GraphBuilder,
    checkpoint: &'a mut Checkpoint,
    form: Form<'a>,
}

/// Writes the network as an ONNX file, with the outputs that `spec` names. Width and depth are
/// the multipliers of the network's size.
///
/// # Errors
/// `Corrupt` where the checkpoint lacks a tensor, has another shape or one too many;
/// `InvalidInput` where `spec` asks for what this network has not.
pub(super) fn convert(
    checkpoint: &mut Checkpoint,
    spec: &EncoderSpec,
    width: f64,
    depth: f64,
    form: Form<'_>,
) -> Result<Vec<u8>> {
    check_spec(spec)?;
    let mut graph = GraphBuilder::new("efficientnet-lite");
    let (rows, columns) = (spec.height_px as usize, spec.width_px as usize);
    let image = graph.input_f32(&spec.input, batch_of(&[3, rows, columns]));
    graph.f32("zero", &[], &[0.0]);
    graph.f32("six", &[], &[6.0]);
    let at_first = if let Form::Rounded(_) = form { Form::Float } else { form };
    let mut network = Network { graph, checkpoint, form: at_first };
    let mut map = Map { name: image, channels: 3, height: rows, width: columns, scale: 0.0 };

    map = network.conv(&Layer {
        output: "stem".to_owned(),
        conv: "_conv_stem".to_owned(),
        norm: "_bn0".to_owned(),
        channels: STEM_CHANNELS,
        kernel: 3,
        stride: 2,
        depthwise: false,
        relu6: true,
        input: &map,
    })?;
    let mut block = 0;
    for (stage, &(blocks, kernel, stride, expansion, channels)) in STAGES.iter().enumerate() {
        let scaled = stage > 0 && stage + 1 < STAGES.len();
        let blocks = if scaled { (blocks as f64 * depth).ceil() as usize } else { blocks };
        for place in 0..blocks {
            let stride = if place == 0 { stride } else { 1 };
            let channels = scaled_channels(channels, width);
            map = network.block(block, &map, kernel, stride, expansion, channels)?;
            block += 1;
            if let Form::Rounded(_) = form
                && block == NOT_ROUNDED
            {
                network.form = form;
                map = network.activation(map)?;
            }
        }
    }
    map = network.conv(&Layer {
        output: "head".to_owned(),
        conv: "_conv_head".to_owned(),
        norm: "_bn1".to_owned(),
        channels: HEAD_CHANNELS,
        kernel: 1,
        stride: 1,
        depthwise: false,
        relu6: true,
        input: &map,
    })?;
    network.outputs(&map, spec)?;
    let unused = network.checkpoint.rest().find(|name| !name.ends_with("num_batches_tracked"));
    if let Some(unused) = unused {
        return Err(Error::corrupt(format!(
            "the checkpoint has a tensor {unused} that this network has no place for: width, \
             depth or checkpoint is wrong in the manifest"
        )));
    }
    Ok(network.graph.finish())
}

/// Holds what the manifest asks for against what the network is.
fn check_spec(spec: &EncoderSpec) -> Result<()> {
    let wrong = |why: &str| {
        Err(Error::invalid_input(format!("EfficientNet-Lite {why}: correct the manifest")))
    };
    if spec.layout != "nchw" || spec.frames != 1 {
        return wrong("takes single pictures with layout = \"nchw\"");
    }
    if spec.features.dim != HEAD_CHANNELS {
        return wrong(&format!("gives {HEAD_CHANNELS} features"));
    }
    // Below this, the last map has no 3x3 cells.
    if spec.width_px < 96 || spec.height_px < 96 {
        return wrong("needs pictures of at least 96 px");
    }
    Ok(())
}

/// Channels times `width`, as a multiple of 8 that is not more than a tenth below.
fn scaled_channels(channels: usize, width: f64) -> usize {
    let wanted = channels as f64 * width;
    let rounded = ((wanted + 4.0) as usize / 8 * 8).max(8);
    if (rounded as f64) < 0.9 * wanted { rounded + 8 } else { rounded }
}

/// Padding before and after an axis so that the output has `ceil(size / stride)`: TensorFlow's
/// SAME, which puts the odd one after.
fn same_padding(size: usize, kernel: usize, stride: usize) -> (i64, i64) {
    let output = size.div_ceil(stride);
    let total = ((output - 1) * stride + kernel).saturating_sub(size);
    ((total / 2) as i64, (total - total / 2) as i64)
}

impl Network<'_> {
    /// An inverted residual block: expand, convolve each channel, project, add the input.
    fn block(
        &mut self,
        index: usize,
        input: &Map,
        kernel: usize,
        stride: usize,
        expansion: usize,
        channels: usize,
    ) -> Result<Map> {
        let output = |part: &str| format!("blocks.{index}.{part}");
        let name = |part: &str| format!("_blocks.{index}.{part}");
        let mut map = input.clone();
        if expansion > 1 {
            map = self.conv(&Layer {
                output: output("expand"),
                conv: name("_expand_conv"),
                norm: name("_bn0"),
                channels: input.channels * expansion,
                kernel: 1,
                stride: 1,
                depthwise: false,
                relu6: true,
                input: &map,
            })?;
        }
        map = self.conv(&Layer {
            output: output("depthwise"),
            conv: name("_depthwise_conv"),
            norm: name("_bn1"),
            channels: map.channels,
            kernel,
            stride,
            depthwise: true,
            relu6: true,
            input: &map,
        })?;
        map = self.conv(&Layer {
            output: output("project"),
            conv: name("_project_conv"),
            norm: name("_bn2"),
            channels,
            kernel: 1,
            stride: 1,
            depthwise: false,
            relu6: false,
            input: &map,
        })?;
        if stride == 1 && channels == input.channels {
            map.name = self.graph.node("Add", &output("sum"), &[&map.name, &input.name], &[]);
            map = self.activation(map)?;
        }
        Ok(map)
    }

    /// Does to an activation what the form of the graph asks for.
    fn activation(&mut self, mut map: Map) -> Result<Map> {
        match self.form {
            Form::Float => (),
            Form::Observed => {
                let dims = batch_of(&[map.channels, map.height, map.width]);
                self.graph.output_f32(&map.name, dims);
            }
            Form::Rounded(ranges) => {
                let range = ranges.of(&map.name)?;
                let rounded = quantize::activation(&mut self.graph, &map.name, range);
                (map.name, map.scale) = (rounded.name, rounded.scale);
            }
        }
        Ok(map)
    }

    fn conv(&mut self, layer: &Layer<'_>) -> Result<Map> {
        let input = layer.input;
        let (weights, biases) = self.folded(layer)?;
        let group = if layer.depthwise { input.channels } else { 1 };
        let shape = [layer.channels, input.channels / group, layer.kernel, layer.kernel];
        let (weight, bias) = match self.form {
            Form::Rounded(_) => quantize::weights(
                &mut self.graph,
                &layer.output,
                &shape,
                &weights,
                &biases,
                input.scale,
            ),
            Form::Float | Form::Observed => (
                self.graph.f32(&format!("{}.weight", layer.output), &shape, &weights),
                self.graph.f32(&format!("{}.bias", layer.output), &[layer.channels], &biases),
            ),
        };
        let (top, bottom) = same_padding(input.height, layer.kernel, layer.stride);
        let (left, right) = same_padding(input.width, layer.kernel, layer.stride);
        let attributes = [
            ("group", Attribute::Int(group as i64)),
            ("kernel_shape", Attribute::Ints(&[layer.kernel as i64; 2])),
            ("pads", Attribute::Ints(&[top, left, bottom, right])),
            ("strides", Attribute::Ints(&[layer.stride as i64; 2])),
        ];
        let conv =
            if layer.relu6 { format!("{}.conv", layer.output) } else { layer.output.clone() };
        let mut name = self.graph.node("Conv", &conv, &[&input.name, &weight, &bias], &attributes);
        if layer.relu6 {
            name = self.graph.node("Clip", &layer.output, &[&name, "zero", "six"], &[]);
        }
        self.activation(Map {
            name,
            channels: layer.channels,
            height: input.height.div_ceil(layer.stride),
            width: input.width.div_ceil(layer.stride),
            scale: 0.0,
        })
    }

    /// Weights and biases of a convolution with its batch normalization folded in.
    fn folded(&mut self, layer: &Layer<'_>) -> Result<(Vec<f32>, Vec<f32>)> {
        let channels = layer.channels;
        let inputs = if layer.depthwise { 1 } else { layer.input.channels };
        let shape = [channels, inputs, layer.kernel, layer.kernel];
        let mut weights = self.checkpoint.take(&format!("{}.weight", layer.conv), &shape)?;
        let mut norm =
            |part: &str| self.checkpoint.take(&format!("{}.{part}", layer.norm), &[channels]);
        let (gammas, betas) = (norm("weight")?, norm("bias")?);
        let (means, variances) = (norm("running_mean")?, norm("running_var")?);
        let mut biases = Vec::with_capacity(channels);
        for (channel, weights) in
            weights.chunks_exact_mut(inputs * layer.kernel * layer.kernel).enumerate()
        {
            let deviation = (f64::from(variances[channel]) + EPSILON).sqrt();
            let factor = f64::from(gammas[channel]) / deviation;
            for weight in weights {
                *weight = (f64::from(*weight) * factor) as f32;
            }
            let bias = f64::from(betas[channel]) - f64::from(means[channel]) * factor;
            biases.push(bias as f32);
        }
        if weights.iter().chain(&biases).any(|value| !value.is_finite()) {
            return Err(Error::corrupt(format!(
                "the checkpoint's {} does not give finite weights",
                layer.norm
            )));
        }
        Ok((weights, biases))
    }

    /// Features: the map's mean. Cells: means of its 3x3 parts, which overlap where the side is no
    /// multiple of 3. Classes: a linear layer on the features and softmax.
    fn outputs(&mut self, map: &Map, spec: &EncoderSpec) -> Result<()> {
        let features = &spec.features.name;
        let pooled = self.graph.node("GlobalAveragePool", "pooled", &[&map.name], &[]);
        self.graph.node("Flatten", features, &[&pooled], &[("axis", Attribute::Int(1))]);
        self.graph.output_f32(features, batch_of(&[HEAD_CHANNELS]));
        if let Some(cells) = &spec.cells {
            let strides = [map.height / 3, map.width / 3];
            let kernel = [map.height - 2 * strides[0], map.width - 2 * strides[1]];
            let attributes = [
                ("kernel_shape", Attribute::Ints(&kernel.map(|size| size as i64))),
                ("strides", Attribute::Ints(&strides.map(|size| size as i64))),
            ];
            self.graph.node("AveragePool", "cell_map", &[&map.name], &attributes);
            let shape = self.graph.i64("cell_shape", &[3], &[0, HEAD_CHANNELS as i64, 9]);
            self.graph.node("Reshape", "cell_columns", &["cell_map", &shape], &[]);
            let order = [("perm", Attribute::Ints(&[0, 2, 1]))];
            self.graph.node("Transpose", cells, &["cell_columns"], &order);
            self.graph.output_f32(cells, batch_of(&[9, HEAD_CHANNELS]));
        }
        let classes = self.checkpoint.shape("_fc.bias").map_or(0, |shape| shape[0]);
        let weights = self.checkpoint.take("_fc.weight", &[classes, HEAD_CHANNELS])?;
        let biases = self.checkpoint.take("_fc.bias", &[classes])?;
        if let Some(spec) = spec.classes.as_ref().map(|classes| &classes.output) {
            if spec.dim != classes {
                return Err(Error::invalid_input(format!(
                    "the checkpoint has {classes} classes, where the manifest says {}",
                    spec.dim
                )));
            }
            let weight = self.graph.f32("classes.weight", &[classes, HEAD_CHANNELS], &weights);
            let bias = self.graph.f32("classes.bias", &[classes], &biases);
            let by_rows = [("transB", Attribute::Int(1))];
            self.graph.node("Gemm", "logits", &[features, &weight, &bias], &by_rows);
            let last = [("axis", Attribute::Int(-1))];
            self.graph.node("Softmax", &spec.name, &["logits"], &last);
            self.graph.output_f32(&spec.name, batch_of(&[classes]));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn channels_are_scaled_as_in_lite2() {
        let scaled = STAGES.map(|stage| scaled_channels(stage.4, 1.1));
        assert_eq!(scaled, [16, 24, 48, 88, 120, 208, 352]);
    }

    proptest! {
        #[test]
        fn same_padding_gives_the_rounded_up_size(
            size in 1usize..600, kernel in prop::sample::select(vec![1usize, 3, 5]),
            stride in 1usize..3,
        ) {
            let (before, after) = same_padding(size, kernel, stride);
            prop_assert!(before <= after && after <= before + 1);
            let padded = size + (before + after) as usize;
            prop_assert_eq!((padded - kernel) / stride + 1, size.div_ceil(stride));
        }
    }
}
