//! The index of embeddings: search with it against search without, and what is done to its files.

use std::path::PathBuf;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::media::Channel;

const WIDE: usize = 64;
const CLIP_US: i64 = 1_500_000;

/// A library whose space has 64 dimensions.
fn wide_library() -> (TempDir, Writer) {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(&folder.path().join("lib")).unwrap();
    let mut recipe = recipe(RecipeKind::Clip, "c0ffee00");
    recipe.space = recipe.space.map(|space| Space { dimension: WIDE, ..space });
    writer.add_recipe(&recipe).unwrap();
    (folder, writer)
}

/// A unit vector near one of 20 directions, as pictures of 20 kinds would be.
fn vector(random: &mut ChaCha8Rng) -> Vec<f16> {
    let kind = random.random_range(0..20u64);
    let mut centre = ChaCha8Rng::seed_from_u64(kind);
    let values: Vec<f32> = (0..WIDE)
        .map(|_| centre.random_range(-1.0..1.0f32) + random.random_range(-1.0..1.0f32))
        .collect();
    let length = values.iter().map(|value| value * value).sum::<f32>().sqrt();
    values.into_iter().map(|value| f16::from_f32(value / length)).collect()
}

fn add_film(writer: &mut Writer, name: &str, embeddings: &[Vec<f16>]) -> SourceId {
    let id = writer.add_source(&new_source(name)).unwrap().id;
    let clips = embeddings.iter().enumerate().map(|(place, embedding)| {
        let clip = clip(place as i64 * CLIP_US, [1.0; DIMENSION]);
        IndexedClip { embedding: embedding.clone(), ..clip }
    });
    let chunk = ChunkRecord {
        index: 0,
        span: span(0, embeddings.len() as i64 * CLIP_US),
        clips: clips.collect(),
        gaps: Vec::new(),
    };
    writer.commit_chunk(id, &clips_recipe(), &chunk).unwrap();
    id
}

/// Ten films of 1,000 clips each, indexed.
fn ten_films() -> (TempDir, Writer, Vec<SourceId>) {
    let (folder, mut writer) = wide_library();
    let mut random = ChaCha8Rng::seed_from_u64(100);
    let mut ids = Vec::new();
    for number in 0..10 {
        let embeddings: Vec<_> = (0..1_000).map(|_| vector(&mut random)).collect();
        ids.push(add_film(&mut writer, &format!("{number}.mp4"), &embeddings));
    }
    writer.refresh_index().unwrap();
    (folder, writer, ids)
}

fn by_picture(vector: &[f16]) -> Query {
    let vector = vector.iter().map(|value| value.to_f32()).collect();
    Query { vectors: vec![(Channel::Picture, vector)], top: 10, ..Query::default() }
}

fn files(folder: &TempDir) -> Vec<PathBuf> {
    let index = folder.path().join("lib/index");
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(index).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// What is found where the index is out of sight.
fn without_index(folder: &TempDir, query: &Query) -> Vec<Hit> {
    let (index, aside) = (folder.path().join("lib/index"), folder.path().join("aside"));
    std::fs::rename(&index, &aside).unwrap();
    let hits = open(folder.path()).search(query).unwrap();
    std::fs::rename(&aside, &index).unwrap();
    hits
}

#[test]
fn the_index_finds_what_comparing_every_clip_finds() {
    let (folder, mut writer, ids) = ten_films();
    assert_eq!(files(&folder).len(), 1);
    let mut random = ChaCha8Rng::seed_from_u64(200);
    let mut reader = open(folder.path());
    let (mut found, mut all) = (0, 0);
    for number in 0..30 {
        let query = by_picture(&vector(&mut random));
        let exact = without_index(&folder, &query);
        let hits = reader.search(&query).unwrap();
        all += exact.len();
        found += exact.iter().filter(|hit| hits.iter().any(|h| h.clip == hit.clip)).count();
        // What is compared exactly has the very same score.
        for hit in &hits {
            let same = exact.iter().find(|other| other.clip == hit.clip);
            assert!(same.is_none_or(|same| same.found.score == hit.found.score));
        }
        // Filters that leave fewer rows than are compared exactly make it exact.
        let of_one = Query { sources: vec![ids[number % 10]], ..query.clone() };
        assert_eq!(reader.search(&of_one).unwrap(), without_index(&folder, &of_one));
        let within = Some(span(100 * CLIP_US, 300 * CLIP_US));
        let short = Query { within, ..query };
        assert_eq!(reader.search(&short).unwrap(), without_index(&folder, &short));
    }
    assert!(found * 100 >= all * 99, "{found} of {all}");

    // What came after the index is found beside it, by a reader that was open before.
    let new = vector(&mut random);
    let id = add_film(&mut writer, "new.mp4", std::slice::from_ref(&new));
    assert_eq!(reader.search(&by_picture(&new)).unwrap()[0].source, id);
    assert_eq!(reader.check_index().unwrap().len(), 0);
}

#[test]
fn a_damaged_index_is_left_out_and_made_anew() {
    let (folder, mut writer, _) = ten_films();
    let mut random = ChaCha8Rng::seed_from_u64(300);
    let query = by_picture(&vector(&mut random));
    let exact = without_index(&folder, &query);
    let file = files(&folder).remove(0);
    let whole = std::fs::read(&file).unwrap();
    let mut damages: Vec<Vec<u8>> = [0, 1, 50, whole.len() / 3, whole.len() - 1]
        .map(|length| whole[..length].to_vec())
        .into_iter()
        .collect();
    damages.push([&whole[..], b"x"].concat());
    // Everywhere: header, columns, and every embedding.
    let header_and_columns = (0..100).chain((100..whole.len() / 4).step_by(9_973));
    damages.extend(header_and_columns.step_by(7).map(|at| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        bytes
    }));
    let embeddings = whole.len() - 10_000 * WIDE * 2;
    let mut bytes = whole.clone();
    bytes[embeddings..].chunks_mut(WIDE * 2).for_each(|embedding| embedding[3] ^= 4);
    damages.push(bytes);
    for damaged in &damages {
        std::fs::write(&file, damaged).unwrap();
        let mut reader = open(folder.path());
        assert_eq!(reader.search(&query).unwrap(), exact);
        assert_eq!(reader.search(&query).unwrap(), exact);
    }
    assert!(!open(folder.path()).check_index().unwrap().is_empty());
    writer.refresh_index().unwrap();
    assert_eq!(std::fs::read(&file).unwrap(), whole);
    assert_eq!(open(folder.path()).check_index().unwrap().len(), 0);

    // One embedding that no query may come near.
    let mut bytes = whole.clone();
    bytes[embeddings + 5_000 * WIDE * 2] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let findings = open(folder.path()).check_index().unwrap();
    assert_eq!(findings.len(), 1);
    assert!(findings[0].to_string().contains("clips-"), "{}", findings[0]);
    writer.refresh_index().unwrap();
    assert_eq!(std::fs::read(&file).unwrap(), whole);

    // Another library's file fits its own record only; a deleted one is made again.
    let (other, _writer, _) = ten_films();
    std::fs::copy(&files(&other)[0], &file).unwrap();
    assert_eq!(open(folder.path()).search(&query).unwrap(), exact);
    std::fs::remove_dir_all(file.parent().unwrap()).unwrap();
    assert_eq!(open(folder.path()).search(&query).unwrap(), exact);
    writer.rebuild_index().unwrap();
    assert_eq!(std::fs::read(&file).unwrap(), whole);
}

#[test]
fn nothing_of_a_forgotten_source_is_left_in_the_index() {
    let (folder, mut writer, ids) = ten_films();
    let reader = open(folder.path());
    let shown = reader.show(ids[3]).unwrap();
    let trace = |place: usize| {
        let embedding = reader.embedding(shown.clips[place].id).unwrap();
        rows::halves_to_bytes(&embedding.into_iter().map(f16::from_f32).collect::<Vec<_>>())
    };
    let traces: Vec<Vec<u8>> = (0..1_000).step_by(97).map(trace).collect();
    let holds = |folder: &TempDir| {
        let bytes: Vec<u8> =
            files(folder).iter().flat_map(|file| std::fs::read(file).unwrap()).collect();
        traces.iter().filter(|t| bytes.windows(t.len()).any(|window| window == &t[..])).count()
    };
    assert_eq!(holds(&folder), traces.len());
    drop(reader);
    writer.forget(ids[3]).unwrap();
    // 9,000 clips are still worth an index.
    assert_eq!(files(&folder).len(), 1);
    assert_eq!(holds(&folder), 0);
    assert_eq!(open(folder.path()).check_index().unwrap().len(), 0);
}

#[test]
fn parts_follow_each_other_and_the_last_grows() {
    let (folder, mut writer) = new_library();
    let mut random = ChaCha8Rng::seed_from_u64(400);
    let mut add = |writer: &mut Writer, name: &str, count: usize| {
        let mut embedding = || unit(std::array::from_fn(|_| random.random_range(-1.0..1.0)));
        let embeddings: Vec<_> = (0..count).map(|_| embedding()).collect();
        add_film(writer, name, &embeddings);
        writer.refresh_index().unwrap();
    };
    add(&mut writer, "small.mp4", 8_000);
    assert!(!folder.path().join("lib/index").exists());
    add(&mut writer, "large.mp4", 62_000);
    // One is full, and 4,464 rows are too few for another.
    let first = files(&folder);
    assert_eq!(first.len(), 1);
    add(&mut writer, "next.mp4", 8_000);
    let second = files(&folder);
    assert_eq!((second.len(), &second[0]), (2, &first[0]));
    let bytes = std::fs::metadata(&second[1]).unwrap().len();
    add(&mut writer, "last.mp4", 9_000);
    assert_eq!(files(&folder), second);
    assert!(std::fs::metadata(&second[1]).unwrap().len() > bytes);
    let reader = open(folder.path());
    assert_eq!(reader.check_index().unwrap().len(), 0);
    // What an interrupted writer left goes.
    std::fs::write(folder.path().join("lib/index/.tmpabc"), "half a part").unwrap();
    writer.refresh_index().unwrap();
    assert_eq!(files(&folder), second);
}

#[test]
fn parts_of_which_little_is_kept_are_made_anew_and_search_is_the_same() {
    const CHUNK_US: i64 = 80 * CLIP_US;
    let (folder, mut writer) = wide_library();
    let mut random = ChaCha8Rng::seed_from_u64(300);
    let door =
        writer.add_source(&NewSource { origin: Origin::Live, ..new_source("door") }).unwrap().id;
    let mut indexer = writer.indexer().unwrap();
    let mut watch = |writer: &mut Writer, chunks: std::ops::Range<u32>| {
        for index in chunks {
            let start = i64::from(index) * CHUNK_US;
            let clips = (0..80).map(|at| {
                let clip = clip(start + at * CLIP_US, [1.0; DIMENSION]);
                IndexedClip { embedding: vector(&mut random), ..clip }
            });
            let clips = clips.collect();
            let span = span(start, start + CHUNK_US);
            let chunk = ChunkRecord { index, span, clips, gaps: Vec::new() };
            writer.append(door, &clips_recipe(), &chunk).unwrap();
        }
    };
    watch(&mut writer, 0..110);
    indexer.refresh().unwrap();
    let size = |folder: &TempDir| -> Vec<u64> {
        files(folder).iter().map(|file| std::fs::metadata(file).unwrap().len()).collect()
    };
    let whole = size(&folder);
    assert_eq!(whole.len(), 1);
    let mut reader = open(folder.path());
    let same = |reader: &mut Reader| {
        let mut random = ChaCha8Rng::seed_from_u64(400);
        for _ in 0..10 {
            let mut query = by_picture(&vector(&mut random));
            query.top = 1;
            assert_eq!(reader.search(&query).unwrap(), without_index(&folder, &query));
        }
        assert_eq!(reader.check_index().unwrap().len(), 0);
    };
    same(&mut reader);
    let drop_to = |writer: &mut Writer, chunk: i64| {
        let keep = Keep::Lately(Micros(0));
        while writer.drop_oldest(keep, chunk * CHUNK_US).unwrap().is_some() {}
    };
    // Little is gone: the part stays, and what is gone of it is not found.
    drop_to(&mut writer, 20);
    same(&mut reader);
    indexer.refresh().unwrap();
    assert_eq!(size(&folder), whole);
    same(&mut reader);
    // Most is.
    drop_to(&mut writer, 80);
    same(&mut reader);
    indexer.refresh().unwrap();
    let thin = size(&folder);
    assert!(thin.len() == 1 && thin[0] < whole[0] / 3, "{thin:?} of {whole:?}");
    same(&mut reader);
    same(&mut open(folder.path()));
    // It goes on from there, and another who looks at it finds nothing wrong.
    watch(&mut writer, 110..220);
    drop_to(&mut writer, 115);
    indexer.refresh().unwrap();
    assert!(writer.index_is_complete().unwrap());
    same(&mut reader);
    writer.refresh_index().unwrap();
    same(&mut open(folder.path()));
    // All of it, and only then new clips.
    drop_to(&mut writer, 220);
    indexer.refresh().unwrap();
    watch(&mut writer, 220..330);
    indexer.refresh().unwrap();
    same(&mut reader);
}
