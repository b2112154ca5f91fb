//! The other half: reads from the record what ingest has stored, and writes segments. It decodes
//! nothing, so other sentence rules or another transformer re-read a library at little cost.

use std::sync::{Mutex, PoisonError};

use half::f16;

use super::describe::{AT_A_TIME, Described, Describer};
use super::report::Made;
use crate::codebook::Codebook;
use crate::error::Result;
use crate::graph::{Cancel, StageStats};
use crate::library::{Reader, RecipeId, SegmentReading, SegmentRecord, SourceId, State, Writer};
use crate::media::{ClipHead, Cue};
use crate::text::{TextTower, reads};
use crate::time::{Micros, Span, Timestamp};
use crate::transcript::{
    SegmentPlan, SegmentRules, SentenceRules, chosen_track, segments, sentences,
};

/// Turns clips and cues into segments, a source at a time.
pub(super) struct Understand<'a> {
    pub library: &'a Mutex<Writer>,
    pub reader: Reader,
    pub tower: &'a mut TextTower,
    pub sentence: SentenceRules,
    pub segment: SegmentRules,
    pub clip_recipe: &'a RecipeId,
    pub recipe: &'a RecipeId,
    /// What writes captions, and the codebook that its visual words are of.
    pub describer: Option<&'a mut Describer>,
    pub codebook: Option<&'a Codebook>,
    pub stats: &'a StageStats,
    pub describing: &'a StageStats,
    pub cancel: &'a Cancel,
}

/// Texts in one run of the sentence encoder.
const TEXTS_A_RUN: usize = 32;
/// No sentence begins longer than this before its end.
const LONGEST_CUE: Micros = Micros::from_millis(120_000);

impl Understand<'_> {
    /// Understands what earlier runs have left, then every source that `stored` names, until it
    /// says `None`.
    pub fn all(&mut self, stored: &crossbeam_channel::Receiver<Option<SourceId>>) -> Result<Made> {
        let stats = self.stats;
        let mut all = Made::default();
        let left = self.library().left_to_understand(self.clip_recipe, self.recipe)?;
        let describing = self.describing;
        let next = || stored.recv().ok().flatten();
        // While there is nothing to divide, there is nothing to describe.
        let named = std::iter::from_fn(|| stats.starved(|| describing.starved(next)));
        for source in left.into_iter().chain(named) {
            // The sources that are passed over now are left to the next run.
            if !self.cancel.is_cancelled() {
                all.add(self.part(source, Span::ALL)?);
            }
        }
        Ok(all)
    }

    fn library(&self) -> std::sync::MutexGuard<'_, Writer> {
        self.library.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the segments anew of the clips that start in `span`.
    pub fn part(&mut self, source: SourceId, span: Span) -> Result<Made> {
        let clips = self.reader.clip_heads(source, self.clip_recipe, span)?;
        let (stats, describing) = (self.stats, self.describing);
        let (plans, embeddings) = worked(stats, || self.plans(source, span, &clips))?;
        let readings = worked(describing, || self.describe(source, &clips, &plans, &embeddings))?;
        // Captions of a long film take a while; without the rest, the next run makes all of them.
        let Some(readings) = readings else { return Ok(Made::default()) };
        worked(stats, || {
            let records: Vec<SegmentRecord> = plans
                .into_iter()
                .zip(embeddings)
                .zip(readings)
                .map(|((plan, embedding), reading)| SegmentRecord {
                    span: plan.span,
                    text: plan.text,
                    language: plan.language,
                    embedding,
                    reading,
                })
                .collect();
            let mut library = self.library();
            library.commit_segments_in(source, self.recipe, span, &records)?;
            if library.progress(source, self.clip_recipe)? == State::Complete {
                library.finish_source(source, self.recipe, State::Complete, None)?;
            }
            stats.count_items(records.len());
            let has_caption = |record: &&SegmentRecord| {
                record.reading.as_ref().is_some_and(|reading| reading.caption.is_some())
            };
            let captions = records.iter().filter(has_caption).count() as u64;
            Ok(Made { segments: records.len() as u64, captions })
        })
    }

    /// The source's segments in `span` and the embeddings of their words.
    fn plans(
        &mut self,
        source: SourceId,
        span: Span,
        clips: &[ClipHead],
    ) -> Result<(Vec<SegmentPlan>, Vec<Vec<f16>>)> {
        // A sentence that began in the chunk before is over some of these clips, too.
        let start = Timestamp(span.start.0.saturating_sub(LONGEST_CUE.0));
        let before = Span::new(start, span.end);
        let mut cues = self.reader.cues_in(source, before)?;
        cues.retain(|cue| cue.span.overlaps(span));
        // Of several languages, one that the sentence encoder reads.
        let languages: Vec<&str> = self.tower.languages().iter().map(String::as_str).collect();
        let track = chosen_track(&cues, &languages).map(str::to_owned);
        let chosen = |cue: &&Cue| Some(&cue.track) == track.as_ref();
        let sentences = sentences(cues.iter().filter(chosen), &self.sentence);
        let plans = segments(clips, &sentences, &self.segment);
        let embeddings = self.embed(&plans)?;
        Ok((plans, embeddings))
    }

    /// What the transformer makes of each segment, where there is one; `None` where the run was
    /// stopped before it was done.
    fn describe(
        &mut self,
        source: SourceId,
        clips: &[ClipHead],
        plans: &[SegmentPlan],
        embeddings: &[Vec<f16>],
    ) -> Result<Option<Vec<Option<SegmentReading>>>> {
        let Some(describer) = &mut self.describer else {
            return Ok(Some(vec![None; plans.len()]));
        };
        let mut readings = Vec::with_capacity(plans.len());
        for (batch, embeddings) in plans.chunks(AT_A_TIME).zip(embeddings.chunks(AT_A_TIME)) {
            if self.cancel.is_cancelled() {
                return Ok(None);
            }
            let mut segments = Vec::with_capacity(batch.len());
            for (plan, embedding) in batch.iter().zip(embeddings) {
                let of_plan = clips_of(clips, plan.span);
                let starts: Vec<Timestamp> = describer
                    .chosen(of_plan.len())
                    .map(|place| of_plan[place].span.start)
                    .collect();
                let clips = self.reader.seen_clips(source, self.clip_recipe, &starts)?;
                // There is an embedding where the words are in a language that the tower reads.
                let said = (!embedding.is_empty()).then_some((plan.text.as_str(), &embedding[..]));
                segments.push(Described { said, clips });
            }
            let described = describer.describe(&segments, self.codebook)?;
            self.describing.count_items(described.len());
            readings.extend(described.into_iter().map(Some));
        }
        Ok(Some(readings))
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
