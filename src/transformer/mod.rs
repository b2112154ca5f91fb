//! The transformer: segments packed into tokens, read, and written about.

mod beams;
mod captioner;
mod consensus;
mod guesser;
mod packing;
mod under_way;
mod weights;

pub use captioner::{Captioner, Reading, Writing, Written};
pub use consensus::Consensus;
pub use guesser::Guesser;
pub use packing::{Packed, Segment, VisualToken, pack, spread};
pub use weights::{Fitting, Numbers, Trained, read_tensors, write_tensors};
