//! Fusion of the base model's log-probabilities with the rewards of every guidance.

use crate::reward::{centred_clip, check_length, log_softmax};
use crate::{Candidates, RowError};

/// What one guidance says of the candidates.
#[derive(Debug, Clone, Copy)]
pub struct Term<'a> {
    /// How strongly it acts; finite.
    pub strength: f32,
    /// The limit of a centred reward; above 0. `None`: unlimited.
    pub clip: Option<f32>,
    /// `r_j(a|s, p_j)` in the candidates' order, `[k]`.
    pub rewards: &'a [f32],
}

impl Term<'_> {
    /// What the term adds to each score, `[k]`: `strength * r_j(a|s, p_j)`, the reward as the clip limits it.
    pub fn contributions(&self) -> Vec<f64> {
        let mut rewards: Vec<f64> = self.rewards.iter().map(|&r| f64::from(r)).collect();
        if let Some(clip) = self.clip {
            centred_clip(&mut rewards, f64::from(clip));
        }
        rewards.iter().map(|reward| f64::from(self.strength) * reward).collect()
    }
}

/// The fused scores of one row.
#[derive(Debug, Clone, PartialEq)]
pub struct Fused {
    /// `score(a) = log pi_base(a|s) + sum_j strength_j r_j(a|s, p_j)`, `[k]`. Negative infinity: out
    /// by `min_p`; never so for all.
    pub scores: Vec<f64>,
}

impl Fused {
    /// Log-softmax over the candidates of the scores, of candidate `i`, at temperature 1.
    pub fn log_prob(&self, i: usize) -> f64 {
        let scores: Vec<f32> = self.scores.iter().map(|&s| s as f32).collect();
        log_softmax(&scores)[i]
    }
}

/// Fuses the terms. A candidate whose base probability is below `min_p` times the best one is out.
///
/// # Errors
/// A number that is not finite, or a term of another length than the candidates, fails the row.
pub fn fuse(candidates: &Candidates, terms: &[Term<'_>], min_p: f32) -> Result<Fused, RowError> {
    let mut scores: Vec<f64> = (0..candidates.len()).map(|i| candidates.log_prob(i)).collect();
    if scores.is_empty() || !scores.iter().all(|s| s.is_finite()) {
        return Err(RowError::Logits);
    }
    let floor = scores[0] + f64::from(min_p).ln();
    for term in terms {
        check_length(term.rewards, candidates)?;
        if !term.rewards.iter().all(|r| r.is_finite()) {
            return Err(RowError::Reward);
        }
        for (score, contribution) in scores.iter_mut().zip(term.contributions()) {
            *score += contribution;
        }
    }
    for (i, score) in scores.iter_mut().enumerate() {
        if candidates.log_prob(i) < floor {
            *score = f64::NEG_INFINITY;
        }
    }
    Ok(Fused { scores })
}
