//! The page that shows a training: curves of the losses and scores, as SVG in one HTML file.

use std::fmt::Write;
use std::path::Path;

use super::run::Line;
use crate::error::{Error, Result};

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 200.0;
/// Around a curve, for the numbers at its sides.
const MARGIN: f64 = 48.0;

/// A curve: minutes of processor time and values.
type Points = Vec<(f64, f64)>;

/// Writes the page for the lines of a log.
pub(super) fn write(path: &Path, lines: &[Line]) -> Result<()> {
    std::fs::write(path, page(lines)).map_err(|cause| Error::io(path, "write", cause))
}

fn page(lines: &[Line]) -> String {
    let steps = |value: fn(&Line) -> Option<f64>| -> Points {
        let minutes = |line: &Line| match line {
            Line::Steps { cpu_secs, .. } | Line::Score { cpu_secs, .. } => cpu_secs / 60.0,
        };
        lines.iter().filter_map(|line| Some((minutes(line), value(line)?))).collect()
    };
    let curves = [
        ("CIDEr × 100, dev", steps(|line| score(line).map(|(cider, _)| 100.0 * cider))),
        ("BLEU-4 × 100, dev", steps(|line| score(line).map(|(_, bleu)| 100.0 * bleu))),
        ("Words: nats a piece", steps(|line| losses(line)[0])),
        ("Contrast: nats a photo", steps(|line| losses(line)[1])),
        ("Visual words: nats a word", steps(|line| losses(line)[2])),
        ("Alignment: nats a pair", steps(|line| losses(line)[3])),
        (
            "Reward: CIDEr × 100 of what was written",
            steps(|line| losses(line)[5].map(|x| 100.0 * x)),
        ),
        ("Captions a second of processor time", steps(|line| losses(line)[4])),
    ];
    let mut page = String::from(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Training</title>\
         <style>body{font:14px sans-serif;max-width:760px;margin:2em auto}svg{width:100%}\
         path{fill:none;stroke:#06c;stroke-width:1.5}text{font-size:12px}</style>\
         <h1>Training</h1>\n",
    );
    for (name, points) in curves {
        curve(&mut page, name, &points);
    }
    page.push_str("</html>\n");
    page
}

fn score(line: &Line) -> Option<(f64, f64)> {
    match line {
        Line::Score { cider, bleu_4, .. } => Some((*cider, *bleu_4)),
        Line::Steps { .. } => None,
    }
}

/// Nats of words, contrast, visual words and alignment, captions a second, and the reward.
fn losses(line: &Line) -> [Option<f64>; 6] {
    match line {
        Line::Steps {
            words, contrast, visual_words, alignment, captions_per_sec, reward, ..
        } => [*words, *contrast, *visual_words, *alignment, Some(*captions_per_sec), *reward],
        Line::Score { .. } => [None; 6],
    }
}

fn curve(page: &mut String, name: &str, points: &Points) {
    let Some((last_minute, last)) = points.last() else { return };
    let least = points.iter().map(|(_, value)| *value).fold(f64::INFINITY, f64::min);
    let most = points.iter().map(|(_, value)| *value).fold(f64::NEG_INFINITY, f64::max);
    let x = |minute: f64| MARGIN + (WIDTH - 2.0 * MARGIN) * minute / last_minute.max(1e-9);
    let y = |value: f64| {
        HEIGHT - MARGIN / 2.0 - (HEIGHT - MARGIN) * (value - least) / (most - least).max(1e-9)
    };
    let mut path = String::new();
    for (place, (minute, value)) in points.iter().enumerate() {
        let letter = if place == 0 { 'M' } else { 'L' };
        // Writing to a string does not fail.
        let _ = write!(path, "{letter}{:.1} {:.1}", x(*minute), y(*value));
    }
    let _ = write!(
        page,
        "<h2>{name}: {last:.2}</h2>\n<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">\
         <title>{name}</title><text x=\"0\" y=\"{:.0}\">{most:.2}</text>\
         <text x=\"0\" y=\"{:.0}\">{least:.2}</text>\
         <text x=\"{:.0}\" y=\"{HEIGHT}\" text-anchor=\"end\">{last_minute:.1} min</text>\
         <path d=\"{path}\"/></svg>\n",
        MARGIN / 2.0,
        HEIGHT - MARGIN / 2.0,
        WIDTH - MARGIN,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_shows_what_there_is() {
        let score = |step, cider| Line::Score {
            step,
            cpu_secs: step as f64,
            bleu_4: 0.1,
            rouge_l: 0.2,
            cider,
        };
        let page = page(&[score(60, 0.1), score(120, 0.3)]);
        assert!(page.contains("CIDEr × 100, dev: 30.00") && page.contains("2.0 min"), "{page}");
        assert!(!page.contains("Alignment"));
        assert_eq!(page.matches("<svg").count(), 2);
    }
}
