// InfiniCore's operators as plain functions of tensors: descriptors come from the cache, the workspace is shared.
#pragma once

#include <initializer_list>

#include "ops/infinicore/descriptors.h"

namespace q3::infinicore {

// Needs a DeviceScope for every call but the destructor. Results are ready after Device::synchronize.
class Kernels {
public:
    explicit Kernels(std::shared_ptr<Device> device) : device_(std::move(device)), cache_(device_) {}

    void gemm(const Tensor &c, const Tensor &a, const Tensor &b, float alpha, float beta);  // c = alpha a b + beta c
    void add(const Tensor &c, const Tensor &a, const Tensor &b);
    void rmsNorm(const Tensor &y, const Tensor &x, const Tensor &weight, float epsilon);
    // GPT-NeoX rotation of x [ntok, heads, dh] in place; tables [ntok, dh / 2]
    void rope(const Tensor &x, const Tensor &positions, const Tensor &sin, const Tensor &cos);
    void causalSoftmax(const Tensor &x);  // in place
    void swiglu(const Tensor &out, const Tensor &up, const Tensor &gate);
    void rearrange(const Tensor &dst, const Tensor &src);

    size_t workspaceBytes() const { return workspace_.bytes(); }
    const DescriptorCache &cache() const { return cache_; }

private:
    InfiniopDescriptor *prepare(OpKind kind, std::initializer_list<const Tensor *> tensors, uint32_t scalar = 0);

    std::shared_ptr<Device> device_;
    DescriptorCache cache_;
    Buffer workspace_;
};

}  // namespace q3::infinicore
