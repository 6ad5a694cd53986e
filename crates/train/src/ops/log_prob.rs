//! Log-probability of given tokens under a softmax over the vocabulary.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::math::softmax;
use super::{composed, floats, values};

struct TokenLogProbs;

/// `log softmax(logits)[row, targets[row]]`: `logits` `[n, vocabulary]`, `targets` `[n]` u32; gives `[n]`.
///
/// # Errors
/// Arguments of other types, or a target outside the vocabulary.
pub fn token_log_probs(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    if !logits.device().is_cpu() {
        return composed::token_log_probs(logits, targets);
    }
    logits.apply_op2(targets, TokenLogProbs)
}

impl CustomOp2 for TokenLogProbs {
    fn name(&self) -> &'static str {
        "train-token-log-probs"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (rows, vocabulary) = l1.shape().dims2()?;
        let logits = floats(s1, l1, self.name())?;
        let Some((start, end)) = l2.contiguous_offsets() else {
            candle_core::bail!("targets must be contiguous")
        };
        let targets = &s2.as_slice::<u32>()?[start..end];
        if targets.len() != rows || targets.iter().any(|target| *target as usize >= vocabulary) {
            candle_core::bail!("targets must be {rows} ids below {vocabulary}");
        }
        let log_probs = logits
            .par_chunks(vocabulary)
            .with_min_len(16)
            .zip(targets)
            .map(|(row, target)| row[*target as usize] - softmax(&mut row.to_vec()))
            .collect();
        Ok((CpuStorage::F32(log_probs), Shape::from(rows)))
    }

    fn bwd(
        &self,
        logits: &Tensor,
        targets: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (mut rows, grads, ids) = (values(logits)?, values(grad)?, targets.to_vec1::<u32>()?);
        let width = logits.dim(1)?;
        rows.par_chunks_mut(width).with_min_len(16).zip(&ids).zip(&grads).for_each(
            |((row, target), grad)| {
                softmax(row);
                for x in row.iter_mut() {
                    *x *= -grad;
                }
                row[*target as usize] += grad;
            },
        );
        Ok((Some(Tensor::from_vec(rows, logits.shape(), logits.device())?), None))
    }
}
