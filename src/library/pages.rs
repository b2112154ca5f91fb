//! Rows out of a damaged database file: its pages are read as they are, without the tree that SQLite
//! needs to come to them. Which rows are good, whoever asks tells by their digests.
//!
//! Written after "Database File Format" of SQLite's documentation, sections 1.5, 1.6, 2 and 4.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rusqlite::types::Value;

use crate::error::{Error, Result};

/// No row of a library is longer.
const LONGEST_ROW_BYTES: usize = 64 << 20;

/// More columns than any table has.
const MOST_COLUMNS: usize = 64;

/// A row as it was found.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct FoundRow {
    /// The rowid, in a table that has one.
    pub key: Option<i64>,
    /// In a table with rowids, the column that stands for the rowid is null.
    pub values: Vec<Value>,
    /// Found where the page says that a row begins, and not only by its looks.
    pub is_listed: bool,
}

/// A database file as pages, with those that its log holds laid over.
#[derive(Debug)]
pub(super) struct Pages {
    file: File,
    log: Option<File>,
    /// Where in the log the newest committed state of a page is.
    in_log: HashMap<u32, u64>,
    page_bytes: usize,
    count: u32,
}

/// How a cell is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// Length, rowid, row.
    Table,
    /// Length, row.
    Index,
}

impl Pages {
    /// `page_bytes` is what the library's files have; the header need not be readable.
    pub fn open(path: &Path, page_bytes: u32) -> Result<Self> {
        let failed = |cause| Error::io(path, "read", cause);
        let file = File::open(path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        let mut pages = Pages {
            file,
            log: None,
            in_log: HashMap::new(),
            page_bytes: page_bytes as usize,
            count: u32::try_from(length.div_ceil(u64::from(page_bytes))).unwrap_or(u32::MAX),
        };
        let mut log = path.as_os_str().to_owned();
        log.push("-wal");
        if let Ok(log) = File::open(&log) {
            pages.lay_over(log);
        }
        Ok(pages)
    }

    pub fn count(&self) -> u32 {
        self.count
    }

    /// Takes the log's pages as far as whole transactions are readable.
    fn lay_over(&mut self, log: File) {
        let mut header = [0; 32];
        if log.read_exact_at(&mut header, 0).is_err() {
            return;
        }
        let word = |bytes: &[u8], place: usize| {
            u32::from_be_bytes([bytes[place], bytes[place + 1], bytes[place + 2], bytes[place + 3]])
        };
        let magic = word(&header, 0);
        if magic & !1 != 0x377f_0682 || word(&header, 8) as usize != self.page_bytes {
            return;
        }
        let is_big_endian = magic & 1 == 1;
        let mut sum = checksum((0, 0), &header[..24], is_big_endian);
        if sum != (word(&header, 24), word(&header, 28)) {
            return;
        }
        let mut frame = vec![0; 24 + self.page_bytes];
        let mut open: HashMap<u32, u64> = HashMap::new();
        let mut at = 32;
        while log.read_exact_at(&mut frame, at).is_ok() {
            sum = checksum(sum, &frame[..8], is_big_endian);
            sum = checksum(sum, &frame[24..], is_big_endian);
            if frame[8..16] != header[16..24] || sum != (word(&frame, 16), word(&frame, 20)) {
                break;
            }
            open.insert(word(&frame, 0), at + 24);
            let pages_after = word(&frame, 4);
            if pages_after > 0 {
                self.in_log.extend(open.drain());
                self.count = pages_after;
            }
            at += frame.len() as u64;
        }
        self.log = Some(log);
    }

    /// A page, from 1; what is beyond the file's end is zeros. `None` where it cannot be read.
    fn page(&self, number: u32) -> Option<Vec<u8>> {
        let mut page = vec![0; self.page_bytes];
        let (file, at) = match (self.in_log.get(&number), &self.log) {
            (Some(at), Some(log)) => (log, *at),
            _ => (&self.file, u64::from(number.checked_sub(1)?) * self.page_bytes as u64),
        };
        let mut read = 0;
        while read < page.len() {
            match file.read_at(&mut page[read..], at + read as u64) {
                Ok(0) => break,
                Ok(bytes) => read += bytes,
                Err(cause) if cause.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
        Some(page)
    }

    /// Every row on a page, from 1. Where the page's own account of its cells does not come out,
    /// rows are looked for at every byte of it.
    pub fn rows(&self, number: u32) -> Vec<FoundRow> {
        let Some(page) = self.page(number) else { return Vec::new() };
        let start = if number == 1 { 100 } else { 0 };
        let (layout, header) = match page[start] {
            0x0d => (Some(Layout::Table), 8),
            0x0a => (Some(Layout::Index), 8),
            0x02 => (Some(Layout::Index), 12),
            // Ways to other pages only.
            0x05 => return self.unlisted(&page, &[]),
            _ => (None, 8),
        };
        let Some(layout) = layout else { return self.unlisted(&page, &[]) };
        let cells = usize::from(short(&page, start + 3));
        let array = start + header;
        let mut listed = Vec::new();
        let mut rows = Vec::new();
        let mut used = 0;
        for cell in 0..cells.min((page.len() - array) / 2) {
            let mut at = usize::from(short(&page, array + 2 * cell));
            let before = if header == 12 { 4 } else { 0 };
            at += before;
            if let Some((mut row, length)) = self.cell(&page, at, layout) {
                row.is_listed = true;
                rows.push(row);
                used += (length + before).max(4);
                listed.push(at);
            }
        }
        let whole = listed.len() == cells
            && free_bytes(&page, start).is_some_and(|free| {
                let content = match usize::from(short(&page, start + 5)) {
                    0 => 65_536,
                    content => content,
                };
                content <= page.len() && used + free == page.len() - content
            });
        if !whole {
            rows.extend(self.unlisted(&page, &listed));
        }
        rows
    }

    /// Whatever on a page looks like a row, and is not in the list.
    fn unlisted(&self, page: &[u8], listed: &[usize]) -> Vec<FoundRow> {
        let mut rows = Vec::new();
        for at in (0..page.len()).filter(|at| page[*at] != 0 && !listed.contains(at)) {
            for layout in [Layout::Table, Layout::Index] {
                rows.extend(self.cell(page, at, layout).map(|(row, _)| row));
            }
        }
        rows
    }

    /// The cell at a place of a page, with the bytes that it takes there. `None` where there is
    /// none, or its row is not whole.
    fn cell(&self, page: &[u8], at: usize, layout: Layout) -> Option<(FoundRow, usize)> {
        let (length, mut place) = varint(page, at)?;
        let length = usize::try_from(length).ok().filter(|length| *length <= LONGEST_ROW_BYTES)?;
        let mut key = None;
        if layout == Layout::Table {
            let (rowid, after) = varint(page, place)?;
            (key, place) = (Some(rowid), after);
        }
        let usable = page.len();
        let least = (usable - 12) * 32 / 255 - 23;
        let most = match layout {
            Layout::Table => usable - 35,
            Layout::Index => (usable - 12) * 64 / 255 - 23,
        };
        let here = match length {
            length if length <= most => length,
            length => Some(least + (length - least) % (usable - 4))
                .filter(|here| *here <= most)
                .unwrap_or(least),
        };
        let local = page.get(place..place + here)?;
        // The columns' types are at the row's beginning; most places fail here, before any copy.
        let types = column_types(local, length)?;
        let values = if here == length {
            decode(local, &types)?
        } else {
            let next = page.get(place + here..place + here + 4)?;
            let row = self.follow(local, u32::from_be_bytes(next.try_into().ok()?), length)?;
            decode(&row, &types)?
        };
        let end = place + here + if here < length { 4 } else { 0 };
        Some((FoundRow { key, values, is_listed: false }, end - at))
    }

    /// The row that begins with `local` and goes on over pages from `next` on.
    fn follow(&self, local: &[u8], mut next: u32, length: usize) -> Option<Vec<u8>> {
        let mut row = local.to_vec();
        while row.len() < length {
            if next == 0 || next > self.count {
                return None;
            }
            let page = self.page(next)?;
            let part = (length - row.len()).min(page.len() - 4);
            row.extend_from_slice(&page[4..4 + part]);
            next = u32::from_be_bytes(page[..4].try_into().ok()?);
        }
        Some(row)
    }
}

/// The log's running checksum (section 4.2).
fn checksum(before: (u32, u32), bytes: &[u8], is_big_endian: bool) -> (u32, u32) {
    let (mut a, mut b) = before;
    for eight in bytes.chunks_exact(8) {
        let word = |part: &[u8]| {
            let word = [part[0], part[1], part[2], part[3]];
            if is_big_endian { u32::from_be_bytes(word) } else { u32::from_le_bytes(word) }
        };
        a = a.wrapping_add(word(&eight[..4])).wrapping_add(b);
        b = b.wrapping_add(word(&eight[4..])).wrapping_add(a);
    }
    (a, b)
}

fn short(page: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([page[at], page[at + 1]])
}

/// The free bytes among a page's cells: blocks, and fragments too small for one.
fn free_bytes(page: &[u8], start: usize) -> Option<usize> {
    let mut free = usize::from(page[start + 7]);
    let mut at = usize::from(short(page, start + 1));
    let mut before = 0;
    while at != 0 {
        if at <= before || at + 4 > page.len() {
            return None;
        }
        before = at;
        free += usize::from(short(page, at + 2));
        at = usize::from(short(page, at));
    }
    Some(free)
}

/// A number of 1 to 9 bytes (section 1.6), and where it ends.
fn varint(bytes: &[u8], at: usize) -> Option<(i64, usize)> {
    let mut value = 0u64;
    for place in 0..8 {
        let byte = *bytes.get(at + place)?;
        value = value << 7 | u64::from(byte & 0x7f);
        if byte < 0x80 {
            return Some((value as i64, at + place + 1));
        }
    }
    Some(((value << 8 | u64::from(*bytes.get(at + 8)?)) as i64, at + 9))
}

/// The types of a row of `length` bytes, if its header is one and the lengths come out.
fn column_types(row: &[u8], length: usize) -> Option<(usize, Vec<u64>)> {
    let (header, mut at) = varint(row, 0)?;
    let header = usize::try_from(header).ok().filter(|header| *header <= row.len())?;
    let mut types = Vec::new();
    let mut sum = header;
    while at < header {
        let (kind, after) = varint(row, at)?;
        let kind = u64::try_from(kind).ok()?;
        sum = sum.checked_add(value_bytes(kind)?)?;
        types.push(kind);
        at = after;
        if types.len() > MOST_COLUMNS {
            return None;
        }
    }
    (at == header && sum == length && types.len() >= 2).then_some((header, types))
}

fn value_bytes(kind: u64) -> Option<usize> {
    Some(match kind {
        0 | 8 | 9 => 0,
        1..=4 => kind as usize,
        5 => 6,
        6 | 7 => 8,
        10 | 11 => return None,
        _ => usize::try_from((kind - 12) / 2).ok()?,
    })
}

fn decode(row: &[u8], (header, types): &(usize, Vec<u64>)) -> Option<Vec<Value>> {
    let mut at = *header;
    let mut values = Vec::with_capacity(types.len());
    for &kind in types {
        let bytes = row.get(at..at.checked_add(value_bytes(kind)?)?)?;
        at += bytes.len();
        let integer = || {
            let negative = bytes.first().is_some_and(|byte| *byte >= 0x80);
            let first = if negative { -1 } else { 0 };
            bytes.iter().fold(first, |value: i64, byte| value << 8 | i64::from(*byte))
        };
        values.push(match kind {
            0 => Value::Null,
            1..=6 => Value::Integer(integer()),
            7 => Value::Real(f64::from_bits(integer() as u64)),
            8 => Value::Integer(0),
            9 => Value::Integer(1),
            _ if kind % 2 == 0 => Value::Blob(bytes.to_vec()),
            _ => Value::Text(String::from_utf8_lossy(bytes).into_owned()),
        });
    }
    Some(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rusqlite::Connection;

    fn any_value() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(Value::Null),
            any::<i64>().prop_map(Value::Integer),
            (-300i64..300).prop_map(Value::Integer),
            any::<i32>().prop_map(|bits| Value::Real(f64::from(bits) + 0.5)),
            ".{0,40}".prop_map(Value::Text),
            (0usize..9_000).prop_map(|length| Value::Blob(vec![7; length])),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn every_row_that_sqlite_wrote_is_found(
            rows in prop::collection::vec((any_value(), any_value()), 1..60),
            in_log in any::<bool>(),
            deleted in 0i64..20,
        ) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("a.sqlite");
            let sql = Connection::open(&path).unwrap();
            sql.pragma_update(None, "page_size", 4096).unwrap();
            // As every library has it: without, pages that are free keep their rows.
            sql.pragma_update(None, "secure_delete", true).unwrap();
            sql.pragma_update(None, "journal_mode", if in_log { "WAL" } else { "DELETE" }).unwrap();
            sql.execute_batch(
                "CREATE TABLE t (key INTEGER PRIMARY KEY, a, b);
                 CREATE TABLE w (n INTEGER PRIMARY KEY, a, b) WITHOUT ROWID;",
            ).unwrap();
            for (n, (a, b)) in rows.iter().enumerate() {
                sql.execute("INSERT INTO t VALUES (?1, ?2, ?3)", (n as i64, a, b)).unwrap();
                sql.execute("INSERT INTO w VALUES (?1, ?2, ?3)", (n as i64, a, b)).unwrap();
            }
            sql.execute("DELETE FROM t WHERE key < ?1", [deleted]).unwrap();
            let pages = Pages::open(&path, 4096).unwrap();
            let found: Vec<FoundRow> =
                (1..=pages.count()).flat_map(|page| pages.rows(page)).collect();
            for (n, (a, b)) in rows.iter().enumerate() {
                let n = n as i64;
                let in_t = |row: &FoundRow| {
                    row.key == Some(n)
                        && row.values == [Value::Null, a.clone(), b.clone()]
                        && row.is_listed
                };
                prop_assert_eq!(found.iter().any(in_t), n >= deleted);
                let in_w = |row: &FoundRow| {
                    row.key.is_none()
                        && row.values == [Value::Integer(n), a.clone(), b.clone()]
                        && row.is_listed
                };
                prop_assert!(found.iter().any(in_w));
            }
        }

        #[test]
        fn no_bytes_make_reading_panic(bytes in prop::collection::vec(any::<u8>(), 0..9_000)) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("a.sqlite");
            std::fs::write(&path, &bytes).unwrap();
            std::fs::write(folder.path().join("a.sqlite-wal"), &bytes).unwrap();
            for page_bytes in [512, 4096, 16_384] {
                let pages = Pages::open(&path, page_bytes).unwrap();
                for page in 1..=pages.count().min(99) {
                    let _ = pages.rows(page);
                }
            }
        }
    }
}
