//! The product with 8-bit weights.
//!
//! The input is quantised too, in the same blocks of 32, but to 15 bits: `x = scale * (128 hi + lo)`
//! with `hi` and `lo` signed bytes. Two integer products (VNNI) then give a block's sum exactly, at
//! a quarter of the instructions that widening the weights to floats would take, and the input
//! loses nothing beside what the weights' 8 bits lose. Integer sums have no order; the blocks are
//! added in order, by fused multiply-adds.

use super::Layer;
use super::panels::{BLOCK, BLOCK_LINES, Line};
use crate::disjoint::Disjoint;
use crate::simd::{LANES, Lanes, Plain, simd_fn};

/// How many lines ahead of the sums memory is asked for.
const AHEAD: usize = 48;
/// `128 * 127`: the largest quantised input.
const LARGEST: f32 = 16256.0;

/// `1.5 * 2^23`: adding it rounds to the nearest whole number, ties to even, and leaves that number
/// in the low bits.
const ROUND: f32 = 12_582_912.0;

/// 32 inputs of one row.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(16))]
pub(super) struct Inputs {
    /// `128 hi + lo`.
    whole: [i16; BLOCK],
    /// From -127 to 127.
    hi: [i8; BLOCK],
    /// From -64 to 63.
    lo: [i8; BLOCK],
    /// What `whole` is multiplied by; NaN where an input is not finite.
    scale: f32,
    /// `128 * sum(whole)`, which the weights' offset of 128 adds too much.
    offset: i32,
}

impl Inputs {
    const ZERO: Self = Self { whole: [0; BLOCK], hi: [0; BLOCK], lo: [0; BLOCK], scale: 0.0, offset: 0 };
}

/// Quantises `x`, `[rows, n_in]`, into `[rows, n_in / 32]` blocks, the last of a row zero padded.
pub(super) fn quantize(isa: crate::simd::Isa, x: &[f32], n_in: usize) -> Vec<Inputs> {
    let mut blocks = vec![Inputs::ZERO; x.len() / n_in * n_in.div_ceil(BLOCK)];
    quantize_rows(isa, x, n_in, &mut blocks);
    blocks
}

simd_fn!(fn quantize_rows(x: &[f32], n_in: usize, blocks: &mut [Inputs]) = quantize_body);

#[inline(always)]
fn quantize_body<L: Dot>(l: L, x: &[f32], n_in: usize, blocks: &mut [Inputs]) {
    for (x, blocks) in x.chunks_exact(n_in).zip(blocks.chunks_exact_mut(n_in.div_ceil(BLOCK))) {
        let (full, rest) = x.as_chunks::<BLOCK>();
        for (x, block) in full.iter().zip(blocks.iter_mut()) {
            quantize_block(l, x, block);
        }
        if let ([.., block], false) = (blocks, rest.is_empty()) {
            let mut padded = [0.0; BLOCK];
            padded[..rest.len()].copy_from_slice(rest);
            quantize_block(l, &padded, block);
        }
    }
}

#[inline(always)]
fn quantize_block<L: Dot>(l: L, x: &[f32; BLOCK], block: &mut Inputs) {
    let (halves, _) = x.as_chunks::<LANES>();
    let (a, b) = (l.load(&halves[0]), l.load(&halves[1]));
    let zero = l.splat(0.0);
    let (size_a, size_b) = (l.max(l.sub(zero, a), a), l.max(l.sub(zero, b), b));
    let largest = l.largest(l.max(size_a, size_b));
    // NaN is lost by a maximum but not by a sum.
    if !l.sum(l.add(size_a, size_b)).is_finite() {
        block.scale = f32::NAN;
        return;
    }
    // So small a block is zero beside the rest; and its inverse would overflow.
    if largest < 1e-30 {
        return;
    }
    let inverse = l.splat(LARGEST / largest);
    let round = l.splat(ROUND);
    l.split(l.fma(a, inverse, round), l.fma(b, inverse, round), block);
    block.scale = largest / LARGEST;
}

/// The integer part of a block, in each form.
pub(super) trait Dot: Lanes {
    /// Rows that one pass keeps in registers.
    const Q8_ROWS: usize;
    /// The sums of weights times inputs of one block, as floats, for each row's 32 columns.
    fn dot<const R: usize>(self, lines: &[Line; BLOCK_LINES], x: [&Inputs; R]) -> [(Self::V, Self::V); R];

    /// Sets all but the scale from 32 whole numbers plus [`ROUND`].
    #[inline(always)]
    fn split(self, a: Self::V, b: Self::V, block: &mut Inputs) {
        let mut rounded = [[0.0; LANES]; 2];
        self.store(&mut rounded[0], a);
        self.store(&mut rounded[1], b);
        let mut sum = 0;
        for (i, v) in rounded.as_flattened().iter().enumerate() {
            let whole = v.to_bits() as i32 - ROUND.to_bits() as i32;
            let hi = (whole + 64) >> 7;
            block.whole[i] = whole as i16;
            block.hi[i] = hi as i8;
            block.lo[i] = (whole - (hi << 7)) as i8;
            sum += whole;
        }
        block.offset = sum << 7;
    }
}

impl Dot for Plain {
    const Q8_ROWS: usize = 1;

    #[inline(always)]
    fn dot<const R: usize>(
        self,
        lines: &[Line; BLOCK_LINES],
        x: [&Inputs; R],
    ) -> [([f32; LANES], [f32; LANES]); R] {
        x.map(|x| {
            let mut sums = [[0i32; LANES]; 2];
            for (g, lines) in lines[..BLOCK_LINES - 1].chunks_exact(2).enumerate() {
                for (sums, line) in sums.iter_mut().zip(lines) {
                    for (sum, four) in sums.iter_mut().zip(line.0) {
                        let four = four.to_le_bytes();
                        for (w, x) in four.iter().zip(&x.whole[4 * g..]) {
                            *sum += i32::from(*w) * i32::from(*x);
                        }
                    }
                }
            }
            let float = |sums: [i32; LANES]| sums.map(|s| (s - x.offset) as f32);
            (float(sums[0]), float(sums[1]))
        })
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    // As in `simd::x86`: a value of the form proves the features.
    #![allow(unsafe_code)]

    use std::arch::x86_64::*;

    use super::{BLOCK_LINES, Dot, Inputs, Line, ROUND};
    use crate::simd::{Avx2, Avx512};

    impl Dot for Avx512 {
        const Q8_ROWS: usize = 4;

        #[inline(always)]
        fn split(self, a: __m512, b: __m512, block: &mut Inputs) {
            // SAFETY: the form proves the features; each store fills one half of an array of 32.
            unsafe {
                let mut sum = _mm512_setzero_si512();
                for (half, rounded) in [a, b].into_iter().enumerate() {
                    let bias = _mm512_set1_epi32(ROUND.to_bits() as i32);
                    let whole = _mm512_sub_epi32(_mm512_castps_si512(rounded), bias);
                    let hi = _mm512_srai_epi32::<7>(_mm512_add_epi32(whole, _mm512_set1_epi32(64)));
                    let lo = _mm512_sub_epi32(whole, _mm512_slli_epi32::<7>(hi));
                    let to: *mut __m256i = block.whole.as_mut_ptr().cast();
                    _mm256_storeu_si256(to.add(half), _mm512_cvtepi32_epi16(whole));
                    let to: *mut __m128i = block.hi.as_mut_ptr().cast();
                    _mm_storeu_si128(to.add(half), _mm512_cvtepi32_epi8(hi));
                    let to: *mut __m128i = block.lo.as_mut_ptr().cast();
                    _mm_storeu_si128(to.add(half), _mm512_cvtepi32_epi8(lo));
                    sum = _mm512_add_epi32(sum, whole);
                }
                block.offset = _mm512_reduce_add_epi32(sum) << 7;
            }
        }

        #[inline(always)]
        fn dot<const R: usize>(self, lines: &[Line; BLOCK_LINES], x: [&Inputs; R]) -> [(__m512, __m512); R] {
            // SAFETY: the form proves the features; lines are 64 bytes, `hi` and `lo` eight times 4.
            unsafe {
                let mut hi = [[_mm512_setzero_si512(); 2]; R];
                let mut lo = hi;
                for r in 0..R {
                    lo[r] = [_mm512_set1_epi32(x[r].offset.wrapping_neg()); 2];
                }
                for g in 0..8 {
                    let w0 = _mm512_load_si512(lines[2 * g].0.as_ptr().cast());
                    let w1 = _mm512_load_si512(lines[2 * g + 1].0.as_ptr().cast());
                    for r in 0..R {
                        let (h, l): (*const i32, *const i32) =
                            (x[r].hi.as_ptr().cast(), x[r].lo.as_ptr().cast());
                        let h = _mm512_set1_epi32(h.add(g).read_unaligned());
                        let l = _mm512_set1_epi32(l.add(g).read_unaligned());
                        hi[r][0] = _mm512_dpbusd_epi32(hi[r][0], w0, h);
                        hi[r][1] = _mm512_dpbusd_epi32(hi[r][1], w1, h);
                        lo[r][0] = _mm512_dpbusd_epi32(lo[r][0], w0, l);
                        lo[r][1] = _mm512_dpbusd_epi32(lo[r][1], w1, l);
                    }
                }
                let mut sums = [(_mm512_setzero_ps(), _mm512_setzero_ps()); R];
                for r in 0..R {
                    for half in 0..2 {
                        lo[r][half] = _mm512_add_epi32(_mm512_slli_epi32::<7>(hi[r][half]), lo[r][half]);
                    }
                    sums[r] = (_mm512_cvtepi32_ps(lo[r][0]), _mm512_cvtepi32_ps(lo[r][1]));
                }
                sums
            }
        }
    }

    impl Dot for Avx2 {
        const Q8_ROWS: usize = 1;

        #[inline(always)]
        fn dot<const R: usize>(
            self,
            lines: &[Line; BLOCK_LINES],
            x: [&Inputs; R],
        ) -> [((__m256, __m256), (__m256, __m256)); R] {
            // SAFETY: the form proves the features; a line is four times 16 bytes, `whole` eight
            // times 8.
            unsafe {
                let zero = _mm256_setzero_ps();
                let mut all = [((zero, zero), (zero, zero)); R];
                for (all, x) in all.iter_mut().zip(x) {
                    // [line][quarter]: 4 columns, two partial sums each.
                    let mut sums = [[_mm256_setzero_si256(); 4]; 2];
                    for g in 0..8 {
                        let four = x.whole.as_ptr().cast::<i64>().add(g).read_unaligned();
                        let four = _mm256_set1_epi64x(four);
                        for half in 0..2 {
                            let line: *const __m128i = lines[2 * g + half].0.as_ptr().cast();
                            for (quarter, sum) in sums[half].iter_mut().enumerate() {
                                let w = _mm256_cvtepu8_epi16(_mm_load_si128(line.add(quarter)));
                                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(w, four));
                            }
                        }
                    }
                    let offset = _mm256_set1_epi32(x.offset);
                    let mut float = [[zero; 2]; 2];
                    for half in 0..2 {
                        for pair in 0..2 {
                            let both = _mm256_hadd_epi32(sums[half][2 * pair], sums[half][2 * pair + 1]);
                            // Neighbours are added; their columns come as 0 1 4 5 2 3 6 7.
                            let columns = _mm256_permute4x64_epi64::<0b11_01_10_00>(both);
                            float[half][pair] = _mm256_cvtepi32_ps(_mm256_sub_epi32(columns, offset));
                        }
                    }
                    *all = ((float[0][0], float[0][1]), (float[1][0], float[1][1]));
                }
                all
            }
        }
    }
}

simd_fn!(
    /// All quantised rows times panels `from..to`.
    pub(super) fn q8_panels(layer: &Layer<'_>, x: &[Inputs], from: usize, to: usize, out: &Disjoint<'_>) = panels
);

#[inline(always)]
fn panels<L: Dot>(l: L, layer: &Layer<'_>, x: &[Inputs], from: usize, to: usize, out: &Disjoint<'_>) {
    let width = layer.n_in.div_ceil(BLOCK);
    let rows = x.len() / width;
    for p in from..to {
        let (blocks, _) = layer.panel(p).as_chunks::<BLOCK_LINES>();
        let mut row = 0;
        while row < rows {
            let left = rows - row;
            let height = left.div_ceil(left.div_ceil(L::Q8_ROWS));
            let x = &x[row * width..];
            match height {
                1 => tile::<L, 1>(l, layer, blocks, x, p, row, out),
                2 if L::Q8_ROWS >= 2 => tile::<L, 2>(l, layer, blocks, x, p, row, out),
                3 if L::Q8_ROWS >= 3 => tile::<L, 3>(l, layer, blocks, x, p, row, out),
                4 if L::Q8_ROWS >= 4 => tile::<L, 4>(l, layer, blocks, x, p, row, out),
                _ => unreachable!("no tile is higher than the registers allow"),
            }
            row += height;
        }
    }
}

#[inline(always)]
fn tile<L: Dot, const R: usize>(
    l: L,
    layer: &Layer<'_>,
    blocks: &[[Line; BLOCK_LINES]],
    x: &[Inputs],
    p: usize,
    row: usize,
    out: &Disjoint<'_>,
) {
    let width = blocks.len();
    let mut acc = [(l.splat(0.0), l.splat(0.0)); R];
    for (b, lines) in blocks.iter().enumerate() {
        if R == 1 {
            for line in lines {
                l.prefetch((line as *const Line).wrapping_add(AHEAD));
            }
        }
        let mut inputs = [&x[b]; R];
        for r in 1..R {
            inputs[r] = &x[r * width + b];
        }
        let (s0, s1) = l.f16_pair(&lines[BLOCK_LINES - 1].0);
        let dots = l.dot(lines, inputs);
        for r in 0..R {
            let scale = l.splat(inputs[r].scale);
            acc[r].0 = l.fma(dots[r].0, l.mul(s0, scale), acc[r].0);
            acc[r].1 = l.fma(dots[r].1, l.mul(s1, scale), acc[r].1);
        }
    }
    for (r, acc) in acc.into_iter().enumerate() {
        let mut sums = [[0.0; LANES]; 2];
        l.store(&mut sums[0], acc.0);
        l.store(&mut sums[1], acc.1);
        layer.write(p, row + r, sums.as_flattened(), out);
    }
}
