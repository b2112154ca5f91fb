//! What a live run says while it runs: on a terminal, in a log, as JSON.

use std::io::Read;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::camera::{Camera, Setup};
use crate::cinelex::{command, run};
use crate::live::{NOBODYS, PATIENCE, Watching, small};
use crate::rough::Holder;

/// A run under way, with all that it has said.
struct Said {
    child: Child,
    text: Arc<Mutex<String>>,
}

impl Said {
    fn new(mut child: Child, mut output: impl Read + Send + 'static) -> Said {
        let text = Arc::<Mutex<String>>::default();
        let said = Arc::clone(&text);
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(length @ 1..) = output.read(&mut bytes) {
                said.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..length]));
            }
        });
        drop(child.stdin.take());
        Said { child, text }
    }

    /// Without a terminal.
    fn in_a_log(arguments: &[&str]) -> Said {
        let mut child = command(arguments).stderr(Stdio::piped()).spawn().unwrap();
        let output = child.stderr.take().unwrap();
        Said::new(child, output)
    }

    /// On a terminal of its own, which `script` has. Its process is noted in a file.
    fn on_a_terminal(process: &Path, arguments: &[&str]) -> Said {
        let quoted: String = arguments.iter().map(|argument| format!(" '{argument}'")).collect();
        let cinelex = env!("CARGO_BIN_EXE_cinelex");
        let line = format!("echo $$ > '{}'; exec '{cinelex}'{quoted}", process.display());
        let mut command = Command::new("script");
        command.args(["-q", "-e", "-f", "-c", &line, "/dev/null"]).stdin(Stdio::null());
        command.env("TERM", "xterm").env("COLUMNS", "200").stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let output = child.stdout.take().unwrap();
        Said::new(child, output)
    }

    fn text(&self) -> String {
        self.text.lock().unwrap().clone()
    }

    /// Waits until all this was said behind `from`. Returns where that ends now.
    fn until(&self, from: usize, wanted: &[&str]) -> usize {
        let began = Instant::now();
        loop {
            let text = self.text();
            if wanted.iter().all(|wanted| text[from..].contains(wanted)) {
                return text.len();
            }
            assert!(began.elapsed() < PATIENCE, "{wanted:?} in {:?}", &text[from..]);
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Ctrl-C, and the end.
    fn stop(&mut self, process: &str) {
        Command::new("kill").args(["-INT", process]).status().unwrap();
        assert_eq!(self.child.wait().unwrap().code(), Some(0), "{}", self.text());
    }
}

/// A test that fails leaves no process behind.
impl Drop for Said {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_terminal_shows_how_each_stream_is_since_when_and_why_it_was_lost() {
    let folder = TempDir::new().unwrap();
    let units = small(folder.path());
    let camera = Camera::start(&units, &Setup::default());
    let door = camera.port;
    let list = folder.path().join("streams.toml");
    let stream = |name, port| {
        format!("[[stream]]\nname = '{name}'\naddress = 'rtsp://127.0.0.1:{port}/live'\n")
    };
    std::fs::write(&list, stream("door", door) + &stream("yard", NOBODYS)).unwrap();
    let library = folder.path().join("library");
    let process = folder.path().join("process");
    let [library, list] = [&library, &list].map(|path| path.to_str().unwrap());
    let pause = ["--longest-pause", "1"];
    let arguments = [&["index", "--library", library, "--streams", list], &pause[..]].concat();
    let mut said = Said::on_a_terminal(&process, &arguments);
    let lost = "lost since ";
    let shown = [
        "door ",
        "live since ",
        " skipped",
        "yard ",
        lost,
        ": camera unreachable: connection refused; again in ",
        "connection refused; connecting since ",
    ];
    let at = said.until(0, &shown);
    assert!(!said.text().contains("lost before that"), "{}", said.text());
    drop(camera);
    let at = said.until(at, &["door                           lost since "]);
    let camera = Camera::start(&units, &Setup { port: Some(door), ..Setup::default() });
    said.until(at, &["live since ", "; lost before that: "]);
    // What else is said is not drawn over.
    let held = Holder::start(Path::new(library));
    said.until(at, &["nothing is stored until that is over"]);
    said.until(at, &["; not stored: another process is using the library; "]);
    drop(held);
    said.until(at, &["what comes is stored again, after "]);
    let text = said.text();
    let warning = text.find(" WARN ").or(text.find("WARN")).unwrap();
    let line = text[..warning].rsplit(['\n', '\r']).next().unwrap();
    assert!(!line.contains("since"), "{line:?} in {text:?}");
    let process = std::fs::read_to_string(process).unwrap();
    said.stop(process.trim());
    said.until(at, &["yard: 0 clips, ", "door: ", ", 2 connections"]);
    drop(camera);
}

#[test]
fn a_log_is_told_once_that_a_stream_is_lost_and_once_that_it_is_there_again() {
    let folder = TempDir::new().unwrap();
    let units = small(folder.path());
    let library = folder.path().join("library");
    // Ends every connection at once.
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let attempts = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&attempts);
    // Held until nothing more is looked at, so that no attempt ends in another way.
    let accepting = server.try_clone().unwrap();
    let ends = std::thread::spawn(move || {
        while counted.fetch_add(1, Ordering::SeqCst) < 6 {
            let mut connection = accepting.accept().unwrap().0;
            let _ = connection.read(&mut [0; 1024]);
        }
    });
    let address = format!("rtsp://127.0.0.1:{port}/live");
    let library = library.to_str().unwrap();
    let arguments = ["index", "--library", library, "--longest-pause", "0.2", &address];
    let mut said = Said::in_a_log(&arguments);
    ends.join().unwrap();
    let times = |text: &str| said.text().matches(text).count();
    assert_eq!(times(&format!("{address}: connecting since ")), 1, "{}", said.text());
    assert_eq!(times(&format!("{address}: lost since ")), 1, "{}", said.text());
    drop(server);
    let camera = Camera::start(&units, &Setup { port: Some(port), ..Setup::default() });
    let at = said.until(0, &["live since "]);
    drop(camera);
    said.until(at, &["lost since "]);
    let process = said.child.id().to_string();
    said.stop(&process);
    said.until(at, &["ended at "]);
    let text = said.text();
    assert_eq!(text.matches("connecting since ").count(), 1, "{text}");
    assert_eq!(text.matches("live since ").count(), 1, "{text}");
}

#[test]
fn json_tells_how_a_stream_is_also_where_nothing_happens_to_it() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("library");
    let mut command = command(["index", "--json", "--library"]);
    command.arg(&library).arg(format!("rtsp://127.0.0.1:{NOBODYS}/live"));
    let mut watching = Watching::run(&mut command);
    let is_long = |line: &Value| line["retry_secs"].as_f64() > Some(14.0);
    let first = watching.until_within(PATIENCE, "a long pause", is_long);
    let is_same = |line: &Value| line["kind"] == "stream" && line["since_us"] == first["since_us"];
    watching.until("the same again", is_same);
    watching.stop();
}

#[test]
fn options_that_would_change_nothing_are_refused() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("library");
    let library = library.to_str().unwrap();
    let stream = "rtsp://127.0.0.1:1/live";
    for (arguments, reason) in [
        (&["film.mp4", "--record"][..], "--record is for live streams"),
        (&["--keep", "30d"], "--keep is for live streams"),
        (&["https://host/film.mp4", "--silence", "5"], "--silence is for live streams"),
        (&["film.mp4", "--longest-pause", "5"], "--longest-pause is for live streams"),
        (&["film.mp4", "--udp"], "--udp is for live streams"),
        (&["srt://127.0.0.1:1", "udp://:5000", "--udp"], "--udp is for RTSP"),
        (&[stream, "--workers", "2"], "--workers is for files"),
        (&[stream, "--verify"], "--verify is for files"),
        (&[stream, "--images"], "--images is for looking through folders"),
        (&["--images"], "--images is for looking through folders"),
        (&["--as-live"], "the list of sources is empty"),
    ] {
        let ran = run([&["index", "--library", library], arguments].concat()).exits(2);
        assert!(ran.err.contains(reason), "{arguments:?}: {ran:?}");
        assert!(!Path::new(library).exists(), "{arguments:?}");
    }
}

#[test]
fn streams_that_are_shown_alike_are_told_at_the_start() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("library");
    let address = format!("rtsp://127.0.0.1:{NOBODYS}/live");
    let channels = [1, 2].map(|channel| format!("{address}?channel={channel}"));
    let [first, second] = channels.each_ref().map(String::as_str);
    let arguments = ["index", "--library", library.to_str().unwrap(), first, second];
    let mut said = Said::in_a_log(&arguments);
    said.until(0, &[&format!("{address} is what several of these streams are called")]);
    said.until(0, &["lost since "]);
    let process = said.child.id().to_string();
    said.stop(&process);
}
