//! The same operations from candle's own, for devices that the fused ones do not know: a card. They allocate a
//! tensor an operation, and have candle's gradients.

use std::sync::Arc;

use candle_core::{D, Result, Tensor};
use candle_nn::{ops, rotary_emb};

/// As [`super::rms_norm`].
pub(super) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    ops::rms_norm_slow(x, weight, eps as f32)
}

/// As [`super::swiglu`].
pub(super) fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate.silu()? * up
}

/// As [`super::token_log_probs`].
pub(super) fn token_log_probs(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    ops::log_softmax(logits, D::Minus1)?.gather(&targets.unsqueeze(1)?, 1)?.squeeze(1)
}

/// As [`super::rope`].
pub(super) fn rope(x: &Tensor, head: usize, frequencies: &Arc<[f32]>) -> Result<Tensor> {
    let (batch, time, width) = x.dims3()?;
    let positions = Tensor::arange(0f32, time as f32, x.device())?.unsqueeze(1)?;
    let angles = positions.matmul(&Tensor::new(&frequencies[..], x.device())?.unsqueeze(0)?)?;
    let heads = x.reshape((batch, time, width / head, head))?.transpose(1, 2)?.contiguous()?;
    let turned = rotary_emb::rope_slow(&heads, &angles.cos()?, &angles.sin()?)?;
    turned.transpose(1, 2)?.reshape((batch, time, width))
}

/// As [`super::attention`].
pub(super) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, head: usize) -> Result<Tensor> {
    let (batch, time, width) = q.dims3()?;
    let (heads, kv_heads) = (width / head, k.dim(2)? / head);
    let split =
        |x: &Tensor, heads: usize| x.reshape((batch, time, heads, head))?.transpose(1, 2)?.contiguous();
    let spread = |x: &Tensor| {
        let each = split(x, kv_heads)?.unsqueeze(2)?;
        let group = (batch, kv_heads, heads / kv_heads, time, head);
        each.broadcast_as(group)?.reshape((batch, heads, time, head))
    };
    let later = |i: usize| (0..time).map(move |j| if j > i { f32::NEG_INFINITY } else { 0.0 });
    let mask = Tensor::from_vec((0..time).flat_map(later).collect(), (time, time), q.device())?;
    let scores = (split(q, heads)?.matmul(&spread(k)?.t()?)? * (head as f64).powf(-0.5))?;
    let weights = ops::softmax(&scores.broadcast_add(&mask)?, D::Minus1)?;
    weights.matmul(&spread(v)?)?.transpose(1, 2)?.reshape((batch, time, width))
}
