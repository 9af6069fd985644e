#include "ops/weights.h"

#include <algorithm>
#include <cstring>

#include "ops/stored.h"
#include "runtime/readable.h"

namespace q3 {
namespace {

// A matrix as lines of elements: rows, or columns where the elements of a column are the closer ones.
struct Lines {
    size_t count, length;        // how many lines, and elements of each
    size_t line_stride, stride;  // between lines and elements, in elements
    size_t span;                 // elements from a line's first to its last, at both ends included
    bool columns;                // lines are columns
    // Elements far apart are copied one by one, close ones with what lies between them.
    bool dense() const { return stride > 16; }
    size_t copied() const { return dense() ? length : span; }
};

Lines linesOf(const HostMatrix &matrix, uint32_t rows) {
    Lines lines{rows, matrix.cols, matrix.row_stride, matrix.col_stride, 0, false};
    if (matrix.row_stride < matrix.col_stride) {
        lines = {matrix.cols, rows, matrix.col_stride, matrix.row_stride, 0, true};
    }
    lines.span = lines.length == 0 ? 0 : (lines.length - 1) * lines.stride + 1;
    return lines;
}

}  // namespace

size_t copyBytes(const HostMatrix &matrix, uint32_t rows) noexcept {
    if (matrix.stored != nullptr) {
        return size_t{rows} * matrix.cols * sizeof(float);
    }
    const Lines lines = linesOf(matrix, rows);
    return lines.count * lines.copied() * dtypeSize(matrix.dtype);
}

bool copyRows(const HostMatrix &matrix, uint32_t row, uint32_t rows, void *target, HostMatrix &copy,
              StoredReader *reader) {
    if (matrix.stored != nullptr) {
        StoredReader own(*matrix.stored);
        copy = {target, DType::kF32, rows, matrix.cols, matrix.cols, 1};
        return (reader == nullptr ? own : *reader)
            .floats({matrix.first_row + row, rows, matrix.first_col, matrix.cols}, static_cast<float *>(target));
    }
    const Lines lines = linesOf(matrix, rows);
    const size_t size = dtypeSize(matrix.dtype);
    const char *from = static_cast<const char *>(matrix.data) + row * matrix.row_stride * size;
    copy = matrix;
    copy.data = target;
    copy.rows = rows;
    copy.bias = nullptr;
    const size_t stride = lines.dense() ? 1 : lines.stride;
    copy.row_stride = lines.columns ? stride : lines.copied();
    copy.col_stride = lines.columns ? lines.copied() : stride;
    bool readable = true;
    if (lines.dense()) {
        auto *to = static_cast<char *>(target);
        for (size_t line = 0; line < lines.count && readable; ++line) {
            readable = copyReadable(to + line * lines.length * size, from + line * lines.line_stride * size, size,
                                    lines.stride * size, lines.length);
        }
    } else {
        readable = copyReadable(target, from, lines.span * size, lines.line_stride * size, lines.count);
    }
    if (!readable) {
        std::memset(target, 0, copyBytes(matrix, rows));
    }
    return readable;
}

}  // namespace q3
