// Layers with experts: rows are gathered per expert on the device, and chosen on the host.
#include <algorithm>

#include "ops/infinicore/infinicore_backend.h"
#include "runtime/error.h"

namespace q3::infinicore {

void InfinicoreBackend::experts(Activation, Activation, const PackedLinear &, const PackedLinear &,
                                const PackedLinear &) {
    fail(QWEN3_STATUS_NOT_IMPLEMENTED, "layers with experts are not implemented on InfiniCore");
}

}  // namespace q3::infinicore
