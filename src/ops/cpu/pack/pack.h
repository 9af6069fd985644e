// Packs linear layers from the caller's layout into panels (formats.h), in parallel, checking for NaN and infinity.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "ops/cpu/formats.h"
#include "ops/cpu/host_buffer.h"
#include "ops/stored.h"
#include "ops/types.h"
#include "ops/weights.h"
#include "runtime/packed_blob.h"
#include "runtime/thread_pool.h"

namespace q3::cpu {

class CpuVector final : public PackedNorm {
public:
    HostBuffer buffer;  // float [size]
    uint32_t size = 0;
    const float *data() const { return buffer.as<float>(); }
    size_t bytes() const override { return size * sizeof(float); }
};

class CpuLinear final : public PackedLinear {
public:
    WeightFormat format = kF32;
    uint32_t out = 0;     // output features
    uint32_t in = 0;      // k of the panels
    uint32_t inputs = 0;  // input features: `in`, unless these have an order
    uint32_t npanels = 0;
    size_t panel_bytes = 0;
    bool interleaved = false;  // gate panels at even, up panels at odd indices; `out` counts gate rows only
    bool fine_codes = false;   // meets codes of 16 bits whatever the width that others of its format meet
    uint32_t experts = 0;      // as many panels of each, one expert after the other; `out` is of one. 0: a plain layer
    HostBuffer panels;         // empty where they are in `blob`
    std::unique_ptr<PackedBlob> blob;  // panels that stay in their file (readPanels)
    HostBuffer raw;                    // bf12: the pairs of k kept as bf16
    HostBuffer bias;                   // float [16 * npanels] in panel order, or empty
    // The input that each k is multiplied with, or kNoColumn: none (columnOrder). [in], or of each expert; empty: k
    // itself.
    std::vector<uint32_t> order;
    // The output features after these, in another format or with another order; or null. Of gate and up that are not
    // interleaved: up.
    std::unique_ptr<CpuLinear> next;
    size_t fileBytes() const override { return (blob ? blob->bytes() : 0) + (next ? next->fileBytes() : 0); }
    size_t bytes() const override {
        return panels.bytes() + raw.bytes() + bias.bytes() + orderBytes() + (next ? next->bytes() : 0);
    }
    size_t orderBytes() const { return order.size() * sizeof(uint32_t); }

    uint32_t expertPanels() const { return npanels / std::max(1U, experts); }
    uint32_t groups() const { return (in + kGroup - 1) / kGroup; }
    const char *panel(uint32_t index) const { return panels.as<char>() + index * panel_bytes; }
    ColumnOrder orderOf(uint32_t expert) const {
        return order.empty() ? ColumnOrder{} : ColumnOrder{order.data() + size_t{expert} * in, in};
    }
    const float *biasOf(uint32_t panel_index) const {
        return bias.data() == nullptr ? nullptr : bias.as<float>() + size_t{panel_index} * kPanelRows;
    }
};

// A row-major table, for token embeddings that are not shared with the head: floats, or GGUF's blocks as they are.
class CpuTable final : public PackedLinear {
public:
    DType dtype = DType::kF32;
    uint32_t rows = 0, cols = 0;
    size_t row_bytes = 0;        // of a row's elements
    size_t stride_bytes = 0;     // from row to row
    HostBuffer owned;            // the elements, or empty when they are borrowed
    const void *data = nullptr;  // the elements, in `owned` or in the caller's memory
    size_t bytes() const override { return owned.bytes(); }
};

// Rows of an embedding that live in the tied head's panels.
class CpuTiedTable final : public PackedLinear {
public:
    std::vector<const CpuLinear *> heads;  // of all ranks, rows in order
    size_t bytes() const override { return 0; }
};

// The layers of one format and one order of inputs each that a layer is kept as when nothing else is asked for: one,
// unless its parts are codes of several formats or orders that end with a panel, or gate and up of two orders.
std::vector<LinearSource> splitByFormat(const LinearSource &source);

// A layer of the source's shape with zeroed panels, or without any where these stay in a file; of bf12, without raw
// pairs yet.
std::unique_ptr<CpuLinear> emptyPanels(const LinearSource &source, WeightFormat format, Arena *arena,
                                       bool in_file = false);
bool hasBias(const LinearSource &source);

// format: one that floats can be packed in, or formatAsGiven(source).
// arena: where to take memory from; null: mappings of its own.
std::unique_ptr<CpuLinear> packPanels(const LinearSource &source, WeightFormat format, ThreadPool &pool,
                                      Arena *arena = nullptr);
std::unique_ptr<CpuVector> packFloats(const NormSource &source);
// A table of the source's shape that owns its elements, which are to be filled in; borrow: it has those of the source.
std::unique_ptr<CpuTable> emptyTable(const LinearSource &source, bool borrow);
std::unique_ptr<CpuTable> packTable(const LinearSource &source, bool borrow, ThreadPool &pool);

// out[n] = row of a table as floats; false if the table is borrowed and the row cannot be read any more.
bool readRow(const PackedLinear &table, uint32_t row, float *out);

}  // namespace q3::cpu
