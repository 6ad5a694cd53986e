//! Rotary position embedding in the halves layout of Hugging Face's Llama.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::floats;

struct Rope {
    head: usize,
    theta: f32,
    direction: f32,
}

/// Rotates each head of `x` `[batch, time, heads * head]` by its position (Su et al. 2021): element `i` and
/// `i + head/2` turn by `position * theta^(-2i/head)`.
///
/// # Errors
/// An argument that is not contiguous f32 of three dimensions.
pub fn rope(x: &Tensor, head: usize, theta: f64) -> Result<Tensor> {
    x.apply_op1(Rope { head, theta: theta as f32, direction: 1.0 })
}

/// Rotates one row of heads in place by `position` (`direction` 1, or -1 to undo).
pub fn rotate(row: &mut [f32], head: usize, theta: f32, position: usize, direction: f32) {
    let half = head / 2;
    for i in 0..half {
        let angle = position as f32 * theta.powf(-2.0 * i as f32 / head as f32);
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
            rotate(y, self.head, self.theta, row % time, self.direction);
        });
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        // A rotation's transpose is the rotation back.
        let back = Rope { head: self.head, theta: self.theta, direction: -self.direction };
        Ok(Some(grad.contiguous()?.apply_op1_no_bwd(&back)?))
    }
}
