//! What is known of a model before it is there: where its files come from, their hashes, what its
//! licence allows, and how its tensors are to be filled and read.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::task::{self, CaptionerSpec, EncoderSpec, SpeechSpec, Task, TextSpec, VoiceSpec};
use crate::error::{Error, Result};
use crate::toml_check::{self, Mistake, Table};

/// One model, as its TOML file describes it.
#[derive(Debug, Clone)]
pub struct Manifest {
    pub id: String,
    pub version: String,
    pub about: String,
    /// SPDX expression where there is one.
    pub licence: String,
    pub commercial: Commercial,
    pub task: Task,
    pub files: Vec<ModelFile>,
    /// How the checkpoint becomes an ONNX graph; `None` where a file is one already.
    pub conversion: Option<Conversion>,
    pub variant: Variant,
    /// How this project made the files itself.
    pub made: Option<Made>,
    /// Relative paths of files start here; `None` for built-in manifests.
    pub(super) folder: Option<PathBuf>,
}

/// Whether a licence allows commercial use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Commercial {
    Yes,
    No,
    Unknown,
}

/// One file of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelFile {
    /// Its name in the cache; also how other keys refer to it.
    pub name: String,
    pub origin: Origin,
    /// Lower-case hexadecimal.
    pub sha256: String,
    pub bytes: u64,
    /// Only for this CPU architecture (as in `std::env::consts::ARCH`).
    pub arch: Option<String>,
}

/// Where a file comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum Origin {
    Package(Package),
    Url(String),
    /// Beside the manifest, or, for a built-in manifest, part of this executable.
    Path(PathBuf),
}

/// A file inside a wheel of the Python package index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    pub name: String,
    pub version: String,
    pub member: String,
    /// The platform tag, for wheels that have one.
    pub platform: Option<String>,
    /// Size of the wheel.
    pub bytes: u64,
}

/// How a checkpoint becomes an ONNX graph, or a GGML file.
#[derive(Debug, Clone, PartialEq)]
pub enum Conversion {
    /// EfficientNet-Lite from a PyTorch checkpoint: Tan and Le, "EfficientNet" (2019), without
    /// squeeze-and-excitation, with ReLU6.
    EfficientNetLite {
        checkpoint: String,
        width: f64,
        depth: f64,
        /// The file with activation ranges that the int8 variant is made with.
        ranges: Option<String>,
    },
    /// A BERT with mean pooling and L2 norm (Sentence-BERT) from a safetensors checkpoint.
    SentenceBert { checkpoint: String, heads: usize },
    /// A Whisper from CTranslate2's `model.bin`, which may come in parts, and its vocabulary.
    Whisper { parts: Vec<String>, vocabulary: String },
}

impl Conversion {
    /// Raised whenever [`crate::onnx`] would write another graph from the same checkpoint, so that
    /// graphs converted by an older Cinelex are not used.
    fn version(&self, variant: Variant) -> u32 {
        match (self, variant) {
            (Conversion::EfficientNetLite { .. }, Variant::Fp32) => 1,
            (Conversion::EfficientNetLite { .. }, Variant::Int8) => 2,
            (Conversion::SentenceBert { .. }, _) => 3,
            (Conversion::Whisper { .. }, _) => 1,
        }
    }
}

/// Forms of one model that give nearly the same results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Variant {
    Fp32,
    /// Static 8-bit quantization.
    Int8,
}

/// What an id or a path ends with where the variant of 8 bits is meant.
const INT8: &str = "@int8";

impl Variant {
    /// Which model is named by this, and which of its variants.
    pub fn named(reference: &str) -> (&str, Variant) {
        match reference.strip_suffix(INT8) {
            Some(model) => (model, Variant::Int8),
            None => (reference, Variant::Fp32),
        }
    }

    /// How this variant of a model is named.
    pub fn name(self, model: &str) -> String {
        match self {
            Variant::Fp32 => model.to_owned(),
            Variant::Int8 => format!("{model}{INT8}"),
        }
    }
}

/// How this project made a model's files.
#[derive(Debug, Clone, PartialEq)]
pub struct Made {
    /// The seed included.
    pub command: String,
    /// With what its licences allow.
    pub data: String,
    /// How good it is, and on what that was measured.
    pub scores: String,
}

impl Manifest {
    /// Reads the text of the manifest `file`. `folder` is where its relative paths start.
    pub(super) fn read(
        file: &str,
        text: &str,
        folder: Option<PathBuf>,
    ) -> Result<Manifest, Vec<Mistake>> {
        toml_check::read(file, text, |root| manifest(root, folder))
    }

    pub fn encoder(&self) -> Result<&EncoderSpec> {
        match &self.task {
            Task::Encoder(spec) => Ok(spec),
            _ => Err(self.wrong_task("encoder")),
        }
    }

    pub fn text(&self) -> Result<&TextSpec> {
        match &self.task {
            Task::Text(spec) => Ok(spec),
            _ => Err(self.wrong_task("text")),
        }
    }

    pub fn captioner(&self) -> Result<&CaptionerSpec> {
        match &self.task {
            Task::Captioner(spec) => Ok(spec),
            _ => Err(self.wrong_task("captioner")),
        }
    }

    pub fn voice(&self) -> Result<&VoiceSpec> {
        match &self.task {
            Task::Voice(spec) => Ok(spec),
            _ => Err(self.wrong_task("voice")),
        }
    }

    pub fn speech(&self) -> Result<&SpeechSpec> {
        match &self.task {
            Task::Speech(spec) => Ok(spec),
            _ => Err(self.wrong_task("speech")),
        }
    }

    pub(super) fn wrong_task(&self, wanted: &str) -> Error {
        Error::invalid_input(format!(
            "model {} has task = \"{}\", but one with task = \"{wanted}\" is needed here",
            self.id,
            self.task.as_str()
        ))
    }

    /// The model in each of its variants.
    pub fn variants(&self) -> impl Iterator<Item = Manifest> {
        let int8 = self.has_int8().then_some(Variant::Int8);
        let variants = std::iter::once(Variant::Fp32).chain(int8);
        variants.map(|variant| Manifest { variant, ..self.clone() })
    }

    pub fn has_int8(&self) -> bool {
        self.ranges().is_some()
    }

    /// The files that this machine needs.
    pub fn files_here(&self) -> impl Iterator<Item = &ModelFile> {
        let here = |file: &&ModelFile| {
            file.arch.as_deref().is_none_or(|arch| arch == std::env::consts::ARCH)
        };
        self.files.iter().filter(here)
    }

    /// The file of this name.
    pub fn file(&self, name: &str) -> Result<&ModelFile> {
        self.files_here().find(|file| file.name == name).ok_or_else(|| {
            Error::not_found(format!(
                "model {} has no file {name} for this machine ({})",
                self.id,
                std::env::consts::ARCH
            ))
        })
    }

    /// Names the model's content: another one whenever a file's hash changes. Variants and forms share it,
    /// so what only they are made with does not count.
    pub fn identity(&self) -> String {
        let mut hash = Sha256::new();
        let ranges = self.ranges();
        for file in self.files.iter().filter(|file| Some(file.name.as_str()) != ranges) {
            hash.update(file.sha256.as_bytes());
        }
        format!("{}-{}", self.id, &super::store::hex(&hash.finalize())[..12])
    }

    /// Which way of writing the graph it is run by. What one form gives differs from another's by rounding.
    pub fn form(&self) -> u32 {
        self.conversion.as_ref().map_or(0, |conversion| conversion.version(self.variant))
    }

    /// The file with activation ranges, for models that have an int8 variant.
    fn ranges(&self) -> Option<&str> {
        match &self.conversion {
            Some(Conversion::EfficientNetLite { ranges, .. }) => ranges.as_deref(),
            _ => None,
        }
    }

    /// Name of the ONNX graph (of a Whisper, the GGML file) within the folder: a converted one carries
    /// the conversion's version, and one with 8 bits the hash of the ranges that it was made with.
    pub(super) fn graph_name(&self) -> Result<String> {
        match (&self.conversion, self.variant) {
            (Some(conversion), Variant::Fp32) => {
                let version = conversion.version(self.variant);
                Ok(format!("{}.v{version}.{}", self.id, self.graph_ending()))
            }
            (Some(conversion), Variant::Int8) => {
                let ranges = &self.file(self.ranges().unwrap_or_default())?.sha256;
                let made_with = ranges.get(..8).unwrap_or(ranges);
                let version = conversion.version(self.variant);
                Ok(format!("{}.int8-{made_with}.v{version}.onnx", self.id))
            }
            (None, _) => self
                .files_here()
                .find(|file| {
                    Path::new(&file.name).extension().is_some_and(|ext| ext == self.graph_ending())
                })
                .map(|file| file.name.clone())
                .ok_or_else(|| {
                    let ending = self.graph_ending();
                    Error::invalid_input(format!("model {} has no .{ending} file", self.id))
                }),
        }
    }

    fn graph_ending(&self) -> &'static str {
        match self.task {
            Task::Speech(_) => GGML_ENDING,
            _ => "onnx",
        }
    }

    /// Name of the file beside a converted graph that has its weights; `None` where they are inside.
    /// A sentence encoder is loaded by every process that answers a search, and ONNX Runtime maps
    /// such a file where it copies what is inside a graph twice.
    pub(crate) fn weights_name(&self) -> Result<Option<String>> {
        match &self.conversion {
            Some(Conversion::SentenceBert { .. }) => {
                Ok(Some(format!("{}.weights", self.graph_name()?)))
            }
            _ => Ok(None),
        }
    }
}

const LARGEST_FILE_BYTES: i64 = 16 << 30;
/// As whisper.cpp's own files are named.
const GGML_ENDING: &str = "bin";

fn manifest(root: &Table<'_>, folder: Option<PathBuf>) -> Manifest {
    root.required_int("schema", 1..=1);
    let id = root.required_str("id");
    if !is_plain_name(id) {
        root.mistake("id", "`id` must consist of letters, digits, '-', '_' and '.'");
    }
    let files = root.tables("files", |table| file(table, folder.is_some()));
    if files.is_empty() {
        root.mistake("files", "at least one [[files]] is needed");
    }
    let task = task::read(root, &files);
    let conversion = root.optional_table("conversion", |table| conversion(table, &files));
    let ending = match task {
        Task::Encoder(_) | Task::Text(_) | Task::Voice(_) => Some(".onnx"),
        Task::Speech(_) => Some(".bin"),
        _ => None,
    };
    if let (Some(ending), None) = (ending, &conversion)
        && !files.iter().any(|file| file.name.ends_with(ending))
    {
        let named = format!("one of the files must be named *{ending}, or a [conversion] be given");
        root.mistake("files", named);
    }
    Manifest {
        id: id.to_owned(),
        version: root.required_str("version").to_owned(),
        about: root.required_str("about").to_owned(),
        licence: root.required_str("licence").to_owned(),
        commercial: commercial(root),
        task,
        files,
        conversion,
        variant: Variant::Fp32,
        made: root.optional_table("made", |made| Made {
            command: made.required_str("command").to_owned(),
            data: made.required_str("data").to_owned(),
            scores: made.required_str("scores").to_owned(),
        }),
        folder,
    }
}

fn commercial(root: &Table<'_>) -> Commercial {
    root.required("commercial", "true, false or \"unknown\"", |item| match item.as_bool() {
        Some(true) => Some(Commercial::Yes),
        Some(false) => Some(Commercial::No),
        None => (item.as_str() == Some("unknown")).then_some(Commercial::Unknown),
    })
    .unwrap_or(Commercial::Unknown)
}

/// A name that is one component of a path, on any system.
fn is_plain_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    !name.starts_with('.') && !name.is_empty() && name.bytes().all(plain)
}

fn file(table: &Table<'_>, users: bool) -> ModelFile {
    let name = table.required_str("name");
    if !is_plain_name(name) && !name.is_empty() {
        table.mistake("name", "`name` must consist of letters, digits, '-', '_' and '.'");
    }
    let sha256 = table.required_str("sha256");
    let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if !sha256.is_empty() && (sha256.len() != 64 || !sha256.bytes().all(is_hex)) {
        table.mistake("sha256", "`sha256` must be 64 lower-case hexadecimal digits");
    }
    let package = table.optional_table("package", |package| Package {
        name: package.required_str("name").to_owned(),
        version: package.required_str("version").to_owned(),
        member: package.required_str("member").to_owned(),
        platform: package.optional_str("platform").map(str::to_owned),
        bytes: package.required_int("bytes", 1..=LARGEST_FILE_BYTES).unsigned_abs(),
    });
    let url = table.optional_str("url");
    let path = table.optional_str("path");
    let origin = match (package, url, path) {
        (Some(package), None, None) => Origin::Package(package),
        (None, Some(url), None) => {
            if !url.starts_with("https://") && !url.starts_with("http://") {
                table.mistake("url", "`url` must start with https:// or http://");
            }
            Origin::Url(url.to_owned())
        }
        (None, None, Some(path)) => {
            if !users && !is_plain_name(path) {
                table.mistake("path", "a built-in `path` must be a file name");
            }
            Origin::Path(path.into())
        }
        _ => {
            table.mistake("name", "a file needs exactly one of `package`, `url` and `path`");
            Origin::Path(PathBuf::new())
        }
    };
    ModelFile {
        name: name.to_owned(),
        origin,
        sha256: sha256.to_owned(),
        bytes: table.required_int("bytes", 1..=LARGEST_FILE_BYTES).unsigned_abs(),
        arch: table.optional_str("arch").map(str::to_owned),
    }
}

/// A key whose value names one of the files.
pub(super) fn file_name(table: &Table<'_>, key: &'static str, files: &[ModelFile]) -> String {
    let name = table.required_str(key);
    if !name.is_empty() && !files.iter().any(|file| file.name == name) {
        table.mistake(key, format!("there is no [[files]] with name = \"{name}\""));
    }
    name.to_owned()
}

fn conversion(table: &Table<'_>, files: &[ModelFile]) -> Conversion {
    let from = [("efficientnet-lite", 0), ("sentence-bert", 1), ("ctranslate2-whisper", 2)];
    match table.required_choice("from", &from) {
        0 => Conversion::EfficientNetLite {
            checkpoint: file_name(table, "checkpoint", files),
            width: table.required_float("width", 0.25..=4.0),
            depth: table.required_float("depth", 0.25..=4.0),
            ranges: table.has("ranges").then(|| file_name(table, "ranges", files)),
        },
        1 => Conversion::SentenceBert {
            checkpoint: file_name(table, "checkpoint", files),
            heads: table.required_int("heads", 1..=64).unsigned_abs() as usize,
        },
        _ => {
            let parts: Vec<String> =
                table.strings("parts").into_iter().map(str::to_owned).collect();
            let is_there = |part: &String| files.iter().any(|file| file.name == *part);
            if parts.is_empty() || !parts.iter().all(is_there) {
                table.mistake("parts", "`parts` must name [[files]] that make up the model");
            }
            Conversion::Whisper { parts, vocabulary: file_name(table, "vocabulary", files) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPTIONER: &str = r#"
        schema = 1
        id = "captioner-mine"
        version = "1"
        task = "captioner"
        about = "Captions of my films"
        licence = "MIT"
        commercial = true

        [[files]]
        name = "captioner-mine.safetensors"
        path = "captioner-mine.safetensors"
        sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
        bytes = 1

        [captioner]
        encoder = "efficientnet-lite0"
        codebook = "none"
        text = "minilm"
        cells = "3x3"
        from = "picture"
        clips = 1
        beams = 3
        longest = 24
        length_power = 1.0
        confidence = 0.2

        [made]
        command = "cinelex train mine --out mine"
        data = "My films"
        scores = "none"
    "#;

    #[test]
    fn a_captioners_manifest_says_what_it_was_trained_with_and_how_it_writes() {
        let read = |text: &str| Manifest::read("mine.toml", text, Some("/mine".into()));
        let manifest = read(CAPTIONER).unwrap();
        let spec = manifest.captioner().unwrap();
        assert_eq!((spec.codebook.as_deref(), spec.cells, spec.words), (None, true, false));
        assert_eq!((spec.clips, spec.beams, spec.confidence), (1, 3, 0.2));
        assert!(manifest.encoder().unwrap_err().to_string().contains("task = \"captioner\""));
        let wrong = CAPTIONER.replace("beams = 3", "beams = 99").replace("cells = \"3x3\"", "");
        let mistakes = toml_check::as_error(&read(&wrong).unwrap_err()).to_string();
        assert!(mistakes.contains("beams") && mistakes.contains("cells"), "{mistakes}");
    }
}
