// The order in which a layer's panels have its inputs where the columns of a checkpoint are in groups in any order
// (GPTQ's g_idx): those of a group lie side by side, so that they share a scale as in any other matrix of codes.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/weights.h"

namespace q3::cpu {

// The columns of a part by group, and within a group as they lie; each group ends with kNoColumn up to a multiple of
// kGroup, whatever number of its columns the part has. Empty: columns are in order.
std::vector<uint32_t> columnOrder(const HostMatrix &part);

// The same of a layer, whose parts have one order, or of each of its experts, one after the other and equally long.
std::vector<uint32_t> columnOrder(const LinearSource &source);

bool haveOneOrder(const HostMatrix &a, const HostMatrix &b);

}  // namespace q3::cpu
