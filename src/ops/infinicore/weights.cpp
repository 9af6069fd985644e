#include "ops/infinicore/weights.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "ops/infinicore/convert.h"
#include "runtime/error.h"
#include "runtime/readable.h"

namespace q3::infinicore {

namespace {

constexpr size_t kStagingBytes = size_t{8} << 20;

// Where a value comes from, for messages.
struct Origin {
    const char *name;
    int32_t layer;
    const char *what;  // "" or " bias"
    uint32_t first_row;
};

std::string describe(const Origin &origin) {
    const std::string layer = origin.layer < 0 ? "" : " of layer " + std::to_string(origin.layer);
    return std::string(origin.name) + origin.what + layer;
}

[[noreturn]] void failValue(const Origin &origin, uint32_t row, uint32_t col, float value, DType dtype) {
    const char *problem = std::isnan(value) ? "is NaN" : std::isinf(value) ? "is infinite" : "overflows";
    const std::string hint = std::isfinite(value) ? std::string(" ") + dtypeName(dtype) : "";
    fail(QWEN3_STATUS_BAD_WEIGHTS, "weight %s: row %u, column %u (%g) %s%s", describe(origin).c_str(),
         origin.first_row + row, col, static_cast<double>(value), problem, hint.c_str());
}

// The order of a part's rows on the device: the first `rows` are heads of dh rows whose halves alternate.
struct RowOrder {
    uint32_t rows = 0;
    uint32_t dh = 0;
    uint32_t source(uint32_t row) const {
        const uint32_t i = dh == 0 ? 0 : row % dh;
        return row >= rows ? row : row - i + i / 2 + (i % 2 == 0 ? 0 : dh / 2);
    }
};

// dst[rows, cols] (contiguous, of type To) = source (of type From), whose first row is `row` of the matrix in `order`.
template <class From, class To>
void convertRows(void *dst, const HostMatrix &source, uint32_t row, const Origin &origin, DType dtype,
                 const RowOrder &order) {
    const size_t cols = source.cols;
    const size_t rows = source.rows;
    const auto index = [&](size_t r, size_t c) {
        return (order.source(row + static_cast<uint32_t>(r)) - row) * source.row_stride + c * source.col_stride;
    };
    const auto one = [&](size_t r, size_t c) -> bool {  // true: not finite
        const auto bits = load<From>(source.data, index(r, c));
        if constexpr (std::is_same_v<From, To>) {
            store<To>(dst, r * cols + c, bits);
            return (bits & From::kExponent) == From::kExponent;
        } else {
            const auto converted = To::fromFloat(From::toFloat(bits));
            store<To>(dst, r * cols + c, converted);
            return (converted & To::kExponent) == To::kExponent;
        }
    };
    bool bad = false;
    if (source.row_stride < source.col_stride) {  // transposed: walk down the columns, where memory is contiguous
        for (size_t c = 0; c < cols; ++c) {
            for (size_t r = 0; r < rows; ++r) {
                bad |= one(r, c);
            }
        }
    } else {
        for (size_t r = 0; r < rows; ++r) {
            for (size_t c = 0; c < cols; ++c) {
                bad |= one(r, c);
            }
        }
    }
    if (!bad) {
        return;
    }
    for (uint32_t r = 0; r < rows; ++r) {
        for (uint32_t c = 0; c < cols; ++c) {
            if (one(r, c)) {
                failValue(origin, order.source(row + r), c, From::toFloat(load<From>(source.data, index(r, c))), dtype);
            }
        }
    }
}

// Converts matrices through a copy of some rows: see copyRows.
class Converter {
public:
    // dst[rows, cols] (contiguous, of dst_dtype) = rows [row, row + rows) of source, reordered among themselves.
    void run(void *dst, DType dst_dtype, const HostMatrix &source, uint32_t row, uint32_t rows, const Origin &origin,
             const RowOrder &order = {}) {
        HostMatrix part;
        copy_.resize(std::max(copy_.size(), copyBytes(source, rows)));
        if (!copyRows(source, row, rows, copy_.data(), part)) {
            failUnreadable((std::string("weight ") + describe(origin)).c_str());
        }
        withType(part.dtype, [&](auto from) {
            withType(dst_dtype, [&](auto to) {
                convertRows<decltype(from), decltype(to)>(dst, part, row, origin, dst_dtype, order);
            });
        });
    }

private:
    std::vector<char> copy_;
};

// The whole matrix, as contiguous [rows, cols] of dst_dtype, to dst on the device.
void uploadMatrix(const Device &device, char *dst, DType dst_dtype, const HostMatrix &source, const Origin &origin,
                  const RowOrder &order) {
    const size_t row_bytes = source.cols * dtypeSize(dst_dtype);
    const uint32_t heads = std::max(order.dh, 1U);  // which are reordered whole
    const uint32_t step =
        static_cast<uint32_t>(std::clamp<size_t>(kStagingBytes / std::max<size_t>(row_bytes, 1), 1, source.rows)) /
            heads * heads +
        heads;
    std::vector<char> staging(device.isCpu() ? 0 : std::min(step, source.rows) * row_bytes);
    Converter converter;
    for (uint32_t row = 0; row < source.rows; row += step) {
        const uint32_t rows = std::min(step, source.rows - row);
        char *const target = dst + row * row_bytes;
        if (device.isCpu()) {
            converter.run(target, dst_dtype, source, row, rows, origin, order);
        } else {
            converter.run(staging.data(), dst_dtype, source, row, rows, origin, order);
            device.upload(target, staging.data(), rows * row_bytes);
        }
    }
}

// Rows and columns of a source with all parts stacked.
void shapeOf(const LinearSource &source, uint32_t &rows, uint32_t &cols) {
    if (source.parts.empty()) {
        fail(QWEN3_STATUS_INTERNAL_ERROR, "weight %s has no parts", source.name);
    }
    rows = 0;
    cols = source.parts[0].cols;
    for (const HostMatrix &part : source.parts) {
        if (part.cols != cols || part.rows == 0 || part.data == nullptr) {
            fail(QWEN3_STATUS_INTERNAL_ERROR, "weight %s has parts that do not fit", source.name);
        }
        if (!isFloatDType(part.dtype) && part.stored == nullptr) {
            fail(QWEN3_STATUS_BAD_TENSOR_DTYPE, "weight %s has dtype %d", source.name, static_cast<int>(part.dtype));
        }
        rows += part.rows;
    }
}

}  // namespace

void HostEmbedding::readRow(void *dst, uint32_t row) const {
    const size_t size = dtypeSize(table.dtype);
    const char *start = static_cast<const char *>(table.data) + row * table.row_stride * size;
    if (table.dtype == dst_dtype) {
        if (!borrowed) {
            std::memcpy(dst, start, cols * size);
        } else if (!copyReadable(dst, start, cols * size)) {
            failUnreadable("the borrowed input_embd");
        }
        return;
    }
    // Only a borrowed table is of another dtype.
    char copy[4096];
    const auto together = static_cast<uint32_t>(sizeof copy / size);
    for (uint32_t first = 0; first < cols; first += together) {
        const uint32_t count = std::min(together, cols - first);
        if (!copyReadable(copy, start + first * size, count * size)) {
            failUnreadable("the borrowed input_embd");
        }
        const HostMatrix part{copy, table.dtype, 1, count, count, 1};
        withType(table.dtype, [&](auto from) {
            withType(dst_dtype, [&](auto to) {
                convertRows<decltype(from), decltype(to)>(static_cast<char *>(dst) + first * dtypeSize(dst_dtype), part,
                                                          0, {"input_embd", -1, "", row}, dst_dtype, {});
            });
        });
    }
}

std::unique_ptr<DeviceLinear> packLinear(const std::shared_ptr<Device> &device, const LinearSource &source, DType dtype,
                                         uint32_t interleave) {
    auto linear = std::make_unique<DeviceLinear>();
    shapeOf(source, linear->rows, linear->cols);
    const size_t size = dtypeSize(dtype);
    const bool has_bias =
        std::any_of(source.parts.begin(), source.parts.end(), [](const HostMatrix &p) { return p.bias != nullptr; });
    linear->weight = DeviceBuffer(device, static_cast<size_t>(linear->rows) * linear->cols * size);
    if (has_bias) {
        linear->bias = DeviceBuffer(device, linear->rows * size);  // zeroed: parts without bias need no more
    }

    DeviceScope scope(*device);
    uint32_t first_row = 0;
    for (const HostMatrix &part : source.parts) {
        const uint32_t rotated = source.rope_rows > first_row ? std::min(source.rope_rows - first_row, part.rows) : 0;
        const RowOrder order{interleave == 0 ? 0 : rotated, interleave};
        uploadMatrix(*device, linear->weight.data() + static_cast<size_t>(first_row) * linear->cols * size, dtype, part,
                     {source.name, source.layer, "", first_row}, order);
        if (part.bias != nullptr) {
            const HostMatrix column{part.bias, part.bias_dtype, part.rows, 1, 1, 1};
            uploadMatrix(*device, linear->bias.data() + first_row * size, dtype, column,
                         {source.name, source.layer, " bias", first_row}, order);
        }
        first_row += part.rows;
    }
    return linear;
}

std::unique_ptr<DeviceNorm> packNorm(const std::shared_ptr<Device> &device, const NormSource &source, DType dtype,
                                     uint32_t interleave) {
    if (!isFloatDType(source.dtype)) {
        fail(QWEN3_STATUS_BAD_TENSOR_DTYPE, "weight %s has dtype %d", source.name, static_cast<int>(source.dtype));
    }
    auto vector = std::make_unique<DeviceNorm>();
    vector->size = source.size;
    vector->dtype = source.dtype == dtype ? dtype : DType::kF32;  // the norm operator takes either
    vector->data = DeviceBuffer(device, source.size * dtypeSize(vector->dtype));
    DeviceScope scope(*device);
    if (interleave != 0 && source.rope) {
        const HostMatrix column{source.data, source.dtype, source.size, 1, 1, 1};
        uploadMatrix(*device, vector->data.data(), vector->dtype, column, {source.name, source.layer, "", 0},
                     {source.size, interleave});
        return vector;
    }
    const HostMatrix row{source.data, source.dtype, 1, source.size, source.size, 1};
    uploadMatrix(*device, vector->data.data(), vector->dtype, row, {source.name, source.layer, "", 0}, {});
    return vector;
}

std::unique_ptr<HostEmbedding> packEmbedding(const Device &device, const LinearSource &source, DType dtype,
                                             const DeviceLinear *head, bool borrow) {
    auto embedding = std::make_unique<HostEmbedding>();
    shapeOf(source, embedding->rows, embedding->cols);
    embedding->dst_dtype = dtype;
    const uint32_t rows = embedding->rows;
    const uint32_t cols = embedding->cols;
    if (device.isCpu() && head != nullptr && head->rows == rows && head->cols == cols) {
        embedding->table = {head->weight.data(), dtype, rows, cols, cols, 1};  // checked when it was packed
        return embedding;
    }
    const size_t row_bytes = cols * dtypeSize(dtype);
    borrow = borrow && source.parts.size() == 1;
    if (!borrow) {
        embedding->owned_bytes = rows * row_bytes;
        embedding->owned.reset(new char[embedding->owned_bytes]);
    }
    std::vector<char> scratch(borrow ? row_bytes : 0);
    Converter converter;
    uint32_t first_row = 0;
    for (const HostMatrix &part : source.parts) {
        const Origin origin{source.name, source.layer, "", first_row};
        for (uint32_t row = 0; row < part.rows; ++row) {
            converter.run(borrow ? scratch.data() : embedding->owned.get() + (first_row + row) * row_bytes, dtype, part,
                          row, 1, origin);
        }
        first_row += part.rows;
    }
    if (borrow) {
        embedding->table = source.parts[0];
        embedding->borrowed = true;
    } else {
        embedding->table = {embedding->owned.get(), dtype, rows, cols, cols, 1};
    }
    return embedding;
}

}  // namespace q3::infinicore
