//! From what the user typed to the sources to read: files, folders, patterns, addresses, lists.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Longest list that is read from standard input.
const MAX_LIST_BYTES: u64 = 64 << 20;

/// Schemes of addresses behind which a stream is live.
const LIVE: [&str; 5] = ["rtsp", "rtsps", "srt", "tcp", "udp"];

/// Extensions of still images, which folders give only on request.
const IMAGES: [&str; 16] = [
    "avif", "bmp", "gif", "heic", "heif", "ico", "jfif", "jpeg", "jpg", "jxl", "pgm", "png", "ppm",
    "tif", "tiff", "webp",
];
/// Extensions of what is surely no film. Anything else in a folder is tried: FFmpeg tells formats
/// by their content, and reads more than any list of extensions would have.
const NO_FILMS: [&str; 96] = [
    "7z",
    "a",
    "ass",
    "bak",
    "bat",
    "bin",
    "bz2",
    "c",
    "cfg",
    "conf",
    "cpp",
    "css",
    "csv",
    "cue",
    "db",
    "deb",
    "dll",
    "doc",
    "docx",
    "ds_store",
    "eml",
    "epub",
    "exe",
    "go",
    "gz",
    "h",
    "hpp",
    "htm",
    "html",
    "idx",
    "ini",
    "iso",
    "jar",
    "java",
    "js",
    "json",
    "jsonl",
    "key",
    "lnk",
    "lock",
    "log",
    "lrc",
    "m3u",
    "m3u8",
    "md",
    "mjs",
    "mobi",
    "nfo",
    "npy",
    "npz",
    "o",
    "ods",
    "odt",
    "onnx",
    "par2",
    "part",
    "pdf",
    "pem",
    "php",
    "pls",
    "ppt",
    "pptx",
    "ps",
    "psd",
    "pt",
    "pth",
    "py",
    "pyc",
    "rar",
    "rs",
    "rst",
    "rtf",
    "safetensors",
    "sfv",
    "sh",
    "so",
    "sqlite",
    "srt",
    "ssa",
    "sub",
    "svg",
    "tar",
    "tex",
    "toml",
    "torrent",
    "tsv",
    "ttf",
    "txt",
    "vtt",
    "xhtml",
    "xls",
    "xlsx",
    "xml",
    "xz",
    "yaml",
    "zip",
];

/// Where a source is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Location {
    File(PathBuf),
    /// With credentials, where it has any; shown without.
    Url(String),
}

impl Location {
    /// A path, or an address where the text has a scheme (`https://…`).
    pub fn from_text(text: &OsStr) -> Location {
        match text.to_str() {
            Some(text) if is_url(text) => Location::Url(text.to_owned()),
            _ => Location::File(PathBuf::from(text)),
        }
    }

    /// Whether it is the address of a stream that has no end.
    pub fn is_live(&self) -> bool {
        self.has_scheme(&LIVE)
    }

    /// Whether it is a camera's that is asked by RTSP.
    pub fn is_rtsp(&self) -> bool {
        self.has_scheme(&["rtsp", "rtsps"])
    }

    fn has_scheme(&self, schemes: &[&str]) -> bool {
        let Location::Url(url) = self else { return false };
        let scheme = url.split_once("://").map_or("", |(scheme, _)| scheme);
        schemes.iter().any(|known| scheme.eq_ignore_ascii_case(known))
    }
}

/// For people: bytes that are no UTF-8 replaced, control characters escaped, no credentials.
impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&match self {
            Location::File(path) => shown_path(path),
            Location::Url(url) => shown_url(url),
        })
    }
}

pub(super) fn shown_path(path: &Path) -> String {
    escape_controls(&path.to_string_lossy())
}

/// The address without user, password, query (signed addresses carry their key there) and
/// fragment.
pub(super) fn shown_url(url: &str) -> String {
    let bare = bare_url(url);
    escape_controls(bare.split(['?', '#']).next().unwrap_or_default())
}

/// `rtsp://user:password@camera/path`, in place of whatever credentials the address has.
pub fn with_credentials(url: &str, user: &str, password: &str) -> String {
    let bare = bare_url(url);
    let (scheme, place) = bare.split_once("://").unwrap_or(("", &bare));
    format!("{scheme}://{}:{}@{place}", percent_encoded(user), percent_encoded(password))
}

fn percent_encoded(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(byte));
            }
            byte => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

/// An address without the `user:password@` that it may have.
pub(super) fn bare_url(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{scheme}://{host}{tail}")
}

fn escape_controls(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for letter in text.chars() {
        if letter.is_control() {
            shown.extend(letter.escape_default());
        } else {
            shown.push(letter);
        }
    }
    shown
}

fn is_url(text: &str) -> bool {
    text.split_once("://").is_some_and(|(scheme, _)| {
        scheme.len() >= 2
            && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
    })
}

/// Everything that the arguments name, in their order, folders and patterns sorted: an error for
/// each that cannot be had, while the others go on. `-` stands for a list on standard input.
/// Still images in folders count only with `with_images`; a file that is named itself always does.
pub fn expand(arguments: &[OsString], with_images: bool) -> Vec<Result<Location>> {
    let mut found = Vec::new();
    for argument in arguments {
        if argument == "-" {
            match read_list(io::stdin().lock()) {
                Ok(listed) => {
                    for argument in &listed {
                        expand_one(argument, with_images, &mut found);
                    }
                }
                Err(error) => found.push(Err(error)),
            }
        } else {
            expand_one(argument, with_images, &mut found);
        }
    }
    found
}

/// A list of names, one a line; separated by zero bytes (`find -print0`) if there is one, so that
/// names with line ends can be given.
///
/// # Errors
/// `Unavailable` where reading fails, `Exhausted` where the list is longer than 64 MiB.
pub fn read_list(list: impl Read) -> Result<Vec<OsString>> {
    let mut bytes = Vec::new();
    list.take(MAX_LIST_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|cause| Error::io("the list of sources", "read", cause))?;
    if bytes.len() as u64 > MAX_LIST_BYTES {
        return Err(Error::exhausted("the list of sources is longer than 64 MiB"));
    }
    let has_zeros = bytes.contains(&0);
    let names = bytes.split(|byte| if has_zeros { *byte == 0 } else { *byte == b'\n' });
    Ok(names
        .map(|name| if has_zeros { name } else { name.strip_suffix(b"\r").unwrap_or(name) })
        .filter(|name| !name.is_empty())
        .map(|name| OsString::from_vec(name.to_vec()))
        .collect())
}

fn expand_one(argument: &OsStr, with_images: bool, found: &mut Vec<Result<Location>>) {
    let path = match Location::from_text(argument) {
        Location::File(path) => path,
        url => return found.push(Ok(url)),
    };
    match fs::metadata(&path) {
        Ok(metadata) if metadata.is_dir() => expand_folder(&path, with_images, found),
        // What else it may be (a pipe, a device) is refused where it is opened.
        Ok(_) => found.push(Ok(Location::File(path))),
        Err(cause) => match argument.to_str().filter(|text| text.contains(['*', '?', '['])) {
            Some(pattern) => expand_pattern(pattern, with_images, found),
            None => found.push(Err(cannot_read(&path, cause))),
        },
    }
}

fn cannot_read(path: &Path, cause: io::Error) -> Error {
    match cause.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            let is_link = path.symlink_metadata().is_ok();
            let what = if is_link { "a link to nothing" } else { "no such file or folder" };
            Error::not_found(what).in_source(shown_path(path))
        }
        io::ErrorKind::PermissionDenied => {
            Error::unavailable("cannot be read: no permission").in_source(shown_path(path))
        }
        _ => Error::unavailable("cannot be read").caused_by(cause).in_source(shown_path(path)),
    }
}

fn expand_pattern(pattern: &str, with_images: bool, found: &mut Vec<Result<Location>>) {
    let wrong = |what: String| Error::invalid_input(what).in_source(escape_controls(pattern));
    let matches = match glob::glob(pattern) {
        Ok(matches) => matches,
        Err(cause) => return found.push(Err(wrong(format!("not a pattern: {cause}")))),
    };
    let before = found.len();
    for path in matches {
        match path {
            Ok(path) if path.is_dir() => expand_folder(&path, with_images, found),
            Ok(path) => found.push(Ok(Location::File(path))),
            Err(cause) => {
                let path = cause.path().to_owned();
                found.push(Err(cannot_read(&path, cause.into())));
            }
        }
    }
    if found.len() == before {
        found
            .push(Err(Error::not_found("no file has a name like that")
                .in_source(escape_controls(pattern))));
    }
}

fn expand_folder(folder: &Path, with_images: bool, found: &mut Vec<Result<Location>>) {
    let before = found.len();
    let mut walk = Walk { with_images, seen: HashSet::new(), found };
    walk.folder(folder);
    if found.len() == before {
        let what = if with_images {
            "nothing to index in this folder"
        } else {
            "no film in this folder (still images need --images)"
        };
        found.push(Err(Error::invalid_input(what).in_source(shown_path(folder))));
    }
}

struct Walk<'a> {
    with_images: bool,
    /// Folders by device and inode, so that a link to a folder above ends.
    seen: HashSet<(u64, u64)>,
    found: &'a mut Vec<Result<Location>>,
}

impl Walk<'_> {
    fn folder(&mut self, folder: &Path) {
        let entries = fs::metadata(folder).and_then(|metadata| {
            let is_new = self.seen.insert((metadata.dev(), metadata.ino()));
            if is_new { fs::read_dir(folder).map(Some) } else { Ok(None) }
        });
        let entries = match entries {
            Ok(Some(entries)) => entries,
            Ok(None) => return,
            Err(cause) => return self.found.push(Err(cannot_read(folder, cause))),
        };
        let mut paths = Vec::new();
        for entry in entries {
            match entry {
                Ok(entry) if entry.file_name().as_bytes().starts_with(b".") => {}
                Ok(entry) => paths.push(entry.path()),
                Err(cause) => self.found.push(Err(cannot_read(folder, cause))),
            }
        }
        paths.sort();
        for path in paths {
            match fs::metadata(&path) {
                Ok(metadata) if metadata.is_dir() => self.folder(&path),
                Ok(metadata) if metadata.is_file() && self.may_be_film(&path) => {
                    self.found.push(Ok(Location::File(path)));
                }
                Ok(_) => {}
                Err(_) if !self.may_be_film(&path) => {}
                Err(cause) => self.found.push(Err(cannot_read(&path, cause))),
            }
        }
    }

    fn may_be_film(&self, path: &Path) -> bool {
        let extension = path.extension().and_then(OsStr::to_str).map(str::to_ascii_lowercase);
        match extension.as_deref() {
            // Films with no extension are rare, files without one are not.
            None => false,
            // An animation is a film too, but folders of them are not meant as films.
            Some(extension) if IMAGES.contains(&extension) => self.with_images,
            Some(extension) => !NO_FILMS.contains(&extension),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use std::os::unix::fs::symlink;

    fn folder_with(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        folder
    }

    fn names(folder: &Path, found: Vec<Result<Location>>) -> Vec<String> {
        found
            .into_iter()
            .map(|one| match one {
                Ok(Location::File(path)) => {
                    path.strip_prefix(folder).unwrap().display().to_string()
                }
                Ok(Location::Url(url)) => url,
                Err(error) => format!("{}!", error.kind()),
            })
            .collect()
    }

    fn one(argument: impl Into<OsString>) -> Vec<Result<Location>> {
        expand(&[argument.into()], false)
    }

    #[test]
    fn a_folder_gives_its_films_in_order_and_no_images() {
        let folder =
            folder_with(&["b.mkv", "a.mp4", "sub/c.ts", "d.JPG", "e.srt", "README", ".x.mp4"]);
        assert_eq!(names(folder.path(), one(folder.path())), ["a.mp4", "b.mkv", "sub/c.ts"]);
        let with_images = expand(&[folder.path().into()], true);
        assert_eq!(names(folder.path(), with_images), ["a.mp4", "b.mkv", "d.JPG", "sub/c.ts"]);
    }

    #[test]
    fn a_link_to_the_folder_above_is_followed_once() {
        let folder = folder_with(&["sub/a.mp4"]);
        symlink("..", folder.path().join("sub/up")).unwrap();
        symlink("nowhere.mp4", folder.path().join("z.mp4")).unwrap();
        assert_eq!(names(folder.path(), one(folder.path())), ["sub/a.mp4", "not found!"]);
    }

    #[test]
    fn each_missing_thing_is_an_error_and_the_others_go_on() {
        let folder = folder_with(&["a.mp4", "empty/readme.txt"]);
        let path = |name: &str| folder.path().join(name).into_os_string();
        let found = expand(
            &[path("none.mp4"), path("a.mp4"), path("empty"), path("*.avi"), path("a*.mp4")],
            false,
        );
        let kinds: Vec<Option<Kind>> =
            found.iter().map(|one| one.as_ref().err().map(Error::kind)).collect();
        assert_eq!(
            kinds,
            [Some(Kind::NotFound), None, Some(Kind::InvalidInput), Some(Kind::NotFound), None]
        );
    }

    #[test]
    fn a_file_whose_name_looks_like_a_pattern_is_that_file() {
        let folder = folder_with(&["a[1].mp4", "a1.mp4"]);
        let found = one(folder.path().join("a[1].mp4"));
        assert_eq!(names(folder.path(), found), ["a[1].mp4"]);
    }

    #[test]
    fn names_that_are_no_text_and_names_with_line_ends_are_shown_on_one_line() {
        let name = OsStr::from_bytes(b"a\xff b\nc.mp4");
        let shown = Location::File(PathBuf::from(name)).to_string();
        assert_eq!(shown, "a\u{fffd} b\\nc.mp4");
    }

    #[test]
    fn addresses_are_shown_without_credentials() {
        for (url, shown) in [
            ("https://me:secret@host/a.mp4?sig=1#t", "https://host/a.mp4"),
            ("http://host", "http://host"),
            ("http://a@b@host:80/x@y", "http://host:80/x@y"),
        ] {
            assert_eq!(Location::from_text(OsStr::new(url)).to_string(), shown);
        }
        assert!(matches!(Location::from_text(OsStr::new("a://b")), Location::File(_)));
    }

    #[test]
    fn a_list_is_by_lines_or_by_zero_bytes() {
        let list = |text: &[u8]| read_list(text).unwrap();
        assert_eq!(list(b"a b.mp4\r\n\nc\n"), ["a b.mp4", "c"]);
        assert_eq!(list(b"a\nb\0c\0"), ["a\nb", "c"]);
        assert!(read_list(io::repeat(b'x')).is_err());
    }
}
