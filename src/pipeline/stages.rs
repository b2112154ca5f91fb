//! The stages between clips and the record: the CNN, and what follows from its features.

use half::f16;
use ndarray::{Array2, ArrayView2};

use crate::codebook::Codebook;
use crate::error::{Error, Result};
use crate::graph::{Item, Map};
use crate::media::{CellFeatures, Clip, EncodedClip, IndexedClip, VisualWord};
use crate::picture::{Encoder, FrameFeatures};
use crate::text::JointSpace;
use crate::time::Timestamp;

/// Frames worth collecting for one run of the CNN on a processor: more make it no faster, and take
/// memory.
pub const DEFAULT_BATCH: u16 = 16;

/// Clips to features: the CNN on each frame, and the mean over the frames of a clip.
#[derive(Debug)]
pub struct Encode<'a> {
    pub encoder: &'a mut Encoder,
    /// Whether the picture's cells are kept.
    pub cells: bool,
    pub frames_per_clip: u16,
    /// Frames that the CNN takes at a time, at most.
    pub batch: u16,
}

impl Map for Encode<'_> {
    type In = Clip;
    type Out = EncodedClip;
    const NAME: &'static str = "encode";

    fn max_batch(&self) -> usize {
        usize::from(self.batch / self.frames_per_clip.max(1)).max(1)
    }

    fn map(&mut self, batch: Vec<Clip>) -> Vec<Result<EncodedClip>> {
        let whole_clips: Vec<Vec<u8>>;
        let mut inputs: Vec<&[u8]> = Vec::new();
        // Which inputs each clip is the mean of.
        let mut of_clips: Vec<Vec<usize>> = Vec::with_capacity(batch.len());
        if self.encoder.frames() > 1 {
            whole_clips = batch.iter().map(|clip| one_input(clip, self.encoder.frames())).collect();
            for input in &whole_clips {
                inputs.push(input);
                of_clips.push(vec![inputs.len() - 1]);
            }
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
        let wanted = self.encoder.input_bytes();
        let fits = |input: &&[u8]| input.len() == wanted;
        let fitting: Vec<&[u8]> = inputs.iter().copied().filter(fits).collect();
        let mut features = match self.encoder.encode(&fitting) {
            Ok(features) => features.into_iter(),
            // What fails the network itself fails all its streams.
            Err(error) => return batch.iter().map(|_| Err(again(&error))).collect(),
        };
        let misfit = || Error::internal("a picture of another size than the encoder's");
        let features: Vec<Result<FrameFeatures>> = inputs
            .iter()
            .map(|input| {
                let mut next = || features.next().unwrap_or_else(|| Err(misfit()));
                if fits(input) { next() } else { Err(misfit()) }
            })
            .collect();
        let clips = batch.into_iter().zip(of_clips);
        clips.map(|(clip, inputs)| self.encoded(clip, &inputs, &features)).collect()
    }
}

/// All frames of a clip as one input of `frames`; the last one stands in for those that are missing.
fn one_input(clip: &Clip, frames: usize) -> Vec<u8> {
    let last = clip.frames.last();
    let filled = clip.frames.iter().chain(last.into_iter().cycle()).take(frames);
    filled.flat_map(|frame| frame.rgb.iter().copied()).collect()
}

impl Encode<'_> {
    fn encoded(
        &self,
        clip: Clip,
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
        Ok(EncodedClip { head: clip.head, features, cells, classes, thumbnail: clip.thumbnail })
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
    /// `None` where clips get no visual words.
    pub codebook: Option<&'a Codebook>,
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
        let words = match self.codebook {
            Some(codebook) => words(codebook, &clip.features, &clip.cells)
                .map_err(|error| error.at(clip.head.span.start))?,
            None => Vec::new(),
        };
        let embedding = match self.space {
            Some(space) => halves(&space.picture(&clip.classes)?),
            None => Vec::new(),
        };
        Ok(IndexedClip {
            head: clip.head,
            words,
            features: halves(&clip.features),
            cells: CellFeatures::new(&clip.cells, clip.features.len()),
            embedding,
            thumbnail: Some(clip.thumbnail),
        })
    }
}

/// The words of the whole picture and of each cell.
pub(super) fn words(
    codebook: &Codebook,
    features: &[f32],
    cells: &[f32],
) -> Result<Vec<VisualWord>> {
    let dims = features.len();
    let rows = [features, cells].concat();
    let count = rows.len() / dims.max(1);
    let rows: Array2<f32> = Array2::from_shape_vec((count, dims), rows)
        .map_err(|cause| Error::internal("cells of another length").caused_by(cause))?;
    codebook.quantize(ArrayView2::from(&rows))
}

pub(super) fn halves(values: &[f32]) -> Vec<f16> {
    values.iter().copied().map(f16::from_f32).collect()
}

impl Item for EncodedClip {
    fn start(&self) -> Timestamp {
        self.head.span.start
    }

    fn bytes(&self) -> usize {
        (self.features.len() + self.cells.len() + self.classes.len()) * size_of::<f32>()
            + self.thumbnail.as_bytes().len()
    }
}

impl Item for IndexedClip {
    fn start(&self) -> Timestamp {
        self.head.span.start
    }

    fn bytes(&self) -> usize {
        (self.features.len() + self.embedding.len()) * size_of::<f16>()
            + self.cells.as_bytes().len()
            + self.words.len() * size_of::<u32>()
            + self.thumbnail.as_ref().map_or(0, |thumbnail| thumbnail.as_bytes().len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use crate::graph::conformance::check_map;
    use crate::media::{Change, ClipHead, Frame, Thumbnail};
    use crate::model::{Device, Models};
    use crate::pipeline::Pipeline;
    use crate::time::{Micros, Span};

    fn head(start_millis: i64) -> ClipHead {
        let start = Timestamp::from_millis(start_millis);
        let span = Span::new(start, start + Micros::from_millis(1_500));
        ClipHead { span, raw_pts: 0, frames: 1, shot_start: None }
    }

    fn thumbnail(number: u8) -> Thumbnail {
        Thumbnail::from_bytes(vec![0xff, 0xd8, 0xff, number, 0xff, 0xd9]).unwrap()
    }

    /// A clip of one picture, plain but for a stripe.
    fn clip(number: u8, bytes: usize) -> Clip {
        let start = Timestamp::from_millis(i64::from(number) * 1_500);
        let mut rgb = vec![number.wrapping_mul(37); bytes];
        rgb[..bytes / 3].fill(255 - number);
        let frame = Frame {
            target: start,
            pts: start,
            raw_pts: 0,
            width_px: 224,
            height_px: 224,
            aspect_ratio: 1.0,
            rgb: Arc::from(rgb),
            change: Change { strength: 0.0, at: start },
        };
        Clip { head: head(start.0 / 1_000), frames: vec![frame], thumbnail: thumbnail(number) }
    }

    fn near(a: &[f32], b: &[f32]) -> bool {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4)
    }

    /// Needs `cinelex setup`.
    #[test]
    fn encoding_keeps_the_graphs_rules() {
        let models = Models::open().unwrap();
        let manifest = models.manifest("efficientnet-lite0").unwrap();
        let encode = || {
            let encoder = Encoder::load(&models, &manifest, Device::Cpu, 1).unwrap();
            let encoder = Box::leak(Box::new(encoder));
            Encode { encoder, cells: true, frames_per_clip: 1, batch: DEFAULT_BATCH }
        };
        let bytes = encode().encoder.input_bytes();
        let streams = || vec![(0..4).map(|n| clip(n, bytes)).collect(), vec![clip(9, bytes)]];
        let same = |a: &EncodedClip, b: &EncodedClip| {
            near(&a.features, &b.features)
                && near(&a.cells, &b.cells)
                && near(&a.classes, &b.classes)
                && a.thumbnail == b.thumbnail
        };
        let outcomes = check_map(encode, streams, Some(clip(2, 30)), same);
        assert_eq!(outcomes[0].items[0].cells.len(), 9 * outcomes[0].items[0].features.len());
    }

    /// Needs `cinelex setup`.
    #[test]
    fn quantizing_keeps_the_graphs_rules() {
        let models = Models::open().unwrap();
        let pipeline = Pipeline::load("default", &models).unwrap();
        let codebook = Codebook::named(&models, &pipeline.codebook.unwrap()).unwrap();
        let encoder = models.manifest(&pipeline.encoder).unwrap();
        let text = models.manifest(&pipeline.text).unwrap();
        let space = JointSpace::open(&models, &encoder, &text, 1).unwrap();
        let dims = codebook.input_dims();
        let encoded = |number: i64, value: f32| {
            let value = |at: usize| value * ((at as i64 * 31 + number * 17) % 101) as f32 / 101.0;
            EncodedClip {
                head: head(number * 1_500),
                features: (0..dims).map(value).collect(),
                cells: (0..9 * dims).map(value).collect(),
                classes: (0..1_000).map(|at| value(at) / 500.0).collect(),
                thumbnail: thumbnail(number as u8),
            }
        };
        let streams = || vec![(0..40).map(|n| encoded(n, 1.0)).collect(), vec![encoded(7, 2.0)]];
        let outcomes = check_map(
            || Quantize { codebook: Some(&codebook), space: Some(&space) },
            streams,
            Some(encoded(20, f32::NAN)),
            |a, b| a == b,
        );
        let clip = &outcomes[0].items[0];
        assert_eq!(clip.words.len(), 10);
        let length: f32 = clip.embedding.iter().map(|x| x.to_f32() * x.to_f32()).sum();
        assert!((length - 1.0).abs() < 1e-2, "{length}");
    }
}
