//! A pipeline with its models in memory, and the recipes that these make.

use half::f16;
use serde_json::json;

use super::Pipeline;
use crate::codebook::Codebook;
use crate::error::{Error, Result};
use crate::library::{Recipe, RecipeKind, Space, Tree};
use crate::media::EncodedClip;
use crate::model::{Device, Manifest, Models};
use crate::picture::{Encoder, FrameFeatures};
use crate::text::{JointSpace, TextTower};

/// Raised whenever Cinelex itself would compute other clips from the same models.
const CLIPS_VERSION: u32 = 1;
/// Raised whenever Cinelex itself would compute other segments.
const SEGMENTS_VERSION: u32 = 1;

/// Everything that indexing computes with.
#[derive(Debug)]
pub struct Loaded {
    pub pipeline: Pipeline,
    pub encoder: Encoder,
    pub codebook: Codebook,
    /// `None` where the encoder tells no classes apart.
    pub space: Option<JointSpace>,
    pub tower: TextTower,
    pub clip_recipe: Recipe,
    pub segment_recipe: Recipe,
}

impl Loaded {
    /// Loads all models of a pipeline. `threads` work on one batch of pictures.
    ///
    /// # Errors
    /// `NotFound` for a model that is not set up; `InvalidInput` where models do not fit together;
    /// `Unsupported` for a device that is not there.
    pub fn load(
        pipeline: Pipeline,
        models: &Models,
        device: Device,
        threads: usize,
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
        let codebook = load_codebook(models, &pipeline.codebook)?;
        if codebook.input_dims() != encoder.dim() {
            return Err(Error::invalid_input(format!(
                "{}: codebook {} was fitted on {} features of {} dimensions; encoder {} gives {}",
                pipeline.name,
                pipeline.codebook,
                codebook.origin().encoder,
                codebook.input_dims(),
                pipeline.encoder,
                encoder.dim()
            )));
        }
        let mut tower = TextTower::load(models, &text_manifest, threads)?;
        let space = JointSpace::load(models, &encoder_manifest, &mut tower)?;
        let row = space_row(&text_manifest)?;
        let clip_recipe = Recipe::new(
            RecipeKind::Clip,
            json!({
                "version": CLIPS_VERSION,
                "clip_us": pipeline.clip.length.0,
                "frames_per_clip": pipeline.clip.frames,
                "shot_change": pipeline.clip.shot_change,
                "fit": pipeline.fit,
                "encoder": identity(&encoder_manifest),
                "cells": pipeline.cells,
                "codebook": codebook.id().to_hex().as_str(),
                "space": space.as_ref().map(JointSpace::id),
            }),
            space.as_ref().map(|_| row.clone()),
            Some(Tree { branching: codebook.branching(), depth: codebook.depth() }),
        );
        let segment_recipe = Recipe::new(
            RecipeKind::Segment,
            json!({
                "version": SEGMENTS_VERSION,
                "sentence": pipeline.sentence,
                "segment": pipeline.segment,
                "text": identity(&text_manifest),
                // Segments are made of clips.
                "clips": clip_recipe.id,
            }),
            Some(row),
            None,
        );
        Ok(Loaded { pipeline, encoder, codebook, space, tower, clip_recipe, segment_recipe })
    }

    /// The embedding of one picture in the joint space, for searching by a picture.
    pub fn embed_picture(&mut self, rgb: &[u8]) -> Result<Vec<f32>> {
        let space = self.space.as_ref().ok_or_else(|| {
            Error::unsupported(format!(
                "encoder {} maps pictures into no space that can be searched",
                self.pipeline.encoder
            ))
        })?;
        let mut features = self.encoder.encode(&[rgb])?;
        let features = features.pop().ok_or_else(|| Error::internal("no features"))??;
        space.picture(&features.classes)
    }
}
