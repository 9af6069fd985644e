// Single weights of quantised panels (kernels.h), where speed does not matter.
#pragma once

#include "ops/cpu/kernels.h"
#include "ops/half.h"

namespace q3::cpu {

// Code (row, k) of a panel; q4's is the nibble, 8 too large.
template <WeightType T> int codeAt(const char *panel, uint32_t row, uint32_t k) {
    const uint32_t i = k % kGroup;
    if constexpr (T == kQ8) {
        const char *codes = panel + k / kGroup * kQ8GroupBytes + 2 * kPanelRows;
        return reinterpret_cast<const int8_t *>(codes)[(i / 2 * kPanelRows + row) * 2 + i % 2];
    } else {
        const char *codes = panel + k / kGroup * kQ4GroupBytes + 2 * kPanelRows;
        const uint32_t byte = reinterpret_cast<const uint8_t *>(codes)[(i / 8 * kPanelRows + row) * 4 + i % 4];
        return static_cast<int>(byte >> (i / 4 % 2 * 4) & 15U);
    }
}

template <WeightType T> float scaleAt(const char *panel, uint32_t row, uint32_t group) {
    const size_t bytes = T == kQ8 ? kQ8GroupBytes : kQ4GroupBytes;
    return bf16ToFloat(reinterpret_cast<const uint16_t *>(panel + group * bytes)[row]);
}

template <WeightType T> float weightAt(const char *panel, uint32_t row, uint32_t k) {
    return static_cast<float>(codeAt<T>(panel, row, k) - (T == kQ4 ? 8 : 0)) * scaleAt<T>(panel, row, k / kGroup);
}

}  // namespace q3::cpu
