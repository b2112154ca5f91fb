//! Captions of films in a library. Nobody wrote down what there is to see, so they are for people to
//! read beside their pictures.

use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::library::{Place, Reader, SegmentRow};
use crate::time::Timestamp;

/// A segment of a film.
#[derive(Debug, Clone, PartialEq)]
pub struct Moment {
    /// The film's name.
    pub film: String,
    pub file: PathBuf,
    /// The middle of the segment.
    pub at: Timestamp,
    pub segment: SegmentRow,
}

/// At most `most` segments of the films in the library at `folder`, spread evenly over all; only of
/// films that are files.
///
/// # Errors
/// As [`Reader::open`].
pub fn moments(folder: &Path, most: usize) -> Result<Vec<Moment>> {
    let reader = Reader::open(folder)?;
    let mut moments = Vec::new();
    for source in reader.sources()? {
        let file = source.locations.iter().find_map(|location| match &location.place {
            Place::Path(file) => Some(file.clone()),
            Place::Url(_) => None,
        });
        let Some(file) = file else { continue };
        moments.extend(reader.show(source.id)?.segments.into_iter().map(|segment| Moment {
            film: source.name.clone(),
            file: file.clone(),
            at: Timestamp(segment.span.start.0.midpoint(segment.span.end.0)),
            segment,
        }));
    }
    let count = moments.len();
    let is_chosen = |place: usize| place * most / count != (place + 1) * most / count;
    let chosen = moments.into_iter().enumerate();
    Ok(chosen.filter(|(place, _)| count <= most || is_chosen(*place)).map(|(_, one)| one).collect())
}
