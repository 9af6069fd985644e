// Where the tensors of a model lie in the caller's memory, however the caller described them (src/api/tensors.cpp):
// what packing starts from.
#pragma once

#include <deque>
#include <vector>

#include "ops/stored.h"
#include "ops/weights.h"

namespace q3 {

struct HostNorm {
    const void *data = nullptr;  // contiguous
    DType dtype = DType::kDefault;
};

struct ExpertTensors {
    HostMatrix gate, up, down;
};

// Fused projections are given as their parts, which are rows of one matrix. A layer has gate, up and down, or a router
// and experts.
struct LayerTensors {
    HostNorm attn_norm, q_norm, k_norm, ffn_norm;
    HostMatrix q, k, v, o, gate, up, down;
    HostMatrix router;
    std::vector<ExpertTensors> experts;
};

struct ModelTensors {
    HostMatrix input_embd;
    HostNorm output_norm;
    HostMatrix output_embd;  // without data when the head is tied to the embedding
    std::vector<LayerTensors> layers;
    std::deque<StoredMatrix> stored;  // what matrices point to

    bool tied() const { return output_embd.data == nullptr; }
    const HostMatrix &head() const { return tied() ? input_embd : output_embd; }
    // Columns of the last matrices of MLPs and experts are best cut at multiples of this: of their blocks of codes, or
    // kSplitUnit.
    uint32_t innerUnit() const;
    // The dtype that most elements of the layers' matrices have.
    DType mainDType() const;
};

uint64_t bytesOf(const HostMatrix &matrix);   // in the caller's memory, for reports of progress
uint64_t bytesOf(const LayerTensors &layer);  // of the matrices

// Rows [first, first + count) of a matrix, or columns, which all have the whole bias.
HostMatrix rowsOf(const HostMatrix &matrix, uint32_t first, uint32_t count);
HostMatrix columnsOf(const HostMatrix &matrix, uint32_t first, uint32_t count);

}  // namespace q3
