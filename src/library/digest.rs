//! Digests: each row of the record carries one over its own columns, so that a value which changed
//! on the medium is told from the one that was written. SQLite's integrity check sees the pages
//! around a value, not the value.
//!
//! A digest is the first 16 bytes of BLAKE3 over the table's name and each column's type and bytes.
//! SQL computes it as `row_digest(TABLE, COLUMN…)`.

use rusqlite::functions::FunctionFlags;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row};

use crate::error::Result;

/// Bytes of a digest.
pub(super) const DIGEST_BYTES: usize = 16;

/// A table whose rows carry a digest, in their last column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Table {
    pub name: &'static str,
    /// Whether the first column is the integer `key`, which SQLite keeps outside the row and is
    /// no part of the digest.
    pub has_key: bool,
    /// The columns between `key` and `digest`, in order.
    pub columns: &'static [&'static str],
}

macro_rules! tables {
    ($($constant:ident = $name:literal $has_key:literal: $($column:literal)+;)+) => {
        $(pub(super) const $constant: Table =
            Table { name: $name, has_key: $has_key, columns: &[$($column),+] };)+

        /// All of the record; each refers only to those before it.
        pub(super) const TABLES: &[Table] = &[$($constant),+];
    };
}

tables! {
    SPACES = "spaces" true: "id" "tower" "dimension" "languages";
    RECIPES = "recipes" true: "hash" "kind" "state" "space" "branching" "depth" "description"
        "added_us";
    SOURCES = "sources" true: "id" "fingerprint" "name" "origin" "duration_us" "media"
        "wall_start_us" "wall_origin" "state" "error" "added_us" "grown_from" "cues";
    CONTENTS = "contents" false: "fingerprint" "parts" "whole";
    LOCATIONS = "locations" false: "kind" "place" "source" "size_bytes" "modified_us" "device"
        "inode" "seen_us";
    TAGS = "tags" false: "source" "name" "value";
    PROGRESS = "progress" false: "source" "recipe" "state" "error" "rows";
    CHUNKS = "chunks" false: "source" "recipe" "number" "start_us" "end_us" "clips" "gaps"
        "thumbnails" "partial";
    CLIPS = "clips" true: "source" "recipe" "start_us" "end_us" "raw_pts" "frames"
        "shot_start_us" "words" "embedding" "features_digest";
    GAPS = "gaps" false: "source" "recipe" "chunk" "place" "start_us" "end_us" "track" "reason";
    CUES = "cues" true: "source" "recipe" "start_us" "end_us" "text" "folded" "kind" "language"
        "track" "confidence" "words" "speaker";
    SEGMENTS = "segments" true: "source" "recipe" "start_us" "end_us" "text" "language"
        "embedding";
    READINGS = "readings" true: "source" "recipe" "start_us" "end_us" "caption" "confidence"
        "alignment" "embedding";
    RUNS = "runs" true: "ended_us" "report";
    WATCHES = "watches" false: "source" "started_us" "told_us" "ended_us" "status";
    KEPT = "kept" false: "source" "first_us" "from_us" "why";
}

/// The one table of the other file whose rows carry a digest, since the record's clips have none of them.
pub(super) const THUMBNAILS: Table =
    Table { name: "thumbnails", has_key: true, columns: &["source", "recipe", "start_us", "jpeg"] };

/// Chunks as they were before schema 6, for their digests.
pub(super) const CHUNKS_BEFORE_6: Table = Table {
    name: "chunks",
    has_key: false,
    columns: &["source", "recipe", "number", "start_us", "end_us", "clips", "gaps", "partial"],
};

/// Cues as they were before schema 4, for their digests.
pub(super) const CUES_BEFORE_4: Table = Table {
    name: "cues",
    has_key: true,
    columns: &[
        "source",
        "start_us",
        "end_us",
        "text",
        "kind",
        "language",
        "track",
        "confidence",
        "words",
        "speaker",
    ],
};

impl Table {
    /// `INSERT INTO table (COLUMNS, digest) VALUES (?1, …, row_digest(…))`: a value for each
    /// column, without `key`.
    pub fn insert(&self) -> String {
        self.put("INSERT", false)
    }

    /// As [`Table::insert`]; a row with the same primary key is replaced.
    pub fn replace(&self) -> String {
        self.put("INSERT OR REPLACE", false)
    }

    /// As [`Table::insert`], with `key` as the first value where the table has one; a row that is
    /// there already stays.
    pub fn insert_with_key(&self) -> String {
        self.put("INSERT OR IGNORE", self.has_key)
    }

    fn put(&self, verb: &str, with_key: bool) -> String {
        let first = if with_key { 2 } else { 1 };
        let values: Vec<String> =
            (0..self.columns.len()).map(|column| format!("?{}", column + first)).collect();
        let values = values.join(", ");
        let (key, key_value) = if with_key { ("key, ", "?1, ") } else { ("", "") };
        format!(
            "{verb} INTO {} ({key}{}, digest) VALUES ({key_value}{values}, row_digest('{}', {values}))",
            self.name,
            self.columns.join(", "),
            self.name
        )
    }

    /// `row_digest(…)` over the columns of a row of this table.
    pub fn digest(&self) -> String {
        format!("row_digest('{}', {})", self.name, self.columns.join(", "))
    }

    /// Gives the rows for which `condition` holds the digest of what they now are: after each
    /// `UPDATE`, in its transaction.
    pub fn seal(
        &self,
        sql: &Connection,
        condition: &str,
        values: impl rusqlite::Params,
    ) -> Result<()> {
        let seal = format!("UPDATE {} SET digest = {} WHERE {condition}", self.name, self.digest());
        sql.prepare_cached(&seal)?.execute(values)?;
        Ok(())
    }
}

/// The digest of a row by its columns in order, `key` left out.
pub(super) fn row_digest<'a>(
    table: &str,
    values: impl IntoIterator<Item = ValueRef<'a>>,
) -> [u8; DIGEST_BYTES] {
    let mut hasher = blake3::Hasher::new();
    let mut add = |tag: u8, bytes: &[u8]| {
        hasher.update(&[tag]);
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    add(b't', table.as_bytes());
    for value in values {
        match value {
            ValueRef::Null => add(b'n', &[]),
            ValueRef::Integer(value) => add(b'i', &value.to_le_bytes()),
            ValueRef::Real(value) => add(b'r', &value.to_bits().to_le_bytes()),
            ValueRef::Text(text) => add(b't', text),
            ValueRef::Blob(bytes) => add(b'b', bytes),
        }
    }
    let mut digest = [0; DIGEST_BYTES];
    digest.copy_from_slice(&hasher.finalize().as_bytes()[..DIGEST_BYTES]);
    digest
}

/// What `clips.features_digest` holds for features as they are stored.
pub(super) fn features_digest(features: &[u8]) -> [u8; DIGEST_BYTES] {
    row_digest("features", [ValueRef::Blob(features)])
}

/// Whether a row that was read as `columns` and then `digest`, from column `first` on, is as it was
/// written.
pub(super) fn is_whole(table: &Table, row: &Row<'_>, first: usize) -> rusqlite::Result<bool> {
    let count = table.columns.len();
    let values = (first..first + count).map(|column| row.get_ref(column));
    let values = values.collect::<rusqlite::Result<Vec<_>>>()?;
    let stored = row.get_ref(first + count)?;
    Ok(stored == ValueRef::Blob(&row_digest(table.name, values)))
}

/// Makes `row_digest` known to a connection.
pub(super) fn install(sql: &Connection) -> Result<()> {
    let flags = FunctionFlags::SQLITE_UTF8
        | FunctionFlags::SQLITE_DETERMINISTIC
        | FunctionFlags::SQLITE_DIRECTONLY;
    sql.create_scalar_function("row_digest", -1, flags, |context| {
        let values = (1..context.len()).map(|place| context.get_raw(place));
        let table = context.get_raw(0);
        Ok(row_digest(table.as_str()?, values).to_vec())
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rusqlite::types::Value;

    fn any_value() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(Value::Null),
            any::<i64>().prop_map(Value::Integer),
            any::<f64>().prop_filter("SQLite keeps no NaN", |v| !v.is_nan()).prop_map(Value::Real),
            any::<String>().prop_map(Value::Text),
            prop::collection::vec(any::<u8>(), 0..20).prop_map(Value::Blob),
        ]
    }

    proptest! {
        #[test]
        fn sql_and_code_give_the_same_digest(values in prop::collection::vec(any_value(), 1..8)) {
            let sql = Connection::open_in_memory().unwrap();
            install(&sql).unwrap();
            let marks: Vec<String> = (1..=values.len()).map(|n| format!("?{n}")).collect();
            let query = format!("SELECT row_digest('t', {})", marks.join(", "));
            let by_sql: Vec<u8> = sql
                .query_row(&query, rusqlite::params_from_iter(&values), |row| row.get(0))
                .unwrap();
            prop_assert_eq!(&by_sql[..], &row_digest("t", values.iter().map(ValueRef::from))[..]);
        }

        #[test]
        fn a_changed_bit_changes_the_digest(
            values in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..20), 1..6),
            place in any::<prop::sample::Index>(),
            bit in 0u8..8,
        ) {
            let digest = |values: &[Vec<u8>]| {
                row_digest("t", values.iter().map(|value| ValueRef::Blob(value)))
            };
            let mut other = values.clone();
            let which = place.index(other.len());
            let byte = place.index(other[which].len());
            other[which][byte] ^= 1 << bit;
            prop_assert_ne!(digest(&values), digest(&other));
        }
    }

    #[test]
    fn values_that_run_together_the_same_way_have_different_digests() {
        let digest = |values: &[&str]| {
            row_digest("t", values.iter().map(|text| ValueRef::Text(text.as_bytes())))
        };
        assert_ne!(digest(&["ab", "c"]), digest(&["a", "bc"]));
        assert_ne!(digest(&["a"]), digest(&["a", ""]));
        assert_ne!(row_digest("t", [ValueRef::Null]), digest(&[""]));
    }
}
