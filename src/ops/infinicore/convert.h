// 16-bit and 32-bit floats in host memory. Pointers need no alignment.
#pragma once

#include <cstdint>
#include <cstring>

#include "ops/half.h"
#include "ops/types.h"

namespace q3::infinicore {

// One struct per dtype: how it is stored, which bits say NaN or infinity, and its value as float.
struct F32 {
    using Bits = uint32_t;
    static constexpr Bits kExponent = 0x7f800000U;
    static float toFloat(Bits bits) { return bitsFloat(bits); }
    static Bits fromFloat(float value) { return floatBits(value); }
};

struct BF16 {
    using Bits = uint16_t;
    static constexpr Bits kExponent = 0x7f80U;
    static float toFloat(Bits bits) { return bf16ToFloat(bits); }
    static Bits fromFloat(float value) { return floatToBf16(value); }
};

struct F16 {
    using Bits = uint16_t;
    static constexpr Bits kExponent = 0x7c00U;
    static float toFloat(Bits bits) { return f16ToFloat(bits); }
    static Bits fromFloat(float value) { return floatToF16(value); }
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
template <class Function> decltype(auto) withType(DType dtype, Function &&f) {
    if (dtype == DType::kF16) {
        return f(F16{});
    }
    if (dtype == DType::kBf16) {
        return f(BF16{});
    }
    return f(F32{});
}

inline void floatsTo(DType dtype, void *dst, const float *src, size_t n) {
    withType(dtype, [&](auto type) {
        using Type = decltype(type);
        for (size_t i = 0; i < n; ++i) {
            store<Type>(dst, i, Type::fromFloat(src[i]));
        }
    });
}

inline void toFloats(DType dtype, float *dst, const void *src, size_t n) {
    withType(dtype, [&](auto type) {
        using Type = decltype(type);
        for (size_t i = 0; i < n; ++i) {
            dst[i] = Type::toFloat(load<Type>(src, i));
        }
    });
}

}  // namespace q3::infinicore
