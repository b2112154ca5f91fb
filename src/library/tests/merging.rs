//! Libraries of several machines become one.

use std::collections::BTreeMap;

use rusqlite::types::Value;

use super::*;
use crate::error::Error;

/// What one library has of a source.
#[derive(Debug, Clone)]
struct Part {
    /// Which of its chunks.
    chunks: Vec<bool>,
    /// Whether it was read to the end; has effect where all chunks are there.
    complete: bool,
    /// Which of its two tracks of words.
    tracks: [bool; 2],
    tagged: bool,
}

impl Part {
    fn is_complete(&self) -> bool {
        self.complete && self.chunks.iter().all(|has| *has)
    }

    fn with(&self, other: &Part) -> Part {
        let or = |(a, b): (&bool, &bool)| *a || *b;
        Part {
            chunks: self.chunks.iter().zip(&other.chunks).map(or).collect(),
            complete: self.is_complete() || other.is_complete(),
            tracks: [self.tracks[0] || other.tracks[0], self.tracks[1] || other.tracks[1]],
            tagged: self.tagged || other.tagged,
        }
    }
}

prop_compose! {
    fn any_part(chunks: usize)(
        chunks in prop::collection::vec(any::<bool>(), chunks),
        all in any::<bool>(),
        complete in any::<bool>(),
        tracks in any::<[bool; 2]>(),
        tagged in any::<bool>(),
    ) -> Part {
        Part { chunks: chunks.iter().map(|has| *has || all).collect(), complete, tracks, tagged }
    }
}

/// Each source's part in either library; `None` where it is not there.
type Shares = Vec<(Option<Part>, Option<Part>)>;

fn any_shares() -> impl Strategy<Value = Shares> {
    let share = (1usize..4).prop_flat_map(|chunks| {
        (prop::option::of(any_part(chunks)), prop::option::of(any_part(chunks)))
    });
    prop::collection::vec(share, 1..4)
}

fn chunk_of(source: usize, index: u32) -> ChunkRecord {
    let start = i64::from(index) * 120_000_000;
    let value = (source * 7 + index as usize) as f32;
    // The last one as it would be from before there were thumbnails.
    let clips = (0..3).map(|at| IndexedClip {
        thumbnail: (at < 2).then(|| thumbnail(source as i64 * 1_000 + start + at)),
        ..clip(start + at * 1_500_000, [value + at as f32 + 1.0; DIMENSION])
    });
    let reason = format!("chunk {index}");
    let gap =
        Gap { span: span(start + 9_000_000, start + 9_000_001), track: TrackKind::Picture, reason };
    ChunkRecord {
        index,
        span: span(start, start + 120_000_000),
        clips: clips.collect(),
        gaps: vec![gap],
    }
}

fn words_of(source: usize, track: usize) -> Vec<Cue> {
    let text = |at: usize| format!("word {at} of track {track} of film {source}");
    let cue = |at: usize| Cue {
        track: format!("sidecar:{track}.srt"),
        ..cue(at as i64 * 1_500_000, at as i64 * 1_500_000 + 1_000_000, &text(at))
    };
    (0..2).map(cue).collect()
}

/// A library with these parts, seen at places of one machine.
fn library_of<'a>(
    machine: &str,
    parts: impl Iterator<Item = (usize, &'a Part)>,
) -> (TempDir, Writer) {
    let (folder, mut writer) = new_library();
    for (source, part) in parts {
        let name = format!("{source}.mp4");
        let new = NewSource { location: at(&format!("/{machine}/{name}")), ..new_source(&name) };
        let id = writer.add_source(&new).unwrap().id;
        fill(&mut writer, id, source, part);
    }
    understand(&folder, &mut writer);
    (folder, writer)
}

fn fill(writer: &mut Writer, id: SourceId, source: usize, part: &Part) {
    for (index, _) in part.chunks.iter().enumerate().filter(|(_, has)| **has) {
        writer.commit_chunk(id, &clips_recipe(), &chunk_of(source, index as u32)).unwrap();
    }
    let cues: Vec<Cue> = (0..2)
        .filter(|&track| part.tracks[track])
        .flat_map(|track| words_of(source, track))
        .collect();
    writer.replace_cues(id, "", &cues).unwrap();
    if part.tagged {
        writer.set_tags(id, &[("film".into(), source.to_string())]).unwrap();
    }
    if part.is_complete() {
        writer.finish_source(id, &clips_recipe(), State::Complete, None).unwrap();
    }
}

/// What a run of `index` makes of what is stored: a segment a clip, of the words there.
fn understand(folder: &TempDir, writer: &mut Writer) {
    for id in writer.left_to_understand(&clips_recipe(), &segments_recipe()).unwrap() {
        let reader = open(folder.path());
        let mut cues = reader.cues(id).unwrap();
        // At the same time, tracks stand in the order in which they came.
        cues.sort_by_key(|cue| (cue.track.clone(), cue.span.start));
        let segments: Vec<SegmentRecord> = reader
            .clip_heads(id, &clips_recipe(), Span::ALL)
            .unwrap()
            .iter()
            .map(|head| SegmentRecord {
                span: head.span,
                text: cues
                    .iter()
                    .filter(|cue| head.span.contains(cue.span.start))
                    .map(|cue| cue.text.as_str())
                    .collect::<Vec<_>>()
                    .join(" "),
                language: None,
                embedding: unit([1.0; DIMENSION]),
                reading: reading(&format!("a clip at {}", head.span.start), [0.5; DIMENSION]),
            })
            .collect();
        writer.commit_segments(id, &segments_recipe(), &segments).unwrap();
        writer.finish_source(id, &segments_recipe(), State::Complete, None).unwrap();
    }
}

/// Everything of a library that has a meaning outside of it, by the sources' fingerprints.
fn content(folder: &TempDir, writer: &Writer) -> BTreeMap<String, String> {
    let reader = open(folder.path());
    let sources = reader.sources().unwrap().into_iter().map(|mut source| {
        source.locations.sort_by_key(|location| location.place.to_string());
        let (mut clips, mut segments) = (Vec::new(), Vec::new());
        reader
            .each_clip(source.id, |clip| {
                clips.push(clip);
                Ok(())
            })
            .unwrap();
        reader
            .each_segment(source.id, |segment| {
                segments.push(segment);
                Ok(())
            })
            .unwrap();
        for clip in &mut clips {
            let id = ClipId { source: source.id, start: clip.head.span.start };
            clip.thumbnail = reader.thumbnail(id).unwrap();
        }
        let mut cues = reader.cues(source.id).unwrap();
        cues.sort_by_key(|cue| (cue.track.clone(), cue.span.start));
        let gaps = reader.show(source.id).unwrap().gaps;
        let chunks = writer.done_chunks(source.id, &clips_recipe()).unwrap();
        let said = format!(
            "{} {:?} {:?} {:?} {:?}\n{clips:?}\n{segments:?}\n{cues:?}\n{gaps:?}\n{chunks:?}",
            source.name, source.state, source.locations, source.tags, source.duration
        );
        (source.fingerprint, said)
    });
    sources.collect()
}

/// Every row of every table of both files.
fn all_rows(writer: &Writer) -> Vec<String> {
    let mut all = Vec::new();
    for database in [&writer.record, &writer.features] {
        let tables = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'spoken%' \
             AND name NOT LIKE 'written%'";
        let mut tables = database.sql.prepare(tables).unwrap();
        let tables: Vec<String> =
            tables.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
        for table in tables {
            let mut rows = database.sql.prepare(&format!("SELECT * FROM {table}")).unwrap();
            let columns = rows.column_count();
            let mut rows = rows.query([]).unwrap();
            while let Some(row) = rows.next().unwrap() {
                let row: Vec<Value> = (0..columns).map(|at| row.get(at).unwrap()).collect();
                all.push(format!("{table} {row:?}"));
            }
        }
    }
    all
}

fn merge(writer: &mut Writer, from: &TempDir) -> Merged {
    let mut merged = Merged::default();
    writer.merge(&open(from.path()), &mut merged, &mut |_, _| Ok(())).unwrap();
    merged
}

fn empty() -> (TempDir, Writer) {
    let folder = tempfile::tempdir().unwrap();
    let writer = Writer::open(&folder.path().join("lib")).unwrap();
    (folder, writer)
}

fn named<'a>(
    shares: &'a Shares,
    part: impl Fn(&'a (Option<Part>, Option<Part>)) -> Option<&'a Part> + 'a,
) -> impl Iterator<Item = (usize, &'a Part)> {
    shares.iter().enumerate().filter_map(move |(source, share)| Some((source, part(share)?)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn merged_libraries_are_what_one_library_of_both_is(shares in any_shares()) {
        let (a, first) = library_of("a", named(&shares, |share| share.0.as_ref()));
        let (b, second) = library_of("b", named(&shares, |share| share.1.as_ref()));
        drop((first, second));
        // What one machine with all of it would have.
        let (whole, mut expected) = new_library();
        for (source, share) in shares.iter().enumerate() {
            let part = match share {
                (Some(a), Some(b)) => a.with(b),
                (Some(part), None) | (None, Some(part)) => part.clone(),
                (None, None) => continue,
            };
            let name = format!("{source}.mp4");
            for (machine, _) in [("a", &share.0), ("b", &share.1)].iter().filter(|(_, part)| part.is_some()) {
                let new = NewSource { location: at(&format!("/{machine}/{name}")), ..new_source(&name) };
                let id = expected.add_source(&new).unwrap().id;
                fill(&mut expected, id, source, &part);
            }
        }
        understand(&whole, &mut expected);
        let expected = content(&whole, &expected);

        for order in [[&a, &b], [&b, &a]] {
            let (folder, mut writer) = empty();
            for from in order {
                let merged = merge(&mut writer, from);
                prop_assert_eq!(&merged.damaged, &[]);
                prop_assert_eq!(&merged.conflicts, &[]);
            }
            let before = all_rows(&writer);
            for from in order {
                let merged = merge(&mut writer, from);
                let nothing = Merged { sources: merged.sources, ..Merged::default() };
                prop_assert_eq!(merged, nothing);
            }
            prop_assert_eq!(all_rows(&writer), before, "merging again changes nothing");
            understand(&folder, &mut writer);
            prop_assert_eq!(&content(&folder, &writer), &expected);
        }
    }

    #[test]
    fn a_merge_that_is_cut_off_goes_on_where_it_was(shares in any_shares(), steps in 1usize..6) {
        let (a, first) = library_of("a", named(&shares, |share| share.0.as_ref()));
        let (b, second) = library_of("b", named(&shares, |share| share.1.as_ref()));
        drop((first, second));
        let (one, mut unbroken) = empty();
        let (other, mut broken) = empty();
        for from in [&a, &b] {
            merge(&mut unbroken, from);
            let reader = open(from.path());
            for round in 0.. {
                prop_assert!(round < 1_000);
                let mut left = steps;
                let result = broken.merge(&reader, &mut Merged::default(), &mut |_, _| {
                    left = left.checked_sub(1).ok_or_else(Error::cancelled)?;
                    Ok(())
                });
                // Each source is looked at before it is found to be done, so a run of a few steps
                // comes no further than these; the last goes to the end.
                match result {
                    Ok(()) => break,
                    Err(_) if round >= 20 => { merge(&mut broken, from); break; }
                    Err(error) => prop_assert_eq!(error.kind(), Kind::Cancelled),
                }
            }
        }
        prop_assert_eq!(content(&other, &broken), content(&one, &unbroken));
    }
}

fn whole(chunks: usize) -> Part {
    Part { chunks: vec![true; chunks], complete: true, tracks: [true, true], tagged: true }
}

#[test]
fn a_damaged_chunk_is_left_out_and_said() {
    let (from, mut damaged) = library_of("a", [(0, &whole(3)), (1, &whole(1))].into_iter());
    // A clip of the second chunk loses its features, and one of the third becomes another's.
    damaged
        .features
        .write(|sql| {
            let start = 120_000_000 + 1_500_000;
            assert_eq!(sql.execute("DELETE FROM features WHERE start_us = ?1", [start])?, 1);
            Ok(())
        })
        .unwrap();
    let before = all_rows(&damaged);
    drop(damaged);
    let (folder, mut writer) = empty();
    let merged = merge(&mut writer, &from);
    assert_eq!((merged.sources, merged.added, merged.clips), (2, 2, 9));
    let [damage] = &merged.damaged[..] else { panic!("{merged:?}") };
    assert_eq!((&*damage.name, &*damage.what), ("0.mp4", "chunk 1"));
    assert!(damage.reason.contains("3 clips"), "{}", damage.reason);
    let source = open(folder.path()).source("0.mp4").unwrap();
    assert_eq!(source.state, State::New);
    assert_eq!(writer.done_chunks(source.id, &clips_recipe()).unwrap(), [0, 2]);
    assert_eq!(open(folder.path()).source("1.mp4").unwrap().state, State::Complete);
    let from = Writer::open(&from.path().join("lib")).unwrap();
    assert_eq!(all_rows(&from), before, "what is merged from is only read");
}

#[test]
fn what_two_libraries_say_differently_is_reported() {
    let (from, mut theirs) = library_of("a", [(0, &whole(1)), (1, &whole(1))].into_iter());
    let id = theirs.alike("print of 0.mp4").unwrap()[0].id;
    theirs.set_tags(id, &[("film".into(), "theirs".into())]).unwrap();
    drop(theirs);
    let (folder, mut writer) = library_of("b", [(0, &whole(1))].into_iter());
    let ours = writer.alike("print of 0.mp4").unwrap()[0].id;
    // Another film at the same place as theirs, seen later.
    let other = NewSource { location: at("/a/1.mp4"), ..new_source("2.mp4") };
    let other = writer.add_source(&other).unwrap().id;
    let merged = merge(&mut writer, &from);
    let said: Vec<(&str, &str, &str)> = merged
        .conflicts
        .iter()
        .map(|conflict| (&*conflict.what, &*conflict.kept, &*conflict.dropped))
        .collect();
    let theirs = open(from.path()).source("1.mp4").unwrap().id.to_string();
    assert_eq!(
        said,
        [("tag film", "0", "theirs"), ("place /a/1.mp4", &*other.to_string(), &*theirs)]
    );
    let reader = open(folder.path());
    assert_eq!(reader.source(&ours.to_string()).unwrap().tags, [("film".into(), "0".into())]);
    assert_eq!(reader.source("/a/1.mp4").unwrap().id, other);
    // Its id is the same everywhere.
    assert_eq!(reader.source("1.mp4").unwrap().id.to_string(), theirs);
}

#[test]
fn another_pipelines_clips_wait_beside_those_that_are_searched() {
    let folder = tempfile::tempdir().unwrap();
    let mut theirs = Writer::open(&folder.path().join("lib")).unwrap();
    let (clips, segments) =
        (recipe(RecipeKind::Clip, "badc0de0"), recipe(RecipeKind::Segment, "badc0de1"));
    theirs.add_recipe(&clips).unwrap();
    theirs.add_recipe(&segments).unwrap();
    let id = theirs.add_source(&new_source("theirs.mp4")).unwrap().id;
    theirs.commit_chunk(id, &clips.id, &chunk_of(0, 0)).unwrap();
    theirs.finish_source(id, &clips.id, State::Complete, None).unwrap();
    drop(theirs);

    let (ours, mut writer) = library_of("b", [(1, &whole(1))].into_iter());
    merge(&mut writer, &folder);
    assert_eq!(writer.unseen_by_search().unwrap(), 1);
    let reader = open(ours.path());
    assert_eq!(reader.current(RecipeKind::Clip).unwrap().unwrap().id, clips_recipe());
    assert_eq!(reader.show(id).unwrap().clips.len(), 0);
    assert_eq!(writer.done_chunks(id, &clips.id).unwrap(), [0]);
    // A library without sources has no pipeline that it must keep.
    let (empty, mut writer) = new_library();
    merge(&mut writer, &folder);
    assert_eq!(writer.unseen_by_search().unwrap(), 0);
    assert_eq!(open(empty.path()).show(id).unwrap().clips.len(), 3);

    let mut other_space = recipe(RecipeKind::Clip, "deadbeef");
    other_space.space.as_mut().unwrap().dimension = 4;
    let strange = tempfile::tempdir().unwrap();
    Writer::open(&strange.path().join("lib")).unwrap().add_recipe(&other_space).unwrap();
    let refused = writer.merge(&open(strange.path()), &mut Merged::default(), &mut |_, _| Ok(()));
    assert!(refused.unwrap_err().to_string().contains("dimensions"));
}

#[test]
fn sources_that_differ_between_their_sampled_parts_stay_two() {
    let library = |digest: &str| {
        let (folder, mut writer) = new_library();
        writer.note_content("print of a.mp4", "print of a.mp4", digest).unwrap();
        let id = writer.add_source(&new_source("a.mp4")).unwrap().id;
        (folder, id)
    };
    let (one, two, same) = (library("1"), library("2"), library("1"));
    let (folder, mut writer) = empty();
    for (from, _) in [&one, &two, &same, &two] {
        merge(&mut writer, from);
    }
    let sources = open(folder.path()).sources().unwrap();
    let ids: Vec<SourceId> = sources.iter().map(|source| source.id).collect();
    assert_eq!(ids, [one.1, two.1]);
    assert_eq!(sources[1].fingerprint, "2");
}
