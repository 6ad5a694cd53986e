//! Root-mean-square norm.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::math::dot;
use super::{composed, floats, values};

struct RmsNorm {
    eps: f32,
}

/// `y = x / sqrt(mean(x^2) + eps) * weight`, row by row: `x` `[n, d]`, `weight` `[d]` (Zhang and Sennrich 2019).
///
/// # Errors
/// Arguments that are not contiguous f32.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    if !x.device().is_cpu() {
        return composed::rms_norm(x, weight, eps);
    }
    x.apply_op2(weight, RmsNorm { eps: eps as f32 })
}

impl RmsNorm {
    fn inverse(&self, row: &[f32]) -> f32 {
        1.0 / (dot(row, row) / row.len() as f32 + self.eps).sqrt()
    }
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "train-rms-norm"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, weight) = (floats(s1, l1, self.name())?, floats(s2, l2, self.name())?);
        let mut y = vec![0f32; x.len()];
        y.par_chunks_mut(weight.len()).with_min_len(64).zip(x.par_chunks(weight.len())).for_each(|(y, x)| {
            let inverse = self.inverse(x);
            for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
                *y = x * inverse * w;
            }
        });
        Ok((CpuStorage::F32(y), l1.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (xs, weights, grads) = (values(x)?, values(weight)?, values(grad)?);
        let d = weights.len();
        let mut dx = vec![0f32; xs.len()];
        let rows = dx.par_chunks_mut(d).with_min_len(64).zip(xs.par_chunks(d)).zip(grads.par_chunks(d));
        rows.for_each(|((dx, x), grad)| {
            let inverse = self.inverse(x);
            for ((dx, grad), w) in dx.iter_mut().zip(grad).zip(&weights) {
                *dx = grad * w;
            }
            let along = dot(dx, x) * inverse * inverse / d as f32;
            for (dx, x) in dx.iter_mut().zip(x) {
                *dx = inverse * (*dx - along * x);
            }
        });
        let mut dw = vec![0f32; d];
        for (x, grad) in xs.chunks(d).zip(grads.chunks(d)) {
            let inverse = self.inverse(x);
            for ((dw, x), grad) in dw.iter_mut().zip(x).zip(grad) {
                *dw += grad * x * inverse;
            }
        }
        let dx = Tensor::from_vec(dx, x.shape(), x.device())?;
        Ok((Some(dx), Some(Tensor::from_vec(dw, weight.shape(), x.device())?)))
    }
}
