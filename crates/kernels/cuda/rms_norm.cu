// Root-mean-square norm of rows in single precision, to the number format of what multiplies them next.
// A block is a row; its sum has one fixed order.

#define THREADS 256

// `rows [gridDim.x]`: which row of `x [.., d]` each block takes; null: its own.
template <class T>
__device__ inline void rms_norm_row(const float* x, const u32* rows, const float* weight, u32 d, float eps,
                                    T* out) {
    __shared__ float sums[THREADS / WARP];
    const float* own = x + (u64)(rows ? rows[blockIdx.x] : blockIdx.x) * d;
    float sum = 0.0f;
    for (u32 i = threadIdx.x; i < d; i += THREADS) sum += own[i] * own[i];
    sum = warp_sum(sum);
    if (threadIdx.x % WARP == 0) sums[threadIdx.x / WARP] = sum;
    __syncthreads();
    float total = 0.0f;
    for (u32 warp = 0; warp < THREADS / WARP; warp++) total += sums[warp];
    float scale = 1.0f / sqrtf(total / (float)d + eps);
    for (u32 i = threadIdx.x; i < d; i += THREADS) {
        narrow(own[i] * scale * weight[i], out[(u64)blockIdx.x * d + i]);
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
