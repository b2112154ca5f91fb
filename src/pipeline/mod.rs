//! Pipelines: files that say what is computed, turned into the two halves of the work. *Ingest* takes
//! sources through the graph into the record; *understand* reads from the record and writes
//! segments. This is the one place that knows every stage.

mod config;
mod describe;
#[cfg(feature = "speech")]
mod ears;
mod files;
#[cfg(feature = "speech")]
mod hearing;
mod identity;
mod ingest;
mod jobs;
mod licence;
#[cfg(feature = "speech")]
mod listening;
#[cfg(feature = "live")]
mod live;
mod loaded;
mod opened;
#[cfg(feature = "speech")]
mod reading;
mod report;
mod shared;
mod sounds;
mod stages;
mod texts;
#[cfg(feature = "speech")]
mod transcript;
mod understand;
mod witness;

pub use config::{Listed, Pipeline};
#[cfg(feature = "speech")]
pub use ears::{Ears, Hearing};
pub use ingest::{Options, index};
pub use licence::commercial_only;
#[cfg(feature = "live")]
pub use live::{
    ClipSpan, Frames, HeardCue, LiveEvent, LiveOptions, LiveReport, LiveSource, Sound, StoredClip,
    StreamState, StreamStatus, read_streams, watch,
};
pub use loaded::Loaded;
pub use report::{Made, Part, Problem, Progress, RunReport, SourceReport, SourceState};
pub use stages::DEFAULT_BATCH;
#[cfg(feature = "speech")]
pub use transcript::{Listening, Transcript, listen};
