//! Reading TOML files that people write (pipelines, model manifests) so that every mistake is
//! reported at once, each with file, line and column.
//!
//! A [`Table`] is read key by key. A key that is missing or has the wrong type is noted as a
//! [`Mistake`] and a placeholder is returned, so that reading goes on; [`read`] returns what was
//! built only if nothing was noted. A key that nobody asked for is a mistake too.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::{Range, RangeInclusive};

use toml_edit::{Document, Item, TableLike};

use crate::error::Error;

/// One thing that is wrong with a file. Displayed as `file:line:column: message`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Mistake {
    pub file: String,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    pub message: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {}", self.file, self.line, self.column, self.message)
    }
}

/// All mistakes as one [`Error`] of kind `InvalidInput`, one line each.
pub fn as_error(mistakes: &[Mistake]) -> Error {
    let lines: Vec<String> = mistakes.iter().map(Mistake::to_string).collect();
    Error::invalid_input(lines.join("\n"))
}

/// Reads `text`, the content of `file`, with `build`. What `build` returns is kept only if no
/// mistake was noted; otherwise all mistakes come back in the order of their lines.
pub fn read<T>(
    file: &str,
    text: &str,
    build: impl FnOnce(&Table<'_>) -> T,
) -> Result<T, Vec<Mistake>> {
    let sheet = Sheet { file, text, mistakes: RefCell::default() };
    let document = match Document::parse(text) {
        Ok(document) => document,
        Err(error) => {
            let at = error.span().map_or(0, |span| span.start);
            return Err(vec![sheet.mistake(at, error.message().trim().to_owned())]);
        }
    };
    let root =
        Table { sheet: &sheet, table: Some(document.as_table()), at: 0, asked: RefCell::default() };
    let value = build(&root);
    root.finish();
    let mut mistakes = sheet.mistakes.into_inner();
    mistakes.sort_by_key(|mistake| (mistake.line, mistake.column));
    if mistakes.is_empty() { Ok(value) } else { Err(mistakes) }
}

struct Sheet<'a> {
    file: &'a str,
    text: &'a str,
    mistakes: RefCell<Vec<Mistake>>,
}

impl Sheet<'_> {
    fn mistake(&self, at: usize, message: String) -> Mistake {
        let before = self.text.get(..at).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Mistake {
            file: self.file.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            message,
        }
    }

    fn note(&self, at: usize, message: String) {
        let mistake = self.mistake(at, message);
        self.mistakes.borrow_mut().push(mistake);
    }
}

/// A table of the file, while it is read. The table of a missing required key has no content, and
/// reading it notes nothing more.
pub struct Table<'a> {
    sheet: &'a Sheet<'a>,
    table: Option<&'a dyn TableLike>,
    /// Byte offset of its header, where missing keys are reported.
    at: usize,
    asked: RefCell<BTreeSet<&'static str>>,
}

impl fmt::Debug for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").field("asked", &self.asked.borrow()).finish_non_exhaustive()
    }
}

impl<'a> Table<'a> {
    /// A string that is not empty; `""` stands in for a mistake.
    pub fn required_str(&self, key: &'static str) -> &'a str {
        self.required(key, "a string", as_text).unwrap_or_default()
    }

    pub fn optional_str(&self, key: &'static str) -> Option<&'a str> {
        self.optional(key, "a string", as_text)
    }

    /// A whole number in `range`; the least of the range stands in for a mistake.
    pub fn required_int(&self, key: &'static str, range: RangeInclusive<i64>) -> i64 {
        let wanted = format!("a whole number from {} to {}", range.start(), range.end());
        self.required(key, &wanted, |item| item.as_integer().filter(|n| range.contains(n)))
            .unwrap_or(*range.start())
    }

    pub fn optional_int(&self, key: &'static str, range: RangeInclusive<i64>) -> Option<i64> {
        let wanted = format!("a whole number from {} to {}", range.start(), range.end());
        self.optional(key, &wanted, |item| item.as_integer().filter(|n| range.contains(n)))
    }

    /// A number (`2` reads as `2.0`) in `range`; the least of the range stands in for a mistake.
    pub fn required_float(&self, key: &'static str, range: RangeInclusive<f64>) -> f64 {
        let wanted = format!("a number from {} to {}", range.start(), range.end());
        self.required(key, &wanted, |item| as_number(item).filter(|x| range.contains(x)))
            .unwrap_or(*range.start())
    }

    pub fn optional_float(&self, key: &'static str, range: RangeInclusive<f64>) -> Option<f64> {
        let wanted = format!("a number from {} to {}", range.start(), range.end());
        self.optional(key, &wanted, |item| as_number(item).filter(|x| range.contains(x)))
    }

    pub fn optional_bool(&self, key: &'static str) -> Option<bool> {
        self.optional(key, "true or false", Item::as_bool)
    }

    /// One of the names of `choices`; the first choice stands in for a mistake.
    ///
    /// # Panics
    /// If there are no choices.
    pub fn required_choice<T: Copy>(&self, key: &'static str, choices: &[(&str, T)]) -> T {
        self.required(key, &names(choices), |item| chosen(item, choices)).unwrap_or(choices[0].1)
    }

    pub fn optional_choice<T: Copy>(&self, key: &'static str, choices: &[(&str, T)]) -> Option<T> {
        self.optional(key, &names(choices), |item| chosen(item, choices))
    }

    /// A list of strings that are not empty; none where the key is missing.
    pub fn strings(&self, key: &'static str) -> Vec<&'a str> {
        self.list(key, "a list of strings", |value| {
            value.as_str().filter(|text| !text.trim().is_empty())
        })
    }

    /// A list of whole numbers in `range`; none where the key is missing.
    pub fn ints(&self, key: &'static str, range: RangeInclusive<i64>) -> Vec<i64> {
        let wanted = format!("a list of whole numbers from {} to {}", range.start(), range.end());
        self.list(key, &wanted, |value| value.as_integer().filter(|n| range.contains(n)))
    }

    /// A list of numbers in `range`; none where the key is missing.
    pub fn floats(&self, key: &'static str, range: RangeInclusive<f64>) -> Vec<f64> {
        let wanted = format!("a list of numbers from {} to {}", range.start(), range.end());
        self.list(key, &wanted, |value| {
            let number = value.as_float().or_else(|| value.as_integer().map(|n| n as f64));
            number.filter(|x| range.contains(x))
        })
    }

    /// The table under `key`, read with `build`.
    pub fn required_table<T>(&self, key: &'static str, build: impl FnOnce(&Table<'a>) -> T) -> T {
        let found = self.required_item(key).and_then(|(at, item)| {
            let table = item.as_table_like();
            if table.is_none() {
                self.sheet.note(at, format!("`{key}` must be a table, written [{key}]"));
            }
            table.map(|table| (table, at))
        });
        match found {
            Some((table, at)) => self.inner(table, at, build),
            None => build(&Table {
                sheet: self.sheet,
                table: None,
                at: self.at,
                asked: RefCell::default(),
            }),
        }
    }

    pub fn optional_table<T>(
        &self,
        key: &'static str,
        build: impl FnOnce(&Table<'a>) -> T,
    ) -> Option<T> {
        self.has(key).then(|| self.required_table(key, build))
    }

    /// The tables under `key` (`[[key]]`), each read with `build`; none where the key is missing.
    pub fn tables<T>(&self, key: &'static str, mut build: impl FnMut(&Table<'a>) -> T) -> Vec<T> {
        let Some((at, item)) = self.item(key) else { return Vec::new() };
        let wrong = || {
            self.sheet.note(at, format!("`{key}` must be a list of tables, each written [[{key}]]"))
        };
        if let Some(tables) = item.as_array_of_tables() {
            let at_of = |table: &toml_edit::Table| table.span().map_or(at, |span| span.start);
            return tables
                .iter()
                .map(|table| self.inner(table, at_of(table), &mut build))
                .collect();
        }
        let Some(array) = item.as_array() else {
            wrong();
            return Vec::new();
        };
        let mut built = Vec::new();
        for value in array {
            match value.as_inline_table() {
                Some(table) => {
                    let at = value.span().map_or(at, |span| span.start);
                    built.push(self.inner(table, at, &mut build));
                }
                None => wrong(),
            }
        }
        built
    }

    /// Every key of this table with its own table, where the keys are names that the writer
    /// chooses (`[tensors.NAME]`).
    pub fn named_tables<T>(&self, mut build: impl FnMut(&'a str, &Table<'a>) -> T) -> Vec<T> {
        let Some(table) = self.table else { return Vec::new() };
        let mut built = Vec::new();
        for (name, item) in table.iter() {
            let at = key_span(table, name, item).map_or(self.at, |span| span.start);
            match item.as_table_like() {
                Some(inner) => built.push(self.inner(inner, at, |inner| build(name, inner))),
                None => self.sheet.note(at, format!("`{name}` must be a table")),
            }
        }
        self.asked.borrow_mut().insert(ANY_KEY);
        built
    }

    /// Whether the key is there; it counts as asked for.
    pub fn has(&self, key: &'static str) -> bool {
        self.item(key).is_some()
    }

    /// Notes a mistake in the value of `key`, or in this table where it has no such key.
    pub fn mistake(&self, key: &'static str, message: impl Into<String>) {
        if self.table.is_some() {
            let at = self.item(key).map_or(self.at, |(at, _)| at);
            self.sheet.note(at, message.into());
        }
    }

    fn inner<T>(
        &self,
        table: &'a dyn TableLike,
        at: usize,
        build: impl FnOnce(&Table<'a>) -> T,
    ) -> T {
        let inner = Table { sheet: self.sheet, table: Some(table), at, asked: RefCell::default() };
        let value = build(&inner);
        inner.finish();
        value
    }

    /// The value of `key` and where it starts.
    fn item(&self, key: &'static str) -> Option<(usize, &'a Item)> {
        self.asked.borrow_mut().insert(key);
        let table = self.table?;
        let item = table.get(key).filter(|item| !item.is_none())?;
        let at = item.span().or_else(|| key_span(table, key, item));
        Some((at.map_or(self.at, |span| span.start), item))
    }

    fn required_item(&self, key: &'static str) -> Option<(usize, &'a Item)> {
        let found = self.item(key);
        if found.is_none() && self.table.is_some() {
            self.sheet.note(self.at, format!("the key `{key}` is missing"));
        }
        found
    }

    /// A value that `value` understands; `wanted` says in words what it must be.
    pub(crate) fn required<T>(
        &self,
        key: &'static str,
        wanted: &str,
        value: impl FnOnce(&'a Item) -> Option<T>,
    ) -> Option<T> {
        self.required_item(key)?;
        self.optional(key, wanted, value)
    }

    fn optional<T>(
        &self,
        key: &'static str,
        wanted: &str,
        value: impl FnOnce(&'a Item) -> Option<T>,
    ) -> Option<T> {
        let (at, item) = self.item(key)?;
        let value = value(item);
        if value.is_none() {
            self.sheet.note(at, format!("`{key}` must be {wanted}, not {}", shown(item)));
        }
        value
    }

    fn list<T>(
        &self,
        key: &'static str,
        wanted: &str,
        value: impl Fn(&'a toml_edit::Value) -> Option<T>,
    ) -> Vec<T> {
        let Some((at, item)) = self.item(key) else { return Vec::new() };
        let Some(array) = item.as_array() else {
            self.sheet.note(at, format!("`{key}` must be {wanted}, not {}", shown(item)));
            return Vec::new();
        };
        let mut values = Vec::new();
        for element in array {
            match value(element) {
                Some(element) => values.push(element),
                None => {
                    let at = element.span().map_or(at, |span| span.start);
                    self.sheet.note(at, format!("`{key}` must be {wanted}"));
                }
            }
        }
        values
    }

    /// Notes the keys that nobody asked for.
    fn finish(&self) {
        let asked = self.asked.borrow();
        let Some(table) = self.table.filter(|_| !asked.contains(ANY_KEY)) else { return };
        for (key, item) in table.iter().filter(|(key, _)| !asked.contains(key)) {
            let at = key_span(table, key, item).map_or(self.at, |span| span.start);
            let near = asked
                .iter()
                .map(|known| (edits(key, known), known))
                .filter(|(edits, known)| *edits <= 1 + known.len() / 4)
                .min();
            let message = match near {
                Some((_, known)) => format!("unknown key `{key}`: did you mean `{known}`?"),
                None => {
                    let known: Vec<&str> = asked.iter().copied().collect();
                    format!("unknown key `{key}`; known here: {}", known.join(", "))
                }
            };
            self.sheet.note(at, message);
        }
    }
}

/// Marks a table whose keys are all names (no TOML key that is asked for has this spelling).
const ANY_KEY: &str = "*";

fn key_span(table: &dyn TableLike, key: &str, item: &Item) -> Option<Range<usize>> {
    table.key(key).and_then(toml_edit::Key::span).or_else(|| item.span())
}

fn as_text(item: &Item) -> Option<&str> {
    item.as_str().filter(|text| !text.trim().is_empty())
}

fn as_number(item: &Item) -> Option<f64> {
    item.as_float().or_else(|| item.as_integer().map(|n| n as f64))
}

fn chosen<T: Copy>(item: &Item, choices: &[(&str, T)]) -> Option<T> {
    let text = item.as_str()?;
    choices.iter().find(|(name, _)| *name == text).map(|(_, value)| *value)
}

fn names<T>(choices: &[(&str, T)]) -> String {
    let names: Vec<String> = choices.iter().map(|(name, _)| format!("\"{name}\"")).collect();
    format!("one of {}", names.join(", "))
}

fn shown(item: &Item) -> String {
    const LONGEST: usize = 40;
    match item.as_value() {
        Some(value) => {
            let text = value.to_string().trim().replace('\n', " ");
            if text.chars().count() <= LONGEST {
                return text;
            }
            text.chars().take(LONGEST).chain(['…']).collect()
        }
        None => item.type_name().to_owned(),
    }
}

/// Levenshtein's distance.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn mistakes(text: &str, build: impl FnOnce(&Table<'_>)) -> Vec<String> {
        let mistakes = read("x.toml", text, build).unwrap_err();
        mistakes.iter().map(Mistake::to_string).collect()
    }

    #[test]
    fn every_mistake_is_reported_with_its_place() {
        let text = "schema = 2\nwidht = 224\n[encode]\nframes = \"two\"\nfit = \"crop\"\n\
                    means = [1, \"x\"]\n[[files]]\nbytes = 3\n[[files]]\nname = \"ä\"\nbytes = -1\n";
        let found = mistakes(text, |root| {
            root.required_int("schema", 1..=1);
            root.required_int("width", 1..=4096);
            root.required_table("encode", |encode| {
                encode.required_int("frames", 1..=64);
                encode.required_choice("fit", &[("squash", 0), ("cover", 1)]);
                encode.floats("means", 0.0..=255.0);
            });
            root.tables("files", |file| {
                file.required_str("name");
                file.required_int("bytes", 0..=100);
            });
            root.required_table("text", |text| text.required_str("pooling").to_owned());
        });
        assert_eq!(
            found,
            [
                "x.toml:1:1: the key `width` is missing",
                "x.toml:1:1: the key `text` is missing",
                "x.toml:1:10: `schema` must be a whole number from 1 to 1, not 2",
                "x.toml:2:1: unknown key `widht`: did you mean `width`?",
                "x.toml:4:10: `frames` must be a whole number from 1 to 64, not \"two\"",
                "x.toml:5:7: `fit` must be one of \"squash\", \"cover\", not \"crop\"",
                "x.toml:6:13: `means` must be a list of numbers from 0 to 255",
                "x.toml:7:1: the key `name` is missing",
                "x.toml:11:9: `bytes` must be a whole number from 0 to 100, not -1",
            ]
        );
    }

    #[test]
    fn a_syntax_error_has_its_place() {
        let found = mistakes("a = 1\nb = [\n", |_| ());
        assert_eq!(found.len(), 1);
        assert!(
            found[0].starts_with("x.toml:2:") || found[0].starts_with("x.toml:3:"),
            "{found:?}"
        );
    }

    #[test]
    fn a_correct_file_is_read() {
        let read = read("x.toml", "a = 1\n[t.one]\nb = 2\n[t.two]\nb = 3.5\n", |root| {
            let a = root.required_int("a", 0..=9);
            let named = root.required_table("t", |t| {
                t.named_tables(|name, inner| {
                    (name.to_owned(), inner.required_float("b", 0.0..=9.0))
                })
            });
            (a, named, root.optional_str("c").map(str::to_owned))
        });
        let named = vec![("one".to_owned(), 2.0), ("two".to_owned(), 3.5)];
        assert_eq!(read, Ok((1, named, None)));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[a-z=\\[\\]\"'.#\n0-9{},é ]{0,60}") {
            let _ = read("x.toml", &text, |root| {
                root.required_str("a");
                root.tables("b", |b| b.required_int("c", 0..=1));
                root.required_table("d", |d| d.named_tables(|_, e| e.floats("f", 0.0..=1.0)));
            });
        }
    }
}
