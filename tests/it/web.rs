//! Addresses whose servers stall, cut, lie and lead astray.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::cinelex::{index, info, show};
use crate::media::ffmpeg;

/// What a server is asked for.
#[derive(Debug, Clone, Default)]
pub struct Request {
    pub path: String,
    /// First byte of the range, where one was asked for.
    pub start: Option<usize>,
    pub authorization: Option<String>,
    /// All lines, as they came.
    pub head: Vec<String>,
}

/// Serves connections until the test ends; every request is answered once and noted.
#[derive(Debug, Clone)]
pub struct Server {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    pub fn start(answer: impl Fn(&Request, &mut TcpStream) + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Server { address: listener.local_addr().unwrap(), asked: Arc::default() };
        let (answer, asked) = (Arc::new(answer), Arc::clone(&server.asked));
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                let (mut connection, answer, asked) =
                    (connection.unwrap(), Arc::clone(&answer), Arc::clone(&asked));
                std::thread::spawn(move || {
                    let request = read(&connection);
                    asked.lock().unwrap().push(request.clone());
                    answer(&request, &mut connection);
                });
            }
        });
        server
    }

    /// What it was asked for so far.
    #[cfg(feature = "live")]
    pub fn asked(&self) -> Vec<Request> {
        self.asked.lock().unwrap().clone()
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.address)
    }
}

fn read(connection: &TcpStream) -> Request {
    let mut request = Request::default();
    for line in BufReader::new(connection).lines().map_while(Result::ok) {
        if line.is_empty() {
            break;
        }
        let lower = line.to_ascii_lowercase();
        if let Some(rest) = line.strip_prefix("GET ") {
            request.path = rest.split(' ').next().unwrap().to_owned();
        } else if let Some(range) = lower.strip_prefix("range: bytes=") {
            request.start = range.split('-').next().and_then(|start| start.parse().ok());
        } else if lower.starts_with("authorization:") {
            request.authorization = Some(line.clone());
        }
        request.head.push(line);
    }
    request
}

/// A reader that has had enough may go.
pub fn send(connection: &mut TcpStream, head: &str, body: &[u8]) {
    let _ = connection
        .write_all(format!("HTTP/1.1 {head}\r\nConnection: close\r\n\r\n").as_bytes())
        .and_then(|()| connection.write_all(body));
}

/// The part of `bytes` that was asked for.
fn send_range(connection: &mut TcpStream, request: &Request, bytes: &[u8]) {
    let start = request.start.unwrap_or(0).min(bytes.len());
    let head = format!(
        "206 Partial Content\r\nAccept-Ranges: bytes\r\nContent-Range: bytes {start}-{}/{}\r\n\
         Content-Length: {}",
        bytes.len() - 1,
        bytes.len(),
        bytes.len() - start
    );
    send(connection, &head, &bytes[start..]);
}

fn films(folder: &Path) -> (Vec<u8>, Vec<u8>) {
    let picture = "-f lavfi -i testsrc2=s=160x90:r=10:d=12 -c:v libx264 -g 10 -pix_fmt yuv420p";
    ffmpeg(folder, &format!("{picture} film.mp4"));
    ffmpeg(folder, &format!("{picture} film.ts"));
    (fs::read(folder.join("film.mp4")).unwrap(), fs::read(folder.join("film.ts")).unwrap())
}

/// How the source at `url` fared, and how long that took.
fn fared(folder: &Path, url: &str) -> (Value, Duration) {
    let library = folder.join("library");
    let began = Instant::now();
    let ran = index(&library, &[Path::new(url)]);
    let report = ran.lines("source_report").remove(0);
    assert_eq!(ran.code, i32::from(report["state"] == "failed"), "{ran:?}");
    (report, began.elapsed())
}

fn fails(folder: &Path, url: &str) -> String {
    let (report, took) = fared(folder, url);
    assert_eq!(report["state"], "failed", "{report}");
    assert_ne!(report["error"]["kind"], "internal", "{report}");
    assert!(took < Duration::from_secs(60), "{report} took {took:?}");
    report["error"]["reason"].as_str().unwrap().to_owned()
}

/// That a source broke off is told by a gap, or, where nothing says how long it is, by a notice.
fn assert_told_as_cut(report: &Value) {
    let notices = report["notices"].as_array().unwrap();
    let is_told = notices.iter().any(|notice| notice.as_str().unwrap().contains("broke off"));
    assert!(is_told || report["gaps"].as_u64() > Some(0), "{report}");
}

#[test]
fn servers_that_refuse_lead_astray_or_break_off_cost_their_source_only() {
    let folder = TempDir::new().unwrap();
    let folder = folder.path();
    let (mp4, ts) = films(folder);
    let secret = folder.join("film.mp4").display().to_string();
    let server = Server::start(move |request, connection| match request.path.as_str() {
        "/whole.mp4" => send_range(connection, request, &mp4),
        // No ranges: what is asked for is not heard.
        "/plain.ts" => send(connection, &format!("200 OK\r\nContent-Length: {}", ts.len()), &ts),
        "/plain.mp4" => send(connection, &format!("200 OK\r\nContent-Length: {}", mp4.len()), &mp4),
        // The length is right, and half of it comes.
        "/cut.ts" => {
            let head = format!("200 OK\r\nContent-Length: {}", ts.len());
            send(connection, &head, &ts[..ts.len() / 2]);
        }
        // More is promised than there is, whatever is asked for.
        "/long.mp4" => {
            let head =
                format!("200 OK\r\nAccept-Ranges: bytes\r\nContent-Length: {}", mp4.len() * 9);
            send(connection, &head, &mp4);
        }
        "/file.mp4" => send(connection, &format!("302 Found\r\nLocation: file://{secret}"), b""),
        "/path.mp4" => send(connection, &format!("302 Found\r\nLocation: {secret}"), b""),
        "/round.mp4" => send(connection, "302 Found\r\nLocation: /round.mp4", b""),
        "/list.m3u8" => {
            let list = format!(
                "#EXTM3U\n#EXT-X-TARGETDURATION:12\n#EXTINF:12,\nfile://{secret}\n#EXT-X-ENDLIST\n"
            );
            send(
                connection,
                "200 OK\r\nContent-Type: application/vnd.apple.mpegurl",
                list.as_bytes(),
            );
        }
        "/broken.mp4" => send(connection, "500 Internal Server Error", b"no"),
        "/text.mp4" => {
            send(connection, "200 OK\r\nContent-Type: text/html", b"<html>Log in</html>")
        }
        "/nothing.mp4" => {}
        _ => send(connection, "404 Not Found", b"none"),
    });
    for (path, part) in [
        ("none.mp4", "404"),
        ("broken.mp4", "5xx"),
        ("file.mp4", ""),
        ("path.mp4", ""),
        ("round.mp4", ""),
        ("list.m3u8", ""),
        ("text.mp4", ""),
        ("nothing.mp4", ""),
    ] {
        let reason = fails(folder, &server.url(path));
        eprintln!("{path}: {reason}");
        assert!(reason.contains(part), "{path}: {reason}");
    }
    for path in ["whole.mp4", "plain.ts"] {
        let (report, _) = fared(folder, &server.url(path));
        assert_eq!(
            (&report["state"], &report["clips"]),
            (&"indexed".into(), &8.into()),
            "{report}"
        );
    }
    for path in ["plain.mp4", "long.mp4"] {
        let (report, took) = fared(folder, &server.url(path));
        eprintln!("{path}: {report}");
        assert!(report["state"] == "failed" || report["clips"] == 8, "{report}");
        assert!(took < Duration::from_secs(60));
    }
    let (report, _) = fared(folder, &server.url("cut.ts"));
    let clips = report["clips"].as_u64().unwrap();
    assert!((3..=5).contains(&clips), "{report}");
    assert_told_as_cut(&report);
    info(&folder.join("library"));
}

#[test]
fn a_password_is_for_the_server_that_it_was_given_for() {
    let folder = TempDir::new().unwrap();
    let (mp4, _) = films(folder.path());
    let other = Server::start(move |request, connection| send_range(connection, request, &mp4));
    let there = other.url("film.mp4");
    let server = Server::start(move |request, connection| match &request.authorization {
        None => {
            send(connection, "401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"films\"", b"");
        }
        Some(_) => send(connection, &format!("302 Found\r\nLocation: {there}"), b""),
    });
    let url = server.url("film.mp4").replace("http://", "http://ann:sesame@");
    let (report, _) = fared(folder.path(), &url);
    assert_eq!(report["clips"], 8, "{report}");
    assert!(server.asked.lock().unwrap().iter().any(|request| request.authorization.is_some()));
    let asked = other.asked.lock().unwrap();
    assert!(!asked.is_empty());
    assert!(asked.iter().all(|request| request.authorization.is_none()), "{asked:?}");
    let shown = show(&folder.path().join("library"), "film.mp4");
    assert!(!shown.out.contains("sesame"), "{shown:?}");
}

#[test]
#[ignore = "slow: waits for servers that never answer"]
fn servers_that_stall_are_given_up() {
    let folder = TempDir::new().unwrap();
    let folder = folder.path();
    let (_, ts) = films(folder);
    let server = Server::start(move |request, connection| {
        if request.path == "/half.ts" {
            let head = format!("200 OK\r\nContent-Length: {}", ts.len());
            send(connection, &head, &ts[..ts.len() / 2]);
        }
        std::thread::sleep(Duration::from_secs(600));
    });
    fails(folder, &server.url("silent.mp4"));
    let (report, took) = fared(folder, &server.url("half.ts"));
    assert!(took < Duration::from_secs(120), "{took:?}");
    assert!(report["clips"].as_u64() > Some(2), "{report}");
    assert_told_as_cut(&report);
}
