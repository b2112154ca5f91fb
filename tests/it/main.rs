//! The one integration-test binary: a module a subject.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod decoding;
mod faults;
mod media;
mod speed;
mod tracks;
