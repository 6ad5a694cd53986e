// Between a layer's first product and its attention: bias, the norm of each query and key head (Qwen3),
// the rotation by position (Su et al., arXiv 2104.09864; element `i` pairs with `i + dim / 2`), and the
// way of keys and values into the paged cache. A warp is one head of one row.

#define THREADS 128
#define WARPS (THREADS / WARP)
// Pairs that a lane turns, of a head of 256 at most.
#define PAIRS 4

// `qkv [rows, (heads + 2 kv_heads) * dim]` and `bias` of that width, or null. `slots`: where each row's key
// and value stand in the cache, `[.., kv_heads * dim]`. `cos` and `sin`: `[context, dim / 2]`. `q_norm` and
// `k_norm`: `[dim]`, or null.
template <class T>
__device__ inline void rotate_head(const float* qkv, const float* bias, u32 heads, u32 kv_heads, u32 dim,
                                   const u32* positions, const u32* slots, const float* cos,
                                   const float* sin, const float* q_norm, const float* k_norm, float eps,
                                   T* q, T* keys, T* values) {
    u32 row = blockIdx.x, head = blockIdx.y * WARPS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    u32 all = heads + 2 * kv_heads, half = dim / 2;
    if (head >= all) return;
    const float* own = qkv + ((u64)row * all + head) * dim;
    const float* shift = bias ? bias + head * dim : 0;
    if (head >= heads + kv_heads) {
        T* out = values + ((u64)slots[row] * kv_heads + head - heads - kv_heads) * dim;
        for (u32 i = lane; i < dim; i += WARP) narrow(shift ? own[i] + shift[i] : own[i], out[i]);
        return;
    }
    bool query = head < heads;
    T* out = query ? q + ((u64)row * heads + head) * dim
                   : keys + ((u64)slots[row] * kv_heads + head - heads) * dim;
    const float* norm = query ? q_norm : k_norm;
    float scale = 1.0f;
    if (norm) {
        float sum = 0.0f;
        for (u32 i = lane; i < dim; i += WARP) {
            float x = shift ? own[i] + shift[i] : own[i];
            sum += x * x;
        }
        scale = 1.0f / sqrtf(warp_sum(sum) / (float)dim + eps);
    }
    u64 turn = (u64)positions[row] * half;
    float low[PAIRS], high[PAIRS], c[PAIRS], s[PAIRS];
#pragma unroll
    for (u32 j = 0; j < PAIRS; j++) {
        // A pair behind the end reads the first and writes nothing.
        u32 i = lane + j * WARP < half ? lane + j * WARP : 0;
        low[j] = own[i];
        high[j] = own[i + half];
        c[j] = cos[turn + i];
        s[j] = sin[turn + i];
    }
#pragma unroll
    for (u32 j = 0; j < PAIRS; j++) {
        u32 i = lane + j * WARP;
        if (i >= half) break;
        float a = low[j], b = high[j];
        if (shift) {
            a += shift[i];
            b += shift[i + half];
        }
        if (norm) {
            a = a * scale * norm[i];
            b = b * scale * norm[i + half];
        }
        narrow(a * c[j] - b * s[j], out[i]);
        narrow(b * c[j] + a * s[j], out[i + half]);
    }
}

#define ROTATE(NAME, T)                                                                                    \
    extern "C" __global__ void __launch_bounds__(THREADS, 8)                                               \
        NAME(const float* qkv, const float* bias, u32 heads, u32 kv_heads, u32 dim, const u32* positions,  \
             const u32* slots, const float* cos, const float* sin, const float* q_norm,                    \
             const float* k_norm, float eps, T* q, T* keys, T* values) {                                   \
        rotate_head(qkv, bias, heads, kv_heads, dim, positions, slots, cos, sin, q_norm, k_norm, eps, q,   \
                    keys, values);                                                                         \
    }
#if WITH_F32
ROTATE(rotate_f32, float)
#endif
#if WITH_F16
ROTATE(rotate_f16, F16)
#endif
#if WITH_BF16
ROTATE(rotate_bf16, Bf16)
#endif
