//! What was heard, beside what was read.

use super::*;
use crate::library::hearing::HeardTo;

fn source(writer: &mut Writer) -> SourceId {
    writer.add_source(&new_source("talk.mp4")).unwrap().id
}

fn heard_to(next: u32) -> HeardTo {
    HeardTo { next, at: Timestamp(i64::from(next) * 10_000_000) }
}

fn texts(folder: &TempDir, id: SourceId) -> Vec<String> {
    open(folder.path()).cues(id).unwrap().into_iter().map(|cue| cue.text).collect()
}

#[test]
fn what_was_heard_is_kept_pause_by_pause_and_goes_on_there() {
    let (folder, mut writer) = new_library();
    writer.add_recipe(&listening("5feec400")).unwrap();
    let id = source(&mut writer);
    let speech = speech_recipe();
    assert_eq!(writer.heard_to(id, &speech).unwrap(), heard_to(0));
    writer.commit_segments(id, &segments_recipe(), &[]).unwrap();
    writer.finish_source(id, &segments_recipe(), State::Complete, None).unwrap();
    let (first, second) = (heard(0, "the first"), heard(1, "the second"));
    writer.commit_heard(id, &speech, &first).unwrap();
    // Its segments lack these words.
    assert_eq!(writer.progress(id, &segments_recipe()).unwrap(), State::New);
    writer.commit_heard(id, &speech, &second).unwrap();
    assert_eq!(writer.heard_to(id, &speech).unwrap(), heard_to(2));
    let shown = open(folder.path()).show(id).unwrap();
    assert_eq!(shown.cues, [first.cues.clone(), second.cues.clone()].concat());
    assert_eq!(shown.gaps, [first.gaps.clone(), second.gaps].concat());
    // Subtitles come and go beside them.
    assert_eq!(writer.subtitle_tracks(id).unwrap(), [""; 0]);
    writer.replace_cues(id, "", &[cue(0, 9, "a subtitle")]).unwrap();
    assert_eq!(writer.subtitle_tracks(id).unwrap(), ["sidecar:a.srt"]);
    assert_eq!(texts(&folder, id), ["a subtitle", "the first", "the second"]);
    writer.replace_cues(id, "", &[]).unwrap();
    assert_eq!(texts(&folder, id), ["the first", "the second"]);
    // Behind a chunk that is missing, all is heard again.
    writer.record.sql.execute("DELETE FROM chunks WHERE number = 0", []).unwrap();
    assert_eq!(writer.heard_to(id, &speech).unwrap(), heard_to(0));
    assert_eq!(texts(&folder, id), [""; 0]);
    writer.commit_heard(id, &speech, &first).unwrap();
    writer.finish_source(id, &speech, State::Complete, None).unwrap();
    drop(writer);
    let found = check(&folder.path().join("lib"), &mut |_| Ok(())).unwrap();
    assert!(found.iter().all(|found| found.fault == Fault::Unfinished), "{found:?}");
}

#[test]
fn what_another_model_hears_takes_over_in_one_step() {
    let (folder, mut writer) = new_library();
    for hash in ["5feec400", "5feec401"] {
        writer.add_recipe(&listening(hash)).unwrap();
    }
    let (old, new): (RecipeId, RecipeId) = (speech_recipe(), "5feec401".parse().unwrap());
    let one = source(&mut writer);
    let other = writer.add_source(&new_source("other.mp4")).unwrap().id;
    for id in [one, other] {
        writer.commit_heard(id, &old, &heard(0, "a bare rock")).unwrap();
        writer.finish_source(id, &old, State::Complete, None).unwrap();
        writer.commit_segments(id, &segments_recipe(), &[]).unwrap();
        writer.finish_source(id, &segments_recipe(), State::Complete, None).unwrap();
    }
    writer.commit_heard(one, &new, &heard(0, "a bear rocks")).unwrap();
    writer.finish_source(one, &new, State::Complete, None).unwrap();
    // The other source would lose its words.
    let (waiting, changed) = writer.take_over_speech(&new, false).unwrap();
    assert_eq!((waiting.len(), waiting[0].id, changed), (1, other, false));
    let search = |word: &str| {
        let query = Query { words: Some(word.into()), top: 9, ..Query::default() };
        open(folder.path()).search(&query).unwrap().len()
    };
    assert_eq!((search("rock"), search("bear")), (2, 0));
    assert_eq!(texts(&folder, one), ["a bare rock"]);
    assert_eq!(writer.progress(one, &segments_recipe()).unwrap(), State::Complete);

    writer.commit_heard(other, &new, &heard(0, "a bear rocks")).unwrap();
    writer.finish_source(other, &new, State::Complete, None).unwrap();
    assert_eq!(writer.take_over_speech(&new, false).unwrap(), (Vec::new(), true));
    assert_eq!((search("rock"), search("bear")), (0, 2));
    assert_eq!(texts(&folder, one), ["a bear rocks"]);
    assert_eq!(writer.progress(one, &segments_recipe()).unwrap(), State::New);
    drop(writer);
    let found = check(&folder.path().join("lib"), &mut |_| Ok(())).unwrap();
    assert!(found.iter().all(|found| found.fault == Fault::Unfinished), "{found:?}");
}

#[test]
fn a_hit_has_the_time_of_the_words_that_were_said() {
    let (folder, mut writer) = new_library();
    writer.add_recipe(&listening("5feec400")).unwrap();
    let id = source(&mut writer);
    let chunk = heard(1, "The Dogs were, sadly, no dogs.");
    writer.commit_heard(id, &speech_recipe(), &chunk).unwrap();
    let query = Query { words: Some("dogs zebra".into()), top: 9, ..Query::default() };
    let hits = open(folder.path()).search(&query).unwrap();
    let words = &chunk.cues[0].words;
    assert_eq!(hits[0].said, [words[1].clone(), words[5].clone()]);
}

#[test]
fn words_without_spaces_are_found_by_their_characters() {
    let (folder, mut writer) = new_library();
    let id = source(&mut writer);
    let cues = [
        cue(0, 9, "今日は東京タワーへ行きました"),
        cue(10, 19, "東の京都"),
        cue(20, 29, "วันนี้อากาศดีมาก"),
        cue(30, 39, "Die ﬁnale Straße im CAFÉ"),
    ];
    writer.replace_cues(id, "", &cues).unwrap();
    for (words, found) in [
        ("東京", &[0][..]),
        ("タワー", &[0]),
        ("京都", &[10]),
        ("อากาศ", &[20]),
        ("finale cafe", &[30]),
    ] {
        let query = Query { words: Some(words.into()), top: 9, ..Query::default() };
        let hits = open(folder.path()).search(&query).unwrap();
        let starts: Vec<i64> = hits.iter().map(|hit| hit.span.start_us.0).collect();
        assert_eq!(starts, found, "{words}");
    }
}

#[test]
fn what_was_heard_is_merged_and_forgotten_as_what_was_read() {
    let heard_by = |chunks: u32, is_complete: bool| {
        let (folder, mut writer) = new_library();
        writer.add_recipe(&listening("5feec400")).unwrap();
        let id = source(&mut writer);
        for number in 0..chunks {
            writer.commit_heard(id, &speech_recipe(), &heard(number, "so many words")).unwrap();
        }
        if is_complete {
            writer.finish_source(id, &speech_recipe(), State::Complete, None).unwrap();
        }
        (folder, writer, id)
    };
    let (folder, mut writer, id) = heard_by(1, false);
    let (from, there, _) = heard_by(3, true);
    drop(there);
    let mut merged = Merged::default();
    writer.merge(&open(from.path()), &mut merged, &mut |_, _| Ok(())).unwrap();
    assert_eq!((merged.cues, merged.damaged.len(), merged.conflicts.len()), (2, 0, 0));
    assert_eq!(writer.progress(id, &speech_recipe()).unwrap(), State::Complete);
    assert_eq!(
        open(folder.path()).cues(id).unwrap(),
        open(from.path()).cues(id_of(&from)).unwrap()
    );
    // Once more changes nothing, and a library that knows nothing gets all.
    let mut merged = Merged::default();
    writer.merge(&open(from.path()), &mut merged, &mut |_, _| Ok(())).unwrap();
    assert_eq!((merged.cues, merged.to_understand), (0, 0));
    let empty = tempfile::tempdir().unwrap();
    let mut other = Writer::open(&empty.path().join("lib")).unwrap();
    other.merge(&open(from.path()), &mut Merged::default(), &mut |_, _| Ok(())).unwrap();
    assert_eq!(open(empty.path()).cues(id_of(&empty)).unwrap().len(), 3);
    drop((other, writer));
    for lib in [&folder, &empty] {
        let found = check(&lib.path().join("lib"), &mut |_| Ok(())).unwrap();
        assert!(found.iter().all(|found| found.fault == Fault::Unfinished), "{found:?}");
    }
    let mut writer = Writer::open(&folder.path().join("lib")).unwrap();
    let forgotten = writer.forget(id).unwrap();
    assert_eq!((forgotten.cues, forgotten.gaps), (3, 3));
    let left = "SELECT (SELECT count(*) FROM cues) + (SELECT count(*) FROM chunks) \
         + (SELECT count(*) FROM progress)";
    let left: i64 = writer.record.sql.query_row(left, [], |row| row.get(0)).unwrap();
    assert_eq!(left, 0);
}

fn id_of(folder: &TempDir) -> SourceId {
    open(folder.path()).sources().unwrap()[0].id
}
