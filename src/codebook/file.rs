//! A codebook as a safetensors file: `basis` and `centroids` in half precision, `offset`, `counts`,
//! and one metadata entry, `cinelex.codebook`, with shape and origin as JSON. (One entry only: the
//! format's writer keeps metadata in no fixed order, and equal codebooks should be equal files.)

use std::collections::HashMap;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use half::f16;
use ndarray::{Array1, Array2, s};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use super::{Codebook, Level, MAX_DIMS, MAX_INPUT_DIMS, Origin, Shape};
use crate::error::{Error, Result};
use crate::model::Models;

const FORMAT: u32 = 1;
const METADATA: &str = "cinelex.codebook";
/// Larger than any codebook within the limits on shape.
const MAX_FILE_BYTES: u64 = 1 << 30;
/// Bounds the untrusted numbers, so that no distance overflows. Unit vectors stay far below.
const MAX_VALUE: f32 = 1e4;

#[derive(Serialize, Deserialize)]
struct Head {
    format: u32,
    #[serde(flatten)]
    shape: Shape,
    #[serde(flatten)]
    origin: Origin,
}

impl Codebook {
    /// Reads a file; see [`Codebook::from_bytes`].
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = std::fs::metadata(path).map_err(|cause| Error::io(path, "read", cause))?.len();
        if bytes > MAX_FILE_BYTES {
            return Err(corrupt(format!("{bytes} bytes are too many")).in_source(path.display()));
        }
        let bytes = std::fs::read(path).map_err(|cause| Error::io(path, "read", cause))?;
        Self::from_bytes(&bytes).map_err(|error| error.in_source(path.display()))
    }

    /// The codebook of a manifest, by its id or path.
    pub fn named(models: &Models, reference: &str) -> Result<Self> {
        let manifest = models.manifest(reference)?;
        let file = manifest
            .files_here()
            .next()
            .ok_or_else(|| Error::invalid_input(format!("codebook {reference} has no file")))?;
        Self::from_bytes(&models.bytes(&manifest, &file.name)?)
            .map_err(|error| error.in_source(format!("codebook {reference}")))
    }

    /// As [`Codebook::named`], or by the codebook's own file.
    pub fn named_or_file(models: &Models, name: &str) -> Result<Self> {
        if name.ends_with(".safetensors") {
            Self::load(Path::new(name))
        } else {
            Self::named(models, name)
        }
    }

    /// Reads what [`Codebook::to_bytes`] wrote. The bytes are not trusted: Corrupt, with the reason,
    /// where anything is not as a fitted codebook has it.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let (_, metadata) = SafeTensors::read_metadata(bytes)
            .map_err(|cause| corrupt("not a safetensors file").caused_by(cause))?;
        let head = metadata
            .metadata()
            .as_ref()
            .and_then(|entries| entries.get(METADATA))
            .ok_or_else(|| corrupt(format!("the entry {METADATA} is missing")))?;
        let head: Head = serde_json::from_str(head).map_err(|cause| {
            corrupt(format!("the entry {METADATA} is damaged")).caused_by(cause)
        })?;
        if head.format != FORMAT {
            return Err(Error::unsupported(format!(
                "the codebook has format {}, this program reads format {FORMAT}: fit it again with \
                 `cinelex codebook fit`",
                head.format
            )));
        }
        let shape = Shape::new(head.shape.branching, head.shape.depth)
            .map_err(|error| corrupt(error.reason()))?;

        let file = SafeTensors::deserialize(bytes)
            .map_err(|cause| corrupt("not a safetensors file").caused_by(cause))?;
        let tensor = |name: &str, dtype: Dtype| {
            let tensor = file.tensor(name).map_err(|_| corrupt(format!("no tensor {name}")))?;
            if tensor.dtype() != dtype {
                return Err(corrupt(format!("the tensor {name} is not {dtype:?}")));
            }
            Ok(tensor)
        };
        let basis = tensor("basis", Dtype::F16)?;
        let &[input_dims, dims] = basis.shape() else {
            return Err(corrupt("the tensor basis is not a matrix"));
        };
        if !(1..=MAX_INPUT_DIMS).contains(&input_dims) || !(1..=MAX_DIMS).contains(&dims) {
            return Err(corrupt(format!("a projection from {input_dims} to {dims} dimensions")));
        }
        let offset = tensor("offset", Dtype::F32)?;
        let centroids = tensor("centroids", Dtype::F16)?;
        let counts = tensor("counts", Dtype::U32)?;
        let nodes = shape.nodes();
        for (name, tensor, expected) in [
            ("offset", &offset, &[dims][..]),
            ("centroids", &centroids, &[nodes, dims]),
            ("counts", &counts, &[nodes]),
        ] {
            if tensor.shape() != expected {
                return Err(corrupt(format!(
                    "the tensor {name} has shape {:?} instead of {expected:?}",
                    tensor.shape()
                )));
            }
        }
        let halves = |tensor: &TensorView| -> Vec<f32> {
            tensor.data().as_chunks().0.iter().map(|x| f16::from_le_bytes(*x).to_f32()).collect()
        };
        let matrix = |name, rows, tensor: &TensorView| {
            let values = halves(tensor);
            check_values(name, &values)?;
            Array2::from_shape_vec((rows, dims), values)
                .map_err(|cause| Error::internal("tensor shape").caused_by(cause))
        };
        let basis = matrix("basis", input_dims, &basis)?;
        let offset: Vec<f32> =
            offset.data().as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect();
        check_values("offset", &offset)?;
        let centroids = matrix("centroids", nodes, &centroids)?;
        let counts: Vec<u32> =
            counts.data().as_chunks().0.iter().map(|x| u32::from_le_bytes(*x)).collect();

        let mut levels: Vec<Level> = Vec::new();
        let mut start = 0;
        for level in 1..=shape.depth {
            let end = start + shape.nodes_at(level);
            let counts = counts[start..end].to_vec();
            let parents = levels.last().map(|parents| &parents.counts[..]);
            check_counts(parents, &counts, shape)?;
            levels.push(Level::new(centroids.slice(s![start..end, ..]).to_owned(), counts));
            start = end;
        }
        Ok(Codebook {
            shape,
            origin: head.origin,
            basis,
            offset: Array1::from(offset),
            levels,
            id: blake3::hash(bytes),
        })
    }

    /// The file's content; equal codebooks give equal bytes.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        to_bytes(self.shape, &self.origin, &self.basis, &self.offset, &self.levels)
    }

    /// Writes the file whole or not at all.
    pub fn save(&self, path: &Path) -> Result<()> {
        let write = |cause| Error::io(path, "write", cause);
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        // As readable as any file that a program makes; temporary files are not.
        let mut file = tempfile::Builder::new()
            .permissions(std::fs::Permissions::from_mode(0o666))
            .tempfile_in(folder.unwrap_or(Path::new(".")))
            .map_err(write)?;
        file.write_all(&self.to_bytes()?).map_err(write)?;
        file.as_file().sync_all().map_err(write)?;
        file.persist(path).map_err(|error| write(error.error))?;
        Ok(())
    }
}

pub(super) fn to_bytes(
    shape: Shape,
    origin: &Origin,
    basis: &Array2<f32>,
    offset: &Array1<f32>,
    levels: &[Level],
) -> Result<Vec<u8>> {
    let internal = |cause| Error::internal("cannot write the codebook").caused_by(cause);
    let halves = |values: &mut dyn Iterator<Item = &f32>| -> Vec<u8> {
        values.flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect()
    };
    let basis_bytes = halves(&mut basis.iter());
    let offset_bytes: Vec<u8> = offset.iter().flat_map(|x| x.to_le_bytes()).collect();
    let centroid_bytes = halves(&mut levels.iter().flat_map(|level| level.centroids.iter()));
    let count_bytes: Vec<u8> =
        levels.iter().flat_map(|level| &level.counts).flat_map(|n| n.to_le_bytes()).collect();
    let view = |dtype, shape: &[usize], bytes| {
        TensorView::new(dtype, shape.to_vec(), bytes).map_err(internal)
    };
    let (nodes, dims) = (shape.nodes(), basis.ncols());
    let tensors = [
        ("basis", view(Dtype::F16, basis.shape(), &basis_bytes)?),
        ("centroids", view(Dtype::F16, &[nodes, dims], &centroid_bytes)?),
        ("counts", view(Dtype::U32, &[nodes], &count_bytes)?),
        ("offset", view(Dtype::F32, &[dims], &offset_bytes)?),
    ];
    let head = serde_json::to_string(&Head { format: FORMAT, shape, origin: origin.clone() })
        .map_err(|cause| Error::internal("cannot write the codebook").caused_by(cause))?;
    safetensors::serialize(tensors, Some(HashMap::from([(METADATA.to_owned(), head)])))
        .map_err(internal)
}

/// Rounds to what the file can hold, so that a fitted codebook is the one that is loaded later.
#[cfg(feature = "fit")]
pub(super) fn round_to_half(values: &mut Array2<f32>) {
    values.mapv_inplace(|x| f16::from_f32(x).to_f32());
}

fn check_values(name: &str, values: &[f32]) -> Result<()> {
    // Written so that not-a-number fails too.
    if values.iter().all(|x| x.abs() <= MAX_VALUE) {
        Ok(())
    } else {
        Err(corrupt(format!("the tensor {name} holds a value that is no number or too large")))
    }
}

/// Each node was reached by as many samples as its children together: in particular, a living node
/// has a living child.
fn check_counts(parents: Option<&[u32]>, counts: &[u32], shape: Shape) -> Result<()> {
    let sums = counts
        .chunks(shape.branching as usize)
        .map(|children| children.iter().map(|n| u64::from(*n)).sum::<u64>());
    let fits = match parents {
        None => sums.into_iter().all(|sum| sum > 0),
        Some(parents) => sums.zip(parents).all(|(sum, parent)| sum == u64::from(*parent)),
    };
    if fits { Ok(()) } else { Err(corrupt("the sample counts of a node and its children differ")) }
}

fn corrupt(reason: impl std::fmt::Display) -> Error {
    Error::corrupt(format!("this is not a usable codebook: {reason}"))
}
