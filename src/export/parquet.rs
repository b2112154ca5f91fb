//! Parquet tables, written a group of rows at a time.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;
use std::sync::Arc;

use parquet::basic::{Compression, Encoding};
use parquet::data_type::{
    BoolType, ByteArray, ByteArrayType, DataType, DoubleType, FloatType, Int32Type, Int64Type,
};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::writer::{SerializedColumnWriter, SerializedFileWriter};
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::ColumnPath;

use super::rows::Of;
use super::{Cell, Column, Sheet};
use crate::error::{Error, Result};

/// A group is written when it has so many bytes of numbers and text, or so many rows. It is what
/// is kept in memory.
const GROUP_BYTES: usize = 16 << 20;
const GROUP_ROWS: usize = 65_536;

pub(super) struct Table<'a> {
    writer: SerializedFileWriter<BufWriter<&'a File>>,
    /// For messages.
    file: &'a Path,
    columns: &'static [Column],
    rows: Vec<Vec<Cell>>,
    bytes: usize,
}

impl<'a> Table<'a> {
    pub fn new(
        out: &'a File,
        file: &'a Path,
        columns: &'static [Column],
        about: Vec<(&'static str, String)>,
    ) -> Result<Self> {
        let about = about.into_iter().map(|(key, value)| KeyValue::new(key.to_owned(), value));
        let mut properties = WriterProperties::builder()
            .set_created_by(format!("cinelex {}", env!("CARGO_PKG_VERSION")))
            .set_compression(Compression::SNAPPY)
            .set_key_value_metadata(Some(about.collect()));
        for column in columns.iter().filter(|column| column.of == Of::Reals) {
            let path =
                ColumnPath::new([column.name, "list", "element"].map(str::to_owned).to_vec());
            // No number comes twice, and no reader asks for the least of them.
            properties = properties
                .set_column_dictionary_enabled(path.clone(), false)
                .set_column_statistics_enabled(path.clone(), EnabledStatistics::None)
                .set_column_encoding(path, Encoding::PLAIN);
        }
        let schema = parse_message_type(&message(columns)).map_err(|cause| failed(file, cause))?;
        let out = BufWriter::with_capacity(1 << 20, out);
        let writer = SerializedFileWriter::new(out, Arc::new(schema), Arc::new(properties.build()))
            .map_err(|cause| failed(file, cause))?;
        Ok(Table { writer, file, columns, rows: Vec::new(), bytes: 0 })
    }

    fn write_group(&mut self) -> std::result::Result<(), ParquetError> {
        let mut group = self.writer.next_row_group()?;
        for (place, column) in self.columns.iter().enumerate() {
            let Some(mut out) = group.next_column()? else {
                return Err(ParquetError::General("too few columns".to_owned()));
            };
            write_column(&mut out, column, self.rows.iter().map(|row| &row[place]))?;
            out.close()?;
        }
        group.close()?;
        self.rows.clear();
        self.bytes = 0;
        Ok(())
    }
}

impl Sheet for Table<'_> {
    fn add(&mut self, row: Vec<Cell>) -> Result<()> {
        self.bytes += row.iter().map(size).sum::<usize>();
        self.rows.push(row);
        if self.bytes >= GROUP_BYTES || self.rows.len() >= GROUP_ROWS {
            self.write_group().map_err(|cause| failed(self.file, cause))?;
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        if !self.rows.is_empty() {
            self.write_group().map_err(|cause| failed(self.file, cause))?;
        }
        let file = self.file;
        // Its footer, and what the buffer still holds.
        let mut out = self.writer.into_inner().map_err(|cause| failed(file, cause))?;
        std::io::Write::flush(&mut out).map_err(|cause| Error::io(file, "write", cause))
    }
}

fn failed(file: &Path, cause: ParquetError) -> Error {
    Error::unavailable(format!("cannot write {}", file.display())).caused_by(cause)
}

/// About what a cell takes in memory.
fn size(cell: &Cell) -> usize {
    size_of::<Cell>()
        + match cell {
            Cell::Text(text) => text.len(),
            Cell::Json(value) => value.to_string().len(),
            Cell::Reals(values) => values.len() * 4,
            Cell::Ints(values) => values.len() * 4,
            Cell::Null | Cell::Int(_) | Cell::Real(_) | Cell::Bool(_) => 0,
        }
}

/// The table's schema in Parquet's own notation.
fn message(columns: &[Column]) -> String {
    let mut message = "message cinelex {\n".to_owned();
    for Column { name, of, optional } in columns {
        let need = if *optional { "optional" } else { "required" };
        let list = |element: &str| {
            format!(
                "{need} group {name} (LIST) {{ repeated group list {{ required {element} element; }} }}"
            )
        };
        let field = match of {
            Of::Text => format!("{need} binary {name} (STRING);"),
            Of::Json => format!("{need} binary {name} (JSON);"),
            Of::Int => format!("{need} int64 {name};"),
            Of::Instant => format!("{need} int64 {name} (TIMESTAMP(MICROS,true));"),
            Of::Real => format!("{need} double {name};"),
            Of::Bool => format!("{need} boolean {name};"),
            Of::Reals => list("float"),
            Of::Ints => list("int32"),
        };
        message.push_str(&field);
        message.push('\n');
    }
    message + "}"
}

fn write_column<'c>(
    out: &mut SerializedColumnWriter<'_>,
    column: &Column,
    cells: impl Iterator<Item = &'c Cell>,
) -> std::result::Result<(), ParquetError> {
    let text = |text: &str| ByteArray::from(text.as_bytes().to_vec());
    match column.of {
        Of::Text | Of::Json => {
            write_values::<ByteArrayType>(out, column, cells, |cell| match cell {
                Cell::Text(value) => Some(text(value)),
                Cell::Json(value) => Some(text(&value.to_string())),
                _ => None,
            })
        }
        Of::Int | Of::Instant => write_values::<Int64Type>(out, column, cells, |cell| match cell {
            Cell::Int(value) => Some(*value),
            _ => None,
        }),
        Of::Real => write_values::<DoubleType>(out, column, cells, |cell| match cell {
            Cell::Real(value) => Some(*value),
            _ => None,
        }),
        Of::Bool => write_values::<BoolType>(out, column, cells, |cell| match cell {
            Cell::Bool(value) => Some(*value),
            _ => None,
        }),
        Of::Reals => write_lists::<FloatType>(out, column, cells, |cell| match cell {
            Cell::Reals(values) => Some(values),
            _ => None,
        }),
        Of::Ints => write_lists::<Int32Type>(out, column, cells, |cell| match cell {
            Cell::Ints(values) => Some(values),
            _ => None,
        }),
    }
}

fn write_values<'c, T: DataType>(
    out: &mut SerializedColumnWriter<'_>,
    column: &Column,
    cells: impl Iterator<Item = &'c Cell>,
    value: impl Fn(&Cell) -> Option<T::T>,
) -> std::result::Result<(), ParquetError> {
    let (mut values, mut levels) = (Vec::new(), Vec::new());
    for cell in cells {
        let value = value(cell);
        levels.push(i16::from(value.is_some()));
        values.extend(value);
    }
    let levels = column.optional.then_some(&levels[..]);
    out.typed::<T>().write_batch(&values, levels, None)?;
    Ok(())
}

/// Lists: for each element, whether it begins a row (repetition), and how much of the path to it
/// is there (definition).
fn write_lists<'c, T: DataType>(
    out: &mut SerializedColumnWriter<'_>,
    column: &Column,
    cells: impl Iterator<Item = &'c Cell>,
    list: impl Fn(&Cell) -> Option<&Vec<T::T>>,
) -> std::result::Result<(), ParquetError> {
    // An optional list has one level more, on which it is there and empty.
    let there = i16::from(column.optional);
    let (mut values, mut definition, mut repetition) = (Vec::new(), Vec::new(), Vec::new());
    for cell in cells {
        match list(cell) {
            Some(list) if !list.is_empty() => {
                for (place, value) in list.iter().enumerate() {
                    values.push(value.clone());
                    definition.push(there + 1);
                    repetition.push(i16::from(place > 0));
                }
            }
            list => {
                definition.push(if list.is_some() { there } else { 0 });
                repetition.push(0);
            }
        }
    }
    out.typed::<T>().write_batch(&values, Some(&definition), Some(&repetition))?;
    Ok(())
}
