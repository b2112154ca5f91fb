//! What is said in sources, without a library.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::ears::Ears;
use super::listening::{self, How, Sound, Told};
use super::reading::started;
use super::sounds::other_tracks;
use crate::error::{Error, Result};
use crate::graph::{Cancel, StageStats};
use crate::media::{Cue, Gap, TrackKind};
use crate::source::{Host, Input, Location, MediaInfo};
use crate::time::{Micros, Timestamp};

/// What was said in a source, as far as it was listened to.
#[derive(Debug)]
pub struct Transcript {
    pub cues: Vec<Cue>,
    /// Whisper's code, with how sure that is; `None` where nobody speaks.
    pub language: Option<(String, f32)>,
    /// How much sound there was.
    pub length: Micros,
    /// What was noticed and is no failure.
    pub notices: Vec<String>,
    /// Why it ends early, if it does.
    pub error: Option<Error>,
}

/// What happens while it goes on, by the number of the source.
#[derive(Debug)]
pub enum Listening {
    Opened { source: usize, length: Option<Micros> },
    Advanced { source: usize, by: Micros },
    Finished { source: usize, transcript: Transcript },
}

/// Gaps that are noticed one by one.
const MOST_GAPS: usize = 20;

/// Listens to all sources, in order, with so many threads; `tell` hears of each step on the calling thread,
/// and of each source that it is finished. After `cancel`, what is under way ends where it is.
///
/// # Errors
/// What `tell` returns; nothing more is begun then.
pub fn listen(
    locations: &[Location],
    ears: Ears,
    threads: usize,
    cancel: &Cancel,
    tell: &mut dyn FnMut(Listening) -> Result<()>,
) -> Result<()> {
    let stats = StageStats::new("listen");
    let how = How { threads, cancel, stats: &stats };
    let (opened, openings) = crossbeam_channel::bounded(locations.len().max(1));
    let mut left = locations.iter().enumerate();
    let language = ears.language.clone();
    let next = move |host: &mut Option<Host>| {
        let (source, location) = left.next()?;
        let sound = open(location, language.as_deref(), host, cancel).map(|(sound, info)| {
            // Nobody hears it only where the run is over.
            let _ = opened.send((source, info.duration, other_tracks(&info, sound.track)));
            sound
        });
        Some((source, sound.map_err(|error| error.in_source(location))))
    };
    let mut heard: BTreeMap<usize, (Vec<Cue>, Vec<Gap>)> = BTreeMap::new();
    let mut unheard: BTreeMap<usize, String> = BTreeMap::new();
    listening::listen(next, ears, &how, &mut |source, told| {
        for (source, length, others) in openings.try_iter() {
            unheard.extend(others.map(|others| (source, others)));
            tell(Listening::Opened { source, length })?;
        }
        match told {
            Told::Advanced(by) => tell(Listening::Advanced { source, by }),
            // Of live sources only.
            Told::Heard(_) | Told::Lost(_) => Ok(()),
            Told::Settled { cues, gaps, .. } => {
                let of = heard.entry(source).or_default();
                of.0.extend(cues);
                of.1.extend(gaps);
                Ok(())
            }
            Told::Ended(ending) => {
                let (mut cues, mut gaps) = heard.remove(&source).unwrap_or_default();
                cues.extend(ending.cues);
                gaps.extend(ending.gaps);
                let mut notices: Vec<String> = unheard.remove(&source).into_iter().collect();
                notices.extend(ending.notices);
                let noticed = gaps.iter().take(MOST_GAPS).map(|gap| {
                    let length = gap.span.length().as_secs_f64();
                    format!("{} from {} on, for {length:.1} s", gap.reason, gap.span.start)
                });
                notices.extend(noticed);
                if gaps.len() > MOST_GAPS {
                    notices.push(format!("{} more gaps", gaps.len() - MOST_GAPS));
                }
                let transcript = Transcript {
                    cues,
                    language: ending.language,
                    length: ending.length,
                    notices,
                    error: ending.error,
                };
                tell(Listening::Finished { source, transcript })
            }
        }
    })
}

fn open(
    location: &Location,
    language: Option<&str>,
    host: &mut Option<Host>,
    cancel: &Cancel,
) -> Result<(Sound, MediaInfo)> {
    let input = Input::open(location)?;
    let info = started(host, cancel)?.probe(&input)?;
    let Some(track) = info.sound_in(language) else {
        let what = if info.of_kind(TrackKind::Sound).next().is_some() { "usable " } else { "" };
        return Err(Error::unsupported(format!("it has no {what}sound track")));
    };
    Ok((Sound { input: Arc::new(input), track, from: Timestamp::ZERO }, info))
}
