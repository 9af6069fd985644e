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

// The products of one format: a step of weights (16 rows x 4 bytes once unpacked) and 4 bytes of activation codes.
template <typename S, WeightType T> struct Steps;

template <typename S> struct Steps<S, kQ8> {
    using Weights = typename S::H;
    using Sums = typename S::I;
    static Weights load(const char *p) { return S::loadPairs(p); }
    static void store(char *p, Weights w) { S::storePairs(p, w); }
    static Weights broadcast(const char *codes) { return S::broadcastPair(codes); }
    static Sums start() { return S::setInt(0); }
    static Sums dot(Sums sums, Weights w, Weights x) { return S::dotPairs(sums, w, x); }
    static typename S::I total(Sums sums, int32_t /*offset*/) { return sums; }
};

template <typename S> struct Steps<S, kQ4> {
    using Weights = typename S::B;
    using Sums = typename S::Q;
    static Weights load(const char *p) { return S::loadQuads(p); }
    static void store(char *p, Weights w) { S::storeQuads(p, w); }
    static Weights broadcast(const char *codes) { return S::broadcastQuad(codes); }
    static Sums start() { return S::noQuads(); }
    static Sums dot(Sums sums, Weights w, Weights x) { return S::dotQuads(sums, w, x); }
    static typename S::I total(Sums sums, int32_t offset) { return S::addInt(S::totalQuads(sums), S::setInt(-offset)); }
};

// A step of a panel: 16 rows.
template <typename S, WeightType T> struct StepWeights {
    typename Steps<S, T>::Weights part[S::kParts];
};

// Calls use(step, weights) for the steps of a group; q4's weights are the nibbles, 0 to 15.
template <typename S, WeightType T, typename Use> inline void forSteps(const char *group, const Use &use) {
    const char *codes = group + 2 * kPanelRows;
    if constexpr (T == kQ8) {
        for (uint32_t step = 0; step < stepsPerGroup(T); ++step) {
            StepWeights<S, T> w;
            Q3_UNROLL
            for (int h = 0; h < S::kParts; ++h) {
                w.part[h] = S::widen(codes + (step * kPanelRows + h * S::kLanes) * 2);
            }
            use(step, w);
        }
    } else {
        for (uint32_t step = 0; step < stepsPerGroup(T); step += 2) {
            typename S::B bytes[S::kParts];
            StepWeights<S, T> w;
            Q3_UNROLL
            for (int h = 0; h < S::kParts; ++h) {
                bytes[h] = S::loadQuads(codes + (step / 2 * kPanelRows + h * S::kLanes) * 4);
                w.part[h] = S::lowNibbles(bytes[h]);
            }
            use(step, w);
            Q3_UNROLL
            for (int h = 0; h < S::kParts; ++h) {
                w.part[h] = S::highNibbles(bytes[h]);
            }
            use(step + 1, w);
        }
    }
}

// The integer products of R rows with one group of a panel.
template <typename S, WeightType T, int R> struct GroupDots {
    typename Steps<S, T>::Sums sum[R][S::kParts];

    GroupDots() {
        Q3_UNROLL
        for (int r = 0; r < R; ++r) {
            Q3_UNROLL
            for (int h = 0; h < S::kParts; ++h) {
                sum[r][h] = Steps<S, T>::start();
            }
        }
    }
    // Adds a step of weights times a step of codes, row r's at codes + r * ldc.
    inline void add(const StepWeights<S, T> &w, const char *codes, size_t ldc) {
        Q3_UNROLL
        for (int r = 0; r < R; ++r) {
            const typename Steps<S, T>::Weights x = Steps<S, T>::broadcast(codes + r * ldc);
            Q3_UNROLL
            for (int h = 0; h < S::kParts; ++h) {
                sum[r][h] = Steps<S, T>::dot(sum[r][h], w.part[h], x);
            }
        }
    }
    inline typename S::F total(int r, int h, const int32_t *offset) const {
        return S::toFloat(Steps<S, T>::total(sum[r][h], T == kQ4 ? *offset : 0));
    }
};

// Adds one group of panel p to the sums of R rows. x: the rows' codes of that group.
template <typename S, WeightType T, int R, int P>
inline void multiplyGroup(const char *group, const QuantRows &x, int p, Products<S, R, P> &products) {
    GroupDots<S, T, R> dots;
    forSteps<S, T>(group, [&](uint32_t step, const StepWeights<S, T> &w) {
        dots.add(w, x.codes + size_t{step} * kStepBytes, x.ldc);
    });
    Q3_UNROLL
    for (int h = 0; h < S::kParts; ++h) {
        const typename S::F scale = S::loadBf16(reinterpret_cast<const uint16_t *>(group) + h * S::kLanes);
        Q3_UNROLL
        for (int r = 0; r < R; ++r) {
            products.sum[r][p][h] = S::fma(dots.total(r, h, x.offsets + r * x.lds),
                                           S::mul(scale, S::broadcast(x.scales + r * x.lds)), products.sum[r][p][h]);
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
            const QuantRows at = {x.codes + g * kGroup * codeBytes(T), x.scales + g, x.offsets + g, x.ldc, x.lds};
            Q3_UNROLL
            for (int p = 0; p < P; ++p) {
                const char *group = panels + (first + p) * panel_bytes + g * quantGroupBytes(T);
                multiplyGroup<S, T, R, P>(group, at, p, products);
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
void unpackQuant(const void *panel, uint32_t g0, uint32_t count, char *codes, float *scales) {
    for (uint32_t g = 0; g < count; ++g, codes += kGroup * kPanelRows * codeBytes(T)) {
        const char *group = static_cast<const char *>(panel) + (g0 + g) * quantGroupBytes(T);
        forSteps<S, T>(group, [&](uint32_t step, const StepWeights<S, T> &w) {
            Q3_UNROLL
            for (int h = 0; h < S::kParts; ++h) {
                Steps<S, T>::store(codes + (step * kPanelRows + h * S::kLanes) * kStepBytes, w.part[h]);
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
template <typename S, WeightType T, int R>
__attribute__((noinline)) void addGroup(const QuantTile &a, const char *w, const float *w_scales, float *c,
                                        size_t ldc) {
    GroupDots<S, T, R> dots;
    const char *x = a.codes;
    for (uint32_t i = 0; i < stepsPerGroup(T); ++i, x += kStepBytes * S::kTileRows, w += kStepBytes * kPanelRows) {
        StepWeights<S, T> step;
        Q3_UNROLL
        for (int h = 0; h < S::kParts; ++h) {
            step.part[h] = Steps<S, T>::load(w + h * S::kLanes * kStepBytes);
        }
        dots.add(step, x, kStepBytes);
    }
    Q3_UNROLL
    for (int r = 0; r < R; ++r) {
        const typename S::F x_scale = S::broadcast(a.scales + r);
        Q3_UNROLL
        for (int h = 0; h < S::kParts; ++h) {
            float *sum = c + r * ldc + h * S::kLanes;
            const typename S::F scale = S::mul(S::load(w_scales + h * S::kLanes), x_scale);
            S::store(sum, S::fma(dots.total(r, h, a.offsets + r), scale, S::load(sum)));
        }
    }
}

template <typename S, WeightType T> struct TileQuantCall {
    const QuantTile &a;
    const char *b;
    const float *b_scales;
    uint32_t groups;
    float *c;
    size_t ldc;
    bool accumulate;

    template <int R> void call() const {
        constexpr int kRows = S::kTileRows;
        for (int r = 0; r < R && !accumulate; ++r) {
            for (int h = 0; h < S::kParts; ++h) {
                S::store(c + r * ldc + h * S::kLanes, S::zero());
            }
        }
        for (size_t g = 0; g < groups; ++g) {
            const QuantTile group = {a.codes + g * kGroup * kRows * codeBytes(T), a.scales + g * kRows,
                                     a.offsets + g * kRows};
            addGroup<S, T, R>(group, b + g * kGroup * kPanelRows * codeBytes(T), b_scales + g * kPanelRows, c, ldc);
        }
    }
};

template <typename S, WeightType T>
void tileQuant(const QuantTile &a, const char *b, const float *b_scales, uint32_t groups, float *c, size_t ldc,
               uint32_t rows, bool accumulate) {
    withRows<S::kTileRows>(rows, TileQuantCall<S, T>{a, b, b_scales, groups, c, ldc, accumulate});
}

template <typename S, WeightType T> void quantize(const float *x, uint32_t k, const QuantRows &out, uint32_t r) {
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
        const typename S::F inverse = S::set(tiny ? 0.0F : largestCode(T) / largest);
        char *codes = out.codes + r * out.ldc + g * kGroup * codeBytes(T);
        typename S::I sum = S::setInt(0);
        Q3_UNROLL
        for (uint32_t i = 0; i < kGroup; i += S::kLanes) {
            const typename S::I code = bad != bad ? S::setInt(0) : S::toInt(S::mul(S::load(in + i), inverse));
            if constexpr (T == kQ8) {
                S::narrow(reinterpret_cast<int16_t *>(codes) + i, code);
            } else {
                S::narrowBytes(reinterpret_cast<int8_t *>(codes) + i, code);
            }
            sum = S::addInt(sum, code);
        }
        out.scales[r * out.lds + g] = bad != bad ? bad : (tiny ? 0.0F : largest / largestCode(T));
        out.offsets[r * out.lds + g] = 8 * S::sumLanesInt(sum);
    }
}

}  // namespace
}  // namespace q3::cpu
