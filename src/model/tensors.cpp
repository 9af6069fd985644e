#include "model/tensors.h"

#include <algorithm>
#include <utility>

#include "model/split.h"

namespace q3 {
namespace {

template <typename Visit> void eachMatrix(const LayerTensors &l, const Visit &visit) {
    for (const HostMatrix *matrix : {&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down, &l.router}) {
        visit(*matrix);
    }
    for (const ExpertTensors &expert : l.experts) {
        visit(expert.gate);
        visit(expert.up);
        visit(expert.down);
    }
}

const void *offset(const void *data, size_t elements, DType dtype) {
    return static_cast<const char *>(data) + elements * dtypeSize(dtype);
}

}  // namespace

DType ModelTensors::mainDType() const {
    std::vector<std::pair<DType, uint64_t>> elements = {{DType::kBf16, 0}, {DType::kF16, 0}, {DType::kF32, 0}};
    for (const LayerTensors &layer : layers) {
        eachMatrix(layer, [&](const HostMatrix &matrix) {
            const auto same = [&](const auto &entry) { return entry.first == matrix.dtype; };
            auto found = std::find_if(elements.begin(), elements.end(), same);
            if (found == elements.end()) {
                found = elements.insert(found, {matrix.dtype, 0});
            }
            found->second += uint64_t{matrix.rows} * matrix.cols;
        });
    }
    const auto fewer = [](const auto &a, const auto &b) { return a.second < b.second; };
    return std::max_element(elements.begin(), elements.end(), fewer)->first;
}

uint32_t ModelTensors::innerUnit() const {
    uint32_t unit = kSplitUnit;
    const auto fit = [&](const HostMatrix &down) {
        if (const StoredMatrix *m = down.stored; m != nullptr) {
            const BlockShape block = blockShape(m->dtype);
            const uint32_t width = block.elements > 0 ? block.elements : m->block_cols;
            unit = width < m->cols && width % kSplitUnit == 0 ? std::max(unit, width) : unit;
        }
    };
    for (const LayerTensors &layer : layers) {
        fit(layer.down);
        for (const ExpertTensors &expert : layer.experts) {
            fit(expert.down);
        }
    }
    return unit;
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
