//! Thumbnails: a small picture of a clip, made of the frame that the encoder sees, so that nothing is
//! decoded for it.

use jpeg_encoder::{ColorType, Encoder, SamplingFactor};

use crate::error::{Error, Result};
use crate::media::{Frame, Thumbnail};

/// The longer side. What an encoder sees is often a squashed square of 224 px, of which the shorter side of a
/// film has more than it needs, and the longer side no more than this is worth.
const LONGER_SIDE_PX: u32 = 160;

/// A thumbnail has no more bytes, so that a clip with all that is kept of it has its limit, too: what is
/// noise takes several times as much as other pictures.
const MOST_BYTES: usize = 5 << 10;

/// From the best quality (of 100) to one that fits whatever is to be seen.
const QUALITIES: [u8; 4] = [75, 50, 25, 5];

/// A thumbnail in the shape in which the frame is meant to be seen.
pub(super) fn thumbnail(frame: &Frame) -> Result<Thumbnail> {
    let from = (frame.width_px, frame.height_px);
    let to = size(from, frame.aspect_ratio);
    if frame.rgb.len() != from.0 as usize * from.1 as usize * 3 || frame.rgb.is_empty() {
        return Err(Error::internal("a frame of another size than it says").at(frame.target));
    }
    let rgb = shrunk(&frame.rgb, from, to);
    let mut jpeg = Vec::new();
    for quality in QUALITIES {
        jpeg.clear();
        encode(&rgb, to, quality, &mut jpeg)
            .map_err(|cause| Error::internal("cannot make a thumbnail").caused_by(cause))?;
        if jpeg.len() <= MOST_BYTES {
            break;
        }
    }
    Thumbnail::from_bytes(jpeg).ok_or_else(|| Error::internal("a thumbnail that is no JPEG"))
}

/// The size of a thumbnail: no side is longer than the frame has pixels for.
fn size((width, height): (u32, u32), aspect_ratio: f32) -> (u32, u32) {
    let longer = width.max(height).min(LONGER_SIDE_PX);
    let shorter = |times: f32| ((longer as f32 * times).round() as u32).clamp(1, longer);
    let (across, down) = match aspect_ratio >= 1.0 {
        true => (longer, shorter(1.0 / aspect_ratio)),
        false => (shorter(aspect_ratio), longer),
    };
    (across.min(width), down.min(height))
}

fn encode(
    rgb: &[u8],
    (width, height): (u32, u32),
    quality: u8,
    jpeg: &mut Vec<u8>,
) -> std::result::Result<(), jpeg_encoder::EncodingError> {
    let mut encoder = Encoder::new(jpeg, quality);
    encoder.set_sampling_factor(SamplingFactor::R_4_2_0);
    // The standard's tables are a tenth of so small a file.
    encoder.set_optimized_huffman_tables(true);
    // Neither side is longer than `LONGER_SIDE_PX`.
    encoder.encode(rgb, width as u16, height as u16, ColorType::Rgb)
}

/// The picture in fewer pixels, each the mean of the area that it stands for.
fn shrunk(rgb: &[u8], from: (u32, u32), to: (u32, u32)) -> Vec<u8> {
    let row_bytes = from.0 as usize * 3;
    let columns = shares(from.0, to.0);
    let mut shrunk = Vec::with_capacity(to.0 as usize * to.1 as usize * 3);
    let mut mean = vec![0f32; row_bytes];
    for (first, weights) in shares(from.1, to.1) {
        mean.fill(0.0);
        for (row, weight) in rgb.chunks_exact(row_bytes).skip(first).zip(weights) {
            for (mean, &value) in mean.iter_mut().zip(row) {
                *mean += weight * f32::from(value);
            }
        }
        for (first, weights) in &columns {
            let mut pixel = [0.5f32; 3];
            for (from, weight) in mean.as_chunks::<3>().0[*first..].iter().zip(weights) {
                for (sum, value) in pixel.iter_mut().zip(from) {
                    *sum += weight * value;
                }
            }
            shrunk.extend(pixel.map(|value| value as u8));
        }
    }
    shrunk
}

/// For each of `to` places, the first of the `from` places that it covers, and the share in it of that one and
/// of those that follow.
fn shares(from: u32, to: u32) -> Vec<(usize, Vec<f32>)> {
    // In units of which each place of either kind has a whole number.
    let (width, step) = (u64::from(from), u64::from(to));
    let share = |place: u64| {
        let (start, end) = (place * width, (place + 1) * width);
        let first = start / step;
        let weight = |at: u64| {
            let covered = end.min((at + 1) * step) - start.max(at * step);
            covered as f32 / width as f32
        };
        (first as usize, (first..end.div_ceil(step)).map(weight).collect())
    };
    (0..step).map(share).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Arc;

    use crate::media::Change;
    use crate::time::Timestamp;

    fn frame(side_px: u32, aspect_ratio: f32, rgb: Vec<u8>) -> Frame {
        Frame {
            target: Timestamp::ZERO,
            pts: Timestamp::ZERO,
            raw_pts: 0,
            width_px: side_px,
            height_px: side_px,
            aspect_ratio,
            rgb: Arc::from(rgb),
            change: Change { strength: 0.0, at: Timestamp::ZERO },
        }
    }

    #[test]
    fn a_squashed_picture_gets_its_shape_back() {
        assert_eq!(size((224, 224), 16.0 / 9.0), (160, 90));
        assert_eq!(size((224, 224), 9.0 / 16.0), (90, 160));
        assert_eq!(size((224, 224), 4.0 / 3.0), (160, 120));
        assert_eq!(size((224, 224), 1.0), (160, 160));
        // Nothing is made larger than it is.
        assert_eq!(size((64, 64), 2.0), (64, 32));
        assert_eq!(size((320, 64), 1.0), (160, 64));
        assert_eq!(size((224, 224), 64.0), (160, 3));
        assert_eq!(size((1, 1), 64.0), (1, 1));
    }

    #[test]
    fn noise_takes_no_more_bytes_than_a_thumbnail_may_have() {
        let noise = |at: u32| blake3::hash(&at.to_le_bytes()).as_bytes()[0];
        let noise: Vec<u8> = (0..224 * 224 * 3).map(noise).collect();
        for aspect_ratio in [16.0 / 9.0, 1.0] {
            let made = thumbnail(&frame(224, aspect_ratio, noise.clone())).unwrap();
            assert!(made.as_bytes().len() <= MOST_BYTES, "{}", made.as_bytes().len());
        }
    }

    proptest! {
        #[test]
        fn shares_fill_each_place_and_use_up_the_picture(
            (from, to) in (1u32..500).prop_flat_map(|from| (Just(from), 1..=from)),
        ) {
            let mut used = vec![0f32; from as usize];
            for (first, weights) in shares(from, to) {
                prop_assert!((weights.iter().sum::<f32>() - 1.0).abs() < 1e-4);
                for (used, weight) in used[first..].iter_mut().zip(weights) {
                    *used += weight;
                }
            }
            let each = to as f32 / from as f32;
            prop_assert!(used.iter().all(|used| (used - each).abs() < 1e-4));
        }

        #[test]
        fn a_plain_picture_stays_plain(colour in any::<[u8; 3]>(), aspect_ratio in 0.1f32..10.0) {
            let rgb = colour.repeat(60 * 60);
            let to = size((60, 60), aspect_ratio);
            for (value, wanted) in shrunk(&rgb, (60, 60), to).iter().zip(colour.iter().cycle()) {
                prop_assert!(value.abs_diff(*wanted) <= 1);
            }
        }

        #[test]
        fn any_frame_has_a_thumbnail(side in 1u32..40, aspect_ratio in 1f32 / 64.0..64.0, seed in any::<u8>()) {
            let rgb = (0..side * side * 3).map(|at| (at as u8).wrapping_mul(seed)).collect();
            prop_assert!(thumbnail(&frame(side, aspect_ratio, rgb)).is_ok());
        }
    }
}
