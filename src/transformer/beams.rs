//! Beam search: the likeliest caption among those that some beginnings lead to.

use std::cmp::Ordering;

use ndarray::{Array2, ArrayView1};

use crate::error::Result;
use crate::text::pieces::{CLS, MASK, PAD, SEP, THEN, UNKNOWN};

/// Never written: they are no words.
const NO_WORDS: [u32; 5] = [PAD, UNKNOWN, CLS, MASK, THEN];

/// How captions are written.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Search {
    /// Beginnings of each caption that are followed at a time.
    pub beams: usize,
    /// Pieces of a caption at most.
    pub most: usize,
    /// A caption's log-probability is divided by its length to this power: 0 prefers short ones, 1
    /// is the mean over its pieces.
    pub length_power: f32,
}

/// A caption that was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    pub pieces: Vec<u32>,
    /// The sum over its pieces and its end.
    pub log_probability: f32,
    /// That, divided by a power of the length: what captions are compared by.
    pub score: f32,
}

#[derive(Debug, Clone)]
struct Beam {
    /// Which caption it is the beginning of.
    of: usize,
    pieces: Vec<u32>,
    log_probability: f32,
}

/// A row of the network: it goes on with the caption `of` from `parent`, a row of the step before (of the
/// captions, in the first step), with the piece `last`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) of: usize,
    pub(super) parent: usize,
    pub(super) last: u32,
}

/// Writes `captions` captions, each the best of its beams first. `step` gets the rows, those of a caption together, and gives
/// `[rows, vocabulary]` log-probabilities of each row's next piece.
///
/// No three pieces occur twice in a row: a network that has learnt little would repeat itself.
pub(super) fn search(
    captions: usize,
    how: Search,
    mut step: impl FnMut(&[Row]) -> Result<Array2<f32>>,
) -> Result<Vec<Vec<Found>>> {
    let width = how.beams.max(1);
    let start = |of| Beam { of, pieces: Vec::new(), log_probability: 0.0 };
    let mut live: Vec<Beam> = (0..captions).map(start).collect();
    let mut rows: Vec<Row> = (0..captions).map(|of| Row { of, parent: of, last: SEP }).collect();
    let mut found: Vec<Vec<Found>> = vec![Vec::new(); captions];
    for length in 0..=how.most {
        if rows.is_empty() {
            break;
        }
        let next = step(&rows)?;
        let mut candidates: Vec<Vec<(f32, usize, u32)>> = vec![Vec::new(); captions];
        for (row, (beam, next)) in live.iter().zip(next.rows()).enumerate() {
            let likeliest = if length == how.most {
                vec![(next[SEP as usize], SEP)]
            } else {
                likeliest(next, 2 * width, &beam.pieces)
            };
            let longer =
                likeliest.into_iter().map(|(p, piece)| (beam.log_probability + p, row, piece));
            candidates[beam.of].extend(longer);
        }
        let (mut beams, mut next_rows) = (Vec::new(), Vec::new());
        for (of, mut candidates) in candidates.into_iter().enumerate() {
            candidates.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2)));
            let mut kept = 0;
            for (rank, (log_probability, row, piece)) in candidates.into_iter().enumerate() {
                let pieces = &live[row].pieces;
                if piece == SEP {
                    // An end that others outdo is not worth keeping.
                    if rank < width {
                        let score =
                            log_probability / ((pieces.len() + 1) as f32).powf(how.length_power);
                        found[of].push(Found { pieces: pieces.clone(), log_probability, score });
                    }
                    continue;
                }
                if kept == width || found[of].len() >= width {
                    break;
                }
                let pieces = pieces.iter().copied().chain([piece]).collect();
                beams.push(Beam { of, pieces, log_probability });
                next_rows.push(Row { of, parent: row, last: piece });
                kept += 1;
            }
        }
        (live, rows) = (beams, next_rows);
    }
    for found in &mut found {
        found.sort_by(|a, b| b.score.partial_cmp(&a.score).unwrap_or(Ordering::Equal));
    }
    Ok(found)
}

/// The pieces with the greatest log-probability, but those that end a trigram which is there already.
fn likeliest(next: ArrayView1<f32>, most: usize, pieces: &[u32]) -> Vec<(f32, u32)> {
    let mut best: Vec<(f32, u32)> = Vec::with_capacity(most + 1);
    for (p, piece) in next.iter().zip(0..) {
        let is_enough = best.len() == most && best.last().is_some_and(|(least, _)| p <= least);
        if is_enough || p.is_nan() || NO_WORDS.contains(&piece) || repeats(pieces, piece) {
            continue;
        }
        let place = best.partition_point(|(better, _)| better >= p);
        best.insert(place, (*p, piece));
        best.truncate(most);
    }
    best
}

fn repeats(pieces: &[u32], piece: u32) -> bool {
    let [.., a, b] = pieces else { return false };
    pieces.windows(3).any(|trigram| trigram == [*a, *b, piece])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: u32 = 6;
    const B: u32 = 7;
    const HOW: Search = Search { beams: 3, most: 8, length_power: 1.0 };

    /// Writes as a table says: the probability of each next piece after the last.
    fn written(how: Search, table: impl Fn(u32) -> Vec<(u32, f32)>) -> Vec<Found> {
        search(1, how, |rows| {
            let mut next = Array2::from_elem((rows.len(), 9), f32::NEG_INFINITY);
            for (row, mut next) in rows.iter().zip(next.rows_mut()) {
                for (piece, p) in table(row.last) {
                    next[piece as usize] = p.ln();
                }
            }
            Ok(next)
        })
        .unwrap()
        .remove(0)
    }

    #[test]
    fn a_worse_beginning_with_a_better_end_wins() {
        let table = |last| match last {
            SEP => vec![(A, 0.6), (B, 0.4)],
            A => vec![(SEP, 0.3), (A, 0.1), (B, 0.1)],
            _ => vec![(SEP, 0.9)],
        };
        assert_eq!(written(HOW, table)[0].pieces, [B]);
        assert_eq!(written(Search { beams: 1, ..HOW }, table)[0].pieces, [A]);
    }

    #[test]
    fn marks_are_never_written_and_trigrams_not_twice() {
        let table = |_| vec![(UNKNOWN, 0.6), (A, 0.39), (SEP, 0.01)];
        let found = written(Search { beams: 1, ..HOW }, table);
        // The third A made the first trigram; a fourth would repeat it.
        assert_eq!(found[0].pieces, [A, A, A]);
    }

    #[test]
    fn a_caption_that_finds_no_end_is_ended() {
        let found = written(Search { most: 2, ..HOW }, |last| match last {
            SEP => vec![(A, 1.0)],
            A => vec![(B, 1.0)],
            _ => vec![(A, 0.9), (SEP, 0.1)],
        });
        assert_eq!(found[0].pieces, [A, B]);
    }

    proptest! {
        #[test]
        fn captions_do_not_depend_on_those_beside_them(seeds in prop::collection::vec(0u32..99, 1..5)) {
            let how = Search { beams: 2, most: 5, length_power: 0.7 };
            let run = |seeds: &[u32]| {
                // What each row is a caption of, and has written.
                let mut rows_of: Vec<u32> = seeds.to_vec();
                search(seeds.len(), how, |rows| {
                    rows_of = rows.iter().map(|row| {
                        let of = rows_of[row.parent];
                        of.wrapping_mul(31).wrapping_add(row.last)
                    }).collect();
                    let mut next = Array2::zeros((rows.len(), 9));
                    for (state, mut next) in rows_of.iter().zip(next.rows_mut()) {
                        for (piece, p) in next.iter_mut().enumerate() {
                            let x = state.wrapping_add(piece as u32).wrapping_mul(2_654_435_761);
                            *p = -((x >> 16) as f32) / 9_000.0;
                        }
                    }
                    Ok(next)
                }).unwrap()
            };
            let together = run(&seeds);
            for (seed, found) in seeds.iter().zip(together) {
                prop_assert!(!found.is_empty());
                prop_assert_eq!(&run(&[*seed])[0], &found);
            }
        }
    }
}
