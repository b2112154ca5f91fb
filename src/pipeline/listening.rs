//! Sound in, cues out, in order and from pause to pause.
//!
//! One thread reads the sources one after the other and cuts their sound into windows; as many threads
//! as there is room for read the windows; what they heard is joined in order here.

use std::collections::BTreeMap;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::ears::Ears;
use super::reading::Reader;
use crate::error::{Error, Result};
use crate::graph::{Cancel, StageStats};
use crate::media::{Cue, Gap, TrackKind};
use crate::source::{Host, Input, Spent};
use crate::speech::{Ear, Heard, Joiner, Listener, Models, Window};
use crate::time::{Micros, Timestamp};

/// Sound that is to be listened to.
#[derive(Debug)]
pub(super) struct Sound {
    pub input: Arc<Input>,
    pub track: u32,
    /// What is before has been heard: zero, or an instant that [`Told::Settled`] gave.
    pub from: Timestamp,
}

/// What comes of a source's sound.
#[derive(Debug)]
pub(super) enum Told {
    /// So much more of it has been read.
    Advanced(Micros),
    /// So much more of a live source has been understood, whatever words there are in it.
    Heard(Micros),
    /// So much more of a live source could not be understood.
    Lost(Micros),
    /// Everything before `at` since the last time. Whoever begins there hears the rest as it is heard now.
    Settled { at: Timestamp, cues: Vec<Cue>, gaps: Vec<Gap> },
    /// The last thing that is told.
    Ended(Ending),
}

/// How listening to a source ended.
#[derive(Debug)]
pub(super) struct Ending {
    /// Where the sound ends, or what was heard of it.
    pub at: Timestamp,
    /// Since the last [`Told::Settled`].
    pub cues: Vec<Cue>,
    pub gaps: Vec<Gap>,
    /// Whisper's code, with how sure that is; `None` where nobody speaks.
    pub language: Option<(String, f32)>,
    /// How much sound there was.
    pub length: Micros,
    /// What was noticed and is no failure.
    pub notices: Vec<String>,
    /// Why it ends early, if it does.
    pub error: Option<Error>,
    /// What the decoder host took.
    pub spent: Spent,
}

/// What a reader and those who listen say of a source, in any order but for the first and the last.
pub(super) enum Happened {
    /// The first thing, where the sound could be opened.
    Begun {
        joiner: Joiner,
        is_live: bool,
    },
    Advanced(Micros),
    Gap(Gap),
    /// Numbered, since windows are understood in another order than they have. So much of the sound is in
    /// this window and in none before.
    Understood {
        number: usize,
        fresh: Micros,
        what: Result<Understood>,
    },
    /// All of a source has been given out.
    Read {
        given: usize,
        ending: Ending,
    },
}

pub(super) enum Understood {
    Heard(Heard),
    /// Of a live source: what could not be understood, and why.
    Lost(Gap),
    Silence(Timestamp),
}

/// A window that is to be read.
pub(super) struct Job {
    pub source: usize,
    pub number: usize,
    pub window: Window,
    pub fresh: Micros,
    pub language: String,
    /// The user has said so.
    pub is_certain: bool,
    pub is_live: bool,
}

/// How the work is done; nothing here changes results.
pub(super) struct How<'a> {
    pub threads: usize,
    pub cancel: &'a Cancel,
    pub stats: &'a StageStats,
}

/// Reads sound and gives it to its reader, in a thread of its own.
pub(super) type Reads<'a> = Box<dyn FnOnce(Reader<'_>) + Send + 'a>;

/// Listens to what `next` gives, until that is nothing, one source after the other by the numbers that come
/// with them; `tell` hears of each step on the calling thread. After the cancellation, what is under way
/// ends where it is. `next` may use the decoder host that will read the sound.
///
/// # Errors
/// What `tell` returns; nothing more is begun then.
pub(super) fn listen(
    next: impl FnMut(&mut Option<Host>) -> Option<(usize, Result<Sound>)> + Send,
    ears: Ears,
    how: &How<'_>,
    tell: &mut dyn FnMut(usize, Told) -> Result<()>,
) -> Result<()> {
    let Ears { voice, models, language } = ears;
    let reads: Reads<'_> = Box::new(move |mut reader: Reader<'_>| reader.read_all(next));
    listen_to(vec![(Ear::new(voice), reads)], &models, language.as_deref(), how, tell)
}

/// As [`listen`], for whatever reads sound: each with an ear of its own, side by side. No two name a source
/// by the same number.
pub(super) fn listen_to(
    reads: Vec<(Ear, Reads<'_>)>,
    models: &Models,
    language: Option<&str>,
    how: &How<'_>,
    tell: &mut dyn FnMut(usize, Told) -> Result<()>,
) -> Result<()> {
    // A window waits for each thread, so that none waits for the decoder.
    let (jobs, work) = bounded::<Job>(how.threads);
    let (out, happened) = bounded::<(usize, Happened)>(2 * how.threads);
    std::thread::scope(|scope| {
        for _ in 0..how.threads {
            let (work, out, models) = (work.clone(), out.clone(), models.clone());
            scope.spawn(move || read_windows(&work, &out, Listener::new(models), how.stats));
        }
        drop(work);
        for (ear, read) in reads {
            let language = language.map(str::to_owned);
            let (jobs, out) = (jobs.clone(), out.clone());
            let reader = Reader { ear, models, language, jobs, out, cancel: how.cancel };
            scope.spawn(move || read(reader));
        }
        drop((jobs, out));
        let mut result = Ok(());
        let mut open: BTreeMap<usize, Open> = BTreeMap::new();
        for (source, event) in &happened {
            let mut told = Vec::new();
            open.entry(source).or_insert_with(Open::new).take(event, &mut told);
            if matches!(told.last(), Some(Told::Ended(_))) {
                open.remove(&source);
            }
            for told in told {
                if result.is_ok() {
                    result = tell(source, told);
                    if result.is_err() {
                        how.cancel.cancel();
                    }
                }
            }
        }
        result
    })
}

fn read_windows(
    work: &Receiver<Job>,
    out: &Sender<(usize, Happened)>,
    listener: Listener,
    stats: &StageStats,
) {
    let _counted = stats.on_thread();
    while let Ok(job) = stats.starved(|| work.recv()) {
        let Job { source, number, window, fresh, language, is_certain, is_live } = job;
        let what = stats.busy(|| listener.hear(&window, &language, is_certain));
        stats.count_items(1);
        let what = match what {
            // What comes behind it does not wait for the end.
            Err(error) if is_live => {
                let (span, track) = (window.span(), TrackKind::Sound);
                let reason = format!("speech could not be read: {}", error.reason());
                Ok(Understood::Lost(Gap { span, track, reason }))
            }
            heard => heard.map(Understood::Heard),
        };
        if out.send((source, Happened::Understood { number, fresh, what })).is_err() {
            return;
        }
    }
}

/// A source whose windows are under way.
struct Open {
    joiner: Joiner,
    /// Cues are told as soon as they are whole.
    is_live: bool,
    cues: Vec<Cue>,
    gaps: Vec<Gap>,
    /// Heard out of order.
    waiting: BTreeMap<usize, (Micros, Understood)>,
    next: usize,
    understood: usize,
    error: Option<Error>,
    end: Option<(usize, Ending)>,
}

impl Open {
    fn new() -> Open {
        Open {
            joiner: Joiner::new("", Timestamp::ZERO),
            is_live: false,
            cues: Vec::new(),
            gaps: Vec::new(),
            waiting: BTreeMap::new(),
            next: 0,
            understood: 0,
            error: None,
            end: None,
        }
    }

    /// Joins what was understood; adds what is to be told.
    fn take(&mut self, event: Happened, told: &mut Vec<Told>) {
        match event {
            Happened::Begun { joiner, is_live } => {
                (self.joiner, self.is_live) = (joiner, is_live);
                return;
            }
            Happened::Advanced(by) => return told.push(Told::Advanced(by)),
            Happened::Gap(gap) => {
                // What is left out piece by piece is one gap.
                match self.gaps.last_mut() {
                    Some(last) if last.span.end == gap.span.start && last.reason == gap.reason => {
                        last.span.end = gap.span.end;
                    }
                    _ => self.gaps.push(gap),
                }
                return;
            }
            Happened::Understood { number, fresh, what } => {
                self.understood += 1;
                match what {
                    Ok(understood) => _ = self.waiting.insert(number, (fresh, understood)),
                    Err(error) => _ = self.error.get_or_insert(error),
                }
                while let Some((fresh, understood)) = self.waiting.remove(&self.next) {
                    self.next += 1;
                    self.join(fresh, understood, told);
                }
            }
            Happened::Read { given, ending } => self.end = Some((given, ending)),
        }
        if self.end.as_ref().is_some_and(|(given, _)| *given == self.understood)
            && let Some((_, mut ending)) = self.end.take()
        {
            // Behind a window that could not be read.
            for (fresh, understood) in std::mem::take(&mut self.waiting).into_values() {
                self.join(fresh, understood, told);
            }
            self.joiner.finish(&mut self.cues);
            ending.cues = std::mem::take(&mut self.cues);
            ending.gaps = std::mem::take(&mut self.gaps);
            ending.error = ending.error.or_else(|| self.error.take());
            told.push(Told::Ended(ending));
        }
    }

    fn join(&mut self, fresh: Micros, understood: Understood, told: &mut Vec<Told>) {
        match understood {
            Understood::Heard(heard) => {
                if let Some(at) = self.joiner.part(&heard, &mut self.cues) {
                    self.settle(at, told);
                }
                self.joiner.push(heard, &mut self.cues);
                if self.is_live {
                    told.push(Told::Heard(fresh));
                    if let Some(at) = self.cues.iter().map(|cue| cue.span.end).max() {
                        self.settle(at, told);
                    }
                }
            }
            Understood::Lost(gap) => {
                self.gaps.push(gap);
                told.push(Told::Lost(fresh));
            }
            Understood::Silence(until) => {
                self.joiner.silence(until, &mut self.cues);
                self.settle(until, told);
            }
        }
    }

    fn settle(&mut self, at: Timestamp, told: &mut Vec<Told>) {
        let mut cues = std::mem::take(&mut self.cues);
        for cue in &mut cues {
            // A last word without any length.
            cue.span.start = cue.span.start.min(at - Micros(1));
        }
        let (gaps, later) =
            std::mem::take(&mut self.gaps).into_iter().partition(|gap: &Gap| gap.span.start < at);
        self.gaps = later;
        told.push(Told::Settled { at, cues, gaps });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// 16 kHz mono, made by FFmpeg.
    fn sound(arguments: &[&str]) -> Vec<f32> {
        let mut command = Command::new("ffmpeg");
        command.args(["-v", "error", "-nostdin"]).args(arguments);
        let out = command.args(["-ar", "16000", "-ac", "1", "-f", "f32le", "-"]).output().unwrap();
        assert!(out.status.success(), "{out:?}");
        out.stdout.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    }

    /// What is said in this sound, by the models that read whatever language is spoken, and which of them have
    /// their networks in memory then.
    fn heard(samples: &[f32]) -> (String, Vec<String>) {
        let Ears { voice, models, language } =
            Ears::open(&crate::model::Models::open().unwrap(), &[], None).unwrap();
        let (cancel, stats) = (Cancel::default(), StageStats::new("listen"));
        let how = How { threads: 1, cancel: &cancel, stats: &stats };
        let reads: Reads<'_> = Box::new(|mut reader| {
            let mut reading = reader.begin_live(0, Timestamp::ZERO).unwrap();
            reader.hear(&mut reading, Timestamp::ZERO, samples).unwrap();
            reader.finish(&mut reading).unwrap();
            reader.end(reading).unwrap();
        });
        let mut said = String::new();
        listen_to(
            vec![(Ear::new(voice), reads)],
            &models,
            language.as_deref(),
            &how,
            &mut |_, told| {
                if let Told::Settled { cues, .. } | Told::Ended(Ending { cues, .. }) = told {
                    said.extend(cues.into_iter().map(|cue| cue.text));
                }
                Ok(())
            },
        )
        .unwrap();
        (said, models.loaded().into_iter().map(str::to_owned).collect())
    }

    #[test]
    fn networks_are_loaded_when_somebody_speaks() {
        for nothing in ["anullsrc=d=130", "anoisesrc=d=20:c=pink:a=0.3:seed=1", "sine=f=440:d=20"] {
            let (said, loaded) = heard(&sound(&["-f", "lavfi", "-i", nothing]));
            assert_eq!((said.as_str(), loaded.len()), ("", 0), "{nothing}: {loaded:?}");
        }
        let folder = tempfile::TempDir::new().unwrap();
        let wav = folder.path().join("voice.wav");
        let spoken = Command::new("espeak-ng")
            .args(["-v", "en", "-s", "140", "-w"])
            .args([wav.as_os_str(), "The old house stands near the river.".as_ref()])
            .status();
        assert!(spoken.unwrap().success());
        let (said, loaded) = heard(&sound(&["-i", wav.to_str().unwrap()]));
        assert!(said.contains("house"), "{said}");
        // One tells the language, and the other reads it.
        assert_eq!(loaded, ["whisper-tiny.en", "whisper-base"]);
    }
}
