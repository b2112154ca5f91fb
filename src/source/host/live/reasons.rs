//! Why a stream cannot be received, in words that help.

use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use gstreamer as gst;

use gst::prelude::*;

use crate::error::Error;

pub const CANNOT_CONNECT: &str = "cannot connect";
const UNAUTHORIZED: &str =
    "the camera refuses the user name or password (401): put both into the address";

const BROKEN: &str = "the connection broke off";
const UNTRUSTED: &str = "the secure connection broke off, or was none: the server's certificate must be good, for this \
     address, and signed by somebody whom this system trusts";

const UNANSWERED: &str =
    "nobody answers over SRT at this address, or the passphrase is not the sender's";

/// Where a connection was to lead.
#[derive(Debug, Clone)]
pub struct Server {
    /// By name, and its port.
    pub place: (String, u16),
    /// Whether it is by TLS, which this host does not look into.
    pub is_secure: bool,
}

/// What GStreamer says, in words that help. Its own details may hold addresses with credentials, so
/// only what is known of them is passed on.
pub fn explain(message: &gst::message::Error, server: Option<&Server>, has_come: bool) -> Error {
    use gst::{ResourceError, StreamError};
    let error = message.error();
    let details = message.debug().unwrap_or_default().to_ascii_lowercase();
    let unavailable = |why: &str| Error::unavailable(why);
    match (error.kind::<ResourceError>(), error.kind::<StreamError>()) {
        (Some(ResourceError::NotAuthorized), _) => unavailable(UNAUTHORIZED),
        _ if details.contains("unauthorized") => unavailable(UNAUTHORIZED),
        (Some(ResourceError::NotFound), _) if details.contains("not found") => {
            unavailable("the camera has nothing at this path (404)")
        }
        // A sender does not say that it refuses somebody.
        _ if is_of(message, "srtsrc") => unavailable(if has_come { BROKEN } else { UNANSWERED }),
        _ if details.contains("certificate") => {
            unavailable("the camera's certificate is not trusted")
        }
        (
            Some(
                ResourceError::OpenRead
                | ResourceError::OpenWrite
                | ResourceError::OpenReadWrite
                | ResourceError::NotFound,
            ),
            _,
        ) => Error::unavailable(server.and_then(why_unreachable).unwrap_or(CANNOT_CONNECT)),
        (Some(_), _) => unavailable(BROKEN),
        // It says no more where it was not connected, nor where it no longer is.
        (_, Some(StreamError::Failed)) if is_of(message, "souphttpsrc") => {
            let why = server.filter(|_| !has_come).and_then(|server| {
                why_unreachable(server).or(server.is_secure.then_some(UNTRUSTED))
            });
            unavailable(why.unwrap_or(BROKEN))
        }
        (_, Some(StreamError::TypeNotFound)) => {
            Error::corrupt("what comes is no stream of pictures")
        }
        // This host's own words, where a pad could not be used.
        (_, Some(StreamError::Failed)) if !error.message().contains("Internal data") => {
            Error::unsupported(error.message())
        }
        _ => Error::corrupt("what comes can't be read"),
    }
}

/// Whether a message comes from an element that this factory has made.
fn is_of(message: &gst::message::Error, factory: &str) -> bool {
    let element = message.src().and_then(|source| source.downcast_ref::<gst::Element>());
    element.and_then(ElementExt::factory).is_some_and(|made_by| made_by.name() == factory)
}

/// GStreamer does not tell why it could not connect; another attempt does.
fn why_unreachable(server: &Server) -> Option<&'static str> {
    use std::io::ErrorKind;
    let (host, port) = &server.place;
    let Ok(mut places) = (host.as_str(), *port).to_socket_addrs() else {
        return Some("the name of the camera's address is not known");
    };
    let tried = TcpStream::connect_timeout(&places.next()?, Duration::from_secs(2));
    match tried.err()?.kind() {
        ErrorKind::ConnectionRefused => Some("connection refused"),
        ErrorKind::TimedOut => Some("no answer"),
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => {
            Some("no way to the camera's address")
        }
        _ => None,
    }
}
