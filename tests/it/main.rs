//! The one integration-test binary: a module a subject.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod bad_input;
mod captions;
mod cinelex;
#[cfg(feature = "fit")]
mod codebook;
mod decoding;
mod faults;
mod help;
mod indexing;
mod library;
mod media;
mod models;
mod retrieval;
mod speed;
mod subtitles;
mod tidy;
mod tracks;
#[cfg(feature = "train")]
mod training;
