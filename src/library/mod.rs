//! The record on disk: sources, clips, cues, segments and their vectors, and the search through
//! them. It knows no model: vectors come and go as numbers.
//!
//! A library is a folder with two SQLite files: `library.sqlite` is the record, `features.sqlite`
//! holds the clips' features. One [`Writer`] at a time holds the folder's lock; any number of
//! [`Reader`]s look on meanwhile. `docs/library.md` documents the tables.

mod codes;
mod dot;
mod forget;
mod ids;
mod index;
mod lock;
mod part;
mod reader;
mod recipes;
mod rows;
mod schema;
mod search;
mod spans;
mod types;
mod vectors;
mod words;
mod writer;

#[cfg(test)]
mod tests;

pub use forget::Forgotten;
pub use ids::{ClipId, RecipeId, SourceId};
pub use reader::{ClipRow, Info, Reader, RecipeInfo, SegmentRow, Shown};
pub use schema::SCHEMA_VERSION;
pub use search::{By, Found, Hit, HitSpan, Query};
pub use types::{
    ChunkRecord, Location, NewSource, Origin, Place, Recipe, RecipeKind, SegmentRecord, Source,
    Space, State, Tree, WallClock, WallOrigin,
};
pub use writer::{Added, Writer};
