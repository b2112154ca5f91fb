//! The one integration-test binary: a module a subject.

mod bad_input;
mod cinelex;
mod decoding;
mod help;
mod indexing;
mod media;
mod models;
mod tidy;
