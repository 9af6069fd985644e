#include "ops/factory.h"

#include <algorithm>

#include "ops/cpu/cpu_backend.h"
#include "ops/module/loader.h"
#include "ops/module/module_backend.h"
#include "runtime/cpu_info.h"
#include "runtime/error.h"
#include "runtime/numa.h"
#include "runtime/thread_pool.h"

namespace q3 {

bool needsInfinicore(const BackendOptions &options) {
    return options.backend == BackendKind::kInfinicore ||
           (options.backend == BackendKind::kAuto && options.device != DeviceType::kCpu);
}

std::vector<std::unique_ptr<Backend>> makeBackends(const std::vector<ModelConfig> &configs,
                                                   const BackendOptions &wanted, const std::vector<int32_t> &dev_ids,
                                                   RankGroup &group, HostAllReduce &reduce) {
    const bool on_cpu = wanted.device == DeviceType::kCpu;
    const bool with_infinicore = needsInfinicore(wanted);
    if (!with_infinicore && !on_cpu) {
        fail(QWEN3_STATUS_BAD_PARAM, "backend cpu cannot run on device %d: only on device 0 (cpu)",
             static_cast<int>(wanted.device));
    }
    if (with_infinicore && wanted.activations != Activations::kAuto) {
        fail(QWEN3_STATUS_BAD_PARAM,
             "options.activations is %s, which only the cpu backend can choose: InfiniCore's "
             "operators compute in meta.dt_logits",
             activationsName(wanted.activations));
    }
    const uint32_t total =
        wanted.nthreads != 0 ? static_cast<uint32_t>(wanted.nthreads) : std::min(availableCpus(), kMaxThreads);
    std::vector<BackendOptions> options(configs.size(), wanted);
    for (uint32_t rank = 0; rank < configs.size(); ++rank) {
        options[rank].device_id = on_cpu ? 0 : dev_ids[rank];
        options[rank].nthreads = static_cast<int32_t>(threadsOfRank(total, rank, group.size()));
        options[rank].rank = rank;
        if (wanted.kv_limit_bytes != 0) {
            options[rank].kv_limit_bytes = std::max<uint64_t>(wanted.kv_limit_bytes / group.size(), 1);
        }
        options[rank].reduce = on_cpu && group.size() > 1 ? &reduce : nullptr;
    }
    if (with_infinicore) {
        return module::makeModuleBackends(configs, options, group, reduce);
    }
    std::vector<std::unique_ptr<Backend>> backends(configs.size());
    group.run([&](uint32_t rank) { backends[rank] = cpu::makeCpuBackend(configs[rank], options[rank]); });
    return backends;
}

std::string libraryInfo() {
    return std::string("version=") + QWEN3_VERSION_STRING + " isa=" + cpu::isaName() +
           " infinicore=" + module::infinicoreVersion();
}

}  // namespace q3
