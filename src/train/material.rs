//! Everything that a training reads, loaded before it begins.

use std::path::{Path, PathBuf};

use ndarray::Array2;

use super::config::Config;
use super::corpus::{self, Skipped};
use super::films::{self, Learnt, Library, Taken};
use crate::codebook::Codebook;
use crate::error::{Error, Result};
use crate::evaluate::photos::{Collection, Photo, View, video};
use crate::evaluate::pictures::{Eye, Pictures};
use crate::evaluate::setup::Progress;
use crate::library::Reader;
use crate::model::{Device, Models};
use crate::onnx::transformer::{Tensors, Weights};
use crate::text::{TextTower, space_id};
use crate::transformer::{Fitting, Numbers, Trained, read_tensors, write_tensors};

/// Captions that are embedded between two reports of progress.
const CAPTIONS_AT_A_TIME: usize = 256;
const METADATA: &str = "cinelex.captions";
/// The shape of a codebook that is fitted: that of the default one.
#[cfg(feature = "fit")]
const BRANCHING: u32 = 12;
#[cfg(feature = "fit")]
const DEPTH: u32 = 3;

/// Rows that it is fitted on, at most: 1.3 GB of 1,280 features. Of more, every second is taken,
/// or every third and so on.
#[cfg(feature = "fit")]
const FITTED_ROWS: usize = 250_000;

/// Where the data are.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// Libraries, and folders with captions.tsv and images/.
    pub data: Vec<PathBuf>,
    /// Files of captions without pictures.
    pub texts: Vec<PathBuf>,
    /// The network whose weights and word pieces the training begins with, as
    /// [`Trained::named_or_file`] has it; weights begin at random where there is none.
    pub from: Option<String>,
    /// The codebook that was fitted when the training began, where it goes on.
    pub fitted: Option<PathBuf>,
    /// The command as it was typed: manifests say it.
    pub command: String,
}

/// What is trained on.
#[derive(Debug)]
pub struct Material {
    pub sources: Sources,
    /// Of each library and each collection, what is trained on.
    pub train: Vec<Pictures>,
    /// Other views of the photos of a collection, with its number in `train`.
    pub views: Vec<(usize, Pictures)>,
    /// … and what it is scored on.
    pub dev: Vec<Pictures>,
    /// Captions without pictures, those of one picture together.
    pub texts: Vec<Vec<String>>,
    /// Where visual words are seen, or guessed.
    pub codebook: Option<Codebook>,
    /// `[captions, space]`, rows of length 1: of the usable captions of `train`, in order.
    pub embeddings: Array2<f32>,
    pub fitting: Fitting,
    /// What the training begins with.
    pub from: Option<Trained>,
    pub libraries: Vec<Learnt>,
    pub skipped: Skipped,
}

/// A folder of data that was found to be usable.
enum Data {
    Photos(Collection),
    Library,
}

impl Material {
    /// Reads and encodes what `sources` name. What was encoded before comes from the cache folder, or is
    /// in a library. An error of `progress` ends it.
    ///
    /// # Errors
    /// `InvalidInput` where there is nothing to train on, or a file is not as it should be; `NotFound`
    /// where a model is not set up.
    pub fn load(
        models: &Models,
        config: &Config,
        sources: Sources,
        threads: usize,
        progress: &mut dyn FnMut(Progress) -> Result<()>,
    ) -> Result<Material> {
        let encoder = models.manifest(&config.encoder)?;
        let tower = models.manifest(&config.text)?;
        let from = match &sources.from {
            Some(name) => Some(Trained::named_or_file(models, name)?),
            None => None,
        };
        let device = Device::Auto;
        let eye = Eye { models, encoder: &encoder, device, view: View::WHOLE, threads };
        let mut codebook = match config.needs_codebook() && !config.fits_codebook() {
            true => Some(Codebook::named_or_file(models, &config.codebook)?),
            false => None,
        };
        // All that is named is looked at before anything is encoded.
        if let Some(from) = &from {
            from.fitting.check_space(&space_id(&tower))?;
            if !config.fits_codebook() {
                from.fitting.check(&encoder.identity(), codebook.as_ref().map(Codebook::id))?;
                let (features, space) = (encoder.encoder()?.features.dim, tower.text()?.dim);
                let centroids = codebook.as_ref().map_or(0, Codebook::dims);
                config.continued(from, features, centroids, space)?;
            }
        }
        let seen = codebook.as_ref().filter(|_| config.inputs.tokens);
        let (mut data, mut libraries) = (Vec::new(), Vec::new());
        for folder in &sources.data {
            let named = |error: Error| error.in_source(folder.display());
            if !Collection::is_at(folder) && Reader::is_at(folder) {
                libraries.push(Library::open(folder, config, &encoder, seen).map_err(named)?);
                data.push(Data::Library);
            } else {
                data.push(Data::Photos(collection(folder).map_err(named)?));
            }
        }
        let mut skipped = Skipped::default();
        let taken = Taken {
            dim: encoder.encoder()?.features.dim,
            clips: config.network.clips,
            cells: config.inputs.cells || config.fits_codebook(),
            tower: &tower,
        };
        let mut divided = films::divided(libraries, taken, &mut skipped, progress)?.into_iter();
        let (mut train, mut dev, mut libraries) = (Vec::new(), Vec::new(), Vec::new());
        let mut views = Vec::new();
        for (folder, data) in sources.data.iter().zip(data) {
            match data {
                Data::Library => {
                    if let Some(divided) = divided.next() {
                        train.push(divided.train);
                        dev.push(divided.dev);
                        libraries.push(divided.learnt);
                    }
                }
                Data::Photos(collection) => {
                    let named = |error: Error| error.in_source(folder.display());
                    let (of_train, of_dev) =
                        photos(&collection, eye, &mut skipped, progress).map_err(named)?;
                    for view in View::ALL.into_iter().take(config.steps.views).skip(1) {
                        let eye = Eye { view, ..eye };
                        let seen = seen_again(&collection, &of_train, eye, progress);
                        views.push((train.len(), seen.map_err(named)?));
                    }
                    train.push(of_train);
                    dev.push(of_dev);
                }
            }
        }
        let mut texts = Vec::new();
        for path in &sources.texts {
            let groups = corpus::read_texts(path)?;
            texts.extend(
                groups.into_iter().filter(|group| !corpus::usable(group, &mut skipped).is_empty()),
            );
        }
        let captions: Vec<&str> = train
            .iter()
            .flat_map(captions_of)
            .flat_map(|captions| corpus::usable(captions, &mut skipped))
            .collect();
        if captions.is_empty() {
            return Err(Error::invalid_input(
                "there is no photo with a caption to train on: name a folder with captions.tsv and \
                 images/ that has a split \"train\", or a library of films in which somebody speaks",
            ));
        }
        let (embeddings, space) = embedded(models, &tower, &captions, threads, progress)?;
        if config.fits_codebook() {
            codebook = Some(match &sources.fitted {
                Some(path) => Codebook::load(path)?,
                None => fitted(config, &encoder.id, &train, progress)?,
            });
        }
        let seen = codebook.as_ref().filter(|_| config.inputs.tokens);
        let fitting = Fitting {
            encoder: encoder.identity(),
            codebook: seen.map(|codebook| codebook.id().to_hex().to_string()),
            space,
        };
        if let Some(from) = from.as_ref().filter(|_| config.fits_codebook()) {
            from.fitting.check(&fitting.encoder, codebook.as_ref().map(Codebook::id))?;
        }
        Ok(Material {
            sources,
            train,
            views,
            dev,
            texts,
            codebook,
            embeddings,
            fitting,
            from,
            libraries,
            skipped,
        })
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
        for (name, tensor) in self.from.iter().flat_map(|from| &from.tensors) {
            field(name);
            let bytes: Vec<u8> = tensor.values.iter().flat_map(|x| x.to_le_bytes()).collect();
            field(&blake3::hash(&bytes).to_hex());
        }
        // What a clip looks like follows from where it is and how it was made.
        self.libraries.iter().for_each(|learnt| field(&learnt.clips.id.to_string()));
        hash.finalize()
    }
}

/// # Errors
/// `NotFound` and `InvalidInput` as [`Collection::read`], saying what could be there.
fn collection(folder: &Path) -> Result<Collection> {
    if folder.is_dir() && !Collection::is_at(folder) {
        return Err(Error::not_found(
            "it is neither a library nor a folder with captions.tsv and images/",
        ));
    }
    Collection::read(folder)
}

/// What is trained on of a collection, and what it is scored on.
fn photos(
    collection: &Collection,
    eye: Eye<'_>,
    skipped: &mut Skipped,
    progress: &mut dyn FnMut(Progress) -> Result<()>,
) -> Result<(Pictures, Pictures)> {
    let of_train = Pictures::of_split(collection, "train", eye, progress)?;
    skipped.photos += of_train.failed.len();
    for (image, reason) in &of_train.failed {
        tracing::warn!("left out: {}: {reason}", collection.image_path(image).display());
    }
    let held_out = collection.held_out();
    let is_held_out = |photo: &Photo| held_out.contains(video(photo));
    let of_dev = match collection.has_split("dev") {
        true => Pictures::of_split(collection, "dev", eye, progress)?,
        false => of_train.retained(is_held_out),
    };
    Ok((of_train.retained(|photo| !is_held_out(photo)), of_dev))
}

/// Another view of the photos that are trained on.
fn seen_again(
    collection: &Collection,
    of_train: &Pictures,
    eye: Eye<'_>,
    progress: &mut dyn FnMut(Progress) -> Result<()>,
) -> Result<Pictures> {
    let held_out = collection.held_out();
    let seen = Pictures::of_split(collection, "train", eye, progress)?
        .retained(|photo| !held_out.contains(video(photo)));
    if seen.photos != of_train.photos {
        return Err(Error::unavailable(
            "photos that could be decoded a moment ago cannot be any more: train again when the disk \
             that they are on is well",
        ));
    }
    Ok(seen)
}

/// The captions of each photo or segment.
pub(super) fn captions_of(pictures: &Pictures) -> impl Iterator<Item = &[String]> {
    pictures.segments().map(move |segment| &pictures.photos[segment.start].captions[..])
}

/// A codebook of the pictures and their parts.
///
/// # Errors
/// As [`crate::codebook::fit`]; that of `progress`.
#[cfg(feature = "fit")]
fn fitted(
    config: &Config,
    encoder: &str,
    train: &[Pictures],
    progress: &mut dyn FnMut(Progress) -> Result<()>,
) -> Result<Codebook> {
    use crate::codebook::{FitConfig, FitStep, MAX_DIMS, Shape, fit};
    let dim = train.first().map_or(0, Pictures::dim);
    let all = train.iter().map(|pictures| pictures.len() * pictures.parts()).sum::<usize>();
    let every = all.div_ceil(FITTED_ROWS).max(1);
    let mut rows = Vec::new();
    for pictures in train {
        for photo in (0..pictures.len()).step_by(every) {
            rows.extend(pictures.of_parts(photo, pictures.parts()));
        }
    }
    let rows = Array2::from_shape_vec((rows.len() / dim.max(1), dim), rows)
        .map_err(|cause| Error::internal("features are cut short").caused_by(cause))?;
    let shape = Shape::new(BRANCHING, DEPTH)?;
    let how = FitConfig { shape, dims: MAX_DIMS, seed: config.seed, encoder: encoder.to_owned() };
    let mut stopped = Ok(());
    let codebook = fit(rows.view(), &how, &mut |step| {
        if let (FitStep::Split { nodes, of }, Ok(())) = (step, &stopped) {
            stopped = progress(Progress { what: "nodes", done: nodes, of });
        }
    })?;
    stopped.map(|()| codebook)
}

#[cfg(not(feature = "fit"))]
fn fitted(
    _: &Config,
    _: &str,
    _: &[Pictures],
    _: &mut dyn FnMut(Progress) -> Result<()>,
) -> Result<Codebook> {
    Err(Error::unsupported("this build fits no codebooks: name one in the configuration"))
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
