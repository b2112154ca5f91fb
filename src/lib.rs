//! Cinelex turns video files into a library that can be searched, read and compared.
//!
//! `ARCHITECTURE.md` tells the way of the data and what each module owns; the modules are listed
//! here from the lowest layer to the highest, and each uses those above it in this list only.

pub mod error;
pub mod time;

pub mod media;
pub mod model;
pub mod toml_check;

pub mod graph;
pub mod onnx;

pub mod codebook;
pub mod library;
pub mod picture;
pub mod source;
#[cfg(feature = "speech")]
pub mod speech;
pub mod text;
pub mod transcript;
pub mod transformer;

pub mod pipeline;

pub mod evaluate;
pub mod export;

#[cfg(feature = "train")]
pub mod train;

pub mod cli;
