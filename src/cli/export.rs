//! Cutting a moment out of its source, with the `ffmpeg` program.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Serialize;

use crate::error::{Error, Kind, Result};
use crate::library::{Hit, Place};
use crate::time::Span;

/// What was written.
#[derive(Debug, Serialize)]
pub struct Exported {
    pub file: String,
    pub span: Span,
}

/// Writes the hit's span into `file`, whose ending says the format. The moment is encoded anew, so
/// that it begins and ends where the hit does and not at the nearest keyframes.
///
/// # Errors
/// `InvalidInput` where `file` exists; `NotFound` where the source or ffmpeg is not there.
pub fn cut(hit: &Hit, file: &Path) -> Result<Exported> {
    let source = match hit.location.as_ref().map(|location| &location.place) {
        Some(Place::Path(path)) if path.exists() => path,
        _ => {
            return Err(Error::not_found(
                "its file is not there any more, so nothing can be cut out",
            )
            .in_source(&hit.name));
        }
    };
    if file.exists() {
        return Err(Error::invalid_input(format!(
            "{} exists already; name a new file",
            file.display()
        )));
    }
    let partial = beside(file)?;
    let span = Span::new(hit.span.start_us, hit.span.end_us);
    let output = Command::new("ffmpeg")
        .args(["-nostdin", "-v", "error", "-protocol_whitelist", "file"])
        .args(["-ss", &span.start.as_secs_f64().to_string()])
        .args(["-t", &span.length().as_secs_f64().to_string()])
        .arg("-i")
        .arg(as_file(source))
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

/// A name for the unfinished file, with the same ending.
fn beside(file: &Path) -> Result<PathBuf> {
    let name = file.file_name().filter(|_| file.extension().is_some()).ok_or_else(|| {
        Error::invalid_input(format!(
            "{} has no ending that says its format, such as .mp4",
            file.display()
        ))
    })?;
    let mut partial = OsString::from(".partial-");
    partial.push(name);
    Ok(file.with_file_name(partial))
}

/// A path that ffmpeg takes for nothing else: no option, no protocol.
fn as_file(path: &Path) -> OsString {
    let mut argument = OsString::from("file:");
    argument.push(path);
    argument
}
