// Packed weights of a model, and how they are made from the C API's Qwen3Weights: the only file that knows that layout.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "ops/ops.h"

namespace q3 {

struct LayerWeights {
    std::unique_ptr<Vector> attn_norm, q_norm, k_norm, ffn_norm;
    std::unique_ptr<Linear> attn_qkv, attn_o, ffn_gate_up, ffn_down;
};

struct ModelWeights {
    std::unique_ptr<Linear> head;       // lm_head
    std::unique_ptr<Linear> embedding;  // may read from head's memory, so it is destroyed first
    std::unique_ptr<Vector> output_norm;
    std::vector<LayerWeights> layers;
    std::string identity;  // what saved weights depend on, but for the caller's key; empty: cannot be saved
    int32_t cache = QWEN3_CACHE_UNUSED;  // Qwen3WeightCache

    uint64_t bytes() const;
};

// Packs everything, or loads options.cache_path if that file fits; weights and options must have passed validation.
// Throws BAD_WEIGHTS, CANCELLED, OUT_OF_MEMORY.
ModelWeights packWeights(const ModelConfig &config, const Qwen3Weights &weights, const Qwen3ModelOptions &options,
                         Ops &ops);

// Writes a file for options.cache_path. Throws NOT_IMPLEMENTED, IO_ERROR.
void saveWeights(const ModelWeights &weights, const char *path, const char *key, const Ops &ops);

}  // namespace q3
