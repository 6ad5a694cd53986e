// `silu(gate) * up`, from the single precision of a product to the number format of the next one.

#define THREADS 256

// `gate_up [gridDim.x, 2 * n]`, the gate first; `out [gridDim.x, n]`. A thread has eight numbers.
template <class T> __device__ inline void silu_gate_row(const float* gate_up, u32 n, T* out) {
    u32 at = (blockIdx.y * THREADS + threadIdx.x) * 8;
    if (at >= n) return;
    const float* own = gate_up + (u64)blockIdx.x * 2 * n;
    bool wide = is_wide_row(own, n);
    Eight<float> stored_gate, stored_up;
    load_row(own, at, n, wide, stored_gate);
    load_row(own + n, at, n, wide, stored_up);
    float gate[8], up[8];
    widen(stored_gate, gate);
    widen(stored_up, up);
#pragma unroll
    for (u32 i = 0; i < 8; i++) gate[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
    T* to = out + (u64)blockIdx.x * n;
    store_row(to, at, n, is_wide_row(to, n), gate);
}

#define SILU_GATE(NAME, T)                                                                                 \
    extern "C" __global__ void __launch_bounds__(THREADS) NAME(const float* gate_up, u32 n, T* out) {      \
        silu_gate_row(gate_up, n, out);                                                                    \
    }
#if WITH_F32
SILU_GATE(silu_gate_f32, float)
#endif
#if WITH_F16
SILU_GATE(silu_gate_f16, F16)
#endif
#if WITH_BF16
SILU_GATE(silu_gate_bf16, Bf16)
#endif
