//! The lanes with AVX-512 (one register) and with AVX2 and FMA (two registers).
// Intrinsics need `unsafe` outside functions with their features; these functions are always
// inlined into such ones, and the private unit field makes detection the only way to a value.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{LANES, Lanes};

/// AVX-512 F, BW, DQ, VL and VNNI: all servers since 2019 that have AVX-512.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512(());

/// AVX2, FMA and F16C.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    pub(crate) fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c"))
        .then_some(Self(()))
    }
}

impl Avx512 {
    pub(crate) fn detect() -> Option<Self> {
        (Avx2::detect().is_some()
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni"))
        .then_some(Self(()))
    }
}

// SAFETY, for every block below: the value `self` proves the features (see the top of the file),
// and loads and stores go through references to arrays of the full width.
impl Lanes for Avx512 {
    type V = __m512;
    const TILE_ROWS: usize = 8;

    #[inline(always)]
    fn prefetch<T>(self, at: *const T) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> __m512 {
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; LANES], v: __m512) {
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), v) }
    }
    #[inline(always)]
    fn bf16_pair(self, from: &[u32; LANES]) -> (__m512, __m512) {
        unsafe {
            let both = _mm512_loadu_si512(from.as_ptr().cast());
            let low = _mm512_slli_epi32::<16>(both);
            let high = _mm512_and_si512(both, _mm512_set1_epi32(0xffff_0000u32 as i32));
            (_mm512_castsi512_ps(low), _mm512_castsi512_ps(high))
        }
    }
    #[inline(always)]
    fn f16_pair(self, from: &[u32; LANES]) -> (__m512, __m512) {
        unsafe {
            let at: *const __m256i = from.as_ptr().cast();
            (_mm512_cvtph_ps(_mm256_loadu_si256(at)), _mm512_cvtph_ps(_mm256_loadu_si256(at.add(1))))
        }
    }
    #[inline(always)]
    fn bf16(self, from: &[bf16; LANES]) -> __m512 {
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    fn f16(self, from: &[f16; LANES]) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())) }
    }
    #[inline(always)]
    fn bits(self, from: &[u32; LANES]) -> __m512 {
        unsafe { _mm512_loadu_ps(from.as_ptr().cast()) }
    }
    #[inline(always)]
    fn store_bits(self, to: &mut [u32; LANES], v: __m512) {
        unsafe { _mm512_storeu_ps(to.as_mut_ptr().cast(), v) }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn exp2_whole(self, n: __m512) -> __m512 {
        unsafe {
            let biased = _mm512_add_epi32(_mm512_cvttps_epi32(n), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased))
        }
    }
    #[inline(always)]
    fn zero_below(self, v: __m512, x: __m512, low: __m512) -> __m512 {
        unsafe { _mm512_maskz_mov_ps(!_mm512_cmp_ps_mask::<_CMP_LT_OQ>(x, low), v) }
    }
    #[inline(always)]
    fn above(self, a: __m512, b: __m512) -> u32 {
        unsafe { u32::from(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b)) }
    }
    #[inline(always)]
    fn sum(self, v: __m512) -> f32 {
        unsafe {
            let high = _mm512_extractf32x8_ps::<1>(v);
            sum8(_mm256_add_ps(_mm512_castps512_ps256(v), high))
        }
    }
    #[inline(always)]
    fn largest(self, v: __m512) -> f32 {
        unsafe {
            let high = _mm512_extractf32x8_ps::<1>(v);
            largest8(_mm256_max_ps(_mm512_castps512_ps256(v), high))
        }
    }
    /// Each stage adds the halves of two vectors and keeps both: sixteen, eight, four, two, one.
    #[inline(always)]
    fn sums(self, v: &[__m512; LANES]) -> __m512 {
        unsafe {
            // A lane of the result is four times the quarter of its vector, plus the vector's turn.
            let (x, y) = (quarter([v[0], v[4], v[8], v[12]]), quarter([v[1], v[5], v[9], v[13]]));
            let (z, w) = (quarter([v[2], v[6], v[10], v[14]]), quarter([v[3], v[7], v[11], v[15]]));
            let (xy, zw) = (pairs(x, y), pairs(z, w));
            let even = _mm512_shuffle_ps::<0x88>(xy, zw);
            _mm512_add_ps(even, _mm512_shuffle_ps::<0xdd>(xy, zw))
        }
    }
}

/// Lanes `i` and `i + 8`, then `i + 4` of four vectors: a quarter of four lanes each.
#[inline(always)]
unsafe fn quarter([a, b, c, d]: [__m512; 4]) -> __m512 {
    unsafe {
        let ab = _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b));
        let cd = _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(c, d), _mm512_shuffle_f32x4::<0xee>(c, d));
        _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(ab, cd), _mm512_shuffle_f32x4::<0xdd>(ab, cd))
    }
}

/// Lanes `i` and `i + 2` of every quarter of two vectors.
#[inline(always)]
unsafe fn pairs(x: __m512, y: __m512) -> __m512 {
    unsafe { _mm512_add_ps(_mm512_shuffle_ps::<0x44>(x, y), _mm512_shuffle_ps::<0xee>(x, y)) }
}

/// Lanes 0 to 7 and 8 to 15.
type Pair = (__m256, __m256);

// SAFETY: as above.
impl Lanes for Avx2 {
    type V = Pair;
    const TILE_ROWS: usize = 3;

    #[inline(always)]
    fn prefetch<T>(self, at: *const T) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
    #[inline(always)]
    fn splat(self, x: f32) -> Pair {
        unsafe { (_mm256_set1_ps(x), _mm256_set1_ps(x)) }
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Pair {
        let at = from.as_ptr();
        unsafe { (_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8))) }
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; LANES], v: Pair) {
        let at = to.as_mut_ptr();
        unsafe {
            _mm256_storeu_ps(at, v.0);
            _mm256_storeu_ps(at.add(8), v.1);
        }
    }
    #[inline(always)]
    fn bf16_pair(self, from: &[u32; LANES]) -> (Pair, Pair) {
        let at: *const __m256i = from.as_ptr().cast();
        unsafe {
            let (a, b) = (_mm256_loadu_si256(at), _mm256_loadu_si256(at.add(1)));
            let mask = _mm256_set1_epi32(0xffff_0000u32 as i32);
            let low = |x| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(x));
            let high = |x| _mm256_castsi256_ps(_mm256_and_si256(x, mask));
            ((low(a), low(b)), (high(a), high(b)))
        }
    }
    #[inline(always)]
    fn f16_pair(self, from: &[u32; LANES]) -> (Pair, Pair) {
        let at: *const __m128i = from.as_ptr().cast();
        unsafe {
            let one = |i| _mm256_cvtph_ps(_mm_loadu_si128(at.add(i)));
            ((one(0), one(1)), (one(2), one(3)))
        }
    }
    #[inline(always)]
    fn bf16(self, from: &[bf16; LANES]) -> Pair {
        let at: *const __m128i = from.as_ptr().cast();
        unsafe {
            let low = _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(at)));
            let high = _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(at.add(1))));
            (_mm256_castsi256_ps(low), _mm256_castsi256_ps(high))
        }
    }
    #[inline(always)]
    fn f16(self, from: &[f16; LANES]) -> Pair {
        let at: *const __m128i = from.as_ptr().cast();
        unsafe { (_mm256_cvtph_ps(_mm_loadu_si128(at)), _mm256_cvtph_ps(_mm_loadu_si128(at.add(1)))) }
    }
    #[inline(always)]
    fn bits(self, from: &[u32; LANES]) -> Pair {
        let at: *const f32 = from.as_ptr().cast();
        unsafe { (_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8))) }
    }
    #[inline(always)]
    fn store_bits(self, to: &mut [u32; LANES], v: Pair) {
        let at: *mut f32 = to.as_mut_ptr().cast();
        unsafe {
            _mm256_storeu_ps(at, v.0);
            _mm256_storeu_ps(at.add(8), v.1);
        }
    }
    #[inline(always)]
    fn add(self, a: Pair, b: Pair) -> Pair {
        unsafe { (_mm256_add_ps(a.0, b.0), _mm256_add_ps(a.1, b.1)) }
    }
    #[inline(always)]
    fn sub(self, a: Pair, b: Pair) -> Pair {
        unsafe { (_mm256_sub_ps(a.0, b.0), _mm256_sub_ps(a.1, b.1)) }
    }
    #[inline(always)]
    fn mul(self, a: Pair, b: Pair) -> Pair {
        unsafe { (_mm256_mul_ps(a.0, b.0), _mm256_mul_ps(a.1, b.1)) }
    }
    #[inline(always)]
    fn div(self, a: Pair, b: Pair) -> Pair {
        unsafe { (_mm256_div_ps(a.0, b.0), _mm256_div_ps(a.1, b.1)) }
    }
    #[inline(always)]
    fn fma(self, a: Pair, b: Pair, c: Pair) -> Pair {
        unsafe { (_mm256_fmadd_ps(a.0, b.0, c.0), _mm256_fmadd_ps(a.1, b.1, c.1)) }
    }
    #[inline(always)]
    fn min(self, a: Pair, b: Pair) -> Pair {
        unsafe { (_mm256_min_ps(a.0, b.0), _mm256_min_ps(a.1, b.1)) }
    }
    #[inline(always)]
    fn max(self, a: Pair, b: Pair) -> Pair {
        unsafe { (_mm256_max_ps(a.0, b.0), _mm256_max_ps(a.1, b.1)) }
    }
    #[inline(always)]
    fn exp2_whole(self, n: Pair) -> Pair {
        unsafe {
            let bias = _mm256_set1_epi32(127);
            let one = |n| {
                let biased = _mm256_add_epi32(_mm256_cvttps_epi32(n), bias);
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
            };
            (one(n.0), one(n.1))
        }
    }
    #[inline(always)]
    fn zero_below(self, v: Pair, x: Pair, low: Pair) -> Pair {
        unsafe {
            let one = |v, x, low| _mm256_andnot_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(x, low), v);
            (one(v.0, x.0, low.0), one(v.1, x.1, low.1))
        }
    }
    #[inline(always)]
    fn above(self, a: Pair, b: Pair) -> u32 {
        unsafe {
            let one = |a, b| _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(a, b)) as u32;
            one(a.0, b.0) | one(a.1, b.1) << 8
        }
    }
    #[inline(always)]
    fn sum(self, v: Pair) -> f32 {
        unsafe { sum8(_mm256_add_ps(v.0, v.1)) }
    }
    #[inline(always)]
    fn largest(self, v: Pair) -> f32 {
        unsafe { largest8(_mm256_max_ps(v.0, v.1)) }
    }
}

#[inline(always)]
unsafe fn sum8(v: __m256) -> f32 {
    unsafe {
        let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
        _mm_cvtss_f32(_mm_add_ss(v, _mm_shuffle_ps::<1>(v, v)))
    }
}

#[inline(always)]
unsafe fn largest8(v: __m256) -> f32 {
    unsafe {
        let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
        _mm_cvtss_f32(_mm_max_ss(v, _mm_shuffle_ps::<1>(v, v)))
    }
}
