//! The compressed stream itself, into files beside the record.

use crate::error::Result;
use crate::library::{RecordingFile, Recordings};
use crate::source::Recorded;
use crate::time::Timestamp;

/// What is kept of one stream. A failure costs what came meanwhile, and never the picture.
#[derive(Debug)]
pub(super) struct Recording {
    name: String,
    recordings: Recordings,
    /// What each file of the stream begins with, as it is now.
    headers: Vec<u8>,
    file: Option<RecordingFile>,
    /// Where that begins.
    start: Timestamp,
    /// Frames that are in no file since nothing could be written.
    missing: Option<u64>,
}

impl Recording {
    /// `name`: of the stream, for messages.
    pub fn new(name: &str, recordings: Recordings) -> Self {
        let name = name.to_owned();
        let (headers, file, start) = (Vec::new(), None, Timestamp::ZERO);
        Recording { name, recordings, headers, file, start, missing: None }
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
            // A file's times begin with its first frame: nothing is heard before.
            let is_early = part.start < self.start;
            return if is_early { Ok(None) } else { file.append(&part.bytes).map(Some) };
        }
        // Only from a keyframe on can a file be played.
        if !part.is_key || self.headers.is_empty() {
            return Ok(None);
        }
        self.start = part.start;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::library::Writer;

    #[test]
    fn a_file_begins_with_its_first_frame_also_where_sound_comes_late() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(&folder.path().join("library")).unwrap();
        let id = "7779c581-b2e1-4533-b0ac-8da55db4b66c".parse().unwrap();
        let recordings = writer.recordings(id).unwrap();
        let mut recording = Recording::new("camera", recordings.clone());
        let mut take = |millis: i64, headers: Option<&[u8]>, is_key: bool, bytes: &[u8]| {
            let start = Timestamp(millis * 1_000);
            let headers = headers.map(<[u8]>::to_vec);
            let (frames, packets) = if is_key { (25, 0) } else { (0, 40) };
            let bytes = bytes.to_vec();
            recording.take(Recorded { start, headers, is_key, frames, packets, bytes })
        };
        assert_eq!(take(4_000, Some(b"headers "), false, b"sound "), None);
        assert_eq!(take(5_000, None, true, b"frames "), Some(15));
        assert_eq!(take(4_200, None, false, b"sound of before "), None);
        assert_eq!(take(5_100, None, false, b"sound"), Some(5));
        recording.finish();
        let [file] = &recordings.list().unwrap()[..] else { panic!("one file") };
        assert_eq!(file.start, Timestamp(5_000_000));
        assert_eq!(std::fs::read(&file.path).unwrap(), b"headers frames sound");
    }
}
