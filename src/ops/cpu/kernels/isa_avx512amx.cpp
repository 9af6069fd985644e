// AMX int8 for many rows of quantised layers, AVX-512 with VNNI for everything else: Sapphire Rapids and later. An
// activation's 16-bit code is 256 * high + low with a signed and an unsigned byte, so a group's exact products are 256
// times those of the high bytes (TDPBSSD) and those of the low bytes (TDPBUSD). 8-bit codes are signed bytes already.
#include "ops/cpu/kernels/simd_avx512vnni.h"

namespace q3::cpu {
namespace {

struct Amx : Avx512Vnni {
    // Bytes (or words) of v in the order that `places` gives.
    static I bytesAt(I places, I v) { return _mm512_permutexvar_epi8(places, v); }
    static I wordsAt(I places, I v) { return _mm512_permutexvar_epi16(places, v); }
};
constexpr int kRows = 16;  // rows of a tile register
// Fewer rows are left to VNNI, which streams four panels at a time from memory.
constexpr int kLeastRows = 12;

template <typename T, int N> struct alignas(64) Places {
    T place[N];
    constexpr Places inverse() const {
        Places result{};
        for (int i = 0; i < N; ++i) {
            result.place[place[i]] = static_cast<T>(i);
        }
        return result;
    }
};

// The rows' pairs (k, k + 1), followed by their pairs (k + 2, k + 3), become the rows' quads.
constexpr Places<uint16_t, 32> kQuadsOfPairs = [] {
    Places<uint16_t, 32> places{};
    for (uint16_t row = 0; row < kPanelRows; ++row) {
        places.place[2 * row] = row;
        places.place[2 * row + 1] = kPanelRows + row;
    }
    return places;
}();

// 32 words become their high bytes, then their low bytes.
constexpr Places<uint8_t, 64> kHighThenLow = [] {
    Places<uint8_t, 64> places{};
    for (uint8_t i = 0; i < kGroup; ++i) {
        places.place[i] = 2 * i + 1;
        places.place[kGroup + i] = 2 * i;
    }
    return places;
}();

template <typename T, int N> inline __m512i load(const Places<T, N> &places) {
    return Amx::loadBits(reinterpret_cast<const char *>(places.place));
}

// Few rows are multiplied by VNNI, which wants 16-bit codes in one piece.
template <> struct Steps<Amx, kQ8> : Steps<Avx512Vnni, kQ8> {
    using Whole = Steps<Avx512Vnni, kQ8>;
    template <int R> struct Rows {
        static constexpr size_t row_bytes = QuantRows::rowBytes(kQ8);
        alignas(64) char codes[R * row_bytes];
        Rows(const char *from, size_t from_bytes) {
            const __m512i places = load(kHighThenLow.inverse());
            Q3_UNROLL
            for (int r = 0; r < R; ++r) {
                Amx::storeBits(codes + r * row_bytes, Amx::bytesAt(places, Amx::loadBits(from + r * from_bytes)));
            }
        }
    };
    template <typename Use> static void forSteps(const char *group, int first, const Use &use) {
        Whole::forSteps(group, first, [&](uint32_t step, const StepWeights<Whole> &w) {
            use(step, StepWeights<Steps>{{w.part[0]}});
        });
    }
};

void quantizeSplit(const float *x, uint32_t k, const QuantRows &out, uint32_t r) {
    quantize<Amx, kQ8>(x, k, out, r);
    const __m512i places = load(kHighThenLow);
    for (uint32_t g = 0; g * kGroup < k; ++g) {
        char *codes = out.from(r, g, kQ8).codes;
        Amx::storeBits(codes, Amx::bytesAt(places, Amx::loadBits(codes)));
    }
}

// Weights of a group in steps of four k: [8][16][4], signed.
template <WeightFormat T> inline void unpackGroup(const char *group, char *out) {
    const char *codes = group + kScaleBytes;
    if constexpr (T == kQ8) {
        const __m512i places = load(kQuadsOfPairs);
        Q3_UNROLL
        for (size_t quad = 0; quad < kGroup / 4; ++quad) {
            Amx::storeBits(out + quad * 64, Amx::wordsAt(places, Amx::loadBits(codes + quad * 64)));
        }
    } else {
        const __m512i middle = _mm512_set1_epi8(8);
        Q3_UNROLL
        for (size_t quad = 0; quad < kGroup / 4; quad += 2) {
            const __m512i both = Amx::loadQuads(codes + quad * 32);
            Amx::storeBits(out + quad * 64, _mm512_sub_epi8(Amx::lowNibbles(both), middle));
            Amx::storeBits(out + quad * 64 + 64, _mm512_sub_epi8(Amx::highNibbles(both), middle));
        }
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
template <WeightFormat T> struct Products16 {
    alignas(64) Dots part[infoOf(T).code_bytes];
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
template <WeightFormat T>
inline void multiply(uint32_t g, const char *codes, const char *weights, Products16<T> &before) {
    constexpr size_t kStride = kGroup * infoOf(T).code_bytes;
    if (g % 2 == 0) {
        _tile_loadd(4, codes, kStride);
        _tile_loadd(6, weights, kPanelRows * 4);
        _tile_zero(0);
        _tile_dpbssd(0, 4, 6);
        storeOdd(before.part[0], 0);
        if constexpr (T == kQ8) {
            _tile_loadd(5, codes + kGroup, kStride);
            _tile_zero(1);
            _tile_dpbusd(1, 5, 6);
            storeOdd(before.part[1], 1);
        }
    } else if constexpr (T == kQ8) {
        _tile_loadd(4, codes, kStride);
        _tile_loadd(7, weights, kPanelRows * 4);
        _tile_zero(2);
        _tile_dpbssd(2, 4, 7);
        storeEven(before.part[0], 0);
        _tile_loadd(5, codes + kGroup, kStride);
        _tile_zero(3);
        _tile_dpbusd(3, 5, 7);
        storeEven(before.part[1], 1);
    } else {
        _tile_loadd(5, codes, kStride);
        _tile_loadd(7, weights, kPanelRows * 4);
        _tile_zero(2);
        _tile_dpbssd(2, 5, 7);
        storeEven(before.part[0], 0);
    }
}

// sum[R] += the products of a group * scales
template <WeightFormat T, int R>
inline void addScaled(const Products16<T> &products, const QuantRows &x, const char *group, __m512 (&sum)[R]) {
    const __m512 w_scale = Amx::loadBf16(reinterpret_cast<const uint16_t *>(group));
    Q3_UNROLL
    for (int r = 0; r < R; ++r) {
        __m512i dot = _mm512_load_si512(products.part[infoOf(T).code_bytes - 1][r]);
        if constexpr (T == kQ8) {
            dot = Amx::addInt(dot, Amx::shiftLeft<8>(_mm512_load_si512(products.part[0][r])));
        }
        sum[r] = Amx::fma(Amx::toFloat(dot), Amx::mul(w_scale, Amx::set(x.scales[r])), sum[r]);
    }
}

constexpr uint32_t kBlock = 16;  // groups whose unpacked weights stay in L1
using Unpacked = char[kBlock][kGroup * kPanelRows];

// y[R][16] += `count` groups of a panel, whose weights are unpacked. Meanwhile it unpacks the weights of `next`, the
// panel after this one: a tile load waits until stores to its memory have reached L1.
template <WeightFormat T, int R>
void addGroups(const char *panel, const Unpacked &weights, const char *next, Unpacked &next_weights, const QuantRows &x,
               uint32_t count, float *y, size_t ldy) {
    __m512 sum[R];
    Q3_UNROLL
    for (int r = 0; r < R; ++r) {
        sum[r] = Amx::load(y + r * ldy);
    }
    Products16<T> products[2];
    for (uint32_t g = 0; g <= count; ++g) {
        const uint32_t at = g < count ? g : 0;  // the extra round only stores the last group's products
        multiply<T>(g, x.from(0, at, T).codes, weights[at], products[(g + 1) % 2]);
        if (g > 0) {
            addScaled<T, R>(products[(g + 1) % 2], x.from(0, g - 1, T), panel + panelOffset(T, size_t{g - 1} * kGroup),
                            sum);
        }
        if (g < count && next != nullptr) {
            const char *group = next + panelOffset(T, size_t{g} * kGroup);
            fetchAhead<T, R>(group, panelOffset(T, kGroup));
            unpackGroup<T>(group, next_weights[g]);
            finishStores();
        }
    }
    Q3_UNROLL
    for (int r = 0; r < R; ++r) {
        Amx::store(y + r * ldy, sum[r]);
    }
}

template <WeightFormat T> struct TilesCall {
    const QuantPanelCall<Amx, T> few;

    template <int R> void call() const {
        if constexpr (R < kLeastRows) {
            few.template call<R>();
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
            const QuantRows block = x.from(0, g, T);
            alignas(64) Unpacked weights[2];
            const char *panel = panels + panelOffset(T, size_t{g} * kGroup);
            for (uint32_t i = 0; i < count; ++i) {
                unpackGroup<T>(panel + panelOffset(T, size_t{i} * kGroup), weights[0][i]);
            }
            finishStores();
            for (uint32_t p = 0; p < npanels; ++p, panel += panel_bytes) {
                const char *next = p + 1 < npanels ? panel + panel_bytes : nullptr;
                addGroups<T, R>(panel, weights[p % 2], next, weights[(p + 1) % 2], block, count, y + p * kPanelRows,
                                ldy);
            }
        }
        _tile_release();  // otherwise every thread switch would save the tiles
    }
};

template <WeightFormat T>
void multiplyTiles(const void *panels, size_t panel_bytes, uint32_t npanels, uint32_t groups, const QuantRows &x,
                   uint32_t rows, float *y, size_t ldy, bool accumulate) {
    withRows<kRows>(
        rows, TilesCall<T>{{static_cast<const char *>(panels), panel_bytes, npanels, groups, x, y, ldy, accumulate}});
}

constexpr KernelTable amxTable() {
    KernelTable table = simdTable<Amx>("amx", kAvx512VnniAffine);
    table.multiplyQuantPanels[kQ8] = multiplyTiles<kQ8>;
    table.multiplyQuantPanels[kQ4] = multiplyTiles<kQ4>;
    table.quant_tile_rows = kRows;
    table.split_codes = true;
    table.quantize[kQ8] = quantizeSplit;
    return table;
}

}  // namespace

const KernelTable kAmxKernels = amxTable();

}  // namespace q3::cpu
