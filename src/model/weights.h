// Packed weights of a model, and how they are made from its tensors.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "model/split.h"
#include "model/tensors.h"
#include "ops/backend.h"
#include "runtime/packed_file.h"
#include "runtime/ranks.h"

namespace q3 {

// The weights of a layer, packed or to be packed. One with experts has a router, and its last two are of all experts.
template <typename Norm, typename Linear> struct LayerOf {
    Norm attn_norm, q_norm, k_norm, ffn_norm;
    Linear attn_qkv, attn_o, ffn_gate_up, ffn_down;
    Linear router;
};
using LayerWeights = LayerOf<std::unique_ptr<PackedNorm>, std::unique_ptr<PackedLinear>>;
using LayerSources = LayerOf<NormSource, LinearSource>;

inline bool isPresent(const std::unique_ptr<PackedLinear> &linear) {
    return linear != nullptr;
}
inline bool isPresent(const LinearSource &source) {
    return !source.parts.empty();
}

// Calls visit with each member that the first layer has, the same one of all layers: the order in which weights are
// packed and saved.
template <typename Visit, typename First, typename... Layers>
void eachWeight(const Visit &visit, First &first, Layers &...layers) {
    visit(first.attn_norm, layers.attn_norm...);
    visit(first.q_norm, layers.q_norm...);
    visit(first.k_norm, layers.k_norm...);
    visit(first.ffn_norm, layers.ffn_norm...);
    visit(first.attn_qkv, layers.attn_qkv...);
    visit(first.attn_o, layers.attn_o...);
    visit(first.ffn_gate_up, layers.ffn_gate_up...);
    visit(first.ffn_down, layers.ffn_down...);
    if (isPresent(first.router)) {
        visit(first.router, layers.router...);
    }
}

// What one rank holds.
struct ModelWeights {
    std::unique_ptr<PackedLinear> head;       // the rank's rows of lm_head
    std::shared_ptr<PackedLinear> embedding;  // whole; may read from the heads of all ranks
    std::unique_ptr<PackedNorm> output_norm;
    std::vector<LayerWeights> layers;
    std::string identity;  // what saved weights depend on, but for the caller's key; empty: cannot be saved
    int32_t cache = QWEN3_CACHE_UNUSED;  // Qwen3WeightCache

    uint64_t bytes() const;      // without the embedding, which ranks may share
    uint64_t fileBytes() const;  // of experts that stay in the file
};

// Packs everything, each rank its own slice on its own thread, or loads options.cache_path if that file fits, each rank
// its own part; tensors and options must have passed validation. Experts that are to stay on disk are written to that
// file first where it does not fit. Throws BAD_WEIGHTS, CANCELLED, OUT_OF_MEMORY, IO_ERROR, NOT_IMPLEMENTED.
std::vector<ModelWeights> packWeights(const ModelConfig &config, const std::vector<RankSlice> &slices,
                                      const ModelTensors &tensors, const Qwen3ModelOptions &options,
                                      const std::vector<std::unique_ptr<Backend>> &backends, RankGroup &group);

// Hands out all packed weights of a rank in a fixed order, but for an embedding that is borrowed or shared.
void writeWeights(const ModelWeights &weights, PackedWriter &out, const Backend &backend, bool embedding = true);

// Writes a file for options.cache_path, with the weights of all ranks. Throws NOT_IMPLEMENTED, IO_ERROR.
void saveWeights(const std::vector<const ModelWeights *> &ranks, const char *path, const char *key,
                 const Backend &backend);

}  // namespace q3
