// Linear layers of bf16 and bf12 weights whose activations are rounded to bf16, or are sums of two such numbers
// (RoundedRows), for one instruction set S, see simd_table.h. Where S has an instruction that adds the products of
// pairs of bf16 (S::kDotsBf16), an entry of a row is such a pair; elsewhere it is two floats, and the same chain is run
// by multiply-adds.
#pragma once

#include "ops/cpu/kernels/kernels.h"
#include "ops/cpu/kernels/simd_float.h"

namespace q3::cpu {
namespace {

template <typename S> constexpr size_t kPairBytes = S::kDotsBf16 ? sizeof(uint32_t) : 2 * sizeof(float);

// A float as the bits of the nearest bf16, in the upper half of each lane.
template <typename S> inline typename S::I nearestBf16(typename S::F v) {
    const typename S::I bits = S::bits(v);
    const typename S::I odd = S::andBits(S::template shiftRight<16>(bits), S::setInt(1));
    const typename S::I rounded = S::addInt(bits, S::addInt(odd, S::setInt(0x7fff)));
    return S::andBits(S::quietNan(v, rounded), S::setBits(0xffff0000U));
}

// Writes kLanes values of a row, from an even k on, as one of its Pieces.
template <typename S, int Pieces> inline void storePiece(char *out, int piece, typename S::I upper) {
    if constexpr (S::kDotsBf16 && Pieces == 1) {
        return S::narrow(reinterpret_cast<int16_t *>(out), S::template shiftRight<16>(upper));
    }
    uint32_t bits[S::kLanes];
    S::storeBits(reinterpret_cast<char *>(bits), upper);
    for (int i = 0; i < S::kLanes; i += 2) {
        char *entry = out + (size_t{static_cast<unsigned>(i)} / 2 * Pieces + piece) * kPairBytes<S>;
        if constexpr (S::kDotsBf16) {
            const uint32_t pair = bits[i] >> 16 | bits[i + 1];
            __builtin_memcpy(entry, &pair, sizeof pair);
        } else {
            __builtin_memcpy(entry, bits + i, 2 * sizeof(float));
        }
    }
}

template <typename S, int Pieces> void roundRow(const float *x, uint32_t k, char *out) {
    for (uint32_t i = 0; i < roundUp(k, kGroup); i += S::kLanes) {
        typename S::F v = S::zero();
        if (i + S::kLanes <= k) {
            v = S::load(x + i);
        } else if (i < k) {
            v = S::loadFirst(x + i, k - i);
        }
        char *to = out + size_t{i} / 2 * Pieces * kPairBytes<S>;
        const typename S::I upper = nearestBf16<S>(v);
        storePiece<S, Pieces>(to, 0, upper);
        if constexpr (Pieces == 2) {
            storePiece<S, Pieces>(to, 1, nearestBf16<S>(S::sub(v, S::fromBits(upper))));
        }
    }
}

// Adds a pair of k of all panels, pair(p) of panel p, times the rows' entries from x on.
template <typename S, int Pieces, int R, int P, typename Load>
inline Q3_INLINE void addPair(const Load &pair, const char *x, size_t row_bytes, Products<S, R, P> &products) {
    if constexpr (S::kDotsBf16) {
        Pair<S> pairs[P];
        Q3_UNROLL
        for (int p = 0; p < P; ++p) {
            pairs[p] = pair(p);
        }
        Q3_UNROLL
        for (int r = 0; r < R; ++r) {
            Q3_UNROLL
            for (int piece = 0; piece < Pieces; ++piece) {
                const typename S::I value = S::broadcastBits(x + r * row_bytes + piece * kPairBytes<S>);
                Q3_UNROLL
                for (int p = 0; p < P; ++p) {
                    Q3_UNROLL
                    for (int h = 0; h < S::kParts; ++h) {
                        products.sum[r][p][h] = S::dotBf16(products.sum[r][p][h], pairs[p].words[h], value);
                    }
                }
            }
        }
    } else {
        const auto *values = reinterpret_cast<const float *>(x);
        const size_t ldx = row_bytes / sizeof(float);
        if constexpr (Products<S, R, P>::meetsAll(P * S::kParts)) {
            Pair<S> pairs[P];
            Q3_UNROLL
            for (int p = 0; p < P; ++p) {
                pairs[p] = pair(p);
            }
            Q3_UNROLL
            for (int piece = 0; piece < Pieces; ++piece) {
                products.add([&](int p) { return pairs[p].column(true); }, values + 2 * piece + 1, ldx);
                products.add([&](int p) { return pairs[p].column(false); }, values + 2 * piece, ldx);
            }
        } else {
            Q3_UNROLL
            for (int p = 0; p < P; ++p) {
                const Pair<S> words = pair(p);
                Q3_UNROLL
                for (int piece = 0; piece < Pieces; ++piece) {
                    products.addPanel(p, words.column(true), values + 2 * piece + 1, ldx);
                    products.addPanel(p, words.column(false), values + 2 * piece, ldx);
                }
            }
        }
    }
}

// Rows up to which the hardware follows (fetchAhead).
template <typename S, WeightFormat T> constexpr int kFollowedRounded = S::kDotsBf16 ? 6 : kFollowedFloats<S, T>;

// How many panels R rows are multiplied with at once, `most` or fewer, so that sums, pairs and a value of x stay in
// registers. Multiply-adds need a panel's pairs only while they are added.
template <typename S, int R> constexpr int pairPanelsAtOnce(int most) {
    for (int p = most; p > 1; p /= 2) {
        if (R * p * S::kParts + (S::kDotsBf16 ? p : 2) * S::kParts + 1 <= S::kRegisters) {
            return p;
        }
    }
    return 1;
}

// Whether panels are read as one stream. Two pieces make chains twice as long, too few of which one panel has; bf12
// takes more to decode than one stream brings, and is read in two.
template <typename S, int Pieces> constexpr bool kPairStreams = kOneStream<S> && S::kDotsBf16 && Pieces == 1;

// Rows of a tile of bf16 whose panels come from memory: as many as fit, so that every weight comes once, all along.
constexpr int kBf16StreamRows = static_cast<int>(kMaxStreamRows);

// How many panels R rows are multiplied with at once. More than ten rows that are streamed take two, as loads of x
// would hold up multiply-adds, while sums fit.
template <typename S, WeightFormat T, int Pieces, int R, bool Streamed> constexpr int roundedPanelsAtOnce() {
    if (Streamed && R < 11) {
        return 1;
    }
    return pairPanelsAtOnce<S, R>(Streamed || (T == kBf12 && kPairStreams<S, Pieces>) ? 2 : 4);
}

template <typename S, WeightFormat T, int Pieces> struct RoundedCall {
    static constexpr size_t kEntry = Pieces * kPairBytes<S>;

    const char *panels;
    size_t panel_bytes;
    uint32_t npanels, k;
    const RoundedRows &x;  // a copy would be loaded whole where halves were stored just before, which waits
    float *y;
    size_t ldy;
    bool accumulate;

    template <int R, bool Streamed> void rows() const {
        forPanelGroups<R, roundedPanelsAtOnce<S, T, Pieces, R, Streamed>()>(npanels, *this);
    }
    template <int R, int P> void tiles(uint32_t first, uint32_t apart) const {
        const char *from = panels + first * panel_bytes;
        float *to = y + first * kPanelRows;
        const size_t stride = panel_bytes * apart;
        Products<S, R, P> products;
        if (accumulate) {
            products.load(to, ldy, apart);
        }
        if constexpr (T == kBf16) {
            for (uint32_t i = 0; i < k; i += 2) {
                Q3_UNROLL
                for (int p = 0; p < P; ++p) {
                    ask<R, P>(from + p * stride + panelOffset(T, i), panelOffset(T, 2));
                }
                addPair<S, Pieces>(
                    [&](int p) Q3_INLINE { return loadPair<S>(from + p * stride + size_t{i} * kPanelRows * 2); },
                    x.data + i / 2 * kEntry, x.row_bytes, products);
            }
        } else {
            for (uint32_t g = 0; g * kGroup < k; ++g) {
                group<R, P>(from + g * kBf12GroupBytes, stride, x.data + size_t{g} * kGroup / 2 * kEntry, products);
            }
        }
        products.store(to, ldy, apart);
    }

private:
    template <int R, int P> static void ask(const char *weights, size_t bytes) {
        if constexpr (kPairStreams<S, Pieces> && (T == kBf12 || P == 1)) {
            fetch<kOneStreamAhead>(weights, bytes);
        } else {
            fetchAhead<R, T == kBf12 ? 0 : kFollowedRounded<S, T>>(weights, bytes);
        }
    }

    // A whole group of bf12.
    template <int R, int P>
    void group(const char *first, size_t stride, const char *at, Products<S, R, P> &products) const {
        typename S::Bf12Table table[P];
        uint32_t pairs[P];
        const uint16_t *raw[P];
        Q3_UNROLL
        for (int p = 0; p < P; ++p) {
            const Bf12Header header = bf12Header(first + p * stride);
            table[p] = S::tableBf12(header.base);
            pairs[p] = header.pairs;
            raw[p] = header.raw;
        }
        for (uint32_t quad = 0; quad < kGroup / 4; ++quad) {
            Q3_UNROLL
            for (int p = 0; p < P; ++p) {
                ask<R, P>(first + p * stride + quad * kBf12QuadBytes, kBf12QuadBytes);
            }
            Q3_UNROLL
            for (int second = 0; second < 2; ++second, at += kEntry) {
                addPair<S, Pieces>(
                    [&](int p) Q3_INLINE {
                        return pairBf12<S>(first + p * stride, quad, second != 0, table[p], pairs[p], raw[p]);
                    },
                    at, x.row_bytes, products);
            }
        }
    }
};

template <typename S, WeightFormat T, int Pieces, bool Streamed = false>
void multiplyRounded(const void *panels, size_t panel_bytes, uint32_t npanels, uint32_t k, const RoundedRows &x,
                     uint32_t rows, float *y, size_t ldy, bool accumulate) {
    using Call = RoundedCall<S, T, Pieces>;
    withRows<Streamed ? kBf16StreamRows : S::kTileRows>(
        rows,
        RowsCall<Call, Streamed>{{static_cast<const char *>(panels), panel_bytes, npanels, k, x, y, ldy, accumulate}});
}

template <typename S> constexpr void addRounded(KernelTable &table) {
    table.pair_bytes = kPairBytes<S>;
    table.rounded_tile_rows = S::kTileRows;
    if constexpr (kPairStreams<S, 1>) {
        table.streamBf16 = multiplyRounded<S, kBf16, 1, true>;
        table.bf16_stream_rows = kBf16StreamRows;
    }
    table.multiplyRounded[0][kBf16] = multiplyRounded<S, kBf16, 1>;
    table.multiplyRounded[1][kBf16] = multiplyRounded<S, kBf16, 2>;
    table.multiplyRounded[0][kBf12] = multiplyRounded<S, kBf12, 1>;
    table.multiplyRounded[1][kBf12] = multiplyRounded<S, kBf12, 2>;
    table.round[0] = roundRow<S, 1>;
    table.round[1] = roundRow<S, 2>;
}

}  // namespace
}  // namespace q3::cpu
