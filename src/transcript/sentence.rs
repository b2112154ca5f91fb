//! Sentences from cues: a cue is what fits on the screen, a sentence is what was said.

use serde::{Deserialize, Serialize};

use super::cue_text::{clean_text, is_spoken};
use crate::media::Cue;
use crate::time::{Micros, Span, Timestamp};

/// What people said in one go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sentence {
    /// From its first word to its last. Words without a time of their own share their cue's span
    /// by their length.
    pub span: Span,
    /// One line.
    pub text: String,
    /// BCP-47, where known.
    pub language: Option<String>,
    pub speaker: Option<String>,
}

/// Where a sentence ends, when punctuation doesn't tell. Part of the segments' recipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SentenceRules {
    /// Silence that ends a sentence.
    pub pause: Micros,
    /// A sentence that would last longer ends with the cue before. A single cue is not cut.
    pub longest: Micros,
}

impl Default for SentenceRules {
    fn default() -> Self {
        SentenceRules { pause: Micros::from_millis(1_000), longest: Micros::from_millis(15_000) }
    }
}

/// A cue that starts this soon after another may show the other's lines again.
const ROLL_UP_GAP: Micros = Micros::from_millis(40);

/// Joins the cues of one track into sentences, in order of time.
///
/// A sentence ends at `.`, `!`, `?` or `…` (not after `Mr.` or `J.`, nor before a small letter), at
/// a pause, where the speaker changes (a dash, `>>`), and before it lasts too long. Lines that a
/// cue repeats from the one before it, as roll-up captions do, count once. Descriptions of sounds
/// (`[applause]`) are not said and are left out.
pub fn sentences<'a>(
    cues: impl IntoIterator<Item = &'a Cue>,
    rules: &SentenceRules,
) -> Vec<Sentence> {
    let mut cues: Vec<&Cue> = cues.into_iter().collect();
    cues.sort_by_key(|cue| (cue.span.start, cue.span.end));

    let mut found = Vec::new();
    let mut open: Option<OpenSentence<'_>> = None;
    let mut words = words_once(&cues).into_iter().peekable();
    while let Some(word) = words.next() {
        let goes_on = open.as_ref().is_some_and(|open| {
            !word.new_speaker
                && open.speaker == word.cue.speaker.as_deref()
                && word.span.start - open.span.end < rules.pause
                && !(word.starts_cue && word.cue.span.end - open.span.start > rules.longest)
        });
        if !goes_on {
            found.extend(open.take().map(OpenSentence::close));
        }
        let so_far = open.get_or_insert_with(|| OpenSentence::new(&word));
        so_far.push(&word);
        let next = words.peek().map(|next| next.text.as_str());
        if ends_sentence(&word.text, next, starts_with(&so_far.text, char::is_uppercase)) {
            found.extend(open.take().map(OpenSentence::close));
        }
    }
    found.extend(open.take().map(OpenSentence::close));
    found
}

struct OpenSentence<'a> {
    span: Span,
    text: String,
    language: Option<&'a str>,
    speaker: Option<&'a str>,
}

impl<'a> OpenSentence<'a> {
    fn new(first: &Word<'a>) -> Self {
        OpenSentence {
            span: first.span,
            text: String::new(),
            language: first.cue.language.as_deref(),
            speaker: first.cue.speaker.as_deref(),
        }
    }

    fn push(&mut self, word: &Word<'a>) {
        if !self.text.is_empty() && !word.glued {
            self.text.push(' ');
        }
        self.text.push_str(&word.text);
        self.span =
            Span::new(self.span.start.min(word.span.start), self.span.end.max(word.span.end));
    }

    fn close(self) -> Sentence {
        Sentence {
            span: self.span,
            text: self.text,
            language: self.language.map(Into::into),
            speaker: self.speaker.map(Into::into),
        }
    }
}

/// A word as it is said once.
struct Word<'a> {
    text: String,
    span: Span,
    cue: &'a Cue,
    starts_cue: bool,
    new_speaker: bool,
    /// No space before it: Chinese and Japanese write none between sentences.
    glued: bool,
}

/// Every word of every cue, without those that a cue shows again from the cue before.
fn words_once<'a>(cues: &[&'a Cue]) -> Vec<Word<'a>> {
    let mut words = Vec::new();
    let mut before: Option<(Shown, Timestamp)> = None;
    for cue in cues {
        let shown = Shown::new(&clean_text(&cue.text));
        let repeated = match &before {
            Some((before, end)) if cue.span.start <= *end + ROLL_UP_GAP => shown.repeated(before),
            _ => 0,
        };
        shown.push_words(repeated, cue, &mut words);
        before = Some((shown, cue.span.end));
    }
    words
}

/// A cue's words as it shows them.
struct Shown {
    pieces: Vec<Piece>,
    /// How many pieces come before each line.
    line_starts: Vec<usize>,
}

struct Piece {
    text: String,
    new_speaker: bool,
    glued: bool,
}

impl Shown {
    fn new(cleaned: &str) -> Self {
        let mut shown = Shown { pieces: Vec::new(), line_starts: Vec::new() };
        for line in cleaned.lines().filter(|line| is_spoken(line)) {
            shown.line_starts.push(shown.pieces.len());
            let said = line.trim_start_matches(['-', '–', '>', ' ']);
            // ">>" is the mark of a new speaker in broadcast captions.
            let new_speaker = said.len() < line.len();
            for (place, text) in said.split_whitespace().enumerate() {
                for (part, text) in split_after_full_stops(text).into_iter().enumerate() {
                    shown.pieces.push(Piece {
                        text: text.to_owned(),
                        new_speaker: new_speaker && place == 0 && part == 0,
                        glued: part > 0,
                    });
                }
            }
        }
        shown
    }

    /// How many of the first pieces are the last whole lines of what was shown `before`.
    fn repeated(&self, before: &Shown) -> usize {
        before
            .line_starts
            .iter()
            .map(|&start| &before.pieces[start..])
            .find(|tail| {
                tail.len() <= self.pieces.len()
                    && tail.iter().zip(&self.pieces).all(|(a, b)| a.text == b.text)
            })
            .map_or(0, <[Piece]>::len)
    }

    fn push_words<'a>(&self, repeated: usize, cue: &'a Cue, words: &mut Vec<Word<'a>>) {
        let new = &self.pieces[repeated..];
        let total: usize = new.iter().map(Piece::weight).sum();
        let length = cue.span.length().max(Micros::ZERO);
        let at = |before: usize| {
            let share = i128::from(length.0) * before as i128 / total.max(1) as i128;
            cue.span.start + Micros(i64::try_from(share).expect("a share of a length is no longer"))
        };
        let timed = cue.words.len() == self.pieces.len();
        let mut before = 0;
        for (place, piece) in new.iter().enumerate() {
            let span = if timed {
                let span = cue.words[repeated + place].span;
                Span::new(span.start, span.end.max(span.start))
            } else {
                Span::new(at(before), at(before + piece.weight()))
            };
            before += piece.weight();
            words.push(Word {
                text: piece.text.clone(),
                span,
                cue,
                starts_cue: place == 0,
                new_speaker: piece.new_speaker,
                glued: piece.glued,
            });
        }
    }
}

impl Piece {
    /// Its share of the time it takes to say the cue.
    fn weight(&self) -> usize {
        self.text.chars().count() + 1
    }
}

/// `你好。我是` is two pieces; text that parts words by spaces stays whole.
fn split_after_full_stops(text: &str) -> Vec<&str> {
    text.split_inclusive(['。', '！', '？']).collect()
}

/// Whether a sentence ends with `word`, before `next`. `cased`: the sentence began with a capital,
/// so that a small letter after it tells that it goes on.
pub fn ends_sentence(word: &str, next: Option<&str>, cased: bool) -> bool {
    let bare = word.trim_end_matches(['"', '\'', ')', ']', '»', '”', '’', '」', '』', '）']);
    let Some(last) = bare.chars().last() else { return false };
    if !matches!(last, '.' | '!' | '?' | '…' | '。' | '！' | '？' | '؟' | '।' | '։') {
        return false;
    }
    if cased && next.is_some_and(|next| starts_with(next, char::is_lowercase)) {
        return false;
    }
    if last != '.' || bare.ends_with("..") {
        return true;
    }
    let body = bare.trim_end_matches('.').trim_start_matches(|c: char| !c.is_alphanumeric());
    let initial = body.chars().count() == 1 && starts_with(body, char::is_alphabetic);
    let pronoun = body == "I";
    let dotted = body.contains('.') && !body.chars().any(|c| c.is_ascii_digit());
    !((initial && !pronoun) || dotted || ABBREVIATIONS.contains(&body.to_lowercase().as_str()))
}

/// What stands before a name or a number and so seldom ends a sentence.
const ABBREVIATIONS: &[&str] = &[
    "approx", "capt", "cf", "col", "dr", "fig", "gen", "gov", "hon", "lt", "mlle", "mme", "mr",
    "mrs", "ms", "mx", "prof", "rev", "sen", "sgt", "sr", "sra", "srta", "st", "vs",
];

fn starts_with(text: &str, is: impl Fn(char) -> bool) -> bool {
    text.chars().find(|c| c.is_alphanumeric()).is_some_and(is)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::{CueKind, TimedWord};
    use proptest::prelude::*;

    fn cue(start_ms: i64, end_ms: i64, text: &str) -> Cue {
        Cue {
            span: Span::new(Timestamp::from_millis(start_ms), Timestamp::from_millis(end_ms)),
            text: text.into(),
            kind: CueKind::Subtitle,
            language: Some("en".into()),
            track: "embedded:2".into(),
            confidence: None,
            words: Vec::new(),
            speaker: None,
        }
    }

    fn texts(cues: &[Cue]) -> Vec<String> {
        sentences(cues, &SentenceRules::default()).into_iter().map(|s| s.text).collect()
    }

    #[test]
    fn a_sentence_goes_on_over_cues_and_ends_at_its_full_stop() {
        let cues =
            [cue(0, 1_000, "So most people"), cue(1_000, 3_000, "leave. Some stay\nfor long.")];
        let found = sentences(&cues, &SentenceRules::default());
        let texts: Vec<_> = found.iter().map(|sentence| sentence.text.as_str()).collect();
        assert_eq!(texts, ["So most people leave.", "Some stay for long."]);
        assert_eq!(found[0].span.start, Timestamp(0));
        assert_eq!(found[0].span.end, found[1].span.start);
        assert!(found[1].span.start > Timestamp::from_millis(1_000));
        assert_eq!(found[1].span.end, Timestamp::from_millis(3_000));
        assert_eq!(found[0].language.as_deref(), Some("en"));
    }

    #[test]
    fn a_full_stop_within_a_sentence_does_not_end_it() {
        for text in [
            "Mr. Smith met J. Brown in the U.S. Army.",
            "It costs 3.50 at St. John's.",
            "\"Why?\" he asked.",
            "Well... maybe.",
        ] {
            assert_eq!(texts(&[cue(0, 3_000, text)]), [text]);
        }
        assert_eq!(texts(&[cue(0, 3_000, "yes. no! why?")]), ["yes.", "no!", "why?"]);
        assert_eq!(texts(&[cue(0, 3_000, "你好。我是猫。")]), ["你好。", "我是猫。"]);
    }

    #[test]
    fn a_pause_or_a_speaker_ends_a_sentence_without_punctuation() {
        let paused = [cue(0, 1_000, "one two"), cue(1_999, 3_000, "three"), cue(4_000, 5_000, "x")];
        assert_eq!(texts(&paused), ["one two three", "x"]);
        assert_eq!(texts(&[cue(0, 2_000, "- Are you\n- I am")]), ["Are you", "I am"]);
        assert_eq!(texts(&[cue(0, 1_000, "he left"), cue(1_000, 2_000, ">> who")]).len(), 2);
        let mut other = cue(1_000, 2_000, "so");
        other.speaker = Some("Ada".into());
        assert_eq!(texts(&[cue(0, 1_000, "and"), other]), ["and", "so"]);
    }

    #[test]
    fn unpunctuated_captions_are_cut_at_cues_before_they_last_too_long() {
        let cues: Vec<Cue> =
            (0..20).map(|n| cue(n * 2_000, n * 2_000 + 2_000, &format!("and on {n}"))).collect();
        let found = sentences(&cues, &SentenceRules::default());
        assert_eq!(found.len(), 3);
        assert!(found.iter().all(|s| s.span.length() <= SentenceRules::default().longest));
    }

    #[test]
    fn lines_that_roll_up_count_once() {
        let cues = [
            cue(0, 2_000, "we went\nto the lake"),
            cue(2_000, 2_010, "to the lake"),
            cue(2_010, 4_000, "to the lake\nand swam"),
            cue(4_000, 6_000, "and swam\nall day."),
        ];
        assert_eq!(texts(&cues), ["we went to the lake and swam all day."]);
        let growing = [cue(0, 500, "we"), cue(500, 900, "we went"), cue(900, 1_500, "we went out")];
        assert_eq!(texts(&growing), ["we went out"]);
        let layers = [cue(0, 1_000, "Twice drawn."), cue(0, 1_000, "Twice drawn.")];
        assert_eq!(texts(&layers), ["Twice drawn."]);
    }

    #[test]
    fn what_is_said_again_after_a_gap_counts_again() {
        assert_eq!(texts(&[cue(0, 500, "No."), cue(600, 1_000, "No.")]), ["No.", "No."]);
    }

    #[test]
    fn sounds_and_notes_are_not_said() {
        let cues = [cue(0, 1_000, "[applause]"), cue(1_000, 2_000, "♪♪\n♪ oh yes ♪")];
        assert_eq!(texts(&cues), ["oh yes"]);
    }

    #[test]
    fn a_word_with_a_time_keeps_it() {
        let mut timed = cue(0, 10_000, "Stop. Go.");
        timed.words = [(1_000, 1_500, "Stop."), (9_000, 9_200, "Go.")]
            .map(|(start, end, text)| TimedWord {
                span: Span::new(Timestamp::from_millis(start), Timestamp::from_millis(end)),
                text: text.into(),
                confidence: None,
            })
            .to_vec();
        let found = sentences(&[timed], &SentenceRules::default());
        assert_eq!(found[0].span.start, Timestamp::from_millis(1_000));
        assert_eq!(found[1].span.end, Timestamp::from_millis(9_200));
    }

    proptest! {
        #[test]
        fn no_word_is_lost_or_said_twice(
            cues in prop::collection::vec((0i64..60_000, 0i64..5_000, "([a-z]{1,4}[.?]? ){1,6}"), 0..12)
        ) {
            // A number after each cue keeps them different, so that none rolls up.
            let cues: Vec<Cue> = cues
                .iter()
                .enumerate()
                .map(|(n, (start, length, text))| cue(*start, start + length, &format!("{text}{n}")))
                .collect();
            let mut said: Vec<String> = texts(&cues)
                .iter()
                .flat_map(|text| text.split(' ').map(str::to_owned).collect::<Vec<_>>())
                .collect();
            let mut written: Vec<String> =
                cues.iter().flat_map(|cue| cue.text.split(' ').map(str::to_owned)).collect();
            said.sort();
            written.sort();
            prop_assert_eq!(said, written);
        }

        #[test]
        fn any_cues_give_sentences_without_panic(
            cues in prop::collection::vec((any::<i64>(), any::<i64>(), any::<String>()), 0..8)
        ) {
            let cues: Vec<Cue> = cues
                .iter()
                .map(|(start, end, text)| Cue {
                    span: Span::new(Timestamp(*start), Timestamp(*end)),
                    ..cue(0, 0, text)
                })
                .collect();
            for sentence in sentences(&cues, &SentenceRules::default()) {
                prop_assert!(!sentence.text.is_empty());
                prop_assert!(sentence.span.start <= sentence.span.end);
            }
        }
    }
}
