//! Collections of captioned photos, and encoding them.
//!
//! A collection is a folder with `captions.tsv` (tab-separated, a header, no quoting; the columns
//! `image`, `split` or `subset`, and `caption`; `video_id` where photos are frames of videos, in order
//! of time; other columns are left alone) and the images below `images/`. Flickr8k, the COCO sample and
//! the YouCook2 frames come in this form.

use std::collections::{BTreeSet, HashMap};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::error::{Error, Result};
use crate::picture::{Encoder, FrameFeatures};
use crate::source::{
    Fit, Host, Input, Limits, Location, PictureEvent, PictureRequest, Rendition, Targets,
};
use crate::time::{Micros, Timestamp};

/// Far more than any collection of captions by hand.
const MAX_CAPTIONS_BYTES: u64 = 1 << 30;
/// Videos that are held out of a collection without a dev split, at most…
const HELD_OUT: usize = 60;
/// …and at most one of so many.
const HELD_OUT_OF: usize = 4;
/// Photos that are decoded ahead of the encoder.
const DECODED_AHEAD: usize = 32;
/// Photos that the encoder gets at a time.
const BATCH: usize = 16;
/// Of a photo's width and height, a corner has so much.
const CORNER: (u32, u32) = (7, 8);

/// A photo of a collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Photo {
    /// Its path below `images/`, as the file of captions has it: what it is called in lists.
    pub image: String,
    pub split: String,
    /// The video that it is a frame of; its frames are in the order of the file.
    pub video: Option<String>,
    /// In the order of the file.
    pub captions: Vec<String>,
}

/// How a photo is seen. What is learnt from is seen in several views, so that less of it is learnt by
/// heart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct View {
    pub mirrored: bool,
    /// All but an edge on two sides is left, the corner at the right and at the bottom where these
    /// are true; all of it where there is none.
    pub corner: Option<(bool, bool)>,
}

impl View {
    /// The photo as it is.
    pub const WHOLE: View = View { mirrored: false, corner: None };
    /// In the order in which they are taken.
    pub const ALL: [View; 6] = [
        View::WHOLE,
        View { mirrored: true, corner: None },
        View { mirrored: false, corner: Some((false, false)) },
        View { mirrored: true, corner: Some((true, true)) },
        View { mirrored: false, corner: Some((true, false)) },
        View { mirrored: true, corner: Some((false, true)) },
    ];

    /// What a photo is decoded to for `px` of it to be seen.
    fn rendition(self, (width, height): (u32, u32)) -> Rendition {
        let whole = |px: u32| if self.corner.is_some() { px * CORNER.1 / CORNER.0 } else { px };
        Rendition { width_px: whole(width), height_px: whole(height), fit: Fit::Squash }
    }

    /// What of a photo in that rendition is seen; both are packed RGB.
    fn of(self, rgb: &[u8], (width, height): (u32, u32)) -> Vec<u8> {
        let Rendition { width_px, height_px, .. } = self.rendition((width, height));
        let (right, bottom) = self.corner.unwrap_or_default();
        let left = if right { width_px - width } else { 0 } as usize * 3;
        let top = if bottom { height_px - height } else { 0 } as usize;
        let mut seen = Vec::with_capacity(3 * (width * height) as usize);
        for row in rgb.chunks_exact(width_px as usize * 3).skip(top).take(height as usize) {
            let row = &row[left..left + width as usize * 3];
            match self.mirrored {
                true => seen.extend(row.rchunks_exact(3).flatten()),
                false => seen.extend(row),
            }
        }
        seen
    }
}

/// A folder of captioned photos.
#[derive(Debug, Clone)]
pub struct Collection {
    folder: PathBuf,
    photos: Vec<Photo>,
}

impl Collection {
    /// Reads `captions.tsv` in `folder`; the images are not looked at.
    ///
    /// # Errors
    /// `NotFound`; `InvalidInput` with the line, where the file is not as described above.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("captions.tsv");
        let reading = |cause| Error::io(&path, "read", cause);
        let bytes = std::fs::metadata(&path).map_err(reading)?.len();
        if bytes > MAX_CAPTIONS_BYTES {
            return Err(Error::invalid_input(format!("{bytes} bytes of captions are too many"))
                .in_source(path.display()));
        }
        let text = std::fs::read_to_string(&path).map_err(reading)?;
        let photos = parse(&text).map_err(|error| error.in_source(path.display()))?;
        Ok(Collection { folder: folder.to_owned(), photos })
    }

    /// Whether a folder looks like a collection.
    pub fn is_at(folder: &Path) -> bool {
        folder.join("captions.tsv").is_file()
    }

    /// All photos, in the order of the file.
    pub fn photos(&self) -> &[Photo] {
        &self.photos
    }

    pub fn has_split(&self, split: &str) -> bool {
        self.photos.iter().any(|photo| photo.split == split)
    }

    /// The photos of a split, as the file has it; of `dev` in a collection without one, the frames that
    /// are [held out](Collection::held_out) of `train`.
    ///
    /// # Errors
    /// `NotFound`, with the names of the splits that there are.
    pub fn of_split(&self, split: &str) -> Result<Vec<&Photo>> {
        let held_out = if split == "dev" { self.held_out() } else { BTreeSet::new() };
        let is_in = |photo: &&Photo| {
            let is_held_out = photo.split == "train" && held_out.contains(video(photo));
            photo.split == split || is_held_out
        };
        let photos: Vec<&Photo> = self.photos.iter().filter(is_in).collect();
        if photos.is_empty() {
            let splits: BTreeSet<&str> =
                self.photos.iter().map(|photo| photo.split.as_str()).collect();
            return Err(Error::not_found(format!(
                "{} has no photo of the split {split:?}; its splits are {}",
                self.folder.display(),
                splits.into_iter().collect::<Vec<_>>().join(", ")
            )));
        }
        Ok(photos)
    }

    /// Where there is no split `dev`: the videos of `train` that are [held out](held_out).
    pub fn held_out(&self) -> BTreeSet<&str> {
        if self.has_split("dev") {
            return BTreeSet::new();
        }
        held_out(self.photos.iter().filter(|photo| photo.split == "train").map(video))
    }

    /// Where a photo's file is.
    pub fn path(&self, photo: &Photo) -> PathBuf {
        self.image_path(&photo.image)
    }

    /// Where an image's file is.
    pub fn image_path(&self, image: &str) -> PathBuf {
        self.folder.join("images").join(image)
    }
}

/// Of some videos, those that settings are chosen by, and that no network is trained on: at most 60,
/// and at most a quarter of them, those whose names have the least BLAKE3.
pub fn held_out<'a>(videos: impl IntoIterator<Item = &'a str>) -> BTreeSet<&'a str> {
    let videos: BTreeSet<&str> = videos.into_iter().collect();
    let mut videos: Vec<&str> = videos.into_iter().collect();
    videos.sort_by_key(|video| *blake3::hash(video.as_bytes()).as_bytes());
    videos.truncate(HELD_OUT.min(videos.len() / HELD_OUT_OF));
    videos.into_iter().collect()
}

/// The video of a frame; a photo is its own.
pub fn video(photo: &Photo) -> &str {
    photo.video.as_deref().unwrap_or(&photo.image)
}

fn parse(text: &str) -> Result<Vec<Photo>> {
    let wrong =
        |line: usize, what: String| Error::invalid_input(format!("line {}: {what}", line + 1));
    let mut lines = text.lines().enumerate();
    let header: Vec<&str> = lines.next().map_or(Vec::new(), |(_, line)| line.split('\t').collect());
    let column = |names: &[&str]| {
        header
            .iter()
            .position(|column| names.contains(column))
            .ok_or_else(|| wrong(0, format!("the header names no column {}", names.join(" or "))))
    };
    let (image, split, caption) =
        (column(&["image"])?, column(&["split", "subset"])?, column(&["caption"])?);
    let video = header.iter().position(|column| *column == "video_id");
    let mut photos: Vec<Photo> = Vec::new();
    let mut known: HashMap<String, usize> = HashMap::new();
    for (number, line) in lines {
        let fields: Vec<&str> = line.split('\t').collect();
        if fields.len() != header.len() {
            return Err(wrong(
                number,
                format!("{} fields, where the header has {}", fields.len(), header.len()),
            ));
        }
        let (image, split, caption) = (fields[image], fields[split], fields[caption]);
        let is_below =
            Path::new(image).components().all(|part| matches!(part, Component::Normal(_)));
        if image.is_empty() || !is_below {
            return Err(wrong(number, format!("{image:?} is no path below the images' folder")));
        }
        let photo = *known.entry(image.to_owned()).or_insert(photos.len());
        if photo == photos.len() {
            let (image, split) = (image.to_owned(), split.to_owned());
            let video = video.map(|video| fields[video].to_owned());
            photos.push(Photo { image, split, video, captions: Vec::new() });
        } else if photos[photo].split != split {
            return Err(wrong(number, format!("{image} is in two splits")));
        }
        photos[photo].captions.push(caption.trim().to_owned());
    }
    Ok(photos)
}

/// Decodes photos in `hosts` decoder hosts side by side, squashed to the encoder's input, and encodes
/// them in batches. `each` gets every photo's place in `paths` and what became of it, in no fixed
/// order.
///
/// # Errors
/// Where a host cannot be started, the encoder fails, or `each` gives an error. A photo that cannot
/// be decoded is told to `each`.
pub fn encode(
    encoder: &mut Encoder,
    paths: &[PathBuf],
    view: View,
    hosts: usize,
    each: &mut dyn FnMut(usize, Result<FrameFeatures>) -> Result<()>,
) -> Result<()> {
    let px = encoder.input_px();
    let rendition = view.rendition(px);
    let stop = Arc::new(AtomicBool::new(false));
    let next = AtomicUsize::new(0);
    let hosts: Vec<Host> = (0..hosts.max(1))
        .map(|_| Host::start_until(&Limits::default(), Arc::clone(&stop)))
        .collect::<Result<_>>()?;
    let (decoded_in, decoded) = crossbeam_channel::bounded(DECODED_AHEAD);
    std::thread::scope(|scope| {
        for mut host in hosts {
            let (decoded_in, next) = (decoded_in.clone(), &next);
            scope.spawn(move || {
                loop {
                    let photo = next.fetch_add(1, Ordering::Relaxed);
                    let Some(path) = paths.get(photo) else { break };
                    let pixels = still(&mut host, path, rendition);
                    let pixels = pixels.map(|rgb| view.of(&rgb, px));
                    // The other end is gone after an error: there is nobody to decode for.
                    if decoded_in.send((photo, pixels)).is_err() {
                        break;
                    }
                }
            });
        }
        drop(decoded_in);
        let encoded = encode_decoded(encoder, &decoded, each);
        if encoded.is_err() {
            stop.store(true, Ordering::Relaxed);
        }
        // Wakes threads that wait to send.
        drop(decoded);
        encoded
    })
}

fn encode_decoded(
    encoder: &mut Encoder,
    decoded: &crossbeam_channel::Receiver<(usize, Result<Vec<u8>>)>,
    each: &mut dyn FnMut(usize, Result<FrameFeatures>) -> Result<()>,
) -> Result<()> {
    loop {
        let batch: Vec<_> = decoded.iter().take(BATCH).collect();
        if batch.is_empty() {
            return Ok(());
        }
        let mut photos = Vec::new();
        let mut inputs = Vec::new();
        for (photo, pixels) in batch {
            match pixels {
                Ok(pixels) => {
                    photos.push(photo);
                    // A network that sees several frames gets the photo for each of them.
                    inputs.push(pixels.repeat(encoder.frames()));
                }
                Err(error) => each(photo, Err(error))?,
            }
        }
        let inputs: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).collect();
        for (photo, encoded) in photos.into_iter().zip(encoder.encode(&inputs)?) {
            each(photo, encoded)?;
        }
    }
}

/// The first picture of a file, decoded in `host`: packed RGB in the rendition.
pub fn still(host: &mut Host, path: &Path, rendition: Rendition) -> Result<Arc<[u8]>> {
    picture_at(host, path, Timestamp::ZERO, rendition)
}

/// The picture at, or soon after, this time of a film: packed RGB in the rendition.
pub fn picture_at(
    host: &mut Host,
    path: &Path,
    at: Timestamp,
    rendition: Rendition,
) -> Result<Arc<[u8]>> {
    let input = Input::open(&Location::File(path.to_owned()))?;
    let targets = Targets::every(Micros(1_000_000), Micros(at.0)).part(0, Some(1));
    let request = PictureRequest { track: None, rendition, targets, threads: 1 };
    let mut pixels = None;
    // To the end: a stream that is dropped before costs a new host.
    for event in host.picture(&input, &request)? {
        if let PictureEvent::Frame(frame) = event? {
            pixels.get_or_insert(frame.rgb);
        }
    }
    pixels.ok_or_else(|| Error::corrupt("it holds no picture").in_source(input.name()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn captions_are_gathered_by_photo_and_quotes_are_text() {
        let text = "image\tsubset\tx\tcaption\na.jpg\ttrain\t1\tA \"dog\" .\nb/c.jpg\tval\t2\tcat\n\
                    a.jpg\ttrain\t3\ttwo \n";
        let photos = parse(text).unwrap();
        assert_eq!(photos.len(), 2);
        assert_eq!(photos[0].captions, ["A \"dog\" .", "two"]);
        assert_eq!((photos[1].image.as_str(), photos[1].split.as_str()), ("b/c.jpg", "val"));
    }

    #[test]
    fn a_wrong_file_is_refused_with_its_line() {
        let wrong = |text: &str| parse(text).unwrap_err().to_string();
        assert!(wrong("").contains("line 1: the header names no column image"));
        assert!(wrong("image\tsplit\n").contains("no column caption"));
        let header = "image\tsplit\tcaption\n";
        assert!(wrong(&format!("{header}a\tb\n")).contains("line 2: 2 fields"));
        assert!(wrong(&format!("{header}../a\tb\tc\n")).contains("line 2: \"../a\" is no path"));
        assert!(wrong(&format!("{header}/a\tb\tc\n")).contains("is no path below"));
        assert!(
            wrong(&format!("{header}a\tb\tc\na\tz\td\n")).contains("line 3: a is in two splits")
        );
    }

    #[test]
    fn a_view_is_what_it_says() {
        // A photo of 16 by 8 places, each with its place as red and green.
        let px = (14, 7);
        let rgb = |width: u8, height: u8| -> Vec<u8> {
            (0..height).flat_map(|y| (0..width).flat_map(move |x| [x, y, 0])).collect()
        };
        assert_eq!(View::WHOLE.of(&rgb(14, 7), px), rgb(14, 7));
        for view in View::ALL {
            let Rendition { width_px, height_px, .. } = view.rendition(px);
            let seen = view.of(&rgb(width_px as u8, height_px as u8), px);
            assert_eq!(seen.len(), 14 * 7 * 3);
            let (right, bottom) = view.corner.unwrap_or_default();
            let (first, last) = if view.mirrored { (13, 0) } else { (0, 13) };
            let place = |x: u8, y: u8| [x + 2 * u8::from(right), y + u8::from(bottom), 0];
            assert_eq!(seen[..3], place(first, 0));
            assert_eq!(seen[seen.len() - 3..], place(last, 6));
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "(image\tsplit\tcaption\n)?[a\t\n./é]{0,60}") {
            let _ = parse(&text);
        }
    }
}
