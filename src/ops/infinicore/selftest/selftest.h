// Tries the operators that the backend will use on the device before any weight is packed.
#pragma once

#include "ops/infinicore/device/operators.h"
#include "ops/infinicore/routes.h"

namespace q3::infinicore {

struct SelfTestSetup {
    uint32_t block_tokens;  // of a KV block
    uint32_t identity;      // rows of the identity that replaces add
    uint32_t mask;          // rows of the mask that the backend would use for wide scores; 0: it needs none
};

// Runs each operator with the dtype, strides and inner sizes of the model, on 1 and 3 rows and at most 32 columns of
// a weight, and compares with sums in double. Operators that the device refuses are taken out of the returned routes.
// Throws DEVICE_TYPE_NOT_SUPPORTED and names, with dtype and shapes, every operator that is refused without another
// route, or that gives wrong numbers. Needs a DeviceScope.
Routes selfTest(const std::shared_ptr<Device> &device, Operators &operators, const ModelConfig &config,
                const SelfTestSetup &setup, Routes routes);

}  // namespace q3::infinicore
