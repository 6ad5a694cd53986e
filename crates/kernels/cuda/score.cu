// The reward model's values of the candidates: k rows of the output embedding against the weighted
// hidden state, never the whole head.
//
// A block is a row of the batch, a warp one dot product at a time. Its sums have one fixed order, so
// that a row's values do not depend on its company.

#define THREADS 512

// `sum_i table[i] * hidden[i] * weights[i]` over `d`, by a warp; `weights` null: ones.
template <class T>
__device__ inline float dot(const T* table, const T* hidden, const float* weights, u32 d) {
    bool wide = is_wide(table), wide_hidden = is_wide(hidden), wide_weights = is_wide(weights);
    float sum = 0.0f;
#pragma unroll 4
    for (u32 at = threadIdx.x % WARP * 8; at < d; at += WARP * 8) {
        float a[8], h[8], w[8];
        load8(table + at, d - at, wide, 0.0f, a);
        load8(hidden + at, d - at, wide_hidden, 0.0f, h);
        if (weights) {
            load8(weights + at, d - at, wide_weights, 0.0f, w);
#pragma unroll
            for (int i = 0; i < 8; i++) h[i] *= w[i];
        }
#pragma unroll
        for (int i = 0; i < 8; i++) sum += a[i] * h[i];
    }
    return warp_sum(sum);
}

// `log sum exp` of `n` values, the same in every thread; `terms` is room for as many. All threads come.
__device__ inline double log_sum_exp(const float* values, u32 n, double* terms) {
    double max = values[0];
    for (u32 i = 1; i < n; i++) max = values[i] > max ? values[i] : max;
    if (threadIdx.x < n) terms[threadIdx.x] = exp((double)values[threadIdx.x] - max);
    __syncthreads();
    double sum = 0.0;
    for (u32 i = 0; i < n; i++) sum += terms[i];
    // The next call writes to the same room.
    __syncthreads();
    return max + log(sum);
}

// Hidden states and weights lie where they are: `hidden [B]`, `ref_hidden [B]` (null: another reference than
// MODEL) and `weights [B]` (null: ones) are the places of rows of `d`. `normalisers [B, 2]`: log-sum-exp of
// policy and reference over the vocabulary; NaN: over the candidates. `ids` and `values` are `[B, 64]`, of
// which a row uses `counts`.
template <class T>
__device__ inline void score_row(const T* table, u64 table_stride, u32 vocab, u32 d, const T* ref_table,
                                 u64 ref_table_stride, const T* const* hidden, const T* const* ref_hidden,
                                 const float* const* weights, const float* normalisers, const u32* ids,
                                 const u32* counts, float* values, u32* status) {
    __shared__ float dots[2][MAX_CANDIDATES];
    __shared__ double terms[MAX_CANDIDATES];
    u32 row = blockIdx.x, n = counts[row];
    const u32* candidates = ids + (u64)row * MAX_CANDIDATES;
    const T *own = hidden[row], *ref_own = ref_hidden[row];
    const float* w = weights[row];
    bool against = ref_own != 0;
    bool bad = threadIdx.x < n && candidates[threadIdx.x] >= vocab;
    if (__syncthreads_or(bad)) {
        if (threadIdx.x == 0) status[row] = ROW_BAD_REWARD;
        return;
    }
    for (u32 task = threadIdx.x / WARP; task < n * (against ? 2 : 1); task += THREADS / WARP) {
        u32 side = task / n, i = task % n;
        float value = side ? dot(ref_table + candidates[i] * ref_table_stride, ref_own, w, d)
                           : dot(table + candidates[i] * table_stride, own, w, d);
        if (threadIdx.x % WARP == 0) dots[side][i] = value;
    }
    __syncthreads();
    double base = normalisers[2 * row], ref_base = normalisers[2 * row + 1];
    if (base != base) {
        base = log_sum_exp(dots[0], n, terms);
        if (against) ref_base = log_sum_exp(dots[1], n, terms);
    }
    float value = 0.0f;
    if (threadIdx.x < n) {
        double reward = (double)dots[0][threadIdx.x] - base;
        if (against) reward -= (double)dots[1][threadIdx.x] - ref_base;
        value = (float)reward;
        values[(u64)row * MAX_CANDIDATES + threadIdx.x] = value;
    }
    bad = !(fabsf(value) < -NEGATIVE_INFINITY);
    bad = __syncthreads_or(bad);
    if (threadIdx.x == 0) status[row] = bad ? ROW_BAD_REWARD : ROW_OK;
}

#define SCORE(NAME, T)                                                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                  \
        NAME(const T* table, u64 table_stride, u32 vocab, u32 d, const T* ref_table, u64 ref_table_stride, \
             const T* const* hidden, const T* const* ref_hidden, const float* const* weights,              \
             const float* normalisers, const u32* ids, const u32* counts, float* values, u32* status) {    \
        score_row(table, table_stride, vocab, d, ref_table, ref_table_stride, hidden, ref_hidden, weights, \
                  normalisers, ids, counts, values, status);                                               \
    }
#if WITH_F32
SCORE(score_f32, float)
#endif
#if WITH_F16
SCORE(score_f16, F16)
#endif
#if WITH_BF16
SCORE(score_bf16, Bf16)
#endif
