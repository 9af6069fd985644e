#include "ops/infinicore/device/operators.h"

#include <cstring>

#include "ops/infinicore/device/check.h"

namespace q3::infinicore {

Kernels::Kernels(std::shared_ptr<Device> device) : device_(std::move(device)), cache_(device_) {}

static uint32_t bitsOf(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

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

void Kernels::clearBeforeGemm() {
    if (!device_->isCpu() && !zero_) {
        zero_ = Buffer(device_, sizeof(float));
    }
    clear_ = true;
}

void Kernels::clear(const Tensor &tensor) {
    const TensorLayout &layout = tensor.layout;
    if (!device_->isCpu()) {
        TensorLayout zeros = layout;
        zeros.strides = {};
        rearrange(tensor, {zeros, zero_.data()});
        return;
    }
    const bool is_batch = layout.ndim == 3;
    const size_t n = is_batch ? layout.shape[0] : 1, rows = layout.shape[is_batch ? 1 : 0];
    const size_t cols = layout.shape[is_batch ? 2 : 1], stride = is_batch ? size_t(layout.strides[0]) : 0;
    const size_t row_stride = size_t(layout.strides[is_batch ? 1 : 0]);
    const size_t size = dtypeSize(static_cast<DType>(layout.dtype));
    for (size_t i = 0; i < n; ++i) {
        for (size_t row = 0; row < rows; ++row) {
            std::memset(static_cast<char *>(tensor.data) + (i * stride + row * row_stride) * size, 0, cols * size);
        }
    }
}

void Kernels::gemm(const Tensor &c, const Tensor &a, const Tensor &b, float alpha, float beta) {
    // InfiniCore 0.1.0's CPU gemm multiplies C by beta even when it is 0: for F32, a NaN or infinity in C would stay.
    if (beta == 0.0f && (clear_ || (device_->isCpu() && c.layout.dtype == INFINI_DTYPE_F32))) {
        clear(c);
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
    InfiniopDescriptor *op = prepare(OpKind::RmsNorm, {&y, &x, &weight}, bitsOf(epsilon));
    INFINI_CHECK(
        infiniopRMSNorm(op, workspace_.data(), workspace_.bytes(), y.data, x.data, weight.data, device_->stream()));
}

void Kernels::rope(const Tensor &x, const Tensor &positions, const Tensor &sin, const Tensor &cos, bool neox) {
    const infiniopRoPEAlgo_t algorithm = neox ? INFINIOP_ROPE_ALGO_GPT_NEOX : INFINIOP_ROPE_ALGO_GPT_J;
    InfiniopDescriptor *op = prepare(OpKind::Rope, {&x, &x, &positions, &sin, &cos}, uint32_t(algorithm));
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

// The operators below exist in newer versions only: without them prepare() throws before they would be launched.

[[maybe_unused]] static constexpr const void *kNone = nullptr;

[[maybe_unused]] static const void *in(const Tensor &tensor) {
    return tensor.data;
}

void Kernels::addRmsNorm(const Tensor &y, const Tensor &sum, const Tensor &a, const Tensor &b, const Tensor &weight,
                         float epsilon) {
    [[maybe_unused]] InfiniopDescriptor *op = prepare(OpKind::AddRmsNorm, {&y, &sum, &a, &b, &weight}, bitsOf(epsilon));
#if Q3_HAS_ADD_RMS_NORM
    INFINI_CHECK(callIfKnown(infiniopAddRMSNorm, op, workspace_.data(), workspace_.bytes(), y.data, sum.data, in(a),
                             in(b), in(weight), device_->stream()));
#endif
}

void Kernels::embedding(const Tensor &out, const Tensor &ids, const Tensor &table) {
    [[maybe_unused]] InfiniopDescriptor *op = prepare(OpKind::Embedding, {&out, &ids, &table});
#if Q3_HAS_EMBEDDING
    INFINI_CHECK(callIfKnown(infiniopEmbedding, op, out.data, in(ids), in(table), device_->stream()));
#endif
}

void Kernels::pagedCaching(const Tensor &k_cache, const Tensor &v_cache, const Tensor &k, const Tensor &v,
                           const Tensor &slots) {
    [[maybe_unused]] InfiniopDescriptor *op = prepare(OpKind::PagedCaching, {&k_cache, &v_cache, &k, &v, &slots});
#if Q3_HAS_PAGED_ATTENTION
    INFINI_CHECK(callIfKnown(infiniopPagedCaching, op, workspace_.data(), workspace_.bytes(), k_cache.data,
                             v_cache.data, in(k), in(v), in(slots), device_->stream()));
#endif
}

void Kernels::pagedAttention(const Tensor &out, const Tensor &q, const Tensor &k_cache, const Tensor &v_cache,
                             const Tensor &tables, const Tensor &lengths, float scale) {
    [[maybe_unused]] InfiniopDescriptor *op =
        prepare(OpKind::PagedAttention, {&out, &q, &k_cache, &v_cache, &tables, &lengths}, bitsOf(scale));
#if Q3_HAS_PAGED_ATTENTION
    INFINI_CHECK(callIfKnown(infiniopPagedAttention, op, workspace_.data(), workspace_.bytes(), out.data, in(q),
                             in(k_cache), in(v_cache), in(tables), in(lengths), kNone, device_->stream()));
#endif
}

void Kernels::pagedAttentionPrefill(const Tensor &out, const Tensor &q, const Tensor &k_cache, const Tensor &v_cache,
                                    const Tensor &tables, const Tensor &lengths, const Tensor &starts, float scale) {
    [[maybe_unused]] InfiniopDescriptor *op = prepare(
        OpKind::PagedAttentionPrefill, {&out, &q, &k_cache, &v_cache, &tables, &lengths, &starts}, bitsOf(scale));
#if Q3_HAS_PAGED_ATTENTION
    INFINI_CHECK(callIfKnown(infiniopPagedAttentionPrefill, op, workspace_.data(), workspace_.bytes(), out.data, in(q),
                             in(k_cache), in(v_cache), in(tables), in(lengths), in(starts), kNone, device_->stream()));
#endif
}

}  // namespace q3::infinicore
