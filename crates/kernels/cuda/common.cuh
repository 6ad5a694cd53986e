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
    u32 bits = __float_as_uint(x);
    // Adding to a NaN could carry into infinity.
    u32 rounded = x != x ? bits | 0x400000u : bits + 0x7fffu + ((bits >> 16) & 1u);
    out.bits = (unsigned short)(rounded >> 16);
}

__device__ inline bool is_wide(const void* p) { return ((u64)p & 15) == 0; }

// Eight neighbours that begin at a multiple of 16 bytes.
__device__ inline void load_wide(const float* p, float (&out)[8]) {
    uint4 a = *(const uint4*)p, b = *(const uint4*)(p + 4);
    u32 words[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
    for (int i = 0; i < 8; i++) out[i] = __uint_as_float(words[i]);
}
template <class T> __device__ inline void load_wide(const T* p, float (&out)[8]) {
    uint4 a = *(const uint4*)p;
    u32 words[4] = {a.x, a.y, a.z, a.w};
#pragma unroll
    for (int i = 0; i < 8; i++) {
        T half;
        half.bits = (unsigned short)(words[i / 2] >> (16 * (i % 2)));
        out[i] = widen(half);
    }
}

// The first `n` of eight neighbours, `fill` behind them; `wide`: they begin at a multiple of 16 bytes.
template <class T>
__device__ inline void load8(const T* p, u32 n, bool wide, float fill, float (&out)[8]) {
    if (wide && n >= 8) {
        load_wide(p, out);
        return;
    }
#pragma unroll
    for (u32 i = 0; i < 8; i++) out[i] = i < n ? widen(p[i]) : fill;
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
