// Quantised layers (q8, q4) for one instruction set S, see simd_table.h: exact integer products per group of 32 k, then
// one multiply-add with the scales (kernels.h).
#pragma once

#include "ops/cpu/kernels.h"
#include "ops/cpu/simd_float.h"

namespace q3::cpu {
namespace {

constexpr size_t quantGroupBytes(WeightType type) {
    return type == kQ8 ? kQ8GroupBytes : kQ4GroupBytes;
}

// A pair of k of a panel: 16 rows x 2 codes of 16 bits.
template <typename S> struct CodePair {
    typename S::H part[S::kParts];
};

// Calls use(pair, codes) for the 16 pairs of a group; q4's codes are the nibbles, 0 to 15.
template <typename S, WeightType T, typename Use> inline void forCodes(const char *group, const Use &use) {
    const char *codes = group + 2 * kPanelRows;
    if constexpr (T == kQ8) {
        for (uint32_t pair = 0; pair < kGroup / 2; ++pair) {
            CodePair<S> w;
            Q3_UNROLL
            for (int h = 0; h < S::kParts; ++h) {
                w.part[h] = S::widen(codes + (pair * kPanelRows + h * S::kLanes) * 2);
            }
            use(pair, w);
        }
    } else {
        for (uint32_t octet = 0; octet < kGroup / 8; ++octet) {
            typename S::H words[S::kParts];
            Q3_UNROLL
            for (int h = 0; h < S::kParts; ++h) {
                words[h] = S::loadCodes(codes + (octet * kPanelRows + h * S::kLanes) * 4);
            }
            CodePair<S> w;
            Q3_UNROLL
            for (int h = 0; h < S::kParts; ++h) {
                w.part[h] = S::template nibbles<0>(words[h]);
            }
            use(octet * 4, w);
            Q3_UNROLL
            for (int h = 0; h < S::kParts; ++h) {
                w.part[h] = S::template nibbles<1>(words[h]);
            }
            use(octet * 4 + 1, w);
            Q3_UNROLL
            for (int h = 0; h < S::kParts; ++h) {
                w.part[h] = S::template nibbles<2>(words[h]);
            }
            use(octet * 4 + 2, w);
            Q3_UNROLL
            for (int h = 0; h < S::kParts; ++h) {
                w.part[h] = S::template nibbles<3>(words[h]);
            }
            use(octet * 4 + 3, w);
        }
    }
}

// Adds one group of panel p, whose weights are `group` and activations `codes`, to the sums of R rows.
template <typename S, WeightType T, int R, int P>
inline void multiplyGroup(const char *group, const int16_t *codes, size_t ldc, const float *scales,
                          const int32_t *offsets, size_t lds, int p, Products<S, R, P> &products) {
    typename S::I dot[R][S::kParts];
    Q3_UNROLL
    for (int r = 0; r < R; ++r) {
        Q3_UNROLL
        for (int h = 0; h < S::kParts; ++h) {
            dot[r][h] = T == kQ8 ? S::setInt(0) : S::setInt(-offsets[r * lds]);
        }
    }
    forCodes<S, T>(group, [&](uint32_t pair, const CodePair<S> &w) {
        Q3_UNROLL
        for (int r = 0; r < R; ++r) {
            const typename S::H x = S::broadcastPair(codes + r * ldc + size_t{pair} * 2);
            Q3_UNROLL
            for (int h = 0; h < S::kParts; ++h) {
                dot[r][h] = S::dotPairs(dot[r][h], w.part[h], x);
            }
        }
    });
    Q3_UNROLL
    for (int h = 0; h < S::kParts; ++h) {
        const typename S::F scale = S::loadBf16(reinterpret_cast<const uint16_t *>(group) + h * S::kLanes);
        Q3_UNROLL
        for (int r = 0; r < R; ++r) {
            products.sum[r][p][h] =
                S::fma(S::toFloat(dot[r][h]), S::mul(scale, S::broadcast(scales + r * lds)), products.sum[r][p][h]);
        }
    }
}

template <typename S, WeightType T> struct GemvQuantCall {
    const char *panels;
    size_t panel_bytes;
    uint32_t npanels, groups;
    const QuantRows &x;
    float *y;
    size_t ldy;

    template <int R, int P> void tile(uint32_t first) const {
        Products<S, R, P> products;
        for (uint32_t g = 0; g < groups; ++g) {
            Q3_UNROLL
            for (int p = 0; p < P; ++p) {
                const char *group = panels + (first + p) * panel_bytes + g * quantGroupBytes(T);
                multiplyGroup<S, T, R, P>(group, x.codes + size_t{g} * kGroup, x.ldc, x.scales + g, x.offsets + g,
                                          x.lds, p, products);
            }
        }
        products.store(y + first * kPanelRows, ldy);
    }
    template <int R> void call() const {
        constexpr int P = panelsAtOnce<S, R>(R * S::kParts);
        uint32_t p = 0;
        for (; p + P <= npanels; p += P) {
            tile<R, P>(p);
        }
        for (; p < npanels; ++p) {
            tile<R, 1>(p);
        }
    }
};

template <typename S, WeightType T>
void gemvQuant(const void *panels, size_t panel_bytes, uint32_t npanels, uint32_t groups, const QuantRows &x,
               uint32_t rows, float *y, size_t ldy) {
    withRows<S::kTileRows>(
        rows, GemvQuantCall<S, T>{static_cast<const char *>(panels), panel_bytes, npanels, groups, x, y, ldy});
}

template <typename S, WeightType T>
void unpackQuant(const void *panel, uint32_t g0, uint32_t count, int16_t *codes, float *scales) {
    for (uint32_t g = 0; g < count; ++g) {
        const char *group = static_cast<const char *>(panel) + (g0 + g) * quantGroupBytes(T);
        forCodes<S, T>(group, [&](uint32_t pair, const CodePair<S> &w) {
            Q3_UNROLL
            for (int h = 0; h < S::kParts; ++h) {
                int16_t *out = codes + ((size_t{g} * kGroup / 2 + pair) * kPanelRows + h * S::kLanes) * 2;
                S::storeCodes(out, T == kQ8 ? w.part[h] : S::subtractEight(w.part[h]));
            }
        });
        Q3_UNROLL
        for (int h = 0; h < S::kParts; ++h) {
            S::store(scales + g * kPanelRows + h * S::kLanes,
                     S::loadBf16(reinterpret_cast<const uint16_t *>(group) + h * S::kLanes));
        }
    }
}

// c[R][16] += one group. A function of its own, or the compiler keeps the sums in memory for the sake of what follows.
template <typename S, int R>
__attribute__((noinline)) void addGroup(const int16_t *x, const float *x_scales, const int16_t *w,
                                        const float *w_scales, float *c, size_t ldc) {
    typename S::I dot[R][S::kParts];
    Q3_UNROLL
    for (int r = 0; r < R; ++r) {
        Q3_UNROLL
        for (int h = 0; h < S::kParts; ++h) {
            dot[r][h] = S::setInt(0);
        }
    }
    for (uint32_t pair = 0; pair < kGroup / 2; ++pair, x += 2 * S::kTileRows, w += 2 * kPanelRows) {
        typename S::H column[S::kParts];
        Q3_UNROLL
        for (int h = 0; h < S::kParts; ++h) {
            column[h] = S::loadCodes(reinterpret_cast<const char *>(w + h * S::kLanes * 2));
        }
        Q3_UNROLL
        for (int r = 0; r < R; ++r) {
            const typename S::H value = S::broadcastPair(x + r * 2);
            Q3_UNROLL
            for (int h = 0; h < S::kParts; ++h) {
                dot[r][h] = S::dotPairs(dot[r][h], column[h], value);
            }
        }
    }
    Q3_UNROLL
    for (int r = 0; r < R; ++r) {
        const typename S::F x_scale = S::broadcast(x_scales + r);
        Q3_UNROLL
        for (int h = 0; h < S::kParts; ++h) {
            float *sum = c + r * ldc + h * S::kLanes;
            const typename S::F scale = S::mul(S::load(w_scales + h * S::kLanes), x_scale);
            S::store(sum, S::fma(S::toFloat(dot[r][h]), scale, S::load(sum)));
        }
    }
}

template <typename S> struct TileQuantCall {
    const int16_t *a;
    const float *a_scales;
    const int16_t *b;
    const float *b_scales;
    uint32_t groups;
    float *c;
    size_t ldc;
    bool accumulate;

    template <int R> void call() const {
        constexpr int T = S::kTileRows;
        for (int r = 0; r < R && !accumulate; ++r) {
            for (int h = 0; h < S::kParts; ++h) {
                S::store(c + r * ldc + h * S::kLanes, S::zero());
            }
        }
        for (uint32_t g = 0; g < groups; ++g) {
            addGroup<S, R>(a + size_t{g} * kGroup * T, a_scales + size_t{g} * T, b + size_t{g} * kGroup * kPanelRows,
                           b_scales + size_t{g} * kPanelRows, c, ldc);
        }
    }
};

template <typename S>
void tileQuant(const int16_t *a, const float *a_scales, const int16_t *b, const float *b_scales, uint32_t groups,
               float *c, size_t ldc, uint32_t rows, bool accumulate) {
    withRows<S::kTileRows>(rows, TileQuantCall<S>{a, a_scales, b, b_scales, groups, c, ldc, accumulate});
}

template <typename S> void quantize(const float *x, uint32_t k, const QuantRows &out, uint32_t r) {
    for (uint32_t g = 0; g * kGroup < k; ++g) {
        const float *in = x + size_t{g} * kGroup;
        float padded[kGroup];
        if (k - g * kGroup < kGroup) {
            for (uint32_t i = 0; i < kGroup; ++i) {
                padded[i] = g * kGroup + i < k ? in[i] : 0.0F;
            }
            in = padded;
        }
        typename S::F top = S::zero();
        typename S::F poison = S::zero();  // NaN once a value is NaN or infinite, which max would hide
        Q3_UNROLL
        for (uint32_t i = 0; i < kGroup; i += S::kLanes) {
            const typename S::F v = S::load(in + i);
            top = S::max(top, S::abs(v));
            poison = S::fma(v, S::zero(), poison);
        }
        const float largest = S::maxLanes(top);
        const float bad = S::sumLanes(poison);
        const bool tiny = largest < kLeastScale;
        const typename S::F inverse = S::set(tiny ? 0.0F : kActivationMax / largest);
        int16_t *codes = out.codes + r * out.ldc + size_t{g} * kGroup;
        typename S::I sum = S::setInt(0);
        Q3_UNROLL
        for (uint32_t i = 0; i < kGroup; i += S::kLanes) {
            const typename S::I code = bad != bad ? S::setInt(0) : S::toInt(S::mul(S::load(in + i), inverse));
            S::narrow(codes + i, code);
            sum = S::addInt(sum, code);
        }
        out.scales[r * out.lds + g] = bad != bad ? bad : (tiny ? 0.0F : largest / kActivationMax);
        out.offsets[r * out.lds + g] = 8 * S::sumLanesInt(sum);
    }
}

}  // namespace
}  // namespace q3::cpu
