//! The exponential function over lanes.

use super::Lanes;

/// Below it the result is 0, above [`HIGH`] it stays at `exp(HIGH)`.
const LOW: f32 = -87.336_54;
const HIGH: f32 = 88.02;

/// `e^x` to about one unit in the last place; 0 below -87.3, NaN for NaN.
///
/// `x = n ln 2 + r` with `|r| <= ln 2 / 2` (Cody and Waite's two-part reduction), and the Taylor
/// sum of `e^r` to the seventh power.
#[inline(always)]
pub(crate) fn exp<L: Lanes>(l: L, x: L::V) -> L::V {
    let low = l.splat(LOW);
    // The number stands last: NaN passes through both limits.
    let limited = l.max(low, l.min(l.splat(HIGH), x));
    // 1.5 * 2^23: adding it rounds to a whole number.
    let round = l.splat(12_582_912.0);
    let n = l.sub(l.fma(limited, l.splat(std::f32::consts::LOG2_E), round), round);
    let r = l.fma(n, l.splat(-0.693_359_4), limited);
    let r = l.fma(n, l.splat(2.121_944_4e-4), r);
    let mut p = l.splat(1.0 / 5040.0);
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = l.fma(p, r, l.splat(c));
    }
    l.zero_below(l.mul(p, l.exp2_whole(n)), x, low)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Isa, LANES, simd_fn};

    #[inline(always)]
    fn body<L: Lanes>(l: L, x: &[f32; LANES], out: &mut [f32; LANES]) {
        l.store(out, exp(l, l.load(x)));
    }
    simd_fn!(fn exp16(x: &[f32; LANES], out: &mut [f32; LANES]) = body);

    #[test]
    fn it_is_close_everywhere_and_the_same_in_every_form() {
        for step in -8800..8700i32 {
            let x: [f32; LANES] = std::array::from_fn(|i| step as f32 * 0.01 + i as f32 * 0.0007);
            let mut first = None;
            for isa in Isa::all() {
                let mut out = [0.0; LANES];
                exp16(isa, &x, &mut out);
                for (x, y) in x.iter().zip(out) {
                    let want = f64::from(*x).exp();
                    assert!((f64::from(y) - want).abs() <= want * 2e-7 + 1.2e-38, "{x} {y} {want}");
                }
                assert_eq!(*first.get_or_insert(out.map(f32::to_bits)), out.map(f32::to_bits));
            }
        }
    }

    #[test]
    fn its_ends_are_sound() {
        for isa in Isa::all() {
            let mut x = [0.0; LANES];
            x[..6].copy_from_slice(&[f32::NEG_INFINITY, -200.0, f32::NAN, 200.0, -88.0, 0.0]);
            let mut out = [0.0; LANES];
            exp16(isa, &x, &mut out);
            assert_eq!(&out[..2], &[0.0, 0.0]);
            assert!(out[2].is_nan() && out[3] > 1e38 && out[3].is_finite());
            assert_eq!(&out[4..6], &[0.0, 1.0]);
        }
    }
}
