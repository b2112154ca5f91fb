//! The address of a stream in its parts, and what of GStreamer receives from it.

use gstreamer as gst;

use gst::prelude::*;

use super::plugins::element;
use crate::error::{Error, Result};
use crate::source::listing::with_credentials;

/// How long a connection may take.
pub const CONNECT_SECS: u32 = 10;

/// An address in its parts, the credentials decoded.
pub struct Url {
    pub scheme: String,
    host: String,
    port: Option<u16>,
    /// Without credentials.
    pub bare: String,
    pub credentials: Option<(String, String)>,
}

impl Url {
    pub fn of(url: &str) -> Result<Url> {
        let wrong =
            || Error::invalid_input("not an address of a stream, as rtsp://camera:554/path");
        let (scheme, rest) = url.split_once("://").ok_or_else(wrong)?;
        let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let (user, place) = match authority.rsplit_once('@') {
            Some((user, place)) => (Some(user), place),
            None => (None, authority),
        };
        let (host, port) = match place.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => {
                (host, Some(port.parse().map_err(|_| wrong())?))
            }
            _ => (place, None),
        };
        let credentials = user.map(|user| {
            let (user, password) = user.split_once(':').unwrap_or((user, ""));
            (percent_decoded(user), percent_decoded(password))
        });
        Ok(Url {
            scheme: scheme.to_ascii_lowercase(),
            host: host.trim_matches(['[', ']']).to_owned(),
            port,
            bare: format!("{scheme}://{place}{tail}"),
            credentials,
        })
    }

    /// With credentials.
    fn whole(&self) -> String {
        match &self.credentials {
            Some((user, password)) => with_credentials(&self.bare, user, password),
            None => self.bare.clone(),
        }
    }

    /// Where it connects to by TCP.
    pub fn server(&self) -> Option<(String, u16)> {
        let usual = match self.scheme.as_str() {
            "rtsp" => 554,
            "rtsps" => 322,
            "http" => 80,
            "https" => 443,
            "tcp" => self.port?,
            _ => return None,
        };
        Some((self.host.clone(), self.port.unwrap_or(usual)))
    }

    /// What receives the bytes of a container.
    pub fn source(&self) -> Result<gst::Element> {
        let port = || {
            self.port
                .map(i32::from)
                .ok_or_else(|| Error::invalid_input(format!("{}:// needs a port", self.scheme)))
        };
        Ok(match self.scheme.as_str() {
            "srt" => {
                let source = element("srtsrc")?;
                source.set_property("uri", &self.bare);
                // Whoever ends a connection is asked again by whoever watches this one.
                source.set_property("auto-reconnect", false);
                if let Some((_, passphrase)) = &self.credentials
                    && !passphrase.is_empty()
                {
                    source.set_property("passphrase", passphrase);
                }
                source
            }
            "udp" => {
                let source = element("udpsrc")?;
                port()?;
                source.set_property("uri", &self.bare);
                // Half a second of 30 Mbit/s.
                source.set_property("buffer-size", 2i32 << 20);
                source
            }
            "tcp" => {
                let source = element("tcpclientsrc")?;
                source.set_property("host", &self.host);
                source.set_property("port", port()?);
                source
            }
            "http" | "https" => {
                let source = element("souphttpsrc")?;
                // The parts of a broadcast are looked for beside its list, and asked for with the same credentials.
                source.set_property("location", self.whole());
                source.set_property("timeout", CONNECT_SECS);
                source
            }
            other => {
                return Err(Error::unsupported(format!(
                    "{other}:// is no live stream that is read here: rtsp, rtsps, srt, udp, tcp, \
                     http and https are"
                )));
            }
        })
    }
}

/// `%40` as `@`. What is no such code stays as it is.
fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let code = match tail {
            [high, low, ..] if *first == b'%' => std::str::from_utf8(&[*high, *low])
                .ok()
                .and_then(|code| u8::from_str_radix(code, 16).ok()),
            _ => None,
        };
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_taken_apart_and_its_credentials_are_decoded() {
        let url = Url::of("RTSP://me:p%40ss%2f@[fe80::1]:8554/a@b?c").unwrap();
        assert_eq!(
            (url.scheme.as_str(), url.host.as_str(), url.port),
            ("rtsp", "fe80::1", Some(8554))
        );
        assert_eq!(url.bare, "RTSP://[fe80::1]:8554/a@b?c");
        assert_eq!(url.credentials, Some(("me".to_owned(), "p@ss/".to_owned())));
        assert_eq!(percent_decoded("100%"), "100%");
        assert!(Url::of("rtsp://camera:x/").is_err());
    }
}
