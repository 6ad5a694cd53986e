//! Bugs put into the sources on purpose: every one must be caught.

use attune_kernels::cuda::{Element, HeadSize, Program};

use crate::emulator::Emulator;
use crate::{attention, fuse_sample, layers, left_out, score, select};

type Check = fn(&Emulator) -> Result<(), String>;

const SELECT: (Program, Check) = (Program::Select(Element::F32), select::check);
const SCORE: (Program, Check) = (Program::Score(Element::F32), score::check);
const FUSE: (Program, Check) = (Program::FuseSample, fuse_sample::check);
const ATTENTION: (Program, Check) =
    (Program::PagedAttention(Element::F32, HeadSize::Upto64), attention::check);
const CHUNKS: (Program, Check) =
    (Program::ChunkAttention(Element::F16, HeadSize::Upto64), attention::check_chunks);
const RMS_NORM: (Program, Check) = (Program::RmsNorm(Element::F32), layers::check_rms_norm);
const ROTATE: (Program, Check) = (Program::Rotate(Element::F32), layers::check_rotate);
const COPY_ROWS: (Program, Check) = (Program::CopyRows(Element::F32), layers::check_copy_rows);

const BUGS: &[((Program, Check), &str, &str)] = &[
    // Barriers that are not there.
    (SELECT, "    __syncthreads();\n#pragma unroll\n    for (u32 i", "#pragma unroll\n    for (u32 i"),
    (SELECT, "== parts - 1;\n    __syncthreads();", "== parts - 1;"),
    (SCORE, "- max);\n    __syncthreads();", "- max);"),
    (SCORE, "+ sum : sum;\n        }\n        __syncthreads();", "+ sum : sum;\n        }"),
    (SCORE, "if (__syncthreads_or(bad)) {\n            if", "if (bad) {\n            if"),
    (
        FUSE,
        "if (me < n) work.order[rank] = me;\n    __syncthreads();\n    best",
        "if (me < n) work.order[rank] = me;\n    best",
    ),
    (ATTENTION, "        __syncthreads();\n        for (u32 task", "        for (u32 task"),
    // A barrier that only some threads reach.
    (
        SELECT,
        "        pool.used = 0;\n    }\n    __syncthreads();\n#pragma",
        "        pool.used = 0;\n        __syncthreads();\n    }\n#pragma",
    ),
    // Floors that are too high.
    (SELECT, "pool.floor = low - 1;", "pool.floor = low + (1ull << 32);"),
    (SELECT, "if (count < k) {\n            high", "if (count + 1 < k) {\n            high"),
    // Ties to the higher id in a chunk's order of keys.
    (SELECT, "+ 0.0f) << 32 | (0xffffffffu - id);", "+ 0.0f) << 32 | (0xffffffffu - (id ^ 1));"),
    // A sum that forgets a lane, a span that ends early, a write behind the end.
    (SCORE, "return warp_sum(sum);", "return sum + __shfl_xor_sync(ALL_LANES, sum, 1);"),
    (
        ATTENTION,
        "for (u32 step = TEAM / 2; step; step /= 2) {",
        "for (u32 step = TEAM / 4; step; step /= 2) {",
    ),
    (ATTENTION, "to = from + SPAN < seen ? from + SPAN", "to = from + SPAN < seen ? from + SPAN - 1"),
    (ATTENTION, "% block_size;\n    }\n    __syncthreads();", "% block_size;\n    }"),
    (FUSE, "if (reached >= target)", "if (reached > target * 1.01)"),
    (
        SCORE,
        "if (threadIdx.x == 0) status[row] = ROW_BAD_REWARD;",
        "if (threadIdx.x == 0) status[row + 1] = ROW_BAD_REWARD;",
    ),
    // Products before their numbers are there, a token that sees the next, numbers of other positions.
    (CHUNKS, "        __syncthreads();\n\n        float scores", "        float scores"),
    (CHUNKS, "the last span.\n        __syncthreads();", ""),
    (CHUNKS, "p <= own &&", "p <= own + 1 &&"),
    (CHUNKS, "words[0], words[4]}", "words[0], words[8]}"),
    (CHUNKS, "words[0], words[4 * value_words]}", "words[4 * value_words], words[0]}"),
    (CHUNKS, "mean[n][2 * r + 1] *= shrink;", ""),
    // A norm before its sum is whole, a rotation the other way, a value that is turned, another row's key.
    (RMS_NORM, "= sum;\n    __syncthreads();", "= sum;"),
    (ROTATE, "narrow(a * c[j] - b * s[j], out[i]);", "narrow(a * c[j] + b * s[j], out[i]);"),
    (ROTATE, "if (head >= heads + kv_heads) {", "if (head > heads + kv_heads) {"),
    (ROTATE, ": keys + ((u64)slots[row]", ": keys + ((u64)positions[row]"),
    (COPY_ROWS, "load_row(w, at", "load_row(weights[0], at"),
];

#[test]
fn planted_bugs_are_caught() {
    for ((program, check), from, to) in BUGS {
        let defines = match program {
            Program::FuseSample => &[][..],
            Program::ChunkAttention(..) => &["ONLY 2", "HEAD 64"],
            _ => &["ONLY 4", "HEAD 64"],
        };
        let Some(emulator) = Emulator::changed(*program, defines, from, to) else {
            return left_out("CUDA sources on a CPU: no c++");
        };
        assert!(check(&emulator).is_err(), "{} with {to:?} for {from:?} passes", program.name());
    }
}
