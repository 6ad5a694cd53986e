//! Sixteen lanes of single precision, in the widest form that the processor has.
//!
//! Kernels are written once over [`Lanes`], and every form gives the same bits: lanes are always
//! sixteen (two registers with AVX2, an array without SIMD), every multiply-add is fused, and sums
//! across lanes follow one tree.

use half::{bf16, f16};

mod plain;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(crate) mod exp;
pub(crate) mod fold;

pub(crate) use plain::Plain;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

/// Lanes of a vector.
pub(crate) const LANES: usize = 16;

/// One form of the sixteen lanes. A value of the type is the proof that the processor has it.
pub(crate) trait Lanes: Copy {
    /// Sixteen numbers.
    type V: Copy;
    /// Rows that one pass of `linear` keeps in registers beside two vectors of weights.
    const TILE_ROWS: usize;

    /// Asks for the cache line at an address that may lie anywhere.
    fn prefetch<T>(self, at: *const T);
    fn splat(self, x: f32) -> Self::V;
    fn load(self, from: &[f32; LANES]) -> Self::V;
    fn store(self, to: &mut [f32; LANES], v: Self::V);
    /// Columns `c` (low halves) and `c + 16` (high halves) of packed bfloat16.
    fn bf16_pair(self, from: &[u32; LANES]) -> (Self::V, Self::V);
    /// 32 consecutive half-precision numbers.
    fn f16_pair(self, from: &[u32; LANES]) -> (Self::V, Self::V);
    fn bf16(self, from: &[bf16; LANES]) -> Self::V;
    fn f16(self, from: &[f16; LANES]) -> Self::V;
    /// 32 bits a lane, read as floats.
    fn bits(self, from: &[u32; LANES]) -> Self::V;
    fn store_bits(self, to: &mut [u32; LANES], v: Self::V);
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `a < b ? a : b`; `b` where either is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a > b ? a : b`; `b` where either is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// `2^n` for whole `n` from -126 to 127.
    fn exp2_whole(self, n: Self::V) -> Self::V;
    /// `v`, but 0 where `x < low`.
    fn zero_below(self, v: Self::V, x: Self::V, low: Self::V) -> Self::V;
    /// One bit a lane: `a > b`, lane 0 lowest.
    fn above(self, a: Self::V, b: Self::V) -> u32;
    /// Lanes `i` and `i + 8` first, then `i + 4`, `i + 2`, `i + 1`.
    fn sum(self, v: Self::V) -> f32;
    fn largest(self, v: Self::V) -> f32;
    /// [`Lanes::sum`] of sixteen vectors at once, the same bits.
    #[inline(always)]
    fn sums(self, v: &[Self::V; LANES]) -> Self::V {
        let mut sums = [0.0; LANES];
        for (sum, v) in sums.iter_mut().zip(v) {
            *sum = self.sum(*v);
        }
        self.load(&sums)
    }

    /// The first lanes from a short slice, the others `fill`.
    #[inline(always)]
    fn load_part(self, from: &[f32], fill: f32) -> Self::V {
        let mut all = [fill; LANES];
        all[..from.len()].copy_from_slice(from);
        self.load(&all)
    }

    /// The first lanes into a short slice.
    #[inline(always)]
    fn store_part(self, to: &mut [f32], v: Self::V) {
        let mut all = [0.0; LANES];
        self.store(&mut all, v);
        to.copy_from_slice(&all[..to.len()]);
    }
}

/// A form that this processor has.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Isa {
    Plain(Plain),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
}

impl Isa {
    /// The widest form.
    pub(crate) fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if let Some(form) = Avx512::detect() {
                return Self::Avx512(form);
            }
            if let Some(form) = Avx2::detect() {
                return Self::Avx2(form);
            }
        }
        Self::Plain(Plain)
    }

    /// Every form, for tests that compare them.
    #[cfg(test)]
    pub(crate) fn all() -> Vec<Self> {
        let mut all = vec![Self::Plain(Plain)];
        #[cfg(target_arch = "x86_64")]
        {
            all.extend(Avx2::detect().map(Self::Avx2));
            all.extend(Avx512::detect().map(Self::Avx512));
        }
        all
    }
}

/// Compiles a body that is generic over [`Lanes`] once for every form, and picks one at run time.
///
/// `simd_fn!(fn name(arg: Type, ...) -> Type = body);` makes `name(isa, arg, ...)`, which calls
/// `body(form, arg, ...)`. The body must be `#[inline(always)]`, to be compiled with the features.
macro_rules! simd_fn {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $ret:ty)? = $body:path) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments, unsafe_code)]
        $vis fn $name(isa: $crate::simd::Isa, $($arg: $type),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma,f16c")]
                fn avx2(form: $crate::simd::Avx2, $($arg: $type),*) $(-> $ret)? {
                    $body(form, $($arg),*)
                }
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
                fn avx512(form: $crate::simd::Avx512, $($arg: $type),*) $(-> $ret)? {
                    $body(form, $($arg),*)
                }
                // SAFETY: a value of the form exists only where the processor has its features.
                match isa {
                    $crate::simd::Isa::Avx512(form) => return unsafe { avx512(form, $($arg),*) },
                    $crate::simd::Isa::Avx2(form) => return unsafe { avx2(form, $($arg),*) },
                    $crate::simd::Isa::Plain(_) => {}
                }
            }
            let _ = isa;
            $body($crate::simd::Plain, $($arg),*)
        }
    };
}
pub(crate) use simd_fn;
