//! Live sources: how they are, what is kept of them, and what becomes of damage.

use std::sync::atomic::Ordering;

use super::mending::faults;
use super::*;
use crate::media::Channel;

const CHUNK_US: i64 = 120_000_000;
/// Some instant, on a chunk's boundary.
const THEN_US: i64 = 14_000_000 * CHUNK_US;

fn camera(writer: &mut Writer, name: &str) -> SourceId {
    let wall = Some(WallClock { start_us: 0, origin: WallOrigin::Arrival });
    let new = NewSource {
        fingerprint: format!("live:{name}"),
        origin: Origin::Live,
        duration: None,
        wall,
        location: Location { place: Place::url(&format!("rtsp://{name}/live")), ..at("/") },
        ..new_source(name)
    };
    writer.add_source(&new).unwrap().id
}

fn number(chunk: u32) -> u32 {
    14_000_000 + chunk
}

/// Stores `clips` of a chunk, one by one as a stream gives them, and a segment of each two.
fn watch(writer: &mut Writer, id: SourceId, chunk: u32, clips: std::ops::Range<i64>) {
    let start = THEN_US + i64::from(chunk) * CHUNK_US;
    let whole = span(start, start + CHUNK_US);
    for at in clips.clone() {
        let lane = (chunk as i64 * 80 + at) as usize;
        let embedding =
            std::array::from_fn(|place| if place == lane % DIMENSION { 1.0 } else { 0.1 });
        let clips = vec![clip(start + at * 1_500_000, embedding)];
        let gaps = Vec::new();
        let record = ChunkRecord { index: number(chunk), span: whole, clips, gaps };
        writer.append(id, &clips_recipe(), &record).unwrap();
    }
    let segments: Vec<SegmentRecord> = clips
        .step_by(2)
        .map(|at| SegmentRecord {
            span: span(start + at * 1_500_000, start + (at + 2) * 1_500_000),
            text: String::new(),
            language: None,
            embedding: Vec::new(),
            reading: reading("a boat on a lake", [at as f32 + 1.0; DIMENSION]),
        })
        .collect();
    writer.commit_segments_in(id, &segments_recipe(), whole, &segments).unwrap();
}

/// The starts of the clips that are stored, that searches by picture and by words find, and whose features
/// and thumbnails are there.
fn starts(folder: &TempDir, reader: &mut Reader) -> [Vec<i64>; 4] {
    let mut query = Query {
        vectors: vec![(Channel::Picture, unit_f32())],
        channels: vec![Channel::Picture],
        top: 10_000,
        ..Query::default()
    };
    let found = |hits: Vec<Hit>| {
        let mut found: Vec<i64> = hits.iter().map(|hit| hit.span.start_us.0).collect();
        found.sort_unstable();
        found
    };
    let by_picture = found(reader.search(&query).unwrap());
    query = Query { words: Some("lake".into()), top: 10_000, ..Query::default() };
    let by_words = found(reader.search(&query).unwrap());
    let sources = reader.sources().unwrap();
    let shown = sources.iter().flat_map(|source| reader.show(source.id).unwrap().clips);
    let mut stored: Vec<i64> = shown.map(|clip| clip.id.start.0).collect();
    stored.sort_unstable();
    let features = rusqlite::Connection::open(folder.path().join("lib/features.sqlite")).unwrap();
    let of_clips = |table: &str| -> Vec<i64> {
        let find = format!("SELECT start_us FROM {table} ORDER BY start_us");
        rows::all(&features, &find, [], |row| row.get(0)).unwrap()
    };
    let features = of_clips("features");
    assert_eq!(of_clips("thumbnails"), features);
    [stored, by_picture, by_words, features]
}

fn unit_f32() -> Vec<f32> {
    unit([1.0; DIMENSION]).iter().map(|value| value.to_f32()).collect()
}

/// Of the clips that start there, those that a segment begins with.
fn with_segments(starts: &[i64]) -> Vec<i64> {
    starts.iter().copied().filter(|start| (start - THEN_US) / 1_500_000 % 2 == 0).collect()
}

#[test]
fn how_a_camera_is_can_be_seen_while_and_after_it_is_watched() {
    let (folder, mut writer) = new_library();
    let id = camera(&mut writer, "door");
    let reader = open(folder.path());
    assert_eq!(reader.watch(id).unwrap(), None);
    let status = |state: &str| serde_json::json!({ "id": id, "state": state, "received": 7 });
    let minute = 60_000_000;
    writer.note_watches(minute, 2 * minute, false, &[(id, status("connecting"))]).unwrap();
    writer.note_watches(minute, 3 * minute, false, &[(id, status("live"))]).unwrap();
    let watch = reader.watch(id).unwrap().unwrap();
    assert_eq!((watch.started_us, watch.told_us, watch.ended_us), (minute, 3 * minute, None));
    assert_eq!(watch.status["received"], 7);
    assert_eq!(watch.how(3 * minute + 1), How::Live);
    // A run that says nothing any more, and yet holds the library.
    assert_eq!(watch.how(5 * minute), How::Silent);
    assert_eq!(reader.info().unwrap().streams, [watch]);
    // Cut off; the next writer knows that nobody watches.
    drop(writer);
    let mut writer = Writer::open(&folder.path().join("lib")).unwrap();
    let watch = reader.watch(id).unwrap().unwrap();
    assert_eq!((watch.ended_us, watch.how(9 * minute)), (Some(3 * minute), How::CutOff));
    writer.note_watches(8 * minute, 9 * minute, true, &[(id, status("ended"))]).unwrap();
    let watch = reader.watch(id).unwrap().unwrap();
    assert_eq!((watch.started_us, watch.how(10 * minute)), (8 * minute, How::Ended));
    writer.forget(id).unwrap();
    assert_eq!(reader.info().unwrap().streams, []);
    drop(writer);
    assert_eq!(faults(&folder.path().join("lib")), [""; 0]);
}

const MINUTE_US: i64 = 60_000_000;

fn at_minute(minute: i64) -> i64 {
    THEN_US + minute * MINUTE_US
}

/// What a run tells of a source that is lost for this reason, or is live.
fn told_of(id: SourceId, lost: Option<&str>) -> (SourceId, serde_json::Value) {
    let state = if lost.is_some() { "waiting" } else { "live" };
    let lost_since_us = lost.map(|_| THEN_US);
    (id, serde_json::json!({ "state": state, "reason": lost, "lost_since_us": lost_since_us }))
}

/// What search says of the time up to a minute: from which minute to which nothing was seen, and why.
fn unseen_at(folder: &TempDir, minute: i64) -> Vec<(i64, i64, String)> {
    let query = Query { from_us: Some(at_minute(-99)), ..Query::default() };
    let unseen = open(folder.path()).unseen(&query, at_minute(minute)).unwrap();
    let minute = |us: i64| (us - THEN_US) / MINUTE_US;
    unseen.into_iter().map(|u| (minute(u.from_us), minute(u.to_us), u.reason)).collect()
}

#[test]
fn a_camera_of_which_nothing_ever_came_is_unseen_since_it_is_watched() {
    let (folder, mut writer) = new_library();
    let id = camera(&mut writer, "door");
    assert_eq!(unseen_at(&folder, 5), []);
    let refused = "camera unreachable: connection refused";
    let lost = |from: i64, to: i64| (from, to, refused.to_owned());
    let no_run = |from: i64, to: i64| (from, to, "not watched".to_owned());
    let told = [told_of(id, Some(refused))];
    writer.note_watches(at_minute(0), at_minute(5), false, &told).unwrap();
    assert_eq!(unseen_at(&folder, 5), [lost(0, 5)]);
    // It may still be told why.
    assert_eq!(unseen_at(&folder, 0), []);
    // The run was killed, which is known when somebody else writes.
    let unknown = (5, 20, "nothing was stored since".to_owned());
    assert_eq!(unseen_at(&folder, 20), [lost(0, 5), unknown]);
    drop(writer);
    let mut writer = Writer::open(&folder.path().join("lib")).unwrap();
    assert_eq!(unseen_at(&folder, 20), [lost(0, 5), no_run(5, 20)]);
    assert_eq!(untold(&writer, id), [lost(0, 5)]);

    // From the first clip on, it is told what came after the last, and of the time before the run as well.
    watch(&mut writer, id, 11, 0..40);
    writer.note_watches(at_minute(30), at_minute(40), false, &told).unwrap();
    assert_eq!(unseen_at(&folder, 40), [no_run(23, 30), lost(30, 40)]);
    // What is deleted is told as such alone.
    let keep = Keep::Lately(Micros(10 * MINUTE_US));
    while writer.drop_oldest(keep, at_minute(34)).unwrap().is_some() {}
    let kept = (22, 24, "kept for 10 minutes".to_owned());
    assert_eq!(unseen_at(&folder, 40), [kept, no_run(24, 30), lost(30, 40)]);
    drop(writer);
    assert_eq!(faults(&folder.path().join("lib")), [""; 0]);
}

/// What the last run has left for the next one to store, as [`unseen_at`] says it.
fn untold(writer: &Writer, id: SourceId) -> Vec<(i64, i64, String)> {
    let gaps = writer.untold(id, &clips_recipe()).unwrap();
    let minute = |at: Timestamp| (at.0 - THEN_US) / MINUTE_US;
    gaps.into_iter().map(|g| (minute(g.span.start), minute(g.span.end), g.reason)).collect()
}

#[test]
fn the_reason_of_an_outage_in_which_the_run_was_cut_off_is_known_to_the_next_one() {
    let (folder, mut writer) = new_library();
    let id = camera(&mut writer, "door");
    watch(&mut writer, id, 0, 0..40);
    let lost = [told_of(id, Some("stream lost: no frame came"))];
    let live = [told_of(id, None)];
    let killed = |writer: Writer| {
        drop(writer);
        Writer::open(&folder.path().join("lib")).unwrap()
    };
    writer.note_watches(at_minute(0), at_minute(1), false, &live).unwrap();
    writer = killed(writer);
    assert_eq!(untold(&writer, id), []);
    assert_eq!(unseen_at(&folder, 9), [(1, 9, "not watched".to_owned())]);
    writer.note_watches(at_minute(2), at_minute(5), false, &lost).unwrap();
    assert_eq!(untold(&writer, id), []);
    writer = killed(writer);
    let told = [(1, 2, "not watched".to_owned()), (2, 5, "stream lost: no frame came".to_owned())];
    assert_eq!(untold(&writer, id), told);
    assert_eq!(unseen_at(&folder, 9)[..2], told);
    // One that ends stores that itself.
    let mut ended = lost;
    ended[0].1["state"] = "ended".into();
    writer.note_watches(at_minute(6), at_minute(7), true, &ended).unwrap();
    assert_eq!(untold(&writer, id), []);
    // So has one that had come to it.
    writer.note_watches(at_minute(7), at_minute(8), false, &[told_of(id, Some("lost"))]).unwrap();
    watch(&mut writer, id, 4, 0..40);
    writer = killed(writer);
    assert_eq!(untold(&writer, id), []);
    assert_eq!(writer.seen_until(id, &clips_recipe()).unwrap(), Some(Timestamp(at_minute(9))));
    drop(writer);
    assert_eq!(faults(&folder.path().join("lib")), [""; 0]);
}

#[test]
fn the_reason_of_an_outage_is_that_of_the_sound_where_the_run_that_was_cut_off_listened() {
    let (folder, mut writer) = new_library();
    let speech = speech_recipe();
    writer.add_recipe(&listening("5feec400")).unwrap();
    let cameras = ["mute", "door", "yard", "gate"].map(|name| camera(&mut writer, name));
    let [mute, door, yard, gate] = cameras;
    let span = span(at_minute(0), at_minute(1));
    let heard = HeardChunk { index: number(0), span, cues: Vec::new(), gaps: Vec::new() };
    for id in [mute, door] {
        watch(&mut writer, id, 0, 0..40);
        assert!(writer.append_heard(id, &speech, &heard).unwrap());
    }
    let listening = |id| {
        let (id, mut told) = told_of(id, Some("lost"));
        told["sound"] = serde_json::json!({ "cues": 0 });
        (id, told)
    };
    let mut told = [told_of(mute, Some("lost")), listening(door), listening(yard), listening(gate)];
    // Another model had heard it.
    told[3].1["clips"] = 40.into();
    told[3].1["lost_since_us"] = at_minute(3).into();
    writer.note_watches(at_minute(0), at_minute(5), false, &told).unwrap();
    drop(writer);
    let writer = Writer::open(&folder.path().join("lib")).unwrap();
    let untold = cameras.map(|id| writer.untold(id, &speech).unwrap());
    let [of_mute, of_door, of_yard, of_gate] = untold;
    assert_eq!(of_mute, []);
    let gap = |from: i64| {
        let span = Span::new(Timestamp(at_minute(from)), Timestamp(at_minute(5)));
        Gap { span, track: TrackKind::Sound, reason: "lost".to_owned() }
    };
    // Nothing of the last one ever came.
    assert_eq!((of_door, of_yard, of_gate), (vec![gap(1)], vec![gap(0)], vec![gap(3)]));
}

#[test]
fn what_is_older_than_what_is_kept_goes_a_chunk_at_a_time() {
    let (folder, mut writer) = new_library();
    let lib = folder.path().join("lib");
    let [door, yard] = ["door", "yard"].map(|name| camera(&mut writer, name));
    for chunk in 0..6 {
        watch(&mut writer, door, chunk, 0..80);
        watch(&mut writer, yard, chunk, 0..if chunk == 5 { 10 } else { 80 });
    }
    let recordings = writer.recordings(door).unwrap();
    for minute in 0..12 {
        let start = Timestamp(THEN_US + minute * CHUNK_US / 2);
        let mut file = recordings.begin(start).unwrap();
        file.append(b"a minute").unwrap();
        file.finish().unwrap();
    }
    let recorded = || -> Vec<i64> {
        let files = recordings.list().unwrap();
        files.iter().map(|file| (file.start.0 - THEN_US) * 2 / CHUNK_US).collect()
    };
    let mut reader = open(folder.path());
    let [all, ..] = starts(&folder, &mut reader);
    assert_eq!(all.len(), 5 * 160 + 90);
    let now_us = THEN_US + 6 * CHUNK_US;
    let keep = Keep::Lately(Micros(2 * CHUNK_US + 1_000_000));
    let mut dropped = Vec::new();
    while let Some(one) = writer.drop_oldest(keep, now_us).unwrap() {
        assert_eq!((one.clips, one.span.length()), (80, Micros(CHUNK_US)));
        dropped.push((one.source, one.span.start.0));
        // A reader that has the vectors in memory sees none of it any more.
        let [stored, by_picture, by_words, features] = starts(&folder, &mut reader);
        assert_eq!(stored.len(), all.len() - 80 * dropped.len());
        assert!(features == stored);
        let segments = with_segments(&stored);
        assert!(by_picture == segments && by_words == segments, "{} chunks", dropped.len());
    }
    let expected: Vec<_> = (0..3).flat_map(|n| [door, yard].map(|id| (id, n))).collect();
    let expected: Vec<_> =
        expected.into_iter().map(|(id, n)| (id, THEN_US + n * CHUNK_US)).collect();
    assert_eq!(dropped, expected);
    assert_eq!(recorded(), [6, 7, 8, 9, 10, 11]);
    assert_eq!(writer.recorded_bytes().unwrap().load(Ordering::Relaxed), 6 * 8);
    // A reader that is new sees the same, and both are told that it was deleted.
    let seen = starts(&folder, &mut reader);
    assert!(starts(&folder, &mut open(folder.path())) == seen);
    let query = Query { from_us: Some(THEN_US - 5), ..Query::default() };
    let unseen = reader.unseen(&query, now_us).unwrap();
    let told: Vec<_> =
        unseen.iter().map(|u| (u.source, u.from_us, u.to_us, &u.reason[..])).collect();
    let until = THEN_US + 3 * CHUNK_US;
    assert_eq!(told[0], (door, THEN_US, until, "kept for 241 seconds"),);
    drop(writer);
    assert_eq!(faults(&lib), [""; 0]);
    let mut writer = Writer::open(&lib).unwrap();
    assert_eq!(writer.drop_oldest(keep, now_us).unwrap(), None);

    // A camera that is gone for good keeps nothing, either.
    while writer.drop_oldest(keep, now_us + 9 * CHUNK_US).unwrap().is_some() {}
    let [stored, by_picture, by_words, features] = starts(&folder, &mut reader);
    assert_eq!([stored, by_picture, by_words, features].concat(), [0; 0]);
    // What is put back is seen again, once.
    let back = ChunkRecord {
        index: number(1),
        span: span(THEN_US + CHUNK_US, THEN_US + 2 * CHUNK_US),
        clips: vec![clip(THEN_US + CHUNK_US, [1.0; DIMENSION])],
        gaps: Vec::new(),
    };
    writer.commit_chunk(door, &clips_recipe(), &back).unwrap();
    for reader in [&mut reader, &mut open(folder.path())] {
        let query =
            Query { vectors: vec![(Channel::Picture, unit_f32())], top: 9, ..Query::default() };
        assert_eq!(reader.search(&query).unwrap().len(), 1);
    }
    drop(writer);
    assert_eq!(faults(&lib), [""; 0]);
}

#[test]
fn of_an_outage_that_goes_on_beyond_what_is_deleted_the_rest_is_still_told() {
    let (folder, mut writer) = new_library();
    let lib = folder.path().join("lib");
    writer.add_recipe(&listening("5feec400")).unwrap();
    let at = |chunks: f64| THEN_US + (chunks * CHUNK_US as f64) as i64;
    let chunk_of = |chunk: u32| span(at(chunk.into()), at(f64::from(chunk) + 1.0));
    let outage = |track: TrackKind| {
        let reason = format!("camera unreachable, no {}", track.as_str());
        vec![Gap { span: span(at(0.5), at(5.25)), track, reason }]
    };
    // One that comes back, and one that does not.
    let [door, yard] = ["door", "yard"].map(|name| {
        let id = camera(&mut writer, name);
        watch(&mut writer, id, 0, 0..40);
        let (index, gaps) = (number(0), outage(TrackKind::Picture));
        let record = ChunkRecord { index, span: chunk_of(0), clips: Vec::new(), gaps };
        writer.append(id, &clips_recipe(), &record).unwrap();
        id
    });
    watch(&mut writer, door, 5, 20..80);
    for (chunk, gaps) in [(0, outage(TrackKind::Sound)), (5, Vec::new())] {
        let (index, span) = (number(chunk), chunk_of(chunk));
        let heard = HeardChunk { index, span, cues: Vec::new(), gaps };
        assert!(writer.append_heard(door, &speech_recipe(), &heard).unwrap());
    }
    let keep = Keep::Lately(Micros(4 * CHUNK_US));
    let drop_all = |writer: &mut Writer, now_us: i64| {
        let mut dropped = Vec::new();
        while let Some(one) = writer.drop_oldest(keep, now_us).unwrap() {
            dropped.push((one.source, one.clips));
        }
        dropped
    };
    let told = |from_us: i64| -> Vec<(SourceId, i64, i64, String)> {
        let query =
            Query { words: Some("lake".into()), from_us: Some(from_us), ..Query::default() };
        let unseen = open(folder.path()).unseen(&query, at(6.0)).unwrap();
        unseen.into_iter().map(|u| (u.source, u.from_us, u.to_us, u.reason)).collect()
    };
    assert_eq!(drop_all(&mut writer, at(5.5)), [(door, 40), (yard, 40)]);
    let [no_picture, no_sound] =
        ["picture", "sound"].map(|what| format!("camera unreachable, no {what}"));
    let kept = "kept for 8 minutes".to_owned();
    let nothing = "nothing was stored since".to_owned();
    let expected = [
        (door, at(0.0), at(1.0), kept.clone()),
        (door, at(1.0), at(5.25), no_picture.clone()),
        (door, at(1.0), at(5.25), no_sound.clone()),
        (yard, at(0.0), at(1.0), kept.clone()),
        (yard, at(1.0), at(5.25), no_picture.clone()),
        (yard, at(5.25), at(6.0), nothing.clone()),
    ];
    assert_eq!(told(THEN_US), expected);
    assert_eq!(told(at(3.0))[0], (door, at(3.0), at(5.25), no_picture));
    drop(writer);
    assert_eq!(faults(&lib), [""; 0]);

    // That goes when all of it is too old.
    let mut writer = Writer::open(&lib).unwrap();
    assert_eq!(drop_all(&mut writer, at(9.9)), []);
    assert_eq!(drop_all(&mut writer, at(10.0)), [(door, 60), (yard, 0)]);
    let shown = [door, yard].map(|id| open(folder.path()).show(id).unwrap().gaps);
    assert_eq!(shown, [[], []]);
    drop(writer);
    assert_eq!(faults(&lib), [""; 0]);
}

#[test]
fn no_more_bytes_are_kept_than_there_is_room_for_and_the_space_comes_back() {
    let (folder, mut writer) = new_library();
    let lib = folder.path().join("lib");
    let film = writer.add_source(&new_source("film.mp4")).unwrap().id;
    let large = |start_us: i64| IndexedClip {
        features: vec![f16::from_f32(1.0); 3_000],
        cells: CellFeatures::default(),
        ..clip(start_us, [1.0; DIMENSION])
    };
    let record =
        ChunkRecord { index: 0, span: span(0, CHUNK_US), clips: vec![large(0)], gaps: Vec::new() };
    writer.commit_chunk(film, &clips_recipe(), &record).unwrap();
    let door = camera(&mut writer, "door");
    for chunk in 0..20 {
        let start = THEN_US + i64::from(chunk) * CHUNK_US;
        let clips = (0..80).map(|at| large(start + at * 1_500_000));
        let record = ChunkRecord {
            index: number(chunk),
            span: span(start, start + CHUNK_US),
            clips: clips.collect(),
            gaps: Vec::new(),
        };
        writer.append(door, &clips_recipe(), &record).unwrap();
    }
    let size = || std::fs::metadata(lib.join("features.sqlite")).unwrap().len();
    writer.compact().unwrap();
    let before = size();
    assert!(before > 12_000_000, "{before}");
    let mut dropped = 0;
    while writer.drop_oldest(Keep::Bytes(4_500_000), 0).unwrap().is_some() {
        dropped += 1;
    }
    assert!((13..17).contains(&dropped), "{dropped} of 20 chunks");
    while writer.give_back_some().unwrap() {}
    let reader = open(folder.path());
    assert_eq!(reader.show(door).unwrap().clips.len(), 80 * (20 - dropped));
    // The last one who may write closes the file.
    drop(reader);
    drop(writer);
    // But for 256 pages of 16 KiB that are left for what comes next.
    assert!(size() < 4_500_000 + (257 << 14), "{} bytes", size());
    // However little there is room for: what is being written to stays, and so do films.
    let mut writer = Writer::open(&lib).unwrap();
    while writer.drop_oldest(Keep::Bytes(1), 0).unwrap().is_some() {}
    let reader = open(folder.path());
    assert_eq!(reader.show(door).unwrap().clips.len(), 80);
    assert_eq!(reader.show(film).unwrap().clips.len(), 1);
    drop(writer);
    assert_eq!(faults(&lib), [""; 0]);
}

#[test]
fn features_that_an_interruption_left_of_what_is_not_kept_are_deleted_by_the_next_writer() {
    let (folder, mut writer) = new_library();
    let lib = folder.path().join("lib");
    let door = camera(&mut writer, "door");
    watch(&mut writer, door, 0, 0..80);
    watch(&mut writer, door, 1, 0..80);
    let keep = Keep::Lately(Micros(CHUNK_US));
    drop(writer);
    let features = std::fs::read(lib.join("features.sqlite")).unwrap();
    let mut writer = Writer::open(&lib).unwrap();
    writer.drop_oldest(keep, THEN_US + 2 * CHUNK_US).unwrap().unwrap();
    drop(writer);
    // As if the process had ended before the features went.
    std::fs::write(lib.join("features.sqlite"), features).unwrap();
    let mut reader = open(folder.path());
    assert_eq!(starts(&folder, &mut reader)[3].len(), 160);
    assert_eq!(faults(&lib), [""; 0]);
    drop(Writer::open(&lib).unwrap());
    let [stored, .., features] = starts(&folder, &mut reader);
    assert_eq!((stored.len(), stored), (80, features));
    assert_eq!(check(&lib, &mut |_| Ok(())).unwrap(), []);
}

#[test]
fn what_damage_takes_of_a_live_source_is_a_gap_and_nothing_is_read_again() {
    let (folder, mut writer) = new_library();
    let lib = folder.path().join("lib");
    let door = camera(&mut writer, "door");
    for chunk in 0..3 {
        watch(&mut writer, door, chunk, 0..80);
    }
    drop(writer);
    let damage = |file: &str, statement: &str| {
        let sql = rusqlite::Connection::open(lib.join(file)).unwrap();
        assert!(sql.execute(statement, []).unwrap() > 0, "{statement}");
    };
    let at = |chunk: i64, clip: i64| THEN_US + chunk * CHUNK_US + clip * 1_500_000;
    // Clips at a chunk's start and in its middle, and the features of another.
    let clips = [at(1, 0), at(1, 40), at(1, 41)].map(|start| start.to_string()).join(",");
    damage("library.sqlite", &format!("UPDATE clips SET frames = 9 WHERE start_us IN ({clips})"));
    let lost = at(2, 7);
    damage("features.sqlite", &format!("DELETE FROM features WHERE start_us = {lost}"));
    let unpictured = at(0, 9);
    let changed = format!("UPDATE thumbnails SET jpeg = x'00' WHERE start_us = {unpictured}");
    damage("features.sqlite", &changed);
    assert_ne!(faults(&lib), [""; 0]);
    let rebuilt = rebuild(&lib, &mut |_| Ok(())).unwrap();
    assert_eq!(faults(&lib), [""; 0], "{rebuilt:?}");
    let told: Vec<_> = rebuilt.sources.iter().map(|of| (of.is_live, of.chunks, of.clips)).collect();
    assert_eq!(told, [(true, 3, 3)]);
    let reader = open(folder.path());
    let shown = reader.show(door).unwrap();
    assert_eq!(shown.clips.len(), 237);
    let gaps: Vec<_> = shown.gaps.iter().map(|gap| (gap.span.start.0, gap.span.end.0)).collect();
    assert_eq!(gaps, [(at(1, 0), at(1, 1)), (at(1, 40), at(1, 42))]);
    assert!(shown.gaps.iter().all(|gap| gap.reason.contains("damaged")), "{:?}", shown.gaps);
    let thumbnail =
        |start: i64| reader.thumbnail(ClipId { source: door, start: Timestamp(start) }).unwrap();
    assert_eq!((thumbnail(unpictured), thumbnail(lost).is_some()), (None, true));
    // Nobody is told to read anything again, and the stream goes on where it was.
    assert_eq!(check(&lib, &mut |_| Ok(())).unwrap(), []);
    let mut writer = Writer::open(&lib).unwrap();
    let until = writer.stored_until(door, &clips_recipe()).unwrap();
    assert_eq!(until, Some(Timestamp(THEN_US + 3 * CHUNK_US)));
    watch(&mut writer, door, 3, 0..80);
    drop(writer);
    assert_eq!(check(&lib, &mut |_| Ok(())).unwrap(), []);
}

#[test]
fn gaps_follow_those_that_damage_has_left() {
    let (folder, mut writer) = new_library();
    let lib = folder.path().join("lib");
    let id = camera(&mut writer, "door");
    let second = |at: i64| THEN_US + at * 1_000_000;
    let append = |writer: &mut Writer, starts: &[i64]| {
        let gaps = starts.iter().map(|&start| Gap {
            span: span(second(start), second(start + 1)),
            track: TrackKind::Picture,
            reason: "no frame".into(),
        });
        let whole = span(THEN_US, THEN_US + CHUNK_US);
        let (index, gaps) = (number(0), gaps.collect());
        let record = ChunkRecord { index, span: whole, clips: Vec::new(), gaps };
        writer.append(id, &clips_recipe(), &record).unwrap();
    };
    append(&mut writer, &[0, 1, 2]);
    drop(writer);
    let sql = rusqlite::Connection::open(lib.join("library.sqlite")).unwrap();
    assert_eq!(sql.execute("DELETE FROM gaps WHERE place = 0", []).unwrap(), 1);
    drop(sql);
    rebuild(&lib, &mut |_| Ok(())).unwrap();
    let mut writer = Writer::open(&lib).unwrap();
    append(&mut writer, &[3, 4]);
    let gaps = open(folder.path()).show(id).unwrap().gaps;
    let starts: Vec<i64> =
        gaps.iter().map(|gap| (gap.span.start.0 - THEN_US) / 1_000_000).collect();
    assert_eq!(starts, [1, 2, 3, 4]);
    drop(writer);
    assert_eq!(faults(&lib), [""; 0]);
}

#[test]
fn a_live_source_whose_row_is_lost_is_live_again() {
    let (folder, mut writer) = new_library();
    let lib = folder.path().join("lib");
    let door = camera(&mut writer, "door");
    watch(&mut writer, door, 0, 0..4);
    drop(writer);
    mending::wipe(&lib, "sources");
    rebuild(&lib, &mut |_| Ok(())).unwrap();
    let source = open(folder.path()).sources().unwrap().remove(0);
    assert_eq!((source.id, source.origin), (door, Origin::Live));
    assert_eq!(source.wall.map(|wall| wall.start_us), Some(0));
}

/// What was heard in a chunk of a live source, from `secs` on.
fn heard_at(chunk: u32, secs: i64, text: &str) -> HeardChunk {
    let start = THEN_US + i64::from(chunk) * CHUNK_US;
    let at = start + secs * 1_000_000;
    let cue = Cue {
        kind: CueKind::Speech,
        track: "speech:live".into(),
        words: vec![TimedWord {
            span: span(at, at + 300_000),
            text: text.into(),
            confidence: None,
        }],
        ..cue(at, at + 2_000_000, text)
    };
    let gap = Gap {
        span: span(at + 2_000_000, at + 2_500_000),
        track: TrackKind::Sound,
        reason: "listening was behind".into(),
    };
    let span = span(start, at + 3_000_000);
    HeardChunk { index: number(chunk), span, cues: vec![cue], gaps: vec![gap] }
}

#[test]
fn what_was_heard_of_a_live_source_grows_and_goes_with_its_chunks() {
    let (folder, mut writer) = new_library();
    writer.add_recipe(&listening("5feec400")).unwrap();
    let id = camera(&mut writer, "door");
    let speech = speech_recipe();
    assert_eq!(writer.heard_until(id, &speech).unwrap(), None);
    for chunk in 0..3 {
        watch(&mut writer, id, chunk, 0..4);
        for (secs, text) in [(1, "the harbour"), (7, "the lighthouse")] {
            assert!(writer.append_heard(id, &speech, &heard_at(chunk, secs, text)).unwrap());
        }
    }
    let until = THEN_US + 2 * CHUNK_US + 10_000_000;
    assert_eq!(writer.heard_until(id, &speech).unwrap(), Some(Timestamp(until)));
    // What is heard later of an earlier chunk takes nothing back.
    assert!(writer.append_heard(id, &speech, &heard_at(2, 4, "a kingfisher")).unwrap());
    assert_eq!(writer.heard_until(id, &speech).unwrap(), Some(Timestamp(until)));
    let found = |words: &str| {
        let query = Query { words: Some(words.into()), top: 9, ..Query::default() };
        open(folder.path()).search(&query).unwrap().len()
    };
    assert_eq!((found("harbour"), found("kingfisher")), (3, 1));
    let unseen = |folder: &TempDir| {
        let query = Query { words: Some("harbour".into()), from_us: Some(0), ..Query::default() };
        let unseen = open(folder.path()).unseen(&query, until).unwrap();
        unseen.into_iter().filter(|unseen| unseen.track == TrackKind::Sound).count()
    };
    assert_eq!(unseen(&folder), 7);

    // The first chunk goes with its words, and what comes of it late is not put back.
    let keep = Keep::Lately(Micros(CHUNK_US));
    let dropped = writer.drop_oldest(keep, THEN_US + 2 * CHUNK_US).unwrap().unwrap();
    assert_eq!(dropped.clips, 4);
    assert_eq!((found("harbour"), unseen(&folder)), (2, 5));
    assert!(!writer.append_heard(id, &speech, &heard_at(0, 20, "the harbour")).unwrap());
    assert_eq!((found("harbour"), unseen(&folder)), (2, 5));
    assert_eq!(writer.heard_until(id, &speech).unwrap(), Some(Timestamp(until)));

    // Another library that has seen the same camera gets the chunks that it lacks.
    drop(writer);
    let (other_folder, mut other) = new_library();
    other.add_recipe(&listening("5feec400")).unwrap();
    let other_id = camera(&mut other, "door");
    watch(&mut other, other_id, 1, 0..4);
    other.append_heard(other_id, &speech, &heard_at(1, 1, "the harbour")).unwrap();
    let mut merged = Merged::default();
    other.merge(&open(folder.path()), &mut merged, &mut |_, _| Ok(())).unwrap();
    assert_eq!((merged.cues, merged.damaged.len()), (3, 0), "{merged:?}");
    assert_eq!(open(other_folder.path()).cues(other_id).unwrap().len(), 4);
    drop(other);
    for folder in [&folder, &other_folder] {
        assert_eq!(faults(&folder.path().join("lib")), [""; 0]);
    }
}

#[test]
fn a_speech_model_is_searched_before_it_has_heard_anything_live() {
    let (folder, mut writer) = new_library();
    for hash in ["5feec400", "5feec401"] {
        writer.add_recipe(&listening(hash)).unwrap();
    }
    let (old, new): (RecipeId, RecipeId) = (speech_recipe(), "5feec401".parse().unwrap());
    let id = camera(&mut writer, "door");
    assert_eq!(writer.words_would_wait(&new).unwrap(), []);
    writer.append_heard(id, &old, &heard_at(0, 1, "the harbour")).unwrap();
    assert_eq!(writer.words_would_wait(&new).unwrap().len(), 1);
    assert_eq!(writer.words_would_wait(&old).unwrap(), []);
    writer.take_over_speech_first(&new).unwrap();
    writer.append_heard(id, &new, &heard_at(0, 1, "a bare harbour")).unwrap();
    let texts: Vec<String> =
        open(folder.path()).cues(id).unwrap().into_iter().map(|cue| cue.text).collect();
    assert_eq!(texts, ["a bare harbour"]);
}

#[test]
fn features_whose_clip_a_killed_run_did_not_come_to_go() {
    let (folder, mut writer) = new_library();
    let id = camera(&mut writer, "door");
    watch(&mut writer, id, 0, 0..4);
    drop(writer);
    let path = folder.path().join("lib");
    let before = starts(&folder, &mut open(folder.path()));
    // Of the clip that comes next: its features are stored first.
    let features = rusqlite::Connection::open(path.join("features.sqlite")).unwrap();
    let start_us = THEN_US + 4 * 1_500_000;
    for (table, key) in [("features", ""), ("thumbnails", ", key = NULL")] {
        let next = format!(
            "CREATE TEMP TABLE next AS SELECT * FROM {table} LIMIT 1; \
             UPDATE next SET start_us = {start_us}{key}; \
             INSERT INTO {table} SELECT * FROM next; DROP TABLE next"
        );
        features.execute_batch(&next).unwrap();
    }
    drop(features);
    assert_ne!(faults(&path), [""; 0]);
    drop(Writer::open(&path).unwrap());
    assert_eq!(faults(&path), [""; 0]);
    assert_eq!(starts(&folder, &mut open(folder.path())), before);
}

#[test]
fn what_is_said_where_no_segments_could_be_made_stands_for_itself() {
    let (folder, mut writer) = new_library();
    writer.add_recipe(&listening("5feec400")).unwrap();
    let id = camera(&mut writer, "door");
    for chunk in 0..3 {
        watch(&mut writer, id, chunk, 0..40);
        let heard = heard_at(chunk, 20, &format!("chunk {chunk}"));
        assert!(writer.append_heard(id, &speech_recipe(), &heard).unwrap());
    }
    // Behind the last segment, which ends after a minute.
    assert!(writer.append_heard(id, &speech_recipe(), &heard_at(2, 70, "just now")).unwrap());
    let of_second = span(THEN_US + CHUNK_US, THEN_US + 2 * CHUNK_US);
    writer.commit_segments_in(id, &segments_recipe(), of_second, &[]).unwrap();
    let reader = Reader::open(&folder.path().join("lib")).unwrap();
    let mut shown = reader.show(id).unwrap();
    let alone =
        |shown: &Shown| -> Vec<String> { shown.cues_alone().map(|cue| cue.text.clone()).collect() };
    assert_eq!(shown.segments.len(), 40);
    assert_eq!(alone(&shown), ["chunk 1", "just now"]);
    // Of a film, what is said is among the words of its segments.
    shown.source.origin = Origin::File;
    assert_eq!(alone(&shown), [""; 0]);
    shown.segments.clear();
    assert_eq!(alone(&shown).len(), 4);
}
