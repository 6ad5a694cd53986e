// Attention of packed rows, of decoding and of prefill alike, over the paged key-value cache in place.
//
// A block is one row, one key-value head, and one span of positions; spans have a fixed length from the
// first position of the sequence, and the last block of a row and head to end joins them in order. So
// a row's bits depend on its own sequence alone. Eight lanes, a team, work on one position at a time and
// on several of the query heads that share its key and value, with a running softmax (Milakov and
// Gimelshein, 2018).

#define THREADS 128
#define WARPS (THREADS / WARP)
#define TEAM 8
#define TEAMS (THREADS / TEAM)

// A team's lane has elements `64 * c + 8 * lane ..` of a head.
template <int CHUNKS> struct Head {
    float x[CHUNKS][8];
};

template <class T, int CHUNKS>
__device__ inline void load_head(const T* head, u32 dim, bool wide, Head<CHUNKS>& out) {
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        u32 at = c * 64 + threadIdx.x % TEAM * 8;
        load8(head + at, at < dim ? dim - at : 0, wide, 0.0f, out.x[c]);
    }
}

// The softmax so far of one head: sums are relative to the largest score.
template <int CHUNKS> struct Running {
    float max;
    float sum;
    Head<CHUNKS> out;
};

__device__ inline float shrunk(float from, float to) {
    return from == NEGATIVE_INFINITY ? 0.0f : __expf(from - to);
}

// `CHUNKS` times 64 elements hold a head; so many query heads, TOGETHER, fit the registers.
template <class T, int CHUNKS, u32 TOGETHER>
__device__ inline void attend(const T* q, u64 q_stride, const T* keys, const T* values, u32 heads,
                              u32 kv_heads, u32 dim, u32 block_size, u32 window, u32 span,
                              const u32* positions, const u32* table_start, const u32* tables,
                              float* parts, u32* done, T* out, u64 out_stride) {
    __shared__ LogSum merged[WARPS][TOGETHER];
    __shared__ float sums[WARPS][TOGETHER][CHUNKS * 64];
    __shared__ u32 last;
    u32 row = blockIdx.x, kv_head = blockIdx.y, group = heads / kv_heads;
    u32 seen = positions[row] + 1, first = window && seen > window ? seen - window : 0;
    u32 first_span = first / span, spans = (seen - 1) / span - first_span + 1;
    if (blockIdx.z >= spans) return;
    u32 from = (first_span + blockIdx.z) * span, to = from + span < seen ? from + span : seen;
    if (from < first) from = first;
    const u32* table = tables + table_start[row];
    u32 lane = threadIdx.x % TEAM, team = threadIdx.x / TEAM, warp = threadIdx.x / WARP;
    bool wide = is_wide(keys) && is_wide(values) && dim % 8 == 0;
    float scale = 1.0f / sqrtf((float)dim);
    // Of this row, head and span: for each query head its largest score, its sum, and its numbers.
    u64 part_size = dim + 2;

    for (u32 head = 0; head < group; head += TOGETHER) {
        u32 many = group - head < TOGETHER ? group - head : TOGETHER;
        Head<CHUNKS> query[TOGETHER];
        Running<CHUNKS> state[TOGETHER];
#pragma unroll
        for (u32 h = 0; h < TOGETHER; h++) {
            state[h].max = NEGATIVE_INFINITY;
            state[h].sum = 0.0f;
            const T* own = q + row * q_stride + (u64)(kv_head * group + head + (h < many ? h : 0)) * dim;
            load_head(own, dim, is_wide(own), query[h]);
#pragma unroll
            for (int c = 0; c < CHUNKS; c++) {
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    query[h].x[c][i] *= scale;
                    state[h].out.x[c][i] = 0.0f;
                }
            }
        }
        // Every team makes the same number of rounds, since its warp shuffles together.
        for (u32 round = from; round < to; round += TEAMS) {
            u32 position = round + team;
            bool valid = position < to;
            u32 read = valid ? position : from;
            u64 slot = (u64)table[read / block_size] * block_size + read % block_size;
            u64 at = (slot * kv_heads + kv_head) * dim;
            Head<CHUNKS> key, value;
            load_head(keys + at, dim, wide, key);
            load_head(values + at, dim, wide, value);
#pragma unroll
            for (u32 h = 0; h < TOGETHER; h++) {
                float score = 0.0f;
#pragma unroll
                for (int c = 0; c < CHUNKS; c++) {
#pragma unroll
                    for (int i = 0; i < 8; i++) score += query[h].x[c][i] * key.x[c][i];
                }
#pragma unroll
                for (int step = TEAM / 2; step; step /= 2) score += __shfl_xor_sync(ALL_LANES, score, step);
                float max = valid ? fmaxf(state[h].max, score) : state[h].max;
                float shrink = shrunk(state[h].max, max), weight = valid ? __expf(score - max) : 0.0f;
                state[h].max = max;
                state[h].sum = state[h].sum * shrink + weight;
#pragma unroll
                for (int c = 0; c < CHUNKS; c++) {
#pragma unroll
                    for (int i = 0; i < 8; i++) {
                        float& sum = state[h].out.x[c][i];
                        sum = sum * shrink + weight * value.x[c][i];
                    }
                }
            }
        }
        // The teams of a warp join, then the warps of the block.
        __syncthreads();
#pragma unroll
        for (u32 h = 0; h < TOGETHER; h++) {
            float max = state[h].max;
#pragma unroll
            for (int step = TEAM; step < WARP; step *= 2) max = fmaxf(max, __shfl_xor_sync(ALL_LANES, max, step));
            float shrink = shrunk(state[h].max, max), sum = state[h].sum * shrink;
#pragma unroll
            for (int step = TEAM; step < WARP; step *= 2) sum += __shfl_xor_sync(ALL_LANES, sum, step);
            if (threadIdx.x % WARP == 0) {
                merged[warp][h].max = max;
                merged[warp][h].sum = sum;
            }
#pragma unroll
            for (int c = 0; c < CHUNKS; c++) {
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    float x = state[h].out.x[c][i] * shrink;
#pragma unroll
                    for (int step = TEAM; step < WARP; step *= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
                    if (threadIdx.x % WARP < TEAM) sums[warp][h][c * 64 + lane * 8 + i] = x;
                }
            }
        }
        __syncthreads();
        for (u32 task = threadIdx.x; task < many * dim; task += THREADS) {
            u32 h = task / dim, i = task % dim;
            float max = NEGATIVE_INFINITY, sum = 0.0f, x = 0.0f;
            for (u32 w = 0; w < WARPS; w++) max = fmaxf(max, merged[w][h].max);
            for (u32 w = 0; w < WARPS; w++) {
                float shrink = shrunk(merged[w][h].max, max);
                sum += merged[w][h].sum * shrink;
                x += sums[w][h][i] * shrink;
            }
            u64 at = (u64)(kv_head * group + head + h);
            if (spans == 1) {
                narrow(x / sum, out[row * out_stride + at * dim + i]);
            } else {
                float* part = parts + (((u64)row * heads + at) * gridDim.z + blockIdx.z) * part_size;
                if (i == 0) {
                    part[0] = max;
                    part[1] = sum;
                }
                part[2 + i] = x;
            }
        }
    }
    if (spans == 1) return;
    // What this block wrote is seen by whoever sees its count.
    __threadfence();
    __syncthreads();
    u32* counter = done + (u64)row * kv_heads + kv_head;
    if (threadIdx.x == 0) last = atomicAdd(counter, 1u) == spans - 1;
    __syncthreads();
    if (!last) return;
    __threadfence();
    for (u32 task = threadIdx.x; task < group * dim; task += THREADS) {
        u64 at = (u64)kv_head * group + task / dim;
        u32 i = task % dim;
        const volatile float* part = parts + ((u64)row * heads + at) * gridDim.z * part_size;
        float max = NEGATIVE_INFINITY, sum = 0.0f, x = 0.0f;
        for (u32 s = 0; s < spans; s++) max = fmaxf(max, part[s * part_size]);
        for (u32 s = 0; s < spans; s++) {
            float shrink = shrunk(part[s * part_size], max);
            sum += part[s * part_size + 1] * shrink;
            x += part[s * part_size + 2 + i] * shrink;
        }
        narrow(x / sum, out[row * out_stride + at * dim + i]);
    }
    if (threadIdx.x == 0) *counter = 0;
}

// `q` is `[rows, q_stride]`, heads first; `keys` and `values` `[slots, kv_heads * dim]`. `tables`: the block
// tables, of which a row's begins at `table_start`. `window` 0: none. The grid is rows, key-value heads, and
// as many spans as the longest row needs. `done` is 0 before and after.
#define ATTENTION(NAME, T, CHUNKS, TOGETHER)                                                               \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                  \
        NAME(const T* q, u64 q_stride, const T* keys, const T* values, u32 heads, u32 kv_heads, u32 dim,   \
             u32 block_size, u32 window, u32 span, const u32* positions, const u32* table_start,           \
             const u32* tables, float* parts, u32* done, T* out, u64 out_stride) {                         \
        attend<T, CHUNKS, TOGETHER>(q, q_stride, keys, values, heads, kv_heads, dim, block_size, window, span,       \
                          positions, table_start, tables, parts, done, out, out_stride);                   \
    }
// HEAD names one size to compile.
#if !defined(HEAD) || HEAD == 64
#define HEAD_64(SUFFIX, T) ATTENTION(paged_attention_64_##SUFFIX, T, 1, 4)
#else
#define HEAD_64(SUFFIX, T)
#endif
#if !defined(HEAD) || HEAD == 128
#define HEAD_128(SUFFIX, T) ATTENTION(paged_attention_128_##SUFFIX, T, 2, 4)
#else
#define HEAD_128(SUFFIX, T)
#endif
#if !defined(HEAD) || HEAD == 256
#define HEAD_256(SUFFIX, T) ATTENTION(paged_attention_256_##SUFFIX, T, 4, 2)
#else
#define HEAD_256(SUFFIX, T)
#endif
#define ATTENTIONS(SUFFIX, T) HEAD_64(SUFFIX, T) HEAD_128(SUFFIX, T) HEAD_256(SUFFIX, T)
#if WITH_F32
ATTENTIONS(f32, float)
#endif
#if WITH_F16
ATTENTIONS(f16, F16)
#endif
#if WITH_BF16
ATTENTIONS(bf16, Bf16)
#endif
