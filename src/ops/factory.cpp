#include <algorithm>

#include "ops/cpu/cpu_ops.h"
#include "ops/infinicore/infinicore.h"
#include "runtime/cpu_info.h"
#include "runtime/error.h"
#include "runtime/thread_pool.h"

namespace q3 {

std::unique_ptr<Ops> makeOps(const ModelConfig &config, const OpsOptions &wanted) {
    OpsOptions options = wanted;
    if (options.nthreads == 0) {
        options.nthreads = static_cast<int32_t>(std::min(availableCpus(), kMaxThreads));
    }
    if (options.backend == QWEN3_BACKEND_INFINICORE ||
        (options.backend == QWEN3_BACKEND_AUTO && options.device != QWEN3_DEVICE_CPU)) {
        return infinicore::makeInfinicoreOps(config, options);
    }
    if (options.device != QWEN3_DEVICE_CPU) {
        fail(QWEN3_STATUS_BAD_PARAM, "backend cpu cannot run on device %d: only on device 0 (cpu)", options.device);
    }
    if (options.device_id != 0) {
        fail(QWEN3_STATUS_DEVICE_NOT_FOUND, "dev_ids[0] is %d: there is one cpu device, 0", options.device_id);
    }
    return cpu::makeCpuOps(config, options);
}

}  // namespace q3
