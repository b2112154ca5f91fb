//! A pipeline with its models in memory, and the recipes that these make.

use std::num::NonZeroUsize;
use std::sync::Mutex;

use serde_json::json;

use super::Pipeline;
use super::describe::Describer;
use super::stages::{Encode, Quantize, halves, words};
use super::understand::{Failed, Read, Store, Stored, Understand};
use crate::codebook::Codebook;
use crate::error::{Error, Result};
use crate::graph::{Cancel, StageStats};
use crate::library::{Reader, Recipe, RecipeKind, SeenClip, Space, Tree, Writer};
use crate::media::CellFeatures;
use crate::model::{Device, Manifest, Models};
use crate::picture::{Encoder, FrameFeatures};
use crate::source::{Host, Input, PictureEvent, PictureRequest, Rendition, Targets};
use crate::text::{JointSpace, TextTower};
use crate::time::Micros;

/// Raised whenever Cinelex itself would compute other clips from the same models.
const CLIPS_VERSION: u32 = 2;
/// Raised whenever Cinelex itself would compute other segments.
const SEGMENTS_VERSION: u32 = 1;
/// Raised whenever Cinelex itself would write other captions, or be otherwise sure of them.
const CAPTIONS_VERSION: u32 = 2;

/// Everything that indexing computes with.
#[derive(Debug)]
pub struct Loaded {
    pub pipeline: Pipeline,
    pub encoder: Encoder,
    /// `None` where clips get no visual words.
    pub codebook: Option<Codebook>,
    /// `None` where the encoder tells no classes apart.
    pub space: Option<JointSpace>,
    pub tower: TextTower,
    /// What writes captions, side by side; none where segments get no captions.
    pub describers: Vec<Describer>,
    pub clip_recipe: Recipe,
    pub segment_recipe: Recipe,
}

/// What a run lends to the two halves of its work.
pub(super) struct Lent<'a> {
    /// Frames that the CNN takes at a time, at most.
    pub batch: u16,
    pub library: &'a Mutex<Writer>,
    /// Writes segments to it.
    pub store: Store<'a>,
    /// Reads from it what segments are made of.
    pub read: Read<'a>,
    pub reader: Reader,
    pub understood: &'a StageStats,
    pub described: &'a StageStats,
    /// Ends the work on segments.
    pub cancel: &'a Cancel,
    pub stored: Stored<'a>,
    pub failed: Failed<'a>,
}

/// The two halves of the work: the stages between clips and the record, and what reads from there and
/// writes segments.
pub(super) struct Halves<'a> {
    pub encode: Encode<'a>,
    pub quantize: Quantize<'a>,
    pub understand: Understand<'a>,
}

impl Loaded {
    /// Loads all models of a pipeline. `threads` work on one batch of pictures, and captions are written by so
    /// many `describers` side by side.
    ///
    /// # Errors
    /// `NotFound` for a model that is not set up; `InvalidInput` where models do not fit together;
    /// `Unsupported` for a device that is not there.
    pub fn load(
        pipeline: Pipeline,
        models: &Models,
        device: Device,
        threads: usize,
        describers: NonZeroUsize,
    ) -> Result<Loaded> {
        let encoder_manifest = models.manifest(&pipeline.encoder)?;
        let text_manifest = models.manifest(&pipeline.text)?;
        let encoder = Encoder::load(models, &encoder_manifest, device, threads)?;
        let wanted = encoder.frames();
        if wanted > 1 && wanted != usize::from(pipeline.clip.frames) {
            return Err(Error::invalid_input(format!(
                "{}: encoder {} reads {wanted} frames at once, so `frames_per_clip` must be \
                 {wanted}, not {}",
                pipeline.name, pipeline.encoder, pipeline.clip.frames
            )));
        }
        let codebook = match &pipeline.codebook {
            Some(reference) => {
                Some(fitting_codebook(models, reference, &pipeline, &encoder_manifest, &encoder)?)
            }
            None => None,
        };
        let has_classes = encoder_manifest.encoder()?.classes.is_some();
        let space = has_classes
            .then(|| JointSpace::open(models, &encoder_manifest, &text_manifest, threads))
            .transpose()?;
        let tower = TextTower::load(models, &text_manifest, threads)?;
        let row = Space {
            id: tower.space().to_owned(),
            tower: text_manifest.id.clone(),
            dimension: tower.dim(),
            languages: tower.languages().to_vec(),
        };
        let clip_recipe = recipe(
            RecipeKind::Clip,
            json!({
                "version": CLIPS_VERSION,
                "clip_us": pipeline.clip.length.0,
                "frames_per_clip": pipeline.clip.frames,
                "shot_change": pipeline.clip.shot_change,
                "fit": pipeline.fit,
                "encoder": encoder_manifest.identity(),
                // Once, only their words were kept.
                "cells": if pipeline.cells { json!("kept") } else { json!(false) },
                "codebook": codebook.as_ref().map(|codebook| codebook.id().to_hex().to_string()),
                "space": space.as_ref().map(|space| space.id().to_hex().to_string()),
            }),
            space.as_ref().map(|_| row.clone()),
            codebook
                .as_ref()
                .map(|codebook| Tree { branching: codebook.branching(), depth: codebook.depth() }),
        )?;
        let mut segments = json!({
            "version": SEGMENTS_VERSION,
            "sentence": pipeline.sentence,
            "segment": pipeline.segment,
            "text": text_manifest.identity(),
            // Segments are made of clips.
            "clips": clip_recipe.id,
        });
        let mut describing = Vec::new();
        if let Some(reference) = &pipeline.captioner {
            let manifest = models.manifest(reference)?;
            describing = Describer::load(models, &manifest, describers)?;
            let first = &describing[0];
            fits(first, &pipeline, &encoder_manifest, codebook.as_ref(), tower.space())
                .map_err(|error| error.in_source(format!("captioner {}", manifest.id)))?;
            segments["captioner"] = json!({
                "version": CAPTIONS_VERSION,
                "id": manifest.identity(),
                "how": first.spec,
            });
        }
        let segment_recipe = recipe(RecipeKind::Segment, segments, Some(row), None)?;
        Ok(Loaded {
            pipeline,
            encoder,
            codebook,
            space,
            tower,
            describers: describing,
            clip_recipe,
            segment_recipe,
        })
    }

    /// Makes the recipes known to a library.
    pub(super) fn add_recipes(&self, library: &mut Writer) -> Result<()> {
        library.add_recipe(&self.clip_recipe)?;
        library.add_recipe(&self.segment_recipe)
    }

    /// The form in which the encoder takes frames.
    pub(super) fn rendition(&self) -> Rendition {
        let (width_px, height_px) = self.encoder.input_px();
        Rendition { width_px, height_px, fit: self.pipeline.fit }
    }

    pub(super) fn halves<'a>(&'a mut self, lent: Lent<'a>) -> Halves<'a> {
        let Loaded { pipeline, codebook, space, .. } = self;
        let codebook = codebook.as_ref();
        Halves {
            encode: Encode {
                encoder: &mut self.encoder,
                cells: pipeline.cells,
                frames_per_clip: pipeline.clip.frames,
                batch: lent.batch,
            },
            quantize: Quantize { codebook, space: space.as_ref() },
            understand: Understand {
                library: lent.library,
                store: lent.store,
                read: lent.read,
                reader: lent.reader,
                tower: &mut self.tower,
                sentence: pipeline.sentence,
                segment: pipeline.segment,
                clip_recipe: &self.clip_recipe.id,
                recipe: &self.segment_recipe.id,
                describers: &mut self.describers,
                codebook,
                stats: lent.understood,
                describing: lent.described,
                cancel: lent.cancel,
                stored: lent.stored,
                failed: lent.failed,
            },
        }
    }

    /// How many beginnings of a caption are followed at a time, in place of what the captioner's
    /// manifest says.
    pub fn set_beams(&mut self, beams: usize) {
        for describer in &mut self.describers {
            describer.spec.beams = beams;
        }
    }

    /// Where a picture lies in the joint space, for searching by it: by the captioner's network, where
    /// there is one.
    ///
    /// # Errors
    /// `Unsupported` where the encoder has no classes and there is no captioner; else the decoder's
    /// and the encoder's.
    pub fn embed_picture(&mut self, host: &mut Host, picture: &Input) -> Result<Vec<f32>> {
        if self.space.is_none() && self.describers.is_empty() {
            return Err(Error::unsupported(format!(
                "encoder {} maps pictures into no space that can be searched",
                self.pipeline.encoder
            )));
        }
        let request = PictureRequest {
            track: None,
            rendition: self.rendition(),
            targets: Targets::every(Micros(1_000_000), Micros::ZERO).part(0, Some(1)),
            threads: 1,
        };
        for event in host.picture(picture, &request)? {
            if let PictureEvent::Frame(frame) = event? {
                let features = self.encoder.encode(&[&frame.rgb])?.pop();
                let features = features.ok_or_else(|| Error::internal("no features"))??;
                return self.embed_features(features);
            }
        }
        Err(Error::corrupt("there is no picture in it").in_source(picture.name()))
    }

    fn embed_features(&mut self, frame: FrameFeatures) -> Result<Vec<f32>> {
        let Loaded { codebook, space, describers, pipeline, .. } = self;
        if let Some(describer) = describers.first_mut() {
            let cells = if pipeline.cells { frame.cells } else { Vec::new() };
            let words = codebook.as_ref().map(|codebook| words(codebook, &frame.features, &cells));
            let clip = SeenClip {
                words: words.transpose()?.unwrap_or_default(),
                cells: CellFeatures::new(&cells, frame.features.len()),
                features: halves(&frame.features),
            };
            let embedding = describer.embed(clip, codebook.as_ref())?;
            return embedding.ok_or_else(|| Error::internal("a picture without features"));
        }
        let space = space.as_ref().ok_or_else(|| Error::internal("no space"))?;
        space.picture(&frame.classes)
    }
}

/// Whether the network was trained with what this pipeline computes.
fn fits(
    describer: &Describer,
    pipeline: &Pipeline,
    encoder: &Manifest,
    codebook: Option<&Codebook>,
    space: &str,
) -> Result<()> {
    describer.fitting.check(&encoder.identity(), codebook.map(Codebook::id))?;
    describer.fitting.check_space(space)?;
    if describer.spec.cells && !pipeline.cells {
        return Err(Error::invalid_input(
            "the network sees the parts of a picture, which this pipeline leaves out: \
             `cells = \"3x3\"` keeps them",
        ));
    }
    Ok(())
}

/// The codebook, if it is for features of this length.
fn fitting_codebook(
    models: &Models,
    reference: &str,
    pipeline: &Pipeline,
    encoder_manifest: &Manifest,
    encoder: &Encoder,
) -> Result<Codebook> {
    let codebook = Codebook::named(models, reference)?;
    if codebook.input_dims() != encoder.dim() {
        return Err(Error::invalid_input(format!(
            "{}: codebook {reference} was fitted on {} features of {} dimensions; encoder {} gives {}",
            pipeline.name,
            codebook.origin().encoder,
            codebook.input_dims(),
            pipeline.encoder,
            encoder.dim()
        )));
    }
    if codebook.origin().encoder != encoder_manifest.id {
        // Not refused: a library made with it is what another codebook can be fitted on.
        tracing::warn!(
            "codebook {reference} was fitted on features of {}, so the visual words of {} mean \
             little; index, fit one with `cinelex codebook fit LIBRARY --encoder {}`, and index again",
            codebook.origin().encoder,
            encoder_manifest.id,
            pipeline.encoder
        );
    }
    Ok(codebook)
}

/// A recipe is named by the hash of its description, which `serde_json` writes with sorted keys.
pub(super) fn recipe(
    kind: RecipeKind,
    description: serde_json::Value,
    space: Option<Space>,
    tree: Option<Tree>,
) -> Result<Recipe> {
    let hash = blake3::hash(description.to_string().as_bytes());
    Ok(Recipe { id: hash.to_hex().as_str().parse()?, kind, description, space, tree })
}
