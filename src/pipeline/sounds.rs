//! Which sources are listened to, and the way from those that look into them to those that listen.

use std::sync::Arc;

use crossbeam_channel::Sender;

use super::opened::Opened;
use crate::error::Result;
use crate::library::{HeardTo, RecipeId, SourceId, State, Writer};
use crate::media::TrackKind;
use crate::source::{MediaInfo, Track};
use crate::transcript::is_forced;

/// Sources whose sound waits. Each has its file open, so that a picture which is far ahead of the sound
/// waits when there are as many.
#[cfg_attr(not(feature = "speech"), expect(dead_code, reason = "nobody listens"))]
pub(super) const MOST_WAITING: usize = 200;

/// A source that is to be listened to.
#[derive(Debug)]
#[cfg_attr(not(feature = "speech"), expect(dead_code, reason = "nobody listens"))]
pub(super) struct ToHear {
    pub source: Arc<Opened>,
    pub track: u32,
    pub to: HeardTo,
}

/// What a run listens to.
#[derive(Debug)]
pub(super) struct Sounds {
    pub recipe: RecipeId,
    /// Subtitles are no reason not to. Forced ones never are.
    pub always: bool,
    /// `None` when there are no more.
    pub queue: Sender<Option<ToHear>>,
}

impl Sounds {
    /// Whether a source that the library has is still to be listened to: it has sound, nobody has tried by
    /// this recipe, and it has no subtitles (or was listened to all the same, by the models before).
    pub fn are_missing(&self, library: &Writer, source: SourceId) -> Result<bool> {
        Ok(library.progress(source, &self.recipe)? == State::New
            && library.media(source)?.get("sound").is_some_and(serde_json::Value::is_number)
            && (self.always || !has_subtitles(library, source)? || library.is_heard(source)?))
    }
}

/// Whether what is said in a source is written down in its subtitles.
fn has_subtitles(library: &Writer, source: SourceId) -> Result<bool> {
    Ok(library.subtitle_tracks(source)?.iter().any(|track| !is_forced(track)))
}

/// What is to be told where one of several sound tracks is listened to.
pub(super) fn other_tracks(info: &MediaInfo, heard: u32) -> Option<String> {
    const MOST: usize = 5;
    let name = |track: &Track| match &track.language {
        Some(language) => format!("{} ({language})", track.index),
        None => track.index.to_string(),
    };
    let others: Vec<&Track> =
        info.of_kind(TrackKind::Sound).filter(|track| track.index != heard).collect();
    if others.is_empty() {
        return None;
    }
    let named: Vec<String> = others.iter().take(MOST).map(|track| name(track)).collect();
    let more = match others.len().saturating_sub(MOST) {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    let heard = info.track(heard).map(name)?;
    Some(format!(
        "only sound track {heard} is listened to; there is also {}{more}",
        named.join(", ")
    ))
}
