//! Pictures with their features: of a collection's photos, encoded once and kept in the cache folder, or
//! of the clips of a library.

use std::ops::Range;
use std::path::{Path, PathBuf};

use half::f16;
use ndarray::ArrayView2;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::photos::{self, Collection, Photo, View};
use super::setup::Progress;
use crate::codebook::Codebook;
use crate::error::{Error, Kind, Result};
use crate::library::SeenClip;
use crate::media::{CellFeatures, VisualWord};
use crate::model::{Device, Manifest, Models, Variant};
use crate::picture::{CELLS, Encoder};
use crate::transformer::VisualToken;

/// Changes whenever the same photos would give another file.
const VERSION: u32 = 1;

/// Photos with their features, in the order of the captions' file; or clips of films, in order of time.
#[derive(Debug, Clone, Default)]
pub struct Pictures {
    /// Those that could be decoded.
    pub photos: Vec<Photo>,
    /// Those that could not, with the reason.
    pub failed: Vec<(String, String)>,
    dim: usize,
    features: Features,
    /// Clips that are read together, one after the other all of them; none where each photo is alone.
    segments: Vec<Range<usize>>,
}

/// Features as they are held in memory.
#[derive(Debug, Clone)]
enum Features {
    /// `[photos, 1 + CELLS, dim]`: of the whole picture, then of its parts.
    Photos(Vec<f16>),
    /// Of each clip as a library keeps them, which takes a seventh of that.
    Clips(Vec<(Vec<f16>, CellFeatures)>),
}

impl Default for Features {
    fn default() -> Self {
        Features::Photos(Vec::new())
    }
}

/// What to encode with.
#[derive(Debug, Clone, Copy)]
pub struct Eye<'a> {
    pub models: &'a Models,
    pub encoder: &'a Manifest,
    pub device: Device,
    pub view: View,
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
            && let Features::Photos(features) = &pictures.features
            && let Err(error) = write(&path, [pictures.len(), 1 + CELLS, pictures.dim], features)
        {
            tracing::warn!(%error, "the photos' features are not kept");
        }
        Ok(pictures)
    }

    /// Photos with features made up: `[photos, 1 + CELLS, dim]`.
    #[cfg(test)]
    pub(crate) fn made(photos: Vec<Photo>, dim: usize, features: &[f32]) -> Self {
        let features = Features::Photos(features.iter().map(|x| f16::from_f32(*x)).collect());
        Pictures { photos, dim, features, ..Pictures::default() }
    }

    /// The clips of films, those of each segment together: its captions are those of its first clip.
    /// All have `dim` features, and all or none have cells of as many.
    pub fn of_segments(
        dim: usize,
        segments: impl IntoIterator<Item = Vec<(Photo, SeenClip)>>,
    ) -> Self {
        let mut pictures = Pictures { dim, ..Pictures::default() };
        let mut features = Vec::new();
        for segment in segments {
            let start = pictures.len();
            for (photo, clip) in segment {
                pictures.photos.push(photo);
                features.push((clip.features, clip.cells));
            }
            pictures.segments.push(start..pictures.len());
        }
        pictures.features = Features::Clips(features);
        pictures
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

    /// What is read together, in order: each photo alone, or the clips of a segment.
    pub fn segments(&self) -> impl Iterator<Item = Range<usize>> {
        let alone = if self.segments.is_empty() { 0..self.len() } else { 0..0 };
        self.segments.iter().cloned().chain(alone.map(|photo| photo..photo + 1))
    }

    /// The photos for which `keep` is true; the segments for whose first clip it is.
    pub fn retained(&self, mut keep: impl FnMut(&Photo) -> bool) -> Self {
        let (mut kept, mut segments) = (Vec::new(), Vec::new());
        for segment in self.segments().filter(|segment| keep(&self.photos[segment.start])) {
            segments.push(kept.len()..kept.len() + segment.len());
            kept.extend(segment);
        }
        let each = self.each();
        Pictures {
            photos: kept.iter().map(|photo| self.photos[*photo].clone()).collect(),
            failed: Vec::new(),
            dim: self.dim,
            features: match &self.features {
                Features::Photos(all) => {
                    let of = |photo: &usize| all[photo * each..(photo + 1) * each].iter().copied();
                    Features::Photos(kept.iter().flat_map(of).collect())
                }
                Features::Clips(all) => {
                    Features::Clips(kept.iter().map(|clip| all[*clip].clone()).collect())
                }
            },
            segments: if self.segments.is_empty() { Vec::new() } else { segments },
        }
    }

    /// Features of the whole photo (part 0) or of one of its parts.
    pub fn features(&self, photo: usize, part: usize) -> Vec<f32> {
        self.of_parts(photo, part + 1).split_off(part * self.dim)
    }

    /// Features of the first parts of a photo, one after the other.
    pub fn of_parts(&self, photo: usize, parts: usize) -> Vec<f32> {
        let widened = |halves: &[f16]| -> Vec<f32> { halves.iter().map(|x| x.to_f32()).collect() };
        match &self.features {
            Features::Photos(all) => {
                let at = photo * self.each();
                widened(&all[at..at + parts * self.dim])
            }
            Features::Clips(all) => {
                let (whole, cells) = &all[photo];
                let mut features = widened(whole);
                if parts > 1 {
                    features.extend(cells.values(self.dim).unwrap_or_default());
                }
                features.truncate(parts * self.dim);
                features
            }
        }
    }

    /// Of how many parts there are features: 1 where a library keeps those of whole pictures only.
    pub fn parts(&self) -> usize {
        match &self.features {
            Features::Clips(all) if all.first().is_none_or(|(_, cells)| cells.is_empty()) => 1,
            _ => 1 + CELLS,
        }
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
        if self.with_features {
            seen.features = self.pictures.of_parts(photo, self.parts);
        }
        for part in 0..self.parts {
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
        let of_photo = |photo| pictures.of_parts(photo, parts);
        let rows: Vec<f32> = photos.clone().flat_map(of_photo).collect();
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
    photos::encode(&mut encoder, &paths, eye.view, eye.threads, &mut |photo, features| {
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
    let mut all = Vec::new();
    for (photo, features) in photos.iter().zip(encoded) {
        if let Some(features) = features {
            pictures.photos.push((*photo).clone());
            all.extend(features);
        }
    }
    pictures.features = Features::Photos(all);
    if pictures.is_empty() {
        let (image, why) = pictures.failed.first().cloned().unwrap_or_default();
        return Err(Error::invalid_input(format!("no photo could be used: {image}: {why}")));
    }
    Ok(pictures)
}

/// The file for these photos and this encoder. What the photos' files hold is part of its name, their times
/// are not: a copy of the folder is known again.
fn cached_path(collection: &Collection, photos: &[&Photo], eye: Eye<'_>) -> Result<PathBuf> {
    let mut hash = blake3::Hasher::new();
    let mut field = |bytes: &[u8]| {
        hash.update(&(bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    field(&VERSION.to_le_bytes());
    field(eye.encoder.identity().as_bytes());
    // Features of 8 bits are others than those of 32, and are computed where there is no GPU.
    if eye.encoder.variant == Variant::Int8 {
        field(format!("int8 {} {}", eye.encoder.form(), eye.device).as_bytes());
    }
    field(format!("{:?}", eye.view).as_bytes());
    for photo in photos {
        field(photo.image.as_bytes());
        // One that cannot be read is told of when it is to be encoded.
        let mut held = blake3::Hasher::new();
        let path = collection.path(photo);
        if path.is_file() {
            let _ = std::fs::File::open(path).and_then(|file| held.update_reader(file).map(drop));
        }
        field(held.finalize().as_bytes());
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
    Ok(Pictures { photos, dim, features: Features::Photos(features), ..Pictures::default() })
}

fn write(path: &Path, shape: [usize; 3], features: &[f16]) -> Result<()> {
    use std::io::Write;
    let writing = |cause| Error::io(path, "write", cause);
    let bytes: Vec<u8> = features.iter().flat_map(|x| x.to_le_bytes()).collect();
    let serialized = TensorView::new(Dtype::F16, shape.to_vec(), &bytes)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn photo(name: &str) -> Photo {
        let (image, split) = (name.to_owned(), "train".to_owned());
        Photo { image, split, video: None, captions: Vec::new() }
    }

    #[test]
    fn clips_of_a_segment_stay_together_and_are_seen_as_the_library_keeps_them() {
        let clip = |name: &str, value: f32| {
            let cells: Vec<f32> = (0..CELLS * 2).map(|at| value + at as f32).collect();
            let seen = SeenClip {
                words: Vec::new(),
                features: vec![f16::from_f32(value); 2],
                cells: CellFeatures::new(&cells, 2),
            };
            (photo(name), seen)
        };
        let segments = [vec![clip("a", 1.0), clip("b", 2.0)], vec![clip("c", 3.0)]];
        let pictures = Pictures::of_segments(2, segments);
        assert_eq!(pictures.segments().collect::<Vec<_>>(), [0..2, 2..3]);
        assert_eq!((pictures.len(), pictures.parts()), (3, 1 + CELLS));
        let all = pictures.of_parts(1, 1 + CELLS);
        assert_eq!(all.len(), (1 + CELLS) * 2);
        assert_eq!(all[..2], [2.0, 2.0]);
        assert_eq!(pictures.features(1, 9), all[18..]);
        let kept = pictures.retained(|photo| photo.image == "a");
        assert_eq!(kept.segments().last(), Some(0..2));
        assert_eq!(kept.of_parts(1, 10), all);
        // Of photos, each is read alone.
        let photos = Pictures::made(vec![photo("x"), photo("y")], 2, &[0.5; 2 * 20]);
        assert_eq!(photos.segments().collect::<Vec<_>>(), [0..1, 1..2]);
        assert_eq!(photos.retained(|photo| photo.image == "y").segments().count(), 1);
    }
}
