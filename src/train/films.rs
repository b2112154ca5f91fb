//! What is learnt from libraries: what was said, beside what was to be seen meanwhile.
//!
//! The sentences of a segment are its captions, as speech is in VideoBERT and CBT (Sun and others, 2019):
//! nobody said them to describe the picture, but often enough they do.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::config::Config;
use super::corpus::Skipped;
use crate::codebook::Codebook;
use crate::error::{Error, Result};
use crate::evaluate::photos::{Photo, held_out};
use crate::evaluate::pictures::Pictures;
use crate::evaluate::setup::Progress;
use crate::library::{Reader, Recipe, RecipeKind, SeenClip, SegmentRow, Source};
use crate::media::{CellFeatures, Cue, CueKind};
use crate::model::Manifest;
use crate::picture::CELLS;
use crate::text::{caption_words, reads};
use crate::time::{Micros, Timestamp};
use crate::transcript::{SentenceRules, sentences};
use crate::transformer::spread;

/// Clips that are held in memory, 3.5 GB of them: of some 400 hours in which somebody speaks.
const MOST_CLIPS: usize = 1_000_000;
/// Segments that are further apart are no neighbours.
const PAUSE: Micros = Micros::from_millis(10_000);

/// What was learnt from a library.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Learnt {
    pub library: PathBuf,
    /// Sources in which something is said, those that are held out included.
    pub sources: usize,
    /// Their segments in which something is said.
    pub segments: usize,
    /// Names of the sources that are scored on and not trained on.
    pub held_out: Vec<String>,
    /// How its clips were made.
    #[serde(skip)]
    pub clips: Recipe,
    /// How they were divided into segments.
    #[serde(skip)]
    pub rules: serde_json::Value,
}

/// A library that is learnt from.
#[derive(Debug)]
pub(super) struct Library {
    folder: PathBuf,
    reader: Reader,
    clips: Recipe,
    rules: serde_json::Value,
}

/// What is taken of libraries.
#[derive(Debug, Clone, Copy)]
pub(super) struct Taken<'a> {
    /// Length of the features.
    pub(super) dim: usize,
    /// Clips of a segment, at most.
    pub(super) clips: usize,
    /// Whether the features of the parts of a picture are, where there are some.
    pub(super) cells: bool,
    /// The sentence encoder.
    pub(super) tower: &'a Manifest,
}

/// What is trained on of a library, and what it is scored on.
#[derive(Debug)]
pub(super) struct Divided {
    pub(super) train: Pictures,
    pub(super) dev: Pictures,
    pub(super) learnt: Learnt,
}

/// A source in which something is said.
struct Film {
    name: String,
    fingerprint: String,
    segments: Vec<Vec<(Photo, SeenClip)>>,
}

impl Library {
    /// Opens a library whose clips are what a network of this configuration is to see. `codebook`: the
    /// one whose words it is to see, where it is there already.
    ///
    /// # Errors
    /// `InvalidInput` where another encoder or codebook made them, or they lack what is to be seen; as
    /// [`Reader::open`].
    pub(super) fn open(
        folder: &Path,
        config: &Config,
        encoder: &Manifest,
        codebook: Option<&Codebook>,
    ) -> Result<Library> {
        let reader = Reader::open(folder)?;
        let nothing = || Error::invalid_input("it has no clips yet: index something");
        let clips = reader.current(RecipeKind::Clip)?.ok_or_else(nothing)?;
        let says = |name: &str| clips.description.get(name).and_then(|value| value.as_str());
        let (used, wanted) = (says("encoder").unwrap_or("unknown"), encoder.identity());
        if used != wanted {
            return Err(Error::invalid_input(format!(
                "it was indexed with the encoder {used}, not {wanted}: name that one's manifest as \
                 `encoder` in the configuration"
            )));
        }
        if config.inputs.cells && says("cells") != Some("kept") {
            return Err(Error::invalid_input(
                "it was indexed without the features of the parts of a picture: index it with a pipeline \
                 that says `cells = \"3x3\"`, or train with --inputs features",
            ));
        }
        let wanted = codebook.map(|codebook| codebook.id().to_hex().to_string());
        if let Some(wanted) = wanted.filter(|wanted| says("codebook") != Some(&wanted[..])) {
            let used = says("codebook").map_or_else(
                || "without a codebook".to_owned(),
                |used| format!("with the codebook {used}"),
            );
            return Err(Error::invalid_input(format!(
                "it was indexed {used}, not with {} ({wanted}), whose words the network would see: name \
                 the library's own as `codebook` in the configuration; or write \"fit\" there for one of \
                 these films, which they are then indexed with again; or train with --inputs \
                 features+cells, which needs none",
                config.codebook
            )));
        }
        let segments = reader.current(RecipeKind::Segment)?;
        let rules = segments.map(|recipe| recipe.description["segment"].clone());
        let rules = rules.unwrap_or_default();
        Ok(Library { folder: folder.to_owned(), reader, clips, rules })
    }

    /// The sources in which something is said, but those `known` from another library.
    fn films(
        &self,
        taken: Taken<'_>,
        known: &mut BTreeSet<String>,
        skipped: &mut Skipped,
        progress: &mut dyn FnMut(Progress) -> Result<()>,
    ) -> Result<Vec<Film>> {
        let before = *skipped;
        let sources = self.reader.sources()?;
        let of = sources.len();
        let mut films = Vec::new();
        for (done, source) in sources.into_iter().enumerate() {
            progress(Progress { what: "sources", done, of })?;
            if !known.insert(source.fingerprint.clone()) {
                skipped.copies += 1;
                continue;
            }
            let film = self.film(source, taken, skipped)?;
            match film.segments.is_empty() {
                true => skipped.sources += 1,
                false => films.push(film),
            }
        }
        if films.is_empty() && skipped.copies == before.copies {
            let (foreign, unseen) =
                (skipped.foreign - before.foreign, skipped.unseen - before.unseen);
            return Err(Error::invalid_input(format!(
                "nothing is said in it that could be learnt: of its {of} sources, none has words beside a \
                 picture in a language that the sentence encoder {} reads ({foreign} segments are in \
                 others, {unseen} have no picture). Subtitles are read from tracks in a file, and from \
                 .srt, .vtt and .ass files beside it, when it is indexed",
                taken.tower.id
            )));
        }
        Ok(films)
    }

    fn film(&self, source: Source, taken: Taken<'_>, skipped: &mut Skipped) -> Result<Film> {
        let shown = self.reader.show(source.id)?;
        let languages = &taken.tower.text()?.languages;
        let mut film =
            Film { name: source.name, fingerprint: source.fingerprint, segments: Vec::new() };
        let (mut run, mut end) = (0, None);
        for segment in &shown.segments {
            let said = said(segment);
            if said.is_empty() {
                continue;
            }
            if segment.language.as_deref().is_some_and(|tag| !reads(languages, tag)) {
                skipped.foreign += 1;
                continue;
            }
            let of_segment = shown.clips_of(segment);
            let starts: Vec<Timestamp> = spread(of_segment.len(), taken.clips)
                .map(|place| of_segment[place].id.start)
                .collect();
            let clips = self.reader.seen_clips(source.id, &self.clips.id, &starts)?;
            if clips.len() != starts.len() {
                return Err(Error::unavailable(
                    "its clips changed while they were read: try again when it is not being indexed",
                ));
            }
            if end.is_some_and(|end| segment.span.start - end > PAUSE) {
                run += 1;
            }
            let mut captions = said;
            let mut together = Vec::new();
            for (mut clip, start) in clips.into_iter().zip(starts) {
                if !is_whole(&clip, taken.dim, self.has_cells()) {
                    skipped.clips += 1;
                    continue;
                }
                if !taken.cells {
                    clip.cells = CellFeatures::default();
                }
                let photo = Photo {
                    image: format!("{}@{}", film.fingerprint, start.0),
                    split: "train".to_owned(),
                    video: Some(format!("{} {run}", film.fingerprint)),
                    captions: std::mem::take(&mut captions),
                };
                together.push((photo, clip));
            }
            match together.is_empty() {
                true => skipped.unseen += 1,
                false => {
                    film.segments.push(together);
                    end = Some(segment.span.end);
                }
            }
        }
        Ok(film)
    }

    fn has_cells(&self) -> bool {
        self.clips.description["cells"] == "kept"
    }
}

/// Reads libraries. Some of all their sources are held out of the training, each in whichever library
/// it is.
///
/// # Errors
/// `InvalidInput` for a library in which nothing is said; `Exhausted` where they are too large;
/// that of `progress`.
pub(super) fn divided(
    libraries: Vec<Library>,
    taken: Taken<'_>,
    skipped: &mut Skipped,
    progress: &mut dyn FnMut(Progress) -> Result<()>,
) -> Result<Vec<Divided>> {
    let mut known = BTreeSet::new();
    let mut read = Vec::new();
    let mut clips = 0;
    for library in libraries {
        let films = library
            .films(taken, &mut known, skipped, progress)
            .map_err(|error| error.in_source(library.folder.display()))?;
        clips += films.iter().flat_map(|film| &film.segments).map(Vec::len).sum::<usize>();
        if clips > MOST_CLIPS {
            return Err(Error::exhausted(format!(
                "more than {MOST_CLIPS} clips are not held in memory: train on fewer libraries at a time"
            ))
            .in_source(library.folder.display()));
        }
        read.push((library, films));
    }
    let films = read.iter().flat_map(|(_, films)| films);
    let held_out: BTreeSet<String> =
        held_out(films.map(|film| &film.fingerprint[..])).into_iter().map(str::to_owned).collect();
    let divide = |(library, films): (Library, Vec<Film>)| {
        let sources = films.len();
        let segments = films.iter().map(|film| film.segments.len()).sum();
        let (dev, train): (Vec<Film>, Vec<Film>) =
            films.into_iter().partition(|film| held_out.contains(&film.fingerprint));
        let names = dev.iter().map(|film| film.name.clone()).collect();
        let pictures = |films: Vec<Film>| {
            Pictures::of_segments(taken.dim, films.into_iter().flat_map(|film| film.segments))
        };
        Divided {
            train: pictures(train),
            dev: pictures(dev),
            learnt: Learnt {
                library: library.folder,
                sources,
                segments,
                held_out: names,
                clips: library.clips,
                rules: library.rules,
            },
        }
    };
    Ok(read.into_iter().map(divide).collect())
}

/// The sentences of a segment that have words.
fn said(segment: &SegmentRow) -> Vec<String> {
    // A segment's text is that of its sentences in a row: they are told apart again as those of a cue.
    let cue = Cue {
        span: segment.span,
        text: segment.text.clone(),
        kind: CueKind::Speech,
        language: None,
        track: String::new(),
        confidence: None,
        words: Vec::new(),
        speaker: None,
    };
    let sentences = sentences([&cue], &SentenceRules::default()).into_iter();
    let has_words = |text: &String| !caption_words(text).is_empty();
    sentences.map(|sentence| sentence.text).filter(has_words).collect()
}

/// Whether all is there that a library should keep of a clip.
fn is_whole(clip: &SeenClip, dim: usize, has_cells: bool) -> bool {
    let cells = || clip.cells.values(dim).is_some_and(|values| values.len() == CELLS * dim);
    let features = &clip.features;
    features.len() == dim && features.iter().all(|x| x.is_finite()) && (!has_cells || cells())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Span;

    #[test]
    fn each_sentence_of_a_segment_is_a_caption() {
        let of = |text: &str| {
            said(&SegmentRow {
                span: Span::new(Timestamp(0), Timestamp(0)),
                text: text.to_owned(),
                language: None,
                caption: None,
                alignment: None,
            })
        };
        let sentences = ["Mr. Hall cuts an onion.", "Now fry it!"];
        assert_eq!(of(&sentences.join(" ")), sentences);
        assert_eq!(of("and no full stop"), ["and no full stop"]);
        assert!(of("").is_empty() && of(" ... ").is_empty());
    }
}
