// Linear layers of exact weights (f32, f16, bf16, bf12) for one instruction set S, see simd_table.h. A panel's 16 rows
// are S::kParts vectors of S::kLanes floats.
#pragma once

#include "ops/cpu/kernels/kernels.h"

// Accumulators live in registers only if the compiler unrolls the loops over them, which -O3 alone does not promise.
// Loops of one kernel are written out with this macro and not with a helper that takes a lambda: GCC inlines such
// lambdas later or not at all, which changes the order of loads, moves accumulators to memory, and drops those that do
// nothing but prefetch, since it takes them for functions without effect.
#define Q3_UNROLL _Pragma("GCC unroll 32")
#define Q3_INLINE __attribute__((always_inline))

namespace q3::cpu {
namespace {

// A panel's 16 weights at one k.
template <typename S> struct Column {
    typename S::F part[S::kParts];
};

// kLanes columns starting at element `index` of plain row-major data.
template <typename S, WeightFormat T> inline typename S::F loadPlain(const void *data, size_t index) {
    if constexpr (T == kF32) {
        return S::load(static_cast<const float *>(data) + index);
    } else if constexpr (T == kF16) {
        return S::loadF16(static_cast<const uint16_t *>(data) + index);
    } else {
        static_assert(T == kBf16, "no element of this format");
        return S::loadBf16(static_cast<const uint16_t *>(data) + index);
    }
}

template <typename S, WeightFormat T> inline Column<S> loadColumn(const void *data, size_t index) {
    Column<S> column;
    Q3_UNROLL
    for (int h = 0; h < S::kParts; ++h) {
        column.part[h] = loadPlain<S, T>(data, index + h * S::kLanes);
    }
    return column;
}

// Two k of a bf16 panel: even k low, odd k high in each word.
template <typename S> struct Pair {
    typename S::I words[S::kParts];

    Column<S> column(bool odd) const {
        Column<S> column;
        Q3_UNROLL
        for (int h = 0; h < S::kParts; ++h) {
            column.part[h] =
                S::fromBits(odd ? S::andBits(words[h], S::setBits(0xffff0000U)) : S::template shiftLeft<16>(words[h]));
        }
        return column;
    }
};

template <typename S> inline Pair<S> loadPair(const char *words) {
    Pair<S> pair;
    Q3_UNROLL
    for (int h = 0; h < S::kParts; ++h) {
        pair.words[h] = S::loadBits(words + h * S::kLanes * 4);
    }
    return pair;
}

// The products of R rows of x with P panels.
template <typename S, int R, int P> struct Products {
    typename S::F sum[R][P][S::kParts];

    Products() {
        each([&](int r, int p, int h) Q3_INLINE { sum[r][p][h] = S::zero(); });
    }

    // Calls use(row, panel, part) for every sum; use must be Q3_INLINE.
    template <typename Use> static inline Q3_INLINE void each(const Use &use) {
        Q3_UNROLL
        for (int r = 0; r < R; ++r) {
            Q3_UNROLL
            for (int p = 0; p < P; ++p) {
                Q3_UNROLL
                for (int h = 0; h < S::kParts; ++h) {
                    use(r, p, h);
                }
            }
        }
    }

    // Whether a row's value of x is loaded into a register once for all panels, when `fixed` more registers are in use.
    // Otherwise every panel reads it from L1 again: with many rows, these loads would hold up multiply-adds; with few,
    // this is no slower.
    static constexpr bool meetsAll(int fixed) {
        return R > 2 && P > 1 && (R + 1) * P * S::kParts + 1 + fixed <= S::kRegisters;
    }

    // Adds one k of all panels, column(p) of panel p, times x[r][k].
    template <typename Columns> inline void add(const Columns &column, const float *x, size_t ldx) {
        if constexpr (meetsAll(0)) {
            Column<S> columns[P];
            Q3_UNROLL
            for (int p = 0; p < P; ++p) {
                columns[p] = column(p);
            }
            Q3_UNROLL
            for (int r = 0; r < R; ++r) {
                const typename S::F value = S::broadcast(x + r * ldx);
                Q3_UNROLL
                for (int p = 0; p < P; ++p) {
                    Q3_UNROLL
                    for (int h = 0; h < S::kParts; ++h) {
                        sum[r][p][h] = S::accumulate(sum[r][p][h], columns[p].part[h], value);
                    }
                }
            }
        } else {
            Q3_UNROLL
            for (int p = 0; p < P; ++p) {
                addPanel(p, column(p), x, ldx);
            }
        }
    }
    // Adds one k of panel p alone.
    inline void addPanel(int p, const Column<S> &column, const float *x, size_t ldx) {
        Q3_UNROLL
        for (int r = 0; r < R; ++r) {
            const typename S::F value = S::broadcast(x + r * ldx);
            Q3_UNROLL
            for (int h = 0; h < S::kParts; ++h) {
                sum[r][p][h] = S::accumulate(sum[r][p][h], column.part[h], value);
            }
        }
    }

    // Load or store the sums of panel p from or to c[p].
    void load(float *const *c, size_t ldc) {
        each([&](int r, int p, int h) Q3_INLINE { sum[r][p][h] = S::load(c[p] + r * ldc + h * S::kLanes); });
    }

    void store(float *const *c, size_t ldc) const {
        each([&](int r, int p, int h) Q3_INLINE { S::store(c[p] + r * ldc + h * S::kLanes, sum[r][p][h]); });
    }

    // The same for panels that lie `apart` panels from each other in y.
    void load(float *y, size_t ldy, size_t apart) {
        float *c[P];
        places(y, apart, c);
        load(c, ldy);
    }
    void store(float *y, size_t ldy, size_t apart) const {
        float *c[P];
        places(y, apart, c);
        store(c, ldy);
    }

private:
    static void places(float *y, size_t apart, float *(&c)[P]) {
        Q3_UNROLL
        for (int p = 0; p < P; ++p) {
            c[p] = y + p * apart * kPanelRows;
        }
    }
};

// Asks for the weights that lie Distance bytes ahead; 0: for none.
template <size_t Distance> inline void fetch(const char *weights, size_t bytes) {
    if constexpr (Distance > 0) {
        Q3_UNROLL
        for (size_t line = 0; line < bytes; line += 64) {
            __builtin_prefetch(weights + Distance + line);
        }
    }
}

// Whether weights from memory are read as one stream, kOneStreamAhead bytes ahead, whatever the number of rows. With
// AVX-512 that gives the most of memory (docs/cpu-backend.md): two and more streams with requests disturb each other,
// and without requests the hardware's prefetchers stop at the end of every 4 KiB.
template <typename S> constexpr bool kOneStream = S::kParts == 1 && S::kByteDots;
constexpr size_t kOneStreamAhead = 8192;

// Prefetches the weights that R rows are multiplied with a little later, where several streams are read. Up to Followed
// rows do little but load, four streams at a time, which the hardware follows by itself: requests hinder it. With more,
// arithmetic keeps the core from running ahead of its loads. One row of weights that take long to decode is helped by
// near requests, and hindered by far ones; Few rows of them by Near ones.
template <int R, int Followed, size_t Near = 256, int Few = 1>
inline void fetchAhead(const char *weights, size_t bytes) {
    static_assert(Near > 0 && Few > 0, "0 asks for nothing by Followed alone");
    fetch<R <= Followed ? 0 : (R > Few ? 4096 : Near)>(weights, bytes);
}

// Rows of floats up to which the hardware follows (fetchAhead): more where a panel's row is one vector.
template <typename S, WeightFormat T> constexpr int kFollowedFloats = infoOf(T).plain ? (S::kParts == 1 ? 2 : 1) : 0;

template <typename S, WeightFormat T, int R, int P>
inline void multiplyFloats(const char *panels, size_t panel_bytes, size_t k, const float *x, size_t ldx,
                           Products<S, R, P> &products) {
    if constexpr (T == kBf16) {
        const auto add = [&](size_t i, bool odd) {
            const auto load = [&](int p) { return loadPair<S>(panels + p * panel_bytes + i * kPanelRows * 2); };
            const float *at = x + i + (odd ? 1 : 0);
            if constexpr (Products<S, R, P>::meetsAll(0)) {
                products.add([&](int p) { return load(p).column(odd); }, at, ldx);
            } else {  // does what add() does, in a form that GCC compiles better
                Q3_UNROLL
                for (int p = 0; p < P; ++p) {
                    const Pair<S> pair = load(p);
                    products.addPanel(p, pair.column(odd), at, ldx);
                }
            }
        };
        for (size_t i = 0; i + 1 < k; i += 2) {
            Q3_UNROLL
            for (int p = 0; p < P; ++p) {
                fetchAhead<R, kFollowedFloats<S, kBf16>>(panels + p * panel_bytes + panelOffset(kBf16, i),
                                                         panelOffset(kBf16, 2));
            }
            add(i, false);
            add(i, true);
        }
        if (k % 2 != 0) {  // the last pair has only one k
            add(k - 1, false);
        }
    } else {
        for (size_t i = 0; i < k; ++i) {
            Q3_UNROLL
            for (int p = 0; p < P; ++p) {
                fetchAhead<R, kFollowedFloats<S, T>>(panels + p * panel_bytes + panelOffset(T, i), panelOffset(T, 1));
            }
            products.add([&](int p) { return loadColumn<S, T>(panels + p * panel_bytes, i * kPanelRows); }, x + i, ldx);
        }
    }
}

// Calls body.call<N>() with N = `rows`, from 1 to R, as a compile-time number.
template <int R, typename Body> inline void withRows(uint32_t rows, const Body &body) {
    if constexpr (R > 1) {
        if (rows < R) {
            return withRows<R - 1>(rows, body);
        }
    }
    body.template call<R>();
}

// The body of withRows that calls tiles.rows<R, Streamed>().
template <typename Call, bool Streamed> struct RowsCall {
    const Call tiles;
    template <int R> void call() const { tiles.template rows<R, Streamed>(); }
};

// How many panels R rows are multiplied with at once, when `fixed` more registers are in use. One row takes four
// panels: their chains hide the latency of a multiply-add, and their four streams that of memory. Many rows are chains
// enough.
template <typename S, int R> constexpr int panelsAtOnce(int fixed) {
    for (int p = 4; p > 1; p /= 2) {
        if (R * p * S::kParts + fixed + S::kParts + 1 <= S::kRegisters) {
            return p;
        }
    }
    return 1;
}

// Calls call.group<R, P>(first) for all of `count` neighbours, P at a time.
template <int R, int P, typename Call> inline void forGroups(uint32_t count, const Call &call) {
    uint32_t first = 0;
    for (; first + P <= count; first += P) {
        call.template group<R, P>(first);
    }
    for (; first < count; ++first) {
        call.template group<R, 1>(first);
    }
}

// Header of a bf12 group, by value: groups are aligned to 16 bytes.
inline Bf12Header bf12Header(const char *group) {
    return *reinterpret_cast<const Bf12Header *>(group);
}

// Decodes the first or second pair of k of a quad of a bf12 group. If the pair is kept raw, it is read from `raw`,
// which then points to the next one.
template <typename S>
inline Pair<S> pairBf12(const char *group, uint32_t quad, bool second, typename S::Bf12Table table, uint32_t raw_pairs,
                        const uint16_t *&raw) {
    if (__builtin_expect((raw_pairs >> (2 * quad + (second ? 1 : 0)) & 1U) != 0, 0)) {
        const auto *words = reinterpret_cast<const char *>(raw);
        raw += 2 * kPanelRows;
        return loadPair<S>(words);
    }
    const char *codes = group + sizeof(Bf12Header) + quad * kBf12QuadBytes;
    Pair<S> pair;
    S::wordsBf12(codes, second, codes + (second ? 2 : 1) * kBf12PairBytes, table, pair.words);
    return pair;
}

template <typename S> void expandBf12(const void *panel, uint32_t groups, uint16_t *out) {
    for (uint32_t g = 0; g < groups; ++g) {
        const char *group = static_cast<const char *>(panel) + g * kBf12GroupBytes;
        const Bf12Header header = bf12Header(group);
        const uint16_t *raw = header.raw;
        const auto store = [&](uint32_t quad, bool second) {
            const Pair<S> pair = pairBf12<S>(group, quad, second, S::tableBf12(header.base), header.pairs, raw);
            Q3_UNROLL
            for (int h = 0; h < S::kParts; ++h, out += S::kLanes * 2) {
                S::storeBits(reinterpret_cast<char *>(out), pair.words[h]);
            }
        };
        for (uint32_t quad = 0; quad < kGroup / 4; ++quad) {
            store(quad, false);
            store(quad, true);
        }
    }
}

template <typename S, int R, int P>
inline void multiplyGroupBf12(const char *const *groups, const float *x, size_t ldx, Products<S, R, P> &products) {
    typename S::Bf12Table table[P];
    uint32_t pairs[P];
    const uint16_t *raw[P];
    Q3_UNROLL
    for (int p = 0; p < P; ++p) {
        const Bf12Header header = bf12Header(groups[p]);
        table[p] = S::tableBf12(header.base);
        pairs[p] = header.pairs;
        raw[p] = header.raw;
    }
    const auto add = [&](uint32_t quad, bool second) {
        const float *at = x + size_t{quad} * 4 + (second ? 2 : 0);
        const auto decode = [&](int p) { return pairBf12<S>(groups[p], quad, second, table[p], pairs[p], raw[p]); };
        if constexpr (Products<S, R, P>::meetsAll(P * (S::kParts + 1))) {  // each panel's words and table
            Pair<S> pair[P];
            Q3_UNROLL
            for (int p = 0; p < P; ++p) {
                pair[p] = decode(p);
            }
            products.add([&](int p) { return pair[p].column(false); }, at, ldx);
            products.add([&](int p) { return pair[p].column(true); }, at + 1, ldx);
        } else {
            Q3_UNROLL
            for (int p = 0; p < P; ++p) {
                const Pair<S> pair = decode(p);
                products.addPanel(p, pair.column(false), at, ldx);
                products.addPanel(p, pair.column(true), at + 1, ldx);
            }
        }
    };
    for (uint32_t quad = 0; quad < kGroup / 4; ++quad) {
        Q3_UNROLL
        for (int p = 0; p < P; ++p) {
            fetchAhead<R, 0>(groups[p] + quad * kBf12QuadBytes, kBf12QuadBytes);
        }
        add(quad, false);
        add(quad, true);
    }
}

template <typename S, WeightFormat T, int R, int P>
void multiplyTile(const char *panels, size_t panel_bytes, size_t apart, uint32_t k, const float *x, size_t ldx,
                  float *y, size_t ldy, bool accumulate) {
    Products<S, R, P> products;
    if (accumulate) {
        products.load(y, ldy, apart);
    }
    panel_bytes *= apart;
    if constexpr (T != kBf12) {
        multiplyFloats<S, T, R, P>(panels, panel_bytes, k, x, ldx, products);
    } else {
        const uint32_t whole = k / kGroup;
        for (uint32_t g = 0; g < whole; ++g) {
            const char *groups[P];
            Q3_UNROLL
            for (int p = 0; p < P; ++p) {
                groups[p] = panels + p * panel_bytes + g * kBf12GroupBytes;
            }
            multiplyGroupBf12<S, R, P>(groups, x + size_t{g} * kGroup, ldx, products);
        }
        if (whole * kGroup < k) {  // the padded last group: no x beyond k may be read
            uint16_t weights[P][kGroup * kPanelRows];
            for (int p = 0; p < P; ++p) {
                expandBf12<S>(panels + p * panel_bytes + whole * kBf12GroupBytes, 1, weights[p]);
            }
            multiplyFloats<S, kBf16, R, P>(reinterpret_cast<const char *>(weights), sizeof weights[0],
                                           k - whole * kGroup, x + size_t{whole} * kGroup, ldx, products);
        }
    }
    products.store(y, ldy, apart);
}

// Calls call.tiles<R, P>(first, apart) for all panels, P at a time, which are `apart` = npanels / P from each other:
// each of the P streams through memory then goes on where the call before left it. Streams that began anew with every
// panel would leave bandwidth unused, the more the smaller panels are.
template <int R, int P, typename Call> inline void forPanelGroups(uint32_t npanels, const Call &call) {
    const uint32_t apart = npanels / P;
    for (uint32_t p = 0; p < apart; ++p) {
        call.template tiles<R, P>(p, apart);
    }
    for (uint32_t p = apart * P; p < npanels; ++p) {
        call.template tiles<R, 1>(p, 1);
    }
}

template <typename S, WeightFormat T> struct PanelCall {
    const char *panels;
    size_t panel_bytes;
    uint32_t npanels, k;
    const float *x;
    size_t ldx;
    float *y;
    size_t ldy;
    bool accumulate;
    template <int R> void call() const { forPanelGroups<R, panelsAtOnce<S, R>(0)>(npanels, *this); }
    template <int R, int P> void tiles(uint32_t first, uint32_t apart) const {
        multiplyTile<S, T, R, P>(panels + first * panel_bytes, panel_bytes, apart, k, x, ldx, y + first * kPanelRows,
                                 ldy, accumulate);
    }
};

template <typename S, WeightFormat T>
void multiplyPanels(const void *data, size_t panel_bytes, uint32_t npanels, uint32_t k, const float *x, size_t ldx,
                    uint32_t rows, float *y, size_t ldy, bool accumulate) {
    withRows<S::kTileRows>(
        rows, PanelCall<S, T>{static_cast<const char *>(data), panel_bytes, npanels, k, x, ldx, y, ldy, accumulate});
}

}  // namespace
}  // namespace q3::cpu
