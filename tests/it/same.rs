//! Whether two libraries hold the same: what an interrupted, resumed or otherwise driven run gave
//! against what an unbroken one gives.

use std::collections::BTreeMap;
use std::path::Path;

use cinelex::library::{ClipRow, Reader, Recipe, RecipeKind, Shown, Source};
use cinelex::media::VisualWord;
use half::f16;

use crate::cinelex::index;
use crate::stopping::{films, paths};
use crate::ties::{Eye, is_tie};

/// Features are stored as half floats; two that differ by less than this before they are rounded
/// may be neighbours afterwards.
const NEAR: f32 = 1e-4;
/// Of 1,000 clips as many may have other visual words: where two centroids are equally near, the last
/// bit of a sum decides.
const TIES_IN_1000: usize = 1;

/// Panics, saying what differs, unless both libraries hold the same sources with the same clips,
/// cues, gaps and segments by the same recipes.
pub fn assert_same(one: &Path, other: &Path) {
    compare(&Content::of(one), &Content::of(other));
}

fn compare(one: &Content, other: &Content) {
    assert_eq!(one.recipes, other.recipes, "recipes");
    let keys = |content: &Content| content.sources.keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(one), keys(other), "sources");
    let (mut clips, mut ties) = (0, 0);
    for (fingerprint, a) in &one.sources {
        let b = &other.sources[fingerprint];
        let name = &a.shown.source.name;
        assert_eq!(a.shown.source.state, b.shown.source.state, "{name}: state");
        assert_eq!(a.shown.source.duration, b.shown.source.duration, "{name}: length");
        assert_eq!(a.shown.source.error, b.shown.source.error, "{name}: error");
        let heads = |shown: &Shown| shown.clips.iter().map(|clip| clip.head).collect::<Vec<_>>();
        assert_eq!(heads(&a.shown), heads(&b.shown), "{name}: clips");
        assert_eq!(a.shown.cues, b.shown.cues, "{name}: cues");
        assert_eq!(a.shown.gaps, b.shown.gaps, "{name}: gaps");
        assert_eq!(a.shown.segments, b.shown.segments, "{name}: segments");
        for (at, (one, other)) in a.features.iter().zip(&b.features).enumerate() {
            assert_eq!(one.len(), other.len(), "{name}: dimensions of clip {at}");
            let differ = one.iter().zip(other).find(|(one, other)| !is_near(**one, **other));
            assert_eq!(differ, None, "{name}: features of clip {at}");
        }
        for (clip, twin) in a.shown.clips.iter().zip(&b.shown.clips) {
            assert_eq!(clip.words.len(), twin.words.len(), "{name}: words of a clip");
            clips += 1;
            if clip.words != twin.words {
                let recipe = one.clips.as_ref().unwrap();
                assert_ties(&mut Eye::of(recipe), &a.shown.source, clip, &twin.words);
                ties += 1;
            }
        }
    }
    assert!(ties * 1000 <= clips * TIES_IN_1000, "the words of {ties} of {clips} clips differ");
}

/// Panics unless a clip's features lie between each of its words and that of `others` in its place.
fn assert_ties(eye: &mut Eye, source: &Source, clip: &ClipRow, others: &[VisualWord]) {
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

/// Within [`NEAR`], or neighbours among half floats.
fn is_near(one: f16, other: f16) -> bool {
    (one.to_f32() - other.to_f32()).abs() <= NEAR || one.to_bits().abs_diff(other.to_bits()) <= 1
}

/// What a library holds, by what names it in every library.
struct Content {
    /// Hash, kind, whether it is current, rows, complete sources.
    recipes: Vec<(String, String, bool, u64, u64)>,
    /// That of the clips.
    clips: Option<Recipe>,
    /// By fingerprint.
    sources: BTreeMap<String, OneSource>,
}

struct OneSource {
    shown: Shown,
    /// Of each clip in `shown`.
    features: Vec<Vec<f16>>,
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
            let features = shown.clips.iter().map(|clip| reader.features(clip.id).unwrap());
            let features = features.collect();
            (source.fingerprint, OneSource { shown, features })
        });
        let clips = reader.current(RecipeKind::Clip).unwrap();
        Content { recipes, clips, sources: sources.collect() }
    }
}

/// Clips of a library's one source of this name, with their features, in order.
pub fn clips(library: &Path, name: &str) -> Vec<(i64, Vec<f16>)> {
    let content = Content::of(library);
    let found: Vec<&OneSource> =
        content.sources.values().filter(|one| one.shown.source.name == name).collect();
    assert_eq!(found.len(), 1, "sources named {name}");
    let starts = found[0].shown.clips.iter().map(|clip| clip.head.span.start.0);
    starts.zip(found[0].features.iter().cloned()).collect()
}

/// Panics unless `part` is how `whole` begins, but for its last `loose` clips.
pub fn assert_begins(whole: &[(i64, Vec<f16>)], part: &[(i64, Vec<f16>)], loose: usize) {
    let sure = part.len().saturating_sub(loose);
    for ((at, one), (other_at, other)) in whole.iter().zip(part).take(sure) {
        assert_eq!(at, other_at);
        assert!(one.iter().zip(other).all(|(one, other)| is_near(*one, *other)), "clip at {at}");
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
    let mut eye = Eye::of(content.clips.as_ref().unwrap());
    for one in content.sources.values() {
        for (clip, features) in one.shown.clips.iter().zip(&one.features) {
            let seen = eye.features(&one.shown.source, clip.head.span);
            let near =
                seen.row(0).iter().zip(features).all(|(a, b)| is_near(f16::from_f32(*a), *b));
            assert!(near, "{}: clip at {}", one.shown.source.name, clip.head.span.start);
            let words = eye.codebook.quantize(seen.view()).unwrap();
            assert_eq!(words, clip.words, "{}", one.shown.source.name);
        }
    }
    let clip = &mut other.sources.values_mut().next().unwrap().shown.clips[0];
    let word = &mut clip.words[4];
    *word = VisualWord(if word.0 == 0 { 1 } else { word.0 - 1 });
    let told = std::panic::catch_unwind(|| compare(&content, &other)).unwrap_err();
    let told = told.downcast_ref::<String>().unwrap();
    assert!(told.contains("its features tell them apart"), "{told}");
}
