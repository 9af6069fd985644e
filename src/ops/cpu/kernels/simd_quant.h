// Quantised layers (q8, q4) for one instruction set S, see simd_table.h: exact integer products per group of 32 k, then
// one multiply-add with the scales (kernels.h).
#pragma once

#include "ops/cpu/kernels/kernels.h"
#include "ops/cpu/kernels/simd_float.h"

namespace q3::cpu {
namespace {

// A panel's weights in one step: kAtOnce vectors, which hold its 16 rows or some of them.
template <typename Step> struct StepWeights {
    typename Step::Weights part[Step::kAtOnce];
};

// Activation codes of one group for some rows, in the order of the steps.
struct StepCodes {
    const char *codes;
    size_t row_bytes;
};

// How one format is multiplied, in steps of weights (16 rows x 4 bytes, as they are multiplied) and activation codes.
// An instruction set with products of another shape specialises it (simd_dotprod.h).
template <typename S, WeightFormat T> struct Steps;

template <typename S> struct Steps<S, kQ8> {
    static constexpr int kAtOnce = S::kParts;         // vectors whose sums stay in registers
    static constexpr size_t kCodeBytes = kStepBytes;  // bytes of a row's codes in a step
    using Weights = typename S::H;
    using Values = Weights;  // a row's codes of a step, in every lane
    using Sums = typename S::I;
    template <int R> using Rows = StepCodes;  // made of QuantRows' codes and the bytes between rows
    static Values broadcast(const char *codes) { return S::broadcastPair(codes); }
    static Sums start() { return S::setInt(0); }
    static Sums dot(Sums sums, Weights w, Values x) { return S::dotPairs(sums, w, x); }
    static typename S::I total(Sums sums, int32_t /*offset*/) { return sums; }
    // Calls use(step, weights) for the steps of a group, with the vectors [first, first + kAtOnce).
    template <typename Use> static void forSteps(const char *group, int /*first*/, const Use &use) {
        const char *codes = group + kScaleBytes;
        for (uint32_t step = 0; step < stepsPerGroup(kQ8); ++step) {
            StepWeights<Steps> w;
            Q3_UNROLL
            for (int h = 0; h < S::kParts; ++h) {
                w.part[h] = S::widen(codes + (step * kPanelRows + h * S::kLanes) * 2);
            }
            use(step, w);
        }
    }
};

// Weights are multiplied as nibbles, 0 to 15; total() subtracts what that adds.
template <typename S> struct Steps<S, kQ4> {
    static constexpr int kAtOnce = S::kParts;
    static constexpr size_t kCodeBytes = kStepBytes;
    using Weights = typename S::B;
    using Values = Weights;
    using Sums = typename S::Q;
    template <int R> using Rows = StepCodes;
    static Values broadcast(const char *codes) { return S::broadcastQuad(codes); }
    static Sums start() { return S::noQuads(); }
    static Sums dot(Sums sums, Weights w, Values x) { return S::dotQuads(sums, w, x); }
    static typename S::I total(Sums sums, int32_t offset) { return S::addInt(S::totalQuads(sums), S::setInt(-offset)); }
    template <typename Use> static void forSteps(const char *group, int /*first*/, const Use &use) {
        const char *codes = group + kScaleBytes;
        for (uint32_t step = 0; step < stepsPerGroup(kQ4); step += 2) {
            typename S::B bytes[S::kParts];
            StepWeights<Steps> w;
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
};

// The integer products of R rows with kAtOnce vectors of one group of a panel.
template <typename S, WeightFormat T, int R> struct GroupDots {
    using Step = Steps<S, T>;
    typename Step::Sums sum[R][Step::kAtOnce];

    GroupDots() {
        Q3_UNROLL
        for (int r = 0; r < R; ++r) {
            Q3_UNROLL
            for (int h = 0; h < Step::kAtOnce; ++h) {
                sum[r][h] = Step::start();
            }
        }
    }
    // Adds a step of weights times a step of codes, row r's at codes + r * row_bytes.
    inline void add(const StepWeights<Step> &w, const char *codes, size_t row_bytes) {
        Q3_UNROLL
        for (int r = 0; r < R; ++r) {
            const typename Step::Values x = Step::broadcast(codes + r * row_bytes);
            Q3_UNROLL
            for (int h = 0; h < Step::kAtOnce; ++h) {
                sum[r][h] = Step::dot(sum[r][h], w.part[h], x);
            }
        }
    }
    inline typename S::F total(int r, int h, const int32_t *offset) const {
        return S::toFloat(Step::total(sum[r][h], infoOf(T).zero_code == 0 ? 0 : *offset));
    }
};

// Adds one group of panel p to the sums of R rows. x: the rows' activations in that group; `rows`: their codes in the
// order of the steps.
template <typename S, WeightFormat T, int R, int P>
inline void multiplyGroup(const char *group, const QuantRows &x, const typename Steps<S, T>::template Rows<R> &rows,
                          int p, Products<S, R, P> &products) {
    using Step = Steps<S, T>;
    fetchAhead<T, R>(group, panelOffset(T, kGroup));
    Q3_UNROLL
    for (int first = 0; first < S::kParts; first += Step::kAtOnce) {
        GroupDots<S, T, R> dots;
        Step::forSteps(group, first, [&](uint32_t step, const StepWeights<Step> &w) {
            dots.add(w, rows.codes + step * Step::kCodeBytes, rows.row_bytes);
        });
        Q3_UNROLL
        for (int h = 0; h < Step::kAtOnce; ++h) {
            const typename S::F scale =
                S::loadBf16(reinterpret_cast<const uint16_t *>(group) + (first + h) * S::kLanes);
            Q3_UNROLL
            for (int r = 0; r < R; ++r) {
                typename S::F &sum = products.sum[r][p][first + h];
                sum = S::fma(dots.total(r, h, x.offsets + r * x.row_step),
                             S::mul(scale, S::broadcast(x.scales + r * x.row_step)), sum);
            }
        }
    }
}

template <typename S, WeightFormat T> struct QuantPanelCall {
    const char *panels;
    size_t panel_bytes;
    uint32_t npanels, groups;
    const QuantRows &x;
    float *y;
    size_t ldy;
    bool accumulate;

    template <int R> void call() const { forPanelGroups<R, panelsAtOnce<S, R>(R * S::kParts)>(npanels, *this); }
    template <int R, int P> void tiles(uint32_t first, uint32_t apart) const {
        Products<S, R, P> products;
        float *out = y + first * kPanelRows;
        if (accumulate) {
            products.load(out, ldy, apart);
        }
        for (uint32_t g = 0; g < groups; ++g) {
            const QuantRows at = x.from(0, g, T);
            const typename Steps<S, T>::template Rows<R> rows{at.codes, at.row_step * QuantRows::rowBytes(T)};
            Q3_UNROLL
            for (int p = 0; p < P; ++p) {
                const size_t panel = first + size_t{apart} * p;
                const char *group = panels + panel * panel_bytes + panelOffset(T, size_t{g} * kGroup);
                multiplyGroup<S, T, R, P>(group, at, rows, p, products);
            }
        }
        products.store(out, ldy, apart);
    }
};

template <typename S, WeightFormat T>
void multiplyQuantPanels(const void *panels, size_t panel_bytes, uint32_t npanels, uint32_t groups, const QuantRows &x,
                         uint32_t rows, float *y, size_t ldy, bool accumulate) {
    withRows<S::kTileRows>(rows, QuantPanelCall<S, T>{static_cast<const char *>(panels), panel_bytes, npanels, groups,
                                                      x, y, ldy, accumulate});
}

template <typename S, WeightFormat T> void quantize(const float *x, uint32_t k, const QuantRows &out, uint32_t r) {
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
        const typename S::F inverse = S::set(tiny ? 0.0F : infoOf(T).largest_code / largest);
        const QuantRows to = out.from(r, g, T);
        typename S::I sum = S::setInt(0);
        int32_t first_sum = 0;  // of the first 16 codes
        Q3_UNROLL
        for (uint32_t i = 0; i < kGroup; i += S::kLanes) {
            const typename S::I code = bad != bad ? S::setInt(0) : S::toInt(S::mul(S::load(in + i), inverse));
            if constexpr (infoOf(T).code_bytes == sizeof(int16_t)) {
                S::narrow(reinterpret_cast<int16_t *>(to.codes) + i, code);
            } else {
                S::narrowBytes(reinterpret_cast<int8_t *>(to.codes) + i, code);
            }
            sum = S::addInt(sum, code);
            if (isAffine(T) && i + S::kLanes == kGroup / 2) {
                first_sum = S::sumLanesInt(sum);
            }
        }
        to.scales[0] = bad != bad ? bad : (tiny ? 0.0F : largest / infoOf(T).largest_code);
        const int32_t total = S::sumLanesInt(sum);
        to.offsets[0] = isAffine(T) ? packAffineSums(first_sum, total - first_sum) : 8 * total;
    }
}

}  // namespace
}  // namespace q3::cpu
