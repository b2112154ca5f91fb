//! Whisper's weights from CTranslate2's container into the one that whisper.cpp reads.

use std::collections::BTreeMap;

use super::ctranslate2::Variables;
use super::ggml::{self, AUDIO_POSITIONS, FREQUENCIES, Sizes, TEXT_POSITIONS};
use crate::error::{Error, Result};

const SPEC: &str = "WhisperSpec";
const EMBEDDINGS: &str = "decoder/embeddings/weight";
/// The first token that is no text.
const END_OF_TEXT: &str = "<|endoftext|>";
/// Of the mel filters.
const RATE_HZ: f64 = 16_000.0;

/// Writes the GGML file of `model` (`model.bin`) and its `vocabulary` (a piece a line), matrices in 8
/// bits (`Q8_0`), as whisper.cpp's own quantization would give them.
///
/// # Errors
/// `Corrupt` where an array is missing, has another shape, or is left over; `Unsupported` for what is
/// no Whisper.
pub(super) fn convert(model: &[u8], vocabulary: &[u8]) -> Result<Vec<u8>> {
    let mut variables = Variables::read(model, SPEC)?;
    let sizes = sizes(&mut variables)?;
    let tokens = tokens(vocabulary, sizes.vocabulary)?;
    let filters = mel_filters(sizes.mels);
    // Arrays that several tensors of a layer are parts of.
    let mut fused: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    let file = ggml::write(&sizes, ggml::Q8_0, &filters, &tokens, &mut |name, shape| {
        let Some(Part { array, of, place }) = Part::of(name) else {
            return Err(Error::internal(format!("no array is known for {name}")));
        };
        if of == 1 {
            // A bias stands in a column of its own there, and flat here.
            let shape = if shape.get(1) == Some(&1) { &shape[..1] } else { shape };
            return variables.take(&array, shape);
        }
        if !fused.contains_key(&array) {
            let whole: Vec<usize> =
                std::iter::once(shape[0] * of).chain(shape[1..].iter().copied()).collect();
            let values = variables.take(&array, &whole)?;
            let layer = array.split_inclusive('/').take(2).collect::<String>();
            fused.retain(|known, _| known.starts_with(&layer));
            fused.insert(array.clone(), values);
        }
        let values = &fused[&array];
        let count = values.len() / of;
        if array.ends_with("/bias")
            && values[KEYS[of - 2] * count..][..count].iter().any(|x| *x != 0.0)
        {
            return Err(Error::unsupported(format!(
                "the checkpoint's {array} has keys with a bias"
            )));
        }
        Ok(values[place * count..][..count].to_vec())
    })?;
    let left: Vec<&str> = variables.rest().filter(|name| !is_setting(name)).collect();
    match left.first() {
        Some(name) => Err(Error::corrupt(format!(
            "the checkpoint has {} arrays that a Whisper has not, {name} for one",
            left.len()
        ))),
        None => Ok(file),
    }
}

/// Where the keys lie among keys and values, and among queries, keys and values.
const KEYS: [usize; 2] = [0, 1];

/// Which part of which array a tensor is: the `place`-th of `of` equal ones.
#[derive(Debug, PartialEq)]
struct Part {
    array: String,
    of: usize,
    place: usize,
}

impl Part {
    fn of(name: &str) -> Option<Part> {
        let whole = |array: String| Some(Part { array, of: 1, place: 0 });
        let (side, rest) = name.split_once('.')?;
        let (inner, kind) = rest.rsplit_once('.').unwrap_or((rest, ""));
        let scale = |kind| match kind {
            "weight" => Some("gamma"),
            "bias" => Some("beta"),
            _ => None,
        };
        match (side, inner) {
            (_, "positional_embedding") => {
                return whole(format!("{side}/position_encodings/encodings"));
            }
            ("decoder", "token_embedding") => return whole(EMBEDDINGS.to_owned()),
            ("encoder", "conv1" | "conv2") => return whole(format!("encoder/{inner}/{kind}")),
            ("encoder", "ln_post") | ("decoder", "ln") => {
                return whole(format!("{side}/layer_norm/{}", scale(kind)?));
            }
            _ => {}
        }
        let (layer, inner) = inner.strip_prefix("blocks.")?.split_once('.')?;
        let layer = format!("{side}/layer_{layer}");
        let attention = |name: &str| match name {
            "attn" => Some("self_attention"),
            "cross_attn" => Some("attention"),
            _ => None,
        };
        if let Some(norm) = inner.strip_suffix("_ln") {
            let block = if norm == "mlp" { "ffn" } else { attention(norm)? };
            return whole(format!("{layer}/{block}/layer_norm/{}", scale(kind)?));
        }
        let (block, linear) = inner.split_once('.')?;
        if block == "mlp" {
            let number = if linear == "0" { 0 } else { 1 };
            return whole(format!("{layer}/ffn/linear_{number}/{kind}"));
        }
        // Attention to itself has queries, keys and values in one matrix; across, queries are apart.
        let fused = block == "attn";
        let (number, of, place) = match (linear, fused) {
            ("query", true) => (0, 3, 0),
            ("key", true) => (0, 3, 1),
            ("value", true) => (0, 3, 2),
            ("out", true) => (1, 1, 0),
            ("query", false) => (0, 1, 0),
            ("key", false) => (1, 2, 0),
            ("value", false) => (1, 2, 1),
            ("out", false) => (2, 1, 0),
            _ => return None,
        };
        Some(Part {
            array: format!("{layer}/{}/linear_{number}/{kind}", attention(block)?),
            of,
            place,
        })
    }
}

/// Arrays that say how the others are computed with; what they say is a Whisper's nature.
fn is_setting(name: &str) -> bool {
    ["activation", "alibi", "alignment_heads", "alignment_layer", "start_from_zero_embedding"]
        .into_iter()
        .chain(["num_heads", "pre_norm", "scale_embeddings", "scale_outputs"])
        .any(|setting| name.rsplit('/').next() == Some(setting))
}

fn sizes(variables: &mut Variables<'_>) -> Result<Sizes> {
    let missing = |what: &str| Error::corrupt(format!("the checkpoint does not say {what}"));
    let axis = |variables: &Variables<'_>, name: &str, axis: usize| {
        variables.shape(name).and_then(|shape| shape.get(axis)).copied()
    };
    let layers = |variables: &Variables<'_>, side: &str| {
        let name = |layer: usize| format!("{side}/layer_{layer}/ffn/linear_0/bias");
        (0..).take_while(|&layer| variables.shape(&name(layer)).is_some()).count()
    };
    let sizes = Sizes {
        vocabulary: axis(variables, EMBEDDINGS, 0).ok_or_else(|| missing("its vocabulary"))?,
        width: axis(variables, EMBEDDINGS, 1).ok_or_else(|| missing("its width"))?,
        mels: axis(variables, "encoder/conv1/weight", 1).ok_or_else(|| missing("its mels"))?,
        encoder_layers: layers(variables, "encoder"),
        decoder_layers: layers(variables, "decoder"),
        heads: variables.take_number("encoder/num_heads").ok_or_else(|| missing("its heads"))?
            as usize,
    };
    sizes.check().map_err(|why| Error::unsupported(format!("the checkpoint: {why}")))?;
    let positions = [("encoder", AUDIO_POSITIONS), ("decoder", TEXT_POSITIONS)];
    for (side, expected) in positions {
        if axis(variables, &format!("{side}/position_encodings/encodings"), 0) != Some(expected) {
            return Err(Error::unsupported(
                "the checkpoint has not as many positions as a Whisper",
            ));
        }
    }
    Ok(sizes)
}

/// The pieces that are text, as bytes.
fn tokens(vocabulary: &[u8], count: usize) -> Result<Vec<Vec<u8>>> {
    let wrong = |why: &str| Error::corrupt(format!("the vocabulary {why}"));
    let text = std::str::from_utf8(vocabulary).map_err(|_| wrong("is not UTF-8"))?;
    // Pieces may hold what other readers take for ends of lines.
    let lines: Vec<&str> = text.strip_suffix('\n').unwrap_or(text).split('\n').collect();
    if lines.len() != count {
        return Err(wrong(&format!("has {} pieces, the checkpoint {count}", lines.len())));
    }
    let end = lines.iter().position(|line| *line == END_OF_TEXT);
    let end = end.ok_or_else(|| wrong("has no end of text"))?;
    lines[..end]
        .iter()
        .map(|piece| {
            let bytes: Option<Vec<u8>> = piece.chars().map(byte_of).collect();
            bytes.ok_or_else(|| wrong(&format!("has a piece {piece:?} that stands for no bytes")))
        })
        .collect()
}

/// GPT-2 writes each byte of a piece as a visible character: those of Latin-1 as themselves, the
/// others in order from U+0100 on.
fn byte_of(character: char) -> Option<u8> {
    let shows = |byte: u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    match u32::from(character) {
        code @ 0..=255 => u8::try_from(code).ok().filter(|&byte| shows(byte)),
        code => (0..=255).filter(|&byte| !shows(byte)).nth((code - 256) as usize),
    }
}

/// The filters that make a mel spectrogram of a power spectrum, a row of 201 for each of `mels`:
/// triangles on Slaney's scale (linear below 1 kHz, logarithmic above), each of area 1, as librosa's
/// `filters.mel` gives them.
pub fn mel_filters(mels: usize) -> Vec<f32> {
    const LINEAR_HZ: f64 = 200.0 / 3.0;
    const KNEE_HZ: f64 = 1_000.0;
    let knee = KNEE_HZ / LINEAR_HZ;
    let step = 6.4_f64.ln() / 27.0;
    let hz = |mel: f64| {
        if mel < knee { mel * LINEAR_HZ } else { KNEE_HZ * ((mel - knee) * step).exp() }
    };
    let top = knee + (RATE_HZ / 2.0 / KNEE_HZ).ln() / step;
    let corner = |number: usize| hz(top * number as f64 / (mels + 1) as f64);
    let mut filters = Vec::with_capacity(mels * FREQUENCIES);
    for mel in 0..mels {
        let (low, middle, high) = (corner(mel), corner(mel + 1), corner(mel + 2));
        filters.extend((0..FREQUENCIES).map(|bin| {
            let at = bin as f64 * RATE_HZ / 2.0 / (FREQUENCIES - 1) as f64;
            let slope = ((at - low) / (middle - low)).min((high - at) / (high - middle));
            (slope.max(0.0) * 2.0 / (high - low)) as f32
        }));
    }
    filters
}

#[cfg(test)]
mod tests {
    use super::super::ctranslate2;
    use super::super::ggml::tests::{SMALL, read};
    use super::*;

    /// What `librosa.filters.mel(sr=16000, n_fft=400, n_mels=80)` gives.
    #[test]
    fn mel_filters_are_librosas() {
        let filters = mel_filters(80);
        let at = |mel: usize, bin: usize| filters[mel * FREQUENCIES + bin];
        for (mel, bin, expected) in [
            (0, 0, 0.0),
            (0, 1, 0.024_862_59),
            (0, 2, 0.0),
            (1, 1, 0.001_990_82),
            (1, 2, 0.022_871_77),
            (79, 190, 0.002_232_05),
            (79, 193, 0.003_141_31),
            (79, 199, 0.000_448_76),
            (79, 200, 0.0),
        ] {
            assert!((at(mel, bin) - expected).abs() < 1e-7, "{mel} {bin} {}", at(mel, bin));
        }
        let sum: f32 = filters.iter().sum();
        assert!((sum - 1.999_024_2).abs() < 1e-5, "{sum}");
        assert_eq!(filters.iter().filter(|value| **value > 0.0).count(), 391);
    }

    #[test]
    fn every_byte_has_one_character() {
        let mut bytes: Vec<u8> =
            (0..0x180).filter_map(|code| byte_of(char::from_u32(code)?)).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        assert_eq!(
            (byte_of('Ġ'), byte_of('Ċ'), byte_of('a')),
            (Some(b' '), Some(b'\n'), Some(b'a'))
        );
        assert_eq!((byte_of(' '), byte_of('\u{144}')), (None, None));
    }

    /// A Whisper of the smallest size, with numbers that tell where they stand.
    fn arrays() -> Vec<(String, Vec<usize>, Vec<f32>)> {
        let mut arrays: Vec<(String, Vec<usize>, Vec<f32>)> = Vec::new();
        for (name, shape, _) in SMALL.tensors() {
            let part = Part::of(&name).unwrap();
            let shape = if shape.get(1) == Some(&1) { shape[..1].to_vec() } else { shape };
            let mut whole = shape.clone();
            whole[0] *= part.of;
            if arrays.iter().any(|(known, ..)| *known == part.array) {
                continue;
            }
            let seed = arrays.len() as f32;
            let count: usize = whole.iter().product();
            let is_key = |at: usize| {
                part.array.ends_with("/bias")
                    && part.of > 1
                    && at / (count / part.of) == KEYS[part.of - 2]
            };
            let value = |at: usize| {
                if is_key(at) { 0.0 } else { (at * 31 % 101) as f32 / 101.0 + seed / 8.0 }
            };
            let values = (0..count).map(value).collect();
            arrays.push((part.array.clone(), whole, values));
        }
        arrays
    }

    const SETTINGS: &[(&str, u16)] =
        &[("encoder/num_heads", 2), ("decoder/alignment_heads", 1), ("decoder/activation", 3)];

    fn vocabulary() -> String {
        let text = (0..50_256).map(|number| format!("Ġw{number}\n")).collect::<String>();
        let rest = ENGLISH - 50_257;
        format!("{text}<|endoftext|>\n{}", "<|x|>\n".repeat(rest))
    }
    const ENGLISH: usize = ggml::ENGLISH_VOCABULARY;

    #[test]
    fn every_tensor_of_the_written_file_has_the_numbers_of_its_source() {
        let arrays = arrays();
        let model = ctranslate2::tests::file(&arrays, SETTINGS);
        let written = read(&convert(&model, vocabulary().as_bytes()).unwrap());
        assert_eq!(written.tokens.len(), 50_256);
        assert_eq!(written.tokens[7], b" w7");
        for (name, ..) in SMALL.tensors() {
            let part = Part::of(&name).unwrap();
            let (_, _, values) = arrays.iter().find(|(known, ..)| *known == part.array).unwrap();
            let count = values.len() / part.of;
            let source = &values[part.place * count..][..count];
            let most = source.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
            let found = &written.tensors[&name];
            assert_eq!(found.len(), count, "{name}");
            for (found, expected) in found.iter().zip(source) {
                // Half a step of 8 bits, and what halves lose.
                assert!((found - expected).abs() <= most / 127.0 * 0.6 + 1e-3, "{name}");
            }
        }
    }

    #[test]
    fn what_is_no_whisper_or_lacks_something_is_refused_by_name() {
        let vocabulary = vocabulary();
        let refused = |arrays: &[(String, Vec<usize>, Vec<f32>)]| {
            let model = ctranslate2::tests::file(arrays, SETTINGS);
            convert(&model, vocabulary.as_bytes()).unwrap_err().to_string()
        };
        let mut lacking = arrays();
        lacking.retain(|(name, ..)| name != "decoder/layer_0/attention/linear_2/bias");
        assert!(refused(&lacking).contains("decoder/layer_0/attention/linear_2/bias"));
        let mut more = arrays();
        more.push(("decoder/layer_0/extra/weight".to_owned(), vec![1], vec![1.0]));
        assert!(refused(&more).contains("decoder/layer_0/extra/weight"));
        let mut keys = arrays();
        let of_keys = |(name, ..): &&mut (String, Vec<usize>, Vec<f32>)| {
            name == "encoder/layer_0/self_attention/linear_0/bias"
        };
        keys.iter_mut().find(of_keys).unwrap().2[40] = 1.0;
        assert!(refused(&keys).contains("keys with a bias"));
        let model = ctranslate2::tests::file(&arrays(), SETTINGS);
        assert!(convert(&model, b"a\n").unwrap_err().to_string().contains("1 pieces"));
    }

    /// `tests/golden/whisper.json`, made by `tests/golden/whisper.py`, tells what each tensor of the fetched
    /// checkpoints holds. Needs `cinelex setup`.
    #[cfg(feature = "speech")]
    #[test]
    fn each_tensor_of_the_files_made_at_set_up_has_the_numbers_of_the_checkpoint() {
        use crate::model::Models;
        let models = Models::open().unwrap();
        let golden = include_str!("../../tests/golden/whisper.json");
        let golden: serde_json::Value = serde_json::from_str(golden).unwrap();
        for (model, (vocabulary, width, layers), tokens, [the, late]) in [
            ("whisper-tiny.en", (51_864, 384, 4), 50_256, [(262, " the"), (50_255, " gazed")]),
            ("whisper-base", (51_865, 512, 6), 50_257, [(264, " the"), (50_255, "场")]),
        ] {
            let path = models.graph(&models.manifest(model).unwrap()).unwrap();
            let sizes = ggml::check(&path).unwrap();
            assert_eq!(
                (sizes.vocabulary, sizes.width, sizes.decoder_layers),
                (vocabulary, width, layers)
            );
            let file = read(&std::fs::read(path).unwrap());
            assert_eq!(file.tokens.len(), tokens);
            for (at, token) in [the, late] {
                assert_eq!(file.tokens[at], token.as_bytes(), "{model}");
            }
            let golden = golden[model].as_object().unwrap();
            let names: Vec<&String> = file.tensors.keys().collect();
            assert_eq!(names.len(), golden.len(), "{model}: {names:?}");
            for (name, golden) in golden {
                let found = &file.tensors[name];
                assert_eq!(
                    found.len() as u64,
                    golden["count"].as_u64().unwrap(),
                    "{model}: {name}"
                );
                let largest = golden["largest"].as_f64().unwrap();
                let every = golden["every_1009th"].as_array().unwrap();
                for (value, expected) in found.iter().step_by(1_009).zip(every) {
                    let off = (f64::from(*value) - expected.as_f64().unwrap()).abs();
                    assert!(
                        off <= largest / 127.0 * 0.6 + 1e-6,
                        "{model}: {name}: {value}, not {expected}"
                    );
                }
                let squares: f64 = found.iter().map(|value| f64::from(*value).powi(2)).sum();
                let expected = golden["sum_of_squares"].as_f64().unwrap();
                let off = (squares / expected - 1.0).abs();
                assert!(off < 2e-3, "{model}: {name}: {squares}, not {expected}");
            }
        }
    }
}
