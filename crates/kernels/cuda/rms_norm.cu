// Root-mean-square norm of rows in single precision, to the number format of what multiplies them next.
// A block is a row; its sum has one fixed order.

#define THREADS 256
// What a thread keeps of the row's beginning, in eights, so that only longer rows are read twice.
#define KEPT 4
#define WHOLE (KEPT * THREADS * 8)

__device__ inline float squares(const Eight<float>& stored) {
    float x[8], sum = 0.0f;
    widen(stored, x);
#pragma unroll
    for (u32 i = 0; i < 8; i++) sum += x[i] * x[i];
    return sum;
}

template <class T>
__device__ inline void scaled(const Eight<float>& stored, const Eight<float>& weight, float scale, T* out, u32 at,
                              u32 d, bool wide) {
    float x[8], w[8];
    widen(stored, x);
    widen(weight, w);
#pragma unroll
    for (u32 i = 0; i < 8; i++) x[i] = x[i] * scale * w[i];
    store_row(out, at, d, wide, x);
}

// `rows [gridDim.x]`: which row of `x [.., d]` each block takes; null: its own.
template <class T>
__device__ inline void rms_norm_row(const float* x, const u32* rows, const float* weight, u32 d, float eps,
                                    T* out) {
    __shared__ float sums[THREADS / WARP];
    const float* own = x + (u64)(rows ? rows[blockIdx.x] : blockIdx.x) * d;
    T* to = out + (u64)blockIdx.x * d;
    bool wide = is_wide_row(own, d) && is_wide(weight), wide_out = is_wide_row(to, d);
    u32 first = threadIdx.x * 8;
    Eight<float> stored[KEPT], weights[KEPT];
#pragma unroll
    for (u32 i = 0; i < KEPT; i++) {
        load_row(own, first + i * THREADS * 8, d, wide, stored[i]);
        load_row(weight, first + i * THREADS * 8, d, wide, weights[i]);
    }
    float sum = 0.0f;
#pragma unroll
    for (u32 i = 0; i < KEPT; i++) {
        if (first + i * THREADS * 8 < d) sum += squares(stored[i]);
    }
    for (u32 at = first + WHOLE; at < d; at += THREADS * 8) {
        Eight<float> more;
        load_row(own, at, d, wide, more);
        sum += squares(more);
    }
    sum = warp_sum(sum);
    if (threadIdx.x % WARP == 0) sums[threadIdx.x / WARP] = sum;
    __syncthreads();
    float total = 0.0f;
    for (u32 warp = 0; warp < THREADS / WARP; warp++) total += sums[warp];
    float scale = 1.0f / sqrtf(total / (float)d + eps);
#pragma unroll
    for (u32 i = 0; i < KEPT; i++) {
        scaled(stored[i], weights[i], scale, to, first + i * THREADS * 8, d, wide_out);
    }
    for (u32 at = first + WHOLE; at < d; at += THREADS * 8) {
        Eight<float> more, more_weights;
        load_row(own, at, d, wide, more);
        load_row(weight, at, d, wide, more_weights);
        scaled(more, more_weights, scale, to, at, d, wide_out);
    }
}

#define RMS_NORM(NAME, T)                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                  \
        NAME(const float* x, const u32* rows, const float* weight, u32 d, float eps, T* out) {             \
        rms_norm_row(x, rows, weight, d, eps, out);                                                        \
    }
#if WITH_F32
RMS_NORM(rms_norm_f32, float)
#endif
#if WITH_F16
RMS_NORM(rms_norm_f16, F16)
#endif
#if WITH_BF16
RMS_NORM(rms_norm_bf16, Bf16)
#endif
