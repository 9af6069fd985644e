// The self-test of the norms: of rows, of heads in place, and of a sum (newer versions).
#pragma once

#include <functional>

#include "ops/infinicore/device/operators.h"
#include "ops/infinicore/routes.h"
#include "ops/infinicore/selftest/trial.h"
#include "ops/types.h"

namespace q3::infinicore {

// Tries them on that many rows; judge gets each verdict, and the route that avoids the operator or null. `routes` is
// looked at again after a verdict: judge may have cleared the route.
void tryNorms(Trial &trial, Operators &operators, const ModelConfig &config, size_t rows, const Routes &routes,
              const std::function<void(const Verdict &, bool Routes::*)> &judge);

}  // namespace q3::infinicore
