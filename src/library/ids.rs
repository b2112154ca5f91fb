//! Global names of things in a library. They stay the same over rebuild, export and merge, and are
//! all that leaves this module; the integer keys of the tables never do.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::time::Timestamp;

/// A source's global id: a random UUID, shown in its hyphenated form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceId(Uuid);

impl SourceId {
    pub(super) fn random() -> Self {
        SourceId(Uuid::new_v4())
    }
}

impl fmt::Display for SourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.0.hyphenated().encode_lower(&mut Uuid::encode_buffer()))
    }
}

impl FromStr for SourceId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        // The crate also reads braces, `urn:` and the form without hyphens; one spelling is enough.
        match Uuid::try_parse(text) {
            Ok(id) if text.len() == 36 => Ok(SourceId(id)),
            _ => Err(Error::invalid_input(format!("{text:?} is not a source's id"))),
        }
    }
}

/// A clip's global id: its source and where it starts, `SOURCE@MICROSECONDS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClipId {
    pub source: SourceId,
    pub start: Timestamp,
}

impl fmt::Display for ClipId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}@{}", self.source, self.start.0))
    }
}

impl FromStr for ClipId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts = text.split_once('@').and_then(|(source, start)| {
            Some(ClipId { source: source.parse().ok()?, start: Timestamp(start.parse().ok()?) })
        });
        parts.ok_or_else(|| {
            Error::invalid_input(format!(
                "{text:?} is not a clip's id: write SOURCE@MICROSECONDS, as search prints it"
            ))
        })
    }
}

/// A recipe's hash, in hexadecimal: it stands for everything that changes results.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecipeId(String);

impl fmt::Display for RecipeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for RecipeId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if (8..=128).contains(&text.len()) && text.bytes().all(hex) {
            Ok(RecipeId(text.to_owned()))
        } else {
            Err(Error::invalid_input(format!("{text:?} is not a recipe's hash")))
        }
    }
}

macro_rules! serialized_as_text {
    ($($type:ty),+) => {$(
        impl Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )+};
}

serialized_as_text!(SourceId, ClipId, RecipeId);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_an_id_shows_reads_back(bits in any::<u128>(), start in any::<i64>()) {
            let id = ClipId { source: SourceId(Uuid::from_u128(bits)), start: Timestamp(start) };
            prop_assert_eq!(id.to_string().parse::<ClipId>().unwrap(), id);
            prop_assert_eq!(id.source.to_string().parse::<SourceId>().unwrap(), id.source);
        }

        #[test]
        fn no_text_makes_an_id_panic(text in ".*") {
            let _ = text.parse::<ClipId>();
            let _ = text.parse::<RecipeId>();
        }
    }

    #[test]
    fn only_one_spelling_of_an_id_is_read() {
        let id = SourceId(Uuid::from_u128(7)).to_string();
        assert!(id.parse::<SourceId>().is_ok());
        assert!(id.replace('-', "").parse::<SourceId>().is_err());
        assert!(format!("{{{id}}}").parse::<SourceId>().is_err());
    }
}
