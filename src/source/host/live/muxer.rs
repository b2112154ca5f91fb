//! Coded frames into fragmented MP4 (ISO/IEC 14496-12), in memory, by FFmpeg's muxer. Everything
//! `unsafe` of that is here.

#![allow(unsafe_code, reason = "FFmpeg's muxers write into memory by calls that have no safe form")]

use std::ptr;

use ffmpeg_next as ffmpeg;

use ffmpeg::codec::Id;
use ffmpeg::ffi as av;
use ffmpeg::packet::Mut;
use ffmpeg::{Dictionary, Packet};

use super::soundtrack::SoundFormat;

/// Ticks of a picture's timestamps in a second. Those of sound are its samples.
pub const TICKS: i64 = 90_000;

/// One file in the making. Its headers and the fragments that it gives, one after the other, are the file;
/// so are its headers and any later fragments, from one with a keyframe on.
pub struct Muxer {
    context: *mut av::AVFormatContext,
}

/// The streams of a file.
const PICTURE: usize = 0;
const SOUND: usize = 1;

/// What all frames of a file have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Format {
    pub codec: Id,
    pub width_px: i32,
    pub height_px: i32,
    /// What a decoder needs before the first frame, with start codes.
    pub headers: Vec<u8>,
}

/// Fragments end where it is said; nothing is kept for an end that may never come; each is found
/// by its own place; times are what they are, also where a stream begins later than the other.
const FLAGS: &str = "frag_custom+empty_moov+default_base_moof+skip_trailer+frag_discont";

impl Muxer {
    /// Begins a file, and gives its headers; `None` where MP4 cannot hold the codecs.
    pub fn new(format: &Format, sound: Option<&SoundFormat>) -> Option<(Muxer, Vec<u8>)> {
        let mut context = ptr::null_mut();
        let is_quicktime = sound.is_some_and(SoundFormat::has_single_samples);
        let name = if is_quicktime { c"mov" } else { c"mp4" }.as_ptr();
        // SAFETY: the name is a C string; on success the context is ours, and freed on drop.
        unsafe {
            av::avformat_alloc_output_context2(&mut context, ptr::null(), name, ptr::null());
        }
        if context.is_null() {
            return None;
        }
        let mut muxer = Muxer { context };
        let mut options = Dictionary::new();
        options.set("movflags", FLAGS);
        options.set("use_editlist", "0");
        // Else, what begins later would be moved to the beginning.
        options.set("avoid_negative_ts", "disabled");
        // SAFETY: the streams and their parameters belong to the context, which lives; the layout of channels
        // is the parameters' own, and has no memory beside. The options are handed over and what is left of
        // them is taken back to be freed.
        let written = unsafe {
            if av::avio_open_dyn_buf(&mut (*context).pb) < 0 {
                return None;
            }
            let picture = muxer.add_stream(TICKS as i32, &format.headers)?;
            (*picture).codec_type = av::AVMediaType::AVMEDIA_TYPE_VIDEO;
            (*picture).codec_id = format.codec.into();
            (*picture).width = format.width_px;
            (*picture).height = format.height_px;
            if let Some(sound) = sound {
                let parameters = muxer.add_stream(sound.rate_hz, &sound.headers)?;
                (*parameters).codec_type = av::AVMediaType::AVMEDIA_TYPE_AUDIO;
                (*parameters).codec_id = sound.codec.into();
                (*parameters).sample_rate = sound.rate_hz;
                av::av_channel_layout_default(&mut (*parameters).ch_layout, sound.channels);
                // Where packets are frames of many samples, each says of how many.
                (*parameters).frame_size = if is_quicktime { 1 } else { 1_024 };
            }
            let mut raw = options.disown();
            let written = av::avformat_write_header(context, &mut raw);
            drop(Dictionary::own(raw));
            written
        };
        let headers = muxer.next_bytes()?;
        (written >= 0).then_some((muxer, headers))
    }

    /// Adds a stream with timestamps of so many ticks in a second.
    fn add_stream(&mut self, ticks: i32, headers: &[u8]) -> Option<*mut av::AVCodecParameters> {
        // SAFETY: the stream belongs to the context, which lives. The headers are copied into memory of FFmpeg's
        // own with the padding that it wants, which the stream's parameters then own.
        unsafe {
            let stream = av::avformat_new_stream(self.context, ptr::null());
            if stream.is_null() {
                return None;
            }
            (*stream).time_base = av::AVRational { num: 1, den: ticks };
            let parameters = (*stream).codecpar;
            if !headers.is_empty() {
                let padded = headers.len() + av::AV_INPUT_BUFFER_PADDING_SIZE as usize;
                let memory = av::av_mallocz(padded).cast::<u8>();
                if memory.is_null() {
                    return None;
                }
                ptr::copy_nonoverlapping(headers.as_ptr(), memory, headers.len());
                (*parameters).extradata = memory;
                (*parameters).extradata_size = i32::try_from(headers.len()).unwrap_or(0);
            }
            Some(parameters)
        }
    }

    /// Adds a frame. Its times are in ticks; `dts` goes up, and is no later than `pts`.
    pub fn write(&mut self, packet: &mut Packet, pts: i64, dts: i64, duration: i64) -> bool {
        self.write_to(PICTURE, packet, [pts, dts, duration])
    }

    /// Adds sound. Its times are in samples; `at` goes up.
    pub fn write_sound(&mut self, packet: &mut Packet, at: i64, samples: i64) -> bool {
        self.write_to(SOUND, packet, [at, at, samples])
    }

    fn write_to(&mut self, stream: usize, packet: &mut Packet, times: [i64; 3]) -> bool {
        let [pts, dts, duration] = times;
        packet.set_stream(stream);
        packet.set_pts(Some(pts));
        packet.set_dts(Some(dts));
        packet.set_duration(duration);
        // SAFETY: both live; the muxer takes a copy of the packet or a reference to its memory.
        unsafe { av::av_write_frame(self.context, packet.as_mut_ptr()) >= 0 }
    }

    /// Ends a fragment: the bytes that the file goes on with.
    pub fn fragment(&mut self) -> Option<Vec<u8>> {
        // SAFETY: a packet that is null ends the fragment.
        let ended = unsafe { av::av_write_frame(self.context, ptr::null_mut()) };
        let bytes = self.next_bytes()?;
        (ended >= 0).then_some(bytes)
    }

    /// What was written since this was last asked.
    fn next_bytes(&mut self) -> Option<Vec<u8>> {
        // SAFETY: the buffer that is closed is the context's, which has one; a new one takes its place.
        unsafe {
            let bytes = self.take_bytes();
            let opened = av::avio_open_dyn_buf(&mut (*self.context).pb);
            (opened >= 0).then_some(bytes)
        }
    }

    /// # Safety
    /// The context has a buffer in memory, or none.
    unsafe fn take_bytes(&mut self) -> Vec<u8> {
        // SAFETY: as the caller promises; the memory that is handed out is freed here.
        unsafe {
            let buffer = std::mem::replace(&mut (*self.context).pb, ptr::null_mut());
            if buffer.is_null() {
                return Vec::new();
            }
            let mut memory = ptr::null_mut();
            let length = av::avio_close_dyn_buf(buffer, &mut memory);
            let bytes = match usize::try_from(length) {
                Ok(length) if !memory.is_null() => {
                    std::slice::from_raw_parts(memory, length).to_vec()
                }
                _ => Vec::new(),
            };
            av::av_free(memory.cast());
            bytes
        }
    }
}

impl Drop for Muxer {
    fn drop(&mut self) {
        // SAFETY: the context is ours, and its buffer the one that was opened last.
        unsafe {
            self.take_bytes();
            av::avformat_free_context(self.context);
        }
    }
}
