//! Search by words: in the cues, and in the captions.
//!
//! Any of the query's terms matches. A text's score is the share of the query's terms that it
//! holds, each weighed by its inverse document frequency (Robertson and Spärck Jones): 1 where it
//! holds them all. Unlike BM25's, the score means the same for every query, so it can be shown and
//! cut off; among texts of the same score the shorter comes first, which is what BM25 would do.

use std::sync::Arc;

use rusqlite::{Connection, params};
use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::is_combining_mark;

use super::folded::folded;
use super::known::{KnownTexts, Posting};
use super::rows;
use crate::error::Result;
use crate::media::TimedWord;

/// A term in more texts than this is common. Not all of them are read: it is looked for in those
/// that hold a rarer term, or where there is none, beside the other common ones.
pub(super) const COMMON: usize = 2_000;

/// Terms of a query that are used; a mask has as many bits.
const MOST_TERMS: usize = 64;

/// An index of words, and the texts that it is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WordIndex {
    /// The FTS5 table.
    pub name: &'static str,
    pub table: &'static str,
    /// Of both tables.
    pub column: &'static str,
}

impl WordIndex {
    pub const CUES: WordIndex = WordIndex { name: "spoken", table: "cues", column: "folded" };
    pub const CAPTIONS: WordIndex =
        WordIndex { name: "written", table: "readings", column: "caption" };
    pub const ALL: [WordIndex; 2] = [Self::CUES, Self::CAPTIONS];

    /// The keys of the first `most` rows that an FTS5 expression matches.
    pub fn holding(&self, sql: &Connection, expression: &str, most: usize) -> Result<Vec<i64>> {
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let find = format!("SELECT rowid FROM {0} WHERE {0} MATCH ?1 LIMIT ?2", self.name);
        rows::all(sql, &find, params![expression, most], |row| row.get(0))
    }
}

/// A text that holds some of the query's terms.
#[derive(Debug, Clone, Copy)]
pub(super) struct Match {
    /// Of the row that it stands in.
    pub key: i64,
    /// The terms that it holds, a bit for each.
    pub terms: u64,
}

/// The texts that hold terms of a query.
#[derive(Debug)]
pub(super) struct Matches {
    pub index: WordIndex,
    /// In order of score, best first.
    pub texts: Vec<Match>,
    weights: Vec<f32>,
}

impl Matches {
    /// `most`: of a term that more texts hold, only some are looked at. [`COMMON`] where any hit will
    /// do; `usize::MAX` where most of them may be filtered out.
    pub fn find(
        sql: &Connection,
        index: WordIndex,
        query: &str,
        most: usize,
        known: &mut KnownTexts,
    ) -> Result<Self> {
        let last = format!("SELECT coalesce(max(key), 0) FROM {}", index.table);
        let texts: i64 = rows::one(sql, &last, [])?;
        let terms = terms(query);
        let mut weights = Vec::new();
        let mut pairs: Vec<(i64, u64)> = Vec::new();
        let mut rare: Vec<&str> = Vec::new();
        let mut common: Vec<Common<'_>> = Vec::new();
        for (bit, term) in terms.iter().enumerate() {
            let mut posting = known.posting(sql, index, term)?;
            if !posting.is_whole && most > posting.keys.len() {
                let keys = index.holding(sql, term, usize::MAX)?;
                posting = Arc::new(Posting { keys, is_whole: true });
            }
            let keys = &posting.keys[..posting.keys.len().min(most)];
            let mut with = posting.keys.len() as i64;
            if !posting.is_whole {
                // Rows come in order of key, so the last one tells how far apart they lie.
                let last = posting.keys.last().copied().unwrap_or(1).max(1);
                with = (i128::from(with) * i128::from(texts) / i128::from(last)) as i64;
            }
            weights.push(weight(texts, with));
            pairs.extend(keys.iter().map(|key| (*key, 1 << bit)));
            if posting.keys.len() > most {
                common.push(Common { bit: 1 << bit, term, posting });
            } else if !posting.keys.is_empty() {
                rare.push(term);
            }
        }
        if !rare.is_empty() {
            // A text with common terms only is not looked for.
            let bits = common.iter().fold(0, |bits, common| bits | common.bit);
            pairs.retain(|(_, bit)| bit & bits == 0);
            let mut with_rare: Vec<i64> = pairs.iter().map(|(key, _)| *key).collect();
            with_rare.sort_unstable();
            with_rare.dedup();
            let rare = rare.join(" OR ");
            for Common { bit, term, posting } in &common {
                let held = if posting.is_whole {
                    in_both(&with_rare, &posting.keys)
                } else {
                    index.holding(sql, &format!("{term} AND ({rare})"), usize::MAX)?
                };
                pairs.extend(held.into_iter().map(|key| (key, *bit)));
            }
        } else if common.len() > 1 {
            let held = in_all(sql, index, &common, most)?;
            pairs.extend(
                held.into_iter().flat_map(|key| common.iter().map(move |of| (key, of.bit))),
            );
        }
        pairs.sort_unstable();
        let mut matches = Matches { index, texts: Vec::new(), weights };
        for (key, bit) in pairs {
            match matches.texts.last_mut() {
                Some(last) if last.key == key => last.terms |= bit,
                _ => matches.texts.push(Match { key, terms: bit }),
            }
        }
        let scored = matches.texts.iter().map(|found| (matches.score(found.terms), *found));
        let mut scored: Vec<(f32, Match)> = scored.collect();
        scored
            .sort_unstable_by(|(a, one), (b, other)| b.total_cmp(a).then(one.key.cmp(&other.key)));
        matches.texts = scored.into_iter().map(|(_, found)| found).collect();
        Ok(matches)
    }

    /// The share of the query that these terms are, 0 to 1.
    pub fn score(&self, terms: u64) -> f32 {
        score(&self.weights, terms)
    }
}

/// A term that many texts hold.
struct Common<'a> {
    bit: u64,
    term: &'a str,
    posting: Arc<Posting>,
}

/// The first `most` texts that hold all of these terms.
fn in_all(
    sql: &Connection,
    index: WordIndex,
    common: &[Common<'_>],
    most: usize,
) -> Result<Vec<i64>> {
    if common.iter().any(|common| !common.posting.is_whole) {
        let all: Vec<&str> = common.iter().map(|common| common.term).collect();
        return index.holding(sql, &all.join(" AND "), most);
    }
    let mut postings: Vec<&[i64]> = common.iter().map(|of| &of.posting.keys[..]).collect();
    postings.sort_by_key(|keys| keys.len());
    let mut held = postings.first().map_or(Vec::new(), |keys| keys.to_vec());
    for keys in postings.iter().skip(1) {
        held = in_both(&held, keys);
    }
    held.truncate(most);
    Ok(held)
}

/// What of `few` is in `many`, too; both are in order.
fn in_both(few: &[i64], mut many: &[i64]) -> Vec<i64> {
    let mut both = Vec::new();
    for key in few {
        // The next one is near: the search widens from where the last one ended.
        let mut reach = 1;
        while many.get(reach).is_some_and(|other| other < key) {
            reach *= 2;
        }
        let within = &many[..many.len().min(reach + 1)];
        many = &many[within.partition_point(|other| other < key)..];
        if many.first() == Some(key) {
            both.push(*key);
        }
    }
    both
}

fn score(weights: &[f32], terms: u64) -> f32 {
    let held = weights.iter().enumerate().filter(|(bit, _)| terms >> bit & 1 == 1);
    let all: f32 = weights.iter().sum();
    // Summed in the same order, so that all of the terms make exactly 1.
    held.map(|(_, weight)| weight).sum::<f32>() / all.max(f32::MIN_POSITIVE)
}

/// Inverse document frequency, never negative: `ln(1 + (N - n + 0.5) / (n + 0.5))`.
fn weight(texts: i64, with: i64) -> f32 {
    let (texts, with) = (texts as f64, with as f64);
    ((texts - with + 0.5).max(0.0) / (with + 0.5)).ln_1p() as f32
}

/// The query's terms as FTS5 strings: words, and what stands in quotation marks as phrases. All is
/// quoted, so nothing in a query is an operator.
fn terms(query: &str) -> Vec<String> {
    let mut terms: Vec<String> = Vec::new();
    for (place, part) in query.split('"').enumerate() {
        let phrase = place % 2 == 1;
        let words = if phrase { vec![part] } else { part.split_whitespace().collect() };
        for word in words {
            // FTS5's unicode61 tokens are letters, digits and marks; a term without is no term.
            // Folding makes quotation marks of their wider kin.
            let word = folded(&word.replace('\0', " ")).to_lowercase().replace('"', " ");
            let word = format!("\"{}\"", word.trim());
            if word.contains(char::is_alphanumeric) && !terms.contains(&word) {
                terms.push(word);
            }
        }
    }
    terms.truncate(MOST_TERMS);
    terms
}

/// The words of timed text that a query names, in order: those of single terms, and those of phrases where
/// they follow each other.
pub(super) fn named<'a>(query: &str, said: &'a [TimedWord]) -> Vec<&'a TimedWord> {
    let (mut owners, mut all) = (Vec::new(), Vec::new());
    for (place, word) in said.iter().enumerate() {
        for token in tokens(&word.text) {
            owners.push(place);
            all.push(token);
        }
    }
    let mut named = vec![false; said.len()];
    for term in terms(query) {
        let term = tokens(&term);
        for (at, _) in all.windows(term.len().max(1)).enumerate().filter(|(_, some)| *some == term)
        {
            owners[at..at + term.len()].iter().for_each(|place| named[*place] = true);
        }
    }
    said.iter().zip(named).filter_map(|(word, is_named)| is_named.then_some(word)).collect()
}

/// Text as FTS5's tokenizer parts it: what it holds of letters, digits and their marks, in small letters
/// without accents.
fn tokens(text: &str) -> Vec<String> {
    let is_accent = |letter: &char| ('\u{300}'..='\u{36f}').contains(letter);
    let bare: String = folded(text).nfd().filter(|letter| !is_accent(letter)).nfc().collect();
    let is_part = |letter: char| letter.is_alphanumeric() || is_combining_mark(letter);
    let parts = bare.split(|letter| !is_part(letter)).filter(|part| !part.is_empty());
    parts.map(str::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::{Span, Timestamp};
    use proptest::prelude::*;

    #[test]
    fn a_query_has_words_and_phrases_and_no_operators() {
        assert_eq!(terms("red  Car"), [r#""red""#, r#""car""#]);
        assert_eq!(terms(r#"a "red car" a"#), [r#""a""#, r#""red car""#]);
        assert_eq!(terms("NEAR(x* -y) OR ^"), [r#""near(x*""#, r#""-y)""#, r#""or""#]);
        assert_eq!(terms(r#"" "" - !"#), Vec::<String>::new());
        assert_eq!(terms("A＂"), [r#""a""#]);
        assert_eq!(terms("東京 ＯＫ"), [r#""東 京""#, r#""ok""#]);
    }

    #[test]
    fn words_are_named_by_terms_and_phrases() {
        let said: Vec<TimedWord> = "Der Café-Besitzer, ein Mann, sah den roten Mann. 東京 へ"
            .split(' ')
            .map(|text| TimedWord {
                span: Span::new(Timestamp(0), Timestamp(1)),
                text: text.to_owned(),
                confidence: None,
            })
            .collect();
        for (query, found) in [
            ("mann", &["Mann,", "Mann."][..]),
            ("\"roten mann\"", &["roten", "Mann."]),
            ("cafe BESITZER", &["Café-Besitzer,"]),
            ("京へ", &["東京", "へ"]),
            ("zebra ?", &[]),
        ] {
            let texts: Vec<&str> = named(query, &said).iter().map(|word| &word.text[..]).collect();
            assert_eq!(texts, found, "{query}");
        }
    }

    proptest! {
        #[test]
        fn what_is_in_both_is_in_each(
            few in prop::collection::btree_set(0i64..60, 0..20),
            many in prop::collection::btree_set(0i64..60, 0..50),
        ) {
            let both: Vec<i64> = few.intersection(&many).copied().collect();
            let (few, many) = (Vec::from_iter(few), Vec::from_iter(many));
            prop_assert_eq!(in_both(&few, &many), both);
        }
    }

    #[test]
    fn a_rare_term_weighs_more() {
        assert!(weight(1_000, 1) > weight(1_000, 500));
        assert!(weight(1_000, 1_000) >= 0.0);
        assert!(weight(0, 0) > 0.0);
    }
}
