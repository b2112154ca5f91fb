//! Telling what was said from what was made up: loops, guesses, and words for silence.

use super::words::Word;
use crate::time::Timestamp;

/// What Whisper wrote for one stretch of sound.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Written {
    pub(super) words: Vec<Word>,
    /// Mean over the pieces of text; 0 where there are none.
    pub(super) log_probability: f32,
    /// That nobody speaks, as Whisper has it.
    pub(super) silence: f32,
    /// When a sentence begins that was not written.
    pub(super) open: Option<Timestamp>,
    /// Words were left out that had no time.
    pub(super) squeezed: bool,
}

/// Below it a reading is doubted: Whisper's own limit.
const DOUBTED: f32 = -1.0;
/// Below it, nothing of a reading is believed.
const REFUSED: f32 = -1.6;
/// Whisper's own limit.
const SILENT: f32 = 0.6;
/// In a reading that is also doubted this much, as noise is.
const SILENT_DOUBT: f32 = -0.7;

impl Written {
    /// Whether another way of reading should be tried.
    pub(super) fn is_doubted(&self) -> bool {
        (!self.words.is_empty() && self.log_probability < DOUBTED)
            || self.squeezed
            || self.has_loop()
    }

    /// Whether it is nothing that was said.
    pub(super) fn is_refused(&self) -> bool {
        self.log_probability < REFUSED
            || (self.silence > SILENT && self.log_probability < SILENT_DOUBT)
    }

    /// From which word on a loop says nothing new.
    pub(super) fn turns_in_a_loop(&self) -> Option<usize> {
        let words: Vec<String> = self.words.iter().map(Word::letters).collect();
        loop_start(&words)
    }

    fn has_loop(&self) -> bool {
        self.turns_in_a_loop().is_some() || self.words.iter().any(is_loop)
    }

    /// The better of two readings of the same sound: that without a loop, or the likelier.
    pub(super) fn better(self, other: Written) -> Written {
        let key = |written: &Written| {
            (!written.has_loop() && !written.squeezed, !written.words.is_empty())
        };
        match key(&self).cmp(&key(&other)) {
            std::cmp::Ordering::Less => other,
            std::cmp::Ordering::Greater => self,
            std::cmp::Ordering::Equal if other.log_probability > self.log_probability => other,
            std::cmp::Ordering::Equal => self,
        }
    }

    /// Leaves out what a loop says again.
    pub(super) fn without_loop(mut self) -> Written {
        if let Some(at) = self.turns_in_a_loop() {
            self.words.truncate(at);
            // The rest is read from the last word that is kept, not from where the loop has led.
            self.open = None;
        }
        self
    }
}

/// Whether a word is a loop by itself, as music is read: "ia-ia-ia-ia-ia-ia" is said by nobody.
pub(super) fn is_loop(word: &Word) -> bool {
    let small = word.text.to_lowercase();
    let parts: Vec<&str> = small.split('-').filter(|part| !part.is_empty()).collect();
    let letters: Vec<char> = word.letters().chars().collect();
    loop_start(&parts).is_some() || goes_round(&letters)
}

/// Whether letters or digits are written again and again within a word: six times, and so many that a long vowel,
/// a laugh or a trillion has fewer.
fn goes_round(letters: &[char]) -> bool {
    const TIMES: usize = 6;
    const LEAST: usize = 15;
    (1..=LONGEST_PHRASE).any(|part| {
        let mut runs = letters.windows((TIMES * part).max(LEAST));
        runs.any(|run| run.iter().zip(&run[part..]).all(|(a, b)| a == b))
    })
}

/// Longest phrase that is said again and again.
const LONGEST_PHRASE: usize = 16;

/// Where the second time begins of what is said many times in a row: a word six times or more, two
/// words four times, more words three times.
fn loop_start<T: PartialEq>(words: &[T]) -> Option<usize> {
    (0..words.len()).find_map(|start| {
        (1..=LONGEST_PHRASE).find_map(|phrase| {
            let times = match phrase {
                1 => 6,
                2 => 4,
                _ => 3,
            };
            let part = words.get(start..start + phrase * times)?;
            let repeats = part.iter().zip(&part[phrase..]).all(|(a, b)| a == b);
            repeats.then_some(start + phrase)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Span;

    fn written(text: &str, log_probability: f32, silence: f32) -> Written {
        let word = |text: &str| Word {
            text: text.to_owned(),
            span: Span::new(Timestamp(0), Timestamp(1)),
            confidence: 1.0,
            glued: false,
        };
        Written {
            words: text.split_whitespace().map(word).collect(),
            log_probability,
            silence,
            open: None,
            squeezed: false,
        }
    }

    fn text(written: &Written) -> String {
        let words: Vec<_> = written.words.iter().map(|word| word.text.as_str()).collect();
        words.join(" ")
    }

    #[test]
    fn what_is_said_again_and_again_is_kept_once() {
        for (said, kept) in [
            ("well you you You you, you you you", "well you"),
            (
                "I'm going to be a I'm going to be a I'm going to be a I'm going to",
                "I'm going to be a",
            ),
            ("so I know, I know, I know, I know", "so I know,"),
            ("no no no no", "no no no no"),
            ("very, very, very good", "very, very, very good"),
            ("row row row your boat gently down", "row row row your boat gently down"),
            ("", ""),
        ] {
            assert_eq!(text(&written(said, -0.3, 0.0).without_loop()), kept);
        }
    }

    #[test]
    fn a_word_may_be_a_loop_by_itself() {
        for (said, loops) in [
            ("Ia-ia-ia-ia-ia-ia-ia-ia-", 1),
            ("Well, ha-ha-ha-ha-ha-ha and so on", 1),
            ("a well-to-do uh-huh uh-huh", 0),
            ("No-no-no-no", 0),
            ("Ahahahahahahahahaha! she said", 1),
            ("en 2.000.000.000.000.000. Después", 1),
            ("Blablablablablablabla,", 1),
            ("Hahahaha, hahahahahaha!", 0),
            ("Goooooooool! Mmmmmmm… blablabla", 0),
            ("1.000.000 or $1,000,000,000,000.", 0),
            ("0900-000-000-000, 33.333.333.333", 0),
        ] {
            let written = written(said, -0.1, 0.0);
            assert_eq!(written.words.iter().filter(|word| is_loop(word)).count(), loops, "{said}");
            assert_eq!(written.is_doubted(), loops > 0, "{said}");
            // What is said behind it is kept.
            assert_eq!(text(&written.without_loop()), said);
        }
    }

    #[test]
    fn a_loop_leads_nowhere() {
        let open = Some(Timestamp(9));
        let straight = Written { open, ..written("a b c", -0.3, 0.0) };
        assert_eq!(straight.without_loop().open, open);
        let looped = Written { open, ..written("a b c a b c a b c", -0.3, 0.0) };
        assert_eq!(looped.without_loop().open, None);
    }

    #[test]
    fn guesses_are_doubted_and_noise_is_refused() {
        assert!(!written("good morning", -0.4, 0.1).is_doubted());
        assert!(written("good morning", -1.2, 0.1).is_doubted());
        assert!(written("you you you you you you you", -0.1, 0.1).is_doubted());
        assert!(written("Thank you.", -0.9, 0.8).is_refused());
        assert!(!written("Thank you.", -0.4, 0.8).is_refused());
        assert!(written("zum", -1.9, 0.0).is_refused());
    }

    #[test]
    fn a_reading_without_a_loop_is_better_than_a_likely_one() {
        let looped = written("a b c a b c a b c", -0.1, 0.0);
        let plain = written("a b c d", -0.9, 0.0);
        assert_eq!(looped.clone().better(plain.clone()), plain);
        assert_eq!(plain.clone().better(looped), plain);
        let surer = written("a b c e", -0.5, 0.0);
        assert_eq!(plain.better(surer.clone()), surer);
    }
}
