// Sums over the devices of a model, through infiniccl.
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "infiniccl.h"
#include "ops/infinicore/device/device.h"
#include "ops/module/seam.h"

namespace q3::infinicore {

// One rank's end. A device's stream waits in a sum until all devices have come to it, so no rank may start one that
// another will not: the ranks' threads meet at the barrier first, and one that failed before stops the others there.
// They meet again afterwards, so that none goes on to wait for a sum that another could not start.
class Comm {
public:
    // One end for each device; throws DEVICE_TYPE_NOT_SUPPORTED when InfiniCore has no collectives for them.
    static std::vector<std::unique_ptr<Comm>> connect(const std::vector<std::shared_ptr<Device>> &devices,
                                                      const module::HostRanks &host);
    ~Comm();
    Comm(const Comm &) = delete;
    Comm &operator=(const Comm &) = delete;

    // data[count] = its sum over all ranks, in the order of the stream. Needs a DeviceScope; called by every rank's
    // thread. Throws RankStopped when another rank failed. A device that cannot even start a sum at the second try
    // leaves the others waiting in it for good; then all are abandoned.
    void sum(void *data, size_t count, infiniDtype_t dtype);

private:
    struct Link {  // between all ranks
        const module::HostRanks host;
        std::atomic<bool> broken{false};
        void meet() const { module::rethrow(host.meet(host.context), host.error); }
    };
    Comm(std::shared_ptr<Device> device, infinicclComm_t comm, std::shared_ptr<Link> link)
        : device_(std::move(device)), comm_(comm), link_(std::move(link)) {}

    std::shared_ptr<Device> device_;
    infinicclComm_t comm_;
    std::shared_ptr<Link> link_;
};

}  // namespace q3::infinicore
