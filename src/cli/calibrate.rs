//! `cinelex models calibrate`: activation ranges for the int8 variant of an encoder.

use std::ffi::OsString;

use super::{CommandResult, Failure, Outcome, print_json, print_line};
use crate::error::{Error, Result};
use crate::model::Models;
use crate::picture::Calibrator;
use crate::source::listing::expand;
use crate::source::{Fit, Host, Input, Limits, PictureEvent, PictureRequest, Rendition, Targets};
use crate::time::Micros;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Id or manifest of an encoder
    model: String,

    /// Photos to observe it on (about 128): files, folders, globs
    #[arg(required = true)]
    photos: Vec<OsString>,

    /// One JSON object: the file's text, how many photos, and the model
    #[arg(long)]
    json: bool,
}

#[derive(serde::Serialize)]
struct Calibrated<'a> {
    model: &'a str,
    photos: usize,
    /// The file that the manifest's `[conversion]` names under `ranges`.
    ranges: String,
}

pub fn run(args: Args) -> CommandResult {
    let models = Models::open().map_err(Failure::cannot_open)?;
    let manifest = models.manifest(&args.model).map_err(Failure::usage)?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut calibrator =
        Calibrator::load(&models, &manifest, threads).map_err(Failure::cannot_open)?;
    let mut host = Host::start(&Limits::default())?;
    let photos = expand(&args.photos, true);
    for photo in &photos {
        let location =
            photo.as_ref().map_err(|error| Error::new(error.kind(), error.to_string()))?;
        observe(&mut calibrator, &mut host, &Input::open(location)?)?;
    }
    if args.json {
        let ranges = calibrator.ranges().to_text();
        let calibrated = Calibrated { model: &args.model, photos: photos.len(), ranges };
        print_json("calibrated", &calibrated)?;
        return Ok(Outcome::Done);
    }
    print_line(&format!(
        "# Least and greatest values of the activations of {} {} over {} photos:\n\
         # cinelex models calibrate {} PHOTO…",
        manifest.id,
        manifest.version,
        photos.len(),
        args.model
    ))?;
    print_line(calibrator.ranges().to_text().trim_end())?;
    Ok(Outcome::Done)
}

fn observe(calibrator: &mut Calibrator, host: &mut Host, photo: &Input) -> Result<()> {
    let (width_px, height_px) = calibrator.input_px();
    let request = PictureRequest {
        track: None,
        rendition: Rendition { width_px, height_px, fit: Fit::Squash },
        targets: Targets::every(Micros(1_000_000), Micros::ZERO).part(0, Some(1)),
        threads: 1,
    };
    for event in host.picture(photo, &request)? {
        if let PictureEvent::Frame(frame) = event? {
            return calibrator.observe(&frame.rgb);
        }
    }
    Err(Error::corrupt("there is no picture in it").in_source(photo.name()))
}
