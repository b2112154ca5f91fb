//! Receiving a stream: GStreamer brings coded frames, and knows nothing of pictures.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use gstreamer as gst;
use gstreamer_app as gst_app;

use ffmpeg_next::Packet;
use ffmpeg_next::codec::Id;
use gst::prelude::*;

use super::arrivals::{Arrivals, Unit};
use super::monotonic_us;
use super::parts::{SOUND, Sinks, codec, demux, rtsp, sound_codec};
use super::plugins::{element, load_plugins};
use super::reasons::{CANNOT_CONNECT, Server, explain};
use super::sound::{SoundPacket, Sounds};
use super::trust::{self, Refused};
use super::url::Url;
use crate::error::{Error, Result};
use crate::source::protocol::{Address, LiveRequest};

/// What NTP's clock was at when that of media time began.
const FROM_1900_TO_1970_US: i64 = 2_208_988_800_000_000;

const FILE_CHANGED: &str = "the codec or the tracks of the file change here, and what follows is not played: divide it \
     there, and play the parts";

/// A coded frame and what decodes it.
#[derive(Clone)]
pub struct Coded {
    pub codec: Id,
    /// 0 where the stream does not say.
    pub width_px: i32,
    pub height_px: i32,
    pub packet: Packet,
}

/// A stream that is being received. Dropping it ends that.
pub struct Reception {
    pipeline: gst::Pipeline,
    bus: gst::Bus,
    pub arrivals: Arc<Arrivals<Coded>>,
    /// Where the sound comes out, if it is wanted.
    pub sounds: Option<Arc<Sounds>>,
    /// Whether sound and picture come in one container, and so have one clock.
    pub is_contained: bool,
    /// What puts packets in order, which knows how many did not come.
    jitter_buffers: Arc<Mutex<Vec<gst::Element>>>,
    /// Kept open for the source that reads it.
    file: Option<OwnedFd>,
    /// Where it connects to, for saying why it cannot.
    server: Option<Server>,
    refused: Refused,
    /// Whether the track of pictures ended before what it came in.
    has_changed: Arc<AtomicBool>,
    ended: Option<Result<()>>,
}

impl Reception {
    pub fn open(address: &Address, file: Option<OwnedFd>, request: &LiveRequest) -> Result<Self> {
        load_plugins()?;
        let pipeline = gst::Pipeline::new();
        let bus = pipeline
            .bus()
            .ok_or_else(|| Error::internal("GStreamer's pipeline has no messages"))?;
        let arrivals = Arc::new(Arrivals::new(request.zero_us, request.record));
        let jitter_buffers = Arc::default();
        let sounds = request.sound_from.map(|_| Arc::new(Sounds::new(request.record)));
        let sound = sounds.as_ref().map(|sounds| (sound_sink(sounds), Arc::clone(sounds)));
        if let Some(sounds) = &sounds {
            watch_sound(&bus, sounds);
        }
        let sinks = Sinks { picture: sink(&arrivals), sound };
        let (mut server, refused) = (None, Refused::default());
        let has_changed = Arc::default();
        let mut is_contained = true;
        // Whether what comes is played at the pace of its own clock.
        let mut is_paced = false;
        match address {
            Address::Descriptor { .. } => {
                let file = file
                    .as_ref()
                    .ok_or_else(|| Error::internal("a file without its descriptor"))?;
                let path = format!("/proc/self/fd/{}", file.as_raw_fd());
                let source = element("filesrc")?;
                source.set_property("location", path);
                // As a camera would bring it.
                is_paced = true;
                watch_track(&pipeline, &sinks.picture, &has_changed);
                demux(&pipeline, &source, &sinks)?;
            }
            Address::Url(url) => {
                let url = Url::of(url)?;
                server = url.server().map(|place| {
                    let is_secure = url.scheme == "https";
                    Server { place, is_secure }
                });
                match url.scheme.as_str() {
                    "rtsp" | "rtsps" => {
                        let source = element("rtspsrc")?;
                        if let Some(server) = &server {
                            trust::watch(&source, &server.place, request.ca.as_deref(), &refused)?;
                        }
                        let transport = request.transport;
                        is_contained = false;
                        rtsp(&pipeline, &source, &url, transport, &sinks, &jitter_buffers)?
                    }
                    _ => {
                        // Segments come many frames at once.
                        is_paced = matches!(url.scheme.as_str(), "http" | "https");
                        let source = url.source()?;
                        watch_track(&pipeline, &sinks.picture, &has_changed);
                        demux(&pipeline, &source, &sinks)?;
                    }
                }
            }
        }
        sinks.set_sync(is_paced);
        // A sink that is added on the way goes at once to the state that the pipeline is on its way to. Where that is
        // PLAYING, it would let frames through unpaced until the pipeline is there and gives it a clock.
        let first = if is_paced { gst::State::Paused } else { gst::State::Playing };
        let started = pipeline.set_state(first);
        let mut reception = Reception {
            pipeline,
            bus,
            arrivals,
            sounds,
            is_contained,
            jitter_buffers,
            file,
            server,
            refused,
            has_changed,
            ended: None,
        };
        if started.is_err() {
            reception.has_ended();
            reception.end()?;
            return Err(Error::unavailable(CANNOT_CONNECT));
        }
        Ok(reception)
    }

    /// Whether the stream is over: at its end, or since it broke off.
    pub fn has_ended(&mut self) -> bool {
        let types = [gst::MessageType::Error, gst::MessageType::Eos, gst::MessageType::AsyncDone];
        while self.ended.is_none()
            && let Some(message) = self.bus.pop_filtered(&types)
        {
            self.ended = match message.view() {
                gst::MessageView::AsyncDone(_) => {
                    let played = self.pipeline.set_state(gst::State::Playing);
                    played
                        .err()
                        .map(|cause| Err(Error::unavailable(CANNOT_CONNECT).caused_by(cause)))
                }
                gst::MessageView::Error(error) => Some(Err(match self.refused.reason() {
                    Some(reason) => Error::unavailable(reason),
                    None => {
                        let has_come = self.arrivals.counts().received > 0;
                        explain(error, self.server.as_ref(), has_come)
                    }
                })),
                _ if self.has_changed.load(Ordering::SeqCst) => Some(Err(match self.file {
                    Some(_) => Error::unsupported(FILE_CHANGED),
                    None => Error::unavailable("the codec or the tracks of the stream changed"),
                })),
                _ => Some(Ok(())),
            };
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

/// Notes where the track of pictures ends and what it comes in does not: another one begins, by another codec.
fn watch_track(pipeline: &gst::Pipeline, sink: &gst_app::AppSink, has_changed: &Arc<AtomicBool>) {
    let (has_more, has_changed) = (Arc::new(AtomicBool::new(false)), Arc::clone(has_changed));
    let seen = Arc::clone(&has_more);
    pipeline.connect_deep_element_added(move |_, _, added| {
        // No other container has tracks that begin on the way.
        let is_it = added.factory().is_some_and(|factory| factory.name() == "tsdemux");
        let Some(pad) = added.static_pad("sink").filter(|_| is_it) else { return };
        seen.store(true, Ordering::SeqCst);
        let has_more = Arc::clone(&seen);
        at_end(Some(pad.clone()), move || has_more.store(false, Ordering::SeqCst));
        // Of a file, it takes what it wants, and may look at the end first.
        let has_more = Arc::clone(&seen);
        pad.add_probe(gst::PadProbeType::PULL | gst::PadProbeType::BUFFER, move |pad, info| {
            let length = pad.peer_query_duration::<gst::format::Bytes>();
            let until = info.offset.saturating_add(info.size.into());
            let is_before_end = length.is_some_and(|length| until < *length);
            has_more.store(is_before_end, Ordering::SeqCst);
            gst::PadProbeReturn::Ok
        });
    });
    at_end(sink.static_pad("sink"), move || {
        has_changed.store(has_more.load(Ordering::SeqCst), Ordering::SeqCst);
    });
}

/// Does something when the end comes to a pad.
fn at_end(pad: Option<gst::Pad>, what: impl Fn() + Send + Sync + 'static) {
    let Some(pad) = pad else { return };
    pad.add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, move |_, info| {
        if info.event().is_some_and(|event| event.type_() == gst::EventType::Eos) {
            what();
        }
        gst::PadProbeReturn::Ok
    });
}

/// An error of what is on the way to the sound costs the sound, and not the picture.
fn watch_sound(bus: &gst::Bus, sounds: &Arc<Sounds>) {
    let sounds = Arc::clone(sounds);
    bus.set_sync_handler(move |_, message| {
        let is_of_sound = message.src().is_some_and(|from| from.name().starts_with(SOUND));
        if is_of_sound && matches!(message.view(), gst::MessageView::Error(_)) {
            sounds.fail("it can't be read");
            return gst::BusSyncReply::Drop;
        }
        gst::BusSyncReply::Pass
    });
}

/// Where coded sound comes out.
fn sound_sink(sounds: &Arc<Sounds>) -> gst_app::AppSink {
    let mut wanted = gst::Caps::new_empty();
    {
        let wanted = wanted.make_mut();
        for version in [2, 4] {
            wanted.append(
                gst::Caps::builder("audio/mpeg")
                    .field("mpegversion", version)
                    .field("stream-format", "adts")
                    .build(),
            );
        }
        wanted.append(gst::Caps::builder("audio/mpeg").field("mpegversion", 1).build());
        let raw = gst::List::new(["S16BE", "S16LE"]);
        wanted.append(gst::Caps::builder("audio/x-raw").field("format", raw).build());
        for name in [
            "audio/x-alaw",
            "audio/x-mulaw",
            "audio/x-opus",
            "audio/x-ac3",
            "audio/x-eac3",
            "audio/G722",
        ] {
            wanted.append(gst::Caps::new_empty_simple(name));
        }
    }
    let sounds = Arc::clone(sounds);
    let sink = sink_of(&wanted, move |sample| {
        if let Some(packet) = sound_packet(sample) {
            sounds.push(packet);
        }
    });
    // A track that brings nothing holds up no picture.
    sink.set_property("async", false);
    sink
}

fn sound_packet(sample: &gst::Sample) -> Option<SoundPacket> {
    let buffer = sample.buffer()?;
    let caps = sample.caps()?;
    let codec = sound_codec(caps)?;
    let number = |name: &str| caps.structure(0).and_then(|caps| caps.get(name).ok()).unwrap_or(0);
    let map = buffer.map_readable().ok()?;
    let pts = buffer.pts().and_then(|time| i64::try_from(time.useconds()).ok());
    Some(SoundPacket {
        codec,
        rate_hz: number("rate"),
        channels: number("channels"),
        packet: Packet::copy(&map),
        pts,
        origin: origin(sample),
        arrived: monotonic_us(),
        captured: 0,
    })
}

/// What a track's timestamps are at where playing begins, in microseconds. In an MP4 each track has its own: its edit
/// list leaves out what an encoder of sound begins with, and by how much later frames are shown than decoded.
fn origin(sample: &gst::Sample) -> i64 {
    let segment = sample.segment().and_then(|segment| segment.downcast_ref::<gst::ClockTime>());
    let Some(segment) = segment else { return 0 };
    let micros = |time: Option<gst::ClockTime>| time.map_or(0, |time| time.useconds() as i64);
    micros(segment.start()) + micros(segment.offset()) - micros(segment.base())
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
    sink_of(&wanted, move |sample| {
        if let Some(unit) = unit(sample) {
            arrivals.begins_at(origin(sample));
            arrivals.push(unit);
        }
    })
}

/// A sink for what is wanted, which hands on each sample at once.
fn sink_of(wanted: &gst::Caps, take: impl Fn(&gst::Sample) + Send + 'static) -> gst_app::AppSink {
    let sink = gst_app::AppSink::builder().caps(wanted).sync(false).build();
    // Nothing waits in the sink: what is taken from it is counted.
    sink.set_max_buffers(1);
    sink.set_enable_last_sample(false);
    sink.set_callbacks(
        gst_app::AppSinkCallbacks::builder()
            .new_sample(move |sink| {
                let sample = sink.pull_sample().map_err(|_| gst::FlowError::Eos)?;
                take(&sample);
                Ok(gst::FlowSuccess::Ok)
            })
            .build(),
    );
    sink
}

fn unit(sample: &gst::Sample) -> Option<Unit<Coded>> {
    let buffer = sample.buffer()?;
    let caps = sample.caps()?;
    let codec = codec(caps)?;
    let side = |name: &str| caps.structure(0).and_then(|caps| caps.get(name).ok()).unwrap_or(0);
    let map = buffer.map_readable().ok()?;
    let micros = |time: gst::ClockTime| i64::try_from(time.useconds()).ok();
    let is_key = !buffer.flags().contains(gst::BufferFlags::DELTA_UNIT);
    let packet = Packet::copy(&map);
    Some(Unit {
        bytes: map.len(),
        packet: Coded { codec, width_px: side("width"), height_px: side("height"), packet },
        pts: buffer.pts().and_then(micros),
        sent: sent(buffer),
        arrived: monotonic_us(),
        captured: 0,
        is_key,
        after: None,
    })
}

/// When a frame was captured by the clock of a sender that has reported it (RTCP), since 1970.
fn sent(buffer: &gst::BufferRef) -> Option<i64> {
    let stamp = buffer.iter_meta::<gst::ReferenceTimestampMeta>().find(|stamp| {
        stamp.reference().structure(0).is_some_and(|caps| caps.name() == "timestamp/x-ntp")
    })?;
    let since_1900 = i64::try_from(stamp.timestamp().useconds()).ok()?;
    Some(since_1900 - FROM_1900_TO_1970_US)
}

#[cfg(test)]
pub mod tests {
    use std::fs::File;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::source::protocol::{Fit, Rendition, Targets, Transport};
    use crate::time::Micros;

    /// For these targets, and nothing else.
    pub fn request(targets: Targets) -> LiveRequest {
        LiveRequest {
            rendition: Rendition { width_px: 32, height_px: 18, fit: Fit::Squash },
            targets,
            zero_us: 0,
            transport: Transport::default(),
            ca: None,
            silence: Duration::from_secs(10),
            hardware: false,
            record: false,
            sound_from: None,
        }
    }

    /// On a machine that is busy, it may take the pipeline seconds to get from one state to the next.
    #[test]
    fn a_file_is_played_at_its_own_pace_however_slowly_that_begins() {
        let folder = tempfile::TempDir::new().unwrap();
        let film = folder.path().join("film.mp4");
        let made = std::process::Command::new("ffmpeg")
            .args(["-v", "error", "-nostdin", "-f", "lavfi"])
            .args(["-i", "testsrc2=s=320x180:r=25:d=4"])
            .arg(&film)
            .status()
            .unwrap();
        assert!(made.success());
        let request = request(Targets::every(Micros::from_millis(1_000), Micros(0)));
        let descriptor = Address::Descriptor { extension: None };
        let file = Some(File::open(&film).unwrap().into());
        let began = Instant::now();
        let mut reception = Reception::open(&descriptor, file, &request).unwrap();
        reception.bus.set_sync_handler(|_, message| {
            let is_all = message.src().is_some_and(|from| from.is::<gst::Pipeline>());
            if is_all && matches!(message.view(), gst::MessageView::StateChanged(_)) {
                std::thread::sleep(Duration::from_millis(700));
            }
            gst::BusSyncReply::Pass
        });
        let came = |reception: &Reception| reception.arrivals.counts().received;
        while came(&reception) < 100 {
            assert!(began.elapsed() < Duration::from_secs(60), "{} of 100 came", came(&reception));
            reception.has_ended();
            reception.arrivals.pop(Duration::from_millis(5), monotonic_us);
        }
        let took = began.elapsed();
        assert!(took > Duration::from_millis(3_900), "all came in {took:?}");
    }
}
