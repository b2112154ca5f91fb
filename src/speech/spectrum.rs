//! What Whisper's network gets of short sound: its spectrum, with as much behind it as the network is made for.

use std::f32::consts::TAU;

use ndarray::{Array2, Axis, Zip, s};

use crate::onnx::ggml::FREQUENCIES;
use crate::onnx::whisper::mel_filters;

/// Samples that a frame looks at, and those from one frame to the next.
const LOOK: usize = 400;
const HOP: usize = 160;
/// Frames of 30 s.
const FRAMES: usize = 3_000;

/// The logarithms of the powers that Whisper's mel filters let pass, as its own program computes them (Radford et al.
/// 2022, section 2.2), but that zeros follow the sound, as in faster-whisper, and not silence.
#[derive(Debug)]
pub(super) struct Spectrum {
    /// What a frame is multiplied by: 201 cosines, then 201 sines, under Hann's window.
    waves: Array2<f32>,
    /// A column for each filter.
    filters: Array2<f32>,
}

impl Spectrum {
    /// Of so many mel filters.
    pub(super) fn new(mels: usize) -> Spectrum {
        let waves = Array2::from_shape_fn((LOOK, 2 * FREQUENCIES), |(at, wave)| {
            let part = |turns: usize| turns as f32 / LOOK as f32 * TAU;
            let hann = 0.5 - 0.5 * part(at).cos();
            // Whole turns are left out before they cost digits.
            let angle = part(at * (wave % FREQUENCIES) % LOOK);
            hann * if wave < FREQUENCIES { angle.cos() } else { angle.sin() }
        });
        let filters = mel_filters(mels);
        let filters = Array2::from_shape_fn((FREQUENCIES, mels), |(frequency, mel)| {
            filters[mel * FREQUENCIES + frequency]
        });
        Spectrum { waves, filters }
    }

    /// A row of 3,000 frames for each filter. Of the samples, more than half a frame's, the first 30 s count.
    pub(super) fn of(&self, samples: &[f32]) -> Array2<f32> {
        let frames = (samples.len() / HOP + 1).min(FRAMES);
        // Half of the first frame is before the sound: it sees it in a mirror there.
        let mirrored = samples.iter().skip(1).take(LOOK / 2);
        let mut sound: Vec<f32> = mirrored.rev().chain(samples).copied().collect();
        sound.resize(frames * HOP + LOOK, 0.0);
        let looks = Array2::from_shape_fn((frames, LOOK), |(frame, at)| sound[frame * HOP + at]);
        let waves = looks.dot(&self.waves);
        let (cosines, sines) = waves.view().split_at(Axis(1), FREQUENCIES);
        let powers = Zip::from(cosines).and(sines).map_collect(|re, im| re * re + im * im);
        let mut heard = powers.dot(&self.filters).mapv_into(|power| power.max(1e-10).log10());
        let loudest = heard.fold(f32::NEG_INFINITY, |most, level| most.max(*level));
        heard.mapv_inplace(|level| (level.max(loudest - 8.0) + 4.0) / 4.0);
        let mut all = Array2::zeros((heard.ncols(), FRAMES));
        all.slice_mut(s![.., ..frames]).assign(&heard.t());
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What faster-whisper 1.2.1 computes of the same second.
    #[test]
    fn it_is_what_faster_whisper_gives_its_network() {
        let sound: Vec<f32> = (0_u16..16_000)
            .map(|at| {
                let wave = |hz: f64| (std::f64::consts::TAU * hz * f64::from(at) / 16_000.0).sin();
                let grows = f64::from(at % 4_000) / 4_000.0;
                (0.4 * wave(440.0) + 0.1 * wave(3_000.0) * grows) as f32
            })
            .collect();
        let heard = Spectrum::new(80).of(&sound);
        assert_eq!(heard.dim(), (80, FRAMES));
        for (mel, frame, expected) in [
            (0, 0, 0.934_82),
            (14, 0, 1.040_04),
            (14, 1, 0.423_07),
            (14, 50, 0.048_74),
            (30, 50, 0.076_08),
            (60, 25, 0.218_95),
            (60, 74, -0.290_82),
            (79, 99, -0.557_17),
            (55, 99, 0.932_06),
            (14, 100, 0.884_96),
            (14, 101, 0.0),
        ] {
            let level: f32 = heard[(mel, frame)];
            assert!((level - expected).abs() < 1e-3, "{mel} {frame}: {level}, not {expected}");
        }
    }
}
