//! Text as its words are looked for, beside the text as it was said.
//!
//! Compatibility forms are unified (NFKC: `ﬁ` is `fi`, half-width kana are kana). In scripts that are
//! written without spaces between words (Chinese, Japanese, Thai, Lao, Burmese, Khmer) each character is
//! a word of its own, with its marks, and several in a query are a phrase: they are found where they stand
//! together, whatever the words are. Points of Arabic and Hebrew, which most texts leave out, are left out.
//! Small letters and accents are up to FTS5's tokenizer.

use rusqlite::Connection;
use rusqlite::functions::FunctionFlags;
use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::is_combining_mark;

use crate::error::Result;

/// The blocks of Unicode whose scripts have no spaces between words.
const WITHOUT_SPACES: [(char, char); 19] = [
    ('\u{e00}', '\u{eff}'),     // Thai, Lao
    ('\u{1000}', '\u{109f}'),   // Burmese
    ('\u{1780}', '\u{17ff}'),   // Khmer
    ('\u{19e0}', '\u{19ff}'),   // Khmer symbols
    ('\u{2e80}', '\u{2fdf}'),   // radicals
    ('\u{3005}', '\u{3007}'),   // 々 〆 〇
    ('\u{3021}', '\u{3029}'),   // numerals
    ('\u{3031}', '\u{3035}'),   // marks of repetition
    ('\u{3038}', '\u{303c}'),   // numerals, 〼
    ('\u{3040}', '\u{30ff}'),   // hiragana, katakana
    ('\u{3100}', '\u{312f}'),   // bopomofo
    ('\u{31a0}', '\u{31ff}'),   // bopomofo, katakana
    ('\u{3400}', '\u{4dbf}'),   // Chinese characters
    ('\u{4e00}', '\u{9fff}'),   // Chinese characters
    ('\u{a9e0}', '\u{a9ff}'),   // Burmese
    ('\u{aa60}', '\u{aa7f}'),   // Burmese
    ('\u{f900}', '\u{faff}'),   // Chinese characters
    ('\u{1b000}', '\u{1b16f}'), // kana
    ('\u{20000}', '\u{3ffff}'), // Chinese characters
];

/// Points that stand on letters of Hebrew and Arabic.
const POINTS: [(char, char); 6] = [
    ('\u{591}', '\u{5bd}'),
    ('\u{5bf}', '\u{5c7}'),
    ('\u{610}', '\u{61a}'),
    ('\u{64b}', '\u{65f}'),
    ('\u{670}', '\u{670}'),
    ('\u{6d6}', '\u{6ed}'),
];

fn is_in(blocks: &[(char, char)], letter: char) -> bool {
    blocks.iter().any(|(first, last)| (*first..=*last).contains(&letter))
}

/// The text as its words are indexed.
pub(super) fn folded(text: &str) -> String {
    let mut folded = String::with_capacity(text.len());
    let mut was_alone = false;
    for letter in text.nfkc() {
        if is_combining_mark(letter) {
            if !is_in(&POINTS, letter) {
                folded.push(letter);
            }
            continue;
        }
        let is_alone = is_in(&WITHOUT_SPACES, letter);
        if (is_alone || was_alone) && !folded.is_empty() && !folded.ends_with(' ') && letter != ' '
        {
            folded.push(' ');
        }
        folded.push(letter);
        was_alone = is_alone;
    }
    folded
}

/// Makes `folded(TEXT)` known to a connection.
pub(super) fn install(sql: &Connection) -> Result<()> {
    let flags = FunctionFlags::SQLITE_UTF8
        | FunctionFlags::SQLITE_DETERMINISTIC
        | FunctionFlags::SQLITE_DIRECTONLY;
    sql.create_scalar_function("folded", 1, flags, |context| {
        Ok(folded(context.get_raw(0).as_str()?))
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn characters_without_spaces_between_words_stand_alone_and_forms_are_unified() {
        for (text, words) in [
            ("The ﬁrst ＡＢＣ", "The first ABC"),
            ("東京タワーへ行く", "東 京 タ ワ ー へ 行 く"),
            ("今日は OK です。3つ", "今 日 は OK で す 。3 つ"),
            ("ｱｲｽ", "ア イ ス"),
            ("ที่นี่", "ที่ นี่"),
            ("हिन्दी में", "हिन्दी में"),
            ("שָׁלוֹם", "שלום"),
            ("", ""),
        ] {
            assert_eq!(folded(text), words);
        }
    }

    proptest! {
        #[test]
        fn folding_again_changes_nothing(text in "\\PC{0,20}") {
            let once = folded(&text);
            prop_assert_eq!(folded(&once), once);
        }
    }
}
