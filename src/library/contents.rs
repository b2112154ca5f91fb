//! What is known of all bytes of a source, beside the fingerprint of parts of them that names it.

use rusqlite::params;

use super::digest::CONTENTS;
use super::ids::SourceId;
use super::rows;
use super::writer::Writer;
use crate::error::Result;

/// A source whose sampled parts are those of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alike {
    pub id: SourceId,
    /// Hash of the parts, or of all bytes where another source had these parts first.
    pub fingerprint: String,
    /// Hash of all its bytes, where they have been read.
    pub digest: Option<String>,
}

impl Writer {
    /// The sources whose sampled parts have this fingerprint, the first that had them first.
    pub fn alike(&self, parts: &str) -> Result<Vec<Alike>> {
        self.record.read(|sql| {
            let find = "SELECT id, sources.fingerprint, whole FROM sources \
                 LEFT JOIN contents ON contents.fingerprint = sources.fingerprint \
                 WHERE sources.fingerprint = ?1 OR sources.fingerprint IN \
                 (SELECT fingerprint FROM contents WHERE parts = ?1) ORDER BY key";
            rows::all(sql, find, [parts], |row| {
                Ok(Alike { id: rows::text(row, 0)?, fingerprint: row.get(1)?, digest: row.get(2)? })
            })
        })
    }

    /// Notes what all bytes behind a fingerprint hash to, unless that was noted before, and says
    /// whether it is so. To be called before a source of this fingerprint is added, so that none
    /// whose bytes were read is without.
    pub fn note_content(&mut self, fingerprint: &str, parts: &str, digest: &str) -> Result<bool> {
        self.record.write(|sql| {
            sql.execute(&CONTENTS.insert_with_key(), params![fingerprint, parts, digest])?;
            let find = "SELECT whole = ?2 FROM contents WHERE fingerprint = ?1";
            rows::one(sql, find, params![fingerprint, digest])
        })
    }
}
