// Portable kernels: the baseline for machines without a table of their own, and the oracle of the vector kernels.
// Written for clarity; std::fma keeps the chains' single rounding (see kernels.h).
#include <cmath>
#include <cstring>

#include "ops/cpu/kernels.h"
#include "ops/cpu/quant_panel.h"
#include "ops/half.h"

namespace q3::cpu {
namespace {

// Number i of codes in `bytes`.
template <WeightType T> int activationAt(const char *bytes, size_t i) {
    if constexpr (T == kQ8) {
        return reinterpret_cast<const int16_t *>(bytes)[i];
    } else {
        return reinterpret_cast<const int8_t *>(bytes)[i];
    }
}

template <WeightType T> float load(const void *data, size_t index) {
    if constexpr (T == kF32) {
        return static_cast<const float *>(data)[index];
    } else {
        const uint16_t half = static_cast<const uint16_t *>(data)[index];
        return T == kF16 ? f16ToFloat(half) : bf16ToFloat(half);
    }
}

// Index of (row, k) inside a panel.
template <WeightType T> size_t panelIndex(uint32_t row, uint32_t k) {
    return T == kBf16 ? (size_t{k} / 2 * kPanelRows + row) * 2 + k % 2 : size_t{k} * kPanelRows + row;
}

float bf12Load(const void *data, uint32_t row, uint32_t k) {
    const char *group = static_cast<const char *>(data) + k / kGroup * kBf12GroupBytes;
    const uint32_t i = k % kGroup;
    Bf12Header header;
    std::memcpy(&header, group, sizeof header);
    if ((header.pairs >> (i / 2) & 1) != 0) {
        const uint16_t *raw = header.raw;
        for (uint32_t pair = 0; pair < i / 2; ++pair) {  // raw pairs before this one
            raw += size_t{header.pairs >> pair & 1U} * 2 * kPanelRows;
        }
        return bf16ToFloat(raw[row * 2 + i % 2]);
    }
    const auto *sm = reinterpret_cast<const uint8_t *>(group + sizeof header + i / 2 * kBf12PairBytes);
    const uint32_t place = kBf12Order[row];
    const uint32_t value = sm[i % 2 * kPanelRows + place];
    const uint32_t nibble = sm[2 * kPanelRows + place] >> (i % 2 * 4) & 15U;
    return bf16ToFloat(static_cast<uint16_t>((value & 0x80U) << 8 | (value & 0x7fU) | (header.base - (nibble << 7))));
}

// Weight (row, k) of a panel.
template <WeightType T> float panelLoad(const void *panel, uint32_t row, uint32_t k) {
    if constexpr (T == kBf12) {
        return bf12Load(panel, row, k);
    } else {
        return load<T>(panel, panelIndex<T>(row, k));
    }
}

template <WeightType T>
void gemv(const void *panels, size_t panel_bytes, uint32_t npanels, uint32_t k, const float *x, size_t ldx,
          uint32_t rows, float *y, size_t ldy) {
    for (uint32_t p = 0; p < npanels; ++p) {
        const void *panel = static_cast<const char *>(panels) + p * panel_bytes;
        for (uint32_t r = 0; r < rows; ++r) {
            for (uint32_t j = 0; j < kPanelRows; ++j) {
                float sum = 0.0F;
                for (uint32_t i = 0; i < k; ++i) {
                    sum = std::fma(panelLoad<T>(panel, j, i), x[r * ldx + i], sum);
                }
                y[r * ldy + p * kPanelRows + j] = sum;
            }
        }
    }
}

template <WeightType T> void unpack(const void *panel, uint32_t k0, uint32_t count, float *out) {
    for (uint32_t i = 0; i < count; ++i) {
        for (uint32_t j = 0; j < kPanelRows; ++j) {
            out[i * kPanelRows + j] = panelLoad<T>(panel, j, k0 + i);
        }
    }
}

template <WeightType T>
void tile(const float *a, size_t a_row, size_t a_col, const void *const *b, size_t ldb, uint32_t k, float *const *c,
          size_t ldc, uint32_t rows, uint32_t npanels, bool accumulate) {
    for (uint32_t p = 0; p < npanels; ++p) {
        for (uint32_t r = 0; r < rows; ++r) {
            for (uint32_t j = 0; j < kPanelRows; ++j) {
                float sum = accumulate ? c[p][r * ldc + j] : 0.0F;
                for (uint32_t i = 0; i < k; ++i) {
                    sum = std::fma(a[r * a_row + i * a_col], load<T>(b[p], i * ldb + j), sum);
                }
                c[p][r * ldc + j] = sum;
            }
        }
    }
}

constexpr uint32_t kTileRows = 6;

template <WeightType T>
void gemvQuant(const void *panels, size_t panel_bytes, uint32_t npanels, uint32_t groups, const QuantRows &x,
               uint32_t rows, float *y, size_t ldy) {
    for (uint32_t p = 0; p < npanels; ++p) {
        const char *panel = static_cast<const char *>(panels) + p * panel_bytes;
        for (uint32_t r = 0; r < rows; ++r) {
            for (uint32_t j = 0; j < kPanelRows; ++j) {
                float sum = 0.0F;
                for (uint32_t g = 0; g < groups; ++g) {
                    int32_t dot = T == kQ4 ? -x.offsets[r * x.lds + g] : 0;
                    for (uint32_t k = g * kGroup; k < (g + 1) * kGroup; ++k) {
                        dot += codeAt<T>(panel, j, k) * activationAt<T>(x.codes + r * x.ldc, k);
                    }
                    sum = std::fma(static_cast<float>(dot), scaleAt<T>(panel, j, g) * x.scales[r * x.lds + g], sum);
                }
                y[r * ldy + p * kPanelRows + j] = sum;
            }
        }
    }
}

// Place of number i of a group's codes in [steps][rows][4 bytes], in codes.
template <WeightType T> size_t stepPlace(uint32_t i, uint32_t row, uint32_t rows) {
    constexpr uint32_t kTogether = kStepBytes / codeBytes(T);
    return (size_t{i} / kTogether * rows + row) * kTogether + i % kTogether;
}

template <WeightType T> void unpackQuant(const void *panel, uint32_t g0, uint32_t count, char *codes, float *scales) {
    for (uint32_t g = 0; g < count; ++g, codes += kGroup * kPanelRows * codeBytes(T)) {
        for (uint32_t j = 0; j < kPanelRows; ++j) {
            for (uint32_t i = 0; i < kGroup; ++i) {
                const int code = codeAt<T>(static_cast<const char *>(panel), j, (g0 + g) * kGroup + i);
                std::memcpy(codes + stepPlace<T>(i, j, kPanelRows) * codeBytes(T), &code, codeBytes(T));
            }
            scales[g * kPanelRows + j] = scaleAt<T>(static_cast<const char *>(panel), j, g0 + g);
        }
    }
}

template <WeightType T>
void tileQuant(const QuantTile &a, const char *b, const float *b_scales, uint32_t groups, float *c, size_t ldc,
               uint32_t rows, bool accumulate) {
    for (uint32_t r = 0; r < rows; ++r) {
        for (uint32_t j = 0; j < kPanelRows; ++j) {
            float sum = accumulate ? c[r * ldc + j] : 0.0F;
            for (uint32_t g = 0; g < groups; ++g) {
                int32_t dot = T == kQ4 ? -a.offsets[g * kTileRows + r] : 0;
                for (uint32_t i = 0; i < kGroup; ++i) {
                    dot += activationAt<T>(a.codes, size_t{g} * kGroup * kTileRows + stepPlace<T>(i, r, kTileRows)) *
                           activationAt<T>(b, size_t{g} * kGroup * kPanelRows + stepPlace<T>(i, j, kPanelRows));
                }
                const float scale = b_scales[g * kPanelRows + j] * a.scales[g * kTileRows + r];
                sum = std::fma(static_cast<float>(dot), scale, sum);
            }
            c[r * ldc + j] = sum;
        }
    }
}

template <WeightType T> void quantize(const float *x, uint32_t k, const QuantRows &out, uint32_t r) {
    for (uint32_t g = 0; g * kGroup < k; ++g) {
        const uint32_t count = k - g * kGroup < kGroup ? k - g * kGroup : kGroup;
        const float *in = x + size_t{g} * kGroup;
        float largest = 0.0F;
        bool finite = true;
        for (uint32_t i = 0; i < count; ++i) {
            finite = finite && std::isfinite(in[i]);
            largest = std::fmax(largest, std::fabs(in[i]));
        }
        const float inverse = largest < kLeastScale ? 0.0F : largestCode(T) / largest;
        int32_t sum = 0;
        for (uint32_t i = 0; i < kGroup; ++i) {
            const int32_t code = finite && i < count ? static_cast<int32_t>(std::nearbyint(in[i] * inverse)) : 0;
            std::memcpy(out.codes + r * out.ldc + (g * kGroup + i) * codeBytes(T), &code, codeBytes(T));
            sum += code;
        }
        out.scales[r * out.lds + g] =
            !finite ? std::nanf("") : (largest < kLeastScale ? 0.0F : largest / largestCode(T));
        out.offsets[r * out.lds + g] = 8 * sum;
    }
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

void siluMul(float *out, const float *gate, const float *up, uint32_t n) {
    for (uint32_t i = 0; i < n; ++i) {
        out[i] = gate[i] / (1.0F + std::exp(-gate[i])) * up[i];
    }
}

template <WeightType T> void loadFloats(float *out, const void *in, uint32_t n) {
    for (uint32_t i = 0; i < n; ++i) {
        out[i] = load<T>(in, i);
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

}  // namespace

const Kernels kScalarKernels = {
    "scalar",
    kTileRows,
    {gemv<kF32>, gemv<kF16>, gemv<kBf16>, gemv<kBf12>},
    {unpack<kF32>, unpack<kF16>, unpack<kBf16>, unpack<kBf12>},
    {tile<kF32>, tile<kF16>, tile<kBf16>},
    {gemvQuant<kQ8>, gemvQuant<kQ4>},
    {unpackQuant<kQ8>, unpackQuant<kQ4>},
    {tileQuant<kQ8>, tileQuant<kQ4>},
    {quantize<kQ8>, quantize<kQ4>},
    rmsnorm,
    add,
    rope,
    max,
    expSum,
    siluMul,
    {storeF32, storeF16, storeBf16},
    {loadFloats<kF32>, loadFloats<kF16>, loadFloats<kBf16>},
    loadCodes,
};

}  // namespace q3::cpu
