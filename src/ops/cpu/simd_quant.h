// Quantised layers (q8, q4) for one instruction set S, see simd_table.h: exact integer products per group of 32 k, then
// one multiply-add with the scales (kernels.h).
#pragma once

#include "ops/cpu/kernels.h"
#include "ops/cpu/simd_float.h"

namespace q3::cpu {
namespace {

// The products of one format: a step of weights (16 rows x 4 bytes as it is multiplied) and 4 bytes of activation
// codes.
template <typename S, WeightType T> struct Steps;

template <typename S> struct Steps<S, kQ8> {
    using Weights = typename S::H;
    using Sums = typename S::I;
    static Weights broadcast(const char *codes) { return S::broadcastPair(codes); }
    static Sums start() { return S::setInt(0); }
    static Sums dot(Sums sums, Weights w, Weights x) { return S::dotPairs(sums, w, x); }
    static typename S::I total(Sums sums, int32_t /*offset*/) { return sums; }
};

template <typename S> struct Steps<S, kQ4> {
    using Weights = typename S::B;
    using Sums = typename S::Q;
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
    bool accumulate;

    template <int R, int P> void tile(uint32_t first) const {
        Products<S, R, P> products;
        if (accumulate) {
            products.load(y + first * kPanelRows, ldy);
        }
        for (uint32_t g = 0; g < groups; ++g) {
            const QuantRows at = x.from(0, g, T);
            Q3_UNROLL
            for (int p = 0; p < P; ++p) {
                const char *group = panels + (first + p) * panel_bytes + panelOffset(T, size_t{g} * kGroup);
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
               uint32_t rows, float *y, size_t ldy, bool accumulate) {
    withRows<S::kTileRows>(rows, GemvQuantCall<S, T>{static_cast<const char *>(panels), panel_bytes, npanels, groups, x,
                                                     y, ldy, accumulate});
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
