//! `cinelex index`: sources into a library.

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use super::progress::IndexProgress;
use super::{CommandResult, Failure, Outcome, counted, interrupt, note, print_json, print_line};
use crate::error::{Error, Kind, Result};
use crate::library::{Origin, Place, Reader, Writer};
use crate::model::{Commercial, Device, Models};
#[cfg(feature = "speech")]
use crate::pipeline::Hearing;
use crate::pipeline::{
    self, Loaded, Made, Options, Pipeline, Progress, RunReport, SourceReport, SourceState,
    commercial_only,
};
use crate::source::{Location, listing};

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Files, folders (with what is in them), patterns such as 'tapes/*.mp4', or http(s) addresses; or
    /// live streams (rtsp, rtsps, srt, udp, tcp), which are read until Ctrl-C;
    /// `-` reads such names from standard input, one a line or separated by NUL. Without any: all that
    /// the library has, where it was last seen
    sources: Vec<std::ffi::OsString>,
    /// The library's folder; made if it is not there
    #[arg(long, value_name = "DIR")]
    library: PathBuf,
    /// What to compute: a built-in pipeline (see `cinelex pipeline list`) or a file
    #[arg(long, default_value = "default", value_name = "NAME|FILE")]
    pipeline: String,
    /// What writes captions, in place of what the pipeline names: a model's id or a manifest; none
    #[arg(long, value_name = "ID|FILE")]
    captioner: Option<String>,
    /// Whether people are listened to: where there is sound and no subtitles, always, or never. Live streams
    /// only with always, or where their list says so
    #[cfg(feature = "speech")]
    #[arg(long, value_enum, default_value_t, value_name = "WHEN")]
    listen: Listen,
    /// What reads the words that are said, in place of the built-in models: a model's id or a manifest;
    /// the first that reads a language is taken for it
    #[cfg(feature = "speech")]
    #[arg(long, value_name = "ID|FILE")]
    speech_model: Vec<String>,
    /// Decoders side by side; as many as there are processors unless told otherwise
    #[arg(long, value_name = "N")]
    workers: Option<NonZeroUsize>,
    /// Pictures that the CNN takes at a time, at most: fewer take less memory
    #[arg(
        long,
        value_name = "N",
        default_value_t = pipeline::DEFAULT_BATCH,
        value_parser = clap::value_parser!(u16).range(1..=256)
    )]
    batch: u16,
    /// Where the CNN runs: auto takes CUDA where it is there. Live streams are decoded in hardware where
    /// there is some for their codec, but with cpu
    #[arg(long, value_enum, default_value_t)]
    device: Device,
    /// Take still images too when looking through folders
    #[arg(long)]
    images: bool,
    /// Mark every source of this run; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = super::tag)]
    tag: Vec<(String, String)>,
    /// Read every byte of the files that the library knows: a change that leaves a file's size, time
    /// and sampled parts as they were makes it another source
    #[arg(long)]
    verify: bool,
    /// Let this pipeline take over from the one that the library was read with even though sources
    /// are left that only that one has read, and that are gone or can't be read: what it made of
    /// them is deleted
    #[arg(long)]
    take_over: bool,
    /// Use only models whose licences allow this: those that are needed and do not are refused, and
    /// what can be done without (visual words) is left out
    #[arg(long, value_name = "USE", value_enum)]
    require_licence: Option<Use>,
    /// One JSON object a line: a `source_report` for each, and a `run` at the end
    #[arg(long)]
    json: bool,
    /// Show at the end where the time went, stage by stage; of live streams, --json does
    #[arg(short, long)]
    verbose: bool,
    // Last, since its heading would stand above all that follows.
    #[cfg(feature = "live")]
    #[command(flatten)]
    live: super::live::LiveArgs,
}

/// Which sources are listened to.
#[cfg(feature = "speech")]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
enum Listen {
    /// Those with sound and no subtitles.
    #[default]
    Missing,
    /// Those with sound.
    Always,
    Never,
}

#[cfg(all(feature = "speech", feature = "live"))]
impl Listen {
    /// Which live streams are listened to: only those of which that is asked. Returns what that needs.
    fn to(self, streams: &mut [pipeline::LiveSource]) -> Listen {
        for stream in &mut *streams {
            stream.listen = match self {
                Listen::Missing => stream.listen,
                Listen::Always => true,
                Listen::Never => false,
            };
        }
        if streams.iter().any(|stream| stream.listen) { Listen::Always } else { Listen::Never }
    }
}

/// What a licence is to allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Use {
    Commercial,
}

pub fn run(args: Args) -> CommandResult {
    let models = Models::open().map_err(Failure::cannot_open)?;
    let mut pipeline =
        Pipeline::load(&args.pipeline, &models).map_err(|error| match error.kind() {
            Kind::InvalidInput => Failure::usage(error),
            _ => Failure::cannot_open(error),
        })?;
    if let Some(captioner) = &args.captioner {
        pipeline.set_captioner(captioner, &models).map_err(Failure::usage)?;
    }
    let mut left_out = Vec::new();
    if pipeline.is_commercial || args.require_licence == Some(Use::Commercial) {
        left_out = commercial_only(&mut pipeline, &models).map_err(Failure::usage)?;
        for what in &left_out {
            note(&format!("left out: {what}"));
        }
    }
    let is_path =
        |source: &std::ffi::OsString| matches!(Location::from_text(source), Location::File(_));
    if args.images && !args.sources.iter().any(is_path) {
        return Err(without_effect("--images is for looking through folders, and none is named"));
    }
    #[cfg(feature = "live")]
    let mut streams = args.live.streams(&args.sources, args.images)?;
    #[cfg(feature = "live")]
    if streams.is_some() {
        if args.workers.is_some() {
            return Err(without_effect(
                "--workers is for files: a live stream has its own decoder",
            ));
        }
        if args.verify {
            return Err(without_effect("--verify is for files, and these are live streams"));
        }
    }
    #[cfg(feature = "speech")]
    let hearing = {
        let is_commercial = pipeline.is_commercial || args.require_licence == Some(Use::Commercial);
        #[cfg(feature = "live")]
        let when = streams.as_deref_mut().map_or(args.listen, |streams| args.listen.to(streams));
        #[cfg(not(feature = "live"))]
        let when = args.listen;
        hearing(&args, when, &models, is_commercial, &mut left_out)?
    };
    let cancel = interrupt::cancel_on_signal()?;
    #[cfg(feature = "live")]
    if let Some(streams) = streams {
        // Frames go first.
        let (loaded, library, reader) = open(&args, pipeline, &models, NonZeroUsize::MIN)?;
        let options = args.live.options(
            args.batch,
            args.device != Device::Cpu,
            args.tag,
            args.take_over,
            #[cfg(feature = "speech")]
            hearing,
            cancel,
        );
        return super::live::run(streams, library, reader, loaded, options, args.json);
    }
    let found = if args.sources.is_empty() {
        known_places(&args.library)?
    } else {
        listing::expand(&args.sources, args.images)
    };
    // Without files, what is left to be done is with what is stored.
    if found.is_empty() && (!args.sources.is_empty() || is_empty(&args.library)?) {
        return Err(Failure::usage(Error::invalid_input("the list of sources is empty")));
    }
    let (locations, missing) = distinct(found);
    let is_new = !args.library.exists();
    let (loaded, library, reader) = open(&args, pipeline, &models, describers())?;
    let bars = (!args.json).then(|| IndexProgress::new(locations.len() + missing.len()));
    let show = |progress: &Progress<'_>| match (&bars, progress) {
        (Some(bars), progress) => bars.show(progress),
        (None, Progress::Finished(report)) => {
            // Whoever read this may have had enough; the work goes on, and the end tells.
            let _ = print_json("source_report", report);
        }
        (None, _) => {}
    };
    for report in &missing {
        show(&Progress::Finished(report));
    }
    let options = Options {
        workers: args.workers.unwrap_or_else(cores),
        batch: args.batch,
        tags: args.tag,
        verify: args.verify,
        take_over: args.take_over,
        #[cfg(feature = "speech")]
        hearing,
        #[cfg(feature = "speech")]
        listeners: cores(),
        cancel: cancel.clone(),
    };
    let indexed = pipeline::index(locations, library, reader, loaded, options, &show);
    // A first run of which nothing came leaves no folder behind that was not there.
    let removed = if is_new { Writer::remove_if_empty(&args.library) } else { Ok(()) };
    let mut report = indexed?;
    removed?;
    report.sources.splice(0..0, missing);
    report.left_out = left_out;
    if let Some(bars) = &bars {
        bars.finish();
    }
    if args.json {
        print_json("run", &report)?;
    } else {
        print_report(&report, args.verbose)?;
    }
    Ok(if report.interrupted {
        Outcome::Interrupted
    } else if report.count(SourceState::Failed) > 0 {
        Outcome::SomeFailed
    } else {
        Outcome::Done
    })
}

/// An option that would change nothing.
fn without_effect(why: &str) -> Failure {
    Failure::usage(Error::invalid_input(format!("{why}: leave it out")))
}

/// What listens. Where the built-in models are not set up, nobody does, and how to get them is said.
#[cfg(feature = "speech")]
fn hearing(
    args: &Args,
    when: Listen,
    models: &Models,
    is_commercial: bool,
    left_out: &mut Vec<String>,
) -> Result<Option<Hearing>, Failure> {
    if when == Listen::Never {
        return Ok(None);
    }
    let hearing = match Hearing::of(models, &args.speech_model, when == Listen::Always) {
        Ok(hearing) => hearing,
        Err(error)
            if error.kind() == Kind::NotFound
                && when == Listen::Missing
                && args.speech_model.is_empty() =>
        {
            note(&format!(
                "Nobody is listened to: {}. `--listen never` says that this is meant.",
                error.reason()
            ));
            return Ok(None);
        }
        Err(error) if error.kind() == Kind::InvalidInput => return Err(Failure::usage(error)),
        Err(error) => return Err(Failure::cannot_open(error)),
    };
    let refused = hearing.manifests().find(|manifest| manifest.commercial != Commercial::Yes);
    if let Some(manifest) = refused.filter(|_| is_commercial) {
        let what =
            format!("speech, since the licence of model {} is not for that use", manifest.id);
        note(&format!("left out: {what}"));
        left_out.push(what);
        return Ok(None);
    }
    Ok(Some(hearing))
}

pub(super) fn cores() -> NonZeroUsize {
    std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

/// Networks that write captions side by side. Those are a tenth of the work or less, but all that is left when the last
/// film is read; one takes 90 MB.
pub(super) fn describers() -> NonZeroUsize {
    let cores = cores().get();
    NonZeroUsize::new(cores.div_ceil(4).clamp(2, 8).min(cores)).unwrap_or(NonZeroUsize::MIN)
}

/// Loads the models and opens the library.
fn open(
    args: &Args,
    pipeline: Pipeline,
    models: &Models,
    describers: NonZeroUsize,
) -> Result<(Loaded, Writer, Reader), Failure> {
    let loaded = Loaded::load(pipeline, models, args.device, cores().get(), describers)
        .map_err(Failure::cannot_open)?;
    #[cfg(feature = "live")]
    let keep = args.live.keep;
    #[cfg(not(feature = "live"))]
    let keep = None;
    let library = Writer::open_keeping(&args.library, keep).map_err(Failure::cannot_open)?;
    let reader = Reader::open(&args.library).map_err(Failure::cannot_open)?;
    tell_licence(models, &loaded, &reader)?;
    Ok((loaded, library, reader))
}

/// Each source once, and reports of those that are not there.
pub(super) fn distinct(found: Vec<Result<Location>>) -> (Vec<Location>, Vec<SourceReport>) {
    let mut locations = Vec::new();
    let mut missing = Vec::new();
    let mut seen = HashSet::new();
    for location in found {
        match location {
            Ok(location) if !seen.insert(location.clone()) => {}
            Ok(location) => locations.push(location),
            Err(error) => {
                let source = error.source_name().unwrap_or("?").to_owned();
                missing.push(SourceReport::failed(source, &error));
            }
        }
    }
    (locations, missing)
}

/// Says, the first time that a captioner is used for a library, that it is, or may be, not for every use.
fn tell_licence(models: &Models, loaded: &Loaded, reader: &Reader) -> Result<(), Failure> {
    let Some(captioner) = &loaded.pipeline.captioner else { return Ok(()) };
    let manifest = models.manifest(captioner).map_err(Failure::cannot_open)?;
    let is_for = match manifest.commercial {
        Commercial::Yes => return Ok(()),
        Commercial::No => "which is not for commercial use",
        Commercial::Unknown => "whose manifest does not say whether it is for commercial use",
    };
    if !reader.knows(&loaded.segment_recipe.id)? {
        note(&format!(
            "Captions are written by {}, {is_for} (licence: {}). `--captioner none` switches them off; \
             `cinelex train` makes a captioner of your own.",
            manifest.id, manifest.licence
        ));
    }
    Ok(())
}

/// Whether a library has no sources.
fn is_empty(library: &Path) -> Result<bool, Failure> {
    let sources = Reader::open(library).and_then(|reader| reader.sources());
    Ok(sources.map_err(Failure::cannot_open)?.is_empty())
}

/// Where the sources of a library were last seen: at the first place that is there, or else the
/// last that was.
fn known_places(library: &Path) -> Result<Vec<Result<Location>>, Failure> {
    let reader = Reader::open(library).map_err(Failure::cannot_open)?;
    let sources = reader.sources().map_err(Failure::cannot_open)?;
    let files = sources.iter().filter(|source| source.origin != Origin::Live);
    let locations = files.filter_map(|source| {
        let places = || source.locations.iter().map(|location| &location.place);
        let is_there = |place: &&Place| matches!(place, Place::Path(path) if path.exists());
        match places().find(is_there).or_else(|| places().next())? {
            Place::Path(path) => Some(Ok(Location::File(path.clone()))),
            // Nobody can be asked for what the hash of a query stands for.
            Place::Url(url) => (!url.contains('?')).then(|| Ok(Location::Url(url.clone()))),
        }
    });
    Ok(locations.collect())
}

fn print_report(report: &RunReport, verbose: bool) -> Result<(), Error> {
    let count = |state| report.count(state);
    let sum = |of: fn(&SourceReport) -> u64| report.sources.iter().map(of).sum::<u64>();
    let mut parts = vec![format!("{} indexed", count(SourceState::Indexed))];
    for (state, word) in [
        (SourceState::Unchanged, "unchanged"),
        (SourceState::Interrupted, "interrupted"),
        (SourceState::Failed, "failed"),
    ] {
        if count(state) > 0 {
            parts.push(format!("{} {word}", count(state)));
        }
    }
    if report.not_begun > 0 {
        parts.push(format!("{} not begun", report.not_begun));
    }
    let verified = report.sources.iter().filter(|source| source.verified).count();
    if verified > 0 {
        parts.push(format!("{verified} verified"));
    }
    print_line(&format!(
        "{}: {}, {}, {}, {}",
        parts.join(", "),
        counted(sum(|source| source.clips), "clip"),
        counted(sum(|source| source.cues), "cue"),
        match report.made {
            Made { segments, captions: 0 } => counted(segments, "segment"),
            Made { segments, captions } => {
                format!("{}, {}", counted(segments, "segment"), counted(captions, "caption"))
            }
        },
        counted(sum(|source| source.gaps), "gap"),
    ))?;
    if report.media_secs > 0.0 && !report.interrupted {
        print_line(&format!(
            "{:.1} s of media in {:.1} s: {:.1}x real time",
            report.media_secs,
            report.elapsed_secs,
            report.times_real_time()
        ))?;
    }
    if report.waiting > 0 {
        let gone = match report.waiting_gone {
            0 => String::new(),
            gone => format!(" ({gone} of them gone)"),
        };
        print_line(&format!(
            "Another pipeline has read {}{gone} that this one has not. Search answers from that one \
             until they are indexed with this one too, or forgotten, or --take-over gives up what it \
             made of them.",
            counted(report.waiting, "source")
        ))?;
    }
    if report.left_behind > 0 {
        print_line(&format!(
            "This pipeline has taken over; of {}, what only another pipeline had made is deleted.",
            counted(report.left_behind, "source")
        ))?;
    }
    if report.interrupted {
        print_line(
            "Interrupted: finished files and finished parts of two minutes are kept. The same command \
             goes on from there.",
        )?;
    }
    if verbose {
        print_stages(report)?;
    }
    Ok(())
}

/// Where the time went.
fn print_stages(report: &RunReport) -> Result<(), Error> {
    let decoding = &report.decoding;
    let hosts_secs = decoding.processor_time.as_secs_f64();
    let all_secs = (report.cpu_secs + hosts_secs).max(f64::MIN_POSITIVE);
    let elapsed = report.elapsed_secs.max(f64::MIN_POSITIVE);
    print_line("")?;
    print_line(&format!(
        "{:<18}{:>9}{:>10}{:>9}{:>8}{:>11}{:>11}{:>9}{:>7}",
        "stage", "items", "items/s", "busy s", "busy", "no input s", "no room s", "CPU s", "CPU"
    ))?;
    let mut others = report.cpu_secs;
    for stage in &report.stages {
        others -= stage.cpu_secs;
        print_line(&format!(
            "{:<18}{:>9}{:>10.1}{:>9.2}{:>7.0}%{:>11.2}{:>11.2}{:>9.2}{:>6.0}%",
            stage.stage,
            stage.items,
            stage.items as f64 / elapsed,
            stage.busy_secs,
            100.0 * stage.busy_share(),
            stage.starved_secs,
            stage.blocked_secs,
            stage.cpu_secs,
            100.0 * stage.cpu_secs / all_secs,
        ))?;
    }
    for (name, items, secs) in
        [("decoder hosts", decoding.frames_decoded, hosts_secs), ("network threads", 0, others)]
    {
        let (items, rate) = match items {
            0 => (String::new(), String::new()),
            items => (items.to_string(), format!("{:.1}", items as f64 / elapsed)),
        };
        let share = 100.0 * secs.max(0.0) / all_secs;
        print_line(&format!("{name:<18}{items:>9}{rate:>10}{:39}{secs:>9.2}{share:>6.0}%", ""))?;
    }
    print_line("")?;
    let frames = decoding.frames_decoded + decoding.frames_skipped;
    if frames > 0 {
        print_line(&format!(
            "{frames} frames: {} decoded, {} ({:.0} %) left out without decoding{}",
            decoding.frames_decoded,
            decoding.frames_skipped,
            100.0 * decoding.frames_skipped as f64 / frames as f64,
            match decoding.unplanned_groups {
                0 => String::new(),
                groups => format!("; {groups} groups of pictures were not understood beforehand"),
            }
        ))?;
    }
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    print_line(&format!(
        "{all_secs:.1} s of CPU in {elapsed:.1} s on {cores} processors: {:.0} % of them{}",
        100.0 * all_secs / (elapsed * cores as f64),
        report.bound_by().map_or_else(String::new, |(stage, share)| format!(
            "; the others wait for `{}`, which works {:.0} % of its time",
            stage.stage,
            100.0 * share
        ))
    ))
}
