//! From packets or a container to coded frames: what of GStreamer is put between a source and the sink.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use gstreamer as gst;
use gstreamer_app as gst_app;

use ffmpeg_next::codec::Id;
use gst::glib;
use gst::prelude::*;

use super::plugins::element;
use super::sound::Sounds;
use super::url::{CONNECT_SECS, Url};
use crate::error::{Error, Result};
use crate::source::protocol::Transport;

/// How long packets that come out of order wait for those before them.
const REORDER_MILLIS: u32 = 200;

/// What the names of the elements begin with that sound goes through.
pub const SOUND: &str = "sound-";
/// Sound that waits in front of its parser, at most.
const SOUND_BYTES: u32 = 8 << 20;

/// Where coded frames come out, and coded sound, if it is wanted.
#[derive(Clone)]
pub struct Sinks {
    pub picture: gst_app::AppSink,
    pub sound: Option<(gst_app::AppSink, Arc<Sounds>)>,
}

impl Sinks {
    /// Whether what comes is played at the pace of its own clock.
    pub fn set_sync(&self, sync: bool) {
        self.picture.set_sync(sync);
        if let Some((sink, _)) = &self.sound {
            sink.set_sync(sync);
        }
    }
}

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

pub fn sound_codec(caps: &gst::CapsRef) -> Option<Id> {
    let structure = caps.structure(0)?;
    Some(match structure.name().as_str() {
        "audio/mpeg" => match structure.get::<i32>("mpegversion").ok()? {
            1 if structure.get::<i32>("layer") == Ok(3) => Id::MP3,
            1 => Id::MP2,
            _ => Id::AAC,
        },
        "audio/x-alaw" => Id::PCM_ALAW,
        "audio/x-mulaw" => Id::PCM_MULAW,
        "audio/x-opus" => Id::OPUS,
        "audio/x-ac3" => Id::AC3,
        "audio/x-eac3" => Id::EAC3,
        "audio/G722" => Id::ADPCM_G722,
        "audio/x-raw" if structure.get::<String>("format").as_deref() == Ok("S16BE") => {
            Id::PCM_S16BE
        }
        "audio/x-raw" => Id::PCM_S16LE,
        _ => return None,
    })
}

/// What brings sound of this kind into whole pieces.
fn sound_parser(codec: Id) -> Option<&'static str> {
    Some(match codec {
        Id::AAC => "aacparse",
        Id::MP2 | Id::MP3 => "mpegaudioparse",
        Id::AC3 | Id::EAC3 => "ac3parse",
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

/// Leads a pad with sound to its sink, if it is the first: through elements (made by these factories) that
/// have a queue and a thread of their own, so that what fails in them reaches nothing else.
fn attach_sound(
    pipeline: &gst::Pipeline,
    pad: &gst::Pad,
    factories: &[&str],
    (sink, sounds): &(gst_app::AppSink, Arc<Sounds>),
) -> Result<()> {
    if sink.parent().is_some() {
        return Ok(());
    }
    let failed = internal("cannot lead sound to its decoder");
    let queue = named("queue")?;
    // By bytes alone: what a container has of sound before its first picture must not hold that up.
    queue.set_property("max-size-time", 0u64);
    queue.set_property("max-size-buffers", 0u32);
    queue.set_property("max-size-bytes", SOUND_BYTES);
    // Beyond, the oldest goes: sound that nobody takes yet must not keep the picture from coming.
    queue.set_property_from_str("leaky", "downstream");
    let mut elements = vec![queue];
    for factory in factories {
        elements.push(named(factory)?);
    }
    without_rate(&elements[0]);
    elements.push(sink.clone().upcast());
    pipeline.add_many(&elements).map_err(&failed)?;
    let attached = lead(pad, &elements, sounds);
    if attached.is_err() {
        // A sink that nothing comes to would keep the pipeline from its end.
        for element in &elements {
            // It is taken out, whatever state it is in.
            let _ = element.set_state(gst::State::Null);
        }
        pipeline.remove_many(&elements).map_err(&failed)?;
    }
    attached
}

/// Lets no rate through beside AAC's own header, which states it: out of Matroska, GStreamer 1.22 takes the rate for twice
/// what it is where that header says that there is no more than it (no SBR).
fn without_rate(element: &gst::Element) {
    let Some(pad) = element.static_pad("sink") else { return };
    pad.add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, |_, info| {
        if let Some(gst::PadProbeData::Event(event)) = &mut info.data
            && let gst::EventView::Caps(caps) = event.view()
            && let Some(stated) = caps.caps().structure(0)
            && stated.name() == "audio/mpeg"
            && stated.has_field("codec_data")
        {
            let mut rest = stated.to_owned();
            rest.remove_field("rate");
            *event = gst::event::Caps::new(&gst::Caps::builder_full().structure(rest).build());
        }
        gst::PadProbeReturn::Ok
    });
}

/// Links a pad to elements that are in its pipeline, the first to the last.
fn lead(pad: &gst::Pad, elements: &[gst::Element], sounds: &Arc<Sounds>) -> Result<()> {
    let failed = internal("cannot lead sound to its decoder");
    gst::Element::link_many(elements).map_err(&failed)?;
    for element in elements.iter().rev() {
        element.sync_state_with_parent().map_err(&failed)?;
    }
    let entry = elements[0].static_pad("sink");
    let entry = entry.ok_or_else(|| Error::internal("a queue has no entry"))?;
    let sounds = Arc::clone(sounds);
    pad.add_probe(gst::PadProbeType::BUFFER | gst::PadProbeType::BUFFER_LIST, move |_, _| {
        if sounds.has_failed() { gst::PadProbeReturn::Drop } else { gst::PadProbeReturn::Ok }
    });
    pad.link(&entry).map_err(|cause| Error::unsupported("this kind of sound").caused_by(cause))?;
    Ok(())
}

fn named(factory: &str) -> Result<gst::Element> {
    let element = element(factory)?;
    element.set_property("name", format!("{SOUND}{factory}"));
    Ok(element)
}

/// Says on the bus what failed in a thread of GStreamer.
fn post(element: &impl IsA<gst::Element>, result: Result<()>) {
    if let Err(error) = result {
        gst::element_error!(element, gst::StreamError::Failed, ("{}", error.reason()));
    }
}

/// `source`, then whatever takes its container apart.
pub fn demux(pipeline: &gst::Pipeline, source: &gst::Element, sinks: &Sinks) -> Result<()> {
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
    let (pipeline, sinks) = (pipeline.downgrade(), sinks.clone());
    parts.connect_pad_added(move |parts, pad| {
        let Some(pipeline) = pipeline.upgrade() else { return };
        let caps = pad.current_caps().unwrap_or_else(|| pad.query_caps(None));
        let Some(structure) = caps.structure(0) else { return };
        if codec(&caps).is_some() {
            let version = structure.get::<i32>("mpegversion").unwrap_or(0);
            let parser = parser(structure.name(), version);
            post(parts, attach(&pipeline, pad, parser, &sinks.picture));
        } else if let Some(sound) = &sinks.sound
            && structure.name().starts_with("audio/")
        {
            match sound_codec(&caps) {
                Some(codec) => {
                    let parser = sound_parser(codec);
                    let attached = attach_sound(&pipeline, pad, parser.as_slice(), sound);
                    attached.unwrap_or_else(|error| sound.1.fail(&error.reason()));
                }
                None => sound.1.fail(&format!("{} is not read", structure.name())),
            }
        }
    });
    Ok(())
}

/// RTSP: the picture track alone is asked for, and one of sound where that is wanted.
pub fn rtsp(
    pipeline: &gst::Pipeline,
    source: &gst::Element,
    url: &Url,
    transport: Transport,
    sinks: &Sinks,
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
    let sound = sinks.sound.as_ref().map(|(_, sounds)| Arc::clone(sounds));
    let has_sound = AtomicBool::new(false);
    source.connect("select-stream", false, move |values| {
        let caps = values.get(2).and_then(|caps| caps.get::<gst::Caps>().ok());
        let media = caps.as_ref().and_then(|caps| caps.structure(0)?.get::<String>("media").ok());
        let is_wanted = match (media.as_deref(), &sound) {
            (Some("video"), _) => true,
            (Some("audio"), Some(sounds)) => {
                let encoding = encoding(caps.as_ref());
                if sound_depayloader(&encoding).is_none() {
                    sounds.fail(&format!("the camera sends it as {encoding:?}, which is not read"));
                    false
                } else {
                    !has_sound.swap(true, Ordering::Relaxed)
                }
            }
            _ => false,
        };
        Some(is_wanted.to_value())
    });
    pipeline.add(source).map_err(internal("cannot receive RTSP"))?;
    let (pipeline, sinks) = (pipeline.downgrade(), sinks.clone());
    source.connect_pad_added(move |source, pad| {
        let Some(pipeline) = pipeline.upgrade() else { return };
        let caps = pad.current_caps().unwrap_or_else(|| pad.query_caps(None));
        let encoding = encoding(Some(&caps));
        match (sound_depayloader(&encoding), &sinks.sound) {
            (Some(parts), Some(sound)) => {
                let attached = attach_sound(&pipeline, pad, parts, sound);
                attached.unwrap_or_else(|error| sound.1.fail(&error.reason()));
            }
            _ => post(source, unpack(&pipeline, pad, &encoding, &sinks.picture)),
        }
    });
    Ok(())
}

/// How packets are coded, as their description says.
fn encoding(caps: Option<&gst::Caps>) -> String {
    let name = caps.and_then(|caps| caps.structure(0)?.get::<String>("encoding-name").ok());
    name.unwrap_or_default().to_ascii_uppercase()
}

/// What takes sound out of RTP packets, and brings it into whole pieces.
fn sound_depayloader(encoding: &str) -> Option<&'static [&'static str]> {
    Some(match encoding {
        "PCMA" => &["rtppcmadepay"],
        "PCMU" => &["rtppcmudepay"],
        "L16" => &["rtpL16depay"],
        "G722" => &["rtpg722depay"],
        "OPUS" | "X-GST-OPUS-DRAFT-SPITTKA-00" => &["rtpopusdepay"],
        "MPEG4-GENERIC" => &["rtpmp4gdepay", "aacparse"],
        "MP4A-LATM" => &["rtpmp4adepay", "aacparse"],
        "MPA" => &["rtpmpadepay", "mpegaudioparse"],
        "AC3" => &["rtpac3depay", "ac3parse"],
        _ => return None,
    })
}

/// Takes frames out of RTP packets.
fn unpack(
    pipeline: &gst::Pipeline,
    pad: &gst::Pad,
    encoding: &str,
    sink: &gst_app::AppSink,
) -> Result<()> {
    if sink.parent().is_some() {
        return Ok(());
    }
    let (depayloader, parser) = match encoding {
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
