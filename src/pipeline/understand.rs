//! The other half: reads from the record what ingest has stored, and writes segments. It decodes
//! nothing, so other sentence rules or another transformer re-read a library at little cost.

use std::mem::take;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::vec::IntoIter;

use crossbeam_channel::Receiver;
use half::f16;

use super::describe::{AT_A_TIME, Described, Describer};
use super::report::Made;
use crate::codebook::Codebook;
use crate::error::{Error, Result};
use crate::graph::{Cancel, StageStats};
use crate::library::{Reader, RecipeId, SegmentReading, SegmentRecord, SourceId, State, Writer};
use crate::media::{ClipHead, Cue};
use crate::text::{TextTower, reads};
use crate::time::{Micros, Span, Timestamp};
use crate::transcript::{
    SegmentPlan, SegmentRules, SentenceRules, chosen_track, segments, sentences,
};
use crate::transformer::spread;

/// Turns clips and cues into segments.
pub(super) struct Understand<'a> {
    pub library: &'a Mutex<Writer>,
    pub store: Store<'a>,
    pub read: Read<'a>,
    pub reader: Reader,
    pub tower: &'a mut TextTower,
    pub sentence: SentenceRules,
    pub segment: SegmentRules,
    pub clip_recipe: &'a RecipeId,
    pub recipe: &'a RecipeId,
    /// What writes captions, side by side; none where nothing does.
    pub describers: &'a mut [Describer],
    /// That of the visual words that these see.
    pub codebook: Option<&'a Codebook>,
    pub stats: &'a StageStats,
    pub describing: &'a StageStats,
    pub cancel: &'a Cancel,
    pub stored: Stored<'a>,
    pub failed: Failed<'a>,
}

/// Writes to the library, and knows what is done where that cannot be written to.
pub(super) type Store<'a> = &'a (dyn Fn(&dyn Fn(&mut Writer) -> Result<()>) -> Result<()> + Sync);

/// Reads from the library, and knows what is done where that cannot be read.
pub(super) type Read<'a> = &'a (dyn Fn(&mut dyn FnMut() -> Result<()>) -> Result<()> + Sync);

/// Is told of a part whose segments are in the record, and where the last of them ends, if there is one.
pub(super) type Stored<'a> = &'a (dyn Fn(Part, Option<Timestamp>, Made) + Sync);

/// Is told of a part whose segments could not be made, and returns the error if that ends the work.
pub(super) type Failed<'a> = &'a (dyn Fn(Part, Error) -> Result<()> + Sync);

/// Texts in one run of the sentence encoder.
const TEXTS_A_RUN: usize = 32;
/// No sentence begins longer than this before its end.
const LONGEST_CUE: Micros = Micros::from_millis(120_000);

/// Clips of a source whose segments are to be made anew.
pub(super) type Part = (SourceId, Span);

/// A part with its segments, before they are described.
struct Planned {
    part: Part,
    clips: Vec<ClipHead>,
    plans: Vec<SegmentPlan>,
    /// Of the words of each.
    embeddings: Vec<Vec<f16>>,
}

impl Understand<'_> {
    /// Understands what earlier runs have left, then every source that `stored` names, until it
    /// says `None`.
    pub fn all(&mut self, stored: &Receiver<Option<SourceId>>) -> Result<Made> {
        let left = self.library().left_to_understand(self.clip_recipe, self.recipe)?;
        let (mut left, mut named) = (left.into_iter(), Named::new(stored));
        self.understand(|waits| {
            let source = left.next().or_else(|| named.next(waits))?;
            Some((source, Span::ALL))
        })
    }

    /// Understands the parts that `stored` names until it says `None`.
    #[cfg(feature = "live")]
    pub fn parts(&mut self, stored: &Receiver<Option<Part>>) -> Result<Made> {
        let mut named = Named::new(stored);
        self.understand(|waits| named.next(waits))
    }

    /// Understands what `next` names, which waits for it where it is told so. Parts that are there at the same
    /// time are described side by side, since a short film has segments for one describer only.
    fn understand(&mut self, mut next: impl FnMut(bool) -> Option<Part>) -> Result<Made> {
        let (stats, describing) = (self.stats, self.describing);
        let mut all = Made::default();
        // While there is nothing to divide, there is nothing to describe.
        while let Some(first) = stats.starved(|| describing.starved(|| next(true))) {
            // What is passed over now is left to the next run.
            if self.cancel.is_cancelled() {
                continue;
            }
            let (mut together, mut ended) = (Vec::new(), Ok(()));
            let mut part = Some(first);
            while let Some(one) = part {
                match self.planned(one) {
                    Ok(planned) => {
                        let planned = vec![planned];
                        // Those before it do not wait for the end of a long one.
                        if self.is_enough(&planned) {
                            all.add(self.finish(take(&mut together))?);
                        }
                        together.extend(planned);
                    }
                    Err(error) => ended = (self.failed)(one, error),
                }
                let is_full = ended.is_err() || self.is_enough(&together);
                part = if is_full || self.cancel.is_cancelled() { None } else { next(false) };
            }
            // Those before one that ends the work are kept.
            all.add(self.finish(together)?);
            ended?;
        }
        Ok(all)
    }

    /// Whether the parts have work for every describer.
    fn is_enough(&self, parts: &[Planned]) -> bool {
        let batches = parts.iter().map(|part| part.plans.len().div_ceil(AT_A_TIME));
        batches.sum::<usize>() >= self.describers.len()
    }

    fn library(&self) -> std::sync::MutexGuard<'_, Writer> {
        self.library.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn planned(&mut self, part: Part) -> Result<Planned> {
        let (source, span) = part;
        let clips = read(self.read, || self.reader.clip_heads(source, self.clip_recipe, span))?;
        // A sentence that began in the chunk before is over some of these clips, too.
        let start = Timestamp(span.start.0.saturating_sub(LONGEST_CUE.0));
        let before = Span::new(start, span.end);
        let mut cues = read(self.read, || self.reader.cues_in(source, before))?;
        cues.retain(|cue| cue.span.overlaps(span));
        let (plans, embeddings) = worked(self.stats, || self.plans(&clips, &cues))?;
        Ok(Planned { part, clips, plans, embeddings })
    }

    /// Describes the segments of parts, and commits them a part at a time.
    fn finish(&mut self, parts: Vec<Planned>) -> Result<Made> {
        let mut made = Made::default();
        let (readings, described) = self.describe(&parts);
        let (mut readings, mut parts) = (readings.into_iter(), parts.into_iter().peekable());
        let committed: Result<()> = worked(self.stats, || {
            // One that is not described to its end is made again as a whole.
            let is_described = |part: &Planned, readings: &IntoIter<SegmentReading>| {
                self.describers.is_empty() || readings.len() >= part.plans.len()
            };
            while let Some(part) = parts.next_if(|part| is_described(part, &readings)) {
                let Planned { part: (source, span), plans, embeddings, .. } = part;
                let records: Vec<SegmentRecord> = plans
                    .into_iter()
                    .zip(embeddings)
                    .map(|(plan, embedding)| SegmentRecord {
                        span: plan.span,
                        text: plan.text,
                        language: plan.language,
                        embedding,
                        reading: readings.next(),
                    })
                    .collect();
                let stored = (self.store)(&|library| {
                    library.commit_segments_in(source, self.recipe, span, &records)?;
                    if library.progress(source, self.clip_recipe)? == State::Complete {
                        library.finish_source(source, self.recipe, State::Complete, None)?;
                    }
                    Ok(())
                });
                if let Err(error) = stored {
                    (self.failed)((source, span), error)?;
                    continue;
                }
                self.stats.count_items(records.len());
                let has_caption = |record: &&SegmentRecord| {
                    record.reading.as_ref().is_some_and(|reading| reading.caption.is_some())
                };
                let captions = records.iter().filter(has_caption).count() as u64;
                let of_part = Made { segments: records.len() as u64, captions };
                made.add(of_part);
                (self.stored)((source, span), records.last().map(|last| last.span.end), of_part);
            }
            Ok(())
        });
        committed?;
        let Err(error) = described else { return Ok(made) };
        let left: Vec<Planned> = parts.collect();
        match &left[..] {
            [] => Ok(made),
            [one] => (self.failed)(one.part, error).map(|()| made),
            // Which of them it was is seen when each is described alone.
            _ => {
                for one in left {
                    made.add(self.finish(vec![one])?);
                }
                Ok(made)
            }
        }
    }

    /// The segments of these clips, in which these cues were said, and the embeddings of their words.
    fn plans(
        &mut self,
        clips: &[ClipHead],
        cues: &[Cue],
    ) -> Result<(Vec<SegmentPlan>, Vec<Vec<f16>>)> {
        // Of several languages, one that the sentence encoder reads.
        let languages: Vec<&str> = self.tower.languages().iter().map(String::as_str).collect();
        let track = chosen_track(cues, &languages).map(str::to_owned);
        let chosen = |cue: &&Cue| Some(&cue.track) == track.as_ref();
        let sentences = sentences(cues.iter().filter(chosen), &self.sentence);
        let plans = segments(clips, &sentences, &self.segment);
        let embeddings = self.embed(&plans)?;
        Ok((plans, embeddings))
    }

    /// What the transformer makes of the parts' segments, in order: of none where there is no transformer, and of
    /// the first ones where the run is stopped, or something fails, before all are described.
    fn describe(&mut self, parts: &[Planned]) -> (Vec<SegmentReading>, Result<()>) {
        let Some(seen) = self.describers.first().map(Describer::clips) else {
            return (Vec::new(), Ok(()));
        };
        // A batch is of one part: which others wait must have no consequence.
        let batches: Vec<(&Planned, Range<usize>)> = parts
            .iter()
            .flat_map(|part| {
                let starts = (0..part.plans.len()).step_by(AT_A_TIME);
                starts.map(move |at| (part, at..part.plans.len().min(at + AT_A_TIME)))
            })
            .collect();
        let (codebook, describing, cancel) = (self.codebook, self.describing, self.cancel);
        let _used = describing.on_thread();
        let (queue, waiting) = crossbeam_channel::bounded(self.describers.len());
        std::thread::scope(|scope| {
            let describe = |describer: &mut Describer, waiting: &Receiver<(usize, Vec<_>)>| {
                let _used = describing.on_thread();
                let mut described = Vec::new();
                while let Ok((batch, segments)) = describing.starved(|| waiting.recv()) {
                    if cancel.is_cancelled() {
                        break;
                    }
                    match describing.busy(|| describer.describe(&segments, codebook)) {
                        Ok(readings) => described.push((batch, readings)),
                        Err(error) => return (described, Err(error)),
                    }
                    describing.count_items(segments.len());
                }
                (described, Ok(()))
            };
            let threads: Vec<_> = self
                .describers
                .iter_mut()
                .take(batches.len())
                .map(|describer| {
                    let waiting = waiting.clone();
                    scope.spawn(move || describe(describer, &waiting))
                })
                .collect();
            drop(waiting);
            let mut outcome = Ok(());
            for (number, (part, range)) in batches.iter().enumerate() {
                // Before the end of the queue, only one that has failed, or was told to stop, is over.
                let is_over = threads.iter().any(|thread| thread.is_finished());
                if is_over || cancel.is_cancelled() {
                    break;
                }
                let segment = |segment| {
                    read(self.read, || {
                        seen_segment(&self.reader, self.clip_recipe, part, segment, seen)
                    })
                };
                let segments = range.clone().map(segment).collect::<Result<Vec<_>>>();
                let is_taken = segments.map(|segments| queue.send((number, segments)).is_ok());
                match is_taken {
                    Ok(true) => (),
                    Ok(false) => break,
                    Err(error) => {
                        outcome = Err(error);
                        break;
                    }
                }
            }
            drop(queue);
            let mut readings = vec![Vec::new(); batches.len()];
            for thread in threads {
                let panicked = |_| (Vec::new(), Err(Error::internal("describing panicked")));
                let (described, ended) = thread.join().unwrap_or_else(panicked);
                for (batch, of_batch) in described {
                    readings[batch] = of_batch;
                }
                outcome = outcome.and(ended);
            }
            let first = readings.into_iter().take_while(|readings| !readings.is_empty());
            (first.flatten().collect(), outcome)
        })
    }

    /// The embedding of each plan's words; empty where there are none, or in a language that the
    /// sentence encoder lacks: those are found by the words themselves.
    fn embed(&mut self, plans: &[SegmentPlan]) -> Result<Vec<Vec<f16>>> {
        let is_known = |plan: &&SegmentPlan| knows_words(self.tower, plan);
        let texts: Vec<&str> = plans.iter().filter(is_known).map(|p| p.text.as_str()).collect();
        let known: Vec<bool> = plans.iter().map(|plan| is_known(&plan)).collect();
        let mut rows = Vec::with_capacity(texts.len());
        for texts in texts.chunks(TEXTS_A_RUN) {
            for row in self.tower.embed(texts)?.rows() {
                rows.push(row.iter().copied().map(f16::from_f32).collect());
            }
        }
        let mut rows = rows.into_iter();
        let row = |known: bool| if known { rows.next().unwrap_or_default() } else { Vec::new() };
        Ok(known.into_iter().map(row).collect())
    }
}

/// A segment with those of its clips that a describer sees, at most so many.
fn seen_segment<'a>(
    reader: &Reader,
    recipe: &RecipeId,
    part: &'a Planned,
    segment: usize,
    most: usize,
) -> Result<Described<'a>> {
    let (plan, embedding) = (&part.plans[segment], &part.embeddings[segment]);
    let clips = clips_of(&part.clips, plan.span);
    let starts: Vec<Timestamp> =
        spread(clips.len(), most).map(|place| clips[place].span.start).collect();
    let (source, _) = part.part;
    // There is an embedding where the words are in a language that the tower reads.
    let said = (!embedding.is_empty()).then_some((plan.text.as_str(), &embedding[..]));
    Ok(Described { said, clips: reader.seen_clips(source, recipe, &starts)? })
}

/// What a queue names, until it says `None`: nobody may wait for more then.
struct Named<'a, T> {
    queue: &'a Receiver<Option<T>>,
    is_over: bool,
}

impl<'a, T> Named<'a, T> {
    fn new(queue: &'a Receiver<Option<T>>) -> Self {
        Named { queue, is_over: false }
    }

    /// The next; `None` when there are no more, or, without waiting, none yet.
    fn next(&mut self, waits: bool) -> Option<T> {
        if self.is_over {
            return None;
        }
        let next = if waits { self.queue.recv().ok() } else { Some(self.queue.try_recv().ok()?) };
        self.is_over = next.as_ref().is_none_or(Option::is_none);
        next.flatten()
    }
}

fn read<T>(by: Read<'_>, mut what: impl FnMut() -> Result<T>) -> Result<T> {
    let mut value = None;
    by(&mut || {
        value = Some(what()?);
        Ok(())
    })?;
    value.ok_or_else(|| Error::internal("nothing was read"))
}

/// Times work and counts its processor time.
fn worked<R>(stats: &StageStats, work: impl FnOnce() -> R) -> R {
    let _used = stats.on_thread();
    stats.busy(work)
}

/// The clips whose midpoint a span holds; they are in order of start.
fn clips_of(clips: &[ClipHead], span: Span) -> &[ClipHead] {
    let before = clips.partition_point(|clip| clip.span.midpoint() < span.start);
    let through = clips.partition_point(|clip| clip.span.midpoint() < span.end);
    &clips[before..through.max(before)]
}

/// Whether a segment has words in a language that the tower reads.
fn knows_words(tower: &TextTower, plan: &SegmentPlan) -> bool {
    !plan.text.is_empty()
        && plan.language.as_deref().is_none_or(|tag| reads(tower.languages(), tag))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_taken_without_waiting_and_nothing_after_the_end() {
        let (sender, queue) = crossbeam_channel::bounded(8);
        let mut named = Named::new(&queue);
        assert_eq!(named.next(false), None);
        for item in [Some(1), Some(2), None, Some(3)] {
            sender.send(item).unwrap();
        }
        assert_eq!((named.next(true), named.next(false)), (Some(1), Some(2)));
        // It waits for ever where the end that it came upon without waiting is forgotten.
        assert_eq!((named.next(false), named.next(true), named.next(false)), (None, None, None));
        drop(sender);
        assert_eq!(Named::new(&queue).next(true), Some(3));
        assert_eq!(Named::new(&queue).next(true), None);
    }
}
