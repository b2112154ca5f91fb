//! Checking and mending: bits that flip, files that end early or are gone.

use std::path::PathBuf;

use super::versions::{everything, old_library};
use super::*;
use crate::library::check::check_locked;
use crate::media::Channel;

const CLIPS: usize = 100;

/// A library with some of everything, closed: two films that are complete, with features, gaps,
/// cues, segments, tags and a run, and one that failed.
pub(super) fn full_library() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(&folder.path().join("lib")).unwrap();
    writer.add_recipe(&recipe(RecipeKind::Clip, "c0ffee00")).unwrap();
    let segments = Recipe {
        description: serde_json::json!({ "clips": "c0ffee00" }),
        ..recipe(RecipeKind::Segment, "5e6e5e6e")
    };
    writer.add_recipe(&segments).unwrap();
    writer.add_recipe(&listening("5feec400")).unwrap();
    for name in ["harbour.mp4", "forest.mp4"] {
        let id = writer.add_source(&new_source(name)).unwrap().id;
        writer.set_tags(id, &[("shelf".into(), "12".into())]).unwrap();
        let cues: Vec<Cue> = (0..40)
            .map(|at| cue(at * 3_000_000, at * 3_000_000 + 2_000_000, &said(name, at)))
            .collect();
        writer.replace_cues(id, "", &cues).unwrap();
        for number in 0..3 {
            let chunk = heard(number, &format!("somebody says {number} of {name}"));
            writer.commit_heard(id, &speech_recipe(), &chunk).unwrap();
        }
        writer.finish_source(id, &speech_recipe(), State::Complete, None).unwrap();
        for number in 0..2u32 {
            let start = i64::from(number) * 120_000_000;
            let clips = (0..CLIPS as i64 / 2).map(|at| {
                let number = at as f32 + 1.0;
                clip(start + at * 1_500_000, std::array::from_fn(|lane| number / (lane + 1) as f32))
            });
            let gap = Gap {
                span: span(start + 100_000_000, start + 110_000_000),
                track: TrackKind::Picture,
                reason: "no frame".into(),
            };
            let chunk = ChunkRecord {
                index: number,
                span: span(start, start + 120_000_000),
                clips: clips.collect(),
                gaps: vec![gap],
            };
            writer.commit_chunk(id, &clips_recipe(), &chunk).unwrap();
        }
        writer.finish_source(id, &clips_recipe(), State::Complete, None).unwrap();
        let segments: Vec<SegmentRecord> = (0..80)
            .map(|at| SegmentRecord {
                span: span(at * 3_000_000, (at + 1) * 3_000_000),
                text: said(name, at),
                language: Some("en".into()),
                embedding: unit(std::array::from_fn(|lane| (at * lane as i64 % 7) as f32 + 0.1)),
                reading: reading(&format!("{at} boats on a lake"), [at as f32; DIMENSION]),
            })
            .collect();
        writer.commit_segments(id, &segments_recipe(), &segments).unwrap();
        writer.finish_source(id, &segments_recipe(), State::Complete, None).unwrap();
    }
    let failed = writer.add_source(&new_source("broken.mp4")).unwrap().id;
    writer.finish_source(failed, &clips_recipe(), State::Failed, Some("no picture")).unwrap();
    writer.record_run(&serde_json::json!({ "sources": [], "note": "x".repeat(5_000) })).unwrap();
    folder
}

fn said(name: &str, at: i64) -> String {
    format!("boat number {at} of {name} leaves for the island")
}

/// What a check finds but what is only unfinished; an error is a finding too.
pub(super) fn faults(lib: &Path) -> Vec<String> {
    match check(lib, &mut |_| Ok(())) {
        Ok(findings) => findings
            .iter()
            .filter(|finding| finding.fault != Fault::Unfinished)
            .map(|finding| format!("{:?} {}: {}", finding.fault, finding.place, finding.detail))
            .collect(),
        Err(error) => vec![error.to_string()],
    }
}

fn mend(lib: &Path) -> Rebuilt {
    rebuild(lib, &mut |_| Ok(())).unwrap()
}

fn copy(lib: &Path) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("lib");
    std::fs::create_dir(&to).unwrap();
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&to, std::fs::Permissions::from_mode(0o700)).unwrap();
    for file in ["library.sqlite", "features.sqlite"] {
        std::fs::copy(lib.join(file), to.join(file)).unwrap();
    }
    (folder, to)
}

/// Searches by words and pictures; both find something.
fn searches(lib: &Path) {
    let mut reader = Reader::open(lib).unwrap();
    let query = Query {
        vectors: vec![(Channel::Picture, vec![0.5; DIMENSION])],
        words: Some("island".into()),
        top: 5,
        ..Query::default()
    };
    assert_eq!(reader.search(&query).unwrap().len(), 5);
}

#[test]
fn a_library_that_is_whole_has_no_faults() {
    let folder = full_library();
    let lib = folder.path().join("lib");
    assert_eq!(faults(&lib), [""; 0]);
    let before = everything(&lib);
    let rebuilt = mend(&lib);
    assert_eq!((rebuilt.saved, rebuilt.kept.len()), (0, 0));
    assert_eq!(everything(&lib), before);
    assert_eq!(faults(&lib), [""; 0]);
}

#[test]
fn a_migrated_library_has_no_faults() {
    for version in [1, 2, 3, 4, 5] {
        let folder = old_library(version);
        let lib = folder.path().join("lib");
        drop(Writer::open(&lib).unwrap());
        let of_the_folder = |fault: &String| !fault.starts_with("Open");
        assert_eq!(faults(&lib).into_iter().filter(of_the_folder).collect::<Vec<_>>(), [""; 0]);
    }
}

#[test]
fn the_same_library_anew_is_what_it_was() {
    let folder = full_library();
    let lib = folder.path().join("lib");
    let before = everything(&lib);
    // Damage that costs nothing: a page of the index of cues.
    let sql = rusqlite::Connection::open(lib.join("library.sqlite")).unwrap();
    let page: u64 = sql
        .query_row("SELECT rootpage FROM sqlite_schema WHERE name = 'cues_of_source'", [], |row| {
            row.get(0)
        })
        .unwrap();
    drop(sql);
    let path = lib.join("library.sqlite");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[(page as usize - 1) * 4096..page as usize * 4096].fill(0);
    std::fs::write(&path, &bytes).unwrap();
    assert_ne!(faults(&lib), [""; 0]);
    let rebuilt = mend(&lib);
    assert_eq!((rebuilt.dropped, &rebuilt.sources[..]), (0, &[][..]), "{rebuilt:?}");
    assert_eq!(rebuilt.doubtful, 0);
    assert_eq!(everything(&lib), before);
    assert_eq!(faults(&lib), [""; 0]);
    let kept = std::fs::read(lib.join(&rebuilt.kept[0])).unwrap();
    assert_eq!(kept, bytes);
    searches(&lib);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// Whatever subtitles say, a library of it is whole: letters of any script, controls, marks that stand on nothing.
    #[test]
    fn a_library_of_any_words_is_whole(
        texts in prop::collection::vec(
            prop_oneof![any::<String>(), "[a-zé我\u{301}\u{5b0}\u{e31}\u{0} -]{0,12}"], 1..40),
    ) {
        let (folder, mut writer) = new_library();
        let id = writer.add_source(&new_source("a.mp4")).unwrap().id;
        let said = texts.iter().enumerate();
        let cues: Vec<Cue> = said.map(|(at, text)| cue(at as i64, at as i64 + 1, text)).collect();
        writer.replace_cues(id, "", &cues).unwrap();
        drop(writer);
        let lib = folder.path().join("lib");
        prop_assert_eq!(faults(&lib), [""; 0]);
        mend(&lib);
        prop_assert_eq!(faults(&lib), [""; 0]);
        prop_assert_eq!(&everything(&lib).shown[0].cues, &cues);
    }
}

#[test]
fn every_flipped_bit_is_harmless_or_found_and_mended() {
    let folder = full_library();
    let lib = folder.path().join("lib");
    let before = everything(&lib);
    let flips: u64 = std::env::var("CINELEX_FLIPS").ok().map_or(100, |n| n.parse().unwrap());
    let (mut harmless, mut whole) = (0, 0);
    for flip in 0..flips {
        let random = blake3::hash(&flip.to_le_bytes());
        let number = u64::from_le_bytes(random.as_bytes()[..8].try_into().unwrap());
        let name = ["library.sqlite", "features.sqlite"][usize::from(flip % 4 == 3)];
        let (_held, lib) = copy(&lib);
        let path = lib.join(name);
        let mut bytes = std::fs::read(&path).unwrap();
        // Most at random, and each eighth in the header of a page.
        let place = match flip % 8 {
            0 => number as usize % (bytes.len() / 4096) * 4096 + (number >> 40) as usize % 24,
            _ => number as usize % bytes.len(),
        };
        bytes[place] ^= 1 << (number >> 60 & 7);
        std::fs::write(&path, &bytes).unwrap();
        let what = format!("flip {flip} at {place} of {name}");
        let found = faults(&lib);
        if found.is_empty() {
            assert!(everything(&lib) == before, "{what} was not found");
            harmless += 1;
            continue;
        }
        let rebuilt = rebuild(&lib, &mut |_| Ok(()))
            .unwrap_or_else(|error| panic!("{what} ({found:?}): {error}"));
        assert_eq!(faults(&lib), [""; 0], "{what} ({found:?})");
        searches(&lib);
        let after = everything(&lib);
        assert_eq!(after.shown.len(), before.shown.len(), "{what}: a source is lost ({found:?})");
        assert!(after.clips.len() + 1 >= before.clips.len(), "{what} ({found:?}): {rebuilt:?}");
        whole += usize::from(after == before);
    }
    eprintln!("{flips} flips: {harmless} harmless, {whole} mended without any loss");
}

#[test]
fn what_is_left_of_a_truncated_file_is_saved() {
    for (name, keep) in [
        ("library.sqlite", 0.7),
        ("library.sqlite", 0.5),
        ("features.sqlite", 0.5),
        ("features.sqlite", 0.0),
    ] {
        let folder = full_library();
        let lib = folder.path().join("lib");
        let path = lib.join(name);
        let length = std::fs::metadata(&path).unwrap().len();
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_len((length as f64 * keep) as u64).unwrap();
        assert_ne!(faults(&lib), [""; 0], "{name} {keep}");
        let rebuilt = mend(&lib);
        assert_eq!(faults(&lib), [""; 0], "{name} {keep}: {rebuilt:?}");
        assert!(rebuilt.saved > 20 && !rebuilt.sources.is_empty(), "{rebuilt:?}");
    }
}

#[test]
fn any_one_page_may_be_lost() {
    let folder = full_library();
    let lib = folder.path().join("lib");
    let before = everything(&lib).clips;
    let length = std::fs::metadata(lib.join("library.sqlite")).unwrap().len();
    for page in 0..length as usize / 4096 {
        let (_held, lib) = copy(&lib);
        let path = lib.join("library.sqlite");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[page * 4096..(page + 1) * 4096].fill(0);
        std::fs::write(&path, bytes).unwrap();
        let found = faults(&lib);
        if found.is_empty() {
            continue;
        }
        let rebuilt = rebuild(&lib, &mut |_| Ok(()))
            .unwrap_or_else(|error| panic!("page {page} ({found:?}): {error}"));
        assert_eq!(faults(&lib), [""; 0], "page {page}: {rebuilt:?}");
        searches(&lib);
        let after = everything(&lib).clips;
        // A page holds some 45 of these clips.
        assert!(after.len() + 60 > before.len(), "page {page}: {found:?} {rebuilt:?}");
    }
}

/// Fills with zeros the page where a table begins; these libraries' recipes and spaces have one.
pub(super) fn wipe(lib: &Path, table: &str) {
    let path = lib.join("library.sqlite");
    let sql = rusqlite::Connection::open(&path).unwrap();
    let find = "SELECT rootpage FROM sqlite_schema WHERE name = ?1";
    let page: usize = sql.query_row(find, [table], |row| row.get(0)).unwrap();
    drop(sql);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[(page - 1) * 4096..page * 4096].fill(0);
    std::fs::write(&path, bytes).unwrap();
}

#[test]
fn recipes_that_a_rebuild_could_not_read_are_put_right_by_the_next_run() {
    let segments = Recipe {
        description: serde_json::json!({ "clips": "c0ffee00" }),
        ..recipe(RecipeKind::Segment, "5e6e5e6e")
    };
    let recipes = [recipe(RecipeKind::Clip, "c0ffee00"), segments, listening("5feec400")];
    for wiped in [&["recipes"][..], &["spaces"], &["recipes", "spaces"]] {
        let folder = full_library();
        let lib = folder.path().join("lib");
        let known = || -> Vec<_> {
            let info = open(folder.path()).info().unwrap().recipes.into_iter();
            let mut known: Vec<_> = info.map(|info| (info.recipe, info.current)).collect();
            known.sort_by_key(|(recipe, _)| recipe.id.to_string());
            known
        };
        let before = known();
        for table in wiped {
            wipe(&lib, table);
        }
        let rebuilt = mend(&lib);
        assert_ne!(known(), before, "{wiped:?}");
        let mut writer = Writer::open(&lib).unwrap();
        for recipe in &recipes {
            writer.add_recipe(recipe).unwrap();
        }
        assert_eq!(known(), before, "{wiped:?}");
        // Without a space there are no embeddings, so that both chunks are read again.
        let is_read_again = wiped.contains(&"spaces");
        let id = open(folder.path()).sources().unwrap()[0].id;
        let done = writer.done_chunks(id, &clips_recipe()).unwrap();
        assert_eq!(done.len(), if is_read_again { 0 } else { 2 }, "{wiped:?}");
        assert_eq!(!rebuilt.sources.is_empty(), is_read_again, "{wiped:?}: {rebuilt:?}");
        let progress = writer.progress(id, &segments_recipe()).unwrap();
        assert_eq!(progress == State::Complete, !is_read_again, "{wiped:?}");
        drop(writer);
        assert_eq!(faults(&lib), [""; 0], "{wiped:?}");
        // What is known is not written again.
        let mut writer = Writer::open(&lib).unwrap();
        let bytes = std::fs::read(lib.join("library.sqlite")).unwrap();
        writer.add_recipe(&recipes[0]).unwrap();
        drop(writer);
        assert!(std::fs::read(lib.join("library.sqlite")).unwrap() == bytes);
    }
}

#[test]
fn without_its_features_a_library_is_searched_and_read_again() {
    let folder = full_library();
    let lib = folder.path().join("lib");
    let before = everything(&lib).shown;
    std::fs::remove_file(lib.join("features.sqlite")).unwrap();
    let error = Writer::open(&lib).unwrap_err();
    assert!(error.to_string().contains("cinelex library rebuild"), "{error}");
    let rebuilt = mend(&lib);
    assert_eq!(rebuilt.sources.iter().map(|source| source.chunks).collect::<Vec<_>>(), [2, 2]);
    assert_eq!(faults(&lib), [""; 0]);
    searches(&lib);
    let reader = Reader::open(&lib).unwrap();
    for shown in &before {
        assert_eq!(reader.show(shown.source.id).unwrap().clips, shown.clips);
    }
    // What is read again takes the place of what was saved.
    let mut writer = Writer::open(&lib).unwrap();
    let id = before[0].source.id;
    assert_eq!(writer.done_chunks(id, &clips_recipe()).unwrap(), [0u32; 0]);
    assert_eq!(writer.progress(id, &clips_recipe()).unwrap(), State::New);
    let chunk = ChunkRecord {
        index: 0,
        span: span(0, 120_000_000),
        clips: vec![clip(0, [1.0; DIMENSION])],
        gaps: Vec::new(),
    };
    writer.commit_chunk(id, &clips_recipe(), &chunk).unwrap();
    assert_eq!(writer.done_chunks(id, &clips_recipe()).unwrap(), [0]);
    drop(writer);
    assert_eq!(faults(&lib), [""; 0]);
}

#[test]
fn what_the_log_holds_is_saved_and_a_deleted_log_costs_only_what_it_held() {
    let folder = full_library();
    let lib = folder.path().join("lib");
    let mut writer = Writer::open(&lib).unwrap();
    let id = open(folder.path()).sources().unwrap()[0].id;
    writer.replace_cues(id, "", &[cue(0, 9, "a walrus in the log")]).unwrap();
    // As after a kill: the log is not emptied.
    let (_held, killed) = copy(&lib);
    for name in ["library.sqlite-wal", "features.sqlite-wal"] {
        std::fs::copy(lib.join(name), killed.join(name)).unwrap();
    }
    let (_held, without) = copy(&killed);
    assert_eq!(faults(&killed), [""; 0]);
    assert_eq!(faults(&without), [""; 0]);

    // Damage in a page of the file does not cost what is in the log.
    let path = killed.join("library.sqlite");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[..16].fill(0);
    std::fs::write(&path, bytes).unwrap();
    let _ = faults(&killed);
    mend(&killed);
    assert_eq!(faults(&killed), [""; 0]);
    let mut cues = Reader::open(&killed).unwrap().cues(id).unwrap();
    cues.retain(|cue| cue.kind == CueKind::Subtitle);
    assert_eq!(cues, [cue(0, 9, "a walrus in the log")]);
}

#[test]
fn each_kind_of_inconsistency_is_found() {
    let damages = [
        ("UPDATE cues SET text = replace(text, 'boat', 'goat') WHERE key = 7", Fault::Changed),
        ("UPDATE clips SET embedding = zeroblob(16) WHERE key = 7", Fault::Changed),
        ("UPDATE runs SET report = '{}'", Fault::Changed),
        ("DELETE FROM clips WHERE key = 9", Fault::Counts),
        ("DELETE FROM gaps WHERE chunk = 1", Fault::Counts),
        ("DELETE FROM chunks WHERE number = 1", Fault::Counts),
        ("DELETE FROM chunks WHERE number = 0", Fault::State),
        ("DELETE FROM cues WHERE key = 9", Fault::Counts),
        ("DELETE FROM segments WHERE key = 9", Fault::Spans),
        ("DELETE FROM sources WHERE key = 1", Fault::References),
        ("UPDATE recipes SET state = 'building'", Fault::State),
        ("UPDATE spaces SET dimension = 9", Fault::Values),
        ("UPDATE meta SET value = 'x' WHERE name = 'clips_generation'", Fault::Values),
        ("DELETE FROM cues WHERE recipe IS NOT NULL AND start_us > 10000000", Fault::Counts),
        ("DELETE FROM chunks WHERE number = 1 AND clips = 0", Fault::Counts),
        ("DELETE FROM recipes WHERE kind = 'speech'", Fault::References),
        ("INSERT INTO spoken (spoken, rowid, folded) VALUES ('delete', 3, 'boat')", Fault::Words),
        ("UPDATE clips SET features_digest = zeroblob(16) WHERE key = 7", Fault::FeaturesLost),
        (
            "ATTACH 'features.sqlite' AS f; DELETE FROM f.features WHERE start_us = 0",
            Fault::FeaturesLost,
        ),
        (
            "ATTACH 'features.sqlite' AS f;
          UPDATE f.features SET start_us = 60000007 WHERE start_us = 60000000",
            Fault::FeaturesAlone,
        ),
        ("ATTACH 'features.sqlite' AS f; UPDATE f.meta SET value = 'x'", Fault::References),
        (
            "ATTACH 'features.sqlite' AS f; DELETE FROM f.thumbnails WHERE start_us = 0",
            Fault::ThumbnailsLost,
        ),
        (
            "ATTACH 'features.sqlite' AS f;
          UPDATE f.thumbnails SET jpeg = x'ffd8ffd9' WHERE start_us = 0",
            Fault::Changed,
        ),
        (
            "ATTACH 'features.sqlite' AS f; UPDATE f.thumbnails SET jpeg = x'00',
          digest = row_digest('thumbnails', source, recipe, start_us, x'00') WHERE start_us = 0",
            Fault::Values,
        ),
        (
            "ATTACH 'features.sqlite' AS f; INSERT INTO f.thumbnails
          SELECT NULL, source, recipe, start_us + 7, jpeg,
          row_digest('thumbnails', source, recipe, start_us + 7, jpeg)
          FROM f.thumbnails WHERE start_us = 0",
            Fault::FeaturesAlone,
        ),
        (
            "UPDATE chunks SET thumbnails = 3, digest = row_digest('chunks', source, recipe, number,
          start_us, end_us, clips, gaps, 3, partial) WHERE number = 1 AND clips > 0",
            Fault::Counts,
        ),
    ];
    let folder = full_library();
    for (damage, fault) in damages {
        let (_held, lib) = copy(&folder.path().join("lib"));
        let sql = rusqlite::Connection::open(lib.join("library.sqlite")).unwrap();
        sql.pragma_update(None, "foreign_keys", false).unwrap();
        digest::install(&sql).unwrap();
        let features = lib.join("features.sqlite");
        let damage = damage.replace("features.sqlite", features.to_str().unwrap());
        sql.execute_batch(&damage).unwrap();
        drop(sql);
        let found = check(&lib, &mut |_| Ok(())).unwrap();
        assert!(found.iter().any(|found| found.fault == fault), "{damage}: {found:?}");
        mend(&lib);
        assert_eq!(faults(&lib), [""; 0], "{damage}");
        searches(&lib);
    }
}

#[test]
fn stray_files_and_an_open_folder_are_found() {
    use std::os::unix::fs::PermissionsExt;
    let folder = full_library();
    let lib = folder.path().join("lib");
    std::fs::write(lib.join("notes.txt"), "x").unwrap();
    std::fs::set_permissions(&lib, std::fs::Permissions::from_mode(0o755)).unwrap();
    let found = check(&lib, &mut |_| Ok(())).unwrap();
    let kinds: Vec<(Fault, &str)> =
        found.iter().map(|found| (found.fault, found.place.as_str())).collect();
    assert_eq!(
        kinds,
        [(Fault::Open, "."), (Fault::StrayFile, "notes.txt")]
            .into_iter()
            .chain([])
            .collect::<Vec<_>>()
    );
    assert!(lib.join("notes.txt").exists());
}

#[test]
fn a_check_lets_no_writer_in_and_waits_for_none() {
    let folder = full_library();
    let lib = folder.path().join("lib");
    let writer = Writer::open(&lib).unwrap();
    assert_eq!(check(&lib, &mut |_| Ok(())).unwrap_err().kind(), Kind::Unavailable);
    drop(writer);
    check_locked(&lib, &mut |_| Ok(())).unwrap();
    let mut tried = None;
    check(&lib, &mut |_| {
        tried.get_or_insert_with(|| Writer::open(&lib).unwrap_err().kind());
        Ok(())
    })
    .unwrap();
    assert_eq!(tried, Some(Kind::Unavailable));
}
