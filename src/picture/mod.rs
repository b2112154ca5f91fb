//! The picture: clips on their grid, shot changes, thumbnails, and the CNN that encodes them.

mod calibrate;
mod clips;
mod encoder;
mod thumbnail;

pub use calibrate::Calibrator;
pub use clips::{ClipGrid, ClipRules};
pub use encoder::{CELLS, Encoder, FrameFeatures};
