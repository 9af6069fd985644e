// The table of single-threaded kernels that one instruction set provides. The backend's nodes split their work over
// threads and call these on ranges; nothing here allocates, throws or knows threads. formats.h describes panels.
//
// Numerics that every table keeps, so that results do not depend on batch size, chunking or thread count:
//   * an output of a float layer or an attention product is one chain of fused multiply-adds over k = 0, 1, 2, ...,
//     one rounding each, whatever tile it was computed in; a chain that is cut (blocks of k) goes through a float;
//   * where activations are rounded to bf16 (RoundedRows), an output is one chain over pairs of k: of each pair the odd
//   k
//     first, then the even one, one rounding each, with subnormal numbers read and written as zeros. That is what
//     VDPBF16PS does; tables without it run the same chain with multiply-adds, which flush subnormal numbers because
//     the threads that compute do (runtime/worker_thread.h). With two pieces each pair is added twice, first with the
//     pieces that are larger. AMX has an order of its own, which all kernels of its table keep (simd_amx_bf16.h);
//   * an output of a quantised layer is one chain over groups of 32 k: sum = fma(float(dot), w_scale * x_scale, sum),
//     where dot is the exact integer product of the group's weight codes and activation codes of 8 or 16 bits
//     (QuantRows). Integers may be added in any order, so every instruction set gives the same bits;
//   * an output of a layer of an affine format is one chain over pieces of 16 or 32 k, each of one or two steps:
//     sum = fma(float(dot), w_scale * x_scale, sum), where dot is the exact integer product of (code - zero) and the
//     activation codes, then with a minimum sum = fma(-float(sum of the piece's activation codes), w_minimum * x_scale,
//     sum);
//   * an output of an f8 layer is one chain over blocks of 128 k: sum = fma(w_scale, block, sum), where block is the
//     chain of a bf16 layer over the block's k, from 0;
//   * reductions inside a row (sums of squares, of exponentials) depend on the row's length alone.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "ops/cpu/formats.h"

namespace q3::cpu {

constexpr uint32_t kMaxTileRows = 16;    // bound of KernelTable::tileRows
constexpr uint32_t kMaxStreamRows = 28;  // bound of KernelTable::quant_stream_rows and bf16_stream_rows

// How a row's 32 activation codes of a group lie in memory, which is the business of the kernels that multiply them.
enum CodeOrder : uint8_t {
    kByteCodes,   // 8 bits each
    kSplitCodes,  // 16 bits each: the high bytes, then the low ones, both signed
    kWordCodes,   // 16 bits of space each, k = 0, 2, 1, 3, 4, 6, 5, 7 ...: even and odd bytes of a quad of weights
    kPlainCodes,  // int16, in the order of k
};
constexpr size_t codeGroupBytes(CodeOrder order) {
    return order == kByteCodes ? kGroup : 2 * kGroup;
}

// Rows of activations as codes: x = code * scale, one scale per kGroup of a row. A group's rows lie side by side.
struct QuantRows {
    char *codes;       // group_bytes per row and group, zeros beyond k up to a whole group
    float *scales;     // one per row and group; NaN for a group with NaN or infinity
    int32_t *offsets;  // one per row and group: what must be added to a product with unsigned weight codes, the sum of
                       // the group's codes * -zero_code; for affine formats the sums themselves (affineSum)
    size_t rows;       // from group to group
    size_t group_bytes;

    // The part that begins with this row and group.
    QuantRows from(size_t row, size_t group) const {
        const size_t at = row + group * rows;
        return {codes + at * group_bytes, scales + at, offsets + at, rows, group_bytes};
    }
};

// The sum of the activation codes of piece Piece of Pieces of a group, from its offset. This holds two sums of 16
// codes, 16 bits each; where codes themselves have 16 bits, it is the sum of all, the only piece.
template <CodeWidth X> constexpr int32_t packAffineSums(int32_t first, int32_t second) {
    if (X == k16Bits) {
        return first + second;
    }
    return static_cast<int32_t>(static_cast<uint32_t>(second) << 16 | (static_cast<uint32_t>(first) & 0xffffU));
}
template <CodeWidth X, uint32_t Pieces, int Piece> constexpr int32_t affineSum(int32_t offset) {
    if (X == k16Bits) {
        return offset;
    }
    const int32_t first = static_cast<int16_t>(offset);
    const int32_t second = offset >> 16;
    return Pieces == 1 ? first + second : (Piece == 0 ? first : second);
}

// Rows of activations as sums of `pieces` numbers of bf16 each: 1, or 2, of which the second holds what the rounding of
// the first has left. A row has an entry per pair of k and piece, the pieces of a pair side by side, and zeros beyond k
// up to a whole group. An entry is what the table multiplies with: two bf16, or the same as two floats. With AMX the
// pieces of a whole group of pairs lie side by side.
constexpr uint32_t kMaxPieces = 2;
struct RoundedRows {
    const char *data;
    size_t row_bytes;  // from row to row
};

// Bytes of such a row of k whose entries have pair_bytes.
constexpr size_t roundedRowBytes(uint32_t k, uint32_t pieces, size_t pair_bytes) {
    return size_t{roundUp(k, kGroup)} / 2 * pieces * pair_bytes;
}

// y[r * ldy + j] = (accumulate ? y[...] : 0) + sum over k of x[r * ldx + k] * w[j][k], r < rows <= tile_rows,
// j < 16 * npanels.
using PanelKernel = void (*)(const void *panels, size_t panel_bytes, uint32_t npanels, uint32_t k, const float *x,
                             size_t ldx, uint32_t rows, float *y, size_t ldy, bool accumulate);
// The same for bf16, bf12 and f8 with rounded activations, rows <= rounded_tile_rows.
using RoundedPanelKernel = void (*)(const void *panels, size_t panel_bytes, uint32_t npanels, uint32_t k,
                                    const RoundedRows &x, uint32_t rows, float *y, size_t ldy, bool accumulate);
// The same for formats that take codes, over `groups` groups of 32 k, rows <= quant_tile_rows of
// q8 and q4, tile_rows of the affine formats.
using QuantPanelKernel = void (*)(const void *panels, size_t panel_bytes, uint32_t npanels, uint32_t groups,
                                  const QuantRows &x, uint32_t rows, float *y, size_t ldy, bool accumulate);
// Row r of x [k] as codes.
using QuantizeKernel = void (*)(const float *x, uint32_t k, const QuantRows &out, uint32_t r);

// How one format is multiplied with codes of one width.
struct CodeKernels {
    CodeOrder order;
    QuantizeKernel quantize;
    QuantPanelKernel multiply;
    // The same for panels that come from memory and not from a cache, rows <= quant_stream_rows; or null.
    QuantPanelKernel stream = nullptr;
};

// The first `groups` groups of a bf12 panel as a bf16 panel of that many k.
using ExpandBf12Kernel = void (*)(const void *panel, uint32_t groups, uint16_t *out);

// c[p][r * ldc + j] = (accumulate ? c[p][...] : 0) + sum over i < k of a[r * a_row + i * a_col] * b[p][i * ldb + j],
// r < rows <= tile_rows, p < npanels, j < 16; b[p] is plain row-major.
using TileKernel = void (*)(const float *a, size_t a_row, size_t a_col, const float *const *b, size_t ldb, uint32_t k,
                            float *const *c, size_t ldc, uint32_t rows, uint32_t npanels, bool accumulate);

// Tiles of 16 tokens of a KV cache, wherever they lie: kernels multiply tiles [0, count) and prefetch tiles
// [count, count + ahead), ahead <= count <= kTilesTogether.
struct KvTiles {
    const char *const *at;
    uint32_t count, ahead;
};
constexpr uint32_t kTilesTogether = 4;
constexpr uint32_t kValueWidth = 2 * kPanelRows;
// Index in a tile of values of the first element of a key's row of a panel.
constexpr size_t valueElement(uint32_t panel, uint32_t key) {
    return (size_t{panel / 2} * kPanelRows + key) * kValueWidth + panel % 2 * kPanelRows;
}
// scores[r * lds + 16 * t + j] = sum over i < dh of q[r * ldq + i] * keys[t][i][j], r < rows <= tile_rows; keys
// [dh][16]
using ScoreKernel = void (*)(const float *q, size_t ldq, uint32_t rows, const KvTiles &keys, uint32_t dh, float *scores,
                             size_t lds);
// out[r * ldo + 16 * p + j] = (accumulate ? out[...] : 0) + sum over key < nkeys of weights[r * ldw + key] *
// value[p][j] of the key, p < npanels (even). A tile has values [npanels / 2][16 keys][32], at valueElement(); the last
// tile holds key nkeys - 1. Two panels lie side by side because they fill a cache line of 16-bit values, which makes a
// tile one stream.
using WeighKernel = void (*)(const float *weights, size_t ldw, uint32_t rows, const KvTiles &values, uint32_t nkeys,
                             uint32_t npanels, float *out, size_t ldo, bool accumulate);

// Products of the affine formats, by the width of the activation codes.
struct AffineKernels {
    PerFormat<QuantPanelKernel> of[kCodeWidths];
    bool full_tiles;  // full tiles are so much faster than those with some rows less that rows are cut into full ones
};
// score and weigh where attention is in bf16: queries and weights are rounded (RoundedRows, one piece) and tiles have
// their elements in pairs, keys [dh / 2][16 keys][2] and values [8 pairs of keys][16 * npanels][2], so that sums run
// over pairs as those of layers do.
using ScorePairsKernel = void (*)(const RoundedRows &q, uint32_t rows, const KvTiles &keys, uint32_t dh, float *scores,
                                  size_t lds);
using WeighPairsKernel = void (*)(const RoundedRows &weights, uint32_t rows, const KvTiles &values, uint32_t nkeys,
                                  uint32_t npanels, float *out, size_t ldo, bool accumulate);

struct KernelTable {
    const char *name;
    uint32_t tile_rows, quant_tile_rows;  // rows of a register tile, and of one of q8 and q4
    uint32_t quant_stream_rows;           // rows of CodeKernels::stream; 0: there is none
    uint32_t bf16_stream_rows;            // rows of streamBf16; 0: there is none
    uint32_t tileRows(WeightFormat format) const {
        return takesCodes(format) && !isAffine(format) ? quant_tile_rows : tile_rows;
    }
    PerFormat<PanelKernel> multiplyPanels;      // of formats that take floats
    PerFormat<CodeKernels> codes[kCodeWidths];  // of formats that take codes; products of affine ones are apart
    const AffineKernels *affine;
    QuantPanelKernel quantPanels(WeightFormat format, CodeWidth width, bool streamed = false) const {
        const CodeKernels &kernels = codes[width][format];
        return isAffine(format) ? affine->of[width][format]
                                : (streamed && kernels.stream != nullptr ? kernels.stream : kernels.multiply);
    }
    // Of bf16, bf12 and f8, by the number of pieces less one; rows of a register tile.
    PerFormat<RoundedPanelKernel> multiplyRounded[kMaxPieces];
    uint32_t rounded_tile_rows;
    // Of bf16 with one piece: the same for panels that come from memory, rows <= bf16_stream_rows; or null.
    RoundedPanelKernel streamBf16;
    bool rounded_by_groups;  // in the order of AMX
    size_t pair_bytes;       // of an entry of RoundedRows
    // x [k] as a row of RoundedRows.
    void (*round[kMaxPieces])(const float *x, uint32_t k, char *out);
    ExpandBf12Kernel expandBf12;
    // k bytes (roundUp(k, 4) are there) of every row of an f8 group as a bf16 panel, without the scale.
    void (*expandF8)(const char *codes, uint32_t k, uint16_t *out);
    // y[r * ldy + j] += scale[j] * part[r * ldp + j] with one rounding, r < rows, j < 16
    void (*addScaled)(float *y, size_t ldy, const float *part, size_t ldp, const float *scale, uint32_t rows);
    TileKernel tile;
    PerFormat<ScoreKernel> score;  // of plain formats, as are weigh, store and load
    PerFormat<WeighKernel> weigh;
    ScorePairsKernel scorePairs;
    WeighPairsKernel weighPairs;
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
    // exp(s[i] - shift), i < count, as a row of RoundedRows of n >= count values, those beyond count zeros; returns the
    // sum of the exponentials as they were before rounding. s[i] <= shift.
    float (*expRound)(const float *s, uint32_t count, float shift, uint32_t n, char *out);
    // out[i] = gate[i] / (1 + exp(-gate[i])) * up[i]
    void (*siluMul)(float *out, const float *gate, const float *up, uint32_t n);
    // out = in converted; f16 saturates at +-65504 so that a large value does not become infinite in the KV cache
    PerFormat<void (*)(void *out, const float *in, uint32_t n)> store;
    // out = in as floats
    PerFormat<void (*)(float *out, const void *in, uint32_t n)> load;
    // out[i][j] = in[i][j] * scales[per_column ? j : i], int8 and bf16, i < rows, j < 16
    void (*loadCodes)(float *out, const void *in, const uint16_t *scales, uint32_t rows, bool per_column);
};

extern const KernelTable kScalarKernels;
#if defined(__x86_64__)
extern const AffineKernels kAvx2Affine;
extern const AffineKernels kAvx512Affine;
extern const AffineKernels kAvx512VnniAffine;
extern const KernelTable kAvx2Kernels;
extern const KernelTable kAvxVnniKernels;

extern const KernelTable kAvx512Kernels;
extern const KernelTable kAvx512VnniKernels;
extern const KernelTable kAvx512Bf16Kernels;
extern const KernelTable kAmxKernels;  // only where the process may use tiles (dispatch.cpp)
#elif defined(__aarch64__)
extern const AffineKernels kNeonAffine;
extern const AffineKernels kNeonDotprodAffine;
extern const KernelTable kNeonKernels;
extern const KernelTable kNeonDotprodKernels;
extern const KernelTable kNeonI8mmKernels;
#endif

}  // namespace q3::cpu
