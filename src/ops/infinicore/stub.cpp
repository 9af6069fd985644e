// Built instead of the other files of this folder when InfiniCore was not found.
#include "ops/infinicore/device/devices.h"
#include "ops/infinicore/infinicore.h"
#include "runtime/error.h"

namespace q3::infinicore {

const char *version() {
    return "none";
}

std::vector<std::unique_ptr<Backend>> makeInfinicoreBackends(const std::vector<ModelConfig> &,
                                                             const std::vector<BackendOptions> &options, RankGroup &) {
    const auto device = static_cast<int>(options[0].device);
    fail(QWEN3_STATUS_DEVICE_TYPE_NOT_SUPPORTED,
         "device %s needs InfiniCore, and this library was built without it: run `%s`, then rebuild with "
         "`xmake f --infinicore=y` and `xmake`",
         deviceName(device), installCommand(device));
}

}  // namespace q3::infinicore
