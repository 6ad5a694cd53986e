// Stands for CUDA's built-ins, so that a C++ compiler makes of a kernel's source a program that runs on a
// CPU: one thread after the other, each on a stack of its own, until it waits at a barrier or for its
// warp. The order of the threads is drawn anew after every wait, so that what only works in one order
// shows. Threads that wait at different places, or for one that has ended, are an error.
#pragma once
// Jumps between stacks are what it forbids.
#undef _FORTIFY_SOURCE
#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <functional>
#include <vector>

#define ATTUNE_ON_CPU
#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

struct Dim {
    unsigned x, y, z;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
inline Dim threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

enum class Wait { Nothing, Block, Warp, Ended };

struct Thread {
    // Where it goes on. A jump costs no system call; only its first step is a switch of contexts.
    jmp_buf place_on_stack;
    Wait wait;
    // The line where it waits: all who wait together must agree.
    int place;
    // What it brings to the others, and what it is given back.
    uint64_t brings;
    unsigned any, count;
};

constexpr size_t STACK = 256 * 1024;
constexpr unsigned MOST_THREADS = 1024;
inline jmp_buf scheduler;
inline Thread threads[MOST_THREADS];
// What each brought to the last meeting of its warp. Nobody comes to the next before all have read it.
inline uint64_t brought[MOST_THREADS];
// Threads that have a stack; they keep it for the next block.
inline unsigned born;
inline unsigned current;
inline const std::function<void()>* body;
inline uint64_t dice = 1;

[[noreturn]] inline void fail(const char* problem) {
    fprintf(stderr, "block (%u, %u, %u): %s\n", blockIdx.x, blockIdx.y, blockIdx.z, problem);
    exit(3);
}

inline Thread& wait(Wait what, int place, uint64_t brings) {
    Thread& self = threads[current];
    self.wait = what;
    self.place = place;
    self.brings = brings;
    if (!_setjmp(self.place_on_stack)) _longjmp(scheduler, 1);
    return threads[current];
}

inline void entry() {
    for (;;) {
        (*body)();
        wait(Wait::Ended, 0, 0);
    }
}

// Runs the current thread until it waits.
__attribute__((noinline)) inline void go_on() {
    if (_setjmp(scheduler)) return;
    if (current < born) _longjmp(threads[current].place_on_stack, 1);
    ucontext_t first;
    getcontext(&first);
    first.uc_stack.ss_sp = mmap(nullptr, STACK, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (first.uc_stack.ss_sp == MAP_FAILED) fail("no memory for a stack");
    first.uc_stack.ss_size = STACK;
    first.uc_link = nullptr;
    makecontext(&first, entry, 0);
    born = current + 1;
    setcontext(&first);
}

// Lets the threads `from..to` go on if all of them wait for the same.
inline bool release(unsigned from, unsigned to, Wait what) {
    int place = 0;
    unsigned any = 0, count = 0;
    for (unsigned i = from; i < to; i++) {
        Thread& t = threads[i];
        if (t.wait == Wait::Ended) continue;
        if (t.wait != what) return false;
        if (place && t.place != place) fail("threads wait at different barriers");
        place = t.place;
        any |= t.brings != 0;
        count += t.brings != 0;
    }
    if (!place) return false;
    for (unsigned i = from; i < to; i++) {
        Thread& t = threads[i];
        if (what == Wait::Warp) {
            if (t.wait == Wait::Ended) fail("a warp waits for a thread that has ended");
            brought[i] = t.brings;
        }
        t.any = any;
        t.count = count;
    }
    for (unsigned i = from; i < to; i++) {
        if (threads[i].wait == what) threads[i].wait = Wait::Nothing;
    }
    return true;
}

inline void run_block(unsigned n) {
    for (unsigned i = 0; i < n; i++) threads[i].wait = Wait::Nothing;
    for (;;) {
        // Warps stay whole more or less: rotate, and turn round now and then. Who has no stack yet gets it in
        // order.
        dice = dice * 6364136223846793005u + 1442695040888963407u;
        unsigned shift = born < n ? 0 : (unsigned)(dice >> 33) % n;
        bool back = born >= n && dice >> 63;
        bool ran = false;
        for (unsigned i = 0; i < n; i++) {
            current = (shift + (back ? n - i : i)) % n;
            if (threads[current].wait != Wait::Nothing) continue;
            ran = true;
            threadIdx = {current, 0, 0};
            go_on();
        }
        bool released = release(0, n, Wait::Block);
        for (unsigned warp = 0; warp < n; warp += 32) {
            released |= release(warp, warp + 32 < n ? warp + 32 : n, Wait::Warp);
        }
        if (released || ran) continue;
        for (unsigned i = 0; i < n; i++) {
            if (threads[i].wait != Wait::Ended) fail("threads wait for others that never come");
        }
        return;
    }
}

inline void launch(Dim grid, unsigned block, const std::function<void()>& kernel) {
    if (block > MOST_THREADS) fail("more threads than a block may have");
    body = &kernel;
    gridDim = grid;
    blockDim = {block, 1, 1};
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++) {
                blockIdx = {x, y, z};
                run_block(block);
            }
}

template <class A, class B> inline B bits(A a) {
    static_assert(sizeof(A) >= sizeof(B) || sizeof(A) <= sizeof(B), "");
    B b{};
    memcpy(&b, &a, sizeof(A) < sizeof(B) ? sizeof(A) : sizeof(B));
    return b;
}

inline unsigned block_any(int line, int x) { return wait(Wait::Block, line, x != 0).any; }
inline unsigned block_count(int line, int x) { return wait(Wait::Block, line, x != 0).count; }
inline void block(int line) { wait(Wait::Block, line, 0); }
template <class T> T shuffle(int line, unsigned mask, T x, int step) {
    if (mask != 0xffffffffu) fail("the emulator knows whole warps alone");
    wait(Wait::Warp, line, bits<T, uint64_t>(x));
    return bits<uint64_t, T>(brought[threadIdx.x ^ step]);
}

// The tensor cores' product of a warp: see `chunk_attention.cu`.
template <class Widen>
inline void multiply(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2], Widen widen) {
    struct Part {
        const unsigned *a, *b;
    } mine = {a, b};
    // The lanes' registers stay where they are until all have read them.
    wait(Wait::Warp, -1, (uint64_t)&mine);
    unsigned warp = threadIdx.x / 32 * 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    auto part = [&](unsigned lane) { return (const Part*)brought[warp + lane]; };
    auto half = [&](unsigned word, unsigned which) { return widen((unsigned short)(word >> (16 * which))); };
    for (unsigned i = 0; i < 4; i++) {
        unsigned row = g + i / 2 * 8, column = 2 * t + i % 2;
        for (unsigned k = 0; k < 16; k++) {
            unsigned owner = k % 8 / 2;
            float x = half(part(row % 8 * 4 + owner)->a[row / 8 + k / 8 * 2], k % 2);
            float y = half(part(column * 4 + owner)->b[k / 8], k % 2);
            sum[i] += x * y;
        }
    }
    wait(Wait::Warp, -2, 0);
}

}  // namespace emulator

#define __syncthreads() emulator::block(__LINE__)
#define __syncthreads_or(x) ((int)emulator::block_any(__LINE__, x))
#define __syncthreads_count(x) ((int)emulator::block_count(__LINE__, x))
#define __shfl_xor_sync(mask, x, step) emulator::shuffle(__LINE__, mask, x, step)
#define __threadfence()

inline unsigned atomicAdd(unsigned* at, unsigned x) {
    unsigned before = *at;
    *at += x;
    return before;
}
inline int __ffs(int x) { return __builtin_ffs(x); }
inline float __int_as_float(int x) { return emulator::bits<int, float>(x); }
inline float __uint_as_float(unsigned x) { return emulator::bits<unsigned, float>(x); }
inline unsigned __float_as_uint(float x) { return emulator::bits<float, unsigned>(x); }
inline double __longlong_as_double(long long x) { return emulator::bits<long long, double>(x); }
inline long long __double_as_longlong(double x) { return emulator::bits<double, long long>(x); }
inline float __expf(float x) { return expf(x); }

inline float bf16_to_float(unsigned short bits) { return __uint_as_float((unsigned)bits << 16); }
// To the nearest, ties to even; a NaN to the card's own.
inline unsigned short float_to_bf16(float x) {
    unsigned bits = __float_as_uint(x);
    return isnan(x) ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

// By the definition of the format; ties to even.
inline float half_to_float(unsigned short bits) {
    int exponent = bits >> 10 & 31, fraction = bits & 1023;
    float size = exponent == 31 ? (fraction ? NAN : INFINITY)
                 : exponent     ? ldexpf(1024 + fraction, exponent - 25)
                                : ldexpf(fraction, -24);
    return bits >> 15 ? -size : size;
}
inline unsigned short float_to_half(float x) {
    unsigned short sign = signbit(x) ? 0x8000 : 0;
    if (isnan(x)) return sign | 0x7e00;
    float size = fabsf(x);
    if (size >= 65520.0f) return sign | 0x7c00;
    // It has no exponent.
    if (size == 0.0f) return sign;
    int exponent;
    frexpf(size, &exponent);
    // The weight of the last bit, and no less than a subnormal's.
    int last = (exponent - 11 > -24 ? exponent - 11 : -24);
    unsigned steps = (unsigned)rintf(ldexpf(size, -last));
    if (last == -24) return sign | (unsigned short)steps;
    return sign | (unsigned short)(((last + 24) << 10) + steps);
}
