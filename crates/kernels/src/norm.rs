//! Root-mean-square norm of rows.

use crate::simd::fold::{fold, sum4};
use crate::simd::{Isa, LANES, Lanes, simd_fn};

/// `out = x / sqrt(mean(x^2) + eps) * weight`, row by row: `x` and `out` are `[rows, d]`, `weight`
/// `[d]` (Zhang and Sennrich, 2019; the order of operations is that of Llama in transformers).
///
/// # Panics
/// The slices do not hold the same whole number of rows.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let d = weight.len();
    assert!(d > 0 && x.len().is_multiple_of(d), "an input holds whole rows");
    assert_eq!(x.len(), out.len(), "an output has the shape of its input");
    rows(Isa::best(), x, weight, eps, out);
}

simd_fn!(fn rows(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) = rows_body);

#[inline(always)]
fn rows_body<L: Lanes>(l: L, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let d = weight.len();
    let (weights, weights_rest) = weight.as_chunks::<LANES>();
    for (x, out) in x.chunks_exact(d).zip(out.chunks_exact_mut(d)) {
        let (chunks, rest) = x.as_chunks::<LANES>();
        let mut squares = [l.splat(0.0); 4];
        fold!(l, chunks, squares, |sum, v| l.fma(v, v, *sum));
        let rest_v = l.load_part(rest, 0.0);
        squares[3] = l.fma(rest_v, rest_v, squares[3]);
        let total = sum4(l, squares);
        let scale = l.splat(1.0 / (total / d as f32 + eps).sqrt());

        let (out, out_rest) = out.as_chunks_mut::<LANES>();
        for ((chunk, weight), out) in chunks.iter().zip(weights).zip(out) {
            l.store(out, l.mul(l.mul(l.load(chunk), scale), l.load(weight)));
        }
        let rest = l.mul(l.mul(rest_v, scale), l.load_part(weights_rest, 0.0));
        l.store_part(out_rest, rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_form_gives_the_norm_and_the_same_bits(
            x in proptest::collection::vec(-3.0f32..3.0, 1..300), rows_before in 0usize..3,
        ) {
            let weight: Vec<f32> = x.iter().map(|x| 1.0 + 0.1 * x).collect();
            let mean = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / x.len() as f64;
            let company = [vec![0.5; rows_before * x.len()], x.clone()].concat();
            let mut first = None;
            for isa in Isa::all() {
                let mut out = vec![0.0; company.len()];
                rows(isa, &company, &weight, 1e-5, &mut out);
                let row = &out[rows_before * x.len()..];
                for ((got, x), w) in row.iter().zip(&x).zip(&weight) {
                    let want = f64::from(*x) / (mean + 1e-5).sqrt() * f64::from(*w);
                    prop_assert!((f64::from(*got) - want).abs() < 1e-5, "{got} {want}");
                }
                let bits: Vec<u32> = row.iter().map(|x| x.to_bits()).collect();
                prop_assert_eq!(first.get_or_insert_with(|| bits.clone()), &bits);
            }
        }
    }
}
