// How attention's results and scratch for an item's rows lie in memory; sizes are numbers of floats.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "ops/cpu/attention_plan.h"
#include "ops/cpu/kernels/kernels.h"

namespace q3::cpu {

// The result of one split of keys, before it is merged with the others.
struct AttentionPart {
    float *values;   // [rows][value width]: sum of values, weighted relative to `maximum`
    float *maximum;  // [rows]
    float *sum;      // [rows]: of weights

    // A row has a cache line for its maximum and sum, so that values stay aligned.
    static size_t floats(size_t rows, uint32_t value_width) { return rows * (size_t{value_width} + 16); }
    AttentionPart(float *base, uint32_t rows, uint32_t value_width)
        : values(base), maximum(values + size_t{rows} * value_width), sum(maximum + rows) {}
};

// One thread's scratch.
struct AttentionScratch {
    float *query;         // [rows][dh], scaled by 1 / sqrt(dh)
    float *scores;        // [rows][kSplit]
    AttentionPart part;   // a split of an item that is not cut
    AttentionPart total;  // the merged splits so far
    float *tile;          // a K tile [dh][16], or a panel of several V tiles [kWideKeys][kValueWidth], as floats

    static constexpr uint32_t kWideKeys = 128;

    static size_t floats(uint32_t rows, uint32_t dh, uint32_t value_width) {
        return size_t{rows} * (dh + kSplit) + 2 * AttentionPart::floats(rows, value_width) +
               std::max(size_t{dh} * kPanelRows, size_t{kWideKeys} * kValueWidth);
    }
    AttentionScratch(float *base, uint32_t rows, uint32_t dh, uint32_t value_width)
        : query(base), scores(query + size_t{rows} * dh), part(scores + size_t{rows} * kSplit, rows, value_width),
          total(part.values + AttentionPart::floats(rows, value_width), rows, value_width),
          tile(total.values + AttentionPart::floats(rows, value_width)) {}
};

}  // namespace q3::cpu
