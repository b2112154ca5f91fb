use ndarray::{Array2, ArrayView2, Axis, s};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::error::Kind;

/// Rows around a few centres, as features are.
fn samples(rows: usize, dims: usize, seed: u64) -> Array2<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let centres = Array2::from_shape_fn((20, dims), |_| rng.random::<f32>());
    Array2::from_shape_fn((rows, dims), |(row, column)| {
        centres[[row % 20, column]] + 0.2 * rng.random::<f32>()
    })
}

mod fitted {
    use super::*;

    fn config(branching: u32, depth: u32, dims: usize) -> FitConfig {
        let shape = Shape::new(branching, depth).unwrap();
        FitConfig { shape, dims, seed: 7, encoder: "test".into() }
    }

    fn fit_quietly(samples: ArrayView2<f32>, config: &FitConfig) -> Result<Codebook> {
        fit(samples, config, &mut |_| ())
    }

    fn small() -> (Array2<f32>, Codebook) {
        let samples = samples(600, 24, 1);
        let codebook = fit_quietly(samples.view(), &config(4, 3, 10)).unwrap();
        (samples, codebook)
    }

    #[test]
    fn the_same_seed_gives_the_same_file_with_any_number_of_threads() {
        let samples = samples(3_000, 32, 2);
        let fit_with = |threads, seed| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let config = FitConfig { seed, ..config(5, 3, 12) };
            pool.install(|| fit_quietly(samples.view(), &config).unwrap().to_bytes().unwrap())
        };
        let one = fit_with(1, 7);
        assert!(one == fit_with(4, 7));
        assert!(one == fit_with(3, 7));
        assert!(one != fit_with(1, 8));
    }

    #[test]
    fn a_value_that_is_no_number_is_refused_with_its_place() {
        let mut samples = samples(50, 8, 3);
        samples[[17, 5]] = f32::NAN;
        let error = fit_quietly(samples.view(), &config(3, 2, 4)).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidInput);
        assert!(error.to_string().contains("row 17 holds NaN at index 5"), "{error}");

        let (mut samples, codebook) = small();
        samples[[3, 0]] = f32::INFINITY;
        let error = codebook.quantize(samples.view()).unwrap_err();
        assert!(error.to_string().contains("row 3 holds inf at index 0"), "{error}");
    }

    #[test]
    fn fewer_samples_than_branches_leave_dead_branches_that_are_never_chosen() {
        for (rows, distinct) in [(1, 1), (3, 3), (40, 2), (5, 5)] {
            let few = samples(distinct, 16, 4);
            let picked: Vec<usize> = (0..rows).map(|row| row % distinct).collect();
            let codebook = fit_quietly(few.select(Axis(0), &picked).view(), &config(12, 4, 8));
            let codebook = codebook.unwrap();
            assert_eq!(codebook.living_words(), distinct);
            let words = codebook.quantize(samples(500, 16, 5).view()).unwrap();
            assert!(words.iter().all(|word| codebook.centroid(*word).is_some()));
            let own = codebook.quantize(few.view()).unwrap();
            assert_eq!(word_use(own).used, distinct, "each sample has its own word");
        }
        let none = Array2::zeros((0, 16));
        assert_eq!(
            fit_quietly(none.view(), &config(12, 4, 8)).unwrap_err().kind(),
            Kind::InvalidInput
        );
    }

    #[test]
    fn equal_and_zero_samples_are_one_word() {
        let codebook = fit_quietly(Array2::zeros((30, 16)).view(), &config(3, 2, 8)).unwrap();
        assert_eq!(codebook.living_words(), 1);
        assert_eq!(codebook.quantize(samples(1, 16, 1).view()).unwrap().len(), 1);
    }

    #[test]
    fn each_step_down_takes_the_nearest_centroid() {
        let (_, codebook) = small();
        let features = samples(300, 24, 9);
        let projected = codebook.project(features.view()).unwrap();
        let words = codebook.quantize(features.view()).unwrap();
        for (row, word) in projected.rows().into_iter().zip(words) {
            let mut node = 0;
            for (level, branch) in codebook.levels.iter().zip(word.path(4, 3)) {
                let distance = |child: usize| -> f64 {
                    let centroid = level.centroids.row(child);
                    row.iter().zip(centroid).map(|(a, b)| f64::from(a - b).powi(2)).sum()
                };
                let chosen = node * 4 + branch as usize;
                for child in (node * 4..node * 4 + 4).filter(|child| level.counts[*child] > 0) {
                    assert!(distance(chosen) <= distance(child) + 1e-6);
                }
                node = chosen;
            }
        }
    }

    #[test]
    fn a_tie_goes_to_the_lower_branch() {
        let two = ndarray::array![[1.0f32, 0.0], [0.0, 1.0]];
        let codebook = fit_quietly(two.view(), &config(2, 1, 2)).unwrap();
        let between = ndarray::array![[1.0f32, 1.0]];
        assert_eq!(codebook.quantize(between.view()).unwrap(), [VisualWord(0)]);
    }

    #[test]
    fn a_saved_codebook_is_the_same_after_loading() {
        let (samples, codebook) = small();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("codebook.safetensors");
        codebook.save(&path).unwrap();
        let loaded = Codebook::load(&path).unwrap();
        assert!(loaded == codebook);
        assert_eq!(loaded.id(), codebook.id());
        assert_eq!(
            loaded.quantize(samples.view()).unwrap(),
            codebook.quantize(samples.view()).unwrap()
        );
    }

    #[test]
    fn a_deeper_level_has_a_smaller_error() {
        let (samples, codebook) = small();
        let stats = codebook.stats(samples.view()).unwrap();
        assert_eq!(stats.rows, 600);
        assert_eq!(stats.levels.len(), 3);
        assert!(stats.levels[0].relative_error < 1.0);
        assert!(stats.levels.windows(2).all(|pair| pair[1].error < pair[0].error));
    }

    #[test]
    fn the_projection_keeps_the_directions_of_greatest_variance() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        // Along columns 5 and 2 the rows differ much, along the others little.
        let scale = |column| match column {
            5 => 1.0,
            2 => 0.5,
            _ => 0.01,
        };
        let rows = Array2::from_shape_fn((2_000, 12), |(_, column)| {
            scale(column) * (rng.random::<f32>() - 0.5) + 0.001
        });
        let mut kept = 0.0;
        let codebook = fit(rows.view(), &config(2, 1, 2), &mut |step| {
            if let FitStep::Projected { kept: share } = step {
                kept = share;
            }
        });
        let basis = codebook.unwrap().basis;
        assert!(kept > 0.99, "{kept}");
        let within: f32 = basis.select(Axis(0), &[2, 5]).iter().map(|x| x * x).sum();
        assert!((within - 2.0).abs() < 0.02, "{basis}");
    }

    #[test]
    fn a_codebook_for_other_features_says_so() {
        let (_, codebook) = small();
        let error = codebook.quantize(samples(3, 25, 1).view()).unwrap_err();
        assert!(error.to_string().contains("25 dimensions"), "{error}");
    }

    #[test]
    fn a_damaged_file_is_refused_with_the_reason() {
        let (_, codebook) = small();
        let bytes = codebook.to_bytes().unwrap();
        let refused = |bytes: &[u8]| Codebook::from_bytes(bytes).unwrap_err();
        assert_eq!(refused(&[]).kind(), Kind::Corrupt);
        assert_eq!(refused(&bytes[..bytes.len() - 1]).kind(), Kind::Corrupt);

        let mut lying = codebook.clone();
        lying.levels[2].counts[0] += 1;
        let lying = to_bytes_of(&lying);
        assert!(refused(&lying).to_string().contains("sample counts"), "{}", refused(&lying));

        let mut infinite = codebook.clone();
        infinite.levels[0].centroids[[0, 0]] = f32::INFINITY;
        assert!(refused(&to_bytes_of(&infinite)).to_string().contains("too large"));
    }

    fn to_bytes_of(codebook: &Codebook) -> Vec<u8> {
        codebook.to_bytes().unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_rows_word_does_not_depend_on_the_batch(cuts in prop::collection::vec(1usize..40, 1..12)) {
            let (_, codebook) = small();
            let features = samples(250, 24, 11);
            let together = codebook.quantize(features.view()).unwrap();
            let mut apart = Vec::new();
            let mut start = 0;
            for cut in cuts.into_iter().cycle() {
                let end = (start + cut).min(features.nrows());
                apart.extend(codebook.quantize(features.slice(s![start..end, ..])).unwrap());
                start = end;
                if start == features.nrows() {
                    break;
                }
            }
            prop_assert_eq!(together, apart);
        }

        #[test]
        fn flipped_bytes_give_an_error_or_a_working_codebook(
            flips in prop::collection::vec((any::<prop::sample::Index>(), 1u8..=255), 1..8),
            cut in prop::option::of(any::<prop::sample::Index>()),
        ) {
            let (samples, codebook) = small();
            let mut bytes = codebook.to_bytes().unwrap();
            for (at, flip) in flips {
                let at = at.index(bytes.len());
                bytes[at] ^= flip;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            if let Ok(codebook) = Codebook::from_bytes(&bytes)
                && let Ok(words) = codebook.quantize(samples.view())
            {
                prop_assert!(words.iter().all(|word| codebook.centroid(*word).is_some()));
            }
        }

        #[test]
        fn a_damaged_header_never_panics(
            flips in prop::collection::vec((0usize..500, any::<u8>()), 1..6),
        ) {
            let (_, codebook) = small();
            let mut bytes = codebook.to_bytes().unwrap();
            for (at, value) in flips {
                bytes[at] = value;
            }
            let _ = Codebook::from_bytes(&bytes);
        }
    }
}

#[test]
fn impossible_shapes_are_refused() {
    for (branching, depth) in [(0, 4), (1, 4), (12, 0), (12, 9), (257, 1), (200, 3), (u32::MAX, 8)]
    {
        assert!(Shape::new(branching, depth).is_err(), "{branching} {depth}");
    }
    assert_eq!(Shape::new(12, 4).unwrap().leaves(), 20_736);
    assert_eq!(Shape::new(12, 4).unwrap().nodes(), 22_620);
}

proptest! {
    #[test]
    fn perplexity_lies_between_one_and_the_words_used(words in prop::collection::vec(0u32..50, 1..200)) {
        let found = word_use(words.iter().copied().map(VisualWord));
        prop_assert!(found.perplexity >= 1.0 - 1e-9);
        prop_assert!(found.perplexity <= found.used as f64 + 1e-9);
    }
}

#[test]
fn equally_frequent_words_have_their_number_as_perplexity() {
    let found = word_use([0, 1, 2, 3, 0, 1, 2, 3].map(VisualWord));
    assert_eq!(found.used, 4);
    assert!((found.perplexity - 4.0).abs() < 1e-9);
}
