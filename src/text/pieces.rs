//! Word pieces (Wu and others, 2016): what the transformer reads and writes words as.
//!
//! Words are those of [`caption_words`]; the frequent ones are one piece, others are put together from
//! the beginning of a word and `##` continuations. Single characters are pieces too, so that only a
//! script that was never seen is unknown.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use tokenizers::Model;
use tokenizers::models::wordpiece::WordPiece;

use super::caption_words;
use crate::error::{Error, Result};

/// What fills up a batch.
pub const PAD: u32 = 0;
/// A word with characters that are no pieces.
pub const UNKNOWN: u32 = 1;
/// The first token of what is read: its state stands for all of it.
pub const CLS: u32 = 2;
/// The end of what is read, and of what is written.
pub const SEP: u32 = 3;
/// A word that is to be guessed.
pub const MASK: u32 = 4;
/// Between words and visual tokens.
pub const THEN: u32 = 5;
const MARKS: [&str; 6] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[>]"];

const CONTINUED: &str = "##";
/// Longer words are unknown ones.
const MAX_WORD_CHARS: usize = 64;
/// Of the pieces that are learnt, the share of whole words.
const WHOLE_WORDS: f64 = 0.9;
/// Characters that occur less often are no pieces.
const RARE_CHARACTER: u64 = 5;

/// A vocabulary of pieces.
#[derive(Clone)]
pub struct WordPieces {
    pieces: Vec<String>,
    model: WordPiece,
}

impl fmt::Debug for WordPieces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WordPieces").field("pieces", &self.pieces.len()).finish_non_exhaustive()
    }
}

impl WordPieces {
    /// At most `size` pieces for the words of `texts` (more where the characters alone need it): the
    /// same for the same words, in whatever order.
    ///
    /// # Errors
    /// `InvalidInput` where the texts have no words.
    pub fn learn<'a>(texts: impl IntoIterator<Item = &'a str>, size: usize) -> Result<Self> {
        let mut counts: BTreeMap<String, u64> = BTreeMap::new();
        for word in texts.into_iter().flat_map(caption_words) {
            *counts.entry(word).or_default() += 1;
        }
        counts.retain(|word, _| word.chars().count() <= MAX_WORD_CHARS);
        if counts.is_empty() {
            return Err(Error::invalid_input("there are no words to learn word pieces from"));
        }
        let mut characters: BTreeMap<char, u64> = BTreeMap::new();
        for (word, count) in &counts {
            for character in word.chars() {
                *characters.entry(character).or_default() += count;
            }
        }
        let common = characters.into_iter().filter(|(_, count)| *count >= RARE_CHARACTER);
        let alphabet: BTreeSet<String> =
            common.flat_map(|(c, _)| [c.to_string(), format!("{CONTINUED}{c}")]).collect();

        let room = size.saturating_sub(MARKS.len() + alphabet.len());
        let words = most_frequent(&counts, &alphabet, (room as f64 * WHOLE_WORDS) as usize);
        // What the other words go on with, after the longest of these words that they begin with.
        let mut rests: BTreeMap<String, u64> = BTreeMap::new();
        for (word, count) in counts.iter().filter(|(word, _)| !words.contains(*word)) {
            let beginning = word
                .char_indices()
                .map(|(at, _)| at)
                .rev()
                .find(|at| words.contains(&word[..*at]) || alphabet.contains(&word[..*at]));
            if let Some(at) = beginning {
                *rests.entry(format!("{CONTINUED}{}", &word[at..])).or_default() += count;
            }
        }
        let rests = most_frequent(&rests, &alphabet, room - words.len());
        let marks = MARKS.map(str::to_owned).into_iter();
        Self::new(marks.chain(alphabet).chain(words).chain(rests).collect())
    }

    /// From one piece a line, as [`WordPieces::to_lines`] has them.
    ///
    /// # Errors
    /// `Corrupt` where the first lines are not the marks, or a piece stands twice.
    pub fn from_lines(lines: &str) -> Result<Self> {
        Self::new(lines.lines().map(str::to_owned).collect())
    }

    /// One piece a line; the first is piece 0.
    pub fn to_lines(&self) -> String {
        self.pieces.iter().map(|piece| format!("{piece}\n")).collect()
    }

    fn new(pieces: Vec<String>) -> Result<Self> {
        let wrong = |why: &str| Error::corrupt(format!("the vocabulary of word pieces {why}"));
        if pieces.len() <= MARKS.len() || pieces[..MARKS.len()] != MARKS {
            return Err(wrong("does not begin with the marks [PAD], [UNK], …"));
        }
        let mut by_piece: HashMap<&str, u32> = HashMap::new();
        for (piece, id) in pieces.iter().zip(0..) {
            if by_piece.insert(piece, id).is_some() {
                return Err(wrong(&format!("has the piece {piece:?} twice")));
            }
        }
        let model = serde_json::json!({
            "type": "WordPiece",
            "unk_token": MARKS[UNKNOWN as usize],
            "continuing_subword_prefix": CONTINUED,
            "max_input_chars_per_word": MAX_WORD_CHARS,
            "vocab": by_piece,
        });
        let model = WordPiece::from_bytes(model.to_string())
            .map_err(|cause| wrong("is not usable").caused_by(cause))?;
        Ok(WordPieces { pieces, model })
    }

    /// How many pieces there are, the marks included.
    pub fn count(&self) -> usize {
        self.pieces.len()
    }

    /// The pieces of a text's words, at most `most`.
    ///
    /// # Errors
    /// `Internal`, should the tokenizer fail.
    pub fn encode(&self, text: &str, most: usize) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        for word in caption_words(text) {
            if ids.len() >= most {
                break;
            }
            let pieces = self.model.tokenize(&word).map_err(|cause| {
                Error::internal(format!("the word {word:?} has no pieces")).caused_by(cause)
            })?;
            ids.extend(pieces.into_iter().map(|piece| piece.id));
        }
        ids.truncate(most);
        Ok(ids)
    }

    /// The words that pieces make; marks and ids that are no piece are left out.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut text = String::new();
        for id in ids.iter().filter(|id| **id as usize >= MARKS.len()) {
            let Some(piece) = self.pieces.get(*id as usize) else { continue };
            match piece.strip_prefix(CONTINUED) {
                // A caption may begin with a continuation, from a network that has learnt little.
                Some(rest) => text.push_str(rest),
                None => {
                    if !text.is_empty() {
                        text.push(' ');
                    }
                    text.push_str(piece);
                }
            }
        }
        text
    }
}

/// The keys that occur most often, of equally frequent ones the first by name; none of `known`.
fn most_frequent(
    counts: &BTreeMap<String, u64>,
    known: &BTreeSet<String>,
    most: usize,
) -> BTreeSet<String> {
    let mut by_count: Vec<(&String, &u64)> =
        counts.iter().filter(|(key, _)| !known.contains(*key)).collect();
    by_count.sort_by_key(|(key, count)| (Reverse(**count), *key));
    by_count.into_iter().take(most).map(|(key, _)| key.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pieces() -> WordPieces {
        let texts = ["a dog runs", "a dog 's t-shirt", "the dog runs to a dogsled in the snow"];
        let all: Vec<&str> = std::iter::repeat_n(texts, 5).flatten().collect();
        WordPieces::learn(all, 60).unwrap()
    }

    #[test]
    fn frequent_words_are_one_piece_and_others_are_put_together() {
        let pieces = pieces();
        assert_eq!(pieces.encode("A dog runs .", 9).unwrap().len(), 3);
        let rare = pieces.encode("dogshirt", 9).unwrap();
        assert!(rare.len() > 1 && !rare.contains(&UNKNOWN), "{rare:?}");
        assert_eq!(pieces.decode(&rare), "dogshirt");
        assert_eq!(pieces.encode("犬 dog", 9).unwrap()[0], UNKNOWN);
        assert_eq!(
            pieces.decode(&pieces.encode("a dog's T-shirt", 9).unwrap()),
            "a dog 's t-shirt"
        );
        assert!(pieces.encode("a dog runs to the snow", 4).unwrap().len() == 4);
        assert_eq!(pieces.decode(&[CLS, SEP, 1 << 30]), "");
    }

    #[test]
    fn a_vocabulary_that_was_tampered_with_is_refused() {
        let lines = pieces().to_lines();
        assert_eq!(WordPieces::from_lines(&lines).unwrap().to_lines(), lines);
        for wrong in ["", "a\nb\n", &lines[6..], &format!("{lines}dog\n")] {
            assert!(WordPieces::from_lines(wrong).is_err());
        }
        assert!(WordPieces::learn([" . "], 100).is_err());
    }

    proptest! {
        #[test]
        fn words_of_known_characters_survive(text in "[dogstheawr]{1,8}( [dogstheawr]{1,8}){0,5}") {
            let pieces = pieces();
            let words = caption_words(&text).join(" ");
            prop_assert_eq!(pieces.decode(&pieces.encode(&text, 1_000).unwrap()), words);
        }
    }
}
