// The candidates of a step: top-k and both log-sum-exps of every row in one reading of the logits.
//
// A row is cut into chunks, one a block; the last block of a row to end joins what the others found. A
// block keeps its best in a pool in shared memory: a logit above the worst of the best is appended, and
// a pool that is full is sorted and cut. A logit and its id are one 64-bit key, larger is better, so
// that all keys differ, ties go to the lower id, and the order of appending does not matter.

#define THREADS 256
#define EACH 8
#define TILE (THREADS * EACH)
#define KEPT MAX_CANDIDATES
#define POOL 512
#define ROOM (POOL - KEPT)

#define EDIT_PENALTY 0u
#define EDIT_BIAS 1u

// The best so far in the first `KEPT` places, behind them what was appended since.
struct Pool {
    u64 keys[POOL];
    // What is not above it is not among the best.
    u64 floor;
    u32 appended;
};

// Never 0 for a finite logit.
__device__ inline u64 key_of(float logit, u32 id) {
    // Adding 0 makes one zero of both.
    u32 bits = __float_as_uint(logit + 0.0f);
    bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return (u64)bits << 32 | (0xffffffffu - id);
}
__device__ inline u32 id_of(u64 key) { return 0xffffffffu - (u32)key; }
__device__ inline float logit_of(u64 key) {
    u32 bits = (u32)(key >> 32);
    return __uint_as_float(bits & 0x80000000u ? bits & 0x7fffffffu : ~bits);
}

// Bitonic, best first; `n` is a power of two. Begins and ends with a barrier.
__device__ inline void sort_keys(u64* keys, u32 n) {
    for (u32 size = 2; size <= n; size *= 2) {
        for (u32 stride = size / 2; stride; stride /= 2) {
            __syncthreads();
            for (u32 i = threadIdx.x; i < n / 2; i += THREADS) {
                u32 low = 2 * i - (i & (stride - 1)), high = low + stride;
                u64 a = keys[low], b = keys[high];
                if ((a < b) == ((low & size) == 0)) {
                    keys[low] = b;
                    keys[high] = a;
                }
            }
        }
    }
    __syncthreads();
}

__device__ inline void clear(Pool& pool) {
    __syncthreads();
    if (threadIdx.x < KEPT) pool.keys[threadIdx.x] = 0;
    if (threadIdx.x == 0) {
        pool.floor = 0;
        pool.appended = 0;
    }
    __syncthreads();
}

// Sets the floor of an empty pool: at least `k` keys are as good as the k-th of the threads' best.
__device__ inline void prime(Pool& pool, const u64 (&keys)[EACH], u32 k) {
    u64 best = 0;
    for (int i = 0; i < EACH; i++) best = keys[i] > best ? keys[i] : best;
    pool.keys[threadIdx.x] = best;
    sort_keys(pool.keys, THREADS);
    if (threadIdx.x == 0) {
        u64 worst = pool.keys[k - 1];
        pool.floor = worst ? worst - 1 : 0;
    }
    __syncthreads();
    if (threadIdx.x < KEPT) pool.keys[threadIdx.x] = 0;
    __syncthreads();
}

// Sorts what was appended in among the best. Needs a barrier since the last appending.
__device__ inline void shrink(Pool& pool, u32 k) {
    u32 used = KEPT + (pool.appended < ROOM ? pool.appended : ROOM);
    for (u32 i = used + threadIdx.x; i < POOL; i += THREADS) pool.keys[i] = 0;
    sort_keys(pool.keys, POOL);
    if (threadIdx.x == 0) {
        pool.appended = 0;
        if (pool.keys[k - 1]) pool.floor = pool.keys[k - 1];
    }
    __syncthreads();
}

// Offers every thread's keys, 0 for none; all threads come here. Ends with a barrier.
__device__ inline void offer(Pool& pool, u64 (&keys)[EACH], u32 k) {
    for (;;) {
        bool full = false;
        u64 floor = pool.floor;
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            if (keys[i] <= floor) continue;
            u32 at = atomicAdd(&pool.appended, 1u);
            if (at < ROOM) {
                pool.keys[KEPT + at] = keys[i];
                keys[i] = 0;
            } else {
                full = true;
            }
        }
        if (!__syncthreads_or(full)) return;
        shrink(pool, k);
    }
}

__device__ inline void add(LogSum& total, const float (&x)[EACH]) {
    float max = total.max;
#pragma unroll
    for (int i = 0; i < EACH; i++) max = fmaxf(max, x[i]);
    if (max == NEGATIVE_INFINITY) return;
    float sum = total.sum * __expf(total.max - max);
#pragma unroll
    for (int i = 0; i < EACH; i++) sum += __expf(x[i] - max);
    total.max = max;
    total.sum = sum;
}

// The sum over a block, for its first thread, in an order that is always the same.
__device__ inline LogSum block_sum(LogSum mine, LogSum* warps) {
#pragma unroll
    for (int lane = WARP / 2; lane; lane /= 2) {
        LogSum theirs = {__shfl_xor_sync(ALL_LANES, mine.max, lane),
                         __shfl_xor_sync(ALL_LANES, mine.sum, lane)};
        mine = joined(mine, theirs);
    }
    __syncthreads();
    if (threadIdx.x % WARP == 0) warps[threadIdx.x / WARP] = mine;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int i = 1; i < THREADS / WARP; i++) mine = joined(mine, warps[i]);
    }
    return mine;
}

__device__ inline bool unusable(float x) { return !(x < -NEGATIVE_INFINITY); }

// The first of the ascending `ids[from..to]` that is not below `id`.
__device__ inline u32 first_from(const u32* ids, u32 from, u32 to, u32 id) {
    while (from < to) {
        u32 middle = from + (to - from) / 2;
        if (ids[middle] < id) {
            from = middle + 1;
        } else {
            to = middle;
        }
    }
    return from;
}

// Writes a row's results from the sorted pool.
template <class T>
__device__ inline void finish(const Pool& pool, const T* row, u32 k, bool bad, LogSum edited, LogSum raw,
                              u32* ids, float* logits, float* raw_logits, float* sums, u32* count,
                              u32* status) {
    u64 key = threadIdx.x < k && !bad ? pool.keys[threadIdx.x] : 0;
    u32 found = (u32)__syncthreads_count(key != 0);
    if (threadIdx.x < KEPT) {
        u64 at = (u64)blockIdx.y * KEPT + threadIdx.x;
        ids[at] = key ? id_of(key) : 0xffffffffu;
        logits[at] = key ? logit_of(key) : NEGATIVE_INFINITY;
        raw_logits[at] = key ? widen(row[id_of(key)]) : NEGATIVE_INFINITY;
    }
    if (threadIdx.x == 0) {
        sums[2 * blockIdx.y] = edited.max + logf(edited.sum);
        sums[2 * blockIdx.y + 1] = raw.max + logf(raw.sum);
        count[blockIdx.y] = found;
        status[blockIdx.y] = found ? ROW_OK : ROW_BAD_LOGITS;
    }
}

// A block is chunk x of row y. Edits are ascending by id, and of one id in order of application; a row
// without any has an empty range, and `edit_start` may be null where no row has. `done` is 0 before and after.
template <class T>
__device__ inline void select_row(const T* logits, u64 stride, u32 vocab, u32 chunk, const u32* ks,
                                  const u32* edit_start, const u32* edit_ids, const u32* edit_kinds,
                                  const float* edit_values, u64* part_keys, float* part_sums, u32* done,
                                  u32* ids, float* out_logits, float* raw_logits, float* sums, u32* count,
                                  u32* status) {
    __shared__ Pool pool;
    __shared__ LogSum warps[THREADS / WARP];
    __shared__ u32 last;
    const T* row = logits + blockIdx.y * stride;
    u32 k = ks[blockIdx.y];
    u32 begin = blockIdx.x * chunk;
    u32 end = begin + chunk < vocab ? begin + chunk : vocab;
    bool wide = is_wide(row);
    u32 edits = 0, edits_end = 0;
    if (edit_start) {
        edits_end = edit_start[blockIdx.y + 1];
        edits = first_from(edit_ids, edit_start[blockIdx.y], edits_end, begin);
        edits_end = first_from(edit_ids, edits, edits_end, end);
    }
    bool has_edits = edits < edits_end;
    LogSum raw = {NEGATIVE_INFINITY, 0.0f}, edited = raw;
    bool bad = false;
    clear(pool);

    float next[EACH];
    u32 mine = begin + threadIdx.x * EACH;
    load8(row + mine, mine < end ? end - mine : 0, wide, NEGATIVE_INFINITY, next);
    for (u32 tile = begin; tile < end; tile += TILE) {
        float x[EACH];
        u32 first = tile + threadIdx.x * EACH;
#pragma unroll
        for (int i = 0; i < EACH; i++) x[i] = next[i];
        // The next tile is on its way while this one is worked on.
        u32 then = first + TILE;
        load8(row + then, then < end ? end - then : 0, wide, NEGATIVE_INFINITY, next);
#pragma unroll
        for (int i = 0; i < EACH; i++) bad |= unusable(x[i]);
        add(raw, x);
        if (has_edits) {
            u32 edit = first_from(edit_ids, edits, edits_end, first);
#pragma unroll
            for (u32 i = 0; i < EACH; i++) {
                for (; edit < edits_end && edit_ids[edit] == first + i; edit++) {
                    float value = edit_values[edit];
                    u32 kind = edit_kinds[edit];
                    if (kind == EDIT_PENALTY) {
                        x[i] = x[i] < 0.0f ? x[i] * value : x[i] / value;
                    } else {
                        x[i] = kind == EDIT_BIAS ? x[i] + value : NEGATIVE_INFINITY;
                    }
                }
                bad |= unusable(x[i]);
            }
            add(edited, x);
        }
        u64 keys[EACH];
#pragma unroll
        for (u32 i = 0; i < EACH; i++) {
            bool finite = x[i] > NEGATIVE_INFINITY && x[i] < -NEGATIVE_INFINITY;
            keys[i] = finite ? key_of(x[i], first + i) : 0;
        }
        if (tile == begin) prime(pool, keys, k);
        offer(pool, keys, k);
    }
    shrink(pool, k);
    bad = __syncthreads_or(bad);
    raw = block_sum(raw, warps);
    edited = has_edits ? block_sum(edited, warps) : raw;
    u32 parts = gridDim.x;
    if (parts == 1) {
        finish(pool, row, k, bad, edited, raw, ids, out_logits, raw_logits, sums, count, status);
        return;
    }

    u64 part = (u64)blockIdx.y * parts + blockIdx.x;
    if (threadIdx.x < KEPT) part_keys[part * KEPT + threadIdx.x] = threadIdx.x < k ? pool.keys[threadIdx.x] : 0;
    if (threadIdx.x == 0) {
        float* out = part_sums + part * 4;
        // A chunk that cannot be used tells so by the sum that it would have.
        out[0] = edited.max;
        out[1] = bad ? __int_as_float(0x7fc00000) : edited.sum;
        out[2] = raw.max;
        out[3] = raw.sum;
    }
    // What this block wrote is seen by whoever sees its count.
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) last = atomicAdd(&done[blockIdx.y], 1u) == parts - 1;
    __syncthreads();
    if (!last) return;
    __threadfence();
    clear(pool);
    const volatile u64* found = part_keys + (u64)blockIdx.y * parts * KEPT;
    for (u32 from = 0; from < parts * KEPT; from += TILE) {
        u64 keys[EACH];
#pragma unroll
        for (u32 i = 0; i < EACH; i++) {
            u32 at = from + i * THREADS + threadIdx.x;
            keys[i] = at < parts * KEPT ? found[at] : 0;
        }
        offer(pool, keys, k);
    }
    shrink(pool, k);
    bad = false;
    raw.max = edited.max = NEGATIVE_INFINITY;
    raw.sum = edited.sum = 0.0f;
    const volatile float* theirs = part_sums + (u64)blockIdx.y * parts * 4;
    for (u32 i = 0; i < parts; i++) {
        LogSum a = {theirs[4 * i], theirs[4 * i + 1]}, b = {theirs[4 * i + 2], theirs[4 * i + 3]};
        bad |= a.sum != a.sum;
        edited = joined(edited, a);
        raw = joined(raw, b);
    }
    if (threadIdx.x == 0) done[blockIdx.y] = 0;
    finish(pool, row, k, bad, edited, raw, ids, out_logits, raw_logits, sums, count, status);
}

#define SELECT(NAME, T)                                                                                    \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                  \
        NAME(const T* logits, u64 stride, u32 vocab, u32 chunk, const u32* ks, const u32* edit_start,      \
             const u32* edit_ids, const u32* edit_kinds, const float* edit_values, u64* part_keys,         \
             float* part_sums, u32* done, u32* ids, float* out_logits, float* raw_logits, float* sums,     \
             u32* count, u32* status) {                                                                    \
        select_row(logits, stride, vocab, chunk, ks, edit_start, edit_ids, edit_kinds, edit_values,        \
                   part_keys, part_sums, done, ids, out_logits, raw_logits, sums, count, status);          \
    }
#if WITH_F32
SELECT(select_f32, float)
#endif
#if WITH_F16
SELECT(select_f16, F16)
#endif
#if WITH_BF16
SELECT(select_bf16, Bf16)
#endif
