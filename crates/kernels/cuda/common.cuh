// What the kernels share: number formats, wide loads, reductions within a warp.
//
// The sources use no header of the toolkit, so that NVRTC needs none, and a C++ compiler with stand-ins
// for CUDA's built-ins runs the same text on a CPU.

typedef unsigned int u32;
typedef unsigned long long u64;

#define NEGATIVE_INFINITY __int_as_float(0xff800000)
#define ALL_LANES 0xffffffffu
#define WARP 32

// Which number formats to compile: all, or the one that ONLY names by its bytes (bfloat16: 3).
#ifndef ONLY
#define WITH_F32 1
#define WITH_F16 1
#define WITH_BF16 1
#else
#define WITH_F32 (ONLY == 4)
#define WITH_F16 (ONLY == 2)
#define WITH_BF16 (ONLY == 3)
#endif

// Which room for a head to compile: all, or the one that HEAD names. A source of attention defines
// ATTENTION(NAME, T, ROOM), one kernel.
#if !defined(HEAD) || HEAD == 64
#define HEAD_64(NAME, SUFFIX, T) ATTENTION(NAME##_64_##SUFFIX, T, 64)
#else
#define HEAD_64(NAME, SUFFIX, T)
#endif
#if !defined(HEAD) || HEAD == 128
#define HEAD_128(NAME, SUFFIX, T) ATTENTION(NAME##_128_##SUFFIX, T, 128)
#else
#define HEAD_128(NAME, SUFFIX, T)
#endif
#if !defined(HEAD) || HEAD == 256
#define HEAD_256(NAME, SUFFIX, T) ATTENTION(NAME##_256_##SUFFIX, T, 256)
#else
#define HEAD_256(NAME, SUFFIX, T)
#endif
#define ATTENTIONS(NAME, SUFFIX, T) HEAD_64(NAME, SUFFIX, T) HEAD_128(NAME, SUFFIX, T) HEAD_256(NAME, SUFFIX, T)

// The most candidates of a step; outputs have this many columns.
#define MAX_CANDIDATES 64

// What became of a row.
#define ROW_OK 0u
#define ROW_BAD_LOGITS 1u
#define ROW_BAD_REWARD 2u

// Half precision and bfloat16 as their bits.
struct F16 {
    unsigned short bits;
};
struct Bf16 {
    unsigned short bits;
};

__device__ inline float f16_from_bits(unsigned short bits) {
#ifdef ATTUNE_ON_CPU
    return half_to_float(bits);
#else
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(bits));
    return wide;
#endif
}

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(F16 x) { return f16_from_bits(x.bits); }
__device__ inline float widen(Bf16 x) { return __uint_as_float((u32)x.bits << 16); }

// To the nearest, ties to even.
__device__ inline void narrow(float x, float& out) { out = x; }
__device__ inline void narrow(float x, F16& out) {
#ifdef ATTUNE_ON_CPU
    out.bits = float_to_half(x);
#else
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
#endif
}
__device__ inline void narrow(float x, Bf16& out) {
#ifdef ATTUNE_ON_CPU
    out.bits = float_to_bf16(x);
#else
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
#endif
}

// Two at once, in one word.
__device__ inline u32 narrow_pair(float low, float high, F16) {
#ifdef ATTUNE_ON_CPU
    return float_to_half(low) | (u32)float_to_half(high) << 16;
#else
    u32 pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
#endif
}
__device__ inline u32 narrow_pair(float low, float high, Bf16) {
#ifdef ATTUNE_ON_CPU
    return float_to_bf16(low) | (u32)float_to_bf16(high) << 16;
#else
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
#endif
}

__device__ inline bool is_wide(const void* p) { return ((u64)p & 15) == 0; }

// Eight neighbours as they are stored. What is asked for is on its way until it is widened: kernels ask for
// several before they widen the first.
template <class T> struct Eight {
    u32 words[2 * sizeof(T)];
};

// They begin at a multiple of 16 bytes.
template <class T> __device__ inline void load_wide(const T* p, Eight<T>& out) {
#pragma unroll
    for (u32 i = 0; i < sizeof(T) / 2; i++) {
        uint4 a = ((const uint4*)p)[i];
        out.words[4 * i] = a.x;
        out.words[4 * i + 1] = a.y;
        out.words[4 * i + 2] = a.z;
        out.words[4 * i + 3] = a.w;
    }
}

__device__ inline u32 bits_of(float x) { return __float_as_uint(x); }
__device__ inline u32 bits_of(F16 x) { return x.bits; }
__device__ inline u32 bits_of(Bf16 x) { return x.bits; }

// The first `n` of them, wherever they begin; `fill` behind them.
template <class T> __device__ inline void load_some(const T* p, u32 n, float fill, Eight<T>& out) {
    T filler;
    narrow(fill, filler);
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
        u32 bits = bits_of(i < n ? p[i] : filler);
        u32& word = out.words[i * sizeof(T) / 4];
        word = sizeof(T) == 4 || i % 2 == 0 ? bits : word | bits << 16;
    }
}

__device__ inline void widen(const Eight<float>& x, float (&out)[8]) {
#pragma unroll
    for (int i = 0; i < 8; i++) out[i] = __uint_as_float(x.words[i]);
}
template <class T> __device__ inline void widen(const Eight<T>& x, float (&out)[8]) {
#pragma unroll
    for (int i = 0; i < 8; i++) {
        T half;
        half.bits = (unsigned short)(x.words[i / 2] >> (16 * (i % 2)));
        out[i] = widen(half);
    }
}

// Eight neighbours from `at` on of a row of `n`; behind the row's end what does not matter. `wide`: the row
// begins at a multiple of 16 bytes and has whole eights.
template <class T> __device__ inline void load_row(const T* row, u32 at, u32 n, bool wide, Eight<T>& out) {
    if (wide) {
        load_wide(row + (at < n ? at : 0), out);
    } else {
        load_some(row + at, at < n ? n - at : 0, 0.0f, out);
    }
}

template <class T> __device__ inline bool is_wide_row(const T* row, u32 n) { return n % 8 == 0 && is_wide(row); }

__device__ inline void store_wide(float* p, const float (&x)[8]) {
#pragma unroll
    for (u32 i = 0; i < 8; i += 4) {
        uint4 out = {bits_of(x[i]), bits_of(x[i + 1]), bits_of(x[i + 2]), bits_of(x[i + 3])};
        *(uint4*)(p + i) = out;
    }
}
template <class T> __device__ inline void store_wide(T* p, const float (&x)[8]) {
    uint4 out = {narrow_pair(x[0], x[1], T()), narrow_pair(x[2], x[3], T()), narrow_pair(x[4], x[5], T()),
                 narrow_pair(x[6], x[7], T())};
    *(uint4*)p = out;
}

// Rounds eight numbers into a row of `n` from `at` on, of which those behind the row's end are left out.
template <class T> __device__ inline void store_row(T* row, u32 at, u32 n, bool wide, const float (&x)[8]) {
    if (!wide || at + 8 > n) {
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            if (at + i < n) narrow(x[i], row[at + i]);
        }
        return;
    }
    store_wide(row + at, x);
}

#define LOG2_E 1.4426950408889634f

// 2 to the power of `x`, by the card's own instruction; what is below the normal numbers is 0.
__device__ inline float power_of_two(float x) {
#ifdef ATTUNE_ON_CPU
    return exp2f(x);
#else
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
#endif
}

__device__ inline float warp_sum(float x) {
#pragma unroll
    for (int lane = WARP / 2; lane; lane /= 2) x += __shfl_xor_sync(ALL_LANES, x, lane);
    return x;
}

// A sum of exponentials relative to the largest exponent, so that nothing overflows.
struct LogSum {
    float max;
    float sum;
};

__device__ inline LogSum joined(LogSum a, LogSum b) {
    float max = fmaxf(a.max, b.max);
    // Negative infinity less itself would be NaN.
    float base = max == NEGATIVE_INFINITY ? 0.0f : max;
    LogSum both = {max, a.sum * __expf(a.max - base) + b.sum * __expf(b.max - base)};
    return both;
}
