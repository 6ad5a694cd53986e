// Rows from wherever they lie into one matrix, weighted where asked for.

#define THREADS 256

// `from [gridDim.x]` and `weights [gridDim.x]` (null: ones) are the places of rows of `d`; `to` is
// `[gridDim.x, d]`.
template <class T>
__device__ inline void copy_row(const T* const* from, const float* const* weights, u32 d, T* to) {
    const T* own = from[blockIdx.x];
    const float* w = weights[blockIdx.x];
    T* out = to + (u64)blockIdx.x * d;
    bool wide = is_wide_row(own, d) && is_wide(w), wide_out = is_wide_row(out, d);
    for (u32 at = threadIdx.x * 8; at < d; at += THREADS * 8) {
        Eight<T> stored;
        Eight<float> stored_weights = {};
        load_row(own, at, d, wide, stored);
        if (w) load_row(w, at, d, wide, stored_weights);
        float x[8], by[8];
        widen(stored, x);
        widen(stored_weights, by);
#pragma unroll
        for (u32 i = 0; i < 8; i++) x[i] = w ? x[i] * by[i] : x[i];
        store_row(out, at, d, wide_out, x);
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
