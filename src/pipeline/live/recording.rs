//! The compressed stream itself, into files beside the record.

use crate::error::Result;
use crate::library::{RecordingFile, Recordings};
use crate::source::Recorded;

/// What is kept of one stream. A failure costs what came meanwhile, and never the picture.
#[derive(Debug)]
pub(super) struct Recording {
    name: String,
    recordings: Recordings,
    file: Option<RecordingFile>,
    fails: bool,
}

impl Recording {
    /// `name`: of the stream, for messages.
    pub fn new(name: &str, recordings: Recordings) -> Self {
        Recording { name: name.to_owned(), recordings, file: None, fails: false }
    }

    /// Writes a part of a file. Returns how many frames are in no file for it.
    pub fn take(&mut self, part: &Recorded) -> u64 {
        let written = self.write(part);
        let failed_before = std::mem::replace(&mut self.fails, written.is_err());
        match written {
            Ok(true) => return 0,
            // A file that could not be begun is missed up to the next one.
            Ok(false) => {}
            Err(error) if !failed_before => {
                tracing::warn!("{}: {error}: nothing is recorded until that is over", self.name);
            }
            Err(_) => {}
        }
        part.frames.into()
    }

    fn write(&mut self, part: &Recorded) -> Result<bool> {
        if part.is_first {
            self.finish();
            self.file = Some(self.recordings.begin(part.start)?);
        }
        let Some(file) = &mut self.file else { return Ok(false) };
        let written = file.append(&part.bytes);
        if written.is_err() && part.is_first {
            // What follows is of no use without the headers.
            self.finish();
        }
        written.map(|()| true)
    }

    /// The file in hand is whole.
    pub fn finish(&mut self) {
        if let Some(Err(error)) = self.file.take().map(RecordingFile::finish) {
            let name = &self.name;
            tracing::warn!("{name}: {error}: its recording may not outlast a loss of power");
        }
    }
}
