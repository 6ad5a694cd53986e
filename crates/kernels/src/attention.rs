//! Attention of packed rows over the paged key-value cache, in place.
//!
//! A row's softmax runs over its own positions in tiles of a fixed length from the first position
//! it sees, so that its bits depend on nothing but its own sequence: not on the rows beside it, on
//! the chunking of a prefill, or on the threads.

use crate::Threads;
use crate::disjoint::Disjoint;
use crate::simd::{Isa, LANES, Lanes, exp::exp, simd_fn};

/// Positions of a tile; two vectors of scores.
const TILE: usize = 2 * LANES;

/// What all rows of a call share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionShape {
    /// Query heads; a multiple of `kv_heads`.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// The size of a head, up to 512.
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
    threads: &Threads,
) {
    attention_as(Isa::best(), q, k, v, rows, shape, out, threads);
}

#[allow(clippy::too_many_arguments)]
fn attention_as(
    isa: Isa,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    rows: &[AttentionRow<'_>],
    shape: &AttentionShape,
    out: &mut [f32],
    threads: &Threads,
) {
    let width = shape.heads * shape.head_dim;
    assert!(shape.kv_heads > 0 && shape.heads.is_multiple_of(shape.kv_heads), "groups of heads are equal");
    assert!((1..=MOST_DIM).contains(&shape.head_dim) && shape.block_size > 0, "a head has 1 to 512 numbers");
    assert_eq!(q.len(), rows.len() * width, "a query has a row for every position");
    assert_eq!(out.len(), q.len(), "an output has the shape of its query");
    assert_eq!(k.len(), v.len(), "keys and values have one shape");
    let group = shape.heads / shape.kv_heads;
    let out = Disjoint::new(out);
    let work = |task: usize| {
        let (row, kv_head) = (task / shape.kv_heads, task % shape.kv_heads);
        let at = row * width + kv_head * group * shape.head_dim;
        let len = group * shape.head_dim;
        // SAFETY: every task has its own row and group of heads.
        #[allow(unsafe_code)]
        let out = unsafe { out.part(at, len) };
        attend(isa, &q[at..][..len], k, v, &rows[row], shape, kv_head, out);
    };
    let tasks = rows.len() * shape.kv_heads;
    // Waking a thread costs as much as some tens of thousands of multiply-adds.
    let seen: usize = rows.iter().map(|row| row.position + 1).sum();
    if seen * width < 64 * 1024 {
        (0..tasks).for_each(work);
    } else {
        threads.for_each(tasks, work);
    }
}

const MOST_DIM: usize = 512;

simd_fn!(
    /// One row and one group of heads: `q` and `out` are `[group, head_dim]`.
    fn attend(
        q: &[f32], k: &[f32], v: &[f32], row: &AttentionRow<'_>, shape: &AttentionShape, kv_head: usize, out: &mut [f32],
    ) = attend_body
);

#[allow(clippy::too_many_arguments)]
#[inline(always)]
fn attend_body<L: Lanes>(
    l: L,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    row: &AttentionRow<'_>,
    shape: &AttentionShape,
    kv_head: usize,
    out: &mut [f32],
) {
    // Heads of whole vectors keep their query and sums in registers.
    match shape.head_dim {
        64 => heads::<L, 4, true>(l, q, k, v, row, shape, kv_head, out),
        128 => heads::<L, 8, true>(l, q, k, v, row, shape, kv_head, out),
        1..64 => heads::<L, 4, false>(l, q, k, v, row, shape, kv_head, out),
        65..128 => heads::<L, 8, false>(l, q, k, v, row, shape, kv_head, out),
        129..=256 => heads::<L, 16, false>(l, q, k, v, row, shape, kv_head, out),
        _ => heads::<L, 32, false>(l, q, k, v, row, shape, kv_head, out),
    }
}

/// Heads that share one reading of the keys and values.
const TOGETHER: usize = 8;

/// `D` vectors hold a head; `FULL`: exactly.
#[allow(clippy::too_many_arguments)]
#[inline(always)]
fn heads<L: Lanes, const D: usize, const FULL: bool>(
    l: L,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    row: &AttentionRow<'_>,
    shape: &AttentionShape,
    kv_head: usize,
    out: &mut [f32],
) {
    let dim = if FULL { D * LANES } else { shape.head_dim };
    let first = shape.window.map_or(0, |window| (row.position + 1).saturating_sub(window));
    let scale = l.splat(1.0 / (dim as f32).sqrt());
    out.fill(0.0);
    for (q, out) in q.chunks(TOGETHER * dim).zip(out.chunks_mut(TOGETHER * dim)) {
        let mut largest = [f32::NEG_INFINITY; TOGETHER];
        let mut weight_sums = [[0.0; LANES]; TOGETHER];
        let mut start = first;
        while start <= row.position {
            let len = (row.position + 1 - start).min(TILE);
            let mut offsets = [0; TILE];
            for (i, offset) in (start..).zip(&mut offsets[..len]) {
                let slot =
                    row.blocks[i / shape.block_size] as usize * shape.block_size + i % shape.block_size;
                *offset = (slot * shape.kv_heads + kv_head) * dim;
            }
            for (h, (q, out)) in q.chunks_exact(dim).zip(out.chunks_exact_mut(dim)).enumerate() {
                let query = load_scaled::<L, D, FULL>(l, q, scale);
                let mut scores = [[f32::NEG_INFINITY; LANES]; 2];
                for (scores, offsets) in scores.iter_mut().zip(offsets[..len].chunks(LANES)) {
                    let mut products = [l.splat(0.0); LANES];
                    for (product, &offset) in products.iter_mut().zip(offsets) {
                        let key = load_head::<L, D, FULL>(l, &k[offset..][..dim]);
                        *product = l.mul(query[0], key[0]);
                        for d in 1..D {
                            *product = l.fma(query[d], key[d], *product);
                        }
                    }
                    l.store(scores, l.sums(&products));
                    scores[offsets.len()..].fill(f32::NEG_INFINITY);
                }
                // Online softmax (Milakov and Gimelshein, 2018): what is summed so far shrinks
                // when a larger score comes.
                let (a, b) = (l.load(&scores[0]), l.load(&scores[1]));
                let limit = largest[h].max(l.largest(l.max(a, b)));
                let shrink = exp(l, l.splat(largest[h] - limit));
                largest[h] = limit;
                let (a, b) = (exp(l, l.sub(a, l.splat(limit))), exp(l, l.sub(b, l.splat(limit))));
                l.store(&mut scores[0], a);
                l.store(&mut scores[1], b);
                let weights = l.fma(l.load(&weight_sums[h]), shrink, l.add(a, b));
                l.store(&mut weight_sums[h], weights);

                let mut sums = load_scaled::<L, D, FULL>(l, out, shrink);
                for (&weight, &offset) in scores.as_flattened().iter().zip(&offsets[..len]) {
                    let value = load_head::<L, D, FULL>(l, &v[offset..][..dim]);
                    let weight = l.splat(weight);
                    for d in 0..D {
                        sums[d] = l.fma(weight, value[d], sums[d]);
                    }
                }
                store_head::<L, D, FULL>(l, out, sums);
            }
            start += len;
        }
        for (out, weights) in out.chunks_exact_mut(dim).zip(&weight_sums) {
            let total = l.splat(l.sum(l.load(weights)));
            let mut sums = load_head::<L, D, FULL>(l, out);
            for sum in &mut sums {
                *sum = l.div(*sum, total);
            }
            store_head::<L, D, FULL>(l, out, sums);
        }
    }
}

/// [`load_head`] times `scale`.
#[inline(always)]
fn load_scaled<L: Lanes, const D: usize, const FULL: bool>(l: L, from: &[f32], scale: L::V) -> [L::V; D] {
    let mut head = load_head::<L, D, FULL>(l, from);
    for v in &mut head {
        *v = l.mul(*v, scale);
    }
    head
}

#[inline(always)]
fn load_head<L: Lanes, const D: usize, const FULL: bool>(l: L, from: &[f32]) -> [L::V; D] {
    let mut head = [l.splat(0.0); D];
    if FULL {
        let (whole, _) = from.as_chunks::<LANES>();
        for d in 0..D {
            head[d] = l.load(&whole[d]);
        }
    } else {
        for (part, v) in from.chunks(LANES).zip(&mut head) {
            *v = l.load_part(part, 0.0);
        }
    }
    head
}

#[inline(always)]
fn store_head<L: Lanes, const D: usize, const FULL: bool>(l: L, to: &mut [f32], head: [L::V; D]) {
    if FULL {
        let (whole, _) = to.as_chunks_mut::<LANES>();
        for d in 0..D {
            l.store(&mut whole[d], head[d]);
        }
    } else {
        for (part, v) in to.chunks_mut(LANES).zip(head) {
            l.store_part(part, v);
        }
    }
}

/// Writes each row of `new`, `[rows, width]`, into its slot of a cache side, `[slots, width]`.
///
/// # Panics
/// A slot lies outside the cache, or `new` does not hold whole rows.
pub fn write_kv(cache: &mut [f32], new: &[f32], slots: &[usize]) {
    let width = new.len() / slots.len().max(1);
    assert_eq!(new.len(), width * slots.len(), "every slot gets a whole row");
    for (row, &slot) in new.chunks_exact(width.max(1)).zip(slots) {
        cache[slot * width..][..width].copy_from_slice(row);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    struct Case {
        shape: AttentionShape,
        q: Vec<f32>,
        k: Vec<f32>,
        v: Vec<f32>,
        tables: Vec<Vec<u32>>,
        positions: Vec<usize>,
    }

    fn case(seed: u64, head_dim: usize, group: usize, window: Option<usize>) -> Case {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let kv_heads = rng.random_range(1..3);
        let shape = AttentionShape {
            heads: kv_heads * group,
            kv_heads,
            head_dim,
            block_size: rng.random_range(1..20),
            window,
        };
        let positions: Vec<usize> = (0..4).map(|_| rng.random_range(0..100)).collect();
        let mut blocks: Vec<u32> =
            (0..positions.iter().map(|p| (p / shape.block_size + 1) as u32).sum()).collect();
        for i in (1..blocks.len()).rev() {
            blocks.swap(i, rng.random_range(0..=i));
        }
        let slots = blocks.len() * shape.block_size;
        let mut numbers = |n: usize| -> Vec<f32> { (0..n).map(|_| rng.random_range(-2.0..2.0)).collect() };
        let q = numbers(positions.len() * shape.heads * head_dim);
        let (k, v) = (numbers(slots * kv_heads * head_dim), numbers(slots * kv_heads * head_dim));
        let tables =
            positions.iter().map(|p| blocks.split_off(blocks.len() - p / shape.block_size - 1)).collect();
        Case { shape, q, k, v, tables, positions }
    }

    impl Case {
        fn rows(&self) -> Vec<AttentionRow<'_>> {
            let rows = self.positions.iter().zip(&self.tables);
            rows.map(|(&position, blocks)| AttentionRow { position, blocks }).collect()
        }

        fn run(&self, isa: Isa, threads: usize) -> Vec<f32> {
            let mut out = vec![f32::NAN; self.q.len()];
            let threads = Threads::new(threads).unwrap();
            attention_as(isa, &self.q, &self.k, &self.v, &self.rows(), &self.shape, &mut out, &threads);
            out
        }

        fn expected(&self) -> Vec<f64> {
            let (shape, mut out) = (&self.shape, Vec::new());
            let dim = shape.head_dim;
            for (r, row) in self.rows().iter().enumerate() {
                let first = shape.window.map_or(0, |w| (row.position + 1).saturating_sub(w));
                for h in 0..shape.heads {
                    let q = &self.q[(r * shape.heads + h) * dim..][..dim];
                    let at = |i: usize| {
                        let slot = row.blocks[i / shape.block_size] as usize * shape.block_size
                            + i % shape.block_size;
                        (slot * shape.kv_heads + h / (shape.heads / shape.kv_heads)) * dim
                    };
                    let dot = |i| {
                        q.iter()
                            .zip(&self.k[at(i)..])
                            .map(|(a, b)| f64::from(*a) * f64::from(*b))
                            .sum::<f64>()
                    };
                    let weights: Vec<f64> =
                        (first..=row.position).map(|i| (dot(i) / (dim as f64).sqrt()).exp()).collect();
                    let total: f64 = weights.iter().sum();
                    out.extend((0..dim).map(|d| {
                        let values = (first..=row.position).map(|i| f64::from(self.v[at(i) + d]));
                        values.zip(&weights).map(|(v, w)| v * w / total).sum::<f64>()
                    }));
                }
            }
            out
        }
    }

    fn bits(x: &[f32]) -> Vec<u32> {
        x.iter().map(|x| x.to_bits()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn every_form_attends_as_in_double_precision_with_the_same_bits(
            seed: u64, dim in prop_oneof![Just(64usize), Just(128), 1usize..300], group in 1usize..11,
            window in proptest::option::of(1usize..60),
        ) {
            let case = case(seed, dim, group, window);
            let first = case.run(Isa::all()[0], 1);
            for (got, want) in first.iter().zip(case.expected()) {
                prop_assert!((f64::from(*got) - want).abs() < 1e-5, "{got} {want}");
            }
            for isa in &Isa::all()[1..] {
                prop_assert_eq!(bits(&case.run(*isa, 1)), bits(&first));
            }
        }
    }

    #[test]
    fn company_and_threads_change_no_bit() {
        for seed in 0..8 {
            let case = case(seed, 64, 4, None);
            let together = case.run(Isa::best(), 1);
            assert_eq!(bits(&case.run(Isa::best(), 3)), bits(&together));
            let width = case.shape.heads * case.shape.head_dim;
            for (r, row) in case.rows().iter().enumerate() {
                let mut out = vec![0.0; width];
                let (q, threads) = (&case.q[r * width..][..width], Threads::new(1).unwrap());
                paged_attention(q, &case.k, &case.v, &[*row], &case.shape, &mut out, &threads);
                assert_eq!(bits(&out), bits(&together[r * width..][..width]));
            }
        }
    }

    #[test]
    fn rows_go_to_their_slots() {
        let mut cache = [0.0; 8];
        write_kv(&mut cache, &[1.0, 2.0, 3.0, 4.0], &[3, 0]);
        assert_eq!(cache, [3.0, 4.0, 0.0, 0.0, 0.0, 0.0, 1.0, 2.0]);
    }
}
