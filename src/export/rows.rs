//! The columns of each kind of row, and the rows of a source.

use serde_json::{Value, json};

use super::What;
use crate::error::{Error, Kind, Result};
use crate::library::{ClipId, Place, Reader, RecipeKind, Source};
use crate::media::Cue;
use half::f16;

/// A column of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Column {
    pub name: &'static str,
    pub of: Of,
    pub optional: bool,
}

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    Text,
    /// Text that is JSON; in JSON lines, the value itself.
    Json,
    /// A whole number; of media time, microseconds.
    Int,
    /// Microseconds since 1970, UTC.
    Instant,
    Real,
    Bool,
    /// A list of numbers, each of 32 bits.
    Reals,
    Ints,
}

/// A row's value in a column.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Cell {
    Null,
    Text(String),
    Json(Value),
    Int(i64),
    Real(f64),
    Bool(bool),
    Reals(Vec<f32>),
    Ints(Vec<i32>),
}

const fn column(name: &'static str, of: Of) -> Column {
    Column { name, of, optional: false }
}

const fn optional(name: &'static str, of: Of) -> Column {
    Column { name, of, optional: true }
}

/// The columns of a kind of row, in the order of [`each`]'s cells.
pub(super) fn columns(what: What) -> &'static [Column] {
    match what {
        What::Sources => {
            const {
                &[
                    column("id", Of::Text),
                    column("fingerprint", Of::Text),
                    column("name", Of::Text),
                    column("origin", Of::Text),
                    optional("duration_us", Of::Int),
                    column("state", Of::Text),
                    optional("error", Of::Text),
                    column("gone", Of::Bool),
                    optional("wall_start_us", Of::Instant),
                    optional("wall_origin", Of::Text),
                    column("added_us", Of::Instant),
                    column("locations", Of::Json),
                    column("tags", Of::Json),
                    column("media", Of::Json),
                ]
            }
        }
        What::Clips => {
            const {
                &[
                    column("id", Of::Text),
                    column("source", Of::Text),
                    column("start_us", Of::Int),
                    column("end_us", Of::Int),
                    column("raw_pts", Of::Int),
                    column("frames", Of::Int),
                    optional("shot_start_us", Of::Int),
                    column("visual_word_ids", Of::Ints),
                    optional("embedding", Of::Reals),
                    column("features", Of::Reals),
                ]
            }
        }
        What::Segments => {
            const {
                &[
                    column("source", Of::Text),
                    column("start_us", Of::Int),
                    column("end_us", Of::Int),
                    column("words", Of::Text),
                    optional("language", Of::Text),
                    optional("embedding", Of::Reals),
                    optional("caption", Of::Text),
                    optional("confidence", Of::Real),
                    optional("alignment", Of::Real),
                    optional("picture_embedding", Of::Reals),
                ]
            }
        }
        What::Cues => {
            const {
                &[
                    column("source", Of::Text),
                    column("start_us", Of::Int),
                    column("end_us", Of::Int),
                    column("text", Of::Text),
                    column("cue_kind", Of::Text),
                    optional("language", Of::Text),
                    column("track", Of::Text),
                    optional("confidence", Of::Real),
                    column("words", Of::Json),
                    optional("speaker", Of::Text),
                ]
            }
        }
    }
}

/// What is to be known of all rows of a kind: the schema of the lines, the library, the recipe.
pub(super) fn about(reader: &Reader, what: What) -> Result<Vec<(&'static str, String)>> {
    let mut about = vec![
        ("cinelex.schema", "1".to_owned()),
        ("cinelex.kind", what.kind().to_owned()),
        ("cinelex.library", reader.library_id()?),
    ];
    let recipe = match what {
        What::Clips => reader.current(RecipeKind::Clip)?,
        What::Segments => reader.current(RecipeKind::Segment)?,
        What::Sources | What::Cues => None,
    };
    if let Some(recipe) = recipe {
        about.push(("cinelex.recipe", recipe.id.to_string()));
        about.push(("cinelex.recipe.description", recipe.description.to_string()));
        if let Some(space) = recipe.space {
            about.push(("cinelex.space", space.id));
            about.push(("cinelex.space.dimension", space.dimension.to_string()));
        }
        if let Some(tree) = recipe.tree {
            about.push(("cinelex.tree.branching", tree.branching.to_string()));
            about.push(("cinelex.tree.depth", tree.depth.to_string()));
        }
    }
    Ok(about)
}

/// Calls `add` with each row of a source. A source that was forgotten meanwhile has none.
pub(super) fn each(
    reader: &Reader,
    source: &Source,
    what: What,
    add: &mut dyn FnMut(Vec<Cell>) -> Result<()>,
) -> Result<()> {
    let id = source.id;
    let rows = match what {
        What::Sources => return add(source_row(source)),
        What::Clips => reader.each_clip(id, |clip| {
            let head = clip.head;
            add(vec![
                Cell::Text(ClipId { source: id, start: head.span.start }.to_string()),
                Cell::Text(id.to_string()),
                Cell::Int(head.span.start.0),
                Cell::Int(head.span.end.0),
                Cell::Int(head.raw_pts),
                Cell::Int(i64::from(head.frames)),
                maybe(head.shot_start, |at| Cell::Int(at.0)),
                // A word is a leaf's number, far below 2^31.
                Cell::Ints(clip.words.iter().map(|word| word.0 as i32).collect()),
                vector(&clip.embedding),
                Cell::Reals(clip.features.iter().copied().map(f16::to_f32).collect()),
            ])
        }),
        What::Segments => reader.each_segment(id, |segment| {
            let reading = segment.reading.unwrap_or_default();
            let (caption, confidence) =
                reading.caption.map(|caption| (caption.text, caption.confidence)).unzip();
            add(vec![
                Cell::Text(id.to_string()),
                Cell::Int(segment.span.start.0),
                Cell::Int(segment.span.end.0),
                Cell::Text(segment.text),
                maybe(segment.language, Cell::Text),
                vector(&segment.embedding),
                maybe(caption, Cell::Text),
                maybe(confidence, |confidence| Cell::Real(f64::from(confidence))),
                maybe(reading.alignment, |alignment| Cell::Real(f64::from(alignment))),
                vector(&reading.embedding),
            ])
        }),
        What::Cues => reader.cues(id).and_then(|cues| {
            cues.into_iter().try_for_each(|cue| add(cue_row(&id.to_string(), cue)?))
        }),
    };
    match rows {
        Err(error) if error.kind() == Kind::NotFound => Ok(()),
        rows => rows,
    }
}

fn maybe<T>(value: Option<T>, cell: impl FnOnce(T) -> Cell) -> Cell {
    value.map_or(Cell::Null, cell)
}

/// A vector; null where there is none.
fn vector(halves: &[f16]) -> Cell {
    if halves.is_empty() {
        return Cell::Null;
    }
    Cell::Reals(halves.iter().copied().map(f16::to_f32).collect())
}

fn source_row(source: &Source) -> Vec<Cell> {
    let place = |place: &Place| match place {
        Place::Path(_) => ("path", place.to_string()),
        Place::Url(_) => ("url", place.to_string()),
    };
    let locations = source.locations.iter().map(|location| {
        let (kind, place) = place(&location.place);
        json!({
            "kind": kind,
            "place": place,
            "size_bytes": location.size_bytes,
            "modified_us": location.modified_us,
        })
    });
    let tags = source.tags.iter().map(|(name, value)| (name.clone(), json!(value)));
    vec![
        Cell::Text(source.id.to_string()),
        Cell::Text(source.fingerprint.clone()),
        Cell::Text(source.name.clone()),
        Cell::Text(source.origin.as_str().to_owned()),
        maybe(source.duration, |length| Cell::Int(length.0)),
        Cell::Text(source.state.as_str().to_owned()),
        maybe(source.error.clone(), Cell::Text),
        Cell::Bool(source.is_gone()),
        maybe(source.wall, |wall| Cell::Int(wall.start_us)),
        maybe(source.wall, |wall| Cell::Text(wall.origin.as_str().to_owned())),
        Cell::Int(source.added_us),
        Cell::Json(locations.collect()),
        Cell::Json(Value::Object(tags.collect())),
        Cell::Json(source.media.clone()),
    ]
}

fn cue_row(source: &str, cue: Cue) -> Result<Vec<Cell>> {
    let words = serde_json::to_value(&cue.words)
        .map_err(|cause| Error::internal("cannot write JSON").caused_by(cause))?;
    Ok(vec![
        Cell::Text(source.to_owned()),
        Cell::Int(cue.span.start.0),
        Cell::Int(cue.span.end.0),
        Cell::Text(cue.text),
        Cell::Text(cue.kind.as_str().to_owned()),
        maybe(cue.language, Cell::Text),
        Cell::Text(cue.track),
        maybe(cue.confidence, |confidence| Cell::Real(f64::from(confidence))),
        Cell::Json(words),
        maybe(cue.speaker, Cell::Text),
    ])
}
