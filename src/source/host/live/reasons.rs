//! Why a stream cannot be received, in words that help.

use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use gstreamer as gst;

use crate::error::Error;

pub const CANNOT_CONNECT: &str = "cannot connect";
const UNAUTHORIZED: &str =
    "the camera refuses the user name or password (401): put both into the address";

/// What GStreamer says, in words that help. Its own details may hold addresses with credentials, so
/// only what is known of them is passed on.
pub fn explain(message: &gst::message::Error, server: Option<&(String, u16)>) -> Error {
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
        (Some(_), _) => unavailable("the connection broke off"),
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

/// GStreamer does not tell why it could not connect; another attempt does.
fn why_unreachable((host, port): &(String, u16)) -> Option<&'static str> {
    use std::io::ErrorKind;
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
