// 16-bit and 32-bit floats in host memory. Pointers need no alignment.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "ops/types.h"

namespace q3::infinicore {

inline uint32_t floatBits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float bitsFloat(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// One struct per dtype: how it is stored, which bits say NaN or infinity, and its value as float.
struct F32 {
    using Bits = uint32_t;
    static constexpr Bits kExponent = 0x7f800000u;
    static float toFloat(Bits bits) { return bitsFloat(bits); }
    static Bits fromFloat(float value) { return floatBits(value); }
};

struct BF16 {
    using Bits = uint16_t;
    static constexpr Bits kExponent = 0x7f80u;
    static float toFloat(Bits bits) { return bitsFloat(uint32_t(bits) << 16); }
    static Bits fromFloat(float value) {  // to nearest, ties to even
        const uint32_t bits = floatBits(value);
        if (std::isnan(value)) {
            return Bits((bits >> 16) | 0x40u);
        }
        return Bits((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
    }
};

struct F16 {
    using Bits = uint16_t;
    static constexpr Bits kExponent = 0x7c00u;
    static float toFloat(Bits bits) {
        const uint32_t sign = uint32_t(bits & 0x8000u) << 16, rest = bits & 0x7fffu;
        if (rest >= kExponent) {
            return bitsFloat(sign | 0x7f800000u | (rest << 13));
        }
        // Shifted into place the exponent is 112 too small; the product is exact, subnormals included.
        return bitsFloat(sign | floatBits(bitsFloat(rest << 13) * 0x1p112f));
    }
    static Bits fromFloat(float value) {  // to nearest, ties to even
        const uint32_t bits = floatBits(value), sign = (bits >> 16) & 0x8000u, rest = bits & 0x7fffffffu;
        if (rest > 0x7f800000u) {
            return Bits(sign | 0x7e00u);
        }
        if (rest >= 0x47800000u) {
            return Bits(sign | kExponent);  // 65536 and more
        }
        if (rest < 0x38800000u) {  // subnormal: adding 0.5 makes float rounding drop the right bits
            return Bits(sign | (floatBits(bitsFloat(rest) + 0.5f) - floatBits(0.5f)));
        }
        return Bits(sign | ((rest - 0x38000000u + 0xfffu + ((rest >> 13) & 1u)) >> 13));
    }
};

template <class Type> typename Type::Bits load(const void *data, size_t index) {
    typename Type::Bits bits;
    std::memcpy(&bits, static_cast<const char *>(data) + index * sizeof bits, sizeof bits);
    return bits;
}

template <class Type> void store(void *data, size_t index, typename Type::Bits bits) {
    std::memcpy(static_cast<char *>(data) + index * sizeof bits, &bits, sizeof bits);
}

// Calls f with F16{}, BF16{} or F32{}.
template <class Function> decltype(auto) withType(int32_t dtype, Function &&f) {
    if (dtype == QWEN3_DTYPE_F16) {
        return f(F16{});
    }
    if (dtype == QWEN3_DTYPE_BF16) {
        return f(BF16{});
    }
    return f(F32{});
}

inline void floatsTo(int32_t dtype, void *dst, const float *src, size_t n) {
    withType(dtype, [&](auto type) {
        using Type = decltype(type);
        for (size_t i = 0; i < n; ++i) {
            store<Type>(dst, i, Type::fromFloat(src[i]));
        }
    });
}

inline void toFloats(int32_t dtype, float *dst, const void *src, size_t n) {
    withType(dtype, [&](auto type) {
        using Type = decltype(type);
        for (size_t i = 0; i < n; ++i) {
            dst[i] = Type::toFloat(load<Type>(src, i));
        }
    });
}

}  // namespace q3::infinicore
