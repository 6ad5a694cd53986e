//! Rotary position embedding in the halves layout of Hugging Face's Llama.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{composed, floats};

struct Rope {
    head: usize,
    frequencies: Arc<[f32]>,
    direction: f32,
}

/// Rotates each head of `x` `[batch, time, heads * head]` by its position (Su et al. 2021): element `i` and
/// `i + head/2` turn by `position * frequencies[i]`.
///
/// # Errors
/// An argument that is not contiguous f32 of three dimensions.
pub fn rope(x: &Tensor, head: usize, frequencies: &Arc<[f32]>) -> Result<Tensor> {
    if !x.device().is_cpu() {
        return composed::rope(x, head, frequencies);
    }
    x.apply_op1(Rope { head, frequencies: Arc::clone(frequencies), direction: 1.0 })
}

/// Rotates one row of heads in place by `position` (`direction` 1, or -1 to undo).
pub fn rotate(row: &mut [f32], head: usize, frequencies: &[f32], position: usize, direction: f32) {
    let half = head / 2;
    for (i, frequency) in frequencies.iter().enumerate() {
        let angle = position as f32 * frequency;
        let (sin, cos) = (direction * angle.sin(), angle.cos());
        for head in row.chunks_exact_mut(head) {
            let (a, b) = (head[i], head[i + half]);
            head[i] = a * cos - b * sin;
            head[i + half] = b * cos + a * sin;
        }
    }
}

impl CustomOp1 for Rope {
    fn name(&self) -> &'static str {
        "train-rope"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, time, width) = layout.shape().dims3()?;
        let mut y = floats(storage, layout, self.name())?.to_vec();
        y.par_chunks_mut(width).with_min_len(64).enumerate().for_each(|(row, y)| {
            rotate(y, self.head, &self.frequencies, row % time, self.direction);
        });
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        // A rotation's transpose is the rotation back.
        let back =
            Rope { head: self.head, frequencies: Arc::clone(&self.frequencies), direction: -self.direction };
        Ok(Some(grad.contiguous()?.apply_op1_no_bwd(&back)?))
    }
}
