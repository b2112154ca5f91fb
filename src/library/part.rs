//! A part of the vectors' index: a file with what a stretch of rows of one table is found by.
//!
//! Everything in it is derived from the record, and nothing of it is trusted: it says which rows of
//! which state of which library it was made of, and has checksums of all its bytes. `docs/library.md`
//! documents the format.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use half::f16;

use super::codes::{CodedQuery, Rotation, code_words, encode, encode_fine, fine_bytes};
use super::dot::dot;
use super::rows;
use super::vectors::Row;
use crate::error::{Error, Result};
use crate::time::{Span, Timestamp};

const MAGIC: [u8; 8] = *b"cnlxvec2";
const HEADER_BYTES: usize = 8 + 32 + 4 * 8 + 4;

/// No part has more rows, nor embeddings of more bytes: they are in memory while it is made.
const MOST_ROWS: usize = 65_536;
const MOST_BYTES: usize = 48 << 20;

/// What a part is made of. A part of another state is of no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Origin {
    /// The hash of library, table and recipe.
    pub identity: blake3::Hash,
    /// The table's counter of rows that have gone.
    pub generation: i64,
    pub dimension: usize,
}

/// The table's keys that a part covers: above `after`, up to `through`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct KeyRange {
    pub after: i64,
    pub through: i64,
}

/// Rows of the table with an embedding, in order of key.
#[derive(Debug, Default)]
pub(super) struct Columns {
    pub rows: Vec<Row>,
    /// `rows.len() * dimension`, row-major.
    pub values: Vec<f16>,
}

/// Rows of a full part.
pub(super) fn full(dimension: usize) -> usize {
    (MOST_BYTES / (2 * dimension.max(1))).clamp(1, MOST_ROWS)
}

/// A part whose rows and codes are in memory, and whose embeddings are read where they are needed.
#[derive(Debug)]
pub(super) struct Part {
    path: PathBuf,
    file: File,
    pub range: KeyRange,
    dimension: usize,
    pub rows: Vec<Row>,
    centre: Vec<f32>,
    factors: Vec<f32>,
    codes: Vec<u64>,
    fine_factors: Vec<f32>,
    fine_codes: Vec<u8>,
    /// CRC-32 of each embedding.
    sums: Vec<u32>,
    values_at: u64,
}

impl Part {
    /// Reads all but the embeddings.
    ///
    /// Errors: `Corrupt` for what is not a whole part; `Unsupported` for one of another origin.
    pub fn open(path: &Path, origin: &Origin) -> Result<Self> {
        let reading = |cause| Error::io(path, "read", cause);
        let damaged = |what: &str| Error::corrupt(what).in_source(path.display());
        let mut file = File::open(path).map_err(reading)?;
        let bytes = file.metadata().map_err(reading)?.len();
        let mut header = [0; HEADER_BYTES];
        file.read_exact(&mut header).map_err(|_| damaged("too short"))?;
        let mut fields = Fields(&header);
        if fields.take() != MAGIC {
            return Err(damaged("is no part of an index of this version"));
        }
        let identity: [u8; 32] = fields.take();
        let number = |fields: &mut Fields<'_>| i64::from_le_bytes(fields.take());
        let generation = number(&mut fields);
        let range = KeyRange { after: number(&mut fields), through: number(&mut fields) };
        let count = number(&mut fields);
        let dimension = u32::from_le_bytes(fields.take()) as usize;
        let found = Origin { identity: identity.into(), generation, dimension };
        if found != *origin {
            return Err(
                Error::unsupported("is of another state of the library").in_source(path.display())
            );
        }
        let count =
            usize::try_from(count).ok().filter(|count| (1..=full(dimension)).contains(count));
        let count = count.ok_or_else(|| damaged("impossible count of rows"))?;
        let column_bytes = column_bytes(count, dimension);
        let values_at = (HEADER_BYTES + column_bytes + 4) as u64;
        if bytes != values_at + (count * dimension * 2) as u64 {
            return Err(damaged("is cut off or too long"));
        }
        let mut columns = vec![0; column_bytes + 4];
        file.read_exact(&mut columns).map_err(reading)?;
        let mut fields = Fields(&columns);
        let mut sum = crc32fast::Hasher::new();
        sum.update(&header);
        sum.update(&columns[..column_bytes]);
        if columns[column_bytes..] != sum.finalize().to_le_bytes() {
            return Err(damaged("its checksum is wrong"));
        }
        let sources = fields.column(count, i64::from_le_bytes);
        let starts = fields.column(count, i64::from_le_bytes);
        let ends = fields.column(count, i64::from_le_bytes);
        let row = |((source, start), end)| Row {
            source,
            span: Span::new(Timestamp(start), Timestamp(end)),
        };
        Ok(Part {
            path: path.to_owned(),
            range,
            dimension,
            rows: sources.into_iter().zip(starts).zip(ends).map(row).collect(),
            centre: fields.column(dimension, f32::from_le_bytes),
            factors: fields.column(count, f32::from_le_bytes),
            sums: fields.column(count, u32::from_le_bytes),
            codes: fields.column(count * code_words(dimension), u64::from_le_bytes),
            fine_factors: fields.column(count, f32::from_le_bytes),
            fine_codes: fields.column(count * fine_bytes(dimension), u8::from_le_bytes),
            values_at,
            file,
        })
    }

    /// The rows' estimated products with a query, `places` of them.
    pub fn estimate(
        &self,
        query: &CodedQuery,
        places: std::ops::Range<usize>,
        estimates: &mut Vec<f32>,
    ) {
        let words = code_words(self.dimension);
        let base = query.centre_product(&self.centre);
        let codes = &self.codes[places.start * words..places.end * words];
        query.estimate(base, codes, &self.factors[places], estimates);
    }

    /// The estimated products of a query and the rows at `places`, by their fine codes.
    pub fn estimate_fine<'a>(
        &'a self,
        query: &'a CodedQuery,
        places: impl IntoIterator<Item = usize> + 'a,
    ) -> impl Iterator<Item = f32> + 'a {
        let bytes = fine_bytes(self.dimension);
        let base = query.centre_product(&self.centre);
        places.into_iter().map(move |place| {
            let code = &self.fine_codes[place * bytes..(place + 1) * bytes];
            query.estimate_fine(base, code, self.fine_factors[place])
        })
    }

    /// The exact product of `query` and the row at `place`. `scratch` saves allocations.
    ///
    /// Errors: `Corrupt` where the embedding is not what was written.
    pub fn product(&self, query: &[f32], place: usize, scratch: &mut Scratch) -> Result<f32> {
        let Scratch { bytes, halves } = scratch;
        let length = self.dimension * 2;
        bytes.resize(length, 0);
        let at = self.values_at + (place * length) as u64;
        self.file.read_exact_at(bytes, at).map_err(|cause| Error::io(&self.path, "read", cause))?;
        halves.clear();
        if crc32fast::hash(bytes) != self.sums[place]
            || !rows::append_halves(bytes, self.dimension, halves)
        {
            return Err(self.damaged_embedding());
        }
        Ok(dot(query, halves))
    }

    /// Reads every embedding.
    ///
    /// Errors: `Corrupt` where one is not what was written.
    pub fn verify(&self) -> Result<()> {
        let length = self.dimension * 2;
        let mut bytes = vec![0; length * self.rows.len().min(1_024)];
        for (block, sums) in self.sums.chunks(1_024).enumerate() {
            let bytes = &mut bytes[..sums.len() * length];
            let at = self.values_at + (block * 1_024 * length) as u64;
            self.file
                .read_exact_at(bytes, at)
                .map_err(|cause| Error::io(&self.path, "read", cause))?;
            if bytes.chunks_exact(length).zip(sums).any(|(row, sum)| crc32fast::hash(row) != *sum) {
                return Err(self.damaged_embedding());
            }
        }
        Ok(())
    }

    /// Whether these are the rows that it has, but for those that are no longer kept. Only its checksums are
    /// looked at for the values.
    pub fn holds(&self, columns: &Columns, is_kept: impl Fn(&Row) -> bool) -> bool {
        let mut there = columns.rows.iter().zip(columns.values.chunks_exact(self.dimension));
        let mut kept = self.rows.iter().zip(&self.sums).filter(|(row, _)| is_kept(row));
        let is_same = kept.all(|(row, sum)| {
            there.next().is_some_and(|(other, values)| {
                row == other && crc32fast::hash(&rows::halves_to_bytes(values)) == *sum
            })
        });
        is_same && there.next().is_none()
    }

    fn damaged_embedding(&self) -> Error {
        Error::corrupt("an embedding's checksum is wrong").in_source(self.path.display())
    }
}

/// Memory that one reading of an embedding leaves to the next.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    bytes: Vec<u8>,
    halves: Vec<f16>,
}

/// Writes a part, whole or not at all. It is not flushed to the disk: what a power cut leaves of it
/// is found by its checksums.
pub(super) fn write(
    path: &Path,
    origin: &Origin,
    range: KeyRange,
    columns: &Columns,
) -> Result<()> {
    let writing = |cause| Error::io(path, "write", cause);
    let Columns { rows, values } = columns;
    let dimension = origin.dimension;
    let rotation = Rotation::new(dimension);
    let (centre, coded) = coded(&rotation, values);

    let mut head = Vec::with_capacity(HEADER_BYTES + column_bytes(rows.len(), dimension) + 4);
    head.extend(MAGIC);
    head.extend(origin.identity.as_bytes());
    for number in [origin.generation, range.after, range.through, rows.len() as i64] {
        head.extend(number.to_le_bytes());
    }
    head.extend((dimension as u32).to_le_bytes());
    head.extend(rows.iter().flat_map(|row| row.source.to_le_bytes()));
    head.extend(rows.iter().flat_map(|row| row.span.start.0.to_le_bytes()));
    head.extend(rows.iter().flat_map(|row| row.span.end.0.to_le_bytes()));
    head.extend(centre.iter().flat_map(|value| value.to_le_bytes()));
    head.extend(coded.factors.iter().flat_map(|factor| factor.to_le_bytes()));
    let bytes = rows::halves_to_bytes(values);
    let sum = |row: &[u8]| crc32fast::hash(row).to_le_bytes();
    head.extend(bytes.chunks_exact(dimension * 2).flat_map(sum));
    head.extend(coded.codes.iter().flat_map(|word| word.to_le_bytes()));
    head.extend(coded.fine_factors.iter().flat_map(|factor| factor.to_le_bytes()));
    head.extend(&coded.fine_codes);
    head.extend(crc32fast::hash(&head).to_le_bytes());

    let folder = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(writing)?;
    file.write_all(&head).map_err(writing)?;
    file.write_all(&bytes).map_err(writing)?;
    file.persist(path).map_err(|error| writing(error.error))?;
    Ok(())
}

/// What the rows of a part are estimated by.
#[derive(Debug, Default)]
struct Coded {
    factors: Vec<f32>,
    codes: Vec<u64>,
    fine_factors: Vec<f32>,
    fine_codes: Vec<u8>,
}

/// The rotated centre of all vectors, and each one's codes.
fn coded(rotation: &Rotation, values: &[f16]) -> (Vec<f32>, Coded) {
    use rayon::prelude::*;
    const BLOCK: usize = 2_048;
    let dimension = rotation.dimension();
    let mut sums = vec![0f64; dimension];
    for row in values.chunks_exact(dimension) {
        for (sum, value) in sums.iter_mut().zip(row) {
            *sum += value.to_f64();
        }
    }
    let count = (values.len() / dimension.max(1)).max(1);
    let mut centre: Vec<f32> = sums.iter().map(|sum| (sum / count as f64) as f32).collect();
    rotation.apply(&mut centre);
    let blocks: Vec<Coded> = values
        .par_chunks(BLOCK * dimension)
        .map(|block| {
            let mut coded = Coded::default();
            for row in block.chunks_exact(dimension) {
                let mut offset: Vec<f32> = row.iter().map(|value| value.to_f32()).collect();
                rotation.apply(&mut offset);
                offset.iter_mut().zip(&centre).for_each(|(value, centre)| *value -= centre);
                coded.factors.push(encode(&offset, &mut coded.codes));
                coded.fine_factors.push(encode_fine(&offset, &mut coded.fine_codes));
            }
            coded
        })
        .collect();
    let mut coded = Coded::default();
    for block in blocks {
        coded.factors.extend(block.factors);
        coded.codes.extend(block.codes);
        coded.fine_factors.extend(block.fine_factors);
        coded.fine_codes.extend(block.fine_codes);
    }
    (centre, coded)
}

fn column_bytes(count: usize, dimension: usize) -> usize {
    let codes = 4 + 8 * code_words(dimension) + 4 + fine_bytes(dimension);
    count * (3 * 8 + 4 + codes) + 4 * dimension
}

/// Takes fields from bytes that are known to be long enough.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const BYTES: usize>(&mut self) -> [u8; BYTES] {
        let (field, rest) = self.0.split_first_chunk().expect("lengths were checked");
        self.0 = rest;
        *field
    }

    fn column<T, const BYTES: usize>(
        &mut self,
        count: usize,
        read: impl Fn([u8; BYTES]) -> T,
    ) -> Vec<T> {
        let (column, rest) = self.0.split_at(count * BYTES);
        self.0 = rest;
        column.as_chunks().0.iter().map(|field| read(*field)).collect()
    }
}
