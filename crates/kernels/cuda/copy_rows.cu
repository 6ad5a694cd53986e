// Rows from wherever they lie into one matrix, weighted where asked for.

#define THREADS 256

// `from [gridDim.x]` and `weights [gridDim.x]` (null: ones) are the places of rows of `d`; `to` is
// `[gridDim.x, d]`.
template <class T>
__device__ inline void copy_row(const T* const* from, const float* const* weights, u32 d, T* to) {
    const T* own = from[blockIdx.x];
    const float* w = weights[blockIdx.x];
    for (u32 i = threadIdx.x; i < d; i += THREADS) {
        float x = widen(own[i]);
        narrow(w ? x * w[i] : x, to[(u64)blockIdx.x * d + i]);
    }
}

#define COPY_ROWS(NAME, T)                                                                                 \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                  \
        NAME(const T* const* from, const float* const* weights, u32 d, T* to) {                            \
        copy_row(from, weights, d, to);                                                                    \
    }
#if WITH_F32
COPY_ROWS(copy_rows_f32, float)
#endif
#if WITH_F16
COPY_ROWS(copy_rows_f16, F16)
#endif
#if WITH_BF16
COPY_ROWS(copy_rows_bf16, Bf16)
#endif
