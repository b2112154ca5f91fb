//! The record on disk: sources, clips, cues, segments and their vectors, and the search through
//! them. It knows no model: vectors come and go as numbers.
//!
//! A library is a folder with two SQLite files: `library.sqlite` is the record, `features.sqlite`
//! holds the clips' features and thumbnails. One [`Writer`] at a time holds the folder's lock; any number of
//! [`Reader`]s look on meanwhile. `docs/library.md` documents the tables.

mod check;
mod chunks;
mod codes;
mod commit_point;
mod compact;
mod contents;
mod digest;
mod dot;
mod folded;
mod forget;
mod fragments;
mod hearing;
mod hits;
mod ids;
mod index;
mod indexer;
mod insert;
mod keep;
mod known;
mod live;
mod lock;
mod merge;
mod migrate;
mod neighbourhoods;
mod pages;
mod part;
mod reader;
mod rebuild;
mod recipes;
mod recordings;
mod room;
mod rows;
mod schema;
mod search;
mod spans;
mod stream;
mod thumbnails;
mod types;
mod vectors;
mod watches;
mod words;
mod writer;

#[cfg(test)]
mod tests;

pub use check::{Fault, Finding, Remedy, Step, check};
pub use commit_point::COMMIT_POINTS;
pub use compact::Compacted;
pub use contents::Alike;
pub use forget::Forgotten;
pub use hearing::HeardTo;
pub use hits::{By, Found, Hit, HitSpan};
pub use ids::{ClipId, RecipeId, SourceId};
pub use indexer::Indexer;
pub use keep::{Dropped, Keep};
pub use live::Unseen;
pub use merge::{Conflict, Damage, Merged};
pub use reader::{ClipRow, Info, Reader, RecipeInfo, SeenClip, SegmentRow, Shown, TagInfo};
pub use rebuild::{Rebuilt, ToRead, rebuild};
pub use recipes::Waiting;
pub use recordings::{Held, Recording, RecordingFile, Recordings};
pub use schema::SCHEMA_VERSION;
pub use search::{Query, Vectors};
pub use types::{
    ChunkRecord, HeardChunk, Location, NewSource, Origin, Place, Recipe, RecipeKind,
    SegmentReading, SegmentRecord, Source, Space, State, Tree, WallClock, WallOrigin,
};
pub use watches::{How, Watch};
pub use writer::{Added, Writer};
