//! Measures, on request: `CINELEX_SPEED=film.mp4 cargo test --release --test it speed -- --ignored --nocapture`.

use std::path::Path;
use std::time::Instant;

use cinelex::source::{Fit, PictureRequest, Rendition};

use crate::decoding::{every, host, open, picture, request};

/// Processor time of a process so far, in seconds.
fn processor_secs(id: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap();
    // The second field is a name in parentheses; the 14th and 15th are in hundredths of a second.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

#[test]
#[ignore = "measures; needs CINELEX_SPEED"]
fn decoding_speed() {
    let Some(film) = std::env::var_os("CINELEX_SPEED") else { return };
    let (mut host, input) = (host(), open(Path::new(&film)));
    let rendition = Rendition { width_px: 224, height_px: 224, fit: Fit::Squash };
    for millis in [750, 50] {
        let request = PictureRequest { rendition, ..request(every(millis)) };
        let before = processor_secs(host.process_id().unwrap());
        let began = Instant::now();
        let picture = picture(&mut host, &input, &request).unwrap();
        println!(
            "every {millis} ms: {:.2} s, {:.2} s of processor in the host, {} frames, {:?}",
            began.elapsed().as_secs_f64(),
            processor_secs(host.process_id().unwrap()) - before,
            picture.frames.len(),
            picture.summary
        );
    }
}
