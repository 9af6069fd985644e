#include "ops/cpu/pack/quant.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "ops/cpu/formats.h"
#include "ops/half.h"

namespace q3::cpu {
namespace {

// Lanes of one vector; a group's 16 rows are four of them. GCC and clang lower this to whatever the baseline has.
typedef float Lanes __attribute__((vector_size(16)));
typedef int32_t IntLanes __attribute__((vector_size(16)));
constexpr uint32_t kLanes = 4;

Lanes all(float value) {
    return Lanes{value, value, value, value};
}
Lanes load(const float *p) {
    Lanes value;
    std::memcpy(&value, p, sizeof value);
    return value;
}
// To the nearest integer, ties to even, for |x| < 2^22: unlike nearbyint it vectorises everywhere.
Lanes roundFast(Lanes x) {
    return (x + all(12582912.0F)) - all(12582912.0F);
}
Lanes clamp(Lanes x, Lanes low, Lanes high) {
    x = x > low ? x : low;
    return x < high ? x : high;
}
Lanes magnitude(Lanes x) {
    return (Lanes)((IntLanes)x & IntLanes{0x7fffffff, 0x7fffffff, 0x7fffffff, 0x7fffffff});
}

float inverseOf(uint16_t scale) {
    return scale == 0 ? 0.0F : 1.0F / bf16ToFloat(scale);
}

// The range of codes, as run-time values: GCC does not use minimum and maximum instructions for constant bounds.
struct Bounds {
    Lanes low, high;
    Bounds(float l, float h) {
        volatile float values[2] = {l, h};
        low = all(values[0]);
        high = all(values[1]);
    }
};

// codes[i * 16 + row] = tile / scale, rounded into bounds.
void encode(const float *tile, const uint16_t *scales, const Bounds &bounds, int32_t *codes) {
    float inverse[kPanelRows];
    for (uint32_t row = 0; row < kPanelRows; ++row) {
        inverse[row] = inverseOf(scales[row]);
    }
    for (uint32_t i = 0; i < kGroup; ++i) {
        for (uint32_t row = 0; row < kPanelRows; row += kLanes) {
            const Lanes q = roundFast(load(tile + i * kPanelRows + row) * load(inverse + row));
            const IntLanes code = __builtin_convertvector(clamp(q, bounds.low, bounds.high), IntLanes);
            std::memcpy(codes + i * kPanelRows + row, &code, sizeof code);
        }
    }
}

// Finds the scales of four rows. A scale may be negative, so that a row's extreme weight takes -8, the one code without
// a counterpart of the other sign. Of several scales around that one, the one with the least squared error wins. Errors
// are weighted by w^2, because large weights matter more to the output.
void searchScalesQ4(const float *tile, const Bounds &bounds, uint16_t *scales) {
    static constexpr float kDivisors[] = {-8.0F, -7.0F, -7.5F, -8.5F, -9.0F, -9.5F, 7.0F, 7.5F};
    Lanes extreme = all(0.0F);
    for (uint32_t i = 0; i < kGroup; ++i) {
        const Lanes w = load(tile + i * kPanelRows);
        extreme = magnitude(w) > magnitude(extreme) ? w : extreme;
    }
    float least[kLanes] = {-1.0F, -1.0F, -1.0F, -1.0F};
    for (uint32_t lane = 0; lane < kLanes; ++lane) {
        scales[lane] = floatToBf16(extreme[lane] / kDivisors[0]);
    }
    for (const float divisor : kDivisors) {
        uint16_t candidates[kLanes];
        Lanes scale = all(0.0F);
        for (uint32_t lane = 0; lane < kLanes; ++lane) {
            candidates[lane] = floatToBf16(extreme[lane] / divisor);
            scale[lane] = bf16ToFloat(candidates[lane]);
        }
        const Lanes inverse = all(1.0F) / scale;
        Lanes error = all(0.0F);
        for (uint32_t i = 0; i < kGroup; ++i) {
            const Lanes w = load(tile + i * kPanelRows);
            const Lanes difference = w - clamp(roundFast(w * inverse), bounds.low, bounds.high) * scale;
            error += (w * w + all(1e-12F)) * difference * difference;
        }
        for (uint32_t lane = 0; lane < kLanes; ++lane) {
            const bool usable = std::fabs(scale[lane]) >= kLeastScale;
            if (usable && (least[lane] < 0.0F || error[lane] < least[lane])) {
                least[lane] = error[lane];
                scales[lane] = candidates[lane];
            }
        }
    }
    for (uint32_t lane = 0; lane < kLanes; ++lane) {
        if (std::fabs(bf16ToFloat(scales[lane])) < kLeastScale) {
            scales[lane] = 0;
        }
    }
}

// `base` is the largest upper byte (without sign) of a bf12 group. `pairs` has a bit for every pair of k with an upper
// byte that is not among the eight values from `base` down.
struct Bf12Range {
    uint32_t base;
    uint32_t pairs;
};

Bf12Range rangeBf12(const uint32_t *tile, uint32_t count) {
    const uint32_t npairs = (count + 1) / 2;
    int16_t least[kGroup / 2];
    int16_t most = 0;
    for (uint32_t pair = 0; pair < npairs; ++pair) {
        // Padding beyond k is never multiplied, so its exponent does not count.
        const uint32_t odd = pair * 2 + 1 < count ? 16 : 0;
        int16_t low = 0x7f;
        for (uint32_t row = 0; row < kPanelRows; ++row) {
            const uint32_t word = tile[pair * kPanelRows + row];
            const auto a = static_cast<int16_t>(word >> 8 & 0x7fU);
            const auto b = static_cast<int16_t>(word >> odd >> 8 & 0x7fU);
            low = std::min(low, std::min(a, b));
            most = std::max(most, std::max(a, b));
        }
        least[pair] = low;
    }
    uint32_t pairs = 0;
    for (uint32_t pair = 0; pair < npairs; ++pair) {
        pairs |= (most > least[pair] + 7 ? 1U : 0U) << pair;
    }
    return {static_cast<uint32_t>(most), pairs};
}

}  // namespace

uint32_t countRawBf12(const uint32_t *tile, uint32_t count) {
    return static_cast<uint32_t>(__builtin_popcount(rangeBf12(tile, count).pairs));
}

uint32_t packGroupBf12(const uint32_t *tile, uint32_t count, char *group, uint16_t *raw) {
    const Bf12Range range = rangeBf12(tile, count);
    Bf12Header header{};
    header.raw = raw;
    header.base = static_cast<uint16_t>(range.base);
    header.pairs = static_cast<uint16_t>(range.pairs);
    std::memcpy(group, &header, sizeof header);
    const uint32_t npairs = (count + 1) / 2;
    uint32_t nraw = 0;
    for (uint32_t pair = 0; pair < npairs; ++pair) {
        const uint32_t *words = tile + pair * kPanelRows;
        if ((range.pairs >> pair & 1U) != 0) {
            std::memcpy(raw + size_t{2} * kPanelRows * nraw++, words, sizeof(uint32_t) * kPanelRows);
            continue;
        }
        auto *codes = reinterpret_cast<uint8_t *>(group + sizeof header + pair / 2 * kBf12QuadBytes);
        uint8_t *low = codes + (1 + pair % 2) * kBf12PairBytes;
        for (uint32_t row = 0; row < kPanelRows; ++row) {
            for (uint32_t odd = 0; odd < 2; ++odd) {
                const uint32_t half = words[row] >> (16 * odd) & 0xffffU;
                const uint32_t place = kBf12Order[row] * 2 + odd;
                const uint32_t nibble = (half >> 15) << 3 | ((range.base - (half >> 8 & 0x7fU)) & 7U);
                low[place] = static_cast<uint8_t>(half);
                codes[place] = static_cast<uint8_t>(codes[place] | nibble << (pair % 2 * 4));
            }
        }
    }
    return nraw;
}

void quantizeGroupQ8(const float *tile, char *panel, uint32_t g) {
    uint16_t scales[kPanelRows];
    for (uint32_t row = 0; row < kPanelRows; row += kLanes) {
        Lanes largest = all(0.0F);
        for (uint32_t i = 0; i < kGroup; ++i) {
            const Lanes w = magnitude(load(tile + i * kPanelRows + row));
            largest = largest > w ? largest : w;
        }
        for (uint32_t lane = 0; lane < kLanes; ++lane) {
            scales[row + lane] = largest[lane] < kLeastScale ? 0 : bf16Up(largest[lane] / 127.0F);
        }
    }
    int32_t codes[kGroup * kPanelRows];
    encode(tile, scales, Bounds(-127.0F, 127.0F), codes);
    std::memcpy(panel + scalesOffset(kQ8, g), scales, sizeof scales);
    auto *out = reinterpret_cast<uint8_t *>(panel + codesOffset(kQ8, g));
    for (uint32_t i = 0; i < kGroup; ++i) {
        for (uint32_t row = 0; row < kPanelRows; ++row) {
            const int32_t code = codes[i * kPanelRows + row] + infoOf(kQ8).zero_code;
            out[(i / 4 * kPanelRows + row) * 4 + i % 4] = static_cast<uint8_t>(code);
        }
    }
}

void quantizeGroupQ4(const float *tile, char *panel, uint32_t g) {
    uint16_t scales[kPanelRows];
    const Bounds bounds(-8.0F, 7.0F);
    for (uint32_t row = 0; row < kPanelRows; row += kLanes) {
        searchScalesQ4(tile + row, bounds, scales + row);
    }
    int32_t codes[kGroup * kPanelRows];
    encode(tile, scales, bounds, codes);
    std::memcpy(panel + scalesOffset(kQ4, g), scales, sizeof scales);
    uint8_t bytes[kGroup / 2 * kPanelRows] = {};
    for (uint32_t i = 0; i < kGroup; ++i) {
        for (uint32_t row = 0; row < kPanelRows; ++row) {
            const auto nibble = static_cast<uint32_t>(codes[i * kPanelRows + row] + infoOf(kQ4).zero_code);
            uint8_t &byte = bytes[(i / 8 * kPanelRows + row) * 4 + i % 4];
            byte = static_cast<uint8_t>(byte | nibble << (i / 4 % 2 * 4));
        }
    }
    std::memcpy(panel + codesOffset(kQ4, g), bytes, sizeof bytes);
}

}  // namespace q3::cpu
