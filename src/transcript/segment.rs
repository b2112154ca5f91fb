//! Segments: which clips and words are read together.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::sentence::Sentence;
use crate::media::ClipHead;
use crate::time::{Micros, Span, Timestamp};

/// How clips and sentences are divided. Part of the segments' recipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentRules {
    /// A segment has at most so many clips; at least 1.
    pub max_clips: usize,
    /// How near a neighbour is. A sentence too short for a clip of its own joins one this near, and
    /// one further than this from any clip has no picture.
    pub near: Micros,
}

impl Default for SegmentRules {
    fn default() -> Self {
        SegmentRules { max_clips: 16, near: Micros::from_millis(1_500) }
    }
}

/// The clips and words that are read together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentPlan {
    /// From the start of the first clip to the end of the last; of its sentence, where it has no
    /// clips.
    pub span: Span,
    /// Which of the given clips. All segments' ranges, one after the other, are `0..clips.len()`.
    /// Empty for a sentence without picture.
    pub clips: Range<usize>,
    /// Which of the given sentences, in their order. Each is in exactly one segment.
    pub sentences: Vec<usize>,
    /// The sentences, one space between; empty where nobody speaks.
    pub text: String,
    /// The language of most of the text, where known.
    pub language: Option<String>,
}

/// Divides `clips` and `sentences`, both in order of start, into segments.
///
/// A clip belongs to the segment that holds its midpoint: that of a spoken sentence (the one that
/// began first, where two speak at once), or, where nobody speaks, the run of clips up to the next
/// shot change or hole in the picture. A sentence that holds no clip's midpoint joins the nearer
/// neighbour, or, where none is near, the segment of the clip that it is said in. A longer segment
/// is cut after every `max_clips` clips, and each sentence goes to the part that holds its own
/// midpoint. A sentence far from any picture is a segment without clips. No two segments start at the
/// same time.
pub fn segments(
    clips: &[ClipHead],
    sentences: &[Sentence],
    rules: &SegmentRules,
) -> Vec<SegmentPlan> {
    let (groups, loose) = group(clips, sentences, rules);
    let owners = owners(clips, &groups);
    let mut plans: Vec<SegmentPlan> = cut(clips, &owners, rules.max_clips.max(1))
        .map(|clips_of| SegmentPlan {
            span: Span::new(clips[clips_of.start].span.start, clips[clips_of.end - 1].span.end),
            clips: clips_of,
            sentences: Vec::new(),
            text: String::new(),
            language: None,
        })
        .collect();

    let parts = parts_of(groups.len(), &owners, &plans);
    for (group, parts) in groups.iter().zip(parts) {
        for &sentence in &group.sentences {
            let at = part_nearest(&plans[parts.clone()], clips, sentences[sentence].span);
            plans[parts.start + at].sentences.push(sentence);
        }
    }
    let (seen, unseen): (Vec<usize>, Vec<usize>) = loose
        .into_iter()
        .partition(|&sentence| near_picture(clips, sentences[sentence].span, rules.near));
    for sentence in seen {
        let at = part_nearest(&plans, clips, sentences[sentence].span);
        plans[at].sentences.push(sentence);
    }
    // A segment without clips stands before the clip that follows it; the sort keeps the order of
    // those that stand before the same one.
    let mut all = without_picture(&unseen, sentences, clips, &plans);
    all.append(&mut plans);
    let mut plans = all;
    plans.sort_by_key(|plan| (plan.clips.start, plan.clips.end));
    for plan in &mut plans {
        plan.sentences.sort_unstable();
        plan.text = joined_text(sentences, &plan.sentences);
        plan.language = main_language(sentences, &plan.sentences);
    }
    plans
}

/// A segment for each sentence that no picture goes with.
fn without_picture(
    unseen: &[usize],
    sentences: &[Sentence],
    clips: &[ClipHead],
    plans: &[SegmentPlan],
) -> Vec<SegmentPlan> {
    let mut found: Vec<SegmentPlan> = Vec::new();
    for &sentence in unseen {
        let span = sentences[sentence].span;
        // A segment is known by its start.
        if let Some(last) = found.last_mut().filter(|last| last.span.start == span.start) {
            last.span.end = last.span.end.max(span.end);
            last.sentences.push(sentence);
            continue;
        }
        let begun =
            plans.partition_point(|plan| clips[plan.clips.start].span.midpoint() < span.start);
        let before = plans[..begun].last().map_or(0, |plan| plan.clips.end);
        found.push(SegmentPlan {
            span,
            clips: before..before,
            sentences: vec![sentence],
            text: String::new(),
            language: None,
        });
    }
    found
}

/// Sentences that share a segment because one of them is too short for its own.
struct Group {
    span: Span,
    sentences: Vec<usize>,
}

impl Group {
    fn of(sentence: usize, sentences: &[Sentence]) -> Self {
        Group { span: sentences[sentence].span, sentences: vec![sentence] }
    }

    fn join(&mut self, later: Group) {
        self.span = Span::new(self.span.start, self.span.end.max(later.span.end));
        self.sentences.extend(later.sentences);
    }
}

/// Groups that each hold a clip's midpoint that no group before holds, and the sentences that found
/// no such group.
fn group(
    clips: &[ClipHead],
    sentences: &[Sentence],
    rules: &SegmentRules,
) -> (Vec<Group>, Vec<usize>) {
    let mut groups: Vec<Group> = Vec::new();
    let mut loose = Vec::new();
    // Sentences too short so far, waiting for the next one.
    let mut waiting: Option<Group> = None;
    for number in 0..sentences.len() {
        let mut group = Group::of(number, sentences);
        if let Some(mut short) = waiting.take() {
            short.join(group);
            group = short;
        }
        let held_until = groups.last().map_or(Timestamp(i64::MIN), |last| last.span.end);
        let own = Span::new(group.span.start.max(held_until), group.span.end);
        if holds_midpoint(clips, own) {
            groups.push(group);
            continue;
        }
        // What is said where the picture is missing neither waits nor joins: it could go on without
        // end, and no clip would come to hold it.
        let after = sentences
            .get(number + 1)
            .filter(|next| near_picture(clips, next.span, Micros::ZERO))
            .map(|next| next.span.start - group.span.end)
            .filter(|&gap| gap <= rules.near);
        match groups.last_mut() {
            Some(last)
                if group.span.end <= last.span.end
                    || (near_picture(clips, group.span, rules.near)
                        && is_nearer(group.span.start - last.span.end, after, rules.near)) =>
            {
                last.join(group);
            }
            _ if after.is_some() => waiting = Some(group),
            _ => loose.extend(group.sentences),
        }
    }
    loose.extend(waiting.into_iter().flat_map(|group| group.sentences));
    (groups, loose)
}

/// Whether the gap to the neighbour before is near enough and no longer than that to the one after.
fn is_nearer(before: Micros, after: Option<Micros>, near: Micros) -> bool {
    before <= near && after.is_none_or(|after| before <= after)
}

fn holds_midpoint(clips: &[ClipHead], span: Span) -> bool {
    let first = clips.partition_point(|clip| clip.span.midpoint() < span.start);
    clips.get(first).is_some_and(|clip| span.contains(clip.span.midpoint()))
}

fn near_picture(clips: &[ClipHead], span: Span, near: Micros) -> bool {
    let first = clips.partition_point(|clip| clip.span.end + near < span.start);
    clips.get(first).is_some_and(|clip| clip.span.start <= span.end + near)
}

/// The group that holds each clip's midpoint: the first one, where several do.
fn owners(clips: &[ClipHead], groups: &[Group]) -> Vec<Option<usize>> {
    let mut first = 0;
    clips
        .iter()
        .map(|clip| {
            let midpoint = clip.span.midpoint();
            while groups.get(first).is_some_and(|group| group.span.end <= midpoint) {
                first += 1;
            }
            groups.get(first).filter(|group| group.span.contains(midpoint)).map(|_| first)
        })
        .collect()
}

/// The runs of clips that are segments, in order.
fn cut(
    clips: &[ClipHead],
    owners: &[Option<usize>],
    max_clips: usize,
) -> impl Iterator<Item = Range<usize>> {
    let mut start = 0;
    std::iter::from_fn(move || {
        if start == clips.len() {
            return None;
        }
        let end = (start + 1..clips.len())
            .find(|&next| next - start == max_clips || is_cut(clips, owners, next))
            .unwrap_or(clips.len());
        Some(std::mem::replace(&mut start, end)..end)
    })
}

/// Whether clip `next` begins a segment, whatever the length of the one before.
fn is_cut(clips: &[ClipHead], owners: &[Option<usize>], next: usize) -> bool {
    let (before, clip) = (&clips[next - 1], &clips[next]);
    if owners[next - 1].is_some() || owners[next].is_some() {
        return owners[next - 1] != owners[next];
    }
    // A clip shows the shot that its midpoint is in.
    let between = |shot: Timestamp| before.span.midpoint() < shot && shot <= clip.span.midpoint();
    clip.span.start > before.span.end
        || before.shot_start.is_some_and(between)
        || clip.shot_start.is_some_and(between)
}

/// The segments that each group's clips were cut into.
fn parts_of(groups: usize, owners: &[Option<usize>], plans: &[SegmentPlan]) -> Vec<Range<usize>> {
    let mut parts = vec![0..0; groups];
    for (number, plan) in plans.iter().enumerate() {
        if let Some(owner) = owners[plan.clips.start] {
            let part: &mut Range<usize> = &mut parts[owner];
            let first = if part.end == 0 { number } else { part.start };
            *part = first..number + 1;
        }
    }
    parts
}

/// Which of `plans`, at least one, holds or is nearest to the midpoint of `span`.
fn part_nearest(plans: &[SegmentPlan], clips: &[ClipHead], span: Span) -> usize {
    let midpoint = span.midpoint();
    let distance = |clip: usize| (clips[clip].span.midpoint() - midpoint).0.unsigned_abs();
    let after = plans
        .partition_point(|plan| clips[plan.clips.end - 1].span.midpoint() < midpoint)
        .min(plans.len() - 1);
    match after.checked_sub(1) {
        Some(before)
            if distance(plans[before].clips.end - 1) <= distance(plans[after].clips.start)
                && clips[plans[after].clips.start].span.midpoint() > midpoint =>
        {
            before
        }
        _ => after,
    }
}

fn joined_text(sentences: &[Sentence], numbers: &[usize]) -> String {
    let texts: Vec<&str> = numbers.iter().map(|&number| sentences[number].text.as_str()).collect();
    texts.join(" ")
}

fn main_language(sentences: &[Sentence], numbers: &[usize]) -> Option<String> {
    let mut languages: Vec<(&str, usize)> = Vec::new();
    for sentence in numbers.iter().map(|&number| &sentences[number]) {
        let Some(language) = sentence.language.as_deref() else { continue };
        match languages.iter_mut().find(|(known, _)| *known == language) {
            Some((_, bytes)) => *bytes += sentence.text.len(),
            None => languages.push((language, sentence.text.len())),
        }
    }
    // `max_by_key` takes the last of equals; the first to be spoken is wanted.
    languages.iter().rev().max_by_key(|(_, bytes)| bytes).map(|(language, _)| (*language).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CLIP_MS: i64 = 1_500;

    fn clip(place: i64) -> ClipHead {
        ClipHead {
            span: Span::new(
                Timestamp::from_millis(place * CLIP_MS),
                Timestamp::from_millis((place + 1) * CLIP_MS),
            ),
            raw_pts: 0,
            frames: 2,
            shot_start: None,
        }
    }

    fn clips(count: i64) -> Vec<ClipHead> {
        (0..count).map(clip).collect()
    }

    fn sentence(start_ms: i64, end_ms: i64, text: &str) -> Sentence {
        Sentence {
            span: Span::new(Timestamp::from_millis(start_ms), Timestamp::from_millis(end_ms)),
            text: text.into(),
            language: Some("en".into()),
            speaker: None,
        }
    }

    /// Each segment as its clips and its text.
    fn plan(clips: &[ClipHead], sentences: &[Sentence]) -> Vec<(Range<usize>, String)> {
        segments(clips, sentences, &SegmentRules::default())
            .into_iter()
            .map(|plan| (plan.clips, plan.text))
            .collect()
    }

    fn row(clips: Range<usize>, text: &str) -> (Range<usize>, String) {
        (clips, text.into())
    }

    #[test]
    fn a_sentence_holds_the_clips_whose_midpoints_it_holds() {
        // Midpoints are at 0.75, 2.25, 3.75, 5.25, 6.75, 8.25.
        let said = [sentence(2_000, 5_000, "b"), sentence(5_200, 7_000, "c")];
        assert_eq!(
            plan(&clips(6), &said),
            [row(0..1, ""), row(1..3, "b"), row(3..5, "c"), row(5..6, "")]
        );
    }

    #[test]
    fn silence_is_cut_at_shot_changes_and_holes() {
        let mut shown = clips(8);
        // In the second half of clip 1: clip 1 still shows the old shot.
        shown[1].shot_start = Some(Timestamp::from_millis(2_900));
        // In the first half of clip 4: clip 4 shows the new one.
        shown[4].shot_start = Some(Timestamp::from_millis(6_100));
        shown.remove(6);
        assert_eq!(plan(&shown, &[]), [row(0..2, ""), row(2..4, ""), row(4..6, ""), row(6..7, "")]);
    }

    #[test]
    fn a_shot_change_does_not_cut_a_sentence() {
        let mut shown = clips(4);
        shown[2].shot_start = Some(Timestamp::from_millis(3_100));
        assert_eq!(plan(&shown, &[sentence(0, 6_000, "a")]), [row(0..4, "a")]);
    }

    #[test]
    fn a_sentence_too_short_for_a_clip_joins_the_nearer_neighbour() {
        let said =
            [sentence(0, 1_000, "a"), sentence(1_100, 1_900, "b"), sentence(2_200, 3_000, "c")];
        assert_eq!(plan(&clips(3), &said), [row(0..1, "a b"), row(1..2, "c"), row(2..3, "")]);
        let said =
            [sentence(0, 1_000, "a"), sentence(1_600, 2_000, "b"), sentence(2_100, 3_000, "c")];
        assert_eq!(plan(&clips(3), &said), [row(0..1, "a"), row(1..2, "b c"), row(2..3, "")]);
        // Two that are too short each, and long enough together.
        let said = [sentence(300, 600, "a"), sentence(800, 1_000, "b")];
        assert_eq!(plan(&clips(1), &said), [row(0..1, "a b")]);
    }

    #[test]
    fn a_short_sentence_far_from_others_joins_the_clips_around_it() {
        assert_eq!(plan(&clips(8), &[sentence(6_100, 6_400, "yes")]), [row(0..8, "yes")]);
    }

    #[test]
    fn a_long_segment_is_cut_and_each_sentence_goes_where_its_midpoint_is() {
        assert_eq!(plan(&clips(40), &[]), [row(0..16, ""), row(16..32, ""), row(32..40, "")]);
        let said = [sentence(0, 60_000, "long"), sentence(50_000, 50_200, "short")];
        assert_eq!(
            plan(&clips(40), &said),
            [row(0..16, ""), row(16..32, "long"), row(32..40, "short")]
        );
    }

    #[test]
    fn what_is_said_without_picture_is_a_segment_of_its_own() {
        let said: Vec<_> =
            (0..4).map(|n| sentence(n * 10_000, n * 10_000 + 9_900, &n.to_string())).collect();
        assert_eq!(plan(&[], &said).len(), 4);
        // One clip of cover art at the start, or a hole in the middle.
        let found = segments(&clips(1), &said, &SegmentRules::default());
        let ranges: Vec<_> = found.iter().map(|plan| plan.clips.clone()).collect();
        assert_eq!(ranges, [0..1, 1..1, 1..1, 1..1]);
        assert_eq!(found[3].span, said[3].span);
        let holed = [clip(0), clip(30)];
        let said = [sentence(20_000, 21_000, "unseen")];
        assert_eq!(plan(&holed, &said), [row(0..1, ""), row(1..1, "unseen"), row(1..2, "")]);
    }

    #[test]
    fn sentences_after_the_picture_ends_do_not_pile_up() {
        let said: Vec<_> =
            (0..50).map(|n| sentence(n * 500, n * 500 + 500, &n.to_string())).collect();
        let found = segments(&clips(2), &said, &SegmentRules::default());
        assert!(found.iter().all(|plan| plan.sentences.len() <= 6), "{found:?}");
    }

    #[test]
    fn the_language_is_that_of_most_of_the_text() {
        let mut said = vec![sentence(0, 1_000, "oui"), sentence(1_000, 1_400, "and a long answer")];
        said[0].language = Some("fr".into());
        let found = segments(&clips(1), &said, &SegmentRules::default());
        assert_eq!(found[0].language.as_deref(), Some("en"));
        said[1].language = None;
        let found = segments(&clips(1), &said, &SegmentRules::default());
        assert_eq!(found[0].language.as_deref(), Some("fr"));
    }

    prop_compose! {
        fn shown_and_said()(
            places in prop::collection::btree_set(0i64..120, 0..90),
            shots in prop::collection::vec(prop::option::of(0i64..CLIP_MS), 120),
            said in prop::collection::vec((0i64..2_000, 0i64..8_000), 0..40),
        ) -> (Vec<ClipHead>, Vec<Sentence>) {
            let clips = places
                .into_iter()
                .map(|place| ClipHead {
                    shot_start: shots[place as usize]
                        .filter(|_| place % 3 == 0)
                        .map(|ms| Timestamp::from_millis(place * CLIP_MS + ms)),
                    ..clip(place)
                })
                .collect();
            let mut said: Vec<Sentence> = said
                .iter()
                .enumerate()
                .map(|(n, (start, length))| {
                    sentence(start * 100, start * 100 + length, &format!("s{n}"))
                })
                .collect();
            said.sort_by_key(|sentence| sentence.span.start);
            (clips, said)
        }
    }

    proptest! {
        #[test]
        fn segments_partition_clips_and_sentences((clips, said) in shown_and_said()) {
            let rules = SegmentRules::default();
            let plans = segments(&clips, &said, &rules);
            prop_assert!(plans.is_sorted_by(|a, b| a.span.start < b.span.start));
            let mut next = 0;
            let mut spoken = vec![0; said.len()];
            for plan in &plans {
                prop_assert_eq!(plan.clips.start, next);
                prop_assert!(plan.clips.len() <= rules.max_clips);
                prop_assert!(!plan.clips.is_empty() || !plan.sentences.is_empty());
                next = plan.clips.end;
                for &sentence in &plan.sentences {
                    spoken[sentence] += 1;
                }
            }
            prop_assert_eq!(next, clips.len());
            prop_assert!(spoken.iter().all(|&times| times == 1));
        }

        #[test]
        fn a_clip_is_with_the_first_sentence_that_holds_its_midpoint(
            (clips, said) in shown_and_said()
        ) {
            let uncut = SegmentRules { max_clips: usize::MAX, ..SegmentRules::default() };
            for plan in segments(&clips, &said, &uncut) {
                for clip in &clips[plan.clips.clone()] {
                    let midpoint = clip.span.midpoint();
                    if let Some(holder) = said.iter().position(|s| s.span.contains(midpoint)) {
                        prop_assert!(plan.sentences.contains(&holder));
                    }
                }
            }
        }

        #[test]
        fn what_comes_later_changes_nothing_long_before(
            (clips, said) in shown_and_said(),
            until_ms in 40_000i64..180_000,
        ) {
            let until = Timestamp::from_millis(until_ms);
            let settled = until - Micros::from_millis(36_000);
            let rules = SegmentRules::default();
            let early_clips: Vec<_> =
                clips.iter().copied().filter(|clip| clip.span.start < until).collect();
            let early_said: Vec<_> =
                said.iter().filter(|s| s.span.start < until).cloned().collect();
            let settled_of = |plans: Vec<SegmentPlan>| -> Vec<SegmentPlan> {
                plans.into_iter().filter(|plan| plan.span.end <= settled).collect()
            };
            prop_assert_eq!(
                settled_of(segments(&clips, &said, &rules)),
                settled_of(segments(&early_clips, &early_said, &rules))
            );
        }
    }
}
