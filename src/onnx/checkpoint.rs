//! Tensors from checkpoints: PyTorch's legacy `.pth` files (before 1.6: five pickles and the raw
//! storages) and safetensors.

use std::collections::{BTreeMap, HashMap};

use safetensors::{Dtype, SafeTensors};

use super::pickle::{self, Heap, Reader, Value};
use crate::error::{Error, Result};

/// The f32 tensors of a checkpoint, each taken once.
#[derive(Debug)]
pub(super) struct Checkpoint {
    tensors: BTreeMap<String, Dense>,
}

/// A row-major tensor.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Dense {
    pub(super) shape: Vec<usize>,
    pub(super) values: Vec<f32>,
}

impl Checkpoint {
    /// The tensor of this name, which must have this shape.
    pub(super) fn take(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let tensor = self
            .tensors
            .remove(name)
            .ok_or_else(|| Error::corrupt(format!("the checkpoint has no tensor {name}")))?;
        if tensor.shape != shape {
            return Err(Error::corrupt(format!(
                "the checkpoint's tensor {name} has the shape {:?}, not {shape:?}",
                tensor.shape
            )));
        }
        if tensor.values.iter().any(|value| !value.is_finite()) {
            return Err(Error::corrupt(format!("the checkpoint's tensor {name} is not finite")));
        }
        Ok(tensor.values)
    }

    /// Names of the tensors that were not taken.
    pub(super) fn rest(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Shape of a tensor that was not taken.
    pub(super) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|tensor| &tensor.shape[..])
    }

    /// Reads a safetensors file; tensors of other types than f32 are left out.
    pub(super) fn from_safetensors(bytes: &[u8]) -> Result<Checkpoint> {
        let wrong = |cause| Error::corrupt("the safetensors file cannot be read").caused_by(cause);
        let file = SafeTensors::deserialize(bytes).map_err(wrong)?;
        let mut tensors = BTreeMap::new();
        for (name, view) in file.iter().filter(|(_, view)| view.dtype() == Dtype::F32) {
            let dense = Dense { shape: view.shape().to_vec(), values: floats(view.data()) };
            tensors.insert(name.to_owned(), dense);
        }
        Ok(Checkpoint { tensors })
    }

    /// Reads a legacy PyTorch file with a state dictionary; tensors of other types than f32 are
    /// left out.
    pub(super) fn from_legacy_pth(bytes: &[u8]) -> Result<Checkpoint> {
        let mut reader = Reader::new(bytes);
        let (magic, _) = pickle::read(&mut reader)?;
        if magic != Value::Long(MAGIC[..].into()) {
            return Err(reader.wrong("it is no legacy PyTorch file"));
        }
        let (protocol, _) = pickle::read(&mut reader)?;
        if protocol != Value::Int(1001) {
            return Err(reader.wrong("its protocol version is not 1001"));
        }
        let (_system, _) = pickle::read(&mut reader)?;
        let (state, heap) = pickle::read(&mut reader)?;
        let views = views(&state, &heap).map_err(|why| reader.wrong(why))?;
        let (keys, key_heap) = pickle::read(&mut reader)?;
        let Value::List(place) = keys else { return Err(reader.wrong("it lists no storages")) };
        let mut storages = HashMap::new();
        for key in key_heap.elements(place) {
            let Value::Text(key) = key else { return Err(reader.wrong("a key is no text")) };
            let count = i64::from_le_bytes(reader.array()?);
            let kind = views.iter().map(|view| &view.storage).find(|storage| storage.key == *key);
            let kind = kind.ok_or_else(|| reader.wrong("a storage belongs to no tensor"))?;
            let bytes = usize::try_from(count)
                .ok()
                .and_then(|count| count.checked_mul(kind.element_bytes))
                .ok_or_else(|| reader.wrong("a storage's size is impossible"))?;
            storages.insert(key.clone(), reader.take(bytes)?);
        }
        let mut tensors = BTreeMap::new();
        for view in views.iter().filter(|view| view.storage.is_f32) {
            let storage = storages.get(&view.storage.key);
            let storage = storage.ok_or_else(|| reader.wrong("a storage is missing"))?;
            let dense = view.gather(storage).map_err(|why| reader.wrong(why))?;
            tensors.insert(view.name.to_string(), dense);
        }
        Ok(Checkpoint { tensors })
    }
}

/// `torch.serialization.MAGIC_NUMBER`, 0x1950a86a20f9469cfc6c, as the pickle has it.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// A tensor as a view into a storage.
struct View {
    name: std::rc::Rc<str>,
    storage: StorageId,
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

struct StorageId {
    key: std::rc::Rc<str>,
    element_bytes: usize,
    is_f32: bool,
}

/// More axes than any tensor has.
const MOST_AXES: usize = 8;

fn views(state: &Value, heap: &Heap) -> Result<Vec<View>, &'static str> {
    let Value::Dict(place) = state else { return Err("it holds no dictionary of tensors") };
    let pairs = heap.elements(*place).chunks_exact(2);
    pairs.map(|pair| view(&pair[0], &pair[1], heap)).collect()
}

/// `torch._utils._rebuild_tensor_v2(storage, offset, shape, strides, …)`.
fn view(name: &Value, value: &Value, heap: &Heap) -> Result<View, &'static str> {
    let Value::Text(name) = name else { return Err("a tensor has no name") };
    let Value::Call(function, arguments) = value else { return Err("a value is no tensor") };
    let [
        Value::Persistent(storage),
        Value::Int(offset),
        Value::Tuple(shape),
        Value::Tuple(strides),
        ..,
    ] = heap.elements(*arguments)
    else {
        return Err("a tensor is stored in an unknown way");
    };
    if **function != *"torch._utils._rebuild_tensor_v2" {
        return Err("a tensor is made by an unknown function");
    }
    let sizes = |place| {
        let size = |value: &Value| match value {
            Value::Int(size) => usize::try_from(*size).ok(),
            _ => None,
        };
        let sizes: Option<Vec<usize>> = heap.elements(place).iter().map(size).collect();
        sizes.filter(|sizes| sizes.len() <= MOST_AXES).ok_or("a tensor's shape is impossible")
    };
    let (shape, strides) = (sizes(*shape)?, sizes(*strides)?);
    if shape.len() != strides.len() {
        return Err("a tensor's shape is impossible");
    }
    // ('storage', class, key, location, element count, view)
    let [Value::Text(tag), Value::Global(class), Value::Text(key), ..] = heap.elements(*storage)
    else {
        return Err("a storage has an unknown form");
    };
    let element_bytes = match (&**tag, &**class) {
        ("storage", "torch.FloatStorage" | "torch.IntStorage") => 4,
        ("storage", "torch.LongStorage" | "torch.DoubleStorage") => 8,
        ("storage", "torch.HalfStorage" | "torch.ShortStorage") => 2,
        ("storage", "torch.ByteStorage" | "torch.CharStorage" | "torch.BoolStorage") => 1,
        _ => return Err("a storage has an unknown type"),
    };
    Ok(View {
        name: name.clone(),
        storage: StorageId {
            key: key.clone(),
            element_bytes,
            is_f32: **class == *"torch.FloatStorage",
        },
        offset: usize::try_from(*offset).map_err(|_| "a tensor's offset is impossible")?,
        shape,
        strides,
    })
}

impl View {
    /// Copies the view's elements out of the storage in row-major order.
    fn gather(&self, storage: &[u8]) -> Result<Dense, &'static str> {
        const OUTSIDE: &str = "a tensor reaches beyond its storage";
        let count = self.shape.iter().try_fold(1, |n: usize, &dim| n.checked_mul(dim));
        // A view with more elements than its storage would repeat some: no weight does.
        let count = count.filter(|&count| count <= storage.len() / 4).ok_or(OUTSIDE)?;
        let mut values = Vec::with_capacity(count);
        let mut index = vec![0; self.shape.len()];
        for _ in 0..count {
            let steps = index.iter().zip(&self.strides);
            let place = steps
                .map(|(&i, &stride): (&usize, &usize)| i.checked_mul(stride))
                .try_fold(self.offset, |sum, step| sum.checked_add(step?))
                .and_then(|place| place.checked_mul(4))
                .ok_or(OUTSIDE)?;
            let bytes = storage.get(place..).and_then(|rest| rest.first_chunk()).ok_or(OUTSIDE)?;
            values.push(f32::from_le_bytes(*bytes));
            for axis in (0..index.len()).rev() {
                index[axis] += 1;
                if index[axis] < self.shape[axis] {
                    break;
                }
                index[axis] = 0;
            }
        }
        Ok(Dense { shape: self.shape.clone(), values })
    }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A legacy file with one 2x3 tensor, stored by columns, and one i64 scalar.
    fn legacy_file() -> Vec<u8> {
        let mut file = vec![0x80, 2, 0x8a, 10];
        file.extend(MAGIC);
        file.extend(b".\x80\x02M\xe9\x03.\x80\x02}.");
        let text = |text: &str| {
            let mut bytes = vec![b'X'];
            bytes.extend((text.len() as u32).to_le_bytes());
            bytes.extend(text.as_bytes());
            bytes
        };
        let tensor = |name: &str, class: &str, key: &str, sizes: &[u8], strides: &[u8]| {
            let mut bytes = text(name);
            bytes.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
            bytes.extend(text("storage"));
            bytes.extend(format!("ctorch\n{class}\n").as_bytes());
            bytes.extend([text(key), text("cpu")].concat());
            bytes.extend(b"K\x06NtQK\x00(");
            bytes.extend(sizes.iter().flat_map(|&size| [b'K', size]));
            bytes.extend(b"t(");
            bytes.extend(strides.iter().flat_map(|&stride| [b'K', stride]));
            bytes.extend(b"t\x89}tR");
            bytes
        };
        file.extend(b"\x80\x02ccollections\nOrderedDict\nq\x00)Rq\x01(");
        file.extend(tensor("w", "FloatStorage", "7", &[2, 3], &[1, 2]));
        file.extend(tensor("n", "LongStorage", "8", &[], &[]));
        file.extend(b"u}");
        file.extend(text("_metadata"));
        file.extend(b"Nsb.\x80\x02](");
        file.extend([text("7"), text("8")].concat());
        file.extend(b"e.");
        file.extend(6i64.to_le_bytes());
        file.extend((0..6).flat_map(|n| (n as f32).to_le_bytes()));
        file.extend(1i64.to_le_bytes());
        file.extend(9i64.to_le_bytes());
        file
    }

    #[test]
    fn strided_tensors_of_a_legacy_file_become_row_major() {
        let mut checkpoint = Checkpoint::from_legacy_pth(&legacy_file()).unwrap();
        assert_eq!(checkpoint.rest().collect::<Vec<_>>(), ["w"]);
        assert_eq!(checkpoint.take("w", &[2, 3]).unwrap(), [0.0, 2.0, 4.0, 1.0, 3.0, 5.0]);
    }

    #[test]
    fn a_wrong_shape_or_a_missing_tensor_is_reported_by_name() {
        let mut checkpoint = Checkpoint::from_legacy_pth(&legacy_file()).unwrap();
        let missing = checkpoint.take("v", &[1]).unwrap_err().to_string();
        assert!(missing.contains("no tensor v"), "{missing}");
        let shape = checkpoint.take("w", &[3, 2]).unwrap_err().to_string();
        assert!(shape.contains("[2, 3], not [3, 2]"), "{shape}");
    }

    #[test]
    fn every_truncation_of_a_legacy_file_is_an_error() {
        let file = legacy_file();
        for length in 0..file.len() {
            assert!(Checkpoint::from_legacy_pth(&file[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn deep_nesting_does_not_exhaust_the_stack() {
        let mut pickle = vec![b')'];
        pickle.extend(std::iter::repeat_n(0x85, 1 << 20));
        pickle.push(b'.');
        assert!(Checkpoint::from_legacy_pth(&pickle).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn damaged_legacy_files_never_panic(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        ) {
            let mut file = legacy_file();
            for (index, byte) in changes {
                let place = index.index(file.len());
                file[place] = byte;
            }
            let _ = Checkpoint::from_legacy_pth(&file);
        }

        #[test]
        fn no_bytes_make_a_pickle_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = pickle::read(&mut Reader::new(&bytes));
            let _ = Checkpoint::from_safetensors(&bytes);
        }
    }
}
