#include "ops/cpu/quant.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "ops/cpu/kernels.h"
#include "ops/half.h"

namespace q3::cpu {
namespace {

// To the nearest integer, ties to even, for |x| < 2^22: unlike nearbyint it vectorises everywhere.
inline float roundFast(float x) {
    return (x + 12582912.0F) - 12582912.0F;
}

uint16_t *scalesOf(char *panel, uint32_t group, size_t group_bytes) {
    return reinterpret_cast<uint16_t *>(panel + group * group_bytes);
}

// The smallest bf16 not below a positive value: with a scale rounded down the largest weight would be clipped.
uint16_t bf16Up(float value) {
    uint16_t half = floatToBf16(value);
    if (bf16ToFloat(half) < value) {
        ++half;
    }
    return half;
}

// Squared error of a group quantised with `scale`, weighted by w^2: large weights matter more to the output.
float errorQ4(const float *w, float scale) {
    const float inverse = 1.0F / scale;
    float error = 0.0F;
    for (uint32_t i = 0; i < kGroup; ++i) {
        const float q = std::min(7.0F, std::max(-8.0F, roundFast(w[i] * inverse)));
        const float difference = w[i] - q * scale;
        error += (w[i] * w[i] + 1e-12F) * difference * difference;
    }
    return error;
}

// A group's scale, possibly negative: the extreme weight takes -8, the one code without a mirror image. Of scales
// around that the one with the least error wins.
uint16_t searchScaleQ4(const float *w) {
    float extreme = 0.0F;
    for (uint32_t i = 0; i < kGroup; ++i) {
        if (std::fabs(w[i]) > std::fabs(extreme)) {
            extreme = w[i];
        }
    }
    if (extreme == 0.0F) {
        return 0;
    }
    static constexpr float kDivisors[] = {-8.0F, -7.0F, -7.5F, -8.5F, -9.0F, -9.5F, 7.0F, 7.5F};
    uint16_t best = floatToBf16(extreme / kDivisors[0]);
    float least = -1.0F;
    for (const float divisor : kDivisors) {
        const uint16_t candidate = floatToBf16(extreme / divisor);
        const float scale = bf16ToFloat(candidate);
        if (std::fabs(scale) < 1e-30F) {
            continue;  // its inverse would overflow
        }
        const float error = errorQ4(w, scale);
        if (least < 0.0F || error < least) {
            least = error;
            best = candidate;
        }
    }
    return std::fabs(bf16ToFloat(best)) < 1e-30F ? 0 : best;
}

// One group as floats, padded with zeros.
void copyGroup(const float *weights, uint32_t k, uint32_t group, float *out) {
    for (uint32_t i = 0; i < kGroup; ++i) {
        const uint32_t at = group * kGroup + i;
        out[i] = at < k ? weights[at] : 0.0F;
    }
}

// The largest exponent field (in place, << 7) of a bf12 group, and the pairs of k that 16 exponents from there down do
// not reach.
struct Bf12Range {
    uint32_t base;
    uint32_t pairs;
};

Bf12Range rangeBf12(const uint16_t *rows, uint32_t k, uint32_t group) {
    const uint32_t first = group * kGroup;
    const uint32_t count = std::min(kGroup, k - first);
    uint32_t most = 0;
    uint32_t least[kGroup];
    std::fill_n(least, kGroup, 0x7f80U);
    for (uint32_t row = 0; row < kPanelRows; ++row) {
        for (uint32_t i = 0; i < count; ++i) {
            const uint32_t exponent = rows[size_t{row} * k + first + i] & 0x7f80U;
            least[i] = std::min(least[i], exponent);
            most = std::max(most, exponent);
        }
    }
    uint32_t pairs = 0;
    for (uint32_t i = 0; i < count; ++i) {
        pairs |= (most > least[i] + (15U << 7) ? 1U : 0U) << (i / 2);
    }
    return {most, pairs};
}

}  // namespace

size_t countRawBf12(const uint16_t *rows, uint32_t k) {
    size_t count = 0;
    for (uint32_t g = 0; g * kGroup < k; ++g) {
        count += static_cast<size_t>(__builtin_popcount(rangeBf12(rows, k, g).pairs));
    }
    return count;
}

void packPanelBf12(const uint16_t *rows, uint32_t k, char *panel, uint16_t *raw) {
    for (uint32_t g = 0; g * kGroup < k; ++g) {
        char *group = panel + g * kBf12GroupBytes;
        const Bf12Range range = rangeBf12(rows, k, g);
        const auto at = [&](uint32_t row, uint32_t i) -> uint32_t {  // zeros beyond k
            return g * kGroup + i < k ? rows[size_t{row} * k + g * kGroup + i] : 0;
        };
        Bf12Header header{};
        header.raw = raw;
        header.base = static_cast<uint16_t>(range.base);
        header.pairs = static_cast<uint16_t>(range.pairs);
        for (uint32_t i = 0; i < kGroup; ++i) {
            auto *sm = reinterpret_cast<uint8_t *>(group + sizeof header + i / 2 * kBf12PairBytes);
            uint8_t *nibbles = sm + size_t{2} * kPanelRows;
            const bool is_raw = (range.pairs >> (i / 2) & 1U) != 0;
            for (uint32_t row = 0; row < kPanelRows; ++row) {
                const uint32_t bits = at(row, i);
                if (is_raw) {
                    raw[row * 2 + i % 2] = static_cast<uint16_t>(bits);
                    continue;
                }
                const uint32_t place = kBf12Order[row];
                sm[i % 2 * kPanelRows + place] = static_cast<uint8_t>((bits & 0x7fU) | bits >> 15 << 7);
                // Padding beyond k is never multiplied, so its exponent may be anything.
                const uint32_t code = g * kGroup + i < k ? (range.base - (bits & 0x7f80U)) >> 7 : 0;
                nibbles[place] |= static_cast<uint8_t>(code << (i % 2 * 4));
            }
            raw += is_raw && i % 2 == 1 ? 2 * kPanelRows : 0;
        }
        std::memcpy(group, &header, sizeof header);
    }
}

void quantizeRowQ8(const float *weights, uint32_t k, uint32_t row, char *panel) {
    float w[kGroup];
    for (uint32_t g = 0; g * kGroup < k; ++g) {
        copyGroup(weights, k, g, w);
        float largest = 0.0F;
        for (const float value : w) {
            largest = std::max(largest, std::fabs(value));
        }
        const uint16_t scale = largest < 1e-30F ? 0 : bf16Up(largest / 127.0F);
        const float inverse = scale == 0 ? 0.0F : 1.0F / bf16ToFloat(scale);
        scalesOf(panel, g, kQ8GroupBytes)[row] = scale;
        auto *q = reinterpret_cast<int8_t *>(panel + g * kQ8GroupBytes + 2 * kPanelRows);
        for (uint32_t i = 0; i < kGroup; ++i) {
            q[(i / 2 * kPanelRows + row) * 2 + i % 2] =
                static_cast<int8_t>(std::min(127.0F, std::max(-127.0F, roundFast(w[i] * inverse))));
        }
    }
}

void quantizeRowQ4(const float *weights, uint32_t k, uint32_t row, char *panel) {
    float w[kGroup];
    for (uint32_t g = 0; g * kGroup < k; ++g) {
        copyGroup(weights, k, g, w);
        const uint16_t scale = searchScaleQ4(w);
        const float inverse = scale == 0 ? 0.0F : 1.0F / bf16ToFloat(scale);
        scalesOf(panel, g, kQ4GroupBytes)[row] = scale;
        auto *words = reinterpret_cast<uint16_t *>(panel + g * kQ4GroupBytes + 2 * kPanelRows);
        for (uint32_t i = 0; i < kGroup; ++i) {
            const float q = std::min(7.0F, std::max(-8.0F, roundFast(w[i] * inverse)));
            uint16_t &word = words[(i / 8 * kPanelRows + row) * 2 + i % 2];
            const uint32_t shift = i % 8 / 2 * 4;
            word = static_cast<uint16_t>((word & ~(15U << shift)) | static_cast<uint32_t>(static_cast<int>(q) + 8)
                                                                        << shift);
        }
    }
}

}  // namespace q3::cpu
