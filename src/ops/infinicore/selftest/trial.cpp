#include "ops/infinicore/selftest/trial.h"

#include <cmath>

#include "ops/infinicore/convert.h"
#include "runtime/error.h"

namespace q3::infinicore {
namespace {

// InfiniCore's dtypes have the numbers of ours.
DType asDType(infiniDtype_t dtype) {
    return static_cast<DType>(dtype);
}

constexpr size_t kAlignment = 256;

size_t bytesPer(infiniDtype_t dtype) {
    return dtype == INFINI_DTYPE_I64 ? 8 : dtype == INFINI_DTYPE_I32 ? 4 : dtypeSize(asDType(dtype));
}

size_t extent(const TensorLayout &layout) {
    size_t last = 0;
    for (uint32_t dim = 0; dim < layout.ndim; ++dim) {
        last += (layout.shape[dim] - 1) * static_cast<size_t>(layout.strides[dim]);
    }
    return last + 1;
}

void encode(const Operand &operand, char *target) {
    const size_t n = operand.values.size();
    if (isFloatDType(asDType(operand.layout.dtype))) {
        floatsTo(asDType(operand.layout.dtype), target, operand.values.data(), n);
        return;
    }
    for (size_t i = 0; i < n; ++i) {
        const auto wide = static_cast<int64_t>(operand.values[i]);
        const auto narrow = static_cast<int32_t>(wide);
        const bool is_wide = operand.layout.dtype == INFINI_DTYPE_I64;
        std::memcpy(target + i * (is_wide ? 8 : 4), is_wide ? static_cast<const void *>(&wide) : &narrow,
                    is_wide ? 8 : 4);
    }
}

const char *nameOf(infiniDtype_t dtype) {
    return dtype == INFINI_DTYPE_I64 ? "i64" : dtype == INFINI_DTYPE_I32 ? "i32" : dtypeName(asDType(dtype));
}

// "gemm bf16 [1, 64] [1, 1024] [1024, 64]"
std::string describe(OpKind kind, const std::vector<Operand *> &operands) {
    std::string text = std::string(opName(kind)) + " " + nameOf(operands[0]->layout.dtype);
    for (const Operand *operand : operands) {
        text += " [";
        for (uint32_t dim = 0; dim < operand->layout.ndim; ++dim) {
            text += (dim == 0 ? "" : ", ") + std::to_string(operand->layout.shape[dim]);
        }
        text += ']';
    }
    return text;
}

std::string number(double value) {
    char text[32];
    formatText(text, sizeof text, "%.3g", value);
    return text;
}

}  // namespace

size_t Operand::at(const std::array<size_t, 4> &index) const {
    size_t result = 0;
    for (uint32_t dim = 0; dim < layout.ndim; ++dim) {
        result += index[dim] * static_cast<size_t>(layout.strides[dim]);
    }
    return result;
}

double Trial::unit() const {
    return dtype_ == INFINI_DTYPE_BF16 ? 0x1p-8 : dtype_ == INFINI_DTYPE_F16 ? 0x1p-10 : 0x1p-22;
}

double Trial::inside() const {
    return dtype_ == INFINI_DTYPE_F32 && !device_->isCpu() ? 0x1p-10 : dtype_ == INFINI_DTYPE_F32 ? 0x1p-20 : unit();
}

Operand Trial::random(TensorLayout layout, float scale) {
    if (layout.dtype == INFINI_DTYPE_INVALID) {
        layout.dtype = dtype_;
    }
    Operand operand{layout, std::vector<float>(extent(layout)), 0};
    for (float &value : operand.values) {  // a sum of four uniform numbers is normal enough
        float sum = -2.0F;
        for (int i = 0; i < 4; ++i) {
            state_ = state_ * 1664525U + 1013904223U;
            sum += static_cast<float>(state_ >> 8) * 0x1p-24F;
        }
        value = sum * 1.7320508F * scale;
    }
    std::vector<char> raw(operand.values.size() * dtypeSize(asDType(layout.dtype)));
    floatsTo(asDType(layout.dtype), raw.data(), operand.values.data(), operand.values.size());
    toFloats(asDType(layout.dtype), operand.values.data(), raw.data(), operand.values.size());
    return operand;
}

Operand Trial::constant(TensorLayout layout, float value) const {
    if (layout.dtype == INFINI_DTYPE_INVALID) {
        layout.dtype = dtype_;
    }
    return {layout, std::vector<float>(extent(layout), value), 0};
}

Operand Trial::integers(infiniDtype_t dtype, const std::vector<int64_t> &values, size_t rows) const {
    const size_t cols = rows == 0 ? values.size() : values.size() / rows;
    const Tensor tensor = rows == 0 ? vector1d(nullptr, dtype, cols) : matrix(nullptr, dtype, rows, cols, cols);
    return {tensor.layout, {values.begin(), values.end()}, 0};
}

Tensor Trial::tensor(const Operand &operand, size_t first) const {
    return {operand.layout, memory_.data() + operand.offset + first * bytesPer(operand.layout.dtype)};
}

Verdict Trial::run(OpKind kind, const std::vector<Operand *> &operands, const std::function<void()> &launch,
                   const std::function<Expected(const std::array<size_t, 4> &)> &expected) {
    size_t bytes = 0;
    for (Operand *operand : operands) {
        operand->offset = bytes;
        const size_t size = operand->values.size() * bytesPer(operand->layout.dtype);
        bytes += (size + kAlignment - 1) / kAlignment * kAlignment;
    }
    std::vector<char> raw(bytes);
    for (const Operand *operand : operands) {
        encode(*operand, raw.data() + operand->offset);
    }
    if (memory_.bytes() < bytes) {
        memory_ = DeviceBuffer();
        memory_ = DeviceBuffer(device_, bytes);
    }
    device_->upload(memory_.data(), raw.data(), bytes);
    Verdict verdict;
    verdict.kind = kind;
    verdict.text = describe(kind, operands);
    try {
        launch();
    } catch (const Error &error) {
        if (error.status() == QWEN3_STATUS_OUT_OF_MEMORY || error.status() == QWEN3_STATUS_INTERNAL_ERROR) {
            throw;
        }
        verdict.state = Verdict::kMissing;
        verdict.text += std::string(" is refused: ") + error.what();
        return verdict;
    }
    const Operand &out = *operands[0];
    std::vector<float> actual(out.values.size());
    raw.resize(actual.size() * dtypeSize(asDType(out.layout.dtype)));
    const std::vector<char> before = raw;  // the output is the first operand
    device_->downloadAsync(raw.data(), memory_.data() + out.offset, raw.size());
    device_->synchronize();
    toFloats(asDType(out.layout.dtype), actual.data(), raw.data(), actual.size());
    const bool untouched = raw == before;

    double worst = 0;
    double error_of_worst = 0;
    double limit_of_worst = 0;
    std::array<size_t, 4> shape{1, 1, 1, 1};
    std::array<size_t, 4> i{};
    std::copy_n(out.layout.shape.begin(), out.layout.ndim, shape.begin());
    for (i[0] = 0; i[0] < shape[0]; ++i[0]) {
        for (i[1] = 0; i[1] < shape[1]; ++i[1]) {
            for (i[2] = 0; i[2] < shape[2]; ++i[2]) {
                for (i[3] = 0; i[3] < shape[3]; ++i[3]) {
                    const Expected e = expected(i);
                    const double value = actual[out.at(i)];
                    const double error = value == e.value ? 0 : std::abs(value - e.value);
                    const double ratio = error / std::max(e.limit, 1e-300);
                    if (std::isnan(error) || ratio > worst) {
                        worst = std::isnan(error) ? INFINITY : ratio;
                        error_of_worst = error;
                        limit_of_worst = e.limit;
                        verdict.nan = verdict.nan || std::isnan(value);
                    }
                }
            }
        }
    }
    if (worst > 1) {
        verdict.state = Verdict::kWrong;
        verdict.untouched = untouched;
        verdict.text += " is wrong: largest error " + number(error_of_worst) + ", limit " + number(limit_of_worst);
    }
    return verdict;
}

}  // namespace q3::infinicore
