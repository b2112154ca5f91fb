//! Which of a source's text tracks its sentences are made of.

use std::collections::BTreeMap;

use crate::media::{Cue, CueKind};

/// A track with less text than this share of the fullest one holds forced subtitles (signs, a
/// sentence in another language), not what is said.
const FORCED_SHARE: f64 = 0.1;

/// The track that tells best what is said, of those that `cues` came from; `None` where there are
/// none. `languages` are those that the text tower reads, the best first (`en` also stands for
/// `en-GB`).
///
/// Forced tracks are passed over where there is another, and so are nearly empty ones; then a track in
/// one of the languages goes before one whose language is not known, and that before the others; then
/// subtitles, which a person wrote, before recognised speech; then a file beside the video, which its owner put there, before a track
/// inside; then the shorter name, then the alphabet, so that track 2 goes before track 10. Text on
/// screen is not said.
pub fn chosen_track<'a>(cues: &'a [Cue], languages: &[&str]) -> Option<&'a str> {
    let mut tracks: BTreeMap<&str, Track<'_>> = BTreeMap::new();
    for cue in cues.iter().filter(|cue| cue.kind != CueKind::Screen) {
        let track = tracks.entry(&cue.track).or_insert(Track {
            kind: cue.kind,
            language: cue.language.as_deref(),
            text_bytes: 0,
        });
        track.text_bytes += cue.text.len();
    }
    if tracks.keys().any(|name| !is_forced(name)) {
        tracks.retain(|name, _| !is_forced(name));
    }
    let fullest = tracks.values().map(|track| track.text_bytes).max()?;
    tracks
        .iter()
        .filter(|(_, track)| track.text_bytes as f64 >= fullest as f64 * FORCED_SHARE)
        .min_by_key(|(name, track)| {
            (
                language_rank(track.language, languages),
                track.kind != CueKind::Subtitle,
                !name.starts_with("sidecar:"),
                name.len(),
                **name,
            )
        })
        .map(|(name, _)| *name)
}

/// Whether a track of this name has only signs, or what is said in another language, and not what is said:
/// `embedded:3.forced`, `sidecar:film.forced.srt`, `sidecar:film.en.forced.srt`, `sidecar:film.forced.en.srt`.
pub fn is_forced(track: &str) -> bool {
    let mut parts = track.rsplit('.');
    let (last, before, first) = (parts.next(), parts.next(), parts.next());
    let is_mark = |part: Option<&str>| part.is_some_and(|part| part.eq_ignore_ascii_case("forced"));
    let is_language = |part: &str| part.len() <= 3 || part.contains(['-', '_']);
    is_mark(last) || is_mark(before) || (is_mark(first) && before.is_some_and(is_language))
}

struct Track<'a> {
    kind: CueKind,
    language: Option<&'a str>,
    text_bytes: usize,
}

/// 0 for the best language; one more than the last for an unknown one; one more for the others.
fn language_rank(language: Option<&str>, languages: &[&str]) -> usize {
    let Some(language) = language else { return languages.len() };
    let primary = |tag: &str| tag.split(['-', '_']).next().unwrap_or(tag).to_ascii_lowercase();
    languages
        .iter()
        .position(|wanted| primary(wanted) == primary(language))
        .unwrap_or(languages.len() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::{Span, Timestamp};

    fn cue(track: &str, language: Option<&str>, kind: CueKind, text: &str) -> Cue {
        Cue {
            span: Span::new(Timestamp(0), Timestamp(1_000_000)),
            text: text.into(),
            kind,
            language: language.map(Into::into),
            track: track.into(),
            confidence: None,
            words: Vec::new(),
            speaker: None,
        }
    }

    #[test]
    fn language_goes_before_origin_and_origin_before_name() {
        let german = cue("sidecar:a.de.srt", Some("de"), CueKind::Subtitle, "guten Tag");
        let plain = cue("sidecar:a.srt", None, CueKind::Subtitle, "good day");
        let inside = cue("embedded:2", Some("en-GB"), CueKind::Subtitle, "good day");
        let later = cue("embedded:10", Some("en"), CueKind::Subtitle, "good day");
        let heard = cue("speech", Some("en"), CueKind::Speech, "good day");
        let all = [heard, german, later, plain, inside];
        assert_eq!(chosen_track(&all, &["en"]), Some("embedded:2"));
        assert_eq!(chosen_track(&all, &["de", "en"]), Some("sidecar:a.de.srt"));
        assert_eq!(chosen_track(&all, &["fr"]), Some("sidecar:a.srt"));
        assert_eq!(chosen_track(&all[..2], &["en"]), Some("speech"));
    }

    #[test]
    fn a_forced_track_is_known_by_its_name() {
        for (track, forced) in [
            ("embedded:2", false),
            ("embedded:2.forced", true),
            ("sidecar:a.forced.srt", true),
            ("sidecar:a.en.Forced.srt", true),
            ("sidecar:a.forced.pt-BR.srt", true),
            ("sidecar:forced.srt", false),
            ("sidecar:the.forced.march.srt", false),
            ("sidecar:the.forced.march.en.srt", false),
            ("speech:1", false),
        ] {
            assert_eq!(is_forced(track), forced, "{track}");
        }
    }

    #[test]
    fn forced_subtitles_and_screen_text_are_passed_over() {
        let forced = cue("sidecar:a.en.forced.srt", Some("en"), CueKind::Subtitle, "EXIT");
        let full = cue("embedded:2", Some("en"), CueKind::Subtitle, &"words ".repeat(20));
        let screen = cue("screen", Some("en"), CueKind::Screen, &"sign ".repeat(400));
        let all = [forced.clone(), full, screen.clone()];
        assert_eq!(chosen_track(&all, &["en"]), Some("embedded:2"));
        // However much is in them, unless there is nothing else.
        let heard = cue("speech:1", Some("en"), CueKind::Speech, "I");
        let all = [forced, heard, screen.clone()];
        assert_eq!(chosen_track(&all, &["en"]), Some("speech:1"));
        assert_eq!(chosen_track(&all[..1], &["en"]), Some("sidecar:a.en.forced.srt"));
        assert_eq!(chosen_track(&[screen], &["en"]), None);
    }
}
