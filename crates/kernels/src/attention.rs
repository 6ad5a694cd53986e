//! Attention of packed rows over the paged key-value cache, in place.

use crate::Threads;

/// What all rows of a call share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionShape {
    /// Query heads; a multiple of `kv_heads`.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// The size of a head.
    pub head_dim: usize,
    /// Positions in a cache block.
    pub block_size: usize,
    /// How many positions a row sees, its own included; `None`: all up to its own.
    pub window: Option<usize>,
}

/// One query row.
#[derive(Debug, Clone, Copy)]
pub struct AttentionRow<'a> {
    /// The row's position in its sequence; its own key and value are in the cache already.
    pub position: usize,
    /// The sequence's block table: position `i` is in slot
    /// `blocks[i / block_size] * block_size + i % block_size`.
    pub blocks: &'a [u32],
}

/// `out = softmax(q K^T / sqrt(head_dim)) V` for every row over the positions it sees.
///
/// `q` and `out` are `[rows, heads * head_dim]`, `k` and `v` `[slots, kv_heads * head_dim]`.
///
/// # Panics
/// A slice does not have the length of its shape, or a block table is too short.
pub fn paged_attention(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    rows: &[AttentionRow<'_>],
    shape: &AttentionShape,
    out: &mut [f32],
    _threads: &Threads,
) {
    let (heads, hd) = (shape.heads, shape.head_dim);
    let (group, kv_width) = (heads / shape.kv_heads, shape.kv_heads * hd);
    for (r, row) in rows.iter().enumerate() {
        let first = shape.window.map_or(0, |w| (row.position + 1).saturating_sub(w));
        for h in 0..heads {
            let at = |i: usize| {
                let slot =
                    row.blocks[i / shape.block_size] as usize * shape.block_size + i % shape.block_size;
                slot * kv_width + h / group * hd
            };
            let q = &q[(r * heads + h) * hd..][..hd];
            let scores: Vec<f32> = (first..=row.position)
                .map(|i| q.iter().zip(&k[at(i)..]).map(|(q, k)| q * k).sum::<f32>() / (hd as f32).sqrt())
                .collect();
            let max = scores.iter().fold(f32::NEG_INFINITY, |m, &s| m.max(s));
            let weights: Vec<f32> = scores.iter().map(|s| (s - max).exp()).collect();
            let sum: f32 = weights.iter().sum();
            let out = &mut out[(r * heads + h) * hd..][..hd];
            out.fill(0.0);
            for (i, w) in (first..=row.position).zip(weights) {
                out.iter_mut().zip(&v[at(i)..]).for_each(|(o, v)| *o += w / sum * v);
            }
        }
    }
}

/// Writes each row of `new`, `[rows, width]`, into its slot of a cache side, `[slots, width]`.
///
/// # Panics
/// A slot lies outside the cache.
pub fn write_kv(cache: &mut [f32], new: &[f32], slots: &[usize]) {
    let width = new.len() / slots.len().max(1);
    for (row, &slot) in new.chunks_exact(width.max(1)).zip(slots) {
        cache[slot * width..][..width].copy_from_slice(row);
    }
}
