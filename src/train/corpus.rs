//! What is trained on: photos with captions, and captions alone.

use std::path::Path;

use crate::error::{Error, Result};
use crate::text::{WordPieces, caption_words};

/// Larger than any file of captions by hand.
const MAX_TEXT_BYTES: u64 = 1 << 30;

/// Captions without pictures, those of one picture together.
///
/// # Errors
/// `InvalidInput` with the line, where the file is not tab-separated with a header that names a column
/// `caption`; `NotFound`.
pub fn read_texts(path: &Path) -> Result<Vec<Vec<String>>> {
    let reading = |cause| Error::io(path, "read", cause);
    let bytes = std::fs::metadata(path).map_err(reading)?.len();
    if bytes > MAX_TEXT_BYTES {
        return Err(Error::invalid_input(format!(
            "{bytes} bytes are too many for a file of captions"
        ))
        .in_source(path.display()));
    }
    let bytes = std::fs::read(path).map_err(reading)?;
    let text = String::from_utf8(bytes).map_err(|cause| {
        Error::invalid_input("the file is not UTF-8").in_source(path.display()).caused_by(cause)
    })?;
    texts(&text).map_err(|error| error.in_source(path.display()))
}

fn texts(text: &str) -> Result<Vec<Vec<String>>> {
    let mut lines = text.lines().enumerate();
    let wrong = |line: usize, why: &str| Error::invalid_input(format!("line {}: {why}", line + 1));
    let header: Vec<&str> = lines.next().map_or(Vec::new(), |(_, line)| line.split('\t').collect());
    let caption = header
        .iter()
        .position(|column| *column == "caption")
        .ok_or_else(|| wrong(0, "the header names no column caption"))?;
    let mut groups: Vec<Vec<String>> = Vec::new();
    let mut last = None;
    for (number, line) in lines {
        let fields: Vec<&str> = line.split('\t').collect();
        if fields.len() != header.len() {
            let counts = format!("{} fields, where the header has {}", fields.len(), header.len());
            return Err(wrong(number, &counts));
        }
        // Lines that begin alike are about one picture; captions alone are each about their own.
        let picture = (caption != 0).then_some(fields[0]);
        match groups.last_mut().filter(|_| picture.is_some() && picture == last) {
            Some(group) => group.push(fields[caption].to_owned()),
            None => groups.push(vec![fields[caption].to_owned()]),
        }
        last = picture;
    }
    Ok(groups)
}

/// What was left out, and why, to be told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Skipped {
    /// Photos that could not be decoded.
    pub photos: usize,
    /// Photos and groups without a single usable caption.
    pub without_captions: usize,
    /// Captions without words.
    pub captions: usize,
    /// Sources of libraries in which nothing is said that can be learnt…
    pub sources: usize,
    /// … and those that a library before has, too.
    pub copies: usize,
    /// Segments in a language that the sentence encoder does not read…
    pub foreign: usize,
    /// … and those with words and without a picture.
    pub unseen: usize,
    /// Clips whose features are lost.
    pub clips: usize,
}

/// Captions that have words.
pub(super) fn usable<'a>(captions: &'a [String], skipped: &mut Skipped) -> Vec<&'a str> {
    let usable: Vec<&str> = captions
        .iter()
        .map(String::as_str)
        .filter(|caption| !caption_words(caption).is_empty())
        .collect();
    skipped.captions += captions.len() - usable.len();
    skipped.without_captions += usize::from(usable.is_empty());
    usable
}

/// Word pieces of captions that have words.
pub(super) fn encoded(
    pieces: &WordPieces,
    captions: &[&str],
    most: usize,
) -> Result<Vec<Vec<u32>>> {
    captions.iter().map(|caption| pieces.encode(caption, most)).collect()
}

/// Batches of examples, without end: each epoch has every example once, in another order. Examples of
/// like length are together, so that little is padded.
#[derive(Debug)]
pub(super) struct Order {
    seed: [u8; 32],
    lengths: Vec<usize>,
    size: usize,
    epoch: Option<(u64, Vec<Vec<usize>>)>,
}

/// Batches whose examples are sorted among each other.
const POOL: usize = 16;

impl Order {
    pub(super) fn new(seed: [u8; 32], lengths: Vec<usize>, size: usize) -> Self {
        Order { seed, size: size.min(lengths.len()).max(1), lengths, epoch: None }
    }

    /// The `number`th batch: the same whatever was asked for before.
    pub(super) fn batch(&mut self, number: u64) -> &[usize] {
        // What does not fill a batch waits for another epoch, which leaves out others.
        let batches = (self.lengths.len() / self.size).max(1) as u64;
        let (epoch, within) = (number / batches, number % batches);
        if self.epoch.as_ref().is_none_or(|(known, _)| *known != epoch) {
            self.epoch = Some((epoch, self.shuffled(epoch)));
        }
        match &self.epoch {
            Some((_, batches)) => &batches[within as usize],
            None => &[],
        }
    }

    fn shuffled(&self, epoch: u64) -> Vec<Vec<usize>> {
        use rand::seq::SliceRandom;
        let mut random = super::random(&self.seed, "order", epoch);
        let mut order: Vec<usize> = (0..self.lengths.len()).collect();
        order.shuffle(&mut random);
        for pool in order.chunks_mut(self.size * POOL) {
            pool.sort_by_key(|example| self.lengths[*example]);
        }
        let mut batches: Vec<Vec<usize>> =
            order.chunks_exact(self.size).map(<[usize]>::to_vec).collect();
        batches.shuffle(&mut random);
        batches
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn captions_of_one_picture_are_together() {
        let found = texts("id\tcap\tcaption\na\t0\tone\na\t1\ttwo\nb\t0\tthree\n").unwrap();
        assert_eq!(found, [vec!["one", "two"], vec!["three"]]);
        assert_eq!(texts("caption\none\none\n").unwrap().len(), 2);
        let wrong = |text: &str| texts(text).unwrap_err().to_string();
        assert!(wrong("a\tb\n").contains("line 1: the header names no column caption"));
        assert!(wrong("a\tcaption\nx\n").contains("line 2: 1 fields, where the header has 2"));
    }

    #[test]
    fn captions_without_words_are_counted() {
        let captions = [" . ", "a dog", ""].map(str::to_owned);
        let mut skipped = Skipped::default();
        assert_eq!(usable(&captions, &mut skipped), ["a dog"]);
        assert!(usable(&captions[..1], &mut skipped).is_empty());
        assert_eq!((skipped.captions, skipped.without_captions), (3, 1));
    }

    proptest! {
        #[test]
        fn an_epoch_has_each_example_once(
            lengths in prop::collection::vec(1usize..30, 1..80), size in 1usize..9,
        ) {
            let mut order = Order::new([7; 32], lengths.clone(), size);
            let size = size.min(lengths.len());
            let batches = lengths.len() / size;
            let mut seen = Vec::new();
            for number in 0..batches as u64 {
                seen.extend_from_slice(order.batch(number));
            }
            seen.sort_unstable();
            seen.dedup();
            prop_assert_eq!(seen.len(), batches * size);
            // The order does not depend on where one begins.
            let later = order.batch(batches as u64 + 1).to_vec();
            let mut fresh = Order::new([7; 32], lengths, size);
            prop_assert_eq!(fresh.batch(batches as u64 + 1), &later);
        }
    }
}
