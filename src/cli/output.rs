//! Texts with times as files: which format, which file for which source, and how each is written.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::{note, one_line, print_line};
use crate::error::{Error, Result};
use crate::source::Location;
use crate::time::{Span, Timestamp};

/// How texts with times are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// WebVTT: subtitles
    Vtt,
    /// SubRip: subtitles
    Srt,
    /// One JSON object a line
    Json,
    /// Plain lines
    Txt,
}

impl Format {
    /// The one that was asked for, or that the output's ending tells.
    pub fn of(json: bool, asked: Option<Format>, output: Option<&Path>) -> Format {
        let ending = output.and_then(Path::extension).and_then(|ending| ending.to_str());
        match (json, asked, ending.map(str::to_ascii_lowercase).as_deref()) {
            (true, ..) | (_, None, Some("json" | "jsonl")) => Format::Json,
            (_, Some(format), _) => format,
            (_, None, Some("vtt")) => Format::Vtt,
            (_, None, Some("srt")) => Format::Srt,
            (_, None, _) => Format::Txt,
        }
    }

    /// Whether all sources can stand in one file, and the ending where they cannot.
    fn ending(self) -> Option<&'static str> {
        match self {
            Format::Vtt => Some("vtt"),
            Format::Srt => Some("srt"),
            Format::Json | Format::Txt => None,
        }
    }
}

/// Where texts go.
#[derive(Debug)]
pub enum Places {
    Out,
    File(PathBuf),
    /// A file for each source, in their order.
    Files(Vec<PathBuf>),
}

impl Places {
    /// # Errors
    /// `InvalidInput` where a file exists already, or several sources would share one that cannot
    /// hold them; as [`Error::io`] where a file cannot be written. `-` is standard output.
    pub fn new(
        output: Option<&Path>,
        format: Format,
        locations: &[Location],
        what: &str,
    ) -> Result<Places> {
        let output = output.filter(|file| *file != Path::new("-"));
        let places = match (output, format.ending()) {
            (None, Some(ending)) if locations.len() > 1 => {
                return Err(Error::invalid_input(format!(
                    "{what} of several sources as {ending} need a folder: name one with -o"
                )));
            }
            (None, _) => return Ok(Places::Out),
            (Some(folder), Some(ending)) if folder.is_dir() || locations.len() > 1 => {
                Places::Files(locations.iter().map(|of| file_for(folder, of, ending)).collect())
            }
            (Some(file), _) => Places::File(file.to_owned()),
        };
        let mut names = BTreeSet::new();
        for file in places.files() {
            if file.exists() || !names.insert(file) {
                return Err(Error::invalid_input(format!(
                    "{} exists already, or two sources would be written to it: name another place \
                     with -o",
                    file.display()
                )));
            }
        }
        places.files().iter().try_for_each(|file| make_way(file))?;
        Ok(places)
    }

    fn files(&self) -> &[PathBuf] {
        match self {
            Places::Out => &[],
            Places::File(file) => std::slice::from_ref(file),
            Places::Files(files) => files,
        }
    }
}

/// Makes a file's folder, and makes sure that the file can be written there: if it cannot, hours of work would
/// have been for nothing.
fn make_way(file: &Path) -> Result<()> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder).map_err(|cause| Error::io(folder, "make", cause))?;
    }
    File::create_new(file)
        .and_then(|_| fs::remove_file(file))
        .map_err(|cause| Error::io(file, "write", cause))
}

/// `FOLDER/film.vtt` for `tapes/film.mp4`.
fn file_for(folder: &Path, location: &Location, ending: &str) -> PathBuf {
    let name = location.to_string();
    let name = name.rsplit('/').next().unwrap_or_default();
    let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
    folder.join(format!("{stem}.{ending}"))
}

/// Writes the texts of sources to their places.
#[derive(Debug)]
pub struct Texts {
    places: Places,
    /// What goes into one file together; `None` where nothing came yet.
    together: Option<String>,
}

impl Texts {
    pub fn new(places: Places) -> Texts {
        Texts { places, together: None }
    }

    /// Writes the text of the source of this number, or keeps it for the file that all share.
    pub fn add(&mut self, source: usize, text: &str) -> Result<()> {
        match &self.places {
            Places::Files(files) => write_new(&files[source], text),
            Places::File(_) => {
                self.together.get_or_insert_default().push_str(text);
                Ok(())
            }
            Places::Out if text.is_empty() => Ok(()),
            Places::Out => print_line(text.trim_end_matches('\n')),
        }
    }

    /// Writes what is left, and says which files there are. A source that says nothing has a file that says so; a
    /// run of which nothing came leaves none in the way of the next.
    pub fn finish(self) -> Result<()> {
        if let (Places::File(file), Some(together)) = (&self.places, &self.together) {
            write_new(file, together)?;
        }
        for file in self.places.files().iter().filter(|file| file.exists()) {
            note(&format!("wrote {}", one_line(&file.display().to_string())));
        }
        Ok(())
    }
}

fn write_new(path: &Path, text: &str) -> Result<()> {
    File::create_new(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|cause| Error::io(path, "write", cause))
}

/// WebVTT. Texts may have several lines.
pub fn vtt<'a>(texts: impl Iterator<Item = (Span, &'a str)>) -> String {
    let cues = texts.map(|(span, text)| {
        let (start, end) = (clock(span.start, '.'), clock(span.end, '.'));
        format!("\n{start} --> {end}\n{}\n", plain(text))
    });
    format!("WEBVTT\n{}", cues.collect::<String>())
}

/// SubRip.
pub fn srt<'a>(texts: impl Iterator<Item = (Span, &'a str)>) -> String {
    let cues = texts.enumerate().map(|(number, (span, text))| {
        let (start, end) = (clock(span.start, ','), clock(span.end, ','));
        format!("{}\n{start} --> {end}\n{}\n\n", number + 1, plain(text))
    });
    cues.collect()
}

/// Text that is no markup in either format of subtitles, line by line.
fn plain(text: &str) -> String {
    let lines: Vec<String> = text.lines().map(one_line).collect();
    lines.join("\n").replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// `01:02:03.456`.
fn clock(at: Timestamp, point: char) -> String {
    let millis = at.0.max(0) / 1_000;
    let (secs, millis) = (millis / 1_000, millis % 1_000);
    let (hours, minutes, secs) = (secs / 3_600, secs / 60 % 60, secs % 60);
    format!("{hours:02}:{minutes:02}:{secs:02}{point}{millis:03}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_as_subtitles_have_them() {
        assert_eq!(clock(Timestamp(3_723_456_999), '.'), "01:02:03.456");
        assert_eq!(clock(Timestamp(0), ','), "00:00:00,000");
        assert_eq!(clock(Timestamp(360_000_000_000), '.'), "100:00:00.000");
    }

    #[test]
    fn subtitles_of_several_sources_need_a_folder_and_nothing_is_overwritten() {
        let film = |name: &str| Location::File(name.into());
        let two = [film("a/one.mp4"), film("b/two.mkv")];
        assert!(Places::new(None, Format::Vtt, &two, "x").is_err());
        for out in [None, Some(Path::new("-"))] {
            assert!(matches!(Places::new(out, Format::Txt, &two, "x"), Ok(Places::Out)));
        }
        let folder = tempfile::tempdir().unwrap();
        let places = Places::new(Some(folder.path()), Format::Srt, &two, "x").unwrap();
        assert_eq!(places.files()[1], folder.path().join("two.srt"));
        let same = [film("a/one.mp4"), film("b/one.mkv")];
        assert!(Places::new(Some(folder.path()), Format::Srt, &same, "x").is_err());
        fs::write(folder.path().join("two.srt"), "mine").unwrap();
        assert!(Places::new(Some(folder.path()), Format::Srt, &two, "x").is_err());
    }

    #[test]
    fn where_a_file_goes_is_made_or_refused_before_the_work() {
        let film = [Location::File("film.mp4".into())];
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("new/newer/film.json");
        let places = Places::new(Some(&file), Format::Json, &film, "x").unwrap();
        // Nothing is in the way of a run after this one.
        assert!(file.parent().unwrap().is_dir() && !file.exists());
        let mut texts = Texts::new(places);
        texts.add(0, "").unwrap();
        texts.finish().unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "");
        let below = file.join("film.json");
        assert!(Places::new(Some(&below), Format::Json, &film, "x").is_err());
        let unwritten = folder.path().join("none.txt");
        let places = Places::new(Some(&unwritten), Format::Txt, &film, "x").unwrap();
        Texts::new(places).finish().unwrap();
        assert!(!unwritten.exists());
    }

    #[test]
    fn a_files_ending_tells_its_format() {
        let of = |name: &str| Format::of(false, None, Some(Path::new(name)));
        assert_eq!((of("a.vtt"), of("A.VTT")), (Format::Vtt, Format::Vtt));
        assert_eq!((of("a.Srt"), of("a.JSONL")), (Format::Srt, Format::Json));
        assert_eq!((of("a.text"), of("vtt")), (Format::Txt, Format::Txt));
    }
}
