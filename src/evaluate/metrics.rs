//! Metrics of retrieval: recall@k, median rank, mean reciprocal rank.

use ndarray::ArrayView1;
use serde::Serialize;

/// Where the right item stands when items are ordered by score, the highest first; 1 is best.
///
/// Of items with the same score the right one counts as the last, so that a scorer which cannot tell
/// items apart gains nothing by it.
pub fn rank(scores: ArrayView1<f32>, right: usize) -> usize {
    let score = scores[right];
    // Not-a-number is not below anything: it counts as ahead.
    let behind = scores.iter().filter(|other| **other < score).count();
    scores.len() - behind
}

/// How often, in per cent, one of `higher` is above one of `lower`, over all pairs of them: the area under
/// the ROC curve. Equal ones count half; 50 where one of the lists is empty.
pub fn separation(higher: &[f32], lower: &[f32]) -> f64 {
    let pairs = higher.len() as f64 * lower.len() as f64;
    if pairs == 0.0 {
        return 50.0;
    }
    let mut sorted = lower.to_vec();
    sorted.sort_by(f32::total_cmp);
    let above: f64 = higher
        .iter()
        .map(|score| {
            let below = sorted.partition_point(|other| other < score);
            let equal = sorted[below..].partition_point(|other| other <= score);
            below as f64 + equal as f64 / 2.0
        })
        .sum();
    100.0 * above / pairs
}

/// How well a set of queries found the one right item each.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Retrieval {
    /// Percent of queries whose right item is the first.
    pub recall_at_1: f64,
    /// … among the first five.
    pub recall_at_5: f64,
    /// … among the first ten.
    pub recall_at_10: f64,
    /// The middle rank; the mean of the two middle ones for an even number of queries.
    pub median_rank: f64,
    /// Mean of 1 / rank. Not published for every study.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mean_reciprocal_rank: Option<f64>,
}

impl Retrieval {
    /// From each query's rank (1 is best); `None` without queries.
    pub fn of(ranks: &[usize]) -> Option<Self> {
        if ranks.is_empty() {
            return None;
        }
        let queries = ranks.len() as f64;
        let recall = |k| 100.0 * ranks.iter().filter(|rank| **rank <= k).count() as f64 / queries;
        let mut sorted = ranks.to_vec();
        sorted.sort_unstable();
        let (below, above) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
        Some(Retrieval {
            recall_at_1: recall(1),
            recall_at_5: recall(5),
            recall_at_10: recall(10),
            median_rank: (below + above) as f64 / 2.0,
            mean_reciprocal_rank: Some(
                ranks.iter().map(|rank| 1.0 / *rank as f64).sum::<f64>() / queries,
            ),
        })
    }

    /// What guessing among `items` gives on average.
    pub fn chance(items: usize) -> Self {
        let recall = |k: usize| 100.0 * k.min(items) as f64 / items.max(1) as f64;
        let reciprocals: f64 = (1..=items).map(|rank| 1.0 / rank as f64).sum();
        Retrieval {
            recall_at_1: recall(1),
            recall_at_5: recall(5),
            recall_at_10: recall(10),
            median_rank: (items + 1) as f64 / 2.0,
            mean_reciprocal_rank: Some(reciprocals / items.max(1) as f64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;
    use proptest::prelude::*;

    #[test]
    fn the_right_item_is_behind_those_with_the_same_score() {
        let scores = array![0.5, 0.9, 0.5, 0.1];
        assert_eq!(rank(scores.view(), 1), 1);
        assert_eq!(rank(scores.view(), 0), 3);
        assert_eq!(rank(scores.view(), 3), 4);
        assert_eq!(rank(array![f32::NAN, 1.0].view(), 1), 2);
    }

    #[test]
    fn known_ranks_give_known_metrics() {
        let found = Retrieval::of(&[1, 2, 10, 100]).unwrap();
        assert_eq!((found.recall_at_1, found.recall_at_5, found.recall_at_10), (25.0, 50.0, 75.0));
        assert_eq!(found.median_rank, 6.0);
        assert!((found.mean_reciprocal_rank.unwrap() - 1.61 / 4.0).abs() < 1e-12);
        assert_eq!(Retrieval::of(&[]), None);
    }

    #[test]
    fn separation_counts_pairs_and_halves_of_equal_ones() {
        assert_eq!(separation(&[0.9, 0.8], &[0.1, 0.2]), 100.0);
        assert_eq!(separation(&[0.1], &[0.9]), 0.0);
        assert_eq!(separation(&[0.5, 0.7], &[0.5, 0.6]), 100.0 * 2.5 / 4.0);
        assert_eq!(separation(&[], &[0.5]), 50.0);
    }

    proptest! {
        #[test]
        fn guessing_is_the_average_over_all_ranks(items in 10usize..300) {
            let all: Vec<usize> = (1..=items).collect();
            let (found, chance) = (Retrieval::of(&all).unwrap(), Retrieval::chance(items));
            let same = |a: f64, b: f64| (a - b).abs() < 1e-9;
            prop_assert!(same(found.recall_at_1, chance.recall_at_1));
            prop_assert!(same(found.recall_at_10, chance.recall_at_10));
            prop_assert!(same(found.median_rank, chance.median_rank));
            prop_assert!(same(
                found.mean_reciprocal_rank.unwrap(),
                chance.mean_reciprocal_rank.unwrap()
            ));
        }

        #[test]
        fn a_rank_does_not_depend_on_the_order_of_the_others(
            scores in prop::collection::vec(-1.0f32..1.0, 2..40),
        ) {
            let mut reversed = scores.clone();
            reversed.reverse();
            let last = scores.len() - 1;
            prop_assert_eq!(
                rank(ArrayView1::from(&scores), 0),
                rank(ArrayView1::from(&reversed), last)
            );
        }

        #[test]
        fn recall_grows_with_k_and_better_ranks_never_hurt(
            ranks in prop::collection::vec(2usize..500, 1..100),
        ) {
            let found = Retrieval::of(&ranks).unwrap();
            prop_assert!(found.recall_at_1 <= found.recall_at_5);
            prop_assert!(found.recall_at_5 <= found.recall_at_10);
            let better: Vec<usize> = ranks.iter().map(|rank| rank - 1).collect();
            let better = Retrieval::of(&better).unwrap();
            prop_assert!(better.recall_at_10 >= found.recall_at_10);
            prop_assert!(better.median_rank < found.median_rank);
            prop_assert!(better.mean_reciprocal_rank > found.mean_reciprocal_rank);
        }
    }
}
