// The table of single-threaded kernels that one instruction set provides. CpuOps splits the work over threads and calls
// these on ranges; nothing here allocates, throws or knows threads.
//
// Numerics that every table keeps, so that results do not depend on batch size, chunking or thread count:
//   * an output of a float layer or an attention product is one chain of fused multiply-adds over k = 0, 1, 2, ...,
//     one rounding each, whatever tile it was computed in; a chain that is cut (blocks of k) goes through a float;
//   * an output of a quantised layer is one chain over groups of 32 k: sum = fma(float(dot), w_scale * x_scale, sum),
//     where dot is the exact integer product of the group's weight codes and activation codes (QuantRows). Integers
//     may be added in any order, so every instruction set gives the same bits;
//   * reductions inside a row (sums of squares, of exponentials) depend on the row's length alone.
//
// Weight panels ("panel16"): 16 output rows side by side, k-major, one sequential stream per panel:
//   f32, f16  [K][16]                       bf16  [ceil(K / 2)][16][2]   (even k low, odd k high in each 32-bit word)
// The bf16 pairing makes its conversion one shift for even k and one mask for odd k per 8 rows.
//
// Other panels are groups of 32 k; the last group is padded with zeros:
//   q8    {bf16 scale[16]; int8 q[16][16][2]}
//        w = q * scale. Pairs of k side by side: integer products of 16 bits add two of them per 32-bit lane.
//   q4    {bf16 scale[16]; uint8 q[4][16][4]}
//        w = (nibble - 8) * scale. q[o][row][i] holds k = 8 o + i low and k = 8 o + 4 + i high: quads of k side by
//        side, as products of 8 bits want them.
//   bf12  {Bf12Header; {uint8 code[16][2]; uint8 low[2][16][2]} quad[8]}
//        lossless bf16: low[pair][place][odd] is the lower byte of k = 4 quad + 2 pair + odd; the upper one (sign and
//        all of the exponent but its last bit) is base - kBf12Below[nibble], a shuffle of 16 bytes, where
//        code[place][odd] holds the nibble of the first pair low and of the second high. Rows stand in the order
//        kBf12Order, so that interleaving the two bytes gives the words of a bf16 panel. A pair of k with a weight out
//        of reach of the 16 nibbles (less than one in a hundred) has its bit in header.pairs and stands at header.raw
//        as in a bf16 panel.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace q3::cpu {

constexpr uint32_t kPanelRows = 16;
constexpr uint32_t kMaxTileRows = 16;  // bound of Kernels::tileRows

constexpr uint32_t kGroup = 32;  // weights per scale
constexpr size_t kQ8GroupBytes = 2 * kPanelRows + kGroup * kPanelRows;
constexpr size_t kQ4GroupBytes = 2 * kPanelRows + kGroup * kPanelRows / 2;

struct Bf12Header {
    const uint16_t *raw;  // [set bits of pairs][16][2], aligned to 64 bytes
    uint16_t base;        // largest upper byte of the group, without sign
    uint16_t pairs;       // bit i: k = 2i and 2i + 1 are raw
    uint16_t unused[2];
};
constexpr size_t kBf12PairBytes = 2 * kPanelRows;  // of the lower bytes, or of the codes of two pairs
constexpr size_t kBf12QuadBytes = 3 * kBf12PairBytes;
constexpr size_t kBf12GroupBytes = sizeof(Bf12Header) + kGroup / 4 * kBf12QuadBytes;
// The upper byte that a nibble stands for is header.base minus this, modulo 256: its top bit is the sign, the others
// count down.
constexpr uint8_t kBf12Below[16] = {0, 1, 2, 3, 4, 5, 6, 7, 128, 129, 130, 131, 132, 133, 134, 135};
// Stored place of each row, and row of each stored place: interleaved bytes of 128-bit lanes are then the words of rows
// 0-3 and 4-7, 8-11 and 12-15.
constexpr uint32_t kBf12Order[kPanelRows] = {0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 12, 13, 14, 15};

enum WeightType { kF32 = 0, kF16 = 1, kBf16 = 2, kFloatTypes = 3, kBf12 = 3, kExactTypes = 4, kQ8 = 4, kQ4 = 5 };
constexpr bool isQuantised(WeightType type) {
    return type >= kExactTypes;
}
constexpr int kQuantTypes = 2;  // index: type - kExactTypes

// Groups with nothing above this are taken as zeros: the inverse of their scale would overflow.
constexpr float kLeastScale = 1e-30F;

// Activations in front of a quantised layer are codes: int16 for q8, int8 for q4, whose own rounding is far coarser
// than theirs. One k of a quad or pair therefore takes this many bytes.
constexpr size_t codeBytes(WeightType type) {
    return type == kQ8 ? sizeof(int16_t) : sizeof(int8_t);
}
// Largest activation code. For q8 127 * 256, so that a code is 256 * high + low with two signed bytes.
constexpr float largestCode(WeightType type) {
    return type == kQ8 ? 32512.0F : 127.0F;
}
// A step is what a lane of 32 bits adds at once: 2 k of q8, 4 of q4; 4 bytes of activation codes in both.
constexpr size_t kStepBytes = 4;
constexpr uint32_t stepsPerGroup(WeightType type) {
    return static_cast<uint32_t>(kGroup * codeBytes(type) / kStepBytes);
}

// Rows of activations as codes: x = code * scale, one scale per group of kGroup. Either a row's groups lie side by side
// (row_step: groups of a row, group_step: 1) or a group's rows (row_step: 1, group_step: rows), as the table wants.
struct QuantRows {
    char *codes;       // rowBytes(type) per row and group, zeros beyond k up to a whole group
    float *scales;     // one per row and group; NaN for a group with NaN or infinity
    int32_t *offsets;  // one per row and group: 8 * sum of the group's codes, what q4's nibbles count too much
    size_t row_step, group_step;

    static constexpr size_t rowBytes(WeightType type) { return kGroup * codeBytes(type); }
    // From a row and group on.
    QuantRows from(size_t row, size_t group, WeightType type) const {
        const size_t at = row * row_step + group * group_step;
        return {codes + at * rowBytes(type), scales + at, offsets + at, row_step, group_step};
    }
};

constexpr uint32_t roundUp(uint32_t value, uint32_t unit) {
    return (value + unit - 1) / unit * unit;
}

// Rows to make room for in every group of QuantRows, if a group's rows lie side by side. With a power of two all groups
// of a tile would lie in the same few sets of L1; so they follow each other there.
constexpr uint32_t paddedQuantRows(uint32_t rows) {
    return roundUp(rows, 64) + kMaxTileRows;
}

// Bytes of a panel in front of k: whole groups of packed formats, whole pairs of bf16.
constexpr size_t panelOffset(WeightType type, size_t k) {
    switch (type) {
    case kF32:
        return k * kPanelRows * sizeof(float);
    case kBf12:
        return k / kGroup * kBf12GroupBytes;
    case kQ8:
        return k / kGroup * kQ8GroupBytes;
    case kQ4:
        return k / kGroup * kQ4GroupBytes;
    default:
        return k * kPanelRows * sizeof(uint16_t);
    }
}

// y[r * ldy + j] = (accumulate ? y[...] : 0) + sum over k of x[r * ldx + k] * w[j][k], r < rows <= tile_rows,
// j < 16 * npanels.
using GemvKernel = void (*)(const void *panels, size_t panel_bytes, uint32_t npanels, uint32_t k, const float *x,
                            size_t ldx, uint32_t rows, float *y, size_t ldy, bool accumulate);
// The same over `groups` groups of quantised weights, rows <= quant_tile_rows.
using GemvQuantKernel = void (*)(const void *panels, size_t panel_bytes, uint32_t npanels, uint32_t groups,
                                 const QuantRows &x, uint32_t rows, float *y, size_t ldy, bool accumulate);

// The first `groups` groups of a bf12 panel as a bf16 panel of that many k.
using ExpandBf12Kernel = void (*)(const void *panel, uint32_t groups, uint16_t *out);

// c[p][r * ldc + j] = (accumulate ? c[p][...] : 0) + sum over i < k of a[r * a_row + i * a_col] * b[p][i * ldb + j],
// r < rows <= tile_rows, p < npanels, j < 16; b[p] is plain row-major.
using TileKernel = void (*)(const float *a, size_t a_row, size_t a_col, const float *const *b, size_t ldb, uint32_t k,
                            float *const *c, size_t ldc, uint32_t rows, uint32_t npanels, bool accumulate);

// Tiles of 16 tokens of a KV cache, wherever they lie: [0, count) are multiplied, [count, count + ahead) fetched
// meanwhile, ahead <= count <= kTilesTogether.
struct KvTiles {
    const char *const *at;
    uint32_t count, ahead;
};
constexpr uint32_t kTilesTogether = 4;
constexpr uint32_t kValueWidth = 2 * kPanelRows;
constexpr size_t valueElement(uint32_t panel, uint32_t key) {
    return (size_t{panel / 2} * kPanelRows + key) * kValueWidth + panel % 2 * kPanelRows;
}
// scores[r * lds + 16 * t + j] = sum over i < dh of q[r * ldq + i] * tile t's [dh][16], r < rows <= tile_rows
using ScoreKernel = void (*)(const float *q, size_t ldq, uint32_t rows, const KvTiles &keys, uint32_t dh, float *scores,
                             size_t lds);
// out[r * ldo + 16 * p + j] = (accumulate ? out[...] : 0) + sum over keys of weights[r * ldw + key] * tiles' values
// [npanels / 2][16 keys][32], key < nkeys, which end in the last tile, p < npanels (even). Two panels side by side make
// a cache line of 16-bit values, and so a tile one stream.
using WeighKernel = void (*)(const float *weights, size_t ldw, uint32_t rows, const KvTiles &values, uint32_t nkeys,
                             uint32_t npanels, float *out, size_t ldo, bool accumulate);
struct Kernels {
    const char *name;
    uint32_t tile_rows, quant_tile_rows;  // rows of a register tile, and of one of quantised layers
    uint32_t tileRows(WeightType type) const { return isQuantised(type) ? quant_tile_rows : tile_rows; }
    GemvKernel gemv[kExactTypes];
    ExpandBf12Kernel expand_bf12;
    TileKernel tile;
    ScoreKernel score[kFloatTypes];
    WeighKernel weigh[kFloatTypes];
    GemvQuantKernel gemv_quant[kQuantTypes];
    // Whether QuantRows have a group's rows side by side, and 16-bit codes as the high bytes of a row's group (signed),
    // then the low ones.
    bool split_codes;
    // Row r of x [k] as codes, scales and offsets.
    void (*quantize[kQuantTypes])(const float *x, uint32_t k, const QuantRows &out, uint32_t r);
    // out = x / sqrt(mean(x^2) + epsilon) * weight; out may be x
    void (*rmsnorm)(float *out, const float *x, const float *weight, uint32_t n, float epsilon);
    // x += delta
    void (*add)(float *x, const float *delta, uint32_t n);
    // (x[i], x[i + half]) rotated by (cos[i], sin[i]), i < half
    void (*rope)(float *x, const float *cos, const float *sin, uint32_t half);
    // largest of s[0..n), n >= 1
    float (*max)(const float *s, uint32_t n);
    // s[i] = exp(s[i] - shift); returns their sum. s[i] <= shift.
    float (*expSum)(float *s, uint32_t n, float shift);
    // out[i] = gate[i] / (1 + exp(-gate[i])) * up[i]
    void (*siluMul)(float *out, const float *gate, const float *up, uint32_t n);
    // out = in converted; f16 saturates at +-65504 so that a large value does not become infinite in the KV cache
    void (*store[kFloatTypes])(void *out, const float *in, uint32_t n);
    // out = in as floats, in plain order
    void (*load[kFloatTypes])(float *out, const void *in, uint32_t n);
    // out[i][j] = in[i][j] * scales[per_column ? j : i], int8 and bf16, i < rows, j < 16
    void (*load_codes)(float *out, const void *in, const uint16_t *scales, uint32_t rows, bool per_column);
};

extern const Kernels kScalarKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
extern const Kernels kAvx512VnniKernels;
extern const Kernels kAmxKernels;  // only where the process may use tiles (dispatch.cpp)
#elif defined(__aarch64__)
extern const Kernels kNeonKernels;
extern const Kernels kNeonDotprodKernels;
extern const Kernels kNeonI8mmKernels;
#endif

}  // namespace q3::cpu
