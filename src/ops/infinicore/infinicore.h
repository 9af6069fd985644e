// What the rest of the library may know of the InfiniCore backend. infinicore_ops.cpp implements it when InfiniCore
// was found at build time, stub.cpp when not.
#pragma once

#include <memory>

#include "ops/ops.h"

namespace q3::infinicore {

const char *version();  // "0.1.0" or "none"
std::unique_ptr<Ops> makeInfinicoreOps(const ModelConfig &config, const OpsOptions &options);

}  // namespace q3::infinicore
