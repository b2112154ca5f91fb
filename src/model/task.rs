//! What models are for: what each kind of manifest says beside its files.

use super::manifest::{ModelFile, file_name};
use crate::toml_check::Table;

/// What a model is for.
#[derive(Debug, Clone, PartialEq)]
pub enum Task {
    Encoder(EncoderSpec),
    Text(TextSpec),
    /// The ONNX Runtime shared library itself.
    Runtime,
    /// Names of an encoder's classes.
    Classes,
    /// A fitted codebook.
    Codebook {
        /// The id of the encoder whose features it was fitted on.
        encoder: String,
    },
    /// A trained transformer that writes captions.
    Captioner(CaptionerSpec),
    /// Tells where somebody speaks.
    Voice(VoiceSpec),
    /// Speech to text: a Whisper in a GGML file.
    Speech(SpeechSpec),
}

impl Task {
    pub fn as_str(&self) -> &'static str {
        match self {
            Task::Encoder(_) => "encoder",
            Task::Text(_) => "text",
            Task::Runtime => "runtime",
            Task::Classes => "classes",
            Task::Codebook { .. } => "codebook",
            Task::Captioner(_) => "captioner",
            Task::Voice(_) => "voice",
            Task::Speech(_) => "speech",
        }
    }
}

/// A trained transformer: what it was trained with, by the ids of their manifests, and how captions are
/// written with it. Its file says the rest, with the hashes of what it was trained with.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct CaptionerSpec {
    // The weights' own hashes name these in a recipe.
    #[serde(skip)]
    pub encoder: String,
    /// `None` where it sees no visual words.
    #[serde(skip)]
    pub codebook: Option<String>,
    /// The sentence encoder in whose space its embeddings lie.
    #[serde(skip)]
    pub text: String,
    /// Whether it sees the nine parts of a picture beside the whole.
    pub cells: bool,
    /// Whether captions are written of what was said, too, or of the picture alone.
    pub words: bool,
    /// The most clips of a segment that it sees, spread evenly: 1 for a network that was trained on
    /// photos.
    pub clips: usize,
    /// Beginnings of a caption that are followed at a time.
    pub beams: usize,
    /// Word pieces of a caption at most.
    pub longest: usize,
    /// A caption's log-probability is divided by its length to this power.
    pub length_power: f64,
    /// A caption of less confidence, 0 to 1, is none.
    pub confidence: f64,
}

/// A network that tells where somebody speaks, chunk by chunk, as Silero's does: the names of its
/// inputs and outputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VoiceSpec {
    /// `[1, 64 + 512]`: the end of the chunk before, and a chunk of 16 kHz sound.
    pub input: String,
    /// `[2, 1, 128]`: what the chunk before has left.
    pub state: String,
    /// A whole number: 16,000.
    pub rate: String,
    /// `[1, 1]`: a probability.
    pub output: String,
    pub next_state: String,
}

/// A Whisper.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpeechSpec {
    /// By Whisper's codes; none: all that the network knows.
    pub languages: Vec<String>,
    /// Layer and head of the decoder's attentions to the sound that follow what is said, from which
    /// words have their times. None where they are not known: then all of the upper half are taken.
    pub heads: Vec<(u16, u16)>,
}

/// A CNN that makes features of pictures: its input and its outputs.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderSpec {
    pub width_px: u32,
    pub height_px: u32,
    /// Frames in one input: 1 for a network that sees single pictures.
    pub frames: u32,
    /// A channel's value `x` (0 to 255; red, green, blue) enters as `(x - mean) / scale`.
    pub mean: [f32; 3],
    pub scale: [f32; 3],
    /// Order of the input's axes after the first (batch): some order of `c`, `h`, `w`, and `t`
    /// where an input has several frames.
    pub layout: String,
    pub input: String,
    /// `[N, dim]`.
    pub features: OutputSpec,
    /// `[N, 9, dim]`: the map's 3x3 cells, row by row.
    pub cells: Option<String>,
    /// `[N, dim]`: class probabilities.
    pub classes: Option<ClassesSpec>,
}

/// A named output tensor `[N, dim]`.
#[derive(Debug, Clone, PartialEq)]
pub struct OutputSpec {
    pub name: String,
    pub dim: usize,
}

/// The classes that an encoder tells apart.
#[derive(Debug, Clone, PartialEq)]
pub struct ClassesSpec {
    pub output: OutputSpec,
    /// The manifest (id or path) with their names.
    pub names: String,
}

/// A sentence encoder: its tokenizer, inputs (`[N, T]`, i64) and output.
#[derive(Debug, Clone, PartialEq)]
pub struct TextSpec {
    /// Length of an embedding.
    pub dim: usize,
    /// Longer texts are cut, special tokens included.
    pub max_tokens: usize,
    /// BCP-47.
    pub languages: Vec<String>,
    /// Which of the files is the tokenizer.
    pub tokenizer: String,
    pub ids: String,
    pub mask: String,
    /// Some graphs want token types too; they are all zero.
    pub types: Option<String>,
    pub output: String,
    pub pooling: Pooling,
    /// Whether embeddings are to be scaled to length 1 (again).
    pub normalize: bool,
}

/// How one vector is had from a text's token vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The graph does it: its output is `[N, dim]`.
    InGraph,
    /// The mean over the tokens of the mask; the output is `[N, T, dim]`.
    Mean,
    /// The first token's vector; the output is `[N, T, dim]`.
    First,
}

/// The task of a manifest, with what belongs to it.
pub(super) fn read(root: &Table<'_>, files: &[ModelFile]) -> Task {
    let tasks = [
        ("encoder", "encoder"),
        ("text", "text"),
        ("runtime", "runtime"),
        ("classes", "classes"),
        ("codebook", "codebook"),
        ("captioner", "captioner"),
        ("voice", "voice"),
        ("speech", "speech"),
    ];
    match root.required_choice("task", &tasks) {
        "encoder" => Task::Encoder(root.required_table("encoder", encoder)),
        "text" => Task::Text(root.required_table("text", |table| text(table, files))),
        "runtime" => Task::Runtime,
        "classes" => Task::Classes,
        "captioner" => Task::Captioner(root.required_table("captioner", captioner)),
        "voice" => Task::Voice(root.required_table("voice", voice)),
        "speech" => Task::Speech(root.required_table("speech", speech)),
        _ => root.required_table("codebook", |table| Task::Codebook {
            encoder: table.required_str("encoder").to_owned(),
        }),
    }
}

fn dimension(table: &Table<'_>, key: &'static str) -> usize {
    table.required_int(key, 1..=65_536).unsigned_abs() as usize
}

fn encoder(table: &Table<'_>) -> EncoderSpec {
    let side = |key| table.required_int(key, 8..=2048).unsigned_abs() as u32;
    let (width_px, height_px) = (side("width"), side("height"));
    let frames = table.optional_int("frames", 1..=256).unwrap_or(1).unsigned_abs() as u32;
    let layout = table.required_str("layout");
    let mut axes: Vec<char> = layout.chars().collect();
    axes.sort_unstable();
    let (wanted, example) = if frames == 1 { ("chnw", "nchw") } else { ("chntw", "nctw or ntchw") };
    if !layout.is_empty() && (!layout.starts_with('n') || axes.iter().collect::<String>() != wanted)
    {
        table.mistake(
            "layout",
            format!("`layout` must be n, then the other axes in some order, as in \"{example}\""),
        );
    }
    EncoderSpec {
        width_px,
        height_px,
        frames,
        mean: channels(table, "mean", -1e6..=1e6),
        scale: channels(table, "scale", 1e-6..=1e6),
        layout: layout.to_owned(),
        input: table.required_str("input").to_owned(),
        features: table.required_table("features", output),
        cells: table.optional_str("cells").map(str::to_owned),
        classes: table.optional_table("classes", |classes| ClassesSpec {
            names: classes.required_str("names").to_owned(),
            output: output(classes),
        }),
    }
}

fn output(table: &Table<'_>) -> OutputSpec {
    OutputSpec { name: table.required_str("name").to_owned(), dim: dimension(table, "dim") }
}

fn channels(
    table: &Table<'_>,
    key: &'static str,
    range: std::ops::RangeInclusive<f64>,
) -> [f32; 3] {
    match table.floats(key, range)[..] {
        [red, green, blue] => [red as f32, green as f32, blue as f32],
        _ => {
            table.mistake(key, format!("`{key}` must be three numbers: red, green, blue"));
            [1.0; 3]
        }
    }
}

fn text(table: &Table<'_>, files: &[ModelFile]) -> TextSpec {
    let poolings =
        [("graph", Pooling::InGraph), ("mean", Pooling::Mean), ("first", Pooling::First)];
    let owned = |text: &str| text.to_owned();
    let languages = table.strings("languages").into_iter().map(owned).collect();
    TextSpec {
        dim: dimension(table, "dim"),
        max_tokens: table.required_int("max_tokens", 4..=8192).unsigned_abs() as usize,
        languages,
        tokenizer: file_name(table, "tokenizer", files),
        ids: table.required_str("ids").to_owned(),
        mask: table.required_str("mask").to_owned(),
        types: table.optional_str("types").map(owned),
        output: table.required_str("output").to_owned(),
        pooling: table.required_choice("pooling", &poolings),
        normalize: table.optional_bool("normalize").unwrap_or(true),
    }
}

fn captioner(table: &Table<'_>) -> CaptionerSpec {
    let count = |key, most| table.required_int(key, 1..=most).unsigned_abs() as usize;
    let codebook = table.required_str("codebook");
    CaptionerSpec {
        encoder: table.required_str("encoder").to_owned(),
        codebook: (codebook != "none").then(|| codebook.to_owned()),
        text: table.required_str("text").to_owned(),
        cells: table.required_choice("cells", &[("3x3", true), ("none", false)]),
        words: table.required_choice("from", &[("picture", false), ("picture and words", true)]),
        clips: count("clips", 256),
        beams: count("beams", 16),
        longest: count("longest", 256),
        length_power: table.required_float("length_power", 0.0..=4.0),
        confidence: table.required_float("confidence", 0.0..=1.0),
    }
}

fn voice(table: &Table<'_>) -> VoiceSpec {
    let name = |key| table.required_str(key).to_owned();
    VoiceSpec {
        input: name("input"),
        state: name("state"),
        rate: name("rate"),
        output: name("output"),
        next_state: name("next_state"),
    }
}

fn speech(table: &Table<'_>) -> SpeechSpec {
    let head = |text: &str| {
        let (layer, head) = text.split_once('.')?;
        Some((layer.parse().ok()?, head.parse().ok()?))
    };
    let heads: Option<Vec<(u16, u16)>> = table.strings("heads").into_iter().map(head).collect();
    if heads.is_none() {
        table.mistake("heads", "`heads` must be layers and heads, as in [\"1.0\", \"2.5\"]");
    }
    SpeechSpec {
        languages: table.strings("languages").into_iter().map(str::to_owned).collect(),
        heads: heads.unwrap_or_default(),
    }
}
