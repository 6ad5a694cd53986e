// Attention of packed rows over the paged key-value cache in place: of decoding, and in single precision of
// a prefill too, of which `chunk_attention.cu` does the rest.
//
// A block is one row, one key-value head, and one span of positions; spans have a fixed length from the
// first position of the sequence, and the last block of a row and head to end joins them in order. So
// a row's bits depend on its own sequence alone. A team of lanes, eight elements of the head each, works on
// several positions at a time, and on several of the query heads that share their keys and values, with a
// running softmax (Milakov and Gimelshein, 2018) in powers of two.

#define THREADS 128
#define WARPS (THREADS / WARP)
// Query heads that share a reading of keys and values.
#define TOGETHER 4
// Positions whose keys and values a team asks for before it uses the first.
#define AHEAD 4
// Positions of a block, as `pack.rs` has it.
#define SPAN 256

__device__ inline float shrunk(float from, float to) {
    return from == NEGATIVE_INFINITY ? 0.0f : power_of_two(from - to);
}

// `TEAM` lanes hold a head of `dim`.
template <class T, u32 TEAM>
__device__ inline void attend(const T* q, u64 q_stride, const T* keys, const T* values, u32 heads,
                              u32 kv_heads, u32 dim, u32 block_size, u32 window, const u32* rows,
                              const u32* positions, const u32* table_start, const u32* tables, float* parts,
                              u32* done, T* out, u64 out_stride) {
    constexpr u32 teams = THREADS / TEAM;
    __shared__ LogSum merged[WARPS][TOGETHER];
    __shared__ float sums[WARPS][TOGETHER][TEAM * 8];
    __shared__ u32 slots[SPAN];
    __shared__ u32 last;
    u32 row = rows[blockIdx.x], kv_head = blockIdx.y, group = heads / kv_heads;
    u32 seen = positions[row] + 1, first = window && seen > window ? seen - window : 0;
    u32 first_span = first / SPAN, spans = (seen - 1) / SPAN - first_span + 1;
    if (blockIdx.z >= spans) return;
    u32 from = (first_span + blockIdx.z) * SPAN, to = from + SPAN < seen ? from + SPAN : seen;
    if (from < first) from = first;
    const u32* table = tables + table_start[row];
    for (u32 p = from + threadIdx.x; p < to; p += THREADS) {
        slots[p - from] = table[p / block_size] * block_size + p % block_size;
    }
    __syncthreads();
    u32 lane = threadIdx.x % TEAM, team = threadIdx.x / TEAM, warp = threadIdx.x / WARP;
    // This lane's elements of a head. A lane behind the head's end reads its beginning, and writes nothing.
    u32 mine = lane * 8 < dim ? dim - lane * 8 : 0, offset = mine ? lane * 8 : 0;
    bool wide = is_wide(keys) && is_wide(values) && dim % 8 == 0;
    float scale = LOG2_E / sqrtf((float)dim);
    // Of this row, head and span: for each query head its largest score, its sum, and its numbers.
    u64 part_size = dim + 2;

    for (u32 head = 0; head < group; head += TOGETHER) {
        u32 many = group - head < TOGETHER ? group - head : TOGETHER;
        float query[TOGETHER][8];
        LogSum state[TOGETHER];
        float mean[TOGETHER][8];
#pragma unroll
        for (u32 h = 0; h < TOGETHER; h++) {
            state[h].max = NEGATIVE_INFINITY;
            state[h].sum = 0.0f;
            const T* own = q + row * q_stride + (u64)(kv_head * group + head + (h < many ? h : 0)) * dim;
            Eight<T> stored;
            load_some(own + offset, mine, 0.0f, stored);
            widen(stored, query[h]);
#pragma unroll
            for (u32 i = 0; i < 8; i++) {
                query[h][i] *= scale;
                mean[h][i] = 0.0f;
            }
        }
        // Every team makes the same number of rounds, since its warp shuffles together.
        for (u32 round = 0; round < to - from; round += teams * AHEAD) {
            Eight<T> key[AHEAD], value[AHEAD];
            u64 at[AHEAD];
#pragma unroll
            for (u32 a = 0; a < AHEAD; a++) {
                u32 position = round + a * teams + team;
                u32 slot = slots[position < to - from ? position : 0];
                at[a] = ((u64)slot * kv_heads + kv_head) * dim + offset;
            }
            if (wide) {
#pragma unroll
                for (u32 a = 0; a < AHEAD; a++) load_wide(keys + at[a], key[a]);
#pragma unroll
                for (u32 a = 0; a < AHEAD; a++) load_wide(values + at[a], value[a]);
            } else {
#pragma unroll
                for (u32 a = 0; a < AHEAD; a++) {
                    load_some(keys + at[a], mine, 0.0f, key[a]);
                    load_some(values + at[a], mine, 0.0f, value[a]);
                }
            }
            // Scores, then what they weigh.
            float scores[TOGETHER][AHEAD];
#pragma unroll
            for (u32 a = 0; a < AHEAD; a++) {
                float k[8];
                widen(key[a], k);
#pragma unroll
                for (u32 h = 0; h < TOGETHER; h++) {
                    if (h && h >= many) break;
                    scores[h][a] = 0.0f;
#pragma unroll
                    for (u32 i = 0; i < 8; i++) scores[h][a] += query[h][i] * k[i];
                }
            }
#pragma unroll
            for (u32 h = 0; h < TOGETHER; h++) {
                if (h && h >= many) break;
                float max = state[h].max;
#pragma unroll
                for (u32 a = 0; a < AHEAD; a++) {
#pragma unroll
                    for (u32 step = TEAM / 2; step; step /= 2) {
                        scores[h][a] += __shfl_xor_sync(ALL_LANES, scores[h][a], step);
                    }
                    bool valid = round + a * teams + team < to - from;
                    if (!valid) scores[h][a] = NEGATIVE_INFINITY;
                    max = fmaxf(max, scores[h][a]);
                }
                float shrink = shrunk(state[h].max, max);
                state[h].max = max;
                state[h].sum *= shrink;
#pragma unroll
                for (u32 a = 0; a < AHEAD; a++) {
                    scores[h][a] = shrunk(scores[h][a], max);
                    state[h].sum += scores[h][a];
                }
#pragma unroll
                for (u32 i = 0; i < 8; i++) mean[h][i] *= shrink;
            }
#pragma unroll
            for (u32 a = 0; a < AHEAD; a++) {
                float v[8];
                widen(value[a], v);
#pragma unroll
                for (u32 h = 0; h < TOGETHER; h++) {
                    if (h && h >= many) break;
#pragma unroll
                    for (u32 i = 0; i < 8; i++) mean[h][i] += scores[h][a] * v[i];
                }
            }
        }
        // The teams of a warp join, then the warps of the block.
        __syncthreads();
#pragma unroll
        for (u32 h = 0; h < TOGETHER; h++) {
            float max = state[h].max;
#pragma unroll
            for (u32 step = TEAM; step < WARP; step *= 2) max = fmaxf(max, __shfl_xor_sync(ALL_LANES, max, step));
            float shrink = shrunk(state[h].max, max), sum = state[h].sum * shrink;
#pragma unroll
            for (u32 step = TEAM; step < WARP; step *= 2) sum += __shfl_xor_sync(ALL_LANES, sum, step);
            if (threadIdx.x % WARP == 0) {
                merged[warp][h].max = max;
                merged[warp][h].sum = sum;
            }
#pragma unroll
            for (u32 i = 0; i < 8; i++) {
                float x = mean[h][i] * shrink;
#pragma unroll
                for (u32 step = TEAM; step < WARP; step *= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
                if (threadIdx.x % WARP < TEAM) sums[warp][h][lane * 8 + i] = x;
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
                float* part = parts + (((u64)blockIdx.x * heads + at) * gridDim.z + blockIdx.z) * part_size;
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
    u32* counter = done + (u64)blockIdx.x * kv_heads + kv_head;
    if (threadIdx.x == 0) last = atomicAdd(counter, 1u) == spans - 1;
    __syncthreads();
    if (!last) return;
    __threadfence();
    for (u32 task = threadIdx.x; task < group * dim; task += THREADS) {
        u64 at = (u64)kv_head * group + task / dim;
        u32 i = task % dim;
        const volatile float* part = parts + ((u64)blockIdx.x * heads + at) * gridDim.z * part_size;
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

// `q` is `[.., q_stride]`, heads first; `keys` and `values` `[slots, kv_heads * dim]`. `tables`: the block
// tables, of which a row's begins at `table_start`. `window` 0: none. `rows [gridDim.x]`: those that are computed.
// The grid is rows, key-value heads, and as many spans as the longest row needs. `done` is 0 before and after.
#define ATTENTION(NAME, T, ROOM)                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS, 2)                                               \
        NAME(const T* q, u64 q_stride, const T* keys, const T* values, u32 heads, u32 kv_heads, u32 dim,   \
             u32 block_size, u32 window, const u32* rows, const u32* positions, const u32* table_start,    \
             const u32* tables, float* parts, u32* done, T* out, u64 out_stride) {                         \
        attend<T, ROOM / 8>(q, q_stride, keys, values, heads, kv_heads, dim, block_size, window, rows,     \
                            positions, table_start, tables, parts, done, out, out_stride);                 \
    }
#if WITH_F32
ATTENTIONS(paged_attention, f32, float)
#endif
#if WITH_F16
ATTENTIONS(paged_attention, f16, F16)
#endif
#if WITH_BF16
ATTENTIONS(paged_attention, bf16, Bf16)
#endif
