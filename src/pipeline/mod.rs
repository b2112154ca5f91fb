//! Pipelines: files that say what is computed, turned into the two halves of the work. *Ingest* takes
//! sources through the graph into the record; *understand* reads from the record and writes
//! segments. This is the one place that knows every stage.

mod config;
mod describe;
mod files;
mod identity;
mod ingest;
mod jobs;
mod licence;
#[cfg(feature = "speech")]
mod listening;
mod loaded;
mod report;
mod stages;
mod texts;
mod understand;
mod witness;

pub use config::{Listed, Pipeline};
pub use ingest::{Options, index};
pub use licence::commercial_only;
#[cfg(feature = "speech")]
pub use listening::{Ears, Listening, Transcript, listen};
pub use loaded::Loaded;
pub use report::{Problem, Progress, RunReport, SourceReport, SourceState};
pub use stages::DEFAULT_BATCH;
