//! What a head makes of an answer's features: its log-probability for any person, and how that moves with the
//! weights.
//!
//! `log pi_w(y) = sum_t (E[a_t] . (w * h_t) - log sum_a exp(E[a] . (w * h_t)))`, log-softmax over the vocabulary.
//! Its gradient by `w` at ones is `sum_t h_t * (E[a_t] - E_{a ~ pi_1} E[a])`.

use attune_kernels::{EmbeddingTable, Threads};

/// Tokens whose probabilities over the whole vocabulary are kept at once.
const TOKENS: usize = 32;

/// The log-probability, in nats, of `targets` behind the features `[tokens, d]` under `E . features`. Not finite
/// where a feature is not.
///
/// # Panics
/// A target lies outside the vocabulary, or the features are not as wide as the table.
pub fn log_prob(table: &EmbeddingTable, features: &[Vec<f32>], targets: &[u32], threads: &Threads) -> f64 {
    let of_token = |(features, &target): (&Vec<f32>, &u32)| {
        let mut dot = [0.0];
        table.dot_rows(&[target], features, &mut dot);
        f64::from(dot[0]) - table.log_sum_exp_all(features, threads)
    };
    features.iter().zip(targets).map(of_token).sum()
}

/// [`log_prob`], and its gradient by `w` at ones, `[d]`.
///
/// # Panics
/// As [`log_prob`].
pub fn linearised(table: &EmbeddingTable, features: &[Vec<f32>], targets: &[u32]) -> (f64, Vec<f64>) {
    let (vocab, d) = (table.vocab(), table.d());
    let all: Vec<u32> = (0..vocab as u32).collect();
    let mut shares = vec![0.0; TOKENS.min(features.len()) * vocab];
    let (mut expected, mut said) = (vec![0.0; TOKENS.min(features.len()) * d], vec![0.0; d]);
    let mut gradient = vec![0.0; d];
    let mut total = 0.0;
    for (features, targets) in features.chunks(TOKENS).zip(targets.chunks(TOKENS)) {
        for ((features, &target), row) in features.iter().zip(targets).zip(shares.chunks_mut(vocab)) {
            table.dot_rows(&all, features, row);
            total += softmax(row, target as usize);
        }
        let tokens = features.len();
        table.weigh_rows(&shares[..tokens * vocab], &mut expected[..tokens * d]);
        for ((features, &target), expected) in features.iter().zip(targets).zip(expected.chunks(d)) {
            table.row_into(target, &mut said);
            for (((g, &s), &e), &h) in gradient.iter_mut().zip(&said).zip(expected).zip(features) {
                *g += f64::from(h) * (f64::from(s) - f64::from(e));
            }
        }
    }
    (total, gradient)
}

/// Makes probabilities of logits; gives the target's log-probability, in nats.
fn softmax(row: &mut [f32], target: usize) -> f64 {
    let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exps: Vec<f64> = row.iter().map(|&x| f64::from(x - most).exp()).collect();
    let sum: f64 = exps.iter().sum();
    let log_prob = f64::from(row[target] - most) - sum.ln();
    row.iter_mut().zip(exps).for_each(|(x, exp)| *x = (exp / sum) as f32);
    log_prob
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const VOCAB: usize = 9;
    const D: usize = 4;

    fn table(rows: &[f32]) -> EmbeddingTable {
        EmbeddingTable::from_f32(rows.to_vec(), VOCAB, D).unwrap()
    }

    /// The exact log-probability in double precision, for weights `w`.
    fn exact(rows: &[f32], features: &[Vec<f32>], targets: &[u32], w: &[f64]) -> f64 {
        let logit = |h: &[f32], a: usize| -> f64 {
            (0..D).map(|i| f64::from(rows[a * D + i]) * w[i] * f64::from(h[i])).sum()
        };
        let of_token = |(h, &a): (&Vec<f32>, &u32)| {
            let sum: f64 = (0..VOCAB).map(|b| logit(h, b).exp()).sum();
            logit(h, a as usize) - sum.ln()
        };
        features.iter().zip(targets).map(of_token).sum()
    }

    proptest! {
        #[test]
        fn the_gradient_is_the_finite_difference_of_the_exact_log_softmax(
            rows in prop::collection::vec(-1.5f32..1.5, VOCAB * D),
            features in prop::collection::vec(prop::collection::vec(-1.5f32..1.5, D), 1..6),
            targets in prop::collection::vec(0u32..VOCAB as u32, 6),
            weights in prop::collection::vec(-0.5f64..2.0, D),
        ) {
            let table = table(&rows);
            let (total, gradient) = linearised(&table, &features, &targets[..features.len()]);
            let ones = vec![1.0; D];
            let targets = &targets[..features.len()];
            prop_assert!((total - exact(&rows, &features, targets, &ones)).abs() < 1e-4);
            for (i, got) in gradient.iter().enumerate() {
                let at = |step: f64| {
                    let mut w = ones.clone();
                    w[i] += step;
                    exact(&rows, &features, targets, &w)
                };
                let slope = (at(1e-5) - at(-1e-5)) / 2e-5;
                prop_assert!((slope - got).abs() < 1e-4 * (1.0 + slope.abs()), "{slope} {got}");
            }
            // And the exact value for any weights.
            let weighted: Vec<Vec<f32>> = features
                .iter()
                .map(|h| h.iter().zip(&weights).map(|(h, w)| h * *w as f32).collect())
                .collect();
            let got = log_prob(&table, &weighted, targets, &Threads::new(1).unwrap());
            prop_assert!((got - exact(&rows, &features, targets, &weights)).abs() < 1e-4);
        }

        #[test]
        fn the_linearisation_bounds_the_exact_value_from_above_and_meets_it_at_ones(
            rows in prop::collection::vec(-1.5f32..1.5, VOCAB * D),
            features in prop::collection::vec(prop::collection::vec(-1.5f32..1.5, D), 1..6),
            targets in prop::collection::vec(0u32..VOCAB as u32, 6),
            step in prop::collection::vec(-1.0f64..1.0, D),
        ) {
            let table = table(&rows);
            let targets = &targets[..features.len()];
            let (total, gradient) = linearised(&table, &features, targets);
            let far = |share: f64| {
                let w: Vec<f64> = step.iter().map(|s| 1.0 + share * s).collect();
                let line: f64 = total + share * gradient.iter().zip(&step).map(|(g, s)| g * s).sum::<f64>();
                line - exact(&rows, &features, targets, &w)
            };
            // Log-probabilities are concave in the weights; the error falls with the square of the step.
            prop_assert!(far(1.0) > -1e-4 && far(-1.0) > -1e-4);
            prop_assert!(far(0.01) < 0.01 * (far(1.0) + far(-1.0)) + 2e-4);
        }
    }
}
