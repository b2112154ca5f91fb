//! What is said of live streams without `--json`, against a real server on this machine.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::camera::{Camera, Setup};
use crate::cinelex::{Ran, command, finish, run, search, show};
use crate::live::{PATIENCE, Watching, check, small};

/// A list of streams by name and address.
fn list(folder: &Path, streams: &[(&str, &str)]) -> String {
    let text: String = streams
        .iter()
        .map(|(name, address)| format!("[[stream]]\nname = '{name}'\naddress = '{address}'\n"))
        .collect();
    let file = folder.join("cameras.toml");
    std::fs::write(&file, text).unwrap();
    file.into_os_string().into_string().unwrap()
}

/// Watches until each of these has a clip from now on.
fn watch(library: &Path, folder: &Path, streams: &[(&str, &str)]) -> Watching {
    let mut watching = Watching::start(library, &["--streams", &list(folder, streams)]);
    for (name, _) in streams {
        let is_its = |line: &Value| line["kind"] == "stored" && line["source"] == *name;
        watching.seen_or_until(name, is_its);
    }
    watching
}

/// The line of a stream in `library info`, and how it is.
fn listed(info: &str, name: &str) -> (String, String) {
    let mut lines = info.lines().skip_while(|line| !line.ends_with(&format!("  {name}")));
    let line = lines.next().unwrap_or_else(|| panic!("{name} in {info}"));
    (line.to_owned(), lines.next().unwrap_or_default().trim().to_owned())
}

fn gone(shown: &Ran) -> bool {
    shown.line("source")["gone"].as_bool().unwrap()
}

#[test]
fn a_stream_that_has_another_address_or_shares_its_own_is_told_by_its_name() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("cameras.library");
    let units = small(folder.path());
    let cameras = [(); 3].map(|()| Camera::start(&units, &Setup::default()));
    let [a, b, c] = cameras.each_ref().map(Camera::address);
    watch(&library, folder.path(), &[("door", &a), ("yard", &b), ("shed", &c)]).stop();
    // The yard's address is the door's now, the door's has two names, and the shed's another.
    let streams: [(&str, &str); 4] = [("door", &b), ("gate", &a), ("porch", &a), ("barn", &c)];
    let watching = watch(&library, folder.path(), &streams);
    let text = |words: &[&str], rest: &[&str]| {
        finish(command(words).arg(&library).args(rest)).exits(0).out
    };
    // A change is noted within a second.
    let began = Instant::now();
    let info = loop {
        let info = text(&["library", "info"], &[]);
        let is_live = |(name, _): &(&str, &str)| {
            let (line, state) = listed(&info, name);
            line.contains("  live  ") && state.starts_with("live since 2")
        };
        if streams.iter().all(is_live) {
            break info;
        }
        assert!(began.elapsed() < PATIENCE, "{info}");
        std::thread::sleep(Duration::from_millis(200));
    };
    for (name, _) in streams {
        let shown = text(&["library", "show"], &[name]);
        assert!(shown.contains("live since 2") && shown.contains(" 1 connection"), "{shown}");
        assert!(!shown.contains("gone"), "{shown}");
    }
    for name in ["yard", "shed"] {
        let (line, state) = listed(&info, name);
        assert!(line.contains("  ended  "), "{name}: {info}");
        assert!(state.starts_with("not watched since 2"), "{name}: {info}");
        let shown = text(&["library", "show"], &[name]);
        assert!(shown.contains("not watched since 2") && !shown.contains("gone"), "{shown}");
    }
    let shown = text(&["library", "show"], &["door"]);
    let [now, before] = [&b, &a].map(|address| shown.find(&format!("at        {address}")));
    assert!(now.is_some() && before.is_none(), "{shown}");
    let query = ["a test picture", "--channel", "picture", "--top", "200"];
    let found = text(&["search"], &query);
    let hits = search(&library, &query).exits(0).lines("hit");
    for name in ["door", "yard", "shed", "gate", "porch", "barn"] {
        assert!(hits.iter().any(|hit| hit["name"] == name), "{name}: {hits:?}");
        assert!(found.contains(&format!("  {name}  (picture)")), "{name}: {found}");
        assert!(!gone(&show(&library, name).exits(0)), "{name}");
    }
    assert!(!found.contains("rtsp://") && !found.contains("gone"), "{found}");
    watching.stop();
    // Back as they were: each goes on with what it has.
    watch(&library, folder.path(), &[("door", &a), ("yard", &b)]).stop();
    let info = text(&["library", "info"], &[]);
    assert!(info.contains("sources   6") && !info.contains("gone"), "{info}");
    check(&library).exits(0);
}

#[test]
fn an_end_that_is_not_after_the_beginning_is_refused_in_the_viewers_time() {
    let asked = |from: &str, to: &str| {
        let mut command = command(["search", "no.library", "dog", "--from", from, "--to", to]);
        finish(command.env("TZ", "Europe/Berlin"))
    };
    for (from, to) in [
        ("2026-07-01T10:00:00Z", "2026-07-01T09:00:00Z"),
        ("2026-07-01T10:00:00Z", "2026-07-01T10:00:00Z"),
        ("2026-07-01 12:00", "2026-07-01 11:00"),
    ] {
        let refused = asked(from, to).exits(2);
        assert!(refused.err.contains("--from (2026-07-01 12:00:00)"), "{}", refused.err);
        assert!(refused.err.contains("is not before --to (2026-07-01 1"), "{}", refused.err);
    }
    let refused = run(["search", "no.library", "dog", "--from", "23:00", "--to", "01:00"]).exits(2);
    assert!(refused.err.contains("yesterday 23:00"), "{}", refused.err);
    // The library is looked for then.
    asked("2026-07-01T09:00:00Z", "2026-07-01T10:00:00Z").exits(3);
}
