// Scalar conversions between float and the two 16-bit formats, round to nearest even. Used by
// both backends where speed does not matter, and as the reference of the vector kernels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "ops/types.h"

namespace q3 {

// Tensors come at any alignment, so elements are read with memcpy.
template <typename T> inline T readAs(const char *p) {
    T value;
    std::memcpy(&value, p, sizeof value);
    return value;
}

static inline uint32_t floatBits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float bitsFloat(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

static inline float bf16ToFloat(uint16_t half) {
    return bitsFloat(static_cast<uint32_t>(half) << 16);
}

static inline uint16_t floatToBf16(float value) {
    const uint32_t bits = floatBits(value);
    if ((bits & 0x7fffffffU) > 0x7f800000U) {
        return static_cast<uint16_t>((bits >> 16) | 0x40U);  // stay a NaN
    }
    return static_cast<uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16);
}

static inline float f16ToFloat(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000U) << 16;
    const uint32_t exponent = (half >> 10) & 0x1fU;
    const uint32_t mantissa = half & 0x3ffU;
    if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24, exact in float
        return bitsFloat(sign | floatBits(static_cast<float>(mantissa) * 0x1.0p-24F));
    }
    const uint32_t wide = exponent == 31 ? 0xffU : exponent + 112;
    return bitsFloat(sign | (wide << 23) | (mantissa << 13));
}

static inline uint16_t floatToF16(float value) {
    const uint32_t bits = floatBits(value);
    const uint32_t sign = (bits >> 16) & 0x8000U;
    const uint32_t magnitude = bits & 0x7fffffffU;
    if (magnitude > 0x7f800000U) {
        return static_cast<uint16_t>(sign | 0x7e00U);
    }
    if (magnitude >= 0x477ff000U) {  // rounds to 65536 or more
        return static_cast<uint16_t>(sign | 0x7c00U);
    }
    if (magnitude < 0x38800000U) {  // below 2^-14: adding 0.5 lets the FPU round at the subnormal's last bit
        const float shifted = bitsFloat(magnitude) + 0.5F;
        return static_cast<uint16_t>(sign | (floatBits(shifted) - floatBits(0.5F)));
    }
    const uint32_t rounded = magnitude + 0xfffU + ((magnitude >> 13) & 1U);
    return static_cast<uint16_t>(sign | ((rounded - 0x38000000U) >> 13));
}

template <typename Bits> int64_t findExponent(const void *data, size_t n, Bits exponent) {
    const auto bad = [&](size_t i) {
        Bits bits;
        std::memcpy(&bits, static_cast<const char *>(data) + i * sizeof bits, sizeof bits);
        return (bits & exponent) == exponent;
    };
    uint32_t any = 0;  // without leaving the loop early, which would keep it from vectorising
    for (size_t i = 0; i < n; ++i) {
        any |= bad(i) ? 1U : 0U;
    }
    for (size_t i = 0; any != 0 && i < n; ++i) {
        if (bad(i)) {
            return static_cast<int64_t>(i);
        }
    }
    return -1;
}

// Index of the first NaN or infinity among n elements of any alignment, or -1.
static inline int64_t findNonFinite(const void *data, size_t n, DType dtype) {
    if (dtype == DType::kF32) {
        return findExponent<uint32_t>(data, n, 0x7f800000U);
    }
    return findExponent<uint16_t>(data, n, dtype == DType::kF16 ? uint16_t{0x7c00} : uint16_t{0x7f80});
}

}  // namespace q3
