//! What the readers, the recorder and the listener of one run share, and how a source's parts come to an
//! end.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::jobs::{ChunkJob, Claims, Jobs};
use super::opened::Opened;
use super::report::{Part, Progress, SourceReport, SourceState};
use super::sounds::Sounds;
use crate::error::{Error, Kind, Result};
use crate::graph::Cancel;
use crate::library::{RecipeId, SourceId, State, Waiting, Writer};
use crate::picture::ClipRules;
use crate::source::{Location, Rendition, Sidecars, Spent};
use crate::time::{Micros, Timestamp};

/// Clips in a chunk: the unit of parallel decoding, of committing, and of resuming.
pub(super) const CHUNK_CLIPS: u32 = 80;

/// Tells another thread that no more comes: it does what there is, and then ends.
pub(super) struct NoMore<'a, T>(pub &'a crossbeam_channel::Sender<Option<T>>);

impl<T> Drop for NoMore<'_, T> {
    fn drop(&mut self) {
        // It is gone already where it failed.
        let _ = self.0.send(None);
    }
}

/// What readers and the recorder share in one run.
pub(super) struct Shared<'a> {
    pub jobs: Jobs<Location, Opened>,
    pub recipe: RecipeId,
    pub segment_recipe: RecipeId,
    pub clip: ClipRules,
    pub rendition: Rendition,
    pub tags: Vec<(String, String)>,
    pub verify: bool,
    pub cancel: Cancel,
    pub sidecars: Sidecars,
    /// Readers side by side.
    pub workers: u16,
    pub library: &'a Mutex<Writer>,
    pub progress: &'a (dyn Fn(&Progress<'_>) + Sync),
    /// What is listened to beside the graph.
    pub sounds: Option<Sounds>,
    /// To the other half: a source whose rows are in the record; `None` when there are no more.
    pub understand: crossbeam_channel::Sender<Option<SourceId>>,
    pub reports: Mutex<Vec<SourceReport>>,
    /// What the decoder hosts have taken.
    pub decoding: Mutex<Spent>,
    /// Sources that were looked into and are not finished.
    pub open: Mutex<Vec<Arc<Opened>>>,
    /// Sources that readers are looking into.
    pub claims: Claims<SourceId>,
}

impl std::fmt::Debug for Shared<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("recipe", &self.recipe).finish_non_exhaustive()
    }
}

impl Shared<'_> {
    /// The one writer. Held for a transaction at a time.
    pub fn library(&self) -> MutexGuard<'_, Writer> {
        lock(self.library)
    }

    /// Counts what a decoder host has taken.
    pub fn count_decoding(&self, spent: Spent) {
        *lock(&self.decoding) += spent;
    }

    pub fn chunk_length(&self) -> Micros {
        Micros(self.clip.length.0.saturating_mul(i64::from(CHUNK_CLIPS)))
    }

    pub fn chunk_start(&self, number: u32) -> Timestamp {
        Timestamp(self.chunk_length().0.saturating_mul(i64::from(number)))
    }

    fn report(&self, report: SourceReport) {
        (self.progress)(&Progress::Finished(&report));
        lock(&self.reports).push(report);
    }

    /// Reports a source that could not even be looked into.
    pub fn fail_unopened(&self, location: &Location, error: &Error) {
        self.report(if error.kind() == Kind::Cancelled {
            SourceReport::new(location.to_string(), SourceState::Interrupted)
        } else {
            SourceReport::failed(location.to_string(), error)
        });
    }

    pub fn hashed(&self, source: &str, bytes: u64, of_bytes: u64) {
        (self.progress)(&Progress::Hashed { source, bytes, of_bytes });
    }

    /// A source is worked on: of its picture so many chunks are done already, and its sound was
    /// listened to up to an instant, if it is to be listened to.
    pub fn opened(&self, source: &Arc<Opened>, chunks_done: usize, heard_to: Option<Timestamp>) {
        lock(&self.open).push(Arc::clone(source));
        let stored = Micros(self.chunk_length().0.saturating_mul(chunks_done as i64));
        let sees = source.tally().streams > 0;
        (self.progress)(&Progress::Opened {
            source: source.input.name(),
            length: source.length,
            picture: sees.then_some(stored),
            sound: heard_to.map(|to| to - Timestamp::ZERO),
        });
    }

    /// The source under this id that is being read in this run, if one is.
    pub fn being_read(&self, id: SourceId) -> Option<Arc<Opened>> {
        lock(&self.open).iter().find(|open| open.id == id).cloned()
    }

    /// Reports a source that the library had already; `new_cues` counts the words that were read
    /// again since the files beside it have changed.
    pub fn unchanged(
        &self,
        id: SourceId,
        location: &Location,
        new_cues: Option<usize>,
        verified: bool,
        notices: Vec<String>,
    ) {
        let state = match new_cues {
            Some(_) => SourceState::Indexed,
            None => SourceState::Unchanged,
        };
        self.report(SourceReport {
            id: Some(id.to_string()),
            cues: new_cues.unwrap_or(0) as u64,
            verified,
            notices,
            ..SourceReport::new(location.to_string(), state)
        });
        if new_cues.is_some() {
            self.hand_on(id);
        }
    }

    /// Media that has come to the end of the graph.
    pub fn advanced(&self, source: &Opened, by: Micros) {
        if by > Micros::ZERO {
            let (source, part) = (source.input.name(), Part::Picture);
            (self.progress)(&Progress::Advanced { source, part, by });
        }
    }

    /// Sound that has been listened to.
    #[cfg(feature = "speech")]
    pub fn heard(&self, source: &Opened, by: Micros) {
        let (source, part) = (source.input.name(), Part::Sound);
        (self.progress)(&Progress::Advanced { source, part, by });
    }

    /// Settles the end of a stream; with the last one, the picture has ended.
    pub fn stream_ended(&self, job: &ChunkJob<Opened>, end: Result<()>) -> Result<()> {
        let source = &job.source;
        self.jobs.ended(job.stream);
        let left = {
            let mut tally = source.tally();
            tally.streams -= 1;
            if let Err(error) = end {
                if error.kind() == Kind::Cancelled {
                    tally.interrupted = true;
                } else {
                    tally.error.get_or_insert_with(|| (&error).into());
                }
                tally.streams -= self.jobs.give_up(source);
            }
            tally.streams
        };
        if left == 0 { self.picture_ended(source) } else { Ok(()) }
    }

    /// Writes down how the picture of a source ended.
    pub fn picture_ended(&self, source: &Arc<Opened>) -> Result<()> {
        let (stored, error, length) = {
            let tally = source.tally();
            let stored = match (&tally.error, tally.interrupted) {
                (Some(_), _) => Some(State::Failed),
                (None, true) => None,
                (None, false) => Some(State::Complete),
            };
            let error = tally.error.as_ref().map(|error| error.reason.clone());
            (stored, error, source.known_length(&tally).filter(|_| tally.end.is_some()))
        };
        if let Some(stored) = stored {
            let mut library = self.library();
            // What was only listened to was seen before.
            if library.progress(source.id, &self.recipe)? != State::Complete {
                if let Some(length) = length {
                    library.set_duration(source.id, length)?;
                }
                library.finish_source(source.id, &self.recipe, stored, error.as_deref())?;
            }
            if stored == State::Complete {
                library.settle_growth(source.id)?;
            }
        }
        self.part_ended(source)
    }

    /// Picture or sound of a source has ended; with the other one, the source is finished.
    pub fn part_ended(&self, source: &Arc<Opened>) -> Result<()> {
        let left = {
            let mut tally = source.tally();
            tally.parts -= 1;
            tally.parts
        };
        if left == 0 { self.finish(source) } else { Ok(()) }
    }

    /// Finishes the sources that the run has left, since it was stopped.
    pub fn finish_all(&self) -> Result<()> {
        let open = lock(&self.open).clone();
        for source in open {
            let sees = {
                let mut tally = source.tally();
                tally.interrupted = true;
                tally.parts = 1;
                tally.streams > 0
            };
            if sees { self.picture_ended(&source)? } else { self.part_ended(&source)? }
        }
        Ok(())
    }

    /// Reports how a source ended, and hands it on to be understood.
    fn finish(&self, source: &Arc<Opened>) -> Result<()> {
        let tally = source.tally();
        let error = tally.error.as_ref().or(tally.sound_error.as_ref());
        let state = match (error, tally.interrupted) {
            (Some(_), _) => SourceState::Failed,
            (None, true) => SourceState::Interrupted,
            (None, false) => SourceState::Indexed,
        };
        let mut notices = tally.notices.clone();
        let counted = [
            (tally.corrupt_packets, "corrupt packets skipped"),
            (tally.damaged_frames, "damaged frames"),
            (tally.misplaced_frames, "frames out of order left out"),
        ];
        let counted = counted.iter().filter(|(count, _)| *count > 0);
        notices.extend(counted.map(|(count, what)| format!("{count} {what}")));
        if tally.sound_gaps > 0 {
            let secs = tally.sound_gap_length.as_secs_f64();
            notices.push(format!("{} gaps in the sound ({secs:.1} s)", tally.sound_gaps));
        }
        let report = SourceReport {
            source: source.input.name().to_owned(),
            id: Some(source.id.to_string()),
            state,
            length_secs: source.known_length(&tally).map(Micros::as_secs_f64),
            clips: tally.clips,
            cues: tally.cues,
            language: tally.language.clone(),
            gaps: tally.gaps,
            gap_secs: tally.gap_length.as_secs_f64(),
            verified: false,
            notices,
            error: error.cloned(),
        };
        drop(tally);
        // Not before the record says how it ended: a copy of it would be read too.
        lock(&self.open).retain(|open| !Arc::ptr_eq(open, source));
        self.report(report);
        self.hand_on(source.id);
        Ok(())
    }

    /// Lets what was heard in this run be what is searched, where another recipe was until now, and hands
    /// on what changes by that. Returns the sources that this waits for, and how many were left behind.
    pub fn let_words_take_over(&self, at_once: bool) -> Result<(Vec<Waiting>, usize)> {
        let Some(sounds) = &self.sounds else { return Ok((Vec::new(), 0)) };
        let at_once = at_once && !self.cancel.is_cancelled();
        let (waiting, changed) = self.library().take_over_speech(&sounds.recipe, at_once)?;
        if changed {
            let old = self.library().left_to_understand(&self.recipe, &self.segment_recipe)?;
            old.into_iter().for_each(|source| self.hand_on(source));
            return Ok((Vec::new(), waiting.len()));
        }
        Ok((waiting, 0))
    }

    fn hand_on(&self, source: SourceId) {
        // The other half is gone only when it failed, and its error ends the run.
        let _ = self.understand.send(Some(source));
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic in a transaction rolls it back, so what the lock guards is whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
