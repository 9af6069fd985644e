// Matrices whose elements are stored as codes (Qwen3Tensor's dtypes and layouts), and how they become numbers again.
// Memory of the caller's is read through copyReadable only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "ops/types.h"

namespace q3 {

// A whole tensor as the caller gives it; Qwen3Tensor explains the members. Strides and block sizes are never 0 here.
struct StoredMatrix {
    DType dtype = DType::kDefault;
    int32_t layout = QWEN3_LAYOUT_PLAIN;
    uint32_t rows = 0, cols = 0;
    size_t row_stride = 0, col_stride = 0;
    const void *data = nullptr;
    const void *scales = nullptr;  // or null: all 1
    const void *zeros = nullptr;   // or null
    std::vector<uint32_t> groups;  // [cols], below ngroups(): of columns in any order; empty: column / block_cols
    DType scale_dtype = DType::kDefault, zero_dtype = DType::kDefault;
    int32_t zero_offset = 0;
    uint32_t block_rows = 0, block_cols = 0;

    uint32_t ngroups() const { return (cols + block_cols - 1) / block_cols; }
    uint32_t groupOf(uint32_t col) const { return groups.empty() ? col / block_cols : groups[col]; }
    // Whether its rows lie side by side in memory, so that many are best read together.
    bool rowsAreColumns() const { return layout == QWEN3_LAYOUT_GPTQ || layout == QWEN3_LAYOUT_AWQ; }
    // Whether its codes have scales for pieces of kPiece columns as they lie, as CodedRows wants them.
    bool hasPieces() const;
};

// Elements of a GGUF block and their bytes; elements 0: no such dtype.
struct BlockShape {
    uint32_t elements, bytes;
};
BlockShape blockShape(DType dtype);

// Whether the ends of all that it points to can be read; see runtime/readable.h.
bool isReadable(const StoredMatrix &matrix) noexcept;

// Bytes of codes, scales and zero points of `rows` rows, for reports of progress.
uint64_t storedBytes(const StoredMatrix &matrix, uint32_t rows);

// out[elements] = the values of a block of blockShape(dtype).
void decodeBlock(DType dtype, const char *block, float *out);

// Rows [row, row + rows) of columns [col, col + cols).
struct Rectangle {
    uint32_t row, rows, col, cols;
};

// What consecutive columns of a row share: value = scale * (code - zero) - minimum.
constexpr uint32_t kPiece = 16;
struct CodePiece {
    float scale, minimum;
    int32_t zero;
    // Of K-quants: scale is f16 `d` * d_factor, minimum f16 `dmin` * dmin_factor.
    uint16_t d, dmin;
    int16_t d_factor, dmin_factor;
};

// Columns of a part in another order: which stands at each place, or kNoColumn, where the code means nothing. Empty:
// they are in order.
constexpr uint32_t kNoColumn = ~0U;
struct ColumnOrder {
    const uint32_t *columns = nullptr;
    uint32_t count = 0;
    bool empty() const { return count == 0; }
    uint32_t operator[](size_t place) const { return columns[place]; }
};

struct CodedRows {
    uint32_t cols = 0;
    std::vector<int16_t> codes;     // [rows][cols]
    std::vector<CodePiece> pieces;  // [rows][ceil(cols / kPiece)]

    void reserve(uint32_t rows, uint32_t most_cols);
    const int16_t *codesOf(uint32_t row) const { return codes.data() + size_t{row} * cols; }
    const CodePiece *piecesOf(uint32_t row) const {
        return pieces.data() + size_t{row} * ((cols + kPiece - 1) / kPiece);
    }
};

// Reads parts of a matrix, which must outlive the reader. One thread at a time; buffers are kept from call to call.
class StoredReader {
public:
    explicit StoredReader(const StoredMatrix &matrix) : m_(matrix) {}
    // Makes room for parts of up to this size, so that reading them allocates nothing.
    void reserve(uint32_t rows, uint32_t cols);

    // out[rows][cols]. False when not all could be read; out is zeros then.
    bool floats(const Rectangle &part, float *out);
    // Of a matrix that hasPieces(), and a part that begins with a piece; or of an order whose pieces have columns of
    // one group each.
    bool codes(const Rectangle &part, CodedRows &out, const ColumnOrder &order = {});

private:
    bool copy(std::vector<char> &to, const void *from, size_t bytes, size_t stride, size_t count);
    bool blocks(const Rectangle &part, CodedRows &out);
    bool elements(const Rectangle &part, int16_t *out);
    bool bytes(const Rectangle &part, int16_t *out);
    bool scales(const Rectangle &part);
    bool zeros(const Rectangle &part);

    const StoredMatrix &m_;
    std::vector<char> raw_;
    std::vector<int16_t> codes_;
    std::vector<float> scales_;   // [rows of the part][ngroups]
    std::vector<int32_t> zeros_;  // the same, or empty
    std::vector<float> minima_;   // the same, or empty
    std::vector<float> wider_;    // a part with the columns of its first piece that are before it
    CodedRows coded_;
};

// The value of an e4m3 byte.
float e4m3ToFloat(uint8_t code);

}  // namespace q3
