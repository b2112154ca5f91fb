//! The features of a collection's photos, encoded once and kept in the cache folder.

use std::path::{Path, PathBuf};

use half::f16;
use ndarray::ArrayView2;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::photos::{self, Collection, Photo};
use super::setup::Progress;
use crate::codebook::Codebook;
use crate::error::{Error, Kind, Result};
use crate::media::VisualWord;
use crate::model::{Device, Manifest, Models};
use crate::picture::{CELLS, Encoder};
use crate::transformer::VisualToken;

/// Changes whenever the same photos would give another file.
const VERSION: u32 = 1;

/// Photos with their features, in the order of the captions' file.
#[derive(Debug, Clone, Default)]
pub struct Pictures {
    /// Those that could be decoded.
    pub photos: Vec<Photo>,
    /// Those that could not, with the reason.
    pub failed: Vec<(String, String)>,
    dim: usize,
    /// `[photos, 1 + CELLS, dim]`: of the whole picture, then of its parts.
    features: Vec<f16>,
}

/// What to encode with.
#[derive(Debug, Clone, Copy)]
pub struct Eye<'a> {
    pub models: &'a Models,
    pub encoder: &'a Manifest,
    pub device: Device,
    /// Threads of the encoder, and decoder hosts side by side.
    pub threads: usize,
}

impl Pictures {
    /// The photos of a split, from the cache folder where they have been encoded before.
    ///
    /// # Errors
    /// `NotFound` where the split has no photos or the encoder is not set up; `InvalidInput` for an
    /// encoder that sees no parts, or where no photo can be decoded.
    pub fn of_split(
        collection: &Collection,
        split: &str,
        eye: Eye<'_>,
        progress: &mut dyn FnMut(Progress) -> Result<()>,
    ) -> Result<Self> {
        let photos = collection.of_split(split)?;
        let spec = eye.encoder.encoder()?;
        if spec.cells.is_none() {
            return Err(Error::invalid_input(format!(
                "the encoder {} gives no features of the parts of a picture",
                eye.encoder.id
            )));
        }
        let path = cached_path(collection, &photos, eye)?;
        match read(&path, &photos, spec.features.dim) {
            Ok(pictures) => return Ok(pictures),
            Err(error) if error.kind() == Kind::NotFound => (),
            Err(error) => tracing::warn!(%error, "the photos are encoded again"),
        }
        let pictures = encode(collection, &photos, eye, progress)?;
        // A failure may pass (a disk that was away), so only what is complete is kept.
        if pictures.failed.is_empty()
            && let Err(error) = write(&path, &pictures)
        {
            tracing::warn!(%error, "the photos' features are not kept");
        }
        Ok(pictures)
    }

    /// Photos with features made up: `[photos, 1 + CELLS, dim]`.
    #[cfg(test)]
    pub(crate) fn made(photos: Vec<Photo>, dim: usize, features: &[f32]) -> Self {
        let features = features.iter().map(|x| f16::from_f32(*x)).collect();
        Pictures { photos, failed: Vec::new(), dim, features }
    }

    /// How many photos.
    pub fn len(&self) -> usize {
        self.photos.len()
    }

    pub fn is_empty(&self) -> bool {
        self.photos.is_empty()
    }

    /// Length of the features.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// The photos for which `keep` is true.
    pub fn retained(&self, mut keep: impl FnMut(&Photo) -> bool) -> Self {
        let mut kept = Pictures { dim: self.dim, ..Pictures::default() };
        for (photo, features) in self.photos.iter().zip(self.features.chunks(self.each())) {
            if keep(photo) {
                kept.photos.push(photo.clone());
                kept.features.extend_from_slice(features);
            }
        }
        kept
    }

    /// Features of the whole photo (part 0) or of one of its parts.
    pub fn features(&self, photo: usize, part: usize) -> Vec<f32> {
        let at = photo * self.each() + part * self.dim;
        self.features[at..at + self.dim].iter().map(|x| x.to_f32()).collect()
    }

    /// Values of one photo.
    fn each(&self) -> usize {
        (1 + CELLS) * self.dim
    }
}

/// Photos as a network sees them.
#[derive(Debug)]
pub struct Visuals<'a> {
    pictures: &'a Pictures,
    with_features: bool,
    /// With each photo's and part's word.
    codebook: Option<(&'a Codebook, Vec<VisualWord>)>,
    /// Tokens of a photo.
    parts: usize,
}

/// One photo as a network sees it.
#[derive(Debug)]
pub struct Seen {
    parts: usize,
    features: Vec<f32>,
    centroids: Vec<f32>,
}

impl<'a> Visuals<'a> {
    /// With `cells` parts beside the whole (0 or [`CELLS`]), and with words where there is a codebook.
    ///
    /// # Errors
    /// `InvalidInput` where the codebook is for other features.
    pub fn new(
        pictures: &'a Pictures,
        with_features: bool,
        codebook: Option<&'a Codebook>,
        cells: usize,
    ) -> Result<Self> {
        let parts = 1 + cells.min(CELLS);
        let worded = |codebook| -> Result<_> { Ok((codebook, words(pictures, codebook, parts)?)) };
        let codebook = codebook.map(worded).transpose()?;
        Ok(Visuals { pictures, with_features, codebook, parts })
    }

    pub fn pictures(&self) -> &Pictures {
        self.pictures
    }

    /// The visual word of a photo or of one of its parts, where there is a codebook.
    pub fn word(&self, photo: usize, part: usize) -> Option<VisualWord> {
        let (_, words) = self.codebook.as_ref()?;
        words.get(photo * self.parts + part).copied()
    }

    pub fn seen(&self, photo: usize) -> Seen {
        let mut seen = Seen { parts: self.parts, features: Vec::new(), centroids: Vec::new() };
        for part in 0..self.parts {
            if self.with_features {
                seen.features.extend(self.pictures.features(photo, part));
            }
            if let (Some((codebook, _)), Some(word)) = (&self.codebook, self.word(photo, part)) {
                match codebook.centroid(word) {
                    Some(centroid) => seen.centroids.extend(centroid),
                    // No walk down the tree ends at a dead leaf.
                    None => seen.centroids.extend(std::iter::repeat_n(0.0, codebook.dims())),
                }
            }
        }
        seen
    }
}

impl Seen {
    /// The photo's tokens, as the clip `clip` of a segment.
    pub fn tokens(&self, clip: usize) -> Vec<VisualToken<'_>> {
        let part = |values: &'_ [f32], cell: usize| {
            let each = values.len() / self.parts;
            cell * each..(cell + 1) * each
        };
        (0..self.parts)
            .map(|cell| VisualToken {
                clip,
                cell,
                features: &self.features[part(&self.features, cell)],
                centroid: &self.centroids[part(&self.centroids, cell)],
            })
            .collect()
    }
}

fn words(pictures: &Pictures, codebook: &Codebook, parts: usize) -> Result<Vec<VisualWord>> {
    /// Photos whose features are widened to 32 bits at a time.
    const AT_A_TIME: usize = 256;
    let mut words = Vec::with_capacity(pictures.len() * parts);
    for from in (0..pictures.len()).step_by(AT_A_TIME) {
        let photos = from..pictures.len().min(from + AT_A_TIME);
        let rows: Vec<f32> = photos
            .clone()
            .flat_map(|photo| (0..parts).flat_map(move |part| pictures.features(photo, part)))
            .collect();
        let rows = ArrayView2::from_shape((photos.len() * parts, pictures.dim), &rows)
            .map_err(|cause| Error::internal("features are cut short").caused_by(cause))?;
        words.extend(codebook.quantize(rows)?);
    }
    Ok(words)
}

fn encode(
    collection: &Collection,
    photos: &[&Photo],
    eye: Eye<'_>,
    progress: &mut dyn FnMut(Progress) -> Result<()>,
) -> Result<Pictures> {
    let mut encoder = Encoder::load(eye.models, eye.encoder, eye.device, eye.threads)?;
    let paths: Vec<PathBuf> = photos.iter().map(|photo| collection.path(photo)).collect();
    let mut encoded: Vec<Option<Vec<f16>>> = vec![None; photos.len()];
    let mut failed = Vec::new();
    let mut done = 0;
    photos::encode(&mut encoder, &paths, eye.threads, &mut |photo, features| {
        match features {
            Ok(frame) => {
                let all = frame.features.iter().chain(&frame.cells);
                encoded[photo] = Some(all.map(|x| f16::from_f32(*x)).collect());
            }
            Err(error) => failed.push((photos[photo].image.clone(), error.reason())),
        }
        done += 1;
        progress(Progress { what: "photos", done, of: photos.len() })
    })?;
    failed.sort();
    let mut pictures = Pictures { failed, dim: encoder.dim(), ..Pictures::default() };
    for (photo, features) in photos.iter().zip(encoded) {
        if let Some(features) = features {
            pictures.photos.push((*photo).clone());
            pictures.features.extend(features);
        }
    }
    if pictures.is_empty() {
        let (image, why) = pictures.failed.first().cloned().unwrap_or_default();
        return Err(Error::invalid_input(format!("no photo could be used: {image}: {why}")));
    }
    Ok(pictures)
}

/// The file for these photos and this encoder. Sizes and times of the photos' files are part of its
/// name: others are encoded again.
fn cached_path(collection: &Collection, photos: &[&Photo], eye: Eye<'_>) -> Result<PathBuf> {
    let mut hash = blake3::Hasher::new();
    let mut field = |bytes: &[u8]| {
        hash.update(&(bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    field(&VERSION.to_le_bytes());
    field(eye.encoder.identity().as_bytes());
    for photo in photos {
        field(photo.image.as_bytes());
        let found = std::fs::metadata(collection.path(photo)).ok();
        let modified = found.as_ref().and_then(|found| found.modified().ok());
        let modified = modified.and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
        field(&found.map_or(0, |found| found.len()).to_le_bytes());
        field(&modified.map_or(0, |at| at.as_nanos()).to_le_bytes());
    }
    let name = format!("photos-{}.safetensors", &hash.finalize().to_hex()[..32]);
    Ok(eye.models.cache_folder().join("derived").join(name))
}

fn read(path: &Path, photos: &[&Photo], dim: usize) -> Result<Pictures> {
    let damaged = || Error::corrupt(format!("{} is damaged", path.display()));
    let bytes = std::fs::read(path).map_err(|cause| Error::io(path, "read", cause))?;
    let (hash, bytes) = bytes.split_first_chunk::<32>().ok_or_else(damaged)?;
    if blake3::hash(bytes) != *hash {
        return Err(damaged());
    }
    let file = SafeTensors::deserialize(bytes).map_err(|_| damaged())?;
    let features = file.tensor("features").map_err(|_| damaged())?;
    if features.shape() != [photos.len(), 1 + CELLS, dim] || features.dtype() != Dtype::F16 {
        return Err(damaged());
    }
    let features = features.data().as_chunks().0.iter().map(|x| f16::from_le_bytes(*x)).collect();
    let photos = photos.iter().map(|photo| (*photo).clone()).collect();
    Ok(Pictures { photos, failed: Vec::new(), dim, features })
}

fn write(path: &Path, pictures: &Pictures) -> Result<()> {
    use std::io::Write;
    let writing = |cause| Error::io(path, "write", cause);
    let bytes: Vec<u8> = pictures.features.iter().flat_map(|x| x.to_le_bytes()).collect();
    let shape = vec![pictures.len(), 1 + CELLS, pictures.dim];
    let serialized = TensorView::new(Dtype::F16, shape, &bytes)
        .and_then(|view| safetensors::serialize([("features", view)], None))
        .map_err(|cause| Error::internal("features cannot be written").caused_by(cause))?;
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(writing)?;
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(writing)?;
    file.write_all(blake3::hash(&serialized).as_bytes()).map_err(writing)?;
    file.write_all(&serialized).map_err(writing)?;
    file.as_file().sync_all().map_err(writing)?;
    file.persist(path).map_err(|error| writing(error.error))?;
    Ok(())
}
