//! Commit points: the places between two durable steps, by name, where tests kill the process to see
//! that nothing is lost, or stop it to do something else meanwhile.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::{Signal, getpid, kill_process};

/// Each names a commit point, or `NAME:N` for its N-th time, and what the process is to send itself there. One that
/// is stopped goes on when somebody sends `CONT`.
const VARIABLES: [(&str, Signal); 2] =
    [("CINELEX_DIE_AT", Signal::KILL), ("CINELEX_STOP_AT", Signal::STOP)];

/// Where something is to happen to the process.
struct Wanted {
    name: String,
    times: u64,
    signal: Signal,
}

impl Wanted {
    fn of((variable, signal): (&str, Signal)) -> Option<Wanted> {
        let wanted = std::env::var(variable).ok()?;
        let (name, times) = wanted.split_once(':').unwrap_or((&wanted, "1"));
        Some(Wanted { name: name.to_owned(), times: times.parse().ok()?, signal })
    }
}

/// Every commit point. What its name says is durable when it is reached.
pub const COMMIT_POINTS: &[&str] = &[
    // The first of the two files of a new library is there.
    "features-made",
    "library-made",
    "source-added",
    "recipe-added",
    "tags-set",
    "cues-committed",
    // What was heard up to a pause is there.
    "heard-committed",
    // A chunk's features are committed, and its clips are not.
    "features-synced",
    "chunk-committed",
    "source-finished",
    "segments-committed",
    "growth-noted",
    // What the file was when it was shorter is forgotten.
    "growth-forgotten",
    "growth-settled",
    "recipe-activated",
    // Some of a retired recipe's rows are deleted.
    "recipe-sweeping",
    "recipe-swept",
    "run-recorded",
    // How live streams are is noted.
    "watch-noted",
    // A minute of a live stream as it was received is there.
    "recording-synced",
    // The features' file has room for thumbnails, and the record is of an older schema.
    "migrate-thumbnails",
    // The tables of a newer schema are filled, and not committed.
    "migrate-copied",
    "migrate-committed",
    // A new record holds every row that can be read of a damaged one.
    "rebuild-record-saved",
    // Counts and states in it say what is there.
    "rebuild-settled",
    // A new file is whole; from here on it takes the damaged one's place, whatever happens.
    "rebuild-ready",
    "rebuild-log-kept",
    "rebuild-kept",
    "rebuild-swapped",
    "rebuild-mended",
    "compact-words-joined",
    "compact-given-back",
    // What is no longer kept of a live source is out of the record, and its features are not gone.
    "keep-rows-deleted",
    "keep-features-deleted",
    "keep-given-back",
    "forget-rows-deleted",
    "forget-features-deleted",
    "forget-log-emptied",
    "forget-finished",
];

/// Says that what `point` names is durable. Where the environment names this point, the process
/// ends here as if it had been killed, or stands still.
pub(super) fn reached(point: &'static str) {
    static WANTED: OnceLock<Option<Wanted>> = OnceLock::new();
    static TIMES: AtomicU64 = AtomicU64::new(0);
    debug_assert!(COMMIT_POINTS.contains(&point), "{point} is not listed");
    let wanted = WANTED.get_or_init(|| VARIABLES.into_iter().find_map(Wanted::of));
    if let Some(Wanted { name, times, signal }) = wanted
        && name == point
        && TIMES.fetch_add(1, Ordering::Relaxed) + 1 == *times
    {
        let sent = kill_process(getpid(), *signal);
        if *signal == Signal::STOP && sent.is_ok() {
            // Until the last thread stands still.
            std::thread::sleep(Duration::from_secs(1));
            return;
        }
        // Never comes here; where the system refuses the signal, the process ends all the same.
        std::process::abort();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    #[test]
    fn each_commit_point_is_reached_somewhere_and_each_that_is_reached_is_listed() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/library");
        let mut reached = BTreeSet::new();
        let mut folders = vec![folder];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let text = std::fs::read_to_string(path).unwrap();
                let calls = text.split("commit_point::reached(\"").skip(1);
                reached.extend(calls.filter_map(|call| Some(call.split_once('"')?.0.to_owned())));
            }
        }
        let listed: BTreeSet<String> = COMMIT_POINTS.iter().map(|&name| name.to_owned()).collect();
        assert_eq!(listed.len(), COMMIT_POINTS.len());
        // The text of this test is not a call.
        reached.retain(|name| name.chars().all(|c| c.is_ascii_lowercase() || c == '-'));
        reached.remove("");
        assert_eq!(reached, listed);
    }
}
