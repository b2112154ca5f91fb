//! The indexes of words against the texts that they were made of.

use rusqlite::{Connection, Transaction, params};

use super::{Fault, Findings};
use crate::error::Result;
use crate::library::rows;
use crate::library::schema::RECORD;
use crate::library::words::WordIndex;

/// Texts whose words are indexed in memory at a time.
const TEXTS: usize = 4_096;

/// Compares the words of each index with those of the texts, by the sum of a hash of each word with
/// its row and place. SQLite's own comparison is a statement that writes.
pub(super) fn compare(sql: &Transaction<'_>, findings: &mut Findings<'_>) -> Result<()> {
    WordIndex::ALL.iter().try_for_each(|index| compare_one(sql, index, findings))
}

fn compare_one(
    sql: &Transaction<'_>,
    index: &WordIndex,
    findings: &mut Findings<'_>,
) -> Result<()> {
    let WordIndex { name, table, column } = index;
    // A table of the connection, in memory.
    let list =
        format!("CREATE VIRTUAL TABLE temp.stored USING fts5vocab('main', '{name}', 'instance')");
    sql.execute_batch(&list)?;
    let stored = sum(sql, "temp.stored");
    sql.execute_batch("DROP TABLE temp.stored")?;
    let stored = stored?;

    // The same index in memory, a few texts at a time.
    let memory = Connection::open_in_memory()?;
    crate::library::digest::install(&memory)?;
    memory.execute_batch("CREATE TABLE meta (name TEXT PRIMARY KEY, value ANY)")?;
    memory.execute_batch(RECORD.tables)?;
    let list =
        format!("CREATE VIRTUAL TABLE temp.made USING fts5vocab('main', '{name}', 'instance')");
    memory.execute_batch(&list)?;
    let of: u64 = rows::one(sql, &format!("SELECT count(*) FROM {table}"), [])?;
    let mut texts = sql.prepare(&format!("SELECT key, {column} FROM {table} ORDER BY key"))?;
    let mut texts = texts.query([])?;
    let (mut made, mut held, mut done) = (Sum::default(), 0, 0);
    let insert = format!("INSERT INTO {name} (rowid, {column}) VALUES (?1, ?2)");
    let mut insert = memory.prepare(&insert)?;
    while let Some(row) = texts.next()? {
        let (key, text): (i64, Option<String>) = (row.get(0)?, row.get(1)?);
        insert.execute(params![key, text])?;
        (held, done) = (held + 1, done + 1);
        if held == TEXTS {
            made = made.plus(sum(&memory, "temp.made")?);
            memory.execute_batch(&format!("INSERT INTO {name} ({name}) VALUES ('delete-all')"))?;
            held = 0;
            findings.at("words", done, of)?;
        }
    }
    made = made.plus(sum(&memory, "temp.made")?);
    let differ = u64::from(stored != made);
    findings.add(
        Fault::Words,
        name,
        differ,
        format!("{} words are indexed, {} are in {table}", stored.words, made.words),
    );
    Ok(())
}

/// What a list of words comes to, in any order and in any parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Sum {
    words: u64,
    hashes: u64,
}

impl Sum {
    fn plus(self, other: Sum) -> Sum {
        Sum { words: self.words + other.words, hashes: self.hashes.wrapping_add(other.hashes) }
    }
}

fn sum(sql: &Connection, list: &str) -> Result<Sum> {
    let mut words = sql.prepare(&format!("SELECT term, doc, offset FROM {list}"))?;
    let mut words = words.query([])?;
    let mut sum = Sum::default();
    while let Some(row) = words.next()? {
        let (cue, place): (i64, i64) = (row.get(1)?, row.get(2)?);
        let mut hasher = blake3::Hasher::new();
        hasher.update(&cue.to_le_bytes());
        hasher.update(&place.to_le_bytes());
        // A mark that stands on no letter is a word without letters, which SQLite gives as null.
        let word = row.get_ref(0)?.as_bytes_or_null().map_err(rusqlite::Error::from)?;
        hasher.update(word.unwrap_or_default());
        let hash = hasher.finalize();
        let mut first = [0; 8];
        first.copy_from_slice(&hash.as_bytes()[..8]);
        sum = sum.plus(Sum { words: 1, hashes: u64::from_le_bytes(first) });
    }
    Ok(sum)
}
