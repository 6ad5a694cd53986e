//! Our kernels as candle operations on a CPU.
//!
//! Every operation treats each row by itself: a row's bits do not depend on the rows beside it.

use attune_kernels::{
    AttentionRow, AttentionShape, Linear, Threads, paged_attention, rms_norm as normalise, rope, swiglu,
};
use candle_core::{
    CpuStorage, CustomOp1, CustomOp3, InplaceOp1, InplaceOp2, Layout, Result, Shape, Tensor, bail,
};

/// `x W^T + b`: `[rows, n_in]` to `[rows, n_out]`.
pub(super) fn linear(x: &Tensor, weights: &Linear, threads: &Threads) -> Result<Tensor> {
    x.apply_op1_no_bwd(&LinearOp { weights, threads })
}

/// Root-mean-square norm of each row, `[rows, d]`.
pub(super) fn rms_norm(x: &Tensor, weight: &[f32], eps: f64) -> Result<Tensor> {
    x.apply_op1_no_bwd(&RmsNorm { weight, eps: eps as f32 })
}

/// `silu(gate) * up`: `[rows, 2 * n]`, gates first, to `[rows, n]`.
pub(super) fn silu_gate(gate_up: &Tensor) -> Result<Tensor> {
    gate_up.apply_op1_no_bwd(&SiluGate)
}

/// The attention of packed rows over the paged cache.
pub(super) struct Attention<'a> {
    /// The shape of heads, blocks and window.
    pub(super) shape: AttentionShape,
    /// One a row: its position and its sequence's blocks.
    pub(super) rows: &'a [AttentionRow<'a>],
    /// The cores to use.
    pub(super) threads: &'a Threads,
}

impl Attention<'_> {
    /// Attends from the queries in `qkv`, `[rows, (heads + 2 kv_heads) * head_dim]`, over `keys` and
    /// `values`, `[slots, kv_heads * head_dim]`, into `[rows, heads * head_dim]`.
    pub(super) fn forward(&self, qkv: &Tensor, keys: &Tensor, values: &Tensor) -> Result<Tensor> {
        qkv.apply_op3_no_bwd(keys, values, self)
    }
}

/// Normalises (Qwen3) and rotates the queries and keys of `qkv` in place.
pub(super) struct Rotate<'a> {
    /// Query heads.
    pub(super) heads: usize,
    /// Key and value heads.
    pub(super) kv_heads: usize,
    /// The width of a head.
    pub(super) head_dim: usize,
    /// Each row's position.
    pub(super) positions: &'a [u32],
    /// `[context, head_dim / 2]`.
    pub(super) cos: &'a [f32],
    /// `[context, head_dim / 2]`.
    pub(super) sin: &'a [f32],
    /// Weights of the heads' norms, `[head_dim]` each, and their epsilon.
    pub(super) norms: Option<(&'a [f32], &'a [f32], f32)>,
}

/// Stores columns of packed rows into slots of the cache.
pub(super) struct Store<'a> {
    /// The first column to take; as many as the cache is wide.
    pub(super) column: usize,
    /// Each row's slot: `block * block_size + offset`.
    pub(super) slots: &'a [usize],
}

fn floats<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(data), Some((start, end))) => Ok(&data[start..end]),
        _ => bail!("the decoder's operations take contiguous f32 tensors"),
    }
}

fn floats_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(data), Some((start, end))) => Ok(&mut data[start..end]),
        _ => bail!("the decoder's operations take contiguous f32 tensors"),
    }
}

struct LinearOp<'a> {
    weights: &'a Linear,
    threads: &'a Threads,
}

impl CustomOp1 for LinearOp<'_> {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = floats(storage, layout)?;
        let rows = layout.shape().dims2()?.0;
        let mut out = vec![0.0; rows * self.weights.n_out()];
        self.weights.forward(x, &mut out, self.threads);
        Ok((CpuStorage::F32(out), (rows, self.weights.n_out()).into()))
    }
}

struct RmsNorm<'a> {
    weight: &'a [f32],
    eps: f32,
}

impl CustomOp1 for RmsNorm<'_> {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = floats(storage, layout)?;
        let mut out = vec![0.0; x.len()];
        normalise(x, self.weight, self.eps, &mut out);
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }
}

struct SiluGate;

impl CustomOp1 for SiluGate {
    fn name(&self) -> &'static str {
        "silu_gate"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, width) = layout.shape().dims2()?;
        let mut out = vec![0.0; rows * width / 2];
        swiglu(floats(storage, layout)?, width / 2, &mut out);
        Ok((CpuStorage::F32(out), (rows, width / 2).into()))
    }
}

impl InplaceOp1 for Rotate<'_> {
    fn name(&self) -> &'static str {
        "rotate"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let width = layout.shape().dims2()?.1;
        let qkv = floats_mut(storage, layout)?;
        let (queries, keys) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        for (row, &position) in qkv.chunks_exact_mut(width).zip(self.positions) {
            let (q, rest) = row.split_at_mut(queries);
            let k = &mut rest[..keys];
            if let Some((q_norm, k_norm, eps)) = self.norms {
                let (plain_q, plain_k) = (q.to_vec(), k.to_vec());
                normalise(&plain_q, q_norm, eps, q);
                normalise(&plain_k, k_norm, eps, k);
            }
            for part in [q, k] {
                let heads = part.len() / self.head_dim;
                rope(part, &[position], self.cos, self.sin, heads, self.head_dim);
            }
        }
        Ok(())
    }
}

impl InplaceOp2 for Store<'_> {
    fn name(&self) -> &'static str {
        "store"
    }

    fn cpu_fwd(&self, cache: &mut CpuStorage, cl: &Layout, rows: &CpuStorage, rl: &Layout) -> Result<()> {
        let (width, row_width) = (cl.shape().dims2()?.1, rl.shape().dims2()?.1);
        let (cache, rows) = (floats_mut(cache, cl)?, floats(rows, rl)?);
        for (row, &slot) in rows.chunks_exact(row_width).zip(self.slots) {
            cache[slot * width..][..width].copy_from_slice(&row[self.column..][..width]);
        }
        Ok(())
    }
}

impl CustomOp3 for Attention<'_> {
    fn name(&self) -> &'static str {
        "paged_attention"
    }

    fn cpu_fwd(
        &self,
        qkv: &CpuStorage,
        ql: &Layout,
        keys: &CpuStorage,
        kl: &Layout,
        values: &CpuStorage,
        vl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let width = ql.shape().dims2()?.1;
        let heads = self.shape.heads * self.shape.head_dim;
        let mut queries = Vec::with_capacity(self.rows.len() * heads);
        for row in floats(qkv, ql)?.chunks_exact(width) {
            queries.extend_from_slice(&row[..heads]);
        }
        let mut out = vec![0.0; queries.len()];
        let (keys, values) = (floats(keys, kl)?, floats(values, vl)?);
        paged_attention(&queries, keys, values, self.rows, &self.shape, &mut out, self.threads);
        Ok((CpuStorage::F32(out), (self.rows.len(), heads).into()))
    }
}
