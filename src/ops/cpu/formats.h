// Formats of packed weights. All code that asks what a format is like asks its row in kFormats.
//
// Every format stores panels ("panel16"): 16 output rows side by side, k-major, one sequential stream per panel. A
// panel is a sequence of groups, each with a fixed number of k; the last group is padded with zeros.
//   f32, f16  [K][16]
//   bf16      [ceil(K / 2)][16][2], even k low and odd k high in each 32-bit word: converting 8 rows to float is one
//             shift for even k and one mask for odd k.
//   q8    {bf16 scale[2][16]; uint8 q[2][8][16][4]}
//         w = (q - 128) * scale, two groups of 32 k: all rows' codes of a quad of k are then a whole cache line. Quads
//         of k lie side by side, as products of bytes want them, and are unsigned, as those of x86 do.
//   q4    {bf16 scale[2][16]; uint8 q[2][4][16][4]}
//         w = (nibble - 8) * scale. q[group][o][row][i] holds k = 8 o + i low and k = 8 o + 4 + i high.
//   bf12  {Bf12Header; {uint8 code[16][2]; uint8 low[2][16][2]} quad[8]}
//         Lossless bf16. low[pair][place][odd] is the lower byte of k = 4 quad + 2 pair + odd. The upper byte (the sign
//         and all of the exponent but its last bit) is header.base - kBf12Below[nibble], which kernels look up with one
//         shuffle of 16 bytes; code[place][odd] holds the nibble of the first pair low and of the second high. Rows are
//         stored in the order kBf12Order, so that interleaving the two bytes gives the words of a bf16 panel. A pair of
//         k with a weight whose upper byte no nibble stands for (less than one pair in a hundred) has its bit in
//         header.pairs and is stored at header.raw, as in a bf16 panel.
//
//   f8    {f32 scale[16]; uint8 e4m3[32][4][2][4][2]}: 128 k with one scale a row. e4m3[o][i][half][j][odd] holds row
//         4 i + j at k = 4 o + 2 half + odd: interleaving either half of 16 bytes with other bytes makes two pairs of
//         bf16 of them. Kernels multiply it as bf16 panels.
//
// Formats of codes that hold quantised checkpoints without loss (AffineInfo). A run of 32 k is uint8 q[4][16][4] as
// q4's, which 5-bit codes have uint8 plane[16][4] after (bit t: of k = 4 t + i). 8-bit codes are uint8 q[8][16][4],
// 6-bit ones uint8 q[2][3][16][4]: q[h][t] holds k = 16 h + 4 t + i in its lower 6 bits, and bits 2 t and 2 t + 1 of
// k = 16 h + 12 + i above them.
//   a8, a4    {f16 scale[16]; run}
//   a4z       {f16 scale[16]; uint8 zero[16]; run}
//   a8w       {f32 scale[16]; run}
//   a4w       {f32 scale[16]; uint8 zero[16]; run}
//   k4 to k8  {f16 d[16]; f16 dmin[16] (where there is a minimum); int8 factor[pieces][16]; int8 least[pieces][16]
//             (the same); run[8]}: the scale of a piece of 256 / pieces k is d * factor, its minimum dmin * least.
//   ag        {f32 scale[2][16]; f32 minimum[2][16]; f16 zero[2][16]; run}: two pieces of 16 k; holds all others.
//
// A new format needs an enumerator and a row here, packing (pack/), reading of single weights (panel_element.h) and
// kernels (kernels/); the compiler names what is missing.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace q3 {
enum class DType : int32_t;  // ops/types.h, which files for one instruction set must not include
}

namespace q3::cpu {

constexpr uint32_t kPanelRows = 16;
constexpr uint32_t kGroup = 32;  // k per group of bf12, per scale of q8 and q4, and per scale of activation codes

constexpr uint32_t kF8Group = 128;  // k per scale of f8
constexpr size_t kF8HeadBytes = kPanelRows * sizeof(float);

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

// Indices of kFormats. Their order means nothing.
enum WeightFormat : uint8_t {
    kF32,
    kF16,
    kBf16,
    kBf12,
    kQ8,
    kQ4,
    kA8,
    kA4,
    kA4z,
    kK4,
    kK5,
    kK6,
    kK8,
    kA8w,
    kA4w,
    kAg,
    kF8
};

struct FormatInfo {
    WeightFormat format;
    const char *name;
    uint32_t group;      // k per group of the layout
    size_t group_bytes;  // of a panel's group, all 16 rows
    bool plain;          // every element is a float or half by itself, so a KV tile can have this format too
    // Bits of a weight's code, of formats that are multiplied with activation codes (QuantRows); else 0.
    uint32_t code_bits;
    int zero_code;  // the weight code that stands for 0
};

constexpr size_t kScaleBytes = kPanelRows * sizeof(uint16_t);  // of kGroup k: one bf16 per row
constexpr uint32_t kScaleGroups = 2;                           // scales per row in a group of q8 or q4

// A format of codes with scales as checkpoints have them: weight = scale * (code - zero) - minimum.
struct AffineInfo {
    // How scales are kept, as above: one f16 or f32, with or without a zero of their own, ...
    enum Scales : uint8_t { kNone, kHalf, kHalfZero, kWide, kWideZero, kSuper, kFull };
    Scales scales = kNone;
    uint32_t bits = 0;    // of a code
    uint32_t pieces = 0;  // of a run of 32 k, with a scale each
    bool minimum = false;
    int zero = 0;  // the code that stands for 0, where scales do not come with one

    // Whether activations may have codes of 16 bits too. The others (GGUF's K-quants and the formats that are read as
    // ag) are nearer to floats with 8 bits than llama.cpp is (docs/checkpoints.md).
    constexpr bool takesWideCodes() const { return scales != kNone && pieces == 1 && !minimum; }
    constexpr bool ownZero() const { return scales == kHalfZero || scales == kWideZero || scales == kFull; }
    constexpr uint32_t runs() const { return scales == kSuper ? 8 : 1; }
    constexpr size_t runBytes() const { return kGroup * kPanelRows / 8 * bits; }
    // Bytes in front of the runs of a group.
    constexpr size_t headBytes() const {
        switch (scales) {
        case kNone:
            return 0;
        case kHalf:
            return kScaleBytes;
        case kHalfZero:
            return kScaleBytes + kPanelRows;
        case kWide:
            return kPanelRows * sizeof(float);
        case kWideZero:
            return kPanelRows * sizeof(float) + kPanelRows;
        case kSuper:
            return (kScaleBytes + runs() * pieces * kPanelRows) * (minimum ? 2 : 1);
        case kFull:
            return pieces * (2 * kPanelRows * sizeof(float) + kScaleBytes);
        }
        return 0;
    }
    constexpr size_t groupBytes() const { return headBytes() + runs() * runBytes(); }
};

constexpr AffineInfo affineOf(WeightFormat format) {
    switch (format) {
    case kA8:
        return {AffineInfo::kHalf, 8, 1, false, 128};
    case kA4:
        return {AffineInfo::kHalf, 4, 1, false, 8};
    case kA4z:
        return {AffineInfo::kHalfZero, 4, 1, false, 0};
    case kK4:
        return {AffineInfo::kSuper, 4, 1, true, 0};
    case kK5:
        return {AffineInfo::kSuper, 5, 1, true, 0};
    case kK6:
        return {AffineInfo::kSuper, 6, 2, false, 32};
    case kK8:
        return {AffineInfo::kSuper, 8, 2, true, 128};
    case kA8w:
        return {AffineInfo::kWide, 8, 1, false, 128};
    case kA4w:
        return {AffineInfo::kWideZero, 4, 1, false, 0};
    case kAg:
        return {AffineInfo::kFull, 8, 2, true, 0};
    default:
        return {};
    }
}
constexpr bool isAffine(WeightFormat format) {
    return affineOf(format).scales != AffineInfo::kNone;
}

constexpr FormatInfo affineRow(WeightFormat format, const char *name) {
    const AffineInfo info = affineOf(format);
    return {format, name, info.runs() * kGroup, info.groupBytes(), false, info.bits, info.zero};
}

constexpr FormatInfo kFormats[] = {
    {kF32, "f32", 1, kPanelRows * sizeof(float), true, 0, 0},
    {kF16, "f16", 1, kPanelRows * sizeof(uint16_t), true, 0, 0},
    {kBf16, "bf16", 2, 2 * kPanelRows * sizeof(uint16_t), true, 0, 0},
    {kBf12, "bf12", kGroup, kBf12GroupBytes, false, 0, 0},
    {kQ8, "q8", kScaleGroups * kGroup, kScaleGroups * (kScaleBytes + kGroup * kPanelRows), false, 8, 128},
    {kQ4, "q4", kScaleGroups * kGroup, kScaleGroups * (kScaleBytes + kGroup * kPanelRows / 2), false, 4, 8},
    affineRow(kA8, "a8"),
    affineRow(kA4, "a4"),
    affineRow(kA4z, "a4z"),
    affineRow(kK4, "k4"),
    affineRow(kK5, "k5"),
    affineRow(kK6, "k6"),
    affineRow(kK8, "k8"),
    affineRow(kA8w, "a8w"),
    affineRow(kA4w, "a4w"),
    affineRow(kAg, "ag"),
    {kF8, "f8", kF8Group, kF8HeadBytes + kF8Group * kPanelRows, false, 0, 0},
};
constexpr size_t kFormatCount = sizeof kFormats / sizeof kFormats[0];

constexpr const FormatInfo &infoOf(WeightFormat format) {
    return kFormats[format];
}

constexpr bool rowsMatchFormats() {
    for (size_t i = 0; i < kFormatCount; ++i) {
        if (kFormats[i].format != i) {
            return false;
        }
    }
    return true;
}
static_assert(rowsMatchFormats(), "a format is the index of its row");

// Whether such weights are multiplied with activation codes, or else with floats.
constexpr bool takesCodes(WeightFormat format) {
    return infoOf(format).code_bits > 0;
}

constexpr uint32_t roundUp(uint32_t value, uint32_t unit) {
    return (value + unit - 1) / unit * unit;
}

// Bytes of a panel in front of k, which begins a group.
constexpr size_t panelOffset(WeightFormat format, size_t k) {
    return k / infoOf(format).group * infoOf(format).group_bytes;
}

// Bytes of a panel of k.
constexpr size_t panelBytes(WeightFormat format, uint32_t k) {
    return panelOffset(format, roundUp(k, infoOf(format).group));
}

// Where a panel of a format with codes has the scales and the weight codes of k [32 g, 32 g + 32).
constexpr size_t scalesOffset(WeightFormat format, size_t g) {
    return panelOffset(format, g / kScaleGroups * kScaleGroups * kGroup) + g % kScaleGroups * kScaleBytes;
}
constexpr size_t codesOffset(WeightFormat format, size_t g) {
    return panelOffset(format, g / kScaleGroups * kScaleGroups * kGroup) + kScaleGroups * kScaleBytes +
           g % kScaleGroups * (kGroup * kPanelRows / 8 * infoOf(format).code_bits);
}

// Width of the codes that activations become in front of such formats.
enum CodeWidth : uint8_t { k8Bits, k16Bits };
constexpr size_t kCodeWidths = 2;
// With 127 * 256, a code of 16 bits is 256 * high + low with two signed bytes.
constexpr float largestCode(CodeWidth width) {
    return width == k8Bits ? 127.0F : 32512.0F;
}

// Bytes of an element of a plain format.
constexpr size_t elementBytes(WeightFormat format) {
    return infoOf(format).group_bytes / infoOf(format).group / kPanelRows;
}

// Whether it holds the codes of quantised checkpoints as they are.
constexpr bool keepsCodes(WeightFormat format) {
    return isAffine(format) || format == kF8;
}

// One value per format, such as a kernel, which is null for formats that it does not apply to.
template <typename T> struct PerFormat {
    T values[kFormatCount];
    constexpr T &operator[](WeightFormat format) { return values[format]; }
    constexpr const T &operator[](WeightFormat format) const { return values[format]; }
};

// A format as a type, for generic lambdas: the parameter's `value` is a constant.
template <WeightFormat T> struct FormatConstant {
    static constexpr WeightFormat value = T;
};

// Calls use(FormatConstant<T>()) for every format T.
template <size_t First = 0, typename Use> constexpr void forEachFormat(const Use &use) {
    if constexpr (First < kFormatCount) {
        use(FormatConstant<static_cast<WeightFormat>(First)>());
        forEachFormat<First + 1>(use);
    }
}

// The format of weights that are packed as `dtype`, or given in it and kept (most often: see formatAsGiven), or of KV
// tiles that keep it.
WeightFormat formatOf(DType dtype);

// The smallest bf16 not below a positive value: with a scale rounded down the largest value would be clipped.
uint16_t bf16Up(float value);

// Groups whose largest magnitude is below this are taken as zeros: the inverse of their scale would overflow.
constexpr float kLeastScale = 1e-30F;

}  // namespace q3::cpu
