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

/// Most frames in one run of the CNN: more make it no faster, and take memory.
const FRAMES_A_RUN: usize = 16;

/// Clips to features: the CNN on each frame, and the mean over the frames of a clip.
#[derive(Debug)]
pub struct Encode {
    pub encoder: Encoder,
    /// Whether the picture's cells are kept.
    pub cells: bool,
    /// Frames in one clip, for the size of batches.
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
        // A picture that stays on display is one picture, whatever the number of its targets.
        let mut pictures: Vec<&[u8]> = Vec::new();
        let mut of_frames: Vec<Vec<usize>> = Vec::with_capacity(batch.len());
        for clip in &batch {
            let mut of_clip = Vec::with_capacity(clip.frames.len());
            for frame in &clip.frames {
                if pictures.last().is_none_or(|last| !std::ptr::eq(*last, &*frame.rgb)) {
                    pictures.push(&frame.rgb);
                }
                of_clip.push(pictures.len() - 1);
            }
            of_frames.push(of_clip);
        }
        let mut features = Vec::with_capacity(pictures.len());
        for run in pictures.chunks(FRAMES_A_RUN) {
            features.extend(self.encoder.encode(run));
        }
        let clips = batch.iter().zip(of_frames);
        clips.map(|(clip, frames)| self.encoded(clip, &frames, &features)).collect()
    }
}

impl Encode {
    fn encoded(
        &self,
        clip: &Clip,
        frames: &[usize],
        features: &[Result<FrameFeatures>],
    ) -> Result<EncodedClip> {
        let mut mean = Mean::default();
        for &frame in frames {
            match features.get(frame) {
                Some(Ok(features)) => mean.add(features, self.cells),
                Some(Err(error)) => {
                    return Err(Error::new(error.kind(), error.reason())
                        .at(clip.head.span.start));
                }
                None => return Err(Error::internal("the encoder left out a frame")),
            }
        }
        let FrameFeatures { features, cells, classes } = mean.finish();
        Ok(EncodedClip { head: clip.head, features, cells, classes })
    }
}

/// The mean of several frames' features.
#[derive(Default)]
struct Mean {
    sum: FrameFeatures,
    count: u32,
}

impl Mean {
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
