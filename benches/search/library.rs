//! Libraries to search in: clips and segments with given embeddings.

use std::path::Path;

use cinelex::library::{
    ChunkRecord, Location, NewSource, Origin, Place, Recipe, RecipeKind, SegmentRecord, Space,
    State, Tree, Writer,
};
use cinelex::media::{CellFeatures, ClipHead, Cue, CueKind, IndexedClip, VisualWord};
use cinelex::time::{Micros, Span, Timestamp};
use half::f16;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::{Material, Outcome};

const CLIP_US: i64 = 1_500_000;
const CLIPS_PER_SOURCE: usize = 4_000;

/// What a library is made of.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub clips: usize,
    /// Clips to a segment, which has one cue.
    pub per_segment: usize,
    pub per_chunk: usize,
    /// Length of the features, random numbers that search never reads.
    pub features: usize,
}

/// Writes a library and its index of embeddings; gives the seconds that the index took.
pub fn fill(
    folder: &Path,
    size: &Size,
    material: &Material,
    random: &mut ChaCha8Rng,
) -> Outcome<f64> {
    let mut writer = Writer::open(folder)?;
    let mut ids = Vec::new();
    for (kind, hash) in [(RecipeKind::Clip, "c0ffee00"), (RecipeKind::Segment, "5e6e5e6e")] {
        let recipe = Recipe {
            id: hash.parse()?,
            kind,
            description: serde_json::Value::Null,
            space: Some(Space {
                id: material.space.clone(),
                tower: "minilm".into(),
                dimension: material.dimension,
                languages: vec!["en".into()],
            }),
            tree: Some(Tree { branching: 12, depth: 3 }),
        };
        writer.add_recipe(&recipe)?;
        ids.push(recipe.id);
    }
    let span = |from: usize, to: usize| {
        Span::new(Timestamp(from as i64 * CLIP_US), Timestamp(to as i64 * CLIP_US))
    };
    let mut segment_number = 0;
    for first in (0..size.clips).step_by(CLIPS_PER_SOURCE) {
        let here = CLIPS_PER_SOURCE.min(size.clips - first);
        let source = writer.add_source(&NewSource {
            fingerprint: first.to_string(),
            name: format!("made {first}"),
            origin: Origin::File,
            duration: Some(Micros(here as i64 * CLIP_US)),
            media: serde_json::Value::Null,
            wall: None,
            location: Location {
                place: Place::Path(format!("/made/{first}").into()),
                size_bytes: None,
                modified_us: None,
                device: None,
                inode: None,
            },
        })?;
        for (index, from) in (0..here).step_by(size.per_chunk).enumerate() {
            let to = here.min(from + size.per_chunk);
            let clips = (from..to)
                .map(|place| IndexedClip {
                    head: ClipHead {
                        span: span(place, place + 1),
                        raw_pts: 0,
                        frames: 2,
                        shot_start: None,
                    },
                    words: (0..10).map(|_| VisualWord(random.random_range(0..1_728))).collect(),
                    cells: CellFeatures::default(),
                    features: (0..size.features).map(|_| f16::from_f32(random.random())).collect(),
                    embedding: material.picture(first + place, random),
                    thumbnail: None,
                })
                .collect();
            let chunk =
                ChunkRecord { index: index as u32, span: span(from, to), clips, gaps: Vec::new() };
            writer.commit_chunk(source.id, &ids[0], &chunk)?;
        }
        let mut cues = Vec::new();
        let mut segments = Vec::new();
        for from in (0..here).step_by(size.per_segment) {
            let (text, embedding) = material.sentence(segment_number, random);
            segment_number += 1;
            let span = span(from, here.min(from + size.per_segment));
            cues.push(Cue {
                span,
                text: text.clone(),
                kind: CueKind::Subtitle,
                language: Some("en".into()),
                track: "sidecar:made.srt".into(),
                confidence: None,
                words: Vec::new(),
                speaker: None,
            });
            let language = Some("en".into());
            segments.push(SegmentRecord { span, text, language, embedding, reading: None });
        }
        writer.replace_cues(source.id, "sidecar:", &cues)?;
        writer.commit_segments(source.id, &ids[1], &segments)?;
        writer.finish_source(source.id, &ids[0], State::Complete, None)?;
    }
    let started = std::time::Instant::now();
    writer.refresh_index()?;
    Ok(started.elapsed().as_secs_f64())
}
