// The InfiniCore backend as a module: the one symbol that the library looks up.
#include <memory>
#include <vector>

#include "ops/infinicore/device/library.h"
#include "ops/infinicore/infinicore.h"
#include "ops/infinicore/infinicore_backend.h"
#include "ops/module/export.h"

namespace q3::infinicore {
namespace {

std::unique_ptr<Backend> create(const ModelConfig &config, const BackendOptions &options,
                                const module::HostRanks &host) {
    return std::make_unique<InfinicoreBackend>(config, options, host, Tuning::forDevice(options.device));
}

void connect(const std::vector<Backend *> &backends) {
    std::vector<InfinicoreBackend *> ranks;
    std::vector<std::shared_ptr<Device>> devices;
    for (Backend *backend : backends) {
        ranks.push_back(static_cast<InfinicoreBackend *>(backend));
        devices.push_back(ranks.back()->device());
    }
    if (ranks.size() == 1 || devices[0]->isCpu()) {
        return;
    }
    std::vector<std::unique_ptr<Comm>> comms = Comm::connect(devices, ranks[0]->host());
    for (size_t rank = 0; rank < ranks.size(); ++rank) {
        ranks[rank]->join(std::move(comms[rank]));
    }
}

}  // namespace
}  // namespace q3::infinicore

extern "C" __attribute__((visibility("default"))) const q3::module::Table *infinicore_infer_module() {
    using namespace q3;
    static const module::Table table =
        module::tableOf({infinicore::version(), infinicore::loadInfinicore, infinicore::infinicoreFolder,
                         infinicore::create, infinicore::connect});
    return &table;
}
