//! Live streams that were kept away and come: what was wrong with them is put right, or the machine's clock is set.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::camera::{Camera, Setup};
use crate::cinelex::{command, finish, index, search};
use crate::keeping::with_own_mounts;
use crate::live::{
    PATIENCE, REFUSED, Watching, check, check_accounts, check_clock, check_grid, holds, is_busy,
    now_us, small, told,
};
use crate::media::ffmpeg;
use crate::stopping::brisk_pipeline;
use crate::tidy::files_under;
use crate::web::{Request, Server, send};

#[test]
fn a_camera_that_is_put_right_is_live_without_a_restart() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let units = small(folder.path());
    let setup = Setup { login: Some(("viewer", "old")), ..Setup::default() };
    let locked = Camera::start(&units, &setup);
    let elsewhere = Camera::start(&units, &Setup::default());
    let list = folder.path().join("cameras.toml");
    let text = format!(
        "[[stream]]\nname = 'locked'\naddress = 'rtsp://viewer:new@127.0.0.1:{}/live'\n\
         [[stream]]\nname = 'elsewhere'\naddress = 'rtsp://127.0.0.1:{}/later'\n",
        locked.port, elsewhere.port
    );
    fs::write(&list, text).unwrap();
    let pipeline = brisk_pipeline(folder.path(), "0.25");
    let options = ["--pipeline", pipeline.to_str().unwrap(), "--streams", list.to_str().unwrap()];
    let mut watching = Watching::start(&library, &options);
    let reasons = [("locked", "user name or password (401)"), ("elsewhere", "this path (404)")];
    for (name, reason) in reasons {
        let is_told = |line: &Value| {
            line["source"] == name
                && line["reason"].as_str().is_some_and(|said| said.contains(reason))
        };
        watching.seen_or_until(reason, is_told);
    }
    locked.set_login(("viewer", "new"));
    elsewhere.serve_at("/later");
    while reasons.iter().any(|(name, _)| watching.stored(name) < 4) {
        watching.until_stored(1);
    }
    let end = watching.stop();
    for stream in end["streams"].as_array().unwrap() {
        assert_eq!(stream["sessions"], 1, "{stream}");
    }
    for (name, reason) in reasons {
        let spans = check_grid(&library, name);
        assert_eq!(told(&spans, reason), 1, "{spans:?}");
    }
    check(&library).exits(0);
}

#[test]
fn a_run_that_is_killed_before_a_camera_was_reached_takes_no_reason_with_it() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let setup = Setup { login: Some(("viewer", "old")), ..Setup::default() };
    let camera = Camera::start(&small(folder.path()), &setup);
    let list = folder.path().join("cameras.toml");
    let address = format!("rtsp://viewer:new@127.0.0.1:{}/live", camera.port);
    fs::write(&list, format!("[[stream]]\nname = 'door'\naddress = '{address}'\n")).unwrap();
    let pipeline = brisk_pipeline(folder.path(), "0.25");
    let options = ["--pipeline", pipeline.to_str().unwrap(), "--streams", list.to_str().unwrap()];
    let mut watching = Watching::start(&library, &options);
    let refused = "user name or password (401)";
    let is_refused =
        |line: &Value| line["reason"].as_str().is_some_and(|reason| reason.contains(refused));
    watching.until(refused, is_refused);
    // What is not older than ten seconds might still come.
    let unseen = || search(&library, &["anything", "--last", "1h"]).lines("unseen");
    let began = Instant::now();
    while !unseen().iter().any(is_refused) {
        assert!(began.elapsed() < PATIENCE, "{:?}", unseen());
        std::thread::sleep(Duration::from_secs(1));
    }
    watching.child.kill().unwrap();
    watching.child.wait().unwrap();
    check(&library).exits(0);
    assert!(unseen().iter().any(is_refused), "{:?}", unseen());

    camera.set_login(("viewer", "new"));
    let mut watching = Watching::start(&library, &options);
    watching.until_stored(1);
    watching.stop();
    let spans = check_grid(&library, "door");
    let (start_us, end_us, _) = spans[0];
    assert!(end_us - start_us > 4_000_000, "{spans:?}");
    assert_eq!(told(&spans[..1], refused), 1, "{spans:?}");
    assert_eq!((told(&spans, refused), told(&spans, "not watched")), (1, 1), "{spans:?}");
    check(&library).exits(0);
}

#[test]
fn a_run_that_takes_over_stores_the_outage_in_which_the_one_before_was_killed() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let units = small(folder.path());
    let camera = Camera::start(&units, &Setup::default());
    let (address, port) = (camera.address(), camera.port);
    let mut watching = Watching::start(&library, &[&address]);
    watching.until_stored(3);
    drop(camera);
    let lost = watching.until_reason(REFUSED);
    watching.until_noted_as_lost(6);
    watching.child.kill().unwrap();
    watching.child.wait().unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let _camera = Camera::start(&units, &Setup { port: Some(port), ..Setup::default() });
    let pipeline = brisk_pipeline(folder.path(), "0.25");
    let options = ["--pipeline", pipeline.to_str().unwrap(), "--take-over", &address];
    let mut watching = Watching::start(&library, &options);
    watching.until_stored(4);
    watching.stop();
    let spans = check_grid(&library, &address);
    // What the other pipeline has seen before is given up, and no outage.
    let (start_us, end_us, reason) = &spans[0];
    assert!(reason.as_ref().is_some_and(|reason| reason.contains(REFUSED)), "{spans:?}");
    assert_eq!(lost["lost_since_us"], *start_us, "{spans:?}");
    assert!(end_us - start_us > 5_000_000, "{spans:?}");
    assert_eq!((told(&spans, REFUSED), told(&spans, "not watched")), (1, 1), "{spans:?}");
    check(&library).exits(0);
}

#[test]
fn a_camera_that_asks_for_digests_is_watched() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let setup = Setup { login: Some(("viewer", "p@ss")), is_digest: true, ..Setup::default() };
    let camera = Camera::start(&small(folder.path()), &setup);
    let list = folder.path().join("cameras.toml");
    let stream = |name: &str, password: &str| {
        let address = format!("rtsp://viewer:{password}@127.0.0.1:{}/live", camera.port);
        format!("[[stream]]\nname = '{name}'\naddress = '{address}'\n")
    };
    let over_udp = stream("over udp", "p%40ss") + "transport = 'udp'\n";
    let streams = [stream("right", "p%40ss"), stream("wrong", "pass"), over_udp];
    fs::write(&list, streams.concat()).unwrap();
    let mut watching = Watching::start(&library, &["--streams", list.to_str().unwrap()]);
    while ["right", "over udp"].iter().any(|name| watching.stored(name) < 1) {
        watching.until_stored(1);
    }
    check_clock(watching.seen.last().unwrap());
    let is_refused = |line: &Value| {
        let reason = line["reason"].as_str().unwrap_or_default();
        line["source"] == "wrong" && reason.contains("user name or password (401)")
    };
    watching.seen_or_until("the refusal", is_refused);
    let end = watching.stop();
    for stream in end["streams"].as_array().unwrap() {
        let is_right = stream["source"] != "wrong";
        assert_eq!(stream["sessions"], u64::from(is_right), "{stream}");
    }
    check_grid(&library, "right");
    check(&library).exits(0);
}

/// Segments of a broadcast, how long each is, and how many of them there are at a time.
const SEGMENTS: usize = 40;
const SEGMENT_SECS: usize = 3;
const IN_LIST: usize = 4;
/// `viewer:s3cr3t`.
const LOGIN_BASE64: &str = "dmlld2VyOnMzY3IzdA==";

fn send_part(folder: &Path, request: &Request, connection: &mut TcpStream) {
    match fs::read(folder.join(request.path.trim_start_matches('/'))) {
        Ok(bytes) => {
            let length = bytes.len();
            let head = format!("200 OK\r\nContent-Type: video/mp2t\r\nContent-Length: {length}");
            send(connection, &head, &bytes);
        }
        Err(_) => send(connection, "404 Not Found", b""),
    }
}

#[test]
fn a_broadcast_by_http_whose_list_grows_is_watched_as_it_comes() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("broadcasts.library");
    ffmpeg(
        folder.path(),
        &format!(
            "-f lavfi -i testsrc2=s=160x96:r=25:d={} -c:v libx264 -preset ultrafast -g 25 \
             -pix_fmt yuv420p -f hls -hls_time {SEGMENT_SECS} -hls_list_size 0 \
             -hls_segment_filename %d.ts all.m3u8",
            SEGMENTS * SEGMENT_SECS
        ),
    );
    let (path, began) = (folder.path().to_owned(), Instant::now());
    // Every other part lies with somebody else, who wants no password.
    let parts = path.clone();
    let other = Server::start(move |request, connection| send_part(&parts, request, connection));
    let elsewhere = other.url("");
    let server = Server::start(move |request, connection| {
        let name = request.path.trim_start_matches('/');
        if !request.authorization.as_ref().is_some_and(|said| said.contains(LOGIN_BASE64)) {
            let head = "401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"broadcasts\"\r\n\
                        Content-Length: 0";
            send(connection, head, b"");
        } else if name == "live.m3u8" {
            let first = (began.elapsed().as_secs() as usize / SEGMENT_SECS).min(SEGMENTS - IN_LIST);
            let list: String = (first..first + IN_LIST)
                .map(|n| {
                    let place = if n % 2 == 0 { "" } else { &elsewhere };
                    format!("#EXTINF:3.0,\n{place}{n}.ts\n")
                })
                .collect();
            let head = "200 OK\r\nContent-Type: application/vnd.apple.mpegurl";
            let list = format!(
                "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:3\n\
                 #EXT-X-MEDIA-SEQUENCE:{first}\n{list}"
            );
            send(connection, head, list.as_bytes());
        } else {
            send_part(&path, request, connection);
        }
    });
    let address = server.url("live.m3u8");
    let with_login = address.replace("://", "://viewer:s3cr3t@");
    let pipeline = brisk_pipeline(folder.path(), "0.25");
    let options = ["--pipeline", pipeline.to_str().unwrap(), "--as-live", &with_login];
    let mut watching = Watching::start(&library, &options);
    for _ in 0..36 {
        watching.until_stored(1);
        check_clock(watching.seen.last().unwrap());
    }
    // Taken for a film, it is refused with what to do.
    let refused = index(&folder.path().join("films.library"), &[Path::new(&with_login)]);
    let is_told = format!("{refused:?}").contains("--as-live");
    assert!(refused.code != 0 && is_told, "{refused:?}");
    let mut said = format!("{:?}", watching.seen).into_bytes();
    for file in files_under(&library) {
        said.extend(fs::read(file).unwrap());
    }
    assert!(holds(&said, &address) && !holds(&said, "s3cr3t"));
    let told = other.asked();
    assert!(told.len() > 1, "{told:?}");
    for secret in ["s3cr3t", LOGIN_BASE64] {
        assert!(!format!("{told:?}").contains(secret), "{told:?}");
    }
    let end = watching.stop();
    let stream = &end["streams"][0];
    assert_eq!(stream["sessions"], 1, "{stream}");
    assert_eq!(stream["undecodable"], 0, "{stream}");
    // It is played at its own pace: nothing is missing from the first clip on that was not dropped.
    let spans = check_grid(&library, &address);
    let mut gaps =
        spans.iter().skip_while(|span| span.2.is_some()).filter_map(|span| span.2.as_ref());
    assert!(gaps.all(|why| is_busy(why)), "{spans:?}");
    check(&library).exits(0);
}

#[test]
fn lists_and_keys_of_a_broadcast_that_lie_elsewhere_learn_no_password() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("broadcasts.library");
    fs::write(folder.path().join("key"), [7; 16]).unwrap();
    fs::write(folder.path().join("keys"), "key\nkey\n").unwrap();
    ffmpeg(
        folder.path(),
        "-f lavfi -i testsrc2=s=160x96:r=25:d=12 -c:v libx264 -preset ultrafast -g 25 -pix_fmt yuv420p \
         -f hls -hls_time 3 -hls_list_size 0 -hls_key_info_file keys -hls_segment_filename %d.ts all.m3u8",
    );
    // The list of one quality lies with somebody else, and so does all that is beside it.
    let path = folder.path().to_owned();
    let other = Server::start(move |request, connection| send_part(&path, request, connection));
    let elsewhere = other.url("all.m3u8");
    let server = Server::start(move |request, connection| {
        if !request.authorization.as_ref().is_some_and(|said| said.contains(LOGIN_BASE64)) {
            let head = "401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"broadcasts\"\r\n\
                        Content-Length: 0";
            send(connection, head, b"");
        } else {
            let list = format!("#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=100000\n{elsewhere}\n");
            let head = "200 OK\r\nContent-Type: application/vnd.apple.mpegurl";
            send(connection, head, list.as_bytes());
        }
    });
    let address = server.url("live.m3u8").replace("://", "://viewer:s3cr3t@");
    let pipeline = brisk_pipeline(folder.path(), "0.25");
    let options = ["--pipeline", pipeline.to_str().unwrap(), "--as-live", &address];
    let mut watching = Watching::start(&library, &options);
    watching.until_stored(4);
    watching.stop();
    let told = other.asked();
    for path in ["/all.m3u8", "/key", "/0.ts"] {
        assert!(told.iter().any(|request| request.path == path), "{path}: {told:?}");
    }
    for secret in ["s3cr3t", LOGIN_BASE64] {
        assert!(!format!("{told:?}").contains(secret), "{told:?}");
    }
}

#[test]
fn parts_of_a_broadcast_that_are_of_one_file_are_asked_for_by_their_ranges() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("broadcasts.library");
    ffmpeg(
        folder.path(),
        "-f lavfi -i testsrc2=s=160x96:r=25:d=12 -c:v libx264 -preset ultrafast -g 25 -pix_fmt yuv420p \
         -f hls -hls_time 3 -hls_list_size 0 -hls_flags single_file -hls_segment_filename all.ts all.m3u8",
    );
    let path = folder.path().to_owned();
    let server = Server::start(move |request, connection| {
        let bytes = fs::read(path.join(request.path.trim_start_matches('/'))).unwrap();
        match range(request) {
            Some((start, end)) => {
                let part = &bytes[start..=end];
                let (length, all) = (part.len(), bytes.len());
                let head = format!(
                    "206 Partial Content\r\nAccept-Ranges: bytes\r\nContent-Length: {length}\r\n\
                     Content-Range: bytes {start}-{end}/{all}"
                );
                send(connection, &head, part);
            }
            None => send(connection, &format!("200 OK\r\nContent-Length: {}", bytes.len()), &bytes),
        }
    });
    let address = server.url("all.m3u8");
    let pipeline = brisk_pipeline(folder.path(), "0.25");
    let options = ["--pipeline", pipeline.to_str().unwrap(), "--as-live", &address];
    let mut watching = Watching::start(&library, &options);
    let played = watching.until_state("waiting");
    watching.stop();
    let parts: Vec<_> = server.asked().iter().filter_map(range).collect();
    assert!(parts.len() >= 4, "{:?}", server.asked());
    for pair in parts[..4].windows(2) {
        assert_eq!(pair[0].1 + 1, pair[1].0, "{parts:?}");
    }
    // Each frame once.
    assert_eq!(played["received"], 300, "{played}");
}

/// The first and the last byte that are asked for, where not all are.
fn range(request: &Request) -> Option<(usize, usize)> {
    let line = request.head.iter().find_map(|line| line.strip_prefix("Range: bytes="))?;
    let (start, end) = line.split_once('-')?;
    Some((start.parse().ok()?, end.parse().ok()?))
}

/// What lets a program see another time than there is.
pub fn faketime() -> Option<PathBuf> {
    let folders = fs::read_dir("/usr/lib").ok()?;
    let found = folders.map(|folder| folder.unwrap().path().join("faketime/libfaketimeMT.so.1"));
    found.into_iter().find(|file| file.exists())
}

/// Sets the clock of the programs that read this file.
pub fn set_clock(file: &Path, ahead: &str) {
    let new = file.with_extension("new");
    fs::write(&new, format!("{ahead}\n")).unwrap();
    fs::rename(new, file).unwrap();
}

#[test]
fn a_clock_that_is_set_while_a_camera_is_watched_doubles_nothing_and_is_told() {
    const HOUR_US: i64 = 3_600_000_000;
    let Some(faketime) = faketime() else {
        eprintln!("skipped: the package faketime is not installed");
        return;
    };
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let clock = folder.path().join("clock");
    set_clock(&clock, "+0");
    let mut camera = Camera::start(&small(folder.path()), &Setup::default());
    let (address, port) = (camera.address(), camera.port);
    let watch = || {
        let mut command = command(["index", "--json", "--longest-pause", "1", "--library"]);
        command.arg(&library).arg(&address).env("LD_PRELOAD", &faketime);
        command.env("FAKETIME_TIMESTAMP_FILE", &clock).env("FAKETIME_NO_CACHE", "1");
        Watching::run(command.env("DONT_FAKE_MONOTONIC", "1"))
    };
    let mut watching = watch();
    watching.until_stored(2);
    check_clock(watching.seen.last().unwrap());

    set_clock(&clock, "+3600");
    let lost = watching.until_state("waiting");
    assert_eq!(
        lost["reason"], "stream lost: the machine's clock was set forward, or it was asleep",
        "{lost}"
    );
    let is_ahead = |line: &Value| {
        let ahead = line["start_us"].as_i64().unwrap_or(0) - now_us();
        line["kind"] == "stored" && (HOUR_US - 15_000_000..HOUR_US + 1_000_000).contains(&ahead)
    };
    watching.until("a clip of the new time", is_ahead);
    watching.until_stored(1);

    set_clock(&clock, "+0");
    for _ in 0..3 {
        watching.until("a clip of the time that goes on", is_ahead);
    }
    // So do the next connection and the next run.
    drop(camera);
    watching.until_state("waiting");
    camera = Camera::start(&small(folder.path()), &Setup { port: Some(port), ..Setup::default() });
    watching.until_state("live");
    watching.until("a clip of the next connection", is_ahead);
    let end = watching.stop();
    assert!(end["streams"][0]["sessions"].as_u64() >= Some(3), "{end}");
    let mut watching = watch();
    watching.until("a clip of the next run", is_ahead);
    watching.stop();
    drop(camera);

    let spans = check_grid(&library, &address);
    let hours: Vec<_> = spans.iter().filter(|span| span.1 - span.0 > HOUR_US / 2).collect();
    assert_eq!(hours.len(), 1, "{spans:?}");
    let (start, end_us, reason) = hours[0];
    assert!((HOUR_US - 10_000_000..HOUR_US + 15_000_000).contains(&(end_us - start)), "{spans:?}");
    assert!(reason.as_ref().unwrap().contains("the machine's clock was set forward"), "{spans:?}");
    check(&library).exits(0);
}

/// How long it is waited for the next attempt, once the stream is lost.
fn pause_secs(watching: &mut Watching) -> f64 {
    watching.until_state("waiting")["retry_secs"].as_f64().unwrap()
}

#[test]
fn pauses_grow_with_failures_until_a_stream_was_healthy() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let units = small(folder.path());
    let mut camera = Camera::start(&units, &Setup::default());
    let (address, port) = (camera.address(), camera.port);
    drop(camera);
    let mut command = command(["index", "--json", "--silence", "11", "--library"]);
    let mut watching = Watching::run(command.arg(&library).arg(&address));
    for most in [0.5, 1.0, 2.0] {
        let pause = pause_secs(&mut watching);
        assert!((most / 2.0..=most).contains(&pause), "{pause} of {most}");
    }
    camera = Camera::start(&units, &Setup { port: Some(port), ..Setup::default() });
    watching.until_state("live");
    // It lasts for longer than a healthy one, and is not.
    camera.stall();
    // One more attempt may have been made before the camera was there.
    let is_lost = |line: &&Value| line["kind"] == "stream" && line["state"] == "waiting";
    let attempts: BTreeSet<i64> = watching
        .seen
        .iter()
        .filter(is_lost)
        .map(|line| line["since_us"].as_i64().unwrap())
        .collect();
    let most = 0.5 * f64::from(1 << attempts.len());
    let pause = pause_secs(&mut watching);
    assert!((most / 2.0..=most).contains(&pause), "{pause} of {most}");
    camera.conduct.is_stalled.store(false, Ordering::SeqCst);
    watching.until_state("live");
    // More than ten seconds of frames.
    watching.until_stored(9);
    drop(camera);
    let pause = pause_secs(&mut watching);
    assert!(pause <= 0.5, "{pause}");
    watching.stop();
    check(&library).exits(0);
}

#[test]
fn a_name_that_becomes_known_is_one_more_attempt_away() {
    let folder = TempDir::new().unwrap();
    let camera = Camera::start(&small(folder.path()), &Setup::default());
    let address = format!("rtsp://camera.invalid:{}/live", camera.port);
    // Names of this one's own.
    let script = r#"
        cinelex=$1 folder=$2 address=$3 out=$2/out err=$2/err
        said() {
            for _ in $(seq 600); do grep -q "$1" "$out" && return; sleep 0.1; done
            echo "no $1"; cat "$out" "$err"; exit 8
        }
        cp /etc/hosts "$folder/hosts" && mount --bind "$folder/hosts" /etc/hosts || exit 7
        "$cinelex" index "$address" --library "$folder/lib" --longest-pause 1 --json >"$out" 2>"$err" &
        watcher=$!
        said "the name of the camera's address is not known"
        echo "127.0.0.1 camera.invalid" >>"$folder/hosts"
        said '"state":"live"'
        said '"kind":"stored"'
        sleep 3
        kill -INT $watcher
        wait $watcher || { echo "ended with $?"; cat "$err"; exit 8; }
        cat "$out"
    "#;
    let Some(ran) = with_own_mounts(script, &[folder.path(), Path::new(&address)]) else {
        eprintln!("skipped: mounting is not permitted here");
        return;
    };
    let end = ran.exits(0).line("live_run");
    check_accounts(&end["streams"][0]);
    assert_eq!(end["streams"][0]["sessions"], 1, "{end}");
    let library = folder.path().join("lib");
    let spans = check_grid(&library, &address);
    assert!(spans[0].2.is_some() && spans[1..].iter().all(|span| span.2.is_none()), "{spans:?}");
    assert_eq!(told(&spans[..1], "the name of the camera's address is not known"), 1, "{spans:?}");
    check(&library).exits(0);
}

#[test]
fn what_was_not_seen_is_said_in_the_viewers_time() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let units = small(folder.path());
    let camera = Camera::start(&units, &Setup::default());
    let (address, port) = (camera.address(), camera.port);
    let mut watching = Watching::start(&library, &[&address]);
    watching.until_stored(1);
    drop(camera);
    watching.until_reason(REFUSED);
    std::thread::sleep(Duration::from_millis(2_400));
    let camera = Camera::start(&units, &Setup { port: Some(port), ..Setup::default() });
    watching.until_state("live");
    watching.until_stored(1);
    watching.stop();
    drop(camera);

    let is_it = |unseen: &&Value| unseen["reason"].as_str().unwrap().contains("connection refused");
    let found = search(&library, &["a test picture", "--last", "15m"]).exits(0);
    let lines = found.lines("unseen");
    let [unseen] = lines.iter().filter(is_it).collect::<Vec<_>>()[..] else { panic!("{found:?}") };
    let from = jiff::Timestamp::from_microsecond(unseen["from_us"].as_i64().unwrap()).unwrap();
    for (zone, offset) in [("UTC0", jiff::tz::offset(0)), ("<+09>-9", jiff::tz::offset(9))] {
        let seen = |options: &[&str]| {
            let mut command = command(["search"]);
            finish(command.arg(&library).arg("a test picture").args(options).env("TZ", zone))
                .exits(0)
        };
        let lately = seen(&["--last", "15m"]);
        let there =
            from.to_zoned_datetime(jiff::tz::TimeZone::fixed(offset)).strftime("%F %H:%M:%S");
        let said = lately.out.lines().find(|line| line.starts_with(&format!("no video {there}-")));
        assert!(said.is_some_and(|said| said.contains(&address)), "{there}: {lately:?}");
        assert!(said.is_some_and(|said| said.contains("connection refused")), "{lately:?}");
        let since_yesterday = seen(&["--from", "yesterday 10:00"]);
        assert!(since_yesterday.out.contains("  1. "), "{since_yesterday:?}");
    }
}
