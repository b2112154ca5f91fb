//! `library export`: what other programs read.

use std::fs::{self, File};
use std::path::Path;

use cinelex::library::{
    ChunkRecord, Location, NewSource, Origin, Place, Recipe, RecipeKind, SegmentReading,
    SegmentRecord, SourceId, Space, State, Tree, WallClock, WallOrigin, Writer,
};
use cinelex::media::{
    Caption, CellFeatures, ClipHead, Cue, CueKind, IndexedClip, TimedWord, VisualWord,
};
use cinelex::time::{Micros, Span, Timestamp};
use half::f16;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::cinelex::run;

const FEATURES: usize = 1_280;
/// So many that a table has two groups of rows.
const CLIPS: i64 = 3_600;

fn span(start_us: i64, end_us: i64) -> Span {
    Span::new(Timestamp(start_us), Timestamp(end_us))
}

fn recipe(kind: RecipeKind, id: &str) -> Recipe {
    let space =
        Space { id: "test".into(), tower: "test".into(), dimension: 4, languages: Vec::new() };
    Recipe {
        id: id.parse().unwrap(),
        kind,
        description: json!({ "clip_us": 1_500_000 }),
        space: Some(space),
        tree: Some(Tree { branching: 12, depth: 3 }),
    }
}

fn add(writer: &mut Writer, name: &str) -> SourceId {
    let place = Place::Path(format!("/films/{name}").into());
    let location =
        Location { place, size_bytes: Some(7), modified_us: None, device: None, inode: None };
    let wall = WallClock { start_us: 1_700_000_000_000_000, origin: WallOrigin::File };
    let source = NewSource {
        fingerprint: name.into(),
        name: name.into(),
        origin: Origin::File,
        duration: (name == "long.mp4").then_some(Micros(CLIPS * 1_500_000)),
        media: json!({ "container": "mp4", "tracks": [1, 2] }),
        wall: (name == "long.mp4").then_some(wall),
        location,
    };
    writer.add_source(&source).unwrap().id
}

fn clip(place: i64) -> IndexedClip {
    let value = |at: usize| f16::from_f32((place as f32 * 0.37 + at as f32 * 1.3).sin());
    IndexedClip {
        head: ClipHead {
            span: span(place * 1_500_000, (place + 1) * 1_500_000),
            raw_pts: place - 5,
            frames: 2,
            shot_start: (place % 3 == 0).then_some(Timestamp(place * 1_500_000 + 7)),
        },
        words: if place % 5 == 0 {
            Vec::new()
        } else {
            vec![VisualWord(place as u32), VisualWord(0)]
        },
        features: (0..FEATURES).map(value).collect(),
        cells: CellFeatures::default(),
        embedding: if place % 7 == 0 { Vec::new() } else { (0..4).map(value).collect() },
        thumbnail: None,
    }
}

fn cue(start_us: i64, text: &str) -> Cue {
    Cue {
        span: span(start_us, start_us + 900_000),
        text: text.into(),
        kind: CueKind::Subtitle,
        language: None,
        track: "embedded:2".into(),
        confidence: None,
        words: Vec::new(),
        speaker: None,
    }
}

fn library() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(&folder.path().join("lib")).unwrap();
    let (clips, segments) =
        (recipe(RecipeKind::Clip, "c0ffee00"), recipe(RecipeKind::Segment, "5e6e5e6e"));
    writer.add_recipe(&clips).unwrap();
    writer.add_recipe(&segments).unwrap();
    let (long, _) = (add(&mut writer, "long.mp4"), add(&mut writer, "empty\n\u{fffd}.mp4"));
    writer.set_tags(long, &[("shelf".into(), "12".into())]).unwrap();
    for (index, start) in (0..CLIPS).step_by(80).enumerate() {
        let chunk = ChunkRecord {
            index: index as u32,
            span: span(start * 1_500_000, (start + 80) * 1_500_000),
            clips: (start..start + 80).map(clip).collect(),
            gaps: Vec::new(),
        };
        writer.commit_chunk(long, &clips.id, &chunk).unwrap();
    }
    let timed = TimedWord { span: span(0, 5), text: "zwei\n".into(), confidence: Some(0.5) };
    let spoken = Cue {
        kind: CueKind::Speech,
        language: Some("de".into()),
        confidence: Some(0.25),
        words: vec![timed],
        speaker: Some("Ann \"A\"".into()),
        ..cue(2_000_000, "eins\nzwei")
    };
    writer.replace_cues(long, "", &[cue(0, "one"), spoken]).unwrap();
    let segment = |start, text: &str, embedding| SegmentRecord {
        span: span(start, start + 1_500_000),
        text: text.into(),
        language: (!text.is_empty()).then(|| "en".into()),
        embedding,
        reading: None,
    };
    let mut read = [segment(0, "one", vec![f16::ONE; 4]), segment(1_500_000, "", Vec::new())];
    read[0].reading = Some(SegmentReading {
        caption: Some(Caption { text: "a \"man\" runs".into(), confidence: 0.25 }),
        alignment: Some(0.75),
        embedding: vec![f16::NEG_ONE; 4],
    });
    writer.commit_segments(long, &segments.id, &read).unwrap();
    writer.finish_source(long, &clips.id, State::Complete, None).unwrap();
    folder
}

fn export(folder: &Path, arguments: &[&str]) -> crate::cinelex::Ran {
    let library = folder.join("lib");
    run([&["library", "export", library.to_str().unwrap(), "--json"], arguments].concat())
}

/// A Parquet field as JSON; text that is JSON is read.
fn json_of(name: &str, field: &Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(value) => json!(value),
        Field::Int(value) => json!(value),
        Field::Long(value) | Field::TimestampMicros(value) => json!(value),
        Field::Float(value) => json!(value),
        Field::Double(value) => json!(value),
        Field::Str(text) if ["locations", "tags", "media"].contains(&name) => {
            serde_json::from_str(text).unwrap()
        }
        Field::Str(text) => json!(text),
        Field::Bytes(bytes) => serde_json::from_slice(bytes.data()).unwrap(),
        Field::ListInternal(list) => list.elements().iter().map(|one| json_of("", one)).collect(),
        field => panic!("{name}: {field:?}"),
    }
}

fn parquet_rows(file: &Path, cues: bool) -> Vec<Map<String, Value>> {
    let reader = SerializedFileReader::new(File::open(file).unwrap()).unwrap();
    let rows = reader.get_row_iter(None).unwrap();
    rows.map(|row| {
        let row = row.unwrap();
        let columns = row.get_column_iter().map(|(name, field)| {
            let is_json = cues && name == "words";
            let value = match json_of(name, field) {
                Value::String(text) if is_json => serde_json::from_str(&text).unwrap(),
                value => value,
            };
            (name.clone(), value)
        });
        columns.collect()
    })
    .collect()
}

#[test]
fn both_formats_say_the_same_with_vectors_and_visual_words() {
    let folder = library();
    let (lines, tables) = (folder.path().join("lines"), folder.path().join("tables"));
    for (format, output) in [("jsonl", &lines), ("parquet", &tables)] {
        let ran =
            export(folder.path(), &["--format", format, "-o", output.to_str().unwrap()]).exits(0);
        let rows: Vec<(String, u64)> = ran
            .lines("exported")
            .iter()
            .map(|line| (line["what"].as_str().unwrap().to_owned(), line["rows"].as_u64().unwrap()))
            .collect();
        let expected = [("sources", 2), ("clips", CLIPS as u64), ("segments", 2), ("cues", 2)];
        assert_eq!(rows, expected.map(|(what, rows)| (what.to_owned(), rows)));
        // Nothing unfinished is left.
        assert_eq!(fs::read_dir(output).unwrap().count(), 4);
    }
    for (what, kind) in
        [("sources", "source"), ("clips", "clip"), ("segments", "segment"), ("cues", "cue")]
    {
        let text = fs::read_to_string(lines.join(format!("{what}.jsonl"))).unwrap();
        let table = tables.join(format!("{what}.parquet"));
        let rows = parquet_rows(&table, what == "cues");
        assert_eq!(text.lines().count(), rows.len(), "{what}");
        for (line, row) in text.lines().zip(&rows) {
            let mut line: Map<String, Value> = serde_json::from_str(line).unwrap();
            assert_eq!(
                (line.remove("schema"), line.remove("kind")),
                (Some(json!(1)), Some(json!(kind)))
            );
            // Halves are exact in 32 and in 64 bits, but not written with the same digits.
            for (name, value) in &line {
                let (value, other) = (exact(value), exact(&row[name]));
                assert!(value == other, "{what} {name}: {value} and {other}");
            }
            assert_eq!(line.len(), row.len());
        }
        let metadata = SerializedFileReader::new(File::open(&table).unwrap()).unwrap();
        let metadata = metadata.metadata().clone();
        let about = metadata.file_metadata().key_value_metadata().unwrap().clone();
        let said = |key: &str| about.iter().find(|pair| pair.key == key)?.value.clone();
        assert_eq!(
            (said("cinelex.schema"), said("cinelex.kind")),
            (Some("1".into()), Some(kind.into()))
        );
        if what == "segments" {
            let row = &rows[0];
            assert_eq!(
                (&row["caption"], &row["confidence"]),
                (&json!("a \"man\" runs"), &json!(0.25))
            );
            assert_eq!(exact(&row["picture_embedding"]), json!([-1.0, -1.0, -1.0, -1.0]));
            assert_eq!((&row["alignment"], &rows[1]["caption"]), (&json!(0.75), &Value::Null));
        }
        if what == "clips" {
            assert_eq!(metadata.num_row_groups(), 2);
            assert_eq!(said("cinelex.recipe").as_deref(), Some("c0ffee00"));
            assert_eq!(said("cinelex.space.dimension").as_deref(), Some("4"));
            assert_eq!(said("cinelex.tree.branching").as_deref(), Some("12"));
            let third = &rows[2];
            let features: Vec<f32> = clip(2).features.iter().map(|value| value.to_f32()).collect();
            assert_eq!(exact(&third["features"]), exact(&json!(features)));
            assert_eq!(third["visual_word_ids"], json!([2, 0]));
            assert_eq!(
                (&rows[0]["embedding"], &rows[0]["visual_word_ids"]),
                (&Value::Null, &json!([]))
            );
        }
    }
}

/// Numbers as 32 bits have them.
fn exact(value: &Value) -> Value {
    match value {
        Value::Number(number) if number.is_f64() => {
            json!(f64::from(number.as_f64().unwrap() as f32))
        }
        Value::Array(values) => values.iter().map(exact).collect(),
        value => value.clone(),
    }
}

#[test]
fn an_export_is_narrowed_and_overwrites_nothing() {
    let folder = library();
    let file = folder.path().join("clips.jsonl");
    let to = file.to_str().unwrap();
    let narrow =
        ["--format", "jsonl", "--what", "clips", "--source", "empty\n\u{fffd}.mp4", "-o", to];
    let ran = export(folder.path(), &narrow).exits(0);
    assert_eq!(ran.line("exported")["rows"], 0);
    assert_eq!(fs::read(&file).unwrap(), b"");
    let again = export(folder.path(), &narrow).exits(2);
    assert!(again.err.contains("exists already"), "{again:?}");
    let two = ["--format", "jsonl", "--what", "clips", "--what", "cues", "-o"];
    let into = folder.path().join("into");
    export(folder.path(), &[&two[..], &[into.to_str().unwrap()]].concat()).exits(0);
    let mut names: Vec<_> =
        fs::read_dir(&into).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["clips.jsonl", "cues.jsonl"]);
    let nowhere = folder.path().join("no/such/clips.parquet");
    let one = ["--format", "parquet", "--what", "clips", "-o", nowhere.to_str().unwrap()];
    assert!(export(folder.path(), &one).exits(1).err.contains("no/such/clips.parquet"));
}
