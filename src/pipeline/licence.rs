//! What a pipeline's models may be used for.

use super::Pipeline;
use crate::error::{Error, Result};
use crate::model::{Commercial, Manifest, Models};

/// Makes a pipeline one whose models may all be used commercially. What it can do without is left
/// out, and said, a sentence each: that is the codebook, since search needs no visual words, and the
/// captioner.
///
/// # Errors
/// `InvalidInput` with every model that is needed and may not be used commercially, or of which
/// that is not known.
pub fn commercial_only(pipeline: &mut Pipeline, models: &Models) -> Result<Vec<String>> {
    let encoder = models.manifest(&pipeline.encoder)?;
    let mut needed = vec![("sentence encoder", models.manifest(&pipeline.text)?)];
    if let Some(classes) = &encoder.encoder()?.classes {
        needed.push(("class names", models.manifest(&classes.names)?));
    }
    needed.push(("encoder", encoder));
    needed.extend(models.runtime_manifest()?.map(|manifest| ("runtime", manifest)));
    let refused: Vec<String> = needed
        .iter()
        .filter(|(_, manifest)| manifest.commercial != Commercial::Yes)
        .map(|(what, manifest)| format!("\n  {what} {}", terms(manifest)))
        .collect();
    if !refused.is_empty() {
        return Err(Error::invalid_input(format!(
            "{} needs models whose licences do not allow commercial use, and that was demanded:{}\n\
             Name others in the pipeline (`cinelex models list` tells which allow it), or state \
             `commercial = true` in the manifest of one that you have the right to use",
            pipeline.name,
            refused.concat()
        )));
    }
    let mut left_out = Vec::new();
    if let Some(codebook) = &pipeline.codebook {
        let manifest = models.manifest(codebook)?;
        if manifest.commercial != Commercial::Yes {
            left_out.push(format!(
                "visual words, since the codebook {}; search works without them. For words of your \
                 own: `cinelex codebook fit LIBRARY --out words.safetensors` on a library of your \
                 videos, a manifest for it, and its path as `codebook` in a pipeline",
                terms(&manifest)
            ));
            pipeline.codebook = None;
        }
    }
    if let Some(captioner) = &pipeline.captioner {
        let manifest = models.manifest(captioner)?;
        let needs_codebook = manifest.captioner()?.codebook.is_some();
        if manifest.commercial != Commercial::Yes {
            left_out.push(format!(
                "captions, since the captioner {}; for captions of your own: `cinelex train` on data \
                 of yours, and its manifest with --captioner or as `captioner` in a pipeline",
                terms(&manifest)
            ));
            pipeline.captioner = None;
        } else if needs_codebook && pipeline.codebook.is_none() {
            left_out.push(format!(
                "captions, since the captioner {} sees visual words, which are left out",
                manifest.id
            ));
            pipeline.captioner = None;
        }
    }
    pipeline.is_commercial = true;
    Ok(left_out)
}

/// `codebook-default may not be used commercially (licence: …)`.
fn terms(manifest: &Manifest) -> String {
    let says = match manifest.commercial {
        Commercial::Yes => "may be used commercially",
        Commercial::No => "may not be used commercially",
        Commercial::Unknown => "does not say whether it may be used commercially",
    };
    format!("{} {says} (licence: {})", manifest.id, manifest.licence)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_pipeline_loses_its_visual_words_and_captions_and_nothing_else() {
        let models = Models::at("/nowhere").unwrap();
        let mut pipeline = Pipeline::load("default", &models).unwrap();
        let before = pipeline.clone();
        let left_out = commercial_only(&mut pipeline, &models).unwrap();
        let told = &left_out[0];
        assert_eq!(left_out.len(), 1 + usize::from(before.captioner.is_some()), "{left_out:?}");
        assert!(told.contains("codebook-default") && told.contains("codebook fit"), "{told}");
        assert_eq!(
            pipeline,
            Pipeline { codebook: None, captioner: None, is_commercial: true, ..before }
        );
        assert_eq!(commercial_only(&mut pipeline, &models).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn every_needed_model_that_does_not_allow_it_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let models = Models::at(folder.path()).unwrap();
        for (id, says) in [("efficientnet-lite0", "false"), ("minilm", "\"unknown\"")] {
            let text =
                std::fs::read_to_string(format!("{}/models/{id}.toml", env!("CARGO_MANIFEST_DIR")));
            let text = text.unwrap().replace("commercial = true", &format!("commercial = {says}"));
            std::fs::write(folder.path().join(format!("{id}.toml")), text).unwrap();
        }
        let path = |id: &str| folder.path().join(format!("{id}.toml")).display().to_string();
        let mut pipeline = Pipeline {
            encoder: path("efficientnet-lite0"),
            text: path("minilm"),
            ..Pipeline::load("default", &models).unwrap()
        };
        let refused = commercial_only(&mut pipeline, &models).unwrap_err().to_string();
        for part in [
            "encoder efficientnet-lite0 may not be used commercially (licence: Apache-2.0)",
            "sentence encoder minilm does not say",
            "cinelex models list",
        ] {
            assert!(refused.contains(part), "{part:?} is not in {refused}");
        }
    }
}
