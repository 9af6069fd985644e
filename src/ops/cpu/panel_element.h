// Reads single weights of panels (formats.h), where speed does not matter.
#pragma once

#include <cstring>

#include "ops/cpu/formats.h"
#include "ops/half.h"

namespace q3::cpu {

template <WeightFormat T> float loadFloat(const void *data, size_t index) {
    if constexpr (T == kF32) {
        return static_cast<const float *>(data)[index];
    } else {
        static_assert(T == kF16 || T == kBf16, "no element of this format");
        const uint16_t half = static_cast<const uint16_t *>(data)[index];
        return T == kF16 ? f16ToFloat(half) : bf16ToFloat(half);
    }
}

// Code (row, k) of a panel of q8 or q4. That of q4 is the nibble, 0 to 15.
template <WeightFormat T> int codeAt(const void *panel, uint32_t row, uint32_t k) {
    const uint32_t i = k % kGroup;
    const char *codes = static_cast<const char *>(panel) + panelOffset(T, k / kGroup * kGroup) + kScaleBytes;
    if constexpr (T == kQ8) {
        return reinterpret_cast<const int8_t *>(codes)[(i / 2 * kPanelRows + row) * 2 + i % 2];
    } else {
        static_assert(T == kQ4, "no code of this format");
        const uint32_t byte = reinterpret_cast<const uint8_t *>(codes)[(i / 8 * kPanelRows + row) * 4 + i % 4];
        return static_cast<int>(byte >> (i / 4 % 2 * 4) & 15U);
    }
}

template <WeightFormat T> float scaleAt(const void *panel, uint32_t row, uint32_t group) {
    const char *scales = static_cast<const char *>(panel) + panelOffset(T, size_t{group} * kGroup);
    return bf16ToFloat(reinterpret_cast<const uint16_t *>(scales)[row]);
}

inline uint16_t bf12At(const void *panel, uint32_t row, uint32_t k) {
    const char *group = static_cast<const char *>(panel) + k / kGroup * kBf12GroupBytes;
    const uint32_t i = k % kGroup;
    Bf12Header header;
    std::memcpy(&header, group, sizeof header);
    if ((header.pairs >> (i / 2) & 1) != 0) {
        const uint16_t *raw = header.raw;
        for (uint32_t pair = 0; pair < i / 2; ++pair) {  // raw pairs before this one
            raw += size_t{header.pairs >> pair & 1U} * 2 * kPanelRows;
        }
        return raw[row * 2 + i % 2];
    }
    const auto *codes = reinterpret_cast<const uint8_t *>(group + sizeof header + i / 4 * kBf12QuadBytes);
    const uint32_t pair = i / 2 % 2;
    const uint32_t place = kBf12Order[row] * 2 + i % 2;
    const uint32_t nibble = codes[place] >> (pair * 4) & 15U;
    const uint32_t upper = (header.base - kBf12Below[nibble]) & 0xffU;
    return static_cast<uint16_t>(upper << 8 | codes[(1 + pair) * kBf12PairBytes + place]);
}

// Weight (row, k).
template <WeightFormat T> float weightAt(const void *panel, uint32_t row, uint32_t k) {
    if constexpr (T == kBf12) {
        return bf16ToFloat(bf12At(panel, row, k));
    } else if constexpr (takesCodes(T)) {
        const int code = codeAt<T>(panel, row, k) - infoOf(T).zero_code;
        return static_cast<float>(code) * scaleAt<T>(panel, row, k / kGroup);
    } else if constexpr (T == kBf16) {
        return loadFloat<T>(panel, (size_t{k} / 2 * kPanelRows + row) * 2 + k % 2);
    } else {
        return loadFloat<T>(panel, size_t{k} * kPanelRows + row);
    }
}

}  // namespace q3::cpu
