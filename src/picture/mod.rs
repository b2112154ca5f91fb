//! The picture: clips on their grid, shot changes, and the CNN that encodes them.

mod calibrate;
mod clips;
mod encoder;

pub use calibrate::Calibrator;
pub use clips::{ClipGrid, ClipRules};
pub use encoder::{CELLS, Encoder, FrameFeatures};
