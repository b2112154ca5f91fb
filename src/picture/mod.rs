//! (to be written)

pub mod encoder;
