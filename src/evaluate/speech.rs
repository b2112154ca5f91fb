//! How well speech is understood: word error rates, where words begin, and words for noise.
//!
//! Texts are compared after [`normalized`]. A word error rate is the least number of words that are
//! substituted, left out and put in, over all files of a set together, divided by the words of the
//! reference.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use unicode_normalization::UnicodeNormalization;

use crate::error::{Error, Result};

/// One recording with what is said in it.
#[derive(Debug, Clone, PartialEq)]
pub struct Recording {
    /// From the folder of the collection.
    pub path: String,
    pub set: String,
    /// A code; `-` where nobody speaks.
    pub language: String,
    /// Empty where nobody speaks.
    pub text: String,
    /// Words with the seconds at which they begin, where those are known.
    pub starts: Vec<(String, f64)>,
}

impl Recording {
    pub fn is_noise(&self) -> bool {
        self.text.is_empty()
    }
}

/// Reads `MANIFEST.tsv` of a folder: recordings with a transcript, and noises. Others are left out, with
/// the words' times of those that have a `.align` file (start, end, word; 1/25000 s).
///
/// # Errors
/// `NotFound`, `InvalidInput` where it is not such a file.
pub fn recordings(folder: &Path) -> Result<Vec<Recording>> {
    let path = folder.join("MANIFEST.tsv");
    let text = read(&path)?;
    let mut lines = text.lines();
    let head: Vec<&str> = lines.next().unwrap_or_default().split('\t').collect();
    let column = |name: &str| {
        head.iter()
            .position(|column| *column == name)
            .ok_or_else(|| Error::invalid_input(format!("{} has no column {name}", path.display())))
    };
    let columns = ["path", "language", "transcript", "times_path", "set", "kind"].map(column);
    let [of_path, language, transcript, times, set, kind] = columns;
    let columns = [of_path?, language?, transcript?, times?, set?, kind?];
    let mut found = Vec::new();
    for line in lines {
        let fields: Vec<&str> = line.split('\t').collect();
        let [path, language, text, times, set, kind] =
            columns.map(|column| fields.get(column).copied().unwrap_or_default());
        if text.is_empty() && !kind.starts_with("noise") {
            continue;
        }
        let starts =
            if times.ends_with(".align") { starts(&folder.join(times))? } else { Vec::new() };
        found.push(Recording {
            path: path.to_owned(),
            set: set.to_owned(),
            language: language.to_owned(),
            text: text.to_owned(),
            starts,
        });
    }
    Ok(found)
}

/// A text of bounded length.
fn read(path: &Path) -> Result<String> {
    const MOST_BYTES: u64 = 256 << 20;
    let reading = |cause| Error::io(path, "read", cause);
    let bytes = std::fs::metadata(path).map_err(reading)?.len();
    if bytes > MOST_BYTES {
        return Err(Error::invalid_input(format!("{bytes} bytes of text are too many"))
            .in_source(path.display()));
    }
    std::fs::read_to_string(path).map_err(reading)
}

fn starts(path: &Path) -> Result<Vec<(String, f64)>> {
    const UNITS_A_SECOND: f64 = 25_000.0;
    let text = read(path)?;
    let words = text.lines().filter_map(|line| {
        let mut fields = line.split_whitespace();
        let start: f64 = fields.next()?.parse().ok()?;
        let word = fields.nth(1)?;
        (!["sil", "sp"].contains(&word)).then(|| (word.to_owned(), start / UNITS_A_SECOND))
    });
    Ok(words.collect())
}

/// What a system heard in a recording.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Heard {
    pub path: String,
    /// Each word with the seconds at which it begins.
    pub words: Vec<(String, f64)>,
}

/// A word as it is compared: `None` for the start where several stand in one that was written.
type Word = (String, Option<f64>);

/// Text as words that can be compared: compatibility forms unified, in small letters, apostrophes left
/// out, other marks taken for spaces, letters and digits parted; in English, numbers and the titles Mr,
/// Mrs and Dr in words. Chinese and Japanese text counts by characters.
pub fn normalized(text: &str, language: &str) -> Vec<String> {
    const APOSTROPHES: [char; 4] = ['\'', '’', '‘', 'ʼ'];
    let spaced = match language {
        "en" => text.replace('&', " and ").replace('%', " percent "),
        _ => text.to_owned(),
    };
    let mut words: Vec<String> = Vec::new();
    let mut word = String::new();
    for character in spaced.nfkc().flat_map(char::to_lowercase) {
        if APOSTROPHES.contains(&character) {
            continue;
        }
        let is_mark = |c: char| matches!(u32::from(c), 0x300..=0x36f);
        if !character.is_alphanumeric() && !is_mark(character) {
            // 1,000 is a number.
            if character == ',' && word.ends_with(|last: char| last.is_ascii_digit()) {
                continue;
            }
            words.extend((!word.is_empty()).then(|| std::mem::take(&mut word)));
            continue;
        }
        let digit = character.is_ascii_digit();
        let differs = word.chars().last().is_some_and(|last| last.is_ascii_digit() != digit);
        if matches!(language, "ja" | "zh") || differs {
            words.extend((!word.is_empty()).then(|| std::mem::take(&mut word)));
        }
        word.push(character);
    }
    words.extend((!word.is_empty()).then_some(word));
    if language == "en" {
        words = words.into_iter().flat_map(in_english).collect();
    }
    words
}

fn in_english(word: String) -> Vec<String> {
    let written = match word.as_str() {
        "mr" => "mister",
        "mrs" => "missus",
        "dr" => "doctor",
        _ => match word.parse::<u32>() {
            Ok(number) if word.len() <= 6 => return english_number(number),
            _ => return vec![word],
        },
    };
    vec![written.to_owned()]
}

/// A number below a million as it is read.
fn english_number(number: u32) -> Vec<String> {
    const SMALL: [&str; 20] = [
        "zero",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
        "thirteen",
        "fourteen",
        "fifteen",
        "sixteen",
        "seventeen",
        "eighteen",
        "nineteen",
    ];
    const TENS: [&str; 10] =
        ["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"];
    let with = |mut words: Vec<String>, name: &str, rest: u32| {
        words.push(name.to_owned());
        if rest > 0 {
            words.extend(english_number(rest));
        }
        words
    };
    match number {
        0..=19 => vec![SMALL[number as usize].to_owned()],
        20..=99 => with(Vec::new(), TENS[(number / 10) as usize], number % 10),
        100..=999 => with(english_number(number / 100), "hundred", number % 100),
        _ => with(english_number(number / 1_000), "thousand", number % 1_000),
    }
}

fn compared(words: &[(String, f64)], language: &str) -> Vec<Word> {
    let parts = words.iter().flat_map(|(text, start)| {
        let parts = normalized(text, language).into_iter().enumerate();
        parts.map(|(place, part)| (part, (place == 0).then_some(*start))).collect::<Vec<_>>()
    });
    parts.collect()
}

/// Cells of a table of distances that is kept whole: two texts of 4,000 words.
const MOST_CELLS: usize = 16 << 20;

/// The least errors that make one list of words out of another, and which words stand for each other:
/// Levenshtein's distance with its way. Long lists are parted where the best way crosses the middle of the
/// first (Hirschberg 1975), so that memory stays bounded.
fn aligned(reference: &[String], found: &[String]) -> (usize, Vec<(usize, usize)>) {
    let mut same = Vec::new();
    let errors = align(reference, found, (0, 0), MOST_CELLS, &mut same);
    (errors, same)
}

/// `at`: the places of the first words in the whole lists.
fn align(
    reference: &[String],
    found: &[String],
    at: (usize, usize),
    most_cells: usize,
    same: &mut Vec<(usize, usize)>,
) -> usize {
    let is_small = (reference.len() + 1).saturating_mul(found.len() + 1) <= most_cells;
    if is_small || reference.len() < 2 {
        let (errors, pairs) = align_whole(reference, found);
        same.extend(pairs.into_iter().map(|(row, column)| (row + at.0, column + at.1)));
        return errors;
    }
    let middle = reference.len() / 2;
    let (first, second) = reference.split_at(middle);
    let before = distances(first.iter(), found.iter());
    let after = distances(second.iter().rev(), found.iter().rev());
    let cut = (0..=found.len()).min_by_key(|&cut| before[cut] + after[found.len() - cut]);
    let cut = cut.unwrap_or(0);
    align(first, &found[..cut], at, most_cells, same)
        + align(second, &found[cut..], (at.0 + middle, at.1 + cut), most_cells, same)
}

/// The distance of a list from each beginning of another one.
fn distances<'a>(
    reference: impl Iterator<Item = &'a String>,
    found: impl ExactSizeIterator<Item = &'a String> + Clone,
) -> Vec<usize> {
    let mut row: Vec<usize> = (0..=found.len()).collect();
    for (place, word) in reference.enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], place + 1);
        for (column, other) in found.clone().enumerate() {
            let replaced = diagonal + usize::from(word != other);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row
}

/// With a table of all distances.
fn align_whole(reference: &[String], found: &[String]) -> (usize, Vec<(usize, usize)>) {
    let columns = found.len() + 1;
    let mut cost = vec![0_u32; (reference.len() + 1) * columns];
    for row in 0..=reference.len() {
        for column in 0..columns {
            let at = row * columns + column;
            cost[at] = match (row, column) {
                (0, column) => column as u32,
                (row, 0) => row as u32,
                _ => {
                    let differs = u32::from(reference[row - 1] != found[column - 1]);
                    (cost[at - columns - 1] + differs)
                        .min(cost[at - columns] + 1)
                        .min(cost[at - 1] + 1)
                }
            };
        }
    }
    let (mut row, mut column) = (reference.len(), found.len());
    let errors = cost[row * columns + column] as usize;
    let mut same = Vec::new();
    while row > 0 && column > 0 {
        let at = row * columns + column;
        let differs = u32::from(reference[row - 1] != found[column - 1]);
        if cost[at] == cost[at - columns - 1] + differs {
            if differs == 0 {
                same.push((row - 1, column - 1));
            }
            (row, column) = (row - 1, column - 1);
        } else if cost[at] == cost[at - columns] + 1 {
            row -= 1;
        } else {
            column -= 1;
        }
    }
    same.reverse();
    (errors, same)
}

/// Errors among words.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Rate {
    pub words: usize,
    pub errors: usize,
    /// Errors a hundred words.
    pub percent: f64,
}

impl Rate {
    fn add(&mut self, words: usize, errors: usize) {
        self.words += words;
        self.errors += errors;
        self.percent = 100.0 * self.errors as f64 / self.words.max(1) as f64;
    }
}

/// One set of recordings in one language.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct SetReport {
    pub set: String,
    pub language: String,
    pub files: usize,
    pub errors: Rate,
    /// Of the system beside it, and its errors where this one is the reference.
    pub beside: Option<Rate>,
    pub between: Option<Rate>,
}

impl SetReport {
    fn add(&mut self, words: &[String], heard: &[String], beside: Option<&[String]>) {
        self.files += 1;
        self.errors.add(words.len(), aligned(words, heard).0);
        if let Some(beside) = beside {
            let errors = aligned(words, beside).0;
            self.beside.get_or_insert_default().add(words.len(), errors);
            let errors = aligned(beside, heard).0;
            self.between.get_or_insert_default().add(beside.len(), errors);
        }
    }
}

/// How near to the truth words begin that were understood.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Starts {
    /// Of the reference, in files with times.
    pub words: usize,
    pub recognized: usize,
    /// Percent of those recognized that begin within 0.2 s of the truth.
    pub within_200_ms: f64,
    pub median_ms: f64,
    /// Positive: too late.
    pub mean_ms: f64,
}

/// Words where nobody speaks.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Noise {
    pub files: usize,
    pub with_words: usize,
    /// Which, and what was heard.
    pub heard: Vec<(String, String)>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    pub sets: Vec<SetReport>,
    pub english: SetReport,
    pub other_languages: SetReport,
    pub starts: Starts,
    pub starts_beside: Option<Starts>,
    pub noise: Noise,
    pub noise_beside: Option<Noise>,
    /// Files of which nothing was heard since they could not be read, with the reason.
    pub failed: Vec<(String, String)>,
    pub sound_secs: f64,
    pub taken_secs: f64,
}

/// Compares what was heard with what was said, and with what another system heard, where that is given.
pub fn report(recordings: &[Recording], heard: &[Heard], beside: Option<&[Heard]>) -> Report {
    let by_path = |all: &[Heard]| -> BTreeMap<String, Vec<(String, f64)>> {
        all.iter().map(|heard| (heard.path.clone(), heard.words.clone())).collect()
    };
    let (heard, beside) = (by_path(heard), beside.map(by_path));
    let mut report = Report::default();
    report.english.set = "all English".to_owned();
    report.english.language = "en".to_owned();
    report.other_languages.set = "all other languages".to_owned();
    let mut sets: BTreeMap<(String, String), SetReport> = BTreeMap::new();
    let (mut offsets, mut offsets_beside) = (Offsets::default(), Offsets::default());
    for recording in recordings {
        let language = recording.language.as_str();
        let of = |all: &BTreeMap<String, Vec<(String, f64)>>| {
            compared(all.get(&recording.path).map_or(&[], |words| &words[..]), language)
        };
        let ours = of(&heard);
        let theirs = beside.as_ref().map(of);
        if recording.is_noise() {
            report.noise.add(recording, &ours);
            if let Some(theirs) = &theirs {
                report.noise_beside.get_or_insert_default().add(recording, theirs);
            }
            continue;
        }
        let texts = |words: &[Word]| words.iter().map(|(text, _)| text.clone()).collect::<Vec<_>>();
        let words = normalized(&recording.text, language);
        let (our_texts, their_texts) = (texts(&ours), theirs.as_deref().map(texts));
        let set =
            sets.entry((recording.set.clone(), language.to_owned())).or_insert_with(|| SetReport {
                set: recording.set.clone(),
                language: language.to_owned(),
                ..Default::default()
            });
        set.add(&words, &our_texts, their_texts.as_deref());
        let all = match language {
            "en" => &mut report.english,
            _ => &mut report.other_languages,
        };
        all.add(&words, &our_texts, their_texts.as_deref());
        offsets.add(&recording.starts, &ours);
        if let Some(theirs) = &theirs {
            offsets_beside.add(&recording.starts, theirs);
        }
    }
    report.sets = sets.into_values().collect();
    report.starts = offsets.report();
    report.starts_beside = beside.is_some().then(|| offsets_beside.report());
    report
}

impl Noise {
    fn add(&mut self, recording: &Recording, words: &[Word]) {
        self.files += 1;
        if !words.is_empty() {
            self.with_words += 1;
            let texts: Vec<&str> = words.iter().map(|(text, _)| text.as_str()).collect();
            self.heard.push((recording.path.clone(), texts.join(" ")));
        }
    }
}

#[derive(Default)]
struct Offsets {
    words: usize,
    secs: Vec<f64>,
}

impl Offsets {
    fn add(&mut self, truth: &[(String, f64)], found: &[Word]) {
        let reference: Vec<String> = truth.iter().map(|(word, _)| word.clone()).collect();
        let texts: Vec<String> = found.iter().map(|(text, _)| text.clone()).collect();
        self.words += reference.len();
        for (a, b) in aligned(&reference, &texts).1 {
            if let Some(start) = found[b].1 {
                self.secs.push(start - truth[a].1);
            }
        }
    }

    fn report(mut self) -> Starts {
        self.secs.sort_by(|a, b| a.abs().total_cmp(&b.abs()));
        let count = self.secs.len();
        let near = self.secs.iter().filter(|secs| secs.abs() <= 0.2).count();
        Starts {
            words: self.words,
            recognized: count,
            within_200_ms: 100.0 * near as f64 / count.max(1) as f64,
            median_ms: self.secs.get(count / 2).map_or(0.0, |secs| secs.abs() * 1e3),
            mean_ms: 1e3 * self.secs.iter().sum::<f64>() / count.max(1) as f64,
        }
    }
}

/// Reads what another system heard: one JSON object a line, `{"path": …, "words": [[word, start_secs], …]}`.
///
/// # Errors
/// `InvalidInput`, with the line.
pub fn read_heard(path: &Path) -> Result<Vec<Heard>> {
    let text = read(path)?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(number, line)| {
            serde_json::from_str(line).map_err(|cause| {
                let place = format!("{}, line {}", path.display(), number + 1);
                Error::invalid_input(format!("{place}: not what a system heard")).caused_by(cause)
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn texts_are_compared_by_what_is_said() {
        for (text, language, expected) in [
            (
                "Mr. Quilter's 2 dogs & 1,021 cats!",
                "en",
                "mister quilters two dogs and one thousand twenty one cats",
            ),
            ("bin blue at L8, please", "en", "bin blue at l eight please"),
            ("Größe: 20 %", "de", "größe 20"),
            ("ﬁn é", "fr", "fin é"),
            ("猫だ。", "ja", "猫 だ"),
            ("well-known", "en", "well known"),
        ] {
            assert_eq!(normalized(text, language).join(" "), expected, "{text}");
        }
    }

    #[test]
    fn errors_are_counted_once() {
        assert_eq!(aligned(&words("a b c d"), &words("a x c")).0, 2);
        assert_eq!(aligned(&words("a b"), &words("a b")).1, [(0, 0), (1, 1)]);
        assert_eq!(aligned(&[], &words("a b")).0, 2);
        assert_eq!(aligned(&words("a b"), &[]).0, 2);
    }

    #[test]
    fn a_report_counts_by_set_and_language_and_finds_invented_words() {
        let recording =
            |path: &str, language: &str, text: &str, starts: &[(&str, f64)]| Recording {
                path: path.to_owned(),
                set: "s".to_owned(),
                language: language.to_owned(),
                text: text.to_owned(),
                starts: starts.iter().map(|&(word, at)| (word.to_owned(), at)).collect(),
            };
        let all = [
            recording("1", "en", "bin blue now", &[("bin", 0.5), ("blue", 1.0), ("now", 2.0)]),
            recording("2", "de", "ja gut", &[]),
            recording("3", "-", "", &[]),
        ];
        let heard = |path: &str, words: &[(&str, f64)]| Heard {
            path: path.to_owned(),
            words: words.iter().map(|&(word, at)| (word.to_owned(), at)).collect(),
        };
        let ours = [
            heard("1", &[("Bin", 0.6), ("glue", 1.0), ("now.", 2.5)]),
            heard("3", &[("Thank", 0.0), ("you.", 0.1)]),
        ];
        let report = report(&all, &ours, Some(&ours));
        assert_eq!((report.english.errors.words, report.english.errors.errors), (3, 1));
        assert_eq!(report.other_languages.errors.percent, 100.0);
        assert_eq!(report.english.between.unwrap().errors, 0);
        assert_eq!((report.starts.recognized, report.starts.within_200_ms), (2, 50.0));
        assert_eq!(report.noise.heard, [("3".to_owned(), "thank you".to_owned())]);
        assert_eq!(report.sets.len(), 2);
    }

    proptest! {
        #[test]
        fn distance_is_symmetric_and_what_is_same_is_in_order(
            a in prop::collection::vec("[ab]", 0..12), b in prop::collection::vec("[ab]", 0..12),
        ) {
            let (errors, same) = aligned(&a, &b);
            prop_assert_eq!(errors, aligned(&b, &a).0);
            prop_assert!(errors <= a.len().max(b.len()) && errors >= a.len().abs_diff(b.len()));
            prop_assert!(same.iter().all(|&(x, y)| a[x] == b[y]));
            prop_assert!(same.windows(2).all(|two| two[0].0 < two[1].0 && two[0].1 < two[1].1));
            // In parts, as long texts are.
            let mut parted = Vec::new();
            prop_assert_eq!(align(&a, &b, (0, 0), 4, &mut parted), errors);
            prop_assert!(parted.iter().all(|&(x, y)| a[x] == b[y]));
            prop_assert!(parted.windows(2).all(|two| two[0].0 < two[1].0 && two[0].1 < two[1].1));
        }

        #[test]
        fn any_text_is_normalized(text in any::<String>()) {
            for word in normalized(&text, "en") {
                prop_assert!(!word.is_empty() && !word.contains(' '));
            }
        }
    }
}
