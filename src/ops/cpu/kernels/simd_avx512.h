// Traits of AVX-512 (F, BW, VL, DQ). A panel's 16 rows are one vector. A tile of 12 rows takes 12 of 32 registers,
// which are chains enough for two multiply-adds a cycle.
#pragma once

#include <immintrin.h>

#include "ops/cpu/kernels/simd_table.h"

namespace q3::cpu {
namespace {

struct Avx512 {
    using F = __m512;
    using I = __m512i;
    using H = __m512i;
    using B = __m512i;
    using Q = __m512i;  // pairs of int16
    static constexpr int kLanes = 16, kParts = 1, kTileRows = 12, kRegisters = 32;
    static constexpr bool kDotsBf16 = false, kLooksUpF8 = false, kScales = true;
    static constexpr bool kByteDots = false, kSignedBytes = false;

    static F zero() { return _mm512_setzero_ps(); }
    static F set(float v) { return _mm512_set1_ps(v); }
    static F broadcast(const float *p) { return _mm512_set1_ps(*p); }
    static F load(const float *p) { return _mm512_loadu_ps(p); }
    static void store(float *p, F v) { _mm512_storeu_ps(p, v); }
    static __mmask16 firstLanes(uint32_t n) { return static_cast<__mmask16>((1U << n) - 1U); }
    static F loadFirst(const float *p, uint32_t n) { return _mm512_maskz_loadu_ps(firstLanes(n), p); }
    static void storeFirst(float *p, F v, uint32_t n) { _mm512_mask_storeu_ps(p, firstLanes(n), v); }

    static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
    static F accumulate(F sum, F a, F b) { return fma(a, b, sum); }
    static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
    static F add(F a, F b) { return _mm512_add_ps(a, b); }
    static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
    static F div(F a, F b) { return _mm512_div_ps(a, b); }
    static F max(F a, F b) { return _mm512_max_ps(a, b); }
    static F min(F a, F b) { return _mm512_min_ps(a, b); }
    static F abs(F v) { return _mm512_abs_ps(v); }
    static F round(F v) { return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
    static F scale(F v, F power) { return _mm512_scalef_ps(v, power); }
    static float sumLanes(F v) { return _mm512_reduce_add_ps(v); }
    static float maxLanes(F v) { return _mm512_reduce_max_ps(v); }

    static F fromBits(I v) { return _mm512_castsi512_ps(v); }
    static I bits(F v) { return _mm512_castps_si512(v); }
    static I loadBits(const char *p) { return _mm512_loadu_si512(p); }
    static void storeBits(char *p, I v) { _mm512_storeu_si512(p, v); }
    static I setInt(int32_t v) { return _mm512_set1_epi32(v); }
    static I setBits(uint32_t v) { return _mm512_set1_epi32(static_cast<int>(v)); }
    static I andBits(I a, I b) { return _mm512_and_si512(a, b); }
    static I addInt(I a, I b) { return _mm512_add_epi32(a, b); }
    static I subInt(I a, I b) { return _mm512_sub_epi32(a, b); }
    static I maxInt(I a, I b) { return _mm512_max_epi32(a, b); }
    static I broadcastInt(const int32_t *p) { return _mm512_set1_epi32(*p); }
    static I swapMiddle(I v) { return _mm512_shuffle_epi32(v, static_cast<_MM_PERM_ENUM>(0xd8)); }
    template <int N> static I shiftLeft(I v) { return _mm512_slli_epi32(v, N); }
    template <int N> static I shiftRight(I v) { return _mm512_srli_epi32(v, N); }
    template <int N> static I shiftRightSigned(I v) { return _mm512_srai_epi32(v, N); }
    static F toFloat(I v) { return _mm512_cvtepi32_ps(v); }
    static I toInt(F v) { return _mm512_cvtps_epi32(v); }
    static int32_t sumLanesInt(I v) { return _mm512_reduce_add_epi32(v); }
    static int32_t maxLanesInt(I v) { return _mm512_reduce_max_epi32(v); }
    static void narrow(int16_t *p, I v) {
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), _mm512_cvtepi32_epi16(v));
    }
    static void narrowBytes(int8_t *p, I v) {
        _mm_storeu_si128(reinterpret_cast<__m128i *>(p), _mm512_cvtsepi32_epi8(v));
    }
    static I quietNan(F v, I otherwise) {
        const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
        return _mm512_mask_or_epi32(otherwise, nan, bits(v), _mm512_set1_epi32(0x400000));
    }

    static F loadF16(const uint16_t *p) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
    }
    static F loadBf16(const uint16_t *p) { return widenHigh(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p))); }
    static F loadInt8(const char *p) {
        return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p))));
    }
    static void toF16(uint16_t *p, F v) {
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(p),
                            _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    }

    template <int Shift, int Mask> static H words(B v) {
        const __m512i shifted = Shift == 0 ? v : _mm512_srli_epi16(v, Shift);
        return Shift + (Mask == 0xf ? 4 : 8) == 16 ? shifted : _mm512_and_si512(shifted, _mm512_set1_epi16(Mask));
    }
    static H broadcastPair(const char *p) {
        int32_t pair;
        __builtin_memcpy(&pair, p, sizeof pair);
        return _mm512_set1_epi32(pair);
    }
    static I dotPairs(I sum, H a, H b) { return _mm512_add_epi32(sum, _mm512_madd_epi16(a, b)); }

    static B loadQuads(const char *p) { return loadBits(p); }
    static B lowNibbles(B v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
    static B highNibbles(B v) { return lowNibbles(_mm512_srli_epi16(v, 4)); }
    static B broadcastQuad(const char *p) { return broadcastPair(p); }
    // A 16-bit lane sees 16 products of 15 * 127 at most in a group: it does not saturate.
    static Q noQuads() { return _mm512_setzero_si512(); }
    static Q dotQuads(Q sum, B w, B x) { return _mm512_add_epi16(sum, _mm512_maddubs_epi16(w, x)); }
    static I totalQuads(Q sum) { return _mm512_madd_epi16(sum, _mm512_set1_epi16(1)); }

    static B andBytes(B v, char mask) { return _mm512_and_si512(v, _mm512_set1_epi8(mask)); }
    static B orMasked(B a, B v, char mask) { return _mm512_ternarylogic_epi32(a, v, _mm512_set1_epi8(mask), 0xf8); }
    template <int N> static B shiftBytes(B v) {
        if constexpr (N < 0) {
            return _mm512_srli_epi16(v, -N);
        } else {
            return _mm512_slli_epi16(v, N);
        }
    }
    static constexpr bool kDotsWide = false;
    static I dotBytes(I sum, B w, B x) {
        return addInt(sum, _mm512_madd_epi16(_mm512_maddubs_epi16(w, x), _mm512_set1_epi16(1)));
    }

    static I widenLower(I v) { return _mm512_unpacklo_epi8(v, _mm512_setzero_si512()); }
    static I widenUpper(I v) { return _mm512_unpackhi_epi8(v, _mm512_setzero_si512()); }
    static I subnormalF8(I magnitude, I normal) {
        const __m128i table = _mm_setr_epi16(0, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20, 0x3c40, 0x3c60);
        const __mmask32 below = _mm512_cmplt_epu16_mask(magnitude, _mm512_set1_epi16(8));
        return _mm512_mask_permutexvar_epi16(normal, below, magnitude, _mm512_broadcast_i32x4(table));
    }

    using Bf12Table = __m256i;
    static Bf12Table tableBf12(uint16_t base) {
        const __m128i below = _mm_loadu_si128(reinterpret_cast<const __m128i *>(kBf12Below));
        return _mm256_broadcastsi128_si256(_mm_sub_epi8(_mm_set1_epi8(static_cast<char>(base)), below));
    }
    static void wordsBf12(const char *codes, bool second, const char *low, Bf12Table table, I (&words)[kParts]) {
        const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(codes));
        const __m256i nibbles = _mm256_and_si256(second ? _mm256_srli_epi16(both, 4) : both, _mm256_set1_epi8(15));
        const __m256i upper = _mm256_shuffle_epi8(table, nibbles);
        const __m256i lower = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(low));
        words[0] = _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_unpacklo_epi8(lower, upper)),
                                      _mm256_unpackhi_epi8(lower, upper), 1);
    }

private:
    // 16-bit values as the high halves of 32-bit lanes.
    static F widenHigh(__m256i v) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16)); }
};

}  // namespace
}  // namespace q3::cpu
