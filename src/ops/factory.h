// The only place that knows which backends there are.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "ops/backend.h"
#include "runtime/ranks.h"

namespace q3 {

// Whether a model runs on InfiniCore, and not on the CPU kernels.
bool needsInfinicore(const BackendOptions &options);

// The backends of all ranks, made on the ranks' threads: configs[rank] is the rank's part of the model, dev_ids[rank]
// its device; options.nthreads and kv_limit_bytes are divided. `group` and `reduce` must outlive them. Throws
// DEVICE_TYPE_NOT_SUPPORTED and what to do when InfiniCore, or our module for it, is missing.
std::vector<std::unique_ptr<Backend>> makeBackends(const std::vector<ModelConfig> &configs,
                                                   const BackendOptions &options, const std::vector<int32_t> &dev_ids,
                                                   RankGroup &group, HostAllReduce &reduce);

// "version=0.1.0 isa=avx2 infinicore=0.1.0", as qwen3BuildInfo begins.
std::string libraryInfo();

}  // namespace q3
