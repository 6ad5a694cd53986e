//! Token rewards from the policy's and the reference's values over the candidates.

use crate::{Candidates, RowError};

/// Log-softmax of `values`, `[k]`.
pub fn log_softmax(values: &[f32]) -> Vec<f64> {
    let max = values.iter().fold(f64::NEG_INFINITY, |m, &v| m.max(f64::from(v)));
    let sum: f64 = values.iter().map(|&v| (f64::from(v) - max).exp()).sum();
    let log_sum_exp = max + sum.ln();
    values.iter().map(|&v| f64::from(v) - log_sum_exp).collect()
}

/// Reference MODEL: policy logits less the reference model's, each normalised over the candidates.
///
/// `r(a) = E_theta[a] . (w_p * h_theta) - E_ref[a] . (w_p * h_ref)` up to a constant of the step
/// (PAD, equation 9, with the weight vector outside the difference).
pub fn against_model(policy: &[f32], reference: &[f32]) -> Vec<f64> {
    let (policy, reference) = (log_softmax(policy), log_softmax(reference));
    policy.iter().zip(&reference).map(|(p, r)| p - r).collect()
}

/// Reference GENERATOR: the policy's values less the base model's own, unedited, over the
/// candidates, or over the vocabulary where `vocabulary` says so.
///
/// It is the official release's form (`inference/PAD.py`: log-softmax over the top k on both sides).
pub fn against_generator(policy: &[f32], base: &Candidates, vocabulary: bool) -> Result<Vec<f32>, RowError> {
    check_length(policy, base)?;
    let base: Vec<f64> = if vocabulary {
        let lse = f64::from(base.raw_log_sum_exp);
        base.raw_logits.iter().map(|&l| f64::from(l) - lse).collect()
    } else {
        log_softmax(&base.raw_logits)
    };
    Ok(policy.iter().zip(base).map(|(&p, b)| (f64::from(p) - b) as f32).collect())
}

/// Rewards less their mean, limited to `[-limit, limit]`: no constant of the step has a say.
pub fn centred_clip(rewards: &mut [f64], limit: f64) {
    let mean = rewards.iter().sum::<f64>() / rewards.len() as f64;
    for reward in rewards {
        *reward = (*reward - mean).clamp(-limit, limit);
    }
}

pub(crate) fn check_length(rewards: &[f32], candidates: &Candidates) -> Result<(), RowError> {
    if rewards.len() == candidates.len() {
        Ok(())
    } else {
        Err(RowError::Length { want: candidates.len(), got: rewards.len() })
    }
}
