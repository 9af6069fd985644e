// The module's side of the seam: makes a table out of a Backend.
#pragma once

#include <memory>
#include <vector>

#include "ops/module/seam.h"

namespace q3::module {

// What a module is made of. Functions may throw anything.
struct Exports {
    const char *infinicore;
    void (*load)(int32_t device);
    const char *(*infinicoreFolder)();
    std::unique_ptr<Backend> (*create)(const ModelConfig &config, const BackendOptions &options,
                                       const HostRanks &ranks);
    void (*connect)(const std::vector<Backend *> &ranks);
};

// The table of the module. To be called once.
Table tableOf(const Exports &exports);

}  // namespace q3::module
