// Linear layers on the CPU. Up to kStreamRows rows (decode of a batch): weights are streamed once and multiplied
// straight from their packed form, at most tile_rows rows at a time while a panel is in cache. More rows (prefill):
// each panel is unpacked (to float, or codes) in L1 and multiplied by all rows, which are first rearranged so
// that the tile kernel reads them in sequence. Quantised weights meet activations in codes. Both paths compute
// the same chain per output (kernels.h), so a row's result does not depend on which path it took.
#include <algorithm>
#include <cstring>

#include "ops/cpu/cpu_ops.h"

namespace q3::cpu {
namespace {

// Bytes of weights per claim: long enough to hide the claim, short enough to balance two threads at the end.
constexpr size_t kClaimBytes = size_t{128} << 10;

// Rows per claim when activations become codes: a row takes about a microsecond.
constexpr uint32_t kQuantGrain = 4;

// Up to here decoding a panel once per 6 rows costs less than unpacking it to floats once.
constexpr uint32_t kStreamRows = 18;

// Rows in `parts` nearly equal parts: two tiles of 4 rows beat one of 6 and one of 2, which has too few chains.
uint32_t partSize(uint32_t rows, uint32_t parts, uint32_t part) {
    return rows / parts + (part < rows % parts ? 1 : 0);
}

uint32_t claimPanels(const CpuLinear &w, uint32_t step) {
    const auto panels = static_cast<uint32_t>(kClaimBytes / std::max<size_t>(1, w.panel_bytes));
    return std::max(step, panels / step * step);
}

void addBias(float *row, const float *bias) {
    if (bias != nullptr) {
        for (uint32_t j = 0; j < kPanelRows; ++j) {
            row[j] += bias[j];
        }
    }
}

}  // namespace

// [rows][k] -> [rows / T][k][T] with T = tile_rows, the last group padded with zeros.
void CpuOps::packRows(const float *in, uint32_t rows, size_t ld, uint32_t k) {
    const uint32_t tile = kernels_.tile_rows;
    pool_.parallelFor((rows + tile - 1) / tile, 1, [&](uint32_t begin, uint32_t end, uint32_t) {
        for (uint32_t g = begin; g < end; ++g) {
            float *out = packed_rows_.as<float>() + size_t{g} * k * tile;
            for (uint32_t r = 0; r < tile; ++r) {
                const uint32_t row = g * tile + r;
                const float *source = in + size_t{row} * ld;
                for (uint32_t i = 0; i < k; ++i) {
                    out[size_t{i} * tile + r] = row < rows ? source[i] : 0.0F;
                }
            }
        }
    });
}

// Fills quant_rows_ with rows of `in`, in the codes that `type` takes.
void CpuOps::quantizeRows(const float *in, uint32_t rows, size_t ld, uint32_t k, WeightType type) {
    pool_.parallelFor(rows, kQuantGrain, [&](uint32_t begin, uint32_t end, uint32_t) {
        for (uint32_t r = begin; r < end; ++r) {
            kernels_.quantize[type - kExactTypes](in + r * ld, k, quant_rows_, r);
        }
    });
}

// quant_rows_ -> codes [rows / T][groups][steps][T][4 bytes], scales and offsets [rows / T][groups][T].
void CpuOps::packQuantRows(uint32_t rows, uint32_t groups, WeightType type) {
    const uint32_t tile = kernels_.tile_rows;
    const size_t steps = size_t{groups} * stepsPerGroup(type);
    pool_.parallelFor((rows + tile - 1) / tile, 1, [&](uint32_t begin, uint32_t end, uint32_t) {
        for (uint32_t t = begin; t < end; ++t) {
            const QuantTile out = packedTile(t * tile, groups, 0, type);
            for (uint32_t r = 0; r < tile; ++r) {
                const QuantRows from = quant_rows_.from(std::min(t * tile + r, rows - 1));  // padding repeats the last
                for (size_t step = 0; step < steps; ++step) {
                    std::memcpy(out.codes + (step * tile + r) * kStepBytes, from.codes + step * kStepBytes, kStepBytes);
                }
                for (size_t g = 0; g < groups; ++g) {
                    out.scales[g * tile + r] = from.scales[g];
                    out.offsets[g * tile + r] = from.offsets[g];
                }
            }
        }
    });
}

// Of what packQuantRows fills, the tile that starts at `row`, from group g0 on.
QuantTile CpuOps::packedTile(uint32_t row, uint32_t groups, uint32_t g0, WeightType type) const {
    const size_t at = size_t{row} * groups + size_t{g0} * kernels_.tile_rows;
    return {packed_rows_.as<char>() + at * kGroup * codeBytes(type), packed_scales_.as<float>() + at,
            packed_offsets_.as<int32_t>() + at};
}

// product[rows][16] = packed rows times one panel
void CpuOps::multiplyPanel(const CpuLinear &w, uint32_t panel, uint32_t rows, float *unpacked, float *product) const {
    const uint32_t tile = kernels_.tile_rows;
    const auto *packed = packed_rows_.as<float>();
    for (uint32_t k0 = 0; k0 < w.in; k0 += kDepth) {
        const uint32_t depth = std::min(kDepth, w.in - k0);
        kernels_.unpack[w.type](w.panel(panel), k0, depth, unpacked);
        for (uint32_t row = 0; row < rows; row += tile) {
            const float *a = packed + (size_t{row} * w.in + size_t{k0} * tile);
            const void *b = unpacked;
            float *c = product + size_t{row} * kPanelRows;
            kernels_.tile[kF32](a, 1, tile, &b, kPanelRows, depth, &c, kPanelRows, std::min(tile, rows - row), 1,
                                k0 > 0);
        }
    }
}

void CpuOps::multiplyQuantPanel(const CpuLinear &w, uint32_t panel, uint32_t rows, float *unpacked,
                                float *product) const {
    const uint32_t tile = kernels_.tile_rows;
    const uint32_t groups = w.groups();
    constexpr uint32_t kGroups = kDepth / kGroup;
    float *scales = unpacked;  // [kGroups][16], then the codes
    auto *codes = reinterpret_cast<char *>(scales + size_t{kGroups} * kPanelRows);
    for (uint32_t g0 = 0; g0 < groups; g0 += kGroups) {
        const uint32_t count = std::min(kGroups, groups - g0);
        kernels_.unpack_quant[w.type - kExactTypes](w.panel(panel), g0, count, codes, scales);
        for (uint32_t row = 0; row < rows; row += tile) {
            kernels_.tile_quant[w.type - kExactTypes](packedTile(row, groups, g0, w.type), codes, scales, count,
                                                      product + size_t{row} * kPanelRows, kPanelRows,
                                                      std::min(tile, rows - row), g0 > 0);
        }
    }
}

// Calls epilogue(panel, product, ld) for every group of `step` panels; row r of panel p of the group is at
// product + r * ld + p * 16 when small, or in the group's p-th [rows][16] block otherwise.
template <typename Epilogue>
void CpuOps::forPanels(const float *in, uint32_t rows, size_t ld, const CpuLinear &w, uint32_t step,
                       const Epilogue &epilogue) {
    const bool quantised = isQuantised(w.type);
    if (quantised) {
        quantizeRows(in, rows, ld, w.in, w.type);
    }
    if (rows > kStreamRows) {
        if (quantised) {
            packQuantRows(rows, w.groups(), w.type);
        } else {
            packRows(in, rows, ld, w.in);
        }
        const size_t block = size_t{max_rows_} * kPanelRows;
        pool_.parallelFor(w.npanels / step, std::max(1U, 4 / step), [&](uint32_t begin, uint32_t end, uint32_t thread) {
            auto *unpacked = product_scratch_[thread].template as<float>();
            float *products = unpacked + size_t{kDepth} * kPanelRows;
            for (uint32_t g = begin; g < end; ++g) {
                for (uint32_t p = 0; p < step; ++p) {
                    (this->*(quantised ? &CpuOps::multiplyQuantPanel : &CpuOps::multiplyPanel))(
                        w, g * step + p, rows, unpacked, products + p * block);
                }
                epilogue(g * step, products, block, kPanelRows);
            }
        });
        return;
    }
    // 4 panels at a time: what the one-row kernel streams together.
    constexpr uint32_t kTogether = 4;
    const uint32_t claim = claimPanels(w, kTogether);
    const uint32_t parts = (rows + kernels_.tile_rows - 1) / kernels_.tile_rows;
    pool_.parallelFor(w.npanels, claim, [&](uint32_t begin, uint32_t end, uint32_t) {
        constexpr size_t width = kTogether * kPanelRows;
        float products[kStreamRows * width];
        for (uint32_t p = begin; p < end; p += kTogether) {
            const uint32_t count = std::min(kTogether, end - p);
            uint32_t row = 0;
            for (uint32_t part = 0; part < parts; ++part) {
                const uint32_t size = partSize(rows, parts, part);
                float *product = products + row * width;
                if (quantised) {
                    kernels_.gemv_quant[w.type - kExactTypes](w.panel(p), w.panel_bytes, count, w.groups(),
                                                              quant_rows_.from(row), size, product, width);
                } else {
                    kernels_.gemv[w.type](w.panel(p), w.panel_bytes, count, w.in, in + row * ld, ld, size, product,
                                          width);
                }
                row += size;
            }
            for (uint32_t q = 0; q < count; q += step) {
                epilogue(p + q, products + size_t{q} * kPanelRows, kPanelRows, width);
            }
        }
    });
}

void CpuOps::plainLinear(float *out, size_t ldo, const float *in, uint32_t rows, const CpuLinear &w) {
    forPanels(in, rows, w.in, w, 1, [&](uint32_t panel, float *product, size_t, size_t ld) {
        const uint32_t first = panel * kPanelRows;
        const uint32_t columns = std::min(kPanelRows, w.out - first);
        for (uint32_t r = 0; r < rows; ++r) {
            addBias(product + r * ld, w.biasOf(panel));
            std::memcpy(out + r * ldo + first, product + r * ld, columns * sizeof(float));
        }
    });
}

void CpuOps::linear(Activation out, Activation in, const Linear &weight) {
    plainLinear(static_cast<float *>(out.data), out.width, static_cast<const float *>(in.data), plan_->ntok,
                static_cast<const CpuLinear &>(weight));
}

void CpuOps::linearSwiglu(Activation act, Activation h, const Linear &gate_up) {
    const auto &w = static_cast<const CpuLinear &>(gate_up);
    auto *out = static_cast<float *>(act.data);
    const uint32_t rows = plan_->ntok;
    forPanels(static_cast<const float *>(h.data), rows, w.in, w, 2,
              [&](uint32_t panel, float *product, size_t next_panel, size_t ld) {
                  const uint32_t first = panel / 2 * kPanelRows;
                  const uint32_t columns = std::min(kPanelRows, w.out - first);
                  for (uint32_t r = 0; r < rows; ++r) {
                      const float *gate = product + r * ld;
                      kernels_.siluMul(out + size_t{r} * act.width + first, gate, gate + next_panel, columns);
                  }
              });
}

void CpuOps::readLogits(float *logits, size_t ld, Activation in, uint32_t nrows, const Linear &head) {
    const auto &w = static_cast<const CpuLinear &>(head);
    plainLinear(logits, ld, static_cast<const float *>(in.data), nrows, w);
}

}  // namespace q3::cpu
