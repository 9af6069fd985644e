// Layers of FP8 weights for one instruction set S, see simd_table.h. Four k of a row are one 32-bit lane, which becomes
// two pairs of bf16 in registers; a block of 128 k is then a bf16 layer's, whose sums meet a scale each.
#pragma once

#include "ops/cpu/kernels/kernels.h"
#include "ops/cpu/kernels/simd_bf16.h"
#include "ops/cpu/kernels/simd_float.h"

namespace q3::cpu {
namespace {

// 16-bit words that hold e4m3 bytes as bf16. The exponents' biases differ by 120; what is subnormal there is not here.
template <typename S> inline Q3_INLINE typename S::I wordsF8(typename S::I bytes) {
    const typename S::I magnitude = S::andBits(bytes, S::setBits(0x007f007fU));
    const typename S::I sign = S::template shiftLeft<8>(S::andBits(bytes, S::setBits(0x00800080U)));
    const typename S::I normal = S::addInt(S::template shiftLeft<4>(magnitude), S::setBits(0x3c003c00U));
    return S::addInt(sign, S::subnormalF8(magnitude, normal));
}

// Four k of a panel as two pairs of bf16. Where they are computed, a pair is when it is asked for; where they are
// looked up, both are at once.
template <typename S, bool LooksUp = S::kLooksUpF8> struct DecoderF8 {
    static constexpr int kRegisters = 2 * S::kParts;  // that decoding takes for each panel, and ...
    static constexpr int kShared = 0;                 // ... for all
    struct Quad {
        const char *codes;
        Pair<S> pair(bool second) const {
            Pair<S> pair;
            Q3_UNROLL
            for (int h = 0; h < S::kParts; ++h) {
                const typename S::I bytes = S::loadBits(codes + size_t{4} * S::kLanes * h);
                pair.words[h] = wordsF8<S>(second ? S::widenUpper(bytes) : S::widenLower(bytes));
            }
            return pair;
        }
    };
    inline Q3_INLINE Quad quad(const char *codes) const { return {codes}; }
};
template <typename S> struct DecoderF8<S, true> {
    static constexpr int kRegisters = 2 * S::kParts;
    static constexpr int kShared = S::kF8TableRegisters;
    struct Quad {
        Pair<S> pairs[2];
        const Pair<S> &pair(bool second) const { return pairs[second ? 1 : 0]; }
    };
    typename S::F8Table table = S::tableF8();
    inline Q3_INLINE Quad quad(const char *codes) const {
        Quad quad;
        Q3_UNROLL
        for (int h = 0; h < S::kParts; ++h) {
            S::lookUpF8(S::loadBits(codes + size_t{4} * S::kLanes * h), table, quad.pairs[0].words[h],
                        quad.pairs[1].words[h]);
        }
        return quad;
    }
};

constexpr size_t kF8QuadBytes = size_t{4} * kPanelRows;

template <typename S> void expandF8(const char *codes, uint32_t k, uint16_t *out) {
    const DecoderF8<S> decoder;
    auto *to = reinterpret_cast<char *>(out);
    for (uint32_t i = 0; i < k; i += 4, codes += kF8QuadBytes) {
        __builtin_prefetch(codes + panelOffset(kF8, kF8Group));
        const auto quad = decoder.quad(codes);
        Q3_UNROLL
        for (int second = 0; second < 2; ++second) {
            const Pair<S> pair = quad.pair(second != 0);
            Q3_UNROLL
            for (int h = 0; h < S::kParts; ++h, to += size_t{4} * S::kLanes) {
                S::storeBits(to, pair.words[h]);
            }
        }
    }
}

template <typename S>
void addScaled(float *y, size_t ldy, const float *part, size_t ldp, const float *scale, uint32_t rows) {
    for (int h = 0; h < S::kParts; ++h) {
        const int at = h * S::kLanes;
        const typename S::F factor = S::load(scale + at);
        for (uint32_t r = 0; r < rows; ++r) {
            float *to = y + r * ldy + at;
            S::store(to, S::fma(factor, S::load(part + r * ldp + at), S::load(to)));
        }
    }
}

// What f8 is multiplied with: add<R, P>(quad, i, count, products) adds `count` (1 to 4) k of all panels, quad(p) of
// panel p, times those of the rows from k = i, a multiple of 4, on.
struct FloatRowsF8 {
    const float *x;
    size_t ldx;

    template <typename S, int R, int P, typename Quads>
    inline Q3_INLINE void add(const Quads &quads, size_t i, uint32_t count, Products<S, R, P> &products) const {
        Q3_UNROLL
        for (uint32_t at = 0; at < 4; at += 2) {
            Q3_UNROLL
            for (int p = 0; p < P; ++p) {
                const Pair<S> pair = quads[p].pair(at > 0);
                if (at < count) {
                    products.addPanel(p, pair.column(false), x + i + at, ldx);
                }
                if (at + 1 < count) {
                    products.addPanel(p, pair.column(true), x + i + at + 1, ldx);
                }
            }
        }
    }
};

template <int Pieces> struct RoundedRowsF8 {
    const RoundedRows &x;

    template <typename S, int R, int P, typename Quads>
    inline Q3_INLINE void add(const Quads &quads, size_t i, uint32_t count, Products<S, R, P> &products) const {
        constexpr size_t kEntry = Pieces * kPairBytes<S>;
        const char *at = x.data + i / 2 * kEntry;
        addPair<S, Pieces>([&](int p) Q3_INLINE { return quads[p].pair(false); }, at, x.row_bytes, products);
        if (count > 2) {
            addPair<S, Pieces>([&](int p) Q3_INLINE { return quads[p].pair(true); }, at + kEntry, x.row_bytes,
                               products);
        }
    }
};

// How many panels R rows are multiplied with at once, so that sums and what decoding takes stay in registers.
template <typename S, int R> constexpr int panelsAtOnceF8() {
    using Decoder = DecoderF8<S>;
    for (int p = 4; p > 1; p /= 2) {
        const int decoded = (S::kDotsBf16 ? p : 1) * Decoder::kRegisters;
        if (R * p * S::kParts + decoded + Decoder::kShared + 1 <= S::kRegisters) {
            return p;
        }
    }
    return 1;
}

template <typename S, typename Rows> struct PanelCallF8 {
    const char *panels;
    size_t panel_bytes;
    uint32_t npanels, k;
    Rows x;
    float *y;
    size_t ldy;
    bool accumulate;

    template <int R> void call() const { forPanelGroups<R, panelsAtOnceF8<S, R>()>(npanels, *this); }
    template <int R, int P> void tiles(uint32_t first, uint32_t apart) const {
        const DecoderF8<S> decoder;
        const char *group = panels + first * panel_bytes;
        const size_t stride = panel_bytes * apart;
        float *to = y + first * kPanelRows;
        for (uint32_t k0 = 0; k0 < k; k0 += kF8Group, group += panelOffset(kF8, kF8Group)) {
            const uint32_t count = k - k0 < kF8Group ? k - k0 : kF8Group;
            Products<S, R, P> block;
            const char *codes[P];
            Q3_UNROLL
            for (int p = 0; p < P; ++p) {
                codes[p] = group + p * stride + kF8HeadBytes;
            }
            const auto add = [&](uint32_t i, uint32_t left) Q3_INLINE {
                typename DecoderF8<S>::Quad quads[P];
                Q3_UNROLL
                for (int p = 0; p < P; ++p) {
                    const char *at = codes[p] + i / 4 * kF8QuadBytes;
                    fetchAhead<R, 0, S::kParts == 1 ? 2048 : 256, S::kParts == 1 ? 4 : 1>(at, kF8QuadBytes);
                    quads[p] = decoder.quad(at);
                }
                x.template add<S, R, P>(quads, size_t{k0} + i, left, block);
            };
            uint32_t i = 0;
            for (; i + 4 <= count; i += 4) {
                add(i, 4);
            }
            if (i < count) {
                add(i, count - i);
            }
            const bool begun = accumulate || k0 > 0;
            block.each([&](int r, int p, int h) Q3_INLINE {
                float *sum = to + r * ldy + size_t{apart} * kPanelRows * p + h * S::kLanes;
                const auto *scale = reinterpret_cast<const float *>(group + p * stride) + h * S::kLanes;
                S::store(sum, S::fma(S::load(scale), block.sum[r][p][h], begun ? S::load(sum) : S::zero()));
            });
        }
    }
};

template <typename S>
void multiplyF8(const void *panels, size_t panel_bytes, uint32_t npanels, uint32_t k, const float *x, size_t ldx,
                uint32_t rows, float *y, size_t ldy, bool accumulate) {
    withRows<S::kTileRows>(
        rows, PanelCallF8<S, FloatRowsF8>{
                  static_cast<const char *>(panels), panel_bytes, npanels, k, {x, ldx}, y, ldy, accumulate});
}

template <typename S, int Pieces>
void multiplyRoundedF8(const void *panels, size_t panel_bytes, uint32_t npanels, uint32_t k, const RoundedRows &x,
                       uint32_t rows, float *y, size_t ldy, bool accumulate) {
    withRows<S::kTileRows>(rows,
                           PanelCallF8<S, RoundedRowsF8<Pieces>>{
                               static_cast<const char *>(panels), panel_bytes, npanels, k, {x}, y, ldy, accumulate});
}

template <typename S> constexpr void addF8(KernelTable &table) {
    table.multiplyPanels[kF8] = multiplyF8<S>;
    table.multiplyRounded[0][kF8] = multiplyRoundedF8<S, 1>;
    table.multiplyRounded[1][kF8] = multiplyRoundedF8<S, 2>;
    table.expandF8 = expandF8<S>;
    table.addScaled = addScaled<S>;
}

}  // namespace
}  // namespace q3::cpu
