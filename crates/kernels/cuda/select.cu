// The candidates of a step: top-k and both log-sum-exps of every row in one reading of the logits.
//
// A row is cut into chunks, one a block; the last block of a row to end joins what the others found. A
// block keeps its best in a pool in shared memory: a logit above the floor is appended, and a pool that is
// full is cut at a higher floor, which is found by bisection. Nothing is sorted but the last 64, by counting.
// A logit and its id are one 64-bit key, larger is better, so that all keys differ, ties go to the lower id,
// and the order of appending does not matter.

#define THREADS 256
// Of a tile each thread has so many times eight neighbours, and asks for the next tile's before it works.
#define VECTORS 2
#define TILE (THREADS * VECTORS * 8)
#define KEPT MAX_CANDIDATES
#define POOL 512
// Keys of other chunks that a thread takes at once.
#define JOINED 8

#define EDIT_PENALTY 0u
#define EDIT_BIAS 1u

struct Pool {
    u64 keys[POOL];
    // What is not above it is not among the best.
    u64 floor;
    // Keys that were appended; those beyond `POOL` found no room.
    u32 used;
};

// In the order of the numbers.
__device__ inline u32 ordered(float x) {
    u32 bits = __float_as_uint(x);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ inline u64 key_of(float logit, u32 id) {
    // Adding 0 makes one zero of both.
    return (u64)ordered(logit + 0.0f) << 32 | (0xffffffffu - id);
}
__device__ inline u32 id_of(u64 key) { return 0xffffffffu - (u32)key; }
__device__ inline float logit_of(u64 key) {
    u32 bits = (u32)(key >> 32);
    return __uint_as_float(bits & 0x80000000u ? bits & 0x7fffffffu : ~bits);
}
// Above negative infinity of every id, below all else.
__device__ inline u64 lowest_floor() { return (u64)ordered(NEGATIVE_INFINITY) << 32 | 0xffffffffu; }

__device__ inline void clear(Pool& pool) {
    __syncthreads();
    if (threadIdx.x == 0) {
        pool.floor = lowest_floor();
        pool.used = 0;
    }
    __syncthreads();
}

// Sets the floor of an empty pool from every thread's best: at least `k` logits are as good as it, and of
// the threads' best not many more than `k` are.
__device__ inline void prime(Pool& pool, float best, u32 k) {
    u32 own = ordered(best), low = ordered(NEGATIVE_INFINITY), high = 0xffffffffu;
    while (high - low > 1) {
        u32 middle = low + (high - low) / 2, count = (u32)__syncthreads_count(own >= middle);
        if (count < k) {
            high = middle;
        } else {
            low = middle;
            if (count <= k + k / 4) break;
        }
    }
    if (threadIdx.x == 0 && low > ordered(NEGATIVE_INFINITY)) pool.floor = (u64)low << 32;
    __syncthreads();
}

// Leaves at most `KEPT` of the pool's keys, among them the best `k`. Needs a barrier since the last appending,
// and ends with one.
__device__ inline void cut(Pool& pool, u32 k) {
    u32 used = pool.used < POOL ? pool.used : POOL;
    if (used <= KEPT) return;
    u64 mine[POOL / THREADS];
#pragma unroll
    for (u32 i = 0; i < POOL / THREADS; i++) {
        u32 at = i * THREADS + threadIdx.x;
        mine[i] = at < used ? pool.keys[at] : 0;
    }
    // More than `KEPT` keys are at least `low`, fewer than `k` are at least `high`.
    u64 low = pool.floor + 1, high = ~0ull;
    for (;;) {
        u64 middle = low + (high - low) / 2;
        u32 count = 0;
#pragma unroll
        for (u32 i = 0; i < POOL / THREADS; i++) {
            if (i * THREADS < used) count += (u32)__syncthreads_count(mine[i] >= middle);
        }
        (count < k ? high : low) = middle;
        if (count >= k && count <= KEPT) break;
    }
    if (threadIdx.x == 0) {
        pool.floor = low - 1;
        pool.used = 0;
    }
    __syncthreads();
#pragma unroll
    for (u32 i = 0; i < POOL / THREADS; i++) {
        if (mine[i] >= low) pool.keys[atomicAdd(&pool.used, 1u)] = mine[i];
    }
    __syncthreads();
}

// Of eight numbers that at `i`: registers have no index.
__device__ inline float one_of(const float (&x)[8], u32 i) {
    float own = x[0];
#pragma unroll
    for (u32 j = 1; j < 8; j++) own = i == j ? x[j] : own;
    return own;
}

// Appends what is above the floor of eight neighbours that begin with id `first`. `left`: a bit for each that is
// still to be looked at. Whether one found no room, and is left.
__device__ inline bool append(Pool& pool, u64 floor, const float (&x)[8], u32 first, u32& left) {
    float limit = logit_of(floor);
    // Few are: one comparison for all eight.
    bool any = false;
#pragma unroll
    for (u32 i = 0; i < 8; i++) any |= x[i] >= limit;
    if (!any) return false;
    u32 above = 0;
#pragma unroll
    for (u32 i = 0; i < 8; i++) above |= x[i] >= limit ? 1u << i : 0;
    bool full = false;
    for (above &= left; above; above &= above - 1) {
        u32 i = (u32)__ffs((int)above) - 1;
        u64 key = key_of(one_of(x, i), first + i);
        u32 at = key > floor ? atomicAdd(&pool.used, 1u) : POOL;
        if (at < POOL) pool.keys[at] = key;
        if (at < POOL || key <= floor) {
            left &= ~(1u << i);
        } else {
            full = true;
        }
    }
    return full;
}

// Offers every thread's logits, of which the eight of `v` begin with id `first + v * THREADS * 8`. All threads
// come here. Ends with a barrier.
__device__ inline void offer(Pool& pool, const float (&x)[VECTORS][8], u32 first, u32 k) {
    u32 left[VECTORS];
#pragma unroll
    for (u32 v = 0; v < VECTORS; v++) left[v] = 0xffu;
    for (;;) {
        bool full = false;
        u64 floor = pool.floor;
#pragma unroll
        for (u32 v = 0; v < VECTORS; v++) full |= append(pool, floor, x[v], first + v * THREADS * 8, left[v]);
        if (!__syncthreads_or(full)) return;
        cut(pool, k);
    }
}

__device__ inline float most(const float (&x)[VECTORS][8]) {
    float max = NEGATIVE_INFINITY;
#pragma unroll
    for (u32 v = 0; v < VECTORS; v++) {
#pragma unroll
        for (int i = 0; i < 8; i++) max = fmaxf(max, x[v][i]);
    }
    return max;
}

// Adds logits, whose largest is `max`. NaN and positive infinity make the sum NaN, and it remains so.
__device__ inline void add(LogSum& total, const float (&x)[VECTORS][8], float max) {
    max = fmaxf(total.max, max);
    // In powers of two. Negative infinity less itself would be NaN.
    float base = max == NEGATIVE_INFINITY ? 0.0f : max * LOG2_E;
    float sums[VECTORS];
#pragma unroll
    for (u32 v = 0; v < VECTORS; v++) {
        sums[v] = 0.0f;
#pragma unroll
        for (int i = 0; i < 8; i++) sums[v] += power_of_two(fmaf(x[v][i], LOG2_E, -base));
    }
    float sum = total.sum * power_of_two(fmaf(total.max, LOG2_E, -base));
#pragma unroll
    for (u32 v = 0; v < VECTORS; v++) sum += sums[v];
    total.max = max;
    total.sum = sum;
}

__device__ inline LogSum warp_sum(LogSum mine) {
#pragma unroll
    for (int lane = WARP / 2; lane; lane /= 2) {
        LogSum theirs = {__shfl_xor_sync(ALL_LANES, mine.max, lane),
                         __shfl_xor_sync(ALL_LANES, mine.sum, lane)};
        mine = joined(mine, theirs);
    }
    return mine;
}

// The sum over a block, for its first thread, in an order that is always the same.
__device__ inline LogSum block_sum(LogSum mine, LogSum* warps) {
    mine = warp_sum(mine);
    __syncthreads();
    if (threadIdx.x % WARP == 0) warps[threadIdx.x / WARP] = mine;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int i = 1; i < THREADS / WARP; i++) mine = joined(mine, warps[i]);
    }
    return mine;
}

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

// What a row's users change in its logits: ascending by id, and of one id in order of application.
struct Edits {
    const u32* ids;
    const u32* kinds;
    const float* values;
    // Those of a chunk.
    u32 begin;
    u32 end;
};

// Applies the edits of eight neighbours that begin with id `first`.
__device__ inline void apply(const Edits& edits, u32 first, float (&x)[8]) {
    for (u32 edit = first_from(edits.ids, edits.begin, edits.end, first); edit < edits.end; edit++) {
        u32 at = edits.ids[edit] - first, kind = edits.kinds[edit];
        if (at >= 8) return;
        float value = edits.values[edit], own = one_of(x, at);
        if (kind == EDIT_PENALTY) {
            own = own < 0.0f ? own * value : own / value;
        } else {
            own = kind == EDIT_BIAS ? own + value : NEGATIVE_INFINITY;
        }
#pragma unroll
        for (u32 i = 0; i < 8; i++) x[i] = at == i ? own : x[i];
    }
}

// Asks for a thread's logits of the tile that begins at `tile`.
template <class T>
__device__ inline void load_tile(const T* row, u32 tile, u32 end, bool wide, Eight<T> (&out)[VECTORS]) {
    u32 first = tile + threadIdx.x * 8;
    if (wide && tile + TILE <= end) {
#pragma unroll
        for (u32 v = 0; v < VECTORS; v++) load_wide(row + first + v * THREADS * 8, out[v]);
        return;
    }
#pragma unroll
    for (u32 v = 0; v < VECTORS; v++) {
        u32 at = first + v * THREADS * 8;
        if (wide && at + 8 <= end) {
            load_wide(row + at, out[v]);
        } else {
            load_some(row + at, at < end ? end - at : 0, NEGATIVE_INFINITY, out[v]);
        }
    }
}

// Reads a chunk into an empty pool and the sums.
template <class T, bool EDITED>
__device__ inline void scan(Pool& pool, const T* row, u32 begin, u32 end, bool wide, u32 k, const Edits& edits,
                            LogSum& raw, LogSum& edited) {
    Eight<T> next[VECTORS];
    load_tile(row, begin, end, wide, next);
    for (u32 tile = begin; tile < end; tile += TILE) {
        u32 first = tile + threadIdx.x * 8;
        float x[VECTORS][8];
#pragma unroll
        for (u32 v = 0; v < VECTORS; v++) widen(next[v], x[v]);
        load_tile(row, tile + TILE, end, wide, next);
        float best = most(x);
        add(raw, x, best);
        if (EDITED) {
#pragma unroll
            for (u32 v = 0; v < VECTORS; v++) apply(edits, first + v * THREADS * 8, x[v]);
            best = most(x);
            add(edited, x, best);
        }
        if (tile == begin) prime(pool, best, k);
        offer(pool, x, first, k);
    }
}

// Writes a row's results from a pool that was cut.
template <class T>
__device__ inline void finish(const Pool& pool, const T* row, u32 k, bool bad, LogSum edited, LogSum raw,
                              u32* ids, float* logits, float* raw_logits, float* sums, u32* count,
                              u32* status) {
    u32 used = bad ? 0 : pool.used, found = used < k ? used : k;
    u64 out = (u64)blockIdx.y * KEPT;
    if (threadIdx.x >= found && threadIdx.x < KEPT) {
        ids[out + threadIdx.x] = 0xffffffffu;
        logits[out + threadIdx.x] = raw_logits[out + threadIdx.x] = NEGATIVE_INFINITY;
    }
    if (threadIdx.x < used) {
        u64 key = pool.keys[threadIdx.x];
        u32 rank = 0;
        for (u32 i = 0; i < used; i++) rank += pool.keys[i] > key;
        if (rank < k) {
            ids[out + rank] = id_of(key);
            logits[out + rank] = logit_of(key);
            raw_logits[out + rank] = widen(row[id_of(key)]);
        }
    }
    if (threadIdx.x == 0) {
        sums[2 * blockIdx.y] = edited.max + logf(edited.sum);
        sums[2 * blockIdx.y + 1] = raw.max + logf(raw.sum);
        count[blockIdx.y] = found;
        status[blockIdx.y] = found ? ROW_OK : ROW_BAD_LOGITS;
    }
}

// A block is chunk x of row y; a chunk is whole tiles. A row without edits has an empty range, and `edit_start`
// may be null where no row has any. `part_keys [rows, parts, 64]` and `part_sums [rows, parts, 4]`: what chunks
// leave to the last. `done` is 0 before and after.
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
    u32 begin = blockIdx.x * chunk;
    u32 end = begin + chunk < vocab ? begin + chunk : vocab;
    bool wide = is_wide(row);
    u32 k = ks[blockIdx.y];
    Edits edits = {edit_ids, edit_kinds, edit_values, 0, 0};
    if (edit_start) {
        edits.begin = first_from(edit_ids, edit_start[blockIdx.y], edit_start[blockIdx.y + 1], begin);
        edits.end = first_from(edit_ids, edits.begin, edit_start[blockIdx.y + 1], end);
    }
    bool has_edits = edits.begin < edits.end;
    LogSum raw = {NEGATIVE_INFINITY, 0.0f}, edited = raw;
    clear(pool);
    if (has_edits) {
        scan<T, true>(pool, row, begin, end, wide, k, edits, raw, edited);
    } else {
        scan<T, false>(pool, row, begin, end, wide, k, edits, raw, edited);
    }
    cut(pool, k);
    if (!has_edits) edited = raw;
    bool bad = __syncthreads_or(raw.sum != raw.sum || edited.sum != edited.sum);
    raw = block_sum(raw, warps);
    edited = has_edits ? block_sum(edited, warps) : raw;
    u32 parts = gridDim.x;
    if (parts == 1) {
        finish(pool, row, k, bad, edited, raw, ids, out_logits, raw_logits, sums, count, status);
        return;
    }

    u64 part = (u64)blockIdx.y * parts + blockIdx.x;
    if (threadIdx.x < KEPT) part_keys[part * KEPT + threadIdx.x] = threadIdx.x < pool.used ? pool.keys[threadIdx.x] : 0;
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
    const volatile float* theirs = part_sums + (u64)blockIdx.y * parts * 4;
    raw.max = edited.max = NEGATIVE_INFINITY;
    raw.sum = edited.sum = 0.0f;
    for (u32 i = threadIdx.x; threadIdx.x < WARP && i < parts; i += WARP) {
        LogSum a = {theirs[4 * i], theirs[4 * i + 1]}, b = {theirs[4 * i + 2], theirs[4 * i + 3]};
        edited = joined(edited, a);
        raw = joined(raw, b);
    }
    clear(pool);
    const volatile u64* found = part_keys + (u64)blockIdx.y * parts * KEPT;
    for (u32 from = 0; from < parts * KEPT; from += THREADS * JOINED) {
        u64 keys[JOINED];
#pragma unroll
        for (u32 i = 0; i < JOINED; i++) {
            u32 at = from + i * THREADS + threadIdx.x;
            keys[i] = at < parts * KEPT ? found[at] : 0;
        }
        for (;;) {
            bool full = false;
            u64 floor = pool.floor;
#pragma unroll
            for (u32 i = 0; i < JOINED; i++) {
                u32 at = keys[i] > floor ? atomicAdd(&pool.used, 1u) : POOL;
                if (at < POOL) pool.keys[at] = keys[i];
                full |= keys[i] > floor && at >= POOL;
                if (at < POOL) keys[i] = 0;
            }
            if (!__syncthreads_or(full)) break;
            cut(pool, k);
        }
    }
    cut(pool, k);
    bad = __syncthreads_or(edited.sum != edited.sum);
    // The first warp has them all.
    raw = warp_sum(raw);
    edited = warp_sum(edited);
    if (threadIdx.x == 0) done[blockIdx.y] = 0;
    finish(pool, row, k, bad, edited, raw, ids, out_logits, raw_logits, sums, count, status);
}

#define SELECT(NAME, T)                                                                                    \
    extern "C" __global__ void __launch_bounds__(THREADS, 4)                                               \
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
