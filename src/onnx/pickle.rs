//! Reading Python pickles of protocol 2 as data: names of classes and functions stay names, and
//! nothing is called. Only the opcodes that PyTorch's checkpoints use are understood.
//!
//! What the opcodes mean: `pickletools.py` of Python.

use std::collections::HashMap;
use std::rc::Rc;

use crate::error::{Error, Result};

/// A pickled value. Containers lie in the [`Heap`], so that values of any depth are dropped
/// without recursion.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i64),
    /// An integer of more than 64 bits, little-endian two's complement.
    Long(Rc<[u8]>),
    Float(f64),
    Text(Rc<str>),
    /// A class or function, `module.name`.
    Global(Rc<str>),
    Tuple(Place),
    List(Place),
    /// Keys and values by turns.
    Dict(Place),
    /// What a function would return if it was called: the function's name and its arguments.
    Call(Rc<str>, Place),
    /// An object that is stored outside the pickle, by its id.
    Persistent(Place),
}

/// Where the elements of a container lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place(usize);

/// The elements of all containers of a pickle.
#[derive(Debug, Default)]
pub(super) struct Heap {
    containers: Vec<Vec<Value>>,
}

impl Heap {
    pub(super) fn elements(&self, place: Place) -> &[Value] {
        &self.containers[place.0]
    }

    fn hold(&mut self, elements: Vec<Value>) -> Place {
        self.containers.push(elements);
        Place(self.containers.len() - 1)
    }
}

/// Bytes with a place in them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { bytes, at: 0 }
    }

    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        let taken = rest.get(..count).ok_or_else(|| self.wrong("it ends too early"))?;
        self.at += count;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    fn line(&mut self) -> Result<&'a str> {
        let rest = &self.bytes[self.at..];
        let length = rest
            .iter()
            .position(|&byte| byte == b'\n')
            .ok_or_else(|| self.wrong("a line has no end"))?;
        let line = self.take(length)?;
        self.at += 1;
        std::str::from_utf8(line).map_err(|_| self.wrong("a name is not UTF-8"))
    }

    pub(super) fn wrong(&self, why: &str) -> Error {
        Error::corrupt(format!("the checkpoint cannot be read: {why}")).at_byte(self.at as u64)
    }
}

/// Reads one pickle; the reader is left behind its end.
pub(super) fn read(reader: &mut Reader<'_>) -> Result<(Value, Heap)> {
    let mut machine = Machine::default();
    loop {
        if let Some(value) = machine.step(reader)? {
            return Ok((value, machine.heap));
        }
    }
}

#[derive(Default)]
struct Machine {
    stack: Vec<Value>,
    /// Heights of the stack at its marks.
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
    heap: Heap,
}

impl Machine {
    /// Does one opcode; returns the result at the end.
    fn step(&mut self, reader: &mut Reader<'_>) -> Result<Option<Value>> {
        let opcode = reader.byte()?;
        match opcode {
            // PROTO
            0x80 => {
                let version = reader.byte()?;
                if version > 2 {
                    return Err(reader.wrong(&format!("pickle protocol {version} is not known")));
                }
            }
            b'.' => return self.pop(reader).map(Some),
            b'N' => self.stack.push(Value::None),
            0x88 => self.stack.push(Value::Bool(true)),
            0x89 => self.stack.push(Value::Bool(false)),
            // BININT, BININT1, BININT2, LONG1
            b'J' => {
                let int = i32::from_le_bytes(reader.array()?);
                self.stack.push(Value::Int(int.into()));
            }
            b'K' => {
                let int = reader.byte()?;
                self.stack.push(Value::Int(int.into()));
            }
            b'M' => {
                let int = u16::from_le_bytes(reader.array()?);
                self.stack.push(Value::Int(int.into()));
            }
            0x8a => {
                let length = reader.byte()?;
                self.stack.push(long(reader.take(length.into())?));
            }
            b'G' => self.stack.push(Value::Float(f64::from_be_bytes(reader.array()?))),
            // BINUNICODE
            b'X' => {
                let length = u32::from_le_bytes(reader.array()?);
                let text = std::str::from_utf8(reader.take(length as usize)?)
                    .map_err(|_| reader.wrong("a text is not UTF-8"))?;
                self.stack.push(Value::Text(text.into()));
            }
            // GLOBAL
            b'c' => {
                let (module, name) = (reader.line()?, reader.line()?);
                self.stack.push(Value::Global(format!("{module}.{name}").into()));
            }
            b'(' => self.marks.push(self.stack.len()),
            b')' => self.push_tuple(Vec::new()),
            0x85..=0x87 => {
                let count = usize::from(opcode - 0x84);
                let start = self.stack.len().checked_sub(count);
                let start = start.ok_or_else(|| reader.wrong("its stack is empty"))?;
                let elements = self.stack.split_off(start);
                self.push_tuple(elements);
            }
            b't' => {
                let elements = self.above_mark(reader)?;
                self.push_tuple(elements);
            }
            b']' => {
                let place = self.heap.hold(Vec::new());
                self.stack.push(Value::List(place));
            }
            b'}' => {
                let place = self.heap.hold(Vec::new());
                self.stack.push(Value::Dict(place));
            }
            b'a' => {
                let element = self.pop(reader)?;
                self.extend_top(reader, vec![element])?;
            }
            b's' => {
                let value = self.pop(reader)?;
                let key = self.pop(reader)?;
                self.extend_top(reader, vec![key, value])?;
            }
            b'e' | b'u' => {
                let elements = self.above_mark(reader)?;
                self.extend_top(reader, elements)?;
            }
            // REDUCE
            b'R' => {
                let arguments = self.pop(reader)?;
                let function = self.pop(reader)?;
                let (Value::Global(name), Value::Tuple(place)) = (function, arguments) else {
                    return Err(reader.wrong("something is called that is no function"));
                };
                self.stack.push(match &*name {
                    "collections.OrderedDict" => Value::Dict(self.heap.hold(Vec::new())),
                    _ => Value::Call(name, place),
                });
            }
            // BUILD: the attributes of an object, which are of no interest
            b'b' => {
                self.pop(reader)?;
            }
            // BINPERSID
            b'Q' => match self.pop(reader)? {
                Value::Tuple(place) => self.stack.push(Value::Persistent(place)),
                _ => return Err(reader.wrong("a persistent id is no tuple")),
            },
            // BINPUT, LONG_BINPUT, BINGET, LONG_BINGET
            b'q' => {
                let key = reader.byte()?;
                self.remember(reader, key.into())?;
            }
            b'r' => {
                let key = u32::from_le_bytes(reader.array()?);
                self.remember(reader, key)?;
            }
            b'h' => {
                let key = reader.byte()?;
                self.recall(reader, key.into())?;
            }
            b'j' => {
                let key = u32::from_le_bytes(reader.array()?);
                self.recall(reader, key)?;
            }
            _ => return Err(reader.wrong(&format!("opcode {opcode:#04x} is not known"))),
        }
        Ok(None)
    }

    fn pop(&mut self, reader: &Reader<'_>) -> Result<Value> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err(reader.wrong("its stack is empty"));
        }
        self.stack.pop().ok_or_else(|| reader.wrong("its stack is empty"))
    }

    fn above_mark(&mut self, reader: &Reader<'_>) -> Result<Vec<Value>> {
        let mark = self.marks.pop().ok_or_else(|| reader.wrong("a mark is missing"))?;
        if mark > self.stack.len() {
            return Err(reader.wrong("a mark lies above its stack"));
        }
        Ok(self.stack.split_off(mark))
    }

    fn push_tuple(&mut self, elements: Vec<Value>) {
        let place = self.heap.hold(elements);
        self.stack.push(Value::Tuple(place));
    }

    fn extend_top(&mut self, reader: &Reader<'_>, elements: Vec<Value>) -> Result<()> {
        let (Some(Value::List(place)) | Some(Value::Dict(place))) = self.stack.last() else {
            return Err(reader.wrong("elements are added to something that holds none"));
        };
        if matches!(self.stack.last(), Some(Value::Dict(_))) && elements.len() % 2 == 1 {
            return Err(reader.wrong("a key has no value"));
        }
        self.heap.containers[place.0].extend(elements);
        Ok(())
    }

    fn remember(&mut self, reader: &Reader<'_>, key: u32) -> Result<()> {
        let value = self.stack.last().ok_or_else(|| reader.wrong("its stack is empty"))?;
        self.memo.insert(key, value.clone());
        Ok(())
    }

    fn recall(&mut self, reader: &Reader<'_>, key: u32) -> Result<()> {
        let value = self.memo.get(&key).ok_or_else(|| reader.wrong("it recalls what is not"))?;
        self.stack.push(value.clone());
        Ok(())
    }
}

/// Little-endian two's complement of any length.
fn long(bytes: &[u8]) -> Value {
    if bytes.len() > 8 {
        return Value::Long(bytes.into());
    }
    let fill = if bytes.last().is_some_and(|&byte| byte >= 0x80) { 0xff } else { 0 };
    let mut all = [fill; 8];
    all[..bytes.len()].copy_from_slice(bytes);
    Value::Int(i64::from_le_bytes(all))
}
