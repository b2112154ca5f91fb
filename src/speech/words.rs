//! Words out of what Whisper writes: pieces of bytes with the times at which they end.

use crate::time::{Micros, Span, Timestamp};

/// A piece of text as Whisper wrote it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Piece {
    pub(super) bytes: Vec<u8>,
    /// Natural logarithm.
    pub(super) log_probability: f32,
    /// When it has been said.
    pub(super) end: Timestamp,
}

/// A word with its punctuation.
#[derive(Debug, Clone, PartialEq)]
pub struct Word {
    pub text: String,
    pub span: Span,
    /// Geometric mean of its pieces' probabilities.
    pub confidence: f32,
    /// No space before it.
    pub glued: bool,
}

impl Word {
    /// What it is known by: its letters and digits, small.
    pub(super) fn letters(&self) -> String {
        let letters = self.text.chars().filter(|c| c.is_alphanumeric());
        letters.flat_map(char::to_lowercase).collect()
    }
}

/// Languages that are written without spaces between words, by the codes that Whisper has for them.
const WITHOUT_SPACES: [&str; 7] = ["zh", "yue", "ja", "th", "lo", "my", "km"];

pub fn is_without_spaces(language: &str) -> bool {
    WITHOUT_SPACES.contains(&language)
}

/// Marks that open what follows them.
const OPENING: &str = "\"'“‘¿¡([{-—–「『（《〈";

/// Joins pieces to words. A word begins where the piece before it has ended, the first one at `start`,
/// and ends with its last piece that is no punctuation.
pub(super) fn words(pieces: &[Piece], start: Timestamp, language: &str) -> Vec<Word> {
    let spaced = !is_without_spaces(language);
    let mut found: Vec<Open> = Vec::new();
    let mut before = start;
    for piece in whole_characters(pieces) {
        let bare = piece.text.trim_start();
        let has_space = bare.len() < piece.text.len();
        let says = bare.chars().any(char::is_alphanumeric);
        let begins = match found.last() {
            None => true,
            Some(last) if !last.says => false,
            Some(_) if has_space => says || bare.starts_with(|first| OPENING.contains(first)),
            Some(_) => says && !spaced,
        };
        let end = piece.end.max(before);
        if begins {
            let glued = !has_space && !found.is_empty();
            found.push(Open::new(Span::new(before, end), glued));
        }
        if let Some(word) = found.last_mut() {
            if has_space && !begins && word.says && !says {
                // Punctuation that stands alone, as in French.
                word.text.push(' ');
            }
            word.text.push_str(bare);
            word.sum += piece.log_probability;
            word.pieces += piece.pieces;
            if says {
                // A mark that opens it takes none of its time.
                word.span = Span::new(if word.says { word.span.start } else { before }, end);
                word.says = true;
            }
        }
        before = end;
    }
    found.into_iter().filter(|word| word.says).map(Open::close).collect()
}

struct Open {
    text: String,
    span: Span,
    sum: f32,
    pieces: usize,
    /// Whether it has a letter or digit yet.
    says: bool,
    glued: bool,
}

impl Open {
    fn new(span: Span, glued: bool) -> Open {
        Open { text: String::new(), span, sum: 0.0, pieces: 0, says: false, glued }
    }

    fn close(self) -> Word {
        Word {
            text: self.text.trim_end().to_owned(),
            span: self.span,
            confidence: (self.sum / self.pieces.max(1) as f32).exp().clamp(0.0, 1.0),
            glued: self.glued,
        }
    }
}

struct Characters {
    text: String,
    log_probability: f32,
    pieces: usize,
    end: Timestamp,
}

/// Pieces may end within a character: such are joined with the next ones. What never becomes UTF-8 is
/// left out.
fn whole_characters(pieces: &[Piece]) -> Vec<Characters> {
    const LONGEST_CHARACTER_BYTES: usize = 4;
    let mut found = Vec::new();
    let mut bytes: Vec<u8> = Vec::new();
    let (mut sum, mut count) = (0.0, 0);
    for piece in pieces {
        bytes.extend(&piece.bytes);
        (sum, count) = (sum + piece.log_probability, count + 1);
        let is_started = match std::str::from_utf8(&bytes) {
            Ok(_) => false,
            Err(error) => {
                error.error_len().is_none()
                    && bytes.len() - error.valid_up_to() < LONGEST_CHARACTER_BYTES
            }
        };
        if is_started {
            continue;
        }
        let text: String =
            String::from_utf8_lossy(&bytes).chars().filter(|c| *c != '\u{fffd}').collect();
        if !text.is_empty() {
            found.push(Characters { text, log_probability: sum, pieces: count, end: piece.end });
        }
        bytes.clear();
        (sum, count) = (0.0, 0);
    }
    found
}

/// Takes out words that have no time of their own, two or more in a row, where they end the text or are said in
/// it another time: what was written twice has a place in the sound only once. Whether there were such.
pub(super) fn drop_squeezed(words: &mut Vec<Word>) -> bool {
    let letters: Vec<String> = words.iter().map(Word::letters).collect();
    let mut wanted = vec![true; words.len()];
    let mut at = 0;
    for run in words.chunk_by(|a, b| has_time(a) == has_time(b)) {
        let (before, others) = letters.split_at(at);
        let (said, after) = others.split_at(run.len());
        let is_twice = |word: &String| before.contains(word) || after.contains(word);
        let is_doubled = after.is_empty() || said.iter().all(is_twice);
        if run.len() > 1 && is_doubled && !run.iter().any(has_time) {
            wanted[at..at + run.len()].fill(false);
        }
        at += run.len();
    }
    let before = words.len();
    let mut wanted = wanted.into_iter();
    words.retain(|_| wanted.next().unwrap_or(true));
    words.len() < before
}

fn has_time(word: &Word) -> bool {
    word.span.length() > Micros::ZERO
}

/// Moves the words' times to where somebody speaks: a word that seems to begin or end in a pause begins
/// after it or ends before it. `speech` is in order.
pub(super) fn fit(words: &mut [Word], speech: &[Span]) {
    for word in words {
        let span = word.span;
        // The part of the word that is in speech for longest is the word.
        let parts = speech
            .iter()
            .filter(|part| part.overlaps(span))
            .map(|part| Span::new(part.start.max(span.start), part.end.min(span.end)));
        if let Some(longest) = parts.max_by_key(|part| part.length()) {
            word.span = longest;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pieces(pieces: &[(&str, i64)]) -> Vec<Piece> {
        let piece = |&(text, end): &(&str, i64)| Piece {
            bytes: text.as_bytes().to_vec(),
            log_probability: -0.1,
            end: Timestamp::from_millis(end),
        };
        pieces.iter().map(piece).collect()
    }

    fn shown(words: &[Word]) -> Vec<(&str, i64, i64)> {
        words
            .iter()
            .map(|word| (&word.text[..], word.span.start.0 / 1_000, word.span.end.0 / 1_000))
            .collect()
    }

    #[test]
    fn a_word_begins_where_the_piece_before_has_ended() {
        let pieces =
            pieces(&[(" Print", 300), ("ing", 540), (",", 940), (" in", 1_080), (".", 1_500)]);
        let found = words(&pieces, Timestamp::from_millis(100), "en");
        assert_eq!(shown(&found), [("Printing,", 100, 540), ("in.", 940, 1_080)]);
        assert!((found[0].confidence - (-0.1_f32).exp()).abs() < 1e-6);
    }

    #[test]
    fn marks_that_open_go_with_the_word_after_them() {
        let pieces = pieces(&[
            (" He", 100),
            (" \"", 200),
            ("No", 300),
            ("\"", 400),
            (" -", 500),
            (" yes", 600),
        ]);
        let found = words(&pieces, Timestamp(0), "en");
        let texts: Vec<_> = found.iter().map(|word| word.text.as_str()).collect();
        assert_eq!(texts, ["He", "\"No\"", "-yes"]);
        assert_eq!(words(&self::pieces(&[(" ...", 100)]), Timestamp(0), "en"), []);
        let french = self::pieces(&[(" Quoi", 100), (" ?", 200), (" Oui", 300)]);
        let found = words(&french, Timestamp(0), "fr");
        assert_eq!(shown(&found), [("Quoi ?", 0, 100), ("Oui", 200, 300)]);
    }

    #[test]
    fn without_spaces_each_piece_is_a_word_and_characters_stay_whole() {
        let cat = "猫".as_bytes();
        let piece = |bytes: &[u8], end| Piece {
            bytes: bytes.to_vec(),
            log_probability: 0.0,
            end: Timestamp::from_millis(end),
        };
        let pieces = [
            piece("我是".as_bytes(), 200),
            piece(&cat[..2], 250),
            piece(&cat[2..], 300),
            piece("。".as_bytes(), 400),
        ];
        let found = words(&pieces, Timestamp(0), "zh");
        assert_eq!(shown(&found), [("我是", 0, 200), ("猫。", 200, 300)]);
        assert!(found[1].glued && !found[0].glued);
    }

    #[test]
    fn a_word_that_reaches_into_a_pause_is_moved_to_the_speech() {
        let mut found = words(&pieces(&[(" so", 500), (" then", 3_000)]), Timestamp(0), "en");
        let speech =
            |start, end| Span::new(Timestamp::from_millis(start), Timestamp::from_millis(end));
        fit(&mut found, &[speech(100, 600), speech(2_500, 3_100)]);
        assert_eq!(shown(&found), [("so", 100, 500), ("then", 2_500, 3_000)]);
    }

    #[test]
    fn what_was_written_twice_is_kept_where_it_has_time() {
        let twice = [(" no", 0), (" sir", 0), (" no", 400), (" I", 400), (" sir", 900)];
        let mut found = words(&pieces(&twice), Timestamp(0), "en");
        assert!(drop_squeezed(&mut found));
        assert_eq!(shown(&found), [("no", 0, 400), ("I", 400, 400), ("sir", 400, 900)]);
        assert!(!drop_squeezed(&mut found));

        let once = [(" been", 300), (" lover", 300), (" husband", 300), (" friend", 900)];
        let mut found = words(&pieces(&once), Timestamp(0), "en");
        assert!(!drop_squeezed(&mut found));
        let after_all = [(" friend", 900), (" thank", 900), (" you", 900)];
        let mut found = words(&pieces(&after_all), Timestamp(0), "en");
        assert!(drop_squeezed(&mut found));
        assert_eq!(shown(&found), [("friend", 0, 900)]);
    }

    proptest! {
        #[test]
        fn any_pieces_give_words_in_order(
            all in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..6), -100i64..9_000), 0..40),
            spaced in any::<bool>(),
        ) {
            let pieces: Vec<Piece> = all
                .into_iter()
                .map(|(bytes, end)| Piece { bytes, log_probability: -1.0, end: Timestamp(end) })
                .collect();
            let found = words(&pieces, Timestamp(0), if spaced { "en" } else { "ja" });
            for pair in found.windows(2) {
                prop_assert!(pair[0].span.end <= pair[1].span.start);
            }
            for word in found {
                prop_assert!(word.span.start <= word.span.end && !word.text.is_empty());
            }
        }
    }
}
