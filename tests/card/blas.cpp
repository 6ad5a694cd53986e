// Stands for cuBLAS (libcublas.so): the one product that Attune asks for, in double precision.
#define ATTUNE_ON_CPU
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <vector>

namespace {

enum Format { F32 = 0, F16 = 2, BF16 = 14 };

float half_to_float(uint16_t bits) {
    int exponent = bits >> 10 & 31, fraction = bits & 1023;
    float size = exponent == 31 ? (fraction ? NAN : INFINITY)
                 : exponent     ? ldexpf((float)(1024 + fraction), exponent - 25)
                                : ldexpf((float)fraction, -24);
    return bits >> 15 ? -size : size;
}

float get(const void* from, Format format, size_t i) {
    if (format == F32) return ((const float*)from)[i];
    uint16_t bits = ((const uint16_t*)from)[i];
    if (format == F16) return half_to_float(bits);
    uint32_t wide = (uint32_t)bits << 16;
    float x;
    memcpy(&x, &wide, 4);
    return x;
}

void put(void* to, Format format, size_t i, float x) {
    if (format == F32) {
        ((float*)to)[i] = x;
        return;
    }
    if (format == F16) {
        _Float16 narrow = (_Float16)x;
        memcpy((uint16_t*)to + i, &narrow, 2);
        return;
    }
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint32_t rounded = x != x ? bits | 0x400000u : bits + 0x7fffu + ((bits >> 16) & 1u);
    ((uint16_t*)to)[i] = (uint16_t)(rounded >> 16);
}

std::vector<float> widened(const void* from, Format format, size_t n) {
    std::vector<float> all(n);
    for (size_t i = 0; i < n; i++) all[i] = get(from, format, i);
    return all;
}

}  // namespace

#define API extern "C" __attribute__((visibility("default"))) int

API cublasCreate_v2(void** handle) { return *handle = (void*)1, 0; }
API cublasDestroy_v2(void*) { return 0; }
API cublasSetStream_v2(void*, void*) { return 0; }
API cublasGemmEx(void*, int transa, int transb, int m, int n, int k, const void* alpha, const void* a, Format a_type,
                 int lda, const void* b, Format b_type, int ldb, const void* beta, void* c, Format c_type, int ldc,
                 int compute, int) {
    // A card that computes nothing: see the driver.
    static const bool pretends = getenv("ATTUNE_CARD_PASS_US");
    if (pretends) return 0;
    // CUBLAS_OP_T, CUBLAS_OP_N, CUBLAS_COMPUTE_32F, and matrices without gaps.
    if (transa != 1 || transb != 0 || compute != 68 || lda != k || ldb != k || ldc != m || a_type != b_type) return 7;
    if (*(const float*)alpha != 1.0f) return 7;
    std::vector<float> w = widened(a, a_type, (size_t)m * k), x = widened(b, b_type, (size_t)n * k);
    float add = *(const float*)beta;
    for (int row = 0; row < n; row++) {
        for (int out = 0; out < m; out++) {
            const float *u = &w[(size_t)out * k], *v = &x[(size_t)row * k];
            double sums[4] = {0, 0, 0, 0};
            int i = 0;
            for (; i + 4 <= k; i += 4)
                for (int j = 0; j < 4; j++) sums[j] += (double)u[i + j] * v[i + j];
            for (; i < k; i++) sums[0] += (double)u[i] * v[i];
            size_t at = (size_t)row * ldc + out;
            // What stands there is not read where it does not count: it may be anything.
            double before = add == 0.0f ? 0.0 : (double)add * get(c, c_type, at);
            put(c, c_type, at, (float)(before + ((sums[0] + sums[1]) + (sums[2] + sums[3]))));
        }
    }
    return 0;
}
