// Layout of one thread's attention scratch, in floats.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "ops/cpu/kernels.h"

namespace q3::cpu {

struct AttentionScratch {
    float *query;    // [rows][dh], scaled by 1 / sqrt(dh)
    float *scores;   // [rows][split]
    float *part;     // [rows][value width]: this split's weighted sum of values
    float *total;    // [rows][value width]: all splits so far, relative to `maximum`
    float *maximum;  // [rows]
    float *sum;      // [rows]
    float *tile;     // a K tile [dh][16], or a panel of several V tiles [kWideKeys][kValueWidth], as floats

    static constexpr uint32_t kWideKeys = 128;

    static size_t valueWidth(uint32_t dh) { return (size_t{dh} + kValueWidth - 1) / kValueWidth * kValueWidth; }
    static size_t floats(uint32_t rows, uint32_t dh, uint32_t split) {
        return size_t{rows} * (dh + split + 2 * valueWidth(dh) + 2) +
               std::max(size_t{dh} * kPanelRows, size_t{kWideKeys} * kValueWidth);
    }
    AttentionScratch(float *base, uint32_t rows, uint32_t dh, uint32_t split)
        : query(base), scores(query + size_t{rows} * dh), part(scores + size_t{rows} * split),
          total(part + rows * valueWidth(dh)), maximum(total + rows * valueWidth(dh)), sum(maximum + rows),
          tile(sum + rows) {}
};

}  // namespace q3::cpu
