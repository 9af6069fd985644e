// How rows of activations are brought into the form that a layer's weights are multiplied with: codes, with inputs in
// the layer's order, or rounded; and those of experts side by side.
#include <algorithm>
#include <cstring>

#include "ops/cpu/linear.h"

namespace q3::cpu {
namespace {

// Rows per claim when activations become codes or are rounded.
constexpr uint32_t kQuantGrain = 4;

// Bytes between rounded rows beyond their own: with a power of two, the rows of a tile would fall into the same few
// sets of L1.
constexpr size_t kRowPadding = 64;

}  // namespace

// Room for so many groups of activation codes.
void Linears::reserveCodes(size_t groups) {
    if (groups * sizeof(float) > scales_.bytes()) {
        codes_ = HostBuffer(groups * codeGroupBytes(kSplitCodes));
        scales_ = HostBuffer(groups * sizeof(float));
        offsets_ = HostBuffer(groups * sizeof(int32_t));
    }
}

void Linears::reserve(const CpuLinear &w) {
    if (w.order.empty()) {
        return;
    }
    reserveCodes((w.experts > 0 ? slot_rows_ : max_rows_) * groupsIn(w.in));
    ordered_.resize(pool_.size());
    for (HostBuffer &row : ordered_) {
        if (row.bytes() < w.in * sizeof(float)) {
            row = HostBuffer(w.in * sizeof(float));
        }
    }
}

// Bytes from a rounded row to the next.
size_t Linears::roundedBytes(uint32_t k, uint32_t pieces) const {
    return roundedRowBytes(k, pieces, kernels_.pair_bytes) + kRowPadding;
}

// Brings rows of `in` into the form that the layer is multiplied with.
void Linears::prepareRows(const float *in, uint32_t rows, const CpuLinear &w) {
    if (takesCodes(w.format)) {
        quantizeRows(in, rows, w);
    } else if (const uint32_t pieces = piecesOf(w.format); pieces > 0) {
        roundRows(in, nullptr, rows, w.in, pieces);
    }
}

// row_of: the row of `in` that each row is, or null: the same.
void Linears::roundRows(const float *in, const uint32_t *row_of, uint32_t rows, uint32_t k, uint32_t pieces) {
    rounded_rows_ = {rounded_.as<char>(), roundedBytes(k, pieces)};
    pool_.parallelFor(rows, kQuantGrain, [&](uint32_t begin, uint32_t end, uint32_t) {
        for (uint32_t r = begin; r < end; ++r) {
            const uint32_t row = row_of == nullptr ? r : row_of[r];
            kernels_.round[pieces - 1](in + size_t{row} * k, k, rounded_.as<char>() + r * rounded_rows_.row_bytes);
        }
    });
}

// Writes the rows of `in` in the codes that the layer takes.
void Linears::quantizeRows(const float *in, uint32_t rows, const CpuLinear &w) {
    const RowParts parts = partsOf(rows, w.format);
    // The rows of a part share cache lines, so few parts are cut by k.
    const uint32_t groups = groupsIn(w.in);
    const uint32_t wanted = parts.count < 2 * pool_.size() ? rows / (kQuantGrain * parts.count) : 1;
    const uint32_t pieces = std::clamp(wanted, 1U, groups);
    pool_.parallelFor(parts.count * pieces, 1, [&](uint32_t begin, uint32_t end, uint32_t thread) {
        for (uint32_t unit = begin; unit < end; ++unit) {
            const uint32_t part = unit / pieces;
            const uint32_t piece = unit % pieces;
            const uint32_t k0 = partBegin(groups, pieces, piece) * kGroup;
            const uint32_t k = partSize(groups, pieces, piece) * kGroup;
            quantizePart(in, nullptr, {parts.begin(part), parts.size(part), k0, std::min(k, w.in - k0)}, w, 0, thread);
        }
    });
}

// Writes a part of the rows, which meets panels of `expert` if the layer has several; row_of as in roundRows.
void Linears::quantizePart(const float *in, const uint32_t *row_of, const CodedPart &part, const CpuLinear &w,
                           uint32_t expert, uint32_t thread) {
    const ColumnOrder order = w.orderOf(expert);
    const CodeKernels &kernels = kernels_.codes[widthOf(w)][w.format];
    const QuantRows out = codesOf(part.first, part.rows, w.in, kernels).from(0, part.k0 / kGroup);
    for (uint32_t r = 0; r < part.rows; ++r) {
        const uint32_t row = row_of == nullptr ? part.first + r : row_of[part.first + r];
        const float *inputs = in + size_t{row} * w.inputs;
        if (!order.empty()) {
            auto *ordered = ordered_[thread].as<float>();
            for (uint32_t i = part.k0; i < part.k0 + part.k; ++i) {
                ordered[i] = order[i] == kNoColumn ? 0.0F : inputs[order[i]];
            }
            inputs = ordered;
        }
        kernels.quantize(inputs + part.k0, part.k, out, r);
    }
}

// Of a single row all slots are the same, so it is prepared once, as the first row, unless experts differ in the order
// of their inputs.
bool Linears::sharesRow(bool slots, const Routing &routing, const CpuLinear &w) {
    return !slots && routing.slots() == routing.nused() && w.order.empty();
}

// Brings the rows of all slots into the form that the weights are multiplied with, and side by side, those of an expert
// as the parts of a segment. Returns the rows for formats that take floats.
const float *Linears::prepareSlots(const float *in, bool slots, const Routing &routing, const CpuLinear &w) {
    const uint32_t k = w.in;
    if (sharesRow(slots, routing, w)) {
        prepareRows(in, 1, w);
        return in;
    }
    const uint32_t *row_of = slots ? nullptr : routing.rowOf();
    if (takesCodes(w.format)) {
        const auto count = static_cast<uint32_t>(routing.shares().size());
        pool_.parallelFor(count, std::max(1U, kQuantGrain * count / routing.slots()),
                          [&](uint32_t begin, uint32_t end, uint32_t thread) {
                              for (uint32_t i = begin; i < end; ++i) {
                                  const Routing::Share &share = routing.shares()[i];
                                  const RowParts parts = partsOf(share.rows, w.format);
                                  for (uint32_t part = 0; part < parts.count; ++part) {
                                      const uint32_t row = share.first + parts.begin(part);
                                      quantizePart(in, row_of, {row, parts.size(part), 0, w.in}, w, share.expert,
                                                   thread);
                                  }
                              }
                          });
    } else if (const uint32_t pieces = piecesOf(w.format); pieces > 0) {
        roundRows(in, row_of, routing.slots(), k, pieces);
    } else if (!slots) {
        auto *gathered = gathered_.as<float>();
        pool_.parallelFor(routing.slots(), kQuantGrain, [&](uint32_t begin, uint32_t end, uint32_t) {
            for (uint32_t s = begin; s < end; ++s) {
                std::memcpy(gathered + size_t{s} * k, in + size_t{row_of[s]} * k, k * sizeof(float));
            }
        });
        return gathered;
    }
    return in;
}

}  // namespace q3::cpu
