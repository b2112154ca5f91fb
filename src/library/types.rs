//! What goes into a library and what it tells: plain data.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use half::f16;
use serde::Serialize;

use super::ids::{RecipeId, SourceId};
use crate::error::Error;
use crate::media::{Caption, Cue, Gap, IndexedClip};
use crate::time::{Micros, Span};

/// Which part of the work a recipe describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RecipeKind {
    /// Frame choice, fit, clip length, encoder, codebook.
    Clip,
    /// Sentence rules, transformer.
    Segment,
    /// What listens: where somebody speaks, and what is said.
    Speech,
}

/// Everything that changes results, by its hash.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Recipe {
    pub id: RecipeId,
    pub kind: RecipeKind,
    /// What was hashed, for people.
    pub description: serde_json::Value,
    /// The space of this recipe's embeddings, where it makes any.
    pub space: Option<Space>,
    /// The codebook's tree, where the recipe makes visual words.
    pub tree: Option<Tree>,
}

/// A family of embeddings that may be compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Space {
    /// Names the space, tower and weights: `minilm-l6-v2`.
    pub id: String,
    /// The manifest id of the text tower whose vectors this space has.
    pub tower: String,
    pub dimension: usize,
    /// BCP-47; empty where the tower states none.
    pub languages: Vec<String>,
}

/// The shape of a codebook's tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Tree {
    pub branching: u32,
    pub depth: u32,
}

/// What kind of thing a source is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    File,
    Url,
    Live,
}

/// Where a source's bytes are.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Place {
    /// Any bytes that the file system allows.
    Path(PathBuf),
    /// Never with credentials: see [`Place::url`].
    Url(String),
}

impl Place {
    /// An address without the `user:password@` that it may have, and with a hash for its query.
    pub fn url(address: &str) -> Self {
        let (scheme, rest) = address.split_once("://").unwrap_or(("", address));
        let (host, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
        let tail = tail.split('#').next().unwrap_or_default();
        Place::Url(match tail.split_once('?') {
            // Signed addresses carry their credentials here; a hash tells two of them apart.
            Some((path, query)) => {
                let hash = blake3::hash(query.as_bytes()).to_hex();
                format!("{scheme}://{host}{path}?{}", &hash[..16])
            }
            None => format!("{scheme}://{host}{tail}"),
        })
    }

    pub(super) fn kind(&self) -> &'static str {
        match self {
            Place::Path(_) => "path",
            Place::Url(_) => "url",
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Place::Path(path) => path.as_os_str().as_bytes(),
            Place::Url(url) => url.as_bytes(),
        }
    }

    pub(super) fn from_bytes(kind: &str, bytes: Vec<u8>) -> Result<Self, Error> {
        match kind {
            "path" => Ok(Place::Path(Path::new(OsStr::from_bytes(&bytes)).to_owned())),
            "url" => String::from_utf8(bytes)
                .map(Place::Url)
                .map_err(|cause| Error::corrupt("an address is not UTF-8").caused_by(cause)),
            _ => Err(Error::corrupt(format!("{kind:?} is no kind of location"))),
        }
    }
}

/// For people: bytes that are not UTF-8 are replaced.
impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&String::from_utf8_lossy(self.bytes()))
    }
}

impl Serialize for Place {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// Where a source was seen, and what tells cheaply that it has not changed since.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Location {
    pub place: Place,
    pub size_bytes: Option<u64>,
    /// Modification time, microseconds since 1970.
    pub modified_us: Option<i64>,
    pub device: Option<u64>,
    pub inode: Option<u64>,
}

/// When a source's zero was, on the wall clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct WallClock {
    /// Microseconds since 1970, UTC.
    pub start_us: i64,
    pub origin: WallOrigin,
}

/// How the wall clock is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WallOrigin {
    /// The sender's own clock (an RTCP sender report).
    SenderReport,
    /// When the data arrived here.
    Arrival,
    /// The file's metadata.
    File,
}

/// A source as it is added.
#[derive(Debug, Clone, PartialEq)]
pub struct NewSource {
    /// The same bytes have the same fingerprint.
    pub fingerprint: String,
    /// For people: a file's name, a camera's name.
    pub name: String,
    pub origin: Origin,
    pub duration: Option<Micros>,
    /// Container, tracks, codecs: what probing told.
    pub media: serde_json::Value,
    pub wall: Option<WallClock>,
    pub location: Location,
}

/// How far a source is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Not read to its end yet.
    New,
    Complete,
    /// The last attempt failed; what was committed before is kept.
    Failed,
}

/// A source as the library has it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Source {
    pub id: SourceId,
    pub fingerprint: String,
    pub name: String,
    pub origin: Origin,
    #[serde(rename = "duration_us")]
    pub duration: Option<Micros>,
    pub media: serde_json::Value,
    pub wall: Option<WallClock>,
    pub state: State,
    /// Why the last attempt failed.
    pub error: Option<String>,
    /// The last seen first. Empty where every place that it was seen at holds something else now: a file is gone
    /// then, its rows are kept.
    pub locations: Vec<Location>,
    /// Names and values, in order of name.
    pub tags: Vec<(String, String)>,
    /// Microseconds since 1970.
    pub added_us: i64,
}

impl Source {
    /// Whether no place holds it any more. A live source comes from its address whatever else does: two streams may have
    /// one, and the list may give it to another.
    pub fn is_gone(&self) -> bool {
        self.origin != Origin::Live && self.locations.is_empty()
    }
}

/// What one chunk of a source gave.
#[derive(Debug, Clone, PartialEq)]
pub struct ChunkRecord {
    /// The place in the source's row of chunks, from 0.
    pub index: u32,
    pub span: Span,
    /// Each starts in `span`; in order of start.
    pub clips: Vec<IndexedClip>,
    pub gaps: Vec<Gap>,
}

/// What was heard in one chunk of a source: from one pause to another, wherever these are.
#[derive(Debug, Clone, PartialEq)]
pub struct HeardChunk {
    /// The place in the source's row of chunks, from 0.
    pub index: u32,
    /// From where the chunk before ends.
    pub span: Span,
    /// Each starts in `span`; in order of start.
    pub cues: Vec<Cue>,
    /// Without sound.
    pub gaps: Vec<Gap>,
}

/// A segment as it is written.
#[derive(Debug, Clone, PartialEq)]
pub struct SegmentRecord {
    pub span: Span,
    /// What was said or read; empty where nobody speaks.
    pub text: String,
    /// BCP-47, where known.
    pub language: Option<String>,
    /// Unit vector of the text in the recipe's space; empty where there is no text or the tower
    /// does not know its language.
    pub embedding: Vec<f16>,
    /// Where the recipe has a transformer.
    pub reading: Option<SegmentReading>,
}

/// What the transformer made of a segment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SegmentReading {
    /// None where there is no picture, or it was not sure enough.
    pub caption: Option<Caption>,
    /// How well words and picture fit, 0 to 1, where there are both.
    pub alignment: Option<f32>,
    /// Unit vector of the picture in the recipe's space; empty where there is no picture.
    pub embedding: Vec<f16>,
}

macro_rules! stored_as_text {
    ($($type:ty: $($variant:ident = $name:literal),+;)+) => {$(
        impl $type {
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }
        }

        impl std::str::FromStr for $type {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self, Error> {
                match text {
                    $($name => Ok(Self::$variant),)+
                    _ => Err(Error::corrupt(format!("{text:?} is no {}", stringify!($type)))),
                }
            }
        }
    )+};
}

stored_as_text! {
    RecipeKind: Clip = "clip", Segment = "segment", Speech = "speech";
    Origin: File = "file", Url = "url", Live = "live";
    WallOrigin: SenderReport = "sender_report", Arrival = "arrival", File = "file";
    State: New = "new", Complete = "complete", Failed = "failed";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_kept_without_credentials() {
        let url = |address: &str| Place::url(address).to_string();
        assert_eq!(url("rtsp://me:se@cret@cam/1"), "rtsp://cam/1");
        assert_eq!(url("http://host/a@b"), "http://host/a@b");
        let (one, two) = (url("http://host/a?token=one"), url("http://host/a?token=two"));
        assert!(one != two && !one.contains("token") && one.starts_with("http://host/a?"), "{one}");
        assert_eq!(url("https://token@host"), "https://host");
    }

    #[test]
    fn a_path_keeps_bytes_that_are_not_text() {
        let place = Place::Path(PathBuf::from(OsStr::from_bytes(b"/a\n\xff b")));
        let read = Place::from_bytes("path", place.bytes().to_vec()).unwrap();
        assert_eq!(read, place);
    }
}
