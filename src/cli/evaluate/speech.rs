//! `cinelex evaluate speech`.

use std::collections::BTreeMap;
use std::io::Write;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Instant;

use super::super::counter::Counter;
use super::super::{CommandResult, Failure, Outcome, interrupt, print_json, print_line};
use crate::error::{Error, Result};
use crate::evaluate::speech::{self, Heard, Rate, Recording, Report, SetReport, Starts};
use crate::model::Models;
use crate::pipeline::{Ears, Listening, listen};
use crate::source::Location;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// A folder with MANIFEST.tsv and the recordings that it names
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Only these sets of it
    #[arg(long = "set", value_name = "SET")]
    sets: Vec<String>,
    /// Let the sound tell what is spoken, in place of the manifest
    #[arg(long)]
    detect: bool,
    /// Take all sound for speech, to compare with: what it costs that silence and noise are left out
    #[arg(long)]
    no_voice_activity: bool,
    /// What reads the words, in place of the built-in models: a model's id or a manifest
    #[arg(long, value_name = "ID|FILE")]
    model: Vec<String>,
    /// What another system heard, to compare with: JSON lines, as --transcripts writes them
    #[arg(long, value_name = "FILE")]
    beside: Option<PathBuf>,
    /// Write what was heard to this new file
    #[arg(long, value_name = "FILE")]
    transcripts: Option<PathBuf>,
    /// Windows of speech that are read side by side; as many as there are processors unless told otherwise
    #[arg(long, value_name = "N")]
    workers: Option<NonZeroUsize>,
    /// One JSON object, whose kind is "speech"
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> CommandResult {
    let mut recordings = speech::recordings(&args.data).map_err(Failure::usage)?;
    recordings.retain(|of| args.sets.is_empty() || args.sets.contains(&of.set));
    if recordings.is_empty() {
        let none = format!("{} has no such recordings", args.data.display());
        return Err(Failure::usage(Error::invalid_input(none)));
    }
    let beside = args.beside.as_deref().map(speech::read_heard).transpose();
    let beside = beside.map_err(Failure::usage)?;
    let models = Models::open().map_err(Failure::cannot_open)?;
    let mut groups: BTreeMap<Option<String>, Vec<&Recording>> = BTreeMap::new();
    for recording in &recordings {
        // What is noise is not said to be in any language.
        let told = !args.detect && !recording.is_noise();
        groups.entry(told.then(|| recording.language.clone())).or_default().push(recording);
    }
    let started = Instant::now();
    let mut all = Listened::default();
    let counter = Counter::new();
    let cancel = interrupt::cancel_on_signal()?;
    for (language, group) in &groups {
        let ears = Ears::open(&models, &args.model, language.as_deref());
        let mut ears = ears.map_err(Failure::cannot_open)?;
        if args.no_voice_activity {
            ears = ears.without_voice_activity();
        }
        let place = |of: &&Recording| Location::File(args.data.join(&of.path));
        let locations: Vec<Location> = group.iter().map(place).collect();
        let cores = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        let threads = args.workers.unwrap_or(cores).get();
        listen(&locations, ears, threads, &cancel, &mut |event| {
            if let Listening::Finished { source, transcript } = event {
                all.add(group[source], transcript);
                counter.show("recordings", all.heard.len(), recordings.len());
            }
            Ok(())
        })?;
        if cancel.is_cancelled() {
            return Err(Error::cancelled().into());
        }
    }
    counter.finish();
    let mut report = speech::report(&recordings, &all.heard, beside.as_deref());
    report.taken_secs = started.elapsed().as_secs_f64();
    report.sound_secs = all.sound_secs;
    report.failed = all.failed;
    if let Some(path) = &args.transcripts {
        let writing = |cause| Error::io(path, "write", cause);
        let mut file = std::fs::File::create_new(path).map_err(writing)?;
        for heard in &all.heard {
            let line = serde_json::to_string(heard)
                .map_err(|cause| Error::internal("cannot write JSON").caused_by(cause))?;
            writeln!(file, "{line}").map_err(writing)?;
        }
    }
    if args.json {
        print_json("speech", &report)?;
    } else {
        table(&report)?;
    }
    Ok(if report.failed.is_empty() { Outcome::Done } else { Outcome::SomeFailed })
}

/// What came of the recordings so far.
#[derive(Default)]
struct Listened {
    heard: Vec<Heard>,
    failed: Vec<(String, String)>,
    sound_secs: f64,
}

impl Listened {
    fn add(&mut self, recording: &Recording, transcript: crate::pipeline::Transcript) {
        let words = transcript.cues.iter().flat_map(|cue| &cue.words);
        let words = words.map(|word| (word.text.clone(), word.span.start.as_secs_f64()));
        self.heard.push(Heard { path: recording.path.clone(), words: words.collect() });
        self.sound_secs += transcript.length.as_secs_f64();
        if let Some(error) = transcript.error {
            self.failed.push((recording.path.clone(), error.reason()));
        }
    }
}

fn table(report: &Report) -> Result<()> {
    print_line(&format!(
        "{:26} {:4} {:>5} {:>6} {:>8} {:>8} {:>8}",
        "set", "", "files", "words", "errors", "beside", "between"
    ))?;
    for set in report.sets.iter().chain([&report.english, &report.other_languages]) {
        let SetReport { set, language, files, errors, beside, between } = set;
        let percent = |rate: &Option<Rate>| {
            rate.map_or(String::new(), |rate| format!("{:.2} %", rate.percent))
        };
        let (beside, between) = (percent(beside), percent(between));
        let words = errors.words;
        let errors = percent(&Some(*errors));
        print_line(&format!(
            "{set:26} {language:4} {files:5} {words:6} {errors:>8} {beside:>8} {between:>8}"
        ))?;
    }
    let starts = |who: &str, starts: &Starts| {
        print_line(&format!(
            "{who}: {} of {} words recognized, {:.1} % begin within 0.2 s of the truth; half within \
             {:.0} ms; on average {:+.0} ms",
            starts.recognized, starts.words, starts.within_200_ms, starts.median_ms, starts.mean_ms
        ))
    };
    if report.starts.words > 0 {
        starts("words' starts", &report.starts)?;
        report.starts_beside.iter().try_for_each(|beside| starts("beside", beside))?;
    }
    let noise = &report.noise;
    if noise.files > 0 {
        print_line(&format!("words for noise: {} of {}", noise.with_words, noise.files))?;
        for (path, text) in &noise.heard {
            print_line(&format!("  {path}: {text}"))?;
        }
    }
    if let Some(noise) = &report.noise_beside {
        print_line(&format!("beside: {} of {}", noise.with_words, noise.files))?;
    }
    for (path, reason) in &report.failed {
        print_line(&format!("failed: {path}: {reason}"))?;
    }
    print_line(&format!(
        "{:.0} s of sound in {:.1} s: {:.1}x real time",
        report.sound_secs,
        report.taken_secs,
        report.sound_secs / report.taken_secs.max(1e-3)
    ))
}
