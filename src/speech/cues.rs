//! From the words of windows, one after the other, to cues: sentences with their words' times.

use super::hear::Heard;
use super::words::Word;
use crate::media::{Cue, CueKind, TimedWord};
use crate::time::{Micros, Span, Timestamp};
use crate::transcript;

/// A pause that ends a cue.
const PAUSE: Micros = Micros::from_millis(1_000);
/// A cue that lasts longer ends with a clause, or else with the next word.
const LONG: Micros = Micros::from_millis(12_000);
const LONGEST: Micros = Micros::from_millis(18_000);
/// The same word in two windows has times that differ by less.
const SAME: Micros = Micros::from_millis(500);
/// Where no sentence has ended at a pause for so long, any pause ends one.
const ENDLESS: Micros = Micros::from_millis(120_000);

/// Joins what was heard in the windows of one source, in order, into cues.
#[derive(Debug)]
pub struct Joiner {
    track: String,
    language: String,
    /// Words that are in no cue yet.
    words: Vec<Word>,
    /// Where the window before ended: a seam with the next shares what is after its start.
    last_end: Timestamp,
    /// Up to where all cues were given out.
    settled: Timestamp,
}

impl Joiner {
    /// `track` names where the sound came from: `speech:1`. `from` is where the first window may begin.
    pub fn new(track: impl Into<String>, from: Timestamp) -> Joiner {
        Joiner {
            track: track.into(),
            language: String::new(),
            words: Vec::new(),
            last_end: Timestamp(i64::MIN),
            settled: from,
        }
    }

    /// Ends the last cue before a window that does not go on with it. The instant that is returned lies
    /// between all cues so far and all that follow, and one that begins there makes the same of what
    /// follows.
    pub fn part(&mut self, heard: &Heard, cues: &mut Vec<Cue>) -> Option<Timestamp> {
        let next = heard.words.first();
        let begins = next.map_or(heard.span.start, |word| word.span.start);
        let goes_on = heard.seam.is_some() || begins - self.last_end < PAUSE;
        let is_other = heard.language != self.language;
        let is_sentence = self.words.last().is_some_and(|last| {
            let cased = begins_with_capital(&self.words);
            transcript::ends_sentence(&last.text, next.map(|next| &next.text[..]), cased)
        });
        let is_endless = heard.fresh.is_some_and(|fresh| fresh - self.settled >= ENDLESS);
        if is_other || !goes_on || (heard.seam.is_none() && (is_sentence || is_endless)) {
            self.finish(cues);
        }
        let settled = heard.fresh.filter(|_| self.words.is_empty());
        self.settled = settled.unwrap_or(self.settled);
        settled
    }

    /// Takes the next window; adds the cues that are whole. The last cue of a window waits for the next
    /// window only where that may go on with it.
    pub fn push(&mut self, heard: Heard, cues: &mut Vec<Cue>) {
        self.part(&heard, cues);
        self.language = heard.language;
        let mut words = heard.words;
        if let Some(seam) = heard.seam {
            join(&mut self.words, &mut words, heard.span.start, seam);
        }
        let floor = self.words.last().map(|last| last.span.end);
        for mut word in words {
            let start = floor.map_or(word.span.start, |floor| word.span.start.max(floor));
            word.span = Span::new(start, word.span.end.max(start));
            self.words.push(word);
        }
        self.last_end = heard.span.end;
        // What the next window may share stays.
        self.give(heard.span.end - Micros(2_100_000), cues);
    }

    /// Nobody speaks until this instant.
    pub fn silence(&mut self, until: Timestamp, cues: &mut Vec<Cue>) {
        self.finish(cues);
        self.settled = until;
    }

    /// The cues that are left, at the end or a long pause.
    pub fn finish(&mut self, cues: &mut Vec<Cue>) {
        self.give(Timestamp::MAX, cues);
        if !self.words.is_empty() {
            let words = std::mem::take(&mut self.words);
            cues.extend(self.cue(words));
        }
    }

    /// Gives out cues of which the last word ends before `settled`.
    fn give(&mut self, settled: Timestamp, cues: &mut Vec<Cue>) {
        while let Some(count) = first_cue(&self.words) {
            if self.words[count - 1].span.end > settled {
                return;
            }
            let rest = self.words.split_off(count);
            let words = std::mem::replace(&mut self.words, rest);
            cues.extend(self.cue(words));
        }
    }

    fn cue(&self, words: Vec<Word>) -> Option<Cue> {
        let span = Span::new(words.first()?.span.start, words.last()?.span.end);
        let mut text = String::new();
        for word in &words {
            if !text.is_empty() && !word.glued {
                text.push(' ');
            }
            text.push_str(&word.text);
        }
        let sum: f32 = words.iter().map(|word| word.confidence.max(1e-6).ln()).sum();
        let confidence = (sum / words.len() as f32).exp();
        let timed = words.into_iter().map(|word| TimedWord {
            span: word.span,
            text: word.text,
            confidence: Some(word.confidence),
        });
        Some(Cue {
            // A cue of one short word may have no length by the words' 20 ms.
            span: Span::new(span.start, span.end.max(span.start + Micros::from_millis(20))),
            text,
            kind: CueKind::Speech,
            language: Some(bcp47(&self.language).to_owned()),
            track: self.track.clone(),
            confidence: Some(confidence),
            words: timed.collect(),
            speaker: None,
        })
    }
}

/// Whisper's code as others write it.
fn bcp47(code: &str) -> &str {
    if code == "jw" { "jv" } else { code }
}

fn begins_with_capital(words: &[Word]) -> bool {
    let letters = words.first().map_or("", |word| &word.text).chars();
    letters.into_iter().find(|c| c.is_alphanumeric()).is_some_and(char::is_uppercase)
}

/// How many of the first words are a cue; `None` where more may come.
fn first_cue(words: &[Word]) -> Option<usize> {
    let start = words.first()?.span.start;
    let cased = begins_with_capital(words);
    for (at, pair) in words.windows(2).enumerate() {
        let [word, next] = pair else { continue };
        let so_far = word.span.end - start;
        let clause = word.text.ends_with([',', ';', ':', '，', '、', '；', '：']);
        if transcript::ends_sentence(&word.text, Some(&next.text), cased)
            || next.span.start - word.span.end >= PAUSE
            || (so_far > LONG && clause)
            || next.span.end - start > LONGEST
        {
            return Some(at + 1);
        }
    }
    None
}

/// Joins the words of two windows that share the sound from `shared` on: each word that is found in both
/// is kept once. Where both agree on a word, the first has all up to it; where they don't, the seam
/// parts them.
fn join(before: &mut Vec<Word>, after: &mut Vec<Word>, shared: Timestamp, seam: Timestamp) {
    let first = before.iter().position(|word| word.span.end > shared).unwrap_or(before.len());
    let bare = |word: &Word| -> String {
        let letters = word.text.chars().filter(|c| c.is_alphanumeric());
        letters.flat_map(char::to_lowercase).collect()
    };
    let same =
        |a: &Word, b: &Word| (a.span.start - b.span.start).0.abs() < SAME.0 && bare(a) == bare(b);
    let agreed = (first..before.len())
        .flat_map(|a| (0..after.len()).map(move |b| (a, b)))
        .filter(|&(a, b)| same(&before[a], &after[b]))
        // The one nearest to the seam is seen whole by both.
        .min_by_key(|&(a, _)| (before[a].span.midpoint() - seam).0.abs());
    match agreed {
        Some((a, b)) => {
            before.truncate(a + 1);
            after.drain(..=b);
        }
        None => {
            before.retain(|word| word.span.midpoint() < seam);
            after.retain(|word| word.span.midpoint() >= seam);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn word(text: &str, start: i64, end: i64) -> Word {
        let span = Span::new(Timestamp::from_millis(start), Timestamp::from_millis(end));
        Word { text: text.to_owned(), span, confidence: 0.5, glued: false }
    }

    fn heard(start: i64, end: i64, seam: Option<i64>, words: Vec<Word>) -> Heard {
        Heard {
            span: Span::new(Timestamp::from_millis(start), Timestamp::from_millis(end)),
            seam: seam.map(Timestamp::from_millis),
            words,
            language: "en".to_owned(),
            fresh: seam.is_none().then(|| Timestamp::from_millis(start)),
        }
    }

    fn joined(all: Vec<Heard>) -> Vec<Cue> {
        let mut joiner = Joiner::new("speech:1", Timestamp::ZERO);
        let mut cues = Vec::new();
        for heard in all {
            joiner.push(heard, &mut cues);
        }
        joiner.finish(&mut cues);
        cues
    }

    fn texts(cues: &[Cue]) -> Vec<&str> {
        cues.iter().map(|cue| &cue.text[..]).collect()
    }

    #[test]
    fn a_cue_is_a_sentence_or_ends_at_a_pause() {
        let words = vec![
            word("Mr.", 0, 200),
            word("Smith", 200, 500),
            word("left.", 500, 900),
            word("Then", 950, 1_200),
            word("nothing", 2_300, 2_800),
        ];
        let cues = joined(vec![heard(0, 3_000, None, words)]);
        assert_eq!(texts(&cues), ["Mr. Smith left.", "Then", "nothing"]);
        assert_eq!(cues[0].span, Span::new(Timestamp(0), Timestamp(900_000)));
        assert_eq!((cues[0].words.len(), cues[0].kind), (3, CueKind::Speech));
        assert!((cues[0].confidence.unwrap() - 0.5).abs() < 1e-6);
    }

    #[test]
    fn a_sentence_goes_on_over_windows() {
        let first =
            heard(0, 3_000, None, vec![word("We", 2_000, 2_400), word("went", 2_400, 2_900)]);
        let second = heard(3_100, 6_000, None, vec![word("home.", 3_300, 3_800)]);
        assert_eq!(texts(&joined(vec![first, second])), ["We went home."]);
    }

    #[test]
    fn what_two_windows_share_is_kept_once() {
        let first = || {
            vec![
                word("one", 100, 400),
                word("two", 8_600, 8_900),
                word("three", 9_300, 9_600),
                word("fo", 9_800, 10_000),
            ]
        };
        let second = || {
            vec![
                word("three", 9_350, 9_650),
                word("four", 9_700, 10_100),
                word("five", 10_200, 10_500),
            ]
        };
        let cues = joined(vec![
            heard(0, 10_000, None, first()),
            heard(8_000, 12_000, Some(9_000), second()),
        ]);
        assert_eq!(
            cues.iter().flat_map(|cue| &cue.words).map(|w| &w.text[..]).collect::<Vec<_>>(),
            ["one", "two", "three", "four", "five"]
        );
        // Where they agree on nothing, each has its side of the seam.
        let other = vec![
            word("too", 8_650, 8_950),
            word("tree", 9_250, 9_650),
            word("four", 9_700, 10_100),
        ];
        let cues =
            joined(vec![heard(0, 10_000, None, first()), heard(8_000, 12_000, Some(9_000), other)]);
        assert_eq!(
            cues.iter().flat_map(|cue| &cue.words).map(|w| &w.text[..]).collect::<Vec<_>>(),
            ["one", "two", "tree", "four"]
        );
    }

    #[test]
    fn speech_without_full_stops_is_cut_before_it_lasts_too_long() {
        let words: Vec<Word> = (0..100).map(|n| word("on", n * 500, n * 500 + 400)).collect();
        let cues = joined(vec![heard(0, 50_000, None, words)]);
        assert!(cues.iter().all(|cue| cue.span.length() <= LONGEST), "{cues:?}");
        assert_eq!(cues.iter().map(|cue| cue.words.len()).sum::<usize>(), 100);
    }

    /// Windows with pauses, seams, and words that may end sentences.
    fn any_windows() -> impl Strategy<Value = Vec<Heard>> {
        let words = prop::collection::vec((0i64..900, 0i64..900), 0..12);
        let windows = prop::collection::vec((0i64..4_000, words, any::<bool>()), 0..8);
        windows.prop_map(|windows| {
            let mut at = 0;
            let mut all = Vec::new();
            for (pause, words, shares) in windows {
                let shares = shares && at > 0;
                let start = if shares { (at - 1_000).max(0) } else { at + pause };
                let mut end = start;
                let words = words.into_iter().map(|(gap, length)| {
                    let begin = end + gap;
                    end = begin + length;
                    word(["So", "so.", "and"][(length % 3) as usize], begin, end)
                });
                let words = words.collect();
                at = end.max(start + 2_000);
                all.push(heard(start, at, shares.then_some(start + 1_000), words));
            }
            all
        })
    }

    proptest! {
        #[test]
        fn one_that_begins_where_cues_were_parted_makes_the_same_of_the_rest(all in any_windows()) {
            let mut joiner = Joiner::new("speech:1", Timestamp::ZERO);
            let (mut cues, mut parted) = (Vec::new(), Vec::new());
            for (place, heard) in all.iter().enumerate() {
                if let Some(at) = joiner.part(heard, &mut cues) {
                    parted.push((place, at, cues.len()));
                }
                joiner.push(heard.clone(), &mut cues);
            }
            joiner.finish(&mut cues);
            for (place, at, given) in parted {
                let mut rest = Vec::new();
                let mut later = Joiner::new("speech:1", at);
                for heard in &all[place..] {
                    later.push(heard.clone(), &mut rest);
                }
                later.finish(&mut rest);
                prop_assert_eq!(&cues[given..], &rest[..]);
            }
        }

        #[test]
        fn times_never_go_back(all in any_windows()) {
            let cues = joined(all);
            for pair in cues.windows(2) {
                prop_assert!(pair[0].span.start <= pair[1].span.start);
                let last = pair[0].words.last().unwrap().span.end;
                prop_assert!(last <= pair[1].words[0].span.start);
            }
            for pair in cues.iter().flat_map(|cue| cue.words.windows(2)) {
                prop_assert!(pair[0].span.end <= pair[1].span.start);
            }
        }
    }
}
