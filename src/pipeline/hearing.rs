//! Listening for the record, beside the graph. Within a source, neither waits for the other.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam_channel::Receiver;

use super::ears::Hearing;
use super::listening::{Ending, How, Sound, Told, listen};
use super::opened::Opened;
use super::shared::Shared;
use super::sounds::ToHear;
use crate::error::{Error, Kind, Result};
use crate::library::{HeardChunk, HeardTo, RecipeId, State};
use crate::media::{Cue, Gap};
use crate::source::Host;
use crate::time::{Micros, Span, Timestamp};

/// A source that is being listened to.
struct UnderWay {
    source: Arc<Opened>,
    to: HeardTo,
    /// The file is not what it was, so nothing more of it is kept.
    error: Option<Error>,
}

/// Listens to what `queue` gives until it says `None`, and commits what was heard, pause by pause.
///
/// # Errors
/// The library's, and those of opening the models.
pub(super) fn hear(
    shared: &Shared<'_>,
    hearing: &Hearing,
    queue: &Receiver<Option<ToHear>>,
    how: &How<'_>,
) -> Result<()> {
    let take = || how.stats.starved(|| queue.recv()).ok().flatten();
    // Opened where there is something to listen to.
    let Some(first) = take() else { return Ok(()) };
    let ears = hearing.open()?;
    let mut first = Some(first);
    let mut count = 0;
    let under_way: Mutex<HashMap<usize, UnderWay>> = Mutex::default();
    let next = |_: &mut Option<Host>| {
        let ToHear { source, track, to } = first.take().or_else(take)?;
        let number = count;
        count += 1;
        let input = Arc::clone(&source.input);
        // One change at a time, so it is whole whatever panics.
        let mut under_way = under_way.lock().unwrap_or_else(PoisonError::into_inner);
        under_way.insert(number, UnderWay { source, to, error: None });
        Some((number, Ok(Sound { input, track, from: to.at })))
    };
    listen(next, ears, how, &mut |number, told| {
        let taken = under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
        let Some(mut source) = taken else {
            return Err(Error::internal("sound of a source that nobody began"));
        };
        match told {
            Told::Advanced(by) => shared.heard(&source.source, by),
            // Of live sources only.
            Told::Heard(_) | Told::Lost(_) => {}
            Told::Settled { at, cues, gaps } => {
                source.commit(shared, &hearing.recipe.id, at, cues, gaps)?;
            }
            Told::Ended(ending) => return source.end(shared, &hearing.recipe.id, ending),
        }
        under_way.lock().unwrap_or_else(PoisonError::into_inner).insert(number, source);
        Ok(())
    })
}

impl UnderWay {
    /// Commits what was heard up to `at`, if the file is still what it was.
    fn commit(
        &mut self,
        shared: &Shared<'_>,
        recipe: &RecipeId,
        at: Timestamp,
        cues: Vec<Cue>,
        gaps: Vec<Gap>,
    ) -> Result<()> {
        let is_nothing = at <= self.to.at && cues.is_empty() && gaps.is_empty();
        if is_nothing || self.error.is_some() {
            return Ok(());
        }
        let source = &self.source;
        match source.witness.check(&source.input) {
            Ok(false) => {}
            Ok(true) => source.notice("the file has grown: another run reads all of it".to_owned()),
            Err(error) => {
                self.error = Some(error);
                return Ok(());
            }
        }
        let HeardTo { next: index, at: start } = self.to;
        let chunk = HeardChunk { index, span: Span::new(start, at), cues, gaps };
        shared.library().commit_heard(source.id, recipe, &chunk)?;
        self.to = HeardTo { next: index + 1, at };
        let mut tally = source.tally();
        tally.cues += chunk.cues.len() as u64;
        tally.sound_gaps += chunk.gaps.len() as u64;
        for gap in &chunk.gaps {
            let length = tally.sound_gap_length.0.saturating_add(gap.span.length().0);
            tally.sound_gap_length = Micros(length);
        }
        Ok(())
    }

    /// Writes down how listening ended. Sound that cannot be decoded is a notice, and not tried again; what
    /// another run may do better is an error.
    fn end(mut self, shared: &Shared<'_>, recipe: &RecipeId, ending: Ending) -> Result<()> {
        shared.count_decoding(ending.spent);
        let is_over = match &ending.error {
            None => true,
            Some(error) => matches!(error.kind(), Kind::Corrupt | Kind::Unsupported),
        };
        if is_over {
            let starts = ending.cues.iter().map(|cue| cue.span.start);
            let last = starts.chain(ending.gaps.iter().map(|gap| gap.span.start)).max();
            let end = last.map_or(ending.at, |last| ending.at.max(last + Micros(1)));
            let end = end.max(self.to.at);
            self.commit(shared, recipe, end, ending.cues, ending.gaps)?;
        }
        for notice in ending.notices {
            self.source.notice(format!("sound: {notice}"));
        }
        let error = self.error.take().or(ending.error);
        let state = match &error {
            None => Some((State::Complete, None)),
            Some(error) if error.kind() == Kind::Cancelled => {
                self.source.tally().interrupted = true;
                None
            }
            Some(error) if matches!(error.kind(), Kind::Corrupt | Kind::Unsupported) => {
                self.source.notice(format!("its sound cannot be listened to: {}", error.reason()));
                Some((State::Failed, Some(error.reason())))
            }
            Some(error) => {
                self.source.tally().sound_error = Some(error.into());
                None
            }
        };
        if let Some((state, why)) = state {
            shared.library().finish_source(self.source.id, recipe, state, why.as_deref())?;
        }
        self.source.tally().language = ending.language.map(|(language, _)| language);
        shared.part_ended(&self.source)
    }
}
