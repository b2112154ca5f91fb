//! Subtitles that can be read: cues laid out in lines, with time enough for each.
//!
//! What is aimed at follows the guides of broadcasters (BBC, Netflix): at most two lines of 42
//! characters, broken where a clause ends, on the screen for a second at least, 20 characters a second at
//! most where the pause after it allows.

use crate::media::Cue;
use crate::time::{Micros, Span, Timestamp};

/// What stands on the screen at one time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subtitle {
    pub span: Span,
    /// One or two, of at most 42 columns.
    pub lines: Vec<String>,
}

const COLUMNS: usize = 42;
const LINES: usize = 2;
const SHORTEST: Micros = Micros::from_millis(1_000);
const LONGEST: Micros = Micros::from_millis(7_000);
/// Between two subtitles that follow each other, so that the change is seen.
const GAP: Micros = Micros::from_millis(80);
const COLUMNS_A_SECOND: i64 = 20;
/// A pause within a cue that is better not bridged by one subtitle.
const PAUSE: Micros = Micros::from_millis(700);

/// Lays out cues, in order of start. Each word of the cues stands in exactly one subtitle, in order; no
/// two subtitles overlap, and none begins before the one before it.
pub fn subtitles(cues: &[Cue]) -> Vec<Subtitle> {
    let mut found: Vec<Subtitle> = Vec::new();
    for cue in cues {
        let words = words_of(cue);
        for part in parts(&words) {
            let (Some(first), Some(last)) = (part.first(), part.last()) else { continue };
            let span = Span::new(first.span.start, last.span.end.max(first.span.start));
            found.push(Subtitle { span, lines: lines(part) });
        }
    }
    give_time(&mut found);
    found
}

/// A word, or a part of one that is longer than a line.
#[derive(Debug, Clone)]
struct Word {
    text: String,
    columns: usize,
    span: Span,
    glued: bool,
}

/// The words of a cue with their times; shares of its time by their length where it has none.
fn words_of(cue: &Cue) -> Vec<Word> {
    let mut words = Vec::new();
    if cue.words.is_empty() {
        let texts: Vec<&str> = cue.text.split_whitespace().collect();
        let total: usize = texts.iter().map(|text| columns(text) + 1).sum();
        let mut before = 0;
        let length = i128::from(cue.span.length().0.max(0));
        let at = |share: usize| {
            let share = length * share as i128 / total.max(1) as i128;
            cue.span.start + Micros(i64::try_from(share).unwrap_or(0))
        };
        for text in texts {
            let after = before + columns(text) + 1;
            push_parts(text, Span::new(at(before), at(after)), false, &mut words);
            before = after;
        }
        return words;
    }
    let mut rest = cue.text.as_str();
    for word in &cue.words {
        // The cue's text tells which words have no space between them.
        let place = rest.find(word.text.as_str());
        let glued = place == Some(0) && !words.is_empty();
        rest = place.map_or(rest, |place| &rest[place + word.text.len()..]);
        push_parts(&word.text, word.span, glued, &mut words);
    }
    words
}

fn push_parts(text: &str, span: Span, glued: bool, words: &mut Vec<Word>) {
    let text: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut part = String::new();
    let mut is_glued = glued;
    for character in text.chars() {
        if columns(&part) + columns_of(character) > COLUMNS {
            let columns = columns(&part);
            words.push(Word { text: std::mem::take(&mut part), columns, span, glued: is_glued });
            is_glued = true;
        }
        part.push(character);
    }
    if !part.is_empty() {
        let columns = columns(&part);
        words.push(Word { text: part, columns, span, glued: is_glued });
    }
}

/// How wide text is: East Asian characters take two columns.
fn columns(text: &str) -> usize {
    text.chars().map(columns_of).sum()
}

fn columns_of(character: char) -> usize {
    match u32::from(character) {
        0x0300..=0x036f | 0x200b..=0x200f => 0,
        0x1100..=0x115f
        | 0x2e80..=0xa4cf
        | 0xac00..=0xd7a3
        | 0xf900..=0xfaff
        | 0xfe30..=0xfe6f
        | 0xff00..=0xff60
        | 0x1_f300..=0x1_faff
        | 0x2_0000..=0x3_fffd => 2,
        _ => 1,
    }
}

/// How wide words are in one line.
fn width(words: &[Word]) -> usize {
    let spaces = words.iter().skip(1).filter(|word| !word.glued).count();
    words.iter().map(|word| word.columns).sum::<usize>() + spaces
}

fn line(words: &[Word]) -> String {
    let mut line = String::new();
    for word in words {
        if !line.is_empty() && !word.glued {
            line.push(' ');
        }
        line.push_str(&word.text);
    }
    line
}

/// How bad it is to break between two words; 0 is best.
fn break_cost(before: &Word, after: &Word) -> usize {
    let begins = |word: &Word| is_listed(&word.text, BEGINNERS);
    let last = before.text.trim_end_matches(['"', '”', '’', ')', '»']).chars().last();
    match last {
        Some('.' | '!' | '?' | '…' | '。' | '！' | '？') => 0,
        Some(';' | ':' | '；' | '：') => 4,
        Some(',' | '，' | '、' | '–' | '—') => 8,
        _ if after.span.start - before.span.end >= PAUSE => 4,
        _ if after.glued && !before.text.is_ascii() => 20,
        _ if after.glued => 60,
        // It belongs to what follows; where that is another one, as in "for as long", less so.
        _ if begins(before) && begins(after) => 24,
        _ if begins(before) => 40,
        _ if begins(after) => 14,
        _ if is_listed(&before.text, LEADERS) => 40,
        _ => 24,
    }
}

fn is_listed(text: &str, list: &[&str]) -> bool {
    let bare = text.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase();
    list.contains(&bare.as_str())
}

/// Words that begin a clause or a phrase: a line may well begin with them, and must not end with them.
const BEGINNERS: &[&str] = &[
    "and", "but", "or", "nor", "so", "because", "that", "which", "who", "when", "where", "while",
    "if", "than", "as", "with", "for", "to", "in", "on", "at", "from", "of", "by", "into", "upon",
    "without", "between", "through", "until", "although", "und", "oder", "aber", "dass", "weil",
    "wenn", "mit", "für", "von", "im", "am", "bei", "zum", "zur", "et", "ou", "mais", "que", "qui",
    "de", "du", "au", "aux", "dans", "pour", "avec", "sur", "y", "o", "pero", "porque", "del",
    "al", "con", "por", "para", "e", "mas", "com",
];
/// Words that belong to the next: a line must not end with them.
const LEADERS: &[&str] = &[
    "a", "an", "the", "my", "your", "his", "her", "its", "our", "their", "this", "these", "those",
    "no", "very", "i", "he", "she", "we", "they", "it", "is", "are", "was", "were", "be", "not",
    "thy", "thine", "mr", "mrs", "dr", "der", "die", "das", "den", "dem", "ein", "eine", "einen",
    "einem", "einer", "le", "la", "les", "un", "une", "el", "los", "las", "una", "os", "um", "uma",
];

/// Divides a cue's words among subtitles: the cheapest way, found from the end backwards.
fn parts(words: &[Word]) -> Vec<&[Word]> {
    /// Fewer subtitles are better, but not at the price of a bad break.
    const EACH: usize = 30;
    /// A cue is short, but a broken one may not be.
    const MOST_WORDS: usize = 64;
    let count = words.len();
    let mut best: Vec<(usize, usize)> = vec![(usize::MAX, count); count + 1];
    best[count] = (0, count);
    for start in (0..count).rev() {
        for end in start + 1..=count.min(start + MOST_WORDS) {
            let part = &words[start..end];
            if best_break(part).is_none() {
                break;
            }
            let length = words[end - 1].span.end - words[start].span.start;
            let too_long = if length > LONGEST { 50 } else { 0 };
            let cut = if end < count { 2 * break_cost(&words[end - 1], &words[end]) } else { 0 };
            let pauses =
                part.windows(2).filter(|pair| pair[1].span.start - pair[0].span.end >= PAUSE);
            let uneven = if width(part) < 15 { 15 - width(part) } else { 0 };
            let cost = EACH + too_long + cut + 40 * pauses.count() + uneven;
            let total = cost.saturating_add(best[end].0);
            if total < best[start].0 {
                best[start] = (total, end);
            }
        }
    }
    let mut parts = Vec::new();
    let mut start = 0;
    while start < count {
        let end = best[start].1;
        parts.push(&words[start..end]);
        start = end;
    }
    parts
}

/// Where the words are broken into two lines: `Some(len)` where one line is enough, `None` where two are
/// not.
fn best_break(words: &[Word]) -> Option<usize> {
    if width(words) <= COLUMNS {
        return Some(words.len());
    }
    (1..words.len())
        .filter(|&at| width(&words[..at]) <= COLUMNS && width(&words[at..]) <= COLUMNS)
        .min_by_key(|&at| {
            let (upper, lower) = (width(&words[..at]), width(&words[at..]));
            2 * break_cost(&words[at - 1], &words[at]) + upper.abs_diff(lower)
        })
}

fn lines(words: &[Word]) -> Vec<String> {
    let at = best_break(words).unwrap_or(words.len());
    [&words[..at], &words[at..]]
        .into_iter()
        .filter(|part| !part.is_empty())
        .map(line)
        .take(LINES)
        .collect()
}

/// Lengthens what is too short to be read, into the pause after it, and parts what would overlap.
fn give_time(subtitles: &mut [Subtitle]) {
    let mut floor = Timestamp(i64::MIN);
    for at in 0..subtitles.len() {
        let next = subtitles.get(at + 1).map(|next| next.span.start);
        let subtitle = &mut subtitles[at];
        let start = subtitle.span.start.max(floor);
        let columns: usize = subtitle.lines.iter().map(|line| columns(line)).sum();
        let to_read = Micros(columns as i64 * 1_000_000 / COLUMNS_A_SECOND);
        let wanted = start + to_read.max(SHORTEST).min(LONGEST);
        let said = subtitle.span.end.min(start + LONGEST.max(to_read));
        let mut end = said.max(wanted).max(start + GAP);
        if let Some(next) = next {
            // One that begins at once takes over without a gap.
            let room = if next - GAP > start + GAP { next - GAP } else { next };
            end = end.min(room.max(start));
        }
        // Two at one instant: each has its moment.
        end = end.max(start + Micros(1_000));
        subtitle.span = Span::new(start, end);
        floor = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::{CueKind, TimedWord};
    use proptest::prelude::*;

    fn cue(start_ms: i64, words: &[(&str, i64)]) -> Cue {
        let mut at = start_ms;
        let timed: Vec<TimedWord> = words
            .iter()
            .map(|&(text, length)| {
                let start = Timestamp::from_millis(at);
                at += length;
                let span = Span::new(start, Timestamp::from_millis(at));
                TimedWord { span, text: text.to_owned(), confidence: None }
            })
            .collect();
        let texts: Vec<&str> = words.iter().map(|&(text, _)| text).collect();
        Cue {
            span: Span::new(Timestamp::from_millis(start_ms), Timestamp::from_millis(at)),
            text: texts.join(" "),
            kind: CueKind::Speech,
            language: Some("en".to_owned()),
            track: "speech:1".to_owned(),
            confidence: None,
            words: timed,
            speaker: None,
        }
    }

    fn spoken(text: &str) -> Cue {
        cue(0, &text.split_whitespace().map(|word| (word, 300)).collect::<Vec<_>>())
    }

    fn lines_of(text: &str) -> Vec<Vec<String>> {
        subtitles(&[spoken(text)]).into_iter().map(|subtitle| subtitle.lines).collect()
    }

    #[test]
    fn lines_break_at_clauses() {
        assert_eq!(lines_of("A short one."), [["A short one."]]);
        assert_eq!(
            lines_of("When the rain had stopped at last, we went out to look at the garden."),
            [["When the rain had stopped at last,", "we went out to look at the garden."]]
        );
        assert_eq!(
            lines_of("He never thought that anyone would come to see the old house again"),
            [["He never thought that anyone would come", "to see the old house again"]]
        );
        assert_eq!(
            lines_of("I've been alone for as long as I can remember."),
            [["I've been alone for as long", "as I can remember."]]
        );
        // "with" begins what follows it.
        assert_eq!(
            lines_of(
                "But thou, contracted to thine own bright eyes, feet thy light's flame with \
                 self-substantial fuel, making a famine where abundance lies, thy self thy foe,"
            ),
            [
                ["But thou, contracted", "to thine own bright eyes,"],
                ["feet thy light's flame", "with self-substantial fuel,"],
                ["making a famine where abundance lies,", "thy self thy foe,"]
            ]
        );
    }

    #[test]
    fn a_long_sentence_is_several_subtitles_broken_at_clauses() {
        let found = lines_of(
            "In the only sense with which we are at present concerned, printing differs from most, if \
             not from all, the arts and crafts.",
        );
        let last: Vec<_> = found.iter().map(|lines| lines.last().unwrap().as_str()).collect();
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(last[0].ends_with(','), "{found:?}");
    }

    #[test]
    fn short_ones_stay_on_the_screen_while_nothing_follows() {
        let found = subtitles(&[
            cue(0, &[("Yes.", 200)]),
            cue(5_000, &[("No.", 200)]),
            cue(5_300, &[("So.", 200)]),
        ]);
        let spans: Vec<_> =
            found.iter().map(|s| (s.span.start.0 / 1_000, s.span.end.0 / 1_000)).collect();
        assert_eq!(spans, [(0, 1_000), (5_000, 5_220), (5_300, 6_300)]);
    }

    #[test]
    fn wide_characters_count_twice_and_long_words_are_broken() {
        let mut chinese = spoken("x");
        chinese.text = "我".repeat(50);
        chinese.words.clear();
        let found = subtitles(&[chinese]);
        assert!(found.iter().flat_map(|s| &s.lines).all(|line| line.chars().count() <= 21));
        let total: usize =
            found.iter().flat_map(|s| &s.lines).map(|line| line.chars().count()).sum();
        assert_eq!(total, 50);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn any_cues_become_subtitles_that_fit_and_keep_every_word(
            cues in prop::collection::vec(
                (-50i64..3_000, prop::collection::vec(("[a-z,.é我]{1,60}|[a-z]{1,9}[,.]?|the|with|for", 0i64..900), 0..40), any::<bool>()),
                0..6,
            ),
        ) {
            let mut at = 0;
            let mut all = Vec::new();
            for (pause, words, timed) in &cues {
                at += pause;
                let words: Vec<(&str, i64)> = words.iter().map(|(word, length)| (&word[..], *length)).collect();
                let mut cue = cue(at, &words);
                at = cue.span.end.0 / 1_000;
                if !timed {
                    cue.words.clear();
                }
                all.push(cue);
            }
            let found = subtitles(&all);
            for subtitle in &found {
                prop_assert!((1..=LINES).contains(&subtitle.lines.len()));
                prop_assert!(subtitle.lines.iter().all(|line| columns(line) <= COLUMNS), "{:?}", subtitle);
                prop_assert!(subtitle.span.start < subtitle.span.end);
                prop_assert!(subtitle.span.length() <= LONGEST, "{:?}", subtitle);
            }
            for pair in found.windows(2) {
                prop_assert!(pair[0].span.end <= pair[1].span.start, "{:?}", pair);
            }
            // Each stands for a second at least and for a 20th of a second a column, or until the next one comes.
            for (at, subtitle) in found.iter().enumerate() {
                let columns: usize = subtitle.lines.iter().map(|line| columns(line)).sum();
                let to_read = Micros(columns as i64 * 50_000).max(Micros(1_000_000));
                let is_followed = found.get(at + 1).is_some_and(|next| next.span.start - subtitle.span.end <= GAP);
                prop_assert!(subtitle.span.length() >= to_read || is_followed, "{:?}", &found[at..]);
            }
            // Each word is there once and in order, and in one piece unless it is longer than a line.
            let mut shown = found.iter().flat_map(|s| &s.lines).flat_map(|line| line.split(' '));
            for word in all.iter().flat_map(|cue| cue.text.split(' ')).filter(|word| !word.is_empty()) {
                let mut whole = shown.next().unwrap_or_default().to_owned();
                while columns(word) > COLUMNS && whole.len() < word.len() {
                    whole.push_str(shown.next().unwrap_or("?"));
                }
                prop_assert_eq!(whole, word);
            }
            prop_assert_eq!(shown.next(), None);
        }
    }
}
