// Stands for NVIDIA's driver (libcuda.so) with one card, which is this CPU: every kernel of ours is compiled
// in, and runs by the emulator when it is launched. So the services' whole way through a card is tested
// where there is none: what is laid out, launched, copied and freed, and what happens when it fails.
//
// Memory is this process's, counted, and limited to ATTUNE_CARD_MIB (default 2048). ATTUNE_CARD_CAPABILITY
// is the compute capability, such as 75 (default 99, which no real card has: compiled programs are kept by
// it). While the file exists that ATTUNE_CARD_TROUBLE names, the card is in trouble: of "full N" in it, no
// array of more than N bytes finds room; of "broken", every launch fails from then on. ATTUNE_CARD_PASS_US: see
// `pass_us`.
#include "emulator.h"

#include <sched.h>
#include <unistd.h>

#include <map>
#include <mutex>
#include <string>

// Each source in a namespace of its own: they share names.
#define UNIT(NAME) namespace unit_##NAME
UNIT(select) {
#include "common.cuh"
#include "select.cu"
}
UNIT(score) {
#include "common.cuh"
#include "score.cu"
}
UNIT(fuse_sample) {
#include "common.cuh"
#include "fuse_sample.cu"
}
UNIT(paged_attention) {
#include "common.cuh"
#include "paged_attention.cu"
}
UNIT(chunk_attention) {
#include "common.cuh"
#include "chunk_attention.cu"
}
UNIT(rms_norm) {
#include "common.cuh"
#include "rms_norm.cu"
}
UNIT(rotate) {
#include "common.cuh"
#include "rotate.cu"
}
UNIT(silu_gate) {
#include "common.cuh"
#include "silu_gate.cu"
}
UNIT(embed) {
#include "common.cuh"
#include "embed.cu"
}
UNIT(copy_rows) {
#include "common.cuh"
#include "copy_rows.cu"
}
UNIT(add_bias) {
#include "common.cuh"
#include "add_bias.cu"
}

namespace {

using Bound = std::function<void()>;
using Kernel = std::function<Bound(void**)>;

template <class... A, size_t... I>
Kernel kernel(void (*f)(A...), std::index_sequence<I...>) {
    return [f](void** at) -> Bound {
        // A launch copies its arguments, as the driver does.
        std::tuple<A...> a(*(A*)at[I]...);
        return [f, a] { f(std::get<I>(a)...); };
    };
}
template <class... A> Kernel kernel(void (*f)(A...)) { return kernel(f, std::index_sequence_for<A...>()); }

#define ONE(UNIT, NAME) {#NAME, kernel(unit_##UNIT::NAME)}
#define HALVES(UNIT, NAME) ONE(UNIT, NAME##_f16), ONE(UNIT, NAME##_bf16)
#define EACH_FORMAT(UNIT, NAME) ONE(UNIT, NAME##_f32), HALVES(UNIT, NAME)
const std::map<std::string, Kernel>& kernels() {
    static const std::map<std::string, Kernel> all = {
        EACH_FORMAT(select, select),
        EACH_FORMAT(score, score),
        ONE(fuse_sample, fuse_sample),
        EACH_FORMAT(paged_attention, paged_attention_64),
        EACH_FORMAT(paged_attention, paged_attention_128),
        EACH_FORMAT(paged_attention, paged_attention_256),
        HALVES(chunk_attention, chunk_attention_64),
        HALVES(chunk_attention, chunk_attention_128),
        HALVES(chunk_attention, chunk_attention_256),
        EACH_FORMAT(rms_norm, rms_norm),
        EACH_FORMAT(rotate, rotate),
        EACH_FORMAT(silu_gate, silu_gate),
        EACH_FORMAT(embed, embed),
        EACH_FORMAT(copy_rows, copy_rows),
        EACH_FORMAT(add_bias, add_bias),
    };
    return all;
}

enum Result {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    INVALID_DEVICE = 101,
    NOT_FOUND = 500,
    ILLEGAL_ADDRESS = 700,
};

size_t setting(const char* name, size_t otherwise) {
    const char* text = getenv(name);
    return text && *text ? strtoull(text, nullptr, 10) : otherwise;
}

// A card that computes nothing and takes its time: so many microseconds a forward pass, one after the other, which
// begins with the embedding. The host has its processor for itself meanwhile, as beside a real card. Candidates and
// values are always the same.
const long pass_us = (long)setting("ATTUNE_CARD_PASS_US", 0);
double busy_until;
double seconds() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + 1e-9 * now.tv_nsec;
}
void take_time() {
    // A driver waits without sleep, with a core for it. Here there may be two for all that runs: asleep but for the
    // last moment, which is too short for a timer, this thread leaves its core to the others.
    while (pass_us) {
        double left = busy_until - seconds();
        if (left <= 0) return;
        if (left > 100e-6) usleep((useconds_t)(left * 1e6) - 80);
        else sched_yield();
    }
}

std::recursive_mutex one_at_a_time;
std::map<uint64_t, size_t> arrays;
size_t used;
bool broken;
size_t total() { return setting("ATTUNE_CARD_MIB", 2048) << 20; }

// An array stands between two guards, which a kernel must leave as they are.
constexpr size_t GUARD = 256;
constexpr unsigned char MARK = 0xA5;

std::string trouble() {
    const char* path = getenv("ATTUNE_CARD_TROUBLE");
    FILE* file = path ? fopen(path, "r") : nullptr;
    if (!file) return "";
    char text[64] = {};
    size_t n = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    return std::string(text, n);
}

void check(uint64_t at, size_t bytes) {
    const unsigned char* begin = (const unsigned char*)at;
    for (size_t i = 1; i <= GUARD; i++) {
        if (begin[-(long)i] != MARK || begin[bytes + i - 1] != MARK)
            emulator::fail("a kernel wrote outside its arrays");
    }
}

Result make(uint64_t* at, size_t bytes) {
    std::lock_guard<std::recursive_mutex> guard(one_at_a_time);
    std::string now = trouble();
    if (now.rfind("full ", 0) == 0 && bytes > strtoull(now.c_str() + 5, nullptr, 10)) return OUT_OF_MEMORY;
    if (used + bytes > total()) return OUT_OF_MEMORY;
    size_t whole = (bytes + 3 * GUARD) / GUARD * GUARD;
    unsigned char* memory = (unsigned char*)aligned_alloc(GUARD, whole);
    if (!memory) return OUT_OF_MEMORY;
    memset(memory, MARK, GUARD);
    memset(memory + GUARD + bytes, MARK, GUARD);
    // What is not written has no meaning: NaN in every format. A card that computes nothing reads none of it.
    if (!pass_us) memset(memory + GUARD, 0xFF, bytes);
    *at = (uint64_t)(memory + GUARD);
    arrays[*at] = bytes;
    used += bytes;
    return SUCCESS;
}

}  // namespace

#define API extern "C" __attribute__((visibility("default"))) Result
typedef int Device;
typedef void* Handle;

API cuInit(unsigned) { return SUCCESS; }
API cuDriverGetVersion(int* version) { return *version = 13000, SUCCESS; }
API cuDeviceGetCount(int* count) { return *count = 1, SUCCESS; }
API cuDeviceGet(Device* device, int ordinal) { return *device = ordinal, ordinal == 0 ? SUCCESS : INVALID_DEVICE; }
API cuDeviceGetName(char* name, int length, Device) {
    snprintf(name, length, "Stand-in on a CPU");
    return SUCCESS;
}
API cuDeviceTotalMem_v2(size_t* bytes, Device) { return *bytes = total(), SUCCESS; }
API cuDeviceGetAttribute(int* value, int attribute, Device) {
    size_t capability = setting("ATTUNE_CARD_CAPABILITY", 99);
    switch (attribute) {
        case 16: return *value = 2, SUCCESS;                      // multiprocessors
        case 75: return *value = (int)capability / 10, SUCCESS;   // compute capability, major
        case 76: return *value = (int)capability % 10, SUCCESS;   // and minor
        case 115: return *value = 1, SUCCESS;                     // memory pools
        default: return *value = 0, SUCCESS;
    }
}
API cuDevicePrimaryCtxRetain(Handle* context, Device) { return *context = (Handle)1, SUCCESS; }
API cuDevicePrimaryCtxRelease_v2(Device) { return SUCCESS; }
API cuCtxGetCurrent(Handle* context) { return *context = (Handle)1, SUCCESS; }
API cuCtxSetCurrent(Handle) { return SUCCESS; }
API cuCtxSynchronize() { return broken ? ILLEGAL_ADDRESS : SUCCESS; }
API cuMemGetInfo_v2(size_t* free, size_t* all) { return *all = total(), *free = total() - used, SUCCESS; }
API cuDeviceGetDefaultMemPool(Handle* pool, Device) { return *pool = (Handle)1, SUCCESS; }
API cuMemPoolSetAttribute(Handle, int, void*) { return SUCCESS; }

API cuStreamCreate(Handle* stream, unsigned) { return *stream = (Handle)1, SUCCESS; }
API cuStreamDestroy_v2(Handle) { return SUCCESS; }
API cuStreamSynchronize(Handle) { return take_time(), broken ? ILLEGAL_ADDRESS : SUCCESS; }
API cuStreamWaitEvent(Handle, Handle, unsigned) { return SUCCESS; }
API cuEventCreate(Handle* event, unsigned) {
    *event = malloc(sizeof(timespec));
    return SUCCESS;
}
API cuEventDestroy_v2(Handle event) { return free(event), SUCCESS; }
API cuEventRecord(Handle event, Handle) {
    clock_gettime(CLOCK_MONOTONIC, (timespec*)event);
    return SUCCESS;
}
API cuEventSynchronize(Handle) { return broken ? ILLEGAL_ADDRESS : SUCCESS; }
API cuEventElapsedTime_v2(float* ms, Handle from, Handle to) {
    timespec *a = (timespec*)from, *b = (timespec*)to;
    *ms = (float)((double)(b->tv_sec - a->tv_sec) * 1e3 + (double)(b->tv_nsec - a->tv_nsec) / 1e6);
    return SUCCESS;
}
API cuEventElapsedTime(float* ms, Handle from, Handle to) { return cuEventElapsedTime_v2(ms, from, to); }

API cuMemAllocAsync(uint64_t* at, size_t bytes, Handle) { return broken ? ILLEGAL_ADDRESS : make(at, bytes); }
API cuMemAlloc_v2(uint64_t* at, size_t bytes) { return broken ? ILLEGAL_ADDRESS : make(at, bytes); }
API cuMemFree_v2(uint64_t at) {
    std::lock_guard<std::recursive_mutex> guard(one_at_a_time);
    auto found = arrays.find(at);
    if (found == arrays.end()) return INVALID_VALUE;
    check(at, found->second);
    used -= found->second;
    arrays.erase(found);
    free((void*)(at - GUARD));
    return SUCCESS;
}
API cuMemFreeAsync(uint64_t at, Handle) { return cuMemFree_v2(at); }

static bool within(uint64_t at, size_t bytes) {
    std::lock_guard<std::recursive_mutex> guard(one_at_a_time);
    auto next = arrays.upper_bound(at);
    if (next == arrays.begin()) return false;
    auto [begin, size] = *--next;
    return at + bytes <= begin + size;
}
API cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, Handle) {
    if (broken || !within(to, bytes)) return broken ? ILLEGAL_ADDRESS : INVALID_VALUE;
    return memcpy((void*)to, from, bytes), SUCCESS;
}
API cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, Handle) {
    take_time();
    if (broken || !within(from, bytes)) return broken ? ILLEGAL_ADDRESS : INVALID_VALUE;
    return memcpy(to, (void*)from, bytes), SUCCESS;
}
API cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, Handle) {
    if (broken || !within(from, bytes) || !within(to, bytes)) return broken ? ILLEGAL_ADDRESS : INVALID_VALUE;
    return memmove((void*)to, (void*)from, bytes), SUCCESS;
}
API cuMemsetD8Async(uint64_t at, unsigned char value, size_t bytes, Handle) {
    if (broken || !within(at, bytes)) return broken ? ILLEGAL_ADDRESS : INVALID_VALUE;
    return memset((void*)at, value, bytes), SUCCESS;
}

API cuModuleLoadData(Handle* module, const void* image) {
    return *module = (Handle)1, memcmp(image, "\x7f" "ELF", 4) == 0 ? SUCCESS : INVALID_VALUE;
}
API cuModuleUnload(Handle) { return SUCCESS; }
API cuModuleGetFunction(Handle* function, Handle, const char* name) {
    auto found = kernels().find(name);
    if (found == kernels().end()) return NOT_FOUND;
    return *function = (Handle)&found->second, SUCCESS;
}
// Beside such a card: a pass's time, and results that are usable.
static void pretend(Handle function, unsigned x, unsigned y, void** arguments) {
    auto is = [&](const char* name) {
        auto own = kernels().find(name);
        return function == (Handle)&own->second;
    };
    if (is("embed_f32") || is("embed_f16") || is("embed_bf16")) {
        double now = seconds();
        busy_until = (busy_until > now ? busy_until : now) + 1e-6 * pass_us;
    }
    auto words = [&](int i) { return *(unsigned**)arguments[i]; };
    auto numbers = [&](int i) { return *(float**)arguments[i]; };
    if (is("select_f32")) {
        for (unsigned row = 0; row < y; row++) {
            words(16)[row] = words(4)[row];
            words(17)[row] = 0;
            numbers(15)[2 * row] = numbers(15)[2 * row + 1] = 5.0f;
            for (unsigned i = 0; i < 64; i++) {
                words(12)[64 * row + i] = 10 + i;
                numbers(13)[64 * row + i] = numbers(14)[64 * row + i] = 4.0f - 0.3f * i;
            }
        }
    }
    if (is("score_f32") || is("score_f16") || is("score_bf16")) {
        memset(numbers(12), 0, 256 * x);
        memset(words(13), 0, 4 * x);
    }
}

API cuLaunchKernel(Handle function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned, unsigned,
                   unsigned, Handle, void** arguments, void**) {
    std::lock_guard<std::recursive_mutex> guard(one_at_a_time);
    if (trouble().rfind("broken", 0) == 0) broken = true;
    if (broken) return ILLEGAL_ADDRESS;
    // The limits of a card.
    if (!x || !y || !z || x > 0x7fffffffu || y > 65535 || z > 65535) return INVALID_VALUE;
    if (pass_us) return pretend(function, x, y, arguments), SUCCESS;
    Bound bound = (*(const Kernel*)function)(arguments);
    emulator::launch({x, y, z}, threads, bound);
    return SUCCESS;
}

API cuGetErrorName(Result, const char** name) { return *name = "CUDA_ERROR", SUCCESS; }
API cuGetErrorString(Result error, const char** text) {
    *text = error == ILLEGAL_ADDRESS ? "an illegal memory access was encountered"
            : error == OUT_OF_MEMORY ? "out of memory"
                                     : "another error";
    return SUCCESS;
}
