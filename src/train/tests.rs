//! Trainings of a small network on pictures made up here.

use std::path::Path;

use ndarray::Array2;

use super::batch::{Batch, Row};
use super::checkpoint;
use super::config::{self, Config, Inputs, Length, Mix, Reward};
use super::examples::Examples;
use super::material::{Material, Sources};
use super::network::Model;
use super::optimizer::Optimizer;
use super::run::train;
use super::trainer::Trainer;
use crate::error::{Error, Kind};
use crate::evaluate::photos::Photo;
use crate::evaluate::pictures::{Pictures, Visuals};
use crate::model::Models;
use crate::onnx::transformer::Precision;
use crate::transformer::{Captioner, Fitting, Segment, Trained, Writing};
use burn::tensor::Device;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

const DIM: usize = 24;

/// Pictures of dogs and of cats that look alike among each other.
fn material(photos: usize) -> Material {
    let photo = |number: usize| {
        let animal = ["dog", "cat"][number % 2];
        Photo {
            image: format!("{number}.jpg"),
            split: "train".into(),
            video: None,
            captions: vec![
                format!("a {animal} runs over the snow"),
                format!("the {animal} on a red sofa"),
            ],
        }
    };
    let photos: Vec<Photo> = (0..photos).map(photo).collect();
    let value = |photo: usize, place: usize| {
        let of_kind = if (photo + place).is_multiple_of(2) { 1.0 } else { 0.2 };
        of_kind + 0.01 * ((photo * 31 + place * 7) % 13) as f32
    };
    let features: Vec<f32> =
        (0..photos.len()).flat_map(|photo| (0..10 * DIM).map(move |at| value(photo, at))).collect();
    let captions = 2 * photos.len();
    let mut embeddings = Array2::from_shape_fn((captions, 6), |(caption, place)| {
        ((caption * 5 + place * 3) % 7) as f32 - 2.9
    });
    for mut row in embeddings.rows_mut() {
        let length = row.dot(&row).sqrt();
        row /= length;
    }
    Material {
        sources: Sources::default(),
        libraries: Vec::new(),
        train: vec![Pictures::made(photos, DIM, &features)],
        views: Vec::new(),
        dev: Vec::new(),
        texts: vec![vec!["a bird in the sky".into(), "some birds fly".into()]; 3],
        codebook: None,
        embeddings,
        from: None,
        fitting: Fitting { encoder: "made up".into(), codebook: None, space: "made up".into() },
        skipped: super::corpus::Skipped::default(),
    }
}

fn small() -> Config {
    let mut config = config::tests::small();
    config.inputs = Inputs { tokens: false, features: true, cells: true };
    config
}

#[test]
fn a_training_that_goes_on_later_is_the_same_to_the_last_bit() {
    let models = Models::open().unwrap();
    let (config, material) = (small(), material(7));
    let mut straight = Trainer::new(&models, &config, &material).unwrap();
    for _ in 0..20 {
        straight.step().unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let mut first = Trainer::new(&models, &config, &material).unwrap();
    for _ in 0..10 {
        first.step().unwrap();
    }
    checkpoint::write(folder.path(), &first.progress, &first.optimizer).unwrap();

    let mut second = Trainer::new(&models, &config, &material).unwrap();
    let (progress, optimizer) = checkpoint::last(folder.path(), &second.progress.training).unwrap();
    assert_eq!((&progress, &optimizer), (&first.progress, &first.optimizer));
    (second.progress, second.optimizer) = (progress, optimizer);
    for _ in 0..10 {
        second.step().unwrap();
    }
    assert_eq!(second.progress, straight.progress);
    assert_eq!(second.optimizer, straight.optimizer);
    assert!(straight.progress.taken.iter().all(|taken| *taken > 0), "{:?}", straight.progress);
}

#[test]
fn the_loss_falls() {
    let models = Models::open().unwrap();
    let mut config = small();
    config.steps.length = Length::Steps(150);
    config.steps.rate = 1e-2;
    config.losses.mix = Mix { captions: 1.0, text: 0.0, masked: 0.0, pictures: 0.0 };
    let material = material(8);
    let mut trainer = Trainer::new(&models, &config, &material).unwrap();
    let mut nats = Vec::new();
    for _ in 0..150 {
        nats.push(trainer.step().unwrap().losses.words.unwrap());
    }
    let mean = |nats: &[f64]| nats.iter().sum::<f64>() / nats.len() as f64;
    let (begin, end) = (mean(&nats[..10]), mean(&nats[140..]));
    assert!(end < begin / 3.0, "from {begin} to {end}");
}

#[test]
fn a_training_begins_with_what_another_has_learnt() {
    let (models, config, mut material) = (Models::open().unwrap(), small(), material(7));
    let mut first = Trainer::new(&models, &config, &material).unwrap();
    for _ in 0..5 {
        first.step().unwrap();
    }
    let (learnt, training) = (first.trained(), first.progress.training);
    // Pieces are those that its weights are of, whatever is read.
    material.train[0].photos[0].captions[0] = "zebras zigzag".into();
    material.from = Some(learnt.clone());
    let second = Trainer::new(&models, &config, &material).unwrap();
    assert_eq!(second.trained().tensors, learnt.tensors);
    assert_eq!(second.trained().pieces.to_lines(), learnt.pieces.to_lines());
    assert_ne!(second.progress.training, training);

    let mut config = config;
    config.network.layers += 1;
    let error = Trainer::new(&models, &config, &material).err().unwrap();
    assert!(error.to_string().contains("of another kind"), "{error}");
}

/// Needs `cinelex setup`: ONNX Runtime.
#[test]
fn what_is_written_agrees_the_better_the_longer_it_is_rewarded() {
    let mut config = small();
    config.steps.length = Length::Steps(160);
    config.steps.rate = 1e-2;
    config.reward = Reward { share: 0.625, rate: 2e-3, beams: 4 };
    config.losses.mix = Mix { captions: 1.0, text: 0.0, masked: 0.0, pictures: 0.0 };
    let (models, material) = (Models::open().unwrap(), material(8));
    let mut trainer = Trainer::new(&models, &config, &material).unwrap();
    let mut rewards = Vec::new();
    let mut half_way = None;
    for step in 0..160 {
        let losses = trainer.step().unwrap().losses;
        assert_eq!(losses.reward.is_some(), step >= 60);
        assert_eq!(losses.words.is_some(), step < 60);
        rewards.extend(losses.reward);
        if step == 100 {
            half_way = Some((trainer.progress.clone(), trainer.optimizer.clone()));
        }
    }
    let mean = |rewards: &[f64]| rewards.iter().sum::<f64>() / rewards.len() as f64;
    let (begin, end) = (mean(&rewards[..10]), mean(&rewards[90..]));
    assert!(end > 1.05 * begin, "from {begin} to {end}");

    let mut again = Trainer::new(&models, &config, &material).unwrap();
    (again.progress, again.optimizer) = half_way.unwrap();
    for _ in 101..160 {
        again.step().unwrap();
    }
    assert_eq!(again.optimizer, trainer.optimizer);
}

#[test]
fn gradients_are_those_of_the_loss() {
    // Of words, and, with an embedder, of contrast: those steps have nothing else.
    gradients_are_right(Mix { captions: 1.0, text: 0.0, masked: 0.0, pictures: 0.0 });
    gradients_are_right(Mix { captions: 0.0, text: 0.0, masked: 0.0, pictures: 1.0 });
}

fn gradients_are_right(mix: Mix) {
    let models = Models::open().unwrap();
    let (mut config, material) = (small(), material(4));
    (config.steps.dropout, config.steps.label_smoothing) = (0.0, 0.1);
    config.steps.embedder_dropout = 0.0;
    (config.steps.weight_decay, config.steps.clip) = (0.0, 1e9);
    config.losses.mix = mix;
    // A small step against the gradient lowers the loss by its length squared times the step. AdamW's
    // first step is the rate times the gradient's sign, so the fall is the sum of its magnitudes.
    config.steps.warm_up = 1;
    config.steps.rate = 1e-5;
    let mut trainer = Trainer::new(&models, &config, &material).unwrap();
    let before = trainer.optimizer.clone();
    let first = trainer.step().unwrap();
    let magnitudes: f64 = trainer
        .optimizer
        .mean
        .values()
        .flat_map(|tensor| &tensor.values)
        .map(|mean| f64::from(mean.abs()) / (1.0 - config.steps.betas[0]))
        .sum();
    // The same batch again, with the weights after the step.
    let stepped = trainer.optimizer.weights.clone();
    trainer.optimizer = Optimizer { weights: stepped, ..before };
    (trainer.progress.step, trainer.progress.taken) = (0, [0; 4]);
    let second = trainer.step().unwrap();
    let (fall, expected) = (first.losses.total - second.losses.total, 1e-5 * magnitudes);
    assert!((fall / expected - 1.0).abs() < 0.05, "{fall}, not {expected}");
}

#[test]
fn frames_of_a_video_are_read_in_sequence() {
    let (config, mut material) = (small(), material(6));
    for photo in &mut material.train[0].photos[2..5] {
        photo.video = Some("film".into());
    }
    let (examples, _) = Examples::new(&config, &material).unwrap();
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let mut lengths = std::collections::BTreeSet::new();
    for _ in 0..100 {
        let joined = examples.joined(3, 16, &mut random);
        assert!(joined.clips.is_sorted() && !joined.clips.is_empty(), "{joined:?}");
        assert!(joined.clips.iter().all(|(_, place)| (2..5).contains(place)), "{joined:?}");
        // What is written is of what is seen: two captions of each.
        let seen = joined.clips.iter().flat_map(|(_, place)| [2 * place, 2 * place + 1]);
        assert_eq!(joined.captions, seen.collect::<Vec<_>>());
        lengths.insert(joined.clips.len());
        assert_eq!(examples.joined(0, 16, &mut random).clips, [(0, 0)]);
        // The next sentence of the film may be said with one, but none of another's.
        let said = examples.said(9, &mut random);
        assert_eq!(said, examples.captions[9]);
    }
    assert_eq!(lengths, [1, 2, 3].into());
}

/// With a codebook fitted on the pictures' parts, which the network sees the words of where `seen`.
#[cfg(feature = "fit")]
fn with_codebook(photos: usize, seen: bool) -> (Config, Material) {
    use crate::codebook::{FitConfig, Shape, fit};
    let (mut config, mut material) = (small(), material(photos));
    config.inputs.tokens = seen;
    let pictures = &material.train[0];
    let rows = (0..photos).flat_map(|photo| (0..10).map(move |part| (photo, part)));
    let rows: Vec<f32> = rows.flat_map(|(photo, part)| pictures.features(photo, part)).collect();
    let rows = Array2::from_shape_vec((10 * photos, DIM), rows).unwrap();
    let shape = Shape::new(2, 2).unwrap();
    let how = FitConfig { shape, dims: 4, seed: 1, encoder: "made up".into() };
    material.codebook = Some(fit(rows.view(), &how, &mut |_| ()).unwrap());
    (config, material)
}

#[test]
#[cfg(feature = "fit")]
fn hidden_visual_words_are_learnt_whether_others_are_seen_or_not() {
    let models = Models::open().unwrap();
    for seen in [false, true] {
        let (mut config, material) = with_codebook(8, seen);
        config.steps.length = Length::Steps(150);
        config.steps.rate = 1e-2;
        (config.losses.mix.text, config.losses.mix.masked) = (0.0, 1e3);
        let mut trainer = Trainer::new(&models, &config, &material).unwrap();
        assert_eq!(trainer.trained().network.centroids, if seen { 4 } else { 0 });
        let nats = (0..150).filter_map(|_| trainer.step().unwrap().losses.visual_words);
        let nats: Vec<f64> = nats.collect();
        let mean = |nats: &[f64]| nats.iter().sum::<f64>() / nats.len() as f64;
        let (begin, end) = (mean(&nats[..10]), mean(&nats[nats.len() - 30..]));
        assert!(nats.len() > 100 && end < 0.8 * begin, "from {begin} to {end}");
    }
}

#[test]
#[cfg(feature = "fit")]
fn burn_and_onnx_runtime_agree_where_words_are_seen() {
    let (mut config, material) = with_codebook(6, true);
    // Its embeddings come from [CLS].
    config.network.embedder = 0;
    the_same_probabilities(&config, &material, 10);
}

#[test]
fn a_loss_that_is_no_number_stops_and_leaves_the_weights() {
    let models = Models::open().unwrap();
    let (config, material) = (small(), material(4));
    let mut trainer = Trainer::new(&models, &config, &material).unwrap();
    trainer.step().unwrap();
    trainer.optimizer.weights.get_mut("norm.bias").unwrap().values[0] = f32::INFINITY;
    let before = trainer.optimizer.clone();
    let error = trainer.step().unwrap_err();
    assert!(error.to_string().contains("is no number"), "{error}");
    assert_eq!(trainer.optimizer, before);
}

#[test]
fn one_photo_with_one_caption_is_enough() {
    let models = Models::open().unwrap();
    let (config, mut material) = (small(), material(1));
    material.train[0].photos[0].captions.truncate(1);
    material.embeddings = material.embeddings.slice(ndarray::s![..1, ..]).to_owned();
    material.texts.clear();
    let mut trainer = Trainer::new(&models, &config, &material).unwrap();
    for _ in 0..12 {
        trainer.step().unwrap();
    }
}

#[test]
fn of_two_checkpoints_the_readable_one_is_taken() {
    let models = Models::open().unwrap();
    let (config, material) = (small(), material(4));
    let folder = tempfile::tempdir().unwrap();
    let mut trainer = Trainer::new(&models, &config, &material).unwrap();
    for _ in 0..3 {
        trainer.step().unwrap();
        checkpoint::write(folder.path(), &trainer.progress, &trainer.optimizer).unwrap();
    }
    let kept = checkpoint::all(folder.path()).unwrap();
    assert_eq!(kept.len(), 2);
    let last = std::fs::read(&kept[1]).unwrap();
    std::fs::write(&kept[1], &last[..last.len() / 2]).unwrap();
    let training = &trainer.progress.training;
    assert_eq!(checkpoint::last(folder.path(), training).unwrap().0.step, 2);
    std::fs::write(&kept[0], b"").unwrap();
    assert_eq!(checkpoint::last(folder.path(), training).unwrap_err().kind(), Kind::Corrupt);

    std::fs::write(&kept[1], &last).unwrap();
    let other = checkpoint::last(folder.path(), "another").unwrap_err();
    assert!(other.to_string().contains("another configuration"), "{other}");
    let empty = tempfile::tempdir().unwrap();
    assert_eq!(checkpoint::last(empty.path(), training).unwrap_err().kind(), Kind::NotFound);
}

#[test]
fn a_stopped_training_goes_on_and_ends_with_its_files() {
    let (config, material) = (small(), material(5));
    let folder = tempfile::tempdir().unwrap();
    let run = |resume: bool, until: u64, out: &Path| {
        let models = Models::open().unwrap();
        train(&models, &config, &material, out, resume, &mut |event| match event {
            super::Event::Step { step, .. } if step == until => Err(Error::cancelled()),
            _ => Ok(()),
        })
    };
    let stopped = run(false, 7, folder.path()).unwrap();
    assert!(stopped.interrupted && stopped.steps == 7);
    let again = run(false, 99, folder.path()).unwrap_err();
    assert!(again.to_string().contains("--resume"), "{again}");
    let finished = run(true, 99, folder.path()).unwrap();
    assert!(!finished.interrupted && finished.steps == 20);
    assert_eq!(finished.files.len(), 8);
    let trained = Trained::load(&finished.files[0]).unwrap();
    assert_eq!(trained.consensus.as_ref().map(|kept| kept.len()), Some(10));

    let straight = tempfile::tempdir().unwrap();
    let finished = run(false, 99, straight.path()).unwrap();
    assert_eq!(Trained::load(&finished.files[0]).unwrap().tensors, trained.tensors);
    assert!(std::fs::read_to_string(folder.path().join("report.html")).unwrap().contains("<svg"));
}

/// Needs `cinelex setup`: ONNX Runtime.
#[test]
fn burn_and_onnx_runtime_give_the_same_probabilities() {
    let config = small();
    the_same_probabilities(&config, &material(6), 10);
}

fn the_same_probabilities(config: &Config, material: &Material, steps: usize) {
    let models = Models::open().unwrap();
    let mut trainer = Trainer::new(&models, config, material).unwrap();
    for _ in 0..steps {
        trainer.step().unwrap();
    }
    let trained = trainer.trained();
    let codebook = material.codebook.as_ref();
    let cells = trained.network.cells;
    let visuals = Visuals::new(&material.train[0], true, codebook, cells).unwrap();
    let texts = ["a dog runs over the snow", "the cat", "snow on a red cat"];
    let pieces: Vec<Vec<u32>> =
        texts.iter().map(|text| trained.pieces.encode(text, 30).unwrap()).collect();
    let seen: Vec<_> = (0..3).map(|photo| visuals.seen(photo)).collect();
    let segments: Vec<Segment<'_>> = [
        Segment { words: &pieces[2], visual: seen[0].tokens(0) },
        Segment { words: &[], visual: [seen[1].tokens(0), seen[2].tokens(1)].concat() },
    ]
    .into();
    for (precision, tolerance) in
        [(Precision::Fp32, 1e-4), (Precision::Fp16, 2e-2), (Precision::Int8, 0.3)]
    {
        let mut captioner = Captioner::new(&models, &trained, precision, 1).unwrap();
        let read = captioner.read(&segments).unwrap();
        let rows: Vec<Row<'_>> = segments
            .iter()
            .zip(&pieces)
            .map(|(read, caption)| Row {
                read: read.clone(),
                captions: vec![caption],
                ..Row::default()
            })
            .collect();
        let batch = Batch::new(&trained.network, &rows).unwrap();
        let model = Model::new(trained.network, &trained.tensors, &Device::flex().autodiff());
        let states = model.run(&batch, &mut None);
        let tokens = batch.targets.iter().map(|(token, _)| *token).collect();
        let burn = super::network::values(model.log_probabilities(&states, tokens)).unwrap();
        let mut onnx = Vec::new();
        for (of, caption) in pieces[..2].iter().enumerate() {
            onnx.extend(captioner.log_probabilities(&read, of, caption).unwrap());
        }
        let differences = burn.iter().zip(&onnx).map(|(a, b)| (a - b).abs());
        let most = differences.fold(0.0_f32, f32::max);
        assert!(burn.len() == onnx.len() && most < tolerance, "{precision:?}: {most}");

        let embedded = model.embeddings(&batch, Some(&states), &mut None).unwrap();
        let embeddings = super::network::values(embedded.clone()).unwrap();
        for (a, b) in embeddings.iter().zip(&read.embeddings) {
            assert!((a - b).abs() < tolerance, "{precision:?}");
        }
        // What is trained on the pair of a picture and its words is what is told of it.
        let (first, second) = (read.embeddings.row(0), read.embeddings.row(1));
        let words = [first, second].map(|row| row.to_vec()).concat();
        let (_, loss) = model.contrast(embedded, &[(0, 0)], &words);
        let loss = super::network::values(loss).unwrap()[0];
        // By the odds: of a probability near 1, not enough is left below it to take a logarithm of.
        let [own, other] = [first, second].map(|words| captioner.alignment_odds(first, words));
        let expected = 0.5 * ((-own).exp().ln_1p() + other.exp().ln_1p());
        let error = (loss - expected).abs() / (1.0 + expected);
        assert!(error < 10.0 * tolerance, "{precision:?} {loss} {expected}");
        assert_eq!(captioner.alignment(first, first), 1.0 / (1.0 + (-own).exp()));
        // Word by word with kept keys and values, it is the same as all at a time, also where captions of some
        // segments are over before others.
        for beams in [1, 2, 5] {
            let how = Writing { beams, most: 12, length_power: 1.0 };
            let written = captioner.write(&read, how).unwrap();
            assert_eq!(written.len(), segments.len());
            for (of, written) in written
                .iter()
                .enumerate()
                .flat_map(|(of, all)| all.iter().map(move |one| (of, one)))
            {
                let pieces = trained.pieces.encode(&written.caption.text, 30).unwrap();
                let next = captioner.log_probabilities(&read, of, &pieces).unwrap();
                let ends = pieces.iter().chain([&crate::text::pieces::SEP]);
                let sum: f32 = ends.zip(next.rows()).map(|(piece, p)| p[*piece as usize]).sum();
                let score = sum / (pieces.len() + 1) as f32;
                assert!((score.exp() - written.score.exp()).abs() < 1e-4, "{written:?}: {score}");
            }
        }
    }
}
