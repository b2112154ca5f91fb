//! The one integration-test binary: a module a subject.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod decoding;
mod media;
mod models;
mod tidy;
