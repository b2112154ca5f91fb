//! A camera for tests: an RTSP server in this process, whose frames are coded beforehand.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use gstreamer as gst;
use gstreamer_app as gst_app;
use gstreamer_rtsp_server as rtsp;

use gst::glib;
use gst::prelude::*;
use rtsp::prelude::*;

use crate::media::ffmpeg;

/// Coded frames, one after the other, which begin with a keyframe and may be repeated.
pub type Units = Arc<Vec<Vec<u8>>>;

/// Sound to be sent again and again: 8 kHz, one channel, 16 bits.
pub type Pcm = Arc<Vec<u8>>;

/// The sound of a file, or of one of ffmpeg's sources (`-f lavfi -i sine`).
pub fn pcm(folder: &Path, input: &str) -> Pcm {
    ffmpeg(folder, &format!("{input} -ar 8000 -ac 1 -f s16le camera.pcm"));
    Arc::new(std::fs::read(folder.join("camera.pcm")).unwrap())
}

/// What a camera's sound is coded as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SoundCodec {
    #[default]
    Alaw,
    Mulaw,
    /// Uncoded.
    L16,
    Mp3,
    Opus,
    /// With one header, in the description of the stream.
    Aac,
    /// With headers in between.
    Latm,
}

/// What a camera's frames are coded as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Codec {
    #[default]
    H264,
    H265,
}

/// `secs` of a moving test picture as H.264 at 25 frames a second, made with these options.
pub fn coded(folder: &Path, size: &str, secs: f64, options: &str) -> Units {
    coded_as(Codec::H264, folder, size, secs, options)
}

/// As [`coded`], by another codec.
pub fn coded_as(codec: Codec, folder: &Path, size: &str, secs: f64, options: &str) -> Units {
    let (how, format, delimiter) = match codec {
        Codec::H264 => ("-c:v libx264 -x264-params", "h264", 9),
        Codec::H265 => ("-c:v libx265 -x265-params log-level=error:", "hevc", 70),
    };
    let how = if codec == Codec::H264 { format!("{how} ") } else { how.to_owned() };
    let name = format!("camera-{size}.{format}");
    ffmpeg(
        folder,
        &format!(
            "-f lavfi -i testsrc2=s={size}:r=25:d={secs} {how}aud=1:repeat-headers=1 \
             -pix_fmt yuv420p {options} -f {format} {name}"
        ),
    );
    Arc::new(units(&std::fs::read(folder.join(name)).unwrap(), delimiter))
}

/// The frames of a stream, each of which begins with an access unit delimiter.
pub fn units(bytes: &[u8], delimiter: u8) -> Vec<Vec<u8>> {
    let starts: Vec<usize> = bytes
        .windows(5)
        .enumerate()
        .filter(|(_, w)| *w == [0, 0, 0, 1, delimiter])
        .map(|(n, _)| n)
        .collect();
    let ends = starts.iter().skip(1).copied().chain([bytes.len()]);
    starts.iter().zip(ends).map(|(start, end)| bytes[*start..end].to_vec()).collect()
}

/// What a camera does now, to be changed while it runs.
#[derive(Debug, Default)]
pub struct Conduct {
    /// Frames that were handed to the server.
    pub sent: AtomicU64,
    /// Sends nothing, and keeps its connections.
    pub is_stalled: AtomicBool,
    /// Whoever sends has seen that.
    is_still: AtomicBool,
    /// The next frame is the first one again.
    pub is_begun_anew: AtomicBool,
    /// Frames after which nothing more is sent; 0: it goes on for ever.
    pub last: AtomicU64,
    /// Milliseconds from one frame to the next, in place of 40.
    pub pace_millis: AtomicU64,
    /// Added to timestamps, in milliseconds.
    pub jump_millis: AtomicI64,
    /// All frames have one timestamp.
    pub stands_still: AtomicBool,
    /// Packets whose timestamps were changed.
    pub restamped: AtomicU64,
    /// Sends no sound, but frames.
    pub is_mute: AtomicBool,
    /// When the sound began, in microseconds since 1970.
    pub sound_began_us: AtomicI64,
    over: AtomicBool,
}

/// How a camera is set up.
#[derive(Debug, Default)]
pub struct Setup<'a> {
    /// `None`: a free one.
    pub port: Option<u16>,
    /// The user name and password that it asks for.
    pub login: Option<(&'a str, &'a str)>,
    /// Asks for a digest of the password, and takes nothing else.
    pub is_digest: bool,
    /// The certificate that it shows and its key, for TLS; it needs a login.
    pub certificate: Option<&'a str>,
    /// The share of packets that are lost on the way.
    pub loss: f64,
    /// Sends by UDP, and refuses who wants its packets in the connection.
    pub is_udp: bool,
    pub codec: Codec,
    pub sound: Option<&'a Pcm>,
    pub sound_codec: SoundCodec,
}

/// A running server. Dropping it ends it, and its connections.
pub struct Camera {
    pub port: u16,
    pub conduct: Arc<Conduct>,
    server: rtsp::RTSPServer,
    factory: rtsp::RTSPMediaFactory,
    main_loop: glib::MainLoop,
    thread: Option<JoinHandle<()>>,
    senders: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

impl Camera {
    /// Serves `units` again and again at `/live`.
    pub fn start(units: &Units, setup: &Setup<'_>) -> Camera {
        let Setup { port, login, is_digest, certificate, loss, is_udp, codec, sound, sound_codec } =
            *setup;
        gst::init().unwrap();
        let context = glib::MainContext::new();
        let main_loop = glib::MainLoop::new(Some(&context), false);
        let server = rtsp::RTSPServer::new();
        server.set_address("127.0.0.1");
        server.set_service(&port.unwrap_or(0).to_string());
        let factory = rtsp::RTSPMediaFactory::new();
        let codec = match codec {
            Codec::H264 => "h264",
            Codec::H265 => "h265",
        };
        let sound_way = sound.map_or(String::new(), |_| {
            let how = match sound_codec {
                // Timestamps of samples, whether those before were sent or not.
                SoundCodec::Alaw => "alawenc ! rtppcmapay name=pay1 pt=8 perfect-rtptime=false",
                SoundCodec::Mulaw => "mulawenc ! rtppcmupay name=pay1 pt=0 perfect-rtptime=false",
                SoundCodec::L16 => "audioconvert ! rtpL16pay name=pay1 pt=97",
                SoundCodec::Mp3 => {
                    "audioconvert ! audioresample ! audio/x-raw,rate=32000 ! lamemp3enc \
                     ! mpegaudioparse ! rtpmpapay name=pay1 pt=14"
                }
                SoundCodec::Opus => {
                    "audioconvert ! audioresample ! opusenc ! rtpopuspay name=pay1 pt=97"
                }
                SoundCodec::Aac => {
                    "audioconvert ! audioresample ! audio/x-raw,rate=16000 ! voaacenc ! aacparse \
                     ! rtpmp4gpay name=pay1 pt=97"
                }
                SoundCodec::Latm => {
                    "audioconvert ! audioresample ! audio/x-raw,rate=16000 ! voaacenc ! aacparse \
                     ! rtpmp4apay name=pay1 pt=97"
                }
            };
            format!(
                "appsrc name=sound is-live=true format=time \
                 caps=audio/x-raw,format=S16LE,rate=8000,channels=1,layout=interleaved ! {how}"
            )
        });
        // The server takes what is named pay0.
        let payload = match loss {
            0.0 => format!("rtp{codec}pay name=pay0 pt=96"),
            loss => format!("rtp{codec}pay pt=96 ! identity drop-probability={loss} name=pay0"),
        };
        factory.set_launch(&format!(
            "( appsrc name=src is-live=true format=time \
             caps=video/x-{codec},stream-format=byte-stream,alignment=au \
             ! {codec}parse ! {payload} {sound_way} )",
        ));
        factory.set_shared(true);
        if is_udp {
            factory.set_protocols(rtsp::gst_rtsp::RTSPLowerTrans::UDP);
        }
        let conduct = Arc::new(Conduct::default());
        let senders: Arc<Mutex<Vec<JoinHandle<()>>>> = Arc::default();
        {
            let (units, conduct, senders) =
                (Arc::clone(units), Arc::clone(&conduct), Arc::clone(&senders));
            let sound = sound.cloned();
            factory.connect_media_configure(move |_, media| {
                let bin = media.element().downcast::<gst::Bin>().unwrap();
                let source = bin.by_name("src").unwrap().downcast::<gst_app::AppSrc>().unwrap();
                let exit = bin.by_name("pay0").unwrap().static_pad("src").unwrap();
                set_timestamps(&exit, &conduct);
                let mut senders = senders.lock().unwrap();
                if let Some(sound) = sound.clone() {
                    let source = bin.by_name("sound").unwrap();
                    let source = source.downcast::<gst_app::AppSrc>().unwrap();
                    let conduct = Arc::clone(&conduct);
                    senders.push(std::thread::spawn(move || say(&sound, &conduct, &source)));
                }
                let (units, conduct) = (Arc::clone(&units), Arc::clone(&conduct));
                senders.push(std::thread::spawn(move || send(&units, &conduct, &source)));
            });
        }
        if let Some(login) = login {
            server.set_auth(Some(&doorkeeper(login, is_digest, certificate)));
            factory.add_role_from_structure(
                &gst::Structure::builder("user")
                    .field("media.factory.access", true)
                    .field("media.factory.construct", true)
                    .build(),
            );
        }
        server.mount_points().unwrap().add_factory("/live", factory.clone());
        // A port is free again some moments after its last connection was closed.
        let began = Instant::now();
        while server.attach(Some(&context)).is_err() {
            assert!(began.elapsed() < Duration::from_secs(10), "the port stays in use");
            std::thread::sleep(Duration::from_millis(50));
        }
        let port = u16::try_from(server.bound_port()).unwrap();
        let thread = {
            let main_loop = main_loop.clone();
            std::thread::spawn(move || {
                context.with_thread_default(|| main_loop.run()).unwrap();
            })
        };
        // A loop that has not begun cannot be quit.
        while !main_loop.is_running() {
            std::thread::sleep(Duration::from_millis(1));
        }
        Camera { port, conduct, server, factory, main_loop, thread: Some(thread), senders }
    }

    pub fn address(&self) -> String {
        format!("rtsp://127.0.0.1:{}/live", self.port)
    }

    /// Asks for this user name and password from now on.
    pub fn set_login(&self, login: (&str, &str)) {
        self.server.set_auth(Some(&doorkeeper(login, false, None)));
    }

    /// Serves the same at another path, too.
    pub fn serve_at(&self, path: &str) {
        self.server.mount_points().unwrap().add_factory(path, self.factory.clone());
    }

    pub fn sent(&self) -> u64 {
        self.conduct.sent.load(Ordering::SeqCst)
    }

    /// Sends nothing from now on, so that what was sent by then is all.
    pub fn stall(&self) {
        self.conduct.is_stalled.store(true, Ordering::SeqCst);
        let began = Instant::now();
        while !self.conduct.is_still.load(Ordering::SeqCst) {
            assert!(began.elapsed() < Duration::from_secs(60), "nobody sends");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Camera {
    fn drop(&mut self) {
        self.conduct.over.store(true, Ordering::SeqCst);
        self.server.client_filter(Some(&mut |_, client| {
            client.close();
            rtsp::RTSPFilterResult::Remove
        }));
        self.main_loop.quit();
        let _ = self.thread.take().unwrap().join();
        for sender in self.senders.lock().unwrap().drain(..) {
            let _ = sender.join();
        }
    }
}

/// What lets in those with this user name and password; `certificate` is shown to them.
fn doorkeeper(
    (user, password): (&str, &str),
    is_digest: bool,
    certificate: Option<&str>,
) -> rtsp::RTSPAuth {
    let auth = rtsp::RTSPAuth::new();
    let token = rtsp::RTSPToken::builder().field("media.factory.role", "user").build();
    if is_digest {
        auth.add_digest(user, password, &token);
        auth.set_supported_methods(rtsp::gst_rtsp::RTSPAuthMethod::Digest);
    } else {
        auth.add_basic(&rtsp::RTSPAuth::make_basic(user, password), &token);
        auth.set_supported_methods(rtsp::gst_rtsp::RTSPAuthMethod::Basic);
    }
    let certificate = certificate.map(|pem| gio::TlsCertificate::from_pem(pem).unwrap());
    auth.set_tls_certificate(certificate.as_ref());
    auth
}

/// Changes the timestamps of packets (RFC 3550, 5.1: four bytes from the fifth on).
fn set_timestamps(pad: &gst::Pad, conduct: &Arc<Conduct>) {
    let conduct = Arc::clone(conduct);
    let held = AtomicI64::new(-1);
    let change = move |buffer: &mut gst::BufferRef| {
        let jump = conduct.jump_millis.load(Ordering::SeqCst) * 90;
        let stands_still = conduct.stands_still.load(Ordering::SeqCst);
        if jump == 0 && !stands_still {
            held.store(-1, Ordering::SeqCst);
            return;
        }
        let mut map = buffer.map_writable().unwrap();
        let stamp: [u8; 4] = map[4..8].try_into().unwrap();
        let mut stamp = u32::from_be_bytes(stamp).wrapping_add(jump as u32);
        if stands_still {
            let _ = held.compare_exchange(-1, stamp.into(), Ordering::SeqCst, Ordering::SeqCst);
            stamp = held.load(Ordering::SeqCst) as u32;
        }
        map[4..8].copy_from_slice(&stamp.to_be_bytes());
        conduct.restamped.fetch_add(1, Ordering::SeqCst);
    };
    let types = gst::PadProbeType::BUFFER | gst::PadProbeType::BUFFER_LIST;
    pad.add_probe(types, move |_, info| {
        match &mut info.data {
            Some(gst::PadProbeData::Buffer(buffer)) => change(buffer.make_mut()),
            Some(gst::PadProbeData::BufferList(list)) => {
                let list = list.make_mut();
                for place in 0..list.len() {
                    change(list.get_mut(place).unwrap());
                }
            }
            _ => {}
        }
        gst::PadProbeReturn::Ok
    });
}

/// Hands over a frame each 40 ms, from the first on, until nobody wants any.
fn send(units: &Units, conduct: &Conduct, source: &gst_app::AppSrc) {
    let began = Instant::now();
    let (mut at, mut next) = (Duration::ZERO, 0);
    loop {
        let pace = conduct.pace_millis.load(Ordering::SeqCst);
        at += Duration::from_millis(if pace == 0 { 40 } else { pace });
        std::thread::sleep(at.saturating_sub(began.elapsed()));
        if conduct.over.load(Ordering::SeqCst) {
            let _ = source.end_of_stream();
            return;
        }
        let last = conduct.last.load(Ordering::SeqCst);
        let is_over = last > 0 && conduct.sent.load(Ordering::SeqCst) >= last;
        let is_still = is_over || conduct.is_stalled.load(Ordering::SeqCst);
        conduct.is_still.store(is_still, Ordering::SeqCst);
        if !is_still && conduct.is_begun_anew.swap(false, Ordering::SeqCst) {
            next = 0;
        }
        let unit = &units[next];
        // What is not sent is left out.
        next = (next + 1) % units.len();
        if is_still {
            continue;
        }
        let mut buffer = gst::Buffer::from_slice(unit.clone());
        let time = gst::ClockTime::from_nseconds(at.as_nanos() as u64);
        buffer.get_mut().unwrap().set_pts(time);
        buffer.get_mut().unwrap().set_dts(time);
        if source.push_buffer(buffer).is_err() {
            return;
        }
        conduct.sent.fetch_add(1, Ordering::SeqCst);
    }
}

/// Hands over sound, 20 ms at a time, from its start on, until nobody wants any.
fn say(sound: &Pcm, conduct: &Conduct, source: &gst_app::AppSrc) {
    const BLOCK: usize = 320;
    let began = Instant::now();
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    conduct.sound_began_us.store(since.as_micros() as i64, Ordering::SeqCst);
    for (number, block) in sound.chunks_exact(BLOCK).cycle().enumerate() {
        let at = Duration::from_millis(20 * number as u64);
        std::thread::sleep(at.saturating_sub(began.elapsed()));
        if conduct.over.load(Ordering::SeqCst) {
            let _ = source.end_of_stream();
            return;
        }
        if conduct.is_mute.load(Ordering::SeqCst) {
            continue;
        }
        let mut buffer = gst::Buffer::from_slice(block.to_vec());
        let time = gst::ClockTime::from_nseconds(at.as_nanos() as u64);
        buffer.get_mut().unwrap().set_pts(time);
        if source.push_buffer(buffer).is_err() {
            return;
        }
    }
}
