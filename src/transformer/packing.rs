//! Segments as tokens: `[CLS] words [>] visual tokens`.

use crate::error::{Error, Result};
use crate::onnx::transformer::{Network, UNSEEN};
use crate::text::pieces::{CLS, PAD, THEN};

/// What is seen of a clip, or of one part of its picture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct VisualToken<'a> {
    /// The clip's place in its segment.
    pub clip: usize,
    /// 0 for the whole picture, else the part, from 1 on.
    pub cell: usize,
    /// Empty where the network sees none.
    pub features: &'a [f32],
    /// The visual word's centroid; empty where the network sees none.
    pub centroid: &'a [f32],
}

/// What is read together.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Segment<'a> {
    /// Word pieces; those beyond the network's places are cut off.
    pub words: &'a [u32],
    pub visual: Vec<VisualToken<'a>>,
}

/// Segments as a network's input: each row padded to the longest.
#[derive(Debug, Clone, PartialEq)]
pub struct Packed {
    /// How many segments.
    pub rows: usize,
    /// Tokens of a row that are words, `[CLS]` and `[>]` included.
    pub words: usize,
    /// Tokens of a row that are visual; 1 at least, so that no tensor is empty.
    pub visual: usize,
    /// `[rows, words]`.
    pub word_ids: Vec<i64>,
    /// `[rows, visual, features]`.
    pub features: Vec<f32>,
    /// `[rows, visual, centroids]`.
    pub centroids: Vec<f32>,
    /// `[rows, visual]`.
    pub clips: Vec<i64>,
    /// `[rows, visual]`.
    pub cells: Vec<i64>,
    /// `[rows, words + visual]`: whether it is a token, not padding.
    pub is_token: Vec<bool>,
}

impl Packed {
    /// Tokens of a row, padding included.
    pub fn tokens(&self) -> usize {
        self.words + self.visual
    }

    /// What is seen of one of [`Network::visual_inputs`]: `[rows, visual, length]`.
    pub fn values(&self, input: &str) -> &[f32] {
        if input == "features" { &self.features } else { &self.centroids }
    }

    /// `[rows, tokens]`: what is added to the attention that each token gets.
    pub fn bias(&self) -> Vec<f32> {
        self.is_token.iter().map(|is_token| if *is_token { 0.0 } else { UNSEEN }).collect()
    }
}

/// Which of so many clips of a segment are seen, where at most `most` are: spread evenly.
pub fn spread(clips: usize, most: usize) -> impl Iterator<Item = usize> {
    let seen = clips.min(most);
    (0..seen).map(move |at| (2 * at + 1) * clips / (2 * seen))
}

/// Packs segments for `network`.
///
/// # Errors
/// `InvalidInput` where a visual token does not fit the network.
pub fn pack(network: &Network, segments: &[Segment<'_>]) -> Result<Packed> {
    let kept = |segment: &Segment<'_>| segment.words.len().min(network.words - 2);
    let words = segments.iter().map(kept).max().unwrap_or(0) + 2;
    let visual = segments.iter().map(|segment| segment.visual.len()).max().unwrap_or(0).max(1);
    let rows = segments.len();
    let mut packed = Packed {
        rows,
        words,
        visual,
        word_ids: vec![i64::from(PAD); rows * words],
        features: vec![0.0; rows * visual * network.features],
        centroids: vec![0.0; rows * visual * network.centroids],
        clips: vec![0; rows * visual],
        cells: vec![0; rows * visual],
        is_token: vec![false; rows * (words + visual)],
    };
    for (row, segment) in segments.iter().enumerate() {
        let read = std::iter::once(&CLS)
            .chain(&segment.words[..kept(segment)])
            .chain(std::iter::once(&THEN));
        for (place, id) in read.enumerate() {
            packed.word_ids[row * words + place] = i64::from(*id);
            packed.is_token[row * (words + visual) + place] = true;
        }
        for (place, token) in segment.visual.iter().enumerate() {
            check(network, token)?;
            let at = row * visual + place;
            packed.clips[at] = token.clip as i64;
            packed.cells[at] = token.cell as i64;
            packed.is_token[row * (words + visual) + words + place] = true;
            let part = |length: usize| at * length..(at + 1) * length;
            packed.features[part(network.features)].copy_from_slice(token.features);
            packed.centroids[part(network.centroids)].copy_from_slice(token.centroid);
        }
    }
    Ok(packed)
}

fn check(network: &Network, token: &VisualToken<'_>) -> Result<()> {
    let sizes = [
        ("features", token.features.len(), network.features),
        ("centroid values", token.centroid.len(), network.centroids),
    ];
    for (what, found, wanted) in sizes {
        if found != wanted {
            return Err(Error::invalid_input(format!(
                "a visual token of {found} {what} does not fit a network for {wanted}"
            )));
        }
    }
    if token.clip >= network.clips || token.cell > network.cells {
        return Err(Error::invalid_input(format!(
            "clip {}, part {} does not fit a network of {} clips with {} parts",
            token.clip, token.cell, network.clips, network.cells
        )));
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn network() -> Network {
        Network {
            vocabulary: 20,
            dim: 8,
            layers: 2,
            heads: 2,
            inner: 16,
            words: 8,
            clips: 3,
            cells: 1,
            features: 3,
            centroids: 2,
            space: 4,
            embedder: 0,
            guessed: 0,
        }
    }

    #[test]
    fn clips_are_seen_from_all_of_a_segment() {
        assert_eq!(spread(3, 16).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(spread(12, 4).collect::<Vec<_>>(), [1, 4, 7, 10]);
        assert_eq!(spread(0, 4).count(), 0);
    }

    #[test]
    fn rows_are_padded_to_the_longest() {
        let token = VisualToken { clip: 2, cell: 1, features: &[1., 2., 3.], centroid: &[4., 5.] };
        let segments = [
            Segment { words: &[9, 8], visual: vec![token] },
            Segment { words: &[], visual: vec![token, token] },
        ];
        let packed = pack(&network(), &segments).unwrap();
        assert_eq!((packed.rows, packed.words, packed.visual), (2, 4, 2));
        let (cls, then, pad) = (i64::from(CLS), i64::from(THEN), i64::from(PAD));
        assert_eq!(packed.word_ids, [cls, 9, 8, then, cls, then, pad, pad]);
        let there = [true, true, true, true, true, false];
        let less = [true, true, false, false, true, true];
        assert_eq!(packed.is_token, [there, less].concat());
        assert_eq!(packed.bias()[5], UNSEEN);
        assert_eq!(packed.features[..6], [1., 2., 3., 0., 0., 0.]);
        assert_eq!((packed.clips[0], packed.clips[1], packed.cells[3]), (2, 0, 1));
    }

    #[test]
    fn long_texts_are_cut_and_what_does_not_fit_is_refused() {
        let words: Vec<u32> = (6..19).collect();
        let packed = pack(&network(), &[Segment { words: &words, visual: vec![] }]).unwrap();
        assert_eq!((packed.words, packed.visual), (8, 1));
        assert_eq!(packed.word_ids[7], i64::from(THEN));
        assert_eq!(pack(&network(), &[]).unwrap().rows, 0);

        let token = VisualToken { clip: 0, cell: 0, features: &[0.0; 3], centroid: &[0.0; 2] };
        let refused = |token| {
            let segment = Segment { words: &[], visual: vec![token] };
            pack(&network(), &[segment]).unwrap_err().to_string()
        };
        assert!(refused(VisualToken { clip: 3, ..token }).contains("clip 3"));
        assert!(refused(VisualToken { cell: 2, ..token }).contains("part 2"));
        assert!(refused(VisualToken { features: &[], ..token }).contains("0 features"));
    }
}
