//! The choice among fused scores.

use crate::{Candidates, Fused, noise::gumbel};

/// How one token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// 0: greedy; otherwise finite and above 0.
    pub temperature: f32,
    /// In (0, 1].
    pub top_p: f32,
    /// The request's seed.
    pub seed: u64,
    /// The index of the token to choose, among those generated.
    pub index: u32,
}

/// The index, within the candidates, of the chosen token.
///
/// Greedy: the best score. Otherwise softmax of `score / temperature`, the smallest set of best
/// candidates that reaches `top_p` (the one that crosses it is kept), and a draw from these by the
/// Gumbel-max trick. Ties go to the lower token id.
pub fn choose(candidates: &Candidates, fused: &Fused, sampling: Sampling) -> usize {
    let ids = &candidates.ids;
    let best_first =
        |scores: &[f64], a: usize, b: usize| scores[b].total_cmp(&scores[a]).then(ids[a].cmp(&ids[b]));
    let mut order: Vec<usize> = (0..ids.len()).collect();
    order.sort_by(|&a, &b| best_first(&fused.scores, a, b));
    if sampling.temperature == 0.0 {
        return order[0];
    }
    let temperature = f64::from(sampling.temperature);
    let scaled: Vec<f64> = fused.scores.iter().map(|s| s / temperature).collect();
    let weights: Vec<f64> = order.iter().map(|&i| (scaled[i] - scaled[order[0]]).exp()).collect();
    let target = f64::from(sampling.top_p) * weights.iter().sum::<f64>();
    let mut reached = 0.0;
    let kept = weights
        .iter()
        .position(|w| {
            reached += w;
            reached >= target
        })
        .map_or(order.len(), |crossing| crossing + 1);
    let noisy: Vec<f64> =
        (0..ids.len()).map(|i| scaled[i] + gumbel(sampling.seed, sampling.index, ids[i])).collect();
    order.truncate(kept);
    order.retain(|&i| scaled[i] > f64::NEG_INFINITY);
    order.sort_by(|&a, &b| best_first(&noisy, a, b));
    order[0]
}
