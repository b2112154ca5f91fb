//! Receiving a stream: GStreamer brings coded frames, and knows nothing of pictures.

use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use gstreamer as gst;
use gstreamer_app as gst_app;

use ffmpeg_next::Packet;
use ffmpeg_next::codec::Id;
use gst::glib;
use gst::prelude::*;

use super::arrivals::{Arrivals, Unit};
use super::monotonic_us;
use crate::error::{Error, Result};
use crate::source::protocol::{Address, Transport};

/// The parts of GStreamer that a host needs; no other is ever loaded.
const PLUGINS: [&str; 19] = [
    "app",
    "audioparsers",
    "avi",
    "coreelements",
    "flv",
    "hls",
    "isomp4",
    "matroska",
    "mpegpsdemux",
    "mpegtsdemux",
    "playback",
    "rtp",
    "rtpmanager",
    "rtsp",
    "soup",
    "srt",
    "tcp",
    "typefindfunctions",
    "udp",
];
const PARSERS: &str = "videoparsersbad";

/// How long packets that come out of order wait for those before them.
const REORDER_MILLIS: u32 = 200;
/// How long a connection may take.
const CONNECT_SECS: u32 = 10;

/// A coded frame and what decodes it.
pub struct Coded {
    pub codec: Id,
    pub packet: Packet,
}

/// A stream that is being received. Dropping it ends that.
pub struct Reception {
    pipeline: gst::Pipeline,
    bus: gst::Bus,
    pub arrivals: Arc<Arrivals<Coded>>,
    /// What puts packets in order, which knows how many did not come.
    jitter_buffers: Arc<Mutex<Vec<gst::Element>>>,
    /// Kept open for the source that reads it.
    _file: Option<OwnedFd>,
    /// Where it connects to, for saying why it cannot.
    server: Option<(String, u16)>,
    ended: Option<Result<()>>,
}

impl Reception {
    pub fn open(address: &Address, file: Option<OwnedFd>, transport: Transport) -> Result<Self> {
        load_plugins()?;
        let pipeline = gst::Pipeline::new();
        let bus = pipeline
            .bus()
            .ok_or_else(|| Error::internal("GStreamer's pipeline has no messages"))?;
        let arrivals: Arc<Arrivals<Coded>> = Arc::default();
        let jitter_buffers = Arc::default();
        let sink = sink(&arrivals);
        let mut server = None;
        match address {
            Address::Descriptor { .. } => {
                let file = file
                    .as_ref()
                    .ok_or_else(|| Error::internal("a file without its descriptor"))?;
                let path = format!("/proc/self/fd/{}", file.as_raw_fd());
                let source = element("filesrc")?;
                source.set_property("location", path);
                // Played at the pace of its own clock, as a camera would bring it.
                sink.set_sync(true);
                demux(&pipeline, &source, &sink)?;
            }
            Address::Url(url) => {
                let url = Url::of(url)?;
                server = url.server();
                match url.scheme.as_str() {
                    "rtsp" | "rtsps" => rtsp(&pipeline, &url, transport, &sink, &jitter_buffers)?,
                    _ => {
                        // Segments come many frames at once.
                        sink.set_sync(matches!(url.scheme.as_str(), "http" | "https"));
                        demux(&pipeline, &url.source()?, &sink)?;
                    }
                }
            }
        }
        let started = pipeline.set_state(gst::State::Playing);
        let mut reception =
            Reception { pipeline, bus, arrivals, jitter_buffers, _file: file, server, ended: None };
        if started.is_err() {
            reception.has_ended();
            reception.end()?;
            return Err(Error::unavailable(CANNOT_CONNECT));
        }
        Ok(reception)
    }

    /// Whether the stream is over: at its end, or since it broke off.
    pub fn has_ended(&mut self) -> bool {
        if self.ended.is_none() {
            let types = [gst::MessageType::Error, gst::MessageType::Eos];
            self.ended = self.bus.pop_filtered(&types).map(|message| match message.view() {
                gst::MessageView::Error(error) => Err(explain(error, self.server.as_ref())),
                _ => Ok(()),
            });
            if self.ended.is_some() {
                self.arrivals.close();
            }
        }
        self.ended.is_some()
    }

    /// How it ended.
    pub fn end(&mut self) -> Result<()> {
        self.ended.take().unwrap_or(Ok(()))
    }

    /// Packets that did not come.
    pub fn lost_packets(&self) -> u64 {
        let buffers = self.jitter_buffers.lock().unwrap_or_else(PoisonError::into_inner);
        let lost = |buffer: &gst::Element| {
            buffer.property::<gst::Structure>("stats").get::<u64>("num-lost").unwrap_or(0)
        };
        buffers.iter().map(lost).sum()
    }
}

impl Drop for Reception {
    fn drop(&mut self) {
        // Fails only where it never came to run.
        let _ = self.pipeline.set_state(gst::State::Null);
    }
}

/// Initializes GStreamer with nothing but the plugins above.
fn load_plugins() -> Result<()> {
    gst::init().map_err(|cause| Error::internal("GStreamer does not start").caused_by(cause))?;
    if gst::Registry::get().find_plugin(PARSERS).is_some() {
        return Ok(());
    }
    let missing = |what: &str| {
        Error::unsupported(format!(
            "GStreamer's {what} is not there: install GStreamer 1.22 or newer with its plugins good \
             and bad"
        ))
    };
    let folder = plugin_folder().ok_or_else(|| missing("folder of plugins"))?;
    for name in PLUGINS.into_iter().chain([PARSERS]) {
        if let Err(cause) = gst::Plugin::load_file(folder.join(format!("libgst{name}.so"))) {
            // What is missed only by some streams is told when one of them comes.
            if ["coreelements", "app", "playback", PARSERS].contains(&name) {
                return Err(missing(name).caused_by(cause));
            }
        }
    }
    Ok(())
}

/// The plugins lie beside the library that was loaded.
fn plugin_folder() -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let path = maps.lines().find_map(|line| {
        let path = &line[line.find('/')?..];
        path.contains("/libgstreamer-1.0.so").then(|| PathBuf::from(path))
    })?;
    Some(path.parent()?.join("gstreamer-1.0"))
}

fn element(name: &str) -> Result<gst::Element> {
    gst::ElementFactory::make(name).build().map_err(|cause| {
        Error::unsupported(format!("GStreamer's element {name} is not there")).caused_by(cause)
    })
}

fn internal(doing: &'static str) -> impl Fn(glib::BoolError) -> Error {
    move |cause| Error::internal(doing).caused_by(cause)
}

/// Where coded frames come out: each in one buffer, with all that its decoder needs.
fn sink(arrivals: &Arc<Arrivals<Coded>>) -> gst_app::AppSink {
    let mut wanted = gst::Caps::new_empty();
    {
        let wanted = wanted.make_mut();
        for name in ["video/x-h264", "video/x-h265"] {
            wanted.append(
                gst::Caps::builder(name)
                    .field("stream-format", "byte-stream")
                    .field("alignment", "au")
                    .build(),
            );
        }
        wanted.append(
            gst::Caps::builder("video/x-av1")
                .field("stream-format", "obu-stream")
                .field("alignment", "tu")
                .build(),
        );
        for name in ["video/x-vp8", "video/x-vp9", "video/mpeg", "image/jpeg"] {
            wanted.append(gst::Caps::new_empty_simple(name));
        }
    }
    let arrivals = Arc::clone(arrivals);
    let sink = gst_app::AppSink::builder().caps(&wanted).sync(false).build();
    // Nothing waits in the sink: what is taken from it is counted.
    sink.set_max_buffers(1);
    sink.set_enable_last_sample(false);
    sink.set_callbacks(
        gst_app::AppSinkCallbacks::builder()
            .new_sample(move |sink| {
                let sample = sink.pull_sample().map_err(|_| gst::FlowError::Eos)?;
                if let Some(unit) = unit(&sample) {
                    arrivals.push(unit);
                }
                Ok(gst::FlowSuccess::Ok)
            })
            .build(),
    );
    sink
}

fn unit(sample: &gst::Sample) -> Option<Unit<Coded>> {
    let buffer = sample.buffer()?;
    let codec = codec(sample.caps()?)?;
    let map = buffer.map_readable().ok()?;
    let micros = |time: gst::ClockTime| i64::try_from(time.useconds()).ok();
    let is_key = !buffer.flags().contains(gst::BufferFlags::DELTA_UNIT);
    let packet = Packet::copy(&map);
    Some(Unit {
        bytes: map.len(),
        packet: Coded { codec, packet },
        pts: buffer.pts().and_then(micros),
        arrived: monotonic_us(),
        captured: 0,
        is_key,
    })
}

fn codec(caps: &gst::CapsRef) -> Option<Id> {
    let structure = caps.structure(0)?;
    Some(match structure.name().as_str() {
        "video/x-h264" => Id::H264,
        "video/x-h265" => Id::HEVC,
        "video/x-vp8" => Id::VP8,
        "video/x-vp9" => Id::VP9,
        "video/x-av1" => Id::AV1,
        "image/jpeg" => Id::MJPEG,
        "video/mpeg"
            if structure.get::<bool>("systemstream").is_ok_and(|is_container| is_container) =>
        {
            return None;
        }
        "video/mpeg" if structure.get::<i32>("mpegversion").is_ok_and(|version| version == 4) => {
            Id::MPEG4
        }
        "video/mpeg" => Id::MPEG2VIDEO,
        _ => return None,
    })
}

/// What brings frames of this kind into one buffer each.
fn parser(caps_name: &str, mpeg_version: i32) -> Option<&'static str> {
    Some(match caps_name {
        "video/x-h264" => "h264parse",
        "video/x-h265" => "h265parse",
        "video/x-vp9" => "vp9parse",
        "video/x-av1" => "av1parse",
        "video/mpeg" if mpeg_version == 4 => "mpeg4videoparse",
        "video/mpeg" => "mpegvideoparse",
        _ => return None,
    })
}

/// Leads a pad with coded frames to the sink, if it is the first.
fn attach(
    pipeline: &gst::Pipeline,
    pad: &gst::Pad,
    parser: Option<&str>,
    sink: &gst_app::AppSink,
) -> Result<()> {
    if sink.parent().is_some() {
        return Ok(());
    }
    let failed = internal("cannot lead a stream to its decoder");
    pipeline.add(sink).map_err(&failed)?;
    let mut first = sink.clone().upcast::<gst::Element>();
    if let Some(name) = parser {
        let parser = element(name)?;
        if parser.has_property("config-interval") {
            // A decoder may begin at any keyframe.
            parser.set_property("config-interval", -1i32);
        }
        pipeline.add(&parser).map_err(&failed)?;
        parser.link(sink).map_err(&failed)?;
        parser.sync_state_with_parent().map_err(&failed)?;
        first = parser;
    }
    sink.sync_state_with_parent().map_err(&failed)?;
    let entry = first.static_pad("sink").ok_or_else(|| Error::internal("a parser has no entry"))?;
    pad.link(&entry)
        .map_err(|cause| Error::unsupported("this kind of picture").caused_by(cause))?;
    Ok(())
}

/// Says on the bus what failed in a thread of GStreamer.
fn post(element: &impl IsA<gst::Element>, result: Result<()>) {
    if let Err(error) = result {
        gst::element_error!(element, gst::StreamError::Failed, ("{}", error.reason()));
    }
}

/// `source`, then whatever takes its container apart.
fn demux(pipeline: &gst::Pipeline, source: &gst::Element, sink: &gst_app::AppSink) -> Result<()> {
    let failed = internal("cannot take a stream apart");
    let parts = element("parsebin")?;
    pipeline.add_many([source, &parts]).map_err(&failed)?;
    source.link(&parts).map_err(&failed)?;
    // What is inside the container is taken as it is.
    parts.connect("autoplug-continue", false, |values| {
        let caps = values.get(2).and_then(|caps| caps.get::<gst::Caps>().ok());
        let is_inside = caps.is_some_and(|caps| {
            let name = caps.structure(0).map_or("", |caps| caps.name().as_str());
            codec(&caps).is_some()
                || ["audio/", "text/", "subpicture/", "meta/"].iter().any(|of| name.starts_with(of))
        });
        Some((!is_inside).to_value())
    });
    let (pipeline, sink) = (pipeline.downgrade(), sink.clone());
    parts.connect_pad_added(move |parts, pad| {
        let Some(pipeline) = pipeline.upgrade() else { return };
        let caps = pad.current_caps().unwrap_or_else(|| pad.query_caps(None));
        let Some(structure) = caps.structure(0) else { return };
        if codec(&caps).is_some() {
            let version = structure.get::<i32>("mpegversion").unwrap_or(0);
            let parser = parser(structure.name(), version);
            post(parts, attach(&pipeline, pad, parser, &sink));
        }
    });
    Ok(())
}

/// RTSP: the picture track alone is asked for.
fn rtsp(
    pipeline: &gst::Pipeline,
    url: &Url,
    transport: Transport,
    sink: &gst_app::AppSink,
    jitter_buffers: &Arc<Mutex<Vec<gst::Element>>>,
) -> Result<()> {
    let source = element("rtspsrc")?;
    source.set_property("location", &url.bare);
    if let Some((user, password)) = &url.credentials {
        source.set_property("user-id", user);
        source.set_property("user-pw", password);
    }
    let (protocols, latency) = match transport {
        Transport::Tcp => ("tcp", 0),
        Transport::Udp => ("udp", REORDER_MILLIS),
    };
    source.set_property_from_str("protocols", protocols);
    source.set_property("latency", latency);
    source.set_property("tcp-timeout", u64::from(CONNECT_SECS) * 1_000_000);
    // A camera that sends nothing is told by the silence; another transport is not tried in secret.
    source.set_property("timeout", 0u64);
    let kept = Arc::clone(jitter_buffers);
    source.connect("new-manager", false, move |values| {
        let kept = Arc::clone(&kept);
        let manager = values.get(1)?.get::<gst::Element>().ok()?;
        manager.connect("new-jitterbuffer", false, move |values| {
            let buffer = values.get(1)?.get::<gst::Element>().ok()?;
            kept.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
            None
        });
        None
    });
    source.connect("select-stream", false, |values| {
        let caps = values.get(2).and_then(|caps| caps.get::<gst::Caps>().ok());
        let media = caps.and_then(|caps| caps.structure(0)?.get::<String>("media").ok());
        Some((media.as_deref() == Some("video")).to_value())
    });
    pipeline.add(&source).map_err(internal("cannot receive RTSP"))?;
    let (pipeline, sink) = (pipeline.downgrade(), sink.clone());
    source.connect_pad_added(move |source, pad| {
        if let Some(pipeline) = pipeline.upgrade() {
            post(source, unpack(&pipeline, pad, &sink));
        }
    });
    Ok(())
}

/// Takes frames out of RTP packets.
fn unpack(pipeline: &gst::Pipeline, pad: &gst::Pad, sink: &gst_app::AppSink) -> Result<()> {
    if sink.parent().is_some() {
        return Ok(());
    }
    let caps = pad.current_caps().unwrap_or_else(|| pad.query_caps(None));
    let encoding = caps
        .structure(0)
        .and_then(|caps| caps.get::<String>("encoding-name").ok())
        .unwrap_or_default()
        .to_ascii_uppercase();
    let (depayloader, parser) = match encoding.as_str() {
        "H264" => ("rtph264depay", Some("h264parse")),
        "H265" => ("rtph265depay", Some("h265parse")),
        "VP8" => ("rtpvp8depay", None),
        "VP9" => ("rtpvp9depay", Some("vp9parse")),
        "JPEG" => ("rtpjpegdepay", None),
        "MP4V-ES" => ("rtpmp4vdepay", Some("mpeg4videoparse")),
        "MPV" => ("rtpmpvdepay", Some("mpegvideoparse")),
        _ => {
            return Err(Error::unsupported(format!(
                "the camera sends {encoding:?}, which is not read: set it to H.264 or H.265"
            )));
        }
    };
    let failed = internal("cannot take frames out of RTP");
    let depayloader = element(depayloader)?;
    pipeline.add(&depayloader).map_err(&failed)?;
    let ends = (depayloader.static_pad("sink"), depayloader.static_pad("src"));
    let (Some(entry), Some(exit)) = ends else {
        return Err(Error::internal("a depayloader without ends"));
    };
    attach(pipeline, &exit, parser, sink)?;
    depayloader.sync_state_with_parent().map_err(&failed)?;
    pad.link(&entry).map_err(|cause| Error::internal("RTP").caused_by(cause))?;
    Ok(())
}

/// An address in its parts, the credentials decoded.
struct Url {
    scheme: String,
    host: String,
    port: Option<u16>,
    /// Without credentials.
    bare: String,
    credentials: Option<(String, String)>,
}

impl Url {
    fn of(url: &str) -> Result<Url> {
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

    /// Where it connects to by TCP.
    fn server(&self) -> Option<(String, u16)> {
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
    fn source(&self) -> Result<gst::Element> {
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
                source.set_property("location", &self.bare);
                source.set_property("timeout", CONNECT_SECS);
                if let Some((user, password)) = &self.credentials {
                    source.set_property("user-id", user);
                    source.set_property("user-pw", password);
                }
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

const CANNOT_CONNECT: &str = "cannot connect";

/// What GStreamer says, in words that help. Its own details may hold addresses with credentials, so
/// only what is known of them is passed on.
fn explain(message: &gst::message::Error, server: Option<&(String, u16)>) -> Error {
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

const UNAUTHORIZED: &str =
    "the camera refuses the user name or password (401): put both into the address";

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
