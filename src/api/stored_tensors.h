// The formats of quantised checkpoints that Qwen3Tensor describes, checked.
#pragma once

#include <string>

#include "infinicore_infer/models/qwen3.h"
#include "ops/stored.h"

namespace q3 {

// "GGUF_Q4_K" for the dtypes that only tensors have; null for other numbers.
const char *storedDTypeName(int32_t dtype);

// What a tensor of such a dtype says, whose shape has been checked; reads no data. `name` begins its messages. Throws
// BAD_PARAM, BAD_TENSOR_DTYPE, BAD_TENSOR_SHAPE, BAD_TENSOR_STRIDES, NULL_POINTER; NOT_IMPLEMENTED for what may exist
// but is not read.
StoredMatrix readStored(const Qwen3Tensor &tensor, const std::string &name);

// Throws unless the members that only such dtypes use are 0.
void requirePlain(const Qwen3Tensor &tensor, const std::string &name);

}  // namespace q3
