//! Row-major embeddings: looked up by id, and multiplied row by row.

use half::{bf16, f16};

use crate::disjoint::Disjoint;
use crate::error::check_len;
use crate::simd::{Isa, LANES, Lanes, simd_fn};
use crate::{KernelError, Threads};

/// Rows of the vocabulary that one task multiplies. Fixed, so that a sum over the vocabulary has one
/// order for any number of threads.
const ROWS: usize = 256;

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
}

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
        for (id, out) in ids.zip(out) {
            let at = id as usize * self.d;
            *out = match &self.rows {
                Rows::F32(rows) => dot_f32(isa, &rows[at..][..self.d], features),
                Rows::Bf16(rows) => dot_bf16(isa, &rows[at..][..self.d], features),
                Rows::F16(rows) => dot_f16(isa, &rows[at..][..self.d], features),
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
}

/// `sum weight * exp(x)` as `exp(max) * sum`.
fn log_sum(terms: impl Iterator<Item = (f64, f64)> + Clone) -> (f64, f64) {
    let max = terms.clone().fold(f64::NEG_INFINITY, |max, (x, _)| max.max(x));
    (max, terms.map(|(x, weight)| weight * (x - max).exp()).sum())
}

simd_fn!(fn dot_f32(row: &[f32], features: &[f32]) -> f32 = dot_f32_body);
simd_fn!(fn dot_bf16(row: &[bf16], features: &[f32]) -> f32 = dot_bf16_body);
simd_fn!(fn dot_f16(row: &[f16], features: &[f32]) -> f32 = dot_f16_body);

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
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    fn tables(seed: u64, vocab: usize, d: usize) -> [EmbeddingTable; 3] {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let rows: Vec<f32> = (0..vocab * d).map(|_| rng.random_range(-1.0f32..1.0)).collect();
        let short = rows.iter().map(|&x| bf16::from_f32(x)).collect();
        let half = rows.iter().map(|&x| f16::from_f32(x)).collect();
        [
            EmbeddingTable::from_f32(rows, vocab, d).unwrap(),
            EmbeddingTable::from_bf16(short, vocab, d).unwrap(),
            EmbeddingTable::from_f16(half, vocab, d).unwrap(),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn every_form_multiplies_and_gives_the_same_bits(seed: u64, vocab in 1usize..700, d in 1usize..150) {
            for table in tables(seed, vocab, d) {
                let features: Vec<f32> = (0..d).map(|i| (i as f32).sin()).collect();
                let mut row = vec![0.0; d];
                let want: Vec<f64> = (0..vocab as u32).map(|id| {
                    table.row_into(id, &mut row);
                    row.iter().zip(&features).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
                }).collect();
                let lse = want.iter().map(|x| x.exp()).sum::<f64>().ln();
                let mut first = None;
                for isa in Isa::all() {
                    let mut out = vec![0.0; vocab];
                    table.dot_as(isa, 0.., &features, &mut out);
                    prop_assert!(out.iter().zip(&want).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-4));
                    let sums: Vec<u64> = (1..4).map(|count| {
                        table.log_sum_exp_as(isa, &features, &Threads::new(count).unwrap()).to_bits()
                    }).collect();
                    prop_assert!((f64::from_bits(sums[0]) - lse).abs() < 1e-5);
                    let bits: Vec<u32> = out.iter().map(|x| x.to_bits()).collect();
                    prop_assert!(sums.iter().all(|s| *s == sums[0]));
                    prop_assert_eq!(first.get_or_insert_with(|| (bits.clone(), sums[0])), &(bits, sums[0]));
                }
            }
        }
    }

    #[test]
    fn a_wrong_length_is_refused() {
        assert!(EmbeddingTable::from_f32(vec![0.0; 11], 3, 4).is_err());
    }
}
