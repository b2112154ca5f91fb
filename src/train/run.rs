//! The loop: steps, a log, checkpoints with scores, and what is left at the end.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::checkpoint;
use super::config::{Config, Length};
use super::material::Material;
use super::trainer::{Taken, Trainer};
use super::{outcome, report};
use crate::error::{Error, Kind, Result};
use crate::evaluate::agreement::Agreement;
use crate::evaluate::captions;
use crate::evaluate::pictures::{Pictures, Visuals};
use crate::evaluate::setup::Example;
use crate::model::Models;
use crate::onnx::transformer::Precision;
use crate::transformer::{Captioner, Writing};

const LOG: &str = "log.jsonl";
const REPORT: &str = "report.html";
/// Steps that a line of the log is the mean of.
const STEPS_A_LINE: u64 = 20;
/// The pieces of a caption at most.
pub(super) const LONGEST: usize = 24;

/// What happens, for the one who watches.
#[derive(Debug, Clone, PartialEq)]
pub enum Event<'a> {
    /// What the training begins with; segments of films count as photos.
    Begun { photos: usize, captions: usize, texts: usize, numbers: usize },
    /// A step was taken.
    Step {
        step: u64,
        loss: f64,
        captions_per_sec: f64,
        /// Of the training, 0 to 1.
        share: f64,
        secs_left: f64,
    },
    /// A checkpoint was written, and scored.
    Checkpoint { step: u64, scores: Option<&'a Agreement> },
}

/// A line of the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(super) enum Line {
    /// Means over the steps since the last line.
    Steps {
        step: u64,
        cpu_secs: f64,
        rate: f64,
        total: f64,
        words: Option<f64>,
        contrast: Option<f64>,
        visual_words: Option<f64>,
        alignment: Option<f64>,
        #[serde(default)]
        reward: Option<f64>,
        gradient: f64,
        captions_per_sec: f64,
        /// Of a step, padding included.
        #[serde(default)]
        tokens: f64,
    },
    /// The average of the weights on photos of the dev split.
    Score { step: u64, cpu_secs: f64, bleu_4: f64, rouge_l: f64, cider: f64 },
}

impl Line {
    fn step(&self) -> u64 {
        match self {
            Line::Steps { step, .. } | Line::Score { step, .. } => *step,
        }
    }
}

/// How a training ended.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finished {
    pub steps: u64,
    pub cpu_secs: f64,
    /// Of the last checkpoint.
    pub scores: Option<Agreement>,
    /// Whether it was stopped before its end.
    pub interrupted: bool,
    /// The files that were made of it: the weights, their graphs, and manifests that `index` takes.
    pub files: Vec<PathBuf>,
}

/// Trains into the folder `out`; with `resume`, goes on from its last checkpoint. `watch` gets every
/// event; its error ends the training after a checkpoint.
///
/// # Errors
/// `InvalidInput` where the folder holds another training, or the loss is no number; where a file
/// cannot be written. The last checkpoints stay.
pub fn train(
    models: &Models,
    config: &Config,
    material: &Material,
    out: &Path,
    resume: bool,
    watch: &mut dyn FnMut(Event<'_>) -> Result<()>,
) -> Result<Finished> {
    std::fs::create_dir_all(out).map_err(|cause| Error::io(out, "create", cause))?;
    let mut trainer = Trainer::new(models, config, material)?;
    if resume {
        let (progress, optimizer) = checkpoint::last(out, &trainer.progress.training)?;
        if progress.network != trainer.progress.network {
            return Err(Error::invalid_input("the checkpoint is of another network"));
        }
        (trainer.progress, trainer.optimizer) = (progress, optimizer);
    } else if !checkpoint::all(out)?.is_empty() {
        return Err(Error::invalid_input(format!(
            "{} holds checkpoints already: go on with --resume, or train into another folder",
            out.display()
        )));
    }
    outcome::keep_codebook(config, material, out)?;
    let mut log = Log::open(&out.join(LOG), trainer.progress.step)?;
    let (photos, captions, texts) = trainer.counts();
    let numbers = trainer.optimizer.weights.values().map(|tensor| tensor.values.len()).sum();
    watch(Event::Begun { photos, captions, texts, numbers })?;

    let mut run = Run { models, config, material, out, scores: None };
    let mut recent = Recent::default();
    let mut checkpointed = trainer.progress.cpu_secs;
    let mut interrupted = false;
    let (begun, mut cpu_secs) = (Instant::now(), 0.0);
    while trainer.share() < 1.0 && !interrupted {
        let start = cpu_time();
        let taken = trainer.step()?;
        let secs = cpu_time().saturating_sub(start).as_secs_f64();
        trainer.progress.cpu_secs += secs;
        cpu_secs += secs;
        recent.add(&taken, secs);
        let step = trainer.progress.step;
        let event = Event::Step {
            step,
            loss: taken.losses.total,
            captions_per_sec: recent.captions as f64 / recent.secs,
            share: trainer.share(),
            secs_left: cpu_secs_left(config, &trainer) * begun.elapsed().as_secs_f64() / cpu_secs,
        };
        interrupted = stopped(watch(event))?;
        if step.is_multiple_of(STEPS_A_LINE) {
            log.add(&recent.line(step, trainer.progress.cpu_secs))?;
            recent = Recent::default();
        }
        let since = trainer.progress.cpu_secs - checkpointed;
        if since >= 60.0 * config.checkpoints.minutes && trainer.share() < 1.0 {
            interrupted |= stopped(run.checkpoint(&trainer, &mut log, watch))?;
            checkpointed = trainer.progress.cpu_secs;
        }
    }
    if interrupted {
        checkpoint::write(out, &trainer.progress, &trainer.optimizer)?;
    } else {
        interrupted = stopped(run.checkpoint(&trainer, &mut log, watch))?;
    }
    Ok(Finished {
        steps: trainer.progress.step,
        cpu_secs: trainer.progress.cpu_secs,
        files: match interrupted {
            true => Vec::new(),
            false => outcome::write(models, config, material, &trainer, run.scores.as_ref(), out)?,
        },
        scores: run.scores,
        interrupted,
    })
}

/// Whether the user asked to stop; other errors go on.
fn stopped(result: Result<()>) -> Result<bool> {
    match result {
        Err(error) if error.kind() == Kind::Cancelled => Ok(true),
        result => result.map(|()| false),
    }
}

/// Of this process, over all its threads. The wall clock would count what else runs on the machine.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

/// Processor time, at the speed so far over this run and those before.
fn cpu_secs_left(config: &Config, trainer: &Trainer<'_>) -> f64 {
    let (step, elapsed) = (trainer.progress.step, trainer.progress.cpu_secs);
    match config.steps.length {
        Length::Minutes(minutes) => (60.0 * minutes - elapsed).max(0.0),
        Length::Steps(steps) => elapsed / step.max(1) as f64 * steps.saturating_sub(step) as f64,
    }
}

struct Run<'a> {
    models: &'a Models,
    config: &'a Config,
    material: &'a Material,
    out: &'a Path,
    scores: Option<Agreement>,
}

impl Run<'_> {
    /// Writes a checkpoint, scores it, and brings the report up to date.
    fn checkpoint(
        &mut self,
        trainer: &Trainer<'_>,
        log: &mut Log,
        watch: &mut dyn FnMut(Event<'_>) -> Result<()>,
    ) -> Result<()> {
        checkpoint::write(self.out, &trainer.progress, &trainer.optimizer)?;
        let step = trainer.progress.step;
        let scored = self.score(trainer)?;
        if let Some(scores) = scored {
            log.add(&Line::Score {
                step,
                cpu_secs: trainer.progress.cpu_secs,
                bleu_4: scores.bleu[3],
                rouge_l: scores.rouge_l,
                cider: scores.cider,
            })?;
            self.scores = Some(scores);
        }
        report::write(&self.out.join(REPORT), &read_log(&self.out.join(LOG))?)?;
        watch(Event::Checkpoint { step, scores: scored.as_ref() })
    }

    /// The scores on the first photos, or segments, of the first collection or library that has some to
    /// score.
    fn score(&self, trainer: &Trainer<'_>) -> Result<Option<Agreement>> {
        let dev: Option<&Pictures> = self.material.dev.iter().find(|dev| !dev.is_empty());
        let Some(dev) = dev.filter(|_| self.config.checkpoints.scored > 0) else { return Ok(None) };
        let trained = trainer.trained();
        let mut captioner = Captioner::new(self.models, &trained, Precision::Fp32, 1)?;
        let is_seen = trained.network.centroids > 0;
        let codebook = self.material.codebook.as_ref().filter(|_| is_seen);
        let (with_features, cells) = (trained.network.features > 0, trained.network.cells);
        let visuals = Visuals::new(dev, with_features, codebook, cells)?;
        let segments = dev.segments().take(self.config.checkpoints.scored);
        let photos: Vec<Example> = segments.map(Iterator::collect).collect();
        let how =
            Writing { beams: self.config.checkpoints.beams, most: LONGEST, length_power: 1.0 };
        let written = captions::describe(&mut captioner, &visuals, &photos, how, &mut |_| Ok(()))?;
        let best = written.iter().map(|found| found.first().map_or("", |best| &best.caption.text));
        captions::judge(best, dev, &photos).map(|scored| Some(scored.all))
    }
}

/// Sums over the steps since the last line of the log.
#[derive(Debug, Default)]
struct Recent {
    steps: f64,
    secs: f64,
    captions: usize,
    tokens: usize,
    rate: f64,
    total: f64,
    gradient: f64,
    words: Mean,
    contrast: Mean,
    visual_words: Mean,
    alignment: Mean,
    reward: Mean,
}

#[derive(Debug, Default)]
struct Mean {
    sum: f64,
    count: f64,
}

impl Mean {
    fn add(&mut self, value: Option<f64>) {
        if let Some(value) = value {
            self.sum += value;
            self.count += 1.0;
        }
    }

    fn value(&self) -> Option<f64> {
        (self.count > 0.0).then(|| self.sum / self.count)
    }
}

impl Recent {
    fn add(&mut self, taken: &Taken, secs: f64) {
        self.steps += 1.0;
        self.secs += secs;
        self.captions += taken.captions;
        self.tokens += taken.tokens;
        self.rate = taken.rate;
        self.total += taken.losses.total;
        self.gradient += taken.gradient;
        self.words.add(taken.losses.words);
        self.contrast.add(taken.losses.contrast);
        self.visual_words.add(taken.losses.visual_words);
        self.alignment.add(taken.losses.alignment);
        self.reward.add(taken.losses.reward);
    }

    fn line(&self, step: u64, cpu_secs: f64) -> Line {
        Line::Steps {
            step,
            cpu_secs,
            rate: self.rate,
            total: self.total / self.steps,
            words: self.words.value(),
            contrast: self.contrast.value(),
            visual_words: self.visual_words.value(),
            alignment: self.alignment.value(),
            reward: self.reward.value(),
            gradient: self.gradient / self.steps,
            captions_per_sec: self.captions as f64 / self.secs,
            tokens: self.tokens as f64 / self.steps,
        }
    }
}

/// The log: one JSON object a line.
struct Log {
    file: File,
    path: PathBuf,
}

impl Log {
    /// Opens the log; lines after `step` are of steps that will be taken again.
    fn open(path: &Path, step: u64) -> Result<Log> {
        let kept: String = match path.exists() {
            false => String::new(),
            true => read_log(path)?
                .iter()
                .filter(|line| line.step() <= step)
                .filter_map(|line| Some(serde_json::to_string(line).ok()? + "\n"))
                .collect(),
        };
        let writing = |cause| Error::io(path, "write", cause);
        std::fs::write(path, kept).map_err(writing)?;
        let file = OpenOptions::new().append(true).open(path).map_err(writing)?;
        Ok(Log { file, path: path.to_owned() })
    }

    fn add(&mut self, line: &Line) -> Result<()> {
        let mut text = serde_json::to_string(line)
            .map_err(|cause| Error::internal("cannot write JSON").caused_by(cause))?;
        text.push('\n');
        let writing = |cause| Error::io(&self.path, "write", cause);
        self.file.write_all(text.as_bytes()).map_err(writing)
    }
}

/// The lines of a log; one that was cut short by a crash is left out.
fn read_log(path: &Path) -> Result<Vec<Line>> {
    let reading = |cause| Error::io(path, "read", cause);
    let mut lines = Vec::new();
    for line in BufReader::new(File::open(path).map_err(reading)?).lines() {
        lines.extend(serde_json::from_str(&line.map_err(reading)?).ok());
    }
    Ok(lines)
}
