//! The other half: reads from the record what ingest has stored, and writes segments. It decodes
//! nothing, so other sentence rules or another transformer re-read a library at little cost.

use std::sync::{Mutex, PoisonError};

use half::f16;

use crate::error::Result;
use crate::graph::{Cancel, StageStats};
use crate::library::{Reader, RecipeId, SegmentRecord, SourceId, State, Writer};
use crate::media::Cue;
use crate::text::TextTower;
use crate::transcript::{
    SegmentPlan, SegmentRules, SentenceRules, chosen_track, segments, sentences,
};

/// Turns clips and cues into segments, a source at a time.
pub(super) struct Understand<'a> {
    pub library: &'a Mutex<Writer>,
    pub reader: Reader,
    pub tower: TextTower,
    pub sentence: SentenceRules,
    pub segment: SegmentRules,
    pub clip_recipe: &'a RecipeId,
    pub recipe: &'a RecipeId,
    pub stats: &'a StageStats,
}

/// Texts in one run of the sentence encoder.
const TEXTS_A_RUN: usize = 32;

impl Understand<'_> {
    /// Understands what earlier runs have left, then every source that `stored` names, until it
    /// says `None`. Returns how many segments were written.
    pub fn all(
        &mut self,
        stored: &crossbeam_channel::Receiver<Option<SourceId>>,
        cancel: &Cancel,
    ) -> Result<u64> {
        let stats = self.stats;
        let _used = stats.on_thread();
        let mut written = 0;
        let left = self.library().left_to_understand(self.clip_recipe, self.recipe)?;
        let named = std::iter::from_fn(|| stats.starved(|| stored.recv().ok().flatten()));
        for source in left.into_iter().chain(named) {
            // The sources that are passed over now are left to the next run.
            if !cancel.is_cancelled() {
                let segments = stats.busy(|| self.source(source))?;
                stats.count_items(usize::try_from(segments).unwrap_or(0));
                written += segments;
            }
        }
        Ok(written)
    }

    fn library(&self) -> std::sync::MutexGuard<'_, Writer> {
        self.library.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn source(&mut self, source: SourceId) -> Result<u64> {
        let clips = self.reader.clip_heads(source, self.clip_recipe)?;
        let cues = self.reader.cues(source)?;
        // Of several languages, one that the sentence encoder reads.
        let languages: Vec<&str> = self.tower.languages().iter().map(String::as_str).collect();
        let track = chosen_track(&cues, &languages).map(str::to_owned);
        let chosen = |cue: &&Cue| Some(&cue.track) == track.as_ref();
        let sentences = sentences(cues.iter().filter(chosen), &self.sentence);
        let plans = segments(&clips, &sentences, &self.segment);
        let embeddings = self.embed(&plans)?;
        let records: Vec<SegmentRecord> = plans
            .into_iter()
            .zip(embeddings)
            .map(|(plan, embedding)| SegmentRecord {
                span: plan.span,
                text: plan.text,
                language: plan.language,
                embedding,
            })
            .collect();
        let mut library = self.library();
        library.commit_segments(source, self.recipe, &records)?;
        if library.progress(source, self.clip_recipe)? == State::Complete {
            library.finish_source(source, self.recipe, State::Complete, None)?;
        }
        Ok(records.len() as u64)
    }

    /// The embedding of each plan's words; empty where there are none, or in a language that the
    /// sentence encoder lacks: those are found by the words themselves.
    fn embed(&mut self, plans: &[SegmentPlan]) -> Result<Vec<Vec<f16>>> {
        let is_known = |plan: &&SegmentPlan| {
            !plan.text.is_empty()
                && plan.language.as_deref().is_none_or(|tag| reads(self.tower.languages(), tag))
        };
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

/// Whether a tower of these languages (none: unstated, so it may) reads text tagged `tag`: `en` reads
/// `en-GB`.
pub(super) fn reads(languages: &[String], tag: &str) -> bool {
    let primary = |tag: &str| tag.split(['-', '_']).next().unwrap_or_default().to_ascii_lowercase();
    languages.is_empty() || languages.iter().any(|known| primary(known) == primary(tag))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tower_reads_the_regional_forms_of_its_languages() {
        let english = ["en".to_owned()];
        assert!(reads(&english, "en-GB") && reads(&english, "EN"));
        assert!(!reads(&english, "de"));
        assert!(reads(&[], "de"));
    }
}
