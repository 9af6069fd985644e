// Traits of AVX-512 with VNNI, BF16 and VBMI: pairs of bf16 are multiplied and added by one instruction. FP8 weights
// become such pairs by looking both bytes up, five instructions for 64 weights.
#pragma once

#include "ops/cpu/kernels/simd_avx512vnni.h"

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

struct Avx512Bf16 : Avx512Vnni {
    static constexpr bool kDotsBf16 = true;
    static I broadcastBits(const char *p) { return broadcastPair(p); }
    static F dotBf16(F sum, I w, I x) {
        return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(w), reinterpret_cast<__m512bh>(x));
    }

    static constexpr bool kLooksUpF8 = true;
    static constexpr int kF8TableRegisters = 5;
    struct F8Table {
        __m512i low[2], high[2], sign;
    };
    static F8Table tableF8() {
        return {{_mm512_load_si512(kF8Bytes.low), _mm512_load_si512(kF8Bytes.low + 64)},
                {_mm512_load_si512(kF8Bytes.high), _mm512_load_si512(kF8Bytes.high + 64)},
                _mm512_set1_epi8(static_cast<char>(0x80))};
    }
    static void lookUpF8(I bytes, const F8Table &table, I &first, I &second) {
        // Look-ups leave the sign, bit 7, out.
        const I low = _mm512_permutex2var_epi8(table.low[0], bytes, table.low[1]);
        const I magnitude = _mm512_permutex2var_epi8(table.high[0], bytes, table.high[1]);
        const I high = _mm512_ternarylogic_epi32(magnitude, bytes, table.sign, 0xf8);  // magnitude | bytes & sign
        first = _mm512_unpacklo_epi8(low, high);
        second = _mm512_unpackhi_epi8(low, high);
    }
};

}  // namespace
}  // namespace q3::cpu
