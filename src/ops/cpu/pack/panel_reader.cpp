#include "ops/cpu/pack/panel_reader.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "ops/cpu/pack/transpose.h"
#include "ops/half.h"
#include "runtime/error.h"
#include "runtime/readable.h"

namespace q3::cpu {
namespace {

// Where the next copy may begin after one of so many bytes.
size_t aligned(size_t bytes) {
    return (bytes + 63) / 64 * 64;
}

// Whether one of n elements has all exponent bits set: adding `lowest` (the exponent's lowest bit) to the magnitude
// then carries into the sign bit. No early exit and no compare, so that it vectorises.
template <typename Bits> bool anyNonFinite(const void *data, size_t n, Bits lowest) {
    constexpr auto kSign = static_cast<Bits>(Bits{1} << (sizeof(Bits) * 8 - 1));
    const auto *elements = static_cast<const char *>(data);
    Bits any = 0;
    for (size_t i = 0; i < n; ++i) {
        const auto magnitude = static_cast<Bits>(readAs<Bits>(elements + i * sizeof(Bits)) & static_cast<Bits>(~kSign));
        any = static_cast<Bits>(any | static_cast<Bits>(magnitude + lowest));
    }
    return (any & kSign) != 0;
}

// [count / 2][16][2] -> [count][16]
template <float (*toFloat)(uint16_t)> void widen(const uint32_t *pairs, uint32_t count, float *out) {
    for (uint32_t i = 0; i < count; ++i) {
        const uint32_t *words = pairs + size_t{i} / 2 * kPanelRows;
        const uint32_t shift = i % 2 * 16;
        for (uint32_t j = 0; j < kPanelRows; ++j) {
            out[size_t{i} * kPanelRows + j] = toFloat(static_cast<uint16_t>(words[j] >> shift));
        }
    }
}

}  // namespace

float elementAsFloat(const char *data, DType dtype) {
    switch (dtype) {
    case DType::kF16:
        return f16ToFloat(readAs<uint16_t>(data));
    case DType::kBf16:
        return bf16ToFloat(readAs<uint16_t>(data));
    default:
        return readAs<float>(data);
    }
}

std::string describe(const char *name, int32_t layer) {
    return layer < 0 ? std::string(name) : std::string(name) + " of layer " + std::to_string(layer);
}

PanelReader::PanelReader(const LinearSource &source, DType dtype, const PanelShape &shape, const ColumnOrder &order)
    : source_(source), dtype_(dtype), shape_(shape), order_(order),
      zeros_(roundUp(source.parts[0].cols * static_cast<uint32_t>(sizeof(float)), 64) + 64), strip_panels_(1) {
    constexpr size_t kStripBytes = size_t{8} << 20;
    const auto apart = [](const HostMatrix &part) { return part.row_stride < part.col_stride; };
    if (std::any_of(source.parts.begin(), source.parts.end(), apart)) {
        const size_t panels = kStripBytes / std::max<size_t>(1, stripBytes(1));
        strip_panels_ = static_cast<uint32_t>(std::clamp<size_t>(panels, 1, 64));
    }
}

// ---------------------------------------------------------------- copies

// Most rows of a part that so many panels need at once.
uint32_t PanelReader::mostRows(const HostMatrix &part, uint32_t panels) const {
    return std::min(part.rows, (panels + 2) * kPanelRows);
}

// Most bytes that copies for so many panels take. Gate and up may be one part, of which two pieces are copied.
size_t PanelReader::stripBytes(uint32_t panels) const {
    size_t bytes = 0;
    for (const HostMatrix &part : source_.parts) {
        bytes += aligned(copyBytes(part, mostRows(part, panels))) + aligned(1);
    }
    return bytes;
}

PanelReader::Strip::Strip(const PanelReader &reader)
    : pieces_(2 * reader.source_.parts.size()),
      copies_(reader.dtype_ == DType::kDefault ? 0 : reader.stripBytes(reader.stripPanels())) {
    for (const HostMatrix &part : reader.source_.parts) {
        readers_.emplace_back();
        if (part.stored != nullptr) {
            StoredReader &stored = readers_.back().emplace(*part.stored);
            stored.reserve(reader.mostRows(part, reader.stripPanels()), part.cols);
        }
        for (Piece &piece : pieces_) {
            if (reader.dtype_ == DType::kDefault) {
                const auto cols = std::max(part.cols, reader.order_.count);
                piece.coded.reserve(reader.mostRows(part, reader.stripPanels()), cols);
            }
        }
    }
}

void PanelReader::copy(uint32_t begin, uint32_t end, Strip &strip) {
    strip.count_ = 0;
    strip.used_ = 0;
    if (!shape_.interleave) {
        copyLayerRows(begin * kPanelRows, std::min(shape_.out, end * kPanelRows), strip);
        return;
    }
    const uint32_t first = begin / 2 * kPanelRows;
    const uint32_t last = std::min(shape_.out, (end + 1) / 2 * kPanelRows);
    const bool alone = end - begin == 1;
    if (!alone || begin % 2 == 0) {
        copyLayerRows(first, last, strip);
    }
    if (!alone || begin % 2 == 1) {
        copyLayerRows(shape_.out + first, shape_.out + last, strip);
    }
}

// Rows [first, last) of the layer, of whatever parts they are.
void PanelReader::copyLayerRows(uint32_t first, uint32_t last, Strip &strip) {
    uint32_t part_begin = 0;
    size_t index = 0;
    for (const HostMatrix &part : source_.parts) {
        std::optional<StoredReader> &reader = strip.readers_[index++];
        const uint32_t from = std::max(part_begin, first);
        const uint32_t to = std::min(part_begin + part.rows, last);
        if (from < to) {
            Strip::Piece &piece = strip.pieces_[strip.count_++];
            piece.first = from;
            if (dtype_ == DType::kDefault) {
                piece.rows.rows = to - from;
                const Rectangle rectangle{part.first_row + from - part_begin, to - from, part.first_col, part.cols};
                if (!reader || !reader->codes(rectangle, piece.coded, order_)) {
                    unreadable_.store(true);
                }
                part_begin += part.rows;
                continue;
            }
            if (!copyRows(part, from - part_begin, to - from, strip.copies_.data() + strip.used_, piece.rows,
                          reader ? &*reader : nullptr)) {
                unreadable_.store(true);
            }
            strip.used_ += aligned(copyBytes(part, to - from));
        }
        part_begin += part.rows;
    }
}

PanelReader::Rows PanelReader::rows(uint32_t panel, const Strip &strip) const {
    const uint32_t block = shape_.interleave ? panel / 2 : panel;
    const uint32_t offset = shape_.interleave && panel % 2 == 1 ? shape_.out : 0;
    Rows result{};
    result.contiguous = true;
    result.one_dtype = true;
    result.first = offset + block * kPanelRows;
    size_t piece = 0;
    for (uint32_t j = 0; j < kPanelRows; ++j) {
        const uint32_t row = result.first + j;
        if (row >= offset + shape_.out) {
            result.data[j] = zeros_.data();
            result.dtypes[j] = result.dtypes[0];
            continue;
        }
        while (row - strip.pieces_[piece].first >= strip.pieces_[piece].rows.rows) {
            ++piece;
        }
        if (dtype_ == DType::kDefault) {
            const Strip::Piece &from = strip.pieces_[piece];
            result.codes[j] = from.coded.codesOf(row - from.first);
            result.pieces[j] = from.coded.piecesOf(row - from.first);
            continue;
        }
        const HostMatrix &matrix = strip.pieces_[piece].rows;
        const size_t size = dtypeSize(matrix.dtype);
        result.dtypes[j] = matrix.dtype;
        result.one_dtype = result.one_dtype && matrix.dtype == result.dtypes[0];
        result.data[j] =
            static_cast<const char *>(matrix.data) + (row - strip.pieces_[piece].first) * matrix.row_stride * size;
        result.col_stride[j] = matrix.col_stride * size;
        result.contiguous = result.contiguous && matrix.col_stride == 1;
    }
    return result;
}

void PanelReader::checkReadable() const {
    for (const HostMatrix &part : source_.parts) {
        const size_t elements = (part.rows - 1) * part.row_stride + (part.cols - 1) * part.col_stride + 1;
        const bool readable =
            part.stored != nullptr ? isReadable(*part.stored) : isReadable(part.data, elements * dtypeSize(part.dtype));
        if (!readable || (part.bias != nullptr && !isReadable(part.bias, part.rows * dtypeSize(part.bias_dtype)))) {
            failUnreadable(describe(source_.name, source_.layer).c_str());
        }
    }
}

// Elements as they are, from rows of any strides.
void PanelReader::gatherPairs(const Rows &rows, uint32_t k0, uint32_t count, uint32_t *tile) const {
    const uint32_t words = count / 2;
    if (rows.contiguous) {
        const char *start[kPanelRows];
        for (uint32_t j = 0; j < kPanelRows; ++j) {
            start[j] = rows.data[j] + size_t{k0} * sizeof(uint16_t);
        }
        transposeWords(start, words, tile);
    } else {
        for (uint32_t i = 0; i < words * 2; ++i) {
            for (uint32_t j = 0; j < kPanelRows; ++j) {
                const auto bits = readAs<uint16_t>(rows.data[j] + (k0 + i) * rows.col_stride[j]);
                uint32_t &word = tile[size_t{i} / 2 * kPanelRows + j];
                word = i % 2 == 0 ? bits : word | static_cast<uint32_t>(bits) << 16;
            }
        }
    }
    for (uint32_t j = 0; count % 2 == 1 && j < kPanelRows; ++j) {
        const size_t stride = rows.contiguous ? sizeof(uint16_t) : rows.col_stride[j];
        tile[size_t{words} * kPanelRows + j] = readAs<uint16_t>(rows.data[j] + (k0 + count - 1) * stride);
    }
}

// Elements as floats.
void PanelReader::gatherFloats(const Rows &rows, uint32_t k0, uint32_t count, float *tile) const {
    if (!rows.one_dtype) {
        for (uint32_t i = 0; i < count; ++i) {
            for (uint32_t j = 0; j < kPanelRows; ++j) {
                tile[size_t{i} * kPanelRows + j] =
                    elementAsFloat(rows.data[j] + (k0 + i) * rows.col_stride[j], rows.dtypes[j]);
            }
        }
        return;
    }
    if (rows.dtypes[0] == DType::kF32) {
        if (rows.contiguous) {
            const char *start[kPanelRows];
            for (uint32_t j = 0; j < kPanelRows; ++j) {
                start[j] = rows.data[j] + size_t{k0} * sizeof(float);
            }
            transposeWords(start, count, reinterpret_cast<uint32_t *>(tile));
            return;
        }
        for (uint32_t i = 0; i < count; ++i) {
            for (uint32_t j = 0; j < kPanelRows; ++j) {
                tile[size_t{i} * kPanelRows + j] = readAs<float>(rows.data[j] + (k0 + i) * rows.col_stride[j]);
            }
        }
        return;
    }
    uint32_t pairs[kMaxBlock / 2 * kPanelRows];
    gatherPairs(rows, k0, count, pairs);
    if (rows.dtypes[0] == DType::kF16) {
        widen<f16ToFloat>(pairs, count, tile);
    } else {
        widen<bf16ToFloat>(pairs, count, tile);
    }
}

void PanelReader::readFloats(const Rows &rows, uint32_t k0, uint32_t count, float *tile) {
    gatherFloats(rows, k0, count, tile);
    if (!anyNonFinite<uint32_t>(tile, size_t{count} * kPanelRows, 0x00800000U)) {
        return;
    }
    for (uint32_t i = 0; i < count; ++i) {
        for (uint32_t j = 0; j < kPanelRows; ++j) {
            if (findNonFinite(tile + size_t{i} * kPanelRows + j, 1, DType::kF32) == 0) {
                report(rows, k0, i, j);
            }
        }
    }
}

void PanelReader::readPairs(const Rows &rows, uint32_t k0, uint32_t count, uint32_t *tile) {
    const size_t words = (size_t{count} + 1) / 2 * kPanelRows;
    if (rows.one_dtype && dtype_ == rows.dtypes[0]) {
        gatherPairs(rows, k0, count, tile);
    } else {
        float floats[kMaxBlock * kPanelRows];
        gatherFloats(rows, k0, count, floats);
        std::memset(tile, 0, words * sizeof(uint32_t));
        for (uint32_t i = 0; i < count; ++i) {
            for (uint32_t j = 0; j < kPanelRows; ++j) {
                const float value = floats[size_t{i} * kPanelRows + j];
                const uint32_t bits = dtype_ == DType::kF16 ? floatToF16(value) : floatToBf16(value);
                tile[size_t{i} / 2 * kPanelRows + j] |= bits << (i % 2 * 16);
            }
        }
    }
    const uint16_t lowest = dtype_ == DType::kF16 ? 0x0400 : 0x0080;
    if (!anyNonFinite<uint16_t>(tile, words * 2, lowest)) {
        return;
    }
    for (uint32_t i = 0; i < count; ++i) {
        for (uint32_t j = 0; j < kPanelRows; ++j) {
            const char *word = reinterpret_cast<const char *>(tile + size_t{i} / 2 * kPanelRows + j);
            if (findNonFinite(word + i % 2 * sizeof(uint16_t), 1, dtype_) == 0) {
                report(rows, k0, i, j);
            }
        }
    }
}

void PanelReader::report(const Rows &rows, uint32_t k0, uint32_t column, uint32_t row) {
    const uint64_t place = uint64_t{rows.first + row} << 32 | (k0 + column);
    uint64_t least = bad_.load();
    while (place < least && !bad_.compare_exchange_weak(least, place)) {
    }
}

void PanelReader::check() const {
    if (unreadable_.load()) {
        failUnreadable(describe(source_.name, source_.layer).c_str());
    }
    const uint64_t bad = bad_.load();
    if (bad != kNone) {
        fail(QWEN3_STATUS_BAD_WEIGHTS, "%s is NaN, infinite or too large for %s at row %u, column %u",
             describe(source_.name, source_.layer).c_str(), dtypeName(dtype_), static_cast<uint32_t>(bad >> 32),
             static_cast<uint32_t>(bad));
    }
}

}  // namespace q3::cpu
