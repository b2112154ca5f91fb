//! The page that shows an evaluation of captions: figures, coverage, and samples with their pictures, in
//! one HTML file that needs no other.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::agreement::Agreement;
use super::captions::{Covered, Described, Report};
use super::films::Moment;
use super::photos::{Collection, picture_at, still};
use crate::error::{Error, Result};
use crate::library::SegmentRow;
use crate::source::{Fit, Host, Limits, Rendition};

/// Samples of each kind: the best, the worst, and some from the surest to the least sure.
const SAMPLES: usize = 12;
/// Of the pictures in the page.
const WIDTH_PX: u32 = 160;
const HEIGHT_PX: u32 = 120;

const STYLE: &str = "body{font:15px/1.4 sans-serif;max-width:900px;margin:2em auto;padding:0 1em}\
    table{border-collapse:collapse}td,th{padding:.2em .8em;text-align:right}\
    td:first-child,th:first-child{text-align:left}tr+tr{border-top:1px solid #ccc}\
    svg{width:100%;max-width:560px}path{fill:none;stroke:#06c;stroke-width:2}text{font-size:11px}\
    figure{display:flex;gap:1em;margin:1em 0}figure div{flex:none}img{width:160px;display:block}\
    figcaption b{font-size:17px}ul{margin:.3em 0;padding-left:1.2em;color:#555}";

/// Writes the page of a report on the photos of `collection`, with segments of films.
///
/// # Errors
/// Where the file cannot be written, or no decoder host can be started. A photo that cannot be decoded
/// is left out of the page.
pub fn write(
    path: &Path,
    report: &Report,
    collection: &Collection,
    films: &[Moment],
) -> Result<()> {
    let mut host = Host::start(&Limits::default())?;
    let mut picture = |of: Shown<'_>| -> Option<String> {
        let fit = Fit::Pad;
        let rendition = Rendition { width_px: WIDTH_PX, height_px: HEIGHT_PX, fit };
        let pixels = match of {
            Shown::Image(image) => still(&mut host, &collection.image_path(image), rendition),
            Shown::Moment(moment) => picture_at(&mut host, &moment.file, moment.at, rendition),
        };
        Some(STANDARD.encode(bitmap(&pixels.ok()?)))
    };
    let page = page(report, films, &mut picture);
    std::fs::write(path, page).map_err(|cause| Error::io(path, "write", cause))
}

/// What a picture is of.
#[derive(Clone, Copy)]
enum Shown<'a> {
    Image(&'a str),
    Moment(&'a Moment),
}

/// As base64 of a BMP, where it can be decoded.
type Picture<'a> = &'a mut dyn FnMut(Shown<'_>) -> Option<String>;

/// As a BMP file, which every browser shows and which needs no compression: the rows from the last to the
/// first, blue before red.
fn bitmap(rgb: &[u8]) -> Vec<u8> {
    const HEAD: u32 = 14 + 40;
    let pixels = rgb.len() as u32;
    let mut bytes = Vec::with_capacity(HEAD as usize + rgb.len());
    bytes.extend(b"BM");
    for number in [HEAD + pixels, 0, HEAD, 40, WIDTH_PX, HEIGHT_PX] {
        bytes.extend(number.to_le_bytes());
    }
    // One plane of 24 bits.
    bytes.extend([1, 0, 24, 0]);
    for number in [0, pixels, 0, 0, 0, 0] {
        bytes.extend(u32::to_le_bytes(number));
    }
    // The width is a multiple of four: rows need no filling up.
    for row in rgb.chunks_exact(3 * WIDTH_PX as usize).rev() {
        bytes.extend(row.as_chunks().0.iter().flat_map(|[red, green, blue]| [*blue, *green, *red]));
    }
    bytes
}

fn page(report: &Report, films: &[Moment], picture: Picture<'_>) -> String {
    let what = if report.sequence { "videos" } else { "pictures" };
    let mut page = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Captions</title>\
         <style>{STYLE}</style>\n<h1>Captions of {} {what}, split {}</h1>\n",
        report.examples,
        escaped(&report.split)
    );
    figures(&mut page, report);
    curve(&mut page, &report.coverage);
    for (title, samples) in samples(&report.captions) {
        // Writing to a string does not fail, here and below.
        let _ = writeln!(page, "<h2>{title}</h2>");
        for described in samples {
            sample(&mut page, described, picture);
        }
    }
    if !films.is_empty() {
        page.push_str("<h2>Segments of films</h2>\n");
    }
    for moment in films {
        moment_of_film(&mut page, moment, picture);
    }
    page.push_str("</html>\n");
    page
}

fn figures(page: &mut String, report: &Report) {
    page.push_str("<table><tr><th></th><th>CIDEr</th><th>BLEU-4</th><th>ROUGE-L</th></tr>\n");
    let people = report.people.as_ref();
    for (name, found) in [
        ("Written here", Some(&report.found)),
        ("Likeliest of what was written", Some(&report.likeliest)),
        ("Consensus of the nearest training captions", report.baseline.as_ref()),
        ("Written here, against all but each picture's last caption", people.map(|of| &of.found)),
        ("That last caption, by a person, against the others", people.map(|of| &of.people)),
    ] {
        let Some(Agreement { bleu, rouge_l, cider }) = found else { continue };
        let [cider, bleu, rouge] = [cider, &bleu[3], rouge_l].map(|figure| 100.0 * figure);
        let _ = writeln!(
            page,
            "<tr><td>{name}</td><td>{cider:.1}</td><td>{bleu:.1}</td><td>{rouge:.1}</td></tr>"
        );
    }
    let _ = writeln!(page, "</table>\n<p>All times 100. {} left out.</p>", report.failed.len());
}

/// CIDEr over the share of pictures that get a caption, the surest first.
fn curve(page: &mut String, coverage: &[Covered]) {
    const WIDTH: f64 = 560.0;
    const HEIGHT: f64 = 220.0;
    const MARGIN: f64 = 30.0;
    let most = coverage.iter().map(|covered| covered.cider).fold(f64::MIN_POSITIVE, f64::max);
    let mut path = String::new();
    let mut marks = String::new();
    for (place, covered) in coverage.iter().enumerate() {
        let x = MARGIN + (WIDTH - 2.0 * MARGIN) * covered.share;
        let y = HEIGHT - MARGIN - (HEIGHT - 2.0 * MARGIN) * covered.cider / most;
        let letter = if place == 0 { 'M' } else { 'L' };
        let _ = write!(path, "{letter}{x:.1} {y:.1}");
        let _ = write!(
            marks,
            "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{:.0}</text>\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{:.0} %</text>",
            y - 8.0,
            100.0 * covered.cider,
            HEIGHT - 8.0,
            100.0 * covered.share
        );
    }
    let _ = writeln!(
        page,
        "<h2>CIDEr of the surest</h2>\n<p>If only so many pictures get a caption, those that the \
         network is surest of:</p>\n<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">\
         <title>CIDEr over coverage</title><path d=\"{path}\"/>{marks}</svg>"
    );
}

/// What is shown, under its title.
fn samples(captions: &[Described]) -> [(&'static str, Vec<&Described>); 3] {
    let mut by_score: Vec<usize> = (0..captions.len()).collect();
    by_score.sort_by(|a, b| captions[*b].cider.total_cmp(&captions[*a].cider));
    let best: Vec<usize> = by_score.iter().take(SAMPLES).copied().collect();
    let worst: Vec<usize> = by_score.iter().rev().take(SAMPLES).copied().collect();
    let shown: BTreeSet<usize> = best.iter().chain(&worst).copied().collect();
    let mut rest: Vec<usize> = (0..captions.len()).filter(|place| !shown.contains(place)).collect();
    rest.sort_by(|a, b| captions[*b].confidence.total_cmp(&captions[*a].confidence));
    let every = rest.len().div_ceil(SAMPLES).max(1);
    let between = rest.into_iter().step_by(every).collect();
    let of = |places: Vec<usize>| places.into_iter().map(|place| &captions[place]).collect();
    [
        ("Those that agree best with people's", of(best)),
        ("Those that agree least", of(worst)),
        ("Others, from the surest to the least sure", of(between)),
    ]
}

fn sample(page: &mut String, described: &Described, picture: Picture<'_>) {
    page.push_str("<figure><div>");
    for image in &described.images {
        put_picture(page, picture(Shown::Image(image)));
    }
    let _ = write!(
        page,
        "</div><figcaption><b>{}</b><br>confidence {:.2}, alignment {:.2}, CIDEr {:.0}, {}<ul>",
        escaped(&described.caption),
        described.confidence,
        described.alignment,
        100.0 * described.cider,
        escaped(&described.images.join(", "))
    );
    for reference in &described.references {
        let _ = write!(page, "<li>{}</li>", escaped(reference));
    }
    page.push_str("</ul></figcaption></figure>\n");
}

fn moment_of_film(page: &mut String, moment: &Moment, picture: Picture<'_>) {
    page.push_str("<figure><div>");
    put_picture(page, picture(Shown::Moment(moment)));
    let SegmentRow { span, text, caption, alignment, .. } = &moment.segment;
    let (caption, sure) = match caption {
        Some(caption) => (&caption.text[..], format!("confidence {:.2}", caption.confidence)),
        None => ("(no caption)", "not sure enough".to_owned()),
    };
    let aligned = alignment.map_or_else(String::new, |fits| format!(", alignment {fits:.2}"));
    let _ = writeln!(
        page,
        "</div><figcaption><b>{}</b><br>{sure}{aligned}, {}, {} to {}<ul><li>{}</li></ul>\
         </figcaption></figure>",
        escaped(caption),
        escaped(&moment.film),
        span.start,
        span.end,
        if text.is_empty() { "(nobody speaks)".to_owned() } else { escaped(text) }
    );
}

fn put_picture(page: &mut String, bitmap: Option<String>) {
    match bitmap {
        Some(bitmap) => {
            let _ = write!(page, "<img alt=\"\" src=\"data:image/bmp;base64,{bitmap}\">");
        }
        None => page.push_str("<p>(cannot be decoded)</p>"),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::{Span, Timestamp};

    fn described(number: usize) -> Described {
        Described {
            images: vec![format!("{number}.png")],
            caption: "a <dog> & a \"cat\"".to_owned(),
            confidence: number as f32 / 100.0,
            alignment: 0.5,
            cider: number as f64,
            references: vec!["a dog".to_owned()],
            others: Vec::new(),
        }
    }

    #[test]
    fn nothing_is_shown_twice_and_what_people_wrote_is_text() {
        let captions: Vec<Described> = (0..50).map(described).collect();
        let [best, worst, between] = samples(&captions).map(|(_, samples)| samples);
        assert_eq!((best[0].cider, worst[0].cider), (49.0, 0.0));
        assert_eq!((best.len(), worst.len()), (12, 12));
        assert!(between.iter().all(|one| (12.0..38.0).contains(&one.cider)));
        let figures = Agreement { bleu: [0.5; 4], rouge_l: 0.4, cider: 0.3 };
        let report = Report {
            split: "dev".to_owned(),
            sequence: false,
            examples: 50,
            found: figures,
            baseline: None,
            likeliest: figures,
            people: None,
            coverage: vec![Covered { share: 1.0, confidence: 0.0, cider: 0.3, bleu_4: 0.5 }],
            failed: Vec::new(),
            captions: captions.clone(),
        };
        let segment = SegmentRow {
            span: Span { start: Timestamp(0), end: Timestamp(2_000_000) },
            text: "a <b>word</b>".to_owned(),
            language: None,
            caption: None,
            alignment: Some(0.25),
        };
        let (film, file, at) = ("f.mp4".to_owned(), "f.mp4".into(), Timestamp(1_000_000));
        let films = [Moment { film, file, at, segment }];
        let page = page(&report, &films, &mut |of| match of {
            Shown::Image("49.png") => None,
            _ => Some("Qk0=".to_owned()),
        });
        assert!(page.contains("(no caption)") && page.contains("alignment 0.25, f.mp4"));
        assert!(page.contains("a &lt;b&gt;word"));
        assert!(page.contains("a &lt;dog&gt; &amp; a &quot;cat&quot;"), "{page}");
        assert!(page.contains("<td>Written here</td><td>30.0</td><td>50.0</td><td>40.0</td>"));
        assert_eq!(page.matches("(cannot be decoded)").count(), 1);
        assert_eq!(page.matches("<figure>").count(), 24 + between.len() + 1);
    }

    #[test]
    fn pictures_are_bitmaps_upside_down() {
        let mut rgb = vec![7; (3 * WIDTH_PX * HEIGHT_PX) as usize];
        rgb[..3].copy_from_slice(&[1, 2, 3]);
        let bytes = bitmap(&rgb);
        assert_eq!((&bytes[..2], bytes.len()), (&b"BM"[..], 54 + rgb.len()));
        let last_row = bytes.len() - 3 * WIDTH_PX as usize;
        assert_eq!(bytes[last_row..last_row + 4], [3, 2, 1, 7]);
    }
}
