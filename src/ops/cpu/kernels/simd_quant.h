// Quantised layers (q8, q4) for one instruction set S, see simd_table.h: exact integer products per group of 32 k, then
// one multiply-add with the scales (kernels.h).
#pragma once

#include "ops/cpu/kernels/kernels.h"
#include "ops/cpu/kernels/simd_float.h"

namespace q3::cpu {
namespace {

constexpr int kQuads = kGroup / 4;  // of k, in a group

// How one format is multiplied with codes of one width, in steps: 32-bit lanes of weights, kLanes rows of a panel, meet
// 4 bytes of a row's codes. There are three ways.
//
// Products of bytes that are added to 32 bits at once (VNNI, SDOT). 16-bit codes take two passes over the group: first
// their high bytes, then, when the sums have been shifted left, their low ones.
template <typename S, WeightFormat T, CodeWidth X> struct ByteSteps {
    using Weights = typename S::B;
    using Values = typename S::B;
    using Sums = typename S::I;
    static constexpr CodeOrder kOrder = X == k8Bits ? kByteCodes : kSplitCodes;
    static constexpr int kPasses = X == k8Bits ? 1 : 2;
    static constexpr int kSteps = kQuads, kUnrolled = kQuads;
    // Where bytes of weights are signed ones, those of q8 become so when they are loaded.
    static constexpr bool kMadeSigned = S::kSignedBytes && infoOf(T).code_bits == 8;

    static Weights weights(const char *codes, int step, int part) {
        if constexpr (infoOf(T).code_bits == 8) {
            const Weights w = S::loadQuads(codes + (step * kPanelRows + part * S::kLanes) * 4);
            if constexpr (kMadeSigned) {
                return S::makeSigned(w);
            } else {
                return w;
            }
        } else {
            const Weights both = S::loadQuads(codes + (step / 2 * kPanelRows + part * S::kLanes) * 4);
            return step % 2 == 0 ? S::lowNibbles(both) : S::highNibbles(both);
        }
    }
    static Values broadcast(const char *codes) { return S::broadcastQuad(codes); }
    static Sums start(const int32_t *offset) {
        return kPasses > 1 || kMadeSigned ? S::setInt(0) : S::broadcastInt(offset);
    }
    static Sums dot(Sums sum, Weights w, Values x) { return S::dotBytes(sum, w, x); }
    static Sums nextPass(Sums sum, const int32_t *offset) {
        const Sums shifted = S::template shiftLeft<8>(sum);
        return kMadeSigned ? shifted : S::addInt(shifted, S::broadcastInt(offset));
    }
    static typename S::I total(Sums sum, const int32_t * /*offset*/) { return sum; }
};

// Products of 16 bits, two to a lane: the even and the odd bytes of a quad of weights become words.
template <typename S, WeightFormat T> struct WordSteps {
    using Weights = typename S::H;
    using Values = typename S::H;
    using Sums = typename S::I;
    static constexpr CodeOrder kOrder = kWordCodes;
    static constexpr int kPasses = 1;
    static constexpr int kSteps = 2 * kQuads, kUnrolled = infoOf(T).code_bits == 8 ? 2 : 4;

    static Weights weights(const char *codes, int step, int part) {
        const int bytes = step / kUnrolled;
        const typename S::B quads = S::loadQuads(codes + (bytes * kPanelRows + part * S::kLanes) * 4);
        if constexpr (infoOf(T).code_bits == 8) {
            return step % 2 == 0 ? S::template words<0, 0xff>(quads) : S::template words<8, 0xff>(quads);
        } else {
            switch (step % kUnrolled) {
            case 0:
                return S::template words<0, 0xf>(quads);
            case 1:
                return S::template words<8, 0xf>(quads);
            case 2:
                return S::template words<4, 0xf>(quads);
            default:
                return S::template words<12, 0xf>(quads);
            }
        }
    }
    static Values broadcast(const char *codes) { return S::broadcastPair(codes); }
    static Sums start(const int32_t * /*offset*/) { return S::setInt(0); }
    static Sums dot(Sums sum, Weights w, Values x) { return S::dotPairs(sum, w, x); }
    static Sums nextPass(Sums sum, const int32_t * /*offset*/) { return sum; }
    static typename S::I total(Sums sum, const int32_t *offset) { return S::addInt(sum, S::broadcastInt(offset)); }
};

// Products of nibbles and 8-bit codes, four to a lane of two 16-bit sums, which a group does not make overflow.
template <typename S> struct NibbleSteps {
    using Weights = typename S::B;
    using Values = typename S::B;
    using Sums = typename S::Q;
    static constexpr CodeOrder kOrder = kByteCodes;
    static constexpr int kPasses = 1;
    static constexpr int kSteps = kQuads, kUnrolled = 2;

    static Weights weights(const char *codes, int step, int part) {
        const Weights both = S::loadQuads(codes + (step / 2 * kPanelRows + part * S::kLanes) * 4);
        return step % 2 == 0 ? S::lowNibbles(both) : S::highNibbles(both);
    }
    static Values broadcast(const char *codes) { return S::broadcastQuad(codes); }
    static Sums start(const int32_t * /*offset*/) { return S::noQuads(); }
    static Sums dot(Sums sum, Weights w, Values x) { return S::dotQuads(sum, w, x); }
    static Sums nextPass(Sums sum, const int32_t * /*offset*/) { return sum; }
    static typename S::I total(Sums sum, const int32_t *offset) {
        return S::addInt(S::totalQuads(sum), S::broadcastInt(offset));
    }
};

template <bool Condition, typename A, typename B> struct Either {
    using Type = A;
};
template <typename A, typename B> struct Either<false, A, B> {
    using Type = B;
};

template <typename S, WeightFormat T, CodeWidth X>
using Steps = typename Either<
    S::kByteDots, ByteSteps<S, T, X>,
    typename Either<infoOf(T).code_bits == 4 && X == k8Bits, NibbleSteps<S>, WordSteps<S, T>>::Type>::Type;

// Scales of a panel's rows [part * kLanes, ...) in group g.
template <typename S, WeightFormat T> inline typename S::F weightScales(const char *panel, size_t g, int part) {
    return S::loadBf16(reinterpret_cast<const uint16_t *>(panel + scalesOffset(T, g)) + part * S::kLanes);
}

// The integer products of R rows with P panels in one group.
template <typename S, WeightFormat T, CodeWidth X, int R, int P> struct GroupDots {
    using Step = Steps<S, T, X>;
    typename Step::Sums sum[R][P][S::kParts];

    // x: the rows' activations in the group; codes: the panels' weights.
    inline void compute(const QuantRows &x, const char *const (&codes)[P]) {
        Q3_UNROLL
        for (int r = 0; r < R; ++r) {
            Q3_UNROLL
            for (int p = 0; p < P; ++p) {
                Q3_UNROLL
                for (int h = 0; h < S::kParts; ++h) {
                    sum[r][p][h] = Step::start(x.offsets + r);
                }
            }
        }
        addSteps(x.codes, codes);
        if constexpr (Step::kPasses > 1) {
            Q3_UNROLL
            for (int r = 0; r < R; ++r) {
                Q3_UNROLL
                for (int p = 0; p < P; ++p) {
                    Q3_UNROLL
                    for (int h = 0; h < S::kParts; ++h) {
                        sum[r][p][h] = Step::nextPass(sum[r][p][h], x.offsets + r);
                    }
                }
            }
            addSteps(x.codes + kGroup, codes);
        }
    }

private:
    inline void addSteps(const char *x, const char *const (&codes)[P]) {
        for (int first = 0; first < Step::kSteps; first += Step::kUnrolled) {
            Q3_UNROLL
            for (int i = 0; i < Step::kUnrolled; ++i) {
                typename Step::Weights w[P][S::kParts];
                Q3_UNROLL
                for (int p = 0; p < P; ++p) {
                    Q3_UNROLL
                    for (int h = 0; h < S::kParts; ++h) {
                        w[p][h] = Step::weights(codes[p], first + i, h);
                    }
                }
                Q3_UNROLL
                for (int r = 0; r < R; ++r) {
                    const char *at = x + r * codeGroupBytes(Step::kOrder) + (first + i) * 4;
                    const typename Step::Values value = Step::broadcast(at);
                    Q3_UNROLL
                    for (int p = 0; p < P; ++p) {
                        Q3_UNROLL
                        for (int h = 0; h < S::kParts; ++h) {
                            sum[r][p][h] = Step::dot(sum[r][p][h], w[p][h], value);
                        }
                    }
                }
            }
        }
    }
};

// Rows up to which the hardware follows (fetchAhead), where codes of a panel are a whole vector.
template <typename S, WeightFormat T> constexpr int kFollowedCodes = S::kParts == 1 && infoOf(T).code_bits == 8 ? 1 : 0;

// Asks for a group's weights, of which R rows meet P panels at a time.
template <typename S, WeightFormat T, int R, int P> inline void fetchCodes(const char *codes) {
    constexpr size_t kBytes = codesOffset(T, 1) - codesOffset(T, 0);
    if constexpr (kOneStream<S> && P == 1) {
        fetch<kOneStreamAhead>(codes, kBytes);
    } else {
        fetchAhead<R, kFollowedCodes<S, T>>(codes, kBytes);
    }
}

// Adds group g of P panels, from panel `first` of the sums on, to the sums of R rows. x: their activations in the
// group.
template <typename S, WeightFormat T, CodeWidth X, int P, int R, int All>
inline void multiplyGroup(const char *const *panels, size_t g, const QuantRows &x, int first,
                          Products<S, R, All> &products) {
    const char *codes[P];
    Q3_UNROLL
    for (int p = 0; p < P; ++p) {
        codes[p] = panels[first + p] + codesOffset(T, g);
        fetchCodes<S, T, R, All>(codes[p]);
    }
    GroupDots<S, T, X, R, P> dots;
    dots.compute(x, codes);
    Q3_UNROLL
    for (int p = 0; p < P; ++p) {
        Q3_UNROLL
        for (int h = 0; h < S::kParts; ++h) {
            const typename S::F scale = weightScales<S, T>(panels[first + p], g, h);
            Q3_UNROLL
            for (int r = 0; r < R; ++r) {
                typename S::F &sum = products.sum[r][first + p][h];
                sum = S::fma(S::toFloat(Steps<S, T, X>::total(dots.sum[r][p][h], x.offsets + r)),
                             S::mul(scale, S::broadcast(x.scales + r)), sum);
            }
        }
    }
}

// Whether registers hold the integer and the float sums of R rows and P panels, when a panel's row is one vector.
template <typename S> constexpr bool fitTogether(int R, int P) {
    return S::kParts == 1 && 2 * R * P + P + 1 <= S::kRegisters;
}

// Rows of a tile of formats that take codes, whose panels are in cache. Where sums of two panels fit, six rows are
// chains enough.
template <typename S> constexpr int kQuantTileRows = S::kParts == 1 && S::kTileRows > 6 ? 6 : S::kTileRows;
// Rows of one whose panels come from memory: as many as fit but for two registers, so that every weight comes once, all
// along.
constexpr int kQuantStreamRows = 16;
static_assert(kQuantStreamRows <= kMaxStreamRows, "scratch has room for no more");

// How many panels R rows are multiplied with at once. Fewer than five rows are fast from cache with one panel, too.
template <typename S, int R, bool Streamed> constexpr int quantPanelsAtOnce() {
    if (kOneStream<S> && (Streamed || R < 5)) {
        return 1;
    }
    for (int p = 4; p > 1; p /= 2) {
        if (fitTogether<S>(R, p)) {
            return p;
        }
    }
    return panelsAtOnce<S, R>(R * S::kParts);
}

template <typename S, WeightFormat T, CodeWidth X> struct QuantPanelCall {
    const char *panels;
    size_t panel_bytes;
    uint32_t npanels, groups;
    const QuantRows &x;
    float *y;
    size_t ldy;
    bool accumulate;

    template <int R, bool Streamed> void rows() const {
        forPanelGroups<R, quantPanelsAtOnce<S, R, Streamed>()>(npanels, *this);
    }
    template <int R, int P> void tiles(uint32_t first, uint32_t apart) const {
        constexpr int kTogether = fitTogether<S>(R, P) ? P : 1;
        Products<S, R, P> products;
        float *out = y + first * kPanelRows;
        if (accumulate) {
            products.load(out, ldy, apart);
        }
        const char *at[P];
        Q3_UNROLL
        for (int p = 0; p < P; ++p) {
            at[p] = panels + (first + size_t{apart} * p) * panel_bytes;
        }
        for (uint32_t g = 0; g < groups; ++g) {
            const QuantRows rows = x.from(0, g);
            Q3_UNROLL
            for (int p = 0; p < P; p += kTogether) {
                multiplyGroup<S, T, X, kTogether>(at, g, rows, p, products);
            }
        }
        products.store(out, ldy, apart);
    }
};

template <typename S, WeightFormat T, CodeWidth X, bool Streamed = false>
void multiplyQuantPanels(const void *panels, size_t panel_bytes, uint32_t npanels, uint32_t groups, const QuantRows &x,
                         uint32_t rows, float *y, size_t ldy, bool accumulate) {
    using Call = QuantPanelCall<S, T, X>;
    withRows<Streamed ? kQuantStreamRows : kQuantTileRows<S>>(
        rows, RowsCall<Call, Streamed>{
                  {static_cast<const char *>(panels), panel_bytes, npanels, groups, x, y, ldy, accumulate}});
}

// The order that the kernels of a format want codes in. Those of affine formats multiply bytes (simd_affine.h).
template <typename S, WeightFormat T, CodeWidth X> constexpr CodeOrder codeOrder() {
    if constexpr (isAffine(T)) {
        return X == k8Bits ? kByteCodes : kSplitCodes;
    } else {
        return Steps<S, T, X>::kOrder;
    }
}

// Writes kLanes codes of a group, from index i on.
template <typename S, CodeOrder Order> inline void storeCodes(char *codes, uint32_t i, typename S::I code) {
    if constexpr (Order == kByteCodes) {
        S::narrowBytes(reinterpret_cast<int8_t *>(codes) + i, code);
    } else if constexpr (Order == kSplitCodes) {
        const typename S::I high = S::template shiftRightSigned<8>(S::addInt(code, S::setInt(128)));
        const typename S::I low = S::subInt(code, S::template shiftLeft<8>(high));
        S::narrowBytes(reinterpret_cast<int8_t *>(codes) + i, high);
        S::narrowBytes(reinterpret_cast<int8_t *>(codes) + kGroup + i, low);
    } else {
        static_assert(Order == kWordCodes, "no order of a vector kernel");
        S::narrow(reinterpret_cast<int16_t *>(codes) + i, S::swapMiddle(code));
    }
}

template <typename S, WeightFormat T, CodeWidth X>
void quantize(const float *x, uint32_t k, const QuantRows &out, uint32_t r) {
    constexpr uint32_t kVectors = kGroup / S::kLanes;
    constexpr int32_t kInfinity = 0x7f800000;
    for (uint32_t g = 0; g * kGroup < k; ++g) {
        const float *in = x + size_t{g} * kGroup;
        float padded[kGroup];
        if (k - g * kGroup < kGroup) {
            for (uint32_t i = 0; i < kGroup; ++i) {
                padded[i] = g * kGroup + i < k ? in[i] : 0.0F;
            }
            in = padded;
        }
        // As integers, magnitudes have the same order, and infinity and NaN are the largest.
        typename S::I top = S::setInt(0);
        Q3_UNROLL
        for (uint32_t v = 0; v < kVectors; ++v) {
            top = S::maxInt(top, S::andBits(S::bits(S::load(in + v * S::kLanes)), S::setInt(0x7fffffff)));
        }
        const int32_t bits = S::maxLanesInt(top);
        const bool bad = bits >= kInfinity;
        float largest;
        __builtin_memcpy(&largest, &bits, sizeof largest);
        const bool tiny = largest < kLeastScale;
        const typename S::F inverse = S::set(tiny ? 0.0F : largestCode(X) / largest);
        const QuantRows to = out.from(r, g);
        typename S::I sum = S::setInt(0);
        int32_t first_sum = 0;  // of the first 16 codes
        Q3_UNROLL
        for (uint32_t v = 0; v < kVectors; ++v) {
            const typename S::I code = bad ? S::setInt(0) : S::toInt(S::mul(S::load(in + v * S::kLanes), inverse));
            storeCodes<S, codeOrder<S, T, X>()>(to.codes, v * S::kLanes, code);
            sum = S::addInt(sum, code);
            if (isAffine(T) && (v + 1) * S::kLanes == kGroup / 2) {
                first_sum = S::sumLanesInt(sum);
            }
        }
        to.scales[0] = bad ? __builtin_nanf("") : (tiny ? 0.0F : largest / largestCode(X));
        const int32_t total = S::sumLanesInt(sum);
        to.offsets[0] = isAffine(T) ? packAffineSums<X>(first_sum, total - first_sum) : -infoOf(T).zero_code * total;
    }
}

template <typename S, WeightFormat T, CodeWidth X> constexpr CodeKernels codeKernels() {
    CodeKernels kernels{codeOrder<S, T, X>(), quantize<S, T, X>, multiplyQuantPanels<S, T, X>};
    if constexpr (kOneStream<S>) {
        kernels.stream = multiplyQuantPanels<S, T, X, true>;
    }
    return kernels;
}

}  // namespace
}  // namespace q3::cpu
