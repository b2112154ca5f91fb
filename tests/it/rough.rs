//! Live streams that come over rough ways, from cameras that do odd things, or onto a full disk.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::camera::{Camera, Codec, Setup, Units, coded, coded_as, pcm};
use crate::cinelex::{Ran, info, show};
use crate::keeping::with_own_mounts;
use crate::live::{
    Watching, check, check_accounts, check_clock, check_grid, is_busy, now_us, restart_the_server,
    small, told,
};
use crate::media::ffmpeg;
use crate::relay::{Relay, Weather};
use crate::stopping::{brisk_pipeline, hosts_of};

#[test]
fn a_good_way_over_udp_loses_nothing() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let camera = Camera::start(&small(folder.path()), &Setup::default());
    let relay = Relay::start(camera.port, Weather::default());
    let address = relay.address();
    let mut watching = Watching::start(&library, &["--udp", "--silence", "60", &address]);
    watching.until_stored(2);
    // What a camera sends before it is known from where on its packets count is not taken.
    camera.stall();
    let still_us = now_us() + 6_000_000;
    let noted = watching.until_noted("a still moment", |noted| {
        noted["streams"][0]["told_us"].as_i64() > Some(still_us)
    });
    let early = camera.sent() - noted["streams"][0]["received"].as_u64().unwrap();
    assert!(early < 50, "{early}: {noted}");
    camera.conduct.is_begun_anew.store(true, Ordering::SeqCst);
    camera.conduct.is_stalled.store(false, Ordering::SeqCst);
    watching.until_stored(2);
    camera.stall();
    // All has come, and nothing waits for packets that may come before it.
    let all = || camera.sent() - early;
    watching.until_noted("all", |noted| noted["streams"][0]["received"] == all());
    let end = watching.stop();
    let stream = &end["streams"][0];
    assert_eq!(stream["received"], all(), "{stream}");
    assert_eq!((&stream["lost_packets"], &stream["undecodable"]), (&0.into(), &0.into()));
    // It came over the relay's ports, and so over UDP.
    assert!(relay.passed.packets.load(Ordering::SeqCst) >= all(), "{stream}");
    check_grid(&library, &address);
    check(&library).exits(0);
}

#[test]
fn packets_that_are_lost_or_late_over_udp_are_counted_and_the_stream_goes_on() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let camera = Camera::start(&small(folder.path()), &Setup::default());
    let relays = [0.05, 0.2].map(|loss| Relay::start(camera.port, Weather { loss, late: 0.05 }));
    let addresses = relays.each_ref().map(Relay::address);
    let mut watching = Watching::start(&library, &["--udp", &addresses[0], &addresses[1]]);
    let mut until_each_stored = |count| {
        while addresses.iter().any(|address| watching.stored(address) < count) {
            watching.until_stored(1);
        }
    };
    until_each_stored(1);
    relays.iter().for_each(|relay| relay.set_rough(true));
    until_each_stored(6);
    // A packet is missed once others have come after it.
    relays.iter().for_each(|relay| relay.set_rough(false));
    until_each_stored(8);
    let end = watching.stop();
    for (relay, address) in relays.iter().zip(&addresses) {
        let all = end["streams"].as_array().unwrap();
        let stream = all.iter().find(|stream| stream["source"] == address.as_str()).unwrap();
        assert_eq!(stream["sessions"], 1, "{stream}");
        let lost = relay.passed.lost.load(Ordering::SeqCst);
        let late = relay.passed.late.load(Ordering::SeqCst);
        let counted = stream["lost_packets"].as_u64().unwrap();
        eprintln!("{lost} lost, {late} late, {counted} counted: {stream}");
        // Those that were late are none of them.
        assert!(late > 0 && counted == lost, "{lost} lost, {stream}");
        check_grid(&library, address);
    }
    check(&library).exits(0);
}

#[test]
fn times_are_those_of_the_cameras_clock_once_it_reports_that() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let camera = Camera::start(&small(folder.path()), &Setup::default());
    let address = camera.address();
    let mut watching = Watching::start(&library, &[&address]);
    let is_sender = |line: &Value| line["kind"] == "stream" && line["is_sender_time"] == true;
    let stream = watching.until("the camera's clock", is_sender);
    // It is this machine's.
    let ahead_us = stream["sender_ahead_us"].as_i64().unwrap();
    assert!((-2_000_000..=500_000).contains(&ahead_us), "{stream}");
    watching.until_stored(2);
    watching.stop();
    let source = show(&library, &address).exits(0).line("source");
    assert_eq!(source["wall"]["origin"], "sender_report", "{source}");
    check_grid(&library, &address);
    check(&library).exits(0);
}

#[test]
fn another_codec_another_pace_and_sound_are_taken_as_they_come() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let tone = pcm(folder.path(), "-f lavfi -i sine=d=2");
    let with_sound = Setup { sound: Some(&tone), ..Setup::default() };
    let camera = Camera::start(&small(folder.path()), &with_sound);
    let (address, port) = (camera.address(), camera.port);
    let mut watching = Watching::start(&library, &[&address]);
    watching.until_stored(1);
    for pace in [100, 15, 40] {
        camera.conduct.pace_millis.store(pace, Ordering::SeqCst);
        watching.until_stored(2);
    }
    let seen = watching.seen.last().unwrap().clone();
    drop(camera);
    watching.until_state("waiting");
    let h265 = coded_as(Codec::H265, folder.path(), "320x180", 2.0, "-g 25 -preset ultrafast");
    let setup = Setup { port: Some(port), codec: Codec::H265, ..Setup::default() };
    let _camera = Camera::start(&h265, &setup);
    watching.until_state("live");
    watching.until_stored(2);
    let end = watching.stop();
    let stream = &end["streams"][0];
    assert_eq!((&stream["sessions"], &stream["undecodable"]), (&2.into(), &0.into()), "{stream}");
    // Nothing but the change of the codec broke it.
    let spans = check_grid(&library, &address);
    let before = seen["end_us"].as_i64().unwrap();
    let is_odd = |(start, _, why): &&(i64, i64, Option<String>)| {
        *start < before && why.as_ref().is_some_and(|why| !is_busy(why))
    };
    let odd: Vec<_> = spans.iter().skip_while(|span| span.2.is_some()).filter(is_odd).collect();
    assert!(odd.is_empty(), "{odd:?} in {spans:?}");
    check(&library).exits(0);
}

#[test]
fn a_keyframe_that_is_long_in_coming_is_waited_for() {
    a_keyframe_is_waited_for(3);
}

#[test]
#[ignore = "slow: a keyframe each minute"]
fn a_keyframe_that_is_a_minute_in_coming_is_waited_for() {
    a_keyframe_is_waited_for(60);
}

/// Connects to a camera when it has sent a keyframe; the next one comes so many seconds later.
fn a_keyframe_is_waited_for(secs: u64) {
    let folder = TempDir::new().unwrap();
    let coding = "-g 10000 -preset veryfast -tune zerolatency";
    let units = coded(folder.path(), "320x180", secs as f64 + 60.0, coding);
    let camera = Camera::start(&units, &Setup::default());
    let address = camera.address();
    let mut first = Watching::start(&folder.path().join("first.library"), &[&address]);
    first.until_stored(1);
    // Frames come, of which none can be decoded: that is no silence.
    let library = folder.path().join("second.library");
    let mut second = Watching::start(&library, &["--silence", "2", &address]);
    second.until_state("connecting");
    second.until_noted("frames before a keyframe", |noted| {
        noted["streams"][0]["before_keyframe"].as_u64() > Some(25 * secs)
    });
    camera.conduct.is_begun_anew.store(true, Ordering::SeqCst);
    second.until_state("live");
    second.until_stored(1);
    let end = second.stop();
    let stream = &end["streams"][0];
    assert_eq!(stream["sessions"], 1, "{stream}");
    assert!(stream["before_keyframe"].as_u64() > Some(25 * secs), "{stream}");
    let spans = check_grid(&library, &address);
    assert_eq!(told(&spans, "no keyframe came"), 1, "{spans:?}");
    first.stop();
}

#[test]
fn timestamps_that_jump_or_stand_still_change_no_wall_clock() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let camera = Camera::start(&small(folder.path()), &Setup::default());
    let address = camera.address();
    let mut watching = Watching::start(&library, &[&address]);
    watching.until_stored(1);
    for hours in [3, -2, 0] {
        camera.conduct.jump_millis.store(hours * 3_600_000, Ordering::SeqCst);
        watching.until_stored(2);
        check_clock(watching.seen.last().unwrap());
    }
    camera.conduct.stands_still.store(true, Ordering::SeqCst);
    watching.until_stored(2);
    check_clock(watching.seen.last().unwrap());
    camera.conduct.stands_still.store(false, Ordering::SeqCst);
    watching.until_stored(2);
    check_clock(watching.seen.last().unwrap());
    let end = watching.stop();
    let stream = &end["streams"][0];
    eprintln!("{stream}");
    assert_eq!(stream["sessions"], 1, "{stream}");
    // GStreamer's jitter buffer begins anew where they do, so that not even a jump is seen.
    assert!(camera.conduct.restamped.load(Ordering::SeqCst) > 100);
    check_grid(&library, &address);
    check(&library).exits(0);
}

/// A server that sends one piece after the other, each in so many seconds, again and again, and from
/// where it is now to whoever connects.
struct Broadcast {
    port: u16,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Broadcast {
    fn start(pieces: Vec<(Vec<u8>, f64)>) -> Broadcast {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let over = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&over);
        let serve = move || {
            let (mut clients, mut due) = (Vec::<TcpStream>::new(), Instant::now());
            for (bytes, secs) in pieces.iter().cycle() {
                let parts = (secs * 25.0).ceil();
                for part in bytes.chunks((bytes.len() as f64 / parts).ceil() as usize) {
                    if is_over.load(Ordering::SeqCst) {
                        return;
                    }
                    std::thread::sleep(due.saturating_duration_since(Instant::now()));
                    due += Duration::from_secs_f64(secs / parts);
                    while let Ok((client, _)) = listener.accept() {
                        client.set_nonblocking(false).unwrap();
                        clients.push(client);
                    }
                    clients.retain_mut(|client| client.write_all(part).is_ok());
                }
            }
        };
        Broadcast { port, over, thread: Some(std::thread::spawn(serve)) }
    }

    fn address(&self) -> String {
        format!("tcp://127.0.0.1:{}", self.port)
    }
}

impl Drop for Broadcast {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        let _ = self.thread.take().unwrap().join();
    }
}

/// `secs` of a transport stream.
fn transport_stream(folder: &Path, name: &str, secs: f64, coding: &str) -> (Vec<u8>, f64) {
    ffmpeg(
        folder,
        &format!(
            "-f lavfi -i testsrc2=s=320x180:r=25:d={secs} -pix_fmt yuv420p {coding} -f mpegts {name}"
        ),
    );
    (std::fs::read(folder.join(name)).unwrap(), secs)
}

const H264: &str = "-c:v libx264 -preset ultrafast -bf 2 -g 25 -x264-params repeat-headers=1";
const H265: &str =
    "-c:v libx265 -preset ultrafast -g 25 -x265-params log-level=error:repeat-headers=1";

fn garbage(length: usize) -> Vec<u8> {
    let mut random = 1u32;
    let bytes = std::iter::repeat_with(|| {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (random >> 24) as u8
    });
    bytes.take(length).collect()
}

#[test]
fn garbage_and_another_codec_in_the_middle_of_a_broadcast_cost_no_more_than_themselves() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("broadcasts.library");
    let h264 = transport_stream(folder.path(), "a.ts", 4.0, H264);
    let h265 = transport_stream(folder.path(), "b.ts", 4.0, H265);
    let broken = Broadcast::start(vec![h264.clone(), (garbage(400_000), 2.0)]);
    let changing = Broadcast::start(vec![h264, h265]);
    let addresses = [broken.address(), changing.address()];
    let pipeline = brisk_pipeline(folder.path(), "0.25");
    let pipeline = pipeline.to_str().unwrap();
    let options = ["--pipeline", pipeline, &addresses[0], &addresses[1]];
    let mut watching = Watching::start(&library, &options);
    // More than a whole round.
    while addresses.iter().any(|address| watching.stored(address) < 36) {
        watching.until_stored(1);
    }
    let end = watching.stop();
    for stream in end["streams"].as_array().unwrap() {
        let spans = check_grid(&library, stream["source"].as_str().unwrap());
        eprintln!("{stream}\n{spans:?}");
        // What is odd costs a connection at most, and so a place or two on the grid. The machine may stand still in one of
        // the rounds.
        let seen = spans.iter().skip_while(|span| span.2.is_some());
        let gaps = seen.filter(|span| span.2.is_some()).map(|span| span.1 - span.0);
        assert!(gaps.min().unwrap_or(0) <= 4_500_000, "{spans:?}");
        let changed = told(&spans, "stream lost: the codec or the tracks of the stream changed");
        assert_eq!(changed > 0, stream["source"] == *addresses[1], "{spans:?}");
    }
    check(&library).exits(0);
}

#[test]
fn a_sender_that_ends_its_stream_is_told_from_one_that_changes_it() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("broadcasts.library");
    let h264 = transport_stream(folder.path(), "a.ts", 4.0, H264);
    let broadcast = Broadcast::start(vec![h264]);
    let mut watching = Watching::start(&library, &[&broadcast.address()]);
    watching.until_stored(1);
    drop(broadcast);
    let lost = watching.until_state("waiting");
    assert_eq!(lost["reason"], "stream lost: the sender ended it", "{lost}");
    watching.stop();
}

#[test]
fn garbage_that_goes_on_is_a_gap_with_its_reason() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("broadcasts.library");
    let h264 = transport_stream(folder.path(), "a.ts", 4.0, H264);
    let broken = Broadcast::start(vec![h264, (garbage(1_600_000), 8.0)]);
    let address = broken.address();
    let pipeline = brisk_pipeline(folder.path(), "0.25");
    let options = ["--pipeline", pipeline.to_str().unwrap(), "--silence", "3", &address];
    let mut watching = Watching::start(&library, &options);
    watching.until_stored(4);
    let lost = watching.until_state("waiting");
    assert_eq!(lost["reason"], "stream lost: no frame came for 3 s", "{lost}");
    watching.until_state("live");
    watching.until_stored(4);
    check_clock(watching.seen.last().unwrap());
    watching.stop();
    let spans = check_grid(&library, &address);
    assert!(told(&spans, "stream lost: no frame came for 3 s") > 0, "{spans:?}");
    check(&library).exits(0);
}

/// Runs a script while a camera is watched, with these options, on a disk of 64 MB, `disk` in this folder; says so where
/// nobody may mount one.
pub fn on_a_small_disk(
    folder: &Path,
    camera: &Camera,
    options: &[&str],
    script: &str,
) -> Option<Ran> {
    let disk = folder.join("disk");
    std::fs::create_dir(&disk).unwrap();
    let (address, pipeline) = (camera.address(), brisk_pipeline(folder, "0.1"));
    let mut arguments = vec![disk.as_path(), Path::new(&address), &pipeline];
    arguments.extend(options.iter().map(Path::new));
    let ran = with_own_mounts(&[WATCH_ON_A_SMALL_DISK, script].concat(), &arguments);
    if ran.is_none() {
        eprintln!("skipped: mounting is not permitted here");
    }
    ran
}

const WATCH_ON_A_SMALL_DISK: &str = r#"
        cinelex=$1 disk=$2 address=$3 pipeline=$4
        mount -t tmpfs -o size=64m,mode=700 tmpfs "$disk" || exit 7
        "$cinelex" index "$address" --library "$disk/lib" --pipeline "$pipeline" --json \
            "${@:5}" >"$disk.out" 2>"$disk.err" &
        watcher=$!
"#;

#[test]
fn a_disk_that_is_full_for_a_while_costs_what_came_meanwhile_and_no_more() {
    let folder = TempDir::new().unwrap();
    let units = coded(folder.path(), "160x96", 2.0, "-g 25 -preset ultrafast -tune zerolatency");
    let camera = Camera::start(&units, &Setup::default());
    let script = r#"
        stored() { grep -c '"kind":"stored"' "$disk.out"; }
        until_stored() {
            for _ in $(seq 900); do [ "$(stored)" -ge "$1" ] && return; sleep 0.1; done
            echo "no clip $1"; cat "$disk.out" "$disk.err"; exit 8
        }
        until_stored 1
        dd if=/dev/zero of="$disk/filler" bs=4k 2>/dev/null
        for _ in $(seq 300); do grep -q "nothing is stored" "$disk.err" && break; sleep 0.1; done
        "$cinelex" library info "$disk/lib" || exit 8
        # More than what is on the way can hold.
        sleep 10
        before=$(stored)
        rm "$disk/filler"
        until_stored $((before + 100))
        kill -INT $watcher
        wait $watcher || { echo "ended with $?"; cat "$disk.err"; exit 8; }
        "$cinelex" library check "$disk/lib" || exit 8
        "$cinelex" library show "$disk/lib" "$address" --json
        cat "$disk.out"
        cat "$disk.err" >&2
    "#;
    let Some(ran) = on_a_small_disk(folder.path(), &camera, &[], script) else { return };
    let ran = ran.exits(0);
    for said in ["nothing is stored until that is over", "what comes is stored again, after "] {
        assert!(ran.err.contains(said), "{}", ran.err);
    }
    let stream = ran.out.lines().find(|line| line.contains("\"live_run\"")).unwrap();
    let stream: Value = serde_json::from_str(stream).unwrap();
    let stream = &stream["streams"][0];
    check_accounts(stream);
    eprintln!("{stream}");
    assert_eq!(stream["sessions"], 1, "{stream}");
    assert!(stream["behind"].as_u64() > Some(0), "{stream}");
    let is_told = |line: &str| line.contains("nothing could be stored: the disk is full");
    assert!(ran.out.lines().any(|line| line.contains("\"gap\"") && is_told(line)), "{}", ran.out);
    // Nothing is there twice, and nothing is missing without a reason.
    let spans = |kind: &str| {
        let lines = ran.out.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let of_kind = lines.filter(|line| line["kind"] == kind).collect::<Vec<_>>();
        of_kind
            .into_iter()
            .map(|line| (line["start_us"].as_i64().unwrap(), line["end_us"].as_i64().unwrap()))
            .collect::<Vec<_>>()
    };
    let mut all = [spans("clip"), spans("gap")].concat();
    all.sort_unstable();
    for pair in all.windows(2) {
        assert_eq!(pair[0].1, pair[1].0, "{all:?}");
    }
    assert_eq!(spans("clip").len() as u64, stream["clips"].as_u64().unwrap());
}

/// Another process that holds a library, until this is dropped.
pub struct Holder(Child);

impl Holder {
    /// It writes, and does not end that.
    pub fn start(library: &Path) -> Holder {
        Holder::start_when(library, "SELECT 1")
    }

    /// As [`Holder::start`], as soon as a query says 1.
    pub fn start_when(library: &Path, query: &str) -> Holder {
        Holder::start_by("held.execute('BEGIN IMMEDIATE')", library, query)
    }

    /// Holds it by what these lines of Python do with `held`, a connection to it.
    pub fn start_by(how: &str, library: &Path, query: &str) -> Holder {
        let script = format!(
            "import fcntl, sqlite3, sys\n\
             held = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)\n\
             while held.execute(sys.argv[2]).fetchone() != (1,): pass\n\
             {how}\n\
             print('held', flush=True)\n\
             sys.stdin.read()"
        );
        let mut child = Command::new("python3")
            .args(["-c", &script])
            .arg(library.join("library.sqlite"))
            .arg(query)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "held\n");
        Holder(child)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// More frames than what is on the way can hold.
const HELD_FRAMES: u64 = 7 * 25;

#[test]
fn streams_that_nobody_can_store_lose_whole_frames_each_and_all_go_on() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let units = coded(folder.path(), "160x96", 1.0, "-g 25 -preset ultrafast -tune zerolatency");
    let cameras = [(); 2].map(|()| Camera::start(&units, &Setup::default()));
    let addresses = cameras.each_ref().map(Camera::address);
    let pipeline = brisk_pipeline(folder.path(), "0.1");
    let options = ["--pipeline", pipeline.to_str().unwrap(), &addresses[0], &addresses[1]];
    let mut watching = Watching::start(&library, &options);
    while addresses.iter().any(|address| watching.stored(address) < 4) {
        watching.until_stored(1);
    }
    let holder = Holder::start(&library);
    let sent = cameras.each_ref().map(Camera::sent);
    while cameras.iter().zip(sent).any(|(camera, sent)| camera.sent() < sent + HELD_FRAMES) {
        std::thread::sleep(Duration::from_millis(50));
    }
    drop(holder);
    let free = now_us();
    let is_behind = |line: &Value, address: &str| {
        line["source"] == *address && line["behind"].as_u64() > Some(0)
    };
    for address in &addresses {
        watching.seen_or_until("what was dropped", |line| is_behind(line, address));
    }
    for address in &addresses {
        let is_new = |line: &Value| {
            line["kind"] == "stored"
                && line["source"] == **address
                && line["start_us"].as_i64() > Some(free)
        };
        watching.seen_or_until("a clip of afterwards", is_new);
    }
    let end = watching.stop();
    for stream in end["streams"].as_array().unwrap() {
        assert_eq!(stream["sessions"], 1, "{stream}");
        let spans = check_grid(&library, stream["source"].as_str().unwrap());
        assert!(told(&spans, "nothing could be stored: ") > 0, "{spans:?}");
    }
    check(&library).exits(0);
}

#[test]
fn what_is_in_hand_is_stored_where_the_library_is_free_again_soon_after_ctrl_c() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let camera = Camera::start(&small(folder.path()), &Setup::default());
    let address = camera.address();
    let pipeline = brisk_pipeline(folder.path(), "0.1");
    let options = ["--pipeline", pipeline.to_str().unwrap(), &address];
    let mut watching = Watching::start(&library, &options);
    watching.until_stored(4);
    let holder = Holder::start(&library);
    let sent = camera.sent();
    while camera.sent() < sent + 25 {
        std::thread::sleep(Duration::from_millis(50));
    }
    let before = now_us();
    camera.stall();
    // What was sent by then is under way for less than that.
    std::thread::sleep(Duration::from_secs(3));
    let errors = BufReader::new(watching.child.stderr.take().unwrap());
    let mut said = errors.lines().map_while(Result::ok);
    watching.interrupt();
    // That is said when an attempt has failed.
    let is_told = |line: String| line.contains("nothing is stored until that is over");
    assert!(said.any(is_told), "nothing was tried again");
    drop(holder);
    watching.end();
    let spans = check_grid(&library, &address);
    let is_late =
        |span: &&(i64, i64, Option<String>)| span.2.is_none() && span.1 > before - 500_000;
    assert!(spans.iter().any(|span| is_late(&span)), "{before}: {spans:?}");
    check(&library).exits(0);
}

#[test]
fn a_disk_that_stays_full_after_ctrl_c_ends_the_run_and_what_is_lost_is_said() {
    let folder = TempDir::new().unwrap();
    let units = coded(folder.path(), "160x96", 2.0, "-g 25 -preset ultrafast -tune zerolatency");
    let camera = Camera::start(&units, &Setup::default());
    let script = r#"
        until_said() {
            for _ in $(seq 900); do grep -q "$1" "$2" && return; sleep 0.1; done
            echo "no $1"; cat "$disk.out" "$disk.err"; exit 8
        }
        until_said '"kind":"stored"' "$disk.out"
        dd if=/dev/zero of="$disk/filler" bs=4k 2>/dev/null
        until_said "nothing is stored" "$disk.err"
        began=$SECONDS
        kill -INT $watcher
        wait $watcher
        code=$?
        took=$((SECONDS - began))
        cat "$disk.err" >&2
        [ $took -ge 9 ] && [ $took -le 60 ] || { echo "ended after $took s"; exit 8; }
        rm "$disk/filler"
        "$cinelex" library check "$disk/lib" || exit 8
        exit $code
    "#;
    let Some(ran) = on_a_small_disk(folder.path(), &camera, &[], script) else { return };
    let ran = ran.exits(1);
    let said = ran.err.lines().find(|line| line.contains("is lost"));
    assert!(said.is_some_and(|line| line.contains("the disk is full")), "{}", ran.err);
}

/// Frames of one slice each.
fn of_one_slice(folder: &Path) -> Units {
    coded(folder, "320x180", 2.0, "-g 25 -preset veryfast -bf 0")
}

/// The same frames, each with units of some types as `change` makes them.
fn changed(units: &Units, types: &[u8], change: impl Fn(&mut Vec<u8>)) -> Vec<Vec<u8>> {
    let change_unit = |unit: &Vec<u8>| {
        let is_start = |at: &usize| unit[*at..at + 3] == [0, 0, 1];
        let starts: Vec<usize> = (0..unit.len() - 3).filter(is_start).map(|at| at + 3).collect();
        let mut all = Vec::new();
        for (place, start) in starts.iter().enumerate() {
            let end = starts.get(place + 1).map_or(unit.len(), |next| next - 3);
            let mut part = unit[*start..end].to_vec();
            if types.contains(&(part[0] & 31)) {
                change(&mut part);
            }
            all.extend([&[0, 0, 0, 1], &part[..]].concat());
        }
        all
    };
    units.iter().map(change_unit).collect()
}

#[test]
fn a_stream_of_which_nothing_can_be_decoded_is_lost_until_something_can() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let units = of_one_slice(folder.path());
    // Picture parameters that have two slice groups, which FFmpeg has no decoder for.
    let grouped = changed(&units, &[8], |part| *part = vec![0x68, 0xE5, 0xF1, 0xE4]);
    let camera = Camera::start(&Arc::new(grouped), &Setup::default());
    let (address, port) = (camera.address(), camera.port);
    let mut watching = Watching::start(&library, &["--silence", "4", &address]);
    const REASON: &str = "stream lost: nothing of what comes can be decoded";
    for _ in 0..2 {
        let lost = watching.until_state("waiting");
        assert!(lost["reason"].as_str().unwrap().starts_with(REASON), "{lost}");
        assert_eq!((&lost["sessions"], &lost["encoded"]), (&0.into(), &0.into()), "{lost}");
        assert!(lost["undecodable"].as_u64() > Some(33), "{lost}");
    }
    drop(camera);
    let _camera = Camera::start(&units, &Setup { port: Some(port), ..Setup::default() });
    watching.until_state("live");
    watching.until_stored(2);
    check_clock(watching.seen.last().unwrap());
    watching.stop();
    let spans = check_grid(&library, &address);
    assert_eq!(told(&spans, REASON), 1, "{spans:?}");
    check(&library).exits(0);
}

#[test]
fn frames_that_cannot_be_decoded_among_others_that_can_break_no_stream() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let units = of_one_slice(folder.path());
    // Slices that name picture parameters (200) which there are none of.
    let spoilt = changed(&units, &[1, 5], |part| part[1..4].copy_from_slice(&[0x88, 0x01, 0x92]));
    // A second of pictures, then four of none.
    let mixed = [units[..25].to_vec(), spoilt.clone(), spoilt].concat();
    let camera = Camera::start(&Arc::new(mixed), &Setup::default());
    let address = camera.address();
    // More than two rounds, should the machine have no time for one.
    let mut watching = Watching::start(&library, &["--silence", "15", &address]);
    watching.until_stored(4);
    let end = watching.stop();
    let stream = &end["streams"][0];
    assert_eq!(stream["sessions"], 1, "{stream}");
    assert!(stream["undecodable"].as_u64() > Some(90), "{stream}");
    let spans = check_grid(&library, &address);
    assert!(told(&spans, "what came could not be decoded") > 0, "{spans:?}");
    check(&library).exits(0);
}

#[test]
#[ignore = "slow: the server is killed twenty times"]
fn twenty_restarts_are_twenty_gaps() {
    restart_the_server(20);
}

/// Memory of a process's own, without files and libraries that are mapped, in MiB.
fn resident_mib(id: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() >> 10
}

#[test]
fn memory_does_not_grow() {
    memory_is_the_same(Duration::ZERO, Duration::from_secs(100));
}

#[test]
#[ignore = "slow: four streams for half an hour"]
fn memory_does_not_grow_in_half_an_hour() {
    memory_is_the_same(Duration::from_secs(5 * 60), Duration::from_secs(25 * 60));
}

/// Watches four streams, and compares the memory of the first third of `measured` with that of the last. It begins
/// after `warming`, and when the first captions are written, after two minutes: these take memory of their own.
fn memory_is_the_same(warming: Duration, measured: Duration) {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let camera = Camera::start(&small(folder.path()), &Setup::default());
    let list = folder.path().join("cameras.toml");
    let stream = |n| format!("[[stream]]\nname = 'camera {n}'\naddress = '{}'\n", camera.address());
    std::fs::write(&list, (0..4).map(stream).collect::<String>()).unwrap();
    let mut watching =
        Watching::start(&library, &["--record", "--streams", list.to_str().unwrap()]);
    watching.until_stored(8);
    let began = Instant::now();
    while began.elapsed() < warming || info(&library)["segments"].as_u64() < Some(4) {
        watching.until_stored(8);
    }
    // Segments are made of a chunk of two minutes when it is over.
    let is_made = |line: &Value| line["segments"].as_u64() > Some(0);
    // They are there before it is told, every ten seconds.
    watching.seen_or_until("a segment", is_made);
    let made = watching.seen.iter().rev().find(|line| is_made(line)).unwrap();
    assert!((0.0..60.0).contains(&made["segment_delay_secs"].as_f64().unwrap()), "{made}");
    let began = Instant::now();
    let mut used = Vec::new();
    while began.elapsed() < measured {
        watching.until_stored(8);
        let mut all = hosts_of(watching.child.id());
        all.push(watching.child.id());
        used.push(all.into_iter().map(resident_mib).sum::<u64>());
    }
    let end = watching.stop();
    for stream in end["streams"].as_array().unwrap() {
        assert_eq!(stream["sessions"], 1, "{stream}");
        assert!(stream["segments"].as_u64() > Some(0), "{stream}");
    }
    let third = used.len() / 3;
    let most = |part: &[u64]| part.iter().copied().max().unwrap_or(0);
    let (early, late) = (most(&used[..third]), most(&used[2 * third..]));
    eprintln!("{early} MiB, then {late} MiB");
    assert!(early > 0 && late <= early + early / 20 + 8, "{used:?}");
    check(&library).exits(0);
}

#[test]
#[ignore = "slow: needs a machine with nothing else to do"]
fn a_stream_is_followed_closely() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let camera = Camera::start(&small(folder.path()), &Setup::default());
    let mut watching = Watching::start(&library, &[&camera.address()]);
    watching.until_stored(10);
    let late = watching.seen.iter().filter_map(|line| line["delay_secs"].as_f64());
    let late = late.fold(0.0, f64::max);
    let end = watching.stop();
    let stream = &end["streams"][0];
    assert_eq!(stream["behind"], 0, "{stream}");
    let (sent, received) = (camera.sent(), stream["received"].as_u64().unwrap());
    assert!(received <= sent && sent - received < 25, "{sent} sent, {stream}");
    assert!(late < 5.0, "{late} s");
}
