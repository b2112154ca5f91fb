//! Bringing frames into the rendition asked for, and sending them.

use ffmpeg_next as ffmpeg;

use ffmpeg::frame;

use super::Outbox;
use super::ffi::{self, Scaler, Shape, Target};
use super::orientation::Orientation;
use super::sampler::Gaps;
use crate::media::Change;
use crate::source::protocol::{Fit, MAX_ASPECT_RATIO, Message, Rational, Rendition};
use crate::time::{Micros, Span, Timestamp};

/// A scaled picture is never larger than this many times its rendition, however flat it is.
const MAX_COVER: f64 = 8.0;

/// Brings the held frame into its rendition, when a target wants it, and sends it.
pub struct Delivery<'a> {
    pub outbox: &'a mut Outbox,
    rendition: Rendition,
    /// How the container wants pictures turned.
    orientation: Orientation,
    held: frame::Video,
    held_pts: Timestamp,
    held_raw_pts: i64,
    pub is_sent: bool,
    scaler: Option<Scaler>,
    pub gaps: Gaps,
}

impl<'a> Delivery<'a> {
    pub fn new(rendition: Rendition, orientation: Orientation, outbox: &'a mut Outbox) -> Self {
        Delivery {
            outbox,
            rendition,
            orientation,
            held: frame::Video::empty(),
            held_pts: Timestamp::ZERO,
            held_raw_pts: 0,
            is_sent: false,
            scaler: None,
            gaps: Gaps::default(),
        }
    }

    /// Swaps the new frame in; the old one's buffer is used for the next.
    pub fn hold(&mut self, frame: &mut frame::Video, pts: Timestamp, raw_pts: i64) {
        std::mem::swap(&mut self.held, frame);
        self.held_pts = pts;
        self.held_raw_pts = raw_pts;
        self.is_sent = false;
    }

    /// Sends the held frame for `target`.
    pub fn serve(&mut self, target: Timestamp, change: Change) {
        if self.is_sent {
            self.end_gap();
            self.outbox.send(&Message::Repeat { target, change });
            return;
        }
        let Some((rgb, aspect_ratio)) = self.render() else {
            let span = Span::new(target, target + Micros(1));
            self.miss(span, "FFmpeg cannot convert this pixel format");
            return;
        };
        self.end_gap();
        let Rendition { width_px, height_px, .. } = self.rendition;
        let message = Message::Frame {
            target,
            pts: self.held_pts,
            raw_pts: self.held_raw_pts,
            width_px,
            height_px,
            aspect_ratio,
            change,
        };
        self.outbox.send_with(&message, &rgb);
        self.is_sent = true;
    }

    pub fn miss(&mut self, span: Span, reason: &str) {
        if let Some(gap) = self.gaps.add(span, reason) {
            self.outbox.send(&Message::Gap(gap));
        }
    }

    pub fn end_gap(&mut self) {
        if let Some(gap) = self.gaps.take() {
            self.outbox.send(&Message::Gap(gap));
        }
    }

    /// The held frame in the rendition, and the aspect ratio of what it shows; `None` where FFmpeg cannot
    /// convert it.
    fn render(&mut self) -> Option<(Vec<u8>, f32)> {
        let shape = ffi::shape(&self.held);
        let orientation = orientation(&self.held).unwrap_or(self.orientation);
        let layout = Layout::of(&shape, orientation, self.rendition);
        let (width, height) = layout.coded;
        if !self.scaler.as_ref().is_some_and(|scaler| scaler.fits(&shape, width, height)) {
            self.scaler = Scaler::new(shape, Target::Rgb, width, height);
        }
        let scaled = self.scaler.as_mut()?.run(&self.held)?;
        let wanted = (self.rendition.width_px as usize, self.rendition.height_px as usize);
        let size = (width as usize, height as usize);
        if orientation == Orientation::default() && size == wanted {
            return Some((scaled, layout.aspect_ratio));
        }
        let mut canvas = vec![0; wanted.0 * wanted.1 * 3];
        orientation.place(&scaled, size, &mut canvas, wanted, layout.corner);
        Some((canvas, layout.aspect_ratio))
    }
}

/// A frame's own orientation: of a coded stream that turns midway, or Exif's of a still image.
fn orientation(frame: &frame::Video) -> Option<Orientation> {
    use ffmpeg::frame::side_data::Type;
    if let Some(matrix) = frame.side_data(Type::DisplayMatrix) {
        return Orientation::from_matrix(matrix.data());
    }
    let tag = ffi::frame_metadata(frame, c"Orientation")?;
    Orientation::from_exif(tag.trim().parse().ok()?)
}

/// Where a scaled picture lies in its rendition.
#[derive(Debug, PartialEq)]
struct Layout {
    /// Size to scale the coded picture to, before it is turned.
    coded: (i32, i32),
    /// Left and top of the turned picture in the rendition; negative where it is cut.
    corner: (i64, i64),
    /// Width to height of what the rendition shows, bars included.
    aspect_ratio: f32,
}

impl Layout {
    fn of(shape: &Shape, orientation: Orientation, rendition: Rendition) -> Layout {
        let (width, height) = (f64::from(rendition.width_px), f64::from(rendition.height_px));
        let sample = shape.sample_aspect_ratio.positive().map_or(1.0, Rational::as_f64);
        let coded_ratio = f64::from(shape.width.max(1)) * sample / f64::from(shape.height.max(1));
        let ratio = if orientation.swaps_axes() { 1.0 / coded_ratio } else { coded_ratio };
        // Width over height of the picture, in units of the rendition's.
        let excess = ratio / (width / height);
        let (across, down) = match rendition.fit {
            Fit::Squash => (1.0, 1.0),
            Fit::Crop => (excess.clamp(1.0, MAX_COVER), (1.0 / excess).clamp(1.0, MAX_COVER)),
            Fit::Pad => (excess.min(1.0), (1.0 / excess).min(1.0)),
        };
        let side = |length: f64| (length.round() as i32).max(1);
        let shown = (side(width * across), side(height * down));
        let corner = |length: u32, shown: i32| (i64::from(length) - i64::from(shown)).div_euclid(2);
        let seen = match rendition.fit {
            Fit::Squash => ratio,
            Fit::Crop | Fit::Pad => width / height,
        };
        Layout {
            coded: if orientation.swaps_axes() { (shown.1, shown.0) } else { shown },
            corner: (corner(rendition.width_px, shown.0), corner(rendition.height_px, shown.1)),
            aspect_ratio: (seen as f32).clamp(1.0 / MAX_ASPECT_RATIO, MAX_ASPECT_RATIO),
        }
    }
}
