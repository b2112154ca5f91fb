//! What a run tells while it goes on, and when it is over.

use serde::Serialize;
use serde_json::json;

use crate::error::{Error, Kind};
use crate::graph::StageReport;
use crate::source::Spent;
use crate::time::Micros;

/// Something that a user who waits wants to know.
#[derive(Debug)]
pub enum Progress<'a> {
    /// How much of a file has been hashed; only large ones tell.
    Hashed { source: &'a str, bytes: u64, of_bytes: u64 },
    /// A source was looked into: how long it is, if it says, and how much of its picture and of its sound
    /// is done already; `None` for what is not worked on.
    Opened {
        source: &'a str,
        length: Option<Micros>,
        picture: Option<Micros>,
        sound: Option<Micros>,
    },
    /// Media of this source that has been worked through in this run.
    Advanced { source: &'a str, part: Part, by: Micros },
    /// Nothing more will be done for this source in this run.
    Finished(&'a SourceReport),
}

/// What of a source is worked on; neither waits for the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Picture,
    Sound,
}

/// How one source fared.
#[derive(Debug, Clone, Serialize)]
pub struct SourceReport {
    /// As the user knows it, without credentials.
    pub source: String,
    /// Its id in the library, if it got that far.
    pub id: Option<String>,
    pub state: SourceState,
    /// In seconds; of the media, not of the work.
    pub length_secs: Option<f64>,
    /// Stored in this run.
    pub clips: u64,
    pub cues: u64,
    /// What is spoken, where it was listened to in this run.
    pub language: Option<String>,
    pub gaps: u64,
    /// Media without a picture, in seconds.
    pub gap_secs: f64,
    /// Every byte was read again, and is what it was when the source was indexed.
    pub verified: bool,
    /// What was noticed and is no failure: `3 corrupt packets skipped`.
    pub notices: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Problem>,
}

impl SourceReport {
    /// A source of which nothing is known yet.
    pub fn new(source: String, state: SourceState) -> Self {
        SourceReport {
            source,
            id: None,
            state,
            length_secs: None,
            clips: 0,
            cues: 0,
            language: None,
            gaps: 0,
            gap_secs: 0.0,
            verified: false,
            notices: Vec::new(),
            error: None,
        }
    }

    /// A source that could not even be found, or looked into.
    pub fn failed(source: String, error: &Error) -> Self {
        SourceReport { error: Some(error.into()), ..Self::new(source, SourceState::Failed) }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceState {
    Indexed,
    /// The library has all of it already.
    Unchanged,
    Failed,
    /// The user stopped the run; a later one goes on from what is stored.
    Interrupted,
}

/// An error as a report has it.
#[derive(Debug, Clone, Serialize)]
pub struct Problem {
    pub kind: Kind,
    pub reason: String,
}

impl From<&Error> for Problem {
    fn from(error: &Error) -> Self {
        Problem { kind: error.kind(), reason: error.reason() }
    }
}

/// What was made of the clips.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Made {
    pub segments: u64,
    /// Those of segments that one was sure enough of.
    pub captions: u64,
}

impl Made {
    pub(super) fn add(&mut self, other: Made) {
        self.segments += other.segments;
        self.captions += other.captions;
    }
}

/// The whole run.
#[derive(Debug, Clone, Serialize)]
pub struct RunReport {
    pub sources: Vec<SourceReport>,
    pub interrupted: bool,
    /// Sources that an interrupted run did not come to.
    pub not_begun: usize,
    /// Sources that only another pipeline has read: until this one has read them too, or they are
    /// forgotten, search answers from that one.
    pub waiting: usize,
    /// Those of them that no place holds any more.
    pub waiting_gone: usize,
    /// Sources that only another pipeline had read when this one was made to take over.
    pub left_behind: usize,
    /// What the pipeline names and was not made, since the demanded licence does not allow it.
    pub left_out: Vec<String>,
    #[serde(flatten)]
    pub made: Made,
    /// Media that came through the graph, in seconds.
    pub media_secs: f64,
    pub elapsed_secs: f64,
    pub stages: Vec<StageReport>,
    /// Processor time of this process, whose networks have threads beside the stages'.
    pub cpu_secs: f64,
    /// What the decoder hosts did.
    #[serde(serialize_with = "decoding")]
    pub decoding: Spent,
}

fn decoding<S: serde::Serializer>(spent: &Spent, serializer: S) -> Result<S::Ok, S::Error> {
    let Spent { processor_time, frames_decoded, frames_skipped, unplanned_groups } = *spent;
    json!({
        "cpu_secs": processor_time.as_secs_f64(),
        "frames_decoded": frames_decoded,
        "frames_skipped": frames_skipped,
        "unplanned_groups": unplanned_groups,
    })
    .serialize(serializer)
}

impl RunReport {
    pub fn count(&self, state: SourceState) -> usize {
        self.sources.iter().filter(|source| source.state == state).count()
    }

    /// The stage that the others wait for, and the share of its time that it is at work: the largest. A stage that
    /// was over long before the run, as decoding is where somebody speaks for long, kept nobody waiting since.
    pub fn bound_by(&self) -> Option<(&StageReport, f64)> {
        let share = |stage: &StageReport| {
            let run_secs = self.elapsed_secs.max(f64::MIN_POSITIVE);
            stage.busy_share().min(stage.busy_secs / run_secs)
        };
        let shares = self.stages.iter().map(|stage| (stage, share(stage)));
        shares.max_by(|(_, a), (_, b)| a.total_cmp(b))
    }

    /// Media seconds per second of work.
    pub fn times_real_time(&self) -> f64 {
        if self.elapsed_secs > 0.0 { self.media_secs / self.elapsed_secs } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_that_was_over_early_keeps_nobody_waiting() {
        let stage = |stage, busy_secs, starved_secs| StageReport {
            stage,
            items: 1,
            batches: 1,
            busy_secs,
            starved_secs,
            blocked_secs: 0.0,
            cpu_secs: busy_secs,
        };
        let report = RunReport {
            interrupted: false,
            not_begun: 0,
            waiting: 0,
            waiting_gone: 0,
            left_behind: 0,
            left_out: Vec::new(),
            made: Made::default(),
            media_secs: 13.0,
            elapsed_secs: 11.0,
            // Two threads listen.
            stages: vec![stage("decode", 0.4, 0.0), stage("listen", 16.5, 5.5)],
            cpu_secs: 17.0,
            decoding: Spent::default(),
            sources: Vec::new(),
        };
        let (stage, share) = report.bound_by().unwrap();
        assert_eq!((stage.stage, share), ("listen", 0.75));
    }
}
