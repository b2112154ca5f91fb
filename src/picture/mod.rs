//! The picture: clips on their grid, shot changes, and the CNN that encodes them.

mod clips;

pub use clips::{ClipGrid, ClipRules};
