// FP8 weights as bf16 by looking both bytes up (AVX-512 VBMI): seven instructions for 64 weights instead of sixteen.
#pragma once

#include "ops/cpu/kernels/simd_avx512bf16.h"

namespace q3::cpu {
namespace {

// The lower and upper bytes of the bf16 words that the magnitudes of e4m3 are; wordsF8 computes the same.
struct F8Bytes {
    alignas(64) uint8_t low[128];
    alignas(64) uint8_t high[128];
};
constexpr F8Bytes f8Bytes() {
    constexpr uint32_t subnormal[8] = {0, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20, 0x3c40, 0x3c60};
    F8Bytes bytes{};
    for (uint32_t magnitude = 0; magnitude < 128; ++magnitude) {
        const uint32_t word = magnitude < 8 ? subnormal[magnitude] : (magnitude << 4) + 0x3c00;
        bytes.low[magnitude] = static_cast<uint8_t>(word);
        bytes.high[magnitude] = static_cast<uint8_t>(word >> 8);
    }
    return bytes;
}
constexpr F8Bytes kF8Bytes = f8Bytes();

inline void expandF8Lookup(const char *codes, uint32_t k, uint16_t *out) {
    const __m512i low0 = _mm512_load_si512(kF8Bytes.low);
    const __m512i low1 = _mm512_load_si512(kF8Bytes.low + 64);
    const __m512i high0 = _mm512_load_si512(kF8Bytes.high);
    const __m512i high1 = _mm512_load_si512(kF8Bytes.high + 64);
    const __m512i sign = _mm512_set1_epi8(static_cast<char>(0x80));
    constexpr size_t kGroupBytes = kF8HeadBytes + size_t{kF8Group} * kPanelRows;
    constexpr __mmask64 odd = 0xaaaaaaaaaaaaaaaaULL;  // the upper bytes of words
    for (uint32_t i = 0; i < k; i += 4, codes += 64, out += 64) {
        __builtin_prefetch(codes + kGroupBytes);  // four panels take turns, so it is wanted a while later
        const __m512i bytes = _mm512_loadu_si512(codes);
        // Look-ups leave the sign, bit 7, out.
        const __m512i low = _mm512_permutex2var_epi8(low0, bytes, low1);
        const __m512i magnitude = _mm512_permutex2var_epi8(high0, bytes, high1);
        const __m512i high = _mm512_or_si512(magnitude, _mm512_and_si512(bytes, sign));
        _mm512_storeu_si512(out, _mm512_mask_blend_epi8(odd, low, _mm512_slli_epi16(high, 8)));
        _mm512_storeu_si512(out + 32, _mm512_mask_blend_epi8(odd, _mm512_srli_epi16(low, 8), high));
    }
}

}  // namespace
}  // namespace q3::cpu
