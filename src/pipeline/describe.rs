//! What a trained transformer makes of segments: captions, embeddings, alignments.

use std::num::NonZeroUsize;

use half::f16;
use ndarray::Array1;

use crate::codebook::Codebook;
use crate::error::{Error, Result};
use crate::library::{SeenClip, SegmentReading};
use crate::model::{CaptionerSpec, Manifest, Models};
use crate::onnx::transformer::{Network, Precision};
use crate::text::pieces::UNKNOWN;
use crate::transformer::{Captioner, Fitting, Segment, Trained, VisualToken, Writing};

/// Segments that are read and written about at a time.
pub(super) const AT_A_TIME: usize = 8;

/// A captioner ready to run, and how it is used.
#[derive(Debug)]
pub struct Describer {
    pub(super) spec: CaptionerSpec,
    pub(super) fitting: Fitting,
    network: Network,
    captioner: Captioner,
}

/// A segment that is to be described.
#[derive(Debug)]
pub(super) struct Described<'a> {
    /// What was said, where the network may know the language, and its embedding.
    pub said: Option<(&'a str, &'a [f16])>,
    /// In order of start; at most [`Describer::clips`].
    pub clips: Vec<SeenClip>,
}

impl Describer {
    /// Loads the network of a captioner's manifest, to be used `side_by_side`.
    ///
    /// # Errors
    /// `NotFound` or `Corrupt` for its file; `InvalidInput` where it is not what the manifest says.
    pub(super) fn load(
        models: &Models,
        manifest: &Manifest,
        side_by_side: NonZeroUsize,
    ) -> Result<Vec<Self>> {
        let spec = manifest.captioner()?;
        let trained = Trained::named(models, manifest)?;
        let network = trained.network;
        let says = (spec.cells, spec.codebook.is_some());
        if says != (network.cells > 0, trained.fitting.codebook.is_some()) {
            return Err(Error::invalid_input(format!(
                "captioner {} is another network than its manifest describes: `cells` or `codebook` \
                 differ",
                manifest.id
            )));
        }
        let describer = || {
            let captioner = Captioner::new(models, &trained, Precision::Fp32, 1)?;
            let (spec, fitting) = (spec.clone(), trained.fitting.clone());
            Ok(Describer { spec, fitting, network, captioner })
        };
        std::thread::scope(|scope| {
            let loading: Vec<_> = (0..side_by_side.get()).map(|_| scope.spawn(describer)).collect();
            let loaded = loading.into_iter().map(|thread| {
                thread.join().unwrap_or_else(|_| Err(Error::internal("loading panicked")))
            });
            loaded.collect()
        })
    }

    /// How many of a segment's clips are seen at most; they are spread evenly over it.
    pub(super) fn clips(&self) -> usize {
        self.spec.clips.min(self.network.clips)
    }

    /// The embedding of one clip's picture; `None` where it lacks what the network sees.
    pub(super) fn embed(
        &mut self,
        clip: SeenClip,
        codebook: Option<&Codebook>,
    ) -> Result<Option<Vec<f32>>> {
        let seen = self.seen(&[clip], codebook);
        if seen.places.is_empty() {
            return Ok(None);
        }
        let segment = Segment { words: &[], visual: seen.tokens(&self.network) };
        let read = self.captioner.read(&[segment])?;
        Ok(Some(read.embeddings.row(0).to_vec()))
    }

    /// Describes segments, at best [`AT_A_TIME`]. `codebook` is that of the clips' words.
    pub(super) fn describe(
        &mut self,
        segments: &[Described<'_>],
        codebook: Option<&Codebook>,
    ) -> Result<Vec<SegmentReading>> {
        let mut readings = vec![SegmentReading::default(); segments.len()];
        let seen: Vec<(usize, Seen)> = segments
            .iter()
            .enumerate()
            .map(|(place, segment)| (place, self.seen(&segment.clips, codebook)))
            .filter(|(_, seen)| !seen.places.is_empty())
            .collect();
        if seen.is_empty() {
            return Ok(readings);
        }
        let said: Vec<Option<Said>> = seen
            .iter()
            .map(|(place, _)| self.said(segments[*place].said))
            .collect::<Result<_>>()?;
        let read = |captioner: &mut Captioner, with_words: bool| {
            let segments: Vec<Segment<'_>> = seen
                .iter()
                .zip(&said)
                .map(|((_, seen), said)| Segment {
                    words: said.as_ref().filter(|_| with_words).map_or(&[], |said| &said.pieces),
                    visual: seen.tokens(&self.network),
                })
                .collect();
            captioner.read(&segments)
        };
        let pictures = read(&mut self.captioner, false)?;
        let reads_words = self.spec.words && said.iter().any(Option::is_some);
        let both = reads_words.then(|| read(&mut self.captioner, true)).transpose()?;
        let from = both.as_ref().unwrap_or(&pictures);
        let how = Writing {
            beams: self.spec.beams,
            most: self.spec.longest,
            length_power: self.spec.length_power as f32,
        };
        let written = self.captioner.write(from, how)?;
        for (row, captions) in written.into_iter().enumerate() {
            let reading = &mut readings[seen[row].0];
            let is_sure = |confidence: f32| f64::from(confidence) >= self.spec.confidence;
            let best = captions.into_iter().next().map(|written| written.caption);
            reading.caption = best.filter(|best| is_sure(best.confidence) && !best.text.is_empty());
            let embedding = pictures.embeddings.row(row);
            reading.embedding = embedding.iter().copied().map(f16::from_f32).collect();
            let aligned = |said: &Said| self.captioner.alignment(embedding, said.embedding.view());
            reading.alignment = said[row].as_ref().map(aligned);
        }
        Ok(readings)
    }

    /// What was said as the network reads it; `None` where it says nothing, as a text in a script that
    /// was never seen.
    fn said(&self, said: Option<(&str, &[f16])>) -> Result<Option<Said>> {
        let Some((text, embedding)) = said else { return Ok(None) };
        let pieces = self.captioner.pieces().encode(text, self.network.words)?;
        let embedding = embedding.iter().map(|x| x.to_f32()).collect();
        let is_known = pieces.iter().any(|piece| *piece != UNKNOWN);
        Ok(is_known.then_some(Said { pieces, embedding }))
    }

    /// The clips as the network sees them. Those without what it needs are left out.
    fn seen(&self, clips: &[SeenClip], codebook: Option<&Codebook>) -> Seen {
        let mut seen = Seen::default();
        for (place, clip) in clips.iter().enumerate() {
            let values = self.clip_values(clip, codebook);
            let Some((features, centroids)) = values else { continue };
            seen.places.push(place);
            seen.features.extend(features);
            seen.centroids.extend(centroids);
        }
        seen
    }

    /// Features and centroids of a clip's whole picture, and of its cells where the network sees
    /// them; `None` where some are missing.
    fn clip_values(
        &self,
        clip: &SeenClip,
        codebook: Option<&Codebook>,
    ) -> Option<(Vec<f32>, Vec<f32>)> {
        let Network { features: dim, centroids: length, cells, .. } = self.network;
        let (mut features, mut centroids) = (Vec::new(), Vec::new());
        if dim > 0 {
            features.extend(clip.features.iter().map(|x| x.to_f32()));
            if cells > 0 {
                features.extend(clip.cells.values(clip.features.len())?);
            }
        }
        if length > 0 {
            let codebook = codebook?;
            for word in clip.words.get(..1 + cells)? {
                match codebook.centroid(*word) {
                    Some(centroid) => centroids.extend(centroid),
                    // No walk down the tree ends at a dead leaf.
                    None => centroids.extend(std::iter::repeat_n(0.0, length)),
                }
            }
        }
        let fits = features.len() == (1 + cells) * dim && centroids.len() == (1 + cells) * length;
        fits.then_some((features, centroids))
    }
}

/// What was said in a segment.
struct Said {
    /// Of words.
    pieces: Vec<u32>,
    /// The sentence encoder's.
    embedding: Array1<f32>,
}

/// A segment's clips as a network sees them.
#[derive(Debug, Default)]
struct Seen {
    /// Of each clip, its place in the segment.
    places: Vec<usize>,
    /// `[clips, 1 + cells, features]`.
    features: Vec<f32>,
    /// `[clips, 1 + cells, centroids]`.
    centroids: Vec<f32>,
}

impl Seen {
    fn tokens(&self, network: &Network) -> Vec<VisualToken<'_>> {
        let parts = 1 + network.cells;
        let part = |length: usize, at: usize| at * length..(at + 1) * length;
        (0..self.places.len() * parts)
            .map(|at| VisualToken {
                clip: self.places[at / parts],
                cell: at % parts,
                features: &self.features[part(network.features, at)],
                centroid: &self.centroids[part(network.centroids, at)],
            })
            .collect()
    }
}
