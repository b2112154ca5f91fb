//! Live streams over SRT: senders that die and come back, and passphrases.

use std::io::Read;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command};

use tempfile::TempDir;

use crate::cinelex::show;
use crate::live::{Watching, check, check_accounts, check_grid, holds, told};
use crate::stopping::hosts_of;
use crate::tidy::files_under;

const PASSPHRASE: &str = "correct-horse-7";

/// An encrypted sender, until this is dropped.
struct Sender(Child);

impl Sender {
    fn start(address: &str) -> Sender {
        let mut ffmpeg = Command::new("ffmpeg");
        let coded = "-v quiet -nostdin -re -f lavfi -i testsrc2=s=160x96:r=25 -c:v libx264 -preset ultrafast -g 25 \
                     -pix_fmt yuv420p -f mpegts";
        ffmpeg.args(coded.split_whitespace());
        ffmpeg.arg(format!("{address}?mode=listener&passphrase={PASSPHRASE}"));
        Sender(ffmpeg.spawn().unwrap())
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Watches the sender, named `ferry`, with this passphrase.
fn watch(folder: &Path, address: &str, passphrase: &str) -> Watching {
    let list = folder.join("broadcasts.toml");
    let stream = format!("[[stream]]\nname = 'ferry'\naddress = '{address}'\n");
    std::fs::write(&list, format!("{stream}password_file = 'passphrase'\n")).unwrap();
    std::fs::write(folder.join("passphrase"), passphrase).unwrap();
    let library = folder.join("broadcasts.library");
    Watching::start(&library, &["--streams", list.to_str().unwrap()])
}

#[test]
fn a_sender_that_dies_is_received_again_and_a_wrong_passphrase_is_told() {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("broadcasts.library");
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("srt://127.0.0.1:{port}");
    let sender = Sender::start(&address);
    let mut watching = watch(folder.path(), &address, "wrong-horse-77");
    let waiting = watching.until_state("waiting");
    assert!(waiting["reason"].as_str().unwrap().contains("the passphrase"), "{waiting}");
    watching.stop();

    let mut watching = watch(folder.path(), &address, PASSPHRASE);
    watching.until_stored(1);
    for host in hosts_of(watching.child.id()) {
        for file in ["cmdline", "environ"] {
            let bytes = std::fs::read(format!("/proc/{host}/{file}")).unwrap();
            assert!(!holds(&bytes, PASSPHRASE), "{file}");
        }
    }
    drop(sender);
    watching.until_state("waiting");
    let _sender = Sender::start(&address);
    watching.until_state("live");
    watching.until_stored(2);
    let mut errors = watching.child.stderr.take().unwrap();
    watching.interrupt();
    let end = watching.until("the end", |line| line["kind"] == "live_run");
    let stream = &end["streams"][0];
    check_accounts(stream);
    assert_eq!(stream["sessions"], 2, "{stream}");
    let spans = check_grid(&library, "ferry");
    assert_eq!(told(&spans, "stream lost"), 1, "{spans:?}");
    check(&library).exits(0);

    let mut said = Vec::new();
    errors.read_to_end(&mut said).unwrap();
    said.extend(format!("{:?}", watching.seen).into_bytes());
    for file in files_under(&library) {
        said.extend(std::fs::read(file).unwrap());
    }
    said.extend(format!("{:?}", show(&library, "ferry").exits(0)).into_bytes());
    assert!(!holds(&said, PASSPHRASE) && !holds(&said, "wrong-horse") && holds(&said, "ferry"));
}
