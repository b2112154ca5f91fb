//! Models: manifests, verified files, and what the networks say. Needs `cinelex setup`.

use cinelex::model::{Device, Models};
use cinelex::picture::encoder::Encoder;

#[test]
fn scratch() {
    let models = Models::open().unwrap();
    for id in
        ["onnxruntime", "efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2", "minilm"]
    {
        let manifest = models.manifest(id).unwrap();
        let start = std::time::Instant::now();
        cinelex::onnx::prepare(&models, &manifest, &mut |_| ()).unwrap();
        println!("{id} {:?}", start.elapsed());
        for f in models.files(&manifest, false).unwrap() {
            println!("{f:?}");
        }
    }
    for id in ["efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2"] {
        let manifest = models.manifest(id).unwrap();
        let mut encoder = Encoder::load(&models, &manifest, Device::Auto, 2).unwrap();
        println!("{id} on {}", encoder.device());
        let (w, h) = encoder.input_px();
        let grey = vec![127u8; (w * h * 3) as usize];
        let out = encoder.encode(&[&grey[..]; 4]).unwrap();
        let out = out[0].as_ref().unwrap();
        println!(
            "{:?} {} {} {}",
            &out.features[..5],
            out.cells.len(),
            out.classes.len(),
            out.classes.iter().sum::<f32>()
        );
    }
}
