// AMX-BF16: layers of bf16 and bf12 weights with rounded activations. A group of 32 k of a bf16 panel is a tile as it
// lies: 16 pairs of k times 16 rows. TDPBF16PS has an order of its own (Intel's reference): of every 32 k the even and
// the odd products are summed apart, each chain from zero, then both sums are added, and their sum to the output. Few
// rows run the same chains with multiply-adds. With two pieces a group is added twice, first with the larger ones, so a
// row has the words of one piece side by side in every group.
#pragma once

#include "ops/cpu/kernels/simd_avx512bf16.h"

namespace q3::cpu {
namespace {

constexpr size_t kTileBytes = 64;               // of a row of a tile
constexpr size_t kGroupTile = 16 * kTileBytes;  // 32 k of a panel
constexpr int kLeastTileRows = 5;               // fewer rows are left to multiply-adds

// Operand of LDTILECFG. Tiles 0 to 3: sums [rows][16]. 4: activations [rows][32]. 5 to 7: weights [16][16][2].
struct alignas(64) Bf16TileConfig {
    uint8_t palette = 1;
    uint8_t start_row = 0;
    uint8_t reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {};
    explicit Bf16TileConfig(uint32_t used) {
        for (int tile = 0; tile < 8; ++tile) {
            rows[tile] = static_cast<uint8_t>(tile < 5 ? used : kTileBytes / 4);
        }
    }
};

template <int Pieces> void roundRowInGroups(const float *x, uint32_t k, char *out) {
    roundRow<Avx512Bf16, Pieces>(x, k, out);
    if constexpr (Pieces == 2) {  // pairs of words become two halves of a group
        const __m512i first = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(1));
        for (uint32_t i = 0; i < k; i += kGroup, out += 2 * kTileBytes) {
            const __m512i low = Avx512::loadBits(out);
            const __m512i high = Avx512::loadBits(out + kTileBytes);
            Avx512::storeBits(out, _mm512_permutex2var_epi32(low, first, high));
            Avx512::storeBits(out + kTileBytes, _mm512_permutex2var_epi32(low, second, high));
        }
    }
}

// Group g of a panel as a tile: where it lies, or in `scratch`, expanded or padded with zeros.
template <WeightFormat T> inline const char *groupTile(const char *panel, uint32_t g, uint32_t k, char *scratch) {
    if constexpr (T == kBf12) {
        expandBf12<Avx512Bf16>(panel + g * kBf12GroupBytes, 1, reinterpret_cast<uint16_t *>(scratch));
        return scratch;
    }
    const char *group = panel + g * kGroupTile;
    const uint32_t pairs = (k - g * kGroup + 1) / 2;
    if (pairs >= kGroup / 2) {
        return group;
    }
    for (uint32_t i = 0; i < kGroup / 2; ++i) {
        Avx512::storeBits(scratch + i * kTileBytes,
                          i < pairs ? Avx512::loadBits(group + i * kTileBytes) : Avx512::setInt(0));
    }
    return scratch;
}

// The compilers' macros accept tile numbers as literals only.
template <int P> inline void loadSums(const float *y, size_t ldy, size_t apart) {
    _tile_loadd(0, y, ldy * sizeof(float));
    if constexpr (P == 4) {
        _tile_loadd(1, y + apart, ldy * sizeof(float));
        _tile_loadd(2, y + 2 * apart, ldy * sizeof(float));
        _tile_loadd(3, y + 3 * apart, ldy * sizeof(float));
    }
}
template <int P> inline void zeroSums() {
    _tile_zero(0);
    if constexpr (P == 4) {
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
}
template <int P> inline void storeSums(float *y, size_t ldy, size_t apart) {
    _tile_stored(0, y, ldy * sizeof(float));
    if constexpr (P == 4) {
        _tile_stored(1, y + apart, ldy * sizeof(float));
        _tile_stored(2, y + 2 * apart, ldy * sizeof(float));
        _tile_stored(3, y + 3 * apart, ldy * sizeof(float));
    }
}

template <WeightFormat T, int Pieces> struct TileBf16Call {
    const char *panels;
    size_t panel_bytes;
    uint32_t npanels, k;
    const RoundedRows x;
    float *y;
    size_t ldy;
    bool accumulate;

    template <int R> void call() const {
        if constexpr (R < kLeastTileRows) {
            forPanelGroups<R, (R > 2 ? 2 : 4)>(npanels, *this);
        } else {
            const Bf16TileConfig config(R);
            asm volatile("" ::: "memory");  // compilers do not know what LDTILECFG and tile loads read
            _tile_loadconfig(&config);
            const uint32_t apart = npanels / 4;
            for (uint32_t p = 0; p < apart; ++p) {
                inTiles<4>(p, apart);
            }
            for (uint32_t p = apart * 4; p < npanels; ++p) {
                inTiles<1>(p, 1);
            }
            _tile_release();  // otherwise every thread switch would save the tiles
        }
    }

    template <int P> void inTiles(uint32_t first, uint32_t apart) const {
        float *to = y + first * kPanelRows;
        if (accumulate) {
            loadSums<P>(to, ldy, size_t{apart} * kPanelRows);
        } else {
            zeroSums<P>();
        }
        alignas(64) char scratch[P][kGroupTile];
        for (uint32_t g = 0; g * kGroup < k; ++g) {
            const char *weights[P];
            Q3_UNROLL
            for (int p = 0; p < P; ++p) {
                const char *panel = panels + (first + size_t{apart} * p) * panel_bytes;
                weights[p] = groupTile<T>(panel, g, k, scratch[p]);
            }
            asm volatile("" ::: "memory");
            Q3_UNROLL
            for (int piece = 0; piece < Pieces; ++piece) {
                _tile_loadd(4, x.data + (size_t{g} * Pieces + piece) * kTileBytes, x.row_bytes);
                _tile_loadd(5, weights[0], kTileBytes);
                _tile_dpbf16ps(0, 4, 5);
                if constexpr (P == 4) {
                    _tile_loadd(6, weights[1], kTileBytes);
                    _tile_dpbf16ps(1, 4, 6);
                    _tile_loadd(7, weights[2], kTileBytes);
                    _tile_dpbf16ps(2, 4, 7);
                    _tile_loadd(5, weights[3], kTileBytes);
                    _tile_dpbf16ps(3, 4, 5);
                }
            }
        }
        storeSums<P>(to, ldy, size_t{apart} * kPanelRows);
    }

    // Few rows.
    template <int R, int P> void tiles(uint32_t first, uint32_t apart) const {
        float *to = y + first * kPanelRows;
        Products<Avx512, R, P> sums;
        if (accumulate) {
            sums.load(to, ldy, apart);
        }
        alignas(64) char scratch[P][kGroupTile];
        for (uint32_t g = 0; g * kGroup < k; ++g) {
            const char *weights[P];
            Q3_UNROLL
            for (int p = 0; p < P; ++p) {
                const char *panel = panels + (first + size_t{apart} * p) * panel_bytes;
                weights[p] = groupTile<T>(panel, g, k, scratch[p]);
            }
            for (int piece = 0; piece < Pieces; ++piece) {
                Products<Avx512, R, P> even;
                Products<Avx512, R, P> odd;
                const char *at = x.data + (size_t{g} * Pieces + piece) * kTileBytes;
                for (uint32_t i = 0; i < kGroup / 2; ++i) {
                    Pair<Avx512> pair[P];
                    Q3_UNROLL
                    for (int p = 0; p < P; ++p) {
                        pair[p] = loadPair<Avx512>(weights[p] + i * kTileBytes);
                    }
                    Q3_UNROLL
                    for (int r = 0; r < R; ++r) {
                        const Pair<Avx512> value{{Avx512Bf16::broadcastBits(at + r * x.row_bytes + i * 4)}};
                        Q3_UNROLL
                        for (int p = 0; p < P; ++p) {
                            __m512 &e = even.sum[r][p][0];
                            __m512 &o = odd.sum[r][p][0];
                            e = Avx512::fma(value.column(false).part[0], pair[p].column(false).part[0], e);
                            o = Avx512::fma(value.column(true).part[0], pair[p].column(true).part[0], o);
                        }
                    }
                }
                Products<Avx512, R, P>::each([&](int r, int p, int h) Q3_INLINE {
                    sums.sum[r][p][h] =
                        Avx512::add(sums.sum[r][p][h], Avx512::add(even.sum[r][p][h], odd.sum[r][p][h]));
                });
            }
        }
        sums.store(to, ldy, apart);
    }
};

template <WeightFormat T, int Pieces>
void multiplyTilesBf16(const void *panels, size_t panel_bytes, uint32_t npanels, uint32_t k, const RoundedRows &x,
                       uint32_t rows, float *y, size_t ldy, bool accumulate) {
    withRows<kTileBytes / 4>(rows, TileBf16Call<T, Pieces>{static_cast<const char *>(panels), panel_bytes, npanels, k,
                                                           x, y, ldy, accumulate});
}

// f8: blocks of k are expanded and multiplied as bf16 panels, four at a time, and their sums scaled.
template <int Pieces> struct TileF8Call {
    const char *panels;
    size_t panel_bytes;
    uint32_t k;
    const RoundedRows &x;
    uint32_t rows;
    float *y;
    size_t ldy;
    bool accumulate;

    template <int, int P> void tiles(uint32_t first, uint32_t apart) const {
        constexpr size_t kBytes = panelOffset(kBf16, kF8Group);
        constexpr size_t kWidth = size_t{P} * kPanelRows;
        alignas(64) char expanded[P * kBytes];
        alignas(64) float part[kTileBytes / 4 * kWidth];
        for (uint32_t k0 = 0; k0 < k; k0 += kF8Group) {
            const uint32_t count = k - k0 < kF8Group ? k - k0 : kF8Group;
            const char *group = panels + first * panel_bytes + panelOffset(kF8, k0);
            const size_t stride = apart * panel_bytes;
            for (int p = 0; p < P; ++p) {
                expandF8<Avx512Bf16>(group + p * stride + kF8HeadBytes, count,
                                     reinterpret_cast<uint16_t *>(expanded + p * kBytes));
            }
            const RoundedRows at{x.data + roundedRowBytes(k0, Pieces, sizeof(uint32_t)), x.row_bytes};
            multiplyTilesBf16<kBf16, Pieces>(expanded, kBytes, P, count, at, rows, part, kWidth, false);
            for (int p = 0; p < P; ++p) {
                float *to = y + first * kPanelRows + size_t{apart} * kPanelRows * p;
                for (uint32_t r = 0; r < rows && k0 == 0 && !accumulate; ++r) {
                    Avx512::store(to + r * ldy, Avx512::zero());
                }
                addScaled<Avx512>(to, ldy, part + p * kPanelRows, kWidth,
                                  reinterpret_cast<const float *>(group + p * stride), rows);
            }
        }
    }
};

template <int Pieces>
void multiplyTilesF8(const void *panels, size_t panel_bytes, uint32_t npanels, uint32_t k, const RoundedRows &x,
                     uint32_t rows, float *y, size_t ldy, bool accumulate) {
    forPanelGroups<1, 4>(
        npanels, TileF8Call<Pieces>{static_cast<const char *>(panels), panel_bytes, k, x, rows, y, ldy, accumulate});
}

constexpr void addTilesBf16(KernelTable &table) {
    table.rounded_by_groups = true;
    table.rounded_tile_rows = kTileBytes / 4;
    table.streamBf16 = nullptr;
    table.bf16_stream_rows = 0;
    table.round[1] = roundRowInGroups<2>;
    table.multiplyRounded[0][kBf16] = multiplyTilesBf16<kBf16, 1>;
    table.multiplyRounded[1][kBf16] = multiplyTilesBf16<kBf16, 2>;
    table.multiplyRounded[0][kBf12] = multiplyTilesBf16<kBf12, 1>;
    table.multiplyRounded[1][kBf12] = multiplyTilesBf16<kBf12, 2>;
    table.multiplyRounded[0][kF8] = multiplyTilesF8<1>;
    table.multiplyRounded[1][kF8] = multiplyTilesF8<2>;
}

}  // namespace
}  // namespace q3::cpu
