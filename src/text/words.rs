//! What a word of a caption is.

/// Marks that stand at the ends of a word and are no part of it.
const MARKS: &[char] = &[
    '.', ',', '!', '?', ';', ':', '"', '(', ')', '`', '“', '”', '‘', '’', '«', '»', '[', ']', '{',
    '}', '…',
];
/// What remains of a word that was nothing but marks.
const NO_WORDS: &[&str] = &["'", "''", "-", "--", "–", "—"];
/// What English writes together and treebanks write apart: "dog's" is "dog" and "'s".
const CLITICS: &[&str] = &["'s", "n't"];

/// The words of a caption as the field scores them (the Penn Treebank's tokens without punctuation,
/// in lower case): hyphens stay inside words, and "'s" is a word of its own. Words of any script.
pub fn caption_words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    for word in text.to_lowercase().split_whitespace() {
        let word = word.replace('’', "'");
        let word = word.trim_matches(MARKS);
        if word.is_empty() || NO_WORDS.contains(&word) {
            continue;
        }
        let apart = CLITICS
            .iter()
            .find_map(|clitic| Some((word.strip_suffix(clitic)?, *clitic)))
            .filter(|(stem, _)| !stem.is_empty());
        match apart {
            Some((stem, clitic)) => words.extend([stem.to_owned(), clitic.to_owned()]),
            None => words.push(word.to_owned()),
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn punctuation_goes_and_what_belongs_to_words_stays() {
        let of = |text: &str| caption_words(text).join(" ");
        assert_eq!(of("A \"big\" Dog , running ."), "a big dog running");
        assert_eq!(of("a man's T-shirt"), "a man 's t-shirt");
        assert_eq!(of("A man 's T-shirt"), "a man 's t-shirt");
        assert_eq!(of("They don’t -- look (at it)."), "they do n't look at it");
        assert_eq!(of("# 8 & the tug-of-war"), "# 8 & the tug-of-war");
        assert_eq!(of("ein Hündchen läuft。"), "ein hündchen läuft。");
        assert_eq!(of(" . -- ' \n"), "");
    }

    proptest! {
        #[test]
        fn words_stay_the_same_words(text in ".{0,60}") {
            let words = caption_words(&text);
            prop_assert!(words.iter().all(|word| !word.is_empty()));
            let again = caption_words(&words.join(" "));
            prop_assert_eq!(caption_words(&again.join(" ")), again);
        }
    }
}
