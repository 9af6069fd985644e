// InfiniCore's operators as plain functions of tensors: descriptors come from the cache, the workspace is shared.
#pragma once

#include <functional>
#include <initializer_list>
#include <vector>

#include "ops/infinicore/device/descriptors.h"

namespace q3::infinicore {

// Needs a DeviceScope for every call but the destructor. Results are ready after Device::synchronize.
class Operators {
public:
    explicit Operators(std::shared_ptr<Device> device);

    void gemm(const Tensor &c, const Tensor &a, const Tensor &b, float alpha, float beta);  // c = alpha a b + beta c
    void add(const Tensor &c, const Tensor &a, const Tensor &b);
    void rmsNorm(const Tensor &y, const Tensor &x, const Tensor &weight, float epsilon);
    // Rotation of x [ntok, heads, dh] in place, GPT-NeoX or interleaved (GPT-J); tables [ntok, dh / 2]
    void rope(const Tensor &x, const Tensor &positions, const Tensor &sin, const Tensor &cos, bool neox);
    void causalSoftmax(const Tensor &x);  // in place
    void swiglu(const Tensor &out, const Tensor &up, const Tensor &gate);
    void rearrange(const Tensor &dst, const Tensor &src);
    // These fail with DEVICE_TYPE_NOT_SUPPORTED when the InfiniCore of this build has no such operator.
    // sum = a + b (may be a itself), y = rmsnorm(sum)
    void addRmsNorm(const Tensor &y, const Tensor &sum, const Tensor &a, const Tensor &b, const Tensor &weight,
                    float epsilon);
    void embedding(const Tensor &out, const Tensor &ids, const Tensor &table);
    // out[rows, n] = silu(in[rows, 0 .. n - 1]) * in[rows, n .. 2 n - 1], both contiguous
    void siluAndMul(const Tensor &out, const Tensor &in);
    // Caches are [blocks, nkvh, block tokens, dh]; k, v [ntok, nkvh, dh]; slots int64 [ntok]: block * tokens + offset
    void pagedCaching(const Tensor &k_cache, const Tensor &v_cache, const Tensor &k, const Tensor &v,
                      const Tensor &slots);
    // One query row per sequence: out, q [nseq, nh, dh]; tables int32 [nseq, blocks], lengths int32 [nseq]
    void pagedAttention(const Tensor &out, const Tensor &q, const Tensor &k_cache, const Tensor &v_cache,
                        const Tensor &tables, const Tensor &lengths, float scale);
    // Any number of query rows per sequence: out, q [ntok, nh, dh]; starts int32 [nseq + 1], the sequences' first rows
    // and ntok
    void pagedAttentionPrefill(const Tensor &out, const Tensor &q, const Tensor &k_cache, const Tensor &v_cache,
                               const Tensor &tables, const Tensor &lengths, const Tensor &starts, float scale);

    // Makes gemm clear C first when beta is 0, for devices that multiply C's old content by 0. For float32 on the CPU
    // device of 0.1.0 gemm always does.
    void clearBeforeGemm();

    // From now on every call is also kept in `calls`, to be made again as it was; null ends that.
    using Calls = std::vector<std::function<void()>>;
    void record(Calls *calls) {
        calls_ = calls;
        elementwise_ = false;
    }
    // One of the calls since record() was of an elementwise operator (add, swiglu). InfiniCore's read their arguments
    // from memory of the call, which is gone when a graph repeats them.
    bool recordedElementwise() const { return elementwise_; }
    // Changes when what recorded calls use is gone: the workspace's address, or descriptors.
    size_t generation() const { return workspaces_ + cache_.dropped(); }

    size_t workspaceBytes() const { return workspace_.bytes(); }
    const DescriptorCache &cache() const { return cache_; }

private:
    template <class Call> void keep(Call call) const {
        if (calls_ != nullptr) {
            calls_->push_back(std::move(call));
        }
    }
    void copy(const Tensor &dst, const Tensor &src);
    void clear(const Tensor &tensor);
    InfiniopDescriptor *prepare(OpKind kind, std::initializer_list<const Tensor *> tensors, uint32_t scalar = 0);

    std::shared_ptr<Device> device_;
    DescriptorCache cache_;
    DeviceBuffer workspace_;
    size_t workspaces_ = 0;  // how many there were
    Calls *calls_ = nullptr;
    bool elementwise_ = false;
    bool clear_ = false;
    DeviceBuffer zero_;  // one element
};

}  // namespace q3::infinicore
