//! Sources, places, recipes, locks, forgetting, and files that are not what they should be.

use std::collections::{BTreeSet, HashMap};

use super::*;
use crate::media::Channel;

fn chunk(index: u32, clips: Vec<IndexedClip>) -> ChunkRecord {
    let start = i64::from(index) * 120_000_000;
    ChunkRecord { index, span: span(start, start + 120_000_000), clips, gaps: Vec::new() }
}

#[test]
fn the_same_bytes_at_two_places_are_one_source() {
    let (folder, mut writer) = new_library();
    let first = writer.add_source(&new_source("a.mp4")).unwrap();
    let copy = NewSource { location: at("/copies/b.mp4"), ..new_source("a.mp4") };
    let second = writer.add_source(&copy).unwrap();
    assert_eq!((first.known, second.known, first.id), (false, true, second.id));
    let reader = open(folder.path());
    let source = reader.source("/copies/b.mp4").unwrap();
    assert_eq!(source.locations.len(), 2);
    assert_eq!(source.locations[0], copy.location);
}

#[test]
fn a_replaced_file_leaves_the_old_source_without_a_place() {
    let (folder, mut writer) = new_library();
    let old = writer.add_source(&new_source("a.mp4")).unwrap().id;
    let other = NewSource { fingerprint: "other bytes".into(), ..new_source("a.mp4") };
    let new = writer.add_source(&other).unwrap().id;
    assert_ne!(old, new);
    let (found, location) = writer.source_at(&other.location.place).unwrap().unwrap();
    assert_eq!((found, location), (new, other.location));
    let reader = open(folder.path());
    assert_eq!(reader.sources().unwrap()[0].locations, []);
    let error = reader.source("a.mp4").unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidInput, "{error}");
}

#[test]
fn a_mistyped_source_is_answered_with_the_closest_names() {
    let (folder, mut writer) = new_library();
    let id = writer.add_source(&new_source("holiday.mp4")).unwrap().id;
    writer.add_source(&new_source("talk.mp4")).unwrap();
    let reader = open(folder.path());
    let error = reader.source("holyday.mp4").unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    assert!(error.to_string().contains("did you mean \"holiday.mp4\"?"), "{error}");
    assert_eq!(reader.source(&id.to_string()[..8]).unwrap().id, id);
    assert_eq!(reader.source("/films/holiday.mp4").unwrap().id, id);
}

#[test]
fn a_second_writer_is_refused_until_the_first_ends() {
    let (folder, writer) = new_library();
    let path = folder.path().join("lib");
    let error = Writer::open(&path).unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
    drop(writer);
    Writer::open(&path).unwrap();
}

#[test]
fn a_new_library_is_for_its_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let (folder, _writer) = new_library();
    let mode = std::fs::metadata(folder.path().join("lib")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

/// Commits chunks for so long, and at least `chunks` of them, while a reader looks and searches. The
/// same places are written again and again.
fn write_beside_a_reader(chunks: u32, long: std::time::Duration) {
    let (folder, mut writer) = new_library();
    let id = writer.add_source(&new_source("a.mp4")).unwrap().id;
    let path = folder.path().to_owned();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let seen = scope.spawn(|| {
            let mut reader = open(&path);
            let query = Query {
                vectors: vec![(Channel::Picture, vec![0.5; DIMENSION])],
                top: 1_000,
                ..Query::default()
            };
            let mut counts = BTreeSet::new();
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                counts.insert(reader.show(id).unwrap().clips.len());
                counts.insert(reader.search(&query).unwrap().len());
            }
            counts
        });
        let began = std::time::Instant::now();
        for number in 0.. {
            if number >= chunks && began.elapsed() >= long {
                break;
            }
            let index = number % chunks;
            let start = i64::from(index) * 120_000_000;
            let clips = (0..5).map(|at| clip(start + at * 1_500_000, [at as f32; DIMENSION]));
            writer.commit_chunk(id, &clips_recipe(), &chunk(index, clips.collect())).unwrap();
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        let counts = seen.join().unwrap();
        assert!(counts.iter().all(|count| count % 5 == 0), "{counts:?}");
    });
    assert_eq!(open(folder.path()).info().unwrap().clips, u64::from(chunks) * 5);
}

#[test]
fn a_reader_sees_whole_chunks_while_a_writer_works() {
    write_beside_a_reader(40, std::time::Duration::ZERO);
}

#[test]
#[ignore = "slow: a minute, or CINELEX_SLOW_MINUTES"]
fn a_reader_sees_whole_chunks_for_long() {
    let minutes = std::env::var("CINELEX_SLOW_MINUTES").ok();
    let minutes = minutes.map_or(1, |minutes| minutes.parse().unwrap());
    write_beside_a_reader(150, std::time::Duration::from_secs(60 * minutes));
}

#[test]
fn another_recipe_is_built_beside_and_takes_over_in_one_step() {
    let (folder, mut writer) = new_library();
    let id = writer.add_source(&new_source("a.mp4")).unwrap().id;
    let old = clips_recipe();
    writer.commit_chunk(id, &old, &chunk(0, vec![clip(0, [1.0; DIMENSION])])).unwrap();
    writer.finish_source(id, &old, State::Complete, None).unwrap();

    let new = recipe(RecipeKind::Clip, "badc0de0");
    writer.add_recipe(&new).unwrap();
    assert_eq!(writer.waiting_for(&new.id).unwrap(), [id]);
    let finer = vec![clip(0, [0.5; DIMENSION]), clip(750_000, [0.2; DIMENSION])];
    writer.commit_chunk(id, &new.id, &chunk(0, finer)).unwrap();
    let reader = open(folder.path());
    assert_eq!(reader.show(id).unwrap().clips.len(), 1);
    writer.finish_source(id, &new.id, State::Complete, None).unwrap();
    assert_eq!(writer.waiting_for(&new.id).unwrap(), []);
    assert_eq!(writer.take_over(&new.id, &segments_recipe()).unwrap(), []);
    assert_eq!(reader.show(id).unwrap().clips.len(), 2);
    assert_eq!(reader.current(RecipeKind::Clip).unwrap().unwrap(), new);
    let mut left = 0;
    reader
        .each_features(&old, |_, _| {
            left += 1;
            Ok(())
        })
        .unwrap();
    assert_eq!((left, writer.done_chunks(id, &old).unwrap().len()), (0, 0));
}

#[test]
fn what_breaks_a_stages_promise_is_not_written() {
    let (folder, mut writer) = new_library();
    let id = writer.add_source(&new_source("a.mp4")).unwrap().id;
    let good = clip(0, [1.0; DIMENSION]);
    let mut not_finite = good.clone();
    not_finite.features[3] = f16::NAN;
    let mut too_short = good.clone();
    too_short.embedding.pop();
    let outside = clip(120_000_000, [1.0; DIMENSION]);
    let wrong =
        [vec![not_finite], vec![too_short], vec![outside], vec![good.clone(), good.clone()]];
    for clips in wrong {
        let error = writer.commit_chunk(id, &clips_recipe(), &chunk(0, clips)).unwrap_err();
        assert_eq!(error.kind(), Kind::Internal);
    }
    let error = writer.commit_chunk(id, &segments_recipe(), &chunk(0, vec![good])).unwrap_err();
    assert_eq!(error.kind(), Kind::Internal);
    assert_eq!(open(folder.path()).info().unwrap().clips, 0);
}

/// All bytes of all files of the library, the logs included.
fn all_bytes(folder: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in std::fs::read_dir(folder.join("lib")).unwrap() {
        bytes.extend(std::fs::read(entry.unwrap().path()).unwrap());
    }
    bytes
}

/// Which of the parts are somewhere in the bytes; each has at least six bytes.
fn found<'a>(bytes: &[u8], parts: &'a [Vec<u8>]) -> BTreeSet<&'a [u8]> {
    let mut by_start: HashMap<&[u8], Vec<&'a [u8]>> = HashMap::new();
    for part in parts {
        by_start.entry(&part[..6]).or_default().push(part);
    }
    let mut found = BTreeSet::new();
    for (place, window) in bytes.windows(6).enumerate() {
        let parts = by_start.get(window).into_iter().flatten();
        found.extend(parts.filter(|part| bytes[place..].starts_with(part)));
    }
    found
}

/// A word that no other text has, made of letters only.
fn odd_word(number: usize) -> String {
    let mut word = String::from("zq");
    let mut rest = number * 7_919 + 456_976;
    while rest > 0 {
        word.push(char::from(b'a' + (rest % 26) as u8));
        rest /= 26;
    }
    word
}

#[test]
fn nothing_of_a_forgotten_source_is_left_in_any_file() {
    let (folder, mut writer) = new_library();
    let kept = writer.add_source(&new_source("kept.mp4")).unwrap().id;
    let gone = writer.add_source(&new_source("secret-name.mp4")).unwrap().id;
    // No two places have the same run of values, whatever lane it starts at.
    let value = |place: usize, lane: usize| {
        let hash = blake3::hash(&((place * 2_000 + lane) as u64).to_le_bytes());
        f32::from(hash.as_bytes()[0]) / 256.0 + f32::from(hash.as_bytes()[1]) / 65_536.0 + 0.01
    };
    // Enough that tables and the index of words have inner pages and several levels.
    for (id, offset) in [(kept, 10_000), (gone, 0)] {
        for index in 0..10u32 {
            let clips = (0..80).map(|place| {
                let number = index as usize * 80 + place + offset;
                let start = i64::from(index) * 120_000_000 + place as i64 * 1_500_000;
                let mut clip = clip(start, std::array::from_fn(|lane| value(number, lane)));
                clip.features =
                    (0..1_280).map(|lane| f16::from_f32(value(number + 5, lane) + 2.0)).collect();
                let cells: Vec<f32> = (0..1_280).map(|lane| value(number + 6, lane)).collect();
                clip.cells = CellFeatures::new(&cells, 1_280);
                clip.thumbnail = Some(thumbnail(number as i64));
                clip
            });
            writer.commit_chunk(id, &clips_recipe(), &chunk(index, clips.collect())).unwrap();
        }
        let cues: Vec<Cue> = (0..3_000usize)
            .map(|number| {
                let words: Vec<String> =
                    (0..4).map(|word| odd_word((number + offset) * 4 + word)).collect();
                cue(number as i64 * 1_000, number as i64 * 1_000 + 900, &words.join(" "))
            })
            .collect();
        writer.replace_cues(id, "", &cues).unwrap();
        let segments: Vec<SegmentRecord> = cues
            .iter()
            .take(200)
            .map(|cue| SegmentRecord {
                span: cue.span,
                text: cue.text.clone(),
                language: None,
                embedding: unit(std::array::from_fn(|lane| value(lane + offset + 77, lane * 3))),
                reading: reading(
                    &format!("caption{}", cue.text),
                    std::array::from_fn(|lane| value(lane + offset + 99, lane * 5)),
                ),
            })
            .collect();
        writer.commit_segments(id, &segments_recipe(), &segments).unwrap();
        // Replaced rows must go as well.
        writer.replace_cues(id, "", &cues[1..]).unwrap();
    }
    writer.set_tags(gone, &[("case".into(), "topsecrettag".into())]).unwrap();
    let report =
        |name: &str| serde_json::json!({ "sources": [{ "path": format!("/films/{name}") }] });
    writer.record_run(&report("secret-name.mp4")).unwrap();
    writer.record_run(&report("kept.mp4")).unwrap();

    let reader = open(folder.path());
    let shown = reader.show(gone).unwrap();
    let mut traces: Vec<Vec<u8>> =
        vec![gone.to_string().into(), b"secret-name".to_vec(), b"topsecrettag".to_vec()];
    for number in (0..3_000usize).step_by(37) {
        traces.extend((0..4).map(|word| odd_word(number * 4 + word).into_bytes()));
    }
    let bytes_before = reader.info().unwrap().bytes;
    for row in shown.clips.iter().step_by(61) {
        traces.push(rows::halves_to_bytes(&reader.features(row.id).unwrap()[..64]));
        traces.push(reader.thumbnail(row.id).unwrap().unwrap().as_bytes()[4..].to_vec());
        let embedding = reader.embedding(row.id).unwrap().into_iter().map(f16::from_f32);
        traces.push(rows::halves_to_bytes(&embedding.collect::<Vec<_>>()));
    }
    let before = all_bytes(folder.path());
    let all: BTreeSet<&[u8]> = traces.iter().map(Vec::as_slice).collect();
    assert_eq!(found(&before, &traces), all);

    let forgotten = writer.forget(gone).unwrap();
    assert_eq!((forgotten.clips, forgotten.cues, forgotten.segments), (800, 2_999, 200));
    assert_eq!(forgotten.runs, 1);
    let after = all_bytes(folder.path());
    assert_eq!(found(&after, &traces), BTreeSet::new());
    assert_eq!(reader.runs(10).unwrap(), [report("kept.mp4")]);
    assert_eq!(reader.source(&gone.to_string()).unwrap_err().kind(), Kind::NotFound);
    let info = reader.info().unwrap();
    assert_eq!((info.clips, info.cues, info.segments), (800, 2_999, 200));
    assert!(info.bytes < bytes_before * 2 / 3, "{} of {bytes_before}", info.bytes);
}

#[test]
fn another_application_or_version_is_refused_with_file_and_reason() {
    let (folder, writer) = new_library();
    drop(writer);
    let lib = folder.path().join("lib");
    let file = lib.join("library.sqlite");
    let set = |pragma: &str, value: i32| {
        let sql = rusqlite::Connection::open(&file).unwrap();
        sql.pragma_update(None, pragma, value).unwrap();
    };
    set("user_version", 99);
    for error in [Writer::open(&lib).unwrap_err(), Reader::open(&lib).unwrap_err()] {
        let text = error.to_string();
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(text.contains("library.sqlite") && text.contains("version 99"), "{text}");
    }
    set("user_version", SCHEMA_VERSION);
    set("application_id", 7);
    assert_eq!(Writer::open(&lib).unwrap_err().kind(), Kind::Unsupported);
    std::fs::write(&file, "just some text that is no database".repeat(100)).unwrap();
    for error in [Writer::open(&lib).unwrap_err(), Reader::open(&lib).unwrap_err()] {
        let text = error.to_string();
        assert!(
            text.contains("library.sqlite") && text.contains("not a Cinelex library"),
            "{text}"
        );
    }
}

#[test]
fn a_folder_of_other_things_is_not_made_a_library() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("holiday.jpg"), "x").unwrap();
    let error = Writer::open(folder.path()).unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidInput);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    let error = Writer::open(&folder.path().join("holiday.jpg")).unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidInput);
    assert_eq!(Reader::open(folder.path()).unwrap_err().kind(), Kind::NotFound);
}

#[test]
fn a_missing_or_exchanged_file_is_told() {
    let (first, writer) = new_library();
    let (second, other) = new_library();
    drop((writer, other));
    let features = |folder: &TempDir| folder.path().join("lib/features.sqlite");
    std::fs::copy(features(&second), features(&first)).unwrap();
    let lib = first.path().join("lib");
    for error in [Writer::open(&lib).unwrap_err(), Reader::open(&lib).unwrap_err()] {
        assert!(error.to_string().contains("belong to different libraries"), "{error}");
    }
    std::fs::remove_file(features(&first)).unwrap();
    assert_eq!(Writer::open(&lib).unwrap_err().kind(), Kind::Corrupt);
    assert_eq!(Reader::open(&lib).unwrap_err().kind(), Kind::NotFound);
}

/// A library with some of everything, closed.
fn small_library() -> (TempDir, SourceId) {
    let (folder, mut writer) = new_library();
    let id = writer.add_source(&new_source("a.mp4")).unwrap().id;
    let clips = (0..30).map(|at| clip(at * 1_500_000, [at as f32; DIMENSION])).collect();
    writer.commit_chunk(id, &clips_recipe(), &chunk(0, clips)).unwrap();
    let cues: Vec<Cue> =
        (0..30).map(|at| cue(at * 9, at * 9 + 5, &odd_word(at as usize))).collect();
    writer.replace_cues(id, "", &cues).unwrap();
    let segment = |cue: &Cue| SegmentRecord {
        span: cue.span,
        text: cue.text.clone(),
        language: None,
        embedding: unit([0.3; DIMENSION]),
        reading: reading("a caption", [0.7; DIMENSION]),
    };
    let segments: Vec<SegmentRecord> = cues.iter().map(segment).collect();
    writer.commit_segments(id, &segments_recipe(), &segments).unwrap();
    (folder, id)
}

/// Does everything that reads; whatever it gives, it must not panic.
fn read_everything(lib: &Path, id: SourceId) -> crate::error::Result<()> {
    let mut reader = Reader::open(lib)?;
    let results = [
        reader.info().map(drop),
        reader.sources().map(drop),
        reader.source(&id.to_string()).map(drop),
        reader.show(id).map(|shown| {
            for segment in &shown.segments {
                let _ = shown.clips_of(segment).len();
            }
        }),
        reader.each_features(&clips_recipe(), |_, _| Ok(())),
        reader.runs(9).map(drop),
        reader
            .search(&Query {
                vectors: vec![
                    (Channel::Picture, vec![0.1; DIMENSION]),
                    (Channel::Speech, vec![0.1; DIMENSION]),
                ],
                words: Some(odd_word(3)),
                top: 5,
                ..Query::default()
            })
            .map(drop),
    ];
    results.into_iter().collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn flipped_bytes_and_cut_files_give_errors_and_no_panic(
        record in any::<bool>(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..20),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let (folder, id) = small_library();
        let lib = folder.path().join("lib");
        let file = lib.join(if record { "library.sqlite" } else { "features.sqlite" });
        let mut bytes = std::fs::read(&file).unwrap();
        for (place, value) in flips {
            *place.get_mut(&mut bytes) = value;
        }
        if let Some(cut) = cut {
            let length = cut.index(bytes.len());
            bytes.truncate(length);
        }
        std::fs::write(&file, bytes).unwrap();
        let _ = read_everything(&lib, id);
        if let Ok(mut writer) = Writer::open(&lib) {
            let clips = vec![clip(0, [1.0; DIMENSION])];
            let _ = writer.commit_chunk(id, &clips_recipe(), &chunk(0, clips));
            let _ = writer.forget(id);
        }
    }
}

#[test]
fn values_that_no_writer_wrote_are_called_damage() {
    let damages = [
        "UPDATE clips SET embedding = x'0102'",
        "UPDATE clips SET embedding = zeroblob(17)",
        "UPDATE clips SET embedding = x'007c007c007c007c007c007c007c007c'",
        "UPDATE clips SET words = x'010203'",
        "UPDATE clips SET frames = -1",
        "UPDATE clips SET end_us = start_us - 1",
        "UPDATE sources SET media = '{'",
        "UPDATE sources SET id = 'x'",
        "UPDATE recipes SET branching = 4000000000, depth = 9",
        "UPDATE spaces SET dimension = 1 << 40",
        "UPDATE locations SET kind = 'moon'",
        "DROP TABLE cues",
    ];
    for damage in damages {
        let (folder, id) = small_library();
        let lib = folder.path().join("lib");
        let sql = rusqlite::Connection::open(lib.join("library.sqlite")).unwrap();
        sql.execute_batch(damage).unwrap();
        drop(sql);
        let error = read_everything(&lib, id).expect_err(damage);
        assert_eq!(error.kind(), Kind::Corrupt, "{damage}: {error}");
        assert!(error.to_string().contains("library.sqlite"), "{error}");
    }
}

#[test]
fn an_unchanging_library_is_read_where_nothing_can_be_written() {
    let (folder, id) = small_library();
    let odd = folder.path().join("a ?#%é");
    std::fs::rename(folder.path().join("lib"), &odd).unwrap();
    let database = schema::Database::open_unchanging(&odd, schema::RECORD).unwrap();
    let found = database.read(|sql| rows::source_key(sql, id)).unwrap();
    assert_eq!(found, 1);
}
