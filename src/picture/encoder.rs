//! The CNN: pictures to features, the features of the map's cells, and class probabilities.
//! Everything about its input and output comes from the model's manifest.

use ndarray::{ArrayD, Axis, IxDyn};

use crate::error::{Error, Result};
use crate::model::{Device, EncoderSpec, Manifest, Models, Session, Tensor};

/// Rows and columns of the cells: 3x3.
pub const CELLS: usize = 9;

/// Pictures are given to the network so many at a time, which bounds its memory.
const LARGEST_BATCH: usize = 32;

/// What the network says about one input.
#[derive(Debug, Clone, PartialEq)]
pub struct FrameFeatures {
    /// Pooled over the picture: `dim` values.
    pub features: Vec<f32>,
    /// The 3x3 cells, row by row: `9 * dim` values; empty where the encoder gives none.
    pub cells: Vec<f32>,
    /// Class probabilities; empty where the encoder has no classes.
    pub classes: Vec<f32>,
}

/// A network ready to encode.
#[derive(Debug)]
pub struct Encoder {
    session: Session,
    spec: EncoderSpec,
    preprocess: Preprocess,
    model: String,
}

impl Encoder {
    /// Loads the encoder; `threads` work on one batch.
    ///
    /// # Errors
    /// `NotFound` where the model is not set up; `InvalidInput` where the graph is not what the
    /// manifest says.
    pub fn load(
        models: &Models,
        manifest: &Manifest,
        device: Device,
        threads: usize,
    ) -> Result<Encoder> {
        let spec = manifest.encoder()?.clone();
        let session = models.session(manifest, device, threads)?;
        let preprocess = Preprocess::new(&spec);
        let encoder = Encoder { session, spec, preprocess, model: manifest.id.clone() };
        encoder.check_graph()?;
        Ok(encoder)
    }

    /// Width and height that pictures must have.
    pub fn input_px(&self) -> (u32, u32) {
        (self.spec.width_px, self.spec.height_px)
    }

    /// Bytes of one input: [`Encoder::frames`] pictures of packed RGB.
    pub fn input_bytes(&self) -> usize {
        self.preprocess.input_bytes()
    }

    /// Frames that make one input.
    pub fn frames(&self) -> usize {
        self.spec.frames as usize
    }

    /// Length of the features.
    pub fn dim(&self) -> usize {
        self.spec.features.dim
    }

    /// Where it runs: `Cpu` or `Cuda`.
    pub fn device(&self) -> Device {
        self.session.device()
    }

    /// Encodes inputs of packed RGB, 8 bits a channel, rows without padding, each of
    /// [`Encoder::frames`] frames one after the other. Results are in the same order and don't
    /// depend on how many are given at a time.
    ///
    /// # Errors
    /// `InvalidInput` where an input has the wrong size; the inner `Corrupt` where the network's
    /// answer to that one input is not finite.
    pub fn encode(&mut self, rgb: &[&[u8]]) -> Result<Vec<Result<FrameFeatures>>> {
        let wanted = self.preprocess.input_bytes();
        if let Some(wrong) = rgb.iter().find(|input| input.len() != wanted) {
            return Err(Error::invalid_input(format!(
                "model {} wants {wanted} bytes of RGB ({}x{}, {} frame(s)), not {}",
                self.model,
                self.spec.width_px,
                self.spec.height_px,
                self.spec.frames,
                wrong.len()
            )));
        }
        let mut all = Vec::with_capacity(rgb.len());
        for batch in rgb.chunks(LARGEST_BATCH) {
            self.encode_batch(batch, &mut all)?;
        }
        Ok(all)
    }

    fn encode_batch(
        &mut self,
        batch: &[&[u8]],
        all: &mut Vec<Result<FrameFeatures>>,
    ) -> Result<()> {
        let input = Tensor::f32(self.preprocess.run(batch));
        let mut outputs = self.session.run(&[(&self.spec.input, input)])?;
        let (dim, model) = (self.spec.features.dim, &self.model);
        let mut take = |name: &str, shape: &[usize]| -> Result<ArrayD<f32>> {
            let output = outputs.remove(name).ok_or_else(|| missing_output(model, name))?;
            if output.shape().split_first() != Some((&batch.len(), shape)) {
                return Err(Error::invalid_input(format!(
                    "model {model}: output {name} has the shape {:?}, where the manifest says \
                     [{}, {shape:?}]",
                    output.shape(),
                    batch.len()
                )));
            }
            Ok(output)
        };
        let features = take(&self.spec.features.name, &[dim])?;
        let cells = self.spec.cells.as_ref().map(|name| take(name, &[CELLS, dim])).transpose()?;
        let classes = self.spec.classes.as_ref();
        let classes =
            classes.map(|classes| take(&classes.output.name, &[classes.output.dim])).transpose()?;
        let row = |array: &ArrayD<f32>, item: usize| -> Vec<f32> {
            array.index_axis(Axis(0), item).iter().copied().collect()
        };
        let row_or_none = |array: &Option<ArrayD<f32>>, item: usize| {
            array.as_ref().map_or_else(Vec::new, |array| row(array, item))
        };
        all.extend((0..batch.len()).map(|item| {
            let encoded = FrameFeatures {
                features: row(&features, item),
                cells: row_or_none(&cells, item),
                classes: row_or_none(&classes, item),
            };
            encoded.is_finite().then_some(encoded).ok_or_else(|| {
                Error::corrupt(format!("model {model} gave features that are not finite"))
            })
        }));
        Ok(())
    }

    /// Holds the graph's own inputs and outputs against the manifest, so that a wrong manifest is
    /// refused before anything is decoded.
    fn check_graph(&self) -> Result<()> {
        let spec = &self.spec;
        let inputs = self.session.inputs();
        let [(name, _)] = &inputs[..] else {
            let names: Vec<&str> = inputs.iter().map(|(name, _)| name.as_str()).collect();
            return Err(Error::invalid_input(format!(
                "model {}: the graph has the inputs {}, but one is wanted",
                self.model,
                names.join(", ")
            )));
        };
        if *name != spec.input {
            return Err(Error::invalid_input(format!(
                "model {}: the graph's input is named {name}, not {}",
                self.model, spec.input
            )));
        }
        let mut wanted = vec![(&spec.features.name, vec![spec.features.dim])];
        wanted.extend(spec.cells.as_ref().map(|cells| (cells, vec![CELLS, spec.features.dim])));
        let classes = spec.classes.as_ref().map(|classes| &classes.output);
        wanted.extend(classes.map(|output| (&output.name, vec![output.dim])));
        let outputs = self.session.outputs();
        for (name, shape) in wanted {
            let (_, found) = outputs
                .iter()
                .find(|(output, _)| output == name)
                .ok_or_else(|| missing_output(&self.model, name))?;
            let fits = found.len() == shape.len() + 1
                && found[1..]
                    .iter()
                    .zip(&shape)
                    .all(|(&found, &wanted)| found < 0 || found == wanted as i64);
            if !fits {
                return Err(Error::invalid_input(format!(
                    "model {}: output {name} has the shape {found:?}, where the manifest says \
                     {shape:?} for each picture",
                    self.model
                )));
            }
        }
        Ok(())
    }
}

fn missing_output(model: &str, name: &str) -> Error {
    Error::invalid_input(format!("model {model}: the graph has no output {name}"))
}

impl FrameFeatures {
    fn is_finite(&self) -> bool {
        let all = [&self.features, &self.cells, &self.classes];
        all.iter().all(|values| values.iter().all(|value| value.is_finite()))
    }
}

/// Packed RGB bytes to the network's input tensor.
#[derive(Debug)]
pub(super) struct Preprocess {
    frames: usize,
    pixels: usize,
    /// The input's shape without the batch axis, in the manifest's order.
    shape: Vec<usize>,
    /// Steps in the tensor from a frame, row, column or channel to the next.
    frame_step: usize,
    row_step: usize,
    column_step: usize,
    channel_step: usize,
    columns: usize,
    /// For each channel and each of its 256 values, what enters the network.
    values: [[f32; 256]; 3],
}

impl Preprocess {
    pub(super) fn new(spec: &EncoderSpec) -> Preprocess {
        let (rows, columns) = (spec.height_px as usize, spec.width_px as usize);
        let frames = spec.frames as usize;
        let axes: Vec<char> = spec.layout.chars().skip(1).collect();
        let length = |axis| match axis {
            't' => frames,
            'c' => 3,
            'h' => rows,
            _ => columns,
        };
        let shape: Vec<usize> = axes.iter().map(|&axis| length(axis)).collect();
        let step = |wanted| {
            let after = axes.iter().position(|&axis| axis == wanted).map_or(0, |place| place + 1);
            shape[after..].iter().product()
        };
        let value =
            |channel: usize, x: usize| (x as f32 - spec.mean[channel]) / spec.scale[channel];
        Preprocess {
            frames,
            pixels: rows * columns,
            frame_step: step('t'),
            row_step: step('h'),
            column_step: step('w'),
            channel_step: step('c'),
            columns,
            values: std::array::from_fn(|channel| std::array::from_fn(|x| value(channel, x))),
            shape,
        }
    }

    pub(super) fn input_bytes(&self) -> usize {
        self.frames * self.pixels * 3
    }

    /// Each input must have [`Preprocess::input_bytes`].
    pub(super) fn run(&self, inputs: &[&[u8]]) -> ArrayD<f32> {
        let values_each = self.input_bytes();
        let mut tensor = vec![0.0; inputs.len() * values_each];
        for (input, tensor) in inputs.iter().zip(tensor.chunks_exact_mut(values_each)) {
            for (frame, rgb) in input.chunks_exact(self.pixels * 3).enumerate() {
                for (row, rgb) in rgb.chunks_exact(self.columns * 3).enumerate() {
                    let start = frame * self.frame_step + row * self.row_step;
                    for (column, pixel) in rgb.chunks_exact(3).enumerate() {
                        let start = start + column * self.column_step;
                        for (channel, &x) in pixel.iter().enumerate() {
                            tensor[start + channel * self.channel_step] =
                                self.values[channel][usize::from(x)];
                        }
                    }
                }
            }
        }
        let mut shape = vec![inputs.len()];
        shape.extend(&self.shape);
        ArrayD::from_shape_vec(IxDyn(&shape), tensor).expect("the tensor has its shape's length")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::OutputSpec;
    use proptest::prelude::*;

    fn spec(layout: &str, width_px: u32, height_px: u32, frames: u32) -> EncoderSpec {
        EncoderSpec {
            width_px,
            height_px,
            frames,
            mean: [1.0, 2.0, 3.0],
            scale: [2.0, 4.0, 8.0],
            layout: layout.to_owned(),
            input: "x".to_owned(),
            features: OutputSpec { name: "y".to_owned(), dim: 1 },
            cells: None,
            classes: None,
        }
    }

    proptest! {
        #[test]
        fn each_byte_lands_at_its_place_in_any_layout(
            layout in prop::sample::select(vec![
                "nchw", "nhwc", "ncwh", "ntchw", "ncthw", "nthwc", "nhwtc",
            ]),
            width in 1usize..6, height in 1usize..6, frames in 1usize..4, seed in any::<u8>(),
        ) {
            let frames = if layout.contains('t') { frames } else { 1 };
            let spec = spec(layout, width as u32, height as u32, frames as u32);
            let preprocess = Preprocess::new(&spec);
            let byte = |i: usize| (i as u8).wrapping_mul(31).wrapping_add(seed);
            let input: Vec<u8> = (0..frames * height * width * 3).map(byte).collect();
            let tensor = preprocess.run(&[&input, &input]);
            for t in 0..frames { for h in 0..height { for w in 0..width { for c in 0..3 {
                let index: Vec<usize> = layout.chars().map(|axis| match axis {
                    'n' => 1, 't' => t, 'c' => c, 'h' => h, _ => w,
                }).collect();
                let byte = input[((t * height + h) * width + w) * 3 + c];
                let wanted = (f32::from(byte) - spec.mean[c]) / spec.scale[c];
                prop_assert_eq!(tensor[&index[..]], wanted);
            }}}}
        }
    }
}
