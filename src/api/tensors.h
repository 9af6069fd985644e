// The caller's two descriptions of a model's weights, Qwen3Weights and Qwen3Tensor, checked and brought into one.
#pragma once

#include "model/tensors.h"
#include "ops/types.h"

namespace q3 {

// weights may be null if options.tensors is the whole model. Reads no data of a tensor. Throws ABI_MISMATCH,
// NULL_POINTER, BAD_PARAM, BAD_TENSOR_*, NOT_IMPLEMENTED; the message names the tensor, and all that are missing.
ModelTensors readTensors(const ModelConfig &config, const Qwen3Weights *weights, const Qwen3ModelOptions &options);

}  // namespace q3
