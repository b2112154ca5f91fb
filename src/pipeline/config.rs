//! Pipeline files: what is computed. `pipelines/*.toml` are built in; a path names a user's own.

use std::path::Path;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::model::{Models, Variant};
use crate::picture::ClipRules;
use crate::source::Fit;
use crate::time::Micros;
use crate::toml_check::{self, Mistake, Table};
use crate::transcript::{SegmentRules, SentenceRules};

/// The pipelines that are part of the executable, as (name, text).
const BUILT_IN: &[(&str, &str)] = &[
    ("default", include_str!("../../pipelines/default.toml")),
    ("videobert", include_str!("../../pipelines/videobert.toml")),
];

/// The captioner of pipelines that name none and that it fits.
const DEFAULT_CAPTIONER: &str = "captioner-default";

/// The longest pipeline file that is read.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// What is computed, as a pipeline file says it. Models are named here, and not loaded.
#[derive(Debug, Clone, PartialEq)]
pub struct Pipeline {
    /// The built-in name, or the path.
    pub name: String,
    pub about: String,
    pub clip: ClipRules,
    pub fit: Fit,
    /// A model's id or a manifest's path.
    pub encoder: String,
    /// Whether the features of the nine cells of the picture are kept, and they get words of their own.
    pub cells: bool,
    /// A model's id or a manifest's path; without one, clips get no visual words.
    pub codebook: Option<String>,
    /// A model's id or a manifest's path; without one, segments get no captions.
    pub captioner: Option<String>,
    /// Only models that may be used commercially: see [`super::commercial_only`].
    pub is_commercial: bool,
    /// The sentence encoder whose space words and pictures meet in.
    pub text: String,
    pub sentence: SentenceRules,
    pub segment: SegmentRules,
}

/// A pipeline as `pipeline list` shows it.
#[derive(Debug, Clone, Serialize)]
pub struct Listed {
    pub name: &'static str,
    pub about: String,
}

impl Pipeline {
    /// A built-in pipeline's name, or a path (anything with a `/` or that ends in `.toml`).
    pub fn load(reference: &str, models: &Models) -> Result<Pipeline> {
        Self::check(reference, models)?.map_err(|mistakes| toml_check::as_error(&mistakes))
    }

    /// Like [`Pipeline::load`], with the mistakes one by one. The outer error is a file that cannot
    /// be read at all.
    pub fn check(reference: &str, models: &Models) -> Result<Result<Pipeline, Vec<Mistake>>> {
        let is_path = reference.contains('/') || reference.ends_with(".toml");
        if is_path {
            let text = read_file(Path::new(reference))?;
            return Ok(Self::read(reference, &text, models));
        }
        let (_, text) = BUILT_IN.iter().find(|(name, _)| *name == reference).ok_or_else(|| {
            let names: Vec<_> = BUILT_IN.iter().map(|(name, _)| *name).collect();
            Error::not_found(format!(
                "there is no pipeline {reference:?}: built in are {}; a file of your own is \
                     named by a path that ends in .toml",
                names.join(", ")
            ))
        })?;
        Ok(Self::read(reference, text, models))
    }

    /// Those that are built in.
    pub fn list(models: &Models) -> Result<Vec<Listed>> {
        let listed = |&(name, _): &(&'static str, _)| {
            Ok(Listed { name, about: Self::load(name, models)?.about })
        };
        BUILT_IN.iter().map(listed).collect()
    }

    /// Lets another captioner describe segments, or none where `reference` is `none`.
    ///
    /// # Errors
    /// As [`Models::manifest`]; `InvalidInput` for a model that is no captioner.
    pub fn set_captioner(&mut self, reference: &str, models: &Models) -> Result<()> {
        self.captioner = match reference {
            "none" => None,
            _ => {
                models.manifest(reference)?.captioner()?;
                Some(reference.to_owned())
            }
        };
        Ok(())
    }

    /// The built-in captioner, where there is one for what this pipeline computes.
    fn default_captioner(&self, models: &Models) -> Option<String> {
        let manifest = models.built_in().iter().find(|known| known.id == DEFAULT_CAPTIONER)?;
        let spec = manifest.captioner().ok()?;
        let (encoder, _) = Variant::named(&self.encoder);
        let fits = spec.encoder == encoder
            && spec.text == self.text
            && (!spec.cells || self.cells)
            && (spec.codebook.is_none() || spec.codebook == self.codebook);
        fits.then(|| manifest.id.clone())
    }

    fn read(name: &str, text: &str, models: &Models) -> Result<Pipeline, Vec<Mistake>> {
        toml_check::read(name, text, |root| pipeline(name, root, models))
    }
}

fn read_file(path: &Path) -> Result<String> {
    let size = std::fs::metadata(path).map_err(|cause| Error::io(path, "read", cause))?.len();
    if size > MAX_FILE_BYTES {
        return Err(Error::invalid_input(format!(
            "{} has {size} bytes; a pipeline file has at most {MAX_FILE_BYTES}",
            path.display()
        )));
    }
    let bytes = std::fs::read(path).map_err(|cause| Error::io(path, "read", cause))?;
    String::from_utf8(bytes).map_err(|cause| {
        Error::invalid_input(format!("{} is not UTF-8 text", path.display()))
            .at_byte(cause.utf8_error().valid_up_to() as u64)
    })
}

fn pipeline(name: &str, root: &Table<'_>, models: &Models) -> Pipeline {
    root.required_int("schema", 1..=1);
    let is_commercial =
        root.optional_choice("require_licence", &[("commercial", true)]).unwrap_or(false);
    let about = root.required_str("about").to_owned();
    let (clip, fit) = root.required_table("sample", sample);
    let base = Path::new(name).parent();
    let (encoder, cells) = root.required_table("encode", |table| {
        let cells = table.required_choice("cells", &[("3x3", true), ("none", false)]);
        (model(table, "encoder", "encoder", models, base), cells)
    });
    let codebook = root.required_table("quantize", |table| match table.required_str("codebook") {
        "none" => None,
        _ => Some(model(table, "codebook", "codebook", models, base)),
    });
    let text = root.required_table("embed", |table| model(table, "text", "text", models, base));
    let segment = root.required_table("segment", |table| {
        let max_clips = table.required_int("max_clips", 1..=64);
        // The range above is far inside usize.
        SegmentRules { max_clips: max_clips as usize, ..SegmentRules::default() }
    });
    let named = root.optional_table("caption", |table| match table.required_str("captioner") {
        "none" => None,
        _ => Some(model(table, "captioner", "captioner", models, base)),
    });
    let mut pipeline = Pipeline {
        name: name.to_owned(),
        about,
        clip,
        fit,
        encoder,
        cells,
        codebook,
        captioner: None,
        is_commercial,
        text,
        sentence: SentenceRules::default(),
        segment,
    };
    pipeline.captioner = named.unwrap_or_else(|| pipeline.default_captioner(models));
    pipeline
}

fn sample(table: &Table<'_>) -> (ClipRules, Fit) {
    let length = Micros::from_secs_f64(table.required_float("clip_secs", 0.1..=60.0));
    let frames = table.required_int("frames_per_clip", 1..=120);
    let shot_change = table.required_float("shot_change", 0.0..=1.0);
    let fit = table
        .required_choice("fit", &[("squash", Fit::Squash), ("crop", Fit::Crop), ("pad", Fit::Pad)]);
    if length.0 / frames < 1_000 {
        table.mistake("frames_per_clip", "more than 1000 frames a second are not sampled");
    }
    // Both ranges above fit their types.
    (ClipRules { length, frames: frames as u16, shot_change: shot_change as f32 }, fit)
}

/// A model that must be known and do this task. A path is relative to the pipeline file.
fn model(
    table: &Table<'_>,
    key: &'static str,
    task: &str,
    models: &Models,
    base: Option<&Path>,
) -> String {
    let reference = table.required_str(key);
    if reference.is_empty() {
        return String::new();
    }
    let (named, variant) = Variant::named(reference);
    let resolved = match base {
        Some(base) if named.ends_with(".toml") => variant.name(&base.join(named).to_string_lossy()),
        _ => reference.to_owned(),
    };
    match models.manifest(&resolved) {
        Ok(manifest) if manifest.task.as_str() != task => table.mistake(
            key,
            format!("model {reference} is for {}, not for {task}", manifest.task.as_str()),
        ),
        Ok(_) => {}
        Err(error) => table.mistake(key, error.to_string()),
    }
    resolved
}
