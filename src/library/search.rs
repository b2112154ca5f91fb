//! Search by vectors and words.
//!
//! Each list (a channel's vectors, or its words) ranks segments on its own; a clip or cue belongs
//! to the segment that holds its midpoint. Scores of different lists are never compared: the lists
//! are fused by reciprocal rank (Cormack, Clarke and Büttcher, 2009).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;

use rusqlite::{Connection, params};

use super::hits::{By, Hit, List, Ranked, Unit, UnitSpan, clip_at, fuse, hit};
use super::ids::SourceId;
use super::index::{Embedded, Index, Stamp};
use super::keep::KeptFrom;
use super::known::{KnownTexts, TextRow};
use super::reader::Reader;
use super::rows;
use super::spans::SegmentSpans;
use super::types::RecipeKind;
use super::vectors::{Row, VectorSet};
use super::words::{COMMON, Matches, WordIndex};
use crate::error::{Error, Kind, Result};
use crate::media::Channel;
use crate::time::Span;

/// Segments in a list that is fused: at least so many, and so many times those asked for.
const LIST: usize = 50;
const LIST_TIMES_TOP: usize = 5;

/// Of a segment, the clips that are among the best, to begin with: where they are more, more are looked at.
const CLIPS_OF_A_SEGMENT: usize = 8;

/// Scores below which a list only guesses. Every vector is somewhere near every other, and without
/// a floor a list that found nothing would outvote one that did, since ranks are all that is fused.
/// In the default space unrelated sentences reach about 0.15, and pictures about 0.1; a share of 0.3
/// leaves out what has but the small words of a query. A list that is alone has no floor.
fn floor(channel: Channel, by: By) -> f32 {
    match (by, channel) {
        (By::Words, _) => 0.3,
        (By::Meaning, Channel::Picture) => 0.1,
        (By::Meaning, _) => 0.2,
    }
}

/// Texts that are looked at together for those that pass the filters.
const TEXTS: usize = 400;

/// A unit vector for each channel to be searched by meaning, in the current recipe's space.
pub type Vectors = Vec<(Channel, Vec<f32>)>;

/// What is searched for, and where.
#[derive(Debug, Clone, Default)]
pub struct Query {
    pub vectors: Vectors,
    /// What a user typed: words, and phrases in quotation marks. Any of them matches.
    pub words: Option<String>,
    /// Empty for all.
    pub sources: Vec<SourceId>,
    /// Only what overlaps this span of media time.
    pub within: Option<Span>,
    /// Only what overlaps this time on the wall clock, in microseconds since 1970. Sources whose
    /// wall clock is not known are left out where either is set.
    pub from_us: Option<i64>,
    pub to_us: Option<i64>,
    /// Only sources that have all of these tags.
    pub tags: Vec<(String, String)>,
    /// Empty for all.
    pub channels: Vec<Channel>,
    /// The most hits; at least 1.
    pub top: usize,
    /// Hits of which no channel's score reaches this are left out.
    pub min_score: Option<f32>,
}

/// What search keeps in memory between queries.
#[derive(Debug)]
pub(super) struct Memory {
    index: Index,
    /// What all the rest is as of: SQLite's count of what others have changed, and the index.
    state: Option<(i64, Stamp)>,
    clips: VectorSet,
    segments: VectorSet,
    readings: VectorSet,
    spans: SegmentSpans,
    /// Sources with clips in no segment, where segments are found by their readings.
    unread: HashSet<i64>,
    texts: KnownTexts,
}

impl Memory {
    pub fn of(library: &Path) -> Self {
        Memory {
            index: Index::of(library),
            state: None,
            clips: VectorSet::new(Embedded::Clips),
            segments: VectorSet::new(Embedded::Segments),
            readings: VectorSet::new(Embedded::Readings),
            spans: SegmentSpans::default(),
            unread: HashSet::new(),
            texts: KnownTexts::default(),
        }
    }
}

impl Reader {
    /// The best hits, best first. The first call reads the index into memory, and the embeddings
    /// (2 bytes a dimension) of what is not in it; later ones what was added since.
    ///
    /// Errors: `InvalidInput` for a vector that is not of the library's space or a query of
    /// nothing; `NotFound` for a source that the library doesn't have.
    pub fn search(&mut self, query: &Query) -> Result<Vec<Hit>> {
        self.search_for(query, Meaning::of(query))
    }

    /// As [`Reader::search`], with further vectors, which `embed` makes while what has changed is read into
    /// memory and the words are looked up.
    ///
    /// Errors: those of `embed`, too.
    pub fn search_embedding(
        &mut self,
        query: &Query,
        embed: impl FnOnce() -> Result<Vectors> + Send,
    ) -> Result<Vec<Hit>> {
        self.search_for(query, Meaning { embed: Some(Box::new(embed)), ..Meaning::of(query) })
    }

    fn search_for(&mut self, query: &Query, mut meaning: Meaning<'_>) -> Result<Vec<Hit>> {
        if query.vectors.is_empty() && query.words.is_none() {
            return Err(Error::invalid_input("a search needs words, a picture or a clip"));
        }
        match self.search_once(query, &mut meaning) {
            Err(error)
                if matches!(error.kind(), Kind::Corrupt | Kind::Unavailable)
                    && self.memory.index.distrust() =>
            {
                tracing::warn!("{error}: searching without the index");
                self.search_once(query, &mut meaning)?
            }
            searched => searched?,
        }
    }

    /// The inner error is that of the embedding, with which the record has nothing to do.
    fn search_once(
        &mut self,
        query: &Query,
        meaning: &mut Meaning<'_>,
    ) -> Result<Result<Vec<Hit>>> {
        let memory = &mut self.memory;
        self.record.read(|sql| {
            // The connection stays on its thread; embeddings need none.
            let (filter, mut lists) = meaning.meanwhile(|| {
                memory.refresh(sql)?;
                let filter = Filter::of(sql, query)?;
                let mut texts = std::mem::take(&mut memory.texts);
                let lists = memory.all_by_words(sql, query, &filter, &mut texts);
                memory.texts = texts;
                Ok((filter, lists?))
            })?;
            if let Err(error) = meaning.take() {
                return Ok(Err(error));
            }
            // On one of the threads that share the work, or each share would wait for them to wake.
            let meant = rayon::scope(|_| memory.all_by_meaning(query, &meaning.vectors, &filter));
            lists.extend(meant?);
            leave_out_guesses(&mut lists, query.min_score);
            let clip_recipe = memory.clips.recipe();
            let hits: Result<Vec<Hit>> = fuse(&lists, query.top.max(1))
                .into_iter()
                .enumerate()
                .map(|(place, fused)| {
                    let words = query.words.as_deref().unwrap_or_default();
                    hit(sql, place + 1, fused, clip_recipe, words)
                })
                .collect();
            hits.map(Ok)
        })
    }
}

/// The vectors of a query, some of which may still have to be made.
struct Meaning<'a> {
    vectors: Vectors,
    embed: Option<Box<dyn FnOnce() -> Result<Vectors> + Send + 'a>>,
    embedded: Option<Result<Vectors>>,
}

impl Meaning<'_> {
    fn of(query: &Query) -> Self {
        Meaning { vectors: query.vectors.clone(), embed: None, embedded: None }
    }

    /// Does `work` while what has to be made is.
    fn meanwhile<T>(&mut self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let Some(embed) = self.embed.take() else { return work() };
        rayon::in_place_scope(|scope| {
            scope.spawn(|_| self.embedded = Some(embed()));
            work()
        })
    }

    /// Takes what was made.
    fn take(&mut self) -> Result<()> {
        if let Some(embedded) = self.embedded.take() {
            self.vectors.extend(embedded?);
        }
        Ok(())
    }
}

/// Leaves out what scores less than was asked for, and lists that only guess beside one that found something.
fn leave_out_guesses(lists: &mut [List], min_score: Option<f32>) {
    if let Some(least) = min_score {
        for (_, _, list) in &mut *lists {
            list.retain(|ranked| ranked.score >= least);
        }
    }
    let is_found = |(channel, by, list): &List| {
        list.first().is_some_and(|best| best.score >= floor(*channel, *by))
    };
    // Where every list guesses, a guess with its low score is still better than nothing.
    let several = lists.iter().filter(|(_, _, list)| !list.is_empty()).count() > 1;
    if several && lists.iter().any(is_found) {
        for (channel, by, list) in lists {
            list.retain(|ranked| ranked.score >= floor(*channel, *by));
        }
    }
}

/// The length of a list that is fused.
fn length(query: &Query) -> usize {
    LIST.max(query.top.saturating_mul(LIST_TIMES_TOP))
}

fn asks_for(query: &Query, channel: Channel) -> bool {
    query.channels.is_empty() || query.channels.contains(&channel)
}

impl Memory {
    fn refresh(&mut self, sql: &Connection) -> Result<()> {
        let state = (rows::one(sql, "PRAGMA data_version", [])?, self.index.stamp());
        if self.state == Some(state) {
            return Ok(());
        }
        let before = self.state.take();
        let segment_recipe = rows::current_recipe(sql, RecipeKind::Segment)?;
        let clip_recipe = rows::current_recipe(sql, RecipeKind::Clip)?;
        // The last time may have ended by an error.
        let mut is_new = before.is_none();
        is_new |= self.clips.refresh(sql, clip_recipe.as_ref(), &self.index)?;
        self.segments.refresh(sql, segment_recipe.as_ref(), &self.index)?;
        is_new |= self.readings.refresh(sql, segment_recipe.as_ref(), &self.index)?;
        is_new |= self.spans.refresh(sql, segment_recipe.as_ref())?;
        if is_new && !self.readings.is_empty() {
            self.find_unread();
        }
        if before.is_none_or(|(version, _)| version != state.0) {
            self.texts = KnownTexts::default();
        }
        self.state = Some(state);
        Ok(())
    }

    /// The lists of all channels that are found by words.
    fn all_by_words(
        &self,
        sql: &Connection,
        query: &Query,
        filter: &Filter,
        texts: &mut KnownTexts,
    ) -> Result<Vec<List>> {
        let Some(words) = &query.words else { return Ok(Vec::new()) };
        let most = if filter.is_any() { usize::MAX } else { COMMON };
        let mut lists = Vec::new();
        for (index, channels) in [
            (WordIndex::CUES, &[Channel::Speech, Channel::Screen][..]),
            (WordIndex::CAPTIONS, &[Channel::Caption][..]),
        ] {
            let matches = Matches::find(sql, index, words, most, texts)?;
            for &channel in channels.iter().filter(|&&channel| asks_for(query, channel)) {
                let list = self.by_words(sql, texts, &matches, channel, filter, length(query))?;
                lists.push((channel, By::Words, list));
            }
        }
        Ok(lists)
    }

    /// The lists of all channels that are found by vectors.
    fn all_by_meaning(
        &self,
        query: &Query,
        vectors: &Vectors,
        filter: &Filter,
    ) -> Result<Vec<List>> {
        let mut lists = Vec::new();
        for (channel, vector) in vectors.iter().filter(|(channel, _)| asks_for(query, *channel)) {
            let mut add = |vectors, takes: &(dyn Fn(&Row) -> bool + Sync)| -> Result<()> {
                let list = self.by_meaning(vectors, vector, filter, takes, length(query))?;
                lists.push((*channel, By::Meaning, list));
                Ok(())
            };
            let all = |_: &Row| true;
            match channel {
                Channel::Picture if self.readings.is_empty() => add(&self.clips, &all)?,
                Channel::Picture => {
                    // What was trained on pictures and captions knows better than class names.
                    add(&self.readings, &all)?;
                    let is_unread = |row: &Row| {
                        self.unread.contains(&row.source)
                            && self.spans.holding(row.source, row.span.midpoint()).is_none()
                    };
                    if !self.unread.is_empty() {
                        add(&self.clips, &is_unread)?;
                    }
                }
                Channel::Speech => add(&self.segments, &all)?,
                // Found by their words.
                Channel::Screen | Channel::Caption => {}
            }
        }
        Ok(lists)
    }

    /// Finds the sources with clips in no segment: the last minutes of a live source, what a run that was cut
    /// off has left, or films that a new captioner has not come to.
    fn find_unread(&mut self) {
        self.unread.clear();
        let mut last: Option<(i64, Span)> = None;
        for Row { source, span } in self.clips.rows() {
            let at = span.midpoint();
            // Most clips are in the same segment as the one before.
            if last.is_some_and(|(of, segment)| of == *source && segment.contains(at)) {
                continue;
            }
            match self.spans.holding(*source, at) {
                Some(segment) => last = Some((*source, segment)),
                None => drop(self.unread.insert(*source)),
            }
        }
    }

    /// Each segment by its best vector.
    fn by_meaning(
        &self,
        vectors: &VectorSet,
        query: &[f32],
        filter: &Filter,
        takes: &(dyn Fn(&Row) -> bool + Sync),
        length: usize,
    ) -> Result<Vec<Ranked>> {
        // Several clips are of one segment; other rows are a segment each.
        let each = if vectors.of() == Embedded::Clips { CLIPS_OF_A_SEGMENT } else { 1 };
        let mut looked_at = length.saturating_mul(each);
        loop {
            let keeps = |row: &Row| takes(row) && filter.keeps(row.source, row.span);
            let rows = vectors.best(query, looked_at, keeps)?;
            let mut seen = HashSet::new();
            let mut list = Vec::new();
            for &(row, score) in &rows {
                let unit = self.unit(row.source, row.span, filter);
                if list.len() < length && seen.insert(unit) {
                    list.push(Ranked { unit, span: row.span, score });
                }
            }
            if list.len() >= length || rows.len() < looked_at {
                return Ok(list);
            }
            looked_at = looked_at.saturating_mul(4);
        }
    }

    /// Each segment by the terms that its cues, or its caption, hold together.
    fn by_words(
        &self,
        sql: &Connection,
        texts: &mut KnownTexts,
        matches: &Matches,
        channel: Channel,
        filter: &Filter,
        length: usize,
    ) -> Result<Vec<Ranked>> {
        struct Group {
            terms: u64,
            best: (f32, i64),
            span: Span,
        }
        let mut groups: BTreeMap<Unit, Group> = BTreeMap::new();
        let recipe = self.segments.recipe().unwrap_or(0);
        for batch in matches.texts.chunks(TEXTS) {
            for found in batch {
                let row = texts.row(sql, matches.index, found.key, recipe)?;
                let Some(text) = row else { continue };
                if text.channel != channel || !filter.keeps(text.source, text.span) {
                    continue;
                }
                let unit = self.unit_of_text(sql, &text, filter)?;
                let rank = (matches.score(found.terms), -text.length);
                let group =
                    groups.entry(unit).or_insert(Group { terms: 0, best: rank, span: text.span });
                group.terms |= found.terms;
                if rank > group.best {
                    (group.best, group.span) = (rank, text.span);
                }
            }
            if groups.len() >= length {
                break;
            }
        }
        let mut list: Vec<(Ranked, (f32, i64))> = groups
            .into_iter()
            .map(|(unit, group)| {
                let score = matches.score(group.terms);
                (Ranked { unit, span: group.span, score }, group.best)
            })
            .collect();
        let order = |a: &(Ranked, (f32, i64)), b: &(Ranked, (f32, i64))| {
            let by_best = b.1.0.total_cmp(&a.1.0).then(b.1.1.cmp(&a.1.1));
            b.0.score.total_cmp(&a.0.score).then(by_best)
        };
        list.sort_by(order);
        list.truncate(length);
        Ok(list.into_iter().map(|(ranked, _)| ranked).collect())
    }

    fn unit(&self, source: i64, span: Span, filter: &Filter) -> Unit {
        let segment = self.spans.holding(source, span.midpoint());
        let span = match segment.filter(|segment| filter.kept.keeps(source, segment.start)) {
            Some(segment) => UnitSpan::Segment { start: segment.start.0, end: segment.end.0 },
            None => UnitSpan::Alone { start: span.start.0 },
        };
        Unit { source, span }
    }

    /// A cue in no segment goes with the clip that shows it.
    fn unit_of_text(&self, sql: &Connection, text: &TextRow, filter: &Filter) -> Result<Unit> {
        let unit = self.unit(text.source, text.span, filter);
        if matches!(unit.span, UnitSpan::Alone { .. })
            && let Some(recipe) = self.clips.recipe()
            && let Some(clip) = clip_at(sql, text.source, recipe, text.span.midpoint())?
        {
            return Ok(Unit { span: UnitSpan::Alone { start: clip.0 }, ..unit });
        }
        Ok(unit)
    }
}

/// What of the library a query looks at.
pub(super) struct Filter {
    sources: Option<BTreeSet<i64>>,
    within: Option<Span>,
    /// From, to, and each source's zero, in microseconds since 1970.
    wall: Option<(i64, i64, HashMap<i64, i64>)>,
    kept: KeptFrom,
}

impl Filter {
    pub fn of(sql: &Connection, query: &Query) -> Result<Self> {
        let mut sources: Option<BTreeSet<i64>> = None;
        if !query.sources.is_empty() {
            let keys = query.sources.iter().map(|&id| rows::source_key(sql, id));
            sources = Some(keys.collect::<Result<_>>()?);
        }
        for (name, value) in &query.tags {
            let find = "SELECT source FROM tags WHERE name = ?1 AND value = ?2";
            let tagged: BTreeSet<i64> =
                rows::all(sql, find, params![name, value], |row| row.get(0))?.into_iter().collect();
            sources = Some(match sources {
                None => tagged,
                Some(before) => before.intersection(&tagged).copied().collect(),
            });
        }
        let wall = if query.from_us.is_some() || query.to_us.is_some() {
            let find = "SELECT key, wall_start_us FROM sources WHERE wall_start_us IS NOT NULL";
            let zeros = rows::all(sql, find, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
            let (from, to) = (query.from_us.unwrap_or(i64::MIN), query.to_us.unwrap_or(i64::MAX));
            Some((from, to, zeros.into_iter().collect()))
        } else {
            None
        };
        Ok(Filter { sources, within: query.within, wall, kept: KeptFrom::read(sql)? })
    }

    fn is_any(&self) -> bool {
        self.sources.is_some() || self.within.is_some() || self.wall.is_some()
    }

    /// Whether the query looks at this, and it was not deleted.
    pub fn keeps(&self, source: i64, span: Span) -> bool {
        self.kept.keeps(source, span.start) && self.asks(source, span)
    }

    /// Whether the query looks at this.
    pub fn asks(&self, source: i64, span: Span) -> bool {
        let on_clock = |(from, to, zeros): &(i64, i64, HashMap<i64, i64>)| {
            zeros.get(&source).is_some_and(|zero| {
                zero.saturating_add(span.start.0) < *to && zero.saturating_add(span.end.0) > *from
            })
        };
        self.within.is_none_or(|within| within.overlaps(span))
            && self.sources.as_ref().is_none_or(|sources| sources.contains(&source))
            && self.wall.as_ref().is_none_or(on_clock)
    }
}
