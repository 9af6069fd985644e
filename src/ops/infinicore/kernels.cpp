#include "ops/infinicore/kernels.h"

#include <cstring>

#include "ops/infinicore/check.h"

namespace q3::infinicore {

InfiniopDescriptor *Kernels::prepare(OpKind kind, std::initializer_list<const Tensor *> tensors, uint32_t scalar) {
    OpKey key;
    key.kind = kind;
    key.scalar = scalar;
    for (const Tensor *tensor : tensors) {
        key.tensors[key.ntensors++] = tensor->layout;
    }
    const OpDescriptor &descriptor = cache_.get(key);
    if (descriptor.workspace_bytes > workspace_.bytes()) {
        workspace_ = Buffer();  // waits for the stream; the old one goes first, so both never coexist
        workspace_ = Buffer(device_, descriptor.workspace_bytes);
    }
    return descriptor.handle.get();
}

// InfiniCore 0.1.0's CPU gemm multiplies C by beta even when it is 0: for F32, a NaN or infinity left in C would stay.
static void clearCpu(const Tensor &tensor) {
    const TensorLayout &layout = tensor.layout;
    const bool is_batch = layout.ndim == 3;
    const size_t n = is_batch ? layout.shape[0] : 1, rows = layout.shape[is_batch ? 1 : 0];
    const size_t cols = layout.shape[is_batch ? 2 : 1], stride = is_batch ? size_t(layout.strides[0]) : 0;
    const size_t row_stride = size_t(layout.strides[is_batch ? 1 : 0]);
    for (size_t i = 0; i < n; ++i) {
        for (size_t row = 0; row < rows; ++row) {
            std::memset(static_cast<float *>(tensor.data) + i * stride + row * row_stride, 0, cols * sizeof(float));
        }
    }
}

void Kernels::gemm(const Tensor &c, const Tensor &a, const Tensor &b, float alpha, float beta) {
    if (beta == 0.0f && device_->isCpu() && c.layout.dtype == INFINI_DTYPE_F32) {
        clearCpu(c);
    }
    InfiniopDescriptor *op = prepare(OpKind::Gemm, {&c, &a, &b});
    INFINI_CHECK(infiniopGemm(op, workspace_.data(), workspace_.bytes(), c.data, a.data, b.data, alpha, beta,
                              device_->stream()));
}

void Kernels::add(const Tensor &c, const Tensor &a, const Tensor &b) {
    InfiniopDescriptor *op = prepare(OpKind::Add, {&c, &a, &b});
    INFINI_CHECK(infiniopAdd(op, workspace_.data(), workspace_.bytes(), c.data, a.data, b.data, device_->stream()));
}

void Kernels::rmsNorm(const Tensor &y, const Tensor &x, const Tensor &weight, float epsilon) {
    uint32_t bits;
    std::memcpy(&bits, &epsilon, sizeof bits);
    InfiniopDescriptor *op = prepare(OpKind::RmsNorm, {&y, &x, &weight}, bits);
    INFINI_CHECK(
        infiniopRMSNorm(op, workspace_.data(), workspace_.bytes(), y.data, x.data, weight.data, device_->stream()));
}

void Kernels::rope(const Tensor &x, const Tensor &positions, const Tensor &sin, const Tensor &cos) {
    InfiniopDescriptor *op =
        prepare(OpKind::Rope, {&x, &x, &positions, &sin, &cos}, uint32_t(INFINIOP_ROPE_ALGO_GPT_NEOX));
    INFINI_CHECK(infiniopRoPE(op, workspace_.data(), workspace_.bytes(), x.data, x.data, positions.data, sin.data,
                              cos.data, device_->stream()));
}

void Kernels::causalSoftmax(const Tensor &x) {
    InfiniopDescriptor *op = prepare(OpKind::CausalSoftmax, {&x, &x});
    INFINI_CHECK(infiniopCausalSoftmax(op, workspace_.data(), workspace_.bytes(), x.data, x.data, device_->stream()));
}

void Kernels::swiglu(const Tensor &out, const Tensor &up, const Tensor &gate) {
    InfiniopDescriptor *op = prepare(OpKind::SwiGLU, {&out, &up, &gate});
    INFINI_CHECK(
        infiniopSwiGLU(op, workspace_.data(), workspace_.bytes(), out.data, up.data, gate.data, device_->stream()));
}

void Kernels::rearrange(const Tensor &dst, const Tensor &src) {
    InfiniopDescriptor *op = prepare(OpKind::Rearrange, {&dst, &src});
    INFINI_CHECK(infiniopRearrange(op, dst.data, src.data, device_->stream()));
}

}  // namespace q3::infinicore
