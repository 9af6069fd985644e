// Linear layers on the CPU. A claim's panels are multiplied straight from their packed form: a tile's rows (decode)
// stream them once from memory, more rows (prefill) go through a few panels at a time, tile by tile, while these are in
// L2. Quantised weights meet activations in codes. However rows and k are cut, an output is the same chain (kernels.h),
// so a row's result does not depend on what else is computed with it.
#include <algorithm>
#include <cstring>

#include "ops/cpu/cpu_backend.h"

namespace q3::cpu {
namespace {

// Bytes of weights per claim, at the end of a product or where many rows meet them: long enough to hide the claim,
// short enough to balance two threads.
constexpr size_t kClaimBytes = size_t{128} << 10;

// Bytes of weights of a claim that one tile of rows streams, at most: a quarter of them are one of four streams.
constexpr size_t kStreamBytes = size_t{512} << 10;
constexpr uint32_t kStreamPanels = 64;

// Weights that many rows go through at once: half of a small L2, the other half is for the rows.
constexpr size_t kBlockBytes = size_t{256} << 10;

// Panels at once: what a one-row kernel streams together.
constexpr uint32_t kTogether = 4;

// Rows per claim when activations become codes: a row takes about a microsecond.
constexpr uint32_t kQuantGrain = 4;

// Rows in `parts` nearly equal parts: two tiles of 4 rows beat one of 6 and one of 2, which has too few chains.
uint32_t partSize(uint32_t rows, uint32_t parts, uint32_t part) {
    return rows / parts + (part < rows % parts ? 1 : 0);
}

uint32_t panelsIn(size_t bytes, const CpuLinear &w) {
    const auto panels = static_cast<uint32_t>(bytes / std::max<size_t>(1, w.panel_bytes));
    return std::max(kTogether, panels / kTogether * kTogether);
}

// k per block so that kTogether panels fit kBlockBytes, in nearly equal blocks of whole groups.
uint32_t blockDepth(WeightFormat type, uint32_t k) {
    const size_t bytes = kTogether * panelOffset(type, roundUp(k, kGroup));
    const auto blocks = static_cast<uint32_t>((bytes + kBlockBytes - 1) / kBlockBytes);
    return roundUp((k + blocks - 1) / std::max(1U, blocks), kGroup);
}

void addBias(float *row, const float *bias) {
    if (bias != nullptr) {
        for (uint32_t j = 0; j < kPanelRows; ++j) {
            row[j] += bias[j];
        }
    }
}

}  // namespace

size_t CpuBackend::linearScratchFloats() const {
    // Sums of all rows with kTogether panels; then bf12 panels as bf16 ones, where a block may exceed its size by a
    // group. Or sums of a tile of rows with kStreamPanels.
    const size_t expanded = formatOf(dt_weight_) == kBf12 ? kBlockBytes + kTogether * panelOffset(kBf16, kGroup) : 0;
    const size_t blocks = size_t{max_rows_} * kTogether * kPanelRows + expanded / sizeof(float);
    return std::max(blocks, size_t{kMaxTileRows} * kStreamPanels * kPanelRows);
}

// Fills quant_rows_ with rows of `in`, in the codes that `type` takes.
void CpuBackend::quantizeRows(const float *in, uint32_t rows, size_t ld, uint32_t k, WeightFormat type) {
    if (kernels_.split_codes) {
        quant_rows_.row_step = 1;
        quant_rows_.group_step = rows <= kMaxTileRows ? rows : paddedQuantRows(rows);
    } else {
        quant_rows_.row_step = (k + kGroup - 1) / kGroup;
        quant_rows_.group_step = 1;
    }
    pool_.parallelFor(rows, kQuantGrain, [&](uint32_t begin, uint32_t end, uint32_t) {
        for (uint32_t r = begin; r < end; ++r) {
            kernels_.quantize[type](in + r * ld, k, quant_rows_, r);
        }
    });
}

void CpuBackend::multiply(const char *panels, size_t panel_bytes, uint32_t npanels, WeightFormat type, const float *in,
                          size_t ld, uint32_t row, uint32_t rows, uint32_t k0, uint32_t k, float *out,
                          size_t ldo) const {
    if (takesCodes(type)) {
        kernels_.multiplyQuantPanels[type](panels, panel_bytes, npanels, (k + kGroup - 1) / kGroup,
                                           quant_rows_.from(row, k0 / kGroup, type), rows, out, ldo, k0 > 0);
    } else {
        kernels_.multiplyPanels[type](panels, panel_bytes, npanels, k, in + row * ld + k0, ld, rows, out, ldo, k0 > 0);
    }
}

// Calls epilogue(panel, row, count, product, ld) for all panels and parts of rows, `step` panels (side by side) a call:
// the sums of rows [row, row + count) with the panel are at product + r * ld.
template <typename Epilogue>
void CpuBackend::multiplyRows(const float *in, uint32_t rows, size_t ld, const CpuLinear &w, uint32_t step,
                              const Epilogue &epilogue) {
    if (takesCodes(w.format)) {
        quantizeRows(in, rows, ld, w.in, w.format);
    }
    if (rows <= kernels_.tileRows(w.format)) {
        streamPanels(in, rows, ld, w, step, epilogue);
    } else {
        reusePanels(in, rows, ld, w, step, epilogue);
    }
}

// A tile of rows meets every weight once: claims are as long as the kernel's streams through memory like them.
template <typename Epilogue>
void CpuBackend::streamPanels(const float *in, uint32_t rows, size_t ld, const CpuLinear &w, uint32_t step,
                              const Epilogue &epilogue) {
    const uint32_t most = std::min(kStreamPanels, panelsIn(kStreamBytes, w));
    const uint32_t least = std::min(most, panelsIn(kClaimBytes, w));
    pool_.parallelFor(w.npanels, least, most, [&](uint32_t begin, uint32_t end, uint32_t thread) {
        auto *products = product_scratch_[thread].template as<float>();
        for (uint32_t p = begin; p < end; p += most) {  // one thread claims all at once
            const uint32_t count = std::min(most, end - p);
            const size_t width = size_t{count} * kPanelRows;
            multiply(w.panel(p), w.panel_bytes, count, w.format, in, ld, 0, rows, 0, w.in, products, width);
            for (uint32_t q = 0; q < count; q += step) {
                epilogue(p + q, 0, rows, products + size_t{q} * kPanelRows, width);
            }
        }
    });
}

// Many rows: all of them go through kTogether panels, or a block of their k, that stay in L2 meanwhile.
template <typename Epilogue>
void CpuBackend::reusePanels(const float *in, uint32_t rows, size_t ld, const CpuLinear &w, uint32_t step,
                             const Epilogue &epilogue) {
    const uint32_t tile = kernels_.tileRows(w.format);
    const uint32_t parts = (rows + tile - 1) / tile;
    // bf12 is decoded once for all, unless two tiles leave their kernel the registers to do it twice: what is expanded
    // goes through L2, which costs more than a second decoding.
    const bool expand = w.format == kBf12 && rows > 2 * (tile - 1);
    const WeightFormat type = expand ? kBf16 : w.format;
    const uint32_t depth = blockDepth(type, w.in);
    pool_.parallelFor(w.npanels, panelsIn(kClaimBytes, w), [&](uint32_t begin, uint32_t end, uint32_t thread) {
        constexpr size_t width = kTogether * kPanelRows;
        auto *products = product_scratch_[thread].template as<float>();
        char *expanded = product_scratch_[thread].template as<char>() + max_rows_ * width * sizeof(float);
        for (uint32_t p = begin; p < end; p += kTogether) {
            const uint32_t count = std::min(kTogether, end - p);
            for (uint32_t k0 = 0; k0 < w.in; k0 += depth) {
                const uint32_t k = std::min(depth, w.in - k0);
                const bool last = k0 + k == w.in;
                const char *panels = w.panel(p) + panelOffset(w.format, k0);
                size_t stride = w.panel_bytes;
                if (expand) {
                    const uint32_t groups = (k + kGroup - 1) / kGroup;
                    const size_t bytes = panelOffset(kBf16, size_t{groups} * kGroup);
                    for (uint32_t q = 0; q < count; ++q) {
                        kernels_.expandBf12(panels + q * stride, groups,
                                            reinterpret_cast<uint16_t *>(expanded + q * bytes));
                    }
                    panels = expanded;
                    stride = bytes;
                }
                uint32_t row = 0;
                for (uint32_t part = 0; part < parts; ++part) {
                    const uint32_t size = partSize(rows, parts, part);
                    // One block of k needs the sums of one part only, which stay in L1.
                    float *product = products + (depth < w.in ? row * width : 0);
                    multiply(panels, stride, count, type, in, ld, row, size, k0, k, product, width);
                    for (uint32_t q = 0; last && q < count; q += step) {
                        epilogue(p + q, row, size, product + size_t{q} * kPanelRows, width);
                    }
                    row += size;
                }
            }
        }
    });
}

void CpuBackend::plainLinear(float *out, size_t ldo, const float *in, uint32_t rows, const CpuLinear &w) {
    multiplyRows(in, rows, w.in, w, 1, [&](uint32_t panel, uint32_t row, uint32_t count, float *product, size_t ld) {
        const uint32_t first = panel * kPanelRows;
        const uint32_t columns = std::min(kPanelRows, w.out - first);
        for (uint32_t r = 0; r < count; ++r) {
            addBias(product + r * ld, w.biasOf(panel));
            std::memcpy(out + (row + r) * ldo + first, product + r * ld, columns * sizeof(float));
        }
    });
}

void CpuBackend::linear(Activation out, Activation in, const PackedLinear &weight) {
    plainLinear(static_cast<float *>(out.data), out.width, static_cast<const float *>(in.data), plan_->ntok,
                static_cast<const CpuLinear &>(weight));
}

void CpuBackend::linearSwiglu(Activation act, Activation h, const PackedLinear &gate_up) {
    const auto &w = static_cast<const CpuLinear &>(gate_up);
    auto *out = static_cast<float *>(act.data);
    multiplyRows(static_cast<const float *>(h.data), plan_->ntok, w.in, w, 2,
                 [&](uint32_t panel, uint32_t row, uint32_t count, float *product, size_t ld) {
                     const uint32_t first = panel / 2 * kPanelRows;
                     const uint32_t columns = std::min(kPanelRows, w.out - first);
                     for (uint32_t r = 0; r < count; ++r) {
                         const float *gate = product + r * ld;
                         kernels_.siluMul(out + size_t{row + r} * act.width + first, gate, gate + kPanelRows, columns);
                     }
                 });
}

void CpuBackend::readLogits(float *logits, size_t ld, Activation in, uint32_t nrows, const PackedLinear &head) {
    const auto &w = static_cast<const CpuLinear &>(head);
    plainLinear(logits, ld, static_cast<const float *>(in.data), nrows, w);
}

}  // namespace q3::cpu
