// Layers of FP8 weights for one instruction set S, see simd_table.h: they are multiplied as bf16 panels, a block of 128
// k at a time.
#pragma once

#include "ops/cpu/kernels/kernels.h"
#include "ops/cpu/kernels/simd_float.h"

namespace q3::cpu {
namespace {

// 16-bit words that hold e4m3 bytes as bf16. The exponents' biases differ by 120; what is subnormal there is not here.
template <typename S> inline Q3_INLINE typename S::I wordsF8(typename S::I bytes) {
    const typename S::I magnitude = S::andBits(bytes, S::setBits(0x007f007fU));
    const typename S::I sign = S::template shiftLeft<8>(S::andBits(bytes, S::setBits(0x00800080U)));
    const typename S::I normal = S::addInt(S::template shiftLeft<4>(magnitude), S::setBits(0x3c003c00U));
    return S::addInt(sign, S::subnormalF8(magnitude, normal));
}

template <typename S> void expandF8(const char *codes, uint32_t k, uint16_t *out) {
    auto *to = reinterpret_cast<char *>(out);
    constexpr size_t kPairs = 4 * kPanelRows;  // bytes of a pair of k, and of four k in codes
    for (uint32_t i = 0; i < k; i += 4, codes += kPairs, to += 2 * kPairs) {
        __builtin_prefetch(codes + 1024);
        Q3_UNROLL
        for (int h = 0; h < S::kParts; ++h) {
            const size_t at = size_t{4} * S::kLanes * h;
            const typename S::I bytes = S::loadBits(codes + at);
            const typename S::I mask = S::setBits(0x00ff00ffU);
            S::storeBits(to + at, wordsF8<S>(S::andBits(bytes, mask)));
            S::storeBits(to + kPairs + at, wordsF8<S>(S::andBits(S::template shiftRight<8>(bytes), mask)));
        }
    }
}

template <typename S>
void addScaled(float *y, size_t ldy, const float *part, size_t ldp, const float *scale, uint32_t rows) {
    for (int h = 0; h < S::kParts; ++h) {
        const int at = h * S::kLanes;
        const typename S::F factor = S::load(scale + at);
        for (uint32_t r = 0; r < rows; ++r) {
            float *to = y + r * ldy + at;
            S::store(to, S::fma(factor, S::load(part + r * ldp + at), S::load(to)));
        }
    }
}

}  // namespace
}  // namespace q3::cpu
