//! The features that a codebook is fitted to or measured on.

use std::fmt;
use std::path::{Path, PathBuf};

use ndarray::{Array2, ArrayView1, Axis};
use serde::Serialize;

use super::EncodeArgs;
use crate::cli::Failure;
use crate::error::{Error, Result};
use crate::evaluate::photos::{self, Collection, View};
use crate::library::{Reader, Recipe, RecipeKind};
use crate::model::Models;
use crate::picture::{CELLS, Encoder};

/// Rows that are kept in memory, 2.5 GB of 1,280 features: of more photos or clips, every second is
/// taken, or every third and so on.
const MAX_ROWS: usize = 500_000;

/// Which parts of a photo count, beside the whole of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Cells {
    #[value(name = "3x3")]
    ThreeByThree,
    None,
}

/// Features, one row for each picture, cell or clip, in the order of the inputs.
#[derive(Debug)]
pub struct Samples {
    pub rows: Array2<f32>,
    /// The encoder's id, for the file that is fitted.
    #[cfg(feature = "fit")]
    pub encoder: String,
    pub inputs: Vec<Used>,
}

/// What was used of an input.
#[derive(Debug, Serialize)]
pub struct Used {
    pub input: String,
    /// Of a folder of photos.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub split: Option<String>,
    /// Photos as their captions' file names them, or ids of clips.
    pub used: Vec<String>,
    pub rows: usize,
    /// Photos that could not be decoded, with the reason.
    pub failed: Vec<(String, String)>,
}

impl fmt::Display for Used {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match &self.split {
            Some(split) => format!("photos of the split {split}"),
            None => "clips".to_owned(),
        };
        write!(f, "{}: {} {what}, {} rows", self.input, self.used.len(), self.rows)?;
        for (photo, reason) in &self.failed {
            write!(f, "\n  left out: {photo}: {reason}")?;
        }
        Ok(())
    }
}

impl Samples {
    pub fn any_failed(&self) -> bool {
        self.inputs.iter().any(|input| !input.failed.is_empty())
    }
}

/// An input that was found to be usable.
enum Input {
    Photos(Collection),
    Library(Box<(Reader, Recipe)>),
}

/// Collects the features of folders of photos and of libraries. `progress` gets what is counted, how
/// many are done, of how many; its error ends the collecting.
pub fn collect(
    paths: &[PathBuf],
    args: &EncodeArgs,
    workers: usize,
    progress: &mut dyn FnMut(&'static str, usize, usize) -> Result<()>,
) -> Result<Samples, Failure> {
    let models = Models::open().map_err(Failure::cannot_open)?;
    let manifest = models.manifest(&args.encoder).map_err(Failure::usage)?;
    let dim = manifest.encoder().map_err(Failure::usage)?.features.dim;
    let mut inputs = Vec::new();
    let mut rows = 0;
    for path in paths {
        let input = if Collection::is_at(path) {
            let collection = Collection::read(path).map_err(Failure::usage)?;
            let photos = collection.of_split(&args.split).map_err(Failure::usage)?.len();
            rows += photos * rows_of_photo(args.cells);
            Input::Photos(collection)
        } else {
            let library = open_library(path, &manifest.identity())?;
            rows += usize::try_from(library.0.info()?.clips).unwrap_or(usize::MAX);
            Input::Library(Box::new(library))
        };
        inputs.push((path, input));
    }
    let every = rows.div_ceil(MAX_ROWS).max(1);

    let mut encoder = None;
    let mut rows = Array2::zeros((0, dim));
    let mut used = Vec::new();
    for (path, input) in inputs {
        let before = rows.nrows();
        let mut input = match input {
            Input::Photos(collection) => {
                let encoder = match &mut encoder {
                    Some(encoder) => encoder,
                    none => none.insert(
                        Encoder::load(&models, &manifest, args.device, workers)
                            .map_err(Failure::cannot_open)?,
                    ),
                };
                of_photos(&collection, args, every, (encoder, workers), &mut rows, progress)?
            }
            Input::Library(library) => of_library(&library.0, &library.1, every, &mut rows)?,
        };
        input.input = path.display().to_string();
        input.rows = rows.nrows() - before;
        used.push(input);
    }
    Ok(Samples {
        rows,
        #[cfg(feature = "fit")]
        encoder: manifest.id,
        inputs: used,
    })
}

fn rows_of_photo(cells: Cells) -> usize {
    match cells {
        Cells::ThreeByThree => 1 + CELLS,
        Cells::None => 1,
    }
}

fn of_photos(
    collection: &Collection,
    args: &EncodeArgs,
    every: usize,
    (encoder, workers): (&mut Encoder, usize),
    rows: &mut Array2<f32>,
    progress: &mut dyn FnMut(&'static str, usize, usize) -> Result<()>,
) -> Result<Used> {
    let photos: Vec<_> = collection.of_split(&args.split)?.into_iter().step_by(every).collect();
    let paths: Vec<PathBuf> = photos.iter().map(|photo| collection.path(photo)).collect();
    // They come in no fixed order, and the rows are to have one: that of the captions' file.
    let mut features: Vec<Option<Vec<f32>>> = vec![None; photos.len()];
    let mut failed = Vec::new();
    let mut done = 0;
    photos::encode(encoder, &paths, View::WHOLE, workers, &mut |photo, encoded| {
        match encoded {
            Ok(mut encoded) => {
                if args.cells == Cells::ThreeByThree {
                    encoded.features.append(&mut encoded.cells);
                }
                features[photo] = Some(encoded.features);
            }
            Err(error) => failed.push((photos[photo].image.clone(), error.reason())),
        }
        done += 1;
        progress("photos", done, photos.len())
    })?;
    failed.sort();
    let mut used = Vec::new();
    for (photo, features) in photos.into_iter().zip(features) {
        let Some(features) = features else { continue };
        used.push(photo.image.clone());
        for row in features.chunks(rows.ncols()) {
            push(rows, row)?;
        }
    }
    Ok(Used { input: String::new(), split: Some(args.split.clone()), used, rows: 0, failed })
}

fn of_library(
    reader: &Reader,
    recipe: &Recipe,
    every: usize,
    rows: &mut Array2<f32>,
) -> Result<Used> {
    let mut used = Vec::new();
    let mut clips = 0;
    reader.each_features(&recipe.id, |clip, features| {
        if clips % every == 0 {
            let row: Vec<f32> = features.into_iter().map(half::f16::to_f32).collect();
            push(rows, &row)?;
            used.push(clip.to_string());
        }
        clips += 1;
        Ok(())
    })?;
    Ok(Used { input: String::new(), split: None, used, rows: 0, failed: Vec::new() })
}

fn push(rows: &mut Array2<f32>, row: &[f32]) -> Result<()> {
    rows.push(Axis(0), ArrayView1::from(row)).map_err(|_| {
        Error::corrupt(format!("{} features, where the encoder gives {}", row.len(), rows.ncols()))
    })
}

fn open_library(path: &Path, encoder: &str) -> Result<(Reader, Recipe), Failure> {
    let reader = Reader::open(path).map_err(|error| {
        Failure::usage(
            Error::invalid_input(format!(
                "{} is neither a folder with captions.tsv nor a library",
                path.display()
            ))
            .caused_by(error),
        )
    })?;
    let recipe = reader.current(RecipeKind::Clip)?.ok_or_else(|| {
        Failure::usage(Error::not_found(format!("{} has no clips yet", path.display())))
    })?;
    let indexed_with = recipe.description.get("encoder").and_then(|id| id.as_str());
    if indexed_with != Some(encoder) {
        return Err(Failure::usage(Error::invalid_input(format!(
            "{} was indexed with the encoder {}, not {encoder}: name it with --encoder",
            path.display(),
            indexed_with.unwrap_or("unknown")
        ))));
    }
    Ok((reader, recipe))
}
