//! Coded sound as MP4 holds it: what its decoder needs once for all packets, and packets without the headers that
//! they have in a stream.

use ffmpeg_next as ffmpeg;

use ffmpeg::Packet;
use ffmpeg::codec::Id;

use super::sound::SoundPacket;

/// What all packets of a sound have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SoundFormat {
    pub codec: Id,
    /// Also the ticks of its timestamps in a second.
    pub rate_hz: i32,
    pub channels: i32,
    /// What a decoder needs before the first packet.
    pub headers: Vec<u8>,
}

/// A packet as it lies in a file.
pub struct Sound {
    pub format: SoundFormat,
    pub packet: Packet,
    /// How many there are for each channel.
    pub samples: i64,
    /// On the monotonic clock.
    pub captured: i64,
    /// What it takes of memory, about.
    pub bytes: usize,
}

/// Sampling rates of MPEG-4 audio by their index (ISO/IEC 14496-3, 1.6.3.4).
const AAC_RATES_HZ: [i32; 13] = [
    96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000,
    7_350,
];
const ADTS_BYTES: usize = 7;
const CRC_BYTES: usize = 2;
const OPUS_RATE_HZ: i32 = 48_000;
/// 120 ms (RFC 6716, 2.1.4).
const MOST_OPUS_SAMPLES: i64 = 5_760;
const MOST_RATE_HZ: i32 = 192_000;
const MOST_CHANNELS: i32 = 8;

/// Whether files take this kind of sound. They have no name for G.722, and say in their headers of AC-3 and E-AC-3 what
/// FFmpeg knows only once it has their packets.
pub fn is_held(codec: Id) -> bool {
    matches!(codec, Id::AAC | Id::MP2 | Id::MP3 | Id::OPUS) || sample_bytes(codec) > 0
}

/// Bytes of a sample, where each is coded by itself: G.711, and uncoded ones. 0 for other codecs.
fn sample_bytes(codec: Id) -> i64 {
    match codec {
        Id::PCM_ALAW | Id::PCM_MULAW => 1,
        Id::PCM_S16BE | Id::PCM_S16LE => 2,
        _ => 0,
    }
}

impl SoundFormat {
    /// Whether each sample is coded by itself. Of the kinds of MP4, only QuickTime's holds such sound.
    pub fn has_single_samples(&self) -> bool {
        sample_bytes(self.codec) > 0
    }
}

impl Sound {
    /// `None` where it is damaged, or of a kind that is not held.
    pub fn of(coded: &SoundPacket) -> Option<Sound> {
        let data = coded.packet.data()?;
        let stated = || SoundFormat {
            codec: coded.codec,
            rate_hz: coded.rate_hz,
            channels: coded.channels,
            headers: Vec::new(),
        };
        let whole = || coded.packet.clone();
        let (format, samples, packet) = match coded.codec {
            Id::AAC => {
                let (format, frame) = aac(data)?;
                (format, 1_024, Packet::copy(frame))
            }
            Id::MP2 | Id::MP3 => (stated(), mpeg_samples(data)?, whole()),
            Id::OPUS => (opus(coded.channels)?, opus_samples(data)?, whole()),
            codec if sample_bytes(codec) > 0 => {
                let bytes = sample_bytes(codec) * i64::from(coded.channels);
                let samples = i64::try_from(data.len()).ok()?.checked_div(bytes)?;
                (stated(), samples, whole())
            }
            _ => return None,
        };
        let is_usual = (1..=MOST_RATE_HZ).contains(&format.rate_hz)
            && (1..=MOST_CHANNELS).contains(&format.channels)
            && samples > 0;
        let (captured, bytes) = (coded.captured, coded.bytes());
        is_usual.then_some(Sound { format, packet, samples, captured, bytes })
    }
}

/// A frame of AAC behind its ADTS header (ISO/IEC 13818-7, 6.2); MP4 says once what that says each time.
fn aac(data: &[u8]) -> Option<(SoundFormat, &[u8])> {
    let header = data.first_chunk::<ADTS_BYTES>()?;
    let is_header = header[0] == 0xff && header[1] & 0xf6 == 0xf0;
    // Of all of it, with this header.
    let length = (usize::from(header[3]) & 3) << 11
        | usize::from(header[4]) << 3
        | usize::from(header[5]) >> 5;
    let (profile, rate) = (header[2] >> 6, header[2] >> 2 & 15);
    let channels = (header[2] & 1) << 2 | header[3] >> 6;
    let more_blocks = header[6] & 3;
    // Without a number of channels, they are described in the frames.
    if !is_header || length != data.len() || channels == 0 || more_blocks > 0 {
        return None;
    }
    let rate_hz = *AAC_RATES_HZ.get(usize::from(rate))?;
    let crc = if header[1] & 1 == 0 { CRC_BYTES } else { 0 };
    let frame = data.get(ADTS_BYTES + crc..).filter(|frame| !frame.is_empty())?;
    // AudioSpecificConfig (ISO/IEC 14496-3, 1.6.2.1): kind of object, rate, channels.
    let headers = vec![(profile + 1) << 3 | rate >> 1, (rate & 1) << 7 | channels << 3];
    // The seventh configuration has eight.
    let channels = if channels == 7 { 8 } else { channels.into() };
    Some((SoundFormat { codec: Id::AAC, rate_hz, channels, headers }, frame))
}

/// Samples of a frame of MPEG audio, by its header (ISO/IEC 11172-3, 2.4.2.3; 13818-3).
fn mpeg_samples(data: &[u8]) -> Option<i64> {
    let header = data.first_chunk::<2>()?;
    if header[0] != 0xff || header[1] >> 5 != 7 {
        return None;
    }
    match (header[1] >> 1 & 3, header[1] >> 3 & 3) {
        (3, _) => Some(384),
        (2, _) | (1, 3) => Some(1_152),
        (1, _) => Some(576),
        _ => None,
    }
}

/// Samples of a packet of Opus, by its first bytes (RFC 6716, 3.1).
fn opus_samples(data: &[u8]) -> Option<i64> {
    let first = *data.first()?;
    let config = first >> 3;
    let frame: i64 = match config {
        0..12 => [480, 960, 1_920, 2_880][usize::from(config & 3)],
        12..16 => [480, 960][usize::from(config & 1)],
        _ => [120, 240, 480, 960][usize::from(config & 3)],
    };
    let frames = match first & 3 {
        0 => 1,
        1 | 2 => 2,
        _ => i64::from(data.get(1)? & 63),
    };
    Some(frame * frames).filter(|samples| *samples <= MOST_OPUS_SAMPLES)
}

/// Opus has `OpusHead` in front (RFC 7845, 5.1), which RTP has none of.
fn opus(channels: i32) -> Option<SoundFormat> {
    // Packets say themselves how many they have, and decoders make of them what is asked for.
    let channels = if channels == 0 { 2 } else { channels };
    let count = u8::try_from(channels).ok().filter(|count| (1..=2).contains(count))?;
    let mut headers = b"OpusHead\x01".to_vec();
    // No samples are left out at the beginning.
    headers.extend([count, 0, 0]);
    headers.extend(OPUS_RATE_HZ.to_le_bytes());
    headers.extend([0, 0, 0]);
    Some(SoundFormat { codec: Id::OPUS, rate_hz: OPUS_RATE_HZ, channels, headers })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sound(codec: Id, channels: i32, data: &[u8]) -> Option<Sound> {
        let packet = Packet::copy(data);
        let rate_hz = 48_000;
        let (pts, origin, arrived, captured) = (None, 0, 0, 7);
        Sound::of(&SoundPacket { codec, rate_hz, channels, packet, pts, origin, arrived, captured })
    }

    #[test]
    fn aac_is_without_its_headers_which_are_said_once() {
        let with = |header: &[u8]| sound(Id::AAC, 0, &[header, b"frame"].concat());
        let plain = with(&[0xff, 0xf1, 0x4c, 0x80, 1, 0x9f, 0xfc]).unwrap();
        assert_eq!(plain.format.headers, [0x11, 0x90]);
        assert_eq!((plain.format.rate_hz, plain.format.channels), (48_000, 2));
        assert_eq!((plain.samples, plain.captured), (1_024, 7));
        assert_eq!(plain.packet.data(), Some(&b"frame"[..]));
        // With a checksum; 16 kHz, one channel.
        let other = with(&[0xff, 0xf0, 0x60, 0x40, 1, 0xdf, 0xfc, 1, 2]).unwrap();
        assert_eq!(other.format.headers, [0x14, 0x08]);
        assert_eq!((other.format.rate_hz, other.format.channels), (16_000, 1));
        assert_eq!(other.packet.data(), Some(&b"frame"[..]));
        for damaged in [
            &[0xff, 0xe1, 0x4c, 0x80, 1, 0x9f, 0xfc][..],
            // A rate that is none, no channels, and another length.
            &[0xff, 0xf1, 0x7c, 0x80, 1, 0x9f, 0xfc],
            &[0xff, 0xf1, 0x4c, 0x00, 1, 0x9f, 0xfc],
            &[0xff, 0xf1, 0x4c, 0x80, 1, 0xbf, 0xfc],
        ] {
            assert!(with(damaged).is_none(), "{damaged:?}");
        }
        assert!(sound(Id::AAC, 0, &[0xff, 0xf1, 0x4c, 0x80, 0, 0xff, 0xfc]).is_none());
        assert!(sound(Id::AAC, 0, &[0xff]).is_none());
    }

    #[test]
    fn packets_of_other_codecs_say_how_long_they_are() {
        let samples = |codec, data: &[u8]| sound(codec, 2, data).map(|sound| sound.samples);
        assert_eq!(samples(Id::MP3, &[0xff, 0xfb, 0x90]), Some(1_152));
        assert_eq!(samples(Id::MP3, &[0xff, 0xf3, 0x90]), Some(576));
        assert_eq!(samples(Id::MP2, &[0xff, 0xfd, 0x90]), Some(1_152));
        assert_eq!(samples(Id::MP3, b"garbage"), None);
        assert_eq!(samples(Id::OPUS, &[31 << 3, 1]), Some(960));
        assert_eq!(samples(Id::OPUS, &[1 << 3 | 3, 3]), Some(2_880));
        assert_eq!(samples(Id::OPUS, &[1 << 3 | 3, 0]), None);
        assert_eq!(samples(Id::OPUS, &[3 << 3 | 3, 63]), None);
        assert_eq!(samples(Id::OPUS, &[]), None);
        assert!(sound(Id::OPUS, 6, &[31 << 3, 1]).is_none());
        assert_eq!(sound(Id::OPUS, 0, &[31 << 3, 1]).unwrap().format.channels, 2);
        assert_eq!(samples(Id::PCM_ALAW, &[0; 320]), Some(160));
        assert_eq!(samples(Id::PCM_S16BE, &[0; 320]), Some(80));
        assert_eq!(samples(Id::PCM_MULAW, &[0]), None);
        assert!(sound(Id::PCM_ALAW, 0, &[0; 320]).is_none());
        for codec in [Id::ADPCM_G722, Id::AC3, Id::EAC3] {
            assert!(!is_held(codec));
            assert_eq!(samples(codec, &[1, 2, 3]), None);
        }
    }
}
