//! RTSP over TLS: which cameras are believed.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::camera::{Camera, Setup};
use crate::cinelex::run;
use crate::live::{Watching, small};
use crate::returning::faketime;

/// How a certificate is made.
#[derive(Default)]
struct Making<'a> {
    /// Whose certificate signs it, where it does not do that itself.
    by: Option<&'a Path>,
    /// What lets it be two days old when it is made, and so over.
    faketime: Option<&'a Path>,
}

/// A certificate for a server at this address that is good for a day; and the same with its key.
fn certificate(folder: &Path, name: &str, address: &str, how: &Making<'_>) -> (PathBuf, String) {
    let (key, file) = (folder.join(format!("{name}.key")), folder.join(format!("{name}.pem")));
    let mut made = Command::new("openssl");
    made.args(
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1".split(' '),
    );
    made.args(["-subj", &format!("/CN={name}"), "-addext", &format!("subjectAltName={address}")]);
    if let Some(by) = how.by {
        made.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
        made.arg("-CA").arg(by).arg("-CAkey").arg(by.with_extension("key"));
    }
    if let Some(faketime) = how.faketime {
        made.env("LD_PRELOAD", faketime).env("FAKETIME", "-2d");
    }
    let made = made.arg("-keyout").arg(&key).arg("-out").arg(&file).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let both = [fs::read_to_string(&file).unwrap(), fs::read_to_string(&key).unwrap()].concat();
    (file, both)
}

/// One that has signed itself.
fn own(folder: &Path, name: &str, address: &str) -> (PathBuf, String) {
    certificate(folder, name, address, &Making::default())
}

/// A file of streams with one camera, whose certificate may be, or be signed by, what is in `ca`.
fn streams(folder: &Path, camera: &Camera, ca: Option<&Path>) -> String {
    let ca = ca.map(|file| format!("ca = '{}'\n", file.display()));
    let text = format!(
        "[[stream]]\nname = 'door'\naddress = '{}'\nuser = 'me'\npassword_file = 'door.password'\n{}",
        camera.address().replace("rtsp://", "rtsps://"),
        ca.unwrap_or_default()
    );
    fs::write(folder.join("door.password"), "secret\n").unwrap();
    let file = folder.join("streams.toml");
    fs::write(&file, text).unwrap();
    file.to_str().unwrap().to_owned()
}

fn start(folder: &Path, certificate: &str) -> Camera {
    let (login, certificate) = (Some(("me", "secret")), Some(certificate));
    Camera::start(&small(folder), &Setup { login, certificate, ..Setup::default() })
}

#[test]
fn a_camera_whose_certificate_is_named_is_watched() {
    let folder = TempDir::new().unwrap();
    let (other, _) = own(folder.path(), "other", "IP:127.0.0.1");
    let (file, both) = own(folder.path(), "camera", "IP:127.0.0.1");
    // Several in one file, with words between them.
    let all = [
        fs::read_to_string(other).unwrap(),
        "the door's:\n".to_owned(),
        fs::read_to_string(&file).unwrap(),
    ];
    fs::write(&file, all.concat()).unwrap();
    let camera = start(folder.path(), &both);
    let library = folder.path().join("library");
    let streams = streams(folder.path(), &camera, Some(&file));
    let mut watching = Watching::start(&library, &["--streams", &streams]);
    watching.until_stored(2);
    watching.stop();
    run(["library", "check", library.to_str().unwrap()]).exits(0);
}

#[test]
fn a_camera_that_nobody_vouches_for_is_refused_with_what_to_do() {
    let folder = TempDir::new().unwrap();
    let (other, _) = own(folder.path(), "other", "IP:127.0.0.1");
    let (_, both) = own(folder.path(), "camera", "IP:127.0.0.1");
    let (elsewhere, of_elsewhere) = own(folder.path(), "elsewhere", "DNS:camera.example");
    let cases = [
        (None, &both[..], "nobody who is trusted has signed the camera's certificate"),
        (Some(&other), &both[..], "name a file with it"),
        (Some(&elsewhere), &of_elsewhere[..], "the camera's certificate is for another address"),
    ];
    for (ca, certificate, reason) in cases {
        is_refused(certificate, ca.map(PathBuf::as_path), reason);
    }
}

/// Of a camera with this certificate nothing is taken, where `ca` is what is believed, and why is said.
fn is_refused(certificate: &str, ca: Option<&Path>, reason: &str) {
    let folder = TempDir::new().unwrap();
    let camera = start(folder.path(), certificate);
    let library = folder.path().join("library");
    let streams = streams(folder.path(), &camera, ca);
    let mut watching = Watching::start(&library, &["--streams", &streams]);
    let waiting = watching.until_state("waiting");
    assert!(waiting["reason"].as_str().unwrap().contains(reason), "{reason}: {waiting}");
    let end = watching.stop();
    assert_eq!(end["streams"][0]["clips"], 0, "{reason}: {end}");
    assert_eq!(camera.sent(), 0, "{reason}");
}

#[test]
fn a_camera_whose_authority_is_named_is_watched_and_another_of_the_same_is_not() {
    let folder = TempDir::new().unwrap();
    let (authority, _) = own(folder.path(), "authority", "DNS:authority.example");
    let how = Making { by: Some(&authority), ..Making::default() };
    let (_, right) = certificate(folder.path(), "camera", "IP:127.0.0.1", &how);
    let (_, elsewhere) = certificate(folder.path(), "elsewhere", "DNS:camera.example", &how);
    let camera = start(folder.path(), &right);
    let library = folder.path().join("library");
    let streams = streams(folder.path(), &camera, Some(&authority));
    let mut watching = Watching::start(&library, &["--streams", &streams]);
    watching.until_stored(2);
    watching.stop();
    is_refused(&elsewhere, Some(&authority), "the camera's certificate is for another address");
    let Some(faketime) = faketime() else {
        eprintln!("skipped: the package faketime is not installed");
        return;
    };
    let how = Making { faketime: Some(&faketime), ..how };
    let (_, old) = certificate(folder.path(), "old", "IP:127.0.0.1", &how);
    is_refused(&old, Some(&authority), "the camera's certificate has expired: renew it");
}

#[test]
fn why_a_broadcast_cannot_be_reached_is_said() {
    let folder = TempDir::new().unwrap();
    let (file, _) = own(folder.path(), "server", "IP:127.0.0.1");
    let secure = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut server = Command::new("openssl");
    server.args(["s_server", "-quiet", "-WWW", "-accept", &secure.to_string()]);
    server.arg("-cert").arg(&file).arg("-key").arg(file.with_extension("key"));
    let _server = Ended(server.spawn().unwrap());
    let cases = [
        (
            format!("https://127.0.0.1:{secure}/live.m3u8"),
            "signed by somebody whom this system trusts",
        ),
        ("https://127.0.0.1:1/live.m3u8".to_owned(), "connection refused"),
        ("http://127.0.0.1:1/live.m3u8".to_owned(), "connection refused"),
        ("http://no-such-server.invalid/live.m3u8".to_owned(), "address is not known"),
    ];
    let addresses = cases.each_ref().map(|(address, _)| address.as_str());
    let library = folder.path().join("library");
    let mut watching = Watching::start(&library, &[&["--as-live"], &addresses[..]].concat());
    for (address, reason) in &cases {
        let is_told = |line: &Value| {
            let said = line["reason"].as_str().unwrap_or_default();
            line["source"] == **address && said.contains(reason)
        };
        watching.seen_or_until(reason, is_told);
    }
    watching.stop();
}

/// A process that a test leaves behind neither at its end nor where it fails.
struct Ended(std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn what_is_to_be_encrypted_does_not_come_by_udp() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("library");
    let list = folder.path().join("streams.toml");
    let text = "[[stream]]\nname = 'door'\naddress = 'RTSPS://127.0.0.1/live'\ntransport = 'udp'\n";
    fs::write(&list, text).unwrap();
    let library = library.to_str().unwrap();
    for options in [["--udp", "rtsps://127.0.0.1/live"], ["--streams", list.to_str().unwrap()]] {
        let ran = run(["index", "--library", library].into_iter().chain(options)).exits(2);
        assert!(ran.err.contains("not by UDP"), "{ran:?}");
    }
}
