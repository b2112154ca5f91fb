//! What a training leaves: weights, graphs, and the manifests that `cinelex index` takes.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use toml_edit::{DocumentMut, Value, value};

use super::config::Config;
use super::films::Learnt;
use super::material::Material;
use super::run::LONGEST;
use super::trainer::Trainer;
use crate::error::{Error, Result};
use crate::evaluate::agreement::Agreement;
use crate::model::{Manifest, Models, Variant};
use crate::onnx::transformer::{Precision, reading_graph, writing_graph};

const WEIGHTS: &str = "transformer.safetensors";
const CAPTIONER: &str = "captioner.toml";
/// A codebook that was fitted.
pub const CODEBOOK: &str = "codebook.safetensors";
const CODEBOOK_MANIFEST: &str = "codebook.toml";
const PIPELINE: &str = "pipeline.toml";
/// What a pipeline says beside the models, where nothing else is known.
const DEFAULT_PIPELINE: &str = include_str!("../../pipelines/default.toml");

/// Keeps a codebook that was fitted for this training, so that it goes on with the same.
pub(super) fn keep_codebook(config: &Config, material: &Material, out: &Path) -> Result<()> {
    match &material.codebook {
        Some(codebook) if config.fits_codebook() => codebook.save(&out.join(CODEBOOK)),
        _ => Ok(()),
    }
}

/// Writes the weights, the graphs in each precision, and the manifests; with a codebook that was fitted, a
/// pipeline that names it.
pub(super) fn write(
    models: &Models,
    config: &Config,
    material: &Material,
    trainer: &Trainer<'_>,
    scores: Option<&Agreement>,
    out: &Path,
) -> Result<Vec<PathBuf>> {
    let trained = trainer.trained();
    let weights = out.join(WEIGHTS);
    trained.save(&weights)?;
    let mut files = vec![weights];
    for (name, precision) in
        [("fp32", Precision::Fp32), ("fp16", Precision::Fp16), ("int8", Precision::Int8)]
    {
        for (part, graph) in [
            ("read", reading_graph(&trained.network, &trained.tensors, precision)?),
            ("write", writing_graph(&trained.network, &trained.tensors, precision)?),
        ] {
            let path = out.join(format!("{part}.{name}.onnx"));
            std::fs::write(&path, graph).map_err(|cause| Error::io(&path, "write", cause))?;
            files.push(path);
        }
    }
    let mut left = Left { config, material, out, name: name_of(out), files };
    let (encoder, text) = (models.manifest(&config.encoder)?, models.manifest(&config.text)?);
    let codebook = match (trained.fitting.codebook.is_some(), config.fits_codebook()) {
        (false, _) => "none".to_owned(),
        (true, true) => format!("codebook-{}", left.name),
        // A codebook may be named by its file alone.
        (true, false) => models
            .manifest(&config.codebook)
            .map_or_else(|_| config.codebook.clone(), |manifest| manifest.id),
    };
    let how = format!(
        "[captioner]\nencoder = {}\ncodebook = {}\ntext = {}\ncells = \"{}\"\n\
         # Captions are written of the picture alone; \"picture and words\" is possible, too.\n\
         from = \"picture\"\n\
         # Of a segment's clips, as many are seen as the network was shown together.\n\
         clips = {}\nbeams = {}\nlongest = {LONGEST}\nlength_power = 1.0\n\
         # Captions that are less sure, from 0 to 1, are left out.\nconfidence = 0.0\n",
        quoted(&encoder.id),
        quoted(&codebook),
        quoted(&text.id),
        cells(trained.network.cells > 0),
        trainer.most_clips(),
        config.checkpoints.beams,
    );
    left.manifest(CAPTIONER, "captioner", "Captions", WEIGHTS, &how, &scored(scores))?;
    if config.fits_codebook() {
        let how = format!("[codebook]\nencoder = {}\n", quoted(&encoder.id));
        let about = "Visual words";
        left.manifest(CODEBOOK_MANIFEST, "codebook", about, CODEBOOK, &how, "not measured")?;
        left.pipeline(&encoder, &text)?;
    }
    Ok(left.files)
}

/// The files so far, and what manifests say.
struct Left<'a> {
    config: &'a Config,
    material: &'a Material,
    out: &'a Path,
    /// The folder's, as a part of ids.
    name: String,
    files: Vec<PathBuf>,
}

impl Left<'_> {
    fn keep(&mut self, name: &str, text: &str) -> Result<()> {
        let path = self.out.join(name);
        std::fs::write(&path, text).map_err(|cause| Error::io(&path, "write", cause))?;
        self.files.push(path);
        Ok(())
    }

    /// The manifest `name` of a model whose one file is `file`; `how` is its task's table.
    fn manifest(
        &mut self,
        name: &str,
        task: &str,
        about: &str,
        file: &str,
        how: &str,
        scores: &str,
    ) -> Result<()> {
        let path = self.out.join(file);
        let bytes = std::fs::read(&path).map_err(|cause| Error::io(&path, "read", cause))?;
        let mut sha256 = String::new();
        for byte in Sha256::digest(&bytes) {
            // Writing to a string does not fail.
            let _ = write!(sha256, "{byte:02x}");
        }
        let data = self.data();
        let text = format!(
            "schema = 1\nid = {}\nversion = \"1\"\ntask = \"{task}\"\nabout = {}\n\
             # Whoever passes it on says here what the data's terms allow: true, false or \"unknown\".\n\
             licence = {}\ncommercial = \"unknown\"\n\n\
             [[files]]\nname = \"{file}\"\npath = \"{file}\"\nsha256 = \"{sha256}\"\nbytes = {}\n\n\
             {how}\n[made]\ncommand = {}\ndata = {}\nscores = {}\n",
            quoted(&format!("{task}-{}", self.name)),
            quoted(&format!("{about}, learnt from {data}")),
            quoted(&match &self.material.sources.from {
                Some(from) => format!("that of the data, and of {from}"),
                None => "that of the data".to_owned(),
            }),
            bytes.len(),
            quoted(&format!("{} (seed {})", self.material.sources.command, self.config.seed)),
            quoted(&data),
            quoted(scores),
        );
        self.keep(name, &text)
    }

    /// What was learnt from, by name.
    fn data(&self) -> String {
        let sources = &self.material.sources;
        let names = sources.data.iter().chain(&sources.texts);
        names.map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
    }

    /// A pipeline with the codebook and the captioner; else as the first library was indexed, or as the
    /// default one.
    fn pipeline(&mut self, encoder: &Manifest, text: &Manifest) -> Result<()> {
        let mut pipeline: DocumentMut = DEFAULT_PIPELINE
            .parse()
            .map_err(|cause| Error::internal("the default pipeline is no TOML").caused_by(cause))?;
        pipeline["caption"] = toml_edit::table();
        pipeline.set_trailing("");
        let mut set = |table: &str, key: &str, to: Value| pipeline[table][key] = value(to);
        let learnt = self.material.libraries.first();
        for (table, key, to) in learnt.map(as_indexed).unwrap_or_default() {
            set(table, key, to);
        }
        let seen = self.config.inputs.cells || learnt.is_none_or(keeps_cells);
        set("encode", "encoder", named(&self.config.encoder, encoder)?.into());
        set("encode", "cells", cells(seen).into());
        set("quantize", "codebook", CODEBOOK_MANIFEST.into());
        set("embed", "text", named(&self.config.text, text)?.into());
        set("caption", "captioner", CAPTIONER.into());
        pipeline["about"] =
            value(format!("The models in this folder, learnt from {}", self.data()));
        let text = pipeline.to_string().replacen(
            "# What `cinelex index` computes unless told otherwise.",
            "# For `cinelex index --pipeline`: with the visual words and the captioner beside it.",
            1,
        );
        self.keep(PIPELINE, &text)
    }
}

/// What a pipeline says of clips and segments to make them as in this library.
fn as_indexed(learnt: &Learnt) -> Vec<(&'static str, &'static str, Value)> {
    let clips = &learnt.clips.description;
    let float = |value: &serde_json::Value| value.as_f64().map(Value::from);
    let int = |value: &serde_json::Value| value.as_i64().map(Value::from);
    let text = |value: &serde_json::Value| value.as_str().map(Value::from);
    let secs = clips["clip_us"].as_i64().map(|micros| Value::from(micros as f64 / 1e6));
    [
        ("sample", "clip_secs", secs),
        ("sample", "frames_per_clip", int(&clips["frames_per_clip"])),
        ("sample", "fit", text(&clips["fit"])),
        ("sample", "shot_change", float(&clips["shot_change"])),
        ("segment", "max_clips", int(&learnt.rules["max_clips"])),
    ]
    .into_iter()
    .filter_map(|(table, key, to)| Some((table, key, to?)))
    .collect()
}

fn keeps_cells(learnt: &Learnt) -> bool {
    learnt.clips.description["cells"] == "kept"
}

fn cells(seen: bool) -> &'static str {
    if seen { "3x3" } else { "none" }
}

/// How a pipeline in another folder names a model: by its id, or by its manifest's whole path.
fn named(reference: &str, manifest: &Manifest) -> Result<String> {
    let (named, variant) = Variant::named(reference);
    if !named.ends_with(".toml") {
        return Ok(reference.to_owned());
    }
    std::path::absolute(named)
        .map(|path| variant.name(&path.display().to_string()))
        .map_err(|cause| Error::io(&manifest.id, "find the manifest of", cause))
}

fn scored(scores: Option<&Agreement>) -> String {
    scores.map_or_else(
        || "none: nothing was held out".to_owned(),
        |scores| {
            let [cider, bleu, rouge] =
                [scores.cider, scores.bleu[3], scores.rouge_l].map(|x| 100.0 * x);
            format!("dev: CIDEr {cider:.1}, BLEU-4 {bleu:.1}, ROUGE-L {rouge:.1}")
        },
    )
}

/// A string as TOML has it.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// The name of a folder as a part of a model's id.
fn name_of(folder: &Path) -> String {
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let name = folder.file_name().map_or_else(|| "mine".into(), |name| name.to_string_lossy());
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' };
    name.chars().map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_texts_are_as_toml_and_ids_have_them() {
        assert_eq!(name_of(Path::new("/nowhere/my films!")), "my-films-");
        assert_eq!(name_of(Path::new("/")), "mine");
        let odd = "a \"b\" \\ c\u{1b}\nd";
        let read: DocumentMut = format!("x = {}", quoted(odd)).parse().unwrap();
        assert_eq!(read["x"].as_str(), Some(odd));
    }
}
