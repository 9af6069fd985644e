// Stands in for AVX-VNNI where a CPU has AVX2 alone: included before everything else.
#pragma once

#include <immintrin.h>
#include <stdint.h>

// sum + the products of four unsigned bytes of a and signed bytes of b in every lane
static inline __m256i emulatedDotBytes(__m256i sum, __m256i a, __m256i b) {
    int32_t total[8];
    uint8_t left[32];
    int8_t right[32];
    __builtin_memcpy(total, &sum, sizeof total);
    __builtin_memcpy(left, &a, sizeof left);
    __builtin_memcpy(right, &b, sizeof right);
    for (int i = 0; i < 32; ++i) {
        total[i / 4] += left[i] * right[i];
    }
    __builtin_memcpy(&sum, total, sizeof total);
    return sum;
}
#define _mm256_dpbusd_avx_epi32 emulatedDotBytes
