//! A source, opened by this process for its decoder hosts.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use super::listing::{Location, bare_url, shown_path, shown_url};
use super::protocol::Address;
use crate::error::{Error, Kind, Result};

/// An open file, or the address of one that the host itself may fetch.
#[derive(Debug, Clone)]
pub struct Input {
    name: String,
    origin: Origin,
}

#[derive(Debug, Clone)]
enum Origin {
    File { file: Arc<File>, extension: Option<String> },
    Url(String),
}

impl Input {
    /// Opens a file, or takes a URL.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable` (no permission), `InvalidInput` (a folder, a pipe, a device),
    /// `Unsupported` (a live protocol).
    pub fn open(location: &Location) -> Result<Input> {
        match location {
            Location::File(path) => Self::open_file(path),
            Location::Url(url) => {
                let name = shown_url(url);
                let scheme = url.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
                match scheme.as_deref() {
                    Some("http" | "https") => Ok(Input { name, origin: Origin::Url(url.clone()) }),
                    _ => Err(Error::unsupported(
                        "not a file and not an http or https address; live streams are not read here",
                    )
                    .in_source(name)),
                }
            }
        }
    }

    /// Opens a file to be played as if it were live, or takes the address of a stream.
    ///
    /// # Errors
    /// As [`Input::open`] for a file; `Unsupported` for an address that is no stream's.
    pub fn open_live(location: &Location) -> Result<Input> {
        match location {
            Location::File(path) => Self::open_file(path),
            Location::Url(url) => {
                let name = shown_url(url);
                if location.is_live() || url.starts_with("http://") || url.starts_with("https://") {
                    return Ok(Input { name, origin: Origin::Url(url.clone()) });
                }
                let what = "no live stream that is read here: rtsp, rtsps, srt, udp, tcp, http and \
                     https are";
                Err(Error::unsupported(what).in_source(name))
            }
        }
    }

    fn open_file(path: &Path) -> Result<Input> {
        let name = shown_path(path);
        // Not blocking: opening a pipe for reading would wait until somebody writes to it.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = rustix::fs::open(path, flags, Mode::empty()).map_err(|cause| {
            let reason = match cause {
                rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR => {
                    return Error::new(Kind::NotFound, "no such file").in_source(&name);
                }
                rustix::io::Errno::ACCESS | rustix::io::Errno::PERM => {
                    "cannot be read: no permission"
                }
                _ => "cannot be opened",
            };
            Error::unavailable(reason).in_source(&name).caused_by(std::io::Error::from(cause))
        })?;
        let file = File::from(file);
        let kind = file
            .metadata()
            .map_err(|cause| {
                Error::unavailable("cannot be read").caused_by(cause).in_source(&name)
            })?
            .file_type();
        if !kind.is_file() {
            return Err(Error::invalid_input("not a regular file").in_source(&name));
        }
        Ok(Self::from_file(name, file, path))
    }

    /// A file that is open already. `name` is for messages; `path`'s extension helps to tell
    /// formats without a signature.
    pub fn from_file(name: impl Into<String>, file: File, path: impl AsRef<Path>) -> Input {
        let extension = path
            .as_ref()
            .extension()
            .and_then(|extension| extension.to_str())
            .filter(|extension| {
                extension.len() <= 8 && extension.bytes().all(|byte| byte.is_ascii_alphanumeric())
            })
            .map(str::to_ascii_lowercase);
        Input { name: name.into(), origin: Origin::File { file: Arc::new(file), extension } }
    }

    /// For messages: the path or the URL without credentials.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The URL without `user:password@`, its query included; empty for a file.
    pub(super) fn bare_url(&self) -> String {
        match &self.origin {
            Origin::Url(url) => bare_url(url),
            Origin::File { .. } => String::new(),
        }
    }

    /// The open file; `None` for a URL.
    pub fn file(&self) -> Option<&File> {
        match &self.origin {
            Origin::File { file, .. } => Some(file),
            Origin::Url(_) => None,
        }
    }

    pub(super) fn address(&self) -> Address {
        match &self.origin {
            Origin::File { extension, .. } => Address::Descriptor { extension: extension.clone() },
            Origin::Url(url) => Address::Url(url.clone()),
        }
    }
}
