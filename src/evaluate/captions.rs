//! Writing captions of pictures, and how well they agree with people's.

use serde::Serialize;

use super::agreement::{Agreement, Judged, Scored, score};
use super::pictures::{Pictures, Visuals};
use super::reading;
use super::setup::{Examinee, Example, Material, Progress, Setup};
use crate::error::{Error, Result};
use crate::text::caption_words;
use crate::transformer::{Captioner, Writing, Written};

/// Captions of some examples, the best of each first.
///
/// # Errors
/// Where the network does not fit the pictures; that of `progress`, which ends the writing.
pub fn describe(
    captioner: &mut Captioner,
    visuals: &Visuals<'_>,
    examples: &[Example],
    how: Writing,
    progress: &mut dyn FnMut(Progress) -> Result<()>,
) -> Result<Vec<Vec<Written>>> {
    let mut captions = Vec::with_capacity(examples.len());
    for batch in examples.chunks(reading::AT_A_TIME) {
        let read = reading::read(captioner, visuals, batch)?;
        captions.extend(captioner.write(&read, how)?);
        progress(Progress { what: "captions", done: captions.len(), of: examples.len() })?;
    }
    Ok(captions)
}

/// How captions agree with those that people wrote of the same examples.
///
/// # Errors
/// `InvalidInput` where there is nothing to score.
pub fn judge<'a>(
    captions: impl IntoIterator<Item = &'a str>,
    pictures: &Pictures,
    examples: &[Example],
) -> Result<Scored> {
    let of = |example: &Example| -> Vec<Vec<String>> {
        let captions = example.iter().flat_map(|photo| &pictures.photos[*photo].captions);
        captions.map(|caption| caption_words(caption)).collect()
    };
    let judged = captions.into_iter().zip(examples).map(|(caption, example)| Judged {
        caption: caption_words(caption),
        references: of(example),
    });
    scored(&judged.collect::<Vec<_>>())
}

fn scored(judged: &[Judged]) -> Result<Scored> {
    score(judged).ok_or_else(|| {
        Error::invalid_input("there are no captions by people to hold these against")
    })
}

/// The result of an evaluation of captions.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub split: String,
    /// Whether the frames of a video were seen together.
    pub sequence: bool,
    /// Photos, or videos.
    pub examples: usize,
    pub found: Agreement,
    /// That of the nearest training captions which agrees best with the others, where the network has them
    /// beside it: without any writing.
    pub baseline: Option<Agreement>,
    /// Of what was written, each example's likeliest caption, whatever agrees with people's.
    pub likeliest: Agreement,
    /// Where each photo has several captions.
    pub people: Option<People>,
    /// From the surest captions to all.
    pub coverage: Vec<Covered>,
    /// Photos that could not be decoded, with the reason; they take no part.
    pub failed: Vec<(String, String)>,
    /// Each example's caption.
    pub captions: Vec<Described>,
}

/// How people agree with each other: the last caption of each photo against the others.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct People {
    pub people: Agreement,
    /// What the network wrote against the same others.
    pub found: Agreement,
}

/// What comes of giving captions to the surest only.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Covered {
    /// Of the examples that get a caption, 0 to 1.
    pub share: f64,
    /// The least confidence among them.
    pub confidence: f32,
    /// The mean of their captions' CIDEr, n-grams weighing as among all.
    pub cider: f64,
    pub bleu_4: f64,
}

/// An example's caption.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Described {
    /// Its images, as the file of captions has them.
    pub images: Vec<String>,
    pub caption: String,
    /// 0 to 1.
    pub confidence: f32,
    /// How well the caption fits the picture by the network's judgement, 0 to 1.
    pub alignment: f32,
    pub cider: f64,
    /// What people wrote.
    pub references: Vec<String>,
    /// What else was found, better ones first.
    pub others: Vec<String>,
}

/// Writes a caption of each example and holds it against those that people wrote.
///
/// # Errors
/// `InvalidInput` where the network was trained with another encoder or codebook; `NotFound` where
/// the split has no photos or a model is not set up; that of `progress`, which ends it.
pub fn captions(
    setup: &Setup<'_>,
    examinee: &Examinee<'_>,
    how: Writing,
    progress: &mut dyn FnMut(Progress) -> Result<()>,
) -> Result<Report> {
    let material = setup.judged(progress)?;
    let visuals = examinee.visuals(&material.pictures)?;
    let mut captioner = setup.captioner(examinee, &material)?;
    let Material { pictures, examples } = &material;
    let written = describe(&mut captioner, &visuals, examples, how, progress)?;
    let best: Vec<&str> =
        written.iter().map(|found| found.first().map_or("", |best| &best.caption.text)).collect();
    let scored = judge(best.iter().copied(), pictures, examples)?;
    let likeliest = written.iter().map(|found| {
        let likeliest = found.iter().max_by(|a, b| a.score.total_cmp(&b.score));
        likeliest.map_or("", |written| &written.caption.text)
    });
    let likeliest = judge(likeliest, pictures, examples)?.all;
    let seen = reading::embeddings(&mut captioner, &visuals, examples, progress)?;
    let baseline = match captioner.agreed(seen.view()) {
        Some(texts) => Some(judge(texts.iter().map(String::as_str), pictures, examples)?.all),
        None => None,
    };
    let said = reading::sentences(&mut setup.tower()?, &best, progress)?;
    let pairs = seen.rows().into_iter().zip(said.rows());
    let alignments = pairs.map(|(seen, said)| captioner.alignment(seen, said));
    let described: Vec<Described> = written
        .iter()
        .zip(examples)
        .zip(alignments.zip(&scored.each))
        .map(|((found, example), (alignment, agreement))| Described {
            images: material.images(example).map(str::to_owned).collect(),
            caption: found.first().map_or_else(String::new, |best| best.caption.text.clone()),
            confidence: found.first().map_or(0.0, |best| best.caption.confidence),
            alignment,
            cider: agreement.cider,
            references: material.captions(example).cloned().collect(),
            others: found.iter().skip(1).map(|other| other.caption.text.clone()).collect(),
        })
        .collect();
    Ok(Report {
        split: setup.split.to_owned(),
        sequence: setup.sequence,
        examples: examples.len(),
        found: scored.all,
        baseline,
        likeliest,
        people: if setup.sequence { None } else { people(&described) },
        coverage: coverage(&described)?,
        failed: pictures.failed.clone(),
        captions: described,
    })
}

/// The last of the captions that people wrote, and what was written, each against the others of
/// theirs; `None` where some photo has only one.
fn people(described: &[Described]) -> Option<People> {
    let against = |of: fn(&Described) -> &str| {
        let judged = described.iter().map(|described| {
            let (_, others) = described.references.split_last()?;
            let references = others.iter().map(|caption| caption_words(caption)).collect();
            Some(Judged { caption: caption_words(of(described)), references })
        });
        Some(score(&judged.collect::<Option<Vec<_>>>()?)?.all)
    };
    Some(People {
        people: against(|described| described.references.last().map_or("", String::as_str))?,
        found: against(|described| &described.caption)?,
    })
}

/// Figures of the surest tenth, two tenths and so on.
fn coverage(described: &[Described]) -> Result<Vec<Covered>> {
    const PARTS: usize = 10;
    let mut order: Vec<&Described> = described.iter().collect();
    order.sort_by(|a, b| b.confidence.total_cmp(&a.confidence));
    let judged: Vec<Judged> = order
        .iter()
        .map(|described| Judged {
            caption: caption_words(&described.caption),
            references: described.references.iter().map(|text| caption_words(text)).collect(),
        })
        .collect();
    let covered = |part: usize| {
        let count = (described.len() * part).div_ceil(PARTS);
        let sure = &order[..count];
        Ok(Covered {
            share: count as f64 / described.len() as f64,
            confidence: sure.last().map_or(0.0, |last| last.confidence),
            cider: sure.iter().map(|described| described.cider).sum::<f64>() / count.max(1) as f64,
            bleu_4: scored(&judged[..count])?.all.bleu[3],
        })
    };
    (1..=PARTS).map(covered).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(caption: &str, confidence: f32, references: &[&str]) -> Described {
        Described {
            images: Vec::new(),
            caption: caption.to_owned(),
            confidence,
            alignment: 0.5,
            cider: f64::from(confidence),
            references: references.iter().map(|text| (*text).to_owned()).collect(),
            others: Vec::new(),
        }
    }

    #[test]
    fn coverage_takes_the_surest_first_and_ends_with_all() {
        let sure = described("a dog runs on the grass", 0.9, &["a dog runs on the grass"]);
        let unsure = described("a cat", 0.1, &["two men in a boat"]);
        let covered = coverage(&[unsure.clone(), sure.clone()]).unwrap();
        assert_eq!(covered.len(), 10);
        assert_eq!((covered[0].share, covered[0].confidence), (0.5, 0.9));
        assert!(covered[0].bleu_4 > 0.99 && covered[9].bleu_4 < covered[0].bleu_4);
        assert_eq!((covered[9].share, covered[9].confidence), (1.0, 0.1));
        assert!((covered[9].cider - 0.5).abs() < 1e-6);
    }

    #[test]
    fn people_are_held_against_each_other_where_there_are_several_captions() {
        let a = described("a dog", 0.5, &["a dog runs on the grass", "a dog runs on the grass"]);
        let b = described("x", 0.5, &["two men sit in a boat", "two men sit in a boat"]);
        let found = people(&[a.clone(), b]).unwrap();
        assert!(found.people.bleu[3] > 0.99 && found.found.cider < found.people.cider);
        assert!(people(&[a, described("x", 0.5, &["only one"])]).is_none());
    }
}
