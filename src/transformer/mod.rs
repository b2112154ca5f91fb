//! The transformer: segments packed into tokens, read, and written about.

mod beams;
mod captioner;
mod guesser;
mod packing;
mod weights;

pub use captioner::{Captioner, Reading, Writing};
pub use guesser::Guesser;
pub use packing::{Packed, Segment, VisualToken, pack, spread};
pub use weights::{Fitting, Numbers, Trained, read_tensors, write_tensors};
