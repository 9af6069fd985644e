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
    float *tile;  // K tiles [kKeyTiles][dh][16], or a panel of several V tiles [kWideKeys][kValueWidth], as floats

    // Where attention is in bf16, rows of kRowPadding bytes more than they need, so that they do not fall into
    // the same few sets of L1:
    size_t query_bytes, weight_bytes;  // of a row of dh, and of kSplit
    char *queries;                     // [rows]
    char *weights;                     // [rows]
    uint32_t *pairs;                   // kTilesTogether tiles in pairs, where the cache does not keep them so

    static constexpr uint32_t kKeyTiles = 2;
    static constexpr uint32_t kWideKeys = 128;
    static constexpr size_t kRowPadding = 64;

    // pair_bytes: of KernelTable, or 0 where attention is in float32.
    static size_t floats(uint32_t rows, uint32_t dh, uint32_t value_width, size_t pair_bytes) {
        return size_t{rows} * (dh + kSplit) + 2 * AttentionPart::floats(rows, value_width) +
               tileFloats(dh, value_width) +
               rows * (rowBytes(dh, pair_bytes) + rowBytes(kSplit, pair_bytes)) / sizeof(float) +
               (pair_bytes > 0 ? pairTileWords(dh, value_width) * kTilesTogether : 0);
    }
    AttentionScratch(float *base, uint32_t rows, uint32_t dh, uint32_t value_width, size_t pair_bytes)
        : query(base), scores(query + size_t{rows} * dh), part(scores + size_t{rows} * kSplit, rows, value_width),
          total(part.values + AttentionPart::floats(rows, value_width), rows, value_width),
          tile(total.values + AttentionPart::floats(rows, value_width)), query_bytes(rowBytes(dh, pair_bytes)),
          weight_bytes(rowBytes(kSplit, pair_bytes)),
          queries(reinterpret_cast<char *>(tile + tileFloats(dh, value_width))), weights(queries + rows * query_bytes),
          pairs(reinterpret_cast<uint32_t *>(weights + rows * weight_bytes)) {}

    static size_t pairTileWords(uint32_t dh, uint32_t value_width) {
        return size_t{std::max(dh, value_width)} * kPanelRows / 2;
    }

private:
    static size_t tileFloats(uint32_t dh, uint32_t value_width) {
        return std::max(size_t{std::max(dh, value_width)} * kKeyTiles * kPanelRows, size_t{kWideKeys} * kValueWidth);
    }
    static size_t rowBytes(uint32_t k, size_t pair_bytes) {
        return pair_bytes == 0 ? 0 : roundedRowBytes(k, 1, pair_bytes) + kRowPadding;
    }
};

}  // namespace q3::cpu
