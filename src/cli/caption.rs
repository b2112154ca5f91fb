//! `cinelex caption`: what there is to see in films and pictures, without a library.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::index::distinct;
use super::progress::IndexProgress;
use super::{CommandResult, Failure, Outcome, caption_line, interrupt, note, one_line, print_line};
use crate::error::{Error, Result};
use crate::library::{Place, Reader, SegmentRow, Shown, Writer};
use crate::model::{Device, Models};
use crate::pipeline::{self, Loaded, Options, Pipeline, Progress, SourceReport, SourceState};
use crate::source::{Location, listing};
use crate::time::Timestamp;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Films and still images: files, folders, patterns, or http(s) addresses; `-` reads such names from
    /// standard input, one a line or separated by NUL
    #[arg(required = true, value_name = "SOURCE|IMAGE")]
    sources: Vec<std::ffi::OsString>,
    /// How captions are written; by the ending of FILE unless told otherwise, or else txt
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Write to this new file; with several films as vtt or srt, into this folder, a file each
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Beginnings of a caption that are followed at a time, in place of what the captioner's manifest
    /// says
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=16))]
    beams: Option<u16>,
    /// What writes captions, in place of what the pipeline names: a model's id or a manifest
    #[arg(long, value_name = "ID|FILE")]
    captioner: Option<String>,
    /// What to compute: a built-in pipeline (see `cinelex pipeline list`) or a file
    #[arg(long, default_value = "default", value_name = "NAME|FILE")]
    pipeline: String,
    /// Decoders side by side; as many as there are processors unless told otherwise
    #[arg(long, value_name = "N")]
    workers: Option<NonZeroUsize>,
    /// Where the CNN runs: auto takes CUDA where it is there
    #[arg(long, value_enum, default_value_t)]
    device: Device,
    /// The same as --format json
    #[arg(long, conflicts_with = "format")]
    json: bool,
}

/// How captions are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// WebVTT: subtitles
    Vtt,
    /// SubRip: subtitles
    Srt,
    /// One JSON object a line: kind "caption" for each segment
    Json,
    /// A line a segment, or an image
    Txt,
}

impl Format {
    fn of(args: &Args) -> Format {
        let ending = args.output.as_deref().and_then(Path::extension);
        match (args.json, args.format, ending.and_then(|ending| ending.to_str())) {
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

pub fn run(args: Args) -> CommandResult {
    let models = Models::open().map_err(Failure::cannot_open)?;
    let mut pipeline = Pipeline::load(&args.pipeline, &models).map_err(Failure::usage)?;
    if let Some(captioner) = &args.captioner {
        pipeline.set_captioner(captioner, &models).map_err(Failure::usage)?;
    }
    if pipeline.captioner.is_none() {
        return Err(Failure::usage(Error::invalid_input(
            "there is no captioner for this pipeline: train one with `cinelex train`, and name its \
             manifest with --captioner",
        )));
    }
    let format = Format::of(&args);
    let (locations, missing) = distinct(listing::expand(&args.sources, true));
    let places = Places::new(args.output.as_deref(), format, &locations).map_err(Failure::usage)?;
    let cancel = interrupt::cancel_on_signal()?;
    let cores = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let mut loaded =
        Loaded::load(pipeline, &models, args.device, cores.get()).map_err(Failure::cannot_open)?;
    if let Some(beams) = args.beams {
        loaded.set_beams(usize::from(beams));
    }
    // A library for as long as this takes: its record is what segments are made from.
    let scratch =
        tempfile::tempdir().map_err(|cause| Error::io(std::env::temp_dir(), "write to", cause))?;
    let folder = scratch.path().join("library");
    let (library, reader) = (Writer::open(&folder)?, Reader::open(&folder)?);

    let bars = IndexProgress::new(locations.len() + missing.len());
    missing.iter().for_each(|report| bars.show(&Progress::Finished(report)));
    let options = Options {
        workers: args.workers.unwrap_or(cores),
        batch: pipeline::DEFAULT_BATCH,
        tags: Vec::new(),
        verify: false,
        take_over: false,
        cancel,
    };
    let show = |progress: &Progress<'_>| bars.show(progress);
    let report = pipeline::index(locations.clone(), library, reader, loaded, options, &show)?;
    bars.finish();
    write_all(&Reader::open(&folder)?, &locations, &places, format)?;
    let failed = missing.len() + report.count(SourceState::Failed);
    if format == Format::Json {
        let failed = |report: &&SourceReport| report.state == SourceState::Failed;
        for report in missing.iter().chain(report.sources.iter().filter(failed)) {
            super::print_json("source_report", report)?;
        }
    }
    Ok(if report.interrupted {
        Outcome::Interrupted
    } else if failed > 0 {
        Outcome::SomeFailed
    } else {
        Outcome::Done
    })
}

/// Where captions go.
#[derive(Debug)]
enum Places {
    Out,
    File(PathBuf),
    /// A file for each source, in their order.
    Files(Vec<PathBuf>),
}

impl Places {
    /// # Errors
    /// `InvalidInput` where a file exists already, or several sources would share one that cannot
    /// hold them.
    fn new(output: Option<&Path>, format: Format, locations: &[Location]) -> Result<Places> {
        let places = match (output, format.ending()) {
            (None, Some(ending)) if locations.len() > 1 => {
                return Err(Error::invalid_input(format!(
                    "captions of several sources as {ending} need a folder: name one with -o"
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

/// `FOLDER/film.vtt` for `tapes/film.mp4`.
fn file_for(folder: &Path, location: &Location, ending: &str) -> PathBuf {
    let name = location.to_string();
    let name = name.rsplit('/').next().unwrap_or_default();
    let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
    folder.join(format!("{stem}.{ending}"))
}

/// Writes the captions of all sources that are done, in their order.
fn write_all(
    reader: &Reader,
    locations: &[Location],
    places: &Places,
    format: Format,
) -> Result<()> {
    if let Places::Files(files) = places
        && let Some(folder) = files.first().and_then(|file| file.parent())
    {
        std::fs::create_dir_all(folder).map_err(|cause| Error::io(folder, "make", cause))?;
    }
    let mut together = String::new();
    for (number, location) in locations.iter().enumerate() {
        let Some(shown) = found(reader, location)? else { continue };
        let text = format.written(&location.to_string(), &shown)?;
        match places {
            Places::Files(files) => write_new(&files[number], &text)?,
            Places::File(_) => together.push_str(&text),
            Places::Out if text.is_empty() => {}
            Places::Out => print_line(text.trim_end_matches('\n'))?,
        }
    }
    // A run of which nothing came leaves no file in the way of the next.
    if let Places::File(file) = places
        && !together.is_empty()
    {
        write_new(file, &together)?;
    }
    for file in places.files().iter().filter(|file| file.exists()) {
        note(&format!("wrote {}", one_line(&file.display().to_string())));
    }
    Ok(())
}

fn write_new(path: &Path, text: &str) -> Result<()> {
    File::create_new(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|cause| Error::io(path, "write", cause))
}

/// What was made of a source; `None` where it failed or was not come to.
fn found(reader: &Reader, location: &Location) -> Result<Option<Shown>> {
    let place = match location {
        Location::File(path) => {
            Place::Path(std::path::absolute(path).map_err(|cause| Error::io(path, "find", cause))?)
        }
        Location::Url(address) => Place::url(address),
    };
    let Some(source) = reader.source_at(&place)? else { return Ok(None) };
    let shown = reader.show(source.id)?;
    Ok((!shown.segments.is_empty()).then_some(shown))
}

#[derive(Serialize)]
struct CaptionLine<'a> {
    schema: u32,
    kind: &'static str,
    source: &'a str,
    start_us: Timestamp,
    end_us: Timestamp,
    caption: Option<&'a str>,
    confidence: Option<f32>,
    words: &'a str,
    alignment: Option<f32>,
}

impl Format {
    /// The captions of a source.
    fn written(self, name: &str, shown: &Shown) -> Result<String> {
        let with_captions = || {
            let captions = shown
                .segments
                .iter()
                .filter_map(|segment| Some((segment.span, plain(&segment.caption.as_ref()?.text))));
            captions.enumerate()
        };
        Ok(match self {
            Format::Vtt => {
                let cues = with_captions().map(|(_, (span, text))| {
                    format!("\n{} --> {}\n{text}\n", clock(span.start, '.'), clock(span.end, '.'))
                });
                format!("WEBVTT\n{}", cues.collect::<String>())
            }
            Format::Srt => with_captions()
                .map(|(number, (span, text))| {
                    let (start, end) = (clock(span.start, ','), clock(span.end, ','));
                    format!("{}\n{start} --> {end}\n{text}\n\n", number + 1)
                })
                .collect(),
            Format::Json => shown
                .segments
                .iter()
                .map(|segment| json_line(name, segment))
                .collect::<Result<_>>()?,
            Format::Txt => lines(name, shown),
        })
    }
}

fn json_line(name: &str, segment: &SegmentRow) -> Result<String> {
    let line = CaptionLine {
        schema: 1,
        kind: "caption",
        source: name,
        start_us: segment.span.start,
        end_us: segment.span.end,
        caption: segment.caption.as_ref().map(|caption| &caption.text[..]),
        confidence: segment.caption.as_ref().map(|caption| caption.confidence),
        words: &segment.text,
        alignment: segment.alignment,
    };
    let line = serde_json::to_string(&line)
        .map_err(|cause| Error::internal("cannot write JSON").caused_by(cause))?;
    Ok(line + "\n")
}

/// A still image is one line, a film its name and a line a segment.
fn lines(name: &str, shown: &Shown) -> String {
    let caption = |segment: &SegmentRow| match &segment.caption {
        Some(caption) => caption_line(caption, segment.alignment),
        None => "(no caption)".to_owned(),
    };
    let name = one_line(name);
    // FFmpeg knows still images by what is in them, or by the endings of their names.
    let media = &shown.source.media;
    let is_still = media["is_still"] == true || media["container"] == "image2";
    match &shown.segments[..] {
        [segment] if is_still => format!("{name}: {}\n", caption(segment)),
        segments => {
            let line = |segment: &SegmentRow| format!("  {}  {}\n", segment.span, caption(segment));
            format!("{name}\n{}", segments.iter().map(line).collect::<String>())
        }
    }
}

/// Text that is no markup in either format of subtitles.
fn plain(text: &str) -> String {
    one_line(text).replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
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
        assert!(Places::new(None, Format::Vtt, &two).is_err());
        assert!(matches!(Places::new(None, Format::Txt, &two), Ok(Places::Out)));
        let folder = tempfile::tempdir().unwrap();
        let places = Places::new(Some(folder.path()), Format::Srt, &two).unwrap();
        assert_eq!(places.files()[1], folder.path().join("two.srt"));
        let same = [film("a/one.mp4"), film("b/one.mkv")];
        assert!(Places::new(Some(folder.path()), Format::Srt, &same).is_err());
        std::fs::write(folder.path().join("two.srt"), "mine").unwrap();
        assert!(Places::new(Some(folder.path()), Format::Srt, &two).is_err());
    }
}
