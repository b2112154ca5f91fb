//! A camera for tests: an RTSP server in this process, whose frames are coded beforehand.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use gstreamer as gst;
use gstreamer_app as gst_app;
use gstreamer_rtsp_server as rtsp;

use gst::glib;
use gst::prelude::*;
use rtsp::prelude::*;

use crate::media::ffmpeg;

/// Coded frames, one after the other, which begin with a keyframe and may be repeated.
pub type Units = Arc<Vec<Vec<u8>>>;

/// `secs` of a moving test picture as H.264 at 25 frames a second, made with these options.
pub fn coded(folder: &Path, size: &str, secs: f64, options: &str) -> Units {
    let name = format!("camera-{size}.h264");
    ffmpeg(
        folder,
        &format!(
            "-f lavfi -i testsrc2=s={size}:r=25:d={secs} -c:v libx264 -pix_fmt yuv420p {options} \
             -x264-params aud=1:repeat-headers=1 -f h264 {name}"
        ),
    );
    let bytes = std::fs::read(folder.join(name)).unwrap();
    // Each frame begins with an access unit delimiter.
    let starts: Vec<usize> = bytes
        .windows(5)
        .enumerate()
        .filter(|(_, w)| *w == [0, 0, 0, 1, 9])
        .map(|(n, _)| n)
        .collect();
    let ends = starts.iter().skip(1).copied().chain([bytes.len()]);
    Arc::new(starts.iter().zip(ends).map(|(start, end)| bytes[*start..end].to_vec()).collect())
}

/// What a camera does now, to be changed while it runs.
#[derive(Debug, Default)]
pub struct Conduct {
    /// Frames that were handed to the server.
    pub sent: AtomicU64,
    /// Sends nothing, and keeps its connections.
    pub is_stalled: AtomicBool,
    over: AtomicBool,
}

/// How a camera is set up.
#[derive(Debug, Default)]
pub struct Setup<'a> {
    /// `None`: a free one.
    pub port: Option<u16>,
    /// The user name and password that it asks for.
    pub login: Option<(&'a str, &'a str)>,
    /// The share of packets that are lost on the way.
    pub loss: f64,
}

/// A running server. Dropping it ends it, and its connections.
pub struct Camera {
    pub port: u16,
    pub conduct: Arc<Conduct>,
    server: rtsp::RTSPServer,
    main_loop: glib::MainLoop,
    thread: Option<JoinHandle<()>>,
    senders: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

impl Camera {
    /// Serves `units` again and again at `/live`.
    pub fn start(units: &Units, setup: &Setup<'_>) -> Camera {
        let Setup { port, login, loss } = *setup;
        gst::init().unwrap();
        let context = glib::MainContext::new();
        let main_loop = glib::MainLoop::new(Some(&context), false);
        let server = rtsp::RTSPServer::new();
        server.set_address("127.0.0.1");
        server.set_service(&port.unwrap_or(0).to_string());
        let factory = rtsp::RTSPMediaFactory::new();
        let payload = match loss {
            0.0 => "rtph264pay name=pay0 pt=96".to_owned(),
            loss => format!("rtph264pay pt=96 ! identity drop-probability={loss} name=pay0"),
        };
        factory.set_launch(&format!(
            "( appsrc name=src is-live=true format=time \
             caps=video/x-h264,stream-format=byte-stream,alignment=au,framerate=25/1 \
             ! h264parse ! {payload} )",
        ));
        factory.set_shared(true);
        let conduct = Arc::new(Conduct::default());
        let senders: Arc<Mutex<Vec<JoinHandle<()>>>> = Arc::default();
        {
            let (units, conduct, senders) =
                (Arc::clone(units), Arc::clone(&conduct), Arc::clone(&senders));
            factory.connect_media_configure(move |_, media| {
                let source =
                    media.element().downcast::<gst::Bin>().unwrap().by_name("src").unwrap();
                let source = source.downcast::<gst_app::AppSrc>().unwrap();
                let (units, conduct) = (Arc::clone(&units), Arc::clone(&conduct));
                let sender = std::thread::spawn(move || send(&units, &conduct, &source));
                senders.lock().unwrap().push(sender);
            });
        }
        if let Some((user, password)) = login {
            let auth = rtsp::RTSPAuth::new();
            let token = rtsp::RTSPToken::builder().field("media.factory.role", "user").build();
            auth.add_basic(&rtsp::RTSPAuth::make_basic(user, password), &token);
            auth.set_supported_methods(rtsp::gst_rtsp::RTSPAuthMethod::Basic);
            server.set_auth(Some(&auth));
            factory.add_role_from_structure(
                &gst::Structure::builder("user")
                    .field("media.factory.access", true)
                    .field("media.factory.construct", true)
                    .build(),
            );
        }
        server.mount_points().unwrap().add_factory("/live", factory);
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
        Camera { port, conduct, server, main_loop, thread: Some(thread), senders }
    }

    pub fn address(&self) -> String {
        format!("rtsp://127.0.0.1:{}/live", self.port)
    }

    pub fn sent(&self) -> u64 {
        self.conduct.sent.load(Ordering::SeqCst)
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

/// Hands over a frame each 40 ms, from the first on, until nobody wants any.
fn send(units: &Units, conduct: &Conduct, source: &gst_app::AppSrc) {
    let began = Instant::now();
    for number in 0u32.. {
        let at = Duration::from_millis(40) * number;
        std::thread::sleep(at.saturating_sub(began.elapsed()));
        if conduct.over.load(Ordering::SeqCst) {
            let _ = source.end_of_stream();
            return;
        }
        if conduct.is_stalled.load(Ordering::SeqCst) {
            continue;
        }
        let unit = &units[number as usize % units.len()];
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
