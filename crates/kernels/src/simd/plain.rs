//! The form without SIMD: it defines what the others must give.

use half::{bf16, f16};

use super::{LANES, Lanes};

/// Arrays of sixteen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plain;

type V = [f32; LANES];

#[inline(always)]
fn map2(a: V, b: V, f: impl Fn(f32, f32) -> f32) -> V {
    std::array::from_fn(|i| f(a[i], b[i]))
}

#[inline(always)]
fn tree(mut v: V, f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for i in 0..width {
            v[i] = f(v[i], v[i + width]);
        }
    }
    v[0]
}

impl Lanes for Plain {
    type V = V;
    const TILE_ROWS: usize = 2;

    #[inline(always)]
    fn prefetch<T>(self, _at: *const T) {}
    #[inline(always)]
    fn splat(self, x: f32) -> V {
        [x; LANES]
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> V {
        *from
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; LANES], v: V) {
        *to = v;
    }
    #[inline(always)]
    fn bf16_pair(self, from: &[u32; LANES]) -> (V, V) {
        (from.map(|w| f32::from_bits(w << 16)), from.map(|w| f32::from_bits(w & 0xffff_0000)))
    }
    #[inline(always)]
    fn f16_pair(self, from: &[u32; LANES]) -> (V, V) {
        let one = |i: usize| f16::from_bits((from[i / 2] >> (16 * (i % 2))) as u16).to_f32();
        (std::array::from_fn(one), std::array::from_fn(|i| one(i + LANES)))
    }
    #[inline(always)]
    fn bf16(self, from: &[bf16; LANES]) -> V {
        from.map(|x| f32::from_bits(u32::from(x.to_bits()) << 16))
    }
    #[inline(always)]
    fn f16(self, from: &[f16; LANES]) -> V {
        from.map(f16::to_f32)
    }
    #[inline(always)]
    fn bits(self, from: &[u32; LANES]) -> V {
        from.map(f32::from_bits)
    }
    #[inline(always)]
    fn store_bits(self, to: &mut [u32; LANES], v: V) {
        *to = v.map(f32::to_bits);
    }
    #[inline(always)]
    fn add(self, a: V, b: V) -> V {
        map2(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: V, b: V) -> V {
        map2(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: V, b: V) -> V {
        map2(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: V, b: V) -> V {
        map2(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn fma(self, a: V, b: V, c: V) -> V {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    fn min(self, a: V, b: V) -> V {
        map2(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn max(self, a: V, b: V) -> V {
        map2(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn exp2_whole(self, n: V) -> V {
        n.map(|n| f32::from_bits(((n as i32).wrapping_add(127) as u32) << 23))
    }
    #[inline(always)]
    fn zero_below(self, v: V, x: V, low: V) -> V {
        std::array::from_fn(|i| if x[i] < low[i] { 0.0 } else { v[i] })
    }
    #[inline(always)]
    fn above(self, a: V, b: V) -> u32 {
        (0..LANES).fold(0, |mask, i| mask | u32::from(a[i] > b[i]) << i)
    }
    #[inline(always)]
    fn sum(self, v: V) -> f32 {
        tree(v, |a, b| a + b)
    }
    #[inline(always)]
    fn largest(self, v: V) -> f32 {
        tree(v, |a, b| if a > b { a } else { b })
    }
}
