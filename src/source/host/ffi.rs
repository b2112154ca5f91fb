//! The calls into FFmpeg that `ffmpeg-next` has no safe form of. Everything `unsafe` of the decoder
//! host is here; each function is safe to call with any value of its types.

#![allow(unsafe_code, reason = "FFmpeg's fields and functions that ffmpeg-next does not wrap")]

use std::ffi::{CStr, c_int};
use std::ptr;

use ffmpeg_next as ffmpeg;

use ffmpeg::ffi as av;
use ffmpeg::format::context::Input;
use ffmpeg::frame;

use crate::source::protocol::{FieldOrder, Rational};

/// What a track's parameters state.
#[derive(Debug, Clone)]
pub struct Parameters {
    pub width: i32,
    pub height: i32,
    pub sample_aspect_ratio: Rational,
    pub field_order: FieldOrder,
    pub pixel_format: Option<String>,
    pub channels: i32,
    pub sample_rate: i32,
}

/// The parameters of track `index`; `None` where there is no such track.
pub fn parameters(input: &Input, index: usize) -> Option<Parameters> {
    let stream = input.stream(index)?;
    // SAFETY: a stream of an open input has codec parameters for as long as the input lives; the
    // enum fields are read as integers, since a file may put any value there.
    unsafe {
        let stream = stream.as_ptr();
        let parameters = (*stream).codecpar;
        let stated = (*stream).sample_aspect_ratio;
        let sample_aspect_ratio =
            if stated.num > 0 { stated } else { (*parameters).sample_aspect_ratio };
        let is_picture = (&raw const (*parameters).codec_type).cast::<c_int>().read()
            == av::AVMediaType::AVMEDIA_TYPE_VIDEO as c_int;
        Some(Parameters {
            width: (*parameters).width,
            height: (*parameters).height,
            sample_aspect_ratio: Rational {
                num: sample_aspect_ratio.num,
                den: sample_aspect_ratio.den,
            },
            // AVFieldOrder: unknown, progressive, then the coded and displayed field first.
            field_order: match (&raw const (*parameters).field_order).cast::<c_int>().read() {
                1 => FieldOrder::Progressive,
                2 | 5 => FieldOrder::TopFirst,
                3 | 4 => FieldOrder::BottomFirst,
                _ => FieldOrder::Unknown,
            },
            pixel_format: is_picture.then(|| pixel_format((*parameters).format)).flatten().map(
                |format| {
                    let name = av::av_get_pix_fmt_name(format);
                    if name.is_null() {
                        String::new()
                    } else {
                        CStr::from_ptr(name).to_string_lossy().into_owned()
                    }
                },
            ),
            channels: (*parameters).ch_layout.nb_channels,
            sample_rate: (*parameters).sample_rate,
        })
    }
}

fn pixel_format(format: c_int) -> Option<av::AVPixelFormat> {
    let known = 0..av::AVPixelFormat::AV_PIX_FMT_NB as c_int;
    // SAFETY: the values below AV_PIX_FMT_NB are the enum's own, without holes.
    known.contains(&format).then(|| unsafe { std::mem::transmute(format) })
}

/// A value of the container's metadata (`track` is `None`) or of a track's.
pub fn metadata(input: &Input, track: Option<usize>, key: &CStr) -> Option<String> {
    let stream = match track {
        Some(index) => Some(input.stream(index)?),
        None => None,
    };
    // SAFETY: both dictionaries belong to the open input; a value is a C string that lives as long
    // as the dictionary is not changed. Its encoding is whatever the file holds.
    unsafe {
        let dictionary = match stream {
            Some(stream) => (*stream.as_ptr()).metadata,
            None => (*input.as_ptr()).metadata,
        };
        value(dictionary, key)
    }
}

/// What reading the bytes themselves broke off with; demuxers often take it for the end.
pub fn read_error(input: &Input) -> Option<ffmpeg::Error> {
    // SAFETY: a demuxer's reader is null or lives as long as the demuxer, which is borrowed.
    let error = unsafe { (*input.as_ptr()).pb.as_ref() }.map_or(0, |reader| reader.error);
    Some(ffmpeg::Error::from(error)).filter(|found| error < 0 && *found != ffmpeg::Error::Eof)
}

/// Whether the bytes have ended before the length that was stated for them.
pub fn ended_early(input: &Input) -> bool {
    // SAFETY: as above. Both calls only ask: for the size, and for the place by a seek of nothing.
    unsafe {
        (*input.as_ptr()).pb.as_mut().is_some_and(|reader| {
            let place = av::avio_seek(reader, 0, av::SEEK_CUR);
            reader.eof_reached != 0 && 0 <= place && place < av::avio_size(reader)
        })
    }
}

/// A track's codec and the bytes that its container keeps for the decoder.
pub fn codec(input: &Input, track: usize) -> (ffmpeg::codec::Id, Vec<u8>) {
    const MOST: c_int = 1 << 20;
    let Some(stream) = input.stream(track) else { return (ffmpeg::codec::Id::None, Vec::new()) };
    let parameters = stream.parameters();
    // SAFETY: the parameters' extradata are null or as many bytes as they say, while they live.
    let extradata = unsafe {
        let parameters = parameters.as_ptr();
        let (data, size) = ((*parameters).extradata, (*parameters).extradata_size);
        if data.is_null() || !(1..=MOST).contains(&size) {
            Vec::new()
        } else {
            std::slice::from_raw_parts(data, size as usize).to_vec()
        }
    };
    (parameters.id(), extradata)
}

/// A value of a decoded frame's metadata.
pub fn frame_metadata(frame: &frame::Video, key: &CStr) -> Option<String> {
    // SAFETY: the dictionary, which may be null, belongs to the frame.
    unsafe { value((*frame.as_ptr()).metadata, key) }
}

/// # Safety
/// `dictionary` is null or a dictionary that lives during the call.
unsafe fn value(dictionary: *const av::AVDictionary, key: &CStr) -> Option<String> {
    // SAFETY: as the caller promises; an entry and its value live as long as the dictionary.
    let value = unsafe {
        let entry = av::av_dict_get(dictionary, key.as_ptr(), ptr::null(), 0);
        if entry.is_null() || (*entry).value.is_null() {
            return None;
        }
        CStr::from_ptr((*entry).value).to_string_lossy()
    };
    let value: String = value.chars().filter(|c| !c.is_control()).take(256).collect();
    (!value.is_empty()).then_some(value)
}

/// The container's start in microseconds, where FFmpeg found one.
pub fn start_time(input: &Input) -> Option<i64> {
    // SAFETY: a plain field of the open input.
    let start = unsafe { (*input.as_ptr()).start_time };
    (start != av::AV_NOPTS_VALUE).then_some(start)
}

/// Whether the duration was reckoned from the bit rate, for want of anything better.
pub fn is_duration_guessed(input: &Input) -> bool {
    use av::AVDurationEstimationMethod::AVFMT_DURATION_FROM_BITRATE;
    // SAFETY: a plain field of the open input, which FFmpeg sets to one of its values.
    unsafe { (*input.as_ptr()).duration_estimation_method == AVFMT_DURATION_FROM_BITRATE }
}

/// Whether the container format's timestamps may jump (transport and program streams).
pub fn may_jump(input: &Input) -> bool {
    // SAFETY: an open input has a format, which is static data.
    unsafe { (*(*input.as_ptr()).iformat).flags & av::AVFMT_TS_DISCONT != 0 }
}

/// Makes the demuxer drop all packets but those of the tracks that `keep` accepts.
pub fn keep_tracks(input: &mut Input, keep: impl Fn(usize) -> bool) {
    for index in 0..input.nb_streams() as usize {
        let Some(mut stream) = input.stream_mut(index) else { continue };
        // SAFETY: the stream belongs to the open input, which is borrowed mutably.
        unsafe {
            (*stream.as_mut_ptr()).discard = if keep(index) {
                av::AVDiscard::AVDISCARD_DEFAULT
            } else {
                av::AVDiscard::AVDISCARD_ALL
            };
        }
    }
}

/// Moves to the last keyframe of `track` at or before `raw_pts`, as far as the container knows.
pub fn seek(input: &mut Input, track: usize, raw_pts: i64) -> Result<(), ffmpeg::Error> {
    let track = c_int::try_from(track).map_err(|_| ffmpeg::Error::StreamNotFound)?;
    // SAFETY: the input is open and borrowed mutably; a wrong track or time gives an error code.
    let code =
        unsafe { av::avformat_seek_file(input.as_mut_ptr(), track, i64::MIN, raw_pts, raw_pts, 0) };
    if code < 0 { Err(ffmpeg::Error::from(code)) } else { Ok(()) }
}

/// `value` in units of `from`, in units of `to`, rounded down; saturating.
pub fn rescale_down(value: i64, from: Rational, to: Rational) -> i64 {
    let numerator = i128::from(value) * i128::from(from.num) * i128::from(to.den);
    let denominator = i128::from(from.den) * i128::from(to.num);
    if denominator == 0 {
        return 0;
    }
    let scaled = numerator.div_euclid(denominator);
    i64::try_from(scaled).unwrap_or(if scaled < 0 { i64::MIN } else { i64::MAX })
}

/// The shape of a decoded picture, as far as scaling depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    pub width: i32,
    pub height: i32,
    pub sample_aspect_ratio: Rational,
    format: c_int,
    matrix: c_int,
    range: c_int,
    /// Two fields of different instants, line by line.
    pub is_interlaced: bool,
    pub is_top_first: bool,
}

pub fn shape(frame: &frame::Video) -> Shape {
    // SAFETY: plain fields of a frame that `ffmpeg-next` allocated; enums are read as integers.
    unsafe {
        let frame = frame.as_ptr();
        let sample_aspect_ratio = (*frame).sample_aspect_ratio;
        Shape {
            width: (*frame).width,
            height: (*frame).height,
            sample_aspect_ratio: Rational {
                num: sample_aspect_ratio.num,
                den: sample_aspect_ratio.den,
            },
            format: (*frame).format,
            matrix: (&raw const (*frame).colorspace).cast::<c_int>().read(),
            range: (&raw const (*frame).color_range).cast::<c_int>().read(),
            is_interlaced: (*frame).interlaced_frame != 0,
            is_top_first: (*frame).top_field_first != 0,
        }
    }
}

/// What a scaler makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Packed RGB, three bytes a pixel, every source sample counted (box filter).
    Rgb,
    /// Luma, one byte a pixel, from samples at equal distances.
    Sampled,
}

impl Target {
    pub fn bytes_per_pixel(self) -> usize {
        match self {
            Target::Rgb => 3,
            Target::Sampled => 1,
        }
    }
}

/// Scales pictures of one shape to one size.
#[derive(Debug)]
pub struct Scaler {
    context: *mut av::SwsContext,
    shape: Shape,
    target: Target,
    width: i32,
    height: i32,
    /// Lines of one field instead of all, where the picture is interlaced and tall enough.
    takes_field: bool,
}

impl Scaler {
    /// `None` where FFmpeg cannot scale pictures of this shape.
    pub fn new(shape: Shape, target: Target, width: i32, height: i32) -> Option<Scaler> {
        // Fields of 4:2:0 pictures have whole chroma lines only where the height divides by four.
        let takes_field =
            shape.is_interlaced && shape.height >= 2 * height && shape.height % 4 == 0;
        let source_height = if takes_field { shape.height / 2 } else { shape.height };
        let source_format = pixel_format(shape.format)?;
        let (format, flags) = match target {
            // Photographs for the CNNs were shrunk with every pixel counted, as a box filter does;
            // fast bilinear reads two lines of each ten and aliases. The box takes .9 ms for a
            // 1080p picture, of which a second of film needs one or two.
            Target::Rgb => (av::AVPixelFormat::AV_PIX_FMT_RGB24, av::SWS_AREA),
            Target::Sampled => (av::AVPixelFormat::AV_PIX_FMT_GRAY8, av::SWS_POINT),
        };
        // SAFETY: sizes and formats are checked by the callee, which returns null where it cannot.
        let context = unsafe {
            if av::sws_isSupportedInput(source_format) == 0 {
                return None;
            }
            av::sws_getContext(
                shape.width,
                source_height,
                source_format,
                width,
                height,
                format,
                flags,
                ptr::null_mut(),
                ptr::null_mut(),
                ptr::null(),
            )
        };
        if context.is_null() {
            return None;
        }
        // An unstated matrix is that of the size's usual standard, as players assume it.
        const UNSPECIFIED: c_int = 2;
        let matrix = match shape.matrix {
            UNSPECIFIED | 0 | 3 if shape.width >= 1280 || shape.height > 576 => av::SWS_CS_ITU709,
            UNSPECIFIED | 0 | 3 => av::SWS_CS_ITU601,
            stated => stated,
        };
        const FULL: c_int = 2;
        let is_full = c_int::from(shape.range == FULL || is_full_range_format(source_format));
        // SAFETY: the context is not null; the coefficient tables are static. Formats that have no
        // matrix (RGB, gray) give an error code, which means that there is nothing to set.
        unsafe {
            let coefficients = av::sws_getCoefficients(matrix);
            let rgb = av::sws_getCoefficients(av::SWS_CS_DEFAULT);
            const ONE: c_int = 1 << 16;
            av::sws_setColorspaceDetails(context, coefficients, is_full, rgb, 1, 0, ONE, ONE);
        }
        Some(Scaler { context, shape, target, width, height, takes_field })
    }

    pub fn fits(&self, shape: &Shape, width: i32, height: i32) -> bool {
        self.shape == *shape && (self.width, self.height) == (width, height)
    }

    /// Rows without padding. `None` where the frame is not of the scaler's shape or FFmpeg fails.
    pub fn run(&mut self, frame: &frame::Video) -> Option<Vec<u8>> {
        if shape(frame) != self.shape {
            return None;
        }
        let row_bytes = usize::try_from(self.width).ok()? * self.target.bytes_per_pixel();
        let rows = usize::try_from(self.height).ok()?;
        // swscale's vector code may write past the end of a row: rows are padded, and one spare
        // row follows the last.
        let stride = row_bytes.next_multiple_of(64) + 64;
        let mut padded = vec![0u8; stride * (rows + 1)];
        // SAFETY: the frame's planes hold `shape.height` lines with its line sizes; every second
        // line from the first or second one on stays within them. The output has `height` rows of
        // `stride` bytes and room to spare. The formats are those that the context was made for.
        let done = unsafe {
            let frame = frame.as_ptr();
            if (*frame).data[0].is_null() {
                return None;
            }
            let mut data = [ptr::null::<u8>(); 4];
            let mut line_sizes = [0; 4];
            for plane in 0..4 {
                data[plane] = (*frame).data[plane];
                line_sizes[plane] = (*frame).linesize[plane];
                // The second plane of a palette picture is its table, which has no lines.
                let has_lines = line_sizes[plane] != 0 && !data[plane].is_null();
                if self.takes_field && has_lines {
                    if !self.shape.is_top_first {
                        data[plane] = data[plane].offset(line_sizes[plane] as isize);
                    }
                    line_sizes[plane] *= 2;
                }
            }
            let out = [padded.as_mut_ptr(), ptr::null_mut(), ptr::null_mut(), ptr::null_mut()];
            let out_strides = [c_int::try_from(stride).ok()?, 0, 0, 0];
            let lines = if self.takes_field { self.shape.height / 2 } else { self.shape.height };
            av::sws_scale(
                self.context,
                data.as_ptr(),
                line_sizes.as_ptr(),
                0,
                lines,
                out.as_ptr(),
                out_strides.as_ptr(),
            )
        };
        if done != self.height {
            return None;
        }
        let mut packed = Vec::with_capacity(row_bytes * rows);
        for row in padded.chunks_exact(stride).take(rows) {
            packed.extend_from_slice(&row[..row_bytes]);
        }
        Some(packed)
    }
}

impl Drop for Scaler {
    fn drop(&mut self) {
        // SAFETY: made by `sws_getContext`, freed once.
        unsafe { av::sws_freeContext(self.context) }
    }
}

/// The deprecated `yuvj` formats, whose range is in their name.
fn is_full_range_format(format: av::AVPixelFormat) -> bool {
    use av::AVPixelFormat as F;
    matches!(
        format,
        F::AV_PIX_FMT_YUVJ420P
            | F::AV_PIX_FMT_YUVJ422P
            | F::AV_PIX_FMT_YUVJ444P
            | F::AV_PIX_FMT_YUVJ440P
            | F::AV_PIX_FMT_YUVJ411P
    )
}

/// What a text packet decodes to.
#[derive(Debug, Default)]
pub struct Texts {
    /// Display times in milliseconds, relative to the packet's pts.
    pub start_ms: u32,
    pub end_ms: u32,
    /// Lines in ASS's event form, or plain text.
    pub texts: Vec<SubtitleText>,
    pub bitmaps: usize,
}

#[derive(Debug)]
pub enum SubtitleText {
    Ass(String),
    Plain(String),
}

/// Decodes one packet of a text track; `None` where it holds nothing to show.
pub fn decode_subtitle(
    decoder: &mut ffmpeg::decoder::Opened,
    packet: &ffmpeg::Packet,
) -> Result<Option<Texts>, ffmpeg::Error> {
    use ffmpeg::packet::Ref;
    if decoder.medium() != ffmpeg::media::Type::Subtitle {
        return Err(ffmpeg::Error::InvalidData);
    }
    // SAFETY: the decoder is an open subtitle decoder; `subtitle` is zeroed as the callee wants it
    // and freed with its own function; its strings are read while it lives.
    unsafe {
        let mut subtitle: av::AVSubtitle = std::mem::zeroed();
        let mut is_there: c_int = 0;
        let code = av::avcodec_decode_subtitle2(
            decoder.as_mut_ptr(),
            &raw mut subtitle,
            &raw mut is_there,
            packet.as_ptr().cast_mut(),
        );
        if code < 0 {
            return Err(ffmpeg::Error::from(code));
        }
        if is_there == 0 {
            return Ok(None);
        }
        let mut texts = Texts {
            start_ms: subtitle.start_display_time,
            end_ms: subtitle.end_display_time,
            ..Texts::default()
        };
        let text = |text: *const std::ffi::c_char| {
            (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
        };
        for index in 0..subtitle.num_rects as usize {
            let rect = *subtitle.rects.add(index);
            if let Some(ass) = text((*rect).ass) {
                texts.texts.push(SubtitleText::Ass(ass));
            } else if let Some(plain) = text((*rect).text) {
                texts.texts.push(SubtitleText::Plain(plain));
            } else {
                texts.bitmaps += 1;
            }
        }
        av::avsubtitle_free(&raw mut subtitle);
        Ok(Some(texts))
    }
}

/// Devices of this machine that may decode in hardware: one at least.
#[cfg(feature = "live")]
#[derive(Debug)]
pub struct Hardware(Vec<(av::AVHWDeviceType, *mut av::AVBufferRef)>);

#[cfg(feature = "live")]
impl Hardware {
    /// Opens those that are there, which takes a moment; `None` where there are none.
    pub fn open() -> Option<Hardware> {
        use av::AVHWDeviceType::{AV_HWDEVICE_TYPE_CUDA, AV_HWDEVICE_TYPE_VAAPI};
        let open = |kind| {
            let mut device = ptr::null_mut();
            // SAFETY: the device is made by the callee, or not at all.
            let code = unsafe {
                let none = (ptr::null(), ptr::null_mut());
                av::av_hwdevice_ctx_create(&raw mut device, kind, none.0, none.1, 0)
            };
            (code >= 0).then_some((kind, device))
        };
        // That a machine has no such device is no error.
        // SAFETY: sets a global integer.
        unsafe { av::av_log_set_level(av::AV_LOG_QUIET) };
        let kinds = [AV_HWDEVICE_TYPE_CUDA, AV_HWDEVICE_TYPE_VAAPI];
        let devices: Vec<_> = kinds.into_iter().filter_map(open).collect();
        log_errors_only();
        (!devices.is_empty()).then_some(Hardware(devices))
    }

    /// Lets a decoder that is not open yet use the first device that decodes `codec`. What the device cannot do,
    /// the decoder does itself: without a choice of ours it takes the device's format where that is offered
    /// (`avcodec_default_get_format`), and is asked again without it where the device fails to begin.
    pub fn lend(&self, context: &mut ffmpeg::codec::Context, codec: ffmpeg::Codec) {
        const BY_DEVICE: c_int = av::AV_CODEC_HW_CONFIG_METHOD_HW_DEVICE_CTX as c_int;
        // SAFETY: a codec is static data, and so are its ways to decode, which are followed by null.
        let way = |index| unsafe { av::avcodec_get_hw_config(codec.as_ptr(), index).as_ref() };
        let decodes = |kind| {
            let mut ways = (0..).map_while(way);
            ways.any(|way| way.methods & BY_DEVICE != 0 && way.device_type == kind)
        };
        if let Some((_, device)) = self.0.iter().find(|(kind, _)| decodes(*kind)) {
            // SAFETY: the device lives as long as `self`; the context, which is borrowed mutably and had none,
            // owns and frees the new reference to it.
            unsafe { (*context.as_mut_ptr()).hw_device_ctx = av::av_buffer_ref(*device) };
        }
    }
}

#[cfg(feature = "live")]
impl Drop for Hardware {
    fn drop(&mut self) {
        for (_, device) in &mut self.0 {
            // SAFETY: made by `av_hwdevice_ctx_create`, freed once.
            unsafe { av::av_buffer_unref(device) };
        }
    }
}

/// Brings a picture that lies in a device's memory into this machine's; whether it lay there.
#[cfg(feature = "live")]
pub fn fetch(frame: &mut frame::Video) -> Result<bool, ffmpeg::Error> {
    // SAFETY: both frames are valid; the callees make buffers of the other's size for the empty one, or
    // give an error code. What is cut off a picture at its left and above, the decoder cannot cut in a
    // device's memory.
    unsafe {
        let there = frame.as_ptr();
        if (*there).hw_frames_ctx.is_null() {
            return Ok(false);
        }
        let mut copy = frame::Video::empty();
        let here = copy.as_mut_ptr();
        let done = |code: c_int| if code < 0 { Err(ffmpeg::Error::from(code)) } else { Ok(()) };
        done(av::av_hwframe_transfer_data(here, there, 0))?;
        done(av::av_frame_copy_props(here, there))?;
        done(av::av_frame_apply_cropping(here, av::AV_FRAME_CROP_UNALIGNED as c_int))?;
        *frame = copy;
    }
    Ok(true)
}

/// Sets the log's threshold, so that only errors are formatted and written.
pub fn log_errors_only() {
    // SAFETY: sets a global integer.
    unsafe { av::av_log_set_level(av::AV_LOG_ERROR) }
}
