//! Models: their manifests, fetching and verifying their files, and running them. Nothing else in
//! Cinelex fetches a model or names ONNX Runtime.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use crate::error::{Error, Kind, Result};
use crate::toml_check;

mod builtin;
mod classes;
mod fetch;
mod manifest;
mod session;
mod store;
mod task;

pub use classes::ClassName;
pub use fetch::Progress;
pub use manifest::{Commercial, Conversion, Made, Manifest, ModelFile, Origin, Package, Variant};
pub use session::{Device, NO_REPORTS, Session, Tensor};
pub use store::FileState;
pub use task::{
    CaptionerSpec, ClassesSpec, EncoderSpec, OutputSpec, Pooling, SpeechSpec, Task, TextSpec,
    VoiceSpec,
};

use store::Store;

/// The models that the default pipeline needs, and those that listen. The encoder computes in 8 bits on processors; on
/// a GPU, in training and for codebooks in 32.
#[cfg(feature = "speech")]
pub const DEFAULT_MODELS: &[&str] = &[
    "onnxruntime",
    "efficientnet-lite0",
    "efficientnet-lite0@int8",
    "minilm",
    "silero-vad",
    "whisper-tiny.en",
    "whisper-base",
];
/// The models that the default pipeline needs.
#[cfg(not(feature = "speech"))]
pub const DEFAULT_MODELS: &[&str] =
    &["onnxruntime", "efficientnet-lite0", "efficientnet-lite0@int8", "minilm"];

/// The models that are known, and the cache folder that holds their files.
#[derive(Debug, Clone)]
pub struct Models {
    store: Store,
    built_in: Vec<Manifest>,
}

/// A file of a model, as [`Models::files`] found it.
#[derive(Debug, Clone, serde::Serialize)]
pub struct FoundFile {
    pub name: String,
    /// `None` for one that is part of the executable.
    pub path: Option<PathBuf>,
    pub bytes: u64,
    #[serde(flatten)]
    pub state: FileState,
}

impl Models {
    /// The built-in models, with the cache folder `$CINELEX_CACHE`, else
    /// `$XDG_CACHE_HOME/cinelex`, else `~/.cache/cinelex`.
    pub fn open() -> Result<Models> {
        Self::with_store(Store::open()?)
    }

    /// The built-in models, with this cache folder.
    pub fn at(cache_folder: impl Into<PathBuf>) -> Result<Models> {
        Self::with_store(Store::at(cache_folder.into()))
    }

    fn with_store(store: Store) -> Result<Models> {
        let mut built_in = Vec::new();
        for (name, text) in builtin::MANIFESTS {
            let manifest = Manifest::read(&format!("models/{name}"), text, None);
            built_in.push(manifest.map_err(|mistakes| {
                let mistakes = toml_check::as_error(&mistakes);
                Error::internal("a built-in manifest is wrong").caused_by(mistakes)
            })?);
        }
        Ok(Models { store, built_in })
    }

    pub fn cache_folder(&self) -> &Path {
        self.store.folder()
    }

    pub fn built_in(&self) -> &[Manifest] {
        &self.built_in
    }

    /// The built-in manifest with this id, or the one in this file (`….toml`). `@int8` after
    /// either chooses that variant.
    ///
    /// # Errors
    /// `NotFound`; `InvalidInput` with every mistake of the file.
    pub fn manifest(&self, id_or_path: &str) -> Result<Manifest> {
        let (name, variant) = Variant::named(id_or_path);
        let mut manifest = if name.ends_with(".toml") {
            read_users(Path::new(name))?
        } else {
            self.built_in.iter().find(|manifest| manifest.id == name).cloned().ok_or_else(|| {
                let ids: Vec<&str> = self.built_in.iter().map(|known| known.id.as_str()).collect();
                Error::not_found(format!(
                    "there is no model {name:?}: write one of {}, or the path of a manifest that \
                     ends in .toml",
                    ids.join(", ")
                ))
            })?
        };
        if variant == Variant::Int8 && !manifest.has_int8() {
            return Err(Error::not_found(format!("model {name} has no variant int8")));
        }
        manifest.variant = variant;
        Ok(manifest)
    }

    /// The path of a model's file, after making sure that it is what the manifest says.
    ///
    /// # Errors
    /// `NotFound`, saying how to get it; `Corrupt`, with expected and found hash.
    pub fn path(&self, manifest: &Manifest, file: &str) -> Result<PathBuf> {
        let file = manifest.file(file)?;
        let path = self.file_path(manifest, file).ok_or_else(|| {
            Error::internal(format!("{} is part of the executable and has no path", file.name))
        })?;
        self.verify(manifest, file, &path, false).map_err(|error| match error.kind() {
            Kind::NotFound => not_set_up(manifest, &path),
            _ => error,
        })?;
        Ok(path)
    }

    /// The content of a model's file, verified as by [`Models::path`].
    pub fn bytes(&self, manifest: &Manifest, file: &str) -> Result<Cow<'static, [u8]>> {
        let found = manifest.file(file)?;
        if let Some(content) = built_in_content(manifest, found) {
            return Ok(Cow::Borrowed(content));
        }
        let path = self.path(manifest, file)?;
        std::fs::read(&path).map(Cow::Owned).map_err(|cause| Error::io(&path, "read", cause))
    }

    /// The names of an encoder's classes, in the order of its output.
    pub fn classes(&self, id_or_path: &str) -> Result<Vec<ClassName>> {
        let manifest = self.manifest(id_or_path)?;
        let Some(file) = manifest.files.first().filter(|_| manifest.task == Task::Classes) else {
            return Err(manifest.wrong_task("classes"));
        };
        classes::read(&file.name, &self.bytes(&manifest, &file.name)?)
    }

    /// The path of a model's ONNX graph (of a Whisper, its GGML file), verified; converted ones are
    /// made by [`crate::onnx::prepare`].
    ///
    /// # Errors
    /// `NotFound`, saying how to get it; `Corrupt`.
    pub fn graph(&self, manifest: &Manifest) -> Result<PathBuf> {
        let name = manifest.graph_name()?;
        if manifest.conversion.is_none() {
            return self.path(manifest, &name);
        }
        for made in self.made(manifest)? {
            self.store.verify_made(&made, false).map_err(|error| match error.kind() {
                Kind::NotFound => not_set_up(manifest, &made),
                _ => error,
            })?;
        }
        Ok(self.folder(manifest).join(name))
    }

    /// The files that a model's conversion makes: the graph, and its weights where they are apart.
    fn made(&self, manifest: &Manifest) -> Result<Vec<PathBuf>> {
        if manifest.conversion.is_none() {
            return Ok(Vec::new());
        }
        let names = std::iter::once(manifest.graph_name()?).chain(manifest.weights_name()?);
        Ok(names.map(|name| self.folder(manifest).join(name)).collect())
    }

    /// Keeps a graph that was converted for this model, with its weights where they are apart.
    pub(crate) fn keep_graph(
        &self,
        manifest: &Manifest,
        graph: &[u8],
        weights: Option<&[u8]>,
    ) -> Result<()> {
        let _lock = self.store.lock(&self.folder(manifest))?;
        let made = self.made(manifest)?;
        let contents: Vec<&[u8]> = std::iter::once(graph).chain(weights).collect();
        // The graph is the last to come, so that one that is there has its weights.
        for (path, content) in made.iter().zip(contents).rev() {
            self.store.write(path, content)?;
        }
        Ok(())
    }

    /// Loads a model's graph into ONNX Runtime, with `threads` for one run. 8 bits are for processors: where
    /// CUDA is, the model runs in 32 there.
    pub fn session(&self, manifest: &Manifest, device: Device, threads: usize) -> Result<Session> {
        let load = |manifest: &Manifest, device| {
            Session::load(&self.runtime()?, &self.graph(manifest)?, device, threads)
        };
        if manifest.variant == Variant::Fp32 || device == Device::Cpu {
            return load(manifest, device);
        }
        let in_32_bits = Manifest { variant: Variant::Fp32, ..manifest.clone() };
        match load(&in_32_bits, Device::Cuda) {
            Err(cause) if device == Device::Auto => {
                tracing::debug!(%cause, "no CUDA, using the CPU");
                load(manifest, Device::Cpu)
            }
            loaded => loaded,
        }
    }

    /// Loads a graph that is not kept in the cache into ONNX Runtime, on the CPU.
    pub fn session_of(&self, graph: &[u8], threads: usize) -> Result<Session> {
        let scratch = self.store.scratch()?;
        let path = scratch.path().join("graph.onnx");
        std::fs::write(&path, graph).map_err(|cause| Error::io(&path, "write", cause))?;
        Session::load(&self.runtime()?, &path, Device::Cpu, threads)
    }

    /// Fetches the files that are not there yet, verifies them and puts them in the cache.
    /// Several processes may do so at the same time: one fetches, the others wait.
    pub fn fetch(&self, manifest: &Manifest, progress: &mut dyn FnMut(Progress)) -> Result<()> {
        fetch::fetch(self, manifest, progress)
    }

    /// What is there of a model: its files for this machine and its converted graph. With
    /// `again`, each is hashed, whatever its record says.
    pub fn files(&self, manifest: &Manifest, again: bool) -> Result<Vec<FoundFile>> {
        let mut found = Vec::new();
        for file in manifest.files_here() {
            let path = self.file_path(manifest, file);
            let state = match &path {
                Some(path) => self.verify(manifest, file, path, again).into(),
                None => FileState::Present,
            };
            found.push(FoundFile { name: file.name.clone(), path, bytes: file.bytes, state });
        }
        for path in self.made(manifest)? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let state = self.store.verify_made(&path, again).into();
            let bytes = std::fs::metadata(&path).map_or(0, |metadata| metadata.len());
            found.push(FoundFile { name, path: Some(path), bytes, state });
        }
        Ok(found)
    }

    /// The shared library of ONNX Runtime: that of the built-in manifest, or what
    /// `CINELEX_ONNXRUNTIME` names: another manifest, by id or path, or a library, which is not
    /// verified.
    fn runtime(&self) -> Result<PathBuf> {
        let Some(manifest) = self.runtime_manifest()? else {
            let path = PathBuf::from(runtime_name());
            return path.canonicalize().map_err(|cause| Error::io(&path, "find", cause));
        };
        if manifest.task != Task::Runtime {
            return Err(manifest.wrong_task("runtime"));
        }
        let mut library = None;
        for file in manifest.files_here() {
            // A runtime may have further libraries, which it loads from beside itself.
            let path = self.path(&manifest, &file.name)?;
            library = library.or(file.name.starts_with("libonnxruntime.so").then_some(path));
        }
        library.ok_or_else(|| {
            Error::unsupported(format!(
                "model {} has no file libonnxruntime.so… for this machine ({}): build ONNX Runtime \
                 and name its library in CINELEX_ONNXRUNTIME",
                manifest.id,
                std::env::consts::ARCH
            ))
        })
    }

    /// The manifest of ONNX Runtime; `None` where `CINELEX_ONNXRUNTIME` names a library without one.
    ///
    /// # Errors
    /// As [`Models::manifest`].
    pub fn runtime_manifest(&self) -> Result<Option<Manifest>> {
        let name = runtime_name();
        let is_id = self.built_in.iter().any(|manifest| name == manifest.id.as_str());
        match name.to_str() {
            Some(text) if is_id || text.ends_with(".toml") => self.manifest(text).map(Some),
            _ => Ok(None),
        }
    }

    fn folder(&self, manifest: &Manifest) -> PathBuf {
        self.store.model_folder(&manifest.identity())
    }

    /// Where a file is, or should be; `None` for one that is part of the executable.
    fn file_path(&self, manifest: &Manifest, file: &ModelFile) -> Option<PathBuf> {
        match (&file.origin, &manifest.folder) {
            (Origin::Path(path), Some(folder)) => Some(folder.join(path)),
            (Origin::Path(_), None) => None,
            _ => Some(self.folder(manifest).join(&file.name)),
        }
    }

    fn verify(
        &self,
        manifest: &Manifest,
        file: &ModelFile,
        path: &Path,
        again: bool,
    ) -> Result<()> {
        let record = store::record_path(&self.folder(manifest).join(&file.name));
        self.store.verify(path, &record, &file.sha256, again)
    }
}

fn runtime_name() -> std::ffi::OsString {
    let named = std::env::var_os("CINELEX_ONNXRUNTIME").filter(|name| !name.is_empty());
    named.unwrap_or_else(|| "onnxruntime".into())
}

fn built_in_content(manifest: &Manifest, file: &ModelFile) -> Option<&'static [u8]> {
    match (&file.origin, &manifest.folder) {
        (Origin::Path(path), None) => builtin::file(path.to_str()?),
        _ => None,
    }
}

fn not_set_up(manifest: &Manifest, path: &Path) -> Error {
    let name = manifest.variant.name(&manifest.id);
    let run = if DEFAULT_MODELS.contains(&name.as_str()) {
        "cinelex setup".to_owned()
    } else {
        format!("cinelex setup {name}")
    };
    Error::not_found(format!(
        "model {} is not set up ({} is not there): run `{run}`",
        manifest.id,
        path.display()
    ))
}

/// A manifest's size is limited: anything larger is not one.
const LARGEST_MANIFEST_BYTES: u64 = 1 << 20;

fn read_users(path: &Path) -> Result<Manifest> {
    let reading = |cause| Error::io(path, "read the manifest", cause);
    let bytes = std::fs::metadata(path).map_err(reading)?.len();
    if bytes > LARGEST_MANIFEST_BYTES {
        return Err(Error::invalid_input(format!(
            "{} has {bytes} bytes: it is no manifest",
            path.display()
        )));
    }
    let text = std::fs::read_to_string(path).map_err(reading)?;
    let path = std::path::absolute(path).map_err(reading)?;
    let folder = path.parent().unwrap_or(Path::new("/")).to_owned();
    Manifest::read(&path.display().to_string(), &text, Some(folder))
        .map_err(|mistakes| toml_check::as_error(&mistakes))
}
