// A bias to every row of a product, in place.

#define THREADS 256

// `x [gridDim.x, n]`.
template <class T> __device__ inline void add_bias_row(T* x, const float* bias, u32 n) {
    u32 i = blockIdx.y * THREADS + threadIdx.x;
    if (i >= n) return;
    T& out = x[(u64)blockIdx.x * n + i];
    narrow(widen(out) + bias[i], out);
}

#define ADD_BIAS(NAME, T)                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS) NAME(T* x, const float* bias, u32 n) {           \
        add_bias_row(x, bias, n);                                                                          \
    }
#if WITH_F32
ADD_BIAS(add_bias_f32, float)
#endif
#if WITH_F16
ADD_BIAS(add_bias_f16, F16)
#endif
#if WITH_BF16
ADD_BIAS(add_bias_bf16, Bf16)
#endif
