//! `cinelex search`: words or a picture to moments.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::Serialize;

use super::export::{self, Exported};
use super::when::{Lately, WallTime, wall_clock, wall_span, wall_time};
use super::{
    CommandResult, Failure, Outcome, caption_line, note, one_line, print_json, print_line,
};
use crate::error::{Error, Kind, Result};
use crate::library::{ClipId, Hit, Origin, Query, Reader, RecipeKind, Space, Unseen, Vectors};
use crate::media::{Channel, TrackKind};
use crate::model::{Device, Models};
use crate::pipeline::{Loaded, Pipeline};
use crate::source::{Host, Input, Limits, Location};
use crate::text::{TextTower, space_id};
use crate::time::Span;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// The library
    library: PathBuf,
    /// What to look for, in words; "quotation marks" keep a phrase together
    #[arg(required_unless_present_any = ["image", "like"])]
    words: Option<String>,
    /// Look for what this picture shows
    #[arg(long, value_name = "FILE", conflicts_with_all = ["words", "like"])]
    image: Option<PathBuf>,
    /// Look for what this clip of the library shows: SOURCE@MICROSECONDS, as hits name it
    #[arg(long, value_name = "CLIP", conflicts_with = "words")]
    like: Option<ClipId>,
    /// Only in this source: its id or the beginning of it, its name, or its path; may be repeated
    #[arg(long)]
    source: Vec<String>,
    /// Only within this part of each source: 10:00-12:00, or 1:00:00- for everything after
    #[arg(long, value_name = "START-END")]
    within: Option<Span>,
    /// Only what was recorded at or after this time of day: 2026-11-20, "2026-11-20 10:00",
    /// "yesterday 10:00", 10:00, or with a zone 2026-11-20T10:00:00Z
    #[arg(long, value_name = "WHEN")]
    from: Option<WallTime>,
    /// Only what was recorded before this time of day
    #[arg(long, value_name = "WHEN")]
    to: Option<WallTime>,
    /// Only what was recorded in so long up to now: 90s, 15m, 2h, 7d
    #[arg(long, value_name = "LENGTH", conflicts_with_all = ["from", "to"])]
    last: Option<Lately>,
    /// Only in sources with this tag; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = super::tag)]
    tag: Vec<(String, String)>,
    /// Only by what was seen or said there; may be repeated
    #[arg(long)]
    channel: Vec<Channel>,
    /// How many hits
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..))]
    top: u16,
    /// Leave out hits whose best score is lower
    #[arg(long, allow_negative_numbers = true, value_parser = finite)]
    min_score: Option<f32>,
    /// Cut the best hit's moment out into a new file, whose ending says the format; out of a live
    /// source with the sound that was recorded
    #[arg(long, value_name = "FILE")]
    export: Option<PathBuf>,
    /// Write the thumbnail of each hit's clip into this folder, as CLIP.jpg
    #[arg(long, value_name = "DIR")]
    thumbnails: Option<PathBuf>,
    /// The pipeline that the library was indexed with, for --image
    #[arg(long, default_value = "default", value_name = "NAME|FILE")]
    pipeline: String,
    /// The captioner that the library was indexed with, for --image, where it is not the pipeline's
    #[arg(long, value_name = "ID|FILE")]
    captioner: Option<String>,
    /// The sentence encoder's manifest, where the library was indexed with one that is not built in
    #[arg(long, value_name = "FILE")]
    text: Option<String>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

fn finite(text: &str) -> std::result::Result<f32, String> {
    text.parse().ok().filter(|score: &f32| score.is_finite()).ok_or("write a number".to_owned())
}

pub fn run(args: Args) -> CommandResult {
    in_order(args.from, args.to).map_err(Failure::usage)?;
    let mut reader = Reader::open(&args.library).map_err(Failure::cannot_open)?;
    let mut query = Query {
        within: args.within,
        from_us: match args.last {
            Some(Lately(length)) => Some((Timestamp::now() - length).as_microsecond()),
            None => args.from.map(|at| at.0.as_microsecond()),
        },
        to_us: args.to.map(|at| at.0.as_microsecond()),
        words: args.words.clone(),
        tags: args.tag.clone(),
        channels: args.channel.clone(),
        top: usize::from(args.top),
        min_score: args.min_score,
        ..Query::default()
    };
    for source in &args.source {
        query.sources.push(reader.source(source).map_err(Failure::usage)?.id);
    }
    if let Some(image) = &args.image {
        query.vectors.push((Channel::Picture, image_vector(&reader, image, &args)?));
    } else if let Some(clip) = args.like {
        query
            .vectors
            .push((Channel::Picture, reader.picture_embedding(clip).map_err(Failure::usage)?));
    }
    if let Some(file) = &args.export {
        export::check(file).map_err(Failure::usage)?;
    }
    let hits = match query.words.clone() {
        Some(words) => search_words(&mut reader, &mut query, &words, args.text.as_deref())?,
        None => reader.search(&query)?,
    };
    for hit in &hits {
        let thumbnail =
            args.thumbnails.as_deref().map(|folder| write_thumbnail(&reader, hit, folder));
        let thumbnail = thumbnail.transpose()?.flatten();
        if args.json {
            print_json("hit", &ShownHit { hit, thumbnail })?;
        } else {
            print_hit(hit)?;
            if let Some(file) = thumbnail {
                print_line(&format!("       thumbnail {}", one_line(&file)))?;
            }
        }
    }
    if hits.is_empty() {
        let reason = why_nothing(&mut reader, &query)?;
        if args.json { note(&reason) } else { print_line(&reason)? }
    }
    if query.from_us.is_some() || query.to_us.is_some() {
        for unseen in reader.unseen(&query, Timestamp::now().as_microsecond())? {
            if args.json { print_json("unseen", &unseen)? } else { print_unseen(&unseen)? }
        }
    }
    if let Some(file) = &args.export {
        let best = hits
            .first()
            .ok_or_else(|| Error::not_found("nothing was found, so there is nothing to cut out"))?;
        let source = reader.source(&best.source.to_string())?;
        let exported = export::cut(&reader, &source, best, file)?;
        if args.json {
            print_json("export", &exported)?;
        } else {
            let Exported { span, file, missing } = exported;
            let shown = |span: Span| match best.origin {
                Origin::Live => wall_span(span.start.0, span.end.0),
                _ => span.to_string(),
            };
            let (name, file) = (one_line(&best.name), one_line(&file));
            print_line(&format!("Cut {} out of {name} into {file}", shown(span)))?;
            for span in missing {
                print_line(&format!("not recorded: {}", shown(span)))?;
            }
        }
    }
    Ok(Outcome::Done)
}

/// Whether there is any time between the two.
fn in_order(from: Option<WallTime>, to: Option<WallTime>) -> Result<()> {
    let (Some(WallTime(from)), Some(WallTime(to))) = (from, to) else { return Ok(()) };
    if from < to {
        return Ok(());
    }
    let [from, to] = [from, to].map(|at| wall_clock(at.as_microsecond()));
    Err(Error::invalid_input(format!(
        "--from ({from}) is not before --to ({to}): a time without a day is one of today; write the day, \
         too, as in \"yesterday 23:00\""
    )))
}

/// A hit, and where its thumbnail was written.
#[derive(Serialize)]
struct ShownHit<'a> {
    #[serde(flatten)]
    hit: &'a Hit,
    #[serde(skip_serializing_if = "Option::is_none")]
    thumbnail: Option<String>,
}

/// Writes the thumbnail of a hit's clip into `folder`, under the clip's id, so that the same clip is the same
/// file whatever was searched for; `None` where there is none.
fn write_thumbnail(reader: &Reader, hit: &Hit, folder: &Path) -> Result<Option<String>> {
    let Some(clip) = hit.clip else { return Ok(None) };
    let thumbnail = match reader.thumbnail(clip) {
        // The hit is whole without it.
        Err(error) if error.kind() == Kind::Corrupt => {
            note(&error.to_string());
            return Ok(None);
        }
        thumbnail => thumbnail?,
    };
    let Some(thumbnail) = thumbnail else { return Ok(None) };
    std::fs::create_dir_all(folder).map_err(|cause| Error::io(folder, "make the folder", cause))?;
    let file = folder.join(format!("{clip}.jpg"));
    std::fs::write(&file, thumbnail.as_bytes())
        .map_err(|cause| Error::io(&file, "write", cause))?;
    Ok(Some(file.display().to_string()))
}

/// Hits by words, and by their meaning where the library has embeddings.
fn search_words(
    reader: &mut Reader,
    query: &mut Query,
    words: &str,
    manifest: Option<&str>,
) -> Result<Vec<Hit>, Failure> {
    let Some(space) = space(reader)? else { return Ok(reader.search(query)?) };
    let models = Models::open().map_err(Failure::cannot_open)?;
    let tower = manifest.unwrap_or(&space.tower);
    let manifest = models.manifest(tower).map_err(|error| {
        Failure::cannot_open(
            Error::not_found(format!(
                "the library was indexed with the sentence encoder {tower}; name its manifest \
                 with --text FILE"
            ))
            .caused_by(error),
        )
    })?;
    same_space(&space, &space_id(&manifest))?;
    let (mut is_unusable, mut vectors) = (false, Vectors::new());
    let embed = || {
        // The words are looked up beside it, and a second thread gains nothing on so short a text.
        let tower = TextTower::load(&models, &manifest, 1);
        let vector = tower.inspect_err(|_| is_unusable = true)?.embed(&[words])?.row(0).to_vec();
        vectors = vec![(Channel::Picture, vector.clone()), (Channel::Speech, vector)];
        Ok(vectors.clone())
    };
    let searched = reader.search_embedding(query, embed);
    // For those who ask on.
    query.vectors = vectors;
    searched.map_err(|error| match is_unusable {
        true => Failure::cannot_open(error),
        false => error.into(),
    })
}

fn space(reader: &Reader) -> Result<Option<Space>> {
    let segments = reader.current(RecipeKind::Segment)?.and_then(|recipe| recipe.space);
    match segments {
        Some(space) => Ok(Some(space)),
        None => Ok(reader.current(RecipeKind::Clip)?.and_then(|recipe| recipe.space)),
    }
}

fn same_space(library: &Space, query: &str) -> Result<(), Failure> {
    if library.id == query {
        return Ok(());
    }
    Err(Failure::usage(Error::invalid_input(format!(
        "the library's embeddings are in the space {}, the query's in {query}: they cannot be \
         compared; index again, or name the models that the library was indexed with",
        library.id
    ))))
}

fn image_vector(reader: &Reader, image: &Path, args: &Args) -> Result<Vec<f32>, Failure> {
    let models = Models::open().map_err(Failure::cannot_open)?;
    let mut pipeline = Pipeline::load(&args.pipeline, &models).map_err(Failure::usage)?;
    if let Some(captioner) = &args.captioner {
        pipeline.set_captioner(captioner, &models).map_err(Failure::usage)?;
    }
    let segments = reader.current(RecipeKind::Segment)?;
    let wanted = segments.and_then(|recipe| {
        Some(recipe.description.get("captioner")?.get("id")?.as_str()?.to_owned())
    });
    if wanted.is_none() {
        // Then pictures are compared without visual words, too.
        (pipeline.captioner, pipeline.codebook) = (None, None);
    }
    let named = pipeline.captioner.as_deref().map(|captioner| models.manifest(captioner));
    let named = named.transpose().map_err(Failure::usage)?.map(|manifest| manifest.identity());
    if named != wanted {
        return Err(Failure::usage(Error::invalid_input(format!(
            "the library's pictures were read by the captioner {}; name its manifest with --captioner",
            wanted.unwrap_or_default()
        ))));
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut loaded = Loaded::load(pipeline, &models, Device::Cpu, threads, NonZeroUsize::MIN)
        .map_err(Failure::cannot_open)?;
    let recipe = reader.current(RecipeKind::Clip)?;
    let encoder = |recipe: &crate::library::Recipe| recipe.description.get("encoder").cloned();
    match &recipe {
        Some(recipe) if encoder(recipe) == encoder(&loaded.clip_recipe) => {}
        _ => {
            return Err(Failure::usage(Error::invalid_input(
                "the library was indexed with another encoder; name its pipeline with --pipeline",
            )));
        }
    }
    let input = Input::open(&Location::File(image.to_owned()))?;
    let mut host = Host::start(&Limits::default())?;
    Ok(loaded.embed_picture(&mut host, &input)?)
}

/// Why a search has no hits: the library is empty, or one of the filters, without which there are
/// some.
fn why_nothing(reader: &mut Reader, query: &Query) -> Result<String> {
    if reader.info()?.complete == 0 && reader.sources()?.is_empty() {
        return Ok("Nothing was found: the library is empty, index something.".to_owned());
    }
    let mut filters: Vec<(String, Query)> = Vec::new();
    let mut without = |name: String, is_set: bool, drop: &dyn Fn(&mut Query)| {
        if is_set {
            let mut other = Query { top: 1, ..query.clone() };
            drop(&mut other);
            filters.push((name, other));
        }
    };
    without("--source".into(), !query.sources.is_empty(), &|query| query.sources.clear());
    without("--within".into(), query.within.is_some(), &|query| query.within = None);
    let is_dated = query.from_us.is_some() || query.to_us.is_some();
    without("--from, --to and --last".into(), is_dated, &|query| {
        (query.from_us, query.to_us) = (None, None);
    });
    for (name, value) in &query.tags {
        let tag = (name.clone(), value.clone());
        without(format!("--tag {name}={value}"), true, &|query| {
            query.tags.retain(|other| *other != tag);
        });
    }
    without("--channel".into(), !query.channels.is_empty(), &|query| query.channels.clear());
    without("--min-score".into(), query.min_score.is_some(), &|query| query.min_score = None);
    if filters.is_empty() {
        return Ok("Nothing was found.".to_owned());
    }
    let mut emptied = Vec::new();
    for (name, other) in &filters {
        if !reader.search(other)?.is_empty() {
            emptied.push(one_line(name));
        }
    }
    Ok(match &emptied[..] {
        [] => {
            "Nothing was found, and leaving out any one of the filters would find nothing either."
                .to_owned()
        }
        emptied => {
            format!("Nothing was found; there are hits without {}.", emptied.join(", or without "))
        }
    })
}

/// Words of a hit that are printed with their times.
const MOST_SAID: usize = 8;

fn print_hit(hit: &Hit) -> Result<()> {
    let by = match hit.found.channel {
        Channel::Picture => "picture".to_owned(),
        channel => format!("{channel}, by {}", hit.found.by.as_str()),
    };
    let span = Span::new(hit.span.start_us, hit.span.end_us);
    let span = match wall_zero(hit) {
        Some(zero_us) => {
            let [start, end] = [span.start, span.end].map(|at| zero_us.saturating_add(at.0));
            wall_span(start, end)
        }
        None => span.to_string(),
    };
    print_line(&format!(
        "{:>3}. {:.3}  {span}  {}  ({by})",
        hit.rank,
        hit.found.score,
        place(hit)
    ))?;
    if !hit.words.is_empty() {
        print_line(&format!("       “{}”", shortened(&hit.words, 100)))?;
    }
    if !hit.said.is_empty() {
        let said = hit.said.iter().take(MOST_SAID);
        let said = said.map(|word| {
            let at = match wall_zero(hit) {
                Some(zero_us) => wall_time(zero_us.saturating_add(word.span.start.0)),
                None => word.span.start.to_string(),
            };
            format!("{at} {}", one_line(&word.text))
        });
        print_line(&format!("       said: {}", said.collect::<Vec<_>>().join(", ")))?;
    }
    if let Some(caption) = &hit.caption {
        print_line(&format!("       {}", caption_line(caption, hit.alignment)))?;
    }
    if let Some(clip) = hit.clip {
        print_line(&format!("       clip {clip}"))?;
    }
    Ok(())
}

/// Where a live source's media time has its zero: of what was seen there, the time of day says more.
fn wall_zero(hit: &Hit) -> Option<i64> {
    let start_us = hit.wall_clock_us.filter(|_| hit.origin == Origin::Live)?;
    Some(start_us.saturating_sub(hit.span.start_us.0))
}

/// `no video 2026-11-20 10:02:10-10:05:41  rtsp://camera/door  (camera unreachable)`.
fn print_unseen(unseen: &Unseen) -> Result<()> {
    let what = if unseen.track == TrackKind::Sound { "sound" } else { "video" };
    print_line(&format!(
        "no {what} {}  {}  ({})",
        wall_span(unseen.from_us, unseen.to_us),
        one_line(&unseen.name),
        one_line(&unseen.reason)
    ))
}

/// Where a file lies; a live source's name, which is its address where it has no other.
fn place(hit: &Hit) -> String {
    match &hit.location {
        _ if hit.origin == Origin::Live => one_line(&hit.name),
        Some(location) => one_line(&location.place.to_string()),
        None => format!("{} (gone)", one_line(&hit.name)),
    }
}

/// At most `most` characters of one line.
fn shortened(text: &str, most: usize) -> String {
    let line = one_line(&text.split_whitespace().collect::<Vec<_>>().join(" "));
    if line.chars().count() <= most {
        return line;
    }
    let mut cut: String = line.chars().take(most - 1).collect();
    cut.push('…');
    cut
}
