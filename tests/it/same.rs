//! Whether two libraries hold the same: what an interrupted, resumed or otherwise driven run gave
//! against what an unbroken one gives.

use std::collections::BTreeMap;
use std::path::Path;

use cinelex::library::{Reader, Recipe, RecipeKind, SegmentReading, SegmentRecord, Shown, Source};
use cinelex::media::{CellFeatures, IndexedClip, VisualWord};
use half::f16;

use crate::cinelex::index;
use crate::stopping::{films, paths};
use crate::ties::{Eye, is_tie};

/// How far two runs' features and embeddings may be from each other before they are rounded.
///
/// They are stored as half floats, which lie further apart than this from [`COARSE`] on (a 1,024th at 1).
/// So two that are this near may be stored as neighbours, but the larger the step, the more seldom: on
/// average the stored ones are no further from each other than the others were.
const NEAR: f32 = 1e-4;
const COARSE: f32 = 0.125;
/// Of 1,000 clips as many may have other visual words: where two centroids are equally near, the last
/// bit of a sum decides.
const TIES_IN_1000: usize = 1;

/// Panics, saying what differs, unless both libraries hold the same sources with the same clips,
/// thumbnails, cues, gaps, segments and captions by the same recipes.
pub fn assert_same(one: &Path, other: &Path) {
    compare(&Content::of(one), &Content::of(other));
}

/// Panics unless a library has everything that another one has, as it is there.
pub fn assert_keeps(before: &Path, after: &Path) {
    compare_sources(&Content::of(before), &Content::of(after));
}

fn compare(one: &Content, other: &Content) {
    assert_eq!(one.recipes, other.recipes, "recipes");
    let keys = |content: &Content| content.sources.keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(one), keys(other), "sources");
    compare_sources(one, other);
}

/// Of all sources of `one`.
fn compare_sources(one: &Content, other: &Content) {
    let (mut clips, mut ties) = (0, 0);
    for (fingerprint, a) in &one.sources {
        let name = &a.shown.source.name;
        let b = other.sources.get(fingerprint).unwrap_or_else(|| panic!("{name} is lost"));
        let about = |one: &OneSource| {
            let Source { origin, duration, media, wall, state, error, tags, .. } =
                one.shown.source.clone();
            (origin, duration, media, wall, state, error, tags)
        };
        assert_eq!(about(a), about(b), "{name}: what is known of it");
        let heads = |one: &OneSource| one.clips.iter().map(|clip| clip.head).collect::<Vec<_>>();
        assert_eq!(heads(a), heads(b), "{name}: clips");
        assert_eq!(a.shown.cues, b.shown.cues, "{name}: cues");
        assert_eq!(a.shown.gaps, b.shown.gaps, "{name}: gaps");
        // With captions, but without vectors.
        assert_eq!(a.shown.segments, b.shown.segments, "{name}: segments");
        for (segment, twin) in a.segments.iter().zip(&b.segments) {
            let at = format!("{name}: segment at {}", segment.span.start);
            assert_near(&segment.embedding, &twin.embedding, &format!("{at}: embedding"));
            let seen = |segment: &SegmentRecord| {
                segment.reading.clone().map(|SegmentReading { embedding, .. }| embedding)
            };
            assert_eq!(seen(segment).is_some(), seen(twin).is_some(), "{at}: reading");
            let [one, other] = [segment, twin].map(|segment| seen(segment).unwrap_or_default());
            assert_near(&one, &other, &format!("{at}: embedding of its picture"));
        }
        for (clip, twin) in a.clips.iter().zip(&b.clips) {
            let at = format!("{name}: clip at {}", clip.head.span.start);
            assert_near(&clip.features, &twin.features, &format!("{at}: features"));
            assert_near(&clip.embedding, &twin.embedding, &format!("{at}: embedding"));
            let dim = clip.features.len();
            assert!(are_near(&clip.cells, &twin.cells, dim), "{at}: features of its cells");
            assert!(clip.thumbnail == twin.thumbnail, "{at}: thumbnail");
            assert_eq!(clip.words.len(), twin.words.len(), "{at}: words");
            clips += 1;
            if clip.words != twin.words {
                let recipe = one.recipe.as_ref().unwrap();
                assert_ties(&mut Eye::of(recipe), &a.shown.source, clip, &twin.words);
                ties += 1;
            }
        }
    }
    assert!(ties * 1000 <= clips * TIES_IN_1000, "the words of {ties} of {clips} clips differ");
}

/// Panics unless a clip's features lie between each of its words and that of `others` in its place.
fn assert_ties(eye: &mut Eye, source: &Source, clip: &IndexedClip, others: &[VisualWord]) {
    let features = eye.features(source, clip.head.span);
    let seen = eye.codebook.project(features.view()).unwrap();
    for ((one, other), seen) in clip.words.iter().zip(others).zip(seen.rows()) {
        assert!(
            is_tie(&eye.codebook, seen, *one, *other),
            "{}: the clip at {} has the word {} or {}, and its features tell them apart",
            source.name,
            clip.head.span.start,
            one.0,
            other.0
        );
    }
}

/// Panics unless two vectors may be the same one, as two runs have rounded it.
fn assert_near(one: &[f16], other: &[f16], what: &str) {
    assert_eq!(one.len(), other.len(), "{what}: dimensions");
    let differ = one.iter().zip(other).find(|(one, other)| !is_near(**one, **other));
    assert_eq!(differ, None, "{what}");
    let pairs = one.iter().zip(other).map(|(one, other)| (one.to_f32(), other.to_f32()));
    let coarse: Vec<(f32, f32)> = pairs.filter(|(one, _)| one.abs() >= COARSE).collect();
    let apart: f32 = coarse.iter().map(|(one, other)| (one - other).abs()).sum();
    // Where there are few, one may have made a step.
    let most = coarse.iter().map(|(one, _)| one.abs()).fold(0.0, f32::max);
    let allowed = NEAR * coarse.len() as f32 + most * f16::EPSILON.to_f32();
    assert!(apart <= allowed, "{what}: {} numbers differ by {apart} in all", coarse.len());
}

/// Within [`NEAR`], or neighbours among half floats.
fn is_near(one: f16, other: f16) -> bool {
    (one.to_f32() - other.to_f32()).abs() <= NEAR || one.to_bits().abs_diff(other.to_bits()) <= 1
}

/// Whether the features of cells, of `dim` values each, are those of pictures within [`NEAR`]: a
/// value that lies between two of the 16 levels may be stored as either.
fn are_near(one: &CellFeatures, other: &CellFeatures, dim: usize) -> bool {
    let [one, other] = [one, other].map(|cells| cells.values(dim).unwrap());
    let cells = one.chunks(dim.max(1)).zip(other.chunks(dim.max(1)));
    one.len() == other.len()
        && cells.into_iter().all(|(one, other)| {
            let most = one.iter().copied().fold(0.0, f32::max);
            let level = most / 15.0 + NEAR;
            one.iter().zip(other).all(|(one, other)| (one - other).abs() <= level)
        })
}

/// What a library holds, by what names it in every library.
struct Content {
    /// Hash, kind, whether it is current, rows, complete sources.
    recipes: Vec<(String, String, bool, u64, u64)>,
    /// That of the clips.
    recipe: Option<Recipe>,
    /// By fingerprint.
    sources: BTreeMap<String, OneSource>,
}

struct OneSource {
    shown: Shown,
    /// With their thumbnails.
    clips: Vec<IndexedClip>,
    segments: Vec<SegmentRecord>,
}

impl Content {
    fn of(library: &Path) -> Content {
        let reader = Reader::open(library).unwrap();
        let recipes = reader.info().unwrap().recipes.into_iter().map(|info| {
            let recipe = &info.recipe;
            let kind = recipe.kind.as_str().to_owned();
            (recipe.id.to_string(), kind, info.current, info.rows, info.complete)
        });
        let mut recipes: Vec<_> = recipes.collect();
        recipes.sort();
        let sources = reader.sources().unwrap().into_iter().map(|source| {
            let shown = reader.show(source.id).unwrap();
            let (mut clips, mut segments) = (Vec::new(), Vec::new());
            let keep = |clip| {
                clips.push(clip);
                Ok(())
            };
            reader.each_clip(source.id, keep).unwrap();
            for (clip, row) in clips.iter_mut().zip(&shown.clips) {
                clip.thumbnail = reader.thumbnail(row.id).unwrap();
            }
            let keep = |segment| {
                segments.push(segment);
                Ok(())
            };
            reader.each_segment(source.id, keep).unwrap();
            (source.fingerprint, OneSource { shown, clips, segments })
        });
        let recipe = reader.current(RecipeKind::Clip).unwrap();
        Content { recipes, recipe, sources: sources.collect() }
    }
}

/// Clips of a library's one source of this name, with their features, in order.
pub fn clips(library: &Path, name: &str) -> Vec<(i64, Vec<f16>)> {
    let content = Content::of(library);
    let found: Vec<&OneSource> =
        content.sources.values().filter(|one| one.shown.source.name == name).collect();
    assert_eq!(found.len(), 1, "sources named {name}");
    let clips = found[0].clips.iter();
    clips.map(|clip| (clip.head.span.start.0, clip.features.clone())).collect()
}

/// Panics unless `part` is how `whole` begins, but for its last `loose` clips.
pub fn assert_begins(whole: &[(i64, Vec<f16>)], part: &[(i64, Vec<f16>)], loose: usize) {
    let sure = part.len().saturating_sub(loose);
    for ((at, one), (other_at, other)) in whole.iter().zip(part).take(sure) {
        assert_eq!(at, other_at);
        assert_near(one, other, &format!("clip at {at}"));
    }
}

#[test]
fn a_word_that_the_features_tell_from_another_is_no_tie() {
    let folder = tempfile::TempDir::new().unwrap();
    let library = folder.path().join("library");
    let films = films(folder.path());
    index(&library, &paths(&films)).exits(0);
    let (content, mut other) = (Content::of(&library), Content::of(&library));
    compare(&content, &other);
    // What is seen again is what was stored, so that ties are judged by what the run saw.
    let mut eye = Eye::of(content.recipe.as_ref().unwrap());
    for one in content.sources.values() {
        for clip in &one.clips {
            let seen = eye.features(&one.shown.source, clip.head.span);
            let halves: Vec<f16> = seen.row(0).iter().map(|value| f16::from_f32(*value)).collect();
            let at = format!("{}: clip at {}", one.shown.source.name, clip.head.span.start);
            assert_near(&halves, &clip.features, &at);
            let words = eye.codebook.quantize(seen.view()).unwrap();
            assert_eq!(words, clip.words, "{at}");
        }
    }
    let clip = &mut other.sources.values_mut().next().unwrap().clips[0];
    let word = &mut clip.words[4];
    *word = VisualWord(if word.0 == 0 { 1 } else { word.0 - 1 });
    let told = std::panic::catch_unwind(|| compare(&content, &other)).unwrap_err();
    let told = told.downcast_ref::<String>().unwrap();
    assert!(told.contains("its features tell them apart"), "{told}");
}

#[test]
fn whatever_differs_is_told() {
    type Spoil = fn(&mut OneSource);
    fn next(value: &mut f16) {
        *value = f16::from_bits(value.to_bits() + 1);
    }
    let folder = tempfile::TempDir::new().unwrap();
    let library = folder.path().join("library");
    let films = films(folder.path());
    index(&library, &paths(&films[..1])).exits(0);
    let spoil: [(&str, Spoil); 8] = [
        ("known of it", |one| one.shown.source.tags.push(("shelf".into(), "12".into()))),
        ("features", |one| one.clips[1].features.iter_mut().for_each(next)),
        ("features", |one| {
            let most = one.clips[1].features.iter_mut().max_by(|a, b| a.total_cmp(b)).unwrap();
            (0..2).for_each(|_| next(most));
        }),
        ("embedding", |one| one.clips[1].embedding[7] += f16::from_f32(0.001)),
        ("cells", |one| one.clips[1].cells = CellFeatures::new(&[0.5; 9 * 1280], 1280)),
        ("thumbnail", |one| one.clips[1].thumbnail = one.clips[0].thumbnail.take()),
        ("embedding", |one| one.segments[0].embedding[7] += f16::from_f32(0.001)),
        ("embedding of its picture", |one| {
            one.segments[0].reading.as_mut().unwrap().embedding[7] += f16::from_f32(0.001);
        }),
    ];
    let content = Content::of(&library);
    for (what, spoil) in spoil {
        let mut other = Content::of(&library);
        compare(&content, &other);
        spoil(other.sources.values_mut().next().unwrap());
        let told = std::panic::catch_unwind(|| compare(&content, &other)).unwrap_err();
        let told = told.downcast_ref::<String>().unwrap();
        assert!(told.contains(what), "{what}: {told}");
    }
}
