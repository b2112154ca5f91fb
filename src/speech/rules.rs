//! What Whisper may write next: the rules of its own program's decoding.
//!
//! Source: `whisper/decoding.py` and `whisper/tokenizer.py` of OpenAI's Whisper (`SuppressBlank`,
//! `SuppressTokens`, `ApplyTimestampRules`, `non_speech_tokens`).

use std::collections::HashSet;

use super::search::{Likely, Token};

/// Pieces that write down sound that is no speech, by themselves or after a space.
const NO_SPEECH: &str = "\" # ( ) * + / : ; < = > @ [ \\ ] ^ _ ` { | } ~ 「 」 『 』 << >> <<< >>> -- --- -( -[ (' \
     (\" (( )) ((( ))) [[ ]] {{ }} ♪♪ ♪♪♪ ♩ ♪ ♫ ♬ ♭ ♮ ♯";
/// These only where a word begins.
const NO_BEGINNING: [&[u8]; 2] = [b" -", b" '"];
/// The bytes that notes begin with, where a vocabulary has no piece for a whole one.
const NOTE: &[u8] = &[0xe2, 0x99];
/// A first sentence begins within the first second, in steps of 20 ms.
const LATEST_START: Token = 50;

/// The rules for one vocabulary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rules {
    /// The token that ends a text. Pieces of text are before it, special tokens after it.
    pub(super) end: Token,
    /// The token for the window's first instant. Those after it are 20 ms apart.
    pub(super) first_time: Token,
    /// A space alone, which begins no text.
    blank: Option<Token>,
    /// Pieces of text that are never written.
    never: Vec<Token>,
}

impl Rules {
    /// `piece` gives the bytes of a token before `end`.
    pub(super) fn new<'a>(
        end: Token,
        first_time: Token,
        piece: impl Fn(Token) -> Option<&'a [u8]>,
    ) -> Rules {
        let listed: HashSet<&[u8]> = NO_SPEECH.split(' ').map(str::as_bytes).collect();
        let is_no_speech = |bytes: &[u8]| {
            let bare = bytes.strip_prefix(b" ").unwrap_or(bytes);
            listed.contains(bare) || bare == NOTE || NO_BEGINNING.contains(&bytes)
        };
        let all = || (0..end).filter_map(|token| Some((token, piece(token)?)));
        Rules {
            end,
            first_time,
            blank: all().find(|(_, bytes)| *bytes == b" ").map(|(token, _)| token),
            never: all().filter(|(_, bytes)| is_no_speech(bytes)).map(|(token, _)| token).collect(),
        }
    }

    /// The `count` likeliest tokens after `path`, most likely first, of those that may follow. `logits`, one a
    /// token of the vocabulary, are changed. With `times`, sentences are between tokens of time.
    pub(super) fn likeliest(
        &self,
        path: &[Token],
        logits: &mut [f32],
        times: bool,
        count: usize,
    ) -> Vec<Likely> {
        let (end, first_time) = (index(self.end), index(self.first_time));
        if logits.len() < first_time || first_time <= end {
            return Vec::new();
        }
        for token in &self.never {
            logits[index(*token)] = f32::NEG_INFINITY;
        }
        logits[end + 1..first_time].fill(f32::NEG_INFINITY);
        if path.is_empty() {
            for token in self.blank.into_iter().chain([self.end]) {
                logits[index(token)] = f32::NEG_INFINITY;
            }
        }
        if times {
            self.keep_to_sentences(path, logits);
        } else {
            logits[first_time..].fill(f32::NEG_INFINITY);
        }
        let total = log_sum(logits);
        best(logits, count).into_iter().map(|(token, logit)| (token, logit - total)).collect()
    }

    /// Times come in pairs, the end of a sentence and the beginning of the next, and never go back.
    fn keep_to_sentences(&self, path: &[Token], logits: &mut [f32]) {
        let (end, first_time) = (index(self.end), index(self.first_time));
        let is_time = |token: &Token| *token >= self.first_time;
        let mut backwards = path.iter().rev();
        let was_time = backwards.next().is_some_and(is_time);
        let is_closed = backwards.next().is_none_or(is_time);
        if let Some(last) = path.iter().rev().find(|token| is_time(token)) {
            // A sentence has a length; the next may begin where it ends.
            let least = index(*last) + usize::from(!was_time || is_closed);
            let least = least.min(logits.len());
            logits[first_time..least].fill(f32::NEG_INFINITY);
        }
        match (was_time, is_closed) {
            (true, true) => logits[first_time..].fill(f32::NEG_INFINITY),
            (true, false) => logits[..end].fill(f32::NEG_INFINITY),
            (false, _) => {}
        }
        if path.is_empty() {
            let latest = index(self.first_time + LATEST_START).min(logits.len() - 1);
            logits[latest + 1..].fill(f32::NEG_INFINITY);
            logits[..first_time].fill(f32::NEG_INFINITY);
        }
        // Some time may be likelier than any text, though no single time is.
        let text = logits[..first_time].iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if log_sum(&logits[first_time..]) > text {
            logits[..first_time].fill(f32::NEG_INFINITY);
        }
    }
}

fn index(token: Token) -> usize {
    usize::try_from(token).unwrap_or(0)
}

/// Logarithm of the sum of the exponentials.
pub(super) fn log_sum(logits: &[f32]) -> f32 {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if most == f32::NEG_INFINITY {
        return most;
    }
    logits.iter().map(|logit| (logit - most).exp()).sum::<f32>().ln() + most
}

/// The largest of the numbers with their places, largest first; none that is no number or infinite.
fn best(logits: &[f32], count: usize) -> Vec<Likely> {
    let mut found: Vec<Likely> = Vec::with_capacity(count + 1);
    for (token, &logit) in (0..).zip(logits) {
        let is_wanted = match found.last() {
            Some(least) if found.len() == count => logit > least.1,
            _ => logit.is_finite(),
        };
        if is_wanted {
            let at = found.partition_point(|(_, other)| *other >= logit);
            found.insert(at, (token, logit));
            found.truncate(count);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Six pieces, the end, one special token, and times from 8 on.
    const PIECES: [&[u8]; 6] = [b" ", b" well", b" (", b"-", b" -", b" \xe2\x99"];
    const END: Token = 6;
    const TIME: Token = 8;

    fn rules() -> Rules {
        Rules::new(END, TIME, |token| PIECES.get(index(token)).copied())
    }

    /// What may come, where each token is as likely as the next but for those given.
    fn may_come(path: &[Token], times: bool, likelier: &[Token]) -> Vec<Token> {
        let mut logits = vec![0.0; 108];
        for token in likelier {
            logits[index(*token)] = 20.0;
        }
        let likeliest = rules().likeliest(path, &mut logits, times, 108);
        let sum: f32 = likeliest.iter().map(|(_, likely)| likely.exp()).sum();
        assert!((sum - 1.0).abs() < 1e-3, "{sum}");
        let mut tokens: Vec<Token> = likeliest.into_iter().map(|(token, _)| token).collect();
        tokens.sort_unstable();
        tokens
    }

    #[test]
    fn sound_that_is_no_speech_and_special_tokens_are_never_written() {
        assert_eq!(may_come(&[], false, &[]), [1, 3]);
        assert_eq!(may_come(&[1], false, &[]), [0, 1, 3, END]);
    }

    #[test]
    fn a_text_begins_with_a_time_within_the_first_second() {
        assert_eq!(may_come(&[], true, &[1]), (TIME..=TIME + 50).collect::<Vec<_>>());
    }

    #[test]
    fn times_come_in_pairs_and_never_go_back() {
        // After the beginning of a sentence, only text.
        assert_eq!(may_come(&[TIME], true, &[]), [0, 1, 3, END]);
        // In it, text or a later time.
        let later: Vec<Token> = [0, 1, 3, END].into_iter().chain(TIME + 3..108).collect();
        assert_eq!(may_come(&[TIME + 2, 1], true, &[0, 1, 3, END]), later);
        // At its end, the beginning of the next, or the end of the text.
        let next: Vec<Token> = [END].into_iter().chain(TIME + 3..108).collect();
        assert_eq!(may_come(&[TIME + 2, 1, TIME + 3], true, &[END]), next);
    }

    #[test]
    fn many_unlikely_times_are_together_likelier_than_a_word() {
        assert_eq!(may_come(&[TIME, 1], true, &[]), (TIME + 1..108).collect::<Vec<_>>());
    }

    #[test]
    fn the_likeliest_come_first_and_none_that_is_no_number() {
        assert_eq!(best(&[1.0, f32::NAN, 3.0, f32::NEG_INFINITY, 2.0], 2), [(2, 3.0), (4, 2.0)]);
        assert_eq!(best(&[f32::NEG_INFINITY], 2), []);
    }
}
