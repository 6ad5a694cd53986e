//! The gate of the feed-forward layer.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::math::exp;
use super::{composed, floats, values};

struct SwiGlu;

/// `silu(gate) * up`, both `[n, m]` (Shazeer 2020).
///
/// # Errors
/// Arguments that are not contiguous f32.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if !gate.device().is_cpu() {
        return composed::swiglu(gate, up);
    }
    gate.apply_op2(up, SwiGlu)
}

const CHUNK: usize = 4096;

impl CustomOp2 for SwiGlu {
    fn name(&self) -> &'static str {
        "train-swiglu"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (floats(s1, l1, self.name())?, floats(s2, l2, self.name())?);
        let mut y = vec![0f32; gate.len()];
        let chunks = y.par_chunks_mut(CHUNK).zip(gate.par_chunks(CHUNK)).zip(up.par_chunks(CHUNK));
        chunks.for_each(|((y, gate), up)| {
            for ((y, g), u) in y.iter_mut().zip(gate).zip(up) {
                *y = g / (1.0 + exp(-g)) * u;
            }
        });
        Ok((CpuStorage::F32(y), l1.shape().clone()))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (mut gates, mut ups, grads) = (values(gate)?, values(up)?, values(grad)?);
        let chunks = gates.par_chunks_mut(CHUNK).zip(ups.par_chunks_mut(CHUNK)).zip(grads.par_chunks(CHUNK));
        chunks.for_each(|((gate, up), grad)| {
            for ((g, u), grad) in gate.iter_mut().zip(up).zip(grad) {
                let sigmoid = 1.0 / (1.0 + exp(-*g));
                let silu = *g * sigmoid;
                *g = grad * *u * (sigmoid + silu * (1.0 - sigmoid));
                *u = grad * silu;
            }
        });
        let tensor = |values| Tensor::from_vec(values, gate.shape(), gate.device());
        Ok((Some(tensor(gates)?), Some(tensor(ups)?)))
    }
}
