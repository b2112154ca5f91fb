//! What the module's tests share, and the tests of writing and reading back.

mod hearing;
mod index;
mod keeping;
mod live;
mod mending;
mod merging;
mod search;
mod versions;

use std::path::Path;

use half::f16;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::error::Kind;
use crate::media::{
    Caption, CellFeatures, ClipHead, Cue, CueKind, Gap, IndexedClip, Thumbnail, TimedWord,
    TrackKind, VisualWord,
};
use crate::time::{Micros, Span, Timestamp};

pub(super) const DIMENSION: usize = 8;

pub(super) fn span(start_us: i64, end_us: i64) -> Span {
    Span::new(Timestamp(start_us), Timestamp(end_us))
}

pub(super) fn recipe(kind: RecipeKind, hash: &str) -> Recipe {
    Recipe {
        id: hash.parse().unwrap(),
        kind,
        description: serde_json::json!({ "clip_secs": 1.5 }),
        space: Some(Space {
            id: "test".into(),
            tower: "test".into(),
            dimension: DIMENSION,
            languages: vec!["en".into()],
        }),
        tree: Some(Tree { branching: 12, depth: 3 }),
    }
}

pub(super) fn clips_recipe() -> RecipeId {
    "c0ffee00".parse().unwrap()
}

pub(super) fn segments_recipe() -> RecipeId {
    "5e6e5e6e".parse().unwrap()
}

pub(super) fn speech_recipe() -> RecipeId {
    "5feec400".parse().unwrap()
}

/// A recipe of listening: it has neither space nor tree.
pub(super) fn listening(hash: &str) -> Recipe {
    Recipe { space: None, tree: None, ..recipe(RecipeKind::Speech, hash) }
}

/// What might be heard in a chunk of ten seconds.
pub(super) fn heard(index: u32, text: &str) -> HeardChunk {
    let start = i64::from(index) * 10_000_000;
    let word = |at: i64, text: &str| TimedWord {
        span: span(start + at, start + at + 300_000),
        text: text.into(),
        confidence: Some(0.75),
    };
    let cue = Cue {
        kind: CueKind::Speech,
        track: "speech:1".into(),
        confidence: Some(0.75),
        words: text.split(' ').zip(1..).map(|(text, at)| word(at * 400_000, text)).collect(),
        ..cue(start + 400_000, start + 9_000_000, text)
    };
    let gap = Gap {
        span: span(start + 9_500_000, start + 9_600_000),
        track: TrackKind::Sound,
        reason: "no sound".into(),
    };
    HeardChunk { index, span: span(start, start + 10_000_000), cues: vec![cue], gaps: vec![gap] }
}

/// A new library that knows both recipes.
pub(super) fn new_library() -> (TempDir, Writer) {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(&folder.path().join("lib")).unwrap();
    writer.add_recipe(&recipe(RecipeKind::Clip, "c0ffee00")).unwrap();
    writer.add_recipe(&recipe(RecipeKind::Segment, "5e6e5e6e")).unwrap();
    (folder, writer)
}

pub(super) fn new_source(name: &str) -> NewSource {
    NewSource {
        fingerprint: format!("print of {name}"),
        name: name.into(),
        origin: Origin::File,
        duration: Some(Micros(60_000_000)),
        media: serde_json::json!({ "container": "mp4" }),
        wall: None,
        location: at(&format!("/films/{name}")),
    }
}

pub(super) fn at(path: &str) -> Location {
    Location {
        place: Place::Path(path.into()),
        size_bytes: Some(u64::MAX),
        modified_us: Some(-1),
        device: Some(1),
        inode: Some(u64::MAX - 1),
    }
}

pub(super) fn unit(values: [f32; DIMENSION]) -> Vec<f16> {
    let length = values.iter().map(|value| value * value).sum::<f32>().sqrt().max(1e-6);
    values.iter().map(|value| f16::from_f32(value / length)).collect()
}

pub(super) fn clip(start_us: i64, embedding: [f32; DIMENSION]) -> IndexedClip {
    IndexedClip {
        head: ClipHead {
            span: span(start_us, start_us + 1_500_000),
            raw_pts: start_us * 9 / 100,
            frames: 2,
            shot_start: None,
        },
        words: vec![VisualWord(1), VisualWord(1_727)],
        features: embedding.iter().map(|&value| f16::from_f32(value)).collect(),
        cells: CellFeatures::new(&embedding.repeat(9), DIMENSION),
        embedding: unit(embedding),
        thumbnail: Some(thumbnail(start_us)),
    }
}

/// What begins and ends as a JPEG does, and is another for each number.
pub(super) fn thumbnail(number: i64) -> Thumbnail {
    let hash = blake3::hash(&number.to_le_bytes());
    let bytes = [&[0xff, 0xd8, 0xff, 0xe0][..], hash.as_bytes(), &[0xff, 0xd9]].concat();
    Thumbnail::from_bytes(bytes).unwrap()
}

/// What a transformer might make of a segment of which this was said.
pub(super) fn reading(caption: &str, embedding: [f32; DIMENSION]) -> Option<SegmentReading> {
    let caption = Caption { text: caption.into(), confidence: 0.5 };
    Some(SegmentReading {
        caption: Some(caption),
        alignment: Some(1.0),
        embedding: unit(embedding),
    })
}

pub(super) fn cue(start_us: i64, end_us: i64, text: &str) -> Cue {
    Cue {
        span: span(start_us, end_us),
        text: text.into(),
        kind: CueKind::Subtitle,
        language: Some("en".into()),
        track: "sidecar:a.srt".into(),
        confidence: None,
        words: Vec::new(),
        speaker: None,
    }
}

fn halves(count: usize) -> impl Strategy<Value = Vec<f16>> {
    prop::collection::vec((-60_000f32..60_000.0).prop_map(f16::from_f32), count)
}

prop_compose! {
    fn any_clip()(
        raw_pts in any::<i64>(),
        length in 1i64..2_000_000,
        frames in any::<u16>(),
        shot in prop::option::of(any::<i64>()),
        words in prop::collection::vec(any::<u32>().prop_map(VisualWord), 0..10),
        features in halves(16),
        cells in prop_oneof![prop::collection::vec(-9f32..9.0, 32), Just(Vec::new())],
        embedding in prop_oneof![halves(DIMENSION), Just(Vec::new())],
        thumbnail in prop::option::of(any::<i64>().prop_map(thumbnail)),
    ) -> IndexedClip {
        let head = ClipHead { span: span(0, length), raw_pts, frames, shot_start: shot.map(Timestamp) };
        let cells = CellFeatures::new(&cells, 16);
        IndexedClip { head, words, features, cells, embedding, thumbnail }
    }
}

prop_compose! {
    fn any_chunk()(
        clips in prop::collection::vec(any_clip(), 0..6),
        gaps in prop::collection::vec(("\\PC*", 0i64..1_000_000), 0..4),
    ) -> ChunkRecord {
        let clips = clips.into_iter().enumerate().map(|(place, mut clip)| {
            let start = place as i64 * 1_500_000;
            clip.head.span = span(start, start + clip.head.span.end.0);
            clip
        });
        let gap = |(reason, start)| Gap { span: span(start, start + 5), track: TrackKind::Picture, reason };
        let mut gaps: Vec<Gap> = gaps.into_iter().map(gap).collect();
        gaps.sort_by_key(|gap| gap.span.start);
        ChunkRecord { index: 3, span: span(0, 120_000_000), clips: clips.collect(), gaps }
    }
}

prop_compose! {
    fn any_cue()(
        text in any::<String>(),
        start in 0i64..1_000_000,
        confidence in prop::option::of(0f32..=1.0),
        words in prop::collection::vec(any::<String>(), 0..3),
        speaker in prop::option::of(any::<String>()),
        kind in prop_oneof![Just(CueKind::Subtitle), Just(CueKind::Speech), Just(CueKind::Screen)],
    ) -> Cue {
        let word = |text| TimedWord { span: span(start, start + 1), text, confidence };
        Cue {
            kind, confidence, speaker,
            words: words.into_iter().map(word).collect(),
            ..cue(start, start + 10, &text)
        }
    }
}

fn open(folder: &Path) -> Reader {
    Reader::open(&folder.join("lib")).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn what_is_committed_reads_back(
        first in any_chunk(),
        chunk in any_chunk(),
        mut cues in prop::collection::vec(any_cue(), 0..5),
    ) {
        let (folder, mut writer) = new_library();
        let id = writer.add_source(&new_source("a.mp4")).unwrap().id;
        // The same chunk again takes the place of the first attempt, whatever that gave.
        writer.commit_chunk(id, &clips_recipe(), &first).unwrap();
        writer.commit_chunk(id, &clips_recipe(), &chunk).unwrap();
        writer.commit_chunk(id, &clips_recipe(), &chunk).unwrap();
        writer.replace_cues(id, "sidecar:", &cues).unwrap();
        prop_assert_eq!(writer.done_chunks(id, &clips_recipe()).unwrap(), vec![3]);

        let reader = open(folder.path());
        let shown = reader.show(id).unwrap();
        prop_assert_eq!(shown.clips.len(), chunk.clips.len());
        for (row, clip) in shown.clips.iter().zip(&chunk.clips) {
            prop_assert_eq!(&row.head, &clip.head);
            prop_assert_eq!(&row.words, &clip.words);
            prop_assert_eq!(&reader.features(row.id).unwrap(), &clip.features);
            prop_assert_eq!(&reader.clip(row.id).unwrap(), row);
            prop_assert_eq!(&reader.thumbnail(row.id).unwrap(), &clip.thumbnail);
            let embedding = reader.embedding(row.id).unwrap_or_default();
            let expected: Vec<f32> = clip.embedding.iter().map(|value| value.to_f32()).collect();
            prop_assert_eq!(embedding, expected);
        }
        prop_assert_eq!(&shown.gaps, &chunk.gaps);
        cues.sort_by_key(|cue| cue.span.start);
        prop_assert_eq!(&shown.cues, &cues);
        let mut streamed = Vec::new();
        reader.each_features(&clips_recipe(), |_, features| { streamed.push(features); Ok(()) }).unwrap();
        let features: Vec<_> = chunk.clips.iter().map(|clip| clip.features.clone()).collect();
        prop_assert_eq!(streamed, features);
        let mut streamed = Vec::new();
        reader.each_clip(id, |clip| { streamed.push(clip); Ok(()) }).unwrap();
        let without = chunk.clips.into_iter().map(|clip| IndexedClip { thumbnail: None, ..clip });
        prop_assert_eq!(streamed, without.collect::<Vec<_>>());
    }
}
