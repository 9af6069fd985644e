// What the fake libinfiniop.so keeps of handles, tensors and operators.
#pragma once

#include <atomic>
#include <vector>

#include "infiniop.h"

struct InfiniopHandle {
    int device = 0;
    std::atomic<int> descriptors{0};
};

struct InfiniopTensorDescriptor {
    infiniDtype_t dtype;
    std::vector<size_t> shape;
    std::vector<ptrdiff_t> strides;  // in elements
};

struct InfiniopDescriptor {
    enum class Op {
        Gemm,
        Add,
        RMSNorm,
        RoPE,
        CausalSoftmax,
        SwiGLU,
        Rearrange,
        AddRMSNorm,
        Embedding,
        PagedCaching,
        PagedAttention,
        PagedAttentionPrefill,
        SiluAndMul
    } op;
    InfiniopHandle *handle;
    int device;
    std::vector<InfiniopTensorDescriptor> tensors;  // the first is the output
    float number = 0;                               // epsilon or scale
    int algorithm = 0;
    size_t workspace = 0;
};

namespace fake {

using Op = InfiniopDescriptor::Op;
using Layout = InfiniopTensorDescriptor;
constexpr const char *kOps[] = {"gemm",           "add",           "rms_norm",        "rope",
                                "causal_softmax", "swiglu",        "rearrange",       "add_rms_norm",
                                "embedding",      "paged_caching", "paged_attention", "paged_attention_prefill",
                                "silu_and_mul"};

}  // namespace fake
