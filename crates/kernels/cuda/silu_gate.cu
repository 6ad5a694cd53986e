// `silu(gate) * up`, from the single precision of a product to the number format of the next one.

#define THREADS 256

// `gate_up [gridDim.x, 2 * n]`, the gate first; `out [gridDim.x, n]`.
template <class T> __device__ inline void silu_gate_row(const float* gate_up, u32 n, T* out) {
    u32 i = blockIdx.y * THREADS + threadIdx.x;
    if (i >= n) return;
    const float* own = gate_up + (u64)blockIdx.x * 2 * n;
    narrow(own[i] / (1.0f + expf(-own[i])) * own[n + i], out[(u64)blockIdx.x * n + i]);
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
