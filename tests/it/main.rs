//! The one integration-test binary: a module a subject.

mod decoding;
mod faults;
mod media;
mod tracks;
