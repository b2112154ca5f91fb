//! Progress on the terminal: a bar for each source under way, and one for all.

use std::collections::HashMap;
use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{counted, note};
use crate::pipeline::{Part, Progress, SourceReport, SourceState};
use crate::time::Micros;

/// The bars that are drawn.
static BARS: Mutex<Option<MultiProgress>> = Mutex::new(None);

/// Bars on standard error, if that is a terminal.
pub fn bars() -> MultiProgress {
    let bars = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
    *BARS.lock().unwrap_or_else(PoisonError::into_inner) = Some(bars.clone());
    bars
}

/// Standard error for whole lines: above the bars, which would be drawn over them.
#[derive(Debug)]
pub struct AboveBars;

impl Write for AboveBars {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        let bars = BARS.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match bars.filter(|bars| !bars.is_hidden()) {
            Some(bars) => bars.println(String::from_utf8_lossy(text))?,
            None => io::stderr().write_all(text)?,
        }
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Shows an index run on standard error: bars on a terminal, a line a source elsewhere.
#[derive(Debug)]
pub struct IndexProgress {
    bars: MultiProgress,
    all: ProgressBar,
    /// Bars do not draw where there is no terminal; then finished sources are plain lines.
    plain: bool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    started: Instant,
    sources: usize,
    finished: usize,
    /// Media that came through, of all sources.
    done: Micros,
    open: HashMap<String, Source>,
    /// Files of which every byte is read.
    hashed: HashMap<String, ProgressBar>,
}

impl State {
    fn remove_hashed(&mut self, bars: &MultiProgress, source: &str) {
        if let Some(bar) = self.hashed.remove(source) {
            bar.finish_and_clear();
            bars.remove(&bar);
        }
    }
}

#[derive(Debug)]
struct Source {
    bar: ProgressBar,
    started: Instant,
    length: Option<Micros>,
    picture: Option<Extent>,
    sound: Option<Extent>,
}

/// How far the work on picture or sound is.
#[derive(Debug, Clone, Copy)]
struct Extent {
    /// In the library before this run.
    stored: Micros,
    done: Micros,
}

impl Extent {
    fn new(stored: Micros) -> Self {
        Extent { stored, done: Micros::ZERO }
    }

    /// 0 to 1.
    fn share(self, length: Micros) -> f64 {
        let done = self.stored.as_secs_f64() + self.done.as_secs_f64();
        (done / length.as_secs_f64()).min(1.0)
    }

    /// Time left at the speed so far.
    fn left(self, length: Micros, elapsed: Duration) -> Option<Duration> {
        let (stored, done) = (self.stored.as_secs_f64(), self.done.as_secs_f64());
        let left = (length.as_secs_f64() - stored - done).max(0.0);
        (done > 0.0)
            .then(|| Duration::try_from_secs_f64(elapsed.as_secs_f64() * left / done))
            .and_then(Result::ok)
    }
}

impl Source {
    fn parts(&self) -> impl Iterator<Item = Extent> {
        self.picture.into_iter().chain(self.sound)
    }

    fn length(&self) -> Option<Micros> {
        self.length.filter(|length| *length > Micros::ZERO)
    }

    /// 0 to 1; 0 where the length is not known.
    fn share(&self) -> f64 {
        let Some(length) = self.length() else { return 0.0 };
        let count = self.parts().count().max(1) as f64;
        self.parts().map(|part| part.share(length)).sum::<f64>() / count
    }

    /// Until the slower of picture and sound is done.
    fn left(&self) -> Option<Duration> {
        let (length, elapsed) = (self.length()?, self.started.elapsed());
        self.parts().filter_map(|part| part.left(length, elapsed)).max()
    }

    /// Speed, how far the sound is where there is a picture too, and the time left.
    fn message(&self) -> String {
        let main = self.picture.or(self.sound).map_or(Micros::ZERO, |part| part.done);
        let speed = times_real_time(main, self.started);
        let sound = match (self.picture, self.sound, self.length()) {
            (Some(_), Some(sound), Some(length)) => {
                format!(", sound {:.0} %", 100.0 * sound.share(length))
            }
            _ => String::new(),
        };
        format!("{speed}{sound}{}", time_left(self.left()))
    }
}

const STEPS: u64 = 1_000;

impl IndexProgress {
    pub fn new(sources: usize) -> Self {
        let plain = !io::stderr().is_terminal();
        let bars = bars();
        let all = bars.add(ProgressBar::new(STEPS).with_style(style("all")));
        let state = State {
            started: Instant::now(),
            sources,
            finished: 0,
            done: Micros::ZERO,
            open: HashMap::new(),
            hashed: HashMap::new(),
        };
        IndexProgress { bars, all, plain, state: Mutex::new(state) }
    }

    pub fn show(&self, progress: &Progress<'_>) {
        // Counters only: a panic elsewhere leaves at worst a bar that is a little behind.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match progress {
            Progress::Hashed { source, bytes, of_bytes } => {
                let bar = state.hashed.entry((*source).to_owned()).or_insert_with(|| {
                    let bar = ProgressBar::new(*of_bytes).with_style(style("hashed"));
                    let bar = self.bars.insert_before(&self.all, bar);
                    bar.set_prefix(shortened(source));
                    bar
                });
                bar.set_position(*bytes);
            }
            Progress::Opened { source, length, picture, sound } => {
                state.remove_hashed(&self.bars, source);
                let bar = ProgressBar::new(STEPS).with_style(style("one"));
                let bar = self.bars.insert_before(&self.all, bar);
                bar.set_prefix(shortened(source));
                let source_state = Source {
                    bar,
                    started: Instant::now(),
                    length: *length,
                    picture: picture.map(Extent::new),
                    sound: sound.map(Extent::new),
                };
                state.open.insert((*source).to_owned(), source_state);
            }
            Progress::Advanced { source, part, by } => {
                let mut is_main = true;
                if let Some(open) = state.open.get_mut(*source) {
                    is_main = *part == Part::Picture || open.picture.is_none();
                    let extent = match part {
                        Part::Picture => &mut open.picture,
                        Part::Sound => &mut open.sound,
                    };
                    if let Some(extent) = extent {
                        extent.done = Micros(extent.done.0.saturating_add(by.0));
                    }
                    open.bar.set_position((open.share() * STEPS as f64) as u64);
                    open.bar.set_message(open.message());
                }
                if is_main {
                    state.done = Micros(state.done.0.saturating_add(by.0));
                }
            }
            Progress::Finished(report) => {
                self.finish_one(&mut state, &report.source, &finished_line(report));
            }
        }
        self.show_all(&state);
    }

    /// Nothing more will be done for this source: `line` says what came of it.
    #[cfg(feature = "speech")]
    pub fn finished(&self, source: &str, line: &str) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.finish_one(&mut state, source, line);
        self.show_all(&state);
    }

    fn finish_one(&self, state: &mut State, source: &str, line: &str) {
        state.finished += 1;
        state.remove_hashed(&self.bars, source);
        if let Some(open) = state.open.remove(source) {
            open.bar.finish_and_clear();
            self.bars.remove(&open.bar);
        }
        if self.plain {
            note(&format!("[{}/{}] {line}", state.finished, state.sources));
        } else {
            self.bars.suspend(|| note(line));
        }
    }

    fn show_all(&self, state: &State) {
        let open: f64 = state.open.values().map(Source::share).sum();
        let share = (state.finished as f64 + open) / (state.sources.max(1) as f64);
        let elapsed = state.started.elapsed();
        let left = (share > 0.0)
            .then(|| Duration::try_from_secs_f64(elapsed.as_secs_f64() * (1.0 - share) / share))
            .and_then(Result::ok);
        // Sources differ in length, and all are not done before the longest one is.
        let left = left.max(state.open.values().filter_map(Source::left).max());
        self.all.set_position((share * STEPS as f64) as u64);
        self.all.set_prefix(format!("{} of {} sources", state.finished, state.sources));
        let speed = times_real_time(state.done, state.started);
        self.all.set_message(format!("{speed}{}", time_left(left)));
    }

    pub fn finish(&self) {
        self.all.finish_and_clear();
    }
}

fn style(of: &str) -> ProgressStyle {
    let template = match of {
        "all" => "{prefix:40.bold} {bar:20} {percent:>3}% {msg}",
        "hashed" => "{prefix:40} {bar:20} {percent:>3}% hashed, {binary_bytes_per_sec}, {eta} left",
        _ => "{prefix:40} {bar:20} {percent:>3}% {msg}",
    };
    // The templates above are constants, and right; a plain bar would do as well.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn times_real_time(media: Micros, since: Instant) -> String {
    format!("{:.1}x real time", media.as_secs_f64() / since.elapsed().as_secs_f64().max(1e-3))
}

fn time_left(left: Option<Duration>) -> String {
    match left {
        Some(left) => {
            let secs = left.as_secs();
            format!(", {}:{:02}:{:02} left", secs / 3600, secs / 60 % 60, secs % 60)
        }
        None => String::new(),
    }
}

/// The last 40 characters, which tell files apart better than the first.
fn shortened(source: &str) -> String {
    let count = source.chars().count();
    if count <= 40 {
        source.to_owned()
    } else {
        format!("…{}", source.chars().skip(count - 39).collect::<String>())
    }
}

fn finished_line(report: &SourceReport) -> String {
    let SourceReport { source, .. } = report;
    let (clips, cues) = (counted(report.clips, "clip"), counted(report.cues, "cue"));
    let mut line = match report.state {
        SourceState::Indexed => match &report.language {
            Some(language) => format!("{source}: {clips}, {cues} ({language} spoken)"),
            None => format!("{source}: {clips}, {cues}"),
        },
        SourceState::Unchanged if report.verified => {
            format!("{source}: unchanged, every byte verified")
        }
        SourceState::Unchanged => format!("{source}: unchanged"),
        SourceState::Interrupted => format!("{source}: interrupted, {clips} kept"),
        SourceState::Failed => {
            let reason = report.error.as_ref().map_or("no reason given", |error| &error.reason);
            format!("{source}: FAILED: {reason}")
        }
    };
    if report.gaps > 0 {
        let gaps = counted(report.gaps, "gap");
        line.push_str(&format!(", {gaps} ({:.1} s)", report.gap_secs));
    }
    for notice in &report.notices {
        line.push_str(&format!("; {notice}"));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_keep_their_end() {
        assert_eq!(shortened("short.mp4"), "short.mp4");
        let long = shortened(&format!("{}/holiday.mp4", "x".repeat(60)));
        assert!(long.ends_with("/holiday.mp4") && long.chars().count() == 40, "{long}");
    }

    #[test]
    fn a_failed_source_says_why() {
        let report = SourceReport {
            source: "tape.ts".to_owned(),
            id: None,
            state: SourceState::Failed,
            length_secs: None,
            clips: 0,
            cues: 0,
            language: None,
            gaps: 0,
            gap_secs: 0.0,
            verified: false,
            notices: Vec::new(),
            error: Some((&crate::error::Error::corrupt("not a video")).into()),
        };
        assert_eq!(finished_line(&report), "tape.ts: FAILED: not a video");
    }
}
