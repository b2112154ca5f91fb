//! How long a search through a library takes, and how many bytes a clip takes on disk.
//!
//! `cargo bench --profile release --bench search [-- CLIPS [FOLDER]]` makes a library of 100,000 clips of random
//! unit vectors (384 dimensions, 1,280 features) with a cue and a segment for each ten, in a
//! temporary folder, or uses the one that FOLDER holds. It prints medians and 95th percentiles.

use std::path::Path;
use std::time::Instant;

use cinelex::library::{
    ChunkRecord, Location, NewSource, Origin, Place, Query, Reader, Recipe, RecipeKind,
    SegmentRecord, Space, State, Tree, Writer,
};
use cinelex::media::{Channel, ClipHead, Cue, CueKind, IndexedClip, VisualWord};
use cinelex::time::{Micros, Span, Timestamp};
use half::f16;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const DIMENSION: usize = 384;
const FEATURES: usize = 1_280;
const CLIP_US: i64 = 1_500_000;
const CLIPS_PER_CHUNK: i64 = 80;
const CHUNKS_PER_SOURCE: i64 = 50;
const WORDS: u32 = 20_000;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome<()> {
    let mut args = std::env::args().skip(1).filter(|arg| !arg.starts_with("--"));
    let clips: i64 = args.next().map_or(Ok(100_000), |count| count.parse())?;
    let temporary = tempfile::tempdir()?;
    let folder = args.next().map_or(temporary.path().join("library"), Into::into);
    let mut random = ChaCha8Rng::seed_from_u64(7);
    if !folder.exists() {
        let started = Instant::now();
        fill(&folder, clips, &mut random)?;
        println!("{clips} clips written in {:.1} s", started.elapsed().as_secs_f64());
    }

    let started = Instant::now();
    let mut reader = Reader::open(&folder)?;
    let info = reader.info()?;
    println!("bytes per clip, all in: {}", info.bytes / info.clips.max(1));
    println!("open and count: {:.1} ms", ms(started));
    let started = Instant::now();
    let query = |vector: Option<Vec<f32>>, words: Option<String>| Query {
        vectors: vector.iter().map(|vector| (Channel::Picture, vector.clone())).collect(),
        words,
        top: 10,
        ..Query::default()
    };
    reader.search(&query(Some(unit(&mut random)), None))?;
    println!("first search, embeddings read: {:.1} ms", ms(started));

    let mut report = |what: &str, make: &mut dyn FnMut(&mut ChaCha8Rng) -> Query| -> Outcome<()> {
        let mut times = Vec::new();
        for _ in 0..200 {
            let query = make(&mut random);
            let started = Instant::now();
            std::hint::black_box(reader.search(&query)?);
            times.push(ms(started));
        }
        times.sort_by(f64::total_cmp);
        println!("{what}: median {:.2} ms, p95 {:.2} ms", times[100], times[190]);
        Ok(())
    };
    report("picture", &mut |random| query(Some(unit(random)), None))?;
    report("words", &mut |random| query(None, Some(text(random, 3))))?;
    report("picture, speech and words", &mut |random| {
        let vector = unit(random);
        let mut both = query(Some(vector.clone()), Some(text(random, 3)));
        both.vectors.push((Channel::Speech, vector));
        both
    })
}

fn ms(started: Instant) -> f64 {
    started.elapsed().as_secs_f64() * 1e3
}

fn unit(random: &mut ChaCha8Rng) -> Vec<f32> {
    // A sum of uniform numbers is near enough to normal for a direction.
    let mut vector: Vec<f32> =
        (0..DIMENSION).map(|_| (0..4).map(|_| random.random_range(-1.0..1.0f32)).sum()).collect();
    let length = vector.iter().map(|value| value * value).sum::<f32>().sqrt();
    vector.iter_mut().for_each(|value| *value /= length);
    vector
}

/// Words as frequent as Zipf's law has it.
fn text(random: &mut ChaCha8Rng, words: usize) -> String {
    let word = |random: &mut ChaCha8Rng| {
        let place = f64::from(WORDS).powf(random.random_range(0.0..1.0)) as u32;
        format!("w{place}")
    };
    (0..words).map(|_| word(random)).collect::<Vec<_>>().join(" ")
}

fn halves(values: &[f32]) -> Vec<f16> {
    values.iter().map(|&value| f16::from_f32(value)).collect()
}

fn fill(folder: &Path, clips: i64, random: &mut ChaCha8Rng) -> Outcome<()> {
    let mut writer = Writer::open(folder)?;
    let space = Space {
        id: "random".into(),
        tower: "random".into(),
        dimension: DIMENSION,
        languages: Vec::new(),
    };
    let mut ids = Vec::new();
    for (kind, hash) in [(RecipeKind::Clip, "c0ffee00"), (RecipeKind::Segment, "5e6e5e6e")] {
        let recipe = Recipe {
            id: hash.parse()?,
            kind,
            description: serde_json::Value::Null,
            space: Some(space.clone()),
            tree: Some(Tree { branching: 12, depth: 3 }),
        };
        writer.add_recipe(&recipe)?;
        ids.push(recipe.id);
    }
    let per_source = CLIPS_PER_CHUNK * CHUNKS_PER_SOURCE;
    for number in 0..(clips + per_source - 1) / per_source {
        let here = per_source.min(clips - number * per_source);
        let location = Location {
            place: Place::Path(format!("/random/{number}").into()),
            size_bytes: None,
            modified_us: None,
            device: None,
            inode: None,
        };
        let source = writer.add_source(&NewSource {
            fingerprint: number.to_string(),
            name: format!("random {number}"),
            origin: Origin::File,
            duration: Some(Micros(here * CLIP_US)),
            media: serde_json::Value::Null,
            wall: None,
            location,
        })?;
        let span =
            |from: i64, to: i64| Span::new(Timestamp(from * CLIP_US), Timestamp(to * CLIP_US));
        for (index, first) in (0..here).step_by(CLIPS_PER_CHUNK as usize).enumerate() {
            let last = here.min(first + CLIPS_PER_CHUNK);
            let clip = |place: i64| IndexedClip {
                head: ClipHead {
                    span: span(place, place + 1),
                    raw_pts: 0,
                    frames: 2,
                    shot_start: None,
                },
                words: (0..10).map(|_| VisualWord(random.random_range(0..1_728))).collect(),
                features: (0..FEATURES).map(|_| f16::from_f32(random.random())).collect(),
                embedding: halves(&unit(random)),
            };
            let clips = (first..last).map(clip).collect();
            let chunk = ChunkRecord {
                index: index as u32,
                span: span(first, last),
                clips,
                gaps: Vec::new(),
            };
            writer.commit_chunk(source.id, &ids[0], &chunk)?;
        }
        let starts = (0..here).step_by(10);
        let cues: Vec<Cue> = starts
            .map(|start| Cue {
                span: span(start, here.min(start + 10)),
                text: text(random, 12),
                kind: CueKind::Subtitle,
                language: Some("en".into()),
                track: "sidecar:random.srt".into(),
                confidence: None,
                words: Vec::new(),
                speaker: None,
            })
            .collect();
        writer.replace_cues(source.id, "sidecar:", &cues)?;
        let segments: Vec<SegmentRecord> = cues
            .into_iter()
            .map(|cue| SegmentRecord {
                span: cue.span,
                text: cue.text,
                language: cue.language,
                embedding: halves(&unit(random)),
            })
            .collect();
        writer.commit_segments(source.id, &ids[1], &segments)?;
        writer.finish_source(source.id, &ids[0], State::Complete, None)?;
    }
    Ok(())
}
