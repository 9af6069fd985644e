#include "model/tensors.h"

namespace q3 {
namespace {

template <typename Visit> void eachMatrix(const LayerTensors &l, const Visit &visit) {
    for (const HostMatrix *matrix : {&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down}) {
        visit(*matrix);
    }
}

const void *offset(const void *data, size_t elements, DType dtype) {
    return static_cast<const char *>(data) + elements * dtypeSize(dtype);
}

}  // namespace

DType ModelTensors::mainDType() const {
    constexpr DType kTypes[] = {DType::kBf16, DType::kF16, DType::kF32};
    uint64_t elements[3] = {};
    for (const LayerTensors &layer : layers) {
        eachMatrix(layer, [&](const HostMatrix &matrix) {
            for (size_t i = 0; i < 3; ++i) {
                elements[i] += matrix.dtype == kTypes[i] ? uint64_t{matrix.rows} * matrix.cols : 0;
            }
        });
    }
    size_t most = 0;
    for (size_t i = 1; i < 3; ++i) {
        most = elements[i] > elements[most] ? i : most;
    }
    return kTypes[most];
}

uint64_t bytesOf(const HostMatrix &matrix) {
    return matrix.stored != nullptr ? storedBytes(*matrix.stored, matrix.rows)
                                    : uint64_t{matrix.rows} * matrix.cols * dtypeSize(matrix.dtype);
}

uint64_t bytesOf(const LayerTensors &layer) {
    uint64_t total = 0;
    eachMatrix(layer, [&](const HostMatrix &matrix) { total += bytesOf(matrix); });
    return total;
}

HostMatrix rowsOf(const HostMatrix &matrix, uint32_t first, uint32_t count) {
    HostMatrix part = matrix;
    part.rows = count;
    part.first_row += first;
    if (matrix.stored == nullptr) {
        part.data = offset(matrix.data, first * matrix.row_stride, matrix.dtype);
    }
    part.bias = matrix.bias == nullptr ? nullptr : offset(matrix.bias, first, matrix.bias_dtype);
    return part;
}

HostMatrix columnsOf(const HostMatrix &matrix, uint32_t first, uint32_t count) {
    HostMatrix part = matrix;
    part.cols = count;
    part.first_col += first;
    if (matrix.stored == nullptr) {
        part.data = offset(matrix.data, first * matrix.col_stride, matrix.dtype);
    }
    return part;
}

}  // namespace q3
