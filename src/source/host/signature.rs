//! A cheap description of a decoded picture, for finding where a shot ends.

use ffmpeg_next::frame;

use super::ffi::{self, Scaler, Target};

/// Samples are taken on a grid of this size, whatever the picture's.
const WIDTH: usize = 64;
const HEIGHT: usize = 36;
const BINS: usize = 16;
const QUADRANTS: usize = 4;
/// Blocks of 4 x 4 samples, whose means say where light and dark are.
const BLOCK: usize = 4;
const BLOCKS: usize = (WIDTH / BLOCK) * (HEIGHT / BLOCK);

/// Luma histograms of the four quadrants and the means of 16 x 9 blocks.
#[derive(Debug, Clone, PartialEq)]
pub struct Signature {
    /// Shares of 1 in each quadrant.
    histograms: [[f32; BINS]; QUADRANTS],
    /// 0 to 255.
    means: [f32; BLOCKS],
}

impl Signature {
    fn of(samples: &[u8]) -> Signature {
        let mut signature =
            Signature { histograms: [[0.0; BINS]; QUADRANTS], means: [0.0; BLOCKS] };
        let per_quadrant = (WIDTH * HEIGHT / QUADRANTS) as f32;
        for (y, row) in samples.chunks_exact(WIDTH).enumerate().take(HEIGHT) {
            for (x, sample) in row.iter().enumerate() {
                let quadrant = y * 2 / HEIGHT * 2 + x * 2 / WIDTH;
                // Shared between the two nearest bins, so that a fade moves areas of one
                // brightness from bin to bin little by little.
                let place = f32::from(*sample) / 255.0 * (BINS - 1) as f32;
                let (bin, share) = (place as usize, place.fract());
                signature.histograms[quadrant][bin] += (1.0 - share) / per_quadrant;
                signature.histograms[quadrant][(bin + 1).min(BINS - 1)] += share / per_quadrant;
                let block = y / BLOCK * (WIDTH / BLOCK) + x / BLOCK;
                signature.means[block] += f32::from(*sample) / (BLOCK * BLOCK) as f32;
            }
        }
        signature
    }

    /// 0 (the same) to 1 (nothing in common): the geometric mean of how much the quadrants'
    /// histograms and the blocks' means differ. Motion changes the blocks but hardly the
    /// histograms, a flash the histograms but not the layout; a cut changes both.
    pub fn distance(&self, other: &Signature) -> f32 {
        let common: f32 = self
            .histograms
            .iter()
            .flatten()
            .zip(other.histograms.iter().flatten())
            .map(|(a, b)| a.min(*b))
            .sum();
        let histograms = 1.0 - common / QUADRANTS as f32;
        let (mine, others) = (self.mean(), other.mean());
        let layout: f32 = self
            .means
            .iter()
            .zip(&other.means)
            .map(|(a, b)| ((a - mine) - (b - others)).abs())
            .sum::<f32>()
            / BLOCKS as f32;
        // A mean difference of 64 levels is as much as two unrelated pictures have.
        let layout = (layout / 64.0).min(1.0);
        (histograms.max(0.0) * layout).sqrt().clamp(0.0, 1.0)
    }

    fn mean(&self) -> f32 {
        self.means.iter().sum::<f32>() / BLOCKS as f32
    }
}

/// Makes signatures; keeps the scaler that takes the samples.
#[derive(Debug, Default)]
pub struct Signer {
    scaler: Option<Scaler>,
}

impl Signer {
    /// `None` where FFmpeg cannot scale such pictures.
    pub fn sign(&mut self, frame: &frame::Video) -> Option<Signature> {
        let shape = ffi::shape(frame);
        let (width, height) = (WIDTH as i32, HEIGHT as i32);
        if !self.scaler.as_ref().is_some_and(|scaler| scaler.fits(&shape, width, height)) {
            self.scaler = Scaler::new(shape, Target::Sampled, width, height);
        }
        Some(Signature::of(&self.scaler.as_mut()?.run(frame)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(luma: impl Fn(usize, usize) -> u8) -> Signature {
        let samples: Vec<u8> = (0..WIDTH * HEIGHT).map(|at| luma(at % WIDTH, at / WIDTH)).collect();
        Signature::of(&samples)
    }

    fn noise(seed: usize, x: usize, y: usize) -> u8 {
        (x.wrapping_mul(7919) ^ y.wrapping_mul(104_729) ^ seed.wrapping_mul(31)) as u8
    }

    #[test]
    fn the_same_picture_is_at_no_distance() {
        let one = picture(|x, y| noise(1, x, y));
        assert!(one.distance(&one) < 1e-3);
    }

    #[test]
    fn black_against_half_white_is_far() {
        let black = picture(|_, _| 0);
        let half = picture(|x, _| if x < WIDTH / 2 { 255 } else { 0 });
        assert!(black.distance(&half) > 0.6);
    }

    #[test]
    fn a_flash_changes_less_than_a_cut() {
        let scene = |x: usize, y: usize| (x * 2 + y) as u8;
        let other = |x: usize, y: usize| if (x / 9 + y / 7).is_multiple_of(2) { 20 } else { 230 };
        let before = picture(scene);
        let flash = picture(|x, y| scene(x, y).saturating_add(60));
        let cut = picture(other);
        assert!(before.distance(&flash) * 2.0 < before.distance(&cut));
    }
}
