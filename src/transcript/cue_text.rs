//! What subtitle files write besides words: markup, entities, notes, invisible characters.

/// A tag longer than this is text that happens to hold angle brackets.
const LONGEST_TAG_BYTES: usize = 128;

/// The text of a cue as a person would read it aloud or see it on screen: without tags
/// (`<i>`, `<c.yellow>`, `<00:01.200>`), ASS overrides (`{\an8}`, `\N`), character references,
/// music notes and invisible characters; one space between words, no empty lines. Speakers' dashes
/// stay, since they part what two people say.
pub fn clean_text(text: &str) -> String {
    let text = text.replace("\\N", "\n").replace("\\h", " ");
    let mut lines = Vec::new();
    for line in text.lines() {
        let line = without_references(&without_markup(line));
        let visible: String = line
            .chars()
            .map(|c| if c.is_whitespace() || is_music(c) { ' ' } else { c })
            .filter(|&c| !is_invisible(c))
            .collect();
        let words: Vec<&str> = visible.split_whitespace().collect();
        let line = words.join(" ");
        if line.chars().any(char::is_alphanumeric) {
            lines.push(line);
        }
    }
    lines.join("\n")
}

/// Whether cleaned text is something said, and not only the description of a sound: `[applause]`,
/// `(door slams)`.
pub fn is_spoken(cleaned: &str) -> bool {
    let mut rest = cleaned.trim();
    // "[music] [applause]" is nothing said; "[music] hello" is.
    while let Some((open, close)) = rest.chars().next().and_then(closing_bracket) {
        match rest[open.len_utf8()..].find(close) {
            Some(at) => rest = rest[open.len_utf8() + at + close.len_utf8()..].trim_start(),
            None => return true,
        }
    }
    rest.chars().any(char::is_alphanumeric)
}

fn closing_bracket(open: char) -> Option<(char, char)> {
    match open {
        '[' => Some((open, ']')),
        '(' => Some((open, ')')),
        '（' => Some((open, '）')),
        '【' => Some((open, '】')),
        _ => None,
    }
}

fn is_music(c: char) -> bool {
    matches!(c, '♩' | '♪' | '♫' | '♬' | '♭' | '♯')
}

/// Controls, joiners, direction marks, the byte order mark, soft hyphens and what could not be
/// decoded.
fn is_invisible(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{2069}' | '\u{feff}' | '\u{fffc}' | '\u{fffd}')
}

/// Drops `<…>` that is a tag and `{\…}`; a bracket that opens no such thing stays.
fn without_markup(line: &str) -> String {
    let mut kept = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(at) = rest.find(['<', '{']) {
        kept.push_str(&rest[..at]);
        rest = &rest[at..];
        let (is_markup, close) = match rest.strip_prefix('<') {
            Some(tag) => (is_tag_start(tag), '>'),
            None => (rest.starts_with("{\\"), '}'),
        };
        match rest.find(close).filter(|&end| is_markup && end <= LONGEST_TAG_BYTES) {
            Some(end) => rest = &rest[end + 1..],
            None => {
                kept.push_str(&rest[..1]);
                rest = &rest[1..];
            }
        }
    }
    kept.push_str(rest);
    kept
}

/// `i>`, `/i>`, `c.yellow>`, or a WebVTT timestamp `00:01.200>`.
fn is_tag_start(rest: &str) -> bool {
    let rest = rest.strip_prefix('/').unwrap_or(rest);
    match rest.chars().next() {
        Some(c) if c.is_ascii_digit() => rest
            .split_once('>')
            .is_some_and(|(time, _)| time.contains(':') && time.chars().all(is_of_a_time)),
        Some(c) => c.is_ascii_alphabetic(),
        None => false,
    }
}

fn is_of_a_time(c: char) -> bool {
    c.is_ascii_digit() || c == ':' || c == '.'
}

/// Resolves the character references that subtitle files use; others stay as they are.
fn without_references(line: &str) -> String {
    const LONGEST_REFERENCE_BYTES: usize = 10;
    let mut kept = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(at) = rest.find('&') {
        kept.push_str(&rest[..at]);
        rest = &rest[at..];
        let reference = rest
            .find(';')
            .filter(|&end| end <= LONGEST_REFERENCE_BYTES)
            .and_then(|end| Some((character(&rest[1..end])?, end)));
        match reference {
            Some((c, end)) => {
                kept.push(c);
                rest = &rest[end + 1..];
            }
            None => {
                kept.push('&');
                rest = &rest[1..];
            }
        }
    }
    kept.push_str(rest);
    kept
}

fn character(reference: &str) -> Option<char> {
    if let Some(number) = reference.strip_prefix('#') {
        let code = match number.strip_prefix(['x', 'X']) {
            Some(hex) => u32::from_str_radix(hex, 16).ok()?,
            None => number.parse().ok()?,
        };
        return char::from_u32(code);
    }
    Some(match reference {
        "amp" => '&',
        "lt" => '<',
        "gt" => '>',
        "quot" => '"',
        "apos" => '\'',
        "nbsp" => ' ',
        "lrm" => '\u{200e}',
        "rlm" => '\u{200f}',
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn markup_is_dropped_and_words_stay() {
        for (written, read) in [
            ("<i>Hello</i> there", "Hello there"),
            ("{\\an8}<font color=\"#fff\">Up</font> here", "Up here"),
            ("one\\Ntwo\\hthree", "one\ntwo three"),
            ("so<00:00:01.200><c> it</c><00:00:01.500><c> begins</c>", "so it begins"),
            ("♪ la la la ♪", "la la la"),
            ("♪♪", ""),
            ("Tom &amp; Jerry&#39;s&nbsp;house &unknown; &", "Tom & Jerry's house &unknown; &"),
            ("I <3 you, a < b > c", "I <3 you, a < b > c"),
            ("{curly} braces", "{curly} braces"),
            ("- Yes.\n- No.", "- Yes.\n- No."),
            ("\u{feff}\u{202a}bidi\u{202c}", "bidi"),
            ("  \n - \n", ""),
        ] {
            assert_eq!(clean_text(written), read, "{written}");
        }
    }

    #[test]
    fn a_description_of_sound_is_not_spoken() {
        assert!(!is_spoken("[applause]"));
        assert!(!is_spoken("(door slams) [music]"));
        assert!(is_spoken("[music] hello"));
        assert!(is_spoken("[unclosed"));
        assert!(!is_spoken(""));
    }

    proptest! {
        #[test]
        fn any_text_is_cleaned_without_panic(text in any::<String>()) {
            let cleaned = clean_text(&text);
            prop_assert!(cleaned.len() <= text.len());
            is_spoken(&cleaned);
        }

        #[test]
        fn plain_words_stay_as_they_are(text in "[a-z]{1,8}( [a-z]{1,8}){0,5}") {
            prop_assert_eq!(clean_text(&text), text);
        }
    }
}
