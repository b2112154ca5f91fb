//! Models: manifests, fetched and verified files, and what the networks say. What the networks
//! must say is in `tests/golden/models.json`, made by `tests/golden/models.py`. Most tests here
//! need `cinelex setup efficientnet-lite1`, and say so.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use cinelex::error::Kind;
use cinelex::model::{Device, FileState, Manifest, Models, Tensor};
use cinelex::onnx;
use cinelex::picture::Encoder;
use ndarray::ArrayD;
use serde_json::Value;
use sha2::{Digest, Sha256};

fn models() -> Models {
    Models::open().unwrap()
}

fn encoder(id: &str) -> Encoder {
    let models = models();
    Encoder::load(&models, &models.manifest(id).unwrap(), Device::Cpu, 2).unwrap()
}

fn golden() -> Value {
    serde_json::from_str(include_str!("../golden/models.json")).unwrap()
}

fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
}

fn assert_near(found: &[f32], wanted: &[f32], tolerance: f32) {
    assert_eq!(found.len(), wanted.len());
    for (found, wanted) in found.iter().zip(wanted) {
        assert!((found - wanted).abs() <= tolerance, "{found} is not {wanted}");
    }
}

/// The picture of `tests/golden/models.py`.
fn drawn(width: u32, height: u32) -> Vec<u8> {
    let mut rgb = Vec::new();
    for y in 0..height {
        for x in 0..width {
            let square = (x / 32 + y / 32) % 2 * 90;
            rgb.extend((0..3).map(|c| ((x * 3 + y * (c + 1) + square) % 256) as u8));
        }
    }
    rgb
}

/// A folder like the project's data, where one is named.
pub fn data_folder() -> Option<PathBuf> {
    let folder = std::env::var_os("CINELEX_DATA").map(PathBuf::from);
    if folder.is_none() {
        println!("skipped: CINELEX_DATA names no folder");
    }
    folder
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn two_encoders_of_other_sizes_give_what_numpy_computed() {
    for (id, golden) in golden()["encoders"].as_object().unwrap() {
        let mut encoder = encoder(id);
        let (width, height) = encoder.input_px();
        let encoded = encoder.encode(&[&drawn(width, height)]).unwrap().remove(0).unwrap();

        let some: Vec<f32> = encoded.features.iter().copied().step_by(40).collect();
        assert_near(&some, &floats(&golden["every_40th_feature"]), 1e-4);
        let cells: Vec<f32> =
            encoded.cells.chunks(encoder.dim()).map(|cell| cell.iter().sum()).collect();
        assert_near(&cells, &floats(&golden["sum_of_each_cell"]), 1e-2);
        let best = golden["best_class"].as_u64().unwrap() as usize;
        let probability = golden["best_probability"].as_f64().unwrap() as f32;
        assert_near(&encoded.classes[best..=best], &[probability], 1e-4);
        assert!(encoded.classes.iter().all(|&other| other <= encoded.classes[best]));
    }
    assert_eq!(encoder("efficientnet-lite0").input_px(), (224, 224));
    assert_eq!(encoder("efficientnet-lite1").input_px(), (240, 240));
}

#[test]
fn the_int8_variant_gives_nearly_the_same_features() {
    let models = models();
    let manifest = models.manifest("efficientnet-lite0@int8").unwrap();
    // Made from what is in the cache already.
    onnx::prepare(&models, &manifest, &mut |_| ()).unwrap();
    let mut int8 = Encoder::load(&models, &manifest, Device::Cpu, 2).unwrap();
    let mut fp32 = encoder("efficientnet-lite0");
    let picture = drawn(224, 224);
    let rounded = int8.encode(&[&picture]).unwrap().remove(0).unwrap().features;
    let exact = fp32.encode(&[&picture]).unwrap().remove(0).unwrap().features;
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    let cosine = dot(&rounded, &exact) / (dot(&rounded, &rounded) * dot(&exact, &exact)).sqrt();
    assert!(cosine > 0.97 && cosine < 0.999_999, "{cosine}");
    assert!(models.manifest("minilm@int8").is_err());
}

#[test]
fn sentences_get_the_embedding_numpy_computed_however_they_are_padded() {
    let models = models();
    let manifest = models.manifest("minilm").unwrap();
    let spec = manifest.text().unwrap();
    let mut session = models.session(&manifest, Device::Cpu, 2).unwrap();
    let golden = golden();
    let sentences = golden["sentences"].as_array().unwrap();
    let longest = 12;
    let shape = [sentences.len(), longest];
    let (mut ids, mut mask) = (ArrayD::zeros(&shape[..]), ArrayD::zeros(&shape[..]));
    for (row, sentence) in sentences.iter().enumerate() {
        for (place, id) in sentence["ids"].as_array().unwrap().iter().enumerate() {
            ids[[row, place]] = id.as_i64().unwrap();
            mask[[row, place]] = 1;
        }
    }
    let inputs = [(&spec.ids[..], Tensor::i64(ids)), (&spec.mask[..], Tensor::i64(mask))];
    let outputs = session.run(&inputs).unwrap();
    let embeddings = &outputs[&spec.output];
    assert_eq!(embeddings.shape(), [sentences.len(), spec.dim]);
    for (row, sentence) in embeddings.outer_iter().zip(sentences) {
        // Weights in 8 bits: a number, which is .05 typically, is off by .0015 typically.
        let some: Vec<f32> = row.iter().copied().step_by(24).collect();
        assert_near(&some, &floats(&sentence["every_24th"]), 5e-3);
        let length: f32 = row.iter().map(|x| x * x).sum();
        assert_near(&[length], &[1.0], 1e-5);
        let ids: Vec<i64> =
            sentence["ids"].as_array().unwrap().iter().map(|id| id.as_i64().unwrap()).collect();
        let mask = ArrayD::from_elem(&[1, ids.len()][..], 1_i64);
        let ids = ArrayD::from_shape_vec(&[1, ids.len()][..], ids).unwrap();
        let inputs = [(&spec.ids[..], Tensor::i64(ids)), (&spec.mask[..], Tensor::i64(mask))];
        let alone = session.run(&inputs).unwrap().remove(&spec.output).unwrap();
        let values = |row: ndarray::ArrayViewD<'_, f32>| row.iter().copied().collect::<Vec<_>>();
        assert_near(&values(alone.view()), &values(row), 1e-4);
    }
}

#[test]
fn features_do_not_depend_on_the_batch() {
    let mut encoder = encoder("efficientnet-lite0");
    let (width, height) = encoder.input_px();
    let picture = drawn(width, height);
    let black = vec![0; picture.len()];
    let alone = encoder.encode(&[&picture]).unwrap().remove(0).unwrap();
    let mut batch = vec![&black[..]; 40];
    batch[37] = &picture;
    let together = encoder.encode(&batch).unwrap();
    assert_eq!(together.len(), 40);
    let together = together[37].as_ref().unwrap();
    assert_near(&together.features, &alone.features, 1e-5);
    assert_near(&together.cells, &alone.cells, 1e-4);
    assert!(encoder.encode(&[]).unwrap().is_empty());
}

#[test]
fn a_picture_of_the_wrong_size_is_refused() {
    let error = encoder("efficientnet-lite0").encode(&[&[0; 3]]).unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidInput);
    assert!(error.to_string().contains("wants 150528 bytes of RGB (224x224"), "{error}");
}

#[test]
fn photos_are_given_their_classes() {
    let Some(data) = data_folder() else { return };
    let models = models();
    let mut encoder = encoder("efficientnet-lite0");
    let (width, height) = encoder.input_px();
    let names = models.classes("imagenet-1k").unwrap();
    // From the train split of Flickr8k.
    for (photo, class) in [
        ("1332815795_8eea44375e.jpg", "swing"),
        ("241031670_e60f59b8e4.jpg", "umbrella"),
        ("2021602343_03023e1fd1.jpg", "basketball"),
        ("2242863004_3a9f82a31f.jpg", "German_shepherd"),
        ("2369452202_8b0e8e25ca.jpg", "balloon"),
        ("2502079538_10ef2e976b.jpg", "Arabian_camel"),
        ("1480712062_32a61ad4b7.jpg", "scuba_diver"),
        ("109738916_236dc456ac.jpg", "snowmobile"),
    ] {
        let path = data.join("flickr8k/images").join(photo);
        let decoded = Command::new("ffmpeg")
            .args(["-v", "error", "-i"])
            .arg(&path)
            .args(["-vf", &format!("scale={width}:{height}"), "-pix_fmt", "rgb24"])
            .args(["-f", "rawvideo", "-"])
            .output()
            .unwrap();
        let classes = encoder.encode(&[&decoded.stdout]).unwrap().remove(0).unwrap().classes;
        let mut order: Vec<usize> = (0..classes.len()).collect();
        order.sort_by(|&a, &b| classes[b].total_cmp(&classes[a]));
        let best: Vec<&str> = order[..5].iter().map(|&index| names[index].name.as_str()).collect();
        assert!(best.contains(&class), "{photo}: {best:?}");
    }
}

#[test]
fn cuda_that_is_not_there_is_an_error_when_asked_for() {
    let models = models();
    let manifest = models.manifest("efficientnet-lite0").unwrap();
    let error = match Encoder::load(&models, &manifest, Device::Cuda, 1) {
        Ok(encoder) => return assert_eq!(encoder.device(), Device::Cuda),
        Err(error) => error,
    };
    assert_eq!(error.kind(), Kind::Unsupported);
    assert!(error.to_string().contains("CUDA was asked for"), "{error}");
    let auto = Encoder::load(&models, &manifest, Device::Auto, 1).unwrap();
    assert_eq!(auto.device(), Device::Cpu);
}

/// A cache of its own, with lite0's checkpoint in it.
fn own_cache() -> (tempfile::TempDir, Models, Manifest, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let own = Models::at(folder.path()).unwrap();
    let manifest = own.manifest("efficientnet-lite0").unwrap();
    let path = own.files(&manifest, false).unwrap()[0].path.clone().unwrap();
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::copy(models().path(&manifest, "efficientnet-lite0.pth").unwrap(), &path).unwrap();
    (folder, own, manifest, path)
}

#[test]
fn a_file_put_in_the_cache_by_hand_is_accepted_and_converted_to_the_same_graph() {
    let (_folder, own, manifest, _) = own_cache();
    onnx::prepare(&own, &manifest, &mut |_| panic!("nothing is to be downloaded")).unwrap();
    let here = fs::read(own.graph(&manifest).unwrap()).unwrap();
    let there = fs::read(models().graph(&manifest).unwrap()).unwrap();
    assert!(here == there);
}

#[test]
fn a_tampered_file_is_refused_with_both_hashes() {
    let (_folder, own, manifest, path) = own_cache();
    own.path(&manifest, "efficientnet-lite0.pth").unwrap();
    fs::File::open(&path).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    own.path(&manifest, "efficientnet-lite0.pth").expect("only the time has changed");

    let mut bytes = fs::read(&path).unwrap();
    bytes[1_000_000] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let error = own.path(&manifest, "efficientnet-lite0.pth").unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    let message = error.to_string();
    assert!(message.contains(&manifest.files[0].sha256), "{message}");
    assert!(message.contains(&sha256(&bytes)), "{message}");
    assert!(message.contains("efficientnet-lite0.pth"), "{message}");
}

#[test]
fn weights_that_were_cut_changed_or_deleted_are_refused_and_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let own = Models::at(folder.path()).unwrap();
    let manifest = own.manifest("minilm").unwrap();
    for file in own.files(&manifest, false).unwrap() {
        let path = file.path.unwrap();
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        if let Ok(there) = models().path(&manifest, &file.name) {
            fs::copy(there, path).unwrap();
        }
    }
    onnx::prepare(&own, &manifest, &mut |_| panic!("nothing is to be downloaded")).unwrap();
    let weights = own.files(&manifest, false).unwrap().pop().unwrap().path.unwrap();
    assert!(weights.to_str().unwrap().ends_with(".onnx.weights"), "{}", weights.display());
    let whole = fs::read(&weights).unwrap();
    let mut changed = whole.clone();
    changed[50_000_000] ^= 1;
    for damaged in [&whole[..whole.len() / 2], &[], &changed] {
        fs::write(&weights, damaged).unwrap();
        fs::File::open(&weights).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(own.graph(&manifest).unwrap_err().kind(), Kind::Corrupt);
        onnx::prepare(&own, &manifest, &mut |_| ()).unwrap();
        assert!(fs::read(&weights).unwrap() == whole);
    }
    fs::remove_file(&weights).unwrap();
    let error = own.graph(&manifest).unwrap_err();
    assert!(error.to_string().contains("run `cinelex setup`"), "{error}");
}

#[test]
fn models_are_run_without_reporting_to_anyone() {
    let folder = tempfile::tempdir().unwrap();
    let (home, library) = (folder.path().join("home"), folder.path().join("library"));
    fs::create_dir(&home).unwrap();
    let film = crate::indexing::film(folder.path(), "film.mp4");
    let cache = models().cache_folder().to_owned();
    let mut index = crate::cinelex::command(["index", "--library"]);
    index.arg(&library).arg(&film).env_remove("ORT_DISABLE_TELEMETRY").env_remove("CI");
    index.env("HOME", &home).env("XDG_CACHE_HOME", home.join("cache")).env("CINELEX_CACHE", cache);
    crate::cinelex::finish(&mut index).exits(0);
    // What ONNX Runtime would send waits in a database below one of these.
    assert_eq!(fs::read_dir(&home).unwrap().count(), 0);
}

#[test]
fn hashing_again_finds_a_change_that_kept_size_and_time() {
    let (_folder, own, manifest, path) = own_cache();
    own.path(&manifest, "efficientnet-lite0.pth").unwrap();
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    let mut bytes = fs::read(&path).unwrap();
    bytes[1_000_000] ^= 1;
    fs::write(&path, &bytes).unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
    assert_eq!(own.files(&manifest, false).unwrap()[0].state, FileState::Present);
    assert!(matches!(own.files(&manifest, true).unwrap()[0].state, FileState::Damaged(_)));
}

#[test]
fn what_is_not_set_up_says_how_to_get_it() {
    let folder = tempfile::tempdir().unwrap();
    let own = Models::at(folder.path()).unwrap();
    for (id, command) in [
        ("efficientnet-lite0", "run `cinelex setup`"),
        ("efficientnet-lite1", "run `cinelex setup efficientnet-lite1`"),
    ] {
        let error = own.graph(&own.manifest(id).unwrap()).unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound);
        assert!(error.to_string().contains(command), "{error}");
    }
    let error = own.manifest("efficientnet-lite9").unwrap_err();
    assert!(error.to_string().contains("write one of onnxruntime, onnxruntime-cuda, "), "{error}");
}

/// Writes a manifest for an encoder whose one file has these lines.
fn write_manifest(folder: &Path, name: &str, file: &str) -> String {
    let text = format!(
        "schema = 1\nid = \"{name}\"\nversion = \"1\"\ntask = \"encoder\"\nabout = \"a test\"\n\
         licence = \"MIT\"\ncommercial = true\n[[files]]\n{file}\n[encoder]\nwidth = 224\n\
         height = 224\nmean = [127, 127, 127]\nscale = [128, 128, 128]\nlayout = \"nchw\"\n\
         input = \"image\"\nfeatures = {{ name = \"features\", dim = 1280 }}\n"
    );
    let path = folder.join(format!("{name}.toml"));
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_users_manifest_brings_an_encoder_from_beside_itself() {
    let folder = tempfile::tempdir().unwrap();
    let models = models();
    let lite0 = models.graph(&models.manifest("efficientnet-lite0").unwrap()).unwrap();
    let graph = fs::read(&lite0).unwrap();
    fs::write(folder.path().join("mine.onnx"), &graph).unwrap();
    let file = |sha256: &str| {
        let bytes = graph.len();
        format!(
            "name = \"mine.onnx\"\npath = \"mine.onnx\"\nsha256 = \"{sha256}\"\nbytes = {bytes}"
        )
    };
    let path = write_manifest(folder.path(), "mine", &file(&sha256(&graph)));
    let manifest = models.manifest(&path).unwrap();
    onnx::prepare(&models, &manifest, &mut |_| ()).unwrap();
    let mut mine = Encoder::load(&models, &manifest, Device::Cpu, 2).unwrap();
    let picture = drawn(224, 224);
    let encoded = mine.encode(&[&picture]).unwrap().remove(0).unwrap();
    let wanted = encoder("efficientnet-lite0").encode(&[&picture]).unwrap().remove(0).unwrap();
    assert_near(&encoded.features, &wanted.features, 1e-6);
    assert!(encoded.cells.is_empty() && encoded.classes.is_empty());

    let other = write_manifest(folder.path(), "other", &file(&"0".repeat(64)));
    let error = Encoder::load(&models, &models.manifest(&other).unwrap(), Device::Cpu, 2);
    let error = error.unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(error.to_string().contains(&sha256(&graph)), "{error}");
}

#[test]
fn a_manifest_that_does_not_fit_its_graph_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let models = models();
    let lite0 = models.graph(&models.manifest("efficientnet-lite0").unwrap()).unwrap();
    let (graph, sum) = (fs::read(&lite0).unwrap(), sha256(&fs::read(&lite0).unwrap()));
    fs::write(folder.path().join("mine.onnx"), &graph).unwrap();
    let file = format!(
        "name = \"mine.onnx\"\npath = \"mine.onnx\"\nsha256 = \"{sum}\"\nbytes = {}",
        graph.len()
    );
    let path = write_manifest(folder.path(), "mine", &file);
    let text = fs::read_to_string(&path).unwrap();
    for (from, to, complaint) in [
        ("dim = 1280", "dim = 512", "output features has the shape [-1, 1280]"),
        ("name = \"features\"", "name = \"embedding\"", "the graph has no output embedding"),
        ("input = \"image\"", "input = \"pixels\"", "input is named image, not pixels"),
    ] {
        fs::write(&path, text.replace(from, to)).unwrap();
        let manifest = models.manifest(&path).unwrap();
        let error = Encoder::load(&models, &manifest, Device::Cpu, 1).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidInput);
        assert!(error.to_string().contains(complaint), "{error}");
    }
}

#[test]
fn a_wrong_manifest_is_refused_with_every_mistake_and_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wrong.toml");
    let text = "schema = 1\nid = \"../x\"\nversion = \"1\"\ntask = \"encoder\"\nabout = \"x\"\n\
                license = \"MIT\"\ncommercial = \"maybe\"\n[[files]]\nname = \"x.onnx\"\n\
                url = \"ftp://x\"\nsha256 = \"12\"\nbytes = 0\n[encoder]\nwidth = 4\nheight = 224\n\
                mean = [1, 2]\nscale = [1, 1, 1]\nlayout = \"nhw\"\ninput = \"x\"\n\
                features = { name = \"f\", dim = \"big\" }\n";
    fs::write(&path, text).unwrap();
    let error = models().manifest(path.to_str().unwrap()).unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidInput);
    let message = error.to_string();
    let prefix = format!("{}:", path.display());
    let found: Vec<&str> =
        message.lines().map(|line| line.strip_prefix(&prefix).expect("the file")).collect();
    let expected = [
        "1:1: the key `licence` is missing",
        "2:6: `id` must consist of",
        "6:1: unknown key `license`: did you mean `licence`?",
        "7:14: `commercial` must be true, false or \"unknown\", not \"maybe\"",
        "10:7: `url` must start with https://",
        "11:10: `sha256` must be 64",
        "12:9: `bytes` must be a whole number",
        "14:9: `width` must be a whole number from 8 to 2048, not 4",
        "16:8: `mean` must be three numbers",
        "18:10: `layout` must be n, then",
        "20:32: `dim` must be a whole number",
    ];
    assert_eq!(found.len(), expected.len(), "{message}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "{found} is not {expected}");
    }
}

/// Serves `content` to every request for ever; counts the requests.
fn serve(content: &'static [u8]) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/model.onnx", listener.local_addr().unwrap());
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = requests.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            counted.fetch_add(1, Ordering::SeqCst);
            let _ = stream.read(&mut [0; 4096]);
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                content.len()
            );
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(content));
        }
    });
    (url, requests)
}

const CONTENT: &[u8] = &[7; 100_000];

fn url_manifest(folder: &Path, url: &str, sha256: &str, bytes: usize) -> String {
    let file =
        format!("name = \"model.onnx\"\nurl = \"{url}\"\nsha256 = \"{sha256}\"\nbytes = {bytes}");
    write_manifest(folder, "served", &file)
}

#[test]
fn of_setups_at_the_same_time_one_fetches_and_all_succeed() {
    let folder = tempfile::tempdir().unwrap();
    let (url, requests) = serve(CONTENT);
    let path = url_manifest(folder.path(), &url, &sha256(CONTENT), CONTENT.len());
    let own = Models::at(folder.path().join("cache")).unwrap();
    let manifest = own.manifest(&path).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| own.fetch(&manifest, &mut |_| ()).unwrap());
        }
    });
    assert_eq!(requests.load(Ordering::SeqCst), 1);
    assert_eq!(fs::read(own.path(&manifest, "model.onnx").unwrap()).unwrap(), CONTENT);
    own.fetch(&manifest, &mut |_| panic!("it is there already")).unwrap();
}

#[test]
fn what_is_fetched_is_kept_only_if_size_and_hash_are_as_stated() {
    let folder = tempfile::tempdir().unwrap();
    let (url, _) = serve(CONTENT);
    let own = Models::at(folder.path().join("cache")).unwrap();
    for (hash, bytes, complaint) in [
        ("0".repeat(64), CONTENT.len(), sha256(CONTENT)),
        (sha256(CONTENT), CONTENT.len() - 1, "has more than the 99999 bytes".to_owned()),
        (sha256(CONTENT), CONTENT.len() + 1, "has less than the 100001 bytes".to_owned()),
    ] {
        let path = url_manifest(folder.path(), &url, &hash, bytes);
        let manifest = own.manifest(&path).unwrap();
        let error = own.fetch(&manifest, &mut |_| ()).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt);
        assert!(error.to_string().contains(&complaint), "{error}");
        let files = own.files(&manifest, false).unwrap();
        assert_eq!(files[0].state, FileState::Missing);
        let cached = fs::read_dir(files[0].path.as_ref().unwrap().parent().unwrap()).unwrap();
        let left: Vec<_> = cached.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, [".lock"]);
    }
}

#[test]
fn setup_without_python_says_what_is_missing_and_what_to_do_by_hand() {
    let folder = tempfile::tempdir().unwrap();
    let setup = Command::new(env!("CARGO_BIN_EXE_cinelex"))
        .arg("setup")
        .env("PATH", folder.path())
        .env("CINELEX_CACHE", folder.path())
        .output()
        .unwrap();
    assert_eq!(setup.status.code(), Some(3));
    let said = String::from_utf8(setup.stderr).unwrap();
    assert!(said.contains("python3 with pip is needed"), "{said}");
    assert!(said.contains("by hand: take onnxruntime/capi/libonnxruntime.so"), "{said}");
}

#[test]
fn a_server_that_is_not_there_says_what_to_do_by_hand() {
    let folder = tempfile::tempdir().unwrap();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{closed}/model.onnx");
    let path = url_manifest(folder.path(), &url, &sha256(CONTENT), CONTENT.len());
    let own = Models::at(folder.path().join("cache")).unwrap();
    let manifest = own.manifest(&path).unwrap();
    let error = own.fetch(&manifest, &mut |_| ()).unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    let place = own.files(&manifest, false).unwrap().remove(0).path.unwrap();
    let hint = format!("by hand: fetch {url} and put it at {}", place.display());
    assert!(error.to_string().contains(&hint), "{error}");
}

#[test]
fn what_is_built_in_is_what_its_manifest_says() {
    let models = models();
    for manifest in models.built_in() {
        for file in &manifest.files {
            if let cinelex::model::Origin::Path(_) = file.origin {
                let bytes = models.bytes(manifest, &file.name).unwrap();
                assert_eq!(sha256(&bytes), file.sha256, "{}", file.name);
                assert_eq!(bytes.len() as u64, file.bytes, "{}", file.name);
            }
        }
    }
    let names = models.classes("imagenet-1k").unwrap();
    assert_eq!(names.len(), 1000);
    assert_eq!((names[967].name.as_str(), names[282].wnid.as_str()), ("espresso", "n02123159"));
}
