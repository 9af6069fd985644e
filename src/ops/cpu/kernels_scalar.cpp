// Portable kernels: the baseline for machines without a table of their own, and the oracle of the vector kernels.
// Written for clarity; std::fma keeps the chains' single rounding (see kernels.h).
#include <cmath>
#include <cstring>

#include "ops/cpu/kernels.h"
#include "ops/half.h"

namespace q3::cpu {
namespace {

int quantAt(const char *panel, WeightType type, uint32_t row, uint32_t k) {
    const size_t group = k / kGroup;
    const uint32_t i = k % kGroup;
    if (type == kQ8) {
        return reinterpret_cast<const int8_t *>(panel + group * kQ8GroupBytes + 2 * kPanelRows)[i * kPanelRows + row];
    }
    const auto *words = reinterpret_cast<const uint32_t *>(panel + group * kQ4GroupBytes + 2 * kPanelRows);
    return static_cast<int>(words[i / 8 * kPanelRows + row] >> (4 * (i % 8)) & 15U) - 8;
}

float quantLoad(const void *data, WeightType type, uint32_t row, uint32_t k) {
    const auto *panel = static_cast<const char *>(data);
    const size_t group_bytes = type == kQ8 ? kQ8GroupBytes : kQ4GroupBytes;
    const auto *scales = reinterpret_cast<const uint16_t *>(panel + k / kGroup * group_bytes);
    return static_cast<float>(quantAt(panel, type, row, k)) * bf16ToFloat(scales[row]);
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
    if constexpr (T == kQ8 || T == kQ4) {
        return quantLoad(panel, T, row, k);
    } else if constexpr (T == kBf12) {
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
void tile(const float *a, size_t a_row, size_t a_col, const void *b, size_t ldb, uint32_t k, float *c, size_t ldc,
          uint32_t rows, bool accumulate) {
    for (uint32_t r = 0; r < rows; ++r) {
        for (uint32_t j = 0; j < kPanelRows; ++j) {
            float sum = accumulate ? c[r * ldc + j] : 0.0F;
            for (uint32_t i = 0; i < k; ++i) {
                sum = std::fma(a[r * a_row + i * a_col], load<T>(b, i * ldb + j), sum);
            }
            c[r * ldc + j] = sum;
        }
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
    {gemv<kF32>, gemv<kF16>, gemv<kBf16>, gemv<kQ8>, gemv<kQ4>, gemv<kBf12>},
    {unpack<kF32>, unpack<kF16>, unpack<kBf16>, unpack<kQ8>, unpack<kQ4>, unpack<kBf12>},
    {tile<kF32>, tile<kF16>, tile<kBf16>},
    rmsnorm,
    add,
    rope,
    max,
    expSum,
    siluMul,
    {storeF32, storeF16, storeBf16},
};

}  // namespace q3::cpu
