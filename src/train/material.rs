//! Everything that a training reads, loaded before it begins.

use std::path::PathBuf;

use ndarray::Array2;

use super::config::Config;
use super::corpus::{self, Skipped};
use crate::codebook::Codebook;
use crate::error::{Error, Result};
use crate::evaluate::photos::{Collection, Photo, video};
use crate::evaluate::pictures::{Eye, Pictures};
use crate::evaluate::setup::Progress;
use crate::model::{Device, Models};
use crate::onnx::transformer::{Tensors, Weights};
use crate::text::TextTower;
use crate::transformer::{Fitting, Numbers, read_tensors, write_tensors};

/// Captions that are embedded between two reports of progress.
const CAPTIONS_AT_A_TIME: usize = 256;
const METADATA: &str = "cinelex.captions";

/// Where the data are.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// Folders with captions.tsv and images/.
    pub collections: Vec<PathBuf>,
    /// Files of captions without pictures.
    pub texts: Vec<PathBuf>,
}

/// What is trained on.
#[derive(Debug)]
pub struct Material {
    /// Of each collection, what is trained on.
    pub train: Vec<Pictures>,
    /// … and what it is scored on.
    pub dev: Vec<Pictures>,
    /// Captions without pictures, those of one picture together.
    pub texts: Vec<Vec<String>>,
    /// Where visual words are seen, or guessed.
    pub codebook: Option<Codebook>,
    /// `[captions, space]`, rows of length 1: of the usable captions of `train`, in order.
    pub embeddings: Array2<f32>,
    pub fitting: Fitting,
    pub skipped: Skipped,
}

impl Material {
    /// Reads and encodes what `sources` name. What was encoded before comes from the cache folder.
    /// An error of `progress` ends it.
    ///
    /// # Errors
    /// `InvalidInput` where there is nothing to train on, or a file is not as it should be;
    /// `NotFound` where a model is not set up.
    pub fn load(
        models: &Models,
        config: &Config,
        sources: &Sources,
        threads: usize,
        progress: &mut dyn FnMut(Progress) -> Result<()>,
    ) -> Result<Material> {
        let encoder = models.manifest(&config.encoder)?;
        let tower = models.manifest(&config.text)?;
        let eye = Eye { models, encoder: &encoder, device: Device::Auto, threads };
        let mut skipped = Skipped::default();
        let (mut train, mut dev) = (Vec::new(), Vec::new());
        for folder in &sources.collections {
            let named = |error: Error| error.in_source(folder.display());
            let collection = Collection::read(folder).map_err(named)?;
            let of_train =
                Pictures::of_split(&collection, "train", eye, progress).map_err(named)?;
            skipped.photos += of_train.failed.len();
            for (image, reason) in &of_train.failed {
                tracing::warn!("left out: {}: {image}: {reason}", folder.display());
            }
            let held_out = collection.held_out();
            let is_held_out = |photo: &Photo| held_out.contains(video(photo));
            dev.push(match collection.has_split("dev") {
                true => Pictures::of_split(&collection, "dev", eye, progress).map_err(named)?,
                false => of_train.retained(is_held_out),
            });
            train.push(of_train.retained(|photo| !is_held_out(photo)));
        }
        let mut texts = Vec::new();
        for path in &sources.texts {
            let groups = corpus::read_texts(path)?;
            texts.extend(
                groups.into_iter().filter(|group| !corpus::usable(group, &mut skipped).is_empty()),
            );
        }
        let is_used = config.inputs.tokens || config.losses.visual_words > 0.0;
        let codebook = match is_used {
            true => Some(Codebook::named_or_file(models, &config.codebook)?),
            false => None,
        };
        let seen = codebook.as_ref().filter(|_| config.inputs.tokens);
        let captions: Vec<&str> = train
            .iter()
            .flat_map(|pictures| &pictures.photos)
            .flat_map(|photo| corpus::usable(&photo.captions, &mut skipped))
            .collect();
        if captions.is_empty() {
            return Err(Error::invalid_input(
                "there is no photo with a caption to train on: name a folder with captions.tsv and \
                 images/ that has a split \"train\"",
            ));
        }
        let (embeddings, space) = embedded(models, &tower, &captions, threads, progress)?;
        let fitting = Fitting {
            encoder: encoder.identity(),
            codebook: seen.map(|codebook| codebook.id().to_hex().to_string()),
            space,
        };
        Ok(Material { train, dev, texts, codebook, embeddings, fitting, skipped })
    }

    /// The hash of all that a training depends on, beside its configuration.
    pub(super) fn hash(&self) -> blake3::Hash {
        let mut hash = blake3::Hasher::new();
        let mut field = |text: &str| {
            hash.update(&(text.len() as u64).to_le_bytes());
            hash.update(text.as_bytes());
        };
        for photo in self.train.iter().flat_map(|pictures| &pictures.photos) {
            field(&photo.image);
            field(video(photo));
            photo.captions.iter().for_each(|caption| field(caption));
        }
        self.texts.iter().flatten().for_each(|caption| field(caption));
        field(&format!("{:?}", self.fitting));
        field(&format!("{:?}", self.codebook.as_ref().map(Codebook::id)));
        hash.finalize()
    }
}

/// The captions' embeddings and their space, from the cache folder where they have been made before.
fn embedded(
    models: &Models,
    tower: &crate::model::Manifest,
    captions: &[&str],
    threads: usize,
    progress: &mut dyn FnMut(Progress) -> Result<()>,
) -> Result<(Array2<f32>, String)> {
    let mut hash = blake3::Hasher::new();
    for text in std::iter::once(&&tower.identity()[..]).chain(captions) {
        hash.update(&(text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    }
    let name = format!("captions-{}.safetensors", &hash.finalize().to_hex()[..32]);
    let folder = models.cache_folder().join("derived");
    let path = folder.join(name);
    let shape = (captions.len(), tower.text()?.dim);
    if let Ok((space, mut tensors)) = read_tensors(&path, METADATA)
        && let Some(found) = tensors.remove("embeddings")
        && let Ok(rows) = Array2::from_shape_vec(shape, found.values)
    {
        return Ok((rows, space));
    }
    let mut tower = TextTower::load(models, tower, threads)?;
    let mut rows = Vec::with_capacity(shape.0 * shape.1);
    for batch in captions.chunks(CAPTIONS_AT_A_TIME) {
        rows.extend(tower.embed(batch)?);
        let done = rows.len() / shape.1;
        progress(Progress { what: "sentences", done, of: captions.len() })?;
    }
    let space = tower.space().to_owned();
    let weights = Weights { shape: vec![shape.0, shape.1], values: rows.clone() };
    let tensors = Tensors::from([("embeddings".to_owned(), weights)]);
    std::fs::create_dir_all(&folder).map_err(|cause| Error::io(&folder, "create", cause))?;
    if let Err(error) = write_tensors(&path, METADATA, &space, &tensors, Numbers::F32) {
        tracing::warn!(%error, "the captions' embeddings are not kept");
    }
    let rows = Array2::from_shape_vec(shape, rows)
        .map_err(|cause| Error::internal("embeddings are cut short").caused_by(cause))?;
    Ok((rows, space))
}
