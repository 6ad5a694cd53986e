// Attention of the chunks of a prefill over the paged key-value cache in place, by tensor cores, in half
// precision and bfloat16 (after FlashAttention-2, Dao, arXiv 2307.08691).
//
// A block is a tile of neighbouring tokens of one sequence, and one key-value head: the query heads that share
// it, of all tokens, are the 64 rows of its products. Keys and values come in fixed spans of positions from
// the first of the sequence, so that a row's bits depend on its own sequence alone. A warp has 16 rows.

#define THREADS 128

// A product of 16 by 16 and 16 by 8 numbers, added to `sum`: the layout of PTX's `mma.m16n8k16`. Lane
// `4 * g + t` has of the sum rows g and g + 8, columns 2t and 2t + 1; of `a` the same rows, columns 2t, 2t + 1 and
// the same plus 8; of `b` column g, rows 2t, 2t + 1 and the same plus 8.
__device__ inline void multiply(float (&sum)[4], const u32 (&a)[4], const u32 (&b)[2], Bf16) {
#ifdef ATTUNE_ON_CPU
    emulator::multiply(sum, a, b, bf16_to_float);
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}
__device__ inline void multiply(float (&sum)[4], const u32 (&a)[4], const u32 (&b)[2], F16) {
#ifdef ATTUNE_ON_CPU
    emulator::multiply(sum, a, b, half_to_float);
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// The largest and the sum over the four lanes that share a row.
__device__ inline float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 2));
}
__device__ inline float quad_sum(float x) {
    x += __shfl_xor_sync(ALL_LANES, x, 1);
    return x + __shfl_xor_sync(ALL_LANES, x, 2);
}

// `DIM`: what the room for a head holds. `tiles [gridDim.x, 2]`: the first row and the tokens of each.
template <class T, u32 DIM>
__device__ inline void attend(const T* q, u64 q_stride, const T* keys, const T* values, u32 heads,
                              u32 kv_heads, u32 dim, u32 block_size, u32 window, const u32* positions,
                              const u32* table_start, const u32* tables, const u32* tiles, T* out,
                              u64 out_stride) {
    // Positions of a span; what fits the registers.
    constexpr u32 span = DIM == 256 ? 16 : 64;
    // Words of a row, so that the lanes of a warp read from 32 banks.
    constexpr u32 key_words = DIM / 2 + 4, value_words = DIM + 8;
    // A thread's eights of a span's keys, and how many it asks for before it stores the first.
    constexpr u32 eights = DIM / 8, loads = span * eights / THREADS, ahead = DIM == 256 ? 2 : 4;
    __shared__ __align__(16) u32 key[span * key_words];
    // A word has a number of two neighbouring positions, as a product takes them.
    __shared__ __align__(16) u32 value[span / 2 * value_words];
    __shared__ u32 slots[span];
    u32 kv_head = blockIdx.y, group = heads / kv_heads;
    u32 first_row = tiles[2 * blockIdx.x], tokens = tiles[2 * blockIdx.x + 1];
    u32 begin = positions[first_row], end = begin + tokens;
    const u32* table = tables + table_start[first_row];
    u32 lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    u32 width = kv_heads * dim;
    bool wide = is_wide(keys) && is_wide(values) && dim % 8 == 0;
    float scale = LOG2_E / sqrtf((float)dim);

    // This lane's two rows: a token and a head each.
    u32 position[2];
    bool in[2];
    const T* query[2];
    T* to[2];
#pragma unroll
    for (u32 r = 0; r < 2; r++) {
        u32 row = threadIdx.x / WARP * 16 + r * 8 + g, token = row / group;
        in[r] = token < tokens;
        if (!in[r]) token = 0;
        position[r] = begin + token;
        u64 head = (u64)(kv_head * group + row % group) * dim;
        query[r] = q + (first_row + token) * q_stride + head;
        to[r] = out + (first_row + token) * out_stride + head;
    }
    u32 queries[DIM / 16][4];
#pragma unroll
    for (u32 k = 0; k < DIM / 16; k++) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            u32 at = k * 16 + i / 2 * 8 + 2 * t;
            u32 low = at < dim ? bits_of(query[i % 2][at]) : 0, high = at + 1 < dim ? bits_of(query[i % 2][at + 1]) : 0;
            queries[k][i] = low | high << 16;
        }
    }
    float max[2] = {NEGATIVE_INFINITY, NEGATIVE_INFINITY}, sum[2] = {0.0f, 0.0f};
    float mean[DIM / 8][4];
#pragma unroll
    for (u32 n = 0; n < DIM / 8; n++) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) mean[n][i] = 0.0f;
    }

    u32 first = window && begin + 1 > window ? begin + 1 - window : 0;
    for (u32 from = first / span * span; from < end; from += span) {
        for (u32 i = threadIdx.x; i < span; i += THREADS) {
            u32 p = from + i < end ? from + i : end - 1;
            slots[i] = table[p / block_size] * block_size + p % block_size;
        }
        // The slots are there, and all are done with the last span.
        __syncthreads();
#pragma unroll
        for (u32 some = 0; some < loads; some += ahead) {
            Eight<T> loaded[ahead];
#pragma unroll
            for (u32 i = 0; i < ahead; i++) {
                u32 at = threadIdx.x + (some + i) * THREADS;
                load_row(keys + (u64)slots[at / eights] * width + kv_head * dim, at % eights * 8, dim, wide, loaded[i]);
            }
#pragma unroll
            for (u32 i = 0; i < ahead; i++) {
                u32 at = threadIdx.x + (some + i) * THREADS;
                u32* words = key + at / eights * key_words + at % eights * 4;
#pragma unroll
                for (u32 j = 0; j < 4; j++) words[j] = loaded[i].words[j];
            }
        }
#pragma unroll
        for (u32 some = 0; some < loads; some += ahead) {
            Eight<T> loaded[ahead];
#pragma unroll
            for (u32 i = 0; i < ahead; i++) {
                u32 at = threadIdx.x + (some + i) / 2 * THREADS, p = at / eights * 2 + i % 2;
                load_row(values + (u64)slots[p] * width + kv_head * dim, at % eights * 8, dim, wide, loaded[i]);
            }
#pragma unroll
            for (u32 i = 0; i < ahead; i += 2) {
                u32 at = threadIdx.x + (some + i) / 2 * THREADS, p = from + at / eights * 2;
                u32* words = value + at / eights * value_words + at % eights * 8;
#pragma unroll
                for (u32 j = 0; j < 8; j++) {
                    u32 low = loaded[i].words[j / 2] >> (16 * (j % 2)), high = loaded[i + 1].words[j / 2] >> (16 * (j % 2));
                    // What nobody sees is 0, so that it is nothing times 0.
                    words[j] = (p < end ? low & 0xffffu : 0) | (p + 1 < end ? high << 16 : 0);
                }
            }
        }
        __syncthreads();

        float scores[span / 8][4];
#pragma unroll
        for (u32 n = 0; n < span / 8; n++) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) scores[n][i] = 0.0f;
#pragma unroll
            for (u32 k = 0; k < DIM / 16; k++) {
                const u32* words = key + (n * 8 + g) * key_words + k * 8 + t;
                u32 b[2] = {words[0], words[4]};
                multiply(scores[n], queries[k], b, T());
            }
        }
        float most[2] = {max[0], max[1]};
#pragma unroll
        for (u32 n = 0; n < span / 8; n++) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                u32 p = from + n * 8 + 2 * t + i % 2, own = position[i / 2];
                bool sees = in[i / 2] && p <= own && (!window || p + window > own);
                scores[n][i] = sees ? scores[n][i] * scale : NEGATIVE_INFINITY;
                most[i / 2] = fmaxf(most[i / 2], scores[n][i]);
            }
        }
        float base[2];
#pragma unroll
        for (u32 r = 0; r < 2; r++) {
            most[r] = quad_max(most[r]);
            // Negative infinity less itself would be NaN.
            base[r] = most[r] == NEGATIVE_INFINITY ? 0.0f : most[r];
            float shrink = power_of_two(max[r] - base[r]);
            max[r] = most[r];
            sum[r] *= shrink;
#pragma unroll
            for (u32 n = 0; n < DIM / 8; n++) {
                mean[n][2 * r] *= shrink;
                mean[n][2 * r + 1] *= shrink;
            }
        }
#pragma unroll
        for (u32 k = 0; k < span / 16; k++) {
            u32 weights[4];
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                float(&own)[4] = scores[2 * k + i / 2];
                float low = power_of_two(own[i % 2 * 2] - base[i % 2]), high = power_of_two(own[i % 2 * 2 + 1] - base[i % 2]);
                sum[i % 2] += low + high;
                weights[i] = narrow_pair(low, high, T());
            }
#pragma unroll
            for (u32 n = 0; n < DIM / 8; n++) {
                const u32* words = value + (k * 8 + t) * value_words + n * 8 + g;
                u32 b[2] = {words[0], words[4 * value_words]};
                multiply(mean[n], weights, b, T());
            }
        }
    }
#pragma unroll
    for (u32 r = 0; r < 2; r++) {
        float share = 1.0f / quad_sum(sum[r]);
        if (!in[r]) continue;
#pragma unroll
        for (u32 n = 0; n < DIM / 8; n++) {
            u32 at = n * 8 + 2 * t;
            if (at < dim) narrow(mean[n][2 * r] * share, to[r][at]);
            if (at + 1 < dim) narrow(mean[n][2 * r + 1] * share, to[r][at + 1]);
        }
    }
}

// `q`, `keys`, `values`, `positions`, `table_start`, `tables`, `window` and `out` as for `paged_attention`, over the same
// rows, of which those in `tiles` are computed. A tile has at most 64 over the query heads of a group tokens.
#define ATTENTION(NAME, T, DIM)                                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS, 2)                                               \
        NAME(const T* q, u64 q_stride, const T* keys, const T* values, u32 heads, u32 kv_heads, u32 dim,   \
             u32 block_size, u32 window, const u32* positions, const u32* table_start, const u32* tables,  \
             const u32* tiles, T* out, u64 out_stride) {                                                   \
        attend<T, DIM>(q, q_stride, keys, values, heads, kv_heads, dim, block_size, window, positions,     \
                       table_start, tables, tiles, out, out_stride);                                       \
    }
#if WITH_F16
ATTENTIONS(chunk_attention, f16, F16)
#endif
#if WITH_BF16
ATTENTIONS(chunk_attention, bf16, Bf16)
#endif
