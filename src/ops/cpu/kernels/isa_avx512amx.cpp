// AMX int8 for many rows of quantised layers, AMX bf16 for bf16 layers with rounded activations (simd_amx_bf16.h),
// AVX-512 with VNNI and BF16 for everything else: Sapphire Rapids and later. An activation's 16-bit code is
// 256 * high + low with two signed bytes, so a group's exact products are 256 times those of the high bytes and those
// of the low bytes, each with unsigned bytes of weights (TDPBSUD).
#include "ops/cpu/kernels/simd_amx_bf16.h"

namespace q3::cpu {
namespace {

using Amx = Avx512Bf16;
constexpr int kRows = 16;  // rows of a tile register
// Fewer rows are left to VNNI, which streams four panels at a time from memory.
constexpr int kLeastRows = 12;

// Nibbles of a group as bytes: [8][16][4].
inline void unpackGroup(const char *codes, char *out) {
    Q3_UNROLL
    for (size_t quad = 0; quad < kQuads; quad += 2) {
        const __m512i both = Amx::loadQuads(codes + quad * 32);
        Amx::storeBits(out + quad * 64, Amx::lowNibbles(both));
        Amx::storeBits(out + quad * 64 + 64, Amx::highNibbles(both));
    }
}

// Operand of LDTILECFG.
struct alignas(64) TileConfig {
    uint8_t palette = 1;
    uint8_t start_row = 0;
    uint8_t reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};

    // Tiles 0 to 3: products [rows][16]. 4 and 5: codes [rows][32]. 6 and 7: weights [8][16][4].
    explicit TileConfig(uint32_t used) {
        for (int tile = 0; tile < 8; ++tile) {
            rows[tile] = static_cast<uint8_t>(tile < 6 ? used : kGroup / 4);
            row_bytes[tile] = tile < 4 ? kPanelRows * sizeof(int32_t) : tile < 6 ? kGroup : kPanelRows * 4;
        }
    }
};

using Dots = int32_t[kRows][kPanelRows];
// The products of a group's codes with a panel; 16-bit codes have one part for their high bytes and one for their low
// bytes.
constexpr int partsOf(CodeWidth width) {
    return width == k8Bits ? 1 : 2;
}
template <CodeWidth X> struct Products16 {
    alignas(64) Dots part[partsOf(X)];
};

// Compilers do not know that LDTILECFG reads all of its operand, nor that loading a tile reads memory. This makes them
// write all values to memory first.
inline void finishStores() {
    asm volatile("" ::: "memory");
}

// The compilers' macros accept tile numbers as literals only.
inline void storeEven(Dots &to, int part) {
    if (part == 0) {
        _tile_stored(0, to, sizeof to[0]);
    } else {
        _tile_stored(1, to, sizeof to[0]);
    }
}
inline void storeOdd(Dots &to, int part) {
    if (part == 0) {
        _tile_stored(2, to, sizeof to[0]);
    } else {
        _tile_stored(3, to, sizeof to[0]);
    }
}

// Multiplies group g and stores the products of group g - 1. A tile can be neither stored nor loaded while the last
// instruction on it runs, so even and odd groups use different tiles.
template <CodeWidth X> inline void multiply(uint32_t g, const char *codes, const char *weights, Products16<X> &before) {
    constexpr size_t kStride = kGroup * partsOf(X);
    if (g % 2 == 0) {
        _tile_loadd(4, codes, kStride);
        _tile_loadd(6, weights, kPanelRows * 4);
        _tile_zero(0);
        _tile_dpbsud(0, 4, 6);
        storeOdd(before.part[0], 0);
        if constexpr (X == k16Bits) {
            _tile_loadd(5, codes + kGroup, kStride);
            _tile_zero(1);
            _tile_dpbsud(1, 5, 6);
            storeOdd(before.part[1], 1);
        }
    } else if constexpr (X == k16Bits) {
        _tile_loadd(4, codes, kStride);
        _tile_loadd(7, weights, kPanelRows * 4);
        _tile_zero(2);
        _tile_dpbsud(2, 4, 7);
        storeEven(before.part[0], 0);
        _tile_loadd(5, codes + kGroup, kStride);
        _tile_zero(3);
        _tile_dpbsud(3, 5, 7);
        storeEven(before.part[1], 1);
    } else {
        _tile_loadd(5, codes, kStride);
        _tile_loadd(7, weights, kPanelRows * 4);
        _tile_zero(2);
        _tile_dpbsud(2, 5, 7);
        storeEven(before.part[0], 0);
    }
}

// sum[R] += the products of a group * scales
template <WeightFormat T, CodeWidth X, int R>
inline void addScaled(const Products16<X> &products, const QuantRows &x, const char *panel, uint32_t g,
                      __m512 (&sum)[R]) {
    const __m512 w_scale = weightScales<Amx, T>(panel, g, 0);
    Q3_UNROLL
    for (int r = 0; r < R; ++r) {
        __m512i dot =
            Amx::addInt(_mm512_load_si512(products.part[partsOf(X) - 1][r]), Amx::broadcastInt(x.offsets + r));
        if constexpr (X == k16Bits) {
            dot = Amx::addInt(dot, Amx::shiftLeft<8>(_mm512_load_si512(products.part[0][r])));
        }
        sum[r] = Amx::fma(Amx::toFloat(dot), Amx::mul(w_scale, Amx::set(x.scales[r])), sum[r]);
    }
}

constexpr uint32_t kBlock = 16;  // groups whose unpacked weights stay in L1, an even number
using Unpacked = char[kBlock][kGroup * kPanelRows];

// y[R][16] += `count` groups of a panel. Nibbles are unpacked in `weights`. Meanwhile it unpacks those of `next`, the
// panel after this one: a tile load waits until stores to its memory have reached L1. Bytes are only fetched.
template <WeightFormat T, CodeWidth X, int R>
void addGroups(const char *panel, const Unpacked &weights, const char *next, Unpacked &next_weights, const QuantRows &x,
               uint32_t count, float *y, size_t ldy) {
    __m512 sum[R];
    Q3_UNROLL
    for (int r = 0; r < R; ++r) {
        sum[r] = Amx::load(y + r * ldy);
    }
    Products16<X> products[2];
    for (uint32_t g = 0; g <= count; ++g) {
        const uint32_t at = g < count ? g : 0;  // the extra round only stores the last group's products
        const char *codes = T == kQ8 ? panel + codesOffset(T, at) : weights[at];
        multiply<X>(g, x.from(0, at).codes, codes, products[(g + 1) % 2]);
        if (g > 0) {
            addScaled<T, X, R>(products[(g + 1) % 2], x.from(0, g - 1), panel, g - 1, sum);
        }
        if (g < count && next != nullptr) {
            const char *ahead = next + codesOffset(T, g);
            fetchAhead<R, 0>(ahead, codesOffset(T, 1) - codesOffset(T, 0));
            if constexpr (T == kQ4) {
                unpackGroup(ahead, next_weights[g]);
                finishStores();
            } else {
                Q3_UNROLL
                for (size_t line = 0; line < kGroup * kPanelRows; line += 64) {
                    __builtin_prefetch(ahead + line);
                }
            }
        }
    }
    Q3_UNROLL
    for (int r = 0; r < R; ++r) {
        Amx::store(y + r * ldy, sum[r]);
    }
}

template <WeightFormat T, CodeWidth X> struct TilesCall {
    const QuantPanelCall<Amx, T, X> few;

    template <int R> void call() const {
        if constexpr (R < kLeastRows) {
            few.template rows<R, true>();
        } else {
            tiles<R>();
        }
    }

    template <int R> void tiles() const {
        const auto &[panels, panel_bytes, npanels, groups, x, y, ldy, accumulate] = few;
        for (uint32_t r = 0; r < R && !accumulate; ++r) {
            for (uint32_t j = 0; j < npanels * kPanelRows; j += kPanelRows) {
                Amx::store(y + r * ldy + j, Amx::zero());
            }
        }
        const TileConfig config(R);
        finishStores();
        _tile_loadconfig(&config);
        for (uint32_t g = 0; g < groups; g += kBlock) {
            const uint32_t count = groups - g < kBlock ? groups - g : kBlock;
            const QuantRows block = x.from(0, g);
            alignas(64) Unpacked weights[2];
            const char *panel = panels + panelOffset(T, size_t{g} * kGroup);
            for (uint32_t i = 0; i < count && T == kQ4; ++i) {
                unpackGroup(panel + codesOffset(T, i), weights[0][i]);
            }
            finishStores();
            for (uint32_t p = 0; p < npanels; ++p, panel += panel_bytes) {
                const char *next = p + 1 < npanels ? panel + panel_bytes : nullptr;
                addGroups<T, X, R>(panel, weights[p % 2], next, weights[(p + 1) % 2], block, count, y + p * kPanelRows,
                                   ldy);
            }
        }
        _tile_release();  // otherwise every thread switch would save the tiles
    }
};

template <WeightFormat T, CodeWidth X>
void multiplyTiles(const void *panels, size_t panel_bytes, uint32_t npanels, uint32_t groups, const QuantRows &x,
                   uint32_t rows, float *y, size_t ldy, bool accumulate) {
    withRows<kRows>(rows, TilesCall<T, X>{{static_cast<const char *>(panels), panel_bytes, npanels, groups, x, y, ldy,
                                           accumulate}});
}

template <WeightFormat T, CodeWidth X> constexpr void setTiles(KernelTable &table) {
    table.codes[X][T].multiply = table.codes[X][T].stream = multiplyTiles<T, X>;
}

constexpr KernelTable amxTable() {
    KernelTable table = simdTable<Amx>("amx", kAvx512VnniAffine);
    setTiles<kQ8, k8Bits>(table);
    setTiles<kQ4, k8Bits>(table);
    setTiles<kQ8, k16Bits>(table);
    setTiles<kQ4, k16Bits>(table);
    table.quant_tile_rows = table.quant_stream_rows = kRows;
    addTilesBf16(table);
    return table;
}

}  // namespace

const KernelTable kAmxKernels = amxTable();

}  // namespace q3::cpu
