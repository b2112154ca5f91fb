//! The joint space without training: ConSE (Norouzi et al. 2014, "Zero-shot learning by convex
//! combination of semantic embeddings").
//!
//! A picture's class probabilities weigh the sentence embeddings of the class names. Three choices
//! differ from the paper, each because it did better on Flickr8k's 1,000 development photos
//! (captions as queries, recall at 10, the paper's 10 likeliest classes: 22.5 %):
//!
//! - the names are put as "a photo of a goldfish.", and their mean is taken off, so that what all
//!   names have in common says nothing (23.8);
//! - weights are square roots of probabilities, since the network is surer than it should be, and its
//!   second thoughts name what else is in the picture (25.1);
//! - all classes take part, not ten (28.4).

use std::io::Write;
use std::path::{Path, PathBuf};

use ndarray::{Array1, Array2, Axis};

use super::{TextTower, space_id};
use crate::error::{Error, Kind, Result};
use crate::model::{Manifest, Models};

/// Changes whenever the same names and tower would give other directions, but for rounding.
const VERSION: u32 = 1;

/// Maps an encoder's class probabilities to where words about the picture lie. Words need no
/// mapping: the space is that of the text tower.
#[derive(Debug, Clone)]
pub struct JointSpace {
    /// `[classes, dim]`: the names' embeddings less their mean.
    directions: Array2<f32>,
    space: String,
    id: blake3::Hash,
}

impl JointSpace {
    /// The joint space of an encoder's classes and a text tower. The names' embeddings are kept in
    /// the cache folder: only the first time on a machine loads the tower, with `threads`.
    ///
    /// # Errors
    /// `InvalidInput` for an encoder without classes; `NotFound` where a model is not set up.
    pub fn open(
        models: &Models,
        encoder: &Manifest,
        tower: &Manifest,
        threads: usize,
    ) -> Result<Self> {
        let classes = encoder.encoder()?.classes.as_ref().ok_or_else(|| {
            Error::invalid_input(format!(
                "model {} tells no classes apart, so its pictures cannot be mapped to words",
                encoder.id
            ))
        })?;
        let names: Vec<String> = models
            .classes(&classes.names)?
            .into_iter()
            .map(|class| format!("a photo of a {}.", class.name.replace('_', " ")))
            .collect();
        if names.len() != classes.output.dim {
            return Err(Error::invalid_input(format!(
                "model {} has {} classes, but {} names {}",
                encoder.id,
                classes.output.dim,
                classes.names,
                names.len()
            )));
        }
        let shape = (names.len(), tower.text()?.dim);
        let id = identity(tower, &names);
        let path = cached_path(models, id, tower.form());
        let embeddings = match read(&path, shape) {
            Ok(embeddings) => embeddings,
            Err(error) => {
                if error.kind() != Kind::NotFound {
                    tracing::warn!(%error, "the class names are embedded again");
                }
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                let embeddings = TextTower::load(models, tower, threads)?.embed(&names)?;
                // A cache that cannot be written costs time, not the result.
                if let Err(error) = write(&path, &embeddings) {
                    tracing::warn!(%error, "the class names' embeddings are not kept");
                }
                embeddings
            }
        };
        Ok(Self::new(embeddings, space_id(tower), id))
    }

    fn new(embeddings: Array2<f32>, space: String, id: blake3::Hash) -> Self {
        let count = embeddings.nrows().max(1) as f32;
        let mean = embeddings.sum_axis(Axis(0)) / count;
        JointSpace { directions: embeddings - &mean, space, id }
    }

    /// Length of an embedding.
    pub fn dim(&self) -> usize {
        self.directions.ncols()
    }

    /// The id of the space that the embeddings lie in: that of [`TextTower::space`].
    pub fn space(&self) -> &str {
        &self.space
    }

    /// The hash of everything that changes a picture's embedding beside its class probabilities.
    pub fn id(&self) -> blake3::Hash {
        self.id
    }

    /// The unit vector of a picture with these class probabilities.
    ///
    /// # Errors
    /// `InvalidInput` where their number differs from the encoder's; `Corrupt` where they point
    /// nowhere: all zero, negative or not finite.
    pub fn picture(&self, classes: &[f32]) -> Result<Vec<f32>> {
        if classes.len() != self.directions.nrows() {
            return Err(Error::invalid_input(format!(
                "{} class probabilities do not fit a joint space of {} classes",
                classes.len(),
                self.directions.nrows()
            )));
        }
        let weights: Array1<f32> = classes.iter().map(|share| share.sqrt()).collect();
        let sum = weights.dot(&self.directions);
        let length = sum.dot(&sum).sqrt();
        if !length.is_finite() || length == 0.0 {
            return Err(Error::corrupt("the class probabilities point nowhere"));
        }
        Ok(sum.iter().map(|x| x / length).collect())
    }
}

/// The hash of the tower's files and the names.
fn identity(tower: &Manifest, names: &[String]) -> blake3::Hash {
    let mut hash = blake3::Hasher::new();
    let mut field = |bytes: &[u8]| {
        hash.update(&(bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    field(&VERSION.to_le_bytes());
    for file in tower.files_here() {
        field(file.sha256.as_bytes());
    }
    for name in names {
        field(name.as_bytes());
    }
    hash.finalize()
}

fn cached_path(models: &Models, id: blake3::Hash, form: u32) -> PathBuf {
    let name = format!("class-names-{}.v{form}.f32", &id.to_hex()[..32]);
    models.cache_folder().join("derived").join(name)
}

/// Reads what [`write`] wrote: BLAKE3 of the rest, then the rows, little endian.
fn read(path: &Path, shape: (usize, usize)) -> Result<Array2<f32>> {
    let reading = |cause| Error::io(path, "read", cause);
    let damaged = || Error::corrupt(format!("{} is damaged", path.display()));
    let expected = 32 + 4 * shape.0 * shape.1;
    if std::fs::metadata(path).map_err(reading)?.len() != expected as u64 {
        return Err(damaged());
    }
    let bytes = std::fs::read(path).map_err(reading)?;
    let (hash, rows) = bytes.split_first_chunk::<32>().ok_or_else(damaged)?;
    if blake3::hash(rows) != *hash {
        return Err(damaged());
    }
    let values = rows.as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect();
    Array2::from_shape_vec(shape, values).map_err(|_| damaged())
}

fn write(path: &Path, embeddings: &Array2<f32>) -> Result<()> {
    let writing = |cause| Error::io(path, "write", cause);
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(writing)?;
    let rows: Vec<u8> = embeddings.iter().flat_map(|x| x.to_le_bytes()).collect();
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(writing)?;
    file.write_all(blake3::hash(&rows).as_bytes()).map_err(writing)?;
    file.write_all(&rows).map_err(writing)?;
    file.as_file().sync_all().map_err(writing)?;
    file.persist(path).map_err(|error| writing(error.error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;
    use proptest::prelude::*;

    fn space() -> JointSpace {
        let embeddings = array![[1.0, 0.0, 0.2], [0.0, 1.0, 0.2], [-0.6, -0.6, 0.2]];
        JointSpace::new(embeddings, "test 1".into(), blake3::hash(b""))
    }

    #[test]
    fn a_sure_picture_lies_where_its_class_does() {
        let space = space();
        let picture = space.picture(&[1.0, 0.0, 0.0]).unwrap();
        let expected = space.directions.row(0);
        let cosine: f32 = picture.iter().zip(expected).map(|(a, b)| a * b).sum();
        assert!((cosine / expected.dot(&expected).sqrt() - 1.0).abs() < 1e-6);
        // What the names have in common (the last coordinate) says nothing.
        assert!(picture[2].abs() < 1e-6);
    }

    #[test]
    fn probabilities_that_point_nowhere_are_refused() {
        let space = space();
        assert_eq!(space.picture(&[0.0; 3]).unwrap_err().kind(), Kind::Corrupt);
        assert_eq!(space.picture(&[f32::NAN, 1.0, 0.0]).unwrap_err().kind(), Kind::Corrupt);
        assert_eq!(space.picture(&[1.0; 4]).unwrap_err().kind(), Kind::InvalidInput);
    }

    #[test]
    fn a_damaged_cache_file_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("derived/x.f32");
        let rows = array![[1.0, 2.0], [3.0, 4.0]];
        assert_eq!(read(&path, (2, 2)).unwrap_err().kind(), Kind::NotFound);
        write(&path, &rows).unwrap();
        assert_eq!(read(&path, (2, 2)).unwrap(), rows);
        assert_eq!(read(&path, (2, 3)).unwrap_err().kind(), Kind::Corrupt);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[40] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(read(&path, (2, 2)).unwrap_err().kind(), Kind::Corrupt);
    }

    proptest! {
        #[test]
        fn a_picture_is_a_unit_vector(classes in prop::collection::vec(0.0f32..1.0, 3)) {
            if let Ok(picture) = space().picture(&classes) {
                let length: f32 = picture.iter().map(|x| x * x).sum();
                prop_assert!((length - 1.0).abs() < 1e-4);
            }
        }
    }
}
