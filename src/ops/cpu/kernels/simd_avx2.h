// Traits of AVX2 + FMA + F16C. A tile of 6 rows x 16 columns takes 12 of 16 registers and leaves 4 for the operands.
#pragma once

#include <immintrin.h>

#include "ops/cpu/kernels/simd_table.h"

namespace q3::cpu {
namespace {

struct Avx2 {
    using F = __m256;
    using I = __m256i;
    using H = __m256i;
    using B = __m256i;
    using Q = __m256i;  // pairs of int16
    static constexpr int kLanes = 8, kParts = 2, kTileRows = 6, kRegisters = 16;
    static constexpr bool kDotsBf16 = false, kLooksUpF8 = false, kScales = false;
    static constexpr bool kByteDots = false, kSignedBytes = false;

    static F zero() { return _mm256_setzero_ps(); }
    static F set(float v) { return _mm256_set1_ps(v); }
    static F broadcast(const float *p) { return _mm256_broadcast_ss(p); }
    static F load(const float *p) { return _mm256_loadu_ps(p); }
    static void store(float *p, F v) { _mm256_storeu_ps(p, v); }
    static I firstLanes(uint32_t n) {
        return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    }
    static F loadFirst(const float *p, uint32_t n) { return _mm256_maskload_ps(p, firstLanes(n)); }
    static void storeFirst(float *p, F v, uint32_t n) { _mm256_maskstore_ps(p, firstLanes(n), v); }

    static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
    // This is assembly because compilers tend to put the sum into the factor's register, and then run out of registers.
    static F accumulate(F sum, F a, F b) {
        asm("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
        return sum;
    }
    static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
    static F add(F a, F b) { return _mm256_add_ps(a, b); }
    static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
    static F div(F a, F b) { return _mm256_div_ps(a, b); }
    // max and min return b when one is NaN.
    static F max(F a, F b) { return _mm256_max_ps(a, b); }
    static F min(F a, F b) { return _mm256_min_ps(a, b); }
    static F abs(F v) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0F), v); }
    static F round(F v) { return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
    static float sumLanes(F v) {
        __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
        s = _mm_add_ps(s, _mm_movehl_ps(s, s));
        return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
    }
    static float maxLanes(F v) {
        __m128 s = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
        s = _mm_max_ps(s, _mm_movehl_ps(s, s));
        return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
    }

    static F fromBits(I v) { return _mm256_castsi256_ps(v); }
    static I bits(F v) { return _mm256_castps_si256(v); }
    static I loadBits(const char *p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)); }
    static void storeBits(char *p, I v) { _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), v); }
    static I setInt(int32_t v) { return _mm256_set1_epi32(v); }
    static I setBits(uint32_t v) { return _mm256_set1_epi32(static_cast<int>(v)); }
    static I andBits(I a, I b) { return _mm256_and_si256(a, b); }
    static I addInt(I a, I b) { return _mm256_add_epi32(a, b); }
    static I subInt(I a, I b) { return _mm256_sub_epi32(a, b); }
    static I maxInt(I a, I b) { return _mm256_max_epi32(a, b); }
    static I broadcastInt(const int32_t *p) { return _mm256_set1_epi32(*p); }
    static I swapMiddle(I v) { return _mm256_shuffle_epi32(v, 0xd8); }
    template <int N> static I shiftLeft(I v) { return _mm256_slli_epi32(v, N); }
    template <int N> static I shiftRight(I v) { return _mm256_srli_epi32(v, N); }
    template <int N> static I shiftRightSigned(I v) { return _mm256_srai_epi32(v, N); }
    static F toFloat(I v) { return _mm256_cvtepi32_ps(v); }
    static I toInt(F v) { return _mm256_cvtps_epi32(v); }
    static int32_t sumLanesInt(I v) {
        __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
        s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
        return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
    }
    static int32_t maxLanesInt(I v) {
        __m128i s = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
        s = _mm_max_epi32(s, _mm_shuffle_epi32(s, 0x4e));
        return _mm_cvtsi128_si32(_mm_max_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
    }
    // The low half of every lane.
    static void narrow(int16_t *p, I v) {
        const __m256i low = _mm256_and_si256(v, _mm256_set1_epi32(0xffff));
        const __m128i halves = _mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
        _mm_storeu_si128(reinterpret_cast<__m128i *>(p), halves);
    }
    static void narrowBytes(int8_t *p, I v) {
        const __m128i halves = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
        _mm_storel_epi64(reinterpret_cast<__m128i *>(p), _mm_packs_epi16(halves, halves));
    }
    // v's own bits made a quiet NaN where v is NaN, else `otherwise`.
    static I quietNan(F v, I otherwise) {
        const __m256 quiet = _mm256_or_ps(v, fromBits(_mm256_set1_epi32(0x400000)));
        return bits(_mm256_blendv_ps(fromBits(otherwise), quiet, _mm256_cmp_ps(v, v, _CMP_UNORD_Q)));
    }

    static F loadF16(const uint16_t *p) {
        return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
    }
    static F loadBf16(const uint16_t *p) {
        const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
        return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
    }
    static F loadInt8(const char *p) {
        return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p))));
    }
    static void toF16(uint16_t *p, F v) {
        _mm_storeu_si128(reinterpret_cast<__m128i *>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
    }

    template <int Shift, int Mask> static H words(B v) {
        const __m256i shifted = Shift == 0 ? v : _mm256_srli_epi16(v, Shift);
        return Shift + (Mask == 0xf ? 4 : 8) == 16 ? shifted : _mm256_and_si256(shifted, _mm256_set1_epi16(Mask));
    }
    static H broadcastPair(const char *p) {
        int32_t pair;
        __builtin_memcpy(&pair, p, sizeof pair);
        return _mm256_set1_epi32(pair);
    }
    // This is one piece of assembly because a compiler that moves the multiplies ahead of the additions runs out of
    // registers.
    static I dotPairs(I sum, H a, H b) {
        __m256i product;
        asm("vpmaddwd %2, %3, %1\n\tvpaddd %1, %0, %0" : "+x"(sum), "=&x"(product) : "x"(a), "x"(b));
        return sum;
    }

    static B loadQuads(const char *p) { return loadBits(p); }
    static B lowNibbles(B v) { return _mm256_and_si256(v, _mm256_set1_epi8(15)); }
    static B highNibbles(B v) { return lowNibbles(_mm256_srli_epi16(v, 4)); }
    static B broadcastQuad(const char *p) { return broadcastPair(p); }
    // A 16-bit lane sees 16 products of 15 * 127 at most in a group: it does not saturate.
    static Q noQuads() { return _mm256_setzero_si256(); }
    static Q dotQuads(Q sum, B w, B x) {
        __m256i product;
        asm("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0" : "+x"(sum), "=&x"(product) : "x"(w), "x"(x));
        return sum;
    }
    static I totalQuads(Q sum) { return _mm256_madd_epi16(sum, _mm256_set1_epi16(1)); }

    static B andBytes(B v, char mask) { return _mm256_and_si256(v, _mm256_set1_epi8(mask)); }
    static B orMasked(B a, B v, char mask) { return _mm256_or_si256(a, andBytes(v, mask)); }
    template <int N> static B shiftBytes(B v) {
        if constexpr (N < 0) {
            return _mm256_srli_epi16(v, -N);
        } else {
            return _mm256_slli_epi16(v, N);
        }
    }
    static constexpr bool kDotsWide = false;
    static I dotBytes(I sum, B w, B x) {
        return addInt(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1)));
    }

    static I widenLower(I v) { return _mm256_unpacklo_epi8(v, _mm256_setzero_si256()); }
    static I widenUpper(I v) { return _mm256_unpackhi_epi8(v, _mm256_setzero_si256()); }
    static I subnormalF8(I magnitude, I normal) {
        const __m128i lower = _mm_setr_epi8(0, 0, -0x80, -0x40, 0, 0x20, 0x40, 0x60, 0, 0, 0, 0, 0, 0, 0, 0);
        const __m128i upper = _mm_setr_epi8(0, 0x3b, 0x3b, 0x3b, 0x3c, 0x3c, 0x3c, 0x3c, 0, 0, 0, 0, 0, 0, 0, 0);
        const __m256i low = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(lower), magnitude);
        const __m256i high = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(upper), magnitude);
        const __m256i small = _mm256_or_si256(low, _mm256_slli_epi16(high, 8));
        return _mm256_blendv_epi8(normal, small, _mm256_cmpgt_epi16(_mm256_set1_epi16(8), magnitude));
    }

    using Bf12Table = __m256i;
    static Bf12Table tableBf12(uint16_t base) {
        const __m128i below = _mm_loadu_si128(reinterpret_cast<const __m128i *>(kBf12Below));
        return _mm256_broadcastsi128_si256(_mm_sub_epi8(_mm_set1_epi8(static_cast<char>(base)), below));
    }
    static void wordsBf12(const char *codes, bool second, const char *low, Bf12Table table, I (&words)[kParts]) {
        const __m256i both = loadBits(codes);
        const __m256i upper = _mm256_shuffle_epi8(table, second ? highNibbles(both) : lowNibbles(both));
        const __m256i lower = loadBits(low);
        words[0] = _mm256_unpacklo_epi8(lower, upper);
        words[1] = _mm256_unpackhi_epi8(lower, upper);
    }
};

}  // namespace
}  // namespace q3::cpu
