//! Libraries of older and newer versions.

use super::*;

/// A copy of the library of schema `version` that is kept in `tests/compat`.
pub(super) fn old_library(version: u32) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/compat/v{version}"));
    std::fs::create_dir(folder.path().join("lib")).unwrap();
    for file in ["library.sqlite", "features.sqlite"] {
        std::fs::copy(kept.join(file), folder.path().join("lib").join(file)).unwrap();
    }
    folder
}

/// All that a reader gives.
#[derive(Debug, PartialEq)]
pub(super) struct Everything {
    pub shown: Vec<Shown>,
    /// Of all sources, with features and thumbnails; without these where a rebuild has lost them.
    pub clips: Vec<IndexedClip>,
    /// Of all sources, with their vectors.
    pub segments: Vec<SegmentRecord>,
    pub runs: Vec<serde_json::Value>,
}

pub(super) fn everything(lib: &Path) -> Everything {
    let reader = Reader::open(lib).unwrap();
    let shown: Vec<Shown> =
        reader.sources().unwrap().iter().map(|source| reader.show(source.id).unwrap()).collect();
    let (mut clips, mut segments) = (Vec::new(), Vec::new());
    for shown in &shown {
        let keep = |mut clip: IndexedClip| {
            let id = ClipId { source: shown.source.id, start: clip.head.span.start };
            clip.thumbnail = reader.thumbnail(id).unwrap_or(None);
            clips.push(clip);
            Ok(())
        };
        reader.each_clip(shown.source.id, keep).unwrap();
        let keep = |segment| {
            segments.push(segment);
            Ok(())
        };
        reader.each_segment(shown.source.id, keep).unwrap();
    }
    let runs = reader.runs(99).unwrap();
    Everything { shown, clips, segments, runs }
}

#[test]
fn a_library_of_schema_1_is_read_and_brought_to_the_newest() {
    an_old_library_is_read_and_brought_to_the_newest(1);
}

#[test]
fn a_library_of_schema_2_is_read_and_brought_to_the_newest() {
    an_old_library_is_read_and_brought_to_the_newest(2);
}

#[test]
fn a_library_of_schema_3_is_read_and_brought_to_the_newest() {
    an_old_library_is_read_and_brought_to_the_newest(3);
}

#[test]
fn a_library_of_schema_4_is_read_and_brought_to_the_newest() {
    an_old_library_is_read_and_brought_to_the_newest(4);
}

#[test]
fn a_library_of_schema_5_is_read_and_brought_to_the_newest() {
    an_old_library_is_read_and_brought_to_the_newest(5);
}

fn an_old_library_is_read_and_brought_to_the_newest(version: u32) {
    let folder = old_library(version);
    let lib = folder.path().join("lib");
    let before = everything(&lib);
    assert_eq!(before.shown.len(), 3);
    assert_eq!(before.clips.len(), 7);
    let harbour = before.shown.iter().find(|shown| shown.source.name == "harbour.mkv").unwrap();
    let source = harbour.source.id;
    let words = |word: &str| Query { words: Some(word.into()), top: 3, ..Query::default() };
    // As it is, too.
    assert_eq!(open(folder.path()).search(&words("lighthouse")).unwrap()[0].source, source);
    let mut writer = Writer::open(&lib).unwrap();
    assert_eq!(writer.record.version().unwrap(), SCHEMA_VERSION);
    assert_eq!(everything(&lib), before);
    let hits = open(folder.path()).search(&words("lighthouse")).unwrap();
    assert_eq!(hits[0].source, source);
    // What it is for: it can be written to.
    writer.replace_cues(source, "sidecar:", &[cue(0, 900_000, "a walrus")]).unwrap();
    assert_eq!(open(folder.path()).search(&words("walrus")).unwrap().len(), 1);
    let clips: RecipeId = open(folder.path()).current(RecipeKind::Clip).unwrap().unwrap().id;
    assert_eq!(writer.progress(source, &clips).unwrap(), State::Complete);
    assert_eq!(writer.done_chunks(source, &clips).unwrap(), [0]);
    // And has no thumbnails but of what is made now.
    let there = harbour.clips[0].id;
    let new = clip(there.start.0 + 9_000_000, [1.0; DIMENSION]);
    let new = IndexedClip { embedding: Vec::new(), ..new };
    let id = ClipId { source, start: new.head.span.start };
    let record =
        ChunkRecord { index: 0, span: span(0, 120_000_000), clips: vec![new], gaps: Vec::new() };
    writer.append(source, &clips, &record).unwrap();
    let reader = open(folder.path());
    assert_eq!(reader.thumbnail(there).unwrap(), None);
    assert_eq!(reader.thumbnail(id).unwrap(), Some(thumbnail(id.start.0)));
}

#[test]
fn a_newer_library_is_refused_with_the_version_that_wrote_it() {
    let (folder, writer) = new_library();
    drop(writer);
    let lib = folder.path().join("lib");
    let sql = rusqlite::Connection::open(lib.join("library.sqlite")).unwrap();
    sql.execute("UPDATE meta SET value = '7.8.9' WHERE name = 'written_by'", []).unwrap();
    sql.pragma_update(None, "user_version", SCHEMA_VERSION + 1).unwrap();
    drop(sql);
    for error in [Writer::open(&lib).unwrap_err(), Reader::open(&lib).unwrap_err()] {
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.to_string().contains("Cinelex 7.8.9 wrote"), "{error}");
    }
}
