// Fusion and choice: a block is a row. A thread is a candidate of one of two choices that are made side by
// side: by the fused scores, and by the model's alone. The arithmetic is that of the specification, in double
// precision and in its order, so that a seed draws the same token as on a CPU.
//
// To be compiled without contraction of products and sums.

#define GUIDED 0
#define UNGUIDED 1
#define THREADS (2 * MAX_CANDIDATES)

// Philox4x32-10 (Salmon et al., SC 2011), keyed by the seed, counting tokens.
__device__ inline double gumbel(u64 seed, u32 index, u32 token) {
    u32 c[4] = {index, token, 0u, 0u}, key[2] = {(u32)seed, (u32)(seed >> 32)};
    for (int round = 0; round < 10; round++) {
        u64 a = (u64)0xD2511F53u * c[0], b = (u64)0xCD9E8D57u * c[2];
        u32 next[4] = {(u32)(b >> 32) ^ c[1] ^ key[0], (u32)b, (u32)(a >> 32) ^ c[3] ^ key[1], (u32)a};
        for (int i = 0; i < 4; i++) c[i] = next[i];
        key[0] += 0x9E3779B9u;
        key[1] += 0xBB67AE85u;
    }
    u64 word = (u64)c[0] << 32 | c[1];
    double uniform = ((double)(word >> 11) + 0.5) * (1.0 / 9007199254740992.0);
    return -log(-log(uniform));
}

__device__ inline bool is_finite(double x) { return x - x == 0.0; }

// IEEE 754's total order, as an integer: what the specification sorts by.
__device__ inline long long ordered(double x) {
    long long bits = __double_as_longlong(x);
    return bits ^ (long long)((u64)(bits >> 63) >> 1);
}

// What one choice works on.
struct Choice {
    double scores[MAX_CANDIDATES];
    double weights[MAX_CANDIDATES];
    double noisy[MAX_CANDIDATES];
    u32 order[MAX_CANDIDATES];
    u32 kept;
};

// How many of the first `n` come before candidate `me`: a better score, or the same and a lower id.
__device__ inline u32 rank_of(const double* scores, const u32* ids, u32 me, u32 n) {
    u32 rank = 0;
    if (me >= n) return n;
    long long own = ordered(scores[me]);
    for (u32 i = 0; i < n; i++) {
        long long other = ordered(scores[i]);
        rank += other > own || (other == own && ids[i] < ids[me]);
    }
    return rank;
}

// The indices of the best and of the chosen candidate. All threads come, each for candidate `me` of its choice.
__device__ inline void choose(Choice& work, const u32* ids, u32 me, u32 n, float temperature, float top_p,
                              u64 seed, u32 index, u32& best, u32& chosen) {
    double out = -__longlong_as_double(0x7ff0000000000000LL);
    u32 rank = rank_of(work.scores, ids, me, n);
    if (me < n) work.order[rank] = me;
    __syncthreads();
    best = chosen = work.order[0];
    if (temperature == 0.0f) return;
    double scaled = me < n ? work.scores[me] / (double)temperature : 0.0;
    if (me < n) work.weights[rank] = exp(scaled - work.scores[best] / (double)temperature);
    __syncthreads();
    if (me == 0) {
        double sum = 0.0, reached = 0.0;
        for (u32 i = 0; i < n; i++) sum += work.weights[i];
        double target = (double)top_p * sum;
        u32 kept = n;
        for (u32 i = 0; i < n; i++) {
            reached += work.weights[i];
            if (reached >= target) {
                kept = i + 1;
                break;
            }
        }
        work.kept = kept;
    }
    // Meanwhile the others draw.
    double noise = me < n ? gumbel(seed, index, ids[me]) : 0.0;
    __syncthreads();
    bool in = rank < work.kept && scaled > out;
    if (me < n) work.noisy[me] = in ? scaled + noise : out;
    __syncthreads();
    rank = rank_of(work.noisy, ids, me, n);
    if (me < n) work.order[rank] = me;
    __syncthreads();
    chosen = work.order[0];
}

// Columns of 64: `ids`, `logits`, and a row of `rewards` for every term. `term_start [B + 1]`: a row's terms.
// `clips`: 0 for none. Out: `chosen [B, 3]` index, id, unguided id; `log_probs [B, 2]` base and fused.
extern "C" __global__ void __launch_bounds__(THREADS)
    fuse_sample(const u32* ids, const float* logits, const u32* counts, const float* log_sum_exps,
                const u32* term_start, const float* strengths, const float* clips, const float* rewards,
                const float* min_ps, const float* temperatures, const float* top_ps, const u64* seeds,
                const u32* indices, u32* chosen, float* log_probs, u32* status) {
    __shared__ Choice choices[2];
    __shared__ u32 own_ids[MAX_CANDIDATES];
    __shared__ double base[MAX_CANDIDATES], terms[MAX_CANDIDATES];
    u32 row = blockIdx.x, side = threadIdx.x / MAX_CANDIDATES, me = threadIdx.x % MAX_CANDIDATES;
    // What the row is asked for is all on its way before the first of it is used.
    u32 n = counts[row], begin = term_start[row], end = term_start[row + 1], index = indices[row];
    float temperature = temperatures[row], top_p = top_ps[row], min_p = min_ps[row];
    u64 seed = seeds[row];
    double out = -__longlong_as_double(0x7ff0000000000000LL);
    double score = 0.0;
    if (me < n) {
        // The first of a row's two sums is that with edits.
        score = (double)logits[(u64)row * MAX_CANDIDATES + me] - (double)log_sum_exps[2 * row];
        if (side == GUIDED) {
            own_ids[me] = ids[(u64)row * MAX_CANDIDATES + me];
            base[me] = score;
        }
    }
    bool bad = __syncthreads_or(me < n && !is_finite(score));
    if (bad || n == 0) {
        if (threadIdx.x == 0) status[row] = ROW_BAD_LOGITS;
        return;
    }
    // `min_p` of 0 puts the floor at negative infinity.
    bool excluded = score < base[0] + log((double)min_p);
    bad = false;
    for (u32 term = begin; term < end && side == GUIDED && me < n; term++) {
        const float* own = rewards + (u64)term * MAX_CANDIDATES;
        double reward = own[me];
        bad |= !is_finite(reward);
        if (clips[term] > 0.0f) {
            double sum = 0.0, clip = clips[term];
            for (u32 i = 0; i < n; i++) sum += (double)own[i];
            reward -= sum / (double)n;
            reward = reward < -clip ? -clip : reward > clip ? clip : reward;
        }
        score += (double)strengths[term] * reward;
    }
    if (me < n) choices[side].scores[me] = excluded ? out : score;
    if (__syncthreads_or(bad)) {
        if (threadIdx.x == 0) status[row] = ROW_BAD_REWARD;
        return;
    }
    u32 best, choice;
    choose(choices[side], own_ids, me, n, temperature, top_p, seed, index, best, choice);
    // The specification rounds scores before it normalises them.
    const double* fused = choices[GUIDED].scores;
    double max = (double)(float)fused[best];
    if (side == GUIDED && me < n) terms[me] = exp((double)(float)fused[me] - max);
    __syncthreads();
    if (threadIdx.x == 0) {
        double sum = 0.0;
        for (u32 i = 0; i < n; i++) sum += terms[i];
        chosen[3 * row] = choice;
        chosen[3 * row + 1] = own_ids[choice];
        log_probs[2 * row] = (float)base[choice];
        log_probs[2 * row + 1] = (float)((double)(float)fused[choice] - (max + log(sum)));
        status[row] = ROW_OK;
    }
    if (side == UNGUIDED && me == 0) chosen[3 * row + 2] = own_ids[choice];
}
