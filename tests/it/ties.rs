//! Visual words that differ between two libraries: whether the features lay between them.

use cinelex::codebook::Codebook;
use cinelex::library::{Place, Recipe, Source};
use cinelex::media::VisualWord;
use cinelex::model::{Device, Models};
use cinelex::picture::Encoder;
use cinelex::source::{Fit, Host, PictureEvent, PictureRequest, Rendition, Targets};
use cinelex::time::{Micros, Span};
use ndarray::{Array1, Array2, ArrayView1};

use crate::decoding::{host, open};

/// Of a distance. Features of two runs lie within 1e-4 of each other; scaled to unit length, as the
/// tree sees them, they lie nearer, and no distance changes by more than that.
const NEAR: f64 = 1e-4;

/// Sees clips as a run of one of the built-in pipelines with the default models does.
pub struct Eye {
    host: Host,
    encoder: Encoder,
    pub codebook: Codebook,
    targets: Targets,
    frames: u64,
    has_cells: bool,
}

impl Eye {
    /// Panics unless `recipe` is one of clips by the default models.
    pub fn of(recipe: &Recipe) -> Eye {
        let models = Models::open().unwrap();
        let encoder = models.manifest("efficientnet-lite0@int8").unwrap();
        let codebook = Codebook::named(&models, "codebook-default").unwrap();
        let said = &recipe.description;
        assert_eq!(said["encoder"], encoder.identity());
        assert_eq!(said["codebook"], codebook.id().to_hex().as_str());
        assert_eq!(said["fit"], "squash");
        let (length, frames) =
            (said["clip_us"].as_i64().unwrap(), said["frames_per_clip"].as_u64().unwrap());
        let encoder = Encoder::load(&models, &encoder, Device::Cpu, 1).unwrap();
        let targets = Targets {
            offset: Micros(length / (2 * frames as i64)),
            step_num: length as u64,
            step_den: frames as u32,
            first: 0,
            count: None,
        };
        let has_cells = said["cells"] == "kept";
        Eye { host: host(), encoder, codebook, targets, frames, has_cells }
    }

    /// What the words of a clip are made of: the features of the whole picture, and of its cells
    /// where the recipe has them, each the mean over the clip's frames.
    pub fn features(&mut self, source: &Source, clip: Span) -> Array2<f32> {
        let Place::Path(path) = &source.locations[0].place else { panic!("a file") };
        let first = clip.start.0 as u64 * self.frames / (clip.end.0 - clip.start.0) as u64;
        let request = PictureRequest {
            track: None,
            rendition: Rendition { width_px: 224, height_px: 224, fit: Fit::Squash },
            targets: self.targets.part(first, Some(self.frames)),
            threads: 1,
        };
        let mut rows: Array1<f32> = Array1::default(0);
        let mut frames = 0.0;
        for event in self.host.picture(&open(path), &request).unwrap() {
            let PictureEvent::Frame(frame) = event.unwrap() else { continue };
            let mut seen = self.encoder.encode(&[&frame.rgb]).unwrap().remove(0).unwrap();
            if self.has_cells {
                seen.features.append(&mut seen.cells);
            }
            let seen = Array1::from(seen.features);
            rows = if frames == 0.0 { seen } else { rows + seen };
            frames += 1.0;
        }
        assert!(frames > 0.0, "no frame at {}", clip.start);
        let dims = self.codebook.input_dims();
        (rows / frames)
            .into_shape_with_order(((1 + 9 * usize::from(self.has_cells)), dims))
            .unwrap()
    }
}

/// Whether features lie between two words: where the ways to them part, both branches are equally
/// near. `seen` is projected.
pub fn is_tie(
    codebook: &Codebook,
    seen: ArrayView1<f32>,
    one: VisualWord,
    other: VisualWord,
) -> bool {
    let distance = |centroid: ArrayView1<f32>| {
        let squares = seen.iter().zip(centroid).map(|(x, c)| f64::from(x - c).powi(2));
        squares.sum::<f64>().sqrt()
    };
    let parts = codebook.way(one).zip(codebook.way(other)).find(|(one, other)| one != other);
    parts.is_none_or(|(one, other)| {
        let (one, other) = (distance(one), distance(other));
        (one - other).abs() <= NEAR * one.max(other)
    })
}

#[test]
fn only_what_lies_between_two_branches_is_a_tie() {
    let codebook = Codebook::named(&Models::open().unwrap(), "codebook-default").unwrap();
    let living: Vec<VisualWord> = (0..codebook.shape().leaves() as u32)
        .map(VisualWord)
        .filter(|word| codebook.centroid(*word).is_some())
        .collect();
    let first = living[0];
    // Its sister, its cousin, and one of another branch of the root.
    for other in [living[1], living[20], living[living.len() - 1]] {
        let parts = codebook.way(first).zip(codebook.way(other)).find(|(a, b)| a != b);
        let (a, b) = parts.unwrap();
        let between = |share: f32| &a * share + &b * (1.0 - share);
        assert!(is_tie(&codebook, between(0.5).view(), first, other));
        for share in [0.0, 0.49, 0.51, 1.0] {
            assert!(!is_tie(&codebook, between(share).view(), first, other), "{share}");
        }
    }
    assert!(is_tie(&codebook, codebook.centroid(first).unwrap(), first, first));
}
