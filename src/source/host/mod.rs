//! The decoder host: the other end of the socket, in a process of its own.
//!
//! It serves one request after the other until its parent is gone. It has no way to open a file:
//! descriptors come with the requests, and FFmpeg's own protocols are shut (but for the request
//! that names a URL).

mod cues;
mod delivery;
mod demux;
mod ffi;
mod gop;
mod h264;
#[cfg(feature = "live")]
mod live;
mod nal;
mod orientation;
mod picture;
mod reader;
mod sampler;
mod signature;
mod sound;

use std::fs::File;
use std::io::{self, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{Resource, Rlimit, setrlimit};

use super::protocol::{self, Message, Request, Summary};
use crate::error::{Error, Result};
use crate::time::{Micros, process_processor_time};

/// Serves the parent on standard input, a socket, until it hangs up.
pub fn main() -> ExitCode {
    let stream = match io::stdin().as_fd().try_clone_to_owned() {
        Ok(stream) => UnixStream::from(stream),
        Err(_) => return ExitCode::from(2),
    };
    if stream.peer_addr().is_err() {
        eprintln!("this command is for cinelex's own use: it decodes media for another cinelex");
        return ExitCode::from(2);
    }
    give_up_rights();
    let Ok(outbox) = stream.try_clone() else { return ExitCode::FAILURE };
    let Ok(watched) = stream.try_clone() else { return ExitCode::FAILURE };
    std::thread::spawn(move || end_with_parent(&watched));
    ffi::log_errors_only();
    let mut inbox = Inbox { stream, descriptors: Vec::new() };
    let mut outbox = Outbox::new(outbox);
    loop {
        let request = match protocol::receive::<Request>(&mut inbox) {
            Ok((request, _)) => request,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("bad request: {error}");
                return ExitCode::FAILURE;
            }
        };
        let descriptors = std::mem::take(&mut inbox.descriptors);
        if let Err(error) = serve(request, descriptors, &mut outbox) {
            outbox.send(&Message::Failed { kind: error.kind(), message: error.reason(), at: None });
        }
    }
}

fn serve(request: Request, descriptors: Vec<OwnedFd>, outbox: &mut Outbox) -> Result<()> {
    let mut descriptors = descriptors.into_iter();
    let mut file = || descriptors.next().map(File::from);
    let summary = match request {
        Request::Limit { memory_bytes } => {
            limit(Resource::Data, memory_bytes);
            // A request without an answer.
            return Ok(());
        }
        // What was to stop is over.
        Request::Stop => return Ok(()),
        Request::Probe(address) => {
            let source = demux::Source::open(address, file())?;
            outbox.send(&Message::Info(Box::new(source.info().clone())));
            Summary::default()
        }
        Request::Picture(address, request) => {
            request.check()?;
            picture::serve(demux::Source::open(address, file())?, &request, outbox)?
        }
        #[cfg(feature = "live")]
        Request::Live(address, request) => {
            request.check()?;
            let file = matches!(address, protocol::Address::Descriptor { .. }).then(file).flatten();
            let sound = request.sound_from.and_then(|_| descriptors.next()).map(UnixStream::from);
            live::serve(&address, file, sound, &request, outbox)?
        }
        #[cfg(not(feature = "live"))]
        Request::Live(..) => {
            return Err(Error::unsupported("this build reads no live streams (feature `live`)"));
        }
        Request::Sound(address, request) => {
            sound::serve(demux::Source::open(address, file())?, &request, outbox)?
        }
        Request::Cues(address, request) => cues::serve(address, file(), &request, outbox)?,
    };
    let processor_time = outbox.take_processor_time();
    outbox.send(&Message::End(Summary { processor_time, ..summary }));
    Ok(())
}

/// What a parser that was taken over could do is little: no new files, no core dumps, no more
/// descriptors than a decoder needs.
fn give_up_rights() {
    limit(Resource::Fsize, 0);
    limit(Resource::Core, 0);
    limit(Resource::Nofile, 256);
}

fn limit(resource: Resource, value: u64) {
    // A limit that cannot be set leaves the parent's watch over memory and time.
    let _ = setrlimit(resource, Rlimit { current: Some(value), maximum: Some(value) });
}

/// Ends this process as soon as the parent hangs up, also in the middle of decoding.
fn end_with_parent(stream: &UnixStream) {
    loop {
        let mut sockets = [PollFd::new(stream, PollFlags::RDHUP)];
        match poll(&mut sockets, None) {
            Ok(_) if !sockets[0].revents().is_empty() => std::process::exit(0),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
    }
}

/// Requests, with the descriptors that came beside the last one.
struct Inbox {
    stream: UnixStream,
    descriptors: Vec<OwnedFd>,
}

impl Read for Inbox {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut buffers = [IoSliceMut::new(buffer)];
        let received = recvmsg(&self.stream, &mut buffers, &mut control, RecvFlags::CMSG_CLOEXEC)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.descriptors = descriptors.collect();
            }
        }
        Ok(received.bytes)
    }
}

/// The way back to the parent.
struct Outbox {
    stream: UnixStream,
    /// Processor time that the parent knows of.
    told: Duration,
}

impl Outbox {
    fn new(stream: UnixStream) -> Self {
        Outbox { stream, told: Duration::ZERO }
    }

    fn send(&mut self, message: &Message) {
        self.send_with(message, &[]);
    }

    /// Whether the parent has something else to say.
    #[cfg(feature = "live")]
    fn is_asked(&self) -> bool {
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut sockets = [PollFd::new(&self.stream, PollFlags::IN)];
        poll(&mut sockets, Some(&now)).is_ok_and(|ready| ready > 0)
    }

    fn take_processor_time(&mut self) -> Micros {
        let now = process_processor_time();
        let spent = now.saturating_sub(std::mem::replace(&mut self.told, now));
        Micros(i64::try_from(spent.as_micros()).unwrap_or(i64::MAX))
    }

    /// Blocks while the parent has not read what was sent before: that is the back-pressure.
    fn send_with(&mut self, message: &Message, body: &[u8]) {
        if protocol::send(&mut self.stream, message, body).is_err() {
            // The parent is gone, and with it the reason to be.
            std::process::exit(0);
        }
    }
}

/// An FFmpeg error as the project's own.
fn explain(doing: &str, cause: ffmpeg_next::Error) -> Error {
    use crate::error::Kind;
    use ffmpeg_next::Error as Av;
    let kind = match cause {
        Av::DecoderNotFound
        | Av::DemuxerNotFound
        | Av::PatchWelcome
        | Av::ProtocolNotFound
        | Av::Experimental => Kind::Unsupported,
        Av::HttpNotFound => Kind::NotFound,
        Av::HttpBadRequest
        | Av::HttpForbidden
        | Av::HttpOther4xx
        | Av::HttpServerError
        | Av::HttpUnauthorized => Kind::Unavailable,
        Av::Bug | Av::Bug2 | Av::Unknown | Av::External => Kind::Corrupt,
        Av::Other { errno } => match errno {
            ffmpeg_next::error::ENOMEM => Kind::Exhausted,
            ffmpeg_next::error::EIO
            | ffmpeg_next::error::ETIMEDOUT
            | ffmpeg_next::error::ECONNREFUSED
            | ffmpeg_next::error::ECONNRESET
            | ffmpeg_next::error::ENETUNREACH
            | ffmpeg_next::error::EHOSTUNREACH => Kind::Unavailable,
            ffmpeg_next::error::ENOSYS => Kind::Unsupported,
            _ => Kind::Corrupt,
        },
        _ => Kind::Corrupt,
    };
    let error = Error::new(kind, doing);
    // FFmpeg has no words for some of its errors.
    let answer = match cause {
        Av::HttpBadRequest => "the server calls it a bad request (400)",
        Av::HttpUnauthorized => "the server asks for another user name and password (401)",
        Av::HttpForbidden => "the server forbids it (403)",
        Av::HttpNotFound => "the server has no such file (404)",
        Av::HttpOther4xx => "the server refuses it (4xx)",
        Av::HttpServerError => "the server has an error of its own (5xx)",
        _ if cause.to_string().is_empty() => return error,
        _ => return error.caused_by(cause),
    };
    error.caused_by(answer)
}
