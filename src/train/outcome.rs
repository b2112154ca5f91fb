//! What a training leaves: the weights, their graphs, and a manifest that `index` takes.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::config::Config;
use super::trainer::Trainer;
use crate::error::{Error, Result};
use crate::evaluate::agreement::Agreement;
use crate::onnx::transformer::{Precision, reading_graph, writing_graph};
use crate::transformer::Trained;

const WEIGHTS: &str = "transformer.safetensors";
const MANIFEST: &str = "captioner.toml";
/// The pieces of a caption at most, in scoring and in use.
pub(super) const LONGEST: usize = 24;

/// Writes the files into `out`; gives their paths, the manifest's first. `command` made them.
pub(super) fn write(
    trainer: &Trainer<'_>,
    config: &Config,
    scores: Option<&Agreement>,
    command: &str,
    out: &Path,
) -> Result<Vec<PathBuf>> {
    let trained = trainer.trained();
    let weights = out.join(WEIGHTS);
    trained.save(&weights)?;
    let manifest = out.join(MANIFEST);
    let mut files = vec![manifest.clone(), weights.clone()];
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
    let bytes = std::fs::read(&weights).map_err(|cause| Error::io(&weights, "read", cause))?;
    let made = Made { command, data: &told(trainer), scores, clips: trainer.most_clips() };
    let text = manifest_of(&bytes, &trained, config, &made, &identifier(out))?;
    std::fs::write(&manifest, text).map_err(|cause| Error::io(&manifest, "write", cause))?;
    Ok(files)
}

/// What was trained on.
fn told(trainer: &Trainer<'_>) -> String {
    let (examples, captions, texts) = trainer.counts();
    format!("{examples} pictures or segments with {captions} captions, {texts} texts")
}

/// How a network came about.
struct Made<'a> {
    command: &'a str,
    data: &'a str,
    scores: Option<&'a Agreement>,
    /// The most clips of a segment that it saw.
    clips: usize,
}

fn manifest_of(
    weights: &[u8],
    trained: &Trained,
    config: &Config,
    made: &Made<'_>,
    id: &str,
) -> Result<String> {
    let network = &trained.network;
    let scores = made.scores.map_or_else(
        || "not scored".to_owned(),
        |scores| {
            format!(
                "Held out, at most {} pictures: CIDEr {:.1}, BLEU-4 {:.1}, ROUGE-L {:.1}",
                config.checkpoints.scored,
                100.0 * scores.cider,
                100.0 * scores.bleu[3],
                100.0 * scores.rouge_l
            )
        },
    );
    let codebook = match network.centroids {
        0 => "none".to_owned(),
        _ => whole_path(&config.codebook)?,
    };
    let about = format!(
        "Captions, embeddings and alignment: {:.1} M weights, trained on {}",
        trained.tensors.values().map(|tensor| tensor.values.len()).sum::<usize>() as f64 / 1e6,
        made.data
    );
    let sha256: String = Sha256::digest(weights).iter().map(|x| format!("{x:02x}")).collect();
    Ok(format!(
        "schema = 1\n\
         id = {id}\n\
         version = \"1\"\n\
         task = \"captioner\"\n\
         about = {about}\n\
         # Yours to say, from what the data allow; then `commercial` is true or false.\n\
         licence = \"That of what it was trained on\"\n\
         commercial = \"unknown\"\n\
         \n\
         [[files]]\n\
         name = \"{WEIGHTS}\"\n\
         path = \"{WEIGHTS}\"\n\
         sha256 = \"{sha256}\"\n\
         bytes = {bytes}\n\
         \n\
         [captioner]\n\
         encoder = {encoder}\n\
         codebook = {codebook}\n\
         text = {tower}\n\
         cells = \"{cells}\"\n\
         from = \"picture\"\n\
         # At most so many clips of a segment are seen.\n\
         clips = {clips}\n\
         beams = {beams}\n\
         longest = {LONGEST}\n\
         length_power = 1.0\n\
         # Captions of less confidence are left out: 0 leaves out none.\n\
         confidence = 0.0\n\
         \n\
         [made]\n\
         command = {command}\n\
         data = {data}\n\
         scores = {scores}\n",
        id = quoted(id)?,
        about = quoted(&about)?,
        bytes = weights.len(),
        encoder = quoted(&config.encoder)?,
        codebook = quoted(&codebook)?,
        tower = quoted(&config.text)?,
        cells = if network.cells > 0 { "3x3" } else { "none" },
        clips = made.clips,
        beams = config.checkpoints.beams,
        command = quoted(made.command)?,
        data = quoted(made.data)?,
        scores = quoted(&scores)?,
    ))
}

/// A manifest's id, after the folder that it lies in.
fn identifier(out: &Path) -> String {
    let name = std::path::absolute(out).ok();
    let name = name.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy());
    let plain: String = name
        .unwrap_or_default()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '-' { c.to_ascii_lowercase() } else { '-' })
        .collect();
    format!("captioner-{}", plain.trim_matches('-'))
}

/// A codebook's own file is found from any folder; an id stays.
fn whole_path(codebook: &str) -> Result<String> {
    if !codebook.ends_with(".safetensors") {
        return Ok(codebook.to_owned());
    }
    let path = std::path::absolute(codebook)
        .map_err(|cause| Error::io(Path::new(codebook), "find", cause))?;
    Ok(path.display().to_string())
}

/// A string of JSON, which is one of TOML, too.
fn quoted(text: &str) -> Result<String> {
    serde_json::to_string(text)
        .map_err(|cause| Error::internal("cannot write a string").caused_by(cause))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_plain() {
        assert_eq!(identifier(Path::new("/x/My Films.2")), "captioner-my-films-2");
        assert!(identifier(Path::new("/")).starts_with("captioner-"));
    }

    #[test]
    fn strings_are_toml() {
        for text in ["plain", "a \"b\" \\ c", "two\nlines", "Größe \u{1}"] {
            let document: toml_edit::DocumentMut =
                format!("x = {}", quoted(text).unwrap()).parse().unwrap();
            assert_eq!(document["x"].as_str(), Some(text));
        }
    }
}
