#include "ops/cpu/pack/affine.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "ops/cpu/pack/column_order.h"
#include "ops/cpu/panel_element.h"
#include "ops/half.h"

namespace q3::cpu {
namespace {

// Of codes with scales apart.
WeightFormat formatOfCodes(const StoredMatrix &m) {
    constexpr int32_t kMostZero = 1024;  // which f16 holds exactly, with what is added to it
    if (m.zero_offset < -kMostZero || m.zero_offset > kMostZero) {
        return kF32;
    }
    const bool own_zeros = m.zeros != nullptr && !isFloatDType(m.zero_dtype);
    const bool float_zeros = m.zeros != nullptr && isFloatDType(m.zero_dtype);
    const bool half = m.scale_dtype == DType::kF16;
    const int32_t middle = m.dtype == DType::kU8 ? 128 : (m.dtype == DType::kI8 ? 0 : 8);
    const bool symmetric = m.zeros == nullptr && m.zero_offset == middle;
    if (m.dtype == DType::kU4 && !float_zeros && (own_zeros || m.zeros == nullptr) && m.zero_offset >= 0 &&
        m.zero_offset <= 16) {
        return half ? (symmetric ? kA4 : kA4z) : kA4w;
    }
    if (m.dtype != DType::kU4 && symmetric) {
        return half ? kA8 : kA8w;
    }
    return kAg;
}

// A code of a run, as simd_affine.h reads it.
template <uint32_t Bits> void putCode(char *run, uint32_t row, uint32_t i, uint32_t code) {
    const uint32_t step = i / 4;
    const auto add = [&](size_t at, uint32_t bits) {
        run[at] = static_cast<char>(static_cast<uint8_t>(run[at]) | bits);
    };
    if constexpr (Bits == 8) {
        add((size_t{step} * kPanelRows + row) * 4 + i % 4, code);
    } else if constexpr (Bits == 6) {
        const auto line = [&](uint32_t t) { return ((step / 4 * 3 + t) * kPanelRows + row) * 4 + i % 4; };
        if (step % 4 < 3) {
            add(line(step % 4), code);
        } else {
            for (uint32_t t = 0; t < 3; ++t) {
                add(line(t), (code >> (2 * t) & 3U) << 6);
            }
        }
    } else {
        add((size_t{step} / 2 * kPanelRows + row) * 4 + i % 4, (code & 15U) << (step % 2 * 4));
        if constexpr (Bits == 5) {
            add(kGroup / 2 * kPanelRows + size_t{row} * 4 + i % 4, (code >> 4) << step);
        }
    }
}

template <typename Value> void put(char *group, size_t index, Value value) {
    std::memcpy(group + index * sizeof value, &value, sizeof value);
}

// The scales of piece `index` of a group for one row. `shift`: what is added to codes and their zero.
template <WeightFormat T> void putScales(char *group, uint32_t index, uint32_t row, const CodePiece &piece, int shift) {
    constexpr AffineInfo info = affineOf(T);
    if constexpr (info.scales == AffineInfo::kHalf || info.scales == AffineInfo::kHalfZero) {
        put(group, row, floatToF16(piece.scale));
    }
    if constexpr (info.scales == AffineInfo::kWide || info.scales == AffineInfo::kWideZero) {
        put(group, row, piece.scale);
    }
    if constexpr (info.scales == AffineInfo::kHalfZero) {
        group[kScaleBytes + row] = static_cast<char>(piece.zero);
    }
    if constexpr (info.scales == AffineInfo::kWideZero) {
        group[kPanelRows * sizeof(float) + row] = static_cast<char>(piece.zero);
    }
    if constexpr (info.scales == AffineInfo::kSuper) {
        char *factors = group + kScaleBytes * (info.minimum ? 2 : 1);
        put(group, row, piece.d);
        factors[index * kPanelRows + row] = static_cast<char>(piece.d_factor);
        if constexpr (info.minimum) {
            put(group, kPanelRows + row, piece.dmin);
            factors[(info.runs() * info.pieces + index) * kPanelRows + row] = static_cast<char>(piece.dmin_factor);
        }
    }
    if constexpr (info.scales == AffineInfo::kFull) {
        put(group, size_t{index} * kPanelRows + row, piece.scale);
        put(group, (size_t{info.pieces} + index) * kPanelRows + row, piece.minimum);
        put(group, (size_t{4} * info.pieces + index) * kPanelRows + row,
            floatToF16(static_cast<float>(piece.zero + shift)));
    }
}

template <WeightFormat T> void packPanel(PanelReader &reader, const PanelReader::Rows &rows, uint32_t k, char *panel) {
    constexpr AffineInfo info = affineOf(T);
    constexpr uint32_t kPieceK = kGroup / info.pieces;
    for (uint32_t j = 0; j < kPanelRows; ++j) {
        const int16_t *codes = rows.codes[j];
        const CodePiece *pieces = rows.pieces[j];
        if (codes == nullptr) {
            continue;
        }
        for (uint32_t k0 = 0; k0 < k; k0 += kPieceK) {
            char *group = panel + panelOffset(T, k0 / infoOf(T).group * infoOf(T).group);
            const uint32_t in_group = k0 % infoOf(T).group;
            char *run = group + info.headBytes() + in_group / kGroup * info.runBytes();
            const CodePiece &piece = pieces[k0 / kPiece];
            // Codes whose zero is the format's, or else codes that are not negative.
            int least = 0;
            for (uint32_t i = k0; i < std::min(k, k0 + kPieceK); ++i) {
                least = std::min<int>(least, codes[i]);
            }
            const int shift = info.scales == AffineInfo::kFull ? (least < 0 ? 128 : 0)
                              : info.ownZero()                 ? 0
                                                               : info.zero - piece.zero;
            putScales<T>(group, in_group / kPieceK, j, piece, shift);
            if (!std::isfinite(piece.scale) || !std::isfinite(piece.minimum)) {
                reader.reportScale(rows, k0, j);
            }
            for (uint32_t i = k0; i < std::min(k, k0 + kPieceK); ++i) {
                putCode<info.bits>(run, j, i % kGroup, static_cast<uint32_t>(codes[i] + shift));
            }
        }
    }
}

}  // namespace

WeightFormat formatAsGiven(const HostMatrix &matrix) {
    if (matrix.stored == nullptr) {
        return formatOf(matrix.dtype);
    }
    const StoredMatrix &m = *matrix.stored;
    if (!m.groups.empty()) {
        // What room the ends of groups leave free may come to more than floats.
        const WeightFormat format = formatOfCodes(m);
        const auto k = static_cast<uint32_t>(columnOrder(matrix).size());
        return panelBytes(format, k) < panelBytes(kF32, matrix.cols) ? format : kF32;
    }
    const BlockShape block = blockShape(m.dtype);
    if (!m.hasPieces() || matrix.first_col % kPiece != 0) {
        return kF32;
    }
    if (m.dtype == DType::kF8E4m3) {
        const bool whole = m.block_cols % kF8Group == 0 || m.block_cols >= m.cols;
        return whole && matrix.first_col % kF8Group == 0 ? kF8 : kF32;
    }
    // Groups begin where blocks do.
    const uint32_t width = block.elements > 0 ? block.elements : kGroup;
    if (matrix.first_col % width != 0 || (block.elements == 0 && m.block_cols % kGroup != 0 && m.block_cols < m.cols)) {
        return kAg;
    }
    return block.elements > 0 ? formatOf(m.dtype) : formatOfCodes(m);
}

WeightFormat formatAsGiven(const LinearSource &source) {
    const WeightFormat first = formatAsGiven(source.parts[0]);
    const size_t parts = source.parts.size() / std::max(1U, source.experts);
    bool same = true;
    bool codes = true;
    bool one_order = true;  // of every expert
    for (size_t i = 0; i < source.parts.size(); ++i) {
        const HostMatrix &part = source.parts[i];
        const WeightFormat format = formatAsGiven(part);
        same = same && format == first;
        codes = codes && isAffine(format) && part.stored->groups.empty();
        one_order = one_order && haveOneOrder(part, source.parts[i / parts * parts]);
    }
    if (same && one_order) {
        return first;
    }
    return codes ? kAg : kF32;
}

void packF8Panel(PanelReader &reader, const PanelReader::Rows &rows, WeightFormat /*format*/, uint32_t k, char *panel) {
    for (uint32_t j = 0; j < kPanelRows; ++j) {
        for (uint32_t i = 0; rows.codes[j] != nullptr && i < k; ++i) {
            char *group = panel + panelOffset(kF8, i / kF8Group * kF8Group);
            const float scale = rows.pieces[j][i / kPiece].scale;
            const auto code = static_cast<uint8_t>(rows.codes[j][i]);
            put(group, j, scale);
            group[f8Byte(j, i % kF8Group)] = static_cast<char>(code);
            if ((code & 0x7fU) == 0x7fU || !std::isfinite(scale)) {
                reader.reportScale(rows, i, j);
            }
        }
    }
}

void forCodedSamples(const std::function<void(const LinearSource &)> &use) {
    constexpr uint32_t kRows = 20;
    constexpr uint32_t kCols = 512;
    // Small bytes, so that halves among them are numbers.
    std::vector<uint8_t> bytes(size_t{kRows} * kCols * 2);
    uint32_t state = 1;
    for (uint8_t &byte : bytes) {
        state = state * 1664525U + 1013904223U;
        byte = state >> 24 & 0x3fU;
    }
    const auto pack = [&](DType dtype, DType scales, DType zeros, const std::vector<uint32_t> &groups = {}) {
        StoredMatrix m;
        m.groups = groups;
        m.dtype = dtype;
        m.rows = kRows;
        m.cols = m.row_stride = kCols;
        m.col_stride = 1;
        m.data = bytes.data();
        m.block_rows = 1;
        m.block_cols = scales == DType::kDefault ? kCols : kGroup;
        m.scale_dtype = scales;
        m.scales = scales == DType::kDefault ? nullptr : bytes.data();
        m.zero_dtype = zeros;
        m.zeros = zeros == DType::kDefault ? nullptr : bytes.data();
        HostMatrix part{bytes.data(), dtype, kRows, kCols, kCols, 1};
        part.stored = &m;
        use({"fingerprint", 0, {part}});
    };
    for (const DType dtype : {DType::kGgufQ8_0, DType::kGgufQ4_0, DType::kGgufQ4_1, DType::kGgufQ3K, DType::kGgufQ4K,
                              DType::kGgufQ5K, DType::kGgufQ6K}) {
        pack(dtype, DType::kDefault, DType::kDefault);
    }
    pack(DType::kU4, DType::kF16, DType::kU8);
    std::vector<uint32_t> groups(kCols);
    for (uint32_t col = 0; col < kCols; ++col) {
        groups[col] = (col * 7 + 3) % (kCols / kGroup);
    }
    pack(DType::kU4, DType::kF16, DType::kU8, groups);
    pack(DType::kU4, DType::kBf16, DType::kU8);
    pack(DType::kI8, DType::kBf16, DType::kDefault);
    pack(DType::kF8E4m3, DType::kDefault, DType::kDefault);
}

void packAffinePanel(PanelReader &reader, const PanelReader::Rows &rows, WeightFormat format, uint32_t k, char *panel) {
    forEachFormat([&](auto constant) {
        constexpr WeightFormat T = decltype(constant)::value;
        if constexpr (isAffine(T)) {
            if (T == format) {
                packPanel<T>(reader, rows, k, panel);
            }
        }
    });
}

}  // namespace q3::cpu
