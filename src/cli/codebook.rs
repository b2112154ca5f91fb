//! `cinelex codebook`: fit a tree of visual words, look at its words, measure it.

mod samples;

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use ndarray::{Array2, ArrayView1, ArrayView2};
use serde::Serialize;

use super::counter::Counter;
use super::{CommandResult, Failure, Outcome, interrupt, print_json, print_line};
use crate::codebook::{Codebook, LevelStats, Stats, WordUse, word_use};
use crate::error::{Error, Result};
use crate::library::{ClipId, Reader, Recipe, RecipeKind, SourceId};
use crate::media::VisualWord;
use crate::model::{Device, Models};
use crate::time::Span;
use samples::{Cells, Samples};

#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Fit a codebook to photos or to the clips of libraries
    #[cfg(feature = "fit")]
    #[command(after_help = "Examples:
  cinelex codebook fit flickr8k youcook2_frames --out my-codebook.safetensors
  cinelex codebook fit archive.library --out archive.safetensors --depth 3")]
    Fit(FitArgs),
    /// The clips nearest to a visual word, or the words used most
    #[command(after_help = "Examples:
  cinelex codebook show archive.library
  cinelex codebook show archive.library 1042")]
    Show(ShowArgs),
    /// How many words are used, how evenly, and how far features are from their words
    #[command(after_help = "Examples:
  cinelex codebook stats archive.library
  cinelex codebook stats my-codebook.safetensors --on flickr8k --split dev")]
    Stats(StatsArgs),
}

/// Where features of photos come from.
#[derive(clap::Args, Debug)]
struct EncodeArgs {
    /// The split of the photos to use
    #[arg(long, default_value = "train")]
    split: String,
    /// Of photos, take the nine parts of the picture too
    #[arg(long, value_enum, default_value_t = Cells::ThreeByThree)]
    cells: Cells,
    /// The encoder: a model's id (see `cinelex models list`) or a manifest
    #[arg(long, default_value = "efficientnet-lite0", value_name = "ID|FILE")]
    encoder: String,
    /// Decoders side by side, and threads of the encoder; as many as there are processors unless
    /// told otherwise
    #[arg(long, value_name = "N")]
    workers: Option<NonZeroUsize>,
    /// Where the encoder runs: auto takes CUDA where it is there
    #[arg(long, value_enum, default_value_t)]
    device: Device,
}

#[cfg(feature = "fit")]
#[derive(clap::Args, Debug)]
struct FitArgs {
    /// Folders with captions.tsv and images/, of which one split is taken, or libraries
    #[arg(required = true)]
    inputs: Vec<PathBuf>,
    /// The file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Levels of the tree
    #[arg(long, default_value_t = 3)]
    depth: u32,
    /// Branches of each node
    #[arg(long, default_value_t = 12)]
    branching: u32,
    /// Dimensions that features are projected to, at most 160
    #[arg(long, default_value_t = 160)]
    dims: usize,
    /// The same seed and features give the same codebook
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    encode: EncodeArgs,
    /// One JSON object a line: an `input` for each, with what was used of it, and a `codebook`
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args, Debug)]
struct ShowArgs {
    /// The library
    library: PathBuf,
    /// The word's number
    word: Option<u32>,
    /// The codebook that the library was indexed with, if it is not built in: a manifest or a
    /// .safetensors file
    #[arg(long, value_name = "ID|FILE")]
    codebook: Option<String>,
    /// How many clips or words
    #[arg(long, default_value_t = 10)]
    top: usize,
    /// One JSON object a line, for each clip or word
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args, Debug)]
struct StatsArgs {
    /// A library; or a codebook: an id, a manifest or a .safetensors file
    of: String,
    /// For a codebook: measure it on the photos of these folders, or on these libraries
    #[arg(long, value_name = "DIR")]
    on: Vec<PathBuf>,
    /// For a library: the codebook that it was indexed with, if it is not built in
    #[arg(long, value_name = "ID|FILE")]
    codebook: Option<String>,
    #[command(flatten)]
    encode: EncodeArgs,
    /// One JSON object a line: a `codebook`, then a `level` for each level
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> CommandResult {
    match args.command {
        #[cfg(feature = "fit")]
        Command::Fit(args) => run_fit(&args),
        Command::Show(args) => show(&args),
        Command::Stats(args) => stats(&args),
    }
}

/// What is said of a codebook.
#[derive(Debug, Serialize)]
struct Described<'a> {
    file: &'a str,
    id: String,
    branching: u32,
    depth: u32,
    dims: usize,
    input_dims: usize,
    encoder: &'a str,
    seed: u64,
    samples: u64,
    words: usize,
    /// Words that a sample of the fit has.
    living: usize,
}

fn describe(codebook: &Codebook, file: &str, json: bool) -> Result<()> {
    let (shape, origin) = (codebook.shape(), codebook.origin());
    let described = Described {
        file,
        id: codebook.id().to_hex().to_string(),
        branching: shape.branching,
        depth: shape.depth,
        dims: codebook.dims(),
        input_dims: codebook.input_dims(),
        encoder: &origin.encoder,
        seed: origin.seed,
        samples: origin.samples,
        words: shape.leaves(),
        living: codebook.living_words(),
    };
    if json {
        return print_json("codebook", &described);
    }
    print_line(&format!(
        "{file}: {} branches, depth {}: {} words, {} of them living; {} dimensions of {}\n\
         fitted on {} features of {}, seed {}; id {}",
        described.branching,
        described.depth,
        described.words,
        described.living,
        described.dims,
        described.input_dims,
        described.samples,
        described.encoder,
        described.seed,
        described.id,
    ))
}

fn print_stats(stats: &Stats, json: bool) -> Result<()> {
    if json {
        return stats.levels.iter().try_for_each(|level| print_json("level", level));
    }
    print_line(&format!("\non {} rows, variance {:.5}:", stats.rows, stats.variance))?;
    print_line("level   words    used  perplexity      error  of variance")?;
    for level in &stats.levels {
        let LevelStats { level, words, word_use, error, relative_error } = level;
        let WordUse { used, perplexity } = word_use;
        print_line(&format!(
            "{level:>5}  {words:>6}  {used:>6}  {perplexity:>10.1}  {error:>9.5}  {:>10.1}%",
            100.0 * relative_error
        ))?;
    }
    Ok(())
}

#[cfg(feature = "fit")]
fn run_fit(args: &FitArgs) -> CommandResult {
    use crate::codebook::{FitConfig, FitStep, MAX_DIMS, Shape, fit};

    let shape = Shape::new(args.branching, args.depth).map_err(Failure::usage)?;
    if !(1..=MAX_DIMS).contains(&args.dims) {
        let wrong = format!("--dims {}: a codebook has 1 to {MAX_DIMS} dimensions", args.dims);
        return Err(Failure::usage(Error::invalid_input(wrong)));
    }
    let samples = collect(&args.inputs, &args.encode)?;
    for input in &samples.inputs {
        if args.json {
            print_json("input", input)?;
        } else {
            print_line(&input.to_string())?;
        }
    }
    let config =
        FitConfig { shape, dims: args.dims, seed: args.seed, encoder: samples.encoder.clone() };
    let counter = Counter::new();
    let mut kept = 0.0;
    let codebook = fit(samples.rows.view(), &config, &mut |step| match step {
        FitStep::Projected { kept: share } => kept = share,
        FitStep::Split { nodes, of } => counter.show("nodes", nodes, of),
    });
    counter.finish();
    let codebook = codebook?;
    codebook.save(&args.out)?;
    describe(&codebook, &args.out.display().to_string(), args.json)?;
    if !args.json {
        print_line(&format!("the projection keeps {:.1}% of the variance", 100.0 * kept))?;
    }
    print_stats(&codebook.stats(samples.rows.view())?, args.json)?;
    Ok(if samples.any_failed() { Outcome::SomeFailed } else { Outcome::Done })
}

/// The features of photos and libraries, with a bar.
fn collect(inputs: &[PathBuf], args: &EncodeArgs) -> Result<Samples, Failure> {
    let cancel = interrupt::cancel_on_signal()?;
    let counter = Counter::new();
    let cores = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let workers = args.workers.unwrap_or(cores).get();
    let samples = samples::collect(inputs, args, workers, &mut |what, done, of| {
        counter.show(what, done, of);
        if cancel.is_cancelled() { Err(Error::cancelled()) } else { Ok(()) }
    });
    counter.finish();
    samples
}

/// A library opened with the codebook that its clips' words are of.
struct Opened {
    reader: Reader,
    recipe: Recipe,
    codebook: Codebook,
    /// The codebook's id or file.
    name: String,
}

/// `codebook` is an id, a manifest or a file; without one, the built-in codebook that the library was
/// indexed with is taken.
fn open(library: &Path, codebook: Option<&str>) -> Result<Opened, Failure> {
    let reader = Reader::open(library).map_err(Failure::cannot_open)?;
    let recipe =
        reader.current(RecipeKind::Clip).map_err(Failure::cannot_open)?.ok_or_else(|| {
            let empty = format!("{} has no clips yet: index something", library.display());
            Failure::cannot_open(Error::not_found(empty))
        })?;
    if recipe.tree.is_none() {
        return Err(Failure::usage(Error::invalid_input(format!(
            "{} was indexed without a codebook: its clips have no visual words. `cinelex codebook fit \
             {0} --out FILE` makes one of their features",
            library.display()
        ))));
    }
    let models = Models::open().map_err(Failure::cannot_open)?;
    let used = recipe.description.get("codebook").and_then(|id| id.as_str()).unwrap_or("unknown");
    let built_in = models.built_in().iter().filter(|known| known.task.as_str() == "codebook");
    let names = match codebook {
        Some(name) => vec![name],
        None => built_in.map(|known| known.id.as_str()).collect(),
    };
    for name in &names {
        let codebook = Codebook::named_or_file(&models, name).map_err(Failure::cannot_open)?;
        if codebook.id().to_hex().as_str() == used {
            let name = (*name).to_owned();
            return Ok(Opened { reader, recipe, codebook, name });
        }
    }
    Err(Failure::usage(Error::invalid_input(format!(
        "{} was indexed with the codebook {used}, not with {}: name its file or manifest with \
         --codebook",
        library.display(),
        names.join(" or ")
    ))))
}

impl Opened {
    /// Calls `each` with every clip and its projected features.
    fn each_projected(
        &self,
        mut each: impl FnMut(ClipId, ArrayView1<'_, f32>) -> Result<()>,
    ) -> Result<()> {
        self.reader.each_features(&self.recipe.id, |clip, features| {
            let row: Vec<f32> = features.into_iter().map(half::f16::to_f32).collect();
            let row = ArrayView2::from_shape((1, row.len()), &row)
                .map_err(|cause| Error::internal("one row").caused_by(cause))?;
            each(clip, self.codebook.project(row)?.row(0))
        })
    }

    /// Every clip's word for the whole picture.
    fn words(&self) -> Result<Vec<VisualWord>> {
        let mut words = Vec::new();
        for source in self.reader.sources()? {
            let shown = self.reader.show(source.id)?;
            words.extend(shown.clips.iter().filter_map(|clip| clip.words.first()));
        }
        Ok(words)
    }
}

/// A clip that is near a word.
#[derive(Debug, Serialize)]
struct Near {
    word: VisualWord,
    /// Euclidean, between projected features and the word's centroid; unit vectors are at most 2
    /// apart.
    distance: f32,
    clip: String,
    source: String,
    #[serde(flatten)]
    span: Span,
    /// Whether it is the clip's own word.
    own: bool,
}

/// A word and how often it is used.
#[derive(Debug, Serialize)]
struct Used {
    word: VisualWord,
    path: String,
    clips: usize,
    share: f64,
}

/// The path of a word from the root: `3.11.0`.
fn shown_path(codebook: &Codebook, word: VisualWord) -> String {
    let path = word.path(codebook.branching(), codebook.depth());
    path.iter().map(u32::to_string).collect::<Vec<_>>().join(".")
}

fn show(args: &ShowArgs) -> CommandResult {
    let opened = open(&args.library, args.codebook.as_deref())?;
    match args.word {
        Some(word) => show_word(&opened, VisualWord(word), args),
        None => show_used(&opened, args),
    }
}

fn show_used(opened: &Opened, args: &ShowArgs) -> CommandResult {
    let words = opened.words()?;
    let mut counts: HashMap<VisualWord, usize> = HashMap::new();
    for word in &words {
        *counts.entry(*word).or_default() += 1;
    }
    let mut counts: Vec<(VisualWord, usize)> = counts.into_iter().collect();
    counts.sort_by_key(|(word, clips)| (std::cmp::Reverse(*clips), *word));
    if !args.json {
        let used = counts.len();
        print_line(&format!("{} clips have {used} different words\n", words.len()))?;
        print_line("  word  path           clips   share")?;
    }
    for (word, clips) in counts.into_iter().take(args.top) {
        let share = clips as f64 / words.len() as f64;
        let used = Used { word, path: shown_path(&opened.codebook, word), clips, share };
        if args.json {
            print_json("word", &used)?;
        } else {
            let Used { path, .. } = used;
            print_line(&format!("{:>6}  {path:<12}  {clips:>6}  {:>5.1}%", word.0, 100.0 * share))?;
        }
    }
    Ok(Outcome::Done)
}

fn show_word(opened: &Opened, word: VisualWord, args: &ShowArgs) -> CommandResult {
    let centroid = opened.codebook.centroid(word).ok_or_else(|| {
        Failure::usage(Error::not_found(format!(
            "the codebook has no living word {} (its words are 0 to {})",
            word.0,
            opened.codebook.shape().leaves() - 1
        )))
    })?;
    let mut nearest: Vec<(f32, ClipId)> = Vec::new();
    opened.each_projected(|clip, features| {
        let squared: f32 = features.iter().zip(centroid).map(|(a, b)| (a - b) * (a - b)).sum();
        let at = nearest.partition_point(|(other, _)| *other <= squared);
        if at < args.top {
            nearest.insert(at, (squared, clip));
            nearest.truncate(args.top);
        }
        Ok(())
    })?;
    let names: HashMap<SourceId, String> = opened
        .reader
        .sources()?
        .into_iter()
        .map(|source| {
            let place = source.locations.first().map(|location| location.place.to_string());
            (source.id, place.unwrap_or(source.name))
        })
        .collect();
    if !args.json {
        let path = shown_path(&opened.codebook, word);
        print_line(&format!("clips nearest to word {} ({path}); * it is their own\n", word.0))?;
    }
    for (squared, id) in nearest {
        let clip = opened.reader.clip(id)?;
        let near = Near {
            word,
            distance: squared.sqrt(),
            clip: id.to_string(),
            source: names.get(&id.source).cloned().unwrap_or_default(),
            span: clip.head.span,
            own: clip.words.first() == Some(&word),
        };
        if args.json {
            print_json("nearest", &near)?;
        } else {
            let own = if near.own { "*" } else { " " };
            print_line(&format!("{:.3} {own} {:<23} {}", near.distance, near.span, near.source))?;
        }
    }
    Ok(Outcome::Done)
}

fn stats(args: &StatsArgs) -> CommandResult {
    let is_library = Path::new(&args.of).is_dir();
    if is_library {
        if !args.on.is_empty() {
            let wrong = "--on is for a codebook; a library is measured on its own clips";
            return Err(Failure::usage(Error::invalid_input(wrong)));
        }
        return library_stats(Path::new(&args.of), args);
    }
    let models = Models::open().map_err(Failure::cannot_open)?;
    let codebook = Codebook::named_or_file(&models, &args.of).map_err(Failure::cannot_open)?;
    describe(&codebook, &args.of, args.json)?;
    if args.on.is_empty() {
        return Ok(Outcome::Done);
    }
    let samples = collect(&args.on, &args.encode)?;
    print_stats(&codebook.stats(samples.rows.view())?, args.json)?;
    Ok(if samples.any_failed() { Outcome::SomeFailed } else { Outcome::Done })
}

fn library_stats(library: &Path, args: &StatsArgs) -> CommandResult {
    let opened = open(library, args.codebook.as_deref())?;
    describe(&opened.codebook, &opened.name, args.json)?;
    let mut rows = Vec::new();
    opened.reader.each_features(&opened.recipe.id, |_, features| {
        rows.extend(features.into_iter().map(half::f16::to_f32));
        Ok(())
    })?;
    let width = opened.codebook.input_dims();
    let rows = Array2::from_shape_vec((rows.len() / width, width), rows).map_err(|_| {
        Error::corrupt(format!("{} has features of another length", library.display()))
    })?;
    print_stats(&opened.codebook.stats(rows.view())?, args.json)?;
    let WordUse { used, perplexity } = word_use(opened.words()?);
    if !args.json {
        print_line(&format!("\nthe clips' words: {used} used, perplexity {perplexity:.1}"))?;
    }
    Ok(Outcome::Done)
}
