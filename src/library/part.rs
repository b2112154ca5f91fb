//! A part of the vectors' index: a file with what a stretch of rows of one table is found by.
//!
//! Everything in it is derived from the record, and nothing of it is trusted: it says which rows of
//! which state of which library it was made of, and has checksums of all its bytes. `docs/library.md`
//! documents the format.

use std::fs::File;
use std::io::{Read, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use half::f16;
use rayon::prelude::*;

use super::codes::{CodedQuery, Rotation, code_words, encode, encode_fine, fine_bytes};
use super::dot::dot;
use super::neighbourhoods::{self, Neighbourhoods};
use super::rows;
use super::vectors::Row;
use crate::error::{Error, Result};
use crate::time::{Span, Timestamp};

const MAGIC: [u8; 8] = *b"cnlxvec3";
/// What all versions begin with.
const ANY_MAGIC: &[u8] = b"cnlxvec";
const HEADER_BYTES: usize = 8 + 32 + 4 * 8 + 4 + 4;

/// No part has more rows, nor embeddings of more bytes: they are in memory while it is made.
const MOST_ROWS: usize = 65_536;
const MOST_BYTES: usize = 48 << 20;

/// The best of a hundred and more numbers that are distributed normally is by so many deviations better than
/// their mean, on average.
const BEST_OF_MANY: f32 = 2.6;

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
    /// CRC-32 of each embedding.
    sums: Vec<u32>,
    coded: Coded,
    values_at: u64,
}

/// What the rows of a part are estimated by: their codes, neighbourhood after neighbourhood. The place of
/// a code is its *slot*.
#[derive(Debug, Default)]
struct Coded {
    /// The rotated centres, row-major.
    centres: Vec<f16>,
    /// By how much the best of a neighbourhood's rows is likely to be nearer to a query of length 1 than
    /// the centre is.
    reaches: Vec<f32>,
    /// For each neighbourhood, the slot behind its last.
    ends: Vec<u32>,
    /// For each slot, the place of its row.
    places: Vec<u32>,
    factors: Vec<f32>,
    codes: Vec<u64>,
    fine_factors: Vec<f32>,
    fine_codes: Vec<u8>,
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
        let magic: [u8; 8] = fields.take();
        if magic != MAGIC {
            return Err(match magic.starts_with(ANY_MAGIC) {
                true => Error::unsupported("is of another version").in_source(path.display()),
                false => damaged("is no part of an index"),
            });
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
        let neighbourhoods = u32::from_le_bytes(fields.take()) as usize;
        let count =
            usize::try_from(count).ok().filter(|count| (1..=full(dimension)).contains(count));
        let count = count.ok_or_else(|| damaged("impossible count of rows"))?;
        if !(1..=count).contains(&neighbourhoods) {
            return Err(damaged("impossible count of neighbourhoods"));
        }
        let column_bytes = column_bytes(count, neighbourhoods, dimension);
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
        let rows = sources.into_iter().zip(starts).zip(ends).map(row).collect();
        let sums = fields.column(count, u32::from_le_bytes);
        let coded = Coded {
            centres: fields.column(neighbourhoods * dimension, f16::from_le_bytes),
            reaches: fields.column(neighbourhoods, f32::from_le_bytes),
            ends: fields.column(neighbourhoods, u32::from_le_bytes),
            places: fields.column(count, u32::from_le_bytes),
            factors: fields.column(count, f32::from_le_bytes),
            codes: fields.column(count * code_words(dimension), u64::from_le_bytes),
            fine_factors: fields.column(count, f32::from_le_bytes),
            fine_codes: fields.column(count * fine_bytes(dimension), u8::from_le_bytes),
        };
        let is_whole = coded.ends.is_sorted()
            && coded.ends.last().is_some_and(|end| *end as usize == count)
            && coded.places.iter().all(|place| (*place as usize) < count);
        if !is_whole {
            return Err(damaged("impossible neighbourhoods"));
        }
        Ok(Part { path: path.to_owned(), range, dimension, rows, sums, coded, values_at, file })
    }

    /// For each neighbourhood, the query's product with its centre, and how much more it may be with its
    /// best row.
    pub fn neighbourhoods<'a>(
        &'a self,
        query: &'a CodedQuery,
    ) -> impl Iterator<Item = (f32, f32)> + 'a {
        let Coded { centres, reaches, .. } = &self.coded;
        let centres = centres.chunks_exact(self.dimension).zip(reaches);
        centres.map(|(centre, reach)| (query.centre_product(centre), reach * query.length()))
    }

    /// The slots of a neighbourhood.
    pub fn slots(&self, neighbourhood: usize) -> Range<usize> {
        let end = |number: usize| self.coded.ends[number] as usize;
        neighbourhood.checked_sub(1).map_or(0, end)..end(neighbourhood)
    }

    /// The place of the row in a slot.
    pub fn place(&self, slot: usize) -> usize {
        self.coded.places[slot] as usize
    }

    /// The estimated products of a query and the rows in `slots` of a neighbourhood, with whose centre
    /// the product is `base`.
    pub fn estimate(
        &self,
        query: &CodedQuery,
        base: f32,
        slots: Range<usize>,
        estimates: &mut Vec<f32>,
    ) {
        let words = code_words(self.dimension);
        let codes = &self.coded.codes[slots.start * words..slots.end * words];
        query.estimate(base, codes, &self.coded.factors[slots], estimates);
    }

    /// As [`Part::estimate`] for one slot, by its fine code.
    pub fn estimate_fine(&self, query: &CodedQuery, base: f32, slot: usize) -> f32 {
        let bytes = fine_bytes(self.dimension);
        let code = &self.coded.fine_codes[slot * bytes..(slot + 1) * bytes];
        query.estimate_fine(base, code, self.coded.fine_factors[slot])
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
    let coded = Coded::of(values, dimension);
    let neighbourhoods = coded.ends.len();

    let column_bytes = column_bytes(rows.len(), neighbourhoods, dimension);
    let mut head = Vec::with_capacity(HEADER_BYTES + column_bytes + 4);
    head.extend(MAGIC);
    head.extend(origin.identity.as_bytes());
    for number in [origin.generation, range.after, range.through, rows.len() as i64] {
        head.extend(number.to_le_bytes());
    }
    head.extend((dimension as u32).to_le_bytes());
    head.extend((neighbourhoods as u32).to_le_bytes());
    head.extend(rows.iter().flat_map(|row| row.source.to_le_bytes()));
    head.extend(rows.iter().flat_map(|row| row.span.start.0.to_le_bytes()));
    head.extend(rows.iter().flat_map(|row| row.span.end.0.to_le_bytes()));
    let bytes = rows::halves_to_bytes(values);
    let sum = |row: &[u8]| crc32fast::hash(row).to_le_bytes();
    head.extend(bytes.chunks_exact(dimension * 2).flat_map(sum));
    head.extend(rows::halves_to_bytes(&coded.centres));
    head.extend(coded.reaches.iter().flat_map(|reach| reach.to_le_bytes()));
    head.extend(coded.ends.iter().flat_map(|end| end.to_le_bytes()));
    head.extend(coded.places.iter().flat_map(|place| place.to_le_bytes()));
    head.extend(coded.factors.iter().flat_map(|factor| factor.to_le_bytes()));
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

impl Coded {
    fn of(values: &[f16], dimension: usize) -> Self {
        let rotation = Rotation::new(dimension);
        let Neighbourhoods { centres, of } = neighbourhoods::divide(values, dimension);
        let mut places: Vec<u32> = (0..of.len() as u32).collect();
        // A stable sort: a neighbourhood's rows stay in order.
        places.sort_by_key(|&place| of[place as usize]);
        let neighbourhoods: Vec<Coded> = places
            .par_chunk_by(|&a, &b| of[a as usize] == of[b as usize])
            .map(|places| {
                let centre = of[places[0] as usize] * dimension;
                let centre = centres[centre..centre + dimension].to_vec();
                Coded::of_neighbourhood(&rotation, centre, values, places)
            })
            .collect();
        let mut coded = Coded::default();
        for one in neighbourhoods {
            coded.centres.extend(one.centres);
            coded.reaches.extend(one.reaches);
            coded.places.extend(one.places);
            coded.ends.push(coded.places.len() as u32);
            coded.factors.extend(one.factors);
            coded.codes.extend(one.codes);
            coded.fine_factors.extend(one.fine_factors);
            coded.fine_codes.extend(one.fine_codes);
        }
        coded
    }

    fn of_neighbourhood(
        rotation: &Rotation,
        mut centre: Vec<f32>,
        values: &[f16],
        places: &[u32],
    ) -> Self {
        let dimension = rotation.dimension();
        rotation.apply(&mut centre);
        // What no embedding is as long as must not become infinite.
        let most = f16::MAX.to_f32();
        let centre: Vec<f16> =
            centre.into_iter().map(|value| f16::from_f32(value.clamp(-most, most))).collect();
        let mut coded = Coded { places: places.to_vec(), ..Coded::default() };
        let mut squares = 0.0;
        for &place in places {
            let at = place as usize * dimension;
            let row = &values[at..at + dimension];
            let mut offset: Vec<f32> = row.iter().map(|value| value.to_f32()).collect();
            rotation.apply(&mut offset);
            offset.iter_mut().zip(&centre).for_each(|(value, centre)| *value -= centre.to_f32());
            squares += offset.iter().map(|value| value * value).sum::<f32>();
            coded.factors.push(encode(&offset, &mut coded.codes));
            coded.fine_factors.push(encode_fine(&offset, &mut coded.fine_codes));
        }
        let deviation = (squares / (places.len() * dimension) as f32).sqrt();
        coded.reaches.push(BEST_OF_MANY * deviation);
        coded.centres = centre;
        coded
    }
}

/// Bytes between the header and its checksum.
fn column_bytes(count: usize, neighbourhoods: usize, dimension: usize) -> usize {
    let codes = 4 + 8 * code_words(dimension) + 4 + fine_bytes(dimension);
    count * (3 * 8 + 4 + 4 + codes) + neighbourhoods * (2 * dimension + 4 + 4)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    const WIDE: usize = 4;
    const ROWS: usize = 300;

    fn origin() -> Origin {
        Origin { identity: blake3::hash(b"test"), generation: 3, dimension: WIDE }
    }

    fn written(path: &Path) -> Vec<u8> {
        let at = |row: usize| Timestamp(row as i64 * 1_000);
        let row = |row| Row { source: 1, span: Span::new(at(row), at(row + 1)) };
        let value = |at: usize| f16::from_f32((at * 37 % 101) as f32 / 101.0 - 0.4);
        let columns = Columns {
            rows: (0..ROWS).map(row).collect(),
            values: (0..ROWS * WIDE).map(value).collect(),
        };
        write(path, &origin(), KeyRange { after: 0, through: 300 }, &columns).unwrap();
        std::fs::read(path).unwrap()
    }

    #[test]
    fn what_a_right_checksum_covers_is_not_trusted_either() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("part");
        let whole = written(&path);
        let part = Part::open(&path, &origin()).unwrap();
        let neighbourhoods = part.coded.ends.len();
        assert!(neighbourhoods > 1);
        let slots = (0..neighbourhoods).flat_map(|number| part.slots(number));
        let mut places: Vec<usize> = slots.map(|slot| part.place(slot)).collect();
        places.sort_unstable();
        assert!(places.into_iter().eq(0..ROWS));

        let ends = HEADER_BYTES + ROWS * 28 + neighbourhoods * (2 * WIDE + 4);
        let last_end = ends + 4 * (neighbourhoods - 1);
        let places = last_end + 4;
        let end_of_columns = HEADER_BYTES + column_bytes(ROWS, neighbourhoods, WIDE);
        let count = HEADER_BYTES - 4;
        for (at, value) in [
            (count, 0),
            (count, ROWS as u32 + 1),
            (count, u32::MAX),
            (ends, ROWS as u32 + 7),
            (last_end, ROWS as u32 - 1),
            (last_end, u32::MAX),
            (places, ROWS as u32),
            (places + 4 * (ROWS - 1), u32::MAX),
        ] {
            let mut bytes = whole.clone();
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
            let sum = crc32fast::hash(&bytes[..end_of_columns]);
            bytes[end_of_columns..end_of_columns + 4].copy_from_slice(&sum.to_le_bytes());
            std::fs::write(&path, bytes).unwrap();
            let error = Part::open(&path, &origin()).unwrap_err();
            assert_eq!(error.kind(), Kind::Corrupt, "{at}: {error}");
        }

        // Another version is no damage.
        for (magic, kind) in [(b"cnlxvec2", Kind::Unsupported), (b"cnlxsec3", Kind::Corrupt)] {
            std::fs::write(&path, [&magic[..], &whole[8..]].concat()).unwrap();
            assert_eq!(Part::open(&path, &origin()).unwrap_err().kind(), kind);
        }
    }
}
