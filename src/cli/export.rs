//! Cutting a moment out of its source, with the `ffmpeg` program.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Serialize;

use crate::error::{Error, Kind, Result};
use crate::library::{Hit, Location, Place};
use crate::time::Span;

/// What was written.
#[derive(Debug, Serialize)]
pub struct Exported {
    pub file: String,
    pub span: Span,
}

/// Endings of names by which ffmpeg knows formats of films and sound.
const ENDINGS: [&str; 30] = [
    "mp4", "mkv", "mov", "webm", "avi", "ts", "gif", "m4v", "m2ts", "mts", "mpg", "mpeg", "mxf",
    "flv", "wmv", "asf", "ogv", "3gp", "nut", "vob", "mp3", "m4a", "aac", "wav", "flac", "ogg",
    "opus", "oga", "wma", "mka",
];

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
    let ending = file.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    if ENDINGS.contains(&&*ending) {
        return Ok(());
    }
    Err(Error::invalid_input(format!(
        "{} has no ending that says its format: use one of .{}",
        file.display(),
        ENDINGS.join(", .")
    )))
}

/// Writes the hit's span into `file`, which [`check`] has found fit. The moment is encoded anew, so
/// that it begins and ends where the hit does and not at the nearest keyframes. Its source is
/// read at the first of `locations` that is still there.
///
/// # Errors
/// `NotFound` where the source or ffmpeg is not there; `InvalidInput` where ffmpeg cannot write this
/// format.
pub fn cut(hit: &Hit, locations: &[Location], file: &Path) -> Result<Exported> {
    let path = |location: &'_ Location| match &location.place {
        Place::Path(path) if path.exists() => Some(path.clone()),
        _ => None,
    };
    let source = locations.iter().find_map(path).ok_or_else(|| {
        Error::not_found("its file is not there any more, so nothing can be cut out")
            .in_source(&hit.name)
    })?;
    let partial = beside(file);
    let span = Span::new(hit.span.start_us, hit.span.end_us);
    let output = Command::new("ffmpeg")
        .args(["-nostdin", "-v", "error", "-protocol_whitelist", "file"])
        .args(["-ss", &span.start.as_secs_f64().to_string()])
        .args(["-t", &span.length().as_secs_f64().to_string()])
        .arg("-i")
        .arg(as_file(&source))
        .args(["-map", "0:v:0?", "-map", "0:a:0?", "-y"])
        .arg(as_file(&partial))
        .stdin(Stdio::null())
        .output()
        .map_err(|cause| match cause.kind() {
            std::io::ErrorKind::NotFound => Error::not_found(
                "cutting needs the program ffmpeg; install it (apt install ffmpeg)",
            ),
            _ => Error::new(Kind::Unavailable, "cannot start ffmpeg").caused_by(cause),
        })?;
    let written =
        output.status.success() && partial.metadata().is_ok_and(|metadata| metadata.len() > 0);
    if !written {
        // There may be nothing to remove, and the failure itself is what matters.
        let _ = std::fs::remove_file(&partial);
        let log = String::from_utf8_lossy(&output.stderr);
        let reason = log.lines().last().unwrap_or("it wrote nothing").to_owned();
        return Err(Error::invalid_input(format!(
            "ffmpeg could not write {}: {reason}",
            file.display()
        ))
        .in_source(&hit.name));
    }
    std::fs::rename(&partial, file).map_err(|cause| Error::io(file, "write", cause))?;
    Ok(Exported { file: file.display().to_string(), span })
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
