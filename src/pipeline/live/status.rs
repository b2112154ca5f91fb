//! What is known of a stream that is watched, for whoever looks on.

use serde::Serialize;

use crate::library::SourceId;
use crate::pipeline::report::Made;
use crate::source::Received;
use crate::time::{Micros, Span};

/// How a stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StreamState {
    Connecting,
    Live,
    /// Lost, and tried again after a pause.
    Waiting,
    /// A file that was played to its end, or the run is over.
    Ended,
}

/// All about one stream, since the run began.
#[derive(Debug, Clone, Serialize)]
pub struct StreamStatus {
    /// Its name, or its address without credentials.
    pub source: String,
    pub id: SourceId,
    pub state: StreamState,
    /// Since when, on the wall clock, in microseconds since 1970.
    pub since_us: i64,
    /// Why it was lost last.
    pub reason: Option<String>,
    /// Since when it is lost, on the wall clock, however often it was tried.
    pub lost_since_us: Option<i64>,
    /// When it is tried again, in seconds.
    pub retry_secs: Option<f64>,
    /// Why nothing that comes of it can be stored; `None` where it can.
    pub not_stored: Option<String>,
    /// How often it was connected.
    pub sessions: u64,
    #[serde(flatten)]
    pub frames: Frames,
    /// Stored in the library.
    pub clips: u64,
    pub gaps: u64,
    pub gap_secs: f64,
    /// Clips that were deleted in this run, since no more was to be kept.
    pub deleted_clips: u64,
    /// Of the compressed stream, in recordings.
    pub recorded_bytes: u64,
    /// From the capture of the last frame of the newest clip until that was stored.
    pub delay_secs: Option<f64>,
    /// Written of the clips.
    #[serde(flatten)]
    pub made: Made,
    /// Chunks of which no segments could be made.
    pub unsegmented: u64,
    /// From the end of the newest segment until that was stored, with its caption.
    pub segment_delay_secs: Option<f64>,
    /// `None`: nobody listens.
    pub sound: Option<Sound>,
}

impl StreamStatus {
    /// Of a stream of which nothing came yet.
    pub fn new(source: String, id: SourceId, since_us: i64) -> Self {
        StreamStatus {
            source,
            id,
            state: StreamState::Connecting,
            since_us,
            reason: None,
            lost_since_us: None,
            retry_secs: None,
            not_stored: None,
            sessions: 0,
            frames: Frames::default(),
            clips: 0,
            gaps: 0,
            gap_secs: 0.0,
            deleted_clips: 0,
            recorded_bytes: 0,
            delay_secs: None,
            made: Made::default(),
            unsegmented: 0,
            segment_delay_secs: None,
            sound: None,
        }
    }
}

/// What became of a stream's sound, over all connections. All that was received is in one of the other
/// lengths.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Sound {
    #[serde(rename = "received_us")]
    pub received: Micros,
    /// Where somebody speaks, or seems to, and what that is was looked for.
    #[serde(rename = "heard_us")]
    pub heard: Micros,
    #[serde(rename = "without_speech_us")]
    pub without_speech: Micros,
    /// Left out since listening did not keep up.
    #[serde(rename = "behind_us")]
    pub behind: Micros,
    /// Of a time that had been before.
    #[serde(rename = "repeated_us")]
    pub repeated: Micros,
    /// Where reading failed.
    #[serde(rename = "unreadable_us")]
    pub unreadable: Micros,
    #[serde(rename = "under_way_us")]
    pub under_way: Micros,
    /// Packets of which no sound came.
    pub undecodable: u64,
    /// Packets that were left out since decoding did not keep up.
    pub undecoded: u64,
    /// Packets that are in no recording although the stream is recorded.
    pub unrecorded: u64,
    /// Stored in the library.
    pub cues: u64,
    /// Of the sound.
    pub gaps: u64,
    pub gap_secs: f64,
    /// From the end of the newest cue's last word until it was stored.
    pub delay_secs: Option<f64>,
}

impl Sound {
    /// What is left over is under way.
    #[cfg(feature = "speech")]
    pub(super) fn settle(&mut self) {
        let settled =
            [self.heard, self.without_speech, self.behind, self.repeated, self.unreadable];
        self.under_way = self.received;
        settled.into_iter().for_each(|part| self.under_way -= part);
    }
}

/// What became of a stream's frames, over all connections. Each that was received is in one of the
/// other numbers, or under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Frames {
    #[serde(flatten)]
    pub received: Received,
    /// Of those received, in a decoder host that ended before it told what became of them.
    pub host_ended: u64,
    pub under_way: u64,
}

impl Frames {
    /// With what a connection has brought so far.
    pub fn and(mut self, session: &Received) -> Frames {
        let sum = &mut self.received;
        sum.received += session.received;
        sum.encoded += session.encoded;
        sum.skipped += session.skipped;
        sum.before_keyframe += session.before_keyframe;
        sum.behind += session.behind;
        sum.undecodable += session.undecodable;
        sum.in_hardware += session.in_hardware;
        sum.unrecorded += session.unrecorded;
        sum.lost_packets += session.lost_packets;
        sum.jumps += session.jumps;
        sum.sender_ahead_us = session.sender_ahead_us;
        sum.is_sender_time = session.is_sender_time;
        self.under_way += session.under_way();
        self
    }

    /// Whatever was under way is lost with its host.
    pub fn closed(mut self) -> Frames {
        self.host_ended += std::mem::take(&mut self.under_way);
        self
    }
}

/// What happens while streams are watched.
#[derive(Debug)]
pub enum LiveEvent<'a> {
    /// A stream's state is another, or its numbers are told anew.
    Stream(&'a StreamStatus),
    /// A clip is stored, and found by search from now on.
    Stored(&'a StoredClip),
    /// So is what was said.
    Heard(&'a HeardCue),
}

/// A cue that was heard and stored.
#[derive(Debug, Clone, Serialize)]
pub struct HeardCue {
    pub source: String,
    pub id: SourceId,
    #[serde(flatten)]
    pub span: ClipSpan,
    pub text: String,
    /// BCP-47, where known.
    pub language: Option<String>,
    /// From the end of its last word until it was stored.
    pub delay_secs: f64,
}

/// A clip that was stored.
#[derive(Debug, Clone, Serialize)]
pub struct StoredClip {
    pub source: String,
    pub id: SourceId,
    #[serde(flatten)]
    pub span: ClipSpan,
    /// From the capture of its last frame until it was stored; `None` where frames are missing.
    pub delay_secs: Option<f64>,
}

/// Media time, which is the wall clock: microseconds since 1970.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct ClipSpan {
    pub start_us: i64,
    pub end_us: i64,
}

impl From<Span> for ClipSpan {
    fn from(span: Span) -> Self {
        ClipSpan { start_us: span.start.0, end_us: span.end.0 }
    }
}

/// What came of watching.
#[derive(Debug, Clone, Serialize)]
pub struct LiveReport {
    pub streams: Vec<StreamStatus>,
    /// Written in this run.
    #[serde(flatten)]
    pub made: Made,
    pub elapsed_secs: f64,
    pub stages: Vec<crate::graph::StageReport>,
}
