//! Embeddings of real pictures: crops of Flickr8k's photos, through the default encoder and joint
//! space. Made once, about ten minutes of both cores of a laptop, and kept in the cache folder; a run
//! that is cut off goes on where it was.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytemuck::cast_slice;
use cinelex::evaluate::photos::{Collection, Photo, still};
use cinelex::model::{Device, Models};
use cinelex::picture::Encoder;
use cinelex::source::{Fit, Host, Limits, Rendition};
use cinelex::text::{JointSpace, TextTower};
use half::f16;

use crate::Outcome;

/// Of each photo: nine places in it, six of them mirrored too.
const CROPS: usize = 15;
/// The side of the photo that crops are taken from, and how far apart they are.
const PHOTO_PX: usize = 320;
const STEP_PX: usize = 48;

/// Real embeddings, and queries that were not among what they were made of.
#[derive(Debug)]
pub struct Real {
    pub dimension: usize,
    /// Row-major, in order of photo.
    pub pictures: Vec<f16>,
    /// All captions of those photos: the first of each, then the second of each, and so on.
    pub texts: Vec<String>,
    /// Row-major, the embeddings of the first captions.
    pub sentences: Vec<f16>,
    /// Captions of other photos.
    pub queries: Vec<String>,
}

/// At most `most` embeddings; fewer where making them takes longer than `patience`.
pub fn real(data: &Path, tower: &mut TextTower, most: usize, patience: Duration) -> Outcome<Real> {
    let models = Models::open()?;
    let manifest = models.manifest("efficientnet-lite0")?;
    let text = models.manifest("minilm")?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let space = JointSpace::open(&models, &manifest, &text, threads)?;
    let dimension = space.dim();
    let mut encoder = Encoder::load(&models, &manifest, Device::Cpu, threads)?;
    let px = encoder.input_px().0 as usize;
    let executable = Some(PathBuf::from(env!("CARGO_BIN_EXE_cinelex")));
    let mut host = Host::start(&Limits { executable, ..Limits::default() })?;
    let mut embed = |photo: &Path, side: usize, crops: &[(usize, usize, bool)]| {
        let side_px = side as u32;
        let rendition = Rendition { width_px: side_px, height_px: side_px, fit: Fit::Squash };
        let rgb = still(&mut host, photo, rendition)?;
        let crops: Vec<Vec<u8>> =
            crops.iter().map(|&(x, y, mirrored)| crop(&rgb, side, px, x, y, mirrored)).collect();
        let crops: Vec<&[u8]> = crops.iter().map(Vec::as_slice).collect();
        let mut rows = Vec::new();
        for encoded in encoder.encode(&crops)? {
            rows.extend(space.picture(&encoded?.classes)?.into_iter().map(f16::from_f32));
        }
        Ok(rows)
    };

    let flickr = Collection::read(&data.join("flickr8k"))?;
    let (held_out, rest): (Vec<&Photo>, Vec<&Photo>) =
        flickr.photos().iter().partition(|photo| photo.split == "test");
    let folder = models.cache_folder().join("benches");
    std::fs::create_dir_all(&folder)?;
    let path = |what: &str| {
        let name = format!("{}-{}-{what}.f16", manifest.id, &space.id().to_hex()[..16]);
        folder.join(name)
    };
    let places = (0..9).map(|place| (place % 3 * STEP_PX, place / 3 * STEP_PX));
    let plain = places.clone().map(|(x, y)| (x, y, false));
    let crops: Vec<_> = plain.chain(places.map(|(x, y)| (x, y, true))).take(CROPS).collect();
    let photos = rest.len().min(most.div_ceil(CROPS));
    let mut pictures = kept(&path("crops"), CROPS * dimension, photos, patience, |place| {
        embed(&flickr.path(rest[place]), PHOTO_PX, &crops)
    })?;
    pictures.truncate(most * dimension);
    let captions = |photos: &[&Photo], number: usize| -> Vec<String> {
        photos.iter().filter_map(|photo| photo.captions.get(number).cloned()).collect()
    };
    let first = captions(&rest, 0);
    let sentences = kept(&path("captions"), dimension, first.len(), patience, |place| {
        let row = tower.embed(&[&first[place]])?;
        Ok(row.iter().map(|&value| f16::from_f32(value)).collect())
    })?;
    let texts = (0..5).flat_map(|number| captions(&rest, number)).collect();
    Ok(Real { dimension, pictures, texts, sentences, queries: captions(&held_out, 0) })
}

/// `count` rows of `width` halves: those that the file at `path` has, and `make`s of the others, which
/// are added to it.
fn kept(
    path: &Path,
    width: usize,
    count: usize,
    patience: Duration,
    mut make: impl FnMut(usize) -> Outcome<Vec<f16>>,
) -> Outcome<Vec<f16>> {
    let bytes = width * 2;
    let known = std::fs::read(path).unwrap_or_default();
    let whole = (known.len() / bytes).min(count);
    let halves = known[..whole * bytes].as_chunks::<2>().0;
    let mut rows: Vec<f16> = halves.iter().map(|half| f16::from_le_bytes(*half)).collect();
    if whole == count {
        return Ok(rows);
    }
    let mut file = File::options().create(true).truncate(false).write(true).open(path)?;
    file.set_len((whole * bytes) as u64)?;
    file.seek(SeekFrom::End(0))?;
    let started = Instant::now();
    for place in whole..count {
        if started.elapsed() > patience {
            println!("{}: {place} of {count} made, and time is up", path.display());
            break;
        }
        let row = make(place)?;
        assert_eq!(row.len(), width);
        file.write_all(cast_slice(&row))?;
        rows.extend(row);
    }
    Ok(rows)
}

fn crop(rgb: &[u8], side: usize, px: usize, x: usize, y: usize, mirrored: bool) -> Vec<u8> {
    let mut cut = Vec::with_capacity(px * px * 3);
    for row in y..y + px {
        let from = (row * side + x) * 3;
        let row = &rgb[from..from + px * 3];
        if mirrored {
            cut.extend(row.rchunks(3).flatten());
        } else {
            cut.extend(row);
        }
    }
    cut
}
