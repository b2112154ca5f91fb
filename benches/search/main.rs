//! How long a search takes from words to hits, what the index of embeddings misses, and how many
//! bytes a clip takes on disk.
//!
//!     cargo bench --profile release --bench search [-- --clips 100000,1000000 --queries 1000]
//!
//! With `CINELEX_DATA`, embeddings are those of 100,000 crops of Flickr8k's photos (made in the
//! first run, at most 15 minutes of it, and kept in the cache folder), queries are captions of other
//! photos, and what a library needs beyond is jittered at a cosine of 0.9. Without, embeddings are
//! random directions around 1,000 centres. The models must be set up (`cinelex setup`).
//! `--work FOLDER` keeps the libraries there for the next run; `--patience SECS` says how long embeddings
//! may be made for.

mod library;
mod photos;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cinelex::library::{Query, Reader};
use cinelex::media::Channel;
use cinelex::model::Models;
use cinelex::text::TextTower;
use half::f16;
use library::Size;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// The cosine of a jittered embedding with what it was made of.
const JITTER: f32 = 0.9;
const REAL_PICTURES: usize = 100_000;
/// Seconds that embeddings of photos are made for.
const PATIENCE: u64 = 15 * 60;
/// Searches in a new process.
const PROCESSES: usize = 40;

/// What libraries and queries are made of.
#[derive(Debug)]
pub struct Material {
    space: String,
    dimension: usize,
    /// Row-major.
    pictures: Vec<f16>,
    texts: Vec<String>,
    /// Row-major, the first texts' embeddings.
    sentences: Vec<f16>,
    queries: Vec<String>,
    told: String,
}

impl Material {
    /// The embedding of a library's clip.
    fn picture(&self, number: usize, random: &mut ChaCha8Rng) -> Vec<f16> {
        let count = self.pictures.len() / self.dimension;
        let at = number % count * self.dimension;
        let row = &self.pictures[at..at + self.dimension];
        // A library that is no larger than the material has it as it is.
        if number < count { row.to_vec() } else { jittered(row, random) }
    }

    /// The text of a library's segment, and its embedding: that of another text by the same people,
    /// jittered, where its own was not made.
    fn sentence(&self, number: usize, random: &mut ChaCha8Rng) -> (String, Vec<f16>) {
        let count = self.sentences.len() / self.dimension;
        let at = number % count * self.dimension;
        let row = &self.sentences[at..at + self.dimension];
        let embedding = if number < count { row.to_vec() } else { jittered(row, random) };
        (self.texts[number % self.texts.len()].clone(), embedding)
    }

    fn real(data: &Path, tower: &mut TextTower, patience: Duration) -> Outcome<Self> {
        let photos = photos::real(data, tower, REAL_PICTURES, patience)?;
        let count = photos.pictures.len() / photos.dimension;
        Ok(Material {
            space: tower.space().to_owned(),
            told: format!("{count} crops of Flickr8k's photos; queries: captions of other photos"),
            dimension: photos.dimension,
            pictures: photos.pictures,
            texts: photos.texts,
            sentences: photos.sentences,
            queries: photos.queries,
        })
    }

    fn random(tower: &TextTower, random: &mut ChaCha8Rng) -> Self {
        let dimension = tower.dim();
        let centres: Vec<Vec<f16>> = (0..1_000)
            .map(|_| unit(dimension, random).into_iter().map(f16::from_f32).collect())
            .collect();
        let mut near = |count: usize| -> Vec<f16> {
            (0..count).flat_map(|place| jittered(&centres[place % 1_000], random)).collect()
        };
        let (pictures, sentences) = (near(20_000), near(5_000));
        let texts = (0..60_000).map(|_| text(random, 12)).collect();
        let queries = (0..1_000).map(|_| text(random, 4)).collect();
        let told = "no CINELEX_DATA: random directions around 1,000 centres; queries: random words";
        let (space, told) = (tower.space().to_owned(), told.to_owned());
        Material { space, dimension, pictures, texts, sentences, queries, told }
    }
}

struct Options {
    clips: Vec<usize>,
    queries: usize,
    work: Option<PathBuf>,
    patience: Duration,
}

fn options() -> Outcome<Options> {
    let mut options = Options {
        clips: vec![100_000, 1_000_000],
        queries: 1_000,
        work: None,
        patience: Duration::from_secs(PATIENCE),
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} needs a value"));
        match arg.as_str() {
            "--clips" => {
                let counts = value()?;
                options.clips = counts.split(',').map(str::parse).collect::<Result<_, _>>()?;
            }
            "--queries" => options.queries = value()?.parse()?,
            "--work" => options.work = Some(value()?.into()),
            "--patience" => options.patience = Duration::from_secs(value()?.parse()?),
            // What cargo itself adds.
            "--bench" => {}
            other => return Err(format!("unknown option {other}").into()),
        }
    }
    Ok(options)
}

fn main() -> Outcome<()> {
    let options = options()?;
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let models = Models::open()?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let manifest = models.manifest("minilm")?;
    let mut tower = TextTower::load(&models, &manifest, threads)?;
    let mut material = match std::env::var_os("CINELEX_DATA") {
        Some(data) => Material::real(Path::new(&data), &mut tower, options.patience)?,
        None => Material::random(&tower, &mut random),
    };
    material.queries.truncate(options.queries);
    // As `cinelex search` does: the words are looked up beside it.
    let mut tower = TextTower::load(&models, &manifest, 1)?;
    println!("{}; {}", jiff::Timestamp::now().strftime("%F %T UTC"), machine(threads));
    println!("embeddings: {}", material.told);
    println!("reading memory: {:.1} GB/s", bandwidth());
    let temporary = tempfile::tempdir()?;
    let folder = options.work.as_deref().unwrap_or(temporary.path());
    for &clips in &options.clips {
        measure(folder, clips, &material, &mut tower, &mut random)?;
    }
    Ok(())
}

fn measure(
    folder: &Path,
    clips: usize,
    material: &Material,
    tower: &mut TextTower,
    random: &mut ChaCha8Rng,
) -> Outcome<()> {
    let whole = clips <= 100_000;
    let size = Size {
        clips,
        per_segment: if whole { 10 } else { 16 },
        per_chunk: if whole { 80 } else { 4_000 },
        features: if whole { 1_280 } else { 8 },
    };
    let library = folder.join(format!("{clips}"));
    println!("\n{clips} clips, {} segments with words", clips.div_ceil(size.per_segment));
    if !library.exists() {
        let started = Instant::now();
        let index = library::fill(&library, &size, material, random)?;
        let all = started.elapsed().as_secs_f64();
        println!("  written in {all:.1} s, of which the index of embeddings {index:.1} s");
    }
    let mut reader = Reader::open(&library)?;
    let info = reader.info()?;
    if whole {
        println!("  bytes per clip, all in: {}", info.bytes / info.clips.max(1));
    }
    let index: u64 = std::fs::read_dir(library.join("index"))
        .into_iter()
        .flatten()
        .map(|entry| entry.and_then(|entry| entry.metadata()).map_or(0, |file| file.len()))
        .sum();
    println!("  bytes per clip of the index of embeddings: {}", index / clips as u64);

    // A pass that is not counted, so that the first query's reading isn't either.
    let vectors: Vec<Vec<f32>> = material
        .queries
        .iter()
        .map(|text| Ok(tower.embed(&[text])?.row(0).to_vec()))
        .collect::<Outcome<_>>()?;
    let started = Instant::now();
    reader.search(&by_picture(&vectors[0]))?;
    println!("  first search, its vector given: {:.1} ms", ms(started));

    let encoder = Times::of(&material.queries, |text| Ok(tower.embed(&[text]).map(|_| ())?))?;
    encoder.tell("words to a vector (the encoder alone)");
    Times::of(&vectors, |vector| Ok(reader.search(&by_picture(vector)).map(|_| ())?))?
        .tell("a vector to hits by picture");
    Times::of(&material.queries, |text| {
        let query = Query { words: Some(text.clone()), top: 10, ..Query::default() };
        Ok(reader.search(&query).map(|_| ())?)
    })?
    .tell("words to hits by words");
    let all = Times::of(&material.queries, |text| {
        let query = Query { words: Some(text.clone()), top: 10, ..Query::default() };
        let embed = || {
            let vector = tower.embed(&[text])?.row(0).to_vec();
            Ok(vec![(Channel::Picture, vector.clone()), (Channel::Speech, vector)])
        };
        Ok(reader.search_embedding(&query, embed).map(|_| ())?)
    })?;
    all.tell("words to hits, all channels, encoder included");
    let limit = encoder.at(95);
    println!("    limit: the encoder alone, {limit:.1} ms; {:.1} times that", all.at(95) / limit);
    recall(&library, &mut reader, &vectors)?;
    drop(reader);

    let executable = env!("CARGO_BIN_EXE_cinelex");
    let run = |args: &[&str]| -> Outcome<()> {
        let status = Command::new(executable).args(args).stdout(Stdio::null()).status()?;
        if status.success() { Ok(()) } else { Err(format!("{args:?} failed").into()) }
    };
    let queries = &material.queries[..material.queries.len().min(PROCESSES)];
    let path = library.to_str().ok_or("the folder's name is not UTF-8")?;
    // In turn, so that both meet the same machine.
    let mut starts = Vec::new();
    let searches = Times::of(queries, |text| {
        run(&["search", path, text])?;
        let started = Instant::now();
        run(&["--version"])?;
        starts.push(ms(started));
        Ok(())
    })?;
    let searches = Times(searches.0.iter().zip(&starts).map(|(both, one)| both - one).collect());
    Times::sorted(searches.0).tell("words to hits in a new process");
    Times::sorted(starts).tell("  of which starting the executable");
    Ok(())
}

/// The share of the ten best hits by picture that are found with the index, among those without.
fn recall(library: &Path, reader: &mut Reader, vectors: &[Vec<f32>]) -> Outcome<()> {
    let hits = |reader: &mut Reader| -> Outcome<Vec<HashSet<_>>> {
        let mut found = Vec::new();
        for vector in vectors {
            let hits = reader.search(&by_picture(vector))?;
            found.push(hits.iter().map(|hit| (hit.source, hit.span.start_us)).collect());
        }
        Ok(found)
    };
    let with = hits(reader)?;
    let (index, aside) = (library.join("index"), library.join("index-aside"));
    if !index.exists() {
        return Ok(());
    }
    std::fs::rename(&index, &aside)?;
    let started = Instant::now();
    let without = hits(&mut Reader::open(library)?);
    let each = ms(started) / vectors.len() as f64;
    std::fs::rename(&aside, &index)?;
    let without = without?;
    let all: usize = without.iter().map(HashSet::len).sum();
    let found: usize = with.iter().zip(&without).map(|(a, b)| a.intersection(b).count()).sum();
    let share = found as f64 / all.max(1) as f64;
    println!("  recall@10 by picture: {share:.4} (without the index: {each:.1} ms a query)");
    Ok(())
}

fn by_picture(vector: &[f32]) -> Query {
    Query { vectors: vec![(Channel::Picture, vector.to_vec())], top: 10, ..Query::default() }
}

/// Milliseconds, in order of size.
struct Times(Vec<f64>);

impl Times {
    fn of<T>(items: &[T], mut each: impl FnMut(&T) -> Outcome<()>) -> Outcome<Self> {
        let mut times = Vec::with_capacity(items.len());
        for item in items {
            let started = Instant::now();
            each(item)?;
            times.push(ms(started));
        }
        Ok(Times::sorted(times))
    }

    fn sorted(mut times: Vec<f64>) -> Self {
        times.sort_by(f64::total_cmp);
        Times(times)
    }

    fn at(&self, percent: usize) -> f64 {
        self.0.get(self.0.len() * percent / 100).copied().unwrap_or(f64::NAN)
    }

    fn tell(&self, what: &str) {
        println!("  {what}: median {:.2} ms, p95 {:.2} ms", self.at(50), self.at(95));
    }
}

fn ms(started: Instant) -> f64 {
    started.elapsed().as_secs_f64() * 1e3
}

fn machine(threads: usize) -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    format!(
        "{threads} cores, {}; load {}",
        model.map_or(std::env::consts::ARCH, |(_, model)| model),
        load.split(' ').next().unwrap_or_default()
    )
}

/// GB/s that all cores together read.
fn bandwidth() -> f64 {
    use rayon::prelude::*;
    let buffer = vec![1u64; 32 << 20];
    let pass = || {
        let started = Instant::now();
        let sum: u64 = buffer.par_chunks(1 << 16).map(|chunk| chunk.iter().sum::<u64>()).sum();
        std::hint::black_box(sum);
        buffer.len() as f64 * 8.0 / started.elapsed().as_secs_f64() / 1e9
    };
    (0..5).map(|_| pass()).fold(0.0, f64::max)
}

fn unit(dimension: usize, random: &mut ChaCha8Rng) -> Vec<f32> {
    // A sum of uniform numbers is near enough to normal for a direction.
    let mut vector: Vec<f32> = (0..dimension)
        .map(|_| random.random_range(-1.0..1.0f32) + random.random_range(-1.0..1.0f32))
        .collect();
    let length = vector.iter().map(|value| value * value).sum::<f32>().sqrt();
    vector.iter_mut().for_each(|value| *value /= length);
    vector
}

/// A unit vector at a cosine of [`JITTER`] with this one.
fn jittered(row: &[f16], random: &mut ChaCha8Rng) -> Vec<f16> {
    let row: Vec<f32> = row.iter().map(|value| value.to_f32()).collect();
    let mut aside = unit(row.len(), random);
    let along: f32 = aside.iter().zip(&row).map(|(a, b)| a * b).sum();
    aside.iter_mut().zip(&row).for_each(|(a, b)| *a -= along * b);
    let length = aside.iter().map(|value| value * value).sum::<f32>().sqrt();
    let share = (1.0 - JITTER * JITTER).sqrt() / length;
    row.iter().zip(aside).map(|(a, b)| f16::from_f32(JITTER * a + share * b)).collect()
}

/// Words as frequent as Zipf's law has it.
fn text(random: &mut ChaCha8Rng, words: usize) -> String {
    let word = |random: &mut ChaCha8Rng| {
        let place = 20_000f64.powf(random.random_range(0.0..1.0)) as u32;
        format!("w{place}")
    };
    (0..words).map(|_| word(random)).collect::<Vec<_>>().join(" ")
}
