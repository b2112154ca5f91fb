//! The stages between clips and the record: the CNN, and what follows from its features.

use half::f16;
use ndarray::{Array2, ArrayView2};

use crate::codebook::Codebook;
use crate::error::{Error, Result};
use crate::graph::{Item, Map};
use crate::media::{Clip, EncodedClip, IndexedClip};
use crate::picture::{Encoder, FrameFeatures};
use crate::text::JointSpace;
use crate::time::Timestamp;

/// Frames worth collecting for one run of the CNN: more make it no faster, and take memory.
const FRAMES_A_RUN: usize = 16;

/// Clips to features: the CNN on each frame, and the mean over the frames of a clip.
#[derive(Debug)]
pub struct Encode {
    pub encoder: Encoder,
    /// Whether the picture's cells are kept.
    pub cells: bool,
    pub frames_per_clip: u16,
}

impl Map for Encode {
    type In = Clip;
    type Out = EncodedClip;
    const NAME: &'static str = "encode";

    fn max_batch(&self) -> usize {
        (FRAMES_A_RUN / usize::from(self.frames_per_clip.max(1))).max(1)
    }

    fn map(&mut self, batch: Vec<Clip>) -> Vec<Result<EncodedClip>> {
        let whole_clips: Vec<Vec<u8>>;
        let mut inputs: Vec<&[u8]> = Vec::new();
        // Which inputs each clip is the mean of.
        let mut of_clips: Vec<Vec<usize>> = Vec::with_capacity(batch.len());
        if self.encoder.frames() > 1 {
            whole_clips = batch.iter().map(|clip| one_input(clip, self.encoder.frames())).collect();
            inputs.extend(whole_clips.iter().map(Vec::as_slice));
            of_clips.extend((0..batch.len()).map(|clip| vec![clip]));
        } else {
            for clip in &batch {
                let mut of_clip = Vec::with_capacity(clip.frames.len());
                for frame in &clip.frames {
                    // A picture that stays on display is one picture, however many its targets.
                    if inputs.last().is_none_or(|last| !std::ptr::eq(*last, &*frame.rgb)) {
                        inputs.push(&frame.rgb);
                    }
                    of_clip.push(inputs.len() - 1);
                }
                of_clips.push(of_clip);
            }
        }
        match self.encoder.encode(&inputs) {
            Ok(features) => batch
                .iter()
                .zip(of_clips)
                .map(|(clip, inputs)| self.encoded(clip, &inputs, &features))
                .collect(),
            // What fails the whole batch fails all its streams.
            Err(error) => batch.iter().map(|_| Err(again(&error))).collect(),
        }
    }
}

/// All frames of a clip as one input of `frames`; the last one stands in for those that are missing.
fn one_input(clip: &Clip, frames: usize) -> Vec<u8> {
    let last = clip.frames.last();
    let filled = clip.frames.iter().chain(last.into_iter().cycle()).take(frames);
    filled.flat_map(|frame| frame.rgb.iter().copied()).collect()
}

impl Encode {
    fn encoded(
        &self,
        clip: &Clip,
        inputs: &[usize],
        features: &[Result<FrameFeatures>],
    ) -> Result<EncodedClip> {
        let mut mean = Mean::new();
        for &input in inputs {
            match features.get(input) {
                Some(Ok(features)) => mean.add(features, self.cells),
                Some(Err(error)) => return Err(again(error).at(clip.head.span.start)),
                None => return Err(Error::internal("the encoder left out an input")),
            }
        }
        let FrameFeatures { features, cells, classes } = mean.finish();
        Ok(EncodedClip { head: clip.head, features, cells, classes })
    }
}

/// The same error for another stream.
fn again(error: &Error) -> Error {
    Error::new(error.kind(), error.reason())
}

/// The mean of several frames' features.
struct Mean {
    sum: FrameFeatures,
    count: u32,
}

impl Mean {
    fn new() -> Self {
        let sum = FrameFeatures { features: Vec::new(), cells: Vec::new(), classes: Vec::new() };
        Mean { sum, count: 0 }
    }

    fn add(&mut self, frame: &FrameFeatures, cells: bool) {
        self.count += 1;
        add(&mut self.sum.features, &frame.features);
        add(&mut self.sum.classes, &frame.classes);
        if cells {
            add(&mut self.sum.cells, &frame.cells);
        }
    }

    fn finish(mut self) -> FrameFeatures {
        if self.count > 1 {
            let share = 1.0 / self.count as f32;
            let FrameFeatures { features, cells, classes } = &mut self.sum;
            for value in features.iter_mut().chain(cells).chain(classes) {
                *value *= share;
            }
        }
        self.sum
    }
}

fn add(sum: &mut Vec<f32>, values: &[f32]) {
    if sum.is_empty() {
        sum.extend_from_slice(values);
    } else {
        for (sum, value) in sum.iter_mut().zip(values) {
            *sum += value;
        }
    }
}

/// Features to visual words and to an embedding.
#[derive(Debug)]
pub struct Quantize<'a> {
    pub codebook: &'a Codebook,
    /// `None` where the encoder tells no classes apart, so that its pictures find no place among
    /// words.
    pub space: Option<&'a JointSpace>,
}

impl Map for Quantize<'_> {
    type In = EncodedClip;
    type Out = IndexedClip;
    const NAME: &'static str = "quantize";

    fn max_batch(&self) -> usize {
        32
    }

    fn map(&mut self, batch: Vec<EncodedClip>) -> Vec<Result<IndexedClip>> {
        batch.into_iter().map(|clip| self.indexed(clip)).collect()
    }
}

impl Quantize<'_> {
    fn indexed(&self, clip: EncodedClip) -> Result<IndexedClip> {
        let dims = clip.features.len();
        let mut rows = clip.features.clone();
        rows.extend_from_slice(&clip.cells);
        let count = rows.len() / dims.max(1);
        let rows: Array2<f32> = Array2::from_shape_vec((count, dims), rows)
            .map_err(|cause| Error::internal("cells of another length").caused_by(cause))?;
        let words = self
            .codebook
            .quantize(ArrayView2::from(&rows))
            .map_err(|error| error.at(clip.head.span.start))?;
        let embedding = match self.space {
            Some(space) => halves(&space.picture(&clip.classes)?),
            None => Vec::new(),
        };
        Ok(IndexedClip { head: clip.head, words, features: halves(&clip.features), embedding })
    }
}

fn halves(values: &[f32]) -> Vec<f16> {
    values.iter().copied().map(f16::from_f32).collect()
}

impl Item for EncodedClip {
    fn start(&self) -> Timestamp {
        self.head.span.start
    }

    fn bytes(&self) -> usize {
        (self.features.len() + self.cells.len() + self.classes.len()) * size_of::<f32>()
    }
}

impl Item for IndexedClip {
    fn start(&self) -> Timestamp {
        self.head.span.start
    }

    fn bytes(&self) -> usize {
        (self.features.len() + self.embedding.len()) * size_of::<f16>()
            + self.words.len() * size_of::<u32>()
    }
}
