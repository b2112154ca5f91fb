//! Serving timed text: embedded text tracks and subtitle files.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Cursor, Read};

use ffmpeg_next as ffmpeg;

use ffmpeg::format::context::StreamIo;

use super::demux::{Next, Source};
use super::ffi::{self, SubtitleText};
use super::{Outbox, explain};
use crate::error::{Error, Result};
use crate::media::{Cue, CueKind, TrackKind};
use crate::source::protocol::{Address, CueRequest, Message, Summary, Track};
use crate::time::{Span, Timestamp};

/// Largest subtitle file that is read.
const MAX_FILE_BYTES: u64 = 16 << 20;
/// Most cues of one request, and longest text of one.
const MAX_CUES: usize = 500_000;
const MAX_TEXT_BYTES: usize = 16 << 10;
/// Most text of one request: a few bytes of a compressed track can stand for a cue of full length.
const MAX_ALL_BYTES: usize = 64 << 20;
const MAX_SPEAKER_CHARS: usize = 200;
/// How long a cue without an end stays, unless another of its track begins before.
const USUAL_LENGTH_MICROS: i64 = 5_000_000;
const PACKETS_PER_WATERMARK: u64 = 200;

pub(super) fn serve(
    address: Address,
    descriptor: Option<File>,
    request: &CueRequest,
    outbox: &mut Outbox,
) -> Result<Summary> {
    match request {
        CueRequest::Embedded { track } => {
            let source = Source::open(address, descriptor)?;
            let wanted: Vec<Track> = source
                .info()
                .of_kind(TrackKind::Text)
                .filter(|text| track.is_none_or(|track| text.index == track))
                .cloned()
                .collect();
            if wanted.is_empty() && track.is_some() {
                return Err(Error::not_found("no such text track"));
            }
            let label = |track: &Track| {
                let forced = if track.is_forced { ".forced" } else { "" };
                (track.language.clone(), format!("embedded:{}{forced}", track.index))
            };
            read(source, wanted, label, outbox)
        }
        CueRequest::Sidecar { language, track } => {
            let source = open_sidecar(address, descriptor, outbox)?;
            let wanted: Vec<Track> = source.info().of_kind(TrackKind::Text).cloned().collect();
            if wanted.is_empty() {
                return Err(Error::corrupt("not a subtitle file"));
            }
            read(source, wanted, |_| (language.clone(), track.clone()), outbox)
        }
    }
}

/// A subtitle file, its text brought into UTF-8 first.
fn open_sidecar(address: Address, descriptor: Option<File>, outbox: &mut Outbox) -> Result<Source> {
    let (Address::Descriptor { extension }, Some(file)) = (&address, descriptor) else {
        return Err(Error::unsupported("subtitles are read from files only"));
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|cause| Error::unavailable("cannot be read").caused_by(cause))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(Error::unsupported("a subtitle file of more than 16 MiB"));
    }
    if bytes.is_empty() {
        return Err(Error::corrupt("the file is empty"));
    }
    let (text, is_guess) = decode_text(&bytes);
    if is_guess {
        outbox.send(&Message::Notice(
            "not Unicode, so it is read as Windows-1252: save it as UTF-8 if letters are wrong"
                .to_owned(),
        ));
    }
    let stream = StreamIo::from_read_seek(Cursor::new(text.into_bytes()))
        .map_err(|cause| explain("cannot be opened", cause))?;
    Source::from_text(stream, extension.as_deref())
}

/// Text in UTF-8, UTF-16 (by its byte order mark, or by the zeros of Latin letters) or, where it
/// is neither, Windows-1252, which is a guess: many encodings have nothing that tells them. Any bytes
/// are text.
fn decode_text(bytes: &[u8]) -> (String, bool) {
    let wide = |bytes: &[u8], unit: fn([u8; 2]) -> u16| {
        let units = bytes.as_chunks::<2>().0.iter().map(|pair| unit(*pair));
        char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
    };
    let zeros = |parity: usize| {
        bytes.iter().skip(parity).step_by(2).take(200).filter(|byte| **byte == 0).count() * 2
            > bytes.len().min(400) / 2
    };
    let text = if let Some(rest) = bytes.strip_prefix(&[0xFF, 0xFE]) {
        wide(rest, u16::from_le_bytes)
    } else if let Some(rest) = bytes.strip_prefix(&[0xFE, 0xFF]) {
        wide(rest, u16::from_be_bytes)
    } else if bytes.len() >= 8 && zeros(1) {
        wide(bytes, u16::from_le_bytes)
    } else if bytes.len() >= 8 && zeros(0) {
        wide(bytes, u16::from_be_bytes)
    } else {
        let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
        match std::str::from_utf8(bytes) {
            Ok(text) => text.to_owned(),
            Err(_) => return (bytes.iter().map(|byte| windows_1252(*byte)).collect(), true),
        }
    };
    (text, false)
}

fn windows_1252(byte: u8) -> char {
    // Unassigned bytes become the control characters of Latin-1.
    const UPPER: [char; 32] = [
        '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}', 'Ž',
        '\u{8f}', '\u{90}', '‘', '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9d}',
        'ž', 'Ÿ',
    ];
    match byte {
        0x80..=0x9F => UPPER[usize::from(byte - 0x80)],
        _ => char::from(byte),
    }
}

/// Reads all packets of these tracks, then sends their cues in order of start.
fn read(
    mut source: Source,
    wanted: Vec<Track>,
    label: impl Fn(&Track) -> (Option<String>, String),
    outbox: &mut Outbox,
) -> Result<Summary> {
    let mut decoders = BTreeMap::new();
    for track in wanted {
        if track.is_bitmap {
            outbox.send(&Message::Notice(format!(
                "subtitles of track {} are pictures ({}), which are not read",
                track.index, track.codec
            )));
            continue;
        }
        match source.decoder(&track, 1) {
            Ok(decoder) => {
                decoders.insert(track.index as usize, (track, decoder));
            }
            Err(error) => outbox.send(&Message::Notice(error.to_string())),
        }
    }
    let mut summary = Summary::default();
    if decoders.is_empty() {
        return Ok(summary);
    }
    source.keep(&decoders.values().map(|(track, _)| track.index).collect::<Vec<_>>());
    let mut cues: Vec<Cue> = Vec::new();
    let (mut seen, mut all_bytes) = (0u64, 0);
    loop {
        let packet = match source.next() {
            Next::Packet(packet) => packet,
            Next::End => break,
            Next::Broken(cause) => {
                outbox.send(&Message::Notice(format!("reading subtitles broke off: {cause}")));
                break;
            }
        };
        seen += 1;
        if seen.is_multiple_of(PACKETS_PER_WATERMARK) {
            outbox.send(&Message::Watermark(Timestamp::ZERO));
        }
        let Some((track, decoder)) = decoders.get_mut(&packet.stream()) else { continue };
        summary.packets += 1;
        let texts = match ffi::decode_subtitle(decoder, &packet) {
            Ok(Some(texts)) => texts,
            Ok(None) => continue,
            Err(_) => {
                summary.corrupt_packets += 1;
                continue;
            }
        };
        let Some(pts) = packet.pts().or(packet.dts()) else { continue };
        summary.decoded += 1;
        let start = source.time_of(track, pts).0 + i64::from(texts.start_ms) * 1000;
        let length = i64::from(texts.end_ms.saturating_sub(texts.start_ms)) * 1000;
        // All ones means "until the next", which is what no length means here.
        let length = if texts.end_ms == u32::MAX { 0 } else { length };
        let (language, name) = label(track);
        for text in texts.texts {
            let (text, speaker) = match text {
                SubtitleText::Ass(event) => plain_text(&event),
                SubtitleText::Plain(text) => (text, None),
            };
            let text = tidy(&text);
            if text.is_empty() || start.saturating_add(length) < 0 {
                continue;
            }
            if cues.len() == MAX_CUES {
                return Err(Error::exhausted(format!("more than {MAX_CUES} subtitles")));
            }
            all_bytes += text.len();
            if all_bytes > MAX_ALL_BYTES {
                return Err(Error::exhausted("more than 64 MiB of subtitles"));
            }
            cues.push(Cue {
                // The end may be before the start until all are known.
                span: Span::new(Timestamp(start.max(0)), Timestamp(start.saturating_add(length))),
                text,
                kind: CueKind::Subtitle,
                language: language.clone(),
                track: name.clone(),
                confidence: None,
                words: Vec::new(),
                speaker,
            });
        }
    }
    settle_spans(&mut cues);
    summary.end = cues.iter().map(|cue| cue.span.end).max();
    for cue in cues {
        outbox.send(&Message::Cue(Box::new(cue)));
    }
    Ok(summary)
}

/// Sorts the cues and gives those without a length one.
fn settle_spans(cues: &mut [Cue]) {
    cues.sort_by(|a, b| {
        (a.span.start, a.span.end, &a.track).cmp(&(b.span.start, b.span.end, &b.track))
    });
    let mut following: BTreeMap<String, Timestamp> = BTreeMap::new();
    for at in (0..cues.len()).rev() {
        let cue = &mut cues[at];
        let start = cue.span.start;
        if cue.span.end <= start {
            let next = following.get(&cue.track).copied().filter(|next| *next > start);
            let usual = Timestamp(start.0.saturating_add(USUAL_LENGTH_MICROS));
            cue.span.end = next.map_or(usual, |next| next.min(usual));
        }
        following.insert(cue.track.clone(), start);
    }
}

/// Text and speaker of an ASS event as FFmpeg's decoders give it: `ReadOrder, Layer, Style, Name,
/// MarginL, MarginR, MarginV, Effect, Text`, with override blocks in braces.
fn plain_text(event: &str) -> (String, Option<String>) {
    let mut fields = event.splitn(9, ',');
    let speaker = fields.nth(3).map(str::trim).filter(|name| !name.is_empty());
    let speaker = speaker.map(|name| name.chars().take(MAX_SPEAKER_CHARS).collect());
    let text = fields.last().unwrap_or_default();
    (strip_markup(text), speaker)
}

fn strip_markup(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut is_drawing = false;
    let mut rest = text;
    while let Some(letter) = rest.chars().next() {
        rest = &rest[letter.len_utf8()..];
        match letter {
            '{' => {
                let Some(end) = rest.find('}') else {
                    // No block, so a brace.
                    plain.push('{');
                    continue;
                };
                is_drawing = drawing_after(&rest[..end], is_drawing);
                rest = &rest[end + 1..];
            }
            '\\' => {
                let mut next = rest.chars();
                let replaced = match next.next() {
                    Some('N' | 'n') => '\n',
                    Some('h') => ' ',
                    Some(brace @ ('{' | '}')) => brace,
                    _ => {
                        plain.push('\\');
                        continue;
                    }
                };
                rest = next.as_str();
                plain.push(replaced);
            }
            // FFmpeg joins a backslash to what follows with this, so that it escapes nothing.
            '\u{2060}' => {}
            _ if is_drawing => {}
            _ => plain.push(letter),
        }
    }
    plain
}

/// Whether `\p1` to `\p9` (vector drawing) is on after an override block.
fn drawing_after(block: &str, before: bool) -> bool {
    block.split('\\').skip(1).fold(before, |is_drawing, tag| match tag.strip_prefix('p') {
        Some(scale) => match scale.trim().parse::<u32>() {
            Ok(scale) => scale > 0,
            // `\pos`, `\pbo`
            Err(_) => is_drawing,
        },
        None => is_drawing,
    })
}

/// Lines without blanks around them, none empty, no control characters, of bounded length.
fn tidy(text: &str) -> String {
    let mut tidy = String::new();
    for line in text.lines() {
        let line: String = line
            .chars()
            .map(|c| if c == '\t' { ' ' } else { c })
            .filter(|c| !c.is_control())
            .collect();
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        if tidy.len() + line.len() > MAX_TEXT_BYTES {
            break;
        }
        if !tidy.is_empty() {
            tidy.push('\n');
        }
        tidy.push_str(line);
    }
    tidy
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn markup_and_drawings_go_and_line_ends_stay() {
        for (event, text, speaker) in [
            (r"0,0,Default,,0,0,0,,Hello\Nthere", "Hello\nthere", None),
            (r"1,0,Default,Ann,0,0,0,,{\i1}Hi, you{\i0}", "Hi, you", Some("Ann")),
            (r"2,0,Default,,0,0,0,,{\p1}m 0 0 l 10 10{\p0}after", "after", None),
            (r"3,0,Default,,0,0,0,,{\pos(1,2)}a\hb \{c\}", "a b {c}", None),
            (r"4,0,Default,,0,0,0,,open { brace", "open { brace", None),
        ] {
            let (found, name) = plain_text(event);
            assert_eq!((found.as_str(), name.as_deref()), (text, speaker));
        }
    }

    #[test]
    fn text_is_read_in_every_usual_encoding() {
        let text = "Grüße – „ja“";
        let utf16 =
            |unit: fn(u16) -> [u8; 2]| text.encode_utf16().flat_map(unit).collect::<Vec<_>>();
        let marked = |mark: &[u8], rest: Vec<u8>| [mark, &rest].concat();
        let text = text.to_owned();
        let known = |bytes: &[u8]| assert_eq!(decode_text(bytes), (text.clone(), false));
        known(text.as_bytes());
        known(&marked(b"\xEF\xBB\xBF", text.clone().into()));
        known(&marked(b"\xFF\xFE", utf16(u16::to_le_bytes)));
        known(&marked(b"\xFE\xFF", utf16(u16::to_be_bytes)));
        let latin: Vec<u8> = "1\n00:00:01,000".encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert_eq!(decode_text(&latin), ("1\n00:00:01,000".to_owned(), false));
        assert_eq!(decode_text(b"Gr\xfc\xdfe \x96 \x84ja\x93"), (text, true));
    }

    fn cue(start: i64, end: i64) -> Cue {
        Cue {
            span: Span::new(Timestamp(start), Timestamp(end)),
            text: "x".into(),
            kind: CueKind::Subtitle,
            language: None,
            track: "t".into(),
            confidence: None,
            words: Vec::new(),
            speaker: None,
        }
    }

    #[test]
    fn a_cue_without_a_length_lasts_to_the_next_or_five_seconds() {
        let mut cues = [cue(9_000_000, 9_000_000), cue(0, -5), cue(1_000_000, 1_000_000)];
        settle_spans(&mut cues);
        let spans: Vec<(i64, i64)> =
            cues.iter().map(|cue| (cue.span.start.0, cue.span.end.0)).collect();
        assert_eq!(spans, [(0, 1_000_000), (1_000_000, 6_000_000), (9_000_000, 14_000_000)]);
    }

    proptest! {
        #[test]
        fn any_text_is_stripped(text in "[{}\\\\pNnh0-9a ]{0,40}", bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = strip_markup(&text);
            let _ = tidy(&decode_text(&bytes).0);
        }
    }
}
