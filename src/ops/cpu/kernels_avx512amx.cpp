// AMX int8 (TDPBSSD) for many rows of quantised layers, AVX-512 with VNNI for everything else: Sapphire Rapids and
// later. An activation's 16-bit code is 256 * high + low with two signed bytes, so a group's exact products are 256
// times those of the high bytes and those of the low bytes. 8-bit codes and the nibbles of q4 are signed bytes already.
#include "ops/cpu/simd_avx512vnni.h"

namespace q3::cpu {
namespace {

struct Amx : Avx512Vnni {
    static constexpr int kTileRows = 16;  // of a tile register
};
constexpr size_t kRows = Amx::kTileRows;

// Below this many rows a tile's fixed work is more than that of VNNI. By count of instructions: never timed.
constexpr uint32_t leastRows(WeightType type) {
    return type == kQ8 ? 8 : 12;
}

// Weights of a group in steps of four k: [8][16][4].
template <WeightType T> inline void unpackGroup(const char *group, char *out) {
    using Step = Steps<Amx, T>;
    if constexpr (T == kQ8) {
        __m512i even = Amx::setInt(0);
        Step::forSteps(group, 0, [&](uint32_t pair, const StepWeights<Step> &w) {
            const __m512i bytes = _mm512_cvtepu16_epi32(_mm512_cvtepi16_epi8(w.part[0]));
            if (pair % 2 == 0) {
                even = bytes;
            } else {
                Amx::storeBits(out + size_t{pair} / 2 * 64, _mm512_or_si512(even, Amx::shiftLeft<16>(bytes)));
            }
        });
    } else {
        Step::forSteps(group, 0, [&](uint32_t quad, const StepWeights<Step> &w) {
            Amx::storeBits(out + size_t{quad} * 64, w.part[0]);
        });
    }
}

// Codes of a group of a row, 16-bit ones as their high bytes, then their low bytes.
template <WeightType T> inline void splitCodes(const char *codes, char *out) {
    if constexpr (T == kQ8) {
        for (uint32_t i = 0; i < kGroup; ++i) {
            int16_t code;
            __builtin_memcpy(&code, codes + i * sizeof code, sizeof code);
            out[i] = static_cast<char>((code + 128) >> 8);  // leaves a signed byte
            out[kGroup + i] = static_cast<char>(code & 0xff);
        }
    } else {
        __builtin_memcpy(out, codes, kGroup);
    }
}

// Operand of LDTILECFG.
struct alignas(64) TileConfig {
    uint8_t palette = 1;
    uint8_t start_row = 0;
    uint8_t reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};

    // Tiles 0 and 1: products [rows][16]. 2 and 3: codes [rows][32]. 4: weights [8][16][4].
    explicit TileConfig(uint32_t used) {
        for (int tile = 0; tile < 4; ++tile) {
            rows[tile] = static_cast<uint8_t>(used);
            row_bytes[tile] = tile < 2 ? kPanelRows * sizeof(int32_t) : kGroup;
        }
        rows[4] = kGroup / 4;
        row_bytes[4] = kPanelRows * 4;
    }
};

struct alignas(64) Dots {
    int32_t high[kRows][kPanelRows];  // of q8
    int32_t low[kRows][kPanelRows];
};

// Compilers do not know that LDTILECFG reads all of its operand, nor that a tile is loaded from memory: what was stored
// must have been stored.
inline void finishStores() {
    asm volatile("" ::: "memory");
}

// Numbers of tiles are literals, as the compilers' macros want them.
template <WeightType T> inline void multiply(Dots &dots, const char *codes, const char *weights) {
    constexpr size_t kStride = kGroup * codeBytes(T);
    finishStores();
    _tile_loadd(4, weights, kPanelRows * 4);
    if constexpr (T == kQ8) {
        _tile_loadd(2, codes, kStride);
        _tile_zero(0);
        _tile_dpbssd(0, 2, 4);
        _tile_stored(0, dots.high, sizeof dots.high[0]);
        codes += kGroup;
    }
    _tile_loadd(3, codes, kStride);
    _tile_zero(1);
    _tile_dpbssd(1, 3, 4);
    _tile_stored(1, dots.low, sizeof dots.low[0]);
}

// y[rows][16] += the products of a group * scales
template <WeightType T>
inline void addScaled(const Dots &dots, const QuantRows &x, const char *group, uint32_t rows, float *y, size_t ldy) {
    const __m512 w_scale = Amx::loadBf16(reinterpret_cast<const uint16_t *>(group));
    for (uint32_t r = 0; r < rows; ++r) {
        const __m512i low = _mm512_loadu_si512(dots.low[r]);
        const __m512i more =
            T == kQ8 ? Amx::shiftLeft<8>(_mm512_loadu_si512(dots.high[r])) : Amx::setInt(-x.offsets[r * x.lds]);
        float *sum = y + r * ldy;
        const __m512 scale = Amx::mul(w_scale, Amx::set(x.scales[r * x.lds]));
        Amx::store(sum, Amx::fma(Amx::toFloat(Amx::addInt(low, more)), scale, Amx::load(sum)));
    }
}

// y[rows][16] += `count` groups of a panel. codes: x's, split, [count][kRows].
template <WeightType T>
void addGroups(const char *panel, const QuantRows &x, const char *codes, uint32_t count, uint32_t rows, float *y,
               size_t ldy) {
    Dots dots[2];  // one group's products are scaled while the next one's are computed
    for (uint32_t g = 0; g <= count; ++g) {
        if (g < count) {
            alignas(64) char weights[kGroup * kPanelRows];
            unpackGroup<T>(panel + panelOffset(T, size_t{g} * kGroup), weights);
            multiply<T>(dots[g % 2], codes + g * kGroup * codeBytes(T) * kRows, weights);
        }
        if (g > 0) {
            addScaled<T>(dots[(g - 1) % 2], x.from(0, g - 1, T), panel + panelOffset(T, size_t{g - 1} * kGroup), rows,
                         y, ldy);
        }
    }
}

template <WeightType T>
void gemvTiles(const void *panels, size_t panel_bytes, uint32_t npanels, uint32_t groups, const QuantRows &x,
               uint32_t rows, float *y, size_t ldy, bool accumulate) {
    if (rows < leastRows(T)) {
        gemvQuant<Amx, T>(panels, panel_bytes, npanels, groups, x, rows, y, ldy, accumulate);
        return;
    }
    for (uint32_t r = 0; r < rows && !accumulate; ++r) {
        for (uint32_t j = 0; j < npanels * kPanelRows; j += kPanelRows) {
            Amx::store(y + r * ldy + j, Amx::zero());
        }
    }
    const TileConfig config(rows);
    finishStores();
    _tile_loadconfig(&config);
    constexpr uint32_t kBlock = 8;
    for (uint32_t g = 0; g < groups; g += kBlock) {
        const uint32_t count = groups - g < kBlock ? groups - g : kBlock;
        const QuantRows block = x.from(0, g, T);
        alignas(64) char codes[kBlock * kRows * kGroup * codeBytes(T)];
        for (uint32_t i = 0; i < count; ++i) {
            for (uint32_t r = 0; r < rows; ++r) {
                splitCodes<T>(block.from(r, i, T).codes, codes + (i * kRows + r) * kGroup * codeBytes(T));
            }
        }
        for (uint32_t p = 0; p < npanels; ++p) {
            const char *panel = static_cast<const char *>(panels) + p * panel_bytes;
            addGroups<T>(panel + panelOffset(T, size_t{g} * kGroup), block, codes, count, rows, y + p * kPanelRows,
                         ldy);
        }
    }
    _tile_release();  // or every switch of threads would save the tiles
}

constexpr Kernels amxTable() {
    Kernels table = simdTable<Amx>("amx");
    table.gemv_quant[kQ8 - kExactTypes] = gemvTiles<kQ8>;
    table.gemv_quant[kQ4 - kExactTypes] = gemvTiles<kQ4>;
    return table;
}

}  // namespace

const Kernels kAmxKernels = amxTable();

}  // namespace q3::cpu
