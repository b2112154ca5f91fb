//! One decoder host as a child process: started, watched, ended.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::protocol::{Request, pack};
use crate::error::{Error, Kind, Result};

/// The hidden subcommand that makes this executable a decoder host.
pub(super) const SUBCOMMAND: &str = "decoder-host";
/// How often the memory and the patience of a silent host are looked at.
const TICK: Duration = Duration::from_millis(200);
/// How long a live stream may take to stop. What it has in hand is lost then; a machine that is busy lets it wait for
/// seconds.
const STOPPING: Duration = Duration::from_secs(5);
/// One that still has something to say, or seems to.
const LONGEST_STOPPING: Duration = Duration::from_secs(10);
/// Log lines of the host that are kept for its error message.
const LOG_LINES: usize = 8;
const LOG_LINE_BYTES: u64 = 512;
/// Variables that the host gets: the loader's, which hardware is to decode, and what FFmpeg needs to fetch
/// an address.
const ENVIRONMENT: [&str; 11] = [
    "LD_LIBRARY_PATH",
    "CUDA_DEVICE_ORDER",
    "CUDA_VISIBLE_DEVICES",
    "LIBVA_DRIVER_NAME",
    "LIBVA_DRIVERS_PATH",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "LLVM_PROFILE_FILE",
];

/// What GStreamer, GLib and drivers must not do in a host, which may write no file: keep a list of all plugins
/// (a host loads those that it needs), make code at run time, open the desktop's settings, and cache.
const CONDUCT: [(&str, &str); 7] = [
    ("GST_REGISTRY_DISABLE", "yes"),
    ("ORC_CODE", "backup"),
    ("GSETTINGS_BACKEND", "memory"),
    ("GIO_USE_PROXY_RESOLVER", "dummy"),
    ("GIO_USE_VFS", "local"),
    ("CUDA_CACHE_DISABLE", "1"),
    ("MESA_SHADER_CACHE_DISABLE", "true"),
];

/// What a host may use before it is ended.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Memory of one host; beyond it the request fails with `Exhausted`.
    pub memory_bytes: u64,
    /// How long a request may go on without a message while the parent waits for one.
    pub silence: Duration,
    /// Sources that one host reads before it is replaced.
    pub sources: u32,
    /// The executable to start; `None`: the running one.
    pub executable: Option<PathBuf>,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            memory_bytes: 1536 << 20,
            silence: Duration::from_secs(30),
            sources: 200,
            executable: None,
        }
    }
}

/// How long a host may be silent, and what that means.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    pub silence: Duration,
    /// The host waits for a camera, and is silent when that is.
    pub is_live: bool,
}

impl Patience {
    fn over(self) -> Error {
        let secs = self.silence.as_secs_f32();
        if self.is_live {
            Error::unavailable(format!("no frame came for {secs} s"))
        } else {
            Error::exhausted(format!("the decoder made no progress for {secs} s"))
        }
    }
}

/// A running host. Dropping it kills it.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    stream: BufReader<Watched>,
    log: Arc<Mutex<VecDeque<String>>>,
    log_reader: Option<JoinHandle<()>>,
}

impl Process {
    pub fn start(limits: &Limits, stop: &Arc<AtomicBool>) -> Result<Process> {
        let cannot =
            |cause: io::Error| Error::internal("cannot start the decoder host").caused_by(cause);
        let executable = match &limits.executable {
            Some(executable) => executable.clone(),
            None => std::env::current_exe().map_err(cannot)?,
        };
        let (ours, theirs) = UnixStream::pair().map_err(cannot)?;
        let mut child = Command::new(executable)
            .arg(SUBCOMMAND)
            .env_clear()
            .envs(CONDUCT)
            .envs(ENVIRONMENT.iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
            .current_dir("/")
            // Ctrl-C at a terminal goes to the whole group: the run is to end, and then its hosts,
            // not they before it as if they had crashed.
            .process_group(0)
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(cannot)?;
        let log = Arc::new(Mutex::new(VecDeque::new()));
        let log_reader = child.stderr.take().map(|stderr| {
            let log = Arc::clone(&log);
            std::thread::spawn(move || keep_last_lines(stderr, &log))
        });
        let watched = Watched {
            status: format!("/proc/{}/status", child.id()),
            stream: ours,
            memory_bytes: limits.memory_bytes,
            patience: Patience { silence: limits.silence, is_live: false },
            stop: Arc::clone(stop),
            asked: None,
        };
        // Room for a rendition of 224 px, so that a frame comes in one or two reads.
        let stream = BufReader::with_capacity(256 << 10, watched);
        let mut process = Process { child, stream, log, log_reader };
        // One that has died by now takes no request either, and is replaced then: no reason to end a run.
        let _ = process.send(&Request::Limit { memory_bytes: limits.memory_bytes }, &[]);
        Ok(process)
    }

    /// Sends a request; descriptors travel with its first byte.
    pub fn send(&mut self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> Result<()> {
        let packet = pack(request, &[])
            .map_err(|cause| Error::internal("cannot ask the decoder host").caused_by(cause))?;
        let sent = send_with_descriptors(&self.stream.get_ref().stream, &packet, descriptors);
        sent.map_err(|cause| self.explain(cause))
    }

    pub fn stream(&mut self) -> &mut impl Read {
        &mut self.stream
    }

    /// Ends the host and says why a read or write failed.
    pub fn explain(&mut self, cause: io::Error) -> Error {
        // A limit says so itself.
        let cause = match cause.downcast::<Error>() {
            Ok(error) => return error,
            Err(cause) => cause,
        };
        if cause.kind() == io::ErrorKind::InvalidData {
            return Error::corrupt("the decoder host sent what is not in its protocol")
                .caused_by(cause);
        }
        // The socket is closed, so the process is ending; it gets the time to do so by itself, on a busy machine, too.
        let patience = Instant::now() + Duration::from_secs(10);
        let status = loop {
            match self.child.try_wait() {
                Ok(Some(status)) => break Some(status),
                Ok(None) if Instant::now() < patience => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                _ => break None,
            }
        };
        self.end();
        let log = self.log_lines();
        let (kind, what) = match status.and_then(|status| status.signal()) {
            // Rust's and FFmpeg's way to give up when the limit refuses more memory.
            _ if log.iter().any(|line| {
                line.contains("memory allocation of") || line.contains("Cannot allocate memory")
            }) =>
            {
                (Kind::Exhausted, "the decoder ran out of the memory it may use".to_owned())
            }
            Some(signal) => {
                (Kind::Corrupt, format!("the decoder crashed ({})", signal_name(signal)))
            }
            None => match status.and_then(|status| status.code()) {
                Some(code) => (Kind::Internal, format!("the decoder host ended with code {code}")),
                None => (Kind::Internal, "the decoder host stopped answering".to_owned()),
            },
        };
        Error::new(kind, with_log(what, &log))
    }

    pub fn log_lines(&self) -> Vec<String> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// How long the host may be silent from now on.
    pub fn be_patient(&mut self, patience: Patience) {
        self.stream.get_mut().patience = patience;
    }

    pub fn clear_log(&self) {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    fn end(&mut self) {
        // Both fail only where the child is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.log_reader.take() {
            let _ = reader.join();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// `what`, and what the decoder's log said last.
pub(super) fn with_log(what: String, log: &[String]) -> String {
    match log.last() {
        Some(line) if !what.contains(line.as_str()) => format!("{what}; its log says: {line}"),
        _ => what,
    }
}

fn signal_name(signal: i32) -> String {
    match signal {
        4 => "illegal instruction".to_owned(),
        6 => "aborted".to_owned(),
        7 => "bus error".to_owned(),
        8 => "arithmetic error".to_owned(),
        9 => "killed".to_owned(),
        11 => "segmentation fault".to_owned(),
        other => format!("signal {other}"),
    }
}

/// FFmpeg's log lines begin with `[name @ 0x55d0c8]`; the address says nothing to anybody.
fn keep_last_lines(stderr: impl Read, log: &Mutex<VecDeque<String>>) {
    let mut stderr = BufReader::new(stderr);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut stderr).take(LOG_LINE_BYTES).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&line);
        let mut text: String = text.trim().chars().filter(|c| !c.is_control()).collect();
        if let (Some(at), Some(end)) = (text.find(" @ 0x"), text.find(']'))
            && at < end
        {
            text.replace_range(at..end, "");
        }
        if text.is_empty() {
            continue;
        }
        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
        if log.len() == LOG_LINES {
            log.pop_front();
        }
        log.push_back(text);
    }
}

fn send_with_descriptors(
    stream: &UnixStream,
    packet: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    let mut sent = sendmsg(stream, &[IoSlice::new(packet)], &mut control, SendFlags::NOSIGNAL)?;
    while sent < packet.len() {
        sent += rustix::net::send(stream, &packet[sent..], SendFlags::NOSIGNAL)?;
    }
    Ok(())
}

/// The parent's end of the socket. A read waits for the host no longer than the limits allow.
#[derive(Debug)]
struct Watched {
    stream: UnixStream,
    /// The kernel's account of the host.
    status: String,
    memory_bytes: u64,
    patience: Patience,
    stop: Arc<AtomicBool>,
    /// When a live stream was asked to stop.
    asked: Option<Instant>,
}

impl Watched {
    /// Asks a live stream to stop, which then tells what it has in hand; whether there is still time
    /// for that.
    fn is_stopping(&mut self) -> io::Result<bool> {
        if !self.patience.is_live {
            return Ok(false);
        }
        let asked = match self.asked {
            Some(asked) => asked,
            None => {
                // One that is gone cannot be told; what it has said is still read.
                let _ = self.stream.write_all(&pack(&Request::Stop, &[])?);
                *self.asked.insert(Instant::now())
            }
        };
        Ok(asked.elapsed() < STOPPING)
    }

    /// Memory of the host's own, without files and libraries that are mapped.
    fn resident_bytes(&self) -> Option<u64> {
        let status = std::fs::read_to_string(&self.status).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
        let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kilobytes << 10)
    }
}

impl Read for Watched {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let began = Instant::now();
        loop {
            // Before anything is read: a live stream may always have something to say.
            let is_to_end = self.stop.load(Ordering::Relaxed) && !self.is_stopping()?;
            if self.asked.is_some_and(|asked| asked.elapsed() > LONGEST_STOPPING) {
                return Err(io::Error::other(Error::cancelled()));
            }
            let patience = if is_to_end { Duration::ZERO } else { TICK };
            let tick =
                rustix::event::Timespec { tv_sec: 0, tv_nsec: i64::from(patience.subsec_nanos()) };
            let mut sockets = [PollFd::from_borrowed_fd(self.stream.as_fd(), PollFlags::IN)];
            match poll(&mut sockets, Some(&tick)) {
                Ok(0) => {}
                Ok(_) => return self.stream.read(buffer),
                Err(rustix::io::Errno::INTR) => {}
                Err(cause) => return Err(cause.into()),
            }
            if is_to_end {
                return Err(io::Error::other(Error::cancelled()));
            }
            if self.resident_bytes().is_some_and(|resident| resident > self.memory_bytes) {
                return Err(io::Error::other(Error::exhausted(format!(
                    "the decoder used more than {} MiB of memory",
                    self.memory_bytes >> 20
                ))));
            }
            if began.elapsed() > self.patience.silence {
                return Err(io::Error::other(self.patience.over()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_host_has_said_before_it_went_is_read_by_those_who_stop() {
        let (stream, mut host) = UnixStream::pair().unwrap();
        host.write_all(b"frame").unwrap();
        drop(host);
        let patience = Patience { silence: Duration::from_secs(30), is_live: true };
        let (status, stop) = (String::new(), Arc::new(AtomicBool::new(true)));
        let mut watched = Watched { stream, status, memory_bytes: 0, patience, stop, asked: None };
        let mut said = Vec::new();
        assert_eq!(watched.read_to_end(&mut said).unwrap(), 5);
        assert_eq!(said, b"frame");
    }

    #[test]
    fn a_live_stream_that_always_has_something_to_say_is_asked_to_stop_once() {
        let (stream, mut host) = UnixStream::pair().unwrap();
        let patience = Patience { silence: Duration::from_secs(30), is_live: true };
        let (status, stop) = (String::new(), Arc::new(AtomicBool::new(true)));
        let mut watched = Watched { stream, status, memory_bytes: 0, patience, stop, asked: None };
        for _ in 0..2 {
            host.write_all(b"frame").unwrap();
            assert_eq!(watched.read(&mut [0; 5]).unwrap(), 5);
        }
        let wanted = pack(&Request::Stop, &[]).unwrap();
        let mut asked = vec![0; 2 * wanted.len()];
        host.set_nonblocking(true).unwrap();
        let length = host.read(&mut asked).unwrap();
        assert_eq!(&asked[..length], wanted);
    }

    #[test]
    fn log_lines_lose_their_addresses_and_only_the_last_are_kept() {
        let log = Mutex::new(VecDeque::new());
        let text: String = (0..20).map(|n| format!("[h264 @ 0x55d0{n}] error {n}\n")).collect();
        keep_last_lines(text.as_bytes(), &log);
        let log: Vec<String> = log.into_inner().unwrap().into();
        assert_eq!(log.len(), LOG_LINES);
        assert_eq!(log.last().unwrap(), "[h264] error 19");
    }

    #[test]
    fn a_log_without_line_ends_is_kept_within_bounds() {
        let log = Mutex::new(VecDeque::new());
        keep_last_lines(io::repeat(b'x').take(1 << 20), &log);
        assert!(log.into_inner().unwrap().iter().all(|line| line.len() <= 512));
    }
}
