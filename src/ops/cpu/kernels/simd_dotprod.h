// Traits of NEON with dot products of bytes (SDOT). An activation's 16-bit code is 256 * high + low with two signed
// bytes, so a group's exact product is 256 * sdot(w, high) + sdot(w, low).
#pragma once

#include "ops/cpu/kernels/simd_neon.h"

namespace q3::cpu {
namespace {

struct NeonDotprod : Neon {
    using Q = int32x4_t;
    // This is assembly because compilers load all rows' values ahead of the products, and then run out of registers.
    static B broadcastQuad(const char *p) {
        const auto *quad = reinterpret_cast<const int8_t (*)[4]>(p);
        int8x16_t out;
        asm volatile("ld1r {%0.4s}, %1" : "=w"(out) : "Q"(*quad));
        return out;
    }
    static Q noQuads() { return vdupq_n_s32(0); }
    static Q dotQuads(Q sum, B w, B x) { return vdotq_s32(sum, w, x); }
    static I totalQuads(Q sum) { return sum; }
    static I dotBytes(I sum, B w, B x) { return vdotq_s32(sum, w, x); }
};

// The two bytes of a group's 32 codes.
struct CodeBytes {
    int8x16_t high[2], low[2];

    explicit CodeBytes(const char *codes) {
        const auto *from = reinterpret_cast<const int16_t *>(codes);
        for (int i = 0; i < 2; ++i) {
            const int16x8_t a = vld1q_s16(from + i * 16);
            const int16x8_t b = vld1q_s16(from + i * 16 + 8);
            high[i] = vrshrn_high_n_s16(vrshrn_n_s16(a, 8), b, 8);  // (code + 128) >> 8 leaves a signed byte
            low[i] = vuzp1q_s8(vreinterpretq_s8_s16(a), vreinterpretq_s8_s16(b));
        }
    }
};

// A group is 8 steps of four k. A vector holds four rows of weights.
template <> struct Steps<NeonDotprod, kQ8> {
    using S = NeonDotprod;
    static constexpr int kAtOnce = 2;        // with two sums each, 6 rows take 24 registers
    static constexpr size_t kCodeBytes = 8;  // four high, four low
    using Weights = S::B;
    struct Values {
        S::B high, low;
    };
    struct Sums {
        S::I high, low;
    };
    template <int R> struct Rows {
        static constexpr size_t row_bytes = QuantRows::rowBytes(kQ8);
        alignas(16) char codes[R * row_bytes];
        Rows(const char *from, size_t from_bytes) {
            for (int r = 0; r < R; ++r) {
                const CodeBytes bytes(from + r * from_bytes);
                for (int i = 0; i < 2; ++i) {
                    const int32x4_t high = vreinterpretq_s32_s8(bytes.high[i]);
                    const int32x4_t low = vreinterpretq_s32_s8(bytes.low[i]);
                    auto *out = reinterpret_cast<int32_t *>(codes + r * row_bytes + i * 32);
                    vst1q_s32(out, vzip1q_s32(high, low));
                    vst1q_s32(out + S::kLanes, vzip2q_s32(high, low));
                }
            }
        }
    };
    static Values broadcast(const char *codes) { return {S::broadcastQuad(codes), S::broadcastQuad(codes + 4)}; }
    static Sums start() { return {S::setInt(0), S::setInt(0)}; }
    static Sums dot(Sums sums, Weights w, Values x) {
        return {vdotq_s32(sums.high, w, x.high), vdotq_s32(sums.low, w, x.low)};
    }
    static S::I total(Sums sums, int32_t /*offset*/) { return vaddq_s32(vshlq_n_s32(sums.high, 8), sums.low); }
    template <typename Use> static void forSteps(const char *group, int first, const Use &use) {
        const char *codes = group + kScaleBytes;
        for (uint32_t step = 0; step < kGroup / 4; ++step) {
            // Two pairs of k of eight rows become the quads of each row.
            const char *pairs = codes + (step * 2 * kPanelRows + first * S::kLanes) * 2;
            const int16x8_t even = vreinterpretq_s16_s8(S::loadQuads(pairs));
            const int16x8_t odd = vreinterpretq_s16_s8(S::loadQuads(pairs + kPanelRows * 2));
            use(step, StepWeights<Steps>{
                          {vreinterpretq_s8_s16(vzip1q_s16(even, odd)), vreinterpretq_s8_s16(vzip2q_s16(even, odd))}});
        }
    }
};

}  // namespace
}  // namespace q3::cpu
