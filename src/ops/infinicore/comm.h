// Sums over the devices of a model, through infiniccl.
#pragma once

#include <memory>
#include <vector>

#include "infiniccl.h"
#include "ops/infinicore/memory.h"
#include "runtime/ranks.h"

namespace q3::infinicore {

// One rank's end. A device's stream waits in a sum until all devices have come to it, so no rank may start one that
// another will not: the ranks' threads meet at the barrier first, and one that failed before stops the others there.
class Comm {
public:
    // One end for each device; throws DEVICE_TYPE_NOT_SUPPORTED when InfiniCore has no collectives for them.
    static std::vector<std::unique_ptr<Comm>> connect(const std::vector<std::shared_ptr<Device>> &devices,
                                                      RankBarrier &barrier);
    ~Comm();
    Comm(const Comm &) = delete;
    Comm &operator=(const Comm &) = delete;

    // data[count] = its sum over all ranks, in the order of the stream. Needs a DeviceScope; called by every rank's
    // thread. Throws RankStopped when another rank failed.
    void sum(void *data, size_t count, infiniDtype_t dtype);

private:
    Comm(std::shared_ptr<Device> device, infinicclComm_t comm, RankBarrier &barrier)
        : device_(std::move(device)), comm_(comm), barrier_(barrier) {}

    std::shared_ptr<Device> device_;
    infinicclComm_t comm_;
    RankBarrier &barrier_;
};

}  // namespace q3::infinicore
