//! The one integration-test binary: a module a subject.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod bad_input;
#[cfg(feature = "live")]
mod camera;
mod captioner;
mod captions;
mod changing;
mod cinelex;
#[cfg(feature = "fit")]
mod codebook;
#[cfg(feature = "live")]
mod codecs;
mod cutting;
mod damage;
#[cfg(feature = "live")]
mod datagrams;
mod decoding;
#[cfg(feature = "live")]
mod display;
mod exporting;
mod faults;
mod full_disk;
#[cfg(feature = "live")]
mod hardware;
#[cfg(all(feature = "live", feature = "speech"))]
mod hearing;
#[cfg(feature = "live")]
mod held;
mod help;
mod identity;
mod indexing;
mod keeping;
#[cfg(feature = "live")]
mod kept;
#[cfg(feature = "live")]
mod keyframes;
mod library;
mod licence;
#[cfg(feature = "speech")]
mod listening;
#[cfg(feature = "live")]
mod live;
mod media;
mod merging;
mod models;
#[cfg(feature = "live")]
mod months;
#[cfg(feature = "live")]
mod overload;
#[cfg(feature = "speech")]
mod progress;
#[cfg(all(feature = "live", feature = "speech"))]
mod recorded_sound;
#[cfg(feature = "live")]
mod recording;
#[cfg(feature = "live")]
mod relay;
mod retrieval;
#[cfg(feature = "live")]
mod returning;
#[cfg(feature = "live")]
mod rough;
mod same;
#[cfg(feature = "live")]
mod shown;
mod skipping;
#[cfg(feature = "speech")]
mod speech;
mod speed;
mod splits;
#[cfg(feature = "live")]
mod srt;
mod stopping;
mod subtitles;
mod takeover;
mod thumbnails;
mod tidy;
mod ties;
#[cfg(feature = "live")]
mod tls;
#[cfg(feature = "live")]
mod together;
mod tracks;
#[cfg(feature = "train")]
mod training;
mod web;
