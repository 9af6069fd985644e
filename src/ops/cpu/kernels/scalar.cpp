// Portable kernels: the baseline for machines without a table of their own, and the oracle of the vector kernels.
// Written for clarity; std::fma keeps the chains' single rounding (see kernels.h).
#include <cmath>
#include <cstring>
#include <type_traits>

#include "ops/cpu/kernels/kernels.h"
#include "ops/cpu/panel_element.h"
#include "ops/half.h"

namespace q3::cpu {
namespace {

template <WeightFormat T>
void multiplyPanels(const void *panels, size_t panel_bytes, uint32_t npanels, uint32_t k, const float *x, size_t ldx,
                    uint32_t rows, float *y, size_t ldy, bool accumulate) {
    for (uint32_t p = 0; p < npanels; ++p) {
        const void *panel = static_cast<const char *>(panels) + p * panel_bytes;
        for (uint32_t r = 0; r < rows; ++r) {
            for (uint32_t j = 0; j < kPanelRows; ++j) {
                float sum = accumulate ? y[r * ldy + p * kPanelRows + j] : 0.0F;
                for (uint32_t i = 0; i < k; ++i) {
                    sum = std::fma(weightAt<T>(panel, j, i), x[r * ldx + i], sum);
                }
                y[r * ldy + p * kPanelRows + j] = sum;
            }
        }
    }
}

// An entry of RoundedRows is two floats here.
constexpr size_t kPairBytes = 2 * sizeof(float);

template <int Pieces> void roundRow(const float *x, uint32_t k, char *out) {
    auto *to = reinterpret_cast<float *>(out);
    for (uint32_t i = 0; i < roundUp(k, kGroup); ++i) {
        float left = i < k ? x[i] : 0.0F;
        for (uint32_t piece = 0; piece < Pieces; ++piece) {
            const float rounded = bf16ToFloat(floatToBf16(left));
            to[(i / 2 * Pieces + piece) * 2 + i % 2] = rounded;
            left -= rounded;
        }
    }
}

template <WeightFormat T, int Pieces>
void multiplyRounded(const void *panels, size_t panel_bytes, uint32_t npanels, uint32_t k, const RoundedRows &x,
                     uint32_t rows, float *y, size_t ldy, bool accumulate) {
    for (uint32_t p = 0; p < npanels; ++p) {
        const void *panel = static_cast<const char *>(panels) + p * panel_bytes;
        for (uint32_t r = 0; r < rows; ++r) {
            const auto *row = reinterpret_cast<const float *>(x.data + r * x.row_bytes);
            for (uint32_t j = 0; j < kPanelRows; ++j) {
                float sum = accumulate ? y[r * ldy + p * kPanelRows + j] : 0.0F;
                for (uint32_t i = 0; i < k; i += 2) {
                    for (uint32_t piece = 0; piece < Pieces; ++piece) {
                        const float *pair = row + size_t{i} * Pieces + 2 * piece;
                        sum = std::fma(weightAt<T>(panel, j, i + 1), pair[1], sum);
                        sum = std::fma(weightAt<T>(panel, j, i), pair[0], sum);
                    }
                }
                y[r * ldy + p * kPanelRows + j] = sum;
            }
        }
    }
}

// y (*)= the sum over blocks of k of scale * block(panel, p, r, j, k0, count) for every output, see kernels.h.
template <typename Block>
void addBlocksF8(const void *panels, size_t panel_bytes, uint32_t npanels, uint32_t k, uint32_t rows, float *y,
                 size_t ldy, bool accumulate, const Block &block) {
    for (uint32_t p = 0; p < npanels; ++p) {
        const char *panel = static_cast<const char *>(panels) + p * panel_bytes;
        for (uint32_t r = 0; r < rows; ++r) {
            for (uint32_t j = 0; j < kPanelRows; ++j) {
                float &sum = y[r * ldy + p * kPanelRows + j];
                for (uint32_t k0 = 0; k0 < k; k0 += kF8Group) {
                    const char *group = panel + panelOffset(kF8, k0);
                    const auto weight = [&](uint32_t i) { return e4m3Value(byteAt(group, f8Byte(j, i))); };
                    const float part = block(weight, r, k0, k - k0 < kF8Group ? k - k0 : kF8Group);
                    const float before = k0 > 0 || accumulate ? sum : 0.0F;
                    sum = std::fma(reinterpret_cast<const float *>(group)[j], part, before);
                }
            }
        }
    }
}

void multiplyF8(const void *panels, size_t panel_bytes, uint32_t npanels, uint32_t k, const float *x, size_t ldx,
                uint32_t rows, float *y, size_t ldy, bool accumulate) {
    addBlocksF8(panels, panel_bytes, npanels, k, rows, y, ldy, accumulate,
                [&](const auto &weight, uint32_t r, uint32_t k0, uint32_t count) {
                    float sum = 0.0F;
                    for (uint32_t i = 0; i < count; ++i) {
                        sum = std::fma(weight(i), x[r * ldx + k0 + i], sum);
                    }
                    return sum;
                });
}

template <int Pieces>
void multiplyRoundedF8(const void *panels, size_t panel_bytes, uint32_t npanels, uint32_t k, const RoundedRows &x,
                       uint32_t rows, float *y, size_t ldy, bool accumulate) {
    addBlocksF8(panels, panel_bytes, npanels, k, rows, y, ldy, accumulate,
                [&](const auto &weight, uint32_t r, uint32_t k0, uint32_t count) {
                    const auto *row = reinterpret_cast<const float *>(x.data + r * x.row_bytes) + size_t{k0} * Pieces;
                    float sum = 0.0F;
                    for (uint32_t i = 0; i < count; i += 2) {
                        for (uint32_t piece = 0; piece < Pieces; ++piece) {
                            const float *pair = row + size_t{i} * Pieces + 2 * piece;
                            sum = std::fma(weight(i + 1), pair[1], sum);
                            sum = std::fma(weight(i), pair[0], sum);
                        }
                    }
                    return sum;
                });
}

void tile(const float *a, size_t a_row, size_t a_col, const float *const *b, size_t ldb, uint32_t k, float *const *c,
          size_t ldc, uint32_t rows, uint32_t npanels, bool accumulate) {
    for (uint32_t p = 0; p < npanels; ++p) {
        for (uint32_t r = 0; r < rows; ++r) {
            for (uint32_t j = 0; j < kPanelRows; ++j) {
                float sum = accumulate ? c[p][r * ldc + j] : 0.0F;
                for (uint32_t i = 0; i < k; ++i) {
                    sum = std::fma(a[r * a_row + i * a_col], b[p][i * ldb + j], sum);
                }
                c[p][r * ldc + j] = sum;
            }
        }
    }
}

template <WeightFormat T>
void score(const float *q, size_t ldq, uint32_t rows, const KvTiles &keys, uint32_t dh, float *scores, size_t lds) {
    for (uint32_t t = 0; t < keys.count; ++t) {
        for (uint32_t r = 0; r < rows; ++r) {
            for (uint32_t j = 0; j < kPanelRows; ++j) {
                float sum = 0.0F;
                for (uint32_t i = 0; i < dh; ++i) {
                    sum = std::fma(q[r * ldq + i], loadFloat<T>(keys.at[t], size_t{i} * kPanelRows + j), sum);
                }
                scores[r * lds + t * kPanelRows + j] = sum;
            }
        }
    }
}

template <WeightFormat T>
void weigh(const float *weights, size_t ldw, uint32_t rows, const KvTiles &values, uint32_t nkeys, uint32_t npanels,
           float *out, size_t ldo, bool accumulate) {
    for (uint32_t r = 0; r < rows; ++r) {
        for (uint32_t j = 0; j < npanels * kPanelRows; ++j) {
            float sum = accumulate ? out[r * ldo + j] : 0.0F;
            for (uint32_t key = 0; key < nkeys; ++key) {
                const size_t element = valueElement(j / kPanelRows, key % kPanelRows) + j % kPanelRows;
                sum = std::fma(weights[r * ldw + key], loadFloat<T>(values.at[key / kPanelRows], element), sum);
            }
            out[r * ldo + j] = sum;
        }
    }
}

constexpr uint32_t kTileRows = 6;

template <CodeWidth X> using Code = std::conditional_t<X == k8Bits, int8_t, int16_t>;

template <WeightFormat T, CodeWidth X>
void multiplyQuantPanels(const void *panels, size_t panel_bytes, uint32_t npanels, uint32_t groups, const QuantRows &x,
                         uint32_t rows, float *y, size_t ldy, bool accumulate) {
    for (uint32_t p = 0; p < npanels; ++p) {
        const char *panel = static_cast<const char *>(panels) + p * panel_bytes;
        for (uint32_t r = 0; r < rows; ++r) {
            for (uint32_t j = 0; j < kPanelRows; ++j) {
                float sum = accumulate ? y[r * ldy + p * kPanelRows + j] : 0.0F;
                for (uint32_t g = 0; g < groups; ++g) {
                    const QuantRows at = x.from(r, g);
                    const auto *codes = reinterpret_cast<const Code<X> *>(at.codes);
                    int32_t dot = 0;
                    for (uint32_t i = 0; i < kGroup; ++i) {
                        dot += (codeAt<T>(panel, j, g * kGroup + i) - infoOf(T).zero_code) * codes[i];
                    }
                    sum = std::fma(static_cast<float>(dot), scaleAt<T>(panel, j, g) * at.scales[0], sum);
                }
                y[r * ldy + p * kPanelRows + j] = sum;
            }
        }
    }
}

template <WeightFormat T, CodeWidth X>
void multiplyAffinePanels(const void *panels, size_t panel_bytes, uint32_t npanels, uint32_t runs, const QuantRows &x,
                          uint32_t rows, float *y, size_t ldy, bool accumulate) {
    constexpr uint32_t kPieceK = kGroup / affineOf(T).pieces;
    for (uint32_t p = 0; p < npanels; ++p) {
        const char *panel = static_cast<const char *>(panels) + p * panel_bytes;
        for (uint32_t r = 0; r < rows; ++r) {
            for (uint32_t j = 0; j < kPanelRows; ++j) {
                float sum = accumulate ? y[r * ldy + p * kPanelRows + j] : 0.0F;
                for (uint32_t k0 = 0; k0 < runs * kGroup; k0 += kPieceK) {
                    const QuantRows at = x.from(r, k0 / kGroup);
                    const auto *x_codes = reinterpret_cast<const Code<X> *>(at.codes);
                    const AffineElement shared = affineAt<T>(panel, j, k0);
                    int32_t dot = 0;
                    int32_t codes = 0;
                    for (uint32_t i = k0; i < k0 + kPieceK; ++i) {
                        dot += (affineAt<T>(panel, j, i).code - static_cast<int>(shared.zero)) * x_codes[i % kGroup];
                        codes += x_codes[i % kGroup];
                    }
                    sum = std::fma(static_cast<float>(dot), shared.scale * at.scales[0], sum);
                    if (affineOf(T).minimum) {
                        sum = std::fma(-static_cast<float>(codes), shared.minimum * at.scales[0], sum);
                    }
                }
                y[r * ldy + p * kPanelRows + j] = sum;
            }
        }
    }
}

void expandBf12(const void *panel, uint32_t groups, uint16_t *out) {
    for (uint32_t k = 0; k < groups * kGroup; ++k) {
        for (uint32_t j = 0; j < kPanelRows; ++j) {
            out[(size_t{k} / 2 * kPanelRows + j) * 2 + k % 2] = bf12At(panel, j, k);
        }
    }
}

void expandF8(const char *codes, uint32_t k, uint16_t *out) {
    for (uint32_t i = 0; i < roundUp(k, 4); ++i) {
        for (uint32_t j = 0; j < kPanelRows; ++j) {
            const float value = e4m3Value(byteAt(codes, f8Byte(j, i) - kF8HeadBytes));
            out[(size_t{i} / 2 * kPanelRows + j) * 2 + i % 2] = floatToBf16(value);
        }
    }
}

void addScaled(float *y, size_t ldy, const float *part, size_t ldp, const float *scale, uint32_t rows) {
    for (uint32_t r = 0; r < rows; ++r) {
        for (uint32_t j = 0; j < kPanelRows; ++j) {
            y[r * ldy + j] = std::fma(scale[j], part[r * ldp + j], y[r * ldy + j]);
        }
    }
}

template <WeightFormat T, CodeWidth X> void quantize(const float *x, uint32_t k, const QuantRows &out, uint32_t r) {
    for (uint32_t g = 0; g * kGroup < k; ++g) {
        const uint32_t count = k - g * kGroup < kGroup ? k - g * kGroup : kGroup;
        const float *in = x + size_t{g} * kGroup;
        const QuantRows to = out.from(r, g);
        float largest = 0.0F;
        bool finite = true;
        for (uint32_t i = 0; i < count; ++i) {
            finite = finite && std::isfinite(in[i]);
            largest = std::fmax(largest, std::fabs(in[i]));
        }
        const float inverse = largest < kLeastScale ? 0.0F : largestCode(X) / largest;
        int32_t sum = 0;
        int32_t first_sum = 0;  // of the first 16 codes
        for (uint32_t i = 0; i < kGroup; ++i) {
            const int32_t code = finite && i < count ? static_cast<int32_t>(std::nearbyint(in[i] * inverse)) : 0;
            reinterpret_cast<Code<X> *>(to.codes)[i] = static_cast<Code<X>>(code);
            sum += code;
            first_sum = i < kGroup / 2 ? sum : first_sum;
        }
        to.scales[0] = !finite ? std::nanf("") : (largest < kLeastScale ? 0.0F : largest / largestCode(X));
        to.offsets[0] = isAffine(T) ? packAffineSums<X>(first_sum, sum - first_sum) : -infoOf(T).zero_code * sum;
    }
}

// Number (pair, column) of a tile of pairs, the odd one or the even one.
float pairElement(const char *tile, size_t pair, uint32_t width, uint32_t column, bool odd) {
    return loadFloat<kBf16>(tile, (pair * width + column) * 2 + (odd ? 1 : 0));
}

void scorePairs(const RoundedRows &q, uint32_t rows, const KvTiles &keys, uint32_t dh, float *scores, size_t lds) {
    for (uint32_t t = 0; t < keys.count; ++t) {
        for (uint32_t r = 0; r < rows; ++r) {
            const auto *x = reinterpret_cast<const float *>(q.data + r * q.row_bytes);
            for (uint32_t j = 0; j < kPanelRows; ++j) {
                float sum = 0.0F;
                for (uint32_t i = 0; i < dh / 2; ++i) {
                    sum = std::fma(pairElement(keys.at[t], i, kPanelRows, j, true), x[2 * i + 1], sum);
                    sum = std::fma(pairElement(keys.at[t], i, kPanelRows, j, false), x[2 * i], sum);
                }
                scores[r * lds + t * kPanelRows + j] = sum;
            }
        }
    }
}

void weighPairs(const RoundedRows &weights, uint32_t rows, const KvTiles &values, uint32_t nkeys, uint32_t npanels,
                float *out, size_t ldo, bool accumulate) {
    const uint32_t width = npanels * kPanelRows;
    for (uint32_t r = 0; r < rows; ++r) {
        const auto *x = reinterpret_cast<const float *>(weights.data + r * weights.row_bytes);
        for (uint32_t j = 0; j < width; ++j) {
            float sum = accumulate ? out[r * ldo + j] : 0.0F;
            for (uint32_t key = 0; key < nkeys; key += 2) {
                const char *tile = values.at[key / kPanelRows];
                const uint32_t pair = key % kPanelRows / 2;
                const float odd = key + 1 < nkeys ? pairElement(tile, pair, width, j, true) : 0.0F;
                sum = std::fma(odd, x[key + 1], sum);
                sum = std::fma(pairElement(tile, pair, width, j, false), x[key], sum);
            }
            out[r * ldo + j] = sum;
        }
    }
}

template <WeightFormat T, CodeWidth X> constexpr CodeKernels codeKernels() {
    return {X == k8Bits ? kByteCodes : kPlainCodes, quantize<T, X>, multiplyQuantPanels<T, X>};
}

void rmsnorm(float *out, const float *x, const float *weight, uint32_t n, float epsilon) {
    double sum = 0.0;
    for (uint32_t i = 0; i < n; ++i) {
        sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
    }
    const auto scale = static_cast<float>(1.0 / std::sqrt(sum / n + static_cast<double>(epsilon)));
    for (uint32_t i = 0; i < n; ++i) {
        out[i] = x[i] * scale * weight[i];
    }
}

void add(float *x, const float *delta, uint32_t n) {
    for (uint32_t i = 0; i < n; ++i) {
        x[i] += delta[i];
    }
}

void rope(float *x, const float *cos, const float *sin, uint32_t half) {
    for (uint32_t i = 0; i < half; ++i) {
        const float low = x[i];
        const float high = x[i + half];
        x[i] = low * cos[i] - high * sin[i];
        x[i + half] = high * cos[i] + low * sin[i];
    }
}

float max(const float *s, uint32_t n) {
    float best = s[0];
    for (uint32_t i = 1; i < n; ++i) {
        best = s[i] > best ? s[i] : best;
    }
    return best;
}

float expSum(float *s, uint32_t n, float shift) {
    double sum = 0.0;
    for (uint32_t i = 0; i < n; ++i) {
        s[i] = std::exp(s[i] - shift);
        sum += static_cast<double>(s[i]);
    }
    return static_cast<float>(sum);
}

float expRound(const float *s, uint32_t count, float shift, uint32_t n, char *out) {
    auto *to = reinterpret_cast<float *>(out);
    double sum = 0.0;
    for (uint32_t i = 0; i < roundUp(n, kGroup); ++i) {
        const float e = i < count ? std::exp(s[i] - shift) : 0.0F;
        to[i] = bf16ToFloat(floatToBf16(e));
        sum += static_cast<double>(e);
    }
    return static_cast<float>(sum);
}

void siluMul(float *out, const float *gate, const float *up, uint32_t n) {
    for (uint32_t i = 0; i < n; ++i) {
        out[i] = gate[i] / (1.0F + std::exp(-gate[i])) * up[i];
    }
}

template <WeightFormat T> void loadFloats(float *out, const void *in, uint32_t n) {
    for (uint32_t i = 0; i < n; ++i) {
        out[i] = loadFloat<T>(in, i);
    }
}

void loadCodes(float *out, const void *in, const uint16_t *scales, uint32_t rows, bool per_column) {
    for (uint32_t i = 0; i < rows; ++i) {
        for (uint32_t j = 0; j < kPanelRows; ++j) {
            const int8_t code = static_cast<const int8_t *>(in)[i * kPanelRows + j];
            out[i * kPanelRows + j] = static_cast<float>(code) * bf16ToFloat(scales[per_column ? j : i]);
        }
    }
}

void storeF32(void *out, const float *in, uint32_t n) {
    std::memcpy(out, in, n * sizeof(float));
}

void storeF16(void *out, const float *in, uint32_t n) {
    for (uint32_t i = 0; i < n; ++i) {
        const float clamped = in[i] > 65504.0F ? 65504.0F : (in[i] < -65504.0F ? -65504.0F : in[i]);
        static_cast<uint16_t *>(out)[i] = floatToF16(clamped);
    }
}

void storeBf16(void *out, const float *in, uint32_t n) {
    for (uint32_t i = 0; i < n; ++i) {
        static_cast<uint16_t *>(out)[i] = floatToBf16(in[i]);
    }
}

constexpr AffineKernels affineKernels() {
    AffineKernels kernels{};
    forEachFormat([&](auto format) {
        constexpr WeightFormat T = decltype(format)::value;
        if constexpr (isAffine(T)) {
            kernels.of[k8Bits][T] = multiplyAffinePanels<T, k8Bits>;
        }
        if constexpr (affineOf(T).takesWideCodes()) {
            kernels.of[k16Bits][T] = multiplyAffinePanels<T, k16Bits>;
        }
    });
    return kernels;
}
constexpr AffineKernels kScalarAffine = affineKernels();

constexpr KernelTable scalarTable() {
    KernelTable table{};
    table.affine = &kScalarAffine;
    table.name = "scalar";
    table.tile_rows = table.quant_tile_rows = kTileRows;
    forEachFormat([&](auto format) {
        constexpr WeightFormat T = decltype(format)::value;
        if constexpr (takesCodes(T)) {
            if constexpr (isAffine(T)) {
                table.codes[k8Bits][T] = {kByteCodes, quantize<T, k8Bits>, nullptr};
                if constexpr (affineOf(T).takesWideCodes()) {
                    table.codes[k16Bits][T] = {kPlainCodes, quantize<T, k16Bits>, nullptr};
                }
            } else {
                table.codes[k8Bits][T] = codeKernels<T, k8Bits>();
                table.codes[k16Bits][T] = codeKernels<T, k16Bits>();
            }
        } else if constexpr (T != kF8) {
            table.multiplyPanels[T] = multiplyPanels<T>;
        }
        if constexpr (infoOf(T).plain) {
            table.score[T] = score<T>;
            table.weigh[T] = weigh<T>;
            table.load[T] = loadFloats<T>;
        }
    });
    table.store[kF32] = storeF32;
    table.store[kF16] = storeF16;
    table.store[kBf16] = storeBf16;
    table.pair_bytes = kPairBytes;
    table.rounded_tile_rows = kTileRows;
    table.multiplyRounded[0][kBf16] = multiplyRounded<kBf16, 1>;
    table.multiplyRounded[1][kBf16] = multiplyRounded<kBf16, 2>;
    table.multiplyRounded[0][kBf12] = multiplyRounded<kBf12, 1>;
    table.multiplyRounded[1][kBf12] = multiplyRounded<kBf12, 2>;
    table.multiplyPanels[kF8] = multiplyF8;
    table.multiplyRounded[0][kF8] = multiplyRoundedF8<1>;
    table.multiplyRounded[1][kF8] = multiplyRoundedF8<2>;
    table.round[0] = roundRow<1>;
    table.round[1] = roundRow<2>;
    table.expandBf12 = expandBf12;
    table.expandF8 = expandF8;
    table.addScaled = addScaled;
    table.tile = tile;
    table.rmsnorm = rmsnorm;
    table.add = add;
    table.rope = rope;
    table.max = max;
    table.expSum = expSum;
    table.expRound = expRound;
    table.scorePairs = scorePairs;
    table.weighPairs = weighPairs;
    table.siluMul = siluMul;
    table.loadCodes = loadCodes;
    return table;
}

}  // namespace

const KernelTable kScalarKernels = scalarTable();

}  // namespace q3::cpu
