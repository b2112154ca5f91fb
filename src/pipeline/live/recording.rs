//! The compressed stream itself, into files beside the record.

use crate::error::Result;
use crate::library::{RecordingFile, Recordings};
use crate::source::Recorded;

/// What is kept of one stream. A failure costs what came meanwhile, and never the picture.
#[derive(Debug)]
pub(super) struct Recording {
    name: String,
    recordings: Recordings,
    /// What each file of the stream begins with, as it is now.
    headers: Vec<u8>,
    file: Option<RecordingFile>,
    /// Frames that are in no file since nothing could be written.
    missing: Option<u64>,
}

impl Recording {
    /// `name`: of the stream, for messages.
    pub fn new(name: &str, recordings: Recordings) -> Self {
        let name = name.to_owned();
        Recording { name, recordings, headers: Vec::new(), file: None, missing: None }
    }

    /// Writes a part of a file. Returns how many bytes that were, or `None` where its frames are in no file.
    pub fn take(&mut self, mut part: Recorded) -> Option<u64> {
        if let Some(headers) = part.headers.take() {
            self.finish();
            self.headers = headers;
        }
        let frames = u64::from(part.frames);
        match self.write(&part) {
            Ok(Some(bytes)) => {
                if let Some(missing) = self.missing.take() {
                    let name = &self.name;
                    tracing::warn!("{name}: recorded again; {missing} frames are missing");
                }
                return Some(bytes);
            }
            Ok(None) => {}
            Err(error) => {
                // A hole ends a file: players take it for what it is, and so do those who list files.
                self.finish();
                if self.missing.is_none() {
                    let name = &self.name;
                    tracing::warn!("{name}: {error}: nothing is recorded until that is over");
                    self.missing = Some(0);
                }
            }
        }
        if let Some(missing) = &mut self.missing {
            *missing += frames;
        }
        None
    }

    fn write(&mut self, part: &Recorded) -> Result<Option<u64>> {
        if let Some(file) = &mut self.file {
            return file.append(&part.bytes).map(Some);
        }
        // Only from a keyframe on can a file be played.
        if !part.is_key || self.headers.is_empty() {
            return Ok(None);
        }
        let file = self.file.insert(self.recordings.begin(part.start)?);
        file.append(&[self.headers.as_slice(), &part.bytes].concat()).map(Some)
    }

    /// The file in hand is whole.
    pub fn finish(&mut self) {
        if let Some(Err(error)) = self.file.take().map(RecordingFile::finish) {
            let name = &self.name;
            tracing::warn!("{name}: {error}: its recording may not outlast a loss of power");
        }
    }

    /// The connection is over, and the next one has headers of its own.
    pub fn end(&mut self) {
        self.finish();
        self.headers.clear();
    }
}
