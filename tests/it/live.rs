//! Live streams against a real server on this machine.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use tempfile::TempDir;

use crate::camera::{Camera, Setup, Units, coded};
use crate::cinelex::{Ran, command, finish, info, run, search, show};
use crate::media::numbered;
use crate::stopping::{assert_gone, hosts_of};
use crate::tidy::files_under;

/// A port that nobody listens at.
pub const NOBODYS: u16 = 1;
/// Why nothing is seen where nobody listens.
pub const REFUSED: &str = "camera unreachable: connection refused";
/// Why frames are not seen while a machine stands still for seconds: it has no time for them, or they come too late to
/// tell when they were captured.
const BUSY: [&str; 2] = ["decoding was behind", "no frame came"];
/// What a machine that is busy with other things does within, too.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// `cinelex index --json` of live streams, under way.
pub struct Watching {
    pub child: Child,
    library: PathBuf,
    lines: Receiver<String>,
    pub seen: Vec<Value>,
}

impl Watching {
    pub fn start(library: &Path, options: &[&str]) -> Watching {
        let mut command = command(["index", "--json", "--longest-pause", "1", "--library"]);
        command.arg(library).args(options);
        Watching::run(&mut command)
    }

    /// As [`Watching::start`], by a command of one's own.
    pub fn run(command: &mut Command) -> Watching {
        let library = command.get_args().skip_while(|argument| *argument != "--library").nth(1);
        let library = library.unwrap().into();
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = sync_channel(10_000);
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Watching { child, library, lines, seen: Vec::new() }
    }

    /// Reads on until a line is as `wanted`, which is returned.
    pub fn until(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        self.until_within(PATIENCE, what, wanted)
    }

    /// As [`Watching::until`], for what takes longer.
    pub fn until_within(
        &mut self,
        patience: Duration,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Value {
        let began = Instant::now();
        loop {
            match self.lines.recv_timeout(patience.saturating_sub(began.elapsed())) {
                Ok(line) => {
                    let line: Value = serde_json::from_str(&line).unwrap();
                    self.seen.push(line.clone());
                    if wanted(&line) {
                        return line;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    let _ = self.child.kill();
                    panic!("{what} did not come: {:#?}", self.tail());
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let mut said = String::new();
                    let told = self.child.stderr.take();
                    let _ = told.map(|mut told| told.read_to_string(&mut said));
                    panic!("{what} did not come before the end: {:#?}\n{said}", self.tail());
                }
            }
        }
    }

    /// As [`Watching::until`], unless there was such a line already.
    pub fn seen_or_until(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) {
        if !self.seen.iter().any(&wanted) {
            self.until(what, wanted);
        }
    }

    /// Reads all that was said by one that has ended. What it was saying then may be half a line.
    pub fn see_all(&mut self) {
        let lines = self.lines.iter().map_while(|line| serde_json::from_str(&line).ok());
        self.seen.extend(lines);
    }

    fn tail(&self) -> Vec<String> {
        self.seen.iter().rev().take(5).map(Value::to_string).collect()
    }

    pub fn until_state(&mut self, state: &str) -> Value {
        self.until(state, |line| line["kind"] == "stream" && line["state"] == state)
    }

    /// Reads what else is told, on standard error, until this is.
    pub fn until_told(&mut self, text: &str) {
        let (sender, lines) = sync_channel(10_000);
        let told = BufReader::new(self.child.stderr.take().unwrap());
        std::thread::spawn(move || {
            for line in told.lines().map_while(Result::ok) {
                // Read to its end, whether anybody wants to know or not.
                let _ = sender.send(line);
            }
        });
        let began = Instant::now();
        let mut told = Vec::new();
        while told.last().is_none_or(|line: &String| !line.contains(text)) {
            let patience = PATIENCE.saturating_sub(began.elapsed());
            let line = lines.recv_timeout(patience);
            told.push(line.unwrap_or_else(|_| panic!("{text} is not told: {told:#?}")));
        }
    }

    /// Waits until this is told of a stream that is not seen.
    pub fn until_reason(&mut self, reason: &str) -> Value {
        self.until(reason, |line| {
            line["state"] != "live"
                && line["reason"].as_str().is_some_and(|said| said.contains(reason))
        })
    }

    /// Waits for so many clips from now on.
    pub fn until_stored(&mut self, clips: usize) {
        for _ in 0..clips {
            self.until("a clip", |line| line["kind"] == "stored");
        }
    }

    /// Clips of this source that were stored so far.
    pub fn stored(&self, source: &str) -> usize {
        let is_one = |line: &&Value| line["kind"] == "stored" && line["source"] == *source;
        self.seen.iter().filter(is_one).count()
    }

    /// How often this source was lost so far: so many hosts have ended before the one that is there now.
    fn lost(&self, source: &str) -> usize {
        let is_one = |line: &&Value| line["state"] == "waiting" && line["source"] == *source;
        let since = self.seen.iter().filter(is_one).map(|line| line["since_us"].as_i64().unwrap());
        since.collect::<BTreeSet<i64>>().len()
    }

    /// Ctrl-C, and what is said at the end.
    pub fn stop(self) -> Value {
        self.interrupt();
        self.end()
    }

    /// As [`Watching::stop`], once all that these cameras have sent has come, each over one connection: over TCP nothing
    /// is lost. They stand still until that is noted, so they may be silent for more than ten seconds (`--silence`).
    pub fn stop_when_all_came(self, cameras: &[&Camera]) -> Value {
        self.until_all_came(cameras);
        let end = self.stop();
        for camera in cameras {
            let stream = of_port(&end, camera.port);
            assert_eq!(stream["received"], camera.sent(), "{stream}");
            for key in ["before_keyframe", "host_ended", "lost_packets", "jumps"] {
                assert_eq!(stream[key], 0, "{stream}");
            }
        }
        end
    }

    /// Lets these cameras stand still, and waits until all that they have sent has come.
    pub fn until_all_came(&self, cameras: &[&Camera]) {
        cameras.iter().for_each(|camera| camera.stall());
        self.until_noted("all that was sent", |noted| {
            cameras.iter().all(|camera| of_port(noted, camera.port)["received"] == camera.sent())
        });
    }

    /// Looks into the library, as another process does, until what is noted there of the streams is as `wanted`.
    pub fn until_noted(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let began = Instant::now();
        loop {
            let noted = info(&self.library);
            if wanted(&noted) {
                return noted;
            }
            assert!(began.elapsed() < PATIENCE, "{what} is not noted: {noted}");
            std::thread::sleep(Duration::from_millis(300));
        }
    }

    /// Waits until it is noted of the one stream that it was lost for so long. That is noted every five seconds.
    pub fn until_noted_as_lost(&self, secs: i64) {
        self.until_noted("an outage", |noted| {
            let stream = &noted["streams"][0];
            let lost_us = stream["lost_since_us"].as_i64();
            lost_us.is_some_and(|at| stream["told_us"].as_i64().unwrap() > at + secs * 1_000_000)
        });
    }

    /// Ctrl-C.
    pub fn interrupt(&self) {
        let id = self.child.id().to_string();
        Command::new("kill").args(["-INT", &id]).status().unwrap();
    }

    /// What is said at the end, after Ctrl-C.
    pub fn end(mut self) -> Value {
        // Windows of speech that are in hand are read.
        let end = self.until_within(2 * PATIENCE, "the end", |line| line["kind"] == "live_run");
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
        for stream in end["streams"].as_array().unwrap() {
            let source = stream["source"].as_str().unwrap();
            check_ended(stream, self.lost(source));
            assert_eq!(stream["clips"], self.stored(source), "{stream}");
        }
        end
    }
}

/// What is told of the stream that comes from this port.
fn of_port(told: &Value, port: u16) -> &Value {
    let is_it = |stream: &&Value| {
        let source = stream["source"].as_str().unwrap();
        source.contains(&format!(":{port}/"))
    };
    told["streams"].as_array().unwrap().iter().find(is_it).unwrap_or_else(|| panic!("{told}"))
}

/// A test that fails leaves no process behind.
impl Drop for Watching {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Frames that a host has told of and not settled when it is ended by force, as one is that brings nothing for too
/// long: the one on display, those that a decoder holds, and those of a second that wait for it.
const MOST_UNDER_WAY: u64 = 64;

/// Every frame that was received is in one of the other numbers. The last host is not ended by force.
pub fn check_accounts(stream: &Value) {
    check_ended(stream, stream["sessions"].as_u64().unwrap().saturating_sub(1) as usize);
}

/// As [`check_accounts`], where so many hosts may have been ended by force.
fn check_ended(stream: &Value, hosts: usize) {
    check_sum(stream);
    assert!(stream["host_ended"].as_u64() <= Some(MOST_UNDER_WAY * hosts as u64), "{stream}");
}

/// Every frame that was received is in one of the other numbers.
pub fn check_sum(stream: &Value) {
    let number = |key: &str| stream[key].as_u64().unwrap_or_else(|| panic!("{key} in {stream}"));
    let settled: u64 =
        ["encoded", "skipped", "before_keyframe", "behind", "undecodable", "host_ended"]
            .map(number)
            .iter()
            .sum();
    assert_eq!(number("received"), settled + number("under_way"), "{stream}");
    assert_eq!(number("under_way"), 0, "{stream}");
}

pub fn small(folder: &Path) -> Units {
    coded(folder, "320x180", 2.0, "-g 25 -preset veryfast -tune zerolatency")
}

pub fn check(library: &Path) -> Ran {
    run(["library", "check", library.to_str().unwrap()])
}

/// The clips and gaps of a source fill its grid, and none is there twice.
pub fn check_grid(library: &Path, source: &str) -> Vec<(i64, i64, Option<String>)> {
    let shown = show(library, source).exits(0);
    let mut spans = Vec::new();
    for (kind, reason) in [("clip", None), ("gap", Some(()))] {
        for line in shown.lines(kind) {
            let reason = reason.map(|()| line["reason"].as_str().unwrap().to_owned());
            let at = |key: &str| line[key].as_i64().unwrap_or_else(|| panic!("{key} in {line}"));
            spans.push((at("start_us"), at("end_us"), reason));
        }
    }
    spans.sort();
    assert!(!spans.is_empty() && spans.iter().all(|(start, end, _)| start < end), "{spans:?}");
    for pair in spans.windows(2) {
        assert_eq!(pair[0].1, pair[1].0, "{spans:?}");
    }
    spans
}

/// The reasons of gaps that hold `text`.
pub fn told(spans: &[(i64, i64, Option<String>)], text: &str) -> usize {
    spans.iter().filter(|(_, _, why)| why.as_ref().is_some_and(|why| why.contains(text))).count()
}

/// Whether a gap is no stream's, but due to what else the machine does.
pub fn is_busy(reason: &str) -> bool {
    BUSY.contains(&reason)
}

/// That a clip was stored which is of now.
pub fn check_clock(stored: &Value) {
    let late = now_us() - stored["end_us"].as_i64().unwrap();
    assert!((-1_000_000..15_000_000).contains(&late), "{late} µs late: {stored}");
}

pub fn now_us() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as i64
}

#[test]
fn a_cameras_clips_are_found_while_it_runs() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let camera = Camera::start(&small(folder.path()), &Setup::default());
    let address = camera.address();
    let mut watching = Watching::start(&library, &["--silence", "60", &address]);
    watching.until_state("live");
    let is_whole = |line: &Value| line["kind"] == "stored" && line["delay_secs"].is_number();
    let stored = watching.until("a whole clip", is_whole);
    let found = search(&library, &["a test picture"]).exits(0);
    assert_eq!(found.lines("hit")[0]["name"], address.as_str());
    // How long that takes is for the bench to say: other tests run beside.
    assert!(stored["delay_secs"].as_f64().unwrap() < 30.0, "{stored}");
    watching.until_stored(1);
    let end = watching.stop_when_all_came(&[&camera]);
    let stream = &end["streams"][0];
    assert!(stream["clips"].as_u64().unwrap() >= 2, "{stream}");
    // They are divided into segments when no more comes.
    assert!(stream["segments"].as_u64().unwrap() >= 1, "{stream}");
    let late = stream["segment_delay_secs"].as_f64().unwrap();
    assert!((0.0..90.0).contains(&late), "{stream}");
    assert_eq!(stream["undecodable"], 0, "{stream}");
    check_grid(&library, &address);
    check(&library).exits(0);
}

#[test]
fn a_server_that_was_killed_is_connected_again_and_the_gap_has_its_reason() {
    restart_the_server(3);
}

/// Kills a camera's server and starts it again, so many times: each is a gap with its reason.
pub fn restart_the_server(times: usize) {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let units = small(folder.path());
    let mut camera = Camera::start(&units, &Setup::default());
    let (address, port) = (camera.address(), camera.port);
    let mut watching = Watching::start(&library, &[&address]);
    watching.until_stored(1);
    for _ in 0..times {
        drop(camera);
        watching.until_reason(REFUSED);
        // So long that a whole place of the grid is empty.
        std::thread::sleep(Duration::from_millis(2_400));
        camera = Camera::start(&units, &Setup { port: Some(port), ..Setup::default() });
        watching.until_state("live");
        watching.until_stored(1);
    }
    let end = watching.stop();
    assert_eq!(end["streams"][0]["sessions"], times + 1);
    let spans = check_grid(&library, &address);
    assert_eq!(told(&spans, REFUSED), times, "{spans:?}");
    check(&library).exits(0);
}

#[test]
fn what_is_wrong_with_one_camera_is_said_and_touches_no_other() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let units = small(folder.path());
    let camera = Camera::start(&units, &Setup::default());
    let locked =
        Camera::start(&units, &Setup { login: Some(("viewer", "right")), ..Setup::default() });
    let list = folder.path().join("cameras.toml");
    let (open, closed) = (camera.port, locked.port);
    let streams = [
        ("good", format!("rtsp://127.0.0.1:{open}/live")),
        ("locked", format!("rtsp://viewer:wr0ng@127.0.0.1:{closed}/live")),
        ("path", format!("rtsp://127.0.0.1:{open}/nothing")),
        ("port", format!("rtsp://127.0.0.1:{NOBODYS}/live")),
        ("name", "rtsp://no-such-camera.invalid/live".to_owned()),
    ];
    let text: String = streams
        .iter()
        .map(|(name, address)| format!("[[stream]]\nname = '{name}'\naddress = '{address}'\n"))
        .collect();
    std::fs::write(&list, text).unwrap();
    let mut watching = Watching::start(&library, &["--streams", list.to_str().unwrap()]);
    let reasons = [
        ("locked", "user name or password"),
        ("path", "nothing at this path"),
        ("port", "connection refused"),
        ("name", "name of the camera's address is not known"),
    ];
    for (name, reason) in reasons {
        let is_told = |line: &Value| {
            line["source"] == name
                && line["reason"].as_str().is_some_and(|said| said.contains(reason))
        };
        watching.seen_or_until(reason, is_told);
    }
    watching.until_stored(2);
    let mut said = format!("{:?}", watching.seen).into_bytes();
    let end = watching.stop();
    for stream in end["streams"].as_array().unwrap() {
        let is_good = stream["source"] == "good";
        assert_eq!(stream["clips"].as_u64().unwrap() > 0, is_good, "{stream}");
        assert_eq!(stream["sessions"], u64::from(is_good), "{stream}");
    }
    // Nothing is missing of it but what the machine had no time for.
    let good = check_grid(&library, "good");
    let first = good.iter().position(|span| span.2.is_none()).unwrap();
    let mut gaps = good[first..good.len() - 1].iter().filter_map(|span| span.2.as_deref());
    assert!(gaps.all(is_busy), "{good:?}");
    for (name, reason) in reasons {
        let spans = check_grid(&library, name);
        assert!(told(&spans, reason) > 0, "{name}: {spans:?}");
    }
    // A password that was refused is no less a secret.
    for file in files_under(&library) {
        said.extend(std::fs::read(file).unwrap());
    }
    said.extend(format!("{end:?} {:?}", show(&library, "locked")).into_bytes());
    assert!(!holds(&said, "wr0ng") && holds(&said, "locked"));
    check(&library).exits(0);
}

#[test]
fn credentials_are_nowhere_but_on_the_socket() {
    const SECRET: &str = "p@ss/wORd7261";
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let setup = Setup { login: Some(("viewer", SECRET)), ..Setup::default() };
    let camera = Camera::start(&small(folder.path()), &setup);
    let list = folder.path().join("cameras.toml");
    let text = format!(
        "[[stream]]\nname = 'door'\naddress = '{}'\nuser = 'viewer'\npassword_file = 'door'\n",
        camera.address()
    );
    std::fs::write(&list, text).unwrap();
    std::fs::write(folder.path().join("door"), format!("{SECRET}\n")).unwrap();
    let options = ["--record", "--streams", list.to_str().unwrap()];
    let mut watching = Watching::start(&library, &options);
    watching.until_stored(1);
    let hosts = hosts_of(watching.child.id());
    assert!(!hosts.is_empty());
    for host in hosts {
        for file in ["cmdline", "environ"] {
            let bytes = std::fs::read(format!("/proc/{host}/{file}")).unwrap();
            assert!(!holds(&bytes, SECRET), "{file}");
        }
    }
    let mut errors = watching.child.stderr.take().unwrap();
    watching.interrupt();
    let end = watching.until("the end", |line| line["kind"] == "live_run");
    check_accounts(&end["streams"][0]);
    let mut said = Vec::new();
    errors.read_to_end(&mut said).unwrap();
    said.extend(format!("{:?}", watching.seen).into_bytes());
    for file in files_under(&library) {
        said.extend(std::fs::read(file).unwrap());
    }
    let shown = show(&library, "door").exits(0);
    said.extend(format!("{shown:?} {:?}", search(&library, &["a test picture"])).into_bytes());
    for form in [SECRET, "p%40ss", "p@ss%2FwORd7261", "dmlld2VyOnBAc3Mvd09SZDcyNjE"] {
        assert!(!holds(&said, form), "{form}");
    }
    assert!(holds(&said, "door"));
}

pub fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

#[test]
fn single_streams_are_received_and_recorded_as_the_file_says() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let units = small(folder.path());
    let locked = Setup { login: Some(("viewer", "s3cr3t")), is_udp: true, ..Setup::default() };
    let cameras = [Camera::start(&units, &locked), Camera::start(&units, &Setup::default())];
    let list = folder.path().join("cameras.toml");
    let [door, yard] = cameras.each_ref().map(Camera::address);
    let text = format!(
        "[[stream]]\nname = 'door'\naddress = '{door}'\nuser = 'viewer'\npassword_env = 'DOOR'\n\
         transport = 'udp'\nrecord = true\n[[stream]]\nname = 'yard'\naddress = '{yard}'\n"
    );
    std::fs::write(&list, text).unwrap();
    let mut command = command(["index", "--json", "--library"]);
    command.arg(&library).arg("--streams").arg(&list).env("DOOR", "s3cr3t");
    let mut watching = Watching::run(&mut command);
    while ["door", "yard"].iter().any(|name| watching.stored(name) < 4) {
        watching.until_stored(1);
    }
    let end = watching.stop();
    let of = |name: &str| {
        let streams = end["streams"].as_array().unwrap();
        streams.iter().find(|stream| stream["source"] == name).unwrap()
    };
    let number = |name: &str, key: &str| of(name)[key].as_u64().unwrap();
    assert!(number("door", "recorded_bytes") > 0 && number("yard", "recorded_bytes") == 0, "{end}");
    let recorded = std::fs::read_dir(library.join("recordings")).unwrap();
    let recorded: Vec<_> = recorded.map(|folder| folder.unwrap().file_name()).collect();
    assert_eq!(recorded, [of("door")["id"].as_str().unwrap()]);
}

#[test]
fn lost_packets_are_counted_and_cost_no_more_than_their_frames() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let camera = Camera::start(&small(folder.path()), &Setup { loss: 0.05, ..Setup::default() });
    let address = camera.address();
    let mut watching = Watching::start(&library, &[&address]);
    watching.until_stored(4);
    let end = watching.stop();
    let stream = &end["streams"][0];
    assert!(stream["lost_packets"].as_u64().unwrap() > 0, "{stream}");
    assert_eq!(stream["sessions"], 1, "{stream}");
    check_grid(&library, &address);
}

#[test]
fn other_sizes_b_frames_and_garbage_do_not_end_a_stream() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let small = small(folder.path());
    let large = coded(folder.path(), "640x360", 1.0, "-g 25 -preset veryfast -tune zerolatency");
    let changing: Units = Arc::new([small.as_slice(), large.as_slice()].concat());
    let reordered = coded(folder.path(), "160x96", 2.0, "-g 25 -preset medium -bf 3");
    // What comes behind the headers of every fifth frame is noise.
    let mut broken = small.to_vec();
    for (number, unit) in broken.iter_mut().enumerate().filter(|(number, _)| number % 5 == 4) {
        for (place, byte) in unit.iter_mut().enumerate().skip(16) {
            *byte = (place * 31 + number * 17) as u8 | 1;
        }
    }
    let cameras = [changing, reordered, Arc::new(broken)]
        .map(|units| Camera::start(&units, &Setup::default()));
    let addresses = cameras.each_ref().map(Camera::address);
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let options = [&["--silence", "60"], &addresses[..]].concat();
    let mut watching = Watching::start(&library, &options);
    while addresses.iter().any(|address| watching.stored(address) < 3) {
        watching.until_stored(1);
    }
    let end = watching.stop_when_all_came(&cameras.each_ref());
    for stream in end["streams"].as_array().unwrap() {
        assert_eq!(stream["sessions"], 1, "{stream}");
        check_grid(&library, stream["source"].as_str().unwrap());
    }
    check(&library).exits(0);
}

#[test]
fn a_connection_that_stalls_is_connected_again() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let camera = Camera::start(&small(folder.path()), &Setup::default());
    let address = camera.address();
    let mut watching = Watching::start(&library, &["--silence", "3", &address]);
    watching.until_stored(1);
    camera.stall();
    let lost = watching.until_state("waiting");
    assert_eq!(lost["reason"], "stream lost: no frame came for 3 s", "{lost}");
    camera.conduct.is_stalled.store(false, Ordering::SeqCst);
    watching.until_stored(2);
    watching.stop();
    let spans = check_grid(&library, &address);
    let is_told = |reason: &Option<String>| {
        reason.as_ref().is_some_and(|reason| reason.contains("no frame came for 3 s"))
    };
    assert!(spans.iter().any(|(_, _, reason)| is_told(reason)), "{spans:?}");
}

#[test]
fn a_killed_host_and_a_killed_run_lose_nothing_that_was_stored() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let camera = Camera::start(&small(folder.path()), &Setup::default());
    let address = camera.address();
    let kill = |id: u32| {
        let killed = Command::new("kill").args(["-9", &id.to_string()]).status();
        assert!(killed.unwrap().success());
    };
    let mut watching = Watching::start(&library, &[&address]);
    watching.until_stored(1);
    // So long that a whole place of the grid is empty.
    camera.stall();
    kill(hosts_of(watching.child.id())[0]);
    let lost = watching.until_state("waiting");
    assert!(lost["reason"].as_str().unwrap().contains("the decoder crashed (killed)"), "{lost}");
    std::thread::sleep(Duration::from_secs(3));
    camera.conduct.is_stalled.store(false, Ordering::SeqCst);
    watching.until_state("live");
    watching.until_stored(1);
    let hosts = hosts_of(watching.child.id());
    kill(watching.child.id());
    watching.child.wait().unwrap();
    watching.see_all();
    let stored = watching.stored(&address);
    assert_gone(&hosts);
    check(&library).exits(0);
    // A clip is told after it was stored, so one more may be there.
    let spans = check_grid(&library, &address);
    assert_eq!(told(&spans, "stream lost: the decoder crashed (killed)"), 1, "{spans:?}");
    let kept = spans.iter().filter(|span| span.2.is_none()).count();
    assert!((stored..=stored + 1).contains(&kept), "{kept} of {stored}");

    // So long that a whole place of the grid is empty.
    std::thread::sleep(Duration::from_secs(3));
    let mut watching = Watching::start(&library, &[&address]);
    watching.until_stored(1);
    watching.stop();
    let spans = check_grid(&library, &address);
    assert!(spans.iter().any(|span| span.2.as_deref() == Some("not watched")), "{spans:?}");
    check(&library).exits(0);
}

#[test]
fn transport_streams_and_srt_are_received() {
    const PASSPHRASE: &str = "correct-horse-7";
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("broadcasts.library");
    let free_port =
        || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (tcp, udp, srt) = (free_port(), free_port(), free_port());
    let addresses = [("tcp", tcp), ("udp", udp), ("srt", srt)]
        .map(|(scheme, port)| format!("{scheme}://127.0.0.1:{port}"));
    let encrypted = format!("?mode=listener&passphrase={PASSPHRASE}");
    let coded = "-v quiet -nostdin -re -f lavfi -i testsrc2=s=160x96:r=25 -c:v libx264 -preset ultrafast -g 25 \
                 -pix_fmt yuv420p -f mpegts";
    let senders = ["?listen=1", "?pkt_size=1316", encrypted.as_str()]
        .into_iter()
        .zip(&addresses)
        .map(|(how, address)| {
            let mut sender = Command::new("ffmpeg");
            sender.args(coded.split_whitespace()).arg(format!("{address}{how}")).spawn().unwrap()
        });
    let senders: Vec<_> = senders.collect();
    let list = folder.path().join("broadcasts.toml");
    let text: String = addresses
        .iter()
        .map(|address| format!("[[stream]]\nname = '{address}'\naddress = '{address}'\n"))
        .collect();
    // The last one's.
    std::fs::write(&list, format!("{text}password_file = 'passphrase'\n")).unwrap();
    std::fs::write(folder.path().join("passphrase"), format!("{PASSPHRASE}\n")).unwrap();
    let mut watching = Watching::start(&library, &["--streams", list.to_str().unwrap()]);
    while addresses.iter().any(|address| watching.stored(address) < 1) {
        watching.until_stored(1);
    }
    let end = watching.stop();
    for stream in end["streams"].as_array().unwrap() {
        check_accounts(stream);
        check_grid(&library, stream["source"].as_str().unwrap());
    }
    for file in files_under(&library) {
        assert!(!holds(&std::fs::read(file).unwrap(), PASSPHRASE));
    }
    for mut sender in senders {
        let _ = sender.kill();
        sender.wait().unwrap();
    }
}

#[test]
fn a_file_is_played_as_if_it_were_live() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("films.library");
    let film = numbered(folder.path(), "film.mp4", "25", 4.0, "-c:v libx264 -g 25");
    let began = Instant::now();
    let mut command = command(["index", "--json", "--as-live", "--library"]);
    let ran = finish(command.arg(&library).arg(&film)).exits(0);
    assert!(began.elapsed() > Duration::from_secs(3));
    let stream = &ran.line("live_run")["streams"][0];
    check_accounts(stream);
    assert_eq!((&stream["received"], &stream["state"]), (&100.into(), &"ended".into()), "{stream}");
    let spans = check_grid(&library, film.to_str().unwrap());
    let is_all = (2..=4).contains(&stream["clips"].as_u64().unwrap());
    let is_whole = spans.iter().filter_map(|span| span.2.as_deref()).all(|why| !is_busy(why));
    assert!(is_all || !is_whole, "{spans:?}: {stream}");
}
