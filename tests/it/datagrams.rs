//! Live streams over UDP, whose senders nobody is connected to: they fall silent, die and begin anew.

use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::camera::{Camera, Setup};
use crate::live::{REFUSED, Watching, check, check_clock, check_grid, small, told};
use crate::media::ffmpeg;
use crate::stopping::brisk_pipeline;

/// Packets of a transport stream that are sent at once, as is usual.
const AT_ONCE: usize = 7 * 188;
const SILENCE: &str = "4";
const LOST: &str = "stream lost: no frame came for 4 s";
const NOTHING: &str = "camera unreachable: no frame came for 4 s";

/// Sends a film as a transport stream at its pace, from its start on. Dropping it ends that, as a death would.
struct Sender {
    conduct: Arc<Conduct>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Conduct {
    is_silent: AtomicBool,
    over: AtomicBool,
}

impl Sender {
    fn start(film: &Arc<Vec<u8>>, secs: f64, port: u16) -> Sender {
        let conduct = Arc::new(Conduct::default());
        let (film, told) = (Arc::clone(film), Arc::clone(&conduct));
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        let send = move || {
            let step = Duration::from_secs_f64(secs * AT_ONCE as f64 / film.len() as f64);
            let mut due = Instant::now();
            for packets in film.chunks(AT_ONCE) {
                while told.is_silent.load(Ordering::SeqCst) && !told.over.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(10));
                    due = Instant::now();
                }
                if told.over.load(Ordering::SeqCst) {
                    return;
                }
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                due += step;
                // Nobody needs to be there.
                let _ = socket.send(packets);
            }
            panic!("the film is over");
        };
        Sender { conduct, thread: Some(std::thread::spawn(send)) }
    }

    fn set_silent(&self, is_silent: bool) {
        self.conduct.is_silent.store(is_silent, Ordering::SeqCst);
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.conduct.over.store(true, Ordering::SeqCst);
        let _ = self.thread.take().unwrap().join();
    }
}

/// So many seconds of a film as a transport stream.
fn film(folder: &Path, secs: f64) -> Arc<Vec<u8>> {
    ffmpeg(
        folder,
        &format!(
            "-f lavfi -i testsrc2=s=160x96:r=25:d={secs} -pix_fmt yuv420p -c:v libx264 -preset ultrafast \
             -tune zerolatency -g 25 -f mpegts film.ts"
        ),
    );
    Arc::new(std::fs::read(folder.join("film.ts")).unwrap())
}

#[test]
fn a_sender_that_falls_silent_or_begins_anew_is_followed() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("broadcasts.library");
    let secs = 300.0;
    let film = film(folder.path(), secs);
    let port = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let address = format!("udp://127.0.0.1:{port}");
    let pipeline = brisk_pipeline(folder.path(), "0.5");
    let options = ["--pipeline", pipeline.to_str().unwrap(), "--silence", SILENCE, &address];
    let mut sender = Sender::start(&film, secs, port);
    let mut watching = Watching::start(&library, &options);
    watching.until_stored(4);
    check_clock(watching.seen.last().unwrap());

    sender.set_silent(true);
    let lost = watching.until_state("waiting");
    assert_eq!(lost["reason"], LOST, "{lost}");
    watching.until_reason(NOTHING);
    sender.set_silent(false);
    watching.until_state("live");
    watching.until_stored(4);
    check_clock(watching.seen.last().unwrap());

    // Another one takes over at once: its timestamps begin anew, and nobody is told that.
    drop(sender);
    sender = Sender::start(&film, secs, port);
    watching.until_stored(6);
    check_clock(watching.seen.last().unwrap());

    drop(sender);
    let lost = watching.until_state("waiting");
    assert_eq!(lost["reason"], LOST, "{lost}");
    watching.until_reason(NOTHING);
    sender = Sender::start(&film, secs, port);
    watching.until_state("live");
    watching.until_stored(4);
    check_clock(watching.seen.last().unwrap());
    let end = watching.stop();
    drop(sender);

    let stream = &end["streams"][0];
    assert_eq!(stream["sessions"], 3, "{stream}");
    let spans = check_grid(&library, &address);
    assert_eq!(told(&spans, LOST), 2, "{spans:?}");
    check(&library).exits(0);
}

#[test]
fn a_camera_over_udp_that_stalls_or_is_killed_is_connected_again() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let units = small(folder.path());
    let mut camera = Camera::start(&units, &Setup { is_udp: true, ..Setup::default() });
    let (address, port) = (camera.address(), camera.port);
    let pipeline = brisk_pipeline(folder.path(), "0.5");
    let pipeline = pipeline.to_str().unwrap();
    let options = ["--pipeline", pipeline, "--udp", "--silence", SILENCE, &address];
    let mut watching = Watching::start(&library, &options);
    watching.until_stored(4);
    camera.stall();
    let lost = watching.until_state("waiting");
    assert_eq!(lost["reason"], LOST, "{lost}");
    watching.until_reason(NOTHING);
    camera.conduct.is_stalled.store(false, Ordering::SeqCst);
    watching.until_state("live");
    watching.until_stored(4);
    drop(camera);
    let lost = watching.until_state("waiting");
    // Whether its connection for requests is seen to end before that is chance.
    assert!(lost["reason"].as_str().unwrap().starts_with("stream lost: "), "{lost}");
    watching.until_reason(REFUSED);
    camera = Camera::start(&units, &Setup { port: Some(port), is_udp: true, ..Setup::default() });
    watching.until_state("live");
    watching.until_stored(4);
    check_clock(watching.seen.last().unwrap());
    let end = watching.stop();
    drop(camera);
    let stream = &end["streams"][0];
    for key in ["undecodable", "lost_packets"] {
        assert_eq!(stream[key], 0, "{stream}");
    }
    assert_eq!(stream["sessions"], 3, "{stream}");
    let spans = check_grid(&library, &address);
    assert_eq!((told(&spans, "stream lost"), told(&spans, "connection refused")), (2, 1));
    assert!(told(&spans, LOST) > 0, "{spans:?}");
    check(&library).exits(0);
}
