//! Reading CTranslate2's `model.bin`: named arrays with their shapes, one after the other.
//!
//! The format: `ModelSpec._serialize` in CTranslate2's `python/ctranslate2/specs/model_spec.py`,
//! version 6.

use std::collections::BTreeMap;

use half::f16;

use super::pickle::Reader;
use crate::error::{Error, Result};

const VERSION: u32 = 6;
/// More arrays than any Whisper has.
const MOST_VARIABLES: u32 = 4_096;
const MOST_AXES: u8 = 4;

/// The arrays of a model, borrowed from its bytes, each taken once.
#[derive(Debug)]
pub(super) struct Variables<'a> {
    arrays: BTreeMap<&'a str, Array<'a>>,
}

/// A row-major array.
#[derive(Debug, Clone)]
struct Array<'a> {
    shape: Vec<usize>,
    kind: Kind,
    bytes: &'a [u8],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    F32,
    F16,
    /// Whole numbers of this many bytes.
    Int(usize),
}

impl Kind {
    fn read(id: u8) -> Option<Kind> {
        Some(match id {
            0 => Kind::F32,
            1 => Kind::Int(1),
            2 => Kind::Int(2),
            3 => Kind::Int(4),
            4 => Kind::F16,
            _ => return None,
        })
    }

    fn bytes(self) -> usize {
        match self {
            Kind::F32 => 4,
            Kind::F16 => 2,
            Kind::Int(bytes) => bytes,
        }
    }
}

impl<'a> Variables<'a> {
    /// Reads a model that was converted as `spec` (`WhisperSpec`).
    ///
    /// # Errors
    /// `Corrupt`, with the byte.
    pub(super) fn read(bytes: &'a [u8], spec: &str) -> Result<Variables<'a>> {
        let mut reader = Reader::new(bytes);
        if word(&mut reader)? != VERSION {
            return Err(reader.wrong("it is no CTranslate2 model of version 6"));
        }
        let found = text(&mut reader)?;
        if found != spec {
            return Err(reader.wrong(&format!("it is a {found}, not a {spec}")));
        }
        let _revision = word(&mut reader)?;
        let count = word(&mut reader)?;
        if count > MOST_VARIABLES {
            return Err(reader.wrong("it has more arrays than any model of this kind"));
        }
        let mut arrays = BTreeMap::new();
        for _ in 0..count {
            let name = text(&mut reader)?;
            let array = Array::read(&mut reader)?;
            if arrays.insert(name, array).is_some() {
                return Err(reader.wrong(&format!("it has two arrays {name}")));
            }
        }
        // Other names of arrays follow, which nothing here asks for.
        Ok(Variables { arrays })
    }

    /// Shape of an array that was not taken.
    pub(super) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.arrays.get(name).map(|array| &array.shape[..])
    }

    /// The array of this name, which must have this shape and be finite.
    pub(super) fn take(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let wrong = |why: String| Error::corrupt(format!("the checkpoint's {name} {why}"));
        let array = self.arrays.remove(name).ok_or_else(|| wrong("is not there".to_owned()))?;
        if array.shape != shape {
            return Err(wrong(format!("has the shape {:?}, not {shape:?}", array.shape)));
        }
        let values: Vec<f32> = match array.kind {
            Kind::F32 => {
                array.bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
            }
            Kind::F16 => array
                .bytes
                .as_chunks()
                .0
                .iter()
                .map(|bytes| f16::from_le_bytes(*bytes).to_f32())
                .collect(),
            Kind::Int(_) => return Err(wrong("holds whole numbers".to_owned())),
        };
        if values.iter().any(|value| !value.is_finite()) {
            return Err(wrong("is not finite".to_owned()));
        }
        Ok(values)
    }

    /// The whole number of this name, which must not be negative.
    pub(super) fn take_number(&mut self, name: &str) -> Option<u32> {
        let array = self.arrays.remove(name)?;
        if !array.shape.is_empty() || !matches!(array.kind, Kind::Int(_)) {
            return None;
        }
        let mut word = [0; 4];
        word[..array.bytes.len()].copy_from_slice(array.bytes);
        let sign = array.bytes.last().is_some_and(|&byte| byte >= 0x80);
        (!sign).then(|| u32::from_le_bytes(word))
    }

    /// Names of the arrays that were not taken.
    pub(super) fn rest(&self) -> impl Iterator<Item = &str> {
        self.arrays.keys().copied()
    }
}

impl<'a> Array<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Array<'a>> {
        let [axes] = reader.array()?;
        if axes > MOST_AXES {
            return Err(reader.wrong("an array has too many axes"));
        }
        let mut shape = Vec::with_capacity(usize::from(axes));
        for _ in 0..axes {
            shape.push(word(reader)? as usize);
        }
        let [id] = reader.array()?;
        let kind = Kind::read(id)
            .ok_or_else(|| reader.wrong("an array has an unknown type of numbers"))?;
        let bytes = word(reader)? as usize;
        let count = shape.iter().try_fold(kind.bytes(), |count, &axis| count.checked_mul(axis));
        if count != Some(bytes) {
            return Err(reader.wrong("an array's size is not that of its shape"));
        }
        Ok(Array { shape, kind, bytes: reader.take(bytes)? })
    }
}

fn word(reader: &mut Reader<'_>) -> Result<u32> {
    Ok(u32::from_le_bytes(reader.array()?))
}

/// Text with its length, which counts a zero at its end.
fn text<'a>(reader: &mut Reader<'a>) -> Result<&'a str> {
    let length = u16::from_le_bytes(reader.array()?);
    let bytes = reader.take(usize::from(length))?;
    let bytes = bytes.strip_suffix(&[0]).unwrap_or(bytes);
    std::str::from_utf8(bytes).map_err(|_| reader.wrong("a name is not UTF-8"))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A model file with these arrays of halves, and these small numbers.
    pub(in crate::onnx) fn file(
        arrays: &[(String, Vec<usize>, Vec<f32>)],
        numbers: &[(&str, u16)],
    ) -> Vec<u8> {
        let mut file = VERSION.to_le_bytes().to_vec();
        let text = |file: &mut Vec<u8>, text: &str| {
            file.extend((text.len() as u16 + 1).to_le_bytes());
            file.extend(text.as_bytes());
            file.push(0);
        };
        text(&mut file, "WhisperSpec");
        file.extend(3_u32.to_le_bytes());
        file.extend(((arrays.len() + numbers.len()) as u32).to_le_bytes());
        for (name, shape, values) in arrays {
            text(&mut file, name);
            file.push(shape.len() as u8);
            file.extend(shape.iter().flat_map(|&axis| (axis as u32).to_le_bytes()));
            file.push(4);
            file.extend((values.len() as u32 * 2).to_le_bytes());
            file.extend(values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()));
        }
        for (name, number) in numbers {
            text(&mut file, name);
            file.extend([0, 2]);
            file.extend(2_u32.to_le_bytes());
            file.extend(number.to_le_bytes());
        }
        file.extend(0_u32.to_le_bytes());
        file
    }

    fn small() -> Vec<u8> {
        let array = ("a/b".to_owned(), vec![2, 3], vec![0.0, 1.0, -2.0, 3.5, 4.0, 5.0]);
        file(&[array], &[("heads", 6)])
    }

    #[test]
    fn arrays_come_by_name_and_shape() {
        let file = small();
        let mut variables = Variables::read(&file, "WhisperSpec").unwrap();
        assert_eq!(variables.shape("a/b"), Some(&[2, 3][..]));
        assert_eq!(variables.take_number("heads"), Some(6));
        let wrong = variables.take("a/b", &[3, 2]).unwrap_err().to_string();
        assert!(wrong.contains("a/b") && wrong.contains("[2, 3], not [3, 2]"), "{wrong}");
        let mut variables = Variables::read(&file, "WhisperSpec").unwrap();
        assert_eq!(variables.take("a/b", &[2, 3]).unwrap(), [0.0, 1.0, -2.0, 3.5, 4.0, 5.0]);
        assert_eq!(variables.rest().collect::<Vec<_>>(), ["heads"]);
        assert!(Variables::read(&file, "TransformerSpec").is_err());
    }

    #[test]
    fn every_truncation_is_an_error() {
        let file = small();
        // The list of other names at the end is not read.
        for length in 0..file.len() - 4 {
            assert!(Variables::read(&file[..length], "WhisperSpec").is_err(), "{length}");
        }
    }

    proptest! {
        #[test]
        fn damaged_files_never_panic(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        ) {
            let mut file = small();
            for (index, byte) in changes {
                let place = index.index(file.len());
                file[place] = byte;
            }
            if let Ok(mut variables) = Variables::read(&file, "WhisperSpec") {
                let _ = variables.take("a/b", &[2, 3]);
                let _ = variables.take_number("heads");
            }
        }
    }
}
