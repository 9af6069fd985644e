#include "ops/stored.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "ops/half.h"
#include "ops/stored_blocks.h"
#include "runtime/readable.h"

namespace q3 {
namespace {

// Where AutoAWQ puts column j of eight: its nibble in the word.
constexpr uint32_t kAwqNibble[8] = {0, 4, 1, 5, 2, 6, 3, 7};

uint32_t bitsOf(DType dtype) {
    return dtype == DType::kU4 ? 4 : 8;
}

size_t sizeOf(DType dtype) {
    return isFloatDType(dtype) ? dtypeSize(dtype) : 1;
}

float floatAt(const char *data, DType dtype) {
    switch (dtype) {
    case DType::kF16:
        return f16ToFloat(readAs<uint16_t>(data));
    case DType::kBf16:
        return bf16ToFloat(readAs<uint16_t>(data));
    case DType::kF8E8m0: {
        const auto exponent = static_cast<uint8_t>(*data);
        return exponent == 255 ? NAN : std::ldexp(1.0F, exponent - 127);
    }
    default:
        return readAs<float>(data);
    }
}

int32_t codeIn(const char *words, size_t bit, uint32_t bits) {
    const auto byte = static_cast<uint8_t>(words[bit / 8]);  // 4 and 8 bits lie in one byte of a little-endian word
    return byte >> bit % 8 & ((1U << bits) - 1U);
}

uint32_t pieces(uint32_t cols) {
    return (cols + kPiece - 1) / kPiece;
}

}  // namespace

float e4m3ToFloat(uint8_t code) {
    // The exponent's bias is 8 less than f16's: the same bits as an f16, times 2^8. 0x7f and 0xff are NaN.
    if ((code & 0x7fU) == 0x7fU) {
        return NAN;
    }
    return f16ToFloat(static_cast<uint16_t>((code & 0x80U) << 8 | (code & 0x7fU) << 7)) * 256.0F;
}

bool StoredMatrix::hasPieces() const {
    if (blockShape(dtype).elements > 0) {
        return true;
    }
    return groups.empty() && (block_cols % kPiece == 0 || block_cols >= cols);
}

namespace {

struct StoredSizes {
    uint64_t codes, scales, zeros;  // bytes of rows [0, rows)
};

StoredSizes sizesOf(const StoredMatrix &m, uint32_t rows) {
    const BlockShape block = blockShape(m.dtype);
    if (block.elements > 0) {
        return {uint64_t{rows} * (m.cols / block.elements) * block.bytes, 0, 0};
    }
    const uint32_t per_word = 32 / bitsOf(m.dtype);
    const uint64_t row_words = (uint64_t{m.cols} + per_word - 1) / per_word;
    const uint64_t codes =
        m.layout == QWEN3_LAYOUT_PACK_QUANTIZED ? rows * row_words * 4 : uint64_t{rows} * m.cols * bitsOf(m.dtype) / 8;
    const uint64_t scales = (uint64_t{rows} + m.block_rows - 1) / m.block_rows * m.ngroups();
    uint64_t zeros = scales * sizeOf(m.zero_dtype);
    if (m.layout != QWEN3_LAYOUT_PLAIN && !isFloatDType(m.zero_dtype)) {
        zeros = (uint64_t{rows} + per_word - 1) / per_word * m.ngroups() * 4;
    }
    return {codes, m.scales == nullptr ? 0 : scales * sizeOf(m.scale_dtype), m.zeros == nullptr ? 0 : zeros};
}

}  // namespace

uint64_t storedBytes(const StoredMatrix &m, uint32_t rows) {
    const StoredSizes sizes = sizesOf(m, rows);
    return sizes.codes + sizes.scales + sizes.zeros;
}

bool isReadable(const StoredMatrix &m) noexcept {
    const StoredSizes sizes = sizesOf(m, m.rows);
    const bool strided = m.layout == QWEN3_LAYOUT_PLAIN && bitsOf(m.dtype) == 8 && blockShape(m.dtype).elements == 0;
    const uint64_t spanned = (m.rows - 1) * uint64_t{m.row_stride} + (m.cols - 1) * uint64_t{m.col_stride} + 1;
    return isReadable(m.data, strided ? spanned : sizes.codes) && isReadable(m.scales, sizes.scales) &&
           isReadable(m.zeros, sizes.zeros);
}

void CodedRows::reserve(uint32_t rows, uint32_t most_cols) {
    codes.resize(size_t{rows} * most_cols);
    pieces.resize(size_t{rows} * ((most_cols + kPiece - 1) / kPiece));
}

void StoredReader::reserve(uint32_t rows, uint32_t cols) {
    const BlockShape block = blockShape(m_.dtype);
    if (block.elements > 0) {
        raw_.resize(size_t{rows} * (cols / block.elements + 2) * block.bytes);
        coded_.reserve(rows, cols);
        wider_.resize(size_t{rows} * (cols + kPiece));
        return;
    }
    const size_t scales = (size_t{rows} + 8) * m_.ngroups();
    const size_t stride = std::min(m_.row_stride, m_.col_stride);
    const size_t words = (size_t{rows} + 16) * (size_t{cols} + 16) * bitsOf(m_.dtype) / 8;
    const size_t bytes = m_.layout == QWEN3_LAYOUT_PLAIN ? size_t{rows} * cols * stride : words;
    raw_.resize(std::max({bytes, words, scales * sizeof(float)}));
    codes_.resize(size_t{rows} * cols);
    scales_.resize(scales);
    zeros_.resize(scales);
    minima_.resize(scales);
}

bool StoredReader::copy(std::vector<char> &to, const void *from, size_t bytes, size_t stride, size_t count) {
    to.resize(std::max(to.size(), bytes * count));
    return copyReadable(to.data(), from, bytes, stride, count);
}

// ---------------------------------------------------------------- GGUF

bool StoredReader::blocks(const Rectangle &part, CodedRows &out) {
    const BlockShape shape = blockShape(m_.dtype);
    const uint32_t first = part.col / shape.elements;
    const uint32_t last = (part.col + part.cols + shape.elements - 1) / shape.elements;
    const size_t row_bytes = m_.row_stride / shape.elements * shape.bytes;
    const size_t bytes = size_t{last - first} * shape.bytes;
    const char *from = static_cast<const char *>(m_.data) + part.row * row_bytes + size_t{first} * shape.bytes;
    if (!copy(raw_, from, bytes, row_bytes, part.rows)) {
        return false;
    }
    for (uint32_t r = 0; r < part.rows; ++r) {
        int16_t *codes = out.codes.data() + size_t{r} * part.cols;
        CodePiece *scales = out.pieces.data() + size_t{r} * pieces(part.cols);
        for (uint32_t b = first; b < last; ++b) {
            const auto *block =
                reinterpret_cast<const uint8_t *>(raw_.data()) + r * bytes + size_t{b - first} * shape.bytes;
            int16_t block_codes[256];
            CodePiece block_pieces[256 / kPiece];
            unpackBlock(m_.dtype, block, block_codes, block_pieces);
            // What of the block is in the part.
            const uint32_t from_col = std::max(part.col, b * shape.elements);
            const uint32_t to_col = std::min(part.col + part.cols, (b + 1) * shape.elements);
            std::memcpy(codes + (from_col - part.col), block_codes + (from_col - b * shape.elements),
                        (to_col - from_col) * sizeof(int16_t));
            for (uint32_t col = from_col; col < to_col; col += kPiece) {
                scales[(col - part.col) / kPiece] = block_pieces[(col - b * shape.elements) / kPiece];
            }
        }
    }
    return true;
}

// ---------------------------------------------------------------- codes with scales apart

// Codes as they are stored, out[rows][cols].
bool StoredReader::elements(const Rectangle &part, int16_t *out) {
    const uint32_t bits = bitsOf(m_.dtype);
    const uint32_t per_word = 32 / bits;
    const auto *data = static_cast<const char *>(m_.data);
    const auto code = [&](uint32_t row, uint32_t col) -> int16_t & { return out[size_t{row} * part.cols + col]; };
    switch (m_.layout) {
    case QWEN3_LAYOUT_GPTQ: {
        const uint32_t first = part.col / per_word;
        const uint32_t lines = (part.col + part.cols + per_word - 1) / per_word - first;
        const char *from = data + (size_t{first} * m_.rows + part.row) * 4;
        if (!copy(raw_, from, size_t{part.rows} * 4, size_t{m_.rows} * 4, lines)) {
            return false;
        }
        for (uint32_t r = 0; r < part.rows; ++r) {
            for (uint32_t c = 0; c < part.cols; ++c) {
                const uint32_t col = part.col + c;
                const char *word = raw_.data() + (size_t{col / per_word - first} * part.rows + r) * 4;
                code(r, c) = static_cast<int16_t>(codeIn(word, col % per_word * bits, bits));
            }
        }
        return true;
    }
    case QWEN3_LAYOUT_AWQ: {
        const uint32_t first = part.row / 8;
        const size_t words = (part.row + part.rows + 7) / 8 - first;
        const size_t stride = size_t{m_.rows} / 8 * 4;
        if (!copy(raw_, data + part.col * stride + size_t{first} * 4, words * 4, stride, part.cols)) {
            return false;
        }
        for (uint32_t c = 0; c < part.cols; ++c) {
            const char *line = raw_.data() + c * words * 4;
            for (uint32_t r = 0; r < part.rows; ++r) {
                const uint32_t row = part.row + r;
                code(r, c) = static_cast<int16_t>(
                    codeIn(line + size_t{row / 8 - first} * 4, size_t{kAwqNibble[row % 8]} * 4, 4));
            }
        }
        return true;
    }
    default: {
        const bool packed = m_.layout == QWEN3_LAYOUT_PACK_QUANTIZED;
        if (!packed && bits == 8) {
            return bytes(part, out);
        }
        // One row after the other; those of words end with one.
        const size_t row_bytes =
            packed ? (size_t{m_.cols} + per_word - 1) / per_word * 4 : (size_t{m_.cols} * bits + 7) / 8;
        const size_t first = size_t{part.col} * bits / 8;
        const size_t count = (size_t{part.col + part.cols} * bits + 7) / 8 - first;
        if (!copy(raw_, data + part.row * row_bytes + first, count, row_bytes, part.rows)) {
            return false;
        }
        for (uint32_t r = 0; r < part.rows; ++r) {
            for (uint32_t c = 0; c < part.cols; ++c) {
                code(r, c) = static_cast<int16_t>(
                    codeIn(raw_.data() + r * count, size_t{part.col + c} * bits - first * 8, bits));
            }
        }
        return true;
    }
    }
}

// Elements of one byte by strides: I8, U8, and the bytes of F8.
bool StoredReader::bytes(const Rectangle &part, int16_t *out) {
    const char *from = static_cast<const char *>(m_.data) + part.row * m_.row_stride + part.col * m_.col_stride;
    const bool by_rows = m_.row_stride >= m_.col_stride;
    const size_t stride = by_rows ? m_.col_stride : m_.row_stride;
    const uint32_t lines = by_rows ? part.rows : part.cols;
    const uint32_t length = by_rows ? part.cols : part.rows;
    const size_t span = (length - 1) * stride + 1;
    if (!copy(raw_, from, span, by_rows ? m_.row_stride : m_.col_stride, lines)) {
        return false;
    }
    const bool is_signed = m_.dtype == DType::kI8;
    for (uint32_t r = 0; r < part.rows; ++r) {
        for (uint32_t c = 0; c < part.cols; ++c) {
            const char byte = raw_[by_rows ? r * span + c * stride : c * span + r * stride];
            out[size_t{r} * part.cols + c] = is_signed ? static_cast<int8_t>(byte) : static_cast<uint8_t>(byte);
        }
    }
    return true;
}

// scales_[r][g].
bool StoredReader::scales(const Rectangle &part) {
    const uint32_t ngroups = m_.ngroups();
    scales_.assign(size_t{part.rows} * ngroups, 1.0F);
    if (m_.scales == nullptr) {
        return true;
    }
    const size_t size = sizeOf(m_.scale_dtype);
    const auto *data = static_cast<const char *>(m_.scales);
    if (m_.rowsAreColumns()) {
        if (!copy(raw_, data + part.row * size, part.rows * size, m_.rows * size, ngroups)) {
            return false;
        }
        for (uint32_t r = 0; r < part.rows; ++r) {
            for (uint32_t g = 0; g < ngroups; ++g) {
                scales_[size_t{r} * ngroups + g] =
                    floatAt(raw_.data() + (size_t{g} * part.rows + r) * size, m_.scale_dtype);
            }
        }
        return true;
    }
    const uint32_t first = part.row / m_.block_rows;
    const uint32_t last = (part.row + part.rows - 1) / m_.block_rows + 1;
    if (!copy(raw_, data + size_t{first} * ngroups * size, size_t{last - first} * ngroups * size, 0, 1)) {
        return false;
    }
    for (uint32_t r = 0; r < part.rows; ++r) {
        const uint32_t block = (part.row + r) / m_.block_rows - first;
        for (uint32_t g = 0; g < ngroups; ++g) {
            scales_[size_t{r} * ngroups + g] =
                floatAt(raw_.data() + (size_t{block} * ngroups + g) * size, m_.scale_dtype);
        }
    }
    return true;
}

// zeros_[r][g] or minima_[r][g]; after scales().
bool StoredReader::zeros(const Rectangle &part) {
    const uint32_t ngroups = m_.ngroups();
    zeros_.assign(size_t{part.rows} * ngroups, m_.zero_offset);
    minima_.clear();
    if (m_.zeros == nullptr) {
        return true;
    }
    const auto *data = static_cast<const char *>(m_.zeros);
    const uint32_t bits = bitsOf(m_.zero_dtype);
    const uint32_t per_word = 32 / bits;
    const uint32_t first = part.row / per_word;
    const uint32_t words = (part.row + part.rows + per_word - 1) / per_word - first;
    const auto zero = [&](uint32_t r, uint32_t g) -> int32_t & { return zeros_[size_t{r} * ngroups + g]; };
    if (m_.rowsAreColumns()) {  // words [g, n / per_word]
        const size_t line = size_t{m_.rows} / per_word * 4;
        if (!copy(raw_, data + size_t{first} * 4, size_t{words} * 4, line, ngroups)) {
            return false;
        }
        for (uint32_t r = 0; r < part.rows; ++r) {
            const uint32_t row = part.row + r;
            const uint32_t slot = m_.layout == QWEN3_LAYOUT_AWQ ? kAwqNibble[row % 8] : row % per_word;
            for (uint32_t g = 0; g < ngroups; ++g) {
                const char *word = raw_.data() + (size_t{g} * words + row / per_word - first) * 4;
                zero(r, g) += codeIn(word, size_t{slot} * bits, bits);
            }
        }
        return true;
    }
    if (m_.layout == QWEN3_LAYOUT_PACK_QUANTIZED && !isFloatDType(m_.zero_dtype)) {  // words [n / per_word, g]
        if (!copy(raw_, data + size_t{first} * ngroups * 4, size_t{words} * ngroups * 4, 0, 1)) {
            return false;
        }
        for (uint32_t r = 0; r < part.rows; ++r) {
            const uint32_t row = part.row + r;
            for (uint32_t g = 0; g < ngroups; ++g) {
                const char *word = raw_.data() + (size_t{row / per_word - first} * ngroups + g) * 4;
                zero(r, g) += codeIn(word, size_t{row % per_word} * bits, bits);
            }
        }
        return true;
    }
    const size_t size = sizeOf(m_.zero_dtype);
    const uint32_t from = part.row / m_.block_rows;
    const uint32_t to = (part.row + part.rows - 1) / m_.block_rows + 1;
    if (!copy(raw_, data + size_t{from} * ngroups * size, size_t{to - from} * ngroups * size, 0, 1)) {
        return false;
    }
    const bool is_float = isFloatDType(m_.zero_dtype);
    minima_.assign(is_float ? zeros_.size() : 0, 0.0F);
    for (uint32_t r = 0; r < part.rows; ++r) {
        const uint32_t block = (part.row + r) / m_.block_rows - from;
        for (uint32_t g = 0; g < ngroups; ++g) {
            const char *element = raw_.data() + (size_t{block} * ngroups + g) * size;
            if (is_float) {
                minima_[size_t{r} * ngroups + g] = -floatAt(element, m_.zero_dtype);
            } else {
                zero(r, g) +=
                    m_.zero_dtype == DType::kI8 ? static_cast<int8_t>(*element) : static_cast<uint8_t>(*element);
            }
        }
    }
    return true;
}

bool StoredReader::codes(const Rectangle &part, CodedRows &out, const ColumnOrder &order) {
    const bool ordered = !order.empty();
    out.cols = ordered ? order.count : part.cols;
    out.codes.resize(size_t{part.rows} * out.cols);
    out.pieces.assign(size_t{part.rows} * pieces(out.cols), CodePiece{});
    if (blockShape(m_.dtype).elements > 0) {
        return blocks(part, out);
    }
    codes_.resize(std::max(codes_.size(), ordered ? size_t{part.rows} * part.cols : 0));
    if (!elements(part, ordered ? codes_.data() : out.codes.data()) || !scales(part) || !zeros(part)) {
        return false;
    }
    const uint32_t ngroups = m_.ngroups();
    for (uint32_t r = 0; r < part.rows; ++r) {
        for (uint32_t i = 0; i < order.count; ++i) {
            const bool none = order[i] == kNoColumn;
            out.codes[size_t{r} * order.count + i] = none ? int16_t{0} : codes_[size_t{r} * part.cols + order[i]];
        }
        for (uint32_t p = 0; p < pieces(out.cols); ++p) {
            const uint32_t col = ordered ? order[size_t{p} * kPiece] : p * kPiece;
            if (col == kNoColumn) {
                continue;
            }
            const size_t group = size_t{r} * ngroups + m_.groupOf(part.col + col);
            CodePiece &piece = out.pieces[size_t{r} * pieces(out.cols) + p];
            piece.scale = scales_[group];
            piece.zero = zeros_[group];
            piece.minimum = minima_.empty() ? 0.0F : minima_[group];
        }
    }
    return true;
}

bool StoredReader::floats(const Rectangle &part, float *out) {
    const size_t count = size_t{part.rows} * part.cols;
    if (blockShape(m_.dtype).elements > 0 && part.col % kPiece == 0) {
        if (!codes(part, coded_)) {
            std::fill(out, out + count, 0.0F);
            return false;
        }
        for (uint32_t r = 0; r < part.rows; ++r) {
            for (uint32_t c = 0; c < part.cols; ++c) {
                const CodePiece &piece = coded_.piecesOf(r)[c / kPiece];
                out[size_t{r} * part.cols + c] = piece.scale * static_cast<float>(coded_.codesOf(r)[c]) - piece.minimum;
            }
        }
        return true;
    }
    if (blockShape(m_.dtype).elements > 0) {  // begins inside of a piece: decodes from the piece's beginning
        const uint32_t before = part.col % kPiece;
        wider_.resize(size_t{part.rows} * (part.cols + before));
        const bool read = floats({part.row, part.rows, part.col - before, part.cols + before}, wider_.data());
        for (uint32_t r = 0; r < part.rows; ++r) {
            std::memcpy(out + size_t{r} * part.cols, wider_.data() + size_t{r} * (part.cols + before) + before,
                        part.cols * sizeof(float));
        }
        return read;
    }
    codes_.resize(std::max(codes_.size(), count));
    if (!elements(part, codes_.data()) || !scales(part) || !zeros(part)) {
        std::fill(out, out + count, 0.0F);
        return false;
    }
    const uint32_t ngroups = m_.ngroups();
    const bool is_float = m_.dtype == DType::kF8E4m3;
    for (uint32_t r = 0; r < part.rows; ++r) {
        for (uint32_t c = 0; c < part.cols; ++c) {
            const size_t at = size_t{r} * ngroups + m_.groupOf(part.col + c);
            const size_t element = size_t{r} * part.cols + c;
            if (is_float) {
                out[element] = e4m3ToFloat(static_cast<uint8_t>(codes_[element])) * scales_[at];
            } else {
                const float minimum = minima_.empty() ? 0.0F : minima_[at];
                out[element] = scales_[at] * static_cast<float>(codes_[element] - zeros_[at]) - minimum;
            }
        }
    }
    return true;
}

}  // namespace q3
