// Tensors as InfiniCore's operators see them, and a cache of operator descriptors.
#pragma once

#include <array>
#include <memory>
#include <unordered_map>

#include "ops/infinicore/device/api.h"
#include "ops/infinicore/device/buffers.h"

namespace q3::infinicore {

// dtype, shape and strides (in elements) of a tensor of at most four dimensions; unused entries are zero.
struct TensorLayout {
    infiniDtype_t dtype = INFINI_DTYPE_INVALID;
    uint32_t ndim = 0;
    std::array<size_t, 4> shape{};
    std::array<ptrdiff_t, 4> strides{};
    bool operator==(const TensorLayout &other) const {
        return dtype == other.dtype && ndim == other.ndim && shape == other.shape && strides == other.strides;
    }
};

struct Tensor {
    TensorLayout layout;
    void *data = nullptr;
};

// [n], contiguous
Tensor vector1d(void *data, infiniDtype_t dtype, size_t n);
// [rows, cols] with strides (row_stride, col_stride)
Tensor matrix(void *data, infiniDtype_t dtype, size_t rows, size_t cols, size_t row_stride, size_t col_stride = 1);
// [n, rows, cols] with strides (stride, row_stride, col_stride)
Tensor batch(void *data, infiniDtype_t dtype, size_t n, size_t rows, size_t cols, size_t stride, size_t row_stride,
             size_t col_stride = 1);
// [n0, n1, rows, cols] with strides (s0, s1, s2, 1)
Tensor tensor4d(void *data, infiniDtype_t dtype, std::array<size_t, 4> shape, std::array<size_t, 3> strides);

enum class OpKind : uint32_t {
    kGemm,
    kAdd,
    kRmsNorm,
    kRope,
    kCausalSoftmax,
    kSwiGlu,
    kRearrange,
    kAddRmsNorm,
    kEmbedding,
    kPagedCaching,
    kPagedAttention,
    kPagedAttentionPrefill,
    kSiluAndMul,
};

const char *opName(OpKind kind);  // "rms_norm"

// What an operator descriptor was made for. Compared value by value: the hash only finds the bucket.
struct OpKey {
    OpKind kind = OpKind::kGemm;
    uint32_t ntensors = 0;
    uint32_t scalar = 0;  // bits of epsilon (norms) or scale (attention), algorithm (Rope)
    std::array<TensorLayout, 7> tensors{};
    bool operator==(const OpKey &other) const {
        return kind == other.kind && ntensors == other.ntensors && scalar == other.scalar && tensors == other.tensors;
    }
};
struct OpKeyHash {
    size_t operator()(const OpKey &key) const;
};

struct OpDescriptor {
    std::unique_ptr<InfiniopDescriptor, infiniStatus_t (*)(InfiniopDescriptor *)> handle{nullptr, nullptr};
    size_t workspace_bytes = 0;
};

// Two generations of at most kGeneration descriptors each: one that is used moves to the young generation; when that
// is full, the old one is destroyed. Needs a DeviceScope for every call but the destructor, which waits for the stream.
class DescriptorCache {
public:
    explicit DescriptorCache(std::shared_ptr<Device> device);
    ~DescriptorCache();
    DescriptorCache(const DescriptorCache &) = delete;
    DescriptorCache &operator=(const DescriptorCache &) = delete;

    const OpDescriptor &get(const OpKey &key);  // valid until the next get
    size_t size() const { return young_.size() + old_.size(); }
    size_t dropped() const { return dropped_; }  // how often old ones were destroyed
    static constexpr size_t kGeneration = 1024;

private:
    using Map = std::unordered_map<OpKey, OpDescriptor, OpKeyHash>;
    OpDescriptor create(const OpKey &key) const;

    std::shared_ptr<Device> device_;
    infiniopHandle_t handle_ = nullptr;
    Map young_;
    Map old_;
    size_t dropped_ = 0;
};

}  // namespace q3::infinicore
