//! `cinelex caption`: what there is to see in films and pictures, without a library.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use serde::Serialize;

use super::index::{cores, describers, distinct};
use super::output::{self, Format, Places, Texts};
use super::progress::IndexProgress;
use super::{CommandResult, Failure, Outcome, caption_line, interrupt, one_line};
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
    /// Write to this new file, in place of standard output; with several films as vtt or srt, into this folder, a
    /// file each
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
    let format = Format::of(args.json, args.format, args.output.as_deref());
    let (locations, missing) = distinct(listing::expand(&args.sources, true));
    let places = Places::new(args.output.as_deref(), format, &locations, "captions")
        .map_err(Failure::output)?;
    let cancel = interrupt::cancel_on_signal()?;
    let cores = cores();
    let mut loaded = Loaded::load(pipeline, &models, args.device, cores.get(), describers())
        .map_err(Failure::cannot_open)?;
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
        #[cfg(feature = "speech")]
        hearing: None,
        #[cfg(feature = "speech")]
        listeners: cores,
        cancel,
    };
    let show = |progress: &Progress<'_>| bars.show(progress);
    let report = pipeline::index(locations.clone(), library, reader, loaded, options, &show)?;
    bars.finish();
    write_all(&Reader::open(&folder)?, &locations, places, format)?;
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

/// Writes the captions of all sources that are done, in their order.
fn write_all(
    reader: &Reader,
    locations: &[Location],
    places: Places,
    format: Format,
) -> Result<()> {
    let mut texts = Texts::new(places);
    for (number, location) in locations.iter().enumerate() {
        let Some(shown) = found(reader, location)? else { continue };
        texts.add(number, &written(format, &location.to_string(), &shown)?)?;
    }
    texts.finish()
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

/// The captions of a source.
fn written(format: Format, name: &str, shown: &Shown) -> Result<String> {
    let with_captions = || {
        let captioned = shown.segments.iter();
        captioned.filter_map(|segment| Some((segment.span, &segment.caption.as_ref()?.text[..])))
    };
    Ok(match format {
        Format::Vtt => output::vtt(with_captions()),
        Format::Srt => output::srt(with_captions()),
        Format::Json => {
            shown.segments.iter().map(|segment| json_line(name, segment)).collect::<Result<_>>()?
        }
        Format::Txt => lines(name, shown),
    })
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
