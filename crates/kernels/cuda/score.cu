// The reward model's values of the candidates: k rows of the output embedding against the weighted
// hidden state, never the whole head.
//
// A block is a row of the batch, a warp one dot product at a time. Its sums have one fixed order, so
// that a row's values do not depend on its company.

#define THREADS 512
#define WARPS (THREADS / WARP)
// Numbers of a hidden state that are weighted once, for all candidates.
#define SEGMENT (THREADS * 8)

// `out[i] = hidden[from + i] * weights[from + i]`, 0 from `d` on; `weights` null: ones.
template <class T>
__device__ inline void weigh(const T* hidden, const float* weights, u32 from, u32 d, float* out) {
    u32 at = from + threadIdx.x * 8, n = at < d ? d - at : 0;
    Eight<T> stored;
    Eight<float> stored_weights = {};
    if (is_wide(hidden) && is_wide(weights) && n >= 8) {
        load_wide(hidden + at, stored);
        if (weights) load_wide(weights + at, stored_weights);
    } else {
        load_some(hidden + at, n, 0.0f, stored);
        if (weights) load_some(weights + at, n, 0.0f, stored_weights);
    }
    float h[8], w[8];
    widen(stored, h);
    widen(stored_weights, w);
#pragma unroll
    for (u32 i = 0; i < 8; i++) out[threadIdx.x * 8 + i] = weights ? h[i] * w[i] : h[i];
}

// `sum_i table[from + i] * weighted[i]` over `many` numbers of a row of `d`, by a warp, `weighted` being 0 from
// the row's end on. `WIDE`: every eight of the row begin at a multiple of 16 bytes.
template <class T, bool WIDE>
__device__ inline float dot(const T* table, u32 d, u32 from, u32 many, const float* weighted) {
    // A lane asks for so many times eight numbers before it uses the first.
    constexpr u32 ahead = WIDE ? 32 / sizeof(T) : 2;
    float sum = 0.0f;
    for (u32 base = threadIdx.x % WARP * 8; base < many; base += ahead * WARP * 8) {
        Eight<T> stored[ahead];
        const T* first = table + from + base;
        if (WIDE && from + base + (ahead - 1) * WARP * 8 < d) {
#pragma unroll
            for (u32 i = 0; i < ahead; i++) load_wide(first + i * WARP * 8, stored[i]);
        } else {
#pragma unroll
            for (u32 i = 0; i < ahead; i++) load_row(table, from + base + i * WARP * 8, d, WIDE, stored[i]);
        }
#pragma unroll
        for (u32 i = 0; i < ahead; i++) {
            u32 at = base + i * WARP * 8;
            float a[8];
            widen(stored[i], a);
#pragma unroll
            for (u32 j = 0; j < 8; j++) sum += a[j] * weighted[at + j];
        }
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
    __shared__ __align__(16) float weighted[2][SEGMENT];
    __shared__ float dots[2][MAX_CANDIDATES];
    __shared__ double terms[MAX_CANDIDATES];
    u32 row = blockIdx.x, n = counts[row];
    const u32* candidates = ids + (u64)row * MAX_CANDIDATES;
    const T *own = hidden[row], *ref_own = ref_hidden[row];
    const float* w = weights[row];
    bool against = ref_own != 0;
    bool wide = d % 8 == 0 && table_stride % 8 == 0 && ref_table_stride % 8 == 0 && is_wide(table) && is_wide(ref_table);
    bool bad = threadIdx.x < n && candidates[threadIdx.x] >= vocab;
    for (u32 from = 0; from < d; from += SEGMENT) {
        u32 many = d - from < SEGMENT ? d - from : SEGMENT;
        weigh(own, w, from, d, weighted[0]);
        if (against) weigh(ref_own, w, from, d, weighted[1]);
        if (__syncthreads_or(bad)) {
            if (threadIdx.x == 0) status[row] = ROW_BAD_REWARD;
            return;
        }
        for (u32 task = threadIdx.x / WARP; task < n * (against ? 2 : 1); task += WARPS) {
            u32 side = task / n, i = task % n;
            const T* of = side ? ref_table + candidates[i] * ref_table_stride : table + candidates[i] * table_stride;
            float sum = wide ? dot<T, true>(of, d, from, many, weighted[side])
                             : dot<T, false>(of, d, from, many, weighted[side]);
            if (threadIdx.x % WARP == 0) dots[side][i] = from ? dots[side][i] + sum : sum;
        }
        __syncthreads();
    }
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
