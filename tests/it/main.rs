//! The one integration-test binary: a module a subject.

mod decoding;
mod media;
mod models;
mod tidy;
