//! Differentiable operations of the training forward, fused for the CPU; on a card, composed of candle's.
//!
//! candle's own fused norm and rotary embedding have no backward, and their composed forms allocate a
//! tensor an operation; these do one pass over memory each way. Every operation splits its work by rows
//! that belong together, and sums in a fixed order, so that results do not depend on the number of
//! threads. The tests compare each with candle's composed form, values and gradients.

mod attention;
mod composed;
mod log_prob;
mod math;
mod norm;
mod rope;
mod swiglu;

pub use attention::attention;
pub use log_prob::token_log_probs;
pub use math::{dot, exp};
pub use norm::rms_norm;
pub use rope::{rope, rotate};
pub use swiglu::swiglu;

use candle_core::{CpuStorage, Layout, Result, Tensor, bail};

/// The values of a contiguous f32 argument.
fn floats<'a>(storage: &'a CpuStorage, layout: &Layout, op: &str) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("{op} needs contiguous arguments"),
    }
}

/// A copy of a tensor's values, for the backward passes.
fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1::<f32>()
}

#[cfg(test)]
mod tests;
