//! `cinelex setup`: fetch and verify models, and say what is there.

use std::collections::HashMap;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::models::ModelLine;
use super::{CommandResult, Failure, Outcome, print_json, print_line};
use crate::model::{DEFAULT_MODELS, Models, Progress};
use crate::onnx;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Models to fetch beside those that the default pipeline needs: ids, `ID@int8`, or manifests
    models: Vec<String>,

    /// One JSON object a line: kind "model" for each model
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> CommandResult {
    let models = Models::open().map_err(Failure::cannot_open)?;
    let names = DEFAULT_MODELS.iter().map(|&id| id.to_owned()).chain(args.models);
    let mut manifests = Vec::new();
    for name in names {
        manifests.push(models.manifest(&name).map_err(Failure::usage)?);
    }
    let bars = Bars::default();
    for manifest in &manifests {
        let mut on_progress = |progress: Progress<'_>| bars.show(progress);
        onnx::prepare(&models, manifest, &mut on_progress).map_err(Failure::cannot_open)?;
        bars.clear();
    }
    let mut lines = Vec::new();
    for manifest in &manifests {
        lines.push(ModelLine::of(&models, manifest, false)?);
    }
    if args.json {
        for line in &lines {
            print_json("model", line)?;
        }
    } else {
        ModelLine::print_table(&lines)?;
        print_line(&format!("\nModels are in {}", models.cache_folder().display()))?;
    }
    Ok(Outcome::Done)
}

/// A bar for each download, on standard error, where that is a terminal.
#[derive(Default)]
struct Bars {
    all: MultiProgress,
    bars: std::cell::RefCell<HashMap<String, ProgressBar>>,
}

impl Bars {
    fn show(&self, progress: Progress<'_>) {
        let mut bars = self.bars.borrow_mut();
        let bar = bars.entry(progress.what.to_owned()).or_insert_with(|| {
            let style = ProgressStyle::with_template(
                "{msg:32} {bar:24} {binary_bytes:>10} of {binary_total_bytes:10} \
                 {binary_bytes_per_sec:>12} {eta:>4} left",
            )
            .unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::new(progress.of_bytes).with_style(style);
            self.all.add(bar).with_message(progress.what.to_owned())
        });
        bar.set_position(progress.bytes);
    }

    fn clear(&self) {
        for (_, bar) in self.bars.borrow_mut().drain() {
            bar.finish_and_clear();
        }
    }
}
