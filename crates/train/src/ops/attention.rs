//! Causal attention with grouped key-value heads, over right-padded sequences.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::math::{add_scaled, dot, softmax};
use super::{composed, floats, values};

struct Attention {
    head: usize,
}

/// `softmax(q k^T / sqrt(head)) v` for each head, every position seeing itself and what came before
/// (Vaswani et al. 2017; grouped heads, Ainslie et al. 2023).
///
/// `q` `[batch, time, heads * head]`, `k` and `v` `[batch, time, kv_heads * head]`; gives the shape of `q`.
/// Padding on the right needs no mask: no real position looks at it.
///
/// # Errors
/// Arguments that are not contiguous f32.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, head: usize) -> Result<Tensor> {
    if !q.device().is_cpu() {
        return composed::attention(q, k, v, head);
    }
    q.apply_op3(k, v, Attention { head })
}

/// One sequence's shape.
#[derive(Clone, Copy)]
struct Dims {
    head: usize,
    q_width: usize,
    kv_width: usize,
    scale: f32,
}

impl Dims {
    fn of(q: &Shape, k: &Shape, head: usize) -> Result<(usize, Self)> {
        let (_, time, q_width) = q.dims3()?;
        let kv_width = k.dims3()?.2;
        Ok((time, Self { head, q_width, kv_width, scale: 1.0 / (head as f32).sqrt() }))
    }

    /// For each head: where its queries and its keys start in a row.
    fn heads(self) -> impl Iterator<Item = (usize, usize)> {
        let group = self.q_width / self.kv_width;
        (0..self.q_width / self.head).map(move |h| (h * self.head, h / group * self.head))
    }

    /// Attention weights of position `i`, into `row[..=i]`.
    #[inline(always)]
    fn weights(self, row: &mut Vec<f32>, query: &[f32], k: &[f32], at: usize, i: usize) {
        row.clear();
        let keys = k.chunks_exact(self.kv_width).take(i + 1);
        row.extend(keys.map(|key| dot(query, &key[at..at + self.head]) * self.scale));
        softmax(row);
    }

    /// One sequence's output.
    #[inline(always)]
    fn forward(self, out: &mut [f32], q: &[f32], k: &[f32], v: &[f32]) {
        let mut row = Vec::new();
        for (at_q, at_k) in self.heads() {
            for i in 0..q.len() / self.q_width {
                let start = i * self.q_width + at_q;
                self.weights(&mut row, &q[start..start + self.head], k, at_k, i);
                let out = &mut out[start..start + self.head];
                for (weight, value) in row.iter().zip(v.chunks_exact(self.kv_width)) {
                    add_scaled(out, *weight, &value[at_k..at_k + self.head]);
                }
            }
        }
    }

    /// One sequence's gradients, given that of its output.
    #[inline(always)]
    fn backward(self, to: Slopes<'_>, q: &[f32], k: &[f32], v: &[f32], grad: &[f32]) {
        let Slopes { dq, dk, dv } = to;
        let (mut row, mut slopes) = (Vec::new(), Vec::new());
        for (at_q, at_k) in self.heads() {
            for i in 0..q.len() / self.q_width {
                let start = i * self.q_width + at_q;
                let (query, grad) = (&q[start..start + self.head], &grad[start..start + self.head]);
                let dq = &mut dq[start..start + self.head];
                self.weights(&mut row, query, k, at_k, i);
                slopes.clear();
                let values = v.chunks_exact(self.kv_width).take(i + 1);
                slopes.extend(values.map(|value| dot(grad, &value[at_k..at_k + self.head])));
                let mean = dot(&row, &slopes);
                for (j, (weight, slope)) in row.iter().zip(&slopes).enumerate() {
                    let there = j * self.kv_width + at_k..j * self.kv_width + at_k + self.head;
                    add_scaled(&mut dv[there.clone()], *weight, grad);
                    let slope = weight * (slope - mean) * self.scale;
                    add_scaled(dq, slope, &k[there.clone()]);
                    add_scaled(&mut dk[there], slope, query);
                }
            }
        }
    }
}

/// Where the gradients of one sequence go.
struct Slopes<'a> {
    dq: &'a mut [f32],
    dk: &'a mut [f32],
    dv: &'a mut [f32],
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "train-attention"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (time, dims) = Dims::of(l1.shape(), l2.shape(), self.head)?;
        let name = self.name();
        let (q, k, v) = (floats(s1, l1, name)?, floats(s2, l2, name)?, floats(s3, l3, name)?);
        let mut out = vec![0f32; q.len()];
        let (q_size, kv_size) = (time * dims.q_width, time * dims.kv_width);
        let sequences = out
            .par_chunks_mut(q_size)
            .zip(q.par_chunks(q_size))
            .zip(k.par_chunks(kv_size))
            .zip(v.par_chunks(kv_size));
        sequences.for_each(|(((out, q), k), v)| dims.forward(out, q, k, v));
        Ok((CpuStorage::F32(out), l1.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (time, dims) = Dims::of(q.shape(), k.shape(), self.head)?;
        let (qs, ks, vs, grads) = (values(q)?, values(k)?, values(v)?, values(grad)?);
        let (mut dq, mut dk, mut dv) = (vec![0f32; qs.len()], vec![0f32; ks.len()], vec![0f32; vs.len()]);
        let (q_size, kv_size) = (time * dims.q_width, time * dims.kv_width);
        let given = qs
            .par_chunks(q_size)
            .zip(ks.par_chunks(kv_size))
            .zip(vs.par_chunks(kv_size))
            .zip(grads.par_chunks(q_size));
        let wanted =
            dq.par_chunks_mut(q_size).zip(dk.par_chunks_mut(kv_size)).zip(dv.par_chunks_mut(kv_size));
        given.zip(wanted).for_each(|((((q, k), v), grad), ((dq, dk), dv))| {
            dims.backward(Slopes { dq, dk, dv }, q, k, v, grad);
        });
        let device = q.device();
        Ok((
            Some(Tensor::from_vec(dq, q.shape(), device)?),
            Some(Tensor::from_vec(dk, k.shape(), device)?),
            Some(Tensor::from_vec(dv, v.shape(), device)?),
        ))
    }
}
