//! Sources: what the user named, opened here and decoded in another process.
//!
//! Parsers of media are the attack surface, so none runs in this process: a [`Host`] is a child of
//! the same executable that gets a file's descriptor (or a URL) and sends back plain messages.
//! [`listing`] turns what was typed into [`Location`]s, [`Input`] opens one, and a request to the
//! host ([`Host::probe`], [`Host::picture`], [`Host::sound`], [`Host::cues`]) reads one track kind
//! of it. Each request has the socket to itself, so a slow reader of one track holds up no other.

mod child;
mod client;
mod fingerprint;
pub mod host;
mod input;
pub mod listing;
mod protocol;
mod sidecar;

pub use child::Limits;
pub use client::{
    CueEvent, CueStream, Host, LiveSound, PictureEvent, PictureStream, Recorded, SoundEvent,
    SoundStream, Spent,
};
pub use fingerprint::Fingerprint;
pub use input::Input;
pub use listing::Location;
pub use protocol::{
    BEHIND, CueRequest, FieldOrder, Fit, LiveRequest, MediaInfo, NO_FRAME, PictureRequest,
    Rational, Received, ReceivedSound, Rendition, SoundRequest, Summary, Targets, Track, Transport,
    spoken_code,
};
pub use sidecar::{Sidecar, Sidecars};
