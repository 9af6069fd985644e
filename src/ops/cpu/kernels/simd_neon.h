// Traits of NEON of ARMv8-A. A panel's 16 rows are four vectors; 6 rows of a tile are 24 of 32 registers.
#pragma once

#include <arm_neon.h>

#include "ops/cpu/kernels/simd_table.h"

namespace q3::cpu {
namespace {

struct Neon {
    using F = float32x4_t;
    using I = int32x4_t;
    using H = int16x8_t;
    using B = int8x16_t;
    using Q = int16x8_t;
    static constexpr int kLanes = 4, kParts = 4, kTileRows = 6, kRegisters = 32;
    static constexpr bool kDotsBf16 = false, kLooksUpF8 = false, kScales = false;
    static constexpr bool kByteDots = false, kSignedBytes = false;

    static F zero() { return vdupq_n_f32(0.0F); }
    static F set(float v) { return vdupq_n_f32(v); }
    static F broadcast(const float *p) { return vld1q_dup_f32(p); }
    static F load(const float *p) { return vld1q_f32(p); }
    static void store(float *p, F v) { vst1q_f32(p, v); }
    static F loadFirst(const float *p, uint32_t n) {
        float lanes[kLanes] = {};
        for (uint32_t i = 0; i < n; ++i) {
            lanes[i] = p[i];
        }
        return vld1q_f32(lanes);
    }
    static void storeFirst(float *p, F v, uint32_t n) {
        float lanes[kLanes];
        vst1q_f32(lanes, v);
        for (uint32_t i = 0; i < n; ++i) {
            p[i] = lanes[i];
        }
    }

    static F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
    static F accumulate(F sum, F a, F b) { return fma(a, b, sum); }
    static F mul(F a, F b) { return vmulq_f32(a, b); }
    static F add(F a, F b) { return vaddq_f32(a, b); }
    static F sub(F a, F b) { return vsubq_f32(a, b); }
    static F div(F a, F b) { return vdivq_f32(a, b); }
    static F max(F a, F b) { return vmaxq_f32(a, b); }
    static F min(F a, F b) { return vminq_f32(a, b); }
    static F abs(F v) { return vabsq_f32(v); }
    static F round(F v) { return vrndnq_f32(v); }
    static float sumLanes(F v) { return vaddvq_f32(v); }
    static float maxLanes(F v) { return vmaxvq_f32(v); }

    static F fromBits(I v) { return vreinterpretq_f32_s32(v); }
    static I bits(F v) { return vreinterpretq_s32_f32(v); }
    static I loadBits(const char *p) { return vreinterpretq_s32_u8(vld1q_u8(reinterpret_cast<const uint8_t *>(p))); }
    static void storeBits(char *p, I v) { vst1q_s32(reinterpret_cast<int32_t *>(p), v); }
    static I setInt(int32_t v) { return vdupq_n_s32(v); }
    static I setBits(uint32_t v) { return vreinterpretq_s32_u32(vdupq_n_u32(v)); }
    static I andBits(I a, I b) { return vandq_s32(a, b); }
    static I addInt(I a, I b) { return vaddq_s32(a, b); }
    static I subInt(I a, I b) { return vsubq_s32(a, b); }
    static I maxInt(I a, I b) { return vmaxq_s32(a, b); }
    static I broadcastInt(const int32_t *p) { return vld1q_dup_s32(p); }
    static I swapMiddle(I v) { return vcombine_s32(vget_low_s32(vuzp1q_s32(v, v)), vget_low_s32(vuzp2q_s32(v, v))); }
    template <int N> static I shiftLeft(I v) { return vshlq_n_s32(v, N); }
    template <int N> static I shiftRight(I v) {
        return vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_s32(v), N));
    }
    template <int N> static I shiftRightSigned(I v) { return vshrq_n_s32(v, N); }
    static F toFloat(I v) { return vcvtq_f32_s32(v); }
    static I toInt(F v) { return vcvtnq_s32_f32(v); }
    static int32_t sumLanesInt(I v) { return vaddvq_s32(v); }
    static int32_t maxLanesInt(I v) { return vmaxvq_s32(v); }
    static void narrow(int16_t *p, I v) { vst1_s16(p, vmovn_s32(v)); }
    static void narrowBytes(int8_t *p, I v) {
        const int16x4_t halves = vmovn_s32(v);
        const int32_t four = vget_lane_s32(vreinterpret_s32_s8(vmovn_s16(vcombine_s16(halves, halves))), 0);
        __builtin_memcpy(p, &four, sizeof four);
    }
    static I quietNan(F v, I otherwise) {
        return vbslq_s32(vceqq_f32(v, v), otherwise, vorrq_s32(bits(v), vdupq_n_s32(0x400000)));
    }

    static F loadF16(const uint16_t *p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
    static F loadBf16(const uint16_t *p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
    static F loadInt8(const char *p) {
        int32_t four;
        __builtin_memcpy(&four, p, sizeof four);
        const int16x8_t wide = vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four)));
        return vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
    }
    static void toF16(uint16_t *p, F v) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(v))); }

    template <int Shift, int Mask> static H words(B v) {
        const uint16x8_t both = vreinterpretq_u16_s8(v);
        uint16x8_t shifted = both;
        if constexpr (Shift > 0) {
            shifted = vshrq_n_u16(both, Shift);
        }
        return vreinterpretq_s16_u16(vandq_u16(shifted, vdupq_n_u16(Mask)));
    }
    static H broadcastPair(const char *p) {
        int32_t pair;
        __builtin_memcpy(&pair, p, sizeof pair);
        return vreinterpretq_s16_s32(vdupq_n_s32(pair));
    }
    static I dotPairs(I sum, H a, H b) {
        const int32x4_t low = vmull_s16(vget_low_s16(a), vget_low_s16(b));
        return vaddq_s32(sum, vpaddq_s32(low, vmull_high_s16(a, b)));
    }

    static B loadQuads(const char *p) { return vld1q_s8(reinterpret_cast<const int8_t *>(p)); }
    static B lowNibbles(B v) { return vandq_s8(v, vdupq_n_s8(15)); }
    static B highNibbles(B v) { return vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(v), 4)); }
    static B broadcastQuad(const char *p) { return vreinterpretq_s8_s16(broadcastPair(p)); }
    // A 16-bit lane sees 16 products of 15 * 127 at most in a group: it does not overflow.
    static Q noQuads() { return vdupq_n_s16(0); }
    static Q dotQuads(Q sum, B w, B x) {
        return vaddq_s16(sum, vpaddq_s16(vmull_s8(vget_low_s8(w), vget_low_s8(x)), vmull_high_s8(w, x)));
    }
    static I totalQuads(Q sum) { return vpaddlq_s16(sum); }

    static B andBytes(B v, int8_t mask) { return vandq_s8(v, vdupq_n_s8(mask)); }
    static B orMasked(B a, B v, int8_t mask) { return vorrq_s8(a, andBytes(v, mask)); }
    template <int N> static B shiftBytes(B v) {
        return vreinterpretq_s8_u8(vshlq_u8(vreinterpretq_u8_s8(v), vdupq_n_s8(N)));
    }
    static constexpr bool kDotsWide = false;
    static I dotBytes(I sum, B w, B x) {
        const int16x8_t low = vmull_s8(vget_low_s8(w), vget_low_s8(x));
        return vaddq_s32(sum, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(vmull_high_s8(w, x))));
    }

    static I widenLower(I v) { return vreinterpretq_s32_u16(vmovl_u8(vget_low_u8(vreinterpretq_u8_s32(v)))); }
    static I widenUpper(I v) { return vreinterpretq_s32_u16(vmovl_high_u8(vreinterpretq_u8_s32(v))); }
    static I subnormalF8(I magnitude, I normal) {
        static constexpr uint8_t kLower[16] = {0, 0, 0x80, 0xc0, 0, 0x20, 0x40, 0x60};
        static constexpr uint8_t kUpper[16] = {0, 0x3b, 0x3b, 0x3b, 0x3c, 0x3c, 0x3c, 0x3c};
        const uint8x16_t index = vreinterpretq_u8_s32(magnitude);
        const uint16x8_t low = vreinterpretq_u16_u8(vqtbl1q_u8(vld1q_u8(kLower), index));
        const uint16x8_t high = vreinterpretq_u16_u8(vqtbl1q_u8(vld1q_u8(kUpper), index));
        const uint16x8_t small = vorrq_u16(low, vshlq_n_u16(high, 8));
        const uint16x8_t below = vcltq_u16(vreinterpretq_u16_s32(magnitude), vdupq_n_u16(8));
        return vreinterpretq_s32_u16(vbslq_u16(below, small, vreinterpretq_u16_s32(normal)));
    }

    using Bf12Table = uint8x16_t;
    static Bf12Table tableBf12(uint16_t base) {
        return vsubq_u8(vdupq_n_u8(static_cast<uint8_t>(base)), vld1q_u8(kBf12Below));
    }
    static void wordsBf12(const char *codes, bool second, const char *low, Bf12Table table, I (&words)[kParts]) {
        for (int i = 0; i < 2; ++i) {  // rows 0-3 and 8-11, then 4-7 and 12-15
            const uint8x16_t both = vld1q_u8(reinterpret_cast<const uint8_t *>(codes) + i * 16);
            const uint8x16_t nibbles = second ? vshrq_n_u8(both, 4) : vandq_u8(both, vdupq_n_u8(15));
            const uint8x16_t upper = vqtbl1q_u8(table, nibbles);
            const uint8x16_t lower = vld1q_u8(reinterpret_cast<const uint8_t *>(low) + i * 16);
            words[i] = vreinterpretq_s32_u8(vzip1q_u8(lower, upper));
            words[2 + i] = vreinterpretq_s32_u8(vzip2q_u8(lower, upper));
        }
    }
};

}  // namespace
}  // namespace q3::cpu
