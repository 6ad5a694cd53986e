//! Row-major embeddings: looked up by id, and multiplied row by row.

use half::{bf16, f16};

use crate::disjoint::Disjoint;
use crate::error::check_len;
use crate::linear::{BLOCK, q8_block};
use crate::simd::{Isa, LANES, Lanes, simd_fn};
use crate::{Format, KernelError, Threads};

/// Rows of the vocabulary that one task multiplies. Fixed, so that a sum over the vocabulary has one
/// order for any number of threads.
const ROWS: usize = 256;

/// Vectors of a sum of rows that stay in registers.
const GROUP: usize = 4;

/// A row-major embedding `[V, d]`.
#[derive(Debug, Clone)]
pub struct EmbeddingTable {
    rows: Rows,
    vocab: usize,
    d: usize,
}

#[derive(Debug, Clone)]
enum Rows {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    F16(Vec<f16>),
    /// Of every row, blocks of 32 numbers as GGUF's Q8_0 has them: 34 bytes.
    Q8(Vec<u8>),
}

/// Bytes of a block: a scale in half precision and 32 signed bytes.
const BLOCK_BYTES: usize = 2 + BLOCK;

impl EmbeddingTable {
    /// Keeps `[vocab, d]` single-precision numbers.
    ///
    /// # Errors
    /// The length is not `vocab * d`.
    pub fn from_f32(rows: Vec<f32>, vocab: usize, d: usize) -> Result<Self, KernelError> {
        check_len("an embedding", rows.len(), vocab * d)?;
        Ok(Self { rows: Rows::F32(rows), vocab, d })
    }

    /// Keeps `[vocab, d]` bfloat16 numbers.
    ///
    /// # Errors
    /// The length is not `vocab * d`.
    pub fn from_bf16(rows: Vec<bf16>, vocab: usize, d: usize) -> Result<Self, KernelError> {
        check_len("an embedding", rows.len(), vocab * d)?;
        Ok(Self { rows: Rows::Bf16(rows), vocab, d })
    }

    /// Keeps `[vocab, d]` half-precision numbers.
    ///
    /// # Errors
    /// The length is not `vocab * d`.
    pub fn from_f16(rows: Vec<f16>, vocab: usize, d: usize) -> Result<Self, KernelError> {
        check_len("an embedding", rows.len(), vocab * d)?;
        Ok(Self { rows: Rows::F16(rows), vocab, d })
    }

    /// Keeps GGUF Q8_0 as it is: `blocks` is `[vocab, d / 32]` blocks of 34 bytes, a half-precision
    /// scale (little endian) and 32 signed bytes.
    ///
    /// # Errors
    /// `d` is no multiple of 32, or the length is not that of the shape.
    pub fn from_q8_blocks(blocks: Vec<u8>, vocab: usize, d: usize) -> Result<Self, KernelError> {
        if !d.is_multiple_of(BLOCK) {
            return Err(KernelError::Multiple { what: "the width of a Q8_0 embedding", of: 32, got: d });
        }
        check_len("a Q8_0 embedding (bytes)", blocks.len(), vocab * (d / BLOCK) * BLOCK_BYTES)?;
        Ok(Self { rows: Rows::Q8(blocks), vocab, d })
    }

    /// Keeps rows as `fill` gives them, in `format`: it is called once for every row below `vocab`, in
    /// order, and writes that row's `d` numbers.
    pub fn pack_with(
        vocab: usize,
        d: usize,
        format: Format,
        mut fill: impl FnMut(usize, &mut [f32]),
    ) -> Self {
        let mut rows = match format {
            Format::F32 => Rows::F32(Vec::with_capacity(vocab * d)),
            Format::Bf16 => Rows::Bf16(Vec::with_capacity(vocab * d)),
            Format::F16 => Rows::F16(Vec::with_capacity(vocab * d)),
            Format::Q8 => Rows::Q8(Vec::with_capacity(vocab * d.div_ceil(BLOCK) * BLOCK_BYTES)),
        };
        let mut row = vec![0.0; d];
        for id in 0..vocab {
            fill(id, &mut row);
            rows.push(&row);
        }
        Self { rows, vocab, d }
    }

    /// `V`.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// The width of a row.
    pub fn d(&self) -> usize {
        self.d
    }

    /// The bytes that the table holds.
    pub fn bytes(&self) -> usize {
        match &self.rows {
            Rows::F32(rows) => size_of_val(rows.as_slice()),
            Rows::Bf16(rows) => size_of_val(rows.as_slice()),
            Rows::F16(rows) => size_of_val(rows.as_slice()),
            Rows::Q8(blocks) => blocks.len(),
        }
    }

    /// Row `id` in single precision, `[d]`.
    ///
    /// # Panics
    /// `id` is not below `V`, or `out` not `d` long.
    pub fn row_into(&self, id: u32, out: &mut [f32]) {
        assert_eq!(out.len(), self.d, "room for a row");
        let at = id as usize * self.d;
        match &self.rows {
            Rows::F32(rows) => out.copy_from_slice(&rows[at..][..self.d]),
            Rows::Bf16(rows) => out.iter_mut().zip(&rows[at..][..self.d]).for_each(|(o, r)| *o = r.to_f32()),
            Rows::F16(rows) => out.iter_mut().zip(&rows[at..][..self.d]).for_each(|(o, r)| *o = r.to_f32()),
            Rows::Q8(blocks) => {
                let bytes = self.d.div_ceil(BLOCK) * BLOCK_BYTES;
                unpack_q8(&blocks[id as usize * bytes..][..bytes], out);
            }
        }
    }

    /// `out[i] = E[ids[i]] . features`, each one sum in a fixed order: `ids` and `out` are `[k]`,
    /// `features` is `[d]`.
    ///
    /// # Panics
    /// An id is not below `V`, or a slice does not have the length of its shape.
    pub fn dot_rows(&self, ids: &[u32], features: &[f32], out: &mut [f32]) {
        assert_eq!(ids.len(), out.len(), "room for every id");
        self.dot_as(Isa::best(), ids.iter().copied(), features, out);
    }

    fn dot_as(&self, isa: Isa, ids: impl Iterator<Item = u32>, features: &[f32], out: &mut [f32]) {
        assert_eq!(features.len(), self.d, "features have the width of a row");
        // Rows of 8 bits are few, and seldom all: they are widened first, so that they give the bits
        // that single precision gives.
        let mut wide = if matches!(self.rows, Rows::Q8(_)) { vec![0.0; self.d] } else { Vec::new() };
        for (id, out) in ids.zip(out) {
            let at = id as usize * self.d;
            *out = match &self.rows {
                Rows::F32(rows) => dot_f32(isa, &rows[at..][..self.d], features),
                Rows::Bf16(rows) => dot_bf16(isa, &rows[at..][..self.d], features),
                Rows::F16(rows) => dot_f16(isa, &rows[at..][..self.d], features),
                Rows::Q8(_) => {
                    self.row_into(id, &mut wide);
                    dot_f32(isa, &wide, features)
                }
            };
        }
    }

    /// `log sum_a exp(E[a] . features)` over the whole vocabulary; NaN where a product is NaN.
    ///
    /// # Panics
    /// `features` is not `d` long.
    pub fn log_sum_exp_all(&self, features: &[f32], threads: &Threads) -> f64 {
        self.log_sum_exp_as(Isa::best(), features, threads)
    }

    fn log_sum_exp_as(&self, isa: Isa, features: &[f32], threads: &Threads) -> f64 {
        // The largest product of each part, and the sum of exponentials relative to it.
        let mut parts = vec![(f64::NEG_INFINITY, 0.0); self.vocab.div_ceil(ROWS)];
        let out = Disjoint::new(&mut parts);
        threads.for_each(self.vocab.div_ceil(ROWS), |task| {
            let from = task * ROWS;
            let mut dots = [0.0; ROWS];
            let dots = &mut dots[..(self.vocab - from).min(ROWS)];
            self.dot_as(isa, from as u32.., features, dots);
            // SAFETY: every task has its own part.
            #[allow(unsafe_code)]
            let part = unsafe { out.part(task, 1) };
            part[0] = log_sum(dots.iter().map(|&x| (f64::from(x), 1.0)));
        });
        let (max, sum) = log_sum(parts.into_iter());
        max + sum.ln()
    }

    /// `out = shares . E`, on the caller's thread: `shares` is `[n, V]`, `out` `[n, d]`, row-major. Of shares
    /// that are probabilities it is the expected row.
    ///
    /// # Panics
    /// A slice does not have the length of its shape.
    pub fn weigh_rows(&self, shares: &[f32], out: &mut [f32]) {
        self.weigh_as(Isa::best(), shares, out);
    }

    fn weigh_as(&self, isa: Isa, shares: &[f32], out: &mut [f32]) {
        let n = shares.len() / self.vocab.max(1);
        assert_eq!((shares.len(), out.len()), (n * self.vocab, n * self.d), "shares and sums for every row");
        // Rows are widened once for all sums, to whole groups of vectors.
        let width = self.d.next_multiple_of(GROUP * LANES);
        let mut rows = vec![0.0; self.vocab.min(ROWS) * width];
        let mut sums = vec![0.0; n * width];
        for from in (0..self.vocab).step_by(ROWS) {
            let ids = from..self.vocab.min(from + ROWS);
            for (id, row) in ids.clone().zip(rows.chunks_mut(width)) {
                self.row_into(id as u32, &mut row[..self.d]);
            }
            for (shares, sum) in shares.chunks(self.vocab).zip(sums.chunks_mut(width)) {
                add_rows(isa, &shares[ids.clone()], &rows, sum);
            }
        }
        for (out, sum) in out.chunks_mut(self.d).zip(sums.chunks(width)) {
            out.copy_from_slice(&sum[..self.d]);
        }
    }
}

/// The numbers of a row of Q8_0 blocks; exact.
fn unpack_q8(blocks: &[u8], out: &mut [f32]) {
    for (block, out) in blocks.chunks_exact(BLOCK_BYTES).zip(out.chunks_mut(BLOCK)) {
        let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
        out.iter_mut().zip(&block[2..]).for_each(|(o, &w)| *o = scale * f32::from(w as i8));
    }
}

impl Rows {
    fn push(&mut self, row: &[f32]) {
        match self {
            Self::F32(rows) => rows.extend_from_slice(row),
            Self::Bf16(rows) => rows.extend(row.iter().map(|&x| bf16::from_f32(x))),
            Self::F16(rows) => rows.extend(row.iter().map(|&x| f16::from_f32(x))),
            Self::Q8(blocks) => {
                for block in row.chunks(BLOCK) {
                    let (scale, weights) = q8_block(block);
                    blocks.extend(scale.to_le_bytes());
                    blocks.extend(weights.map(|w| w as u8));
                }
            }
        }
    }
}

/// `sum weight * exp(x)` as `exp(max) * sum`.
fn log_sum(terms: impl Iterator<Item = (f64, f64)> + Clone) -> (f64, f64) {
    let max = terms.clone().fold(f64::NEG_INFINITY, |max, (x, _)| max.max(x));
    (max, terms.map(|(x, weight)| weight * (x - max).exp()).sum())
}

simd_fn!(fn add_rows(shares: &[f32], rows: &[f32], sum: &mut [f32]) = add_rows_body);
simd_fn!(fn dot_f32(row: &[f32], features: &[f32]) -> f32 = dot_f32_body);
simd_fn!(fn dot_bf16(row: &[bf16], features: &[f32]) -> f32 = dot_bf16_body);
simd_fn!(fn dot_f16(row: &[f16], features: &[f32]) -> f32 = dot_f16_body);

/// `sum += shares . rows`: `shares` is `[n]`, `rows` at least `[n, width]`, `sum` `[width]`, the width whole groups.
#[inline(always)]
fn add_rows_body<L: Lanes>(l: L, shares: &[f32], rows: &[f32], sum: &mut [f32]) {
    let width = sum.len();
    let groups = sum.as_chunks_mut::<LANES>().0.as_chunks_mut::<GROUP>().0;
    for (at, group) in groups.iter_mut().enumerate() {
        let mut sums = [l.splat(0.0); GROUP];
        for (&share, row) in shares.iter().zip(rows.chunks_exact(width)) {
            let share = l.splat(share);
            let row = &row.as_chunks::<LANES>().0.as_chunks::<GROUP>().0[at];
            for (sum, row) in sums.iter_mut().zip(row) {
                *sum = l.fma(share, l.load(row), *sum);
            }
        }
        for (out, sum) in group.iter_mut().zip(sums) {
            l.store(out, l.add(l.load(out), sum));
        }
    }
}

#[inline(always)]
fn dot_f32_body<L: Lanes>(l: L, row: &[f32], features: &[f32]) -> f32 {
    dot(l, row, features)
}

#[inline(always)]
fn dot_bf16_body<L: Lanes>(l: L, row: &[bf16], features: &[f32]) -> f32 {
    dot(l, row, features)
}

#[inline(always)]
fn dot_f16_body<L: Lanes>(l: L, row: &[f16], features: &[f32]) -> f32 {
    dot(l, row, features)
}

/// A number that widens to single precision exactly.
trait Widen: Copy {
    const ZERO: Self;
    fn widen<L: Lanes>(l: L, from: &[Self; LANES]) -> L::V;
}

impl Widen for f32 {
    const ZERO: Self = 0.0;
    #[inline(always)]
    fn widen<L: Lanes>(l: L, from: &[Self; LANES]) -> L::V {
        l.load(from)
    }
}

impl Widen for bf16 {
    const ZERO: Self = bf16::ZERO;
    #[inline(always)]
    fn widen<L: Lanes>(l: L, from: &[Self; LANES]) -> L::V {
        l.bf16(from)
    }
}

impl Widen for f16 {
    const ZERO: Self = f16::ZERO;
    #[inline(always)]
    fn widen<L: Lanes>(l: L, from: &[Self; LANES]) -> L::V {
        l.f16(from)
    }
}

#[inline(always)]
fn dot<L: Lanes, T: Widen>(l: L, row: &[T], features: &[f32]) -> f32 {
    let mut sums = [l.splat(0.0); 2];
    let (row, row_rest) = row.as_chunks::<LANES>();
    let (features, features_rest) = features.as_chunks::<LANES>();
    let ((row, row_odd), (features, features_odd)) = (row.as_chunks::<2>(), features.as_chunks::<2>());
    for (row, features) in row.iter().zip(features) {
        for ((row, features), sum) in row.iter().zip(features).zip(&mut sums) {
            *sum = l.fma(T::widen(l, row), l.load(features), *sum);
        }
    }
    for (row, features) in row_odd.iter().zip(features_odd) {
        sums[0] = l.fma(T::widen(l, row), l.load(features), sums[0]);
    }
    let mut rest = [T::ZERO; LANES];
    rest[..row_rest.len()].copy_from_slice(row_rest);
    let rest = l.mul(T::widen(l, &rest), l.load_part(features_rest, 0.0));
    l.sum(l.add(l.add(sums[0], sums[1]), rest))
}

#[cfg(test)]
#[path = "embedding_tests.rs"]
mod tests;
