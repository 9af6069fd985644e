// Attention's products for one instruction set S, see simd_table.h: a register tile of many rows from floats, and few
// rows straight from the KV cache.
#pragma once

#include "ops/cpu/kernels/kernels.h"
#include "ops/cpu/kernels/simd_bf16.h"
#include "ops/cpu/kernels/simd_float.h"

namespace q3::cpu {
namespace {

template <typename S> struct TileCall {
    const float *a;
    size_t a_row, a_col;
    const float *const *b;
    size_t ldb;
    uint32_t k;
    float *const *c;
    size_t ldc;
    uint32_t npanels;
    bool accumulate;

    template <int R> void call() const { forGroups<R, panelsAtOnce<S, R>(0)>(npanels, *this); }
    // R rows times P panels, all in registers.
    template <int R, int P> void group(uint32_t first) const {
        Products<S, R, P> products;
        if (accumulate) {
            products.load(c + first, ldc);
        }
        for (uint32_t i = 0; i < k; ++i) {
            products.add([&](int p) { return loadColumn<S, kF32>(b[first + p], i * ldb); }, a + i * a_col, a_row);
        }
        products.store(c + first, ldc);
    }
};

template <typename S>
void tile(const float *a, size_t a_row, size_t a_col, const float *const *b, size_t ldb, uint32_t k, float *const *c,
          size_t ldc, uint32_t rows, uint32_t npanels, bool accumulate) {
    withRows<S::kTileRows>(rows, TileCall<S>{a, a_row, a_col, b, ldb, k, c, ldc, npanels, accumulate});
}

// The addresses of P tiles from `first` on, and those to prefetch from while they are read: the P tiles after them, or
// the same tiles where none follow. L1 would not hold tiles from further ahead until they are used.
template <int P> struct TilesAt {
    const char *at[P];
    const char *next[P];
    TilesAt(const KvTiles &tiles, uint32_t first) {
        Q3_UNROLL
        for (int p = 0; p < P; ++p) {
            at[p] = tiles.at[first + p];
            next[p] = first + P + p < tiles.count + tiles.ahead ? tiles.at[first + P + p] : at[p];
        }
    }
};

// Rows of 16 elements that share a cache line.
constexpr uint32_t rowsPerLine(WeightFormat format) {
    return static_cast<uint32_t>(64 / (kPanelRows * elementBytes(format)));
}

template <typename S, WeightFormat T> struct ScoreCall {
    const float *q;
    size_t ldq;
    const KvTiles &keys;
    uint32_t dh;
    float *scores;
    size_t lds;

    template <int R> void call() const { forGroups<R, panelsAtOnce<S, R>(0)>(keys.count, *this); }
    template <int R, int P> void group(uint32_t first) const {
        constexpr uint32_t kStep = rowsPerLine(T);
        const TilesAt<P> tile(keys, first);
        Products<S, R, P> products;
        uint32_t i = 0;
        for (; i + kStep <= dh; i += kStep) {
            Q3_UNROLL
            for (int p = 0; p < P; ++p) {
                __builtin_prefetch(tile.next[p] + size_t{i} * kPanelRows * elementBytes(T));
            }
            Q3_UNROLL
            for (uint32_t j = 0; j < kStep; ++j) {
                add(products, tile, i + j);
            }
        }
        for (; i < dh; ++i) {
            add(products, tile, i);
        }
        products.store(scores + size_t{first} * kPanelRows, lds, 1);
    }
    template <int R, int P> void add(Products<S, R, P> &products, const TilesAt<P> &tile, uint32_t i) const {
        products.add([&](int p) { return loadColumn<S, T>(tile.at[p], size_t{i} * kPanelRows); }, q + i, ldq);
    }
};

template <typename S, WeightFormat T>
void score(const float *q, size_t ldq, uint32_t rows, const KvTiles &keys, uint32_t dh, float *scores, size_t lds) {
    withRows<S::kTileRows>(rows, ScoreCall<S, T>{q, ldq, keys, dh, scores, lds});
}

template <typename S, WeightFormat T> struct WeighCall {
    const float *weights;
    size_t ldw;
    const KvTiles &values;
    uint32_t nkeys, npanels;
    float *out;
    size_t ldo;
    bool accumulate;

    // Few rows take tile after tile, because one stream through memory is read fastest, although their sums are stored
    // after every tile. Many rows compute longer than they read, so their sums stay in registers over all tiles.
    template <int R> void call() const {
        constexpr int kPanels = panelsAtOnce<S, R>(0) > 1 ? 2 : 1;
        const uint32_t step = kPanels > 1 ? 1 : values.count;
        for (uint32_t t = 0; t < values.count; t += step) {
            forGroups<R, kPanels>(npanels, Part{*this, t, step});
        }
    }

    struct Part {
        const WeighCall &of;
        uint32_t begin, ntiles;
        template <int R, int P> void group(uint32_t first) const { of.part<R, P>(first, begin, ntiles); }
    };

    template <int R, int P> void part(uint32_t first, uint32_t begin, uint32_t ntiles) const {
        constexpr size_t kSize = elementBytes(T);
        Products<S, R, P> products;
        float *to = out + size_t{first} * kPanelRows;
        if (accumulate || begin > 0) {
            products.load(to, ldo, 1);
        }
        for (uint32_t t = begin; t < begin + ntiles; ++t) {
            const uint32_t key = t * kPanelRows;
            const uint32_t end = nkeys - key < kPanelRows ? nkeys - key : kPanelRows;
            const char *at = values.at[t] + valueElement(first, 0) * kSize;
            const char *fetch = at + valueElement(2, 0) * kSize;
            if (first + 2 >= npanels) {
                fetch = t + ntiles < values.count + values.ahead ? values.at[t + ntiles] : at;
            }
            for (uint32_t i = 0; i < end; ++i) {
                Q3_UNROLL
                for (int p = 0; p < P; ++p) {
                    // Two panels of 16-bit values share every cache line: together, the first panel prefetches it;
                    // alone, each panel prefetches every other line.
                    if (kSize == 4 || (P == 1 ? (i + first) % 2 == 0 : p == 0)) {
                        __builtin_prefetch(fetch + valueElement(p, i) * kSize);
                    }
                }
                products.add([&](int p) { return loadColumn<S, T>(at, valueElement(p, i)); }, weights + key + i, ldw);
            }
        }
        products.store(to, ldo, 1);
    }
};

template <typename S, WeightFormat T>
void weigh(const float *weights, size_t ldw, uint32_t rows, const KvTiles &values, uint32_t nkeys, uint32_t npanels,
           float *out, size_t ldo, bool accumulate) {
    withRows<S::kTileRows>(rows, WeighCall<S, T>{weights, ldw, values, nkeys, npanels, out, ldo, accumulate});
}

constexpr size_t kPairRowBytes = kPanelRows * 2 * sizeof(uint16_t);  // of a pair and panel

// Whether tiles are asked for ahead. CPUs with such instructions follow two rows by themselves, faster than when
// requests take the place of their own.
template <typename S> constexpr bool asksForTiles(int rows) {
    return !S::kDotsBf16 || rows > 2;
}

template <typename S> struct ScorePairsCall {
    const RoundedRows &q;
    const KvTiles &keys;
    uint32_t dh;
    float *scores;
    size_t lds;

    template <int R> void call() const { forGroups<R, pairPanelsAtOnce<S, R>(4)>(keys.count, *this); }
    template <int R, int P> void group(uint32_t first) const {
        const TilesAt<P> tile(keys, first);
        Products<S, R, P> products;
        for (uint32_t i = 0; i < dh / 2; ++i) {
            if constexpr (asksForTiles<S>(R)) {
                Q3_UNROLL
                for (int p = 0; p < P; ++p) {
                    __builtin_prefetch(tile.next[p] + i * kPairRowBytes);
                }
            }
            addPair<S, 1>([&](int p) Q3_INLINE { return loadPair<S>(tile.at[p] + i * kPairRowBytes); },
                          q.data + i * kPairBytes<S>, q.row_bytes, products);
        }
        products.store(scores + size_t{first} * kPanelRows, lds, 1);
    }
};

template <typename S>
void scorePairs(const RoundedRows &q, uint32_t rows, const KvTiles &keys, uint32_t dh, float *scores, size_t lds) {
    withRows<S::kTileRows>(rows, ScorePairsCall<S>{q, keys, dh, scores, lds});
}

template <typename S> struct WeighPairsCall {
    const RoundedRows &weights;
    const KvTiles &values;
    uint32_t nkeys, npanels;
    float *out;
    size_t ldo;
    bool accumulate;

    // Few rows take all eight panels of a head of 128, whose tiles are then read as they lie.
    template <int R> void call() const { forGroups<R, pairPanelsAtOnce<S, R>(8)>(npanels, *this); }
    template <int R, int P> void group(uint32_t first) const {
        constexpr uint32_t kPairs = kPanelRows / 2;  // of a tile
        constexpr uint32_t kAhead = 2;               // pairs between what is multiplied and what is prefetched
        const size_t step = npanels * kPairRowBytes;
        float *to = out + size_t{first} * kPanelRows;
        Products<S, R, P> products;
        if (accumulate) {
            products.load(to, ldo, 1);
        }
        for (uint32_t t = 0; t < values.count; ++t) {
            const uint32_t left = nkeys - t * kPanelRows;
            const uint32_t whole = left / 2 < kPairs ? left / 2 : kPairs;
            const char *at = values.at[t] + first * kPairRowBytes;
            const char *next = t + 1 < values.count + values.ahead ? values.at[t + 1] + first * kPairRowBytes : at;
            const char *x = weights.data + size_t{t} * kPairs * kPairBytes<S>;
            for (uint32_t i = 0; i < whole; ++i) {
                if constexpr (asksForTiles<S>(R)) {
                    const char *fetch =
                        i + kAhead < kPairs ? at + (i + kAhead) * step : next + (i + kAhead - kPairs) * step;
                    Q3_UNROLL
                    for (int p = 0; p < P; ++p) {
                        __builtin_prefetch(fetch + p * kPairRowBytes);
                    }
                }
                addPair<S, 1>([&](int p) Q3_INLINE { return loadPair<S>(at + i * step + p * kPairRowBytes); },
                              x + i * kPairBytes<S>, weights.row_bytes, products);
            }
            if (whole < kPairs && left % 2 != 0) {  // whatever lies in the slot of the key that is not there
                addPair<S, 1>(
                    [&](int p) Q3_INLINE {
                        Pair<S> pair = loadPair<S>(at + whole * step + p * kPairRowBytes);
                        Q3_UNROLL
                        for (int h = 0; h < S::kParts; ++h) {
                            pair.words[h] = S::andBits(pair.words[h], S::setBits(0xffff));
                        }
                        return pair;
                    },
                    x + whole * kPairBytes<S>, weights.row_bytes, products);
            }
        }
        products.store(to, ldo, 1);
    }
};

template <typename S>
void weighPairs(const RoundedRows &weights, uint32_t rows, const KvTiles &values, uint32_t nkeys, uint32_t npanels,
                float *out, size_t ldo, bool accumulate) {
    withRows<S::kTileRows>(rows, WeighPairsCall<S>{weights, values, nkeys, npanels, out, ldo, accumulate});
}

}  // namespace
}  // namespace q3::cpu
