// Element types of the fake accelerator. Written apart from the library's conversions, so that neither hides a mistake
// of the other.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "infinicore.h"

namespace fake {

inline size_t elementSize(infiniDtype_t dtype) {
    switch (dtype) {
    case INFINI_DTYPE_F32:
    case INFINI_DTYPE_I32:
    case INFINI_DTYPE_U32:
        return 4;
    case INFINI_DTYPE_F16:
    case INFINI_DTYPE_BF16:
        return 2;
    case INFINI_DTYPE_I64:
    case INFINI_DTYPE_U64:
        return 8;
    default:
        return 0;
    }
}

inline bool isFloat(infiniDtype_t dtype) {
    return dtype == INFINI_DTYPE_F32 || dtype == INFINI_DTYPE_F16 || dtype == INFINI_DTYPE_BF16;
}

inline float halfValue(uint16_t bits) {
    const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    const float magnitude = exponent == 31  ? (mantissa != 0 ? NAN : INFINITY)
                            : exponent == 0 ? std::ldexp(float(mantissa), -24)
                                            : std::ldexp(float(1024 + mantissa), exponent - 25);
    return bits & 0x8000 ? -magnitude : magnitude;
}

inline const float *halfTable() {
    static const std::vector<float> table = [] {
        std::vector<float> values(65536);
        for (uint32_t i = 0; i < 65536; ++i) {
            values[i] = halfValue(uint16_t(i));
        }
        return values;
    }();
    return table.data();
}

inline uint16_t toHalf(float value) {
    const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
    const float magnitude = std::fabs(value);
    if (std::isnan(value)) {
        return uint16_t(sign | 0x7e00);
    }
    if (magnitude >= 65520.0f) {
        return uint16_t(sign | 0x7c00);
    }
    if (magnitude == 0.0f) {
        return sign;
    }
    int exponent = 0;
    std::frexp(magnitude, &exponent);               // magnitude < 2^exponent
    const int unit = std::max(exponent, -13) - 11;  // the last bit's weight
    const auto steps = uint32_t(std::nearbyint(std::ldexp(magnitude, -unit)));
    // Normal numbers have the hidden bit in `steps`; a carry into the next power of two comes out right by adding.
    return uint16_t(sign | (uint32_t(unit + 24) * 1024 + steps));
}

inline float load(infiniDtype_t dtype, const char *data, ptrdiff_t index) {
    if (dtype == INFINI_DTYPE_F32) {
        float value;
        std::memcpy(&value, data + index * 4, 4);
        return value;
    }
    uint16_t bits;
    std::memcpy(&bits, data + index * 2, 2);
    if (dtype == INFINI_DTYPE_F16) {
        return halfTable()[bits];
    }
    const uint32_t wide = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
}

// n elements, `stride` apart; the type is looked at once.
inline void loadRow(infiniDtype_t dtype, const char *data, ptrdiff_t index, ptrdiff_t stride, size_t n, float *out) {
    const auto read = [&](infiniDtype_t type) {
        for (size_t i = 0; i < n; ++i) {
            out[i] = load(type, data, index + ptrdiff_t(i) * stride);
        }
    };
    dtype == INFINI_DTYPE_F32   ? read(INFINI_DTYPE_F32)
    : dtype == INFINI_DTYPE_F16 ? read(INFINI_DTYPE_F16)
                                : read(INFINI_DTYPE_BF16);
}

inline void store(infiniDtype_t dtype, char *data, ptrdiff_t index, float value) {
    if (dtype == INFINI_DTYPE_F32) {
        std::memcpy(data + index * 4, &value, 4);
        return;
    }
    uint16_t bits;
    if (dtype == INFINI_DTYPE_F16) {
        bits = toHalf(value);
    } else {
        uint32_t wide;
        std::memcpy(&wide, &value, 4);
        bits = std::isnan(value) ? uint16_t(0x7fff) : uint16_t((wide + 0x7fff + (wide >> 16 & 1)) >> 16);
    }
    std::memcpy(data + index * 2, &bits, 2);
}

inline int64_t loadInteger(infiniDtype_t dtype, const char *data, ptrdiff_t index) {
    int64_t value = 0;
    const size_t size = elementSize(dtype);
    std::memcpy(&value, data + index * ptrdiff_t(size), size);
    return dtype == INFINI_DTYPE_I32 ? int32_t(value) : value;
}

}  // namespace fake
