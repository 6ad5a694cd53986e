//! Rotary position embedding.

use crate::simd::{Isa, LANES, Lanes, simd_fn};

/// Rotates every head of every row by its position, in place (Su et al., 2021; the form of
/// transformers, where element `i` pairs with `i + head_dim / 2`).
///
/// `x` is `[rows, heads * head_dim]`, `positions` `[rows]`, `cos` and `sin`
/// `[max_position, head_dim / 2]`.
///
/// # Panics
/// A slice does not have the length of its shape, or a position lies outside the tables.
pub fn rope(x: &mut [f32], positions: &[u32], cos: &[f32], sin: &[f32], heads: usize, head_dim: usize) {
    assert!(head_dim > 0 && head_dim.is_multiple_of(2), "the elements of a head come in pairs");
    assert_eq!(x.len(), positions.len() * heads * head_dim, "a row for every position");
    assert_eq!(cos.len(), sin.len(), "both tables have one shape");
    rotate(Isa::best(), x, positions, cos, sin, head_dim);
}

simd_fn!(
    fn rotate(x: &mut [f32], positions: &[u32], cos: &[f32], sin: &[f32], head_dim: usize) = rotate_body
);

#[inline(always)]
fn rotate_body<L: Lanes>(l: L, x: &mut [f32], positions: &[u32], cos: &[f32], sin: &[f32], head_dim: usize) {
    let half = head_dim / 2;
    let width = x.len() / positions.len().max(1);
    for (row, &position) in x.chunks_exact_mut(width.max(1)).zip(positions) {
        let at = position as usize * half;
        let (cos, cos_rest) = cos[at..][..half].as_chunks::<LANES>();
        let (sin, sin_rest) = sin[at..][..half].as_chunks::<LANES>();
        for head in row.chunks_exact_mut(head_dim) {
            let (low, high) = head.split_at_mut(half);
            let (low, low_rest) = low.as_chunks_mut::<LANES>();
            let (high, high_rest) = high.as_chunks_mut::<LANES>();
            for (((low, high), cos), sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
                let (a, b) = pair(l, l.load(low), l.load(high), l.load(cos), l.load(sin));
                l.store(low, a);
                l.store(high, b);
            }
            if !low_rest.is_empty() {
                let part = |x: &[f32]| l.load_part(x, 0.0);
                let (a, b) = pair(l, part(low_rest), part(high_rest), part(cos_rest), part(sin_rest));
                l.store_part(low_rest, a);
                l.store_part(high_rest, b);
            }
        }
    }
}

#[inline(always)]
fn pair<L: Lanes>(l: L, a: L::V, b: L::V, cos: L::V, sin: L::V) -> (L::V, L::V) {
    let minus_b = l.sub(l.splat(0.0), b);
    (l.fma(minus_b, sin, l.mul(a, cos)), l.fma(a, sin, l.mul(b, cos)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_form_rotates_and_gives_the_same_bits(
            half in 1usize..80, heads in 1usize..4, positions in proptest::collection::vec(0u32..20, 1..4),
        ) {
            let angle = |position: usize, i: usize| position as f64 * 0.37f64.powi(i as i32 % 7);
            let table = |f: fn(f64) -> f64| -> Vec<f32> {
                (0..20 * half).map(|i| f(angle(i / half, i % half)) as f32).collect()
            };
            let (cos, sin) = (table(f64::cos), table(f64::sin));
            let x: Vec<f32> = (0..positions.len() * heads * half * 2).map(|i| (i as f32 * 0.7).sin()).collect();
            let mut first = None;
            for isa in Isa::all() {
                let mut out = x.clone();
                rotate(isa, &mut out, &positions, &cos, &sin, 2 * half);
                for (h, (got, x)) in out.chunks(2 * half).zip(x.chunks(2 * half)).enumerate() {
                    for i in 0..half {
                        let (s, c) = angle(positions[h / heads] as usize, i).sin_cos();
                        let (a, b) = (f64::from(x[i]), f64::from(x[i + half]));
                        prop_assert!((f64::from(got[i]) - (a * c - b * s)).abs() < 1e-5);
                        prop_assert!((f64::from(got[i + half]) - (b * c + a * s)).abs() < 1e-5);
                    }
                }
                let bits: Vec<u32> = out.iter().map(|x| x.to_bits()).collect();
                prop_assert_eq!(first.get_or_insert_with(|| bits.clone()), &bits);
            }
        }
    }
}
