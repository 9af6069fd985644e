// How a model is cut over ranks (tensor parallelism): attention by KV head, the MLP and every expert by its inner rows,
// the head by vocabulary rows.
#pragma once

#include <vector>

#include "ops/types.h"

namespace q3 {

// Inner rows and vocabulary rows are cut at multiples of this where there are enough: a quantisation group of the next
// layer's columns, and two panels of the CPU backend, stay whole, so that a rank's numbers are those of the uncut
// model.
constexpr uint32_t kSplitUnit = 32;

// What one rank has of the model.
struct RankSlice {
    uint32_t rank = 0;
    // Sizes of the rank's own part: nh, nkvh, di and dvoc (rows of the head) are its shares, the rest is the model's.
    ModelConfig config{};
    uint32_t first_head = 0;     // query heads [first_head, first_head + config.nh) of the model
    uint32_t first_kv_head = 0;  // and so on
    uint32_t first_inner = 0;
    uint32_t first_expert_inner = 0;  // of every expert's rows, of which the rank has config.dm
    uint32_t first_vocab = 0;
};

// One slice for each of nranks ranks. With fewer KV heads than ranks, ranks next to each other hold the same KV head.
// inner_unit: the MLP's inner rows are cut at multiples of it where there are enough of them.
// Throws BAD_PARAM with the allowed numbers when the heads cannot be divided.
std::vector<RankSlice> splitModel(const ModelConfig &config, uint32_t nranks, uint32_t inner_unit = kSplitUnit);

}  // namespace q3
