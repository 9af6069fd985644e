#include "ops/infinicore/comm.h"

#include "ops/devices.h"
#include "ops/infinicore/device/check.h"
#include "runtime/error.h"
#include "runtime/ranks.h"

namespace q3::infinicore {

std::vector<std::unique_ptr<Comm>> Comm::connect(const std::vector<std::shared_ptr<Device>> &devices,
                                                 const module::HostRanks &host) {
    std::vector<int> ids;
    ids.reserve(devices.size());
    for (const auto &device : devices) {
        ids.push_back(device->id());
    }
    const infiniDevice_t type = devices[0]->type();
    const DeviceScope scope(*devices[0]);
    std::vector<infinicclComm_t> handles(devices.size(), nullptr);
    std::vector<std::unique_ptr<Comm>> comms;
    comms.reserve(devices.size());
    const infiniStatus_t status = infinicclCommInitAll(type, handles.data(), static_cast<int>(ids.size()), ids.data());
    if (status == INFINI_STATUS_DEVICE_TYPE_NOT_SUPPORTED) {
        fail(QWEN3_STATUS_DEVICE_TYPE_NOT_SUPPORTED,
             "ndev is %zu, but the installed InfiniCore was built without infiniccl for %s: run %s", devices.size(),
             deviceName(type), installHint(type, " --ccl").c_str());
    }
    check(status, "infinicclCommInitAll");
    const std::shared_ptr<Link> link(new Link{host});
    for (size_t rank = 0; rank < devices.size(); ++rank) {
        comms.emplace_back(new Comm(devices[rank], handles[rank], link));
    }
    return comms;
}

Comm::~Comm() {
    if (device_->abandoned()) {
        return;
    }
    try {
        const DeviceScope scope(*device_);
        device_->settle();
        infinicclCommDestroy(comm_);
    } catch (...) {  // the device is gone
    }
}

void Comm::sum(void *data, size_t count, infiniDtype_t dtype) {
    if (device_->abandoned()) {
        device_->synchronize();  // throws, as the device is abandoned
    }
    link_->meet();
    const auto issue = [&] {
        return infinicclAllReduce(data, data, count, dtype, INFINICCL_SUM, comm_, device_->stream());
    };
    const infiniStatus_t status = issue();
    const bool complete = status == INFINI_STATUS_SUCCESS || issue() == INFINI_STATUS_SUCCESS;
    if (status != INFINI_STATUS_SUCCESS && complete) {
        failStatus(status, "infinicclAllReduce");  // the others have what they wait for; the step fails all the same
    }
    if (!complete) {
        link_->broken = true;
    }
    link_->meet();
    if (link_->broken) {
        device_->abandon();
        if (complete) {
            throw RankStopped{};
        }
        device_->synchronize();  // throws, as the device is abandoned
    }
}

}  // namespace q3::infinicore
