// Checks of everything a caller passes in, before any work. Messages name the argument, the index, the value and the
// limit. All functions throw q3::Error.
#pragma once

#include <vector>

#include "engine/batch.h"
#include "ops/backend.h"
#include "ops/types.h"

namespace q3 {

void requirePointer(const void *pointer, const char *name);
void requireFloatDType(int32_t dtype, const char *name);

// A full-size copy of a caller's options of whatever version, defaults filled in and ranges checked.
Qwen3ModelOptions readOptions(const Qwen3ModelOptions *options, int32_t device);
ModelConfig readMeta(const Qwen3Meta &meta, const Qwen3ModelOptions &options);
std::vector<int32_t> checkDevices(int32_t device, int32_t ndev, const int32_t *dev_ids);  // [ndev] device indices
// What the backends need of arguments that have passed the checks above.
BackendOptions backendOptions(const Qwen3ModelOptions &options, int32_t device, DType dt_mat);

void checkBatch(const ModelConfig &config, const BatchArgs &args);
// Checked rows of embedBatch; those of the last tokens where rows is null. args have been checked.
std::vector<uint32_t> readRows(const BatchArgs &args, const uint32_t *rows, uint32_t nrows);

// What inferBatchEx is given, in structs of this version.
struct Sampling {
    std::vector<Qwen3SamplingParams> params;  // [nreq]
    std::vector<Qwen3SampleResult> results;   // [nreq], with the caller's arrays
};
Sampling readSampling(const ModelConfig &config, const BatchArgs &args, const Qwen3SamplingParams *params,
                      Qwen3SampleResult *results);
void writeResults(const Sampling &sampling, Qwen3SampleResult *results);  // to the caller's array, as read before
std::vector<Qwen3SamplingParams> plainSampling(const BatchArgs &args, const float *temperature, const uint32_t *topk,
                                               const float *topp);

}  // namespace q3
