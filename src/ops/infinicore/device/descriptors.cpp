#include "ops/infinicore/device/descriptors.h"

#include <cstring>

#include "ops/infinicore/device/check.h"
#include "runtime/error.h"

namespace q3::infinicore {

Tensor vector1d(void *data, infiniDtype_t dtype, size_t n) {
    return {{dtype, 1, {n}, {1}}, data};
}

Tensor matrix(void *data, infiniDtype_t dtype, size_t rows, size_t cols, size_t row_stride, size_t col_stride) {
    return {{dtype, 2, {rows, cols}, {static_cast<ptrdiff_t>(row_stride), static_cast<ptrdiff_t>(col_stride)}}, data};
}

Tensor batch(void *data, infiniDtype_t dtype, size_t n, size_t rows, size_t cols, size_t stride, size_t row_stride,
             size_t col_stride) {
    return {{dtype,
             3,
             {n, rows, cols},
             {static_cast<ptrdiff_t>(stride), static_cast<ptrdiff_t>(row_stride), static_cast<ptrdiff_t>(col_stride)}},
            data};
}

Tensor tensor4d(void *data, infiniDtype_t dtype, std::array<size_t, 4> shape, std::array<size_t, 3> strides) {
    return {{dtype,
             4,
             shape,
             {static_cast<ptrdiff_t>(strides[0]), static_cast<ptrdiff_t>(strides[1]),
              static_cast<ptrdiff_t>(strides[2]), 1}},
            data};
}

const char *opName(OpKind kind) {
    switch (kind) {
    case OpKind::kGemm:
        return "gemm";
    case OpKind::kAdd:
        return "add";
    case OpKind::kRmsNorm:
        return "rms_norm";
    case OpKind::kRope:
        return "rope";
    case OpKind::kCausalSoftmax:
        return "causal_softmax";
    case OpKind::kSwiGlu:
        return "swiglu";
    case OpKind::kRearrange:
        return "rearrange";
    case OpKind::kAddRmsNorm:
        return "add_rms_norm";
    case OpKind::kEmbedding:
        return "embedding";
    case OpKind::kPagedCaching:
        return "paged_caching";
    case OpKind::kPagedAttention:
        return "paged_attention";
    case OpKind::kPagedAttentionPrefill:
        return "paged_attention_prefill";
    case OpKind::kSiluAndMul:
        return "silu_and_mul";
    }
    return "unknown";
}

size_t OpKeyHash::operator()(const OpKey &key) const {
    uint64_t hash = 0x9e3779b97f4a7c15ULL;
    const auto mix = [&hash](uint64_t value) {
        hash = (hash ^ value) * 0xff51afd7ed558ccdULL;
        hash ^= hash >> 32;
    };
    mix(static_cast<uint64_t>(key.kind));
    mix(key.scalar);
    for (uint32_t i = 0; i < key.ntensors; ++i) {
        const TensorLayout &layout = key.tensors[i];
        mix(static_cast<uint64_t>(layout.dtype) * 8 + layout.ndim);
        for (uint32_t dim = 0; dim < layout.ndim; ++dim) {
            mix(layout.shape[dim]);
            mix(static_cast<uint64_t>(layout.strides[dim]));
        }
    }
    return static_cast<size_t>(hash);
}

DescriptorCache::DescriptorCache(std::shared_ptr<Device> device) : device_(std::move(device)) {
    INFINI_CHECK(infiniopCreateHandle(&handle_));
}

DescriptorCache::~DescriptorCache() {
    try {
        if (device_->abandoned()) {
            throw std::exception();
        }
        DeviceScope scope(*device_);
        device_->settle();
        young_.clear();  // descriptors go before the handle they were made with
        old_.clear();
        infiniopDestroyHandle(handle_);
    } catch (...) {  // the device cannot be used any more: leaking beats freeing on another one
        for (Map *map : {&young_, &old_}) {
            for (auto &entry : *map) {
                [[maybe_unused]] const void *leaked = entry.second.handle.release();
            }
        }
    }
}

const OpDescriptor &DescriptorCache::get(const OpKey &key) {
    if (const auto it = young_.find(key); it != young_.end()) {
        return it->second;
    }
    if (young_.size() >= kGeneration) {
        device_->synchronize();  // running operators may still use what is destroyed
        dropped_ += old_.empty() ? 0 : 1;
        old_.clear();
        old_.swap(young_);
    }
    if (auto node = old_.extract(key); !node.empty()) {
        return young_.insert(std::move(node)).position->second;
    }
    return young_.emplace(key, create(key)).first->second;
}

namespace {

class TensorDescriptor {
public:
    TensorDescriptor() = default;
    ~TensorDescriptor() {
        if (handle_ != nullptr) {
            infiniopDestroyTensorDescriptor(handle_);
        }
    }
    TensorDescriptor(const TensorDescriptor &) = delete;
    TensorDescriptor &operator=(const TensorDescriptor &) = delete;
    void create(const TensorLayout &layout) {
        INFINI_CHECK(infiniopCreateTensorDescriptor(&handle_, layout.ndim, layout.shape.data(), layout.strides.data(),
                                                    layout.dtype));
    }
    operator infiniopTensorDescriptor_t() const { return handle_; }

private:
    infiniopTensorDescriptor_t handle_ = nullptr;
};

}  // namespace

OpDescriptor DescriptorCache::create(const OpKey &key) const {
    std::array<TensorDescriptor, 7> t;
    for (uint32_t i = 0; i < key.ntensors; ++i) {
        t[i].create(key.tensors[i]);
    }

    OpDescriptor result;
    InfiniopDescriptor *handle = nullptr;
    size_t &bytes = result.workspace_bytes;
    [[maybe_unused]] float number;  // epsilon or scale
    std::memcpy(&number, &key.scalar, sizeof number);
    // Takes ownership at once, so that a failing workspace query does not leak.
    const auto own = [&](infiniStatus_t (*destroy)(InfiniopDescriptor *)) { result.handle = {handle, destroy}; };
    [[maybe_unused]] const auto get = [&t](size_t i) -> infiniopTensorDescriptor_t { return t[i]; };
    [[maybe_unused]] constexpr infiniopTensorDescriptor_t kNone = nullptr;
    switch (key.kind) {
    case OpKind::kGemm:
        INFINI_CHECK(infiniopCreateGemmDescriptor(handle_, &handle, t[0], t[1], t[2]));
        own(infiniopDestroyGemmDescriptor);
        INFINI_CHECK(infiniopGetGemmWorkspaceSize(handle, &bytes));
        break;
    case OpKind::kAdd:
        INFINI_CHECK(infiniopCreateAddDescriptor(handle_, &handle, t[0], t[1], t[2]));
        own(infiniopDestroyAddDescriptor);
        INFINI_CHECK(infiniopGetAddWorkspaceSize(handle, &bytes));
        break;
    case OpKind::kRmsNorm:
        INFINI_CHECK(infiniopCreateRMSNormDescriptor(handle_, &handle, t[0], t[1], t[2], number));
        own(infiniopDestroyRMSNormDescriptor);
        INFINI_CHECK(infiniopGetRMSNormWorkspaceSize(handle, &bytes));
        break;
    case OpKind::kRope:
        INFINI_CHECK(infiniopCreateRoPEDescriptor(handle_, &handle, t[0], t[1], t[2], t[3], t[4],
                                                  static_cast<infiniopRoPEAlgo_t>(key.scalar)));
        own(infiniopDestroyRoPEDescriptor);
        INFINI_CHECK(infiniopGetRoPEWorkspaceSize(handle, &bytes));
        break;
    case OpKind::kCausalSoftmax:
        INFINI_CHECK(infiniopCreateCausalSoftmaxDescriptor(handle_, &handle, t[0], t[1]));
        own(infiniopDestroyCausalSoftmaxDescriptor);
        INFINI_CHECK(infiniopGetCausalSoftmaxWorkspaceSize(handle, &bytes));
        break;
    case OpKind::kSwiGlu:
        INFINI_CHECK(infiniopCreateSwiGLUDescriptor(handle_, &handle, t[0], t[1], t[2]));
        own(infiniopDestroySwiGLUDescriptor);
        INFINI_CHECK(infiniopGetSwiGLUWorkspaceSize(handle, &bytes));
        break;
    case OpKind::kRearrange:  // uses no workspace
        INFINI_CHECK(infiniopCreateRearrangeDescriptor(handle_, &handle, t[0], t[1]));
        own(infiniopDestroyRearrangeDescriptor);
        break;
#if Q3_HAS_ADD_RMS_NORM
    case OpKind::kAddRmsNorm:
        INFINI_CHECK(callIfKnown(infiniopCreateAddRMSNormDescriptor, handle_, &handle, get(0), get(1), get(2), get(3),
                                 get(4), number));
        own(infiniopDestroyAddRMSNormDescriptor);
        INFINI_CHECK(infiniopGetAddRMSNormWorkspaceSize(handle, &bytes));
        break;
#endif
#if Q3_HAS_EMBEDDING
    case OpKind::kEmbedding:  // uses no workspace
        INFINI_CHECK(callIfKnown(infiniopCreateEmbeddingDescriptor, handle_, &handle, get(0), get(1), get(2)));
        own(infiniopDestroyEmbeddingDescriptor);
        break;
#endif
#if Q3_HAS_SILU_AND_MUL
    case OpKind::kSiluAndMul:
        INFINI_CHECK(callIfKnown(infiniopCreateSiluAndMulDescriptor, handle_, &handle, get(0), get(1)));
        own(infiniopDestroySiluAndMulDescriptor);
        INFINI_CHECK(infiniopGetSiluAndMulWorkspaceSize(handle, &bytes));
        break;
#endif
#if Q3_HAS_PAGED_ATTENTION
    case OpKind::kPagedCaching:
        INFINI_CHECK(callIfKnown(infiniopCreatePagedCachingDescriptor, handle_, &handle, get(0), get(1), get(2), get(3),
                                 get(4)));
        own(infiniopDestroyPagedCachingDescriptor);
        INFINI_CHECK(infiniopGetPagedCachingWorkspaceSize(handle, &bytes));
        break;
    case OpKind::kPagedAttention:
        INFINI_CHECK(callIfKnown(infiniopCreatePagedAttentionDescriptor, handle_, &handle, get(0), get(1), get(2),
                                 get(3), get(4), get(5), kNone, number));
        own(infiniopDestroyPagedAttentionDescriptor);
        INFINI_CHECK(infiniopGetPagedAttentionWorkspaceSize(handle, &bytes));
        break;
    case OpKind::kPagedAttentionPrefill:
        INFINI_CHECK(callIfKnown(infiniopCreatePagedAttentionPrefillDescriptor, handle_, &handle, get(0), get(1),
                                 get(2), get(3), get(4), get(5), get(6), kNone, number));
        own(infiniopDestroyPagedAttentionPrefillDescriptor);
        INFINI_CHECK(infiniopGetPagedAttentionPrefillWorkspaceSize(handle, &bytes));
        break;
#endif
    default:  // an operator that this build's InfiniCore does not have
        fail(QWEN3_STATUS_DEVICE_TYPE_NOT_SUPPORTED, "InfiniCore was without operator %s when this library was built",
             opName(key.kind));
    }
    return result;
}

}  // namespace q3::infinicore
