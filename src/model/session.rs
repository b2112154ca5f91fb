//! Running ONNX graphs with ONNX Runtime. The only place that names `ort`.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ndarray::{ArrayD, CowArray, Dimension, IxDyn};
use ort::environment::Environment;
use ort::ep::CUDA;
use ort::session::SessionInputValue;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::value::{TensorRef, ValueType};

use crate::error::{Error, Result};

/// Where a graph is to be run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Device {
    /// CUDA where the runtime and the machine have it, else the CPU.
    #[default]
    Auto,
    Cpu,
    /// An error where it is not there.
    Cuda,
}

impl Device {
    pub fn as_str(self) -> &'static str {
        match self {
            Device::Auto => "auto",
            Device::Cpu => "cpu",
            Device::Cuda => "cuda",
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl std::str::FromStr for Device {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        [Device::Auto, Device::Cpu, Device::Cuda]
            .into_iter()
            .find(|device| device.as_str() == text)
            .ok_or_else(|| {
                Error::invalid_input(format!("{text:?} is no device: write auto, cpu or cuda"))
            })
    }
}

/// An input of a graph: an array, or a view of one.
#[derive(Debug)]
pub enum Tensor<'a> {
    F32(CowArray<'a, f32, IxDyn>),
    I64(CowArray<'a, i64, IxDyn>),
}

impl<'a> Tensor<'a> {
    /// Of an array or a view.
    pub fn f32<D: Dimension>(array: impl Into<CowArray<'a, f32, D>>) -> Tensor<'a> {
        Tensor::F32(array.into().into_dyn())
    }

    /// As [`Tensor::f32`].
    pub fn i64<D: Dimension>(array: impl Into<CowArray<'a, i64, D>>) -> Tensor<'a> {
        Tensor::I64(array.into().into_dyn())
    }
}

/// A graph ready to run.
pub struct Session {
    session: ort::session::Session,
    device: Device,
    path: PathBuf,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("path", &self.path)
            .field("device", &self.device)
            .finish_non_exhaustive()
    }
}

impl Session {
    /// Loads the graph at `path` with the ONNX Runtime at `runtime`.
    pub(super) fn load(
        runtime: &Path,
        path: &Path,
        device: Device,
        threads: usize,
    ) -> Result<Session> {
        let environment = environment(runtime)?;
        let cpu = || {
            build(&environment, path, threads, false).map_err(|cause| {
                Error::corrupt(format!("cannot load the graph {}", path.display())).caused_by(cause)
            })
        };
        let cuda = || build(&environment, path, threads, true);
        let (session, device) = match device {
            Device::Cpu => (cpu()?, Device::Cpu),
            Device::Cuda => {
                let session = cuda().map_err(|cause| {
                    Error::unsupported(format!(
                        "CUDA was asked for and cannot be used with {}: use --device cpu, or \
                         `cinelex setup onnxruntime-cuda` and CINELEX_ONNXRUNTIME=onnxruntime-cuda",
                        runtime.display()
                    ))
                    .caused_by(cause)
                })?;
                (session, Device::Cuda)
            }
            Device::Auto => match cuda() {
                Ok(session) => (session, Device::Cuda),
                Err(cause) => {
                    tracing::debug!(%cause, "no CUDA, using the CPU");
                    (cpu()?, Device::Cpu)
                }
            },
        };
        Ok(Session { session, device, path: path.to_owned() })
    }

    /// Where it runs: `Cpu` or `Cuda`.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Names of the graph's outputs with their dimensions; -1 for one that varies.
    pub fn outputs(&self) -> Vec<(String, Vec<i64>)> {
        outlets(self.session.outputs())
    }

    /// Names of the graph's inputs with their dimensions; -1 for one that varies.
    pub fn inputs(&self) -> Vec<(String, Vec<i64>)> {
        outlets(self.session.inputs())
    }

    /// Runs the graph on named inputs; returns its f32 outputs by name.
    pub fn run(&mut self, inputs: &[(&str, Tensor<'_>)]) -> Result<HashMap<String, ArrayD<f32>>> {
        let failed = |cause: ort::Error| {
            Error::internal(format!("the graph {} failed", self.path.display())).caused_by(cause)
        };
        // Only what does not lie row by row is copied.
        let laid = inputs.iter().map(|(name, tensor)| match tensor {
            Tensor::F32(array) => (*name, Tensor::F32(array.as_standard_layout())),
            Tensor::I64(array) => (*name, Tensor::I64(array.as_standard_layout())),
        });
        let laid: Vec<(&str, Tensor<'_>)> = laid.collect();
        let mut values: Vec<(&str, SessionInputValue<'_>)> = Vec::with_capacity(laid.len());
        for (name, tensor) in &laid {
            let value = match tensor {
                Tensor::F32(array) => TensorRef::from_array_view(array).map_err(failed)?.into(),
                Tensor::I64(array) => TensorRef::from_array_view(array).map_err(failed)?.into(),
            };
            values.push((*name, value));
        }
        let outputs = self.session.run(values).map_err(failed)?;
        let mut arrays = HashMap::new();
        for (name, value) in &outputs {
            let array = value.try_extract_array::<f32>().map_err(failed)?;
            arrays.insert(name.to_owned(), array.to_owned());
        }
        Ok(arrays)
    }
}

fn outlets(outlets: &[ort::value::Outlet]) -> Vec<(String, Vec<i64>)> {
    let dims = |kind: &ValueType| match kind {
        ValueType::Tensor { shape, .. } => shape.to_vec(),
        _ => Vec::new(),
    };
    outlets.iter().map(|outlet| (outlet.name().to_owned(), dims(outlet.dtype()))).collect()
}

fn build(
    environment: &Environment,
    path: &Path,
    threads: usize,
    cuda: bool,
) -> ort::Result<ort::session::Session> {
    let mut builder = SessionBuilder::new(environment)?
        .with_optimization_level(GraphOptimizationLevel::All)?
        .with_intra_threads(threads)?
        // Threads that spin while they wait take the cores from the decoders.
        .with_intra_op_spinning(false)?
        // For each shape of inputs that comes it would keep a plan of memory, and take a block of that size:
        // texts have many shapes. On a CPU it takes the same time without.
        .with_memory_pattern(false)?;
    if !sums_without_overflow() {
        builder = builder.with_precise_qmm()?;
    }
    if cuda {
        // Without this, a runtime that lacks CUDA falls back to the CPU in silence.
        builder = builder.with_execution_providers([CUDA::default().build().error_on_failure()])?;
    }
    builder.commit_from_file(path)
}

/// Whether the processor adds up products of 8 bits in 32 (VNNI). Others add pairs of them in 16, where they
/// overflow unless ONNX Runtime is told to do without signed weights. With VNNI that would only take twice as long.
fn sums_without_overflow() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx512vnni") || is_x86_feature_detected!("avxvnni");
    #[cfg(not(target_arch = "x86_64"))]
    return true;
}

/// The environment variable that must be set, to anything, before ONNX Runtime is loaded. Without it, its
/// official builds from 1.29 on write down what was run, under an id of the machine, and send it to
/// their makers; `with_telemetry(false)` comes too late for that.
pub const NO_REPORTS: &str = "ORT_DISABLE_TELEMETRY";

/// The process's one ONNX Runtime: it cannot be unloaded, nor a second one be loaded.
static RUNTIME: Mutex<Option<(PathBuf, Environment)>> = Mutex::new(None);

fn environment(path: &Path) -> Result<Environment> {
    let mut runtime = RUNTIME.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((loaded, environment)) = &*runtime {
        if loaded != path {
            return Err(Error::invalid_input(format!(
                "this process runs on {} and cannot load {} too",
                loaded.display(),
                path.display()
            )));
        }
        return Ok(environment.clone());
    }
    let environment = start(path)?;
    *runtime = Some((path.to_owned(), environment.clone()));
    Ok(environment)
}

/// Loads the library at `path`, which must be an ONNX Runtime that is not too old.
fn start(path: &Path) -> Result<Environment> {
    if std::env::var_os(NO_REPORTS).is_none() {
        return Err(Error::invalid_input(format!(
            "ONNX Runtime reports to its makers unless the environment says {NO_REPORTS}=1: set it"
        )));
    }
    let cannot_load = || {
        Error::unsupported(format!(
            "{} cannot be loaded as ONNX Runtime 1.{} or later",
            path.display(),
            ort::MINOR_VERSION
        ))
    };
    // `ort` reports a library that is too old, but panics on one whose entry point gives nothing.
    let built = std::panic::catch_unwind(|| {
        let builder = ort::init_from(path).map_err(|cause| cannot_load().caused_by(cause))?;
        builder
            .with_name("cinelex")
            .with_telemetry(false)
            .build()
            .map_err(|cause| cannot_load().caused_by(cause))
    });
    let environment = built.unwrap_or_else(|_| Err(cannot_load()))?;
    environment.set_log_level(ort::logging::LogLevel::Warning);
    Ok(environment)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn what_is_no_onnx_runtime_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let text = folder.path().join("libonnxruntime.so");
        std::fs::write(&text, "no library").unwrap();
        // A library that every test has loaded already, and that is not this one.
        let libc = PathBuf::from("libc.so.6");
        for path in [text, libc, folder.path().join("missing.so")] {
            let error = start(&path).unwrap_err();
            assert_eq!(error.kind(), Kind::Unsupported);
            assert!(error.to_string().contains("cannot be loaded as ONNX Runtime 1.22"), "{error}");
        }
    }

    #[test]
    fn a_device_is_read_as_it_is_shown() {
        for device in [Device::Auto, Device::Cpu, Device::Cuda] {
            assert_eq!(device.to_string().parse::<Device>().unwrap(), device);
        }
        assert!("gpu".parse::<Device>().unwrap_err().to_string().contains("auto, cpu or cuda"));
    }
}
