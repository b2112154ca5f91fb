//! `cinelex library show`: everything that is known of a source.

use std::path::PathBuf;

use serde::Serialize;

use super::super::when::{wall_span, wall_time};
use super::super::{
    CommandResult, Outcome, caption_line, counted, one_line, print_json, print_line,
};
use super::{open, watch};
use crate::error::Result;
use crate::library::{ClipRow, Origin, Place, SegmentRow, Shown, Source, State, Tree, Watch};
use crate::media::{Cue, CueKind, Gap, TimedWord, TrackKind, VisualWord};
use crate::time::{Span, Timestamp};

#[derive(clap::Args, Debug)]
pub struct Args {
    /// The library's folder
    #[arg(value_name = "DIR")]
    library: PathBuf,
    /// The source's name, path, address, id or the beginning of its id
    source: String,
    /// Print a JSON object for the source, for how a live one is, and for each segment, clip, cue and gap
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> CommandResult {
    let reader = open(&args.library)?;
    let shown = reader.show(reader.source(&args.source)?.id)?;
    let watch = reader.watch(shown.source.id)?;
    if args.json {
        print_shown_json(&shown, watch.as_ref())?
    } else {
        print_shown(&shown, watch.as_ref())?
    }
    Ok(Outcome::Done)
}

fn print_shown(shown: &Shown, watch: Option<&Watch>) -> Result<()> {
    let source = &shown.source;
    print_line(&one_line(&source.name))?;
    print_line(&format!("  id        {}", source.id))?;
    print_line(&format!("  length    {}", shown.length()))?;
    let error = source.error.as_deref().map_or(String::new(), |why| format!(": {}", one_line(why)));
    let state = match (source.origin, source.state) {
        (Origin::Live, State::New) => "live",
        (_, state) => state.as_str(),
    };
    match watch {
        Some(watch) => {
            print_line(&format!("  state     {}", watch::state(watch)))?;
            print_line(&format!("  came      {}", watch::numbers(watch)))?;
        }
        None => print_line(&format!("  state     {state}{error}"))?,
    }
    for (place, location) in source.locations.iter().enumerate() {
        // A stream has one address at a time.
        let was = source.origin == Origin::Live && place > 0;
        let at = if was { "was at" } else { "at" };
        print_line(&format!("  {at:<8}  {}", one_line(&location.place.to_string())))?;
    }
    if source.is_gone() {
        print_line("  at        gone: no place holds it any more")?;
    }
    for (name, value) in &source.tags {
        print_line(&format!("  tag       {}={}", one_line(name), one_line(value)))?;
    }
    print_line(&format!(
        "  holds     {}, {}, {}, {}, {}",
        counted(shown.segments.len(), "segment"),
        counted(shown.clips.len(), "clip"),
        counted(shown.cues.len(), "cue"),
        counted(
            shown.clips.iter().filter(|clip| clip.head.shot_start.is_some()).count(),
            "shot change"
        ),
        counted(shown.gaps.len(), "gap")
    ))?;
    for segment in &shown.segments {
        print_line("")?;
        let text = if segment.text.is_empty() { "(no words)" } else { &segment.text };
        print_line(&format!("{}  {}", span_of(source, segment.span), one_line(text)))?;
        if let Some(caption) = &segment.caption {
            print_line(&format!("  {}", caption_line(caption, segment.alignment)))?;
        }
        for clip in shown.clips_of(segment) {
            print_clip(clip, shown)?;
        }
    }
    let alone: Vec<&ClipRow> = shown.clips_alone().collect();
    if !alone.is_empty() {
        print_line("")?;
        print_line("clips in no segment")?;
        for clip in alone {
            print_clip(clip, shown)?;
        }
    }
    let mut cues = shown.cues_alone().peekable();
    if cues.peek().is_some() {
        print_line("")?;
    }
    for cue in cues {
        print_line(&format!("{}  {}", span_of(source, cue.span), one_line(&cue.text)))?;
    }
    if !shown.gaps.is_empty() {
        print_line("")?;
        for gap in &shown.gaps {
            let span = span_of(source, gap.span);
            print_line(&format!("gap  {span}  {}: {}", gap.track, one_line(&gap.reason)))?;
        }
    }
    Ok(())
}

/// `  0:01.500  3.11.7 | 0.2.4 …  shot at 0:02.040`: the whole picture's word, then the cells'.
fn print_clip(clip: &ClipRow, shown: &Shown) -> Result<()> {
    let words = clip.words.iter().map(|&word| dotted(&path(word, shown.tree)));
    let words: Vec<String> = words.collect();
    let words = match words.split_first() {
        None => String::new(),
        Some((whole, [])) => whole.clone(),
        Some((whole, cells)) => format!("{whole} | {}", cells.join(" ")),
    };
    let time = |at: Timestamp| match shown.source.origin {
        Origin::Live => wall_time(at.0),
        Origin::File | Origin::Url => at.to_string(),
    };
    let shot = clip.head.shot_start.map_or(String::new(), |at| format!("  shot at {}", time(at)));
    print_line(&format!("  {:>11}  {words}{shot}", time(clip.head.span.start)))
}

/// Media time, or, of a live source, the time of day.
fn span_of(source: &Source, span: Span) -> String {
    match source.origin {
        Origin::Live => wall_span(span.start.0, span.end.0),
        Origin::File | Origin::Url => span.to_string(),
    }
}

fn path(word: VisualWord, tree: Option<Tree>) -> Vec<u32> {
    tree.map_or_else(|| vec![word.0], |tree| word.path(tree.branching, tree.depth))
}

fn dotted(path: &[u32]) -> String {
    path.iter().map(u32::to_string).collect::<Vec<_>>().join(".")
}

#[derive(Serialize)]
struct SourceLine<'a> {
    #[serde(flatten)]
    source: &'a Source,
    /// No place holds it any more: see [`Source::is_gone`].
    gone: bool,
    /// Locations as bytes in hexadecimal where they are not UTF-8.
    location_bytes: Vec<String>,
}

#[derive(Serialize)]
struct SegmentLine<'a> {
    start_us: i64,
    end_us: i64,
    words: &'a str,
    language: Option<&'a str>,
    caption: Option<&'a str>,
    confidence: Option<f32>,
    alignment: Option<f32>,
    clips: usize,
}

#[derive(Serialize)]
struct ClipLine {
    id: String,
    start_us: i64,
    end_us: i64,
    raw_pts: i64,
    frames: u16,
    shot_start_us: Option<i64>,
    visual_words: Vec<Vec<u32>>,
}

#[derive(Serialize)]
struct CueLine<'a> {
    start_us: i64,
    end_us: i64,
    text: &'a str,
    cue_kind: CueKind,
    language: Option<&'a str>,
    track: &'a str,
    confidence: Option<f32>,
    words: &'a [TimedWord],
    speaker: Option<&'a str>,
}

#[derive(Serialize)]
struct GapLine<'a> {
    start_us: i64,
    end_us: i64,
    track: TrackKind,
    reason: &'a str,
}

fn print_shown_json(shown: &Shown, watch: Option<&Watch>) -> Result<()> {
    print_json(
        "source",
        &SourceLine {
            source: &shown.source,
            gone: shown.source.is_gone(),
            location_bytes: hex_of_unreadable(&shown.source),
        },
    )?;
    if let Some(watch) = watch {
        print_json("stream", watch)?;
    }
    for segment in &shown.segments {
        let SegmentRow { span, text, language, caption, alignment } = segment;
        print_json(
            "segment",
            &SegmentLine {
                start_us: span.start.0,
                end_us: span.end.0,
                words: text,
                language: language.as_deref(),
                caption: caption.as_ref().map(|caption| &caption.text[..]),
                confidence: caption.as_ref().map(|caption| caption.confidence),
                alignment: *alignment,
                clips: shown.clips_of(segment).len(),
            },
        )?;
    }
    for ClipRow { id, head, words } in &shown.clips {
        print_json(
            "clip",
            &ClipLine {
                id: id.to_string(),
                start_us: head.span.start.0,
                end_us: head.span.end.0,
                raw_pts: head.raw_pts,
                frames: head.frames,
                shot_start_us: head.shot_start.map(|at| at.0),
                visual_words: words.iter().map(|&word| path(word, shown.tree)).collect(),
            },
        )?;
    }
    for Cue { span, text, kind, language, track, confidence, words, speaker } in &shown.cues {
        print_json(
            "cue",
            &CueLine {
                start_us: span.start.0,
                end_us: span.end.0,
                text,
                cue_kind: *kind,
                language: language.as_deref(),
                track,
                confidence: *confidence,
                words,
                speaker: speaker.as_deref(),
            },
        )?;
    }
    for Gap { span, track, reason } in &shown.gaps {
        let (start_us, end_us) = (span.start.0, span.end.0);
        print_json("gap", &GapLine { start_us, end_us, track: *track, reason })?;
    }
    Ok(())
}

fn hex_of_unreadable(source: &Source) -> Vec<String> {
    let paths = source.locations.iter().filter_map(|location| match &location.place {
        Place::Path(path) if path.to_str().is_none() => Some(path.as_os_str().as_encoded_bytes()),
        _ => None,
    });
    paths.map(|bytes| bytes.iter().map(|byte| format!("{byte:02x}")).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_move_the_cursor() {
        assert_eq!(one_line("a\n\x1b[2Jb"), "a  [2Jb");
    }
}
