//! The parts of GStreamer that a host loads.

use std::path::PathBuf;

use gstreamer as gst;

use super::fetcher;
use crate::error::{Error, Result};

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

/// Initializes GStreamer with nothing but the plugins above.
pub fn load_plugins() -> Result<()> {
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
    fetcher::register()
        .map_err(|cause| Error::internal("GStreamer takes no element of ours").caused_by(cause))
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

pub fn element(name: &str) -> Result<gst::Element> {
    gst::ElementFactory::make(name).build().map_err(|cause| {
        Error::unsupported(format!("GStreamer's element {name} is not there")).caused_by(cause)
    })
}
