// The library's side of the seam: Backend and Ops over a module's table.
#pragma once

#include <memory>
#include <vector>

#include "ops/backend.h"
#include "runtime/ranks.h"

namespace q3::module {

// The backends of all ranks, made on the ranks' threads and connected. `group` and `reduce` must outlive them. Throws
// what loadModule throws, and the module's own errors.
std::vector<std::unique_ptr<Backend>> makeModuleBackends(const std::vector<ModelConfig> &configs,
                                                         const std::vector<BackendOptions> &options, RankGroup &group,
                                                         HostAllReduce &reduce);

}  // namespace q3::module
