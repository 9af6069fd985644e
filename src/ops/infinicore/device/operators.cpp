#include "ops/infinicore/device/operators.h"

#include <cstring>

#include "ops/infinicore/device/check.h"

namespace q3::infinicore {

namespace {

uint32_t bitsOf(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

// Arguments of operators that newer versions alone have.
[[maybe_unused]] constexpr const void *kNone = nullptr;

[[maybe_unused]] const void *in(const Tensor &tensor) {
    return tensor.data;
}

}  // namespace

Operators::Operators(std::shared_ptr<Device> device) : device_(std::move(device)), cache_(device_) {}

InfiniopDescriptor *Operators::prepare(OpKind kind, std::initializer_list<const Tensor *> tensors, uint32_t scalar) {
    OpKey key;
    key.kind = kind;
    key.scalar = scalar;
    for (const Tensor *tensor : tensors) {
        key.tensors[key.ntensors++] = tensor->layout;
    }
    const OpDescriptor &descriptor = cache_.get(key);
    if (descriptor.workspace_bytes > workspace_.bytes()) {
        workspace_ = DeviceBuffer();  // waits for the stream; the old one goes first, so both never coexist
        workspace_ = DeviceBuffer(device_, descriptor.workspace_bytes);
        ++workspaces_;
    }
    return descriptor.handle.get();
}

void Operators::clearBeforeGemm() {
    if (!device_->isCpu() && !zero_) {
        zero_ = DeviceBuffer(device_, sizeof(float));
    }
    clear_ = true;
}

void Operators::clear(const Tensor &tensor) {
    const TensorLayout &layout = tensor.layout;
    if (!device_->isCpu()) {
        TensorLayout zeros = layout;
        zeros.strides = {};
        copy(tensor, {zeros, zero_.data()});
        return;
    }
    const bool is_batch = layout.ndim == 3;
    const size_t n = is_batch ? layout.shape[0] : 1;
    const size_t rows = layout.shape[is_batch ? 1 : 0];
    const size_t cols = layout.shape[is_batch ? 2 : 1];
    const size_t stride = is_batch ? static_cast<size_t>(layout.strides[0]) : 0;
    const size_t row_stride = static_cast<size_t>(layout.strides[is_batch ? 1 : 0]);
    const size_t size = dtypeSize(static_cast<DType>(layout.dtype));
    for (size_t i = 0; i < n; ++i) {
        for (size_t row = 0; row < rows; ++row) {
            std::memset(static_cast<char *>(tensor.data) + (i * stride + row * row_stride) * size, 0, cols * size);
        }
    }
}

void Operators::gemm(const Tensor &c, const Tensor &a, const Tensor &b, float alpha, float beta) {
    keep([=] { gemm(c, a, b, alpha, beta); });
    // InfiniCore 0.1.0's CPU gemm multiplies C by beta even when it is 0: for F32, a NaN or infinity in C would stay.
    if (beta == 0.0F && (clear_ || (device_->isCpu() && c.layout.dtype == INFINI_DTYPE_F32))) {
        clear(c);
    }
    InfiniopDescriptor *op = prepare(OpKind::kGemm, {&c, &a, &b});
    INFINI_CHECK(infiniopGemm(op, workspace_.data(), workspace_.bytes(), c.data, a.data, b.data, alpha, beta,
                              device_->stream()));
}

void Operators::add(const Tensor &c, const Tensor &a, const Tensor &b) {
    keep([=] { add(c, a, b); });
    elementwise_ = true;
    InfiniopDescriptor *op = prepare(OpKind::kAdd, {&c, &a, &b});
    INFINI_CHECK(infiniopAdd(op, workspace_.data(), workspace_.bytes(), c.data, a.data, b.data, device_->stream()));
}

void Operators::rmsNorm(const Tensor &y, const Tensor &x, const Tensor &weight, float epsilon) {
    keep([=] { rmsNorm(y, x, weight, epsilon); });
    InfiniopDescriptor *op = prepare(OpKind::kRmsNorm, {&y, &x, &weight}, bitsOf(epsilon));
    INFINI_CHECK(
        infiniopRMSNorm(op, workspace_.data(), workspace_.bytes(), y.data, x.data, weight.data, device_->stream()));
}

void Operators::rope(const Tensor &x, const Tensor &positions, const Tensor &sin, const Tensor &cos, bool neox) {
    keep([=] { rope(x, positions, sin, cos, neox); });
    const infiniopRoPEAlgo_t algorithm = neox ? INFINIOP_ROPE_ALGO_GPT_NEOX : INFINIOP_ROPE_ALGO_GPT_J;
    InfiniopDescriptor *op = prepare(OpKind::kRope, {&x, &x, &positions, &sin, &cos}, static_cast<uint32_t>(algorithm));
    INFINI_CHECK(infiniopRoPE(op, workspace_.data(), workspace_.bytes(), x.data, x.data, positions.data, sin.data,
                              cos.data, device_->stream()));
}

void Operators::causalSoftmax(const Tensor &x) {
    keep([=] { causalSoftmax(x); });
    InfiniopDescriptor *op = prepare(OpKind::kCausalSoftmax, {&x, &x});
    INFINI_CHECK(infiniopCausalSoftmax(op, workspace_.data(), workspace_.bytes(), x.data, x.data, device_->stream()));
}

void Operators::swiglu(const Tensor &out, const Tensor &up, const Tensor &gate) {
    keep([=] { swiglu(out, up, gate); });
    elementwise_ = true;
    InfiniopDescriptor *op = prepare(OpKind::kSwiGlu, {&out, &up, &gate});
    INFINI_CHECK(
        infiniopSwiGLU(op, workspace_.data(), workspace_.bytes(), out.data, up.data, gate.data, device_->stream()));
}

void Operators::rearrange(const Tensor &dst, const Tensor &src) {
    keep([=] { rearrange(dst, src); });
    copy(dst, src);
}

void Operators::copy(const Tensor &dst, const Tensor &src) {
    InfiniopDescriptor *op = prepare(OpKind::kRearrange, {&dst, &src});
    INFINI_CHECK(infiniopRearrange(op, dst.data, src.data, device_->stream()));
}

// The operators below exist in newer versions only: without them prepare() throws before they would be launched.

void Operators::addRmsNorm(const Tensor &y, const Tensor &sum, const Tensor &a, const Tensor &b, const Tensor &weight,
                           float epsilon) {
    keep([=] { addRmsNorm(y, sum, a, b, weight, epsilon); });
    [[maybe_unused]] InfiniopDescriptor *op =
        prepare(OpKind::kAddRmsNorm, {&y, &sum, &a, &b, &weight}, bitsOf(epsilon));
#if Q3_HAS_ADD_RMS_NORM
    INFINI_CHECK(callIfKnown(infiniopAddRMSNorm, op, workspace_.data(), workspace_.bytes(), y.data, sum.data, in(a),
                             in(b), in(weight), device_->stream()));
#endif
}

void Operators::embedding(const Tensor &out, const Tensor &ids, const Tensor &table) {
    keep([=] { embedding(out, ids, table); });
    [[maybe_unused]] InfiniopDescriptor *op = prepare(OpKind::kEmbedding, {&out, &ids, &table});
#if Q3_HAS_EMBEDDING
    INFINI_CHECK(callIfKnown(infiniopEmbedding, op, out.data, in(ids), in(table), device_->stream()));
#endif
}

void Operators::siluAndMul(const Tensor &out, const Tensor &both) {
    keep([=] { siluAndMul(out, both); });
    [[maybe_unused]] InfiniopDescriptor *op = prepare(OpKind::kSiluAndMul, {&out, &both});
#if Q3_HAS_SILU_AND_MUL
    INFINI_CHECK(callIfKnown(infiniopSiluAndMul, op, workspace_.data(), workspace_.bytes(), out.data, in(both),
                             device_->stream()));
#endif
}

void Operators::pagedCaching(const Tensor &k_cache, const Tensor &v_cache, const Tensor &k, const Tensor &v,
                             const Tensor &slots) {
    keep([=] { pagedCaching(k_cache, v_cache, k, v, slots); });
    [[maybe_unused]] InfiniopDescriptor *op = prepare(OpKind::kPagedCaching, {&k_cache, &v_cache, &k, &v, &slots});
#if Q3_HAS_PAGED_ATTENTION
    INFINI_CHECK(callIfKnown(infiniopPagedCaching, op, workspace_.data(), workspace_.bytes(), k_cache.data,
                             v_cache.data, in(k), in(v), in(slots), device_->stream()));
#endif
}

void Operators::pagedAttention(const Tensor &out, const Tensor &q, const Tensor &k_cache, const Tensor &v_cache,
                               const Tensor &tables, const Tensor &lengths, float scale) {
    keep([=] { pagedAttention(out, q, k_cache, v_cache, tables, lengths, scale); });
    [[maybe_unused]] InfiniopDescriptor *op =
        prepare(OpKind::kPagedAttention, {&out, &q, &k_cache, &v_cache, &tables, &lengths}, bitsOf(scale));
#if Q3_HAS_PAGED_ATTENTION
    INFINI_CHECK(callIfKnown(infiniopPagedAttention, op, workspace_.data(), workspace_.bytes(), out.data, in(q),
                             in(k_cache), in(v_cache), in(tables), in(lengths), kNone, device_->stream()));
#endif
}

void Operators::pagedAttentionPrefill(const Tensor &out, const Tensor &q, const Tensor &k_cache, const Tensor &v_cache,
                                      const Tensor &tables, const Tensor &lengths, const Tensor &starts, float scale) {
    [[maybe_unused]] InfiniopDescriptor *op = prepare(
        OpKind::kPagedAttentionPrefill, {&out, &q, &k_cache, &v_cache, &tables, &lengths, &starts}, bitsOf(scale));
#if Q3_HAS_PAGED_ATTENTION
    INFINI_CHECK(callIfKnown(infiniopPagedAttentionPrefill, op, workspace_.data(), workspace_.bytes(), out.data, in(q),
                             in(k_cache), in(v_cache), in(tables), in(lengths), in(starts), kNone, device_->stream()));
#endif
}

}  // namespace q3::infinicore
