//! What is said in sources, without a library.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::ears::Ears;
use super::listening::{self, How, Sound, Told};
use super::reading::started;
use crate::error::{Error, Result};
use crate::graph::{Cancel, StageStats};
use crate::media::{Cue, Gap, TrackKind};
use crate::source::{Host, Input, Location};
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
    let (opened, lengths) = crossbeam_channel::bounded(locations.len().max(1));
    let mut left = locations.iter().enumerate();
    let next = move |host: &mut Option<Host>| {
        let (source, location) = left.next()?;
        let sound = open(location, host, cancel).map(|(sound, length)| {
            // Nobody hears it only where the run is over.
            let _ = opened.send((source, length));
            sound
        });
        Some((source, sound.map_err(|error| error.in_source(location))))
    };
    let mut heard: BTreeMap<usize, (Vec<Cue>, Vec<Gap>)> = BTreeMap::new();
    listening::listen(next, ears, &how, &mut |source, told| {
        for (source, length) in lengths.try_iter() {
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
                let mut notices = ending.notices;
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
    host: &mut Option<Host>,
    cancel: &Cancel,
) -> Result<(Sound, Option<Micros>)> {
    let input = Input::open(location)?;
    let info = started(host, cancel)?.probe(&input)?;
    let Some(track) = info.sound else {
        let what = if info.of_kind(TrackKind::Sound).next().is_some() { "usable " } else { "" };
        return Err(Error::unsupported(format!("it has no {what}sound track")));
    };
    Ok((Sound { input: Arc::new(input), track, from: Timestamp::ZERO }, info.duration))
}
