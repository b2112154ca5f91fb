//! From packets or a container to coded frames: what of GStreamer is put between a source and the sink.

use std::sync::{Arc, Mutex, PoisonError};

use gstreamer as gst;
use gstreamer_app as gst_app;

use ffmpeg_next::codec::Id;
use gst::glib;
use gst::prelude::*;

use super::plugins::element;
use super::url::{CONNECT_SECS, Url};
use crate::error::{Error, Result};
use crate::source::protocol::Transport;

/// How long packets that come out of order wait for those before them.
const REORDER_MILLIS: u32 = 200;

fn internal(doing: &'static str) -> impl Fn(glib::BoolError) -> Error {
    move |cause| Error::internal(doing).caused_by(cause)
}

pub fn codec(caps: &gst::CapsRef) -> Option<Id> {
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
pub fn demux(
    pipeline: &gst::Pipeline,
    source: &gst::Element,
    sink: &gst_app::AppSink,
) -> Result<()> {
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
pub fn rtsp(
    pipeline: &gst::Pipeline,
    source: &gst::Element,
    url: &Url,
    transport: Transport,
    sink: &gst_app::AppSink,
    jitter_buffers: &Arc<Mutex<Vec<gst::Element>>>,
) -> Result<()> {
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
    // As much as half a second of 30 Mbit/s, where the system lets it.
    source.set_property("udp-buffer-size", 2i32 << 20);
    // What RTCP sender reports say of a frame's time comes with it.
    source.set_property("add-reference-timestamp-meta", true);
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
    pipeline.add(source).map_err(internal("cannot receive RTSP"))?;
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
