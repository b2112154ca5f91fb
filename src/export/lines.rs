//! JSON lines: an object a row, with the schema and the kind of row first.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use super::{Cell, Column, Sheet};
use crate::error::{Error, Result};

#[derive(Debug)]
pub(super) struct Lines<'a> {
    out: BufWriter<&'a File>,
    /// For messages.
    file: &'a Path,
    kind: &'static str,
    columns: &'static [Column],
}

impl<'a> Lines<'a> {
    pub fn new(
        out: &'a File,
        file: &'a Path,
        kind: &'static str,
        columns: &'static [Column],
    ) -> Self {
        Lines { out: BufWriter::with_capacity(1 << 20, out), file, kind, columns }
    }
}

impl Sheet for Lines<'_> {
    fn add(&mut self, row: Vec<Cell>) -> Result<()> {
        let line = Line { kind: self.kind, columns: self.columns, row: &row };
        serde_json::to_writer(&mut self.out, &line)
            .map_err(std::io::Error::from)
            .and_then(|()| self.out.write_all(b"\n"))
            .map_err(|cause| Error::io(self.file, "write", cause))
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        self.out.flush().map_err(|cause| Error::io(self.file, "write", cause))
    }
}

struct Line<'a> {
    kind: &'static str,
    columns: &'static [Column],
    row: &'a [Cell],
}

impl Serialize for Line<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(None)?;
        map.serialize_entry("schema", &1)?;
        map.serialize_entry("kind", self.kind)?;
        for (column, cell) in self.columns.iter().zip(self.row) {
            match cell {
                Cell::Null => map.serialize_entry(column.name, &None::<()>)?,
                Cell::Text(text) => map.serialize_entry(column.name, text)?,
                Cell::Json(value) => map.serialize_entry(column.name, value)?,
                Cell::Int(value) => map.serialize_entry(column.name, value)?,
                Cell::Real(value) => map.serialize_entry(column.name, value)?,
                Cell::Bool(value) => map.serialize_entry(column.name, value)?,
                Cell::Reals(values) => map.serialize_entry(column.name, values)?,
                Cell::Ints(values) => map.serialize_entry(column.name, values)?,
            }
        }
        map.end()
    }
}
