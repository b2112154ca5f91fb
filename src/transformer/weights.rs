//! A trained network as one safetensors file: its tensors by name, and one metadata entry with what
//! it needs beside them.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use half::f16;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::model::{Manifest, Models};
use crate::onnx::transformer::{Network, Tensors, Weights};
use crate::text::WordPieces;

use super::consensus::Consensus;

const FORMAT: u32 = 1;
const METADATA: &str = "cinelex.transformer";
/// The tensors of a [`Consensus`].
const PIECES: &str = "consensus.pieces";
const LEVELS: &str = "consensus.levels";
/// Larger than any network within the limits on sizes that is trained on a CPU.
const MAX_FILE_BYTES: u64 = 4 << 30;

/// What a network was trained with: what it sees must come from the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fitting {
    /// [`crate::model::Manifest::identity`] of the encoder.
    pub encoder: String,
    /// The hash of the codebook, where the network sees visual words.
    pub codebook: Option<String>,
    /// The space that its embeddings lie in.
    pub space: String,
}

impl Fitting {
    /// Whether what this encoder gives, and the words of the codebook of this hash, are what the
    /// network was trained with.
    ///
    /// # Errors
    /// `InvalidInput`, saying which differs.
    pub fn check(&self, encoder: &str, codebook: Option<blake3::Hash>) -> Result<()> {
        if self.encoder != encoder {
            return Err(Error::invalid_input(format!(
                "the network was trained with the encoder {}, not {encoder}",
                self.encoder
            )));
        }
        let found = codebook.map(|hash| hash.to_hex().to_string());
        if self.codebook.is_some() && self.codebook != found {
            return Err(Error::invalid_input(format!(
                "the network was trained with another codebook ({}) than {}",
                self.codebook.as_deref().unwrap_or("none"),
                found.as_deref().unwrap_or("none")
            )));
        }
        Ok(())
    }

    /// Whether embeddings of this space may be compared with the network's.
    ///
    /// # Errors
    /// `InvalidInput`, with both spaces.
    pub fn check_space(&self, space: &str) -> Result<()> {
        if self.space == space {
            return Ok(());
        }
        Err(Error::invalid_input(format!(
            "the network was trained into the space {}, not {space}",
            self.space
        )))
    }
}

/// A network with all that it needs to run.
#[derive(Debug, Clone)]
pub struct Trained {
    pub network: Network,
    pub pieces: WordPieces,
    pub fitting: Fitting,
    pub tensors: Tensors,
    /// What people wrote, to choose among what it writes.
    pub consensus: Option<Arc<Consensus>>,
}

#[derive(Serialize, Deserialize)]
struct Head {
    format: u32,
    network: Network,
    fitting: Fitting,
    /// One piece a line.
    pieces: String,
}

impl Trained {
    /// Reads what [`Trained::save`] wrote.
    ///
    /// # Errors
    /// `NotFound`; `Corrupt` or `InvalidInput`, naming what is not as it should be.
    pub fn load(path: &Path) -> Result<Trained> {
        Self::from_bytes(&file_bytes(path)?).map_err(|error| error.in_source(path.display()))
    }

    /// The network of a captioner's manifest.
    ///
    /// # Errors
    /// As [`Models::bytes`] and [`Trained::load`].
    pub fn named(models: &Models, manifest: &Manifest) -> Result<Trained> {
        let file = manifest.files_here().next().ok_or_else(|| {
            Error::invalid_input(format!("captioner {} has no file", manifest.id))
        })?;
        Self::from_bytes(&models.bytes(manifest, &file.name)?)
            .map_err(|error| error.in_source(format!("captioner {}", manifest.id)))
    }

    /// Of this name: a file that [`Trained::save`] wrote, or the id or path of a captioner's manifest.
    ///
    /// # Errors
    /// As [`Trained::load`], [`Models::manifest`] and [`Trained::named`].
    pub fn named_or_file(models: &Models, name: &str) -> Result<Trained> {
        match name.ends_with(".safetensors") {
            true => Self::load(Path::new(name)),
            false => Self::named(models, &models.manifest(name)?),
        }
    }

    fn from_bytes(bytes: &[u8]) -> Result<Trained> {
        let (head, file) = opened(bytes, METADATA)?;
        let Head { format, network, fitting, pieces } =
            serde_json::from_str(&head).map_err(|cause| {
                Error::corrupt(format!("the entry {METADATA} is damaged")).caused_by(cause)
            })?;
        if format != FORMAT {
            return Err(Error::unsupported(format!(
                "the network has format {format}, this program reads format {FORMAT}"
            )));
        }
        let pieces = WordPieces::from_lines(&pieces)?;
        if pieces.count() != network.vocabulary {
            return Err(Error::corrupt(format!(
                "{} word pieces do not fit a network of {}",
                pieces.count(),
                network.vocabulary
            )));
        }
        network.check()?;
        let tensors = tensors_of(&file)?;
        network.check_tensors(&tensors)?;
        let consensus = consensus_of(&file, network.space)?.map(Arc::new);
        Ok(Trained { network, pieces, fitting, tensors, consensus })
    }

    /// Writes the network, whole or not at all; its numbers as f16, which says as much of a picture (see
    /// `ARCHITECTURE.md`) in half the bytes.
    pub fn save(&self, path: &Path) -> Result<()> {
        let head = Head {
            format: FORMAT,
            network: self.network,
            fitting: self.fitting.clone(),
            pieces: self.pieces.to_lines(),
        };
        let head = serde_json::to_string(&head)
            .map_err(|cause| Error::internal("cannot write JSON").caused_by(cause))?;
        let kept = self.consensus.as_ref().map(|known| (known.piece_bytes(), known));
        let mut views = Vec::new();
        if let Some((pieces, known)) = &kept {
            let levels = known.levels();
            let shape = vec![known.len(), levels.len() / known.len().max(1)];
            views.push((PIECES, view(Dtype::U16, vec![pieces.len() / 2], pieces)?));
            views.push((LEVELS, view(Dtype::U8, shape, levels)?));
        }
        write(path, METADATA, &head, &self.tensors, Numbers::F16, views)
    }
}

/// The metadata entry `entry` of a safetensors file, and its tensors: f32 or f16.
///
/// # Errors
/// `NotFound`; `Corrupt` where the file is cut short, or is none.
pub fn read_tensors(path: &Path, entry: &str) -> Result<(String, Tensors)> {
    let bytes = file_bytes(path)?;
    let read = opened(&bytes, entry).and_then(|(head, file)| Ok((head, tensors_of(&file)?)));
    read.map_err(|error| error.in_source(path.display()))
}

fn file_bytes(path: &Path) -> Result<Vec<u8>> {
    let reading = |cause| Error::io(path, "read", cause);
    let bytes = std::fs::metadata(path).map_err(reading)?.len();
    if bytes > MAX_FILE_BYTES {
        let error = Error::corrupt(format!("{bytes} bytes are too many for a network"));
        return Err(error.in_source(path.display()));
    }
    std::fs::read(path).map_err(reading)
}

/// A safetensors file with its metadata entry `entry`.
fn opened<'a>(bytes: &'a [u8], entry: &str) -> Result<(String, SafeTensors<'a>)> {
    let unusable = || Error::corrupt("no usable safetensors file, or one cut short");
    let (_, metadata) =
        SafeTensors::read_metadata(bytes).map_err(|cause| unusable().caused_by(cause))?;
    let head = metadata
        .metadata()
        .as_ref()
        .and_then(|entries| entries.get(entry))
        .ok_or_else(|| Error::corrupt(format!("the entry {entry} is missing")))?
        .clone();
    let file = SafeTensors::deserialize(bytes).map_err(|cause| unusable().caused_by(cause))?;
    Ok((head, file))
}

/// The tensors of a file but for those of a [`Consensus`].
fn tensors_of(file: &SafeTensors<'_>) -> Result<Tensors> {
    let mut tensors = BTreeMap::new();
    for (name, view) in file.iter().filter(|(name, _)| ![PIECES, LEVELS].contains(name)) {
        let values = match view.dtype() {
            Dtype::F32 => {
                view.data().as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect()
            }
            Dtype::F16 => {
                view.data().as_chunks().0.iter().map(|x| f16::from_le_bytes(*x).to_f32()).collect()
            }
            other => {
                return Err(Error::corrupt(format!(
                    "the tensor {name} is {other:?}, not F32 or F16"
                )));
            }
        };
        tensors.insert(name.to_owned(), Weights { shape: view.shape().to_vec(), values });
    }
    Ok(tensors)
}

/// `space`: the numbers of an embedding.
fn consensus_of(file: &SafeTensors<'_>, space: usize) -> Result<Option<Consensus>> {
    let part = |name, kind| file.tensor(name).ok().filter(|view| view.dtype() == kind);
    let (pieces, levels) = match (part(PIECES, Dtype::U16), part(LEVELS, Dtype::U8)) {
        (Some(pieces), Some(levels)) => (pieces, levels),
        _ if file.tensor(PIECES).is_err() && file.tensor(LEVELS).is_err() => return Ok(None),
        _ => return Err(Error::corrupt(format!("the tensors {PIECES} and {LEVELS} do not fit"))),
    };
    let pieces = pieces.data().as_chunks().0.iter().map(|x| u16::from_le_bytes(*x));
    Consensus::of_parts(space, pieces.collect(), levels.data().to_vec()).map(Some)
}

/// How a file stores its tensors' numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Numbers {
    F32,
    F16,
}

/// Writes tensors and one metadata entry: to another name first, synced, then renamed, so that what was
/// there stays until all is written.
pub fn write_tensors(
    path: &Path,
    entry: &str,
    head: &str,
    tensors: &Tensors,
    numbers: Numbers,
) -> Result<()> {
    write(path, entry, head, tensors, numbers, Vec::new())
}

/// As [`write_tensors`], with `others` beside them.
fn write(
    path: &Path,
    entry: &str,
    head: &str,
    tensors: &Tensors,
    numbers: Numbers,
    others: Vec<(&str, TensorView<'_>)>,
) -> Result<()> {
    let failed = |cause: std::io::Error| Error::io(path, "write", cause);
    let bytes_of = |values: &[f32]| -> Vec<u8> {
        match numbers {
            Numbers::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Numbers::F16 => values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
        }
    };
    let dtype = match numbers {
        Numbers::F32 => Dtype::F32,
        Numbers::F16 => Dtype::F16,
    };
    let bytes: BTreeMap<&str, Vec<u8>> =
        tensors.iter().map(|(name, weights)| (&name[..], bytes_of(&weights.values))).collect();
    let mut views = others;
    for ((name, weights), bytes) in tensors.iter().zip(bytes.values()) {
        views.push((name, view(dtype, weights.shape.clone(), bytes)?));
    }
    let metadata = HashMap::from([(entry.to_owned(), head.to_owned())]);
    let file = safetensors::serialize(views, Some(metadata)).map_err(unwritable)?;

    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let mut scratch = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
    scratch.write_all(&file).map_err(failed)?;
    scratch.as_file().sync_all().map_err(failed)?;
    scratch.persist(path).map_err(|error| failed(error.error))?;
    // The rename itself is durable only when the folder is.
    std::fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)
}

fn view(dtype: Dtype, shape: Vec<usize>, bytes: &[u8]) -> Result<TensorView<'_>> {
    TensorView::new(dtype, shape, bytes).map_err(unwritable)
}

fn unwritable(cause: safetensors::SafeTensorError) -> Error {
    Error::internal("tensors cannot be written").caused_by(cause)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn another_encoder_or_codebook_is_refused_by_name() {
        let fitting =
            Fitting { encoder: "a 1".into(), codebook: Some("12".into()), space: "x".into() };
        let refused = fitting.check("b 1", None).unwrap_err().to_string();
        assert!(refused.contains("the encoder a 1, not b 1"), "{refused}");
        let refused = fitting.check("a 1", None).unwrap_err().to_string();
        assert!(refused.contains("another codebook (12) than none"), "{refused}");
        let refused = fitting.check_space("y").unwrap_err().to_string();
        assert!(refused.contains("the space x, not y"), "{refused}");
        assert!(Fitting { codebook: None, ..fitting }.check("a 1", None).is_ok());
    }

    #[test]
    fn captions_beside_a_network_are_whole_or_refused() {
        let consensus = |parts: &[(&str, Dtype, usize, &[u8])]| {
            let views = parts.iter().map(|(name, dtype, count, bytes)| {
                (*name, TensorView::new(*dtype, vec![*count], bytes).unwrap())
            });
            let bytes = safetensors::serialize(views, None).unwrap();
            consensus_of(&SafeTensors::deserialize(&bytes).unwrap(), 4)
        };
        // Two captions of one piece; a number of four has two bytes.
        let sep = crate::text::pieces::SEP as u8;
        let pieces: &[u8] = &[9, 0, sep, 0, 10, 0, sep, 0];
        let whole = [(PIECES, Dtype::U16, 4, pieces), (LEVELS, Dtype::U8, 4, &[0x88; 4][..])];
        assert_eq!(consensus(&whole).unwrap().unwrap().len(), 2);
        assert!(consensus(&[]).unwrap().is_none());
        for wrong in [
            &whole[..1],
            &whole[1..],
            &[whole[0], (LEVELS, Dtype::U8, 3, &[0; 3][..])],
            &[whole[0], (LEVELS, Dtype::I8, 4, &[0; 4][..])],
            &[(PIECES, Dtype::U16, 3, &pieces[..6]), whole[1]],
        ] {
            assert_eq!(consensus(wrong).unwrap_err().kind(), Kind::Corrupt);
        }
    }

    #[test]
    fn tensors_come_back_and_a_file_cut_short_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let weights = Weights { shape: vec![2, 1], values: vec![0.5, -3.0] };
        let tensors = Tensors::from([("a.b".to_owned(), weights)]);
        for numbers in [Numbers::F16, Numbers::F32] {
            write_tensors(&path, "test", "{}", &tensors, numbers).unwrap();
            assert_eq!(read_tensors(&path, "test").unwrap(), ("{}".to_owned(), tensors.clone()));
        }
        let missing = read_tensors(&path, "other").unwrap_err();
        assert!(missing.to_string().contains("the entry other is missing"), "{missing}");

        let bytes = std::fs::read(&path).unwrap();
        for length in 0..bytes.len() {
            std::fs::write(&path, &bytes[..length]).unwrap();
            assert_eq!(read_tensors(&path, "test").unwrap_err().kind(), Kind::Corrupt);
        }
        // What cannot be written leaves what was there.
        let gone = folder.path().join("missing/x.safetensors");
        assert!(write_tensors(&gone, "test", "{}", &tensors, Numbers::F32).is_err());
        assert_eq!(std::fs::read(&path).unwrap().len(), bytes.len() - 1);
    }
}
