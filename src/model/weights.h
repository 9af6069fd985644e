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

// The weights of a layer, packed or to be packed.
template <typename Norm, typename Linear> struct LayerOf {
    Norm attn_norm, q_norm, k_norm, ffn_norm;
    Linear attn_qkv, attn_o, ffn_gate_up, ffn_down;
};
using LayerWeights = LayerOf<std::unique_ptr<PackedNorm>, std::unique_ptr<PackedLinear>>;
using LayerSources = LayerOf<NormSource, LinearSource>;

// Calls visit with each member of the layers in turn, the same one of all of them: the order in which weights are
// packed and saved.
template <typename Visit, typename... Layers> void eachWeight(const Visit &visit, Layers &...layers) {
    visit(layers.attn_norm...);
    visit(layers.q_norm...);
    visit(layers.k_norm...);
    visit(layers.ffn_norm...);
    visit(layers.attn_qkv...);
    visit(layers.attn_o...);
    visit(layers.ffn_gate_up...);
    visit(layers.ffn_down...);
}

// What one rank holds.
struct ModelWeights {
    std::unique_ptr<PackedLinear> head;       // the rank's rows of lm_head
    std::shared_ptr<PackedLinear> embedding;  // whole; may read from the heads of all ranks
    std::unique_ptr<PackedNorm> output_norm;
    std::vector<LayerWeights> layers;
    std::string identity;  // what saved weights depend on, but for the caller's key; empty: cannot be saved
    int32_t cache = QWEN3_CACHE_UNUSED;  // Qwen3WeightCache

    uint64_t bytes() const;  // without the embedding, which ranks may share
};

// Packs everything, each rank its own slice on its own thread, or loads options.cache_path if that file fits, each rank
// its own part; tensors and options must have passed validation. Throws BAD_WEIGHTS, CANCELLED, OUT_OF_MEMORY.
std::vector<ModelWeights> packWeights(const ModelConfig &config, const std::vector<RankSlice> &slices,
                                      const ModelTensors &tensors, const Qwen3ModelOptions &options,
                                      const std::vector<std::unique_ptr<Backend>> &backends, RankGroup &group);

// Hands out all packed weights of a rank in a fixed order, but for an embedding that is borrowed or shared.
void writeWeights(const ModelWeights &weights, PackedWriter &out, const Backend &backend, bool embedding = true);

// Writes a file for options.cache_path, with the weights of all ranks. Throws NOT_IMPLEMENTED, IO_ERROR.
void saveWeights(const std::vector<const ModelWeights *> &ranks, const char *path, const char *key,
                 const Backend &backend);

}  // namespace q3
