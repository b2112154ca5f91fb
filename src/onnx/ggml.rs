//! Files of weights as whisper.cpp reads them (GGML, of before GGUF): what is in them, and a check
//! that one is whole, since the library itself believes every size that it reads.
//!
//! The format: `models/convert-pt-to-ggml.py` and `whisper_model_load` of whisper.cpp. All numbers
//! are little-endian.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use crate::error::{Error, Result};

/// `ggml`
const MAGIC: u32 = 0x6767_6d6c;
/// 201 frequencies: half of 400 samples, and the middle.
pub const FREQUENCIES: usize = 201;
/// The piece that begins no text: whisper.cpp ends the process where a vocabulary has none.
const BLANK: [u8; 1] = *b" ";
/// Longest piece of the vocabulary: the longest of Whisper's has 128 bytes.
const LONGEST_PIECE_BYTES: u32 = 1 << 10;
/// Kinds of quantization have the version of their layout in the file's type, times this.
const VERSION_FACTOR: u32 = 1_000;
const QUANTIZATION_VERSION: u32 = 2;

/// The sizes of a Whisper: Radford and others, "Robust Speech Recognition via Large-Scale Weak
/// Supervision" (2022), table 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Tokens, special ones included.
    pub vocabulary: usize,
    /// Length of a vector.
    pub width: usize,
    pub heads: usize,
    /// In the encoder and in the decoder.
    pub encoder_layers: usize,
    pub decoder_layers: usize,
    /// Bands of the spectrogram.
    pub mels: usize,
}

/// Positions of the encoder, 20 ms each.
pub const AUDIO_POSITIONS: usize = 1_500;
/// Tokens that the decoder reads and writes at most.
pub const TEXT_POSITIONS: usize = 448;
/// The vocabulary of a Whisper that knows English only. All others know many languages.
pub const ENGLISH_VOCABULARY: usize = 51_864;

impl Sizes {
    pub fn is_multilingual(&self) -> bool {
        self.vocabulary != ENGLISH_VOCABULARY
    }

    /// How many languages it knows, the first of Whisper's; English is the first.
    pub fn languages(&self) -> usize {
        if self.is_multilingual() { self.vocabulary.saturating_sub(51_766) } else { 1 }
    }

    /// Whether these are sizes of a Whisper, of any that was published or somewhat larger.
    pub(super) fn check(&self) -> Result<(), &'static str> {
        if !(ENGLISH_VOCABULARY..=ENGLISH_VOCABULARY + 2).contains(&self.vocabulary) {
            return Err("its vocabulary is not Whisper's");
        }
        let layers = 1..=64;
        if !(32..=2_048).contains(&self.width)
            || !self.width.is_multiple_of(32)
            || !(1..=64).contains(&self.heads)
            || !self.width.is_multiple_of(self.heads)
            || !layers.contains(&self.encoder_layers)
            || !layers.contains(&self.decoder_layers)
            || ![80, 128].contains(&self.mels)
        {
            return Err("its sizes are not a Whisper's");
        }
        Ok(())
    }

    /// Every tensor of such a network: name, shape (row-major) and how it is kept.
    pub(super) fn tensors(&self) -> Vec<(String, Vec<usize>, Form)> {
        let (width, mels) = (self.width, self.mels);
        let mut all = vec![
            ("encoder.positional_embedding".to_owned(), vec![AUDIO_POSITIONS, width], Form::Exact),
            ("encoder.conv1.weight".to_owned(), vec![width, mels, 3], Form::Convolution),
            ("encoder.conv1.bias".to_owned(), vec![width, 1], Form::Exact),
            ("encoder.conv2.weight".to_owned(), vec![width, width, 3], Form::Convolution),
            ("encoder.conv2.bias".to_owned(), vec![width, 1], Form::Exact),
            ("decoder.positional_embedding".to_owned(), vec![TEXT_POSITIONS, width], Form::Exact),
            (
                "decoder.token_embedding.weight".to_owned(),
                vec![self.vocabulary, width],
                Form::Matrix,
            ),
        ];
        for norm in ["encoder.ln_post", "decoder.ln"] {
            push_norm(&mut all, norm, width);
        }
        for layer in 0..self.encoder_layers {
            self.push_layer(&mut all, &format!("encoder.blocks.{layer}"), &["attn"]);
        }
        for layer in 0..self.decoder_layers {
            self.push_layer(&mut all, &format!("decoder.blocks.{layer}"), &["attn", "cross_attn"]);
        }
        all
    }

    fn push_layer(&self, all: &mut Vec<Tensor>, layer: &str, attentions: &[&str]) {
        let width = self.width;
        for attention in attentions {
            push_norm(all, &format!("{layer}.{attention}_ln"), width);
            for part in ["query", "key", "value", "out"] {
                let name = format!("{layer}.{attention}.{part}");
                all.push((format!("{name}.weight"), vec![width, width], Form::Matrix));
                // Keys have none: it would change no weight of the attention.
                if part != "key" {
                    all.push((format!("{name}.bias"), vec![width], Form::Exact));
                }
            }
        }
        push_norm(all, &format!("{layer}.mlp_ln"), width);
        for (part, rows, columns) in [("mlp.0", 4 * width, width), ("mlp.2", width, 4 * width)] {
            all.push((format!("{layer}.{part}.weight"), vec![rows, columns], Form::Matrix));
            all.push((format!("{layer}.{part}.bias"), vec![rows], Form::Exact));
        }
    }
}

type Tensor = (String, Vec<usize>, Form);

fn push_norm(all: &mut Vec<Tensor>, name: &str, width: usize) {
    for part in ["weight", "bias"] {
        all.push((format!("{name}.{part}"), vec![width], Form::Exact));
    }
}

/// How a tensor's numbers are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// In 32 bits, whatever the others are in.
    Exact,
    /// In 16 bits.
    Convolution,
    /// In the file's kind.
    Matrix,
}

/// In what most numbers of a file are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kind {
    /// In the file's head, without the version.
    file: u32,
    /// Of a tensor.
    tensor: u32,
    /// So many numbers take so many bytes.
    numbers: usize,
    bytes: usize,
}

pub(super) const F32: Kind = Kind { file: 0, tensor: 0, numbers: 1, bytes: 4 };
pub(super) const F16: Kind = Kind { file: 1, tensor: 1, numbers: 1, bytes: 2 };
pub(super) const Q8_0: Kind = Kind { file: 7, tensor: 8, numbers: 32, bytes: 34 };

/// The kinds in which Whispers are passed on and whisper.cpp computes with. It ends the process on convolutions
/// in 32 bits, which is what files have whose numbers are all in 32.
const KINDS: [Kind; 6] = [
    F16,
    Kind { file: 2, tensor: 2, numbers: 32, bytes: 18 },
    Kind { file: 3, tensor: 3, numbers: 32, bytes: 20 },
    Q8_0,
    Kind { file: 8, tensor: 6, numbers: 32, bytes: 22 },
    Kind { file: 9, tensor: 7, numbers: 32, bytes: 24 },
];

impl Kind {
    /// Of the layout: only quantized numbers have one.
    fn version(self) -> u32 {
        if self.numbers > 1 { QUANTIZATION_VERSION } else { 0 }
    }

    fn of_tensor(self, form: Form) -> Kind {
        match form {
            Form::Exact => F32,
            Form::Convolution => F16,
            Form::Matrix => self,
        }
    }
}

/// Gives a tensor's numbers by its name and shape.
type Values<'a> = &'a mut dyn FnMut(&str, &[usize]) -> Result<Vec<f32>>;

/// Writes such a file. `tokens` are the pieces of the vocabulary that are text; `filters` is row-major,
/// a row of 201 for each mel.
pub(super) fn write(
    sizes: &Sizes,
    kind: Kind,
    filters: &[f32],
    tokens: &[Vec<u8>],
    values: Values<'_>,
) -> Result<Vec<u8>> {
    let version = kind.version() * VERSION_FACTOR;
    let mut file = Vec::new();
    let number = |file: &mut Vec<u8>, number: usize| {
        file.extend(u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes());
    };
    file.extend(MAGIC.to_le_bytes());
    for size in [
        sizes.vocabulary,
        AUDIO_POSITIONS,
        sizes.width,
        sizes.heads,
        sizes.encoder_layers,
        TEXT_POSITIONS,
        sizes.width,
        sizes.heads,
        sizes.decoder_layers,
        sizes.mels,
    ] {
        number(&mut file, size);
    }
    file.extend((kind.file + version).to_le_bytes());
    number(&mut file, sizes.mels);
    number(&mut file, FREQUENCIES);
    file.extend(filters.iter().flat_map(|value| value.to_le_bytes()));
    number(&mut file, tokens.len());
    for token in tokens {
        number(&mut file, token.len());
        file.extend(token);
    }
    for (name, shape, form) in sizes.tensors() {
        let kind = kind.of_tensor(form);
        number(&mut file, shape.len());
        number(&mut file, name.len());
        file.extend(kind.tensor.to_le_bytes());
        for &axis in shape.iter().rev() {
            number(&mut file, axis);
        }
        file.extend(name.as_bytes());
        push_values(&mut file, kind, &values(&name, &shape)?);
    }
    Ok(file)
}

fn push_values(file: &mut Vec<u8>, kind: Kind, values: &[f32]) {
    match kind {
        F32 => file.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        F16 => {
            file.extend(values.iter().flat_map(|&value| half::f16::from_f32(value).to_le_bytes()))
        }
        // 32 numbers share a scale: `quantize_row_q8_0_ref` of ggml.
        _ => {
            for block in values.chunks(Q8_0.numbers) {
                let most = block.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
                let scale = most / 127.0;
                let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
                file.extend(half::f16::from_f32(scale).to_le_bytes());
                file.extend(block.iter().map(|value| (value * inverse).round() as i8 as u8));
            }
        }
    }
}

/// Makes sure that a file is what whisper.cpp can read without harm: every size in bounds, every
/// tensor of the network there once and of its shape, and nothing left over. The numbers themselves
/// are not looked at.
///
/// # Errors
/// `Corrupt`, with the byte; as [`Error::io`] where it cannot be read.
pub fn check(path: &Path) -> Result<Sizes> {
    let reading = |cause| Error::io(path, "read", cause);
    let file = File::open(path).map_err(reading)?;
    let bytes = file.metadata().map_err(reading)?.len();
    Walk { file: BufReader::new(file), at: 0, bytes }
        .whole()
        .map_err(|error| error.in_source(path.display()))
}

/// A file, read from its start to its end.
struct Walk<R> {
    file: R,
    at: u64,
    bytes: u64,
}

impl<R: Read + Seek> Walk<R> {
    fn whole(mut self) -> Result<Sizes> {
        if self.word()? != MAGIC {
            return Err(self.wrong("it is no GGML file"));
        }
        let (sizes, kind) = self.head()?;
        let mels = self.word()? as usize;
        if mels != sizes.mels || self.word()? as usize != FREQUENCIES {
            return Err(self.wrong("its mel filters have another size"));
        }
        self.skip((mels * FREQUENCIES * 4) as u64)?;
        let tokens = self.word()?;
        if tokens as usize > sizes.vocabulary {
            return Err(self.wrong("it has more tokens than its vocabulary"));
        }
        let mut has_blank = false;
        for _ in 0..tokens {
            match self.word()? {
                1 => {
                    let mut piece = [0];
                    self.fill(&mut piece)?;
                    has_blank |= piece == BLANK;
                }
                length if length > LONGEST_PIECE_BYTES => {
                    return Err(self.wrong("a token is too long"));
                }
                length => self.skip(length.into())?,
            }
        }
        if !has_blank {
            return Err(self.wrong("its vocabulary has no space, so it is not Whisper's"));
        }
        let mut missing: BTreeMap<String, (Vec<usize>, Form)> =
            sizes.tensors().into_iter().map(|(name, shape, form)| (name, (shape, form))).collect();
        while self.at < self.bytes {
            self.tensor(kind, &mut missing)?;
        }
        match missing.keys().next() {
            Some(name) => Err(self.wrong(&format!("it has no tensor {name}"))),
            None => Ok(sizes),
        }
    }

    fn head(&mut self) -> Result<(Sizes, Kind)> {
        let mut head = [0; 11];
        for word in &mut head {
            *word = self.word()? as usize;
        }
        let [vocabulary, audio, width, heads, encoder_layers, text, again, heads_again, ..] = head;
        let [.., decoder_layers, mels, kind] = head;
        let sizes = Sizes { vocabulary, width, heads, encoder_layers, decoder_layers, mels };
        if (audio, text, again, heads_again) != (AUDIO_POSITIONS, TEXT_POSITIONS, width, heads) {
            return Err(self.wrong("its sizes are not a Whisper's"));
        }
        sizes.check().map_err(|why| self.wrong(why))?;
        let (version, kind) = (kind as u32 / VERSION_FACTOR, kind as u32 % VERSION_FACTOR);
        let known = KINDS.into_iter().find(|known| known.file == kind);
        match known {
            Some(kind) if kind.version() == version => Ok((sizes, kind)),
            None if kind == F32.file => {
                Err(self.wrong("its numbers have 32 bits: write it with 16 (f16), or quantized"))
            }
            _ => Err(self.wrong("its numbers are of a kind that is not known here")),
        }
    }

    fn tensor(
        &mut self,
        kind: Kind,
        missing: &mut BTreeMap<String, (Vec<usize>, Form)>,
    ) -> Result<()> {
        let (axes, name_bytes, of_kind) = (self.word()?, self.word()?, self.word()?);
        if !(1..=3).contains(&axes) || name_bytes > 128 {
            return Err(self.wrong("a tensor has no sensible head"));
        }
        let mut shape = Vec::new();
        for _ in 0..axes {
            shape.insert(0, self.word()? as usize);
        }
        let mut name = vec![0; name_bytes as usize];
        self.fill(&mut name)?;
        let name = String::from_utf8(name).map_err(|_| self.wrong("a name is not UTF-8"))?;
        let Some((expected, form)) = missing.remove(&name) else {
            return Err(self.wrong(&format!("it has a tensor {name:?} too many")));
        };
        let kind = kind.of_tensor(form);
        if shape != expected || of_kind != kind.tensor {
            return Err(self.wrong(&format!(
                "its tensor {name} has the shape {shape:?} and the type {of_kind}, not {expected:?} \
                 and {}",
                kind.tensor
            )));
        }
        let numbers: usize = expected.iter().product();
        self.skip((numbers / kind.numbers * kind.bytes) as u64)
    }

    fn word(&mut self) -> Result<u32> {
        let mut word = [0; 4];
        self.fill(&mut word)?;
        Ok(u32::from_le_bytes(word))
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<()> {
        self.file.read_exact(buffer).map_err(|cause| self.broken(cause))?;
        self.at += buffer.len() as u64;
        Ok(())
    }

    fn skip(&mut self, bytes: u64) -> Result<()> {
        let end = self.at.saturating_add(bytes);
        if end > self.bytes {
            return Err(self.wrong("it ends too early"));
        }
        self.file.seek(SeekFrom::Start(end)).map_err(|cause| self.broken(cause))?;
        self.at = end;
        Ok(())
    }

    fn broken(&self, cause: io::Error) -> Error {
        match cause.kind() {
            io::ErrorKind::UnexpectedEof => self.wrong("it ends too early"),
            _ => Error::unavailable("the file cannot be read").caused_by(cause),
        }
    }

    fn wrong(&self, why: &str) -> Error {
        Error::corrupt(format!("the GGML file cannot be used: {why}")).at_byte(self.at)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Cursor;

    /// The smallest sizes that are a Whisper's.
    pub(in crate::onnx) const SMALL: Sizes = Sizes {
        vocabulary: ENGLISH_VOCABULARY,
        width: 32,
        heads: 2,
        encoder_layers: 1,
        decoder_layers: 1,
        mels: 80,
    };

    /// What a file has: each tensor's numbers by name, and the pieces of its vocabulary.
    #[derive(Debug)]
    pub(in crate::onnx) struct Content {
        pub(in crate::onnx) tokens: Vec<Vec<u8>>,
        pub(in crate::onnx) tensors: BTreeMap<String, Vec<f32>>,
    }

    /// Reads back what [`write`] wrote, from the format alone.
    pub(in crate::onnx) fn read(file: &[u8]) -> Content {
        let mut at = 0;
        let mut word = || {
            at += 4;
            u32::from_le_bytes(file[at - 4..at].try_into().unwrap()) as usize
        };
        let head: Vec<usize> = (0..14).map(|_| word()).collect();
        assert_eq!((head[0], head[12], head[13]), (MAGIC as usize, head[10], FREQUENCIES));
        let mut at = 14 * 4 + head[12] * head[13] * 4;
        let mut take = |count: usize| {
            at += count;
            &file[at - count..at]
        };
        let word = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap()) as usize;
        let count = word(take(4));
        let mut content = Content { tokens: Vec::new(), tensors: BTreeMap::new() };
        for _ in 0..count {
            let length = word(take(4));
            content.tokens.push(take(length).to_vec());
        }
        let mut left = file.len()
            - 14 * 4
            - head[12] * head[13] * 4
            - 4
            - content.tokens.iter().map(|token| token.len() + 4).sum::<usize>();
        while left > 0 {
            let (axes, name, kind) = (word(take(4)), word(take(4)), word(take(4)));
            let count: usize = (0..axes).map(|_| word(take(4))).product();
            let text = String::from_utf8(take(name).to_vec()).unwrap();
            let half = |bytes: &[u8]| half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
            let (bytes, values): (usize, Vec<f32>) = match kind {
                0 => {
                    let bytes = take(count * 4);
                    let values = bytes.chunks(4);
                    let values = values.map(|four| f32::from_le_bytes(four.try_into().unwrap()));
                    (bytes.len(), values.collect())
                }
                1 => {
                    let bytes = take(count * 2);
                    (bytes.len(), bytes.chunks(2).map(half).collect())
                }
                8 => {
                    let bytes = take(count / 32 * 34);
                    let block = |block: &[u8]| {
                        let scale = half(block);
                        block[2..].iter().map(|&q| f32::from(q as i8) * scale).collect::<Vec<_>>()
                    };
                    (bytes.len(), bytes.chunks(34).flat_map(block).collect())
                }
                other => panic!("{other}"),
            };
            left -= 12 + 4 * axes + name + bytes;
            content.tensors.insert(text, values);
        }
        content
    }

    fn some(kind: Kind) -> Vec<u8> {
        with_tokens(kind, &[b"a", b" ", b" b"])
    }

    fn with_tokens(kind: Kind, tokens: &[&[u8]]) -> Vec<u8> {
        let filters = vec![0.5; 80 * FREQUENCIES];
        let tokens: Vec<Vec<u8>> = tokens.iter().map(|token| token.to_vec()).collect();
        let mut count = 0.0;
        write(&SMALL, kind, &filters, &tokens, &mut |_, shape| {
            count += 1.0;
            let numbers: usize = shape.iter().product();
            Ok((0..numbers).map(|at| count + (at % 7) as f32).collect())
        })
        .unwrap()
    }

    fn checked(file: &[u8]) -> Result<Sizes> {
        Walk { file: Cursor::new(file), at: 0, bytes: file.len() as u64 }.whole()
    }

    #[test]
    fn what_is_written_is_whole_and_comes_back() {
        for (kind, within) in [(F16, 0.0), (Q8_0, 0.5 * 100.0 / 127.0)] {
            let file = some(kind);
            assert_eq!(checked(&file).unwrap(), SMALL);
            let content = read(&file);
            assert_eq!(content.tokens, [b"a".to_vec(), b" ".to_vec(), b" b".to_vec()]);
            assert_eq!(content.tensors.len(), SMALL.tensors().len());
            for (number, (name, ..)) in SMALL.tensors().into_iter().enumerate() {
                for (at, value) in content.tensors[&name].iter().enumerate() {
                    let expected = (number + 1) as f32 + (at % 7) as f32;
                    assert!((value - expected).abs() <= within, "{name} {value} {expected}");
                }
            }
        }
    }

    #[test]
    fn a_file_that_is_cut_or_has_a_tensor_too_many_is_refused() {
        let file = some(F16);
        for length in (0..file.len()).step_by(977).chain([file.len() - 1]) {
            assert!(checked(&file[..length]).is_err(), "{length}");
        }
        let mut longer = file.clone();
        longer.extend(1_u32.to_le_bytes());
        assert!(checked(&longer).is_err());
    }

    #[test]
    fn what_whisper_cpp_would_end_the_process_on_is_refused() {
        let why = |file: &[u8]| checked(file).unwrap_err().to_string();
        assert!(why(&some(F32)).contains("have 32 bits: write it with 16"));
        let without_blank: [&[&[u8]]; 3] = [&[], &[b"", b""], &[b"a", b"  ", b" b"]];
        for tokens in without_blank {
            assert!(why(&with_tokens(F16, tokens)).contains("no space"), "{tokens:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn damaged_heads_are_refused_and_never_panic(place in 0usize..48, byte in any::<u8>()) {
            let mut file = some(F16);
            let same = file[place] == byte;
            file[place] = byte;
            prop_assert_eq!(checked(&file).is_ok(), same);
        }
    }
}
