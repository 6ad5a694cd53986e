// Rows of the input embedding, widened: where the residual stream begins.

#define THREADS 256

// `table [.., d]`; `ids [gridDim.x]`; `out [gridDim.x, d]`.
template <class T> __device__ inline void embed_row(const T* table, const u32* ids, u32 d, float* out) {
    const T* own = table + (u64)ids[blockIdx.x] * d;
    float* to = out + (u64)blockIdx.x * d;
    bool wide = is_wide_row(own, d), wide_out = is_wide_row(to, d);
    for (u32 at = threadIdx.x * 8; at < d; at += THREADS * 8) {
        Eight<T> stored;
        float x[8];
        load_row(own, at, d, wide, stored);
        widen(stored, x);
        store_row(to, at, d, wide_out, x);
    }
}

#define EMBED(NAME, T)                                                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                  \
        NAME(const T* table, const u32* ids, u32 d, float* out) {                                          \
        embed_row(table, ids, d, out);                                                                     \
    }
#if WITH_F32
EMBED(embed_f32, float)
#endif
#if WITH_F16
EMBED(embed_f16, F16)
#endif
#if WITH_BF16
EMBED(embed_bf16, Bf16)
#endif
