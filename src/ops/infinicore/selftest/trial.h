// One operator tried on random numbers: what selftest.cpp is made of.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "ops/infinicore/device/operators.h"

namespace q3::infinicore {

// A tensor of the trial, on the host as floats and on the device.
struct Operand {
    TensorLayout layout;
    std::vector<float> values;  // everything between the first and the last element, gaps too
    size_t offset = 0;          // bytes into the trial's memory

    size_t at(const std::array<size_t, 4> &index) const;
    float get(size_t i, size_t j = 0, size_t k = 0, size_t l = 0) const { return values[at({i, j, k, l})]; }
};

struct Expected {
    double value;  // limit: the largest error allowed
    double limit;
};

// What an operator was found to be.
struct Verdict {
    enum { kRight, kMissing, kWrong } state = kRight;
    std::string text;        // operator, dtype, shapes, and the status or the largest error and its limit
    bool nan = false;        // Wrong because of a NaN
    bool untouched = false;  // Wrong, and the output is what it was before
    OpKind kind = OpKind::kGemm;
};

class Trial {
public:
    Trial(std::shared_ptr<Device> device, infiniDtype_t dtype) : device_(std::move(device)), dtype_(dtype) {}

    // Random numbers of that standard deviation as the dtype rounds them; the dtype given or the trial's own.
    Operand random(TensorLayout layout, float scale = 1.0F);
    Operand constant(TensorLayout layout, float value) const;
    Operand integers(infiniDtype_t dtype, const std::vector<int64_t> &values, size_t rows = 0) const;

    // Uploads the operands, calls `launch`, and compares the first operand with `expected`, element by element.
    // Throws what is no verdict on the operator: OUT_OF_MEMORY and INTERNAL_ERROR.
    Verdict run(OpKind kind, const std::vector<Operand *> &operands, const std::function<void()> &launch,
                const std::function<Expected(const std::array<size_t, 4> &)> &expected);
    Tensor tensor(const Operand &operand, size_t first = 0) const;  // of the operand in device memory

    infiniDtype_t dtype() const { return dtype_; }
    double unit() const;    // the most that rounding to the dtype changes a value, relatively; some devices truncate
    double inside() const;  // likewise for the products in a gemm: float32 may run as TF32

private:
    std::shared_ptr<Device> device_;
    infiniDtype_t dtype_;
    DeviceBuffer memory_;
    uint32_t state_ = 1;
};

}  // namespace q3::infinicore
