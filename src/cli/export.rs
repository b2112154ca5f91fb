//! Cutting a moment out of its source, with the `ffmpeg` program.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde::Serialize;

use crate::error::{Error, Kind, Result};
use crate::library::{Hit, Location, Origin, Place, Reader, Recording, Source};
use crate::time::{Span, Timestamp};

/// What was written.
#[derive(Debug, Serialize)]
pub struct Exported {
    pub file: String,
    pub span: Span,
    /// The parts of it that were not recorded.
    pub missing: Vec<Span>,
}

/// Endings of names by which ffmpeg knows formats that hold films of any size, pace and sound, …
const FILMS: [&str; 15] = [
    "mp4", "mkv", "mov", "webm", "avi", "ts", "m4v", "m2ts", "mts", "flv", "wmv", "asf", "ogv",
    "nut", "vob",
];
/// … sound alone, …
const SOUNDS: [&str; 10] = ["mp3", "m4a", "aac", "wav", "flac", "ogg", "opus", "oga", "wma", "mka"];
/// … and pictures alone.
const SILENT: [&str; 1] = ["gif"];
/// Formats whose frames have times of their own.
const TIMED: [&str; 5] = ["mp4", "m4v", "mov", "mkv", "webm"];
/// Cameras keep no exact pace. Where ffmpeg may, it would put their frames on a grid, leave out some and
/// show others twice.
const AS_TIMED: [&str; 4] = ["-fps_mode", "passthrough", "-enc_time_base:v", "1:60000"];

/// Whether a moment could be written into `file`, before anything is searched.
///
/// # Errors
/// `InvalidInput` where it exists already, or has no ending of a format that ffmpeg writes.
pub fn check(file: &Path) -> Result<()> {
    if file.exists() {
        return Err(Error::invalid_input(format!(
            "{} exists already; name a new file",
            file.display()
        )));
    }
    if [&FILMS[..], &SOUNDS, &SILENT].concat().contains(&&*ending(file)) {
        return Ok(());
    }
    Err(Error::invalid_input(format!(
        "{} has no ending that says a format which holds any moment: use one of .{}; for its sound alone \
         .{}; without sound .{}",
        file.display(),
        FILMS.join(", ."),
        SOUNDS.join(", ."),
        SILENT.join(", .")
    )))
}

/// Writes the hit's span into `file`, which [`check`] has found fit. The moment is encoded anew, so
/// that it begins and ends where the hit does and not at the nearest keyframes. A file is read
/// at the first of its locations that is still there, a live source from its recordings.
///
/// # Errors
/// `NotFound` where the source or ffmpeg is not there; `InvalidInput` where ffmpeg cannot write this
/// format, or there is no sound for one that holds nothing else.
pub fn cut(reader: &Reader, source: &Source, hit: &Hit, file: &Path) -> Result<Exported> {
    let partial = std::path::absolute(beside(file));
    let partial = partial.map_err(|cause| Error::io(file, "find", cause))?;
    let span = Span::new(hit.span.start_us, hit.span.end_us);
    let mut missing = Vec::new();
    let [is_silent, is_sound] =
        [&SILENT[..], &SOUNDS].map(|formats| formats.contains(&&*ending(file)));
    let mut sound = (!is_silent).then_some("0:a:0?");
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args(["-nostdin", "-v", "error", "-protocol_whitelist", "file,pipe"]);
    let list = if source.origin == Origin::Live {
        let held = reader.recordings(source.id).hold(span)?;
        missing = held.missing;
        // Where the picture ends before the moment does, nothing more is heard.
        let unseen = missing.last().filter(|part| part.end == span.end);
        let shown = Span::new(span.start, unseen.map_or(span.end, |part| part.start));
        let (list, played) = playlist(&held.files, shown).ok_or_else(|| {
            let what = "nothing was recorded of it then, so nothing can be cut out: a live source is \
                 recorded by index --record, while its disk has room";
            Error::not_found(what).in_source(&hit.name)
        })?;
        // Names in the list are those of files in this folder.
        let folder = held.files.first().and_then(|first| first.path.parent());
        ffmpeg.current_dir(folder.unwrap_or(Path::new(".")));
        ffmpeg.args(["-f", "concat", "-safe", "0", "-i", "pipe:0"]);
        let heard = held.files.iter().filter(|file| !is_silent && file.has_sound());
        let heard: Vec<_> = heard.collect();
        for one in &heard {
            ffmpeg.arg("-i").arg(as_file(one.path.file_name().map_or(&one.path, Path::new)));
        }
        sound = (!heard.is_empty()).then_some("[sound]");
        if sound.is_some() {
            let begin = held.files.first().map_or(span.start, |first| first.start);
            ffmpeg.args(["-filter_complex", &sounds(&heard, begin, played)]);
        }
        if !is_sound {
            ffmpeg.args(["-vf", &part(played)]);
        }
        if TIMED.contains(&&*ending(file)) {
            ffmpeg.args(AS_TIMED);
        }
        list
    } else {
        let film = film(&source.locations).ok_or_else(|| {
            Error::not_found("its file is not there any more, so nothing can be cut out")
                .in_source(&hit.name)
        })?;
        let [start, length] = [span.start.as_secs_f64(), span.length().as_secs_f64()];
        ffmpeg.args(["-ss", &start.to_string(), "-t", &length.to_string()]);
        ffmpeg.arg("-i").arg(as_file(&film));
        String::new()
    };
    let picture = (!is_sound).then_some("0:v:0?");
    let tracks: Vec<&str> = picture.into_iter().chain(sound).collect();
    let nothing = || {
        let held = if is_sound { "no sound" } else { "no picture" };
        let what = format!("has {held} then, and {} holds nothing else", file.display());
        Error::invalid_input(what + ": name a film, as moment.mp4").in_source(&hit.name)
    };
    if tracks.is_empty() {
        return Err(nothing());
    }
    ffmpeg.args(tracks.iter().flat_map(|track| ["-map", track]));
    ffmpeg.arg("-y").arg(as_file(&partial));
    let output = run(ffmpeg, list.as_bytes())?;
    let written =
        output.status.success() && partial.metadata().is_ok_and(|metadata| metadata.len() > 0);
    if !written {
        // There may be nothing to remove, and the failure itself is what matters.
        let _ = std::fs::remove_file(&partial);
        let log = String::from_utf8_lossy(&output.stderr);
        if (is_sound || is_silent) && log.contains("does not contain any stream") {
            return Err(nothing());
        }
        let reason = log.lines().last().unwrap_or("it wrote nothing").to_owned();
        return Err(Error::invalid_input(format!(
            "ffmpeg could not write {}: {reason}",
            file.display()
        ))
        .in_source(&hit.name));
    }
    std::fs::rename(&partial, file).map_err(|cause| Error::io(file, "write", cause))?;
    Ok(Exported { file: file.display().to_string(), span, missing })
}

fn ending(file: &Path) -> String {
    file.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase()
}

/// Filters that leave the part that is wanted of what is played. Its first frame is shown at once: players do
/// not expect a beginning between two frames. The others are shown at their times, for there is sound beside them.
fn part(played: Span) -> String {
    let [start, end] = [played.start, played.end].map(Timestamp::as_secs_f64);
    format!("trim=start={start}:end={end},setpts='if(N,PTS-{start}/TB,0)'")
}

/// The filter that makes one sound of those of these files, which are inputs from 1 on: each at its time in the
/// part that is wanted of what is played, which begins at `begin`, over silence, at a rate that every format takes. They are not
/// played as one list, since each may be coded otherwise, or not be there. Where recorded times move a little, since
/// the sender's clock came to be known, some of it is left out or silent: ffmpeg alone would let all that follows be off
/// by up to 0.1 s.
fn sounds(files: &[&Recording], begin: Timestamp, played: Span) -> String {
    let length = played.length().as_secs_f64();
    let mut filter = String::new();
    for (number, file) in (1..).zip(files) {
        // A file's own time begins with its first frame.
        let later = (file.start - begin).as_secs_f64() - played.start.as_secs_f64();
        filter.push_str(&format!(
            "[{number}:a:0]asetpts=PTS+({later})/TB,atrim=start=0:end={length},\
             aresample=async=1:min_hard_comp=0.02:first_pts=0[{number}];"
        ));
    }
    let names: String = (1..=files.len()).map(|number| format!("[{number}]")).collect();
    let inputs = files.len() + 1;
    filter
        + &format!(
            "anullsrc=r=48000,atrim=end={length}[silence];\
             [silence]{names}amix=inputs={inputs}:duration=first:normalize=0,aresample=48000[sound]"
        )
}

/// The first of these places where there still is a file.
fn film(locations: &[Location]) -> Option<PathBuf> {
    locations.iter().find_map(|location| match &location.place {
        Place::Path(path) if path.exists() => std::path::absolute(path).ok(),
        _ => None,
    })
}

/// The recordings that hold a moment, as ffmpeg's list of files to be played one after the other, each
/// for as long as it is to the next; and where the moment is in what is played.
fn playlist(held: &[Recording], moment: Span) -> Option<(String, Span)> {
    let begin = held.first()?.start;
    let mut list = "ffconcat version 1.0\n".to_owned();
    for (number, one) in held.iter().enumerate() {
        // Such names need no quotes; without their protocol they would be taken for pipes.
        let name = one.path.file_name()?.to_str()?;
        list.push_str(&format!("file file:{name}\n"));
        if let Some(next) = held.get(number + 1) {
            list.push_str(&format!("duration {}\n", (next.start - one.start).as_secs_f64()));
        }
    }
    let [start, end] = [moment.start, moment.end].map(|at| Timestamp((at - begin).0.max(0)));
    Some((list, Span::new(start, end)))
}

/// Runs ffmpeg, which reads `input`.
fn run(mut ffmpeg: Command, input: &[u8]) -> Result<Output> {
    let piped = ffmpeg.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = piped.spawn().map_err(|cause| match cause.kind() {
        std::io::ErrorKind::NotFound => {
            Error::not_found("cutting needs the program ffmpeg; install it (apt install ffmpeg)")
        }
        _ => Error::new(Kind::Unavailable, "cannot start ffmpeg").caused_by(cause),
    })?;
    if let Some(mut stdin) = child.stdin.take() {
        // A list is shorter than a pipe is; where ffmpeg is gone already, it says why.
        let _ = stdin.write_all(input);
    }
    child
        .wait_with_output()
        .map_err(|cause| Error::new(Kind::Unavailable, "cannot run ffmpeg").caused_by(cause))
}

/// A name for the unfinished file, with the same ending. ffmpeg takes `%` in names of pictures for
/// numbers, so nothing of the name but its ending is kept.
fn beside(file: &Path) -> PathBuf {
    let mut partial = OsString::from(format!(".partial-{}.", std::process::id()));
    partial.push(file.extension().unwrap_or_default());
    file.with_file_name(partial)
}

/// A path that ffmpeg takes for nothing else: no option, no protocol.
fn as_file(path: &Path) -> OsString {
    let mut argument = OsString::from("file:");
    argument.push(path);
    argument
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Timestamp;

    #[test]
    fn a_moment_is_played_from_the_recordings_that_hold_it() {
        let at = |secs: i64| Timestamp(secs * 1_000_000);
        let recordings = [100, 160].map(|start| {
            let path = PathBuf::from(format!("/films/{start}.mp4"));
            Recording { path, start: at(start) }
        });
        let played = |start, end| {
            let (_, part) = playlist(&recordings, Span::new(at(start), at(end)))?;
            Some((part.start.as_secs_f64() as i64, part.end.as_secs_f64() as i64))
        };
        assert_eq!(played(150, 170), Some((50, 70)));
        // What began before the first one is not there, and what came after it is not wanted.
        assert_eq!(played(90, 110), Some((0, 10)));
        let (list, _) = playlist(&recordings, Span::new(at(150), at(170))).unwrap();
        assert_eq!(
            list,
            "ffconcat version 1.0\nfile file:100.mp4\nduration 60\nfile file:160.mp4\n"
        );
        assert_eq!(playlist(&[], Span::new(at(150), at(170))), None);
    }
}
