//! Beam search: the likeliest text, without following every one.
//!
//! What a network says comes next after a beginning is asked for once, and beginnings are a tree, so that
//! the order of asking is free: a network holds one beginning at a time, and going on with that one costs least.

use crate::error::Result;

/// A token of a vocabulary.
pub(super) type Token = i32;

/// A token with its natural log-probability.
pub(super) type Likely = (Token, f32);

/// How wide is searched, and how far.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Beams {
    /// Beginnings that are followed at a time.
    pub(super) count: usize,
    /// The token that ends a text.
    pub(super) end: Token,
    /// Tokens of a text at most.
    pub(super) most: usize,
    /// A beginning whose log-probability is this much below the best's is given up.
    pub(super) behind: f32,
}

/// A beginning is given up that would not be the best text even if so many certain tokens ended it.
const REACH: usize = 10;
/// So many tokens of a text are asked for before another beginning is looked at: of the likeliest, and of
/// each other one.
const AHEAD: [usize; 2] = [6, 3];

/// The text of the highest mean log-probability among those found, without its end. `next` gives the
/// likeliest tokens after a beginning, in falling order; twice as many as there are beams suffice.
///
/// It ends as CTranslate2's does, which faster-whisper runs: once as many texts are finished as there are beams; or
/// sooner, where what goes on cannot be the best.
pub(super) fn search(
    beams: Beams,
    mut next: impl FnMut(&[Token]) -> Result<Vec<Likely>>,
) -> Result<Vec<Likely>> {
    let mut tree = Tree::default();
    let mut alive = vec![tree.root()];
    let mut finished: Vec<(f32, usize)> = Vec::new();
    for length in 0..beams.most {
        let mut candidates: Vec<(f32, usize, Likely)> = Vec::new();
        for (rank, &beginning) in alive.iter().enumerate() {
            tree.ask(beginning, AHEAD[rank.min(1)], beams, &mut next)?;
            let sum = tree.nodes[beginning].sum;
            let likely = tree.nodes[beginning].next.iter().flatten();
            candidates
                .extend(likely.map(|&(token, likely)| (sum + likely, beginning, (token, likely))));
        }
        candidates.sort_by(|a, b| b.0.total_cmp(&a.0));
        candidates.truncate(2 * beams.count);
        let Some(&(best, ..)) = candidates.first() else { break };
        // What a beginning needs, were it to end `REACH` certain tokens later, to be better than all that is finished.
        let needed = finished.iter().map(|(mean, _)| *mean).fold(f32::NEG_INFINITY, f32::max)
            * (length + 1 + REACH) as f32;
        alive.clear();
        for (rank, &(sum, beginning, likely)) in candidates.iter().enumerate() {
            if likely.0 == beams.end {
                if rank < beams.count {
                    finished.push((sum / length.max(1) as f32, beginning));
                }
            } else if alive.len() < beams.count && best - sum < beams.behind && sum > needed {
                alive.push(tree.child(beginning, likely));
            }
        }
        if finished.len() >= beams.count || alive.is_empty() {
            break;
        }
    }
    let best = finished.into_iter().max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, found)| found);
    Ok(match best.or(alive.first().copied()) {
        Some(found) => tree.path(found),
        None => Vec::new(),
    })
}

/// Beginnings, each one token longer than the one it goes on from.
#[derive(Debug, Default)]
struct Tree {
    nodes: Vec<Node>,
}

#[derive(Debug)]
struct Node {
    before: Option<usize>,
    token: Token,
    log_probability: f32,
    /// Of all tokens up to here.
    sum: f32,
    /// What may come, once it has been asked for.
    next: Option<Vec<Likely>>,
    after: Vec<usize>,
}

impl Tree {
    fn root(&mut self) -> usize {
        self.push(None, (0, 0.0))
    }

    fn push(&mut self, before: Option<usize>, (token, log_probability): Likely) -> usize {
        let sum = before.map_or(0.0, |at| self.nodes[at].sum) + log_probability;
        self.nodes.push(Node {
            before,
            token,
            log_probability,
            sum,
            next: None,
            after: Vec::new(),
        });
        self.nodes.len() - 1
    }

    fn child(&mut self, of: usize, likely: Likely) -> usize {
        let known =
            self.nodes[of].after.iter().copied().find(|&at| self.nodes[at].token == likely.0);
        known.unwrap_or_else(|| {
            let made = self.push(Some(of), likely);
            self.nodes[of].after.push(made);
            made
        })
    }

    fn path(&self, mut to: usize) -> Vec<Likely> {
        let mut path = Vec::new();
        while let Some(before) = self.nodes[to].before {
            path.push((self.nodes[to].token, self.nodes[to].log_probability));
            to = before;
        }
        path.reverse();
        path
    }

    /// Asks what comes after a beginning, where that isn't known, and then after what is likeliest there, `ahead` times.
    fn ask(
        &mut self,
        mut at: usize,
        ahead: usize,
        beams: Beams,
        next: &mut impl FnMut(&[Token]) -> Result<Vec<Likely>>,
    ) -> Result<()> {
        if self.nodes[at].next.is_some() {
            return Ok(());
        }
        let mut path: Vec<Token> = self.path(at).into_iter().map(|(token, _)| token).collect();
        for _ in 0..=ahead {
            if self.nodes[at].next.is_some() || path.len() >= beams.most {
                break;
            }
            let likely = next(&path)?;
            let first = likely.first().copied();
            self.nodes[at].next = Some(likely);
            let Some(first) = first.filter(|(token, _)| *token != beams.end) else { break };
            at = self.child(at, first);
            path.push(first.0);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use proptest::prelude::*;

    use super::*;

    const END: Token = 0;

    /// Some log-probabilities of four tokens after a beginning, drawn from a seed.
    fn drawn(seed: u64, path: &[Token]) -> Vec<Likely> {
        let mut state = path.iter().fold(seed, |state, &token| {
            (state ^ token as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
        });
        let mut weights: Vec<f32> = (0..4)
            .map(|_| {
                state =
                    state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
                (state >> 40) as f32 / (1 << 24) as f32 + 0.01
            })
            .collect();
        let sum: f32 = weights.iter().sum();
        weights.iter_mut().for_each(|weight| *weight = (*weight / sum).ln());
        let mut likely: Vec<Likely> = (0..).zip(weights).collect();
        likely.sort_by(|a, b| b.1.total_cmp(&a.1));
        likely
    }

    /// The same search, step by step, with nothing remembered.
    fn plain(beams: Beams, seed: u64) -> Vec<Token> {
        let mut alive: Vec<(f32, Vec<Token>)> = vec![(0.0, Vec::new())];
        let mut finished: Vec<(f32, Vec<Token>)> = Vec::new();
        for length in 0..beams.most {
            let mut all: Vec<(f32, Vec<Token>)> = Vec::new();
            for (sum, path) in &alive {
                for (token, likely) in drawn(seed, path) {
                    all.push((sum + likely, [path.as_slice(), &[token]].concat()));
                }
            }
            all.sort_by(|a, b| b.0.total_cmp(&a.0));
            all.truncate(2 * beams.count);
            let best = finished.iter().map(|(mean, _)| *mean).fold(f32::NEG_INFINITY, f32::max);
            alive.clear();
            for (rank, (sum, path)) in all.into_iter().enumerate() {
                if path.last() == Some(&END) {
                    if rank < beams.count {
                        finished.push((sum / length.max(1) as f32, path[..length].to_vec()));
                    }
                } else if alive.len() < beams.count && sum > best * (length + 1 + REACH) as f32 {
                    alive.push((sum, path));
                }
            }
            if finished.len() >= beams.count || alive.is_empty() {
                break;
            }
        }
        let best = finished.into_iter().max_by(|a, b| a.0.total_cmp(&b.0));
        best.unwrap_or_else(|| alive.swap_remove(0)).1
    }

    proptest! {
        #[test]
        fn the_tree_changes_only_the_order_of_asking(seed: u64, count in 1_usize..6, most in 1_usize..12) {
            let beams = Beams { count, end: END, most, behind: f32::INFINITY };
            let mut asked = HashSet::new();
            let found = search(beams, |path| {
                assert!(path.len() < most);
                assert!(asked.insert(path.to_vec()), "asked twice: {path:?}");
                Ok(drawn(seed, path))
            })
            .unwrap();
            let tokens: Vec<Token> = found.iter().map(|(token, _)| *token).collect();
            prop_assert_eq!(tokens, plain(beams, seed));
        }
    }

    /// A network that is told everything.
    fn told(next: &HashMap<&[Token], Vec<Likely>>, count: usize) -> Vec<Likely> {
        let beams = Beams { count, end: END, most: 5, behind: 9.0 };
        search(beams, |path| Ok(next.get(path).cloned().unwrap_or_default())).unwrap()
    }

    #[test]
    fn what_begins_badly_and_ends_well_is_found_by_two_beams() {
        let next: HashMap<&[Token], Vec<Likely>> = HashMap::from([
            ([].as_slice(), vec![(1, -0.5), (2, -1.0)]),
            (&[1], vec![(END, -2.0), (3, -2.5)]),
            (&[2], vec![(END, -0.1), (3, -3.0)]),
        ]);
        assert_eq!(told(&next, 1), [(1, -0.5)]);
        assert_eq!(told(&next, 2), [(2, -1.0)]);
    }

    #[test]
    fn a_network_without_an_answer_ends_the_text() {
        assert_eq!(told(&HashMap::new(), 3), []);
        let next = HashMap::from([([].as_slice(), vec![(1, -0.5)])]);
        assert_eq!(told(&next, 3), [(1, -0.5)]);
    }
}
