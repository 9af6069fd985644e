// What the rest of the library may know of the InfiniCore backend. infinicore_ops.cpp implements it when InfiniCore
// was found at build time, stub.cpp when not.
#pragma once

#include <memory>
#include <vector>

#include "ops/backend.h"
#include "runtime/ranks.h"

namespace q3::infinicore {

const char *version();  // "0.1.0" or "none"
// The backends of all ranks, made on the ranks' threads and connected.
std::vector<std::unique_ptr<Backend>> makeInfinicoreBackends(const std::vector<ModelConfig> &configs,
                                                             const std::vector<BackendOptions> &options,
                                                             RankGroup &group);

}  // namespace q3::infinicore
