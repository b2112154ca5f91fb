//! The cues of a source: subtitles inside it and beside it.

use std::collections::BTreeSet;

use super::files::Files;
use crate::error::{Kind, Result};
use crate::library::{Place, SourceId};
use crate::media::{Cue, TrackKind};
use crate::source::{CueEvent, CueRequest, Input, Location, MediaInfo};
use crate::time::Timestamp;

/// More cues than any film has; a file with more is no subtitle file.
const MAX_CUES: usize = 200_000;
/// Of one source, in notices.
const MAX_NOTICES: usize = 20;
/// The track names of cues from subtitle files begin so.
pub(super) const SIDECAR: &str = "sidecar:";
const EMBEDDED: &str = "embedded:";

/// What could be read of a source's cues. What could not is a notice, and fails nothing: of such a
/// track these are the cues that the library has.
#[derive(Debug, Default)]
pub(super) struct Texts {
    pub cues: Vec<Cue>,
    pub notices: Vec<String>,
}

impl Texts {
    /// Leaves out the cues of a file, which begin with this number, that begin where the source is over: nobody
    /// would ever see them, and they are no words of it.
    fn leave_out_behind(&mut self, end: Timestamp, first: usize, file: &str) {
        let (seen, behind): (Vec<Cue>, Vec<Cue>) =
            self.cues.drain(first..).partition(|cue| cue.span.start < end);
        self.cues.extend(seen);
        match behind.len() {
            0 => {}
            1 => self
                .notice(format!("1 cue of {file} begins behind the end ({end}) and is left out")),
            count => self.notice(format!(
                "{count} cues of {file} begin behind the end ({end}) and are left out"
            )),
        }
    }

    fn notice(&mut self, notice: String) {
        if self.notices.len() < MAX_NOTICES && !self.notices.contains(&notice) {
            self.notices.push(notice);
        }
    }
}

impl Files<'_> {
    /// Cues from everywhere. The only error is `Cancelled`, or the library's.
    pub(super) fn all_cues(
        &mut self,
        id: SourceId,
        input: &Input,
        info: &MediaInfo,
    ) -> Result<Texts> {
        let mut texts = self.sidecar_cues(id)?;
        if info.of_kind(TrackKind::Text).any(|track| !track.is_bitmap) {
            let request = CueRequest::Embedded { track: None };
            if let Err(why) = self.read_cues(input, &request, &mut texts)? {
                texts.notice(format!("embedded subtitles cannot be read: {why}"));
                self.keep_known(id, |track| track.starts_with(EMBEDDED), &mut texts)?;
            }
        }
        if info.of_kind(TrackKind::Text).any(|track| track.is_bitmap) {
            texts.notice("subtitles that are pictures cannot be read".to_owned());
        }
        Ok(texts)
    }

    /// The cues of the subtitle files beside a source, at all places where it is known to be: a link
    /// to a film elsewhere has no subtitles beside it, and takes none away.
    pub(super) fn sidecar_cues(&mut self, id: SourceId) -> Result<Texts> {
        let mut texts = Texts::default();
        let (places, length) = {
            let library = self.shared.library();
            (library.places(id)?, library.sure_duration(id)?)
        };
        let end = length.map(|length| Timestamp::ZERO + length);
        let mut names = BTreeSet::new();
        for place in places {
            let Place::Path(path) = place else { continue };
            for sidecar in self.shared.sidecars.of(&path) {
                let location = Location::File(sidecar.path);
                let name = location.to_string();
                let name = name.rsplit('/').next().unwrap_or_default().to_owned();
                if !names.insert(name.clone()) {
                    // A copy of the film, with a copy of its subtitles.
                    continue;
                }
                let track = format!("{SIDECAR}{name}");
                let request =
                    CueRequest::Sidecar { language: sidecar.language, track: track.clone() };
                let first = texts.cues.len();
                let read = match Input::open(&location) {
                    Ok(input) => self.read_cues(&input, &request, &mut texts)?,
                    Err(error) => Err(error.reason()),
                };
                if let Err(why) = read {
                    texts.notice(format!("subtitles {location} cannot be read: {why}"));
                    self.keep_known(id, |known| known == track, &mut texts)?;
                } else if let Some(end) = end {
                    texts.leave_out_behind(end, first, &name);
                }
            }
        }
        Ok(texts)
    }

    /// Reads cues to the end, or none of them and says why. A host that died or hung gets a second try:
    /// what was wrong may not have been the source.
    fn read_cues(
        &mut self,
        input: &Input,
        request: &CueRequest,
        texts: &mut Texts,
    ) -> Result<Result<(), String>> {
        let before = texts.cues.len();
        let mut attempts = 0;
        loop {
            let error = match self.try_cues(input, request, texts) {
                Ok(()) => return Ok(Ok(())),
                Err(error) => error,
            };
            texts.cues.truncate(before);
            attempts += 1;
            match error.kind() {
                Kind::Cancelled => return Err(error),
                Kind::Corrupt | Kind::Exhausted | Kind::Internal if attempts == 1 => {}
                _ => return Ok(Err(error.reason())),
            }
        }
    }

    fn try_cues(&mut self, input: &Input, request: &CueRequest, texts: &mut Texts) -> Result<()> {
        for event in self.host.cues(input, request)? {
            match event? {
                CueEvent::Cue(cue) if texts.cues.len() < MAX_CUES => texts.cues.push(cue),
                CueEvent::Cue(_) => {
                    texts.notice(format!("only the first {MAX_CUES} cues are kept"));
                    break;
                }
                CueEvent::Notice(notice) => texts.notice(match request {
                    CueRequest::Sidecar { track, .. } => {
                        format!("{}: {notice}", track.strip_prefix(SIDECAR).unwrap_or(track))
                    }
                    CueRequest::Embedded { .. } => notice,
                }),
                CueEvent::End(_) => {}
            }
        }
        Ok(())
    }

    /// Adds what the library has of tracks that could not be read this time.
    fn keep_known(
        &self,
        id: SourceId,
        is_of_track: impl Fn(&str) -> bool,
        texts: &mut Texts,
    ) -> Result<()> {
        let known = self.shared.library().cues(id)?;
        texts.cues.extend(known.into_iter().filter(|cue| is_of_track(&cue.track)));
        Ok(())
    }
}
