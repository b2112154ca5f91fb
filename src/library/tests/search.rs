//! Search against a model that looks at everything, slowly.

use std::collections::BTreeMap;

use super::*;
use crate::media::Channel;

const CLIP_US: i64 = 1_500_000;
const TERMS: [&str; 6] = ["red", "car", "Überfahrt", "dog", "sea", "night"];

#[derive(Debug, Clone)]
struct Film {
    name: String,
    clips: Vec<[f32; DIMENSION]>,
    /// Lengths in clips, and the terms said.
    segments: Vec<(usize, Vec<usize>)>,
    wall_us: Option<i64>,
    tagged: bool,
}

prop_compose! {
    fn any_film(name: &'static str)(
        clips in prop::collection::vec(prop::array::uniform8(-1f32..1.0), 1..12),
        segments in prop::collection::vec(
            (1usize..4, prop::collection::vec(0..TERMS.len(), 0..4)), 0..4
        ),
        wall_us in prop::option::of(0i64..20_000_000),
        tagged in any::<bool>(),
    ) -> Film {
        Film { name: name.to_owned(), clips, segments, wall_us, tagged }
    }
}

impl Film {
    fn segment_spans(&self) -> Vec<(Span, String)> {
        let mut start = 0;
        let segment = |(length, terms): &(usize, Vec<usize>)| {
            let end = start + *length as i64 * CLIP_US;
            let words: Vec<&str> = terms.iter().map(|&term| TERMS[term]).collect();
            let segment = (span(start, end), words.join(" "));
            start = end;
            segment
        };
        self.segments.iter().map(segment).collect()
    }

    /// Where the unit begins that the clip belongs to.
    fn unit_start(&self, clip: usize) -> i64 {
        let start = clip as i64 * CLIP_US;
        let middle = Timestamp(start + CLIP_US / 2);
        let segments = self.segment_spans();
        segments.iter().find(|(span, _)| span.contains(middle)).map_or(start, |(s, _)| s.start.0)
    }

    fn add(&self, writer: &mut Writer) -> SourceId {
        let wall = self.wall_us.map(|start_us| WallClock { start_us, origin: WallOrigin::File });
        let id = writer.add_source(&NewSource { wall, ..new_source(&self.name) }).unwrap().id;
        let clips = self.clips.iter().enumerate();
        let chunk = ChunkRecord {
            index: 0,
            span: span(0, 120_000_000),
            clips: clips.map(|(place, &values)| clip(place as i64 * CLIP_US, values)).collect(),
            gaps: Vec::new(),
        };
        writer.commit_chunk(id, &clips_recipe(), &chunk).unwrap();
        let segments = self.segment_spans();
        let cues: Vec<Cue> = segments
            .iter()
            .filter(|(_, text)| !text.is_empty())
            .map(|(span, text)| cue(span.start.0, span.end.0, text))
            .collect();
        writer.replace_cues(id, "sidecar:", &cues).unwrap();
        let segment = |(span, text): (Span, String)| SegmentRecord {
            span,
            text,
            language: None,
            embedding: Vec::new(),
            reading: None,
        };
        let segments: Vec<SegmentRecord> = segments.into_iter().map(segment).collect();
        writer.commit_segments(id, &segments_recipe(), &segments).unwrap();
        if self.tagged {
            writer.set_tags(id, &[("shelf".into(), "12".into())]).unwrap();
        }
        id
    }
}

fn dot(query: &[f32], values: &[f32; DIMENSION]) -> f32 {
    query.iter().zip(unit(*values)).map(|(a, b)| a * b.to_f32()).sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn pictures_are_found_as_by_looking_at_every_clip(
        films in (any_film("a.mp4"), any_film("b.mp4")),
        query in prop::array::uniform8(-1f32..1.0),
        within in prop::option::of((0i64..8, 1i64..8)),
        only_tagged in any::<bool>(),
        clock in prop::option::of((0i64..20, 1i64..20)),
        least in prop::option::of(-0.5f32..0.5),
        top in 1usize..8,
    ) {
        let (folder, mut writer) = new_library();
        let films = [films.0, films.1];
        let ids: Vec<SourceId> = films.iter().map(|film| film.add(&mut writer)).collect();
        let within = within.map(|(start, length)| span(start * CLIP_US, (start + length) * CLIP_US));
        let clock = clock.map(|(from, length)| (from * 1_000_000, (from + length) * 1_000_000));
        let query: Vec<f32> = unit(query).into_iter().map(f16::to_f32).collect();

        let mut expected: BTreeMap<(SourceId, i64), f32> = BTreeMap::new();
        for (film, &id) in films.iter().zip(&ids) {
            for (place, values) in film.clips.iter().enumerate() {
                let (start, end) = (place as i64 * CLIP_US, (place as i64 + 1) * CLIP_US);
                let on_clock = clock.is_none_or(|(from, to)| {
                    film.wall_us.is_some_and(|zero| zero + start < to && zero + end > from)
                });
                let kept = within.is_none_or(|within| within.overlaps(span(start, end)));
                let score = dot(&query, values);
                let enough = least.is_none_or(|least| score >= least);
                if kept && on_clock && enough && (film.tagged || !only_tagged) {
                    let best = expected.entry((id, film.unit_start(place))).or_insert(score);
                    *best = best.max(score);
                }
            }
        }
        let mut expected: Vec<f32> = expected.into_values().collect();
        expected.sort_by(|a, b| b.total_cmp(a));
        expected.truncate(top);

        let hits = open(folder.path()).search(&Query {
            vectors: vec![(Channel::Picture, query.clone())],
            within,
            from_us: clock.map(|(from, _)| from),
            to_us: clock.map(|(_, to)| to),
            tags: if only_tagged { vec![("shelf".into(), "12".into())] } else { Vec::new() },
            min_score: least,
            top,
            ..Query::default()
        }).unwrap();
        prop_assert_eq!(hits.len(), expected.len());
        for (hit, expected) in hits.iter().zip(&expected) {
            prop_assert!((hit.found.score - expected).abs() < 1e-4, "{:?} {}", hit, expected);
            let film = &films[ids.iter().position(|id| *id == hit.source).unwrap()];
            let place = (hit.span.start_us.0 / CLIP_US) as usize;
            prop_assert!((dot(&query, &film.clips[place]) - hit.found.score).abs() < 1e-4);
            prop_assert_eq!(hit.clip, Some(ClipId { source: hit.source, start: hit.span.start_us }));
        }
    }

    #[test]
    fn words_find_the_segments_that_say_any_of_them(
        films in (any_film("a.mp4"), any_film("b.mp4")),
        asked in prop::collection::btree_set(0..TERMS.len(), 1..4),
    ) {
        let (folder, mut writer) = new_library();
        let films = [films.0, films.1];
        let ids: Vec<SourceId> = films.iter().map(|film| film.add(&mut writer)).collect();
        let said: Vec<(SourceId, Span, Vec<usize>)> = films.iter().zip(&ids).flat_map(|(film, &id)| {
            let spans = film.segment_spans();
            let segments: Vec<_> = spans.into_iter().zip(&film.segments).collect();
            segments.into_iter().map(move |((span, _), (_, terms))| (id, span, terms.clone()))
        }).collect();
        let holding: Vec<_> =
            said.iter().filter(|(_, _, terms)| asked.iter().any(|term| terms.contains(term))).collect();

        // Case and accents don't matter.
        let words: Vec<String> =
            asked.iter().map(|&term| TERMS[term].to_uppercase().replace('Ü', "u")).collect();
        let hits = open(folder.path())
            .search(&Query { words: Some(words.join(" ")), top: 100, ..Query::default() })
            .unwrap();
        prop_assert_eq!(hits.len(), holding.len());
        for hit in &hits {
            let of_hit = |(id, span, _): &&&(SourceId, Span, Vec<usize>)| {
                *id == hit.source && Some(*span) == hit.span.segment
            };
            let (_, _, terms) = holding.iter().find(of_hit).unwrap();
            prop_assert_eq!(hit.found.by, By::Words);
            prop_assert_eq!(hit.found.channel, Channel::Speech);
            let all = asked.iter().all(|term| terms.contains(term));
            prop_assert_eq!((hit.found.score - 1.0).abs() < 1e-6, all, "{:?}", hit);
        }
        prop_assert!(hits.windows(2).all(|pair| pair[0].found.score >= pair[1].found.score));
    }

    #[test]
    fn no_text_is_a_wrong_query(words in "[\\PC\"*()\\-:^{}+]{0,20}|\\PC*") {
        let (folder, mut writer) = new_library();
        let id = writer.add_source(&new_source("a.mp4")).unwrap().id;
        writer.replace_cues(id, "", &[cue(0, 5, "some words")]).unwrap();
        let query = Query { words: Some(words), top: 3, ..Query::default() };
        open(folder.path()).search(&query).unwrap();
    }
}

#[test]
fn ranks_are_fused_where_picture_and_words_agree() {
    let (folder, mut writer) = new_library();
    let mut film = |name: &str, first: f32, text: &str| {
        let id = writer.add_source(&new_source(name)).unwrap().id;
        let clips = vec![clip(0, [first, 1.0 - first, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])];
        let chunk = ChunkRecord { index: 0, span: span(0, 9_000_000), clips, gaps: Vec::new() };
        writer.commit_chunk(id, &clips_recipe(), &chunk).unwrap();
        writer.replace_cues(id, "", &[cue(100, 1_400_000, text)]).unwrap();
        id
    };
    let shown = film("shown.mp4", 1.0, "nothing of it");
    let both = film("both.mp4", 0.9, "a red car");
    let said = film("said.mp4", 0.0, "a red car there");
    let query = Query {
        vectors: vec![(Channel::Picture, vec![1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])],
        words: Some("red car".into()),
        top: 10,
        ..Query::default()
    };
    let mut reader = open(folder.path());
    let hits = reader.search(&query).unwrap();
    // First in one list goes before second in the other; the picture that shows nothing of it, though
    // ranked third there, adds nothing to what was said.
    assert_eq!(hits.iter().map(|hit| hit.source).collect::<Vec<_>>(), [both, shown, said]);
    assert_eq!(hits[0].channels.len(), 2);
    assert_eq!(hits[0].words, "a red car");
    // A channel's score decides what is good enough, whatever the other's.
    let strict = Query { min_score: Some(0.999), ..query.clone() };
    let strict = reader.search(&strict).unwrap();
    assert!(strict.iter().all(|hit| hit.found.score >= 0.999), "{strict:?}");
    assert_eq!(strict.len(), 3);
    let spoken = Query { channels: vec![Channel::Speech], ..query };
    assert_eq!(reader.search(&spoken).unwrap().len(), 2);
}

#[test]
fn an_open_reader_finds_what_was_added_replaced_and_forgotten_since() {
    let (folder, mut writer) = new_library();
    let mut reader = open(folder.path());
    let query = Query {
        vectors: vec![(Channel::Picture, vec![1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])],
        top: 10,
        ..Query::default()
    };
    assert_eq!(reader.search(&query).unwrap(), []);
    let id = writer.add_source(&new_source("a.mp4")).unwrap().id;
    let mut chunk = |index: u32, values: [f32; DIMENSION]| {
        let start = i64::from(index) * 3_000_000;
        let clips = vec![clip(start, values)];
        let span = span(start, start + 3_000_000);
        let chunk = ChunkRecord { index, span, clips, gaps: Vec::new() };
        writer.commit_chunk(id, &clips_recipe(), &chunk).unwrap();
    };
    let (near, far) = ([1.0, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], [0.1; DIMENSION]);
    chunk(0, near);
    assert_eq!(reader.search(&query).unwrap().len(), 1);
    chunk(1, far);
    let hits = reader.search(&query).unwrap();
    assert_eq!(hits.len(), 2);
    assert_eq!(hits[0].span.start_us, Timestamp(0));
    chunk(0, far);
    chunk(1, near);
    let hits = reader.search(&query).unwrap();
    assert_eq!(hits.len(), 2);
    assert_eq!(hits[0].span.start_us, Timestamp(3_000_000));
    writer.forget(id).unwrap();
    assert_eq!(reader.search(&query).unwrap(), []);
}

/// As the last minutes of a camera: what a transformer reads are whole segments, which come later.
#[test]
fn clips_that_no_reading_has_come_to_are_found_beside_readings() {
    let (folder, mut writer) = new_library();
    let mut reader = open(folder.path());
    let mut read = |name: &str, clips: &[f32], segments: &[f32]| {
        let id = writer.add_source(&new_source(name)).unwrap().id;
        let shown = |near: f32| [near, 1.0 - near, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
        let at = |(place, near): (usize, &f32)| clip(place as i64 * CLIP_US, shown(*near));
        let clips = clips.iter().enumerate().map(at).collect();
        let chunk = ChunkRecord { index: 0, span: span(0, 9 * CLIP_US), clips, gaps: Vec::new() };
        writer.commit_chunk(id, &clips_recipe(), &chunk).unwrap();
        let segment = |(place, near): (usize, &f32)| SegmentRecord {
            span: span(place as i64 * CLIP_US, (place as i64 + 1) * CLIP_US),
            text: String::new(),
            language: None,
            embedding: Vec::new(),
            reading: reading("a car", shown(*near)),
        };
        let segments: Vec<SegmentRecord> = segments.iter().enumerate().map(segment).collect();
        writer.commit_segments(id, &segments_recipe(), &segments).unwrap();
        id
    };
    let film = read("film.mp4", &[0.0, 1.0], &[1.0, 0.2]);
    let query = Query {
        vectors: vec![(Channel::Picture, vec![1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])],
        top: 10,
        ..Query::default()
    };
    let mut found = || -> Vec<(SourceId, i64)> {
        let hits = reader.search(&query).unwrap();
        hits.iter().map(|hit| (hit.source, hit.span.start_us.0 / CLIP_US)).collect()
    };
    // Of what is read, the reading counts and not the clip.
    assert_eq!(found(), [(film, 0), (film, 1)]);
    let camera = read("camera", &[1.0, 0.6, 1.0], &[0.3]);
    let hits = found();
    assert_eq!(hits[..2], [(film, 0), (camera, 2)]);
    assert_eq!(hits.len(), 5);
    let unread = read("unread.mp4", &[0.9], &[]);
    assert!(found()[..4].contains(&(unread, 0)));
}

#[test]
fn a_query_of_another_space_is_refused() {
    let (folder, mut writer) = new_library();
    let id = writer.add_source(&new_source("a.mp4")).unwrap().id;
    let clips = vec![clip(0, [1.0; DIMENSION])];
    let chunk = ChunkRecord { index: 0, span: span(0, 9), clips, gaps: Vec::new() };
    writer.commit_chunk(id, &clips_recipe(), &chunk).unwrap();
    let mut reader = open(folder.path());
    for vector in [vec![1.0; 3], vec![f32::NAN; DIMENSION]] {
        let vectors = vec![(Channel::Picture, vector)];
        let error = reader.search(&Query { vectors, top: 1, ..Query::default() }).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidInput);
    }
    let error = reader.search(&Query::default()).unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidInput);
}

#[test]
fn words_of_many_texts_count_beside_rarer_ones() {
    let (folder, mut writer) = new_library();
    let mut reader = open(folder.path());
    let add = |writer: &mut Writer, name: &str, texts: &[&str]| {
        let id = writer.add_source(&new_source(name)).unwrap().id;
        let cue = |(place, text): (usize, &&str)| {
            cue(place as i64 * CLIP_US, (place as i64 + 1) * CLIP_US, text)
        };
        writer
            .replace_cues(id, "", &texts.iter().enumerate().map(cue).collect::<Vec<_>>())
            .unwrap();
        id
    };
    let mut found = |words: &str| -> Vec<(SourceId, String, f32)> {
        let query = Query { words: Some(words.into()), top: 100, ..Query::default() };
        let hits = reader.search(&query).unwrap();
        hits.into_iter().map(|hit| (hit.source, hit.words, hit.found.score)).collect()
    };
    // More than are looked at one by one.
    let mut texts = vec!["the sea of the night"; 3_000];
    texts[1_500] = "the horse of the night";
    texts[2_900] = "a horse";
    let many = add(&mut writer, "many.mp4", &texts);
    for _ in 0..2 {
        let hits = found("the horse of");
        let said: Vec<&str> = hits.iter().map(|(_, words, _)| words.as_str()).collect();
        assert_eq!(said, ["the horse of the night", "a horse"]);
        assert!(hits[0].2 == 1.0 && hits[1].2 < 1.0);
        // Nothing rarer: those that hold all of them.
        let hits = found("of the");
        assert_eq!((hits.len(), hits[0].2), (100, 1.0));
    }
    // What came since is found, and what has gone is not.
    let new = add(&mut writer, "new.mp4", &["the horse of mine"]);
    assert_eq!(found("the horse of").len(), 3);
    assert!(found("the horse of").iter().any(|(source, ..)| *source == new));
    writer.forget(many).unwrap();
    assert_eq!(found("the horse of").len(), 1);
}
